package snapshot

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	routepb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	templatepb "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
	matcherpb "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// defaultRouteTimeout is Envoy's timeout of a route that names none.
const defaultRouteTimeout = 15 * time.Second

// routeTable compiles a RouteConfiguration. Fields left out: validate_clusters
// (an unknown cluster is an error of the request, as with false) and
// max_direct_response_body_size_bytes (bounded by the message size already).
func routeTable(m *routepb.RouteConfiguration) (*RouteTable, error) {
	if err := only(m, `name virtual_hosts validate_clusters ignore_port_in_host_matching
		max_direct_response_body_size_bytes typed_per_filter_config metadata`); err != nil {
		return nil, err
	}
	t := &RouteTable{
		Name: m.GetName(), exact: map[string]*VirtualHost{},
		IgnorePort: m.GetIgnorePortInHostMatching(),
	}
	base, err := perFilter(m.GetTypedPerFilterConfig(), perRoute{})
	if err != nil {
		return nil, err
	}
	for i, v := range m.GetVirtualHosts() {
		h, err := virtualHost(v, base)
		if err != nil {
			return nil, at(err, "virtual_hosts[%d] %q", i, v.GetName())
		}
		if err := t.add(h); err != nil {
			return nil, at(err, "virtual_hosts[%d] %q", i, v.GetName())
		}
	}
	t.sort()
	return t, nil
}

// NewRouteTable makes a table of virtual hosts that are compiled already, for
// callers that do not start from xDS.
func NewRouteTable(name string, hosts ...*VirtualHost) (*RouteTable, error) {
	t := &RouteTable{Name: name, exact: map[string]*VirtualHost{}}
	for _, h := range hosts {
		if err := t.add(h); err != nil {
			return nil, fmt.Errorf("virtual host %q: %w", h.Name, err)
		}
	}
	t.sort()
	return t, nil
}

// sort puts the longest wildcards first.
func (t *RouteTable) sort() {
	longest := func(a, b wildcard) int { return len(b.text) - len(a.text) }
	slices.SortStableFunc(t.suffix, longest)
	slices.SortStableFunc(t.prefix, longest)
}

// add indexes the domains of a virtual host; a domain may occur once.
func (t *RouteTable) add(h *VirtualHost) error {
	t.Hosts = append(t.Hosts, h)
	for _, d := range h.Domains {
		name := strings.ToLower(d)
		if t.IgnorePort && !strings.HasPrefix(name, "*") && !strings.HasSuffix(name, "*") {
			name = string(StripPort([]byte(name)))
		}
		known := func(w wildcard) bool { return w.text == strings.Trim(name, "*") }
		duplicate := false
		switch {
		case name == "":
			return fmt.Errorf("domain is empty")
		case name == "*":
			duplicate, t.any = t.any != nil, h
		case strings.HasPrefix(name, "*"):
			duplicate = slices.ContainsFunc(t.suffix, known)
			t.suffix = append(t.suffix, wildcard{name[1:], h})
		case strings.HasSuffix(name, "*"):
			duplicate = slices.ContainsFunc(t.prefix, known)
			t.prefix = append(t.prefix, wildcard{name[:len(name)-1], h})
		default:
			old := t.exact[name]
			// Stripping ports may fold two domains of one host into one.
			duplicate = old != nil && old != h
			t.exact[name] = h
		}
		if duplicate {
			return fmt.Errorf("domain %q occurs twice", d)
		}
		if strings.Contains(strings.Trim(name, "*"), "*") {
			return fmt.Errorf("domain %q has a wildcard in the middle", d)
		}
	}
	return nil
}

// virtualHost compiles a virtual host. Fields left out: buffer limits (the proxy
// streams) and the attempt count in responses (telemetry).
func virtualHost(m *routepb.VirtualHost, base perRoute) (*VirtualHost, error) {
	if err := only(m, `name domains routes require_tls request_headers_to_add request_headers_to_remove
		response_headers_to_add response_headers_to_remove include_request_attempt_count retry_policy
		typed_per_filter_config metadata per_request_buffer_limit_bytes request_body_buffer_limit
		include_attempt_count_in_response`); err != nil {
		return nil, err
	}
	v := &VirtualHost{
		Name: m.GetName(), Domains: m.GetDomains(), Origin: origin(m.GetMetadata()),
		IncludeAttemptCount: m.GetIncludeRequestAttemptCount(),
	}
	var errs [4]error
	v.Request, errs[0] = headerOps(m.GetRequestHeadersToAdd(), m.GetRequestHeadersToRemove())
	v.Response, errs[1] = headerOps(m.GetResponseHeadersToAdd(), m.GetResponseHeadersToRemove())
	v.Retry, errs[2] = retryPolicy(m.GetRetryPolicy())
	base, errs[3] = perFilter(m.GetTypedPerFilterConfig(), base)
	if err := firstError(errs[:]...); err != nil {
		return nil, err
	}
	switch m.GetRequireTls() {
	case routepb.VirtualHost_NONE:
	case routepb.VirtualHost_ALL:
		v.Routes = append(v.Routes, requireTLS())
	default:
		return nil, fmt.Errorf("require_tls: %v is not supported", m.GetRequireTls())
	}
	for i, r := range m.GetRoutes() {
		compiled, err := route(r, base, v.Retry)
		if err != nil {
			return nil, at(err, "routes[%d]", i)
		}
		v.Routes = append(v.Routes, compiled)
	}
	return v, nil
}

