package translate

import (
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routepb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	uuidpb "github.com/envoyproxy/go-control-plane/envoy/extensions/request_id/uuid/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshconfigpb "istio.io/api/mesh/v1alpha1"
)

// manager makes an HTTP connection manager as a network filter. Routes come by
// RDS under routeName, or inline. alpn are filters in the place of istio.alpn.
func (b *builder) manager(s side, statPrefix, routeName string, inline *routepb.RouteConfiguration, alpn ...*hcmpb.HttpFilter) *listenerpb.Filter {
	h := &hcmpb.HttpConnectionManager{
		StatPrefix:                   statPrefix + ";",
		HttpFilters:                  b.httpFilters(s, alpn),
		Tracing:                      b.tracing(s),
		AccessLog:                    b.accessLogs(s),
		UseRemoteAddress:             wrapperspb.Bool(s == gatewaySide),
		StreamIdleTimeout:            durationpb.New(0),
		NormalizePath:                wrapperspb.Bool(true),
		PathWithEscapedSlashesAction: hcmpb.HttpConnectionManager_KEEP_UNCHANGED,
		Proxy_100Continue:            true,
		UpgradeConfigs:               []*hcmpb.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		RequestIdExtension: &hcmpb.RequestIDExtension{TypedConfig: pack(&uuidpb.UuidRequestIdConfig{
			UseRequestIdForTraceSampling: wrapperspb.Bool(b.tracingFor(s).UseRequestID && !b.samplesByParent()),
		})},
	}
	b.setNormalization(h)
	if inline != nil {
		h.RouteSpecifier = &hcmpb.HttpConnectionManager_RouteConfig{RouteConfig: inline}
	} else {
		h.RouteSpecifier = &hcmpb.HttpConnectionManager_Rds{Rds: &hcmpb.Rds{ConfigSource: adsSource(), RouteConfigName: routeName}}
	}
	switch s {
	case sidecarInbound:
		h.ServerName = "istio-envoy"
		h.ForwardClientCertDetails = hcmpb.HttpConnectionManager_APPEND_FORWARD
		h.SetCurrentClientCertDetails = &hcmpb.HttpConnectionManager_SetCurrentClientCertDetails{
			Subject: wrapperspb.Bool(true), Uri: true, Dns: true,
		}
	case gatewaySide:
		h.ServerName = "istio-envoy"
		h.HttpProtocolOptions = &corepb.Http1ProtocolOptions{}
		b.setTopology(h)
		h.SetCurrentClientCertDetails = &hcmpb.HttpConnectionManager_SetCurrentClientCertDetails{
			Subject: wrapperspb.Bool(true), Cert: true, Uri: true, Dns: true,
		}
	}
	if b.n.HTTP10 || s == gatewaySide && b.n.HTTP10 {
		h.HttpProtocolOptions = &corepb.Http1ProtocolOptions{AcceptHttp_10: true}
	}
	return networkFilter("envoy.filters.network.http_connection_manager", h)
}

// setNormalization applies the mesh's pathNormalization.
func (b *builder) setNormalization(h *hcmpb.HttpConnectionManager) {
	switch b.m.Config.GetPathNormalization().GetNormalization() {
	case meshconfigpb.MeshConfig_ProxyPathNormalization_NONE:
		h.NormalizePath = wrapperspb.Bool(false)
	case meshconfigpb.MeshConfig_ProxyPathNormalization_MERGE_SLASHES:
		h.MergeSlashes = true
	case meshconfigpb.MeshConfig_ProxyPathNormalization_DECODE_AND_MERGE_SLASHES:
		h.MergeSlashes = true
		h.PathWithEscapedSlashesAction = hcmpb.HttpConnectionManager_UNESCAPE_AND_FORWARD
	}
}

// setTopology applies gatewayTopology of the proxy configuration: how many
// trusted proxies stand in front, and what becomes of the client certificate
// header.
func (b *builder) setTopology(h *hcmpb.HttpConnectionManager) {
	h.ForwardClientCertDetails = hcmpb.HttpConnectionManager_SANITIZE_SET
	topology := b.m.Config.GetDefaultConfig().GetGatewayTopology()
	hops := topology.GetNumTrustedProxies()
	details := topology.GetForwardClientCertDetails().String()
	if v, ok := b.n.setting("gatewayTopology", "numTrustedProxies").(float64); ok && v >= 0 {
		hops = uint32(v)
	}
	if v, ok := b.n.setting("gatewayTopology", "forwardClientCertDetails").(string); ok {
		details = v
	}
	h.XffNumTrustedHops = hops
	if v, ok := hcmpb.HttpConnectionManager_ForwardClientCertDetails_value[details]; ok && details != "UNDEFINED" {
		h.ForwardClientCertDetails = hcmpb.HttpConnectionManager_ForwardClientCertDetails(v)
	}
}
