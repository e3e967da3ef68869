package stream

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
	"lateen.dev/lateen/internal/proxy/upstream"
)

func TestExchange_forwardsAndRecordsOnce(t *testing.T) {
	b := newBed(t, route())
	d := b.get("GET /ratings?x=1")
	d.want(t, 200, "ok")
	u := b.nth(0)
	if got := string(u.head.Path()); got != "/ratings?x=1" {
		t.Errorf("upstream path %q", got)
	}
	for name, want := range map[string]string{"x-envoy-attempt-count": "1", "x-forwarded-proto": "http"} {
		if got := header(&u.head, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if len(header(&u.head, "x-request-id")) != 36 {
		t.Errorf("x-request-id %q", header(&u.head, "x-request-id"))
	}
	if header(&d.resp, "server") != "envoy" || header(&d.resp, "date") == "" || header(&d.resp, "x-envoy-upstream-service-time") != "0" {
		t.Errorf("response headers: server %q date %q time %q", header(&d.resp, "server"), header(&d.resp, "date"), header(&d.resp, "x-envoy-upstream-service-time"))
	}
	r := b.wantRecord("", "via_upstream", 1)
	if r.Status != 200 || r.BytesSent != 2 || r.Decider != "VirtualService/reviews.default#spec.http[0]" || r.ClusterName != "v1" {
		t.Errorf("record %+v", r)
	}
	b.settled()
}

func TestExchange_localReplies(t *testing.T) {
	direct := route(func(r *snapshot.Route) {
		r.Match.Path = snapshot.PathMatch{Kind: snapshot.PathExact, Text: "/direct"}
		r.Clusters, r.Direct = nil, &snapshot.DirectResponse{Status: 418, Body: []byte("tea")}
	})
	gone := route(func(r *snapshot.Route) {
		r.Match.Path = snapshot.PathMatch{Kind: snapshot.PathExact, Text: "/gone"}
		r.Clusters[0].Cluster = "missing"
	})
	cases := []struct {
		line, authority string
		status          int
		flags, details  string
		body            string
	}{
		{"GET /x", "other", 404, "NR", "route_not_found", ""},
		{"GET /none", "reviews", 404, "NR", "route_not_found", ""},
		{"GET /direct", "reviews", 418, "", "direct_response", "tea"},
		{"GET /gone", "reviews", 503, "NC", "cluster_not_found", ""},
		{"GET /a/../../x", "reviews", 400, "", "path_normalization_failed", ""},
		{"GET /x#frag", "reviews", 400, "", "path_normalization_failed", ""},
		{"GET /x", "reviews..", 400, "", "invalid_host", ""},
	}
	for _, c := range cases {
		b := newBed(t, direct, gone)
		d := b.get(c.line, ":authority", c.authority)
		d.want(t, c.status, c.body)
		b.wantRecord(c.flags, c.details, 0)
		b.settled()
	}
}

func TestExchange_upstreamFailures(t *testing.T) {
	const prefix = "upstream connect error or disconnect/reset before headers. reset reason: "
	cases := []struct {
		script         func(int, *fakeUp)
		status         int
		flags, details string
		body           string
	}{
		{
			always(func(u *fakeUp) { u.refuse(message.ResetConnectFailure, "delayed connect error: Connection refused") }),
			503, "UF", "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}",
			prefix + "remote connection failure",
		},
		{
			always(func(u *fakeUp) { u.refuse(message.ResetConnectTimeout, "") }),
			503, "UF", "upstream_reset_before_response_started{connection_timeout}", prefix + "connection timeout",
		},
		{
			always(func(u *fakeUp) { u.refuse(message.ResetOverflow, "too many pending requests") }),
			503, "UO", "upstream_reset_before_response_started{overflow}", prefix + "overflow",
		},
		{
			always(func(u *fakeUp) { u.req.Waiter.OnUnavailable(&upstream.Error{NoHost: true}) }),
			503, "UH", "no_healthy_upstream", "no healthy upstream",
		},
		{
			always(func(u *fakeUp) { u.open().in.OnReset(message.ResetTermination) }),
			503, "UC", "upstream_reset_before_response_started{connection_termination}", prefix + "connection termination",
		},
		{
			always(func(u *fakeUp) { u.open().in.OnReset(message.ResetRemote) }),
			503, "UR", "upstream_reset_before_response_started{remote_reset}", prefix + "remote reset",
		},
		{
			always(func(u *fakeUp) { u.open().in.OnReset(message.ResetProtocol) }),
			502, "UPE", "upstream_reset_before_response_started{protocol_error}", prefix + "protocol error",
		},
	}
	for _, c := range cases {
		b := newBed(t, route())
		b.site.Snapshot.Clusters["v1"].Origin = "DestinationRule/reviews.default#spec.trafficPolicy"
		b.up.script = c.script
		d := b.get("POST /x")
		d.want(t, c.status, c.body)
		r := b.wantRecord(c.flags, c.details, 1)
		if (c.flags == "UO") != (header(&d.resp, "x-envoy-overloaded") == "true") {
			t.Errorf("%s: x-envoy-overloaded %q", c.flags, header(&d.resp, "x-envoy-overloaded"))
		}
		if want := snapshot.Origin("DestinationRule/reviews.default#spec.trafficPolicy"); c.flags == "UO" && r.Decider != want {
			t.Errorf("%s: decider %q, want who set the limit", c.flags, r.Decider)
		}
		if c.flags == "UF" && strings.Contains(c.details, "|") && r.UpstreamError == "" {
			t.Error("the transport failure is not recorded")
		}
		b.settled()
	}
}

func TestExchange_resetAfterResponseStartedCutsTheClient(t *testing.T) {
	b := newBed(t, route())
	b.up.script = hang
	d := b.get("GET /x")
	h := &message.Head{}
	h.SetStatus(200)
	b.nth(0).in.OnHead(h, false)
	b.nth(0).in.OnData([]byte("par"), false)
	b.nth(0).in.OnReset(message.ResetTermination)
	if d.reset == message.ResetNone || d.end {
		t.Fatalf("client saw end=%v reset=%v: a cut response must not look whole", d.end, d.reset)
	}
	b.wantRecord("UC", "upstream_reset_after_response_started{connection_termination}", 1)
	b.settled()
}

func TestExchange_clientGone(t *testing.T) {
	b := newBed(t, route())
	b.up.script = hang
	d := b.get("GET /x")
	d.in.OnReset(message.ResetTermination)
	if b.nth(0).reset != message.ResetCancel || !b.nth(0).finished {
		t.Error("the upstream exchange goes on without a client")
	}
	b.wantRecord("DC", "downstream_remote_disconnect", 1)
	b.settled()
}

func TestExchange_bodyTrailersAndInformational(t *testing.T) {
	b := newBed(t, route())
	b.up.script = hang
	d := b.start("POST /x")
	d.in.OnHead(d.head, false)
	d.in.OnData([]byte("one"), false)
	tr := &message.Head{}
	tr.AddNameString("x-sum", "1")
	d.in.OnTrailers(tr)
	u := b.nth(0)
	if string(u.body) != "one" || header(&u.trail, "x-sum") != "1" {
		t.Fatalf("upstream got %q trailers %q", u.body, header(&u.trail, "x-sum"))
	}
	info := &message.Head{}
	info.SetStatus(103)
	u.in.OnInformational(info)
	h := &message.Head{}
	h.SetStatus(200)
	u.in.OnHead(h, false)
	u.in.OnData([]byte("body"), false)
	rt := &message.Head{}
	rt.AddNameString("grpc-status", "0")
	u.in.OnTrailers(rt)
	d.want(t, 200, "body")
	if header(&d.trail, "grpc-status") != "0" || len(d.infos) != 1 || d.infos[0] != 103 {
		t.Errorf("client trailers %q, informational %v", header(&d.trail, "grpc-status"), d.infos)
	}
	if r := b.wantRecord("", "via_upstream", 1); r.BytesReceived != 3 || r.BytesSent != 4 {
		t.Errorf("bytes %d/%d", r.BytesReceived, r.BytesSent)
	}
	b.settled()
}

func TestExchange_earlyResponse(t *testing.T) {
	b := newBed(t, route())
	b.up.script = hang
	d := b.start("POST /x")
	d.in.OnHead(d.head, false)
	d.in.OnData([]byte("part"), false)
	b.nth(0).respond(413, "too big")
	d.want(t, 413, "too big")
	if b.nth(0).reset != message.ResetCancel || !b.nth(0).finished {
		t.Error("the half-sent upstream request was not stopped")
	}
	b.wantRecord("", "via_upstream", 1)
	d.in.OnData([]byte("late"), true) // must not harm
	b.settled()
}

func TestExchange_backPressureBothWays(t *testing.T) {
	b := newBed(t, route())
	b.up.script = hang
	d := b.start("POST /x")
	d.in.OnHead(d.head, false)
	u := b.nth(0)
	u.full = true
	d.in.OnData([]byte("big"), false)
	if !d.paused {
		t.Fatal("the client is not held back while the upstream is full")
	}
	u.full = false
	u.in.OnDrained()
	if d.paused {
		t.Fatal("the client stays held back")
	}
	d.in.OnData(nil, true)
	h := &message.Head{}
	h.SetStatus(200)
	u.in.OnHead(h, false)
	d.full = true
	u.in.OnData([]byte("big"), false)
	if !u.paused {
		t.Fatal("the upstream is not held back while the client is full")
	}
	d.full = false
	d.in.OnDrained()
	if u.paused {
		t.Fatal("the upstream stays held back")
	}
	u.in.OnData(nil, true)
	d.want(t, 200, "big")
	b.settled()
}

func TestExchange_bodyWaitsBoundedForConnection(t *testing.T) {
	b := newBed(t, route())
	b.env.ReplayBytes = 8
	b.up.script = func(int, *fakeUp) {} // connecting
	d := b.start("POST /x")
	d.in.OnHead(d.head, false)
	d.in.OnData([]byte("12345"), false)
	if d.paused {
		t.Fatal("held back too early")
	}
	d.in.OnData([]byte("67890"), false)
	if !d.paused {
		t.Fatal("the body is queued without bound")
	}
	u := b.nth(0).open()
	if d.paused || string(u.body) != "1234567890" {
		t.Fatalf("after connect: paused %v, sent %q", d.paused, u.body)
	}
	d.in.OnData([]byte("end"), true)
	u.respond(200, "ok")
	d.want(t, 200, "ok")
	if string(u.body) != "1234567890end" {
		t.Errorf("upstream got %q", u.body)
	}
	b.settled()
}

func TestExchange_weights(t *testing.T) {
	b := newBed(t, route(func(r *snapshot.Route) {
		r.Clusters = []snapshot.WeightedCluster{{Cluster: "v1", Weight: 90}, {Cluster: "v2", Weight: 10}}
	}))
	count := map[string]int{}
	for range 2000 {
		b.get("GET /x").want(t, 200, "ok")
		count[b.up.all[len(b.up.all)-1].cluster]++
		b.up.all, b.records = nil, nil
	}
	if count["v1"] < 1740 || count["v1"] > 1860 {
		t.Fatalf("split %v, want 90:10", count)
	}
}

func TestExchange_rewriteAndHeaderEdits(t *testing.T) {
	b := newBed(t, route(func(r *snapshot.Route) {
		r.Match.Path.Text = "/api/"
		r.PrefixRewrite, r.HostRewrite, r.AppendXFH = "/", "inner.example", true
		r.Request = snapshot.HeaderOps{
			Remove: []string{"x-secret"},
			Set:    []snapshot.HeaderValue{{Name: "x-env", Value: "prod"}, {Name: "x-client", Value: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}},
			Add:    []snapshot.HeaderValue{{Name: "x-list", Value: "b"}},
		}
		r.Response = snapshot.HeaderOps{Set: []snapshot.HeaderValue{{Name: "x-out", Value: "1"}}, Remove: []string{"x-powered-by"}}
	}))
	b.up.script = always(func(u *fakeUp) {
		u.onEnd = func() { u.respond(200, "ok", "x-powered-by", "php") }
		u.open()
	})
	d := b.get("GET /api/v1?q=2", "x-secret", "s", "x-env", "dev", "x-list", "a")
	u := &b.nth(0).head
	for name, want := range map[string]string{
		"x-secret": "", "x-env": "prod", "x-client": "10.0.0.9", "x-forwarded-host": "reviews", "x-envoy-original-path": "/api/v1?q=2",
	} {
		if got := header(u, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if string(u.Path()) != "/v1?q=2" || string(u.Authority()) != "inner.example" {
		t.Errorf("upstream asked for %q at %q", u.Path(), u.Authority())
	}
	var list []string
	u.Values("x-list", func(v []byte) bool { list = append(list, string(v)); return true })
	if strings.Join(list, ",") != "a,b" {
		t.Errorf("x-list %v", list)
	}
	if header(&d.resp, "x-out") != "1" || header(&d.resp, "x-powered-by") != "" {
		t.Error("response edits are not applied")
	}
	if r := b.last(); r.OriginalPath != "/api/v1?q=2" {
		t.Errorf("original path %q", r.OriginalPath)
	}
}

func TestExchange_regexRewrite(t *testing.T) {
	b := newBed(t, route(func(r *snapshot.Route) {
		r.RegexRewrite = &snapshot.RegexRewrite{Regex: regexp.MustCompile(`^/svc/([^/]+)/(.*)$`), Substitution: `/\2/of/\1$x`}
	}))
	b.get("GET /svc/a/b?q").want(t, 200, "ok")
	if got := string(b.nth(0).head.Path()); got != "/b/of/a$x?q" {
		t.Fatalf("path %q", got)
	}
}

func TestExchange_redirect(t *testing.T) {
	cases := []struct {
		to   snapshot.Redirect
		want string
		code int
	}{
		{snapshot.Redirect{Host: "new.example"}, "http://new.example/a/b?q=1", 301},
		{snapshot.Redirect{Scheme: "https", Port: 8443, Code: 308}, "https://reviews:8443/a/b?q=1", 308},
		{snapshot.Redirect{Path: "/c"}, "http://reviews:80/c?q=1", 301},
		{snapshot.Redirect{Path: "/c", StripQuery: true}, "http://reviews:80/c", 301},
		{snapshot.Redirect{PrefixRewrite: "/z/"}, "http://reviews:80/z/b?q=1", 301},
		{snapshot.Redirect{Scheme: "https"}, "https://reviews/a/b?q=1", 301},
	}
	for _, c := range cases {
		b := newBed(t, route(func(r *snapshot.Route) {
			r.Match.Path.Text, r.Clusters, r.Redirect = "/a/", nil, &c.to
		}))
		d := b.get("GET /a/b?q=1", ":authority", "reviews:80")
		if got := header(&d.resp, "location"); got != c.want || d.status() != c.code {
			t.Errorf("%+v: %d %q, want %d %q", c.to, d.status(), got, c.code, c.want)
		}
		b.wantRecord("", "direct_response", 0)
	}
}

func TestExchange_faults(t *testing.T) {
	f := &snapshot.Fault{Delay: 5 * time.Second, DelayPerMillion: 1e6, AbortStatus: 503, AbortPerMillion: 1e6, AbortGRPCStatus: -1, Origin: "VirtualService/f#spec.http[0].fault"}
	b := newBed(t, route(func(r *snapshot.Route) { r.Fault, r.Timeout = f, time.Second }))
	b.site.Manager.Filters = []snapshot.HTTPFilter{{Name: "fault", Fault: &snapshot.Fault{AbortGRPCStatus: -1}}}
	d := b.get("GET /x")
	b.clock.Advance(4 * time.Second)
	if d.heads != 0 {
		t.Fatal("answered before the delay was over; the route's timeout must not run during it")
	}
	b.clock.Advance(time.Second)
	d.want(t, 503, "fault filter abort")
	if r := b.wantRecord("DI,FI", "fault_filter_abort", 0); r.Decider != f.Origin {
		t.Errorf("decider %q", r.Decider)
	}
	f.AbortPerMillion = 0
	d = b.get("GET /x")
	b.clock.Advance(5 * time.Second)
	d.want(t, 200, "ok")
	b.wantRecord("DI", "via_upstream", 1)
	b.settled()
}

func TestExchange_clientGoneDuringDelay(t *testing.T) {
	f := &snapshot.Fault{Delay: time.Second, DelayPerMillion: 1e6, AbortGRPCStatus: -1}
	b := newBed(t, route(func(r *snapshot.Route) { r.Fault = f }))
	b.site.Manager.Filters = []snapshot.HTTPFilter{{Fault: f}}
	d := b.get("GET /x")
	d.in.OnReset(message.ResetTermination)
	b.clock.Advance(2 * time.Second)
	if len(b.up.all) != 0 {
		t.Fatal("a request without a client went upstream")
	}
	b.wantRecord("DI,DC", "downstream_remote_disconnect", 0)
	b.settled()
}

func TestExchange_authorization(t *testing.T) {
	any := []*snapshot.Rule{{Kind: snapshot.RuleAny}}
	rbac := func(a snapshot.Action, path string) *snapshot.RBAC {
		return &snapshot.RBAC{Action: a, Policies: []*snapshot.Policy{{
			Name: "ns[default]-policy[p]-rule[0]", Origin: "AuthorizationPolicy/p.default#spec.rules[0]",
			Permissions: []*snapshot.Rule{{Kind: snapshot.RulePath, Text: snapshot.StringMatcher{Kind: snapshot.StringPrefix, Text: path}}},
			Principals:  any,
		}}}
	}
	b := newBed(t, route())
	b.site.Manager.Filters = []snapshot.HTTPFilter{{Name: "deny", RBAC: rbac(snapshot.Deny, "/admin")}, {Name: "allow", RBAC: rbac(snapshot.Allow, "/open")}}
	b.get("GET /open/1").want(t, 200, "ok")
	b.records = nil
	for _, evasion := range []string{"/admin", "/x/../admin", "/%61dmin", "/./admin", "/x/%2e%2e/admin", `/x\..\admin`} {
		b.get("GET "+evasion).want(t, 403, "RBAC: access denied")
		r := b.wantRecord("", "rbac_access_denied_matched_policy[ns[default]-policy[p]-rule[0]]", 0)
		if r.Decider != "AuthorizationPolicy/p.default#spec.rules[0]" || r.Policy == "" {
			t.Errorf("%s: decider %q policy %q", evasion, r.Decider, r.Policy)
		}
	}
	b.get("GET /else").want(t, 403, "RBAC: access denied")
	b.wantRecord("", "rbac_access_denied_matched_policy[none]", 0)
	b.get("GET /nowhere", ":authority", "unknown").want(t, 403, "RBAC: access denied") // before the 404
}

func TestExchange_cors(t *testing.T) {
	c := &snapshot.CORS{
		AllowOrigins: []snapshot.StringMatcher{{Kind: snapshot.StringExact, Text: "https://ok.example"}},
		AllowMethods: "GET,POST", ExposeHeaders: "x-a", MaxAge: "60", AllowCredentials: true,
	}
	b := newBed(t, route(func(r *snapshot.Route) { r.CORS = c }))
	b.site.Manager.Filters = []snapshot.HTTPFilter{{CORS: &snapshot.CORS{}}}
	d := b.get("OPTIONS /x", "origin", "https://ok.example", "access-control-request-method", "POST")
	d.want(t, 200, "")
	if header(&d.resp, "access-control-allow-origin") != "https://ok.example" || header(&d.resp, "access-control-allow-methods") != "GET,POST" || header(&d.resp, "access-control-max-age") != "60" {
		t.Error("preflight answer is incomplete")
	}
	b.wantRecord("", "cors_response", 0)
	d = b.get("GET /x", "origin", "https://ok.example")
	if header(&d.resp, "access-control-expose-headers") != "x-a" || header(&d.resp, "access-control-allow-credentials") != "true" {
		t.Error("response lacks the CORS headers")
	}
	d = b.get("GET /x", "origin", "https://evil.example")
	if d.status() != 200 || header(&d.resp, "access-control-allow-origin") != "" {
		t.Error("a foreign origin was granted access")
	}
	d = b.get("OPTIONS /x", "origin", "https://evil.example", "access-control-request-method", "POST")
	if d.status() != 200 || header(&d.resp, "access-control-allow-origin") != "" || string(d.body) != "" {
		t.Error("a foreign preflight was forwarded or granted")
	}
}

func TestExchange_mirror(t *testing.T) {
	b := newBed(t, route(func(r *snapshot.Route) { r.Mirrors = []snapshot.Mirror{{Cluster: "shadow", PerMillion: 1e6}} }))
	b.up.script = func(_ int, u *fakeUp) {
		if u.cluster == "shadow" {
			u.onEnd = func() { u.respond(500, "ignored") }
			u.open()
			return
		}
		u.answer(200, "real")
	}
	d := b.start("POST /x")
	d.in.OnHead(d.head, false)
	d.in.OnData([]byte("a"), false)
	d.in.OnData([]byte("b"), true)
	d.want(t, 200, "real")
	if len(b.up.all) != 2 {
		t.Fatalf("%d upstream requests", len(b.up.all))
	}
	for _, u := range b.up.all {
		if string(u.body) != "ab" || !u.gotEnd || string(u.head.Authority()) != "reviews" || !u.finished {
			t.Errorf("%s got %q end=%v at %q finished=%v", u.cluster, u.body, u.gotEnd, u.head.Authority(), u.finished)
		}
	}
	b.wantRecord("", "via_upstream", 1)
	b.settled()
}

func TestExchange_mirrorNeverHoldsBack(t *testing.T) {
	b := newBed(t, route(func(r *snapshot.Route) { r.Mirrors = []snapshot.Mirror{{Cluster: "shadow", PerMillion: 1e6}} }))
	b.up.script = func(_ int, u *fakeUp) {
		if u.cluster != "shadow" {
			u.answer(200, "real")
		} // the mirror never connects
	}
	b.get("GET /x").want(t, 200, "real")
	b.clock.Advance(time.Minute)
	if !b.nth(0).cancel && !b.nth(1).cancel {
		t.Error("the mirror waits for ever")
	}
	b.settled()
}

func TestExchange_edgeHygiene(t *testing.T) {
	b := newBed(t, route())
	b.site.Manager.UseRemoteAddress = true
	id := "11111111-2222-4333-8444-555555555555"
	b.get("GET /x", "x-forwarded-for", "1.2.3.4", "x-forwarded-proto", "https", "x-request-id", id,
		"x-envoy-original-path", "/admin", "x-envoy-retry-on", "5xx", "x-envoy-upstream-rq-timeout-ms", "1", "x-envoy-internal", "true", "x-envoy-external-address", "6.6.6.6")
	u := &b.nth(0).head
	for name, want := range map[string]string{
		"x-forwarded-for": "1.2.3.4,10.0.0.9", "x-forwarded-proto": "http", "x-envoy-original-path": "", "x-envoy-retry-on": "",
		"x-envoy-internal": "", "x-envoy-external-address": "", "x-envoy-expected-rq-timeout-ms": "",
	} {
		if got := header(u, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if got := header(u, "x-request-id"); got == id || len(got) != 36 {
		t.Errorf("the edge believed a foreign x-request-id: %q", got)
	}
}

func TestExchange_clientCertificateHeader(t *testing.T) {
	tls := &message.TLSInfo{
		PeerURISANs: []string{"spiffe://td/ns/a/sa/b"}, PeerSubject: `CN="x",O=y`, LocalURISAN: "spiffe://td/ns/c/sa/d",
		PeerCert: &x509.Certificate{Raw: []byte("der")}, Mutual: true,
	}
	run := func(mode snapshot.ForwardClientCert, tls *message.TLSInfo, forged string) string {
		b := newBed(t, route())
		b.site.Manager.ForwardClientCert = mode
		b.site.Manager.SetClientCert = snapshot.SetClientCert{Subject: true, URI: true}
		d := b.start("GET /x", "x-forwarded-client-cert", forged)
		d.conn.TLS = tls
		d.in.OnHead(d.head, true)
		return header(&b.nth(0).head, "x-forwarded-client-cert")
	}
	own := `By=spiffe://td/ns/c/sa/d;Hash=99353a1a65de3ab4a8862aab1d5e00619c46ff6e3b79a3b6fe9aea2fb70ae2b9;Subject="CN=\"x\",O=y";URI=spiffe://td/ns/a/sa/b`
	got := run(snapshot.XFCCSanitizeSet, tls, "URI=forged")
	if i := strings.Index(got, "Hash="); i < 0 || strings.Contains(got, "forged") || got[:i] != own[:i] || !strings.HasSuffix(got, `;Subject="CN=\"x\",O=y";URI=spiffe://td/ns/a/sa/b`) {
		t.Errorf("sanitize-set: %q", got)
	}
	if got := run(snapshot.XFCCAppendForward, tls, "URI=before"); !strings.HasPrefix(got, "URI=before,By=spiffe://td/ns/c/sa/d;Hash=") {
		t.Errorf("append: %q", got)
	}
	for _, mode := range []snapshot.ForwardClientCert{snapshot.XFCCSanitize, snapshot.XFCCForwardOnly, snapshot.XFCCAppendForward, snapshot.XFCCSanitizeSet} {
		if got := run(mode, nil, "URI=forged"); got != "" {
			t.Errorf("mode %d believes a client without certificate: %q", mode, got)
		}
	}
}

func TestExchange_upgrade(t *testing.T) {
	b := newBed(t, route(func(r *snapshot.Route) { r.Timeout = time.Second }))
	b.up.script = hang
	d := b.start("GET /ws", "upgrade", "WebSocket")
	d.in.OnHead(d.head, false)
	d.want(t, 403, "")
	b.wantRecord("", "upgrade_failed", 0)
	b.site.Manager.Upgrades = map[string]bool{"websocket": true}
	d = b.start("GET /ws", "upgrade", "WebSocket")
	d.in.OnHead(d.head, false)
	u := b.nth(0)
	h := &message.Head{}
	h.SetStatus(101)
	h.AddNameString("upgrade", "websocket")
	u.in.OnHead(h, false)
	b.clock.Advance(time.Hour) // no timeout any more
	d.in.OnData([]byte("ping"), false)
	u.in.OnData([]byte("pong"), false)
	if string(u.body) != "ping" || string(d.body) != "pong" || d.status() != 101 {
		t.Fatalf("upstream %q client %d %q", u.body, d.status(), d.body)
	}
	d.in.OnData(nil, true)
	u.in.OnData(nil, true)
	b.wantRecord("", "via_upstream", 1)
	b.settled()
}

func TestExchange_consistentHash(t *testing.T) {
	ttl := time.Hour
	b := newBed(t, route(func(r *snapshot.Route) {
		r.Hash = []snapshot.HashPolicy{{Header: "x-user", Terminal: true}, {Cookie: "session", CookieTTL: &ttl, CookiePath: "/"}}
	}))
	b.get("GET /x", "x-user", "ann")
	b.get("GET /y", "x-user", "ann")
	d := b.get("GET /x")
	if b.nth(0).hash != b.nth(1).hash || b.nth(0).hash == b.nth(2).hash {
		t.Error("equal users hash differently, or a user and a cookie alike")
	}
	if !b.nth(2).hashed {
		t.Error("no hash by cookie")
	}
	set := header(&d.resp, "set-cookie")
	if !strings.HasPrefix(set, `session="`) || !strings.Contains(set, "Max-Age=3600; Path=/; HttpOnly") {
		t.Errorf("set-cookie %q", set)
	}
	value := strings.TrimSuffix(strings.TrimPrefix(strings.SplitN(set, ";", 2)[0], "session="), "")
	d = b.get("GET /x", "cookie", "a=b; session="+value)
	if header(&d.resp, "set-cookie") != "" {
		t.Error("a known client got another cookie")
	}
}

func TestExchange_timeouts(t *testing.T) {
	b := newBed(t, route(func(r *snapshot.Route) { r.Timeout = 2 * time.Second }))
	b.up.script = hang
	d := b.start("POST /x")
	d.in.OnHead(d.head, false)
	b.clock.Advance(10 * time.Second) // a slow request is not the upstream's fault
	d.in.OnData([]byte("x"), true)
	b.clock.Advance(2 * time.Second)
	d.want(t, 504, "upstream request timeout")
	b.wantRecord("UT", "response_timeout", 1)
	if o := b.up.finished[0]; !o.TimedOut {
		t.Error("outlier detection does not hear of the timeout")
	}
	d = b.get("GET /x")
	h := &message.Head{}
	h.SetStatus(200)
	b.nth(1).in.OnHead(h, false)
	b.clock.Advance(2 * time.Second)
	if d.reset == message.ResetNone {
		t.Error("a response that takes too long is not cut")
	}
	b.wantRecord("UT", "response_timeout", 1)
	b.settled()
}

func TestExchange_idleTimeout(t *testing.T) {
	b := newBed(t, route(func(r *snapshot.Route) { r.IdleTimeout = time.Second }))
	b.up.script = hang
	d := b.get("GET /x")
	h := &message.Head{}
	h.SetStatus(200)
	b.nth(0).in.OnHead(h, false)
	for range 5 {
		b.clock.Advance(900 * time.Millisecond)
		b.nth(0).in.OnData([]byte("."), false)
	}
	if d.reset != message.ResetNone {
		t.Fatal("a stream with traffic was called idle")
	}
	b.clock.Advance(time.Second)
	if d.reset == message.ResetNone {
		t.Fatal("an idle stream lives on")
	}
	b.wantRecord("SI", "stream_idle_timeout", 1)
	b.settled()
}

func TestExchange_grpcRepliesInItsOwnTerms(t *testing.T) {
	b := newBed(t, route())
	b.up.script = always(func(u *fakeUp) { u.req.Waiter.OnUnavailable(&upstream.Error{NoHost: true}) })
	d := b.get("POST /svc/M", "content-type", "application/grpc")
	if d.status() != 200 || header(&d.resp, "grpc-status") != "14" || header(&d.resp, "grpc-message") != "no healthy upstream" {
		t.Fatalf("%d grpc-status %q", d.status(), header(&d.resp, "grpc-status"))
	}
}

func TestExchange_remoteAddressBehindTrustedHops(t *testing.T) {
	for _, c := range []struct {
		edge bool
		hops uint32
		xff  string
		want string
	}{
		{true, 0, "1.1.1.1", "10.0.0.9"},
		{true, 1, "6.6.6.6, 1.1.1.1", "1.1.1.1"},
		{true, 2, "6.6.6.6, 1.1.1.1", "6.6.6.6"},
		{false, 0, "6.6.6.6, 1.1.1.1", "1.1.1.1"},
		{false, 0, "rubbish", "10.0.0.9"},
	} {
		b := newBed(t, route())
		b.site.Manager.UseRemoteAddress, b.site.Manager.XFFTrustedHops = c.edge, c.hops
		b.up.script = hang
		d := b.get("GET /x", "x-forwarded-for", c.xff)
		if d.x.remote != netip.MustParseAddr(c.want) {
			t.Errorf("%+v: remote %v", c, d.x.remote)
		}
	}
}

func TestExchange_reuseLeaksNothing(t *testing.T) {
	b := newBed(t, route())
	first := b.get("POST /a", "x-request-id", "keep-me").x
	second := b.get("GET /b")
	if second.x != first {
		t.Fatal("a finished exchange is not reused")
	}
	if id := header(&b.nth(1).head, "x-request-id"); id == "keep-me" || bytes.Contains(b.nth(1).head.Path(), []byte("/a")) {
		t.Fatalf("state of the first request reached the second: %q", id)
	}
	for i, r := range b.records {
		if len(r.Attempts) != 1 {
			t.Errorf("record %d has %d attempts", i, len(r.Attempts))
		}
	}
	if s := fmt.Sprint(b.env.Active()); s != "0" {
		t.Errorf("active %s", s)
	}
}
