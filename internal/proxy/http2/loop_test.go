package http2

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	xnet "golang.org/x/net/http2"
	"golang.org/x/net/http2/h2c"
	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/proxy/loop"
	"lateen.dev/lateen/internal/proxy/message"
)

// gateway is the least proxy there can be: all exchanges of all clients share
// one upstream connection. Back-pressure goes both ways.
type gateway struct {
	t    *testing.T
	l    *loop.Loop
	up   netip.AddrPort
	addr netip.AddrPort
	srv  *ServerOptions
	cli  *ClientOptions

	c       *Client
	dialing bool
	waiting []func()
	servers map[*Server]bool
}

// ready runs f with an upstream connection that has room.
func (g *gateway) ready(f func()) {
	if g.c != nil && g.c.Capacity() > 0 {
		f()
		return
	}
	g.waiting = append(g.waiting, f)
	if g.c != nil && g.c.state == connOpen && !g.c.peerAway || g.dialing {
		return
	}
	g.dialing = true
	g.l.Dial(loop.DialOptions{Addr: g.up}, func(c *loop.Conn, err error) {
		g.dialing = false
		if err != nil {
			g.t.Error(err)
			return
		}
		g.c = NewClient(c, g, g.cli)
		g.OnCapacity(g.c)
	})
}

func (g *gateway) OnCapacity(c message.ClientConn) {
	for len(g.waiting) > 0 && c.Capacity() > 0 {
		f := g.waiting[0]
		g.waiting = g.waiting[1:]
		f()
	}
}

func (g *gateway) OnClosed(c message.ClientConn, _ message.ResetCode, _ error) {
	if g.c == c {
		g.c = nil
	}
}

// link joins one exchange with its upstream one.
type link struct {
	g        *gateway
	down, up message.Sender
	early    []func()
	done     bool
}

type linkRequest link

type linkResponse link

type acceptor struct{ g *gateway }

func (a acceptor) Accept(s message.Sender) message.Receiver {
	return (*linkRequest)(&link{g: a.g, down: s})
}
func (a acceptor) OnConnClosed() {}

// do runs f when the upstream exchange is open.
func (k *link) do(f func()) {
	if k.up != nil {
		f()
		return
	}
	k.early = append(k.early, f)
}

func (r *linkRequest) OnHead(h *message.Head, end bool) {
	k := (*link)(r)
	k.g.ready(func() {
		if k.done {
			return
		}
		k.up = k.g.c.Open((*linkResponse)(k))
		k.up.SendHead(h, end)
		for _, f := range k.early {
			f()
		}
		k.early = nil
	})
}
func (r *linkRequest) OnInformational(*message.Head) {}
func (r *linkRequest) OnData(p []byte, end bool) {
	k := (*link)(r)
	if k.up == nil {
		p = append([]byte(nil), p...)
	}
	k.do(func() {
		k.up.SendData(p, end)
		if k.up.OverHigh() {
			k.down.Pause(true)
		}
	})
}

func (r *linkRequest) OnTrailers(h *message.Head) {
	k := (*link)(r)
	k.do(func() { k.up.SendTrailers(h) })
}

func (r *linkRequest) OnReset(c message.ResetCode) {
	r.done = true
	if r.up != nil {
		r.up.Reset(c)
	}
}
func (r *linkRequest) OnDrained() { r.up.Pause(false) }

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

// h2cServer serves h with golang.org/x/net/http2 in clear text.
func h2cServer(t *testing.T, h http.Handler, conf *xnet.Server) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h2c.NewHandler(h, conf))
	t.Cleanup(s.Close)
	return s
}

// h2cClient speaks HTTP/2 with prior knowledge.
func h2cClient(t *testing.T) *http.Client {
	t.Helper()
	tr := &xnet.Transport{
		AllowHTTP: true,
		DialTLSContext: func(ctx context.Context, network, addr string, _ *tls.Config) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, addr)
		},
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func startLoop(t *testing.T) *loop.Loop {
	t.Helper()
	l, err := loop.New(loop.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = l.Run() }()
	t.Cleanup(func() { l.Stop(); <-ended })
	return l
}

func startGateway(t *testing.T, h http.Handler, conf *xnet.Server) *gateway {
	t.Helper()
	backend := h2cServer(t, h, conf)
	l := startLoop(t)
	pool := NewPool(l.Later)
	g := &gateway{
		l: l, t: t, up: netip.MustParseAddrPort(backend.Listener.Addr().String()), servers: map[*Server]bool{},
		srv: &ServerOptions{Pool: pool, Timers: l, IdleTimeout: time.Minute}, cli: &ClientOptions{Pool: pool, Timers: l},
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
			g.servers[NewServer(c, acceptor{g}, g.srv)] = true
		})
		if err != nil {
			t.Error(err)
		}
	})
	return g
}

