package mesh_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"lateen.dev/lateen/internal/control/mesh"
	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

// build makes a mesh of manifests; prev may be nil.
func build(t *testing.T, prev *mesh.Mesh, texts ...string) (*mesh.Mesh, mesh.Diff) {
	t.Helper()
	var all []*resource.Object
	for _, text := range texts {
		objects, findings := resource.Decode("test.yaml", []byte(text))
		if worst, ok := finding.Worst(findings); ok && worst == finding.Error {
			t.Fatalf("decode: %v", findings)
		}
		all = append(all, objects...)
	}
	return mesh.Build(mesh.Input{Objects: all}, prev)
}

func TestHostMatches(t *testing.T) {
	f := func(pattern, host string, want bool) {
		t.Helper()
		if got := mesh.HostMatches(pattern, host); got != want {
			t.Errorf("HostMatches(%q, %q) = %v", pattern, host, got)
		}
	}
	f("a.example.com", "a.example.com", true)
	f("a.example.com", "b.example.com", false)
	f("*.example.com", "a.example.com", true)
	f("*.example.com", "a.b.example.com", true)
	f("*.example.com", "example.com", false)
	f("*.example.com", ".example.com", false)
	f("*.example.com", "*.a.example.com", true)
	f("*.a.example.com", "*.example.com", false)
	f("*", "anything", true)
	f("*", "*.example.com", true)
	f("example.com", "*.example.com", false)
}

func TestServicePortProtocol(t *testing.T) {
	m, _ := build(t, nil, `
apiVersion: v1
kind: Service
metadata: {name: s}
spec:
  clusterIP: 10.0.0.1
  ports:
  - {name: http-web, port: 1}
  - {name: GRPC-x, port: 2}
  - {name: grpc-web-x, port: 3}
  - {name: anything, port: 4}
  - {name: anything2, port: 5, appProtocol: kubernetes.io/h2c}
  - {name: http-not, port: 6, appProtocol: tcp}
  - {name: db, port: 3306}
  - {name: dns, port: 53, protocol: UDP}
  - {name: https, port: 443}
`)
	s, ok := m.ServiceByHost("s.default.svc.cluster.local", "elsewhere")
	if !ok {
		t.Fatal("the service is not in the mesh")
	}
	want := map[uint16]mesh.Protocol{
		1: mesh.HTTP, 2: mesh.GRPC, 3: mesh.GRPCWeb, 4: mesh.Auto, 5: mesh.HTTP2, 6: mesh.TCP,
		3306: mesh.TCP, 53: mesh.UDP, 443: mesh.HTTPS,
	}
	for number, proto := range want {
		if p, ok := s.Port(number); !ok || p.Protocol != proto {
			t.Errorf("port %d: got %q, want %q", number, p.Protocol, proto)
		}
	}
}

const workloads = `
apiVersion: v1
kind: Service
metadata: {name: app}
spec: {clusterIP: 10.0.0.1, selector: {app: app}, ports: [{name: http, port: 80, targetPort: web}]}
---
apiVersion: v1
kind: Pod
metadata: {name: app-1, labels: {app: app, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: app, containers: [{name: c, image: i, ports: [{name: web, containerPort: 8000}]}]}
status: {podIPs: [{ip: 10.1.0.1}, {ip: "fd00::1"}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: app-2, labels: {app: app}}
spec: {containers: [{name: c, image: i, ports: [{name: web, containerPort: 9000}]}]}
status: {podIPs: [{ip: 10.1.0.2}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: app-3, labels: {app: app}}
spec: {containers: [{name: c, image: i}]}
status: {podIPs: [{ip: 10.1.0.3}], conditions: [{type: Ready, status: "False"}]}
`

