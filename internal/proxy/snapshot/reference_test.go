package snapshot

import (
	"compress/gzip"
	"encoding/json"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	_ "github.com/cncf/xds/go/udpa/type/v1" // TypedStruct in listeners
	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routepb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dynamic_forward_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/dynamic_forward_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_stats/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_web/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/stateful_session/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_src/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/ext_authz/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/mongo_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/redis_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/sni_cluster/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/sni_dynamic_forward_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/http/original_ip_detection/xff/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/network/dns_resolver/cares/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/path/rewrite/uri_template/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/rbac/matchers/upstream_ip_port/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/proxy_protocol/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// loadReference reads one recorded answer of istiod: resources by type and name
// in protobuf JSON. Types without a Go package are wrapped in a TypedStruct.
func loadReference(t testing.TB, file string) Resources {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var r io.Reader = f
	if strings.HasSuffix(file, ".gz") {
		if r, err = gzip.NewReader(f); err != nil {
			t.Fatal(err)
		}
	}
	var raw map[string]map[string]json.RawMessage
	if err := json.NewDecoder(r).Decode(&raw); err != nil {
		t.Fatal(err)
	}
	load := func(kind string, empty func() proto.Message) map[string]proto.Message {
		out := map[string]proto.Message{}
		for name, text := range raw[kind] {
			m := empty()
			if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, m); err != nil {
				t.Fatalf("%s: %s %s: %v", file, kind, name, err)
			}
			out[name] = m
		}
		return out
	}
	return Resources{
		Listeners: load("listeners", func() proto.Message { return &listenerpb.Listener{} }),
		Clusters:  load("clusters", func() proto.Message { return &clusterpb.Cluster{} }),
		Endpoints: load("endpoints", func() proto.Message { return &endpointpb.ClusterLoadAssignment{} }),
		Routes:    load("routes", func() proto.Message { return &routepb.RouteConfiguration{} }),
	}
}

// TestReference compiles what istiod makes of small inputs. Whatever is refused
// is listed here with its reason.
func TestReference(t *testing.T) {
	want := map[string]string{
		"04-sidecar-go-app outbound|9002||sniff-svc.default.svc.cluster.local": "ProxyProtocolUpstreamTransport",
		"06-sidecar-go-app virtualInbound":                                     `http_filters[2] "envoy.filters.http.ext_authz": filter type "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz" is not supported`,
	}
	files, err := filepath.Glob("testdata/istiod/*.json.gz")
	if err != nil || len(files) < 8 {
		t.Fatal("no recorded answers", err)
	}
	for _, f := range files {
		in := loadReference(t, f)
		s, rejected := Compile(in, nil)
		for _, r := range rejected {
			key := strings.TrimSuffix(filepath.Base(f), ".json.gz") + " " + r.Name
			if w, ok := want[key]; !ok || !strings.Contains(r.Reason, w) {
				t.Errorf("%s: refused: %s", key, r.Reason)
			}
			delete(want, key)
		}
		if len(s.Clusters)+len(s.Listeners)+len(rejected) != len(in.Clusters)+len(in.Listeners) {
			t.Errorf("%s: something got lost", f)
		}
		warmed, waiting := Warmed(s, nil, nil)
		if len(waiting) > 0 || len(warmed.Listeners) != len(s.Listeners) {
			t.Errorf("%s: complete answers are waited for: %v", f, waiting)
		}
	}
	for key := range want {
		t.Errorf("%s was not refused", key)
	}
}

