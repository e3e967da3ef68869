package snapshot

import (
	"fmt"
	"strings"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	hcmpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	uuidpb "github.com/envoyproxy/go-control-plane/envoy/extensions/request_id/uuid/v3"
)

// manager compiles an HTTP connection manager. Fields left out, with the reason:
// http3_protocol_options, http1_safe_max_connection_duration and the
// drain and flush timings (the codecs' own bounds hold); add_proxy_protocol…,
// proxy_status_config and statistics (telemetry only); internal_address_config
// (no address is trusted as internal); request_id_extension (UUID);
// proxy_100_continue (always passed on); via and append_x_forwarded_port would
// change requests and are refused.
func (c *compiler) manager(m *hcmpb.HttpConnectionManager, dir Direction, from Origin) (*HTTPManager, error) {
	if err := only(m, `codec_type stat_prefix rds route_config http_filters tracing
		common_http_protocol_options http1_safe_max_connection_duration http_protocol_options
		http2_protocol_options http3_protocol_options server_name server_header_transformation
		max_request_headers_kb stream_idle_timeout stream_flush_timeout request_timeout request_headers_timeout
		drain_timeout drain_timeout_jitter delayed_close_timeout access_log access_log_flush_interval
		flush_access_log_on_new_request access_log_options use_remote_address xff_num_trusted_hops
		internal_address_config generate_request_id preserve_external_request_id
		always_set_request_id_in_response forward_client_cert_details set_current_client_cert_details
		proxy_100_continue upgrade_configs normalize_path merge_slashes path_with_escaped_slashes_action
		request_id_extension stream_error_on_invalid_http_message proxy_status_config
		append_local_overload add_proxy_protocol_connection_state record_route_resolution_stats`); err != nil {
		return nil, err
	}
	h := &HTTPManager{
		StatPrefix: m.GetStatPrefix(), ServerName: m.GetServerName(),
		ServerPassThrough: m.GetServerHeaderTransformation() == hcmpb.HttpConnectionManager_PASS_THROUGH,
		UseRemoteAddress:  m.GetUseRemoteAddress().GetValue(), XFFTrustedHops: m.GetXffNumTrustedHops(),
		NormalizePath: m.GetNormalizePath().GetValue(), MergeSlashes: m.GetMergeSlashes(),
		PreserveRequestID: m.GetPreserveExternalRequestId(),
		MaxRequestHeaders: int(m.GetMaxRequestHeadersKb().GetValue()) << 10,
		StreamIdleTimeout: 5 * time.Minute, IdleTimeout: time.Hour,
	}
	if h.MaxRequestHeaders > 8<<20 {
		return nil, fmt.Errorf("max_request_headers_kb %d is above 8192", m.GetMaxRequestHeadersKb().GetValue())
	}
	var errs [7]error
	errs[0] = c.managerRoutes(h, m)
	h.Filters, errs[1] = httpFilters(m.GetHttpFilters(), dir)
	errs[2] = managerTimeouts(h, m)
	errs[3] = managerProtocol(h, m)
	errs[4] = clientCert(h, m)
	errs[5] = managerUpgrades(h, m.GetUpgradeConfigs())
	h.Tracing, errs[6] = c.tracing(m.GetTracing(), dir, from)
	if err := firstError(errs[:]...); err != nil {
		return nil, err
	}
	if x := m.GetRequestIdExtension().GetTypedConfig(); h.Tracing != nil && x != nil {
		var u uuidpb.UuidRequestIdConfig
		if err := decode(x, &u); err != nil {
			return nil, at(err, "request_id_extension")
		}
		v := u.GetUseRequestIdForTraceSampling()
		h.Tracing.IgnoreRequestID = v != nil && !v.GetValue()
	}
	for i := range h.Filters {
		if h.Filters[i].Stats {
			h.Stats = statsConfig(dir)
		}
	}
	h.AccessLogs = c.accessLogs(m.GetAccessLog(), from)
	return h, nil
}

// statsConfig tells the reporter: Istio's filter takes it from the direction.
func statsConfig(dir Direction) *StatsConfig {
	if dir == Inbound {
		return &StatsConfig{Reporter: "destination"}
	}
	return &StatsConfig{Reporter: "source"}
}

func (c *compiler) managerRoutes(h *HTTPManager, m *hcmpb.HttpConnectionManager) (err error) {
	switch r := m.GetRouteSpecifier().(type) {
	case *hcmpb.HttpConnectionManager_Rds:
		if h.RouteName = r.Rds.GetRouteConfigName(); h.RouteName == "" {
			return fmt.Errorf("rds.route_config_name is empty")
		}
		h.Routes = c.table(h.RouteName)
		return nil
	case *hcmpb.HttpConnectionManager_RouteConfig:
		h.Routes, err = routeTable(r.RouteConfig)
		return at(err, "route_config")
	}
	return fmt.Errorf("rds and route_config are both missing")
}

