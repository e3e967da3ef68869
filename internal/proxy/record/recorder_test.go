package record

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	collogspb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	colmetricspb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// sink is an OTLP receiver made of the generated types.
type sink struct {
	coltracepb.UnimplementedTraceServiceServer
	mu      sync.Mutex
	spans   []*tracepb.Span
	res     []*commonpb.KeyValue
	logs    []*collogspb.ExportLogsServiceRequest
	metrics []*colmetricspb.ExportMetricsServiceRequest
	answer  func(calls int) (*coltracepb.ExportTraceServiceResponse, error)
	calls   int
}

func (s *sink) Export(_ context.Context, r *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if s.answer != nil {
		if resp, err := s.answer(s.calls); resp != nil || err != nil {
			return resp, err
		}
	}
	for _, rs := range r.ResourceSpans {
		s.res = rs.Resource.Attributes
		for _, ss := range rs.ScopeSpans {
			s.spans = append(s.spans, ss.Spans...)
		}
	}
	return &coltracepb.ExportTraceServiceResponse{}, nil
}

type logSink struct {
	collogspb.UnimplementedLogsServiceServer
	s *sink
}

func (l logSink) Export(_ context.Context, r *collogspb.ExportLogsServiceRequest) (*collogspb.ExportLogsServiceResponse, error) {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.s.logs = append(l.s.logs, r)
	return &collogspb.ExportLogsServiceResponse{}, nil
}

type metricSink struct {
	colmetricspb.UnimplementedMetricsServiceServer
	s *sink
}

func (m metricSink) Export(_ context.Context, r *colmetricspb.ExportMetricsServiceRequest) (*colmetricspb.ExportMetricsServiceResponse, error) {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	m.s.metrics = append(m.s.metrics, r)
	return &colmetricspb.ExportMetricsServiceResponse{}, nil
}

// serve starts a sink on loopback and returns its address.
func serve(t *testing.T, s *sink) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	coltracepb.RegisterTraceServiceServer(g, s)
	collogspb.RegisterLogsServiceServer(g, logSink{s: s})
	colmetricspb.RegisterMetricsServiceServer(g, metricSink{s: s})
	go g.Serve(l)
	t.Cleanup(g.Stop)
	return l.Addr().String()
}

func inline(f func()) { f() }

func identity() Identity {
	id := Identity{NodeID: "sidecar~10.0.0.1~frontend-1.default~default.svc.cluster.local", Pod: "frontend-1", MeshID: "cluster.local", Version: "test"}
	id.Workload = snapshot.Workload{Name: "frontend", Namespace: "default", CanonicalService: "frontend", CanonicalRevision: "v1", Cluster: "Kubernetes", App: "frontend", Version: "v1"}
	return id
}

func setup(t *testing.T, o ExporterOptions) (*Set, *Recorder, *Exporter) {
	t.Helper()
	e := NewExporter(o)
	t.Cleanup(e.Close)
	s := NewSet(Options{
		Identity: identity(), Exporter: e, HubLogs: true, Mode: ModeBoth,
		Origins: func(o snapshot.Origin) string {
			if strings.HasPrefix(string(o), "VirtualService/") {
				return "vs.yaml:12"
			}
			return ""
		},
		Getenv: func(k string) string { return map[string]string{"POD_NAME": "frontend-1"}[k] },
	})
	return s, s.Recorder(inline), e
}

var start = time.Date(2026, 11, 23, 10, 20, 30, 456_000_000, time.UTC)

