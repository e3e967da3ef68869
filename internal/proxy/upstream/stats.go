package upstream

import (
	"slices"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// Stat is a statistic of a cluster, one of those that Envoy keeps and Istio's
// users read.
type Stat uint8

// The statistics; Envoy's name of each is its String.
const (
	CxTotal Stat = iota
	CxHTTP1Total
	CxHTTP2Total
	CxConnectFail
	CxConnectTimeout
	CxOverflow
	CxDestroy
	CxDestroyLocal
	CxDestroyRemote
	CxDestroyWithActiveRq
	CxDestroyRemoteWithActiveRq
	CxMaxRequests
	CxIdleTimeout
	RqTotal
	RqCompleted
	RqPendingTotal
	RqPendingOverflow
	RqPendingFailureEject
	RqCancelled
	RqTimeout
	RqPerTryTimeout
	RqRxReset
	RqTxReset
	RqRetry
	RqRetrySuccess
	RqRetryOverflow
	RqRetryLimitExceeded
	TLSHandshake
	TLSConnectionError
	MembershipChange
	Rq1xx
	Rq2xx
	Rq3xx
	Rq4xx
	Rq5xx
	// What follows are gauges: they tell how things are, not how often.
	CxActive
	RqActive
	RqPendingActive
	MembershipTotal
	MembershipHealthy
	EjectionsActive
	CxOpen
	RqPendingOpen
	RqOpen
	RqRetryOpen
	statCount
)

var statNames = [statCount]string{
	"upstream_cx_total", "upstream_cx_http1_total", "upstream_cx_http2_total", "upstream_cx_connect_fail", "upstream_cx_connect_timeout",
	"upstream_cx_overflow", "upstream_cx_destroy", "upstream_cx_destroy_local", "upstream_cx_destroy_remote",
	"upstream_cx_destroy_with_active_rq", "upstream_cx_destroy_remote_with_active_rq", "upstream_cx_max_requests",
	"upstream_cx_idle_timeout", "upstream_rq_total", "upstream_rq_completed", "upstream_rq_pending_total",
	"upstream_rq_pending_overflow", "upstream_rq_pending_failure_eject", "upstream_rq_cancelled", "upstream_rq_timeout",
	"upstream_rq_per_try_timeout", "upstream_rq_rx_reset", "upstream_rq_tx_reset", "upstream_rq_retry",
	"upstream_rq_retry_success", "upstream_rq_retry_overflow", "upstream_rq_retry_limit_exceeded", "ssl.handshake",
	"ssl.connection_error", "membership_change", "upstream_rq_1xx", "upstream_rq_2xx", "upstream_rq_3xx", "upstream_rq_4xx",
	"upstream_rq_5xx", "upstream_cx_active", "upstream_rq_active", "upstream_rq_pending_active", "membership_total",
	"membership_healthy", "outlier_detection.ejections_active", "circuit_breakers.default.cx_open",
	"circuit_breakers.default.rq_pending_open", "circuit_breakers.default.rq_open", "circuit_breakers.default.rq_retry_open",
}

// String is the name that follows "cluster.<name>." in Envoy.
func (s Stat) String() string { return statNames[s] }

// Gauge says that the value may fall.
func (s Stat) Gauge() bool { return s >= CxActive }

// perProcess says that each loop reports the same value of the whole process.
func (s Stat) perProcess() bool { return s >= MembershipTotal || s == MembershipChange }

// Counts are the statistics of one cluster, by Stat.
type Counts [statCount]uint64

// Stats are the statistics of one cluster on one or all loops. Statuses counts
// responses by status code.
type Stats struct {
	Counts
	Statuses []StatusCount
}

// StatusCount is how often a status was answered.
type StatusCount struct {
	Status int
	Count  uint64
}

// Add merges what another loop counted.
func (s *Stats) Add(o *Stats) {
	for i, v := range o.Counts {
		if Stat(i).perProcess() {
			s.Counts[i] = max(s.Counts[i], v)
		} else {
			s.Counts[i] += v
		}
	}
	for _, c := range o.Statuses {
		s.answered(c.Status, c.Count)
	}
}

// answered counts a status. A cluster answers with few different ones.
func (s *Stats) answered(status int, n uint64) {
	for i := range s.Statuses {
		if s.Statuses[i].Status == status {
			s.Statuses[i].Count += n
			return
		}
	}
	s.Statuses = append(s.Statuses, StatusCount{status, n})
}

// Summary is how an exchange with a cluster ended, retries and all.
type Summary struct {
	// Status is what the client got, 0 for nothing.
	Status         int
	Retries        int
	RetryLimit     bool // a retry was wanted, but none was left
	Timeout        bool
	PerTryTimeouts int
}

// Completed counts an exchange as a whole. r is the request of its last attempt.
func (m *Manager) Completed(r *Request, s Summary) {
	c := r.cluster
	if c == nil {
		return
	}
	n := &c.stats.Counts
	n[RqRetry] += uint64(s.Retries)
	n[RqPerTryTimeout] += uint64(s.PerTryTimeouts)
	if s.RetryLimit {
		n[RqRetryLimitExceeded]++
	}
	if s.Timeout {
		n[RqTimeout]++
	}
	if s.Status < 100 || s.Status > 599 {
		return
	}
	n[RqCompleted]++
	n[Rq1xx+Stat(s.Status/100-1)]++
	c.stats.answered(s.Status, 1)
	if s.Retries > 0 && s.Status < 500 {
		n[RqRetrySuccess]++
	}
}

// hostCounts are the statistics of one endpoint.
type hostCounts struct {
	CxTotal, CxConnectFail                 uint64
	RqTotal, RqSuccess, RqError, RqTimeout uint64
}

// finished counts how an exchange with the endpoint ended.
func (h *host) finished(o Outcome) {
	n := &h.cluster.stats.Counts
	switch o.Reset {
	case message.ResetNone:
	case message.ResetCancel:
		n[RqTxReset]++
	case message.ResetTermination:
		n[CxDestroyRemoteWithActiveRq]++
		n[CxDestroyWithActiveRq]++
	default:
		n[RqRxReset]++
	}
	switch {
	case o.TimedOut:
		h.counts.RqTimeout++
		h.counts.RqError++
	case o.Status >= 500 || o.Status == 0 && o.Reset != message.ResetCancel:
		h.counts.RqError++
	case o.Status > 0:
		h.counts.RqSuccess++
	}
}

// connecting counts a connection that is begun.
func (h *host) connecting() {
	h.counts.CxTotal++
	h.cluster.stats.Counts[CxTotal]++
}

// connectFailed counts a connection that never came to be.
func (h *host) connectFailed(err *Error) {
	n := &h.cluster.stats.Counts
	h.counts.CxConnectFail++
	n[CxConnectFail]++
	n[CxDestroy]++
	switch err.Code {
	case message.ResetConnectTimeout:
		n[CxConnectTimeout]++
	case message.ResetTLSFailure:
		n[TLSConnectionError]++
	}
}

// disconnected counts the end of a connection, by us or by the server.
func (h *host) disconnected(ours bool) {
	n := &h.cluster.stats.Counts
	n[CxDestroy]++
	if ours {
		n[CxDestroyLocal]++
	} else {
		n[CxDestroyRemote]++
	}
}

// connected counts a connection that came to be.
func (h *host) connected() {
	if h.tls != nil {
		h.cluster.stats.Counts[TLSHandshake]++
	}
}

// speaks counts a connection by the version of HTTP on it.
func (h *host) speaks(p message.Protocol) {
	if p == message.HTTP2 {
		h.cluster.stats.Counts[CxHTTP2Total]++
		return
	}
	h.cluster.stats.Counts[CxHTTP1Total]++
}

// ClusterStats are the statistics of this loop's living clusters, by name.
func (m *Manager) ClusterStats() map[string]*Stats {
	out := make(map[string]*Stats, len(m.clusters))
	for name, c := range m.clusters {
		s := &Stats{Counts: c.stats.Counts, Statuses: slices.Clone(c.stats.Statuses)}
		c.gauges(&s.Counts)
		out[name] = s
	}
	return out
}

// ResetStats begins to count anew.
func (m *Manager) ResetStats() {
	for _, c := range m.clusters {
		c.stats = Stats{}
		for _, h := range c.hosts {
			h.counts = hostCounts{}
		}
		for _, h := range c.dynamic {
			h.counts = hostCounts{}
		}
	}
}

// gauges looks how things are now.
func (c *cluster) gauges(n *Counts) {
	count := func(h *host) {
		waiting := 0
		for _, p := range h.pools {
			n[CxActive] += uint64(p.connections + p.dialing)
			waiting += p.waiting.len
		}
		n[CxActive] += uint64(h.tcp)
		n[RqPendingActive] += uint64(waiting)
		n[RqActive] += uint64(max(0, h.active-waiting-h.tcp))
		n[MembershipTotal]++
		switch {
		case h.flags != nil && h.flags.ejected.Load():
			n[EjectionsActive]++
		case h.endpoint.Health != snapshot.Unhealthy && h.endpoint.Health != snapshot.Draining:
			n[MembershipHealthy]++
		}
	}
	for _, h := range c.hosts {
		count(h)
	}
	for _, h := range c.dynamic {
		count(h)
	}
	l, s := c.shared.limits.Load(), c.shared
	for _, b := range [...]struct {
		stat  Stat
		used  int64
		limit uint32
	}{
		{CxOpen, s.connections.Load(), l.MaxConnections},
		{RqPendingOpen, s.pending.Load(), l.MaxPending},
		{RqOpen, s.requests.Load(), l.MaxRequests},
		{RqRetryOpen, s.retries.Load(), l.MaxRetries},
	} {
		if b.used >= int64(b.limit) {
			n[b.stat] = 1
		}
	}
}
