package stream

import (
	"testing"
	"time"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
	"lateen.dev/lateen/internal/proxy/upstream"
)

const grpcCT = "application/grpc"

func TestGRPC_localRepliesAreTrailersOnly(t *testing.T) {
	cases := []struct {
		name    string
		route   func(*snapshot.Route)
		script  func(n int, u *fakeUp)
		then    func(b *bed)
		status  string
		message string
	}{
		{
			name: "no healthy endpoint", status: "14", message: "no healthy upstream",
			script: always(func(u *fakeUp) { u.req.Waiter.OnUnavailable(&upstream.Error{NoHost: true}) }),
		},
		{
			name: "route timeout", status: "14", message: "upstream request timeout",
			route:  func(r *snapshot.Route) { r.Timeout = time.Second },
			script: hang, then: func(b *bed) { b.clock.Advance(2 * time.Second) },
		},
		{
			name: "refused by a limit", status: "14",
			message: "upstream connect error or disconnect/reset before headers. reset reason: overflow",
			script:  always(func(u *fakeUp) { u.refuse(message.ResetOverflow, "too many requests") }),
		},
		{
			name: "method that no route has", status: "12",
			route: func(r *snapshot.Route) { r.Match.Path.Text = "/other" },
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := route()
			if c.route != nil {
				c.route(r)
			}
			b := newBed(t, r)
			b.up.script = c.script
			d := b.get("POST /shop.Cart/Add", "content-type", grpcCT, "te", "trailers")
			if c.then != nil {
				c.then(b)
			}
			if d.status() != 200 || header(&d.resp, "grpc-status") != c.status || header(&d.resp, "grpc-message") != c.message ||
				len(d.body) > 0 || !d.end || d.resp.Has(message.ContentLength) {
				t.Errorf("%d, grpc-status %q, grpc-message %q, body %q, end %v, content-length %q", d.status(),
					header(&d.resp, "grpc-status"), header(&d.resp, "grpc-message"), d.body, d.end, header(&d.resp, "content-length"))
			}
			b.settled()
		})
	}
}

func TestGRPC_messageIsPercentEncoded(t *testing.T) {
	if got := string(appendGRPCMessage(nil, "50 % naïve\n")); got != "50 %25 na%C3%AFve%0A" {
		t.Error(got)
	}
}

func TestGRPC_clientsDeadlineRunsFromTheHeadAndIsCapped(t *testing.T) {
	most := 2 * time.Second
	for _, c := range []struct {
		asks string
		ends time.Duration
	}{{"500m", 500 * time.Millisecond}, {"1H", 2 * time.Second}} {
		b := newBed(t, route(func(r *snapshot.Route) { r.GRPCTimeoutMax = &most }))
		b.up.script = hang
		d := b.start("POST /shop.Cart/Watch", "content-type", grpcCT, "grpc-timeout", c.asks)
		d.in.OnHead(d.head, false) // the request goes on: a stream
		b.clock.Advance(c.ends - time.Millisecond)
		if d.end {
			t.Fatalf("%s: ended early", c.asks)
		}
		b.clock.Advance(2 * time.Millisecond)
		if header(&d.resp, "grpc-status") != "4" {
			t.Errorf("%s: grpc-status %q, want 4", c.asks, header(&d.resp, "grpc-status"))
		}
		b.wantRecord("DT", "max_duration_timeout", 1)
	}
}

