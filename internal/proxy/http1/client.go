package http1

import (
	"lateen.dev/lateen/internal/proxy/message"
)

// ClientOptions configures upstream connections; shared like ServerOptions.
type ClientOptions struct {
	// Pool is the loop's; nil gives each connection one of its own.
	Pool   *Pool
	Limits Limits
}

// maxInformational bounds the 1xx responses before a final one.
const maxInformational = 16

type clientState uint8

const (
	clientIdle clientState = iota
	clientHead             // a request is out, the response head is awaited
	clientBody
	clientRaw
	// clientDone: the response is complete, the connection is not to be used again.
	clientDone
	clientClosed
)

// Client is the client side of one upstream connection. It implements
// message.ClientConn, and message.Sender for the exchange in flight.
type Client struct {
	t     message.Transport
	o     *ClientOptions
	obs   message.ClientObserver
	pool  *Pool
	r     message.Receiver // nil when no exchange is in flight
	heads *heads

	body      body
	out       int64
	line      int
	used      int
	err       error
	state     clientState
	outKind   bodyKind
	code      message.ResetCode
	infos     uint8
	headSent  bool
	sent      bool // the request is complete
	isHead    bool
	connect   bool
	upgrade   bool
	keepAlive bool
	paused    bool
	eof       bool
	draining  bool
	extra     bool // bytes follow the response that nobody asked for
}

var (
	_ message.ClientConn = (*Client)(nil)
	_ message.Sender     = (*Client)(nil)
)

// NewClient speaks HTTP/1.1 on an established upstream connection.
func NewClient(t message.Transport, obs message.ClientObserver, o *ClientOptions) *Client {
	o.Limits.setDefaults()
	c := &Client{t: t, obs: obs, o: o, pool: o.Pool}
	if c.pool == nil {
		c.pool = NewPool(nil)
	}
	t.SetHandler(c)
	return c
}

// Open starts an exchange; see message.ClientConn.
func (c *Client) Open(r message.Receiver) message.Sender {
	c.used++
	c.r = r
	c.state = clientHead
	c.headSent, c.sent, c.infos, c.line, c.paused = false, false, 0, 0, false
	c.outKind, c.out = bodyNone, 0
	return c
}

// Capacity is 1 on an idle connection that may be used again.
func (c *Client) Capacity() int {
	if c.state == clientIdle && !c.draining && !c.eof {
		return 1
	}
	return 0
}

// Active is 1 while an exchange is in flight.
func (c *Client) Active() int {
	if c.r != nil {
		return 1
	}
	return 0
}

// Used is the number of exchanges opened so far.
func (c *Client) Used() int { return c.used }

// Close ends the connection: after the exchange in flight if graceful.
func (c *Client) Close(graceful bool) {
	if c.state == clientClosed {
		return
	}
	c.draining = true
	switch {
	case c.r == nil:
		c.end(message.ResetNone)
	case !graceful:
		c.fail(message.ResetCancel, nil)
	}
}

// end closes a connection that has no exchange.
func (c *Client) end(code message.ResetCode) {
	c.state, c.code = clientClosed, code
	c.release()
	c.t.Close()
}

// fail resets the exchange in flight and aborts the connection.
func (c *Client) fail(code message.ResetCode, err error) {
	if c.state == clientClosed {
		return
	}
	c.state, c.code, c.err = clientClosed, code, err
	c.t.Abort()
	r := c.r
	c.r = nil
	if r != nil {
		r.OnReset(code)
	}
	c.release()
}

func (c *Client) release() {
	c.pool.put(c.heads)
	c.heads = nil
}

// Conn describes the connection.
func (c *Client) Conn() *message.Conn { return c.t.Conn() }

// OnBytes consumes response bytes.
func (c *Client) OnBytes(p []byte) int {
	total := 0
	for total < len(p) && !c.paused {
		n, more := c.step(p[total:])
		total += n
		if !more {
			break
		}
	}
	return total
}

func (c *Client) step(p []byte) (n int, more bool) {
	switch c.state {
	case clientIdle:
		// Nobody asked: an answer to a request that was given up, or an attack on
		// the next one (CVE-2026-71324).
		c.fail(message.ResetProtocol, errUnsolicited)
		return len(p), false
	case clientHead:
		return c.readHead(p)
	case clientBody:
		return c.readBody(p)
	case clientRaw:
		c.r.OnData(p, false)
		return len(p), false
	}
	return len(p), false
}

func (c *Client) protocolError(p []byte, err *Error) (int, bool) {
	c.fail(message.ResetProtocol, err)
	return len(p), false
}

