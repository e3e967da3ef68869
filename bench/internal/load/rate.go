//go:build linux

package load

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/proxy/loop"
)

// openLoop makes requests arrive by the clock, whatever was answered. An arrival
// that finds no free connection waits, and its latency counts from the arrival.
type openLoop struct {
	end     chan struct{}
	waiting []int64
}

func (o *openLoop) next() int64 {
	if len(o.waiting) == 0 {
		return 0
	}
	due := o.waiting[0]
	o.waiting = o.waiting[1:]
	return due
}

// NewRate asks for path by HTTP/1.1 at a fixed rate over the connections; loop
// only. The clock is a goroutine of its own.
func NewRate(l *loop.Loop, fds []int, host, path string, perSecond int) (*Closed, error) {
	g, err := newClosed(l, fds, &http1{request: Request(host, path)})
	if err != nil {
		return g, err
	}
	g.open = &openLoop{end: make(chan struct{})}
	go g.tick(l, time.Second/time.Duration(perSecond))
	return g, nil
}

// tick lets requests arrive. Arrivals that the clock's own sleep was late for
// come together; they count from then, because the proxy did not cause it.
func (g *Closed) tick(l *loop.Loop, every time.Duration) {
	// The kernel's own clock, because timers of the runtime come late, and then
	// several at once, while an event loop beside them waits.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for due := time.Now(); ; {
		due = due.Add(every)
		if d := time.Until(due); d > 0 {
			t := unix.NsecToTimespec(d.Nanoseconds())
			_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &t, nil) // woken early, the next round catches up
		}
		select {
		case <-g.open.end:
			return
		default:
		}
		l.Post(g.arrive)
	}
}

func (g *Closed) arrive() {
	if g.stopped {
		return
	}
	now := time.Now().UnixNano()
	for _, c := range g.clients {
		if c.alive && !c.busy {
			c.send(now)
			return
		}
	}
	g.open.waiting = append(g.open.waiting, now)
	if len(g.open.waiting) == maxWaiting {
		g.counts.fail("the proxy does not keep up with the rate")
	}
}

// maxWaiting is how far behind a proxy may be.
const maxWaiting = 10000
