// Package messagetest has in-memory stand-ins for both sides of the seam
// between codecs and the request path: a Transport for tests of codecs, a
// Receiver that writes down what it is told, and Mux, a connection with many
// concurrent exchanges in the shape of HTTP/2, for tests of the request path.
//
// Everything is single-threaded and deterministic: nothing happens but in the
// test's own calls. It is for tests only; no program imports it.
package messagetest

import (
	"errors"

	"lateen.dev/lateen/internal/proxy/message"
)

// ErrReset is what a Transport ends with when its peer called Abort.
var ErrReset = errors.New("connection reset by peer")

// Transport is one end of an in-memory connection. The test plays the network:
// it feeds input and takes output, or joins two ends with Pump.
type Transport struct {
	// High and Low are the watermarks of what the test has not taken yet;
	// 256 KiB and 64 KiB by default.
	High, Low int

	// Aborted and FinSent say what the codec did to the connection.
	Aborted, FinSent bool

	conn       message.Conn
	h          message.TransportHandler
	in, out    []byte
	paused     bool
	delivering bool
	again      bool
	wasHigh    bool
	eofPending bool
	eof        bool
	closing    bool
	closed     bool
	err        error
	ended      bool // OnClosed was called
}

var _ message.Transport = (*Transport)(nil)

// NewTransport returns an open end that is described by conn.
func NewTransport(conn message.Conn) *Transport {
	return &Transport{conn: conn, High: 256 << 10, Low: 64 << 10}
}

// SetHandler installs the codec.
func (t *Transport) SetHandler(h message.TransportHandler) {
	t.h = h
	if !t.delivering {
		t.deliver()
	}
}

// Write appends to the output.
func (t *Transport) Write(p []byte) {
	if t.closed || t.closing || t.FinSent {
		return
	}
	t.out = append(t.out, p...)
	t.wasHigh = t.wasHigh || t.OverHigh()
}

// Buffered is the output that the test has not taken.
func (t *Transport) Buffered() int { return len(t.out) }

// OverHigh says that Buffered is above High.
func (t *Transport) OverHigh() bool { return len(t.out) > t.High }

// WantDrained makes the next Take call OnDrained.
func (t *Transport) WantDrained() { t.wasHigh = true }

// PauseRead stops or resumes delivery of what is fed.
func (t *Transport) PauseRead(on bool) {
	if t.paused == on {
		return
	}
	t.paused = on
	if on {
		return
	}
	if t.delivering {
		t.again = true
		return
	}
	t.deliver()
}

// Paused says that the codec stopped reading.
func (t *Transport) Paused() bool { return t.paused }

// CloseWrite notes the FIN.
func (t *Transport) CloseWrite() {
	if !t.closed && !t.closing {
		t.FinSent = true
	}
}

// Close ends the connection once the output was taken.
func (t *Transport) Close() {
	if !t.closed {
		t.closing = true
	}
}

// Closing says that the codec called Close.
func (t *Transport) Closing() bool { return t.closing }

// Abort ends the connection at once and drops its output.
func (t *Transport) Abort() {
	if t.closed {
		return
	}
	t.Aborted, t.closed, t.out = true, true, nil
	t.err = errors.New("aborted")
}

// Conn describes the connection.
func (t *Transport) Conn() *message.Conn { return &t.conn }

// Feed delivers input as if it came in one segment.
func (t *Transport) Feed(p []byte) {
	t.in = append(t.in, p...)
	t.deliver()
	t.Settle()
}

// FeedEOF delivers the peer's FIN, after all input.
func (t *Transport) FeedEOF() {
	t.eofPending = true
	t.deliver()
	t.Settle()
}

// FeedError ends the connection as a network error would.
func (t *Transport) FeedError(err error) {
	if !t.closed {
		t.closed, t.err, t.out = true, err, nil
	}
	t.Settle()
}

func (t *Transport) deliver() {
	if t.delivering || t.h == nil {
		return
	}
	t.delivering = true
	for len(t.in) > 0 && !t.paused && !t.closing && !t.closed {
		h := t.h
		t.again = false
		// A copy that is wiped afterwards: whoever keeps the borrowed slice is found out.
		p := append([]byte(nil), t.in...)
		n := h.OnBytes(p)
		for i := range p {
			p[i] = 0xdb
		}
		t.in = t.in[n:]
		if !t.again && t.h == h {
			break
		}
	}
	t.delivering = false
	if t.eofPending && !t.eof && !t.paused && !t.closing && !t.closed {
		t.eof = true
		t.h.OnEOF()
	}
}

// Settle makes the last call once the connection has ended. Feed, FeedEOF,
// FeedError, Take and Pump do so by themselves.
func (t *Transport) Settle() {
	if t.closing && len(t.out) == 0 || t.FinSent && t.eof && len(t.out) == 0 {
		t.closed = true
	}
	if t.closed && !t.ended && t.h != nil {
		t.ended = true
		t.h.OnClosed(t.err)
	}
}

// Ended says that the handler has had its last call.
func (t *Transport) Ended() bool { return t.ended }

// Take removes and returns the output, as the kernel would.
func (t *Transport) Take() []byte {
	p := t.out
	t.out = nil
	if t.wasHigh && !t.closed && !t.closing && t.h != nil {
		t.wasHigh = false
		t.h.OnDrained()
	}
	t.Settle()
	return p
}

// TakeString is Take for comparisons.
func (t *Transport) TakeString() string { return string(t.Take()) }

// Pump moves output, FIN and resets between two ends until both are quiet.
func Pump(a, b *Transport) {
	for moved := true; moved; {
		moved = pumpOne(a, b)
		moved = pumpOne(b, a) || moved
	}
}

func pumpOne(from, to *Transport) (moved bool) {
	if from.Aborted && !to.closed {
		to.FeedError(ErrReset)
		from.Settle()
		return true
	}
	if !to.paused && len(from.out) > 0 {
		to.Feed(from.Take())
		moved = true
	}
	if (from.FinSent || from.closed || from.closing) && len(from.out) == 0 && !to.eofPending && !from.Aborted {
		to.FeedEOF()
		from.Settle()
		moved = true
	}
	return moved
}