func (c *Client) readHead(p []byte) (n int, more bool) {
	if !c.headSent {
		return c.protocolError(p, errUnsolicited)
	}
	lim := &c.o.Limits
	end, line, err := headEnd(p, c.line)
	if err == nil && (end > lim.HeadBytes || end == 0 && len(p) > lim.HeadBytes) {
		err = errHeadLong
	}
	if err != nil {
		return c.protocolError(p, err)
	}
	c.line = line
	if end == 0 {
		if !plausible(p) {
			return c.protocolError(p, errStatusLine)
		}
		return 0, false
	}
	c.line = 0
	if c.heads == nil {
		c.heads = c.pool.get()
	}
	m := &c.pool.meta
	h := &c.heads.head
	if err := parseResponse(h, p[:end], lim, m); err != nil {
		return c.protocolError(p, err)
	}
	if code := h.Status(); code < 200 && code != 101 {
		if c.infos++; c.infos > maxInformational {
			return c.protocolError(p, errInformational)
		}
		c.r.OnInformational(h)
		return end, true
	}
	c.extra = end < len(p)
	if !c.begin(h, m) {
		return len(p), false
	}
	return end, true
}

// plausible says that p may become a status line: an upstream that speaks
// something else is told apart before its first line break.
func plausible(p []byte) bool {
	const start = "HTTP/1."
	n := min(len(p), len(start))
	return string(p[:n]) == start[:n]
}

// begin handles a final response head.
func (c *Client) begin(h *message.Head, m *meta) bool {
	code := h.Status()
	if code == 101 && !c.upgrade {
		c.fail(message.ResetProtocol, errSwitch)
		return false
	}
	if code == 101 || c.connect && code >= 200 && code < 300 {
		c.state, c.outKind, c.keepAlive = clientRaw, bodyRaw, false
		h.Del(message.ContentLength)
		c.r.OnHead(h, false)
		return true
	}
	h.Del(message.Upgrade) // only 101 switches (CVE-2024-23326)
	kind, length := responseBody(m, code, c.isHead)
	c.keepAlive = !m.close && (m.version == message.HTTP11 || m.keepAlive) &&
		kind != bodyClose && !c.upgrade && !c.connect
	c.body.start(kind, length)
	if kind == bodyNone {
		c.complete().OnHead(h, true)
		c.settle()
		return true
	}
	c.state = clientBody
	c.r.OnHead(h, false)
	return true
}

func (c *Client) readBody(p []byte) (n int, more bool) {
	n, data, trailers, done, err := c.body.next(p, &c.o.Limits)
	if err == nil && trailers != nil {
		err = parseTrailers(&c.heads.extra, trailers, &c.o.Limits, &c.pool.meta)
	}
	if err != nil {
		return c.protocolError(p, err)
	}
	c.extra = n < len(p)
	switch {
	case trailers != nil:
		extra := &c.heads.extra
		c.complete().OnTrailers(extra)
		c.settle()
	case done:
		c.complete().OnData(data, true)
		c.settle()
	case len(data) > 0:
		c.r.OnData(data, false)
	}
	return n, n > 0
}

// complete makes the connection ready for what may come before the last event
// of the response is delivered: the receiver may release the connection, and
// somebody else open an exchange on it, from within that event. Bytes behind
// the response would then answer the wrong request, so they end the connection.
func (c *Client) complete() message.Receiver {
	r := c.r
	c.r = nil
	c.pool.put(c.heads) // lent anew only after this round
	c.heads = nil
	if c.keepAlive && c.sent && !c.draining && !c.eof && !c.extra {
		c.state = clientIdle
	} else {
		c.state = clientDone
	}
	return r
}

// settle tells the pool what became of the connection.
func (c *Client) settle() {
	switch c.state {
	case clientIdle:
		c.obs.OnCapacity(c)
	case clientDone:
		c.end(message.ResetNone)
	}
}

// OnEOF handles the server's FIN.
func (c *Client) OnEOF() {
	c.eof = true
	switch {
	case c.state == clientIdle:
		c.end(message.ResetNone)
	case c.state == clientBody && c.body.kind == bodyClose:
		c.complete().OnData(nil, true)
		c.settle()
	case c.state == clientRaw:
		c.r.OnData(nil, true)
		if c.outKind == bodyNone {
			c.r = nil
			c.end(message.ResetNone)
		}
	case c.r != nil:
		c.fail(message.ResetTermination, nil)
	}
}

// OnDrained passes the transport's relief on to the producer of the request.
func (c *Client) OnDrained() {
	if c.r != nil {
		c.r.OnDrained()
	}
}

// OnClosed is the transport's last call.
func (c *Client) OnClosed(err error) {
	code := c.code
	if c.state != clientClosed {
		c.state, code = clientClosed, message.ResetTermination
		c.err = err
	}
	r := c.r
	c.r = nil
	if r != nil {
		r.OnReset(code)
	}
	c.release()
	if c.err != nil {
		err = c.err
	}
	c.obs.OnClosed(c, code, err)
}
