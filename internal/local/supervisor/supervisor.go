// Package supervisor is the kubelet and the few controllers that one machine
// needs: it watches the desired objects over the control API and makes the
// node's pods agree with them. Deployments become pods, Services become rules
// and host listeners, and what runs is written back as Pods and EndpointSlices.
//
// One goroutine reconciles; everything else only tells it that something
// changed. The supervisor never decides what configuration means for traffic.
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"lateen.dev/lateen/internal/api"
	"lateen.dev/lateen/internal/local/manifest"
	"lateen.dev/lateen/internal/local/nft"
	"lateen.dev/lateen/internal/local/pod"
	"lateen.dev/lateen/internal/local/report"
)

// Control is the control plane, as seen from here: *api.Client.
type Control interface {
	Watch(ctx context.Context, o api.WatchOptions, fn func(api.Event) error) error
	WriteLocal(ctx context.Context, state api.LocalState) error
}

// Host is the machine outside the node, reached through the parent process.
type Host interface {
	// Listen opens a TCP port of the host's loopback, the wanted one or the next
	// that is free, and returns its descriptor and address.
	Listen(ctx context.Context, port uint16) (fd int, addr netip.AddrPort, err error)
	// AllowPorts sets which of the host's own ports pods may reach.
	AllowPorts(ports []uint16) error
}

// Options configure a Supervisor.
type Options struct {
	Control Control
	Host    Host
	Env     *pod.Env // its Objects, Changed and Event are set by New
	Log     *slog.Logger
	// Images come from the command line and win over LocalCluster documents.
	Images map[string]manifest.Program
	// SelfProgram is the program that stands for well-known images.
	SelfProgram string
	// HubAddress is handed to collectors, which copy what they receive there.
	HubAddress string
	// Services is applied to the kernel after every change of services.
	Services func(nft.Services) error
	// Relay serves a host listener whose Service is no gateway. It takes over the descriptor.
	Relay func(fd int, to netip.AddrPort) (stop func(), err error)
	// Event tells people what happens.
	Event func(Event)
	// DrainDelay is how long a pod goes on serving after it was taken out of the
	// endpoints; proxies learn of the change meanwhile.
	DrainDelay time.Duration
	ClusterID  string
}

// Event is one thing that happened.
type Event = report.Event

// watched are the kinds the supervisor cares for.
var watched = []string{
	"Deployment", "Pod", "Service", "ConfigMap", "Secret", "Namespace", "ServiceEntry", "LocalCluster",
	"StatefulSet", "DaemonSet", "Job", "CronJob", "ReplicaSet",
}

// Supervisor runs the pods.
type Supervisor struct {
	o    Options
	kick chan struct{}

	mu      sync.Mutex
	objects map[api.ObjectKey]stored
	// Decoded objects by namespace/name.
	configMaps map[string]*manifest.ConfigMap
	secrets    map[string]*manifest.Secret
	services   map[string]*manifest.Service
	namespaces map[string]*manifest.Namespace
	entries    map[string]*manifest.ServiceEntry
	pods       []*running
	number     int
	synced     bool
	told       map[string]string // the last message about an object, so that it is told once
	listeners  map[listenerKey]*hostListener
	rules      string // digest of the rules in force
	state      localState
	// opening has the Services that have had a ready pod: since when they wait for
	// their other pods, or zero once their endpoints are published.
	opening   map[api.ObjectKey]time.Time
	names     names
	wasReady  bool
	closing   bool
	hostPorts []uint16
}

// stored is an object as it came.
type stored struct {
	event api.Event
	value any
}

// running is a pod that was started.
type running struct {
	*pod.Pod
	owner api.ObjectKey
	hash  string
	gone  bool // being stopped
}

// New returns a Supervisor.
func New(o Options) *Supervisor {
	s := &Supervisor{
		o: o, kick: make(chan struct{}, 1), objects: map[api.ObjectKey]stored{},
		configMaps: map[string]*manifest.ConfigMap{}, secrets: map[string]*manifest.Secret{},
		services: map[string]*manifest.Service{}, namespaces: map[string]*manifest.Namespace{},
		entries: map[string]*manifest.ServiceEntry{}, number: 1, told: map[string]string{},
		listeners: map[listenerKey]*hostListener{}, opening: map[api.ObjectKey]time.Time{},
	}
	o.Env.Objects, o.Env.Changed = s, s.wake
	o.Env.Event = func(ns, name, message string, failure bool) {
		s.event(Event{Kind: "pod", Namespace: ns, Name: name, Message: message, Error: failure})
	}
	return s
}

func (s *Supervisor) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

func (s *Supervisor) event(e Event) {
	s.o.Event(e)
	s.o.Log.Info(e.Message, "kind", e.Kind, "namespace", e.Namespace, "name", e.Name)
}

// tell reports a message about an object once.
func (s *Supervisor) tell(key api.ObjectKey, err error) {
	k := key.Kind + "/" + key.Namespace + "/" + key.Name
	if err == nil {
		delete(s.told, k)
		return
	}
	if s.told[k] == err.Error() {
		return
	}
	s.told[k] = err.Error()
	s.event(Event{Kind: strings.ToLower(key.Kind), Namespace: key.Namespace, Name: key.Name, Message: err.Error(), Error: true})
}

// Run reconciles until ctx ends. Pods go on running; Shutdown ends them.
func (s *Supervisor) Run(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { s.reconcileLoop(ctx) })
	err := s.o.Control.Watch(ctx, api.WatchOptions{
		Kinds: watched, OnConnect: s.writeAll, Log: s.o.Log,
	}, s.observe)
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("watch the control plane: %w", err)
}

func (s *Supervisor) reconcileLoop(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.kick:
		case <-tick.C:
		}
		s.reconcile()
		if err := s.writeChanges(ctx); err != nil && ctx.Err() == nil {
			s.o.Log.Warn("write pods to the control plane", "error", err)
		}
	}
}

