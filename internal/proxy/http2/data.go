package http2

// startData begins a DATA frame: the whole of it counts for the windows at
// once, its payload is delivered as it comes.
func (c *conn) startData(p []byte, length int, flags byte, id uint32) int {
	used, pad := frameHeader, 0
	if flags&flagPadded != 0 {
		if length == 0 {
			return c.fail(errFrameSize)
		}
		if len(p) < frameHeader+1 {
			return 0
		}
		pad = int(p[frameHeader])
		used++
		if pad >= length {
			return c.fail(errPadding)
		}
	}
	switch {
	case id == 0:
		return c.fail(errStreamZero)
	case c.idle(id):
		return c.fail(errIdle)
	}
	c.recvWindow -= int32(length)
	if c.recvWindow < 0 {
		return c.fail(errWindow)
	}
	c.giveConnCredit(int32(length))
	end := flags&flagEndStream != 0
	left := length - (used - frameHeader) - pad
	if err := c.guard.data(left == 0 && !end); err != nil {
		return c.fail(err)
	}
	c.dataLeft, c.dataPad, c.dataEnd = int32(left), int32(pad), end
	c.dataStream = c.dataFor(id, int32(length), int64(left), end)
	if s := c.dataStream; s != nil {
		s.credit += int32(length - left) // padding is consumed here
		if left == 0 && end {
			c.deliver(s, nil, true)
		}
	}
	return used
}

// dataFor checks that a stream may receive DATA; nil drops it.
func (c *conn) dataFor(id uint32, length int32, payload int64, end bool) *stream {
	s := c.streams.get(id)
	switch {
	case s == nil:
		c.late(id)
		return nil
	case s.recvEnd:
		c.streamError(s, errClosed)
		return nil
	}
	if s.recvWindow -= length; s.recvWindow < 0 {
		c.streamError(s, errWindow)
		return nil
	}
	switch {
	case s.r == nil:
		// Answered; what the client still sends is of no use.
		s.recvEnd = end
		return nil
	case c.cli != nil && !s.headSeen:
		c.streamError(s, errBeforeHead)
		return nil
	case s.recvLeft >= 0 && payload > s.recvLeft:
		c.streamError(s, errLengthBody)
		return nil
	}
	return s
}

// late answers a frame that carries something for a stream that is over.
func (c *conn) late(id uint32) {
	err, breach := c.guard.lateFrame(id)
	switch {
	case err != nil:
		c.fail(err)
	case breach:
		c.reset(id, StreamClosed)
		if c.srv != nil {
			c.abuse()
		}
	}
}

func (c *conn) readData(p []byte) int {
	if c.dataLeft == 0 {
		n := min(len(p), int(c.dataPad))
		c.dataPad -= int32(n)
		return n
	}
	n := min(len(p), int(c.dataLeft))
	c.dataLeft -= int32(n)
	if s := c.dataStream; s != nil {
		c.deliver(s, p[:n], c.dataEnd && c.dataLeft == 0)
	}
	return n
}

// deliver passes body bytes on.
func (c *conn) deliver(s *stream, p []byte, end bool) {
	if s.recvLeft >= 0 {
		s.recvLeft -= int64(len(p))
		if end && s.recvLeft != 0 {
			c.streamError(s, errLengthBody)
			return
		}
	}
	s.credit += int32(len(p))
	if s.holding() {
		s.keep(p, end)
		return
	}
	if !end {
		s.r.OnData(p, false)
		s.giveCredit()
		return
	}
	s.endInput().OnData(p, true)
	c.settle(s)
}

// giveConnCredit returns connection credit on receipt: a slow reader of one
// stream must not stop the others.
func (c *conn) giveConnCredit(n int32) {
	if c.credit += n; c.credit >= connWindow/2 {
		c.windowUpdate(0, c.credit)
		c.recvWindow += c.credit
		c.credit = 0
	}
}

func (c *conn) windowUpdate(id uint32, n int32) {
	b := appendFrame(c.pool.scratch[:0], 4, frameWindowUpdate, 0, id)
	c.pool.scratch = appendWord(b, uint32(n))
	c.t.Write(c.pool.scratch)
}
