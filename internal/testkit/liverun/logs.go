//go:build linux

package liverun

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"lateen.dev/lateen/internal/testkit/scenario"
)

// accessLogs is the mesh configuration that makes every proxy write what the
// runner reads. Requests are found by the mark in their user-agent: no proxy
// changes it, and copies and retries bear it too.
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
       "details": "%RESPONSE_CODE_DETAILS%", "route": "%ROUTE_NAME%", "origin": "%LATEEN_ORIGIN%",
       "route_origin": "%LATEEN_ROUTE_ORIGIN%", "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
       "cluster": "%UPSTREAM_CLUSTER_RAW%"}
`

// line is one line of an access log.
type line struct {
	Mark        string `json:"mark"`
	Flags       string `json:"flags"`
	Details     string `json:"details"`
	Route       string `json:"route"`
	Origin      string `json:"origin"`
	RouteOrigin string `json:"route_origin"`
	Cluster     string `json:"cluster"`
	Attempts    int    `json:"attempts"`

	caller bool // written by the proxy beside the caller, or by the gateway
}

// logLimit is how long lines may take to arrive.
const logLimit = 1500 * time.Millisecond

// settle is how long copies of a request may still arrive after its answer.
const settle = 400 * time.Millisecond

// awaitLogs fills results from logs until every request is accounted for and
// they are as wanted, or no more can be expected.
func (c *cluster) awaitLogs(ctx context.Context, call scenario.Call, results []scenario.Result) error {
	if countsCopies(call) { // one too many comes late
		time.Sleep(settle)
	}
	for deadline := time.Now().Add(logLimit); ; {
		missing := c.fill(call, results)
		err := call.Check(results)
		if err == nil && missing == 0 {
			return nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			if err == nil {
				err = fmt.Errorf("line %d: %d of %d requests are in no access log of the caller's proxy", call.Line, missing, len(results))
			}
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func countsCopies(call scenario.Call) bool {
	for _, w := range call.Wants {
		if strings.HasPrefix(w.Text, "mirror") {
			return true
		}
	}
	return false
}

// fill takes from the logs what the client cannot see, and returns how many
// answered requests the caller's proxy has not logged yet.
func (c *cluster) fill(call scenario.Call, results []scenario.Result) (missing int) {
	w, known := c.workload(call.From)
	proxied := !known || w.Sidecar
	hops, served := c.hops(call.From), c.served()
	lines := c.proxyLines()
	for i := range results {
		r := &results[i]
		r.Lines = lines
		r.Mirrored = served[r.Mark]
		r.Flags, r.Details, r.Origins, r.Route, r.Attempts = nil, nil, nil, "", 0
		lines := hops[r.Mark]
		if proxied && !c.ownLogs && r.Status != 0 && !call.Fresh && !slices.ContainsFunc(lines, func(l line) bool { return l.caller }) {
			missing++
		}
		if call.AtOnce { // requests that meet each other are one event
			lines = nil
			for _, other := range results {
				lines = append(lines, hops[other.Mark]...)
			}
		}
		for j, l := range lines {
			if l.Flags != "" && l.Flags != "-" {
				r.Flags = append(r.Flags, strings.Split(l.Flags, ",")...)
			}
			r.Details = append(r.Details, l.Details)
			origin := l.Origin
			if origin == "" {
				origin = l.RouteOrigin
			}
			r.Origins = append(r.Origins, shortPlace(origin))
			if j == len(lines)-1 { // the caller's own proxy ends last
				r.Route, r.Attempts = l.Route, l.Attempts
			}
		}
	}
	return missing
}

var place = regexp.MustCompile(` \((?:[^()]*/)?([^/()]+)\)$`)

// shortPlace turns "Kind/name (/a/b/mesh.yaml:8)" into "Kind/name mesh.yaml:8".
func shortPlace(origin string) string { return place.ReplaceAllString(origin, " $1") }

// hops returns the lines of all access logs by mark, the caller's last.
func (c *cluster) hops(from string) map[string][]line {
	prefix := "istio-system_istio-ingressgateway-"
	if w, ok := c.workload(from); ok {
		prefix = w.Namespace + "_" + w.Deployment() + "-"
	}
	out := map[string][]line{}
	c.eachLine("istio-proxy.log", func(pod, text string) {
		var l line
		if !strings.HasPrefix(text, "{") || json.Unmarshal([]byte(text), &l) != nil || l.Mark == "" {
			return
		}
		l.caller = strings.HasPrefix(pod, prefix) && !strings.HasPrefix(l.Cluster, "inbound|")
		out[l.Mark] = append(out[l.Mark], l)
	})
	for _, lines := range out {
		slices.SortStableFunc(lines, func(a, b line) int {
			switch {
			case a.caller == b.caller:
				return 0
			case a.caller:
				return 1
			}
			return -1
		})
	}
	return out
}

// served counts, by mark, the requests that reached each Deployment.
func (c *cluster) served() map[string]map[string]int {
	out := map[string]map[string]int{}
	c.eachLine("app.log", func(pod, text string) {
		mark, ok := strings.CutPrefix(text, "served ")
		if !ok {
			return
		}
		if out[mark] == nil {
			out[mark] = map[string]int{}
		}
		for _, w := range c.sc.Workloads {
			if strings.HasPrefix(pod, w.Namespace+"_"+w.Deployment()+"-") {
				out[mark][w.Deployment()]++
			}
		}
	})
	return out
}

// proxyLines is everything that the proxies of the mesh wrote.
func (c *cluster) proxyLines() []string {
	var out []string
	c.eachLine("istio-proxy.log", func(_, text string) { out = append(out, text) })
	return out
}

// refusals are the NACKs that the control plane heard, as it logged them.
func (c *cluster) refusals() []string {
	data, err := os.ReadFile(filepath.Join(c.data(), "logs", "control.log"))
	if err != nil {
		return []string{err.Error()}
	}
	var out []string
	for text := range strings.Lines(string(data)) {
		if strings.Contains(text, `msg="proxy refused a push"`) {
			out = append(out, strings.TrimSpace(text))
		}
	}
	return out
}

// eachLine calls fn for each line of each pod's log of that name.
func (c *cluster) eachLine(name string, fn func(pod, text string)) {
	paths, _ := filepath.Glob(filepath.Join(c.data(), "logs", "*", name)) // the pattern is well-formed
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			continue // the pod went away
		}
		pod := filepath.Base(filepath.Dir(path))
		for s := bufio.NewScanner(f); s.Scan(); {
			fn(pod, s.Text())
		}
		f.Close()
	}
}
