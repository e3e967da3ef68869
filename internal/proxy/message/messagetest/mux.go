package messagetest

import (
	"math/rand/v2"

	"lateen.dev/lateen/internal/proxy/message"
)

// MuxOptions shapes a Mux.
type MuxOptions struct {
	// MaxStreams is the peer's SETTINGS_MAX_CONCURRENT_STREAMS; 100 by default.
	MaxStreams int
	// Window is how many data bytes of one exchange may be under way before its
	// sender is over the high watermark; 64 KiB by default.
	Window int
	// Rand, when set, interleaves the exchanges at random; else round robin.
	Rand *rand.Rand
	// Client and Server describe the connection to either side.
	Client, Server message.Conn
}

// Mux is a whole connection in the shape of HTTP/2: a client side, which it is
// itself as message.ClientConn, and a server side, which calls an Acceptor.
// Events travel only in Step and Pump, in order within an exchange and
// interleaved between exchanges; each exchange has its own window, pause and
// reset. It has heads, trailers and GOAWAY, but no wire format.
type Mux struct {
	o       MuxOptions
	acc     message.Acceptor
	obs     message.ClientObserver
	streams []*stream
	next    int
	used    int
	goaway  bool
	closed  bool
}

var _ message.ClientConn = (*Mux)(nil)

type stream struct {
	m              *Mux
	client, server half
	accepted       bool
}

// half is one side of one exchange: it sends to peer, and queue holds what is
// under way to its own receiver.
type half struct {
	s      *stream
	peer   *half
	r      message.Receiver
	queue  []event
	flying int // data bytes in queue
	sent   bool
	got    bool // the end was delivered here
	dead   bool // reset
	paused bool
	high   bool // peer was over the high watermark
	conn   *message.Conn
}

type eventKind uint8

const (
	evHead eventKind = iota
	evInfo
	evData
	evTrailers
	evReset
)

type event struct {
	kind eventKind
	head *message.Head
	data []byte
	code message.ResetCode
	end  bool
}

// NewMux connects a client observer with a server acceptor.
func NewMux(acc message.Acceptor, obs message.ClientObserver, o MuxOptions) *Mux {
	if o.MaxStreams == 0 {
		o.MaxStreams = 100
	}
	if o.Window == 0 {
		o.Window = 64 << 10
	}
	o.Client.Protocol, o.Server.Protocol = message.HTTP2, message.HTTP2
	return &Mux{o: o, acc: acc, obs: obs}
}

// Open starts an exchange.
func (m *Mux) Open(r message.Receiver) message.Sender {
	s := &stream{m: m}
	s.client = half{s: s, peer: &s.server, r: r, conn: &m.o.Client}
	s.server = half{s: s, peer: &s.client, conn: &m.o.Server}
	m.streams = append(m.streams, s)
	m.used++
	return &s.client
}

// Capacity is what is left of MaxStreams.
func (m *Mux) Capacity() int {
	if m.goaway || m.closed {
		return 0
	}
	return max(m.o.MaxStreams-len(m.streams), 0)
}

// Active is the number of exchanges in flight.
func (m *Mux) Active() int { return len(m.streams) }

// Used is the number of exchanges opened so far.
func (m *Mux) Used() int { return m.used }

// Conn describes the client's side.
func (m *Mux) Conn() *message.Conn { return &m.o.Client }

// Close ends the connection, gracefully after the exchanges in flight.
func (m *Mux) Close(graceful bool) {
	m.goaway = true
	if !graceful || len(m.streams) == 0 {
		m.Break(message.ResetCancel)
	}
}

// GoAway makes the server refuse what it has not accepted yet and anything new.
func (m *Mux) GoAway() {
	m.goaway = true
	for _, s := range m.streams {
		if !s.accepted {
			s.server.dead = true
			s.client.queue = append(s.client.queue, event{kind: evReset, code: message.ResetRefused})
		}
	}
}

// Break loses the connection: every exchange is reset on both sides.
func (m *Mux) Break(code message.ResetCode) {
	if m.closed {
		return
	}
	m.closed = true
	streams := m.streams
	m.streams = nil
	for _, s := range streams {
		for _, h := range []*half{&s.client, &s.server} {
			if h.r != nil && !h.dead && !(h.got && h.sent) {
				h.dead = true
				h.r.OnReset(code)
			}
		}
	}
	m.obs.OnClosed(m, code, nil)
	m.acc.OnConnClosed()
}

