package scenarios_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lateen.dev/lateen/internal/testkit/scenario"
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
