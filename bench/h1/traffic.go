package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/proxy/loop"
	"lateen.dev/lateen/internal/proxy/message"
)

// request is about 400 bytes with realistic headers, the same for everyone.
const request = "GET /api/items/12345?page=2 HTTP/1.1\r\nHost: svc-117.bench.test\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) bench\r\n" +
	"Accept: application/json, text/plain, */*\r\nAccept-Language: en-US,en;q=0.9\r\nAccept-Encoding: gzip, deflate\r\n" +
	"Cookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\nCache-Control: no-cache\r\n\r\n"

// response is 1 KiB of body.
var response = func() []byte {
	body := bytes.Repeat([]byte("x"), 1024)
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}()

// echoConn is one connection of the backend: every request head is answered
// with the same response. It understands no bodies; the generator sends none.
type echoConn struct{ t message.Transport }

func (c *echoConn) OnBytes(p []byte) int {
	used := 0
	for {
		i := bytes.Index(p[used:], []byte("\r\n\r\n"))
		if i < 0 {
			return used
		}
		used += i + 4
		c.t.Write(response)
	}
}
func (c *echoConn) OnEOF()         { c.t.Close() }
func (c *echoConn) OnDrained()     {}
func (c *echoConn) OnClosed(error) {}

// serveBackend answers on a loopback port of its own; it must run on l.
func serveBackend(l *loop.Loop) (netip.AddrPort, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return netip.AddrPort{}, err
	}
	file, err := ln.(*net.TCPListener).File()
	if err != nil {
		return netip.AddrPort{}, err
	}
	fd, err := unix.Dup(int(file.Fd()))
	if err != nil {
		return netip.AddrPort{}, err
	}
	_ = file.Close()
	_ = ln.Close()
	_ = unix.SetNonblock(fd, true)
	_, err = l.Listen(fd, func(fd int, remote netip.AddrPort) {
		if conn, err := l.Adopt(fd, message.Conn{Remote: remote}); err == nil {
			conn.SetHandler(&echoConn{t: conn})
		}
	})
	return loop.LocalAddr(fd), err
}

// client is one closed-loop connection of the generator.
type client struct {
	g     *generator
	t     *loop.Conn
	sent  int64
	need  int // body bytes still to come; -1 while the head is incomplete
	alive bool
}

// generator keeps conns requests in flight and counts answers.
type generator struct {
	l         *loop.Loop
	clients   []*client
	requests  int
	errors    int
	latencies []int64
	stopped   bool
}

// startGenerator opens n connections to addr and starts sending; loop only.
func startGenerator(l *loop.Loop, addr netip.AddrPort, n int) *generator {
	g := &generator{l: l, latencies: make([]int64, 0, 1<<18)}
	for range n {
		c := &client{g: g, need: -1}
		g.clients = append(g.clients, c)
		l.Dial(loop.DialOptions{Addr: addr, Timeout: 2 * time.Second}, func(conn *loop.Conn, err error) {
			if err != nil {
				g.errors++
				return
			}
			c.t, c.alive = conn, true
			conn.SetHandler(c)
			c.send()
		})
	}
	return g
}

// reset forgets what was counted, at the start of a slice.
func (g *generator) reset() { g.requests, g.errors, g.latencies = 0, 0, g.latencies[:0] }

func (g *generator) stop() {
	g.stopped = true
	for _, c := range g.clients {
		if c.alive {
			c.t.Abort()
		}
	}
}

func (c *client) send() {
	c.sent = time.Now().UnixNano()
	c.t.Write([]byte(request))
}

func (c *client) OnBytes(p []byte) int {
	used := 0
	for used < len(p) {
		if c.need < 0 {
			i := bytes.Index(p[used:], []byte("\r\n\r\n"))
			if i < 0 {
				return used
			}
			c.need = c.bodyLength(p[used : used+i])
			used += i + 4
		}
		n := min(c.need, len(p)-used)
		used += n
		c.need -= n
		if c.need > 0 {
			return used
		}
		c.done()
	}
	return used
}

// bodyLength checks the status and reads Content-Length of a head.
func (c *client) bodyLength(head []byte) int {
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 200")) {
		c.g.errors++
	}
	lower := bytes.ToLower(head)
	_, rest, ok := bytes.Cut(lower, []byte("content-length:"))
	if !ok {
		c.g.errors++
		return 0
	}
	value, _, _ := bytes.Cut(rest, []byte("\r\n"))
	n, err := strconv.Atoi(string(bytes.TrimSpace(value)))
	if err != nil {
		c.g.errors++
	}
	return n
}

func (c *client) done() {
	c.need = -1
	c.g.requests++
	if len(c.g.latencies) < cap(c.g.latencies) {
		c.g.latencies = append(c.g.latencies, time.Now().UnixNano()-c.sent)
	}
	if !c.g.stopped {
		c.send()
	}
}

func (c *client) OnEOF()     { c.lost() }
func (c *client) OnDrained() {}
func (c *client) OnClosed(error) {
	c.lost()
}

func (c *client) lost() {
	if c.alive && !c.g.stopped {
		c.g.errors++
	}
	c.alive = false
}

// percentile of sorted nanoseconds, in microseconds.
func percentile(sorted []int64, p float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return float64(sorted[min(len(sorted)-1, int(p*float64(len(sorted))))]) / 1e3
}

func sortedCopy(v []int64) []int64 {
	out := slices.Clone(v)
	slices.Sort(out)
	return out
}

// pin binds all threads of a process to one CPU; threads they start inherit it.
func pin(pid, cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return fmt.Errorf("pin %d to CPU %d: %w", pid, cpu, err)
	}
	for _, t := range tasks {
		tid, _ := strconv.Atoi(t.Name())
		if err := unix.SchedSetaffinity(tid, &set); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("pin thread %d to CPU %d: %w", tid, cpu, err)
		}
	}
	return nil
}
