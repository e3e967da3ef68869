package pod

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/api"
	"lateen.dev/lateen/internal/bootstrap"
	"lateen.dev/lateen/internal/local/inherit"
	"lateen.dev/lateen/internal/local/logfile"
	"lateen.dev/lateen/internal/local/manifest"
	"lateen.dev/lateen/internal/local/netns"
	"lateen.dev/lateen/internal/local/probe"
	"lateen.dev/lateen/internal/local/reap"
	"lateen.dev/lateen/internal/local/shim"
)

// proxyGrace bounds how long a proxy drains after SIGTERM.
const proxyGrace = 7 * time.Second

// IstioVersion is the release of Istio's APIs that proxies announce.
const IstioVersion = "1.31.0"

// capabilities is what lateen-proxy can do, in the words of LATEEN_CAPS.
func capabilities() []string {
	return []string{"http1", "http2", "tcp", "tls", "origins", "nds", "rbac", "fault", "cors", "mirror", "outlier"}
}

// proxy supervises the proxy process of a pod. It runs in the pod's network
// namespace but in the node's user namespace, which alone may mark sockets.
type proxy struct {
	pod *Pod
	log *logfile.File

	mu       sync.Mutex
	state    string
	reason   string
	ready    bool
	once     chan struct{} // closed when ready for the first time
	restarts int
	code     int
	proc     *reap.Process
	running  bool // supervise was called
	svid     int  // memfd in which the certificate outlives the process
	roots    api.TokenResponse
	stopping chan struct{}
	ended    chan struct{}
}

func newProxy(p *Pod) *proxy {
	return &proxy{
		pod: p, log: logfile.New(p.logPath(ProxyContainer)), state: "waiting", reason: "starting", svid: -1,
		once: make(chan struct{}), stopping: make(chan struct{}), ended: make(chan struct{}),
	}
}

func (x *proxy) supervise() {
	x.mu.Lock()
	x.running = true
	x.mu.Unlock()
	defer close(x.ended)
	defer x.log.Close()
	svid, err := shim.Memfd("svid", nil)
	if err != nil {
		x.set("ended", err.Error(), 0)
		x.pod.tell("proxy: " + err.Error())
		return
	}
	defer unix.Close(svid)
	x.svid = svid
	backoff := minBackoff / 5
	for !x.isStopping() {
		start := time.Now()
		code, err := x.run()
		reason := fmt.Sprintf("ended with code %d", code)
		if err != nil {
			reason = err.Error()
		}
		if x.isStopping() {
			break
		}
		if time.Since(start) > 10*time.Second {
			backoff = minBackoff / 5
		}
		x.set("waiting", reason+"; starting again", code)
		x.pod.tell("proxy: " + reason)
		select {
		case <-time.After(backoff):
		case <-x.stopping:
		}
		backoff = min(2*backoff, 10*time.Second)
		x.mu.Lock()
		x.restarts++
		x.mu.Unlock()
	}
	x.set("ended", "stopped", 0)
}

func (x *proxy) isStopping() bool {
	select {
	case <-x.stopping:
		return true
	default:
		return false
	}
}

func (x *proxy) set(state, reason string, code int) {
	x.mu.Lock()
	x.state, x.reason, x.code, x.ready = state, reason, code, false
	if state != "running" {
		x.proc = nil
	}
	x.mu.Unlock()
	x.pod.env.Changed()
}

