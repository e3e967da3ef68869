package resource

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// PodTemplate is the view of a pod as a manifest describes it: the template of a
// workload, or a Pod that stands for itself. Paths are those of the object.
type PodTemplate struct {
	// Path is that of the template, "" for a Pod.
	Path                string
	Labels, Annotations map[string]string
	// ServiceAccount is as written, "" for the default one.
	ServiceAccount string
	Containers     []Container
	// Needs are the objects of the namespace that the pod waits for; optional
	// ones are left out.
	Needs []Need
}

// Container is the view of one container or init container.
type Container struct {
	Path, Name, Image string
	Env               []EnvVar
	Ports             []ContainerPort
	// ConfigMaps are the names of those mounted into the container.
	ConfigMaps []string
	// MemoryLimit is in bytes, 0 for none.
	MemoryLimit int64
}

// EnvVar is one variable with a plain value; Path is that of the value.
type EnvVar struct{ Path, Name, Value string }

// Need names an object that a pod refers to.
type Need struct {
	Path string
	Kind Kind
	Name string
}

// PodTemplate returns the view of the pod that o describes; false for kinds that
// describe none.
func (o *Object) PodTemplate() (*PodTemplate, bool) {
	path := "spec.template"
	var t corev1.PodTemplateSpec
	switch s := o.Spec.(type) {
	case *appsv1.Deployment:
		t = s.Spec.Template
	case *appsv1.StatefulSet:
		t = s.Spec.Template
	case *appsv1.DaemonSet:
		t = s.Spec.Template
	case *batchv1.Job:
		t = s.Spec.Template
	case *corev1.Pod:
		path, t = "", corev1.PodTemplateSpec{ObjectMeta: s.ObjectMeta, Spec: s.Spec}
	default:
		return nil, false
	}
	v := &PodTemplate{
		Path: path, Labels: t.Labels, Annotations: t.Annotations,
		ServiceAccount: t.Spec.ServiceAccountName,
	}
	spec := Field(path, "spec")
	maps := v.volumes(spec, t.Spec.Volumes)
	for i := range t.Spec.Containers {
		v.container(fmt.Sprintf("%s.containers[%d]", spec, i), &t.Spec.Containers[i], maps)
	}
	for i := range t.Spec.InitContainers {
		v.container(fmt.Sprintf("%s.initContainers[%d]", spec, i), &t.Spec.InitContainers[i], maps)
	}
	return v, true
}

// volumes notes what volumes need and returns the ConfigMap of each volume.
func (v *PodTemplate) volumes(spec string, volumes []corev1.Volume) map[string]string {
	maps := map[string]string{}
	for i, vol := range volumes {
		path := fmt.Sprintf("%s.volumes[%d]", spec, i)
		if c := vol.ConfigMap; c != nil {
			maps[vol.Name] = c.Name
			v.need(path+".configMap.name", KubeConfigMap, c.Name, c.Optional)
		}
		if s := vol.Secret; s != nil {
			v.need(path+".secret.secretName", KubeSecret, s.SecretName, s.Optional)
		}
	}
	return maps
}

func (v *PodTemplate) need(path string, kind Kind, name string, optional *bool) {
	if name != "" && (optional == nil || !*optional) {
		v.Needs = append(v.Needs, Need{Path: path, Kind: kind, Name: name})
	}
}

func (v *PodTemplate) container(path string, c *corev1.Container, maps map[string]string) {
	out := Container{Path: path, Name: c.Name, Image: c.Image, Ports: containerPorts(c.Ports)}
	if m, ok := c.Resources.Limits[corev1.ResourceMemory]; ok {
		out.MemoryLimit = m.Value()
	}
	for _, m := range c.VolumeMounts {
		if name := maps[m.Name]; name != "" {
			out.ConfigMaps = append(out.ConfigMaps, name)
		}
	}
	for i, e := range c.Env {
		at := fmt.Sprintf("%s.env[%d]", path, i)
		if e.ValueFrom == nil {
			out.Env = append(out.Env, EnvVar{Path: at + ".value", Name: e.Name, Value: e.Value})
			continue
		}
		if k := e.ValueFrom.ConfigMapKeyRef; k != nil {
			v.need(at+".valueFrom.configMapKeyRef.name", KubeConfigMap, k.Name, k.Optional)
		}
		if k := e.ValueFrom.SecretKeyRef; k != nil {
			v.need(at+".valueFrom.secretKeyRef.name", KubeSecret, k.Name, k.Optional)
		}
	}
	for i, e := range c.EnvFrom {
		at := fmt.Sprintf("%s.envFrom[%d]", path, i)
		if k := e.ConfigMapRef; k != nil {
			v.need(at+".configMapRef.name", KubeConfigMap, k.Name, k.Optional)
		}
		if k := e.SecretRef; k != nil {
			v.need(at+".secretRef.name", KubeSecret, k.Name, k.Optional)
		}
	}
	v.Containers = append(v.Containers, out)
}
