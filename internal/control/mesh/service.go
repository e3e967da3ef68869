package mesh

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	networkingpb "istio.io/api/networking/v1alpha3"

	"lateen.dev/lateen/internal/resource"
)

// Annotations on Kubernetes Services that Istio reads.
const annotationExportTo = "networking.istio.io/exportTo"

// registry gathers services and their endpoints while a model is built.
type registry struct {
	m      *Mesh
	byKind map[resource.Kind][]*resource.Object
	// slices are the EndpointSlices of a service, by "namespace/name".
	slices map[string][]*resource.Object
	// entries are the WorkloadEntries of a namespace.
	entries map[string][]*resource.Object
}

func newRegistry(m *Mesh, byKind map[resource.Kind][]*resource.Object) *registry {
	r := &registry{m: m, byKind: byKind, slices: map[string][]*resource.Object{}, entries: map[string][]*resource.Object{}}
	for _, o := range byKind["EndpointSlice"] {
		if v, ok := o.EndpointSlice(); ok && v.Service != "" {
			id := o.Namespace + "/" + v.Service
			r.slices[id] = append(r.slices[id], o)
		}
	}
	for _, o := range byKind["WorkloadEntry"] {
		r.entries[o.Namespace] = append(r.entries[o.Namespace], o)
	}
	return r
}

func (r *registry) read() {
	m := r.m
	m.endpoints = map[string][]*Endpoint{}
	aliases := map[string][]string{}
	for _, o := range r.byKind["Service"] {
		v, ok := o.Service()
		if !ok {
			continue
		}
		if v.Type == "ExternalName" {
			if v.ExternalName != "" {
				aliases[v.ExternalName] = append(aliases[v.ExternalName], m.ServiceHost(o.Name, o.Namespace))
			}
			continue
		}
		s := r.kubernetesService(o, v)
		m.services = append(m.services, s)
		r.addEndpoints(s, r.kubernetesEndpoints(o, v, s))
	}
	for _, o := range r.byKind["ServiceEntry"] {
		spec, ok := o.Spec.(*networkingpb.ServiceEntry)
		if !ok {
			continue
		}
		for _, host := range spec.GetHosts() {
			s := r.serviceEntry(o, spec, host)
			m.services = append(m.services, s)
			r.addEndpoints(s, r.entryEndpoints(o, spec, s))
		}
	}
	for _, s := range m.services {
		s.Aliases = aliases[s.Host]
		slices.Sort(s.Aliases)
	}
	r.index()
}

func (r *registry) index() {
	m := r.m
	m.byHost = map[string][]*Service{}
	for _, s := range m.services {
		m.byHost[s.Host] = append(m.byHost[s.Host], s)
	}
	for _, list := range m.byHost {
		slices.SortFunc(list, func(a, b *Service) int {
			return cmp.Or(cmp.Compare(registryRank(a), registryRank(b)), older(a.Object, b.Object))
		})
	}
	slices.SortFunc(m.services, func(a, b *Service) int {
		return cmp.Or(strings.Compare(a.Host, b.Host), strings.Compare(a.Namespace, b.Namespace), older(a.Object, b.Object))
	})
}

// registryRank puts Kubernetes services before ServiceEntries of the same host.
func registryRank(s *Service) int {
	if s.Registry == Kubernetes {
		return 0
	}
	return 1
}

// addEndpoints adds endpoints to a host; several ServiceEntries of one
// namespace for one host share theirs.
func (r *registry) addEndpoints(s *Service, list []*Endpoint) {
	id := serviceID(s)
	all := slices.Concat(r.m.endpoints[id], list)
	slices.SortStableFunc(all, func(a, b *Endpoint) int { return cmp.Compare(a.ServicePort, b.ServicePort) })
	if len(all) > 0 {
		r.m.endpoints[id] = all
	}
}

