package upstream

import (
	"math"
	"slices"
	"time"

	"lateen.dev/lateen/internal/proxy/clock"
	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// defaultIdle is how long an unused connection is kept unless configured
// (Envoy: one hour).
const defaultIdle = time.Hour

// streamsPerConn is how many exchanges one connection carries unless configured:
// beyond it another connection is opened, so that what one lost packet or one
// lost connection holds up stays bounded.
const streamsPerConn = 256

// pool holds the connections of one loop to one endpoint with one server name,
// all made to speak the same.
type pool struct {
	host  *host
	sni   string
	speak snapshot.Speak
	// many: connections are expected to carry many exchanges at once, from what
	// is offered at first and then from what the last one turned out to do.
	many bool
	// ready are connections that can take an exchange, the last used at the
	// end: taking from there lets the others grow idle and close.
	ready []*conn
	all   []*conn
	// connections counts established ones, dialing those under way, logical the
	// exchanges on trunks, each of which stands for a connection.
	connections, dialing, logical int
	waiting                       queue
	dials                         []*dial
	sweep                         clock.Timer
	sweepArmed                    bool
	// draining: no new exchanges; connections close when idle.
	draining bool
}

// conn is one pooled connection; it observes its codec.
type conn struct {
	pool      *pool
	codec     message.ClientConn
	ready     bool
	closing   bool
	many      bool // it carries many exchanges
	trunk     bool // it carries HTTP/1.1: limits count exchanges, not it
	idleSince int64
	bornAt    int64
}

// dial is one connection attempt.
type dial struct {
	pool   *pool
	cancel func()
	over   bool
}

// pool returns the pool for a request, making it if needed.
func (h *host) pool(r *Request) *pool {
	speak := speakFor(h.cluster.config, r)
	sni := ""
	if h.tls != nil {
		sni = h.tls.SNI
		if h.tls.AutoSNI {
			sni = h.sni(r.Authority)
		}
	}
	for _, p := range h.pools {
		if p.speak == speak && p.sni == sni {
			return p
		}
	}
	p := &pool{host: h, sni: sni, speak: speak, many: h.tls.Offers(speak).Many()}
	h.pools = append(h.pools, p)
	return p
}

// speakFor chooses the version of HTTP for an exchange.
func speakFor(c *snapshot.Cluster, r *Request) snapshot.Speak {
	switch c.HTTP {
	case snapshot.UpstreamHTTP2:
		return snapshot.SpeakHTTP2
	case snapshot.UpstreamByALPN:
		return snapshot.SpeakEither
	case snapshot.UpstreamAsDownstream:
		if r.Downstream == message.HTTP2 {
			return snapshot.SpeakHTTP2
		}
	}
	return snapshot.SpeakHTTP1
}

func (p *pool) manager() *Manager { return p.host.cluster.m }

// open gives r an exchange now, or lets it wait for a connection.
func (p *pool) open(r *Request) {
	r.pool = p
	shared := p.host.cluster.shared
	if c := p.roomy(); c != nil && p.mayOpen(c) {
		p.host.active++
		p.attach(c, r)
		return
	}
	if p.draining { // only while the whole manager shuts down: drained pools are not found again
		r.state = requestIdle
		r.Waiter.OnUnavailable(&Error{NoHost: true, Reason: "proxy is shutting down"})
		return
	}
	stats := &p.host.cluster.stats.Counts
	if !shared.pendingStart() {
		stats[RqPendingOverflow]++
		p.overflow(r, "too many pending requests")
		return
	}
	stats[RqPendingTotal]++
	p.host.active++
	r.state = requestWaiting
	p.waiting.push(r)
	p.dialMore()
}

// roomy returns a connection that can take an exchange, nil if there is none.
// Room may have gone since the last look: the peer said GOAWAY.
func (p *pool) roomy() *conn {
	for n := len(p.ready); n > 0; n = len(p.ready) {
		c := p.ready[n-1]
		if c.room() > 0 {
			return c
		}
		p.unready(c)
	}
	return nil
}

// room is how many exchanges the connection may take now.
func (c *conn) room() int {
	n := c.codec.Capacity()
	if c.many {
		n = min(n, c.pool.streams()-c.codec.Active())
	}
	return n
}

// streams is the number of exchanges that a connection of many carries.
func (p *pool) streams() int {
	if n := p.host.cluster.config.H2.MaxConcurrentStreams; n > 0 && n < math.MaxInt32 {
		return int(n)
	}
	return streamsPerConn
}

// mayOpen counts a connection of its own for an exchange on a trunk, if the
// limit allows one more (as ever, the first of a pool is free of it). Where it
// says yes, attach must follow.
func (p *pool) mayOpen(c *conn) bool {
	if !c.trunk {
		return true
	}
	if !p.host.cluster.shared.connectionStart(p.logical == 0) {
		return false
	}
	p.logical++
	return true
}

// logicalDone gives back what mayOpen took.
func (p *pool) logicalDone() {
	p.logical--
	p.host.cluster.shared.connectionDone()
}

func (p *pool) overflow(r *Request, why string) {
	r.state = requestIdle
	r.Waiter.OnUnavailable(&Error{Code: message.ResetOverflow, Reason: why})
}

// attach opens r on a connection that has room. The host counts it already.
func (p *pool) attach(c *conn, r *Request) {
	if !p.host.cluster.shared.requestStart() {
		p.host.active--
		if c.trunk {
			p.logicalDone()
		}
		p.host.cluster.stats.Counts[RqPendingOverflow]++
		p.overflow(r, "too many requests")
		return
	}
	p.host.counts.RqTotal++
	p.host.cluster.stats.Counts[RqTotal]++
	fresh := c.codec.Used() == 0
	r.state, r.conn = requestOpen, c
	s := c.codec.Open(r.Receiver)
	if c.worn() || c.room() <= 0 {
		p.unready(c)
	}
	r.Waiter.OnOpen(s, fresh)
}

// worn says that the connection has carried as many exchanges as it may. What a
// trunk carries are connections of one exchange each, so none wears it out.
func (c *conn) worn() bool {
	limit := c.pool.host.cluster.config.MaxRequestsPerConn
	return limit > 0 && !c.trunk && c.codec.Used() >= int(limit)
}

func (p *pool) unready(c *conn) {
	if !c.ready {
		return
	}
	c.ready = false
	for i := len(p.ready) - 1; i >= 0; i-- {
		if p.ready[i] == c {
			p.ready = slices.Delete(p.ready, i, i+1)
			return
		}
	}
}

// wanted is the number of connection attempts that waiting requests justify.
func (p *pool) wanted() int {
	n := p.waiting.len
	if !p.many {
		return n
	}
	if p.roomy() != nil {
		return 0 // a limit holds them up, not room
	}
	return (n + p.streams() - 1) / p.streams()
}

// dialMore starts connections until each waiting request has a place on the way
// or a limit is reached.
func (p *pool) dialMore() {
	for !p.draining && p.dialing < p.wanted() {
		if !p.host.cluster.shared.connectionStart(p.connections+p.dialing == 0) {
			p.host.cluster.stats.Counts[CxOverflow]++
			return
		}
		p.dialing++
		p.host.connecting()
		d := &dial{pool: p}
		p.dials = append(p.dials, d)
		c := &conn{pool: p}
		cancel := p.manager().dialer.DialHTTP(p.host.target(p.sni, p.speak), c, func(cc message.ClientConn, err *Error) {
			d.done(c, cc, err)
		})
		if d.over { // it was done before DialHTTP returned
			if p.dialing == 0 && p.connections == 0 && p.waiting.len == 0 {
				return
			}
			continue
		}
		d.cancel = cancel
	}
}

// done takes over a finished connection attempt.
func (d *dial) done(c *conn, cc message.ClientConn, err *Error) {
	p := d.pool
	d.over = true
	p.forgetDial(d)
	if err != nil {
		p.host.connectFailed(err)
		p.host.cluster.shared.connectionDone()
		p.host.cluster.observe(p.host, failure(err))
		p.dialFailed(err)
		return
	}
	p.host.connected()
	p.host.speaks(cc.Conn().Protocol)
	p.all = append(p.all, c)
	c.codec = cc
	c.trunk = cc.Conn().Trunk
	c.many = c.trunk || cc.Conn().Protocol == message.HTTP2
	p.many = c.many
	c.bornAt = p.manager().clock.Now()
	p.connections++
	if c.trunk {
		p.host.cluster.shared.connectionDone() // its exchanges count instead
	}
	c.available()
	p.dialMore() // more than expected may have to wait still
}

func (p *pool) forgetDial(d *dial) {
	p.dialing--
	if i := slices.Index(p.dials, d); i >= 0 {
		p.dials = slices.Delete(p.dials, i, i+1)
	}
}

// dialFailed fails what the connection was for. When nothing else could serve
// the queue, all of it fails, as in Envoy: waiting one timeout after the other
// would help nobody. Requests that come back by retry are not failed again.
func (p *pool) dialFailed(err *Error) {
	n := 1
	if p.connections+p.dialing == 0 {
		n = p.waiting.len
	}
	var failed []*Request
	for range n {
		r := p.waiting.pop()
		if r == nil {
			break
		}
		p.host.cluster.shared.pendingDone()
		p.host.active--
		r.state = requestIdle
		p.host.cluster.stats.Counts[RqPendingFailureEject]++
		failed = append(failed, r)
	}
	for _, r := range failed {
		r.Waiter.OnUnavailable(err)
	}
	if p.many {
		p.dialMore() // the attempt was for more than one of them
	}
	p.host.maybeForget()
}

// trimDials cancels connection attempts that nobody waits for any more, except
// one: the next request will want it.
func (p *pool) trimDials() {
	for len(p.dials) > max(1, p.wanted()) || p.draining && len(p.dials) > p.wanted() {
		d := p.dials[len(p.dials)-1]
		if d.cancel == nil {
			return
		}
		d.over = true
		d.cancel()
		p.forgetDial(d)
		p.host.cluster.shared.connectionDone()
	}
}

// OnCapacity implements message.ClientObserver.
func (c *conn) OnCapacity(message.ClientConn) {
	if c.codec != nil { // else it is not handed over yet
		c.available()
	}
}

// available serves the queue with a connection that has room, or keeps it.
func (c *conn) available() {
	p := c.pool
	config := p.host.cluster.config
	for c.room() > 0 && !c.closing {
		old := config.MaxConnectionDuration > 0 &&
			p.manager().clock.Now()-c.bornAt >= int64(config.MaxConnectionDuration)
		worn := c.worn()
		if worn {
			p.host.cluster.stats.Counts[CxMaxRequests]++
		}
		if p.draining && p.waiting.len == 0 || worn || old {
			p.retire(c)
			p.dialMore()
			return
		}
		if p.waiting.len == 0 || !p.mayOpen(c) {
			break
		}
		r := p.waiting.pop()
		p.host.cluster.shared.pendingDone()
		p.attach(c, r)
	}
	if !c.closing && !c.ready && c.room() > 0 {
		c.ready = true
		p.ready = append(p.ready, c)
	}
	if c.ready && c.codec.Active() == 0 {
		c.idleSince = p.manager().clock.Now()
		p.armSweep(p.idleTimeout())
	}
}

// finished notes the end of an exchange on a connection.
func (p *pool) finished(c *conn) {
	if !c.trunk {
		return
	}
	p.logicalDone()
	if p.waiting.len > 0 && !c.closing {
		c.available()
	}
}

// retire closes a connection once its exchanges are over.
func (p *pool) retire(c *conn) {
	p.unready(c)
	if !c.closing {
		c.closing = true
		c.codec.Close(true)
	}
}

// OnClosed implements message.ClientObserver.
func (c *conn) OnClosed(message.ClientConn, message.ResetCode, error) {
	p := c.pool
	if c.codec == nil { // never handed over: its dial reports the failure
		return
	}
	ours := c.closing
	c.closing = true
	p.unready(c)
	if i := slices.Index(p.all, c); i >= 0 {
		p.host.disconnected(ours)
		p.all = slices.Delete(p.all, i, i+1)
		p.connections--
		if !c.trunk {
			p.host.cluster.shared.connectionDone()
		}
	}
	p.dialMore()
	p.host.maybeForget()
}

func (p *pool) idleTimeout() time.Duration {
	if t := p.host.cluster.config.IdleTimeout; t > 0 {
		return t
	}
	return defaultIdle
}

// armSweep makes sure that idle connections are looked at; one timer per pool
// serves them all, so that using a connection costs no timer work.
func (p *pool) armSweep(d time.Duration) {
	if p.sweepArmed {
		return
	}
	if p.sweep == nil {
		p.sweep = p.manager().clock.NewTimer(p.sweepIdle)
	}
	p.sweepArmed = true
	p.sweep.Arm(d)
}

func (p *pool) sweepIdle() {
	p.sweepArmed = false
	now, timeout := p.manager().clock.Now(), int64(p.idleTimeout())
	next := int64(math.MaxInt64)
	for _, c := range slices.Clone(p.ready) {
		if c.codec.Active() > 0 {
			continue
		}
		if left := c.idleSince + timeout - now; left > 0 {
			next = min(next, left)
			continue
		}
		p.host.cluster.stats.Counts[CxIdleTimeout]++
		p.retire(c)
	}
	if next != math.MaxInt64 {
		p.armSweep(time.Duration(next))
	}
}

// settingsChanged looks at idle connections again after a new configuration.
func (p *pool) settingsChanged() {
	if p.sweepArmed {
		p.sweep.Disarm()
		p.sweepIdle()
	}
}

// drain takes the pool out of use. With repick, waiting requests ask again and
// meet the endpoints of today; without, they are still served here.
func (p *pool) drain(repick bool) {
	p.draining = true
	for _, c := range slices.Clone(p.ready) {
		p.retire(c)
	}
	for _, c := range p.all {
		if !c.closing && c.codec.Active() == 0 {
			p.retire(c)
		}
	}
	if !repick {
		return
	}
	var again []*Request
	for r := p.waiting.pop(); r != nil; r = p.waiting.pop() {
		p.host.cluster.shared.pendingDone()
		p.host.active--
		again = append(again, r)
	}
	p.trimDials()
	for _, r := range again {
		p.host.cluster.m.Open(r)
	}
}

// queue is a first-in first-out list of requests that are linked through
// themselves.
type queue struct {
	first, last *Request
	len         int
}

func (q *queue) push(r *Request) {
	r.prev, r.next = q.last, nil
	if q.last == nil {
		q.first = r
	} else {
		q.last.next = r
	}
	q.last = r
	q.len++
}

func (q *queue) pop() *Request {
	r := q.first
	if r != nil {
		q.remove(r)
	}
	return r
}

func (q *queue) remove(r *Request) {
	if r.prev == nil {
		q.first = r.next
	} else {
		r.prev.next = r.next
	}
	if r.next == nil {
		q.last = r.prev
	} else {
		r.next.prev = r.prev
	}
	r.next, r.prev = nil, nil
	q.len--
}
