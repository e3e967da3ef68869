package authz

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacpb "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routepb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	uripb "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
	matcherpb "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	securitypb "istio.io/api/security/v1beta1"
)

// ruleGenerator turns one rule of an AuthorizationPolicy into permissions and
// principals. On TCP connections fields of HTTP cannot match: an ALLOW rule
// that has one matches nothing and is left out; a DENY rule keeps the rest, so
// that it denies more rather than less.
type ruleGenerator struct {
	// trustDomains are the mesh's own and its aliases, its own first.
	trustDomains []string
	tcp          bool
	allow        bool
	namespace    string
	// impossible is set when the rule cannot match on this kind of chain.
	impossible bool
}

// jwtFilter is the filter whose dynamic metadata holds the claims of a token.
const jwtFilter = "envoy.filters.http.jwt_authn"

func (g *ruleGenerator) policy(r *securitypb.Rule) *rbacpb.Policy {
	out := &rbacpb.Policy{}
	whenTo, whenFrom := g.conditions(r.GetWhen())
	to := r.GetTo()
	if len(to) == 0 {
		to = []*securitypb.Rule_To{{}}
	}
	for _, t := range to {
		list := append(g.operation(t.GetOperation()), whenTo...)
		if len(list) == 0 {
			list = []*rbacpb.Permission{anyPermission()}
		}
		out.Permissions = append(out.Permissions, &rbacpb.Permission{Rule: &rbacpb.Permission_AndRules{
			AndRules: &rbacpb.Permission_Set{Rules: list},
		}})
	}
	from := r.GetFrom()
	if len(from) == 0 {
		from = []*securitypb.Rule_From{{}}
	}
	for _, f := range from {
		list := append(g.source(f.GetSource()), whenFrom...)
		if len(list) == 0 {
			list = []*rbacpb.Principal{anyPrincipal()}
		}
		out.Principals = append(out.Principals, &rbacpb.Principal{Identifier: &rbacpb.Principal_AndIds{
			AndIds: &rbacpb.Principal_Set{Ids: list},
		}})
	}
	if g.impossible && g.allow {
		return nil
	}
	return out
}

// http reports whether a field of HTTP with these values may be used, and notes
// that it may not.
func (g *ruleGenerator) http(values, not []string) bool {
	if !g.tcp {
		return true
	}
	if len(values) > 0 || len(not) > 0 {
		g.impossible = true
	}
	return false
}

func (g *ruleGenerator) operation(o *securitypb.Operation) []*rbacpb.Permission {
	var out []*rbacpb.Permission
	if g.http(o.GetHosts(), o.GetNotHosts()) {
		out = g.permissions(out, o.GetHosts(), o.GetNotHosts(), func(v string) *rbacpb.Permission {
			return headerPermission(":authority", v, true)
		})
	}
	if g.http(o.GetMethods(), o.GetNotMethods()) {
		out = g.permissions(out, o.GetMethods(), o.GetNotMethods(), func(v string) *rbacpb.Permission {
			return headerPermission(":method", v, false)
		})
	}
	if g.http(o.GetPaths(), o.GetNotPaths()) {
		out = g.permissions(out, o.GetPaths(), o.GetNotPaths(), pathPermission)
	}
	return g.permissions(out, o.GetPorts(), o.GetNotPorts(), portPermission)
}

// permissions appends the alternatives of a field and the negation of those
// that it excludes.
func (g *ruleGenerator) permissions(list []*rbacpb.Permission, values, not []string, one func(string) *rbacpb.Permission) []*rbacpb.Permission {
	or := func(values []string) *rbacpb.Permission {
		var rules []*rbacpb.Permission
		for _, v := range values {
			rules = append(rules, one(v))
		}
		return &rbacpb.Permission{Rule: &rbacpb.Permission_OrRules{OrRules: &rbacpb.Permission_Set{Rules: rules}}}
	}
	if len(values) > 0 {
		list = append(list, or(values))
	}
	if len(not) > 0 {
		list = append(list, &rbacpb.Permission{Rule: &rbacpb.Permission_NotRule{NotRule: or(not)}})
	}
	return list
}

