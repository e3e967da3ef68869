package translate_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sort"
	"strings"
	"testing"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"lateen.dev/lateen/internal/control/mesh"
	"lateen.dev/lateen/internal/control/translate"
	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

// The tests in this file compare our xDS with what Istio's control plane makes
// of the same input. They need its recorded answers: a folder named by
// LATEEN_REFERENCE, or ../shared/reference beside the repository.

func referenceDir(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("LATEEN_REFERENCE")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "..", "shared", "reference")
	}
	dir = filepath.Join(dir, "istiod")
	if _, err := os.Stat(filepath.Join(dir, "nodes.json")); err != nil {
		t.Skipf("skipped: no reference data: %v (set LATEEN_REFERENCE)", err)
	}
	return dir
}

// section names the parts of a reference file and their xDS types.
var section = map[string]string{
	"clusters": translate.ClusterType, "endpoints": translate.EndpointType,
	"listeners": translate.ListenerType, "routes": translate.RouteType, "name_table": translate.NameType,
}

// kubernetesService is the service that the API server of the recording had.
const kubernetesService = `{apiVersion: v1, kind: Service, metadata: {name: kubernetes, namespace: default},
  spec: {clusterIP: 10.96.0.1, ports: [{name: https, port: 443}]}}`

func decode(t *testing.T, texts ...string) []*resource.Object {
	t.Helper()
	byKey := map[resource.Key]*resource.Object{}
	for i, text := range texts {
		objects, findings := resource.Decode(fmt.Sprintf("input-%d.yaml", i), []byte(text))
		if worst, ok := finding.Worst(findings); ok && worst == finding.Error {
			t.Fatalf("decode input %d: %v", i, findings)
		}
		for _, o := range objects {
			byKey[o.Key] = o
		}
	}
	var out []*resource.Object
	for _, o := range byKey {
		out = append(out, o)
	}
	return out
}

func readText(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// referenceNode reads one node of nodes.json.
func referenceNode(t *testing.T, dir, name string) translate.Node {
	t.Helper()
	var nodes []struct {
		File, ID, Cluster string
		Locality          struct{ Region, Zone string }
		Metadata          map[string]any
	}
	if err := json.Unmarshal([]byte(readText(t, filepath.Join(dir, "nodes.json"))), &nodes); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		if n.File != name {
			continue
		}
		md, err := structpb.NewStruct(n.Metadata)
		if err != nil {
			t.Fatal(err)
		}
		node, err := translate.ParseNode(&corepb.Node{
			Id: n.ID, Cluster: n.Cluster, Metadata: md, Locality: &corepb.Locality{Region: n.Locality.Region, Zone: n.Locality.Zone},
		})
		if err != nil {
			t.Fatal(err)
		}
		return node
	}
	t.Fatalf("no node %q in nodes.json", name)
	return translate.Node{}
}

// readReference reads a reference file and resolves its internal pointers.
func readReference(t *testing.T, path string) map[string]any {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal([]byte(readText(t, path)), &doc); err != nil {
		t.Fatal(err)
	}
	return deref(doc, doc).(map[string]any)
}

