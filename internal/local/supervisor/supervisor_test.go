package supervisor

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"lateen.dev/lateen/internal/api"
	"lateen.dev/lateen/internal/local/manifest"
	"lateen.dev/lateen/internal/local/pod"
)

// TestRollout_neverBelowAvailableAndEnds plays whole rollouts in which started
// pods become ready some time later.
func TestRollout_neverBelowAvailableAndEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rollout{
			replicas: rapid.IntRange(0, 8).Draw(t, "replicas"),
			surge:    rapid.IntRange(0, 3).Draw(t, "surge"), unavailable: rapid.IntRange(0, 3).Draw(t, "unavailable"),
		}
		n := rapid.IntRange(0, 8).Draw(t, "old")
		r.old = tally{n, n}
		floor := min(n, r.replicas-min(r.unavailable, r.replicas))
		surge := r.surge
		if surge == 0 && r.unavailable == 0 {
			surge = 1
		}
		for range 200 {
			start, stopOld, stopCurrent := r.step()
			if r.current.all+r.old.all+start > max(r.replicas+surge, n) {
				t.Fatalf("%+v starts %d: above the surge", r, start)
			}
			r.current.all += start
			r.current.all -= stopCurrent
			r.current.ready = min(r.current.ready, r.current.all)
			notReady := r.old.all - r.old.ready
			r.old.ready -= max(stopOld-notReady, 0)
			r.old.all -= stopOld
			if r.current.ready+r.old.ready < floor && r.replicas > 0 {
				t.Fatalf("%+v: fewer than %d ready", r, floor)
			}
			if r.current.ready < r.current.all && rapid.Bool().Draw(t, "one becomes ready") {
				r.current.ready++
			}
			if r.old.all == 0 && r.current == (tally{r.replicas, r.replicas}) {
				return
			}
		}
		t.Fatalf("%+v never ends", r)
	})
}

func TestRollout_recreateStopsAllFirst(t *testing.T) {
	r := rollout{replicas: 2, recreate: true, old: tally{2, 2}}
	if start, stop, _ := r.step(); start != 0 || stop != 2 {
		t.Errorf("first step: start %d stop %d", start, stop)
	}
	r.old, r.leaving = tally{}, 2
	if start, _, _ := r.step(); start != 0 {
		t.Error("started before the old ones had ended")
	}
	r.leaving = 0
	if start, _, _ := r.step(); start != 2 {
		t.Errorf("started %d", start)
	}
}

func TestMode_injectionRules(t *testing.T) {
	ns := func(labels map[string]string) *manifest.Namespace {
		return &manifest.Namespace{Metadata: manifest.Metadata{Labels: labels}}
	}
	s := &Supervisor{namespaces: map[string]*manifest.Namespace{
		"on":  ns(map[string]string{"istio-injection": "enabled"}),
		"off": ns(map[string]string{"istio-injection": "disabled"}),
		"rev": ns(map[string]string{"istio.io/rev": "stable"}),
	}}
	label := func(v string) map[string]string { return map[string]string{"sidecar.istio.io/inject": v} }
	for _, c := range []struct {
		what, namespace     string
		labels, annotations map[string]string
		want                pod.Mode
	}{
		{"default counts as labelled", "default", nil, nil, pod.Sidecar},
		{"another does not", "observability", nil, nil, pod.Bare},
		{"labelled", "on", nil, nil, pod.Sidecar},
		{"by revision", "rev", nil, nil, pod.Sidecar},
		{"pod opts out by label", "on", label("false"), nil, pod.Bare},
		{"pod opts out by annotation", "default", nil, label("false"), pod.Bare},
		{"pod opts in", "observability", label("true"), nil, pod.Sidecar},
		{"the label wins over the annotation", "on", label("true"), label("false"), pod.Sidecar},
		{"disabled cannot be overruled", "off", label("true"), nil, pod.Bare},
		{"never in kube-system", "kube-system", label("true"), nil, pod.Bare},
		{"gateway", "istio-system", label("true"), map[string]string{"inject.istio.io/templates": "gateway"}, pod.Gateway},
		{"gateway that is not injected", "istio-system", nil, map[string]string{"inject.istio.io/templates": "gateway"}, pod.Bare},
	} {
		m := &manifest.Pod{Metadata: manifest.Metadata{Labels: c.labels, Annotations: c.annotations}}
		if got := s.mode(c.namespace, m); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
}

func TestMatch_imagesByNameTagAndPattern(t *testing.T) {
	images := map[string]manifest.Program{
		"app:1.2": {Args: []string{"exact"}}, "app": {Args: []string{"bare"}},
		"reg:5000/team/*": {Args: []string{"team"}}, "reg:5000/team/x*": {Args: []string{"x"}},
	}
	for image, want := range map[string]string{
		"app:1.2": "exact", "app:9": "bare", "app@sha256:00": "bare", "reg:5000/team/y:1": "team", "reg:5000/team/x1": "x", "other": "",
	} {
		p, ok := match(images, image)
		if ok != (want != "") || (ok && p.Args[0] != want) {
			t.Errorf("%s: %v %v, want %q", image, p, ok, want)
		}
	}
}

func TestOpens_endpointsOfAServiceAppearTogether(t *testing.T) {
	s := New(Options{Env: &pod.Env{}})
	key, at := api.ObjectKey{Kind: "Service", Name: "web"}, time.Now()
	pods := func(ready ...bool) (out []backend) {
		for _, r := range ready {
			out = append(out, backend{status: pod.Status{Ready: r}})
		}
		return out
	}
	for _, c := range []struct {
		what  string
		after time.Duration
		pods  []backend
		want  bool
	}{
		{"nobody is ready", 0, pods(false, false), false},
		{"one waits for the other", 0, pods(true, false), false},
		{"still", openLimit - 1, pods(true, false), false},
		{"but not for ever", openLimit, pods(true, false), true},
		{"nor again", openLimit, pods(false, true), true},
		{"nor when all have gone", time.Hour, pods(false), true},
	} {
		if got := s.opens(key, c.pods, at.Add(c.after)); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
	if other := (api.ObjectKey{Kind: "Service", Name: "other"}); s.opens(other, pods(true, false), at) || !s.opens(other, pods(true, true), at) {
		t.Error("two ready pods open their Service at once")
	}
}
