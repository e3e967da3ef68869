package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"lateen.dev/lateen/internal/spiffe"
	"lateen.dev/lateen/internal/xdspb/istioca"
)

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func open(t *testing.T, dir string, c *clock, lifetime time.Duration) *Authority {
	t.Helper()
	a, err := Open(Options{Dir: dir, TrustDomain: "cluster.local", Lifetime: lifetime, Now: c.Now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// serve runs the authority behind TLS, and behind plaintext, on loopback.
func serve(t *testing.T, a *Authority) (tlsAddr, plainAddr string) {
	t.Helper()
	start := func(opts ...grpc.ServerOption) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer(opts...)
		istioca.Register(s, a)
		go s.Serve(l)
		t.Cleanup(s.Stop)
		return l.Addr().String()
	}
	return start(grpc.Creds(credentials.NewTLS(a.ServerTLS()))), start()
}

func newCSR(t *testing.T, key any, template *x509.CertificateRequest) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// greedy asks for everything that a CSR must not grant.
func greedy(t *testing.T, key any) string {
	uri, _ := url.Parse("spiffe://cluster.local/ns/kube-system/sa/admin")
	return newCSR(t, key, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "admin"}, DNSNames: []string{"istiod.istio-system.svc"}, URIs: []*url.URL{uri},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
}

type client struct {
	t    *testing.T
	addr string
	a    *Authority
	c    *clock
}

// call asks for a certificate with a token, a client certificate or neither.
func (c client) call(csr, token string, cert *tls.Certificate, seconds int64) ([]*x509.Certificate, error) {
	c.t.Helper()
	cfg := &tls.Config{RootCAs: c.a.Roots(), ServerName: "istiod.istio-system.svc", Time: c.c.Now}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	conn, err := grpc.NewClient(c.addr, grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	if err != nil {
		c.t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	resp, err := istioca.NewClient(conn).CreateCertificate(ctx, &istioca.IstioCertificateRequest{Csr: csr, ValidityDuration: seconds})
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for _, p := range resp.CertChain {
		got, err := parseCertificates([]byte(p))
		if err != nil {
			c.t.Fatal(err)
		}
		certs = append(certs, got...)
	}
	return certs, nil
}

func (a *Authority) mustToken(t *testing.T, ns, sa, pod string) string {
	t.Helper()
	token, err := a.IssueToken(Binding{Namespace: ns, ServiceAccount: sa, Pod: pod})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestCreateCertificate_identityIsTheTokensNotTheCSRs(t *testing.T) {
	c := newClock()
	a := open(t, t.TempDir(), c, 0)
	addr, _ := serve(t, a)
	key := newKey(t)
	certs, err := client{t, addr, a, c}.call(greedy(t, key), a.mustToken(t, "default", "go-app", "go-app-1"), nil, 10*365*24*3600)
	if err != nil {
		t.Fatal(err)
	}
	leaf, root := certs[0], certs[len(certs)-1]
	if id, err := spiffe.FromCertificate(leaf); err != nil || id.String() != "spiffe://cluster.local/ns/default/sa/go-app" {
		t.Errorf("identity %v, %v", id, err)
	}
	if len(leaf.DNSNames) != 0 || len(leaf.IPAddresses) != 0 || leaf.Subject.CommonName != "" || leaf.IsCA {
		t.Errorf("the CSR was honoured: %v %v %v CA=%v", leaf.DNSNames, leaf.IPAddresses, leaf.Subject, leaf.IsCA)
	}
	if len(certs) < 2 || encodeCertificate(root) != a.RootsPEM() {
		t.Error("the root is not last in the chain")
	}
	if got := leaf.NotAfter.Sub(c.Now()); got != defaultLifetime {
		t.Errorf("lifetime %v, want the default: a caller may not ask for more", got)
	}
	if back := c.Now().Sub(leaf.NotBefore); back != maxBackdate {
		t.Errorf("back-dated by %v, want %v", back, maxBackdate)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: a.Roots(), CurrentTime: c.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if end, ok := a.PodExpiry("go-app-1.default"); !ok || !end.Equal(leaf.NotAfter) {
		t.Errorf("PodExpiry = %v, %v", end, ok)
	}
}

func TestRenewal_rotatesWithASixtySecondLife(t *testing.T) {
	c := newClock()
	a := open(t, t.TempDir(), c, time.Minute)
	addr, _ := serve(t, a)
	cl := client{t, addr, a, c}
	key := newKey(t)
	certs, err := cl.call(newCSR(t, key, &x509.CertificateRequest{}), a.mustToken(t, "default", "web", "web-1"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	first, firstKey := certs[0], key
	for i := range 5 {
		c.advance(31 * time.Second)
		old := &tls.Certificate{Certificate: [][]byte{certs[0].Raw}, PrivateKey: key}
		key = newKey(t)
		if certs, err = cl.call(newCSR(t, key, &x509.CertificateRequest{}), "", old, 0); err != nil {
			t.Fatalf("renewal %d: %v", i, err)
		}
	}
	if got := certs[0].NotAfter.Sub(c.Now()); got != time.Minute {
		t.Errorf("renewed life %v", got)
	}
	if id, err := spiffe.FromCertificate(certs[0]); err != nil || id.ServiceAccount != "web" {
		t.Errorf("identity after renewals %v, %v", id, err)
	}
	if end, _ := a.PodExpiry("web-1.default"); !end.Equal(certs[0].NotAfter) {
		t.Errorf("the pod's expiry did not follow its renewals: %v", end)
	}
	if s := a.Stats(); s.Issued != 1 || s.Renewed != 5 {
		t.Errorf("stats %+v", s)
	}
	// An expired SVID proves nothing.
	if _, err := cl.call(newCSR(t, key, &x509.CertificateRequest{}), "", &tls.Certificate{Certificate: [][]byte{first.Raw}, PrivateKey: firstKey}, 0); err == nil {
		t.Error("a certificate that expired bought a new one")
	}
	c.advance(2 * time.Minute)
	if _, err := cl.call(newCSR(t, key, &x509.CertificateRequest{}), "", &tls.Certificate{Certificate: [][]byte{certs[0].Raw}, PrivateKey: key}, 0); err == nil {
		t.Error("an expired certificate was renewed")
	}
}

func TestTokens_singleUseBoundedInTimeAndKeptOverRestart(t *testing.T) {
	c, dir := newClock(), t.TempDir()
	a := open(t, dir, c, 0)
	b := Binding{Namespace: "default", ServiceAccount: "web", Pod: "web-1"}
	used, kept, late := a.mustToken(t, "default", "web", "web-1"), a.mustToken(t, "default", "web", "web-1"), a.mustToken(t, "default", "web", "web-1")
	if got, err := a.tokens.redeem(used, c.Now()); err != nil || got != b {
		t.Fatalf("first use: %v, %v", got, err)
	}
	stored, err := os.ReadFile(filepath.Join(dir, "tokens.json"))
	if err != nil {
		t.Fatal(err)
	}
	_, secret, _ := strings.Cut(kept, ".")
	if strings.Contains(string(stored), secret) {
		t.Error("the file holds a token that could be used")
	}

	a = open(t, dir, c, 0)
	refused := func(what, token string) {
		t.Helper()
		if got, err := a.tokens.redeem(token, c.Now()); err == nil {
			t.Errorf("%s: accepted as %v", what, got)
		}
	}
	refused("second use, after a restart", used)
	refused("empty", "")
	refused("no secret", strings.SplitN(kept, ".", 2)[0]+".")
	refused("another token's secret", strings.SplitN(kept, ".", 2)[0]+"."+strings.SplitN(late, ".", 2)[1])
	refused("unknown", "0011223344556677."+secret)
	if got, err := a.tokens.redeem(kept, c.Now()); err != nil || got != b {
		t.Errorf("after a restart: %v, %v", got, err)
	}
	c.advance(tokenLifetime)
	refused("expired", late)
}

func TestCreateCertificate_refusals(t *testing.T) {
	c := newClock()
	a := open(t, t.TempDir(), c, 0)
	addr, plain := serve(t, a)
	cl := client{t, addr, a, c}
	good := newCSR(t, newKey(t), &x509.CertificateRequest{})
	want := func(what string, err error, code codes.Code) {
		t.Helper()
		if status.Code(err) != code {
			t.Errorf("%s: %v, want %v", what, err, code)
		}
	}
	_, err := cl.call(good, "", nil, 0)
	want("no credential", err, codes.Unauthenticated)
	_, err = cl.call(good, "0011223344556677.AAAA", nil, 0)
	want("wrong token", err, codes.Unauthenticated)
	if s := a.Stats(); s.RefusedTokens != 1 || s.RefusedCallers != 1 {
		t.Errorf("stats %+v", s)
	}

	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err == nil { // the toolchain may refuse such keys by itself
		_, err = cl.call(newCSR(t, weak, &x509.CertificateRequest{}), a.mustToken(t, "a", "b", "c"), nil, 0)
		want("weak key", err, codes.InvalidArgument)
	}
	block, _ := pem.Decode([]byte(good))
	block.Bytes[len(block.Bytes)-1] ^= 1
	_, err = cl.call(string(pem.EncodeToMemory(block)), a.mustToken(t, "a", "b", "c"), nil, 0)
	want("broken signature", err, codes.InvalidArgument)
	_, err = cl.call("not PEM", a.mustToken(t, "a", "b", "c"), nil, 0)
	want("garbage", err, codes.InvalidArgument)
	_, err = cl.call(strings.Repeat("x", maxCSRBytes+1), a.mustToken(t, "a", "b", "c"), nil, 0)
	want("oversized", err, codes.InvalidArgument)

	conn, err := grpc.NewClient(plain, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx := metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+a.mustToken(t, "a", "b", "c"))
	_, err = istioca.NewClient(conn).CreateCertificate(ctx, &istioca.IstioCertificateRequest{Csr: good})
	want("token over plaintext", err, codes.Unauthenticated)

	if _, err := a.IssueToken(Binding{Namespace: "a/sa/b", ServiceAccount: "c", Pod: "p"}); err == nil {
		t.Error("a token was made for a namespace that holds path segments")
	}
}

func TestOpen_keepsTheRootAndRefusesBadOnes(t *testing.T) {
	c, dir := newClock(), t.TempDir()
	a := open(t, dir, c, 0)
	if again := open(t, dir, c, 0); again.RootsPEM() != a.RootsPEM() {
		t.Error("a restart made a new root")
	}
	try := func() error {
		_, err := Open(Options{Dir: dir, TrustDomain: "cluster.local", Now: c.Now, Log: slog.New(slog.DiscardHandler)})
		return err
	}
	path := filepath.Join(dir, "root.pem")
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := try(); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("readable key: %v", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	c.advance(rootLifetime + time.Hour)
	if err := try(); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("expired root: %v", err)
	}
	if _, err := Open(Options{Dir: t.TempDir(), TrustDomain: "td", Lifetime: time.Second}); err == nil {
		t.Error("a lifetime of one second was accepted")
	}
}

func TestPlugin_intermediateSignsAndRootIsLast(t *testing.T) {
	c, dir := newClock(), t.TempDir()
	upper := open(t, t.TempDir(), c, 0)
	key := newKey(t)
	serial, err := newSerial()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, NotBefore: c.Now(), NotAfter: c.Now().Add(time.Hour), Subject: pkix.Name{CommonName: "intermediate"},
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, upper.signerCert, key.Public(), upper.signer)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	p := &Plugin{Cert: write("ca-cert.pem", "CERTIFICATE", der), Key: write("ca-key.pem", "EC PRIVATE KEY", keyDER), Root: write("root-cert.pem", "CERTIFICATE", upper.signerCert.Raw)}
	a, err := Open(Options{Dir: filepath.Join(dir, "data"), TrustDomain: "cluster.local", Plugin: p, Now: c.Now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	addr, _ := serve(t, a)
	certs, err := client{t, addr, a, c}.call(newCSR(t, newKey(t), &x509.CertificateRequest{}), a.mustToken(t, "default", "web", "web-1"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(certs) != 3 || certs[1].Subject.CommonName != "intermediate" || !certs[2].Equal(upper.signerCert) {
		t.Errorf("chain of %d: want leaf, intermediate, root", len(certs))
	}
	if certs[0].NotAfter.After(template.NotAfter) {
		t.Error("the leaf outlives its issuer")
	}
	p.Key = write("other-key.pem", "PRIVATE KEY", func() []byte { b, _ := x509.MarshalPKCS8PrivateKey(newKey(t)); return b }())
	if _, err := Open(Options{Dir: filepath.Join(dir, "data2"), TrustDomain: "cluster.local", Plugin: p, Now: c.Now, Log: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("a key that does not belong to the certificate was accepted")
	}
}

func TestLimiter_boundsOneIdentityAndRefills(t *testing.T) {
	var l limiter
	c := newClock()
	for i := range renewalBurst {
		if !l.allow("a", c.Now()) {
			t.Fatalf("refused call %d of the burst", i)
		}
	}
	if l.allow("a", c.Now()) {
		t.Error("granted more than the burst")
	}
	if !l.allow("b", c.Now()) {
		t.Error("one identity's burst refused another's call")
	}
	c.advance(-time.Hour)
	if l.allow("a", c.Now()) {
		t.Error("a clock that went back refilled the bucket")
	}
	c.advance(time.Second)
	if !l.allow("a", c.Now()) {
		t.Error("not refilled after a second")
	}
}

func FuzzSign(f *testing.F) {
	dir := f.TempDir()
	a, err := Open(Options{Dir: dir, TrustDomain: "td", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"a"}}, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	id := spiffe.ID{TrustDomain: "td", Namespace: "a", ServiceAccount: "b"}
	f.Fuzz(func(t *testing.T, der []byte) {
		_, cert, err := a.sign(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), id, 0)
		if err != nil {
			return
		}
		if got, err := spiffe.FromCertificate(cert); err != nil || got != id || len(cert.DNSNames) != 0 {
			t.Errorf("signed %v for %v (%v)", got, cert.DNSNames, err)
		}
	})
}
