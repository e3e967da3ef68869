// Command h1 measures the CPU that one proxy spends on a request of HTTP/1.1
// with a sidecar's duties, Lateen and nginx interleaved in one run. The load
// generator and the backend run in this process on one CPU, all proxies on the
// other; see bench/README.md for the protocol. It measures nothing but this: no
// TLS, no bodies towards the backend, no scaling over CPUs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"lateen.dev/lateen/internal/proxy/loop"
)

// The CPUs of the generator with the backend, and of every proxy.
const (
	loadCPU  = 0
	proxyCPU = 1
)

func main() {
	conns := flag.String("conns", "64", "connection counts, separated by commas")
	rounds := flag.Int("rounds", 9, "interleaved slices of each candidate")
	length := flag.Duration("slice", time.Second, "length of a slice")
	proxies := flag.String("proxy", "bin/lateen-proxy", "the lateen-proxy to measure, or several builds of it, separated by commas")
	only := flag.String("only", "", "measure this candidate alone, for a profile")
	profile := flag.String("cpuprofile", "", "let the measured lateen-proxy write a CPU profile to this file")
	flag.Parse()
	if err := run(*conns, *rounds, *length, *proxies, *only, *profile); err != nil {
		fmt.Fprintln(os.Stderr, "bench h1:", err)
		os.Exit(1)
	}
}

func run(conns string, rounds int, length time.Duration, proxies, only, profile string) error {
	if _, err := exec.LookPath("nginx"); err != nil {
		return errors.New("nginx is the peer and is not in PATH; install it, for example: apt-get install nginx-core")
	}
	dir, err := os.MkdirTemp("", "lateen-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := pin(os.Getpid(), loadCPU); err != nil {
		return err
	}
	priority := raisePriority()
	l, err := loop.New(loop.Options{})
	if err != nil {
		return err
	}
	go l.Run()
	defer l.Stop()
	var backendErr error
	backend := onLoop(l, func() (a netip.AddrPort) { a, backendErr = serveBackend(l); return a })
	if backendErr != nil {
		return fmt.Errorf("serve the backend: %w", backendErr)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	nginx, stopNginx, err := startNginx(filepath.Join(dir, "nginx"), backend)
	if err != nil {
		return err
	}
	defer stopNginx()
	candidates := []candidate{nginx}
	for i, program := range strings.Split(proxies, ",") {
		c, stop, err := startLateen(ctx, filepath.Join(dir, fmt.Sprintf("lateen%d", i)), program, profile, backend)
		if err != nil {
			return err
		}
		defer stop()
		c.name = filepath.Base(program)
		candidates = append(candidates, c)
	}
	candidates = append(candidates, candidate{name: "direct", addr: backend})
	if only != "" {
		candidates = slices.DeleteFunc(candidates, func(c candidate) bool { return c.name != only })
	}
	if len(candidates) == 0 {
		return fmt.Errorf("-only: there is no candidate %q", only)
	}
	fmt.Printf("%s; pressure before: %s\n\n", priority, pressure())
	for n := range strings.SplitSeq(conns, ",") {
		var c int
		if _, err := fmt.Sscan(n, &c); err != nil || c < 1 {
			return fmt.Errorf("-conns: %q is not a number of connections", n)
		}
		fmt.Println(compare(l, candidates, c, rounds, length))
	}
	fmt.Printf("pressure after: %s\n", pressure())
	return nil
}

// compare measures all candidates in turn, rounds times.
func compare(l *loop.Loop, candidates []candidate, conns, rounds int, length time.Duration) string {
	results, names := map[string][]slice{}, []string{}
	for _, c := range candidates {
		names = append(names, c.name)
		measure(l, c, conns, 0, time.Second) // fill pools and caches
	}
	for range rounds {
		for _, c := range candidates {
			results[c.name] = append(results[c.name], measure(l, c, conns, 200*time.Millisecond, length))
		}
	}
	return report(conns, names, results)
}

// raisePriority gives the whole session, generator and proxies alike, more
// weight than other sessions of the machine. Without autogroup's file nice
// values mean nothing across sessions.
func raisePriority() string {
	if err := os.WriteFile("/proc/self/autogroup", []byte("-13"), 0o644); err != nil {
		return "autogroup: not raised (" + err.Error() + ")"
	}
	return "autogroup: -13"
}

// pressure is the kernel's measure of how contended the CPUs were.
func pressure() string {
	data, err := os.ReadFile("/proc/pressure/cpu")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(data), "\n")
	return first
}
