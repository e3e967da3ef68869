package mesh

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"lateen.dev/lateen/internal/resource"
)

// Labels that Istio reads from workloads.
const (
	labelTLSMode           = "security.istio.io/tlsMode"
	labelCanonicalName     = "service.istio.io/canonical-name"
	labelCanonicalRevision = "service.istio.io/canonical-revision"
)

func (m *Mesh) readWorkloads(byKind map[resource.Kind][]*resource.Object) {
	m.workloadKey = map[resource.Key]*Workload{}
	m.workloadIP = map[netip.Addr]*Workload{}
	for _, o := range byKind["Pod"] {
		p, ok := o.Pod()
		if !ok {
			continue
		}
		w := &Workload{
			Name: o.Name, Namespace: o.Namespace, Labels: o.Labels, Annotations: o.Annotations,
			ServiceAccount: cmp.Or(p.ServiceAccount, "default"),
			IPs:            p.IPs, Ports: p.Ports, NodeName: p.NodeName, Locality: m.nodes[p.NodeName],
			OwnerKind: p.OwnerKind, OwnerName: p.OwnerName,
			Sidecar: hasProxy(o.Labels, p.Sidecar), Ready: p.Ready, Terminating: p.Terminating, Object: o,
		}
		m.workloads = append(m.workloads, w)
		m.workloadKey[o.Key] = w
		if p.HostNetwork {
			continue // several pods share the address
		}
		for _, ip := range p.IPs {
			if old := m.workloadIP[ip]; old == nil || old.Terminating && !w.Terminating {
				m.workloadIP[ip] = w
			}
		}
	}
	slices.SortFunc(m.workloads, func(a, b *Workload) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
}

// hasProxy decides whether a workload accepts mutual TLS: Istio's label says so
// or says not; without the label the presence of a sidecar does.
func hasProxy(labels map[string]string, sidecar bool) bool {
	switch labels[labelTLSMode] {
	case "istio":
		return true
	case "":
		return sidecar
	}
	return false
}

// CanonicalService returns the canonical service and revision of a workload
// with these labels, as Istio derives them; fallback is the workload's name.
func CanonicalService(labels map[string]string, fallback string) (name, revision string) {
	name = cmp.Or(labels[labelCanonicalName], labels["app.kubernetes.io/name"], labels["app"], fallback)
	revision = cmp.Or(labels[labelCanonicalRevision], labels["app.kubernetes.io/version"], labels["version"], "latest")
	return name, revision
}

// ServicesOf returns the services that lead to a workload with these
// properties, oldest first and then by host: the services it answers for on
// its inbound side. Readiness does not matter.
func (m *Mesh) ServicesOf(namespace string, labels map[string]string, ips []netip.Addr) []*Service {
	var out []*Service
	for _, s := range m.services {
		if s.Namespace != namespace && s.Registry == Kubernetes {
			continue
		}
		if m.leadsTo(s, namespace, labels, ips) {
			out = append(out, s)
		}
	}
	slices.SortStableFunc(out, func(a, b *Service) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.Host, b.Host))
	})
	return out
}

func (m *Mesh) leadsTo(s *Service, namespace string, labels map[string]string, ips []netip.Addr) bool {
	if len(s.Selector) > 0 {
		return s.Namespace == namespace && matches(s.Selector, labels)
	}
	if s.MeshExternal {
		return false
	}
	for _, e := range m.endpoints[serviceID(s)] {
		a, err := netip.ParseAddr(e.Address)
		if err == nil && slices.Contains(ips, a) {
			return true
		}
	}
	return false
}

// TargetPort returns the port of the workload that a service port leads to, and
// false when its name is not among the container ports.
func TargetPort(p Port, ports []resource.ContainerPort) (uint16, bool) {
	if p.Target != 0 {
		return p.Target, true
	}
	if p.TargetName == "" {
		return p.Number, true
	}
	for _, c := range ports {
		if c.Name == p.TargetName && c.Protocol != "UDP" {
			return c.Number, true
		}
	}
	return 0, false
}
