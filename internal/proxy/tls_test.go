package proxy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"lateen.dev/lateen/internal/proxy/snapshot"
)

// authority is a certificate authority of a test and, for one identity, the
// Secrets of a proxy.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{cert: cert, key: key, pool: x509.NewCertPool()}
	a.pool.AddCert(cert)
	return a
}

// identity is the Secrets of one workload.
type identity struct {
	ca   *authority
	cert tls.Certificate
}

func (a *authority) issue(t testing.TB, id string) *identity {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), URIs: []*url.URL{uri}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &identity{ca: a, cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}}
}

func (i *identity) ServerConfig(d *snapshot.DownstreamTLS) *tls.Config {
	alpn := d.ALPN
	if len(alpn) == 0 {
		alpn = []string{"istio-http/1.1", "istio", "http/1.1"}
	}
	return &tls.Config{
		Certificates: []tls.Certificate{i.cert}, ClientCAs: i.ca.pool, ClientAuth: tls.RequireAndVerifyClientCert,
		MinVersion: tls.VersionTLS13, NextProtos: alpn, SessionTicketsDisabled: true,
	}
}

func (i *identity) ClientConfig(u *snapshot.UpstreamTLS, _ string, offers snapshot.ALPN) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{i.cert}, MinVersion: tls.VersionTLS13, NextProtos: offers,
		ServerName: u.SNI, InsecureSkipVerify: true, // the name is a SPIFFE id, verified here:
		VerifyConnection: func(cs tls.ConnectionState) error {
			leaf := cs.PeerCertificates[0]
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: i.ca.pool}); err != nil {
				return err
			}
			for n := range u.Validation.SANs {
				if slices.ContainsFunc(leaf.URIs, func(l *url.URL) bool { return u.Validation.SANs[n].MatchString(l.String()) }) {
					return nil
				}
			}
			return fmt.Errorf("the server is %v", leaf.URIs)
		},
	}
}

const (
	clientID = "spiffe://cluster.local/ns/default/sa/client"
	serverID = "spiffe://cluster.local/ns/default/sa/server"
)

// inbound makes the chains of an inbound port in a PeerAuthentication mode.
func inbound(m *snapshot.HTTPManager, strict bool) []*snapshot.FilterChain {
	secure := httpChain(m)
	secure.TLS = &snapshot.DownstreamTLS{Certificates: []string{"default"}, RequireClientCert: true}
	secure.Match = snapshot.ChainMatch{Transport: "tls"}
	if strict {
		return []*snapshot.FilterChain{secure}
	}
	plain := httpChain(m)
	plain.Match = snapshot.ChainMatch{Transport: "raw_buffer"}
	return []*snapshot.FilterChain{secure, plain}
}

// meshBed is client proxy → mTLS → server proxy → backend.
type meshBed struct {
	outAddr, inAddr, app string
	out, in              *Server
}

func (b *meshBed) applyInbound(t testing.TB, strict bool) {
	c := newConfig(t)
	c.cluster("app", b.app)
	m := c.manager("app")
	m.ForwardClientCert, m.SetClientCert = snapshot.XFCCSanitizeSet, snapshot.SetClientCert{URI: true}
	l := c.listen(b.inAddr, inbound(m, strict)...)
	l.Chains, l.Default = append(l.Chains, l.Default), nil
	l.TLSInspector, l.Direction = true, snapshot.Inbound
	apply(t, b.in, c)
}

func (b *meshBed) applyOutbound(t testing.TB, wantServer string) {
	c := newConfig(t)
	cl := c.cluster("server", b.inAddr)
	cl.Endpoints[0].Labels = map[string]string{"tlsMode": "istio"}
	cl.Transports = []snapshot.TransportMatch{
		{Name: "tlsMode-istio", Match: map[string]string{"tlsMode": "istio"}, TLS: &snapshot.UpstreamTLS{
			Certificate: "default", SNI: "outbound_.80_._.server", Mesh: true,
			Validation: &snapshot.Validation{SANs: []snapshot.StringMatcher{{Kind: snapshot.StringExact, Text: wantServer}}},
		}},
		{Name: "tlsMode-disabled"},
	}
	c.listen(b.outAddr, httpChain(c.manager("server")))
	apply(t, b.out, c)
}