// x/net on both ends, both codecs and the loop between them: bodies of every
// size arrive whole, many at a time, on one connection.
func TestLoop_carriesBodiesOfEverySize(t *testing.T) {
	g := startGateway(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		n, err := io.Copy(h, r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Trailer", "X-Sum")
		if r.Header.Get("X-Fixed") != "" {
			w.Header().Set("Content-Length", fmt.Sprint(n))
		}
		w.Header().Set("X-Trailer-Seen", r.Trailer.Get("X-End"))
		body := make([]byte, n)
		_, _ = w.Write(body)
		w.Header().Set("X-Sum", fmt.Sprintf("%x", h.Sum(nil)))
	}), &xnet.Server{})
	client := h2cClient(t)
	var wg sync.WaitGroup
	for worker := range 12 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(worker), 0))
			for range 12 {
				size := 1 + rnd.IntN([]int{1, 100, 70_000, 3_000_000}[rnd.IntN(4)]) // x/net never ends an empty body with trailers
				body := make([]byte, size)
				_, _ = rand.NewChaCha8([32]byte{byte(worker)}).Read(body)
				var reader io.Reader = bytes.NewReader(body)
				if rnd.IntN(2) == 0 {
					reader = struct{ io.Reader }{reader} // hides its length
				}
				req, _ := http.NewRequest("POST", "http://"+g.addr.String()+"/x", reader)
				if rnd.IntN(2) == 0 {
					req.Header.Set("X-Fixed", "1")
				}
				req.Trailer = http.Header{"X-End": {"yes"}}
				resp, err := client.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				sum := fmt.Sprintf("%x", sha256.Sum256(body))
				if err != nil || len(got) != size || resp.Trailer.Get("X-Sum") != sum || resp.Header.Get("X-Trailer-Seen") != "yes" {
					t.Errorf("%d bytes: got %d back, %v, trailers %v, head %v", size, len(got), err, resp.Trailer, resp.Header)
				}
			}
		})
	}
	wg.Wait()
}

// A response that is read slowly must not be buffered whole on the way, nor
// stop its neighbours.
func TestLoop_slowReaderStopsItsProducerAndNobodyElse(t *testing.T) {
	var mu sync.Mutex
	sent := 0
	g := startGateway(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/slow" {
			fmt.Fprint(w, "quick")
			return
		}
		buf := make([]byte, 64<<10)
		for range 400 { // 25 MiB
			if _, err := w.Write(buf); err != nil {
				return
			}
			mu.Lock()
			sent += len(buf)
			mu.Unlock()
		}
	}), &xnet.Server{})
	client := h2cClient(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+g.addr.String()+"/slow", nil)
	slow, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Body.Close()
	for range 50 {
		resp, err := client.Get("http://" + g.addr.String() + "/quick")
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(b) != "quick" {
			t.Fatalf("%q", b)
		}
	}
	// x/net's client takes 4 MiB a stream before it stops.
	for last := -1; ; time.Sleep(50 * time.Millisecond) {
		mu.Lock()
		now := sent
		mu.Unlock()
		if now == last {
			break
		}
		last = now
	}
	if sent > 8<<20 {
		t.Errorf("the backend could send %d bytes that nobody reads", sent)
	}
	n, err := io.Copy(io.Discard, slow.Body)
	if err != nil || n != 400*64<<10 {
		t.Errorf("%d bytes, %v", n, err)
	}
}

