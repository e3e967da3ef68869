package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"lateen.dev/lateen/internal/proxy/loop"
)

// candidate is one proxy under test, already running.
type candidate struct {
	name string
	addr netip.AddrPort
	// pids are all processes whose CPU time counts.
	pids []int
}

// slice is what was measured of one candidate in one round.
type slice struct {
	requests, errors int
	cpuMicros        float64 // per request
	rps, p50, p99    float64
}

// cpuNanos sums the CPU time of all threads of the candidate's processes, as
// the scheduler accounts it (first field of schedstat).
func (c candidate) cpuNanos() (total int64) {
	for _, pid := range c.pids {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		for _, f := range files {
			data, err := os.ReadFile(f)
			if err != nil {
				continue // the thread ended
			}
			first, _, _ := strings.Cut(string(data), " ")
			n, _ := strconv.ParseInt(first, 10, 64)
			total += n
		}
	}
	return total
}

// onLoop runs f on l and waits for it.
func onLoop[T any](l *loop.Loop, f func() T) T {
	out := make(chan T, 1)
	l.Post(func() { out <- f() })
	return <-out
}

// measure loads one candidate with conns connections for d after a warm-up.
func measure(l *loop.Loop, c candidate, conns int, warm, d time.Duration) slice {
	g := onLoop(l, func() *generator { return startGenerator(l, c.addr, conns) })
	time.Sleep(warm)
	type mark struct {
		cpu int64
		at  time.Time
	}
	start := onLoop(l, func() mark { g.reset(); return mark{c.cpuNanos(), time.Now()} })
	time.Sleep(d)
	return onLoop(l, func() slice {
		took, cpu := time.Since(start.at), c.cpuNanos()-start.cpu
		lat := sortedCopy(g.latencies)
		s := slice{requests: g.requests, errors: g.errors, p50: percentile(lat, 0.5), p99: percentile(lat, 0.99)}
		if g.requests > 0 {
			s.cpuMicros = float64(cpu) / 1e3 / float64(g.requests)
			s.rps = float64(g.requests) / took.Seconds()
		}
		g.stop()
		return s
	})
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Clone(v)
	slices.Sort(s)
	return s[len(s)/2]
}

func column(rounds []slice, f func(slice) float64) []float64 {
	var out []float64
	for _, r := range rounds {
		out = append(out, f(r))
	}
	return out
}

// report prints the table of one connection count: medians and the median of
// paired ratios to the first candidate, with their range.
func report(conns int, names []string, rounds map[string][]slice) string {
	var b strings.Builder
	base := rounds[names[0]]
	fmt.Fprintf(&b, "| c=%d | CPU µs/req | ratio to %s (min–max) | rps | p50 µs | p99 µs | errors |\n|---|---|---|---|---|---|---|\n", conns, names[0])
	for _, name := range names {
		rs := rounds[name]
		var ratios []float64
		errors := 0
		for i, r := range rs {
			errors += r.errors
			if base[i].cpuMicros > 0 {
				ratios = append(ratios, r.cpuMicros/base[i].cpuMicros)
			}
		}
		fmt.Fprintf(&b, "| %s | %.1f | %.2f (%.2f–%.2f) | %.0f | %.0f | %.0f | %d |\n", name,
			median(column(rs, func(s slice) float64 { return s.cpuMicros })), median(ratios), slices.Min(ratios), slices.Max(ratios),
			median(column(rs, func(s slice) float64 { return s.rps })),
			median(column(rs, func(s slice) float64 { return s.p50 })),
			median(column(rs, func(s slice) float64 { return s.p99 })), errors)
	}
	return b.String()
}
