package manifest

import (
	"fmt"
	"net/netip"
	"strings"
)

// Lookup finds configuration that environment and volumes refer to. Both return
// nil when there is no such object.
type Lookup interface {
	ConfigMap(namespace, name string) *ConfigMap
	Secret(namespace, name string) *Secret
}

// PodFacts are what fieldRef can ask for beside the manifest.
type PodFacts struct {
	IPs      []netip.Addr
	HostIP   netip.Addr
	NodeName string
}

// Environment evaluates a container's env and envFrom in Kubernetes' order:
// later entries win, $(NAME) refers to earlier ones, $$ is a dollar sign.
func Environment(pod *Pod, c *Container, facts PodFacts, objects Lookup) ([]string, error) {
	e := &environment{values: map[string]string{}}
	for _, from := range c.EnvFrom {
		data, err := fromObject(pod.Metadata.Namespace, from, objects)
		if err != nil {
			return nil, err
		}
		for k, v := range data {
			e.set(from.Prefix+k, v)
		}
	}
	for _, v := range c.Env {
		value := Expand(v.Value, e.values)
		if v.ValueFrom != nil {
			var ok bool
			var err error
			if value, ok, err = v.ValueFrom.value(pod, c, facts, objects); err != nil {
				return nil, fmt.Errorf("env %s: %w", v.Name, err)
			}
			if !ok {
				continue // optional and missing
			}
		}
		e.set(v.Name, value)
	}
	return e.list(), nil
}

type environment struct {
	names  []string
	values map[string]string
}

func (e *environment) set(name, value string) {
	if _, ok := e.values[name]; !ok {
		e.names = append(e.names, name)
	}
	e.values[name] = value
}

func (e *environment) list() []string {
	out := make([]string, len(e.names))
	for i, n := range e.names {
		out[i] = n + "=" + e.values[n]
	}
	return out
}

func fromObject(ns string, from EnvFromSource, objects Lookup) (map[string]string, error) {
	switch {
	case from.ConfigMapRef != nil:
		cm := objects.ConfigMap(ns, from.ConfigMapRef.Name)
		if cm == nil {
			return nil, missing("ConfigMap", ns, *from.ConfigMapRef)
		}
		return cm.Data, nil
	case from.SecretRef != nil:
		s := objects.Secret(ns, from.SecretRef.Name)
		if s == nil {
			return nil, missing("Secret", ns, *from.SecretRef)
		}
		return s.text(), nil
	}
	return nil, nil
}

func missing(kind, ns string, ref NameRef) error {
	if ref.Optional {
		return nil
	}
	return fmt.Errorf("envFrom: %s/%s.%s does not exist", kind, ref.Name, ns)
}

func (s *Secret) text() map[string]string {
	out := map[string]string{}
	for k, v := range s.Data {
		out[k] = string(v)
	}
	for k, v := range s.StringData {
		out[k] = v
	}
	return out
}

// value returns the value, and false for an optional one that is missing.
func (s *EnvSource) value(pod *Pod, c *Container, facts PodFacts, objects Lookup) (string, bool, error) {
	ns := pod.Metadata.Namespace
	switch {
	case s.FieldRef != nil:
		v, err := field(pod, s.FieldRef.FieldPath, facts)
		return v, true, err
	case s.ResourceFieldRef != nil:
		q, ok := c.resource(s.ResourceFieldRef.Resource)
		if !ok {
			return "", false, fmt.Errorf("resourceFieldRef %s: the container does not set it", s.ResourceFieldRef.Resource)
		}
		v, err := divide(q, s.ResourceFieldRef.Divisor)
		return v, true, err
	case s.ConfigMapKeyRef != nil:
		ref := s.ConfigMapKeyRef
		if cm := objects.ConfigMap(ns, ref.Name); cm != nil {
			if v, ok := cm.Data[ref.Key]; ok {
				return v, true, nil
			}
		}
		return "", false, ref.missing("ConfigMap", ns)
	case s.SecretKeyRef != nil:
		ref := s.SecretKeyRef
		if sec := objects.Secret(ns, ref.Name); sec != nil {
			if v, ok := sec.text()[ref.Key]; ok {
				return v, true, nil
			}
		}
		return "", false, ref.missing("Secret", ns)
	}
	return "", false, fmt.Errorf("valueFrom is empty")
}

func (r *KeyRef) missing(kind, ns string) error {
	if r.Optional {
		return nil
	}
	return fmt.Errorf("%s/%s.%s has no key %q, or does not exist", kind, r.Name, ns, r.Key)
}

func (c *Container) resource(name string) (Quantity, bool) {
	if n, ok := strings.CutPrefix(name, "limits."); ok {
		q, ok := c.Resources.Limits[n]
		return q, ok
	}
	if n, ok := strings.CutPrefix(name, "requests."); ok {
		q, ok := c.Resources.Requests[n]
		return q, ok
	}
	return "", false
}

// divide returns q in units of the divisor, rounded up as Kubernetes does.
func divide(q, divisor Quantity) (string, error) {
	v, err := q.Value()
	if err != nil {
		return "", err
	}
	d := 1.0
	if divisor != "" && divisor != "0" {
		if d, err = divisor.Value(); err != nil {
			return "", err
		}
	}
	n := int64(v / d)
	if float64(n)*d < v {
		n++
	}
	return fmt.Sprint(n), nil
}

// field evaluates a fieldRef.
func field(pod *Pod, path string, facts PodFacts) (string, error) {
	switch path {
	case "metadata.name":
		return pod.Metadata.Name, nil
	case "metadata.namespace":
		return pod.Metadata.Namespace, nil
	case "metadata.uid":
		return pod.Metadata.UID, nil
	case "spec.nodeName":
		return facts.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccount(), nil
	case "status.hostIP":
		return facts.HostIP.String(), nil
	case "status.podIP":
		return facts.IPs[0].String(), nil
	case "status.podIPs":
		var all []string
		for _, ip := range facts.IPs {
			all = append(all, ip.String())
		}
		return strings.Join(all, ","), nil
	}
	for prefix, m := range map[string]map[string]string{
		"metadata.labels": pod.Metadata.Labels, "metadata.annotations": pod.Metadata.Annotations,
	} {
		if key, ok := strings.CutPrefix(path, prefix+"['"); ok && strings.HasSuffix(key, "']") {
			return m[strings.TrimSuffix(key, "']")], nil
		}
	}
	return "", fmt.Errorf("fieldRef %q is not supported", path)
}

// ServiceAccount returns the pod's service account, "default" where none is named.
func (s *PodSpec) ServiceAccount() string {
	if s.ServiceAccountName != "" {
		return s.ServiceAccountName
	}
	if s.DeprecatedServiceAccount != "" {
		return s.DeprecatedServiceAccount
	}
	return "default"
}

// Expand replaces $(NAME) by values; an unknown name stays as written, and $$
// escapes.
func Expand(s string, values map[string]string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			b.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(s[i:], ')')
			if end < 0 {
				b.WriteString(s[i:])
				return b.String()
			}
			name := s[i+2 : i+end]
			if v, ok := values[name]; ok {
				b.WriteString(v)
			} else {
				b.WriteString(s[i : i+end+1])
			}
			i += end
		default:
			b.WriteByte('$')
		}
	}
	return b.String()
}

// ExpandAll expands command or args with an environment.
func ExpandAll(list, env []string) []string {
	values := map[string]string{}
	for _, e := range env {
		k, v, _ := strings.Cut(e, "=")
		values[k] = v
	}
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = Expand(s, values)
	}
	return out
}
