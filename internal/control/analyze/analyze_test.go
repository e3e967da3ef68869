package analyze

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lateen.dev/lateen/internal/control/source/file"
	"lateen.dev/lateen/internal/finding"
)

func TestFiles_cases(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			findings, _ := Files([]file.Content{{Name: filepath.Base(name), Data: data}})
			var b strings.Builder
			for _, f := range findings {
				fmt.Fprintf(&b, "%s %s %s %s | %s | %s\n", f.Pos, f.Severity, f.CodeText(), f.Path, f.Message, f.Hint)
			}
			golden := strings.TrimSuffix(name, ".yaml") + ".want"
			if os.Getenv("UPDATE") != "" {
				if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if b.String() != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", b.String(), want)
			}
		})
	}
}

// Every finding stands in a file that was given, at a line and column.
func TestFiles_findingsHavePlaces(t *testing.T) {
	data, err := os.ReadFile("testdata/traffic.yaml")
	if err != nil {
		t.Fatal(err)
	}
	findings, objects := Files([]file.Content{{Name: "f.yaml", Data: data}})
	if objects < 15 {
		t.Errorf("only %d objects", objects)
	}
	for _, f := range findings {
		if f.Pos.File != "f.yaml" || f.Pos.Line == 0 || f.Pos.Column == 0 {
			t.Errorf("no place: %+v", f)
		}
		if c, ok := finding.Lookup(f.Code); !ok || c.Severity != f.Severity {
			t.Errorf("%s: severity %s is not that of the registry", f.Code, f.Severity)
		}
	}
}

func TestPaths_nothingThere(t *testing.T) {
	if _, _, err := Paths([]string{filepath.Join(t.TempDir(), "none")}); err == nil {
		t.Error("no error")
	}
}
