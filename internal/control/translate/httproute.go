package translate

import (
	"slices"
	"strconv"
	"strings"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routepb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherpb "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networkingpb "istio.io/api/networking/v1alpha3"

	"lateen.dev/lateen/internal/control/mesh"
)

// routeScope is where routes of a VirtualService are used: the port that
// requests arrive at, for a sidecar or for one server of a gateway.
type routeScope struct {
	port    uint16
	gateway string
	// tls says that requests arrive over TLS that the gateway terminates.
	tls bool
}

// httpRoutes translates the HTTP routes of a VirtualService in order. Each
// match becomes a route of its own; what follows a route that takes everything
// is left out.
func (b *builder) httpRoutes(v *mesh.VirtualService, at routeScope) []*routepb.Route {
	var out []*routepb.Route
	for _, r := range v.HTTP {
		matches := r.Route.GetMatch()
		if len(matches) == 0 {
			return append(out, b.httpRoute(v, r, nil, at))
		}
		for i, m := range matches {
			if !b.l4Matches(m.GetPort(), at.port, m.GetGateways(), m.GetSourceLabels(), m.GetSourceNamespace(), at.gateway) {
				continue
			}
			route := b.httpRoute(v, r, m, at)
			if len(matches) > 1 {
				route.Metadata = b.withOrigin(route.GetMetadata(), mesh.Origin{
					Object: r.Origin.Object, Path: r.Origin.Path + ".match[" + strconv.Itoa(i) + "]",
				})
			}
			out = append(out, route)
			if catchAll(route) {
				return out
			}
		}
	}
	return out
}

// catchAll reports whether a route takes every request.
func catchAll(r *routepb.Route) bool {
	m := r.GetMatch()
	if len(m.GetHeaders()) > 0 || len(m.GetQueryParameters()) > 0 {
		return false
	}
	return m.GetPrefix() == "/" || m.GetSafeRegex().GetRegex() == "*" || m.GetSafeRegex().GetRegex() == ".*"
}

func (b *builder) httpRoute(v *mesh.VirtualService, hr mesh.HTTPRoute, m *networkingpb.HTTPMatchRequest, at routeScope) *routepb.Route {
	in := hr.Route
	out := &routepb.Route{
		Name: in.GetName(), Match: routeMatch(m),
		Metadata: b.withOrigin(metadataFor(configPath("virtual-service", v.Namespace, v.Name)), hr.Origin),
	}
	if m.GetName() != "" {
		out.Name = strings.TrimPrefix(in.GetName()+"."+m.GetName(), ".")
	}
	b.setHeaders(out, in.GetHeaders())
	switch {
	case in.GetRedirect() != nil:
		out.Action = &routepb.Route_Redirect{Redirect: redirect(in.GetRedirect(), at)}
	case in.GetDirectResponse() != nil:
		out.Action = &routepb.Route_DirectResponse{DirectResponse: directResponse(in.GetDirectResponse())}
	default:
		b.setAction(out, in, at)
	}
	if f := in.GetFault(); f != nil {
		setFilterConfig(out, "envoy.filters.http.fault", fault(f))
	}
	if c := in.GetCorsPolicy(); c != nil {
		setFilterConfig(out, "envoy.filters.http.cors", cors(c))
	}
	out.Decorator = &routepb.Decorator{Operation: operation(v, out, at.port)}
	return out
}

// operation names the span of a route: the host that it leads to, or the
// VirtualService's own for several and none, and what the path must look like.
func operation(v *mesh.VirtualService, r *routepb.Route, port uint16) string {
	host := writtenHost(v) + ":" + itoa(port)
	if c := r.GetRoute().GetCluster(); c != "" {
		if parts := strings.SplitN(c, "|", 4); len(parts) == 4 {
			host = parts[3] + ":" + parts[1]
		}
	}
	path := "/*"
	switch m := r.GetMatch().GetPathSpecifier().(type) {
	case *routepb.RouteMatch_Prefix:
		path = m.Prefix + "*"
	case *routepb.RouteMatch_Path:
		path = m.Path
	case *routepb.RouteMatch_SafeRegex:
		path = m.SafeRegex.GetRegex()
	}
	return host + path
}

// writtenHost is the first host of a VirtualService as its author wrote it.
func writtenHost(v *mesh.VirtualService) string {
	if spec, ok := v.Object.Spec.(*networkingpb.VirtualService); ok && len(spec.GetHosts()) > 0 {
		return spec.GetHosts()[0]
	}
	if len(v.Hosts) > 0 {
		return v.Hosts[0]
	}
	return ""
}

