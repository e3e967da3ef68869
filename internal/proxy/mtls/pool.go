// Package mtls puts TLS between a loop's connection and a codec. crypto/tls
// does all cryptography; this package gives it a net.Conn that never blocks,
// so that records are read and written inside the event loop.
//
// A handshake runs in blocking style on a goroutine of its own, with a bound on
// how many compute at the same time, how many wait, and how long each may take.
// It ends on the loop, with a message.Transport whose Conn has TLS filled in.
// From then on only the loop touches the connection: what is written during a
// round leaves as full records in one write, and a FIN without close_notify is
// an error rather than an end, because it may be an attacker's.
//
// Which certificates are shown and trusted is the tls.Config's business; see
// package secret.
package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"lateen.dev/lateen/internal/proxy/loop"
	"lateen.dev/lateen/internal/proxy/message"
)

// ErrHandshakeTimeout is the cause when a handshake took too long; it is also
// an os.ErrDeadlineExceeded.
var ErrHandshakeTimeout error = handshakeTimeout{}

type handshakeTimeout struct{}

func (handshakeTimeout) Error() string        { return "TLS handshake timeout" }
func (handshakeTimeout) Is(target error) bool { return target == os.ErrDeadlineExceeded }

// ErrBusy is the cause when too many handshakes are waiting already.
var ErrBusy = errors.New("too many TLS handshakes in progress")

// ErrTruncated is what a connection ends with when the peer closed it without
// saying so in TLS (RFC 8446 §6.1).
var ErrTruncated = errors.New("TLS connection ended without close_notify")

// Options configures a Pool; zero values mean the defaults.
type Options struct {
	// Parallel bounds the handshakes that compute at the same time; GOMAXPROCS
	// by default. One that waits for its peer does not count.
	Parallel int
	// Pending bounds the handshakes in progress, waiting ones included; 1024 by default.
	Pending int
	// Timeout bounds one handshake; 10 s by default.
	Timeout time.Duration
}

// Pool runs handshakes for any number of loops. Safe for concurrent use.
type Pool struct {
	o       Options
	compute chan struct{}
	pending atomic.Int64
	// Done counts handshakes that succeeded, Failed those that did not.
	Done, Failed atomic.Uint64
}

// NewPool returns an idle Pool; it has no goroutines of its own.
func NewPool(o Options) *Pool {
	if o.Parallel == 0 {
		o.Parallel = runtime.GOMAXPROCS(0)
	}
	if o.Pending == 0 {
		o.Pending = 1024
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	return &Pool{o: o, compute: make(chan struct{}, o.Parallel)}
}

// Mesh returns cfg, changed to the settings of every link between mesh peers:
// TLS 1.3, hybrid post-quantum key exchange where the peer has it (decided
// here so that a new Go release does not decide it), no session tickets, full
// records.
func Mesh(cfg *tls.Config) *tls.Config {
	cfg.MinVersion = tls.VersionTLS13
	cfg.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256}
	cfg.SessionTicketsDisabled = true
	cfg.DynamicRecordSizingDisabled = true
	return cfg
}

// Server answers a TLS handshake on c. prefix is what of the ClientHello was
// consumed from c already, nil if nothing was. done is called once on the loop
// of c, never out of this call: with a Transport that has no handler yet, or
// with an error after c was closed. The Pool owns c until then; aborting c makes
// the handshake fail. When the loop stops first, done is not called: nothing is
// left to run it. Call it on the loop of c.
func (p *Pool) Server(c *loop.Conn, prefix []byte, cfg *tls.Config, done func(message.Transport, error)) {
	s := newShake(p, c, done)
	cfg = s.observe(cfg, false)
	s.conn.raw.feed(prefix)
	s.start(func(r *raw) *tls.Conn { return tls.Server(r, cfg) })
}

// Client starts a TLS handshake on c, which is connected to the server that
// cfg.ServerName names or cfg verifies otherwise. The rest is as for Server.
func (p *Pool) Client(c *loop.Conn, cfg *tls.Config, done func(message.Transport, error)) {
	s := newShake(p, c, done)
	cfg = s.observe(cfg, true)
	s.start(func(r *raw) *tls.Conn { return tls.Client(r, cfg) })
}

// shake is one handshake in progress; it is the handler of the connection.
type shake struct {
	pool  *Pool
	conn  *Conn
	done  func(message.Transport, error)
	timer loop.Timer
	over  bool

	// Written by the handshake's goroutine, read after it has ended.
	local  *x509.Certificate
	showed bool
}

func newShake(p *Pool, c *loop.Conn, done func(message.Transport, error)) *shake {
	t := &Conn{c: c, info: *c.Conn()}
	t.raw.init(c, p.compute)
	return &shake{pool: p, conn: t, done: done}
}

