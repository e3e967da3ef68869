package record

import (
	crand "crypto/rand"
	"encoding/hex"
	"math/rand/v2"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// Input is what Begin needs to know beside the request head.
type Input struct {
	// Tracing is the manager's tracing; nil leaves every trace header alone.
	Tracing   *snapshot.Tracing
	Direction snapshot.Direction
	// Edge says that the request comes from outside the mesh (a gateway that
	// uses the remote address): its x-request-id and x-envoy-force-trace are
	// not believed.
	Edge bool
	// PreserveRequestID keeps an x-request-id even at the edge.
	PreserveRequestID bool
	// Rand makes ids and sampling draws; each loop owns one, seeded from
	// crypto/rand (see NewRand).
	Rand *rand.Rand
}

// NewRand makes a generator for one loop, seeded by the system.
func NewRand() *rand.Rand {
	var seed [32]byte
	crand.Read(seed[:]) //nolint:errcheck // it never fails (crypto/rand)
	return rand.New(rand.NewChaCha8(seed))
}

// Request-id markers, the character at index 14 of the UUID (Envoy).
const (
	markNone   = '4'
	markSample = '9'
	markForced = 'a'
	markClient = 'b'
)

const markIndex = 14

type decision uint8

const (
	undecided decision = iota
	sampled
	notSampled
)

// Begin starts the trace context of one exchange: it reads the caller's context
// (W3C first, then B3), gives the request an x-request-id and decides whether
// the exchange is sampled. It edits h: a missing x-request-id is added, a trace
// context that cannot be read is dropped (W3C: restart the trace).
//
// The order of the decision is the parent's flag, the mark in x-request-id,
// x-client-trace-id, x-envoy-force-trace, then the random percentage; the
// overall percentage caps all but the parent's (Envoy:
// mutateTracingRequestHeader). It does not allocate once h has grown.
func Begin(h *message.Head, in Input) Span {
	if in.Edge {
		h.Del(message.XEnvoyForceTrace)
	}
	id := ensureRequestID(h, &in)
	var s Span
	off := in.Tracing == nil || in.Tracing.Disabled
	d := s.extract(h, !off)
	if off {
		// Nothing will be reported, so the parent that the caller wrote must
		// reach the next hop unchanged. The ids still go into access logs.
		s.Sampled = d == sampled
		return s
	}
	s.Tracing, s.inbound = in.Tracing, in.Direction == snapshot.Inbound
	if s.TraceID == ([16]byte{}) {
		putID(s.TraceID[:8], in.Rand)
		putID(s.TraceID[8:], in.Rand)
	}
	putID(s.ID[:], in.Rand)
	switch d {
	case sampled:
		s.Sampled = true
	case undecided:
		s.Sampled = sample(h, in.Tracing, id, in.Rand)
	}
	return s
}

// sample decides for an exchange whose caller did not, and marks x-request-id
// with the reason so that later hops agree.
func sample(h *message.Head, t *snapshot.Tracing, id []byte, rnd *rand.Rand) bool {
	draw, ok := requestIDDraw(id)
	if !ok || t.IgnoreRequestID {
		draw = uint32(rnd.Uint64N(10000))
	}
	mark := byte(markNone)
	switch {
	case ok && !t.IgnoreRequestID && (id[markIndex] == markSample || id[markIndex] == markForced || id[markIndex] == markClient):
		mark = id[markIndex]
	case h.Has(message.XClientTraceID) && chance(draw, t.Client):
		mark = markClient
	case h.Has(message.XEnvoyForceTrace):
		mark = markForced
	case chance(draw, t.Random):
		mark = markSample
	}
	if mark != markNone && !chance(draw, t.Overall) {
		mark = markNone
	}
	if ok {
		id[markIndex] = mark
	}
	return mark != markNone
}

// chance says whether a draw in [0, 10000) falls below percent.
func chance(draw uint32, percent float64) bool { return float64(draw) < percent*100 }

// requestIDDraw is the first 8 hex digits of a UUID modulo 10000, so that all
// hops which see the same x-request-id decide alike. ok is false when id is not
// shaped as a UUID.
func requestIDDraw(id []byte) (draw uint32, ok bool) {
	if len(id) != 36 || id[8] != '-' || id[13] != '-' || id[18] != '-' || id[23] != '-' {
		return 0, false
	}
	var b [4]byte
	if _, err := hex.Decode(b[:], id[:8]); err != nil {
		return 0, false
	}
	return (uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])) % 10000, true
}