// requireTLS is the route that require_tls ALL puts in front: everything that
// did not come by https is redirected to it.
func requireTLS() *Route {
	return &Route{
		Name: "require_tls",
		Match: RouteMatch{
			Path: PathMatch{Kind: PathPrefix}, CaseSensitive: true, RuntimePerMillion: 1e6,
			Headers: []HeaderMatch{{
				Name: "x-forwarded-proto", Value: StringMatcher{Text: "https", IgnoreCase: true},
				Invert: true, TreatMissingAsEmpty: true,
			}},
		},
		Redirect:            &Redirect{Scheme: "https", Code: 301},
		ClusterNotFoundCode: 503,
	}
}

// route compiles a route. Fields left out: stat_prefix, buffer limits.
func route(m *routepb.Route, base perRoute, retry *RetryPolicy) (*Route, error) {
	if err := only(m, `name match route redirect direct_response metadata decorator typed_per_filter_config
		request_headers_to_add request_headers_to_remove response_headers_to_add response_headers_to_remove
		per_request_buffer_limit_bytes request_body_buffer_limit stat_prefix`); err != nil {
		return nil, err
	}
	r := &Route{
		Name: m.GetName(), Origin: origin(m.GetMetadata()),
		Config:    metadataText(m.GetMetadata(), "istio", "config"),
		Decorator: m.GetDecorator().GetOperation(), ClusterNotFoundCode: 503,
	}
	var errs [4]error
	r.Match, errs[0] = routeMatch(m.GetMatch())
	r.Request, errs[1] = headerOps(m.GetRequestHeadersToAdd(), m.GetRequestHeadersToRemove())
	r.Response, errs[2] = headerOps(m.GetResponseHeadersToAdd(), m.GetResponseHeadersToRemove())
	base, errs[3] = perFilter(m.GetTypedPerFilterConfig(), base)
	if err := firstError(errs[:]...); err != nil {
		return nil, err
	}
	r.Fault, r.CORS, r.RBAC = base.fault, base.cors, base.rbac
	if r.Fault != nil && r.Fault.Origin == "" {
		f := *r.Fault
		f.Origin = r.Origin
		r.Fault = &f
	}
	var err error
	switch a := m.GetAction().(type) {
	case *routepb.Route_Route:
		err = at(routeAction(r, a.Route, retry), "route")
	case *routepb.Route_Redirect:
		r.Redirect, err = redirect(a.Redirect)
		err = at(err, "redirect")
	case *routepb.Route_DirectResponse:
		r.Direct, err = directResponse(a.DirectResponse)
		err = at(err, "direct_response")
	default:
		err = fmt.Errorf("route has no action")
	}
	return r, err
}

func routeMatch(m *routepb.RouteMatch) (out RouteMatch, err error) {
	if err := only(m, `prefix path safe_regex path_separated_prefix path_match_policy connect_matcher
		case_sensitive runtime_fraction headers query_parameters grpc`); err != nil {
		return out, at(err, "match")
	}
	out = RouteMatch{CaseSensitive: true, GRPC: m.GetGrpc() != nil}
	if m.GetCaseSensitive() != nil {
		out.CaseSensitive = m.GetCaseSensitive().GetValue()
	}
	if out.Path, err = pathMatch(m); err != nil {
		return out, at(err, "match")
	}
	// The runtime key cannot be set in this proxy, so its default value holds.
	out.RuntimePerMillion = perMillion(m.GetRuntimeFraction().GetDefaultValue(), 1e6)
	for i, h := range m.GetHeaders() {
		c, err := headerMatch(h)
		if err != nil {
			return out, at(err, "match.headers[%d]", i)
		}
		out.Headers = append(out.Headers, c)
	}
	for i, q := range m.GetQueryParameters() {
		c, err := queryMatch(q)
		if err != nil {
			return out, at(err, "match.query_parameters[%d]", i)
		}
		out.Query = append(out.Query, c)
	}
	return out, nil
}