// observe returns cfg, or a copy that tells us which certificate we show.
func (s *shake) observe(cfg *tls.Config, client bool) *tls.Config {
	if len(cfg.Certificates) > 0 {
		s.local = cfg.Certificates[0].Leaf
	}
	s.showed = !client
	if !client && cfg.GetCertificate == nil && cfg.GetConfigForClient == nil && cfg.DynamicRecordSizingDisabled {
		return cfg
	}
	out := cfg.Clone()
	out.DynamicRecordSizingDisabled = true
	if get := cfg.GetCertificate; get != nil {
		out.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			cert, err := get(h)
			if cert != nil {
				s.local = cert.Leaf
			}
			return cert, err
		}
	}
	if get := cfg.GetConfigForClient; get != nil {
		out.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := get(h)
			if c == nil || err != nil {
				return c, err
			}
			return s.observe(c, false), nil
		}
	}
	if client {
		out.GetClientCertificate = func(i *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := clientCertificate(cfg, i)
			if cert != nil && len(cert.Certificate) > 0 {
				s.showed, s.local = true, cert.Leaf
			}
			return cert, err
		}
	}
	return out
}

// clientCertificate is crypto/tls's own choice, made visible.
func clientCertificate(cfg *tls.Config, i *tls.CertificateRequestInfo) (*tls.Certificate, error) {
	if cfg.GetClientCertificate != nil {
		return cfg.GetClientCertificate(i)
	}
	for n := range cfg.Certificates {
		if i.SupportsCertificate(&cfg.Certificates[n]) == nil {
			return &cfg.Certificates[n], nil
		}
	}
	return &tls.Certificate{}, nil
}

func (s *shake) start(make func(*raw) *tls.Conn) {
	c, l := s.conn.c, s.conn.c.Loop()
	if s.pool.pending.Add(1) > int64(s.pool.o.Pending) {
		s.pool.pending.Add(-1)
		l.Later(func() { s.finish(ErrBusy) })
		return
	}
	s.conn.tls = make(&s.conn.raw)
	s.timer.F = func() { s.conn.raw.fail(ErrHandshakeTimeout) }
	l.Arm(&s.timer, s.pool.o.Timeout)
	c.SetHandler(s)
	go func() {
		s.conn.raw.acquire()
		err := s.conn.tls.HandshakeContext(context.Background())
		s.conn.raw.release()
		s.pool.pending.Add(-1)
		// A loop that has stopped has closed the connection itself.
		l.Post(func() { s.finish(err) })
	}()
}

// finish ends the handshake on the loop.
func (s *shake) finish(err error) {
	if s.over {
		return
	}
	s.over = true
	t := s.conn
	t.c.Loop().Disarm(&s.timer)
	if cause := t.raw.handOver(); err == nil {
		err = cause
	}
	if err == nil && t.c.Closed() {
		err = ErrTruncated
	}
	if err != nil {
		s.pool.Failed.Add(1)
		t.c.SetHandler(nil)
		t.c.Close() // the alert goes out first
		s.done(nil, fmt.Errorf("TLS handshake with %v: %w", t.info.Remote, err))
		return
	}
	s.pool.Done.Add(1)
	t.established(s)
	s.done(t, nil)
}

// OnBytes passes ciphertext to the handshake's goroutine.
func (s *shake) OnBytes(p []byte) int {
	if s.conn.raw.feed(p) {
		s.conn.c.PauseRead(true) // more than a handshake needs
	}
	return len(p)
}

// OnEOF tells the handshake that nothing more will come.
func (s *shake) OnEOF() { s.conn.raw.end() }

// OnDrained has nobody to tell.
func (s *shake) OnDrained() {}

// OnClosed makes the handshake fail.
func (s *shake) OnClosed(err error) {
	if err == nil {
		err = ErrTruncated
	}
	s.conn.raw.fail(err)
}

func (t *Conn) established(s *shake) {
	st := t.tls.ConnectionState()
	info := &message.TLSInfo{Version: st.Version, CipherSuite: st.CipherSuite}
	if len(st.PeerCertificates) > 0 {
		leaf := st.PeerCertificates[0]
		info.PeerCert = leaf
		info.PeerDNSSANs = leaf.DNSNames
		info.PeerSubject = leaf.Subject.String()
		for _, u := range leaf.URIs {
			info.PeerURISANs = append(info.PeerURISANs, u.String())
		}
		info.Mutual = s.showed
	}
	if s.showed && s.local != nil && len(s.local.URIs) > 0 {
		info.LocalURISAN = s.local.URIs[0].String()
	}
	t.info.TLS = info
	t.info.ALPN = st.NegotiatedProtocol
	if st.ServerName != "" {
		t.info.SNI = st.ServerName
	}
	t.later = func() {
		t.scheduled = false
		t.process()
	}
	// Input waits below until there is somebody to deliver it to.
	t.c.PauseRead(true)
	t.c.SetHandler((*cipherSide)(t))
	t.c.SetFlusher(t)
}
