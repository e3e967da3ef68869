package mtls

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"hash"
	"io"
	"math/big"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/proxy/loop"
	"lateen.dev/lateen/internal/proxy/message"
)

// identities makes a CA and one certificate per SPIFFE id.
func identities(t testing.TB, ids ...string) (*x509.CertPool, map[string]tls.Certificate) {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	must(err)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	caDER, err := x509.CreateCertificate(crand.Reader, ca, ca, &caKey.PublicKey, caKey)
	must(err)
	ca, err = x509.ParseCertificate(caDER)
	must(err)
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	certs := map[string]tls.Certificate{}
	for i, id := range ids {
		key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
		must(err)
		u, err := url.Parse(id)
		must(err)
		leaf := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 2)), URIs: []*url.URL{u}, DNSNames: []string{"peer.test"},
			NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		}
		der, err := x509.CreateCertificate(crand.Reader, leaf, ca, &key.PublicKey, caKey)
		must(err)
		parsed, err := x509.ParseCertificate(der)
		must(err)
		certs[id] = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: parsed}
	}
	return pool, certs
}

const (
	idA = "spiffe://cluster.local/ns/default/sa/a"
	idB = "spiffe://cluster.local/ns/default/sa/b"
)

type env struct {
	l      *loop.Loop
	pool   *Pool
	server *tls.Config // shows B, demands a client certificate
	client *tls.Config // shows A
}

func newEnv(t testing.TB) *env {
	t.Helper()
	roots, certs := identities(t, idA, idB)
	l, err := loop.New(loop.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := l.Run(); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { l.Stop(); <-ended })
	return &env{
		l: l, pool: NewPool(Options{}),
		server: Mesh(&tls.Config{Certificates: []tls.Certificate{certs[idB]}, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert, NextProtos: []string{"istio"}}),
		client: Mesh(&tls.Config{Certificates: []tls.Certificate{certs[idA]}, RootCAs: roots, ServerName: "peer.test", NextProtos: []string{"istio"}}),
	}
}

// pair returns both ends of a connection: a descriptor for the loop and a net.Conn.
func pair(t testing.TB) (int, net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a := ln.Addr().(*net.TCPAddr).AddrPort()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}); err != nil {
		t.Fatal(err)
	}
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return fd, c
}

type outcome struct {
	t   message.Transport
	err error
}

// serve starts our server side on fd; h makes the handler.
func (e *env) serve(fd int, h func(message.Transport) message.TransportHandler) chan outcome {
	return e.start(fd, h, func(c *loop.Conn, done func(message.Transport, error)) { e.pool.Server(c, nil, e.server, done) })
}

func (e *env) dial(fd int, h func(message.Transport) message.TransportHandler) chan outcome {
	return e.start(fd, h, func(c *loop.Conn, done func(message.Transport, error)) { e.pool.Client(c, e.client, done) })
}

func (e *env) start(fd int, h func(message.Transport) message.TransportHandler, shake func(*loop.Conn, func(message.Transport, error))) chan outcome {
	ch := make(chan outcome, 1)
	e.l.Post(func() {
		c, err := e.l.Adopt(fd, message.Conn{Local: loop.LocalAddr(fd), Remote: loop.RemoteAddr(fd)})
		if err != nil {
			ch <- outcome{nil, err}
			return
		}
		shake(c, func(t message.Transport, err error) {
			if err == nil && h != nil {
				t.SetHandler(h(t))
			}
			ch <- outcome{t, err}
		})
	})
	return ch
}

// echo sends back what it gets and honours back-pressure.
type echo struct{ t message.Transport }

func newEcho(t message.Transport) message.TransportHandler { return &echo{t} }

func (e *echo) OnBytes(p []byte) int {
	e.t.Write(p)
	if e.t.OverHigh() {
		e.t.PauseRead(true)
	}
	return len(p)
}
func (e *echo) OnEOF()         { e.t.CloseWrite() }
func (e *echo) OnDrained()     { e.t.PauseRead(false) }
func (e *echo) OnClosed(error) {}

