package translate

import (
	"net/netip"
	"slices"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routepb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httpinspectorpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	originaldstpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	originalsrcpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_src/v3"
	tlsinspectorpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	typepb "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"lateen.dev/lateen/internal/bootstrap"
	"lateen.dev/lateen/internal/control/mesh"
)

// target is one port of the workload that services lead to.
type target struct {
	port uint16
	// servicePort and services[0] give the protocol and names; further services
	// may lead to the same port.
	servicePort mesh.Port
	services    []*mesh.Service
}

// inboundTargets lists the ports of the node's workload. The oldest service
// that leads to a port decides its protocol.
func (b *builder) inboundTargets() []target {
	if b.n.router() {
		return nil
	}
	var out []target
	w, _ := b.m.Workload(b.n.Namespace, b.n.PodName)
	for _, s := range b.m.ServicesOf(b.n.Namespace, b.n.Labels, b.n.IPs) {
		for _, p := range s.Ports {
			if p.Protocol == mesh.UDP {
				continue
			}
			port := p.Target
			if port == 0 && p.TargetName == "" {
				port = p.Number
			}
			if port == 0 && w != nil {
				port, _ = mesh.TargetPort(p, w.Ports)
			}
			if port == 0 {
				continue
			}
			i := slices.IndexFunc(out, func(t target) bool { return t.port == port })
			if i < 0 {
				out = append(out, target{port: port, servicePort: p, services: []*mesh.Service{s}})
			} else if !slices.Contains(out[i].services, s) {
				out[i].services = append(out[i].services, s)
			}
		}
	}
	slices.SortFunc(out, func(x, y target) int { return int(x.port) - int(y.port) })
	return out
}

// addInbound makes the listener that all captured connections to the workload
// arrive at.
func (b *builder) addInbound() {
	if !b.n.capturing() {
		return
	}
	l := &listenerpb.Listener{
		Name: "virtualInbound", TrafficDirection: corepb.TrafficDirection_INBOUND,
		ContinueOnListenerFiltersTimeout:     true,
		ListenerFiltersTimeout:               b.detectionTimeout(),
		MaxConnectionsToAcceptPerSocketEvent: wrapperspb.UInt32(1),
		AccessLog:                            b.listenerLogs(sidecarInbound),
	}
	b.setAddresses(l, b.wildcards(), bootstrap.InboundPort)
	if b.n.Capture == string(bootstrap.CaptureTProxy) {
		l.Transparent = wrapperspb.Bool(true)
	}
	l.FilterChains = append(l.FilterChains, &listenerpb.FilterChain{
		Name:             "virtualInbound-blackhole",
		FilterChainMatch: &listenerpb.FilterChainMatch{DestinationPort: wrapperspb.UInt32(bootstrap.InboundPort)},
		Filters:          b.tcpFilters(sidecarInbound, b.tcpBlackHole()),
	})
	l.FilterChains = append(l.FilterChains, b.inboundChains(target{})...)
	for _, t := range b.targets {
		l.FilterChains = append(l.FilterChains, b.inboundChains(t)...)
	}
	b.setInspectors(l)
	b.add(ListenerType, l.GetName(), l)
}

func (b *builder) detectionTimeout() *durationpb.Duration {
	if t := b.m.Config.GetProtocolDetectionTimeout(); t != nil {
		return t
	}
	return durationpb.New(0)
}

// setAddresses binds a listener to the first address and, on dual-stack nodes,
// to the others.
func (b *builder) setAddresses(l *listenerpb.Listener, list []netip.Addr, port uint16) {
	l.Address = ipAddress(list[0], port)
	for _, a := range list[1:] {
		l.AdditionalAddresses = append(l.AdditionalAddresses, &listenerpb.AdditionalAddress{Address: ipAddress(a, port)})
	}
}

// chainKind is what distinguishes the chains of one inbound port.
type chainKind struct {
	http, terminate bool
	transport       string
	alpn            []string
}

