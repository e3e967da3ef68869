//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/bench/internal/peers"
	"lateen.dev/lateen/bench/internal/report"
	"lateen.dev/lateen/bench/internal/suite"
	"lateen.dev/lateen/internal/proxy/loop"
	"lateen.dev/lateen/internal/testkit/envoycheck"
	"lateen.dev/lateen/internal/testkit/envoyrun"
)

// findPeers looks for the peers; who is not there takes no part.
func (o *options) findPeers(ctx context.Context) {
	if envoy, err := envoycheck.Find(ctx); err == nil {
		// The agent looks beside itself for the program and for who has one: all.
		if err := errors.Join(os.Symlink(envoy, filepath.Join(o.Dir, "envoy")), envoyrun.Mix{}.Write(o.Dir)); err == nil {
			o.Programs.EnvoyAgent = filepath.Join(o.Dir, "envoyagent")
			for part := range strings.SplitSeq(firstLine(ctx, envoy, "--version"), "/") {
				if strings.Count(part, ".") == 2 && !strings.Contains(part, " ") {
					o.Versions["envoy"] = part
				}
			}
		}
	}
	if path, err := exec.LookPath("nginx"); err == nil {
		o.Programs.Nginx = path
		o.Versions["nginx"] = strings.TrimPrefix(firstLine(ctx, path, "-v"), "nginx version: nginx/")
	}
	if path, err := exec.LookPath("haproxy"); err == nil {
		o.Programs.HAProxy = path
		if f := strings.Fields(firstLine(ctx, path, "-v")); len(f) > 2 {
			o.Versions["haproxy"] = f[2]
		}
	}
	if out := firstLine(ctx, "openssl", "version"); out != "unknown" {
		o.Versions["openssl"] = strings.TrimPrefix(out, "OpenSSL ")
	}
}

// child measures.
func child(text string) error {
	var o options
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	said, err := io.ReadAll(os.Stdin) // ends when the priority is set
	if err != nil {
		return err
	}
	o.Priority = string(said)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	// The event loop may keep one processor of the runtime while it waits.
	runtime.GOMAXPROCS(4)
	if err := raiseFiles(); err != nil {
		return err
	}
	if err := peers.Prepare(); err != nil {
		return err
	}
	l, err := loop.New(loop.Options{HighWatermark: 64 << 20})
	if err != nil {
		return err
	}
	go func() {
		runtime.LockOSThread()
		l.Run()
	}()
	names := []string{"lateen"}
	for name := range o.Programs.Others {
		names = append(names, name)
	}
	for name := range strings.SplitSeq(o.Peers, ",") {
		if name != "" {
			names = append(names, name)
		}
	}
	chosen, err := suite.Select(o.Scenarios)
	if err != nil {
		return err
	}
	r := o.report()
	fmt.Printf("%s; commit %s; session weight %s; CPU pressure %s\n\n", r.Machine, o.Commit, o.Priority, suite.Pressure())
	s := &suite.Suite{
		Loop: l, Programs: o.Programs, Names: names, Rounds: o.Rounds, MemoryRounds: o.MemoryRounds,
		Length: o.Slice, Settle: o.Settle, Dir: o.Dir, Out: os.Stdout, Commit: o.Commit,
	}
	err = s.Run(ctx, chosen, r, func() error { return o.write(*r) })
	if err != nil && ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	return errors.Join(err, o.summary(r))
}

// raiseFiles lets this process and its children open as many files as they may.
func raiseFiles() error {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return err
	}
	lim.Cur = lim.Max
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &lim)
}

// write writes the report as far as it goes.
func (o *options) write(r report.Report) error {
	if o.Out == "" {
		return nil
	}
	if o.Keep {
		before, err := report.Read(filepath.Join(o.Out, "latest.json"))
		if err != nil {
			return err
		}
		r.Rows, r.Skipped = slices.Clone(r.Rows), slices.Clone(r.Skipped)
		r.Merge(before)
	}
	return r.Write(o.Out)
}

// summary prints the ratios of this run.
func (o *options) summary(r *report.Report) error {
	if o.Out != "" {
		fmt.Printf("written to %s\n", filepath.Join(o.Out, "latest.{json,md,svg}"))
		return nil
	}
	fmt.Println(r.Markdown())
	return nil
}

func (o *options) report() *report.Report {
	return &report.Report{
		Machine: machine(), Commit: o.Commit, Versions: o.Versions, Features: features(),
		Notes: []string{
			"weight of the benchmark's session against others: " + o.Priority,
			fmt.Sprintf("generator and backend on CPU %d, every proxy on CPU %d, one worker each", peers.LoadCPU, peers.ProxyCPU),
		},
	}
}

func machine() string {
	var u unix.Utsname
	_ = unix.Uname(&u)
	model := "unknown CPU"
	if data, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(data)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.HasPrefix(name, "model name") {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	var info unix.Sysinfo_t
	_ = unix.Sysinfo(&info)
	return fmt.Sprintf("%d CPUs, %s, %d GiB, Linux %s", runtime.NumCPU(), model, info.Totalram>>30, unix.ByteSliceToString(u.Release[:]))
}

// features are what each side does where duties are asked for.
func features() map[string]string {
	return map[string]string{
		"lateen": "route among 200 hosts, request id, trace context and 1 % of spans over OTLP, Istio's metrics, outlier detection, " +
			"15 s timeout, retry policy, access log of ten fields to a file; configuration over xDS. Metrics are kept, not pushed",
		"envoy": "the same xDS from the same control plane, over ADS: route, request id, OTLP tracer at 1 %, timeout, retries, the same access log " +
			"to a file once a second, Envoy's own statistics (stock Envoy has no istio.stats), no statistics sink, --concurrency 1. The agent beside it does not count",
		"nginx":   "one host, the same headers added, the same access log in a 64 KiB buffer, 15 s timeout, keep-alive to the upstream; no spans, no metrics; one process",
		"haproxy": "one host, the same headers added, the same access log to a ring in memory, 15 s timeout, http-reuse always; no spans; nbthread 1",
		"chains": "client, capture by nftables, proxy, TLS 1.3 with certificates verified on both sides, capture, proxy, server, in two network namespaces; " +
			"nginx and HAProxy: AES-128-GCM, X25519, P-256",
	}
}
