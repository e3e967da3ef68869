//go:build linux

package suite

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"lateen.dev/lateen/bench/internal/load"
	"lateen.dev/lateen/bench/internal/measure"
	"lateen.dev/lateen/bench/internal/peers"
	"lateen.dev/lateen/bench/internal/report"
	"lateen.dev/lateen/internal/proxy/loop"
)

// Suite runs scenarios one after the other.
type Suite struct {
	Loop     *loop.Loop
	Programs peers.Programs
	// Names are the candidates, "lateen" among them.
	Names []string
	// Rounds is how often each candidate is measured; MemoryRounds how often
	// where each time takes new proxies.
	Rounds, MemoryRounds int
	// Length is of one slice, Settle how long memory may come to rest.
	Length, Settle time.Duration
	Dir            string
	Out            io.Writer
	// Commit goes into each row.
	Commit string

	backend   *load.Backend
	set       *peers.Set
	listeners []*load.Listener
	current   *Scenario
	setups    int
	pods      int
}

// Result is what one scenario brought.
type Result struct {
	Rows    []report.Row
	Skipped []string
}

// lateen is the candidate that all others are compared with.
const lateen = "lateen"

// Run runs the scenarios and adds what they bring to the report, which keep is
// given after each. What fails to start is skipped there, not fatal.
func (s *Suite) Run(ctx context.Context, all []Scenario, r *report.Report, keep func() error) error {
	s.backend = load.NewBackend(s.Loop)
	defer s.stop()
	for _, sc := range all {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		at, pressure := time.Now(), Pressure()
		res, err := s.scenario(ctx, sc)
		if err != nil {
			s.stop()
			res.Skipped = append(res.Skipped, err.Error())
			_, _ = fmt.Fprintf(s.Out, "%s: *skipped*: %v\n\n", sc.Name, err)
		}
		for i := range res.Rows {
			res.Rows[i].Commit, res.Rows[i].At, res.Rows[i].Load = s.Commit, at.UTC().Format("2006-01-02 15:04"), pressure+" → "+Pressure()
		}
		r.Rows = append(r.Rows, res.Rows...)
		for _, why := range res.Skipped {
			why, _, _ = strings.Cut(why, "\n")
			r.Skipped = append(r.Skipped, sc.Name+": "+why)
		}
		if err := keep(); err != nil {
			return err
		}
	}
	return nil
}

// scenario measures one scenario.
func (s *Suite) scenario(ctx context.Context, sc Scenario) (Result, error) {
	rounds := map[string][]measure.Slice{}
	if sc.fresh() {
		for range s.MemoryRounds {
			s.stop()
			if err := s.start(ctx, sc); err != nil {
				return Result{}, err
			}
			for name, slice := range s.memory(sc) {
				rounds[name] = append(rounds[name], slice)
			}
		}
		return s.result(sc, rounds, false), nil
	}
	if s.current == nil || !s.current.sameSetup(sc) {
		s.stop()
		if err := s.start(ctx, sc); err != nil {
			return Result{}, err
		}
	}
	s.current = &sc
	for _, p := range s.set.Peers { // fill pools and caches
		s.slice(sc, p, min(s.Length, time.Second))
	}
	for range s.Rounds {
		for _, p := range s.set.Peers {
			rounds[p.Name] = append(rounds[p.Name], s.slice(sc, p, s.Length))
			if sc.kind == fairness {
				alone := sc
				alone.kind = rateHTTP
				rounds[p.Name+" alone"] = append(rounds[p.Name+" alone"], s.slice(alone, p, s.Length))
			}
		}
	}
	return s.result(sc, rounds, s.generatorBound(sc, rounds)), nil
}

func (s *Suite) start(ctx context.Context, sc Scenario) (err error) {
	s.setups++
	dir := filepath.Join(s.Dir, fmt.Sprintf("%d-%s", s.setups, sc.Name))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	o := peers.Options{Dir: dir, Shape: sc.shape, Names: s.Names, Programs: s.Programs, Pods: &s.pods, Check: s.check(sc)}
	if sc.backend() != idleProxy {
		o.Serve = func(fd int) error { return s.serve(sc, fd) }
	}
	s.set, err = peers.Start(ctx, o)
	return err
}

