// Package http1 is the HTTP/1.1 codec of the proxy: it turns the bytes of a
// message.Transport into message events and message events into bytes, on the
// server side (downstream) and the client side (upstream).
//
// It is strict where leniency has been exploited: one framing, one host form,
// no bare line feeds, no folding, no duplicate lengths; what it refuses is
// answered and the connection ends. Hop-by-hop fields stop here. Names reach
// the request path in lower case, values trimmed. A message that was cut short
// never looks complete to the other side: it becomes a reset.
//
// One exchange at a time is in flight on a connection; pipelined requests wait
// unread. Everything runs on the loop of the transport. The codec does not
// route, retry, log, or add date, server or tracing fields: that is the request
// path's.
package http1

import (
	"time"

	"lateen.dev/lateen/internal/proxy/loop"
	"lateen.dev/lateen/internal/proxy/message"
)

// Timers is the clock of the loop that owns a connection; *loop.Loop is one.
type Timers interface {
	Arm(t *loop.Timer, d time.Duration)
	Disarm(t *loop.Timer)
}

// heads is what an exchange borrows while it lasts.
type heads struct {
	head, extra message.Head
}

// Pool lends memory to the connections of one loop, so that an idle connection
// owns none. Not safe for concurrent use.
type Pool struct {
	free, limbo []*heads
	later       func(func())
	recycleFunc func()
	scratch     []byte
	meta        meta
}

// NewPool makes the pool of one loop. later is (*loop.Loop).Later: heads are
// lent anew only after the round in which their exchange ended, because the
// request path still reads them to write its record. A nil later leaves
// returned heads to the garbage collector.
func NewPool(later func(func())) *Pool {
	p := &Pool{later: later}
	p.recycleFunc = p.recycle
	return p
}

// keepHeads bounds the heads a pool holds for reuse, and keepHeadBytes the size
// of one that is worth holding.
const (
	keepHeads     = 256
	keepHeadBytes = 16 << 10
)

func (p *Pool) get() *heads {
	if n := len(p.free); n > 0 {
		h := p.free[n-1]
		p.free = p.free[:n-1]
		return h
	}
	return &heads{}
}

func (p *Pool) put(h *heads) {
	if h == nil || p.later == nil || len(p.limbo)+len(p.free) >= keepHeads ||
		h.head.Size() > keepHeadBytes || h.extra.Size() > keepHeadBytes {
		return
	}
	if len(p.limbo) == 0 {
		p.later(p.recycleFunc)
	}
	p.limbo = append(p.limbo, h)
}

func (p *Pool) recycle() {
	p.free = append(p.free, p.limbo...)
	clear(p.limbo)
	p.limbo = p.limbo[:0]
}