func deref(doc, v any) any {
	switch v := v.(type) {
	case map[string]any:
		if ref, ok := v["$ref"].(string); ok {
			return deref(doc, pointer(doc, ref))
		}
		out := make(map[string]any, len(v))
		for k, x := range v {
			out[k] = deref(doc, x)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, x := range v {
			out[i] = deref(doc, x)
		}
		return out
	}
	return v
}

func pointer(doc any, ref string) any {
	at := doc
	for _, p := range strings.Split(strings.TrimPrefix(ref, "#/"), "/") {
		p = strings.NewReplacer("~1", "/", "~0", "~").Replace(p)
		switch x := at.(type) {
		case map[string]any:
			at = x[p]
		case []any:
			var i int
			_, _ = fmt.Sscan(p, &i)
			at = x[i]
		}
	}
	return at
}

// toJSON returns a message as the reference writes it.
func toJSON(t *testing.T, m proto.Message) any {
	t.Helper()
	data, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// compare lists the paths at which two JSON values differ.
func compare(path string, got, want any, out *[]string) {
	if reflect.DeepEqual(got, want) {
		return
	}
	switch w := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			break
		}
		keys := map[string]bool{}
		for k := range w {
			keys[k] = true
		}
		for k := range g {
			keys[k] = true
		}
		for _, k := range slices.Sorted(func(yield func(string) bool) {
			for k := range keys {
				if !yield(k) {
					return
				}
			}
		}) {
			compare(path+"."+k, g[k], w[k], out)
		}
		return
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(w) {
			break
		}
		for i := range w {
			compare(fmt.Sprintf("%s[%d]", path, i), g[i], w[i], out)
		}
		return
	}
	text := func(v any) string {
		data, _ := json.Marshal(v)
		if len(data) > 600 {
			return string(data[:600]) + "…"
		}
		return string(data)
	}
	*out = append(*out, fmt.Sprintf("%s\n\tgot  %s\n\twant %s", path, text(got), text(want)))
}

// referenceCase is one folder and node of the reference.
type referenceCase struct {
	folder, node string
	// skip names resources and paths (substrings of "type/name.path") where we
	// differ on purpose, each with the reason.
	skip map[string]string
}

func loadReference(t *testing.T, dir string, c referenceCase) (changed map[string]map[string]any, removed map[string][]string) {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(dir, c.folder, c.node+"*.json"))
	changed, removed = map[string]map[string]any{}, map[string][]string{}
	for _, f := range files {
		base := strings.TrimSuffix(filepath.Base(f), ".json")
		if base != c.node && !strings.HasPrefix(base, c.node+".") {
			continue
		}
		doc := readReference(t, f)
		parts := doc
		if ch, ok := doc["changed"].(map[string]any); ok {
			parts = ch
		}
		for s, v := range parts {
			m, ok := v.(map[string]any)
			if !ok {
				continue
			}
			if changed[s] == nil {
				changed[s] = map[string]any{}
			}
			for name, r := range m {
				changed[s][name] = r
			}
		}
		if rm, ok := doc["removed"].(map[string]any); ok {
			for s, v := range rm {
				for _, n := range v.([]any) {
					removed[s] = append(removed[s], n.(string))
				}
			}
		}
	}
	return changed, removed
}

func TestReference(t *testing.T) {
	dir := referenceDir(t)
	for _, c := range referenceCases {
		t.Run(c.folder+"/"+c.node, func(t *testing.T) {
			texts := []string{readText(t, filepath.Join(dir, "01-baseline", "input.yaml")), kubernetesService}
			if c.folder != "01-baseline" {
				texts = append(texts, readText(t, filepath.Join(dir, c.folder, "input.yaml")))
			}
			m, _ := mesh.Build(mesh.Input{Objects: decode(t, texts...)}, nil)
			res := translate.Build(m, referenceNode(t, dir, c.node))
			changed, removed := loadReference(t, dir, c)
			var diffs []string
			compared := 0
			for s, typ := range section {
				for name, want := range changed[s] {
					compared++
					diffs = append(diffs, compareResource(t, res, s, typ, name, want)...)
				}
				for _, name := range removed[s] {
					if s != "name_table" && res.ByType[typ][name] != nil {
						diffs = append(diffs, s+"/"+name+" should be gone")
					}
				}
			}
			if compared == 0 {
				t.Fatal("nothing compared: the reference has no such file")
			}
			reportDifferences(t, c, diffs)
		})
	}
}

