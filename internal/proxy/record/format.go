package record

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// DefaultFormat is Istio's default access-log format, with what decided at its
// end.
const DefaultFormat = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% " +
	"%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% " +
	"%DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" " +
	"\"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% " +
	"%DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME% \"%DYNAMIC_METADATA(lateen:origin)%\"\n"

// Env is what command operators may ask beside the record. Functions may be nil.
type Env struct {
	Getenv   func(string) string
	Origins  func(snapshot.Origin) string
	Hostname string
	Identity *Identity
}

func (e *Env) getenv(name string) string {
	if e == nil || e.Getenv == nil {
		return ""
	}
	return e.Getenv(name)
}

func (e *Env) origin(o snapshot.Origin) string {
	if e == nil || e.Origins == nil {
		return ""
	}
	return e.Origins(o)
}

func (e *Env) hostname() string {
	if e == nil {
		return ""
	}
	return e.Hostname
}

// Format is a compiled string with Envoy's command operators (%PROTOCOL%).
// It is immutable and safe for concurrent use.
type Format struct{ pieces []piece }

// opFunc appends the operator's value; ok is false when it is unset, and then
// nothing was appended.
type opFunc func(b []byte, rec *Record, env *Env) (out []byte, ok bool)

type piece struct {
	lit     string // literal text when op is nil
	op      opFunc
	numeric bool
	max     int // :N truncates, 0 keeps all
}

