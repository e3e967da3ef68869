package http2

import (
	"encoding/binary"

	"lateen.dev/lateen/internal/proxy/http2/hpack"
	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/syntax"
)

// onHeaders handles HEADERS: padding and priority off, then the block.
func (c *conn) onHeaders(flags byte, id uint32, p []byte) {
	if id == 0 {
		c.fail(errStreamZero)
		return
	}
	pad := 0
	if flags&flagPadded != 0 {
		if len(p) == 0 {
			c.fail(errFrameSize)
			return
		}
		pad = int(p[0])
		p = p[1:]
	}
	var dependsOn uint32
	if flags&flagPriority != 0 {
		if len(p) < 5 {
			c.fail(errFrameSize)
			return
		}
		dependsOn = binary.BigEndian.Uint32(p) & maxStreamID
		p = p[5:]
	}
	if pad > len(p) {
		c.fail(errPadding)
		return
	}
	p = p[:len(p)-pad]
	if dependsOn == id {
		c.fail(errDependency)
		return
	}
	end := flags&flagEndStream != 0
	if flags&flagEndHeaders != 0 {
		c.section(id, p, end)
		return
	}
	c.block = append(c.block[:0], p...)
	c.blockID, c.blockEnd, c.blockCount = id, end, 0
}

// onContinuation collects the pieces of a header block.
func (c *conn) onContinuation(flags byte, id uint32, p []byte) {
	if c.blockID == 0 { // a wrong stream was noticed before
		c.fail(errContinuation)
		return
	}
	c.blockCount++
	if c.blockCount > maxContinuations || len(c.block)+len(p) > c.lim.HeadBytes+maxFrame {
		c.fail(errContinuationFlood)
		return
	}
	c.block = append(c.block, p...)
	if flags&flagEndHeaders == 0 {
		return
	}
	block := c.block
	c.blockID, c.block = 0, nil
	c.section(id, block, c.blockEnd)
}

// section handles a complete header block.
func (c *conn) section(id uint32, block []byte, end bool) {
	if c.srv != nil {
		c.srv.section(id, block, end)
	} else {
		c.cli.section(id, block, end)
	}
}

// section is what decoding notes about a header section on the way.
type section struct {
	err     *Error // the first breach
	size    int
	count   int
	pseudo  uint16 // a bit for each hpack.Kind that came
	regular bool   // pseudo fields are over
	host    int    // index in the Head of the last host field
	hosts   int
	cookies int
	length  int64 // content-length, -1 if absent
	status  int
	connect bool   // the method is CONNECT
	proto   []byte // :protocol
}

func (m *section) has(k hpack.Kind) bool { return m.pseudo&(1<<k) != 0 }

const (
	requestKinds  = 1<<hpack.Method | 1<<hpack.Scheme | 1<<hpack.Authority | 1<<hpack.Path | 1<<hpack.Protocol
	responseKinds = 1 << hpack.Status
)

// decode expands a block into h, which is emptied; kinds are the pseudo fields
// that may occur. The whole block is decoded whatever is wrong with it, because
// the blocks to come build on it. It returns false if the connection failed.
func (c *conn) decode(h *message.Head, block []byte, kinds uint16) (m *section, ok bool) {
	m = &c.pool.section
	*m = section{length: -1, host: -1, proto: m.proto[:0]}
	h.Reset()
	c.dec.Begin(block, &c.pool.hpack)
	var f hpack.Field
	for c.dec.Next(&f) {
		m.size += len(f.Name) + len(f.Value) + 32
		if m.err != nil {
			continue
		}
		v := trim(f.Value)
		switch {
		case m.size > c.lim.HeadBytes:
			m.err = errHeadLong
		case f.BadName:
			m.err = errName
		case f.BadValue:
			m.err = errValue
		case f.Kind != hpack.Regular:
			if kinds&(1<<f.Kind) == 0 || m.regular || m.has(f.Kind) {
				m.err = errPseudo
				break
			}
			m.pseudo |= 1 << f.Kind
			m.err = m.pseudoField(h, f.Kind, v, c.lim)
		default:
			m.regular = true
			if m.count++; m.count > c.lim.Headers {
				m.err = errHeaderCount
				break
			}
			h.AddKnown(f.ID, f.Name, v)
			if f.Sensitive {
				h.MarkSensitive()
			}
			if f.ID != message.Other {
				m.err = m.note(f.ID, h.Len()-1, v)
			}
		}
	}
	if c.dec.Err() != nil {
		c.fail(errCompression)
		return m, false
	}
	if m.err == nil && m.cookies > 1 {
		c.joinCookies(h)
	}
	return m, true
}

// trim takes the white space off that HTTP/1.1 would not carry either.
func trim(v []byte) []byte {
	for len(v) > 0 && (v[0] == ' ' || v[0] == '\t') {
		v = v[1:]
	}
	for len(v) > 0 && (v[len(v)-1] == ' ' || v[len(v)-1] == '\t') {
		v = v[:len(v)-1]
	}
	return v
}

