// Package record turns what happened to a request or connection into its three
// telemetry forms: an access-log line, metric increments and OTLP spans. The
// request path fills one Record per exchange and one Attempt per upstream try,
// and hands the Record over exactly once at the end, on the loop that owned it.
//
// Encoders write OTLP bytes directly; no OpenTelemetry SDK is involved.
// Metrics and buffers are per loop and read by exporters through snapshots.
package record

import (
	"net/netip"
	"time"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// Flags is a set of Envoy response flags.
type Flags uint64

// The response flags, named as in access logs.
const (
	FlagLH    Flags = 1 << iota // failed local health check
	FlagUH                      // no healthy upstream
	FlagUT                      // upstream request timeout
	FlagLR                      // local reset
	FlagUR                      // upstream remote reset
	FlagUF                      // upstream connection failure
	FlagUC                      // upstream connection termination
	FlagUO                      // upstream overflow
	FlagNR                      // no route
	FlagDI                      // delay injected
	FlagFI                      // fault injected
	FlagRL                      // rate limited
	FlagUAEX                    // denied by external authorization
	FlagRLSE                    // rate limit service error
	FlagDC                      // downstream connection termination
	FlagURX                     // upstream retry limit exceeded
	FlagSI                      // stream idle timeout
	FlagIH                      // invalid strict-checked header
	FlagDPE                     // downstream protocol error
	FlagUMSDR                   // max stream duration reached
	FlagNC                      // no cluster
	FlagUPE                     // upstream protocol error
	FlagDT                      // downstream request timeout by duration
	FlagOM                      // overload manager
	FlagDF                      // DNS resolution failed
	FlagDR                      // downstream reset the stream
)

// Record is one finished exchange. Heads are borrowed until Done returns.
type Record struct {
	Start time.Time
	// Durations since Start; zero when the event did not happen.
	RequestRead, FirstUpstreamByte, Total time.Duration

	Conn      *message.Conn
	Direction snapshot.Direction
	// Gateway marks a router; spans and reporter labels depend on it.
	Gateway  bool
	Manager  *snapshot.HTTPManager
	Listener *snapshot.Listener

	// Request is the request head as it arrived after normalization; nil for TCP.
	Request  *message.Head
	Response *message.Head // what the client got; nil when nothing was sent
	Trailers *message.Head // response trailers, for gRPC status
	// OriginalPath is the path before a rewrite, "" if unchanged.
	OriginalPath string

	Status        int
	Flags         Flags
	Details       string // %RESPONSE_CODE_DETAILS%
	Termination   string // %CONNECTION_TERMINATION_DETAILS%
	UpstreamError string // %UPSTREAM_TRANSPORT_FAILURE_REASON%
	BytesReceived uint64
	BytesSent     uint64
	// RequestMessages and ResponseMessages count gRPC messages that passed.
	RequestMessages, ResponseMessages uint64

	VirtualHost *snapshot.VirtualHost
	Route       *snapshot.Route
	Cluster     *snapshot.Cluster
	// ClusterName is set even when the cluster does not exist.
	ClusterName string
	Attempts    []Attempt
	// Decider is the origin of what ended the exchange locally (policy, fault,
	// redirect, direct response) or chose the route.
	Decider snapshot.Origin
	// Policy is the matched authorization policy, Istio's spelling.
	Policy string
	// DryRun is what policies on trial would have decided.
	DryRun snapshot.DryRun
	// Peer describes the other side's workload as metadata exchange told it.
	Peer  snapshot.Workload
	Trace Span
}

// Attempt is one upstream try.
type Attempt struct {
	Start    time.Time
	Duration time.Duration
	Endpoint *snapshot.Endpoint
	Local    netip.AddrPort
	Remote   netip.AddrPort
	Status   int
	Reset    message.ResetCode
	Flags    Flags
	Details  string
	// SpanID is the id of this attempt's client span, sent upstream as parent.
	SpanID [8]byte
	TLS    *message.TLSInfo
}

// Last returns the last attempt, nil if none was made.
func (r *Record) Last() *Attempt {
	if len(r.Attempts) == 0 {
		return nil
	}
	return &r.Attempts[len(r.Attempts)-1]
}

// Span is the trace context of one exchange. Make it with Begin.
type Span struct {
	TraceID [16]byte
	// ParentID is the caller's span, zero for a new root. ID is the span of the
	// exchange as a whole.
	ParentID, ID [8]byte
	// Sampled exchanges are reported.
	Sampled bool
	// B3Single and B3Multi say which B3 forms arrived and must be written too.
	B3Single, B3Multi bool
	// Tracing is nil when spans are neither made nor announced upstream.
	Tracing *snapshot.Tracing
	// random is the W3C level 2 flag; b3Short a 64-bit trace id; inbound the
	// side of the application that the exchange is on.
	random, b3Short, b3Debug, inbound bool
}
