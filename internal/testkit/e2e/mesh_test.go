//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/local"
	"lateen.dev/lateen/internal/local/preflight"
)

// nobody is the ordinary user that the programs run as when the tests are root.
const nobody = 65534

// programs is where TestMain builds what the tests run.
var programs string

func TestMain(m *testing.M) {
	if handled, code := local.HiddenRole(os.Args); handled {
		os.Exit(code)
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "lateen-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	build := exec.Command("go", "build", "-o", dir, "lateen.dev/lateen/cmd/lateen", "lateen.dev/lateen/cmd/lateen-proxy", "lateen.dev/lateen/internal/testkit/goapp")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the programs: %v\n%s", err, out)
		return 1
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	programs = dir
	return m.Run()
}

// needNamespaces skips where the machine forbids namespaces; in CI that is a
// failure.
func needNamespaces(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("skipped: it starts a mesh")
	}
	err := local.Preflight()
	var r *preflight.Refusal
	switch {
	case err == nil:
	case errors.As(err, &r) && os.Getenv("CI") != "true":
		t.Skip("skipped:", r)
	default:
		t.Fatal(err)
	}
}

// tempDir is a folder with a short name, for sockets, that belongs to the user
// the programs run as.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "le-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	give(t, dir)
	return dir
}

// give hands everything below path to the user the programs run as.
func give(t *testing.T, path string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	err := filepath.WalkDir(path, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(name, nobody, nobody)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// command is a command of lateen, as an ordinary user.
func command(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(programs, "lateen"), args...)
	cmd.Dir = dir
	cmd.Env = []string{"HOME=" + dir, "TMPDIR=" + dir, "PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8"}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody, NoSetGroups: false}}
	}
	return cmd
}

// output is a buffer that is written and read at the same time.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// mesh is a running `lateen up`.
type mesh struct {
	t      *testing.T
	dir    string // the working directory
	data   string
	out    *output
	cmd    *exec.Cmd
	exited chan error
}

// up starts a mesh in dir and waits until pods are ready.
func up(t *testing.T, dir string, pods int, args ...string) *mesh {
	t.Helper()
	m := launch(t, dir, args...)
	m.awaitPods(pods)
	return m
}

// launch starts a mesh without waiting. It ends with the test.
func launch(t *testing.T, dir string, args ...string) *mesh {
	t.Helper()
	m := &mesh{t: t, dir: dir, data: filepath.Join(dir, "d"), out: &output{}, exited: make(chan error, 1)}
	all := append([]string{"--data", m.data, "up", "--image", "goapp=" + filepath.Join(programs, "goapp")}, args...)
	m.cmd = command(context.Background(), dir, all...)
	m.cmd.Stdout, m.cmd.Stderr = m.out, m.out
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { m.exited <- m.cmd.Wait() }()
	t.Cleanup(m.stop)
	return m
}

func (m *mesh) stop() {
	_ = m.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case err := <-m.exited:
		m.exited <- err
	case <-time.After(20 * time.Second):
		_ = m.cmd.Process.Kill()
		m.t.Error("lateen up did not stop within 20 s")
	}
	if m.t.Failed() {
		m.t.Logf("lateen up wrote:\n%s", tail(m.out.String(), 4000))
		for _, name := range []string{"control.log", "node.log"} {
			text, _ := os.ReadFile(filepath.Join(m.data, "logs", name))
			m.t.Logf("%s:\n%s", name, tail(string(text), 4000))
		}
	}
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// run runs a command of lateen against the mesh.
func (m *mesh) run(args ...string) (stdout, stderr string, code int) {
	m.t.Helper()
	return runIn(m.t, m.dir, append([]string{"--data", m.data}, args...)...)
}

