package hub

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/receiver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// opencensusConfig is the part of the retired receiver's configuration that
// says where it listens; the rest is accepted and has no effect.
type opencensusConfig struct {
	Endpoint string         `mapstructure:"endpoint"`
	Other    map[string]any `mapstructure:",remain"`
}

// opencensusFactory accepts the receiver opencensus, which the Collector
// removed in v0.134. It listens where it is told and answers every call
// Unimplemented with advice, so that a sender learns the truth instead of
// losing spans in silence.
func opencensusFactory(log *slog.Logger) receiver.Factory {
	shared := map[string]*opencensus{} // one per endpoint, for all signals
	var mu sync.Mutex
	get := func(c component.Config) *opencensus {
		cfg := c.(*opencensusConfig)
		mu.Lock()
		defer mu.Unlock()
		if shared[cfg.Endpoint] == nil {
			shared[cfg.Endpoint] = &opencensus{endpoint: cfg.Endpoint, log: log}
		}
		return shared[cfg.Endpoint]
	}
	return receiver.NewFactory(
		component.MustNewType("opencensus"),
		func() component.Config { return &opencensusConfig{Endpoint: "localhost:55678"} },
		receiver.WithTraces(func(_ context.Context, _ receiver.Settings, c component.Config, _ consumer.Traces) (receiver.Traces, error) {
			return get(c), nil
		}, component.StabilityLevelDeprecated),
		receiver.WithMetrics(func(_ context.Context, _ receiver.Settings, c component.Config, _ consumer.Metrics) (receiver.Metrics, error) {
			return get(c), nil
		}, component.StabilityLevelDeprecated),
	)
}

type opencensus struct {
	endpoint string
	log      *slog.Logger
	start    sync.Once
	stop     sync.Once
	server   *grpc.Server
}

// Start listens.
func (o *opencensus) Start(context.Context, component.Host) (err error) {
	o.start.Do(func() {
		var l net.Listener
		if l, err = net.Listen("tcp", o.endpoint); err != nil {
			err = fmt.Errorf("receiver opencensus: %w", err)
			return
		}
		o.log.Warn("collector: receiver opencensus was removed in v0.134; it listens, but takes no spans: calls are answered Unimplemented",
			"endpoint", o.endpoint, "write", "otlp: {protocols: {grpc: {endpoint: 0.0.0.0:4317}}}")
		var once sync.Once
		o.server = grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
			method, _ := grpc.MethodFromServerStream(s)
			once.Do(func() {
				o.log.Warn("collector: an application sends OpenCensus, which is refused; send OTLP to port 4317 instead", "method", method)
			})
			return status.Error(codes.Unimplemented, "OpenCensus is not taken; send OTLP to port 4317")
		}))
		go o.server.Serve(l) //nolint:errcheck // it ends with Stop
	})
	return err
}

// Shutdown stops listening.
func (o *opencensus) Shutdown(context.Context) error {
	o.stop.Do(func() {
		if o.server != nil {
			o.server.Stop()
		}
	})
	return nil
}
