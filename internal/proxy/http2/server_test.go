package http2

import (
	"fmt"
	"strings"
	"testing"
	"time"

	xnet "golang.org/x/net/http2"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/message/messagetest"
)

func TestServer_responses(t *testing.T) {
	for _, c := range []struct {
		name, want string
		request    func(p *peer)
		answer     func(s message.Sender)
	}{
		{"head only", "HEADERS 1 :status=204 end", nil, func(s message.Sender) {
			s.SendHead(messagetest.Response(204), true)
		}},
		{"body", "HEADERS 1 :status=200 content-length=5; DATA 1 5 end", nil, func(s message.Sender) {
			s.SendHead(messagetest.Response(200, "content-length", "5"), false)
			s.SendData([]byte("hello"), true)
		}},
		{"body and end apart", "HEADERS 1 :status=200; DATA 1 5; DATA 1 0 end", nil, func(s message.Sender) {
			s.SendHead(messagetest.Response(200), false)
			s.SendData([]byte("hello"), false)
			s.SendData(nil, true)
		}},
		{"trailers", "HEADERS 1 :status=200; DATA 1 5; HEADERS 1 grpc-status=0 end", nil, func(s message.Sender) {
			s.SendHead(messagetest.Response(200), false)
			s.SendData([]byte("hello"), false)
			s.SendTrailers(messagetest.Trailers("grpc-status", "0"))
		}},
		{"empty trailers", "HEADERS 1 :status=200; DATA 1 0 end", nil, func(s message.Sender) {
			s.SendHead(messagetest.Response(200), false)
			s.SendTrailers(messagetest.Trailers())
		}},
		{"interim", "HEADERS 1 :status=103 link=x; HEADERS 1 :status=200 end", nil, func(s message.Sender) {
			s.SendInformational(messagetest.Response(103, "link", "x"))
			s.SendInformational(messagetest.Response(101))
			s.SendHead(messagetest.Response(200), true)
			s.SendInformational(messagetest.Response(103))
		}},
		{"hop-by-hop fields stay", "HEADERS 1 :status=200 x=y end", nil, func(s message.Sender) {
			s.SendHead(messagetest.Response(200, "connection", "close", "keep-alive", "1", "transfer-encoding", "chunked",
				"upgrade", "h2c", "proxy-connection", "x", "te", "gzip", "x", "y"), true)
		}},
		{
			"HEAD with a length", "HEADERS 1 :status=200 content-length=5; DATA 1 0 end",
			func(p *peer) {
				p.headers(1, true, ":method", "HEAD", ":scheme", "http", ":authority", "a", ":path", "/")
			},
			func(s message.Sender) {
				s.SendHead(messagetest.Response(200, "content-length", "5"), false)
				s.SendData([]byte("hello"), true)
			},
		},
		{"304 with a length", "HEADERS 1 :status=304 content-length=5 end", nil, func(s message.Sender) {
			s.SendHead(messagetest.Response(304, "content-length", "5"), true)
		}},
		{"204 with a length", "HEADERS 1 :status=204 end", nil, func(s message.Sender) {
			s.SendHead(messagetest.Response(204, "content-length", "0"), true)
		}},
		{"more than declared", "HEADERS 1 :status=200 content-length=3; RST_STREAM 1 INTERNAL_ERROR", nil, func(s message.Sender) {
			s.SendHead(messagetest.Response(200, "content-length", "3"), false)
			s.SendData([]byte("hello"), true)
		}},
		{"less than declared", "HEADERS 1 :status=200 content-length=9; DATA 1 5; RST_STREAM 1 INTERNAL_ERROR", nil, func(s message.Sender) {
			s.SendHead(messagetest.Response(200, "content-length", "9"), false)
			s.SendData([]byte("hello"), false)
			s.SendData(nil, true)
		}},
		{"line break in a value", "RST_STREAM 1 INTERNAL_ERROR", nil, func(s message.Sender) {
			s.SendHead(messagetest.Response(200, "x", "a\r\nb: c"), false)
			s.SendData([]byte("hello"), true)
		}},
		{"101 that nobody asked for", "RST_STREAM 1 INTERNAL_ERROR", nil, func(s message.Sender) {
			s.SendHead(messagetest.Response(101), false)
		}},
		{"reset", "HEADERS 1 :status=200; RST_STREAM 1 INTERNAL_ERROR", nil, func(s message.Sender) {
			s.SendHead(messagetest.Response(200), false)
			s.Reset(message.ResetCancel)
		}},
		{"refused", "RST_STREAM 1 REFUSED_STREAM", nil, func(s message.Sender) { s.Reset(message.ResetOverflow) }},
		{
			"early response", "HEADERS 1 :status=413 end; RST_STREAM 1 NO_ERROR",
			func(p *peer) { p.post(1) },
			func(s message.Sender) { s.SendHead(messagetest.Response(413), true) },
		},
		{"calls after the end", "HEADERS 1 :status=200 end", nil, func(s message.Sender) {
			s.SendHead(messagetest.Response(200), true)
			s.SendHead(messagetest.Response(200), true)
			s.SendData([]byte("x"), true)
			s.SendTrailers(messagetest.Trailers("a", "b"))
			s.Reset(message.ResetCancel)
			s.Pause(true)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := toServer(t, nil)
			if c.request == nil {
				p.get(1)
			} else {
				c.request(p)
			}
			p.feed()
			c.answer(p.acc.Last().Sender)
			p.want(c.want)
			if x := p.acc.Last(); x.WasReset {
				t.Errorf("the request path was called back: %v", x.Log)
			}
			if !p.srv.Idle() {
				t.Error("the stream is still there")
			}
			p.get(3)
			p.feed()
			p.acc.Last().Sender.SendHead(messagetest.Response(200, "x", "y"), true)
			p.want("HEADERS 3 :status=200 x=y end")
		})
	}
}

