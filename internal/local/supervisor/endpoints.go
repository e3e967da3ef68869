package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"lateen.dev/lateen/internal/api"
	"lateen.dev/lateen/internal/dns"
	"lateen.dev/lateen/internal/egress"
	"lateen.dev/lateen/internal/local/manifest"
	"lateen.dev/lateen/internal/local/nft"
	"lateen.dev/lateen/internal/local/pod"
)

// localState is what was last written to the control plane.
type localState struct {
	mu   sync.Mutex
	sent map[api.ObjectKey]json.RawMessage
}

// writeAll replaces what the control plane knows of this node; it is the first
// thing after every connection.
func (s *Supervisor) writeAll(ctx context.Context) error {
	now := s.localObjects()
	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	state := api.LocalState{Replace: true, Put: slices.Collect(maps.Values(now))}
	if err := s.o.Control.WriteLocal(ctx, state); err != nil {
		return err
	}
	s.state.sent = now
	s.wake()
	return nil
}

// writeChanges sends what has changed since.
func (s *Supervisor) writeChanges(ctx context.Context) error {
	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	if s.state.sent == nil {
		return nil // not connected yet: writeAll comes first
	}
	now := s.localObjects()
	var state api.LocalState
	for k, v := range now {
		if !bytes.Equal(s.state.sent[k], v) {
			state.Put = append(state.Put, v)
		}
	}
	for k := range s.state.sent {
		if _, ok := now[k]; !ok {
			state.Delete = append(state.Delete, k)
		}
	}
	if len(state.Put)+len(state.Delete) == 0 {
		return nil
	}
	if err := s.o.Control.WriteLocal(ctx, state); err != nil {
		return err
	}
	s.state.sent = now
	return nil
}

// localObjects are the Pods and EndpointSlices as they are now.
func (s *Supervisor) localObjects() map[api.ObjectKey]json.RawMessage {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[api.ObjectKey]json.RawMessage{}
	put := func(kind string, m manifest.Metadata, v any) {
		data, err := json.Marshal(v)
		if err != nil {
			s.o.Log.Error("encode for the control plane", "kind", kind, "name", m.Name, "error", err)
			return
		}
		out[api.ObjectKey{Kind: kind, Namespace: m.Namespace, Name: m.Name}] = data
	}
	for _, p := range s.pods {
		st := p.Status()
		if len(st.IPs) == 0 || ended(p) {
			continue
		}
		m := *p.Config().Manifest
		m.Spec.NodeName = s.o.Env.NodeName
		m.Status = podStatus(st)
		put("Pod", m.Metadata, m)
	}
	for _, key := range s.sortedKeys() {
		if svc, ok := s.objects[key].value.(*manifest.Service); ok && len(svc.Spec.Selector) > 0 {
			for _, slice := range s.slices(key, svc) {
				put("EndpointSlice", slice.Metadata, slice)
			}
		}
	}
	return out
}

func ended(p *running) bool {
	select {
	case <-p.Done():
		return true
	default:
		return false
	}
}

func podStatus(st pod.Status) *manifest.PodStatus {
	ready := "False"
	if st.Ready {
		ready = "True"
	}
	started := st.Started.UTC()
	out := &manifest.PodStatus{
		Phase: st.Phase, PodIP: st.IPs[0].String(), Message: st.Message, StartTime: &started,
		Conditions: []manifest.PodCondition{{Type: "Ready", Status: ready}, {Type: "ContainersReady", Status: ready}},
	}
	for _, ip := range st.IPs {
		out.PodIPs = append(out.PodIPs, manifest.PodIP{IP: ip.String()})
	}
	for _, c := range st.Containers {
		out.ContainerStatuses = append(out.ContainerStatuses, manifest.ContainerStatus{
			Name: c.Name, Ready: c.Ready, RestartCount: c.Restarts, Image: c.Image,
		})
	}
	return out
}

// backend is a pod behind a Service.
type backend struct {
	run    *running
	status pod.Status
}

