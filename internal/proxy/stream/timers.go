package stream

import (
	"time"

	"lateen.dev/lateen/internal/proxy/record"
)

// armDeadline starts the timeout of the whole exchange; it runs from the moment
// the request is complete (Envoy: route timeout).
func (x *Exchange) armDeadline() {
	if x.timeout <= 0 || x.upgrade {
		return
	}
	if x.deadline == nil {
		x.deadline = x.env.Clock.NewTimer(x.onDeadline)
	}
	x.deadline.Arm(x.timeout)
}

func (x *Exchange) onDeadline() {
	if x.done {
		return
	}
	if a := x.cur; a != nil && a.open {
		a.timedOut = true
		a.note(0, record.FlagUT, "response_timeout")
	}
	if x.capped {
		x.abort(408, record.FlagDT, "max_duration_timeout", "downstream duration timeout")
		return
	}
	x.abort(504, record.FlagUT, "response_timeout", "upstream request timeout")
}

// abort ends the exchange with a reply, or with a reset when the response has
// begun.
func (x *Exchange) abort(status int, flags record.Flags, details, body string) {
	if !x.responded {
		x.reply(status, flags, details, body)
		return
	}
	x.rec.Flags |= flags
	x.rec.Details = details
	x.resetDown()
}

// armIdle keeps the idle timer of the exchange running. Activity only notes the
// time; the timer looks at it when it fires, so that data costs no timer work.
func (x *Exchange) armIdle() {
	if x.idleFor == 0 {
		x.idleFor = x.site.Manager.StreamIdleTimeout
	}
	d := x.idleFor
	if t := x.site.Manager.RequestTimeout; t > 0 && !x.reqEnded && (d <= 0 || t < d) {
		d = t
	}
	if d <= 0 {
		return
	}
	if x.idle == nil {
		x.idle = x.env.Clock.NewTimer(x.onIdle)
	}
	x.idle.Arm(d)
}

func (x *Exchange) onIdle() {
	if x.done {
		return
	}
	now := x.env.Clock.Now()
	if t := x.site.Manager.RequestTimeout; t > 0 && !x.reqEnded && now-x.startAt >= int64(t) {
		x.abort(408, 0, "request_overall_timeout", "request timeout")
		return
	}
	if x.idleFor <= 0 {
		x.armIdle()
		return
	}
	if left := x.lastActive + int64(x.idleFor) - now; left > 0 {
		x.idle.Arm(time.Duration(left))
		return
	}
	status := 408
	if x.reqEnded {
		status = 504
	}
	x.abort(status, record.FlagSI, "stream_idle_timeout", "stream timeout")
}
