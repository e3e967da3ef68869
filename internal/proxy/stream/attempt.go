package stream

import (
	"bytes"
	"strconv"
	"strings"
	"time"

	"lateen.dev/lateen/internal/proxy/clock"
	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/record"
	"lateen.dev/lateen/internal/proxy/snapshot"
	"lateen.dev/lateen/internal/proxy/upstream"
)

// discardBytes and discardTime bound what is read of a response that a retry
// replaces, so that its connection can be used again.
const (
	discardBytes = 64 << 10
	discardTime  = time.Second
)

// attempt is one upstream try. It receives the response's events.
type attempt struct {
	x   *Exchange
	req upstream.Request
	s   message.Sender
	at  int // index in rec.Attempts

	open     bool // the upstream exchange is not over
	fresh    bool
	headSeen bool
	sentEnd  bool // all of the request was sent
	gotEnd   bool // all of the response came
	paused   bool
	timedOut bool
	// discarding: a retry took over; what still comes is thrown away.
	discarding bool
	discarded  int
	// status is that of the response, grpc what its gRPC status means in HTTP, 0
	// for none.
	status, grpc int
	startAt      int64
	perTry       clock.Timer
}

// startAttempt asks for an upstream exchange.
func (x *Exchange) startAttempt(a *attempt) {
	a.x, a.at, a.startAt = x, len(x.rec.Attempts), x.env.Clock.Now()
	x.cur = a
	x.rec.Attempts = append(x.rec.Attempts, record.Attempt{Start: x.env.Clock.Wall()})
	a.req = upstream.Request{
		Cluster: x.rec.Cluster, Hash: x.hash, Hashed: x.hashed, OriginalDst: x.rec.Conn.OriginalDst,
		Downstream: x.rec.Conn.Protocol,
		Authority:  x.head.Authority(), Receiver: a, Waiter: a,
	}
	if x.retry != nil && x.retry.PreviousHosts {
		a.req.Tried = x.tried
	}
	x.env.Upstream.Open(&a.req)
}

// OnOpen implements upstream.Waiter: there is a connection, so the request goes out.
func (a *attempt) OnOpen(s message.Sender, fresh bool) {
	x := a.x
	a.s, a.open, a.fresh = s, true, fresh
	x.live++
	x.tried = append(x.tried, a.req.Address)
	c := s.Conn()
	rec := a.record()
	rec.Endpoint, rec.Remote, rec.Local, rec.TLS = a.req.Endpoint, a.req.Address, c.Local, c.TLS
	h := x.head
	if r := x.rec.Route; r.AutoHost && a.req.Endpoint != nil && a.req.Endpoint.Host != "" {
		x.setHost(r, a.req.Endpoint.Host)
	}
	if x.rec.VirtualHost.IncludeAttemptCount {
		var n [4]byte
		h.Set(message.XEnvoyAttemptCount, strconv.AppendInt(n[:0], int64(len(x.rec.Attempts)), 10))
	}
	rec.SpanID = x.rec.Trace.AttemptID(x.env.Rand)
	x.rec.Trace.Inject(h, rec.SpanID)
	if x.bodyLost { // cannot happen: such an exchange is not tried again
		s.Reset(message.ResetCancel)
		a.closed(upstream.Outcome{Reset: message.ResetCancel})
		x.abort(503, record.FlagLR, "request_not_replayable", "")
		return
	}
	a.sendRequest()
}

// sendRequest sends what there is of the request; the rest follows as it comes.
func (a *attempt) sendRequest() {
	x := a.x
	complete := x.reqEnded && !x.hasTrailers
	a.sentEnd = complete && len(x.body) == 0
	a.s.SendHead(x.head, a.sentEnd)
	if a.current() && !a.sentEnd && (len(x.body) > 0 || complete) {
		a.sentEnd = complete
		a.s.SendData(x.body, complete)
	}
	if a.current() && x.reqEnded && x.hasTrailers {
		a.sentEnd = true
		a.s.SendTrailers(&x.reqTrailers)
	}
	if !a.current() { // answered or reset meanwhile
		return
	}
	if len(x.body) > x.env.replayBytes() {
		x.bodyLost = true
		x.body = x.body[:0]
	}
	if x.reqEnded {
		a.armPerTry()
	}
	x.pauseDown(a.s.OverHigh())
}

// current says that the attempt is the one the exchange lives by.
func (a *attempt) current() bool { return a.open && a.x.cur == a && !a.x.done }

// sendData forwards body bytes; a full upstream stops the client.
func (a *attempt) sendData(p []byte, end bool) {
	a.sentEnd = end
	a.s.SendData(p, end)
	if end {
		a.settle()
		return
	}
	if a.current() && a.s.OverHigh() {
		a.x.pauseDown(true)
	}
}

// pauseDown stops or resumes reading the request.
func (x *Exchange) pauseDown(on bool) {
	if x.paused != on && !x.reqEnded {
		x.paused = on
		x.down.Pause(on)
	}
}

