package loop

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/proxy/message"
)

// ErrAborted is what a connection ends with after its own side called Abort.
var ErrAborted = errors.New("connection aborted by this side")

// errKept means that a handler left more input unconsumed than any protocol
// element may be long; codecs have smaller limits of their own.
var errKept = errors.New("protocol element exceeds the input buffer")

// directMin is the size from which a write goes to the kernel at once instead
// of being copied to the output queue: bulk transfer saves one copy per byte
// and does not care about batching.
const directMin = 16 << 10

type connState uint8

const (
	stateOpen connState = iota
	// stateClosing: flushing what is queued, then FIN.
	stateClosing
	// stateLingering: FIN sent; input is discarded until the peer's FIN, so that
	// unread bytes do not make the kernel send RST over our last words.
	stateLingering
	stateClosed
)

// Flusher is a layer between codec and connection that collects output over a
// round (TLS records); OnFlush hands it down just before the connection writes.
type Flusher interface{ OnFlush() }

// Conn is one connected stream socket, owned by one loop for life. It
// implements message.Transport.
type Conn struct {
	l    *Loop
	h    message.TransportHandler
	pre  Flusher
	info message.Conn

	in    []byte // kept input: delivered, not consumed
	out   outQueue
	err   error // what OnClosed will say
	timer *Timer

	fd        int32
	slot      uint32
	discarded int32
	state     connState
	ahead     int8 // 1 + place of what was read ahead in this round, 0 for nothing

	paused      bool // the handler wants no input
	readPending bool // the socket may hold input that no further edge announces
	redeliver   bool // kept input is to be delivered again
	delivering  bool
	sawHup      bool // FIN or error is behind the input: read to the end
	eof         bool // FIN was read
	eofTold     bool // and the handler knows
	blocked     bool // the kernel's send buffer is full
	wantFin     bool
	finSent     bool
	wasHigh     bool
	isDirty     bool
	inReady     bool
	writeFailed bool
	shared      bool // the descriptor may exist elsewhere too
}

const connEvents = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET

// Adopt makes a Conn of a connected stream socket and takes over fd, also on
// error. info is completed with an id. Input is read once a handler is set.
// The socket may come from Listen on any loop, from a socketpair, or from
// another process. Loop only.
func (l *Loop) Adopt(fd int, info message.Conn) (*Conn, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("event loop: adopt descriptor %d: %w", fd, err)
	}
	// Not a TCP socket: there is no delay to switch off, nothing else to do.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	tuneLocal(fd, &info)
	c := l.newConn(fd, info)
	index, _, err := l.register(fd, c, connEvents)
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	c.slot = index
	c.shared = true
	l.stats.Conns.Add(1)
	return c, nil
}

func (l *Loop) newConn(fd int, info message.Conn) *Conn {
	if info.ID == 0 {
		l.connSeq++
		info.ID = uint64(l.opts.ID)<<48 | l.connSeq
	}
	return &Conn{l: l, fd: int32(fd), info: info}
}

// Loop returns the loop that owns the connection.
func (c *Conn) Loop() *Loop { return c.l }

// Conn describes the connection.
func (c *Conn) Conn() *message.Conn { return &c.info }

// SetHandler installs the consumer of the input. Input that a previous handler
// left unconsumed is delivered to h: at once when the call comes out of
// OnBytes, else in this round or the next. So is a FIN that came already.
func (c *Conn) SetHandler(h message.TransportHandler) {
	c.h = h
	c.eofTold = false
	if c.delivering {
		return
	}
	c.resume()
}

// SetFlusher installs the layer that is asked for output before each write.
func (c *Conn) SetFlusher(f Flusher) { c.pre = f }

// MarkDirty makes sure that the Flusher is asked at the end of this round.
func (c *Conn) MarkDirty() {
	if !c.isDirty && c.state < stateClosed {
		c.isDirty = true
		c.l.dirty = append(c.l.dirty, c)
	}
}

// Closed says that the connection has ended or that Close was called.
func (c *Conn) Closed() bool { return c.state != stateOpen }

