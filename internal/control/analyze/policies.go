package analyze

import (
	"fmt"
	"slices"
	"strings"

	networkingpb "istio.io/api/networking/v1alpha3"
	securitypb "istio.io/api/security/v1beta1"

	"lateen.dev/lateen/internal/control/mesh"
	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// gateways checks selectors, credentials and conflicts of Gateways.
func (r *run) gateways() {
	type claim struct {
		object   *resource.Object
		protocol string
	}
	claims := map[string]claim{}
	for _, g := range r.mesh.Gateways() {
		selected := r.selected("", g.Spec.Selector)
		if len(g.Spec.Selector) > 0 && len(selected) == 0 {
			r.add(g.Object, finding.GatewayUnselected, "spec.selector", "", "no workload has %s, so the gateway opens no port", labelText(g.Spec.Selector))
		}
		for i, s := range g.Spec.Servers {
			path := fmt.Sprintf("spec.servers[%d]", i)
			r.credential(g, path, s, selected)
			r.gatewayPort(g, path, s, selected)
			for j, h := range s.Hosts {
				key := fmt.Sprint(labelText(g.Spec.Selector), "|", s.GetPort().GetNumber(), "|", s.Bind, "|", h)
				c, taken := claims[key]
				if taken && c.object != g.Object {
					r.addValue(g.Object, finding.ConflictingGateway, fmt.Sprintf("%s.hosts[%d]", path, j), "",
						"host %q on port %d is already opened by %s (%s)", h, s.GetPort().GetNumber(), c.object.Key, c.object.Pos("spec.servers"))
				} else {
					claims[key] = claim{g.Object, s.GetPort().GetProtocol()}
				}
			}
		}
	}
}

func (r *run) credential(g *mesh.Gateway, path string, s *networkingpb.Server, selected []template) {
	name := s.Tls.GetCredentialName()
	if name == "" || len(selected) == 0 || strings.Contains(name, "://") {
		return
	}
	for _, t := range selected {
		if _, ok := r.mesh.Secret(t.namespace, name); !ok {
			r.addValue(g.Object, finding.CredentialMissing, path+".tls.credentialName", "",
				"Secret %s does not exist in namespace %s, where the gateway runs", name, t.namespace)
			return
		}
	}
}

// gatewayPort checks that a Service of the gateway leads to the port it opens.
func (r *run) gatewayPort(g *mesh.Gateway, path string, s *networkingpb.Server, selected []template) {
	n := s.GetPort().GetNumber()
	if len(selected) == 0 || n == 0 || n > 65535 {
		return
	}
	t := selected[0]
	services := 0
	for _, svc := range r.mesh.Services() {
		if svc.Namespace != t.namespace || len(svc.Selector) == 0 || !covers(svc.Selector, t.Labels) {
			continue
		}
		services++
		if _, ok := svc.Port(uint16(n)); ok {
			return
		}
	}
	if services > 0 {
		r.addValue(g.Object, finding.GatewayPort, path+".port.number", "", "no Service of %s has port %d, so nobody reaches this server", t.object.Key, n)
	}
}

// selectors checks that selectors of policies match someone, and that Sidecars
// do not compete.
func (r *run) selectors() {
	sidecars := map[string]*resource.Object{}
	for _, o := range r.objects {
		path, labels := selectorOf(o)
		if path != "" && len(labels) > 0 {
			ns := o.Namespace
			if ns == r.mesh.RootNamespace {
				ns = ""
			}
			if len(r.selected(ns, labels)) == 0 {
				r.add(o, finding.PolicySelects, path, "", "no workload has %s, so %s applies to nothing", labelText(labels), o.Key)
			}
		}
		if o.Kind == resource.Sidecar {
			key := o.Namespace + "|" + labelText(labels)
			if first := sidecars[key]; first != nil {
				r.add(o, finding.ConflictingSidecar, "metadata.name", "keep one of the two", "%s (%s) has the same selector", first.Key, first.Pos("metadata.name"))
			}
			sidecars[key] = o
		}
	}
}

// selectorOf returns the path and labels of the workload selector of a policy.
func selectorOf(o *resource.Object) (string, map[string]string) {
	switch s := o.Spec.(type) {
	case *securitypb.AuthorizationPolicy:
		return "spec.selector", s.GetSelector().GetMatchLabels()
	case *securitypb.PeerAuthentication:
		return "spec.selector", s.GetSelector().GetMatchLabels()
	case *securitypb.RequestAuthentication:
		return "spec.selector", s.GetSelector().GetMatchLabels()
	case *networkingpb.Sidecar:
		return "spec.workloadSelector", s.GetWorkloadSelector().GetLabels()
	}
	if t, ok := telemetryOf(o); ok {
		return "spec.selector", t.GetSelector().GetMatchLabels()
	}
	return "", nil
}

// authorization checks that the callers a policy names exist, and that its rules
// can be evaluated where it applies.
func (r *run) authorization() {
	for _, p := range r.mesh.AuthorizationPolicies() {
		for i, rule := range p.Spec.Rules {
			path := fmt.Sprintf("spec.rules[%d]", i)
			for j, f := range rule.From {
				r.callers(p, fmt.Sprintf("%s.from[%d].source", path, j), f.GetSource())
			}
			r.httpOnTCP(p, path, rule)
			r.scrape(p, path, rule)
			if p.Spec.Action == securitypb.AuthorizationPolicy_ALLOW && len(rule.From)+len(rule.To)+len(rule.When) == 0 {
				r.add(p.Object, finding.OpenPolicy, path, "name the callers in from, if that is not meant",
					"the empty rule allows every request from everyone, with or without identity")
			}
		}
	}
}

func (r *run) callers(p *mesh.AuthorizationPolicy, path string, s *securitypb.Source) {
	for i, principal := range s.GetPrincipals() {
		ns, account, ok := r.account(principal)
		if !ok {
			continue
		}
		at := fmt.Sprintf("%s.principals[%d]", path, i)
		if !r.runsAs(ns, account) {
			r.addValue(p.Object, finding.PrincipalUnknown, at, fmt.Sprintf("set serviceAccountName: %s on the caller's pod template", account),
				"no workload in namespace %s runs as service account %q, so this rule lets nobody in", ns, account)
		}
		if r.plaintext(p) {
			r.addValue(p.Object, finding.PlaintextPrincipal, at, "use mode PERMISSIVE or STRICT", "the selected workloads accept no mTLS, so callers have no principal")
		}
	}
	for i, ns := range s.GetNamespaces() {
		if strings.Contains(ns, "*") || slices.ContainsFunc(r.templates, func(t template) bool { return t.namespace == ns }) {
			continue
		}
		r.addValue(p.Object, finding.NamespaceUnknown, fmt.Sprintf("%s.namespaces[%d]", path, i), "", "namespace %q has no workload here", ns)
	}
}

// account splits a principal of this mesh; false for patterns and foreign ones.
func (r *run) account(principal string) (namespace, account string, ok bool) {
	rest, ok := strings.CutPrefix(principal, r.mesh.TrustDomain+"/ns/")
	if !ok || strings.Contains(rest, "*") {
		return "", "", false
	}
	return strings.Cut(rest, "/sa/")
}

func (r *run) runsAs(namespace, account string) bool {
	return slices.ContainsFunc(r.templates, func(t template) bool {
		return t.namespace == namespace && t.serviceAccount() == account
	})
}

// policyTargets returns the templates a policy applies to.
func (r *run) policyTargets(p *mesh.AuthorizationPolicy) []template {
	ns := p.Namespace
	if ns == r.mesh.RootNamespace {
		ns = ""
	}
	return r.selected(ns, p.Spec.GetSelector().GetMatchLabels())
}

func (r *run) plaintext(p *mesh.AuthorizationPolicy) bool {
	targets := r.policyTargets(p)
	for _, t := range targets {
		if r.mesh.MTLSMode(t.namespace, t.Labels, 0) != mesh.MTLSDisable {
			return false
		}
	}
	return len(targets) > 0
}

// httpOnTCP finds rules that ask for fields of requests on ports that are
// declared opaque.
func (r *run) httpOnTCP(p *mesh.AuthorizationPolicy, path string, rule *securitypb.Rule) {
	for i, to := range rule.To {
		op := to.GetOperation()
		if len(op.GetMethods())+len(op.GetPaths())+len(op.GetHosts())+len(op.GetNotMethods())+len(op.GetNotPaths())+len(op.GetNotHosts()) == 0 {
			continue
		}
		for j, port := range op.GetPorts() {
			if protocol, opaque := r.opaquePort(p, port); opaque {
				r.addValue(p.Object, finding.HTTPOnTCP, fmt.Sprintf("%s.to[%d].operation.ports[%d]", path, i, j),
					"name the port http-… in its Service, or drop methods, paths and hosts",
					"port %s is declared %s, where methods, paths and hosts cannot be seen", port, protocol)
			}
		}
	}
}

func (r *run) opaquePort(p *mesh.AuthorizationPolicy, port string) (mesh.Protocol, bool) {
	for _, t := range r.policyTargets(p) {
		for _, s := range r.mesh.Services() {
			if s.Namespace != t.namespace || len(s.Selector) == 0 || !covers(s.Selector, t.Labels) {
				continue
			}
			for _, sp := range s.Ports {
				if fmt.Sprint(sp.Target) == port && sp.Declared && !sp.Protocol.IsHTTP() {
					return sp.Protocol, true
				}
			}
		}
	}
	return "", false
}

// scrape notes rules that let a scraper in by namespace where only mTLS callers
// can connect at all.
func (r *run) scrape(p *mesh.AuthorizationPolicy, path string, rule *securitypb.Rule) {
	named := false
	for _, f := range rule.From {
		named = named || len(f.GetSource().GetNamespaces())+len(f.GetSource().GetPrincipals()) > 0
	}
	if !named || p.Spec.Action != securitypb.AuthorizationPolicy_ALLOW {
		return
	}
	for i, to := range rule.To {
		for j, v := range to.GetOperation().GetPaths() {
			if v != "/metrics" {
				continue
			}
			for _, t := range r.policyTargets(p) {
				if r.mesh.MTLSMode(t.namespace, t.Labels, 0) == mesh.MTLSStrict {
					r.addValue(p.Object, finding.ScrapeDenied, fmt.Sprintf("%s.to[%d].operation.paths[%d]", path, i, j),
						"give the scraper a sidecar, or open the port with portLevelMtls",
						"%s has mTLS mode STRICT: a scraper without sidecar is refused before this rule is asked", t.object.Key)
					return
				}
			}
		}
	}
}
