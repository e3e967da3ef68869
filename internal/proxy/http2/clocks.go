package http2

import (
	"math"
	"time"
)

const (
	// settingsTimeout bounds the acknowledgement of our SETTINGS.
	settingsTimeout = 10 * time.Second
	// drainTimeout bounds the time between the two GOAWAY frames of a graceful end.
	drainTimeout = time.Second
	// defaultPingTimeout is the wait for the answer to a keep-alive PING.
	defaultPingTimeout = 20 * time.Second
)

// clocks holds the times (loop nanoseconds, 0 for none) at which something is
// due. One timer serves them all and is armed again only when it fires or when
// something is due earlier, so that an exchange costs no timer work.
type clocks struct {
	wake     int64 // when the timer fires
	head     int64 // a frame or header block must be complete
	settings int64 // ours must be acknowledged
	idle     int64 // the connection has had no exchange for too long
	ping     int64 // the next keep-alive PING
	pong     int64 // its answer must be here
	drain    int64 // the second GOAWAY
	stall    int64 // finished streams that the peer's window holds up
}

func (c *conn) at(slot *int64, d time.Duration) {
	if c.timers == nil || d <= 0 {
		return
	}
	*slot = c.timers.Now() + int64(d)
	if c.clocks.wake == 0 || *slot < c.clocks.wake {
		c.arm(*slot)
	}
}

func (c *conn) arm(when int64) {
	c.clocks.wake = when
	c.timers.Arm(&c.timer, time.Duration(max(when-c.timers.Now(), 1)))
}

func (c *conn) disarm() {
	c.clocks = clocks{}
	if c.timer.Armed() {
		c.timers.Disarm(&c.timer)
	}
}

// tick does what is due and sleeps until the next.
func (c *conn) tick() {
	if c.state == connClosed {
		return
	}
	now := c.timers.Now()
	c.clocks.wake = 0
	k := &c.clocks
	due := func(slot *int64) bool {
		if *slot == 0 || *slot > now {
			return false
		}
		*slot = 0
		return true
	}
	switch {
	case due(&k.head):
		c.fail(errHeadTimeout)
	case due(&k.settings):
		c.fail(errSettingsLate)
	case due(&k.pong):
		c.fail(errKeepAlive)
	}
	if c.state == connOpen && due(&k.ping) {
		c.keepAlive()
	}
	if c.state == connOpen && due(&k.drain) && c.srv != nil {
		c.srv.lastGoAway()
	}
	if c.state == connOpen && due(&k.stall) {
		c.resetStalled()
	}
	if c.state == connOpen && due(&k.idle) && c.srv != nil {
		c.srv.idleOver()
	}
	if c.state == connClosed {
		return
	}
	next := int64(math.MaxInt64)
	for _, t := range [...]int64{k.head, k.settings, k.idle, k.ping, k.pong, k.drain, k.stall} {
		if t != 0 {
			next = min(next, t)
		}
	}
	if next != math.MaxInt64 && (k.wake == 0 || next < k.wake) {
		c.arm(next)
	}
}

// notePartial bounds the time that a frame or header block may take to arrive;
// progress means that another frame was complete.
func (c *conn) notePartial(partial, progress bool) {
	switch {
	case c.srv == nil:
	case !partial:
		if c.settled {
			c.clocks.head = 0
		}
	case c.clocks.head == 0 || progress && c.settled:
		c.at(&c.clocks.head, c.srv.o.HeadTimeout)
	}
}

// Opaque data of our own PINGs.
const (
	pingAlive = "lateen-k"
	pingDrain = "lateen-d"
)

func (c *conn) writePing(data string) {
	b := appendFrame(c.pool.scratch[:0], 8, framePing, 0, 0)
	c.pool.scratch = append(b, data...)
	c.t.Write(c.pool.scratch)
}

// startKeepAlive begins to ping.
func (c *conn) startKeepAlive(k KeepAlive) { c.at(&c.clocks.ping, k.Interval) }

func (c *conn) keepAlive() {
	k := c.keepAliveOptions()
	c.writePing(pingAlive)
	c.at(&c.clocks.pong, cmpOr(k.Timeout, defaultPingTimeout))
}

func (c *conn) keepAliveOptions() KeepAlive {
	if c.srv != nil {
		return c.srv.o.KeepAlive
	}
	return c.cli.o.KeepAlive
}

func cmpOr(a, b time.Duration) time.Duration {
	if a > 0 {
		return a
	}
	return b
}

// pingAnswered handles an acknowledgement.
func (c *conn) pingAnswered(p []byte) {
	switch {
	case string(p) == pingAlive && c.clocks.pong != 0:
		c.clocks.pong = 0
		c.startKeepAlive(c.keepAliveOptions())
	case string(p) == pingDrain && c.srv != nil && c.srv.draining == drainFirst:
		c.clocks.drain = 0
		c.srv.lastGoAway()
	default:
		c.controlFrame()
	}
}
