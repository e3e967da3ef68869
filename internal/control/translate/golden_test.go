package translate_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"lateen.dev/lateen/internal/control/mesh"
	"lateen.dev/lateen/internal/control/translate"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// lateenCaps are the abilities of our own proxy today.
func lateenCaps(extra ...string) map[string]bool {
	out := map[string]bool{}
	for _, c := range append([]string{"http1", "http2", "tcp", "tls", "origins", "nds", "rbac", "fault", "cors", "mirror", "outlier"}, extra...) {
		out[c] = true
	}
	return out
}

// goldenNodes are the proxies that every golden input is translated for.
func goldenNodes() map[string]translate.Node {
	ips := func(texts ...string) []netip.Addr {
		var out []netip.Addr
		for _, t := range texts {
			out = append(out, netip.MustParseAddr(t))
		}
		return out
	}
	frontend := translate.Node{
		ID: "sidecar~10.1.0.2~frontend-1.shop~shop.svc.cluster.local", Role: "sidecar", IPs: ips("10.1.0.2"),
		Namespace: "shop", ServiceAccount: "frontend", PodName: "frontend-1", WorkloadName: "frontend",
		ServiceCluster: "frontend.shop", ClusterID: "Kubernetes", MeshID: "cluster.local", Labels: map[string]string{"app": "frontend"},
	}
	orders := frontend
	orders.ID, orders.PodName, orders.WorkloadName = "sidecar~10.1.0.3~orders-v1.shop~shop.svc.cluster.local", "orders-v1", "orders-v1"
	orders.ServiceCluster, orders.ServiceAccount = "orders.shop", "orders"
	orders.Labels = map[string]string{"app": "orders", "version": "v1"}
	orders.IPs = ips("10.1.0.3", "fd00::3")
	orders.Capture, orders.Caps = "mark", lateenCaps()
	v6 := orders
	v6.IPs = ips("fd00::3")
	mark := frontend
	mark.Capture, mark.Caps = "mark", lateenCaps()
	envoy := frontend // announces nothing: a stock Envoy
	gateway := translate.Node{
		ID: "router~10.1.0.9~gateway-1.edge~edge.svc.cluster.local", Role: "router", IPs: ips("10.1.0.9"),
		Namespace: "edge", ServiceAccount: "gateway", PodName: "gateway-1", WorkloadName: "gateway",
		ServiceCluster: "gateway.edge", ClusterID: "Kubernetes", MeshID: "cluster.local", Labels: map[string]string{"istio": "ingressgateway"},
	}
	lateenGateway := gateway
	lateenGateway.Capture, lateenGateway.Caps = "mark", lateenCaps()
	return map[string]translate.Node{
		"frontend-lateen": mark, "orders-lateen-dual": orders, "orders-lateen-v6": v6, "frontend-envoy": envoy,
		"gateway-envoy": gateway, "gateway-lateen": lateenGateway,
	}
}

func goldenMesh(t *testing.T) *mesh.Mesh {
	t.Helper()
	m, _ := mesh.Build(mesh.Input{
		Objects: decode(t, readText(t, filepath.Join("testdata", "shop.yaml"))),
		VIPs:    map[string][]netip.Addr{"api.example.com": {netip.MustParseAddr("240.240.0.1"), netip.MustParseAddr("fd00:240::1")}},
	}, nil)
	return m
}

// TestGolden pins everything that each kind of proxy is sent for one mesh.
func TestGolden(t *testing.T) {
	m := goldenMesh(t)
	for name, node := range goldenNodes() {
		t.Run(name, func(t *testing.T) {
			got := resourcesJSON(t, translate.Build(m, node))
			path := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want := []byte(readText(t, path))
			if !bytes.Equal(got, want) {
				var diffs []string
				var g, w any
				if json.Unmarshal(got, &g) == nil && json.Unmarshal(want, &w) == nil {
					compare("", g, w, &diffs)
				}
				t.Errorf("differs from %s (run with -update if meant):\n%s", path, strings.Join(diffs[:min(len(diffs), 20)], "\n"))
			}
		})
	}
}

// resourcesJSON writes resources by type and name, every key sorted.
func resourcesJSON(t *testing.T, r *translate.Resources) []byte {
	t.Helper()
	out := map[string]map[string]any{}
	for typ, byName := range r.ByType {
		short := typ[strings.LastIndexByte(typ, '.')+1:]
		for name, m := range byName {
			if out[short] == nil {
				out[short] = map[string]any{}
			}
			out[short][name] = toJSON(t, m)
		}
	}
	data, err := json.MarshalIndent(out, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return append(data, '\n')
}

// TestDeterministic translates twice; maps must not show through.
func TestDeterministic(t *testing.T) {
	m := goldenMesh(t)
	for name, node := range goldenNodes() {
		a, b := translate.Build(m, node), translate.Build(m, node)
		if !equalResources(a, b) {
			t.Errorf("%s: two translations of one mesh differ", name)
		}
	}
}

func equalResources(a, b *translate.Resources) bool {
	if len(a.ByType) != len(b.ByType) {
		return false
	}
	for typ, byName := range a.ByType {
		if len(byName) != len(b.ByType[typ]) {
			return false
		}
		for name, m := range byName {
			n := b.ByType[typ][name]
			if n == nil || !bytes.Equal(wire(m), wire(n)) {
				return false
			}
		}
	}
	return true
}

// wire is the encoding that the transport compares.
func wire(m proto.Message) []byte {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(err)
	}
	return data
}

// TestSecretsAreGuarded demands that a proxy is sent no credential by what it
// says of itself.
func TestSecretsAreGuarded(t *testing.T) {
	m := goldenMesh(t)
	secrets := func(n translate.Node) int { return len(translate.Build(m, n).ByType[translate.SecretType]) }
	gateway := goldenNodes()["gateway-lateen"]
	if secrets(gateway) != 1 {
		t.Errorf("the gateway: got %d secrets, want its one certificate", secrets(gateway))
	}
	stranger := gateway
	stranger.PodName = "nobody"
	if secrets(stranger) != 0 {
		t.Error("a pod that nobody knows was sent a secret")
	}
	posing := goldenNodes()["frontend-lateen"]
	posing.Role, posing.Labels = "router", gateway.Labels
	if secrets(posing) != 0 {
		t.Error("a sidecar that calls itself a router was sent a secret")
	}
	elsewhere := gateway
	elsewhere.Namespace = "shop"
	if secrets(elsewhere) != 0 {
		t.Error("a gateway of another namespace was sent a secret")
	}
}