// kinds lists the chains of a port by its protocol and mode, as Istio does.
// PERMISSIVE tells mutual TLS of the mesh from other TLS by its ALPN; STRICT
// takes TLS alone.
func (b *builder) kinds(proto mesh.Protocol, mode mesh.MTLSMode, known bool) []chainKind {
	raw := chainKind{transport: "raw_buffer"}
	switch {
	case proto.IsHTTP():
		raw.http = true
		switch mode {
		case mesh.MTLSStrict:
			return []chainKind{{http: true, terminate: true, transport: "tls"}}
		case mesh.MTLSDisable:
			return []chainKind{raw}
		}
		return []chainKind{{http: true, terminate: true, transport: "tls", alpn: allALPN}, raw}
	case known && proto != mesh.Auto:
		switch mode {
		case mesh.MTLSStrict:
			return []chainKind{{terminate: true, transport: "tls"}}
		case mesh.MTLSDisable:
			return []chainKind{raw}
		}
		return []chainKind{{terminate: true, transport: "tls", alpn: allALPN}, {transport: "tls"}, raw}
	}
	httpTLS := chainKind{http: true, terminate: true, transport: "tls", alpn: b.httpALPN()}
	httpRaw := chainKind{http: true, transport: "raw_buffer", alpn: b.plainHTTP()}
	switch mode {
	case mesh.MTLSStrict:
		return []chainKind{httpTLS, {terminate: true, transport: "tls"}}
	case mesh.MTLSDisable:
		return []chainKind{httpRaw, raw}
	}
	tcpALPN := []string{"istio-peer-exchange", "istio"}
	if !b.n.http2() {
		tcpALPN = append(tcpALPN, "istio-h2")
	}
	return []chainKind{httpTLS, httpRaw, {terminate: true, transport: "tls", alpn: tcpALPN}, raw, {transport: "tls"}}
}

// httpALPN are the mesh protocols that the node reads as HTTP.
func (b *builder) httpALPN() []string {
	if b.n.http2() {
		return httpALPN
	}
	return httpALPN[:2]
}

// plainHTTP are the results of sniffing that the node reads as HTTP.
func (b *builder) plainHTTP() []string {
	if b.n.http2() {
		return []string{"http/1.1", "h2c"}
	}
	return []string{"http/1.1"}
}

// inboundChains makes the chains of one port; the zero target stands for every
// port that no service names.
func (b *builder) inboundChains(t target) []*listenerpb.FilterChain {
	known := t.port != 0
	mode := b.m.MTLSMode(b.n.Namespace, b.n.Labels, t.port)
	if !known {
		mode = b.m.MTLSMode(b.n.Namespace, b.n.Labels, 0)
	}
	proto := mesh.Auto
	if known {
		proto = b.protocol(t.servicePort)
	}
	var out []*listenerpb.FilterChain
	for _, k := range b.kinds(proto, mode, known) {
		c := &listenerpb.FilterChain{
			Name:             "virtualInbound",
			FilterChainMatch: &listenerpb.FilterChainMatch{TransportProtocol: k.transport, ApplicationProtocols: k.alpn},
		}
		switch {
		case known:
			c.Name = b.wildcards()[0].String() + "_" + itoa(t.port)
			c.FilterChainMatch.DestinationPort = wrapperspb.UInt32(uint32(t.port))
		case k.http:
			c.Name = "virtualInbound-catchall-http"
		}
		if k.terminate {
			c.TransportSocket = b.serverTLS(k.http)
		}
		if k.http {
			c.Filters = b.inboundHTTP(t)
		} else {
			c.Filters = b.inboundTCP(t)
		}
		b.setChainOrigin(c, mode, t.port)
		out = append(out, c)
	}
	return out
}

// setChainOrigin names the PeerAuthentication that decided about a chain.
func (b *builder) setChainOrigin(c *listenerpb.FilterChain, mode mesh.MTLSMode, port uint16) {
	workload, ns, root := b.m.PeerAuthenticationsFor(b.n.Namespace, b.n.Labels)
	if workload != nil {
		if l, ok := workload.Spec.GetPortLevelMtls()[uint32(port)]; ok && l.GetMode() != 0 {
			c.Metadata = b.withOrigin(c.GetMetadata(), mesh.Origin{Object: workload.Object, Path: "spec.portLevelMtls"})
			return
		}
	}
	for _, p := range []*mesh.PeerAuthentication{workload, ns, root} {
		if p != nil && p.Spec.GetMtls().GetMode() != 0 {
			c.Metadata = b.withOrigin(c.GetMetadata(), mesh.Origin{Object: p.Object, Path: "spec.mtls"})
			return
		}
	}
}

func (b *builder) inboundTCP(t target) []*listenerpb.Filter {
	cluster := inboundPassthroughCluster
	if t.port != 0 {
		cluster = inboundClusterName(t.port)
	}
	return b.tcpFilters(sidecarInbound, b.tcpTo(cluster, sidecarInbound))
}

