package translate

import (
	"strings"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rawpb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlspb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httppb "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherpb "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshconfigpb "istio.io/api/mesh/v1alpha1"
	networkingpb "istio.io/api/networking/v1alpha3"

	"lateen.dev/lateen/internal/control/mesh"
)

// Names of secrets that the proxy's own agent serves.
const (
	secretSVID  = "default"
	secretRoots = "ROOTCA"
)

// meshALPN are the protocols by which mesh peers recognise mutual TLS of the
// mesh, those of HTTP and those of TCP.
var (
	httpALPN = []string{"istio-http/1.0", "istio-http/1.1", "istio-h2"}
	allALPN  = []string{"istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"}
)

// adsSource is a resource that comes over the stream it is named in.
func adsSource() *corepb.ConfigSource {
	return &corepb.ConfigSource{
		ConfigSourceSpecifier: &corepb.ConfigSource_Ads{Ads: &corepb.AggregatedConfigSource{}},
		InitialFetchTimeout:   durationpb.New(0), ResourceApiVersion: corepb.ApiVersion_V3,
	}
}

// agentSecret is a secret that the agent beside the proxy serves (cluster
// sds-grpc of the bootstrap).
func agentSecret(name string) *tlspb.SdsSecretConfig {
	return &tlspb.SdsSecretConfig{Name: name, SdsConfig: &corepb.ConfigSource{
		ConfigSourceSpecifier: &corepb.ConfigSource_ApiConfigSource{ApiConfigSource: &corepb.ApiConfigSource{
			ApiType: corepb.ApiConfigSource_GRPC, SetNodeOnFirstMessageOnly: true, TransportApiVersion: corepb.ApiVersion_V3,
			GrpcServices: []*corepb.GrpcService{{TargetSpecifier: &corepb.GrpcService_EnvoyGrpc_{
				EnvoyGrpc: &corepb.GrpcService_EnvoyGrpc{ClusterName: "sds-grpc"},
			}}},
		}},
		InitialFetchTimeout: durationpb.New(0), ResourceApiVersion: corepb.ApiVersion_V3,
	}}
}

// fileSecret names certificate files, which the agent serves too. Unlike the
// proxy's own identity it need not exist when the proxy starts.
func fileSecret(name string) *tlspb.SdsSecretConfig {
	s := agentSecret(name)
	s.SdsConfig.InitialFetchTimeout = nil
	return s
}

func tlsSocket(ctx *tlspb.UpstreamTlsContext) *corepb.TransportSocket {
	return &corepb.TransportSocket{
		Name: "envoy.transport_sockets.tls", ConfigType: &corepb.TransportSocket_TypedConfig{TypedConfig: pack(ctx)},
	}
}

// setTLS decides how connections of a cluster are secured: what the rule says,
// else mutual TLS of the mesh towards endpoints that accept it.
func (b *builder) setTLS(c *clusterpb.Cluster, s *mesh.Service, p mesh.Port, subset string, policy *networkingpb.TrafficPolicy) {
	settings := policy.GetTls()
	switch {
	case settings == nil:
		b.setAutoTLS(c, s, p, subset, policy)
	case settings.GetMode() == networkingpb.ClientTLSSettings_DISABLE:
	case settings.GetMode() == networkingpb.ClientTLSSettings_ISTIO_MUTUAL:
		sni, sans := settings.GetSni(), settings.GetSubjectAltNames()
		if sni == "" {
			sni = sniName(p.Number, subset, s.Host)
		}
		if len(sans) == 0 {
			sans = b.identities(s)
		}
		c.TransportSocket = tlsSocket(b.meshTLS(sni, sans, p, policy.GetConnectionPool()))
	default:
		b.setClientTLS(c, p, policy)
	}
}

// setAutoTLS is Istio's automatic mutual TLS.
func (b *builder) setAutoTLS(c *clusterpb.Cluster, s *mesh.Service, p mesh.Port, subset string, policy *networkingpb.TrafficPolicy) {
	if !b.autoMTLS() || s.MeshExternal {
		return
	}
	ctx := b.meshTLS(sniName(p.Number, subset, s.Host), b.identities(s), p, policy.GetConnectionPool())
	if c.GetType() == clusterpb.Cluster_ORIGINAL_DST {
		// Without endpoints of its own the cluster cannot tell them apart: all
		// of them must accept mutual TLS.
		all := b.m.EndpointsOf(s, p.Number)
		for _, e := range all {
			if !e.MTLS {
				return
			}
		}
		if len(all) > 0 {
			c.TransportSocket = tlsSocket(ctx)
		}
		return
	}
	c.TransportSocketMatches = []*clusterpb.Cluster_TransportSocketMatch{
		{
			Name: "tlsMode-istio",
			Match: &structpb.Struct{Fields: map[string]*structpb.Value{
				"tlsMode": structpb.NewStringValue("istio"),
			}},
			TransportSocket: tlsSocket(ctx),
		},
		{
			Name: "tlsMode-disabled", Match: &structpb.Struct{},
			TransportSocket: &corepb.TransportSocket{
				Name:       "envoy.transport_sockets.raw_buffer",
				ConfigType: &corepb.TransportSocket_TypedConfig{TypedConfig: pack(&rawpb.RawBuffer{})},
			},
		},
	}
}

