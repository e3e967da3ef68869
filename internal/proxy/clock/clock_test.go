package clock

import (
	"slices"
	"testing"
	"time"
)

func TestManual_firesInOrderAtTheInstantSet(t *testing.T) {
	c := NewManual(time.Unix(100, 0))
	var got []string
	at := func(name string, d time.Duration) Timer {
		tm := c.NewTimer(func() { got = append(got, name+"@"+time.Duration(c.Now()).String()) })
		tm.Arm(d)
		return tm
	}
	at("b", 20*time.Millisecond)
	at("a", 10*time.Millisecond)
	at("never", 15*time.Millisecond).Disarm()
	again := at("c", 5*time.Millisecond)
	again.Arm(20 * time.Millisecond)
	c.Advance(20 * time.Millisecond)
	if want := []string{"a@10ms", "b@20ms", "c@20ms"}; !slices.Equal(got, want) {
		t.Fatalf("fired %v, want %v", got, want)
	}
	if c.Pending() != 0 {
		t.Fatalf("%d timers still armed", c.Pending())
	}
	if want := time.Unix(100, 0).Add(20 * time.Millisecond); !c.Wall().Equal(want) {
		t.Fatalf("wall %v, want %v", c.Wall(), want)
	}
}
