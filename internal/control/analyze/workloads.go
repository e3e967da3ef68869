package analyze

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

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
			r.servicePort(o, path, p)
			if p.TargetName == "" || len(s.Selector) == 0 || len(targets) == 0 {
				continue
			}
			if !hasPort(targets, p.TargetName) {
				r.addValue(o, finding.TargetPort, path+".targetPort", "", "no container behind %s has a port named %q", o.Key, p.TargetName)
			}
		}
	}
}

func (r *run) servicePort(o *resource.Object, path string, p mesh.Port) {
	at := path
	if o.Has(path + ".name") {
		at = path + ".name"
	}
	switch {
	case !p.Declared && p.Protocol != mesh.UDP:
		r.addValue(o, finding.PortName, at, "name it <protocol>[-…], for example http-…, grpc-… or tcp-…, or set appProtocol",
			"port %d (%s) does not say its protocol, so it is found out from the first bytes", p.Number, named(p.Name))
	case p.Protocol.IsHTTP2():
		r.addValue(o, finding.CarriedAsTCP, at, "", "port %d is declared %s, which this version of Lateen carries as TCP: rules on requests do not apply to it", p.Number, p.Protocol)
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
		for _, c := range t.spec.Containers {
			for _, p := range c.Ports {
				if p.Name == name {
					return true
				}
			}
		}
		for _, c := range t.spec.InitContainers {
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
		if t.object.Source == "local" {
			continue // a running pod: its manifest was checked
		}
		if name := t.spec.ServiceAccountName; name != "" && name != "default" && !r.exists(resource.ServiceAccount, t.namespace, name) {
			r.addValue(t.object, finding.AccountMissing, t.at("spec.serviceAccountName"), "add a ServiceAccount of that name",
				"ServiceAccount %s does not exist in namespace %s", name, t.namespace)
		}
		for i, v := range t.spec.Volumes {
			path := t.at("spec.volumes[%d]", i)
			if c := v.ConfigMap; c != nil && !optional(c.Optional) {
				r.reference(t, path+".configMap.name", resource.KubeConfigMap, c.Name)
			}
			if s := v.Secret; s != nil && !optional(s.Optional) {
				r.reference(t, path+".secret.secretName", resource.KubeSecret, s.SecretName)
			}
		}
		for i, c := range t.spec.Containers {
			r.environment(t, t.at("spec.containers[%d]", i), c)
		}
		for i, c := range t.spec.InitContainers {
			r.environment(t, t.at("spec.initContainers[%d]", i), c)
		}
	}
}

func (r *run) environment(t template, path string, c corev1.Container) {
	for i, e := range c.Env {
		at := fmt.Sprintf("%s.env[%d].valueFrom", path, i)
		if e.ValueFrom == nil {
			continue
		}
		if k := e.ValueFrom.ConfigMapKeyRef; k != nil && !optional(k.Optional) {
			r.reference(t, at+".configMapKeyRef.name", resource.KubeConfigMap, k.Name)
		}
		if k := e.ValueFrom.SecretKeyRef; k != nil && !optional(k.Optional) {
			r.reference(t, at+".secretKeyRef.name", resource.KubeSecret, k.Name)
		}
	}
	for i, e := range c.EnvFrom {
		at := fmt.Sprintf("%s.envFrom[%d]", path, i)
		if k := e.ConfigMapRef; k != nil && !optional(k.Optional) {
			r.reference(t, at+".configMapRef.name", resource.KubeConfigMap, k.Name)
		}
		if k := e.SecretRef; k != nil && !optional(k.Optional) {
			r.reference(t, at+".secretRef.name", resource.KubeSecret, k.Name)
		}
	}
}

func optional(b *bool) bool { return b != nil && *b }

func (r *run) reference(t template, path string, kind resource.Kind, name string) {
	// Istio puts its root certificate into every namespace by this name.
	if name == "" || name == "istio-ca-root-cert" || name == "kube-root-ca.crt" || r.exists(kind, t.namespace, name) {
		return
	}
	r.addValue(t.object, finding.ReferenceMissing, path, "", "%s %s does not exist in namespace %s; the pod waits for it", kind, name, t.namespace)
}

func (r *run) exists(kind resource.Kind, namespace, name string) bool {
	return r.byKey[resource.Key{Kind: kind, Namespace: namespace, Name: name}] != nil
}
