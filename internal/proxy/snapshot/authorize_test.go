package snapshot

import (
	"crypto/x509"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacpb "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routepb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httprbacpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	matcherpb "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"lateen.dev/lateen/internal/proxy/message"
)

// The oracle interprets the protos directly, for requests in which no header
// occurs twice.

func specString(m *matcherpb.StringMatcher, v string) bool {
	if re := m.GetSafeRegex(); re != nil {
		return regexp.MustCompile(`\A(?:` + re.GetRegex() + `)\z`).MatchString(v)
	}
	if m.GetIgnoreCase() {
		v = strings.ToLower(v)
	}
	low := func(s string) string {
		if m.GetIgnoreCase() {
			return strings.ToLower(s)
		}
		return s
	}
	switch p := m.GetMatchPattern().(type) {
	case *matcherpb.StringMatcher_Exact:
		return v == low(p.Exact)
	case *matcherpb.StringMatcher_Prefix:
		return strings.HasPrefix(v, low(p.Prefix))
	case *matcherpb.StringMatcher_Suffix:
		return strings.HasSuffix(v, low(p.Suffix))
	case *matcherpb.StringMatcher_Contains:
		return strings.Contains(v, low(p.Contains))
	}
	return false
}

func specHeader(m *routepb.HeaderMatcher, s *Subject) bool {
	v, ok := "", false
	switch m.GetName() {
	case ":method":
		v, ok = string(s.Head.Method()), true
	default:
		if b := s.Head.GetName(m.GetName()); b != nil {
			v, ok = string(b), true
		}
	}
	if m.GetStringMatch() == nil {
		return ok != m.GetInvertMatch()
	}
	return ok && specString(m.GetStringMatch(), v) != m.GetInvertMatch()
}

func specCIDR(c *corepb.CidrRange, a netip.Addr) bool {
	return netip.PrefixFrom(netip.MustParseAddr(c.GetAddressPrefix()), int(c.GetPrefixLen().GetValue())).Masked().Contains(a)
}

func specPermission(m *rbacpb.Permission, s *Subject) bool {
	switch p := m.GetRule().(type) {
	case *rbacpb.Permission_Any:
		return true
	case *rbacpb.Permission_AndRules:
		for _, r := range p.AndRules.GetRules() {
			if !specPermission(r, s) {
				return false
			}
		}
		return true
	case *rbacpb.Permission_OrRules:
		for _, r := range p.OrRules.GetRules() {
			if specPermission(r, s) {
				return true
			}
		}
		return false
	case *rbacpb.Permission_NotRule:
		return !specPermission(p.NotRule, s)
	case *rbacpb.Permission_Header:
		return specHeader(p.Header, s)
	case *rbacpb.Permission_UrlPath:
		path, _, _ := strings.Cut(string(s.Head.Path()), "?")
		return specString(p.UrlPath.GetPath(), path)
	case *rbacpb.Permission_DestinationPort:
		return uint32(s.Conn.OriginalDst.Port()) == p.DestinationPort
	}
	panic("unexpected")
}

func specPrincipal(m *rbacpb.Principal, s *Subject) bool {
	switch p := m.GetIdentifier().(type) {
	case *rbacpb.Principal_Any:
		return true
	case *rbacpb.Principal_AndIds:
		for _, r := range p.AndIds.GetIds() {
			if !specPrincipal(r, s) {
				return false
			}
		}
		return true
	case *rbacpb.Principal_OrIds:
		for _, r := range p.OrIds.GetIds() {
			if specPrincipal(r, s) {
				return true
			}
		}
		return false
	case *rbacpb.Principal_NotId:
		return !specPrincipal(p.NotId, s)
	case *rbacpb.Principal_Authenticated_:
		if s.Conn.TLS == nil {
			return false
		}
		n := p.Authenticated.GetPrincipalName()
		return n == nil || specString(n, s.Conn.TLS.PeerURISANs[0])
	case *rbacpb.Principal_DirectRemoteIp:
		return specCIDR(p.DirectRemoteIp, s.Conn.Remote.Addr())
	case *rbacpb.Principal_RemoteIp:
		return specCIDR(p.RemoteIp, s.Remote)
	case *rbacpb.Principal_Header:
		return specHeader(p.Header, s)
	}
	panic("unexpected")
}

