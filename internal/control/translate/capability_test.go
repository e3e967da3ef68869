package translate_test

import (
	"strings"
	"testing"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"lateen.dev/lateen/internal/control/mesh"
	"lateen.dev/lateen/internal/control/translate"
)

// capableNode parses a node with metadata and extensions.
func capableNode(t *testing.T, metadata map[string]any, extensions ...string) translate.Node {
	t.Helper()
	metadata["NAMESPACE"] = "default"
	md, err := structpb.NewStruct(metadata)
	if err != nil {
		t.Fatal(err)
	}
	p := &corepb.Node{Id: "sidecar~10.1.0.2~web.default~default.svc.cluster.local", Metadata: md}
	for _, e := range extensions {
		p.Extensions = append(p.Extensions, &corepb.Extension{Name: e})
	}
	n, err := translate.ParseNode(p)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// sentText is everything that a node is sent for a mesh, as JSON.
func sentText(t *testing.T, n translate.Node, yaml ...string) string {
	t.Helper()
	m, _ := mesh.Build(mesh.Input{Objects: decode(t, yaml...)}, nil)
	return string(resourcesJSON(t, translate.Build(m, n)))
}

const undeclaredPort = `{apiVersion: v1, kind: Service, metadata: {name: a, namespace: default},
  spec: {clusterIP: 10.96.0.9, ports: [{name: anything, port: 8080}]}}`

const hubTelemetry = `{apiVersion: v1, kind: ConfigMap, metadata: {name: istio, namespace: istio-system}, data: {mesh: '{
  "accessLogFile": "/dev/stdout", "accessLogFormat": "%PROTOCOL% %LATEEN_ORIGIN% %LATEEN_POLICY% %RESPONSE_FLAGS%"}'}}`

// TestCapability_extensionsCount: an Envoy is sent Istio's filters if it says that
// it has them, whatever version it names, and their standard equivalents if not.
func TestCapability_extensionsCount(t *testing.T) {
	for _, c := range []struct {
		name       string
		version    string
		extensions []string
		istio, set bool
	}{
		{"silent", "", nil, false, true},
		{"silent Istio", "1.31.0", nil, true, false},
		{"stock", "1.31.0", []string{"envoy.filters.http.set_filter_state", "envoy.built_in_formatters.cel"}, false, true},
		{"bare", "", []string{"envoy.filters.http.router"}, false, false},
		{"Istio", "", []string{"istio.stats", "istio.alpn", "envoy.filters.http.set_filter_state"}, true, false},
	} {
		got := sentText(t, capableNode(t, map[string]any{"ISTIO_VERSION": c.version}, c.extensions...), undeclaredPort)
		if strings.Contains(got, `"istio.alpn"`) != c.istio || strings.Contains(got, "envoy.network.application_protocols") != c.set {
			t.Errorf("%s: Istio's filters %t, set_filter_state %t; want %t, %t", c.name,
				strings.Contains(got, `"istio.alpn"`), strings.Contains(got, "envoy.network.application_protocols"), c.istio, c.set)
		}
	}
}

// TestCapability_ownWordsStay: no other proxy is sent the words of Lateen's
// access-log formats, which it would refuse.
func TestCapability_ownWordsStay(t *testing.T) {
	if got := sentText(t, capableNode(t, map[string]any{}), hubTelemetry); strings.Contains(got, "LATEEN") || !strings.Contains(got, "%PROTOCOL% - - %RESPONSE_FLAGS%") {
		t.Error("an Envoy is sent a format with LATEEN words, or none")
	}
	ours := capableNode(t, map[string]any{"LATEEN_CAPS": []any{"http1"}})
	if got := sentText(t, ours, hubTelemetry); !strings.Contains(got, "%LATEEN_ORIGIN% %LATEEN_POLICY%") {
		t.Error("lateen-proxy is not sent the format as it is")
	}
}

// TestCapability_hubByItsCluster: spans for the built-in hub go to the cluster that
// the node names; one that names none traces nothing rather than being refused.
func TestCapability_hubByItsCluster(t *testing.T) {
	if got := sentText(t, capableNode(t, map[string]any{"LATEEN_OTLP_CLUSTER": "otlp-grpc"}), undeclaredPort); !strings.Contains(got, `"cluster_name": "otlp-grpc"`) {
		t.Error("no tracer leads to the hub")
	}
	if got := sentText(t, capableNode(t, map[string]any{}), undeclaredPort); strings.Contains(got, "envoy.tracers") {
		t.Error("a tracer leads nowhere")
	}
}

// TestCapability_callersDecisionStands: a stock Envoy is sent a sampler that
// follows the caller, and a connection manager that leaves the choice to it. One
// without samplers keeps the share, and so does Istio's proxy.
func TestCapability_callersDecisionStands(t *testing.T) {
	const samplers = "envoy.tracers.opentelemetry.samplers."
	for _, c := range []struct {
		name, version string
		extensions    []string
		sampler       bool
	}{
		{"stock", "", []string{samplers + "parent_based", samplers + "trace_id_ratio_based"}, true},
		{"bare", "", []string{"envoy.filters.http.router"}, false},
		{"Istio", "1.31.0", nil, false},
	} {
		md := map[string]any{"LATEEN_OTLP_CLUSTER": "otlp-grpc", "ISTIO_VERSION": c.version}
		got := sentText(t, capableNode(t, md, c.extensions...), `{apiVersion: v1, kind: Service, metadata: {name: a, namespace: default},
  spec: {clusterIP: 10.96.0.9, ports: [{name: http, port: 8080}]}}`)
		if strings.Contains(got, `"numerator": 10000`) != c.sampler || strings.Contains(got, `"use_request_id_for_trace_sampling": false`) != c.sampler {
			t.Errorf("%s: want a sampler of 1 %%: %t", c.name, c.sampler)
		}
	}
}
