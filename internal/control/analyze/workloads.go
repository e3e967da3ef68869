package analyze

import (
	"fmt"

	"lateen.dev/lateen/internal/control/mesh"
	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

// services checks that Kubernetes Services lead somewhere and that their ports
// say what they carry.
func (r *run) services() {
	for _, s := range r.mesh.Services() {
		o := s.Object
		if o == nil || o.Kind != resource.KubeService {
			continue
		}
		targets := r.selected(s.Namespace, s.Selector)
		if len(s.Selector) > 0 && len(targets) == 0 {
			r.add(o, finding.ServiceSelects, "spec.selector", "", "no workload of namespace %s has %s", s.Namespace, labelText(s.Selector))
		}
		for i, p := range s.Ports {
			path := fmt.Sprintf("spec.ports[%d]", i)
			r.servicePort(o, path, p, r.gatewayBehind(targets))
			if p.TargetName == "" || len(s.Selector) == 0 || len(targets) == 0 {
				continue
			}
			if !hasPort(targets, p.TargetName) {
				r.addValue(o, finding.TargetPort, path+".targetPort", "", "no container behind %s has a port named %q", o.Key, p.TargetName)
			}
		}
	}
}

// gatewayBehind reports whether a gateway is among the workloads. What its ports
// speak is then said by a Gateway, not by the Service.
func (r *run) gatewayBehind(targets []template) bool {
	for _, t := range targets {
		for _, g := range r.mesh.GatewaysFor(t.Labels) {
			if len(g.Spec.GetSelector()) > 0 {
				return true
			}
		}
	}
	return false
}

func (r *run) servicePort(o *resource.Object, path string, p mesh.Port, gateway bool) {
	at := path
	if o.Has(path + ".name") {
		at = path + ".name"
	}
	switch {
	case gateway:
	case !p.Declared && p.Protocol != mesh.UDP:
		r.addValue(o, finding.PortName, at, "name it <protocol>[-…], for example http-…, grpc-… or tcp-…, or set appProtocol",
			"port %d (%s) does not say its protocol, so it is found out from the first bytes", p.Number, named(p.Name))
	}
}

func named(name string) string {
	if name == "" {
		return "unnamed"
	}
	return "named " + name
}

func hasPort(targets []template, name string) bool {
	for _, t := range targets {
		for _, c := range t.Containers {
			for _, p := range c.Ports {
				if p.Name == name {
					return true
				}
			}
		}
	}
	return false
}

// podReferences checks that what pods wait for is defined.
func (r *run) podReferences() {
	for _, t := range r.templates {
		if t.running() {
			continue
		}
		if name := t.ServiceAccount; name != "" && name != "default" && !r.exists(resource.ServiceAccount, t.namespace, name) {
			r.addValue(t.object, finding.AccountMissing, resource.Field(t.Path, "spec")+".serviceAccountName", "add a ServiceAccount of that name",
				"ServiceAccount %s does not exist in namespace %s", name, t.namespace)
		}
		for _, n := range t.Needs {
			// Istio and Kubernetes put their root certificates into every
			// namespace by these names.
			if n.Name != "istio-ca-root-cert" && n.Name != "kube-root-ca.crt" && !r.exists(n.Kind, t.namespace, n.Name) {
				r.addValue(t.object, finding.ReferenceMissing, n.Path, "", "%s %s does not exist in namespace %s; the pod waits for it", n.Kind, n.Name, t.namespace)
			}
		}
	}
}

func (r *run) exists(kind resource.Kind, namespace, name string) bool {
	return r.byKey[resource.Key{Kind: kind, Namespace: namespace, Name: name}] != nil
}