// routeMatch translates the criteria that the proxy decides.
func routeMatch(m *networkingpb.HTTPMatchRequest) *routepb.RouteMatch {
	out := prefixMatch("/")
	if m == nil {
		return out
	}
	out.CaseSensitive = wrapperspb.Bool(!m.GetIgnoreUriCase())
	switch uri := m.GetUri().GetMatchType().(type) {
	case *networkingpb.StringMatch_Exact:
		out.PathSpecifier = &routepb.RouteMatch_Path{Path: uri.Exact}
	case *networkingpb.StringMatch_Prefix:
		out.PathSpecifier = &routepb.RouteMatch_Prefix{Prefix: uri.Prefix}
	case *networkingpb.StringMatch_Regex:
		out.PathSpecifier = &routepb.RouteMatch_SafeRegex{SafeRegex: &matcherpb.RegexMatcher{Regex: uri.Regex}}
	}
	for _, name := range sortedKeys(m.GetHeaders()) {
		out.Headers = append(out.Headers, routeHeader(name, m.GetHeaders()[name]))
	}
	for _, name := range sortedKeys(m.GetWithoutHeaders()) {
		h := routeHeader(name, m.GetWithoutHeaders()[name])
		h.InvertMatch = true
		if h.GetStringMatch() != nil {
			// An absent header differs from every value.
			h.TreatMissingHeaderAsEmpty = true
		}
		out.Headers = append(out.Headers, h)
	}
	slices.SortStableFunc(out.Headers, func(a, b *routepb.HeaderMatcher) int { return strings.Compare(a.GetName(), b.GetName()) })
	for _, p := range []struct {
		name  string
		match *networkingpb.StringMatch
	}{{":method", m.GetMethod()}, {":authority", m.GetAuthority()}, {":scheme", m.GetScheme()}} {
		if p.match != nil {
			out.Headers = append(out.Headers, routeHeader(p.name, p.match))
		}
	}
	for _, name := range sortedKeys(m.GetQueryParams()) {
		q := &routepb.QueryParameterMatcher{Name: name}
		if s := stringMatch(m.GetQueryParams()[name]); s != nil {
			q.QueryParameterMatchSpecifier = &routepb.QueryParameterMatcher_StringMatch{StringMatch: s}
		} else {
			q.QueryParameterMatchSpecifier = &routepb.QueryParameterMatcher_PresentMatch{PresentMatch: true}
		}
		out.QueryParameters = append(out.QueryParameters, q)
	}
	return out
}

// routeHeader matches a header; without a value, its presence.
func routeHeader(name string, m *networkingpb.StringMatch) *routepb.HeaderMatcher {
	h := &routepb.HeaderMatcher{Name: name}
	if s := stringMatch(m); s != nil {
		h.HeaderMatchSpecifier = &routepb.HeaderMatcher_StringMatch{StringMatch: s}
	} else {
		h.HeaderMatchSpecifier = &routepb.HeaderMatcher_PresentMatch{PresentMatch: true}
	}
	return h
}

func stringMatch(m *networkingpb.StringMatch) *matcherpb.StringMatcher {
	switch t := m.GetMatchType().(type) {
	case *networkingpb.StringMatch_Exact:
		return exactly(t.Exact)
	case *networkingpb.StringMatch_Prefix:
		return withPrefix(t.Prefix)
	case *networkingpb.StringMatch_Regex:
		return withRegex(t.Regex)
	}
	return nil
}

// setHeaders translates header operations of a route. Setting the authority is
// a rewrite of the host, done in setAction.
func (b *builder) setHeaders(out *routepb.Route, h *networkingpb.Headers) {
	add, remove, _ := headerOps(h.GetRequest())
	out.RequestHeadersToAdd = append(out.RequestHeadersToAdd, add...)
	out.RequestHeadersToRemove = append(out.RequestHeadersToRemove, remove...)
	add, remove, _ = headerOps(h.GetResponse())
	out.ResponseHeadersToAdd = append(out.ResponseHeadersToAdd, add...)
	out.ResponseHeadersToRemove = append(out.ResponseHeadersToRemove, remove...)
}

// headerOps returns headers to set and add, headers to remove, and the host if
// the operations set it.
func headerOps(o *networkingpb.Headers_HeaderOperations) (add []*corepb.HeaderValueOption, remove []string, host string) {
	for _, k := range sortedKeys(o.GetSet()) {
		if isHost(k) {
			host = o.GetSet()[k]
			continue
		}
		add = append(add, &corepb.HeaderValueOption{
			AppendAction: corepb.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
			Header:       &corepb.HeaderValue{Key: k, Value: o.GetSet()[k]},
		})
	}
	for _, k := range sortedKeys(o.GetAdd()) {
		if isHost(k) {
			host = o.GetAdd()[k]
			continue
		}
		add = append(add, &corepb.HeaderValueOption{Header: &corepb.HeaderValue{Key: k, Value: o.GetAdd()[k]}})
	}
	return add, o.GetRemove(), host
}

func isHost(name string) bool {
	return strings.EqualFold(name, ":authority") || strings.EqualFold(name, "host")
}
