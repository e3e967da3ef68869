package snapshot

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"lateen.dev/lateen/internal/proxy/message"
)

// specChain is the plain reading of config.listener.v3.FilterChainMatch: for
// each criterion in order, the chains that name the most specific value that
// fits are kept, and only if there are none those that name no value.
func specChain(l *Listener, in ConnInfo) *FilterChain {
	set := slices.Clone(l.Chains)
	step := func(groups ...func(m *ChainMatch) bool) {
		for _, g := range groups {
			var hit []*FilterChain
			for _, c := range set {
				if g(&c.Match) {
					hit = append(hit, c)
				}
			}
			if len(hit) > 0 {
				set = hit
				return
			}
		}
		set = nil
	}
	step(func(m *ChainMatch) bool { return m.DestinationPort == in.Destination.Port() && m.DestinationPort != 0 },
		func(m *ChainMatch) bool { return m.DestinationPort == 0 })
	prefixes := func(get func(m *ChainMatch) []netip.Prefix, a netip.Addr) {
		var groups []func(m *ChainMatch) bool
		for bits := a.BitLen(); bits >= 0; bits-- {
			want := netip.PrefixFrom(a, bits).Masked()
			groups = append(groups, func(m *ChainMatch) bool { return slices.Contains(get(m), want) })
		}
		step(append(groups, func(m *ChainMatch) bool { return len(get(m)) == 0 })...)
	}
	prefixes(func(m *ChainMatch) []netip.Prefix { return m.Destination }, in.Destination.Addr())
	var names []func(m *ChainMatch) bool
	if in.SNI != "" {
		names = append(names, func(m *ChainMatch) bool { return slices.Contains(m.ServerNames, in.SNI) })
		for rest := in.SNI; strings.Contains(rest, "."); {
			_, rest, _ = strings.Cut(rest, ".")
			wild := "*." + rest
			names = append(names, func(m *ChainMatch) bool { return slices.Contains(m.ServerNames, wild) })
		}
	}
	step(append(names, func(m *ChainMatch) bool { return len(m.ServerNames) == 0 })...)
	step(func(m *ChainMatch) bool { return m.Transport == in.Transport && in.Transport != "" },
		func(m *ChainMatch) bool { return m.Transport == "" })
	var protos []func(m *ChainMatch) bool
	for _, p := range in.ALPN {
		protos = append(protos, func(m *ChainMatch) bool { return slices.Contains(m.ApplicationProto, p) })
	}
	step(append(protos, func(m *ChainMatch) bool { return len(m.ApplicationProto) == 0 })...)
	prefixes(func(m *ChainMatch) []netip.Prefix { return m.Source }, in.Source.Addr())
	step(func(m *ChainMatch) bool { return slices.Contains(m.SourcePorts, in.Source.Port()) },
		func(m *ChainMatch) bool { return len(m.SourcePorts) == 0 })
	if len(set) == 0 {
		return l.Default
	}
	return set[0]
}

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

func some[T any](r *rand.Rand, list ...T) []T {
	var out []T
	for _, v := range list {
		if r.IntN(3) == 0 {
			out = append(out, v)
		}
	}
	return out
}

func TestListenerMatchAgainstSpec(t *testing.T) {
	p := netip.MustParsePrefix
	r := rand.New(rand.NewPCG(1, 2))
	hits := 0
	for range 20000 {
		l := &Listener{}
		for i := range 1 + r.IntN(40) {
			m := ChainMatch{DestinationPort: pick[uint16](r, 0, 80, 443)}
			if r.IntN(2) == 0 {
				m.Destination = some(r, p("10.0.0.0/8"), p("10.1.0.0/16"), p("10.1.2.3/32"), p("fd00::/8"))
				m.ServerNames = some(r, "a.example.com", "*.example.com", "*.com")
			}
			m.Transport = pick(r, "", "", TransportTLS, TransportRaw)
			m.ApplicationProto = some(r, "istio", "h2", "http/1.1")
			if r.IntN(4) == 0 {
				m.Source, m.SourcePorts = some(r, p("192.168.0.0/16")), some[uint16](r, 1000)
			}
			l.Chains = append(l.Chains, &FilterChain{Name: fmt.Sprint(i), Match: m})
		}
		if r.IntN(2) == 0 {
			l.Default = &FilterChain{Name: "default"}
		}
		in := ConnInfo{
			Destination: netip.AddrPortFrom(netip.MustParseAddr(pick(r, "10.1.2.3", "10.1.9.9", "10.9.9.9", "fd00::1", "1.1.1.1")), pick[uint16](r, 80, 443, 8080)),
			Source:      netip.AddrPortFrom(netip.MustParseAddr(pick(r, "192.168.1.1", "8.8.8.8")), pick[uint16](r, 1000, 2000)),
			SNI:         pick(r, "", "a.example.com", "b.example.com", "x.b.example.com", "other.org"),
			Transport:   pick(r, TransportTLS, TransportRaw), ALPN: some(r, "h2", "istio", "http/1.1"),
		}
		got, want := l.Match(in), specChain(l, in)
		if got != want {
			t.Fatalf("%+v\ngot  %+v\nwant %+v", in, got, want)
		}
		if got != nil && got != l.Default {
			hits++
		}
	}
	if hits < 1000 {
		t.Fatalf("only %d chains matched: the inputs test nothing", hits)
	}
}

