package secret

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lateen.dev/lateen/internal/proxy/secret/secrettest"
	"lateen.dev/lateen/internal/proxy/snapshot"
	"lateen.dev/lateen/internal/spiffe"
)

// leaf makes a certificate and its key; edit may change the template.
func leaf(t testing.TB, r *secrettest.Authority, edit func(*x509.Certificate), uris ...string) (certPEM string, keyPEM []byte) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := r.Issue(key.Public(), edit, uris...)
	if err != nil {
		t.Fatal(err)
	}
	kd, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: kd})
}

func id(ns, sa string) spiffe.ID {
	return spiffe.ID{TrustDomain: "cluster.local", Namespace: ns, ServiceAccount: sa}
}

// holder makes a store that holds an SVID of r.
func holder(t testing.TB, r *secrettest.Authority, who spiffe.ID) *Store {
	t.Helper()
	s, err := Open(Options{ID: who, RootsPEM: r.PEM, Address: "127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	cert, key := leaf(t, r, nil, who.String())
	next, err := s.accept([]string{cert, r.PEM}, key)
	if err != nil {
		t.Fatal(err)
	}
	s.install(next)
	return s
}

// shake runs a handshake and returns both errors.
func shake(server, client *tls.Config) (st tls.ConnectionState, serverErr, clientErr error) {
	// A pipe without a buffer would block the alert of the one that refuses.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return st, err, err
	}
	defer l.Close()
	b, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return st, err, err
	}
	a, err := l.Accept()
	if err != nil {
		return st, err, err
	}
	defer a.Close()
	defer b.Close()
	deadline := time.Now().Add(10 * time.Second)
	_ = a.SetDeadline(deadline)
	_ = b.SetDeadline(deadline)
	done := make(chan error, 1)
	srv := tls.Server(a, server)
	go func() {
		err := srv.Handshake()
		if err != nil {
			a.Close()
		}
		done <- err
	}()
	c := tls.Client(b, client)
	clientErr = c.Handshake()
	if clientErr != nil {
		b.Close()
	}
	serverErr = <-done
	return srv.ConnectionState(), serverErr, clientErr
}

// offered is what HTTP/1.1 between mesh peers offers.
var offered = snapshot.ALPN{"istio-http/1.1", "istio", "http/1.1"}

func meshServer(sans ...snapshot.StringMatcher) *snapshot.DownstreamTLS {
	return &snapshot.DownstreamTLS{
		Certificates: []string{Default}, RequireClientCert: true, ALPN: []string{"h2", "http/1.1"},
		Validation: &snapshot.Validation{RootSecret: RootCA, SANs: sans},
	}
}

func meshClient(sans ...snapshot.StringMatcher) *snapshot.UpstreamTLS {
	return &snapshot.UpstreamTLS{
		Certificate: Default, Mesh: true, SNI: "outbound_.80_._.b", ALPN: []string{"istio-peer-exchange", "istio"},
		Validation: &snapshot.Validation{RootSecret: RootCA, SANs: sans},
	}
}

var trustDomain = snapshot.StringMatcher{Kind: snapshot.StringPrefix, Text: "spiffe://cluster.local/"}

func TestMeshHandshake(t *testing.T) {
	r := secrettest.NewAuthority(t)
	a, b, evil := holder(t, r, id("default", "a")), holder(t, r, id("default", "b")), holder(t, secrettest.NewAuthority(t), id("default", "a"))
	exact := func(who spiffe.ID) snapshot.StringMatcher { return snapshot.StringMatcher{Text: who.String()} }

	st, se, ce := shake(b.ServerConfig(meshServer(trustDomain)), a.ClientConfig(meshClient(exact(id("default", "b"))), "", offered))
	if se != nil || ce != nil {
		t.Fatal(se, ce)
	}
	if st.Version != tls.VersionTLS13 || st.NegotiatedProtocol != "http/1.1" || st.ServerName != "outbound_.80_._.b" ||
		len(st.VerifiedChains) == 0 || st.PeerCertificates[0].URIs[0].String() != id("default", "a").String() {
		t.Errorf("state: %+v", st)
	}
	if st, se, ce := shake(b.ServerConfig(meshServer(trustDomain)), a.ClientConfig(meshClient(), "", nil)); se != nil || ce != nil || st.NegotiatedProtocol != "" {
		t.Error("no common protocol:", se, ce, st.NegotiatedProtocol)
	}
	if _, _, ce := shake(b.ServerConfig(meshServer()), a.ClientConfig(meshClient(exact(id("default", "c"))), "", offered)); ce == nil {
		t.Error("a peer with another identity was accepted")
	}
	if _, se, _ := shake(b.ServerConfig(meshServer(snapshot.StringMatcher{Kind: snapshot.StringPrefix, Text: "spiffe://other/"})), a.ClientConfig(meshClient(), "", offered)); se == nil {
		t.Error("a foreign trust domain was accepted")
	}
	if _, se, _ := shake(b.ServerConfig(meshServer()), evil.ClientConfig(meshClient(), "", offered)); se == nil {
		t.Error("a certificate of another root was accepted")
	}
	bare := a.ClientConfig(meshClient(), "", offered)
	bare.GetClientCertificate = nil
	if _, se, _ := shake(b.ServerConfig(meshServer()), bare); se == nil {
		t.Error("no certificate was accepted")
	}
	old := a.ClientConfig(meshClient(), "", offered)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, se, _ := shake(b.ServerConfig(meshServer()), old); se == nil {
		t.Error("TLS 1.2 was accepted between mesh peers")
	}
	none, err := Open(Options{ID: id("default", "b"), RootsPEM: r.PEM})
	if err != nil {
		t.Fatal(err)
	}
	if _, se, _ := shake(none.ServerConfig(meshServer()), a.ClientConfig(meshClient(), "", offered)); se == nil || !strings.Contains(se.Error(), "no certificate yet") {
		t.Error("served without certificate:", se)
	}
}