func newMeshBed(t testing.TB) *meshBed {
	ca := newAuthority(t)
	return &meshBed{
		outAddr: freeAddr(t), inAddr: freeAddr(t), app: xfccBackend(t),
		out: start(t, ca.issue(t, clientID)), in: start(t, ca.issue(t, serverID)),
	}
}

// xfccBackend answers with the client certificate header it got.
func xfccBackend(t testing.TB) string {
	return serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Header.Get("x-forwarded-client-cert"))
	})
}

func fetch(t testing.TB, addr string) (int, string, error) {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr, Timeout: 10 * time.Second}).Get("http://" + addr + "/x")
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

func TestTLS_permissiveTakesBothStrictOnlyTLS(t *testing.T) {
	b := newMeshBed(t)
	b.applyInbound(t, false)
	b.applyOutbound(t, serverID)
	code, body, err := fetch(t, b.outAddr)
	if err != nil || code != 200 || !strings.Contains(body, "By="+serverID) || !strings.Contains(body, "URI="+clientID) {
		t.Fatalf("mTLS: %d %q %v", code, body, err)
	}
	if code, body, err = fetch(t, b.inAddr); err != nil || code != 200 || body != "" {
		t.Fatalf("plaintext under PERMISSIVE: %d %q %v", code, body, err)
	}
	kept := dialTCP(t, b.inAddr)
	fmt.Fprintf(kept, "GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
	if _, err := kept.Read(make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	b.applyInbound(t, true)
	if code, body, err = fetch(t, b.outAddr); err != nil || code != 200 {
		t.Fatalf("mTLS under STRICT: %d %q %v", code, body, err)
	}
	if code, _, err = fetch(t, b.inAddr); err == nil {
		t.Fatalf("plaintext under STRICT was answered %d", code)
	}
	fmt.Fprintf(kept, "GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
	if n, err := kept.Read(make([]byte, 4096)); err == nil {
		t.Fatalf("a plaintext connection from before STRICT is still served: %d bytes", n)
	}
}

func TestTLS_wrongServerIdentityIsRefused(t *testing.T) {
	b := newMeshBed(t)
	b.applyInbound(t, true)
	b.applyOutbound(t, "spiffe://cluster.local/ns/default/sa/other")
	code, body, err := fetch(t, b.outAddr)
	if err != nil || code != 503 || !strings.Contains(body, "remote connection failure") || strings.Contains(body, "spiffe") {
		t.Fatalf("%d %q %v", code, body, err)
	}
}

func TestTLS_strangersAreRefused(t *testing.T) {
	b := newMeshBed(t)
	b.applyInbound(t, true)
	foreign := newAuthority(t).issue(t, clientID)
	b.out.o.Secrets = foreign
	foreign.ca.pool.AddCert(b.in.o.Secrets.(*identity).ca.cert)
	b.applyOutbound(t, serverID)
	if code, body, err := fetch(t, b.outAddr); err != nil || code != 503 {
		t.Fatalf("a client of another authority got %d %q %v", code, body, err)
	}
}

func TestTLS_loadOverPooledConnections(t *testing.T) {
	b := newMeshBed(t)
	b.applyInbound(t, true)
	b.applyOutbound(t, serverID)
	tr := &http.Transport{MaxIdleConnsPerHost: 8}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr}
	errs := make(chan error, 8)
	for range 8 {
		go func() {
			for range 50 {
				resp, err := client.Get("http://" + b.outAddr + "/x")
				if err != nil {
					errs <- err
					return
				}
				_, err = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != 200 {
					errs <- fmt.Errorf("%d %v", resp.StatusCode, err)
					return
				}
			}
			errs <- nil
		}()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	connections := 0
	for _, e := range b.out.Endpoints() {
		connections += e.Connections
	}
	if connections == 0 || connections > 16 {
		t.Errorf("%d upstream connections for 8 clients", connections)
	}
}
