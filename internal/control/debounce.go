package control

import "time"

// debounce decides when changes are acted on: when they have rested for quiet,
// or when the first of them has waited for most. It knows no clock.
type debounce struct {
	quiet, most time.Duration
	first, last time.Time
}

// note records a change.
func (d *debounce) note(now time.Time) {
	if d.first.IsZero() {
		d.first = now
	}
	d.last = now
}

// wait returns how long to wait yet, and false when nothing is pending.
func (d *debounce) wait(now time.Time) (time.Duration, bool) {
	if d.first.IsZero() {
		return 0, false
	}
	return max(0, min(d.last.Add(d.quiet).Sub(now), d.first.Add(d.most).Sub(now))), true
}

// done forgets the pending changes.
func (d *debounce) done() { d.first, d.last = time.Time{}, time.Time{} }
