// Package clock is time as the request path sees it: a monotonic instant read
// once per batch, wall time for records, and timers that fire on the loop that
// armed them. A loop implements it with its timing wheel; Manual implements it
// for tests and for simulation, where time moves only when told to.
//
// Nothing here is safe for concurrent use: a Clock belongs to one loop.
package clock

import "time"

// Clock tells the time and makes timers.
type Clock interface {
	// Now is a monotonic instant in nanoseconds; it stays the same while the
	// loop handles one batch of events.
	Now() int64
	// Wall is the time of day that belongs to Now.
	Wall() time.Time
	// NewTimer returns a disarmed timer that calls fire. It may be armed again
	// and again; making one allocates, arming does not.
	NewTimer(fire func()) Timer
}

// Timer is a single-shot timer.
type Timer interface {
	// Arm makes the timer fire once after d, instead of any earlier setting.
	Arm(d time.Duration)
	// Disarm makes sure that it does not fire.
	Disarm()
}

// Manual is a Clock whose time is moved by Advance.
type Manual struct {
	now    int64
	start  time.Time
	timers []*manualTimer
	seq    int
}

type manualTimer struct {
	clock *Manual
	fire  func()
	at    int64
	seq   int // ties fire in the order they were armed
	armed bool
}

// NewManual returns a clock that stands at the given time of day.
func NewManual(start time.Time) *Manual { return &Manual{start: start} }

// Now implements Clock.
func (m *Manual) Now() int64 { return m.now }

// Wall implements Clock.
func (m *Manual) Wall() time.Time { return m.start.Add(time.Duration(m.now)) }

// NewTimer implements Clock.
func (m *Manual) NewTimer(fire func()) Timer { return &manualTimer{clock: m, fire: fire} }

// Advance moves time by d and fires what comes due, in order; a timer sees the
// instant it was set for.
func (m *Manual) Advance(d time.Duration) {
	end := m.now + int64(d)
	for {
		t := m.next()
		if t == nil || t.at > end {
			break
		}
		m.now = max(m.now, t.at)
		t.Disarm()
		t.fire()
	}
	m.now = end
}

// Pending is the number of armed timers.
func (m *Manual) Pending() int { return len(m.timers) }

// NextIn returns how long it is until the next timer fires, and whether one is
// armed at all.
func (m *Manual) NextIn() (time.Duration, bool) {
	t := m.next()
	if t == nil {
		return 0, false
	}
	return time.Duration(max(0, t.at-m.now)), true
}

func (m *Manual) next() *manualTimer {
	var first *manualTimer
	for _, t := range m.timers {
		if first == nil || t.at < first.at || t.at == first.at && t.seq < first.seq {
			first = t
		}
	}
	return first
}

// Arm implements Timer.
func (t *manualTimer) Arm(d time.Duration) {
	t.clock.seq++
	t.at, t.seq = t.clock.now+int64(max(0, d)), t.clock.seq
	if !t.armed {
		t.armed = true
		t.clock.timers = append(t.clock.timers, t)
	}
}

// Disarm implements Timer.
func (t *manualTimer) Disarm() {
	if !t.armed {
		return
	}
	t.armed = false
	all := t.clock.timers
	for i, o := range all {
		if o == t {
			all[i] = all[len(all)-1]
			t.clock.timers = all[:len(all)-1]
			return
		}
	}
}
