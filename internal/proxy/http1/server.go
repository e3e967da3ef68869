package http1

import (
	"strconv"
	"time"

	"lateen.dev/lateen/internal/proxy/loop"
	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/syntax"
)

// ServerOptions configures the connections of one listener on one loop; they
// share it and must not change it. Zero values mean the defaults.
type ServerOptions struct {
	// Pool is the loop's; nil gives each connection one of its own.
	Pool *Pool
	// Timers is the loop; nil switches the timeouts below off.
	Timers Timers
	Limits Limits
	// IdleTimeout closes a connection without exchange (Envoy: the connection
	// manager's idle_timeout); 0 means never.
	IdleTimeout time.Duration
	// HeadTimeout bounds the arrival of a request head from its first byte, and
	// of the first byte on a new connection; 0 means never.
	HeadTimeout time.Duration
	// RefuseHTTP10 answers HTTP/1.0 with 426, as Envoy does by default.
	RefuseHTTP10 bool
	// DefaultHost is the authority of an HTTP/1.0 request that names none;
	// without it, it is the address the connection came in at.
	DefaultHost string
	// AllowConnect lets CONNECT through to the request path; else it is 403.
	AllowConnect bool
	// AllowUpgrade keeps the Upgrade field of requests that ask to switch
	// protocols; else it is dropped and the request is an ordinary one.
	AllowUpgrade bool
	// MaxRequests closes the connection after so many exchanges; 0 is no limit.
	MaxRequests uint32
	// DrainBytes is how much of an unread request body is read and dropped to
	// keep a connection whose answer came early; 64 KiB by default.
	DrainBytes int64
	// OnError is told of a refused head, for stats and the access log: no
	// exchange has seen it. May be nil.
	OnError func(e *Error, c *message.Conn)
	// OnBodyError is told why an exchange in flight, whose Receiver hears
	// ResetProtocol, was refused. May be nil.
	OnBodyError func(e *Error, c *message.Conn)
}

type serverState uint8

const (
	// serverIdle: between exchanges, or collecting a head.
	serverIdle serverState = iota
	// serverBody: the request body is arriving.
	serverBody
	// serverWaiting: the request is complete, the response is not.
	serverWaiting
	// serverHeld: CONNECT or Upgrade, unanswered; early data waits.
	serverHeld
	// serverRaw: bytes go through as they are.
	serverRaw
	// serverDraining: the response is complete, the rest of the request is dropped.
	serverDraining
	serverClosed
)

// Server is the server side of one connection: it calls an Acceptor for each
// request. It is itself the message.Sender of the exchange in flight.
type Server struct {
	t     message.Transport
	a     message.Acceptor
	o     *ServerOptions
	pool  *Pool
	r     message.Receiver // nil when no exchange is in flight
	heads *heads

	body       body
	timer      loop.Timer
	out        int64 // response body bytes still owed under content-length
	line       int   // where the scan of an incomplete head goes on
	served     uint32
	state      serverState
	outKind    bodyKind
	headSent   bool
	isHead     bool
	http10     bool
	keepAlive  bool // the connection outlives this exchange
	upgrade    bool
	connect    bool
	teTrailers bool
	expect     bool // the client waits for 100 before it sends the body
	paused     bool // by the receiver
	pipelined  bool // reading stopped because the next request is here already
	partial    bool // an incomplete head is kept
	eof        bool
	drain      bool // close after this exchange
}

// NewServer serves one downstream connection and installs itself as the
// handler of t. o is shared and completed with defaults.
func NewServer(t message.Transport, a message.Acceptor, o *ServerOptions) *Server {
	o.Limits.setDefaults()
	if o.DrainBytes == 0 {
		o.DrainBytes = 64 << 10
	}
	s := &Server{t: t, a: a, o: o, pool: o.Pool}
	if s.pool == nil {
		s.pool = NewPool(nil)
	}
	s.timer.F = s.onTimeout
	s.arm(o.HeadTimeout)
	t.SetHandler(s)
	return s
}

func (s *Server) arm(d time.Duration) {
	if s.o.Timers != nil && d > 0 {
		s.o.Timers.Arm(&s.timer, d)
	}
}

func (s *Server) disarm() {
	if s.timer.Armed() {
		s.o.Timers.Disarm(&s.timer)
	}
}

func (s *Server) onTimeout() {
	switch {
	case s.state == serverIdle && s.partial:
		s.refuse(errHeadTimeout)
	case s.state == serverIdle || s.state == serverDraining:
		s.closeGently()
	}
}

// Drain ends the connection after the exchange in flight, at once if there is
// none; the response under way says "connection: close" if its head has not
// left yet.
func (s *Server) Drain() {
	s.drain = true
	if s.state == serverIdle && !s.partial {
		s.closeGently()
	}
}

