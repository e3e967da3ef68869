package snapshot

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routepb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
)

// Type URLs of the resources that Compile takes.
const (
	TypeListener = typePrefix + "envoy.config.listener.v3.Listener"
	TypeRoute    = typePrefix + "envoy.config.route.v3.RouteConfiguration"
	TypeCluster  = typePrefix + "envoy.config.cluster.v3.Cluster"
	TypeEndpoint = typePrefix + "envoy.config.endpoint.v3.ClusterLoadAssignment"
)

// Names of the listeners that receive captured connections.
const (
	virtualInbound  = "virtualInbound"
	virtualOutbound = "virtualOutbound"
)

// Resources is a complete set of xDS resources by name, each either the message
// itself or an *anypb.Any that holds it. A resource whose message is the very
// same pointer as the last time counts as unchanged.
type Resources struct {
	Listeners, Clusters, Endpoints, Routes map[string]proto.Message
}

// sources remembers what the tables of a snapshot were made from.
type sources struct {
	listeners map[string]listenerSource
	clusters  map[string]clusterSource
	routes    map[string]routeSource
}

type listenerSource struct {
	message  proto.Message
	listener *Listener
	warnings []Rejected
}

type clusterSource struct {
	message, endpoints proto.Message
	cluster            *Cluster
}

type routeSource struct {
	message proto.Message
	table   *RouteTable
}

// compiler collects the next snapshot.
type compiler struct {
	in       Resources
	next     *Snapshot
	prev     *Snapshot
	rejected []Rejected
	// current names the resource being compiled, for warnings.
	current  Rejected
	warnings []Rejected
}

// Compile makes a snapshot of a complete set of resources. A resource that
// cannot be applied exactly is refused alone: its reason is returned and the
// version of prev, if there is one, stays in force. Tables of unchanged
// resources are shared with prev, which may be nil. Compile never changes its
// arguments.
func Compile(in Resources, prev *Snapshot) (*Snapshot, []Rejected) {
	if prev == nil {
		prev = &Snapshot{}
	}
	c := &compiler{in: in, prev: prev, next: &Snapshot{
		Version: prev.Version + 1, Clusters: make(map[string]*Cluster, len(in.Clusters)),
		Listeners:      make(map[string]*Listener, len(in.Listeners)),
		outboundByAddr: map[netip.AddrPort]*Listener{},
		source: sources{
			listeners: make(map[string]listenerSource, len(in.Listeners)),
			clusters:  make(map[string]clusterSource, len(in.Clusters)),
			routes:    make(map[string]routeSource, len(in.Routes)),
		},
	}}
	for _, name := range slices.Sorted(maps.Keys(in.Clusters)) {
		c.compileCluster(name)
	}
	for _, name := range slices.Sorted(maps.Keys(in.Routes)) {
		c.compileRoute(name)
	}
	for _, name := range slices.Sorted(maps.Keys(in.Listeners)) {
		c.compileListener(name)
	}
	c.next.index()
	return c.next, c.rejected
}

// refuse notes a refusal; a panic of a decoder never gets this far.
func (c *compiler) refuse(typ, name string, err error) {
	const most = 512
	reason := err.Error()
	if len(reason) > most {
		reason = reason[:most] + "…"
	}
	c.rejected = append(c.rejected, Rejected{Type: typ, Name: name, Reason: reason})
}

func (c *compiler) warn(format string, args ...any) {
	w := c.current
	w.Reason = fmt.Sprintf(format, args...)
	if !slices.Contains(c.warnings, w) { // chains of one listener repeat theirs
		c.warnings = append(c.warnings, w)
	}
}

func (c *compiler) compileCluster(name string) {
	old := c.prev.source.clusters[name]
	src := clusterSource{message: c.in.Clusters[name], cluster: old.cluster}
	if src.message != old.message {
		m, err := resource(src.message, &clusterpb.Cluster{})
		if err == nil && m.GetName() != name {
			err = fmt.Errorf("name is %q", m.GetName())
		}
		var compiled *Cluster
		if err == nil {
			compiled, err = cluster(m)
		}
		switch {
		case err == nil:
			src.cluster = compiled
			old.endpoints = nil // the weighting of localities may have changed
		default:
			c.refuse(TypeCluster, name, err)
			if src.message = old.message; old.cluster == nil {
				return
			}
		}
	}
	c.attachEndpoints(&src, old)
	c.next.source.clusters[name] = src
	c.next.Clusters[name] = src.cluster
}