// TestMeshRefusesStrangeSVIDs: certificates of the right root that are no SVIDs.
func TestMeshRefusesStrangeSVIDs(t *testing.T) {
	r := secrettest.NewAuthority(t)
	b := holder(t, r, id("default", "b"))
	good := id("default", "a").String()
	for name, c := range map[string]struct {
		uris []string
		edit func(*x509.Certificate)
	}{
		"two names":    {uris: []string{good, id("default", "x").String()}},
		"no name":      {},
		"DNS only":     {edit: func(c *x509.Certificate) { c.DNSNames = []string{"spiffe.cluster.local"} }},
		"wrong path":   {uris: []string{"spiffe://cluster.local/a"}},
		"expired":      {uris: []string{good}, edit: func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }},
		"server only":  {uris: []string{good}, edit: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }},
		"an authority": {uris: []string{good}, edit: func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }},
		"too many names": {uris: []string{good}, edit: func(c *x509.Certificate) {
			for range 200 {
				c.DNSNames = append(c.DNSNames, "a.example.com")
			}
		}},
	} {
		cert, key := leaf(t, r, c.edit, c.uris...)
		pair, err := tls.X509KeyPair([]byte(cert), key)
		if err != nil {
			t.Fatal(err)
		}
		client := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}}
		if _, se, _ := shake(b.ServerConfig(meshServer(trustDomain)), client); se == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestRotation(t *testing.T) {
	r := secrettest.NewAuthority(t)
	b := holder(t, r, id("default", "b"))
	cfg := b.ServerConfig(meshServer())
	serial := func() string {
		a := holder(t, r, id("default", "a"))
		c := a.ClientConfig(meshClient(), "", offered)
		var got string
		verify := c.VerifyConnection
		c.VerifyConnection = func(cs tls.ConnectionState) error {
			got = string(cs.PeerCertificates[0].Raw)
			return verify(cs)
		}
		if _, se, ce := shake(cfg, c); se != nil || ce != nil {
			t.Fatal(se, ce)
		}
		return got
	}
	first := serial()
	if first != serial() {
		t.Error("the certificate changed by itself")
	}
	cert, key := leaf(t, r, nil, b.ID().String())
	next, err := b.accept([]string{cert, r.PEM}, key)
	if err != nil {
		t.Fatal(err)
	}
	b.install(next)
	if first == serial() {
		t.Error("a handshake after the rotation used the old certificate")
	}
}

func TestGatewayCredential(t *testing.T) {
	r := secrettest.NewAuthority(t)
	s := holder(t, r, id("default", "gw"))
	d := &snapshot.DownstreamTLS{Certificates: []string{"kubernetes://shop"}, SessionTickets: true}
	plain := &snapshot.UpstreamTLS{SNI: "shop.example.com", Validation: &snapshot.Validation{RootsPEM: []byte(r.PEM)}}
	if _, se, _ := shake(s.ServerConfig(d), s.ClientConfig(plain, "", offered)); se == nil {
		t.Fatal("served without the credential")
	}
	cert, key := leaf(t, r, func(c *x509.Certificate) { c.DNSNames = []string{"shop.example.com"} })
	if err := s.Set("kubernetes://shop", Credential{CertPEM: []byte(cert), KeyPEM: key}); err != nil || !s.Has("kubernetes://shop") {
		t.Fatal(err)
	}
	if _, se, ce := shake(s.ServerConfig(d), s.ClientConfig(plain, "", offered)); se != nil || ce != nil {
		t.Fatal(se, ce)
	}
	other := *plain
	other.SNI = "other.example.com"
	if _, _, ce := shake(s.ServerConfig(d), s.ClientConfig(&other, "", offered)); ce == nil {
		t.Error("a certificate for another host was accepted")
	}
	if err := s.Set("kubernetes://shop", Credential{CertPEM: []byte("x")}); err == nil || !s.Has("kubernetes://shop") {
		t.Error("a broken credential displaced a good one")
	}
	s.Delete("kubernetes://shop")
	if _, se, _ := shake(s.ServerConfig(d), s.ClientConfig(plain, "", offered)); se == nil {
		t.Error("served with a deleted credential")
	}
}

