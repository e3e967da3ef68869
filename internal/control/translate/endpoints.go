package translate

import (
	"net/netip"
	"slices"
	"strings"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networkingpb "istio.io/api/networking/v1alpha3"

	"lateen.dev/lateen/internal/control/mesh"
)

// endpoints makes the load assignment of a cluster: endpoints grouped by
// locality, with priorities by distance where locality failover is on.
func (b *builder) endpoints(s *mesh.Service, p mesh.Port, subset mesh.Subset, policy *networkingpb.TrafficPolicy) *endpointpb.ClusterLoadAssignment {
	out := &endpointpb.ClusterLoadAssignment{ClusterName: clusterName(p.Number, subset.Subset.GetName(), s.Host)}
	groups := map[mesh.Locality]*endpointpb.LocalityLbEndpoints{}
	var order []mesh.Locality
	for _, e := range b.selected(s, p, subset) {
		g := groups[e.Locality]
		if g == nil {
			g = &endpointpb.LocalityLbEndpoints{Locality: locality(e.Locality), LoadBalancingWeight: wrapperspb.UInt32(0)}
			groups[e.Locality] = g
			order = append(order, e.Locality)
		}
		lb := b.lbEndpoint(e, policy)
		if s.Registry == mesh.Kubernetes {
			lb.HealthStatus = corepb.HealthStatus_HEALTHY // by its readiness probe
		}
		g.LbEndpoints = append(g.LbEndpoints, lb)
		g.LoadBalancingWeight.Value += e.Weight
	}
	slices.SortFunc(order, func(x, y mesh.Locality) int {
		return strings.Compare(x.Region+"/"+x.Zone+"/"+x.SubZone, y.Region+"/"+y.Zone+"/"+y.SubZone)
	})
	b.setPriorities(groups, policy)
	for _, l := range order {
		out.Endpoints = append(out.Endpoints, groups[l])
	}
	return out
}

func locality(l mesh.Locality) *corepb.Locality {
	return &corepb.Locality{Region: l.Region, Zone: l.Zone, SubZone: l.SubZone}
}

// setPriorities ranks localities by distance. As in Istio this needs outlier
// detection, without which a dead locality would never be left.
func (b *builder) setPriorities(groups map[mesh.Locality]*endpointpb.LocalityLbEndpoints, policy *networkingpb.TrafficPolicy) {
	setting := b.m.Config.GetLocalityLbSetting()
	if own := policy.GetLoadBalancer().GetLocalityLbSetting(); own != nil {
		setting = own
	}
	if policy.GetOutlierDetection() == nil || setting.GetEnabled() != nil && !setting.GetEnabled().GetValue() || len(setting.GetDistribute()) > 0 {
		return
	}
	used := map[uint32]bool{}
	for l := range groups {
		used[b.localityPriority(l, setting.GetFailover())] = true
	}
	// Envoy wants priorities without gaps.
	rank := map[uint32]uint32{}
	next := uint32(0)
	for p := range uint32(5) {
		if used[p] {
			rank[p] = next
			next++
		}
	}
	for l, g := range groups {
		g.Priority = rank[b.localityPriority(l, setting.GetFailover())]
	}
}

// lbEndpoint makes one endpoint. It is labelled for mutual TLS if it accepts it
// and no rule of the client asks for something else.
func (b *builder) lbEndpoint(e *mesh.Endpoint, policy *networkingpb.TrafficPolicy) *endpointpb.LbEndpoint {
	md := map[string]*structpb.Struct{"istio": {Fields: map[string]*structpb.Value{
		"workload": structpb.NewStringValue(b.workloadText(e)),
	}}}
	tls := policy.GetTls()
	if e.MTLS && b.autoMTLS() && (tls == nil || tls.GetMode() == networkingpb.ClientTLSSettings_ISTIO_MUTUAL) {
		md["envoy.transport_socket_match"] = &structpb.Struct{Fields: map[string]*structpb.Value{
			"tlsMode": structpb.NewStringValue("istio"),
		}}
	}
	return &endpointpb.LbEndpoint{
		HostIdentifier:      &endpointpb.LbEndpoint_Endpoint{Endpoint: &endpointpb.Endpoint{Address: endpointAddress(e)}},
		LoadBalancingWeight: wrapperspb.UInt32(e.Weight),
		Metadata:            &corepb.Metadata{FilterMetadata: md},
	}
}

func (b *builder) autoMTLS() bool { return b.m.Config.GetEnableAutoMtls().GetValue() }

// workloadText describes an endpoint to telemetry: name;namespace;canonical
// service;revision;cluster. "latest" is what an absent revision means.
func (b *builder) workloadText(e *mesh.Endpoint) string {
	if e.Name == "" {
		return ";;;;" + b.m.ClusterID
	}
	rev := e.CanonicalRevision
	if rev == "latest" {
		rev = ""
	}
	return strings.Join([]string{e.Name, e.Namespace, e.CanonicalService, rev, b.m.ClusterID}, ";")
}

func endpointAddress(e *mesh.Endpoint) *corepb.Address {
	if path, ok := strings.CutPrefix(e.Address, "unix://"); ok {
		return &corepb.Address{Address: &corepb.Address_Pipe{Pipe: &corepb.Pipe{Path: path}}}
	}
	return socketAddress(e.Address, e.Port)
}

func socketAddress(host string, port uint16) *corepb.Address {
	return &corepb.Address{Address: &corepb.Address_SocketAddress{SocketAddress: &corepb.SocketAddress{
		Address: host, PortSpecifier: &corepb.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}

func ipAddress(a netip.Addr, port uint16) *corepb.Address { return socketAddress(a.String(), port) }
