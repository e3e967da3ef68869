package admin

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
)

func call(t *testing.T, h http.Handler, method, target string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, target, nil))
	return w.Code, w.Body.String()
}

func certificate(t *testing.T) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	u, _ := url.Parse("spiffe://cluster.local/ns/default/sa/a")
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(42), NotBefore: time.Now(), NotAfter: time.Now().Add(25 * time.Hour), URIs: []*url.URL{u}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func options(t *testing.T) Options {
	crt := certificate(t)
	return Options{
		Version: "test", NodeID: "sidecar~1", Started: time.Now(), Bootstrap: map[string]any{"node": map[string]any{"id": "sidecar~1"}},
		State: func() State { return Live },
		Resources: func() []Resource {
			return []Resource{
				{TypeURL: listenerType, Name: "virtualInbound", Version: "7", Message: &listenerpb.Listener{Name: "virtualInbound"}},
				{TypeURL: listenerType, Name: "broken", Error: "no filter chain"},
				{TypeURL: clusterType, Name: "outbound|80||b", Version: "3", Message: &clusterpb.Cluster{Name: "outbound|80||b", AltStatName: "outbound|80||b;"}},
				{TypeURL: clusterType, Name: "outbound|80||a", Message: &clusterpb.Cluster{Name: "outbound|80||a"}},
			}
		},
		Clusters: func() []Cluster {
			return []Cluster{{Name: "outbound|80||a", Endpoints: []Endpoint{{Address: "10.0.0.1:80", Healthy: true, FailedOutlier: true, RequestsTotal: 9, Weight: 1}}}}
		},
		Listeners:    func() []Listener { return []Listener{{"virtualInbound", "0.0.0.0:15006"}} },
		Certificates: func() []Certificate { return []Certificate{{Name: "default", Chain: []*x509.Certificate{crt}}} },
		Stats: func() []Stat {
			return []Stat{{Name: "cluster_manager.cds.update_success", Value: 3}, {Name: "listener_manager.lds.update_rejected"}, {Name: "cluster.outbound|80||a.b.upstream_cx_total", Value: 5}}
		},
		Prometheus: func(_ context.Context, w io.Writer) error {
			_, err := io.WriteString(w, "istio_requests_total{} 1\n")
			return err
		},
		Level: &slog.LevelVar{},
	}
}

func TestConfigDump(t *testing.T) {
	h := Handler(options(t))
	code, body := call(t, h, "GET", "/config_dump")
	var d struct{ Configs []map[string]any }
	if err := json.Unmarshal([]byte(body), &d); err != nil || code != 200 {
		t.Fatalf("%d %v", code, err)
	}
	var kinds []string
	for _, c := range d.Configs {
		kinds = append(kinds, strings.TrimPrefix(c["@type"].(string), typePrefix+"envoy.admin.v3."))
	}
	if got := strings.Join(kinds, " "); got != "BootstrapConfigDump ClustersConfigDump ListenersConfigDump RoutesConfigDump SecretsConfigDump" {
		t.Errorf("sections %s", got)
	}
	clusters := d.Configs[1]["dynamic_active_clusters"].([]any)
	second := clusters[1].(map[string]any)["cluster"].(map[string]any)
	if second["name"] != "outbound|80||b" || second["alt_stat_name"] != "outbound|80||b;" || second["@type"] != clusterType {
		t.Errorf("cluster %v", second)
	}
	if !strings.Contains(body, "no filter chain") || strings.Contains(body, "PRIVATE KEY") || !strings.Contains(body, "W3JlZGFjdGVkXQ==") {
		t.Error("refusals must show, keys must not")
	}
	if _, body = call(t, h, "GET", "/config_dump?resource=dynamic_active_clusters&name_regex=.*b"); strings.Contains(body, "|80||a") || !strings.Contains(body, "|80||b") {
		t.Errorf("filtered dump %s", body)
	}
	if code, _ = call(t, h, "GET", "/config_dump?resource=nonsense"); code != 404 {
		t.Errorf("unknown resource: %d", code)
	}
}

