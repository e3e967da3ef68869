package finding

import (
	"regexp"
	"testing"
)

func TestCodes_areUniqueAndComplete(t *testing.T) {
	seen := map[string]bool{}
	form := regexp.MustCompile(`^LAT0[0-9]{3}$`)
	last := ""
	for _, c := range Codes() {
		if seen[c.ID] || !form.MatchString(c.ID) || c.ID <= last {
			t.Errorf("%s: used twice, malformed or out of order", c.ID)
		}
		if c.Title == "" || c.Explanation == "" {
			t.Errorf("%s: no title or explanation", c.ID)
		}
		seen[c.ID], last = true, c.ID
	}
}

func TestPosition_string(t *testing.T) {
	check := func(p Position, want string) {
		t.Helper()
		if got := p.String(); got != want {
			t.Errorf("%+v: %q, want %q", p, got, want)
		}
	}
	check(Position{}, "")
	check(Position{File: "a"}, "a")
	check(Position{File: "a", Line: 2}, "a:2")
	check(Position{File: "a", Line: 2, Column: 3}, "a:2:3")
}