// ensureRequestID returns the x-request-id in h, adding one when it is missing
// or, at the edge, not to be believed. The slice may be written in place.
func ensureRequestID(h *message.Head, in *Input) []byte {
	if id := h.Get(message.XRequestID); len(id) > 0 && (!in.Edge || in.PreserveRequestID) {
		return id
	}
	var raw [16]byte
	putID(raw[:8], in.Rand)
	putID(raw[8:], in.Rand)
	raw[6] = raw[6]&0x0f | 0x40 // RFC 9562 version 4
	raw[8] = raw[8]&0x3f | 0x80
	var b [36]byte
	hex.Encode(b[:8], raw[:4])
	hex.Encode(b[9:13], raw[4:6])
	hex.Encode(b[14:18], raw[6:8])
	hex.Encode(b[19:23], raw[8:10])
	hex.Encode(b[24:], raw[10:])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	h.Set(message.XRequestID, b[:])
	return h.Get(message.XRequestID)
}

// putID fills 8 bytes with a random id that is not zero.
func putID(b []byte, rnd *rand.Rand) {
	v := rnd.Uint64()
	for v == 0 {
		v = rnd.Uint64()
	}
	for i := range b[:8] {
		b[i] = byte(v >> (56 - 8*i))
	}
}

// extract reads the caller's context into s and returns its decision. With
// mend it removes from h what cannot be believed.
func (s *Span) extract(h *message.Head, mend bool) decision {
	d := s.extractB3(h)
	fromB3 := *s
	tp, count := []byte(nil), 0
	for i := range h.Len() {
		if id, _, v, ok := h.Field(i); ok && id == message.Traceparent {
			tp, count = v, count+1
		}
	}
	if count == 1 && s.parseTraceparent(tp) {
		s.B3Single, s.B3Multi, s.b3Short, s.b3Debug = fromB3.B3Single, fromB3.B3Multi, fromB3.b3Short, fromB3.b3Debug
		if s.Sampled {
			return sampled
		}
		return notSampled
	}
	if mend { // without a valid traceparent, tracestate means nothing (W3C §3.3)
		h.Del(message.Tracestate)
		h.Del(message.Traceparent)
	}
	if count > 0 {
		// A restart of the trace: B3 that came beside it named the broken one.
		*s = Span{B3Single: fromB3.B3Single, B3Multi: fromB3.B3Multi}
		return undecided
	}
	return d
}

// parseTraceparent reads W3C Trace Context level 2; a version above 00 is read
// as far as it is known. Only lower-case hex is valid.
func (s *Span) parseTraceparent(v []byte) bool {
	if len(v) < 55 || v[2] != '-' || v[35] != '-' || v[52] != '-' {
		return false
	}
	var version, flags [1]byte
	var trace [16]byte
	var parent [8]byte
	if !unhex(version[:], v[:2]) || !unhex(trace[:], v[3:35]) || !unhex(parent[:], v[36:52]) || !unhex(flags[:], v[53:55]) {
		return false
	}
	if version[0] == 0xff || version[0] == 0 && len(v) != 55 || len(v) > 55 && v[55] != '-' {
		return false
	}
	if trace == ([16]byte{}) || parent == ([8]byte{}) {
		return false
	}
	s.TraceID, s.ParentID = trace, parent
	s.Sampled, s.random = flags[0]&1 != 0, flags[0]&2 != 0
	return true
}

// extractB3 reads the single header, else the multiple ones.
// https://github.com/openzipkin/b3-propagation
func (s *Span) extractB3(h *message.Head) decision {
	if v := h.Get(message.B3); v != nil {
		s.B3Single = true
		return s.parseB3Single(v)
	}
	trace, span := h.Get(message.XB3TraceID), h.Get(message.XB3SpanID)
	flag, debug := h.Get(message.XB3Sampled), h.Get(message.XB3Flags)
	if trace == nil && flag == nil && debug == nil {
		return undecided
	}
	s.B3Multi = true
	if (trace != nil || span != nil) && !s.b3IDs(trace, span) {
		return undecided
	}
	if len(debug) == 1 && debug[0] == '1' {
		s.b3Debug = true
		return sampled
	}
	return b3Decision(flag)
}

