//go:build linux

package peers

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
)

// Ports of every peer, each in its own namespace.
const (
	gatewayPort = 8080
	backendPort = 9000
	sinkPort    = 4317
	servicePort = 8080
)

// Kind is how many proxies stand between client and server.
type Kind int

// The kinds of setups.
const (
	// Gateway is one proxy on its pod's loopback, the backend beside it.
	Gateway Kind = iota
	// Chain is client, sidecar, mutual TLS, sidecar, server, in two pods.
	Chain
	// Inbound is the server's half of a chain: clients speak mutual TLS to it.
	Inbound
	// Idle is one sidecar without an application that calls anybody.
	Idle
)

// Shape is what a scenario asks of every peer alike.
type Shape struct {
	Kind Kind
	// Protocol of the port: http, tcp, http2 or grpc.
	Protocol string
	// Duties are those of a sidecar: an access log, spans of 1 % of requests,
	// headers, a timeout, a choice among Services hosts.
	Duties   bool
	Services int
}

// Host is the authority of a candidate's requests. Gateways have one for all.
func (s Shape) Host(index int) string {
	if s.Kind == Gateway {
		return fmt.Sprintf("svc-%d.bench.test", s.Services*117/200)
	}
	return fmt.Sprintf("server-%d.bench.svc.cluster.local:%d", index, servicePort)
}

func vip(index int) netip.Addr { return netip.AddrFrom4([4]byte{10, 78, 1, byte(index + 1)}) }

// portName is the name that tells the control plane the protocol.
func (s Shape) portName() string {
	if s.Protocol == "" {
		return "http"
	}
	return s.Protocol
}

const meshConfig = `apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
%s    extensionProviders:
    - name: otel
      opentelemetry: {service: otel.bench.test, port: 4317}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: otel, namespace: istio-system}
spec:
  hosts: [otel.bench.test]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 4317, name: grpc, protocol: GRPC}]
  endpoints: [{address: 10.77.0.1}]
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: mesh, namespace: istio-system}
spec:
  tracing:
  - %s
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: mesh, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
`

const accessLog = `    accessLogFile: /dev/stdout
    accessLogFormat: |
      %START_TIME% "%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL%" %RESPONSE_CODE% %BYTES_SENT% %DURATION% "%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%"
`

// manifests is the mesh of a scenario with so many candidates.
func (s Shape) manifests(candidates int) string {
	var b strings.Builder
	logs, spans := "", "{disableSpanReporting: true}"
	if s.Duties {
		logs, spans = accessLog, "{providers: [{name: otel}], randomSamplingPercentage: 1}"
	}
	fmt.Fprintf(&b, meshConfig, logs, spans)
	if s.Kind == Gateway {
		s.gateway(&b)
		return b.String()
	}
	b.WriteString("---\napiVersion: v1\nkind: Namespace\nmetadata: {name: bench}\n")
	for i := range candidates {
		service(&b, fmt.Sprintf("server-%d", i), vip(i), s.portName())
	}
	for i := range s.Services {
		service(&b, fmt.Sprintf("svc-%d", i), netip.AddrFrom4([4]byte{10, 78, byte(4 + i/250), byte(i%250 + 1)}), s.portName())
	}
	return b.String()
}