func TestFileSecrets(t *testing.T) {
	r := secrettest.NewAuthority(t)
	s := holder(t, r, id("default", "a"))
	dir := t.TempDir()
	cf, kf := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	cert, key := leaf(t, r, nil, id("default", "a").String())
	for f, data := range map[string]string{cf: cert, kf: string(key)} {
		if err := os.WriteFile(f, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if !s.Has("file-cert:"+cf+"~"+kf) || s.Has("file-cert:"+cf) || s.Has("file-root:"+kf) || !s.Has("file-root:"+cf) {
		t.Error("files are not read as they should be")
	}
	if got := Remote([]string{Default, RootCA, "file-root:system", "kubernetes://x"}); len(got) != 1 || got[0] != "kubernetes://x" {
		t.Error(got)
	}
}

func TestKeptCertificate(t *testing.T) {
	r := secrettest.NewAuthority(t)
	f, err := os.CreateTemp(t.TempDir(), "kept") // stands for a memfd
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	open := func(who spiffe.ID, now time.Time) *Store {
		s, err := Open(Options{ID: who, RootsPEM: r.PEM, Keep: f, Now: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	now := time.Now()
	s := open(id("default", "a"), now)
	if s.Has(Default) {
		t.Fatal("a certificate out of nothing")
	}
	cert, key := leaf(t, r, nil, id("default", "a").String())
	if err := s.keep([]string{cert, r.PEM}, key); err != nil {
		t.Fatal(err)
	}
	if !open(id("default", "a"), now).Has(Default) {
		t.Error("the kept certificate was not used")
	}
	if open(id("default", "b"), now).Has(Default) {
		t.Error("somebody else's certificate was used")
	}
	if open(id("default", "a"), now.Add(2*time.Hour)).Has(Default) {
		t.Error("an expired certificate was used")
	}
	if _, err := f.WriteAt([]byte("x"), 20); err != nil {
		t.Fatal(err)
	}
	if open(id("default", "a"), now).Has(Default) {
		t.Error("a damaged certificate was used")
	}
}

// A gateway restarted while the control plane is away serves what it served; a
// credential that was taken away does not come back.
func TestKeptCredentials(t *testing.T) {
	r := secrettest.NewAuthority(t)
	f, err := os.CreateTemp(t.TempDir(), "kept") // stands for a memfd
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	open := func(now time.Time) *Store {
		s, err := Open(Options{ID: id("default", "gw"), RootsPEM: r.PEM, Keep: f, Now: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	now := time.Now()
	s := open(now)
	cert, key := leaf(t, r, nil, id("default", "gw").String())
	if err := s.keep([]string{cert, r.PEM}, key); err != nil {
		t.Fatal(err)
	}
	shop, shopKey := leaf(t, r, func(c *x509.Certificate) { c.DNSNames = []string{"shop.example.com"} })
	for _, name := range []string{"kubernetes://shop", "kubernetes://gone"} {
		if err := s.Set(name, Credential{CertPEM: []byte(shop), KeyPEM: shopKey}); err != nil {
			t.Fatal(err)
		}
	}
	s.Delete("kubernetes://gone")
	next := open(now)
	if !next.Has(Default) || !next.Has("kubernetes://shop") || next.Has("kubernetes://gone") {
		t.Errorf("kept: %v", next.Kept())
	}
	if c := next.Named()["kubernetes://shop"]; c == nil || c.Leaf.DNSNames[0] != "shop.example.com" {
		t.Errorf("named: %v", next.Named())
	}
	if got := next.Kept(); len(got) != 1 || got[0] != "kubernetes://shop" {
		t.Errorf("kept: %v", got)
	}
	if late := open(now.Add(2 * time.Hour)); late.Has("kubernetes://shop") {
		t.Error("a credential outlived the identity it was sent to")
	}
}

func TestRunEndsWhenNothingHelps(t *testing.T) {
	r := secrettest.NewAuthority(t)
	s := holder(t, r, id("default", "a"))
	s.o.Now = func() time.Time { return time.Now().Add(2 * time.Hour) }
	if err := s.Run(context.Background()); !errors.Is(err, ErrExpired) {
		t.Errorf("after expiry: %v", err)
	}
	none, err := Open(Options{ID: id("default", "a"), RootsPEM: r.PEM, Address: "127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := none.Run(context.Background()); !errors.Is(err, errSpent) {
		t.Errorf("without token: %v", err)
	}
	if _, err := Open(Options{ID: id("default", "a")}); err == nil {
		t.Error("opened without roots")
	}
}
