//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// manifests is a folder as a user brings it: an application in two versions to
// be, its routing, policies and telemetry, with slips that fix mends.
type manifests struct {
	folder, app, image, policy string
}

// A user's own manifests, when they are at hand: a folder input in shared beside
// the repository, or what LATEEN_INPUT names.
func TestManifests_userInput(t *testing.T) {
	folder := os.Getenv("LATEEN_INPUT")
	if folder == "" {
		folder = filepath.Join("..", "..", "..", "..", "shared", "input")
	}
	if _, err := os.Stat(folder); err != nil {
		t.Skipf("skipped: no manifests at %s", folder)
	}
	manifests{folder: folder, app: "go-app", image: "your-registry/go-app:latest", policy: "go-app-authz"}.test(t)
}

func TestManifests_ours(t *testing.T) {
	manifests{folder: "testdata/shop", app: "catalog", image: "registry.example/catalog:latest", policy: "catalog-readers"}.test(t)
}

func (u manifests) test(t *testing.T) {
	needNamespaces(t)
	dir := tempDir(t)
	if err := os.CopyFS(filepath.Join(dir, "input"), os.DirFS(u.folder)); err != nil {
		t.Fatal(err)
	}
	extra, err := os.ReadFile("testdata/extra.yaml")
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "extra.yaml"), strings.ReplaceAll(string(extra), "APP", u.app))
	give(t, dir)
	if _, _, code := runIn(t, dir, "analyze", "input"); code != 4 {
		t.Errorf("analyze before: exit %d, want 4", code)
	}
	if out, errs, code := runIn(t, dir, "fix", "-o", "fixed", "input"); code != 0 {
		t.Fatalf("fix: exit %d\n%s%s", code, out, errs)
	}
	if out, _, code := runIn(t, dir, "analyze", "fixed"); code != 0 || !strings.Contains(out, "\n0 errors, ") {
		t.Errorf("analyze after: exit %d\n%s", code, out)
	}
	// Two of the application, one of its second version, three callers and the
	// Collector.
	m := up(t, dir, 7, "-f", "fixed", "-f", "extra.yaml", "--image", u.image+"="+filepath.Join(programs, "goapp"))
	u.checkTraffic(m)
	u.checkRefusals(m)
	u.checkConfiguration(m)
	u.checkTraces(m)
}

func (u manifests) url(path string) string { return "http://" + u.app + ".default:8080" + path }

// checkTraffic: the canary by weight and by header, and whom the rules let in.
func (u manifests) checkTraffic(m *mesh) {
	t := m.t
	a := m.call("caller", "-n", "2000", "-c", "8", "http://"+u.app+":8080/api/hello")
	if v2 := a.of(u.app + "-v2-"); a.ByStatus[200] != 2000 || v2 < 140 || v2 > 260 {
		t.Errorf("of 2000 requests %d reached v2, want 200 ± 60: %+v", v2, a)
	}
	first, second := 0, 0
	for pod, n := range a.ByPod {
		if !strings.HasPrefix(pod, u.app+"-v2-") {
			first, second = n, first
		}
	}
	if first == 0 || second == 0 {
		t.Errorf("not both pods of v1 answered: %v", a.ByPod)
	}
	if a := m.call("caller", "-n", "40", "-H", "canary=true", "http://"+u.app+":8080/api/hello"); a.of(u.app+"-v2-") != 40 {
		t.Errorf("with the canary header: %+v, want v2 alone", a)
	}
}

// checkRefusals: everyone else is refused, and the refusal names the rule.
func (u manifests) checkRefusals(m *mesh) {
	t := m.t
	for _, c := range []struct{ pod, path string }{{"caller", "/health"}, {"caller", "/"}, {"stranger.elsewhere", "/api/hello"}} {
		if a := m.call(c.pod, "-n", "5", u.url(c.path)); a.ByStatus[403] != 5 || !strings.HasPrefix(a.Body, "RBAC: access denied") {
			t.Errorf("%s asks for %s: %+v, want 403", c.pod, c.path, a)
		}
	}
	// STRICT: a caller without identity does not get as far as a rule.
	if a := m.call("bare", u.url("/api/hello")); len(a.Errors) != 1 || len(a.ByStatus) != 0 {
		t.Errorf("plaintext from a bare pod: %+v, want a refused connection", a)
	}
	m.until(10*time.Second, "access log of the refusals", func() error {
		pods, err := m.pods()
		if err != nil {
			return err
		}
		logs := ""
		for name := range pods {
			if strings.HasPrefix(name, u.app) {
				logs += m.ask("logs", name, "-c", "proxy")
			}
		}
		for line := range strings.Lines(logs) {
			if strings.Contains(line, " 403 ") && strings.Contains(line, "rbac_access_denied_matched_policy[none]") {
				return nil
			}
		}
		return fmt.Errorf("no line says why:\n%s", tail(logs, 2000))
	})
}