func TestLoop_statusesMethodsAndInterimResponses(t *testing.T) {
	g := startGateway(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/early":
			w.WriteHeader(413)
		case "/204":
			w.WriteHeader(204)
		case "/hints":
			w.Header().Set("Link", "</a.css>; rel=preload")
			w.WriteHeader(103)
			fmt.Fprint(w, "page")
		case "/cookies":
			fmt.Fprint(w, r.Header.Get("Cookie"))
		case "/abort":
			_, _ = w.Write(make([]byte, 1000))
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		default:
			w.Header().Set("Content-Length", "5")
			if r.Method != "HEAD" {
				fmt.Fprint(w, "hello")
			}
		}
	}), &xnet.Server{})
	client := h2cClient(t)
	url := "http://" + g.addr.String()
	get := func(method, path string, body io.Reader) (*http.Response, string) {
		t.Helper()
		req, _ := http.NewRequest(method, url+path, body)
		req.AddCookie(&http.Cookie{Name: "a", Value: "1"})
		req.AddCookie(&http.Cookie{Name: "b", Value: strings.Repeat("2", 40)})
		resp, err := client.Do(req)
		if err != nil {
			t.Fatalf("%s %s: %v", method, path, err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil && path != "/abort" {
			t.Errorf("%s %s: %v", method, path, err)
		}
		if path == "/abort" && err == nil {
			t.Errorf("%s %s: a broken response looks whole", method, path)
		}
		return resp, string(b)
	}
	if r, b := get("HEAD", "/", nil); r.ContentLength != 5 || b != "" {
		t.Errorf("HEAD: %d %q", r.ContentLength, b)
	}
	if r, b := get("GET", "/204", nil); r.StatusCode != 204 || b != "" {
		t.Errorf("204: %d %q", r.StatusCode, b)
	}
	if r, b := get("GET", "/hints", nil); r.StatusCode != 200 || b != "page" {
		t.Errorf("hints: %d %q", r.StatusCode, b)
	}
	if _, b := get("GET", "/cookies", nil); b != "a=1; b="+strings.Repeat("2", 40) {
		t.Errorf("cookies: %q", b)
	}
	if r, _ := get("POST", "/early", io.LimitReader(zeros{}, 10<<20)); r.StatusCode != 413 {
		t.Errorf("early: %d", r.StatusCode)
	}
	get("GET", "/abort", nil)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// Requests in flight are served while the server drains; the client moves on to
// a new connection without an error.
func TestLoop_drainLosesNothing(t *testing.T) {
	g := startGateway(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(time.Millisecond)
		_, _ = io.Copy(w, r.Body)
	}), &xnet.Server{MaxConcurrentStreams: 20})
	client := h2cClient(t)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, err := client.Post("http://"+g.addr.String()+"/", "", strings.NewReader("ping"))
				if err != nil {
					t.Error(err)
					return
				}
				b, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || string(b) != "ping" {
					t.Errorf("%q %v", b, err)
					return
				}
			}
		})
	}
	for range 10 {
		time.Sleep(30 * time.Millisecond)
		g.l.Post(func() {
			for s := range g.servers {
				s.Drain()
				delete(g.servers, s)
			}
		})
	}
	close(stop)
	wg.Wait()
	if g.srv.Pool.Stats().GoAwaySent.Load() < 10 {
		t.Error("nothing was drained")
	}
}

// Aborted requests free their upstream exchanges.
func TestLoop_cancelReachesTheServer(t *testing.T) {
	gone := make(chan struct{}, 100)
	g := startGateway(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		gone <- struct{}{}
	}), &xnet.Server{})
	client := h2cClient(t)
	for range 20 {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+g.addr.String()+"/", nil)
		if _, err := client.Do(req); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		cancel()
		select {
		case <-gone:
		case <-time.After(10 * time.Second):
			t.Fatal("the backend never heard of it")
		}
	}
}

// hello answers every request, once it is complete, with a short body.
type hello struct {
	s message.Sender
	h message.Head
}

type helloAcceptor struct{}

func (helloAcceptor) Accept(s message.Sender) message.Receiver { return &hello{s: s} }
func (helloAcceptor) OnConnClosed()                            {}

func (r *hello) answer() {
	r.h.SetStatus(200)
	r.s.SendHead(&r.h, false)
	r.s.SendData([]byte("hello"), true)
}

func (r *hello) OnHead(_ *message.Head, end bool) {
	if end {
		r.answer()
	}
}

func (r *hello) OnData(_ []byte, end bool) {
	if end {
		r.answer()
	}
}
func (r *hello) OnTrailers(*message.Head)      { r.answer() }
func (r *hello) OnInformational(*message.Head) {}
func (r *hello) OnReset(message.ResetCode)     {}
func (r *hello) OnDrained()                    {}

// An idle connection that was busy before owns its compression tables and
// little else.
func TestLoop_idleConnectionIsSmall(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's memory is not ours")
	}
	l := startLoop(t)
	o := &ServerOptions{Pool: NewPool(l.Later), Timers: l, IdleTimeout: time.Hour, HeadTimeout: time.Minute}
	const n = 1000
	var ours, peers []int
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
			NewServer(c, helloAcceptor{}, o)
		}
	})
	<-done
	p := newPeer(t)
	p.buf.WriteString(preface)
	_ = p.WriteSettings()
	_ = p.WriteSettingsAck()
	for id := uint32(1); id < 20; id += 2 {
		p.get(id, "user-agent", "curl/8", "cookie", strings.Repeat("x", 300), "x-request-id", fmt.Sprint("7b0a4ecb-6f7a-4cf6-8f5e-", id))
	}
	buf := make([]byte, 4096)
	for _, fd := range peers {
		_, _ = unix.Write(fd, p.buf.Bytes())
		for got := 0; got < 10*5; { // at least the bodies
			m, err := unix.Read(fd, buf)
			if m <= 0 {
				t.Fatal(err)
			}
			got += bytes.Count(buf[:m], []byte("hello")) * 5
		}
	}
	p = nil
	runtime.GC()
	runtime.ReadMemStats(&after)
	per := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / n
	t.Logf("%d bytes of heap per idle connection", per)
	if per > 8<<10 {
		t.Errorf("an idle connection holds %d bytes", per)
	}
}