// exchange is an outbound request with one retried attempt.
func exchange(t *snapshot.Tracing) *Record {
	req := head("user-agent", "curl/8", "x-request-id", "0000270f-0000-4000-8000-000000000000", "x-tenant", "blue", "traceparent", "00-"+traceA+"-"+spanA+"-01")
	resp := &message.Head{}
	resp.SetStatus(200)
	resp.AddNameString("x-envoy-upstream-service-time", "4")
	rnd := testRand()
	tr := Begin(req, Input{Tracing: t, Direction: snapshot.Outbound, Rand: rnd})
	ep := &snapshot.Endpoint{Addr: netip.MustParseAddrPort("10.0.0.9:8080"), Workload: snapshot.Workload{Name: "user-service", Namespace: "default", CanonicalService: "user-service", CanonicalRevision: "v2", Cluster: "Kubernetes"}}
	tls := &message.TLSInfo{Mutual: true, PeerURISANs: []string{"spiffe://cluster.local/ns/default/sa/user"}, LocalURISAN: "spiffe://cluster.local/ns/default/sa/frontend"}
	return &Record{
		Start: start, Total: 12 * time.Millisecond, RequestRead: time.Millisecond, FirstUpstreamByte: 10 * time.Millisecond,
		Conn:      &message.Conn{ID: 7, Local: netip.MustParseAddrPort("10.0.0.1:15001"), Remote: netip.MustParseAddrPort("10.0.0.1:4000"), OriginalDst: netip.MustParseAddrPort("10.96.0.3:8080"), Protocol: message.HTTP11},
		Direction: snapshot.Outbound,
		Manager:   &snapshot.HTTPManager{Stats: &snapshot.StatsConfig{}, Tracing: t, AccessLogs: []*snapshot.AccessLog{{Path: "/dev/stdout"}}},
		Request:   req, Response: resp, Status: 200, Details: "via_upstream", BytesReceived: 3, BytesSent: 40,
		Route:       &snapshot.Route{Name: "canary", Match: snapshot.RouteMatch{Path: snapshot.PathMatch{Kind: snapshot.PathPrefix, Text: "/users/"}}},
		Cluster:     &snapshot.Cluster{Name: "outbound|8080||user-service.default.svc.cluster.local", Service: "user-service.default.svc.cluster.local", ServiceName: "user-service", Namespace: "default"},
		ClusterName: "outbound|8080||user-service.default.svc.cluster.local",
		Attempts: []Attempt{
			{Start: start, Duration: 2 * time.Millisecond, Endpoint: ep, Reset: message.ResetConnectFailure, Flags: FlagUF, Details: "upstream_reset_before_response_started{connection_failure}", SpanID: tr.AttemptID(rnd)},
			{Start: start.Add(3 * time.Millisecond), Duration: 8 * time.Millisecond, Endpoint: ep, Local: netip.MustParseAddrPort("10.0.0.1:5000"), Remote: ep.Addr, Status: 200, SpanID: tr.AttemptID(rnd), TLS: tls},
		},
		Decider: "VirtualService/users.default#spec.http[0]",
		Trace:   tr,
	}
}

func attrs(kvs []*commonpb.KeyValue) map[string]string {
	m := map[string]string{}
	for _, kv := range kvs {
		switch v := kv.Value.Value.(type) {
		case *commonpb.AnyValue_StringValue:
			m[kv.Key] = v.StringValue
		case *commonpb.AnyValue_IntValue:
			m[kv.Key] = "int:" + time.Duration(v.IntValue).String()
		}
	}
	return m
}

