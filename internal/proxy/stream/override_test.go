package stream

import (
	"testing"
	"time"

	"lateen.dev/lateen/internal/proxy/snapshot"
)

func TestOverride_applicationsOwnRetries(t *testing.T) {
	on5xx := snapshot.RetryPolicy{On: snapshot.RetryOn5xx, Retries: 1}
	for _, c := range []struct {
		name   string
		policy *snapshot.RetryPolicy
		status int
		pairs  []string
		want   int // attempts
	}{
		{"conditions without a policy: one retry", nil, 500, []string{"x-envoy-retry-on", "5xx"}, 2},
		{"and a number", nil, 500, []string{"x-envoy-retry-on", "gateway-error,5xx", "x-envoy-max-retries", "3"}, 4},
		{"a number alone does nothing", nil, 500, []string{"x-envoy-max-retries", "3"}, 1},
		{"the number replaces the route's", &on5xx, 500, []string{"x-envoy-max-retries", "3"}, 4},
		{"and may be 0", &on5xx, 500, []string{"x-envoy-max-retries", "0"}, 1},
		{"a bad number leaves the route's", &on5xx, 500, []string{"x-envoy-max-retries", "many"}, 2},
		{"conditions add to the route's", &on5xx, 409, []string{"x-envoy-retry-on", "retriable-4xx"}, 2},
		{"status codes", nil, 418, []string{"x-envoy-retry-on", "retriable-status-codes", "x-envoy-retriable-status-codes", "429, 418"}, 2},
		{"gRPC words belong to their own header", nil, 200, []string{"x-envoy-retry-on", "unavailable"}, 1},
		{"gRPC", nil, 200, []string{"x-envoy-retry-grpc-on", "unavailable"}, 2},
	} {
		b := newBed(t, route(func(r *snapshot.Route) { r.Retry = c.policy }))
		b.up.script = always(func(u *fakeUp) {
			u.onEnd = func() { u.respond(c.status, "bad", "grpc-status", "14") }
			u.open()
		})
		b.get("GET /x", c.pairs...)
		b.clock.Advance(time.Minute)
		if len(b.up.all) != c.want {
			t.Errorf("%s: %d attempts, want %d", c.name, len(b.up.all), c.want)
		}
		for i := 0; i < len(c.pairs); i += 2 {
			if v := header(&b.nth(0).head, c.pairs[i]); v != "" {
				t.Errorf("%s: %s: %s goes on to the next hop", c.name, c.pairs[i], v)
			}
		}
		b.settled()
	}
	if on5xx.Retries != 1 || on5xx.On != snapshot.RetryOn5xx {
		t.Error("a request changed the policy of its route")
	}
}

func TestOverride_applicationsOwnTimeouts(t *testing.T) {
	for _, c := range []struct {
		name, header, details string
	}{
		{"timeout", "x-envoy-upstream-rq-timeout-ms", "response_timeout"},
		{"per try", "x-envoy-upstream-rq-per-try-timeout-ms", "upstream_per_try_timeout"},
	} {
		b := newBed(t, route(func(r *snapshot.Route) { r.Timeout = time.Minute }))
		b.up.script = hang
		d := b.get("GET /x", c.header, "20")
		b.clock.Advance(19 * time.Millisecond)
		if d.heads != 0 {
			t.Fatalf("%s: answered early", c.name)
		}
		b.clock.Advance(time.Millisecond)
		d.want(t, 504, "upstream request timeout")
		b.wantRecord("UT", c.details, 1)
		b.settled()
	}
}

// What arrives over the network may not make this proxy work harder: neither at
// a gateway nor in front of the application.
func TestOverride_isNotBelievedFromTheNetwork(t *testing.T) {
	for _, inbound := range []bool{false, true} {
		b := newBed(t, route(func(r *snapshot.Route) { r.Timeout = time.Minute }))
		b.site.Manager.UseRemoteAddress = !inbound
		if inbound {
			b.site.Listener.Direction = snapshot.Inbound
		}
		b.up.script = always(func(u *fakeUp) { u.answer(500, "bad") })
		d := b.get("GET /x", "x-envoy-retry-on", "5xx", "x-envoy-max-retries", "9", "x-envoy-upstream-rq-timeout-ms", "1",
			"x-envoy-upstream-rq-per-try-timeout-ms", "1", "x-envoy-retriable-status-codes", "500", "x-envoy-retry-grpc-on", "internal")
		b.clock.Advance(time.Minute)
		if len(b.up.all) != 1 || d.status() != 500 {
			t.Errorf("inbound %v: %d attempts, status %d", inbound, len(b.up.all), d.status())
		}
		for _, name := range []string{"x-envoy-retry-on", "x-envoy-max-retries", "x-envoy-upstream-rq-timeout-ms", "x-envoy-retriable-status-codes"} {
			if v := header(&b.nth(0).head, name); v != "" {
				t.Errorf("inbound %v: %s: %s passed on", inbound, name, v)
			}
		}
		b.settled()
	}
}

func TestEdge_underscoresDoNotForgeHeaders(t *testing.T) {
	for _, edge := range []bool{true, false} {
		b := newBed(t, route())
		b.site.Manager.UseRemoteAddress = edge
		b.get("GET /x", "x_forwarded_for", "6.6.6.6", "x-forwarded_client_cert", "URI=spiffe://x", "x_real_ip", "6.6.6.6", "user_id", "7")
		for _, name := range []string{"x_forwarded_for", "x-forwarded_client_cert", "x_real_ip"} {
			if v := header(&b.nth(0).head, name); (v == "") != edge {
				t.Errorf("edge %v: %s is %q", edge, name, v)
			}
		}
		if header(&b.nth(0).head, "user_id") != "7" {
			t.Error("an application's own header is gone")
		}
		b.settled()
	}
}
