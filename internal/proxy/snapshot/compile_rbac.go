package snapshot

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	rbacpb "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routepb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httprbacpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	netrbacpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	templatepb "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
	matcherpb "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// maxRuleDepth bounds the nesting of rules; Istio makes at most 5 levels.
const maxRuleDepth = 32

// httpRBAC compiles the HTTP RBAC filter. Fields left out: statistics names.
func httpRBAC(m *httprbacpb.RBAC) (*RBAC, error) {
	if err := only(m, "rules rules_stat_prefix shadow_rules shadow_rules_stat_prefix track_per_rule_stats"); err != nil {
		return nil, err
	}
	return rbac(m.GetRules(), m.GetShadowRules(), m.GetShadowRulesStatPrefix())
}

// networkRBAC compiles the network RBAC filter. Fields left out: statistics
// names, and enforcement_type ONE_TIME_ON_FIRST_BYTE and CONTINUOUS differ only
// in when a connection is judged; we judge once, before any byte is passed.
func networkRBAC(m *netrbacpb.RBAC) (*RBAC, error) {
	if err := only(m, "rules shadow_rules shadow_rules_stat_prefix stat_prefix enforcement_type"); err != nil {
		return nil, err
	}
	return rbac(m.GetRules(), m.GetShadowRules(), m.GetShadowRulesStatPrefix())
}

func rbac(rules, shadow *rbacpb.RBAC, prefix string) (*RBAC, error) {
	out := &RBAC{ShadowOnly: true, ShadowPrefix: prefix}
	if rules != nil {
		compiled, err := policies(rules)
		if err != nil {
			return nil, at(err, "rules")
		}
		out = compiled
		out.ShadowPrefix = prefix
	}
	if shadow != nil {
		compiled, err := policies(shadow)
		if err != nil {
			return nil, at(err, "shadow_rules")
		}
		out.Shadow = compiled
	}
	return out, nil
}

func policies(m *rbacpb.RBAC) (*RBAC, error) {
	if err := only(m, "action policies"); err != nil {
		return nil, err
	}
	out := &RBAC{}
	switch m.GetAction() {
	case rbacpb.RBAC_ALLOW:
		out.Action = Allow
	case rbacpb.RBAC_DENY:
		out.Action = Deny
	case rbacpb.RBAC_LOG:
		out.Action = Log
	default:
		return nil, fmt.Errorf("action %v is not supported", m.GetAction())
	}
	for _, name := range slices.Sorted(maps.Keys(m.GetPolicies())) {
		p, err := policy(name, m.GetPolicies()[name])
		if err != nil {
			return nil, at(err, "policies[%q]", name)
		}
		out.Policies = append(out.Policies, p)
	}
	return out, nil
}

func policy(name string, m *rbacpb.Policy) (*Policy, error) {
	if err := only(m, "permissions principals"); err != nil {
		return nil, err
	}
	p := &Policy{Name: name, Origin: policyOrigin(name)}
	var err error
	if p.Permissions, err = ruleList(m.GetPermissions(), permission, 0); err != nil {
		return nil, at(err, "permissions")
	}
	if p.Principals, err = ruleList(m.GetPrincipals(), principal, 0); err != nil {
		return nil, at(err, "principals")
	}
	if len(p.Permissions) == 0 || len(p.Principals) == 0 {
		return nil, fmt.Errorf("permissions and principals must not be empty")
	}
	return p, nil
}

// policyOrigin derives the origin id from Istio's policy name
// "ns[NS]-policy[NAME]-rule[I]"; other names have none.
func policyOrigin(name string) Origin {
	_, rest, ok1 := strings.Cut(name, "ns[")
	ns, rest, ok2 := strings.Cut(rest, "]-policy[")
	policy, rest, ok3 := strings.Cut(rest, "]-rule[")
	index, _, ok4 := strings.Cut(rest, "]")
	if !ok1 || !ok2 || !ok3 || !ok4 {
		return ""
	}
	return Origin("AuthorizationPolicy/" + policy + "." + ns + "#spec.rules[" + index + "]")
}