// pseudoField takes over one pseudo-header field.
func (m *section) pseudoField(h *message.Head, k hpack.Kind, v []byte, lim *Limits) *Error {
	switch k {
	case hpack.Method:
		if !syntax.Token(v) {
			return errMethod
		}
		m.connect = string(v) == "CONNECT"
		h.SetMethod(v)
	case hpack.Scheme:
		switch {
		case syntax.EqualFold(v, "http"):
			h.SetSchemeString("http")
		case syntax.EqualFold(v, "https"):
			h.SetSchemeString("https")
		default:
			return errScheme
		}
	case hpack.Authority:
		h.SetAuthority(v)
	case hpack.Path:
		if len(v) > lim.PathBytes {
			return errPathLong
		}
		if len(v) == 0 {
			return errPathEmpty
		}
		if p := syntax.Target(v); p != syntax.OK {
			return problems[p]
		}
		h.SetPath(v)
	case hpack.Protocol:
		if !syntax.Token(v) {
			return errPseudo
		}
		m.proto = append(m.proto, v...)
	case hpack.Status:
		n, ok := syntax.Decimal(v)
		if !ok || len(v) != 3 || n < 100 || n > 599 {
			return errStatus
		}
		m.status = int(n)
		h.SetStatus(m.status)
	}
	return nil
}

// note keeps what matters about a known field.
func (m *section) note(id message.NameID, index int, v []byte) *Error {
	switch id {
	case message.Host:
		m.host = index
		m.hosts++
	case message.ContentLength:
		if m.length >= 0 {
			return errLengthTwice
		}
		n, ok := syntax.Decimal(v)
		if !ok {
			return errLength
		}
		m.length = n
	case message.Cookie:
		m.cookies++
	case message.Connection, message.KeepAlive, message.ProxyConnection, message.TransferEncoding, message.Upgrade:
		return errConnectionField // §8.2.2
	case message.TE:
		if !syntax.EqualFold(v, "trailers") {
			return errTE
		}
	}
	return nil
}

// joinCookies makes one field of the crumbs (§8.2.3).
func (c *conn) joinCookies(h *message.Head) {
	b := c.pool.scratch[:0]
	for i := range h.Len() {
		if id, _, v, ok := h.Field(i); ok && id == message.Cookie {
			if len(b) > 0 {
				b = append(b, "; "...)
			}
			b = append(b, v...)
		}
	}
	c.pool.scratch = b
	h.Set(message.Cookie, b)
}

// request checks a decoded request head and brings it into the form that
// HTTP/1.1 requests have.
func (m *section) request(h *message.Head, o *ServerOptions, end bool) *Error {
	switch {
	case m.err != nil:
		return m.err
	case !m.has(hpack.Method):
		return errPseudoMissing
	case end && m.length > 0 && !m.connect:
		return errLengthBody
	}
	extended := m.has(hpack.Protocol)
	switch {
	case extended && (!m.connect || !o.AllowUpgrade):
		return errPseudoConnect
	case m.connect && m.length >= 0:
		return errConnectBody
	case m.connect && !extended:
		if m.has(hpack.Scheme) || m.has(hpack.Path) || !m.has(hpack.Authority) {
			return errPseudoConnect // §8.5
		}
	case !m.has(hpack.Scheme) || !m.has(hpack.Path):
		return errPseudoMissing
	}
	if err := m.authority(h); err != nil {
		return err
	}
	if m.connect && !extended {
		switch {
		case !syntax.HasPort(h.Authority()):
			return errTargetForm
		case !o.AllowConnect:
			return errConnect
		}
		return nil
	}
	if p := h.Path(); p[0] != '/' && (len(p) != 1 || p[0] != '*' || string(h.Method()) != "OPTIONS") {
		return errTargetForm
	}
	if extended {
		h.SetMethodString("GET")
		h.Add(message.Upgrade, m.proto)
	}
	return nil
}

// authority settles the authority from :authority and host, in one form; the
// host field leaves the list.
func (m *section) authority(h *message.Head) *Error {
	if m.hosts > 1 {
		return errHostTwice
	}
	if m.has(hpack.Authority) && len(h.Authority()) > 0 {
		if err := normalise(h); err != nil {
			return err
		}
	}
	if m.hosts == 0 {
		if len(h.Authority()) == 0 {
			return errHostMissing
		}
		return nil
	}
	_, _, v, _ := h.Field(m.host)
	n, p := syntax.Authority(v)
	switch {
	case p != syntax.OK:
		return problems[p]
	case len(h.Authority()) == 0:
		h.SetAuthority(v[:n])
	case string(h.Authority()) != string(v[:n]):
		return errHostDiffers // §8.3.1
	}
	h.DelField(m.host)
	return nil
}

func normalise(h *message.Head) *Error {
	v := h.Authority()
	n, p := syntax.Authority(v)
	if p != syntax.OK {
		return problems[p]
	}
	if n < len(v) {
		h.SetAuthority(v[:n])
	}
	return nil
}

// trailers checks a decoded trailer section.
func (m *section) trailers(h *message.Head) *Error {
	if m.err != nil {
		return m.err
	}
	for i := range h.Len() {
		if id, _, _, _ := h.Field(i); syntax.NotInTrailers(id) {
			return errTrailer
		}
	}
	return nil
}
