package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/bootstrap"
	"lateen.dev/lateen/internal/proxy/mtls"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// Several proxies with their clients and backends share a test's process, and a
// busy loop keeps its processor while it waits for a moment: as many as in their
// own processes must be there, or all wait for each other.
func init() { runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), 12)) }

// config collects a snapshot.
type config struct {
	t    testing.TB
	snap *snapshot.Snapshot
}

func newConfig(t testing.TB) *config {
	return &config{t: t, snap: &snapshot.Snapshot{
		Version: 1, Clusters: map[string]*snapshot.Cluster{}, Listeners: map[string]*snapshot.Listener{},
	}}
}

func noLimits() snapshot.Limits {
	return snapshot.Limits{
		MaxConnections: math.MaxUint32, MaxPending: math.MaxUint32, MaxRequests: math.MaxUint32, MaxRetries: math.MaxUint32,
	}
}

// cluster adds a static cluster.
func (c *config) cluster(name string, addrs ...string) *snapshot.Cluster {
	cl := &snapshot.Cluster{Name: name, Warm: true, ConnectTimeout: 2 * time.Second, Limits: noLimits()}
	for _, a := range addrs {
		cl.Endpoints = append(cl.Endpoints, &snapshot.Endpoint{Addr: netip.MustParseAddrPort(a), Weight: 1})
	}
	c.snap.Clusters[name] = cl
	return cl
}

// manager routes everything to a cluster.
func (c *config) manager(cluster string, edit ...func(*snapshot.Route)) *snapshot.HTTPManager {
	r := &snapshot.Route{
		Name: "default", Match: snapshot.RouteMatch{Path: snapshot.PathMatch{Text: "/"}, CaseSensitive: true, RuntimePerMillion: 1e6},
		Clusters: []snapshot.WeightedCluster{{Cluster: cluster, Weight: 1}},
	}
	for _, e := range edit {
		e(r)
	}
	table, err := snapshot.NewRouteTable("r", &snapshot.VirtualHost{Name: "all", Domains: []string{"*"}, Routes: []*snapshot.Route{r}})
	if err != nil {
		c.t.Fatal(err)
	}
	return &snapshot.HTTPManager{Routes: table, NormalizePath: true}
}

// listen adds a bound listener with chains; the last one is the default.
func (c *config) listen(addr string, chains ...*snapshot.FilterChain) *snapshot.Listener {
	l := &snapshot.Listener{Name: addr, Addresses: []netip.AddrPort{netip.MustParseAddrPort(addr)}, BindToPort: true, Direction: snapshot.Outbound}
	l.Default = chains[len(chains)-1]
	l.Chains = chains[:len(chains)-1]
	c.snap.Listeners[addr] = l
	return l
}

func httpChain(m *snapshot.HTTPManager) *snapshot.FilterChain { return &snapshot.FilterChain{HTTP: m} }

func tcpChain(cluster string) *snapshot.FilterChain {
	return &snapshot.FilterChain{TCP: &snapshot.TCPProxy{Clusters: []snapshot.WeightedCluster{{Cluster: cluster, Weight: 1}}}}
}

// freeAddr returns a loopback address that nobody listens on.
func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func start(t testing.TB, secrets Secrets) *Server {
	t.Helper()
	o := Options{
		Bootstrap: &bootstrap.Bootstrap{Role: bootstrap.Sidecar, Capture: bootstrap.CaptureNone, Concurrency: 2, Node: bootstrap.Node{ID: "sidecar~test"}},
		Secrets:   secrets, Log: slog.New(slog.DiscardHandler),
	}
	if secrets != nil {
		o.Handshakes = mtls.NewPool(mtls.Options{})
	}
	s, err := NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func apply(t testing.TB, s *Server, c *config) {
	t.Helper()
	if err := s.Apply(c.snap); err != nil {
		t.Fatal(err)
	}
}

// backend answers with what it saw.
func backend(t testing.TB) string {
	return serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the request was cut: no answer would be honest
		}
		if r.URL.Path == "/slow" {
			time.Sleep(300 * time.Millisecond)
		}
		w.Header().Set("x-method", r.Method)
		w.Header().Set("x-proto", r.Header.Get("x-forwarded-proto"))
		if r.URL.Path == "/chunks" {
			for range 3 {
				fmt.Fprint(w, "chunk;")
				w.(http.Flusher).Flush()
			}
			return
		}
		if r.Method == "GET" {
			fmt.Fprintf(w, "%s %s", r.Host, r.URL)
			return
		}
		_, _ = w.Write(body)
	})
}

