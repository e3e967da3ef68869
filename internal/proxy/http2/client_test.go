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

// open starts a GET and returns the receiver of its response.
func (p *peer) open(method string, end bool) (*messagetest.Receiver, message.Sender) {
	r := &messagetest.Receiver{}
	s := p.cli.Open(r)
	s.SendHead(messagetest.Request(method, "a", "/"), end)
	return r, s
}

func logOf(r *messagetest.Receiver) string { return strings.Join(r.Log, "; ") }

const getLine = ":method=GET :scheme=http :authority=a :path=/"

func TestClient_requests(t *testing.T) {
	for _, c := range []struct {
		name, want string
		do         func(s message.Sender)
	}{
		{"GET", "HEADERS 1 " + getLine + " x=y end", func(s message.Sender) {
			s.SendHead(messagetest.Request("GET", "a", "/", "x", "y", "connection", "x", "te", "trailers, deflate"), true)
		}},
		{"te", "HEADERS 1 " + getLine + " te=trailers end", func(s message.Sender) {
			s.SendHead(messagetest.Request("GET", "a", "/", "te", "trailers", "host", "b"), true)
		}},
		{"body", "HEADERS 1 :method=POST :scheme=http :authority=a :path=/ content-length=5; DATA 1 5 end", func(s message.Sender) {
			s.SendHead(messagetest.Request("POST", "a", "/", "content-length", "5"), false)
			s.SendData([]byte("hello"), true)
		}},
		{"trailers", "HEADERS 1 :method=POST :scheme=http :authority=a :path=/; DATA 1 5; HEADERS 1 t=1 end", func(s message.Sender) {
			s.SendHead(messagetest.Request("POST", "a", "/"), false)
			s.SendData([]byte("hello"), false)
			s.SendTrailers(messagetest.Trailers("t", "1"))
		}},
		{"CONNECT", "HEADERS 1 :method=CONNECT :authority=a:1; DATA 1 5", func(s message.Sender) {
			s.SendHead(messagetest.Request("CONNECT", "a:1", ""), false)
			s.SendData([]byte("hello"), false)
		}},
		{"cancelled", "HEADERS 1 :method=POST :scheme=http :authority=a :path=/; RST_STREAM 1 CANCEL", func(s message.Sender) {
			s.SendHead(messagetest.Request("POST", "a", "/"), false)
			s.Reset(message.ResetCancel)
			s.SendData([]byte("hello"), true)
		}},
		{"cancelled before the head", "", func(s message.Sender) { s.Reset(message.ResetCancel) }},
		{"short body", "HEADERS 1 :method=POST :scheme=http :authority=a :path=/ content-length=9; RST_STREAM 1 CANCEL", func(s message.Sender) {
			s.SendHead(messagetest.Request("POST", "a", "/", "content-length", "9"), false)
			s.SendData([]byte("hello"), true)
		}},
		{"declared body, none", "", func(s message.Sender) {
			s.SendHead(messagetest.Request("POST", "a", "/", "content-length", "9"), true)
		}},
		{"bad value", "", func(s message.Sender) { s.SendHead(messagetest.Request("GET", "a", "/", "x", "a\r\nb"), true) }},
		{"bad path", "", func(s message.Sender) { s.SendHead(messagetest.Request("GET", "a", "/ b"), true) }},
		{"upgrade that the server does not know", "", func(s message.Sender) {
			s.SendHead(messagetest.Request("GET", "a", "/", "upgrade", "websocket"), false)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := toClient(t, nil)
			r := &messagetest.Receiver{}
			c.do(p.cli.Open(r))
			p.want(c.want)
			gone := c.want == "" || strings.Contains(c.want, "RST_STREAM")
			if gone != (p.cli.Active() == 0) || gone && !strings.Contains(c.name, "cancelled") != r.WasReset {
				t.Errorf("active %d, %v", p.cli.Active(), r.Log)
			}
			if p.cli.Used() != 1 {
				t.Errorf("used %d", p.cli.Used())
			}
			// The next one is as if nothing had been wrong.
			next := &messagetest.Receiver{}
			p.cli.Open(next).SendHead(messagetest.Request("GET", "a", "/", "x", "y"), true)
			id := uint32(1)
			if c.want != "" {
				id = 3
			}
			p.want(fmt.Sprintf("HEADERS %d %s x=y end", id, getLine))
		})
	}
}

