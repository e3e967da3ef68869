package secret

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"lateen.dev/lateen/internal/proxy/mtls"
	"lateen.dev/lateen/internal/proxy/snapshot"
	"lateen.dev/lateen/internal/spiffe"
)

// maxSANs bounds the names of a peer's certificate, so that matching them stays
// cheap.
const maxSANs = 100

// maxConfigs bounds the cache of server configurations.
const maxConfigs = 4096

// verifyChain verifies a leaf against roots at a time.
func verifyChain(leaf *x509.Certificate, rest [][]byte, roots *x509.CertPool, usage x509.ExtKeyUsage, now time.Time) error {
	if len(rest) > 4 {
		return fmt.Errorf("the chain has %d certificates more than the leaf, at most 4 are looked at", len(rest))
	}
	pool := x509.NewCertPool()
	for _, der := range rest {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		pool.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	return err
}

// verifyPeer verifies the certificates of a handshake.
func verifyPeer(cs *tls.ConnectionState, roots *x509.CertPool, usage x509.ExtKeyUsage, now time.Time) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("the peer showed no certificate")
	}
	if roots == nil {
		return errors.New("no roots to verify the peer with")
	}
	rest := make([][]byte, 0, len(cs.PeerCertificates)-1)
	for _, c := range cs.PeerCertificates[1:] {
		rest = append(rest, c.Raw)
	}
	return verifyChain(cs.PeerCertificates[0], rest, roots, usage, now)
}

// matchNames checks a peer's names against the wanted ones. In the mesh the peer
// must have exactly one SPIFFE id, and only that is compared; elsewhere URI and
// DNS names are (SPIFFE X.509-SVID §2, §5.2).
func matchNames(leaf *x509.Certificate, sans []snapshot.StringMatcher, mesh bool) error {
	if n := len(leaf.URIs) + len(leaf.DNSNames); n > maxSANs {
		return fmt.Errorf("the peer's certificate has %d names, at most %d are looked at", n, maxSANs)
	}
	var names []string
	if mesh {
		id, err := spiffe.FromCertificate(leaf)
		if err != nil {
			return err
		}
		names = []string{id.String()}
	} else {
		for _, u := range leaf.URIs {
			names = append(names, u.String())
		}
		names = append(names, leaf.DNSNames...)
	}
	if len(sans) == 0 {
		return nil
	}
	for _, name := range names {
		if strings.ContainsRune(name, 0) {
			return errors.New("the peer's certificate has a name with a NUL")
		}
		for i := range sans {
			if sans[i].MatchString(name) {
				return nil
			}
		}
	}
	return fmt.Errorf("the peer is %.200q, which is not among the names that are allowed", strings.Join(names, ", "))
}

// roots returns the pool for a validation; nil if it is not there.
func (s *Store) roots(v *snapshot.Validation) *x509.CertPool {
	if len(v.RootsPEM) > 0 {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(v.RootsPEM)
		return pool
	}
	if v.RootSecret == RootCA {
		return s.svid.Load().roots
	}
	if n := s.lookup(v.RootSecret); n != nil && n.err == nil {
		return n.roots
	}
	return nil
}

// certificate returns the certificate of a secret.
func (s *Store) certificate(name string) (*tls.Certificate, error) {
	if name == Default {
		return s.Certificate()
	}
	n := s.lookup(name)
	switch {
	case n == nil:
		return nil, fmt.Errorf("secret %q has not arrived", name)
	case n.err != nil:
		return nil, n.err
	case n.cert == nil:
		return nil, fmt.Errorf("secret %q holds no certificate", name)
	}
	return n.cert, nil
}

// protocols drops what no codec of ours speaks: Istio's TCP metadata exchange.
func protocols(list []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(p string) bool { return p == "istio-peer-exchange" })
}

// ServerConfig returns the configuration with which a filter chain terminates
// TLS. It follows rotations by itself: each handshake uses the secrets of its
// own time. A missing secret fails the handshake.
func (s *Store) ServerConfig(d *snapshot.DownstreamTLS) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := s.serverConfig(d)
			if err != nil {
				return nil, err
			}
			// Envoy goes on without a protocol when none is common; crypto/tls
			// would end the handshake.
			common := func(p string) bool { return slices.Contains(h.SupportedProtos, p) }
			if len(c.NextProtos) > 0 && !slices.ContainsFunc(c.NextProtos, common) {
				c = c.Clone()
				c.NextProtos = nil
			}
			return c, nil
		},
	}
}

