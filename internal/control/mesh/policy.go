package mesh

import (
	securitypb "istio.io/api/security/v1beta1"
	typepb "istio.io/api/type/v1beta1"
)

// MTLSMode says which connections a port of a workload accepts.
type MTLSMode uint8

// The modes: both, plaintext only, mutual TLS only.
const (
	MTLSPermissive MTLSMode = iota
	MTLSDisable
	MTLSStrict
)

// String returns Istio's word for the mode.
func (m MTLSMode) String() string {
	return [...]string{"PERMISSIVE", "DISABLE", "STRICT"}[m]
}

// MTLSMode returns the mode in force on a port of a workload: the port level of
// the workload's PeerAuthentication, the workload's, the namespace's, the
// mesh's; at each level the oldest counts and UNSET inherits. Port 0 asks for
// ports that no port level names.
func (m *Mesh) MTLSMode(namespace string, labels map[string]string, port uint16) MTLSMode {
	workload, ns, root := m.PeerAuthenticationsFor(namespace, labels)
	if workload != nil {
		if p, ok := workload.Spec.GetPortLevelMtls()[uint32(port)]; ok {
			if mode, ok := mtlsMode(p); ok {
				return mode
			}
		}
	}
	for _, p := range []*PeerAuthentication{workload, ns, root} {
		if p == nil {
			continue
		}
		if mode, ok := mtlsMode(p.Spec.GetMtls()); ok {
			return mode
		}
	}
	return MTLSPermissive
}

// PeerAuthenticationsFor returns the objects that decide for a workload, nil
// where there is none: its own, its namespace's and the mesh's.
func (m *Mesh) PeerAuthenticationsFor(namespace string, labels map[string]string) (workload, ns, root *PeerAuthentication) {
	for _, p := range m.peerAuth {
		selector := p.Spec.GetSelector().GetMatchLabels()
		switch {
		case len(selector) == 0 && p.Namespace == m.RootNamespace:
			if root == nil {
				root = p
			}
		case len(selector) == 0 && p.Namespace == namespace:
			if ns == nil {
				ns = p
			}
		case len(selector) > 0 && p.Namespace == namespace && p.Namespace != m.RootNamespace && matches(selector, labels):
			if workload == nil {
				workload = p
			}
		}
	}
	return workload, ns, root
}

func mtlsMode(p *securitypb.PeerAuthentication_MutualTLS) (MTLSMode, bool) {
	switch p.GetMode() {
	case securitypb.PeerAuthentication_MutualTLS_DISABLE:
		return MTLSDisable, true
	case securitypb.PeerAuthentication_MutualTLS_PERMISSIVE:
		return MTLSPermissive, true
	case securitypb.PeerAuthentication_MutualTLS_STRICT:
		return MTLSStrict, true
	}
	return MTLSPermissive, false
}

// AuthorizationFor returns the policies in force for a workload: those of the
// root namespace, then those of its own, the oldest first. Policies attached by
// targetRef belong to gateways and waypoints and are left out.
func (m *Mesh) AuthorizationFor(namespace string, labels map[string]string) []*AuthorizationPolicy {
	var root, own []*AuthorizationPolicy
	for _, p := range m.authorization {
		if p.Spec.GetTargetRef() != nil || len(p.Spec.GetTargetRefs()) > 0 || !m.applies(p.Namespace, p.Spec.GetSelector(), namespace, labels) {
			continue
		}
		if p.Namespace == m.RootNamespace {
			root = append(root, p)
		} else {
			own = append(own, p)
		}
	}
	return append(root, own...)
}

// RequestAuthenticationFor returns the token rules in force for a workload.
func (m *Mesh) RequestAuthenticationFor(namespace string, labels map[string]string) []*RequestAuthentication {
	var out []*RequestAuthentication
	for _, p := range m.requestAuth {
		if p.Spec.GetTargetRef() == nil && len(p.Spec.GetTargetRefs()) == 0 && m.applies(p.Namespace, p.Spec.GetSelector(), namespace, labels) {
			out = append(out, p)
		}
	}
	return out
}

// applies reports whether a policy of a namespace with a selector concerns a
// workload. Policies of the root namespace concern all namespaces.
func (m *Mesh) applies(policyNamespace string, selector *typepb.WorkloadSelector, namespace string, labels map[string]string) bool {
	return (policyNamespace == namespace || policyNamespace == m.RootNamespace) && matches(selector.GetMatchLabels(), labels)
}

// GatewaysFor returns the Gateways that select a gateway proxy, oldest first. A
// Gateway without selector concerns every gateway proxy.
func (m *Mesh) GatewaysFor(labels map[string]string) []*Gateway {
	var out []*Gateway
	for _, g := range m.gateways {
		if matches(g.Spec.GetSelector(), labels) {
			out = append(out, g)
		}
	}
	return out
}

// SidecarFor returns the Sidecar in force for a workload, nil for none: one of
// its namespace that selects it, the namespace's own, the root namespace's own.
func (m *Mesh) SidecarFor(namespace string, labels map[string]string) *Sidecar {
	var ns, root *Sidecar
	for _, s := range m.sidecars {
		selector := s.Spec.GetWorkloadSelector().GetLabels()
		switch {
		case s.Namespace == namespace && selects(selector, labels):
			return s
		case len(selector) > 0:
		case s.Namespace == namespace && ns == nil:
			ns = s
		case s.Namespace == m.RootNamespace && root == nil:
			root = s
		}
	}
	if ns != nil {
		return ns
	}
	return root
}
