package pod

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/local/logfile"
	"lateen.dev/lateen/internal/local/manifest"
	"lateen.dev/lateen/internal/local/netns"
	"lateen.dev/lateen/internal/local/probe"
	"lateen.dev/lateen/internal/local/reap"
	"lateen.dev/lateen/internal/local/shim"
)

// Restart back-off. Kubernetes starts at 10 s; on one machine the person who
// just mended the program is watching.
const (
	minBackoff   = 500 * time.Millisecond
	maxBackoff   = time.Minute
	resetBackoff = time.Minute
)

// container runs one container of a pod, again and again as its restart policy
// says.
type container struct {
	pod  *Pod
	spec *manifest.Container
	init bool
	log  *logfile.File

	mu       sync.Mutex
	state    string
	reason   string
	ready    bool
	restarts int
	code     int
	proc     *reap.Process
	env      []string
	stopping chan struct{}
	stopOnce sync.Once
	ended    chan struct{} // closed when supervise has returned
	running  bool          // supervise was called
	// complaint is the last failure reported; only supervise touches it.
	complaint string
}

func newContainer(p *Pod, spec *manifest.Container) *container {
	return &container{
		pod: p, spec: spec, state: "waiting", reason: "the pod is starting",
		stopping: make(chan struct{}), ended: make(chan struct{}),
		log: logfile.New(p.logPath(spec.Name)),
	}
}

func (p *Pod) logPath(name string) string {
	m := &p.cfg.Manifest.Metadata
	return filepath.Join(p.env.LogDir, m.Namespace+"_"+m.Name, name+".log")
}

// supervise runs the container until it is stopped or has ended for good.
func (c *container) supervise(ns *netns.Namespace) {
	c.mu.Lock()
	c.running = true
	c.mu.Unlock()
	defer close(c.ended)
	defer c.log.Close()
	backoff := minBackoff
	for !c.isStopping() {
		start := time.Now()
		code, err := c.once(ns)
		if err != nil {
			code = 127
		}
		if !c.isStopping() && (err != nil || code != 0) {
			c.complain(c.endReason(code, err), err == nil)
		}
		if c.isStopping() || !c.restart(code, err) {
			c.set("ended", c.endReason(code, err), code)
			return
		}
		if time.Since(start) > resetBackoff {
			backoff = minBackoff
		}
		c.set("waiting", fmt.Sprintf("%s; starting again in %v", c.endReason(code, err), backoff), code)
		if !c.pause(backoff) {
			c.set("ended", "stopped", code)
			return
		}
		backoff = min(2*backoff, maxBackoff)
		c.mu.Lock()
		c.restarts++
		c.mu.Unlock()
	}
	c.set("ended", "stopped", 0)
}

// restart decides whether to run again. A container that cannot start is retried
// whatever the policy says, as its ConfigMap may still come.
func (c *container) restart(code int, err error) bool {
	policy := c.pod.cfg.Manifest.Spec.RestartPolicy
	if c.init {
		return err != nil || (code != 0 && policy != "Never")
	}
	return err != nil || policy == "" || policy == "Always" || (policy == "OnFailure" && code != 0)
}

func (c *container) endReason(code int, err error) string {
	killed := c.killedFor()
	switch {
	case err != nil:
		return err.Error()
	case killed != "":
		return killed
	case code > 128 && code < 128+65:
		return fmt.Sprintf("ended by %s", unix.SignalName(unix.Signal(code-128)))
	}
	return fmt.Sprintf("ended with code %d", code)
}

// killedFor returns why the container was killed by us, if it was.
func (c *container) killedFor() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reason
}

func (c *container) set(state, reason string, code int) {
	c.mu.Lock()
	c.state, c.reason, c.code, c.ready = state, reason, code, false
	if state != "running" {
		c.proc = nil
	}
	c.mu.Unlock()
	c.pod.env.Changed()
}

func (c *container) setReady(ok bool) {
	c.mu.Lock()
	changed := c.ready != ok
	c.ready = ok
	c.mu.Unlock()
	if changed {
		c.pod.env.Changed()
	}
}

func (c *container) isStopping() bool {
	select {
	case <-c.stopping:
		return true
	case <-c.pod.ctx.Done():
		return true
	default:
		return false
	}
}

func (c *container) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.stopping:
	case <-c.pod.ctx.Done():
	}
	return false
}