func (s *Store) serverConfig(d *snapshot.DownstreamTLS) (*tls.Config, error) {
	s.mu.RLock()
	c, generation := s.configs[d], s.generation
	s.mu.RUnlock()
	if c != nil {
		if slices.Contains(d.Certificates, Default) {
			if _, err := s.Certificate(); err != nil {
				return nil, err
			}
		}
		return c, nil
	}
	c = &tls.Config{
		MinVersion: max(d.MinVersion, tls.VersionTLS12), MaxVersion: d.MaxVersion, CipherSuites: d.CipherSuites,
		NextProtos: protocols(d.ALPN), SessionTicketsDisabled: !d.SessionTickets, Time: s.o.Now,
	}
	for _, name := range d.Certificates {
		cert, err := s.certificate(name)
		if err != nil {
			return nil, err
		}
		c.Certificates = append(c.Certificates, *cert)
	}
	if v := d.Validation; v != nil {
		mesh := v.RootSecret == RootCA
		if mesh {
			mtls.Mesh(c)
		}
		if c.ClientCAs = s.roots(v); c.ClientCAs == nil {
			return nil, fmt.Errorf("secret %q has not arrived", v.RootSecret)
		}
		c.ClientAuth = tls.VerifyClientCertIfGiven
		if d.RequireClientCert {
			c.ClientAuth = tls.RequireAndVerifyClientCert
		}
		c.VerifyConnection = func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return nil // only where it is optional
			}
			return matchNames(cs.PeerCertificates[0], v.SANs, mesh)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.generation != generation {
		return c, nil
	}
	if s.configs == nil || len(s.configs) >= maxConfigs {
		s.configs = map[*snapshot.DownstreamTLS]*tls.Config{}
	}
	s.configs[d] = c
	return c, nil
}

// ClientConfig returns the configuration for one connection to an endpoint.
// host is the request's host without port, for clusters that take name and
// expected identity from it. offers are the protocols to name. In the mesh the
// peer's SPIFFE id is verified instead of a host name; elsewhere the names that
// the cluster lists, or else the server name. Only a cluster without any
// validation is not verified, as it asked.
func (s *Store) ClientConfig(u *snapshot.UpstreamTLS, host string, offers snapshot.ALPN) *tls.Config {
	c := &tls.Config{
		MinVersion: max(u.MinVersion, tls.VersionTLS12), MaxVersion: u.MaxVersion,
		ServerName: u.SNI, NextProtos: offers, Time: s.o.Now, SessionTicketsDisabled: true,
		// Verification is ours (verify below): it knows SPIFFE ids, and roots
		// that may have been rotated since.
		InsecureSkipVerify: true,
	}
	if u.AutoSNI && host != "" {
		c.ServerName = host
	}
	if u.Mesh {
		mtls.Mesh(c)
	}
	if u.Certificate != "" {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return s.certificate(u.Certificate)
		}
	}
	if v := u.Validation; v != nil {
		name := c.ServerName
		c.VerifyConnection = func(cs tls.ConnectionState) error {
			if err := verifyPeer(&cs, s.roots(v), x509.ExtKeyUsageServerAuth, s.o.Now()); err != nil {
				return err
			}
			leaf := cs.PeerCertificates[0]
			if !u.Mesh && (len(v.SANs) == 0 || u.AutoSANValidation) && name != "" {
				return leaf.VerifyHostname(name)
			}
			return matchNames(leaf, v.SANs, u.Mesh)
		}
	}
	return c
}

// ControlConfig returns the configuration for connections to the control plane:
// its certificate is verified by the roots of the mesh and its SPIFFE identity
// (or Options.ServerName), and the SVID is shown when there is one.
func (s *Store) ControlConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Time: s.o.Now, ServerName: s.o.ServerName, SessionTicketsDisabled: true,
		InsecureSkipVerify: true, // verified below
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if c, err := s.Certificate(); err == nil {
				return c, nil
			}
			return &tls.Certificate{}, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			if err := verifyPeer(&cs, s.svid.Load().roots, x509.ExtKeyUsageServerAuth, s.o.Now()); err != nil {
				return err
			}
			leaf := cs.PeerCertificates[0]
			if s.o.ServerName != "" {
				return leaf.VerifyHostname(s.o.ServerName)
			}
			id, err := spiffe.FromCertificate(leaf)
			if err != nil {
				return err
			}
			if want := spiffe.ControlPlane(s.o.ID.TrustDomain); id != want {
				return fmt.Errorf("the control plane is %v, want %v", id, want)
			}
			return nil
		},
	}
}
