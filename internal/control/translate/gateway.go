package translate

import (
	"net/netip"
	"slices"
	"strings"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routepb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networkingpb "istio.io/api/networking/v1alpha3"

	"lateen.dev/lateen/internal/control/mesh"
)

// server is one server of a Gateway, placed on the port that the proxy binds.
type server struct {
	gateway *mesh.Gateway
	index   int
	spec    *networkingpb.Server
	// port is the port in the Gateway, what virtual hosts are named by.
	port uint16
}

func (s server) protocol() mesh.Protocol { return mesh.ParseProtocol(s.spec.GetPort().GetProtocol()) }

// terminates reports whether the gateway itself ends TLS.
func (s server) terminates() bool {
	t := s.spec.GetTls()
	return t != nil && s.protocol().IsTLS() && t.GetMode() != networkingpb.ServerTLSSettings_PASSTHROUGH &&
		t.GetMode() != networkingpb.ServerTLSSettings_AUTO_PASSTHROUGH
}

// http reports whether requests are routed as HTTP after TLS, if any.
func (s server) http() bool {
	return s.protocol().IsHTTP() || s.protocol() == mesh.HTTPS && s.terminates()
}

// origin is the place of the server in its Gateway.
func (s server) origin() mesh.Origin {
	return mesh.Origin{Object: s.gateway.Object, Path: "spec.servers[" + itoa(uint16(s.index)) + "]"}
}

// routeName is Istio's name of the route configuration of an HTTPS server.
func (s server) routeName() string {
	return "https." + itoa(s.port) + "." + s.spec.GetPort().GetName() + "." + s.gateway.Name + "." + s.gateway.Namespace
}

// bindKey is an address and port that servers share.
type bindKey struct {
	address string
	port    uint16
}

// addGateways makes the listeners, routes and secrets of a gateway proxy from
// the Gateways that select it.
func (b *builder) addGateways() {
	servers := map[bindKey][]server{}
	var order []bindKey
	for _, g := range b.m.GatewaysFor(b.n.Labels) {
		for i, s := range g.Spec.GetServers() {
			port := uint16(s.GetPort().GetNumber())
			if port == 0 || strings.HasPrefix(s.GetBind(), "unix://") {
				continue
			}
			key := bindKey{s.GetBind(), b.targetPort(port)}
			if servers[key] == nil {
				order = append(order, key)
			}
			servers[key] = append(servers[key], server{gateway: g, index: i, spec: s, port: port})
		}
	}
	for _, key := range order {
		b.addGatewayListener(key, servers[key])
	}
}

// targetPort is the port that the proxy binds for a port of its Service.
func (b *builder) targetPort(port uint16) uint16 {
	w, _ := b.m.Workload(b.n.Namespace, b.n.PodName)
	for _, s := range b.m.ServicesOf(b.n.Namespace, b.n.Labels, b.n.IPs) {
		if p, ok := s.Port(port); ok {
			if p.Target != 0 {
				return p.Target
			}
			if w != nil {
				if t, ok := mesh.TargetPort(p, w.Ports); ok {
					return t
				}
			}
		}
	}
	return port
}

// addGatewayListener makes the listener of one port. The oldest Gateway decides
// whether it is plain HTTP, TLS or TCP; servers that do not fit are left out.
func (b *builder) addGatewayListener(key bindKey, list []server) {
	addresses := b.wildcards()
	if a, err := netip.ParseAddr(key.address); err == nil {
		addresses = []netip.Addr{a}
	}
	name := addresses[0].String() + "_" + itoa(key.port)
	l := &listenerpb.Listener{
		Name: name, TrafficDirection: corepb.TrafficDirection_OUTBOUND,
		MaxConnectionsToAcceptPerSocketEvent: wrapperspb.UInt32(1),
		AccessLog:                            b.listenerLogs(gatewaySide),
	}
	b.setAddresses(l, addresses, key.port)
	if list[0].protocol().IsHTTP() && !list[0].terminates() {
		b.addPlainHTTP(l, key.port, list)
	} else {
		b.addTLSAndTCP(l, list)
	}
	if len(l.FilterChains) > 0 {
		b.add(ListenerType, name, l)
	}
}

// addPlainHTTP merges all plain HTTP servers of a port into one route
// configuration.
func (b *builder) addPlainHTTP(l *listenerpb.Listener, port uint16, list []server) {
	list = slices.DeleteFunc(slices.Clone(list), func(s server) bool { return !s.protocol().IsHTTP() })
	routeName := "http." + itoa(port)
	b.add(RouteType, routeName, routeConfig(routeName, b.gatewayHosts(list, false)))
	l.FilterChains = []*listenerpb.FilterChain{{
		Filters:                       []*listenerpb.Filter{b.manager(gatewaySide, "outbound_"+l.GetName(), routeName, nil)},
		TransportSocketConnectTimeout: handshakeTimeout(),
		Metadata:                      b.withOrigin(nil, list[0].origin()),
	}}
}