func managerTimeouts(h *HTTPManager, m *hcmpb.HttpConnectionManager) error {
	o := m.GetCommonHttpProtocolOptions()
	if o != nil {
		// max_headers_count: the scanner has its own bound. Underscores are
		// rejected by it in any case.
		if err := only(o, `idle_timeout max_connection_duration max_headers_count max_stream_duration
			headers_with_underscores_action max_requests_per_connection`); err != nil {
			return at(err, "common_http_protocol_options")
		}
		if d := o.GetMaxStreamDuration(); d != nil && d.AsDuration() != 0 {
			return fmt.Errorf("common_http_protocol_options.max_stream_duration is not supported")
		}
	}
	return firstError(
		into(&h.StreamIdleTimeout, m.GetStreamIdleTimeout(), "stream_idle_timeout"),
		into(&h.RequestTimeout, m.GetRequestTimeout(), "request_timeout"),
		into(&h.IdleTimeout, o.GetIdleTimeout(), "common_http_protocol_options.idle_timeout"),
	)
}

// managerProtocol compiles the codec's options and path handling.
func managerProtocol(h *HTTPManager, m *hcmpb.HttpConnectionManager) error {
	switch m.GetCodecType() {
	case hcmpb.HttpConnectionManager_AUTO:
	case hcmpb.HttpConnectionManager_HTTP1:
		h.Codec = CodecHTTP1
	case hcmpb.HttpConnectionManager_HTTP2:
		h.Codec = CodecHTTP2
	default:
		return fmt.Errorf("codec_type %v is not supported", m.GetCodecType())
	}
	if err := http2Options(&h.H2, m.GetHttp2ProtocolOptions()); err != nil {
		return err
	}
	if o := m.GetHttpProtocolOptions(); o != nil {
		// header_key_format, enable_trailers: names travel in lower case and
		// trailers always pass.
		if err := only(o, `accept_http_10 default_host_for_http_10 header_key_format enable_trailers
			allow_absolute_url override_stream_error_on_invalid_http_message`); err != nil {
			return at(err, "http_protocol_options")
		}
		if o.GetDefaultHostForHttp_10() != "" {
			return fmt.Errorf("http_protocol_options.default_host_for_http_10 is not supported")
		}
		h.AcceptHTTP10 = o.GetAcceptHttp_10()
	}
	switch m.GetPathWithEscapedSlashesAction() {
	case hcmpb.HttpConnectionManager_IMPLEMENTATION_SPECIFIC_DEFAULT, hcmpb.HttpConnectionManager_KEEP_UNCHANGED:
		h.EscapedSlashes = EscapedKeep
	case hcmpb.HttpConnectionManager_REJECT_REQUEST:
		h.EscapedSlashes = EscapedReject
	case hcmpb.HttpConnectionManager_UNESCAPE_AND_REDIRECT:
		h.EscapedSlashes = EscapedUnescapeRedirect
	case hcmpb.HttpConnectionManager_UNESCAPE_AND_FORWARD:
		h.EscapedSlashes = EscapedUnescapeForward
	default:
		return fmt.Errorf("path_with_escaped_slashes_action %v is not supported", m.GetPathWithEscapedSlashesAction())
	}
	return nil
}

func clientCert(h *HTTPManager, m *hcmpb.HttpConnectionManager) error {
	switch m.GetForwardClientCertDetails() {
	case hcmpb.HttpConnectionManager_SANITIZE:
		h.ForwardClientCert = XFCCSanitize
	case hcmpb.HttpConnectionManager_FORWARD_ONLY:
		h.ForwardClientCert = XFCCForwardOnly
	case hcmpb.HttpConnectionManager_APPEND_FORWARD:
		h.ForwardClientCert = XFCCAppendForward
	case hcmpb.HttpConnectionManager_SANITIZE_SET:
		h.ForwardClientCert = XFCCSanitizeSet
	case hcmpb.HttpConnectionManager_ALWAYS_FORWARD_ONLY:
		h.ForwardClientCert = XFCCAlwaysForwardOnly
	default:
		return fmt.Errorf("forward_client_cert_details %v is not supported", m.GetForwardClientCertDetails())
	}
	s := m.GetSetCurrentClientCertDetails()
	if s == nil {
		return nil
	}
	h.SetClientCert = SetClientCert{
		Subject: s.GetSubject().GetValue(), URI: s.GetUri(), DNS: s.GetDns(), Cert: s.GetCert(), Chain: s.GetChain(),
	}
	return at(only(s, "subject cert chain dns uri"), "set_current_client_cert_details")
}

func managerUpgrades(h *HTTPManager, list []*hcmpb.HttpConnectionManager_UpgradeConfig) error {
	for i, u := range list {
		if err := only(u, "upgrade_type enabled"); err != nil {
			return at(err, "upgrade_configs[%d]", i)
		}
		if h.Upgrades == nil {
			h.Upgrades = map[string]bool{}
		}
		h.Upgrades[strings.ToLower(u.GetUpgradeType())] = u.GetEnabled() == nil || u.GetEnabled().GetValue()
	}
	return nil
}

// grpcTarget returns the cluster and authority of an Envoy gRPC service.
func grpcTarget(g *corepb.GrpcService) (cluster, authority string) {
	return g.GetEnvoyGrpc().GetClusterName(), g.GetEnvoyGrpc().GetAuthority()
}