// Frames that crossed our RST_STREAM break nothing.
func TestServer_lateFramesAfterEarlyResponse(t *testing.T) {
	p := toServer(t, nil)
	p.post(1)
	p.feed()
	p.acc.Last().Sender.SendHead(messagetest.Response(413), true)
	p.want("HEADERS 1 :status=413 end; RST_STREAM 1 NO_ERROR")
	_ = p.WriteData(1, false, make([]byte, 1000))
	_ = p.WriteWindowUpdate(1, 10)
	p.headers(1, true, "t", "1")
	p.want("")
	p.wantLog(0, "head POST http://a/")
}

func TestServer_longHeadUsesContinuation(t *testing.T) {
	p := toServer(t, nil)
	p.get(1)
	p.feed()
	h := messagetest.Response(200)
	for i := range 10 {
		h.AddNameString(fmt.Sprint("x-", i), strings.Repeat("v", 4000))
	}
	p.acc.Last().Sender.SendHead(h, true)
	got := p.out()
	if !strings.HasPrefix(got, "HEADERS++ 1 :status=200 x-0=vvv") || !strings.HasSuffix(got, " end") {
		t.Errorf("%.100s", got)
	}
}

func TestServer_flowControl(t *testing.T) {
	p := toServer(t, nil)
	_ = p.WriteSettings(xnet.Setting{ID: xnet.SettingInitialWindowSize, Val: 3})
	p.get(1)
	p.get(3)
	p.want("SETTINGS ack")
	one, three := p.acc.Exchanges[0], p.acc.Exchanges[1]
	one.Sender.SendHead(messagetest.Response(200), false)
	one.Sender.SendData([]byte("hello, world"), false)
	one.Sender.SendTrailers(messagetest.Trailers("t", "1"))
	three.Sender.SendHead(messagetest.Response(200), false)
	three.Sender.SendData([]byte("abc"), true)
	p.want("HEADERS 1 :status=200; DATA 1 3; HEADERS 3 :status=200; DATA 3 3 end")
	_ = p.WriteSettings(xnet.Setting{ID: xnet.SettingInitialWindowSize, Val: 1}) // window of 1 is -2 now
	_ = p.WriteWindowUpdate(1, 2)
	p.want("SETTINGS ack")
	_ = p.WriteWindowUpdate(1, 4)
	p.want("DATA 1 4")
	_ = p.WriteSettings(xnet.Setting{ID: xnet.SettingInitialWindowSize, Val: 100})
	p.want("SETTINGS ack; DATA 1 5; HEADERS 1 t=1 end")
}