// addTLSAndTCP makes one chain for each server that ends TLS, and chains by
// server name or address for those that pass connections through.
func (b *builder) addTLSAndTCP(l *listenerpb.Listener, list []server) {
	sni := false
	for _, s := range list {
		switch {
		case s.http() && s.terminates():
			b.add(RouteType, s.routeName(), routeConfig(s.routeName(), b.gatewayHosts([]server{s}, true)))
			c := &listenerpb.FilterChain{
				Filters:                       []*listenerpb.Filter{b.manager(gatewaySide, "outbound_"+l.GetName(), s.routeName(), nil)},
				TransportSocketConnectTimeout: handshakeTimeout(),
			}
			b.finishServer(c, s)
			l.FilterChains = append(l.FilterChains, c)
			sni = true
		case s.spec.GetTls().GetMode() == networkingpb.ServerTLSSettings_AUTO_PASSTHROUGH:
			// East-west gateways route by the mesh's own server names, which
			// this proxy is not given clusters for.
		case s.protocol().IsTLS() && !s.terminates():
			l.FilterChains = append(l.FilterChains, b.passthroughRoutes(s)...)
			sni = true
		default:
			for _, c := range b.tcpRoutes(s) {
				if s.terminates() {
					b.finishServer(c, s)
					sni = true
				}
				l.FilterChains = append(l.FilterChains, c)
			}
		}
	}
	if sni {
		l.ListenerFilters = append(l.ListenerFilters, tlsInspector())
	}
	l.FilterChains = distinct(l.FilterChains)
}

// distinct drops chains whose criteria an earlier chain has: a listener with
// two of the same would be refused as a whole.
func distinct(chains []*listenerpb.FilterChain) []*listenerpb.FilterChain {
	seen := map[string]bool{}
	return slices.DeleteFunc(chains, func(c *listenerpb.FilterChain) bool {
		key := c.GetFilterChainMatch().String()
		if seen[key] {
			return true
		}
		seen[key] = true
		return false
	})
}

// finishServer adds TLS and the criteria of a server that ends TLS.
func (b *builder) finishServer(c *listenerpb.FilterChain, s server) {
	c.TransportSocket = b.gatewayTLS(s)
	if names := sniHosts(s.spec.GetHosts()); len(names) > 0 {
		c.FilterChainMatch = &listenerpb.FilterChainMatch{ServerNames: names}
	}
	c.Metadata = b.withOrigin(c.GetMetadata(), s.origin())
}

// sniHosts are the server names of hosts; none when any name will do.
func sniHosts(hosts []string) []string {
	var out []string
	for _, h := range hosts {
		_, host := cutHost(h)
		if host == "*" {
			return nil
		}
		if !slices.Contains(out, host) {
			out = append(out, host)
		}
	}
	slices.Sort(out)
	return out
}

// cutHost splits "namespace/host"; the namespace is "" when none is written.
func cutHost(text string) (namespace, host string) {
	ns, host, ok := strings.Cut(text, "/")
	if !ok {
		return "", text
	}
	return ns, host
}

// hostsFor returns the hosts of a VirtualService that a server serves: the
// narrower of each pair that overlaps.
func (s server) hostsFor(v *mesh.VirtualService) []string {
	var out []string
	for _, text := range s.spec.GetHosts() {
		ns, host := cutHost(text)
		if ns == "." {
			ns = s.gateway.Namespace
		}
		if ns != "" && ns != "*" && ns != v.Namespace {
			continue
		}
		for _, h := range v.Hosts {
			narrow := ""
			switch {
			case mesh.HostMatches(host, h):
				narrow = h
			case mesh.HostMatches(h, host):
				narrow = host
			default:
				continue
			}
			if !slices.Contains(out, narrow) {
				out = append(out, narrow)
			}
		}
	}
	return out
}

