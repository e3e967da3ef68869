// Package simulate carries requests through a whole mesh without a socket: mesh
// → translate → snapshot → the real request path of every proxy on the way. It
// is the only package beside tests that sees both planes.
//
// A World holds the configuration, the compiled snapshot of each proxy and a
// clock that moves only as far as a request needs, so a ten-second timeout takes
// microseconds and the answer is the same every time. Explanations, scenarios
// and previews are made of it. TLS is simulated by who presents which identity
// to whom, decided by the same tables that configure real TLS.
//
// A World is not safe for concurrent use.
package simulate

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"lateen.dev/lateen/internal/control/mesh"
	"lateen.dev/lateen/internal/control/translate"
	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/proxy/clock"
	"lateen.dev/lateen/internal/proxy/snapshot"
	"lateen.dev/lateen/internal/resource"
	"lateen.dev/lateen/internal/spiffe"
)

// caps is what lateen-proxy announces.
var caps = map[string]bool{
	"http1": true, "http2": true, "tcp": true, "tls": true, "origins": true, "nds": true,
	"rbac": true, "fault": true, "cors": true, "mirror": true, "outlier": true,
}

// Application answers requests that reach the program of a pod. Pod is the
// pod's name, or "external-ADDRESS:PORT" for an address outside the mesh.
type Application interface {
	Serve(pod string, r Request) Response
}

// Request is what a client sends and an application receives.
type Request struct {
	Method, Scheme, Authority, Path string
	Header                          [][2]string
	Body                            []byte
	// HTTP2 says which version of HTTP is spoken, by the client or to the
	// application.
	HTTP2 bool
}

// Get returns the first value of a lower-case header name.
func (r Request) Get(name string) string {
	for _, h := range r.Header {
		if h[0] == name {
			return h[1]
		}
	}
	return ""
}

// Response is an application's answer. Delay passes before it; Reset closes the
// connection instead.
type Response struct {
	Status   int
	Header   [][2]string
	Body     []byte
	Trailers [][2]string
	Delay    time.Duration
	Reset    bool
}

// Result is how a request ended for the client.
type Result struct {
	Response
	// Err is "reset", "refused", "timeout" or "no such host" when no complete
	// response came; Status is 0 then unless a head had come.
	Err  string
	Took time.Duration
	// Hops are the records of all proxies on the way in the order they ended.
	Hops []Hop
}

// Hop is what one proxy recorded.
type Hop struct {
	Pod       string
	Direction snapshot.Direction
	Gateway   bool
	Status    int
	Flags     []string
	Details   string
	Route     string
	Cluster   string
	Policy    string
	Attempts  int
	// Origin is what decided, Place its file:line.
	Origin string
	Place  string
	// Lines are the proxy's access-log lines, Spans the attributes of its spans.
	Lines []string
	Spans []map[string]string
}

// Options configure a World.
type Options struct {
	Objects []*resource.Object
	App     Application
	// VIPs are the addresses of ServiceEntry hosts, as mesh.Input has them.
	VIPs map[string][]netip.Addr
	Seed uint64
	// Now is the time of day at which the clock starts.
	Now time.Time
}

// World is a mesh in which requests can be tried.
type World struct {
	// Findings are what validation refused; refused objects are not in force.
	Findings []finding.Finding

	mesh   *mesh.Mesh
	app    Application
	clock  *clock.Manual
	rand   *rand.Rand
	seed   uint64
	pods   map[string]*pod // by name.namespace
	byIP   map[netip.Addr]*pod
	queue  []func()
	hops   []Hop
	offers map[uint64]snapshot.ALPN // of TLS clients, by connection
	nextID uint64
	links  int
}

// pod is one pod, with its proxy if it has one.
type pod struct {
	name, namespace string
	view            *resource.Pod
	labels          map[string]string
	proxy           *proxy
}

func (p *pod) identity(trustDomain string) string {
	return fmt.Sprintf("spiffe://%s/ns/%s/sa/%s", trustDomain, p.namespace, p.view.ServiceAccount)
}

// New plans a mesh and starts it. The error says which proxy refuses what it was
// sent.
func New(o Options) (*World, error) {
	p := NewPlan(o)
	return p.Start(o.App, p.Resources())
}

func (w *World) podNames() []string {
	var names []string
	for name := range w.pods {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// node describes a pod's proxy as its xDS node would.
func node(p *pod) translate.Node {
	role := "sidecar"
	if isGateway(p) {
		role = "router"
	}
	return translate.Node{
		ID:   fmt.Sprintf("%s~%s~%s.%s~%s.svc.cluster.local", role, p.view.IPs[0], p.name, p.namespace, p.namespace),
		Role: role, IPs: p.view.IPs, Namespace: p.namespace, ServiceAccount: p.view.ServiceAccount,
		PodName: p.name, WorkloadName: p.view.OwnerName, ServiceCluster: p.labels["app"] + "." + p.namespace,
		ClusterID: "Kubernetes", MeshID: "cluster.local", Labels: p.labels, Caps: caps, Capture: "mark",
	}
}

func isGateway(p *pod) bool { return p.labels["istio"] == "ingressgateway" }

// FindPod returns the name.namespace of the first pod whose name begins with
// prefix in any namespace, "" for none.
func (w *World) FindPod(prefix, namespace string) string {
	for _, name := range w.podNames() {
		p := w.pods[name]
		if strings.HasPrefix(p.name, prefix) && (namespace == "" || p.namespace == namespace) {
			return name
		}
	}
	return ""
}

// trustDomain of the mesh.
func (w *World) trustDomain() string {
	if td := w.mesh.Config.GetTrustDomain(); td != "" {
		return td
	}
	return spiffe.DefaultTrustDomain
}

// later runs f after the event in hand, as a loop would in its next round.
func (w *World) later(f func()) { w.queue = append(w.queue, f) }

// maxEvents bounds one call, so that a configuration that makes proxies talk in
// a circle ends.
const maxEvents = 20_000

// settle runs events, and time as far as needed, until done, limit or the bound
// of events.
func (w *World) settle(done func() bool, limit time.Duration) {
	end := w.clock.Now() + int64(limit)
	for events := 0; ; {
		for len(w.queue) > 0 {
			if events++; events > maxEvents {
				w.queue = nil
				return
			}
			next := w.queue[0]
			w.queue = w.queue[1:]
			next()
		}
		if done() {
			return
		}
		step, armed := w.clock.NextIn()
		if events++; events > maxEvents || !armed || w.clock.Now()+int64(step) > end {
			return
		}
		w.clock.Advance(step)
	}
}
