package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	networkingpb "istio.io/api/networking/v1alpha3"

	"lateen.dev/lateen/internal/control/ads"
	"lateen.dev/lateen/internal/control/analyze"
	"lateen.dev/lateen/internal/control/ca"
	"lateen.dev/lateen/internal/control/mesh"
	"lateen.dev/lateen/internal/control/source/file"
	"lateen.dev/lateen/internal/control/translate"
	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

// View is the state of the control plane at one revision. It never changes.
type View struct {
	// Revision counts accepted configuration changes, from 1.
	Revision uint64
	Mesh     *mesh.Mesh
	// Objects are the desired ones in force: from files, applied, and default.
	// Services have their addresses.
	Objects map[resource.Key]*resource.Object
	// Local are the running pods and their endpoint slices.
	Local map[resource.Key]*resource.Object
	// Findings are sorted. They are complete a moment after the revision: a push
	// does not wait for analysis.
	Findings []finding.Finding
}

// controller owns the state. All fields below calls belong to the goroutine of
// run.
type controller struct {
	o       Options
	log     *slog.Logger
	ca      *ca.Authority
	ads     *ads.Server
	current atomic.Pointer[View]
	calls   chan func()
	stopped chan struct{} // closed when run has ended

	files      file.State
	applied    *store
	acceptor   *acceptor
	defaults   defaults
	vips       *vips
	addressed  map[resource.Key]addressed
	local      map[resource.Key]localObject
	localReady bool
	// pushed says that the proxies are served; the revision before is 0.
	pushed   bool
	pending  debounce
	watchers map[*watcher]struct{}
}

// addressed remembers the form of a Service with its addresses, so that an
// unchanged Service stays the same object.
type addressed struct {
	from, to *resource.Object
	ips      []netip.Addr
}

// newController opens everything that is kept on disk and makes the first
// view, which nobody is pushed yet.
func newController(o Options, files file.State) (*controller, error) {
	if o.DebounceQuiet == 0 {
		o.DebounceQuiet = 25 * time.Millisecond
	}
	if o.DebounceMax == 0 {
		o.DebounceMax = 10 * time.Second
	}
	c := &controller{
		o: o, log: o.Log, files: files, calls: make(chan func()), stopped: make(chan struct{}),
		addressed: make(map[resource.Key]addressed), local: make(map[resource.Key]localObject),
		pending:  debounce{quiet: o.DebounceQuiet, most: o.DebounceMax},
		watchers: make(map[*watcher]struct{}),
	}
	var err error
	if c.applied, err = openStore(filepath.Join(o.DataDir, "config"), o.Log); err != nil {
		return nil, err
	}
	if c.ca, err = openCA(o, c.meshTrustDomain()); err != nil {
		return nil, err
	}
	if c.vips, err = openVIPs(filepath.Join(o.DataDir, "vips.json"), o.ServiceCIDRs); err != nil {
		return nil, err
	}
	if c.acceptor, err = openAcceptor(filepath.Join(o.DataDir, "accepted.json"), c.ca.TrustDomain()); err != nil {
		return nil, err
	}
	c.ads = ads.New(ads.Options{Generator: c, Admit: c.admit, Log: o.Log, Now: o.Now})
	c.rebuild()
	return c, nil
}

// meshTrustDomain returns the trust domain that the manifests ask for.
func (c *controller) meshTrustDomain() string {
	for _, o := range c.candidates() {
		if resource.IsMeshConfig(o, rootNamespace) {
			mc, _ := resource.MeshConfig(o)
			return mc.GetTrustDomain()
		}
	}
	return ""
}

// run is the owner's loop.
func (c *controller) run(ctx context.Context) error {
	defer close(c.stopped)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		var due <-chan time.Time
		if wait, pending := c.pending.wait(time.Now()); pending {
			timer.Reset(wait)
			due = timer.C
		}
		select {
		case <-ctx.Done():
			return nil
		case f := <-c.calls:
			f()
		case <-due:
			c.rebuild()
		}
	}
}

// call runs f on the owner's goroutine and waits for it; false means that ctx
// or the owner ended before.
func (c *controller) call(ctx context.Context, f func()) bool {
	done := make(chan struct{})
	select {
	case c.calls <- func() { defer close(done); f() }:
		<-done
		return true
	case <-ctx.Done():
		return false
	case <-c.stopped:
		return false
	}
}

