//go:build linux

// Package envoyrun runs scenarios a third way: with a stock Envoy in the place
// of every lateen-proxy, in the same pods, behind the same capture, fed by the
// same control plane. It is liverun with other sidecars: envoyagent stands
// beside each Envoy, and what Envoy cannot know by nature is not asked.
//
// A mesh may also be mixed: some pods with an Envoy, some with lateen-proxy.
//
// It promises that every proxy of a mesh is what the mix says. As in liverun, one that
// refuses what it was sent fails the scenario, whatever the calls brought.
package envoyrun

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"lateen.dev/lateen/internal/testkit/liverun"
	"lateen.dev/lateen/internal/testkit/scenario"
)

// OwnProxy is the name of lateen-proxy in the folder of a suite's programs.
const OwnProxy = "lateen-proxy.own"

// New makes a suite, of programs that liverun.Build made, whose proxies are the
// Envoy at path, as far as the mix says so, and which does not ask for what is
// known to differ.
func New(programs, envoy string, mix Mix, known Differences) (*liverun.Suite, error) {
	return liverun.New(programs, liverun.Options{
		Arrange: func(dir string) error {
			return errors.Join(
				os.Rename(filepath.Join(dir, "lateen-proxy"), filepath.Join(dir, OwnProxy)),
				os.Rename(filepath.Join(dir, "envoyagent"), filepath.Join(dir, "lateen-proxy")),
				mix.Write(dir), copyProgram(envoy, filepath.Join(dir, "envoy")))
		},
		Unanswered: unanswered,
		Settle:     settle,
		Agent: func(account string) string {
			if mix.Has(account) {
				return "envoy "
			}
			return "lateen-proxy "
		},
		Apart: func(sc *scenario.Scenario, w scenario.Want) bool {
			return slices.ContainsFunc(known, func(d Difference) bool { return d.covers(sc.Name, w) })
		},
	})
}

// copyProgram puts Envoy where an ordinary user may run it.
func copyProgram(from, to string) error {
	if os.Link(from, to) == nil {
		return nil // the folders are on one file system
	}
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("copy Envoy: %w", err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return fmt.Errorf("copy Envoy: %w", err)
	}
	if _, err := io.Copy(out, in); err != nil {
		return errors.Join(fmt.Errorf("copy Envoy: %w", err), out.Close())
	}
	return out.Close()
}

// mergeWindow is how long after a change of endpoints Envoy collects further
// changes of their health before its workers see them (update_merge_window).
const mergeWindow = 1100 * time.Millisecond

// settle waits for the merge window where ejection is looked at: the endpoints
// have just changed.
func settle(sc *scenario.Scenario) time.Duration {
	for _, f := range sc.Files {
		if bytes.Contains(f.Data, []byte("outlierDetection:")) {
			return mergeWindow
		}
	}
	return 0
}

// unanswered are the kinds of expectations about what only Lateen's proxy
// tells: the object and line that decided, and the attributes of its spans.
var unanswered = []string{"origin", "span"}
