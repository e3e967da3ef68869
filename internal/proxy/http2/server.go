package http2

import (
	"time"

	"lateen.dev/lateen/internal/proxy/message"
)

// ServerOptions configures the connections of one listener on one loop; they
// share it and must not change it. Zero values mean the defaults.
type ServerOptions struct {
	// Pool is the loop's; nil gives each connection one of its own.
	Pool *Pool
	// Timers is the loop; nil switches the timeouts below off.
	Timers Timers
	// Stats are counted here; nil counts in the pool's.
	Stats  *Stats
	Limits Limits
	// MaxStreams bounds the concurrent requests of a connection; 100 by default.
	MaxStreams uint32
	// IdleTimeout closes a connection without exchange (Envoy: the connection
	// manager's idle_timeout); 0 means never.
	IdleTimeout time.Duration
	// HeadTimeout bounds the arrival of the preface and of each frame and header
	// block from its first byte; 0 means never.
	HeadTimeout time.Duration
	// StallTimeout bounds how long a finished response waits for the client's
	// window without progress (Envoy: stream_idle_timeout); 0 means never.
	StallTimeout time.Duration
	KeepAlive    KeepAlive
	// AllowConnect lets CONNECT through to the request path; else it is 403.
	AllowConnect bool
	// AllowUpgrade offers extended CONNECT (RFC 8441).
	AllowUpgrade bool
	// MaxRequests drains the connection after so many exchanges; 0 is no limit.
	MaxRequests uint32
	// OnError is told of a request head that was refused and of the end of the
	// whole connection because of the client: no exchange has seen it. May be nil.
	OnError func(e *Error, c *message.Conn)
	// OnBodyError is told why an exchange in flight, whose Receiver hears
	// ResetProtocol, was refused. May be nil.
	OnBodyError func(e *Error, c *message.Conn)
}

type drainState uint8

const (
	drainNo drainState = iota
	// drainFirst: GOAWAY with the highest identifier was sent; what the client
	// has sent meanwhile is still served.
	drainFirst
	// drainLast: the last stream is fixed.
	drainLast
)

// Server is the server side of one connection: it calls an Acceptor for each
// request.
type Server struct {
	conn
	a        message.Acceptor
	o        *ServerOptions
	served   uint32
	draining drainState
}

// NewServer serves one downstream connection and installs itself as the
// handler of t. o is shared and completed with defaults.
func NewServer(t message.Transport, a message.Acceptor, o *ServerOptions) *Server {
	o.Limits.setDefaults()
	if o.MaxStreams == 0 {
		o.MaxStreams = 100
	}
	s := &Server{a: a, o: o}
	s.srv = s
	s.init(t, o.Pool, o.Stats, o.Timers, &o.Limits)
	b := append(s.pool.scratch[:0], make([]byte, frameHeader)...)
	b = appendSetting(b, settingMaxConcurrentStreams, o.MaxStreams)
	b = appendSetting(b, settingInitialWindowSize, streamWindow)
	b = appendSetting(b, settingMaxHeaderListSize, uint32(o.Limits.HeadBytes))
	if o.AllowUpgrade {
		b = appendSetting(b, settingEnableConnect, 1)
	}
	putFrame(b, len(b)-frameHeader, frameSettings, 0, 0)
	s.pool.scratch = b
	t.Write(b)
	s.windowUpdate(0, connWindow-initialWindow)
	s.at(&s.clocks.head, o.HeadTimeout)
	s.at(&s.clocks.settings, settingsTimeout)
	s.at(&s.clocks.idle, o.IdleTimeout)
	s.startKeepAlive(o.KeepAlive)
	t.SetHandler(s)
	return s
}

// Drain ends the connection gracefully: the client is told to open no more
// streams, those it has opened are served, and the connection closes after the
// last of them.
func (s *Server) Drain() {
	if s.state == connClosed || s.draining != drainNo {
		return
	}
	s.draining = drainFirst
	s.goAway(maxStreamID, NoError, "")
	s.writePing(pingDrain) // its answer proves that GOAWAY was seen
	s.at(&s.clocks.drain, drainTimeout)
}

// Last is Drain: requests that are on their way are served in any case.
func (s *Server) Last() { s.Drain() }

// Idle says that no exchange is in flight.
func (s *Server) Idle() bool { return s.streams.count == 0 }

// lastGoAway is the second step of Drain.
func (s *Server) lastGoAway() {
	if s.draining == drainLast {
		return
	}
	s.draining = drainLast
	s.goAway(s.lastID, NoError, "")
	s.streamGone()
}

// idleOver ends a connection that had no exchange for long enough.
func (s *Server) idleOver() {
	if s.streams.count > 0 {
		return // streamGone starts the time anew
	}
	s.goAway(s.lastID, NoError, "idle")
	s.end(message.ResetNone, nil)
}

// streamGone is called whenever a stream was removed.
func (s *Server) streamGone() {
	if s.streams.count > 0 || s.state == connClosed {
		return
	}
	if s.draining == drainLast || s.peerAway {
		s.end(message.ResetNone, nil)
		return
	}
	s.at(&s.clocks.idle, s.o.IdleTimeout)
}

