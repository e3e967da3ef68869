package resource

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
)

// WithClusterIPs returns a Service like o that has the given addresses, as the
// API server would have assigned them; the first is the primary one. Other
// kinds are returned as they are.
func (o *Object) WithClusterIPs(ips []netip.Addr) *Object {
	s, ok := o.Spec.(*corev1.Service)
	if !ok || len(ips) == 0 {
		return o
	}
	s = s.DeepCopy()
	s.Spec.ClusterIP, s.Spec.ClusterIPs, s.Spec.IPFamilies = ips[0].String(), nil, nil
	for _, ip := range ips {
		family := corev1.IPv4Protocol
		if ip.Is6() {
			family = corev1.IPv6Protocol
		}
		s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, ip.String())
		s.Spec.IPFamilies = append(s.Spec.IPFamilies, family)
	}
	policy := corev1.IPFamilyPolicySingleStack
	if len(ips) > 1 {
		policy = corev1.IPFamilyPolicyPreferDualStack
	}
	s.Spec.IPFamilyPolicy = &policy
	next := *o
	next.Spec = s
	return &next
}
