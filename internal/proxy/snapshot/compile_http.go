package snapshot

import (
	"fmt"
	"slices"
	"time"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httppb "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"lateen.dev/lateen/internal/proxy/message"
)

const httpOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// clusterHTTP compiles HTTP protocol options, old and new form.
//
//nolint:staticcheck // deprecated fields still arrive
func clusterHTTP(c *Cluster, m *clusterpb.Cluster) error {
	if o := m.GetHttp2ProtocolOptions(); o != nil {
		c.HTTP = UpstreamHTTP2
		if err := http2Options(&c.H2, o); err != nil {
			return err
		}
	}
	if m.GetProtocolSelection() == clusterpb.Cluster_USE_DOWNSTREAM_PROTOCOL {
		c.HTTP = UpstreamAsDownstream
	}
	err := firstError(
		http1Options(m.GetHttpProtocolOptions()),
		commonHTTP(c, m.GetCommonHttpProtocolOptions()),
		upstreamHTTP(c, m.GetUpstreamHttpProtocolOptions()),
	)
	for name, a := range m.GetTypedExtensionProtocolOptions() {
		if err != nil {
			break
		}
		if name != httpOptions {
			return fmt.Errorf("typed_extension_protocol_options[%q] is not supported", name)
		}
		var o httppb.HttpProtocolOptions
		if err = decode(a, &o); err == nil {
			err = protocolOptions(c, &o)
		}
		err = at(err, "typed_extension_protocol_options[%q]", name)
	}
	return err
}

func protocolOptions(c *Cluster, o *httppb.HttpProtocolOptions) error {
	if err := only(o, `common_http_protocol_options upstream_http_protocol_options explicit_http_config
		use_downstream_protocol_config auto_config`); err != nil {
		return err
	}
	if err := upstreamVersion(c, o); err != nil {
		return err
	}
	return firstError(
		commonHTTP(c, o.GetCommonHttpProtocolOptions()),
		upstreamHTTP(c, o.GetUpstreamHttpProtocolOptions()),
	)
}

// upstreamVersion compiles which version of HTTP is spoken. HTTP/3 is refused
// wherever it is asked for.
func upstreamVersion(c *Cluster, o *httppb.HttpProtocolOptions) error {
	switch v := o.GetUpstreamProtocolOptions().(type) {
	case nil:
		return nil
	case *httppb.HttpProtocolOptions_ExplicitHttpConfig_:
		e := v.ExplicitHttpConfig
		if err := only(e, "http_protocol_options http2_protocol_options"); err != nil {
			return at(err, "explicit_http_config")
		}
		if e.GetProtocolConfig() == nil {
			return fmt.Errorf("explicit_http_config says no protocol")
		}
		c.HTTP = UpstreamHTTP1
		if e.GetHttp2ProtocolOptions() != nil {
			c.HTTP = UpstreamHTTP2
		}
		return at(firstError(http1Options(e.GetHttpProtocolOptions()), http2Options(&c.H2, e.GetHttp2ProtocolOptions())),
			"explicit_http_config")
	case *httppb.HttpProtocolOptions_UseDownstreamProtocolConfig:
		d := v.UseDownstreamProtocolConfig
		c.HTTP = UpstreamAsDownstream
		return at(firstError(only(d, "http_protocol_options http2_protocol_options"),
			http1Options(d.GetHttpProtocolOptions()), http2Options(&c.H2, d.GetHttp2ProtocolOptions())),
			"use_downstream_protocol_config")
	case *httppb.HttpProtocolOptions_AutoConfig:
		d := v.AutoConfig
		c.HTTP = UpstreamByALPN
		if !slices.ContainsFunc(c.Transports, func(t TransportMatch) bool { return t.TLS != nil }) {
			return fmt.Errorf("auto_config goes by ALPN and the cluster has no TLS")
		}
		return at(firstError(only(d, "http_protocol_options http2_protocol_options"),
			http1Options(d.GetHttpProtocolOptions()), http2Options(&c.H2, d.GetHttp2ProtocolOptions())),
			"auto_config")
	}
	return fmt.Errorf("upstream_protocol_options: %T is not supported", o.GetUpstreamProtocolOptions())
}

// http1Options takes what changes nothing for an upstream: names are sent in
// lower case, trailers always pass.
func http1Options(o *corepb.Http1ProtocolOptions) error {
	if o == nil {
		return nil
	}
	return at(only(o, `header_key_format enable_trailers allow_chunked_length accept_http_10
		override_stream_error_on_invalid_http_message`), "http_protocol_options")
}