// run starts the proxy once and waits for its end.
func (x *proxy) run() (int, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // token requests end with the proxy
		select {
		case <-x.stopping:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := x.fetchToken(ctx); err != nil {
		return 0, err
	}
	proc, err := x.start()
	if err != nil {
		return 0, err
	}
	x.mu.Lock()
	x.state, x.reason, x.proc = "running", "", proc
	x.mu.Unlock()
	x.pod.env.Changed()
	if x.isStopping() { // stop came while it was starting
		proc.Signal(unix.SIGTERM)
	}
	var watch sync.WaitGroup
	watch.Go(func() { x.watchReady(ctx) })
	<-proc.Done()
	cancel()
	watch.Wait()
	return proc.Code(), nil
}

// fetchToken gets a fresh token. While the control plane is away a proxy that
// had a certificate before restarts without one: its SVID is still there.
func (x *proxy) fetchToken(ctx context.Context) error {
	m := &x.pod.cfg.Manifest.Metadata
	if x.roots.RootsPEM != "" {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
	}
	resp, err := x.pod.env.Token(ctx, api.TokenRequest{
		Namespace: m.Namespace, ServiceAccount: x.pod.cfg.Manifest.Spec.ServiceAccount(), Pod: m.Name,
	})
	if err != nil {
		if x.roots.RootsPEM == "" {
			return fmt.Errorf("fetch a bootstrap token: %w", err)
		}
		x.roots.Token = ""
		return nil
	}
	x.roots = resp
	return nil
}

func (x *proxy) start() (*reap.Process, error) {
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/null: %w", err)
	}
	fds = append(fds, null)
	out, err := x.log.Writer()
	if err != nil {
		return nil, err
	}
	fds = append(fds, out)
	const bootstrapFD, svidFD, tokenFD, firstListener = 3, 4, 5, 6
	token, err := shim.Memfd("token", []byte(x.roots.Token))
	if err != nil {
		return nil, err
	}
	fds = append(fds, token)
	b, err := x.bootstrap(svidFD, tokenFD, firstListener)
	if err != nil {
		return nil, err
	}
	boot, err := shim.Memfd("bootstrap", b)
	if err != nil {
		return nil, err
	}
	fds = append(fds, boot)
	files := []uintptr{uintptr(null), uintptr(out), uintptr(out), uintptr(boot), uintptr(x.svid), uintptr(token)}
	for _, port := range x.listenerPorts() {
		files = append(files, uintptr(x.pod.cfg.Listeners[port]))
	}
	attr := &syscall.ProcAttr{
		Env:   []string{"PATH=/usr/bin:/bin", "HOSTNAME=" + x.pod.cfg.Manifest.Metadata.Name},
		Files: files, Sys: &syscall.SysProcAttr{Setsid: true},
	}
	var proc *reap.Process
	err = netns.Do(x.pod.NetNS(), func() error {
		var err error
		proc, err = x.pod.env.Reap.Start(x.pod.env.ProxyProgram,
			[]string{"lateen-proxy", "--bootstrap-fd", strconv.Itoa(bootstrapFD)}, attr)
		return err
	})
	return proc, err
}

// listenerPorts returns the inherited ports in the order of their descriptors.
func (x *proxy) listenerPorts() []uint16 {
	return slices.Sorted(maps.Keys(x.pod.cfg.Listeners))
}

// bootstrap writes what the proxy is told.
func (x *proxy) bootstrap(svidFD, tokenFD, firstListener int) ([]byte, error) {
	p, m := x.pod, &x.pod.cfg.Manifest.Metadata
	b := bootstrap.Bootstrap{
		Role: bootstrap.Sidecar, Capture: bootstrap.CaptureMark, IPs: p.net.IPs,
		Egress: p.env.Egress, Networks: append(inherit.ServiceCIDRs(), netns.Pods4, netns.Pods6), DNS: p.env.DNSAddress, Telemetry: p.env.TelemetryAddress,
		Control: bootstrap.Control{Address: p.env.ControlAddress, RootsPEM: x.roots.RootsPEM},
		Identity: bootstrap.Identity{
			TrustDomain: x.roots.TrustDomain, Namespace: m.Namespace,
			ServiceAccount: p.cfg.Manifest.Spec.ServiceAccount(), SVIDFD: svidFD,
		},
		LogLevel: p.env.LogLevel, StateDir: x.stateDir(), AppProbes: appProbes(p.cfg.Manifest.Spec.Containers),
	}
	if x.roots.Token != "" {
		b.Identity.TokenFD = tokenFD
	}
	if p.cfg.Mode == Gateway {
		b.Role, b.Capture = bootstrap.Router, bootstrap.CaptureNone
	}
	if err := os.MkdirAll(b.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory of the proxy: %w", err)
	}
	for i, port := range x.listenerPorts() {
		b.Inherited = append(b.Inherited, bootstrap.InheritedListener{Port: port, FD: firstListener + i})
	}
	if err := limits(&b, p.cfg.Manifest); err != nil {
		return nil, err
	}
	b.Node = x.node()
	return json.Marshal(b)
}

