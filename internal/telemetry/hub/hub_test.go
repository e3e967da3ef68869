package hub

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/plog/plogotlp"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/pdata/ptrace/ptraceotlp"
	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"lateen.dev/lateen/internal/telemetry/store"
)

// syncBuffer is a log sink for several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func testLog() (*slog.Logger, *syncBuffer) {
	b := &syncBuffer{}
	return slog.New(slog.NewTextHandler(b, nil)), b
}

func listener(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// startHub runs a hub over a new store and returns its gRPC and HTTP addresses.
func startHub(t *testing.T, edit func(*Options)) (grpcAddr, httpAddr string, st *store.Store) {
	t.Helper()
	st, err := store.Open(filepath.Join(t.TempDir(), "t.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	log, logged := testLog()
	g, h := listener(t), listener(t)
	started := make(chan struct{})
	o := Options{GRPC: g, HTTP: h, Store: st, Log: log, Started: func() { close(started) }}
	if edit != nil {
		edit(&o)
	}
	runUntilEnd(t, started, logged, func(ctx context.Context) error { return Run(ctx, o) })
	t.Cleanup(func() { st.Close() })
	return g.Addr().String(), h.Addr().String(), st
}

// runUntilEnd runs f until the test ends; it must start and end well.
func runUntilEnd(t *testing.T, started chan struct{}, logged fmt.Stringer, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	select {
	case <-started:
	case err := <-done:
		cancel()
		t.Fatalf("did not start: %v\n%s", err, logged)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%v\n%s", err, logged)
		}
	})
}

func dial(t *testing.T, addr string) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// oneSpan is a trace of one span whose ids begin with v.
func oneSpan(v byte) ptrace.Traces {
	td := ptrace.NewTraces()
	rs := td.ResourceSpans().AppendEmpty()
	rs.Resource().Attributes().PutStr("service.name", "frontend")
	rs.Resource().Attributes().PutStr("k8s.pod.name", "frontend-1")
	s := rs.ScopeSpans().AppendEmpty().Spans().AppendEmpty()
	s.SetTraceID([16]byte{v, 15: 1})
	s.SetSpanID([8]byte{v})
	s.SetParentSpanID([8]byte{9})
	s.SetName("GET /order")
	s.SetKind(ptrace.SpanKindServer)
	s.SetStartTimestamp(1_700_000_000_000_000_000)
	s.SetEndTimestamp(1_700_000_000_012_000_000)
	s.Status().SetCode(ptrace.StatusCodeError)
	s.Attributes().PutInt("http.response.status_code", 503)
	s.Attributes().PutDouble("nan", math.NaN())
	return td
}

// wait polls until f says yes; the test's own deadline is the limit.
func wait(t *testing.T, what string, f func() bool) {
	t.Helper()
	for range 2000 {
		if f() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("waited for %s", what)
}

func stored(st *store.Store, prefix string) func() bool {
	return func() bool { s, err := st.Trace(context.Background(), prefix); return err == nil && len(s) == 1 }
}

func TestHub_takesOTLPAndStoresIt(t *testing.T) {
	grpcAddr, httpAddr, st := startHub(t, nil)
	conn := dial(t, grpcAddr)
	if _, err := ptraceotlp.NewGRPCClient(conn).Export(t.Context(), ptraceotlp.NewExportRequestFromTraces(oneSpan(0xaa))); err != nil {
		t.Fatal(err)
	}
	body, err := ptraceotlp.NewExportRequestFromTraces(oneSpan(0xbb)).MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	post(t, httpAddr, "application/json", "", body, 200)
	body, err = ptraceotlp.NewExportRequestFromTraces(oneSpan(0xcc)).MarshalProto()
	if err != nil {
		t.Fatal(err)
	}
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(body)
	w.Close()
	post(t, httpAddr, "application/x-protobuf", "gzip", z.Bytes(), 200)
	post(t, httpAddr, "application/x-protobuf", "", []byte("junk"), 400)
	post(t, httpAddr, "text/plain", "", body, 415)

	ld := plog.NewLogs()
	l := ld.ResourceLogs().AppendEmpty().ScopeLogs().AppendEmpty().LogRecords().AppendEmpty()
	l.Body().SetStr("a line")
	l.SetTraceID([16]byte{0xaa, 15: 1})
	l.SetTimestamp(1_700_000_000_000_000_000)
	if _, err := plogotlp.NewGRPCClient(conn).Export(t.Context(), plogotlp.NewExportRequestFromLogs(ld)); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"aa", "bb", "cc"} {
		wait(t, "trace "+p, stored(st, p))
	}
	spans, _ := st.Trace(t.Context(), "aa")
	s := spans[0]
	if s.Service != "frontend" || s.Name != "GET /order" || s.Kind != store.KindServer || s.Status != store.StatusError || s.Duration != 12*time.Millisecond ||
		s.Attributes["http.response.status_code"] != float64(503) || s.Attributes["nan"] != "NaN" || s.Attributes["resource.k8s.pod.name"] != "frontend-1" || s.ParentID.String() != "0900000000000000" {
		t.Errorf("%+v", s)
	}
	wait(t, "the log", func() bool {
		logs, err := st.Logs(context.Background(), s.TraceID)
		return err == nil && len(logs) == 1 && logs[0].Body == "a line"
	})
	// No pipeline for metrics: the sender is told, not left to believe.
	_, err = pmetricotlp.NewGRPCClient(conn).Export(t.Context(), pmetricotlp.NewExportRequestFromMetrics(oneMetric()))
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("metrics without a pipeline: %v", err)
	}
}

