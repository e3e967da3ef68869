package resource

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	networkingv1 "istio.io/api/networking/v1"

	"lateen.dev/lateen/internal/finding"
)

// dump lists the objects and everything found, one line each.
func dump(objects []*Object, findings []finding.Finding) string {
	var b strings.Builder
	for _, o := range objects {
		findings = append(findings, o.Findings()...)
		fmt.Fprintln(&b, o.Key)
	}
	finding.Sort(findings)
	for _, f := range findings {
		fmt.Fprintf(&b, "%s %s %s %s | %s | %s\n", f.Pos, f.Severity, f.Code, f.Path, f.Message, f.Hint)
	}
	return b.String()
}

func TestDecode_cases(t *testing.T) {
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
			name := filepath.Base(file)
			objects, findings := Decode(name, data)
			got := dump(objects, findings)
			want, _ := os.ReadFile(strings.TrimSuffix(file, ".yaml") + ".want")
			if os.Getenv("UPDATE") != "" {
				if err := os.WriteFile(strings.TrimSuffix(file, ".yaml")+".want", []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func TestDecode_encodings(t *testing.T) {
	const manifest = "apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: a\n"
	one := func(name, data, wantKey, wantCode string) {
		t.Helper()
		objects, findings := Decode("f.yaml", []byte(data))
		key, code := "", ""
		if len(objects) == 1 {
			key = objects[0].String()
		}
		if len(findings) > 0 {
			code = findings[0].Code
		}
		if key != wantKey || code != wantCode {
			t.Errorf("%s: got %q %q, want %q %q: %v", name, key, code, wantKey, wantCode, findings)
		}
	}
	const key = "ServiceAccount/a.default"
	one("byte order mark", "\xef\xbb\xbf"+manifest, key, "")
	one("CRLF", strings.ReplaceAll(manifest, "\n", "\r\n"), key, "")
	one("UTF-16", "\xff\xfea\x00", "", finding.Encoding)
	one("Latin-1", "# caf\xe9\n"+manifest, "", finding.Encoding)
	one("tab", "kind: ServiceAccount\nmetadata:\n\tname: a\n", "", finding.Syntax)
	one("template", "kind: {{ .Values.kind }}\nmetadata: {{ x }}: {{\n", "", finding.Syntax)
	one("JSON with tabs", "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"ServiceAccount\", \"metadata\": {\"name\": \"a\"}}", key, "")
	one("ten megabytes", manifest+"  labels: {a: \""+strings.Repeat("x", 10<<20)+"\"}\n", "", finding.TooLarge)
	one("empty", "", "", "")
	one("comments", "# nothing\n---\n# here\n---\n", "", "")
	one("half written", manifest+"  labels: {a: \"b", "", finding.Syntax)
	one("a neighbour is broken", "a: [\n---\n"+manifest, key, finding.Syntax)
	one("a list", "- a\n- b\n", "", finding.NoKind)
}

func TestDecode_aliasBomb(t *testing.T) {
	var b strings.Builder
	b.WriteString("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\nx0: &x0 [a, a, a, a, a, a, a, a, a, a]\n")
	for i := 1; i < 12; i++ {
		fmt.Fprintf(&b, "x%d: &x%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*x%d, ", i-1), 10), ", "))
	}
	b.WriteString("data: {a: *x11}\n")
	raw := strings.Replace(b.String(), "v1\nkind: ConfigMap", "monitoring.coreos.com/v1\nkind: PodMonitor", 1)
	for name, text := range map[string]string{"typed": b.String(), "raw": raw} {
		objects, findings := Decode("bomb.yaml", []byte(text))
		if len(objects) == 1 {
			findings = append(findings, objects[0].Findings()...)
		}
		if worst, _ := finding.Worst(findings); worst != finding.Error {
			t.Errorf("%s: no error: %v", name, findings)
		}
	}
}