// specHost is the plain reading of config.route.v3.VirtualHost.domains.
func specHost(t *RouteTable, authority string) *VirtualHost {
	authority = strings.ToLower(authority)
	if t.IgnorePort {
		authority = regexp.MustCompile(`^(\[.*\]|[^:\[\]]*):[^:\]]*$`).ReplaceAllString(authority, "$1")
	}
	var best *VirtualHost
	rank := -1
	for _, h := range t.Hosts {
		for _, d := range h.Domains {
			d = strings.ToLower(d)
			if t.IgnorePort && !strings.Contains(d, "*") {
				d = regexp.MustCompile(`^(\[.*\]|[^:\[\]]*):[^:\]]*$`).ReplaceAllString(d, "$1")
			}
			n := -1
			switch {
			case d == authority:
				n = 1 << 20
			case d == "*":
				n = 0
			case strings.HasPrefix(d, "*") && strings.HasSuffix(authority, d[1:]) && len(authority) >= len(d):
				n = 1<<16 + len(d)
			case strings.HasSuffix(d, "*") && strings.HasPrefix(authority, d[:len(d)-1]) && len(authority) >= len(d):
				n = len(d)
			}
			if n > rank {
				best, rank = h, n
			}
		}
	}
	return best
}

func TestListenerRefusedBy(t *testing.T) {
	strict := &FilterChain{Match: ChainMatch{DestinationPort: 8080, Transport: TransportTLS}, Origin: "PeerAuthentication/default.default#spec.mtls"}
	l := &Listener{Chains: []*FilterChain{strict}}
	plain := ConnInfo{Destination: netip.MustParseAddrPort("10.0.0.1:8080"), Transport: TransportRaw, ALPN: []string{"http/1.1"}}
	if c := l.Match(plain); c != nil {
		t.Fatalf("plaintext is taken by %q", c.Name)
	}
	if got := l.RefusedBy(plain); got != strict.Origin {
		t.Errorf("plaintext is refused by %q, want %q", got, strict.Origin)
	}
	other := plain
	other.Destination = netip.MustParseAddrPort("10.0.0.1:9090")
	if got := l.RefusedBy(other); got != "" {
		t.Errorf("a port without chain is refused by %q", got)
	}
	other = plain
	other.Transport = TransportTLS
	if got := l.RefusedBy(other); got != "" {
		t.Errorf("TLS is refused by %q", got)
	}
}

func TestVirtualHostAgainstSpec(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 20000 {
		table := &RouteTable{exact: map[string]*VirtualHost{}, IgnorePort: r.IntN(2) == 0}
		used := map[string]bool{}
		for i := range 6 {
			h := &VirtualHost{Name: fmt.Sprint(i)}
			for _, d := range some(r, "a.com", "A.com:80", "*.a.com", "*-x.a.com", "a.*", "b.a.*", "*", "[::1]:80", "[::1]", "b.a.com") {
				key := strings.ToLower(d)
				if table.IgnorePort && !strings.Contains(key, "*") {
					key = string(StripPort([]byte(key)))
				}
				if !used[key] {
					used[key] = true
					h.Domains = append(h.Domains, d)
				}
			}
			if err := table.add(h); err != nil {
				t.Fatal(err)
			}
		}
		longest := func(a, b wildcard) int { return len(b.text) - len(a.text) }
		slices.SortStableFunc(table.suffix, longest)
		slices.SortStableFunc(table.prefix, longest)
		authority := pick(r, "a.com", "A.COM", "a.com:80", "b.a.com", "-x.a.com", "q-x.a.com", ".a.com", "a.", "a.org", "b.a.org:81", "[::1]", "[::1]:80", "zzz")
		if got, want := table.VirtualHost([]byte(authority)), specHost(table, authority); got != want {
			t.Fatalf("%q (ignore port %v): got %+v, want %+v of %+v", authority, table.IgnorePort, got, want, table.Hosts)
		}
	}
}

func head(method, authority, path string, fields ...string) *message.Head {
	h := &message.Head{}
	h.SetMethod([]byte(method))
	h.SetScheme([]byte("http"))
	h.SetAuthority([]byte(authority))
	h.SetPath([]byte(path))
	for i := 0; i < len(fields); i += 2 {
		h.AddNameString(fields[i], fields[i+1])
	}
	return h
}

