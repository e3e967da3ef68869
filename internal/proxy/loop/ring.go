package loop

import (
	"golang.org/x/sys/unix"
)

// ringMin is the batch from which the ring pays: a smaller one makes fewer
// system calls than the ring has work.
const ringMin = 4

// aheadSize is how much is read ahead of one connection; more is read when its
// turn comes.
const aheadSize = 8 << 10

// ring makes the reads and the writes of a busy round with two system calls
// instead of one for each connection: 0.95 of the CPU of a request with 64
// connections (bench/perf). Without it everything works the same.
type ring struct {
	u       *uring
	conns   [maxBatch]*Conn
	results [maxBatch]int32
	ahead   []byte // aheadSize for each connection
}

func (r *ring) ready() bool { return r != nil && r.u != nil }

func (r *ring) close() {
	if r.ready() {
		r.u.close()
		r.u = nil
		_ = unix.Munmap(r.ahead)
	}
}

// openRing makes the ring at the first busy round. A kernel that forbids it is
// not asked again.
func (l *Loop) openRing() {
	if l.opts.PlainIO {
		l.ring = &ring{}
		return
	}
	u, err := newURing(maxBatch)
	if err != nil {
		l.log.Debug("io_uring is not used", "loop", l.opts.ID, "error", err)
		l.ring = &ring{}
		return
	}
	// Mapped, so that only the pages that input ever reached are memory.
	ahead, err := unix.Mmap(-1, 0, maxBatch*aheadSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		u.close()
		l.ring = &ring{}
		return
	}
	l.ring = &ring{u: u, ahead: ahead}
}

// submit runs what was prepared for the first k connections. A ring that fails
// is given up; what it did for these connections nobody knows, so they end.
func (l *Loop) submit(k int) bool {
	r := l.ring
	err := r.u.submit(r.results[:])
	if err == nil {
		return true
	}
	l.log.Error("io_uring failed and is not used any more", "loop", l.opts.ID, "connections", k, "error", err)
	r.close()
	for i, c := range r.conns[:k] {
		r.conns[i] = nil
		c.fail(err)
	}
	return false
}

// readAhead reads once from every connection that the first n events announce
// input for. The bytes wait in the ring until the event is handled.
func (l *Loop) readAhead(n int) {
	if l.ring == nil {
		l.openRing()
	}
	r := l.ring
	if !r.ready() {
		return
	}
	k := 0
	for i := range n {
		ev := &l.events[i]
		s := &l.slots[uint32(ev.Fd)]
		c, ok := s.src.(*Conn)
		if !ok || s.gen != uint32(ev.Pad) || ev.Events&unix.EPOLLIN == 0 || !c.canRead() || c.in != nil {
			continue
		}
		r.u.prepare(uringOpRecv, c.fd, r.ahead[k*aheadSize:(k+1)*aheadSize], unix.MSG_DONTWAIT)
		r.conns[k] = c
		k++
	}
	if !l.submit(k) {
		return
	}
	for i := range k {
		r.conns[i].ahead = int8(i + 1)
		r.conns[i] = nil
	}
}

// takeAhead returns what was read ahead of c, as read does.
func (c *Conn) takeAhead() (buf []byte, n int, errno unix.Errno) {
	r, i := c.l.ring, int(c.ahead)-1
	c.ahead = 0
	if n = int(r.results[i]); n < 0 {
		return nil, 0, unix.Errno(-n)
	}
	return r.ahead[i*aheadSize : (i+1)*aheadSize], n, 0
}

// keepAhead keeps what was read ahead of c for later: another handler of this
// round paused or closed the connection before its turn came.
func (c *Conn) keepAhead() {
	buf, n, errno := c.takeAhead()
	switch {
	case errno == unix.EAGAIN || errno == unix.EINTR:
	case errno != 0:
		c.readPending = false
		c.failWith(errno)
	case n == 0:
		c.readPending = false
		c.onEOF()
	default:
		c.in = append(c.l.getInput(n), buf[:n]...)
		c.readPending = n == len(buf) || c.sawHup
	}
}

// flushMany writes the connections at the front of the dirty list, as many as
// fit into the ring; those that need more than one plain send are left. It says
// whether there were any. All
// layers above are asked for their output first: what they call may close a
// connection, and a prepared send must not find a descriptor of somebody else.
func (l *Loop) flushMany() (some bool) {
	for i := 0; i < len(l.dirty); i++ {
		l.dirty[i].collect()
	}
	r, k, left := l.ring, 0, l.dirty[:0]
	for i, c := range l.dirty {
		if k == maxBatch {
			left = append(left, l.dirty[i:]...)
			break
		}
		if p := c.sendable(); p != nil {
			r.u.prepare(uringOpSend, c.fd, p, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
			r.conns[k] = c
			k++
			continue
		}
		left = append(left, c)
	}
	clear(l.dirty[len(left):])
	l.dirty = left
	if k == 0 || !l.submit(k) {
		return false
	}
	for i := range k {
		c := r.conns[i]
		r.conns[i] = nil
		c.isDirty = false
		c.sent(int(r.results[i]))
	}
	return true
}

// sendable returns the output when it is one piece and nothing else is to be
// done before it is sent.
func (c *Conn) sendable() []byte {
	h := c.out.head
	if h == nil || h.next != nil || c.state >= stateLingering || c.blocked || c.writeFailed {
		return nil
	}
	return h.buf[h.off:h.end]
}

// sent takes the result of a send of what sendable returned.
func (c *Conn) sent(n int) {
	defer c.l.contain(c)
	switch {
	case c.state >= stateLingering:
		return // a handler called since has ended it
	case n >= 0:
		c.blocked = n < c.out.bytes
		c.out.advance(c.l, n)
	case unix.Errno(-n) == unix.EAGAIN:
		c.blocked = true
	default:
		c.failWrite(unix.Errno(-n))
	}
	c.afterFlush()
}

// collect asks the layer above, if there is one, for its output. Asked again, it
// has none.
func (c *Conn) collect() {
	if c.pre != nil && c.state < stateLingering {
		c.askAbove()
	}
}

func (c *Conn) askAbove() {
	defer c.l.contain(c)
	c.pre.OnFlush()
}
