package fix

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lateen.dev/lateen/internal/control/source/file"
	"lateen.dev/lateen/internal/finding"
)

// listing is one line for each finding: where, how bad, which code, which field.
func listing(root string, findings []finding.Finding, full bool) string {
	var b strings.Builder
	for _, f := range findings {
		f.Pos.File = strings.TrimPrefix(f.Pos.File, root+"/")
		fmt.Fprintf(&b, "%s %s %s %s", f.Pos, f.Severity, f.CodeText(), f.Path)
		if full {
			fmt.Fprintf(&b, " | %s | %s", f.Message, f.Hint)
		}
		b.WriteByte('\n')
	}
	return strings.ReplaceAll(b.String(), root+"/", "")
}

func changes(root string, res *Result) string {
	var b strings.Builder
	for _, c := range res.Changes {
		c.Pos.File = strings.TrimPrefix(c.Pos.File, root+"/")
		fmt.Fprintf(&b, "%s %s %s\n", c.Pos, c.Code, strings.ReplaceAll(c.Summary, root+"/", ""))
	}
	return b.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	if os.Getenv("UPDATE") != "" {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got:\n%s\nwant:\n%s", name, got, want)
	}
}

// The folder has one of each defect that can be mended, and styles that the
// edits must cope with.
func TestFiles_shop(t *testing.T) {
	const root = "testdata/shop"
	res, err := Files([]string{root})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/shop.before", listing(root, res.Before, true))
	golden(t, "testdata/shop.changes", changes(root, res))
	golden(t, "testdata/shop.after", listing(root, res.Left, true))
	for _, f := range res.Files {
		if f.Removed != (f.Rel == "parts.yaml") {
			t.Errorf("%s: removed %v", f.Rel, f.Removed)
		}
		if f.Changed() && !f.Removed {
			golden(t, "testdata/shop.fixed/"+f.Rel+".want", string(f.After))
		}
	}
	idempotent(t, res)
}

func idempotent(t *testing.T, res *Result) {
	t.Helper()
	var again []file.Content
	for _, f := range res.Files {
		again = append(again, file.Content{Name: f.Name, Data: f.After})
	}
	for _, c := range Contents(again).Changes {
		t.Errorf("fixing the result again changes it: %+v", c)
	}
}

// Every line that the fixed files have and the originals do not must come from a
// change; everything else is byte for byte as it was.
func TestFiles_keepsUntouchedLines(t *testing.T) {
	res, err := Files([]string{"testdata/shop"})
	if err != nil {
		t.Fatal(err)
	}
	var all string
	for _, f := range res.Files {
		all += string(f.After)
	}
	for _, f := range res.Files {
		after := string(f.After)
		if f.Removed {
			after = all // it went into the others
		}
		for _, line := range strings.SplitAfter(string(f.Before), "\n") {
			if strings.Contains(line, "#") && !strings.Contains(after, strings.TrimSpace(line[strings.Index(line, "#"):])) {
				t.Errorf("%s lost the comment of %q", f.Rel, line)
			}
		}
		if bytes.Contains(f.Before, []byte("\r\n")) && strings.Count(after, "\n") != strings.Count(after, "\r\n") {
			t.Errorf("%s has mixed line endings", f.Rel)
		}
	}
}

func TestContents_fragmentOfSeveral(t *testing.T) {
	deployment := `apiVersion: apps/v1
kind: Deployment
metadata:
  name: NAME
spec:
  selector: {matchLabels: {app: NAME}}
  template:
    metadata:
      labels: {app: NAME}
    spec:
      containers:
      - name: c
        image: i
`
	contents := []file.Content{
		{Name: "a.yaml", Data: []byte(strings.ReplaceAll(deployment, "NAME", "a"))},
		{Name: "b.yaml", Data: []byte(strings.ReplaceAll(deployment, "NAME", "b"))},
		{Name: "part.yaml", Data: []byte("resources:\n  limits: {memory: 1Gi}\n")},
	}
	res := Contents(contents)
	if len(res.Changes) != 0 || len(res.Left) != 1 || res.Left[0].Code != finding.FragmentTarget {
		t.Fatalf("changes %v, left %v", res.Changes, res.Left)
	}
	for _, want := range []string{"Deployment/a.default", "Deployment/b.default"} {
		if !strings.Contains(res.Left[0].Message, want) {
			t.Errorf("message %q does not name %s", res.Left[0].Message, want)
		}
	}
	res = Contents(contents[1:])
	if len(res.Left) != 0 || !res.Files[1].Removed || !strings.HasSuffix(string(res.Files[0].After), "        resources:\n          limits: {memory: 1Gi}\n") {
		t.Errorf("left %v\n%s", res.Left, res.Files[0].After)
	}
}

// A user's own manifests, when they are at hand: a folder input in shared beside
// the repository, or what LATEEN_INPUT names.
func TestFiles_userInput(t *testing.T) {
	root := os.Getenv("LATEEN_INPUT")
	if root == "" {
		root = filepath.Join("..", "..", "..", "..", "shared", "input")
	}
	if _, err := os.Stat(root); err != nil {
		t.Skipf("skipped: no manifests at %s", root)
	}
	res, err := Files([]string{root})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/input.before", listing(root, res.Before, false))
	golden(t, "testdata/input.changes", changes(root, res))
	golden(t, "testdata/input.after", listing(root, res.Left, false))
	if worst, _ := finding.Worst(res.Before); worst != finding.Error {
		t.Error("no error before")
	}
	if worst, _ := finding.Worst(res.Left); worst == finding.Error {
		t.Error("an error is left")
	}
	idempotent(t, res)
}

func FuzzContents(f *testing.F) {
	files, err := filepath.Glob("testdata/shop/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatal("no seeds")
	}
	for _, name := range append(files, "testdata/shop/nested/routes.yaml") {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	web, err := os.ReadFile("testdata/shop/web.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		res := Contents([]file.Content{{Name: "web.yaml", Data: web}, {Name: "fuzz.yaml", Data: data}})
		if errorsIn(res.Left) > errorsIn(res.Before) {
			t.Errorf("more errors after: %v", res.Left)
		}
		idempotent(t, res)
	})
}