func ruleList[M any](list []M, compile func(M, int) (*Rule, error), depth int) ([]*Rule, error) {
	if depth > maxRuleDepth {
		return nil, fmt.Errorf("rules are nested deeper than %d", maxRuleDepth)
	}
	out := make([]*Rule, 0, len(list))
	for i, m := range list {
		r, err := compile(m, depth)
		if err != nil {
			return nil, at(err, "[%d]", i)
		}
		out = append(out, r)
	}
	return out, nil
}

func permission(m *rbacpb.Permission, depth int) (r *Rule, err error) {
	if err := only(m, `and_rules or_rules any header url_path destination_ip destination_port
		destination_port_range metadata not_rule requested_server_name uri_template`); err != nil {
		return nil, err
	}
	r = &Rule{}
	switch p := m.GetRule().(type) {
	case *rbacpb.Permission_Any:
		return anyRule(p.Any)
	case *rbacpb.Permission_AndRules:
		r.Kind = RuleAnd
		r.Rules, err = ruleList(p.AndRules.GetRules(), permission, depth+1)
		return r, notEmpty(r.Rules, err, "and_rules")
	case *rbacpb.Permission_OrRules:
		r.Kind = RuleOr
		r.Rules, err = ruleList(p.OrRules.GetRules(), permission, depth+1)
		return r, notEmpty(r.Rules, err, "or_rules")
	case *rbacpb.Permission_NotRule:
		r.Kind = RuleNot
		r.Rules, err = ruleList([]*rbacpb.Permission{p.NotRule}, permission, depth+1)
		return r, at(err, "not_rule")
	case *rbacpb.Permission_Header:
		return headerRule(p.Header)
	case *rbacpb.Permission_UrlPath:
		return pathRule(p.UrlPath)
	case *rbacpb.Permission_UriTemplate:
		var t templatepb.UriTemplateMatchConfig
		if err := decode(p.UriTemplate.GetTypedConfig(), &t); err != nil {
			return nil, at(err, "uri_template")
		}
		r.Kind = RulePathTemplate
		r.Template, err = CompileTemplate(t.GetPathTemplate())
		return r, at(err, "uri_template")
	case *rbacpb.Permission_DestinationIp:
		r.Kind = RuleDestinationIP
		r.Prefix, err = cidr(p.DestinationIp)
		return r, at(err, "destination_ip")
	case *rbacpb.Permission_DestinationPort:
		r.Kind = RuleDestinationPort
		r.Port, err = port(p.DestinationPort)
		return r, at(err, "destination_port")
	case *rbacpb.Permission_DestinationPortRange:
		lo, hi := p.DestinationPortRange.GetStart(), p.DestinationPortRange.GetEnd()
		if lo < 0 || hi > 65536 || lo >= hi {
			return nil, fmt.Errorf("destination_port_range: [%d, %d) is not valid", lo, hi)
		}
		r.Kind, r.Port, r.PortLast = RuleDestinationPortRange, uint16(lo), uint16(hi-1)
		return r, nil
	case *rbacpb.Permission_RequestedServerName:
		r.Kind = RuleServerName
		r.Text, err = stringMatcher(p.RequestedServerName)
		return r, at(err, "requested_server_name")
	case *rbacpb.Permission_Metadata:
		return metadataRule(p.Metadata)
	}
	return nil, fmt.Errorf("permission is empty")
}

