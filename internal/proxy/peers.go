package proxy

import (
	"encoding/base64"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"lateen.dev/lateen/internal/proxy/record"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// peers translates the x-envoy-peer-metadata headers with which Istio's proxies
// tell each other who they are (base64 of a google.protobuf.Struct). It is
// telemetry only: nothing here is trusted by policy. Safe for concurrent use.
type peers struct {
	id, metadata string
	mu           sync.RWMutex
	known        map[string]snapshot.Workload
}

// Bounds: descriptions kept decoded, and the size of one.
const (
	maxPeers        = 1024
	maxPeerMetadata = 8 << 10
)

func newPeers(id *record.Identity) *peers {
	p := &peers{id: id.NodeID, known: map[string]snapshot.Workload{}}
	labels := map[string]any{
		"app": id.App, "version": id.Workload.Version,
		"service.istio.io/canonical-name":     id.CanonicalService,
		"service.istio.io/canonical-revision": id.CanonicalRevision,
	}
	for k, v := range labels {
		if v == "" {
			delete(labels, k)
		}
	}
	s, err := structpb.NewStruct(map[string]any{
		"NAME": id.Pod, "NAMESPACE": id.Namespace, "WORKLOAD_NAME": id.Name,
		"CLUSTER_ID": id.Workload.Cluster, "LABELS": labels,
	})
	if err != nil {
		return p // a name that is not UTF-8: announce nothing
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(s)
	if err == nil && id.NodeID != "" {
		p.metadata = base64.StdEncoding.EncodeToString(raw)
	}
	return p
}

// Own implements stream.PeerMetadata.
func (p *peers) Own() (id, metadata string) { return p.id, p.metadata }

// Read implements stream.PeerMetadata.
func (p *peers) Read(id, metadata []byte) (snapshot.Workload, bool) {
	if len(metadata) == 0 || len(metadata) > maxPeerMetadata {
		return snapshot.Workload{}, false
	}
	p.mu.RLock()
	w, ok := p.known[string(metadata)]
	p.mu.RUnlock()
	if ok {
		return w, w != snapshot.Workload{}
	}
	w = decodePeer(metadata)
	p.mu.Lock()
	if len(p.known) >= maxPeers {
		clear(p.known)
	}
	p.known[string(metadata)] = w
	p.mu.Unlock()
	return w, w != snapshot.Workload{}
}

// decodePeer returns the zero Workload for what cannot be read.
func decodePeer(metadata []byte) (w snapshot.Workload) {
	raw, err := base64.StdEncoding.DecodeString(string(metadata))
	if err != nil {
		return w
	}
	var s structpb.Struct
	if proto.Unmarshal(raw, &s) != nil {
		return w
	}
	text := func(key string) string { return s.GetFields()[key].GetStringValue() }
	labels := s.GetFields()["LABELS"].GetStructValue().GetFields()
	label := func(key string) string { return labels[key].GetStringValue() }
	w = snapshot.Workload{
		Name: text("WORKLOAD_NAME"), Namespace: text("NAMESPACE"), Cluster: text("CLUSTER_ID"),
		App: label("app"), Version: label("version"),
		CanonicalService: label("service.istio.io/canonical-name"), CanonicalRevision: label("service.istio.io/canonical-revision"),
	}
	if w.Name == "" {
		w.Name = text("NAME")
	}
	for _, f := range []*string{&w.Name, &w.Namespace, &w.Cluster, &w.App, &w.Version, &w.CanonicalService, &w.CanonicalRevision} {
		*f = printable(*f)
	}
	return w
}

// printable keeps what a peer says fit for log lines and metric labels.
func printable(s string) string {
	if len(s) > 253 {
		s = s[:253]
	}
	return strings.ToValidUTF8(strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return -1
		}
		return r
	}, s), "")
}
