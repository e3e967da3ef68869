package snapshot

import (
	"net/netip"
	"slices"
	"strings"

	"lateen.dev/lateen/internal/proxy/message"
)

// Subject is what authorization may look at.
type Subject struct {
	// Head is the request, nil for connections (network RBAC).
	Head *message.Head
	Conn *message.Conn
	// Remote is the client's address as x-forwarded-for tells it for trusted
	// hops; the zero value means the address of the connection.
	Remote netip.Addr
	// Metadata returns a value of dynamic metadata. Nil means that no filter
	// has set any.
	Metadata func(filter string, path []string) (string, bool)
}

// Evaluate says whether the enforced rules let the subject pass and which policy
// decided: the matched one, or nil when no policy matched. ALLOW without a match
// refuses, DENY without a match passes, LOG always passes. Shadow rules are
// evaluated by calling it on r.Shadow.
//
// Where a header occurs several times the rule is read the strict way: a DENY
// matches if any of the values (or all of them joined) does, an ALLOW only if
// every value does, and negation turns the reading round, so that repeating a
// header never widens access.
func (r *RBAC) Evaluate(s *Subject) (allowed bool, policy *Policy) {
	if r == nil || r.ShadowOnly {
		return true, nil
	}
	e := evaluation{Subject: s}
	for _, p := range r.Policies {
		if e.anyRule(p.Permissions, r.Action != Allow) && e.anyRule(p.Principals, r.Action != Allow) {
			return r.Action != Deny, p
		}
	}
	return r.Action != Allow, nil
}

// Owner is the object that the filter's rules come from: what to name when none
// of them matched. Of several objects it is the first by name.
func (r *RBAC) Owner() Origin {
	for _, p := range r.Policies {
		if object, _, ok := strings.Cut(string(p.Origin), "#"); ok {
			return Origin(object)
		}
	}
	return ""
}

type evaluation struct {
	*Subject
	scratch Scratch
}

func (e *evaluation) anyRule(rules []*Rule, wide bool) bool {
	for _, r := range rules {
		if e.match(r, wide) {
			return true
		}
	}
	return false
}

// match evaluates one rule. wide tells how doubt about repeated headers is
// resolved: true matches if any value does, false only if all do.
func (e *evaluation) match(r *Rule, wide bool) bool {
	switch r.Kind {
	case RuleAny:
		return true
	case RuleAnd:
		for _, sub := range r.Rules {
			if !e.match(sub, wide) {
				return false
			}
		}
		return true
	case RuleOr:
		return e.anyRule(r.Rules, wide)
	case RuleNot:
		return !e.match(r.Rules[0], !wide)
	case RuleHeader:
		return e.header(r.Header, wide)
	case RulePath:
		return e.Head != nil && r.Text.Match(e.Head.PathOnly())
	case RulePathTemplate:
		return e.Head != nil && r.Template.Match(e.Head.PathOnly())
	case RuleMetadata:
		return e.metadata(r)
	}
	return e.connection(r)
}

// connection evaluates the rules about the connection.
func (e *evaluation) connection(r *Rule) bool {
	if e.Conn == nil {
		return false
	}
	switch r.Kind {
	case RuleDestinationIP:
		return r.Prefix.Contains(e.destination().Addr().Unmap())
	case RuleDestinationPort:
		return e.destination().Port() == r.Port
	case RuleDestinationPortRange:
		p := e.destination().Port()
		return p >= r.Port && p <= r.PortLast
	case RuleServerName:
		return r.Text.MatchString(e.Conn.SNI)
	case RuleAuthenticated:
		return e.authenticated(r)
	case RuleDirectRemoteIP:
		return r.Prefix.Contains(e.Conn.Remote.Addr().Unmap())
	case RuleRemoteIP:
		addr := e.Remote
		if !addr.IsValid() {
			addr = e.Conn.Remote.Addr()
		}
		return r.Prefix.Contains(addr.Unmap())
	}
	return false
}

// destination is where the client wanted to go.
func (e *evaluation) destination() netip.AddrPort {
	if e.Conn.OriginalDst.IsValid() {
		return e.Conn.OriginalDst
	}
	return e.Conn.Local
}

// authenticated matches the peer's verified names: URI names if there are any,
// else DNS names, else the subject (config.rbac.v3.Principal.Authenticated).
func (e *evaluation) authenticated(r *Rule) bool {
	t := e.Conn.TLS
	if t == nil || t.PeerCert == nil && len(t.PeerURISANs) == 0 {
		return false
	}
	if r.AnyPrincipal {
		return true
	}
	names := t.PeerURISANs
	if len(names) == 0 {
		names = t.PeerDNSSANs
	}
	for _, n := range names {
		if r.Text.MatchString(n) {
			return true
		}
	}
	return len(names) == 0 && t.PeerSubject != "" && r.Text.MatchString(t.PeerSubject)
}

// header matches every value of a header on its own.
func (e *evaluation) header(m *HeaderMatch, wide bool) bool {
	if e.Head == nil {
		return false
	}
	joined, present := headerValue(e.Head, m.Name, &e.scratch)
	match := m.matchValue(joined, present)
	if !present || m.Present || m.Name[0] == ':' || m.Name == "host" {
		return match
	}
	count, hits := 0, 0
	for i := range e.Head.Len() {
		_, n, v, ok := e.Head.Field(i)
		if !ok || string(n) != m.Name {
			continue
		}
		count++
		if m.matchValue(v, true) {
			hits++
		}
	}
	if wide {
		return match || hits > 0
	}
	return hits == count
}

func (e *evaluation) metadata(r *Rule) bool {
	if e.Metadata == nil {
		return false
	}
	v, ok := e.Metadata(r.MetadataFilter, r.MetadataPath)
	return ok && slices.ContainsFunc(r.MetadataValues, func(m StringMatcher) bool { return m.MatchString(v) })
}
