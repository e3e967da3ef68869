package http2

import (
	"encoding/binary"

	"lateen.dev/lateen/internal/proxy/http2/hpack"
	"lateen.dev/lateen/internal/proxy/loop"
	"lateen.dev/lateen/internal/proxy/message"
)

// Windows we announce: 256 KiB bounds the burst of one stream that every other
// has to wait for, 1 MiB keeps a connection busy.
const (
	streamWindow = 256 << 10
	connWindow   = 1 << 20
)

type connState uint8

const (
	connOpen connState = iota
	// connClosed: GOAWAY and FIN are on their way, nothing is read any more.
	connClosed
)

// conn is what both sides have in common: frames in, frames out, windows and
// bounds. Exactly one of srv and cli is set.
type conn struct {
	t      message.Transport
	srv    *Server
	cli    *Client
	pool   *Pool
	stats  *Stats
	timers Timers
	lim    *Limits

	dec     hpack.Decoder
	enc     hpack.Encoder
	streams streamTable

	// Output: the peer's windows and the streams that have data to send.
	sendWindow int64
	peerWindow int64 // SETTINGS_INITIAL_WINDOW_SIZE
	peerMax    uint32
	ring       ring
	flushing   bool

	// Input.
	recvWindow int32
	credit     int32  // received bytes of which the peer was not told
	lastID     uint32 // highest stream of the peer
	preface    uint8  // bytes of the client preface that came
	settled    bool   // the peer's first SETTINGS came
	acked      bool   // the peer acknowledged ours
	choked     bool   // reading stopped: the peer does not read what it asks for
	peerAway   bool   // GOAWAY came
	state      connState
	code       message.ResetCode
	err        error

	// A header block in pieces.
	block      []byte
	blockID    uint32 // 0 when there is none
	blockEnd   bool
	blockCount uint8

	// A DATA frame that is arriving.
	dataLeft, dataPad int32
	dataEnd           bool
	dataStream        *stream // nil: dropped

	connectProtocol bool // the peer lets us use extended CONNECT

	guard  guard
	clocks clocks
	timer  loop.Timer
}

func (c *conn) init(t message.Transport, pool *Pool, stats *Stats, timers Timers, lim *Limits) {
	if pool == nil {
		pool = NewPool(nil)
	}
	if stats == nil {
		stats = &pool.stats
	}
	c.t, c.pool, c.stats, c.timers, c.lim = t, pool, stats, timers, lim
	c.sendWindow, c.peerWindow, c.peerMax = initialWindow, initialWindow, maxWindow
	c.recvWindow = connWindow
	c.timer.F = c.tick
	// What a trunk carries are exchanges of HTTP/1.1.
	if info := t.Conn(); info.Trunk {
		info.Protocol = message.HTTP11
	} else {
		info.Protocol = message.HTTP2
	}
}

// OnBytes consumes all whole frames, and DATA as it comes.
func (c *conn) OnBytes(p []byte) int {
	total := 0
	for c.state == connOpen && !c.choked {
		n := c.step(p[total:])
		if n == 0 {
			break
		}
		total += n
		if c.srv != nil && c.t.OverHigh() {
			// Answers pile up that the client does not read. Only the server stops:
			// two sides that wait for each other would wait for ever.
			c.choked = true
			c.t.PauseRead(true)
		}
	}
	if c.state == connClosed {
		return len(p)
	}
	c.notePartial(total < len(p) || c.blockID != 0, total > 0)
	return total
}

// step consumes the next piece of input; 0 means that more has to come.
func (c *conn) step(p []byte) int {
	switch {
	case len(p) == 0:
		return 0
	case c.srv != nil && int(c.preface) < len(preface):
		return c.readPreface(p)
	case c.dataLeft > 0 || c.dataPad > 0:
		return c.readData(p)
	case len(p) < frameHeader:
		return 0
	}
	length := int(p[0])<<16 | int(p[1])<<8 | int(p[2])
	typ, flags := p[3], p[4]
	id := binary.BigEndian.Uint32(p[5:]) & maxStreamID
	switch {
	case length > maxFrame:
		return c.fail(errFrameSize)
	case !c.settled && (typ != frameSettings || flags&flagAck != 0):
		return c.fail(errNoSettings)
	case c.blockID != 0 && (typ != frameContinuation || id != c.blockID):
		return c.fail(errContinuation)
	case typ == frameData:
		return c.startData(p, length, flags, id)
	case len(p) < frameHeader+length:
		return 0
	}
	c.frame(typ, flags, id, p[frameHeader:frameHeader+length])
	return frameHeader + length
}

func (c *conn) readPreface(p []byte) int {
	n := min(len(p), len(preface)-int(c.preface))
	if string(p[:n]) != preface[c.preface:int(c.preface)+n] {
		return c.fail(errPreface)
	}
	c.preface += uint8(n)
	return n
}

