package translate

import (
	"math"
	"net/netip"
	"slices"
	"time"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	carespb "github.com/envoyproxy/go-control-plane/envoy/extensions/network/dns_resolver/cares/v3"
	httppb "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networkingpb "istio.io/api/networking/v1alpha3"

	"lateen.dev/lateen/internal/bootstrap"
	"lateen.dev/lateen/internal/control/mesh"
)

// The fixed clusters of a sidecar.
const (
	passthroughCluster        = "PassthroughCluster"
	inboundPassthroughCluster = "InboundPassthroughCluster"
	blackHoleCluster          = "BlackHoleCluster"
)

// httpOptionsName is the key of a cluster's HTTP protocol options.
const httpOptionsName = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// inboundBind is the source address by which Istio's redirection rules tell
// connections of the inbound proxy from those of the application.
const inboundBind = "127.0.0.6"

// addClusters makes every cluster and, for those that use it, its endpoints.
func (b *builder) addClusters() {
	b.addCluster(&clusterpb.Cluster{
		Name: blackHoleCluster, AltStatName: blackHoleCluster + ";", ConnectTimeout: b.m.Config.GetConnectTimeout(),
		ClusterDiscoveryType: &clusterpb.Cluster_Type{Type: clusterpb.Cluster_STATIC},
	})
	for _, s := range b.scope.Services {
		if s.Resolution == mesh.DynamicDNS {
			continue // needs a forward proxy that resolves each request's host
		}
		for _, p := range s.Ports {
			if p.Protocol == mesh.UDP || !b.scope.HasPort(s, p.Number) {
				continue
			}
			b.addOutboundCluster(s, p, mesh.Subset{})
			if r := b.rule(s); r != nil {
				for _, subset := range r.Subsets {
					b.addOutboundCluster(s, p, subset)
				}
			}
		}
	}
	if b.n.router() {
		return
	}
	pass := b.passthrough(passthroughCluster)
	pass.Filters = b.clusterFilters()
	b.bindOutbound(pass)
	b.addCluster(pass)
	if !b.n.capturing() {
		b.addCluster(b.bindInbound(b.passthrough(inboundPassthroughCluster)))
		return
	}
	b.addCluster(b.bindInbound(b.passthrough(inboundPassthroughCluster)))
	for _, t := range b.targets {
		b.addCluster(b.inboundCluster(t))
	}
}

func (b *builder) addCluster(c *clusterpb.Cluster) { b.add(ClusterType, c.GetName(), c) }

func (b *builder) passthrough(name string) *clusterpb.Cluster {
	return &clusterpb.Cluster{
		Name: name, AltStatName: passthroughCluster + ";", ConnectTimeout: b.m.Config.GetConnectTimeout(),
		ClusterDiscoveryType: &clusterpb.Cluster_Type{Type: clusterpb.Cluster_ORIGINAL_DST},
		LbPolicy:             clusterpb.Cluster_CLUSTER_PROVIDED,
		CircuitBreakers:      breakers(nil, nil),

		UpstreamConnectionOptions: keepalive(b.m.Config.GetTcpKeepalive(), nil),
		TypedExtensionProtocolOptions: map[string]*anypb.Any{httpOptionsName: pack(&httppb.HttpProtocolOptions{
			CommonHttpProtocolOptions: &corepb.HttpProtocolOptions{IdleTimeout: durationpb.New(300 * time.Second)},
			UpstreamProtocolOptions:   downstreamProtocol(&corepb.Http2ProtocolOptions{}),
		})},
	}
}

func downstreamProtocol(h2 *corepb.Http2ProtocolOptions) *httppb.HttpProtocolOptions_UseDownstreamProtocolConfig {
	return &httppb.HttpProtocolOptions_UseDownstreamProtocolConfig{
		UseDownstreamProtocolConfig: &httppb.HttpProtocolOptions_UseDownstreamHttpConfig{
			HttpProtocolOptions: &corepb.Http1ProtocolOptions{}, Http2ProtocolOptions: h2,
		},
	}
}

// bindOutbound marks the sockets of a cluster that leads out of the pod.
func (b *builder) bindOutbound(c *clusterpb.Cluster) {
	if b.n.Capture == string(bootstrap.CaptureMark) {
		c.UpstreamBindConfig = &corepb.BindConfig{SocketOptions: mark(bootstrap.OutboundMark)}
	}
}

// bindInbound lets the capture rules recognise connections to the application:
// by socket mark, else by Istio's source address.
func (b *builder) bindInbound(c *clusterpb.Cluster) *clusterpb.Cluster {
	if b.n.Capture == string(bootstrap.CaptureMark) {
		c.UpstreamBindConfig = &corepb.BindConfig{SocketOptions: mark(bootstrap.InboundMark)}
		return c
	}
	source := inboundBind
	if !b.v4 {
		source = "::6"
	}
	c.UpstreamBindConfig = &corepb.BindConfig{SourceAddress: &corepb.SocketAddress{
		Address: source, PortSpecifier: &corepb.SocketAddress_PortValue{},
	}}
	if b.v4 && b.v6 {
		c.UpstreamBindConfig.ExtraSourceAddresses = []*corepb.ExtraSourceAddress{{Address: &corepb.SocketAddress{
			Address: "::6", PortSpecifier: &corepb.SocketAddress_PortValue{},
		}}}
	}
	return c
}

