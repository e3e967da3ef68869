// Package loop is the engine room of the proxy: one share-nothing event loop
// per core, a locked OS thread over raw epoll, with its own buffers and timers.
// It turns sockets into message.Transport values and calls their handlers.
//
// One round of a loop handles all ready events, runs posted functions and due
// timers, and only then writes, once per connection that has output: kernel
// work is most of the cost of a proxied request, and this halves it. A busy
// round makes its reads and its writes with one system call each, where the
// kernel has io_uring (ADR 7). An idle connection holds no buffer.
//
// Everything on a Loop and on what belongs to it (connections, listeners,
// dials, timers) happens on the loop's own thread. Post is the only way in from
// another goroutine. A panic in one connection's handler closes that connection
// and nothing else.
//
// The package knows bytes, not protocols: TLS is in mtls, HTTP in http1.
package loop

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/proxy/message"
)

// ErrStopped is what connections end with when their loop stops.
var ErrStopped = errors.New("event loop stopped")

// ErrPanic is what a connection ends with when its handler panicked.
var ErrPanic = errors.New("connection handler panicked")

// Options configures a Loop; zero values mean the defaults.
type Options struct {
	// Log receives contained panics and accept trouble; nil discards.
	Log *slog.Logger
	// ID distinguishes loops of one process in connection ids and logs.
	ID int
	// HighWatermark and LowWatermark bound a connection's output queue, in
	// bytes; 256 KiB and 64 KiB by default.
	HighWatermark, LowWatermark int
	// WorkCap is how many bytes one connection may read in one round before
	// others get their turn; 256 KiB by default.
	WorkCap int
	// Linger bounds how long Close flushes and waits for the peer; 1 s by default
	// (Envoy: delayed_close_timeout).
	Linger time.Duration
	// PlainIO makes one system call for each read and write even where io_uring
	// could make many with one.
	PlainIO bool
	// LightSleep lets a busy loop wait for a moment without telling the Go
	// scheduler. Each loop that does holds one of GOMAXPROCS, so there must be
	// more of these than loops, or goroutines wait with it.
	LightSleep bool
	// OnBatchEnd runs at the end of every round before output is written, for
	// codecs and stats that collect work over a round; may be nil.
	OnBatchEnd func()
}

// Stats are counters of one loop; any goroutine may read them.
type Stats struct {
	Accepted, AcceptErrors, Panics atomic.Uint64
	// Conns is the number of open connections, both directions.
	Conns atomic.Int64
}

// source is something that epoll reports events for.
type source interface {
	onEvents(events uint32)
}

// slot ties an epoll registration to its source. The generation rejects events
// of a descriptor that was closed earlier in the same round.
type slot struct {
	src source
	gen uint32
}

// Loop is one event loop.
type Loop struct {
	opts  Options
	log   *slog.Logger
	stats Stats

	ep, wakeFD int
	slots      []slot
	freeSlots  []uint32
	events     []unix.EpollEvent

	base     time.Time
	wall     time.Time
	now      int64
	wheel    wheel
	connSeq  uint64
	stopping bool
	lively   bool // the last wait ended with events
	fireFunc func(*Timer)

	ready, readySpare   []*Conn // to be read again without an edge
	dirty               []*Conn // to be flushed at the end of the round
	closed, closedSpare []*Conn // whose OnClosed is due
	later, laterSpare   []func()

	ring *ring // nil until a round is busy, and where the kernel forbids it

	readBuf        []byte
	scratch        []byte
	iov            []unix.Iovec
	freeChunks     *chunk
	freeChunkCount int
	freeInput      [len(inputClasses)][][]byte

	mu     sync.Mutex
	posted []func()
	spare  []func()
	woken  atomic.Bool
	done   atomic.Bool
}

// New makes a loop; Run starts it. The error is the kernel's.
func New(opts Options) (*Loop, error) {
	if opts.HighWatermark == 0 {
		opts.HighWatermark = 256 << 10
	}
	if opts.LowWatermark == 0 {
		opts.LowWatermark = min(64<<10, opts.HighWatermark/2)
	}
	if opts.WorkCap == 0 {
		opts.WorkCap = 256 << 10
	}
	if opts.Linger == 0 {
		opts.Linger = time.Second
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	l := &Loop{opts: opts, log: opts.Log, base: time.Now(), readBuf: make([]byte, readSize)}
	l.fireFunc = l.fire
	l.tick()
	l.wheel.cur = l.now >> tickShift
	var err error
	if l.ep, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("event loop: epoll_create1: %w", err)
	}
	if l.wakeFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		_ = unix.Close(l.ep)
		return nil, fmt.Errorf("event loop: eventfd: %w", err)
	}
	l.events = make([]unix.EpollEvent, maxBatch)
	l.iov = make([]unix.Iovec, 0, 64)
	if _, _, err := l.register(l.wakeFD, (*waker)(l), unix.EPOLLIN|unix.EPOLLET); err != nil {
		_ = unix.Close(l.wakeFD)
		_ = unix.Close(l.ep)
		return nil, err
	}
	return l, nil
}