// frame handles a whole frame other than DATA.
func (c *conn) frame(typ, flags byte, id uint32, p []byte) {
	switch typ {
	case frameHeaders:
		c.onHeaders(flags, id, p)
	case frameContinuation:
		c.onContinuation(flags, id, p)
	case framePriority:
		c.onPriority(id, p)
	case frameRSTStream:
		c.onRSTStream(id, p)
	case frameSettings:
		c.onSettings(flags, id, p)
	case framePushPromise:
		c.fail(errPush)
	case framePing:
		c.onPing(flags, id, p)
	case frameGoAway:
		c.onGoAway(id, p)
	case frameWindowUpdate:
		c.onWindowUpdate(id, p)
	default: // §5.5: unknown types are ignored
		c.controlFrame()
	}
}

// idle says that a stream has not been opened by anybody yet.
func (c *conn) idle(id uint32) bool {
	if c.cli != nil {
		return id&1 == 0 || id >= c.cli.nextID
	}
	return id&1 == 0 || id > c.lastID
}

func (c *conn) onPriority(id uint32, p []byte) {
	switch {
	case id == 0:
		c.fail(errStreamZero)
		return
	case len(p) != 5:
		c.errorOn(id, errFrameSize)
		return
	case binary.BigEndian.Uint32(p)&maxStreamID == id:
		c.errorOn(id, errDependency)
		return
	}
	if err := c.guard.priority(c); err != nil {
		c.fail(err)
	}
}

func (c *conn) onRSTStream(id uint32, p []byte) {
	switch {
	case id == 0:
		c.fail(errStreamZero)
		return
	case len(p) != 4:
		c.fail(errFrameSize)
		return
	case c.idle(id):
		c.fail(errIdle)
		return
	}
	c.stats.RxReset.Add(1)
	s := c.streams.get(id)
	if s == nil {
		c.controlFrame()
		return
	}
	code := message.ResetRemote
	if ErrCode(binary.BigEndian.Uint32(p)) == RefusedStream {
		code = message.ResetRefused
	}
	r := s.r
	c.remove(s, false)
	c.guard.remember(id, peerReset)
	if r != nil {
		r.OnReset(code)
	}
	c.removed()
	if c.srv != nil {
		c.abuse()
	}
}

func (c *conn) onPing(flags byte, id uint32, p []byte) {
	switch {
	case id != 0:
		c.fail(errNotStreamZero)
		return
	case len(p) != 8:
		c.fail(errFrameSize)
		return
	case flags&flagAck != 0:
		c.pingAnswered(p)
		return
	}
	if !c.controlFrame() {
		return
	}
	b := appendFrame(c.pool.scratch[:0], 8, framePing, flagAck, 0)
	c.pool.scratch = append(b, p...)
	c.writeControl(c.pool.scratch)
}

func (c *conn) onGoAway(id uint32, p []byte) {
	switch {
	case id != 0:
		c.fail(errNotStreamZero)
		return
	case len(p) < 8:
		c.fail(errFrameSize)
		return
	}
	c.stats.GoAwayReceived.Add(1)
	c.peerAway = true
	if c.cli != nil {
		c.cli.goneAway(binary.BigEndian.Uint32(p) & maxStreamID)
		return
	}
	c.removed() // a client that goes leaves the connection to us to end
}

func (c *conn) onWindowUpdate(id uint32, p []byte) {
	if len(p) != 4 {
		c.fail(errFrameSize)
		return
	}
	n := int64(binary.BigEndian.Uint32(p) & maxWindow)
	if err := c.guard.windowUpdate(c); err != nil {
		c.fail(err)
		return
	}
	if id == 0 {
		switch c.sendWindow += n; {
		case n == 0:
			c.fail(errIncrement)
		case c.sendWindow > maxWindow:
			c.fail(errWindowSize)
		default:
			c.flush()
		}
		return
	}
	if c.idle(id) {
		c.fail(errIdle)
		return
	}
	s := c.streams.get(id)
	switch {
	case n == 0:
		c.errorOn(id, errIncrement)
	case s == nil: // closed: late updates are normal
	case s.sendWindow+n > maxWindow:
		c.streamError(s, errWindowSize)
	default:
		s.sendWindow += n
		if s.pending > 0 && !s.queued && s.sendWindow > 0 {
			c.ring.push(s)
		}
		c.flush()
	}
}

// settle is called after the last event of a message was delivered.
func (c *conn) settle(s *stream) {
	if s.closed || !s.recvEnd || !s.flushed {
		return
	}
	c.remove(s, true)
	c.removed()
}