func TestClient_responses(t *testing.T) {
	for _, c := range []struct {
		name, method, want, sent string
		do                       func(p *peer)
	}{
		{"head only", "GET", "head 204 end", "", func(p *peer) { p.headers(1, true, ":status", "204") }},
		{"body", "GET", "head 200 content-length=5; data end", "", func(p *peer) {
			p.headers(1, false, ":status", "200", "content-length", "5")
			_ = p.WriteData(1, true, []byte("hello"))
		}},
		{"trailers", "GET", "head 200; data; trailers grpc-status=0 end", "", func(p *peer) {
			p.headers(1, false, ":status", "200")
			_ = p.WriteData(1, false, []byte("hello"))
			p.headers(1, true, "grpc-status", "0")
		}},
		{"interim", "GET", "info 100; info 103 link=x; head 200 end", "", func(p *peer) {
			p.headers(1, false, ":status", "100")
			p.headers(1, false, ":status", "103", "link", "x")
			p.headers(1, true, ":status", "200")
		}},
		{"HEAD", "HEAD", "head 200 content-length=5 end", "", func(p *peer) { p.headers(1, true, ":status", "200", "content-length", "5") }},
		{"304", "GET", "head 304 content-length=5 end", "", func(p *peer) { p.headers(1, true, ":status", "304", "content-length", "5") }},
		{"set-cookie stays apart", "GET", "head 200 set-cookie=a set-cookie=b end", "", func(p *peer) {
			p.headers(1, true, ":status", "200", "set-cookie", "a", "set-cookie", "b")
		}},
		{"reset", "GET", "reset 6", "", func(p *peer) { _ = p.WriteRSTStream(1, 2) }},
		{"refused", "GET", "reset 7", "", func(p *peer) { _ = p.WriteRSTStream(1, 7) }},
		{"101", "GET", "reset 8", "RST_STREAM 1 PROTOCOL_ERROR", func(p *peer) { p.headers(1, false, ":status", "101") }},
		{"no status", "GET", "reset 8", "RST_STREAM 1 PROTOCOL_ERROR", func(p *peer) { p.headers(1, true, "x", "y") }},
		{"bad status", "GET", "reset 8", "RST_STREAM 1 PROTOCOL_ERROR", func(p *peer) { p.headers(1, true, ":status", "2000") }},
		{"request pseudo field", "GET", "reset 8", "RST_STREAM 1 PROTOCOL_ERROR", func(p *peer) { p.headers(1, true, ":status", "200", ":path", "/") }},
		{"connection field", "GET", "reset 8", "RST_STREAM 1 PROTOCOL_ERROR", func(p *peer) { p.headers(1, true, ":status", "200", "connection", "close") }},
		{"interim that ends", "GET", "reset 8", "RST_STREAM 1 PROTOCOL_ERROR", func(p *peer) { p.headers(1, true, ":status", "103") }},
		{"endless interim", "GET", strings.Repeat("info 103; ", 16) + "reset 8", "RST_STREAM 1 PROTOCOL_ERROR", func(p *peer) {
			for range 17 {
				p.headers(1, false, ":status", "103")
			}
		}},
		{"DATA first", "GET", "reset 8", "RST_STREAM 1 PROTOCOL_ERROR", func(p *peer) { _ = p.WriteData(1, true, []byte("x")) }},
		{"body on HEAD", "HEAD", "head 200 content-length=5; reset 8", "RST_STREAM 1 PROTOCOL_ERROR", func(p *peer) {
			p.headers(1, false, ":status", "200", "content-length", "5")
			_ = p.WriteData(1, true, []byte("hello"))
		}},
		{"long body", "GET", "head 200 content-length=3; reset 8", "RST_STREAM 1 PROTOCOL_ERROR", func(p *peer) {
			p.headers(1, false, ":status", "200", "content-length", "3")
			_ = p.WriteData(1, true, []byte("hello"))
		}},
		{"short body", "GET", "head 200 content-length=9; reset 8", "RST_STREAM 1 PROTOCOL_ERROR", func(p *peer) {
			p.headers(1, false, ":status", "200", "content-length", "9")
			_ = p.WriteData(1, true, []byte("hello"))
		}},
		{"declared body, none", "GET", "reset 8", "RST_STREAM 1 PROTOCOL_ERROR", func(p *peer) { p.headers(1, true, ":status", "200", "content-length", "9") }},
		{"pushed", "GET", "reset 8", "GOAWAY 0 PROTOCOL_ERROR; CLOSE", func(p *peer) {
			_ = p.WritePushPromise(xnet.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true})
		}},
		{"stream that was never opened", "GET", "reset 8", "GOAWAY 0 PROTOCOL_ERROR; CLOSE", func(p *peer) { p.headers(3, true, ":status", "200") }},
		{"even stream", "GET", "reset 8", "GOAWAY 0 PROTOCOL_ERROR; CLOSE", func(p *peer) { p.headers(2, true, ":status", "200") }},
		{"ENABLE_PUSH 1", "GET", "reset 8", "GOAWAY 0 PROTOCOL_ERROR; CLOSE", func(p *peer) { _ = p.WriteSettings(xnet.Setting{ID: 2, Val: 1}) }},
		{"FIN", "GET", "reset 5", "CLOSE", func(p *peer) { p.feed(); p.tr.FeedEOF() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := toClient(t, nil)
			r, _ := p.open(c.method, true)
			p.out()
			c.do(p)
			p.want(c.sent)
			if got := logOf(r); got != c.want {
				t.Errorf("%s\nwant %s", got, c.want)
			}
			if p.cli.Active() != 0 {
				t.Error("still active")
			}
			if closed := strings.Contains(c.sent, "CLOSE"); !closed && p.obs.Capacity < 2 || closed && !p.obs.Closed {
				t.Errorf("observer: %+v", p.obs)
			}
		})
	}
}

