package record

import (
	"testing"
	"time"
)

func TestAppendISO_agreesWithTheLayout(t *testing.T) {
	for _, at := range []time.Time{
		time.Unix(0, 0), time.Unix(1<<31, 999_999_999), time.Date(2026, 2, 28, 23, 59, 59, 7_000_000, time.UTC),
		time.Date(2028, 2, 29, 0, 0, 0, 90_000_000, time.UTC), time.Date(9999, 12, 31, 12, 34, 56, 1, time.UTC),
	} {
		at = at.UTC()
		if got, want := string(appendISO(nil, at)), at.Format("2006-01-02T15:04:05.000Z07:00"); got != want {
			t.Errorf("appendISO(%v) = %s, want %s", at, got, want)
		}
	}
}