// ID returns Options.ID.
func (l *Loop) ID() int { return l.opts.ID }

// Stats returns the loop's counters.
func (l *Loop) Stats() *Stats { return &l.stats }

// Now is the monotonic time in nanoseconds since the loop was made, read once
// per round. Loop only.
func (l *Loop) Now() int64 { return l.now }

// Wall is the wall-clock time of this round. Loop only.
func (l *Loop) Wall() time.Time { return l.wall }

func (l *Loop) tick() {
	l.wall = time.Now()
	l.now = int64(l.wall.Sub(l.base))
}

// Post runs f on the loop soon, in the order of the calls. It may be called
// from any goroutine. It returns false, and f never runs, when the loop has
// stopped.
func (l *Loop) Post(f func()) bool {
	l.mu.Lock()
	if l.done.Load() {
		l.mu.Unlock()
		return false
	}
	l.posted = append(l.posted, f)
	l.mu.Unlock()
	if !l.woken.Swap(true) {
		one := [8]byte{0: 1}
		for {
			_, err := unix.Write(l.wakeFD, one[:])
			if err != unix.EINTR {
				break
			}
		}
	}
	return true
}

// Later runs f at the end of this round, after the events in hand and before
// output is written. Loop only.
func (l *Loop) Later(f func()) { l.later = append(l.later, f) }

// Stop ends Run. Open connections are aborted and told ErrStopped. Any
// goroutine may call it, also before Run and more than once.
func (l *Loop) Stop() { l.Post(func() { l.stopping = true }) }

// waker is the Loop seen as the source of its own eventfd.
type waker Loop

func (w *waker) onEvents(uint32) {
	var b [8]byte
	_, _ = unix.Read(w.wakeFD, b[:])
}

// register adds fd to the poller.
func (l *Loop) register(fd int, src source, events uint32) (index, gen uint32, err error) {
	if n := len(l.freeSlots); n > 0 {
		index = l.freeSlots[n-1]
		l.freeSlots = l.freeSlots[:n-1]
	} else {
		index = uint32(len(l.slots))
		l.slots = append(l.slots, slot{})
	}
	s := &l.slots[index]
	s.gen++
	s.src = src
	// The kernel's data field is opaque: index in the low half, generation in the high.
	ev := unix.EpollEvent{Events: events, Fd: int32(index), Pad: int32(s.gen)}
	if err := unix.EpollCtl(l.ep, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		l.release(index)
		return 0, 0, fmt.Errorf("event loop: watch descriptor %d: %w", fd, err)
	}
	return index, s.gen, nil
}

func (l *Loop) modify(fd int, index uint32, events uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(index), Pad: int32(l.slots[index].gen)}
	return unix.EpollCtl(l.ep, unix.EPOLL_CTL_MOD, fd, &ev)
}

// release frees a slot; events still in the batch no longer match it.
func (l *Loop) release(index uint32) {
	s := &l.slots[index]
	s.src = nil
	s.gen++
	l.freeSlots = append(l.freeSlots, index)
}

// Run serves until Stop; it locks the calling goroutine to its thread. A Loop
// runs once.
func (l *Loop) Run() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for !l.stopping {
		n, err := l.wait()
		if err != nil {
			l.shutdown()
			return fmt.Errorf("event loop: epoll_wait: %w", err)
		}
		l.round(n)
	}
	l.shutdown()
	return nil
}

// wait blocks for events and takes the time once they are there.
func (l *Loop) wait() (int, error) {
	timeout := -1
	if len(l.ready) > 0 || len(l.later) > 0 || len(l.closed) > 0 || len(l.dirty) > 0 {
		timeout = 0
	} else if at := l.wheel.next(); at >= 0 {
		// Rounded up, so that the tick has really come when the wait is over.
		timeout = int(max(at-l.now+int64(time.Millisecond)-1, 0) / int64(time.Millisecond))
	}
	n, err := l.poll(timeout)
	l.tick()
	if err == unix.EINTR {
		return 0, nil
	}
	return n, err
}

// lightSleep is how long, in milliseconds, a loop that was just busy waits
// without telling the Go scheduler. A told wait hands the loop's processor on
// and takes it back, and wakes the scheduler's monitor, which then looks around
// fifty times: at a thousand requests a second that was two fifths of a proxy's
// CPU (bench/mesh -run chain). Longer waits are told, so that an idle process
// sleeps. It stays below the 10 ms after which the scheduler would interrupt.
const lightSleep = 4