func (g *ruleGenerator) principals(list []*rbacpb.Principal, values, not []string, one func(string) []*rbacpb.Principal) []*rbacpb.Principal {
	or := func(values []string) *rbacpb.Principal {
		var ids []*rbacpb.Principal
		for _, v := range values {
			ids = append(ids, one(v)...)
		}
		return &rbacpb.Principal{Identifier: &rbacpb.Principal_OrIds{OrIds: &rbacpb.Principal_Set{Ids: ids}}}
	}
	if len(values) > 0 {
		list = append(list, or(values))
	}
	if len(not) > 0 {
		list = append(list, notPrincipal(or(not)))
	}
	return list
}

func (g *ruleGenerator) source(s *securitypb.Source) []*rbacpb.Principal {
	out := g.principals(nil, s.GetPrincipals(), s.GetNotPrincipals(), g.principal)
	if g.http(s.GetRequestPrincipals(), s.GetNotRequestPrincipals()) {
		out = g.requestPrincipals(out, s.GetRequestPrincipals(), s.GetNotRequestPrincipals())
	}
	out = g.principals(out, s.GetServiceAccounts(), s.GetNotServiceAccounts(), g.serviceAccount)
	out = g.principals(out, s.GetNamespaces(), s.GetNotNamespaces(), sourceNamespace)
	out = g.principals(out, s.GetTrustDomains(), s.GetNotTrustDomains(), sourceTrustDomain)
	out = g.principals(out, s.GetRemoteIpBlocks(), s.GetNotRemoteIpBlocks(), remoteIP)
	return g.principals(out, s.GetIpBlocks(), s.GetNotIpBlocks(), directIP)
}

// conditions splits `when` into what is asked of the request and what of the
// source.
func (g *ruleGenerator) conditions(list []*securitypb.Condition) (to []*rbacpb.Permission, from []*rbacpb.Principal) {
	for _, c := range list {
		key, values, not := c.GetKey(), c.GetValues(), c.GetNotValues()
		switch {
		case strings.HasPrefix(key, "request.") || strings.HasPrefix(key, "experimental.envoy.filters."):
			if g.http(values, not) {
				to, from = g.requestCondition(to, from, key, values, not)
			}
		case key == "destination.port":
			to = g.permissions(to, values, not, portPermission)
		case key == "destination.ip":
			to = g.permissions(to, values, not, destinationIP)
		case key == "connection.sni":
			to = g.permissions(to, values, not, func(v string) *rbacpb.Permission {
				return &rbacpb.Permission{Rule: &rbacpb.Permission_RequestedServerName{RequestedServerName: matchString(v)}}
			})
		case key == "source.ip":
			from = g.principals(from, values, not, directIP)
		case key == "remote.ip":
			from = g.principals(from, values, not, remoteIP)
		case key == "source.namespace":
			from = g.principals(from, values, not, sourceNamespace)
		case key == "source.serviceAccount":
			from = g.principals(from, values, not, g.serviceAccount)
		case key == "source.trustDomain":
			from = g.principals(from, values, not, sourceTrustDomain)
		case key == "source.principal":
			from = g.principals(from, values, not, g.principal)
		default:
			g.unknown(&to)
		}
	}
	return to, from
}

// unknown makes a rule with a condition that cannot be understood fail closed:
// an ALLOW rule matches nothing; a DENY rule keeps its other parts.
func (g *ruleGenerator) unknown(to *[]*rbacpb.Permission) {
	if g.allow {
		*to = append(*to, &rbacpb.Permission{Rule: &rbacpb.Permission_NotRule{NotRule: anyPermission()}})
	}
}

func (g *ruleGenerator) requestCondition(to []*rbacpb.Permission, from []*rbacpb.Principal, key string, values, not []string) ([]*rbacpb.Permission, []*rbacpb.Principal) {
	switch {
	case strings.HasPrefix(key, "request.headers["):
		name := strings.TrimSuffix(strings.TrimPrefix(key, "request.headers["), "]")
		return to, g.principals(from, values, not, func(v string) []*rbacpb.Principal {
			return []*rbacpb.Principal{{Identifier: &rbacpb.Principal_Header{Header: headerMatcher(name, v, false)}}}
		})
	case key == "request.auth.principal":
		return to, g.requestPrincipals(from, values, not)
	case key == "request.auth.audiences":
		return to, claim(from, []string{"aud"}, values, not)
	case key == "request.auth.presenter":
		return to, claim(from, []string{"azp"}, values, not)
	case strings.HasPrefix(key, "request.auth.claims["):
		path := strings.TrimSuffix(strings.TrimPrefix(key, "request.auth.claims["), "]")
		return to, claim(from, strings.Split(path, "]["), values, not)
	case strings.HasPrefix(key, "experimental.envoy.filters."):
		return g.filterMetadata(to, key, values, not), from
	}
	g.unknown(&to)
	return to, from
}