func TestSpans_reachAReceiver(t *testing.T) {
	var s sink
	set, r, e := setup(t, ExporterOptions{Hub: serve(t, &s)})
	set.files.open = func(string) (io.Writer, error) { return io.Discard, nil }
	tr := tracing(100)
	tr.Tags = []snapshot.CustomTag{
		{Tag: "environment", Literal: "production"},
		{Tag: "tenant", Header: "X-Tenant", HeaderDefault: "none"},
		{Tag: "absent", Header: "x-absent", HeaderDefault: "none"},
		{Tag: "pod", Environment: "POD_NAME"},
		{Tag: "authority", Format: "%REQ(:AUTHORITY)%"},
	}
	rec := exchange(tr)
	r.Done(rec)
	set.Flush(t.Context())
	e.Drain(t.Context())

	if len(s.spans) != 3 {
		t.Fatalf("%d spans, want the exchange and two attempts", len(s.spans))
	}
	whole, first, second := s.spans[0], s.spans[1], s.spans[2]
	if hex.EncodeToString(whole.TraceId) != traceA || hex.EncodeToString(whole.ParentSpanId) != spanA || whole.Kind != tracepb.Span_SPAN_KIND_INTERNAL {
		t.Errorf("exchange span %v", whole)
	}
	for i, sp := range []*tracepb.Span{first, second} {
		if !bytes.Equal(sp.ParentSpanId, whole.SpanId) || sp.Kind != tracepb.Span_SPAN_KIND_CLIENT || !bytes.Equal(sp.SpanId, rec.Attempts[i].SpanID[:]) {
			t.Errorf("attempt %d: %v", i, sp)
		}
	}
	if first.Status.GetCode() != tracepb.Status_STATUS_CODE_ERROR || second.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR || whole.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR {
		t.Errorf("status %v %v %v", whole.Status, first.Status, second.Status)
	}
	if whole.Name != "GET /users/*" || whole.StartTimeUnixNano != uint64(start.UnixNano()) || whole.EndTimeUnixNano-whole.StartTimeUnixNano != uint64(12*time.Millisecond) {
		t.Errorf("name %q start %d", whole.Name, whole.StartTimeUnixNano)
	}
	for k, want := range map[string]string{
		"http.request.method": "GET", "url.full": "http://user-service:8080/users/7?full=1", "server.address": "user-service", "server.port": "int:8.08µs",
		"http.response.status_code": "int:200ns", "http.route": "/users/*", "response_flags": "-", "guid:x-request-id": "0000270f-0000-4000-8000-000000000000",
		"lateen.origin": "VirtualService/users.default#spec.http[0]", "lateen.origin.source": "vs.yaml:12", "environment": "production", "tenant": "blue", "absent": "none",
		"pod": "frontend-1", "authority": "user-service:8080", "istio.destination_workload": "user-service", "destination.principal": "spiffe://cluster.local/ns/default/sa/user",
		"http.status_code": "200", "component": "proxy", "istio.canonical_service": "frontend", "upstream_cluster": "outbound|8080||user-service.default.svc.cluster.local",
	} {
		if got := attrs(whole.Attributes)[k]; got != want {
			t.Errorf("%s = %q, want %q", k, got, want)
		}
	}
	if a := attrs(first.Attributes); a["error.type"] != "UF" || a["response_flags"] != "UF" || a["http.request.resend_count"] != "" {
		t.Errorf("first attempt %v", a)
	}
	if a := attrs(second.Attributes); a["http.request.resend_count"] != "int:1ns" || a["upstream_address"] != "10.0.0.9:8080" {
		t.Errorf("second attempt %v", a)
	}
	if a := attrs(s.res); a["service.name"] != "frontend.default" || a["k8s.pod.name"] != "frontend-1" {
		t.Errorf("resource %v", a)
	}
	if c := e.Counts(Traces); c.Made != 3 || c.Sent != 3 || c.Queued != 0 {
		t.Errorf("counts %+v", c)
	}
	checkLogAndMetrics(t, &s)
}

func checkLogAndMetrics(t *testing.T, s *sink) {
	t.Helper()
	if len(s.logs) != 1 {
		t.Fatalf("%d log requests", len(s.logs))
	}
	l := s.logs[0].ResourceLogs[0].ScopeLogs[0].LogRecords[0]
	if hex.EncodeToString(l.TraceId) != traceA || len(l.SpanId) != 8 || l.SeverityText != "INFO" || !strings.HasPrefix(l.Body.GetStringValue(), "[2026-11-23T10:20:30.456Z] \"GET /users/7?full=1 HTTP/1.1\" 200 - via_upstream") {
		t.Errorf("log record %v", l)
	}
	names := map[string]bool{}
	for _, m := range s.metrics {
		for _, x := range m.ResourceMetrics[0].ScopeMetrics[0].Metrics {
			names[x.Name] = true
			if x.Name == "istio_requests_total" {
				p := x.GetSum().DataPoints[0]
				if a := attrs(p.Attributes); p.GetAsInt() != 1 || a["destination_workload"] != "user-service" || a["response_code"] != "200" || !x.GetSum().IsMonotonic || x.GetSum().AggregationTemporality != 2 {
					t.Errorf("requests %v", x)
				}
			}
			if x.Name == "istio_request_duration_milliseconds" {
				p := x.GetHistogram().DataPoints[0]
				if p.Count != 1 || *p.Sum != 12 || len(p.ExplicitBounds) != len(Bounds) || p.BucketCounts[4] != 1 || x.Unit != "ms" {
					t.Errorf("duration %v", p)
				}
			}
		}
	}
	if !names["istio_requests_total"] || !names["istio_response_bytes"] {
		t.Errorf("metrics %v", names)
	}
}

