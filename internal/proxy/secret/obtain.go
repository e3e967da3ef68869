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
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"lateen.dev/lateen/internal/spiffe"
	"lateen.dev/lateen/internal/xdspb/istioca"
)

// errSpent says that there is no credential left to buy a certificate with.
var errSpent = errors.New("the bootstrap token is spent or was refused: start the proxy anew with a fresh one")

// obtain makes a new key and has it signed: by the token the first time, by the
// SVID afterwards.
func (s *Store) obtain(ctx context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make key: %w", err)
	}
	// The authority takes the identity from the caller; the CSR carries the key.
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return fmt.Errorf("make certificate request: %w", err)
	}
	chain, err := s.sign(ctx, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})))
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	next, err := s.accept(chain, keyPEM)
	if err != nil {
		return fmt.Errorf("use certificate: %w", err)
	}
	s.token = ""
	s.install(next)
	if err := s.keep(chain, keyPEM); err != nil {
		s.o.Log.Warn("the certificate cannot be kept for a restart", "error", err)
	}
	s.o.Log.Info("certificate in use", "identity", s.o.ID.String(), "notAfter", next.cert.Leaf.NotAfter)
	return nil
}

func (s *Store) install(next *svid) {
	s.svid.Store(next)
	s.mu.Lock()
	s.configs = nil
	s.generation++
	s.mu.Unlock()
	s.poke()
}

// sign calls the authority over a connection of its own: whether a connection
// shows a certificate is decided when it is made.
func (s *Store) sign(ctx context.Context, csr string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	_, noSVID := s.Certificate()
	if noSVID != nil && s.token == "" {
		if s.o.Token == nil {
			return nil, errSpent
		}
		token, err := s.o.Token()
		if err != nil {
			return nil, fmt.Errorf("read bootstrap token: %w", err)
		}
		s.token = strings.TrimSpace(token)
		s.o.Token = nil
	}
	conn, err := grpc.NewClient("passthrough:///"+s.o.Address,
		grpc.WithTransportCredentials(credentials.NewTLS(s.ControlConfig())),
		grpc.WithContextDialer(s.o.Dial))
	if err != nil {
		return nil, fmt.Errorf("reach certificate authority %s: %w", s.o.Address, err)
	}
	defer conn.Close()
	if noSVID != nil {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+s.token)
	}
	resp, err := istioca.NewClient(conn).CreateCertificate(ctx, &istioca.IstioCertificateRequest{
		Csr: csr, ValidityDuration: int64(s.o.Lifetime / time.Second),
	})
	if status.Code(err) == codes.Unauthenticated && noSVID != nil {
		s.token = ""
		return nil, fmt.Errorf("certificate authority %s: %s: %w", s.o.Address, status.Convert(err).Message(), errSpent)
	}
	if err != nil {
		return nil, fmt.Errorf("certificate authority %s: %s", s.o.Address, status.Convert(err).Message())
	}
	return resp.GetCertChain(), nil
}

// accept checks a chain (leaf first, root last) and its key.
func (s *Store) accept(chain []string, keyPEM []byte) (*svid, error) {
	if len(chain) < 2 {
		return nil, fmt.Errorf("the chain has %d certificates, want leaf and root", len(chain))
	}
	if joined := strings.Join(chain, ""); len(joined) > maxPEM {
		return nil, fmt.Errorf("the chain is longer than %d bytes", maxPEM)
	}
	cert, err := tls.X509KeyPair([]byte(strings.Join(chain[:len(chain)-1], "\n")), keyPEM)
	if err != nil {
		return nil, err
	}
	id, err := spiffe.FromCertificate(cert.Leaf)
	if err != nil {
		return nil, err
	}
	if id != s.o.ID {
		return nil, fmt.Errorf("it was made out to %v, want %v", id, s.o.ID)
	}
	rootsPEM := chain[len(chain)-1]
	if !strings.Contains(s.o.RootsPEM, strings.TrimSpace(rootsPEM)) {
		rootsPEM = strings.TrimSpace(rootsPEM) + "\n" + s.o.RootsPEM
	} else {
		rootsPEM = s.o.RootsPEM
	}
	next := &svid{cert: &cert, rootsPEM: rootsPEM, roots: x509.NewCertPool()}
	next.roots.AppendCertsFromPEM([]byte(rootsPEM))
	now := s.o.Now()
	if err := verifyChain(cert.Leaf, cert.Certificate[1:], next.roots, x509.ExtKeyUsageServerAuth, now); err != nil {
		return nil, err
	}
	// Half of the life, spread by a tenth so that proxies started together do
	// not renew together.
	life := cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore)
	next.renewAt = cert.Leaf.NotBefore.Add(life/2 + time.Duration((mathrand.Float64()-0.5)*float64(life)/10))
	if !next.renewAt.After(now) { // short lives with a back-dated start
		next.renewAt = now.Add(cert.Leaf.NotAfter.Sub(now) / 2)
	}
	return next, nil
}

// DialContext makes a dial function for gRPC out of one for networks.
func DialContext(d *net.Dialer) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, address string) (net.Conn, error) { return d.DialContext(ctx, "tcp", address) }
}
