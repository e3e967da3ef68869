package mtls

import (
	"io"
	"net"
	"sync"
	"time"

	"lateen.dev/lateen/internal/proxy/loop"
)

// maxFeed bounds the ciphertext a handshake may have waiting. A ClientHello, a
// certificate chain and early application data of an eager client fit.
const maxFeed = 256 << 10

// raw is the net.Conn under crypto/tls. During the handshake it blocks the
// handshake's goroutine; after handOver it belongs to the loop, never blocks,
// and answers an empty Read with a temporary error, which crypto/tls promises
// by its behaviour, not its documentation, to survive: TestTemporaryContract.
type raw struct {
	c       *loop.Conn
	compute chan struct{}

	mu      sync.Mutex
	cond    sync.Cond
	in      []byte // ciphertext not read yet
	out     []byte // ciphertext for the loop to write
	posted  bool
	err     error
	ended   bool
	looping bool // the handshake is over: no locks, no waiting

	src    []byte // loop only: the ciphertext in hand
	srcEOF bool
	sawFIN bool // Read has returned io.EOF: the FIN came before close_notify
}

var _ net.Conn = (*raw)(nil)

func (r *raw) init(c *loop.Conn, compute chan struct{}) {
	r.c, r.compute = c, compute
	r.cond.L = &r.mu
}

// acquire and release mark the time in which a handshake computes rather than
// waits for its peer.
func (r *raw) acquire() { r.compute <- struct{}{} }
func (r *raw) release() { <-r.compute }

// feed gives ciphertext to the handshake; full says to stop for now.
func (r *raw) feed(p []byte) (full bool) {
	r.mu.Lock()
	r.in = append(r.in, p...)
	full = len(r.in) > maxFeed
	r.mu.Unlock()
	r.cond.Signal()
	return full
}

func (r *raw) end() {
	r.mu.Lock()
	r.ended = true
	r.mu.Unlock()
	r.cond.Signal()
}

func (r *raw) fail(err error) {
	r.mu.Lock()
	if r.err == nil {
		r.err = err
	}
	r.mu.Unlock()
	r.cond.Signal()
}

// handOver makes the loop the only user and returns the error of the
// connection, if it has one.
func (r *raw) handOver() error {
	r.flush()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.looping = true
	r.src, r.in = r.in, nil
	r.srcEOF = r.ended
	return r.err
}

// flush writes what the handshake produced; loop only.
func (r *raw) flush() {
	r.mu.Lock()
	r.posted = false
	out := r.out
	r.out = nil
	r.mu.Unlock()
	if len(out) > 0 {
		r.c.Write(out)
	}
}

// again is what a Read finds when the peer has sent nothing more so far.
type again struct{}

func (again) Error() string   { return "no more input for now" }
func (again) Timeout() bool   { return true }
func (again) Temporary() bool { return true }

var errAgain net.Error = again{}

func (r *raw) Read(p []byte) (int, error) {
	if r.looping {
		if len(r.src) == 0 {
			if r.srcEOF {
				r.sawFIN = true
				return 0, io.EOF
			}
			return 0, errAgain
		}
		n := copy(p, r.src)
		r.src = r.src[n:]
		return n, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.in) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		if r.ended {
			return 0, io.EOF
		}
		// While this handshake waits for its peer, another one may compute: a
		// client that stays silent costs a goroutine, not a turn.
		r.mu.Unlock()
		r.release()
		r.mu.Lock()
		for len(r.in) == 0 && r.err == nil && !r.ended {
			r.cond.Wait()
		}
		r.mu.Unlock()
		r.acquire()
		r.mu.Lock()
	}
	n := copy(p, r.in)
	r.in = r.in[n:]
	if len(r.in) == 0 {
		r.in = nil
	}
	return n, nil
}

// Write never fails and never blocks: a write error would stay with crypto/tls
// for good. Back-pressure is the transport's OverHigh.
func (r *raw) Write(p []byte) (int, error) {
	if r.looping {
		r.c.Write(p)
		return len(p), nil
	}
	r.mu.Lock()
	r.out = append(r.out, p...)
	post := !r.posted
	r.posted = true
	r.mu.Unlock()
	if post {
		r.c.Loop().Post(r.flush)
	}
	return len(p), nil
}

// Close does nothing: the loop closes descriptors.
func (r *raw) Close() error { return nil }

func (r *raw) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(r.c.Conn().Local) }
func (r *raw) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(r.c.Conn().Remote) }

// The deadlines are the loop's timers.
func (r *raw) SetDeadline(time.Time) error      { return nil }
func (r *raw) SetReadDeadline(time.Time) error  { return nil }
func (r *raw) SetWriteDeadline(time.Time) error { return nil }