func pathMatch(m *routepb.RouteMatch) (out PathMatch, err error) {
	switch p := m.GetPathSpecifier().(type) {
	case *routepb.RouteMatch_Prefix:
		return PathMatch{Kind: PathPrefix, Text: p.Prefix}, nil
	case *routepb.RouteMatch_Path:
		return PathMatch{Kind: PathExact, Text: p.Path}, nil
	case *routepb.RouteMatch_PathSeparatedPrefix:
		return PathMatch{Kind: PathSeparatedPrefix, Text: p.PathSeparatedPrefix}, nil
	case *routepb.RouteMatch_SafeRegex:
		out = PathMatch{Kind: PathRegex, Text: p.SafeRegex.GetRegex()}
		out.Regex, err = CompileRegex(out.Text)
		return out, at(err, "safe_regex")
	case *routepb.RouteMatch_ConnectMatcher_:
		return PathMatch{Kind: PathConnect}, nil
	case *routepb.RouteMatch_PathMatchPolicy:
		var t templatepb.UriTemplateMatchConfig
		if err := decode(p.PathMatchPolicy.GetTypedConfig(), &t); err != nil {
			return out, at(err, "path_match_policy")
		}
		out = PathMatch{Kind: PathTemplate, Text: t.GetPathTemplate()}
		out.Template, err = CompileTemplate(out.Text)
		return out, at(err, "path_match_policy")
	}
	return out, fmt.Errorf("path is missing")
}

// headerMatch compiles a header matcher, the deprecated spellings included:
// Istio still sends some of them.
//
//nolint:staticcheck
func headerMatch(m *routepb.HeaderMatcher) (HeaderMatch, error) {
	h := HeaderMatch{
		Name: strings.ToLower(m.GetName()), Invert: m.GetInvertMatch(),
		TreatMissingAsEmpty: m.GetTreatMissingHeaderAsEmpty(),
	}
	if err := only(m, `name exact_match safe_regex_match range_match present_match prefix_match suffix_match
		contains_match string_match invert_match treat_missing_header_as_empty`); err != nil {
		return h, err
	}
	if h.Name == "" {
		return h, fmt.Errorf("name is empty")
	}
	var err error
	switch s := m.GetHeaderMatchSpecifier().(type) {
	case *routepb.HeaderMatcher_StringMatch:
		h.Value, err = stringMatcher(s.StringMatch)
	case *routepb.HeaderMatcher_ExactMatch:
		h.Value = StringMatcher{Kind: StringExact, Text: s.ExactMatch}
	case *routepb.HeaderMatcher_PrefixMatch:
		h.Value = StringMatcher{Kind: StringPrefix, Text: s.PrefixMatch}
	case *routepb.HeaderMatcher_SuffixMatch:
		h.Value = StringMatcher{Kind: StringSuffix, Text: s.SuffixMatch}
	case *routepb.HeaderMatcher_ContainsMatch:
		h.Value = StringMatcher{Kind: StringContains, Text: s.ContainsMatch}
	case *routepb.HeaderMatcher_SafeRegexMatch:
		h.Value, err = regexMatcher(s.SafeRegexMatch.GetRegex())
	case *routepb.HeaderMatcher_RangeMatch:
		h.Range = &[2]int64{s.RangeMatch.GetStart(), s.RangeMatch.GetEnd()}
	case *routepb.HeaderMatcher_PresentMatch:
		h.Present = true
		h.Invert = h.Invert != !s.PresentMatch
	default:
		h.Present = true
	}
	return h, err
}

func queryMatch(m *routepb.QueryParameterMatcher) (q QueryMatch, err error) {
	if err := only(m, "name string_match present_match"); err != nil {
		return q, err
	}
	q.Name = m.GetName()
	switch s := m.GetQueryParameterMatchSpecifier().(type) {
	case *routepb.QueryParameterMatcher_StringMatch:
		q.Value, err = stringMatcher(s.StringMatch)
	case *routepb.QueryParameterMatcher_PresentMatch:
		if !s.PresentMatch {
			return q, fmt.Errorf("present_match false is not supported")
		}
		q.Present = true
	default:
		q.Present = true
	}
	return q, err
}

