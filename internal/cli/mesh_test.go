package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lateen.dev/lateen/internal/api"
	"lateen.dev/lateen/internal/finding"
)

// fakeMesh answers as a running control process would.
type fakeMesh struct {
	api.Backend
	objects []api.ObjectItem
	config  api.ProxyResources
	applied []api.Applied
}

func (f *fakeMesh) Status(context.Context) (api.Status, error) {
	return api.Status{
		APIVersion: apiVersion, Version: "1", TrustDomain: "cluster.local", Revision: 3,
		Objects: map[string]int{"Service": 12, "Pod": 2, "Gateway": 1}, Proxies: f.proxies(),
	}, nil
}

func (f *fakeMesh) proxies() []api.ProxyStatus {
	return []api.ProxyStatus{{
		ID: "web-1.default", Role: "sidecar", Since: time.Now(),
		Types: map[string]api.TypeStatus{"LDS": {State: "refused", Error: "bad chain"}, "RDS": {State: "synced"}, "CDS": {State: "synced"}, "EDS": {State: "synced"}},
	}}
}

func (f *fakeMesh) Proxies(context.Context) ([]api.ProxyStatus, error) { return f.proxies(), nil }

func (f *fakeMesh) ProxyResources(context.Context, string) (api.ProxyResources, error) {
	return f.config, nil
}

func (f *fakeMesh) Objects(_ context.Context, q api.ObjectQuery) ([]api.ObjectItem, error) {
	out := []api.ObjectItem{}
	for _, o := range f.objects {
		if (q.Kind == "" || q.Kind == o.Key.Kind) && (q.Name == "" || q.Name == o.Key.Name) && (q.Namespace == "" || q.Namespace == o.Key.Namespace) {
			out = append(out, o)
		}
	}
	return out, nil
}

func (f *fakeMesh) Apply(_ context.Context, a api.Applied) (api.ApplyResult, error) {
	f.applied = append(f.applied, a)
	return api.ApplyResult{Changed: []api.ObjectKey{{Kind: "Service", Namespace: "default", Name: "a"}}, Findings: []finding.Finding{}}, nil
}