func TestSpans_inboundAndGateway(t *testing.T) {
	var s sink
	set, r, e := setup(t, ExporterOptions{Hub: serve(t, &s)})
	in := exchange(tracing(100))
	in.Manager.AccessLogs = nil
	in.Direction, in.Attempts = snapshot.Inbound, in.Attempts[1:]
	r.Done(in)
	gw := exchange(tracing(100))
	gw.Manager.AccessLogs = nil
	gw.Gateway, gw.Attempts = true, gw.Attempts[1:]
	r.Done(gw)
	denied := exchange(tracing(100))
	denied.Manager.AccessLogs = nil
	denied.Direction, denied.Attempts, denied.Status = snapshot.Inbound, nil, 403
	denied.Policy, denied.Details = "ns[default]-policy[p]-rule[0]", "rbac_access_denied_matched_policy[ns[default]-policy[p]-rule[0]]"
	r.Done(denied)
	set.Flush(t.Context())
	e.Drain(t.Context())
	var kinds []string
	for _, sp := range s.spans {
		kinds = append(kinds, sp.Kind.String())
	}
	want := "[SPAN_KIND_SERVER SPAN_KIND_SERVER SPAN_KIND_CLIENT SPAN_KIND_SERVER]"
	if got := "[" + strings.Join(kinds, " ") + "]"; got != want {
		t.Fatalf("kinds %s, want %s", got, want)
	}
	if !bytes.Equal(s.spans[2].ParentSpanId, s.spans[1].SpanId) || hex.EncodeToString(s.spans[1].ParentSpanId) != spanA {
		t.Error("the gateway's client span must be the child of its server span")
	}
	if a := attrs(s.spans[3].Attributes); a["lateen.policy"] == "" || a["response_code_details"] == "" || a["http.response.status_code"] != "int:403ns" {
		t.Errorf("denial %v", a)
	}
}

func TestExporter_accountsUnderFailure(t *testing.T) {
	s := sink{answer: func(n int) (*coltracepb.ExportTraceServiceResponse, error) {
		switch n {
		case 1, 2:
			return nil, status.Error(codes.Unavailable, "not now")
		case 3:
			return &coltracepb.ExportTraceServiceResponse{PartialSuccess: &coltracepb.ExportTracePartialSuccess{RejectedSpans: 2, ErrorMessage: "no"}}, nil
		case 4:
			return nil, status.Error(codes.InvalidArgument, "never")
		}
		return nil, nil
	}}
	set, r, e := setup(t, ExporterOptions{Hub: serve(t, &s), Backoff: time.Millisecond, QueueBytes: 40 << 10})
	done := func() {
		rec := exchange(tracing(100))
		rec.Manager = &snapshot.HTTPManager{}
		r.Done(rec)
	}
	done()
	set.Flush(t.Context())
	e.Drain(t.Context())
	if c := e.Counts(Traces); c.Sent != 1 || c.Dropped[DropRejected] != 2 {
		t.Errorf("after partial success: %+v", c)
	}
	done()
	set.Flush(t.Context())
	e.Drain(t.Context())
	if c := e.Counts(Traces); c.Dropped[DropRejected] != 5 {
		t.Errorf("after refusal: %+v", c)
	}
	for range 200 {
		done()
	}
	set.Flush(t.Context())
	e.Drain(t.Context())
	e.Close()
	done()
	set.Flush(t.Context())
	c := e.Counts(Traces)
	var dropped uint64
	for _, n := range c.Dropped {
		dropped += n
	}
	if c.Made != 3*203 || c.Made != c.Sent+dropped+c.Queued || c.Queued != 0 || c.Dropped[DropShutdown] != 3 || c.Dropped[DropQueueFull] == 0 {
		t.Errorf("made = sent + dropped + queued does not hold: %+v", c)
	}
}

