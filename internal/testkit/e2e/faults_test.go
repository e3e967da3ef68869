//go:build linux

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// small is a mesh of one service under STRICT mTLS, that only frontend may call.
const small = `apiVersion: v1
kind: ServiceAccount
metadata: {name: frontend}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers:
  - name: web
    image: goapp
    ports: [{containerPort: 8080}]
    readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: caller, labels: {app: caller}}
spec:
  serviceAccountName: frontend
  containers: [{name: idle, image: goapp}]
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, labels: {app: stranger}}
spec:
  containers: [{name: idle, image: goapp}]
---
apiVersion: v1
kind: Pod
metadata: {name: bare, labels: {app: bare}, annotations: {sidecar.istio.io/inject: "false"}}
spec:
  containers: [{name: idle, image: goapp}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/frontend]}}]
`

// folder is a working directory with one manifest.
func folder(t *testing.T, manifest string) string {
	t.Helper()
	needNamespaces(t)
	dir := tempDir(t)
	write(t, filepath.Join(dir, "m", "small.yaml"), manifest)
	give(t, dir)
	return dir
}

const hello = "http://web:8080/api/hello"

// inForce checks that frontend passes and nobody else does.
func (m *mesh) inForce(when string) {
	m.t.Helper()
	if a := m.call("caller", "-n", "20", hello); a.ByStatus[200] != 20 {
		m.t.Errorf("%s: caller got %+v, want 200", when, a)
	}
	if a := m.call("stranger", "-n", "20", hello); a.ByStatus[403] != 20 {
		m.t.Errorf("%s: stranger got %+v, want 403", when, a)
	}
	if a := m.call("bare", hello); len(a.ByStatus) != 0 {
		m.t.Errorf("%s: a pod without sidecar got %+v, want a refused connection", when, a)
	}
}

