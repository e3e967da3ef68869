package hub

import (
	"context"
	"encoding/base64"
	"math"
	"strconv"
	"time"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/config/configretry"
	"go.opentelemetry.io/collector/exporter"
	"go.opentelemetry.io/collector/exporter/exporterhelper"
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/ptrace"

	"lateen.dev/lateen/internal/telemetry/store"
)

// storeFactory is the exporter lateen_store: it writes spans and logs to the
// store, retrying for a while when the disk refuses.
func storeFactory(w Writer) exporter.Factory {
	retry := configretry.NewDefaultBackOffConfig()
	retry.InitialInterval, retry.MaxInterval, retry.MaxElapsedTime = 200*time.Millisecond, 2*time.Second, 10*time.Second
	return exporter.NewFactory(
		component.MustNewType("lateen_store"),
		func() component.Config { return &emptyConfig{} },
		exporter.WithTraces(func(ctx context.Context, set exporter.Settings, cfg component.Config) (exporter.Traces, error) {
			return exporterhelper.NewTraces(ctx, set, cfg, func(ctx context.Context, td ptrace.Traces) error {
				return w.Write(ctx, spansOf(td), nil)
			}, exporterhelper.WithRetry(retry))
		}, component.StabilityLevelStable),
		exporter.WithLogs(func(ctx context.Context, set exporter.Settings, cfg component.Config) (exporter.Logs, error) {
			return exporterhelper.NewLogs(ctx, set, cfg, func(ctx context.Context, ld plog.Logs) error {
				return w.Write(ctx, nil, logsOf(ld))
			}, exporterhelper.WithRetry(retry))
		}, component.StabilityLevelStable),
	)
}

// resourceKeys are the resource attributes kept beside each span, with the
// prefix "resource.".
func resourceKeys() []string {
	return []string{"service.version", "service.namespace", "k8s.pod.name", "k8s.namespace.name", "telemetry.sdk.name", "telemetry.sdk.language"}
}

func serviceOf(res pcommon.Resource) string {
	if v, ok := res.Attributes().Get("service.name"); ok && v.AsString() != "" {
		return v.AsString()
	}
	return "unknown_service"
}

func spansOf(td ptrace.Traces) []store.Span {
	out := make([]store.Span, 0, td.SpanCount())
	for _, rs := range td.ResourceSpans().All() {
		service := serviceOf(rs.Resource())
		for _, ss := range rs.ScopeSpans().All() {
			for _, x := range ss.Spans().All() {
				trace, span, parent := x.TraceID(), x.SpanID(), x.ParentSpanID()
				if trace.IsEmpty() || span.IsEmpty() {
					continue // OTLP: such a span is invalid
				}
				s := store.Span{
					TraceID: trace[:], SpanID: span[:], Service: service, Name: x.Name(), Kind: store.Kind(x.Kind()),
					Start: x.StartTimestamp().AsTime(), Duration: x.EndTimestamp().AsTime().Sub(x.StartTimestamp().AsTime()),
					Status: store.Status(x.Status().Code()), StatusMessage: x.Status().Message(), Scope: ss.Scope().Name(),
					Attributes: attributesOf(x.Attributes(), rs.Resource().Attributes()),
				}
				if !parent.IsEmpty() {
					s.ParentID = parent[:]
				}
				s.Duration = max(s.Duration, 0)
				out = append(out, s)
			}
		}
	}
	return out
}

func logsOf(ld plog.Logs) []store.Log {
	out := make([]store.Log, 0, ld.LogRecordCount())
	for _, rl := range ld.ResourceLogs().All() {
		service := serviceOf(rl.Resource())
		for _, sl := range rl.ScopeLogs().All() {
			for _, x := range sl.LogRecords().All() {
				at := x.Timestamp()
				if at == 0 {
					at = x.ObservedTimestamp()
				}
				l := store.Log{
					Time: at.AsTime(), Service: service, Severity: x.SeverityText(), Body: x.Body().AsString(),
					Attributes: attributesOf(x.Attributes(), rl.Resource().Attributes()),
				}
				if trace, span := x.TraceID(), x.SpanID(); !trace.IsEmpty() {
					l.TraceID = trace[:]
					if !span.IsEmpty() {
						l.SpanID = span[:]
					}
				}
				out = append(out, l)
			}
		}
	}
	return out
}

func attributesOf(m, resource pcommon.Map) map[string]any {
	out := make(map[string]any, m.Len()+4)
	for k, v := range m.All() {
		out[k] = plain(v)
	}
	for _, k := range resourceKeys() {
		if v, ok := resource.Get(k); ok {
			out["resource."+k] = plain(v)
		}
	}
	return out
}

// plain turns a value into what JSON can hold: bytes become base64, numbers
// that are none become text.
func plain(v pcommon.Value) any {
	switch v.Type() {
	case pcommon.ValueTypeDouble:
		if f := v.Double(); math.IsNaN(f) || math.IsInf(f, 0) {
			return strconv.FormatFloat(f, 'g', -1, 64)
		}
		return v.Double()
	case pcommon.ValueTypeBytes:
		return base64.StdEncoding.EncodeToString(v.Bytes().AsRaw())
	case pcommon.ValueTypeSlice:
		out := []any{}
		for _, e := range v.Slice().All() {
			out = append(out, plain(e))
		}
		return out
	case pcommon.ValueTypeMap:
		out := map[string]any{}
		for k, e := range v.Map().All() {
			out[k] = plain(e)
		}
		return out
	}
	return v.AsRaw()
}
