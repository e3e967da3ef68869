package mesh

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	networkingpb "istio.io/api/networking/v1alpha3"

	"lateen.dev/lateen/internal/resource"
)

// kubernetesEndpoints returns the ready endpoints of a Kubernetes Service: from
// its EndpointSlices if there are any, else from the pods it selects;
// WorkloadEntries that it selects are added to both.
func (r *registry) kubernetesEndpoints(o *resource.Object, v *resource.Service, s *Service) []*Endpoint {
	var out []*Endpoint
	if list := r.slices[o.Namespace+"/"+o.Name]; len(list) > 0 {
		for _, slice := range list {
			out = append(out, r.sliceEndpoints(slice, v, s)...)
		}
	} else if len(v.Selector) > 0 {
		out = r.podEndpoints(s, v.PublishNotReady)
	}
	for _, e := range r.entries[o.Namespace] {
		if spec, ok := e.Spec.(*networkingpb.WorkloadEntry); ok && selects(v.Selector, entryLabels(e, spec)) {
			out = append(out, r.workloadEntry(e, spec, s, e.Name)...)
		}
	}
	slices.SortStableFunc(out, compareEndpoints)
	return preferOneFamily(slices.CompactFunc(out, func(a, b *Endpoint) bool {
		return a.ServicePort == b.ServicePort && a.Port == b.Port && a.Address == b.Address
	}), s)
}

func compareEndpoints(a, b *Endpoint) int {
	return cmp.Or(cmp.Compare(a.ServicePort, b.ServicePort), compareAddresses(a.Address, b.Address), cmp.Compare(a.Port, b.Port))
}

// compareAddresses orders IP addresses as numbers and before everything else.
func compareAddresses(a, b string) int {
	x, errX := netip.ParseAddr(a)
	y, errY := netip.ParseAddr(b)
	switch {
	case errX == nil && errY == nil:
		return x.Compare(y)
	case errX == nil:
		return -1
	case errY == nil:
		return 1
	}
	return strings.Compare(a, b)
}

// preferOneFamily keeps one address of each pod for services that proxies
// balance over, so that a dual-stack pod does not count twice: the family of
// the service's first virtual address, or what the pod has.
func preferOneFamily(list []*Endpoint, s *Service) []*Endpoint {
	if s.Headless {
		return list
	}
	v4 := len(s.VIPs) == 0 || s.VIPs[0].Is4()
	type pod struct {
		port uint16
		name string
	}
	preferred := map[pod]bool{}
	family := func(e *Endpoint) bool { return !strings.Contains(e.Address, ":") == v4 }
	for _, e := range list {
		if e.Pod != "" && family(e) {
			preferred[pod{e.ServicePort, e.Pod}] = true
		}
	}
	return slices.DeleteFunc(list, func(e *Endpoint) bool {
		return e.Pod != "" && preferred[pod{e.ServicePort, e.Pod}] && !family(e)
	})
}

func (r *registry) sliceEndpoints(o *resource.Object, v *resource.Service, s *Service) []*Endpoint {
	slice, _ := o.EndpointSlice()
	var out []*Endpoint
	for _, p := range s.Ports {
		if p.Protocol == UDP {
			continue
		}
		for _, sp := range slice.Ports {
			if sp.Name != p.Name || sp.Protocol == "UDP" || sp.Number == 0 {
				continue
			}
			for _, e := range slice.Endpoints {
				if !v.PublishNotReady && (!e.Ready || e.Terminating) {
					continue
				}
				for _, a := range e.Addresses {
					out = append(out, r.addressEndpoint(s, p, a, sp.Number, e))
				}
			}
		}
	}
	return out
}

func (r *registry) addressEndpoint(s *Service, p Port, a netip.Addr, port uint16, e resource.Endpoint) *Endpoint {
	w := r.m.workloadIP[a]
	if e.Pod != "" {
		w = r.m.workloadKey[resource.Key{Kind: "Pod", Namespace: s.Namespace, Name: e.Pod}]
	}
	if w == nil {
		loc := r.m.nodes[e.NodeName]
		if e.Pod == "" {
			loc = Locality{}
		}
		return &Endpoint{Address: a.String(), Port: port, ServicePort: p.Number, Locality: loc, Weight: 1}
	}
	return r.podEndpoint(w, a, port, p.Number)
}

