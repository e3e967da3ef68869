//go:build linux

// Package liverun runs scenarios with real processes: it builds the programs,
// starts "lateen up" for each scenario as an ordinary user, calls from inside the
// pods, and reads flags, details, routes and origins from the access logs of the
// proxies. It is the slow, honest brother of simrun: both fill the same
// scenario.Result.
//
// It promises that a scenario is over after Limit and that nothing of it is left:
// no process and no file; what is left is an error, and so is a push that a proxy
// refused. It does not judge results, scenario.Call.Check does.
package liverun

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"lateen.dev/lateen/internal/local"
	"lateen.dev/lateen/internal/testkit/scenario"
)

// Limit bounds one scenario, from the start of its mesh to its end.
const Limit = 40 * time.Second

// nobody runs everything when the tests run as root.
const nobody = 65534

// Options say what runs instead of Lateen's own data plane. The zero value
// changes nothing.
type Options struct {
	// Arrange changes the folder of the suite's programs; nil leaves it.
	Arrange func(dir string) error
	// Unanswered are the expectations, by first word, that these proxies cannot
	// answer by nature; they are not checked.
	Unanswered []string
	// Apart says that an expectation need not be met: these proxies are known to
	// differ. Suite.Held tells those that were met all the same.
	Apart func(sc *scenario.Scenario, w scenario.Want) bool
	// Settle is how long a mesh rests before the first call; nil means not at all.
	Settle func(sc *scenario.Scenario) time.Duration
	// Agent returns how what a proxy calls itself must begin, by its service
	// account; a mesh with others is not ready. nil means anything will do.
	Agent func(account string) string
}

// Suite holds the built programs. It is safe for concurrent use.
type Suite struct {
	o    Options
	dir  string
	cred *syscall.Credential

	mu   sync.Mutex
	held map[string][]scenario.Want
}

// Build builds every program that a suite may need into a folder.
func Build(ctx context.Context, dir string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-ldflags=-s -w", "-o", dir+"/",
		"lateen.dev/lateen/cmd/...", "lateen.dev/lateen/internal/testkit/echo", "lateen.dev/lateen/internal/testkit/envoyagent")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	return nil
}

// New makes a suite of the programs in a folder that Build filled. Close removes
// what it made.
func New(programs string, o Options) (*Suite, error) {
	dir, err := os.MkdirTemp("", "lateen-live-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for live scenarios: %w", err)
	}
	s := &Suite{o: o, dir: dir, held: map[string][]scenario.Want{}}
	if os.Geteuid() == 0 {
		s.cred = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	if err := s.arrange(programs); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// arrange fills the folder of the suite.
func (s *Suite) arrange(programs string) error {
	if err := os.Chmod(s.dir, 0o755); err != nil {
		return err
	}
	files, err := os.ReadDir(programs)
	if err != nil {
		return fmt.Errorf("find the programs: %w", err)
	}
	for _, f := range files {
		if err := os.Link(filepath.Join(programs, f.Name()), filepath.Join(s.dir, f.Name())); err != nil {
			return fmt.Errorf("take the programs over: %w", err)
		}
	}
	if s.o.Arrange != nil {
		return s.o.Arrange(s.dir)
	}
	return nil
}

// Close removes the programs.
func (s *Suite) Close() error { return os.RemoveAll(s.dir) }

// command prepares a program of the suite, or another one given by its path, as
// the ordinary user.
func (s *Suite) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	if !strings.Contains(program, "/") {
		program = filepath.Join(s.dir, program)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = s.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred, Setpgid: true}
	cmd.WaitDelay = time.Second
	return cmd
}

// preflightEnv makes the test binary play preflight.
const preflightEnv = "LATEEN_LIVE_PREFLIGHT"

// HiddenRole plays a role that this package or package local starts the test
// binary in. TestMain calls it first thing and exits with code when handled.
func HiddenRole() (handled bool, code int) {
	if handled, code := local.HiddenRole(os.Args); handled {
		return true, code
	}
	if os.Getenv(preflightEnv) == "" {
		return false, 0
	}
	if err := local.Preflight(); err != nil {
		fmt.Println(err)
		return true, 1
	}
	return true, 0
}

// Preflight says why this machine refuses to run a mesh for the user that the
// suite runs as. The test binary must call HiddenRole.
func (s *Suite) Preflight(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := s.command(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), preflightEnv+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s (%w)", bytes.TrimSpace(out), err)
	}
	return nil
}

