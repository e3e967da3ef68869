package http1

import (
	"bytes"
	"testing"

	"lateen.dev/lateen/internal/proxy/message"
)

// wire is a message.Transport that costs nothing: output is thrown away.
type wire struct {
	conn message.Conn
	h    message.TransportHandler
	out  []byte
}

func (w *wire) SetHandler(h message.TransportHandler) { w.h = h }
func (w *wire) Write(p []byte) {
	w.out = append(w.out, p...)
}
func (w *wire) Buffered() int       { return 0 }
func (w *wire) OverHigh() bool      { return false }
func (w *wire) WantDrained()        {}
func (w *wire) PauseRead(bool)      {}
func (w *wire) CloseWrite()         {}
func (w *wire) Close()              {}
func (w *wire) Abort()              {}
func (w *wire) Conn() *message.Conn { return &w.conn }

// bridge joins a server exchange with a client exchange, as the request path
// does but without deciding anything. One exchange at a time.
type bridge struct {
	up       *Client
	down, cs message.Sender
	req      message.Receiver
	resp     message.Receiver
}

type reqSide struct{ b *bridge }

func (b *bridge) Accept(s message.Sender) message.Receiver {
	b.down = s
	b.cs = b.up.Open(b.resp)
	return b.req
}
func (b *bridge) OnConnClosed() {}

func (r reqSide) OnHead(h *message.Head, end bool) { r.b.cs.SendHead(h, end) }
func (r reqSide) OnInformational(h *message.Head)  {}
func (r reqSide) OnData(p []byte, end bool)        { r.b.cs.SendData(p, end) }
func (r reqSide) OnTrailers(h *message.Head)       { r.b.cs.SendTrailers(h) }
func (r reqSide) OnReset(code message.ResetCode)   { r.b.cs.Reset(code) }
func (r reqSide) OnDrained()                       {}

type respSide struct{ b *bridge }

func (r respSide) OnHead(h *message.Head, end bool) { r.b.down.SendHead(h, end) }
func (r respSide) OnInformational(h *message.Head)  { r.b.down.SendInformational(h) }
func (r respSide) OnData(p []byte, end bool)        { r.b.down.SendData(p, end) }
func (r respSide) OnTrailers(h *message.Head)       { r.b.down.SendTrailers(h) }
func (r respSide) OnReset(code message.ResetCode)   { r.b.down.Reset(code) }
func (r respSide) OnDrained()                       {}

type noObserver struct{}

func (noObserver) OnCapacity(message.ClientConn)                         {}
func (noObserver) OnClosed(message.ClientConn, message.ResetCode, error) {}

// proxyFixture is a whole HTTP/1.1 proxy without sockets and without decisions.
type proxyFixture struct {
	down, up *wire
	later    []func()
}

func newProxyFixture() *proxyFixture {
	f := &proxyFixture{down: &wire{}, up: &wire{}}
	pool := NewPool(func(g func()) { f.later = append(f.later, g) })
	b := &bridge{}
	b.req, b.resp = reqSide{b}, respSide{b}
	b.up = NewClient(f.up, noObserver{}, &ClientOptions{Pool: pool})
	NewServer(f.down, b, &ServerOptions{Pool: pool})
	return f
}

// exchange plays one request and one response through the proxy and ends the round.
func (f *proxyFixture) exchange(request, response []byte) {
	f.down.out, f.up.out = f.down.out[:0], f.up.out[:0]
	f.down.h.OnBytes(request)
	f.up.h.OnBytes(response)
	for _, g := range f.later {
		g()
	}
	f.later = f.later[:0]
}

var (
	steadyRequest = []byte("GET /order?id=7 HTTP/1.1\r\nHost: order-service:8080\r\nUser-Agent: curl/8\r\nAccept: */*\r\n" +
		"X-Request-Id: 7b0a4ecb-6f7a-4cf6-8f5e-0f5a1c7f6d11\r\nTraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n" +
		"Connection: keep-alive\r\nAccept-Encoding: gzip\r\nX-Own: some value\r\n\r\n")
	steadyResponse  = append([]byte("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1024\r\nDate: Mon, 01 Jan 2026 00:00:00 GMT\r\n\r\n"), bytes.Repeat([]byte("x"), 1024)...)
	steadyPost      = []byte("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
	chunkedResponse = []byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
)

func TestExchange_steadyStateAllocatesNothing(t *testing.T) {
	f := newProxyFixture()
	for _, c := range []struct {
		name              string
		request, response []byte
	}{
		{"GET with a length", steadyRequest, steadyResponse},
		{"chunked both ways", steadyPost, chunkedResponse},
	} {
		f.exchange(c.request, c.response)
		if n := testing.AllocsPerRun(500, func() { f.exchange(c.request, c.response) }); n != 0 {
			t.Errorf("%s: %v allocations per exchange", c.name, n)
		}
		if len(f.up.out) == 0 || len(f.down.out) == 0 {
			t.Errorf("%s: nothing went through", c.name)
		}
	}
}

func BenchmarkExchange(b *testing.B) {
	f := newProxyFixture()
	for b.Loop() {
		f.exchange(steadyRequest, steadyResponse)
	}
}

func BenchmarkParseRequest(b *testing.B) {
	var lim Limits
	lim.setDefaults()
	var h message.Head
	var m meta
	for b.Loop() {
		end, _, _ := headEnd(steadyRequest, 0)
		if err := parseRequest(&h, steadyRequest[:end], &lim, &m, false); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWellFormed(b *testing.B) {
	n := bytes.Count(steadyRequest, []byte{'\n'})
	for b.Loop() {
		if !wellFormed(steadyRequest, n) {
			b.Fatal("malformed")
		}
	}
}
