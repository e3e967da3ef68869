// Package ca is the certificate authority of the mesh. It holds the root,
// signs X.509-SVIDs for the identity that a caller has proved (never for the
// one a CSR asks for), and hands out the single-use tokens with which a proxy
// proves itself the first time. It serves Istio's IstioCertificateService and
// the control plane's own TLS certificate.
//
// An Authority is safe for concurrent use. The clock is injected. Everything it
// must remember over a restart (root, outstanding tokens) is in its directory;
// private keys are readable by their owner only. Keys of workloads never pass
// through it.
package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"lateen.dev/lateen/internal/control/disk"
	"lateen.dev/lateen/internal/spiffe"
)

// Lifetimes. The root's and the SVID's defaults are Istio's.
const (
	rootLifetime    = 10 * 365 * 24 * time.Hour
	defaultLifetime = 24 * time.Hour
	minLifetime     = time.Minute
	maxLifetime     = 90 * 24 * time.Hour
	// maxBackdate lets peers whose clocks are behind accept a new certificate.
	maxBackdate = 5 * time.Minute
)

// Options configures an Authority. Dir, TrustDomain and Log are required.
type Options struct {
	// Dir keeps the root and the tokens; it is created with mode 0700.
	Dir         string
	TrustDomain string
	// Lifetime of an SVID: one minute to 90 days, 0 means 24 h.
	Lifetime time.Duration
	// Plugin replaces the self-signed root.
	Plugin *Plugin
	// ServingNames are further DNS names for the control plane's certificate.
	ServingNames []string
	// Now is the clock; nil means the wall clock.
	Now func() time.Time
	Log *slog.Logger
}

// Plugin names the PEM files of an authority that somebody else issued, the
// same four that Istio reads from the secret "cacerts". Chain holds the
// certificates between Cert and Root and may be empty; Root may be empty when
// Cert is self-signed.
type Plugin struct {
	Cert, Key, Chain, Root string
}

// Authority signs certificates for one trust domain.
type Authority struct {
	trustDomain  string
	lifetime     time.Duration
	servingNames []string
	now          func() time.Time
	log          *slog.Logger

	signer      crypto.Signer
	signerCert  *x509.Certificate
	upperPEM    []string // what follows a leaf: intermediates, root last
	roots       *x509.CertPool
	rootsPEM    string
	rootExpiry  time.Time
	tokens      tokenStore
	renewals    limiter
	serving     servingCache
	issuedMu    sync.Mutex
	issued      map[string]issuance // by serial
	podExpiry   map[string]time.Time
	nextSweepAt time.Time
	stats       counters
}

// Open reads the authority from its directory, or makes a new self-signed root
// there. An expired root, or a key that others may read, is an error: nothing
// is ever served with it.
func Open(o Options) (*Authority, error) {
	td, err := spiffe.ParseTrustDomain(o.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("open certificate authority: %w", err)
	}
	if o.Lifetime == 0 {
		o.Lifetime = defaultLifetime
	}
	if o.Lifetime < minLifetime || o.Lifetime > maxLifetime {
		return nil, fmt.Errorf("open certificate authority: lifetime %v: want %v to %v", o.Lifetime, minLifetime, maxLifetime)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open certificate authority: %w", err)
	}
	a := &Authority{
		trustDomain: td, lifetime: o.Lifetime, now: o.Now, log: o.Log,
		servingNames: o.ServingNames,
		issued:       make(map[string]issuance), podExpiry: make(map[string]time.Time),
	}
	if o.Plugin != nil {
		err = a.loadPlugin(*o.Plugin)
	} else {
		err = a.loadOrCreateRoot(filepath.Join(o.Dir, "root.pem"))
	}
	if err != nil {
		return nil, fmt.Errorf("open certificate authority: %w", err)
	}
	if now := a.now(); now.After(a.rootExpiry) || now.After(a.signerCert.NotAfter) {
		return nil, fmt.Errorf("open certificate authority: its certificate expired at %v: replace it in %s, or remove it to make a new root",
			a.signerCert.NotAfter.UTC().Format(time.RFC3339), o.Dir)
	}
	if err := a.tokens.open(filepath.Join(o.Dir, "tokens.json"), a.now()); err != nil {
		return nil, fmt.Errorf("open certificate authority: %w", err)
	}
	return a, nil
}

// TrustDomain returns the trust domain that identities are issued in.
func (a *Authority) TrustDomain() string { return a.trustDomain }

// RootsPEM returns the certificates that verify every SVID of the mesh.
func (a *Authority) RootsPEM() string { return a.rootsPEM }

