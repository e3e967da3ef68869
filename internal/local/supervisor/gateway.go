package supervisor

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/local/manifest"
)

// listenerKey names one port of a LoadBalancer Service.
type listenerKey struct {
	namespace, service string
	port               int
}

// hostListener is a socket on the host's loopback. A gateway's proxy inherits
// it; otherwise the node relays its connections to the Service.
type hostListener struct {
	fd    int
	addr  netip.AddrPort
	relay func() // stops relaying; nil for a gateway
}

func (l *hostListener) close() {
	if l.relay != nil {
		l.relay()
		l.relay = nil
	}
	if l.fd >= 0 {
		unix.Close(l.fd)
		l.fd = -1
	}
}

// hostPort is where a service port appears on the host. Privileged ports move
// for root too, so that the same commands work for everybody.
func hostPort(port int) uint16 {
	switch {
	case port == 80:
		return 8080
	case port == 443:
		return 8443
	case port < 1024:
		return uint16(port + 8000)
	}
	return uint16(port)
}

// listenTimeout bounds a request to the parent process.
const listenTimeout = 3 * time.Second

// gatewayListeners returns the host sockets that a gateway's pods inherit: those
// of every LoadBalancer Service that selects them.
func (s *Supervisor) gatewayListeners(namespace string, m *manifest.Pod) map[uint16]int {
	out := map[uint16]int{}
	for _, key := range s.sortedKeys() {
		svc, ok := s.objects[key].value.(*manifest.Service)
		if !ok || key.Namespace != namespace || svc.Spec.Type != "LoadBalancer" || !selects(svc.Spec.Selector, m.Metadata.Labels) {
			continue
		}
		for _, p := range svc.Spec.Ports {
			target := targetPort(p, m.Spec.Containers)
			if target == 0 || p.Protocol == "UDP" {
				continue
			}
			if l := s.listener(listenerKey{namespace, key.Name, p.Port}); l != nil {
				out[uint16(target)] = l.fd
			}
		}
	}
	return out
}

// listener opens the host socket of a service port once.
func (s *Supervisor) listener(k listenerKey) *hostListener {
	if l, tried := s.listeners[k]; tried {
		return l
	}
	ctx, cancel := context.WithTimeout(context.Background(), listenTimeout)
	defer cancel()
	fd, addr, err := s.o.Host.Listen(ctx, hostPort(k.port))
	if err != nil {
		s.event(Event{
			Kind: "service", Namespace: k.namespace, Name: k.service, Error: true,
			Message: fmt.Sprintf("port %d is not reachable from this machine: %v; free one of them and save the Service again", k.port, err),
		})
		s.listeners[k] = nil // tried; a change of the Service tries again
		return nil
	}
	l := &hostListener{fd: fd, addr: addr}
	s.listeners[k] = l
	s.event(Event{
		Kind: "service", Namespace: k.namespace, Name: k.service,
		Message: fmt.Sprintf("port %d is http://%s on this machine", k.port, addr),
	})
	return l
}

// serviceListeners relays LoadBalancer Services that no gateway serves and
// closes listeners of Services that are gone.
func (s *Supervisor) serviceListeners() {
	wanted := map[listenerKey]bool{}
	for _, key := range s.sortedKeys() {
		svc, ok := s.objects[key].value.(*manifest.Service)
		if !ok || svc.Spec.Type != "LoadBalancer" {
			continue
		}
		for _, p := range svc.Spec.Ports {
			if p.Protocol == "UDP" {
				continue
			}
			k := listenerKey{key.Namespace, key.Name, p.Port}
			wanted[k] = true
			if !s.servedByGateway(key.Namespace, svc) {
				s.relay(k, svc, p)
			}
		}
	}
	for k, l := range s.listeners {
		if !wanted[k] {
			if l != nil {
				l.close()
			}
			delete(s.listeners, k)
		}
	}
}

// servedByGateway says whether a template that runs or will run as a gateway is
// selected by the Service.
func (s *Supervisor) servedByGateway(namespace string, svc *manifest.Service) bool {
	for key, o := range s.objects {
		var labels map[string]string
		var m *manifest.Pod
		switch v := o.value.(type) {
		case *manifest.Deployment:
			labels = v.Spec.Template.Metadata.Labels
			m = &manifest.Pod{Metadata: v.Spec.Template.Metadata}
		case *manifest.Pod:
			labels, m = v.Metadata.Labels, v
		default:
			continue
		}
		if key.Namespace == namespace && isGateway(m) && selects(svc.Spec.Selector, labels) {
			return true
		}
	}
	return false
}

func (s *Supervisor) relay(k listenerKey, svc *manifest.Service, p manifest.ServicePort) {
	if _, tried := s.listeners[k]; tried || svc.Spec.ClusterIP == "" || svc.Headless() {
		return
	}
	vip, err := netip.ParseAddr(svc.Spec.ClusterIP)
	if err != nil {
		return
	}
	l := s.listener(k)
	if l == nil {
		return
	}
	stop, err := s.o.Relay(l.fd, netip.AddrPortFrom(vip, uint16(p.Port)))
	l.fd = -1 // taken over
	if err != nil {
		s.o.Log.Warn("relay a host port", "service", k.service, "error", err)
		return
	}
	l.relay = stop
}

// selects says whether a selector picks the labels; an empty one picks nothing.
func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return len(selector) > 0
}

func targetPort(p manifest.ServicePort, containers []manifest.Container) int {
	if p.TargetPort.IsZero() {
		return p.Port
	}
	return p.TargetPort.Port(containers)
}
