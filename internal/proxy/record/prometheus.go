package record

import (
	"bufio"
	"context"
	"io"
	"strconv"
	"strings"
	"time"

	"lateen.dev/lateen/internal/proxy/snapshot"
)

// metric describes one of Istio's standard metrics.
type metric struct {
	name, unit, help string
	tcp, grpc        bool
	sum              func(*Series) uint64
	hist             func(*Series) *Histogram
}

func metrics() []metric {
	return []metric{
		{name: "istio_requests_total", help: "requests", sum: func(s *Series) uint64 { return s.Requests }},
		{name: "istio_request_duration_milliseconds", unit: "ms", help: "duration of requests", hist: func(s *Series) *Histogram { return s.Duration }},
		{name: "istio_request_bytes", unit: "By", help: "size of request bodies", hist: func(s *Series) *Histogram { return s.RequestBytes }},
		{name: "istio_response_bytes", unit: "By", help: "size of response bodies", hist: func(s *Series) *Histogram { return s.ResponseBytes }},
		{name: "istio_request_messages_total", grpc: true, help: "gRPC messages of requests", sum: func(s *Series) uint64 { return s.RequestMessages }},
		{name: "istio_response_messages_total", grpc: true, help: "gRPC messages of responses", sum: func(s *Series) uint64 { return s.ResponseMessages }},
		{name: "istio_tcp_connections_opened_total", tcp: true, help: "opened connections", sum: func(s *Series) uint64 { return s.Opened }},
		{name: "istio_tcp_connections_closed_total", tcp: true, help: "closed connections", sum: func(s *Series) uint64 { return s.Closed }},
		{name: "istio_tcp_sent_bytes_total", unit: "By", tcp: true, help: "bytes sent to the downstream", sum: func(s *Series) uint64 { return s.Sent }},
		{name: "istio_tcp_received_bytes_total", unit: "By", tcp: true, help: "bytes received from the downstream", sum: func(s *Series) uint64 { return s.Received }},
	}
}

// of says that the metric counts what the series is about.
func (m *metric) of(s *Series) bool {
	return m.tcp == s.tcp() && (!m.grpc || s.Key.Protocol == protoGRPC)
}

// labels yields Istio's labels of a series in a fixed order. What is not known
// is "unknown", as in Istio.
func (k *SeriesKey) labels(own *snapshot.Workload, yield func(name, value string)) {
	source, destination := own, &k.Peer
	sourcePrincipal, destinationPrincipal := k.OwnPrincipal, k.PeerPrincipal
	policy := "unknown" // the source cannot know what the destination enforces
	if k.Reporter == "destination" {
		source, destination = &k.Peer, own
		sourcePrincipal, destinationPrincipal = k.PeerPrincipal, k.OwnPrincipal
		policy = "none"
		if k.MutualTLS {
			policy = "mutual_tls"
		}
	}
	known := func(name string, values ...string) {
		for _, v := range values {
			if v != "" {
				yield(name, v)
				return
			}
		}
		yield(name, "unknown")
	}
	yield("reporter", k.Reporter)
	for _, side := range [...]struct {
		prefix, principal string
		w                 *snapshot.Workload
	}{{"source_", sourcePrincipal, source}, {"destination_", destinationPrincipal, destination}} {
		known(side.prefix+"workload", side.w.Name)
		known(side.prefix+"workload_namespace", side.w.Namespace)
		known(side.prefix+"principal", side.principal)
		known(side.prefix+"app", side.w.App, side.w.CanonicalService)
		known(side.prefix+"version", side.w.Version, side.w.CanonicalRevision)
		known(side.prefix+"canonical_service", side.w.CanonicalService)
		known(side.prefix+"canonical_revision", side.w.CanonicalRevision, latest(side.w))
		known(side.prefix+"cluster", side.w.Cluster)
	}
	known("destination_service", k.Service)
	known("destination_service_name", k.ServiceName)
	known("destination_service_namespace", k.ServiceNS)
	yield("request_protocol", k.Protocol)
	if k.Protocol != protoTCP {
		yield("response_code", strconv.Itoa(int(k.Status)))
		if k.GRPCStatus >= 0 {
			yield("grpc_response_status", strconv.Itoa(int(k.GRPCStatus)))
		} else {
			yield("grpc_response_status", "")
		}
	}
	yield("response_flags", k.Flags.String())
	yield("connection_security_policy", policy)
}

func latest(w *snapshot.Workload) string {
	if w.Name == "" {
		return ""
	}
	return "latest"
}

// WritePrometheus writes the series of all loops, and the accounting of the
// recording itself, in Prometheus' text format 0.0.4.
func (s *Set) WritePrometheus(ctx context.Context, w io.Writer) error {
	series, totals := s.Collect(ctx)
	b := bufio.NewWriter(w)
	own := &s.opts.Identity.Workload
	labels := make([]string, len(series))
	for i, x := range series {
		var l strings.Builder
		x.Key.labels(own, func(name, value string) {
			if l.Len() > 0 {
				l.WriteByte(',')
			}
			l.WriteString(name + `="` + escapeLabel(value) + `"`)
		})
		labels[i] = l.String()
	}
	for _, m := range metrics() {
		kind := "counter"
		if m.hist != nil {
			kind = "histogram"
		}
		headed := false
		for i, x := range series {
			if !m.of(x) {
				continue
			}
			if !headed {
				headed = true
				b.WriteString("# TYPE " + m.name + " " + kind + "\n")
			}
			if m.hist != nil {
				writeHistogram(b, m.name, labels[i], m.hist(x))
				continue
			}
			b.WriteString(m.name + "{" + labels[i] + "} " + strconv.FormatUint(m.sum(x), 10) + "\n")
		}
	}
	s.writeAccounting(b, totals)
	return b.Flush()
}