func serveHTTP(t testing.TB, h http.HandlerFunc) string {
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// chain builds client → outbound proxy → inbound proxy → backend and returns
// the address of the first.
func chain(t testing.TB) (addr string, out, in *Server) {
	app := backend(t)
	inAddr, outAddr := freeAddr(t), freeAddr(t)
	in, out = start(t, nil), start(t, nil)
	ci := newConfig(t)
	ci.cluster("inbound|8080||", app)
	ci.listen(inAddr, httpChain(ci.manager("inbound|8080||"))).Direction = snapshot.Inbound
	apply(t, in, ci)
	co := newConfig(t)
	co.cluster("outbound|8080||app", inAddr)
	co.listen(outAddr, httpChain(co.manager("outbound|8080||app")))
	apply(t, out, co)
	return outAddr, out, in
}

func TestServer_twoProxiesServeHTTP(t *testing.T) {
	addr, _, _ := chain(t)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
	defer client.CloseIdleConnections()
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	cases := []struct {
		method, path string
		body         io.Reader
		want         string
	}{
		{"GET", "/a/../b?x=1", nil, addr + " /b?x=1"},
		{"POST", "/echo", strings.NewReader("hello"), "hello"},
		{"POST", "/echo", io.MultiReader(strings.NewReader("chunked "), strings.NewReader("body")), "chunked body"},
		{"PUT", "/echo", bytes.NewReader(big), string(big)},
		{"GET", "/chunks", nil, "chunk;chunk;chunk;"},
		{"HEAD", "/x", nil, ""},
	}
	for range 3 { // later rounds use pooled connections
		for _, c := range cases {
			if s, ok := c.body.(io.Seeker); ok {
				_, _ = s.Seek(0, io.SeekStart)
			} else if c.body != nil {
				c.body = io.MultiReader(strings.NewReader("chunked "), strings.NewReader("body"))
			}
			req, err := http.NewRequest(c.method, "http://"+addr+c.path, c.body)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatalf("%s %s: %v", c.method, c.path, err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != 200 || string(body) != c.want {
				t.Fatalf("%s %s: %d, %d bytes %.40q, %v", c.method, c.path, resp.StatusCode, len(body), body, err)
			}
			if resp.Header.Get("x-proto") != "http" || resp.Header.Get("server") != "envoy" {
				t.Errorf("%s %s: headers %v", c.method, c.path, resp.Header)
			}
		}
	}
}

func TestServer_appliesUnderTrafficWithoutAFailure(t *testing.T) {
	addr, out, _ := chain(t)
	base := out.Snapshot()
	var failed, served atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, err := client.Post("http://"+addr+"/echo", "text/plain", strings.NewReader("x"))
				if err != nil || resp.StatusCode != 200 {
					failed.Add(1)
					continue
				}
				if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "x" {
					failed.Add(1)
				}
				resp.Body.Close()
				served.Add(1)
			}
		})
	}
	for i := range 50 {
		c := newConfig(t)
		c.snap.Clusters = base.Clusters
		if i%2 == 1 { // the cluster is made anew too
			cl := *base.Clusters["outbound|8080||app"]
			c.snap.Clusters = map[string]*snapshot.Cluster{cl.Name: &cl}
		}
		c.listen(addr, httpChain(c.manager("outbound|8080||app", func(r *snapshot.Route) { r.Name = fmt.Sprint(i) })))
		apply(t, out, c)
		time.Sleep(2 * time.Millisecond)
	}
	close(stop)
	wg.Wait()
	if failed.Load() != 0 || served.Load() < 50 {
		t.Fatalf("%d of %d requests failed", failed.Load(), served.Load()+failed.Load())
	}
}

func echoTCP(t testing.TB, greeting string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.WriteString(c, greeting)
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

func dialTCP(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return c.(*net.TCPConn)
}

func TestServer_detectsProtocolsOnOnePort(t *testing.T) {
	app := backend(t)
	echo := echoTCP(t, "")
	greet := echoTCP(t, "220 ready\n")
	a1, a2 := freeAddr(t), freeAddr(t)
	s := start(t, nil)
	c := newConfig(t)
	c.cluster("app", app)
	c.cluster("echo", echo)
	c.cluster("greet", greet)
	h := httpChain(c.manager("app"))
	h.Match = snapshot.ChainMatch{Transport: "raw_buffer", ApplicationProto: []string{"http/1.1", "h2c"}}
	c.listen(a1, h, tcpChain("echo")).HTTPInspector = true
	c.listen(a2, h, tcpChain("greet")).HTTPInspector = true
	apply(t, s, c)

	resp, err := http.Get("http://" + a1 + "/x")
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("HTTP: %v %v", resp, err)
	}
	resp.Body.Close()
	conn := dialTCP(t, a1)
	_, _ = io.WriteString(conn, "\x00binary")
	_ = conn.CloseWrite() // half-closed: the answer must still come
	if got, err := io.ReadAll(conn); err != nil || string(got) != "\x00binary" {
		t.Fatalf("TCP: %q %v", got, err)
	}
	first := dialTCP(t, a2) // says nothing: the server speaks first
	line, err := bufio.NewReader(first).ReadString('\n')
	if err != nil || line != "220 ready\n" {
		t.Fatalf("server-first protocol: %q %v", line, err)
	}
}

