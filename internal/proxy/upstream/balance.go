package upstream

import (
	"net/netip"
	"slices"
	"sort"

	"lateen.dev/lateen/internal/proxy/snapshot"
)

// balancer holds what picking needs: the endpoints fit for traffic, by
// priority, and the position of the algorithm. It is rebuilt when endpoints
// change or one is ejected or returns.
type balancer struct {
	generation uint64
	levels     []level
	// load is the share of traffic of each level in percent, cumulated.
	load []uint32
}

// level is one priority.
type level struct {
	hosts []*host
	// equal says that all weights are the same.
	equal bool
	// sums are cumulated weights for weighted random choice.
	sums []uint64
	next uint64 // round robin position
	ring ring
}

// overprovisioning is Envoy's factor: a level takes all traffic while at least
// 1/1.4 of it is healthy.
const overprovisioning = 140

// rebuild computes the levels from scratch.
func (b *balancer) rebuild(c *cluster) {
	b.generation = c.shared.generation.Load()
	old := b.levels
	b.levels, b.load = nil, nil
	if len(c.hosts) == 0 {
		return
	}
	var priorities []uint32
	for _, h := range c.hosts {
		if !slices.Contains(priorities, h.endpoint.Priority) {
			priorities = append(priorities, h.endpoint.Priority)
		}
	}
	slices.Sort(priorities)
	var health []int
	for i, p := range priorities {
		l, percent := buildLevel(c, p)
		if i < len(old) {
			l.next = old[i].next
		} else {
			l.next = c.m.rand()
		}
		b.levels = append(b.levels, l)
		health = append(health, percent)
	}
	b.load = spread(health)
}

// buildLevel collects the endpoints of one priority that may be used, and says
// how healthy it is in percent. Below the panic threshold all are used.
func buildLevel(c *cluster, priority uint32) (level, int) {
	var all, healthy, degraded []*host
	for _, h := range c.hosts {
		if h.endpoint.Priority != priority {
			continue
		}
		all = append(all, h)
		switch {
		case h.flags != nil && h.flags.ejected.Load():
		case h.endpoint.Health == snapshot.Unhealthy || h.endpoint.Health == snapshot.Draining:
		case h.endpoint.Health == snapshot.Degraded:
			degraded = append(degraded, h)
		default:
			healthy = append(healthy, h)
		}
	}
	use := healthy
	if len(use) == 0 {
		use = degraded
	}
	percent := 100 * len(use) / len(all)
	if percent < int(c.config.PanicThreshold) {
		use, percent = all, 100
	}
	l := level{hosts: use, equal: true}
	sum := uint64(0)
	for _, h := range use {
		l.equal = l.equal && h.weight == use[0].weight
		sum += uint64(h.weight)
		l.sums = append(l.sums, sum)
	}
	switch c.config.LB {
	case snapshot.RingHash:
		l.ring = newRing(use, c.config.MinRingSize)
	case snapshot.Maglev:
		l.ring = newMaglev(use, c.config.MaglevTable)
	}
	return l, percent
}

// spread distributes traffic over priorities: each takes what its health,
// overprovisioned, allows; the rest falls to the next. The result is cumulated
// and ends at 100 unless nothing is healthy.
func spread(health []int) []uint32 {
	total := 0
	for _, h := range health {
		total += min(100, h*overprovisioning/100)
	}
	load := make([]uint32, len(health))
	left, sum, last := 100, 0, -1
	for i, h := range health {
		share := min(100, h*overprovisioning/100)
		if total < 100 && total > 0 {
			share = share * 100 / total // too little everywhere: scale up
		}
		share = min(share, left)
		left -= share
		sum += share
		load[i] = uint32(sum)
		if share > 0 {
			last = i
		}
	}
	if last >= 0 {
		for i := last; i < len(load); i++ {
			load[i] = 100
		}
	}
	return load
}

// pick chooses an endpoint for one attempt. It avoids those already tried by
// the same request while another one exists, so that a retry tells us
// something new.
func (b *balancer) pick(c *cluster, hash uint64, hashed bool, tried []netip.AddrPort) *host {
	if b.generation != c.shared.generation.Load() {
		b.rebuild(c)
	}
	l := b.level(c)
	if l == nil || len(l.hosts) == 0 {
		return nil
	}
	if len(l.hosts) == 1 {
		return l.hosts[0]
	}
	h := l.choose(c, hash, hashed)
	if len(tried) == 0 || !slices.Contains(tried, h.addr) {
		return h
	}
	for range len(l.hosts) {
		if hashed && l.ring.points != nil {
			hash = mix(hash + 1)
		}
		if o := l.choose(c, hash, hashed); !slices.Contains(tried, o.addr) {
			return o
		}
	}
	for _, o := range l.hosts { // chance did not help: look at every one
		if !slices.Contains(tried, o.addr) {
			return o
		}
	}
	return h
}

// level draws the priority for one pick.
func (b *balancer) level(c *cluster) *level {
	if len(b.levels) == 0 {
		return nil
	}
	if b.load[0] >= 100 {
		return &b.levels[0]
	}
	n := uint32(c.m.rand() % 100)
	for i := range b.load {
		if n < b.load[i] {
			return &b.levels[i]
		}
	}
	return nil
}

func (l *level) choose(c *cluster, hash uint64, hashed bool) *host {
	switch c.config.LB {
	case snapshot.RingHash, snapshot.Maglev:
		if !hashed {
			hash = c.m.rand()
		}
		return l.ring.at(hash, c.config.LB == snapshot.Maglev)
	case snapshot.Random:
		return l.random(c.m.rand())
	case snapshot.RoundRobin:
		return l.roundRobin()
	}
	return l.leastRequest(c)
}

// random draws by weight.
func (l *level) random(n uint64) *host {
	if l.equal {
		return l.hosts[n%uint64(len(l.hosts))]
	}
	n %= l.sums[len(l.sums)-1]
	i := sort.Search(len(l.sums), func(i int) bool { return l.sums[i] > n })
	return l.hosts[i]
}

// roundRobin takes endpoints in turn; with weights it spreads the heavier ones
// evenly (smooth weighted round robin) instead of serving them in a row.
func (l *level) roundRobin() *host {
	if l.equal {
		h := l.hosts[l.next%uint64(len(l.hosts))]
		l.next++
		return h
	}
	var best *host
	for _, h := range l.hosts {
		h.credit += int64(h.weight)
		if best == nil || h.credit > best.credit {
			best = h
		}
	}
	best.credit -= int64(l.sums[len(l.sums)-1])
	return best
}

// leastRequest draws a few endpoints by weight and takes the one with the least
// in flight for its weight: "power of two choices".
func (l *level) leastRequest(c *cluster) *host {
	choices := max(2, int(c.config.ChoiceCount))
	best := l.random(c.m.rand())
	for range choices - 1 {
		h := l.random(c.m.rand())
		// Weights are in the draw already; equal load per weight is the aim.
		if uint64(h.active)*uint64(best.weight) < uint64(best.active)*uint64(h.weight) {
			best = h
		}
	}
	return best
}
