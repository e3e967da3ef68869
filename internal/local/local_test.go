//go:build linux

package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/local/node"
	"lateen.dev/lateen/internal/local/preflight"
)

// cluster is a cluster under test.
type cluster struct {
	t       *testing.T
	dir     string
	exe     string
	objects string
	out     string
	client  *Client
	mu      sync.Mutex
	events  []Event
	cancel  context.CancelFunc
	done    chan error
}

// needNamespaces skips where the machine forbids namespaces, with the reason; in
// CI that is a failure.
func needNamespaces(t *testing.T) {
	t.Helper()
	err := Preflight()
	if err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal(err)
	}
	var r *preflight.Refusal
	if errors.As(err, &r) {
		t.Skip("skipped:", r)
	}
	t.Fatal(err)
}

func start(t *testing.T, objects ...string) *cluster {
	t.Helper()
	needNamespaces(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c := &cluster{
		t: t, dir: filepath.Join(dir, "data"), exe: exe, objects: filepath.Join(dir, "objects.json"),
		out: filepath.Join(dir, "local.json"), done: make(chan error, 1),
	}
	c.client = NewClient(c.dir)
	c.write(objects...)
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	go func() {
		c.done <- Up(ctx, Options{
			DataDir: c.dir, ProxyProgram: exe, OTLPGRPCPort: -1, OTLPHTTPPort: -1,
			Images:  map[string]string{"app": exe},
			Control: []string{exe, "fake-control", c.objects, c.out}, Progress: c.event,
		})
	}()
	t.Cleanup(c.stop)
	return c
}

func (c *cluster) event(e Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = append(c.events, e)
	c.t.Logf("%s %s.%s: %s", e.Kind, e.Name, e.Namespace, e.Message)
}

func (c *cluster) heard(text string) func() bool {
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return slices.ContainsFunc(c.events, func(e Event) bool { return strings.Contains(e.Message, text) })
	}
}

func (c *cluster) stop() {
	c.cancel()
	select {
	case err := <-c.done:
		if err != nil {
			c.t.Errorf("Up: %v", err)
		}
		c.done <- nil
	case <-time.After(30 * time.Second):
		c.t.Error("Up does not end")
	}
	if c.t.Failed() {
		for _, name := range []string{"node.log", "control.log"} {
			data, _ := os.ReadFile(filepath.Join(c.dir, "logs", name))
			c.t.Logf("%s:\n%s", name, data)
		}
	}
}

// write replaces the objects; each is YAML-like JSON.
func (c *cluster) write(objects ...string) {
	c.t.Helper()
	var list []source
	for _, o := range objects {
		list = append(list, source{Source: "test.yaml:1", Object: json.RawMessage(o)})
	}
	data, err := json.Marshal(list)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(c.objects+".new", data, 0o600); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(c.objects+".new", c.objects); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) eventually(what string, ok func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			pods, err := c.client.Pods(context.Background())
			c.t.Fatalf("never: %s; pods: %+v %v", what, pods, err)
		}
	}
}

func (c *cluster) ready(n int) {
	c.t.Helper()
	c.eventually(fmt.Sprintf("%d pods ready", n), func() bool {
		pods, err := c.client.Pods(context.Background())
		ready := 0
		for _, p := range pods {
			if p.Ready {
				ready++
			}
		}
		return err == nil && ready == n
	})
}

// exec runs a part of the test program in a pod and returns its output.
func (c *cluster) exec(pod string, args ...string) (string, int) {
	c.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		c.t.Fatal(err)
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		c.t.Fatal(err)
	}
	defer null.Close()
	out := make(chan string)
	go func() {
		data, _ := io.ReadAll(r)
		r.Close()
		out <- string(data)
	}()
	code, err := c.client.Exec(context.Background(), pod, "", append([]string{c.exe}, args...), null, w, w)
	w.Close()
	text := <-out
	if err != nil {
		c.t.Fatalf("exec in %s: %v %s", pod, err, text)
	}
	return text, code
}

