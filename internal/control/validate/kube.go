package validate

import (
	"fmt"
	"strings"

	telemetryv1 "istio.io/api/telemetry/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

// telemetry warns of what Istio accepts and leaves out.
func (c *checker) telemetry(t *telemetryv1.Telemetry) {
	for i, tr := range t.Tracing {
		path := at("spec.tracing", "[%d]", i)
		if len(tr.Providers) > 1 {
			c.add(finding.OneProvider, path+".providers", "", "only the first of several tracing providers is used, as in Istio")
		}
		for _, name := range sorted(tr.CustomTags) {
			tag := tr.CustomTags[name]
			p := resource.Field(path+".customTags", name)
			if tag.GetType() == nil {
				c.add(finding.RequiredField, p, "", "custom tag %q has no literal, environment, header or formatter", name)
			}
		}
	}
}

// kubeService holds what the Kubernetes API server demands of a Service.
func (c *checker) kubeService(s *corev1.Service) {
	if len(s.Spec.Ports) == 0 && s.Spec.ClusterIP != corev1.ClusterIPNone && s.Spec.Type != corev1.ServiceTypeExternalName {
		c.add(finding.RequiredField, "spec", "", "the Service has no ports")
	}
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		c.host("spec.externalName", s.Spec.ExternalName)
	}
	if ip := s.Spec.ClusterIP; ip != "" && ip != corev1.ClusterIPNone && !isIP(ip) {
		c.addValue(finding.InvalidAddress, "spec.clusterIP", "", "%q is not an address", ip)
	}
	names, numbers := map[string]bool{}, map[string]bool{}
	for i, p := range s.Spec.Ports {
		path := at("spec.ports", "[%d]", i)
		if p.Port < 1 || p.Port > 65535 {
			c.addValue(finding.OutOfRange, path+".port", "", "port %d is not from 1 to 65535", p.Port)
		}
		if p.TargetPort.StrVal == "" && (p.TargetPort.IntVal < 0 || p.TargetPort.IntVal > 65535) {
			c.addValue(finding.OutOfRange, path+".targetPort", "", "port %d is not from 1 to 65535", p.TargetPort.IntVal)
		}
		if p.Name == "" && len(s.Spec.Ports) > 1 {
			c.add(finding.RequiredField, path, "", "%s has no name, which a Service with several ports needs", path)
		}
		if p.Name != "" && (names[p.Name] || !dnsLabel.MatchString(p.Name)) {
			c.addValue(finding.InvalidReference, path+".name", "", "port name %q is used twice or not valid", p.Name)
		}
		key := fmt.Sprint(p.Protocol, "/", p.Port)
		if numbers[key] {
			c.addValue(finding.InvalidReference, path+".port", "", "port %d is listed twice", p.Port)
		}
		names[p.Name], numbers[key] = true, true
	}
}

// deployment holds what the Kubernetes API server demands of a Deployment.
func (c *checker) deployment(d *appsv1.Deployment) {
	if d.Spec.Replicas != nil && *d.Spec.Replicas < 0 {
		c.addValue(finding.OutOfRange, "spec.replicas", "", "replicas is %d; it must not be negative", *d.Spec.Replicas)
	}
	if d.Spec.Selector == nil {
		c.add(finding.RequiredField, "spec", "", "the Deployment has no selector")
	} else if sel, err := metav1.LabelSelectorAsSelector(d.Spec.Selector); err != nil {
		c.add(finding.InvalidLabel, "spec.selector", "", "the selector is not valid: %v", err)
	} else if !sel.Matches(labels.Set(d.Spec.Template.Labels)) {
		c.add(finding.SelectorMismatch, "spec.selector", "give the template the selector's labels", "the selector does not match the labels of the Deployment's own template")
	}
	c.podSpec(&d.Spec.Template.Spec, "spec.template.spec")
}

func (c *checker) podSpec(s *corev1.PodSpec, path string) {
	if len(s.Containers) == 0 {
		c.add(finding.RequiredField, path, "", "%s has no containers", path)
	}
	volumes := map[string]bool{}
	for _, v := range s.Volumes {
		volumes[v.Name] = true
	}
	names := map[string]bool{}
	for i := range s.InitContainers {
		c.container(at(path, ".initContainers[%d]", i), &s.InitContainers[i], volumes, names)
	}
	for i := range s.Containers {
		c.container(at(path, ".containers[%d]", i), &s.Containers[i], volumes, names)
	}
}

func (c *checker) container(path string, k *corev1.Container, volumes, names map[string]bool) {
	if k.Name == "" {
		c.add(finding.RequiredField, path, "", "%s has no name", path)
	} else if names[k.Name] {
		c.addValue(finding.InvalidReference, path+".name", "", "container name %q is used twice", k.Name)
	}
	names[k.Name] = true
	if k.Image == "" {
		c.add(finding.RequiredField, path, "", "container %q has no image", k.Name)
	}
	for i, p := range k.Ports {
		if p.ContainerPort < 1 || p.ContainerPort > 65535 {
			c.addValue(finding.OutOfRange, at(path, ".ports[%d].containerPort", i), "", "port %d is not from 1 to 65535", p.ContainerPort)
		}
	}
	for i, m := range k.VolumeMounts {
		if !volumes[m.Name] {
			c.addValue(finding.MissingVolume, at(path, ".volumeMounts[%d].name", i), "add it to volumes", "the pod has no volume %q", m.Name)
		}
	}
	for i, e := range k.Env {
		if e.Name == "" || strings.ContainsAny(e.Name, "=\x00") {
			c.add(finding.InvalidReference, at(path, ".env[%d]", i), "", "%q is not a name for an environment variable", e.Name)
		}
	}
	for name, p := range map[string]*corev1.Probe{"livenessProbe": k.LivenessProbe, "readinessProbe": k.ReadinessProbe, "startupProbe": k.StartupProbe} {
		if p == nil {
			continue
		}
		n := 0
		for _, set := range []bool{p.HTTPGet != nil, p.TCPSocket != nil, p.Exec != nil, p.GRPC != nil} {
			if set {
				n++
			}
		}
		if n != 1 {
			c.add(finding.InvalidProbe, path+"."+name, "", "%s needs exactly one of httpGet, tcpSocket, exec and grpc", name)
		}
	}
}

// configMap checks the MeshConfig in Istio's ConfigMap.
func (c *checker) configMap(*corev1.ConfigMap) {
	if c.o.Name != "istio" || !c.o.Has(resource.MeshConfigPath) {
		return
	}
	m, findings := resource.MeshConfig(c.o)
	c.findings = append(c.findings, findings...)
	if m != nil {
		c.meshConfig(m)
	}
}