func compareResource(t *testing.T, res *translate.Resources, s, typ, name string, want any) []string {
	t.Helper()
	var diffs []string
	if s == "name_table" {
		table := toJSON(t, res.ByType[typ][translate.NameTable]).(map[string]any)["table"].(map[string]any)
		for host, w := range want.(map[string]any) {
			compare("name_table/"+host, table[host], w, &diffs)
		}
		return diffs
	}
	got := res.ByType[typ][name]
	if got == nil {
		return []string{s + "/" + name + " is missing"}
	}
	compare(s+"/"+name, toJSON(t, got), want, &diffs)
	return diffs
}

// reportDifferences fails for every difference without a reason, and for every
// reason that no difference needs any more.
func reportDifferences(t *testing.T, c referenceCase, diffs []string) {
	t.Helper()
	used := map[string]bool{}
	var bad []string
next:
	for _, d := range diffs {
		for part := range c.skip {
			if strings.Contains(strings.SplitN(d, "\n", 2)[0], part) {
				used[part] = true
				continue next
			}
		}
		bad = append(bad, d)
	}
	sort.Strings(bad)
	if n := len(bad); n > 0 {
		t.Errorf("%d differences:\n%s", n, strings.Join(bad[:min(n, 40)], "\n"))
	}
	for part, why := range c.skip {
		if !used[part] {
			t.Errorf("%q is excused (%s) and does not differ", part, why)
		}
	}
}

var customDenied = map[string]string{
	"virtualInbound.filter_chains": "CUSTOM denies until external authorization is called",
}

var dynamicDNS = map[string]string{
	"*.dyn.example.com": "DYNAMIC_DNS is not applied yet",
	"_7005":             "DYNAMIC_DNS is not applied yet",
	"_9443":             "DYNAMIC_DNS is not applied yet",
	"routes/7005":       "DYNAMIC_DNS is not applied yet",
}

var dynamicDNSGateway = map[string]string{"*.dyn.example.com": "DYNAMIC_DNS is not applied yet"}

var referenceCases = []referenceCase{
	{folder: "01-baseline", node: "sidecar-go-app"},
	{folder: "01-baseline", node: "sidecar-frontend"},
	{folder: "01-baseline", node: "sidecar-tcp-svc"},
	{folder: "01-baseline", node: "sidecar-none", skip: map[string]string{
		"127.0.0.1_443": "the API server's own service was older than the others in the recording",
	}},
	{folder: "01-baseline", node: "sidecar-tproxy"},
	{folder: "01-baseline", node: "gateway"},
	{folder: "02-canary-timeout-retry", node: "sidecar-go-app"},
	{folder: "02-canary-timeout-retry", node: "sidecar-none"},
	{folder: "02-canary-timeout-retry", node: "gateway"},
	{folder: "03-http-route-actions", node: "sidecar-go-app"},
	{folder: "04-destination-rules", node: "sidecar-go-app", skip: map[string]string{
		"locality_weighted_lb_config":                                           "localities are not weighted yet",
		"frontend.default.svc.cluster.local.endpoints[0].load_balancing_weight": "localities are not weighted yet",
		"round_robin_lb_config":                                                 "warm-up is not applied yet",
		"sniff-svc.default.svc.cluster.local.transport_socket":                  "the PROXY protocol is not applied yet",
	}},
	{folder: "05-peer-authentication", node: "sidecar-go-app"},
	{folder: "05-peer-authentication", node: "sidecar-frontend"},
	{folder: "05-peer-authentication", node: "sidecar-tcp-svc"},
	{folder: "06-authorization", node: "sidecar-go-app", skip: customDenied},
	{folder: "06-authorization", node: "sidecar-frontend", skip: customDenied},
	{folder: "06-authorization", node: "sidecar-tcp-svc"},
	{folder: "08-telemetry-otlp-grpc", node: "sidecar-go-app"},
	{folder: "08-telemetry-otlp-grpc", node: "sidecar-frontend"},
	{folder: "08-telemetry-otlp-grpc", node: "sidecar-tcp-svc"},
	{folder: "09-telemetry-otlp-http", node: "sidecar-go-app"},
	{folder: "10-gateway", node: "gateway", skip: map[string]string{
		"/outbound_.":                "AUTO_PASSTHROUGH is not applied yet",
		"0.0.0.0_8443.filter_chains": "AUTO_PASSTHROUGH is not applied yet",
	}},
	{folder: "10-gateway", node: "sidecar-go-app"},
	{folder: "11-service-entry", node: "sidecar-go-app", skip: dynamicDNS},
	{folder: "11-service-entry", node: "gateway", skip: dynamicDNSGateway},
	{folder: "12-registry-only", node: "sidecar-go-app"},
	{folder: "14-tls-tcp-routes", node: "sidecar-go-app", skip: map[string]string{
		"10.96.1.6_9001.filter_chains[0].metadata": "every chain of a route names its VirtualService",
	}},
	{folder: "17-mesh-config", node: "sidecar-go-app", skip: map[string]string{
		"suppress_envoy_headers":       "proxyHeaders is not applied yet",
		"server_header_transformation": "proxyHeaders is not applied yet",
		"server_name":                  "proxyHeaders is not applied yet",
	}},
	{folder: "19-kubernetes-services", node: "sidecar-go-app", skip: map[string]string{
		"8087||near":               "trafficDistribution is not applied yet",
		"8086||local-only":         "internalTrafficPolicy is not applied yet",
		"0.0.0.0_83.filter_chains": "gRPC-Web is not translated to gRPC yet",
		"10.96.6.1_27017":          "Mongo is carried as TCP",
	}},
	{folder: "20-precedence", node: "sidecar-go-app"},
	{folder: "20-precedence", node: "sidecar-none"},
}

