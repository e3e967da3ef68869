package translate

import (
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"

	accesslogpb "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tracepb "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	filelogpb "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	celpb "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	grpclogpb "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	otellogpb "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/open_telemetry/v3"
	hcmpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	samplerspb "github.com/envoyproxy/go-control-plane/envoy/extensions/tracers/opentelemetry/samplers/v3"
	metadatapb "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	tracingpb "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typepb "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	otlpcommonpb "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshconfigpb "istio.io/api/mesh/v1alpha1"
	telemetrypb "istio.io/api/telemetry/v1alpha1"

	"lateen.dev/lateen/internal/control/mesh"
)

// textLogFormat is Istio's default access log line.
const textLogFormat = `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% ` +
	`%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" ` +
	`%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" ` +
	`"%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% ` +
	`%UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%` + "\n"

// originLog is what a proxy that knows where its configuration comes from adds
// to Istio's default line: the object, the rule and its file:line. Envoy parses
// the operator and finds no value.
const (
	originLog    = `"%DYNAMIC_METADATA(lateen:origin)%"`
	originLogKey = "lateen_origin"
)

// jsonLogFormat is Istio's default JSON access log.
var jsonLogFormat = map[string]string{
	"start_time": "%START_TIME%", "route_name": "%ROUTE_NAME%", "method": "%REQ(:METHOD)%",
	"path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%", "protocol": "%PROTOCOL%", "response_code": "%RESPONSE_CODE%",
	"response_flags": "%RESPONSE_FLAGS%", "response_code_details": "%RESPONSE_CODE_DETAILS%",
	"connection_termination_details":    "%CONNECTION_TERMINATION_DETAILS%",
	"bytes_received":                    "%BYTES_RECEIVED%",
	"bytes_sent":                        "%BYTES_SENT%",
	"duration":                          "%DURATION%",
	"upstream_service_time":             "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
	"x_forwarded_for":                   "%REQ(X-FORWARDED-FOR)%",
	"user_agent":                        "%REQ(USER-AGENT)%",
	"request_id":                        "%REQ(X-REQUEST-ID)%",
	"authority":                         "%REQ(:AUTHORITY)%",
	"upstream_host":                     "%UPSTREAM_HOST%",
	"upstream_cluster":                  "%UPSTREAM_CLUSTER_RAW%",
	"upstream_local_address":            "%UPSTREAM_LOCAL_ADDRESS%",
	"downstream_local_address":          "%DOWNSTREAM_LOCAL_ADDRESS%",
	"downstream_remote_address":         "%DOWNSTREAM_REMOTE_ADDRESS%",
	"requested_server_name":             "%REQUESTED_SERVER_NAME%",
	"upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
}

// tracing returns the tracing configuration of one side, nil when spans are
// switched off there.
func (b *builder) tracing(s side) *hcmpb.HttpConnectionManager_Tracing {
	t := b.tracingFor(s)
	if t.Disabled {
		return nil
	}
	out := &hcmpb.HttpConnectionManager_Tracing{
		ClientSampling:  &percent{Value: 100},
		RandomSampling:  &percent{Value: t.Sampling},
		OverallSampling: &percent{Value: 100},
		CustomTags:      b.customTags(t),
	}
	if t.Provider == nil || t.Provider.Hub {
		// The proxy's own endpoint: ours knows it, an Envoy has a cluster for it.
		if !b.n.lateen() && b.n.OTLPCluster != "" {
			out.Provider = b.openTelemetry(out, &tracepb.OpenTelemetryConfig{
				ServiceName: b.serviceName(), GrpcService: b.grpcService(b.n.OTLPCluster, ""),
			})
		}
		return out
	}
	otel := t.Provider.Config.GetOpentelemetry()
	if otel == nil {
		return out
	}
	if n := otel.GetMaxTagLength(); n > 0 {
		out.MaxPathTagLength = wrapperspb.UInt32(n)
	}
	host, ok := b.providerHost(otel.GetService())
	if !ok {
		return out
	}
	config := &tracepb.OpenTelemetryConfig{ServiceName: b.serviceName()}
	cluster := clusterName(uint16(otel.GetPort()), "", host)
	if h := otel.GetHttp(); h != nil {
		config.HttpService = &corepb.HttpService{HttpUri: &corepb.HttpUri{
			Uri: host + h.GetPath(), Timeout: h.GetTimeout(),
			HttpUpstreamType: &corepb.HttpUri_Cluster{Cluster: cluster},
		}}
		for _, x := range h.GetHeaders() {
			config.HttpService.RequestHeadersToAdd = append(config.HttpService.RequestHeadersToAdd, &corepb.HeaderValueOption{
				AppendAction: corepb.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
				Header:       &corepb.HeaderValue{Key: x.GetName(), Value: x.GetValue()},
			})
		}
	} else {
		config.GrpcService = b.grpcService(cluster, host)
		config.GrpcService.Timeout = otel.GetGrpc().GetTimeout()
		for _, x := range otel.GetGrpc().GetInitialMetadata() {
			config.GrpcService.InitialMetadata = append(config.GrpcService.InitialMetadata, &corepb.HeaderValue{Key: x.GetName(), Value: x.GetValue()})
		}
	}
	out.Provider = b.openTelemetry(out, config)
	return out
}

