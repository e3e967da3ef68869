//go:build linux

package conformance

import (
	"net/netip"
	"testing"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routepb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlspb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httppb "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherpb "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	credential = "kubernetes://web-credential"
	tlsMessage = "envoy.transport_sockets.tls"
)

// site is a configuration: listeners that lead to one application each.
type site struct {
	t   testing.TB
	all map[resource.Type][]types.Resource
}

func newSite(t testing.TB) *site {
	return &site{t: t, all: map[resource.Type][]types.Resource{
		resource.ListenerType: nil, resource.RouteType: nil, resource.ClusterType: nil, resource.EndpointType: nil, resource.SecretType: nil,
	}}
}

func (s *site) pack(m proto.Message) *anypb.Any {
	s.t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

func (s *site) add(typ resource.Type, r types.Resource) { s.all[typ] = append(s.all[typ], r) }

func address(ap netip.AddrPort) *corepb.Address {
	return &corepb.Address{Address: &corepb.Address_SocketAddress{SocketAddress: &corepb.SocketAddress{
		Address: ap.Addr().String(), PortSpecifier: &corepb.SocketAddress_PortValue{PortValue: uint32(ap.Port())},
	}}}
}

func ads() *corepb.ConfigSource {
	return &corepb.ConfigSource{ConfigSourceSpecifier: &corepb.ConfigSource_Ads{}, ResourceApiVersion: corepb.ApiVersion_V3}
}

// listen adds a listener with its routes; tls may be nil.
func (s *site) listen(name string, at netip.AddrPort, cluster string, tls *tlspb.DownstreamTlsContext) *hcmpb.HttpConnectionManager {
	manager := &hcmpb.HttpConnectionManager{
		StatPrefix:        name,
		StreamIdleTimeout: durationpb.New(0),
		RouteSpecifier:    &hcmpb.HttpConnectionManager_Rds{Rds: &hcmpb.Rds{RouteConfigName: name, ConfigSource: ads()}},
		HttpFilters: []*hcmpb.HttpFilter{{
			Name: "router", ConfigType: &hcmpb.HttpFilter_TypedConfig{TypedConfig: s.pack(&routerpb.Router{})},
		}},
	}
	chain := &listenerpb.FilterChain{
		Filters: []*listenerpb.Filter{{Name: "hcm", ConfigType: &listenerpb.Filter_TypedConfig{TypedConfig: s.pack(manager)}}},
	}
	if tls != nil {
		chain.TransportSocket = &corepb.TransportSocket{
			Name: tlsMessage, ConfigType: &corepb.TransportSocket_TypedConfig{TypedConfig: s.pack(tls)},
		}
	}
	s.add(resource.ListenerType, &listenerpb.Listener{Name: name, Address: address(at), FilterChains: []*listenerpb.FilterChain{chain}})
	s.add(resource.RouteType, &routepb.RouteConfiguration{Name: name, VirtualHosts: []*routepb.VirtualHost{{
		Name: "any", Domains: []string{"*"}, Routes: []*routepb.Route{{
			Match: &routepb.RouteMatch{PathSpecifier: &routepb.RouteMatch_Prefix{Prefix: "/"}},
			Action: &routepb.Route_Route{Route: &routepb.RouteAction{
				ClusterSpecifier: &routepb.RouteAction_Cluster{Cluster: cluster}, Timeout: durationpb.New(0),
				MaxStreamDuration: &routepb.RouteAction_MaxStreamDuration{
					MaxStreamDuration: durationpb.New(0), GrpcTimeoutHeaderMax: durationpb.New(0),
				},
			}},
		}},
	}}})
	return manager
}

// cluster adds a cluster with one endpoint; tls may be nil.
func (s *site) cluster(name string, to netip.AddrPort, h2 bool, tls *tlspb.UpstreamTlsContext) {
	c := &clusterpb.Cluster{
		Name: name, ClusterDiscoveryType: &clusterpb.Cluster_Type{Type: clusterpb.Cluster_EDS},
		EdsClusterConfig: &clusterpb.Cluster_EdsClusterConfig{EdsConfig: ads()},
		ConnectTimeout:   durationpb.New(5e9),
	}
	if h2 {
		c.TypedExtensionProtocolOptions = map[string]*anypb.Any{
			"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": s.pack(&httppb.HttpProtocolOptions{
				UpstreamProtocolOptions: &httppb.HttpProtocolOptions_ExplicitHttpConfig_{
					ExplicitHttpConfig: &httppb.HttpProtocolOptions_ExplicitHttpConfig{
						ProtocolConfig: &httppb.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
							Http2ProtocolOptions: &corepb.Http2ProtocolOptions{},
						},
					},
				},
			}),
		}
	}
	if tls != nil {
		c.TransportSocket = &corepb.TransportSocket{
			Name: tlsMessage, ConfigType: &corepb.TransportSocket_TypedConfig{TypedConfig: s.pack(tls)},
		}
	}
	s.add(resource.ClusterType, c)
	s.add(resource.EndpointType, &endpointpb.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointpb.LocalityLbEndpoints{{
		LbEndpoints: []*endpointpb.LbEndpoint{{
			HostIdentifier: &endpointpb.LbEndpoint_Endpoint{Endpoint: &endpointpb.Endpoint{Address: address(to)}},
		}},
	}}})
}

