package translate

import (
	"net/netip"
	"slices"
	"strings"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	httpinspectorpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	hcmpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcppb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networkingpb "istio.io/api/networking/v1alpha3"

	"lateen.dev/lateen/internal/bootstrap"
	"lateen.dev/lateen/internal/control/mesh"
	"lateen.dev/lateen/internal/control/translate/authz"
)

// outbound gathers the listeners of a sidecar's outbound side: services share a
// listener where they share an address.
type outbound struct {
	b         *builder
	listeners map[string]*outboundListener
}

// outboundListener is one listener while its chains are collected.
type outboundListener struct {
	addresses []netip.Addr
	port      uint16
	// http is the route configuration of the HTTP chain, "" for none; alpn are
	// the filters that tell peers of detected HTTP.
	http   string
	alpn   []*hcmpb.HttpFilter
	chains []*listenerpb.FilterChain
	// tcp is the chain without criteria; the first service that wants one gets it.
	tcp *listenerpb.FilterChain
	// sni says that a chain is chosen by server name.
	sni bool
}

// addOutbound makes the outbound listeners and their routes.
func (b *builder) addOutbound() {
	o := &outbound{b: b, listeners: map[string]*outboundListener{}}
	services := slices.Clone(b.scope.Services)
	// The oldest service wins where two want the same place.
	slices.SortStableFunc(services, func(x, y *mesh.Service) int { return x.Created.Compare(y.Created) })
	for _, s := range services {
		if s.Resolution == mesh.DynamicDNS {
			continue
		}
		for _, p := range s.Ports {
			if p.Protocol != mesh.UDP && b.scope.HasPort(s, p.Number) {
				o.addService(s, p)
			}
		}
	}
	for name, l := range o.listeners {
		b.add(ListenerType, name, o.listener(name, l))
	}
	b.addPortRoutes(o)
	if b.n.capturing() {
		b.addVirtualOutbound()
	}
}

// at returns the listener for addresses and a port.
func (o *outbound) at(addresses []netip.Addr, port uint16) *outboundListener {
	name := addresses[0].String() + "_" + itoa(port)
	l := o.listeners[name]
	if l == nil {
		l = &outboundListener{addresses: addresses, port: port}
		o.listeners[name] = l
	}
	return l
}

// wildcard is where services without addresses of their own listen.
func (o *outbound) wildcard() []netip.Addr {
	if !o.b.n.capturing() {
		if !o.b.v4 {
			return []netip.Addr{netip.IPv6Loopback()}
		}
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	return o.b.wildcards()
}

func (o *outbound) addService(s *mesh.Service, p mesh.Port) {
	proto := o.b.protocol(p)
	if proto.IsHTTP() {
		o.at(o.wildcard(), p.Number).http = itoa(p.Number)
		return
	}
	if s.Headless && o.b.n.capturing() {
		// Every endpoint is an address of its own; the proxy's own is reached
		// without leaving the pod.
		for _, e := range o.b.m.EndpointsOf(s, p.Number) {
			a, err := netip.ParseAddr(e.Address)
			if err == nil && o.b.reachable(a) && !slices.Contains(o.b.n.IPs, a) {
				o.addTCP(o.at([]netip.Addr{a}, p.Number), s, p, proto)
			}
		}
		return
	}
	addresses := o.b.reachableOf(s.VIPs)
	if len(addresses) == 0 || !o.b.n.capturing() {
		addresses = o.wildcard()
	}
	o.addTCP(o.at(addresses, p.Number), s, p, proto)
}

// addTCP adds the chains of a port that is not HTTP, or not known to be.
func (o *outbound) addTCP(l *outboundListener, s *mesh.Service, p mesh.Port, proto mesh.Protocol) {
	if proto == mesh.Auto && l.http == "" {
		l.http = s.Host + ":" + itoa(p.Number)
		if o.b.meetsMeshTLS(s, p) {
			l.alpn = o.b.detectedALPN()
		}
	}
	v := mesh.VirtualServiceFor(o.b.scope.VirtualServices, s.Host)
	if v != nil && (len(v.TCP) > 0 || len(v.TLS) > 0) && o.addL4Routes(l, v, s, p) {
		return
	}
	proxy := o.b.tcpTo(clusterName(p.Number, "", s.Host), sidecarOutbound)
	proxy.HashPolicy = o.b.tcpHash(s, "", p.Number)
	if t := mergePolicy(o.b.rule(s), nil, p.Number).GetConnectionPool().GetTcp().GetIdleTimeout(); t != nil {
		proxy.IdleTimeout = t
	}
	c := &listenerpb.FilterChain{
		Filters: o.b.tcpFilters(sidecarOutbound, proxy), TransportSocketConnectTimeout: handshakeTimeout(),
	}
	c.Metadata = o.b.withOrigin(nil, o.b.ruleOrigin(s))
	wildcard := len(o.b.reachableOf(s.VIPs)) == 0 && !s.Headless
	switch {
	case proto.IsTLS() && wildcard:
		c.FilterChainMatch = &listenerpb.FilterChainMatch{ServerNames: []string{s.Host}}
		l.sni = true
		l.chains = append(l.chains, c)
	case len(s.CIDRs) > 0:
		c.FilterChainMatch = &listenerpb.FilterChainMatch{PrefixRanges: cidrs(s.CIDRs)}
		l.chains = append(l.chains, c)
	case l.tcp == nil:
		l.tcp = c
	}
}

func (b *builder) ruleOrigin(s *mesh.Service) mesh.Origin {
	if r := b.rule(s); r != nil {
		return mesh.Origin{Object: r.Object}
	}
	return mesh.Origin{Object: s.Object}
}

func cidrs(list []netip.Prefix) []*corepb.CidrRange {
	var out []*corepb.CidrRange
	for _, p := range list {
		out = append(out, &corepb.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(p.Bits()))})
	}
	return out
}

