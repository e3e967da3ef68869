package ads

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"lateen.dev/lateen/internal/control/ca"
	"lateen.dev/lateen/internal/spiffe"
	"lateen.dev/lateen/internal/xdspb/istioca"
)

// leak fails the test when goroutines outlive what was registered for cleanup
// after it.
func leak(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		deadline := time.Now().Add(5 * time.Second)
		for runtime.NumGoroutine() > before {
			if time.Now().After(deadline) {
				buf := make([]byte, 1<<20)
				t.Errorf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
}

// mesh is a Generator that tests edit; each namespace has a world of its own.
type mesh struct {
	mu     sync.Mutex
	now    uint64
	worlds map[string]string
	asked  []string
	broken bool
}

func (m *mesh) Generate(n *Node) (Resources, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked = append(m.asked, n.Key())
	if m.broken {
		return Resources{}, errors.New("broken")
	}
	return world(m.now, m.worlds[n.Namespace]), nil
}

// bench is a server on loopback, in plaintext and behind a real authority.
type bench struct {
	t           *testing.T
	mesh        *mesh
	server      *Server
	ca          *ca.Authority
	plain, mtls string
}

func newBench(t *testing.T, o Options) *bench {
	t.Helper()
	leak(t)
	log := slog.New(slog.DiscardHandler)
	b := &bench{t: t, mesh: &mesh{worlds: map[string]string{}}}
	o.Generator, o.Log = b.mesh, log
	b.server = New(o)
	a, err := ca.Open(ca.Options{Dir: t.TempDir(), TrustDomain: "cluster.local", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	b.ca = a
	start := func(requireSVID bool, opts ...grpc.ServerOption) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer(append(ServerOptions(log), opts...)...)
		b.server.Register(s, requireSVID)
		istioca.Register(s, a)
		done := make(chan struct{})
		go func() { defer close(done); s.Serve(l) }()
		t.Cleanup(func() { s.Stop(); <-done })
		return l.Addr().String()
	}
	b.plain = start(false)
	b.mtls = start(true, grpc.Creds(credentials.NewTLS(a.ServerTLS())))
	return b
}

// set puts a world in force for one namespace.
func (b *bench) set(namespace, s string) {
	b.mesh.mu.Lock()
	b.mesh.worlds[namespace] = s
	b.mesh.now++
	revision := b.mesh.now
	b.mesh.mu.Unlock()
	b.server.Update(revision, func(n *Node) bool { return n.Namespace == namespace })
}

// svid buys a certificate the way a proxy does.
func (b *bench) svid(ns, sa string) tls.Certificate {
	b.t.Helper()
	token, err := b.ca.IssueToken(ca.Binding{Namespace: ns, ServiceAccount: sa, Pod: "p"})
	if err != nil {
		b.t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		b.t.Fatal(err)
	}
	conn := b.dial(nil)
	ctx := metadata.AppendToOutgoingContext(b.t.Context(), "authorization", "Bearer "+token)
	resp, err := istioca.NewClient(conn).CreateCertificate(ctx, &istioca.IstioCertificateRequest{Csr: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))})
	if err != nil {
		b.t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(resp.CertChain[0]))
	return tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key}
}

func (b *bench) dial(cert *tls.Certificate) *grpc.ClientConn {
	b.t.Helper()
	cfg := &tls.Config{RootCAs: b.ca.Roots(), ServerName: "istiod.istio-system.svc"}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	conn, err := grpc.NewClient(b.mtls, grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { conn.Close() })
	return conn
}

func (b *bench) dialPlain() *grpc.ClientConn {
	b.t.Helper()
	conn, err := grpc.NewClient(b.plain, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { conn.Close() })
	return conn
}

func nodepb(t *testing.T, pod, ns string, metadata map[string]any) *corepb.Node {
	t.Helper()
	m := map[string]any{"NAMESPACE": ns, "INSTANCE_IPS": "10.0.0.1,fd00::1"}
	for k, v := range metadata {
		m[k] = v
	}
	s, err := structpb.NewStruct(m)
	if err != nil {
		t.Fatal(err)
	}
	return &corepb.Node{Id: "sidecar~10.0.0.1~" + pod + "." + ns + "~" + ns + ".svc.cluster.local", Cluster: pod + "." + ns, Metadata: s}
}

// deltaClient is a raw delta xDS client.
type deltaClient struct {
	t    *testing.T
	s    discoverypb.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	node *corepb.Node
	stop context.CancelFunc
	last map[string]*discoverypb.DeltaDiscoveryResponse
}

func newDelta(t *testing.T, conn *grpc.ClientConn, node *corepb.Node) *deltaClient {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	s, err := discoverypb.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &deltaClient{t: t, s: s, node: node, stop: cancel, last: map[string]*discoverypb.DeltaDiscoveryResponse{}}
}