func randomString(r *rand.Rand, values ...string) *matcherpb.StringMatcher {
	m := &matcherpb.StringMatcher{IgnoreCase: r.IntN(4) == 0}
	v := pick(r, values...)
	switch r.IntN(5) {
	case 0:
		m.MatchPattern = &matcherpb.StringMatcher_Prefix{Prefix: v[:1+r.IntN(len(v))]}
	case 1:
		m.MatchPattern = &matcherpb.StringMatcher_Suffix{Suffix: v[r.IntN(len(v)):]}
	case 2:
		m.MatchPattern = &matcherpb.StringMatcher_SafeRegex{SafeRegex: &matcherpb.RegexMatcher{Regex: pick(r, ".*"+regexp.QuoteMeta(v[1:]), regexp.QuoteMeta(v[:2])+".*", ".+", ".*/ns/default/.*")}}
		m.IgnoreCase = false
	default:
		m.MatchPattern = &matcherpb.StringMatcher_Exact{Exact: v}
	}
	return m
}

func randomHeader(r *rand.Rand) *routepb.HeaderMatcher {
	h := &routepb.HeaderMatcher{Name: pick(r, "x-a", "x-b", ":method"), InvertMatch: r.IntN(5) == 0}
	if r.IntN(4) > 0 {
		h.HeaderMatchSpecifier = &routepb.HeaderMatcher_StringMatch{StringMatch: randomString(r, "one", "two", "GET")}
	} else {
		h.HeaderMatchSpecifier = &routepb.HeaderMatcher_PresentMatch{PresentMatch: true}
	}
	return h
}

func randomPermission(r *rand.Rand, depth int) *rbacpb.Permission {
	list := func() []*rbacpb.Permission {
		out := []*rbacpb.Permission{randomPermission(r, depth-1)}
		for range r.IntN(3) {
			out = append(out, randomPermission(r, depth-1))
		}
		return out
	}
	switch n := r.IntN(8); {
	case n == 0 && depth > 0:
		return &rbacpb.Permission{Rule: &rbacpb.Permission_AndRules{AndRules: &rbacpb.Permission_Set{Rules: list()}}}
	case n == 1 && depth > 0:
		return &rbacpb.Permission{Rule: &rbacpb.Permission_OrRules{OrRules: &rbacpb.Permission_Set{Rules: list()}}}
	case n == 2 && depth > 0:
		return &rbacpb.Permission{Rule: &rbacpb.Permission_NotRule{NotRule: randomPermission(r, depth-1)}}
	case n == 3:
		return &rbacpb.Permission{Rule: &rbacpb.Permission_Any{Any: true}}
	case n == 4:
		return &rbacpb.Permission{Rule: &rbacpb.Permission_UrlPath{UrlPath: &matcherpb.PathMatcher{Rule: &matcherpb.PathMatcher_Path{Path: randomString(r, "/api/x", "/admin")}}}}
	case n == 5:
		return &rbacpb.Permission{Rule: &rbacpb.Permission_DestinationPort{DestinationPort: pick[uint32](r, 80, 8080)}}
	}
	return &rbacpb.Permission{Rule: &rbacpb.Permission_Header{Header: randomHeader(r)}}
}

func randomPrincipal(r *rand.Rand, depth int) *rbacpb.Principal {
	list := func() []*rbacpb.Principal {
		out := []*rbacpb.Principal{randomPrincipal(r, depth-1)}
		for range r.IntN(3) {
			out = append(out, randomPrincipal(r, depth-1))
		}
		return out
	}
	block := &corepb.CidrRange{AddressPrefix: pick(r, "10.0.0.0", "10.1.2.3"), PrefixLen: wrapperspb.UInt32(pick[uint32](r, 8, 16, 32))}
	switch n := r.IntN(9); {
	case n == 0 && depth > 0:
		return &rbacpb.Principal{Identifier: &rbacpb.Principal_AndIds{AndIds: &rbacpb.Principal_Set{Ids: list()}}}
	case n == 1 && depth > 0:
		return &rbacpb.Principal{Identifier: &rbacpb.Principal_OrIds{OrIds: &rbacpb.Principal_Set{Ids: list()}}}
	case n == 2 && depth > 0:
		return &rbacpb.Principal{Identifier: &rbacpb.Principal_NotId{NotId: randomPrincipal(r, depth-1)}}
	case n == 3:
		return &rbacpb.Principal{Identifier: &rbacpb.Principal_Any{Any: true}}
	case n == 4:
		return &rbacpb.Principal{Identifier: &rbacpb.Principal_DirectRemoteIp{DirectRemoteIp: block}}
	case n == 5:
		return &rbacpb.Principal{Identifier: &rbacpb.Principal_RemoteIp{RemoteIp: block}}
	case n == 6:
		return &rbacpb.Principal{Identifier: &rbacpb.Principal_Header{Header: randomHeader(r)}}
	}
	a := &rbacpb.Principal_Authenticated{}
	if r.IntN(4) > 0 {
		a.PrincipalName = randomString(r, "spiffe://cluster.local/ns/default/sa/a", "spiffe://cluster.local/ns/other/sa/b")
	}
	return &rbacpb.Principal{Identifier: &rbacpb.Principal_Authenticated_{Authenticated: a}}
}