// PauseRead stops or resumes reading. While paused the kernel's buffer fills
// and TCP slows the peer down; a reset by the peer is still noticed.
func (c *Conn) PauseRead(on bool) {
	if c.paused == on {
		return
	}
	c.paused = on
	if on {
		return
	}
	if c.delivering {
		c.redeliver = true
		return
	}
	c.resume()
}

func (c *Conn) resume() {
	if c.state != stateOpen || c.paused {
		return
	}
	c.redeliver = len(c.in) > 0
	if c.redeliver || c.readPending || c.eof && !c.eofTold {
		c.queueReady()
	}
}

func (c *Conn) queueReady() {
	if !c.inReady {
		c.inReady = true
		c.l.ready = append(c.l.ready, c)
	}
}

// onEvents is called by the loop for each edge.
func (c *Conn) onEvents(events uint32) {
	if events&unix.EPOLLOUT != 0 && c.blocked {
		c.blocked = false
		c.MarkDirty()
	}
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) == 0 {
		return
	}
	c.readPending = true
	if events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		c.sawHup = true
	}
	if events&unix.EPOLLERR != 0 && c.paused && c.state == stateOpen && unread(int(c.fd)) == 0 {
		c.fail(socketError(int(c.fd)))
		return
	}
	c.readable()
}

func (c *Conn) canRead() bool {
	return c.state == stateOpen && !c.paused && c.h != nil
}

// readable delivers what is kept and then what the socket holds, up to the work
// cap of a round.
func (c *Conn) readable() {
	defer c.l.contain(c)
	if c.state == stateLingering {
		c.discard()
		return
	}
	if c.ahead > 0 && !c.canRead() {
		c.keepAhead()
	}
	if c.redeliver && c.canRead() {
		c.redeliver = false
		c.deliver(c.in, true)
	}
	if c.eof && !c.eofTold && c.canRead() {
		c.tellEOF()
		return
	}
	budget := c.l.opts.WorkCap
	for c.readPending && c.canRead() && !c.eof {
		budget -= c.readOnce()
		if budget <= 0 && c.readPending {
			c.queueReady()
			return
		}
	}
}

// readOnce makes one read call and delivers its result.
func (c *Conn) readOnce() int {
	kept := len(c.in)
	if kept > 0 && !c.growInput() {
		c.fail(errKept)
		return 0
	}
	buf, n, errno := c.read()
	switch {
	case errno == unix.EAGAIN:
		c.readPending = false
		return 0
	case errno == unix.EINTR:
		return 0
	case errno != 0:
		c.readPending = false
		c.failWith(errno)
		return 0
	case n == 0:
		c.readPending = false
		c.onEOF()
		return 0
	}
	if n < len(buf) && !c.sawHup {
		// A short read emptied the socket; whatever comes next is a new edge.
		c.readPending = false
	}
	if kept > 0 {
		c.in = c.in[:kept+n]
		c.deliver(c.in, true)
	} else {
		c.deliver(buf[:n], false)
	}
	return n
}

// read makes one read call, or takes the result of the one that was made ahead.
// Kept input is continued where it is.
func (c *Conn) read() (buf []byte, n int, errno unix.Errno) {
	if c.ahead > 0 {
		return c.takeAhead()
	}
	buf = c.l.readBuf
	if kept := len(c.in); kept > 0 {
		buf = c.in[kept:cap(c.in)]
	}
	n, errno = sysRead(int(c.fd), buf)
	return buf, n, errno
}

// growInput makes room behind the kept input.
func (c *Conn) growInput() bool {
	n := len(c.in)
	if cap(c.in)-n >= 2<<10 {
		return true
	}
	if n >= maxKept-(2<<10) {
		return false
	}
	b := append(c.l.getInput(n+(2<<10)), c.in...)
	c.l.putInput(c.in)
	c.in = b
	return true
}

