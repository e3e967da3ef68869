package mtls

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"

	"lateen.dev/lateen/internal/proxy/loop"
	"lateen.dev/lateen/internal/proxy/message"
)

const (
	// maxRecord is the payload of a full TLS record.
	maxRecord = 16 << 10
	// flushAt is how much plaintext waits for the end of the round; more is
	// encrypted at once.
	flushAt = 64 << 10
	// maxKept bounds what a codec may leave unconsumed.
	maxKept = 256 << 10
)

var errKept = errors.New("protocol element exceeds the input buffer")

// Conn is an established TLS connection as a message.Transport. Loop only.
type Conn struct {
	c    *loop.Conn
	tls  *tls.Conn
	raw  raw
	h    message.TransportHandler
	info message.Conn

	kept    []byte // plaintext delivered, not consumed
	pending []byte // plaintext to be encrypted at the end of the round
	readErr error  // what crypto/tls said last, not passed on yet
	err     error

	later func() // runs process at the end of the round

	started    bool // a handler was set once
	paused     bool
	processing bool
	redeliver  bool
	scheduled  bool
	eof        bool // close_notify came
	eofTold    bool // and the codec knows
	finSent    bool
	closing    bool
}

var (
	_ message.Transport        = (*Conn)(nil)
	_ loop.Flusher             = (*Conn)(nil)
	_ message.TransportHandler = (*cipherSide)(nil)
)

// cipherSide is the Conn as handler of the connection below.
type cipherSide Conn

// OnBytes decrypts.
func (x *cipherSide) OnBytes(p []byte) int {
	t := (*Conn)(x)
	if len(t.raw.src) > 0 {
		// Left over from the handshake; it comes first.
		t.process()
		if len(t.raw.src) > 0 || t.paused {
			return 0
		}
	}
	t.raw.src = p
	t.process()
	n := len(p) - len(t.raw.src)
	t.raw.src = nil
	return n
}

// OnEOF sees the FIN; an orderly one follows close_notify.
func (x *cipherSide) OnEOF() {
	t := (*Conn)(x)
	t.raw.srcEOF = true
	t.process()
}

// OnDrained passes relief on.
func (x *cipherSide) OnDrained() {
	if t := (*Conn)(x); t.h != nil && !t.closing {
		t.h.OnDrained()
	}
}

// OnClosed ends the transport.
func (x *cipherSide) OnClosed(err error) {
	t := (*Conn)(x)
	l := t.c.Loop()
	l.Return(t.kept)
	l.Return(t.pending)
	t.kept, t.pending = nil, nil
	t.closing = true
	if t.err != nil {
		err = t.err
	}
	h := t.h
	t.h = nil
	if h != nil {
		h.OnClosed(err)
	}
}

// Conn describes the connection, TLS included.
func (t *Conn) Conn() *message.Conn { return &t.info }

// SetHandler installs the codec; input that is here already is delivered in
// this round.
func (t *Conn) SetHandler(h message.TransportHandler) {
	t.h = h
	t.eofTold = false
	if t.processing {
		return // deliver sees the new handler
	}
	if !t.started {
		t.started = true
		t.c.PauseRead(t.paused)
	}
	t.schedule()
}

func (t *Conn) schedule() {
	t.redeliver = len(t.kept) > 0
	if !t.scheduled {
		t.scheduled = true
		t.c.Loop().Later(t.later)
	}
}

// PauseRead stops or resumes delivery and reading.
func (t *Conn) PauseRead(on bool) {
	if t.paused == on {
		return
	}
	t.paused = on
	if !t.started {
		return
	}
	t.c.PauseRead(on)
	switch {
	case on:
	case t.processing:
		t.redeliver = true
	default:
		t.schedule() // crypto/tls may hold records that no event will announce
	}
}

func (t *Conn) canRead() bool { return !t.paused && !t.closing && t.h != nil }

// process decrypts and delivers until the input is used up or the codec pauses.
func (t *Conn) process() {
	if t.processing {
		return
	}
	t.processing = true
	if t.redeliver && t.canRead() {
		t.deliver(t.kept)
	}
	buf := t.c.Loop().Scratch()
	for t.canRead() && !t.eofTold {
		if t.readErr != nil {
			t.readEnded()
			break
		}
		n, err := t.fill(buf)
		wait := errors.Is(err, errAgain)
		if !wait {
			t.readErr = err // due when what came before it has been delivered
		}
		if n > 0 {
			t.offer(buf[:n])
		}
		if wait {
			break
		}
	}
	t.processing = false
}