// remove forgets a stream. An orderly end lets it be used again: nobody who
// knows it calls it any more. What ended in disorder is left to the collector.
func (c *conn) remove(s *stream, orderly bool) {
	if s.id != 0 {
		c.streams.remove(s.id)
	} else if c.cli != nil {
		c.cli.unlist(s)
	}
	if s.queued {
		c.ring.remove(s)
	}
	if c.dataStream == s {
		c.dataStream = nil
	}
	s.closed, s.r = true, nil
	s.dropPending()
	c.pool.putHeads(s.heads)
	if orderly {
		c.guard.completed++
		c.pool.putStream(s)
	}
}

// removed follows remove once events were delivered.
func (c *conn) removed() {
	if c.state == connClosed {
		return
	}
	if c.srv != nil {
		c.srv.streamGone()
	} else {
		c.cli.streamGone()
	}
}

// reset sends RST_STREAM.
func (c *conn) reset(id uint32, code ErrCode) {
	c.guard.remember(id, ownReset)
	c.stats.TxReset.Add(1)
	b := appendFrame(c.pool.scratch[:0], 4, frameRSTStream, 0, id)
	c.pool.scratch = appendWord(b, uint32(code))
	c.writeControl(c.pool.scratch)
}

// streamError resets a stream whose peer broke a rule.
func (c *conn) streamError(s *stream, err *Error) {
	c.count(err)
	if c.srv != nil && c.srv.o.OnBodyError != nil && s.r != nil {
		c.srv.o.OnBodyError(err, c.t.Conn())
	}
	r, id := s.r, s.id
	c.remove(s, false)
	c.reset(id, err.Code)
	if r != nil {
		r.OnReset(err.Reset())
	}
	c.removed()
	if c.srv != nil {
		c.abuse()
	}
}

// errorOn is streamError for a stream that may not exist.
func (c *conn) errorOn(id uint32, err *Error) {
	switch s := c.streams.get(id); {
	case s != nil:
		c.streamError(s, err)
	case c.idle(id):
		c.fail(err)
	default:
		c.reset(id, err.Code)
	}
}

func (c *conn) count(err *Error) {
	if err.count != nil {
		err.count(c.stats)
	}
}

// fail ends the connection because the peer broke a rule. It returns how much
// of the input is consumed: all, which OnBytes sees by the state.
func (c *conn) fail(err *Error) int {
	if c.state == connClosed {
		return 0
	}
	c.count(err)
	if err.details == "" {
		c.stats.ProtocolError.Add(1)
	}
	if c.srv != nil && c.srv.o.OnError != nil {
		c.srv.o.OnError(err, c.t.Conn())
	}
	c.goAway(c.lastID, err.Code, err.Reason)
	c.end(err.Reset(), err)
	return 0
}

func (c *conn) goAway(last uint32, code ErrCode, reason string) {
	c.stats.GoAwaySent.Add(1)
	b := appendFrame(c.pool.scratch[:0], 8+len(reason), frameGoAway, 0, 0)
	b = appendWord(b, last)
	b = appendWord(b, uint32(code))
	c.pool.scratch = append(b, reason...)
	c.t.Write(c.pool.scratch)
}

// end closes the connection after what was written and resets what is in flight.
func (c *conn) end(code message.ResetCode, err error) {
	if c.state == connClosed {
		return
	}
	c.state, c.code, c.err = connClosed, code, err
	c.disarm()
	c.t.Close()
	c.resetAll(code, func(*stream) bool { return true })
	c.block = nil
}

// resetAll takes out the streams that match and tells their receivers.
func (c *conn) resetAll(code message.ResetCode, match func(*stream) bool) {
	var gone []*stream
	for _, s := range c.streams.slots {
		if s != nil && match(s) {
			gone = append(gone, s)
		}
	}
	if c.cli != nil {
		gone = c.cli.unsentStreams(gone)
	}
	for _, s := range gone {
		if s.closed {
			continue
		}
		r := s.r
		c.remove(s, false)
		if r != nil {
			r.OnReset(code)
		}
	}
}

// OnEOF handles the peer's FIN: HTTP/2 has no use for half a connection.
func (c *conn) OnEOF() {
	if c.streams.count == 0 {
		c.end(message.ResetNone, nil)
		return
	}
	c.end(message.ResetTermination, nil)
}

// OnDrained goes on sending, and reading if that had stopped.
func (c *conn) OnDrained() {
	if c.state == connClosed {
		return
	}
	c.flush()
	if c.choked && !c.t.OverHigh() {
		c.choked = false
		c.t.PauseRead(false)
	}
}

// closed is the common part of OnClosed.
func (c *conn) closed(err error) {
	if c.state == connClosed {
		return
	}
	c.state, c.code, c.err = connClosed, message.ResetTermination, err
	c.disarm()
	c.resetAll(message.ResetTermination, func(*stream) bool { return true })
	c.block = nil
}
