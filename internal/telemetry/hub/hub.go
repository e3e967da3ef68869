// Package hub embeds the OpenTelemetry Collector as a library. It is used in
// two ways: Run is the mesh's own hub, which takes OTLP on listeners it is
// given and writes spans and logs to the store; RunCollector is `lateen
// collector`, which runs a user's collector configuration unchanged (retired
// names are accepted with a warning) and, on one machine, tees each trace
// pipeline to the hub.
//
// It promises that every started pipeline is the Collector's own, and that a
// configuration the Collector refuses is an error that says why. It does not
// interpret what flows through.
package hub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/confmap/provider/envprovider"
	"go.opentelemetry.io/collector/confmap/provider/fileprovider"
	"go.opentelemetry.io/collector/confmap/provider/yamlprovider"
	"go.opentelemetry.io/collector/otelcol"

	"lateen.dev/lateen/internal/telemetry/store"
)

// EndpointEnv names the environment variable that tells a collector started
// for a pod where the hub is (host:port, OTLP/gRPC).
const EndpointEnv = "LATEEN_HUB_ENDPOINT"

// Writer takes what the hub receives; *store.Store is one.
type Writer interface {
	Write(ctx context.Context, spans []store.Span, logs []store.Log) error
}

// Options configure the hub.
type Options struct {
	// GRPC and HTTP are the OTLP listeners (4317, 4318); the hub closes them.
	// When one is nil and its address is set, the hub listens there itself.
	GRPC, HTTP               net.Listener
	GRPCAddress, HTTPAddress string
	Store                    Writer
	// MetricsAddress serves received metrics in Prometheus text at /metrics;
	// empty means that the hub takes no metrics and says so to senders.
	MetricsAddress string
	// MemoryMiB is where the hub begins to refuse data; 0 means 256.
	MemoryMiB int
	// ExtraConfig is collector YAML merged over the hub's own, for more
	// exporters and pipelines.
	ExtraConfig string
	Version     string
	// Started is called once every pipeline runs; nil is allowed.
	Started func()
	Log     *slog.Logger
}

// Run runs the hub until ctx ends. An error means that it could not start or
// stopped by itself.
func Run(ctx context.Context, o Options) error {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Store == nil {
		return errors.New("run hub: no store was given")
	}
	if o.MemoryMiB <= 0 {
		o.MemoryMiB = 256
	}
	if err := o.listen(); err != nil {
		return fmt.Errorf("run hub: %w", err)
	}
	if o.GRPC == nil && o.HTTP == nil {
		return errors.New("run hub: no OTLP listener was given")
	}
	f := newFactories(o.Log)
	rcv := &otlpServer{grpcListener: o.GRPC, httpListener: o.HTTP, log: o.Log}
	f.receiver(rcv.factory())
	f.exporter(storeFactory(o.Store))
	uris := []string{"yaml:" + o.config()}
	if o.ExtraConfig != "" {
		uris = append(uris, "yaml:"+o.ExtraConfig)
	}
	err := run(ctx, f, uris, nil, o.Version, o.Started, o.Log)
	rcv.close() // should the collector have refused before it took them over
	if err != nil {
		return fmt.Errorf("run hub: %w", err)
	}
	return nil
}

func (o *Options) listen() error {
	for _, x := range [...]struct {
		l    *net.Listener
		addr string
	}{{&o.GRPC, o.GRPCAddress}, {&o.HTTP, o.HTTPAddress}} {
		if *x.l != nil || x.addr == "" {
			continue
		}
		l, err := net.Listen("tcp", x.addr)
		if err != nil {
			return err
		}
		*x.l = l
	}
	return nil
}

// config is the hub's own collector configuration.
func (o *Options) config() string {
	var b strings.Builder
	fmt.Fprintf(&b, `
receivers:
  lateen_otlp: {}
processors:
  memory_limiter: {check_interval: 1s, limit_mib: %d}
  batch: {timeout: 200ms, send_batch_size: 512, send_batch_max_size: 2048}
exporters:
  lateen_store: {}
`, o.MemoryMiB)
	if o.MetricsAddress != "" {
		fmt.Fprintf(&b, "  prometheus: {endpoint: %q, resource_to_telemetry_conversion: {enabled: false}, metric_expiration: 1h}\n", o.MetricsAddress)
	}
	b.WriteString(`
service:
  pipelines:
    traces: {receivers: [lateen_otlp], processors: [memory_limiter, batch], exporters: [lateen_store]}
    logs: {receivers: [lateen_otlp], processors: [memory_limiter, batch], exporters: [lateen_store]}
`)
	if o.MetricsAddress != "" {
		b.WriteString("    metrics: {receivers: [lateen_otlp], processors: [memory_limiter, batch], exporters: [prometheus]}\n")
	}
	return b.String()
}

// CollectorOptions configure RunCollector.
type CollectorOptions struct {
	// Files are collector configurations, merged in order.
	Files []string
	// Tee is the hub's OTLP/gRPC endpoint, empty for none.
	Tee     string
	Version string
	Started func()
	Log     *slog.Logger
}

// RunCollector runs a user's collector configuration until ctx ends.
func RunCollector(ctx context.Context, o CollectorOptions) error {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if len(o.Files) == 0 {
		return errors.New("run collector: no configuration file was given: use --config FILE")
	}
	var uris []string
	for _, f := range o.Files {
		if _, err := os.Stat(f); err != nil {
			return fmt.Errorf("run collector: %w", err)
		}
		uris = append(uris, "file:"+f)
	}
	conv := []confmap.ConverterFactory{modernConverter(o.Log)}
	if o.Tee != "" {
		conv = append(conv, teeConverter(o.Tee, o.Log))
	}
	f := newFactories(o.Log)
	f.receiver(opencensusFactory(o.Log))
	if err := run(ctx, f, uris, conv, o.Version, o.Started, o.Log); err != nil {
		return fmt.Errorf("run collector with %s: %w", strings.Join(o.Files, ", "), err)
	}
	return nil
}

// run starts a collector and waits for its end.
func run(ctx context.Context, f *factories, uris []string, conv []confmap.ConverterFactory, version string, started func(), log *slog.Logger) error {
	if f.err != nil {
		return f.err
	}
	col, err := otelcol.NewCollector(otelcol.CollectorSettings{
		Factories: func() (otelcol.Factories, error) { return f.f, nil },
		BuildInfo: component.BuildInfo{Command: "lateen", Description: "Lateen collector", Version: version},
		// Signals belong to the program that embeds us.
		DisableGracefulShutdown: true,
		SkipSettingGRPCLogger:   true,
		LoggingOptions:          zapOptions(log),
		ConfigProviderSettings: otelcol.ConfigProviderSettings{ResolverSettings: confmap.ResolverSettings{
			URIs:          uris,
			DefaultScheme: "env",
			ProviderFactories: []confmap.ProviderFactory{
				fileprovider.NewFactory(), yamlprovider.NewFactory(), envprovider.NewFactory(),
			},
			ConverterFactories: conv,
		}},
	})
	if err != nil {
		return err
	}
	done := make(chan struct{})
	if started != nil {
		go announce(col, done, started)
	}
	err = col.Run(ctx)
	close(done)
	if err != nil {
		return err
	}
	if ctx.Err() == nil {
		return errors.New("the collector stopped by itself; its last log lines say why")
	}
	return nil
}

// announce calls started once the collector runs.
func announce(col *otelcol.Collector, done <-chan struct{}, started func()) {
	t := time.NewTicker(2 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-done:
			return
		case <-t.C:
			if col.GetState() == otelcol.StateRunning {
				started()
				return
			}
		}
	}
}
