// Package filter holds what the HTTP filters have in common: the verdict that
// each returns to the request path. The filters themselves live in one folder
// each (authz, fault, cors). They are pure functions over heads and compiled
// tables; the request path in package stream calls them in configured order,
// sends the replies they ask for and waits where they want to wait.
package filter

// Verdict is what the request path does next.
type Verdict uint8

const (
	// Continue with the next filter.
	Continue Verdict = iota
	// Reply locally; the exchange goes no further.
	Reply
	// Pause until whatever the filter waits for has happened.
	Pause
)

// Reply texts of Envoy that clients match on.
const (
	BodyDenied     = "RBAC: access denied"
	BodyFaultAbort = "fault filter abort"
)