func (s *Supervisor) backends(namespace string, svc *manifest.Service) []backend {
	var out []backend
	for _, p := range s.pods {
		m := p.Config().Manifest
		if m.Metadata.Namespace != namespace || !selects(svc.Spec.Selector, m.Metadata.Labels) || ended(p) {
			continue
		}
		st := p.Status()
		if len(st.IPs) == 0 || st.Phase == "Succeeded" || st.Phase == "Failed" {
			continue
		}
		if svc.Spec.PublishNotReadyAddresses {
			st.Ready = true
		}
		out = append(out, backend{p, st})
	}
	return out
}

// slices makes the EndpointSlices of a Service: one per address family and set of
// port numbers, as named ports may differ between pods.
func (s *Supervisor) slices(key api.ObjectKey, svc *manifest.Service) []*manifest.EndpointSlice {
	var order []*manifest.EndpointSlice
	byPorts := map[string]*manifest.EndpointSlice{}
	backends := s.backends(key.Namespace, svc)
	open := s.opens(key, backends, time.Now())
	for _, b := range backends {
		b.status.Ready = b.status.Ready && open
		ports := endpointPorts(svc, b.run.Config().Manifest.Spec.Containers)
		for _, ip := range b.status.IPs {
			family := "IPv4"
			if ip.Is6() {
				family = "IPv6"
			}
			id := fmt.Sprint(family, ports)
			slice := byPorts[id]
			if slice == nil {
				slice = &manifest.EndpointSlice{
					TypeMeta: manifest.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
					Metadata: manifest.Metadata{
						Name: fmt.Sprintf("%s-%s-%d", key.Name, strings.ToLower(family), len(order)), Namespace: key.Namespace,
						Labels: map[string]string{"kubernetes.io/service-name": key.Name},
					},
					AddressType: family, Ports: ports, Endpoints: []manifest.Endpoint{},
				}
				byPorts[id] = slice
				order = append(order, slice)
			}
			slice.Endpoints = append(slice.Endpoints, manifest.Endpoint{
				Addresses: []string{ip.String()}, NodeName: s.o.Env.NodeName,
				Conditions: manifest.EndpointConditions{
					Ready: b.status.Ready, Serving: b.status.Ready || b.status.Stopping, Terminating: b.status.Stopping,
				},
				TargetRef: manifest.ObjectReference{Kind: "Pod", Namespace: key.Namespace, Name: b.status.Name, UID: b.status.UID},
			})
		}
	}
	return order
}

// openLimit bounds how long the first ready pod of a Service waits for the others.
const openLimit = 2 * time.Second

// opens says whether the endpoints of a Service may be published. When a Service
// begins to serve, its endpoints appear together: else a version of it whose pods
// are some milliseconds later than the others answers 503 to its share of the
// requests, although some have succeeded already. Once open it stays so.
func (s *Supervisor) opens(key api.ObjectKey, backends []backend, now time.Time) bool {
	since, waiting := s.opening[key]
	if waiting && since.IsZero() {
		return true
	}
	ready := 0
	for _, b := range backends {
		if b.status.Ready {
			ready++
		}
	}
	switch {
	case ready == 0:
		return false
	case ready == len(backends), waiting && now.Sub(since) >= openLimit:
		s.opening[key] = time.Time{}
		return true
	case !waiting:
		s.opening[key] = now
		time.AfterFunc(openLimit, s.wake)
	}
	return false
}

func endpointPorts(svc *manifest.Service, containers []manifest.Container) []manifest.EndpointPort {
	var out []manifest.EndpointPort
	for _, p := range svc.Spec.Ports {
		target := targetPort(p, containers)
		if target == 0 {
			continue // no container has a port of that name
		}
		proto := p.Protocol
		if proto == "" {
			proto = "TCP"
		}
		out = append(out, manifest.EndpointPort{Name: p.Name, Protocol: proto, Port: target})
	}
	return out
}