func (c *deltaClient) subscribe(short string, initial map[string]string, names ...string) {
	c.t.Helper()
	err := c.s.Send(&discoverypb.DeltaDiscoveryRequest{Node: c.node, TypeUrl: typeOf(short), ResourceNamesSubscribe: names, InitialResourceVersions: initial})
	if err != nil {
		c.t.Fatal(err)
	}
	c.node = nil // on the first message only
}

// next returns the next response in the form of session tests.
func (c *deltaClient) next() string {
	c.t.Helper()
	r, err := c.s.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	out := ShortName(r.TypeUrl)
	for _, e := range r.Resources {
		out += " " + e.Name
	}
	for _, name := range r.RemovedResources {
		out += " -" + name
	}
	c.last[ShortName(r.TypeUrl)] = r
	return out
}

func (c *deltaClient) want(want string) {
	c.t.Helper()
	if got := c.next(); got != want {
		c.t.Fatalf("received %q, want %q", got, want)
	}
}

func (c *deltaClient) ack(short, refusal string) {
	c.t.Helper()
	r := &discoverypb.DeltaDiscoveryRequest{TypeUrl: typeOf(short), ResponseNonce: c.last[short].Nonce}
	if refusal != "" {
		r.ErrorDetail = &statuspb.Status{Code: int32(codes.InvalidArgument), Message: refusal}
	}
	if err := c.s.Send(r); err != nil {
		c.t.Fatal(err)
	}
}

func (c *deltaClient) refused() error {
	_, err := c.s.Recv()
	return err
}

