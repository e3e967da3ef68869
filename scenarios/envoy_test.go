package scenarios_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"lateen.dev/lateen/internal/testkit/envoycheck"
	"lateen.dev/lateen/internal/testkit/simrun"
)

// TestEnvoyAccepts_everyScenario lets one real Envoy check what the proxies of
// all scenarios would be sent if they were stock Envoys.
func TestEnvoyAccepts_everyScenario(t *testing.T) {
	envoy, err := envoycheck.Find(t.Context())
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("skipped: %v", err)
	}
	var b envoycheck.Bootstrap
	for _, s := range load(t) {
		plan, err := simrun.NewPlan(s)
		if err != nil {
			t.Fatal(err)
		}
		sent := plan.Envoys()
		for _, pod := range slices.Sorted(maps.Keys(sent)) {
			if err := b.Add(pod+" in "+s.Name, sent[pod]); err != nil {
				t.Fatal(err)
			}
		}
	}
	config, err := b.JSON()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "envoy.json")
	if err := os.WriteFile(path, config, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := envoycheck.Validate(t.Context(), envoy, path); err != nil {
		t.Error(err)
	}
	listeners, clusters := b.Size()
	t.Logf("%d listeners and %d clusters, all different, pass", listeners, clusters)
}
