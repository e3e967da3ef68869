package http2

import (
	"bytes"
	"testing"

	"lateen.dev/lateen/internal/proxy/message"
)

// wire is a message.Transport that costs nothing: output is collected.
type wire struct {
	conn message.Conn
	h    message.TransportHandler
	out  []byte
}

func (w *wire) SetHandler(h message.TransportHandler) { w.h = h }
func (w *wire) Write(p []byte)                        { w.out = append(w.out, p...) }
func (w *wire) Buffered() int                         { return 0 }
func (w *wire) OverHigh() bool                        { return false }
func (w *wire) WantDrained()                          {}
func (w *wire) PauseRead(bool)                        {}
func (w *wire) CloseWrite()                           {}
func (w *wire) Close()                                {}
func (w *wire) Abort()                                {}
func (w *wire) Conn() *message.Conn                   { return &w.conn }

// echo answers every request with a head and a body of 1 KiB, without
// allocating anything.
type echo struct {
	s    message.Sender
	head message.Head
	body []byte
}

func (e *echo) Accept(s message.Sender) message.Receiver { e.s = s; return e }
func (e *echo) OnConnClosed()                            {}
func (e *echo) OnHead(h *message.Head, end bool) {
	if end {
		e.answer()
	}
}
func (e *echo) OnInformational(*message.Head) {}
func (e *echo) OnData(p []byte, end bool) {
	if end {
		e.answer()
	}
}
func (e *echo) OnTrailers(*message.Head)  { e.answer() }
func (e *echo) OnReset(message.ResetCode) {}
func (e *echo) OnDrained()                {}
func (e *echo) answer() {
	e.s.SendHead(&e.head, false)
	e.s.SendData(e.body, true)
}

// sink receives a response.
type sink struct{ ended int }

func (k *sink) OnHead(_ *message.Head, end bool) {
	if end {
		k.ended++
	}
}
func (k *sink) OnInformational(*message.Head) {}
func (k *sink) OnData(_ []byte, end bool) {
	if end {
		k.ended++
	}
}
func (k *sink) OnTrailers(*message.Head)  { k.ended++ }
func (k *sink) OnReset(message.ResetCode) {}
func (k *sink) OnDrained()                {}

type noObserver struct{}

func (noObserver) OnCapacity(message.ClientConn)                         {}
func (noObserver) OnClosed(message.ClientConn, message.ResetCode, error) {}

// pairFixture is a client and a server codec joined without sockets.
type pairFixture struct {
	cw, sw   *wire
	cli      *Client
	srv      *Server
	later    []func()
	request  *message.Head
	trailers *message.Head
	sink     sink
	swap     []byte
}

func newPair() *pairFixture {
	f := &pairFixture{cw: &wire{}, sw: &wire{}}
	pool := NewPool(func(g func()) { f.later = append(f.later, g) })
	e := &echo{body: bytes.Repeat([]byte("x"), 1024)}
	e.head.SetStatus(200)
	e.head.AddNameString("content-type", "application/json")
	e.head.AddNameString("content-length", "1024")
	e.head.AddNameString("server", "lateen")
	e.head.AddNameString("date", "Mon, 01 Jan 2026 00:00:00 GMT")
	f.srv = NewServer(f.sw, e, &ServerOptions{Pool: pool})
	f.cli = NewClient(f.cw, noObserver{}, &ClientOptions{Pool: pool})
	f.request = &message.Head{}
	f.request.SetMethodString("GET")
	f.request.SetSchemeString("http")
	f.request.SetAuthorityString("order-service:8080")
	f.request.SetPathString("/order?id=7")
	for _, p := range [][2]string{
		{"user-agent", "curl/8"},
		{"accept", "*/*"},
		{"x-request-id", "7b0a4ecb-6f7a-4cf6-8f5e-0f5a1c7f6d11"},
		{"traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
		{"accept-encoding", "gzip"},
		{"x-own", "some value"},
	} {
		f.request.AddNameString(p[0], p[1])
	}
	f.trailers = &message.Head{}
	f.trailers.AddNameString("grpc-status", "0")
	f.pump()
	return f
}

// pump moves bytes until both sides are quiet, then ends the round.
func (f *pairFixture) pump() {
	for len(f.cw.out) > 0 || len(f.sw.out) > 0 {
		f.move(f.cw, f.sw)
		f.move(f.sw, f.cw)
	}
	for _, g := range f.later {
		g()
	}
	f.later = f.later[:0]
}

func (f *pairFixture) move(from, to *wire) {
	p := from.out
	from.out = f.swap[:0]
	if n := to.h.OnBytes(p); n != len(p) {
		panic("input was left over")
	}
	f.swap = p
}

func (f *pairFixture) get() {
	s := f.cli.Open(&f.sink)
	s.SendHead(f.request, true)
	f.pump()
}

func (f *pairFixture) post() {
	s := f.cli.Open(&f.sink)
	s.SendHead(f.request, false)
	s.SendData(f.swap[:5], false)
	s.SendTrailers(f.trailers)
	f.pump()
}

func TestExchange_steadyStateAllocatesNothing(t *testing.T) {
	f := newPair()
	for _, c := range []struct {
		name     string
		exchange func()
	}{
		{"GET", f.get},
		{"POST with trailers", f.post},
	} {
		for range 100 {
			c.exchange()
		}
		before := f.sink.ended
		if n := testing.AllocsPerRun(2000, c.exchange); n != 0 {
			t.Errorf("%s: %v allocations per exchange", c.name, n)
		}
		if f.sink.ended-before != 2001 {
			t.Errorf("%s: %d exchanges ended", c.name, f.sink.ended-before)
		}
	}
}

func BenchmarkExchange(b *testing.B) {
	f := newPair()
	for b.Loop() {
		f.get()
	}
}

func BenchmarkSendResponse(b *testing.B) {
	f := newPair()
	e := f.srv.a.(*echo)
	st := &stream{c: &f.srv.conn}
	b.ReportAllocs()
	for b.Loop() {
		f.sw.out = f.sw.out[:0]
		st.id = 1
		f.srv.writeHead(st, &e.head, 200, false, fieldsAll)
	}
}