// filterMetadata matches dynamic metadata of another filter:
// experimental.envoy.filters.NAME[key].
func (g *ruleGenerator) filterMetadata(to []*rbacpb.Permission, key string, values, not []string) []*rbacpb.Permission {
	filter, path, ok := strings.Cut(strings.TrimPrefix(key, "experimental."), "[")
	if !ok {
		g.unknown(&to)
		return to
	}
	one := func(v string) *rbacpb.Permission {
		value := &matcherpb.ValueMatcher{MatchPattern: &matcherpb.ValueMatcher_StringMatch{StringMatch: matchString(v)}}
		if strings.HasPrefix(v, "[") && strings.HasSuffix(v, "]") {
			value = listOf(&matcherpb.ValueMatcher{MatchPattern: &matcherpb.ValueMatcher_StringMatch{StringMatch: matchString(v[1 : len(v)-1])}})
		}
		return &rbacpb.Permission{Rule: &rbacpb.Permission_Metadata{Metadata: metadataMatcher(filter, []string{strings.TrimSuffix(path, "]")}, value)}}
	}
	if len(values) == 1 && len(not) == 0 {
		return append(to, one(values[0]))
	}
	return g.permissions(to, values, not, one)
}

func anyPermission() *rbacpb.Permission {
	return &rbacpb.Permission{Rule: &rbacpb.Permission_Any{Any: true}}
}

func anyPrincipal() *rbacpb.Principal {
	return &rbacpb.Principal{Identifier: &rbacpb.Principal_Any{Any: true}}
}

func notPrincipal(p *rbacpb.Principal) *rbacpb.Principal {
	return &rbacpb.Principal{Identifier: &rbacpb.Principal_NotId{NotId: p}}
}

func headerPermission(name, value string, ignoreCase bool) *rbacpb.Permission {
	return &rbacpb.Permission{Rule: &rbacpb.Permission_Header{Header: headerMatcher(name, value, ignoreCase)}}
}

// headerMatcher matches a header as authorization values are written: exact,
// prefix*, *suffix, or * for presence.
func headerMatcher(name, value string, ignoreCase bool) *routepb.HeaderMatcher {
	if value == "*" {
		return &routepb.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routepb.HeaderMatcher_PresentMatch{PresentMatch: true}}
	}
	m := matchString(value)
	m.IgnoreCase = ignoreCase
	return &routepb.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routepb.HeaderMatcher_StringMatch{StringMatch: m}}
}

// matchString matches text as authorization values are written.
func matchString(v string) *matcherpb.StringMatcher {
	switch {
	case v == "*":
		return withRegex(".+")
	case strings.HasPrefix(v, "*"):
		return withSuffix(v[1:])
	case strings.HasSuffix(v, "*"):
		return withPrefix(v[:len(v)-1])
	}
	return exactly(v)
}

func pathPermission(v string) *rbacpb.Permission {
	if strings.Contains(v, "{*}") || strings.Contains(v, "{**}") {
		template := strings.NewReplacer("{**}", "**", "{*}", "*").Replace(v)
		return &rbacpb.Permission{Rule: &rbacpb.Permission_UriTemplate{UriTemplate: &corepb.TypedExtensionConfig{
			Name: "uri-template", TypedConfig: templateConfig(template),
		}}}
	}
	return &rbacpb.Permission{Rule: &rbacpb.Permission_UrlPath{UrlPath: &matcherpb.PathMatcher{
		Rule: &matcherpb.PathMatcher_Path{Path: matchString(v)},
	}}}
}

// portPermission matches the destination port. A value that is no port matches
// no connection.
func portPermission(v string) *rbacpb.Permission {
	port, err := strconv.ParseUint(v, 10, 16)
	if err != nil {
		return &rbacpb.Permission{Rule: &rbacpb.Permission_NotRule{NotRule: anyPermission()}}
	}
	return &rbacpb.Permission{Rule: &rbacpb.Permission_DestinationPort{DestinationPort: uint32(port)}}
}

