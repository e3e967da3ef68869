package stream

import (
	"slices"
	"time"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/record"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// defaultBackoff is Envoy's base interval; the largest is ten times the base.
const defaultBackoff = 25 * time.Millisecond

// retryStatus tries again if the policy wants that for this response. The old
// response is thrown away.
func (x *Exchange) retryStatus(a *attempt, h *message.Head) bool {
	if x.retry == nil || !retriableStatus(x.retry, h) || !x.mayRetry() {
		return false
	}
	a.note(message.ResetNone, 0, "via_upstream")
	x.cur = nil
	if a.sentEnd && !a.gotEnd && a.open { // let a short body pass, so that the connection lives
		a.discarding = true
		a.armDiscard()
	}
	a.settle()
	if a.open && !a.discarding {
		a.abandon()
	}
	x.retryLater()
	return true
}

// retriableStatus follows Envoy's retry-on keywords.
func retriableStatus(p *snapshot.RetryPolicy, h *message.Head) bool {
	status := h.Status()
	if h.GetName("x-envoy-ratelimited") != nil {
		return p.On&snapshot.RetryOnEnvoyRateLimited != 0
	}
	switch {
	case p.On&snapshot.RetryOn5xx != 0 && status >= 500 && status <= 599:
		return true
	case p.On&snapshot.RetryOnGatewayError != 0 && status >= 502 && status <= 504:
		return true
	case p.On&snapshot.RetryOnRetriable4xx != 0 && status == 409:
		return true
	case p.On&snapshot.RetryOnRetriableStatusCodes != 0 && slices.Contains(p.StatusCodes, status):
		return true
	}
	return retriableGRPC(p, h)
}

// retryReset tries again after an attempt without a response.
func (x *Exchange) retryReset(a *attempt, code message.ResetCode) bool {
	if x.staleConnection(a, code) {
		x.staleRetry = true
		x.cur = nil
		x.startAttempt(&attempt{})
		return true
	}
	if x.retry == nil || !retriableReset(x.retry, a, code) || !x.mayRetry() {
		return false
	}
	x.cur = nil
	x.retryLater()
	return true
}

// staleConnection recognises the race of a pooled connection: the server closed
// it while our request was on the way. It is tried again once, on top of any
// policy, if that cannot do anything twice: the server promises that it saw
// nothing, or the method is idempotent. On a connection of many exchanges the
// promise may concern its very first one: the server allows fewer at once.
func (x *Exchange) staleConnection(a *attempt, code message.ResetCode) bool {
	if x.staleRetry || a.headSeen || a.s == nil || x.upgrade || x.bodyLost {
		return false
	}
	switch code {
	case message.ResetRefused:
		c := a.s.Conn()
		return !a.fresh || c.Trunk || c.Protocol == message.HTTP2
	case message.ResetTermination:
		return !a.fresh && idempotent(x.head.Method())
	}
	return false
}

// retriableReset follows Envoy's retry-on keywords for resets.
func retriableReset(p *snapshot.RetryPolicy, a *attempt, code message.ResetCode) bool {
	if code == message.ResetOverflow {
		return false // the limit stands for other attempts too
	}
	on := p.On
	switch {
	case on&(snapshot.RetryOnReset|snapshot.RetryOn5xx|snapshot.RetryOnGatewayError) != 0:
		return true
	case on&snapshot.RetryOnResetBeforeRequest != 0 && a.s == nil:
		return true
	case on&snapshot.RetryOnRefusedStream != 0 && code == message.ResetRefused:
		return true
	case on&snapshot.RetryOnConnectFailure != 0:
		return code == message.ResetConnectFailure || code == message.ResetConnectTimeout || code == message.ResetTLSFailure
	}
	return false
}

// mayRetry checks what stands against another attempt and takes one from the
// budgets. Running out of them is told by response flag.
func (x *Exchange) mayRetry() bool {
	if x.responded || x.bodyLost || x.upgrade {
		return false
	}
	if x.left == 0 {
		x.rec.Flags |= record.FlagURX
		return false
	}
	x.releaseRetry() // a further retry replaces the one in flight
	if !x.env.Upstream.RetryStart(x.rec.Cluster) {
		x.rec.Flags |= record.FlagUO
		return false
	}
	x.retrying = true
	x.left--
	return true
}

func (x *Exchange) releaseRetry() {
	if x.retrying {
		x.retrying = false
		x.env.Upstream.RetryDone(x.rec.Cluster)
	}
}

// retryLater starts the next attempt after a jittered exponential back-off
// (Envoy: a random time below base × (2^n − 1), capped).
func (x *Exchange) retryLater() {
	n := x.retry.Retries - x.left // 1 for the first retry
	x.pauseFor(waitBackoff, x.backoff(n), func() { x.startAttempt(&attempt{}) })
}

func (x *Exchange) backoff(n uint32) time.Duration {
	base, most := x.retry.BaseInterval, x.retry.MaxInterval
	if base <= 0 {
		base = defaultBackoff
	}
	if most <= 0 {
		most = 10 * base
	}
	window := most
	if n < 16 {
		window = min(most, base*time.Duration(1<<n-1))
	}
	if window <= 0 {
		return 0
	}
	return time.Duration(x.env.Rand.Uint64() % uint64(window))
}

// armPerTry bounds one attempt, from the moment the request is complete.
func (a *attempt) armPerTry() {
	if a.x.perTry <= 0 || a.headSeen || a.x.upgrade {
		return
	}
	if a.perTry == nil {
		a.perTry = a.x.env.Clock.NewTimer(a.onPerTry)
	}
	a.perTry.Arm(a.x.perTry)
}

// armDiscard bounds how long a replaced response may take to end.
func (a *attempt) armDiscard() {
	if a.perTry == nil {
		a.perTry = a.x.env.Clock.NewTimer(a.onPerTry)
	}
	a.perTry.Arm(discardTime)
}

func (a *attempt) stopPerTry() {
	if a.perTry != nil {
		a.perTry.Disarm()
	}
}

func (a *attempt) onPerTry() {
	x := a.x
	if a.discarding {
		if a.open {
			a.abandon()
		}
		return
	}
	if x.done || x.cur != a || a.headSeen {
		return
	}
	a.timedOut = true
	a.note(message.ResetCancel, record.FlagUT, "upstream_per_try_timeout")
	if x.retryTimeout() {
		x.cur = nil
		a.abandon()
		x.retryLater()
		return
	}
	x.reply(504, record.FlagUT, "upstream_per_try_timeout", "upstream request timeout")
}

// retryTimeout says whether an attempt that timed out is tried again; to Envoy
// it counts as a reset.
func (x *Exchange) retryTimeout() bool {
	const on = snapshot.RetryOnReset | snapshot.RetryOn5xx | snapshot.RetryOnGatewayError
	return x.retry != nil && x.retry.On&on != 0 && x.mayRetry()
}