func runIn(t *testing.T, dir string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Second)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := command(ctx, dir, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("lateen %s: %v", strings.Join(args, " "), err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// ask is run for commands that must succeed.
func (m *mesh) ask(args ...string) string {
	m.t.Helper()
	out, errs, code := m.run(args...)
	if code != 0 {
		m.t.Fatalf("lateen %s: exit %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// askJSON is ask with -o json.
func (m *mesh) askJSON(v any, args ...string) {
	m.t.Helper()
	out := m.ask(append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), v); err != nil {
		m.t.Fatalf("lateen %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// answers is what goapp call prints.
type answers struct {
	ByPod    map[string]int
	ByStatus map[int]int
	Errors   map[string]int
	Body     string
}

func (a answers) total() (n int) {
	for _, c := range a.ByStatus {
		n += c
	}
	for _, c := range a.Errors {
		n += c
	}
	return n
}

// of counts the answers of pods whose name begins so.
func (a answers) of(prefix string) (n int) {
	for pod, c := range a.ByPod {
		if strings.HasPrefix(pod, prefix) {
			n += c
		}
	}
	return n
}

// call runs goapp call in a pod.
func (m *mesh) call(pod string, args ...string) answers {
	m.t.Helper()
	out := m.ask(append([]string{"exec", pod, "--", filepath.Join(programs, "goapp"), "call"}, args...)...)
	var a answers
	if err := json.Unmarshal([]byte(out), &a); err != nil {
		m.t.Fatalf("goapp call in %s: %v\n%s", pod, err, out)
	}
	return a
}

// until tries until fn returns nil.
func (m *mesh) until(limit time.Duration, what string, fn func() error) {
	m.t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := fn()
		if err == nil {
			return
		}
		select {
		case exit := <-m.exited:
			m.exited <- exit
			m.t.Fatalf("%s: lateen up ended: %v", what, exit)
		default:
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("%s: not within %v: %v", what, limit, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// pods are the names of the mesh's pods and whether each is ready.
func (m *mesh) pods() (map[string]bool, error) {
	out, errs, code := m.run("get", "pod", "-o", "json")
	if code != 0 {
		return nil, errors.New(errs)
	}
	var list struct {
		Objects []struct {
			Object struct {
				Metadata struct{ Name string }
				Status   struct {
					Conditions []struct{ Type, Status string }
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, fmt.Errorf("%w in %s", err, out)
	}
	pods := map[string]bool{}
	for _, item := range list.Objects {
		pods[item.Object.Metadata.Name] = false
		for _, c := range item.Object.Status.Conditions {
			if c.Type == "Ready" && c.Status == "True" {
				pods[item.Object.Metadata.Name] = true
			}
		}
	}
	return pods, nil
}

// pod returns the name of a pod that begins so.
func (m *mesh) pod(prefix string) string {
	m.t.Helper()
	pods, err := m.pods()
	if err != nil {
		m.t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(pods)) {
		if strings.HasPrefix(name, prefix) {
			return name
		}
	}
	m.t.Fatalf("no pod %s among %v", prefix, pods)
	return ""
}

func (m *mesh) awaitPods(want int) {
	m.t.Helper()
	m.until(45*time.Second, "pods ready", func() error {
		pods, err := m.pods()
		if err != nil {
			return err
		}
		ready := 0
		for _, ok := range pods {
			if ok {
				ready++
			}
		}
		if ready != want || len(pods) != want {
			return fmt.Errorf("%d of %d pods ready, want %d", ready, len(pods), want)
		}
		return nil
	})
}

// child returns the last of children, which must exist.
func (m *mesh) child(words ...string) int {
	m.t.Helper()
	all := m.children(words...)
	if len(all) == 0 {
		m.t.Fatalf("no process of this mesh has %q in its command line", words)
	}
	return all[len(all)-1]
}

// children returns the processes below lateen up whose command line has all the
// words, as this process sees them.
func (m *mesh) children(words ...string) (matches []int) {
	m.t.Helper()
	parents := map[int]int{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		m.t.Fatal(err)
	}
	var candidates []int
	for _, e := range entries {
		var pid, parent int
		if _, err := fmt.Sscan(e.Name(), &pid); err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue
		}
		rest := string(stat[bytes.LastIndexByte(stat, ')')+1:])
		var state string
		if _, err := fmt.Sscan(rest, &state, &parent); err != nil {
			continue
		}
		parents[pid] = parent
		line, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		text := strings.ReplaceAll(string(line), "\x00", " ")
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(text, w) }) {
			candidates = append(candidates, pid)
		}
	}
	for _, pid := range candidates {
		for p := parents[pid]; p > 1; p = parents[p] {
			if p == m.cmd.Process.Pid {
				matches = append(matches, pid)
			}
		}
	}
	return matches
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