// CIDR parses an address or a range; false for neither.
func CIDR(v string) (*corepb.CidrRange, bool) {
	p, err := netip.ParsePrefix(v)
	if err != nil {
		a, err := netip.ParseAddr(v)
		if err != nil {
			return nil, false
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	return &corepb.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(p.Bits()))}, true
}

func destinationIP(v string) *rbacpb.Permission {
	r, ok := CIDR(v)
	if !ok {
		return &rbacpb.Permission{Rule: &rbacpb.Permission_NotRule{NotRule: anyPermission()}}
	}
	return &rbacpb.Permission{Rule: &rbacpb.Permission_DestinationIp{DestinationIp: r}}
}

func directIP(v string) []*rbacpb.Principal {
	r, ok := CIDR(v)
	if !ok {
		return []*rbacpb.Principal{notPrincipal(anyPrincipal())}
	}
	return []*rbacpb.Principal{{Identifier: &rbacpb.Principal_DirectRemoteIp{DirectRemoteIp: r}}}
}

func remoteIP(v string) []*rbacpb.Principal {
	r, ok := CIDR(v)
	if !ok {
		return []*rbacpb.Principal{notPrincipal(anyPrincipal())}
	}
	return []*rbacpb.Principal{{Identifier: &rbacpb.Principal_RemoteIp{RemoteIp: r}}}
}

func authenticated(m *matcherpb.StringMatcher) *rbacpb.Principal {
	return &rbacpb.Principal{Identifier: &rbacpb.Principal_Authenticated_{
		Authenticated: &rbacpb.Principal_Authenticated{PrincipalName: m},
	}}
}

// principal matches the peer's identity. The mesh's own trust domain stands for
// its aliases too, and "cluster.local" for the mesh's trust domain.
func (g *ruleGenerator) principal(v string) []*rbacpb.Principal {
	switch {
	case v == "*":
		return []*rbacpb.Principal{authenticated(withRegex(".+"))}
	case strings.HasPrefix(v, "*"):
		return []*rbacpb.Principal{authenticated(withRegex("spiffe://.*" + regexp.QuoteMeta(v[1:])))}
	}
	td, rest, ok := strings.Cut(v, "/")
	domains := []string{td}
	if own := g.trustDomains; ok && (td == "cluster.local" || slices.Contains(own, td)) {
		domains = own
	}
	var out []*rbacpb.Principal
	for _, d := range domains {
		text := d
		if ok {
			text += "/" + rest
		}
		if p, wild := strings.CutSuffix(text, "*"); wild {
			out = append(out, authenticated(withPrefix("spiffe://"+p)))
		} else {
			out = append(out, authenticated(exactly("spiffe://"+text)))
		}
	}
	return out
}

// glob turns * of an authorization value into a regular expression.
func glob(v string) string {
	return strings.ReplaceAll(regexp.QuoteMeta(v), `\*`, ".*")
}

func sourceNamespace(v string) []*rbacpb.Principal {
	return []*rbacpb.Principal{authenticated(withRegex(".*/ns/" + glob(v) + "/.*"))}
}

func sourceTrustDomain(v string) []*rbacpb.Principal {
	text := glob(v)
	if v == "*" {
		text = "[^/]+"
	}
	return []*rbacpb.Principal{authenticated(withRegex("spiffe://" + text + "/.*"))}
}

// serviceAccount matches "namespace/name", or a name in the policy's namespace.
func (g *ruleGenerator) serviceAccount(v string) []*rbacpb.Principal {
	ns, name, ok := strings.Cut(v, "/")
	if !ok {
		ns, name = g.namespace, v
	}
	return []*rbacpb.Principal{authenticated(withRegex(
		"spiffe://.+/ns/" + regexp.QuoteMeta(ns) + "/(.+/|)sa/" + regexp.QuoteMeta(name) + "(/.+)?",
	))}
}

func metadataMatcher(filter string, path []string, value *matcherpb.ValueMatcher) *matcherpb.MetadataMatcher {
	m := &matcherpb.MetadataMatcher{Filter: filter, Value: value}
	for _, p := range path {
		m.Path = append(m.Path, &matcherpb.MetadataMatcher_PathSegment{Segment: &matcherpb.MetadataMatcher_PathSegment_Key{Key: p}})
	}
	return m
}

