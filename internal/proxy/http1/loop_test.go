package http1

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/proxy/loop"
	"lateen.dev/lateen/internal/proxy/message"
)

// gateway is the least proxy there can be: every downstream connection has an
// upstream connection of its own. Back-pressure goes both ways.
type gateway struct {
	l    *loop.Loop
	up   netip.AddrPort
	srv  *ServerOptions
	cli  *ClientOptions
	t    *testing.T
	addr netip.AddrPort
}

type link struct {
	g        *gateway
	c        *Client
	down, up message.Sender
}

func (k *link) Accept(s message.Sender) message.Receiver {
	k.down, k.up = s, nil
	return (*linkRequest)(k)
}

func (k *link) OnConnClosed() {
	if k.c != nil {
		k.c.Close(false)
	}
}
func (k *link) OnCapacity(message.ClientConn) {}
func (k *link) OnClosed(message.ClientConn, message.ResetCode, error) {
	k.c = nil
}

// ready runs f with an upstream connection.
func (k *link) ready(f func()) {
	if k.c != nil && k.c.Capacity() > 0 {
		f()
		return
	}
	k.down.Pause(true)
	k.g.l.Dial(loop.DialOptions{Addr: k.g.up}, func(c *loop.Conn, err error) {
		if err != nil {
			k.g.t.Error(err)
			return
		}
		k.c = NewClient(c, k, k.g.cli)
		f()
		k.down.Pause(false)
	})
}

type linkRequest link

func (r *linkRequest) OnHead(h *message.Head, end bool) {
	k := (*link)(r)
	k.ready(func() {
		k.up = k.c.Open((*linkResponse)(k))
		k.up.SendHead(h, end)
	})
}
func (r *linkRequest) OnInformational(*message.Head) {}
func (r *linkRequest) OnData(p []byte, end bool) {
	if r.up == nil {
		return
	}
	r.up.SendData(p, end)
	if r.up.OverHigh() {
		r.down.Pause(true)
	}
}
func (r *linkRequest) OnTrailers(h *message.Head) { r.up.SendTrailers(h) }
func (r *linkRequest) OnReset(c message.ResetCode) {
	if r.up != nil {
		r.up.Reset(c)
	}
}
func (r *linkRequest) OnDrained() { r.up.Pause(false) }

type linkResponse link

func (r *linkResponse) OnHead(h *message.Head, end bool) { r.down.SendHead(h, end) }
func (r *linkResponse) OnInformational(h *message.Head)  { r.down.SendInformational(h) }
func (r *linkResponse) OnTrailers(h *message.Head)       { r.down.SendTrailers(h) }
func (r *linkResponse) OnReset(c message.ResetCode)      { r.down.Reset(c) }
func (r *linkResponse) OnDrained()                       { r.down.Pause(false) }
func (r *linkResponse) OnData(p []byte, end bool) {
	r.down.SendData(p, end)
	if !end && r.down.OverHigh() {
		r.up.Pause(true)
	}
}

// listen returns a descriptor that listens on loopback, and its address.
func listen(t *testing.T) (int, netip.AddrPort) {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	return fd, netip.MustParseAddrPort(ln.Addr().String())
}

func startGateway(t *testing.T, h http.Handler) *gateway {
	t.Helper()
	backend := httptest.NewServer(h)
	t.Cleanup(backend.Close)
	l, err := loop.New(loop.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = l.Run() }()
	t.Cleanup(func() { l.Stop(); <-ended })
	pool := NewPool(l.Later)
	g := &gateway{
		l: l, t: t, up: netip.MustParseAddrPort(backend.Listener.Addr().String()),
		srv: &ServerOptions{Pool: pool, Timers: l, IdleTimeout: time.Minute}, cli: &ClientOptions{Pool: pool},
	}
	fd, addr := listen(t)
	g.addr = addr
	l.Post(func() {
		_, err := l.Listen(fd, func(fd int, remote netip.AddrPort) {
			c, err := l.Adopt(fd, message.Conn{Local: addr, Remote: remote})
			if err != nil {
				t.Error(err)
				return
			}
			NewServer(c, &link{g: g}, g.srv)
		})
		if err != nil {
			t.Error(err)
		}
	})
	return g
}

