package supervisor

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"lateen.dev/lateen/internal/api"
	"lateen.dev/lateen/internal/local/manifest"
	"lateen.dev/lateen/internal/local/pod"
)

// maxPods bounds pod numbers: the addresses of the pods' range.
const maxPods = 60000

// reconcile makes one step from what runs towards what is wanted.
func (s *Supervisor) reconcile() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.synced || s.closing {
		return
	}
	s.forget()
	s.allowHostPorts()
	wanted := map[api.ObjectKey]bool{}
	for _, key := range s.sortedKeys() {
		switch v := s.objects[key].value.(type) {
		case *manifest.Deployment:
			wanted[key] = true
			s.tell(key, s.deployment(key, v))
		case *manifest.Pod:
			if s.objects[key].event.Source == "local" {
				continue // our own report coming back
			}
			wanted[key] = true
			s.tell(key, s.barePod(key, v))
		}
	}
	for _, p := range s.pods {
		if !wanted[p.owner] && !p.gone {
			s.stop(p)
		}
	}
	ready := s.readiness() // before the rules, which then cover every pod it counts
	s.serviceListeners()
	s.applyServices()
	s.names.set(s.buildNames())
	s.reportReady(ready)
}

func (s *Supervisor) sortedKeys() []api.ObjectKey {
	keys := make([]api.ObjectKey, 0, len(s.objects))
	for k := range s.objects {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b api.ObjectKey) int {
		return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return keys
}

// forget drops pods that have ended and left.
func (s *Supervisor) forget() {
	s.pods = slices.DeleteFunc(s.pods, func(p *running) bool {
		select {
		case <-p.Done():
			return true
		default:
			return false
		}
	})
}

// deployment makes one step of a Deployment: start what is missing as far as the
// surge allows, stop what is old as far as enough pods are ready.
func (s *Supervisor) deployment(key api.ObjectKey, d *manifest.Deployment) error {
	base, hash, err := s.template(key, &d.Spec.Template, "Deployment", d.Metadata.Name)
	if err != nil {
		return err
	}
	for k, v := range d.Spec.Selector.MatchLabels {
		if d.Spec.Template.Metadata.Labels[k] != v {
			return fmt.Errorf("spec.selector %s=%s does not match the labels of spec.template", k, v)
		}
	}
	var current, old []*running
	for _, p := range s.pods {
		switch {
		case p.owner != key || p.gone:
		case p.hash == hash:
			current = append(current, p)
		default:
			old = append(old, p)
		}
	}
	replicas := 1
	if d.Spec.Replicas != nil {
		replicas = max(*d.Spec.Replicas, 0)
	}
	r := rollout{replicas: replicas, current: count(current), old: count(old)}
	ru := d.Spec.Strategy.RollingUpdate
	r.surge = ru.MaxSurge.Scale(replicas, (replicas+3)/4, true)
	r.unavailable = ru.MaxUnavailable.Scale(replicas, replicas/4, false)
	r.recreate = d.Spec.Strategy.Type == "Recreate"
	r.leaving = s.leaving(key)
	start, stopOld, stopCurrent := r.step()
	s.stopFirst(old, stopOld)
	s.stopFirst(current, stopCurrent)
	for range start {
		s.startReplica(key, d, base, hash)
	}
	return nil
}

func (s *Supervisor) leaving(key api.ObjectKey) int {
	n := 0
	for _, p := range s.pods {
		if p.owner == key && p.gone {
			n++
		}
	}
	return n
}

// tally counts pods and how many of them are ready.
type tally struct{ all, ready int }

func count(pods []*running) tally {
	t := tally{all: len(pods)}
	for _, p := range pods {
		if p.Status().Ready {
			t.ready++
		}
	}
	return t
}

// rollout is the arithmetic of a Deployment, apart from everything that runs.
type rollout struct {
	replicas, surge, unavailable int
	recreate                     bool
	current, old                 tally
	leaving                      int // pods still stopping
}

// step returns how many pods to start, and how many old and current ones to
// stop. Pods that are not ready are stopped first and cost nothing.
func (r rollout) step() (start, stopOld, stopCurrent int) {
	if r.surge == 0 && r.unavailable == 0 {
		r.surge = 1 // as Kubernetes does: else nothing would ever move
	}
	stopCurrent = max(r.current.all-r.replicas, 0)
	if r.recreate {
		if r.old.all > 0 || (r.leaving > 0 && r.current.all == 0) {
			return 0, r.old.all, stopCurrent
		}
		return max(r.replicas-r.current.all, 0), 0, stopCurrent
	}
	room := r.replicas + r.surge - r.current.all - r.old.all
	start = max(min(r.replicas-r.current.all, room), 0)
	if r.replicas == 0 {
		return start, r.old.all, stopCurrent
	}
	spare := r.current.ready + r.old.ready - (r.replicas - r.unavailable)
	stopOld = min(r.old.all, r.old.all-r.old.ready+max(min(spare, r.old.ready), 0))
	return start, stopOld, stopCurrent
}

// stopFirst stops n of the pods, those that are not ready first, then the newest.
func (s *Supervisor) stopFirst(pods []*running, n int) {
	if n <= 0 {
		return
	}
	ready := map[*running]bool{}
	for _, p := range pods {
		ready[p] = p.Status().Ready
	}
	slices.Reverse(pods)
	slices.SortStableFunc(pods, func(a, b *running) int {
		switch {
		case ready[a] == ready[b]:
			return 0
		case ready[b]:
			return -1
		}
		return 1
	})
	for _, p := range pods[:min(n, len(pods))] {
		s.stop(p)
	}
}

// stop takes a pod out of its endpoints, waits until proxies know, and ends it.
func (s *Supervisor) stop(p *running) {
	if p.gone {
		return
	}
	p.gone = true
	m := &p.Config().Manifest.Metadata
	s.event(Event{Kind: "pod", Namespace: m.Namespace, Name: m.Name, Message: "stopping"})
	serving := p.Status().Ready
	go func() {
		p.Drain()
		if serving {
			select {
			case <-time.After(s.o.DrainDelay):
			case <-p.Done():
			}
		}
		p.Stop(0)
		s.wake()
	}()
}

func (s *Supervisor) startReplica(key api.ObjectKey, d *manifest.Deployment, base *pod.Config, hash string) {
	m := *base.Manifest
	rs := d.Metadata.Name + "-" + hash
	m.Metadata.Name = fmt.Sprintf("%s-%s", rs, randomName(5))
	m.Metadata.OwnerReferences = []manifest.OwnerReference{{
		APIVersion: "apps/v1", Kind: "ReplicaSet", Name: rs, UID: uid(rs + "." + key.Namespace), Controller: true,
	}}
	m.Metadata.Labels = withLabel(m.Metadata.Labels, "pod-template-hash", hash)
	cfg := *base
	cfg.Manifest = &m
	s.start(key, hash, cfg)
}

// barePod makes one step of a Pod object.
func (s *Supervisor) barePod(key api.ObjectKey, p *manifest.Pod) error {
	base, hash, err := s.template(key, &manifest.PodTemplate{Metadata: p.Metadata, Spec: p.Spec}, "Pod", p.Metadata.Name)
	if err != nil {
		return err
	}
	for _, r := range s.pods {
		if r.owner == key {
			if r.hash != hash {
				s.stop(r) // the name is free again when it has ended
			}
			return nil
		}
	}
	base.Manifest.Metadata.Name = key.Name
	s.start(key, hash, *base)
	return nil
}

func (s *Supervisor) start(owner api.ObjectKey, hash string, cfg pod.Config) {
	cfg.Number = s.freeNumber()
	cfg.Manifest.Metadata.UID = uid(fmt.Sprint(cfg.Manifest.Metadata.Name, ".", cfg.Manifest.Metadata.Namespace, time.Now().UnixNano()))
	cfg.Manifest.Metadata.Namespace = owner.Namespace
	now := time.Now().UTC().Truncate(time.Second)
	cfg.Manifest.Metadata.CreationTimestamp = &now
	s.pods = append(s.pods, &running{Pod: pod.Start(s.o.Env, cfg), owner: owner, hash: hash})
	for _, note := range cfg.Notes {
		s.event(Event{Kind: "pod", Namespace: owner.Namespace, Name: cfg.Manifest.Metadata.Name, Message: note})
	}
}

// freeNumber returns a number that no pod has, going round so that an address is
// not used again at once.
func (s *Supervisor) freeNumber() int {
	for {
		s.number++
		if s.number > maxPods {
			s.number = 2
		}
		if !slices.ContainsFunc(s.pods, func(p *running) bool { return p.Config().Number == s.number }) {
			return s.number
		}
	}
}

func withLabel(m map[string]string, k, v string) map[string]string {
	out := map[string]string{k: v}
	for key, val := range m {
		out[key] = val
	}
	return out
}

// randomName returns n letters without vowels, as Kubernetes uses them.
func randomName(n int) string {
	const letters = "bcdfghjklmnpqrstvwxz2456789"
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	for i := range b {
		b[i] = letters[int(b[i])%len(letters)]
	}
	return string(b)
}

// uid derives a stable identifier in the form of a UUID.
func uid(s string) string {
	h := sha256.Sum256([]byte(s))
	x := hex.EncodeToString(h[:16])
	return x[:8] + "-" + x[8:12] + "-4" + x[13:16] + "-8" + x[17:20] + "-" + x[20:32]
}

// digest names what a pod is started with.
func digest(v ...any) (string, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("digest of a pod template: %w", err)
	}
	h := sha256.Sum256(data)
	return hex.EncodeToString(h[:])[:10], nil
}