// Last makes the exchange in flight, or else the next one, the last: its
// response says "connection: close". An idle connection stays open until then,
// so that a request already on its way is served.
func (s *Server) Last() { s.drain = true }

// Idle says that no exchange is in flight.
func (s *Server) Idle() bool { return s.r == nil }

// OnBytes consumes input as far as the state of the exchange allows.
func (s *Server) OnBytes(p []byte) int {
	total := 0
	for {
		n, more := s.step(p[total:])
		total += n
		if !more {
			return total
		}
	}
}

func (s *Server) step(p []byte) (n int, more bool) {
	if len(p) == 0 || s.paused {
		return 0, false
	}
	switch s.state {
	case serverIdle:
		return s.readHead(p)
	case serverBody, serverDraining:
		return s.readBody(p)
	case serverWaiting, serverHeld:
		// One request at a time: the next one waits in the kernel.
		if !s.pipelined {
			s.pipelined = true
			s.t.PauseRead(true)
		}
		return 0, false
	case serverRaw:
		s.r.OnData(p, false)
		return len(p), false
	}
	return len(p), false
}

// readHead starts an exchange once a whole head is there.
func (s *Server) readHead(p []byte) (n int, more bool) {
	if s.line == 0 && p[0] == '\r' { // RFC 9112 §2.2: an empty line before the request line
		if len(p) == 1 {
			s.setPartial()
			return 0, false
		}
		if p[1] != '\n' {
			return s.refuseAll(p, errFirstByte)
		}
		return 2, true
	}
	if syntax.Lower[p[0]] == 0 {
		return s.refuseAll(p, errFirstByte)
	}
	lim := &s.o.Limits
	end, line, err := headEnd(p, s.line)
	if err != nil {
		return s.refuseAll(p, err)
	}
	s.line = line
	if end == 0 {
		switch {
		case line == 0 && len(p) > lim.PathBytes+64:
			return s.refuseAll(p, errPathLong)
		case len(p) > lim.HeadBytes:
			return s.refuseAll(p, errHeadLong)
		}
		s.setPartial()
		return 0, false
	}
	if end > lim.HeadBytes {
		return s.refuseAll(p, errHeadLong)
	}
	s.line, s.partial = 0, false
	s.disarm()
	if s.heads == nil {
		s.heads = s.pool.get()
	}
	m := &s.pool.meta
	if err := parseRequest(&s.heads.head, p[:end], lim, m, s.t.Conn().TLS != nil); err != nil {
		return s.refuseAll(p, err)
	}
	if err := s.begin(m); err != nil {
		return s.refuseAll(p, err)
	}
	return end, true
}

func (s *Server) setPartial() {
	if !s.partial {
		s.partial = true
		s.disarm()
		s.arm(s.o.HeadTimeout)
	}
}

// begin decides framing and persistence and hands the request over.
func (s *Server) begin(m *meta) *Error {
	h := &s.heads.head
	s.http10 = m.version == message.HTTP10
	s.connect = string(h.Method()) == "CONNECT"
	switch {
	case s.http10 && s.o.RefuseHTTP10:
		return errHTTP10
	case s.connect && !s.o.AllowConnect:
		return errConnect
	}
	if len(h.Authority()) == 0 {
		host := s.o.DefaultHost
		if host == "" {
			host = localHost(s.t.Conn())
		}
		h.SetAuthorityString(host)
	}
	if s.served == 0 {
		s.t.Conn().Protocol = m.version
	}
	s.served++
	s.isHead = string(h.Method()) == "HEAD"
	s.teTrailers = m.teTrailers
	s.expect = m.expect && !s.http10
	s.keepAlive = !m.close && (!s.http10 || m.keepAlive) && !s.drain &&
		(s.o.MaxRequests == 0 || s.served < s.o.MaxRequests)
	kind, length := requestBody(m)
	if s.http10 && m.expect {
		h.Del(message.Expect) // RFC 9110 §10.1.1: HTTP/1.0 has no expectations
	}
	// A body behind an Upgrade would have to be told from the new protocol's
	// bytes by a recipient that may not have understood; nobody needs it.
	s.upgrade = m.upgrade && s.o.AllowUpgrade && !s.http10 && kind == bodyNone && !s.connect &&
		!syntax.HasToken(h.Get(message.Upgrade), "h2c")
	if m.upgrade && !s.upgrade {
		h.Del(message.Upgrade)
	}
	s.headSent, s.outKind, s.out, s.paused = false, bodyNone, 0, false
	s.body.start(kind, length)
	end := false
	switch {
	case s.upgrade || s.connect:
		s.state = serverHeld
	case kind == bodyNone:
		s.state, end = serverWaiting, true
	default:
		s.state = serverBody
	}
	s.r = s.a.Accept(s)
	s.r.OnHead(h, end)
	return nil
}

func localHost(c *message.Conn) string {
	if c.OriginalDst.IsValid() {
		return c.OriginalDst.String()
	}
	return c.Local.String()
}

