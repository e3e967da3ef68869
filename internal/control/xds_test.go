package control

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"

	"lateen.dev/lateen/internal/api"
	"lateen.dev/lateen/internal/control/translate"
	"lateen.dev/lateen/internal/xdspb/istioca"
)

// proxy is a raw delta xDS client that subscribes like lateen-proxy and
// acknowledges everything; it counts what it is sent.
type proxy struct {
	mu       sync.Mutex
	have     map[string]map[string]string // type → name → version
	received map[string]int               // resources by type, since the last reset
	cancel   context.CancelFunc
	done     chan error
}

// connect buys a certificate for a pod and opens its stream.
func (p *plane) connect(ns, sa, pod string, initial map[string]map[string]string) *proxy {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	token, err := p.api.Token(ctx, api.TokenRequest{Namespace: ns, ServiceAccount: sa, Pod: pod})
	if err != nil {
		p.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(token.RootsPEM))
	dial := func(certs ...tls.Certificate) *grpc.ClientConn {
		cfg := &tls.Config{RootCAs: roots, ServerName: "istiod.istio-system.svc", Certificates: certs}
		conn, err := grpc.NewClient(p.xds, grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
		if err != nil {
			p.t.Fatal(err)
		}
		return conn
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		p.t.Fatal(err)
	}
	first := dial()
	resp, err := istioca.NewClient(first).CreateCertificate(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token.Token),
		&istioca.IstioCertificateRequest{Csr: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))})
	first.Close()
	if err != nil {
		p.t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(resp.CertChain[0]))
	conn := dial(tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key})
	s, err := discoverypb.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	meta, err := structpb.NewStruct(map[string]any{
		"NAMESPACE": ns, "SERVICE_ACCOUNT": sa, "INSTANCE_IPS": "10.1.0.9", "LABELS": map[string]any{"app": "client"},
		"LATEEN_CAPS": []any{"http1", "tcp", "tls", "origins", "nds", "rbac", "fault", "cors", "mirror", "outlier"}, "LATEEN_CAPTURE": "mark",
	})
	if err != nil {
		p.t.Fatal(err)
	}
	x := &proxy{have: map[string]map[string]string{}, received: map[string]int{}, cancel: cancel, done: make(chan error, 1)}
	node := &corepb.Node{Id: "sidecar~10.1.0.9~" + pod + "." + ns + "~" + ns + ".svc.cluster.local", Metadata: meta}
	for _, typeURL := range []string{translate.ClusterType, translate.ListenerType, translate.NameType, translate.OriginType} {
		x.have[typeURL] = map[string]string{}
		if err := s.Send(&discoverypb.DeltaDiscoveryRequest{Node: node, TypeUrl: typeURL, InitialResourceVersions: initial[typeURL]}); err != nil {
			p.t.Fatal(err)
		}
		node = nil
	}
	go func() { x.done <- x.follow(s, initial) }()
	p.t.Cleanup(func() { cancel(); <-x.done; conn.Close() })
	return x
}

// follow acknowledges, and subscribes to the endpoints of clusters and the
// routes of listeners by Istio's names.
func (x *proxy) follow(s discoverypb.AggregatedDiscoveryService_DeltaAggregatedResourcesClient, initial map[string]map[string]string) error {
	follows := map[string]string{translate.ClusterType: translate.EndpointType, translate.ListenerType: translate.RouteType}
	for {
		r, err := s.Recv()
		if err != nil {
			return err
		}
		var names []string
		x.mu.Lock()
		if x.have[r.TypeUrl] == nil {
			x.have[r.TypeUrl] = map[string]string{}
		}
		for _, e := range r.Resources {
			if _, known := x.have[r.TypeUrl][e.Name]; !known {
				names = append(names, e.Name)
			}
			x.have[r.TypeUrl][e.Name] = e.Version
			x.received[r.TypeUrl]++
		}
		for _, name := range r.RemovedResources {
			delete(x.have[r.TypeUrl], name)
		}
		x.mu.Unlock()
		if err := s.Send(&discoverypb.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce}); err != nil {
			return err
		}
		if next := follows[r.TypeUrl]; next != "" && len(names) > 0 {
			if next == translate.RouteType {
				names = []string{"80"}
			}
			if err := s.Send(&discoverypb.DeltaDiscoveryRequest{TypeUrl: next, ResourceNamesSubscribe: names, InitialResourceVersions: initial[next]}); err != nil {
				return err
			}
		}
	}
}

// reset returns what was received since the last call, and begins anew.
func (x *proxy) reset() map[string]int {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := x.received
	x.received = map[string]int{}
	return out
}