// count returns and resets a toy proxy's counters.
func (c *cluster) count(pod string) string {
	c.t.Helper()
	conn, err := c.client.Dial(context.Background(), pod, 15000)
	if err != nil {
		c.t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /count HTTP/1.0\r\n\r\n")
	data, _ := io.ReadAll(conn)
	_, body, _ := strings.Cut(string(data), "\r\n\r\n")
	return body
}

func podObject(name, namespace, extra, spec string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":%q,"namespace":%q,"labels":{"app":%q},"annotations":{%s}},
		"spec":{"containers":[{"name":"app","image":"app","args":["app","8080"],"ports":[{"containerPort":8080,"name":"http"}]%s}]}}`,
		name, namespace, name, extra, spec)
}

func service(name, namespace, v4, v6, ports string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"Service","metadata":{"name":%q,"namespace":%q},
		"spec":{"clusterIP":%q,"clusterIPs":[%q,%q],"selector":{"app":%q},"ports":[%s]}}`, name, namespace, v4, v4, v6, name, ports)
}

const readyProbe = `,"readinessProbe":{"httpGet":{"path":"/health","port":"http"},"periodSeconds":1}`

// TestCapture_callMatrix is every way one pod reaches another, in both families.
func TestCapture_callMatrix(t *testing.T) {
	vips := `"test/vips":"10.78.0.1=10.77.0.2,fd78::1=fd77::2,10.78.0.2=10.77.0.3,fd78::2=fd77::3"`
	ports := `{"name":"http","port":8080,"targetPort":"http"},{"name":"u","port":53000,"protocol":"UDP","targetPort":9000}`
	c := start(
		t,
		podObject("a", "default", vips, readyProbe), podObject("b", "default", vips, readyProbe),
		podObject("c", "plain", "", readyProbe),
		service("a", "default", "10.78.0.1", "fd78::1", ports), service("b", "default", "10.78.0.2", "fd78::2", ports),
		service("c", "plain", "10.78.0.3", "fd78::3", ports),
	)
	c.ready(3)
	c.count("a")
	c.count("b")
	for _, x := range []struct {
		what, from, url, want, a, b string
	}{
		{"VIP v4", "a", "http://10.78.0.2:8080/", "b sees 10.77.0.3", "out=1 in=0", "out=0 in=1"},
		{"VIP v6", "a", "http://[fd78::2]:8080/", "b sees fd77::3", "out=1 in=0", "out=0 in=1"},
		{"pod v4", "a", "http://10.77.0.3:8080/", "b sees 10.77.0.3", "out=1 in=0", "out=0 in=1"},
		{"pod v6", "a", "http://[fd77::3]:8080/", "b sees fd77::3", "out=1 in=0", "out=0 in=1"},
		{"self by VIP v4", "a", "http://10.78.0.1:8080/", "a sees 10.77.0.2", "out=1 in=1", "out=0 in=0"},
		{"self by VIP v6", "a", "http://[fd78::1]:8080/", "a sees fd77::2", "out=1 in=1", "out=0 in=0"},
		{"own pod address v4", "a", "http://10.77.0.2:8080/", "a sees 10.77.0.2", "out=0 in=0", "out=0 in=0"},
		{"own pod address v6", "a", "http://[fd77::2]:8080/", "a sees fd77::2", "out=0 in=0", "out=0 in=0"},
		{"loopback v4", "a", "http://127.0.0.1:8080/", "a sees 127.0.0.1", "out=0 in=0", "out=0 in=0"},
		{"loopback v6", "a", "http://[::1]:8080/", "a sees ::1", "out=0 in=0", "out=0 in=0"},
		{"without proxy to pod v4", "c", "http://10.77.0.3:8080/", "b sees 10.77.0.3", "out=0 in=0", "out=0 in=1"},
		{"without proxy to pod v6", "c", "http://[fd77::3]:8080/", "b sees fd77::3", "out=0 in=0", "out=0 in=1"},
		{"without proxy by VIP v4", "c", "http://10.78.0.2:8080/", "b sees 10.77.0.3", "out=0 in=0", "out=0 in=1"},
		{"without proxy by VIP v6", "c", "http://[fd78::2]:8080/", "b sees fd77::3", "out=0 in=0", "out=0 in=1"},
		{"without proxy by name", "c", "http://b.default:8080/", "b sees", "out=0 in=0", "out=0 in=1"},
		{"without proxy by short name to itself", "c", "http://c:8080/", "c sees", "out=0 in=0", "out=0 in=0"},
		{"readiness is direct", "c", "http://10.77.0.3:15021/healthz/ready", "", "out=0 in=0", "out=0 in=0"},
	} {
		got, code := c.exec(x.from, "call", x.url)
		if code != 0 || !strings.HasPrefix(got, x.want) {
			t.Errorf("%s: %q code %d, want %q", x.what, got, code, x.want)
		}
		if a := c.count("a"); !strings.HasPrefix(a, x.a) {
			t.Errorf("%s: a counted %s, want %s", x.what, a, x.a)
		}
		if b := c.count("b"); !strings.HasPrefix(b, x.b) {
			t.Errorf("%s: b counted %s, want %s", x.what, b, x.b)
		}
	}
	if got, code := c.exec("a", "call", "http://b.anything:8080/"); code != 0 || !strings.Contains(got, "sees") || strings.HasSuffix(c.count("a"), "dns=0") {
		t.Errorf("name by the proxy's DNS: %q", got)
	}
	for _, addr := range []string{"10.78.0.2:53000", "[fd78::2]:53000"} {
		if got, _ := c.exec("c", "udp", addr); got != "udp hello" {
			t.Errorf("UDP service %s: %q", addr, got)
		}
	}
	for _, p := range []string{"a", "c"} {
		if got, code := c.exec(p, "mark"); code != 0 {
			t.Errorf("an application in %s can set a mark: %s", p, got)
		}
	}
	begin := time.Now()
	if got, code := c.exec("c", "call", "http://10.78.0.3:9999/"); code == 0 || time.Since(begin) > 3*time.Second {
		t.Errorf("a port no service has: %q after %v", got, time.Since(begin))
	}
}