func sniName(port uint16, subset, host string) string {
	return "outbound_." + itoa(port) + "_." + subset + "_." + host
}

// alpnTrunk is the protocol by which two proxies of ours agree to carry HTTP/1.1
// as streams of one HTTP/2 connection.
const alpnTrunk = "lateen-h2"

// meshTLS is the client side of mutual TLS between mesh peers.
func (b *builder) meshTLS(sni string, sans []string, p mesh.Port, pool *networkingpb.ConnectionPoolSettings) *tlspb.UpstreamTlsContext {
	alpn := []string{"istio"}
	if b.n.tcpExchange() {
		alpn = []string{"istio-peer-exchange", "istio"}
	}
	switch {
	case b.wantsHTTP2(p, pool):
		alpn = append(alpn, "h2")
	case b.trunks(p, pool):
		alpn = append([]string{alpnTrunk}, alpn...)
	}
	return &tlspb.UpstreamTlsContext{
		Sni: sni,
		CommonTlsContext: &tlspb.CommonTlsContext{
			AlpnProtocols: alpn, TlsParams: clientParams(),
			TlsCertificateSdsSecretConfigs: []*tlspb.SdsSecretConfig{agentSecret(secretSVID)},
			ValidationContextType:          validation(exactSANs(sans), agentSecret(secretRoots)),
		},
	}
}

// trunks reports whether HTTP/1.1 to a port may share connections. Nobody can
// tell, so only a rule that forbids HTTP/2 stands against it.
func (b *builder) trunks(p mesh.Port, pool *networkingpb.ConnectionPoolSettings) bool {
	return b.n.lateen() && b.n.http2() && (p.Protocol == mesh.HTTP || p.Protocol == mesh.Auto) &&
		pool.GetHttp().GetH2UpgradePolicy() != networkingpb.ConnectionPoolSettings_HTTPSettings_DO_NOT_UPGRADE
}

func clientParams() *tlspb.TlsParameters {
	return &tlspb.TlsParameters{
		TlsMinimumProtocolVersion: tlspb.TlsParameters_TLSv1_2, TlsMaximumProtocolVersion: tlspb.TlsParameters_TLSv1_3,
	}
}

func validation(sans []*matcherpb.StringMatcher, roots *tlspb.SdsSecretConfig) *tlspb.CommonTlsContext_CombinedValidationContext {
	return &tlspb.CommonTlsContext_CombinedValidationContext{
		CombinedValidationContext: &tlspb.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext: &tlspb.CertificateValidationContext{
				MatchSubjectAltNames: sans,
			},
			ValidationContextSdsSecretConfig: roots,
		},
	}
}

func exactSANs(sans []string) []*matcherpb.StringMatcher {
	var out []*matcherpb.StringMatcher
	for _, s := range sans {
		out = append(out, exactly(s))
	}
	return out
}

func exactly(s string) *matcherpb.StringMatcher {
	return &matcherpb.StringMatcher{MatchPattern: &matcherpb.StringMatcher_Exact{Exact: s}}
}

func withPrefix(s string) *matcherpb.StringMatcher {
	return &matcherpb.StringMatcher{MatchPattern: &matcherpb.StringMatcher_Prefix{Prefix: s}}
}

func withRegex(s string) *matcherpb.StringMatcher {
	return &matcherpb.StringMatcher{MatchPattern: &matcherpb.StringMatcher_SafeRegex{SafeRegex: &matcherpb.RegexMatcher{Regex: s}}}
}

