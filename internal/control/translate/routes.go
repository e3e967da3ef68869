package translate

import (
	"net/netip"
	"slices"
	"strings"

	routepb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"lateen.dev/lateen/internal/control/mesh"
)

// maxDirectResponse bounds bodies of direct responses, in bytes.
const maxDirectResponse = 1 << 20

func routeConfig(name string, hosts []*routepb.VirtualHost) *routepb.RouteConfiguration {
	return &routepb.RouteConfiguration{
		Name: name, VirtualHosts: hosts, ValidateClusters: wrapperspb.Bool(false), IgnorePortInHostMatching: true,
		MaxDirectResponseBodySizeBytes: wrapperspb.UInt32(maxDirectResponse),
	}
}

// addPortRoutes makes the route configurations that the outbound listeners ask
// for: one per HTTP port, and one per port whose protocol is not declared.
func (b *builder) addPortRoutes(o *outbound) {
	ports := map[uint16]bool{}
	for _, l := range o.listeners {
		host, _, single := strings.Cut(l.http, ":")
		switch {
		case l.http == "":
		case single:
			if s, ok := b.scope.Service(host); ok {
				b.add(RouteType, l.http, routeConfig(l.http, []*routepb.VirtualHost{b.anyHost(s, l.port)}))
			}
		default:
			ports[l.port] = true
		}
	}
	for port := range ports {
		b.add(RouteType, itoa(port), routeConfig(itoa(port), b.portHosts(port)))
	}
}

// anyHost is the virtual host of a port that only one service listens on, at
// its own address.
func (b *builder) anyHost(s *mesh.Service, port uint16) *routepb.VirtualHost {
	h := b.serviceHost(s, port)
	h.Domains = []string{"*"}
	return h
}

// portHosts makes the virtual hosts of an HTTP port, ordered by name, the
// catch-all last.
func (b *builder) portHosts(port uint16) []*routepb.VirtualHost {
	var hosts []*routepb.VirtualHost
	taken := map[string]bool{}
	for _, s := range b.scope.Services {
		p, ok := s.Port(port)
		if !ok || s.Resolution == mesh.DynamicDNS || !b.protocol(p).IsHTTP() || !b.scope.HasPort(s, port) {
			continue
		}
		h := b.serviceHost(s, port)
		h.Domains = unique(taken, b.domains(s))
		if len(h.Domains) > 0 {
			hosts = append(hosts, h)
		}
	}
	if port == 80 {
		hosts = append(hosts, b.strangers(taken)...)
	}
	slices.SortFunc(hosts, func(x, y *routepb.VirtualHost) int { return strings.Compare(x.GetName(), y.GetName()) })
	return append(hosts, b.outsideHost())
}

// unique returns the domains that no earlier virtual host has: a configuration
// with a domain twice would be refused as a whole.
func unique(taken map[string]bool, domains []string) []string {
	var out []string
	for _, d := range domains {
		if !taken[d] {
			taken[d] = true
			out = append(out, d)
		}
	}
	return out
}

// strangers are hosts of VirtualServices that no service on port 80 has; that
// is where people expect a made-up host to work.
func (b *builder) strangers(taken map[string]bool) []*routepb.VirtualHost {
	var out []*routepb.VirtualHost
	for _, v := range b.scope.VirtualServices {
		if len(v.HTTP) == 0 {
			continue
		}
		for _, host := range v.Hosts {
			if taken[host] || host == "*" || b.onPort80(host) {
				continue
			}
			taken[host] = true
			out = append(out, &routepb.VirtualHost{
				Name: host + ":80", Domains: []string{host}, IncludeRequestAttemptCount: true,
				Routes:   b.httpRoutes(v, routeScope{port: 80, gateway: mesh.MeshGateway}),
				Metadata: b.withOrigin(nil, mesh.Origin{Object: v.Object}),
			})
		}
	}
	return out
}

// onPort80 reports whether a wildcard host of a VirtualService already took
// part through the services it covers.
func (b *builder) onPort80(host string) bool {
	s, ok := b.scope.Service(host)
	if !ok {
		return false
	}
	p, ok := s.Port(80)
	return ok && b.protocol(p).IsHTTP()
}

