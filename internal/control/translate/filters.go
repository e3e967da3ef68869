package translate

import (
	xdsudpapb "github.com/cncf/xds/go/udpa/type/v1"
	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	corspb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	grpcstatspb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_stats/v3"
	routerpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcppb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	alpnpb "istio.io/api/envoy/config/filter/http/alpn/v2alpha1"
	statspb "istio.io/api/envoy/extensions/stats"
	telemetrypb "istio.io/api/telemetry/v1alpha1"

	"lateen.dev/lateen/internal/control/mesh"
)

// side tells which part of which proxy a listener belongs to.
type side uint8

const (
	sidecarOutbound side = iota
	sidecarInbound
	gatewaySide
)

func (s side) direction() mesh.Direction {
	if s == sidecarInbound {
		return mesh.Server
	}
	return mesh.Client
}

// typedStruct carries the configuration of an extension that has no protocol
// buffer of its own here.
func typedStruct(url string, value map[string]any) proto.Message {
	s, err := structpb.NewStruct(value)
	if err != nil {
		panic("translate: " + url + ": " + err.Error())
	}
	return &xdsudpapb.TypedStruct{TypeUrl: url, Value: s}
}

// tcpMetadataExchange is the filter by which Istio's proxies tell each other
// who they are on TCP connections.
func tcpMetadataExchange() proto.Message {
	return typedStruct("type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange",
		map[string]any{"enable_discovery": true, "protocol": "istio-peer-exchange"})
}

func (b *builder) clusterFilters() []*clusterpb.Filter {
	if !b.n.tcpExchange() {
		return nil
	}
	return []*clusterpb.Filter{{Name: "istio.metadata_exchange", TypedConfig: pack(tcpMetadataExchange())}}
}

func httpFilter(name string, m proto.Message) *hcmpb.HttpFilter {
	return &hcmpb.HttpFilter{Name: name, ConfigType: &hcmpb.HttpFilter_TypedConfig{TypedConfig: pack(m)}}
}

func networkFilter(name string, m proto.Message) *listenerpb.Filter {
	return &listenerpb.Filter{Name: name, ConfigType: &listenerpb.Filter_TypedConfig{TypedConfig: pack(m)}}
}

// httpFilters returns the HTTP filters of a connection manager in Istio's
// order, with alpn in the place of istio.alpn.
func (b *builder) httpFilters(s side, alpn []*hcmpb.HttpFilter) []*hcmpb.HttpFilter {
	var out []*hcmpb.HttpFilter
	if b.n.istioFilters() {
		out = append(out, httpFilter("istio.metadata_exchange", peerMetadata(s)))
	}
	if s != sidecarOutbound {
		out = append(out, b.authorizationHTTP()...)
	}
	out = append(out, httpFilter("envoy.filters.http.grpc_stats", &grpcstatspb.FilterConfig{
		EmitFilterState:        true,
		PerMethodStatSpecifier: &grpcstatspb.FilterConfig_StatsForAllMethods{StatsForAllMethods: wrapperspb.Bool(false)},
	}))
	if s != sidecarInbound && b.n.istioFilters() {
		out = append(out, httpFilter("istio.alpn", alpnOverride()))
	}
	out = append(out, alpn...)
	out = append(out,
		httpFilter("envoy.filters.http.fault", &faultpb.HTTPFault{}),
		httpFilter("envoy.filters.http.cors", &corspb.Cors{}),
	)
	if stats := b.stats(s); stats != nil {
		out = append(out, httpFilter("istio.stats", stats))
	}
	return append(out, httpFilter("envoy.filters.http.router", &routerpb.Router{}))
}

// peerMetadata tells who is asked and told about peers on the HTTP level.
func peerMetadata(s side) proto.Message {
	headers := map[string]any{"istio_headers": map[string]any{}}
	discovery := []any{headers, map[string]any{"workload_discovery": map[string]any{}}}
	value := map[string]any{"upstream_discovery": discovery, "upstream_propagation": []any{headers}}
	if s == sidecarInbound {
		value = map[string]any{"downstream_discovery": discovery, "downstream_propagation": []any{headers}}
	}
	return typedStruct("type.googleapis.com/io.istio.http.peer_metadata.Config", value)
}

// alpnOverride lets HTTP connections to mesh peers say which HTTP they speak.
func alpnOverride() proto.Message {
	return &alpnpb.FilterConfig{AlpnOverride: []*alpnpb.FilterConfig_AlpnOverride{
		{UpstreamProtocol: alpnpb.FilterConfig_HTTP10, AlpnOverride: []string{"istio-http/1.0", "istio", "http/1.0"}},
		{UpstreamProtocol: alpnpb.FilterConfig_HTTP11, AlpnOverride: []string{"istio-http/1.1", "istio", "http/1.1"}},
		{UpstreamProtocol: alpnpb.FilterConfig_HTTP2, AlpnOverride: []string{"istio-h2", "istio", "h2"}},
	}}
}