// setFiles takes a new state of the watched files.
func (c *controller) setFiles(s file.State) {
	c.files = s
	c.pending.note(time.Now())
}

// candidates are the newest versions of all configured objects, good or bad.
// What is in a file hides what was applied under the same name.
func (c *controller) candidates() []*resource.Object {
	out := slices.Clone(c.files.Objects)
	inFiles := make(map[resource.Key]bool, len(out))
	for _, o := range out {
		inFiles[o.Key] = true
	}
	for _, k := range slices.SortedFunc(maps.Keys(c.applied.objects), compareKeys) {
		if !inFiles[k] {
			out = append(out, c.applied.objects[k])
		}
	}
	return out
}

// rebuild brings everything up to date with files, applied and local objects:
// who is accepted, addresses, watchers, model, proxies and findings.
func (c *controller) rebuild() {
	c.pending.done()
	start := time.Now()
	prev := c.current.Load()
	unread := slices.Concat(c.files.Findings, c.applied.findings)
	force, findings := c.acceptor.accept(c.candidates(), brokenFiles(unread))
	accepted := maps.Clone(force)
	findings = append(findings, unread...)
	findings = append(findings, c.shadowed()...)
	c.defaults.add(force)
	hosts, err := c.address(force)
	if err != nil {
		c.log.Error("service addresses", "error", err)
		findings = append(findings, finding.New(finding.AddressesFull, finding.Object{}, "", finding.Position{}, err.Error()))
	}

	next := &View{Objects: force, Local: make(map[resource.Key]*resource.Object, len(c.local)), Findings: findings}
	for k, l := range c.local {
		next.Local[k] = l.object
	}
	var diff mesh.Diff
	if !c.safely("build the mesh model", func() { diff = c.build(next, prev, hosts) }) {
		return // the last view stays in force
	}
	changed := prev == nil || !diff.Empty() || !maps.Equal(prev.Objects, next.Objects)
	switch {
	case prev == nil:
		next.Revision = 1
	case changed:
		next.Revision = prev.Revision + 1
	default:
		next.Revision = prev.Revision
	}
	next.Findings = tidy(next.Findings)
	c.current.Store(next)
	c.tellWatchers(prev, next)
	c.push(next, diff)
	built := time.Since(start)
	if err := c.acceptor.save(accepted); err != nil {
		c.log.Error("last good versions are not kept over a restart", "error", err)
	}
	c.analyze(next)
	if changed {
		c.log.Info("configuration in force", "revision", next.Revision, "objects", len(force), "local", len(c.local),
			"findings", len(c.current.Load().Findings), "took", built)
	}
	if c.o.Observe != nil {
		c.o.Observe(c.current.Load())
	}
}

// build makes the model of next.
func (c *controller) build(next, prev *View, hosts map[string][]netip.Addr) mesh.Diff {
	objects := make([]*resource.Object, 0, len(next.Objects)+len(next.Local))
	for k, o := range next.Objects {
		// A Pod in a manifest is a wish; the model holds those that run.
		if k.Kind != resource.KubePod {
			objects = append(objects, o)
		}
	}
	for _, o := range next.Local {
		objects = append(objects, o)
	}
	var last *mesh.Mesh
	if prev != nil {
		last = prev.Mesh
	}
	var diff mesh.Diff
	next.Mesh, diff = mesh.Build(mesh.Input{
		Objects: objects, TrustDomain: c.ca.TrustDomain(), RootNamespace: rootNamespace, ClusterID: c.o.ClusterID,
		VIPs: hosts, Now: c.o.Now(),
	}, last)
	next.Findings = append(next.Findings, next.Mesh.Findings()...)
	return diff
}

// push tells the proxies, unless the local state is still missing.
func (c *controller) push(v *View, diff mesh.Diff) {
	if c.o.AwaitLocal && !c.localReady {
		return
	}
	if !c.pushed {
		c.pushed = true
		c.ads.Update(v.Revision, nil)
		return
	}
	c.ads.Update(v.Revision, func(n *ads.Node) bool {
		affected := true
		if node, ok := nodeIn(v, n); ok {
			c.safely("find affected proxies", func() { affected = translate.Affects(v.Mesh, node, diff) })
		}
		return affected
	})
}

