//go:build linux

package liverun

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"lateen.dev/lateen/internal/testkit/scenario"
)

func TestShortPlace_keepsFileAndLine(t *testing.T) {
	for in, want := range map[string]string{
		"VirtualService/a.default#spec.http[0] (/x/y z/mesh.yaml:8)": "VirtualService/a.default#spec.http[0] mesh.yaml:8",
		"VirtualService/a.default#spec.http[0] (mesh.yaml:8)":        "VirtualService/a.default#spec.http[0] mesh.yaml:8",
		"VirtualService/a.default#spec.http[0]":                      "VirtualService/a.default#spec.http[0]",
		"":                                                           "",
	} {
		if got := shortPlace(in); got != want {
			t.Errorf("shortPlace(%q) = %q, want %q", in, got, want)
		}
	}
}

// TestFill_joinsHops: the callee's line comes before the caller's, whose route
// and attempts count; a request that only the callee logged is missing.
func TestFill_joinsHops(t *testing.T) {
	web := scenario.Workload{Name: "web", Version: "v1", Namespace: "default", Sidecar: true}
	c := &cluster{dir: t.TempDir(), sc: &scenario.Scenario{Workloads: []scenario.Workload{web, {Name: "a", Version: "v1", Namespace: "default"}}}}
	write := func(pod, name, text string) {
		path := filepath.Join(c.data(), "logs", pod, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("default_web-v1-1-2", "istio-proxy.log", "time=now level=INFO\n"+
		`{"mark":"m1","flags":null,"details":"via_upstream","route":"canary","origin":null,"route_origin":"VirtualService/a (/f/mesh.yaml:8)","attempts":2,"cluster":"outbound|8080||a"}`+"\n")
	write("default_a-v1-1-2", "istio-proxy.log",
		`{"mark":"m1","flags":"UAEX,DC","details":"denied","attempts":0,"cluster":null}`+"\n"+`{"mark":"m2","details":"denied","attempts":0}`+"\n")
	write("default_a-v1-1-2", "app.log", "served m1\nserved m1\nserved m3\n")
	results := []scenario.Result{{Mark: "m1", Status: 403}, {Mark: "m2", Status: 403}}
	if missing := c.fill(scenario.Call{From: "web"}, results); missing != 1 {
		t.Errorf("%d requests are missing, want 1", missing)
	}
	r := results[0]
	if r.Route != "canary" || r.Attempts != 2 || len(r.Flags) != 2 || r.Mirrored["a-v1"] != 2 {
		t.Errorf("got %+v", r)
	}
	if len(r.Details) != 2 || r.Details[0] != "denied" || r.Origins[1] != "VirtualService/a mesh.yaml:8" {
		t.Errorf("details %q, origins %q", r.Details, r.Origins)
	}
}

// TestAlive_knowsWhatIsLeft: a process is found below its parent, and is gone
// when it has ended.
func TestAlive_knowsWhatIsLeft(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var mine []process
	for _, p := range descendants(os.Getpid()) {
		if p.pid == cmd.Process.Pid {
			mine = append(mine, p)
		}
	}
	if len(mine) != 1 || len(alive(mine)) != 1 {
		t.Errorf("the child is not seen: %v", mine)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	if left := alive(mine); left != nil {
		t.Errorf("%v are left after their end", left)
	}
}

// TestRefusals_areHeard: a NACK is found in what the control plane logs.
func TestRefusals_areHeard(t *testing.T) {
	c := &cluster{dir: t.TempDir()}
	if err := os.MkdirAll(filepath.Join(c.data(), "logs"), 0o700); err != nil {
		t.Fatal(err)
	}
	log := "time=now level=INFO msg=\"proxy connected\" proxy=a\n" +
		"time=now level=WARN msg=\"proxy refused a push\" part=control proxy=a type=CDS nonce=1 reason=\"Invalid duration\"\n"
	if err := os.WriteFile(filepath.Join(c.data(), "logs", "control.log"), []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := c.refusals(); len(got) != 1 || !strings.Contains(got[0], "Invalid duration") {
		t.Errorf("got %q, want the one refusal with its reason", got)
	}
}
