package http2

import (
	"bytes"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/syntax"
)

// cancelled is what the request path hears when its own message could not be
// sent, as in http1.
const cancelled = message.ResetCancel

// stream is one exchange of a connection, and its message.Sender.
type stream struct {
	c     *conn
	r     message.Receiver // nil once it has had its last event
	heads *heads
	id    uint32 // 0 until a client's head is sent

	// Output that waits for windows or its turn.
	prev, next            *stream // neighbours in the ring
	firstChunk, lastChunk *chunk
	pending               int
	trail                 *heads // trailers to follow pending data, in extra

	sendWindow int64
	sendLeft   int64 // body bytes owed under content-length, -1 without
	recvLeft   int64 // body bytes to come under content-length, -1 without
	recvWindow int32
	credit     int32  // received bytes of which the peer was not told
	held       []byte // what a client said on a tunnel before it was accepted

	proto    string // client: what an upgrade asked for
	infos    uint8
	recvEnd  bool // END_STREAM came
	headSeen bool // client: the final response head came
	headSent bool
	sendEnd  bool // the producer said so
	flushed  bool // and END_STREAM was written
	closed   bool // not in the table any more; every call is ignored
	queued   bool // in the ring
	high     bool
	moved    bool // data left since resetStalled looked
	stalled  bool
	paused   bool
	isHead   bool // the request method is HEAD
	connect  bool
	upgrade  bool
	noBody   bool // the message being sent has none, whatever the producer says
	heldEnd  bool
	deferred bool // client: the head waits for the server's SETTINGS
}

var _ message.Sender = (*stream)(nil)

// endInput notes END_STREAM and returns the receiver for the last event; the
// stream lets go of it if the other direction is over too.
func (s *stream) endInput() message.Receiver {
	s.recvEnd = true
	r := s.r
	if s.sendEnd {
		s.r = nil
	}
	return r
}

// holding says that body bytes must wait: a tunnel that nobody has accepted.
func (s *stream) holding() bool { return s.c.srv != nil && (s.connect || s.upgrade) && !s.headSent }

func (s *stream) keep(p []byte, end bool) {
	s.held = append(s.held, p...) // not more than the window
	s.heldEnd = s.heldEnd || end
}

// releaseHeld delivers what waited for the tunnel.
func (s *stream) releaseHeld() {
	p, end := s.held, s.heldEnd
	s.held, s.heldEnd = nil, false
	switch {
	case s.closed || s.r == nil || len(p) == 0 && !end:
	case end:
		s.endInput().OnData(p, true)
		s.c.settle(s)
	default:
		s.r.OnData(p, false)
		s.giveCredit()
	}
}

// giveCredit returns stream credit at half the window, unless the receiver is
// behind or the stream is over: a short message costs no WINDOW_UPDATE.
func (s *stream) giveCredit() {
	if s.closed || s.paused || s.recvEnd || s.credit < streamWindow/2 {
		return
	}
	s.c.windowUpdate(s.id, s.credit)
	s.recvWindow += s.credit
	s.credit = 0
}

// SendHead sends the head; see message.Sender.
func (s *stream) SendHead(h *message.Head, end bool) {
	switch {
	case s.closed || s.headSent || s.deferred || s.sendEnd:
	case s.c.srv != nil:
		s.c.srv.sendHead(s, h, end)
	default:
		s.c.cli.sendHead(s, h, end)
	}
}

// SendInformational sends a 1xx head; only servers do.
func (s *stream) SendInformational(h *message.Head) {
	if s.closed || s.headSent || s.c.srv == nil || h.Status() == 101 || h.Status() < 100 || h.Status() > 199 {
		return
	}
	s.c.writeHead(s, h, h.Status(), false, fieldsNoLength)
}

// SendData sends body bytes: at once as far as windows and turns allow.
func (s *stream) SendData(p []byte, end bool) {
	if s.closed || s.sendEnd || !s.headSent {
		return
	}
	c := s.c
	if s.noBody {
		p = nil
	}
	if s.sendLeft >= 0 {
		if int64(len(p)) > s.sendLeft || end && int64(len(p)) < s.sendLeft {
			c.failSend(s) // declared and sent differ: it must not look whole
			return
		}
		s.sendLeft -= int64(len(p))
	}
	if end {
		s.endOutput()
	}
	if s.pending == 0 {
		p = c.sendNow(s, p, end)
	}
	if len(p) > 0 {
		c.queue(s, p)
	}
	if end {
		c.finishSend(s)
	}
}

// endOutput notes that the producer is through. The exchange of a server is
// over for the request path then, that of a client once the response is.
func (s *stream) endOutput() {
	s.sendEnd = true
	if s.c.srv != nil || s.recvEnd {
		s.r = nil
	}
}

// SendTrailers sends trailer fields and ends the message.
func (s *stream) SendTrailers(h *message.Head) {
	if s.closed || s.sendEnd || !s.headSent {
		return
	}
	c := s.c
	if s.noBody || s.sendLeft > 0 {
		s.SendData(nil, true)
		return
	}
	if s.pending > 0 {
		// Blocks are made in the order of the wire, so the fields wait.
		s.trail = c.pool.getHeads()
		s.trail.extra.CopyFrom(h)
		s.endOutput()
		c.finishSend(s)
		return
	}
	if !c.writeTrailers(s, h) {
		c.failSend(s)
		return
	}
	s.endOutput()
	c.finishSend(s)
}