func oneMetric() pmetric.Metrics {
	md := pmetric.NewMetrics()
	m := md.ResourceMetrics().AppendEmpty().ScopeMetrics().AppendEmpty().Metrics().AppendEmpty()
	m.SetName("istio_requests_total")
	sum := m.SetEmptySum()
	sum.SetIsMonotonic(true)
	sum.SetAggregationTemporality(pmetric.AggregationTemporalityCumulative)
	p := sum.DataPoints().AppendEmpty()
	p.SetIntValue(7)
	p.Attributes().PutStr("reporter", "source")
	return md
}

func post(t *testing.T, addr, kind, encoding string, body []byte, want int) {
	t.Helper()
	req, err := http.NewRequest("POST", "http://"+addr+"/v1/traces", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", kind)
	if encoding != "" {
		req.Header.Set("Content-Encoding", encoding)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != want {
		t.Errorf("%s: %d %s, want %d", kind, resp.StatusCode, text, want)
	}
}

func TestHub_servesMetricsUnderIstioNames(t *testing.T) {
	l := listener(t)
	l.Close()
	grpcAddr, _, _ := startHub(t, func(o *Options) { o.MetricsAddress = l.Addr().String() })
	if _, err := pmetricotlp.NewGRPCClient(dial(t, grpcAddr)).Export(t.Context(), pmetricotlp.NewExportRequestFromMetrics(oneMetric())); err != nil {
		t.Fatal(err)
	}
	wait(t, "the metric", func() bool {
		resp, err := http.Get("http://" + l.Addr().String() + "/metrics")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return regexp.MustCompile(`istio_requests_total\{.*reporter="source".*\} 7`).Match(b)
	})
}

// freePorts replaces the well-known ports by free ones, so that tests can run
// beside a real collector, and returns where each went.
func freePorts(t *testing.T, config string) (string, map[string]string) {
	t.Helper()
	at := map[string]string{}
	for _, port := range []string{"4317", "4318", "55678", "8889"} {
		l := listener(t)
		at[port] = l.Addr().String()
		l.Close()
		config = strings.ReplaceAll(config, "0.0.0.0:"+port, at[port])
	}
	return config, at
}

func collectorConfigs(t *testing.T) map[string]string {
	t.Helper()
	own, err := os.ReadFile("testdata/collector.yaml")
	if err != nil {
		t.Fatal(err)
	}
	configs := map[string]string{"own": string(own)}
	dir := os.Getenv("LATEEN_INPUT")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "..", "shared", "input")
	}
	f, err := os.Open(filepath.Join(dir, "otel-collector.yaml"))
	if err != nil {
		t.Logf("skipped: the user's own collector configuration (%v)", err)
		return configs
	}
	defer f.Close()
	var cm struct{ Data map[string]string }
	if err := yaml.NewDecoder(f).Decode(&cm); err != nil || cm.Data["config.yaml"] == "" {
		t.Fatalf("the user's ConfigMap: %v", err)
	}
	configs["user"] = strings.Replace(cm.Data["config.yaml"], "timeout: 10s", "timeout: 10ms", 1)
	return configs
}

