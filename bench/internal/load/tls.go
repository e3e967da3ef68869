//go:build linux

package load

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// Dialer opens one connection.
type Dialer func() (net.Conn, error)

// Handshakes is a generator that makes full handshakes, one request each.
type Handshakes struct {
	mu     sync.Mutex
	counts Counts
	stop   chan struct{}
	wg     sync.WaitGroup
}

// NewHandshakes keeps n connection attempts going.
func NewHandshakes(dial Dialer, config *tls.Config, host string, n int) *Handshakes {
	g := &Handshakes{counts: Counts{Nanos: make([]int64, 0, maxSamples)}, stop: make(chan struct{})}
	request := Request(host, Path)
	for range n {
		g.wg.Go(func() {
			for {
				select {
				case <-g.stop:
					return
				default:
				}
				start := time.Now()
				err := Once(dial, config, request)
				g.mu.Lock()
				if err != nil {
					g.counts.fail(err.Error())
				} else {
					g.counts.answered(time.Since(start).Nanoseconds())
				}
				g.mu.Unlock()
			}
		})
	}
	return g
}

// Reset implements Generator.
func (g *Handshakes) Reset() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.counts = Counts{Nanos: make([]int64, 0, maxSamples)}
}

// Counts implements Generator.
func (g *Handshakes) Counts() Counts {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.counts
}

// Stop implements Generator; it waits for what is under way.
func (g *Handshakes) Stop() {
	close(g.stop)
	g.wg.Wait()
}

// Once makes one connection, one request and an end; config nil means without
// TLS.
func Once(dial Dialer, config *tls.Config, request []byte) error {
	c, err := Open(dial, config)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	return Ask(c, request)
}

// requestLimit bounds one exchange.
const requestLimit = 5 * time.Second

// Open connects and, with a configuration, makes the handshake.
func Open(dial Dialer, config *tls.Config) (net.Conn, error) {
	c, err := dial()
	if err != nil || config == nil {
		return c, err
	}
	_ = c.SetDeadline(time.Now().Add(requestLimit))
	t := tls.Client(c, config)
	if err := t.Handshake(); err != nil {
		_ = c.Close()
		return nil, err
	}
	return t, nil
}

// Ask makes one request on a connection and reads its answer whole.
func Ask(c net.Conn, request []byte) error {
	_ = c.SetDeadline(time.Now().Add(requestLimit))
	if _, err := c.Write(request); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || n != SmallBody {
		return fmt.Errorf("answered with %s and %d bytes", resp.Status, n)
	}
	return nil
}

// AskBlock sends a KiB and reads so many bytes.
func AskBlock(c net.Conn, answer int) error {
	_ = c.SetDeadline(time.Now().Add(requestLimit))
	if _, err := c.Write(make([]byte, SmallBody)); err != nil {
		return err
	}
	_, err := io.CopyN(io.Discard, c, int64(answer))
	return err
}
