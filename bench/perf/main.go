//go:build linux

// Command perf measures Lateen's proxy against Envoy, nginx and HAProxy, all of
// them interleaved in one run, and writes bench/results/latest.json, .md and
// .svg. It builds what it measures and runs it in network namespaces of its own;
// bench/README.md has the protocol.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"lateen.dev/lateen/bench/internal/peers"
	"lateen.dev/lateen/bench/internal/suite"
)

// childEnv carries the options to the process that measures.
const childEnv = "LATEEN_BENCH_CHILD"

// options are what the command line says, and what was found and built.
type options struct {
	Scenarios, Peers, Proxy, Profile, Out string

	Rounds, MemoryRounds int
	Slice, Settle        time.Duration
	Keep                 bool

	Dir, Priority, Commit string
	Programs              peers.Programs
	Versions              map[string]string
	Missing               []string
}

func main() {
	if text := os.Getenv(childEnv); text != "" {
		exit(child(text))
	}
	var o options
	flag.StringVar(&o.Scenarios, "scenarios", "", "the scenarios to run, separated by commas, * at the end of a name stands for the rest; all by default")
	flag.StringVar(&o.Peers, "peers", "envoy,nginx,haproxy", "who to compare with")
	flag.IntVar(&o.Rounds, "rounds", 9, "interleaved slices of each candidate")
	flag.IntVar(&o.MemoryRounds, "memory-rounds", 3, "fresh starts where memory at rest is measured")
	flag.DurationVar(&o.Slice, "slice", time.Second, "length of a slice")
	flag.DurationVar(&o.Settle, "settle", 10*time.Second, "how long a proxy rests before its memory is read")
	flag.StringVar(&o.Proxy, "proxy", "", "measure this lateen-proxy and not the tree's; more builds after commas take part as peers")
	flag.StringVar(&o.Profile, "cpuprofile", "", "let lateen-proxy write a CPU profile to this `file`, the client's half of a chain to FILE.client")
	flag.StringVar(&o.Out, "out", "bench/results", "where latest.json, latest.md and latest.svg are written; empty for nowhere")
	flag.BoolVar(&o.Keep, "keep", false, "keep the rows of other scenarios that are already written")
	list := flag.Bool("list", false, "list the scenarios and do nothing")
	flag.Parse()
	if *list {
		for _, s := range suite.All() {
			fmt.Println(s.Name)
		}
		return
	}
	exit(parent(o))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench perf:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// parent builds the programs and starts this program again in a session and a
// network of its own.
func parent(o options) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if _, err := suite.Select(o.Scenarios); err != nil {
		return err
	}
	if o.Dir, err = os.MkdirTemp("", "lateen-perf-"); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(o.Dir) }()
	if err := o.find(ctx); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ready, begin, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := exec.Command(self)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = ready, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	o.Priority = "raised (autogroup -13)"
	data, err := json.Marshal(o)
	if err != nil {
		return err
	}
	cmd.Env = append(os.Environ(), childEnv+"="+string(data))
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("enter a network namespace: %w", err)
	}
	_ = ready.Close()
	// The session's weight against others, which nice values cannot change.
	said := "raised"
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", cmd.Process.Pid), []byte("-13"), 0o644); err != nil {
		said = "not raised: " + err.Error()
	}
	_, _ = begin.WriteString(said)
	_ = begin.Close()
	go func() {
		<-ctx.Done()
		_ = cmd.Process.Signal(syscall.SIGTERM)
	}()
	return cmd.Wait()
}

// find builds Lateen's programs and looks for the peers.
func (o *options) find(ctx context.Context) error {
	o.Versions = map[string]string{}
	builds := []string{"./internal/testkit/envoyagent"}
	if o.Proxy == "" {
		builds = append(builds, "./cmd/lateen-proxy")
		o.Programs.Lateen = filepath.Join(o.Dir, "lateen-proxy")
	} else {
		first, others, _ := strings.Cut(o.Proxy, ",")
		o.Programs.Lateen, o.Programs.Others = absolute(first), map[string]string{}
		for path := range strings.SplitSeq(others, ",") {
			if path != "" {
				path = absolute(path)
				name := filepath.Base(filepath.Dir(path)) + "/" + filepath.Base(path)
				o.Programs.Others[strings.ReplaceAll(name, "/", "-")] = path
			}
		}
	}
	for _, pkg := range builds {
		cmd := exec.CommandContext(ctx, "go", "build", "-ldflags=-s -w", "-o", o.Dir+"/", pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
		}
	}
	o.findPeers(ctx)
	o.Commit = firstLine(ctx, "git", "describe", "--tags", "--always", "--dirty")
	o.Versions["go"] = strings.TrimPrefix(firstLine(ctx, "go", "env", "GOVERSION"), "go")
	o.Versions["lateen"] = o.Commit
	if o.Profile != "" {
		o.Programs.Profile = absolute(o.Profile)
	}
	if o.Out != "" {
		o.Out = absolute(o.Out)
		return os.MkdirAll(o.Out, 0o755)
	}
	return nil
}

func absolute(path string) string {
	p, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	return p
}

func firstLine(ctx context.Context, name string, args ...string) string {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil && len(out) == 0 {
		return "unknown"
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}