// otelSamplers begins the names of Envoy's samplers.
const otelSamplers = "envoy.tracers.opentelemetry.samplers."

// samplesByParent reports whether the node's tracer can follow the caller's
// decision and sample new traces alone, as ours does. Envoy else decides anew at
// each hop, by its connection manager and what request ids carry, and takes
// traces apart; a connection manager that says no is not overruled, so it lets
// every request through to the sampler. Istio's proxy is told what Istio tells it.
func (b *builder) samplesByParent() bool {
	return !b.n.istioFilters() && b.n.has(otelSamplers+"parent_based") && b.n.has(otelSamplers+"trace_id_ratio_based")
}

// openTelemetry makes the tracer of an Envoy; ours reads the same.
func (b *builder) openTelemetry(out *hcmpb.HttpConnectionManager_Tracing, config *tracepb.OpenTelemetryConfig) *tracepb.Tracing_Http {
	if b.samplesByParent() {
		share := uint32(math.Round(out.GetRandomSampling().GetValue() * 10_000))
		out.RandomSampling = &percent{Value: 100}
		ratio := &samplerspb.TraceIdRatioBasedSamplerConfig{
			SamplingPercentage: &typepb.FractionalPercent{Numerator: share, Denominator: typepb.FractionalPercent_MILLION},
		}
		config.Sampler = &corepb.TypedExtensionConfig{Name: otelSamplers + "parent_based", TypedConfig: pack(&samplerspb.ParentBasedSamplerConfig{
			WrappedSampler: &corepb.TypedExtensionConfig{Name: otelSamplers + "trace_id_ratio_based", TypedConfig: pack(ratio)},
		})}
	}
	return &tracepb.Tracing_Http{
		Name:       "envoy.tracers.opentelemetry",
		ConfigType: &tracepb.Tracing_Http_TypedConfig{TypedConfig: pack(config)},
	}
}

func (b *builder) tracingFor(s side) mesh.Tracing {
	var own *float64
	if v, ok := b.n.setting("tracing", "sampling").(float64); ok {
		own = &v
	}
	return b.m.TracingFor(b.n.Namespace, b.n.Labels, s.direction(), own)
}

// serviceName is the service.name of the node's spans: app.namespace.
func (b *builder) serviceName() string {
	if b.n.ServiceCluster != "" {
		return b.n.ServiceCluster
	}
	name, _ := mesh.CanonicalService(b.n.Labels, b.n.WorkloadName)
	return name + "." + b.n.Namespace
}

func (b *builder) grpcService(cluster, authority string) *corepb.GrpcService {
	return &corepb.GrpcService{TargetSpecifier: &corepb.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corepb.GrpcService_EnvoyGrpc{
		ClusterName: cluster, Authority: authority,
	}}}
}

// providerHost finds the service of a provider, written "[namespace/]host".
func (b *builder) providerHost(service string) (string, bool) {
	ns, host, ok := strings.Cut(service, "/")
	if !ok {
		ns, host = b.n.Namespace, service
	}
	if _, found := b.m.ServiceByHost(host, ns); found || b.m.HasHost(host) {
		return host, true
	}
	full := b.m.ResolveHost(host, ns)
	return full, b.m.HasHost(full)
}

