//go:build linux

package conformance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// programs is the folder that TestMain has lateen-proxy built into.
var programs string

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "lateen-judges-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	programs = dir
	return m.Run()
}

// proxyProgram builds lateen-proxy once.
var proxyProgram = sync.OnceValues(func() (string, error) {
	return build("", "lateen.dev/lateen/cmd/lateen-proxy", "lateen-proxy")
})

// The judges that are Go programs come from a module of their own, which pins
// them and keeps them out of ours.
var (
	h2specProgram = sync.OnceValues(func() (string, error) {
		return build("../../../tools/judges", "github.com/summerwind/h2spec/cmd/h2spec", "h2spec")
	})
	interopClient = sync.OnceValues(func() (string, error) {
		return build("../../../tools/judges", "google.golang.org/grpc/interop/client", "interop-client")
	})
	interopServer = sync.OnceValues(func() (string, error) {
		return build("../../../tools/judges", "google.golang.org/grpc/interop/server", "interop-server")
	})
)

// build builds one program of the module in dir.
func build(dir, pkg, name string) (string, error) {
	out := filepath.Join(programs, name)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "build", "-o", out, pkg)
	cmd.Dir = dir
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", name, err, text)
	}
	return out, nil
}

// need returns the path of a program of ours, or ends the test.
func need(t *testing.T, get func() (string, error)) string {
	t.Helper()
	path, err := get()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// judge returns the path of a foreign program. Without it the test is skipped; in
// CI it fails.
func judge(t *testing.T, get func() (string, error)) string {
	t.Helper()
	if testing.Short() {
		t.Skip("skipped: foreign judges take their time")
	}
	path, err := get()
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal("skipped: ", err)
	}
	if err != nil {
		t.Skip("skipped: ", err)
	}
	return path
}

// installed finds a program of the system.
func installed(name string) func() (string, error) {
	return func() (string, error) {
		path, err := exec.LookPath(name)
		if err != nil {
			return "", fmt.Errorf("%w: tools/preflight.sh says how to get it", err)
		}
		return path, nil
	}
}

// run runs a program to its end, at most limit, and returns all it printed.
func run(t *testing.T, limit time.Duration, program string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), limit, fmt.Errorf("it took longer than %v", limit))
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.WaitDelay = t.TempDir(), time.Second
	out, err := cmd.CombinedOutput()
	return string(out), errors.Join(err, context.Cause(ctx))
}
