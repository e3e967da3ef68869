//go:build linux

package conformance

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"

	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"lateen.dev/lateen/internal/bootstrap"
)

// TestADS_goControlPlaneDrivesTheProxy: go-control-plane's server gives, changes,
// takes away, is refused with a reason, and goes and comes back.
func TestADS_goControlPlaneDrivesTheProxy(t *testing.T) {
	for _, protocol := range []string{"delta", "state of the world"} {
		t.Run(protocol, func(t *testing.T) {
			d := &driven{t: t, delta: protocol == "delta", plane: newPlane(t), apps: map[string]netip.AddrPort{}}
			for _, name := range []string{"one", "two"} {
				app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Header().Set("app", name) }))
				t.Cleanup(app.Close)
				d.apps[name] = netip.MustParseAddrPort(app.Listener.Addr().String())
			}
			d.web, d.extra = freePort(t), freePort(t)
			d.proxy = launch(t, d.plane, bootstrap.Sidecar, "web", func(b *bootstrap.Bootstrap) {
				if !d.delta {
					b.Control.Protocol = bootstrap.StateOfTheWorld
				}
			})
			d.run()
		})
	}
}

// driven is one proxy and what drives it.
type driven struct {
	t          *testing.T
	delta      bool
	plane      *plane
	proxy      *proxy
	web, extra netip.AddrPort
	apps       map[string]netip.AddrPort
	heard      []request
}

func (d *driven) run() {
	// The initial set: two listeners.
	s := newSite(d.t)
	s.cluster("app", d.apps["one"], false, nil)
	s.listen("web", d.web, "app", nil)
	s.listen("extra", d.extra, "app", nil)
	d.plane.push(d.t, d.proxy.node, s.all)
	d.proxy.await(d.t)
	d.answers(d.web, "one")
	d.answers(d.extra, "one")

	// Another endpoint, and one listener less.
	s = newSite(d.t)
	s.cluster("app", d.apps["two"], false, nil)
	s.listen("web", d.web, "app", nil)
	d.plane.push(d.t, d.proxy.node, s.all)
	d.answers(d.web, "two")
	wait(d.t, "the end of a deleted listener", func() error {
		if err := status("http://"+d.extra.String()+"/", 200); err == nil {
			return fmt.Errorf("%v still answers", d.extra)
		}
		return nil
	})

	// One resource that cannot be: refused with a reason, the others go on.
	s = newSite(d.t)
	s.cluster("app", d.apps["one"], false, nil)
	s.listen("web", d.web, "app", nil)
	s.add(resource.ListenerType, &listenerpb.Listener{Name: "bad", Address: address(d.extra)})
	d.plane.push(d.t, d.proxy.node, s.all)
	wait(d.t, "a refusal", func() error {
		if !d.find(func(r request) bool {
			return r.typ == resource.ListenerType && strings.Contains(r.nack, "bad: filter_chains is empty")
		}) {
			return fmt.Errorf("no refusal with its reason in %d requests", len(d.heard))
		}
		return nil
	})
	d.answers(d.web, "one")
	if d.find(func(r request) bool { return r.delta != d.delta }) {
		d.t.Error("the proxy spoke the other protocol")
	}

	// The control plane goes; what is in force stays. It comes back at the same
	// place with the same state, and is told the versions.
	s = newSite(d.t)
	s.cluster("app", d.apps["one"], false, nil)
	s.listen("web", d.web, "app", nil)
	d.heard = nil
	d.plane.push(d.t, d.proxy.node, s.all)
	d.acknowledged()
	d.plane.grpc.Stop()
	d.answers(d.web, "one")
	d.heard, _ = nil, d.plane.requests()
	d.plane.start(d.t, d.plane.address)
	wait(d.t, "versions after a reconnect", func() error {
		for _, typ := range []string{resource.ListenerType, resource.ClusterType} {
			if !d.find(func(r request) bool { return r.typ == typ && r.nonce == "" && d.tellsVersion(r) }) {
				return fmt.Errorf("no first request of %s with a version in %v", typ, d.heard)
			}
		}
		return nil
	})
	s = newSite(d.t)
	s.cluster("app", d.apps["two"], false, nil)
	s.listen("web", d.web, "app", nil)
	d.plane.push(d.t, d.proxy.node, s.all)
	d.answers(d.web, "two")
}

// tellsVersion says whether a request tells which versions the proxy has.
func (d *driven) tellsVersion(r request) bool {
	if d.delta {
		return len(r.initial) == 1
	}
	return r.version != ""
}

// answers waits until a listener leads to an application.
func (d *driven) answers(at netip.AddrPort, app string) {
	d.t.Helper()
	wait(d.t, fmt.Sprintf("answer of %s at %v", app, at), func() error {
		resp, err := http.Get("http://" + at.String() + "/")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if got := resp.Header.Get("app"); got != app {
			return fmt.Errorf("%d of application %q", resp.StatusCode, got)
		}
		return nil
	})
}

// acknowledged waits until the listeners of the last push are agreed to.
func (d *driven) acknowledged() {
	d.t.Helper()
	version := fmt.Sprint(d.plane.version)
	wait(d.t, "agreement to version "+version, func() error {
		if !d.find(func(r request) bool {
			return r.typ == resource.ListenerType && r.nonce != "" && r.nack == "" && (d.delta || r.version == version)
		}) {
			return fmt.Errorf("not yet: %v", d.heard)
		}
		return nil
	})
}

// find says whether such a request has been heard.
func (d *driven) find(f func(request) bool) bool {
	d.heard = append(d.heard, d.plane.requests()...)
	return slices.ContainsFunc(d.heard, f)
}
