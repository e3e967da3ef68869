package resource

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestKinds_everyServedVersion compares the registry with the definitions of
// the istio.io/api module in use: every kind, in every version that an API
// server would serve.
func TestKinds_everyServedVersion(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "istio.io/api").Output()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(strings.TrimSpace(string(dir)), "kubernetes", "customresourcedefinitions.gen.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	known := map[string][]string{}
	for _, k := range Kinds() {
		if k.Istio() {
			known[k.Group+"/"+k.Name] = k.Versions
		}
	}
	seen := 0
	for d := yaml.NewDecoder(f); ; seen++ {
		var crd struct {
			Spec struct {
				Group    string
				Names    struct{ Kind string }
				Versions []struct {
					Name   string
					Served bool
				}
			}
		}
		if err := d.Decode(&crd); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		name := crd.Spec.Group + "/" + crd.Spec.Names.Kind
		for _, v := range crd.Spec.Versions {
			if v.Served && !slices.Contains(known[name], v.Name) {
				t.Errorf("%s %s is served and not decoded", name, v.Name)
			}
		}
	}
	if seen < len(known) {
		t.Errorf("%d definitions, %d kinds in the registry", seen, len(known))
	}
}
