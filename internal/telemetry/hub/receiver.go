package hub

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/consumer/consumererror"
	"go.opentelemetry.io/collector/pdata/plog/plogotlp"
	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
	"go.opentelemetry.io/collector/pdata/ptrace/ptraceotlp"
	"go.opentelemetry.io/collector/receiver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	_ "google.golang.org/grpc/encoding/gzip" // senders compress by default
	"google.golang.org/grpc/status"
)

// maxMessage bounds one request, compressed or not.
const maxMessage = 16 << 20

// otlpServer is the receiver lateen_otlp: OTLP/gRPC and OTLP/HTTP on listeners
// that were opened, and perhaps inherited, before. The stock otlp receiver can
// only open its own. A signal without a pipeline answers Unimplemented.
type otlpServer struct {
	grpcListener, httpListener net.Listener
	log                        *slog.Logger

	// Set while components are built, before Start.
	traces  consumer.Traces
	logs    consumer.Logs
	metrics consumer.Metrics

	start sync.Once
	stop  sync.Once
	grpc  *grpc.Server
	http  *http.Server
}

type emptyConfig struct{}

func (s *otlpServer) factory() receiver.Factory {
	return receiver.NewFactory(
		component.MustNewType("lateen_otlp"),
		func() component.Config { return &emptyConfig{} },
		receiver.WithTraces(func(_ context.Context, _ receiver.Settings, _ component.Config, next consumer.Traces) (receiver.Traces, error) {
			s.traces = next
			return s, nil
		}, component.StabilityLevelStable),
		receiver.WithLogs(func(_ context.Context, _ receiver.Settings, _ component.Config, next consumer.Logs) (receiver.Logs, error) {
			s.logs = next
			return s, nil
		}, component.StabilityLevelStable),
		receiver.WithMetrics(func(_ context.Context, _ receiver.Settings, _ component.Config, next consumer.Metrics) (receiver.Metrics, error) {
			s.metrics = next
			return s, nil
		}, component.StabilityLevelStable),
	)
}

// Start begins to serve; one server stands for the receivers of all signals.
func (s *otlpServer) Start(context.Context, component.Host) error {
	s.start.Do(func() {
		if s.grpcListener != nil {
			s.grpc = grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage))
			ptraceotlp.RegisterGRPCServer(s.grpc, &traceService{s: s})
			plogotlp.RegisterGRPCServer(s.grpc, &logService{s: s})
			pmetricotlp.RegisterGRPCServer(s.grpc, &metricService{s: s})
			go s.report("gRPC", func() error { return s.grpc.Serve(s.grpcListener) })
		}
		if s.httpListener != nil {
			m := http.NewServeMux()
			m.HandleFunc("POST /v1/traces", s.post(s.postTraces))
			m.HandleFunc("POST /v1/logs", s.post(s.postLogs))
			m.HandleFunc("POST /v1/metrics", s.post(s.postMetrics))
			s.http = &http.Server{Handler: m, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: time.Minute, IdleTimeout: 2 * time.Minute}
			go s.report("HTTP", func() error { return s.http.Serve(s.httpListener) })
		}
	})
	return nil
}

func (s *otlpServer) report(what string, serve func() error) {
	if err := serve(); err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, grpc.ErrServerStopped) && !errors.Is(err, net.ErrClosed) {
		s.log.Error("OTLP receiver stopped", "protocol", what, "error", err)
	}
}

// Shutdown lets calls in flight finish for a moment, then closes.
func (s *otlpServer) Shutdown(ctx context.Context) error {
	s.stop.Do(func() {
		if s.http != nil {
			short, cancel := context.WithTimeout(ctx, time.Second)
			if s.http.Shutdown(short) != nil {
				s.http.Close()
			}
			cancel()
		}
		if s.grpc != nil {
			t := time.AfterFunc(time.Second, s.grpc.Stop)
			s.grpc.GracefulStop()
			t.Stop()
		}
	})
	return nil
}

// close closes the listeners; those of a served one are closed already.
func (s *otlpServer) close() {
	for _, l := range []net.Listener{s.grpcListener, s.httpListener} {
		if l != nil {
			l.Close()
		}
	}
}

