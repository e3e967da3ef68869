// Package secret holds what the proxy proves itself with and whom it trusts: its
// own SVID, the roots of the mesh, and the credentials of gateways. It stands
// between the certificate authority (by CSR), SDS (by the xds client) and every
// TLS connection (by tls.Config).
//
// It promises that a private key never reaches a disk, that a connection made
// after a rotation uses the new certificate, and that a missing or expired
// secret makes handshakes fail rather than go unverified. It opens no listener
// and does no handshake.
package secret

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"lateen.dev/lateen/internal/proxy/snapshot"
	"lateen.dev/lateen/internal/spiffe"
)

// Names of the secrets that every proxy has, as Istio spells them.
const (
	Default = "default" // the proxy's own SVID
	RootCA  = "ROOTCA"  // the roots of the mesh
)

// ErrExpired says that the SVID ran out before it could be renewed. Only a new
// bootstrap token helps, so the process has to be started anew.
var ErrExpired = errors.New("the certificate has expired and cannot renew itself")

// Options configure a Store.
type Options struct {
	// ID is whose certificate is asked for.
	ID spiffe.ID
	// RootsPEM are trusted from the start, besides what the authority answers.
	RootsPEM string
	// Address is host:port of the certificate authority; ServerName is verified
	// in its certificate, "" means the SPIFFE identity of the control plane.
	Address, ServerName string
	// Dial opens connections to Address; nil means net.Dialer.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Token returns the single-use bootstrap token. It is called at most once
	// with success.
	Token func() (string, error)
	// Keep is a memfd in which key and certificate, and the credentials that the
	// control plane sent, outlive the process; nil for none.
	Keep *os.File
	// Lifetime is asked of the authority; 0 leaves it to it.
	Lifetime time.Duration
	// Now is the wall clock; nil means time.Now.
	Now func() time.Time
	Log *slog.Logger
}

// Credential is one secret that the control plane sent: a certificate with its
// key, or roots, or both.
type Credential struct{ CertPEM, KeyPEM, RootsPEM []byte }

// Store holds secrets. It is safe for concurrent use.
type Store struct {
	o    Options
	svid atomic.Pointer[svid]
	// token is the bootstrap token, kept until it has bought a certificate.
	token string

	keepMu sync.Mutex
	kept   kept // as the memfd holds it

	mu    sync.RWMutex
	named map[string]*named // SDS and files, by secret name
	// configs caches server configurations; any change empties it and counts
	// generation up, so that one built before cannot come in afterwards.
	configs    map[*snapshot.DownstreamTLS]*tls.Config
	generation uint64

	changed chan struct{} // poked when a secret came or went
}

// named is a parsed credential.
type named struct {
	cert  *tls.Certificate
	roots *x509.CertPool
	err   error
	// files are the paths it was read from, with the time of the newest.
	files   []string
	modTime time.Time
}

// svid is the current identity with the roots that came with it.
type svid struct {
	cert     *tls.Certificate
	roots    *x509.CertPool
	rootsPEM string
	renewAt  time.Time
}

// Open makes a Store and restores the SVID from Options.Keep if it is still
// good. Nothing is fetched until Run.
func Open(o Options) (*Store, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Dial == nil {
		o.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(o.RootsPEM)) {
		return nil, fmt.Errorf("open secrets: the bootstrap holds no root certificate: the control plane could not be verified")
	}
	s := &Store{o: o, named: map[string]*named{}, changed: make(chan struct{}, 1)}
	s.svid.Store(&svid{roots: roots, rootsPEM: o.RootsPEM})
	if o.Keep != nil {
		kept, err := s.restore()
		switch {
		case err != nil:
			o.Log.Warn("the kept certificate is not usable; a new one is asked for", "error", err)
		case kept != nil:
			s.svid.Store(kept)
			o.Log.Info("the kept certificate is still good", "notAfter", kept.cert.Leaf.NotAfter)
		}
	}
	return s, nil
}