// observe takes in one event of the watch.
func (s *Supervisor) observe(e api.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch e.Type {
	case api.Synced:
		s.synced = true
	case api.Put:
		v, err := decode(e)
		s.tell(e.Key, err)
		if err != nil {
			break // the last good version stays in force
		}
		s.objects[e.Key] = stored{e, v}
		s.index(e.Key, v)
	case api.Delete:
		delete(s.objects, e.Key)
		s.unindex(e.Key)
	}
	s.wake()
	return nil
}

func decode(e api.Event) (any, error) {
	switch e.Key.Kind {
	case "Deployment":
		return manifest.Decode[manifest.Deployment](e.Object)
	case "Pod":
		return manifest.Decode[manifest.Pod](e.Object)
	case "Service":
		return manifest.Decode[manifest.Service](e.Object)
	case "ConfigMap":
		return manifest.Decode[manifest.ConfigMap](e.Object)
	case "Secret":
		return manifest.Decode[manifest.Secret](e.Object)
	case "Namespace":
		return manifest.Decode[manifest.Namespace](e.Object)
	case "ServiceEntry":
		return manifest.Decode[manifest.ServiceEntry](e.Object)
	case "LocalCluster":
		return manifest.Decode[manifest.LocalCluster](e.Object)
	}
	return nil, fmt.Errorf("%s is not run on one machine yet; Deployment and Pod are", e.Key.Kind)
}

func (s *Supervisor) index(key api.ObjectKey, v any) {
	name := key.Namespace + "/" + key.Name
	switch v := v.(type) {
	case *manifest.ConfigMap:
		s.configMaps[name] = v
		go s.refresh(key.Namespace)
	case *manifest.Secret:
		s.secrets[name] = v
		go s.refresh(key.Namespace)
	case *manifest.Service:
		s.services[name] = v
		for k, l := range s.listeners { // a port that was taken may be free now
			if l == nil && k.namespace == key.Namespace && k.service == key.Name {
				delete(s.listeners, k)
			}
		}
	case *manifest.Namespace:
		s.namespaces[key.Name] = v
	case *manifest.ServiceEntry:
		s.entries[name] = v
	}
}

func (s *Supervisor) unindex(key api.ObjectKey) {
	name := key.Namespace + "/" + key.Name
	switch key.Kind {
	case "ConfigMap":
		delete(s.configMaps, name)
	case "Secret":
		delete(s.secrets, name)
	case "Service":
		delete(s.services, name)
		delete(s.opening, key)
	case "Namespace":
		delete(s.namespaces, key.Name)
	case "ServiceEntry":
		delete(s.entries, name)
	}
}

// refresh lets running pods of a namespace see changed configuration.
func (s *Supervisor) refresh(namespace string) {
	for _, p := range s.snapshot() {
		if p.Config().Manifest.Metadata.Namespace == namespace {
			p.Refresh()
		}
	}
}

func (s *Supervisor) snapshot() []*running {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.pods)
}

// ConfigMap implements manifest.Lookup.
func (s *Supervisor) ConfigMap(ns, name string) *manifest.ConfigMap {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.configMaps[ns+"/"+name]
}

// Secret implements manifest.Lookup.
func (s *Supervisor) Secret(ns, name string) *manifest.Secret {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.secrets[ns+"/"+name]
}

// Pods returns the state of every pod, sorted by namespace and name.
func (s *Supervisor) Pods() []pod.Status {
	var out []pod.Status
	for _, p := range s.snapshot() {
		out = append(out, p.Status())
	}
	slices.SortFunc(out, func(a, b pod.Status) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	return out
}

// Find returns the pod called NAME.NAMESPACE, or NAME in any namespace, or the
// first ready pod of the Deployment of that name.
func (s *Supervisor) Find(name string) (*pod.Pod, error) {
	var best *running
	var have []string
	for _, p := range s.snapshot() {
		m := &p.Config().Manifest.Metadata
		have = append(have, m.Name+"."+m.Namespace)
		if name == m.Name || name == m.Name+"."+m.Namespace {
			return p.Pod, nil
		}
		owner := p.Config().OwnerName
		if (name == owner || name == owner+"."+m.Namespace) && (best == nil || p.Status().Ready && !best.Status().Ready) {
			best = p
		}
	}
	if best != nil {
		return best.Pod, nil
	}
	slices.Sort(have)
	return nil, fmt.Errorf("no pod %q\nhint: there are %s", name, strings.Join(have, ", "))
}

// Delete stops a pod; a Deployment replaces it.
func (s *Supervisor) Delete(name string) error {
	p, err := s.Find(name)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.pods {
		if r.Pod == p {
			s.stop(r)
			return nil
		}
	}
	return errors.New("the pod has just ended")
}

// Shutdown stops every pod, each within limit, and waits.
func (s *Supervisor) Shutdown(limit time.Duration) {
	s.mu.Lock()
	s.closing = true
	for _, l := range s.listeners {
		if l != nil {
			l.close()
		}
	}
	pods := slices.Clone(s.pods)
	s.mu.Unlock()
	// Collectors go last: programs that end want to deliver their last spans.
	for _, collectors := range []bool{false, true} {
		var group sync.WaitGroup
		for _, p := range pods {
			if s.isCollector(p) == collectors {
				group.Go(func() { p.Stop(limit) })
			}
		}
		group.Wait()
	}
}

// isCollector says that a container of the pod is the embedded collector.
func (s *Supervisor) isCollector(p *running) bool {
	for _, prog := range p.Config().Programs {
		if len(prog.Args) > 0 && prog.Args[0] == s.o.SelfProgram {
			return true
		}
	}
	return false
}
