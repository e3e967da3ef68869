package snapshot

import (
	"fmt"

	faultcommonpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	corspb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	httprbacpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// Message names of the filters that this proxy knows.
const (
	typeRouter       = "envoy.extensions.filters.http.router.v3.Router"
	typeHTTPRBAC     = "envoy.extensions.filters.http.rbac.v3.RBAC"
	typeRBACPerRoute = "envoy.extensions.filters.http.rbac.v3.RBACPerRoute"
	typeFault        = "envoy.extensions.filters.http.fault.v3.HTTPFault"
	typeCORS         = "envoy.extensions.filters.http.cors.v3.Cors"
	typeCORSPolicy   = "envoy.extensions.filters.http.cors.v3.CorsPolicy"
	typeGRPCStats    = "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig"
	typeFilterConfig = "envoy.config.route.v3.FilterConfig"
	typeStats        = "stats.PluginConfig"
	typeALPN         = "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig"
	typeHTTPPeers    = "io.istio.http.peer_metadata.Config"
	typeTCPPeers     = "envoy.tcp.metadataexchange.config.MetadataExchange"
	typeHCM          = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
	typeTCPProxy     = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
	typeNetworkRBAC  = "envoy.extensions.filters.network.rbac.v3.RBAC"
)

// perRouteType says whether a message can configure a filter for a route.
func perRouteType(name string) bool {
	switch name {
	case typeFault, typeCORSPolicy, typeRBACPerRoute, typeFilterConfig:
		return true
	}
	return false
}

// httpFilters compiles the filters of a manager, the router left out. A filter
// that is not known is passed over only if it is marked optional and everything
// else in it is refused: it may be what keeps callers out.
func httpFilters(list []*hcmpb.HttpFilter, dir Direction) ([]HTTPFilter, error) {
	var out []HTTPFilter
	for i, m := range list {
		if err := only(m, "name typed_config is_optional"); err != nil {
			return nil, at(err, "http_filters[%d] %q", i, m.GetName())
		}
		full, err := typeName(m.GetTypedConfig())
		if err != nil {
			return nil, at(err, "http_filters[%d] %q", i, m.GetName())
		}
		if full == typeRouter {
			if i != len(list)-1 {
				return nil, fmt.Errorf("http_filters[%d]: the router is not the last filter", i)
			}
			return out, nil
		}
		f, err := httpFilter(m, full, dir)
		if err != nil {
			return nil, at(err, "http_filters[%d] %q", i, m.GetName())
		}
		if f != nil {
			out = append(out, *f)
		}
	}
	return nil, fmt.Errorf("http_filters: the router is missing")
}

// httpFilter compiles one filter; nil means that it is passed over.
func httpFilter(m *hcmpb.HttpFilter, full string, dir Direction) (f *HTTPFilter, err error) {
	f = &HTTPFilter{Name: m.GetName()}
	switch full {
	case typeHTTPRBAC:
		var c httprbacpb.RBAC
		if err := decode(m.GetTypedConfig(), &c); err != nil {
			return nil, err
		}
		f.RBAC, err = httpRBAC(&c)
	case typeFault:
		f.Fault, err = faultAny(m.GetTypedConfig())
	case typeCORS:
		f.CORS = &CORS{} // the policy is the route's
	case typeGRPCStats:
		f.GRPCStats = true
	case typeStats:
		f.Stats = true
	case typeALPN:
		f.ALPN = true
	case typeHTTPPeers:
		f.MetadataExchange = true
	default:
		if m.GetIsOptional() {
			return nil, nil
		}
		return nil, fmt.Errorf("filter type %q is not supported", full)
	}
	return f, err
}

func rbacPerRoute(a *anypb.Any) (*RBAC, error) {
	var m httprbacpb.RBACPerRoute
	if err := decode(a, &m); err != nil {
		return nil, err
	}
	if m.GetRbac() == nil {
		return &RBAC{ShadowOnly: true}, nil // switches the filter off
	}
	return httpRBAC(m.GetRbac())
}

func faultAny(a *anypb.Any) (*Fault, error) {
	var m faultpb.HTTPFault
	if err := decode(a, &m); err != nil {
		return nil, err
	}
	return fault(&m)
}

// fault compiles fault injection. Fields left out: runtime keys and statistics;
// there is no runtime to set them in.
func fault(m *faultpb.HTTPFault) (*Fault, error) {
	if err := only(m, `delay abort delay_percent_runtime abort_percent_runtime delay_duration_runtime
		abort_http_status_runtime abort_grpc_status_runtime disable_downstream_cluster_stats`); err != nil {
		return nil, at(err, "fault")
	}
	f := &Fault{AbortGRPCStatus: -1}
	if d := m.GetDelay(); d != nil {
		if _, ok := d.GetFaultDelaySecifier().(*faultcommonpb.FaultDelay_FixedDelay); !ok {
			return nil, fmt.Errorf("fault.delay: only fixed_delay is supported")
		}
		if err := into(&f.Delay, d.GetFixedDelay(), "fault.delay.fixed_delay"); err != nil {
			return nil, err
		}
		f.DelayPerMillion = perMillion(d.GetPercentage(), 0)
	}
	if a := m.GetAbort(); a != nil {
		switch t := a.GetErrorType().(type) {
		case *faultpb.FaultAbort_HttpStatus:
			if t.HttpStatus < 200 || t.HttpStatus > 599 {
				return nil, fmt.Errorf("fault.abort.http_status %d is outside 200 to 599", t.HttpStatus)
			}
			f.AbortStatus = int(t.HttpStatus)
		case *faultpb.FaultAbort_GrpcStatus:
			if t.GrpcStatus > 16 {
				return nil, fmt.Errorf("fault.abort.grpc_status %d is not a status", t.GrpcStatus)
			}
			f.AbortGRPCStatus = int(t.GrpcStatus)
		default:
			return nil, fmt.Errorf("fault.abort: only http_status and grpc_status are supported")
		}
		f.AbortPerMillion = perMillion(a.GetPercentage(), 0)
	}
	return f, nil
}

// corsAny compiles a CORS policy, nil when filter_enabled switches it off.
func corsAny(a *anypb.Any) (*CORS, error) {
	var m corspb.CorsPolicy
	if err := decode(a, &m); err != nil {
		return nil, err
	}
	if err := only(&m, `allow_origin_string_match allow_methods allow_headers expose_headers max_age
		allow_credentials filter_enabled forward_not_matching_preflights`); err != nil {
		return nil, at(err, "cors")
	}
	if e := m.GetFilterEnabled(); e != nil {
		switch perMillion(e.GetDefaultValue(), 0) {
		case 0:
			return nil, nil
		case 1e6:
		default:
			return nil, fmt.Errorf("cors.filter_enabled: a share of requests is not supported")
		}
	}
	c := &CORS{
		AllowMethods: m.GetAllowMethods(), AllowHeaders: m.GetAllowHeaders(),
		ExposeHeaders: m.GetExposeHeaders(), MaxAge: m.GetMaxAge(),
		AllowCredentials:             m.GetAllowCredentials().GetValue(),
		ForwardNotMatchingPreflights: true,
	}
	if f := m.GetForwardNotMatchingPreflights(); f != nil {
		c.ForwardNotMatchingPreflights = f.GetValue()
	}
	for _, text := range []string{c.AllowMethods, c.AllowHeaders, c.ExposeHeaders, c.MaxAge} {
		if !validHeader(HeaderValue{Name: "x", Value: text}) {
			return nil, fmt.Errorf("cors: %q cannot stand in a header", text)
		}
	}
	var err error
	c.AllowOrigins, err = stringMatchers(m.GetAllowOriginStringMatch())
	return c, at(err, "cors.allow_origin_string_match")
}
