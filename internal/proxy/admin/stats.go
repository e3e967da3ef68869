package admin

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"net/http"
	"regexp"
	"runtime"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// values are all statistics, ordered by name, server.* included.
func (s *server) values() []Stat {
	var out []Stat
	if s.o.Stats != nil {
		out = append(out, s.o.Stats()...)
	}
	live := uint64(0)
	if s.state() == Live {
		live = 1
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	out = append(
		out,
		Stat{"server.state", s.state().number(), true},
		Stat{"server.live", live, true},
		Stat{"server.memory_allocated", m.HeapAlloc, true},
	)
	sort.SliceStable(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	// A name given twice would make the Prometheus text invalid; the first wins.
	return slices.CompactFunc(out, func(a, b Stat) bool { return a.Name == b.Name })
}

func (s *server) stats(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	filter, err := regexp.Compile(q.Get("filter"))
	if err != nil {
		http.Error(w, "Invalid re2 regex: "+err.Error(), http.StatusBadRequest)
		return
	}
	var picked []Stat
	for _, v := range s.values() {
		if filter.MatchString(v.Name) && (!q.Has("usedonly") || v.Value != 0 || v.Gauge) {
			picked = append(picked, v)
		}
	}
	switch format := q.Get("format"); format {
	case "", "text":
		for _, v := range picked {
			fmt.Fprintf(w, "%s: %d\n", v.Name, v.Value)
		}
	case "json":
		list := make([]any, 0, len(picked))
		for _, v := range picked {
			list = append(list, map[string]any{"name": v.Name, "value": v.Value})
		}
		writeJSON(w, map[string]any{"stats": list})
	case "prometheus":
		s.prometheus(w, r)
	default:
		http.Error(w, fmt.Sprintf("format %q: want text, json or prometheus", format), http.StatusBadRequest)
	}
}

// prometheus writes Istio's metrics, then the proxy's own under Envoy's names.
func (s *server) prometheus(w http.ResponseWriter, r *http.Request) {
	var b bytes.Buffer
	if s.o.Prometheus != nil {
		if err := s.o.Prometheus(r.Context(), &b); err != nil {
			http.Error(w, "collect metrics: "+err.Error(), http.StatusInternalServerError)
			return
		}
	}
	s.prometheusStats(&b)
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	w.Write(b.Bytes())
}

// prometheusStats writes statistics family by family: the format wants all
// samples of a name together.
func (s *server) prometheusStats(b *bytes.Buffer) {
	type family struct {
		kind    string
		samples []string
	}
	families := map[string]*family{}
	for _, v := range s.values() {
		name, labels := promName(v.Name)
		f := families[name]
		if f == nil {
			f = &family{kind: "counter"}
			if v.Gauge {
				f.kind = "gauge"
			}
			families[name] = f
		}
		f.samples = append(f.samples, fmt.Sprintf("%s%s %d\n", name, labels, v.Value))
	}
	for _, name := range slices.Sorted(maps.Keys(families)) {
		f := families[name]
		fmt.Fprintf(b, "# TYPE %s %s\n", name, f.kind)
		for _, line := range f.samples {
			b.WriteString(line)
		}
	}
}

// promName turns a dotted name into a metric name; a cluster's name, which may
// hold anything, becomes a label as Envoy's tag extraction makes it.
func promName(name string) (metric, labels string) {
	if rest, ok := strings.CutPrefix(name, "cluster."); ok {
		// The statistic follows the last dot that a known one can start at.
		for _, stat := range []string{".upstream_", ".membership_", ".outlier_detection.", ".circuit_breakers.", ".lb_", ".ssl."} {
			if i := strings.LastIndex(rest, stat); i > 0 {
				label := `cluster_name="` + strings.TrimSuffix(escape(rest[:i]), ";") + `"`
				stat, code := codeLabel(rest[i+1:])
				return "envoy_cluster_" + sanitize(stat), "{" + code + label + "}"
			}
		}
	}
	return "envoy_" + sanitize(name), ""
}

// codeLabel makes a label of a status at the end of a statistic, as Istio's tag
// extraction does: upstream_rq_503, upstream_rq_5xx.
func codeLabel(stat string) (name, label string) {
	rest, ok := strings.CutPrefix(stat, "upstream_rq_")
	if !ok || len(rest) != 3 || rest[0] < '1' || rest[0] > '5' {
		return stat, ""
	}
	if rest[1:] == "xx" {
		return "upstream_rq", `response_code_class="` + rest + `",`
	}
	if _, err := strconv.Atoi(rest); err == nil {
		return "upstream_rq", `response_code="` + rest + `",`
	}
	return stat, ""
}

func sanitize(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == ':' {
			return r
		}
		return '_'
	}, name)
}

func escape(v string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(v)
}

func (s *server) memory(w http.ResponseWriter, _ *http.Request) {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	u := func(v uint64) string { return strconv.FormatUint(v, 10) }
	writeJSON(w, map[string]any{"allocated": u(m.HeapAlloc), "heap_size": u(m.HeapSys), "pageheap_unmapped": u(m.HeapReleased)})
}