// section handles a header block: a request head, or trailers.
func (s *Server) section(id uint32, block []byte, end bool) {
	if st := s.streams.get(id); st != nil {
		s.trailers(st, block, end)
		return
	}
	if id&1 == 0 {
		s.fail(errStreamID)
		return
	}
	if id <= s.lastID {
		s.lateSection(id, block)
		return
	}
	s.lastID = id
	s.guard.opened++
	h := s.pool.getHeads()
	m, ok := s.decode(&h.head, block, requestKinds)
	switch {
	case !ok:
	case s.draining == drainLast:
		s.reset(id, RefusedStream) // above the last stream: it may be tried elsewhere
	case s.streams.count >= int(s.o.MaxStreams):
		s.conn.count(errRefused)
		s.reset(id, RefusedStream)
		s.abuse()
	default:
		if err := m.request(&h.head, s.o, end); err != nil {
			s.refuse(id, err, end)
			break
		}
		s.begin(id, h, m, end)
		return
	}
	s.pool.putHeads(h)
}

// lateSection handles a header block on a stream that was over already.
func (s *Server) lateSection(id uint32, block []byte) {
	h := s.pool.getHeads()
	_, ok := s.decode(&h.extra, block, requestKinds)
	s.pool.putHeads(h)
	if ok {
		s.late(id)
	}
}

// begin hands a request over.
func (s *Server) begin(id uint32, h *heads, m *section, end bool) {
	st := s.pool.getStream()
	st.c, st.id, st.heads = &s.conn, id, h
	st.sendWindow, st.recvWindow = s.peerWindow, streamWindow
	st.sendLeft, st.recvLeft = -1, m.length
	st.isHead = string(h.head.Method()) == "HEAD"
	st.upgrade = len(m.proto) > 0
	st.connect = m.connect && !st.upgrade
	tunnel := st.upgrade || st.connect
	if tunnel {
		st.recvLeft = -1
	}
	s.streams.put(st)
	s.clocks.idle = 0
	s.served++
	if s.o.MaxRequests > 0 && s.served >= s.o.MaxRequests {
		s.Drain()
	}
	st.r = s.a.Accept(st)
	if end && !tunnel {
		st.recvEnd = true
	}
	st.r.OnHead(&h.head, st.recvEnd)
	switch {
	case st.closed:
	case end && tunnel:
		s.deliver(st, nil, true)
	default:
		s.settle(st)
	}
}

// trailers ends a request with its trailer section.
func (s *Server) trailers(st *stream, block []byte, end bool) {
	m, ok := s.decode(&st.heads.extra, block, 0)
	if !ok {
		return
	}
	switch {
	case st.recvEnd:
		s.streamError(st, errClosed)
	case !end:
		s.streamError(st, errTrailersEnd)
	case st.r == nil: // answered already; RST_STREAM is on its way
		st.recvEnd = true
		s.settle(st)
	default:
		s.endTrailers(st, m)
	}
}

// endTrailers delivers the trailers of a message.
func (c *conn) endTrailers(st *stream, m *section) {
	err := m.trailers(&st.heads.extra)
	if err == nil && st.recvLeft > 0 {
		err = errLengthBody
	}
	if err != nil {
		c.streamError(st, err)
		return
	}
	if st.holding() {
		st.keep(nil, true)
		return
	}
	st.endInput().OnTrailers(&st.heads.extra)
	c.settle(st)
}

// refuse answers a request that no exchange will see: with a status where
// HTTP/1.1 would, with RST_STREAM where RFC 9113 says so.
func (s *Server) refuse(id uint32, err *Error, end bool) {
	s.conn.count(err)
	if s.o.OnError != nil {
		s.o.OnError(err, s.t.Conn())
	}
	if err.Status == 0 {
		s.reset(id, err.Code)
		s.abuse()
		return
	}
	b := s.enc.Status(s.beginBlock(), err.Status)
	b = s.enc.Field(b, message.ContentLength, contentLengthName, zero, false)
	s.writeBlock(&stream{id: id}, b, true)
	if !end {
		s.reset(id, NoError)
	}
	s.abuse()
}

var (
	contentLengthName = []byte("content-length")
	zero              = []byte("0")
)

// sendHead sends a response head. One that cannot be framed resets the stream:
// half an answer must not look like one.
func (s *Server) sendHead(st *stream, h *message.Head, end bool) {
	code := h.Status()
	tunnel := code == 101 && st.upgrade || st.connect && code >= 200 && code < 300
	if code == 101 && !st.upgrade || tunnel && end {
		s.failSend(st)
		return
	}
	set := fieldsAll
	length, has := contentLength(h)
	st.noBody = st.isHead || code == 204 || code == 304
	switch {
	case tunnel || code == 204 || has && length < 0:
		set = fieldsNoLength
	case has && !st.noBody:
		st.sendLeft = length
		if end && length > 0 {
			s.failSend(st)
			return
		}
	}
	if code == 101 {
		code = 200 // RFC 8441 §4
	}
	held := st.holding()
	st.headSent = true
	if !s.writeHead(st, h, code, end, set) {
		return
	}
	if end {
		st.flushed = true
		st.endOutput()
		s.outputEnded(st)
		return
	}
	if held && tunnel {
		st.releaseHeld()
	} else if held {
		st.held = nil // refused: what was said in hope is dropped
	}
}

// OnClosed ends what is in flight.
func (s *Server) OnClosed(err error) {
	s.closed(err)
	s.a.OnConnClosed()
}
