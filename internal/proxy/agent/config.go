package agent

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"lateen.dev/lateen/internal/proxy/secret"
	"lateen.dev/lateen/internal/proxy/snapshot"
	"lateen.dev/lateen/internal/proxy/xds"
	"lateen.dev/lateen/internal/xdspb/origin"
)

// config turns what the control plane sends into the snapshot in force:
// compile, install secrets, warm, apply.
type config struct {
	a *Agent

	mu       sync.Mutex
	compiled *snapshot.Snapshot // everything accepted
	active   *snapshot.Snapshot // what is in force
	heard    map[string]bool    // types that were answered
	kept     bool               // a last good configuration was put in force
	waiting  []snapshot.Waiting
	secrets  map[string]*xds.Secret // as installed
	accepted map[string]map[string]accepted
	refused  map[string]map[string]string
	warned   map[snapshot.Rejected]bool

	// settled is set once the first complete configuration was in force.
	settled atomic.Bool
	origins atomic.Pointer[origin.Table]
}

// accepted is a resource for the admin interface.
type accepted struct {
	message proto.Message
	since   time.Time
}

func (c *config) init(a *Agent) {
	c.a, c.heard = a, map[string]bool{}
	c.secrets, c.warned = map[string]*xds.Secret{}, map[snapshot.Rejected]bool{}
	for _, name := range a.secrets.Kept() {
		c.secrets[name] = &xds.Secret{} // the first answer replaces it or takes it away
	}
	c.accepted, c.refused = map[string]map[string]accepted{}, map[string]map[string]string{}
}

// update is the ADS client's callback.
func (c *config) update(s xds.State) xds.Answer {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.Changed == "" {
		c.kept = true
	}
	c.heard[s.Changed] = true
	switch s.Changed {
	case xds.TypeNames, xds.TypeOrigin, "":
		c.a.names.set(s.Names)
		c.origins.Store(s.Origins)
	case xds.TypeSecret:
		// Their refusal is reported; everything else goes on below, because a
		// listener may have waited for one of them.
	}
	var out xds.Answer
	if s.Changed == xds.TypeSecret {
		out.Rejected = c.installSecrets(s.Secrets)
	}
	next, rejected := snapshot.Compile(s.Resources, c.compiled)
	out.Rejected = append(out.Rejected, rejected...)
	c.compiled = next
	c.remember(s, rejected)
	c.apply()
	out.Endpoints, out.Routes = next.EDSNames(), next.RouteNames()
	out.Secrets = secret.Remote(next.SecretNames())
	return out
}

// installSecrets hands changed secrets to the store.
func (c *config) installSecrets(all map[string]*xds.Secret) (rejected []snapshot.Rejected) {
	for name, s := range all {
		if c.secrets[name] == s {
			continue
		}
		err := c.a.secrets.Set(name, secret.Credential{CertPEM: s.CertPEM, KeyPEM: s.KeyPEM, RootsPEM: s.RootsPEM})
		if err != nil {
			rejected = append(rejected, snapshot.Rejected{Type: xds.TypeSecret, Name: name, Reason: err.Error()})
			continue
		}
		c.secrets[name] = s
	}
	for name := range c.secrets {
		if all[name] == nil {
			delete(c.secrets, name)
			c.a.secrets.Delete(name)
		}
	}
	return rejected
}

// rewarm looks again whether listeners can come in, after secrets changed.
func (c *config) rewarm() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.waiting) > 0 {
		c.apply()
	}
}

// apply warms what was compiled and puts it in force.
func (c *config) apply() {
	active, waiting := snapshot.Warmed(c.compiled, c.active, c.a.secrets.Has)
	for _, w := range waiting {
		c.a.log.Debug("a listener is held back", "listener", w.Listener, "for", w.For)
	}
	c.active, c.waiting = active, waiting
	if err := c.a.server.Apply(active); err != nil {
		c.a.log.Error("not all listeners are open", "error", err)
	}
	complete := c.heard[snapshot.TypeListener] && c.heard[snapshot.TypeCluster] || c.kept
	if complete && len(waiting) == 0 && !c.settled.Swap(true) {
		c.a.log.Info("configuration in force", "listeners", len(active.Listeners), "clusters", len(active.Clusters),
			"after", time.Since(c.a.started).Round(time.Millisecond), "kept", c.kept)
	}
}

var errUnconfigured = errors.New("no configuration yet")

// ready says why there is no complete configuration yet.
func (c *config) ready() error {
	if c.settled.Load() {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.waiting) > 0 {
		w := c.waiting[0]
		return fmt.Errorf("listener %s waits for %s (%d wait in all)", w.Listener, w.For, len(c.waiting))
	}
	return errUnconfigured
}

// remember keeps what the admin interface shows.
func (c *config) remember(s xds.State, rejected []snapshot.Rejected) {
	now := time.Now()
	for typ, list := range map[string]map[string]proto.Message{
		snapshot.TypeListener: s.Resources.Listeners, snapshot.TypeCluster: s.Resources.Clusters,
		snapshot.TypeEndpoint: s.Resources.Endpoints, snapshot.TypeRoute: s.Resources.Routes,
	} {
		if s.Changed != "" && s.Changed != typ {
			continue
		}
		bad := map[string]string{}
		for _, r := range rejected {
			if r.Type == typ {
				bad[r.Name] = r.Reason
			}
		}
		old := c.accepted[typ]
		next := make(map[string]accepted, len(list))
		for name, m := range list {
			switch o, had := old[name]; {
			case bad[name] != "" && had:
				next[name] = o
			case bad[name] != "":
			case had && o.message == m:
				next[name] = o
			default:
				next[name] = accepted{message: m, since: now}
			}
		}
		c.accepted[typ], c.refused[typ] = next, c.stillBad(typ, bad, list)
	}
	for _, w := range c.compiled.Warnings {
		if !c.warned[w] {
			c.warned[w] = true
			c.a.log.Warn("accepted, but not all of it is applied", "name", w.Name, "what", w.Reason)
		}
	}
}

// stillBad keeps earlier refusals whose resource has not been replaced since.
func (c *config) stillBad(typ string, bad map[string]string, list map[string]proto.Message) map[string]string {
	for name, why := range c.refused[typ] {
		if _, again := bad[name]; !again && c.accepted[typ][name].message == list[name] {
			bad[name] = why
		}
	}
	return bad
}

// place resolves an origin id to file:line, "" if it is not known. An id whose
// field has no place of its own falls back to its object.
func (c *config) place(id snapshot.Origin) string {
	t := c.origins.Load()
	if t == nil || id == "" {
		return ""
	}
	p := t.GetPlaces()[string(id)]
	if p == nil {
		object, _, _ := strings.Cut(string(id), "#")
		p = t.GetPlaces()[object]
	}
	if p == nil {
		return ""
	}
	return fmt.Sprintf("%s:%d", p.GetFile(), p.GetLine())
}

// snapshotNow returns the snapshot in force, nil before the first.
func (c *config) snapshotNow() *snapshot.Snapshot {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.active
}

// dump returns copies of what the admin interface shows.
func (c *config) dump() (map[string]map[string]accepted, map[string]map[string]string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.accepted), maps.Clone(c.refused)
}
