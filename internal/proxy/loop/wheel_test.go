package loop

import (
	"math/rand/v2"
	"testing"
)

// The wheel against a plain list: every timer fires in the tick that its
// deadline rounds up to, none is lost, and next() never sleeps past one.
func TestWheel_firesExactlyWhenAPlainListWould(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var w wheel
	w.cur = 12345
	now := w.cur << tickShift
	type entry struct {
		t     *Timer
		due   int64
		fired bool
	}
	var all []*entry
	fire := func(t *Timer) { t.F() }
	for range 4000 {
		for range rnd.IntN(4) {
			e := &entry{t: &Timer{}}
			span := []int64{1 << 24, 1 << 31, 1 << 34, 1 << 40, 1 << 46, 1 << 49}[rnd.IntN(6)]
			deadline := now + rnd.Int64N(span)
			e.due = max((deadline+(1<<tickShift)-1)>>tickShift, w.cur+1)
			e.t.F = func() {
				if e.fired || w.cur != e.due {
					t.Fatalf("fired at %d, due %d, fired before %v", w.cur, e.due, e.fired)
				}
				e.fired = true
			}
			w.arm(e.t, deadline)
			all = append(all, e)
		}
		if len(all) > 0 && rnd.IntN(3) == 0 {
			e := all[rnd.IntN(len(all))]
			w.disarm(e.t)
			e.due = 1 << 39 // never
		}
		now += rnd.Int64N([]int64{1 << 20, 1 << 26, 1 << 33, 1 << 38}[rnd.IntN(4)])
		if at := w.next(); at >= 0 {
			for _, e := range all {
				if !e.fired && e.due<<tickShift < at {
					t.Fatalf("next wakes at %d, a timer is due at %d", at>>tickShift, e.due)
				}
			}
		}
		w.advance(now, fire)
		kept := all[:0]
		for _, e := range all {
			if !e.fired && e.due <= w.cur {
				t.Fatalf("timer due at %d did not fire until %d", e.due, w.cur)
			}
			if !e.fired {
				kept = append(kept, e)
			}
		}
		all = kept
	}
}

func TestWheel_armAndDisarmAllocateNothing(t *testing.T) {
	var w wheel
	tm := &Timer{}
	if n := testing.AllocsPerRun(1000, func() {
		w.arm(tm, 1<<40)
		w.arm(tm, 1<<30)
		w.disarm(tm)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if w.count != 0 || w.next() != -1 {
		t.Errorf("count %d, next %d after disarm", w.count, w.next())
	}
}

func BenchmarkWheel(b *testing.B) {
	var w wheel
	tm := &Timer{}
	for b.Loop() {
		w.arm(tm, 15e9)
		w.disarm(tm)
	}
}