// gatewayHosts makes the virtual hosts of HTTP servers that share a port.
// Several VirtualServices of one host are joined, as Istio does on gateways;
// routes that take everything go last.
func (b *builder) gatewayHosts(list []server, tls bool) []*routepb.VirtualHost {
	hosts := map[string]*routepb.VirtualHost{}
	used := map[string]bool{}
	for _, s := range list {
		for _, v := range b.m.VirtualServicesFor(b.n.Namespace, s.gateway.FullName()) {
			if len(v.HTTP) == 0 {
				continue
			}
			for _, host := range s.hostsFor(v) {
				key := v.Namespace + "/" + v.Name + "@" + host
				if used[key] {
					continue
				}
				used[key] = true
				h := hosts[host]
				if h == nil {
					h = b.gatewayHost(s, host)
					h.Metadata = b.withOrigin(nil, mesh.Origin{Object: v.Object})
					hosts[host] = h
				}
				h.Routes = append(h.Routes, b.httpRoutes(v, routeScope{port: s.port, gateway: s.gateway.FullName(), tls: tls})...)
			}
		}
		if !s.spec.GetTls().GetHttpsRedirect() {
			continue
		}
		for _, text := range s.spec.GetHosts() {
			_, host := cutHost(text)
			if hosts[host] == nil {
				hosts[host] = b.gatewayHost(s, host)
				hosts[host].Metadata = b.withOrigin(nil, s.origin())
			}
			hosts[host].RequireTls = routepb.VirtualHost_ALL
		}
	}
	var out []*routepb.VirtualHost
	for _, name := range sortedKeys(hosts) {
		h := hosts[name]
		slices.SortStableFunc(h.Routes, func(x, y *routepb.Route) int { return rankCatchAll(x) - rankCatchAll(y) })
		out = append(out, h)
	}
	if len(out) == 0 {
		return []*routepb.VirtualHost{{Name: "blackhole:" + itoa(list[0].port), Domains: []string{"*"}}}
	}
	return out
}

func rankCatchAll(r *routepb.Route) int {
	if catchAll(r) {
		return 1
	}
	return 0
}

func (b *builder) gatewayHost(s server, host string) *routepb.VirtualHost {
	return &routepb.VirtualHost{
		Name: host + ":" + itoa(s.port), Domains: []string{host}, IncludeRequestAttemptCount: true,
	}
}

// passthroughRoutes makes a chain for each TLS route whose server names the
// server serves.
func (b *builder) passthroughRoutes(s server) []*listenerpb.FilterChain {
	var out []*listenerpb.FilterChain
	for _, v := range b.m.VirtualServicesFor(b.n.Namespace, s.gateway.FullName()) {
		if len(s.hostsFor(v)) == 0 {
			continue
		}
		for _, r := range v.TLS {
			for _, m := range r.Route.GetMatch() {
				if !b.l4Matches(m.GetPort(), s.port, m.GetGateways(), m.GetSourceLabels(), m.GetSourceNamespace(), s.gateway.FullName()) {
					continue
				}
				c := b.gatewayChain(v, r.Route.GetRoute(), r.Origin, s.port)
				c.FilterChainMatch = &listenerpb.FilterChainMatch{ServerNames: m.GetSniHosts(), PrefixRanges: subnets(m.GetDestinationSubnets())}
				if slices.Contains(m.GetSniHosts(), "*") {
					c.FilterChainMatch.ServerNames = nil
				}
				out = append(out, c)
			}
		}
	}
	return out
}

// tcpRoutes makes a chain for each TCP route that applies to a server.
func (b *builder) tcpRoutes(s server) []*listenerpb.FilterChain {
	var out []*listenerpb.FilterChain
	for _, v := range b.m.VirtualServicesFor(b.n.Namespace, s.gateway.FullName()) {
		if len(s.hostsFor(v)) == 0 {
			continue
		}
		for _, r := range v.TCP {
			matches := r.Route.GetMatch()
			if len(matches) == 0 {
				matches = []*networkingpb.L4MatchAttributes{{}}
			}
			for _, m := range matches {
				if !b.l4Matches(m.GetPort(), s.port, m.GetGateways(), m.GetSourceLabels(), m.GetSourceNamespace(), s.gateway.FullName()) {
					continue
				}
				c := b.gatewayChain(v, r.Route.GetRoute(), r.Origin, s.port)
				if ranges := subnets(m.GetDestinationSubnets()); len(ranges) > 0 {
					c.FilterChainMatch = &listenerpb.FilterChainMatch{PrefixRanges: ranges}
				}
				out = append(out, c)
			}
		}
	}
	return out
}

func (b *builder) gatewayChain(v *mesh.VirtualService, routes []*networkingpb.RouteDestination, at mesh.Origin, port uint16) *listenerpb.FilterChain {
	return &listenerpb.FilterChain{
		Filters:                       b.gatewayTCPFilters(v, routes, port),
		TransportSocketConnectTimeout: handshakeTimeout(),
		Metadata:                      b.withOrigin(nil, at),
	}
}

func (b *builder) gatewayTCPFilters(v *mesh.VirtualService, routes []*networkingpb.RouteDestination, port uint16) []*listenerpb.Filter {
	proxy := b.tcpRoute(v, routes, port, gatewaySide)
	return append(b.authorizationTCP(), b.tcpFilters(gatewaySide, proxy)...)
}
