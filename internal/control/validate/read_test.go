package validate

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"lateen.dev/lateen/internal/resource"
)

// TestFields_readOrReported: a field of an applied kind that no code of the
// mesh or the translation names must be told to people, never left in silence.
func TestFields_readOrReported(t *testing.T) {
	var code strings.Builder
	for _, dir := range []string{"../mesh", "../translate", "../translate/authz", "../../resource"} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no code in %s: %v", dir, err)
		}
		for _, f := range files {
			if strings.HasSuffix(f, "_test.go") {
				continue
			}
			data, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			code.Write(data)
		}
	}
	named := map[string]bool{}
	for _, word := range regexp.MustCompile(`\w+`).FindAllString(code.String(), -1) {
		named[strings.ToLower(strings.TrimPrefix(strings.ReplaceAll(word, "_", ""), "Get"))] = true
	}
	told, table := deprecations(), fieldsNotApplied()
	seen := map[protoreflect.FullName]bool{}
	var visit func(d protoreflect.MessageDescriptor)
	visit = func(d protoreflect.MessageDescriptor) {
		if seen[d.FullName()] || !strings.HasPrefix(string(d.FullName()), "istio.") {
			return
		}
		seen[d.FullName()] = true
		for i := range d.Fields().Len() {
			fd := d.Fields().Get(i)
			if _, ok := told[fieldName(fd)]; ok || table[fieldName(fd)] {
				continue
			}
			if !named[strings.ToLower(strings.ReplaceAll(string(fd.Name()), "_", ""))] {
				t.Errorf("%s is read by nothing and reported by nothing", fd.FullName())
			}
			if fd.Message() != nil {
				visit(fd.Message())
			}
		}
	}
	for _, k := range resource.Kinds() {
		if _, whole := kindsNotApplied()[k.Kind]; whole {
			continue
		}
		if m, ok := k.Message(); ok {
			visit(m.ProtoReflect().Descriptor())
		}
	}
	if len(seen) < 50 {
		t.Errorf("only %d messages looked at", len(seen))
	}
}