// source sends n pseudo-random bytes and checks that they come back.
type source struct {
	l        *loop.Loop
	t        message.Transport
	rnd      *rand.ChaCha8
	rest     int
	sent     hash.Hash
	got      hash.Hash
	received int
	seed     *rand.Rand
	done     chan error
}

func newSource(l *loop.Loop, n int, seed uint64, done chan error) func(message.Transport) message.TransportHandler {
	return func(t message.Transport) message.TransportHandler {
		s := &source{
			l: l, t: t, rnd: rand.NewChaCha8([32]byte{byte(seed)}), rest: n, sent: sha256.New(), got: sha256.New(),
			seed: rand.New(rand.NewPCG(seed, 1)), done: done,
		}
		s.more()
		return s
	}
}

func (s *source) more() {
	for s.rest > 0 && !s.t.OverHigh() {
		n := min(s.rest, 1+s.seed.IntN([]int{10, 1000, 20_000, 100_000}[s.seed.IntN(4)]))
		p := make([]byte, n)
		_, _ = s.rnd.Read(p)
		s.sent.Write(p)
		s.t.Write(p)
		s.rest -= n
	}
	if s.rest == 0 {
		s.rest = -1
		s.t.CloseWrite()
	}
}

func (s *source) OnBytes(p []byte) int {
	// Codecs leave input over and pause; so does this one.
	n := len(p)
	if n > 1 && s.seed.IntN(4) == 0 {
		n = 1 + s.seed.IntN(n-1)
	}
	switch {
	case n == len(p):
	case s.seed.IntN(2) == 0:
		s.t.PauseRead(true)
		s.t.PauseRead(false)
	default:
		s.t.PauseRead(true)
		s.l.Later(func() { s.t.PauseRead(false) })
	}
	s.got.Write(p[:n])
	s.received += n
	return n
}
func (s *source) OnEOF()     {}
func (s *source) OnDrained() { s.more() }
func (s *source) OnClosed(err error) {
	if err == nil && !bytes.Equal(s.sent.Sum(nil), s.got.Sum(nil)) {
		err = errors.New("what came back differs from what was sent")
	}
	s.done <- err
}

func TestServerAndClient_agreeOnIdentities(t *testing.T) {
	e := newEnv(t)
	fdA, other := pair(t)
	fdB := connFD(t, other)
	server, client := e.serve(fdB, newEcho), e.dial(fdA, newEcho)
	s, c := <-server, <-client
	if s.err != nil || c.err != nil {
		t.Fatalf("server %v, client %v", s.err, c.err)
	}
	si, ci := s.t.Conn(), c.t.Conn()
	if si.Principal() != idA || ci.Principal() != idB || si.TLS.LocalURISAN != idB || ci.TLS.LocalURISAN != idA {
		t.Errorf("server sees %q as %q, client sees %q as %q", si.Principal(), si.TLS.LocalURISAN, ci.Principal(), ci.TLS.LocalURISAN)
	}
	if !si.TLS.Mutual || !ci.TLS.Mutual || si.ALPN != "istio" || ci.ALPN != "istio" || si.SNI != "peer.test" ||
		si.TLS.Version != tls.VersionTLS13 {
		t.Errorf("server %+v %+v, client %+v", si, si.TLS, ci)
	}
}

// connFD takes the descriptor out of a net.Conn.
func connFD(t testing.TB, c net.Conn) int {
	t.Helper()
	f, err := c.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	return fd
}

func TestServer_refusesAClientWithoutCertificateAndSaysSo(t *testing.T) {
	e := newEnv(t)
	fd, c := pair(t)
	server := e.serve(fd, newEcho)
	cfg := e.client.Clone()
	cfg.Certificates = nil
	tc := tls.Client(c, cfg)
	_ = tc.Handshake()
	if _, err := tc.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("the client heard %v", err)
	}
	if s := <-server; s.err == nil {
		t.Error("the server accepted")
	}
}

