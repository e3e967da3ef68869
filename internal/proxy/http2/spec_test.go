package http2

import (
	"bytes"
	"strings"
	"testing"

	xnet "golang.org/x/net/http2"

	"lateen.dev/lateen/internal/proxy/message/messagetest"
)

// The rules of RFC 9113 that a client can break, each with the answer. The
// cases of h2spec 2.2.1 are among them.
func TestServer_rules(t *testing.T) {
	long := strings.Repeat("x", 300)
	for _, c := range []struct {
		name string
		do   func(p *peer)
		want string // what the server sends
	}{
		// §4.1, §5.5
		{"unknown frame type", func(p *peer) { _ = p.WriteRawFrame(0x16, 0xff, 0, []byte("12345678")) }, ""},
		{"unknown flags", func(p *peer) { _ = p.WriteRawFrame(framePing, 0x16, 0, []byte("12345678")) }, "PING ack 12345678"},
		{"reserved bit", func(p *peer) { _ = p.WriteRawFrame(framePing, 0, 1<<31, []byte("12345678")) }, "PING ack 12345678"},
		{"unknown frame inside a header block", func(p *peer) {
			_ = p.WriteHeaders(xnet.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(getFields...)})
			_ = p.WriteRawFrame(0x16, 0, 0, nil)
		}, "GOAWAY 0 PROTOCOL_ERROR; CLOSE"},
		// §4.2
		{"largest frame", func(p *peer) { p.post(1); _ = p.WriteData(1, true, make([]byte, 16384)) }, ""},
		{"DATA too large", func(p *peer) { p.post(1); _ = p.WriteData(1, true, make([]byte, 16385)) }, "GOAWAY 1 FRAME_SIZE_ERROR; CLOSE"},
		{"HEADERS too large", func(p *peer) { _ = p.WriteRawFrame(frameHeaders, 5, 1, make([]byte, 16385)) }, "GOAWAY 0 FRAME_SIZE_ERROR; CLOSE"},
		// §4.3
		{"malformed block", func(p *peer) { _ = p.WriteRawFrame(frameHeaders, 5, 1, []byte{0x40}) }, "GOAWAY 1 COMPRESSION_ERROR; CLOSE"},
		{"PRIORITY inside a header block", func(p *peer) {
			_ = p.WriteHeaders(xnet.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(getFields...)})
			_ = p.WritePriority(1, xnet.PriorityParam{StreamDep: 3})
		}, "GOAWAY 0 PROTOCOL_ERROR; CLOSE"},
		{"HEADERS of another stream inside a header block", func(p *peer) {
			_ = p.WriteHeaders(xnet.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(getFields...)})
			p.get(3)
		}, "GOAWAY 0 PROTOCOL_ERROR; CLOSE"},
		// §5.1
		{"DATA on an idle stream", func(p *peer) { _ = p.WriteData(1, true, nil) }, "GOAWAY 0 PROTOCOL_ERROR; CLOSE"},
		{"RST_STREAM on an idle stream", func(p *peer) { _ = p.WriteRSTStream(1, 8) }, "GOAWAY 0 PROTOCOL_ERROR; CLOSE"},
		{"WINDOW_UPDATE on an idle stream", func(p *peer) { _ = p.WriteWindowUpdate(1, 100) }, "GOAWAY 0 PROTOCOL_ERROR; CLOSE"},
		{"CONTINUATION on an idle stream", func(p *peer) { _ = p.WriteContinuation(1, true, nil) }, "GOAWAY 0 PROTOCOL_ERROR; CLOSE"},
		{"DATA on a half-closed stream", func(p *peer) { p.get(1); _ = p.WriteData(1, true, []byte("x")) }, "RST_STREAM 1 STREAM_CLOSED"},
		{"HEADERS on a half-closed stream", func(p *peer) { p.get(1); p.get(1) }, "RST_STREAM 1 STREAM_CLOSED"},
		{"CONTINUATION on a half-closed stream", func(p *peer) { p.get(1); _ = p.WriteContinuation(1, true, nil) }, "GOAWAY 1 PROTOCOL_ERROR; CLOSE"},
		{"DATA after RST_STREAM", func(p *peer) { p.post(1); _ = p.WriteRSTStream(1, 8); _ = p.WriteData(1, true, []byte("x")) }, "RST_STREAM 1 STREAM_CLOSED"},
		{"HEADERS after RST_STREAM", func(p *peer) { p.post(1); _ = p.WriteRSTStream(1, 8); p.get(1) }, "RST_STREAM 1 STREAM_CLOSED"},
		{"CONTINUATION after RST_STREAM", func(p *peer) { p.post(1); _ = p.WriteRSTStream(1, 8); _ = p.WriteContinuation(1, true, nil) }, "GOAWAY 1 PROTOCOL_ERROR; CLOSE"},
		{"DATA after END_STREAM on both sides", func(p *peer) {
			p.get(1)
			p.feed()
			p.acc.Last().Sender.SendHead(messagetest.Response(204), true)
			_ = p.WriteData(1, true, []byte("x"))
		}, "HEADERS 1 :status=204 end; GOAWAY 1 STREAM_CLOSED; CLOSE"},
		{"HEADERS after END_STREAM on both sides", func(p *peer) {
			p.get(1)
			p.feed()
			p.acc.Last().Sender.SendHead(messagetest.Response(204), true)
			p.get(1)
		}, "HEADERS 1 :status=204 end; GOAWAY 1 STREAM_CLOSED; CLOSE"},
		{"PRIORITY on an idle stream", func(p *peer) { _ = p.WritePriority(5, xnet.PriorityParam{StreamDep: 3}); p.get(3) }, ""},
		{"PRIORITY and WINDOW_UPDATE on a closed stream", func(p *peer) {
			p.post(1)
			_ = p.WriteRSTStream(1, 8)
			_ = p.WritePriority(1, xnet.PriorityParam{StreamDep: 3})
			_ = p.WriteWindowUpdate(1, 5)
			_ = p.WriteRSTStream(1, 8)
		}, ""},
		// §5.1.1
		{"even stream", func(p *peer) { p.get(2) }, "GOAWAY 0 PROTOCOL_ERROR; CLOSE"},
		{"stream number goes back", func(p *peer) { p.get(5); p.get(3) }, "GOAWAY 5 STREAM_CLOSED; CLOSE"},
		// §5.1.2
		{"more streams than announced", func(p *peer) {
			for i := range uint32(4) {
				p.get(2*i + 1)
			}
		}, "RST_STREAM 7 REFUSED_STREAM"},
		// §5.3 of RFC 7540
		{"HEADERS that depends on itself", func(p *peer) {
			_ = p.WriteHeaders(xnet.HeadersFrameParam{
				StreamID: 1, BlockFragment: p.block(getFields...), EndHeaders: true, Priority: xnet.PriorityParam{StreamDep: 1},
			})
		}, "GOAWAY 0 PROTOCOL_ERROR; CLOSE"},
		{"PRIORITY that depends on itself", func(p *peer) { p.post(1); _ = p.WritePriority(1, xnet.PriorityParam{StreamDep: 1}) }, "RST_STREAM 1 PROTOCOL_ERROR"},
		// §6.1
		{"DATA on stream 0", func(p *peer) { _ = p.WriteData(0, true, nil) }, "GOAWAY 0 PROTOCOL_ERROR; CLOSE"},
		{"DATA with more padding than payload", func(p *peer) { p.post(1); _ = p.WriteRawFrame(frameData, flagPadded, 1, []byte{3, 1, 1}) }, "GOAWAY 1 PROTOCOL_ERROR; CLOSE"},
		{"DATA padded without length", func(p *peer) { p.post(1); _ = p.WriteRawFrame(frameData, flagPadded, 1, nil) }, "GOAWAY 1 FRAME_SIZE_ERROR; CLOSE"},
		// §6.2
		{"HEADERS on stream 0", func(p *peer) { p.get(0) }, "GOAWAY 0 PROTOCOL_ERROR; CLOSE"},
		{"HEADERS with more padding than payload", func(p *peer) {
			_ = p.WriteRawFrame(frameHeaders, flagPadded|flagEndHeaders|1, 1, append([]byte{200}, p.block(getFields...)...))
		}, "GOAWAY 0 PROTOCOL_ERROR; CLOSE"},
		{"HEADERS with a short priority", func(p *peer) { _ = p.WriteRawFrame(frameHeaders, flagPriority|flagEndHeaders, 1, []byte{0}) }, "GOAWAY 0 FRAME_SIZE_ERROR; CLOSE"},
		// §6.3
		{"PRIORITY on stream 0", func(p *peer) { _ = p.WritePriority(0, xnet.PriorityParam{StreamDep: 3}) }, "GOAWAY 0 PROTOCOL_ERROR; CLOSE"},
		{"PRIORITY of a wrong size", func(p *peer) { p.post(1); _ = p.WriteRawFrame(framePriority, 0, 1, []byte{1, 2, 3, 4}) }, "RST_STREAM 1 FRAME_SIZE_ERROR"},
		// §6.4
		{"RST_STREAM on stream 0", func(p *peer) { _ = p.WriteRSTStream(0, 8) }, "GOAWAY 0 PROTOCOL_ERROR; CLOSE"},
		{"RST_STREAM of a wrong size", func(p *peer) { p.post(1); _ = p.WriteRawFrame(frameRSTStream, 0, 1, []byte{0, 0, 0}) }, "GOAWAY 1 FRAME_SIZE_ERROR; CLOSE"},
		{"RST_STREAM with an unknown code", func(p *peer) { p.post(1); _ = p.WriteRSTStream(1, 0xff) }, ""},
		// §6.5
		{"SETTINGS ack with payload", func(p *peer) { _ = p.WriteRawFrame(frameSettings, 1, 0, make([]byte, 6)) }, "GOAWAY 0 FRAME_SIZE_ERROR; CLOSE"},
		{"SETTINGS on a stream", func(p *peer) { _ = p.WriteRawFrame(frameSettings, 0, 1, nil) }, "GOAWAY 0 PROTOCOL_ERROR; CLOSE"},
		{"SETTINGS of a wrong size", func(p *peer) { _ = p.WriteRawFrame(frameSettings, 0, 0, make([]byte, 5)) }, "GOAWAY 0 FRAME_SIZE_ERROR; CLOSE"},
		{"ENABLE_PUSH 2", func(p *peer) { _ = p.WriteSettings(xnet.Setting{ID: 2, Val: 2}) }, "GOAWAY 0 PROTOCOL_ERROR; CLOSE"},
		{"INITIAL_WINDOW_SIZE 2^31", func(p *peer) { _ = p.WriteSettings(xnet.Setting{ID: 4, Val: 1 << 31}) }, "GOAWAY 0 FLOW_CONTROL_ERROR; CLOSE"},
		{"MAX_FRAME_SIZE too small", func(p *peer) { _ = p.WriteSettings(xnet.Setting{ID: 5, Val: 16383}) }, "GOAWAY 0 PROTOCOL_ERROR; CLOSE"},
		{"MAX_FRAME_SIZE 0", func(p *peer) { _ = p.WriteSettings(xnet.Setting{ID: 5, Val: 0}) }, "GOAWAY 0 PROTOCOL_ERROR; CLOSE"},
		{"MAX_FRAME_SIZE too large", func(p *peer) { _ = p.WriteSettings(xnet.Setting{ID: 5, Val: 1 << 24}) }, "GOAWAY 0 PROTOCOL_ERROR; CLOSE"},
		{"ENABLE_CONNECT_PROTOCOL 2", func(p *peer) { _ = p.WriteSettings(xnet.Setting{ID: 8, Val: 2}) }, "GOAWAY 0 PROTOCOL_ERROR; CLOSE"},
		{"unknown setting", func(p *peer) { _ = p.WriteSettings(xnet.Setting{ID: 0xff, Val: 1}) }, "SETTINGS ack"},
		// §6.6
		{"PUSH_PROMISE", func(p *peer) { p.post(1); _ = p.WriteRawFrame(framePushPromise, 4, 1, []byte{0, 0, 0, 2, 0x82}) }, "GOAWAY 1 PROTOCOL_ERROR; CLOSE"},
		// §6.7
		{"PING", func(p *peer) { _ = p.WritePing(false, [8]byte{'h', 'a', 'l', 'l', 'o', '!', '!', '!'}) }, "PING ack hallo!!!"},
		{"PING ack", func(p *peer) { _ = p.WritePing(true, [8]byte{}) }, ""},
		{"PING on a stream", func(p *peer) { _ = p.WriteRawFrame(framePing, 0, 1, make([]byte, 8)) }, "GOAWAY 0 PROTOCOL_ERROR; CLOSE"},
		{"PING of a wrong size", func(p *peer) { _ = p.WriteRawFrame(framePing, 0, 0, make([]byte, 6)) }, "GOAWAY 0 FRAME_SIZE_ERROR; CLOSE"},
		// §6.8
		{"GOAWAY on a stream", func(p *peer) { _ = p.WriteRawFrame(frameGoAway, 0, 1, make([]byte, 8)) }, "GOAWAY 0 PROTOCOL_ERROR; CLOSE"},
		{"GOAWAY too short", func(p *peer) { _ = p.WriteRawFrame(frameGoAway, 0, 0, make([]byte, 7)) }, "GOAWAY 0 FRAME_SIZE_ERROR; CLOSE"},
		{"GOAWAY with an unknown code", func(p *peer) { _ = p.WriteGoAway(0, 0xff, nil) }, "CLOSE"},
		// §6.9
		{"WINDOW_UPDATE 0", func(p *peer) { _ = p.WriteWindowUpdate(0, 0) }, "GOAWAY 0 PROTOCOL_ERROR; CLOSE"},
		{"WINDOW_UPDATE 0 on a stream", func(p *peer) { p.post(1); _ = p.WriteWindowUpdate(1, 0) }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"WINDOW_UPDATE of a wrong size", func(p *peer) { _ = p.WriteRawFrame(frameWindowUpdate, 0, 0, []byte{0, 0, 1}) }, "GOAWAY 0 FRAME_SIZE_ERROR; CLOSE"},
		{"window beyond 2^31-1", func(p *peer) { _ = p.WriteWindowUpdate(0, 1<<31-1) }, "GOAWAY 0 FLOW_CONTROL_ERROR; CLOSE"},
		{"stream window beyond 2^31-1", func(p *peer) { p.post(1); _ = p.WriteWindowUpdate(1, 1<<31-1) }, "RST_STREAM 1 FLOW_CONTROL_ERROR"},
		{"stream window beyond 2^31-1 by SETTINGS", func(p *peer) {
			p.post(1)
			_ = p.WriteWindowUpdate(1, 1<<30)
			_ = p.WriteSettings(xnet.Setting{ID: 4, Val: 1<<31 - 1})
		}, "GOAWAY 1 FLOW_CONTROL_ERROR; CLOSE"},
		// §6.10
		{"two CONTINUATION frames", func(p *peer) {
			b := p.block(getFields...)
			_ = p.WriteHeaders(xnet.HeadersFrameParam{StreamID: 1, BlockFragment: b[:1], EndStream: true})
			_ = p.WriteContinuation(1, false, b[1:2])
			_ = p.WriteContinuation(1, true, b[2:])
		}, ""},
		{"CONTINUATION on stream 0", func(p *peer) {
			_ = p.WriteHeaders(xnet.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(getFields...)})
			_ = p.WriteContinuation(0, true, nil)
		}, "GOAWAY 0 PROTOCOL_ERROR; CLOSE"},
		{"CONTINUATION after END_HEADERS", func(p *peer) { p.post(1); _ = p.WriteContinuation(1, true, nil) }, "GOAWAY 1 PROTOCOL_ERROR; CLOSE"},
		{"CONTINUATION after DATA", func(p *peer) {
			p.post(1)
			_ = p.WriteData(1, false, []byte("x"))
			_ = p.WriteContinuation(1, true, nil)
		}, "GOAWAY 1 PROTOCOL_ERROR; CLOSE"},
		// §8.1
		{"second HEADERS without END_STREAM", func(p *peer) { p.post(1); p.headers(1, false, "x", "y") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"pseudo field in trailers", func(p *peer) { p.post(1); p.headers(1, true, ":method", "GET") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"content-length in trailers", func(p *peer) { p.post(1); p.headers(1, true, "content-length", "3") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		// §8.1.1
		{"body longer than declared", func(p *peer) { p.post(1, "content-length", "1"); _ = p.WriteData(1, true, []byte("test")) }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"body longer than declared, in pieces", func(p *peer) {
			p.post(1, "content-length", "1")
			_ = p.WriteData(1, false, []byte("t"))
			_ = p.WriteData(1, true, []byte("est"))
		}, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"body shorter than declared", func(p *peer) { p.post(1, "content-length", "5"); _ = p.WriteData(1, true, []byte("test")) }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"body shorter than declared, then trailers", func(p *peer) { p.post(1, "content-length", "5"); p.headers(1, true, "x", "y") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"declared body, none", func(p *peer) { p.get(1, "content-length", "5") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"two lengths", func(p *peer) { p.post(1, "content-length", "5", "content-length", "5") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"signed length", func(p *peer) { p.post(1, "content-length", "+5") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		// §8.2
		{"upper-case name", func(p *peer) { p.get(1, "X-Test", "ok") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"space in a name", func(p *peer) { p.get(1, "x test", "ok") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"colon in a name", func(p *peer) { p.get(1, "x:", "ok") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"empty name", func(p *peer) { p.get(1, "", "ok") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"long name", func(p *peer) { p.get(1, long, "ok") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"line break in a value", func(p *peer) { p.get(1, "x", "a\r\nb: c") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"NUL in a value", func(p *peer) { p.get(1, "x", "a\x00") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"line break in a known value", func(p *peer) { p.get(1, "user-agent", "a\nb") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"connection", func(p *peer) { p.get(1, "connection", "keep-alive") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"keep-alive", func(p *peer) { p.get(1, "keep-alive", "1") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"proxy-connection", func(p *peer) { p.get(1, "proxy-connection", "x") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"transfer-encoding", func(p *peer) { p.post(1, "transfer-encoding", "chunked") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"upgrade", func(p *peer) { p.get(1, "upgrade", "websocket") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"te", func(p *peer) { p.get(1, "te", "trailers, deflate") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		// §8.3
		{"unknown pseudo field", func(p *peer) { p.get(1, ":test", "ok") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"pseudo field of a response", func(p *peer) { p.get(1, ":status", "200") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"pseudo field behind a regular one", func(p *peer) {
			p.headers(1, true, ":method", "GET", ":scheme", "http", "x", "y", ":path", "/", ":authority", "a")
		}, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"empty :path", func(p *peer) { p.headers(1, true, ":method", "GET", ":scheme", "http", ":authority", "a", ":path", "") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"no :method", func(p *peer) { p.headers(1, true, ":scheme", "http", ":authority", "a", ":path", "/") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"no :scheme", func(p *peer) { p.headers(1, true, ":method", "GET", ":authority", "a", ":path", "/") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"no :path", func(p *peer) { p.headers(1, true, ":method", "GET", ":scheme", "http", ":authority", "a") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"two :method", func(p *peer) { p.get(1, ":method", "GET") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"two :path", func(p *peer) {
			p.headers(1, true, ":method", "GET", ":path", "/", ":scheme", "http", ":authority", "a", ":path", "/")
		}, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"two :scheme", func(p *peer) {
			p.headers(1, true, ":method", "GET", ":scheme", "http", ":scheme", "http", ":authority", "a", ":path", "/")
		}, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"method that is no token", func(p *peer) {
			p.headers(1, true, ":method", "GET /", ":scheme", "http", ":authority", "a", ":path", "/")
		}, "RST_STREAM 1 PROTOCOL_ERROR"},
		// §8.5
		{"CONNECT with a path", func(p *peer) {
			p.headers(1, false, ":method", "CONNECT", ":scheme", "http", ":authority", "a:1", ":path", "/")
		}, "RST_STREAM 1 PROTOCOL_ERROR"},
		{"CONNECT without authority", func(p *peer) { p.headers(1, false, ":method", "CONNECT") }, "RST_STREAM 1 PROTOCOL_ERROR"},
		{":protocol that was not offered", func(p *peer) {
			p.headers(1, false, ":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":authority", "a", ":path", "/")
		}, "RST_STREAM 1 PROTOCOL_ERROR"},
		// what HTTP/1.1 answers with a status
		{"CONNECT where it is not allowed", func(p *peer) { p.headers(1, true, ":method", "CONNECT", ":authority", "a:1") }, "HEADERS 1 :status=403 content-length=0 end"},
		{"unknown scheme", func(p *peer) { p.headers(1, true, ":method", "GET", ":scheme", "ftp", ":authority", "a", ":path", "/") }, "HEADERS 1 :status=400 content-length=0 end"},
		{"path without slash", func(p *peer) {
			p.headers(1, true, ":method", "GET", ":scheme", "http", ":authority", "a", ":path", "x")
		}, "HEADERS 1 :status=400 content-length=0 end"},
		{"fragment", func(p *peer) {
			p.headers(1, true, ":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/#x")
		}, "HEADERS 1 :status=400 content-length=0 end"},
		{"space in the path", func(p *peer) {
			p.headers(1, true, ":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/ x")
		}, "HEADERS 1 :status=400 content-length=0 end"},
		{"long path", func(p *peer) {
			p.headers(1, true, ":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/"+strings.Repeat("p", 9000))
		}, "HEADERS 1 :status=414 content-length=0 end"},
		{"bad host", func(p *peer) {
			p.headers(1, true, ":method", "GET", ":scheme", "http", ":authority", "a b", ":path", "/")
		}, "HEADERS 1 :status=400 content-length=0 end"},
		{"user information", func(p *peer) {
			p.headers(1, true, ":method", "GET", ":scheme", "http", ":authority", "u@a", ":path", "/")
		}, "HEADERS 1 :status=400 content-length=0 end"},
		{"no authority", func(p *peer) { p.headers(1, true, ":method", "GET", ":scheme", "http", ":path", "/") }, "HEADERS 1 :status=400 content-length=0 end"},
		{"host differs", func(p *peer) { p.get(1, "host", "b") }, "HEADERS 1 :status=400 content-length=0 end"},
		{"two hosts", func(p *peer) { p.get(1, "host", "a", "host", "a") }, "HEADERS 1 :status=400 content-length=0 end"},
		{"refused before its body", func(p *peer) { p.post(1, "host", "b"); _ = p.WriteData(1, true, []byte("late")) }, "HEADERS 1 :status=400 content-length=0 end; RST_STREAM 1 NO_ERROR"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := toServer(t, &ServerOptions{MaxStreams: 3})
			c.do(p)
			p.want(c.want)
			closed := strings.HasSuffix(c.want, "CLOSE")
			if p.feed(); p.tr.Closing() != closed {
				t.Fatal("closing", p.tr.Closing())
			}
			for i, x := range p.acc.Exchanges {
				if closed && !x.WasReset && !strings.HasPrefix(c.want, "HEADERS") {
					t.Errorf("exchange %d was not reset: %v", i, x.Log)
				}
				if !closed {
					x.Sender.Reset(0)
				}
			}
			if closed {
				return
			}
			// The connection goes on, and the tables of both ends agree.
			p.out()
			p.get(101, "x-after", c.name)
			p.feed()
			if x := p.acc.Last(); x == nil || string(x.Head.GetName("x-after")) != c.name {
				t.Errorf("the connection is of no use any more: %v", p.out())
			}
		})
	}
}

func TestServer_preface(t *testing.T) {
	p := rawToServer(t, nil)
	p.buf.WriteString("GET / HTTP/1.1\r\n\r\n")
	p.want("SETTINGS; WINDOW_UPDATE 0 983041; GOAWAY 0 PROTOCOL_ERROR; CLOSE")
	p = rawToServer(t, nil)
	p.buf.WriteString(preface)
	_ = p.WritePing(false, [8]byte{})
	p.want("SETTINGS; WINDOW_UPDATE 0 983041; GOAWAY 0 PROTOCOL_ERROR; CLOSE")
	p = rawToServer(t, nil)
	for _, c := range []byte(preface) { // byte by byte
		p.tr.Feed([]byte{c})
	}
	_ = p.WriteSettings()
	p.want("SETTINGS; WINDOW_UPDATE 0 983041; SETTINGS ack")
}

// Every frame type, known or not, on every kind of stream: no panic, and the
// answer is one of the three that there are.
func TestServer_allFrameTypes(t *testing.T) {
	for typ := range 256 {
		for _, id := range []uint32{0, 1, 3} {
			for _, size := range []int{0, 4, 5, 8, 100} {
				p := toServer(t, nil)
				p.post(1)
				_ = p.WriteRawFrame(xnet.FrameType(typ), 0, id, make([]byte, size))
				got := p.out()
				if typ > frameContinuation && got != "" {
					t.Errorf("type %d on %d: %s", typ, id, got)
				}
			}
		}
	}
}

// What a valid request becomes.
func TestServer_requestsInOneForm(t *testing.T) {
	for _, c := range []struct {
		name, want string
		do         func(p *peer)
	}{
		{"GET", "head GET http://a/ end", func(p *peer) { p.get(1) }},
		{"scheme and host in lower case, dot off", "head GET https://example.com/x?y end", func(p *peer) {
			p.headers(1, true, ":method", "GET", ":scheme", "HTTPS", ":authority", "Example.com.", ":path", "/x?y")
		}},
		{"host instead of authority", "head GET http://b:80/ x=y end", func(p *peer) {
			p.headers(1, true, ":method", "GET", ":scheme", "http", ":path", "/", "host", "B:80", "x", "y")
		}},
		{"host like authority", "head GET http://a/ end", func(p *peer) { p.get(1, "host", "A") }},
		{"OPTIONS *", "head OPTIONS http://a* end", func(p *peer) {
			p.headers(1, true, ":method", "OPTIONS", ":scheme", "http", ":path", "*", ":authority", "a")
		}},
		{"cookie crumbs", "head GET http://a/ x=y cookie=a=1; b=2; c=3 z=z end", func(p *peer) {
			p.get(1, "x", "y", "cookie", "a=1", "cookie", "b=2", "z", "z", "cookie", "c=3")
		}},
		{"white space around values", "head GET http://a/ x=y z end", func(p *peer) { p.get(1, "x", " \ty z \t") }},
		{"te trailers", "head GET http://a/ te=trailers end", func(p *peer) { p.get(1, "te", "trailers") }},
		{"body and trailers", "head POST http://a/; data; trailers t=1 end", func(p *peer) {
			p.post(1)
			_ = p.WriteDataPadded(1, false, []byte("hello"), make([]byte, 20))
			p.headers(1, true, "t", "1")
		}},
		{"body in two frames", "head POST http://a/ content-length=10; data end", func(p *peer) {
			p.post(1, "content-length", "10")
			_ = p.WriteData(1, false, []byte("hello"))
			_ = p.WriteData(1, true, []byte("hello"))
		}},
		{"empty last frame", "head POST http://a/; data end", func(p *peer) {
			p.post(1)
			_ = p.WriteData(1, false, []byte("hello"))
			_ = p.WriteData(1, true, nil)
		}},
		{"reset", "head POST http://a/; reset 6", func(p *peer) { p.post(1); _ = p.WriteRSTStream(1, 8) }},
	} {
		p := toServer(t, nil)
		c.do(p)
		p.feed()
		if got := p.log(0); got != c.want {
			t.Errorf("%s: %s\nwant %s", c.name, got, c.want)
		}
	}
}

// The same input cut at every byte has the same outcome.
func TestServer_inputInPieces(t *testing.T) {
	build := func(p *peer) []byte {
		p.post(1, "x", "y")
		_ = p.WriteDataPadded(1, false, []byte("hello"), make([]byte, 5))
		_ = p.WriteData(1, false, []byte("world"))
		p.headers(1, true, "t", "1")
		_ = p.WritePing(false, [8]byte{1})
		b := bytes.Clone(p.buf.Bytes())
		p.buf.Reset()
		return b
	}
	p := toServer(t, nil)
	n := len(build(p))
	for cut := range n {
		p := toServer(t, nil)
		b := build(p)
		p.tr.Feed(b[:cut])
		for _, c := range b[cut:] {
			p.tr.Feed([]byte{c})
		}
		p.want("PING ack \x01\x00\x00\x00\x00\x00\x00\x00")
		x := p.acc.Last()
		if string(x.Body) != "helloworld" || !x.Ended || x.Log[len(x.Log)-1] != "trailers t=1 end" {
			t.Fatalf("cut at %d: %v %q", cut, x.Log, x.Body)
		}
	}
}
