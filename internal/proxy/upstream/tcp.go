package upstream

import (
	"net/netip"
	"slices"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// TCPRequest asks for one connection of its own to a cluster.
type TCPRequest struct {
	Cluster     *snapshot.Cluster
	Hash        uint64
	Hashed      bool
	OriginalDst netip.AddrPort
	// Done is called exactly once, possibly before DialTCP returns, and not
	// after Cancel.
	Done func(t message.Transport, err *Error)

	// Endpoint and Address are set before Done unless there was no endpoint.
	Endpoint *snapshot.Endpoint
	Address  netip.AddrPort

	host    *host
	cluster *cluster
	cancel  func()
	state   requestState
}

// HashSource chooses the endpoint of consistent balancing by the client's address.
func (r *TCPRequest) HashSource(a netip.Addr) { r.Hash, r.Hashed = HashAddr(a), a.IsValid() }

// DialTCP opens a connection. A connection counts against the cluster's
// connection limit until Release.
func (m *Manager) DialTCP(r *TCPRequest) {
	r.state, r.host, r.cancel = requestIdle, nil, nil
	c := m.cluster(r.Cluster)
	r.cluster = c
	if c.resolving() {
		r.state = requestResolving
		c.dns.tcp = append(c.dns.tcp, r)
		return
	}
	c.dialTCP(r)
}

func (r *TCPRequest) fail(err *Error) {
	r.state = requestIdle
	r.Done(nil, err)
}

func (c *cluster) dialTCP(r *TCPRequest) {
	h := c.choose(r.Hash, r.Hashed, nil, r.OriginalDst)
	if h == nil {
		r.fail(&Error{NoHost: true, DNS: c.dns != nil && c.dns.failed, Reason: c.whyNoHost()})
		return
	}
	r.host, r.Endpoint, r.Address = h, h.endpoint, h.addr
	if !c.shared.connectionStart(false) {
		c.stats.Counts[CxOverflow]++
		r.fail(&Error{Code: message.ResetOverflow, Reason: "too many connections"})
		return
	}
	h.active++
	h.tcp++
	h.connecting()
	r.state = requestWaiting
	cancel := c.m.dialer.DialTCP(h.target(h.sni(nil), snapshot.SpeakBytes), func(t message.Transport, err *Error) {
		if err != nil {
			r.state = requestIdle
			h.active--
			h.tcp--
			h.connectFailed(err)
			c.shared.connectionDone()
			c.observe(h, failure(err))
			h.maybeForget()
			r.Done(nil, err)
			return
		}
		r.state = requestOpen
		h.connected()
		c.observe(h, Outcome{Status: 200})
		r.Done(t, nil)
	})
	if r.state == requestWaiting {
		r.cancel = cancel
	}
}

// CancelTCP withdraws a request whose connection is not there yet.
func (m *Manager) CancelTCP(r *TCPRequest) {
	switch r.state {
	case requestResolving:
		if i := slices.Index(r.cluster.dns.tcp, r); i >= 0 {
			r.cluster.dns.tcp = slices.Delete(r.cluster.dns.tcp, i, i+1)
		}
	case requestWaiting:
		if r.cancel != nil {
			r.cancel()
		}
		r.host.active--
		r.host.tcp--
		r.cluster.shared.connectionDone()
		r.host.maybeForget()
	default:
		return
	}
	r.state = requestIdle
}

// Release says that a connection handed to Done is closed.
func (m *Manager) Release(r *TCPRequest) {
	if r.state != requestOpen {
		return
	}
	r.state = requestIdle
	r.host.active--
	r.host.tcp--
	r.cluster.stats.Counts[CxDestroy]++
	r.cluster.shared.connectionDone()
	r.host.maybeForget()
}