// net/http on both ends, both codecs and the loop between them: bodies of every
// size and framing arrive whole, on connections that are used again and again.
func TestLoop_carriesBodiesOfEverySizeAndFraming(t *testing.T) {
	g := startGateway(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		n, err := io.Copy(h, r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Trailer", "X-Sum")
		body := make([]byte, n)
		if r.Header.Get("X-Fixed") != "" {
			w.Header().Set("Content-Length", fmt.Sprint(n))
		}
		w.Header().Set("X-Got", fmt.Sprintf("%x", h.Sum(nil)))
		_, _ = w.Write(body)
	}))
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
	defer client.CloseIdleConnections()
	var wg sync.WaitGroup
	for worker := range 6 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(worker), 0))
			for range 25 {
				size := rnd.IntN([]int{1, 100, 70_000, 900_000}[rnd.IntN(4)])
				body := make([]byte, size)
				_, _ = rand.NewChaCha8([32]byte{byte(worker)}).Read(body)
				var reader io.Reader = bytes.NewReader(body)
				if rnd.IntN(2) == 0 {
					reader = struct{ io.Reader }{reader} // hides its length: chunked
				}
				req, _ := http.NewRequest("POST", "http://"+g.addr.String()+"/x", reader)
				if rnd.IntN(2) == 0 {
					req.Header.Set("X-Fixed", "1")
				}
				resp, err := client.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || len(got) != size || resp.Header.Get("X-Got") != fmt.Sprintf("%x", sha256.Sum256(body)) {
					t.Errorf("%d bytes: got %d back, %v, digest equal %v", size, len(got), err, resp.Header.Get("X-Got") == fmt.Sprintf("%x", sha256.Sum256(body)))
				}
			}
		})
	}
	wg.Wait()
}

// An upstream that breaks off must reach the client as an error, never as a
// short body that looks whole.
func TestLoop_brokenUpstreamIsAnErrorForTheClient(t *testing.T) {
	g := startGateway(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/length" {
			w.Header().Set("Content-Length", "100000")
		}
		_, _ = w.Write(make([]byte, 50_000))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	for _, path := range []string{"/length", "/chunked"} {
		resp, err := http.Get("http://" + g.addr.String() + path)
		if err != nil {
			continue // the head was lost with the reset: an error all the same
		}
		n, err := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err == nil {
			t.Errorf("%s: %d bytes and no error", path, n)
		}
	}
}

// An idle keep-alive connection, codec included, costs no buffer.
func TestLoop_idleConnectionIsSmall(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's memory is not ours")
	}
	l, err := loop.New(loop.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = l.Run() }()
	defer func() { l.Stop(); <-ended }()
	pool := NewPool(l.Later)
	opts := &ServerOptions{Pool: pool, Timers: l, IdleTimeout: time.Hour}
	const n = 1000
	peers := make([]int, 0, n)
	ours := make([]int, 0, n)
	for range n {
		p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		ours, peers = append(ours, p[0]), append(peers, p[1])
	}
	defer func() {
		for _, fd := range peers {
			_ = unix.Close(fd)
		}
	}()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	done := make(chan struct{})
	l.Post(func() {
		defer close(done)
		for _, fd := range ours {
			c, err := l.Adopt(fd, message.Conn{})
			if err != nil {
				t.Error(err)
				return
			}
			NewServer(c, &answerer{}, opts)
		}
	})
	<-done
	request := []byte("GET / HTTP/1.1\r\nHost: a\r\nCookie: " + string(bytes.Repeat([]byte("x"), 3000)) + "\r\n\r\n")
	buf := make([]byte, 4096)
	for _, fd := range peers { // every connection has been busy once
		_, _ = unix.Write(fd, request)
		if m, err := unix.Read(fd, buf); m <= 0 {
			t.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	per := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / n
	t.Logf("%d bytes of heap per idle connection", per)
	if per > 700 {
		t.Errorf("an idle connection holds %d bytes", per)
	}
}

// answerer answers every request with 204.
type answerer struct{ s message.Sender }

var noContent = func() *message.Head { h := &message.Head{}; h.SetStatus(204); return h }()

func (a *answerer) Accept(s message.Sender) message.Receiver { a.s = s; return a }
func (a *answerer) OnConnClosed()                            {}
func (a *answerer) OnHead(_ *message.Head, end bool)         { a.s.SendHead(noContent, true) }
func (a *answerer) OnInformational(*message.Head)            {}
func (a *answerer) OnData([]byte, bool)                      {}
func (a *answerer) OnTrailers(*message.Head)                 {}
func (a *answerer) OnReset(message.ResetCode)                {}
func (a *answerer) OnDrained()                               {}
