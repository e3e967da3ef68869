package xds

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"lateen.dev/lateen/internal/bootstrap"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

func clusterAny(t testing.TB, name string) *anypb.Any {
	t.Helper()
	a, err := anypb.New(&clusterpb.Cluster{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func sample(t testing.TB) cache {
	c := cache{}
	c.table(snapshot.TypeCluster).apply(&discoverypb.DeltaDiscoveryResponse{
		TypeUrl: snapshot.TypeCluster,
		Resources: []*discoverypb.Resource{
			{Name: "a", Version: "1", Resource: clusterAny(t, "a")}, {Name: "b", Version: "2", Resource: clusterAny(t, "b")},
		},
	})
	c.table(TypeSecret).apply(&discoverypb.DeltaDiscoveryResponse{
		TypeUrl:   TypeSecret,
		Resources: []*discoverypb.Resource{{Name: "s", Version: "1", Resource: &anypb.Any{TypeUrl: TypeSecret, Value: []byte("PRIVATE")}}},
	})
	return c
}

func TestLastGood(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	own := fileHead{Identity: "spiffe://cluster.local/ns/a/sa/b", Node: "n", Saved: now}
	data, err := sample(t).encode(own)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(data, []byte("PRIVATE")) {
		t.Fatal("a secret is in the file")
	}
	c, err := decodeFile(data, own, now.Add(23*time.Hour), 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if c.table(snapshot.TypeCluster).versions["b"] != "2" || !same(c.table(snapshot.TypeCluster).messages["a"].(*anypb.Any), clusterAny(t, "a")) {
		t.Errorf("read back: %v", c.table(snapshot.TypeCluster))
	}
	for name, f := range map[string]func() ([]byte, fileHead, time.Time){
		"flipped byte": func() ([]byte, fileHead, time.Time) {
			d := bytes.Clone(data)
			d[len(d)-1] ^= 1
			return d, own, now
		},
		"changed time": func() ([]byte, fileHead, time.Time) {
			return bytes.Replace(data, []byte("2026-01-02"), []byte("2026-01-03"), 1), own, now
		},
		"truncated":    func() ([]byte, fileHead, time.Time) { return data[:len(data)-4], own, now },
		"too old":      func() ([]byte, fileHead, time.Time) { return data, own, now.Add(25 * time.Hour) },
		"future":       func() ([]byte, fileHead, time.Time) { return data, own, now.Add(-time.Hour) },
		"other proxy":  func() ([]byte, fileHead, time.Time) { return data, fileHead{Identity: own.Identity, Node: "m"}, now },
		"other holder": func() ([]byte, fileHead, time.Time) { return data, fileHead{Identity: "x", Node: "n"}, now },
		"empty":        func() ([]byte, fileHead, time.Time) { return nil, own, now },
	} {
		d, want, at := f()
		if _, err := decodeFile(d, want, at, 24*time.Hour); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestLastGoodFileIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "last-good")
	if err := writeFile(path, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatal(st.Mode(), err)
	}
	if _, err := readFile(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := readFile(path); err == nil {
		t.Error("a file that others may read was trusted")
	}
}

func FuzzLastGood(f *testing.F) {
	own := fileHead{Identity: "i", Node: "n", Saved: time.Unix(1000, 0).UTC()}
	data, err := sample(f).encode(own)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := decodeFile(data, own, time.Unix(1000, 0), time.Hour)
		if err != nil {
			return
		}
		if _, err := c.encode(own); err != nil {
			t.Fatal(err)
		}
	})
}

// judge makes a client whose owner refuses resources named "bad…".
func judge(t *testing.T) (*Client, *[]snapshot.Resources) {
	var seen []snapshot.Resources
	c, err := New(Options{
		Node: bootstrap.Node{ID: "n"},
		Update: func(s State) Answer {
			seen = append(seen, s.Resources)
			var a Answer
			for name := range s.Resources.Clusters {
				if strings.HasPrefix(name, "bad") {
					a.Rejected = append(a.Rejected, snapshot.Rejected{Type: snapshot.TypeCluster, Name: name, Reason: "no"})
					continue
				}
				a.Endpoints = append(a.Endpoints, name)
			}
			return a
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return c, &seen
}

// script is a stream that keeps what was sent.
type script struct {
	discoverypb.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	sent []*discoverypb.DeltaDiscoveryRequest
}

func (s *script) Send(r *discoverypb.DeltaDiscoveryRequest) error {
	s.sent = append(s.sent, r)
	return nil
}

func TestClientTakesBackWhatIsRefused(t *testing.T) {
	c, _ := judge(t)
	out := &script{}
	s := &connection{stream: out, node: c.node}
	res := func(name, version string) *discoverypb.Resource {
		return &discoverypb.Resource{Name: name, Version: version, Resource: clusterAny(t, name+version)}
	}
	if err := c.handle(s, &discoverypb.DeltaDiscoveryResponse{
		TypeUrl: snapshot.TypeCluster, Nonce: "1", Resources: []*discoverypb.Resource{res("good", "1"), res("bad", "1")},
	}); err != nil {
		t.Fatal(err)
	}
	table := c.cache.table(snapshot.TypeCluster)
	if table.messages["bad"] != nil || table.versions["good"] != "1" {
		t.Errorf("cache: %v", table)
	}
	if len(out.sent) != 2 || out.sent[0].GetErrorDetail().GetMessage() != "bad: no" || out.sent[0].GetResponseNonce() != "1" ||
		out.sent[0].GetNode().GetId() != "n" || out.sent[1].GetNode() != nil ||
		len(out.sent[1].GetResourceNamesSubscribe()) != 1 || out.sent[1].GetResourceNamesSubscribe()[0] != "good" {
		t.Errorf("sent: %v", out.sent)
	}
	// The same bytes again are no change: the pointer stays, so tables are shared.
	before := table.messages["good"]
	if err := c.handle(s, &discoverypb.DeltaDiscoveryResponse{
		TypeUrl: snapshot.TypeCluster, Nonce: "2",
		Resources: []*discoverypb.Resource{{Name: "good", Version: "2", Resource: clusterAny(t, "good1")}},
	}); err != nil {
		t.Fatal(err)
	}
	if table.messages["good"] != before || table.versions["good"] != "2" || out.sent[2].GetErrorDetail() != nil {
		t.Errorf("same bytes: %v", out.sent[2])
	}
	// An answer that there is nothing is an answer.
	if err := c.handle(s, &discoverypb.DeltaDiscoveryResponse{
		TypeUrl: snapshot.TypeEndpoint, Nonce: "3", RemovedResources: []string{"good"},
	}); err != nil {
		t.Fatal(err)
	}
	if c.cache.table(snapshot.TypeEndpoint).messages["good"] == nil || len(c.pending) != 0 {
		t.Error("removed endpoints are still waited for")
	}
	// On a new stream the client says what it has.
	out.sent = nil
	if err := c.subscribeAll(s); err != nil {
		t.Fatal(err)
	}
	if first := out.sent[0]; first.GetTypeUrl() != snapshot.TypeCluster || first.GetInitialResourceVersions()["good"] != "2" ||
		len(first.GetInitialResourceVersions()) != 1 {
		t.Errorf("first request: %v", first)
	}
}

func TestClientStopsWaitingForEndpoints(t *testing.T) {
	c, seen := judge(t)
	now := time.Unix(1000, 0)
	c.o.Now = func() time.Time { return now }
	s := &connection{stream: &script{}}
	if err := c.handle(s, &discoverypb.DeltaDiscoveryResponse{
		TypeUrl: snapshot.TypeCluster, Resources: []*discoverypb.Resource{{Name: "a", Resource: clusterAny(t, "a")}},
	}); err != nil {
		t.Fatal(err)
	}
	now = now.Add(endpointsTimeout)
	if err := c.expire(s); err != nil || len(c.pending) != 1 {
		t.Fatal("given up too early", err)
	}
	now = now.Add(time.Second)
	if err := c.expire(s); err != nil || len(c.pending) != 0 || (*seen)[len(*seen)-1].Endpoints["a"] == nil {
		t.Fatal("still waiting", err)
	}
}