// istioMetricNames are the metrics that Telemetry can select, without prefix.
var istioMetricNames = map[telemetrypb.MetricSelector_IstioMetric][]string{
	telemetrypb.MetricSelector_REQUEST_COUNT:          {"requests_total"},
	telemetrypb.MetricSelector_REQUEST_DURATION:       {"request_duration_milliseconds"},
	telemetrypb.MetricSelector_REQUEST_SIZE:           {"request_bytes"},
	telemetrypb.MetricSelector_RESPONSE_SIZE:          {"response_bytes"},
	telemetrypb.MetricSelector_TCP_OPENED_CONNECTIONS: {"tcp_connections_opened_total"},
	telemetrypb.MetricSelector_TCP_CLOSED_CONNECTIONS: {"tcp_connections_closed_total"},
	telemetrypb.MetricSelector_TCP_SENT_BYTES:         {"tcp_sent_bytes_total"},
	telemetrypb.MetricSelector_TCP_RECEIVED_BYTES:     {"tcp_received_bytes_total"},
	telemetrypb.MetricSelector_GRPC_REQUEST_MESSAGES:  {"request_messages_total"},
	telemetrypb.MetricSelector_GRPC_RESPONSE_MESSAGES: {"response_messages_total"},
	telemetrypb.MetricSelector_ALL_METRICS: {
		"request_bytes", "request_duration_milliseconds", "request_messages_total", "requests_total",
		"response_bytes", "response_messages_total", "tcp_connections_closed_total", "tcp_connections_opened_total",
		"tcp_received_bytes_total", "tcp_sent_bytes_total",
	},
}

// stats returns the configuration of the metrics filter of one side, nil when
// the node has none or no metrics provider is configured.
func (b *builder) stats(s side) *statspb.PluginConfig {
	metrics := b.m.MetricsFor(b.n.Namespace, b.n.Labels, s.direction())
	if !metrics.Enabled || !b.n.istioFilters() {
		return nil
	}
	out := &statspb.PluginConfig{DisableHostHeaderFallback: s != sidecarOutbound}
	byName := map[string]*statspb.MetricConfig{}
	for _, m := range metrics.Objects {
		if m.GetReportingInterval() != nil {
			out.TcpReportingDuration = m.GetReportingInterval()
		}
		for _, o := range m.GetOverrides() {
			mode := o.GetMatch().GetMode()
			if mode == telemetrypb.WorkloadMode_CLIENT && s == sidecarInbound || mode == telemetrypb.WorkloadMode_SERVER && s != sidecarInbound {
				continue
			}
			names := istioMetricNames[o.GetMatch().GetMetric()]
			if c := o.GetMatch().GetCustomMetric(); c != "" {
				names = []string{c}
			}
			for _, n := range names {
				c := byName[n]
				if c == nil {
					c = &statspb.MetricConfig{Name: n}
					byName[n] = c
					out.Metrics = append(out.Metrics, c)
				}
				applyOverride(c, o)
			}
		}
	}
	return out
}

func applyOverride(c *statspb.MetricConfig, o *telemetrypb.MetricsOverrides) {
	if o.GetDisabled() != nil {
		c.Drop = o.GetDisabled().GetValue()
	}
	for _, tag := range sortedKeys(o.GetTagOverrides()) {
		t := o.GetTagOverrides()[tag]
		if t.GetOperation() == telemetrypb.MetricsOverrides_TagOverride_REMOVE {
			c.TagsToRemove = append(c.TagsToRemove, tag)
			continue
		}
		if c.Dimensions == nil {
			c.Dimensions = map[string]string{}
		}
		c.Dimensions[tag] = t.GetValue()
	}
}

// tcpFilters returns the network filters of a TCP chain: the given proxy after
// metadata exchange, authorization and metrics.
func (b *builder) tcpFilters(s side, proxy *tcppb.TcpProxy) []*listenerpb.Filter {
	var out []*listenerpb.Filter
	if s == sidecarInbound {
		if b.n.tcpExchange() {
			out = append(out, networkFilter("istio.metadata_exchange", tcpMetadataExchange()))
		}
		if proxy.GetCluster() != blackHoleCluster {
			out = append(out, b.authorizationTCP()...)
		}
	}
	if stats := b.stats(s); stats != nil {
		out = append(out, networkFilter("istio.stats", stats))
	}
	return append(out, networkFilter("envoy.filters.network.tcp_proxy", proxy))
}

// tcpBlackHole closes connections that reach a capturing listener directly.
func (b *builder) tcpBlackHole() *tcppb.TcpProxy {
	return &tcppb.TcpProxy{StatPrefix: blackHoleCluster, ClusterSpecifier: &tcppb.TcpProxy_Cluster{Cluster: blackHoleCluster}}
}

// tcpTo makes a TCP proxy to one cluster.
func (b *builder) tcpTo(cluster string, s side) *tcppb.TcpProxy {
	p := &tcppb.TcpProxy{StatPrefix: cluster, ClusterSpecifier: &tcppb.TcpProxy_Cluster{Cluster: cluster}}
	p.AccessLog = b.accessLogs(s)
	return p
}

func metadataFor(config string) *corepb.Metadata {
	return &corepb.Metadata{FilterMetadata: map[string]*structpb.Struct{"istio": {Fields: map[string]*structpb.Value{
		"config": structpb.NewStringValue(config),
	}}}}
}
