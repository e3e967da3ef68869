package messagetest

import (
	"fmt"
	"strings"

	"lateen.dev/lateen/internal/proxy/message"
)

// Receiver writes down the events of one exchange. Its hooks, when set, run
// after the event was noted.
type Receiver struct {
	// Sender is the other direction, when the exchange came from Acceptor.
	Sender message.Sender
	// Log has one line per event; runs of data are one line.
	Log []string
	// Body is all data so far.
	Body []byte
	// Head is a copy of the last head.
	Head message.Head

	Ended, WasReset bool
	Code            message.ResetCode
	Drained         int

	HeadHook func(h *message.Head, end bool)
	DataHook func(p []byte, end bool)
	EndHook  func()
}

var _ message.Receiver = (*Receiver)(nil)

// OnHead notes the head.
func (r *Receiver) OnHead(h *message.Head, end bool) {
	r.Head.CopyFrom(h)
	r.note("head", HeadString(h), end)
	if r.HeadHook != nil {
		r.HeadHook(h, end)
	}
	r.end(end)
}

// OnInformational notes a 1xx head.
func (r *Receiver) OnInformational(h *message.Head) { r.note("info", HeadString(h), false) }

// OnData collects the body.
func (r *Receiver) OnData(p []byte, end bool) {
	r.Body = append(r.Body, p...)
	if n := len(r.Log); n > 0 && r.Log[n-1] == "data" {
		r.Log = r.Log[:n-1]
	}
	r.note("data", "", end)
	if r.DataHook != nil {
		r.DataHook(p, end)
	}
	r.end(end)
}

// OnTrailers notes trailer fields.
func (r *Receiver) OnTrailers(h *message.Head) {
	r.note("trailers", HeadString(h), true)
	r.end(true)
}

// OnReset notes the reset.
func (r *Receiver) OnReset(code message.ResetCode) {
	if r.WasReset {
		r.note("SECOND RESET", "", false)
	}
	r.WasReset, r.Code = true, code
	r.note("reset", fmt.Sprint(uint8(code)), false)
}

// OnDrained counts.
func (r *Receiver) OnDrained() { r.Drained++ }

func (r *Receiver) note(kind, what string, end bool) {
	if r.Ended && kind != "reset" {
		kind = "AFTER END " + kind
	}
	s := kind
	if what != "" {
		s += " " + what
	}
	if end {
		s += " end"
	}
	r.Log = append(r.Log, s)
}

func (r *Receiver) end(end bool) {
	if end && !r.Ended {
		r.Ended = true
		if r.EndHook != nil {
			r.EndHook()
		}
	}
}

// HeadString writes a head on one line: "GET http://host/path a=1 b=2" or
// "200 a=1".
func HeadString(h *message.Head) string {
	var b strings.Builder
	switch {
	case h.Status() != 0:
		fmt.Fprintf(&b, "%d", h.Status())
	case len(h.Method()) > 0:
		fmt.Fprintf(&b, "%s %s://%s%s", h.Method(), h.Scheme(), h.Authority(), h.Path())
	}
	for i := range h.Len() {
		if _, name, value, ok := h.Field(i); ok {
			if b.Len() > 0 {
				b.WriteByte(' ')
			}
			fmt.Fprintf(&b, "%s=%s", name, value)
		}
	}
	return b.String()
}

// Acceptor gives every exchange a Receiver.
type Acceptor struct {
	// Exchanges are in order of arrival.
	Exchanges []*Receiver
	// Closed says that OnConnClosed was called.
	Closed bool
	// Prepare, when set, sees each Receiver before its first event.
	Prepare func(r *Receiver)
}

// Accept notes a new exchange.
func (a *Acceptor) Accept(s message.Sender) message.Receiver {
	r := &Receiver{Sender: s}
	a.Exchanges = append(a.Exchanges, r)
	if a.Prepare != nil {
		a.Prepare(r)
	}
	return r
}

// OnConnClosed notes the end of the connection.
func (a *Acceptor) OnConnClosed() { a.Closed = true }

// Last is the newest exchange, nil if there is none.
func (a *Acceptor) Last() *Receiver {
	if len(a.Exchanges) == 0 {
		return nil
	}
	return a.Exchanges[len(a.Exchanges)-1]
}

// Observer notes what happens to a client connection.
type Observer struct {
	Capacity int // calls of OnCapacity
	Closed   bool
	Code     message.ResetCode
	Err      error
	// CapacityHook runs on each OnCapacity.
	CapacityHook func(c message.ClientConn)
}

// OnCapacity counts.
func (o *Observer) OnCapacity(c message.ClientConn) {
	o.Capacity++
	if o.CapacityHook != nil {
		o.CapacityHook(c)
	}
}

// OnClosed notes the end.
func (o *Observer) OnClosed(_ message.ClientConn, code message.ResetCode, err error) {
	o.Closed, o.Code, o.Err = true, code, err
}

// Request makes a request head; fields are name, value, name, value.
func Request(method, authority, path string, fields ...string) *message.Head {
	h := &message.Head{}
	h.SetMethodString(method)
	h.SetSchemeString("http")
	h.SetAuthorityString(authority)
	h.SetPathString(path)
	return with(h, fields)
}

// Response makes a response head.
func Response(status int, fields ...string) *message.Head {
	h := &message.Head{}
	h.SetStatus(status)
	return with(h, fields)
}

// Trailers makes a trailer section.
func Trailers(fields ...string) *message.Head { return with(&message.Head{}, fields) }

func with(h *message.Head, fields []string) *message.Head {
	for i := 0; i+1 < len(fields); i += 2 {
		h.AddNameString(fields[i], fields[i+1])
	}
	return h
}
