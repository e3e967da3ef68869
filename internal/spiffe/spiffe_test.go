package spiffe

import (
	"crypto/x509"
	"math/big"
	"net/url"
	"testing"
)

func TestParse_roundTrip(t *testing.T) {
	id, err := New("cluster.local", "default", "go-app.v1")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := id.String(), "spiffe://cluster.local/ns/default/sa/go-app.v1"; got != want {
		t.Errorf("String() = %q, want %q", got, want)
	}
	back, err := Parse(id.String())
	if err != nil || back != id {
		t.Errorf("Parse(%q) = %v, %v", id.String(), back, err)
	}
}

func TestParse_refusesOtherForms(t *testing.T) {
	for _, s := range []string{
		"", "spiffe://", "spiffe://td", "spiffe://td/ns/a", "spiffe://td/ns/a/sa/", "spiffe://td/ns//sa/b",
		"spiffe://td/ns/a/sa/b/c", "spiffe://td/sa/a/ns/b", "https://td/ns/a/sa/b", "spiffe://TD/ns/a/sa/b",
		"spiffe://td/ns/../sa/b", "spiffe://td/ns/a%2fb/sa/c", "spiffe://td/ns/a/sa/b?x", "spiffe://td:1/ns/a/sa/b",
		"spiffe://u@td/ns/a/sa/b", "spiffe://td/ns/a/sa/b/",
	} {
		if id, err := Parse(s); err == nil {
			t.Errorf("Parse(%q) = %+v, want an error", s, id)
		}
	}
	if _, err := New("td", "a/sa/b", "c"); err == nil {
		t.Error("New accepted a namespace that holds path segments")
	}
}

func TestParseTrustDomain_bareNamesOnly(t *testing.T) {
	for name, ok := range map[string]bool{"cluster.local": true, "spiffe://td": false, "td/x": false, "": false, "A": false, "td:1": false} {
		if _, err := ParseTrustDomain(name); (err == nil) != ok {
			t.Errorf("ParseTrustDomain(%q): %v, want ok=%v", name, err, ok)
		}
	}
}

func TestFromCertificate_wantsOneURI(t *testing.T) {
	uri := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	a, b := uri("spiffe://td/ns/a/sa/b"), uri("spiffe://td/ns/a/sa/c")
	serial := big.NewInt(1)
	if id, err := FromCertificate(&x509.Certificate{SerialNumber: serial, URIs: []*url.URL{a}}); err != nil || id.ServiceAccount != "b" {
		t.Errorf("one URI: %v, %v", id, err)
	}
	for name, c := range map[string]*x509.Certificate{
		"none": {SerialNumber: serial}, "two": {SerialNumber: serial, URIs: []*url.URL{a, b}},
		"authority": {SerialNumber: serial, URIs: []*url.URL{a}, IsCA: true},
	} {
		if id, err := FromCertificate(c); err == nil {
			t.Errorf("%s: got %v, want an error", name, id)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("spiffe://cluster.local/ns/default/sa/go-app")
	f.Add("spiffe://td/ns/../sa/x")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := Parse(s)
		if err != nil {
			return
		}
		if id.String() != s {
			t.Errorf("Parse(%q) prints as %q", s, id.String())
		}
	})
}