func TestPods_environmentVolumesProbesAndUpdates(t *testing.T) {
	cm := func(v string) string {
		return `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"conf","namespace":"plain"},"data":{"key":"` + v + `","other":"x"}}`
	}
	secret := `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"sec","namespace":"plain"},"data":{"pw":"aHVzaA=="}}`
	deploy := func(version string) string {
		return `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web","namespace":"plain"},"spec":{"replicas":2,
		"selector":{"matchLabels":{"app":"web"}},"template":{"metadata":{"labels":{"app":"web","version":"` + version + `"}},
		"spec":{"terminationGracePeriodSeconds":3,"securityContext":{"runAsUser":1000},
		"volumes":[{"name":"conf","configMap":{"name":"conf"}},{"name":"sec","secret":{"secretName":"sec"}},{"name":"tmp","emptyDir":{}}],
		"containers":[{"name":"app","image":"app:1.2","args":["app","$(PORT)"],"ports":[{"containerPort":8080,"name":"http"}],
		"env":[{"name":"PORT","value":"8080"},{"name":"VERSION","valueFrom":{"fieldRef":{"fieldPath":"metadata.labels['version']"}}},
		{"name":"PW","valueFrom":{"secretKeyRef":{"name":"sec","key":"pw"}}},{"name":"IP","valueFrom":{"fieldRef":{"fieldPath":"status.podIP"}}}],
		"envFrom":[{"prefix":"C_","configMapRef":{"name":"conf"}}],
		"volumeMounts":[{"name":"conf","mountPath":"/etc/does-not-exist/conf"},{"name":"sec","mountPath":"/var/secret"},{"name":"tmp","mountPath":"/scratch"}],
		"livenessProbe":{"httpGet":{"path":"/health","port":"http"},"periodSeconds":1,"failureThreshold":1},
		"readinessProbe":{"httpGet":{"path":"/health","port":8080},"periodSeconds":1}}]}}}}`
	}
	svc := service("web", "plain", "10.78.0.9", "fd78::9", `{"port":80,"targetPort":"http"}`)
	client := podObject("client", "plain", "", "")
	broken := `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"broken","namespace":"plain"},"spec":{"containers":[{"name":"x","image":"nobody/knows:1"}]}}`
	c := start(t, cm("one"), secret, deploy("v1"), svc, client, broken)
	c.ready(3)
	c.eventually("the unmapped image is told", c.heard(`image "nobody/knows:1" has no program`))
	get := func(path string) string {
		out, _ := c.exec("client", "call", "http://web"+path)
		return out
	}
	for path, want := range map[string]string{
		"/env?name=VERSION": "v1", "/env?name=PW": "hush", "/env?name=C_key": "one",
		"/file?name=/etc/does-not-exist/conf/key": "one", "/file?name=/var/secret/pw": "hush",
		"/file?name=/etc/resolv.conf": "nameserver 10.77.0.1\nsearch plain.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n",
	} {
		if got := get(path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	c.write(cm("two"), secret, deploy("v1"), svc, client, broken)
	c.eventually("a running pod sees the changed ConfigMap", func() bool { return get("/file?name=/etc/does-not-exist/conf/key") == "two" })

	// Roll over to v2 under calls: none may fail.
	c.write(cm("two"), secret, deploy("v2"), svc, client, broken)
	calls := 0
	c.eventually("both pods are v2", func() bool {
		out, code := c.exec("client", "call", "http://web/env?name=VERSION")
		if calls++; code != 0 {
			t.Errorf("call %d during the rollout: %s", calls, out)
		}
		pods, err := c.client.Pods(context.Background())
		n := 0
		for _, p := range pods {
			if p.Labels["version"] == "v2" && p.Ready {
				n++
			}
		}
		return err == nil && n == 2 && len(pods) == 4
	})
	get("/die")
	c.eventually("the liveness probe restarts a container", func() bool {
		pods, _ := c.client.Pods(context.Background())
		for _, p := range pods {
			if p.OwnerName == "web" && p.Containers[0].Restarts == 1 && p.Ready {
				return true
			}
		}
		return false
	})
	c.endpoints("web", 2)
	var logs strings.Builder
	if err := c.client.Logs(context.Background(), "client", "", false, &logs); err != nil || !strings.Contains(logs.String(), "app client listens on 8080") {
		t.Errorf("logs: %q %v", logs.String(), err)
	}
	c.write(cm("two"), secret, svc, client)
	c.ready(1)
	c.endpoints("web", 0)
}

// endpoints waits until the control plane knows n ready endpoints per family.
func (c *cluster) endpoints(service string, n int) {
	c.t.Helper()
	c.eventually(fmt.Sprintf("%d endpoints of %s", n, service), func() bool {
		data, err := os.ReadFile(c.out)
		if err != nil {
			return false
		}
		var list []struct {
			Kind      string
			Metadata  struct{ Labels map[string]string }
			Endpoints []struct{ Conditions struct{ Ready bool } }
		}
		if err := json.Unmarshal(data, &list); err != nil {
			return false
		}
		ready := 0
		for _, o := range list {
			if o.Kind != "EndpointSlice" || o.Metadata.Labels["kubernetes.io/service-name"] != service {
				continue
			}
			for _, e := range o.Endpoints {
				if e.Conditions.Ready {
					ready++
				}
			}
		}
		return ready == 2*n
	})
}

func TestHost_gatewayPortsRelayAndHostAlias(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "the host") }))
	port := l.Addr().(*net.TCPAddr).Port
	shut, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer shut.Close()
	gateway := `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"gw","namespace":"istio-system"},"spec":{
		"selector":{"matchLabels":{"istio":"ingress"}},"template":{"metadata":{"annotations":{"inject.istio.io/templates":"gateway"},
		"labels":{"istio":"ingress","sidecar.istio.io/inject":"true"}},"spec":{"containers":[{"name":"istio-proxy","image":"auto"}]}}}}`
	gwService := `{"apiVersion":"v1","kind":"Service","metadata":{"name":"gw","namespace":"istio-system"},
		"spec":{"type":"LoadBalancer","clusterIP":"10.78.0.5","selector":{"istio":"ingress"},"ports":[{"port":80,"targetPort":8080}]}}`
	plain := `{"apiVersion":"v1","kind":"Service","metadata":{"name":"c","namespace":"plain"},
		"spec":{"type":"LoadBalancer","clusterIP":"10.78.0.6","selector":{"app":"c"},"ports":[{"port":18123,"targetPort":8080}]}}`
	c := start(t, gateway, gwService, podObject("c", "plain", "", readyProbe), plain,
		fmt.Sprintf(`{"apiVersion":"lateen.dev/v1alpha1","kind":"LocalCluster","metadata":{"name":"l"},"spec":{"hostPorts":[%d]}}`, port))
	c.ready(2)
	c.eventually("the rules follow the pods", c.heard("2 pods ready"))
	for service, want := range map[string]string{"gw": "gateway port 8080", "c": "c sees 10.77.0.1"} {
		c.mu.Lock()
		i := slices.IndexFunc(c.events, func(e Event) bool { return e.Kind == "service" && e.Name == service })
		var url string
		if i >= 0 {
			_, rest, _ := strings.Cut(c.events[i].Message, " is ")
			url, _, _ = strings.Cut(rest, " on ")
		}
		c.mu.Unlock()
		resp, err := http.Get(url)
		if err != nil {
			t.Errorf("%s at %q: %v", service, url, err)
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(body) != want {
			t.Errorf("%s: %q, want %q", service, body, want)
		}
	}
	if got, _ := c.exec("c", "call", fmt.Sprintf("http://host.lateen.internal:%d/", port)); got != "the host" {
		t.Errorf("an opened port of the host: %q", got)
	}
	for _, addr := range []string{
		"10.77.255.254:" + fmt.Sprint(shut.Addr().(*net.TCPAddr).Port), "169.254.169.254:80",
	} {
		if got, code := c.exec("c", "call", "http://"+addr+"/"); code == 0 {
			t.Errorf("%s must not be reachable: %q", addr, got)
		}
	}
}