// setClientTLS is TLS that a rule originates (SIMPLE, MUTUAL).
func (b *builder) setClientTLS(c *clusterpb.Cluster, p mesh.Port, policy *networkingpb.TrafficPolicy) {
	s := policy.GetTls()
	common := &tlspb.CommonTlsContext{TlsParams: clientParams()}
	if b.wantsHTTP2(p, policy.GetConnectionPool()) {
		common.AlpnProtocols = []string{"h2"}
	}
	credential := s.GetCredentialName()
	if s.GetMode() == networkingpb.ClientTLSSettings_MUTUAL {
		switch {
		case credential != "" && b.n.router():
			common.TlsCertificateSdsSecretConfigs = []*tlspb.SdsSecretConfig{gatewaySecret(credential)}
		case s.GetClientCertificate() != "":
			common.TlsCertificateSdsSecretConfigs = []*tlspb.SdsSecretConfig{
				fileSecret("file-cert:" + s.GetClientCertificate() + "~" + s.GetPrivateKey()),
			}
		}
	}
	if !s.GetInsecureSkipVerify().GetValue() {
		roots := fileSecret("file-root:system")
		switch {
		case credential != "" && b.n.router():
			roots = gatewaySecret(credential + "-cacert")
		case s.GetCaCertificates() != "":
			roots = fileSecret("file-root:" + s.GetCaCertificates())
		}
		common.ValidationContextType = validation(exactSANs(s.GetSubjectAltNames()), roots)
	}
	c.TransportSocket = tlsSocket(&tlspb.UpstreamTlsContext{Sni: s.GetSni(), CommonTlsContext: common})
	// An ordinary server must not be offered the mesh's own protocols.
	if p.Protocol.IsHTTP() || p.Protocol.IsTLS() || p.Protocol == mesh.Auto {
		c.GetMetadata().GetFilterMetadata()["istio"].Fields["alpn_override"] = structpb.NewStringValue("false")
	}
	if s.GetSni() == "" {
		b.setAutoSNI(c, p, len(s.GetSubjectAltNames()) == 0 && !s.GetInsecureSkipVerify().GetValue())
	}
}

// setAutoSNI uses the host of each request as server name, and demands it in
// the certificate if the rule names none.
func (b *builder) setAutoSNI(c *clusterpb.Cluster, p mesh.Port, validate bool) {
	if p.Protocol == mesh.TCP {
		return
	}
	options := &httppb.HttpProtocolOptions{UpstreamProtocolOptions: http1Only()}
	if have := c.GetTypedExtensionProtocolOptions()[httpOptionsName]; have != nil {
		options = &httppb.HttpProtocolOptions{}
		if err := have.UnmarshalTo(options); err != nil {
			panic("translate: options of " + c.GetName() + ": " + err.Error())
		}
	}
	options.UpstreamHttpProtocolOptions = &corepb.UpstreamHttpProtocolOptions{AutoSni: true, AutoSanValidation: validate}
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptionsName: pack(options)}
}

// meshCiphers are Istio's for TLS 1.2 between mesh peers.
var meshCiphers = []string{
	"ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384",
	"ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256",
	"AES256-GCM-SHA384", "AES128-GCM-SHA256",
}

// serverTLS is the server side of mutual TLS between mesh peers.
func (b *builder) serverTLS(http bool) *corepb.TransportSocket {
	var sans []*matcherpb.StringMatcher
	for _, td := range b.trustDomains() {
		sans = append(sans, withPrefix("spiffe://"+td+"/"))
	}
	params := clientParams()
	params.CipherSuites = meshCiphers
	if b.m.Config.GetMeshMTLS().GetMinProtocolVersion() == meshconfigpb.MeshConfig_TLSConfig_TLSV1_3 {
		params.TlsMinimumProtocolVersion = tlspb.TlsParameters_TLSv1_3
	}
	return downstreamSocket(&tlspb.DownstreamTlsContext{
		RequireClientCertificate: wrapperspb.Bool(true),
		CommonTlsContext: &tlspb.CommonTlsContext{
			AlpnProtocols: b.serverALPN(http), TlsParams: params,
			TlsCertificateSdsSecretConfigs: []*tlspb.SdsSecretConfig{agentSecret(secretSVID)},
			ValidationContextType:          validation(sans, agentSecret(secretRoots)),
		},
	})
}

// serverALPN lists what the server side negotiates. Our own proxy's TLS library
// ends handshakes without a common protocol, so it is told the mesh's own name
// too.
func (b *builder) serverALPN(http bool) []string {
	if b.n.lateen() {
		switch {
		case !http:
			return []string{"istio"}
		case b.n.http2():
			return []string{alpnTrunk, "h2", "http/1.1", "istio"}
		}
		return []string{"http/1.1", "istio"}
	}
	if http || !b.n.tcpExchange() {
		return []string{"h2", "http/1.1"}
	}
	return []string{"istio-peer-exchange", "h2", "http/1.1"}
}

func downstreamSocket(ctx *tlspb.DownstreamTlsContext) *corepb.TransportSocket {
	return &corepb.TransportSocket{
		Name: "envoy.transport_sockets.tls", ConfigType: &corepb.TransportSocket_TypedConfig{TypedConfig: pack(ctx)},
	}
}

// gatewaySecret is a Kubernetes Secret that is sent to gateways over ADS.
func gatewaySecret(name string) *tlspb.SdsSecretConfig {
	if !strings.Contains(name, "://") {
		name = "kubernetes://" + name
	}
	return &tlspb.SdsSecretConfig{Name: name, SdsConfig: &corepb.ConfigSource{
		ConfigSourceSpecifier: &corepb.ConfigSource_Ads{Ads: &corepb.AggregatedConfigSource{}},
		ResourceApiVersion:    corepb.ApiVersion_V3,
	}}
}
