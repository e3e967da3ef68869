package report

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lateen.dev/lateen/bench/internal/measure"
)

func rounds(metric string, values ...float64) []measure.Slice {
	var out []measure.Slice
	for _, v := range values {
		out = append(out, measure.Slice{Values: map[string]float64{metric: v}, Requests: 1})
	}
	return out
}

// TestCompare_pairsWithinARound: a machine that slows down halfway changes no
// ratio.
func TestCompare_pairsWithinARound(t *testing.T) {
	r := Compare("h1-mesh-c64", "cpu", "nginx", rounds("cpu", 10, 10, 40), rounds("cpu", 20, 20, 80))
	if r.Ratio != 0.5 || r.Min != 0.5 || r.Max != 0.5 || r.Pairs != 3 || r.Lateen != 10 || r.Other != 20 {
		t.Errorf("got %+v", r)
	}
	if got := r.Verdict(); got != "kept, too few pairs" {
		t.Errorf("verdict %q", got)
	}
}

func TestCompare_anyErrorInvalidates(t *testing.T) {
	bad := rounds("cpu", 20, 20)
	bad[1].Errors, bad[1].First = 1, "answered with HTTP/1.1 503"
	r := Compare("h1-mesh-c64", "cpu", "nginx", rounds("cpu", 10, 10), bad)
	if !strings.Contains(r.Invalid, "503") || r.Verdict() != "invalid" {
		t.Errorf("got %+v, verdict %q", r, r.Verdict())
	}
}

func TestVerdict_throughputHasAFloor(t *testing.T) {
	nine := func(v float64) []measure.Slice { return rounds("rps", v, v, v, v, v, v, v, v, v) }
	for ratio, want := range map[float64]string{2.1: "**missed**", 2.3: "kept"} {
		r := Compare("chain-mtls-c64", "rps", "nginx", nine(ratio), nine(1))
		if got := r.Verdict(); got != want {
			t.Errorf("%v times: verdict %q, want %q", ratio, got, want)
		}
		r.GeneratorBound = true
		if got := r.Verdict(); got != "generator-bound" {
			t.Errorf("generator-bound: verdict %q", got)
		}
	}
}

// TestBounds_areOfScenariosInOrder: a gate under a mistyped name would never be
// looked at.
func TestBounds_areOfScenariosInOrder(t *testing.T) {
	for key := range bounds {
		if rank(key[0]) == len(order) {
			t.Errorf("bound of %v: no such scenario", key)
		}
	}
}

func TestWrite_mergesWithWhatWasThere(t *testing.T) {
	dir := t.TempDir()
	first := &Report{Versions: map[string]string{"nginx": "1"}, Rows: []Row{
		Compare("tcp-rr", "cpu", "haproxy", rounds("cpu", 1), rounds("cpu", 2)),
		Compare("h1-mesh-c64", "cpu", "nginx", rounds("cpu", 1), rounds("cpu", 2)),
	}, Skipped: []string{"tcp-rr: nginx", "h2c-c8-m32: lateen"}}
	if err := first.Write(dir); err != nil {
		t.Fatal(err)
	}
	before, err := Read(filepath.Join(dir, "latest.json"))
	if err != nil {
		t.Fatal(err)
	}
	second := &Report{Versions: map[string]string{}, Rows: []Row{Compare("tcp-rr", "cpu", "haproxy", rounds("cpu", 3), rounds("cpu", 2))}}
	second.Merge(before)
	if len(second.Rows) != 2 || second.Rows[0].Scenario != "h1-mesh-c64" || second.Rows[1].Ratio != 1.5 {
		t.Errorf("rows %+v", second.Rows)
	}
	if len(second.Skipped) != 1 || second.Versions["nginx"] != "1" {
		t.Errorf("skipped %q, versions %v", second.Skipped, second.Versions)
	}
	if err := second.Write(dir); err != nil {
		t.Fatal(err)
	}
	data, _ := os.ReadFile(filepath.Join(dir, "latest.json"))
	var shape struct {
		Rows []map[string]any `json:"rows"`
	}
	if err := json.Unmarshal(data, &shape); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"scenario", "metric", "peer", "ratio", "pairs", "lateen", "other", "min", "max"} {
		if _, ok := shape.Rows[0][key]; !ok {
			t.Errorf("a row has no %q", key)
		}
	}
	for _, name := range []string{"latest.md", "latest.svg"} {
		if text, _ := os.ReadFile(filepath.Join(dir, name)); !strings.Contains(string(text), "tcp-rr") {
			t.Errorf("%s does not show tcp-rr", name)
		}
	}
}