// once runs the container from start to end and returns its exit code.
func (c *container) once(ns *netns.Namespace) (int, error) {
	spec, err := c.shimSpec(ns)
	if err != nil {
		return 0, err
	}
	for _, p := range []*manifest.Probe{c.spec.LivenessProbe, c.spec.ReadinessProbe, c.spec.StartupProbe} {
		if err := probe.Supported(p); err != nil {
			return 0, err
		}
	}
	out, err := c.log.Writer()
	if err != nil {
		return 0, err
	}
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(out)
		return 0, fmt.Errorf("open /dev/null: %w", err)
	}
	proc, err := shim.Start(c.pod.env.Reap, spec, ns.FD, [3]int{null, out, out})
	unix.Close(out)
	unix.Close(null)
	if err != nil {
		return 0, err
	}
	c.mu.Lock()
	c.proc, c.env = proc, spec.Env
	c.mu.Unlock()
	c.nowRunning(proc)
	if c.isStopping() { // Stop came while the program was starting
		proc.Signal(unix.SIGTERM)
	}
	// The last resort for what Stop did not know of, such as an init container.
	unkill := context.AfterFunc(c.pod.ctx, func() { proc.Signal(unix.SIGKILL) })
	defer unkill()
	ctx, cancel := context.WithCancel(c.pod.ctx)
	defer cancel()
	var probes sync.WaitGroup
	probes.Go(func() { c.probe(ctx, ns, proc) })
	<-proc.Done()
	cancel()
	probes.Wait()
	return proc.Code(), nil
}

func (c *container) nowRunning(proc *reap.Process) {
	c.mu.Lock()
	c.state, c.reason, c.proc = "running", "", proc
	c.ready = c.spec.ReadinessProbe == nil && c.spec.StartupProbe == nil
	c.mu.Unlock()
	c.pod.env.Changed()
}

// probe runs the startup probe, then liveness and readiness beside each other.
func (c *container) probe(ctx context.Context, ns *netns.Namespace, proc *reap.Process) {
	t := probe.Target{
		NetNS: ns.FD, IP: ns.IPs[0], Containers: []manifest.Container{*c.spec},
		Exec: func(ctx context.Context, command []string) (int, error) {
			return c.pod.Exec(ctx, c.spec.Name, command, nil)
		},
	}
	if c.spec.StartupProbe != nil {
		started, stop := context.WithCancel(ctx)
		probe.Run(started, c.spec.StartupProbe, t, func(ok bool, err error) {
			if !ok {
				c.kill(proc, "startup probe failed: "+err.Error())
			}
			stop()
		})
		if ctx.Err() != nil {
			return
		}
	}
	var group sync.WaitGroup
	if c.spec.LivenessProbe != nil {
		group.Go(func() {
			probe.Run(ctx, c.spec.LivenessProbe, t, func(ok bool, err error) {
				if !ok {
					c.kill(proc, "liveness probe failed: "+err.Error())
				}
			})
		})
	}
	if c.spec.ReadinessProbe == nil {
		c.setReady(true)
	} else {
		group.Go(func() {
			probe.Run(ctx, c.spec.ReadinessProbe, t, func(ok bool, err error) {
				if !ok && !c.isStopping() {
					m := &c.pod.cfg.Manifest.Metadata
					c.pod.env.Event(m.Namespace, m.Name, fmt.Sprintf("container %s is not ready: %v", c.spec.Name, err), false)
				}
				c.setReady(ok)
			})
		})
	}
	group.Wait()
}

// kill ends a container whose probe failed; its restart policy then decides.
func (c *container) kill(proc *reap.Process, reason string) {
	c.pod.tell(fmt.Sprintf("container %s: %s", c.spec.Name, reason))
	c.mu.Lock()
	c.reason = reason
	c.mu.Unlock()
	grace := 30 * time.Second
	if s := c.pod.cfg.Manifest.Spec.TerminationGracePeriodSeconds; s != nil {
		grace = time.Duration(*s) * time.Second
	}
	c.end(proc, grace)
}

// end sends SIGTERM, and SIGKILL after the grace period.
func (c *container) end(proc *reap.Process, grace time.Duration) {
	proc.Signal(unix.SIGTERM)
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-proc.Done():
	case <-t.C:
		proc.Signal(unix.SIGKILL)
		<-proc.Done()
	}
}

// stop ends the container for good.
func (c *container) stop(grace time.Duration) {
	c.mu.Lock()
	proc := c.proc
	running := c.running
	c.mu.Unlock()
	start := time.Now()
	if proc != nil && c.spec.Lifecycle != nil && c.spec.Lifecycle.PreStop != nil {
		c.preStop(grace)
	}
	c.stopOnce.Do(func() { close(c.stopping) })
	if !running {
		return
	}
	if proc != nil {
		c.end(proc, max(grace-time.Since(start), 0))
	}
	// Between two runs there may be a start under way: it ends like this one.
	for {
		select {
		case <-c.ended:
			return
		case <-time.After(20 * time.Millisecond):
		}
		c.mu.Lock()
		next := c.proc
		c.mu.Unlock()
		if next != nil && next != proc {
			c.end(next, max(grace-time.Since(start), 0))
		}
	}
}