// endpoints writes the endpoints of the test's service as text.
func endpoints(m *mesh.Mesh) string {
	s, ok := m.ServiceByHost("app.default.svc.cluster.local", "default")
	if !ok {
		return "no service"
	}
	var out []string
	for _, e := range m.Endpoints(s) {
		text := netip.AddrPortFrom(netip.MustParseAddr(e.Address), e.Port).String()
		if e.MTLS {
			text += " mtls"
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

// TestEndpoints wants named target ports resolved pod by pod, one address of
// each dual-stack pod, no pods that are not ready, and EndpointSlices before
// selectors.
func TestEndpoints(t *testing.T) {
	m, _ := build(t, nil, workloads)
	if got, want := endpoints(m), "10.1.0.1:8000 mtls, 10.1.0.2:9000"; got != want {
		t.Errorf("by selector: got %s, want %s", got, want)
	}
	m, _ = build(t, nil, workloads, `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
addressType: IPv4
metadata: {name: app-x, labels: {kubernetes.io/service-name: app}}
ports: [{name: http, port: 8000}]
endpoints:
- {addresses: [10.1.0.1], conditions: {ready: true}, targetRef: {kind: Pod, name: app-1, namespace: default}}
- {addresses: [10.1.0.9], conditions: {ready: false}}
`)
	if got, want := endpoints(m), "10.1.0.1:8000 mtls"; got != want {
		t.Errorf("by slice: got %s, want %s", got, want)
	}
	m, _ = build(t, nil, workloads, `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: off}
spec: {mtls: {mode: DISABLE}}
`)
	if got, want := endpoints(m), "10.1.0.1:8000, 10.1.0.2:9000"; got != want {
		t.Errorf("with DISABLE: got %s, want %s", got, want)
	}
}

// TestMTLSMode walks the levels of PeerAuthentication.
func TestMTLSMode(t *testing.T) {
	m, _ := build(t, nil, `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: mesh, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: ns, namespace: a}
spec: {mtls: {mode: PERMISSIVE}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: w, namespace: a}
spec: {selector: {matchLabels: {app: x}}, mtls: {mode: UNSET}, portLevelMtls: {80: {mode: DISABLE}, 81: {mode: UNSET}}}
`)
	f := func(ns, app string, port uint16, want mesh.MTLSMode) {
		t.Helper()
		if got := m.MTLSMode(ns, map[string]string{"app": app}, port); got != want {
			t.Errorf("%s/%s:%d: got %s, want %s", ns, app, port, got, want)
		}
	}
	f("b", "x", 80, mesh.MTLSStrict)
	f("a", "y", 80, mesh.MTLSPermissive)
	f("a", "x", 80, mesh.MTLSDisable)
	f("a", "x", 81, mesh.MTLSPermissive)
	f("a", "x", 0, mesh.MTLSPermissive)
}

// TestPrecedence covers whose VirtualService and DestinationRule counts.
func TestPrecedence(t *testing.T) {
	m, _ := build(t, nil, workloads, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: wild, namespace: default}
spec: {hosts: ["*.default.svc.cluster.local"], http: [{name: wild, route: [{destination: {host: app}}]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: z-exact, namespace: default}
spec: {hosts: [app], http: [{name: exact, route: [{destination: {host: app}}]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: own, namespace: caller}
spec: {hosts: [app.default.svc.cluster.local], exportTo: ["."], http: [{name: own, route: [{destination: {host: app.default.svc.cluster.local}}]}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: root, namespace: istio-system}
spec: {host: "*.local", trafficPolicy: {tls: {mode: DISABLE}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: b, namespace: default}
spec: {host: app, subsets: [{name: two}], trafficPolicy: {loadBalancer: {simple: RANDOM}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: a, namespace: default}
spec: {host: app, subsets: [{name: one}]}
`)
	host := "app.default.svc.cluster.local"
	route := func(ns string) string {
		v := mesh.VirtualServiceFor(m.VirtualServicesFor(ns, mesh.MeshGateway), host)
		if v == nil {
			return "none"
		}
		return v.HTTP[0].Route.GetName()
	}
	if got := route("default"); got != "exact" {
		t.Errorf("default: got %q, want the exact host", got)
	}
	if got := route("caller"); got != "own" {
		t.Errorf("caller: got %q, want its private one", got)
	}
	s, _ := m.ServiceByHost(host, "default")
	d := m.DestinationRuleFor(s, "caller", nil)
	if d == nil || d.Name != "a" || len(d.Subsets) != 2 || d.Policy.GetLoadBalancer() == nil {
		t.Fatalf("rule of the service's namespace: got %+v, want a with two subsets and b's policy", d)
	}
	if d := m.DestinationRuleFor(&mesh.Service{Host: "x.other.svc.cluster.local", Namespace: "other"}, "caller", nil); d == nil || d.Name != "root" {
		t.Errorf("elsewhere: got %+v, want the root namespace's rule", d)
	}
}

// TestDiff wants each kind of change told apart from the others.
func TestDiff(t *testing.T) {
	policy := `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p}
spec: {action: DENY, rules: [{to: [{operation: {paths: [/x]}}]}]}
`
	first, diff := build(t, nil, workloads, policy)
	if !diff.Full {
		t.Error("the first model is not a full change")
	}
	if _, diff = build(t, first, workloads, policy); !diff.OriginsOnly() {
		t.Errorf("the same text decoded again: got %+v, want places only", diff)
	}
	if _, diff = build(t, first, strings.Replace(workloads, `ip: 10.1.0.2`, `ip: 10.1.0.7`, 1), policy); diff.Full ||
		!diff.Endpoints["app.default.svc.cluster.local"] || len(diff.Services) != 0 || len(diff.Objects) != 0 {
		t.Errorf("an address changed: got %+v", diff)
	}
	if _, diff = build(t, first, workloads, strings.Replace(policy, "/x", "/y", 1)); len(diff.Endpoints) != 0 ||
		!diff.Objects[resource.Key{Kind: "AuthorizationPolicy", Namespace: "default", Name: "p"}] {
		t.Errorf("a policy changed: got %+v", diff)
	}
	if _, diff = build(t, first, workloads); len(diff.Objects) != 1 {
		t.Errorf("a policy went away: got %+v", diff)
	}
	if _, diff = build(t, first, strings.Replace(workloads, "port: 80,", "port: 81,", 1), policy); !diff.Services["app.default.svc.cluster.local"] {
		t.Errorf("a port changed: got %+v", diff)
	}
	if _, diff = build(t, first, workloads, policy, `
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: "outboundTrafficPolicy: {mode: REGISTRY_ONLY}"}
`); !diff.Full {
		t.Errorf("the mesh configuration changed: got %+v", diff)
	}
}

// TestTracing walks the levels of sampling and of providers.
func TestTracing(t *testing.T) {
	config := func(text string) string {
		return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    " +
			strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n    ") + "\n"
	}
	labels := map[string]string{"app": "app"}
	m, _ := build(t, nil, workloads)
	if got := m.TracingFor("default", labels, mesh.Client, nil); got.Sampling != 1 || got.Provider != nil {
		t.Errorf("nothing configured: got %+v", got)
	}
	telemetry := `
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: t, namespace: istio-system}
spec: {tracing: [{providers: [{name: OpenTelemetry}], randomSamplingPercentage: 30}]}
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: w}
spec: {selector: {matchLabels: {app: app}}, tracing: [{match: {mode: SERVER}, disableSpanReporting: true}, {providers: [{name: nobody}]}]}
`
	m, _ = build(t, nil, workloads, config("defaultConfig: {tracing: {sampling: 10}}"), telemetry)
	if got := m.TracingFor("other", nil, mesh.Client, nil); got.Sampling != 30 || got.Provider == nil || !got.Provider.Hub {
		t.Errorf("root level: got %+v", got)
	}
	if got := m.TracingFor("default", labels, mesh.Client, nil); got.Provider != nil || got.Unresolved != "nobody" || got.Disabled {
		t.Errorf("unknown provider: got %+v", got)
	}
	if got := m.TracingFor("default", labels, mesh.Server, nil); !got.Disabled {
		t.Errorf("server side: got %+v", got)
	}
	m, _ = build(t, nil, workloads, config("defaultConfig: {tracing: {sampling: 10, openCensusAgent: {address: \"dns:agent.default:55678\"}}}"))
	if got := m.TracingFor("default", labels, mesh.Client, nil); got.Sampling != 10 || got.Provider == nil || !got.Provider.Hub {
		t.Errorf("agent that is no service: got %+v", got)
	}
	m, _ = build(t, nil, config("defaultConfig: {tracing: {openCensusAgent: {address: \"dns:agent.default:55678\"}}}"), `
apiVersion: v1
kind: Service
metadata: {name: agent}
spec: {clusterIP: 10.0.0.2, ports: [{name: oc, port: 55678}, {name: grpc-otlp, port: 4317}]}
`)
	if got := m.TracingFor("default", labels, mesh.Client, nil).Provider.Config.GetOpentelemetry(); got.GetService() != "agent.default.svc.cluster.local" || got.GetPort() != 4317 {
		t.Errorf("agent that is a service: got %+v", got)
	}
}

// TestScope limits what a sidecar sees.
func TestScope(t *testing.T) {
	m, _ := build(t, nil, workloads, `
apiVersion: v1
kind: Service
metadata: {name: other, namespace: far}
spec: {clusterIP: 10.0.0.3, ports: [{name: http, port: 80}, {name: tcp, port: 81}]}
---
apiVersion: v1
kind: Service
metadata: {name: hidden, namespace: far, annotations: {networking.istio.io/exportTo: "."}}
spec: {clusterIP: 10.0.0.4, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: s, namespace: default}
spec:
  workloadSelector: {labels: {app: app}}
  outboundTrafficPolicy: {mode: REGISTRY_ONLY}
  egress: [{port: {number: 80, protocol: HTTP, name: http}, hosts: ["far/*"]}]
`)
	hosts := func(labels map[string]string) string {
		var out []string
		for _, s := range m.Scope("default", labels).Services {
			out = append(out, strings.TrimSuffix(s.Host, ".svc.cluster.local"))
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	}
	if got, want := hosts(nil), "app.default other.far"; got != want {
		t.Errorf("without Sidecar: got %s, want %s", got, want)
	}
	if got, want := hosts(map[string]string{"app": "app"}), "other.far"; got != want {
		t.Errorf("with Sidecar: got %s, want %s", got, want)
	}
	s := m.Scope("default", map[string]string{"app": "app"})
	svc, _ := s.Service("other.far.svc.cluster.local")
	if !s.RegistryOnly || !s.HasPort(svc, 80) || s.HasPort(svc, 81) {
		t.Errorf("scope: got registry only %v, ports 80 %v 81 %v", s.RegistryOnly, s.HasPort(svc, 80), s.HasPort(svc, 81))
	}
}