// waitStatus polls until the status of the only proxy satisfies ok.
func (b *bench) waitStatus(what string, ok func(Status) bool) Status {
	b.t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		all := b.server.Status()
		if len(all) == 1 && ok(all[0]) {
			return all[0]
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("%s: status is %+v", what, all)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestDelta_pushAckNackReconnectOverMTLS(t *testing.T) {
	b := newBench(t, Options{RemovalDelay: time.Millisecond})
	cert := b.svid("default", "web")
	c := newDelta(t, b.dial(&cert), nodepb(t, "web-1", "default", map[string]any{"LATEEN_CAPS": []any{"http1", "tcp"}}))
	c.subscribe("CDS", nil)
	b.set("default", "CDS a=1 old=1; EDS a=1; LDS l=1") // nothing is sent before the first Update
	c.want("CDS a old")
	c.ack("CDS", "")
	c.subscribe("LDS", nil)
	c.want("LDS l")
	c.ack("LDS", "")
	st := b.waitStatus("synced", func(s Status) bool { return s.Revision == 1 && s.Types["LDS"].State == Synced })
	if st.Node.Key() != "web-1.default" || st.Types["CDS"].Count != 2 || st.Types["RDS"].State != Unwanted || st.CertExpiry.IsZero() {
		t.Errorf("status %+v", st)
	}

	b.set("other", "CDS x=1") // concerns somebody else
	b.waitStatus("untouched", func(s Status) bool { return s.Revision == 2 })

	b.set("default", "CDS a=1; EDS a=1; LDS l=2")
	c.want("LDS l")
	b.set("default", "CDS a=1 c=1; EDS a=1; LDS l=3") // waits for the answer, and merges with the next
	b.set("default", "CDS a=1 c=2; EDS a=1; LDS l=4")
	c.ack("LDS", "listener l: no such filter\x1b[31m")
	c.want("CDS c")
	c.want("LDS l")
	st = b.waitStatus("refused", func(s Status) bool { return s.Types["LDS"].State == Refused })
	if st.Types["LDS"].Reason != "listener l: no such filter [31m" || st.Revision >= 5 {
		t.Errorf("status %+v", st)
	}
	c.ack("CDS", "")
	c.ack("LDS", "")
	c.want("CDS -old")
	c.ack("CDS", "")
	b.waitStatus("mended", func(s Status) bool { return s.Types["LDS"].State == Synced && s.Revision == 5 })
	sent, ok := b.server.Resources("web-1.default")
	if !ok || len(sent[clusterType]) != 2 || sent[clusterType]["a"] == nil {
		t.Errorf("resources %v, %v", sent, ok)
	}

	versions := map[string]string{"c": "stale"}
	versions["a"] = b.versionOf("web-1.default", clusterType, "a")
	c.stop()
	again := newDelta(t, b.dial(&cert), nodepb(t, "web-1", "default", nil))
	again.subscribe("CDS", versions)
	again.want("CDS c")
}

func (b *bench) versionOf(key, typeURL, name string) string {
	b.server.mu.Lock()
	defer b.server.mu.Unlock()
	for st := range b.server.streams {
		if st.node.Key() == key {
			st.mu.Lock()
			defer st.mu.Unlock()
			return st.session.set.get(typeURL, name).version
		}
	}
	return ""
}

func TestIdentity_decidesWhatAProxyMayBe(t *testing.T) {
	b := newBench(t, Options{Admit: func(n *Node) (any, error) {
		if n.Name == "ghost" {
			return nil, errors.New("no such pod")
		}
		return "seen", nil
	}})
	b.set("default", "CDS a=1; SDS s=1")
	cert := b.svid("default", "web")
	try := func(what string, conn *grpc.ClientConn, node *corepb.Node, code codes.Code) {
		t.Helper()
		c := newDelta(t, conn, node)
		// The server may refuse before it reads: then sending fails, too.
		_ = c.s.Send(&discoverypb.DeltaDiscoveryRequest{Node: node, TypeUrl: clusterType})
		if err := c.refused(); status.Code(err) != code {
			t.Errorf("%s: %v, want %v", what, err, code)
		}
	}
	try("no certificate", b.dial(nil), nodepb(t, "web-1", "default", nil), codes.Unauthenticated)
	try("another namespace", b.dial(&cert), nodepb(t, "web-1", "other", nil), codes.PermissionDenied)
	try("another service account", b.dial(&cert), nodepb(t, "web-1", "default", map[string]any{"SERVICE_ACCOUNT": "admin"}), codes.PermissionDenied)
	try("refused by the hook", b.dial(&cert), nodepb(t, "ghost", "default", nil), codes.PermissionDenied)
	try("namespaces that differ", b.dial(&cert), nodepb(t, "web-1", "default", map[string]any{"NAMESPACE": "x"}), codes.InvalidArgument)
	try("no node", b.dial(&cert), nil, codes.InvalidArgument)
	try("role", b.dial(&cert), &corepb.Node{Id: "ztunnel~1.2.3.4~a.b~c"}, codes.InvalidArgument)
	try("form", b.dial(&cert), &corepb.Node{Id: strings.Repeat("x", 1000)}, codes.InvalidArgument)

	c := newDelta(t, b.dialPlain(), nodepb(t, "web-1", "default", nil))
	c.subscribe("SDS", nil, "s")
	c.want("SDS -s") // secrets are not for callers who proved nothing
	m := newDelta(t, b.dial(&cert), nodepb(t, "web-1", "default", nil))
	m.subscribe("SDS", nil, "s")
	m.want("SDS s")
	b.mesh.mu.Lock()
	defer b.mesh.mu.Unlock()
	if slices.ContainsFunc(b.mesh.asked, func(k string) bool { return k != "web-1.default" }) {
		t.Errorf("resources were made for refused nodes: %v", b.mesh.asked)
	}
}

func TestStream_endsWhenItsCertificateExpires(t *testing.T) {
	now := time.Now()
	var mu sync.Mutex
	b := newBench(t, Options{Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now }})
	b.set("default", "CDS a=1")
	cert := b.svid("default", "web")
	c := newDelta(t, b.dial(&cert), nodepb(t, "web-1", "default", nil))
	c.subscribe("CDS", nil)
	c.want("CDS a")
	mu.Lock()
	now = now.Add(25 * time.Hour)
	mu.Unlock()
	c.ack("CDS", "")
	if err := c.refused(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("got %v", err)
	}
}

func TestSotW_pushAndAck(t *testing.T) {
	b := newBench(t, Options{})
	b.set("default", "CDS a=1 b=1; EDS a=1 b=1")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s, err := discoverypb.NewAggregatedDiscoveryServiceClient(b.dialPlain()).StreamAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	send := func(r *discoverypb.DiscoveryRequest) {
		t.Helper()
		if err := s.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	recv := func(typeURL string, count int) *discoverypb.DiscoveryResponse {
		t.Helper()
		r, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if r.TypeUrl != typeURL || len(r.Resources) != count || r.VersionInfo == "" {
			t.Fatalf("received %s with %d resources, want %s with %d", r.TypeUrl, len(r.Resources), typeURL, count)
		}
		return r
	}
	send(&discoverypb.DiscoveryRequest{Node: nodepb(t, "web-1", "default", nil), TypeUrl: clusterType})
	r := recv(clusterType, 2)
	send(&discoverypb.DiscoveryRequest{TypeUrl: clusterType, ResponseNonce: r.Nonce, VersionInfo: r.VersionInfo})
	send(&discoverypb.DiscoveryRequest{TypeUrl: endpointType, ResourceNames: []string{"a", "b"}})
	r = recv(endpointType, 2)
	send(&discoverypb.DiscoveryRequest{TypeUrl: endpointType, ResponseNonce: r.Nonce, VersionInfo: r.VersionInfo, ResourceNames: []string{"a", "b"}})
	b.waitStatus("synced", func(s Status) bool { return s.Revision == 1 && s.Types["EDS"].State == Synced })
	b.set("default", "CDS a=1 b=1; EDS a=1 b=22")
	recv(endpointType, 1)
}

func TestServer_boundsAndFailures(t *testing.T) {
	b := newBench(t, Options{MaxStreamsPerIdentity: 1, MaxNames: 2})
	b.set("default", "CDS a=1")
	conn := b.dialPlain()
	first := newDelta(t, conn, nodepb(t, "web-1", "default", nil))
	first.subscribe("CDS", nil)
	first.want("CDS a")
	second := newDelta(t, conn, nodepb(t, "web-2", "default", nil))
	second.subscribe("CDS", nil)
	if err := second.refused(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("second stream: %v", err)
	}
	first.subscribe("EDS", nil, "a", "b", "c")
	if err := first.refused(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("too many names: %v", err)
	}
	b.waitGone()
	b.mesh.mu.Lock()
	b.mesh.broken = true
	b.mesh.mu.Unlock()
	third := newDelta(t, conn, nodepb(t, "web-3", "default", nil))
	third.subscribe("CDS", nil)
	if err := third.refused(); status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "broken") {
		t.Errorf("broken generator: %v", err)
	}
}

func (b *bench) waitGone() {
	b.t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for len(b.server.Status()) > 0 {
		if time.Now().After(deadline) {
			b.t.Fatal("streams remain")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestServer_manyProxiesAtOnce has a slow one among many: it holds up nobody
// and gets the sum of what it missed.
func TestServer_manyProxiesAtOnce(t *testing.T) {
	b := newBench(t, Options{})
	b.set("default", "CDS a=0; LDS l=0")
	conn := b.dialPlain()
	slow := newDelta(t, conn, nodepb(t, "slow", "default", nil))
	slow.subscribe("CDS", nil)
	slow.want("CDS a")

	const proxies, edits = 40, 30
	var wg sync.WaitGroup
	errs := make(chan error, proxies)
	for i := range proxies {
		c := newDelta(t, conn, nodepb(t, fmt.Sprint("web-", i), "default", nil))
		c.subscribe("CDS", nil)
		wg.Go(func() {
			for {
				r, err := c.s.Recv()
				if err != nil {
					errs <- fmt.Errorf("proxy %d: %w", i, err)
					return
				}
				if err := c.s.Send(&discoverypb.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce}); err != nil {
					errs <- fmt.Errorf("proxy %d: %w", i, err)
					return
				}
				for _, e := range r.Resources {
					if e.Name == "last" {
						return
					}
				}
			}
		})
	}
	for i := range edits {
		b.set("default", fmt.Sprintf("CDS a=%d; LDS l=0", i+1))
	}
	b.set("default", "CDS a=x last=1; LDS l=0")
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	slow.ack("CDS", "")
	slow.want("CDS a last")
}

func TestParseNode_fields(t *testing.T) {
	n, err := ParseNode(nodepb(t, "web.v1-0", "default", map[string]any{
		"LATEEN_CAPS": "http1, tcp", "LATEEN_VERSION": "0.1", "SERVICE_ACCOUNT": "web",
	}), spiffe.ID{TrustDomain: "td", Namespace: "default", ServiceAccount: "web"})
	if err != nil {
		t.Fatal(err)
	}
	if n.Key() != "web.v1-0.default" || len(n.Caps) != 2 || !n.Caps["tcp"] || n.Agent != "lateen-proxy 0.1" {
		t.Errorf("%+v", n)
	}
}

func FuzzParseNode(f *testing.F) {
	f.Add("sidecar~10.0.0.1~a.b~c", "b", "sa", "10.0.0.1")
	f.Add("router~::1~a.b.c~d", "", "", "")
	f.Fuzz(func(t *testing.T, id, ns, sa, ips string) {
		m, err := structpb.NewStruct(map[string]any{"NAMESPACE": ns, "SERVICE_ACCOUNT": sa, "INSTANCE_IPS": ips, "LATEEN_CAPS": ips})
		if err != nil {
			return
		}
		who := spiffe.ID{TrustDomain: "td", Namespace: "b", ServiceAccount: "sa"}
		n, err := ParseNode(&corepb.Node{Id: id, Metadata: m}, who)
		if err == nil && (n.Namespace != who.Namespace || n.ServiceAccount != who.ServiceAccount || n.Name == "") {
			t.Errorf("accepted as %+v", n)
		}
	})
}
