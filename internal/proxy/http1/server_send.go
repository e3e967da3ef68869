package http1

import "lateen.dev/lateen/internal/proxy/message"

var _ message.Sender = (*Server)(nil)

// SendHead sends the response head; see message.Sender. A head that cannot be
// framed (a length without the body, a value with a line break) aborts the
// connection: half an answer must not look like one.
func (s *Server) SendHead(h *message.Head, end bool) {
	if s.r == nil || s.headSent {
		return
	}
	code := h.Status()
	if code == 101 || s.connect && code >= 200 && code < 300 {
		s.switchProtocols(h, code)
		return
	}
	f := s.frame(h, code, end)
	if f.kind == bodyLength && end {
		s.Reset(message.ResetProtocol)
		return
	}
	s.headSent = true
	s.outKind, s.out = f.kind, f.length
	if !s.writeHead(h, code, f) {
		return
	}
	if end {
		s.responseEnded()
	}
}

// frame decides how the response body is delimited and whether the connection
// survives it.
func (s *Server) frame(h *message.Head, code int, end bool) framing {
	var f framing
	length, has := contentLength(h)
	noBody := s.isHead || code == 204 || code == 304
	if has && length < 0 {
		f.dropCL, has = true, false // a filter's mistake; the body decides
	}
	switch {
	case !has && !noBody:
		switch {
		case end:
			f.declare = true
		case s.http10:
			f.kind, s.keepAlive = bodyClose, false
		default:
			f.kind = bodyChunked
		}
	case noBody:
		f.dropCL = f.dropCL || code == 204
	case length > 0:
		f.kind, f.length = bodyLength, length
	}
	if s.state == serverHeld || s.drain {
		// Refused tunnel: whatever the client sent in hope must not be taken for a
		// request.
		s.keepAlive = false
	}
	if s.state == serverBody && end && !s.drainable() {
		s.keepAlive = false
	}
	f.close = !s.keepAlive
	f.keepAlive = s.keepAlive && s.http10
	return f
}

// drainable says that the rest of the request body may be read and dropped. A
// client that was never told to continue may send its next request instead.
func (s *Server) drainable() bool {
	if s.expect && s.body.total == 0 {
		return false
	}
	return s.body.kind == bodyChunked || s.body.remain <= s.o.DrainBytes
}

// writeHead serialises and writes a head; on a malformed one it resets.
func (s *Server) writeHead(h *message.Head, code int, f framing) bool {
	b := appendStatusLine(s.pool.scratch[:0], code)
	b, lines := appendFields(b, h, f)
	s.pool.scratch = b
	if !wellFormed(b, lines+1) {
		s.Reset(message.ResetProtocol)
		return false
	}
	s.t.Write(b)
	return true
}

// switchProtocols accepts CONNECT or Upgrade: from here on bytes are bytes.
func (s *Server) switchProtocols(h *message.Head, code int) {
	if s.state != serverHeld || code == 101 && !s.upgrade {
		s.Reset(message.ResetProtocol)
		return
	}
	s.headSent, s.outKind, s.keepAlive = true, bodyRaw, false
	if !s.writeHead(h, code, framing{kind: bodyRaw, dropCL: true, upgrade: code == 101}) {
		return
	}
	s.state = serverRaw
	if s.pipelined {
		s.pipelined = false
		s.t.PauseRead(s.paused)
	}
}

// SendInformational sends a 1xx head, not to HTTP/1.0 clients (RFC 9110 §15.2).
func (s *Server) SendInformational(h *message.Head) {
	if s.r == nil || s.headSent || s.http10 || h.Status() == 101 {
		return
	}
	if h.Status() == 100 {
		s.expect = false
	}
	s.writeHead(h, h.Status(), framing{dropCL: true})
}

// SendData sends response body bytes.
func (s *Server) SendData(p []byte, end bool) {
	if s.r == nil || !s.headSent {
		return
	}
	switch s.outKind {
	case bodyLength:
		if int64(len(p)) > s.out || end && int64(len(p)) < s.out {
			s.t.Write(p[:min(int64(len(p)), s.out)])
			s.Reset(message.ResetProtocol)
			return
		}
		s.out -= int64(len(p))
		s.t.Write(p)
		// A complete body is the end, whether said or not; but the producer says so.
	case bodyChunked:
		if len(p) > 0 {
			writeChunk(s.t, s.pool, p)
		}
		if end {
			s.t.Write(lastChunk)
		}
	case bodyClose:
		s.t.Write(p)
	case bodyRaw:
		s.t.Write(p)
		if end {
			s.outKind = bodyNone
			s.t.CloseWrite()
			if s.eof {
				s.rawEnded()
			}
		}
		return
	}
	if end {
		s.responseEnded()
	}
}

// rawEnded: both halves of a tunnel have ended.
func (s *Server) rawEnded() {
	s.r = nil
	s.closeGently()
}

var lastChunk = []byte("0\r\n\r\n")

var crlf = []byte("\r\n")

func writeChunk(t message.Transport, pool *Pool, p []byte) {
	pool.scratch = appendChunkSize(pool.scratch[:0], len(p))
	t.Write(pool.scratch)
	t.Write(p)
	t.Write(crlf)
}

// SendTrailers ends the response with trailer fields, if the body is chunked
// and the client said "TE: trailers"; else without them.
func (s *Server) SendTrailers(h *message.Head) {
	if s.r == nil || !s.headSent {
		return
	}
	if s.outKind != bodyChunked || !s.teTrailers {
		s.SendData(nil, true)
		return
	}
	if !writeTrailers(s.t, s.pool, h) {
		s.Reset(message.ResetProtocol)
		return
	}
	s.responseEnded()
}

// writeTrailers sends the last chunk with a trailer section.
func writeTrailers(t message.Transport, pool *Pool, h *message.Head) bool {
	b := append(pool.scratch[:0], "0\r\n"...)
	b, lines := appendFields(b, h, framing{dropCL: true})
	pool.scratch = b
	if !wellFormed(b, lines+1) {
		return false
	}
	t.Write(b)
	return true
}

// Reset abandons the exchange and with it the connection.
func (s *Server) Reset(message.ResetCode) {
	if s.r == nil {
		return
	}
	s.r = nil
	s.abort()
}

// Pause stops or resumes delivery of the request body.
func (s *Server) Pause(on bool) {
	if s.r == nil || s.paused == on {
		return
	}
	s.paused = on
	if on || !s.pipelined {
		s.t.PauseRead(on)
	}
}

// Buffered is the number of output bytes of the connection that have not left.
func (s *Server) Buffered() int { return s.t.Buffered() }

// OverHigh says that the connection has more output than it should.
func (s *Server) OverHigh() bool { return s.t.OverHigh() }

// Conn describes the connection.
func (s *Server) Conn() *message.Conn { return s.t.Conn() }