// ParseFormat compiles a format string. Unknown operators are an error that
// names them, as in Envoy.
func ParseFormat(s string) (*Format, error) {
	f := &Format{}
	lit := strings.Builder{}
	for i := 0; i < len(s); {
		if s[i] != '%' {
			lit.WriteByte(s[i])
			i++
			continue
		}
		if strings.HasPrefix(s[i:], "%%") {
			lit.WriteByte('%')
			i += 2
			continue
		}
		p, n, err := parseOperator(s[i+1:])
		if err != nil {
			return nil, fmt.Errorf("access-log format at %q: %w", clip(s[i:], 40), err)
		}
		if lit.Len() > 0 {
			f.pieces = append(f.pieces, piece{lit: lit.String()})
			lit.Reset()
		}
		f.pieces = append(f.pieces, p)
		i += 1 + n
	}
	if lit.Len() > 0 {
		f.pieces = append(f.pieces, piece{lit: lit.String()})
	}
	return f, nil
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

// parseOperator reads NAME, NAME(ARG), with an optional :N, up to and with the
// closing "%"; n is the length read.
func parseOperator(s string) (p piece, n int, err error) {
	for n < len(s) && (s[n] >= 'A' && s[n] <= 'Z' || s[n] == '_' || s[n] >= '0' && s[n] <= '9') {
		n++
	}
	name, arg := s[:n], ""
	if n < len(s) && s[n] == '(' {
		end := strings.IndexByte(s[n:], ')')
		if end < 0 {
			return piece{}, 0, fmt.Errorf("operator %s has no closing parenthesis", name)
		}
		arg = s[n+1 : n+end]
		n += end + 1
	}
	if n < len(s) && s[n] == ':' {
		d := n + 1
		for d < len(s) && s[d] >= '0' && s[d] <= '9' {
			d++
		}
		p.max, err = strconv.Atoi(s[n+1 : d])
		if err != nil || p.max < 1 {
			return piece{}, 0, fmt.Errorf("operator %s: length %q is not a positive number", name, s[n+1:d])
		}
		n = d
	}
	if n >= len(s) || s[n] != '%' {
		return piece{}, 0, fmt.Errorf("operator %q does not end with %%", name)
	}
	p.op, p.numeric, err = operator(name, arg)
	return p, n + 1, err
}

// Append appends the formatted record; unset operators print "-".
func (f *Format) Append(b []byte, rec *Record, env *Env) []byte {
	for i := range f.pieces {
		p := &f.pieces[i]
		if p.op == nil {
			b = append(b, p.lit...)
			continue
		}
		n := len(b)
		b, _ = p.append(b, rec, env)
		if len(b) == n {
			b = append(b, '-')
		}
	}
	return b
}

func (p *piece) append(b []byte, rec *Record, env *Env) ([]byte, bool) {
	n := len(b)
	b, ok := p.op(b, rec, env)
	if p.max > 0 && len(b)-n > p.max {
		b = b[:n+p.max]
	}
	return b, ok
}

// single returns the operator when the format is nothing else: JSON then keeps
// its type.
func (f *Format) single() *piece {
	if len(f.pieces) == 1 && f.pieces[0].op != nil {
		return &f.pieces[0]
	}
	return nil
}

// operator finds the implementation of one command operator.
func operator(name, arg string) (op opFunc, numeric bool, err error) {
	switch name {
	case "REQ", "RESP", "TRAILER", "REQ_WITHOUT_QUERY":
		op, err = headerOperator(name, arg)
		return op, false, err
	case "START_TIME", "START_TIME_LOCAL":
		op, err = timeOperator(arg, name == "START_TIME_LOCAL")
		return op, false, err
	case "DYNAMIC_METADATA":
		if arg == "lateen:origin" { // our own operator in words that Envoy takes
			return originOperators("LATEEN_ORIGIN"), false, nil
		}
		return metadataOperator(name, arg), false, nil
	case "METADATA", "CLUSTER_METADATA", "UPSTREAM_METADATA":
		return metadataOperator(name, arg), false, nil
	case "ENVIRONMENT":
		return func(b []byte, _ *Record, env *Env) ([]byte, bool) { return str(b, env.getenv(arg)) }, false, nil
	case "COMMON_DURATION":
		op, err = commonDuration(arg)
		return op, true, err
	case "CEL", "FILTER_STATE", "LOCAL_REPLY_BODY", "VIRTUAL_CLUSTER_NAME", "UPSTREAM_FILTER_STATE":
		// Known to Envoy, nothing of ours fills them: they are always unset.
		return func(b []byte, _ *Record, _ *Env) ([]byte, bool) { return b, false }, false, nil
	}
	if op := textOperators(name); op != nil {
		return op, false, nil
	}
	if op := addressOperators(name); op != nil {
		return op, false, nil
	}
	if f := numberOperators(name); f != nil {
		return func(b []byte, rec *Record, _ *Env) ([]byte, bool) {
			v, ok := f(rec)
			if !ok {
				return b, false
			}
			return strconv.AppendInt(b, v, 10), true
		}, true, nil
	}
	return nil, false, fmt.Errorf("operator %q is unknown", name)
}

func str[T string | []byte](b []byte, v T) ([]byte, bool) { return append(b, v...), len(v) > 0 }

// headerOperator implements REQ(NAME?ALTERNATIVE) and its kin.
func headerOperator(kind, arg string) (opFunc, error) {
	first, second, _ := strings.Cut(strings.ToLower(arg), "?")
	if first == "" {
		return nil, fmt.Errorf("operator %s needs a header name", kind)
	}
	return func(b []byte, rec *Record, _ *Env) ([]byte, bool) {
		h := rec.Request
		switch kind {
		case "RESP":
			h = rec.Response
		case "TRAILER":
			h = rec.Trailers
		}
		if h == nil {
			return b, false
		}
		n := len(b)
		for _, name := range [...]string{first, second} {
			if name == "" {
				continue
			}
			if b = appendHeader(b, h, rec, name); len(b) > n {
				break
			}
		}
		if kind == "REQ_WITHOUT_QUERY" {
			for i := n; i < len(b); i++ {
				if b[i] == '?' {
					b = b[:i]
					break
				}
			}
		}
		return b, len(b) > n
	}, nil
}

func appendHeader(b []byte, h *message.Head, rec *Record, name string) []byte {
	switch name {
	case ":method":
		return append(b, h.Method()...)
	case ":path":
		return append(b, h.Path()...)
	case ":authority":
		return append(b, h.Authority()...)
	case ":scheme":
		return append(b, h.Scheme()...)
	case ":status":
		return strconv.AppendInt(b, int64(h.Status()), 10)
	case "x-envoy-original-path":
		if rec.OriginalPath != "" && h == rec.Request {
			return append(b, rec.OriginalPath...)
		}
	}
	return append(b, h.GetName(name)...)
}

// metadataOperator knows the metadata that the control plane attaches: Istio's
// config path of cluster and route, and Lateen's origin.
func metadataOperator(name, arg string) opFunc {
	if name == "METADATA" {
		kind, rest, _ := strings.Cut(arg, ":")
		name, arg = kind, rest
	}
	return func(b []byte, rec *Record, _ *Env) ([]byte, bool) {
		switch {
		case strings.HasPrefix(name, "CLUSTER") && arg == "istio:config" && rec.Cluster != nil:
			return str(b, rec.Cluster.Config)
		case strings.HasPrefix(name, "CLUSTER") && arg == "lateen:origin" && rec.Cluster != nil:
			return str(b, string(rec.Cluster.Origin))
		case name == "ROUTE" && arg == "istio:config" && rec.Route != nil:
			return str(b, rec.Route.Config)
		case name == "ROUTE" && arg == "lateen:origin" && rec.Route != nil:
			return str(b, string(rec.Route.Origin))
		case strings.HasPrefix(name, "UPSTREAM") && arg == "istio:workload":
			if a := rec.Last(); a != nil && a.Endpoint != nil {
				w := &a.Endpoint.Workload
				b = append(append(append(append(b, w.Name...), ';'), w.Namespace...), ';')
				b = append(append(append(append(b, w.CanonicalService...), ';'), w.CanonicalRevision...), ';')
				return append(b, w.Cluster...), true
			}
		}
		return b, false
	}
}

// textOperators are the plain strings of a record.
func textOperators(name string) opFunc {
	switch name {
	case "PROTOCOL":
		return func(b []byte, rec *Record, _ *Env) ([]byte, bool) {
			if rec.Request == nil || rec.Conn == nil || rec.Conn.Protocol == message.ProtocolUnknown {
				return b, false
			}
			return str(b, rec.Conn.Protocol.String())
		}
	case "RESPONSE_FLAGS":
		return func(b []byte, rec *Record, _ *Env) ([]byte, bool) { return rec.Flags.Append(b), rec.Flags != 0 }
	case "RESPONSE_CODE_DETAILS":
		return func(b []byte, rec *Record, _ *Env) ([]byte, bool) { return spaceless(b, rec.Details) }
	case "CONNECTION_TERMINATION_DETAILS":
		return func(b []byte, rec *Record, _ *Env) ([]byte, bool) { return spaceless(b, rec.Termination) }
	case "UPSTREAM_TRANSPORT_FAILURE_REASON":
		return func(b []byte, rec *Record, _ *Env) ([]byte, bool) { return str(b, rec.UpstreamError) }
	case "UPSTREAM_CLUSTER", "UPSTREAM_CLUSTER_RAW":
		return func(b []byte, rec *Record, _ *Env) ([]byte, bool) { return str(b, rec.ClusterName) }
	case "ROUTE_NAME":
		return func(b []byte, rec *Record, _ *Env) ([]byte, bool) {
			if rec.Route == nil {
				return b, false
			}
			return str(b, rec.Route.Name)
		}
	case "FILTER_CHAIN_NAME":
		return func(b []byte, rec *Record, _ *Env) ([]byte, bool) { return b, false }
	case "REQUESTED_SERVER_NAME":
		return func(b []byte, rec *Record, _ *Env) ([]byte, bool) {
			if rec.Conn == nil {
				return b, false
			}
			return str(b, rec.Conn.SNI)
		}
	case "HOSTNAME":
		return func(b []byte, _ *Record, env *Env) ([]byte, bool) { return str(b, env.hostname()) }
	case "TRACE_ID":
		return func(b []byte, rec *Record, _ *Env) ([]byte, bool) {
			if !rec.Trace.HasTrace() {
				return b, false
			}
			return appendHex(b, rec.Trace.TraceID[:]), true
		}
	case "STREAM_ID":
		return func(b []byte, rec *Record, _ *Env) ([]byte, bool) {
			if rec.Request == nil {
				return b, false
			}
			return str(b, rec.Request.Get(message.XRequestID))
		}
	case "GRPC_STATUS":
		return func(b []byte, rec *Record, _ *Env) ([]byte, bool) {
			st, ok := grpcStatus(rec)
			if !ok {
				return b, false
			}
			if st < len(grpcNames) {
				return str(b, grpcNames[st])
			}
			return strconv.AppendInt(b, int64(st), 10), true
		}
	}
	return originOperators(name)
}

// originOperators are Lateen's own: which object decided, and the peers.
func originOperators(name string) opFunc {
	switch name {
	case "LATEEN_ORIGIN":
		// "VirtualService/a.b#spec.http[0] (file.yaml:12)"
		return func(b []byte, rec *Record, env *Env) ([]byte, bool) {
			if rec.Decider == "" {
				return b, false
			}
			return appendOrigin(b, rec.Decider, env), true
		}
	case "LATEEN_ORIGIN_ID":
		return func(b []byte, rec *Record, _ *Env) ([]byte, bool) { return str(b, string(rec.Decider)) }
	case "LATEEN_ORIGIN_SOURCE":
		return func(b []byte, rec *Record, env *Env) ([]byte, bool) {
			if rec.Decider == "" {
				return b, false
			}
			return str(b, env.origin(rec.Decider))
		}
	case "LATEEN_ROUTE_ORIGIN":
		// Of the route that was taken, whoever decided in the end.
		return func(b []byte, rec *Record, env *Env) ([]byte, bool) {
			if rec.Route == nil || rec.Route.Origin == "" {
				return b, false
			}
			return appendOrigin(b, rec.Route.Origin, env), true
		}
	case "LATEEN_POLICY":
		return func(b []byte, rec *Record, _ *Env) ([]byte, bool) { return str(b, rec.Policy) }
	case "DOWNSTREAM_PEER_URI_SAN":
		return func(b []byte, rec *Record, _ *Env) ([]byte, bool) {
			if rec.Conn == nil {
				return b, false
			}
			return str(b, rec.Conn.Principal())
		}
	case "DOWNSTREAM_LOCAL_URI_SAN":
		return downstreamTLS(func(t *message.TLSInfo) string { return t.LocalURISAN })
	case "DOWNSTREAM_PEER_SUBJECT":
		return downstreamTLS(func(t *message.TLSInfo) string { return t.PeerSubject })
	case "DOWNSTREAM_TLS_VERSION":
		return downstreamTLS(func(t *message.TLSInfo) string { return tlsVersion(t.Version) })
	case "DOWNSTREAM_TLS_CIPHER":
		return downstreamTLS(func(t *message.TLSInfo) string { return cipherName(t.CipherSuite) })
	case "UPSTREAM_PEER_URI_SAN":
		return func(b []byte, rec *Record, _ *Env) ([]byte, bool) {
			if a := rec.Last(); a != nil && a.TLS != nil && len(a.TLS.PeerURISANs) > 0 {
				return str(b, a.TLS.PeerURISANs[0])
			}
			return b, false
		}
	}
	return nil
}

// appendOrigin appends an origin and where it stands.
func appendOrigin(b []byte, o snapshot.Origin, env *Env) []byte {
	b = append(b, o...)
	if at := env.origin(o); at != "" {
		b = append(append(append(b, " ("...), at...), ')')
	}
	return b
}

func downstreamTLS(f func(*message.TLSInfo) string) opFunc {
	return func(b []byte, rec *Record, _ *Env) ([]byte, bool) {
		if rec.Conn == nil || rec.Conn.TLS == nil {
			return b, false
		}
		return str(b, f(rec.Conn.TLS))
	}
}

// spaceless replaces white space, so that the default format stays splittable
// (Envoy does the same with these two details).
func spaceless(b []byte, s string) ([]byte, bool) {
	n := len(b)
	b = append(b, s...)
	for i := n; i < len(b); i++ {
		if b[i] == ' ' || b[i] == '\t' || b[i] == '\n' || b[i] == '\r' {
			b[i] = '_'
		}
	}
	return b, len(s) > 0
}

func appendHex(b, v []byte) []byte {
	const digits = "0123456789abcdef"
	for _, c := range v {
		b = append(b, digits[c>>4], digits[c&15])
	}
	return b
}

var grpcNames = [...]string{
	"OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists", "PermissionDenied",
	"ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented", "Internal", "Unavailable", "DataLoss", "Unauthenticated",
}

// numberOperators are the integers of a record.
func numberOperators(name string) func(*Record) (int64, bool) {
	ms := func(d time.Duration) (int64, bool) { return d.Milliseconds(), d > 0 }
	switch name {
	case "RESPONSE_CODE":
		return func(rec *Record) (int64, bool) { return int64(rec.Status), true }
	case "BYTES_RECEIVED", "DOWNSTREAM_WIRE_BYTES_RECEIVED":
		return func(rec *Record) (int64, bool) { return int64(rec.BytesReceived), true }
	case "BYTES_SENT", "DOWNSTREAM_WIRE_BYTES_SENT":
		return func(rec *Record) (int64, bool) { return int64(rec.BytesSent), true }
	case "DURATION":
		return func(rec *Record) (int64, bool) { return rec.Total.Milliseconds(), true }
	case "REQUEST_DURATION":
		return func(rec *Record) (int64, bool) { return ms(rec.RequestRead) }
	case "RESPONSE_DURATION":
		return func(rec *Record) (int64, bool) { return ms(rec.FirstUpstreamByte) }
	case "RESPONSE_TX_DURATION":
		return func(rec *Record) (int64, bool) {
			return (rec.Total - rec.FirstUpstreamByte).Milliseconds(), rec.FirstUpstreamByte > 0
		}
	case "UPSTREAM_REQUEST_ATTEMPT_COUNT":
		return func(rec *Record) (int64, bool) { return int64(len(rec.Attempts)), true }
	case "CONNECTION_ID":
		return func(rec *Record) (int64, bool) {
			if rec.Conn == nil {
				return 0, false
			}
			return int64(rec.Conn.ID), true
		}
	case "GRPC_STATUS_NUMBER":
		return func(rec *Record) (int64, bool) { st, ok := grpcStatus(rec); return int64(st), ok }
	}
	return nil
}

// commonDuration implements COMMON_DURATION(FROM:TO:PRECISION) for the time
// points that a record has.
func commonDuration(arg string) (opFunc, error) {
	parts := strings.Split(arg, ":")
	if len(parts) < 2 {
		return nil, fmt.Errorf("operator COMMON_DURATION needs FROM:TO")
	}
	point := func(name string) func(*Record) (time.Duration, bool) {
		switch name {
		case "DS_RX_BEG":
			return func(*Record) (time.Duration, bool) { return 0, true }
		case "DS_RX_END":
			return func(r *Record) (time.Duration, bool) { return r.RequestRead, r.RequestRead > 0 }
		case "US_RX_BEG":
			return func(r *Record) (time.Duration, bool) { return r.FirstUpstreamByte, r.FirstUpstreamByte > 0 }
		case "DS_TX_END":
			return func(r *Record) (time.Duration, bool) { return r.Total, true }
		}
		return nil
	}
	from, to := point(parts[0]), point(parts[1])
	if from == nil || to == nil {
		return nil, fmt.Errorf("operator COMMON_DURATION: time point in %q is not recorded", arg)
	}
	unit := time.Millisecond
	if len(parts) > 2 {
		switch parts[2] {
		case "us":
			unit = time.Microsecond
		case "ns":
			unit = time.Nanosecond
		case "ms":
		default:
			return nil, fmt.Errorf("operator COMMON_DURATION: precision %q: want ms, us or ns", parts[2])
		}
	}
	return func(b []byte, rec *Record, _ *Env) ([]byte, bool) {
		f, ok1 := from(rec)
		t, ok2 := to(rec)
		if !ok1 || !ok2 {
			return b, false
		}
		return strconv.AppendInt(b, int64((t-f)/unit), 10), true
	}, nil
}
