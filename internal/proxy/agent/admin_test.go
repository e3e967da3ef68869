package agent

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"lateen.dev/lateen/internal/bootstrap"
)

func fetch(t testing.TB, c *http.Client, method, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// The admin interface tells what happened by Envoy's names. On the port that the
// application shares it changes nothing; on the owner's socket it does.
func TestAgent_admin(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/sick" {
			w.WriteHeader(503)
		}
		fmt.Fprint(w, r.Host)
	}))
	defer app.Close()
	upstream := netip.MustParseAddrPort(app.Listener.Addr().String())
	listen, dir := freePort(t), t.TempDir()
	p := newPlane(t)
	p.probes = map[string]bootstrap.AppProbe{
		"app/readyz": {Port: int(upstream.Port()), Path: "/well"}, "app/livez": {Port: int(upstream.Port()), Path: "/sick"},
		"app/startupz": {Port: int(upstream.Port())}, "gone/readyz": {Port: 1},
	}
	r := launch(t, p, dir, memfd(t), "good")
	p.push(t, 1, site(t, listen, upstream, 0))
	wait(t, "readiness", get(r.ready, 200, ""))
	wait(t, "request", get(fmt.Sprintf("http://%v/x", listen), 200, ""))

	web := http.DefaultClient
	for _, c := range []struct {
		url  string
		code int
		want []string
	}{
		{r.admin + "/stats?filter=^cluster.app", 200, []string{
			"cluster.app.upstream_rq_total: 1\n", "cluster.app.upstream_rq_2xx: 1\n",
			"cluster.app.upstream_rq_200: 1\n", "cluster.app.upstream_cx_total: 1\n", "cluster.app.membership_healthy: 1\n",
		}},
		{r.admin + "/stats/prometheus", 200, []string{`envoy_cluster_upstream_rq{response_code="200",cluster_name="app"} 1`, "envoy_server_live 1\n"}},
		{r.admin + "/clusters", 200, []string{"app::" + upstream.String() + "::rq_total::1\n", "::rq_success::1\n", "::cx_total::1\n"}},
		{r.admin + "/config_dump", 200, []string{`"name":"app"`, "[redacted]"}},
		{r.admin + "/certs", 200, []string{"spiffe://cluster.local/ns/default/sa/web"}},
		{r.admin + "/server_info", 200, []string{`"state": "LIVE"`}},
		{r.admin + "/ready", 200, []string{"LIVE"}},
		{r.status + "/healthz/ready", 200, nil},
		{r.status + "/stats/prometheus", 200, []string{"envoy_server_uptime "}},
		{r.status + "/app-health/app/readyz", 200, nil},
		{r.status + "/app-health/app/livez", 503, nil},
		{r.status + "/app-health/app/startupz", 200, nil},
		{r.status + "/app-health/gone/readyz", 500, nil},
		{r.status + "/app-health/app/none", 404, nil},
	} {
		code, body := fetch(t, web, "GET", c.url)
		flat := strings.ReplaceAll(body, `"name": "`, `"name":"`)
		for _, want := range c.want {
			if want == "[redacted]" {
				want = "W3JlZGFjdGVkXQ=="
			}
			if !strings.Contains(flat, want) {
				t.Errorf("%s lacks %q", c.url, want)
			}
		}
		if code != c.code {
			t.Errorf("%s: %d, want %d", c.url, code, c.code)
		}
	}
	if _, body := fetch(t, web, "GET", r.status+"/stats/prometheus"); strings.Contains(body, "envoy_cluster_upstream") {
		t.Error("every cluster is scraped by default")
	}

	for _, path := range []string{"/logging?level=debug", "/drain_listeners", "/quitquitquit", "/healthcheck/fail", "/reset_counters"} {
		if code, _ := fetch(t, web, "POST", r.admin+path); code != 403 {
			t.Errorf("POST %s on the shared port: %d", path, code)
		}
	}
	if code, _ := fetch(t, web, "POST", r.status+"/quitquitquit"); code != 404 {
		t.Errorf("quitquitquit on the status port: %d", code)
	}
	owner := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(dir, "admin.sock"))
	}}}
	defer owner.CloseIdleConnections()
	post := func(path string) string {
		code, body := fetch(t, owner, "POST", "http://admin"+path)
		if code != 200 {
			t.Errorf("POST %s: %d %s", path, code, body)
		}
		return body
	}
	if got := post("/logging?level=debug"); !strings.Contains(got, "debug") {
		t.Errorf("level %q", got)
	}
	post("/reset_counters")
	if _, body := fetch(t, web, "GET", r.admin+"/stats?filter=app.upstream_rq_total"); !strings.HasSuffix(body, ": 0\n") {
		t.Errorf("after the reset: %s", body)
	}
	post("/healthcheck/fail")
	wait(t, "not ready", get(r.ready, 503, "failed by"))
	post("/healthcheck/ok")
	wait(t, "ready again", get(r.ready, 200, ""))
	post("/drain_listeners?graceful")
	wait(t, "draining", get(r.admin+"/ready", 503, "DRAINING"))
	post("/quitquitquit")
	if err := <-r.done; err != nil {
		t.Errorf("ended with %v", err)
	}
	r.done <- nil
}