func (s *server) listeners(w http.ResponseWriter, r *http.Request) {
	var list []Listener
	if s.o.Listeners != nil {
		list = s.o.Listeners()
	}
	if r.URL.Query().Get("format") != "json" {
		for _, l := range list {
			fmt.Fprintf(w, "%s::%s\n", l.Name, l.Address)
		}
		return
	}
	out := make([]any, 0, len(list))
	for _, l := range list {
		out = append(out, map[string]any{"name": l.Name, "local_address": socketAddress(l.Address)})
	}
	writeJSON(w, map[string]any{"listener_statuses": out})
}

func socketAddress(address string) any {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return map[string]any{"pipe": map[string]any{"path": address}}
	}
	n, _ := strconv.Atoi(port)
	return map[string]any{"socket_address": map[string]any{"address": host, "port_value": n}}
}

func (s *server) clusters(w http.ResponseWriter, r *http.Request) {
	var list []Cluster
	if s.o.Clusters != nil {
		list = s.o.Clusters()
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	if r.URL.Query().Get("format") == "json" {
		out := make([]any, 0, len(list))
		for i := range list {
			out = append(out, list[i].json())
		}
		writeJSON(w, map[string]any{"cluster_statuses": out})
		return
	}
	var b bytes.Buffer
	for i := range list {
		list[i].text(&b)
	}
	w.Write(b.Bytes())
}

func (c *Cluster) text(b *bytes.Buffer) {
	fmt.Fprintf(b, "%s::observability_name::%s\n", c.Name, c.Name)
	fmt.Fprintf(b, "%s::default_priority::max_connections::%d\n%s::default_priority::max_pending_requests::%d\n", c.Name, c.Limits.MaxConnections, c.Name, c.Limits.MaxPending)
	fmt.Fprintf(b, "%s::default_priority::max_requests::%d\n%s::default_priority::max_retries::%d\n", c.Name, c.Limits.MaxRequests, c.Name, c.Limits.MaxRetries)
	fmt.Fprintf(b, "%s::added_via_api::true\n", c.Name)
	for i := range c.Endpoints {
		e := &c.Endpoints[i]
		for _, v := range [...]struct {
			name  string
			value any
		}{
			{"cx_active", e.ConnectionsActive},
			{"cx_connect_fail", e.ConnectFails},
			{"cx_total", e.ConnectionsTotal},
			{"rq_active", e.RequestsActive},
			{"rq_error", e.RequestsError},
			{"rq_success", e.RequestsSuccess},
			{"rq_timeout", e.RequestsTimeout},
			{"rq_total", e.RequestsTotal},
			{"hostname", e.Hostname},
			{"health_flags", e.flags()},
			{"weight", e.Weight},
			{"region", e.Region},
			{"zone", e.Zone},
			{"priority", e.Priority},
		} {
			fmt.Fprintf(b, "%s::%s::%s::%v\n", c.Name, e.Address, v.name, v.value)
		}
	}
}

func (e *Endpoint) flags() string {
	switch {
	case e.FailedOutlier && !e.Healthy:
		return "/failed_outlier_check/failed_eds_health"
	case e.FailedOutlier:
		return "/failed_outlier_check"
	case !e.Healthy:
		return "/failed_eds_health"
	}
	return "healthy"
}

func (c *Cluster) json() any {
	hosts := make([]any, 0, len(c.Endpoints))
	for i := range c.Endpoints {
		e := &c.Endpoints[i]
		counter := func(name string, v uint64) map[string]any {
			return map[string]any{"name": name, "value": strconv.FormatUint(v, 10)}
		}
		gauge := func(name string, v uint64) map[string]any {
			m := counter(name, v)
			m["type"] = "GAUGE"
			return m
		}
		health := map[string]any{"eds_health_status": "HEALTHY"}
		if !e.Healthy {
			health["eds_health_status"] = "UNHEALTHY"
		}
		if e.FailedOutlier {
			health["failed_outlier_check"] = true
		}
		h := map[string]any{
			"address": socketAddress(e.Address), "health_status": health, "weight": e.Weight,
			"locality": map[string]any{"region": e.Region, "zone": e.Zone},
			"stats": []any{
				counter("cx_connect_fail", e.ConnectFails), counter("cx_total", e.ConnectionsTotal), counter("rq_error", e.RequestsError),
				counter("rq_success", e.RequestsSuccess), counter("rq_timeout", e.RequestsTimeout), counter("rq_total", e.RequestsTotal),
				gauge("cx_active", e.ConnectionsActive), gauge("rq_active", e.RequestsActive),
			},
		}
		if e.Hostname != "" {
			h["hostname"] = e.Hostname
		}
		hosts = append(hosts, h)
	}
	return map[string]any{
		"name": c.Name, "observability_name": c.Name, "added_via_api": true, "host_statuses": hosts,
		"circuit_breakers": map[string]any{"thresholds": []any{map[string]any{
			"max_connections": c.Limits.MaxConnections, "max_pending_requests": c.Limits.MaxPending,
			"max_requests": c.Limits.MaxRequests, "max_retries": c.Limits.MaxRetries,
		}}},
	}
}
