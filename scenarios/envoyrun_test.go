//go:build linux

package scenarios_test

import (
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"lateen.dev/lateen/internal/testkit/envoycheck"
	"lateen.dev/lateen/internal/testkit/envoyrun"
	"lateen.dev/lateen/internal/testkit/scenario"
)

// TestEnvoy_sidecars runs every scenario that can run live with Envoys as the
// sidecars. envoy.txt lists the expectations that they do not meet.
func TestEnvoy_sidecars(t *testing.T) {
	withEnvoys(t, envoyrun.Mix{}, func(int) bool { return true })
}

// TestEnvoy_callers and TestEnvoy_callees run meshes in which Envoys and
// lateen-proxies talk to each other: a half of the scenarios each, and all with
// LATEEN_MIXED=all.
func TestEnvoy_callers(t *testing.T) {
	withEnvoys(t, envoyrun.Callers(), func(i int) bool { return i%2 == 0 })
}

func TestEnvoy_callees(t *testing.T) {
	withEnvoys(t, envoyrun.Callees(), func(i int) bool { return i%2 == 1 })
}

// withEnvoys runs those scenarios that can run live and that chosen picks.
func withEnvoys(t *testing.T, mix envoyrun.Mix, chosen func(int) bool) {
	t.Helper()
	envoy, err := envoycheck.Find(t.Context())
	if err != nil {
		missing(t, err)
	}
	known, err := envoyrun.ParseDifferences(read(t, "envoy.txt"))
	if err != nil {
		t.Fatalf("envoy.txt: %v", err)
	}
	suite, err := envoyrun.New(programs(t), envoy, mix, known)
	if err != nil {
		t.Fatal(err)
	}
	if err := suite.Preflight(t.Context()); err != nil {
		missing(t, err)
	}
	all := load(t)
	var run atomic.Int32
	others := 0
	t.Cleanup(func() { // when the parallel ones are done
		held := suite.Held()
		if len(mix.Accounts) > 0 {
			held = nil // lateen-proxy may have met them
		}
		for _, err := range known.Stale(all, read(t, "../docs/differences.md"), held) {
			t.Errorf("envoy.txt: %v", err)
		}
		t.Logf("%d scenarios: %d run with Envoys, %d skipped as they are for another runner alone; %d differ, in %d expectations",
			len(all), run.Load(), others, known.Scenarios(), len(known))
		if err := suite.Close(); err != nil {
			t.Error(err)
		}
	})
	slots := make(chan struct{}, liveParallel)
	for i, s := range all {
		if s.Only != "" && s.Only != "live" {
			others++
			continue
		}
		if !chosen(i) && os.Getenv("LATEEN_MIXED") != "all" {
			continue
		}
		t.Run(strings.TrimSuffix(s.Name, ".txtar"), func(t *testing.T) {
			t.Parallel()
			slots <- struct{}{}
			defer func() { <-slots }()
			run.Add(1)
			runLive(t, suite, s)
		})
	}
}

// TestEnvoy_differencesAreExplained holds envoy.txt to the scenarios and to the
// page that gives the reasons.
func TestEnvoy_differencesAreExplained(t *testing.T) {
	known, err := envoyrun.ParseDifferences(read(t, "envoy.txt"))
	if err != nil {
		t.Fatalf("envoy.txt: %v", err)
	}
	for _, err := range known.Stale(load(t), read(t, "../docs/differences.md"), map[string][]scenario.Want{}) {
		t.Errorf("envoy.txt: %v", err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// missing skips a test for want of something, except where nothing may be
// missing.
func missing(t *testing.T, err error) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(err)
	}
	t.Skipf("skipped: %v", err)
}
