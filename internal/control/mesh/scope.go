package mesh

import (
	"slices"
	"strings"

	meshconfigpb "istio.io/api/mesh/v1alpha1"
	networkingpb "istio.io/api/networking/v1alpha3"
)

// Scope is what one proxy sees of the mesh: visibility by exportTo and the
// egress part of its Sidecar applied.
type Scope struct {
	Namespace string
	// Services are ordered by host; one per host.
	Services []*Service
	// VirtualServices are those of the mesh gateway, by precedence.
	VirtualServices []*VirtualService
	// Sidecar is nil when none applies.
	Sidecar *Sidecar
	// RegistryOnly says that destinations outside the registry are blocked.
	RegistryOnly bool

	byHost map[string]*Service
	// ports limits hosts that were imported by egress listeners with a port.
	ports map[string]map[uint16]bool
}

// Service returns the service of a host in this scope.
func (s *Scope) Service(host string) (*Service, bool) {
	svc, ok := s.byHost[host]
	return svc, ok
}

// HasPort reports whether the scope has the port of a service.
func (s *Scope) HasPort(svc *Service, port uint16) bool {
	only := s.ports[svc.Host]
	return only == nil || only[port]
}

// Scope returns what a sidecar of the given namespace and labels sees. Gateways
// see everything that is exported to their namespace; for them use
// GatewayScope.
func (m *Mesh) Scope(namespace string, labels map[string]string) *Scope {
	s := m.GatewayScope(namespace)
	s.VirtualServices = m.VirtualServicesFor(namespace, MeshGateway)
	s.Sidecar = m.SidecarFor(namespace, labels)
	if s.Sidecar == nil {
		return s
	}
	spec := s.Sidecar.Spec
	if p := spec.GetOutboundTrafficPolicy(); p != nil {
		s.RegistryOnly = p.GetMode() == networkingpb.OutboundTrafficPolicy_REGISTRY_ONLY
	}
	if len(spec.GetEgress()) > 0 {
		s.limit(m, spec.GetEgress())
	}
	return s
}

// GatewayScope returns what a gateway proxy of the given namespace sees.
func (m *Mesh) GatewayScope(namespace string) *Scope {
	s := &Scope{
		Namespace: namespace, byHost: map[string]*Service{},
		RegistryOnly: m.Config.GetOutboundTrafficPolicy().GetMode() == meshconfigpb.MeshConfig_OutboundTrafficPolicy_REGISTRY_ONLY,
	}
	for _, svc := range m.services {
		if s.byHost[svc.Host] != nil {
			continue
		}
		if best, ok := m.ServiceByHost(svc.Host, namespace); ok && best.ExportTo.Allows(best.Namespace, namespace) {
			s.byHost[svc.Host] = best
			s.Services = append(s.Services, best)
		}
	}
	return s
}

// importRule is one "namespace/host" of an egress listener.
type importRule struct {
	namespace, host string
	port            uint16
}

func parseImport(text, own string, port uint16) importRule {
	ns, host, ok := strings.Cut(text, "/")
	if !ok {
		ns, host = "*", text
	}
	if ns == "." {
		ns = own
	}
	return importRule{namespace: ns, host: host, port: port}
}

func (r importRule) covers(namespace, host string) bool {
	return r.namespace != "~" && (r.namespace == "*" || r.namespace == namespace) && HostMatches(r.host, host)
}

// limit keeps what the egress listeners import: services by namespace and host,
// VirtualServices whose hosts overlap, and the destinations of those.
func (s *Scope) limit(m *Mesh, egress []*networkingpb.IstioEgressListener) {
	var rules []importRule
	for _, l := range egress {
		for _, h := range l.GetHosts() {
			rules = append(rules, parseImport(h, s.Namespace, uint16(l.GetPort().GetNumber())))
		}
	}
	keep := map[string]bool{}
	s.ports = map[string]map[uint16]bool{}
	for _, svc := range s.Services {
		all := false
		var ports map[uint16]bool
		for _, r := range rules {
			if !r.covers(svc.Namespace, svc.Host) {
				continue
			}
			keep[svc.Host] = true
			if r.port == 0 {
				all = true
				continue
			}
			if ports == nil {
				ports = map[uint16]bool{}
			}
			ports[r.port] = true
		}
		if !all && ports != nil {
			s.ports[svc.Host] = ports
		}
	}
	s.VirtualServices = slices.DeleteFunc(slices.Clone(s.VirtualServices), func(v *VirtualService) bool {
		for _, r := range rules {
			for _, h := range v.Hosts {
				if r.namespace != "~" && (r.namespace == "*" || r.namespace == v.Namespace) && HostsOverlap(r.host, h) {
					return false
				}
			}
		}
		return true
	})
	for _, v := range s.VirtualServices {
		for h := range v.Destinations() {
			keep[h] = true
		}
	}
	s.Services = slices.DeleteFunc(slices.Clone(s.Services), func(svc *Service) bool {
		if keep[svc.Host] {
			return false
		}
		delete(s.byHost, svc.Host)
		return true
	})
}

// Destinations returns the hosts that the routes of v lead to, mirrors
// included.
func (v *VirtualService) Destinations() map[string]bool {
	out := map[string]bool{}
	add := func(d *networkingpb.Destination) {
		if d.GetHost() != "" {
			out[d.GetHost()] = true
		}
	}
	for _, r := range v.HTTP {
		for _, d := range r.Route.GetRoute() {
			add(d.GetDestination())
		}
		add(r.Route.GetMirror())
		for _, d := range r.Route.GetMirrors() {
			add(d.GetDestination())
		}
	}
	for _, r := range v.TLS {
		for _, d := range r.Route.GetRoute() {
			add(d.GetDestination())
		}
	}
	for _, r := range v.TCP {
		for _, d := range r.Route.GetRoute() {
			add(d.GetDestination())
		}
	}
	return out
}

// VirtualServiceFor returns the VirtualService among list, which is in order of
// precedence, whose host is the most specific that covers host; nil for none.
func VirtualServiceFor(list []*VirtualService, host string) *VirtualService {
	var best *VirtualService
	bestHost := ""
	for _, v := range list {
		i := mostSpecific(v.Hosts, host)
		if i < 0 {
			continue
		}
		if best == nil || moreSpecificThan(v.Hosts[i], bestHost) {
			best, bestHost = v, v.Hosts[i]
		}
	}
	return best
}

// moreSpecificThan reports whether pattern a is strictly more specific than b.
func moreSpecificThan(a, b string) bool {
	if IsWildcard(a) != IsWildcard(b) {
		return !IsWildcard(a)
	}
	return len(a) > len(b)
}