// addL4Routes adds the chains of `tls` and `tcp` routes. It reports whether any
// applies; else the service is reached as if there were no routes.
func (o *outbound) addL4Routes(l *outboundListener, v *mesh.VirtualService, s *mesh.Service, p mesh.Port) bool {
	found := false
	for _, r := range v.TLS {
		for _, m := range r.Route.GetMatch() {
			if !o.b.l4Matches(m.GetPort(), p.Number, m.GetGateways(), m.GetSourceLabels(), m.GetSourceNamespace(), mesh.MeshGateway) {
				continue
			}
			names := slices.DeleteFunc(slices.Clone(m.GetSniHosts()), func(h string) bool { return !mesh.HostMatches(s.Host, h) && h != s.Host })
			if len(names) == 0 {
				continue
			}
			c := o.l4Chain(v, r.Route.GetRoute(), r.Origin, p.Number)
			c.FilterChainMatch = &listenerpb.FilterChainMatch{ServerNames: names, PrefixRanges: subnets(m.GetDestinationSubnets())}
			l.sni, found = true, true
			l.chains = append(l.chains, c)
		}
	}
	for _, r := range v.TCP {
		matches := r.Route.GetMatch()
		if len(matches) == 0 {
			matches = []*networkingpb.L4MatchAttributes{{}}
		}
		for _, m := range matches {
			if !o.b.l4Matches(m.GetPort(), p.Number, m.GetGateways(), m.GetSourceLabels(), m.GetSourceNamespace(), mesh.MeshGateway) {
				continue
			}
			found = true
			c := o.l4Chain(v, r.Route.GetRoute(), r.Origin, p.Number)
			if ranges := subnets(m.GetDestinationSubnets()); len(ranges) > 0 {
				c.FilterChainMatch = &listenerpb.FilterChainMatch{PrefixRanges: ranges}
				l.chains = append(l.chains, c)
			} else if l.tcp == nil {
				l.tcp = c
			}
		}
	}
	return found
}

// l4Matches reports whether the criteria that the control plane decides hold.
func (b *builder) l4Matches(wantPort uint32, port uint16, gateways []string, labels map[string]string, namespace, gateway string) bool {
	return (wantPort == 0 || wantPort == uint32(port)) &&
		(len(gateways) == 0 || slices.Contains(gateways, gateway)) &&
		labelsMatch(labels, b.n.Labels) && (namespace == "" || namespace == b.n.Namespace)
}

func subnets(list []string) []*corepb.CidrRange {
	var out []*corepb.CidrRange
	for _, t := range list {
		if r, ok := authz.CIDR(t); ok {
			out = append(out, r)
		}
	}
	return out
}

// l4Chain makes the chain of a TCP or TLS route.
func (o *outbound) l4Chain(v *mesh.VirtualService, routes []*networkingpb.RouteDestination, at mesh.Origin, port uint16) *listenerpb.FilterChain {
	return &listenerpb.FilterChain{
		Filters:                       o.b.tcpFilters(sidecarOutbound, o.b.tcpRoute(v, routes, port, sidecarOutbound)),
		TransportSocketConnectTimeout: handshakeTimeout(),
		Metadata:                      o.b.withOrigin(metadataFor(configPath("virtual-service", v.Namespace, v.Name)), at),
	}
}