func (s *Span) parseB3Single(v []byte) decision {
	if len(v) <= 5 { // a decision alone
		return b3Decision(v)
	}
	n := 32
	if len(v) > 16 && v[16] == '-' {
		n = 16
	}
	if len(v) < n+17 || v[n] != '-' || !s.b3IDs(v[:n], v[n+1:n+17]) {
		return undecided
	}
	rest := v[n+17:]
	if len(rest) < 2 || rest[0] != '-' {
		return undecided
	}
	s.b3Debug = rest[1] == 'd'
	return b3Decision(rest[1:2])
}

// b3IDs takes a trace id of 64 (padded) or 128 bits and a span id. Nothing is
// taken unless both are valid.
func (s *Span) b3IDs(trace, span []byte) bool {
	var t [16]byte
	var p [8]byte
	switch len(trace) {
	case 16:
		if !unhex(t[8:], trace) {
			return false
		}
	case 32:
		if !unhex(t[:], trace) {
			return false
		}
	default:
		return false
	}
	if len(span) != 16 || !unhex(p[:], span) || t == ([16]byte{}) || p == ([8]byte{}) {
		return false
	}
	s.TraceID, s.ParentID, s.b3Short = t, p, len(trace) == 16
	return true
}

func b3Decision(v []byte) decision {
	switch string(v) {
	case "1", "d", "true":
		return sampled
	case "0", "false":
		return notSampled
	}
	return undecided
}

// unhex decodes lower-case hex of exactly the right length.
func unhex(dst, src []byte) bool {
	if len(src) != 2*len(dst) {
		return false
	}
	for i := range dst {
		hi, lo := hexDigit(src[2*i]), hexDigit(src[2*i+1])
		if hi|lo > 15 {
			return false
		}
		dst[i] = hi<<4 | lo
	}
	return true
}

func hexDigit(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	}
	return 0xff
}

// AttemptID is the span id under which the next upstream attempt goes out. On
// the inbound side the application is the server's own continuation, so that is
// the exchange's span; elsewhere every attempt has a client span of its own.
func (s *Span) AttemptID(rnd *rand.Rand) (id [8]byte) {
	if s.Tracing == nil || s.inbound {
		return s.ID
	}
	putID(id[:], rnd)
	return id
}

// Inject writes the context for one upstream attempt into its request head:
// traceparent always, B3 in the forms that arrived. Without tracing the
// caller's headers stay untouched. tracestate and baggage pass as they are.
func (s *Span) Inject(h *message.Head, attemptID [8]byte) {
	if s.Tracing == nil {
		return
	}
	var b [55]byte
	b[0], b[1], b[2], b[35], b[52], b[53], b[54] = '0', '0', '-', '-', '-', '0', '0'
	hex.Encode(b[3:35], s.TraceID[:])
	hex.Encode(b[36:52], attemptID[:])
	if s.Sampled {
		b[54]++
	}
	if s.random {
		b[54] += 2
	}
	h.Set(message.Traceparent, b[:])
	if s.B3Single || s.B3Multi {
		s.injectB3(h, b[3:35], b[36:52])
	}
}

func (s *Span) injectB3(h *message.Head, trace, span []byte) {
	if s.b3Short && [8]byte(s.TraceID[:8]) == ([8]byte{}) {
		trace = trace[16:]
	}
	flag := byte('0')
	if s.Sampled {
		flag = '1'
	}
	if s.B3Multi {
		h.Set(message.XB3TraceID, trace)
		h.Set(message.XB3SpanID, span)
		h.Del(message.XB3ParentSpanID)
		if s.ParentID != ([8]byte{}) {
			var p [16]byte
			hex.Encode(p[:], s.ParentID[:])
			h.Set(message.XB3ParentSpanID, p[:])
		}
		if !s.b3Debug { // with debug, x-b3-flags: 1 stays and implies sampled
			f := [1]byte{flag}
			h.Set(message.XB3Sampled, f[:])
		}
	}
	if s.B3Single {
		if s.b3Debug {
			flag = 'd'
		}
		var buf [51]byte
		v := append(append(append(buf[:0], trace...), '-'), span...)
		h.Set(message.B3, append(v, '-', flag))
	}
}

// HasTrace says whether the exchange belongs to a known trace.
func (s *Span) HasTrace() bool { return s.TraceID != [16]byte{} }