// dryRunTags tell on spans what dry-run policies would have done.
var dryRunTags = []struct{ tag, key string }{
	{"istio.authorization.dry_run.allow_policy.name", "istio_dry_run_allow_shadow_effective_policy_id"},
	{"istio.authorization.dry_run.allow_policy.result", "istio_dry_run_allow_shadow_engine_result"},
	{"istio.authorization.dry_run.deny_policy.name", "istio_dry_run_deny_shadow_effective_policy_id"},
	{"istio.authorization.dry_run.deny_policy.result", "istio_dry_run_deny_shadow_engine_result"},
}

// customTags returns Istio's own tags and those that Telemetry adds, by name.
func (b *builder) customTags(t mesh.Tracing) []*tracingpb.CustomTag {
	tags := map[string]*tracingpb.CustomTag{}
	for _, d := range dryRunTags {
		tags[d.tag] = &tracingpb.CustomTag{Tag: d.tag, Type: &tracingpb.CustomTag_Metadata_{Metadata: &tracingpb.CustomTag_Metadata{
			Kind: &metadatapb.MetadataKind{Kind: &metadatapb.MetadataKind_Request_{Request: &metadatapb.MetadataKind_Request{}}},
			MetadataKey: &metadatapb.MetadataKey{Key: "envoy.filters.http.rbac", Path: []*metadatapb.MetadataKey_PathSegment{
				{Segment: &metadatapb.MetadataKey_PathSegment_Key{Key: d.key}},
			}},
		}}}
	}
	if t.IstioTags {
		name, rev := mesh.CanonicalService(b.n.Labels, b.n.WorkloadName)
		cluster, meshID := b.n.ClusterID, b.n.MeshID
		if cluster == "" {
			cluster = b.m.ClusterID
		}
		if meshID == "" {
			meshID = b.m.TrustDomain
		}
		for tag, v := range map[string]string{
			"istio.canonical_revision": rev, "istio.canonical_service": name,
			"istio.cluster_id": cluster, "istio.mesh_id": meshID, "istio.namespace": b.n.Namespace,
		} {
			tags[tag] = literalTag(tag, v)
		}
	}
	for tag, v := range t.Tags {
		if c := customTag(tag, v); c != nil {
			tags[tag] = c
		}
	}
	var out []*tracingpb.CustomTag
	for _, k := range sortedKeys(tags) {
		out = append(out, tags[k])
	}
	return out
}

func literalTag(tag, value string) *tracingpb.CustomTag {
	return &tracingpb.CustomTag{Tag: tag, Type: &tracingpb.CustomTag_Literal_{Literal: &tracingpb.CustomTag_Literal{Value: value}}}
}

func customTag(tag string, v *telemetrypb.Tracing_CustomTag) *tracingpb.CustomTag {
	switch {
	case v.GetLiteral() != nil:
		return literalTag(tag, v.GetLiteral().GetValue())
	case v.GetEnvironment() != nil:
		return &tracingpb.CustomTag{Tag: tag, Type: &tracingpb.CustomTag_Environment_{Environment: &tracingpb.CustomTag_Environment{
			Name: v.GetEnvironment().GetName(), DefaultValue: v.GetEnvironment().GetDefaultValue(),
		}}}
	case v.GetHeader() != nil:
		return &tracingpb.CustomTag{Tag: tag, Type: &tracingpb.CustomTag_RequestHeader{RequestHeader: &tracingpb.CustomTag_Header{
			Name: v.GetHeader().GetName(), DefaultValue: v.GetHeader().GetDefaultValue(),
		}}}
	case v.GetFormatter() != nil:
		return &tracingpb.CustomTag{Tag: tag, Type: &tracingpb.CustomTag_Value{Value: v.GetFormatter().GetValue()}}
	}
	return nil
}

// accessLogs returns the access logs of one side.
func (b *builder) accessLogs(s side) []*accesslogpb.AccessLog {
	var out []*accesslogpb.AccessLog
	for _, l := range b.m.AccessLogsFor(b.n.Namespace, b.n.Labels, s.direction()) {
		if a := b.accessLog(l); a != nil {
			a.Filter = b.logFilter(l.Filter)
			out = append(out, a)
		}
	}
	return out
}