// deliver offers p to the handler until it has consumed what it can. kept says
// that p is c.in rather than the loop's read buffer.
func (c *Conn) deliver(p []byte, kept bool) {
	for len(p) > 0 && c.canRead() {
		h := c.h
		c.redeliver = false
		c.delivering = true
		n := h.OnBytes(p)
		c.delivering = false
		p = p[n:]
		if !c.redeliver && c.h == h {
			break
		}
	}
	c.redeliver = false
	if c.state != stateOpen {
		return
	}
	switch {
	case len(p) == 0:
		if c.in != nil {
			c.l.putInput(c.in)
			c.in = nil
		}
	case kept:
		c.in = c.in[:copy(c.in, p)]
	default:
		c.in = append(c.l.getInput(len(p)), p...)
	}
}

func (c *Conn) onEOF() {
	c.eof = true
	if c.writeFailed {
		c.fail(c.err)
		return
	}
	if c.canRead() {
		c.tellEOF()
	}
}

func (c *Conn) tellEOF() {
	c.eofTold = true
	h := c.h
	h.OnEOF()
	switch {
	case c.state != stateOpen:
	case c.finSent:
		c.fail(nil)
	case c.h != h && !c.eofTold:
		c.queueReady() // the new handler has not heard it
	}
}

// Write appends p to the output.
func (c *Conn) Write(p []byte) {
	if c.state != stateOpen || c.wantFin || c.writeFailed || len(p) == 0 {
		return
	}
	if len(p) >= directMin && c.pre == nil && !c.blocked {
		n := c.send(p)
		if c.writeFailed || c.state != stateOpen {
			return
		}
		p = p[n:]
	}
	if len(p) > 0 {
		c.out.append(c.l, p)
		if c.out.bytes > c.l.opts.HighWatermark {
			c.wasHigh = true
		}
	}
	c.MarkDirty()
}

// Buffered is the number of output bytes the kernel has not taken yet.
func (c *Conn) Buffered() int { return c.out.bytes }

// OverHigh says that Buffered is above the high watermark.
func (c *Conn) OverHigh() bool { return c.out.bytes > c.l.opts.HighWatermark }

// WantDrained asks for OnDrained at the end of a round that finds the output
// below the low watermark.
func (c *Conn) WantDrained() {
	if c.state == stateOpen {
		c.wasHigh = true
		c.MarkDirty()
	}
}

// flush writes the queue, once per round.
func (c *Conn) flush() {
	defer c.l.contain(c)
	c.collect()
	if c.state >= stateLingering {
		return
	}
	for c.out.bytes > 0 && !c.blocked && !c.writeFailed {
		c.send(nil)
	}
	c.afterFlush()
}

// afterFlush does what follows from output that left or could not leave.
func (c *Conn) afterFlush() {
	if c.out.bytes == 0 && !c.writeFailed && c.state != stateClosed {
		c.flushed()
	} else if c.state == stateClosing {
		c.armClose()
	}
	if c.wasHigh && c.out.bytes < c.l.opts.LowWatermark && c.state == stateOpen {
		c.wasHigh = false
		if c.h != nil {
			c.h.OnDrained()
		}
	}
}

// flushed does what waited for the output to leave: FIN, end.
func (c *Conn) flushed() {
	if c.wantFin && !c.finSent {
		c.finSent = true
		_ = unix.Shutdown(int(c.fd), unix.SHUT_WR)
		if c.eof {
			c.fail(nil)
			return
		}
	}
	if c.state != stateClosing {
		return
	}
	if c.eof {
		c.fail(nil)
		return
	}
	c.armClose()
	if !c.finSent {
		c.finSent = true
		_ = unix.Shutdown(int(c.fd), unix.SHUT_WR)
	}
	c.state = stateLingering
	c.readPending = true
	c.queueReady()
}

// armClose bounds the time that Close may take.
func (c *Conn) armClose() {
	if c.timer == nil {
		c.timer = &Timer{F: func() { c.fail(nil) }}
		c.l.Arm(c.timer, c.l.opts.Linger)
	}
}