func TestMutating_needsPost(t *testing.T) {
	o := options(t)
	var quit, drained, failed int
	done := make(chan struct{})
	o.Quit = func() { quit++; close(done) }
	o.DrainListeners = func(inbound, graceful bool) {
		if inbound && graceful {
			drained++
		}
	}
	o.FailHealth = func(f bool) {
		if f {
			failed++
		}
	}
	h := Handler(o)
	paths := []string{"/quitquitquit", "/drain_listeners?inboundonly&graceful", "/healthcheck/fail", "/logging?level=debug", "/reset_counters"}
	for _, p := range paths {
		if code, _ := call(t, h, "GET", p); code != 400 {
			t.Errorf("GET %s: %d, want 400", p, code)
		}
	}
	o.ReadOnly = true
	ro := Handler(o)
	for _, p := range paths {
		if code, _ := call(t, ro, "POST", p); code != 403 {
			t.Errorf("read-only POST %s: %d, want 403", p, code)
		}
	}
	if quit+drained+failed != 0 || o.Level.Level() != slog.LevelInfo {
		t.Fatal("a refused call changed something")
	}
	for _, p := range paths[:4] {
		if code, body := call(t, h, "POST", p); code != 200 {
			t.Errorf("POST %s: %d %s", p, code, body)
		}
	}
	<-done
	if quit != 1 || drained != 1 || failed != 1 || o.Level.Level() != slog.LevelDebug {
		t.Errorf("quit %d drained %d failed %d level %v", quit, drained, failed, o.Level.Level())
	}
	if code, _ := call(t, h, "POST", "/reset_counters"); code != 501 {
		t.Errorf("what cannot be done must say so: %d", code)
	}
	if code, _ := call(t, h, "POST", "/logging?paths=http:debug"); code != 400 {
		t.Errorf("per-logger level: %d", code)
	}
}

func TestViews(t *testing.T) {
	h := Handler(options(t))
	for _, c := range []struct {
		target string
		want   []string
	}{
		{"/stats", []string{"cluster_manager.cds.update_success: 3\n", "server.state: 0\n", "listener_manager.lds.update_rejected: 0\n"}},
		{"/stats?filter=^server.state$&format=json", []string{`"name": "server.state"`}},
		{"/stats/prometheus", []string{"istio_requests_total{} 1\n", "# TYPE envoy_server_state gauge\nenvoy_server_state 0\n", `envoy_cluster_upstream_cx_total{cluster_name="outbound|80||a.b"} 5`}},
		{"/stats?format=prometheus", []string{"envoy_cluster_manager_cds_update_success 3\n"}},
		{"/clusters", []string{"outbound|80||a::10.0.0.1:80::health_flags::/failed_outlier_check\n", "outbound|80||a::10.0.0.1:80::rq_total::9\n"}},
		{"/clusters?format=json", []string{`"failed_outlier_check": true`, `"port_value": 80`}},
		{"/listeners", []string{"virtualInbound::0.0.0.0:15006\n"}},
		{"/listeners?format=json", []string{`"port_value": 15006`}},
		{"/server_info", []string{`"state": "LIVE"`, `"id": "sidecar~1"`}},
		{"/certs", []string{`"serial_number": "2a"`, `"uri": "spiffe://cluster.local/ns/default/sa/a"`, `"days_until_expiration": "1"`}},
		{"/ready", []string{"LIVE\n"}},
	} {
		code, body := call(t, h, "GET", c.target)
		for _, w := range c.want {
			if code != 200 || !strings.Contains(body, w) {
				t.Errorf("%s: %d, missing %q in\n%s", c.target, code, w, body)
			}
		}
	}
	if _, body := call(t, h, "GET", "/stats?usedonly"); strings.Contains(body, "update_rejected") {
		t.Error("usedonly shows an unused counter")
	}
}

func TestReadiness(t *testing.T) {
	ready := errors.New("waiting for listeners")
	h := Readiness(func() error { return ready })
	if code, body := call(t, h, "GET", "/healthz/ready"); code != 503 || !strings.Contains(body, "waiting") {
		t.Errorf("%d %s", code, body)
	}
	ready = nil
	if code, _ := call(t, h, "GET", "/healthz/ready"); code != 200 {
		t.Errorf("%d", code)
	}
	o := options(t)
	o.State = func() State { return Draining }
	if code, body := call(t, Handler(o), "GET", "/ready"); code != 503 || body != "DRAINING\n" {
		t.Errorf("%d %q", code, body)
	}
}
