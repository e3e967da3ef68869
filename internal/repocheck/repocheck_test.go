package repocheck

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "lateen.dev/lateen/"

// sourceFile is one parsed non-test file of the tree.
type sourceFile struct {
	path    string // from the repository root
	pkg     string // import path without the module prefix
	lines   int
	imports []string
	ast     *ast.File
}

var (
	fset = token.NewFileSet()
	tree = loadTree()
)

func loadTree() []sourceFile {
	var files []sourceFile
	root := "../.."
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && rel != "." || d.Name() == "testdata" || rel == "bin") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, ".pb.go") {
			return nil
		}
		f, err := parse(path, rel)
		if err != nil {
			return err
		}
		if f.generator() {
			return nil
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		panic(err)
	}
	return files
}

func parse(path, rel string) (sourceFile, error) {
	src, err := os.ReadFile(path)
	if err != nil {
		return sourceFile{}, err
	}
	tree, err := parser.ParseFile(fset, path, src, parser.ParseComments)
	if err != nil {
		return sourceFile{}, err
	}
	f := sourceFile{path: rel, pkg: filepath.Dir(rel), lines: bytes.Count(src, []byte("\n")), ast: tree}
	for _, imp := range tree.Imports {
		p, _ := strconv.Unquote(imp.Path.Value)
		f.imports = append(f.imports, p)
	}
	return f, nil
}

// generator says that the file is a program run by hand, not part of a package.
func (f sourceFile) generator() bool {
	for _, group := range f.ast.Comments {
		for _, c := range group.List {
			if c.Text == "//go:build ignore" {
				return true
			}
		}
	}
	return false
}

func within(pkg, dir string) bool { return pkg == dir || strings.HasPrefix(pkg, dir+"/") }

func TestImports_planesMeetOnlyInProtocols(t *testing.T) {
	for _, f := range tree {
		for _, imp := range f.imports {
			local, ok := strings.CutPrefix(imp, module)
			if !ok {
				continue
			}
			if within(f.pkg, "internal/control") && within(local, "internal/proxy") ||
				within(f.pkg, "internal/proxy") && within(local, "internal/control") {
				t.Errorf("%s imports %s: control and proxy meet only in public protocols (design, rule 1)", f.path, local)
			}
		}
	}
}

// typeHomes lists which packages may import which families of types.
var typeHomes = []struct {
	what    string
	imports []string
	homes   []string
}{
	{"Kubernetes types", []string{"k8s.io/"}, []string{
		"internal/resource", "internal/control/source", "internal/control/inject", "internal/local", "internal/deps",
		// Judging an object needs the whole of it, Kubernetes kinds included.
		"internal/control/validate",
	}},
	{"xDS types", []string{"github.com/envoyproxy/go-control-plane"}, []string{
		"internal/control/translate", "internal/control/ads", "internal/proxy/xds", "internal/proxy/snapshot",
		"internal/simulate", "internal/testkit", "internal/deps",
	}},
	{"OTLP types", []string{"go.opentelemetry.io/proto/otlp"}, []string{
		"internal/proxy/record", "internal/telemetry", "internal/testkit", "internal/deps",
	}},
	{"Istio configuration types", []string{
		"istio.io/api/networking", "istio.io/api/security", "istio.io/api/telemetry", "istio.io/api/extensions", "istio.io/api/mesh",
	}, []string{"internal/resource", "internal/control", "internal/local", "internal/deps", "internal/testkit"}},
}

func TestImports_typesStayInTheirHomes(t *testing.T) {
	for _, f := range tree {
		for _, imp := range f.imports {
			for _, home := range typeHomes {
				if !hasAnyPrefix(imp, home.imports) || slices.ContainsFunc(home.homes, func(h string) bool { return within(f.pkg, h) }) {
					continue
				}
				if why, ok := allowed("import", f.path+" "+imp); ok {
					t.Logf("%s imports %s: %s", f.path, imp, why)
					continue
				}
				t.Errorf("%s imports %s: %s live in %v (design, rule 3)", f.path, imp, home.what, home.homes)
			}
		}
	}
}

func hasAnyPrefix(s string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(s, p) })
}

// pure packages touch no socket, file, goroutine, log or clock.
var pure = []string{
	"internal/control/mesh", "internal/control/validate", "internal/control/analyze",
	"internal/control/translate", "internal/proxy/snapshot", "internal/finding",
}

var impureImports = []string{"net", "net/http", "os", "os/exec", "log", "log/slog", "syscall", "golang.org/x/sys/unix", "io/fs"}

func TestPurity(t *testing.T) {
	for _, f := range tree {
		if !slices.Contains(pure, f.pkg) {
			continue
		}
		for _, imp := range f.imports {
			if slices.Contains(impureImports, imp) {
				if _, ok := allowed("pure", f.path+" "+imp); !ok {
					t.Errorf("%s imports %s: %s is pure (design, rule 2)", f.path, imp, f.pkg)
				}
			}
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%s: go statement in a pure package", fset.Position(n.Pos()))
			case *ast.SelectorExpr:
				if id, ok := n.X.(*ast.Ident); ok && id.Name == "time" && (n.Sel.Name == "Now" || n.Sel.Name == "Since") {
					t.Errorf("%s: time.%s in a pure package; the clock is an argument", fset.Position(n.Pos()), n.Sel.Name)
				}
			}
			return true
		})
	}
}