func TestExporter_keepsItsConnection(t *testing.T) {
	var s sink
	addr := serve(t, &s)
	var dials, resolves int // used by the sender's goroutine, read after Close
	set, r, e := setup(t, ExporterOptions{
		Resolve: func(string) (Target, error) { resolves++; return Target{Address: addr}, nil },
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			dials++
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
	})
	tr := tracing(100)
	tr.Cluster = "outbound|4317||otel.observability.svc.cluster.local"
	for range 3 {
		rec := exchange(tr)
		rec.Manager = &snapshot.HTTPManager{}
		r.Done(rec)
		set.Flush(t.Context())
		e.Drain(t.Context())
	}
	e.Close()
	if dials != 1 || resolves != 1 || len(s.spans) != 9 {
		t.Errorf("%d dials and %d look-ups for 3 requests, %d spans", dials, resolves, len(s.spans))
	}
}

func TestExporter_unreachableExpires(t *testing.T) {
	set, r, e := setup(t, ExporterOptions{Hub: "127.0.0.1:1", Backoff: time.Millisecond, MaxElapsed: 20 * time.Millisecond, Timeout: 100 * time.Millisecond})
	rec := exchange(tracing(100))
	rec.Manager = &snapshot.HTTPManager{}
	r.Done(rec)
	set.Flush(t.Context())
	e.Drain(t.Context())
	if c := e.Counts(Traces); c.Dropped[DropExpired] != 3 || c.Queued != 0 {
		t.Errorf("%+v", c)
	}
}

// blockedWriter never returns until released, like a pipe nobody reads.
type blockedWriter struct{ release chan struct{} }

func (b blockedWriter) Write(p []byte) (int, error) { <-b.release; return len(p), nil }

func TestFiles_slowWriterDropsAndCounts(t *testing.T) {
	f := newFiles(slog.New(slog.DiscardHandler))
	w := blockedWriter{make(chan struct{})}
	f.open = func(string) (io.Writer, error) { return w, nil }
	line := bytes.Repeat([]byte("x"), 1<<20)
	for range 10 {
		f.write("p", line, 1)
	}
	close(w.release)
	f.sync(t.Context())
	if lines, dropped := f.totals(); lines+dropped != 10 || dropped == 0 || lines == 0 {
		t.Errorf("%d written, %d dropped", lines, dropped)
	}
}

