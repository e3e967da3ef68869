package file

import (
	"bytes"
	"slices"
	"time"
)

// How long a file must stay as it is before a loss is believed. Programs write
// in steps (truncate and write, remove and write anew), and what a half-written
// file seems to lack may be a policy that denies.
const (
	// settle is for a file that became shorter, or is gone.
	settle = 150 * time.Millisecond
	// settleEmpty is for a file that became empty, which hardly anyone means.
	settleEmpty = 2 * time.Second
)

// doubt is a reading that is not believed yet.
type doubt struct {
	data  []byte // nil for a file that is gone
	since time.Time
}

// believes reports whether the new reading of a file may take the place of the
// old one at the given time. It always does for a source that only loads.
func (s *Source) believes(name string, old, data []byte, now time.Time) bool {
	wait := settle
	switch {
	case s.doubts == nil || data != nil && len(data) >= len(old):
		delete(s.doubts, name)
		return true
	case data != nil && len(bytes.TrimSpace(data)) == 0:
		wait = settleEmpty
	}
	d, ok := s.doubts[name]
	if !ok || (d.data == nil) != (data == nil) || !bytes.Equal(d.data, data) {
		s.doubts[name] = doubt{data: data, since: now}
		return false
	}
	if now.Sub(d.since) < wait {
		return false
	}
	delete(s.doubts, name)
	return true
}

// doubtGone puts the files that are gone, and not believed to be, back into the
// order of the files found.
func (s *Source) doubtGone(order []string, now time.Time) []string {
	for i, name := range s.order {
		c := s.files[name]
		if c == nil || slices.Contains(order, name) || s.believes(name, c.data, nil, now) {
			continue
		}
		at := 0
		if i > 0 {
			at = slices.Index(order, s.order[i-1]) + 1
		}
		order = slices.Insert(order, at, name)
	}
	return order
}