func TestPackages_haveComments(t *testing.T) {
	documented := map[string]bool{}
	for _, f := range tree {
		documented[f.pkg] = documented[f.pkg] || f.ast.Doc != nil
	}
	for pkg, ok := range documented {
		if !ok {
			t.Errorf("%s has no package comment: say what it is, where in the flow it sits, what it promises, what it does not do", pkg)
		}
	}
}

const (
	maxFunc    = 80
	maxFile    = 600
	maxPackage = 5000
)

func TestSizes(t *testing.T) {
	packages := map[string]int{}
	for _, f := range tree {
		packages[f.pkg] += f.lines
		if f.lines > maxFile {
			tooBig(t, "file", f.path, f.lines, maxFile)
		}
		for _, decl := range f.ast.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			lines := fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line + 1
			if lines > maxFunc {
				tooBig(t, "func", f.path+":"+fn.Name.Name, lines, maxFunc)
			}
		}
	}
	for pkg, lines := range packages {
		if lines > maxPackage {
			tooBig(t, "package", pkg, lines, maxPackage)
		}
	}
}

func tooBig(t *testing.T, rule, what string, lines, limit int) {
	t.Helper()
	if _, ok := allowed(rule, what); ok {
		return
	}
	t.Errorf("%s %s has %d lines, the limit is %d: split it, or give a reason in internal/repocheck/allow.txt", rule, what, lines, limit)
}

// allowed looks a rule and its subject up in allow.txt, whose lines read
// "rule subject: reason".
func allowed(rule, subject string) (reason string, ok bool) {
	for _, line := range allowLines() {
		head, why, found := strings.Cut(line, ": ")
		if found && head == rule+" "+subject {
			return why, true
		}
	}
	return "", false
}

func allowLines() []string {
	data, err := os.ReadFile("allow.txt")
	if err != nil {
		return nil
	}
	var lines []string
	scan := bufio.NewScanner(bytes.NewReader(data))
	for scan.Scan() {
		if line := strings.TrimSpace(scan.Text()); line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	return lines
}

func TestAllowList_hasReasonsAndNothingStale(t *testing.T) {
	for _, line := range allowLines() {
		head, why, found := strings.Cut(line, ": ")
		if !found || len(why) < 15 {
			t.Errorf("allow.txt: %q gives no reason", line)
			continue
		}
		_, subject, _ := strings.Cut(head, " ")
		path, _, _ := strings.Cut(strings.Fields(subject)[0], ":")
		if _, err := os.Stat("../../" + path); err != nil {
			t.Errorf("allow.txt: %s no longer exists: delete the line", path)
		}
	}
}

func TestDependencies_eachHasALine(t *testing.T) {
	doc, err := os.ReadFile("../../docs/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(mod), "\n") {
		fields := strings.Fields(line)
		if len(fields) != 2 || strings.Contains(line, "//") || !strings.HasPrefix(line, "\t") {
			continue
		}
		if !bytes.Contains(doc, []byte("| `"+fields[0]+"` |")) {
			t.Errorf("docs/dependencies.md has no line for %s: why, licence, what would replace it", fields[0])
		}
	}
}

// proxyMustNotLink lists what would make lateen-proxy fat.
var proxyMustNotLink = []string{
	"k8s.io/", "sigs.k8s.io/", "istio.io/api/networking", "istio.io/api/security", "istio.io/api/telemetry",
	"go.opentelemetry.io/collector", "go.opentelemetry.io/otel", "github.com/prometheus/", "modernc.org/", "database/sql",
	"github.com/open-telemetry/", "github.com/spf13/",
}

func TestProxy_staysLean(t *testing.T) {
	modules := map[string]bool{}
	for _, p := range goList(t, "-deps", "./cmd/lateen-proxy") {
		if hasAnyPrefix(p.ImportPath, proxyMustNotLink) {
			t.Errorf("lateen-proxy links %s", p.ImportPath)
		}
		if p.Module != nil && !p.Module.Main {
			modules[p.Module.Path] = true
		}
	}
	want, _ := os.ReadFile("../../docs/lateen-proxy-modules.txt")
	var got []string
	for m := range modules {
		got = append(got, m)
	}
	slices.Sort(got)
	if text := strings.Join(got, "\n") + "\n"; text != string(want) {
		t.Errorf("docs/lateen-proxy-modules.txt does not hold the modules lateen-proxy links; if the change is meant, write:\n%s", text)
	}
}

type listedPackage struct {
	ImportPath string
	Module     *struct {
		Path string
		Main bool
	}
}

func goList(t *testing.T, args ...string) []listedPackage {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Module"}, args...)...)
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []listedPackage
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		var p listedPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

func TestComments_haveNoLooseEnds(t *testing.T) {
	for _, f := range tree {
		for _, group := range f.ast.Comments {
			for _, c := range group.List {
				for _, word := range []string{"TODO", "FIXME", "XXX"} {
					if strings.Contains(c.Text, word) {
						t.Errorf("%s: %s in a comment: a loose end belongs in docs/roadmap.md", fset.Position(c.Pos()), word)
					}
				}
			}
		}
	}
}

func TestMain(m *testing.M) {
	if len(tree) == 0 {
		fmt.Fprintln(os.Stderr, "repocheck: no Go files found")
		os.Exit(1)
	}
	os.Exit(m.Run())
}
