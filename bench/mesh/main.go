// Command mesh measures the example mesh as its user meets it: how long lateen
// up takes, how soon an edit is in force, whether edits cost requests, and how
// much memory everything holds. It runs bin/lateen with a copy of the manifests
// in a temporary folder, ends what it started, and prints one table row per
// number; bench/README.md has the protocol. What proxies cost is bench/perf's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	which := flag.String("run", "start,begin,memory,edit,comment,chain,load", "what to measure")
	starts := flag.Int("starts", 5, "how often the mesh is started")
	edits := flag.Int("edits", 50, "edits whose propagation is timed")
	rps := flag.Int("rps", 500, "requests per second of the open loop")
	length := flag.Duration("load", time.Minute, "length of the open loop")
	loadEdits := flag.Int("load-edits", 200, "edits during the open loop")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	b := &bench{which: strings.Split(*which, ","), starts: *starts, edits: *edits, rps: *rps, length: *length, loadEdits: *loadEdits}
	if err := b.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench mesh:", err)
		os.Exit(1)
	}
}

type bench struct {
	which                         []string
	starts, edits, rps, loadEdits int
	length                        time.Duration

	root string // of the repository
	dir  string // temporary: manifests, data directories
}

func (b *bench) wants(what string) bool { return slices.Contains(b.which, what) }

func (b *bench) run(ctx context.Context) (err error) {
	if b.root, err = os.Getwd(); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "lateen-mesh-"); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(b.dir) }()
	if err := b.copyManifests(); err != nil {
		return err
	}
	if weigh(os.Getpid()) == nil {
		fmt.Print("autogroup: -13, for the mesh too\n\n")
	}
	fmt.Println("| what | target | measured | how |\n|---|---|---|---|")
	if b.wants("start") {
		if err := b.measureStarts(ctx); err != nil {
			return err
		}
	}
	if b.wants("begin") {
		if err := b.measureBegin(ctx); err != nil {
			return err
		}
	}
	m, err := b.up(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.stop()) }()
	select {
	case <-m.ready: // the first answer may come before the last pod is ready
	case <-ctx.Done():
		return ctx.Err()
	}
	// Containers have sessions of their own. Without the weight of this program's
	// they would starve beside it on a busy machine.
	all, err := m.processes()
	if err != nil {
		return err
	}
	for _, p := range all {
		_ = weigh(p.pid) // as far as it is allowed
	}
	steps := []struct {
		name string
		f    func(context.Context, *mesh) error
	}{{"memory", b.measureMemory}, {"edit", b.measureEdits}, {"comment", b.measureComment}, {"chain", b.measureChain}, {"load", b.measureLoad}}
	for _, s := range steps {
		if !b.wants(s.name) {
			continue
		}
		if err := s.f(ctx, m); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// weigh gives the session of a process more weight than other sessions of the
// machine have; it needs privilege.
func weigh(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", pid), []byte("-13"), 0o644)
}

func row(what, target, measured, how string) {
	fmt.Printf("| %s | %s | %s | %s |\n", what, target, measured, how)
}

// copyManifests copies examples/orders so that edits do not touch the tree.
func (b *bench) copyManifests() error {
	files, err := filepath.Glob(filepath.Join(b.root, "examples/orders/*.yaml"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("no manifests in examples/orders: run this in the repository (%v)", err)
	}
	if err := os.MkdirAll(b.manifests(), 0o700); err != nil {
		return err
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		text := strings.ReplaceAll(string(data), "../../bin", filepath.Join(b.root, "bin"))
		if err := os.WriteFile(filepath.Join(b.manifests(), filepath.Base(f)), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) manifests() string { return filepath.Join(b.dir, "orders") }

// measureStarts times exec of lateen up → the first 200 through the gateway, in
// a fresh data directory each time. The first start warms the page cache and is
// not counted.
func (b *bench) measureStarts(ctx context.Context) error {
	var took []time.Duration
	for i := range b.starts + 1 {
		m, err := b.up(ctx)
		if err != nil {
			return fmt.Errorf("start %d: %w", i, err)
		}
		if i > 0 {
			took = append(took, m.took)
		}
		if err := m.stop(); err != nil {
			return err
		}
	}
	slices.Sort(took)
	row("exec of `lateen up` → first 200", "3 s", fmt.Sprintf("**%.2f s** (%.2f–%.2f)", took[len(took)/2].Seconds(), took[0].Seconds(), took[len(took)-1].Seconds()),
		fmt.Sprintf("median of %d, warm page cache, fresh data directory", len(took)))
	return nil
}