func TestClient_capacity(t *testing.T) {
	p := newPeer(t)
	p.obs = &messagetest.Observer{}
	p.cli = NewClient(p.tr, p.obs, &ClientOptions{MaxStreams: 300})
	if n := p.cli.Capacity(); n != assumedStreams {
		t.Errorf("capacity %d before SETTINGS", n)
	}
	p.out()
	for range assumedStreams {
		p.open("GET", true)
	}
	if p.cli.Capacity() != 0 || p.cli.Active() != assumedStreams {
		t.Errorf("capacity %d, active %d", p.cli.Capacity(), p.cli.Active())
	}
	_ = p.WriteSettings(xnet.Setting{ID: xnet.SettingMaxConcurrentStreams, Val: assumedStreams + 10})
	p.out()
	if p.cli.Capacity() != 10 || p.obs.Capacity != 1 {
		t.Errorf("capacity %d, announced %d", p.cli.Capacity(), p.obs.Capacity)
	}
	_ = p.WriteSettings(xnet.Setting{ID: xnet.SettingMaxConcurrentStreams, Val: 0})
	p.out()
	if p.cli.Capacity() != 0 {
		t.Errorf("capacity %d", p.cli.Capacity())
	}
	_ = p.WriteSettings(xnet.Setting{ID: xnet.SettingMaxConcurrentStreams, Val: 1000})
	p.headers(1, true, ":status", "200")
	p.out()
	if p.cli.Capacity() != 300-assumedStreams+1 || p.obs.Capacity != 3 {
		t.Errorf("capacity %d, announced %d", p.cli.Capacity(), p.obs.Capacity)
	}
}

func TestClient_goAway(t *testing.T) {
	p := toClient(t, nil)
	one, _ := p.open("GET", true)
	three, _ := p.open("GET", true)
	late := &messagetest.Receiver{}
	lateSender := p.cli.Open(late)
	p.out()
	_ = p.WriteGoAway(1<<31-1, 0, nil) // the first step of a graceful end
	_ = p.WriteGoAway(1, 0, nil)
	p.want("")
	if one.WasReset || !three.WasReset || three.Code != message.ResetRefused || p.cli.Capacity() != 0 {
		t.Errorf("%v %v, capacity %d", one.Log, three.Log, p.cli.Capacity())
	}
	lateSender.SendHead(messagetest.Request("GET", "a", "/"), true)
	if !late.WasReset || late.Code != message.ResetRefused {
		t.Errorf("%v", late.Log)
	}
	p.headers(1, true, ":status", "200")
	p.want("GOAWAY 0 NO_ERROR; CLOSE")
	if logOf(one) != "head 200 end" || !p.obs.Closed || p.obs.Code != message.ResetNone {
		t.Errorf("%v, %+v", one.Log, p.obs)
	}
}

func TestClient_identifiersRunOut(t *testing.T) {
	p := toClient(t, nil)
	p.cli.nextID = maxStreamID - 2
	if p.cli.Capacity() != 2 {
		t.Fatalf("capacity %d", p.cli.Capacity())
	}
	one, _ := p.open("GET", true)
	two, _ := p.open("GET", true)
	if p.cli.Capacity() != 0 {
		t.Fatalf("capacity %d", p.cli.Capacity())
	}
	p.out()
	p.headers(maxStreamID-2, true, ":status", "200")
	p.want("")
	p.headers(maxStreamID, true, ":status", "200")
	p.want("GOAWAY 0 NO_ERROR; CLOSE")
	if logOf(one) != "head 200 end" || logOf(two) != "head 200 end" {
		t.Errorf("%v %v", one.Log, two.Log)
	}
}

func TestClient_close(t *testing.T) {
	p := toClient(t, nil)
	r, _ := p.open("GET", true)
	p.out()
	p.cli.Close(true)
	p.want("")
	p.headers(1, true, ":status", "200")
	p.want("GOAWAY 0 NO_ERROR; CLOSE")
	if logOf(r) != "head 200 end" {
		t.Error(r.Log)
	}
	p = toClient(t, nil)
	r, _ = p.open("GET", true)
	p.out()
	p.cli.Close(false)
	p.want("GOAWAY 0 NO_ERROR; CLOSE")
	if logOf(r) != "reset 1" {
		t.Error(r.Log)
	}
	p = toClient(t, nil)
	p.cli.Close(true)
	p.want("GOAWAY 0 NO_ERROR; CLOSE")
}