func (s *Suite) serve(sc Scenario, fd int) error {
	serve := s.backend.HTTP
	switch sc.backend() {
	case roundTrip:
		serve = s.backend.RoundTrip
	case bulk:
		serve = s.backend.Bulk
	case http2Streams, grpcStreams:
		serve = s.backend.HTTP2(sc.kind == grpcStreams)
	}
	ln, err := serve(fd)
	if err == nil {
		s.listeners = append(s.listeners, ln)
	}
	return err
}

// check says whether a candidate answers as it will be asked.
func (s *Suite) check(sc Scenario) func(*peers.Peer) error {
	return func(p *peers.Peer) error {
		switch sc.backend() {
		case idleProxy:
			return p.Ready()
		case roundTrip, bulk:
			c, err := p.Conn()
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }()
			return load.AskBlock(c, answerSize(sc))
		case http2Streams, grpcStreams:
			return load.OnceH2(p.Conn, p.Host, sc.kind == grpcStreams)
		}
		return load.Once(p.Conn, p.TLS, load.Request(p.Host, load.Path))
	}
}

func answerSize(sc Scenario) int {
	if sc.kind == bulk {
		return load.BulkBody
	}
	return load.SmallBody
}

func (s *Suite) stop() {
	if s.set != nil {
		s.set.Stop()
	}
	for _, l := range s.listeners {
		l.Close()
	}
	s.set, s.listeners, s.current = nil, nil, nil
}

// warm is how long a generator runs before it is measured.
const warm = 200 * time.Millisecond

// slice measures one candidate once.
func (s *Suite) slice(sc Scenario, p *peers.Peer, d time.Duration) measure.Slice {
	if sc.kind == handshake {
		config := p.TLS.Clone()
		config.CurvePreferences = curves(sc.hybrid)
		return measure.Take(s.Loop, p.Pids(), func() (load.Generator, error) {
			return load.NewHandshakes(p.Conn, config, p.Host, sc.conns), nil
		}, warm, d)
	}
	fds, err := p.Client.Dial(p.Addr, sc.conns)
	if err != nil {
		return failed(err)
	}
	var extra []int
	if sc.kind == fairness {
		if extra, err = p.Client.Dial(p.Addr, 1); err != nil {
			return failed(err)
		}
	}
	return measure.Take(s.Loop, p.Pids(), func() (load.Generator, error) {
		switch sc.kind {
		case rateHTTP:
			return load.NewRate(s.Loop, fds, p.Host, load.Path, sc.rate)
		case fairness:
			return load.NewBeside(s.Loop, fds, extra, p.Host, sc.rate)
		case roundTrip, bulk:
			return load.NewBlocks(s.Loop, fds, answerSize(sc))
		case http2Streams, grpcStreams:
			return load.NewH2(s.Loop, fds, p.Host, sc.streams, sc.kind == grpcStreams)
		}
		return load.NewHTTP(s.Loop, fds, p.Host, load.Path)
	}, warm, d)
}

func failed(err error) measure.Slice {
	return measure.Slice{Errors: 1, First: err.Error(), Values: map[string]float64{}}
}

