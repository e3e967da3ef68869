package record

import (
	"bytes"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// Mode chooses the attribute names of spans.
type Mode string

// The attribute modes: stable OpenTelemetry names, the names and string values
// of Envoy and Istio, or both.
const (
	ModeSemconv Mode = "semconv"
	ModeIstio   Mode = "istio"
	ModeBoth    Mode = "both"
)

// schemaURL names the semantic conventions that spans follow.
const schemaURL = "https://opentelemetry.io/schemas/1.43.0"

// scopeName is the instrumentation scope of everything the proxy reports.
const scopeName = "lateen.dev/lateen/proxy"

// Span kinds of OTLP.
const (
	kindInternal = 1
	kindServer   = 2
	kindClient   = 3
)

// Fields of opentelemetry.proto.trace.v1.Span.
const (
	spanAttr = 9
)

// tracer is the compiled form of one *snapshot.Tracing.
type tracer struct {
	stream *stream
	// constant holds attributes that are the same on every span.
	constant []byte
	tags     []tag
	max      int
}

type tag struct {
	key, fallback string
	header        string
	format        *Format
}

func (r *Recorder) tracer(t *snapshot.Tracing) *tracer {
	if c := r.tracers[t]; c != nil {
		return c
	}
	if len(r.tracers) > 256 { // tracings of old snapshots
		clear(r.tracers)
	}
	id := &r.set.opts.Identity
	c := &tracer{max: int(t.MaxTagLength)}
	if c.max == 0 {
		c.max = 256 // Envoy: max_path_tag_length
	}
	service := t.ServiceName
	if service == "" {
		service = id.serviceName()
	}
	c.stream = r.stream(streamKey{
		signal: Traces, dest: Destination{Cluster: t.Cluster, Authority: t.Authority, Path: t.HTTPPath}, service: service,
	})
	b := attr(nil, spanAttr, "component", "proxy")
	b = attr(b, spanAttr, "node_id", id.NodeID)
	b = attr(b, spanAttr, "zone", id.Zone)
	for _, own := range [][2]string{
		{"istio.canonical_service", id.CanonicalService},
		{"istio.canonical_revision", id.CanonicalRevision},
		{"istio.namespace", id.Namespace},
		{"istio.mesh_id", id.MeshID},
		{"istio.cluster_id", id.Cluster},
	} {
		// The keys of a span are unique (OTLP); a tag from configuration wins.
		if !slices.ContainsFunc(t.Tags, func(ct snapshot.CustomTag) bool { return ct.Tag == own[0] }) {
			b = attr(b, spanAttr, own[0], own[1])
		}
	}
	for _, ct := range t.Tags {
		switch {
		case ct.Header != "":
			c.tags = append(c.tags, tag{key: ct.Tag, header: string(bytes.ToLower([]byte(ct.Header))), fallback: ct.HeaderDefault})
		case ct.Environment != "":
			v := r.set.opts.Getenv(ct.Environment)
			if v == "" {
				v = ct.EnvironmentDefault
			}
			b = attr(b, spanAttr, ct.Tag, v)
		case ct.Format != "":
			f, err := ParseFormat(ct.Format)
			if err != nil {
				r.set.opts.Log.Warn("span tag is left out", "tag", ct.Tag, "error", err)
				continue
			}
			c.tags = append(c.tags, tag{key: ct.Tag, format: f})
		default:
			b = attr(b, spanAttr, ct.Tag, ct.Literal)
		}
	}
	c.constant = b
	r.tracers[t] = c
	return c
}

// serviceName is Istio's service.name, "app.namespace".
func (id *Identity) serviceName() string {
	if id.CanonicalService == "" {
		return "unknown_service"
	}
	return id.CanonicalService + "." + id.Namespace
}

// spanInfo is what differs between the spans of one exchange.
type spanInfo struct {
	id, parent [8]byte
	kind       uint64
	start      time.Time
	duration   time.Duration
	// try is nil for the span of the exchange as a whole.
	try *Attempt
	// number counts attempts from 0; whole says that the span also stands for
	// the exchange (a client with a single attempt).
	number int
	whole  bool
}

// spans encodes the spans of one sampled exchange:
//
//   - inbound: one SERVER span, child of the caller's;
//   - gateway: one SERVER span and a CLIENT child per attempt;
//   - outbound: the single attempt's CLIENT span, child of the caller's. With
//     several attempts an INTERNAL span stands for the exchange and the
//     attempts are its children, so that a trace keeps a single root.
func (r *Recorder) spans(rec *Record) {
	t := r.tracer(rec.Trace.Tracing)
	tr := &rec.Trace
	whole := spanInfo{id: tr.ID, parent: tr.ParentID, kind: kindServer, start: rec.Start, duration: rec.Total, whole: true}
	if rec.Direction != snapshot.Inbound && !rec.Gateway {
		whole.kind = kindClient
		if len(rec.Attempts) == 1 {
			a := &rec.Attempts[0]
			whole.id, whole.try = a.SpanID, a
			r.span(t, rec, whole)
			return
		}
		if len(rec.Attempts) > 1 {
			whole.kind = kindInternal
		}
	}
	r.span(t, rec, whole)
	if rec.Direction == snapshot.Inbound && !rec.Gateway {
		return
	}
	for i := range rec.Attempts {
		a := &rec.Attempts[i]
		r.span(t, rec, spanInfo{id: a.SpanID, parent: tr.ID, kind: kindClient, start: a.Start, duration: a.Duration, try: a, number: i})
	}
}

func (r *Recorder) span(t *tracer, rec *Record, s spanInfo) {
	st := t.stream
	b, at := open(st.data, 2) // ScopeSpans.spans
	b = appendBytes(b, 1, rec.Trace.TraceID[:])
	b = appendBytes(b, 2, s.id[:])
	if rec.Request != nil {
		if ts := rec.Request.Get(message.Tracestate); len(ts) > 0 {
			n := len(b)
			b = appendBytes(b, 3, ts)
			b = cleanUTF8(b, max(n, len(b)-len(ts)))
		}
	}
	if s.parent != ([8]byte{}) {
		b = appendBytes(b, 4, s.parent[:])
	}
	r.scratch = appendSpanName(r.scratch[:0], rec, s.kind, r.set.opts.Mode)
	b = appendBytes(b, 5, cleanUTF8(r.scratch, 0))
	b = appendUint(b, 6, s.kind)
	b = appendFixed64(b, 7, uint64(s.start.UnixNano()))
	b = appendFixed64(b, 8, uint64(s.start.Add(s.duration).UnixNano()))
	b = append(b, t.constant...)
	if r.set.opts.Mode != ModeIstio {
		b = r.semconv(b, rec, &s)
	}
	if r.set.opts.Mode != ModeSemconv {
		b = r.legacy(b, rec, &s)
	}
	b = r.meshAttrs(b, rec, &s)
	if s.whole {
		b = r.tags(b, t, rec)
	}
	b = spanStatus(b, rec, &s)
	flags := uint32(0x100) // the remote flag is known
	if s.kind != kindClient || s.try == nil || !rec.Gateway {
		flags |= 0x200 // the parent is in another process
	}
	if rec.Trace.Sampled {
		flags |= 1
	}
	b = appendFixed32(b, 16, flags)
	st.data = closeMsg(b, at)
	st.count++
	r.mark()
	if len(st.data) >= streamBytes {
		r.handOver(st.key, st)
	}
}

// routeTemplate is the low-cardinality path of the matched route.
func routeTemplate(b []byte, rt *snapshot.Route) []byte {
	if rt == nil {
		return b
	}
	p := rt.Match.Path
	switch p.Kind {
	case snapshot.PathPrefix, snapshot.PathSeparatedPrefix:
		b = append(b, p.Text...)
		if p.Kind == snapshot.PathSeparatedPrefix && (len(b) == 0 || b[len(b)-1] != '/') {
			b = append(b, '/')
		}
		return append(b, '*')
	case snapshot.PathExact, snapshot.PathTemplate:
		return append(b, p.Text...)
	case snapshot.PathRegex:
		if p.Text == "" && p.Regex != nil {
			return append(b, p.Regex.String()...)
		}
		return append(b, p.Text...)
	}
	return b
}

func appendSpanName(b []byte, rec *Record, kind uint64, mode Mode) []byte {
	if mode == ModeIstio && rec.Route != nil && rec.Route.Decorator != "" {
		return append(b, rec.Route.Decorator...)
	}
	if rec.Request == nil {
		return append(b, "tcp"...)
	}
	b = append(b, rec.Request.Method()...)
	// A client does not know the server's template: only its own route says
	// something when it is more than "everything".
	n := len(b)
	b = routeTemplate(append(b, ' '), rec.Route)
	if len(b) == n+1 {
		return b[:n]
	}
	return b
}

func (r *Recorder) semconv(b []byte, rec *Record, s *spanInfo) []byte {
	if q := rec.Request; q != nil {
		b = attrClean(b, "http.request.method", q.Method())
		host, port := splitAuthority(q.Authority())
		b = attrClean(b, "server.address", host)
		if port > 0 {
			b = attrInt(b, spanAttr, "server.port", int64(port))
		}
		if s.kind == kindServer {
			b = attrClean(b, "url.path", r.originalPath(rec, false))
			b = attrClean(b, "url.query", r.originalPath(rec, true))
			b = attrClean(b, "url.scheme", q.Scheme())
		} else {
			r.scratch = appendURL(r.scratch[:0], rec)
			b = attrClean(b, "url.full", r.scratch)
		}
		r.scratch = routeTemplate(r.scratch[:0], rec.Route)
		b = attrClean(b, "http.route", r.scratch)
		b = attrClean(b, "user_agent.original", q.Get(message.UserAgent))
		b = attr(b, spanAttr, "network.protocol.name", "http")
		b = attr(b, spanAttr, "network.protocol.version", protocolVersion(rec.Conn))
	}
	if code := s.status(rec); code > 0 {
		b = attrInt(b, spanAttr, "http.response.status_code", int64(code))
	}
	if s.whole {
		b = attrInt(b, spanAttr, "http.request.body.size", int64(rec.BytesReceived))
		b = attrInt(b, spanAttr, "http.response.body.size", int64(rec.BytesSent))
	}
	peer := netip.AddrPort{}
	switch {
	case s.try != nil:
		peer = s.try.Remote
		if s.number > 0 {
			b = attrInt(b, spanAttr, "http.request.resend_count", int64(s.number))
		}
	case s.kind == kindServer && rec.Conn != nil:
		peer = rec.Conn.Remote
		b = attrAddr(b, &r.scratch, "client.address", peer.Addr())
	}
	if peer.IsValid() {
		b = attrAddr(b, &r.scratch, "network.peer.address", peer.Addr())
		b = attrInt(b, spanAttr, "network.peer.port", int64(peer.Port()))
	}
	if e := s.errorType(rec); e != "" {
		b = attr(b, spanAttr, "error.type", e)
	}
	if st, ok := grpcStatus(rec); ok && s.whole {
		b = attr(b, spanAttr, "rpc.system.name", "grpc")
		b = attrClean(b, "rpc.method", bytes.TrimPrefix(rec.Request.PathOnly(), []byte("/")))
		b = attr(b, spanAttr, rpcStatusKey, strconv.Itoa(st))
	}
	return b
}

// rpcStatusKey was renamed between semantic conventions 1.43 and 1.45
// (rpc.status_code); it changes together with schemaURL.
const rpcStatusKey = "rpc.response.status_code"

// legacy writes the tags of Envoy's tracers; all values are strings.
func (r *Recorder) legacy(b []byte, rec *Record, s *spanInfo) []byte {
	if q := rec.Request; q != nil {
		b = attrClean(b, "http.method", q.Method())
		r.scratch = appendURL(r.scratch[:0], rec)
		b = attrClean(b, "http.url", r.scratch)
		b = attr(b, spanAttr, "http.protocol", connProtocol(rec.Conn))
		b = attrClean(b, "user_agent", q.Get(message.UserAgent))
	}
	r.scratch = strconv.AppendInt(r.scratch[:0], int64(s.status(rec)), 10)
	b = attr(b, spanAttr, "http.status_code", r.scratch)
	r.scratch = strconv.AppendUint(r.scratch[:0], rec.BytesReceived, 10)
	b = attr(b, spanAttr, "request_size", r.scratch)
	r.scratch = strconv.AppendUint(r.scratch[:0], rec.BytesSent, 10)
	b = attr(b, spanAttr, "response_size", r.scratch)
	if rec.Conn != nil {
		b = attrAddr(b, &r.scratch, "peer.address", rec.Conn.Remote.Addr())
	}
	if n := len(rec.Attempts); n > 1 {
		b = attr(b, spanAttr, "retry.count", strconv.Itoa(n-1))
	}
	if s.failed(rec) {
		b = attr(b, spanAttr, "error", "true")
	}
	if st, ok := grpcStatus(rec); ok {
		b = attrClean(b, "grpc.path", rec.Request.Path())
		b = attr(b, spanAttr, "grpc.status_code", strconv.Itoa(st))
	}
	return b
}

// meshAttrs writes what dashboards for Istio read, who the peer is, and where
// the decision came from.
func (r *Recorder) meshAttrs(b []byte, rec *Record, s *spanInfo) []byte {
	if rec.Request != nil {
		b = attrClean(b, "guid:x-request-id", rec.Request.Get(message.XRequestID))
		b = attrClean(b, "guid:x-client-trace-id", rec.Request.Get(message.XClientTraceID))
	}
	b = attr(b, spanAttr, "upstream_cluster", rec.ClusterName)
	b = attr(b, spanAttr, "upstream_cluster.name", rec.ClusterName)
	flags, details := rec.Flags, rec.Details
	if s.try != nil && !s.whole {
		flags, details = s.try.Flags, s.try.Details
	}
	r.scratch = flags.Append(r.scratch[:0])
	b = attr(b, spanAttr, "response_flags", r.scratch)
	if flags != 0 || rec.Last() == nil {
		b = attr(b, spanAttr, "response_code_details", details)
		b = cleanUTF8(b, len(b)-len(details))
	}
	if s.try != nil {
		if s.try.Remote.IsValid() {
			r.scratch = s.try.Remote.AppendTo(r.scratch[:0])
			b = attr(b, spanAttr, "upstream_address", r.scratch)
		}
	}
	if s.whole {
		b = r.peerAttrs(b, rec)
	}
	if rec.Decider != "" {
		b = attr(b, spanAttr, "lateen.origin", string(rec.Decider))
		b = attr(b, spanAttr, "lateen.origin.source", r.set.opts.Origins(rec.Decider))
	}
	b = dryRunAttrs(b, spanAttr, &rec.DryRun)
	return attr(b, spanAttr, "lateen.policy", rec.Policy)
}

// dryRunAttrs writes Istio's tags about policies on trial.
func dryRunAttrs(b []byte, field int, d *snapshot.DryRun) []byte {
	b = attr(b, field, "istio.authorization.dry_run.allow_policy.name", d.Allow.Policy)
	b = attr(b, field, "istio.authorization.dry_run.allow_policy.result", d.Allow.Result)
	b = attr(b, field, "istio.authorization.dry_run.deny_policy.name", d.Deny.Policy)
	return attr(b, field, "istio.authorization.dry_run.deny_policy.result", d.Deny.Result)
}

func (r *Recorder) peerAttrs(b []byte, rec *Record) []byte {
	var k SeriesKey
	r.fillKey(&k, rec)
	own := &r.set.opts.Identity.Workload
	source, destination, sp, dp := own, &k.Peer, k.OwnPrincipal, k.PeerPrincipal
	if k.Reporter == "destination" {
		source, destination, sp, dp = &k.Peer, own, k.PeerPrincipal, k.OwnPrincipal
	}
	b = attr(b, spanAttr, "istio.source_workload", source.Name)
	b = attr(b, spanAttr, "istio.source_namespace", source.Namespace)
	b = attr(b, spanAttr, "istio.source_canonical_service", source.CanonicalService)
	b = attr(b, spanAttr, "istio.destination_workload", destination.Name)
	b = attr(b, spanAttr, "istio.destination_namespace", destination.Namespace)
	b = attr(b, spanAttr, "istio.destination_canonical_service", destination.CanonicalService)
	b = attr(b, spanAttr, "istio.destination_canonical_revision", destination.CanonicalRevision)
	b = attr(b, spanAttr, "source.principal", sp)
	return attr(b, spanAttr, "destination.principal", dp)
}

func (r *Recorder) tags(b []byte, t *tracer, rec *Record) []byte {
	for i := range t.tags {
		tg := &t.tags[i]
		var v []byte
		if tg.format != nil {
			r.scratch = tg.format.Append(r.scratch[:0], rec, &r.set.env)
			v = r.scratch
		} else if rec.Request != nil {
			v = rec.Request.GetName(tg.header)
		}
		if len(v) > t.max {
			v = v[:t.max]
		}
		if v == nil {
			b = attr(b, spanAttr, tg.key, tg.fallback)
			continue
		}
		b = attrClean(b, tg.key, v)
	}
	return b
}

// status is the response status of the span, 0 if there was none.
func (s *spanInfo) status(rec *Record) int {
	if s.try != nil && !s.whole {
		return s.try.Status
	}
	return rec.Status
}

func (s *spanInfo) failed(rec *Record) bool {
	code := s.status(rec)
	if s.try != nil && s.try.Reset != message.ResetNone {
		return true
	}
	if st, ok := grpcStatus(rec); ok && s.whole {
		return st != 0
	}
	if s.kind == kindServer {
		return code >= 500 || code == 0
	}
	return code >= 400 || code == 0
}

// errorType is the semantic convention's error.type: the response flag when
// there is one, else the status.
func (s *spanInfo) errorType(rec *Record) string {
	if !s.failed(rec) {
		return ""
	}
	flags := rec.Flags
	if s.try != nil && !s.whole {
		flags = s.try.Flags
	}
	if flags != 0 {
		return flags.String()
	}
	if code := s.status(rec); code > 0 {
		return strconv.Itoa(code)
	}
	return "_OTHER"
}

// spanStatus writes Span.status. Unset is left out.
func spanStatus(b []byte, rec *Record, s *spanInfo) []byte {
	if !s.failed(rec) {
		return b
	}
	details := rec.Details
	if s.try != nil && !s.whole {
		details = s.try.Details
	}
	b, at := open(b, 15)
	if details != "" && details != "via_upstream" {
		n := len(b)
		b = cleanUTF8(appendStr(b, 2, details), n+1+varintLen(len(details)))
	}
	return closeMsg(appendUint(b, 3, 2), at)
}

// attrClean is attr for bytes from the wire.
func attrClean(b []byte, key string, v []byte) []byte {
	b = attr(b, spanAttr, key, v)
	return cleanUTF8(b, len(b)-len(v))
}

func attrAddr(b []byte, scratch *[]byte, key string, a netip.Addr) []byte {
	if !a.IsValid() {
		return b
	}
	*scratch = a.Unmap().AppendTo((*scratch)[:0])
	return attr(b, spanAttr, key, *scratch)
}

// originalPath is the path (or query) as the client sent it.
func (r *Recorder) originalPath(rec *Record, query bool) []byte {
	p := rec.Request.Path()
	if rec.OriginalPath != "" {
		r.scratch = append(r.scratch[:0], rec.OriginalPath...)
		p = r.scratch
	}
	i := bytes.IndexByte(p, '?')
	switch {
	case i < 0 && query:
		return nil
	case i < 0:
		return p
	case query:
		return p[i+1:]
	}
	return p[:i]
}

// appendURL appends the full URL as the client sent it. User information never
// appears in a request target of origin form.
func appendURL(b []byte, rec *Record) []byte {
	q := rec.Request
	if s := q.Scheme(); len(s) > 0 {
		b = append(b, s...)
	} else {
		b = append(b, "http"...)
	}
	b = append(append(b, "://"...), q.Authority()...)
	if rec.OriginalPath != "" {
		return append(b, rec.OriginalPath...)
	}
	return append(b, q.Path()...)
}

func splitAuthority(a []byte) (host []byte, port int) {
	i := bytes.LastIndexByte(a, ':')
	if i < 0 || bytes.IndexByte(a[i:], ']') >= 0 {
		return bytes.Trim(a, "[]"), 0
	}
	if bytes.IndexByte(a, ':') != i && a[0] != '[' {
		return a, 0 // a bare IPv6 address
	}
	for _, c := range a[i+1:] {
		if c < '0' || c > '9' || port > 65535 {
			return a, 0
		}
		port = port*10 + int(c-'0')
	}
	return bytes.Trim(a[:i], "[]"), port
}

func protocolVersion(c *message.Conn) string {
	if c == nil {
		return ""
	}
	switch c.Protocol {
	case message.HTTP10:
		return "1.0"
	case message.HTTP11:
		return "1.1"
	case message.HTTP2:
		return "2"
	}
	return ""
}

func connProtocol(c *message.Conn) string {
	if c == nil {
		return "-"
	}
	return c.Protocol.String()
}
