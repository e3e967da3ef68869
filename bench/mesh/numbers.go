package main

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"lateen.dev/lateen/internal/api"
)

// measureMemory sums the PSS of the running demo, then takes its load away and
// looks at the sidecars once they have idled.
func (b *bench) measureMemory(ctx context.Context, m *mesh) error {
	if err := sleep(ctx, 10*time.Second); err != nil {
		return err
	}
	all, err := m.processes()
	if err != nil {
		return err
	}
	total := 0
	byName := map[string]int{}
	for _, p := range all {
		total += p.pss
		byName[p.name] += p.pss
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		parts = append(parts, fmt.Sprintf("%s %.0f", name, mib(byName[name])))
	}
	row("the whole demo, sum of PSS", "350 MiB", fmt.Sprintf("**%.0f MiB**", mib(total)),
		fmt.Sprintf("%d processes under the demo's own load for 10 s: %s", len(all), strings.Join(parts, ", ")))
	load := filepath.Join(b.manifests(), "load.yaml")
	text, err := os.ReadFile(load)
	if err != nil {
		return err
	}
	if err := os.Remove(load); err != nil {
		return err
	}
	if err := sleep(ctx, 20*time.Second); err != nil {
		return err
	}
	if all, err = m.processes(); err != nil {
		return err
	}
	var rss, anon []int
	for _, p := range all {
		if p.name == "lateen-proxy" {
			rss, anon = append(rss, p.rss), append(anon, p.anon)
		}
	}
	slices.Sort(rss)
	slices.Sort(anon)
	if len(rss) == 0 {
		return fmt.Errorf("no lateen-proxy among %d processes", len(all))
	}
	row("one idle sidecar, RSS / anonymous", "22 / 10 MiB", fmt.Sprintf("**%.1f / %.1f MiB**", mib(rss[len(rss)/2]), mib(anon[len(anon)/2])),
		fmt.Sprintf("median of %d proxies, idle for 15 s after the demo's load; largest %.1f / %.1f", len(rss), mib(rss[len(rss)-1]), mib(anon[len(anon)-1])))
	return os.WriteFile(load, text, 0o600)
}

func mib(kib int) float64 { return float64(kib) / 1024 }

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// editRoute writes other weights into the VirtualService of order-service; n
// makes each edit differ from the one before.
func (b *bench) editRoute(n int) error {
	file := filepath.Join(b.manifests(), "mesh.yaml")
	original, err := os.ReadFile(filepath.Join(b.root, "examples/orders/mesh.yaml"))
	if err != nil {
		return err
	}
	v1 := 50 + n%40
	text := strings.Replace(string(original), "weight: 90", fmt.Sprintf("weight: %d", v1), 1)
	text = strings.Replace(text, "weight: 10", fmt.Sprintf("weight: %d", 100-v1), 1)
	if text == string(original) {
		return fmt.Errorf("examples/orders/mesh.yaml has no weights 90 and 10 any more")
	}
	return os.WriteFile(file, []byte(text), 0o600)
}