func randomSubject(r *rand.Rand) *Subject {
	s := &Subject{
		Head: head(pick(r, "GET", "POST"), "a", pick(r, "/api/x", "/api/x?q", "/admin", "/")),
		Conn: &message.Conn{
			Remote:      netip.AddrPortFrom(netip.MustParseAddr(pick(r, "10.1.2.3", "10.9.9.9", "192.0.2.1")), 1),
			OriginalDst: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), pick[uint16](r, 80, 8080)),
		},
		Remote: netip.MustParseAddr(pick(r, "10.1.2.3", "192.0.2.1")),
	}
	if r.IntN(2) == 0 {
		s.Head.AddNameString("x-a", pick(r, "one", "two", "ONE", ""))
	}
	if r.IntN(3) == 0 {
		s.Head.AddNameString("x-b", pick(r, "one", "two"))
	}
	if r.IntN(3) > 0 {
		s.Conn.TLS = &message.TLSInfo{
			PeerURISANs: []string{pick(r, "spiffe://cluster.local/ns/default/sa/a", "spiffe://cluster.local/ns/other/sa/b")},
			PeerCert:    &x509.Certificate{},
		}
	}
	return s
}

func TestAuthorizationAgainstSpec(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	matched := 0
	for range 30000 {
		m := &rbacpb.Policy{
			Permissions: []*rbacpb.Permission{randomPermission(r, 3)},
			Principals:  []*rbacpb.Principal{randomPrincipal(r, 3)},
		}
		s := randomSubject(r)
		want := specPermission(m.Permissions[0], s) && specPrincipal(m.Principals[0], s)
		if want {
			matched++
		}
		for _, action := range []rbacpb.RBAC_Action{rbacpb.RBAC_ALLOW, rbacpb.RBAC_DENY, rbacpb.RBAC_LOG} {
			c, err := httpRBAC(&httprbacpb.RBAC{Rules: &rbacpb.RBAC{Action: action, Policies: map[string]*rbacpb.Policy{"p": m}}})
			if err != nil {
				t.Fatal(err)
			}
			allowed, policy := c.Evaluate(s)
			wantAllowed := map[rbacpb.RBAC_Action]bool{rbacpb.RBAC_ALLOW: want, rbacpb.RBAC_DENY: !want, rbacpb.RBAC_LOG: true}[action]
			if allowed != wantAllowed || (policy != nil) != want {
				t.Fatalf("%v %v: got %v %v, want match %v", action, m, allowed, policy, want)
			}
		}
	}
	if matched < 3000 {
		t.Fatalf("only %d matched: the inputs test nothing", matched)
	}
}

// TestRepeatedHeaderNeverWidens: what a request with two values may do, a
// request with either value alone may do as well.
func TestRepeatedHeaderNeverWidens(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	both, refused := 0, 0
	for range 30000 {
		m := &rbacpb.Policy{
			Permissions: []*rbacpb.Permission{randomPermission(r, 3)},
			Principals:  []*rbacpb.Principal{randomPrincipal(r, 2)},
		}
		action := pick(r, rbacpb.RBAC_ALLOW, rbacpb.RBAC_DENY)
		c, err := httpRBAC(&httprbacpb.RBAC{Rules: &rbacpb.RBAC{Action: action, Policies: map[string]*rbacpb.Policy{"p": m}}})
		if err != nil {
			t.Fatal(err)
		}
		s := randomSubject(r)
		base := s.Head
		with := func(values ...string) bool {
			s.Head = &message.Head{}
			s.Head.CopyFrom(base)
			s.Head.DelName("x-a")
			for _, v := range values {
				s.Head.AddNameString("x-a", v)
			}
			ok, _ := c.Evaluate(s)
			return ok
		}
		v1, v2 := pick(r, "one", "two", "x"), pick(r, "one", "two", "x")
		if !with(v1, v2) {
			refused++
			continue
		}
		both++
		if !with(v1) || !with(v2) {
			t.Fatalf("%v of %v: allowed with %q and %q together but not alone", action, m, v1, v2)
		}
	}
	if both < 1000 || refused < 1000 {
		t.Fatalf("%d allowed, %d refused: the inputs test nothing", both, refused)
	}
}