// generatorBound says whether the generator without a proxy brings less than
// 1.3 times what the fastest candidate answers.
func (s *Suite) generatorBound(sc Scenario, rounds map[string][]measure.Slice) bool {
	switch sc.kind {
	case rateHTTP, fairness, handshake:
		return false
	}
	best := 0.0
	for _, slices := range rounds {
		best = max(best, median(slices, measure.RPS))
	}
	p := s.set.Peers[0]
	var direct []measure.Slice
	for range 3 {
		fds, err := p.Server.Dial(p.Backend(), sc.conns)
		if err != nil {
			return true
		}
		direct = append(direct, measure.Take(s.Loop, nil, func() (load.Generator, error) {
			switch sc.kind {
			case closedHTTP:
				return load.NewHTTP(s.Loop, fds, p.Host, load.Path)
			case http2Streams, grpcStreams:
				return load.NewH2(s.Loop, fds, p.Host, sc.streams, sc.kind == grpcStreams)
			}
			return load.NewBlocks(s.Loop, fds, answerSize(sc))
		}, warm, s.Length/2))
	}
	rps := median(direct, measure.RPS)
	_, _ = fmt.Fprintf(s.Out, "%s: without a proxy %.0f/s\n", sc.Name, rps)
	return rps < 1.3*best
}

func median(slices []measure.Slice, metric string) float64 {
	var v []float64
	for _, x := range slices {
		v = append(v, x.Values[metric])
	}
	return measure.Median(v)
}

// result makes rows of rounds and prints them.
func (s *Suite) result(sc Scenario, rounds map[string][]measure.Slice, bound bool) Result {
	res := Result{Skipped: s.set.Skipped}
	s.print(sc, rounds)
	mine, ok := rounds[lateen]
	if !ok {
		return res
	}
	if sc.kind == fairness {
		for _, m := range sc.metrics {
			res.Rows = append(res.Rows, report.Compare(sc.Name, m, report.Without, mine, rounds[lateen+" alone"]))
		}
	}
	for _, m := range sc.metrics {
		for _, p := range s.set.Peers {
			if p.Name != lateen {
				row := report.Compare(sc.Name, m, p.Name, mine, rounds[p.Name])
				row.GeneratorBound = bound
				res.Rows = append(res.Rows, row)
			}
		}
		if limit, ok := report.Limits[sc.Name]; ok {
			res.Rows = append(res.Rows, report.Against(sc.Name, m, mine, limit, "KiB"))
		}
	}
	return res
}

// print shows everybody's medians.
func (s *Suite) print(sc Scenario, rounds map[string][]measure.Slice) {
	var b strings.Builder
	fmt.Fprintf(&b, "| %s | %s | errors |\n|---|%s---|\n", sc.Name, strings.Join(sc.metrics, " | "), strings.Repeat("---|", len(sc.metrics)))
	var names []string
	for name := range rounds {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		errs, first := 0, ""
		for _, x := range rounds[name] {
			if errs += x.Errors; first == "" {
				first = x.First
			}
		}
		fmt.Fprintf(&b, "| %s |", name)
		for _, m := range sc.metrics {
			fmt.Fprintf(&b, " %.1f |", median(rounds[name], m))
		}
		fmt.Fprintf(&b, " %d %s |\n", errs, first)
	}
	for _, why := range s.set.Skipped {
		fmt.Fprintf(&b, "*skipped* %s\n", why)
	}
	_, _ = fmt.Fprintln(s.Out, b.String())
}

// Select returns the scenarios of a comma-separated list; "" means all. A name
// that ends with * selects all that begin so.
func Select(list string) ([]Scenario, error) {
	all := All()
	if list == "" {
		return all, nil
	}
	var out []Scenario
	var errs []error
	for name := range strings.SplitSeq(list, ",") {
		found := false
		for _, sc := range all {
			prefix, star := strings.CutSuffix(name, "*")
			if sc.Name == name || star && strings.HasPrefix(sc.Name, prefix) {
				out, found = append(out, sc), true
			}
		}
		if !found {
			errs = append(errs, fmt.Errorf("there is no scenario %q", name))
		}
	}
	return out, errors.Join(errs...)
}

// Pressure is the kernel's measure of how contended the CPUs are: the share of
// the last ten seconds in which some task waited for one.
func Pressure() string {
	data, err := os.ReadFile("/proc/pressure/cpu")
	if err != nil {
		return "unknown"
	}
	_, rest, _ := strings.Cut(string(data), "avg10=")
	value, _, _ := strings.Cut(rest, " ")
	return value + " %"
}