func listOf(v *matcherpb.ValueMatcher) *matcherpb.ValueMatcher {
	return &matcherpb.ValueMatcher{MatchPattern: &matcherpb.ValueMatcher_ListMatch{ListMatch: &matcherpb.ListMatcher{
		MatchPattern: &matcherpb.ListMatcher_OneOf{OneOf: v},
	}}}
}

func jwtPrincipal(path []string, value *matcherpb.ValueMatcher) *rbacpb.Principal {
	return &rbacpb.Principal{Identifier: &rbacpb.Principal_Metadata{
		Metadata: metadataMatcher(jwtFilter, append([]string{"payload"}, path...), value),
	}}
}

// requestPrincipals matches "issuer/subject" of a verified token.
func (g *ruleGenerator) requestPrincipals(list []*rbacpb.Principal, values, not []string) []*rbacpb.Principal {
	one := func(v string) *rbacpb.Principal {
		iss, sub := "*", "*"
		if i := strings.LastIndexByte(v, '/'); i >= 0 {
			iss, sub = v[:i], v[i+1:]
		} else if v != "*" {
			iss, sub = v, ""
		}
		text := func(s string) *matcherpb.ValueMatcher {
			return &matcherpb.ValueMatcher{MatchPattern: &matcherpb.ValueMatcher_StringMatch{StringMatch: matchString(s)}}
		}
		return &rbacpb.Principal{Identifier: &rbacpb.Principal_AndIds{AndIds: &rbacpb.Principal_Set{Ids: []*rbacpb.Principal{
			jwtPrincipal([]string{"iss"}, text(iss)), jwtPrincipal([]string{"sub"}, text(sub)),
		}}}}
	}
	or := func(values []string) *rbacpb.Principal {
		if len(values) == 1 {
			return one(values[0])
		}
		var ids []*rbacpb.Principal
		for _, v := range values {
			ids = append(ids, one(v))
		}
		return &rbacpb.Principal{Identifier: &rbacpb.Principal_OrIds{OrIds: &rbacpb.Principal_Set{Ids: ids}}}
	}
	if len(values) > 0 {
		list = append(list, or(values))
	}
	if len(not) > 0 {
		list = append(list, notPrincipal(or(not)))
	}
	return list
}

// claim matches a claim of a verified token, be it a text or a list of texts.
func claim(list []*rbacpb.Principal, path, values, not []string) []*rbacpb.Principal {
	one := func(values []string) *rbacpb.Principal {
		var texts []*matcherpb.ValueMatcher
		for _, v := range values {
			texts = append(texts, &matcherpb.ValueMatcher{MatchPattern: &matcherpb.ValueMatcher_StringMatch{StringMatch: matchString(v)}})
		}
		value := texts[0]
		if len(texts) > 1 {
			value = anyOf(texts...)
		}
		return jwtPrincipal(path, anyOf(listOf(value), value))
	}
	if len(values) > 0 {
		list = append(list, one(values))
	}
	if len(not) > 0 {
		list = append(list, notPrincipal(one(not)))
	}
	return list
}

func anyOf(list ...*matcherpb.ValueMatcher) *matcherpb.ValueMatcher {
	return &matcherpb.ValueMatcher{MatchPattern: &matcherpb.ValueMatcher_OrMatch{OrMatch: &matcherpb.OrMatcher{ValueMatchers: list}}}
}

func templateConfig(template string) *anypb.Any {
	a, err := anypb.New(&uripb.UriTemplateMatchConfig{PathTemplate: template})
	if err != nil {
		panic("authz: cannot encode a path template: " + err.Error())
	}
	return a
}

func exactly(s string) *matcherpb.StringMatcher {
	return &matcherpb.StringMatcher{MatchPattern: &matcherpb.StringMatcher_Exact{Exact: s}}
}

func withPrefix(s string) *matcherpb.StringMatcher {
	return &matcherpb.StringMatcher{MatchPattern: &matcherpb.StringMatcher_Prefix{Prefix: s}}
}

func withSuffix(s string) *matcherpb.StringMatcher {
	return &matcherpb.StringMatcher{MatchPattern: &matcherpb.StringMatcher_Suffix{Suffix: s}}
}

func withRegex(s string) *matcherpb.StringMatcher {
	return &matcherpb.StringMatcher{MatchPattern: &matcherpb.StringMatcher_SafeRegex{SafeRegex: &matcherpb.RegexMatcher{Regex: s}}}
}
