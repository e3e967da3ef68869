package snapshot

import (
	"iter"
	"maps"
	"slices"
)

// Waiting is a listener that is held back, and what it waits for.
type Waiting struct {
	Listener string
	// For names a route table ("route NAME"), a cluster ("endpoints of NAME")
	// or a certificate ("secret NAME").
	For string
}

// Warmed returns the snapshot to put in force when next was compiled and active
// is in force: a listener comes in only when its route tables have arrived,
// the clusters they name have had their first endpoints answer, and its secrets
// are there. Until then the listener of active stays, or there is none.
// Clusters that a listener held back still names are carried over. A cluster
// that does not exist is not waited for: requests to it are answered 503, as in
// Envoy. secret says whether a secret is there; nil means that all are.
func Warmed(next, active *Snapshot, secret func(name string) bool) (*Snapshot, []Waiting) {
	if active == nil {
		active = &Snapshot{}
	}
	var waiting []Waiting
	out := next
	edit := func() {
		if out == next {
			c := *next
			c.Listeners, c.Clusters = maps.Clone(next.Listeners), maps.Clone(next.Clusters)
			out = &c
		}
	}
	for _, name := range slices.Sorted(maps.Keys(next.Listeners)) {
		l := next.Listeners[name]
		why := next.waits(l, secret)
		if why == "" {
			continue
		}
		waiting = append(waiting, Waiting{Listener: name, For: why})
		edit()
		old := active.Listeners[name]
		if old == nil {
			delete(out.Listeners, name)
			continue
		}
		out.Listeners[name] = old
		for cluster := range old.clusters() {
			if c := active.Clusters[cluster]; c != nil && out.Clusters[cluster] == nil {
				out.Clusters[cluster] = c
			}
		}
	}
	// A cluster that lost its warmth (changed EDS name) keeps serving as it was.
	for name, c := range next.Clusters {
		if old := active.Clusters[name]; !c.Warm && old != nil && old.Warm {
			edit()
			out.Clusters[name] = old
		}
	}
	if out != next {
		out.index()
	}
	return out, waiting
}

// waits says what a listener waits for, "" for nothing.
func (s *Snapshot) waits(l *Listener, secret func(string) bool) string {
	for f := range l.allChains() {
		if f.HTTP != nil && f.HTTP.Routes.Pending {
			return "route " + f.HTTP.RouteName
		}
		if secret == nil {
			continue
		}
		for name := range f.TLS.secrets() {
			if !secret(name) {
				return "secret " + name
			}
		}
	}
	for name := range l.clusters() {
		if c := s.Clusters[name]; c != nil && !c.Warm {
			return "endpoints of " + name
		}
	}
	return ""
}

func (l *Listener) allChains() iter.Seq[*FilterChain] {
	return func(yield func(*FilterChain) bool) {
		for _, f := range l.Chains {
			if !yield(f) {
				return
			}
		}
		if l.Default != nil {
			yield(l.Default)
		}
	}
}

// clusters yields the names of clusters that a listener sends to; names may
// come more than once.
func (l *Listener) clusters() iter.Seq[string] {
	return func(yield func(string) bool) {
		for f := range l.allChains() {
			if f.TCP != nil {
				for i := range f.TCP.Clusters {
					if !yield(f.TCP.Clusters[i].Cluster) {
						return
					}
				}
			}
			if f.HTTP == nil {
				continue
			}
			for _, h := range f.HTTP.Routes.Hosts {
				for _, r := range h.Routes {
					if !r.clusters(yield) {
						return
					}
				}
			}
		}
	}
}

func (r *Route) clusters(yield func(string) bool) bool {
	for i := range r.Clusters {
		if !yield(r.Clusters[i].Cluster) {
			return false
		}
	}
	for i := range r.Mirrors {
		if !yield(r.Mirrors[i].Cluster) {
			return false
		}
	}
	return true
}

func (d *DownstreamTLS) secrets() iter.Seq[string] {
	return func(yield func(string) bool) {
		if d == nil {
			return
		}
		for _, c := range d.Certificates {
			if !yield(c) {
				return
			}
		}
		if d.Validation != nil && d.Validation.RootSecret != "" {
			yield(d.Validation.RootSecret)
		}
	}
}

// EDSNames returns the endpoint resources that the clusters ask for, sorted.
func (s *Snapshot) EDSNames() []string {
	set := map[string]bool{}
	for _, c := range s.Clusters {
		if c.Type == EDS {
			set[c.EDSName] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// RouteNames returns the route tables that the listeners ask for, sorted.
func (s *Snapshot) RouteNames() []string {
	set := map[string]bool{}
	for _, l := range s.Listeners {
		for f := range l.allChains() {
			if f.HTTP != nil && f.HTTP.RouteName != "" {
				set[f.HTTP.RouteName] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// SecretNames returns every secret that listeners and clusters name, sorted.
func (s *Snapshot) SecretNames() []string {
	set := map[string]bool{}
	for _, l := range s.Listeners {
		for f := range l.allChains() {
			for name := range f.TLS.secrets() {
				set[name] = true
			}
		}
	}
	for _, c := range s.Clusters {
		for i := range c.Transports {
			t := c.Transports[i].TLS
			if t == nil {
				continue
			}
			if t.Certificate != "" {
				set[t.Certificate] = true
			}
			if t.Validation != nil && t.Validation.RootSecret != "" {
				set[t.Validation.RootSecret] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(set))
}
