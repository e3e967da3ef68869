package simulate

import (
	"strconv"

	"lateen.dev/lateen/internal/proxy/message"
)

// application makes the server side that asks the world's Application.
func (w *World) application(pod string) server {
	return func(conn *message.Conn, down message.Sender) message.Receiver {
		return &appExchange{world: w, pod: pod, down: down, http2: conn.Protocol == message.HTTP2}
	}
}

// appExchange collects one request and answers it.
type appExchange struct {
	world *World
	pod   string
	down  message.Sender
	req   Request
	http2 bool
	dead  bool
}

func (a *appExchange) OnInformational(*message.Head) {}
func (a *appExchange) OnDrained()                    {}
func (a *appExchange) OnReset(message.ResetCode)     { a.dead = true }

func (a *appExchange) OnHead(h *message.Head, end bool) {
	a.req = Request{
		Method: string(h.Method()), Scheme: string(h.Scheme()), Authority: string(h.Authority()),
		Path: string(h.Path()), Header: fieldsOf(h), HTTP2: a.http2,
	}
	if end {
		a.answer()
	}
}

func (a *appExchange) OnData(p []byte, end bool) {
	a.req.Body = append(a.req.Body, p...)
	if end {
		a.answer()
	}
}

func (a *appExchange) OnTrailers(*message.Head) { a.answer() }

func (a *appExchange) answer() {
	r := a.world.app.Serve(a.pod, a.req)
	if r.Delay <= 0 {
		a.reply(r)
		return
	}
	a.world.clock.NewTimer(func() { a.reply(r) }).Arm(r.Delay)
}

func (a *appExchange) reply(r Response) {
	if a.dead {
		return
	}
	if r.Reset {
		a.down.Reset(message.ResetTermination)
		return
	}
	var h message.Head
	h.SetStatus(r.Status)
	for _, f := range r.Header {
		h.AddNameString(f[0], f[1])
	}
	if len(r.Trailers) == 0 {
		h.AddString(message.ContentLength, strconv.Itoa(len(r.Body)))
	}
	a.down.SendHead(&h, len(r.Body) == 0 && len(r.Trailers) == 0)
	if len(r.Body) > 0 {
		a.down.SendData(r.Body, len(r.Trailers) == 0)
	}
	if len(r.Trailers) > 0 {
		var t message.Head
		for _, f := range r.Trailers {
			t.AddNameString(f[0], f[1])
		}
		a.down.SendTrailers(&t)
	}
}
