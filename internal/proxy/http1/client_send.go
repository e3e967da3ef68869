package http1

import (
	"bytes"

	"lateen.dev/lateen/internal/proxy/message"
)

// SendHead sends the request head; see message.Sender.
func (c *Client) SendHead(h *message.Head, end bool) {
	if c.r == nil || c.headSent {
		return
	}
	c.headSent = true
	method := h.Method()
	c.isHead = string(method) == "HEAD"
	c.connect = string(method) == "CONNECT"
	c.upgrade = !end && h.Has(message.Upgrade)
	f := c.frame(h, end)
	c.outKind, c.out = f.kind, f.length
	if f.kind == bodyLength && end {
		c.fail(message.ResetCancel, errLength)
		return
	}
	b := appendRequestLine(c.pool.scratch[:0], h)
	start := len(b)
	b, lines := appendFields(b, h, f)
	c.pool.scratch = b
	// Three spaces and two lines belong to what precedes the fields. A rewrite may
	// have left a target that is none.
	if !wellFormed(b, lines+2) || bytes.Count(b[:start], []byte{' '}) != 3 || !sendable(h, c.connect) {
		c.fail(message.ResetCancel, errRequestLine)
		return
	}
	c.sent = end
	c.t.Write(b)
}

// sendable says that a request has a method and a target in a form of its own.
func sendable(h *message.Head, connect bool) bool {
	if connect {
		return len(h.Authority()) > 0
	}
	p := h.Path()
	return len(h.Method()) > 0 && len(p) > 0 && (p[0] == '/' || string(p) == "*")
}

// frame decides how the request body is delimited.
func (c *Client) frame(h *message.Head, end bool) framing {
	length, has := contentLength(h)
	switch {
	case c.connect || c.upgrade:
		return framing{kind: bodyRaw, dropCL: true, upgrade: c.upgrade}
	case has && length > 0:
		return framing{kind: bodyLength, length: length}
	case has && length == 0:
		return framing{}
	case has:
		return framing{kind: bodyChunked, dropCL: true}
	case !end:
		return framing{kind: bodyChunked}
	}
	// RFC 9110 §8.6: methods that anticipate content declare that there is none.
	switch string(h.Method()) {
	case "POST", "PUT", "PATCH":
		return framing{declare: true}
	}
	return framing{}
}

// SendInformational does nothing: requests have no interim heads.
func (c *Client) SendInformational(*message.Head) {}

// SendData sends request body bytes. On a tunnel they are held back by the
// request path until the answer has come.
func (c *Client) SendData(p []byte, end bool) {
	if c.r == nil || !c.headSent || c.sent {
		return
	}
	switch c.outKind {
	case bodyLength:
		if int64(len(p)) > c.out || end && int64(len(p)) < c.out {
			// Declared and sent differ: the server must not wait for, or be given,
			// somebody else's bytes (CVE-2026-33555).
			c.fail(message.ResetCancel, errLength)
			return
		}
		c.out -= int64(len(p))
		c.t.Write(p)
	case bodyChunked:
		if len(p) > 0 {
			writeChunk(c.t, c.pool, p)
		}
		if end {
			c.t.Write(lastChunk)
		}
	case bodyRaw:
		if c.state != clientRaw {
			c.fail(message.ResetCancel, errSwitch)
			return
		}
		c.t.Write(p)
		if end {
			c.outKind = bodyNone
			c.t.CloseWrite()
		}
	}
	c.sent = end
	if end && c.state == clientRaw && c.eof {
		c.r = nil
		c.end(message.ResetNone)
	}
}

// SendTrailers ends a chunked request with trailer fields, another one without.
func (c *Client) SendTrailers(h *message.Head) {
	if c.r == nil || !c.headSent || c.sent {
		return
	}
	if c.outKind != bodyChunked {
		c.SendData(nil, true)
		return
	}
	if !writeTrailers(c.t, c.pool, h) {
		c.fail(message.ResetCancel, errTrailer)
		return
	}
	c.sent = true
}

// Reset gives the exchange up; the connection goes with it.
func (c *Client) Reset(code message.ResetCode) {
	if c.r == nil {
		return
	}
	c.r = nil
	c.fail(code, nil)
}

// Pause stops or resumes delivery of the response body.
func (c *Client) Pause(on bool) {
	if c.r == nil || c.paused == on {
		return
	}
	c.paused = on
	c.t.PauseRead(on)
}

// Buffered is the number of output bytes of the connection that have not left.
func (c *Client) Buffered() int { return c.t.Buffered() }

// OverHigh says that the connection has more output than it should.
func (c *Client) OverHigh() bool { return c.t.OverHigh() }
