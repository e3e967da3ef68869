package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"lateen.dev/lateen/internal/api"
)

// mesh is a running lateen up.
type mesh struct {
	cmd     *exec.Cmd
	url     string // of an order, through the gateway
	took    time.Duration
	data    string
	started time.Time
	client  *api.Client
	output  strings.Builder
	ended   chan struct{}
	ready   chan struct{} // every pod is ready
}

// gatewayLine is how lateen up prints the gateway's address.
var gatewayLine = regexp.MustCompile(`is (http://127\.0\.0\.1:\d+) on this machine`)

// up starts the mesh and waits for the first 200 through its gateway.
func (b *bench) up(ctx context.Context) (*mesh, error) {
	m, err := b.open(ctx)
	if err != nil {
		return nil, err
	}
	if err := m.firstOrder(ctx, m.started); err != nil {
		_ = m.stop()
		return nil, err
	}
	m.client = api.NewClient(filepath.Join(m.data, "run", api.SocketName))
	return m, nil
}

// open starts the mesh and waits until its gateway's port is printed.
func (b *bench) open(ctx context.Context) (*mesh, error) {
	data, err := os.MkdirTemp(b.dir, "data-")
	if err != nil {
		return nil, err
	}
	m := &mesh{ended: make(chan struct{}), ready: make(chan struct{})}
	m.cmd = exec.Command(filepath.Join(b.root, "bin/lateen"), "--data", data, "up", "-f", b.manifests())
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	m.cmd.Stderr = os.Stderr
	m.started, m.data = time.Now(), data
	if err := m.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start lateen up: %w; build it with make", err)
	}
	address := make(chan string, 1)
	go func() {
		defer close(m.ended)
		lines, ready := bufio.NewScanner(out), false
		for lines.Scan() {
			m.output.WriteString(lines.Text() + "\n")
			if !ready && strings.Contains(lines.Text(), "pods ready") {
				ready = true
				close(m.ready)
			}
			if f := gatewayLine.FindStringSubmatch(lines.Text()); f != nil {
				select {
				case address <- f[1]:
				default:
				}
			}
		}
	}()
	select {
	case a := <-address:
		m.url = a + "/order"
	case <-m.ended:
		return nil, fmt.Errorf("lateen up ended: %v\n%s", m.cmd.Wait(), m.output.String())
	case <-time.After(30 * time.Second):
		_ = m.stop()
		return nil, fmt.Errorf("lateen up printed no gateway in 30 s:\n%s", m.output.String())
	case <-ctx.Done():
		_ = m.stop()
		return nil, ctx.Err()
	}
	return m, nil
}

func (m *mesh) firstOrder(ctx context.Context, start time.Time) error {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	last := fmt.Errorf("no answer")
	for time.Since(start) < 30*time.Second && ctx.Err() == nil {
		if last = order(client, m.url); last == nil {
			m.took = time.Since(start)
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("no 200 from %s in 30 s: %w", m.url, last)
}

// order asks for one order and checks the whole answer.
func order(client *http.Client, url string) error {
	_, err := ask(client, url, "", orderBody)
	return err
}

var (
	orderBody = regexp.MustCompile(`^\{"order_id":"[^"]+","user_id":"[^"]+","order_version":"v[12]","status":"success"\}\s*$`)
	userBody  = regexp.MustCompile(`^\{"user_id":"user-\d+"\}\s*$`)
)

// user asks user-service through the gateway and returns which edit of the
// route answered.
func user(client *http.Client, url string) (edit string, err error) {
	h, err := ask(client, url, "users.bench.test", userBody)
	return h.Get("X-Edit"), err
}

func ask(client *http.Client, url, host string, want *regexp.Regexp) (http.Header, error) {
	req, err := http.NewRequest(http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	req.Host = host
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	_ = resp.Body.Close()
	if err != nil {
		return nil, fmt.Errorf("read the body: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d, body %q", resp.StatusCode, body)
	}
	if !want.Match(body) {
		return nil, fmt.Errorf("wrong body %q", body)
	}
	return resp.Header, nil
}

// stop ends the mesh as Ctrl-C does and waits for it.
func (m *mesh) stop() error {
	if m.client != nil {
		m.client.Close()
	}
	_ = m.cmd.Process.Signal(syscall.SIGINT)
	kill := time.AfterFunc(30*time.Second, func() { _ = m.cmd.Process.Kill() })
	defer kill.Stop()
	<-m.ended
	if err := m.cmd.Wait(); err != nil {
		return fmt.Errorf("lateen up ended: %w\n%s", err, m.output.String())
	}
	return nil
}

// process is one process of the mesh, with its memory in KiB.
type process struct {
	pid            int
	name           string
	rss, pss, anon int
}

// processes reads the memory of every descendant of lateen up and its own.
func (m *mesh) processes() ([]process, error) {
	var out []process
	pids := []int{m.cmd.Process.Pid}
	for len(pids) > 0 {
		pid := pids[0]
		pids = append(pids[1:], children(pid)...)
		p := process{pid: pid}
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			continue // it ended meanwhile
		}
		p.name = filepath.Base(strings.SplitN(string(name), "\x00", 2)[0])
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return nil, fmt.Errorf("memory of %s: %w", p.name, err)
		}
		for line := range strings.Lines(string(data)) {
			f := strings.Fields(line)
			if len(f) < 2 {
				continue
			}
			n, _ := strconv.Atoi(f[1])
			switch f[0] {
			case "Rss:":
				p.rss = n
			case "Pss:":
				p.pss = n
			case "Anonymous:":
				p.anon = n
			}
		}
		out = append(out, p)
	}
	return out, nil
}

func children(pid int) (out []int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, t := range tasks {
		data, _ := os.ReadFile(t)
		for f := range strings.FieldsSeq(string(data)) {
			if n, err := strconv.Atoi(f); err == nil {
				out = append(out, n)
			}
		}
	}
	return out
}

// lateen runs a command of the mesh's own program and returns what it printed.
func (m *mesh) lateen(ctx context.Context, args ...string) ([]byte, error) {
	return exec.CommandContext(ctx, m.cmd.Path, append([]string{"--data", m.data}, args...)...).CombinedOutput()
}
