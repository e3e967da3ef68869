package manifest

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestExpand_asKubernetesDoes(t *testing.T) {
	values := map[string]string{"A": "1", "B": "$(A)"}
	for in, want := range map[string]string{
		"": "", "$(A)": "1", "x$(A)y": "x1y", "$$(A)": "$(A)", "$(C)": "$(C)", "$(A": "$(A", "$": "$", "$A": "$A",
		"$(B)": "$(A)", "$$$$": "$$",
	} {
		if got := Expand(in, values); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzExpand(f *testing.F) {
	f.Add("a$(A)$$(B")
	f.Fuzz(func(t *testing.T, s string) {
		got := Expand(s, nil)
		if !strings.Contains(s, "$$") && got != s {
			t.Errorf("without values and escapes %q became %q", s, got)
		}
	})
}

func FuzzQuantity(f *testing.F) {
	for _, s := range []string{"100m", "128Mi", "2", "1.5Gi", "x", "-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if v, err := Quantity(s).Value(); err == nil && v < 0 {
			t.Errorf("%q is %v", s, v)
		}
	})
}

func TestQuantity_values(t *testing.T) {
	for q, want := range map[Quantity]float64{"100m": 0.1, "128Mi": 128 << 20, "2": 2, "1k": 1000, "1.5Gi": 1.5 * (1 << 30)} {
		if got, err := q.Value(); err != nil || got != want {
			t.Errorf("%s: %v %v, want %v", q, got, err, want)
		}
	}
	if _, err := Quantity("lots").Value(); err == nil {
		t.Error("lots is a quantity")
	}
}

func TestUnsupported_namesWhatIsNotHonoured(t *testing.T) {
	got := Unsupported(json.RawMessage(`{"metadata":{"name":"x","finalizers":["f"]},"spec":{"affinity":{"a":1},"hostPID":false,"hostIPC":true,
		"containers":[{"name":"c","imagePullPolicy":"Always","volumeDevices":[{"name":"v"}],
		"securityContext":{"runAsNonRoot":true,"capabilities":{"drop":["ALL"]}},
		"readinessProbe":{"httpGet":{"port":"http"}}},{"name":"d","securityContext":{"capabilities":{"add":["NET_ADMIN"]}}}],
		"volumes":[{"name":"h","hostPath":{"path":"/"}}]}}`))
	want := []string{
		"metadata.finalizers", "spec.containers[].securityContext.capabilities", "spec.containers[].volumeDevices",
		"spec.hostIPC", "spec.volumes[].hostPath",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

type objects struct{}

func (objects) ConfigMap(ns, name string) *ConfigMap {
	if ns+"/"+name != "ns/cm" {
		return nil
	}
	return &ConfigMap{Data: map[string]string{"k": "v"}}
}

func (objects) Secret(ns, name string) *Secret {
	if ns+"/"+name != "ns/s" {
		return nil
	}
	return &Secret{Data: map[string][]byte{"p": []byte("w")}}
}

func TestEnvironment_sourcesAndOrder(t *testing.T) {
	var c Container
	if err := json.Unmarshal([]byte(`{"name":"c","envFrom":[{"prefix":"P_","configMapRef":{"name":"cm"}},{"secretRef":{"name":"none","optional":true}}],
		"resources":{"limits":{"memory":"64Mi"}},
		"env":[{"name":"A","value":"$(P_k)!"},{"name":"P_k","value":"over"},{"name":"L","valueFrom":{"fieldRef":{"fieldPath":"metadata.labels['app']"}}},
		{"name":"IP","valueFrom":{"fieldRef":{"fieldPath":"status.podIP"}}},{"name":"O","valueFrom":{"secretKeyRef":{"name":"s","key":"x","optional":true}}},
		{"name":"S","valueFrom":{"secretKeyRef":{"name":"s","key":"p"}}},
		{"name":"M","valueFrom":{"resourceFieldRef":{"resource":"limits.memory","divisor":"1Mi"}}}]}`), &c); err != nil {
		t.Fatal(err)
	}
	pod := &Pod{Metadata: Metadata{Namespace: "ns", Labels: map[string]string{"app": "web"}}}
	facts := PodFacts{IPs: []netip.Addr{netip.MustParseAddr("10.77.0.9")}}
	got, err := Environment(pod, &c, facts, objects{})
	want := []string{"P_k=over", "A=v!", "L=web", "IP=10.77.0.9", "S=w", "M=64"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q %v, want %q", got, err, want)
	}
	c.Env = []EnvVar{{Name: "X", ValueFrom: &EnvSource{ConfigMapKeyRef: &KeyRef{Name: "cm", Key: "gone"}}}}
	if _, err := Environment(pod, &c, facts, objects{}); err == nil || !strings.Contains(err.Error(), `ConfigMap/cm.ns has no key "gone"`) {
		t.Errorf("a missing key: %v", err)
	}
}

func TestProgram_threeForms(t *testing.T) {
	for in, want := range map[string]Program{
		`"bin/app"`:            {Args: []string{"bin/app"}},
		`["python3","app.py"]`: {Args: []string{"python3", "app.py"}},
		`{"program":["/app"],"rootFS":"./image"}`: {Args: []string{"/app"}, RootFS: "./image"},
	} {
		var p Program
		if err := json.Unmarshal([]byte(in), &p); err != nil || !slices.Equal(p.Args, want.Args) || p.RootFS != want.RootFS {
			t.Errorf("%s: %+v %v", in, p, err)
		}
	}
}
