package record

import (
	"bytes"
	"sort"
	"unicode/utf8"

	"lateen.dev/lateen/internal/proxy/snapshot"
)

// DefaultJSON is Istio's default JSON access log: key → format.
func DefaultJSON() map[string]string {
	return map[string]string{
		"start_time": "%START_TIME%", "route_name": "%ROUTE_NAME%", "method": "%REQ(:METHOD)%",
		"path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%", "protocol": "%PROTOCOL%", "response_code": "%RESPONSE_CODE%",
		"response_flags": "%RESPONSE_FLAGS%", "response_code_details": "%RESPONSE_CODE_DETAILS%",
		"connection_termination_details": "%CONNECTION_TERMINATION_DETAILS%", "bytes_received": "%BYTES_RECEIVED%",
		"bytes_sent": "%BYTES_SENT%", "duration": "%DURATION%", "upstream_service_time": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
		"x_forwarded_for": "%REQ(X-FORWARDED-FOR)%", "user_agent": "%REQ(USER-AGENT)%", "request_id": "%REQ(X-REQUEST-ID)%",
		"authority": "%REQ(:AUTHORITY)%", "upstream_host": "%UPSTREAM_HOST%", "upstream_cluster": "%UPSTREAM_CLUSTER_RAW%",
		"upstream_local_address": "%UPSTREAM_LOCAL_ADDRESS%", "downstream_local_address": "%DOWNSTREAM_LOCAL_ADDRESS%",
		"downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS%", "requested_server_name": "%REQUESTED_SERVER_NAME%",
		"upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
	}
}

// CheckAccessLog says whether the formats of an access log can be compiled, so
// that a bad one is refused with its configuration.
func CheckAccessLog(a *snapshot.AccessLog) error {
	_, err := compileLogger(a)
	return err
}

// logger is the compiled form of one *snapshot.AccessLog.
type logger struct {
	path   string
	text   *Format
	keys   []string
	values []*Format
	only   Flags
	// lines is where lines for a file wait.
	lines *lineBuffer
	// stream is set when the log goes to an OTLP service, hub when a copy goes
	// to the hub.
	stream, hub *stream
}

func compileLogger(a *snapshot.AccessLog) (*logger, error) {
	l := &logger{path: a.Path}
	for _, n := range a.OnlyFlags {
		l.only |= ParseFlag(n)
	}
	text := a.Format
	if text == "" && (len(a.JSON) == 0 || a.Path == "") {
		text = DefaultFormat
	}
	var err error
	if text != "" {
		if l.text, err = ParseFormat(text); err != nil {
			return nil, err
		}
	}
	for k := range a.JSON {
		l.keys = append(l.keys, k)
	}
	sort.Strings(l.keys)
	for _, k := range l.keys {
		f, err := ParseFormat(a.JSON[k])
		if err != nil {
			return nil, err
		}
		l.values = append(l.values, f)
	}
	return l, nil
}

// logger finds or compiles the logger of a. A format that does not compile was
// refused with its configuration; should one slip through, the default is used
// and said so.
func (r *Recorder) logger(a *snapshot.AccessLog) *logger {
	if l := r.logs[a]; l != nil {
		return l
	}
	if len(r.logs) > 256 { // logs of old snapshots
		clear(r.logs)
	}
	l, err := compileLogger(a)
	if err != nil {
		r.set.opts.Log.Warn("access log uses Istio's default format instead of its own", "error", err)
		l, _ = compileLogger(&snapshot.AccessLog{Path: a.Path, OnlyFlags: a.OnlyFlags})
	}
	if a.Path != "" {
		l.lines = r.lineBuffer(a.Path)
	}
	if r.set.opts.Exporter != nil {
		service := r.set.opts.Identity.serviceName()
		switch {
		case a.Path == "":
			name := a.LogName
			if name == "" {
				name = "otel_envoy_accesslog"
			}
			l.stream = r.stream(streamKey{signal: Logs, dest: Destination{Cluster: a.Cluster}, service: service, logName: name})
		case r.set.opts.HubLogs:
			l.hub = r.stream(streamKey{signal: Logs, service: service, logName: "access"})
		}
	}
	r.logs[a] = l
	return l
}

// lineBuffer holds the lines of one loop for one file.
type lineBuffer struct {
	path  string
	data  []byte
	lines int
}

func (r *Recorder) lineBuffer(path string) *lineBuffer {
	b := r.lines[path]
	if b == nil {
		b = &lineBuffer{path: path}
		r.lines[path] = b
	}
	return b
}

// handOverLines gives what b holds to the writer of its file.
func (r *Recorder) handOverLines(b *lineBuffer) {
	b.data, b.lines = r.set.files.write(b.path, b.data, b.lines), 0
}

func (r *Recorder) accessLogs(logs []*snapshot.AccessLog, rec *Record) {
	for _, a := range logs {
		l := r.logger(a)
		if l.only != 0 && rec.Flags&l.only == 0 {
			continue
		}
		if l.path == "" {
			if l.stream != nil {
				r.logRecord(l.stream, l, rec)
			}
			continue
		}
		b := l.lines
		at := len(b.data)
		if l.text != nil && len(l.keys) == 0 {
			b.data = l.text.Append(b.data, rec, &r.set.env)
		} else {
			b.data = l.appendJSON(b.data, rec, &r.set.env)
		}
		b.data = oneLine(b.data, at)
		b.lines++
		r.mark()
		if len(b.data) >= fileBytes {
			r.handOverLines(b)
		}
		if l.hub != nil {
			r.logRecord(l.hub, l, rec)
		}
	}
}

