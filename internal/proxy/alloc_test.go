package proxy

import (
	"net"
	"runtime"
	"testing"
	"time"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// TestServer_steadyHTTPAllocatesNothing runs requests through real sockets,
// codec, request path and pool; client and backend are as plain as can be.
func TestServer_steadyHTTPAllocatesNothing(t *testing.T) {
	addr := freeAddr(t)
	s := start(t, nil)
	c := newConfig(t)
	c.cluster("app", plainBackend(t)).LB = snapshot.LeastRequest
	m := c.manager("app", func(r *snapshot.Route) {
		r.Retry = &snapshot.RetryPolicy{On: snapshot.RetryOnConnectFailure, Retries: 2, PreviousHosts: true}
	})
	m.Tracing = &snapshot.Tracing{Random: 0, Overall: 100, Client: 100, ClientSpan: true}
	m.Filters = []snapshot.HTTPFilter{{MetadataExchange: true}}
	c.listen(addr, httpChain(m))
	apply(t, s, c)
	allocatesNothing(t, addr, 0)
}

// TestTrunk_steadyHTTPAllocatesNothing does the same through two proxies with
// mutual TLS: HTTP/1.1 to HTTP/2 and back. Only crypto/tls allocates.
func TestTrunk_steadyHTTPAllocatesNothing(t *testing.T) {
	b := trunkBed(t, nil)
	c := newConfig(t)
	c.cluster("app", plainBackend(t))
	l := c.listen(b.inAddr, inbound(c.manager("app"), true)...)
	l.Chains, l.Default = append(l.Chains, l.Default), nil
	l.Chains[0].TLS.ALPN = []string{message.ALPNTrunk, "http/1.1"}
	l.TLSInspector, l.Direction = true, snapshot.Inbound
	apply(t, b.in, c)
	allocatesNothing(t, b.outAddr, 4) // crypto/tls makes a reader for the head and the body of each record
	if n := b.upstreams(); n != 1 {
		t.Errorf("%d connections between the proxies", n)
	}
}

// plainBackend answers every read with the same response.
func plainBackend(t *testing.T) string {
	response := []byte("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-type: text/plain\r\n\r\nhello")
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
				buf := make([]byte, 4096)
				for {
					if _, err := c.Read(buf); err != nil {
						return
					}
					if _, err := c.Write(response); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// allocatesNothing sends requests on one connection and counts what the process
// allocates, but for what is known of libraries.
func allocatesNothing(t *testing.T, addr string, known float64) {
	t.Helper()
	conn := dialTCP(t, addr)
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	request := []byte("GET /ratings/7 HTTP/1.1\r\nHost: ratings:9080\r\nUser-Agent: test\r\nAccept: */*\r\n\r\n")
	buf := make([]byte, 4096)
	run := func(n int) {
		for range n {
			if _, err := conn.Write(request); err != nil {
				t.Fatal(err)
			}
			n, err := conn.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			if string(buf[n-5:n]) != "hello" {
				t.Fatalf("got %q", buf[:n])
			}
		}
	}
	run(200)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const n = 2000
	run(n)
	runtime.ReadMemStats(&after)
	if raceEnabled {
		return // the detector changes what escapes to the heap
	}
	if per := float64(after.Mallocs-before.Mallocs) / n; per > known+0.05 {
		t.Fatalf("%.2f allocations per request, want %.0f", per, known)
	}
}