// simpleTLS is what a gateway's server of mode SIMPLE gets.
func (s *site) simpleTLS(p *plane) *tlspb.DownstreamTlsContext {
	cert, key := p.serverCertificate(s.t)
	bytes := func(b []byte) *corepb.DataSource {
		return &corepb.DataSource{Specifier: &corepb.DataSource_InlineBytes{InlineBytes: b}}
	}
	s.add(resource.SecretType, &tlspb.Secret{Name: credential, Type: &tlspb.Secret_TlsCertificate{
		TlsCertificate: &tlspb.TlsCertificate{CertificateChain: bytes(cert), PrivateKey: bytes(key)},
	}})
	return &tlspb.DownstreamTlsContext{
		RequireClientCertificate: wrapperspb.Bool(false),
		CommonTlsContext: &tlspb.CommonTlsContext{
			AlpnProtocols: []string{"h2", "http/1.1"},
			TlsParams:     &tlspb.TlsParameters{TlsMinimumProtocolVersion: tlspb.TlsParameters_TLSv1_2},
			TlsCertificateSdsSecretConfigs: []*tlspb.SdsSecretConfig{{
				Name: credential, SdsConfig: ads(),
			}},
		},
	}
}

// meshCommon is what both ends of mesh TLS share: the workload's identity, and
// peers of the same root.
func meshCommon(alpn []string, peer string) *tlspb.CommonTlsContext {
	return &tlspb.CommonTlsContext{
		AlpnProtocols:                  alpn,
		TlsCertificateSdsSecretConfigs: []*tlspb.SdsSecretConfig{{Name: "default", SdsConfig: ads()}},
		ValidationContextType: &tlspb.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlspb.CommonTlsContext_CombinedCertificateValidationContext{
				//nolint:staticcheck // match_subject_alt_names is what Istio sends
				DefaultValidationContext: &tlspb.CertificateValidationContext{
					MatchSubjectAltNames: []*matcherpb.StringMatcher{{MatchPattern: &matcherpb.StringMatcher_Prefix{Prefix: peer}}},
				},
				ValidationContextSdsSecretConfig: &tlspb.SdsSecretConfig{Name: "ROOTCA", SdsConfig: ads()},
			},
		},
	}
}

const meshPeers = "spiffe://cluster.local/"

// meshServer is what an inbound listener in STRICT mode gets.
func meshServer() *tlspb.DownstreamTlsContext {
	return &tlspb.DownstreamTlsContext{
		RequireClientCertificate: wrapperspb.Bool(true), CommonTlsContext: meshCommon([]string{"h2", "http/1.1"}, meshPeers),
	}
}

// meshClient is what a cluster of mesh peers gets.
func meshClient() *tlspb.UpstreamTlsContext {
	return &tlspb.UpstreamTlsContext{CommonTlsContext: meshCommon([]string{"istio", "h2"}, meshPeers)}
}