// mark is the socket option SOL_SOCKET/SO_MARK of Linux.
func mark(value int64) []*corepb.SocketOption {
	return []*corepb.SocketOption{{
		Description: "SO_MARK", Level: 1, Name: 36, State: corepb.SocketOption_STATE_PREBIND,
		Value: &corepb.SocketOption_IntValue{IntValue: value},
	}}
}

// addOutboundCluster makes the cluster of a service port, of a subset if it has
// a name.
func (b *builder) addOutboundCluster(s *mesh.Service, p mesh.Port, subset mesh.Subset) {
	rule := b.rule(s)
	policy := mergePolicy(rule, subset.Subset, p.Number)
	name := clusterName(p.Number, subset.Subset.GetName(), s.Host)
	c := &clusterpb.Cluster{
		Name: name, AltStatName: name + ";",
		Metadata:       b.clusterMetadata(rule, subset, s),
		Filters:        b.clusterFilters(),
		CommonLbConfig: &clusterpb.Cluster_CommonLbConfig{HealthyPanicThreshold: panicThreshold(policy)},
	}
	b.setDiscovery(c, s, p, subset, policy)
	b.setPool(c, s, p, policy)
	b.setOutlier(c, policy)
	if c.GetType() != clusterpb.Cluster_ORIGINAL_DST {
		setBalancing(c, policy)
	}
	b.setTLS(c, s, p, subset.Subset.GetName(), policy)
	b.bindOutbound(c)
	b.addCluster(c)
	if c.GetType() == clusterpb.Cluster_EDS {
		b.add(EndpointType, name, b.endpoints(s, p, subset, policy))
	}
}

func panicThreshold(policy *networkingpb.TrafficPolicy) *percent {
	return &percent{Value: float64(max(policy.GetOutlierDetection().GetMinHealthPercent(), 0))}
}

// setDiscovery decides where endpoints come from.
func (b *builder) setDiscovery(c *clusterpb.Cluster, s *mesh.Service, p mesh.Port, subset mesh.Subset, policy *networkingpb.TrafficPolicy) {
	kind := clusterpb.Cluster_EDS
	switch s.Resolution {
	case mesh.DNS:
		kind = clusterpb.Cluster_STRICT_DNS
	case mesh.DNSRoundRobin:
		kind = clusterpb.Cluster_LOGICAL_DNS
	case mesh.Passthrough:
		// Gateways receive nothing by capture, so there is no original
		// destination: what endpoints are known is balanced there.
		if !b.n.router() {
			kind = clusterpb.Cluster_ORIGINAL_DST
		}
	}
	if policy.GetLoadBalancer().GetSimple() == networkingpb.LoadBalancerSettings_PASSTHROUGH {
		kind = clusterpb.Cluster_ORIGINAL_DST
	}
	c.ClusterDiscoveryType = &clusterpb.Cluster_Type{Type: kind}
	switch kind {
	case clusterpb.Cluster_ORIGINAL_DST:
		c.LbPolicy = clusterpb.Cluster_CLUSTER_PROVIDED
	case clusterpb.Cluster_EDS:
		c.EdsClusterConfig = &clusterpb.Cluster_EdsClusterConfig{EdsConfig: adsSource(), ServiceName: c.GetName()}
	default:
		b.setDNS(c, s, p, subset, policy)
	}
}

func (b *builder) setDNS(c *clusterpb.Cluster, s *mesh.Service, p mesh.Port, subset mesh.Subset, policy *networkingpb.TrafficPolicy) {
	c.DnsRefreshRate = b.m.Config.GetDnsRefreshRate()
	c.RespectDnsTtl = true
	c.DnsJitter = durationpb.New(100 * time.Millisecond)
	switch {
	case b.v4 && b.v6:
		c.DnsLookupFamily = clusterpb.Cluster_ALL
	case b.v6:
		c.DnsLookupFamily = clusterpb.Cluster_V6_ONLY
	default:
		c.DnsLookupFamily = clusterpb.Cluster_V4_ONLY
	}
	if !b.n.lateen() {
		c.TypedDnsResolverConfig = &corepb.TypedExtensionConfig{
			Name: "envoy.network.dns_resolver.cares",
			TypedConfig: pack(&carespb.CaresDnsResolverConfig{
				UdpMaxQueries: wrapperspb.UInt32(100),
			}),
		}
	}
	var locality endpointpb.LocalityLbEndpoints
	locality.Locality = &corepb.Locality{}
	var weight uint32
	for _, e := range b.selected(s, p, subset) {
		locality.LbEndpoints = append(locality.LbEndpoints, b.lbEndpoint(e, policy))
		weight += e.Weight
	}
	load := &endpointpb.ClusterLoadAssignment{ClusterName: c.GetName()}
	if len(locality.LbEndpoints) > 0 {
		locality.LoadBalancingWeight = wrapperspb.UInt32(weight)
		load.Endpoints = []*endpointpb.LocalityLbEndpoints{&locality}
		if c.GetType() == clusterpb.Cluster_LOGICAL_DNS {
			locality.LbEndpoints = locality.LbEndpoints[:1] // one name is all that this type takes
		}
	}
	c.LoadAssignment = load
}

