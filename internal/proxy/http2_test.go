package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// serveBoth is a backend that takes HTTP/1.1 and HTTP/2 with prior knowledge.
func serveBoth(t testing.TB, h http.HandlerFunc) string {
	srv := httptest.NewUnstartedServer(h)
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetHTTP1(true)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// mirrorApp tells what it saw and answers with body and trailers.
func mirrorApp(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/early" {
		_ = http.NewResponseController(w).EnableFullDuplex() // else it would read the body first
		w.WriteHeader(http.StatusForbidden)
		return
	}
	if r.URL.Path == "/hints" {
		w.Header().Set("link", "</a.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("link")
	}
	if r.URL.Path == "/cut" {
		w.Header().Set("content-length", "1000")
		_, _ = w.Write(make([]byte, 100))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	w.Header().Set("x-saw", fmt.Sprintf("%s %s %s te=%q trailer=%q xff-proto=%s length=%d", r.Method, r.URL.Path, r.Proto,
		r.Header.Get("te"), r.Trailer.Get("x-sum"), r.Header.Get("x-forwarded-proto"), r.ContentLength))
	w.Header().Set("trailer", "x-end")
	_ = http.NewResponseController(w).Flush() // no content-length: HTTP/1.1 could not carry trailers
	if len(body) > 0 {
		_, _ = w.Write(body)
	}
	w.Header().Set("x-end", "done")
}

// clientOf speaks one version of HTTP.
func clientOf(t testing.TB, h2 bool) *http.Client {
	tr := &http.Transport{Protocols: new(http.Protocols), MaxIdleConnsPerHost: 64}
	tr.Protocols.SetHTTP1(!h2)
	tr.Protocols.SetUnencryptedHTTP2(h2)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

// exchange checks one request and its answer.
func exchange(t *testing.T, c *http.Client, method, url string, body []byte, saw string) {
	t.Helper()
	var reader io.Reader
	if body != nil {
		reader = io.MultiReader(bytes.NewReader(body)) // of unknown length
	}
	req, err := http.NewRequest(method, url, reader)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("te", "trailers")
	if body != nil {
		req.Trailer = http.Header{"X-Sum": []string{"42"}}
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 || resp.Header.Get("x-saw") != saw {
		t.Fatalf("%s %s: %d %v\nthe backend saw %s\nwant            %s", method, url, resp.StatusCode, err, resp.Header.Get("x-saw"), saw)
	}
	if method != "HEAD" && !bytes.Equal(got, body) {
		t.Fatalf("%s %s: %d bytes back, sent %d", method, url, len(got), len(body))
	}
	if len(body) > 0 && resp.Trailer.Get("x-end") != "done" {
		t.Errorf("%s %s: trailers %v", method, url, resp.Trailer)
	}
}

func TestServer_anyVersionToAnyVersion(t *testing.T) {
	app := serveBoth(t, mirrorApp)
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<17) // 2 MiB, beyond every window
	for _, down := range []bool{false, true} {
		for _, up := range []bool{false, true} {
			t.Run(fmt.Sprintf("down h2=%v up h2=%v", down, up), func(t *testing.T) {
				addr, s := freeAddr(t), start(t, nil)
				c := newConfig(t)
				cl := c.cluster("app", app)
				proto := "HTTP/1.1"
				if up {
					cl.HTTP, proto = snapshot.UpstreamHTTP2, "HTTP/2.0"
				}
				c.listen(addr, httpChain(c.manager("app")))
				apply(t, s, c)
				client := clientOf(t, down)
				for range 2 {
					exchange(t, client, "GET", "http://"+addr+"/a", nil, `GET /a `+proto+` te="trailers" trailer="" xff-proto=http length=0`)
					exchange(t, client, "POST", "http://"+addr+"/b", []byte("hello"), `POST /b `+proto+` te="trailers" trailer="42" xff-proto=http length=-1`)
					exchange(t, client, "PUT", "http://"+addr+"/c", big, `PUT /c `+proto+` te="trailers" trailer="42" xff-proto=http length=-1`)
					exchange(t, client, "HEAD", "http://"+addr+"/d", nil, `HEAD /d `+proto+` te="trailers" trailer="" xff-proto=http length=0`)
				}
			})
		}
	}
}

// trunkBed is a mesh of two proxies whose peers agree on trunks.
func trunkBed(t testing.TB, app http.HandlerFunc, edit ...func(*snapshot.Cluster)) *meshBed {
	ca := newAuthority(t)
	b := &meshBed{
		outAddr: freeAddr(t), inAddr: freeAddr(t), app: serveBoth(t, app),
		out: start(t, ca.issue(t, clientID)), in: start(t, ca.issue(t, serverID)),
	}
	c := newConfig(t)
	c.cluster("app", b.app)
	m := c.manager("app")
	m.Upgrades = map[string]bool{"websocket": true}
	l := c.listen(b.inAddr, inbound(m, true)...)
	l.Chains, l.Default = append(l.Chains, l.Default), nil
	l.Chains[0].TLS.ALPN = []string{message.ALPNTrunk, "h2", "http/1.1", "istio"}
	l.TLSInspector, l.Direction = true, snapshot.Inbound
	apply(t, b.in, c)

	c = newConfig(t)
	cl := c.cluster("server", b.inAddr)
	cl.Transports = []snapshot.TransportMatch{{TLS: &snapshot.UpstreamTLS{
		Certificate: "default", SNI: "outbound_.80_._.server", Mesh: true, ALPN: []string{message.ALPNTrunk, "istio"},
		Validation: &snapshot.Validation{SANs: []snapshot.StringMatcher{{Kind: snapshot.StringExact, Text: serverID}}},
	}}}
	for _, e := range edit {
		e(cl)
	}
	m = c.manager("server")
	m.Upgrades = map[string]bool{"websocket": true}
	c.listen(b.outAddr, httpChain(m))
	apply(t, b.out, c)
	return b
}

func (b *meshBed) upstreams() (n int) {
	for _, e := range b.out.Endpoints() {
		n += e.Connections
	}
	return n
}

func TestTrunk_manyClientsShareIt(t *testing.T) {
	b := trunkBed(t, func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(20 * time.Millisecond)
		fmt.Fprint(w, r.Proto)
	}, func(c *snapshot.Cluster) { c.MaxRequestsPerConn = 1 })
	client := clientOf(t, false)
	var wg sync.WaitGroup
	var bad atomic.Int64
	for range 40 {
		wg.Go(func() {
			for range 5 {
				resp, err := client.Get("http://" + b.outAddr + "/x")
				if err != nil {
					bad.Add(1)
					continue
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != 200 || string(body) != "HTTP/1.1" {
					bad.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if n := b.upstreams(); bad.Load() > 0 || n < 1 || n > 2 { // one for each loop
		t.Errorf("%d of 200 failed, %d connections between the proxies", bad.Load(), n)
	}
}

func TestTrunk_keepsHTTP1Semantics(t *testing.T) {
	b := trunkBed(t, mirrorApp)
	client := clientOf(t, false)
	url := "http://" + b.outAddr
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<17)
	for range 2 {
		exchange(t, client, "GET", url+"/a", nil, `GET /a HTTP/1.1 te="trailers" trailer="" xff-proto=http length=0`)
		exchange(t, client, "POST", url+"/b", []byte("hello"), `POST /b HTTP/1.1 te="trailers" trailer="42" xff-proto=http length=-1`)
		exchange(t, client, "PUT", url+"/c", big, `PUT /c HTTP/1.1 te="trailers" trailer="42" xff-proto=http length=-1`)
		exchange(t, client, "HEAD", url+"/d", nil, `HEAD /d HTTP/1.1 te="trailers" trailer="" xff-proto=http length=0`)
	}

	t.Run("length stays a length", func(t *testing.T) {
		resp, err := client.Post(url+"/len", "text/plain", strings.NewReader("12345"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if saw := resp.Header.Get("x-saw"); !strings.HasSuffix(saw, "length=5") {
			t.Error(saw)
		}
	})
	t.Run("1xx", func(t *testing.T) {
		var hints []int
		ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, _ textproto.MIMEHeader) error { hints = append(hints, code); return nil },
		})
		req, _ := http.NewRequestWithContext(ctx, "GET", url+"/hints", nil)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if len(hints) != 1 || hints[0] != 103 {
			t.Error(hints)
		}
	})
	t.Run("early response", func(t *testing.T) {
		pr, pw := io.Pipe()
		defer pw.Close()
		req, _ := http.NewRequest("POST", url+"/early", pr)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 403 {
			t.Error(resp.StatusCode)
		}
	})
	t.Run("cut response", func(t *testing.T) {
		resp, err := client.Get(url + "/cut")
		if err != nil {
			return // the end came before the beginning was read
		}
		defer resp.Body.Close()
		if n, err := io.Copy(io.Discard, resp.Body); err == nil {
			t.Errorf("%d bytes and an orderly end", n)
		}
	})
	if n := b.upstreams(); n > 2 {
		t.Errorf("%d connections between the proxies", n)
	}
}

func TestTrunk_clientThatLeavesIsSeenByTheApplication(t *testing.T) {
	came, gone := make(chan struct{}), make(chan struct{})
	b := trunkBed(t, func(_ http.ResponseWriter, r *http.Request) {
		close(came)
		<-r.Context().Done()
		close(gone)
	})
	conn := dialTCP(t, b.outAddr)
	fmt.Fprint(conn, "GET /x HTTP/1.1\r\nHost: app\r\n\r\n")
	<-came
	_ = conn.SetLinger(0) // a mere FIN may come from a client that still waits
	conn.Close()
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Fatal("the application still works for nobody")
	}
}

func TestTrunk_carriesWebSockets(t *testing.T) {
	b := trunkBed(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("upgrade") != "websocket" || r.Header.Get("sec-websocket-key") != "k" {
			w.WriteHeader(400)
			return
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: a\r\n\r\n")
		_, _ = io.Copy(conn, rw)
	})
	conn := dialTCP(t, b.outAddr)
	fmt.Fprint(conn, "GET /chat HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n")
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("upgrade") != "websocket" || resp.Header.Get("sec-websocket-accept") != "a" {
		t.Fatalf("%v %v", resp, err)
	}
	for _, text := range []string{"ping", strings.Repeat("x", 100_000)} {
		go fmt.Fprint(conn, text)
		got := make([]byte, len(text))
		if _, err := io.ReadFull(r, got); err != nil || string(got) != text {
			t.Fatalf("%d bytes: %v", len(text), err)
		}
	}
	_ = conn.CloseWrite()
	if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
		t.Errorf("after the end: %q %v", rest, err)
	}
}

func TestTrunk_fallsBackToHTTP1(t *testing.T) {
	b := newMeshBed(t) // its server knows the names of Istio alone
	b.applyInbound(t, true)
	c := newConfig(t)
	cl := c.cluster("server", b.inAddr)
	cl.Transports = []snapshot.TransportMatch{{TLS: &snapshot.UpstreamTLS{
		Certificate: "default", Mesh: true, ALPN: []string{message.ALPNTrunk, "istio"}, Validation: &snapshot.Validation{SANs: []snapshot.StringMatcher{{Text: serverID}}},
	}}}
	c.listen(b.outAddr, httpChain(c.manager("server")))
	apply(t, b.out, c)
	code, body, err := fetch(t, b.outAddr)
	if err != nil || code != 200 || !strings.Contains(body, "URI="+clientID) {
		t.Fatalf("%d %q %v", code, body, err)
	}
}

func TestServer_clearTextIsToldByItsFirstBytes(t *testing.T) {
	app := serveBoth(t, mirrorApp)
	addr, s := freeAddr(t), start(t, nil)
	c := newConfig(t)
	c.cluster("app", app)
	c.listen(addr, httpChain(c.manager("app")))
	apply(t, s, c)
	for _, first := range []string{"P", "PRI", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"} {
		conn := dialTCP(t, addr)
		if _, err := io.WriteString(conn, first); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
		if !strings.HasPrefix(first, "PRI *") {
			rest := "OST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok"
			if first == "PRI" {
				rest = "MARY /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok"
			}
			_, _ = io.WriteString(conn, rest)
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil || resp.StatusCode != 200 {
				t.Errorf("%q: %v %v", first, resp, err)
			}
			continue
		}
		_, _ = conn.Write([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0}) // SETTINGS
		head := make([]byte, 9)
		if _, err := io.ReadFull(conn, head); err != nil || head[3] != 4 {
			t.Errorf("%q: answered % x, %v", first, head, err)
		}
	}
}

func TestServer_http2ConnectionsDrain(t *testing.T) {
	started, release := make(chan struct{}), make(chan struct{})
	app := serveBoth(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(started)
			<-release
		}
		fmt.Fprint(w, "ok")
	})
	addr, s := freeAddr(t), start(t, nil)
	c := newConfig(t)
	c.cluster("app", app).HTTP = snapshot.UpstreamHTTP2
	c.listen(addr, httpChain(c.manager("app")))
	apply(t, s, c)
	client := clientOf(t, true)
	result := make(chan error, 1)
	go func() {
		resp, err := client.Get("http://" + addr + "/slow")
		if err == nil {
			resp.Body.Close()
		}
		result <- err
	}()
	<-started
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		done <- s.Drain(ctx)
	}()
	time.Sleep(50 * time.Millisecond)
	close(release)
	if err := <-result; err != nil {
		t.Errorf("the exchange in flight: %v", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A port that takes both versions says nothing to what is neither.
func TestServer_neitherVersionIsClosedSilently(t *testing.T) {
	addr, s := freeAddr(t), start(t, nil)
	c := newConfig(t)
	c.cluster("app", serveBoth(t, mirrorApp))
	c.listen(addr, httpChain(c.manager("app")))
	apply(t, s, c)
	for line, want := range map[string]string{"INVALID CONNECTION PREFACE\r\n\r\n": "", "GET / HTTP/7\r\n\r\n": "HTTP/1.1 400 "} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.WriteString(conn, line); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(conn)
		if err != nil || !strings.HasPrefix(string(got), want) || want == "" && len(got) > 0 {
			t.Errorf("%q: %q, %v", line, got, err)
		}
		conn.Close()
	}
}

func TestServer_tlsClientsChooseByALPN(t *testing.T) {
	ca := newAuthority(t)
	addr, s := freeAddr(t), start(t, ca.issue(t, serverID))
	client := ca.issue(t, clientID)
	c := newConfig(t)
	c.cluster("app", serveBoth(t, mirrorApp))
	chain := httpChain(c.manager("app"))
	chain.TLS = &snapshot.DownstreamTLS{Certificates: []string{"default"}, RequireClientCert: true, ALPN: []string{"h2", "http/1.1"}}
	c.listen(addr, chain)
	apply(t, s, c)
	for _, h2 := range []bool{true, false} {
		tr := &http.Transport{Protocols: new(http.Protocols), TLSClientConfig: &tls.Config{
			Certificates: []tls.Certificate{client.cert}, InsecureSkipVerify: true,
		}}
		tr.Protocols.SetHTTP1(true)
		tr.Protocols.SetHTTP2(h2)
		resp, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Get("https://" + addr + "/x")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		tr.CloseIdleConnections()
		if want := map[bool]int{true: 2, false: 1}[h2]; resp.ProtoMajor != want || resp.StatusCode != 200 {
			t.Errorf("client with HTTP/2 %v: HTTP/%d, status %d", h2, resp.ProtoMajor, resp.StatusCode)
		}
	}
}
