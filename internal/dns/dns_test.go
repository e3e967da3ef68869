package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

var (
	v4 = netip.MustParseAddr("10.78.0.9")
	v6 = netip.MustParseAddr("fd78::9")
)

func table() *Table {
	return NewTable([]Entry{
		{Host: "reviews.default.svc.cluster.local", IPs: []netip.Addr{v4, v6}, Namespace: "default", ShortName: "reviews"},
		{Host: "reviews.other.svc.cluster.local", IPs: []netip.Addr{v6}, Namespace: "other", ShortName: "reviews"},
		{Host: "API.example.com", IPs: []netip.Addr{v4}},
		{Host: "*.example.com", IPs: []netip.Addr{v6}},
		{Host: "*.deep.example.com", IPs: []netip.Addr{v4}},
	}, "default")
}

func TestTable_namesAndWildcards(t *testing.T) {
	for name, want := range map[string]string{
		"reviews":                           "10.78.0.9 fd78::9",
		"reviews.default":                   "10.78.0.9 fd78::9",
		"reviews.default.svc":               "10.78.0.9 fd78::9",
		"reviews.default.svc.cluster.local": "10.78.0.9 fd78::9",
		"reviews.other":                     "fd78::9",
		"api.example.com":                   "10.78.0.9",
		"b.example.com":                     "fd78::9",
		"a.b.example.com":                   "fd78::9",
		"a.deep.example.com":                "10.78.0.9",
		"example.com":                       "unknown",
		"reviews.third":                     "unknown",
		"":                                  "unknown",
	} {
		a := table().Lookup(name)
		got := "unknown"
		if a.Known {
			var s []string
			for _, ip := range a.IPs {
				s = append(s, ip.String())
			}
			got = strings.Join(s, " ")
		}
		if got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
}

// serve runs a server on loopback over both transports.
func serve(t *testing.T, s *Server) (udp, tcp string) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, pc, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return pc.LocalAddr().String(), l.Addr().String()
}

func ask(t *testing.T, network, addr, name string, typ uint16) *dns.Msg {
	t.Helper()
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), typ)
	r, _, err := (&dns.Client{Net: network}).Exchange(q, addr)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestServer_answersForwardsAndKeepsMeshNamesInside(t *testing.T) {
	upstream := &Server{Resolve: func(name string, _ netip.Addr) Answer {
		return Answer{Known: name == "outside.test", IPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	}}
	upAddr, _ := serve(t, upstream)
	asked := make(chan string, 8)
	fwd := ForwardTo(upAddr, net.Dialer{})
	udp, tcp := serve(t, &Server{
		Resolve: func(name string, client netip.Addr) Answer {
			if client != netip.MustParseAddr("127.0.0.1") {
				t.Errorf("client %v", client)
			}
			return table().Lookup(name)
		},
		Forward: func(ctx context.Context, q *dns.Msg, network string) (*dns.Msg, error) {
			asked <- q.Question[0].Name
			if network == "tcp" {
				return nil, errors.New("no TCP")
			}
			return fwd(ctx, q, network)
		},
	})
	if r := ask(t, "udp", udp, "Reviews.Default", dns.TypeA); len(r.Answer) != 1 || !r.Answer[0].(*dns.A).A.Equal(v4.AsSlice()) {
		t.Errorf("A: %v", r)
	}
	if r := ask(t, "tcp", tcp, "reviews", dns.TypeAAAA); len(r.Answer) != 1 {
		t.Errorf("AAAA: %v", r)
	}
	if r := ask(t, "udp", udp, "api.example.com", dns.TypeAAAA); r.Rcode != dns.RcodeSuccess || len(r.Answer) != 0 {
		t.Errorf("a known name of the other family must be empty, not unknown: %v", r)
	}
	if r := ask(t, "udp", udp, "nobody.default.svc.cluster.local", dns.TypeA); r.Rcode != dns.RcodeNameError {
		t.Errorf("unknown service: %v", r)
	}
	if len(asked) != 0 {
		t.Errorf("a mesh name was asked outside: %s", <-asked)
	}
	if r := ask(t, "udp", udp, "outside.test", dns.TypeA); len(r.Answer) != 1 {
		t.Errorf("forwarded: %v", r)
	}
	if r := ask(t, "udp", udp, "other.test", dns.TypeA); r.Rcode != dns.RcodeNameError {
		t.Errorf("forwarded unknown: %v", r)
	}
	if r := ask(t, "tcp", tcp, "outside.test", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("a failing upstream: %v", r)
	}
}

func TestServer_truncatesOverUDP(t *testing.T) {
	var ips []netip.Addr
	for i := range 100 {
		ips = append(ips, netip.AddrFrom4([4]byte{10, 77, 0, byte(i)}))
	}
	udp, tcp := serve(t, &Server{Resolve: func(string, netip.Addr) Answer { return Answer{Known: true, IPs: ips} }})
	if r := ask(t, "udp", udp, "headless", dns.TypeA); !r.Truncated {
		t.Errorf("%d answers fit into %d bytes", len(r.Answer), dns.MinMsgSize)
	}
	if r := ask(t, "tcp", tcp, "headless", dns.TypeA); len(r.Answer) != 100 {
		t.Errorf("over TCP: %d answers", len(r.Answer))
	}
}

func FuzzServer_reply(f *testing.F) {
	q := new(dns.Msg)
	q.SetQuestion("reviews.default.", dns.TypeA)
	packed, err := q.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(packed)
	s := &Server{Resolve: func(name string, _ netip.Addr) Answer { return table().Lookup(name) }}
	f.Fuzz(func(t *testing.T, data []byte) {
		m := new(dns.Msg)
		if m.Unpack(data) != nil {
			return
		}
		r := s.reply(m, v4, "udp")
		if !r.Response || r.Id != m.Id {
			t.Errorf("not an answer: %v", r)
		}
	})
}