func TestServer_silentClientTimesOutAndHoldsUpNobody(t *testing.T) {
	e := newEnv(t)
	e.pool = NewPool(Options{Parallel: 1, Timeout: 200 * time.Millisecond})
	fd, c := pair(t)
	defer c.Close()
	silent := e.serve(fd, nil)
	fdA, other := pair(t)
	server, client := e.serve(connFD(t, other), newEcho), e.dial(fdA, newEcho)
	if s, c := <-server, <-client; s.err != nil || c.err != nil {
		t.Errorf("beside a silent client: server %v, client %v", s.err, c.err)
	}
	if s := <-silent; !errors.Is(s.err, ErrHandshakeTimeout) {
		t.Errorf("silent client: %v", s.err)
	}
}

func TestServer_boundsPendingHandshakes(t *testing.T) {
	e := newEnv(t)
	e.pool = NewPool(Options{Pending: 1, Timeout: 200 * time.Millisecond})
	fd1, c1 := pair(t)
	defer c1.Close()
	fd2, c2 := pair(t)
	defer c2.Close()
	first, second := e.serve(fd1, nil), e.serve(fd2, nil)
	if s := <-second; !errors.Is(s.err, ErrBusy) {
		t.Errorf("one too many: %v", s.err)
	}
	<-first
}

// Connections of both sides on one loop, many megabytes each way.
func TestLoopback_longAndWide(t *testing.T) {
	e := newEnv(t)
	conns, size := 24, 3<<20
	if testing.Short() {
		conns, size = 4, 1<<20
	}
	done := make(chan error, conns)
	for i := range conns {
		fdA, other := pair(t)
		e.serve(connFD(t, other), newEcho)
		e.dial(fdA, newSource(e.l, size+i, uint64(i), done))
	}
	for range conns {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	for e.l.Stats().Conns.Load() > 0 {
		time.Sleep(time.Millisecond)
	}
}

// The other end is crypto/tls on an ordinary net.Conn.
func TestServer_talksToAnOrdinaryClient(t *testing.T) {
	e := newEnv(t)
	fd, c := pair(t)
	e.serve(fd, newEcho)
	tc := tls.Client(c, e.client)
	want := make([]byte, 5<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(want)
	go func() {
		_, _ = tc.Write(want)
		_ = tc.CloseWrite()
	}()
	got, err := io.ReadAll(tc)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
}

// collect notes how a transport ended.
type collect struct {
	body bytes.Buffer
	eof  bool
	done chan error
}

func (c *collect) OnBytes(p []byte) int { c.body.Write(p); return len(p) }
func (c *collect) OnEOF()               { c.eof = true }
func (c *collect) OnDrained()           {}
func (c *collect) OnClosed(err error)   { c.done <- err }

func TestConn_finWithoutCloseNotifyIsTruncation(t *testing.T) {
	e := newEnv(t)
	fd, c := pair(t)
	h := &collect{done: make(chan error, 1)}
	e.serve(fd, func(message.Transport) message.TransportHandler { return h })
	tc := tls.Client(c, e.client)
	_, _ = tc.Write([]byte("half a"))
	_ = c.(*net.TCPConn).CloseWrite()
	if err := <-h.done; !errors.Is(err, ErrTruncated) || h.eof || h.body.String() != "half a" {
		t.Errorf("ended with %v after %q, clean end %v", err, h.body.String(), h.eof)
	}
}

func TestConn_corruptRecordIsAnError(t *testing.T) {
	e := newEnv(t)
	fd, c := pair(t)
	h := &collect{done: make(chan error, 1)}
	e.serve(fd, func(message.Transport) message.TransportHandler { return h })
	tc := tls.Client(c, e.client)
	_, _ = tc.Write([]byte("good"))
	_, _ = c.Write([]byte{23, 3, 3, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20})
	if err := <-h.done; err == nil || h.eof {
		t.Errorf("ended with %v, clean end %v", err, h.eof)
	}
	if _, err := tc.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "bad record MAC") {
		t.Errorf("the peer heard %v", err)
	}
}

// relay copies src to dst in random pieces with random pauses.
func relay(dst, src net.Conn, rnd *rand.Rand) {
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf[:1+rnd.IntN([]int{1, 7, 300, 20_000}[rnd.IntN(4)])])
		p := buf[:n]
		for len(p) > 0 {
			m := 1 + rnd.IntN(len(p))
			if rnd.IntN(50) == 0 {
				time.Sleep(time.Duration(rnd.IntN(300)) * time.Microsecond)
			}
			if _, err := dst.Write(p[:m]); err != nil {
				return
			}
			p = p[m:]
		}
		if err != nil {
			_ = dst.(*net.TCPConn).CloseWrite()
			return
		}
	}
}