// OnUnavailable implements upstream.Waiter: there is no exchange to be had.
func (a *attempt) OnUnavailable(err *upstream.Error) {
	x := a.x
	if x.done || x.cur != a {
		return
	}
	rec := a.record()
	rec.Endpoint, rec.Remote = a.req.Endpoint, a.req.Address
	if a.req.Address.IsValid() {
		x.tried = append(x.tried, a.req.Address)
	}
	if err.NoHost {
		x.rec.UpstreamError = ""
		if err.DNS {
			x.rec.UpstreamError = err.Reason
		}
		a.note(message.ResetNone, record.FlagUH, "no_healthy_upstream")
		x.cur = nil
		x.reply(503, record.FlagUH, "no_healthy_upstream", "no healthy upstream")
		return
	}
	x.attemptFailed(a, err.Code, err.Reason)
}

func (a *attempt) record() *record.Attempt { return &a.x.rec.Attempts[a.at] }

// note writes how the attempt ended.
func (a *attempt) note(code message.ResetCode, flags record.Flags, details string) {
	rec := a.record()
	rec.Reset, rec.Flags, rec.Details = code, rec.Flags|flags, details
	rec.Duration = time.Duration(a.x.env.Clock.Now() - a.startAt)
}

// OnInformational implements message.Receiver: 100 and 103 pass on.
func (a *attempt) OnInformational(h *message.Head) {
	x := a.x
	if x.done || x.cur != a || x.responded {
		return
	}
	x.down.SendInformational(h)
}

// OnHead implements message.Receiver: the response begins, unless it is one to
// be tried again.
func (a *attempt) OnHead(h *message.Head, end bool) {
	x := a.x
	a.headSeen = true
	a.gotEnd = a.gotEnd || end
	a.stopPerTry()
	if x.done || x.cur != a {
		a.settle()
		return
	}
	x.lastActive = x.env.Clock.Now()
	rec := a.record()
	rec.Status, a.status = h.Status(), h.Status()
	rec.Details = "via_upstream"
	a.readGRPC(h)
	if x.retryStatus(a, h) {
		return
	}
	x.respond(a, h, end)
}

// respond passes the response head on.
func (x *Exchange) respond(a *attempt, h *message.Head, end bool) {
	now := x.env.Clock.Now()
	x.rec.FirstUpstreamByte = time.Duration(now - x.startAt)
	switched := h.Status() == 101 || x.upgrade && string(x.head.Method()) == "CONNECT" && h.Status()/100 == 2
	x.peerFromResponse(h)
	since := x.requestAt
	if since == 0 {
		since = x.startAt
	}
	var n [20]byte
	h.Set(message.XEnvoyUpstreamServiceTime, strconv.AppendInt(n[:0], (now-since)/int64(time.Millisecond), 10))
	x.applyResponseOps(h)
	x.finishHead(h)
	x.rec.Response, x.rec.Status = h, h.Status()
	x.rec.Details = "via_upstream"
	x.responded = true
	if !x.bodyLost {
		x.body = x.body[:0] // nothing will be replayed any more
	}
	if switched && x.deadline != nil {
		x.deadline.Disarm()
	}
	x.down.SendHead(h, end)
	if end {
		x.responseOver(a)
	}
}

// peerFromResponse takes the workload description of the upstream proxy; on the
// way back from our own application we add ours instead.
func (x *Exchange) peerFromResponse(h *message.Head) {
	if h.Has(message.XEnvoyPeerMetadata) {
		if x.rec.Direction != snapshot.Inbound && x.env.Peers != nil {
			if w, ok := x.env.Peers.Read(h.Get(message.XEnvoyPeerMetadataID), h.Get(message.XEnvoyPeerMetadata)); ok {
				x.rec.Peer = w
			}
		}
		h.Del(message.XEnvoyPeerMetadata)
		h.Del(message.XEnvoyPeerMetadataID)
	}
	if x.rec.Direction == snapshot.Inbound && x.rec.Peer != (snapshot.Workload{}) {
		x.addPeer(h)
	}
}

// OnData implements message.Receiver.
func (a *attempt) OnData(p []byte, end bool) {
	x := a.x
	a.gotEnd = a.gotEnd || end
	if x.done || x.cur != a {
		a.discard(len(p))
		return
	}
	x.lastActive = x.env.Clock.Now()
	x.rec.BytesSent += uint64(len(p))
	if x.grpc {
		x.rec.ResponseMessages += x.gotFrames.count(p)
	}
	x.down.SendData(p, end)
	if end {
		x.responseOver(a)
		return
	}
	if !x.done && !a.paused && a.open && x.down.OverHigh() {
		a.paused = true
		a.s.Pause(true)
	}
}

// discard counts what is thrown away and gives up on a long response.
func (a *attempt) discard(n int) {
	a.discarded += n
	if !a.gotEnd && a.discarded > discardBytes {
		a.abandon()
		return
	}
	a.settle()
}

// OnTrailers implements message.Receiver.
func (a *attempt) OnTrailers(h *message.Head) {
	x := a.x
	a.gotEnd = true
	a.readGRPC(h)
	if x.done || x.cur != a {
		a.settle()
		return
	}
	x.rec.Trailers = h
	x.down.SendTrailers(h)
	x.responseOver(a)
}

