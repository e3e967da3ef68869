package upstream

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"lateen.dev/lateen/internal/proxy/clock"
	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// bed is a Manager with a manual clock and connections that tests complete.
type bed struct {
	t      *testing.T
	clock  *clock.Manual
	m      *Manager
	shared *Shared
	dials  []*fakeDial
	names  map[string][]netip.Addr
	asked  int
	auto   bool // dials succeed at once
}

func newBed(t *testing.T) *bed {
	b := &bed{t: t, clock: clock.NewManual(time.Unix(1e9, 0)), shared: NewShared(), names: map[string][]netip.Addr{}, auto: true}
	b.m = b.manager()
	return b
}

func (b *bed) manager() *Manager {
	return NewManager(Options{Clock: b.clock, Rand: rand.New(rand.NewPCG(7, 9)).Uint64, Dialer: b, Resolver: b, Shared: b.shared})
}

type fakeDial struct {
	target    Target
	observer  message.ClientObserver
	done      func(message.ClientConn, *Error)
	tcp       func(message.Transport, *Error)
	cancelled bool
	conn      *fakeConn
}

func (b *bed) DialHTTP(t Target, o message.ClientObserver, done func(message.ClientConn, *Error)) func() {
	d := &fakeDial{target: t, observer: o, done: done}
	b.dials = append(b.dials, d)
	if b.auto {
		d.succeed()
	}
	return func() { d.cancelled = true }
}

func (b *bed) DialTCP(t Target, done func(message.Transport, *Error)) func() {
	d := &fakeDial{target: t, tcp: done}
	b.dials = append(b.dials, d)
	return func() { d.cancelled = true }
}

func (b *bed) Resolve(host string, done func([]netip.Addr, error)) {
	b.asked++
	if a := b.names[host]; a != nil {
		done(a, nil)
		return
	}
	done(nil, fmt.Errorf("no such host %s", host))
}

func (d *fakeDial) succeed() {
	d.conn = &fakeConn{dial: d, most: 1}
	d.done(d.conn, nil)
}

// succeedWith completes the dial with a connection of many exchanges.
func (d *fakeDial) succeedWith(most int, info message.Conn) *fakeConn {
	d.conn = &fakeConn{dial: d, most: most, info: info}
	d.done(d.conn, nil)
	return d.conn
}

func (d *fakeDial) fail(code message.ResetCode) { d.done(nil, &Error{Code: code}) }

// fakeConn is an upstream connection with room for most exchanges at once; one
// is HTTP/1.1.
type fakeConn struct {
	dial     *fakeDial
	most     int
	used     int
	active   int
	draining bool
	closed   bool
	info     message.Conn
}

func (c *fakeConn) Open(message.Receiver) message.Sender { c.used++; c.active++; return nil }
func (c *fakeConn) Capacity() int {
	if c.draining || c.closed {
		return 0
	}
	return max(c.most-c.active, 0)
}

func (c *fakeConn) Active() int         { return c.active }
func (c *fakeConn) Used() int           { return c.used }
func (c *fakeConn) Conn() *message.Conn { return &c.info }
func (c *fakeConn) Close(graceful bool) {
	c.draining = true
	if c.active == 0 || !graceful {
		c.die()
	}
}

// die closes the connection as the peer or we would.
func (c *fakeConn) die() {
	if !c.closed {
		c.closed = true
		c.dial.observer.OnClosed(c, message.ResetNone, nil)
	}
}

// finish ends an exchange on the connection.
func (c *fakeConn) finish() {
	c.active--
	if c.draining {
		if c.active == 0 {
			c.die()
		}
		return
	}
	c.dial.observer.OnCapacity(c)
}

// call is one request and what became of it.
type call struct {
	b     *bed
	req   Request
	open  bool
	fresh bool
	err   *Error
	m     *Manager
}

func (c *call) OnOpen(_ message.Sender, fresh bool) { c.open, c.fresh = true, fresh }
func (c *call) OnUnavailable(err *Error)            { c.err = err }

func (b *bed) open(cluster *snapshot.Cluster, edit ...func(*Request)) *call {
	c := &call{b: b, m: b.m}
	c.req = Request{Cluster: cluster, Waiter: c}
	for _, e := range edit {
		e(&c.req)
	}
	c.m.Open(&c.req)
	return c
}

// finish ends the call with a status.
func (c *call) finish(status int) {
	conn := c.req.conn.codec.(*fakeConn)
	c.m.Finish(&c.req, Outcome{Status: status})
	conn.finish()
}

// once opens and finishes a call and returns the endpoint's last byte.
func (b *bed) once(cluster *snapshot.Cluster, edit ...func(*Request)) byte {
	b.t.Helper()
	c := b.open(cluster, edit...)
	if !c.open {
		b.t.Fatalf("not open: %v", c.err)
	}
	c.finish(200)
	return c.req.Address.Addr().As4()[3]
}

// makeCluster has endpoints 10.0.0.1, .2, … with weights.
func makeCluster(lb snapshot.LBPolicy, weights ...uint32) *snapshot.Cluster {
	c := &snapshot.Cluster{Name: "c", LB: lb, Warm: true, ConnectTimeout: time.Second, Limits: snapshot.Limits{
		MaxConnections: math.MaxUint32, MaxPending: math.MaxUint32, MaxRequests: math.MaxUint32, MaxRetries: math.MaxUint32,
	}}
	for i, w := range weights {
		c.Endpoints = append(c.Endpoints, &snapshot.Endpoint{Addr: addr(i + 1), Weight: w})
	}
	return c
}

func addr(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80)
}

func snap(clusters ...*snapshot.Cluster) *snapshot.Snapshot {
	s := &snapshot.Snapshot{Clusters: map[string]*snapshot.Cluster{}}
	for _, c := range clusters {
		s.Clusters[c.Name] = c
	}
	return s
}
