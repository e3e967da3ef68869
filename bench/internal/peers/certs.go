//go:build linux

package peers

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"
)

// authority signs the certificates of nginx and HAProxy, P-256 as the mesh's.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
}

func newCA() (*authority, error) {
	a := &authority{}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	t := template(1, "bench root")
	t.IsCA, t.KeyUsage = true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, t, t, a.key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("make a root certificate: %w", err)
	}
	a.pem = block("CERTIFICATE", der)
	a.cert, err = x509.ParseCertificate(der)
	return a, err
}

func template(serial int64, name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// issue signs a certificate of that name and returns it with its key.
func (a *authority) issue(name string) (cert, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template(time.Now().UnixNano(), name), a.cert, k.Public(), a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("sign a certificate: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, nil, err
	}
	return block("CERTIFICATE", der), block("PRIVATE KEY", keyDER), nil
}

// serverName is in the certificate of every server half.
const serverName = "server.bench.test"

// files writes an identity of that name and the root for a peer: root.pem, NAME.pem with
// certificate and key together, NAME.crt and NAME.key.
func (a *authority) files(p *Peer, name string) error {
	cert, key, err := a.issue(name)
	if err != nil {
		return err
	}
	for file, data := range map[string][]byte{
		"root.pem": a.pem, name + ".crt": cert, name + ".key": key, name + ".pem": bytes.Join([][]byte{cert, key}, nil),
	} {
		if _, err := p.write(file, data); err != nil {
			return err
		}
	}
	return nil
}

// client is the configuration of a client with an identity of its own.
func (a *authority) client() (*tls.Config, error) {
	cert, key, err := a.issue("client.bench.test")
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	c := verified(pair, roots)
	c.ServerName = serverName
	return c, nil
}