func TestCollector_runsRetiredConfigAndTees(t *testing.T) {
	for name, config := range collectorConfigs(t) {
		t.Run(name, func(t *testing.T) {
			hub, _, st := startHub(t, nil)
			config, at := freePorts(t, config)
			file := filepath.Join(t.TempDir(), "config.yaml")
			if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
				t.Fatal(err)
			}
			log, logged := testLog()
			started := make(chan struct{})
			runUntilEnd(t, started, logged, func(ctx context.Context) error {
				return RunCollector(ctx, CollectorOptions{Files: []string{file}, Tee: hub, Log: log, Started: func() { close(started) }})
			})
			conn := dial(t, at["4317"])
			if _, err := ptraceotlp.NewGRPCClient(conn).Export(t.Context(), ptraceotlp.NewExportRequestFromTraces(oneSpan(0xdd))); err != nil {
				t.Fatal(err)
			}
			wait(t, "the teed span", stored(st, "dd"))
			// The user's own exporters work too: debug prints, prometheus serves.
			if _, err := pmetricotlp.NewGRPCClient(conn).Export(t.Context(), pmetricotlp.NewExportRequestFromMetrics(oneMetric())); err != nil {
				t.Fatal(err)
			}
			wait(t, "the metric", func() bool {
				resp, err := http.Get("http://" + at["8889"] + "/metrics")
				if err != nil {
					return false
				}
				defer resp.Body.Close()
				b, _ := io.ReadAll(resp.Body)
				return strings.Contains(string(b), "istio_requests_total")
			})
			err := dial(t, at["55678"]).Invoke(t.Context(), "/opencensus.proto.agent.trace.v1.TraceService/Export", &emptypb.Empty{}, &emptypb.Empty{})
			if status.Code(err) != codes.Unimplemented {
				t.Errorf("OpenCensus: %v", err)
			}
			for _, want := range []string{"jaeger-collector:4317", "debug: {verbosity: detailed}", "receiver opencensus was removed"} {
				if n := strings.Count(logged.String(), want); n != 1 && want != "jaeger-collector:4317" || n == 0 {
					t.Errorf("%q is logged %d times in\n%s", want, n, logged)
				}
			}
		})
	}
}

func TestCollector_refusesWithReasons(t *testing.T) {
	for _, c := range []struct{ config, want string }{
		{"receivers: {nonsense: {}}\nexporters: {debug: {}}\nservice: {pipelines: {traces: {receivers: [nonsense], exporters: [debug]}}}", "nonsense"},
		{"receivers: {otlp: {protocols: {grpc: {endpoint: '127.0.0.1:0'}}}}\nexporters: {debug: {verbocity: x}}\nservice: {pipelines: {traces: {receivers: [otlp], exporters: [debug]}}}", "verbocity"},
		{"receivers: {otlp: {protocols: {grpc: {endpoint: '127.0.0.1:0'}}}}\nexporters: {logging: {loglevel: debug, verbosity: basic}}\nservice: {pipelines: {traces: {receivers: [otlp], exporters: [logging]}}}", "exclude each other"},
		{": not yaml [", "yaml"},
	} {
		file := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(file, []byte(c.config), 0o600); err != nil {
			t.Fatal(err)
		}
		err := RunCollector(t.Context(), CollectorOptions{Files: []string{file}})
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", c.config, err)
		}
	}
	if err := RunCollector(t.Context(), CollectorOptions{Files: []string{"/no/such/file"}}); err == nil || !strings.Contains(err.Error(), "/no/such/file") {
		t.Errorf("missing file: %v", err)
	}
	if err := Run(t.Context(), Options{}); err == nil {
		t.Error("a hub without store must not start")
	}
}

func TestModern_leavesModernConfigAlone(t *testing.T) {
	log, logged := testLog()
	in := map[string]any{
		"exporters": map[string]any{"debug": map[string]any{"verbosity": "basic"}, "otlp": map[string]any{"endpoint": "x:4317"}},
		"service":   map[string]any{"pipelines": map[string]any{"traces": map[string]any{"exporters": []any{"debug", "otlp"}}}},
	}
	c := confmap.NewFromStringMap(in)
	conv := modernConverter(log).Create(confmap.ConverterSettings{})
	if err := conv.Convert(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(c.ToStringMap()), fmt.Sprint(in); got != want || logged.String() != "" {
		t.Errorf("got %s\nwant %s\nlog %s", got, want, logged)
	}
}