// analyze adds what the rules over the whole mesh say to the view in force.
func (c *controller) analyze(v *View) {
	objects := make([]*resource.Object, 0, len(v.Objects))
	for _, k := range slices.SortedFunc(maps.Keys(v.Objects), compareKeys) {
		objects = append(objects, v.Objects[k])
	}
	full := *v
	if c.safely("analyze the mesh", func() {
		full.Findings = tidy(slices.Concat(v.Findings, analyze.Run(v.Mesh, objects)))
	}) {
		c.current.Store(&full)
	}
}

// tidy sorts findings and drops repetitions: the mesh configuration is read by
// validation and by the model.
func tidy(fs []finding.Finding) []finding.Finding {
	finding.Sort(fs)
	return slices.CompactFunc(fs, func(a, b finding.Finding) bool {
		return a.Code == b.Code && a.Object == b.Object && a.Path == b.Path && a.Pos == b.Pos && a.Message == b.Message
	})
}

// safely runs f and turns a panic, which only a mistake of ours can be, into a
// log line and false: the control plane goes on with what it had.
func (c *controller) safely(what string, f func()) (ok bool) {
	defer func() {
		if p := recover(); p != nil {
			c.log.Error(what+" panicked; the last state stays in force", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
	}()
	f()
	return true
}

// shadowed says which applied objects are hidden by files.
func (c *controller) shadowed() []finding.Finding {
	var out []finding.Finding
	for _, o := range c.files.Objects {
		hidden := c.applied.objects[o.Key]
		if hidden == nil {
			continue
		}
		out = append(out, finding.Newf(finding.AppliedHidden, o.Object(), "metadata.name", hidden.Pos("metadata.name"),
			"%v was applied, and is now also defined at %v, which holds", o.Key, o.Pos("metadata.name")).
			WithHint("remove the file of the applied one, %s", c.applied.path(o.Key)))
	}
	return out
}

// address gives every Service and ServiceEntry host its virtual addresses:
// Services in place, hosts in the result.
func (c *controller) address(objects map[resource.Key]*resource.Object) (map[string][]netip.Addr, error) {
	fixed := make(map[netip.Addr]bool)
	owners := make(map[string]bool)
	services, hosts := make(map[resource.Key]string), make(map[string]string)
	for k, o := range objects {
		if s, ok := o.Service(); ok {
			for _, ip := range s.ClusterIPs {
				fixed[ip] = true
			}
			if len(s.ClusterIPs) == 0 && !s.Headless && s.Type != "ExternalName" {
				services[k] = "service/" + k.Namespace + "/" + k.Name
				owners[services[k]] = true
			}
		}
		for _, host := range entryHosts(o) {
			hosts[host] = "host/" + host
			owners[hosts[host]] = true
		}
	}
	given, err := c.vips.assign(slices.Collect(maps.Keys(owners)), fixed)
	for k, owner := range services {
		objects[k] = c.withAddresses(objects[k], given[owner])
	}
	out := make(map[string][]netip.Addr, len(hosts))
	for host, owner := range hosts {
		if ips := given[owner]; len(ips) > 0 {
			out[host] = ips
		}
	}
	return out, errors.Join(err, c.vips.save())
}

func (c *controller) withAddresses(o *resource.Object, ips []netip.Addr) *resource.Object {
	a := c.addressed[o.Key]
	if a.from != o || !slices.Equal(a.ips, ips) {
		a = addressed{from: o, to: o.WithClusterIPs(ips), ips: ips}
		c.addressed[o.Key] = a
	}
	return a.to
}

// entryHosts returns the hosts of a ServiceEntry that need an address to be
// told apart by. Istio: automatic address allocation.
func entryHosts(o *resource.Object) []string {
	spec, ok := o.Spec.(*networkingpb.ServiceEntry)
	if !ok || len(spec.GetAddresses()) > 0 {
		return nil
	}
	switch spec.GetResolution() {
	case networkingpb.ServiceEntry_NONE, networkingpb.ServiceEntry_DYNAMIC_DNS:
		return nil
	}
	return slices.DeleteFunc(slices.Clone(spec.GetHosts()), mesh.IsWildcard)
}
