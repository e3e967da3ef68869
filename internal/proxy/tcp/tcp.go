// Package tcp joins two transports into one opaque connection: what a filter
// chain without HTTP does (Envoy: tcp_proxy), after the upstream has been
// picked and dialled. It copies bytes both ways with back-pressure, keeps
// half-closed connections half-closed, passes a reset on as a reset, and counts.
//
// It promises that bytes leave in the order they came, that no side holds more
// than its watermark, and that done is called exactly once. It knows no
// protocol and picks no endpoint. Everything happens on the loop of both
// transports, which must be the same.
package tcp

import (
	"errors"
	"time"

	"lateen.dev/lateen/internal/proxy/loop"
	"lateen.dev/lateen/internal/proxy/message"
)

// ErrIdle is the cause when neither side sent anything for the idle timeout.
var ErrIdle = errors.New("idle timeout")

// Timers is the clock of the loop; *loop.Loop is one.
type Timers interface {
	Arm(t *loop.Timer, d time.Duration)
	Disarm(t *loop.Timer)
}

// Options configures a joined connection.
type Options struct {
	// Timers is the loop; nil switches the timeouts off.
	Timers Timers
	// IdleTimeout ends the connection after a silence of both sides (Envoy:
	// tcp_proxy idle_timeout, 1 h by default there); 0 means never.
	IdleTimeout time.Duration
	// MaxDuration ends the connection in any case; 0 means never.
	MaxDuration time.Duration
}

// Side says which transport something is about.
type Side uint8

// The sides of a Pair.
const (
	// NoSide: our own doing.
	NoSide Side = iota
	// Downstream is the first transport of Join.
	Downstream
	// Upstream is the second.
	Upstream
)

// Result is what happened on a joined connection.
type Result struct {
	// Received and Sent are payload bytes from and to the downstream.
	Received, Sent uint64
	// First is the side whose end came first.
	First Side
	// Err is nil after an orderly close of both sides; ErrIdle, or the
	// transport's error of side First.
	Err error
}

// Pair is a joined connection.
type Pair struct {
	down, up end
	o        Options
	idle     loop.Timer
	max      loop.Timer
	result   Result
	open     int
	ending   bool
	done     func(Result)
}

// end is one of the two transports; it is the handler of it.
type end struct {
	p     *Pair
	t     message.Transport
	peer  *end
	bytes uint64
	eof   bool
	gone  bool
	side  Side
}

// Join connects a (downstream) and b (upstream) until both have ended, and
// then calls done. Input that either transport holds already is passed on.
func Join(a, b message.Transport, o Options, done func(Result)) *Pair {
	p := &Pair{o: o, done: done, open: 2}
	p.down = end{p: p, t: a, peer: &p.up, side: Downstream}
	p.up = end{p: p, t: b, peer: &p.down, side: Upstream}
	p.idle.F = func() { p.stop(ErrIdle) }
	p.max.F = func() { p.stop(errMaxDuration) }
	p.touch()
	if o.Timers != nil && o.MaxDuration > 0 {
		o.Timers.Arm(&p.max, o.MaxDuration)
	}
	a.SetHandler(&p.down)
	b.SetHandler(&p.up)
	return p
}

var errMaxDuration = errors.New("maximum connection duration reached")

func (p *Pair) touch() {
	if p.o.Timers != nil && p.o.IdleTimeout > 0 {
		p.o.Timers.Arm(&p.idle, p.o.IdleTimeout)
	}
}

// stop ends both sides for a reason of our own, after what is buffered.
func (p *Pair) stop(err error) {
	if !p.ending {
		p.ending = true
		p.result.Err = err
	}
	p.down.t.Close()
	p.up.t.Close()
}

// Close ends both sides after what is buffered; done follows.
func (p *Pair) Close() { p.stop(nil) }

// Abort resets both sides; done follows.
func (p *Pair) Abort() {
	p.ending = true
	p.down.t.Abort()
	p.up.t.Abort()
}

// Transferred is the payload so far, from and to the downstream.
func (p *Pair) Transferred() (received, sent uint64) { return p.down.bytes, p.up.bytes }

// OnBytes passes input on and stops reading while the other side is slow.
func (e *end) OnBytes(b []byte) int {
	e.p.touch()
	e.bytes += uint64(len(b))
	e.peer.t.Write(b)
	if e.peer.t.OverHigh() {
		e.t.PauseRead(true)
	}
	return len(b)
}

// OnDrained lets the other side read again.
func (e *end) OnDrained() { e.peer.t.PauseRead(false) }

// OnEOF passes a FIN on; the other direction stays open.
func (e *end) OnEOF() {
	e.eof = true
	e.p.note(e.side, nil)
	e.peer.t.CloseWrite()
}

func (p *Pair) note(s Side, err error) {
	if !p.ending && p.result.First == NoSide {
		p.result.First = s
	}
	if !p.ending && p.result.Err == nil {
		p.result.Err = err
	}
}

// OnClosed ends the other side in the same way: a reset stays a reset.
func (e *end) OnClosed(err error) {
	e.gone = true
	p := e.p
	p.note(e.side, err)
	p.ending = true
	if !e.peer.gone {
		if err != nil {
			e.peer.t.Abort()
		} else {
			e.peer.t.Close()
		}
	}
	if p.open--; p.open > 0 {
		return
	}
	if p.o.Timers != nil {
		p.o.Timers.Disarm(&p.idle)
		p.o.Timers.Disarm(&p.max)
	}
	p.result.Received, p.result.Sent = p.down.bytes, p.up.bytes
	p.done(p.result)
}
