package http2

import (
	"fmt"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/syntax"
)

// ErrCode is an error code of RFC 9113 §7.
type ErrCode uint32

// The error codes.
const (
	NoError            ErrCode = 0x0
	ProtocolError      ErrCode = 0x1
	InternalError      ErrCode = 0x2
	FlowControlError   ErrCode = 0x3
	SettingsTimeout    ErrCode = 0x4
	StreamClosed       ErrCode = 0x5
	FrameSizeError     ErrCode = 0x6
	RefusedStream      ErrCode = 0x7
	Cancel             ErrCode = 0x8
	CompressionError   ErrCode = 0x9
	ConnectError       ErrCode = 0xa
	EnhanceYourCalm    ErrCode = 0xb
	InadequateSecurity ErrCode = 0xc
	HTTP11Required     ErrCode = 0xd
)

var codeNames = [...]string{
	"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
	"FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
	"INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
}

// String returns the name of RFC 9113, or the number.
func (c ErrCode) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("0x%x", uint32(c))
}

// The details of %RESPONSE_CODE_DETAILS%, as in Envoy.
const (
	DetailsCodecError   = "http2.codec_error"
	detailsField        = "http2.invalid.header.field"
	detailsMessaging    = "http2.violation.of.messaging.rule"
	detailsTooMany      = "http2.too_many_headers"
	detailsOverflow     = "http2.header_overflow"
	detailsRapidReset   = "http2.rapid_reset"
	detailsEmpty        = "http2.inbound_empty_frames_flood"
	detailsPriority     = "http2.inbound_priority_frames_flood"
	detailsWindowUpdate = "http2.inbound_window_update_frames_flood"
	detailsControl      = "http2.inbound_control_frames_flood"
	detailsContinuation = "http2.inbound_continuation_frames_flood"
	detailsOutbound     = "http2.outbound_control_flood"
	detailsKeepAlive    = "http2.keepalive_timeout"
	detailsSettings     = "http2.settings_timeout"
)

// Error says why a message or a connection was refused. Errors are constants
// of the package; compare with errors.Is or by identity.
type Error struct {
	// Code is what the peer is told in RST_STREAM or GOAWAY.
	Code ErrCode
	// Status is the answer to a refused request; 0 if it was reset instead, or
	// if the whole connection ended.
	Status int
	// Reason names the rule that was broken, fit for a log line.
	Reason string

	details string
	count   func(*Stats)
}

func (e *Error) Error() string { return "HTTP/2 refused: " + e.Reason }

// Details is the response code detail of the refusal.
func (e *Error) Details() string {
	if e.details == "" {
		return DetailsCodecError
	}
	return e.details
}

// Reset is what the request path is told.
func (e *Error) Reset() message.ResetCode {
	if e == errKeepAlive || e == errSettingsLate {
		return message.ResetTermination
	}
	return message.ResetProtocol
}

func broken(code ErrCode, reason string) *Error { return &Error{Code: code, Reason: reason} }

func malformed(reason string) *Error {
	return &Error{
		Code: ProtocolError, Reason: reason, details: detailsMessaging,
		count: func(s *Stats) { s.RxMessagingError.Add(1) },
	}
}

func field(reason string) *Error {
	e := malformed(reason)
	e.details = detailsField
	return e
}

// refusal is answered with a status of its own.
func refusal(status int, reason string) *Error {
	return &Error{Code: ProtocolError, Status: status, Reason: reason, count: func(s *Stats) { s.RxMessagingError.Add(1) }}
}

func flood(reason, details string, count func(*Stats)) *Error {
	return &Error{Code: EnhanceYourCalm, Reason: reason, details: details, count: count}
}

// Errors of connections and streams. RFC 9113 unless another source is named.
var (
	errPreface       = broken(ProtocolError, "no HTTP/2 preface")
	errNoSettings    = broken(ProtocolError, "first frame is not SETTINGS")
	errFrameSize     = broken(FrameSizeError, "frame larger than announced, or of the wrong size for its type")
	errStreamZero    = broken(ProtocolError, "frame of this type on stream 0")
	errNotStreamZero = broken(ProtocolError, "frame of this type on a stream")
	errIdle          = broken(ProtocolError, "frame on an idle stream")
	errStreamID      = broken(ProtocolError, "stream identifier of the wrong side or not increasing")
	errClosed        = broken(StreamClosed, "frame on a closed stream")
	errPadding       = broken(ProtocolError, "more padding than frame")
	errContinuation  = broken(ProtocolError, "header block interrupted, or CONTINUATION without one")
	errPush          = broken(ProtocolError, "PUSH_PROMISE")
	errDependency    = broken(ProtocolError, "stream depends on itself")
	errCompression   = broken(CompressionError, "malformed header block")
	errWindow        = broken(FlowControlError, "flow-control window exceeded")
	errWindowSize    = broken(FlowControlError, "flow-control window beyond 2^31-1")
	errIncrement     = broken(ProtocolError, "WINDOW_UPDATE of 0")
	errSetting       = broken(ProtocolError, "setting out of its range")
	errSettingsAck   = broken(FrameSizeError, "SETTINGS acknowledgement with a payload")
	errHeadTimeout   = broken(ProtocolError, "frame did not arrive in time")
	errSettingsLate  = &Error{
		Code: SettingsTimeout, Reason: "SETTINGS were not acknowledged in time", details: detailsSettings,
		count: func(s *Stats) { s.SettingsTimeout.Add(1) },
	}
	errKeepAlive = &Error{
		Code: NoError, Reason: "PING was not answered in time", details: detailsKeepAlive,
		count: func(s *Stats) { s.KeepAliveTimeout.Add(1) },
	}
	errRefused = &Error{
		Code: RefusedStream, Reason: "more streams than announced",
		count: func(s *Stats) { s.RefusedStreams.Add(1) },
	}
)

