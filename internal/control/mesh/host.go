package mesh

import (
	"maps"
	"slices"
	"strings"
)

// ResolveHost returns the fully qualified form of a host that an object of the
// given namespace names: a word without a dot is a Kubernetes Service of that
// namespace; everything else stays as it is, as in Istio.
func (m *Mesh) ResolveHost(host, namespace string) string {
	if host == "" || strings.Contains(host, "*") || strings.Contains(host, ".") {
		return host
	}
	return host + "." + namespace + ".svc." + m.DomainSuffix
}

// ServiceHost returns the host of a Kubernetes Service.
func (m *Mesh) ServiceHost(name, namespace string) string {
	return name + "." + namespace + ".svc." + m.DomainSuffix
}

// IsWildcard reports whether the host is a wildcard: "*" or "*.something".
func IsWildcard(host string) bool { return strings.HasPrefix(host, "*") }

// HostMatches reports whether pattern, which may be a wildcard, covers host. A
// wildcard host is covered if everything it covers is.
func HostMatches(pattern, host string) bool {
	if !IsWildcard(pattern) {
		return pattern == host
	}
	suffix := pattern[1:]
	if IsWildcard(host) {
		return strings.HasSuffix(host[1:], suffix)
	}
	return len(host) > len(suffix) && strings.HasSuffix(host, suffix) || suffix == ""
}

// HostsOverlap reports whether some host is covered by both patterns.
func HostsOverlap(a, b string) bool { return HostMatches(a, b) || HostMatches(b, a) }

// moreSpecific orders patterns so that the more specific one comes first: exact
// hosts before wildcards, longer wildcards before shorter ones.
func moreSpecific(a, b string) int {
	aw, bw := IsWildcard(a), IsWildcard(b)
	switch {
	case aw != bw && aw:
		return 1
	case aw != bw:
		return -1
	case aw && len(a) != len(b):
		return len(b) - len(a)
	}
	return strings.Compare(a, b)
}

// Shortnames returns every shorter form by which a proxy of the given namespace
// may call a Kubernetes service host, in Istio's order. Other hosts have none.
func (m *Mesh) Shortnames(host, namespace string) []string {
	suffix := ".svc." + m.DomainSuffix
	base, ok := strings.CutSuffix(host, suffix)
	if !ok {
		return nil
	}
	name, ns, ok := strings.Cut(base, ".")
	if !ok || strings.Contains(ns, ".") {
		return nil
	}
	if ns == namespace {
		return []string{name, name + "." + ns + ".svc", name + "." + ns}
	}
	return []string{name + "." + ns, name + "." + ns + ".svc"}
}

// selects reports whether every label of a non-empty selector is present.
func selects(selector, labels map[string]string) bool {
	return len(selector) > 0 && matches(selector, labels)
}

// matches is selects, except that an empty selector matches everything.
func matches(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// mostSpecific returns the index of the most specific pattern that covers host,
// the first of equals, or -1.
func mostSpecific(patterns []string, host string) int {
	best := -1
	for i, p := range patterns {
		if HostMatches(p, host) && (best < 0 || moreSpecific(p, patterns[best]) < 0) {
			best = i
		}
	}
	return best
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