// Run carries out every call of a scenario in a mesh of its own and returns
// what was not as wanted.
func (s *Suite) Run(ctx context.Context, sc *scenario.Scenario) []error {
	ctx, cancel := context.WithTimeout(ctx, Limit)
	defer cancel()
	c, err := s.start(ctx, sc)
	if err != nil {
		return []error{fmt.Errorf("%s: %w", sc.Name, err)}
	}
	if s.o.Settle != nil {
		time.Sleep(s.o.Settle(sc))
	}
	var errs []error
	for i, call := range sc.Calls {
		if err := c.runApart(ctx, call); err != nil {
			errs = append(errs, fmt.Errorf("%s: call %d: %w", sc.Name, i+1, err))
		}
	}
	for _, line := range c.refusals() {
		errs = append(errs, fmt.Errorf("%s: %s", sc.Name, line))
	}
	if len(errs) > 0 && os.Getenv("LATEEN_LIVE_LOGS") != "" {
		errs = append(errs, errors.New(c.allLogs()))
	}
	if err := c.stop(); err != nil {
		errs = append(errs, fmt.Errorf("%s: stop: %w", sc.Name, err))
	}
	return errs
}

// Held returns the expectations set apart that were met, by scenario.
func (s *Suite) Held() map[string][]scenario.Want {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.held)
}

// runApart runs a call without the expectations that do not count here, and then
// looks at those among them that are known to differ.
func (c *cluster) runApart(ctx context.Context, call scenario.Call) error {
	var apart []scenario.Want
	call.Wants = slices.DeleteFunc(slices.Clone(call.Wants), func(w scenario.Want) bool {
		verb, _, _ := strings.Cut(w.Text, " ")
		if slices.Contains(c.suite.o.Unanswered, verb) {
			return true
		}
		if c.suite.o.Apart == nil || !c.suite.o.Apart(c.sc, w) {
			return false
		}
		apart = append(apart, w)
		return true
	})
	results, err := c.run(ctx, call)
	if err != nil {
		return err
	}
	for _, w := range apart {
		if (scenario.Call{Wants: []scenario.Want{w}}).Check(results) == nil {
			c.suite.mu.Lock()
			c.suite.held[c.sc.Name] = append(c.suite.held[c.sc.Name], w)
			c.suite.mu.Unlock()
		}
	}
	return nil
}

// run makes one call and checks its results. Logs are read when an expectation
// asks for what only they tell.
func (c *cluster) run(ctx context.Context, call scenario.Call) ([]scenario.Result, error) {
	call.Fresh = c.opaque(call.URL)
	results, err := c.call(ctx, call)
	if err != nil {
		return nil, fmt.Errorf("line %d: %w", call.Line, err)
	}
	if needsLogs(call) {
		return results, c.awaitLogs(ctx, call, results)
	}
	if err = call.Check(results); err != nil {
		c.fill(call, results) // the message is better with details
		return results, call.Check(results)
	}
	return results, nil
}

// logVerbs are the expectations whose answer stands in logs.
var logVerbs = map[string]bool{
	"attempts": true, "flag": true, "details": true, "route": true, "origin": true, "mirrored": true, "mirrors": true, "log": true,
}

func needsLogs(call scenario.Call) bool {
	for _, w := range call.Wants {
		verb, _, _ := strings.Cut(w.Text, " ")
		if logVerbs[verb] {
			return true
		}
	}
	return false
}

// call makes the requests of one call from where it says.
func (c *cluster) call(ctx context.Context, call scenario.Call) ([]scenario.Result, error) {
	if call.From == "outside" {
		call.Address = c.gateway()
		if call.Address == "" {
			return nil, errors.New("no gateway was printed")
		}
		return c.echo(ctx, "echo", "call", call)
	}
	w, ok := c.workload(call.From)
	if !ok {
		return nil, fmt.Errorf("no workload %q", call.From)
	}
	if err := c.resolve(ctx, &call); err != nil {
		return nil, err
	}
	return c.echo(ctx, "lateen", "--data", c.data(), "exec", w.Deployment()+"."+w.Namespace, "--",
		filepath.Join(c.suite.dir, "echo"), "call", call)
}

// echo runs a command whose last argument is the call and reads its results.
func (c *cluster) echo(ctx context.Context, program string, args ...any) ([]scenario.Result, error) {
	var text []string
	for _, a := range args {
		if s, ok := a.(string); ok {
			text = append(text, s)
			continue
		}
		data, err := json.Marshal(a)
		if err != nil {
			return nil, fmt.Errorf("encode call: %w", err)
		}
		text = append(text, string(data))
	}
	cmd := c.suite.command(ctx, program, text...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("make the call: %w: %s", err, bytes.TrimSpace(errOut.Bytes()))
	}
	var results []scenario.Result
	if err := json.Unmarshal(out.Bytes(), &results); err != nil {
		return nil, fmt.Errorf("read the results %q: %w", out.Bytes(), err)
	}
	return results, nil
}
