// Package mesh is the immutable model of a whole service mesh: services with
// their endpoints, workloads, routing rules, destination policies, gateways,
// security and telemetry policies, with every short name resolved and every
// rule of precedence applied once.
//
// It stands between validation (one object at a time) and analysis and
// translation (questions over all objects). Build makes a *Mesh out of accepted
// objects and says what changed against the last one; the result does not
// depend on the order of objects, nor on whether it was built from scratch or
// from a previous model. A *Mesh and everything reachable from it never
// changes, so any number of readers may share it.
//
// It speaks Istio's words (istio.io/api), knows nothing of xDS, of files or of
// sockets, and reads no clock: time is an argument.
package mesh

import (
	"net/netip"
	"time"

	meshconfigpb "istio.io/api/mesh/v1alpha1"

	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

// Input is everything a model is made of.
type Input struct {
	// Objects are accepted by validation; the order does not matter. Of two
	// objects with the same key the later one counts.
	Objects []*resource.Object
	// TrustDomain, RootNamespace and ClusterID are used where the mesh
	// configuration names none; empty means "cluster.local", "istio-system" and
	// "Kubernetes".
	TrustDomain, RootNamespace, ClusterID string
	// DomainSuffix is the suffix of service hosts; empty means "cluster.local".
	DomainSuffix string
	// VIPs are the addresses allocated to hosts that have none of their own:
	// hosts of ServiceEntries without addresses.
	VIPs map[string][]netip.Addr
	// Now is when the model is made. It is kept for status only.
	Now time.Time
}

// Mesh is the model. Its methods are safe for concurrent use; what they return
// must not be modified.
type Mesh struct {
	// Config is the mesh configuration with the defaults of Istio filled in for
	// what this model uses.
	Config *meshconfigpb.MeshConfig
	// ConfigObject is the ConfigMap it came from, nil for the defaults.
	ConfigObject *resource.Object

	TrustDomain   string
	RootNamespace string
	ClusterID     string
	DomainSuffix  string
	Built         time.Time

	objects    map[resource.Key]*resource.Object
	namespaces map[string]*Namespace
	nodes      map[string]Locality
	vips       map[string][]netip.Addr

	services    []*Service            // by host, then namespace
	byHost      map[string][]*Service // candidates by precedence
	endpoints   map[string][]*Endpoint
	workloads   []*Workload
	workloadKey map[resource.Key]*Workload
	workloadIP  map[netip.Addr]*Workload

	virtualServices  []*VirtualService
	destinationRules []*DestinationRule
	drByNamespace    map[string][]*DestinationRule
	gateways         []*Gateway
	gatewayByName    map[string]*Gateway
	sidecars         []*Sidecar
	peerAuth         []*PeerAuthentication
	authorization    []*AuthorizationPolicy
	requestAuth      []*RequestAuthentication
	telemetry        []*Telemetry
	findings         []finding.Finding
}

// Namespace is a Kubernetes namespace that exists or that an object is in.
type Namespace struct {
	Name   string
	Labels map[string]string
	// Object is nil when no manifest declares the namespace.
	Object *resource.Object
}

// Locality is where a workload runs.
type Locality struct{ Region, Zone, SubZone string }

// Origin names the place in the configuration that something came from.
type Origin struct {
	Object *resource.Object
	// Path is the field, for example "spec.http[1]"; "" for the whole object.
	Path string
}

// ID returns the stable id of the origin, for example
// "VirtualService/go-app.default#spec.http[1]". It does not change when lines
// move. It is "" for the zero Origin.
func (o Origin) ID() string {
	switch {
	case o.Object == nil:
		return ""
	case o.Path == "":
		return o.Object.Key.String()
	}
	return o.Object.Key.String() + "#" + o.Path
}

// Diff says what changed between two models, in terms of what a proxy could
// notice. The zero Diff means that no proxy needs anything new.
type Diff struct {
	// Full means that anything may have changed: the first model, or the mesh
	// configuration.
	Full bool
	// Services are hosts that came, went, or whose ports, addresses or
	// visibility changed.
	Services map[string]bool
	// Endpoints are hosts whose endpoints changed.
	Endpoints map[string]bool
	// Workloads are pods that came, went or changed what decides policy for
	// them: labels, addresses, ports, service account.
	Workloads map[resource.Key]bool
	// Objects are Istio objects, Secrets and Namespaces that came, went or
	// changed in content.
	Objects map[resource.Key]bool
	// Moved are objects whose content is the same and whose place in their file
	// is not: only origin tables need to be told.
	Moved map[resource.Key]bool
}

// Empty reports whether nothing changed at all.
func (d Diff) Empty() bool {
	return !d.Full && len(d.Services) == 0 && len(d.Endpoints) == 0 && len(d.Workloads) == 0 &&
		len(d.Objects) == 0 && len(d.Moved) == 0
}

// OriginsOnly reports whether places moved and nothing else changed.
func (d Diff) OriginsOnly() bool {
	return !d.Empty() && !d.Full && len(d.Services) == 0 && len(d.Endpoints) == 0 &&
		len(d.Workloads) == 0 && len(d.Objects) == 0
}

// Merge returns the union of two consecutive diffs.
func (d Diff) Merge(e Diff) Diff {
	d.Full = d.Full || e.Full
	d.Services = union(d.Services, e.Services)
	d.Endpoints = union(d.Endpoints, e.Endpoints)
	d.Workloads = union(d.Workloads, e.Workloads)
	d.Objects = union(d.Objects, e.Objects)
	d.Moved = union(d.Moved, e.Moved)
	return d
}

func union[K comparable](a, b map[K]bool) map[K]bool {
	if len(a) == 0 {
		return b
	}
	if len(b) == 0 {
		return a
	}
	out := make(map[K]bool, len(a)+len(b))
	for k := range a {
		out[k] = true
	}
	for k := range b {
		out[k] = true
	}
	return out
}
