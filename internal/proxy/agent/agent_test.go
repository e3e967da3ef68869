package agent

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routepb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"lateen.dev/lateen/internal/bootstrap"
)

func packed(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func address(ap netip.AddrPort) *corepb.Address {
	return &corepb.Address{Address: &corepb.Address_SocketAddress{SocketAddress: &corepb.SocketAddress{
		Address: ap.Addr().String(), PortSpecifier: &corepb.SocketAddress_PortValue{PortValue: uint32(ap.Port())},
	}}}
}

func ads() *corepb.ConfigSource {
	return &corepb.ConfigSource{ConfigSourceSpecifier: &corepb.ConfigSource_Ads{}, ResourceApiVersion: corepb.ApiVersion_V3}
}

// site is a listener, a route, a cluster and its endpoint.
func site(t testing.TB, listen, upstream netip.AddrPort, status uint32) map[resource.Type][]types.Resource {
	manager := &hcmpb.HttpConnectionManager{
		StatPrefix: "web",
		RouteSpecifier: &hcmpb.HttpConnectionManager_Rds{Rds: &hcmpb.Rds{
			RouteConfigName: "web", ConfigSource: ads(),
		}},
		HttpFilters: []*hcmpb.HttpFilter{{
			Name: "router", ConfigType: &hcmpb.HttpFilter_TypedConfig{TypedConfig: packed(t, &routerpb.Router{})},
		}},
	}
	r := &routepb.Route{Match: &routepb.RouteMatch{PathSpecifier: &routepb.RouteMatch_Prefix{Prefix: "/"}}}
	if status == 0 {
		r.Action = &routepb.Route_Route{Route: &routepb.RouteAction{ClusterSpecifier: &routepb.RouteAction_Cluster{Cluster: "app"}}}
	} else {
		r.Action = &routepb.Route_DirectResponse{DirectResponse: &routepb.DirectResponseAction{Status: status}}
	}
	return map[resource.Type][]types.Resource{
		resource.ListenerType: {&listenerpb.Listener{
			Name: "web", Address: address(listen), FilterChains: []*listenerpb.FilterChain{{
				Filters: []*listenerpb.Filter{{Name: "hcm", ConfigType: &listenerpb.Filter_TypedConfig{TypedConfig: packed(t, manager)}}},
			}},
		}},
		resource.RouteType: {&routepb.RouteConfiguration{Name: "web", VirtualHosts: []*routepb.VirtualHost{{
			Name: "any", Domains: []string{"*"}, Routes: []*routepb.Route{r},
		}}}},
		resource.ClusterType: {&clusterpb.Cluster{
			Name: "app", ClusterDiscoveryType: &clusterpb.Cluster_Type{Type: clusterpb.Cluster_EDS},
			EdsClusterConfig: &clusterpb.Cluster_EdsClusterConfig{EdsConfig: ads()},
		}},
		resource.EndpointType: {&endpointpb.ClusterLoadAssignment{ClusterName: "app", Endpoints: []*endpointpb.LocalityLbEndpoints{{
			LbEndpoints: []*endpointpb.LbEndpoint{{HostIdentifier: &endpointpb.LbEndpoint_Endpoint{
				Endpoint: &endpointpb.Endpoint{Address: address(upstream)},
			}}},
		}}}},
	}
}

func freePort(t testing.TB) netip.AddrPort {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}

func wait(t testing.TB, what string, ok func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err = ok(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

func get(url string, status int, body string) func() error {
	return func() error {
		resp, err := http.Get(url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		if err == nil && (resp.StatusCode != status || !strings.Contains(string(data), body)) {
			err = fmt.Errorf("got %d %q, want %d %q", resp.StatusCode, data, status, body)
		}
		return err
	}
}

// running is one agent.
type running struct {
	ready, admin, status string
	stop                 context.CancelFunc
	done                 chan error
}

func launch(t testing.TB, p *plane, dir string, svid *os.File, token string) *running {
	t.Helper()
	ready, adm, status := freePort(t), freePort(t), freePort(t)
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(int(svid.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	b := &bootstrap.Bootstrap{
		Role: bootstrap.Sidecar, Capture: bootstrap.CaptureNone, IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
		Node:     bootstrap.Node{ID: "sidecar~127.0.0.1~web.default~default.svc.cluster.local", Cluster: "web.default", Metadata: map[string]any{"NAMESPACE": "default"}},
		Control:  bootstrap.Control{Address: p.address, RootsPEM: p.ca.PEM},
		Identity: bootstrap.Identity{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: "web", TokenFile: file, SVIDFD: fd},
		StateDir: dir, Concurrency: 1, DrainSeconds: 1,
		Ports:     &bootstrap.Ports{Admin: int(adm.Port()), Ready: int(ready.Port()), Prometheus: -1, DNS: -1, Status: int(status.Port())},
		AppProbes: p.probes,
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{ready: fmt.Sprintf("http://%v/healthz/ready", ready), admin: "http://" + adm.String(), status: "http://" + status.String(), stop: cancel, done: make(chan error, 1)}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	go func() { r.done <- Run(ctx, b, log, &slog.LevelVar{}) }()
	t.Cleanup(func() {
		cancel()
		<-r.done
	})
	return r
}

func (r *running) end(t testing.TB) {
	t.Helper()
	r.stop()
	if err := <-r.done; err != nil {
		t.Fatal(err)
	}
	r.done <- nil
}

func memfd(t testing.TB) *os.File {
	fd, err := unix.MemfdCreate("svid", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "svid")
	t.Cleanup(func() { f.Close() })
	return f
}

func TestAgentServesRefusesAndSurvives(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello from ", r.URL.Path) }))
	defer app.Close()
	upstream := netip.MustParseAddrPort(app.Listener.Addr().String())
	listen := freePort(t)
	url := fmt.Sprintf("http://%v/x", listen)
	dir, svid := t.TempDir(), memfd(t)

	p := newPlane(t)
	r := launch(t, p, dir, svid, "good")
	if err := get(r.ready, 200, "")(); err == nil {
		t.Fatal("ready without configuration")
	}
	p.push(t, 1, site(t, listen, upstream, 0))
	wait(t, "readiness", get(r.ready, 200, ""))
	wait(t, "request", get(url, 200, "hello from /x"))

	// A route edit comes in, a bad listener is refused alone and named.
	next := site(t, listen, upstream, 418)
	next[resource.ListenerType] = append(next[resource.ListenerType], &listenerpb.Listener{Name: "bad", Address: address(freePort(t))})
	p.push(t, 2, next)
	wait(t, "changed route", get(url, 418, ""))
	wait(t, "refusal", func() error {
		for _, why := range p.refusals() {
			if why == "bad: filter_chains is empty" {
				return nil
			}
		}
		return fmt.Errorf("got %q", p.refusals())
	})
	if err := get(url, 418, "")(); err != nil {
		t.Fatal(err)
	}

	// The control plane goes away: nothing changes, and a restarted proxy comes
	// up from what it kept, without a new token.
	wait(t, "last good configuration", func() error {
		_, err := os.Stat(filepath.Join(dir, "last-good"))
		return err
	})
	p.grpc.Stop()
	if err := get(url, 418, "")(); err != nil {
		t.Fatal(err)
	}
	r.end(t)
	r = launch(t, p, dir, svid, "")
	wait(t, "readiness without control plane", get(r.ready, 200, ""))
	wait(t, "request without control plane", get(url, 418, ""))

	// It comes back with something newer.
	p.start(t, p.address)
	p.push(t, 3, site(t, listen, upstream, 0))
	wait(t, "after its return", get(url, 200, "hello from /x"))
	r.end(t)

	// A damaged file is not used.
	p.grpc.Stop()
	file := filepath.Join(dir, "last-good")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)-1] ^= 1
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	r = launch(t, p, dir, svid, "")
	wait(t, "start", func() error { _, err := http.Get(r.ready); return err })
	time.Sleep(300 * time.Millisecond)
	if get(r.ready, 200, "")() == nil || get(url, 200, "")() == nil {
		t.Fatal("a damaged configuration was used")
	}
}

func TestAgentEndsWithoutCredential(t *testing.T) {
	p := newPlane(t)
	for _, token := range []string{"", "wrong"} {
		r := launch(t, p, "", memfd(t), token)
		if token == "" {
			// An unreadable token may yet appear; it must not get ready.
			time.Sleep(100 * time.Millisecond)
			if get(r.ready, 200, "")() == nil {
				t.Fatal("ready without certificate")
			}
		}
		r.stop()
	}
}