// discard reads what a closing peer still sends, in moderation.
func (c *Conn) discard() {
	const limit = 256 << 10
	for {
		n, errno := sysRead(int(c.fd), c.l.readBuf)
		if errno == unix.EINTR {
			continue
		}
		if errno == unix.EAGAIN {
			return
		}
		c.discarded += int32(n)
		if errno != 0 || n == 0 || c.discarded > limit {
			c.fail(nil)
			return
		}
	}
}

// send makes one write call with the queue and extra behind it. It returns how
// much of extra was taken.
func (c *Conn) send(extra []byte) int {
	iov := c.l.iov[:0]
	queued, asked := 0, 0
	for ch := c.out.head; ch != nil && len(iov) < cap(iov)-1; ch = ch.next {
		iov = addIovec(iov, ch.buf[ch.off:ch.end])
		queued += ch.end - ch.off
	}
	asked = queued
	if len(extra) > 0 && queued == c.out.bytes {
		iov = addIovec(iov, extra)
		asked += len(extra)
	}
	n, errno := sysWritev(int(c.fd), iov)
	clear(iov)
	switch {
	case errno == unix.EINTR:
		return 0
	case errno == unix.EAGAIN:
		c.blocked = true
		return 0
	case errno != 0:
		c.failWrite(errno)
		return 0
	}
	if n < asked {
		// The send buffer is full; EPOLLOUT tells when it is not any more.
		c.blocked = true
	}
	fromQueue := min(n, queued)
	c.out.advance(c.l, fromQueue)
	return n - fromQueue
}

// failWrite notes that nothing can be sent any more. What the peer sent before
// it went away, an early answer perhaps, is still read.
func (c *Conn) failWrite(errno unix.Errno) {
	c.writeFailed = true
	c.err = c.ioError("write", errno)
	c.out.drop(c.l)
	if c.state != stateOpen || c.paused || c.eof || c.h == nil {
		c.fail(c.err)
		return
	}
	c.readPending, c.sawHup = true, true
	c.queueReady()
}

func (c *Conn) failWith(errno unix.Errno) {
	if c.writeFailed {
		c.fail(c.err)
		return
	}
	c.fail(c.ioError("read", errno))
}

func (c *Conn) ioError(op string, errno unix.Errno) error {
	return fmt.Errorf("%s %v: %w", op, c.info.Remote, errno)
}

// CloseWrite sends FIN after what is buffered.
func (c *Conn) CloseWrite() {
	if c.state == stateOpen && !c.wantFin {
		c.wantFin = true
		c.MarkDirty()
	}
}

// Close flushes for a bounded time, then closes; the handler gets no input any
// more, only OnClosed.
func (c *Conn) Close() {
	if c.state == stateOpen {
		c.state = stateClosing
		c.MarkDirty()
	}
}

// Abort closes at once, with RST.
func (c *Conn) Abort() {
	if c.state == stateClosed {
		return
	}
	_ = unix.SetsockoptLinger(int(c.fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	c.fail(ErrAborted)
}

// fail ends the connection now; OnClosed follows at the end of the round, so
// that no handler is called out of its own call.
func (c *Conn) fail(err error) {
	if c.state == stateClosed {
		return
	}
	c.state = stateClosed
	c.err = err
	c.out.drop(c.l)
	if c.timer != nil {
		c.l.Disarm(c.timer)
	}
	if c.shared {
		// Somebody else's copy of the descriptor would keep the registration alive.
		_ = unix.EpollCtl(c.l.ep, unix.EPOLL_CTL_DEL, int(c.fd), nil)
	}
	c.l.release(c.slot)
	_ = unix.Close(int(c.fd))
	c.fd = -1
	c.l.stats.Conns.Add(-1)
	c.l.closed = append(c.l.closed, c)
}

// finish makes the last call to the handler and returns what was borrowed.
func (c *Conn) finish() {
	defer c.l.contain(nil)
	if c.in != nil {
		c.l.putInput(c.in)
		c.in = nil
	}
	h := c.h
	c.h, c.pre = nil, nil
	if h != nil {
		h.OnClosed(c.err)
	}
}