// attachEndpoints gives an EDS cluster its endpoints.
func (c *compiler) attachEndpoints(src *clusterSource, old clusterSource) {
	if src.cluster.Type != EDS {
		return
	}
	eds := src.cluster.EDSName
	message, known := c.in.Endpoints[eds]
	if message == old.endpoints && (known || src.cluster == old.cluster) {
		src.endpoints = old.endpoints
		return
	}
	next := *src.cluster
	next.Endpoints, next.Warm = nil, known
	if known {
		m, err := resource(message, &endpointpb.ClusterLoadAssignment{})
		if err == nil {
			next.Endpoints, err = endpoints(m, false, src.cluster.localityWeighted)
		}
		if err != nil {
			c.refuse(TypeEndpoint, eds, err)
			message = old.endpoints
			next.Endpoints, next.Warm = nil, false
			if old.cluster != nil {
				next.Endpoints, next.Warm = old.cluster.Endpoints, old.cluster.Warm
			}
		}
		src.endpoints = message
	}
	src.cluster = &next
}

func (c *compiler) compileRoute(name string) {
	old := c.prev.source.routes[name]
	src := routeSource{message: c.in.Routes[name], table: old.table}
	if src.message != old.message {
		m, err := resource(src.message, &routepb.RouteConfiguration{})
		if err == nil && m.GetName() != name {
			err = fmt.Errorf("name is %q", m.GetName())
		}
		var compiled *RouteTable
		if err == nil {
			compiled, err = routeTable(m)
		}
		switch {
		case err == nil:
			src.table = compiled
		default:
			c.refuse(TypeRoute, name, err)
			if src.message = old.message; old.table == nil {
				return
			}
		}
	}
	c.next.source.routes[name] = src
}

// table returns the route table of an RDS name, a pending one if the control
// plane has not sent it (or nothing usable) yet.
func (c *compiler) table(name string) *RouteTable {
	if src, ok := c.next.source.routes[name]; ok {
		return src.table
	}
	return &RouteTable{Name: name, Pending: true}
}

func (c *compiler) compileListener(name string) {
	old := c.prev.source.listeners[name]
	src := listenerSource{message: c.in.Listeners[name], listener: old.listener, warnings: old.warnings}
	if src.message != old.message {
		c.current, c.warnings = Rejected{Type: TypeListener, Name: name}, nil
		m, err := resource(src.message, &listenerpb.Listener{})
		if err == nil && m.GetName() != name {
			err = fmt.Errorf("name is %q", m.GetName())
		}
		var compiled *Listener
		if err == nil {
			compiled, err = c.listener(m)
		}
		switch {
		case err == nil:
			src.listener, src.warnings = compiled, c.warnings
		default:
			c.refuse(TypeListener, name, err)
			if src.message = old.message; old.listener == nil {
				return
			}
		}
	}
	src.listener = c.withRoutes(src.listener)
	c.next.source.listeners[name] = src
	c.next.Listeners[name] = src.listener
	c.next.Warnings = append(c.next.Warnings, src.warnings...)
}

// withRoutes returns the listener with the current route tables: itself if none
// changed, else a copy of the parts that lead to them.
func (c *compiler) withRoutes(l *Listener) *Listener {
	out := l
	swap := func(f *FilterChain) *FilterChain {
		if f == nil || f.HTTP == nil || f.HTTP.RouteName == "" {
			return f
		}
		t := c.table(f.HTTP.RouteName)
		if t == f.HTTP.Routes || t.Pending && f.HTTP.Routes.Pending {
			return f
		}
		chain, manager := *f, *f.HTTP
		manager.Routes = t
		chain.HTTP = &manager
		return &chain
	}
	edit := func() {
		if out == l {
			next := *l
			next.Chains = slices.Clone(l.Chains)
			out = &next
		}
	}
	for i, f := range l.Chains {
		if n := swap(f); n != f {
			edit()
			out.Chains[i] = n
		}
	}
	if n := swap(l.Default); n != l.Default {
		edit()
		out.Default = n
	}
	return out
}

// index fills what is derived from Listeners.
func (s *Snapshot) index() {
	s.Inbound, s.Outbound = s.Listeners[virtualInbound], s.Listeners[virtualOutbound]
	s.outboundByAddr = map[netip.AddrPort]*Listener{}
	for _, name := range slices.Sorted(maps.Keys(s.Listeners)) {
		l := s.Listeners[name]
		if l == s.Inbound || l == s.Outbound || l.Direction == Inbound {
			continue
		}
		for _, a := range l.Addresses {
			if s.outboundByAddr[a] == nil {
				s.outboundByAddr[a] = l
			}
		}
	}
}