func writeHistogram(b *bufio.Writer, name, labels string, h *Histogram) {
	var cum uint64
	for i, n := range h.Counts {
		cum += n
		le := "+Inf"
		if i < len(Bounds) {
			le = strconv.FormatFloat(Bounds[i], 'f', -1, 64)
		}
		b.WriteString(name + "_bucket{" + labels + `,le="` + le + `"} ` + strconv.FormatUint(cum, 10) + "\n")
	}
	b.WriteString(name + "_sum{" + labels + "} " + strconv.FormatFloat(h.Sum, 'g', -1, 64) + "\n")
	b.WriteString(name + "_count{" + labels + "} " + strconv.FormatUint(h.Count, 10) + "\n")
}

// writeAccounting writes how complete the telemetry itself is.
func (s *Set) writeAccounting(b *bufio.Writer, t Totals) {
	counter := func(name, labels string, v uint64) {
		if labels != "" {
			labels = "{" + labels + "}"
		}
		b.WriteString(name + labels + " " + strconv.FormatUint(v, 10) + "\n")
	}
	b.WriteString("# TYPE istio_build gauge\n")
	counter("istio_build", `component="proxy",tag="`+escapeLabel(s.opts.Identity.Version)+`"`, 1)
	b.WriteString("# TYPE lateen_series_refused_total counter\n")
	counter("lateen_series_refused_total", "", t.SeriesRefused)
	b.WriteString("# TYPE lateen_access_log_lines_total counter\n")
	counter("lateen_access_log_lines_total", `outcome="written"`, t.LogLines)
	counter("lateen_access_log_lines_total", `outcome="dropped"`, t.LogDropped)
	if s.opts.Exporter == nil {
		return
	}
	b.WriteString("# TYPE lateen_otlp_records_total counter\n")
	for sig := range signalCount {
		c := s.opts.Exporter.Counts(sig)
		label := `signal="` + sig.String() + `",outcome="`
		counter("lateen_otlp_records_total", label+`made"`, c.Made)
		counter("lateen_otlp_records_total", label+`sent"`, c.Sent)
		for _, why := range []DropReason{DropQueueFull, DropRejected, DropExpired, DropNoHub, DropShutdown} {
			if n := c.Dropped[why]; n > 0 {
				counter("lateen_otlp_records_total", label+"dropped_"+string(why)+`"`, n)
			}
		}
	}
	b.WriteString("# TYPE lateen_otlp_queued_records gauge\n")
	for sig := range signalCount {
		counter("lateen_otlp_queued_records", `signal="`+sig.String()+`"`, s.opts.Exporter.Counts(sig).Queued)
	}
}

func escapeLabel(v string) string {
	if !strings.ContainsAny(v, "\\\"\n") {
		return v
	}
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(v)
}

// exportMetrics encodes all series as cumulative OTLP metrics under their
// literal Istio names and gives them to the exporter. A data point counts as
// one record.
func (s *Set) exportMetrics(ctx context.Context) {
	series, _ := s.Collect(ctx)
	if len(series) == 0 {
		return
	}
	now := uint64(time.Now().UnixNano())
	id := &s.opts.Identity
	prefix := id.prefix(id.serviceName(), "")
	var attrs []byte
	for _, m := range metrics() {
		var data []byte
		var at, body, count int
		flush := func() {
			if count > 0 {
				data = closeMsg(closeMsg(data, body), at)
				s.opts.Exporter.enqueue(chunk{signal: Metrics, prefix: prefix, data: data, count: count})
			}
			data, count = nil, 0
		}
		for _, x := range series {
			if !m.of(x) {
				continue
			}
			if count == 0 {
				data, at, body = openMetric(&m)
			}
			attrs = attrs[:0]
			field := 7
			if m.hist != nil {
				field = 9
			}
			x.Key.labels(&id.Workload, func(name, value string) { attrs = attr(attrs, field, name, value) })
			data = appendPoint(data, &m, x, attrs, now)
			if count++; len(data) > 512<<10 {
				flush()
			}
		}
		flush()
	}
}

// openMetric begins ScopeMetrics.metrics and its Sum or Histogram.
func openMetric(m *metric) (b []byte, at, body int) {
	b, at = open(nil, 2)
	b = appendStr(b, 1, m.name)
	b = appendStr(b, 2, m.help)
	if m.unit != "" {
		b = appendStr(b, 3, m.unit)
	}
	if m.hist != nil {
		b, body = open(b, 9)
		return appendUint(b, 2, 2), at, body // cumulative
	}
	b, body = open(b, 7)
	b = appendUint(b, 2, 2)
	return appendUint(b, 3, 1), at, body // monotonic
}

func appendPoint(b []byte, m *metric, x *Series, attrs []byte, now uint64) []byte {
	b, at := open(b, 1)
	b = appendFixed64(b, 2, uint64(x.Start))
	b = appendFixed64(b, 3, now)
	b = append(b, attrs...)
	if m.hist == nil {
		return closeMsg(appendFixed64(b, 6, m.sum(x)), at)
	}
	h := m.hist(x)
	b = appendFixed64(b, 4, h.Count)
	b = appendDouble(b, 5, h.Sum)
	b, counts := open(b, 6)
	for _, n := range h.Counts {
		b = appendLE(b, n)
	}
	b = closeMsg(b, counts)
	b, bounds := open(b, 7)
	for _, v := range Bounds {
		b = appendLEFloat(b, v)
	}
	return closeMsg(closeMsg(b, bounds), at)
}
