package stream

import (
	"strings"
	"testing"
	"time"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/record"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// ending is one way in which an exchange ends, with what Envoy 1.40 wrote for
// the same (flags in the order of its table of flags).
type ending struct {
	name           string
	route          func(*snapshot.Route)
	manager        func(*snapshot.HTTPManager)
	script         func(int, *fakeUp)
	act            func(b *bed, d *fakeDown)
	status         int
	flags, details string
	body           string
}

const resetBody = "upstream connect error or disconnect/reset before headers. reset reason: "

func timeout(r *snapshot.Route) { r.Timeout = 300 * time.Millisecond }

func retries(on snapshot.RetryOn, perTry time.Duration) func(*snapshot.Route) {
	return func(r *snapshot.Route) {
		r.Timeout = 2 * time.Second
		r.Retry = &snapshot.RetryPolicy{On: on, Retries: 1, PerTryTimeout: perTry}
	}
}

func gone(code message.ResetCode) func(*bed, *fakeDown) {
	return func(_ *bed, d *fakeDown) { d.in.OnReset(code) }
}

func resets(code message.ResetCode) func(int, *fakeUp) {
	return always(func(u *fakeUp) { u.open().in.OnReset(code) })
}

func endings() []ending {
	five := func(_ int, u *fakeUp) { u.answer(500, "") }
	return []ending{
		{name: "plain", status: 200, flags: "-", details: "via_upstream", body: "ok"},
		{name: "no route", route: func(r *snapshot.Route) { r.Match.Path.Text = "/other" }, status: 404, flags: "NR", details: "route_not_found"},
		{name: "no cluster", route: func(r *snapshot.Route) { r.Clusters[0].Cluster = "nope" }, status: 503, flags: "NC", details: "cluster_not_found"},
		{
			name: "refused", script: always(func(u *fakeUp) { u.refuse(message.ResetConnectFailure, "delayed connect error: Connection refused") }),
			status: 503, flags: "UF", body: resetBody + "remote connection failure",
			details: "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}",
		},
		{
			name: "closed", script: resets(message.ResetTermination), status: 503, flags: "UC",
			details: "upstream_reset_before_response_started{connection_termination}", body: resetBody + "connection termination",
		},
		{
			name: "closed twice", route: retries(snapshot.RetryOn5xx, 0), script: resets(message.ResetTermination), status: 503, flags: "UC,URX",
			details: "upstream_reset_before_response_started{connection_termination}",
			body:    "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: connection termination",
		},
		{
			name: "garbage", script: resets(message.ResetProtocol), status: 502, flags: "UPE",
			details: "upstream_reset_before_response_started{protocol_error}", body: resetBody + "protocol error",
		},
		{
			name: "overflow", script: always(func(u *fakeUp) { u.refuse(message.ResetOverflow, "too many requests") }), status: 503, flags: "UO",
			details: "upstream_reset_before_response_started{overflow}", body: resetBody + "overflow",
		},
		{name: "slow", route: timeout, script: hang, status: 504, flags: "UT", details: "response_timeout", body: "upstream request timeout"},
		{
			name: "slow twice", route: retries(snapshot.RetryOn5xx, 200*time.Millisecond), script: hang, status: 504, flags: "UT,URX",
			details: "upstream_per_try_timeout", body: "upstream request timeout",
		},
		{name: "500", script: five, status: 500, flags: "-", details: "via_upstream"},
		{name: "500 twice", route: retries(snapshot.RetryOn5xx, 0), script: five, status: 500, flags: "URX", details: "via_upstream"},
		{
			name: "fault", route: func(r *snapshot.Route) {
				r.Fault = &snapshot.Fault{AbortStatus: 418, AbortPerMillion: 1e6, AbortGRPCStatus: -1}
			},
			manager: func(m *snapshot.HTTPManager) {
				m.Filters = []snapshot.HTTPFilter{{Fault: &snapshot.Fault{AbortGRPCStatus: -1}}}
			}, status: 418, flags: "FI", details: "fault_filter_abort", body: "fault filter abort",
		},
		{name: "client gone", script: hang, act: gone(message.ResetTermination), flags: "DC", details: "downstream_remote_disconnect"},
		{name: "client's framing", script: hang, act: gone(message.ResetProtocol), flags: "DPE", details: "http1.codec_error"},
		{
			name: "client's HTTP/2 framing", script: hang, flags: "DPE", details: "http2.codec_error",
			act: func(_ *bed, d *fakeDown) { d.conn.Protocol = message.HTTP2; d.in.OnReset(message.ResetProtocol) },
		},
		{
			name: "stream reset by the client", script: hang, flags: "DR", details: "http2.remote_reset",
			act: func(_ *bed, d *fakeDown) { d.conn.Protocol = message.HTTP2; d.in.OnReset(message.ResetRemote) },
		},
		{
			name: "idle", manager: func(m *snapshot.HTTPManager) { m.StreamIdleTimeout = time.Second }, script: hang,
			status: 504, flags: "SI", details: "stream_idle_timeout", body: "stream timeout",
		},
	}
}

// Every response flag and detail that people grep for, in one table. Flags that
// no code can set yet (LH, LR but for lost bodies, RL, UAEX, RLSE, IH, UMSDR, OM,
// DF) belong to features that are not there.
func TestFlags_everyEnding(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range endings() {
		r := route()
		if c.route != nil {
			c.route(r)
		}
		b := newBed(t, r)
		b.up.script = c.script
		if c.manager != nil {
			c.manager(b.site.Manager)
		}
		d := b.get("POST /x")
		if c.act != nil {
			c.act(b, d)
		}
		b.clock.Advance(5 * time.Second)
		got := b.last()
		if got.Flags.String() != c.flags || got.Details != c.details || d.status() != c.status || c.status != 0 && string(d.body) != c.body {
			t.Errorf("%s: %d %s %s %q\nwant %d %s %s %q", c.name, d.status(), got.Flags, got.Details, d.body, c.status, c.flags, c.details, c.body)
		}
		for f := range strings.SplitSeq(c.flags, ",") {
			seen[f] = true
		}
	}
	for _, f := range strings.Fields("NR NC UF UC UPE UO UT URX FI DC DPE DR SI") {
		if !seen[f] || record.ParseFlag(f) == 0 {
			t.Errorf("flag %s has no case", f)
		}
	}
}
