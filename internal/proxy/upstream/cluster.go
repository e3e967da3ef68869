package upstream

import (
	"cmp"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"lateen.dev/lateen/internal/proxy/clock"
	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// maxDynamicHosts bounds the endpoints that an ORIGINAL_DST cluster keeps.
const maxDynamicHosts = 65536

// cluster is one loop's living side of a snapshot.Cluster.
type cluster struct {
	m      *Manager
	config *snapshot.Cluster
	shared *sharedCluster
	hosts  []*host
	// dynamic are the endpoints of an ORIGINAL_DST cluster, by address.
	dynamic map[netip.AddrPort]*host
	balancer
	stats Stats

	outlierTimer clock.Timer
	dns          *dnsState
	removed      bool
}

// host is one loop's living side of an endpoint.
type host struct {
	cluster  *cluster
	endpoint *snapshot.Endpoint
	addr     netip.AddrPort
	tls      *snapshot.UpstreamTLS
	flags    *hostFlags // nil unless outlier detection is configured
	// active counts exchanges open or waiting on this loop.
	active int
	weight uint32
	// credit is the state of smooth weighted round robin.
	credit int64
	counts hostCounts
	// tcp counts connections given to TCPRequests, open or on the way.
	tcp     int
	pools   []*pool
	removed bool
}

// Apply takes over a new snapshot: clusters that are gone are drained, changed
// ones get their new endpoints and settings. Clusters come to life at their
// first use, except DNS clusters, which start to resolve.
func (m *Manager) Apply(s *snapshot.Snapshot) {
	m.snap = s
	for name, c := range m.clusters {
		next := s.Clusters[name]
		switch {
		case next == nil:
			c.remove()
		case next != c.config:
			c.update(next)
		}
	}
	for name, sc := range s.Clusters {
		if (sc.Type == snapshot.StrictDNS || sc.Type == snapshot.LogicalDNS) && m.clusters[name] == nil {
			m.cluster(sc)
		}
	}
}

// cluster returns the living cluster of a name. The newest snapshot wins over
// config: an exchange that still holds an older one gets today's endpoints.
func (m *Manager) cluster(config *snapshot.Cluster) *cluster {
	if c := m.clusters[config.Name]; c != nil && !c.removed {
		return c
	}
	if m.snap != nil {
		if newest := m.snap.Clusters[config.Name]; newest != nil {
			config = newest
		}
	}
	c := &cluster{m: m, shared: m.shared.cluster(config)}
	m.clusters[config.Name] = c
	c.update(config)
	return c
}

// update sets configuration and endpoints, keeping pools of endpoints that stay.
func (c *cluster) update(config *snapshot.Cluster) {
	c.config = config
	c.removed = false
	c.shared = c.m.shared.cluster(config)
	switch config.Type {
	case snapshot.OriginalDst:
		if c.dynamic == nil {
			c.dynamic = map[netip.AddrPort]*host{}
		}
		for _, h := range c.dynamic {
			h.setEndpoint(h.endpoint)
		}
	case snapshot.StrictDNS, snapshot.LogicalDNS:
		c.startDNS()
	default:
		c.setHosts(config.Endpoints)
	}
	c.armOutlier()
}

// setHosts makes the endpoints those of eps. An endpoint is known by address:
// its pools, counters and balancer position survive.
func (c *cluster) setHosts(eps []*snapshot.Endpoint) {
	known := make(map[netip.AddrPort]*host, len(c.hosts))
	for _, h := range c.hosts {
		known[h.addr] = h
	}
	next := make([]*host, 0, len(eps))
	before := len(known)
	for _, ep := range eps {
		if !ep.Addr.IsValid() {
			continue
		}
		h := known[ep.Addr]
		if h == nil {
			h = &host{cluster: c, addr: ep.Addr}
			before = -1 // a new one
		}
		delete(known, ep.Addr)
		h.setEndpoint(ep)
		next = append(next, h)
	}
	if before < 0 || len(known) > 0 {
		c.stats.Counts[MembershipChange]++
	}
	c.hosts = next
	c.shared.watch(c.config, next)
	c.balancer.rebuild(c)
	for _, h := range known {
		h.remove()
	}
}

// setEndpoint takes over what the control plane says about a host. A changed
// transport drains the connections made the old way.
func (h *host) setEndpoint(ep *snapshot.Endpoint) {
	tls := transportFor(h.cluster.config, ep)
	if h.endpoint != nil && !sameTLS(tls, h.tls) {
		h.drainPools()
	} else if h.endpoint != nil && h.tls != nil {
		tls = h.tls // equal: keep the identity that pools are known by
	}
	h.endpoint, h.tls, h.removed = ep, tls, false
	h.weight = max(1, ep.Weight)
	for _, p := range h.pools {
		p.settingsChanged()
	}
}

// transportFor picks the transport of an endpoint: the first whose match labels
// the endpoint has.
func transportFor(c *snapshot.Cluster, ep *snapshot.Endpoint) *snapshot.UpstreamTLS {
next:
	for i := range c.Transports {
		t := &c.Transports[i]
		for k, v := range t.Match {
			if ep.Labels[k] != v {
				continue next
			}
		}
		return t.TLS
	}
	return nil
}

// sameTLS compares what matters on the wire; compiled regexes make deep
// comparison conservative, which costs at most a drained pool.
func sameTLS(a, b *snapshot.UpstreamTLS) bool {
	return a == b || a != nil && b != nil && reflect.DeepEqual(a, b)
}

// remove drains an endpoint that is no longer in the cluster.
func (h *host) remove() {
	h.removed = true
	h.drainPools()
}

// drainPools retires all pools; what waits in them asks again.
func (h *host) drainPools() {
	pools := h.pools
	h.pools = nil
	for _, p := range pools {
		p.drain(true)
	}
}

// maybeForget drops an ORIGINAL_DST endpoint that nothing uses any more.
func (h *host) maybeForget() {
	c := h.cluster
	if c.dynamic == nil || h.active > 0 {
		return
	}
	for _, p := range h.pools {
		if p.connections+p.dialing > 0 {
			return
		}
	}
	if c.dynamic[h.addr] == h {
		delete(c.dynamic, h.addr)
	}
}

// remove drains the whole cluster. Its counters live on while something uses them.
func (c *cluster) remove() {
	c.removed = true
	c.stopTimers()
	c.failParked(&Error{NoHost: true, Reason: "cluster was removed"})
	hosts := c.hosts
	c.hosts = nil
	for _, h := range hosts {
		h.remove()
	}
	for _, h := range c.dynamic {
		h.remove()
	}
	clear(c.dynamic)
	c.balancer.rebuild(c)
	delete(c.m.clusters, c.config.Name)
	c.m.shared.forget(c.config.Name)
}

func (c *cluster) close() {
	c.stopTimers()
	c.failParked(&Error{NoHost: true, Reason: "proxy is shutting down"})
	for _, h := range c.hosts {
		for _, p := range h.pools {
			p.drain(false)
		}
	}
	for _, h := range c.dynamic {
		for _, p := range h.pools {
			p.drain(false)
		}
	}
}

func (c *cluster) stopTimers() {
	if c.outlierTimer != nil {
		c.outlierTimer.Disarm()
	}
	if c.dns != nil {
		c.dns.stop()
	}
}

// armOutlier keeps the interval timer running while detection is configured.
func (c *cluster) armOutlier() {
	if c.config.Outlier == nil {
		if c.outlierTimer != nil {
			c.outlierTimer.Disarm()
		}
		return
	}
	if c.outlierTimer == nil {
		c.outlierTimer = c.m.clock.NewTimer(func() {
			c.shared.tick(c.m.clock.Now())
			c.armOutlier()
		})
	}
	c.outlierTimer.Arm(outlierInterval(c.config.Outlier))
}

// observe reports an outcome to outlier detection.
func (c *cluster) observe(h *host, o Outcome) {
	if h.flags != nil {
		c.shared.observe(h, o, c.m.clock.Now())
	}
}

// open picks an endpoint and asks its pool.
func (c *cluster) open(r *Request) {
	h := c.choose(r.Hash, r.Hashed, r.Tried, r.OriginalDst)
	if h == nil {
		r.state = requestIdle
		r.Waiter.OnUnavailable(&Error{NoHost: true, DNS: c.dns != nil && len(c.hosts) == 0 && c.dns.failed, Reason: c.whyNoHost()})
		return
	}
	r.host, r.Endpoint, r.Address = h, h.endpoint, h.addr
	h.pool(r).open(r)
}

func (c *cluster) whyNoHost() string {
	if c.dns != nil && c.dns.failed {
		return c.dns.reason
	}
	return "no healthy upstream"
}

// choose picks an endpoint, or makes the one that the client asked for.
func (c *cluster) choose(hash uint64, hashed bool, tried []netip.AddrPort, dst netip.AddrPort) *host {
	if c.config.Type != snapshot.OriginalDst {
		return c.balancer.pick(c, hash, hashed, tried)
	}
	if !dst.IsValid() || dst.Port() == 0 {
		return nil
	}
	if c.config.PortOverride != 0 {
		dst = netip.AddrPortFrom(dst.Addr(), c.config.PortOverride)
	}
	if h := c.dynamic[dst]; h != nil {
		return h
	}
	if len(c.dynamic) >= maxDynamicHosts {
		return nil
	}
	h := &host{cluster: c, addr: dst}
	h.setEndpoint(&snapshot.Endpoint{Addr: dst, Port: dst.Port(), Weight: 1})
	c.dynamic[dst] = h
	return h
}

// target describes a connection to h.
func (h *host) target(sni string, speak snapshot.Speak) Target {
	c := h.cluster.config
	t := Target{
		Addr: h.addr, TLS: h.tls, SNI: sni, Speak: speak, H2: c.H2, Timeout: c.ConnectTimeout,
		Mark: c.Mark, Bind: c.Bind, Keepalive: c.TCPKeepalive, Cluster: c.Name,
	}
	if t.Timeout <= 0 {
		t.Timeout = 5 * time.Second // Envoy's default
	}
	return t
}

// sni is the server name to present for a request to authority.
func (h *host) sni(authority []byte) string {
	if h.tls == nil {
		return ""
	}
	if h.tls.AutoSNI && len(authority) > 0 {
		return hostOnly(string(authority))
	}
	return h.tls.SNI
}

// hostOnly strips a port and IPv6 brackets.
func hostOnly(authority string) string {
	if strings.HasPrefix(authority, "[") {
		if i := strings.IndexByte(authority, ']'); i > 0 {
			return authority[1:i]
		}
		return authority
	}
	if i := strings.LastIndexByte(authority, ':'); i >= 0 && strings.IndexByte(authority, ':') == i {
		return authority[:i]
	}
	return authority
}

// Status describes one endpoint for dumps.
type Status struct {
	Cluster     string
	Address     netip.AddrPort
	Endpoint    *snapshot.Endpoint
	Ejected     bool
	Active      int
	Connections int
	// Totals of this loop.
	CxTotal, CxConnectFail                 uint64
	RqTotal, RqSuccess, RqError, RqTimeout uint64
}

// Dump lists all living endpoints of this loop, by cluster and address.
func (m *Manager) Dump() []Status {
	var out []Status
	add := func(c *cluster, h *host) {
		s := Status{Cluster: c.config.Name, Address: h.addr, Endpoint: h.endpoint, Active: max(0, h.active-h.tcp), Connections: h.tcp}
		n := &h.counts
		s.CxTotal, s.CxConnectFail = n.CxTotal, n.CxConnectFail
		s.RqTotal, s.RqSuccess, s.RqError, s.RqTimeout = n.RqTotal, n.RqSuccess, n.RqError, n.RqTimeout
		s.Ejected = h.flags != nil && h.flags.ejected.Load()
		for _, p := range h.pools {
			s.Connections += p.connections
		}
		out = append(out, s)
	}
	for _, c := range m.clusters {
		for _, h := range c.hosts {
			add(c, h)
		}
		for _, h := range c.dynamic {
			add(c, h)
		}
	}
	slices.SortFunc(out, func(a, b Status) int {
		return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), a.Address.Compare(b.Address))
	})
	return out
}

// failure turns a dial error into the outcome that outlier detection counts.
func failure(err *Error) Outcome {
	if err.Code == message.ResetConnectTimeout {
		return Outcome{Reset: err.Code, TimedOut: true}
	}
	return Outcome{Reset: err.Code}
}