// serviceHost makes the virtual host of a service: the routes of its
// VirtualService, else one route to its cluster.
func (b *builder) serviceHost(s *mesh.Service, port uint16) *routepb.VirtualHost {
	h := &routepb.VirtualHost{Name: s.Host + ":" + itoa(port), IncludeRequestAttemptCount: true}
	if v := mesh.VirtualServiceFor(b.httpServices(), s.Host); v != nil {
		h.Routes = b.httpRoutes(v, routeScope{port: port, gateway: mesh.MeshGateway})
		h.Metadata = b.withOrigin(nil, mesh.Origin{Object: v.Object})
		return h
	}
	h.Metadata = b.withOrigin(nil, mesh.Origin{Object: s.Object})
	h.Routes = []*routepb.Route{b.defaultRoute(s, port)}
	return h
}

// httpServices are the VirtualServices in scope that have HTTP routes.
func (b *builder) httpServices() []*mesh.VirtualService {
	if b.http == nil {
		b.http = []*mesh.VirtualService{}
		for _, v := range b.scope.VirtualServices {
			if len(v.HTTP) > 0 {
				b.http = append(b.http, v)
			}
		}
	}
	return b.http
}

// defaultRoute leads everything to a service's cluster.
func (b *builder) defaultRoute(s *mesh.Service, port uint16) *routepb.Route {
	cluster := clusterName(port, "", s.Host)
	hash := b.hashPolicy(s, "", port)
	return &routepb.Route{
		Name: "default", Match: prefixMatch("/"),
		Decorator: &routepb.Decorator{Operation: s.Host + ":" + itoa(port) + "/*"},
		Metadata:  b.withOrigin(nil, mesh.Origin{Object: s.Object}),
		Action: &routepb.Route_Route{Route: &routepb.RouteAction{
			ClusterSpecifier: &routepb.RouteAction_Cluster{Cluster: cluster},
			Timeout:          durationpb.New(0),
			MaxGrpcTimeout:   durationpb.New(0),
			RetryPolicy:      b.retryPolicy(nil, len(hash) > 0),
			HashPolicy:       hash,
		}},
	}
}

// outsideHost takes requests for hosts that are not in the registry.
func (b *builder) outsideHost() *routepb.VirtualHost {
	if b.scope.RegistryOnly {
		h := &routepb.VirtualHost{
			Name: "block_all", Domains: []string{"*"}, IncludeRequestAttemptCount: true,
			Routes: []*routepb.Route{{
				Name: "block_all", Match: prefixMatch("/"),
				Action: &routepb.Route_DirectResponse{DirectResponse: &routepb.DirectResponseAction{Status: 502}},
			}},
		}
		at := mesh.Origin{Object: b.m.ConfigObject, Path: "data.mesh"}
		if b.scope.Sidecar != nil && b.scope.Sidecar.Spec.GetOutboundTrafficPolicy() != nil {
			at = mesh.Origin{Object: b.scope.Sidecar.Object, Path: "spec.outboundTrafficPolicy"}
		}
		h.Routes[0].Metadata = b.withOrigin(nil, at)
		return h
	}
	return &routepb.VirtualHost{
		Name: "allow_any", Domains: []string{"*"}, IncludeRequestAttemptCount: true,
		Routes: []*routepb.Route{{
			Name: "allow_any", Match: prefixMatch("/"),
			Action: &routepb.Route_Route{Route: &routepb.RouteAction{
				ClusterSpecifier: &routepb.RouteAction_Cluster{Cluster: passthroughCluster},
				Timeout:          durationpb.New(0),
				MaxGrpcTimeout:   durationpb.New(0),
			}},
		}},
	}
}

// domains returns every form in which a service may be called, Istio's: the
// full name with and without a final dot, the short names legal in the node's
// namespace, the same of its aliases, and its addresses.
func (b *builder) domains(s *mesh.Service) []string {
	out := b.hostForms(s.Host)
	if s.Headless && s.Registry == mesh.Kubernetes {
		for _, d := range b.hostForms(s.Host) {
			out = append(out, "*."+d)
		}
	}
	for _, a := range s.Aliases {
		out = append(out, b.hostForms(a)...)
	}
	for _, ip := range s.VIPs {
		out = append(out, addressDomain(ip))
	}
	return out
}

func (b *builder) hostForms(host string) []string {
	out := []string{host, host + "."}
	return append(out, b.m.Shortnames(host, b.n.Namespace)...)
}

// addressDomain is an address as it appears in an authority.
func addressDomain(ip netip.Addr) string {
	if ip.Is6() {
		return "[" + ip.String() + "]"
	}
	return ip.String()
}

func prefixMatch(prefix string) *routepb.RouteMatch {
	return &routepb.RouteMatch{PathSpecifier: &routepb.RouteMatch_Prefix{Prefix: prefix}}
}
