package hub

import (
	"context"
	"log/slog"

	"github.com/open-telemetry/opentelemetry-collector-contrib/exporter/prometheusexporter"
	"github.com/open-telemetry/opentelemetry-collector-contrib/processor/attributesprocessor"
	"github.com/open-telemetry/opentelemetry-collector-contrib/processor/filterprocessor"
	"github.com/open-telemetry/opentelemetry-collector-contrib/processor/tailsamplingprocessor"
	"github.com/open-telemetry/opentelemetry-collector-contrib/processor/transformprocessor"
	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/connector"
	"go.opentelemetry.io/collector/exporter"
	"go.opentelemetry.io/collector/exporter/debugexporter"
	"go.opentelemetry.io/collector/exporter/otlpexporter"
	"go.opentelemetry.io/collector/exporter/otlphttpexporter"
	"go.opentelemetry.io/collector/extension"
	"go.opentelemetry.io/collector/otelcol"
	"go.opentelemetry.io/collector/processor"
	"go.opentelemetry.io/collector/processor/batchprocessor"
	"go.opentelemetry.io/collector/processor/memorylimiterprocessor"
	"go.opentelemetry.io/collector/receiver"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"go.opentelemetry.io/collector/service/telemetry"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// factories collects the components that a configuration may name.
type factories struct {
	f   otelcol.Factories
	err error
}

func newFactories(log *slog.Logger) *factories {
	x := &factories{}
	x.f.Telemetry = telemetryFactory(log)
	x.f.Extensions = map[component.Type]extension.Factory{}
	x.f.Connectors = map[component.Type]connector.Factory{}
	x.f.Receivers, x.err = otelcol.MakeFactoryMap[receiver.Factory](otlpreceiver.NewFactory())
	if x.err != nil {
		return x
	}
	x.f.Processors, x.err = otelcol.MakeFactoryMap[processor.Factory](
		batchprocessor.NewFactory(), memorylimiterprocessor.NewFactory(), attributesprocessor.NewFactory(),
		filterprocessor.NewFactory(), transformprocessor.NewFactory(), tailsamplingprocessor.NewFactory(),
	)
	if x.err != nil {
		return x
	}
	x.f.Exporters, x.err = otelcol.MakeFactoryMap[exporter.Factory](
		debugexporter.NewFactory(), otlpexporter.NewFactory(), otlphttpexporter.NewFactory(), prometheusexporter.NewFactory(),
	)
	return x
}

func (x *factories) receiver(f receiver.Factory) {
	if x.err == nil {
		x.f.Receivers[f.Type()] = f
	}
}

func (x *factories) exporter(f exporter.Factory) {
	if x.err == nil {
		x.f.Exporters[f.Type()] = f
	}
}

// telemetryConfig accepts the service::telemetry section. Only the log level
// has an effect: the Collector's metrics and traces about itself are not made,
// which keeps it 10 MB and 70 modules smaller.
type telemetryConfig struct {
	Logs struct {
		Level string         `mapstructure:"level"`
		Other map[string]any `mapstructure:",remain"`
	} `mapstructure:"logs"`
	Metrics  map[string]any `mapstructure:"metrics"`
	Traces   map[string]any `mapstructure:"traces"`
	Resource map[string]any `mapstructure:"resource"`
}

func telemetryFactory(log *slog.Logger) telemetry.Factory {
	return telemetry.NewFactory(
		func() component.Config { return &telemetryConfig{} },
		telemetry.WithCreateLogger(func(_ context.Context, _ telemetry.LoggerSettings, c component.Config) (*zap.Logger, component.ShutdownFunc, error) {
			cfg := c.(*telemetryConfig)
			level := zapcore.InfoLevel
			if cfg.Logs.Level != "" {
				l, err := zapcore.ParseLevel(cfg.Logs.Level)
				if err != nil {
					return nil, nil, err
				}
				level = l
			}
			if len(cfg.Metrics) > 0 || len(cfg.Traces) > 0 {
				log.Warn("service::telemetry: the collector's own metrics and traces are not made; only logs::level has an effect")
			}
			return zap.New(&slogCore{log: log, level: level}), nil, nil
		}),
	)
}

// slogCore passes the Collector's zap log on to log/slog.
type slogCore struct {
	log   *slog.Logger
	level zapcore.Level
}

func zapOptions(log *slog.Logger) []zap.Option {
	return []zap.Option{zap.WrapCore(func(zapcore.Core) zapcore.Core { return &slogCore{log: log, level: zapcore.InfoLevel} })}
}

func (c *slogCore) Enabled(l zapcore.Level) bool { return l >= c.level }
func (c *slogCore) Sync() error                  { return nil }

func (c *slogCore) With(fields []zapcore.Field) zapcore.Core {
	return &slogCore{log: c.log.With(slogArgs(fields)...), level: c.level}
}

func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelInfo
	switch {
	case e.Level >= zapcore.ErrorLevel:
		level = slog.LevelError
	case e.Level == zapcore.WarnLevel:
		level = slog.LevelWarn
	case e.Level == zapcore.DebugLevel:
		level = slog.LevelDebug
	}
	c.log.Log(context.Background(), level, e.Message, slogArgs(fields)...)
	return nil
}

// slogArgs converts fields; the Collector's description of the resource that
// is itself is noise in our log.
func slogArgs(fields []zapcore.Field) []any {
	enc := zapcore.NewMapObjectEncoder()
	for i := range fields {
		if fields[i].Key != "resource" {
			fields[i].AddTo(enc)
		}
	}
	args := make([]any, 0, 2*len(enc.Fields))
	for _, f := range fields { // in the order given
		if v, ok := enc.Fields[f.Key]; ok {
			args = append(args, f.Key, v)
			delete(enc.Fields, f.Key)
		}
	}
	return args
}