// http2Options compiles the options of HTTP/2, of either side. Bounds on frames
// that are queued or come in floods are the codec's own.
//
//nolint:staticcheck // deprecated fields still arrive
func http2Options(out *HTTP2Options, o *corepb.Http2ProtocolOptions) error {
	if o == nil {
		return nil
	}
	const at2 = "http2_protocol_options"
	if err := only(o, `hpack_table_size max_concurrent_streams initial_stream_window_size
		initial_connection_window_size allow_connect max_outbound_frames max_outbound_control_frames
		max_consecutive_inbound_frames_with_empty_payload max_inbound_priority_frames_per_stream
		max_inbound_window_update_frames_per_data_frame_sent stream_error_on_invalid_http_messaging
		override_stream_error_on_invalid_http_message connection_keepalive use_oghttp2_codec`); err != nil {
		return at(err, at2)
	}
	for _, f := range []struct {
		name        string
		v           *wrapperspb.UInt32Value
		least, most uint32
		out         *uint32
	}{
		{"hpack_table_size", o.GetHpackTableSize(), 0, 1 << 16, &out.HeaderTableSize},
		{"max_concurrent_streams", o.GetMaxConcurrentStreams(), 1, 1<<31 - 1, &out.MaxConcurrentStreams},
		{"initial_stream_window_size", o.GetInitialStreamWindowSize(), 65535, 1<<31 - 1, &out.StreamWindow},
		{"initial_connection_window_size", o.GetInitialConnectionWindowSize(), 65535, 1<<31 - 1, &out.ConnectionWindow},
	} {
		switch v := f.v.GetValue(); {
		case f.v == nil:
		case v < f.least || v > f.most:
			return fmt.Errorf("%s.%s %d is not between %d and %d", at2, f.name, v, f.least, f.most)
		default:
			*f.out = v
		}
	}
	k := o.GetConnectionKeepalive()
	if k == nil {
		return nil
	}
	// interval_jitter and connection_idle_interval only spread PINGs in time.
	err := firstError(
		only(k, "interval timeout interval_jitter connection_idle_interval"),
		into(&out.KeepaliveInterval, k.GetInterval(), "interval"),
		into(&out.KeepaliveTimeout, k.GetTimeout(), "timeout"),
	)
	if err == nil && out.KeepaliveInterval > 0 && (out.KeepaliveInterval < time.Millisecond || out.KeepaliveTimeout < time.Millisecond) {
		err = fmt.Errorf("interval %v, timeout %v: at least 1ms", out.KeepaliveInterval, out.KeepaliveTimeout)
	}
	return at(err, at2+".connection_keepalive")
}

func commonHTTP(c *Cluster, o *corepb.HttpProtocolOptions) error {
	if o == nil {
		return nil
	}
	if err := only(o, `idle_timeout max_connection_duration max_headers_count max_requests_per_connection
		max_response_headers_kb max_stream_duration headers_with_underscores_action`); err != nil {
		return at(err, "common_http_protocol_options")
	}
	if n := o.GetMaxRequestsPerConnection(); n != nil {
		c.MaxRequestsPerConn = n.GetValue()
	}
	if d := o.GetMaxStreamDuration(); d != nil && d.AsDuration() != 0 {
		return fmt.Errorf("common_http_protocol_options.max_stream_duration is not supported")
	}
	return firstError(
		into(&c.IdleTimeout, o.GetIdleTimeout(), "idle_timeout"),
		into(&c.MaxConnectionDuration, o.GetMaxConnectionDuration(), "max_connection_duration"),
	)
}

func upstreamHTTP(c *Cluster, o *corepb.UpstreamHttpProtocolOptions) error {
	if o == nil {
		return nil
	}
	if err := only(o, "auto_sni auto_san_validation"); err != nil {
		return at(err, "upstream_http_protocol_options")
	}
	for i := range c.Transports {
		if t := c.Transports[i].TLS; t != nil && !t.Mesh {
			t.AutoSNI, t.AutoSANValidation = o.GetAutoSni(), o.GetAutoSanValidation()
		}
	}
	return nil
}

// meshALPN are the protocols of mesh peers; those of HTTP/2 end in "h2".
var meshALPN = []string{
	"istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2", message.ALPNTrunk,
}

// spokenALPN refuses an HTTP chain that negotiates what its codecs do not speak.
func spokenALPN(f *FilterChain) error {
	if f.HTTP == nil || f.TLS == nil {
		return nil
	}
	for _, p := range f.TLS.ALPN {
		h2 := p == "h2" || p == "istio-h2" || p == message.ALPNTrunk
		switch {
		case p != "h2" && p != "http/1.1" && p != "http/1.0" && !slices.Contains(meshALPN, p):
			return fmt.Errorf("alpn_protocols: %q is not spoken here", p)
		case h2 && f.HTTP.Codec == CodecHTTP1:
			return fmt.Errorf("alpn_protocols: %q is negotiated, but codec_type is HTTP1", p)
		}
	}
	return nil
}
