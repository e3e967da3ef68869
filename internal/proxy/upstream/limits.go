package upstream

import (
	"math"
	"net/netip"
	"sync"
	"sync/atomic"

	"lateen.dev/lateen/internal/proxy/snapshot"
)

// Shared is the state that all managers of a process have in common: how much
// of each cluster's limits is in use, and which endpoints are ejected. It is
// safe for concurrent use.
type Shared struct {
	mu       sync.Mutex
	clusters map[string]*sharedCluster
}

// NewShared returns an empty state.
func NewShared() *Shared { return &Shared{clusters: map[string]*sharedCluster{}} }

// sharedCluster counts for one cluster. A counter is touched only when its
// limit is configured: an atomic write per request costs more than it seems
// once loops share the line.
type sharedCluster struct {
	limits atomic.Pointer[snapshot.Limits]

	connections, pending, requests, retries atomic.Int64

	// generation rises with every ejection and return, so that loops know when
	// to look again.
	generation atomic.Uint64
	mu         sync.Mutex
	detector   *Detector
	config     *snapshot.Outlier
	lastTick   int64
	flags      map[netip.AddrPort]*hostFlags
}

// hostFlags is what loops read of an endpoint's outlier state.
type hostFlags struct {
	ejected atomic.Bool
	// suspect says that failures are counted against the endpoint; a success of
	// one that is not suspect needs no lock.
	suspect atomic.Bool
}

// cluster returns the shared state of a cluster and brings its settings up to
// date.
func (s *Shared) cluster(c *snapshot.Cluster) *sharedCluster {
	s.mu.Lock()
	sc := s.clusters[c.Name]
	if sc == nil {
		sc = &sharedCluster{flags: map[netip.AddrPort]*hostFlags{}}
		s.clusters[c.Name] = sc
	}
	s.mu.Unlock()
	limits := c.Limits
	sc.limits.Store(&limits)
	return sc
}

// forget drops the state of a cluster that no snapshot names any more.
func (s *Shared) forget(name string) {
	s.mu.Lock()
	delete(s.clusters, name)
	s.mu.Unlock()
}

// Ejected lists the endpoints of a cluster that outlier detection took out.
func (s *Shared) Ejected(cluster string) []netip.AddrPort {
	s.mu.Lock()
	sc := s.clusters[cluster]
	s.mu.Unlock()
	if sc == nil {
		return nil
	}
	sc.mu.Lock()
	defer sc.mu.Unlock()
	if sc.detector == nil {
		return nil
	}
	return sc.detector.Ejected()
}

// take counts one more if that stays within limit. over admits one beyond it.
func take(n *atomic.Int64, limit uint32, over bool) bool {
	if limit == math.MaxUint32 {
		return true
	}
	if n.Add(1) > int64(limit) && !over {
		n.Add(-1)
		return false
	}
	return true
}

// giveBack never goes below zero: a limit that was switched on while something
// was in flight has not counted it.
func giveBack(n *atomic.Int64, limit uint32) {
	if limit == math.MaxUint32 {
		return
	}
	for {
		v := n.Load()
		if v <= 0 || n.CompareAndSwap(v, v-1) {
			return
		}
	}
}

// connectionStart counts a new connection. force admits it over the limit: a
// loop without any connection to the cluster always gets one, or what waits
// there would never be served (Envoy does the same).
func (s *sharedCluster) connectionStart(force bool) bool {
	return take(&s.connections, s.limits.Load().MaxConnections, force)
}

func (s *sharedCluster) connectionDone() { giveBack(&s.connections, s.limits.Load().MaxConnections) }

func (s *sharedCluster) pendingStart() bool {
	return take(&s.pending, s.limits.Load().MaxPending, false)
}
func (s *sharedCluster) pendingDone() { giveBack(&s.pending, s.limits.Load().MaxPending) }

func (s *sharedCluster) requestStart() bool {
	l := s.limits.Load()
	if l.RetryBudgetPercent > 0 && l.MaxRequests == math.MaxUint32 {
		s.requests.Add(1) // the budget is a share of these
		return true
	}
	return take(&s.requests, l.MaxRequests, false)
}

func (s *sharedCluster) requestDone() {
	l := s.limits.Load()
	if l.RetryBudgetPercent > 0 {
		giveBack(&s.requests, 0)
		return
	}
	giveBack(&s.requests, l.MaxRequests)
}

func (s *sharedCluster) retryStart() bool {
	l := s.limits.Load()
	if l.RetryBudgetPercent <= 0 {
		return take(&s.retries, l.MaxRetries, false)
	}
	active := s.requests.Load() + s.pending.Load()
	allowed := max(int64(l.RetryBudgetMin), int64(l.RetryBudgetPercent/100*float64(active)))
	if s.retries.Add(1) > allowed {
		s.retries.Add(-1)
		return false
	}
	return true
}

func (s *sharedCluster) retryDone() {
	l := s.limits.Load()
	if l.RetryBudgetPercent > 0 {
		giveBack(&s.retries, 0)
		return
	}
	giveBack(&s.retries, l.MaxRetries)
}
