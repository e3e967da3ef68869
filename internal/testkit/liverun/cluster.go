//go:build linux

package liverun

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"lateen.dev/lateen/internal/api"
	"lateen.dev/lateen/internal/testkit/scenario"
)

// cluster is one scenario's mesh.
type cluster struct {
	suite *Suite
	sc    *scenario.Scenario
	dir   string // holds manifests and the data directory
	up    *exec.Cmd
	ended chan struct{}
	out   output
	// ownLogs says that the scenario decides what access logs look like: their
	// lines are what it asks for, and nothing else can be read from them.
	ownLogs bool
}

// output collects what up prints.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func (c *cluster) data() string { return filepath.Join(c.dir, "data") }

// start brings the scenario's mesh up and waits until every pod is ready and
// every proxy has the newest configuration.
func (s *Suite) start(ctx context.Context, sc *scenario.Scenario) (*cluster, error) {
	dir, err := os.MkdirTemp(s.dir, "run-")
	if err != nil {
		return nil, fmt.Errorf("make a data directory: %w", err)
	}
	c := &cluster{suite: s, sc: sc, dir: dir, ended: make(chan struct{})}
	manifests := filepath.Join(dir, "manifests")
	if err := c.write(manifests); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if s.cred != nil {
		if err := os.Chown(dir, nobody, nobody); err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
	}
	// Its end is asked for in stop, not by the context: that would kill it.
	c.up = s.command(context.WithoutCancel(ctx), "lateen", "--data", c.data(), "up", "-f", manifests)
	c.up.Env = append(os.Environ(), "HOME="+dir, "TMPDIR="+dir)
	c.up.Stdout, c.up.Stderr = &c.out, &c.out
	if err := c.up.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start lateen: %w", err), os.RemoveAll(dir))
	}
	go func() {
		_ = c.up.Wait() // stop looks at its state
		close(c.ended)
	}()
	if err := c.awaitReady(ctx); err != nil {
		err = fmt.Errorf("%w\n%s", err, c.allLogs())
		return nil, errors.Join(err, c.stop())
	}
	return c, nil
}

// write makes the folder of manifests.
func (c *cluster) write(manifests string) error {
	if err := os.Mkdir(manifests, 0o755); err != nil {
		return err
	}
	cluster := c.sc.Manifests() + fmt.Sprintf(localCluster, scenario.EchoImage, filepath.Join(c.suite.dir, "echo"))
	if c.hasGateway() {
		cluster += gatewayManifest
	}
	for _, f := range c.sc.Files {
		c.ownLogs = c.ownLogs || meshConfig.Match(f.Data)
		if err := os.WriteFile(filepath.Join(manifests, f.Name), f.Data, 0o644); err != nil {
			return err
		}
	}
	if !c.ownLogs {
		cluster += accessLogs
	}
	if err := os.WriteFile(filepath.Join(manifests, "cluster.yaml"), []byte(cluster), 0o644); err != nil {
		return err
	}
	return os.Chmod(c.dir, 0o755)
}

var meshConfig = regexp.MustCompile(`(?m)^kind: ConfigMap\nmetadata:\n  name: istio\n`)

func (c *cluster) hasGateway() bool {
	for _, call := range c.sc.Calls {
		if call.From == "outside" {
			return true
		}
	}
	return false
}

const localCluster = `---
apiVersion: lateen.dev/v1alpha1
kind: LocalCluster
metadata:
  name: scenario
spec:
  images:
    %s: %s
`

const gatewayManifest = `---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: istio-ingressgateway
  namespace: istio-system
---
apiVersion: v1
kind: Service
metadata:
  name: istio-ingressgateway
  namespace: istio-system
spec:
  type: LoadBalancer
  selector: {istio: ingressgateway}
  ports:
  - {name: http2, port: 80, targetPort: 8080}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: istio-ingressgateway
  namespace: istio-system
spec:
  selector:
    matchLabels: {istio: ingressgateway}
  template:
    metadata:
      annotations:
        inject.istio.io/templates: gateway
      labels:
        app: istio-ingressgateway
        istio: ingressgateway
        sidecar.istio.io/inject: "true"
    spec:
      serviceAccountName: istio-ingressgateway
      terminationGracePeriodSeconds: 1
      containers:
      - name: istio-proxy
        image: auto
`

