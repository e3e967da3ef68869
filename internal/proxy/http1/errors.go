package http1

import (
	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/syntax"
)

// DetailsCodecError is Envoy's %RESPONSE_CODE_DETAILS% for a message that the
// codec refused.
const DetailsCodecError = "http1.codec_error"

// Error says why a message was refused. Errors are constants of the package;
// compare with errors.Is or by identity.
type Error struct {
	// Status is the answer to a refused request; 502 for a refused response.
	Status int
	// Reason names the rule that was broken, fit for a log line.
	Reason string
}

func (e *Error) Error() string { return "HTTP/1.1 message refused: " + e.Reason }

// Details is the response code detail of the refusal.
func (e *Error) Details() string { return DetailsCodecError }

// Reset is what the request path is told.
func (e *Error) Reset() message.ResetCode { return message.ResetProtocol }

func bad(reason string) *Error { return &Error{Status: 400, Reason: reason} }

// The refusals. RFC 9112 unless another source is named.
var (
	errBareLF         = bad("line feed without carriage return")
	errControl        = bad("control character in a header value")
	errFirstByte      = bad("first byte is not part of a method")
	errRequestLine    = bad("malformed request line")
	errVersion        = bad("unsupported HTTP version")
	errTarget         = bad("malformed request target")
	errFragment       = bad("# in request target")
	errTargetForm     = bad("request target form does not fit the method")
	errScheme         = bad("request target has a scheme other than http or https")
	errUserinfo       = bad("user information in the authority")
	errHost           = bad("malformed host")
	errHostMissing    = bad("no Host header field")
	errHostTwice      = bad("more than one Host header field")
	errFold           = bad("folded header line")
	errName           = bad("malformed header name")
	errNameEmpty      = bad("empty header name")
	errNameLong       = bad("header name longer than 256 bytes")
	errLengthTwice    = bad("more than one Content-Length")
	errLength         = bad("malformed Content-Length")
	errLengthAndTE    = bad("both Content-Length and Transfer-Encoding")
	errTE             = bad("Transfer-Encoding other than one chunked")
	errTE10           = bad("Transfer-Encoding in an HTTP/1.0 message")
	errConnectBody    = bad("CONNECT with a message body")
	errConnectionList = bad("Connection names a framing or routing header")
	errChunkSize      = bad("malformed chunk size")
	errChunkEnd       = bad("chunk data is not followed by CRLF")
	errChunkExtension = bad("chunk extensions out of proportion")
	errTrailer        = bad("header not allowed among trailers")
	errStatusLine     = bad("malformed status line")
	errInformational  = bad("too many informational responses")
	errSwitch         = bad("101 without a request to switch protocols")
	errUnsolicited    = bad("bytes on an idle upstream connection")

	errPathLong    = &Error{Status: 414, Reason: "request target longer than the limit"}
	errHeadLong    = &Error{Status: 431, Reason: "message head longer than the limit"}
	errHeaderCount = &Error{Status: 431, Reason: "more header fields than the limit"}
	errHTTP10      = &Error{Status: 426, Reason: "HTTP/1.0 is not accepted here"}
	errConnect     = &Error{Status: 403, Reason: "CONNECT is not allowed here"}
	errHeadTimeout = &Error{Status: 408, Reason: "request head did not arrive in time"}
)

// problems are the refusals of what the shared grammar rejects.
var problems = [...]*Error{
	syntax.BadHost: errHost, syntax.Userinfo: errUserinfo, syntax.BadTarget: errTarget, syntax.Fragment: errFragment,
}