func principal(m *rbacpb.Principal, depth int) (r *Rule, err error) {
	if err := only(m, `and_ids or_ids any authenticated source_ip direct_remote_ip remote_ip
		header url_path metadata not_id`); err != nil {
		return nil, err
	}
	r = &Rule{}
	switch p := m.GetIdentifier().(type) {
	case *rbacpb.Principal_Any:
		return anyRule(p.Any)
	case *rbacpb.Principal_AndIds:
		r.Kind = RuleAnd
		r.Rules, err = ruleList(p.AndIds.GetIds(), principal, depth+1)
		return r, notEmpty(r.Rules, err, "and_ids")
	case *rbacpb.Principal_OrIds:
		r.Kind = RuleOr
		r.Rules, err = ruleList(p.OrIds.GetIds(), principal, depth+1)
		return r, notEmpty(r.Rules, err, "or_ids")
	case *rbacpb.Principal_NotId:
		r.Kind = RuleNot
		r.Rules, err = ruleList([]*rbacpb.Principal{p.NotId}, principal, depth+1)
		return r, at(err, "not_id")
	case *rbacpb.Principal_Authenticated_:
		r.Kind = RuleAuthenticated
		if r.AnyPrincipal = p.Authenticated.GetPrincipalName() == nil; !r.AnyPrincipal {
			r.Text, err = stringMatcher(p.Authenticated.GetPrincipalName())
		}
		return r, at(firstError(only(p.Authenticated, "principal_name"), err), "authenticated")
	case *rbacpb.Principal_SourceIp: //nolint:staticcheck // deprecated, still sent
		r.Kind = RuleDirectRemoteIP
		r.Prefix, err = cidr(p.SourceIp)
		return r, at(err, "source_ip")
	case *rbacpb.Principal_DirectRemoteIp:
		r.Kind = RuleDirectRemoteIP
		r.Prefix, err = cidr(p.DirectRemoteIp)
		return r, at(err, "direct_remote_ip")
	case *rbacpb.Principal_RemoteIp:
		r.Kind = RuleRemoteIP
		r.Prefix, err = cidr(p.RemoteIp)
		return r, at(err, "remote_ip")
	case *rbacpb.Principal_Header:
		return headerRule(p.Header)
	case *rbacpb.Principal_UrlPath:
		return pathRule(p.UrlPath)
	case *rbacpb.Principal_Metadata:
		return metadataRule(p.Metadata)
	}
	return nil, fmt.Errorf("principal is empty")
}

func anyRule(v bool) (*Rule, error) {
	if !v {
		return nil, fmt.Errorf("any must be true")
	}
	return &Rule{Kind: RuleAny}, nil
}

// notEmpty refuses an empty AND, which would match everything, and an empty OR.
func notEmpty(rules []*Rule, err error, field string) error {
	if err == nil && len(rules) == 0 {
		err = fmt.Errorf("list is empty")
	}
	return at(err, "%s", field)
}

func headerRule(m *routepb.HeaderMatcher) (*Rule, error) {
	h, err := headerMatch(m)
	if err != nil {
		return nil, at(err, "header")
	}
	return &Rule{Kind: RuleHeader, Header: &h}, nil
}

func pathRule(m *matcherpb.PathMatcher) (*Rule, error) {
	t, err := stringMatcher(m.GetPath())
	if err != nil {
		return nil, at(err, "url_path")
	}
	return &Rule{Kind: RulePath, Text: t}, nil
}

// metadataRule compiles a match on dynamic metadata: the claims of a token.
func metadataRule(m *matcherpb.MetadataMatcher) (*Rule, error) {
	if err := only(m, "filter path value"); err != nil {
		return nil, at(err, "metadata")
	}
	r := &Rule{Kind: RuleMetadata, MetadataFilter: m.GetFilter()}
	for _, p := range m.GetPath() {
		r.MetadataPath = append(r.MetadataPath, p.GetKey())
	}
	var err error
	r.MetadataValues, err = metadataValues(nil, m.GetValue(), 0)
	return r, at(err, "metadata.value")
}

// metadataValues collects the texts of which a value, or one element of a list,
// must match one.
func metadataValues(list []StringMatcher, v *matcherpb.ValueMatcher, depth int) ([]StringMatcher, error) {
	if depth > maxRuleDepth {
		return nil, fmt.Errorf("nested deeper than %d", maxRuleDepth)
	}
	switch p := v.GetMatchPattern().(type) {
	case *matcherpb.ValueMatcher_StringMatch:
		t, err := stringMatcher(p.StringMatch)
		return append(list, t), err
	case *matcherpb.ValueMatcher_PresentMatch:
		if p.PresentMatch {
			return append(list, StringMatcher{Kind: StringPresent}), nil
		}
	case *matcherpb.ValueMatcher_ListMatch:
		if one := p.ListMatch.GetOneOf(); one != nil {
			return metadataValues(list, one, depth+1)
		}
	case *matcherpb.ValueMatcher_OrMatch:
		if len(p.OrMatch.GetValueMatchers()) == 0 {
			return nil, fmt.Errorf("or_match is empty")
		}
		var err error
		for _, one := range p.OrMatch.GetValueMatchers() {
			if list, err = metadataValues(list, one, depth+1); err != nil {
				return nil, err
			}
		}
		return list, nil
	}
	return nil, fmt.Errorf("only string_match, present_match, or_match and a list with one_of are supported")
}