// applyServices brings the node's rules up to date.
func (s *Supervisor) applyServices() {
	var rules nft.Services
	for _, key := range s.sortedKeys() {
		svc, ok := s.objects[key].value.(*manifest.Service)
		if !ok {
			continue
		}
		backends := s.backends(key.Namespace, svc)
		for _, vip := range clusterIPs(svc) {
			for _, p := range svc.Spec.Ports {
				rules.Ports = append(rules.Ports, servicePort(vip, p, backends))
			}
		}
	}
	for _, p := range s.pods {
		rules.Pods = append(rules.Pods, p.Status().IPs...)
	}
	digest := fmt.Sprint(rules)
	if digest == s.rules {
		return
	}
	if err := s.o.Services(rules); err != nil {
		s.tell(api.ObjectKey{Kind: "Service"}, fmt.Errorf("services are not up to date in the kernel: %w", err))
		return
	}
	s.rules = digest
}

func servicePort(vip netip.Addr, p manifest.ServicePort, backends []backend) nft.ServicePort {
	out := nft.ServicePort{VIP: vip, Port: uint16(p.Port), UDP: p.Protocol == "UDP"}
	for _, b := range backends {
		target := targetPort(p, b.run.Config().Manifest.Spec.Containers)
		if !b.status.Ready || target == 0 {
			continue
		}
		for _, ip := range b.status.IPs {
			if ip.Is4() == vip.Is4() {
				out.Endpoints = append(out.Endpoints, netip.AddrPortFrom(ip, uint16(target)))
			}
		}
	}
	return out
}

func clusterIPs(svc *manifest.Service) []netip.Addr {
	list := svc.Spec.ClusterIPs
	if len(list) == 0 {
		list = []string{svc.Spec.ClusterIP}
	}
	var out []netip.Addr
	for _, s := range list {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// names is the name table of pods without a proxy: one view per namespace.
type names struct {
	mu      sync.Mutex
	entries []dns.Entry
	tables  map[string]*dns.Table
	clients map[netip.Addr]string // pod address → namespace
}

type nameState struct {
	entries []dns.Entry
	clients map[netip.Addr]string
}

func (n *names) set(st nameState) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.entries, n.clients, n.tables = st.entries, st.clients, map[string]*dns.Table{}
}

func (s *Supervisor) buildNames() nameState {
	st := nameState{clients: map[netip.Addr]string{}}
	for _, key := range s.sortedKeys() {
		switch v := s.objects[key].value.(type) {
		case *manifest.Service:
			ips := clusterIPs(v)
			if v.Headless() {
				ips = nil
				for _, b := range s.backends(key.Namespace, v) {
					if b.status.Ready {
						ips = append(ips, b.status.IPs...)
					}
				}
			}
			if v.Spec.Type == "ExternalName" {
				continue // unknown here, so that it does not resolve to nothing
			}
			st.entries = append(st.entries, dns.Entry{
				Host: key.Name + "." + key.Namespace + ".svc.cluster.local", IPs: ips,
				Namespace: key.Namespace, ShortName: key.Name,
			})
		case *manifest.ServiceEntry:
			if ips := entryIPs(v); len(ips) > 0 {
				for _, h := range v.Spec.Hosts {
					st.entries = append(st.entries, dns.Entry{Host: h, IPs: ips})
				}
			}
		}
	}
	if len(s.hostPorts) > 0 {
		st.entries = append(st.entries, dns.Entry{Host: egress.HostName, IPs: []netip.Addr{egress.HostIPv4, egress.HostIPv6}})
	}
	for _, p := range s.pods {
		for _, ip := range p.Status().IPs {
			st.clients[ip] = p.Config().Manifest.Metadata.Namespace
		}
	}
	return st
}

// entryIPs are addresses at which a pod without a proxy can reach a ServiceEntry
// itself. Others are left to the host's resolver.
func entryIPs(e *manifest.ServiceEntry) []netip.Addr {
	var out []netip.Addr
	if e.Spec.Resolution != "STATIC" {
		return nil
	}
	for _, ep := range e.Spec.Endpoints {
		if a, err := netip.ParseAddr(ep.Address); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// Resolve answers DNS for the pod with that address.
func (s *Supervisor) Resolve(name string, client netip.Addr) dns.Answer {
	n := &s.names
	n.mu.Lock()
	defer n.mu.Unlock()
	ns := n.clients[client]
	t := n.tables[ns]
	if t == nil {
		t = dns.NewTable(n.entries, ns)
		if n.tables != nil {
			n.tables[ns] = t
		}
	}
	return t.Lookup(name)
}