func TestAccessLog_formats(t *testing.T) {
	var out bytes.Buffer
	set, r, _ := setup(t, ExporterOptions{})
	set.files.open = func(string) (io.Writer, error) { return &out, nil }
	rec := exchange(nil)
	rec.Manager.AccessLogs = []*snapshot.AccessLog{
		{Path: "f"},
		{Path: "f", JSON: map[string]string{"code": "%RESPONSE_CODE%", "flags": "%RESPONSE_FLAGS%", "missing": "%REQ(x-none)%", "mix": "%PROTOCOL% %RESPONSE_CODE%", "ua": "%REQ(USER-AGENT)%"}},
		{Path: "f", Format: "%LATEEN_ORIGIN% %TRACE_ID% %REQ(USER-AGENT):4% %START_TIME(%Y/%m/%d %H:%M:%S.%3f)% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %UPSTREAM_REQUEST_ATTEMPT_COUNT% %METADATA(CLUSTER:istio:config)% 100%%"},
		{Path: "f", OnlyFlags: []string{"NR"}, Format: "never"},
	}
	r.Done(rec)
	rec.Request.SetPath([]byte("/a\n[forged]"))
	rec.Manager.AccessLogs = []*snapshot.AccessLog{{Path: "f", Format: "%REQ(:PATH)%\n"}}
	r.Done(rec)
	set.Flush(t.Context())
	want := `[2026-11-23T10:20:30.456Z] "GET /users/7?full=1 HTTP/1.1" 200 - via_upstream - "-" 3 40 12 4 "-" "curl/8" "0000270f-0000-4000-8000-000000000000" "user-service:8080" "10.0.0.9:8080" outbound|8080||user-service.default.svc.cluster.local 10.0.0.1:5000 10.96.0.3:8080 10.0.0.1:4000 - canary "VirtualService/users.default#spec.http[0] (vs.yaml:12)"
{"code":200,"flags":null,"missing":null,"mix":"HTTP/1.1 200","ua":"curl/8"}
VirtualService/users.default#spec.http[0] (vs.yaml:12) 4bf92f3577b34da6a3ce929d0e0e4736 curl 2026/11/23 10:20:30.456 10.0.0.1 2 - 100%
/a [forged]
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	if err := CheckAccessLog(&snapshot.AccessLog{Path: "f", Format: "%NO_SUCH_THING%"}); err == nil || !strings.Contains(err.Error(), "NO_SUCH_THING") {
		t.Errorf("unknown operator: %v", err)
	}
}

func TestAccessLog_defaultJSONIsValid(t *testing.T) {
	l, err := compileLogger(&snapshot.AccessLog{Path: "f", JSON: DefaultJSON()})
	if err != nil {
		t.Fatal(err)
	}
	rec := exchange(nil)
	rec.Request.SetName("user-agent", "quo\"te\x01\xff\\")
	var m map[string]any
	if err := json.Unmarshal(l.appendJSON(nil, rec, &Env{Origins: func(snapshot.Origin) string { return "" }}), &m); err != nil {
		t.Fatal(err)
	}
	if len(m) != 24 || m["user_agent"] != "quo\"te\x01\uFFFD\\" || m["duration"] != float64(12) {
		t.Errorf("%v", m)
	}
}

func TestPrometheus_text(t *testing.T) {
	set := NewSet(Options{Identity: identity()})
	a, b := set.Recorder(inline), set.Recorder(inline)
	a.Done(exchange(nil))
	b.Done(exchange(nil))
	in := exchange(nil)
	in.Direction = snapshot.Inbound
	in.Conn.TLS = in.Attempts[1].TLS
	a.Done(in)
	conn := &ConnRecord{Start: start, Conn: in.Conn, Direction: snapshot.Outbound, Cluster: &snapshot.Cluster{Name: "PassthroughCluster"}, Received: 5, Sent: 6}
	a.ConnOpened(conn)
	a.ConnProgress(conn)
	conn.Sent = 10
	a.ConnDone(conn)
	var out bytes.Buffer
	if err := set.WritePrometheus(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`istio_requests_total{reporter="source",source_workload="frontend",source_workload_namespace="default",source_principal="spiffe://cluster.local/ns/default/sa/frontend",source_app="frontend",source_version="v1",source_canonical_service="frontend",source_canonical_revision="v1",source_cluster="Kubernetes",destination_workload="user-service",destination_workload_namespace="default",destination_principal="spiffe://cluster.local/ns/default/sa/user",destination_app="user-service",destination_version="v2",destination_canonical_service="user-service",destination_canonical_revision="v2",destination_cluster="Kubernetes",destination_service="user-service.default.svc.cluster.local",destination_service_name="user-service",destination_service_namespace="default",request_protocol="http",response_code="200",grpc_response_status="",response_flags="-",connection_security_policy="unknown"} 2`,
		`istio_request_duration_milliseconds_bucket{reporter="destination"`, `connection_security_policy="mutual_tls",le="25"} 1`,
		`istio_tcp_sent_bytes_total{reporter="source"`, `destination_service_name="PassthroughCluster"`, `response_flags="-",connection_security_policy="unknown"} 10`,
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("missing %s in\n%s", want, out.String())
		}
	}
}

func TestPrometheus_messagesOfGRPCAlone(t *testing.T) {
	set := NewSet(Options{Identity: identity()})
	r := set.Recorder(inline)
	r.Done(exchange(nil))
	rec := exchange(nil)
	rec.Request.SetString(message.ContentType, "application/grpc")
	rec.Response.SetString(message.GRPCStatus, "0")
	rec.RequestMessages, rec.ResponseMessages = 2, 3
	r.Done(rec)
	var out bytes.Buffer
	if err := set.WritePrometheus(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"istio_request_messages_total{": "} 2", "istio_response_messages_total{": "} 3"} {
		var got []string
		for line := range strings.Lines(out.String()) {
			if strings.HasPrefix(line, name) {
				got = append(got, strings.TrimSpace(line))
			}
		}
		if len(got) != 1 || !strings.HasSuffix(got[0], want) || !strings.Contains(got[0], `request_protocol="grpc"`) {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestDone_unsampledDoesNotAllocate(t *testing.T) {
	set := NewSet(Options{Identity: identity()})
	set.files.open = func(string) (io.Writer, error) { return io.Discard, nil }
	r := set.Recorder(inline)
	rec := exchange(tracing(100))
	rec.Trace.Sampled = false
	run := func() { r.Done(rec) }
	for range 200 {
		run()
	}
	if n := testing.AllocsPerRun(100, run); n != 0 {
		t.Errorf("%v allocations with an access log and metrics", n)
	}
}

func TestRun_flushesByItself(t *testing.T) {
	var s sink
	e := NewExporter(ExporterOptions{Hub: serve(t, &s)})
	defer e.Close()
	set := NewSet(Options{Identity: identity(), Exporter: e, FlushInterval: time.Millisecond, MetricsInterval: time.Hour})
	posts, stopped := make(chan func(), 16), make(chan struct{})
	r := set.Recorder(func(f func()) { posts <- f })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { set.Run(ctx); close(stopped) }()
	posts <- func() {
		rec := exchange(tracing(100))
		rec.Manager = &snapshot.HTTPManager{}
		r.Done(rec)
	}
	for { // the loop
		select {
		case f := <-posts:
			f()
		case <-stopped:
			if c := e.Counts(Traces); c.Made != 3 {
				t.Errorf("%+v", c)
			}
			return
		case <-time.After(time.Millisecond):
			if e.Counts(Traces).Sent == 3 {
				cancel()
			}
		}
	}
}

func FuzzSpanEncoding(f *testing.F) {
	f.Add("/a?b", "host:80", "curl", "via_upstream", "tag", 200)
	f.Add("/\xff", "[::1]:x", "\x00", "a b", "", 0)
	f.Fuzz(func(t *testing.T, path, authority, agent, details, tag string, code int) {
		set := NewSet(Options{Identity: identity(), Exporter: NewExporter(ExporterOptions{}), Mode: ModeBoth})
		r := set.Recorder(inline)
		tr := tracing(100)
		tr.Tags = []snapshot.CustomTag{{Tag: "t", Header: "x-t"}, {Tag: "f", Format: "%REQ(x-t):9%"}}
		rec := exchange(tr)
		rec.Request.SetPath([]byte(path))
		rec.Request.SetAuthority([]byte(authority))
		rec.Request.SetName("user-agent", agent)
		rec.Request.SetName("x-t", tag)
		rec.Request.SetName("tracestate", tag)
		rec.Details, rec.Status = details, code
		rec.Manager.AccessLogs = []*snapshot.AccessLog{{Cluster: "c", JSON: DefaultJSON()}}
		r.Done(rec)
		for k, s := range r.streams {
			body := assemble([]chunk{{signal: k.signal, prefix: s.prefix, data: s.data, count: s.count}})
			var m proto.Message = &coltracepb.ExportTraceServiceRequest{}
			if k.signal == Logs {
				m = &collogspb.ExportLogsServiceRequest{}
			}
			if err := proto.Unmarshal(body, m); err != nil {
				t.Fatalf("%s: %v", k.signal, err)
			}
			if x, ok := m.(*coltracepb.ExportTraceServiceRequest); ok && len(x.ResourceSpans[0].ScopeSpans[0].Spans) != s.count {
				t.Fatalf("%d spans, want %d", len(x.ResourceSpans[0].ScopeSpans[0].Spans), s.count)
			}
		}
	})
}

func FuzzParseFormat(f *testing.F) {
	f.Add(DefaultFormat)
	f.Add("%LATEEN_ORIGIN%%LATEEN_ORIGIN_SOURCE%%ENVIRONMENT(X)%%HOSTNAME%")
	f.Add("%START_TIME(%Y%f%3f%E3S)%%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)%%REQ(a?b):3%%%")
	env := &Env{Getenv: func(string) string { return "" }, Origins: func(snapshot.Origin) string { return "" }}
	rec := exchange(nil)
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := ParseFormat(s); err == nil {
			p.Append(nil, rec, env)
			p.Append(nil, &Record{}, env)
			p.Append(nil, rec, &Env{})
			p.Append(nil, rec, nil)
		}
	})
}

func BenchmarkSpan(b *testing.B) {
	set := NewSet(Options{Identity: identity(), Exporter: NewExporter(ExporterOptions{})})
	r := set.Recorder(inline)
	rec := exchange(tracing(100))
	rec.Attempts, rec.Manager = rec.Attempts[1:], &snapshot.HTTPManager{Stats: &snapshot.StatsConfig{}}
	b.ReportAllocs()
	for b.Loop() {
		r.Done(rec)
	}
}