func TestDecode_istioDurationsAndJSON(t *testing.T) {
	objects, findings := Decode("f.yaml", []byte(`apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a, namespace: shop, labels: {x: "1"}}
spec:
  hosts: [a]
  http:
  - timeout: 1m30s
    route: [{destination: {host: a, port: {number: 80}}, weight: 100}]
`))
	if len(findings) > 0 || len(objects) != 1 || len(objects[0].Findings()) > 0 {
		t.Fatalf("findings %v", dump(objects, findings))
	}
	o := objects[0]
	vs := o.Spec.(*networkingv1.VirtualService)
	if got := vs.Http[0].Timeout.AsDuration().String(); got != "1m30s" {
		t.Errorf("timeout %s", got)
	}
	first, err := o.JSON()
	if err != nil {
		t.Fatal(err)
	}
	again, fs := DecodeJSON("apply", first)
	if again == nil || len(fs) > 0 {
		t.Fatalf("decode %s: %v", first, fs)
	}
	second, err := again.JSON()
	if err != nil || !bytes.Equal(first, second) {
		t.Errorf("JSON differs after a round trip:\n%s\n%s", first, second)
	}
	if again.Key != o.Key || again.Labels["x"] != "1" || again.Source != "apply" {
		t.Errorf("round trip lost metadata: %+v", again)
	}
	if p := o.Pos("spec.http[0].route[0].destination.port.number"); p.String() != "f.yaml:8:44" {
		t.Errorf("position %s", p)
	}
}

func TestMeshConfig_positionsInBlockScalar(t *testing.T) {
	objects, _ := Decode("mesh.yaml", []byte(`apiVersion: v1
kind: ConfigMap
metadata:
  name: istio
  namespace: istio-system
data:
  mesh: |-

    # a comment
    trustDomain: shop.local
    outboundTrafficPolicy:
      mode: REGISTRY
    defaultConfig:
      tracing:
        sampling: 100.0
    accessLogfile: /dev/stdout
`))
	m, fs := MeshConfig(objects[0])
	if m == nil || m.TrustDomain != "shop.local" || m.DefaultConfig.GetTracing().GetSampling() != 100 {
		t.Fatalf("decoded %v", m)
	}
	want := `mesh.yaml:12:13 error LAT0015 data.mesh@outboundTrafficPolicy.mode | data.mesh@outboundTrafficPolicy.mode is the text "REGISTRY"; it must be one of REGISTRY_ONLY, ALLOW_ANY, ALLOW_ANY_DYNAMIC_DNS | 
mesh.yaml:16:5 error LAT0012 data.mesh@accessLogfile | unknown field "accessLogfile" in data.mesh@ | did you mean "accessLogFile"?
`
	if got := dump(nil, fs); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if p := objects[0].Pos("data.mesh@defaultConfig.tracing.sampling"); p.String() != "mesh.yaml:15:9" {
		t.Errorf("position %s", p)
	}
}

func FuzzDecode(f *testing.F) {
	for _, file := range []string{"testdata/kinds.yaml", "testdata/defects.yaml"} {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("apiVersion: v1\nkind: ConfigMap\nmetadata: &m {name: a, <<: *m}\ndata: {mesh: \"a: [\"}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		objects, findings := Decode("fuzz.yaml", data)
		for _, fd := range findings {
			if fd.Pos.Line < 0 || fd.Pos.Line > bytes.Count(data, []byte("\n"))+2 {
				t.Fatalf("finding outside of the file: %+v", fd)
			}
		}
		for _, o := range objects {
			o.Service()
			o.Pod()
			o.EndpointSlice()
			if o.Kind == KubeConfigMap {
				MeshConfig(o)
			}
			if worst, _ := finding.Worst(o.Findings()); worst == finding.Error {
				continue
			}
			j, err := o.JSON()
			if err != nil {
				t.Fatalf("no JSON for %s: %v", o.Key, err)
			}
			if !json.Valid(j) {
				t.Fatalf("bad JSON for %s: %s", o.Key, j)
			}
		}
	})
}

func TestNearest_countsLetters(t *testing.T) {
	check := func(name, want string) {
		t.Helper()
		if got := Nearest(name, []string{"cart", "host", "subset", "readinessProbe"}); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
	check("crat", "cart")
	check("carts", "cart")
	check("port", "")
	check("Subset", "subset")
	check("subnet", "subset")
	check("readinesProb", "readinessProbe")
	check("", "")
}