// answer maps a pipeline's refusal to what OTLP says about retrying.
func answer(err error) error {
	switch {
	case err == nil:
		return nil
	case consumererror.IsPermanent(err):
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return status.Error(codes.Unavailable, err.Error())
}

func noPipeline(signal string) error {
	return status.Errorf(codes.Unimplemented, "the hub has no pipeline for %s", signal)
}

func (s *otlpServer) takeTraces(ctx context.Context, r ptraceotlp.ExportRequest) error {
	if s.traces == nil {
		return noPipeline("traces")
	}
	return answer(s.traces.ConsumeTraces(ctx, r.Traces()))
}

func (s *otlpServer) takeLogs(ctx context.Context, r plogotlp.ExportRequest) error {
	if s.logs == nil {
		return noPipeline("logs")
	}
	return answer(s.logs.ConsumeLogs(ctx, r.Logs()))
}

func (s *otlpServer) takeMetrics(ctx context.Context, r pmetricotlp.ExportRequest) error {
	if s.metrics == nil {
		return noPipeline("metrics")
	}
	return answer(s.metrics.ConsumeMetrics(ctx, r.Metrics()))
}

type traceService struct {
	ptraceotlp.UnimplementedGRPCServer
	s *otlpServer
}

// Export takes spans.
func (t *traceService) Export(ctx context.Context, r ptraceotlp.ExportRequest) (ptraceotlp.ExportResponse, error) {
	return ptraceotlp.NewExportResponse(), t.s.takeTraces(ctx, r)
}

type logService struct {
	plogotlp.UnimplementedGRPCServer
	s *otlpServer
}

// Export takes log records.
func (l *logService) Export(ctx context.Context, r plogotlp.ExportRequest) (plogotlp.ExportResponse, error) {
	return plogotlp.NewExportResponse(), l.s.takeLogs(ctx, r)
}

type metricService struct {
	pmetricotlp.UnimplementedGRPCServer
	s *otlpServer
}

// Export takes metrics.
func (m *metricService) Export(ctx context.Context, r pmetricotlp.ExportRequest) (pmetricotlp.ExportResponse, error) {
	return pmetricotlp.NewExportResponse(), m.s.takeMetrics(ctx, r)
}

// request is an OTLP request in both encodings.
type request interface {
	UnmarshalProto([]byte) error
	UnmarshalJSON([]byte) error
}

func decode(r request, body []byte, json bool) error {
	if json {
		return r.UnmarshalJSON(body)
	}
	return r.UnmarshalProto(body)
}

var errBadRequest = errors.New("request cannot be decoded")

func (s *otlpServer) postTraces(ctx context.Context, body []byte, json bool) error {
	r := ptraceotlp.NewExportRequest()
	if err := decode(r, body, json); err != nil {
		return fmt.Errorf("%w: %v", errBadRequest, err)
	}
	return s.takeTraces(ctx, r)
}

func (s *otlpServer) postLogs(ctx context.Context, body []byte, json bool) error {
	r := plogotlp.NewExportRequest()
	if err := decode(r, body, json); err != nil {
		return fmt.Errorf("%w: %v", errBadRequest, err)
	}
	return s.takeLogs(ctx, r)
}

func (s *otlpServer) postMetrics(ctx context.Context, body []byte, json bool) error {
	r := pmetricotlp.NewExportRequest()
	if err := decode(r, body, json); err != nil {
		return fmt.Errorf("%w: %v", errBadRequest, err)
	}
	return s.takeMetrics(ctx, r)
}

// post is OTLP/HTTP: protobuf or JSON, plain or gzip. Any content type other
// than these two is refused, so that a web page cannot post without CORS.
func (s *otlpServer) post(take func(context.Context, []byte, bool) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
		json := kind == "application/json"
		if !json && kind != "application/x-protobuf" {
			http.Error(w, fmt.Sprintf("content type %q: want application/x-protobuf or application/json", kind), http.StatusUnsupportedMediaType)
			return
		}
		body := io.Reader(http.MaxBytesReader(w, r.Body, maxMessage))
		switch enc := r.Header.Get("Content-Encoding"); enc {
		case "", "identity":
		case "gzip":
			z, err := gzip.NewReader(body)
			if err != nil {
				http.Error(w, "gzip: "+err.Error(), http.StatusBadRequest)
				return
			}
			body = io.LimitReader(z, maxMessage+1)
		default:
			http.Error(w, fmt.Sprintf("content encoding %q: want gzip or none", enc), http.StatusUnsupportedMediaType)
			return
		}
		data, err := io.ReadAll(body)
		if err != nil || len(data) > maxMessage {
			http.Error(w, fmt.Sprintf("request body: more than %d bytes, or broken off", maxMessage), http.StatusRequestEntityTooLarge)
			return
		}
		err = take(r.Context(), data, json)
		switch {
		case err == nil:
			w.Header().Set("Content-Type", kind)
			if json {
				io.WriteString(w, "{}")
			}
		case errors.Is(err, errBadRequest) || status.Code(err) == codes.InvalidArgument:
			http.Error(w, err.Error(), http.StatusBadRequest)
		case status.Code(err) == codes.Unimplemented:
			http.Error(w, err.Error(), http.StatusNotFound)
		default:
			w.Header().Set("Retry-After", "1")
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	}
}
