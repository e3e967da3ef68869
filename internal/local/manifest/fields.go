package manifest

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// meaningless are fields of pods and deployments that have no effect on one
// machine, whatever they say: scheduling, image pulling, history.
var meaningless = []string{
	"spec.affinity", "spec.tolerations", "spec.nodeSelector", "spec.topologySpreadConstraints",
	"spec.schedulerName", "spec.priorityClassName", "spec.priority", "spec.imagePullSecrets",
	"spec.enableServiceLinks", "spec.automountServiceAccountToken", "spec.preemptionPolicy",
	"spec.runtimeClassName", "spec.os", "spec.dnsPolicy",
	"spec.containers[].imagePullPolicy", "spec.initContainers[].imagePullPolicy",
	"spec.containers[].terminationMessagePath", "spec.containers[].terminationMessagePolicy",
	"spec.containers[].stdin", "spec.containers[].tty",
	// A container has no more than the capabilities a restricted one has.
	"spec.securityContext.runAsNonRoot", "spec.securityContext.fsGroup", "spec.securityContext.seccompProfile",
	"spec.containers[].securityContext.runAsNonRoot", "spec.containers[].securityContext.allowPrivilegeEscalation",
	"spec.containers[].securityContext.capabilities.drop", "spec.containers[].securityContext.seccompProfile",
	"metadata.managedFields", "metadata.resourceVersion", "metadata.generation", "metadata.selfLink", "status",
}

// Unsupported lists the fields of a pod in JSON form that are written but not
// honoured, sorted.
func Unsupported(pod json.RawMessage) []string {
	var v any
	if json.Unmarshal(pod, &v) != nil {
		return nil // decoding it reports the error
	}
	var out []string
	walk("", v, reflect.TypeFor[Pod](), &out)
	slices.Sort(out)
	return slices.Compact(out)
}

func walk(path string, v any, t reflect.Type, out *[]string) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch v := v.(type) {
	case map[string]any:
		if t.Kind() != reflect.Struct {
			return // a map, or a type that decodes itself
		}
		fields := jsonFields(t)
		for name, child := range v {
			p := strings.TrimPrefix(path+"."+name, ".")
			if ft, ok := fields[name]; ok {
				walk(p, child, ft, out)
			} else if !ignorable(p, child) {
				*out = append(*out, p)
			}
		}
	case []any:
		if t.Kind() != reflect.Slice {
			return
		}
		for _, child := range v {
			walk(path+"[]", child, t.Elem(), out)
		}
	}
}

// ignorable says that a field is without meaning here, or that all below it is.
func ignorable(path string, v any) bool {
	if v == nil || v == false || slices.Contains(meaningless, path) {
		return true
	}
	m, ok := v.(map[string]any)
	if !ok {
		return false
	}
	for name, child := range m {
		if !ignorable(path+"."+name, child) {
			return false
		}
	}
	return true
}

func jsonFields(t reflect.Type) map[string]reflect.Type {
	out := map[string]reflect.Type{}
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			for name, ft := range jsonFields(f.Type) {
				out[name] = ft
			}
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		out[name] = f.Type
	}
	return out
}

// IntOrString is a port by number or by name, or a count or a percentage.
type IntOrString struct {
	Int int
	Str string
}

// UnmarshalJSON accepts a number or a string; a string of digits is a number.
func (v *IntOrString) UnmarshalJSON(data []byte) error {
	if err := json.Unmarshal(data, &v.Int); err == nil {
		return nil
	}
	if err := json.Unmarshal(data, &v.Str); err != nil {
		return fmt.Errorf("%s is neither a number nor a string", data)
	}
	if n, err := strconv.Atoi(v.Str); err == nil {
		v.Int, v.Str = n, ""
	}
	return nil
}

// MarshalJSON writes what was read.
func (v IntOrString) MarshalJSON() ([]byte, error) {
	if v.Str != "" {
		return json.Marshal(v.Str)
	}
	return json.Marshal(v.Int)
}

// IsZero says that nothing was written.
func (v IntOrString) IsZero() bool { return v == IntOrString{} }

// Scale returns the count, or the percentage of total, rounded up or down.
func (v *IntOrString) Scale(total, fallback int, up bool) int {
	if v == nil {
		return fallback
	}
	pct, ok := strings.CutSuffix(v.Str, "%")
	if !ok {
		return v.Int
	}
	n, err := strconv.Atoi(pct)
	if err != nil {
		return fallback
	}
	if up {
		return (total*n + 99) / 100
	}
	return total * n / 100
}

// Port resolves a port by number or by the name of a container port; 0 means
// that no container has it.
func (v IntOrString) Port(containers []Container) int {
	if v.Str == "" {
		return v.Int
	}
	for _, c := range containers {
		for _, p := range c.Ports {
			if p.Name == v.Str {
				return p.ContainerPort
			}
		}
	}
	return 0
}

// Quantity is a resource.Quantity as written. JSON numbers are accepted too.
type Quantity string

// UnmarshalJSON accepts a string or a number.
func (q *Quantity) UnmarshalJSON(data []byte) error {
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		s = string(data)
	}
	*q = Quantity(s)
	return nil
}

var suffixes = []struct {
	s string
	f float64
}{
	{"Ki", 1 << 10},
	{"Mi", 1 << 20},
	{"Gi", 1 << 30},
	{"Ti", 1 << 40},
	{"Pi", 1 << 50},
	{"m", 1e-3},
	{"k", 1e3},
	{"M", 1e6},
	{"G", 1e9},
	{"T", 1e12},
	{"P", 1e15},
}

// Value returns the quantity as a number: cores or bytes.
func (q Quantity) Value() (float64, error) {
	s, factor := string(q), 1.0
	for _, x := range suffixes {
		if cut, ok := strings.CutSuffix(s, x.s); ok {
			s, factor = cut, x.f
			break
		}
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || f < 0 {
		return 0, fmt.Errorf("quantity %q is not a number with a suffix such as m, Mi or Gi", string(q))
	}
	return f * factor, nil
}