func TestFaults_controlProcessAndProxyKilled(t *testing.T) {
	m := up(t, folder(t, small), 4, "-f", "m")
	m.inForce("at first")

	// The control process is killed twice under traffic: no request notices.
	load := make(chan answers, 1)
	go func() { load <- m.call("caller", "-for", "5s", "-pause", "2ms", "-c", "4", hello) }()
	for range 2 {
		time.Sleep(time.Second) // let traffic flow, and let the last one restart
		kill(t, m.child("lateen", " control "))
	}
	a := <-load
	if a.ByStatus[200] != a.total() || a.total() < 500 {
		t.Errorf("while the control process was killed: %+v, want 200 alone", a)
	}
	m.until(20*time.Second, "the control process is back", func() error {
		var list struct{ Proxies []struct{ ID string } }
		m.askJSON(&list, "proxy", "status")
		if len(list.Proxies) != 3 {
			return fmt.Errorf("%d proxies connected, want 3", len(list.Proxies))
		}
		return nil
	})

	// A proxy killed while the control process is away starts from what it knew:
	// the policy is in force and nothing passes in plaintext, at any moment.
	control := m.child("lateen", " control ")
	if err := unix.Kill(control, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	frozen := true
	thaw := func() {
		if frozen {
			frozen = false
			_ = unix.Kill(control, unix.SIGCONT) // it may have been replaced
		}
	}
	defer thaw()
	kill(t, m.proxyOf("web"))
	for _, who := range []string{"bare", "stranger"} {
		if a := m.call(who, "-for", "1500ms", "-pause", "20ms", hello); a.ByStatus[200] != 0 {
			t.Errorf("while the proxy was away %s got %+v", who, a)
		}
	}
	m.until(15*time.Second, "the proxy serves without the control process", func() error {
		if a := m.call("caller", hello); a.ByStatus[200] != 1 {
			return fmt.Errorf("%+v", a)
		}
		return nil
	})
	m.inForce("with a proxy started from its last configuration")
	thaw()
}

// says waits until lateen up has printed one line, or one finding of several,
// that has all the pieces, and checks that it is the only one.
func (m *mesh) says(limit time.Duration, pieces ...string) {
	m.t.Helper()
	m.until(limit, "lateen up says "+strings.Join(pieces, " … "), func() error {
		if n := len(m.said(pieces...)); n != 1 {
			return fmt.Errorf("%d times in\n%s", n, m.out)
		}
		return nil
	})
}

// said are the messages of lateen up that have all the pieces. Lines indented
// further belong to the one above.
func (m *mesh) said(pieces ...string) (found []string) {
	var messages []string
	for line := range strings.Lines(m.out.String()) {
		if strings.HasPrefix(line, "    ") && len(messages) > 0 {
			messages[len(messages)-1] += line
			continue
		}
		messages = append(messages, line)
	}
	for _, text := range messages {
		if !slices.ContainsFunc(pieces, func(p string) bool { return !strings.Contains(text, p) }) {
			found = append(found, text)
		}
	}
	return found
}

// proxyOf is the process of a pod's proxy: the one in the network of the pod's
// application, which has the pod's name in its environment.
func (m *mesh) proxyOf(pod string) int {
	m.t.Helper()
	network := ""
	for _, pid := range m.children("goapp") {
		env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if bytes.Contains(env, []byte("HOSTNAME="+pod+"\x00")) {
			network, _ = os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
		}
	}
	for _, pid := range m.children("lateen-proxy") {
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		its, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
		if network != "" && its == network && filepath.Base(exe) == "lateen-proxy" {
			return pid
		}
	}
	m.t.Fatalf("no proxy in the network %q of %s", network, pod)
	return 0
}

func TestFaults_filesAndPrograms(t *testing.T) {
	dir := folder(t, small+`---
apiVersion: v1
kind: Pod
metadata: {name: missing, labels: {app: missing}}
spec:
  containers: [{name: missing, image: no/such/program}]
---
apiVersion: v1
kind: Pod
metadata: {name: crashing, labels: {app: crashing}}
spec:
  containers: [{name: crashing, image: goapp, args: [call, -c, "0"]}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: otel}
data:
  config.yaml: |
    receivers: {otlp: {protocols: {grpc: {}}}}
    exporters: {debug: {no_such_setting: 1}}
    service: {pipelines: {traces: {receivers: [otlp], exporters: [debug]}}}
---
apiVersion: v1
kind: Pod
metadata: {name: collector, labels: {app: collector}}
spec:
  containers:
  - name: otel
    image: otel/opentelemetry-collector:0.120.0
    args: [--config=/etc/otel/config.yaml]
    volumeMounts: [{name: c, mountPath: /etc/otel}]
  volumes: [{name: c, configMap: {name: otel}}]
`)
	m := launch(t, dir, "-f", "m")
	m.until(30*time.Second, "the good pods are ready", func() error {
		pods, err := m.pods()
		if err != nil || !pods["web"] || !pods["caller"] || !pods["stranger"] || !pods["bare"] {
			return fmt.Errorf("%v %w", pods, err)
		}
		return nil
	})
	m.says(20*time.Second, "pod ", "missing.default", "error: container missing: ", "no/such/program", "map it with --image")
	m.says(20*time.Second, "pod ", "crashing.default", "error: container crashing: ended with code 1: ", "its log is ")
	m.says(20*time.Second, "pod ", "collector.default", "error: container otel: ended with code", "no_such_setting", "its log is ")
	m.inForce("beside programs that fail")

	// A file truncated and written again, slowly, while strangers knock.
	load := make(chan answers, 1)
	go func() { load <- m.call("stranger", "-for", "3s", "-pause", "5ms", hello) }()
	good, err := os.ReadFile(filepath.Join(dir, "m", "small.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		write(t, filepath.Join(dir, "m", "small.yaml"), "")
		time.Sleep(300 * time.Millisecond) // longer than the watcher rests
		write(t, filepath.Join(dir, "m", "small.yaml"), string(good)+"# edited\n")
		time.Sleep(300 * time.Millisecond)
	}
	if a := <-load; a.ByStatus[403] != a.total() {
		t.Errorf("while the file was being written strangers got %+v, want 403 alone", a)
	}

	// A second mesh in the same data directory says who runs.
	out, errs, code := runIn(t, dir, "--data", m.data, "up", "-f", "m")
	if want := fmt.Sprintf("process %d already runs a cluster", m.cmd.Process.Pid); code != 1 || !strings.Contains(errs, want) || strings.Count(errs, "hint:") != 1 {
		t.Errorf("a second up: exit %d, %s%s\nwant %q and one hint", code, out, errs, want)
	}
}

// smallDisk mounts a file system of that size at dir.
func smallDisk(t *testing.T, dir, size string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%s,uid=%d,gid=%d,mode=0700", size, nobody, nobody)); err != nil {
		t.Skip("skipped: no tmpfs:", err)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
}

// A full disk: the mesh says so and keeps serving what it can, or does not start;
// it never runs without policies.
func TestFaults_fullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("skipped: mounting a small file system needs root")
	}
	dir := folder(t, small)
	data := filepath.Join(dir, "d")
	smallDisk(t, filepath.Join(dir, "tiny"), "1m")
	out, errs, code := runIn(t, dir, "--data", "tiny/d", "up", "-f", "m")
	if code != 1 || out != "" || !strings.HasPrefix(errs, "error: the disk of "+filepath.Join(dir, "tiny/d")+" is full: ") || strings.Count(errs, "hint:") != 1 {
		t.Errorf("up on a full disk: exit code %d\n%s%s", code, out, errs)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "tiny/d")); err != nil || len(left) != 0 {
		t.Errorf("a start that was refused left %v %v", left, err)
	}

	smallDisk(t, data, "24m")
	m := up(t, dir, 4, "-f", "m")
	fill, err := os.OpenFile(filepath.Join(data, "fill"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer fill.Close()
	block := make([]byte, 1<<16)
	for {
		if _, err := fill.Write(block); err != nil {
			break
		}
	}
	m.inForce("with a full disk")
	m.says(15*time.Second, "disk ", "error: the disk of "+data+" is full: ", "free some space")
	route := filepath.Join(dir, "route.yml") // not among the watched
	write(t, route, "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web}\nspec: {host: web}\n")
	give(t, route)
	if out, errs, code := m.run("apply", "-f", "route.yml"); code != 1 || !strings.Contains(errs, "no space left on device") || !strings.Contains(errs, "nothing was changed") {
		t.Errorf("apply with a full disk: exit code %d\n%s%s", code, out, errs)
	}
	write(t, filepath.Join(dir, "m", "deny.yaml"), "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: deny}\nspec: {action: DENY, rules: [{to: [{operation: {paths: [/api/*]}}]}]}\n")
	m.until(15*time.Second, "a new policy takes effect with a full disk", func() error {
		if a := m.call("caller", hello); a.ByStatus[403] != 1 {
			return fmt.Errorf("%+v", a)
		}
		return nil
	})
}