// Reset abandons the exchange in both directions.
func (s *stream) Reset(code message.ResetCode) {
	if s.closed || s.r == nil {
		return
	}
	c, id := s.c, s.id
	wire := Cancel
	if c.srv != nil {
		switch code {
		case message.ResetRefused, message.ResetOverflow:
			wire = RefusedStream
		default:
			wire = InternalError
		}
	}
	c.remove(s, false)
	if id != 0 {
		c.reset(id, wire)
	}
	c.removed()
}

// Pause stops or resumes the return of credit: the peer stops when the window
// is used up, and what was under way is still delivered.
func (s *stream) Pause(on bool) {
	if s.closed || s.paused == on {
		return
	}
	s.paused = on
	s.giveCredit()
}

// Buffered is the data of this exchange that waits for the peer's window.
func (s *stream) Buffered() int { return s.pending }

// OverHigh says that more waits than should.
func (s *stream) OverHigh() bool { return s.pending > highPending }

// Conn describes the connection.
func (s *stream) Conn() *message.Conn { return s.c.t.Conn() }

// Which fields of a head are written.
type fieldSet uint8

const (
	fieldsAll fieldSet = iota
	fieldsNoLength
)

// appendFields appends the header fields. Fields that belong to an HTTP/1.1
// connection stay behind (§8.2.2).
func (c *conn) appendFields(b []byte, h *message.Head, set fieldSet) []byte {
	for i := range h.Len() {
		id, name, value, ok := h.Field(i)
		if !ok {
			continue
		}
		switch id {
		case message.Host, message.Connection, message.KeepAlive, message.ProxyConnection,
			message.TransferEncoding, message.Upgrade:
			continue
		case message.ContentLength:
			if set == fieldsNoLength {
				continue
			}
		case message.TE:
			if !syntax.EqualFold(value, "trailers") {
				continue
			}
		}
		b = c.enc.Field(b, id, name, value, h.Sensitive(i))
	}
	return b
}

// beginBlock starts a header block behind room for its frame header.
func (c *conn) beginBlock() []byte {
	return c.enc.Begin(append(c.pool.scratch[:0], make([]byte, frameHeader)...))
}

// writeBlock ends the block in b and writes it as HEADERS and, if it is long,
// CONTINUATION. It returns false, and nothing is written, if a field is not
// well-formed: no value that a filter, a certificate or a configuration brought
// in may break out of its place.
func (c *conn) writeBlock(s *stream, b []byte, end bool) bool {
	c.pool.scratch = b
	if !c.enc.End() {
		return false
	}
	flags := byte(0)
	if end {
		flags = flagEndStream
	}
	n := len(b) - frameHeader
	if n <= maxFrame {
		putFrame(b, n, frameHeaders, flags|flagEndHeaders, s.id)
		c.t.Write(b)
		return true
	}
	putFrame(b, maxFrame, frameHeaders, flags, s.id)
	c.t.Write(b[:frameHeader+maxFrame])
	for b = b[frameHeader+maxFrame:]; len(b) > 0; {
		n = min(len(b), maxFrame)
		flags = 0
		if n == len(b) {
			flags = flagEndHeaders
		}
		var head [frameHeader]byte
		putFrame(head[:], n, frameContinuation, flags, s.id)
		c.t.Write(head[:])
		c.t.Write(b[:n])
		b = b[n:]
	}
	return true
}

// writeHead writes a response head; on a malformed one it gives the stream up.
func (c *conn) writeHead(s *stream, h *message.Head, code int, end bool, set fieldSet) bool {
	b := c.enc.Status(c.beginBlock(), code)
	if !c.writeBlock(s, c.appendFields(b, h, set), end) {
		c.failSend(s)
		return false
	}
	return true
}

func (c *conn) writeTrailers(s *stream, h *message.Head) bool {
	b := c.appendFields(c.beginBlock(), h, fieldsNoLength)
	if len(b) == frameHeader && c.enc.End() {
		c.writeData(s, nil, true)
		return true
	}
	s.flushed = c.writeBlock(s, b, true)
	return s.flushed
}

// contentLength reads the content-length field of a head that is to be sent;
// present is false when there is none, and a bad one counts as -1.
func contentLength(h *message.Head) (n int64, present bool) {
	v := h.Get(message.ContentLength)
	if v == nil {
		return 0, false
	}
	n, ok := syntax.Decimal(v)
	if !ok {
		return -1, true
	}
	return n, true
}

// sendable says that a target can be put on the wire.
func sendable(h *message.Head, connect bool) bool {
	if connect {
		return len(h.Authority()) > 0
	}
	p := h.Path()
	return len(h.Method()) > 0 && len(p) > 0 && (p[0] == '/' || string(p) == "*") && bytes.IndexByte(p, ' ') < 0
}
