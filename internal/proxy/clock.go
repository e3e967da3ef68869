package proxy

import (
	"time"

	"lateen.dev/lateen/internal/proxy/clock"
	"lateen.dev/lateen/internal/proxy/loop"
)

// loopClock is a loop as the request path's clock.
type loopClock struct{ *loop.Loop }

// NewTimer implements clock.Clock.
func (c loopClock) NewTimer(fire func()) clock.Timer {
	t := &loopTimer{loop: c.Loop}
	t.timer.F = fire
	return t
}

type loopTimer struct {
	loop  *loop.Loop
	timer loop.Timer
}

// Arm implements clock.Timer.
func (t *loopTimer) Arm(d time.Duration) { t.loop.Arm(&t.timer, d) }

// Disarm implements clock.Timer.
func (t *loopTimer) Disarm() {
	if t.timer.Armed() {
		t.loop.Disarm(&t.timer)
	}
}
