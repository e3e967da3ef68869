//go:build linux

// Package measure takes slices of candidates that run side by side: what a
// generator counted, and the CPU time and memory of the proxies meanwhile, as
// the kernel accounts them. Slices are interleaved, so that what disturbs the
// machine disturbs everybody alike. It judges nothing.
package measure

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"lateen.dev/lateen/bench/internal/load"
	"lateen.dev/lateen/internal/proxy/loop"
)

// Metrics of a slice, as rows name them.
const (
	CPU  = "cpu"  // microseconds per request
	RPS  = "rps"  // answers per second
	P50  = "p50"  // microseconds
	P99  = "p99"  // microseconds
	Mean = "mean" // microseconds
	RSS  = "rss"  // KiB
)

// Slice is what was measured of one candidate in one round.
type Slice struct {
	Values   map[string]float64
	Requests int
	Errors   int
	First    string // error
}

// CPUNanos sums the CPU time of all threads of processes, as the scheduler
// accounts it (first field of schedstat).
func CPUNanos(pids []int) (total int64) {
	for _, pid := range pids {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid)) // the pattern is well-formed
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

// Resident is the memory of processes in KiB.
func Resident(pids []int) (kib float64) {
	for _, pid := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue // it ended
		}
		for line := range strings.Lines(string(data)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "Rss:" {
				n, _ := strconv.ParseFloat(f[1], 64)
				kib += n
			}
		}
	}
	return kib
}

// Take measures processes under a generator for d after a warm-up. start is
// called on the loop.
func Take(l *loop.Loop, pids []int, start func() (load.Generator, error), warm, d time.Duration) Slice {
	type started struct {
		g   load.Generator
		err error
	}
	s := load.OnLoop(l, func() started { g, err := start(); return started{g, err} })
	if s.err != nil {
		return Slice{Errors: 1, First: s.err.Error(), Values: map[string]float64{}}
	}
	time.Sleep(warm)
	type mark struct {
		cpu int64
		at  time.Time
	}
	from := load.OnLoop(l, func() mark { s.g.Reset(); return mark{CPUNanos(pids), time.Now()} })
	time.Sleep(d)
	type end struct {
		load.Counts
		mark
	}
	to := load.OnLoop(l, func() end { return end{s.g.Counts(), mark{CPUNanos(pids), time.Now()}} })
	rss := Resident(pids)
	stop(l, s.g)
	out := Slice{Requests: to.Requests, Errors: to.Errors, First: to.First, Values: map[string]float64{RSS: rss}}
	if to.Requests == 0 {
		out.Errors++
		if out.First == "" {
			out.First = "nothing was answered"
		}
		return out
	}
	out.Values[CPU] = float64(to.cpu-from.cpu) / 1e3 / float64(to.Requests)
	out.Values[RPS] = float64(to.Requests) / to.at.Sub(from.at).Seconds()
	out.Values[P50] = load.Percentile(to.Nanos, 0.5)
	out.Values[P99] = load.Percentile(to.Nanos, 0.99)
	out.Values[Mean] = load.Mean(to.Nanos)
	return out
}

// stop ends a generator. One that waits for goroutines must not do so on the
// loop: their backend lives there.
func stop(l *loop.Loop, g load.Generator) {
	if h, ok := g.(*load.Handshakes); ok {
		h.Stop()
		return
	}
	load.OnLoop(l, func() bool { g.Stop(); return true })
}

// Median of values; 0 of none.
func Median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Clone(v)
	slices.Sort(s)
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}