// Roots returns the same as a pool. It must not be changed.
func (a *Authority) Roots() *x509.CertPool { return a.roots }

// RootExpiry returns when the root stops being valid.
func (a *Authority) RootExpiry() time.Time { return a.rootExpiry }

func (a *Authority) loadOrCreateRoot(path string) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return a.createRoot(path)
	}
	if err != nil {
		return err
	}
	if err := disk.Private(path); err != nil {
		return err
	}
	certs, err := parseCertificates(data)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	key, err := parseKey(data)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return a.use(path, key, certs[:1], certs[0])
}

// createRoot makes the root and stores certificate and key in one file, so
// that no crash can separate them.
func (a *Authority) createRoot(path string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make root key: %w", err)
	}
	now := a.now()
	serial, err := newSerial()
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{Organization: []string{a.trustDomain}, CommonName: "Lateen mesh root"},
		URIs:         []*url.URL{{Scheme: "spiffe", Host: a.trustDomain}},
		NotBefore:    now.Add(-maxBackdate), NotAfter: now.Add(rootLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return fmt.Errorf("sign root: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("read own root: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode root key: %w", err)
	}
	data := append([]byte(encodeCertificate(cert)), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})...)
	if err := disk.WriteFile(path, data, 0o600); err != nil {
		return err
	}
	a.log.Info("made a new mesh root", "trustDomain", a.trustDomain, "serial", serial.Text(16), "notAfter", cert.NotAfter)
	return a.use(path, key, []*x509.Certificate{cert}, cert)
}

func (a *Authority) loadPlugin(p Plugin) error {
	keyPEM, err := os.ReadFile(p.Key)
	if err != nil {
		return err
	}
	if err := disk.Private(p.Key); err != nil {
		return err
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return fmt.Errorf("read %s: %w", p.Key, err)
	}
	upper, err := readCertificates(p.Cert)
	if err != nil {
		return err
	}
	upper = upper[:1]
	root := upper[0]
	if p.Chain != "" {
		chain, err := readCertificates(p.Chain)
		if err != nil {
			return err
		}
		upper = append(upper, chain...)
	}
	if p.Root != "" {
		roots, err := readCertificates(p.Root)
		if err != nil {
			return err
		}
		root = roots[0]
	}
	return a.use(p.Cert, key, upper, root)
}

// use puts a signing key and its certificates in force after checking that
// they belong together. upper begins with the signer's own certificate.
func (a *Authority) use(from string, key crypto.Signer, upper []*x509.Certificate, root *x509.Certificate) error {
	signer := upper[0]
	if pub, ok := signer.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(key.Public()) {
		return fmt.Errorf("read %s: the key does not belong to the certificate", from)
	}
	if !signer.IsCA {
		return fmt.Errorf("read %s: the certificate may not sign others (CA:TRUE is missing)", from)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	for _, c := range upper[1:] {
		between.AddCert(c)
	}
	// The time is checked by Open, with a message of its own.
	verify := x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: signer.NotBefore.Add(time.Second),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	if _, err := signer.Verify(verify); err != nil {
		return fmt.Errorf("read %s: the certificate does not lead to the root: %w", from, err)
	}
	a.signer, a.signerCert = key, signer
	a.roots, a.rootsPEM, a.rootExpiry = roots, encodeCertificate(root), root.NotAfter
	for _, c := range upper {
		if !c.Equal(root) {
			a.upperPEM = append(a.upperPEM, encodeCertificate(c))
		}
	}
	a.upperPEM = append(a.upperPEM, a.rootsPEM)
	return nil
}

func readCertificates(path string) ([]*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	certs, err := parseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return certs, nil
}

// parseCertificates reads every certificate of a PEM file, at least one.
func parseCertificates(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		block, data = pem.Decode(data)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate in PEM form")
	}
	return certs, nil
}

// parseKey reads the first private key of a PEM file in any of the three
// encodings in use.
func parseKey(data []byte) (crypto.Signer, error) {
	for {
		var block *pem.Block
		block, data = pem.Decode(data)
		if block == nil {
			return nil, errors.New("no private key in PEM form")
		}
		switch block.Type {
		case "EC PRIVATE KEY":
			return x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			return x509.ParsePKCS1PrivateKey(block.Bytes)
		case "PRIVATE KEY":
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, err
			}
			signer, ok := key.(crypto.Signer)
			if !ok {
				return nil, fmt.Errorf("private key of type %T cannot sign", key)
			}
			return signer, nil
		}
	}
}

func encodeCertificate(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

// newSerial returns 127 random bits: positive, and at most 20 octets as
// RFC 5280 §4.1.2.2 demands.
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	return n, nil
}