func TestClient_windowAndCredit(t *testing.T) {
	p := toClient(t, nil, xnet.Setting{ID: xnet.SettingInitialWindowSize, Val: 10})
	r, s := p.open("POST", false)
	s.SendData(make([]byte, 100<<10), true)
	p.want("HEADERS 1 :method=POST :scheme=http :authority=a :path=/; DATA 1 10")
	if !s.OverHigh() {
		t.Error("not over high")
	}
	p.headers(1, false, ":status", "200")
	_ = p.WriteData(1, false, make([]byte, 16<<10))
	p.want("")
	s.Pause(true)
	for range 10 {
		_ = p.WriteData(1, false, make([]byte, 16<<10))
	}
	p.want("")
	s.Pause(false)
	p.want("WINDOW_UPDATE 1 180224")
	_ = p.WriteData(1, true, nil)
	_ = p.WriteWindowUpdate(0, 1<<20)
	_ = p.WriteWindowUpdate(1, 1<<20)
	got := p.out() + p.out() + p.out()
	if !strings.HasSuffix(got, "end") || p.cli.Active() != 0 {
		t.Errorf("%s, active %d", got, p.cli.Active())
	}
	if logOf(r) != "head 200; data end" {
		t.Error(r.Log)
	}
}

// A complete response before the end of the request: the request path resets.
func TestClient_earlyResponse(t *testing.T) {
	p := toClient(t, nil)
	r, s := p.open("POST", false)
	r.EndHook = func() { s.Reset(message.ResetCancel) }
	p.out()
	p.headers(1, false, ":status", "413")
	_ = p.WriteData(1, true, []byte("no"))
	_ = p.WriteRSTStream(1, 0)
	p.want("RST_STREAM 1 CANCEL")
	if logOf(r) != "head 413; data end" || p.cli.Active() != 0 {
		t.Errorf("%v", r.Log)
	}
}

func TestClient_extendedConnect(t *testing.T) {
	p := toClient(t, nil, xnet.Setting{ID: xnet.SettingEnableConnectProtocol, Val: 1})
	r := &messagetest.Receiver{}
	s := p.cli.Open(r)
	s.SendHead(messagetest.Request("GET", "a", "/chat", "upgrade", "websocket", "connection", "upgrade", "x", "y"), false)
	p.want("HEADERS 1 :method=CONNECT :scheme=http :authority=a :path=/chat :protocol=websocket x=y")
	p.headers(1, false, ":status", "200")
	_ = p.WriteData(1, false, []byte("hi"))
	p.feed()
	s.SendData([]byte("hello"), true)
	p.want("DATA 1 5 end")
	_ = p.WriteData(1, true, nil)
	p.feed()
	if logOf(r) != "head 101 upgrade=websocket; data end" {
		t.Error(r.Log)
	}
}

// An upgrade on a connection whose server has not spoken yet waits for it.
func TestClient_extendedConnectBeforeSettings(t *testing.T) {
	for _, known := range []uint32{0, 1} {
		p := newPeer(t)
		p.obs = &messagetest.Observer{}
		p.cli = NewClient(p.tr, p.obs, &ClientOptions{})
		r := &messagetest.Receiver{}
		s := p.cli.Open(r)
		s.SendHead(messagetest.Request("GET", "a", "/", "upgrade", "websocket"), false)
		p.want("PREFACE; SETTINGS; WINDOW_UPDATE 0 983041")
		_ = p.WriteSettings(xnet.Setting{ID: xnet.SettingEnableConnectProtocol, Val: known})
		if known == 1 {
			p.want("SETTINGS ack; HEADERS 1 :method=CONNECT :scheme=http :authority=a :path=/ :protocol=websocket")
		} else if p.want("SETTINGS ack"); logOf(r) != "reset 8" {
			t.Error(r.Log)
		}
	}
}

func TestClient_keepAliveAndSettingsTimeout(t *testing.T) {
	p := toClient(t, &ClientOptions{KeepAlive: KeepAlive{Interval: 10 * time.Second, Timeout: 5 * time.Second}})
	r, _ := p.open("GET", true)
	p.out()
	p.clock.pass(15 * time.Second)
	p.want("PING lateen-k; GOAWAY 0 NO_ERROR; CLOSE")
	if logOf(r) != "reset 5" || p.obs.Code != message.ResetTermination {
		t.Errorf("%v %+v", r.Log, p.obs)
	}
}
