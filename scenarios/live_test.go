//go:build linux

package scenarios_test

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"lateen.dev/lateen/internal/testkit/liverun"
	"lateen.dev/lateen/internal/testkit/scenario"
)

func TestMain(m *testing.M) {
	if handled, code := liverun.HiddenRole(); handled {
		os.Exit(code)
	}
	code := m.Run()
	if err := os.RemoveAll(built.dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// built is the folder of the programs under test, once a test has asked for it.
var built struct {
	once sync.Once
	dir  string
	err  error
}

// programs builds the programs once for all tests.
func programs(t *testing.T) string {
	t.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "lateen-programs-"); built.err == nil {
			built.err = liverun.Build(t.Context(), built.dir)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.dir
}

// liveParallel is how many scenarios run live at a time: a mesh is a handful of
// processes that start at once.
const liveParallel = 2

func TestScenarios_live(t *testing.T) {
	suite, err := liverun.New(programs(t), liverun.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := suite.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := suite.Preflight(t.Context()); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("this machine cannot run live scenarios: %v", err)
		}
		t.Skipf("skipped: this machine cannot run live scenarios: %v", err)
	}
	slots := make(chan struct{}, liveParallel)
	for _, s := range load(t) {
		if s.Only != "" && s.Only != "live" {
			continue
		}
		t.Run(strings.TrimSuffix(s.Name, ".txtar"), func(t *testing.T) {
			t.Parallel()
			slots <- struct{}{}
			defer func() { <-slots }()
			runLive(t, suite, s)
		})
	}
}

func runLive(t *testing.T, suite *liverun.Suite, s *scenario.Scenario) {
	t.Helper()
	start := time.Now()
	for _, err := range suite.Run(t.Context(), s) {
		t.Error(err)
	}
	t.Logf("took %v", time.Since(start).Round(time.Millisecond))
}
