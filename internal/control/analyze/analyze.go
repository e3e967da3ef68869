// Package analyze holds the rules that need more than one object: names that
// lead nowhere, objects that contradict each other, policies that match nobody,
// Collector configurations that the image in use refuses. It stands beside the
// mesh model, changes nothing, and where a text edit mends what it found, the
// finding carries that edit.
//
// Run and Files are pure; only Paths reads files.
package analyze

import (
	"fmt"
	"slices"
	"strings"

	"lateen.dev/lateen/internal/control/mesh"
	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

// Run returns what is wrong with the objects taken together, m being the model
// made of them. What is wrong with one object by itself is validate's to say.
func Run(m *mesh.Mesh, objects []*resource.Object) []finding.Finding {
	r := &run{mesh: m, objects: objects, byKey: make(map[resource.Key]*resource.Object, len(objects))}
	for _, o := range objects {
		r.byKey[o.Key] = o
		r.templates = append(r.templates, templatesOf(o)...)
	}
	r.versions()
	r.routes()
	r.destinationRules()
	r.gateways()
	r.selectors()
	r.authorization()
	r.telemetry()
	r.monitors()
	r.services()
	r.podReferences()
	r.endpoints()
	r.collectors()
	finding.Sort(r.findings)
	return r.findings
}

// run is one analysis.
type run struct {
	mesh      *mesh.Mesh
	objects   []*resource.Object
	byKey     map[resource.Key]*resource.Object
	templates []template
	findings  []finding.Finding
}

// template is a pod as a manifest describes it.
type template struct {
	*resource.PodTemplate
	object    *resource.Object
	namespace string
}

func templatesOf(o *resource.Object) []template {
	t, ok := o.PodTemplate()
	if !ok {
		return nil
	}
	return []template{{t, o, o.Namespace}}
}

// running reports whether the template is a pod that the local node wrote,
// whose manifest was checked where it came from.
func (t template) running() bool { return t.object.Source == "local" }

func (t template) serviceAccount() string {
	if t.ServiceAccount == "" {
		return "default"
	}
	return t.ServiceAccount
}

// selected returns the templates in namespace ("" for all) with the labels.
func (r *run) selected(namespace string, labels map[string]string) []template {
	var out []template
	for _, t := range r.templates {
		if (namespace == "" || t.namespace == namespace) && covers(labels, t.Labels) {
			out = append(out, t)
		}
	}
	return out
}

func covers(selector, labels map[string]string) bool {
	for k, v := range selector {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// add reports a finding at the key of a field.
func (r *run) add(o *resource.Object, code, path, hint, format string, args ...any) *finding.Finding {
	f := finding.Newf(code, o.Object(), path, o.Pos(path), format, args...)
	f.Hint = hint
	r.findings = append(r.findings, f)
	return &r.findings[len(r.findings)-1]
}

// addValue reports a finding at the value of a field.
func (r *run) addValue(o *resource.Object, code, path, hint, format string, args ...any) *finding.Finding {
	f := r.add(o, code, path, hint, format, args...)
	f.Pos = o.ValuePos(path)
	return f
}

// versions notes objects in an API version that v1 has replaced.
func (r *run) versions() {
	for _, o := range r.objects {
		info, ok := resource.LookupKind(o.Kind)
		if !ok || !info.Istio() || info.Versions[0] != "v1" {
			continue
		}
		if _, version, _ := strings.Cut(o.APIVersion, "/"); version != "v1" {
			r.add(o, finding.OlderVersion, "apiVersion", fmt.Sprintf("%s/v1 means the same", info.Group),
				"%s is served and will stay; %s/v1 is current", o.APIVersion, info.Group)
		}
	}
}

// serviceFor returns the service that a fully qualified host means to a caller
// in the namespace, wildcard hosts of ServiceEntries included.
func (r *run) serviceFor(host, namespace string) (*mesh.Service, bool) {
	if s, ok := r.mesh.ServiceByHost(host, namespace); ok {
		return s, true
	}
	for _, s := range r.mesh.Services() {
		if mesh.IsWildcard(s.Host) && mesh.HostMatches(s.Host, host) && s.ExportTo.Allows(s.Namespace, namespace) {
			return s, true
		}
	}
	return nil, false
}

// elsewhere returns the namespaces that have a Service of this name.
func (r *run) elsewhere(name, not string) []string {
	var out []string
	for _, o := range r.objects {
		if o.Kind == resource.KubeService && o.Name == name && o.Namespace != not {
			out = append(out, o.Namespace)
		}
	}
	slices.Sort(out)
	return out
}

// similarHost returns a host of the mesh that a mistyped one may mean.
func (r *run) similarHost(host, namespace string) string {
	suffix := "." + namespace + ".svc." + r.mesh.DomainSuffix
	var names []string
	for _, s := range r.mesh.Services() {
		names = append(names, strings.TrimSuffix(s.Host, suffix))
	}
	return resource.Nearest(strings.TrimSuffix(host, suffix), names)
}

// hostHint says what a host that does not exist may mean.
func (r *run) hostHint(host, namespace string) string {
	name, rest, _ := strings.Cut(host, ".")
	if r.kubernetesHost(host) && !strings.HasSuffix(host, ".svc."+r.mesh.DomainSuffix) {
		ns, _, _ := strings.Cut(rest, ".")
		return fmt.Sprintf("hosts with a dot are taken as they are: write %q", r.mesh.ServiceHost(name, ns))
	}
	if others := r.elsewhere(name, namespace); len(others) > 0 && (!strings.Contains(host, ".") || strings.HasSuffix(host, ".svc."+r.mesh.DomainSuffix)) {
		return fmt.Sprintf("Service %s exists in namespace %s: write %s.%s", name, others[0], name, others[0])
	}
	if near := r.similarHost(host, namespace); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	return "declare it by a Service or ServiceEntry"
}