// awaitReady polls until the control plane knows every pod as ready and every
// proxy has acknowledged its newest revision, twice in a row.
func (c *cluster) awaitReady(ctx context.Context) error {
	pods, proxies := 0, 0
	for _, w := range c.sc.Workloads {
		pods += w.Replicas
		if w.Sidecar {
			proxies += w.Replicas
		}
	}
	if c.hasGateway() {
		pods, proxies = pods+1, proxies+1
	}
	var last uint64
	why := "it has not begun"
	for {
		select {
		case <-c.ended:
			return fmt.Errorf("lateen up ended: %v", c.up.ProcessState)
		case <-ctx.Done():
			return fmt.Errorf("not ready: %s: %w", why, context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
		if !strings.Contains(c.out.String(), "\n  ready ") {
			why = "lateen up has not said so"
			continue
		}
		var revision uint64
		if revision, why = c.synced(ctx, pods, proxies); why == "" && revision == last && revision > 0 {
			return nil
		}
		last = revision
	}
}

// synced returns the newest revision, or why it is not in force everywhere.
func (c *cluster) synced(ctx context.Context, pods, proxies int) (uint64, string) {
	items, err := c.objects(ctx, "pod")
	if err != nil {
		return 0, err.Error()
	}
	ready := 0
	for _, p := range items {
		for _, cond := range p.Status.Conditions {
			if cond.Type == "Ready" && cond.Status == "True" {
				ready++
			}
		}
	}
	if ready != pods {
		return 0, fmt.Sprintf("%d of %d pods are ready", ready, pods)
	}
	var status api.Status
	if err := c.lateen(ctx, &status, "status"); err != nil {
		return 0, err.Error()
	}
	if len(status.Proxies) != proxies {
		return 0, fmt.Sprintf("%d of %d proxies are connected", len(status.Proxies), proxies)
	}
	for _, p := range status.Proxies {
		if c.suite.o.Agent != nil {
			if want := c.suite.o.Agent(path.Base(p.Identity)); !strings.HasPrefix(p.Version, want) {
				return 0, fmt.Sprintf("%s is a %q, not a %q", p.ID, p.Version, want)
			}
		}
		for name, t := range p.Types {
			if t.State == "sent" || t.State == "refused" {
				return 0, fmt.Sprintf("%s of %s is %s: %s", name, p.ID, t.State, t.Error)
			}
		}
		if p.Revision < status.Revision {
			return 0, fmt.Sprintf("%s has revision %d of %d", p.ID, p.Revision, status.Revision)
		}
	}
	return status.Revision, ""
}

// object is what the runner reads of Pods and Services.
type object struct {
	Metadata struct {
		Name, Namespace string
		Labels          map[string]string
	}
	Spec struct {
		ClusterIPs []string
	}
	Status struct {
		PodIPs     []struct{ IP string }
		Conditions []struct{ Type, Status string }
	}
}

func (c *cluster) objects(ctx context.Context, kind string) ([]object, error) {
	var list struct{ Objects []api.ObjectItem }
	if err := c.lateen(ctx, &list, "get", kind); err != nil {
		return nil, err
	}
	out := make([]object, len(list.Objects))
	for i, item := range list.Objects {
		if err := json.Unmarshal(item.Object, &out[i]); err != nil {
			return nil, fmt.Errorf("read %s: %w", kind, err)
		}
	}
	return out, nil
}

// lateen runs the command line and reads its JSON into out.
func (c *cluster) lateen(ctx context.Context, out any, args ...string) error {
	cmd := c.suite.command(ctx, "lateen", append([]string{"--data", c.data(), "-o", "json"}, args...)...)
	data, err := cmd.Output()
	if len(data) == 0 && err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return fmt.Errorf("lateen %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(exit.Stderr))
		}
		return fmt.Errorf("lateen %s: %w", strings.Join(args, " "), err)
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("lateen %s: read its JSON: %w", strings.Join(args, " "), err)
	}
	return nil
}

// workload finds a workload by its name, or that of its Deployment.
func (c *cluster) workload(name string) (scenario.Workload, bool) {
	for _, w := range c.sc.Workloads {
		if w.Name == name || w.Deployment() == name {
			return w, true
		}
	}
	return scenario.Workload{}, false
}

// opaque says whether the URL leads to a port that is not declared as HTTP: there
// connections are what is decided about.
func (c *cluster) opaque(rawURL string) bool {
	u, err := url.Parse(rawURL)
	if err != nil {
		return false
	}
	name, _, _ := strings.Cut(u.Hostname(), ".")
	w, ok := c.workload(name)
	return ok && !strings.HasPrefix(w.PortName, "http") && !strings.HasPrefix(w.PortName, "grpc")
}

// resolve replaces the host of the URL by the address that call.To asks for.
func (c *cluster) resolve(ctx context.Context, call *scenario.Call) error {
	if call.To == "" {
		return nil
	}
	u, err := url.Parse(call.URL)
	if err != nil {
		return fmt.Errorf("call %q: %w", call.URL, err)
	}
	w, ok := c.workload(u.Hostname())
	if !ok {
		return fmt.Errorf("call %q: no workload %q", call.URL, u.Hostname())
	}
	kind := map[string]string{"vip": "service", "pod": "pod"}[call.To]
	items, err := c.objects(ctx, kind)
	if err != nil {
		return err
	}
	for _, o := range items {
		if o.Metadata.Namespace != w.Namespace || kind == "service" && o.Metadata.Name != w.Name ||
			kind == "pod" && o.Metadata.Labels["app"] != w.Name {
			continue
		}
		addresses := o.Spec.ClusterIPs
		for _, ip := range o.Status.PodIPs {
			addresses = append(addresses, ip.IP)
		}
		for _, text := range addresses {
			if a, err := netip.ParseAddr(text); err == nil && a.Is6() == (call.Family == 6) {
				call.URL = strings.Replace(call.URL, u.Host, netip.AddrPortFrom(a, portOf(u)).String(), 1)
				return nil
			}
		}
	}
	return fmt.Errorf("call %q: %s has no %s of family %d", call.URL, w.Name, call.To, call.Family)
}

func portOf(u *url.URL) uint16 {
	a, err := netip.ParseAddrPort("0.0.0.0:" + u.Port())
	if err != nil {
		return 80
	}
	return a.Port()
}

var gatewayLine = regexp.MustCompile(`port 80 is http://(\S+) on this machine`)

// gateway is the address on the host that leads to the ingress gateway.
func (c *cluster) gateway() string {
	if m := gatewayLine.FindStringSubmatch(c.out.String()); m != nil {
		return m[1]
	}
	return ""
}

// stopLimit bounds an orderly stop.
const stopLimit = 15 * time.Second

// stop ends the mesh as Ctrl-C does, and says what is left of it.
func (c *cluster) stop() error {
	var errs []error
	before := descendants(c.up.Process.Pid)
	_ = c.up.Process.Signal(syscall.SIGINT) // it may have ended
	select {
	case <-c.ended:
		if code := c.up.ProcessState.ExitCode(); code != 0 {
			errs = append(errs, fmt.Errorf("lateen up exited with %d: %s", code, c.out.String()))
		}
	case <-time.After(stopLimit):
		errs = append(errs, fmt.Errorf("lateen up does not end within %v of an interrupt", stopLimit))
		_ = c.up.Process.Kill()
		<-c.ended
	}
	if left := alive(before); len(left) > 0 {
		errs = append(errs, fmt.Errorf("processes are left: %v", left))
	}
	if err := os.RemoveAll(c.dir); err != nil {
		errs = append(errs, fmt.Errorf("remove the data directory: %w", err))
	}
	return errors.Join(errs...)
}

// allLogs is everything that was written, for people.
func (c *cluster) allLogs() string {
	var b strings.Builder
	fmt.Fprintf(&b, "== up\n%s", c.out.String())
	names, _ := filepath.Glob(filepath.Join(c.data(), "logs", "*", "*.log"))
	more, _ := filepath.Glob(filepath.Join(c.data(), "logs", "*.log"))
	for _, name := range append(more, names...) {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		fmt.Fprintf(&b, "== %s\n", strings.TrimPrefix(name, c.data()))
		_, _ = io.Copy(&b, io.LimitReader(f, 8<<10))
		f.Close()
	}
	return b.String()
}
