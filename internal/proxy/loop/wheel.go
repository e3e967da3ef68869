package loop

import (
	"math/bits"
	"time"
)

// tickShift makes one wheel slot 2^23 ns ≈ 8.4 ms, so that turning a time into
// a slot is a shift. Request timeouts need no finer grain.
const tickShift = 23

const (
	wheelBits   = 8
	wheelSlots  = 1 << wheelBits
	wheelMask   = wheelSlots - 1
	wheelLevels = 3
	// wheelSpan is the farthest tick a timer can be put at directly, ≈ 39 h;
	// later ones wait in the last slot and are placed again from there.
	wheelSpan = 1 << (wheelBits * wheelLevels)
)

// Timer is an intrusive timer of one Loop: it lives inside the object it
// belongs to, and arming it allocates nothing. The zero value with F set is
// ready for use. A Timer must not be copied while armed.
type Timer struct {
	// F runs on the loop when the time has come; it may arm the timer again.
	F func()

	next, prev *Timer
	when       int64 // tick
	pos        int32 // bucket index + 1, 0 while not armed
}

// Armed says whether the timer is waiting to fire.
func (t *Timer) Armed() bool { return t.pos != 0 }

// wheel is a hashed hierarchical timing wheel: three levels of 256 slots.
// Arming and disarming are O(1); a timer moves down at most twice.
type wheel struct {
	cur     int64 // the last tick that was processed
	count   int
	buckets [wheelLevels * wheelSlots]*Timer
	used    [wheelLevels * wheelSlots / 64]uint64 // bit set: the bucket may be non-empty
}

// arm puts t at the first tick that is not before deadline (nanoseconds).
func (w *wheel) arm(t *Timer, deadline int64) {
	if t.pos != 0 {
		w.disarm(t)
	}
	t.when = max((deadline+(1<<tickShift)-1)>>tickShift, w.cur+1)
	w.count++
	w.place(t)
}

func (w *wheel) place(t *Timer) {
	when := t.when
	delta := when - w.cur
	level := 0
	switch {
	case delta < wheelSlots:
	case delta < wheelSlots*wheelSlots:
		level = 1
	default:
		level = 2
		if delta >= wheelSpan {
			when = w.cur + wheelSpan - 1
		}
	}
	i := level<<wheelBits | int(when>>(level*wheelBits))&wheelMask
	t.pos = int32(i) + 1
	t.prev = nil
	t.next = w.buckets[i]
	if t.next != nil {
		t.next.prev = t
	}
	w.buckets[i] = t
	w.used[i>>6] |= 1 << (i & 63)
}

func (w *wheel) disarm(t *Timer) {
	if t.pos == 0 {
		return
	}
	w.unlink(t)
	w.count--
}

func (w *wheel) unlink(t *Timer) {
	i := int(t.pos - 1)
	if t.prev != nil {
		t.prev.next = t.next
	} else {
		w.buckets[i] = t.next
		if t.next == nil {
			w.used[i>>6] &^= 1 << (i & 63)
		}
	}
	if t.next != nil {
		t.next.prev = t.prev
	}
	t.next, t.prev, t.pos = nil, nil, 0
}

// advance processes every tick up to now and calls fire for each due timer,
// which is unlinked already.
func (w *wheel) advance(now int64, fire func(*Timer)) {
	for target := now >> tickShift; w.cur < target; {
		if w.count == 0 {
			w.cur = target
			return
		}
		w.cur++
		i := int(w.cur) & wheelMask
		if i == 0 {
			w.cascade()
		}
		for t := w.buckets[i]; t != nil; t = w.buckets[i] {
			w.disarm(t)
			fire(t)
		}
	}
}

// cascade moves the timers of the slots that begin now one level down.
func (w *wheel) cascade() {
	for level := 1; level < wheelLevels; level++ {
		slot := int(w.cur>>(level*wheelBits)) & wheelMask
		i := level<<wheelBits | slot
		t := w.buckets[i]
		w.buckets[i] = nil
		w.used[i>>6] &^= 1 << (i & 63)
		for t != nil {
			next := t.next
			if t.when < w.cur {
				t.when = w.cur
			}
			w.place(t)
			t = next
		}
		if slot != 0 {
			return
		}
	}
}

// next returns the time of the next tick that has work, or -1 if there is none.
func (w *wheel) next() int64 {
	if w.count == 0 {
		return -1
	}
	best := int64(-1)
	for level := range wheelLevels {
		base := w.cur >> (level * wheelBits)
		d := w.nextUsed(level, int(base)&wheelMask)
		if d == 0 {
			continue
		}
		at := (base + int64(d)) << (level * wheelBits)
		if best < 0 || at < best {
			best = at
		}
	}
	return best << tickShift
}

// nextUsed returns the distance (1…256) from slot to the next used slot of a
// level, 0 if none is used.
func (w *wheel) nextUsed(level, slot int) int {
	const words = wheelSlots / 64
	set := w.used[level*words : level*words+words]
	first := (slot + 1) & wheelMask
	for n := 0; n <= words; n++ {
		i := (first>>6 + n) % words
		v := set[i]
		if n == 0 {
			v &= ^uint64(0) << (first & 63)
		}
		if n == words {
			v &= 1<<(first&63) - 1
		}
		if v != 0 {
			at := i<<6 | bits.TrailingZeros64(v)
			return (at-slot-1)&wheelMask + 1
		}
	}
	return 0
}

// Arm starts t, or starts it anew: F will run after d, never before and less
// than two ticks (≈ 17 ms) late on an idle loop. Loop only.
func (l *Loop) Arm(t *Timer, d time.Duration) {
	l.wheel.arm(t, l.now+max(int64(d), 0))
}

// Disarm stops t if it is armed. Loop only.
func (l *Loop) Disarm(t *Timer) { l.wheel.disarm(t) }