// TestAuthorizationReference compares every authorization filter with the
// recording one by one, external authorization apart, which TestReference has
// to excuse as a whole.
func TestAuthorizationReference(t *testing.T) {
	dir := referenceDir(t)
	input := []string{
		readText(t, filepath.Join(dir, "01-baseline", "input.yaml")), kubernetesService,
		readText(t, filepath.Join(dir, "06-authorization", "input.yaml")),
	}
	m, _ := mesh.Build(mesh.Input{Objects: decode(t, input...)}, nil)
	for _, node := range []string{"sidecar-go-app", "sidecar-frontend"} {
		res := translate.Build(m, referenceNode(t, dir, node))
		changed, _ := loadReference(t, dir, referenceCase{folder: "06-authorization", node: node})
		want := rbacFilters(changed["listeners"]["virtualInbound"])
		got := rbacFilters(toJSON(t, res.ByType[translate.ListenerType]["virtualInbound"]))
		if len(want) == 0 {
			t.Fatalf("%s: the reference has no authorization", node)
		}
		var diffs []string
		compare(node, got, want, &diffs)
		if len(diffs) > 0 {
			t.Errorf("%d differences:\n%s", len(diffs), strings.Join(diffs[:min(len(diffs), 10)], "\n"))
		}
	}
}

// rbacFilters lists the authorization filters of a listener, chain by chain,
// without those that belong to external authorization.
func rbacFilters(listener any) []any {
	var out []any
	add := func(list any) {
		filters, _ := list.([]any)
		for _, f := range filters {
			name, _ := f.(map[string]any)["name"].(string)
			data, _ := json.Marshal(f)
			if strings.HasSuffix(name, ".rbac") && !strings.Contains(string(data), "istio-ext-authz") {
				out = append(out, f)
			}
		}
	}
	for _, c := range listener.(map[string]any)["filter_chains"].([]any) {
		out = append(out, c.(map[string]any)["filter_chain_match"])
		add(c.(map[string]any)["filters"])
		for _, f := range c.(map[string]any)["filters"].([]any) {
			add(f.(map[string]any)["typed_config"].(map[string]any)["http_filters"])
		}
	}
	return out
}