// Run obtains the first certificate and renews it until ctx ends (then the
// error is nil) or the certificate has expired (ErrExpired). The wall clock is
// looked at once a minute, so that a suspended machine does not miss its time.
func (s *Store) Run(ctx context.Context) error {
	const shortest, longest = time.Second, 30 * time.Second
	backoff := shortest
	for {
		wait := time.Minute
		now := s.o.Now()
		cur := s.svid.Load()
		switch {
		case cur.cert == nil || !now.Before(cur.renewAt):
			if cur.cert != nil && !now.Before(cur.cert.Leaf.NotAfter) && s.token == "" {
				return fmt.Errorf("renew certificate of %v: %w", s.o.ID, ErrExpired)
			}
			if err := s.obtain(ctx); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				if errors.Is(err, errSpent) {
					return err
				}
				s.o.Log.Warn("no certificate yet; trying again", "error", err, "in", backoff)
				wait = backoff/2 + rand.N(backoff)
				backoff = min(2*backoff, longest)
				break
			}
			backoff, wait = shortest, 0
		default:
			wait = min(wait, cur.renewAt.Sub(now))
		}
		s.reloadFiles()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// Changed is poked whenever a secret arrives, changes or goes.
func (s *Store) Changed() <-chan struct{} { return s.changed }

func (s *Store) poke() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// ID is whose certificate the store holds.
func (s *Store) ID() spiffe.ID { return s.o.ID }

// Expiry returns when the SVID runs out; the zero time without one.
func (s *Store) Expiry() time.Time {
	if c := s.svid.Load().cert; c != nil {
		return c.Leaf.NotAfter
	}
	return time.Time{}
}

// Certificate returns the SVID, or an error when there is none in force.
func (s *Store) Certificate() (*tls.Certificate, error) {
	c := s.svid.Load().cert
	if c == nil {
		return nil, fmt.Errorf("secret %q: no certificate yet", Default)
	}
	if now := s.o.Now(); now.After(c.Leaf.NotAfter) {
		return nil, fmt.Errorf("secret %q: the certificate expired at %v", Default, c.Leaf.NotAfter)
	}
	return c, nil
}

// RootsPEM returns the roots of the mesh.
func (s *Store) RootsPEM() string { return s.svid.Load().rootsPEM }

// Named returns the certificates that handshakes may show beside the SVID, by
// the names of their secrets: those of SDS and of files.
func (s *Store) Named() map[string]*tls.Certificate {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := map[string]*tls.Certificate{}
	for name, n := range s.named {
		if n.cert != nil {
			out[name] = n.cert
		}
	}
	return out
}

// Has says whether a secret is there, loading it if it is a file.
func (s *Store) Has(name string) bool {
	if name == Default {
		_, err := s.Certificate()
		return err == nil
	}
	if name == RootCA || name == systemRoots {
		return true
	}
	n := s.lookup(name)
	return n != nil && n.err == nil
}

// Remote returns those of names that have to be fetched by SDS.
func Remote(names []string) []string {
	var out []string
	for _, n := range names {
		if n != Default && n != RootCA && !strings.HasPrefix(n, fileCert) && !strings.HasPrefix(n, fileRoot) {
			out = append(out, n)
		}
	}
	return out
}

// Set installs a secret that the control plane sent. What cannot be used is
// refused and the secret before it stays.
func (s *Store) Set(name string, c Credential) error {
	n, err := parseCredential(c)
	if err != nil {
		return fmt.Errorf("secret %q: %w", name, err)
	}
	s.put(name, n)
	s.keepNamed(name, &c)
	return nil
}

// Delete forgets a secret; handshakes that need it fail from now on.
func (s *Store) Delete(name string) {
	s.put(name, nil)
	s.keepNamed(name, nil)
}

func (s *Store) put(name string, n *named) {
	s.mu.Lock()
	if n == nil {
		delete(s.named, name)
	} else {
		s.named[name] = n
	}
	s.configs = nil
	s.generation++
	s.mu.Unlock()
	s.poke()
}

func parseCredential(c Credential) (*named, error) {
	n := &named{}
	if len(c.CertPEM) > maxPEM || len(c.KeyPEM) > maxPEM || len(c.RootsPEM) > maxPEM {
		return nil, fmt.Errorf("longer than %d bytes", maxPEM)
	}
	if len(c.CertPEM) > 0 {
		cert, err := tls.X509KeyPair(c.CertPEM, c.KeyPEM)
		if err != nil {
			return nil, err
		}
		n.cert = &cert
	}
	if len(c.RootsPEM) > 0 {
		n.roots = x509.NewCertPool()
		if !n.roots.AppendCertsFromPEM(c.RootsPEM) {
			return nil, fmt.Errorf("no certificate in the roots")
		}
	}
	if n.cert == nil && n.roots == nil {
		return nil, fmt.Errorf("neither a certificate nor roots")
	}
	return n, nil
}

// maxPEM bounds what is decoded.
const maxPEM = 1 << 20