// inboundHTTP makes the connection manager of a port, whose one route leads to
// the application.
func (b *builder) inboundHTTP(t target) []*listenerpb.Filter {
	cluster, host, servicePort := inboundPassthroughCluster, "", uint16(0)
	stat := inboundPassthroughCluster
	if t.port != 0 {
		cluster, servicePort = inboundClusterName(t.port), t.servicePort.Number
		host = t.services[0].Host
		stat = "inbound_" + b.wildcards()[0].String() + "_" + itoa(t.port)
	}
	config := &routepb.RouteConfiguration{
		Name: cluster, ValidateClusters: wrapperspb.Bool(false),
		VirtualHosts: []*routepb.VirtualHost{{
			Name: "inbound|http|" + itoa(servicePort), Domains: []string{"*"},
			Routes: []*routepb.Route{{
				Name: "default", Match: prefixMatch("/"),
				Decorator: &routepb.Decorator{Operation: host + ":" + itoa(servicePort) + "/*"},
				Action: &routepb.Route_Route{Route: &routepb.RouteAction{
					ClusterSpecifier: &routepb.RouteAction_Cluster{Cluster: cluster},
					Timeout:          durationpb.New(0),
					MaxStreamDuration: &routepb.RouteAction_MaxStreamDuration{
						MaxStreamDuration: durationpb.New(0), GrpcTimeoutHeaderMax: durationpb.New(0),
					},
					RetryPolicy: &routepb.RetryPolicy{RetryOn: "reset-before-request", NumRetries: wrapperspb.UInt32(2)},
				}},
			}},
		}},
	}
	var out []*listenerpb.Filter
	if b.n.tcpExchange() {
		out = append(out, networkFilter("istio.metadata_exchange", tcpMetadataExchange()))
	}
	return append(out, b.manager(sidecarInbound, stat, "", config))
}

// setInspectors adds the listener filters that the chains need, switched off
// for ports where they have nothing to find out.
func (b *builder) setInspectors(l *listenerpb.Listener) {
	tls, sniff := false, false
	known := map[uint16]bool{}
	sniffed := map[uint16]bool{}
	for _, c := range l.GetFilterChains() {
		m := c.GetFilterChainMatch()
		port := uint16(m.GetDestinationPort().GetValue())
		tls = tls || m.GetTransportProtocol() == "tls"
		if port != 0 && port != bootstrap.InboundPort {
			known[port] = true
		}
		if m.GetTransportProtocol() == "raw_buffer" && len(m.GetApplicationProtocols()) > 0 {
			sniff = true
			sniffed[port] = true
		}
	}
	l.ListenerFilters = append(l.ListenerFilters, listenerFilter("envoy.filters.listener.original_dst", &originaldstpb.OriginalDst{}))
	if b.n.Capture == string(bootstrap.CaptureTProxy) {
		l.ListenerFilters = append(l.ListenerFilters, listenerFilter("envoy.filters.listener.original_src", &originalsrcpb.OriginalSrc{Mark: 1337}))
	}
	if tls {
		f := tlsInspector()
		f.FilterDisabled = portPredicate(bootstrap.InboundPort)
		l.ListenerFilters = append(l.ListenerFilters, f)
	}
	if sniff {
		var off []uint16
		for p := range known {
			if !sniffed[p] {
				off = append(off, p)
			}
		}
		slices.Sort(off)
		f := listenerFilter("envoy.filters.listener.http_inspector", &httpinspectorpb.HttpInspector{})
		f.FilterDisabled = portPredicate(append(off, bootstrap.InboundPort)...)
		l.ListenerFilters = append(l.ListenerFilters, f)
	}
}

func tlsInspector() *listenerpb.ListenerFilter {
	return listenerFilter("envoy.filters.listener.tls_inspector", &tlsinspectorpb.TlsInspector{
		InitialReadBufferSize: wrapperspb.UInt32(512),
	})
}

func listenerFilter(name string, m proto.Message) *listenerpb.ListenerFilter {
	return &listenerpb.ListenerFilter{Name: name, ConfigType: &listenerpb.ListenerFilter_TypedConfig{TypedConfig: pack(m)}}
}

// portPredicate matches connections to any of the ports.
func portPredicate(ports ...uint16) *listenerpb.ListenerFilterChainMatchPredicate {
	var rules []*listenerpb.ListenerFilterChainMatchPredicate
	for _, p := range ports {
		rules = append(rules, &listenerpb.ListenerFilterChainMatchPredicate{
			Rule: &listenerpb.ListenerFilterChainMatchPredicate_DestinationPortRange{
				DestinationPortRange: &typepb.Int32Range{Start: int32(p), End: int32(p) + 1},
			},
		})
	}
	if len(rules) == 1 {
		return rules[0]
	}
	return &listenerpb.ListenerFilterChainMatchPredicate{Rule: &listenerpb.ListenerFilterChainMatchPredicate_OrMatch{
		OrMatch: &listenerpb.ListenerFilterChainMatchPredicate_MatchSet{Rules: rules},
	}}
}

// handshakeTimeout bounds the TLS handshake of a chain, as in Istio.
func handshakeTimeout() *durationpb.Duration { return durationpb.New(15 * time.Second) }