func (s *Server) readBody(p []byte) (n int, more bool) {
	n, data, trailers, done, err := s.body.next(p, &s.o.Limits)
	if err == nil && trailers != nil {
		err = parseTrailers(&s.heads.extra, trailers, &s.o.Limits, &s.pool.meta)
	}
	if err != nil {
		s.bodyError(err)
		return len(p), false
	}
	if s.state == serverDraining {
		return s.drained(n, done)
	}
	if done {
		s.state = serverWaiting
	}
	switch {
	case trailers != nil:
		s.r.OnTrailers(&s.heads.extra)
	case len(data) > 0 || done:
		s.r.OnData(data, done)
	}
	return n, n > 0
}

// drained drops what is left of a request whose response is complete.
func (s *Server) drained(n int, done bool) (int, bool) {
	if done {
		s.nextExchange()
	} else if s.body.total > s.o.DrainBytes {
		s.closeGently()
	}
	return n, n > 0
}

// bodyError ends an exchange whose request body is malformed.
func (s *Server) bodyError(err *Error) {
	if s.o.OnBodyError != nil {
		s.o.OnBodyError(err, s.t.Conn())
	}
	if s.state == serverDraining {
		s.closeGently()
		return
	}
	r := s.detach()
	if s.headSent {
		s.abort()
	} else {
		s.answer(err)
	}
	r.OnReset(err.Reset())
}

func (s *Server) refuseAll(p []byte, err *Error) (int, bool) {
	s.refuse(err)
	return len(p), false
}

func (s *Server) refuse(err *Error) {
	if s.o.OnError != nil {
		s.o.OnError(err, s.t.Conn())
	}
	s.answer(err)
}

// answer speaks for the codec itself, in Envoy's form, and closes.
func (s *Server) answer(err *Error) {
	text := refusalText(err.Status)
	b := appendStatusLine(s.pool.scratch[:0], err.Status)
	b = append(b, "content-length: "...)
	b = strconv.AppendInt(b, int64(len(text)), 10)
	b = append(b, "\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n"...)
	b = append(b, text...)
	s.pool.scratch = b
	s.t.Write(b)
	s.closeGently()
}

func refusalText(status int) string {
	line := statusLines[status]
	return line[len("HTTP/1.1 400 ") : len(line)-2]
}

func (s *Server) closeGently() {
	s.state = serverClosed
	s.disarm()
	s.release()
	s.t.Close()
}

func (s *Server) abort() {
	s.state = serverClosed
	s.disarm()
	s.release()
	s.t.Abort()
}

func (s *Server) release() {
	s.pool.put(s.heads)
	s.heads = nil
}

// detach lets go of the exchange's receiver.
func (s *Server) detach() message.Receiver {
	r := s.r
	s.r = nil
	return r
}

// responseEnded finishes the exchange when the last response byte was written.
func (s *Server) responseEnded() {
	s.r = nil
	switch {
	case s.state == serverBody && s.keepAlive && !s.eof && s.drainable():
		s.state = serverDraining
		s.body.total = 0
		s.arm(s.o.HeadTimeout)
		if s.paused {
			s.paused = false
			s.t.PauseRead(false)
		}
	case s.state != serverWaiting || !s.keepAlive || s.eof || s.drain || s.outKind == bodyClose:
		s.closeGently()
	default:
		s.nextExchange()
	}
}

// nextExchange makes the connection ready for another request.
func (s *Server) nextExchange() {
	s.state = serverIdle
	s.release()
	s.disarm()
	s.arm(s.o.IdleTimeout)
	if s.drain || s.eof {
		s.closeGently()
		return
	}
	if s.pipelined || s.paused {
		s.pipelined, s.paused = false, false
		s.t.PauseRead(false)
	}
}

// OnEOF handles the client's FIN. A client that has sent its request whole may
// close its half and still wait for the answer.
func (s *Server) OnEOF() {
	s.eof = true
	switch s.state {
	case serverIdle, serverDraining:
		s.closeGently()
	case serverBody:
		r := s.detach()
		s.abort()
		r.OnReset(message.ResetTermination)
	case serverRaw:
		s.r.OnData(nil, true)
		if s.state == serverRaw && s.outKind == bodyNone {
			s.rawEnded()
		}
	case serverHeld:
		// Nothing can follow on this half: a tunnel could not be used.
		r := s.detach()
		s.abort()
		r.OnReset(message.ResetTermination)
	}
}

// OnDrained passes the transport's relief on to the producer of the response.
func (s *Server) OnDrained() {
	if s.r != nil {
		s.r.OnDrained()
	}
}

// OnClosed ends what is in flight.
func (s *Server) OnClosed(error) {
	s.state = serverClosed
	s.disarm()
	r := s.detach()
	if r != nil {
		r.OnReset(message.ResetTermination)
	}
	s.release()
	s.a.OnConnClosed()
}