func TestHeaderMatch(t *testing.T) {
	re, err := regexMatcher("a+b")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		m    HeaderMatch
		h    *message.Head
		want bool
	}{
		{"exact", HeaderMatch{Name: "x", Value: StringMatcher{Text: "1"}}, head("GET", "a", "/", "x", "1"), true},
		{"joined values", HeaderMatch{Name: "x", Value: StringMatcher{Text: "1,2"}}, head("GET", "a", "/", "x", "1", "y", "z", "x", "2"), true},
		{"first of two", HeaderMatch{Name: "x", Value: StringMatcher{Text: "1"}}, head("GET", "a", "/", "x", "1", "x", "2"), false},
		{"absent", HeaderMatch{Name: "x", Value: StringMatcher{Text: ""}}, head("GET", "a", "/"), false},
		{"absent, inverted", HeaderMatch{Name: "x", Value: StringMatcher{Text: "1"}, Invert: true}, head("GET", "a", "/"), false},
		{"absent as empty, inverted", HeaderMatch{Name: "x", Value: StringMatcher{Text: "1"}, Invert: true, TreatMissingAsEmpty: true}, head("GET", "a", "/"), true},
		{"present", HeaderMatch{Name: "x", Present: true}, head("GET", "a", "/", "x", ""), true},
		{"not present", HeaderMatch{Name: "x", Present: true, Invert: true}, head("GET", "a", "/"), true},
		{"method", HeaderMatch{Name: ":method", Value: StringMatcher{Text: "GET"}}, head("GET", "a", "/"), true},
		{"host is the authority", HeaderMatch{Name: "host", Value: StringMatcher{Text: "a"}}, head("GET", "a", "/"), true},
		{"regex matches all", HeaderMatch{Name: "x", Value: re}, head("GET", "a", "/", "x", "aab"), true},
		{"regex is anchored", HeaderMatch{Name: "x", Value: re}, head("GET", "a", "/", "x", "aabc"), false},
		{"range", HeaderMatch{Name: "x", Range: &[2]int64{-10, 0}}, head("GET", "a", "/", "x", "-1"), true},
		{"range end", HeaderMatch{Name: "x", Range: &[2]int64{-10, 0}}, head("GET", "a", "/", "x", "0"), false},
		{"ignore case", HeaderMatch{Name: "x", Value: StringMatcher{Kind: StringSuffix, Text: "ABC", IgnoreCase: true}}, head("GET", "a", "/", "x", "zaBc"), true},
	} {
		if got := c.m.Match(c.h, &Scratch{}); got != c.want {
			t.Errorf("%s: got %v", c.name, got)
		}
	}
}

func TestTemplate(t *testing.T) {
	for _, c := range []struct {
		template, path string
		want           bool
	}{
		{"/users/*/orders", "/users/7/orders", true},
		{"/users/*/orders", "/users//orders", false},
		{"/users/*/orders", "/users/7/8/orders", false},
		{"/users/{*}/orders", "/users/7/orders", true},
		{"/files/**", "/files/a/b", true},
		{"/files/**", "/files/", true},
		{"/files/**", "/filesx", false},
		{"/files/{**}/end", "/files/a/b/end", true},
		{"/files/{rest=**}/end", "/files/end", false},
		{"/{a}/{b=*}", "/1/2", true},
		{"/{a}/{b=*}", "/1", false},
		{"/", "/", true},
	} {
		m, err := CompileTemplate(c.template)
		if err != nil {
			t.Fatal(err)
		}
		if got := m.Match([]byte(c.path)); got != c.want {
			t.Errorf("%s on %s: got %v", c.template, c.path, got)
		}
	}
	for _, bad := range []string{"", "users", "/a*", "/**/**", "/{a"} {
		if _, err := CompileTemplate(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// FuzzRegexMatcher compares the simplified forms of regexes with the engine.
func FuzzRegexMatcher(f *testing.F) {
	f.Add(".*/ns/default/.*", "spiffe://cluster.local/ns/default/sa/x")
	f.Add("spiffe://.*/sa/batch", "spiffe://td/ns/a/sa/batch")
	f.Add(".*", "x")
	f.Add("abc.*", "abcd")
	f.Fuzz(func(t *testing.T, expr, value string) {
		if strings.Contains(value, "\n") {
			t.Skip("no identity or header holds a line feed")
		}
		m, err := regexMatcher(expr)
		if err != nil {
			t.Skip("the expression is refused")
		}
		want := regexp.MustCompile(`\A(?:` + expr + `)\z`).MatchString(value)
		if got := m.MatchString(value); got != want {
			t.Fatalf("%q on %q: got %v, want %v", expr, value, got, want)
		}
	})
}

func TestMatchingDoesNotAllocate(t *testing.T) {
	in := loadReference(t, "testdata/istiod/02-sidecar-go-app.json.gz")
	s, rejected := Compile(in, nil)
	if len(rejected) > 0 {
		t.Fatal(rejected)
	}
	table := s.OutboundListener(netip.MustParseAddrPort("10.96.0.9:8080")).Match(ConnInfo{Transport: TransportRaw, ALPN: []string{"http/1.1"}}).HTTP.Routes
	h := head("GET", "user-service.default.svc.cluster.local", "/x?y", "x-canary", "a", "x-canary", "b")
	var scratch Scratch
	if n := testing.AllocsPerRun(100, func() {
		if table.VirtualHost(h.Authority()).Match(h, 1, &scratch) == nil {
			t.Fatal("no route")
		}
	}); n != 0 {
		t.Errorf("routing allocates %v times", n)
	}
}
