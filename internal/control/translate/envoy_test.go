package translate_test

import (
	"os"
	"path/filepath"
	"testing"

	"lateen.dev/lateen/internal/control/translate"
	"lateen.dev/lateen/internal/testkit/envoycheck"
)

// TestEnvoyAccepts lets a real Envoy check every golden: what a stock Envoy is
// sent must pass as it is; what is meant for proxies with Istio's extensions
// must pass without them.
func TestEnvoyAccepts(t *testing.T) {
	envoy, err := envoycheck.Find(t.Context())
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("skipped: %v", err)
	}
	m := goldenMesh(t)
	for name, node := range goldenNodes() {
		t.Run(name, func(t *testing.T) {
			var b envoycheck.Bootstrap
			if err := b.Add(name, translate.Build(m, node)); err != nil {
				t.Fatal(err)
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
		})
	}
}
