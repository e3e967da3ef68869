// Package pod runs one pod on this machine: its network, its proxy, its
// containers, their probes, restarts, volumes and logs, and its graceful end.
// The supervisor decides which pods there are; this package knows nothing of
// Deployments or Services.
//
// A Pod is started once with Start and ended once with Stop. All methods are
// safe for concurrent use.
package pod

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"lateen.dev/lateen/internal/api"
	"lateen.dev/lateen/internal/local/manifest"
	"lateen.dev/lateen/internal/local/netns"
	"lateen.dev/lateen/internal/local/nft"
	"lateen.dev/lateen/internal/local/reap"
	"lateen.dev/lateen/internal/local/report"
)

// Mode says which proxy a pod has.
type Mode = report.Mode

// The modes: no proxy, a proxy beside the application, or the proxy alone.
const (
	Bare    = report.Bare
	Sidecar = report.Sidecar
	Gateway = report.Gateway
)

// Env is what all pods share.
type Env struct {
	Reap    *reap.Reaper
	Log     *slog.Logger
	Objects manifest.Lookup
	// Token buys a proxy its first certificate.
	Token func(ctx context.Context, req api.TokenRequest) (api.TokenResponse, error)
	// Changed is called after a change of a pod's Status.
	Changed func()
	// Event tells people what happened to a pod.
	// failure is false for what may pass by itself.
	Event func(namespace, pod, message string, failure bool)

	NodeName     string
	ProxyProgram string
	// VolumeDir is in memory and private to the node; StateDir and LogDir are
	// folders of the data directory. Staging is an empty folder.
	VolumeDir, StateDir, LogDir, Staging string
	// Hide are folders that containers must not see.
	Hide []string
	// Egress is the path of the broker's socket.
	Egress string
	// ControlAddress, TelemetryAddress and DNSAddress are host:port in the node.
	ControlAddress, TelemetryAddress, DNSAddress string
	LogLevel                                     string
}

// Program is what stands for a container's image.
type Program struct {
	Args   []string
	RootFS string
	// DefaultArgs are the image's own arguments, used when the manifest has none.
	DefaultArgs []string
	Env         []string
}

// Config is one pod, fully decided.
type Config struct {
	Manifest *manifest.Pod
	Number   int // decides the addresses
	Mode     Mode
	Capture  nft.Capture
	// Programs are by container name. A container without one has an error.
	Programs map[string]Program
	Errors   map[string]string
	// Notes are remarks such as fields without effect.
	Notes []string
	// Listeners are host sockets for a gateway: container port → descriptor.
	Listeners map[uint16]int
	// Owner is the workload: kind and name.
	OwnerKind, OwnerName string
	ClusterID            string
}

// Status is a snapshot of a pod for people and for the control plane.
type Status = report.Pod

// ContainerStatus is the state of one container, or of the proxy.
type ContainerStatus = report.Container

// ProxyContainer is the name of the proxy among the containers, as in Istio.
const ProxyContainer = report.ProxyContainer

// Pod is a pod that runs.
type Pod struct {
	env *Env
	cfg Config

	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}

	mu         sync.Mutex
	net        *netns.Namespace
	proxy      *proxy
	containers []*container
	message    string
	stopping   bool
	started    time.Time
	stopOnce   sync.Once
	volumes    *volumes
}

// Start starts a pod and returns at once.
func Start(env *Env, cfg Config) *Pod {
	ctx, cancel := context.WithCancel(context.Background())
	p := &Pod{env: env, cfg: cfg, ctx: ctx, cancel: cancel, done: make(chan struct{}), started: time.Now()}
	p.volumes = newVolumes(env, cfg.Manifest)
	for i := range cfg.Manifest.Spec.Containers {
		c := &cfg.Manifest.Spec.Containers[i]
		if cfg.Mode == Gateway && c.Name == ProxyContainer {
			continue
		}
		p.containers = append(p.containers, newContainer(p, c))
	}
	if cfg.Mode != Bare {
		p.proxy = newProxy(p)
	}
	go p.run()
	return p
}

// Config returns what the pod was started with.
func (p *Pod) Config() *Config { return &p.cfg }

// Done is closed when the pod has ended and left nothing behind.
func (p *Pod) Done() <-chan struct{} { return p.done }

// NetNS returns a descriptor of the pod's network namespace that is valid until
// the pod ends, or -1 before it exists.
func (p *Pod) NetNS() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.net == nil {
		return -1
	}
	return p.net.FD
}

// run brings the pod up and takes it down again after Stop.
func (p *Pod) run() {
	defer close(p.done)
	var group sync.WaitGroup
	p.bringUp(&group)
	<-p.ctx.Done()
	group.Wait()
	p.cleanUp()
	p.env.Changed()
}

func (p *Pod) bringUp(group *sync.WaitGroup) {
	ns, err := p.network()
	if err != nil {
		p.fail(err)
		return
	}
	if p.proxy != nil {
		group.Go(p.proxy.supervise)
		if !p.proxy.waitReady(p.ctx) {
			return
		}
	}
	for !p.prepareVolumes() {
		select {
		case <-p.ctx.Done():
			return
		case <-time.After(500 * time.Millisecond):
		}
	}
	if !p.runInit(ns) {
		return
	}
	for _, c := range p.containers {
		group.Go(func() { c.supervise(ns) })
	}
}

// network makes the pod's namespace and, with a proxy beside the application,
// its capture. Nothing runs in the pod before both are in place.
func (p *Pod) network() (*netns.Namespace, error) {
	ns, err := netns.NewPod(p.cfg.Number)
	if err != nil {
		return nil, err
	}
	if p.cfg.Mode == Sidecar {
		if err := p.cfg.Capture.Apply(ns.FD); err != nil {
			ns.Close()
			return nil, fmt.Errorf("capture traffic: %w", err)
		}
	}
	p.mu.Lock()
	p.net = ns
	p.mu.Unlock()
	p.env.Changed()
	return ns, nil
}