// Pump delivers until nothing more can be delivered.
func (m *Mux) Pump() {
	for m.Step() {
	}
}

// Step delivers one event and says whether there was one.
func (m *Mux) Step() bool {
	n := len(m.streams)
	if n == 0 {
		return false
	}
	if m.o.Rand != nil {
		m.next = m.o.Rand.IntN(n)
	}
	for i := range n {
		s := m.streams[(m.next+i)%n]
		for _, h := range []*half{&s.server, &s.client} {
			if h.deliverable() {
				m.next = (m.next+i)%n + 1
				h.deliver()
				m.sweep(s)
				return true
			}
		}
	}
	return false
}

// sweep forgets a finished exchange.
func (m *Mux) sweep(s *stream) {
	done := func(h *half) bool { return h.dead && len(h.queue) == 0 || h.got && h.sent }
	if !done(&s.client) || !done(&s.server) {
		return
	}
	for i, x := range m.streams {
		if x == s {
			m.streams = append(m.streams[:i], m.streams[i+1:]...)
			m.obs.OnCapacity(m)
			break
		}
	}
	if m.goaway && len(m.streams) == 0 {
		m.Break(message.ResetNone)
	}
}

func (h *half) deliverable() bool {
	if len(h.queue) == 0 || h.dead {
		h.drop()
		return false
	}
	return !h.paused || h.queue[0].kind == evHead || h.queue[0].kind == evReset
}

func (h *half) drop() {
	if h.dead {
		h.queue, h.flying = nil, 0
	}
}

func (h *half) deliver() {
	e := h.queue[0]
	h.queue = h.queue[1:]
	if h.r == nil {
		h.s.accepted = true
		h.r = h.s.m.acc.Accept(h)
	}
	h.got = h.got || e.end
	switch e.kind {
	case evHead:
		h.r.OnHead(e.head, e.end)
	case evInfo:
		h.r.OnInformational(e.head)
	case evTrailers:
		h.r.OnTrailers(e.head)
	case evReset:
		h.dead = true
		h.r.OnReset(e.code)
	case evData:
		h.flying -= len(e.data)
		h.r.OnData(e.data, e.end)
		for i := range e.data {
			e.data[i] = 0xdb // borrowed: whoever kept it is found out
		}
		if h.high && h.flying <= h.s.m.o.Window/4 && !h.peer.dead {
			h.high = false
			h.peer.r.OnDrained()
		}
	}
}

func (h *half) push(e event) {
	if h.dead || h.sent {
		return
	}
	h.sent = e.end
	p := h.peer
	p.queue = append(p.queue, e)
	p.flying += len(e.data)
	p.high = p.high || p.flying > h.s.m.o.Window
}

func copyHead(h *message.Head) *message.Head {
	c := &message.Head{}
	c.CopyFrom(h)
	return c
}

// SendHead sends the head to the other side.
func (h *half) SendHead(x *message.Head, end bool) {
	h.push(event{kind: evHead, head: copyHead(x), end: end})
}

// SendInformational sends a 1xx head.
func (h *half) SendInformational(x *message.Head) { h.push(event{kind: evInfo, head: copyHead(x)}) }

// SendData sends body bytes.
func (h *half) SendData(p []byte, end bool) {
	if len(p) > 0 || end {
		h.push(event{kind: evData, data: append([]byte(nil), p...), end: end})
	}
}

// SendTrailers ends the message.
func (h *half) SendTrailers(x *message.Head) {
	h.push(event{kind: evTrailers, head: copyHead(x), end: true})
}

// Reset gives the exchange up on this side; the other hears ResetRemote.
func (h *half) Reset(message.ResetCode) {
	if h.dead || h.sent && h.got {
		return
	}
	h.dead = true
	h.drop()
	p := h.peer
	if !p.dead {
		// RST_STREAM overtakes data that was not delivered.
		p.queue, p.flying = []event{{kind: evReset, code: message.ResetRemote}}, 0
		if p.r == nil {
			p.dead = true // never accepted: the server hears nothing
		}
	}
	h.s.m.sweep(h.s)
}

// Pause stops delivery of body and trailers to this side.
func (h *half) Pause(on bool) { h.paused = on }

// Buffered is what this side has sent and the other has not taken.
func (h *half) Buffered() int { return h.peer.flying }

// OverHigh says that the exchange's window is used up.
func (h *half) OverHigh() bool { return h.peer.flying > h.s.m.o.Window }

// Conn describes the connection.
func (h *half) Conn() *message.Conn { return h.conn }
