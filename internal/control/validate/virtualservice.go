package validate

import (
	"strconv"
	"strings"

	networkingv1 "istio.io/api/networking/v1"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"

	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

// virtualService holds Istio's rules for a VirtualService beyond its CRD.
func (c *checker) virtualService(vs *networkingv1.VirtualService) {
	mesh := len(vs.Gateways) == 0
	for i, g := range vs.Gateways {
		mesh = mesh || g == "mesh"
		if strings.Count(g, "/") > 1 || !validHost(strings.ReplaceAll(g, "/", ".")) {
			c.addValue(finding.InvalidReference, at("spec.gateways", "[%d]", i), `write "name" or "namespace/name"`, "%q does not name a gateway", g)
		}
	}
	seen := map[string]bool{}
	for i, h := range vs.Hosts {
		path := at("spec.hosts", "[%d]", i)
		c.host(path, h)
		if h == "*" && mesh {
			c.addValue(finding.InvalidHost, path, "name the hosts, or list only gateways",
				`host "*" is not allowed on sidecars (gateway "mesh")`)
		}
		if seen[h] {
			c.addValue(finding.InvalidHost, path, "", "host %q is listed twice", h)
		}
		seen[h] = true
	}
	if len(vs.Http)+len(vs.Tls)+len(vs.Tcp) == 0 && !c.o.Has("spec.http") {
		c.add(finding.IncompleteRoute, "spec", "", "the VirtualService has no http, tls or tcp routes")
	}
	c.exportTo("spec.exportTo", vs.ExportTo)
	for i, r := range vs.Http {
		c.httpRoute(at("spec.http", "[%d]", i), r, len(vs.Hosts) == 0)
	}
	for i, r := range vs.Tls {
		c.tlsRoute(at("spec.tls", "[%d]", i), r, vs.Hosts)
	}
	for i, r := range vs.Tcp {
		path := at("spec.tcp", "[%d]", i)
		if len(r.Route) == 0 {
			c.add(finding.IncompleteRoute, path, "", "%s has no route", path)
		}
		c.routeDestinations(path+".route", r.Route)
	}
}

func (c *checker) httpRoute(path string, r *networkingv1.HTTPRoute, delegate bool) {
	c.httpRouteActions(path, r, delegate)
	for i, m := range r.Match {
		c.httpMatch(at(path, ".match[%d]", i), m)
	}
	c.weights(path, r)
	for i, d := range r.Route {
		p := at(path, ".route[%d]", i)
		c.destination(p+".destination", d.Destination)
		c.headers(p+".headers", d.Headers)
	}
	c.headers(path+".headers", r.Headers)
	c.retries(path, r)
	c.fault(path+".fault", r.Fault)
	c.mirrors(path, r)
	c.cors(path+".corsPolicy", r.CorsPolicy)
	c.rewriteAndRedirect(path, r)
}

// httpRouteActions checks which of a route's actions stand together.
func (c *checker) httpRouteActions(path string, r *networkingv1.HTTPRoute, delegate bool) {
	conflict := func(a, b string) {
		c.add(finding.IncompleteRoute, path+"."+b, "", "%s has both %s and %s, which exclude each other", path, a, b)
	}
	others := func(action string) {
		if len(r.Route) > 0 {
			conflict(action, "route")
		}
		if r.Fault != nil {
			conflict(action, "fault")
		}
		if r.Rewrite != nil {
			conflict(action, "rewrite")
		}
	}
	switch {
	case r.Delegate != nil:
		if delegate {
			c.add(finding.IncompleteRoute, path+".delegate", "", "a delegate (a VirtualService without hosts) cannot delegate again")
		}
		if len(r.Route) > 0 {
			conflict("delegate", "route")
		}
		if r.Redirect != nil {
			conflict("delegate", "redirect")
		}
		if r.DirectResponse != nil {
			conflict("delegate", "directResponse")
		}
	case r.DirectResponse != nil:
		others("directResponse")
		if r.Redirect != nil {
			conflict("directResponse", "redirect")
		}
		if s := r.DirectResponse.Status; s < 200 || s > 599 {
			c.addValue(finding.OutOfRange, path+".directResponse.status", "", "status %d is not from 200 to 599", s)
		}
	case r.Redirect != nil:
		others("redirect")
	case len(r.Route) == 0:
		c.add(finding.IncompleteRoute, path, "", "%s has neither route, redirect, directResponse nor delegate", path)
	}
}

func (c *checker) httpMatch(path string, m *networkingv1.HTTPMatchRequest) {
	c.stringMatch(path+".uri", m.Uri, false)
	c.stringMatch(path+".scheme", m.Scheme, false)
	c.stringMatch(path+".method", m.Method, false)
	c.stringMatch(path+".authority", m.Authority, false)
	for _, set := range []struct {
		name    string
		headers map[string]*networkingv1.StringMatch
	}{{".headers", m.Headers}, {".withoutHeaders", m.WithoutHeaders}} {
		for _, name := range sorted(set.headers) {
			p := resource.Field(path+set.name, name)
			// Istio: "@request.auth.claims" routes by the claims of a JWT.
			if !headerToken.MatchString(strings.TrimPrefix(name, ":")) && !strings.HasPrefix(name, "@request.auth.claims") {
				c.add(finding.InvalidHeader, p, "", "%q is not a header name", name)
			}
			c.stringMatch(p, set.headers[name], true)
		}
	}
	for _, name := range sorted(m.QueryParams) {
		p := resource.Field(path+".queryParams", name)
		if name == "" {
			c.add(finding.InvalidMatch, p, "", "a query parameter has no name")
		}
		c.stringMatch(p, m.QueryParams[name], true)
	}
	c.labels(path+".sourceLabels", m.SourceLabels)
	if s := m.Uri.GetPrefix(); s != "" && strings.ContainsAny(s, "?#") || strings.ContainsAny(m.Uri.GetExact(), "?#") {
		c.addValue(finding.IneffectiveMatch, path+".uri", "match the query by queryParams",
			"paths are matched without query and fragment, so this never matches")
	}
}

// stringMatch checks one match; presence says that an empty one is fine.
func (c *checker) stringMatch(path string, m *networkingv1.StringMatch, presence bool) {
	if m == nil {
		return
	}
	switch m.MatchType.(type) {
	case *networkingv1alpha3.StringMatch_Regex:
		c.regex(path+".regex", m.GetRegex())
	case *networkingv1alpha3.StringMatch_Prefix:
		if m.GetPrefix() == "" {
			c.addValue(finding.InvalidMatch, path+".prefix", `"/" matches every path`, "the prefix is empty")
		}
	case nil:
		if !presence {
			c.add(finding.InvalidMatch, path, "", "%s has neither exact, prefix nor regex", path)
		}
	}
}

// weights checks the split of a route over its destinations.
func (c *checker) weights(path string, r *networkingv1.HTTPRoute) {
	var sum int64
	for i, d := range r.Route {
		if d.Weight < 0 {
			c.addValue(finding.InvalidWeight, at(path, ".route[%d].weight", i), "", "weight %d is negative", d.Weight)
			return
		}
		sum += int64(d.Weight)
	}
	switch {
	case len(r.Route) < 2:
	case sum == 0:
		c.add(finding.InvalidWeight, path+".route", "give each destination a weight", "the weights of %s sum to 0, so no destination would be chosen", path)
	case sum > 1<<32-1:
		c.add(finding.InvalidWeight, path+".route", "", "the weights of %s sum to %d, over the limit of %d", path, sum, uint32(1<<32-1))
	case sum != 100:
		c.add(finding.WeightSum, path+".route", "make them sum to 100 if percentages are meant",
			"the weights of %s sum to %d, not 100; they are taken as shares of %d", path, sum, sum)
	}
}

func (c *checker) destination(path string, d *networkingv1.Destination) {
	if d == nil {
		c.add(finding.IncompleteRoute, path, "", "%s is missing", path)
		return
	}
	if d.Host == "*" {
		c.addValue(finding.InvalidHost, path+".host", "", `a destination's host cannot be "*"`)
	} else if d.Host != "" || c.o.Has(path+".host") {
		c.host(path+".host", d.Host)
	}
	if d.Subset != "" && !dnsLabel.MatchString(d.Subset) {
		c.addValue(finding.InvalidReference, path+".subset", "", "%q is not a valid subset name", d.Subset)
	}
	if d.Port != nil && (d.Port.Number < 1 || d.Port.Number > 65535) {
		c.addValue(finding.OutOfRange, path+".port.number", "", "port %d is not from 1 to 65535", d.Port.Number)
	}
}

func (c *checker) headers(path string, h *networkingv1.Headers) {
	if h == nil {
		return
	}
	for _, dir := range []struct {
		name string
		ops  *networkingv1alpha3.Headers_HeaderOperations
	}{{"request", h.Request}, {"response", h.Response}} {
		for _, op := range []struct {
			name   string
			values map[string]string
		}{{"set", dir.ops.GetSet()}, {"add", dir.ops.GetAdd()}} {
			for _, name := range sorted(op.values) {
				c.headerName(resource.Field(path+"."+dir.name+"."+op.name, name), name, op.name == "set" && dir.name == "request")
			}
		}
		for i, name := range dir.ops.GetRemove() {
			c.headerName(at(path, ".%s.remove[%d]", dir.name, i), name, false)
		}
	}
}

func (c *checker) headerName(path, name string, authority bool) {
	if authority && (name == ":authority" || strings.EqualFold(name, "host")) {
		return
	}
	if !headerToken.MatchString(name) {
		c.add(finding.InvalidHeader, path, "", "%q is not a header name that can be changed", name)
	}
}

// retryConditions are Envoy's names for x-envoy-retry-on and
// x-envoy-retry-grpc-on; numbers are status codes.
func retryConditions() []string {
	return []string{
		"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "envoy-ratelimited",
		"retriable-4xx", "refused-stream", "retriable-status-codes", "retriable-headers", "http3-post-connect-failure",
		"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable",
	}
}

func (c *checker) retries(path string, r *networkingv1.HTTPRoute) {
	p := r.Retries
	if p == nil {
		return
	}
	at := path + ".retries"
	if p.Attempts < 0 {
		c.addValue(finding.InvalidRetry, at+".attempts", "", "attempts is %d; it must not be negative", p.Attempts)
	}
	if p.Attempts == 0 && (p.PerTryTimeout != nil || p.RetryOn != "" || p.RetryRemoteLocalities != nil) && c.o.Has(at+".attempts") {
		c.add(finding.InvalidRetry, at, "remove the other fields, or set attempts to 1 or more", "attempts is 0, which turns retries off, so the other fields have no effect")
	}
	for _, on := range strings.Split(p.RetryOn, ",") {
		on = strings.TrimSpace(on)
		if on == "" {
			continue
		}
		if n, err := strconv.Atoi(on); err == nil {
			if n < 100 || n > 599 {
				c.addValue(finding.InvalidRetry, at+".retryOn", "", "%q is not a status code", on)
			}
			continue
		}
		if !contains(retryConditions(), on) {
			hint := ""
			if near := resource.Nearest(on, retryConditions()); near != "" {
				hint = "did you mean " + strconv.Quote(near) + "?"
			}
			c.addValue(finding.InvalidRetry, at+".retryOn", hint, "%q is not a condition to retry on", on)
		}
	}
	if r.Timeout.AsDuration() > 0 && p.PerTryTimeout != nil && p.PerTryTimeout.AsDuration() > r.Timeout.AsDuration() {
		c.addValue(finding.RetryTimeout, at+".perTryTimeout", "", "perTryTimeout %s is longer than the route's timeout %s, which ends the request first",
			p.PerTryTimeout.AsDuration(), r.Timeout.AsDuration())
	}
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}

func (c *checker) fault(path string, f *networkingv1.HTTPFaultInjection) {
	if f == nil {
		return
	}
	if f.Abort == nil && f.Delay == nil {
		c.add(finding.InvalidFault, path, "", "%s has neither abort nor delay", path)
	}
	if a := f.Abort; a != nil {
		c.percent(path+".abort.percentage.value", a.Percentage.GetValue())
		switch e := a.ErrorType.(type) {
		case *networkingv1alpha3.HTTPFaultInjection_Abort_HttpStatus:
			if e.HttpStatus < 200 || e.HttpStatus > 599 {
				c.addValue(finding.InvalidFault, path+".abort.httpStatus", "", "status %d is not from 200 to 599", e.HttpStatus)
			}
		case *networkingv1alpha3.HTTPFaultInjection_Abort_GrpcStatus:
			if !grpcStatus(e.GrpcStatus) {
				c.addValue(finding.InvalidFault, path+".abort.grpcStatus", "", "%q is not a gRPC status", e.GrpcStatus)
			}
		case nil:
			c.add(finding.InvalidFault, path+".abort", "", "%s.abort has neither httpStatus nor grpcStatus", path)
		}
	}
	if d := f.Delay; d != nil {
		c.percent(path+".delay.percentage.value", d.Percentage.GetValue())
		c.percent(path+".delay.percent", float64(d.Percent)) //nolint:staticcheck // Istio still applies it
		if d.GetFixedDelay() == nil && d.GetExponentialDelay() == nil {
			c.add(finding.InvalidFault, path+".delay", "", "%s.delay has no fixedDelay", path)
		}
	}
}

func grpcStatus(s string) bool {
	names := []string{
		"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
		"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
		"INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
	}
	n, err := strconv.Atoi(s)
	return contains(names, s) || err == nil && n >= 0 && n < len(names)
}

func (c *checker) mirrors(path string, r *networkingv1.HTTPRoute) {
	if r.Mirror != nil {
		c.destination(path+".mirror", r.Mirror)
		if len(r.Mirrors) > 0 {
			c.add(finding.IncompleteRoute, path+".mirrors", "", "%s has both mirror and mirrors, which exclude each other", path)
		}
	}
	c.percent(path+".mirrorPercentage.value", r.MirrorPercentage.GetValue())
	for i, m := range r.Mirrors {
		p := at(path, ".mirrors[%d]", i)
		c.destination(p+".destination", m.Destination)
		c.percent(p+".percentage.value", m.Percentage.GetValue())
	}
}

func (c *checker) cors(path string, p *networkingv1.CorsPolicy) {
	if p == nil {
		return
	}
	for i, o := range p.AllowOrigins {
		c.stringMatch(at(path, ".allowOrigins[%d]", i), o, false)
		if o.GetExact() == "*" && p.AllowCredentials.GetValue() {
			c.addValue(finding.OpenCORS, at(path, ".allowOrigins[%d]", i), "list the origins",
				"every origin may send credentials; browsers then trust any site with them")
		}
	}
	for i, m := range p.AllowMethods {
		if m != "*" && (!headerToken.MatchString(m) || strings.ToUpper(m) != m) {
			c.addValue(finding.InvalidHeader, at(path, ".allowMethods[%d]", i), "methods are upper-case", "%q is not an HTTP method", m)
		}
	}
	for _, set := range []struct {
		name  string
		names []string
	}{{".allowHeaders", p.AllowHeaders}, {".exposeHeaders", p.ExposeHeaders}} {
		for i, h := range set.names {
			if !headerToken.MatchString(h) {
				c.addValue(finding.InvalidHeader, at(path, "%s[%d]", set.name, i), "", "%q is not a header name", h)
			}
		}
	}
}

func (c *checker) rewriteAndRedirect(path string, r *networkingv1.HTTPRoute) {
	if w := r.Rewrite; w != nil {
		at := path + ".rewrite"
		if w.Uri == "" && w.Authority == "" && w.UriRegexRewrite == nil {
			c.add(finding.InvalidRewrite, at, "", "%s changes neither uri nor authority", at)
		}
		if w.Uri != "" && w.UriRegexRewrite != nil {
			c.add(finding.InvalidRewrite, at+".uriRegexRewrite", "", "uri and uriRegexRewrite exclude each other")
		}
		if x := w.UriRegexRewrite; x != nil {
			c.regex(at+".uriRegexRewrite.match", x.Match)
		}
	}
	if d := r.Redirect; d != nil {
		at := path + ".redirect"
		if d.RedirectCode != 0 && (d.RedirectCode < 300 || d.RedirectCode > 399) {
			c.addValue(finding.OutOfRange, at+".redirectCode", "", "redirectCode %d is not from 300 to 399", d.RedirectCode)
		}
		if d.Scheme != "" && d.Scheme != "http" && d.Scheme != "https" {
			c.addValue(finding.InvalidRewrite, at+".scheme", "", "scheme %q is neither http nor https", d.Scheme)
		}
		if n := d.GetPort(); n > 65535 {
			c.addValue(finding.OutOfRange, at+".port", "", "port %d is not from 1 to 65535", n)
		}
	}
}

func (c *checker) tlsRoute(path string, r *networkingv1.TLSRoute, hosts []string) {
	if len(r.Match) == 0 {
		c.add(finding.InvalidMatch, path, "", "%s has no match; TLS routes need sniHosts", path)
	}
	for i, m := range r.Match {
		p := at(path, ".match[%d].sniHosts", i)
		if len(m.SniHosts) == 0 {
			c.add(finding.InvalidMatch, p, "", "%s is empty", p)
		}
		for j, sni := range m.SniHosts {
			if !coveredBy(sni, hosts) {
				c.addValue(finding.InvalidMatch, resource.Item(p, j), "", "SNI host %q is not among the VirtualService's hosts", sni)
			}
		}
	}
	if len(r.Route) == 0 {
		c.add(finding.IncompleteRoute, path, "", "%s has no route", path)
	}
	c.routeDestinations(path+".route", r.Route)
}

// coveredBy reports whether every name that host stands for is one of hosts.
func coveredBy(host string, hosts []string) bool {
	for _, h := range hosts {
		if h == host || h == "*" || strings.HasPrefix(h, "*.") && strings.HasSuffix(host, h[1:]) {
			return true
		}
	}
	return false
}

func (c *checker) routeDestinations(path string, routes []*networkingv1.RouteDestination) {
	var sum int64
	for i, d := range routes {
		p := resource.Item(path, i)
		c.destination(p+".destination", d.Destination)
		if d.Weight < 0 {
			c.addValue(finding.InvalidWeight, p+".weight", "", "weight %d is negative", d.Weight)
		}
		sum += int64(d.Weight)
	}
	if len(routes) > 1 && sum == 0 {
		c.add(finding.InvalidWeight, path, "give each destination a weight", "the weights sum to 0, so no destination would be chosen")
	}
}
