package upstream

import (
	"net/netip"
	"slices"
	"time"

	"lateen.dev/lateen/internal/proxy/clock"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// defaultRefresh is how often names are looked up unless configured.
const defaultRefresh = 5 * time.Second

// dnsState resolves the names of a STRICT_DNS or LOGICAL_DNS cluster. Requests
// that come before the first answer wait for it; afterwards the last good
// answer stays in force while the resolver fails.
type dnsState struct {
	cluster *cluster
	// answers holds the last good addresses of each name.
	answers map[string][]netip.Addr
	pending int
	round   int
	timer   clock.Timer
	// answered: the first round is over. failed: the last one found nothing.
	answered, failed bool
	reason           string
	waiting          []*Request
	tcp              []*TCPRequest
	stopped          bool
}

// startDNS begins a round of lookups for the present configuration.
func (c *cluster) startDNS() {
	if c.dns == nil {
		c.dns = &dnsState{cluster: c, answers: map[string][]netip.Addr{}}
		c.dns.timer = c.m.clock.NewTimer(c.dns.resolve)
	}
	c.dns.stopped = false
	c.dns.resolve()
}

// resolving says that no answer came yet.
func (c *cluster) resolving() bool { return c.dns != nil && !c.dns.answered }

func (c *cluster) park(r *Request) {
	r.state = requestResolving
	c.dns.waiting = append(c.dns.waiting, r)
}

func (c *cluster) unpark(r *Request) {
	if i := slices.Index(c.dns.waiting, r); i >= 0 {
		c.dns.waiting = slices.Delete(c.dns.waiting, i, i+1)
	}
}

func (c *cluster) parked() int {
	if c.dns == nil {
		return 0
	}
	return len(c.dns.waiting) + len(c.dns.tcp)
}

// failParked refuses what still waits for an answer.
func (c *cluster) failParked(err *Error) {
	if c.dns == nil {
		return
	}
	waiting, tcp := c.dns.waiting, c.dns.tcp
	c.dns.waiting, c.dns.tcp = nil, nil
	for _, r := range waiting {
		r.state = requestIdle
		r.Waiter.OnUnavailable(err)
	}
	for _, r := range tcp {
		r.fail(err)
	}
}

func (d *dnsState) stop() {
	d.stopped = true
	d.timer.Disarm()
	d.round++ // late answers count for nothing
}

// resolve asks for every name of the cluster once.
func (d *dnsState) resolve() {
	d.round++
	round := d.round
	names := map[string]bool{}
	for _, ep := range d.cluster.config.Endpoints {
		if ep.Host != "" {
			names[ep.Host] = true
		}
	}
	if len(names) == 0 || d.cluster.m.resolver == nil {
		d.reason = "no resolver"
		d.finish(nil)
		return
	}
	d.pending = len(names)
	for name := range names {
		d.cluster.m.resolver.Resolve(name, func(addrs []netip.Addr, err error) {
			if round != d.round {
				return
			}
			d.pending--
			if err == nil && len(addrs) > 0 {
				d.answers[name] = addrs
			}
			if d.pending == 0 {
				d.finish(err)
			}
		})
	}
}

// finish turns answers into endpoints and lets waiting requests go on.
func (d *dnsState) finish(err error) {
	c := d.cluster
	var eps []*snapshot.Endpoint
	for _, ep := range c.config.Endpoints {
		if ep.Host == "" {
			eps = append(eps, ep)
			continue
		}
		addrs := d.answers[ep.Host]
		if c.config.Type == snapshot.LogicalDNS && len(addrs) > 1 {
			addrs = addrs[:1]
		}
		for _, a := range addrs {
			one := *ep
			one.Addr = netip.AddrPortFrom(a, ep.Port)
			eps = append(eps, &one)
		}
	}
	d.answered, d.failed = true, len(eps) == 0
	if err != nil {
		d.reason = err.Error()
	}
	c.setHosts(eps)
	if !d.stopped {
		refresh := c.config.DNSRefresh
		if refresh <= 0 {
			refresh = defaultRefresh
		}
		d.timer.Arm(refresh)
	}
	waiting, tcp := d.waiting, d.tcp
	d.waiting, d.tcp = nil, nil
	for _, r := range waiting {
		r.state = requestIdle
		c.open(r)
	}
	for _, r := range tcp {
		c.dialTCP(r)
	}
}