func TestAuthorizationCorners(t *testing.T) {
	evaluate := func(m *httprbacpb.RBAC, s *Subject) bool {
		t.Helper()
		c, err := httpRBAC(m)
		if err != nil {
			t.Fatal(err)
		}
		ok, _ := c.Evaluate(s)
		return ok
	}
	s := &Subject{Head: head("GET", "a", "/"), Conn: &message.Conn{}}
	if evaluate(&httprbacpb.RBAC{Rules: &rbacpb.RBAC{}}, s) {
		t.Error("ALLOW without policies lets pass")
	}
	if !evaluate(&httprbacpb.RBAC{}, s) {
		t.Error("no rules refuse")
	}
	if !evaluate(&httprbacpb.RBAC{ShadowRules: &rbacpb.RBAC{}}, s) {
		t.Error("shadow rules refuse")
	}
	bad := []*rbacpb.Permission{
		nil,
		{},
		{Rule: &rbacpb.Permission_AndRules{AndRules: &rbacpb.Permission_Set{}}},
		{Rule: &rbacpb.Permission_OrRules{}},
		{Rule: &rbacpb.Permission_NotRule{}},
		{Rule: &rbacpb.Permission_Any{}},
		{Rule: &rbacpb.Permission_Header{}},
		{Rule: &rbacpb.Permission_Matcher{}},
		{Rule: &rbacpb.Permission_UrlPath{}},
		{Rule: &rbacpb.Permission_DestinationPort{DestinationPort: 70000}},
	}
	for _, p := range bad {
		_, err := httpRBAC(&httprbacpb.RBAC{Rules: &rbacpb.RBAC{Policies: map[string]*rbacpb.Policy{"p": {
			Permissions: []*rbacpb.Permission{p}, Principals: []*rbacpb.Principal{{Identifier: &rbacpb.Principal_Any{Any: true}}},
		}}}})
		if err == nil {
			t.Errorf("permission %v was accepted", p)
		}
	}
	if got := policyOrigin("ns[default]-policy[allow.a]-rule[2]"); got != "AuthorizationPolicy/allow.a.default#spec.rules[2]" {
		t.Errorf("origin %q", got)
	}
}

func TestAuthorizationDoesNotAllocate(t *testing.T) {
	c, err := httpRBAC(&httprbacpb.RBAC{Rules: &rbacpb.RBAC{Policies: map[string]*rbacpb.Policy{"p": {
		Permissions: []*rbacpb.Permission{{Rule: &rbacpb.Permission_Header{Header: &routepb.HeaderMatcher{
			Name: ":method", HeaderMatchSpecifier: &routepb.HeaderMatcher_StringMatch{StringMatch: &matcherpb.StringMatcher{MatchPattern: &matcherpb.StringMatcher_Exact{Exact: "GET"}}},
		}}}},
		Principals: []*rbacpb.Principal{{Identifier: &rbacpb.Principal_Authenticated_{Authenticated: &rbacpb.Principal_Authenticated{
			PrincipalName: &matcherpb.StringMatcher{MatchPattern: &matcherpb.StringMatcher_SafeRegex{SafeRegex: &matcherpb.RegexMatcher{Regex: ".*/ns/default/.*"}}},
		}}}},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	s := &Subject{Head: head("GET", "a", "/"), Conn: &message.Conn{TLS: &message.TLSInfo{PeerURISANs: []string{"spiffe://cluster.local/ns/default/sa/a"}}}}
	if n := testing.AllocsPerRun(100, func() {
		if ok, _ := c.Evaluate(s); !ok {
			t.Fatal("refused")
		}
	}); n != 0 {
		t.Errorf("evaluation allocates %v times", n)
	}
}