// tcpRoute makes a TCP proxy over one or several weighted destinations.
func (b *builder) tcpRoute(v *mesh.VirtualService, routes []*networkingpb.RouteDestination, port uint16, s side) *tcppb.TcpProxy {
	if len(routes) == 1 {
		p := b.tcpTo(b.destinationCluster(routes[0].GetDestination(), port), s)
		p.HashPolicy = b.destinationTCPHash(routes[0].GetDestination(), port)
		return p
	}
	p := &tcppb.TcpProxy{StatPrefix: v.Name + "." + v.Namespace, AccessLog: b.accessLogs(s)}
	w := &tcppb.TcpProxy_WeightedCluster{}
	for _, r := range routes {
		if r.GetWeight() > 0 {
			w.Clusters = append(w.Clusters, &tcppb.TcpProxy_WeightedCluster_ClusterWeight{
				Name: b.destinationCluster(r.GetDestination(), port), Weight: uint32(r.GetWeight()),
			})
		}
	}
	p.ClusterSpecifier = &tcppb.TcpProxy_WeightedClusters{WeightedClusters: w}
	if len(routes) > 0 {
		// One policy for all destinations: the first decides, as in Istio.
		p.HashPolicy = b.destinationTCPHash(routes[0].GetDestination(), port)
	}
	return p
}

// listener finishes one listener.
func (o *outbound) listener(name string, l *outboundListener) *listenerpb.Listener {
	out := &listenerpb.Listener{
		Name: name, TrafficDirection: corepb.TrafficDirection_OUTBOUND,
		ContinueOnListenerFiltersTimeout: true, ListenerFiltersTimeout: durationpb.New(0),
	}
	o.b.setAddresses(out, l.addresses, l.port)
	if o.b.n.capturing() {
		out.BindToPort = wrapperspb.Bool(false)
	} else {
		out.MaxConnectionsToAcceptPerSocketEvent = wrapperspb.UInt32(1)
	}
	byPort := l.http != "" && !strings.Contains(l.http, ":")
	if l.http != "" {
		chain := &listenerpb.FilterChain{
			Filters:                       []*listenerpb.Filter{o.b.manager(sidecarOutbound, "outbound_"+name, l.http, nil, l.alpn...)},
			TransportSocketConnectTimeout: handshakeTimeout(),
		}
		if o.b.n.capturing() || !byPort {
			chain.FilterChainMatch = &listenerpb.FilterChainMatch{TransportProtocol: "raw_buffer", ApplicationProtocols: o.b.plainHTTP()}
		}
		out.FilterChains = append(out.FilterChains, chain)
		if chain.FilterChainMatch != nil {
			out.ListenerFiltersTimeout = o.b.detectionTimeout()
			out.ListenerFilters = append(out.ListenerFilters,
				listenerFilter("envoy.filters.listener.http_inspector", &httpinspectorpb.HttpInspector{}))
		}
	}
	if l.sni {
		out.ListenerFilters = slices.Insert(out.ListenerFilters, 0, tlsInspector())
	}
	out.FilterChains = append(out.FilterChains, l.chains...)
	switch {
	case l.tcp != nil && len(out.FilterChains) == 0:
		out.FilterChains = []*listenerpb.FilterChain{l.tcp}
	case l.tcp != nil:
		out.DefaultFilterChain = l.tcp
	case o.b.n.capturing():
		out.DefaultFilterChain = o.b.passthroughChain()
	}
	return out
}

// passthroughChain takes what no other chain of a listener does: to the
// original destination, or nowhere when only the registry may be reached.
func (b *builder) passthroughChain() *listenerpb.FilterChain {
	return &listenerpb.FilterChain{
		Name: "PassthroughFilterChain", FilterChainMatch: &listenerpb.FilterChainMatch{},
		Filters: b.tcpFilters(sidecarOutbound, b.tcpTo(b.outsideCluster(), sidecarOutbound)),
	}
}

func (b *builder) outsideCluster() string {
	if b.scope.RegistryOnly {
		return blackHoleCluster
	}
	return passthroughCluster
}

// addVirtualOutbound makes the listener that all captured connections of the
// application arrive at.
func (b *builder) addVirtualOutbound() {
	l := &listenerpb.Listener{
		Name: "virtualOutbound", TrafficDirection: corepb.TrafficDirection_OUTBOUND,
		UseOriginalDst:                       wrapperspb.Bool(true),
		MaxConnectionsToAcceptPerSocketEvent: wrapperspb.UInt32(1),
		AccessLog:                            b.listenerLogs(sidecarOutbound),
		FilterChains: []*listenerpb.FilterChain{
			{
				Name:             "virtualOutbound-blackhole",
				FilterChainMatch: &listenerpb.FilterChainMatch{DestinationPort: wrapperspb.UInt32(bootstrap.OutboundPort)},
				Filters:          b.tcpFilters(sidecarOutbound, b.tcpBlackHole()),
			},
			{
				Name:    "virtualOutbound-catchall-tcp",
				Filters: b.tcpFilters(sidecarOutbound, b.tcpTo(b.outsideCluster(), sidecarOutbound)),
			},
		},
	}
	if b.n.Capture == string(bootstrap.CaptureTProxy) {
		l.Transparent = wrapperspb.Bool(true)
	}
	b.setAddresses(l, b.wildcards(), bootstrap.OutboundPort)
	b.add(ListenerType, l.GetName(), l)
}
