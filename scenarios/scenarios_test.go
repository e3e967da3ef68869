package scenarios_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lateen.dev/lateen/internal/testkit/scenario"
	"lateen.dev/lateen/internal/testkit/simrun"
)

// load reads every scenario below this folder.
func load(t *testing.T) []*scenario.Scenario {
	t.Helper()
	var all []*scenario.Scenario
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".txtar") {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		s, err := scenario.Parse(path, data)
		if err != nil {
			t.Error(err)
			return nil
		}
		all = append(all, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestScenarios_simulate(t *testing.T) {
	for _, s := range load(t) {
		if s.Only != "" && s.Only != "simulate" {
			continue
		}
		t.Run(strings.TrimSuffix(s.Name, ".txtar"), func(t *testing.T) {
			for _, err := range simrun.Run(s) {
				t.Error(err)
			}
		})
	}
}

func TestScenarios_areEnoughAndReadable(t *testing.T) {
	all := load(t)
	if len(all) < 60 {
		t.Errorf("%d scenarios, want at least 60", len(all))
	}
	for _, s := range all {
		data, err := os.ReadFile(s.Name)
		if err != nil {
			t.Fatal(err)
		}
		if lines := strings.Count(string(data), "\n"); lines > 80 {
			t.Errorf("%s has %d lines: more than 80 means two promises", s.Name, lines)
		}
	}
}

// TestScenarios_onlyIsExplained holds the list of what a single runner runs to
// the files: each with its reason, none stale.
func TestScenarios_onlyIsExplained(t *testing.T) {
	data, err := os.ReadFile("only.txt")
	if err != nil {
		t.Fatal(err)
	}
	explained := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, why, ok := strings.Cut(line, ": ")
		if !ok || len(why) < 20 {
			t.Errorf("only.txt: %q gives no reason", line)
		}
		explained[name] = true
	}
	all := load(t)
	for _, s := range all {
		if s.Only != "" && !explained[s.Name] {
			t.Errorf("%s is only for %s; only.txt does not say why", s.Name, s.Only)
		}
		if s.Only != "" {
			delete(explained, s.Name)
		}
	}
	for name := range explained {
		t.Errorf("only.txt names %s, which every runner runs", name)
	}
	t.Logf("%d scenarios, run by one runner only: %d", len(all), strings.Count(string(data), ".txtar: "))
}