func segmented(t testing.TB, e *env, seed uint64, size int) {
	fdA, a := pair(t)
	fdB, b := pair(t)
	defer a.Close()
	defer b.Close()
	var wg sync.WaitGroup
	wg.Go(func() { relay(b, a, rand.New(rand.NewPCG(seed, 2))) })
	wg.Go(func() { relay(a, b, rand.New(rand.NewPCG(seed, 3))) })
	done := make(chan error, 1)
	server, client := e.serve(fdB, newEcho), e.dial(fdA, newSource(e.l, size, seed, done))
	s, c := <-server, <-client
	if s.err != nil || c.err != nil {
		t.Fatalf("seed %d: handshake: server %v, client %v", seed, s.err, c.err)
	}
	if err := <-done; err != nil {
		t.Errorf("seed %d: %v", seed, err)
	}
	wg.Wait()
}

// FuzzSegmentation cuts the TLS stream of both directions at random places.
func FuzzSegmentation(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(seed, uint32(40_000))
	}
	e := newEnv(f)
	f.Fuzz(func(t *testing.T, seed uint64, size uint32) {
		segmented(t, e, seed, int(size%200_000))
	})
}

// drip is a net.Conn in memory whose input comes a piece at a time.
type drip struct {
	net.Conn
	in  []byte
	out bytes.Buffer
}

func (d *drip) Read(p []byte) (int, error) {
	if len(d.in) == 0 {
		return 0, errAgain
	}
	n := copy(p, d.in)
	d.in = d.in[n:]
	return n, nil
}
func (d *drip) Write(p []byte) (int, error) { return d.out.Write(p) }

// switchConn blocks during the handshake and drips afterwards.
type switchConn struct {
	net.Conn
	d *drip
}

func (s *switchConn) Read(p []byte) (int, error) {
	if s.d != nil {
		return s.d.Read(p)
	}
	return s.Conn.Read(p)
}

// crypto/tls must survive a temporary read error at every byte of a record, of
// a handshake message in two records, and of an alert. The package stands on
// this; a Go release that changes it must fail here.
func TestTemporaryContract(t *testing.T) {
	e := newEnv(t)
	a, b := net.Pipe()
	client := tls.Client(a, e.client)
	low := &switchConn{Conn: b}
	server := tls.Server(low, e.server)
	shaken := make(chan error, 1)
	go func() { shaken <- client.Handshake() }()
	if err := server.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-shaken; err != nil {
		t.Fatal(err)
	}
	low.d = &drip{}
	// The client writes into a recorder from here on.
	records := make(chan []byte, 16)
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, err := b.Read(buf)
			if err != nil {
				close(records)
				return
			}
			records <- bytes.Clone(buf[:n])
		}
	}()
	var got []byte
	buf := make([]byte, 1<<15)
	for _, msg := range []string{"x", strings.Repeat("long ", 4000), "last"} {
		go func() { _, _ = client.Write([]byte(msg)) }()
		for want := len(got) + len(msg); len(got) < want; {
			for _, c := range <-records {
				low.d.in = append(low.d.in, c)
				n, err := server.Read(buf)
				got = append(got, buf[:n]...)
				if err != nil && !errors.Is(err, errAgain) {
					t.Fatalf("a temporary error became %v", err)
				}
				if n > 0 && len(got) > want {
					t.Fatal("more than was sent")
				}
			}
		}
	}
	if string(got) != "x"+strings.Repeat("long ", 4000)+"last" {
		t.Error("data damaged")
	}
	go func() { _ = client.CloseWrite() }()
	var err error
	for _, c := range <-records {
		low.d.in = append(low.d.in, c)
		if _, err = server.Read(buf); err != nil && !errors.Is(err, errAgain) {
			break
		}
	}
	if err != io.EOF {
		t.Errorf("close_notify arrived as %v", err)
	}
	a.Close()
	b.Close()
}
