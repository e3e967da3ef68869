package stream

import (
	"bytes"
	"math"
	"strconv"
	"time"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/record"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// The gRPC status codes that the proxy itself gives or acts on.
const (
	grpcCancelled         = 1
	grpcUnknown           = 2
	grpcDeadlineExceeded  = 4
	grpcPermissionDenied  = 7
	grpcResourceExhausted = 8
	grpcUnimplemented     = 12
	grpcInternal          = 13
	grpcUnavailable       = 14
	grpcUnauthenticated   = 16
)

var grpcType = []byte("application/grpc")

// isGRPC says whether a content type is gRPC's (gRPC-Web is another).
func isGRPC(contentType []byte) bool {
	return bytes.HasPrefix(contentType, grpcType) &&
		(len(contentType) == len(grpcType) || contentType[len(grpcType)] == '+' || contentType[len(grpcType)] == ';')
}

// frames finds the messages in a gRPC body, which arrives in any pieces: a byte
// of flags, four of length, the message (gRPC over HTTP/2, "Length-Prefixed-Message").
type frames struct {
	have   uint8 // bytes of the prefix seen
	length uint32
	left   uint32 // bytes of the message to come
}

// count returns how many messages begin in p; one begins when its prefix is
// complete.
func (f *frames) count(p []byte) (n uint64) {
	for len(p) > 0 {
		if f.left > 0 {
			skip := min(f.left, uint32(min(len(p), math.MaxInt32)))
			f.left -= skip
			p = p[skip:]
			continue
		}
		if f.have > 0 {
			f.length = f.length<<8 | uint32(p[0])
		}
		p = p[1:]
		if f.have++; f.have == 5 {
			f.left = f.length
			f.have, f.length = 0, 0
			n++
		}
	}
	return n
}

// parseGRPCTimeout reads "8 digits and a unit"; anything longer is invalid
// (gRPC over HTTP/2, "Timeout").
func parseGRPCTimeout(v []byte) (time.Duration, bool) {
	if len(v) < 2 || len(v) > 9 {
		return 0, false
	}
	n, err := strconv.ParseUint(string(v[:len(v)-1]), 10, 32)
	if err != nil {
		return 0, false
	}
	var unit time.Duration
	switch v[len(v)-1] {
	case 'H':
		unit = time.Hour
	case 'M':
		unit = time.Minute
	case 'S':
		unit = time.Second
	case 'm':
		unit = time.Millisecond
	case 'u':
		unit = time.Microsecond
	case 'n':
		unit = time.Nanosecond
	default:
		return 0, false
	}
	const longest = time.Duration(math.MaxInt64)
	if time.Duration(n) > longest/unit {
		return longest, true
	}
	return time.Duration(n) * unit, true
}

// replyGRPC tells a gRPC client in its own terms: HTTP 200, and a gRPC status
// without any message ("trailers only").
func (x *Exchange) replyGRPC(status int, flags record.Flags, details, body string) {
	code := grpcOfReply(status)
	if flags&record.FlagDT != 0 {
		code = grpcDeadlineExceeded // the time that the client itself gave
	}
	x.beginReply(200)
	x.respHead.AddString(message.ContentType, "application/grpc")
	x.respHead.AddString(message.GRPCStatus, strconv.Itoa(code))
	if body != "" {
		x.env.buf = appendGRPCMessage(x.env.buf[:0], body)
		x.respHead.Add(message.GRPCMessage, x.env.buf)
	}
	x.sendReply(flags, details, nil)
}

// grpcOfReply is the gRPC status of a local reply (gRPC: HTTP to gRPC status
// code mapping; Envoy: httpToGrpcStatus). A timeout of the route is
// UNAVAILABLE like other answers of a gateway; only the client's own deadline
// is DEADLINE_EXCEEDED.
func grpcOfReply(status int) int {
	switch status {
	case 400:
		return grpcInternal
	case 401:
		return grpcUnauthenticated
	case 403:
		return grpcPermissionDenied
	case 404:
		return grpcUnimplemented
	case 429, 502, 503, 504:
		return grpcUnavailable
	}
	return grpcUnknown
}

// httpOfGRPC is what a gRPC status means to outlier detection (Envoy:
// grpcToHttpStatus).
func httpOfGRPC(code int) int {
	switch code {
	case 0:
		return 200
	case grpcCancelled:
		return 499
	case 3, 9, 11: // INVALID_ARGUMENT, FAILED_PRECONDITION, OUT_OF_RANGE
		return 400
	case grpcDeadlineExceeded:
		return 504
	case 5: // NOT_FOUND
		return 404
	case 6, 10: // ALREADY_EXISTS, ABORTED
		return 409
	case grpcPermissionDenied:
		return 403
	case grpcResourceExhausted:
		return 429
	case grpcUnimplemented:
		return 501
	case grpcUnavailable:
		return 503
	case grpcUnauthenticated:
		return 401
	}
	return 500
}

// grpcStatus reads grpc-status of a head or of trailers.
func grpcStatus(h *message.Head) (int, bool) {
	v := h.Get(message.GRPCStatus)
	if len(v) == 0 || len(v) > 3 {
		return 0, false
	}
	n := 0
	for _, c := range v {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, true
}

// retriableGRPC looks at a trailers-only gRPC response; one whose head has gone
// to the client already cannot be tried again.
func retriableGRPC(p *snapshot.RetryPolicy, h *message.Head) bool {
	code, ok := grpcStatus(h)
	if !ok {
		return false
	}
	switch code {
	case grpcCancelled:
		return p.On&snapshot.RetryOnGRPCCancelled != 0
	case grpcDeadlineExceeded:
		return p.On&snapshot.RetryOnGRPCDeadlineExceeded != 0
	case grpcResourceExhausted:
		return p.On&snapshot.RetryOnGRPCResourceExhausted != 0
	case grpcInternal:
		return p.On&snapshot.RetryOnGRPCInternal != 0
	case grpcUnavailable:
		return p.On&snapshot.RetryOnGRPCUnavailable != 0
	}
	return false
}

// appendGRPCMessage percent-encodes a text for grpc-message (gRPC over HTTP/2,
// "Percent-Encoded").
func appendGRPCMessage(b []byte, text string) []byte {
	const hexDigits = "0123456789ABCDEF"
	for i := range len(text) {
		c := text[i]
		if c < ' ' || c > '~' || c == '%' {
			b = append(b, '%', hexDigits[c>>4], hexDigits[c&15])
			continue
		}
		b = append(b, c)
	}
	return b
}