// readiness counts the pods and those of them that have a proxy.
type readiness struct {
	all            bool
	pods, sidecars int
}

func (s *Supervisor) readiness() readiness {
	r := readiness{all: true}
	for _, p := range s.pods {
		st := p.Status()
		if p.gone {
			continue
		}
		r.all = r.all && st.Ready
		r.pods++
		if st.Mode != pod.Bare {
			r.sidecars++
		}
	}
	return r
}

// reportWorkloads tells what runs and where: one line for each owner of pods.
func (s *Supervisor) reportWorkloads() {
	var owners []api.ObjectKey
	addresses := map[api.ObjectKey][]string{}
	with := map[api.ObjectKey]string{}
	for _, p := range s.pods {
		if p.gone {
			continue
		}
		st := p.Status()
		if addresses[p.owner] == nil {
			owners = append(owners, p.owner)
		}
		address := ""
		if len(st.IPs) > 0 {
			address = st.IPs[0].String()
		}
		addresses[p.owner] = append(addresses[p.owner], address)
		switch st.Mode {
		case pod.Sidecar:
			with[p.owner] = ", sidecar"
		case pod.Gateway:
			with[p.owner] = ", gateway"
		}
	}
	slices.SortFunc(owners, func(a, b api.ObjectKey) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	for _, o := range owners {
		slices.Sort(addresses[o])
		s.event(Event{
			Kind: "pod", Namespace: o.Namespace, Name: o.Name,
			Message: fmt.Sprintf("%d ready at %s%s", len(addresses[o]), strings.Join(addresses[o], ", "), with[o]),
		})
	}
}

// reportReady tells once that every pod is ready.
func (s *Supervisor) reportReady(r readiness) {
	if !r.all || s.wasReady || r.pods == 0 {
		return
	}
	s.wasReady = true
	s.reportWorkloads()
	s.event(Event{Kind: "ready", Message: fmt.Sprintf("%d pods ready, %d with a proxy", r.pods, r.sidecars)})
}