func (r *registry) kubernetesService(o *resource.Object, v *resource.Service) *Service {
	s := &Service{
		Host: r.m.ServiceHost(o.Name, o.Namespace), Name: o.Name, Namespace: o.Namespace,
		Registry: Kubernetes, Object: o, Headless: v.Headless, VIPs: sortedIPs(v.ClusterIPs),
		Selector: v.Selector, Created: o.Created,
	}
	if len(s.VIPs) == 0 && !s.Headless {
		s.VIPs, s.AutoVIP = sortedIPs(r.m.vips[s.Host]), true
	}
	if s.Headless {
		s.Resolution = Passthrough
	}
	var exportTo []string
	if a := o.Annotations[annotationExportTo]; a != "" {
		for e := range strings.SplitSeq(a, ",") {
			exportTo = append(exportTo, strings.TrimSpace(e))
		}
	}
	s.ExportTo = parseVisibility(exportTo, r.m.Config.GetDefaultServiceExportTo())
	for _, p := range v.Ports {
		proto := servicePortProtocol(p.Number, p.Name, p.Protocol, p.AppProtocol)
		s.Ports = append(s.Ports, Port{
			Name: p.Name, Number: p.Number, Target: p.TargetNumber, TargetName: p.TargetName,
			Protocol: proto, Declared: proto != Auto,
		})
	}
	return s
}

// sortedIPs puts IPv4 before IPv6 and keeps the order within a family.
func sortedIPs(in []netip.Addr) []netip.Addr {
	out := slices.Clone(in)
	slices.SortStableFunc(out, func(a, b netip.Addr) int { return cmp.Compare(a.BitLen(), b.BitLen()) })
	return out
}

func (r *registry) serviceEntry(o *resource.Object, spec *networkingpb.ServiceEntry, host string) *Service {
	s := &Service{
		Host: host, Name: o.Name, Namespace: o.Namespace, Registry: External, Object: o,
		Resolution:      entryResolution(spec.GetResolution()),
		MeshExternal:    spec.GetLocation() == networkingpb.ServiceEntry_MESH_EXTERNAL,
		SubjectAltNames: spec.GetSubjectAltNames(),
		Selector:        spec.GetWorkloadSelector().GetLabels(),
		ExportTo:        parseVisibility(spec.GetExportTo(), r.m.Config.GetDefaultServiceExportTo()),
		Created:         o.Created,
	}
	for _, a := range spec.GetAddresses() {
		if ip, err := netip.ParseAddr(a); err == nil {
			s.VIPs = append(s.VIPs, ip)
			continue
		}
		if p, err := netip.ParsePrefix(a); err == nil {
			if p.IsSingleIP() {
				s.VIPs = append(s.VIPs, p.Addr())
			} else {
				s.CIDRs = append(s.CIDRs, p.Masked())
			}
		}
	}
	if len(spec.GetAddresses()) == 0 && s.Resolution != Passthrough && s.Resolution != DynamicDNS && !IsWildcard(host) {
		s.VIPs, s.AutoVIP = r.m.vips[host], true
	}
	s.VIPs = sortedIPs(s.VIPs)
	for _, p := range spec.GetPorts() {
		proto := ParseProtocol(p.GetProtocol())
		if p.GetProtocol() == "" {
			proto = servicePortProtocol(uint16(p.GetNumber()), p.GetName(), "TCP", "")
		}
		s.Ports = append(s.Ports, Port{
			Name: p.GetName(), Number: uint16(p.GetNumber()), Target: uint16(p.GetTargetPort()),
			Protocol: proto, Declared: proto != Auto,
		})
	}
	return s
}

func entryResolution(r networkingpb.ServiceEntry_Resolution) Resolution {
	switch r {
	case networkingpb.ServiceEntry_STATIC:
		return ClientSideLB
	case networkingpb.ServiceEntry_DNS:
		return DNS
	case networkingpb.ServiceEntry_DNS_ROUND_ROBIN:
		return DNSRoundRobin
	case networkingpb.ServiceEntry_DYNAMIC_DNS:
		return DynamicDNS
	}
	return Passthrough
}