// listenerLogs are the same logs on the capturing listeners, for connections
// that no chain took.
func (b *builder) listenerLogs(s side) []*accesslogpb.AccessLog {
	out := b.accessLogs(s)
	for _, a := range out {
		noRoute := &accesslogpb.AccessLogFilter{FilterSpecifier: &accesslogpb.AccessLogFilter_ResponseFlagFilter{
			ResponseFlagFilter: &accesslogpb.ResponseFlagFilter{Flags: []string{"NR"}},
		}}
		if a.GetFilter() != nil {
			noRoute = &accesslogpb.AccessLogFilter{FilterSpecifier: &accesslogpb.AccessLogFilter_AndFilter{
				AndFilter: &accesslogpb.AndFilter{Filters: []*accesslogpb.AccessLogFilter{noRoute, a.GetFilter()}},
			}}
		}
		a.Filter = noRoute
	}
	return out
}

// logFilter makes the filter of a CEL expression. A node that has no CEL logs
// everything rather than nothing.
func (b *builder) logFilter(expression string) *accesslogpb.AccessLogFilter {
	if expression == "" || b.n.lateen() && !b.n.Caps["cel"] {
		return nil
	}
	return &accesslogpb.AccessLogFilter{FilterSpecifier: &accesslogpb.AccessLogFilter_ExtensionFilter{
		ExtensionFilter: &accesslogpb.ExtensionFilter{
			Name:       "envoy.access_loggers.extension_filters.cel",
			ConfigType: &accesslogpb.ExtensionFilter_TypedConfig{TypedConfig: pack(&celpb.ExpressionFilter{Expression: expression})},
		},
	}}
}

func namedLog(name string, m proto.Message) *accesslogpb.AccessLog {
	return &accesslogpb.AccessLog{Name: name, ConfigType: &accesslogpb.AccessLog_TypedConfig{TypedConfig: pack(m)}}
}

// accessLog makes one access log; nil for providers that cannot log, and for
// the built-in hub, to which our proxy logs without being told.
func (b *builder) accessLog(l mesh.AccessLog) *accesslogpb.AccessLog {
	if l.Provider.Config == nil {
		if !l.Provider.Hub || b.n.lateen() || b.n.OTLPCluster == "" {
			return nil
		}
		return b.otelLog(b.grpcService(b.n.OTLPCluster, ""), nil)
	}
	if f := l.Provider.Config.GetEnvoyFileAccessLog(); f != nil {
		return namedLog("envoy.access_loggers.file", b.fileLog(f))
	}
	o := l.Provider.Config.GetEnvoyOtelAls()
	if o == nil {
		return nil
	}
	host, ok := b.providerHost(o.GetService())
	if !ok {
		return nil
	}
	return b.otelLog(b.grpcService(clusterName(uint16(o.GetPort()), "", host), host), o)
}

// otelLog makes an access log over OTLP; o is nil for the built-in hub.
func (b *builder) otelLog(to *corepb.GrpcService, o *meshconfigpb.MeshConfig_ExtensionProvider_EnvoyOpenTelemetryLogProvider) *accesslogpb.AccessLog {
	name := o.GetLogName()
	if name == "" {
		name = "otel_envoy_accesslog"
	}
	body := o.GetLogFormat().GetText()
	if body == "" {
		body = b.defaultTextLog()
	}
	return namedLog("envoy.access_loggers.open_telemetry", &otellogpb.OpenTelemetryAccessLogConfig{
		CommonConfig: &grpclogpb.CommonGrpcAccessLogConfig{
			LogName: name, TransportApiVersion: corepb.ApiVersion_V3, GrpcService: to,
			FilterStateObjectsToLog: slices.Clone(peerObjects),
		},
		DisableBuiltinLabels: true,
		Body:                 &otlpcommonpb.AnyValue{Value: &otlpcommonpb.AnyValue_StringValue{StringValue: b.known(body)}},
		Attributes:           b.logAttributes(o.GetLogFormat().GetLabels()),
	})
}

// ownOperators are the words of access-log formats that only our proxy knows.
var ownOperators = regexp.MustCompile(`%LATEEN_[A-Z_]+(\([^)]*\))?(:[0-9]+)?%`)

// known replaces what the node does not know in a format by what an absent value
// looks like; an Envoy would refuse the listener.
func (b *builder) known(format string) string {
	if b.n.lateen() {
		return format
	}
	return ownOperators.ReplaceAllString(format, "-")
}