// poll waits for events, timeout milliseconds or for ever (-1).
func (l *Loop) poll(timeout int) (int, error) {
	if l.lively && l.opts.LightSleep && timeout != 0 {
		light := lightSleep
		if timeout > 0 {
			light = min(light, timeout)
		}
		n, errno := sysEpollWait(l.ep, l.events, light)
		if errno != 0 {
			return 0, errno
		}
		l.lively = n > 0
		if n > 0 || light == timeout {
			return n, nil
		}
		if timeout > 0 {
			timeout -= light
		}
	}
	n, err := unix.EpollWait(l.ep, l.events, timeout)
	l.lively = n > 0
	return n, err
}

// maxBatch is how many events one batch handles at most. Output is written at
// the end of a batch: a larger one pushes what was read and made for its first
// connections out of the cache before it is sent. Against 256 events and
// growing, 32 cost 0.62 of the CPU of a request at 512 connections and 0.95 at
// 64 (bench/perf, h1-mesh).
const maxBatch = 32

// round is one batch: events, then what they led to, then one write each.
func (l *Loop) round(n int) {
	if n >= ringMin {
		l.readAhead(n)
	}
	for i := range n {
		ev := &l.events[i]
		s := &l.slots[uint32(ev.Fd)]
		if s.src == nil || s.gen != uint32(ev.Pad) {
			continue // closed earlier in this round
		}
		s.src.onEvents(ev.Events)
	}
	l.runReady()
	l.runPosted()
	l.wheel.advance(l.now, l.fireFunc)
	l.runLater()
	if l.opts.OnBatchEnd != nil {
		l.opts.OnBatchEnd()
	}
	l.runClosed() // first: what ends here often makes output there
	l.flushDirty()
	l.runClosed()
}

// runReady reads on from connections whose input was left over: work caps,
// resumed reading. What becomes ready meanwhile waits for the next round, after
// fresh events had their turn.
func (l *Loop) runReady() {
	list := l.ready
	l.ready = l.readySpare[:0]
	for i, c := range list {
		c.inReady = false
		list[i] = nil
		c.readable()
	}
	l.readySpare = list[:0]
}

func (l *Loop) runPosted() {
	if !l.woken.Load() {
		return
	}
	l.woken.Store(false)
	l.mu.Lock()
	list := l.posted
	l.posted = l.spare[:0]
	l.mu.Unlock()
	for i, f := range list {
		l.protect(f)
		list[i] = nil
	}
	l.mu.Lock()
	l.spare = list[:0]
	l.mu.Unlock()
}

func (l *Loop) runLater() {
	for len(l.later) > 0 {
		list := l.later
		l.later = l.laterSpare[:0]
		for i, f := range list {
			l.protect(f)
			list[i] = nil
		}
		l.laterSpare = list[:0]
	}
}

// flushDirty writes every connection that has output. OnDrained callbacks may
// produce more output; the list grows while it is walked.
func (l *Loop) flushDirty() {
	for len(l.dirty) >= ringMin && l.ring.ready() && l.flushMany() {
	}
	for i := 0; i < len(l.dirty); i++ {
		c := l.dirty[i]
		l.dirty[i] = nil
		c.isDirty = false
		c.flush()
	}
	l.dirty = l.dirty[:0]
}

// runClosed makes the last call of each connection that ended.
func (l *Loop) runClosed() {
	for len(l.closed) > 0 {
		list := l.closed
		l.closed = l.closedSpare[:0]
		for i, c := range list {
			list[i] = nil
			c.finish()
		}
		l.closedSpare = list[:0]
	}
}

func (l *Loop) fire(t *Timer) {
	defer l.contain(nil)
	t.F()
}

func (l *Loop) protect(f func()) {
	defer l.contain(nil)
	f()
}

// contain turns a panic into the end of one connection. It must be deferred.
func (l *Loop) contain(c *Conn) {
	r := recover()
	if r == nil {
		return
	}
	l.stats.Panics.Add(1)
	l.log.Error("panic contained", "loop", l.opts.ID, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
	if c != nil {
		c.fail(ErrPanic)
	}
}

// shutdown aborts everything that is still open and lets go of the loop's own
// descriptors.
func (l *Loop) shutdown() {
	l.mu.Lock()
	l.done.Store(true)
	l.mu.Unlock()
	// Everything posted before done was set still runs: nobody who was told
	// "true" by Post waits in vain. Handlers may close and dial meanwhile.
	for range 8 {
		l.woken.Store(true)
		l.runPosted()
		l.runLater()
		for _, s := range l.slots {
			switch src := s.src.(type) {
			case *Conn:
				src.fail(ErrStopped)
			case *Dialing:
				src.finish(nil, ErrStopped)
			case *Listener:
				src.Close()
			}
		}
		l.runLater()
		l.runClosed()
	}
	l.ring.close()
	_ = unix.Close(l.wakeFD)
	_ = unix.Close(l.ep)
}

var _ message.Transport = (*Conn)(nil)
