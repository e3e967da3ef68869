package stream

import (
	"time"

	"lateen.dev/lateen/internal/proxy/clock"
	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
	"lateen.dev/lateen/internal/proxy/upstream"
)

// mirrorTimeout bounds a mirrored request whose route has no timeout.
const mirrorTimeout = 15 * time.Second

// shadow is a mirrored request: sent and forgotten, its response is read and
// thrown away. It outlives the exchange that it copies.
type shadow struct {
	env      *Env
	req      upstream.Request
	head     message.Head
	body     []byte // what came before the connection did
	s        message.Sender
	timer    clock.Timer
	complete bool // the whole request was handed to us
	sentEnd  bool
	gotEnd   bool
	over     bool
	status   int
}

// startMirrors copies the request to the route's mirrors.
func (x *Exchange) startMirrors(r *snapshot.Route) {
	for i := range r.Mirrors {
		m := &r.Mirrors[i]
		if x.env.Rand.Uint64()%1e6 >= uint64(m.PerMillion) {
			continue
		}
		c := x.site.Snapshot.Clusters[m.Cluster]
		if c == nil || x.upgrade {
			continue // a missing mirror is not the client's problem
		}
		x.startMirror(r, c)
	}
}

func (x *Exchange) startMirror(r *snapshot.Route, c *snapshot.Cluster) {
	s := &shadow{env: x.env}
	s.head.CopyFrom(x.head)
	s.body = append(s.body, x.body...)
	s.complete = x.reqEnded
	timeout := r.Timeout
	if timeout <= 0 {
		timeout = mirrorTimeout
	}
	s.timer = x.env.Clock.NewTimer(s.giveUp)
	s.timer.Arm(timeout)
	x.rec.Trace.Inject(&s.head, x.rec.Trace.AttemptID(x.env.Rand))
	s.req = upstream.Request{
		Cluster: c, Hash: x.hash, Hashed: x.hashed, OriginalDst: x.rec.Conn.OriginalDst,
		Downstream: x.rec.Conn.Protocol, Authority: s.head.Authority(), Receiver: s, Waiter: s,
	}
	if !s.complete {
		x.mirrors = append(x.mirrors, s)
	}
	x.env.Upstream.Open(&s.req)
}

// OnOpen implements upstream.Waiter.
func (s *shadow) OnOpen(out message.Sender, _ bool) {
	s.s = out
	if s.complete && len(s.body) == 0 {
		out.SendHead(&s.head, true)
	} else {
		out.SendHead(&s.head, false)
		out.SendData(s.body, s.complete)
	}
	s.body = nil
	s.sentEnd = s.complete
}

// OnUnavailable implements upstream.Waiter.
func (s *shadow) OnUnavailable(*upstream.Error) {
	s.over = true
	s.timer.Disarm()
}

// data takes more of the request. A mirror that cannot keep up is given up: it
// must never hold back the real request.
func (s *shadow) data(p []byte, end bool) {
	if s.over {
		return
	}
	s.complete = s.complete || end
	if s.s == nil {
		if s.body = append(s.body, p...); len(s.body) > s.env.replayBytes() {
			s.giveUp()
		}
		return
	}
	s.s.SendData(p, end)
	if end {
		s.sentEnd = true
		s.settle()
	} else if s.s.OverHigh() {
		s.giveUp()
	}
}

// requestOver says that the exchange ended; an incomplete copy is of no use.
func (s *shadow) requestOver(complete bool) {
	if !complete && !s.complete {
		s.giveUp()
	}
}

func (s *shadow) giveUp() {
	if s.over {
		return
	}
	s.over = true
	s.timer.Disarm()
	if s.s == nil {
		s.env.Upstream.Cancel(&s.req)
		return
	}
	s.s.Reset(message.ResetCancel)
	s.env.Upstream.Finish(&s.req, upstream.Outcome{Reset: message.ResetCancel})
}

func (s *shadow) settle() {
	if s.gotEnd && s.sentEnd && !s.over {
		s.over = true
		s.timer.Disarm()
		s.env.Upstream.Finish(&s.req, upstream.Outcome{Status: s.status})
	}
}

// The response of a mirror is counted for outlier detection and not used.

func (s *shadow) OnHead(h *message.Head, end bool) {
	s.status, s.gotEnd = h.Status(), end
	s.settle()
}

func (s *shadow) OnInformational(*message.Head) {}

func (s *shadow) OnData(_ []byte, end bool) {
	s.gotEnd = s.gotEnd || end
	s.settle()
}

func (s *shadow) OnTrailers(*message.Head) {
	s.gotEnd = true
	s.settle()
}

func (s *shadow) OnReset(code message.ResetCode) {
	if s.over {
		return
	}
	s.over = true
	s.timer.Disarm()
	s.env.Upstream.Finish(&s.req, upstream.Outcome{Reset: code})
}

func (s *shadow) OnDrained() {}