func redirect(m *routepb.RedirectAction) (*Redirect, error) {
	if err := only(m, `https_redirect scheme_redirect host_redirect port_redirect path_redirect
		prefix_rewrite regex_rewrite response_code strip_query`); err != nil {
		return nil, err
	}
	r := &Redirect{
		Scheme: m.GetSchemeRedirect(), Host: m.GetHostRedirect(), Port: m.GetPortRedirect(),
		Path: m.GetPathRedirect(), PrefixRewrite: m.GetPrefixRewrite(), StripQuery: m.GetStripQuery(),
	}
	if m.GetHttpsRedirect() {
		r.Scheme = "https"
	}
	codes := map[routepb.RedirectAction_RedirectResponseCode]int{
		routepb.RedirectAction_MOVED_PERMANENTLY:  301,
		routepb.RedirectAction_FOUND:              302,
		routepb.RedirectAction_SEE_OTHER:          303,
		routepb.RedirectAction_TEMPORARY_REDIRECT: 307,
		routepb.RedirectAction_PERMANENT_REDIRECT: 308,
	}
	if r.Code = codes[m.GetResponseCode()]; r.Code == 0 {
		return nil, fmt.Errorf("response_code %v is not supported", m.GetResponseCode())
	}
	for _, text := range []string{r.Scheme, r.Host, r.Path, r.PrefixRewrite} {
		if !validHeader(HeaderValue{Name: "location", Value: text}) {
			return nil, fmt.Errorf("%q cannot stand in a location header", text)
		}
	}
	var err error
	r.RegexRewrite, err = regexRewrite(m.GetRegexRewrite())
	return r, err
}

func regexRewrite(m *matcherpb.RegexMatchAndSubstitute) (*RegexRewrite, error) {
	if m == nil {
		return nil, nil
	}
	expr := m.GetPattern().GetRegex()
	if len(expr) > maxRegex {
		return nil, fmt.Errorf("regex_rewrite: regex of %d bytes is longer than %d", len(expr), maxRegex)
	}
	re, err := regexp.Compile(expr) // substitutes wherever it matches: not anchored
	if err != nil {
		return nil, at(err, "regex_rewrite")
	}
	sub := m.GetSubstitution()
	for i := 0; i < len(sub); i++ {
		if sub[i] != '\\' {
			continue
		}
		i++
		if i == len(sub) || sub[i] != '\\' && (sub[i] < '0' || int(sub[i]-'0') > re.NumSubexp() || sub[i] > '9') {
			return nil, fmt.Errorf("regex_rewrite: substitution %q refers to a group that does not exist", sub)
		}
	}
	return &RegexRewrite{Regex: re, Substitution: sub}, nil
}

func directResponse(m *routepb.DirectResponseAction) (*DirectResponse, error) {
	if err := only(m, "status body"); err != nil {
		return nil, err
	}
	if m.GetStatus() < 200 || m.GetStatus() > 599 {
		return nil, fmt.Errorf("status %d is outside 200 to 599", m.GetStatus())
	}
	d := &DirectResponse{Status: int(m.GetStatus())}
	if m.GetBody() == nil {
		return d, nil
	}
	if err := only(m.GetBody(), "inline_string inline_bytes"); err != nil {
		return nil, at(err, "body")
	}
	d.Body = append([]byte(m.GetBody().GetInlineString()), m.GetBody().GetInlineBytes()...)
	return d, nil
}

// perRoute is the filter configuration that a route overrides; a route inherits
// from its virtual host, and that from its table.
type perRoute struct {
	fault *Fault
	cors  *CORS
	rbac  map[string]*RBAC
}

func perFilter(configs map[string]*anypb.Any, base perRoute) (perRoute, error) {
	for name, a := range configs {
		if err := base.add(name, a); err != nil {
			return base, at(err, "typed_per_filter_config[%q]", name)
		}
	}
	return base, nil
}

func (p *perRoute) add(name string, a *anypb.Any) error {
	full, err := typeName(a)
	if err != nil {
		return err
	}
	switch full {
	case typeFilterConfig:
		var w routepb.FilterConfig
		if err := firstError(decode(a, &w), only(&w, "config is_optional")); err != nil {
			return err
		}
		if !perRouteType(string(w.GetConfig().MessageName())) && w.GetIsOptional() {
			return nil
		}
		if w.GetConfig().MessageName() == typeFilterConfig {
			return fmt.Errorf("FilterConfig within FilterConfig")
		}
		return p.add(name, w.GetConfig())
	case typeFault:
		p.fault, err = faultAny(a)
	case typeCORSPolicy:
		p.cors, err = corsAny(a)
	case typeRBACPerRoute:
		var r *RBAC
		if r, err = rbacPerRoute(a); err == nil {
			m := map[string]*RBAC{name: r}
			for k, v := range p.rbac {
				if k != name {
					m[k] = v
				}
			}
			p.rbac = m
		}
	default:
		return fmt.Errorf("type %s is not supported", full)
	}
	return err
}

// maxWeight bounds the sum of weights as Envoy does.
const maxWeight = math.MaxUint32
