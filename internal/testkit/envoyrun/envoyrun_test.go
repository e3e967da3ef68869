package envoyrun

import (
	"testing"

	"lateen.dev/lateen/internal/testkit/scenario"
)

// TestStale_findsWhatIsNoDifference: a list that excuses too much is an error.
func TestStale_findsWhatIsNoDifference(t *testing.T) {
	want := scenario.Want{Text: "200 from a-v2"}
	all := []*scenario.Scenario{{Name: "r.txtar", Calls: []scenario.Call{{Wants: []scenario.Want{want}}}}}
	const page = "\n| host | a | b | c |\n"
	held := map[string][]scenario.Want{"r.txtar": {want}}
	for _, c := range []struct {
		line string
		bad  int
	}{
		{"r.txtar | 200 from a-v2 | sometimes | host", 0},
		{"r.txtar | 200 from a-v2 | always | host", 1}, // it was met
		{"r.txtar | 200 from a-v3 | always | host", 1}, // no such expectation
		{"r.txtar | 200 from a-v2 | sometimes | hos", 1},
		{"s.txtar | 200 from a-v2 | always | ghost", 2},
	} {
		known, err := ParseDifferences("# why\n\n" + c.line + "\n")
		if err != nil {
			t.Fatal(err)
		}
		if errs := known.Stale(all, page, held); len(errs) != c.bad {
			t.Errorf("%q: got %v, want %d errors", c.line, errs, c.bad)
		}
	}
	if _, err := ParseDifferences("r.txtar | 200 from a-v2 | host"); err == nil {
		t.Error("a line without its kind passes")
	}
}
