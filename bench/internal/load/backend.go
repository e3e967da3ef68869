//go:build linux

// Package load is both ends of a measurement: the backend that answers, cheaper
// than any proxy, and the generators that ask. Plaintext ends run on one event
// loop; TLS clients are ordinary goroutines on the same CPU.
//
// It promises to count every answer that is not as it should be as an error. It
// knows nothing of proxies.
package load

import (
	"bytes"
	"fmt"
	"net/netip"
	"time"

	"lateen.dev/lateen/internal/proxy/loop"
	"lateen.dev/lateen/internal/proxy/message"
)

// Sizes of bodies.
const (
	SmallBody = 1 << 10
	BulkBody  = 1 << 20
	HugeBody  = 10 << 20
)

// BulkPath asks the HTTP backend for HugeBody bytes.
const BulkPath = "/bulk"

// Backend serves on descriptors that it is given; its methods may be called from
// any goroutine.
type Backend struct {
	l     *loop.Loop
	small []byte // a whole response
	bulk  []byte
}

// NewBackend makes the backend of a loop.
func NewBackend(l *loop.Loop) *Backend {
	return &Backend{l: l, small: append(head(SmallBody), bytes.Repeat([]byte("x"), SmallBody)...), bulk: bytes.Repeat([]byte("y"), BulkBody)}
}

func head(length int) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n", length)
}

// Listener is one port of the backend.
type Listener struct {
	l  *loop.Loop
	ln *loop.Listener
}

// Close stops listening.
func (x *Listener) Close() { OnLoop(x.l, func() bool { x.ln.Close(); return true }) }

// HTTP answers every request head of HTTP/1.1 with 1 KiB, or with 10 MiB at
// 100 MB/s on BulkPath. It understands no request bodies; the generators send none.
func (b *Backend) HTTP(fd int) (*Listener, error) {
	return b.serve(fd, func(t message.Transport) message.TransportHandler { return &echoConn{b: b, t: t} })
}

// RoundTrip answers every KiB with a KiB.
func (b *Backend) RoundTrip(fd int) (*Listener, error) {
	return b.serve(fd, func(t message.Transport) message.TransportHandler {
		return &blockConn{t: t, answer: b.bulk[:SmallBody]}
	})
}

// Bulk answers every KiB with a MiB.
func (b *Backend) Bulk(fd int) (*Listener, error) {
	return b.serve(fd, func(t message.Transport) message.TransportHandler { return &blockConn{t: t, answer: b.bulk} })
}

func (b *Backend) serve(fd int, handler func(message.Transport) message.TransportHandler) (*Listener, error) {
	type result struct {
		ln  *loop.Listener
		err error
	}
	r := OnLoop(b.l, func() result {
		ln, err := b.l.Listen(fd, func(fd int, remote netip.AddrPort) {
			if conn, err := b.l.Adopt(fd, message.Conn{Remote: remote}); err == nil {
				conn.SetHandler(handler(conn))
			}
		})
		return result{ln, err}
	})
	return &Listener{b.l, r.ln}, r.err
}

// OnLoop runs f on l and waits for it.
func OnLoop[T any](l *loop.Loop, f func() T) T {
	out := make(chan T, 1)
	l.Post(func() { out <- f() })
	return <-out
}

// echoConn is one HTTP connection of the backend.
type echoConn struct {
	b *Backend
	t message.Transport
	// left of a bulk answer, and since when it is paid out.
	left  int
	since int64
	timer loop.Timer
}

// The pace of a bulk answer.
const (
	bulkPerSecond = 100e6
	bulkTick      = 4 * time.Millisecond
)

// pay writes what of the bulk answer is due. A full queue means that the proxy
// does not take so much; what it missed is not made up for.
func (c *echoConn) pay() {
	now := c.b.l.Now()
	n := min(int(float64(now-c.since)/1e9*bulkPerSecond), c.left, len(c.b.bulk))
	c.since = now
	if c.t.Buffered() < BulkBody {
		c.t.Write(c.b.bulk[:n])
		c.left -= n
	}
	if c.left > 0 {
		c.b.l.Arm(&c.timer, bulkTick)
	}
}

func (c *echoConn) OnBytes(p []byte) int {
	used := 0
	for {
		i := bytes.Index(p[used:], []byte("\r\n\r\n"))
		if i < 0 {
			return used
		}
		if bytes.HasPrefix(p[used:], []byte("GET "+BulkPath)) {
			c.t.Write(head(HugeBody))
			c.left, c.since, c.timer.F = HugeBody, c.b.l.Now(), c.pay
			c.b.l.Arm(&c.timer, bulkTick)
		} else {
			c.t.Write(c.b.small)
		}
		used += i + 4
	}
}
func (c *echoConn) OnEOF()     { c.t.Close() }
func (c *echoConn) OnDrained() {}
func (c *echoConn) OnClosed(error) {
	c.left = 0
	c.b.l.Disarm(&c.timer)
}

// blockConn is one TCP connection of the backend.
type blockConn struct {
	t      message.Transport
	answer []byte
}

func (c *blockConn) OnBytes(p []byte) int {
	n := len(p) / SmallBody
	for range n {
		c.t.Write(c.answer)
	}
	return n * SmallBody
}
func (c *blockConn) OnEOF()         { c.t.Close() }
func (c *blockConn) OnDrained()     {}
func (c *blockConn) OnClosed(error) {}
