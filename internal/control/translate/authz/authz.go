// Package authz turns AuthorizationPolicies into Envoy's RBAC rules. It is the
// part of translation that decides who may do what: pure, and the same for HTTP
// requests and TCP connections except that what cannot be asked of a connection
// never lets one through.
//
// Policy names are Istio's, ns[NS]-policy[NAME]-rule[I]. It does not call
// external authorization; what CUSTOM policies would have asked about is denied.
package authz

import (
	"strconv"

	rbacpb "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	securitypb "istio.io/api/security/v1beta1"

	"lateen.dev/lateen/internal/control/mesh"
)

// Rules are the enforced and the dry-run policies of one filter; either may be
// nil, not both.
type Rules struct{ Enforced, Shadow *rbacpb.RBAC }

// ShadowPrefix is the prefix of what a filter reports about dry-run policies.
func (r Rules) ShadowPrefix() string {
	if r.Shadow != nil && r.Shadow.GetAction() == rbacpb.RBAC_DENY {
		return "istio_dry_run_deny_"
	}
	return "istio_dry_run_allow_"
}

// Compile returns the rules of each filter of a workload in the order of
// evaluation: CUSTOM, AUDIT, DENY, ALLOW. trustDomains are the mesh's own and
// its aliases, its own first. tcp asks for rules on connections instead of
// requests. note is told the origin of every rule that is in force.
func Compile(policies []*mesh.AuthorizationPolicy, trustDomains []string, tcp bool, note func(mesh.Origin)) []Rules {
	var custom, audit, deny, allow []*mesh.AuthorizationPolicy
	for _, p := range policies {
		switch p.Spec.GetAction() {
		case securitypb.AuthorizationPolicy_CUSTOM:
			custom = append(custom, p)
		case securitypb.AuthorizationPolicy_AUDIT:
			audit = append(audit, p)
		case securitypb.AuthorizationPolicy_DENY:
			deny = append(deny, p)
		default:
			allow = append(allow, p)
		}
	}
	var out []Rules
	for _, f := range []compiler{
		// External authorization is not called yet; what it would have decided
		// about is denied, as Istio does for a provider it cannot use.
		{policies: custom, action: rbacpb.RBAC_DENY, custom: true},
		{policies: audit, action: rbacpb.RBAC_LOG},
		{policies: deny, action: rbacpb.RBAC_DENY},
		{policies: allow, action: rbacpb.RBAC_ALLOW},
	} {
		f.trustDomains, f.tcp, f.note = trustDomains, tcp, note
		if r := f.compile(); r.Enforced != nil || r.Shadow != nil {
			out = append(out, r)
		}
	}
	return out
}

// compiler makes the rules of one filter.
type compiler struct {
	policies     []*mesh.AuthorizationPolicy
	action       rbacpb.RBAC_Action
	custom, tcp  bool
	trustDomains []string
	note         func(mesh.Origin)
}

func (c compiler) compile() Rules {
	var out Rules
	for _, p := range c.policies {
		into := &out.Enforced
		if p.DryRun && c.action != rbacpb.RBAC_LOG && !c.custom {
			into = &out.Shadow
		}
		if *into == nil {
			*into = &rbacpb.RBAC{Action: c.action, Policies: map[string]*rbacpb.Policy{}}
		}
		c.add(*into, p)
	}
	return out
}

// add adds the rules of one policy under Istio's names.
func (c compiler) add(into *rbacpb.RBAC, p *mesh.AuthorizationPolicy) {
	c.note(mesh.Origin{Object: p.Object}) // what a refusal names when no rule matches
	if len(p.Spec.GetRules()) == 0 {
		into.Policies[c.name(p, 0)] = matchNothing()
		return
	}
	for i, r := range p.Spec.GetRules() {
		g := ruleGenerator{trustDomains: c.trustDomains, tcp: c.tcp, allow: c.action == rbacpb.RBAC_ALLOW, namespace: p.Namespace}
		if policy := g.policy(r); policy != nil {
			into.Policies[c.name(p, i)] = policy
			c.note(mesh.Origin{Object: p.Object, Path: "spec.rules[" + strconv.Itoa(i) + "]"})
		}
	}
}

func (c compiler) name(p *mesh.AuthorizationPolicy, rule int) string {
	n := "ns[" + p.Namespace + "]-policy[" + p.Name + "]-rule[" + strconv.Itoa(rule) + "]"
	if c.custom {
		n = "istio-ext-authz-" + p.Spec.GetProvider().GetName() + "-" + n + "-deny-due-to-bad-CUSTOM-action"
	}
	return n
}

// matchNothing is the policy of an object without rules.
func matchNothing() *rbacpb.Policy {
	return &rbacpb.Policy{
		Permissions: []*rbacpb.Permission{{Rule: &rbacpb.Permission_NotRule{NotRule: anyPermission()}}},
		Principals:  []*rbacpb.Principal{{Identifier: &rbacpb.Principal_NotId{NotId: anyPrincipal()}}},
	}
}