func (x *proxy) state() map[string]map[string]string {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := map[string]map[string]string{}
	for t, m := range x.have {
		out[t] = maps.Clone(m)
	}
	return out
}

// synced waits until a proxy has acknowledged the newest revision and has
// everything subscribed.
func (p *plane) synced(id string) api.ProxyStatus {
	p.t.Helper()
	var out api.ProxyStatus
	p.wait(id+" synced", func() bool {
		s, err := p.api.Status(p.t.Context())
		if err != nil {
			return false
		}
		i := slices.IndexFunc(s.Proxies, func(x api.ProxyStatus) bool { return x.ID == id })
		if i < 0 || s.Proxies[i].Revision != s.Revision {
			return false
		}
		out = s.Proxies[i]
		for _, short := range []string{"CDS", "EDS", "LDS", "RDS", "NDS", "ORIGIN"} {
			if out.Types[short].State != "synced" {
				return false
			}
		}
		return true
	})
	return out
}

const pod = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web-1","namespace":"default","labels":{"app":"web"}},
"spec":{"serviceAccountName":"web","containers":[{"name":"app","image":"web","ports":[{"containerPort":8080}]}]},
"status":{"phase":"Running","podIP":"10.1.0.5","podIPs":[{"ip":"10.1.0.5"}],"conditions":[{"type":"Ready","status":"True"}]}}`

const slice = `{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":"web-x","namespace":"default","labels":{"kubernetes.io/service-name":"web"}},
"addressType":"IPv4","ports":[{"name":"http","port":8080,"protocol":"TCP"}],
"endpoints":[{"addresses":["10.1.0.5"],"conditions":{"ready":true},"targetRef":{"kind":"Pod","name":"web-1","namespace":"default"}}]}`

func local(objects ...string) api.LocalState {
	s := api.LocalState{Replace: true}
	for _, o := range objects {
		s.Put = append(s.Put, json.RawMessage(o))
	}
	return s
}

const (
	webCluster = "outbound|80||web.default.svc.cluster.local"
	another    = "apiVersion: v1\nkind: Service\nmetadata: {name: another}\nspec: {ports: [{name: http, port: 80}]}\n"
)

func TestXDS_editsReachTheProxyAndCommentsDoNot(t *testing.T) {
	p := newPlane(t)
	p.write("vs.yaml", strings.ReplaceAll(virtualService, "NAME", "good"))
	p.start(func(o *Options) { o.AwaitLocal = true })
	x := p.connect("default", "client", "client-1", nil)
	time.Sleep(50 * time.Millisecond)
	if got := x.reset(); len(got) != 0 {
		t.Fatalf("pushed before the local state is known: %v", got)
	}
	if err := p.api.WriteLocal(t.Context(), local(pod, slice)); err != nil {
		t.Fatal(err)
	}
	st := p.synced("client-1.default")
	if st.Identity != "spiffe://cluster.local/ns/default/sa/client" || st.CertExpiry.IsZero() || st.Types["CDS"].Count == 0 {
		t.Errorf("status %+v", st)
	}
	res, err := p.api.ProxyResources(t.Context(), "client-1.default")
	if err != nil {
		t.Fatal(err)
	}
	if eds := string(res["EDS"][webCluster]); !strings.Contains(eds, "10.1.0.5") {
		t.Errorf("endpoints of web: %s", eds)
	}
	if rds := string(res["RDS"]["80"]); !strings.Contains(rds, "web.default.svc.cluster.local") {
		t.Errorf("routes: %.400s", rds)
	}

	x.reset()
	before := x.state()
	p.write("vs.yaml", "# a comment\n"+strings.ReplaceAll(virtualService, "NAME", "good"))
	p.wait("the origins", func() bool {
		return x.state()[translate.OriginType]["origins"] != before[translate.OriginType]["origins"]
	})
	p.synced("client-1.default")
	if got := x.reset(); len(got) != 1 || got[translate.OriginType] != 1 {
		t.Errorf("a comment pushed %v", got)
	}

	p.write("vs.yaml", strings.ReplaceAll(strings.ReplaceAll(virtualService, "NAME", "better"), "route:", "timeout: 3s, route:"))
	p.wait("the route", func() bool { return x.state()[translate.RouteType]["80"] != before[translate.RouteType]["80"] })
	p.synced("client-1.default")
	if got := x.reset(); got[translate.RouteType] != 1 || got[translate.ClusterType] != 0 || got[translate.ListenerType] != 0 || got[translate.EndpointType] != 0 {
		t.Errorf("a timeout pushed %v", got)
	}

	p.write("more.yaml", another)
	p.wait("the cluster", func() bool {
		return x.state()[translate.ClusterType]["outbound|80||another.default.svc.cluster.local"] != ""
	})
	if err := p.api.WriteLocal(t.Context(), local()); err != nil {
		t.Fatal(err)
	}
	p.wait("no endpoints", func() bool {
		res, err := p.api.ProxyResources(t.Context(), "client-1.default")
		return err == nil && !strings.Contains(string(res["EDS"][webCluster]), "10.1.0.5")
	})
}

func TestXDS_restartPushesNothingThatIsKnown(t *testing.T) {
	p := newPlane(t)
	p.start(func(o *Options) { o.AwaitLocal = true })
	if err := p.api.WriteLocal(t.Context(), local(pod, slice)); err != nil {
		t.Fatal(err)
	}
	x := p.connect("default", "client", "client-1", nil)
	p.synced("client-1.default")
	have := x.state()
	token, err := p.api.Token(t.Context(), api.TokenRequest{Namespace: "default", ServiceAccount: "client", Pod: "client-2"})
	if err != nil {
		t.Fatal(err)
	}
	x.cancel()
	p.stop()

	p.start(func(o *Options) { o.AwaitLocal = true })
	again, err := p.api.Token(t.Context(), api.TokenRequest{Namespace: "default", ServiceAccount: "client", Pod: "client-2"})
	if err != nil || again.RootsPEM != token.RootsPEM {
		t.Errorf("another root after a restart, %v", err)
	}
	y := p.connect("default", "client", "client-1", have)
	if err := p.api.WriteLocal(t.Context(), local(pod, slice)); err != nil {
		t.Fatal(err)
	}
	p.wait("connected", func() bool {
		ps, err := p.api.Proxies(t.Context())
		return err == nil && len(ps) == 1 && ps[0].Types["CDS"].State == "synced" && ps[0].Types["ORIGIN"].State == "synced"
	})
	if got := y.reset(); len(got) != 0 {
		t.Errorf("a proxy that has everything was sent %v", got)
	}
}

// TestXDS_fiftyEditsReachTwentyProxies logs how long an edit takes from file
// saved to acknowledged by every proxy; the budget is measured by the benchmark.
func TestXDS_fiftyEditsReachTwentyProxies(t *testing.T) {
	if testing.Short() {
		t.Skip("fifty edits of a watched file")
	}
	p := newPlane(t)
	p.write("vs.yaml", strings.ReplaceAll(virtualService, "NAME", "good"))
	p.start(nil)
	if err := p.api.WriteLocal(t.Context(), local(pod, slice)); err != nil {
		t.Fatal(err)
	}
	const proxies, edits = 20, 50
	for i := range proxies {
		p.connect("default", "client", fmt.Sprint("client-", i), nil)
	}
	for i := range proxies {
		p.synced(fmt.Sprintf("client-%d.default", i))
	}
	took := make([]time.Duration, 0, edits)
	for i := range edits {
		s, err := p.api.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		p.write("vs.yaml", strings.ReplaceAll(strings.ReplaceAll(virtualService, "NAME", "good"), "route:", fmt.Sprintf("timeout: %dms, route:", i+1)))
		p.wait("acknowledged", func() bool {
			ps, err := p.api.Proxies(t.Context())
			return err == nil && len(ps) == proxies && !slices.ContainsFunc(ps, func(x api.ProxyStatus) bool { return x.Revision <= s.Revision })
		})
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	t.Logf("file saved to %d ACKs: p50 %v, p95 %v, most %v", proxies, took[edits/2], took[edits*95/100], took[edits-1])
}

func TestDebug_answersLoopbackOnly(t *testing.T) {
	p := newPlane(t)
	p.start(nil)
	get := func(path, host string) (int, string) {
		t.Helper()
		req, err := http.NewRequest(http.MethodGet, "http://"+p.debug+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if host != "" {
			req.Host = host
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	if code, body := get("/metrics", ""); code != 200 || !strings.Contains(body, "lateen_control_revision 1") {
		t.Errorf("%d %s", code, body)
	}
	if code, body := get("/debug/endpointz", ""); code != 200 || !strings.Contains(body, "web.default.svc.cluster.local") {
		t.Errorf("%d %s", code, body)
	}
	if code, _ := get("/debug/config_dump?proxyID=nobody.default", ""); code != 404 {
		t.Errorf("unknown proxy: %d", code)
	}
	if code, _ := get("/debug/syncz", "mesh.example.com"); code != 403 {
		t.Errorf("a name that was made to resolve here: %d", code)
	}
	if code, _ := get("/metrics/../debug/syncz", ""); code == 403 {
		t.Error("path was not cleaned")
	}
	http.DefaultClient.CloseIdleConnections()
}
