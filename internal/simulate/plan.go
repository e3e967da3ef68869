package simulate

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"lateen.dev/lateen/internal/control/mesh"
	"lateen.dev/lateen/internal/control/translate"
	"lateen.dev/lateen/internal/control/validate"
	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/proxy/clock"
	"lateen.dev/lateen/internal/proxy/snapshot"
	"lateen.dev/lateen/internal/resource"
)

// Plan is the control plane's half of a World: the validated objects, the mesh
// and the pods. Any number of worlds can be started from one plan, one after
// another or at the same time.
type Plan struct {
	// Findings are what validation refused; refused objects are not in force.
	Findings []finding.Finding

	mesh *mesh.Mesh
	pods map[string]pod // by name.namespace, without their proxies
	seed uint64
	now  time.Time
}

// NewPlan validates the objects and builds the mesh.
func NewPlan(o Options) *Plan {
	p := &Plan{pods: map[string]pod{}, seed: o.Seed, now: o.Now}
	var accepted []*resource.Object
	for _, obj := range o.Objects {
		findings := validate.Object(obj)
		p.Findings = append(p.Findings, findings...)
		if worst, any := finding.Worst(findings); any && worst == finding.Error {
			continue
		}
		accepted = append(accepted, obj)
		if view, ok := obj.Pod(); ok && len(view.IPs) > 0 {
			p.pods[obj.Name+"."+obj.Namespace] = pod{name: obj.Name, namespace: obj.Namespace, view: view, labels: obj.Labels}
		}
	}
	p.mesh, _ = mesh.Build(mesh.Input{Objects: accepted, VIPs: o.VIPs, Now: o.Now}, nil)
	return p
}

// Resources returns what each proxy is sent, by the pod's name.namespace. The
// messages must not be changed: proxies may share them.
func (p *Plan) Resources() map[string]*translate.Resources {
	out := map[string]*translate.Resources{}
	for name, pod := range p.pods {
		if pod.view.Sidecar {
			out[name] = translate.Build(p.mesh, node(&pod))
		}
	}
	return out
}

// Nodes returns the xDS node of each proxy as it would be if it were a stock
// Envoy, by the pod's name.namespace.
func (p *Plan) Nodes() map[string]translate.Node {
	out := map[string]translate.Node{}
	for name, pod := range p.pods {
		if pod.view.Sidecar {
			n := node(&pod)
			n.Caps, n.Capture = nil, ""
			out[name] = n
		}
	}
	return out
}

// Mesh is the model that the plan was made from.
func (p *Plan) Mesh() *mesh.Mesh { return p.mesh }

// Start compiles the snapshot of every proxy from what it is sent and returns a
// world at rest. The error says which proxy refuses what it was sent.
func (p *Plan) Start(app Application, sent map[string]*translate.Resources) (*World, error) {
	w := &World{
		Findings: p.Findings, mesh: p.mesh, app: app, clock: clock.NewManual(p.now),
		rand: rand.New(rand.NewPCG(p.seed, 2)), seed: p.seed, pods: map[string]*pod{}, byIP: map[netip.Addr]*pod{},
		offers: map[uint64]snapshot.ALPN{},
	}
	for _, name := range slices.Sorted(maps.Keys(p.pods)) {
		pod := p.pods[name]
		w.pods[name] = &pod
		for _, ip := range pod.view.IPs {
			w.byIP[ip] = &pod
		}
		if sent[name] == nil {
			continue
		}
		if err := w.startProxy(&pod, sent[name]); err != nil {
			return nil, fmt.Errorf("proxy of %s: %w", name, err)
		}
	}
	return w, nil
}