func TestServer_connectionWindowAndTurns(t *testing.T) {
	p := toServer(t, nil)
	_ = p.WriteSettings(xnet.Setting{ID: xnet.SettingInitialWindowSize, Val: 1 << 20})
	for _, id := range []uint32{1, 3, 5} {
		p.get(id)
	}
	p.want("SETTINGS ack")
	body := make([]byte, 50<<10)
	for _, x := range p.acc.Exchanges {
		x.Sender.SendHead(messagetest.Response(200), false)
		x.Sender.SendData(body, true)
	}
	// 65535 bytes fit: the first has the connection to itself until it is used up.
	p.want("HEADERS 1 :status=200; DATA 1 16384; DATA 1 16384; DATA 1 16384; DATA 1 2048 end; " +
		"HEADERS 3 :status=200; DATA 3 14335; HEADERS 5 :status=200")
	_ = p.WriteWindowUpdate(0, 1<<20)
	p.want("DATA 3 16384; DATA 5 16384; DATA 3 16384; DATA 5 16384")
	p.want("DATA 3 4097 end; DATA 5 16384; DATA 5 2048 end") // when the output has left
}

func TestServer_producerIsPausedAndResumed(t *testing.T) {
	p := toServer(t, nil)
	p.get(1)
	p.want("")
	x := p.acc.Last()
	x.Sender.SendHead(messagetest.Response(200), false)
	x.Sender.SendData(make([]byte, 200<<10), false)
	p.out()
	if !x.Sender.OverHigh() || x.Sender.Buffered() != 200<<10-65535 || x.Drained != 0 {
		t.Fatalf("over %v, buffered %d, drained %d", x.Sender.OverHigh(), x.Sender.Buffered(), x.Drained)
	}
	_ = p.WriteWindowUpdate(0, 1<<20)
	_ = p.WriteWindowUpdate(1, 1<<20)
	for range 10 {
		p.out()
	}
	if x.Sender.OverHigh() || x.Sender.Buffered() != 0 || x.Drained != 1 {
		t.Fatalf("over %v, buffered %d, drained %d", x.Sender.OverHigh(), x.Sender.Buffered(), x.Drained)
	}
}

func TestServer_credit(t *testing.T) {
	p := toServer(t, nil)
	p.post(1)
	p.post(3)
	data := make([]byte, 16<<10)
	for range 8 { // 128 KiB: half the stream's window
		_ = p.WriteData(1, false, data)
	}
	p.want("WINDOW_UPDATE 1 131072")
	p.acc.Exchanges[0].Sender.Pause(true)
	for range 16 {
		_ = p.WriteData(1, false, data)
	}
	p.want("") // behind: no credit for the stream; for the connection at its half
	for range 8 {
		_ = p.WriteData(3, false, data)
	}
	p.want("WINDOW_UPDATE 0 524288; WINDOW_UPDATE 3 131072")
	if len(p.acc.Exchanges[0].Body) != 24*16<<10 {
		t.Error("what was under way must arrive")
	}
	p.acc.Exchanges[0].Sender.Pause(false)
	p.want("WINDOW_UPDATE 1 262144")
	p.acc.Exchanges[0].Sender.Pause(true)
	for range 17 {
		_ = p.WriteData(1, false, data)
	}
	p.want("RST_STREAM 1 FLOW_CONTROL_ERROR")
}

func TestServer_connectionWindowExceeded(t *testing.T) {
	p := toServer(t, &ServerOptions{MaxStreams: 10})
	// Padding and DATA on streams that are gone count too, and are paid back.
	p.post(1)
	_ = p.WriteRSTStream(1, 8)
	for range 64 {
		_ = p.WriteData(1, false, make([]byte, 16<<10))
	}
	got := p.out()
	if strings.Count(got, "WINDOW_UPDATE 0 524288") != 2 || strings.Count(got, "RST_STREAM 1 STREAM_CLOSED") != 1 {
		t.Errorf("%s", got)
	}
}

func TestServer_drain(t *testing.T) {
	p := toServer(t, nil)
	p.get(1)
	p.want("")
	p.srv.Drain()
	p.srv.Drain()
	p.want("GOAWAY 2147483647 NO_ERROR; PING lateen-d")
	p.get(3) // was on its way
	_ = p.WritePing(true, [8]byte([]byte(pingDrain)))
	p.want("GOAWAY 3 NO_ERROR")
	p.get(5)
	p.want("RST_STREAM 5 REFUSED_STREAM")
	for _, x := range p.acc.Exchanges {
		x.Sender.SendHead(messagetest.Response(200), true)
	}
	p.want("HEADERS 1 :status=200 end; HEADERS 3 :status=200 end; CLOSE")
	if len(p.acc.Exchanges) != 2 || !p.acc.Closed {
		t.Errorf("%d exchanges, closed %v", len(p.acc.Exchanges), p.acc.Closed)
	}
}

