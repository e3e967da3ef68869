package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	"lateen.dev/lateen/internal/spiffe"
)

// maxCSRBytes bounds what is parsed of a caller; a real CSR has under 2 kB.
const maxCSRBytes = 16 << 10

// errCSR marks errors that are the caller's fault.
var errCSR = errors.New("certificate request refused")

// sign issues an SVID for id from a CSR of which only the public key counts:
// subject, names, usages and lifetime are the authority's. wanted is the
// lifetime asked for; 0, or more than the default, means the default.
func (a *Authority) sign(csrPEM string, id spiffe.ID, wanted time.Duration) ([]string, *x509.Certificate, error) {
	if len(csrPEM) > maxCSRBytes {
		return nil, nil, fmt.Errorf("%w: %d bytes, at most %d", errCSR, len(csrPEM), maxCSRBytes)
	}
	block, _ := pem.Decode([]byte(csrPEM))
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, nil, fmt.Errorf("%w: it is not a PEM block of type CERTIFICATE REQUEST", errCSR)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errCSR, err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, nil, fmt.Errorf("%w: the caller does not hold the key: %w", errCSR, err)
	}
	if err := acceptableKey(csr.PublicKey); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errCSR, err)
	}
	lifetime := a.lifetime
	if wanted > 0 && wanted < lifetime {
		lifetime = max(wanted, minLifetime)
	}
	cert, err := a.issue(csr.PublicKey, id, nil, lifetime)
	if err != nil {
		return nil, nil, err
	}
	return append([]string{encodeCertificate(cert)}, a.upperPEM...), cert, nil
}

// issue signs one leaf.
func (a *Authority) issue(pub crypto.PublicKey, id spiffe.ID, dns []string, lifetime time.Duration) (*x509.Certificate, error) {
	uri, err := url.Parse(id.String())
	if err != nil {
		return nil, fmt.Errorf("sign certificate for %v: %w", id, err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := a.now()
	notAfter := now.Add(lifetime)
	if notAfter.After(a.signerCert.NotAfter) {
		notAfter = a.signerCert.NotAfter // a leaf must not outlive its issuer
	}
	if !notAfter.After(now) {
		return nil, fmt.Errorf("sign certificate for %v: the authority's own certificate expired at %v", id, a.signerCert.NotAfter)
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		URIs:         []*url.URL{uri},
		DNSNames:     dns,
		// A tenth of the life at most, so that half the life of a short test
		// certificate still lies ahead of a proxy that computes it from both ends.
		NotBefore:             now.Add(-min(maxBackdate, lifetime/10)),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	if _, ok := pub.(*rsa.PublicKey); ok {
		template.KeyUsage |= x509.KeyUsageKeyEncipherment
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.signerCert, pub, a.signer)
	if err != nil {
		return nil, fmt.Errorf("sign certificate for %v: %w", id, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("sign certificate for %v: %w", id, err)
	}
	return cert, nil
}

func acceptableKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return nil
		}
		return fmt.Errorf("curve %s: use P-256 or P-384", k.Curve.Params().Name)
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < 2048 || bits > 4096 {
			return fmt.Errorf("RSA key of %d bits: use 2048 to 4096, or ECDSA P-256", bits)
		}
		return nil
	case ed25519.PublicKey:
		return nil
	}
	return fmt.Errorf("key type %T: use ECDSA P-256", pub)
}

// servingCache holds the control plane's own certificate.
type servingCache struct {
	mu    sync.Mutex
	cert  *tls.Certificate
	renew time.Time
}

// ServerTLS returns the configuration for port 15012: the control plane's own
// certificate, renewed at half its life, TLS 1.3 only, and client certificates
// verified when given. Whether a call needs one is decided by the service: a
// proxy's first certificate is bought with a token.
func (a *Authority) ServerTLS() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		ClientAuth:             tls.VerifyClientCertIfGiven,
		ClientCAs:              a.roots,
		Time:                   a.now,
		SessionTicketsDisabled: true, // a resumed session would skip the check of the client's certificate
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return a.servingCertificate() },
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return nil
			}
			_, err := a.identityOf(cs.PeerCertificates[0])
			return err
		},
	}
}

func (a *Authority) servingCertificate() (*tls.Certificate, error) {
	a.serving.mu.Lock()
	defer a.serving.mu.Unlock()
	now := a.now()
	if a.serving.cert != nil && now.Before(a.serving.renew) && now.After(a.serving.cert.Leaf.NotBefore) {
		return a.serving.cert, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make serving key: %w", err)
	}
	service := spiffe.ControlServiceAccount + "." + spiffe.ControlNamespace
	names := append([]string{service + ".svc", service + ".svc.cluster.local", service}, a.servingNames...)
	leaf, err := a.issue(key.Public(), spiffe.ControlPlane(a.trustDomain), names, a.lifetime)
	if err != nil {
		return nil, err
	}
	cert := &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	for _, p := range a.upperPEM[:len(a.upperPEM)-1] { // peers have the root
		block, _ := pem.Decode([]byte(p))
		cert.Certificate = append(cert.Certificate, block.Bytes)
	}
	a.serving.cert, a.serving.renew = cert, now.Add(a.lifetime/2)
	return cert, nil
}

// identityOf returns whose SVID a verified certificate is; it must be of this
// trust domain.
func (a *Authority) identityOf(cert *x509.Certificate) (spiffe.ID, error) {
	id, err := spiffe.FromCertificate(cert)
	if err != nil {
		return spiffe.ID{}, err
	}
	if id.TrustDomain != a.trustDomain {
		return spiffe.ID{}, fmt.Errorf("identity %v is not of trust domain %q", id, a.trustDomain)
	}
	return id, nil
}
