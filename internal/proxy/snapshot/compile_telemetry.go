package snapshot

import (
	"fmt"
	"strings"

	logpb "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tracepb "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	filelogpb "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	otlplogpb "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/open_telemetry/v3"
	hcmpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tagpb "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

const (
	typeFileLog   = "envoy.extensions.access_loggers.file.v3.FileAccessLog"
	typeOTLPLog   = "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig"
	typeStdoutLog = "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog"
	typeStderrLog = "envoy.extensions.access_loggers.stream.v3.StderrAccessLog"
	typeOTLPTrace = "envoy.config.trace.v3.OpenTelemetryConfig"
)

// Telemetry is the one place where something unknown is passed over instead of
// refused: a span tag that is missing opens no door, a listener that is missing
// closes one. Every omission becomes a warning of the snapshot.

// tracing compiles span settings; nil switches spans off.
func (c *compiler) tracing(m *hcmpb.HttpConnectionManager_Tracing, dir Direction, from Origin) (*Tracing, error) {
	if m == nil {
		return nil, nil
	}
	t := &Tracing{ClientSpan: dir == Outbound, MaxTagLength: 256, Origin: from}
	var errs [3]error
	t.Client, errs[0] = percent(m.GetClientSampling(), 100)
	t.Random, errs[1] = percent(m.GetRandomSampling(), 100)
	t.Overall, errs[2] = percent(m.GetOverallSampling(), 100)
	if err := firstError(errs[:]...); err != nil {
		return nil, at(err, "tracing")
	}
	if n := m.GetMaxPathTagLength(); n != nil {
		t.MaxTagLength = n.GetValue()
	}
	for _, tag := range m.GetCustomTags() {
		c.customTag(t, tag)
	}
	if p := m.GetProvider(); p != nil {
		c.traceProvider(t, p)
	}
	return t, nil
}

func (c *compiler) customTag(t *Tracing, m *tagpb.CustomTag) {
	tag := CustomTag{Tag: m.GetTag()}
	switch v := m.GetType().(type) {
	case *tagpb.CustomTag_Literal_:
		tag.Literal = v.Literal.GetValue()
	case *tagpb.CustomTag_Environment_:
		tag.Environment, tag.EnvironmentDefault = v.Environment.GetName(), v.Environment.GetDefaultValue()
	case *tagpb.CustomTag_RequestHeader:
		tag.Header, tag.HeaderDefault = strings.ToLower(v.RequestHeader.GetName()), v.RequestHeader.GetDefaultValue()
	case *tagpb.CustomTag_Value:
		tag.Format = v.Value
	case *tagpb.CustomTag_Metadata_:
		// The four tags that Istio always adds tell dry-run results, which
		// records carry on their own.
		if !strings.HasPrefix(tag.Tag, "istio.authorization.dry_run.") {
			c.warn("tracing.custom_tags %q: metadata is not supported; the tag is left out", tag.Tag)
		}
		return
	default:
		c.warn("tracing.custom_tags %q: unknown source; the tag is left out", tag.Tag)
		return
	}
	t.Tags = append(t.Tags, tag)
}

func (c *compiler) traceProvider(t *Tracing, p *tracepb.Tracing_Http) {
	var m tracepb.OpenTelemetryConfig
	if string(p.GetTypedConfig().MessageName()) != typeOTLPTrace {
		c.warn("tracing.provider %q is not OpenTelemetry; spans go to the hub", p.GetName())
		return
	}
	if err := decode(p.GetTypedConfig(), &m); err != nil {
		c.warn("tracing.provider: %v", err)
		return
	}
	t.ServiceName = m.GetServiceName()
	t.Cluster, t.Authority = grpcTarget(m.GetGrpcService())
	if u := m.GetHttpService().GetHttpUri(); u != nil {
		t.Cluster = u.GetCluster()
		uri := strings.TrimPrefix(strings.TrimPrefix(u.GetUri(), "http://"), "https://")
		host, path, _ := strings.Cut(uri, "/")
		t.Authority, t.HTTPPath = host, "/"+path
	}
	if m.GetSampler() != nil {
		c.warn("tracing.provider: sampler is not supported; percentages hold")
	}
}

// accessLogs compiles access logs.
func (c *compiler) accessLogs(list []*logpb.AccessLog, from Origin) []*AccessLog {
	var out []*AccessLog
	for _, m := range list {
		a := &AccessLog{Origin: from}
		if !c.logFilter(a, m.GetFilter()) {
			c.warn("access_log %q: filter is not supported; everything is logged", m.GetName())
			a.OnlyFlags = nil
		}
		if err := logSink(a, m); err != nil {
			c.warn("access_log %q: %v; the log is left out", m.GetName(), err)
			continue
		}
		out = append(out, a)
	}
	return out
}

// logFilter compiles a filter on response flags, the only kind that is applied.
func (c *compiler) logFilter(a *AccessLog, f *logpb.AccessLogFilter) bool {
	if f == nil {
		return true
	}
	r := f.GetResponseFlagFilter()
	if r == nil {
		return false
	}
	a.OnlyFlags = r.GetFlags()
	return len(a.OnlyFlags) > 0
}

func logSink(a *AccessLog, m *logpb.AccessLog) error {
	switch full := string(m.GetTypedConfig().MessageName()); full {
	case typeFileLog:
		var f filelogpb.FileAccessLog
		if err := decode(m.GetTypedConfig(), &f); err != nil {
			return err
		}
		return fileLog(a, &f)
	case typeOTLPLog:
		var o otlplogpb.OpenTelemetryAccessLogConfig
		if err := decode(m.GetTypedConfig(), &o); err != nil {
			return err
		}
		return otlpLog(a, &o)
	case typeStdoutLog:
		a.Path = "/dev/stdout"
		return nil
	case typeStderrLog:
		a.Path = "/dev/stderr"
		return nil
	default:
		return fmt.Errorf("type %q is not supported", full)
	}
}

//nolint:staticcheck // deprecated fields still arrive
func fileLog(a *AccessLog, f *filelogpb.FileAccessLog) error {
	if a.Path = f.GetPath(); a.Path == "" {
		return fmt.Errorf("path is empty")
	}
	switch v := f.GetAccessLogFormat().(type) {
	case *filelogpb.FileAccessLog_LogFormat:
		switch w := v.LogFormat.GetFormat().(type) {
		case *corepb.SubstitutionFormatString_TextFormat:
			a.Format = w.TextFormat
		case *corepb.SubstitutionFormatString_TextFormatSource:
			a.Format = w.TextFormatSource.GetInlineString() + string(w.TextFormatSource.GetInlineBytes())
		case *corepb.SubstitutionFormatString_JsonFormat:
			a.JSON = flatten(w.JsonFormat)
		}
	case *filelogpb.FileAccessLog_Format:
		a.Format = v.Format
	case *filelogpb.FileAccessLog_JsonFormat:
		a.JSON = flatten(v.JsonFormat)
	case *filelogpb.FileAccessLog_TypedJsonFormat:
		a.JSON = flatten(v.TypedJsonFormat)
	}
	return nil
}

// flatten turns a JSON format into its fields; nested objects get dotted names.
func flatten(s *structpb.Struct) map[string]string {
	out := map[string]string{}
	var walk func(prefix string, s *structpb.Struct, depth int)
	walk = func(prefix string, s *structpb.Struct, depth int) {
		for k, v := range s.GetFields() {
			switch w := v.GetKind().(type) {
			case *structpb.Value_StructValue:
				if depth < maxRuleDepth {
					walk(prefix+k+".", w.StructValue, depth+1)
				}
			case *structpb.Value_StringValue:
				out[prefix+k] = w.StringValue
			case *structpb.Value_NumberValue:
				out[prefix+k] = fmt.Sprint(w.NumberValue)
			case *structpb.Value_BoolValue:
				out[prefix+k] = fmt.Sprint(w.BoolValue)
			}
		}
	}
	walk("", s, 0)
	return out
}

//nolint:staticcheck // common_config is what Istio sends
func otlpLog(a *AccessLog, o *otlplogpb.OpenTelemetryAccessLogConfig) error {
	service := o.GetGrpcService()
	a.LogName = o.GetLogName()
	if cc := o.GetCommonConfig(); cc != nil {
		service, a.LogName = cc.GetGrpcService(), cc.GetLogName()
	}
	if a.Cluster, _ = grpcTarget(service); a.Cluster == "" {
		return fmt.Errorf("only envoy_grpc services are supported")
	}
	a.Format = o.GetBody().GetStringValue()
	for _, kv := range o.GetAttributes().GetValues() {
		if a.JSON == nil {
			a.JSON = map[string]string{}
		}
		a.JSON[kv.GetKey()] = kv.GetValue().GetStringValue()
	}
	return nil
}
