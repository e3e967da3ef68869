package validate

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

func TestObject_cases(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			objects, findings := resource.Decode(filepath.Base(file), data)
			for _, o := range objects {
				findings = append(findings, Object(o)...)
			}
			finding.Sort(findings)
			var b strings.Builder
			for _, f := range findings {
				fmt.Fprintf(&b, "%s %s %s %s | %s | %s\n", f.Pos, f.Severity, f.CodeText(), f.Path, f.Message, f.Hint)
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".want"
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

// Every rule of the definitions has a Go form, and exactly one.
func TestCRDs_everyRuleIsKnown(t *testing.T) {
	rulesOf := 0
	var visit func(k *constraint)
	visit = func(k *constraint) {
		for _, r := range k.Rules {
			rulesOf++
			n := 0
			for prefix := range rules() {
				if strings.HasPrefix(r.Rule, prefix) {
					n++
				}
			}
			if onlyOne.MatchString(r.Rule) {
				n++
			}
			if n != 1 {
				t.Errorf("%d Go forms for %s", n, r.Rule)
			}
		}
		for _, f := range k.Fields {
			visit(f)
		}
		if k.Each != nil {
			visit(k.Each)
		}
	}
	for _, k := range crds() {
		visit(k)
	}
	if rulesOf < 100 {
		t.Errorf("only %d rules in constraints.json", rulesOf)
	}
}

// A table entry that names no field of any message would be a rule that never
// speaks.
func TestFieldTables_nameRealFields(t *testing.T) {
	known := map[string]bool{}
	for _, k := range resource.Kinds() {
		if m, ok := k.Message(); ok {
			collectFields(m.ProtoReflect().Descriptor(), known, map[string]bool{})
		}
	}
	collectMeshConfig(known)
	for name := range deprecations() {
		if !known[name] {
			t.Errorf("deprecations: no field %s", name)
		}
	}
	for name := range fieldsNotApplied() {
		if !known[name] {
			t.Errorf("fieldsNotApplied: no field %s", name)
		}
	}
}