// responseOver ends the exchange after a complete response. If the request is
// not complete the client's side is drained or closed by its codec.
func (x *Exchange) responseOver(a *attempt) {
	a.note(message.ResetNone, 0, "via_upstream")
	x.cur = nil
	a.settle()
	if a.open { // answered early: the rest of the request is of no use
		a.abandon()
	}
	x.finish()
}

// settle gives the connection back once both directions are over.
func (a *attempt) settle() {
	if a.open && a.gotEnd && a.sentEnd {
		a.closed(a.answered())
	}
}

// readGRPC notes the gRPC status of a response head or of its trailers.
func (a *attempt) readGRPC(h *message.Head) {
	if !a.x.grpc {
		return
	}
	if code, ok := grpcStatus(h); ok {
		a.grpc = httpOfGRPC(code)
	}
}

// answered is the outcome of an attempt that got a response: for gRPC its own
// status says how the server fares.
func (a *attempt) answered() upstream.Outcome {
	if a.grpc != 0 {
		return upstream.Outcome{Status: a.grpc}
	}
	return upstream.Outcome{Status: a.status}
}

// closed reports the end of the upstream exchange.
func (a *attempt) closed(o upstream.Outcome) {
	a.open = false
	a.x.live--
	a.stopPerTry()
	a.x.env.Upstream.Finish(&a.req, o)
}

// abandon stops an attempt that nobody wants any more.
func (a *attempt) abandon() {
	if !a.open {
		a.x.env.Upstream.Cancel(&a.req)
		return
	}
	a.x.untrusted = true
	a.s.Reset(message.ResetCancel)
	o := upstream.Outcome{Reset: message.ResetCancel, TimedOut: a.timedOut}
	if a.headSeen {
		o = a.answered()
	}
	if a.open {
		a.closed(o)
	}
}

// OnDrained implements message.Receiver: the upstream took what we sent.
func (a *attempt) OnDrained() {
	if x := a.x; !x.done && x.cur == a {
		x.pauseDown(false)
	}
}

// OnReset implements message.Receiver.
func (a *attempt) OnReset(code message.ResetCode) {
	if !a.open {
		return
	}
	x := a.x
	x.untrusted = true
	wanted := !x.done && x.cur == a
	if code == message.ResetRemote && a.s.Conn().Trunk {
		// A stream of a trunk stands for a connection, and the peer closed it.
		code = message.ResetTermination
	}
	o := upstream.Outcome{Reset: code}
	if a.headSeen && !wanted {
		o = a.answered()
	}
	a.closed(o)
	if !wanted {
		return
	}
	if x.responded {
		flags, name := resetMeaning(code)
		details := "upstream_reset_after_response_started{" + underscore(name) + "}"
		a.note(code, flags, details)
		x.cur = nil
		x.abort(0, flags, details, "")
		return
	}
	x.attemptFailed(a, code, "")
}

// resetMeaning gives the response flag of a reset and Envoy's words for it.
func resetMeaning(code message.ResetCode) (record.Flags, string) {
	switch code {
	case message.ResetConnectFailure, message.ResetTLSFailure:
		return record.FlagUF, "remote connection failure"
	case message.ResetConnectTimeout:
		return record.FlagUF, "connection timeout"
	case message.ResetTermination:
		return record.FlagUC, "connection termination"
	case message.ResetRemote:
		return record.FlagUR, "remote reset"
	case message.ResetRefused:
		return record.FlagUR, "remote refused stream reset"
	case message.ResetProtocol:
		return record.FlagUPE, "protocol error"
	case message.ResetOverflow:
		return record.FlagUO, "overflow"
	}
	return record.FlagLR, "local reset"
}

// underscore makes a reason fit into a detail string.
func underscore(s string) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r == 0x7f {
			return '_'
		}
		return r
	}, s)
}

// attemptFailed decides about an attempt that ended without a response: once
// more, or an answer that says what happened.
func (x *Exchange) attemptFailed(a *attempt, code message.ResetCode, transport string) {
	if x.capped && x.env.Clock.Now()-x.startAt >= int64(x.timeout) {
		x.onDeadline() // the server keeps the client's deadline too, and its reset came before our timer
		return
	}
	flags, name := resetMeaning(code)
	details := "upstream_reset_before_response_started{" + underscore(name)
	if transport != "" && code != message.ResetOverflow {
		details += "|" + underscore(transport)
		x.rec.UpstreamError = transport
	}
	details += "}"
	a.note(code, flags, details)
	if x.retryReset(a, code) {
		return
	}
	x.cur = nil
	body := "upstream connect error or disconnect/reset before headers. reset reason: " + name
	if len(x.rec.Attempts) > 1 {
		body = "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: " + name
	}
	status := 503
	if code == message.ResetProtocol {
		status = 502
	}
	x.reply(status, flags, details, body)
}

// idempotent methods may be sent again though the server may have seen them
// (RFC 9110 §9.2.2).
func idempotent(method []byte) bool {
	for _, m := range [...]string{"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"} {
		if bytes.Equal(method, []byte(m)) {
			return true
		}
	}
	return false
}