func TestGRPC_statusCountsForOutlierDetection(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(u *fakeUp)
		want   int
	}{
		"trailers only": {func(u *fakeUp) { u.respond(200, "", "grpc-status", "14") }, 503},
		"trailers": {func(u *fakeUp) {
			h := &message.Head{}
			h.SetStatus(200)
			u.in.OnHead(h, false)
			trailers := &message.Head{}
			trailers.AddNameString("grpc-status", "2")
			u.in.OnTrailers(trailers)
		}, 500},
		"ok":        {func(u *fakeUp) { u.respond(200, "", "grpc-status", "0") }, 200},
		"not found": {func(u *fakeUp) { u.respond(200, "", "grpc-status", "5") }, 404},
		"no status": {func(u *fakeUp) { u.respond(502, "") }, 502},
	} {
		b := newBed(t, route())
		b.up.script = always(func(u *fakeUp) { u.onEnd = func() { c.answer(u) }; u.open() })
		b.get("POST /shop.Cart/Add", "content-type", grpcCT)
		if len(b.up.finished) != 1 || b.up.finished[0].Status != c.want {
			t.Errorf("%s: %+v, want status %d", name, b.up.finished, c.want)
		}
	}
}

func TestTrunk_resetStreamIsAClosedConnection(t *testing.T) {
	b := newBed(t, route())
	b.up.script = always(func(u *fakeUp) {
		u.conn = message.Conn{Protocol: message.HTTP11, Trunk: true}
		u.onEnd = func() { u.in.OnReset(message.ResetRemote) }
		u.open()
	})
	d := b.get("POST /")
	if d.status() != 503 {
		t.Fatal(d.status())
	}
	b.wantRecord("UC", "upstream_reset_before_response_started{connection_termination}", 1)
}

func TestHTTP2_refusedStreamIsSentAgainOnce(t *testing.T) {
	b := newBed(t, route())
	b.up.script = func(n int, u *fakeUp) {
		u.conn.Protocol = message.HTTP2
		if n == 0 {
			u.onEnd = func() { u.in.OnReset(message.ResetRefused) }
			u.open()
			return
		}
		u.answer(200, "ok")
	}
	b.get("POST /").want(t, 200, "ok")
	if b.wantRecord("", "via_upstream", 2); len(b.up.all) != 2 {
		t.Error(len(b.up.all))
	}
}

func TestHTTP2_clientThatResetsIsToldApartFromOneThatLeaves(t *testing.T) {
	for _, c := range []struct {
		conn           message.Conn
		flags, details string
	}{
		{message.Conn{Protocol: message.HTTP2}, "DR", "http2.remote_reset"},
		{message.Conn{Protocol: message.HTTP11, Trunk: true}, "DC", "downstream_remote_disconnect"},
	} {
		b := newBed(t, route())
		b.up.script = hang
		d := b.start("GET /")
		d.conn.Protocol, d.conn.Trunk = c.conn.Protocol, c.conn.Trunk
		d.in.OnHead(d.head, true)
		d.in.OnReset(message.ResetRemote)
		b.wantRecord(c.flags, c.details, 1)
	}
}

func TestGRPC_serversResetAtTheDeadlineIsTheDeadline(t *testing.T) {
	most := time.Duration(0)
	b := newBed(t, route(func(r *snapshot.Route) { r.GRPCTimeoutMax = &most }))
	b.up.script = hang
	d := b.get("POST /shop.Cart/Add", "content-type", grpcCT, "grpc-timeout", "100m")
	d.x.deadline.Disarm() // late, as timers are
	b.clock.Advance(100 * time.Millisecond)
	b.nth(0).in.OnReset(message.ResetRemote)
	if header(&d.resp, "grpc-status") != "4" {
		t.Errorf("grpc-status %q, want 4", header(&d.resp, "grpc-status"))
	}
	b.wantRecord("DT", "max_duration_timeout", 1)
	b.settled()
}

func TestExports_makeNoSpans(t *testing.T) {
	for cluster, want := range map[string]bool{"v1": false, "v2": true} {
		b := newBed(t, route())
		b.site.Manager.Tracing = &snapshot.Tracing{Cluster: cluster, Random: 100, Client: 100, Overall: 100, ClientSpan: true}
		b.get("POST /opentelemetry.proto.collector.trace.v1.TraceService/Export", "content-type", grpcCT)
		if got := b.last().Trace.Sampled; got != want {
			t.Errorf("provider at %s, call to v1: sampled %v, want %v", cluster, got, want)
		}
	}
}
