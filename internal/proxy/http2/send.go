package http2

// Data leaves in frames of at most 16 KiB, one stream after the other, and only
// while little of this connection's output waits: what is in the socket's queue
// cannot be overtaken by a more urgent stream.
const (
	// unsentCap is how much output may wait before DATA does.
	unsentCap = 64 << 10
	// highPending and lowPending are the watermarks of a stream's own data.
	highPending = 64 << 10
	lowPending  = 16 << 10
)

// ring lists the streams that have data and window, in the order of their turns.
type ring struct{ first, last *stream }

func (r *ring) push(s *stream) {
	s.queued = true
	s.prev, s.next = r.last, nil
	if r.last == nil {
		r.first = s
	} else {
		r.last.next = s
	}
	r.last = s
}

func (r *ring) remove(s *stream) {
	s.queued = false
	if s.prev == nil {
		r.first = s.next
	} else {
		s.prev.next = s.next
	}
	if s.next == nil {
		r.last = s.prev
	} else {
		s.next.prev = s.prev
	}
	s.prev, s.next = nil, nil
}

// room says whether DATA may be appended to the output now.
func (c *conn) room() bool { return c.sendWindow > 0 && c.t.Buffered() < unsentCap }

// sendNow writes as much of p as windows and turns allow and returns the rest.
// The last frame ends the stream if end is set and nothing is left.
func (c *conn) sendNow(s *stream, p []byte, end bool) []byte {
	for len(p) > 0 && c.ring.first == nil && s.sendWindow > 0 && c.room() {
		n := int(min(int64(len(p)), chunkSize, s.sendWindow, c.sendWindow))
		c.writeData(s, p[:n], end && n == len(p))
		p = p[n:]
	}
	return p
}

func (c *conn) writeData(s *stream, p []byte, end bool) {
	flags := byte(0)
	if end {
		flags = flagEndStream
		s.flushed = true
	}
	c.pool.scratch = appendFrame(c.pool.scratch[:0], len(p), frameData, flags, s.id)
	c.t.Write(c.pool.scratch)
	c.t.Write(p)
	s.sendWindow -= int64(len(p))
	c.sendWindow -= int64(len(p))
	c.guard.dataOut++
}

// queue keeps what could not be sent now.
func (c *conn) queue(s *stream, p []byte) {
	s.pending += len(p)
	s.high = s.high || s.pending > highPending
	for len(p) > 0 {
		t := s.lastChunk
		if t == nil || t.end == chunkSize {
			t = c.pool.getChunk()
			if s.lastChunk == nil {
				s.firstChunk = t
			} else {
				s.lastChunk.next = t
			}
			s.lastChunk = t
		}
		n := copy(t.buf[t.end:], p)
		t.end += n
		p = p[n:]
	}
	if !s.queued && s.sendWindow > 0 {
		c.ring.push(s)
	}
	c.wantDrained()
}

// wantDrained asks to be called when the output has gone, if that is what data
// waits for.
func (c *conn) wantDrained() {
	if c.ring.first != nil && c.sendWindow > 0 {
		c.t.WantDrained()
	}
}

// flush gives the waiting streams their turns.
func (c *conn) flush() {
	if c.flushing || c.ring.first == nil {
		return
	}
	c.flushing = true
	for c.state == connOpen && c.ring.first != nil && c.room() {
		s := c.ring.first
		c.ring.remove(s)
		c.turn(s)
	}
	c.flushing = false
	if c.state == connOpen {
		c.wantDrained()
	}
}

// turn sends one frame of a stream that has pending data and window.
func (c *conn) turn(s *stream) {
	ch := s.firstChunk
	n := int(min(int64(ch.end-ch.off), s.sendWindow, c.sendWindow))
	s.pending -= n
	c.writeData(s, ch.buf[ch.off:ch.off+n], s.pending == 0 && s.sendEnd && s.trail == nil)
	s.moved = true
	if ch.off += n; ch.off == ch.end {
		s.firstChunk = ch.next
		if s.firstChunk == nil {
			s.lastChunk = nil
		}
		c.pool.putChunk(ch)
	}
	switch {
	case s.pending > 0:
		if s.sendWindow > 0 {
			c.ring.push(s)
		}
	case s.trail != nil:
		t := s.trail
		s.trail = nil
		if !c.writeTrailers(s, &t.extra) {
			c.pool.putHeads(t)
			c.failSend(s)
			return
		}
		c.pool.putHeads(t)
	}
	if s.flushed {
		c.outputEnded(s)
		return
	}
	if s.high && s.pending <= lowPending {
		s.high = false
		if s.r != nil && !s.sendEnd {
			s.r.OnDrained()
		}
	}
}

// finishSend ends a stream's output once everything before it has left.
func (c *conn) finishSend(s *stream) {
	if !s.flushed && s.pending == 0 {
		c.writeData(s, nil, true)
	}
	if s.flushed {
		c.outputEnded(s)
		return
	}
	s.moved = true
	if c.srv != nil && c.clocks.stall == 0 {
		c.at(&c.clocks.stall, c.srv.o.StallTimeout)
	}
}

// outputEnded follows END_STREAM. A server that has answered needs nothing more
// of the request.
func (c *conn) outputEnded(s *stream) {
	switch {
	case s.recvEnd:
		c.remove(s, true)
		c.removed()
	case c.srv != nil:
		id := s.id
		c.remove(s, false)
		c.reset(id, NoError) // §8.1: an early response is complete all the same
		c.removed()
	}
}

// failSend gives a stream up whose output cannot be written as it should.
func (c *conn) failSend(s *stream) {
	r, id := s.r, s.id
	c.remove(s, false)
	code := InternalError
	if c.cli != nil {
		code = Cancel
	}
	if id != 0 {
		c.reset(id, code)
	}
	if r != nil && c.cli != nil {
		r.OnReset(cancelled)
	}
	c.removed()
}

// resetStalled gives up finished streams that made no progress since the timer
// was armed: their client does not open its window.
func (c *conn) resetStalled() {
	waiting := false
	for _, s := range c.streams.slots {
		if s != nil && s.sendEnd && !s.flushed {
			waiting = true
			s.stalled, s.moved = !s.moved, false
		}
	}
	for again := true; again; {
		again = false
		for _, s := range c.streams.slots {
			if s != nil && s.stalled && s.sendEnd && !s.flushed {
				c.stats.TxFlushTimeout.Add(1)
				id := s.id
				c.remove(s, false)
				c.reset(id, Cancel)
				again = true // the table has changed under us
				break
			}
		}
	}
	if waiting {
		c.removed()
		if c.state == connOpen && c.streams.count > 0 && c.srv != nil {
			c.at(&c.clocks.stall, c.srv.o.StallTimeout)
		}
	}
}

// dropPending frees what was not sent.
func (s *stream) dropPending() {
	for ch := s.firstChunk; ch != nil; {
		next := ch.next
		s.c.pool.putChunk(ch)
		ch = next
	}
	s.firstChunk, s.lastChunk, s.pending = nil, nil, 0
	if s.trail != nil {
		s.c.pool.putHeads(s.trail)
		s.trail = nil
	}
}