// gateway opens one port that leads to the backend for each of the hosts.
func (s Shape) gateway(b *strings.Builder) {
	protocol := map[string]string{"tcp": "TCP", "http2": "HTTP2", "grpc": "GRPC"}[s.Protocol]
	if protocol == "" {
		protocol = "HTTP"
	}
	fmt.Fprintf(b, `---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: bench, namespace: istio-system}
spec:
  selector: {istio: bench}
  servers:
  - port: {number: %d, name: %s, protocol: %s}
    hosts: ["*"]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: backend, namespace: istio-system}
spec:
  hosts: [backend.bench.test]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 8080, name: %[2]s, protocol: %[3]s, targetPort: %[4]d}]
  endpoints: [{address: 127.0.0.1}]
`, gatewayPort, s.portName(), protocol, backendPort)
	if s.Protocol == "tcp" {
		fmt.Fprintf(b, `---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: tcp, namespace: istio-system}
spec:
  hosts: ["*"]
  gateways: [bench]
  tcp:
  - match: [{port: %d}]
    route: [{destination: {host: backend.bench.test, port: {number: 8080}}}]
`, gatewayPort)
		return
	}
	for i := range max(s.Services, 1) {
		fmt.Fprintf(b, `---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: svc-%[1]d, namespace: istio-system}
spec:
  hosts: [svc-%[1]d.bench.test]
  gateways: [bench]
  http:
  - match: [{uri: {prefix: /}}]
    timeout: 15s
    route: [{destination: {host: backend.bench.test, port: {number: 8080}}}]
`, i)
	}
}

// service is a Service with a route of its own; TCP ports take no such route.
func service(b *strings.Builder, name string, ip netip.Addr, port string) {
	fmt.Fprintf(b, `---
apiVersion: v1
kind: Service
metadata: {name: %[1]s, namespace: bench}
spec:
  clusterIP: %[2]s
  clusterIPs: [%[2]s]
  selector: {app: %[1]s}
  ports: [{name: %[3]s, port: %[4]d, targetPort: %[5]d}]
`, name, ip, port, servicePort, backendPort)
	if port == "tcp" {
		return
	}
	fmt.Fprintf(b, `---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: %[1]s, namespace: bench}
spec:
  hosts: [%[1]s]
  http:
  - match: [{uri: {prefix: /}}]
    timeout: 15s
    route: [{destination: {host: %[1]s}}]
`, name)
}

// podObject is a running pod as the supervisor reports it.
func podObject(name, account string, ip netip.Addr) json.RawMessage {
	return fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":%[1]q,"namespace":"bench",
"labels":{"app":%[1]q,"security.istio.io/tlsMode":"istio"}},
"spec":{"serviceAccountName":%[2]q,"containers":[{"name":"app","image":"app","ports":[{"containerPort":%[4]d}]}]},
"status":{"phase":"Running","podIP":%[3]q,"podIPs":[{"ip":%[3]q}],"conditions":[{"type":"Ready","status":"True"}]}}`,
		name, account, ip, backendPort)
}

// slice is the one endpoint of a service.
func slice(name, port string, ip netip.Addr) json.RawMessage {
	return fmt.Appendf(nil, `{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":"%[1]s-x","namespace":"bench",
"labels":{"kubernetes.io/service-name":%[1]q}},"addressType":"IPv4","ports":[{"name":%[2]q,"port":%[4]d,"protocol":"TCP"}],
"endpoints":[{"addresses":[%[3]q],"conditions":{"ready":true},"targetRef":{"kind":"Pod","name":%[1]q,"namespace":"bench"}}]}`,
		name, port, ip, backendPort)
}

// local is what runs: the candidates' pods and an endpoint of each service.
func (s Shape) local(pods [][]*Pod) []json.RawMessage {
	out := []json.RawMessage{}
	if s.Kind == Gateway {
		return out
	}
	for i, pair := range pods {
		server := pair[len(pair)-1]
		name := fmt.Sprintf("server-%d", i)
		out = append(out, podObject(name, "server", server.IP), slice(name, s.portName(), server.IP))
		if len(pair) == 2 {
			out = append(out, podObject(fmt.Sprintf("client-%d", i), "client", pair[0].IP))
		}
	}
	for i := range s.Services {
		name := fmt.Sprintf("svc-%d", i)
		ip := netip.AddrFrom4([4]byte{10, 77, byte(100 + i/250), byte(i%250 + 1)})
		out = append(out, podObject(name, "server", ip), slice(name, s.portName(), ip))
	}
	return out
}