func (c *container) preStop(grace time.Duration) {
	h := c.spec.Lifecycle.PreStop
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	var err error
	switch {
	case h.Sleep != nil:
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(h.Sleep.Seconds) * time.Second):
		}
	case h.Exec != nil:
		_, err = c.pod.Exec(ctx, c.spec.Name, h.Exec.Command, nil)
	case h.HTTPGet != nil:
		err = probe.HTTP(ctx, h.HTTPGet, probe.Target{
			NetNS: c.pod.NetNS(), IP: c.pod.Status().IPs[0], Containers: []manifest.Container{*c.spec},
		})
	default:
		err = errors.New("no handler that is supported here")
	}
	if err != nil {
		c.pod.tell(fmt.Sprintf("container %s: preStop: %v", c.spec.Name, err))
	}
}

func (c *container) succeeded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state == "ended" && c.code == 0
}

func (c *container) status() ContainerStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := ContainerStatus{
		Name: c.spec.Name, Image: c.spec.Image, State: c.state, Ready: c.ready, Restarts: c.restarts,
		Reason: c.reason, ExitCode: c.code, Log: c.log.Path(),
	}
	if c.proc != nil {
		s.PID = c.proc.PID
	}
	for _, p := range c.spec.Ports {
		proto := p.Protocol
		if proto == "" {
			proto = "TCP"
		}
		s.Ports = append(s.Ports, fmt.Sprintf("%d/%s", p.ContainerPort, strings.ToLower(proto)))
	}
	return s
}

// shimSpec evaluates the manifest into a container.
func (c *container) shimSpec(ns *netns.Namespace) (shim.Spec, error) {
	p := c.pod
	prog, ok := p.cfg.Programs[c.spec.Name]
	if !ok {
		return shim.Spec{}, errors.New(p.cfg.Errors[c.spec.Name])
	}
	facts := manifest.PodFacts{IPs: ns.IPs, HostIP: netns.Node4, NodeName: p.env.NodeName}
	env, err := manifest.Environment(p.cfg.Manifest, c.spec, facts, p.env.Objects)
	if err != nil {
		return shim.Spec{}, err
	}
	m := &p.cfg.Manifest.Metadata
	base := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOSTNAME=" + m.Name, "HOME=/root", "TERM=xterm",
	}
	env = append(append(base, prog.Env...), env...)
	mounts, err := p.volumes.mounts(c.spec)
	if err != nil {
		return shim.Spec{}, err
	}
	if prog.RootFS == "" && hidden(prog.Args[0]) {
		mounts = append(mounts, shim.Mount{Source: prog.Args[0], Target: prog.Args[0], ReadOnly: true})
	}
	spec := shim.Spec{
		Hostname: m.Name, Staging: p.env.Staging, RootFS: prog.RootFS, Mounts: mounts,
		Files: p.files(ns), Hide: p.env.Hide, Env: env, Dir: manifest.Expand(c.spec.WorkingDir, nil),
	}
	c.user(&spec)
	args := manifest.ExpandAll(c.spec.Args, env)
	if len(args) == 0 && len(c.spec.Command) == 0 {
		args = prog.DefaultArgs
	}
	spec.Args = append(append([]string{}, prog.Args...), args...)
	if len(c.spec.Command) > 0 {
		command := manifest.ExpandAll(c.spec.Command, env)
		// The command names a file of the image; where this machine lacks it, the
		// program that stands for the image takes its place.
		spec.Fallback = append(append([]string{}, prog.Args...), append(command[1:], args...)...)
		spec.Args = append(command, args...)
	}
	return spec, nil
}

// hidden says that a program lies where containers have a folder of their own.
func hidden(program string) bool {
	for _, dir := range []string{"/tmp/", "/run/", "/var/run/"} {
		if strings.HasPrefix(program, dir) {
			return true
		}
	}
	return false
}

// user sets the ids, and a read-only root.
func (c *container) user(spec *shim.Spec) {
	set := func(uid, gid *int64) {
		if uid != nil && *uid >= 0 && *uid <= math.MaxUint32 {
			spec.UID, spec.GID = int(*uid), int(*uid)
		}
		if gid != nil && *gid >= 0 && *gid <= math.MaxUint32 {
			spec.GID = int(*gid)
		}
	}
	if s := c.pod.cfg.Manifest.Spec.SecurityContext; s != nil {
		set(s.RunAsUser, s.RunAsGroup)
	}
	if s := c.spec.SecurityContext; s != nil {
		set(s.RunAsUser, s.RunAsGroup)
		spec.ReadOnlyRoot = s.ReadOnlyRootFilesystem
	}
}