func TestControl_restartsWhilePodsGoOn(t *testing.T) {
	c := start(t, podObject("c", "plain", "", readyProbe))
	c.ready(1)
	before, err := c.client.Info(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	// The node's own process table is not ours: ask a pod for nothing, the node
	// for everything.
	if err := os.Remove(c.objects); err != nil {
		t.Fatal(err)
	}
	killControl(t, c)
	c.eventually("the control process is back", func() bool {
		i, err := c.client.Info(context.Background())
		return err == nil && i.ControlRestarts > before.ControlRestarts && i.ControlPID != 0
	})
	if pods, err := c.client.Pods(context.Background()); err != nil || len(pods) != 1 || pods[0].Containers[0].Restarts != 0 {
		t.Errorf("pods after the restart: %+v %v", pods, err)
	}
}

// killControl finds the fake control plane by its arguments among the children
// of this test and kills it.
func killControl(t *testing.T, c *cluster) {
	t.Helper()
	pids := processes(t, c.objects)
	if len(pids) != 1 {
		t.Fatalf("control processes: %v", pids)
	}
	if err := unix.Kill(pids[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// processes returns the processes with an argument, except this one.
func processes(t *testing.T, arg string) []int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, f := range dirs {
		data, err := os.ReadFile(f)
		var pid int
		if _, serr := fmt.Sscanf(f, "/proc/%d/", &pid); err != nil || serr != nil || pid == os.Getpid() {
			continue
		}
		if slices.Contains(strings.Split(string(data), "\x00"), arg) {
			out = append(out, pid)
		}
	}
	return out
}

// TestKill_leavesNothing looks at processes, mounts and sockets; namespaces are
// looked at with the real programs, in testkit/e2e.
func TestKill_leavesNothing(t *testing.T) {
	needNamespaces(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, sig := range map[string]unix.Signal{"killed": unix.SIGKILL, "interrupted": unix.SIGINT} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			objects := filepath.Join(dir, "objects.json")
			app := strings.Replace(podObject("victim", "default", "", readyProbe), `"app","8080"`, `"app","8080","`+dir+`"`, 1)
			app = strings.Replace(app, `"image":"app"`, `"image":"`+dir+`"`, 1)
			images := `{"apiVersion":"lateen.dev/v1alpha1","kind":"LocalCluster","metadata":{"name":"l"},"spec":{"images":{"` + dir + `":"` + exe + `"}}}`
			c := &cluster{t: t, dir: filepath.Join(dir, "data"), exe: exe, objects: objects, client: NewClient(filepath.Join(dir, "data"))}
			c.write(app, images)
			cmd := exec.Command(exe, "parent", c.dir, objects, filepath.Join(dir, "local.json"))
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			c.ready(1)
			if n := len(processes(t, dir)); n == 0 {
				t.Fatal("the application was not found among the processes")
			}
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			err := cmd.Wait()
			if sig == unix.SIGINT && err != nil {
				t.Errorf("graceful stop: %v", err)
			}
			c.eventually("every process is gone", func() bool {
				return len(processes(t, dir)) == 0 && len(processes(t, objects)) == 0
			})
			c.eventually("every socket is gone", func() bool {
				_, err := os.Stat(filepath.Join(c.dir, node.RunDir))
				return errors.Is(err, os.ErrNotExist)
			})
			mounts, err := os.ReadFile("/proc/self/mountinfo")
			if err != nil || strings.Contains(string(mounts), dir) {
				t.Errorf("mounts are left: %v", err)
			}
			if _, err := c.client.Pods(context.Background()); !errors.Is(err, ErrNotRunning) {
				t.Errorf("a client after the end: %v", err)
			}
		})
	}
}

func TestUp_secondOnTheSameDirectory(t *testing.T) {
	c := start(t)
	c.eventually("the node runs", func() bool { _, err := c.client.Info(context.Background()); return err == nil })
	err := Up(context.Background(), Options{DataDir: c.dir, Control: []string{c.exe}, ProxyProgram: c.exe})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d already runs a cluster", os.Getpid())) {
		t.Errorf("second Up: %v", err)
	}
	if err := c.client.Down(context.Background()); err != nil {
		t.Error(err)
	}
}

// TestConfig_takenPortsOfOTLP: telemetry from outside of the mesh is no reason
// not to run it.
func TestConfig_takenPortsOfOTLP(t *testing.T) {
	var first int
	for first = 30000; first < 40000; first += 20 {
		var all []net.Listener
		for i := range 20 {
			if l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", first+i)); err == nil {
				defer l.Close()
				all = append(all, l)
			}
		}
		if len(all) == 20 {
			break
		}
	}
	var events []Event
	p := &parent{o: Options{Control: []string{"control"}, OTLPGRPCPort: first, OTLPHTTPPort: -1, Progress: func(e Event) { events = append(events, e) }}}
	cfg, files, err := p.config()
	if err != nil || len(files) != 0 || len(cfg.Inherited) != 0 {
		t.Errorf("%v %v %v", cfg, files, err)
	}
	if len(events) != 1 || !events[0].Error || !strings.Contains(events[0].Message, "address already in use") {
		t.Errorf("%+v", events)
	}
}
