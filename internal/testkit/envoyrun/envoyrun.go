//go:build linux

// Package envoyrun runs scenarios a third way: with a stock Envoy in the place
// of every lateen-proxy, in the same pods, behind the same capture, fed by the
// same control plane. It is liverun with other sidecars: envoyagent stands
// beside each Envoy, and what Envoy cannot know by nature is not asked.
//
// It promises that every proxy of a mesh is an Envoy. As in liverun, one that
// refuses what it was sent fails the scenario, whatever the calls brought.
package envoyrun

import (
	"bytes"
	"context"
	"slices"
	"time"

	"lateen.dev/lateen/internal/testkit/liverun"
	"lateen.dev/lateen/internal/testkit/scenario"
)

// New makes a suite whose proxies are the Envoy at path, and which does not ask
// for what is known to differ.
func New(ctx context.Context, envoy string, known Differences) (*liverun.Suite, error) {
	return liverun.New(ctx, liverun.Options{
		Proxy:      "lateen.dev/lateen/internal/testkit/envoyagent",
		Beside:     map[string]string{"envoy": envoy},
		AccessLogs: accessLogs,
		Unanswered: unanswered,
		Settle:     settle,
		Agent:      "envoy ",
		Apart: func(sc *scenario.Scenario, w scenario.Want) bool {
			return slices.ContainsFunc(known, func(d Difference) bool { return d.covers(sc.Name, w) })
		},
	})
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

// accessLogs is liverun's mesh configuration in Envoy's own words.
const accessLogs = `---
apiVersion: v1
kind: ConfigMap
metadata:
  name: istio
  namespace: istio-system
data:
  mesh: |
    accessLogFile: /dev/stdout
    accessLogEncoding: JSON
    accessLogFormat: |
      {"mark": "%REQ(USER-AGENT)%", "status": "%RESPONSE_CODE%", "flags": "%RESPONSE_FLAGS%",
       "details": "%RESPONSE_CODE_DETAILS%", "route": "%ROUTE_NAME%",
       "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%", "cluster": "%UPSTREAM_CLUSTER_RAW%"}
`
