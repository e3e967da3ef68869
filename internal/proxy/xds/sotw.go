package xds

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"lateen.dev/lateen/internal/proxy/snapshot"
)

// wire is one ADS stream. It speaks in the terms of delta xDS, whose generated
// client is one.
type wire interface {
	Send(*discoverypb.DeltaDiscoveryRequest) error
	Recv() (*discoverypb.DeltaDiscoveryResponse, error)
}

// world is a wire over state-of-the-world ADS: a request names everything that is
// wanted, and a response of listeners or clusters leaves out what is gone. Send and
// Recv may be called at the same time, each by one goroutine.
type world struct {
	stream discoverypb.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	// versions are those agreed to, by type. They outlive the stream: the next
	// one begins with them.
	versions map[string]string

	// Of the sender: everything asked for, and what it answered last.
	wanted map[string]map[string]bool
	nonces map[string]string
	// refused are the versions refused last, by type, and held the answers to
	// their repetition.
	refused map[string]string
	held    map[string]*discoverypb.DiscoveryRequest

	mu sync.Mutex
	// known are the names that the client has, of types whose responses are whole.
	known map[string]map[string]bool
	// open are the versions of responses not yet agreed to, by type and nonce.
	open map[[2]string]string
}

func newWorld(s discoverypb.AggregatedDiscoveryService_StreamAggregatedResourcesClient, versions map[string]string) *world {
	return &world{
		stream: s, versions: versions, wanted: map[string]map[string]bool{}, nonces: map[string]string{},
		refused: map[string]string{}, held: map[string]*discoverypb.DiscoveryRequest{},
		known: map[string]map[string]bool{}, open: map[[2]string]string{},
	}
}

// whole says whether a response of a type holds everything there is: what is
// missing in it is gone. Of the other types, what is missing is unchanged (xDS
// protocol, "Deleting resources").
func whole(typ string) bool { return wildcard(typ) }

// Send implements wire.
func (w *world) Send(r *discoverypb.DeltaDiscoveryRequest) error {
	typ := r.GetTypeUrl()
	names := w.wanted[typ]
	if names == nil {
		names = map[string]bool{}
		w.wanted[typ] = names
	}
	for _, n := range r.GetResourceNamesSubscribe() {
		names[n] = true
	}
	for _, n := range r.GetResourceNamesUnsubscribe() {
		delete(names, n)
	}
	again := false
	w.mu.Lock()
	if len(r.GetInitialResourceVersions()) > 0 {
		w.known[typ] = map[string]bool{}
		for n := range r.GetInitialResourceVersions() {
			w.known[typ][n] = true
		}
	}
	if nonce := r.GetResponseNonce(); nonce != "" {
		key := [2]string{typ, nonce}
		if r.GetErrorDetail() == nil {
			w.versions[typ] = w.open[key]
			delete(w.refused, typ)
		} else {
			again = w.refused[typ] == w.open[key]
			w.refused[typ] = w.open[key]
		}
		delete(w.open, key)
		w.nonces[typ] = nonce
	}
	w.mu.Unlock()
	request := &discoverypb.DiscoveryRequest{
		Node: r.GetNode(), TypeUrl: typ, ResourceNames: slices.Sorted(maps.Keys(names)),
		VersionInfo: w.versions[typ], ResponseNonce: w.nonces[typ], ErrorDetail: r.GetErrorDetail(),
	}
	if again {
		w.held[typ] = request
		return nil
	}
	delete(w.held, typ)
	return w.stream.Send(request)
}

// flush sends the refusals held back: some control planes answer a refusal with
// the very thing refused, and the two would go round without a pause.
func (w *world) flush() error {
	for _, typ := range slices.Sorted(maps.Keys(w.held)) {
		if err := w.stream.Send(w.held[typ]); err != nil {
			return err
		}
		delete(w.held, typ)
	}
	return nil
}

// Recv implements wire.
func (w *world) Recv() (*discoverypb.DeltaDiscoveryResponse, error) {
	r, err := w.stream.Recv()
	if err != nil {
		return nil, err
	}
	typ := r.GetTypeUrl()
	out := &discoverypb.DeltaDiscoveryResponse{TypeUrl: typ, Nonce: r.GetNonce(), SystemVersionInfo: r.GetVersionInfo()}
	here := map[string]bool{}
	for i, a := range r.GetResources() {
		res, err := named(typ, a)
		if err != nil {
			// Without a name nothing can be refused alone; the stream is of no use.
			return nil, fmt.Errorf("%s: resource %d: %w", ShortName(typ), i, err)
		}
		res.Version = r.GetVersionInfo()
		here[res.GetName()] = true
		out.Resources = append(out.Resources, res)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open[[2]string{typ, r.GetNonce()}] = r.GetVersionInfo()
	if whole(typ) {
		for _, n := range slices.Sorted(maps.Keys(w.known[typ])) {
			if !here[n] {
				out.RemovedResources = append(out.RemovedResources, n)
			}
		}
		w.known[typ] = here
	}
	return out, nil
}

// named finds out what a resource is called. It may come wrapped together with its
// name; else all types that this proxy asks for by name, and those it takes whole,
// keep it in their first field. Tables have none: there is one of each.
func named(typ string, a *anypb.Any) (*discoverypb.Resource, error) {
	if a.MessageIs((*discoverypb.Resource)(nil)) {
		res := &discoverypb.Resource{}
		if err := proto.Unmarshal(a.GetValue(), res); err != nil {
			return nil, err
		}
		return res, nil
	}
	name := ""
	switch typ {
	case TypeNames, TypeOrigin:
		name = ShortName(typ)
	case snapshot.TypeCluster, snapshot.TypeEndpoint, snapshot.TypeListener, snapshot.TypeRoute, TypeSecret:
		var err error
		if name, err = firstField(a.GetValue()); err != nil {
			return nil, err
		}
	}
	return &discoverypb.Resource{Name: name, Resource: a}, nil
}

// firstField returns the string in field 1 of an encoded message, "" without one.
func firstField(b []byte) (string, error) {
	out := ""
	for len(b) > 0 {
		num, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return "", protowire.ParseError(n)
		}
		b = b[n:]
		if num == 1 && kind == protowire.BytesType {
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return "", protowire.ParseError(n)
			}
			out, b = string(v), b[n:] // the last one counts
			continue
		}
		if n = protowire.ConsumeFieldValue(num, kind, b); n < 0 {
			return "", protowire.ParseError(n)
		}
		b = b[n:]
	}
	return out, nil
}
