// Package authz is the authorization filter of the request path: it asks the
// compiled RBAC tables of the snapshot and says how a refusal is to be told, in
// the words that operators search for. It is pure.
package authz

import (
	"strings"

	"lateen.dev/lateen/internal/proxy/filter"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// Result is the outcome of one RBAC filter for one request or connection.
type Result struct {
	Verdict filter.Verdict
	// Policy is the policy that matched, nil for none.
	Policy *snapshot.Policy
	// Origin is where a refusal comes from: the rule that matched, or the object
	// whose rules all did not.
	Origin snapshot.Origin
	// Details is %RESPONSE_CODE_DETAILS% of a refusal (Envoy:
	// rbac_access_denied_matched_policy[name], "none" when no ALLOW matched).
	Details string
}

// Check evaluates one filter.
func Check(r *snapshot.RBAC, s *snapshot.Subject) Result {
	allowed, policy := r.Evaluate(s)
	if allowed {
		return Result{Verdict: filter.Continue, Policy: policy}
	}
	res := Result{Verdict: filter.Reply, Policy: policy, Origin: r.Owner(), Details: Details(policy)}
	if policy != nil {
		res.Origin = policy.Origin
	}
	return res
}

// DryRun evaluates the shadow rules of one filter, which refuse nobody, and adds
// their outcome to what earlier filters had to say.
func DryRun(r *snapshot.RBAC, s *snapshot.Subject, so snapshot.DryRun) snapshot.DryRun {
	if r == nil || r.Shadow == nil {
		return so
	}
	allowed, policy := r.Shadow.Evaluate(s)
	trial := snapshot.Trial{Result: "denied"}
	if allowed {
		trial.Result = "allowed"
	}
	if policy != nil {
		trial.Policy = policy.Name
	}
	if r.Shadow.Action == snapshot.Deny {
		so.Deny = trial
	} else {
		so.Allow = trial
	}
	return so
}

// Details names the policy that refused, nil for the absence of one that allows.
func Details(policy *snapshot.Policy) string {
	name := "none"
	if policy != nil {
		name = strings.Join(strings.Fields(policy.Name), "_")
	}
	return "rbac_access_denied_matched_policy[" + name + "]"
}

// Connection evaluates the network filters of a chain in order and returns the
// first refusal, or a result that lets the connection pass.
func Connection(filters []*snapshot.RBAC, s *snapshot.Subject) Result {
	for _, r := range filters {
		if res := Check(r, s); res.Verdict == filter.Reply {
			return res
		}
	}
	return Result{Verdict: filter.Continue}
}
