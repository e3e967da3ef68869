package dns

import (
	"net/netip"
	"strings"
)

// Entry is one host of the mesh.
type Entry struct {
	// Host is the full name, or *.suffix.
	Host string
	IPs  []netip.Addr
	// Namespace and ShortName are set for Kubernetes services, which are also
	// known by their short names.
	Namespace, ShortName string
}

// Table maps names to addresses. It never changes after NewTable.
type Table struct {
	hosts map[string][]netip.Addr
	// wild is by suffix with its leading dot.
	wild map[string][]netip.Addr
}

// NewTable builds a table as seen from a namespace: NAME alone is a service of that
// namespace, NAME.NAMESPACE and NAME.NAMESPACE.svc are services of any. An
// explicit host wins over a short name.
func NewTable(entries []Entry, namespace string) *Table {
	t := &Table{hosts: map[string][]netip.Addr{}, wild: map[string][]netip.Addr{}}
	for _, e := range entries {
		host := strings.TrimSuffix(strings.ToLower(e.Host), ".")
		if suffix, ok := strings.CutPrefix(host, "*"); ok && strings.HasPrefix(suffix, ".") {
			t.wild[suffix] = append(t.wild[suffix], e.IPs...)
			continue
		}
		t.hosts[host] = append(t.hosts[host], e.IPs...)
	}
	for _, e := range entries {
		if e.ShortName == "" {
			continue
		}
		names := []string{e.ShortName + "." + e.Namespace, e.ShortName + "." + e.Namespace + ".svc"}
		if e.Namespace == namespace {
			names = append(names, e.ShortName)
		}
		for _, n := range names {
			n = strings.ToLower(n)
			if _, ok := t.hosts[n]; !ok {
				t.hosts[n] = e.IPs
			}
		}
	}
	return t
}

// Lookup answers for a name in lower case without a final dot. The longest
// wildcard wins.
func (t *Table) Lookup(name string) Answer {
	if ips, ok := t.hosts[name]; ok {
		return Answer{Known: true, IPs: ips}
	}
	for rest := name; ; {
		i := strings.IndexByte(rest, '.')
		if i < 0 {
			return Answer{}
		}
		if ips, ok := t.wild[rest[i:]]; ok {
			return Answer{Known: true, IPs: ips}
		}
		rest = rest[i+1:]
	}
}