// checkConfiguration: what the files ask for stands in the proxies.
func (u manifests) checkConfiguration(m *mesh) {
	host := u.app + ".default.svc.cluster.local"
	why := m.ask("proxy", "config", "all", "caller", "--why")
	for _, want := range []string{
		"VirtualService/" + u.app + ".default#spec.http[0]", "VirtualService/" + u.app + ".default#spec.http[1]",
		"DestinationRule/" + u.app + ".default#spec.subsets[1]", "outbound|8080|v2|" + host + "=10", filepath.Join(m.dir, "fixed"),
	} {
		if !strings.Contains(why, want) {
			m.t.Errorf("proxy config all --why does not say %q:\n%s", want, why)
		}
	}
	routes := m.ask("proxy", "config", "route", "caller", "-o", "json")
	contain(m.t, "routes", routes, `"timeout":"10s"`, `"numRetries":3`, `"perTryTimeout":"2s"`, `"retryOn":"5xx,reset,connect-failure`)
	clusters := m.ask("proxy", "config", "cluster", "caller", "-o", "json")
	contain(m.t, "clusters", clusters, `"lbPolicy":"LEAST_REQUEST"`, `"maxConnections":100`, `"maxPendingRequests":50`, `"maxRequests":100`,
		`"maxRequestsPerConnection":2`, `"consecutiveGatewayFailure":5`, `"interval":"10s"`, `"baseEjectionTime":"30s"`, `"maxEjectionPercent":50`)
	contain(m.t, "sampling in the default namespace", m.ask("proxy", "config", "listener", "caller", "-o", "json"), `"randomSampling":{"value":10}`)
	contain(m.t, "sampling elsewhere", m.ask("proxy", "config", "listener", "stranger", "-o", "json"), `"randomSampling":{"value":100}`)
	if out := m.ask("proxy", "config", "secret", "caller"); !strings.Contains(out, "spiffe://cluster.local/ns/default/sa/frontend") {
		m.t.Errorf("proxy config secret does not show the identity:\n%s", out)
	}
	pod := m.pod(u.app + "-")
	bootstrap := m.call(pod, "http://127.0.0.1:15000/config_dump").Body
	contain(m.t, "limits of the proxy", bootstrap, `"concurrency":2`, `"memoryLimit":1073741824`)
}

// contain looks for pieces of JSON, white space aside.
func contain(t *testing.T, what, text string, pieces ...string) {
	t.Helper()
	plain := strings.NewReplacer(" ", "", "\n", "").Replace(text)
	for _, p := range pieces {
		if !strings.Contains(plain, p) {
			t.Errorf("%s: no %s in\n%s", what, p, tail(text, 3000))
		}
	}
}

type span struct {
	Service, Name, SpanID, ParentID string
	Attributes                      map[string]any
}

// traces lists the traces of a service.
func (m *mesh) traces(service string) (ids []string) {
	var list struct{ Traces []struct{ TraceID string } }
	m.askJSON(&list, "trace", "ls", "--service", service, "--limit", "2000")
	for _, t := range list.Traces {
		ids = append(ids, t.TraceID)
	}
	return ids
}

// checkTraces: a tenth of the default namespace, all of the others, in one trace
// with the custom tags, and the refusal's span naming the policy.
func (u manifests) checkTraces(m *mesh) {
	m.until(30*time.Second, "a tenth of 2000 requests traced", func() error {
		if n := len(m.traces("caller.default")); n < 140 {
			return fmt.Errorf("%d traces, want about 200", n)
		}
		return nil
	})
	if n := len(m.traces("caller.default")); n > 280 {
		m.t.Errorf("%d of about 2050 requests are traced, want a tenth", n)
	}
	m.until(20*time.Second, "a trace of caller, sidecars and application", func() error {
		var err error
		for _, id := range m.traces("caller.default") {
			if err = u.checkTrace(m.spans(id)); err == nil {
				return nil
			}
		}
		return err
	})
	var refused []string
	m.until(20*time.Second, "all refusals of the other namespace traced", func() error {
		if refused = m.traces("stranger.elsewhere"); len(refused) != 5 {
			return fmt.Errorf("%d traces, want 5", len(refused))
		}
		return nil
	})
	m.until(20*time.Second, "the refusal's span names the policy", func() error {
		text, _ := json.Marshal(m.spans(refused[0]))
		for _, want := range []string{
			`"lateen.origin":"AuthorizationPolicy/` + u.policy + `.default"`, filepath.Join(m.dir, "fixed"),
			`"response_code_details":"rbac_access_denied_matched_policy[none]"`,
		} {
			if !strings.Contains(string(text), want) {
				return fmt.Errorf("no %s in %s", want, text)
			}
		}
		return nil
	})
}

func (m *mesh) spans(id string) []span {
	var trace struct{ Spans []span }
	m.askJSON(&trace, "trace", "show", id)
	return trace.Spans
}

// checkTrace wants client sidecar → server sidecar → application.
func (u manifests) checkTrace(spans []span) error {
	by := map[string]span{}
	for _, s := range spans {
		by[s.Service] = s
	}
	client, server, app := by["caller.default"], by[u.app+".default"], span{}
	for _, s := range spans {
		if s.Attributes["component"] != "proxy" {
			app = s
		}
	}
	switch {
	case len(spans) != 3:
		return fmt.Errorf("%d spans, want 3: %v", len(spans), spans)
	case client.ParentID != "" || server.ParentID != client.SpanID || app.ParentID != server.SpanID:
		return fmt.Errorf("parents are wrong: %+v", spans)
	}
	for _, s := range []span{client, server} {
		if s.Attributes["environment"] != "production" || s.Attributes["cluster"] != "k8s-cluster-1" {
			return fmt.Errorf("custom tags are missing: %v", s.Attributes)
		}
	}
	return nil
}
