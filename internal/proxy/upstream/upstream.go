// Package upstream gives the request path its upstream exchanges: it picks an
// endpoint, keeps pools of connections, queues what must wait, and remembers
// which endpoints fail. It sits between stream (which wants an exchange with a
// cluster) and a Dialer (which makes connections; the wiring in package proxy
// does it with sockets and TLS, tests with fakes).
//
// A Manager belongs to one loop and is not safe for concurrent use. What users
// mean per process (connection-pool limits, retry limits, outlier ejection)
// lives in Shared, which all managers of a process have in common; loops reach
// it by atomics, and only for clusters that configure it.
//
// State is keyed by cluster name and endpoint address, so it survives a new
// snapshot: pools keep their connections, balancers their position, ejected
// endpoints stay ejected. Connections to endpoints that went away are drained.
package upstream

import (
	"net/netip"
	"time"

	"lateen.dev/lateen/internal/proxy/clock"
	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// Target is one connection to be made.
type Target struct {
	Addr netip.AddrPort
	// TLS is nil for plaintext. SNI is the server name to send, already chosen
	// between the configured one and the request's host.
	TLS *snapshot.UpstreamTLS
	SNI string
	// Speak is what will be spoken on the connection.
	Speak snapshot.Speak
	// H2 are the options of HTTP/2.
	H2 snapshot.HTTP2Options
	// Timeout bounds TCP connect and TLS handshake together.
	Timeout   time.Duration
	Mark      uint32
	Bind      netip.Addr
	Keepalive *snapshot.Keepalive
	// Cluster is the name, for logs.
	Cluster string
}

// Dialer makes connections for one loop. done is called exactly once on that
// loop, possibly before the method returns, unless cancel was called first. The
// ClientConn that DialHTTP makes says in its Conn which protocol it speaks, and
// whether it is a trunk.
type Dialer interface {
	DialHTTP(t Target, o message.ClientObserver, done func(message.ClientConn, *Error)) (cancel func())
	DialTCP(t Target, done func(message.Transport, *Error)) (cancel func())
}

// Resolver looks up the addresses of a name for DNS clusters. done is called
// exactly once on the loop that asked; the resolver bounds its own time.
type Resolver interface {
	Resolve(host string, done func(addrs []netip.Addr, err error))
}

// Error says why an exchange or connection could not be opened. Reason is the
// transport failure in Envoy's spelling ("delayed connect error: Connection
// refused"); it goes to records and never to a client.
type Error struct {
	// Code is the kind of failure; ResetNone when there was no endpoint.
	Code message.ResetCode
	// NoHost: the cluster has no endpoint fit for traffic (response flag UH).
	NoHost bool
	// DNS: the cluster's name did not resolve (response flag DF).
	DNS    bool
	Reason string
}

// Error implements error.
func (e *Error) Error() string {
	switch {
	case e.DNS:
		return "resolve upstream: " + e.Reason
	case e.NoHost:
		return "no healthy upstream"
	case e.Code == message.ResetOverflow:
		return "upstream overflow: " + e.Reason
	case e.Code == message.ResetConnectTimeout:
		return "connect upstream: timeout"
	}
	return "connect upstream: " + e.Reason
}

// Waiter is told how a Request went: exactly one of the calls happens, possibly
// before Open returns, and none after Cancel.
type Waiter interface {
	// OnOpen says that the exchange is open on s. fresh means that it is the
	// first one on its connection.
	OnOpen(s message.Sender, fresh bool)
	OnUnavailable(err *Error)
}

// Request asks for one exchange with a cluster. The caller owns the memory and
// may use it again after Finish, Cancel or OnUnavailable.
type Request struct {
	Cluster *snapshot.Cluster
	// Hash chooses the endpoint of consistent balancing when Hashed is set.
	Hash   uint64
	Hashed bool
	// Tried are endpoints to avoid while another one exists.
	Tried []netip.AddrPort
	// OriginalDst is where the client wanted to go, for ORIGINAL_DST clusters.
	OriginalDst netip.AddrPort
	// Downstream is the protocol the client speaks, for clusters that follow it.
	Downstream message.Protocol
	// Authority is the host the request is for, for automatic SNI. Borrowed
	// during Open.
	Authority []byte
	// Receiver gets the exchange's events.
	Receiver message.Receiver
	Waiter   Waiter

	// Endpoint is the chosen endpoint, set before Waiter is called unless
	// there was none; Address is its socket address.
	Endpoint *snapshot.Endpoint
	Address  netip.AddrPort

	host       *host
	pool       *pool
	conn       *conn
	cluster    *cluster
	next, prev *Request
	state      requestState
}

type requestState uint8

const (
	requestIdle requestState = iota
	requestResolving
	requestWaiting
	requestOpen
)

// Outcome is how an exchange ended, as outlier detection counts it.
type Outcome struct {
	// Status is the response status, 0 if no response came.
	Status int
	// Reset is why no complete response came; ResetNone and ResetCancel are not
	// held against the endpoint.
	Reset message.ResetCode
	// TimedOut: the endpoint did not answer in time; counts like a 504.
	TimedOut bool
}

// Options are what a Manager is made of. All are required but Resolver, without
// which DNS clusters have no endpoints.
type Options struct {
	Clock    clock.Clock
	Rand     func() uint64
	Dialer   Dialer
	Resolver Resolver
	Shared   *Shared
}

// Manager gives exchanges and connections to one loop.
type Manager struct {
	clock    clock.Clock
	rand     func() uint64
	dialer   Dialer
	resolver Resolver
	shared   *Shared

	clusters map[string]*cluster
	snap     *snapshot.Snapshot
	closed   bool
}

// NewManager returns a manager without clusters; they come with Apply.
func NewManager(o Options) *Manager {
	return &Manager{
		clock: o.Clock, rand: o.Rand, dialer: o.Dialer, resolver: o.Resolver, shared: o.Shared,
		clusters: map[string]*cluster{},
	}
}

// Open asks for an exchange. The outcome arrives at r.Waiter.
func (m *Manager) Open(r *Request) {
	r.state, r.host, r.pool, r.conn = requestIdle, nil, nil, nil
	r.Endpoint, r.Address = nil, netip.AddrPort{}
	c := m.cluster(r.Cluster)
	r.cluster = c
	if c.resolving() {
		c.park(r)
		return
	}
	c.open(r)
}

// Cancel withdraws a request that is still waiting. It does nothing for one
// that is open: reset its Sender and Finish it.
func (m *Manager) Cancel(r *Request) {
	switch r.state {
	case requestResolving:
		r.cluster.unpark(r)
	case requestWaiting:
		p := r.pool
		p.waiting.remove(r)
		r.cluster.stats.Counts[RqCancelled]++
		r.cluster.shared.pendingDone()
		r.host.active--
		p.trimDials()
		p.host.maybeForget()
	case requestIdle, requestOpen:
		return
	}
	r.state = requestIdle
}

// Finish says that an open exchange is over in both directions or was reset.
// It must be called exactly once for every OnOpen.
func (m *Manager) Finish(r *Request, o Outcome) {
	if r.state != requestOpen {
		return
	}
	r.state = requestIdle
	h := r.host
	h.active--
	r.cluster.shared.requestDone()
	h.finished(o)
	r.cluster.observe(h, o)
	r.pool.finished(r.conn)
	h.maybeForget()
}

// RetryStart asks whether the cluster's limits allow one more retry in flight.
// Each true must be paid back by RetryDone.
func (m *Manager) RetryStart(c *snapshot.Cluster) bool {
	living := m.cluster(c)
	if !living.shared.retryStart() {
		living.stats.Counts[RqRetryOverflow]++
		return false
	}
	return true
}

// RetryDone gives back what RetryStart took.
func (m *Manager) RetryDone(c *snapshot.Cluster) { m.cluster(c).shared.retryDone() }

// Close drains every pool: idle connections close at once, busy ones when
// their exchange ends.
func (m *Manager) Close() {
	m.closed = true
	for _, c := range m.clusters {
		c.close()
	}
}

// Active is the number of exchanges and waiting requests.
func (m *Manager) Active() int {
	n := 0
	for _, c := range m.clusters {
		n += c.parked()
		for _, h := range c.hosts {
			n += h.active
		}
		for _, h := range c.dynamic {
			n += h.active
		}
	}
	return n
}