// fake serves a mesh in a data directory of its own and returns what runs the
// command line against it.
func fake(t *testing.T, f *fakeMesh) func(args ...string) (out, errs string, code int) {
	t.Helper()
	data := t.TempDir()
	l, err := api.Listen(filepath.Join(data, "run", "control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	log := slog.New(slog.DiscardHandler)
	done := make(chan error, 1)
	go func() { done <- api.Serve(ctx, l, api.Handler(f, nil, log), log) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return func(args ...string) (string, string, int) {
		var out, errs bytes.Buffer
		code := run(context.Background(), append([]string{"--data", data}, args...), &out, &errs)
		return out.String(), errs.String(), code
	}
}

func item(kind, name, source string) api.ObjectItem {
	return api.ObjectItem{
		Key:    api.ObjectKey{Kind: kind, Namespace: "default", Name: name},
		Source: source, Object: json.RawMessage(`{"kind":"` + kind + `"}`),
	}
}

func TestGet_whatIsNotThereFails(t *testing.T) {
	lateen := fake(t, &fakeMesh{objects: []api.ObjectItem{item("VirtualService", "orders", "a.yaml:1")}})
	out, errs, code := lateen("get", "vs/order")
	if code != 1 || out != "" || !strings.Contains(errs, "VirtualService/order.default is not in force") || !strings.Contains(errs, "did you mean VirtualService/orders.default?") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
	out, errs, code = lateen("get", "gateway")
	if code != 0 || out != "" || errs != "no Gateway is in force\n" {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
	if out, _, code = lateen("get", "vs"); code != 0 || !strings.Contains(out, "VirtualService/orders.default  a.yaml:1") {
		t.Errorf("exit %d\n%s", code, out)
	}
}

// TestJSON_carriesItsVersion holds for every command that prints data.
func TestJSON_carriesItsVersion(t *testing.T) {
	f := &fakeMesh{
		objects: []api.ObjectItem{item("Service", "a", "a.yaml:1")},
		config:  api.ProxyResources{"CDS": {"c": json.RawMessage(`{"name":"c"}`)}},
	}
	lateen := fake(t, f)
	manifest := filepath.Join(t.TempDir(), "a.yaml")
	writeFile(t, manifest, "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n")
	for _, args := range [][]string{
		{"status"},
		{"proxy", "status"},
		{"proxy", "config", "cluster", "web"},
		{"proxy", "config", "all", "web"},
		{"get"},
		{"get", "service"},
		{"apply", "-f", manifest},
		{"analyze", "list"},
		{"analyze", manifest},
		{"version"},
	} {
		for _, format := range []string{"json", "yaml"} {
			if format == "yaml" && args[0] == "get" {
				continue // prints manifests, which say their own version
			}
			out, errs, _ := lateen(append(slices.Clone(args), "-o", format)...)
			want := `"apiVersion": "lateen.dev/v1alpha1"`
			if format == "yaml" {
				want = "apiVersion: lateen.dev/v1alpha1"
			}
			if !strings.Contains(out, want) {
				t.Errorf("%v -o %s has no apiVersion:\n%.300s%s", args, format, out, errs)
			}
		}
	}
}

func TestApply_filesGoTogether(t *testing.T) {
	f := &fakeMesh{}
	lateen := fake(t, f)
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "a.yaml"), "a: 1\n")
	writeFile(t, filepath.Join(dir, "b.yaml"), "b: 2\n")
	single := filepath.Join(t.TempDir(), "c.yaml")
	writeFile(t, single, "c: 3\n")
	if _, errs, code := lateen("apply", "-f", dir, "-f", single); code != 0 {
		t.Fatalf("exit %d: %s", code, errs)
	}
	if len(f.applied) != 1 || len(f.applied[0].Manifests) != 3 {
		t.Errorf("%d calls: %+v", len(f.applied), f.applied)
	}
	_, errs, code := lateen("apply", "-f", "missing.yaml")
	if code != 1 || !strings.Contains(errs, "hint:  name an existing file or folder") {
		t.Errorf("exit %d: %s", code, errs)
	}
}

func TestStatus_countsByKindInOrder(t *testing.T) {
	out, _, code := fake(t, &fakeMesh{})("status")
	if code != 0 || !strings.Contains(out, "objects  1 Gateway, 2 Pod, 12 Service\n") {
		t.Errorf("exit %d\n%s", code, out)
	}
	if !strings.Contains(out, "REFUSED") || !strings.Contains(out, "web-1.default refused LDS: bad chain") {
		t.Errorf("a refusal is not told:\n%s", out)
	}
}

func TestProxyConfig_saysConditionsAndWhy(t *testing.T) {
	lateen := fake(t, &fakeMesh{config: api.ProxyResources{
		"RDS": {"8080": json.RawMessage(`{"virtual_hosts":[{"name":"a","routes":[{"name":"canary",
			"match":{"prefix":"/","headers":[{"name":"canary","string_match":{"exact":"true"}},{"name":":method","string_match":{"exact":"GET"}},
			{"name":"x","present_match":true,"invert_match":true}],"query_parameters":[{"name":"v","string_match":{"prefix":"2"}}]},
			"route":{"cluster":"c"}}]}]}`)},
		"CDS":    {"c": json.RawMessage(`{"name":"c","metadata":{"filter_metadata":{"lateen":{"origin":"Service/a.default"}}}}`)},
		"EDS":    {"c": json.RawMessage(`{"endpoints":[{"lb_endpoints":[{"endpoint":{"address":{"socket_address":{"address":"10.0.0.1","port_value":80}}}}]}]}`)},
		"ORIGIN": {"origins": json.RawMessage(`{"places":{"Service/a.default":{"file":"a.yaml","line":3,"column":1}}}`)},
	}})
	out, errs, code := lateen("proxy", "config", "route", "web")
	if want := `prefix /, header canary: true, method: GET, not header x, query v: prefix 2`; code != 0 || !strings.Contains(out, want) {
		t.Errorf("exit %d, want %q\n%s%s", code, want, out, errs)
	}
	for _, what := range []string{"cluster", "endpoint"} {
		if out, _, _ = lateen("proxy", "config", what, "web", "--why"); !strings.Contains(out, "a.yaml:3:1 Service/a.default") {
			t.Errorf("%s does not say why:\n%s", what, out)
		}
	}
}

func TestCompletion_knowsLiveNames(t *testing.T) {
	lateen := fake(t, &fakeMesh{objects: []api.ObjectItem{item("Pod", "web-1", "local"), item("VirtualService", "orders", "/x/config/a.yaml:1")}})
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"logs", ""}, "web-1.default"},
		{[]string{"exec", "w"}, "web-1.default"},
		{[]string{"port-forward", ""}, "web-1.default"},
		{[]string{"proxy", "status", ""}, "web-1.default"},
		{[]string{"proxy", "config", ""}, "listener"},
		{[]string{"proxy", "config", "route", ""}, "web-1.default"},
		{[]string{"get", "VirtualService/"}, "VirtualService/orders.default"},
		{[]string{"delete", ""}, "VirtualService/orders.default"},
		{[]string{"status", "-o", ""}, "yaml"},
		{[]string{"analyze", "--fail-on", ""}, "warning"},
	} {
		out, _, _ := lateen(append([]string{"__complete"}, c.args...)...)
		if !strings.Contains(out, c.want+"\n") {
			t.Errorf("%v completes %q, want %s", c.args, out, c.want)
		}
	}
}

func TestSpellingsOfOtherTools(t *testing.T) {
	lateen := fake(t, &fakeMesh{config: api.ProxyResources{"CDS": {"c": json.RawMessage(`{"name":"c"}`)}}})
	for old, now := range map[string]string{"ps": "proxy status", "proxy-status": "proxy status", "pc cluster web": "proxy config", "proxy-config cluster web": "proxy config"} {
		_, errs, code := lateen(strings.Fields(old)...)
		if code != 0 || !strings.Contains(errs, "lateen "+now) {
			t.Errorf("%s: exit %d, %q", old, code, errs)
		}
	}
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
