package authz_test

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	securitypb "istio.io/api/security/v1beta1"

	"lateen.dev/lateen/internal/control/mesh"
	"lateen.dev/lateen/internal/control/translate/authz"
)

func compile(action securitypb.AuthorizationPolicy_Action, tcp bool, rules ...*securitypb.Rule) []authz.Rules {
	p := &mesh.AuthorizationPolicy{Name: "p", Namespace: "ns", Spec: &securitypb.AuthorizationPolicy{Action: action, Rules: rules}}
	return authz.Compile([]*mesh.AuthorizationPolicy{p}, []string{"td.example", "old.example"}, tcp, func(mesh.Origin) {})
}

func text(t *testing.T, r []authz.Rules) string {
	t.Helper()
	if len(r) != 1 || r[0].Enforced == nil {
		t.Fatalf("got %d filters, want one that is enforced", len(r))
	}
	return strings.Join(strings.Fields(prototext.Format(r[0].Enforced)), " ")
}

func operation(o *securitypb.Operation) *securitypb.Rule {
	return &securitypb.Rule{To: []*securitypb.Rule_To{{Operation: o}}}
}

func when(key string, values ...string) *securitypb.Rule {
	return &securitypb.Rule{When: []*securitypb.Condition{{Key: key, Values: values}}}
}

// TestNothingFailsOpen covers what cannot be asked or understood: an ALLOW rule
// must then match nothing, a DENY rule more rather than less.
func TestNothingFailsOpen(t *testing.T) {
	const allow, deny = securitypb.AuthorizationPolicy_ALLOW, securitypb.AuthorizationPolicy_DENY
	get := operation(&securitypb.Operation{Methods: []string{"GET"}})
	if got := text(t, compile(allow, true, get)); strings.Contains(got, "policies") {
		t.Errorf("ALLOW by method on TCP: got %s, want no policy at all, which denies", got)
	}
	if got := text(t, compile(deny, true, get)); !strings.Contains(got, "permissions: { and_rules: { rules: { any: true } } }") &&
		!strings.Contains(got, "permissions:{and_rules:{rules:{any:true}}}") {
		t.Errorf("DENY by method on TCP: got %s, want every connection denied", got)
	}
	for _, rule := range []*securitypb.Rule{
		when("no.such.key", "x"), when("source.ip", "not-an-address"), when("destination.port", "many"),
		operation(&securitypb.Operation{Ports: []string{"70000"}}),
	} {
		got := text(t, compile(allow, false, rule))
		if !strings.Contains(got, "not_rule") && !strings.Contains(got, "not_id") {
			t.Errorf("ALLOW with %v: got %s, want a rule that matches nothing", rule, got)
		}
	}
	if got := text(t, compile(allow, false)); !strings.Contains(got, "not_rule") {
		t.Errorf("ALLOW without rules: got %s, want everything denied", got)
	}
	if got := text(t, compile(securitypb.AuthorizationPolicy_CUSTOM, false, get)); !strings.Contains(got, "action:") || !strings.Contains(got, "DENY") {
		t.Errorf("CUSTOM: got %s, want a denial", got)
	}
}

// TestTrustDomains wants a principal of the mesh to cover its aliases, and one
// of a stranger to stay as it is.
func TestTrustDomains(t *testing.T) {
	from := func(principal string) string {
		return text(t, compile(securitypb.AuthorizationPolicy_ALLOW, false, &securitypb.Rule{
			From: []*securitypb.Rule_From{{Source: &securitypb.Source{Principals: []string{principal}}}},
		}))
	}
	for _, p := range []string{"cluster.local/ns/a/sa/b", "old.example/ns/a/sa/b"} {
		got := from(p)
		if !strings.Contains(got, "spiffe://td.example/ns/a/sa/b") || !strings.Contains(got, "spiffe://old.example/ns/a/sa/b") {
			t.Errorf("%s: got %s, want both trust domains", p, got)
		}
	}
	if got := from("other/ns/a/sa/b"); strings.Contains(got, "td.example") || !strings.Contains(got, "spiffe://other/ns/a/sa/b") {
		t.Errorf("a stranger: got %s", got)
	}
}