// appProbes are the probes of the containers that the proxy can make for others,
// by Istio's names; exec probes are the node's own business.
func appProbes(containers []manifest.Container) map[string]bootstrap.AppProbe {
	out := map[string]bootstrap.AppProbe{}
	for i := range containers {
		c := &containers[i]
		for kind, p := range map[string]*manifest.Probe{"livez": c.LivenessProbe, "readyz": c.ReadinessProbe, "startupz": c.StartupProbe} {
			if p == nil {
				continue
			}
			a := bootstrap.AppProbe{TimeoutSeconds: p.TimeoutSeconds}
			switch {
			case p.HTTPGet != nil && p.HTTPGet.Host == "":
				a.Port, a.Path = p.HTTPGet.Port.Port(containers), "/"+strings.TrimPrefix(p.HTTPGet.Path, "/")
				a.TLS = strings.EqualFold(p.HTTPGet.Scheme, "https")
				for _, h := range p.HTTPGet.HTTPHeaders {
					if strings.EqualFold(h.Name, "host") {
						a.Host = h.Value
						continue
					}
					if a.Headers == nil {
						a.Headers = map[string]string{}
					}
					a.Headers[h.Name] = h.Value
				}
			case p.TCPSocket != nil && p.TCPSocket.Host == "":
				a.Port = p.TCPSocket.Port.Port(containers)
			}
			if a.Port > 0 && a.Port < 1<<16 {
				out[c.Name+"/"+kind] = a
			}
		}
	}
	return out
}

// stateDir is where the proxy keeps its last good configuration; it goes with
// the pod.
func (x *proxy) stateDir() string {
	m := &x.pod.cfg.Manifest.Metadata
	return filepath.Join(x.pod.env.StateDir, m.Namespace+"_"+m.Name)
}

// Annotations of Istio that size the proxy.
const (
	proxyCPULimit    = "sidecar.istio.io/proxyCPULimit"
	proxyMemoryLimit = "sidecar.istio.io/proxyMemoryLimit"
	proxyLogLevel    = "sidecar.istio.io/logLevel"
)

// limits turns annotations, or the resources of a gateway's own container, into
// concurrency and memory. Istio: the CPU limit, rounded up, is the concurrency.
func limits(b *bootstrap.Bootstrap, pod *manifest.Pod) error {
	cpu := manifest.Quantity(pod.Metadata.Annotations[proxyCPULimit])
	mem := manifest.Quantity(pod.Metadata.Annotations[proxyMemoryLimit])
	for _, c := range pod.Spec.Containers {
		if c.Name == ProxyContainer {
			if q, ok := c.Resources.Limits["cpu"]; ok && cpu == "" {
				cpu = q
			}
			if q, ok := c.Resources.Limits["memory"]; ok && mem == "" {
				mem = q
			}
		}
	}
	if cpu != "" {
		v, err := cpu.Value()
		if err != nil {
			return fmt.Errorf("annotation %s: %w", proxyCPULimit, err)
		}
		b.Concurrency = max(int(v+0.999), 1)
	}
	if mem != "" {
		v, err := mem.Value()
		if err != nil {
			return fmt.Errorf("annotation %s: %w", proxyMemoryLimit, err)
		}
		b.MemoryLimit = int64(v)
	}
	if l := pod.Metadata.Annotations[proxyLogLevel]; l != "" {
		b.LogLevel = map[string]string{"trace": "debug", "warning": "warn", "critical": "error", "off": "error"}[l]
		if b.LogLevel == "" {
			b.LogLevel = l
		}
	}
	return nil
}

