package stream

import (
	"strings"
	"testing"
	"time"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

func withRetry(p snapshot.RetryPolicy) *snapshot.Route {
	return route(func(r *snapshot.Route) { r.Retry = &p })
}

// thenOK fails as told the first n times.
func thenOK(n int, fail func(u *fakeUp)) func(int, *fakeUp) {
	return func(i int, u *fakeUp) {
		if i < n {
			fail(u)
			return
		}
		u.answer(200, "ok")
	}
}

func refused(u *fakeUp) { u.refuse(message.ResetConnectFailure, "") }

func TestRetry_onConnectFailureWithBackoffAndAttemptCount(t *testing.T) {
	b := newBed(t, withRetry(snapshot.RetryPolicy{On: snapshot.RetryOnConnectFailure, Retries: 2, PreviousHosts: true}))
	b.up.script = thenOK(2, refused)
	d := b.get("POST /x")
	if len(b.up.all) != 1 {
		t.Fatal("retried without back-off")
	}
	b.clock.Advance(25 * time.Millisecond) // the first back-off is below 25 ms
	if len(b.up.all) != 2 {
		t.Fatalf("%d attempts after 25 ms", len(b.up.all))
	}
	b.clock.Advance(75 * time.Millisecond) // the second below 75 ms
	d.want(t, 200, "ok")
	if got := header(&b.nth(2).head, "x-envoy-attempt-count"); got != "3" {
		t.Errorf("attempt count %q", got)
	}
	b.wantRecord("", "via_upstream", 3)
	b.settled()
}

func TestRetry_limitReachedSaysSo(t *testing.T) {
	b := newBed(t, withRetry(snapshot.RetryPolicy{On: snapshot.RetryOnConnectFailure, Retries: 1}))
	b.up.script = always(refused)
	d := b.get("GET /x")
	b.clock.Advance(time.Second)
	d.want(t, 503, "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: remote connection failure")
	b.wantRecord("UF,URX", "upstream_reset_before_response_started{remote_connection_failure}", 2)
	b.settled()
}

func TestRetry_clusterLimit(t *testing.T) {
	b := newBed(t, withRetry(snapshot.RetryPolicy{On: snapshot.RetryOnConnectFailure, Retries: 5}))
	b.up.script, b.up.retries = always(refused), 0
	d := b.get("GET /x")
	b.clock.Advance(time.Second)
	if d.status() != 503 || len(b.up.all) != 1 {
		t.Fatalf("%d after %d attempts", d.status(), len(b.up.all))
	}
	r := b.last()
	if got := r.Flags.String(); got != "UF,UO" {
		t.Errorf("flags %q", got)
	}
	b.settled()
}

func TestRetry_byStatus(t *testing.T) {
	for _, c := range []struct {
		name   string
		policy snapshot.RetryPolicy
		status int
		pairs  []string
		want   int // attempts
	}{
		{"5xx", snapshot.RetryPolicy{On: snapshot.RetryOn5xx}, 500, nil, 2},
		{"5xx leaves 404 alone", snapshot.RetryPolicy{On: snapshot.RetryOn5xx}, 404, nil, 1},
		{"gateway-error", snapshot.RetryPolicy{On: snapshot.RetryOnGatewayError}, 503, nil, 2},
		{"gateway-error leaves 500 alone", snapshot.RetryPolicy{On: snapshot.RetryOnGatewayError}, 500, nil, 1},
		{"codes", snapshot.RetryPolicy{On: snapshot.RetryOnRetriableStatusCodes, StatusCodes: []int{429}}, 429, nil, 2},
		{"codes without keyword", snapshot.RetryPolicy{On: snapshot.RetryOn5xx, StatusCodes: []int{429}}, 429, nil, 1},
		{"retriable-4xx", snapshot.RetryPolicy{On: snapshot.RetryOnRetriable4xx}, 409, nil, 2},
		{"Istio's default leaves 503 alone", snapshot.RetryPolicy{On: snapshot.RetryOnConnectFailure | snapshot.RetryOnRefusedStream | snapshot.RetryOnGRPCUnavailable}, 503, nil, 1},
		{"grpc unavailable", snapshot.RetryPolicy{On: snapshot.RetryOnGRPCUnavailable}, 200, []string{"grpc-status", "14"}, 2},
	} {
		c.policy.Retries = 1
		b := newBed(t, withRetry(c.policy))
		b.up.script = thenOK(1, func(u *fakeUp) {
			u.onEnd = func() { u.respond(c.status, "bad", c.pairs...) }
			u.open()
		})
		d := b.get("GET /x")
		b.clock.Advance(time.Second)
		if len(b.up.all) != c.want {
			t.Errorf("%s: %d attempts, want %d", c.name, len(b.up.all), c.want)
		}
		if c.want == 2 {
			d.want(t, 200, "ok")
		}
		b.settled()
	}
}

func TestRetry_replaysTheBodyWithinTheBudget(t *testing.T) {
	for _, c := range []struct {
		body    int
		retried bool
	}{{1000, true}, {2000, false}} {
		b := newBed(t, withRetry(snapshot.RetryPolicy{On: snapshot.RetryOnReset, Retries: 2}))
		b.env.ReplayBytes = 1500
		b.up.script = func(i int, u *fakeUp) {
			if i == 0 {
				u.onEnd = func() { u.in.OnReset(message.ResetTermination) }
				u.open()
				return
			}
			u.answer(200, "ok")
		}
		body := strings.Repeat("x", c.body)
		d := b.start("POST /x")
		d.in.OnHead(d.head, false)
		d.in.OnData([]byte(body[:500]), false)
		d.in.OnData([]byte(body[500:]), true)
		b.clock.Advance(time.Second)
		if !c.retried {
			if d.status() != 503 || len(b.up.all) != 1 {
				t.Errorf("a body of %d bytes was sent %d times", c.body, len(b.up.all))
			}
			continue
		}
		d.want(t, 200, "ok")
		if string(b.nth(1).body) != body {
			t.Errorf("the replay carries %d bytes, want %d", len(b.nth(1).body), c.body)
		}
		b.settled()
	}
}

func TestRetry_stalePooledConnection(t *testing.T) {
	for _, c := range []struct {
		method   string
		fresh    bool
		code     message.ResetCode
		attempts int
	}{
		{"GET", false, message.ResetTermination, 2},
		{"POST", false, message.ResetTermination, 1}, // the server may have seen it
		{"POST", false, message.ResetRefused, 2},     // the server promises it did not
		{"GET", true, message.ResetTermination, 1},
	} {
		b := newBed(t, route())
		b.up.script = func(i int, u *fakeUp) {
			if i == 0 {
				u.fresh = c.fresh
				u.open().in.OnReset(c.code)
				return
			}
			u.answer(200, "ok")
		}
		d := b.get(c.method + " /x")
		if len(b.up.all) != c.attempts {
			t.Errorf("%+v: %d attempts", c, len(b.up.all))
		}
		if c.attempts == 2 {
			d.want(t, 200, "ok")
		}
		b.settled()
	}
}

func TestRetry_perTryTimeout(t *testing.T) {
	b := newBed(t, route(func(r *snapshot.Route) {
		r.Timeout = 10 * time.Second
		r.Retry = &snapshot.RetryPolicy{On: snapshot.RetryOn5xx, Retries: 1, PerTryTimeout: time.Second, PreviousHosts: true}
	}))
	b.up.script = hang
	d := b.get("GET /x")
	b.clock.Advance(time.Second + 25*time.Millisecond)
	if len(b.up.all) != 2 || b.nth(0).reset != message.ResetCancel {
		t.Fatalf("%d attempts, first reset %v", len(b.up.all), b.nth(0).reset)
	}
	if tried := b.nth(1).tried; len(tried) != 1 || tried[0] != b.nth(0).req.Address && tried[0].Port() != 8080 {
		t.Errorf("the retry does not avoid the first endpoint: %v", tried)
	}
	b.clock.Advance(2 * time.Second)
	d.want(t, 504, "upstream request timeout")
	b.wantRecord("UT,URX", "upstream_per_try_timeout", 2)
	b.settled()
}

func TestRetry_globalTimeoutDuringBackoff(t *testing.T) {
	b := newBed(t, route(func(r *snapshot.Route) {
		r.Timeout = time.Millisecond
		r.Retry = &snapshot.RetryPolicy{On: snapshot.RetryOnConnectFailure, Retries: 9, BaseInterval: time.Hour, MaxInterval: time.Hour}
	}))
	b.up.script = always(refused)
	d := b.get("GET /x")
	b.clock.Advance(time.Millisecond)
	d.want(t, 504, "upstream request timeout")
	b.clock.Advance(2 * time.Hour)
	if len(b.up.all) != 1 {
		t.Fatal("a finished exchange went on trying")
	}
	b.wantRecord("UT", "response_timeout", 1)
	b.settled()
}

func TestRetry_replacedResponseIsDrainedOrDropped(t *testing.T) {
	b := newBed(t, withRetry(snapshot.RetryPolicy{On: snapshot.RetryOn5xx, Retries: 1}))
	b.up.script = func(i int, u *fakeUp) {
		if i == 0 {
			u.open()
			return
		}
		u.answer(200, "ok")
	}
	d := b.get("GET /x")
	h := &message.Head{}
	h.SetStatus(503)
	u := b.nth(0)
	u.in.OnHead(h, false)
	b.clock.Advance(30 * time.Millisecond)
	d.want(t, 200, "ok")
	u.in.OnData(make([]byte, 1000), false)
	if u.reset != message.ResetNone {
		t.Fatal("a short body costs the connection")
	}
	u.in.OnData(make([]byte, discardBytes), false)
	if u.reset != message.ResetCancel || !u.finished {
		t.Fatal("an endless body is read for ever")
	}
	b.settled()
}