// measureEdits times file saved → every proxy has acknowledged the revision
// that the edit made.
func (b *bench) measureEdits(ctx context.Context, m *mesh) error {
	var took []time.Duration
	for i := range b.edits {
		before, err := m.client.Status(ctx)
		if err != nil {
			return err
		}
		if err := b.editRoute(i); err != nil {
			return err
		}
		saved := time.Now()
		for {
			s, err := m.client.Status(ctx)
			if err != nil {
				return err
			}
			if s.Revision > before.Revision && allAt(s) {
				break
			}
			if time.Since(saved) > 10*time.Second {
				return fmt.Errorf("edit %d is not acknowledged by every proxy after 10 s: revision %d, proxies %+v", i, s.Revision, s.Proxies)
			}
			time.Sleep(2 * time.Millisecond)
		}
		took = append(took, time.Since(saved))
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
	slices.Sort(took)
	at := func(p float64) int64 { return took[min(len(took)-1, int(p*float64(len(took))))].Milliseconds() }
	row("file saved → every proxy ACKed", "p95 400 ms", fmt.Sprintf("**p95 %d ms** (p50 %d, max %d)", at(0.95), at(0.5), at(1)),
		fmt.Sprintf("%d edits of a route's weights; the control API polled every 2 ms", len(took)))
	return nil
}

// allAt says whether every proxy acknowledged the newest revision.
func allAt(s api.Status) bool {
	for _, p := range s.Proxies {
		if p.Revision < s.Revision {
			return false
		}
	}
	return len(s.Proxies) > 0
}

// sent is when each proxy was last sent something of each type, with the number
// of resources it holds of it.
type sent map[string]api.TypeStatus

func (m *mesh) lastSent(ctx context.Context) (sent, error) {
	proxies, err := m.client.Proxies(ctx)
	if err != nil {
		return nil, err
	}
	out := sent{}
	for _, p := range proxies {
		for _, t := range []string{"CDS", "EDS", "LDS", "RDS"} {
			out[p.ID+" "+t] = p.Types[t]
		}
	}
	return out, nil
}

// pushes names what was sent between two looks.
func (s sent) pushes(later sent) (out []string) {
	for key, t := range later {
		if old := s[key]; !old.Since.Equal(t.Since) || old.Version != t.Version {
			out = append(out, fmt.Sprintf("%s (%d resources)", key, t.Count))
		}
	}
	slices.Sort(out)
	return out
}

// measureComment adds a comment at the top of a watched file, which moves every
// line below it. A real edit afterwards shows that a push would have been seen.
func (b *bench) measureComment(ctx context.Context, m *mesh) error {
	before, err := m.lastSent(ctx)
	if err != nil {
		return err
	}
	file := filepath.Join(b.manifests(), "mesh.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, append([]byte("# A comment alone.\n"), text...), 0o600); err != nil {
		return err
	}
	if err := sleep(ctx, 3*time.Second); err != nil {
		return err
	}
	after, err := m.lastSent(ctx)
	if err != nil {
		return err
	}
	comment := before.pushes(after)
	if err := b.editRoute(int(time.Now().Unix())); err != nil {
		return err
	}
	if err := sleep(ctx, 3*time.Second); err != nil {
		return err
	}
	edited, err := m.lastSent(ctx)
	if err != nil {
		return err
	}
	control := after.pushes(edited)
	if len(control) == 0 {
		return fmt.Errorf("an edit of a route shows no push either: this measures nothing")
	}
	row("comment-only edit: CDS, LDS, RDS pushed", "0", fmt.Sprintf("**%d** %s", len(comment), strings.Join(comment, ", ")),
		"control API before and 3 s after; a route edit then pushed "+strings.Join(control, ", "))
	return nil
}

// outcome counts the open loop's requests.
type outcome struct {
	mu       sync.Mutex
	ok       int
	failures map[string]int
	took     []time.Duration
	edits    map[string]bool // values of the edited route that answers showed
	late     int             // sent more than 100 ms after their time: the loop was not open
}

// userPath is answered by user-service.
const userPath = "/api/user"

// userRoute leads from the gateway to user-service; the edits change its
// timeout and the header that tells which edit answered.
const userRoute = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: users
spec:
  hosts: [users.bench.test]
  gateways: [orders]
  http:
  - timeout: %ds
    headers: {response: {set: {x-edit: "%d"}}}
    route:
    - destination: {host: user-service, port: {number: 8080}}
`

func (b *bench) editUserRoute(n int) error {
	return os.WriteFile(filepath.Join(b.manifests(), "users.yaml"), fmt.Appendf(nil, userRoute, 10+n%5, n), 0o600)
}

// measureLoad sends requests at a fixed rate while the route they take is
// edited. They go through the gateway and one sidecar: the whole demo at this
// rate would measure its programs, not the mesh. The demo's own load goes on.
func (b *bench) measureLoad(ctx context.Context, m *mesh) error {
	client := &http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 4096, IdleConnTimeout: time.Minute}}
	defer client.CloseIdleConnections()
	url := strings.TrimSuffix(m.url, "/order") + userPath
	o := &outcome{failures: map[string]int{}, edits: map[string]bool{}}
	if err := b.editUserRoute(0); err != nil {
		return err
	}
	if err := sleep(ctx, 3*time.Second); err != nil {
		return err
	}
	if _, err := user(client, url); err != nil {
		return fmt.Errorf("the route of the load does not answer: %w", err)
	}
	editErr := make(chan error, 1)
	go func() {
		for i := range b.loadEdits {
			if err := b.editUserRoute(i + 1); err != nil {
				editErr <- err
				return
			}
			if sleep(ctx, b.length/time.Duration(b.loadEdits)) != nil {
				break
			}
		}
		editErr <- nil
	}()
	var wg sync.WaitGroup
	start, total := time.Now(), int(b.length.Seconds())*b.rps
	for i := range total {
		due := start.Add(time.Duration(i) * time.Second / time.Duration(b.rps))
		if err := sleep(ctx, time.Until(due)); err != nil {
			return err
		}
		if time.Since(due) > 100*time.Millisecond {
			o.late++
		}
		wg.Go(func() {
			edit, err := user(client, url)
			o.add(edit, err, time.Since(due))
		})
	}
	wg.Wait()
	if err := <-editErr; err != nil {
		return err
	}
	slices.Sort(o.took)
	row(fmt.Sprintf("failed requests, %d edits under %d rps for %v", b.loadEdits, b.rps, b.length), "0", fmt.Sprintf("**%d** of %d", total-o.ok, total),
		fmt.Sprintf("open loop through gateway and sidecar; resets, timeouts, other statuses and wrong bodies count; answers showed %d of the edits; p50 %v, p99 %v from the due time; %d sent late",
			len(o.edits), o.took[len(o.took)/2].Round(time.Millisecond/10), o.took[len(o.took)*99/100].Round(time.Millisecond), o.late))
	for f, n := range o.failures {
		fmt.Printf("\n%d × %s\n", n, f)
	}
	return nil
}

func (o *outcome) add(edit string, err error, took time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.took = append(o.took, took)
	if err == nil {
		o.ok++
		o.edits[edit] = true
		return
	}
	if len(o.failures) < 20 || o.failures[err.Error()] > 0 {
		o.failures[err.Error()]++
	}
}