// knownFields is known for the text in a JSON format.
func (b *builder) knownFields(v *structpb.Struct) *structpb.Struct {
	if b.n.lateen() {
		return v
	}
	out := &structpb.Struct{Fields: make(map[string]*structpb.Value, len(v.GetFields()))}
	for k, f := range v.GetFields() {
		out.Fields[k] = b.knownValue(f)
	}
	return out
}

func (b *builder) knownValue(v *structpb.Value) *structpb.Value {
	switch {
	case v.GetStructValue() != nil:
		return structpb.NewStructValue(b.knownFields(v.GetStructValue()))
	case v.GetListValue() != nil:
		out := &structpb.ListValue{}
		for _, e := range v.GetListValue().GetValues() {
			out.Values = append(out.Values, b.knownValue(e))
		}
		return structpb.NewListValue(out)
	case v.GetStringValue() != "":
		return structpb.NewStringValue(b.known(v.GetStringValue()))
	}
	return v
}

var peerObjects = []string{
	"upstream_peer", "downstream_peer", "wasm.upstream_peer", "wasm.upstream_peer_id",
	"wasm.downstream_peer", "wasm.downstream_peer_id",
}

func (b *builder) logAttributes(labels *structpb.Struct) *otlpcommonpb.KeyValueList {
	if labels == nil {
		return nil
	}
	out := &otlpcommonpb.KeyValueList{}
	for _, k := range sortedKeys(labels.GetFields()) {
		out.Values = append(out.Values, &otlpcommonpb.KeyValue{Key: k, Value: &otlpcommonpb.AnyValue{
			Value: &otlpcommonpb.AnyValue_StringValue{StringValue: b.known(labels.GetFields()[k].GetStringValue())},
		}})
	}
	return out
}

func (b *builder) fileLog(f *meshconfigpb.MeshConfig_ExtensionProvider_EnvoyFileAccessLogProvider) *filelogpb.FileAccessLog {
	out := &filelogpb.FileAccessLog{Path: f.GetPath()}
	if out.Path == "" {
		out.Path = "/dev/stdout"
	}
	format := f.GetLogFormat()
	switch {
	case format.GetLabels() != nil:
		out.AccessLogFormat = jsonFormat(b.knownFields(format.GetLabels()))
	case format.GetText() != "":
		out.AccessLogFormat = textFormat(b.known(format.GetText()))
	case b.m.Config.GetAccessLogEncoding() == meshconfigpb.MeshConfig_JSON:
		out.AccessLogFormat = jsonFormat(b.knownFields(b.meshJSONFormat()))
	case b.m.Config.GetAccessLogFormat() != "":
		out.AccessLogFormat = textFormat(b.known(b.m.Config.GetAccessLogFormat()))
	default:
		out.AccessLogFormat = textFormat(b.defaultTextLog())
	}
	return out
}

// defaultTextLog is the line of those who ask for no format of their own.
func (b *builder) defaultTextLog() string {
	if !b.n.Caps["origins"] {
		return textLogFormat
	}
	return strings.TrimSuffix(textLogFormat, "\n") + " " + originLog + "\n"
}

func (b *builder) meshJSONFormat() *structpb.Struct {
	if f := b.m.Config.GetAccessLogFormat(); f != "" {
		var s structpb.Struct
		if err := s.UnmarshalJSON([]byte(f)); err == nil {
			return &s
		}
	}
	fields := map[string]*structpb.Value{}
	for k, v := range jsonLogFormat {
		fields[k] = structpb.NewStringValue(v)
	}
	if b.n.Caps["origins"] {
		fields[originLogKey] = structpb.NewStringValue(strings.Trim(originLog, `"`))
	}
	return &structpb.Struct{Fields: fields}
}

func jsonFormat(s *structpb.Struct) *filelogpb.FileAccessLog_LogFormat {
	return &filelogpb.FileAccessLog_LogFormat{LogFormat: &corepb.SubstitutionFormatString{
		Format:            &corepb.SubstitutionFormatString_JsonFormat{JsonFormat: s},
		JsonFormatOptions: &corepb.JsonFormatOptions{},
	}}
}

func textFormat(text string) *filelogpb.FileAccessLog_LogFormat {
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return &filelogpb.FileAccessLog_LogFormat{LogFormat: &corepb.SubstitutionFormatString{
		Format: &corepb.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corepb.DataSource{
			Specifier: &corepb.DataSource_InlineString{InlineString: text},
		}},
	}}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
