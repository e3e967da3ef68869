package translate

import (
	"strconv"

	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacpb "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	rbachttppb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	rbactcppb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	securitypb "istio.io/api/security/v1beta1"

	"lateen.dev/lateen/internal/control/mesh"
)

// authorization is the access policy of a workload in the order of evaluation.
type authorization struct {
	custom, audit, deny, allow []*mesh.AuthorizationPolicy
}

func (b *builder) authorization() authorization {
	var a authorization
	for _, p := range b.m.AuthorizationFor(b.n.Namespace, b.n.Labels) {
		switch p.Spec.GetAction() {
		case securitypb.AuthorizationPolicy_CUSTOM:
			a.custom = append(a.custom, p)
		case securitypb.AuthorizationPolicy_AUDIT:
			a.audit = append(a.audit, p)
		case securitypb.AuthorizationPolicy_DENY:
			a.deny = append(a.deny, p)
		default:
			a.allow = append(a.allow, p)
		}
	}
	return a
}

// rules are the enforced and the dry-run policies of one filter.
type rules struct{ enforced, shadow *rbacpb.RBAC }

// filters returns the rules of each filter of a workload, in order.
func (b *builder) filters(tcp bool) []rules {
	a := b.authorization()
	var out []rules
	for _, f := range []struct {
		list   []*mesh.AuthorizationPolicy
		action rbacpb.RBAC_Action
		custom bool
	}{
		// External authorization is not called yet; what it would have decided
		// about is denied, as Istio does for a provider it cannot use.
		{a.custom, rbacpb.RBAC_DENY, true},
		{a.audit, rbacpb.RBAC_LOG, false},
		{a.deny, rbacpb.RBAC_DENY, false},
		{a.allow, rbacpb.RBAC_ALLOW, false},
	} {
		if r := b.compile(f.list, f.action, f.custom, tcp); r.enforced != nil || r.shadow != nil {
			out = append(out, r)
		}
	}
	return out
}

func (b *builder) compile(list []*mesh.AuthorizationPolicy, action rbacpb.RBAC_Action, custom, tcp bool) rules {
	var out rules
	for _, p := range list {
		into := &out.enforced
		if p.DryRun && action != rbacpb.RBAC_LOG && !custom {
			into = &out.shadow
		}
		if *into == nil {
			*into = &rbacpb.RBAC{Action: action, Policies: map[string]*rbacpb.Policy{}}
		}
		b.compilePolicy(*into, p, action, custom, tcp)
	}
	return out
}

// compilePolicy adds the rules of one policy under Istio's names.
func (b *builder) compilePolicy(into *rbacpb.RBAC, p *mesh.AuthorizationPolicy, action rbacpb.RBAC_Action, custom, tcp bool) {
	name := func(i int) string {
		n := "ns[" + p.Namespace + "]-policy[" + p.Name + "]-rule[" + strconv.Itoa(i) + "]"
		if custom {
			n = "istio-ext-authz-" + p.Spec.GetProvider().GetName() + "-" + n + "-deny-due-to-bad-CUSTOM-action"
		}
		return n
	}
	if len(p.Spec.GetRules()) == 0 {
		into.Policies[name(0)] = matchNothing()
		b.noteOrigin(mesh.Origin{Object: p.Object})
		return
	}
	for i, r := range p.Spec.GetRules() {
		g := ruleGenerator{b: b, tcp: tcp, allow: action == rbacpb.RBAC_ALLOW, namespace: p.Namespace}
		if policy := g.policy(r); policy != nil {
			into.Policies[name(i)] = policy
			b.noteOrigin(mesh.Origin{Object: p.Object, Path: "spec.rules[" + strconv.Itoa(i) + "]"})
		}
	}
}

// matchNothing is the policy of an object without rules.
func matchNothing() *rbacpb.Policy {
	return &rbacpb.Policy{
		Permissions: []*rbacpb.Permission{{Rule: &rbacpb.Permission_NotRule{NotRule: anyPermission()}}},
		Principals:  []*rbacpb.Principal{{Identifier: &rbacpb.Principal_NotId{NotId: anyPrincipal()}}},
	}
}

// shadowPrefix is the prefix of what a filter reports about dry-run policies.
func (r rules) shadowPrefix() string {
	if r.shadow != nil && r.shadow.GetAction() == rbacpb.RBAC_DENY {
		return "istio_dry_run_deny_"
	}
	return "istio_dry_run_allow_"
}

func (b *builder) authorizationHTTP() []*hcmpb.HttpFilter {
	var out []*hcmpb.HttpFilter
	for _, r := range b.filters(false) {
		out = append(out, httpFilter("envoy.filters.http.rbac", &rbachttppb.RBAC{
			Rules: r.enforced, ShadowRules: r.shadow, ShadowRulesStatPrefix: r.shadowPrefix(),
		}))
	}
	return out
}

func (b *builder) authorizationTCP() []*listenerpb.Filter {
	var out []*listenerpb.Filter
	for _, r := range b.filters(true) {
		out = append(out, networkFilter("envoy.filters.network.rbac", &rbactcppb.RBAC{
			Rules: r.enforced, ShadowRules: r.shadow, ShadowRulesStatPrefix: r.shadowPrefix(), StatPrefix: "tcp.",
		}))
	}
	return out
}
