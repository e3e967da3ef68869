package main

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// openLoop asks for orders rps times a second, whatever the answers take.
func openLoop(ctx context.Context, url string, rps int, length time.Duration) (*outcome, []answered) {
	client := &http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 4096, IdleConnTimeout: time.Minute}}
	defer client.CloseIdleConnections()
	o := &outcome{failures: map[string]int{}, edits: map[string]bool{}}
	var all []answered
	var wg sync.WaitGroup
	start := time.Now()
	for i := range int(length.Seconds() * float64(rps)) {
		due := start.Add(time.Duration(i) * time.Second / time.Duration(rps))
		if sleep(ctx, time.Until(due)) != nil {
			break
		}
		if time.Since(due) > 100*time.Millisecond {
			o.late++
		}
		wg.Go(func() {
			a := answered{sent: time.Now()}
			a.err = order(client, url)
			a.ended = time.Now()
			o.add("", a.err, a.ended.Sub(due))
			o.mu.Lock()
			all = append(all, a)
			o.mu.Unlock()
		})
	}
	wg.Wait()
	slices.Sort(o.took)
	return o, all
}

// answered is one request of an open loop.
type answered struct {
	sent, ended time.Time
	err         error
}

// measureChain sends the open loop through all three services, every span kept,
// and says which programs the CPU goes to.
func (b *bench) measureChain(ctx context.Context, m *mesh) error {
	for _, rps := range []int{100, 300, b.rps} {
		const length = 10 * time.Second
		before, err := m.cpu()
		if err != nil {
			return err
		}
		o, all := openLoop(ctx, m.url, rps, length)
		after, err := m.cpu()
		if err != nil {
			return err
		}
		if len(all) == 0 {
			return ctx.Err()
		}
		sum, perRequest := time.Duration(0), map[string]time.Duration{}
		for pid, p := range after {
			d := p.ran - before[pid].ran
			sum += d
			perRequest[p.name] += d / time.Duration(len(all))
		}
		names := slices.SortedFunc(maps.Keys(perRequest), func(x, y string) int { return int(perRequest[y] - perRequest[x]) })
		var parts []string
		for _, n := range names {
			parts = append(parts, fmt.Sprintf("%s %d", n, perRequest[n].Microseconds()))
		}
		row(fmt.Sprintf("whole chain of the demo, %d rps for %v", rps, length), "", fmt.Sprintf("**%d** failed of %d, p50 %v, p99 %v", len(all)-o.ok, len(all),
			o.took[len(o.took)/2].Round(time.Millisecond/10), o.took[len(o.took)*99/100].Round(time.Millisecond)),
			fmt.Sprintf("100 %% of spans; %.2f CPUs; µs of CPU a request: %s; %d sent late", sum.Seconds()/length.Seconds(), strings.Join(parts, ", "), o.late))
		for f, n := range o.failures {
			fmt.Printf("\n%d × %s\n", n, f)
		}
		if len(o.failures) > 0 {
			m.showFailure(ctx)
		}
	}
	return nil
}

// showFailure prints the newest trace with an error: a request that failed
// should say why.
func (m *mesh) showFailure(ctx context.Context) {
	time.Sleep(2 * time.Second) // for the spans to arrive
	list, _ := m.lateen(ctx, "trace", "ls", "--error", "--limit", "1", "-o", "json")
	id := regexp.MustCompile(`[0-9a-f]{32}`).Find(list)
	if id == nil {
		fmt.Printf("\nno trace has an error: %s\n", list)
		return
	}
	text, _ := m.lateen(ctx, "trace", "show", string(id))
	fmt.Printf("\n%s\n", text)
}

// measureBegin starts the mesh ten times and sends the open loop from the moment
// the gateway's port is printed. After the first 200 nothing may fail.
func (b *bench) measureBegin(ctx context.Context) error {
	const rps, starts = 200, 10
	early, failed, total := map[string]int{}, map[string]int{}, 0
	for range starts {
		m, err := b.open(ctx)
		if err != nil {
			return err
		}
		_, all := openLoop(ctx, m.url, rps, 3*time.Second)
		if err := m.stop(); err != nil {
			return err
		}
		var first time.Time
		for _, a := range all {
			if a.err == nil && (first.IsZero() || a.ended.Before(first)) {
				first = a.ended
			}
		}
		for _, a := range all {
			switch {
			case a.err == nil:
			case first.IsZero() || a.sent.Before(first):
				early[a.err.Error()]++
			default:
				failed[a.err.Error()]++
			}
		}
		total += len(all)
	}
	n := 0
	for _, c := range failed {
		n += c
	}
	row(fmt.Sprintf("failed requests after the first 200, %d starts under %d rps", starts, rps), "0", fmt.Sprintf("**%d** of %d", n, total),
		fmt.Sprintf("load from the moment the gateway's port is open; before the first 200: %v; after: %v", early, failed))
	return nil
}

// used is the CPU time of one process.
type used struct {
	name string
	ran  time.Duration
}

// cpu reads what every process of the mesh has used.
func (m *mesh) cpu() (map[int]used, error) {
	all, err := m.processes()
	if err != nil {
		return nil, err
	}
	out := map[int]used{}
	for _, p := range all {
		u := used{name: p.name}
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid))
		if args := strings.Split(string(line), "\x00"); p.name == "lateen" && len(args) > 1 && !strings.HasPrefix(args[1], "-") {
			u.name += " " + args[1]
		}
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.pid))
		for _, t := range tasks {
			var ns int64
			text, _ := os.ReadFile(t) // a thread may have ended
			if _, err := fmt.Sscan(string(text), &ns); err == nil {
				u.ran += time.Duration(ns)
			}
		}
		out[p.pid] = u
	}
	return out, nil
}