func TestServer_drainWithoutAnswer(t *testing.T) {
	p := toServer(t, nil)
	p.srv.Drain()
	p.want("GOAWAY 2147483647 NO_ERROR; PING lateen-d")
	p.clock.pass(drainTimeout)
	p.want("GOAWAY 0 NO_ERROR; CLOSE")
}

func TestServer_maxRequests(t *testing.T) {
	p := toServer(t, &ServerOptions{MaxRequests: 2})
	p.get(1)
	p.want("")
	p.get(3)
	p.want("GOAWAY 2147483647 NO_ERROR; PING lateen-d")
}

func TestServer_timeouts(t *testing.T) {
	o := func() *ServerOptions {
		return &ServerOptions{IdleTimeout: time.Minute, HeadTimeout: 5 * time.Second, StallTimeout: 30 * time.Second}
	}
	p := rawToServer(t, o())
	p.out()
	p.clock.pass(5 * time.Second)
	p.want("GOAWAY 0 PROTOCOL_ERROR; CLOSE") // no preface

	p = rawToServer(t, o())
	p.buf.WriteString(preface)
	_ = p.WriteSettings()
	p.out()
	p.clock.pass(settingsTimeout)
	p.want("GOAWAY 0 SETTINGS_TIMEOUT; CLOSE")
	p.wantError("http2.settings_timeout")

	p = toServer(t, o())
	p.clock.pass(59 * time.Second)
	p.get(1)
	p.want("")
	p.clock.pass(10 * time.Minute) // not idle
	p.want("")
	p.acc.Last().Sender.SendHead(messagetest.Response(200), true)
	p.want("HEADERS 1 :status=200 end")
	p.clock.pass(59 * time.Second)
	p.want("")
	p.clock.pass(2 * time.Second)
	p.want("GOAWAY 1 NO_ERROR; CLOSE")

	p = toServer(t, o())
	p.buf.Write([]byte{0, 0, 20, frameHeaders, 4, 0, 0}) // half a frame header
	p.feed()
	p.clock.pass(5 * time.Second)
	p.want("GOAWAY 0 PROTOCOL_ERROR; CLOSE")

	p = toServer(t, o())
	_ = p.WriteHeaders(xnet.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(getFields...)})
	p.feed()
	p.clock.pass(5 * time.Second)
	p.want("GOAWAY 0 PROTOCOL_ERROR; CLOSE")
}

// A client that asks for much and opens no window does not keep it for ever.
func TestServer_stalledWindow(t *testing.T) {
	p := toServer(t, &ServerOptions{StallTimeout: 30 * time.Second})
	_ = p.WriteSettings(xnet.Setting{ID: xnet.SettingInitialWindowSize, Val: 0})
	p.get(1)
	p.get(3)
	p.out()
	for _, x := range p.acc.Exchanges {
		x.Sender.SendHead(messagetest.Response(200), false)
		x.Sender.SendData([]byte("hello"), true)
	}
	p.want("HEADERS 1 :status=200; HEADERS 3 :status=200")
	p.clock.pass(50 * time.Second)
	_ = p.WriteWindowUpdate(3, 2) // this one moves
	p.want("DATA 3 2")
	p.clock.pass(10 * time.Second)
	p.want("RST_STREAM 1 CANCEL")
	p.clock.pass(30 * time.Second)
	p.want("RST_STREAM 3 CANCEL")
	if n := p.srv.stats.TxFlushTimeout.Load(); n != 2 || !p.srv.Idle() {
		t.Errorf("%d counted, idle %v", n, p.srv.Idle())
	}
}

func TestServer_keepAlive(t *testing.T) {
	p := toServer(t, &ServerOptions{KeepAlive: KeepAlive{Interval: 10 * time.Second, Timeout: 5 * time.Second}})
	p.clock.pass(10 * time.Second)
	p.want("PING lateen-k")
	_ = p.WritePing(true, [8]byte([]byte(pingAlive)))
	p.clock.pass(4 * time.Second)
	p.want("")
	p.clock.pass(10 * time.Second)
	p.want("PING lateen-k")
	p.clock.pass(5 * time.Second)
	p.want("GOAWAY 0 NO_ERROR; CLOSE")
	p.wantError("http2.keepalive_timeout")
}