func TestServer_refusedConnections(t *testing.T) {
	echo := echoTCP(t, "hello")
	dead := freeAddr(t)
	a := []string{freeAddr(t), freeAddr(t), freeAddr(t), freeAddr(t)}
	s := start(t, nil)
	c := newConfig(t)
	c.cluster("echo", echo)
	c.cluster("BlackHoleCluster")
	c.cluster("dead", dead)
	denied := tcpChain("echo")
	everyone := []*snapshot.Rule{{Kind: snapshot.RuleAny}}
	denied.NetworkRBAC = []*snapshot.RBAC{{Action: snapshot.Deny, Policies: []*snapshot.Policy{{Name: "p", Permissions: everyone, Principals: everyone}}}}
	c.listen(a[0], tcpChain("BlackHoleCluster"))
	c.listen(a[1], tcpChain("dead"))
	c.listen(a[2], denied)
	c.listen(a[3], tcpChain("no-such-cluster"))
	apply(t, s, c)
	for i, addr := range a {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			continue // reset before connect returned
		}
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		got, err := io.ReadAll(conn)
		conn.Close()
		if len(got) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("listener %d let something through: %q %v", i, got, err)
		}
	}
}

func TestServer_reportsAListenerThatCannotOpen(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	app, free := backend(t), freeAddr(t)
	s := start(t, nil)
	c := newConfig(t)
	c.cluster("app", app)
	c.listen(free, httpChain(c.manager("app")))
	c.listen(taken.Addr().String(), httpChain(c.manager("app")))
	err = s.Apply(c.snap)
	if err == nil || !strings.Contains(err.Error(), taken.Addr().String()) {
		t.Fatalf("error %v does not name %v", err, taken.Addr())
	}
	resp, err := http.Get("http://" + free + "/x")
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("the other listener: %v", err)
	}
	resp.Body.Close()
}

func TestServer_removedListenerClosesAndDrains(t *testing.T) {
	app, addr := backend(t), freeAddr(t)
	s := start(t, nil)
	c := newConfig(t)
	c.cluster("app", app)
	c.listen(addr, httpChain(c.manager("app")))
	apply(t, s, c)
	conn := dialTCP(t, addr)
	fmt.Fprintf(conn, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
	time.Sleep(50 * time.Millisecond)
	apply(t, s, newConfig(t))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != 200 || !resp.Close {
		t.Fatalf("the exchange in flight: %v %v", resp, err)
	}
	if c, err := net.DialTimeout("tcp", addr, time.Second); err == nil {
		c.Close()
		t.Fatal("a removed listener still accepts")
	}
}

func TestServer_drain(t *testing.T) {
	app, addr := backend(t), freeAddr(t)
	s := start(t, nil)
	c := newConfig(t)
	c.cluster("app", app)
	c.listen(addr, httpChain(c.manager("app")))
	apply(t, s, c)
	conn := dialTCP(t, addr)
	fmt.Fprintf(conn, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
	time.Sleep(50 * time.Millisecond)
	done := make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	go func() { done <- s.Drain(ctx) }()
	time.Sleep(50 * time.Millisecond)
	late, err := http.Get("http://" + addr + "/late") // callers learn late
	if err != nil || late.StatusCode != 200 || !late.Close {
		t.Fatalf("a late request: %v %v", late, err)
	}
	late.Body.Close()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("the exchange in flight: %v", err)
	}
	conn.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestServer_egressBroker(t *testing.T) {
	app, addr := backend(t), freeAddr(t)
	s := start(t, nil)
	s.o.Bootstrap.Networks = []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16")}
	var asked atomic.Value
	s.o.Egress = func(_ context.Context, a netip.AddrPort) (int, error) {
		asked.Store(a.String())
		c, err := net.Dial("tcp", app)
		if err != nil {
			return -1, err
		}
		f, err := c.(*net.TCPConn).File()
		c.Close()
		if err != nil {
			return -1, err
		}
		fd, err := dup(f)
		return fd, err
	}
	c := newConfig(t)
	c.cluster("outside", "203.0.113.7:443")
	c.listen(addr, httpChain(c.manager("outside")))
	apply(t, s, c)
	resp, err := http.Get("http://" + addr + "/x")
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v %v", resp, err)
	}
	resp.Body.Close()
	if asked.Load() != "203.0.113.7:443" {
		t.Fatalf("the broker was asked for %v", asked.Load())
	}
}

func TestServer_leavesNothingBehind(t *testing.T) {
	before, fds := runtime.NumGoroutine(), openFDs(t)
	func() {
		s := start(t, nil)
		app := backendOnce(t)
		addr := freeAddr(t)
		c := newConfig(t)
		c.cluster("app", app.Listener.Addr().String())
		c.listen(addr, httpChain(c.manager("app")))
		apply(t, s, c)
		tr := &http.Transport{}
		resp, err := (&http.Client{Transport: tr}).Get("http://" + addr + "/x")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		tr.CloseIdleConnections()
		s.Close()
		app.Close()
	}()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		g, f := runtime.NumGoroutine(), openFDs(t)
		if g <= before && f <= fds {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("goroutines %d → %d, descriptors %d → %d", before, g, fds, f)
		}
	}
}

func backendOnce(testing.TB) *httptest.Server {
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") }))
}

func openFDs(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func dup(f *os.File) (int, error) {
	defer f.Close()
	return unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
}