// oneLine makes the entry from at on exactly one line: what a client sent must
// not forge a second one.
func oneLine(b []byte, at int) []byte {
	n := len(b)
	for n > at && b[n-1] == '\n' {
		n--
	}
	for _, end := range [...]byte{'\n', '\r'} {
		for line := b[at:n]; ; { // IndexByte looks at many bytes in one step
			i := bytes.IndexByte(line, end)
			if i < 0 {
				break
			}
			line[i] = ' '
			line = line[i+1:]
		}
	}
	return append(b[:n], '\n')
}

// appendJSON writes the fields in key order. A lone operator keeps its type and
// is null when unset; everything else is a string.
func (l *logger) appendJSON(b []byte, rec *Record, env *Env) []byte {
	b = append(b, '{')
	for i, k := range l.keys {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(quote(b, k), ':')
		p := l.values[i].single()
		n := len(b)
		if p == nil {
			b = l.values[i].Append(b, rec, env)
			b = quoteFrom(b, n)
			continue
		}
		var ok bool
		b, ok = p.append(b, rec, env)
		switch {
		case !ok:
			b = append(b[:n], "null"...)
		case !p.numeric:
			b = quoteFrom(b, n)
		}
	}
	return append(b, '}', '\n')
}

func quote(b []byte, s string) []byte { return quoteFrom(append(b, s...), len(b)) }

// quoteFrom turns b[at:] into a JSON string.
func quoteFrom(b []byte, at int) []byte {
	plain := true
	for _, c := range b[at:] {
		if c < 0x20 || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			plain = false
			break
		}
	}
	if plain {
		b = append(b, 0)
		copy(b[at+1:], b[at:])
		b[at] = '"'
		return append(b, '"')
	}
	raw := string(b[at:])
	b = append(b[:at], '"')
	const digits = "0123456789abcdef"
	for _, c := range raw { // invalid bytes become U+FFFD
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', byte(c))
		case c < 0x20:
			b = append(b, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		default:
			b = utf8.AppendRune(b, c)
		}
	}
	return append(b, '"')
}

// logRecord encodes one OTLP log record: body is the text form, attributes the
// labels of the configuration (else Istio's JSON keys), and the ids join it to
// its trace.
func (r *Recorder) logRecord(s *stream, l *logger, rec *Record) {
	b, at := open(s.data, 2) // ScopeLogs.log_records
	end := rec.Start.Add(rec.Total)
	b = appendFixed64(b, 1, uint64(rec.Start.UnixNano()))
	b = appendFixed64(b, 11, uint64(end.UnixNano()))
	number, text := severity(rec)
	b = appendUint(b, 2, number)
	b = appendStr(b, 3, text)
	if l.text != nil {
		r.scratch = l.text.Append(r.scratch[:0], rec, &r.set.env)
	} else {
		r.scratch = l.appendJSON(r.scratch[:0], rec, &r.set.env)
	}
	body := cleanUTF8(r.scratch, 0)
	for len(body) > 0 && body[len(body)-1] == '\n' {
		body = body[:len(body)-1]
	}
	b = appendVarint(appendTag(b, 5, wireLen), uint64(1+varintLen(len(body))+len(body)))
	b = appendBytes(b, 1, body)
	for i, k := range l.keys {
		r.scratch = l.values[i].Append(r.scratch[:0], rec, &r.set.env)
		b = attr(b, 6, k, cleanUTF8(r.scratch, 0))
	}
	if rec.Decider != "" {
		b = attr(b, 6, "lateen.origin", string(rec.Decider))
		b = attr(b, 6, "lateen.origin.source", r.set.opts.Origins(rec.Decider))
	}
	b = attr(b, 6, "lateen.policy", rec.Policy)
	b = dryRunAttrs(b, 6, &rec.DryRun)
	if rec.Trace.HasTrace() {
		flags := uint32(0)
		if rec.Trace.Sampled {
			flags = 1
		}
		b = appendFixed32(b, 8, flags)
		b = appendBytes(b, 9, rec.Trace.TraceID[:])
		if id := rec.logSpan(); id != ([8]byte{}) {
			b = appendBytes(b, 10, id[:])
		}
	}
	b = appendStr(b, 12, "lateen.access")
	s.data = closeMsg(b, at)
	s.count++
	r.mark()
	if len(s.data) >= streamBytes {
		r.handOver(s.key, s)
	}
}

// logSpan is the span that stands for the exchange.
func (r *Record) logSpan() [8]byte {
	if r.Direction == snapshot.Outbound && !r.Gateway && len(r.Attempts) == 1 {
		return r.Attempts[0].SpanID
	}
	return r.Trace.ID
}

// severity judges an exchange by its outcome: 5xx and failures are errors,
// refusals warnings.
func severity(rec *Record) (number uint64, text string) {
	switch {
	case rec.Status >= 500, rec.Status == 0 && rec.Flags != 0:
		return 17, "ERROR"
	case rec.Status >= 400, rec.Flags != 0:
		return 13, "WARN"
	}
	return 9, "INFO"
}