// node is the xDS node with Istio's metadata keys.
func (x *proxy) node() bootstrap.Node {
	p, m := x.pod, &x.pod.cfg.Manifest.Metadata
	role := "sidecar"
	if p.cfg.Mode == Gateway {
		role = "router"
	}
	var ips, apps []string
	for _, ip := range p.net.IPs {
		ips = append(ips, ip.String())
	}
	var ports []map[string]any
	for _, c := range p.cfg.Manifest.Spec.Containers {
		if c.Name != ProxyContainer {
			apps = append(apps, c.Name)
		}
		for _, cp := range c.Ports {
			ports = append(ports, map[string]any{"name": cp.Name, "containerPort": cp.ContainerPort, "protocol": cp.Protocol})
		}
	}
	portsJSON, _ := json.Marshal(ports) // strings and numbers only
	capture := string(bootstrap.CaptureMark)
	if p.cfg.Mode == Gateway {
		capture = string(bootstrap.CaptureNone)
	}
	app := m.Labels["app"]
	if app == "" {
		app = p.cfg.OwnerName
	}
	return bootstrap.Node{
		ID:      fmt.Sprintf("%s~%s~%s.%s~%s.svc.cluster.local", role, ips[0], m.Name, m.Namespace, m.Namespace),
		Cluster: app + "." + m.Namespace,
		Metadata: map[string]any{
			"NAME": m.Name, "NAMESPACE": m.Namespace, "SERVICE_ACCOUNT": p.cfg.Manifest.Spec.ServiceAccount(),
			"LABELS": nonNil(m.Labels), "ANNOTATIONS": nonNil(m.Annotations), "INSTANCE_IPS": strings.Join(ips, ","),
			"CLUSTER_ID": p.cfg.ClusterID, "MESH_ID": x.roots.TrustDomain,
			"WORKLOAD_NAME": p.cfg.OwnerName, "OWNER": owner(p.cfg.OwnerKind, p.cfg.OwnerName, m.Namespace),
			"APP_CONTAINERS": strings.Join(apps, ","), "POD_PORTS": string(portsJSON),
			"ISTIO_VERSION": IstioVersion, "INTERCEPTION_MODE": "REDIRECT", "DNS_CAPTURE": "true",
			"NODE_NAME": p.env.NodeName, "LATEEN_CAPS": capabilities(), "LATEEN_CAPTURE": capture,
		},
	}
}

func nonNil(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

func owner(kind, name, ns string) string {
	if kind == "Deployment" {
		return "kubernetes://apis/apps/v1/namespaces/" + ns + "/deployments/" + name
	}
	return "kubernetes://apis/v1/namespaces/" + ns + "/" + strings.ToLower(kind) + "s/" + name
}

// watchReady follows the proxy's readiness endpoint.
func (x *proxy) watchReady(ctx context.Context) {
	p := &manifest.Probe{
		HTTPGet:       &manifest.HTTPGet{Path: "/healthz/ready", Port: manifest.IntOrString{Int: bootstrap.ReadyPort}},
		PeriodSeconds: 2, FailureThreshold: 2,
	}
	t := probe.Target{NetNS: x.pod.NetNS(), IP: x.pod.net.IPs[0]}
	probe.Run(ctx, p, t, func(ok bool, err error) {
		x.mu.Lock()
		x.ready = ok
		x.reason = ""
		if err != nil {
			x.reason = "not ready: " + err.Error()
		}
		if ok {
			select {
			case <-x.once:
			default:
				close(x.once)
			}
		}
		x.mu.Unlock()
		x.pod.env.Changed()
	})
}

// waitReady waits until the proxy was ready once: the application must not start
// into a network that does not answer.
func (x *proxy) waitReady(ctx context.Context) bool {
	select {
	case <-x.once:
		return true
	case <-ctx.Done():
	case <-x.stopping:
	}
	return false
}

// stop drains the proxy and waits for its end.
func (x *proxy) stop(grace time.Duration) {
	x.mu.Lock()
	proc, running := x.proc, x.running
	select {
	case <-x.stopping:
	default:
		close(x.stopping)
	}
	x.mu.Unlock()
	if !running {
		return
	}
	if proc != nil {
		proc.Signal(unix.SIGTERM)
	}
	t := time.NewTimer(grace)
	defer t.Stop()
	for {
		select {
		case <-x.ended:
			return
		case <-t.C:
			x.kill()
			t.Reset(time.Second)
		}
	}
}

// kill ends the proxy at once; supervise starts it again unless it is stopping.
func (x *proxy) kill() {
	x.mu.Lock()
	proc := x.proc
	x.mu.Unlock()
	if proc != nil {
		proc.Signal(unix.SIGKILL)
	}
}

func (x *proxy) status() ContainerStatus {
	x.mu.Lock()
	defer x.mu.Unlock()
	s := ContainerStatus{
		Name: ProxyContainer, Image: "lateen-proxy", State: x.state, Ready: x.ready, Restarts: x.restarts,
		Reason: x.reason, ExitCode: x.code, Log: x.log.Path(),
	}
	if x.proc != nil {
		s.PID = x.proc.PID
	}
	return s
}

// Capabilities is what the proxies of the local cluster say they can do, for
// others who start one (the benchmark).
func Capabilities() []string { return capabilities() }
