// Package service is what the example services share: tracing set up from the
// standard OpenTelemetry environment, a server with probes, and a shutdown that
// loses nothing. It knows nothing of the mesh.
package service

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
)

// maxBody bounds request and response bodies of the example.
const maxBody = 1 << 20

// Run serves routes on addr until SIGTERM or SIGINT. Probes are answered outside
// the traced handler, so that they make no spans; neither do scrapes.
func Run(name, addr string, routes *http.ServeMux) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	shutdown, err := setupTracing(ctx, name)
	if err != nil {
		return err
	}
	defer shutdown()

	var ready atomic.Bool
	outer := http.NewServeMux()
	outer.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	outer.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if !ready.Load() {
			http.Error(w, "draining", http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ready\n")
	})
	scrapes := otelhttp.WithFilter(func(r *http.Request) bool { return r.URL.Path != "/metrics" })
	outer.Handle("/", otelhttp.NewHandler(routes, name, scrapes))

	srv := &http.Server{Handler: outer, ReadHeaderTimeout: 5 * time.Second}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("listen for %s: %w", name, err)
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(listener) }()
	ready.Store(true)
	slog.Info("serving", "service", name, "addr", addr)
	select {
	case err := <-failed:
		return fmt.Errorf("serve %s: %w", name, err)
	case <-ctx.Done():
	}
	ready.Store(false)
	bounded, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := srv.Shutdown(bounded); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("shut %s down: %w", name, err)
	}
	return nil
}

// setupTracing configures the SDK from OTEL_EXPORTER_OTLP_ENDPOINT,
// OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES. Without an endpoint nothing
// is exported, but context is still propagated.
func setupTracing(ctx context.Context, name string) (shutdown func(), err error) {
	otel.SetTextMapPropagator(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}))
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { slog.Warn("telemetry", "error", err) }))
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" {
		return func() {}, nil
	}
	exporter, err := otlptracegrpc.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("set up OTLP export of %s: %w", name, err)
	}
	if os.Getenv("OTEL_SERVICE_NAME") == "" {
		_ = os.Setenv("OTEL_SERVICE_NAME", name)
	}
	res, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithHost(), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("describe %s: %w", name, err)
	}
	provider := trace.NewTracerProvider(trace.WithBatcher(exporter, trace.WithBatchTimeout(time.Second)), trace.WithResource(res))
	otel.SetTracerProvider(provider)
	return func() {
		bounded, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := provider.Shutdown(bounded); err != nil {
			slog.Warn("flush telemetry", "error", err)
		}
	}, nil
}

// Client calls other services with one traced, bounded HTTP client.
type Client struct{ http *http.Client }

// NewClient returns a Client whose calls take at most ten seconds. It keeps as
// many idle connections as it has calls at a time: the library's default, two a
// host, opens and closes one for nearly every call of a busy service.
func NewClient() *Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = transport.MaxIdleConns
	return &Client{http: &http.Client{Transport: otelhttp.NewTransport(transport), Timeout: 10 * time.Second}}
}

// StatusError is an answer other than 200.
type StatusError struct {
	URL  string
	Code int
}

func (e *StatusError) Error() string { return fmt.Sprintf("call %s: status %d", e.URL, e.Code) }

// Call sends in as JSON (nothing for nil) and decodes the answer into out. Any
// status but 200 is an error.
func (c *Client) Call(ctx context.Context, method, url string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("call %s: %w", url, err)
		}
		body = bytes.NewReader(data) // its length is known, and it can be sent again
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return fmt.Errorf("call %s: %w", url, err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("call %s: %w", url, err)
	}
	defer func() {
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxBody))
		_ = resp.Body.Close()
	}()
	if resp.StatusCode != http.StatusOK {
		return &StatusError{URL: url, Code: resp.StatusCode}
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(out); err != nil {
		return fmt.Errorf("read answer of %s: %w", url, err)
	}
	return nil
}

// Reply writes v as JSON.
func Reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		slog.Warn("write reply", "error", err)
	}
}

// Fail logs err and answers without telling the caller our internals: 503 when
// the other service is not available at the moment, 502 for everything else.
func Fail(w http.ResponseWriter, what string, err error) {
	slog.Error(what, "error", err)
	code := http.StatusBadGateway
	var status *StatusError
	if errors.As(err, &status) && status.Code == http.StatusServiceUnavailable {
		code = http.StatusServiceUnavailable
	}
	http.Error(w, what, code)
}

// Read decodes a bounded JSON request body into v.
func Read(r *http.Request, v any) error {
	if err := json.NewDecoder(io.LimitReader(r.Body, maxBody)).Decode(v); err != nil {
		return fmt.Errorf("read request body: %w", err)
	}
	return nil
}