func TestReferenceInbound(t *testing.T) {
	s, _ := Compile(loadReference(t, "testdata/istiod/01-sidecar-go-app.json.gz"), nil)
	at := func(transport string, alpn ...string) *FilterChain {
		return s.Inbound.Match(ConnInfo{
			Destination: netip.MustParseAddrPort("10.244.1.11:8080"), Source: netip.MustParseAddrPort("10.244.9.9:999"),
			Transport: transport, ALPN: alpn,
		})
	}
	mtls := at(TransportTLS, "istio-http/1.1", "istio", "http/1.1")
	if mtls == nil || mtls.HTTP == nil || mtls.TLS == nil || !mtls.TLS.RequireClientCert || mtls.TLS.SessionTickets ||
		mtls.TLS.Validation.RootSecret != "ROOTCA" || len(mtls.TLS.Validation.SANs) != 1 {
		t.Fatalf("mTLS chain: %+v", mtls)
	}
	if !mtls.TLS.Validation.SANs[0].MatchString("spiffe://cluster.local/ns/x/sa/y") || mtls.TLS.Validation.SANs[0].MatchString("spiffe://evil/ns/x/sa/y") {
		t.Error("trust domain is not what is matched")
	}
	if plain := at(TransportRaw); plain == nil || plain.HTTP == nil || plain.TLS != nil {
		t.Errorf("plaintext chain: %+v", plain)
	}
	if h := mtls.HTTP; !h.NormalizePath || h.ForwardClientCert != XFCCAppendForward || h.Stats == nil ||
		h.Stats.Reporter != "destination" || h.Tracing.ClientSpan || h.Tracing.Random != 1 || h.ServerName != "istio-envoy" {
		t.Errorf("manager: %+v", h)
	}
	if tls, http := s.Inbound.Inspectors(netip.MustParseAddrPort("10.0.0.1:15006")); tls || http {
		t.Error("inspectors are on for 15006")
	}
	if l := s.OutboundListener(netip.MustParseAddrPort("10.96.1.6:9001")); l == nil || l.Chains[0].TCP.Clusters[0].Cluster != "outbound|9001||tcp-svc.default.svc.cluster.local" {
		t.Errorf("VIP listener: %+v", l)
	}
	if l := s.OutboundListener(netip.MustParseAddrPort("1.2.3.4:8080")); l == nil || l.Name != "0.0.0.0_8080" {
		t.Errorf("wildcard listener: %+v", l)
	}
	if l := s.OutboundListener(netip.MustParseAddrPort("1.2.3.4:1")); l != nil {
		t.Errorf("unknown port: %+v", l)
	}
	c := s.Clusters["outbound|8080||user-service.default.svc.cluster.local"]
	if c.LB != LeastRequest || c.PanicThreshold != 0 || c.Limits.MaxConnections != 4294967295 || c.ConnectTimeout != 10*time.Second ||
		!c.Warm || len(c.Endpoints) == 0 || c.Service != "user-service.default.svc.cluster.local" || c.ServiceName != "user-service" {
		t.Errorf("cluster: %+v", c)
	}
	e := c.Endpoints[0]
	tr, ok := c.Transport(e)
	if !ok || tr.TLS == nil || !tr.TLS.Mesh || tr.TLS.SNI != "outbound_.8080_._.user-service.default.svc.cluster.local" ||
		e.Workload.CanonicalService != "user-service" || e.Labels["tlsMode"] != "istio" {
		t.Errorf("endpoint: %+v, transport %+v", e, tr)
	}
	if tr, ok := c.Transport(&Endpoint{}); !ok || tr.TLS != nil {
		t.Errorf("endpoint without mTLS: %+v", tr)
	}
	if p := s.Clusters["InboundPassthroughCluster"]; p.Type != OriginalDst || p.Bind != netip.MustParseAddr("127.0.0.6") {
		t.Errorf("passthrough: %+v", p)
	}
}

func TestReferenceRoutes(t *testing.T) {
	s, _ := Compile(loadReference(t, "testdata/istiod/02-sidecar-go-app.json.gz"), nil)
	table := s.OutboundListener(netip.MustParseAddrPort("1.2.3.4:8080")).Chains[0].HTTP.Routes
	match := func(fields ...string) *Route {
		h := head("GET", "User-Service:8080", "/order?x=1", fields...)
		return table.VirtualHost(h.Authority()).Match(h, 0, &Scratch{})
	}
	if r := match("x-canary", "true"); r.Name != "canary" || r.Clusters[0].Cluster != "outbound|8080|v2|user-service.default.svc.cluster.local" {
		t.Errorf("canary: %+v", r)
	}
	r := match()
	if r.Name != "weighted" || r.Timeout != 5*time.Second || r.Retry.Retries != 3 || r.Retry.PerTryTimeout != 2*time.Second ||
		r.Config != "/apis/networking.istio.io/v1/namespaces/default/virtual-service/user-service" {
		t.Errorf("weighted: %+v %+v", r, r.Retry)
	}
	share := map[string]int{}
	for i := range uint64(1000) {
		share[PickCluster(r.Clusters, i).Cluster]++
	}
	if share["outbound|8080|v1|user-service.default.svc.cluster.local"] != 900 || share["outbound|8080|v2|user-service.default.svc.cluster.local"] != 100 {
		t.Errorf("shares: %v", share)
	}
	c := s.Clusters["outbound|8080|v1|user-service.default.svc.cluster.local"]
	if c.Limits.MaxConnections != 100 || c.Outlier == nil || c.Outlier.Consecutive5xx == 0 || c.Subset != "v1" || c.PanicThreshold != 30 {
		t.Errorf("cluster: %+v %+v", c, c.Outlier)
	}
}

func TestReferenceGateway(t *testing.T) {
	s, _ := Compile(loadReference(t, "testdata/istiod/10-gateway.json.gz"), nil)
	l := s.Listeners["0.0.0.0_8443"]
	for sni, cert := range map[string]string{"shop.example.com": "kubernetes://shop-cert", "api.example.com": "kubernetes://api-cert"} {
		c := l.Match(ConnInfo{Transport: TransportTLS, SNI: sni})
		if c == nil || c.TLS == nil || c.TLS.Certificates[0] != cert {
			t.Errorf("%s: %+v", sni, c)
		}
	}
	if c := l.Match(ConnInfo{Transport: TransportTLS, SNI: "unknown.example.com"}); c != nil {
		t.Errorf("unknown name: %+v", c)
	}
	if c := l.Match(ConnInfo{Transport: TransportTLS, SNI: "pass.example.com"}); c == nil || c.TLS != nil || c.TCP == nil {
		t.Errorf("passthrough: %+v", c)
	}
	if !slices.Contains(s.SecretNames(), "kubernetes://api-cert-cacert") {
		t.Errorf("secrets: %v", s.SecretNames())
	}
	_, waiting := Warmed(s, nil, func(name string) bool { return name != "kubernetes://shop-cert" })
	if len(waiting) != 1 || waiting[0] != (Waiting{Listener: "0.0.0.0_8443", For: "secret kubernetes://shop-cert"}) {
		t.Errorf("waiting: %v", waiting)
	}
}