func (r *registry) podEndpoint(w *Workload, a netip.Addr, port, servicePort uint16) *Endpoint {
	name, rev := CanonicalService(w.Labels, cmp.Or(w.OwnerName, w.Name))
	return &Endpoint{
		Address: a.String(), Port: port, ServicePort: servicePort, Labels: w.Labels,
		Pod: w.Name, Name: cmp.Or(w.OwnerName, w.Name), Namespace: w.Namespace, CanonicalService: name, CanonicalRevision: rev,
		ServiceAccount: w.ServiceAccount, Locality: w.Locality, Weight: 1,
		MTLS: w.Sidecar && r.m.MTLSMode(w.Namespace, w.Labels, port) != MTLSDisable,
	}
}

func (r *registry) podEndpoints(s *Service, notReady bool) []*Endpoint {
	var out []*Endpoint
	for _, w := range r.m.workloads {
		if w.Namespace != s.Namespace || !matches(s.Selector, w.Labels) {
			continue
		}
		if !notReady && (!w.Ready || w.Terminating) {
			continue
		}
		for _, p := range s.Ports {
			port, ok := TargetPort(p, w.Ports)
			if !ok || p.Protocol == UDP {
				continue
			}
			for _, a := range w.IPs {
				out = append(out, r.podEndpoint(w, a, port, p.Number))
			}
		}
	}
	return out
}

// entryEndpoints returns the endpoints of one host of a ServiceEntry.
func (r *registry) entryEndpoints(o *resource.Object, spec *networkingpb.ServiceEntry, s *Service) []*Endpoint {
	if s.Resolution == Passthrough || s.Resolution == DynamicDNS {
		return nil
	}
	var out []*Endpoint
	if len(s.Selector) > 0 {
		for _, e := range r.entries[o.Namespace] {
			if we, ok := e.Spec.(*networkingpb.WorkloadEntry); ok && matches(s.Selector, entryLabels(e, we)) {
				out = append(out, r.workloadEntry(e, we, s, e.Name)...)
			}
		}
		out = append(out, r.podEndpoints(s, false)...)
		slices.SortStableFunc(out, compareEndpoints)
		return preferOneFamily(out, s)
	}
	for i, e := range spec.GetEndpoints() {
		out = append(out, r.workloadEntry(o, e, s, o.Name+"-"+strconv.Itoa(i))...)
	}
	if len(spec.GetEndpoints()) == 0 && (s.Resolution == DNS || s.Resolution == DNSRoundRobin) && !IsWildcard(s.Host) {
		out = r.workloadEntry(o, &networkingpb.WorkloadEntry{Address: s.Host}, s, o.Name)
	}
	slices.SortStableFunc(out, func(a, b *Endpoint) int { return cmp.Compare(a.ServicePort, b.ServicePort) })
	return out
}

// entryLabels are the labels of a WorkloadEntry: those of its spec and its own.
func entryLabels(o *resource.Object, spec *networkingpb.WorkloadEntry) map[string]string {
	if len(o.Labels) == 0 || o.Kind != "WorkloadEntry" {
		return spec.GetLabels()
	}
	out := make(map[string]string, len(o.Labels)+len(spec.GetLabels()))
	for k, v := range o.Labels {
		out[k] = v
	}
	for k, v := range spec.GetLabels() {
		out[k] = v
	}
	return out
}

func (r *registry) workloadEntry(o *resource.Object, e *networkingpb.WorkloadEntry, s *Service, name string) []*Endpoint {
	labels := entryLabels(o, e)
	canonical, rev := CanonicalService(labels, name)
	mtls := labels[labelTLSMode] == "istio" || labels[labelTLSMode] == "" && e.GetServiceAccount() != ""
	var out []*Endpoint
	for _, p := range s.Ports {
		if p.Protocol == UDP {
			continue
		}
		port := cmp.Or(uint16(e.GetPorts()[p.Name]), p.Target, p.Number)
		out = append(out, &Endpoint{
			Address: e.GetAddress(), Port: port, ServicePort: p.Number, Labels: labels,
			Name: name, Namespace: o.Namespace, CanonicalService: canonical, CanonicalRevision: rev,
			ServiceAccount: e.GetServiceAccount(), Locality: parseLocality(e.GetLocality()), Network: e.GetNetwork(),
			Weight: max(e.GetWeight(), 1),
			MTLS:   mtls && !s.MeshExternal && r.m.MTLSMode(o.Namespace, labels, port) != MTLSDisable,
		})
	}
	return out
}

func parseLocality(text string) Locality {
	var l Locality
	l.Region, text, _ = strings.Cut(text, "/")
	l.Zone, l.SubZone, _ = strings.Cut(text, "/")
	return l
}
