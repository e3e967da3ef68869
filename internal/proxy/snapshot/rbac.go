package snapshot

import "net/netip"

// Action is what an RBAC filter does when a policy matches.
type Action uint8

// The RBAC actions. Log never changes the outcome.
const (
	Allow Action = iota
	Deny
	Log
)

// RBAC is one authorization filter, compiled. Shadow rules are evaluated and
// recorded only.
type RBAC struct {
	Action   Action
	Policies []*Policy
	// Shadow holds the dry-run twin, nil for none; ShadowPrefix its stat prefix.
	Shadow       *RBAC
	ShadowPrefix string
	// ShadowOnly means that there are no enforced rules at all.
	ShadowOnly bool
}

// DryRun is what the policies on trial (shadow rules) would have decided about
// one request.
type DryRun struct{ Allow, Deny Trial }

// Trial is the outcome of the shadow rules of one action; the zero Trial means
// that there are none.
type Trial struct {
	// Policy is the policy that matched, Istio's spelling; "" for none.
	Policy string
	// Result is Envoy's shadow_engine_result: "allowed" or "denied".
	Result string
}

// Policy matches when a permission and a principal match.
type Policy struct {
	// Name is Istio's: "ns[NS]-policy[NAME]-rule[I]".
	Name        string
	Origin      Origin
	Permissions []*Rule
	Principals  []*Rule
}

// RuleKind is the operator of a Rule.
type RuleKind uint8

// The operators of permission and principal rules.
const (
	RuleAny RuleKind = iota
	RuleAnd
	RuleOr
	RuleNot
	RuleHeader
	RulePath
	RuleDestinationIP
	RuleDestinationPort
	RuleDestinationPortRange
	RuleServerName // requested SNI
	RuleAuthenticated
	RuleDirectRemoteIP
	RuleRemoteIP
	RuleMetadata
	RulePathTemplate
)

// Rule is one node of a permission or principal tree.
type Rule struct {
	Kind   RuleKind
	Rules  []*Rule       // And, Or; one entry for Not
	Header *HeaderMatch  // Header
	Text   StringMatcher // Path, ServerName, Authenticated (PrincipalAny if AnyPrincipal)
	// AnyPrincipal matches every authenticated peer.
	AnyPrincipal bool
	Prefix       netip.Prefix
	Port         uint16
	PortLast     uint16 // inclusive end, for ranges
	// Template is the path template of RulePathTemplate.
	Template *Template
	// Metadata is a path into dynamic metadata; its value, or one element of
	// it, must match one of MetadataValues.
	MetadataFilter string
	MetadataPath   []string
	MetadataValues []StringMatcher
}