func (p *Pod) prepareVolumes() bool {
	err := p.volumes.prepare()
	if err != nil {
		p.fail(err)
		return false
	}
	p.setMessage("")
	return true
}

// Refresh writes changed ConfigMaps and Secrets into the pod's volumes.
func (p *Pod) Refresh() {
	if err := p.volumes.refresh(); err != nil {
		p.fail(err)
	}
}

// runInit runs the init containers one after the other.
func (p *Pod) runInit(ns *netns.Namespace) bool {
	for i := range p.cfg.Manifest.Spec.InitContainers {
		c := newContainer(p, &p.cfg.Manifest.Spec.InitContainers[i])
		c.init = true
		if c.spec.RestartPolicy == "Always" {
			p.fail(fmt.Errorf("init container %s: restartPolicy Always is not supported on one machine; make it a container", c.spec.Name))
			return false
		}
		p.mu.Lock()
		p.containers = append([]*container{c}, p.containers...)
		p.mu.Unlock()
		c.supervise(ns)
		if p.ctx.Err() != nil || !c.succeeded() {
			return false
		}
	}
	return true
}

func (p *Pod) fail(err error) {
	p.setMessage(err.Error())
	p.tell(err.Error())
}

func (p *Pod) setMessage(s string) {
	p.mu.Lock()
	changed := p.message != s
	p.message = s
	p.mu.Unlock()
	if changed {
		p.env.Changed()
	}
}

// tell tells people of a failure.
func (p *Pod) tell(message string) {
	p.env.Event(p.cfg.Manifest.Metadata.Namespace, p.cfg.Manifest.Metadata.Name, message, true)
}

// Drain marks the pod as going away: it is not ready any more, but goes on
// serving until Stop.
func (p *Pod) Drain() {
	p.mu.Lock()
	p.stopping = true
	p.mu.Unlock()
	p.env.Changed()
}

// Stop ends the pod gracefully: preStop, SIGTERM, the grace period, SIGKILL; the
// proxy goes last, as a native sidecar does. limit, if not 0, shortens the grace
// period. Stop returns when nothing is left.
func (p *Pod) Stop(limit time.Duration) {
	p.stopOnce.Do(func() {
		p.Drain()
		grace := 30 * time.Second
		if s := p.cfg.Manifest.Spec.TerminationGracePeriodSeconds; s != nil {
			grace = time.Duration(*s) * time.Second
		}
		if limit > 0 {
			grace = min(grace, limit)
		}
		p.mu.Lock()
		containers := slices.Clone(p.containers)
		p.mu.Unlock()
		var group sync.WaitGroup
		for _, c := range containers {
			group.Go(func() { c.stop(grace) })
		}
		group.Wait()
		if p.proxy != nil {
			p.proxy.stop(min(max(grace, time.Second), proxyGrace))
		}
		p.cancel()
	})
	<-p.done
}

// cleanUp runs after every process of the pod has ended.
func (p *Pod) cleanUp() {
	p.mu.Lock()
	ns := p.net
	p.mu.Unlock()
	if ns != nil {
		ns.Close()
	}
	if p.proxy != nil {
		if err := os.RemoveAll(p.proxy.stateDir()); err != nil {
			p.env.Log.Warn("remove the state of a proxy", "pod", p.cfg.Manifest.Metadata.Name, "error", err)
		}
	}
	if err := p.volumes.remove(); err != nil {
		p.env.Log.Warn("remove the volumes of a pod", "pod", p.cfg.Manifest.Metadata.Name, "error", err)
	}
}

// Status returns a snapshot.
func (p *Pod) Status() Status {
	m := &p.cfg.Manifest.Metadata
	s := Status{
		Namespace: m.Namespace, Name: m.Name, UID: m.UID, Mode: p.cfg.Mode,
		Notes: p.cfg.Notes, Started: p.started, Labels: m.Labels,
		OwnerKind: p.cfg.OwnerKind, OwnerName: p.cfg.OwnerName, Ready: true, Phase: "Running",
	}
	p.mu.Lock()
	s.Message, s.Stopping = p.message, p.stopping
	if p.net != nil {
		s.IPs = p.net.IPs
	} else {
		s.Ready = false
	}
	containers := slices.Clone(p.containers)
	p.mu.Unlock()
	for _, c := range containers {
		cs := c.status()
		s.Containers = append(s.Containers, cs)
		if !c.init {
			s.Ready = s.Ready && cs.Ready
		} else if cs.State != "ended" {
			s.Ready = false
		}
	}
	if p.proxy != nil {
		ps := p.proxy.status()
		s.Containers = append(s.Containers, ps)
		s.Ready = s.Ready && ps.Ready
	}
	s.Ready = s.Ready && !s.Stopping
	s.Phase = phase(s)
	return s
}

// phase derives the pod's phase: Pending until every container has started,
// Succeeded or Failed when all have ended for good.
func phase(s Status) string {
	ended, code, waiting := 0, 0, len(s.IPs) == 0
	apps := 0
	for _, c := range s.Containers {
		if c.Name == ProxyContainer {
			waiting = waiting || (!c.Ready && apps == 0 && len(s.Containers) == 1)
			continue
		}
		apps++
		switch c.State {
		case "ended":
			ended++
			code |= c.ExitCode
		case "waiting":
			waiting = waiting || c.Restarts == 0
		}
	}
	switch {
	case apps > 0 && ended == apps && code == 0:
		return "Succeeded"
	case apps > 0 && ended == apps:
		return "Failed"
	case waiting:
		return "Pending"
	}
	return "Running"
}
