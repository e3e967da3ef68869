package resource

import (
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Service returns the view of a Service; false for other kinds.
func (o *Object) Service() (*Service, bool) {
	s, ok := o.Spec.(*corev1.Service)
	if !ok {
		return nil, false
	}
	v := &Service{
		Type:            string(s.Spec.Type),
		ExternalName:    s.Spec.ExternalName,
		Selector:        s.Spec.Selector,
		PublishNotReady: s.Spec.PublishNotReadyAddresses,
		Headless:        s.Spec.ClusterIP == corev1.ClusterIPNone,
	}
	if v.Type == "" {
		v.Type = string(corev1.ServiceTypeClusterIP)
	}
	ips := s.Spec.ClusterIPs
	if len(ips) == 0 && s.Spec.ClusterIP != "" {
		ips = []string{s.Spec.ClusterIP}
	}
	if !v.Headless {
		v.ClusterIPs = addrs(ips)
	}
	for _, p := range s.Spec.Ports {
		v.Ports = append(v.Ports, servicePort(p))
	}
	return v, true
}

func servicePort(p corev1.ServicePort) ServicePort {
	v := ServicePort{Name: p.Name, Number: port(p.Port), Protocol: protocol(p.Protocol)}
	if p.AppProtocol != nil {
		v.AppProtocol = *p.AppProtocol
	}
	switch {
	case p.TargetPort.Type == intstr.String && p.TargetPort.StrVal != "":
		v.TargetName = p.TargetPort.StrVal
	case p.TargetPort.IntVal != 0:
		v.TargetNumber = port(p.TargetPort.IntVal)
	default:
		v.TargetNumber = v.Number
	}
	return v
}

// Pod returns the view of a Pod; false for other kinds.
func (o *Object) Pod() (*Pod, bool) {
	p, ok := o.Spec.(*corev1.Pod)
	if !ok {
		return nil, false
	}
	v := &Pod{
		ServiceAccount: p.Spec.ServiceAccountName,
		NodeName:       p.Spec.NodeName,
		HostNetwork:    p.Spec.HostNetwork,
		Terminating:    p.DeletionTimestamp != nil,
	}
	if v.ServiceAccount == "" {
		v.ServiceAccount = "default"
	}
	var ips []string
	for _, ip := range p.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	if len(ips) == 0 && p.Status.PodIP != "" {
		ips = []string{p.Status.PodIP}
	}
	v.IPs = addrs(ips)
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			v.Ready = c.Status == corev1.ConditionTrue
		}
	}
	for _, c := range append(append([]corev1.Container{}, p.Spec.InitContainers...), p.Spec.Containers...) {
		v.Sidecar = v.Sidecar || c.Name == "istio-proxy"
		v.Ports = append(v.Ports, containerPorts(c.Ports)...)
	}
	if _, ok := p.Annotations["sidecar.istio.io/status"]; ok {
		v.Sidecar = true
	}
	v.OwnerKind, v.OwnerName = owner(p)
	return v, true
}

// owner names the workload of a pod. A ReplicaSet is named after its
// Deployment, a hyphen and the template's hash.
func owner(p *corev1.Pod) (kind, name string) {
	var ref *metav1.OwnerReference
	for i, r := range p.OwnerReferences {
		if ref == nil || r.Controller != nil && *r.Controller {
			ref = &p.OwnerReferences[i]
		}
	}
	if ref == nil {
		return "Pod", p.Name
	}
	if ref.Kind != "ReplicaSet" {
		return ref.Kind, ref.Name
	}
	if hash := p.Labels["pod-template-hash"]; hash != "" {
		if base, ok := strings.CutSuffix(ref.Name, "-"+hash); ok {
			return "Deployment", base
		}
	}
	return ref.Kind, ref.Name
}

func containerPorts(ports []corev1.ContainerPort) []ContainerPort {
	var v []ContainerPort
	for _, p := range ports {
		v = append(v, ContainerPort{Name: p.Name, Number: port(p.ContainerPort), Protocol: protocol(p.Protocol)})
	}
	return v
}

// EndpointSlice returns the view of an EndpointSlice; false for other kinds.
func (o *Object) EndpointSlice() (*EndpointSlice, bool) {
	s, ok := o.Spec.(*discoveryv1.EndpointSlice)
	if !ok {
		return nil, false
	}
	v := &EndpointSlice{Service: s.Labels[discoveryv1.LabelServiceName]}
	for _, p := range s.Ports {
		var cp ContainerPort
		if p.Name != nil {
			cp.Name = *p.Name
		}
		if p.Port != nil {
			cp.Number = port(*p.Port)
		}
		cp.Protocol = string(corev1.ProtocolTCP)
		if p.Protocol != nil {
			cp.Protocol = protocol(*p.Protocol)
		}
		v.Ports = append(v.Ports, cp)
	}
	for _, e := range s.Endpoints {
		v.Endpoints = append(v.Endpoints, endpoint(e))
	}
	return v, true
}

func endpoint(e discoveryv1.Endpoint) Endpoint {
	// Kubernetes: a ready condition that is not set counts as true.
	v := Endpoint{Addresses: addrs(e.Addresses), Ready: e.Conditions.Ready == nil || *e.Conditions.Ready}
	v.Terminating = e.Conditions.Terminating != nil && *e.Conditions.Terminating
	if e.TargetRef != nil && e.TargetRef.Kind == "Pod" {
		v.Pod = e.TargetRef.Name
	}
	if e.NodeName != nil {
		v.NodeName = *e.NodeName
	}
	if e.Zone != nil {
		v.Zone = *e.Zone
	}
	return v
}

// ConfigMap returns the view of a ConfigMap; false for other kinds.
func (o *Object) ConfigMap() (*ConfigMap, bool) {
	c, ok := o.Spec.(*corev1.ConfigMap)
	if !ok {
		return nil, false
	}
	return &ConfigMap{Data: c.Data}, true
}

// Secret returns the view of a Secret, stringData included; false for other
// kinds.
func (o *Object) Secret() (*Secret, bool) {
	s, ok := o.Spec.(*corev1.Secret)
	if !ok {
		return nil, false
	}
	v := &Secret{Type: string(s.Type), Data: make(map[string][]byte, len(s.Data)+len(s.StringData))}
	for k, d := range s.Data {
		v.Data[k] = d
	}
	for k, d := range s.StringData {
		v.Data[k] = []byte(d)
	}
	return v, true
}

func addrs(texts []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range texts {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// port narrows a port number; what is out of range was reported by validation
// and becomes 0, which names no port.
func port(n int32) uint16 {
	if n < 1 || n > 65535 {
		return 0
	}
	return uint16(n)
}

func protocol(p corev1.Protocol) string {
	if p == "" {
		return string(corev1.ProtocolTCP)
	}
	return string(p)
}
