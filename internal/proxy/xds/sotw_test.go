package xds

import (
	"testing"

	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"lateen.dev/lateen/internal/proxy/snapshot"
)

// worldScript is a stream whose responses are given and whose requests are kept.
type worldScript struct {
	discoverypb.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	responses []*discoverypb.DiscoveryResponse
	sent      []*discoverypb.DiscoveryRequest
}

func (s *worldScript) Send(r *discoverypb.DiscoveryRequest) error {
	s.sent = append(s.sent, r)
	return nil
}

func (s *worldScript) Recv() (*discoverypb.DiscoveryResponse, error) {
	r := s.responses[0]
	s.responses = s.responses[1:]
	return r, nil
}

func (s *worldScript) last() *discoverypb.DiscoveryRequest { return s.sent[len(s.sent)-1] }

func anyOf(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// received is the names and removals of the next response.
func received(t *testing.T, w *world) (names, removed []string) {
	t.Helper()
	r, err := w.Recv()
	if err != nil {
		t.Fatal(err)
	}
	for _, res := range r.GetResources() {
		names = append(names, res.GetName())
	}
	return names, r.GetRemovedResources()
}

func TestWorld_speaksInTermsOfDelta(t *testing.T) {
	one, two := anyOf(t, &listenerpb.Listener{Name: "one"}), anyOf(t, &listenerpb.Listener{Name: "two"})
	s := &worldScript{responses: []*discoverypb.DiscoveryResponse{
		{TypeUrl: snapshot.TypeListener, Nonce: "1", VersionInfo: "v1", Resources: []*anypb.Any{one}},
		{TypeUrl: snapshot.TypeListener, Nonce: "2", VersionInfo: "v2", Resources: []*anypb.Any{two}},
		{TypeUrl: snapshot.TypeListener, Nonce: "3", VersionInfo: "v2", Resources: []*anypb.Any{two}},
	}}
	versions := map[string]string{snapshot.TypeListener: "v0"}
	w := newWorld(s, versions)
	send := func(r *discoverypb.DeltaDiscoveryRequest) {
		t.Helper()
		if err := w.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	send(&discoverypb.DeltaDiscoveryRequest{TypeUrl: snapshot.TypeListener, InitialResourceVersions: map[string]string{"old": "v0"}})
	if r := s.last(); r.GetVersionInfo() != "v0" || r.GetResponseNonce() != "" || len(r.GetResourceNames()) != 0 {
		t.Errorf("first request %v", r)
	}
	names, removed := received(t, w)
	if d := cmp.Diff([][]string{{"one"}, {"old"}}, [][]string{names, removed}); d != "" {
		t.Error(d)
	}
	send(&discoverypb.DeltaDiscoveryRequest{TypeUrl: snapshot.TypeListener, ResponseNonce: "1"})
	if r := s.last(); r.GetVersionInfo() != "v1" || r.GetResponseNonce() != "1" {
		t.Errorf("agreement %v", r)
	}
	// A refusal keeps the version; its repetition waits, so that nothing spins.
	bad := &statuspb.Status{Code: 3, Message: "no"}
	_, _ = received(t, w)
	send(&discoverypb.DeltaDiscoveryRequest{TypeUrl: snapshot.TypeListener, ResponseNonce: "2", ErrorDetail: bad})
	if r := s.last(); r.GetVersionInfo() != "v1" || r.GetResponseNonce() != "2" || r.GetErrorDetail().GetMessage() != "no" {
		t.Errorf("refusal %v", r)
	}
	_, _ = received(t, w)
	send(&discoverypb.DeltaDiscoveryRequest{TypeUrl: snapshot.TypeListener, ResponseNonce: "3", ErrorDetail: bad})
	if r := s.last(); r.GetResponseNonce() != "2" {
		t.Errorf("the repeated refusal was sent at once: %v", r)
	}
	if err := w.flush(); err != nil || s.last().GetResponseNonce() != "3" {
		t.Errorf("the repeated refusal was not sent: %v, %v", s.last(), err)
	}
	if versions[snapshot.TypeListener] != "v1" {
		t.Errorf("the next stream would begin with %v", versions)
	}
}

// TestWorld_namedTypesKeepWhatIsMissing: a response of endpoints need not hold all
// of them, and every request names all that are wanted.
func TestWorld_namedTypesKeepWhatIsMissing(t *testing.T) {
	a := anyOf(t, &endpointpb.ClusterLoadAssignment{ClusterName: "a"})
	b := anyOf(t, &discoverypb.Resource{Name: "b", Resource: anyOf(t, &endpointpb.ClusterLoadAssignment{ClusterName: "b"})})
	s := &worldScript{responses: []*discoverypb.DiscoveryResponse{
		{TypeUrl: snapshot.TypeEndpoint, Nonce: "1", VersionInfo: "v1", Resources: []*anypb.Any{a, b}},
		{TypeUrl: snapshot.TypeEndpoint, Nonce: "2", VersionInfo: "v2", Resources: []*anypb.Any{b}},
	}}
	w := newWorld(s, map[string]string{})
	for _, r := range []*discoverypb.DeltaDiscoveryRequest{
		{TypeUrl: snapshot.TypeEndpoint, ResourceNamesSubscribe: []string{"b", "a", "c"}},
		{TypeUrl: snapshot.TypeEndpoint, ResourceNamesUnsubscribe: []string{"c"}},
	} {
		if err := w.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff([]string{"a", "b"}, s.last().GetResourceNames()); d != "" {
		t.Error(d)
	}
	for _, want := range [][]string{{"a", "b"}, {"b"}} {
		names, removed := received(t, w)
		if d := cmp.Diff(want, names); d != "" || len(removed) > 0 {
			t.Errorf("%s, removed %v", d, removed)
		}
	}
}