func TestServer_extendedConnect(t *testing.T) {
	open := func() *peer {
		p := toServer(t, &ServerOptions{AllowUpgrade: true})
		p.headers(1, false, ":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":authority", "a", ":path", "/chat", "sec-websocket-version", "13")
		_ = p.WriteData(1, false, []byte("early"))
		p.want("")
		p.wantLog(0, "head GET https://a/chat sec-websocket-version=13 upgrade=websocket")
		return p
	}
	p := open()
	s := p.acc.Last().Sender
	s.SendHead(messagetest.Response(101, "upgrade", "websocket", "connection", "upgrade", "sec-websocket-accept", "x"), false)
	s.SendData([]byte("hi"), false)
	p.want("HEADERS 1 :status=200 sec-websocket-accept=x; DATA 1 2")
	_ = p.WriteData(1, true, []byte("!"))
	p.feed()
	if x := p.acc.Last(); string(x.Body) != "early!" || !x.Ended {
		t.Errorf("%q %v", x.Body, x.Log)
	}
	s.SendData(nil, true)
	p.want("DATA 1 0 end")

	p = open() // refused: the early bytes go nowhere
	p.acc.Last().Sender.SendHead(messagetest.Response(403), true)
	p.want("HEADERS 1 :status=403 end; RST_STREAM 1 NO_ERROR")
	if len(p.acc.Last().Body) != 0 {
		t.Error("early bytes were delivered")
	}
}

func TestServer_connect(t *testing.T) {
	p := toServer(t, &ServerOptions{AllowConnect: true})
	p.headers(1, false, ":method", "CONNECT", ":authority", "A:443")
	p.want("")
	if p.wantLog(0, "head CONNECT ://a:443"); t.Failed() {
		return
	}
	s := p.acc.Last().Sender
	s.SendHead(messagetest.Response(200, "content-length", "0"), false)
	s.SendData([]byte("hi"), false)
	p.want("HEADERS 1 :status=200; DATA 1 2")
}

func TestServer_connectionEnds(t *testing.T) {
	p := toServer(t, nil)
	p.get(1)
	p.post(3)
	p.feed()
	p.tr.FeedEOF()
	p.wantLog(0, "head GET http://a/ end; reset 5")
	p.wantLog(1, "head POST http://a/; reset 5")
	p = toServer(t, nil)
	p.get(1)
	p.feed()
	p.tr.FeedError(fmt.Errorf("reset by peer"))
	p.wantLog(0, "head GET http://a/ end; reset 5")
	if !p.acc.Closed {
		t.Error("the acceptor was not told")
	}
}

func TestServer_sensitiveFieldsStaySensitive(t *testing.T) {
	p := toServer(t, nil)
	b := p.block(getFields...)
	b = append(b, 0x10, 1, 'x', 1, 'y') // never indexed
	_ = p.WriteHeaders(xnet.HeadersFrameParam{StreamID: 1, BlockFragment: b, EndStream: true, EndHeaders: true})
	p.feed()
	h := &p.acc.Last().Head
	if _, name, _, _ := h.Field(0); string(name) != "x" || !h.Sensitive(0) {
		t.Errorf("%s", messagetest.HeadString(h))
	}
	for range 3 {
		p.srv.writeHead(&stream{c: &p.srv.conn, id: 1}, h, 200, false, fieldsAll)
		if out := p.tr.Take(); out[len(out)-5] != 0x10 {
			t.Errorf("%x", out)
		}
	}
}

// Answers that nobody reads stop the reading, not the memory.
func TestServer_clientThatDoesNotRead(t *testing.T) {
	p := toServer(t, &ServerOptions{MaxStreams: 100})
	p.acc.Prepare = func(r *messagetest.Receiver) {
		r.HeadHook = func(*message.Head, bool) {
			r.Sender.SendHead(messagetest.Response(200, "x", strings.Repeat(fmt.Sprint(len(p.acc.Exchanges)%10), 8000)), true)
		}
	}
	for i := range uint32(1000) {
		p.get(2*i + 1)
	}
	p.feed()
	if n := p.tr.Buffered(); n > 300<<10 || !p.tr.Paused() {
		t.Fatalf("%d bytes wait, paused %v", n, p.tr.Paused())
	}
	for len(p.acc.Exchanges) < 1000 {
		before := len(p.acc.Exchanges)
		p.out()
		if len(p.acc.Exchanges) == before {
			t.Fatalf("stuck at %d", before)
		}
	}
}
