package mesh

import (
	"net/netip"
	"slices"
	"strings"

	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

// Services returns every service ordered by host, then namespace.
func (m *Mesh) Services() []*Service { return m.services }

// ServiceByHost returns the service that a caller in namespace means by a fully
// qualified host: one of its own namespace first, else the oldest that is
// visible to it. Hosts of ServiceEntries may exist in several namespaces.
func (m *Mesh) ServiceByHost(host, namespace string) (*Service, bool) {
	var best *Service
	for _, s := range m.byHost[host] {
		if s.Namespace == namespace {
			return s, true
		}
		if best == nil && s.ExportTo.Allows(s.Namespace, namespace) {
			best = s
		}
	}
	return best, best != nil
}

// HasHost reports whether any namespace declares the host.
func (m *Mesh) HasHost(host string) bool { return len(m.byHost[host]) > 0 }

// Endpoints returns the ready endpoints of all ports of a service, ordered by
// port, then address.
func (m *Mesh) Endpoints(s *Service) []*Endpoint { return m.endpoints[serviceID(s)] }

// EndpointsOf returns the ready endpoints of one port of a service.
func (m *Mesh) EndpointsOf(s *Service, port uint16) []*Endpoint {
	var out []*Endpoint
	for _, e := range m.endpoints[serviceID(s)] {
		if e.ServicePort == port {
			out = append(out, e)
		}
	}
	return out
}

// Workloads returns every pod ordered by namespace, then name.
func (m *Mesh) Workloads() []*Workload { return m.workloads }

// Workload returns the pod with the given name.
func (m *Mesh) Workload(namespace, name string) (*Workload, bool) {
	w, ok := m.workloadKey[resource.Key{Kind: "Pod", Namespace: namespace, Name: name}]
	return w, ok
}

// WorkloadByIP returns the pod that has the address.
func (m *Mesh) WorkloadByIP(ip netip.Addr) (*Workload, bool) {
	w, ok := m.workloadIP[ip]
	return w, ok
}

// VirtualServices returns every VirtualService, delegates included, oldest
// first, then by name and namespace.
func (m *Mesh) VirtualServices() []*VirtualService { return m.virtualServices }

// DestinationRules returns every merged DestinationRule in the same order.
func (m *Mesh) DestinationRules() []*DestinationRule { return m.destinationRules }

// Gateways returns every Gateway in the same order.
func (m *Mesh) Gateways() []*Gateway { return m.gateways }

// GatewayByName returns the Gateway "namespace/name".
func (m *Mesh) GatewayByName(fullName string) (*Gateway, bool) {
	g, ok := m.gatewayByName[fullName]
	return g, ok
}

// Sidecars returns every Sidecar.
func (m *Mesh) Sidecars() []*Sidecar { return m.sidecars }

// PeerAuthentications returns every PeerAuthentication.
func (m *Mesh) PeerAuthentications() []*PeerAuthentication { return m.peerAuth }

// AuthorizationPolicies returns every AuthorizationPolicy.
func (m *Mesh) AuthorizationPolicies() []*AuthorizationPolicy { return m.authorization }

// RequestAuthentications returns every RequestAuthentication.
func (m *Mesh) RequestAuthentications() []*RequestAuthentication { return m.requestAuth }

// Telemetries returns every Telemetry.
func (m *Mesh) Telemetries() []*Telemetry { return m.telemetry }

// Namespaces returns every namespace that is declared or used, by name.
func (m *Mesh) Namespaces() []*Namespace {
	out := make([]*Namespace, 0, len(m.namespaces))
	for _, n := range m.namespaces {
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b *Namespace) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Namespace returns one namespace.
func (m *Mesh) Namespace(name string) (*Namespace, bool) {
	n, ok := m.namespaces[name]
	return n, ok
}

// Object returns the accepted object with the given key.
func (m *Mesh) Object(k resource.Key) (*resource.Object, bool) {
	o, ok := m.objects[k]
	return o, ok
}

// Secret returns a Secret of a namespace.
func (m *Mesh) Secret(namespace, name string) (*resource.Object, bool) {
	return m.Object(resource.Key{Kind: "Secret", Namespace: namespace, Name: name})
}

// Findings returns what Build noticed and could not apply, for example a mesh
// configuration that does not parse.
func (m *Mesh) Findings() []finding.Finding { return m.findings }

func serviceID(s *Service) string { return s.Namespace + "/" + s.Host }
