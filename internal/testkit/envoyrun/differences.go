package envoyrun

import (
	"fmt"
	"slices"
	"strings"

	"lateen.dev/lateen/internal/testkit/scenario"
)

// Difference is one expectation of a scenario that Envoy does not meet.
type Difference struct {
	Scenario, Want string
	// Always is false for what Envoy meets by chance.
	Always bool
	// Row is the first cell of the row in docs/differences.md that says why.
	Row string
}

func (d Difference) covers(name string, w scenario.Want) bool {
	return d.Scenario == name && d.Want == w.Text
}

// Differences are all that are known.
type Differences []Difference

// ParseDifferences reads lines "SCENARIO | EXPECTATION | always or sometimes |
// ROW"; lines that begin with # are comments.
func ParseDifferences(text string) (Differences, error) {
	var out Differences
	for i, line := range strings.Split(text, "\n") {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Split(line, " | ")
		if len(f) != 4 || f[2] != "always" && f[2] != "sometimes" {
			return nil, fmt.Errorf("line %d: %q: want SCENARIO | EXPECTATION | always or sometimes | ROW", i+1, line)
		}
		out = append(out, Difference{Scenario: f[0], Want: f[1], Always: f[2] == "always", Row: f[3]})
	}
	return out, nil
}

// Stale says which differences are none: of expectations that no scenario has,
// without a row in the page of differences, or met although they should not be.
func (known Differences) Stale(all []*scenario.Scenario, page string, held map[string][]scenario.Want) []error {
	var errs []error
	for _, d := range known {
		found := slices.ContainsFunc(all, func(s *scenario.Scenario) bool {
			return slices.ContainsFunc(s.Calls, func(c scenario.Call) bool {
				return slices.ContainsFunc(c.Wants, func(w scenario.Want) bool { return d.covers(s.Name, w) })
			})
		})
		if !found {
			errs = append(errs, fmt.Errorf("%s has no expectation %q", d.Scenario, d.Want))
		}
		if !strings.Contains(page, "\n| "+d.Row+" | ") {
			errs = append(errs, fmt.Errorf("docs/differences.md has no row %q, which is the reason for %s", d.Row, d.Scenario))
		}
		if d.Always && slices.ContainsFunc(held[d.Scenario], func(w scenario.Want) bool { return d.covers(d.Scenario, w) }) {
			errs = append(errs, fmt.Errorf("%s: Envoy meets %q after all", d.Scenario, d.Want))
		}
	}
	return errs
}

// Scenarios is how many scenarios the differences are of.
func (known Differences) Scenarios() int {
	names := map[string]bool{}
	for _, d := range known {
		names[d.Scenario] = true
	}
	return len(names)
}