// fill decrypts as many records as fit and are there.
func (t *Conn) fill(buf []byte) (n int, err error) {
	for err == nil && n+maxRecord <= len(buf) {
		var m int
		m, err = t.tls.Read(buf[n:])
		n += m
	}
	return n, err
}

// offer delivers fresh plaintext behind what was kept.
func (t *Conn) offer(p []byte) {
	if len(t.kept) == 0 {
		t.deliver(p)
		return
	}
	if len(t.kept)+len(p) > maxKept {
		t.fail(errKept)
		return
	}
	t.kept = t.grow(t.kept, p)
	t.deliver(t.kept)
}

// grow appends p to a borrowed buffer, exchanging it for a larger one if needed.
func (t *Conn) grow(b, p []byte) []byte {
	if len(b)+len(p) > cap(b) {
		l := t.c.Loop()
		larger := append(l.Borrow(len(b)+len(p)), b...)
		l.Return(b)
		b = larger
	}
	return append(b, p...)
}

// deliver offers p, which is t.kept or fresh, and keeps what is left over.
func (t *Conn) deliver(p []byte) {
	kept := len(t.kept) > 0
	for len(p) > 0 && t.canRead() {
		h := t.h
		t.redeliver = false
		n := h.OnBytes(p)
		p = p[n:]
		if !t.redeliver && t.h == h {
			break
		}
	}
	t.redeliver = false
	switch {
	case t.closing:
	case len(p) == 0:
		t.c.Loop().Return(t.kept)
		t.kept = nil
	case kept:
		t.kept = t.kept[:copy(t.kept, p)]
	default:
		t.kept = t.grow(nil, p)
	}
}

// readEnded passes on how the input ended.
func (t *Conn) readEnded() {
	switch {
	case !errors.Is(t.readErr, io.EOF):
		t.fail(fmt.Errorf("TLS from %v: %w", t.info.Remote, t.readErr))
	case t.raw.sawFIN:
		t.fail(ErrTruncated)
	default:
		t.eof, t.eofTold = true, true
		t.h.OnEOF()
		if t.finSent {
			t.Close()
		}
	}
}

// fail ends the connection; crypto/tls has queued its alert already.
func (t *Conn) fail(err error) {
	if t.closing {
		return
	}
	t.err, t.closing = err, true
	t.c.Close()
}

// Write queues plaintext; it is encrypted at the end of the round, so that
// small writes share records. Bulk is encrypted at once.
func (t *Conn) Write(p []byte) {
	if t.closing || t.finSent {
		return
	}
	if len(t.pending) == 0 && len(p) >= maxRecord {
		t.encrypt(p)
		return
	}
	t.pending = t.grow(t.pending, p)
	if len(t.pending) >= flushAt {
		t.OnFlush()
		return
	}
	t.c.MarkDirty()
}

// OnFlush encrypts what was written during the round.
func (t *Conn) OnFlush() {
	if len(t.pending) == 0 {
		return
	}
	p := t.pending
	t.pending = nil
	t.encrypt(p)
	t.c.Loop().Return(p)
}

func (t *Conn) encrypt(p []byte) {
	if _, err := t.tls.Write(p); err != nil {
		t.fail(fmt.Errorf("TLS to %v: %w", t.info.Remote, err))
	}
}

// Buffered is what has not left: plaintext waiting for the end of the round and
// ciphertext.
func (t *Conn) Buffered() int { return len(t.pending) + t.c.Buffered() }

// OverHigh is the connection's: plaintext never waits longer than a round.
func (t *Conn) OverHigh() bool { return t.c.OverHigh() }

// WantDrained asks the connection below.
func (t *Conn) WantDrained() { t.c.WantDrained() }

// CloseWrite sends close_notify and FIN after what is buffered.
func (t *Conn) CloseWrite() {
	if t.closing || t.finSent {
		return
	}
	t.OnFlush()
	_ = t.tls.CloseWrite()
	t.finSent = true
	t.c.CloseWrite()
	if t.eof {
		t.Close()
	}
}

// Close flushes with close_notify for a bounded time, then closes.
func (t *Conn) Close() {
	if t.closing {
		return
	}
	if !t.finSent {
		t.OnFlush()
		_ = t.tls.CloseWrite()
	}
	t.closing = true
	t.c.Close()
}

// Abort closes at once with RST.
func (t *Conn) Abort() {
	t.closing = true
	t.c.Abort()
}