// clusterMetadata is what telemetry and people see of a cluster's origin.
func (b *builder) clusterMetadata(rule *mesh.DestinationRule, subset mesh.Subset, services ...*mesh.Service) *corepb.Metadata {
	fields := map[string]*structpb.Value{}
	var list []*structpb.Value
	for _, s := range services {
		name := s.Name
		if s.Registry == mesh.External {
			name = s.Host
		}
		list = append(list, structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
			"name": structpb.NewStringValue(name), "host": structpb.NewStringValue(s.Host),
			"namespace": structpb.NewStringValue(s.Namespace),
		}}))
		if s.MeshExternal {
			fields["external"] = structpb.NewBoolValue(true)
		}
	}
	if len(list) > 0 {
		fields["services"] = structpb.NewListValue(&structpb.ListValue{Values: list})
	}
	md := &corepb.Metadata{FilterMetadata: map[string]*structpb.Struct{"istio": {Fields: fields}}}
	if rule != nil {
		fields["config"] = structpb.NewStringValue(configPath("destination-rule", rule.Namespace, rule.Name))
		at := mesh.Origin{Object: rule.Object, Path: "spec.trafficPolicy"}
		if rule.Policy == nil {
			at.Path = ""
		}
		if subset.Subset != nil {
			at = subset.Origin
			fields["subset"] = structpb.NewStringValue(subset.Subset.GetName())
		}
		b.setOrigin(md, at)
	} else if len(services) > 0 {
		b.setOrigin(md, mesh.Origin{Object: services[0].Object})
	}
	return md
}

func configPath(kind, namespace, name string) string {
	return "/apis/networking.istio.io/v1/namespaces/" + namespace + "/" + kind + "/" + name
}

// inboundCluster leads to the application at the address that the caller used.
func (b *builder) inboundCluster(t target) *clusterpb.Cluster {
	name := inboundClusterName(t.port)
	var rule *mesh.DestinationRule
	if len(t.services) > 0 {
		rule = b.rule(t.services[0])
	}
	pool := mergePolicy(rule, nil, t.servicePort.Number).GetConnectionPool()
	c := &clusterpb.Cluster{
		Name: name, AltStatName: name + ";",
		ClusterDiscoveryType: &clusterpb.Cluster_Type{Type: clusterpb.Cluster_ORIGINAL_DST},
		LbPolicy:             clusterpb.Cluster_CLUSTER_PROVIDED,
		CommonLbConfig:       &clusterpb.Cluster_CommonLbConfig{},
		// Endpoints of an original-destination cluster are dropped when they
		// idle; the application's own address never goes away.
		CleanupInterval: durationpb.New(time.Duration(math.MaxInt64).Truncate(time.Second) - time.Second),
		Metadata:        b.clusterMetadata(rule, mesh.Subset{}, t.services...),
	}
	policy := &networkingpb.TrafficPolicy{ConnectionPool: pool}
	b.setPoolFor(c, t.servicePort, policy, false)
	if pool.GetTcp().GetConnectTimeout() == nil {
		c.ConnectTimeout = b.m.Config.GetConnectTimeout()
	}
	return b.bindInbound(c)
}

// selected returns the endpoints of a port that belong to a subset and that the
// node can reach.
func (b *builder) selected(s *mesh.Service, p mesh.Port, subset mesh.Subset) []*mesh.Endpoint {
	var out []*mesh.Endpoint
	for _, e := range b.m.EndpointsOf(s, p.Number) {
		if a, err := netip.ParseAddr(e.Address); err == nil && !b.reachable(a.Unmap()) {
			continue
		}
		if subset.Subset == nil || labelsMatch(subset.Subset.GetLabels(), e.Labels) {
			out = append(out, e)
		}
	}
	return out
}

func labelsMatch(want, have map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// identities returns the SPIFFE identities that may answer for a service: those
// that a ServiceEntry names, else those of its endpoints.
func (b *builder) identities(s *mesh.Service) []string {
	if len(s.SubjectAltNames) > 0 {
		return s.SubjectAltNames
	}
	seen := map[string]bool{}
	var out []string
	for _, e := range b.m.Endpoints(s) {
		if e.ServiceAccount == "" {
			continue
		}
		id := "/ns/" + e.Namespace + "/sa/" + e.ServiceAccount
		if !seen[id] {
			seen[id] = true
			out = append(out, id)
		}
	}
	slices.Sort(out)
	var sans []string
	for _, td := range b.trustDomains() {
		for _, id := range out {
			sans = append(sans, "spiffe://"+td+id)
		}
	}
	return sans
}

func (b *builder) trustDomains() []string {
	return append([]string{b.m.TrustDomain}, b.m.Config.GetTrustDomainAliases()...)
}