// Errors of abuse; the connection ends.
var (
	errRapidReset = flood("too many streams were reset", detailsRapidReset,
		func(s *Stats) { s.RapidReset.Add(1) })
	errEmptyFlood = flood("too many frames without payload", detailsEmpty,
		func(s *Stats) { s.InboundEmptyFramesFlood.Add(1) })
	errPriorityFlood = flood("too many PRIORITY frames", detailsPriority,
		func(s *Stats) { s.InboundPriorityFramesFlood.Add(1) })
	errWindowFlood = flood("too many WINDOW_UPDATE frames", detailsWindowUpdate,
		func(s *Stats) { s.InboundWindowUpdateFramesFlood.Add(1) })
	errControlFlood = flood("too many SETTINGS, PING or unknown frames", detailsControl,
		func(s *Stats) { s.InboundControlFramesFlood.Add(1) })
	errContinuationFlood = flood("header block too long or in too many pieces", detailsContinuation,
		func(s *Stats) { s.InboundContinuationFramesFlood.Add(1) })
	errOutboundFlood = flood("peer does not read the answers it asks for", detailsOutbound,
		func(s *Stats) { s.OutboundControlFlood.Add(1) })
)

// Errors of messages; the stream is reset, or answered when a status is given.
var (
	errName            = field("malformed header name")
	errValue           = field("control character in a header value")
	errConnectionField = malformed("connection-specific header field")
	errTE              = malformed("te other than trailers")
	errPseudo          = malformed("pseudo-header field that is unknown, misplaced or repeated")
	errPseudoMissing   = malformed("pseudo-header field is missing")
	errPseudoConnect   = malformed("pseudo-header fields do not fit CONNECT")
	errMethod          = malformed("malformed :method")
	errPathEmpty       = malformed("empty :path")
	errStatus          = malformed("malformed :status")
	errSwitch          = malformed("101 in HTTP/2")
	errLengthTwice     = malformed("more than one content-length")
	errLength          = malformed("malformed content-length")
	errLengthBody      = malformed("content-length and body differ")
	errConnectBody     = malformed("CONNECT with a message body")
	errTrailer         = malformed("header not allowed among trailers")
	errTrailersEnd     = malformed("trailers without END_STREAM")
	errBeforeHead      = malformed("DATA before the response head")
	errInformational   = malformed("too many informational responses, or one that ends the stream")

	errScheme      = refusal(400, ":scheme other than http or https")
	errTarget      = refusal(400, "malformed :path")
	errFragment    = refusal(400, "# in :path")
	errTargetForm  = refusal(400, ":path does not fit the method")
	errHost        = refusal(400, "malformed host")
	errUserinfo    = refusal(400, "user information in the authority")
	errHostMissing = refusal(400, "neither :authority nor host")
	errHostTwice   = refusal(400, "more than one host")
	errHostDiffers = refusal(400, "host differs from :authority")
	errConnect     = refusal(403, "CONNECT is not allowed here")
	errPathLong    = refusal(414, ":path longer than the limit")
	errHeadLong    = &Error{
		Code: ProtocolError, Status: 431, Reason: "header list longer than the limit", details: detailsOverflow,
		count: func(s *Stats) { s.HeaderOverflow.Add(1) },
	}
	errHeaderCount = &Error{
		Code: ProtocolError, Status: 431, Reason: "more header fields than the limit", details: detailsTooMany,
		count: func(s *Stats) { s.TooManyHeaders.Add(1) },
	}
)

// problems are the refusals of what the shared grammar rejects.
var problems = [...]*Error{
	syntax.BadHost: errHost, syntax.Userinfo: errUserinfo, syntax.BadTarget: errTarget, syntax.Fragment: errFragment,
}
