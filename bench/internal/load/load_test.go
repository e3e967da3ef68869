//go:build linux

package load

import (
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/proxy/loop"
)

// own duplicates the descriptor of a listener or connection and closes it.
func own(t *testing.T, c interface {
	File() (*os.File, error)
	Close() error
},
) int {
	t.Helper()
	f, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.SetNonblock(fd, true)
	f.Close()
	c.Close()
	return fd
}

// TestGenerators_countAnswersAndErrors: each generator against its own backend
// counts only answers, and against another one errors.
func TestGenerators_countAnswersAndErrors(t *testing.T) {
	l, err := loop.New(loop.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { l.Run(); close(ended) }()
	defer func() { l.Stop(); <-ended }()
	b := NewBackend(l)
	generators := map[string]func(fd int) (Generator, error){
		"http":  func(fd int) (Generator, error) { return NewHTTP(l, []int{fd}, "a", Path) },
		"rate":  func(fd int) (Generator, error) { return NewRate(l, []int{fd}, "a", Path, 500) },
		"bulk":  func(fd int) (Generator, error) { return NewBlocks(l, []int{fd}, BulkBody) },
		"http2": func(fd int) (Generator, error) { return NewH2(l, []int{fd}, "a", 8, false) },
		"grpc":  func(fd int) (Generator, error) { return NewH2(l, []int{fd}, "a", 8, true) },
	}
	backends := map[string]func(fd int) (*Listener, error){
		"http": b.HTTP, "rate": b.HTTP, "bulk": b.Bulk, "http2": b.HTTP2(false), "grpc": b.HTTP2(true),
	}
	run := func(generator, backend string) Counts {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := ln.Addr().String()
		serving, err := backends[backend](own(t, ln.(*net.TCPListener)))
		if err != nil {
			t.Fatal(err)
		}
		defer serving.Close()
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		fd := own(t, c.(*net.TCPConn))
		g := OnLoop(l, func() Generator {
			g, err := generators[generator](fd)
			if err != nil {
				t.Error(err)
			}
			return g
		})
		defer OnLoop(l, func() bool { g.Stop(); return true })
		for range 200 {
			if n := OnLoop(l, func() Counts { return g.Counts() }); n.Requests >= 20 || n.Errors > 0 {
				return n
			}
			time.Sleep(10 * time.Millisecond)
		}
		return OnLoop(l, func() Counts { return g.Counts() })
	}
	for name := range generators {
		if c := run(name, name); c.Errors > 0 || c.Requests < 20 || len(c.Nanos) != c.Requests {
			t.Errorf("%s: %d answers, %d latencies, %d errors, the first: %s", name, c.Requests, len(c.Nanos), c.Errors, c.First)
		}
	}
	for generator, backend := range map[string]string{"grpc": "http2", "http": "http2", "http2": "http"} {
		if c := run(generator, backend); c.Errors == 0 {
			t.Errorf("%s takes what a backend of %s says for answers: %d", generator, backend, c.Requests)
		}
	}
}

func TestBodyLength(t *testing.T) {
	for head, want := range map[string]string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5":                  "",
		"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5": "503",
		"HTTP/1.1 200 OK\r\nX: y":                               "without a length",
	} {
		if _, why := bodyLength([]byte(head)); (want == "") != (why == "") || !strings.Contains(why, want) {
			t.Errorf("%q: %q, want %q", head, why, want)
		}
	}
}
