package http1

import (
	"bytes"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/syntax"
)

// parseRequest scans a whole request head (through the empty line) into h.
func parseRequest(h *message.Head, head []byte, lim *Limits, m *meta, tls bool) *Error {
	m.reset()
	b := h.Load(head)
	eol := bytes.IndexByte(b, '\n')
	line := b[:eol-1]
	sp := bytes.IndexByte(line, ' ')
	if sp <= 0 {
		return errRequestLine
	}
	for _, c := range line[:sp] {
		if syntax.Lower[c] == 0 {
			return errRequestLine
		}
	}
	h.SetMethodSpan(0, sp)
	rest := line[sp+1:]
	sp2 := bytes.LastIndexByte(rest, ' ')
	if sp2 <= 0 {
		return errRequestLine
	}
	switch v := rest[sp2+1:]; {
	case string(v) == "HTTP/1.1":
		m.version = message.HTTP11
	case string(v) == "HTTP/1.0":
		m.version = message.HTTP10
	default:
		return errVersion
	}
	if sp2 > lim.PathBytes {
		return errPathLong
	}
	if err := fields(h, b, eol+1, lim, m); err != nil {
		return err
	}
	if err := target(h, b, sp+1, sp+1+sp2, m, tls); err != nil {
		return err
	}
	if err := requestFraming(h, m); err != nil {
		return err
	}
	return hopByHop(h, m)
}

// target interprets the request target b[from:to] in its four forms (RFC 9112
// §3.2) and settles the authority.
func target(h *message.Head, b []byte, from, to int, m *meta, tls bool) *Error {
	t := b[from:to]
	if p := syntax.Target(t); p != syntax.OK {
		return problems[p]
	}
	connect := string(h.Method()) == "CONNECT"
	scheme, hostInTarget := "http", false
	if tls {
		scheme = "https"
	}
	switch {
	case connect:
		n, err := authority(t)
		if err != nil {
			return err
		}
		if !syntax.HasPort(t[:n]) {
			return errTargetForm // RFC 9110 §9.3.6: a port is required
		}
		h.SetAuthoritySpan(from, n)
		hostInTarget = true
	case t[0] == '/':
		h.SetPathSpan(from, len(t))
	case len(t) == 1 && t[0] == '*':
		if string(h.Method()) != "OPTIONS" {
			return errTargetForm
		}
		h.SetPathSpan(from, 1)
	default:
		s, err := absolute(h, b, from, to)
		if err != nil {
			return err
		}
		scheme, hostInTarget = s, true
	}
	h.SetSchemeString(scheme)
	return host(h, m, hostInTarget)
}

// absolute handles http://host/path; its authority overrides Host (RFC 9112 §3.2.2).
func absolute(h *message.Head, b []byte, from, to int) (string, *Error) {
	t := b[from:to]
	i := bytes.Index(t, []byte("://"))
	if i < 0 {
		return "", errTarget
	}
	var scheme string
	switch {
	case syntax.EqualFold(t[:i], "http"):
		scheme = "http"
	case syntax.EqualFold(t[:i], "https"):
		scheme = "https"
	default:
		return "", errScheme
	}
	start := from + i + 3
	end := start
	for end < to && b[end] != '/' && b[end] != '?' {
		end++
	}
	n, err := authority(b[start:end])
	if err != nil {
		return "", err
	}
	switch {
	case end == to:
		h.SetPathString("/")
		if string(h.Method()) == "OPTIONS" {
			h.SetPathString("*") // RFC 9112 §3.2.4
		}
	case b[end] == '?':
		// The slash that is missing takes the place of the byte before the query,
		// which belonged to the authority; so the authority is copied away first.
		auth := string(b[start : start+n])
		b[end-1] = '/'
		h.SetPathSpan(end-1, to-end+1)
		h.SetAuthorityString(auth)
		return scheme, nil
	default:
		h.SetPathSpan(end, to-end)
	}
	h.SetAuthoritySpan(start, n)
	return scheme, nil
}

// host settles the authority from the Host field, which leaves the field list:
// it lives on as the Head's authority alone.
func host(h *message.Head, m *meta, inTarget bool) *Error {
	if m.hosts > 1 {
		return errHostTwice
	}
	if m.hosts == 0 {
		if m.version == message.HTTP11 {
			return errHostMissing
		}
		return nil
	}
	_, _, v, _ := h.Field(m.host)
	n, err := authority(v)
	if err != nil {
		return err
	}
	if !inTarget {
		h.SetAuthority(v[:n])
	}
	h.DelField(m.host)
	return nil
}

func requestFraming(h *message.Head, m *meta) *Error {
	switch {
	case m.te && m.version == message.HTTP10:
		return errTE10
	case m.te && m.length >= 0:
		return errLengthAndTE
	case (m.te || m.length >= 0) && string(h.Method()) == "CONNECT":
		return errConnectBody
	}
	return nil
}

// hopByHop removes what concerns only this connection, after noting what it
// says: Connection and everything it lists, Keep-Alive, TE but for trailers,
// Transfer-Encoding, Upgrade unless it is in force (RFC 9110 §7.6.1). It runs
// before anything of ours is added, so a client cannot make us drop that.
func hopByHop(h *message.Head, m *meta) *Error {
	if m.connection {
		if err := connectionOptions(h, m); err != nil {
			return err
		}
	}
	m.upgrade = m.upgrade && m.hasUpgrade
	if m.te {
		h.Del(message.TransferEncoding)
	}
	if m.hasUpgrade && !m.upgrade {
		h.Del(message.Upgrade)
	}
	if m.hasTE {
		h.Del(message.TE)
		if m.teTrailers {
			h.AddString(message.TE, "trailers")
		}
	}
	h.Del(message.KeepAlive)
	h.Del(message.HTTP2Settings)
	return nil
}

func connectionOptions(h *message.Head, m *meta) *Error {
	for i := range h.Len() {
		id, _, v, ok := h.Field(i)
		if !ok || id != message.Connection && id != message.ProxyConnection {
			continue
		}
		h.DelField(i)
		if id == message.ProxyConnection {
			continue
		}
		for len(v) > 0 {
			var t []byte
			t, v = syntax.NextToken(v)
			switch {
			case len(t) == 0:
			case syntax.EqualFold(t, "close"):
				m.close = true
			case syntax.EqualFold(t, "keep-alive"):
				m.keepAlive = true
			case syntax.EqualFold(t, "upgrade"):
				m.upgrade = true
			case syntax.EqualFold(t, "te"):
			case syntax.EqualFold(t, "host"), syntax.EqualFold(t, "content-length"), syntax.EqualFold(t, "transfer-encoding"), t[0] == ':':
				return errConnectionList
			default:
				delFold(h, t)
			}
		}
	}
	return nil
}

// delFold removes the fields with this name in any case.
func delFold(h *message.Head, name []byte) {
	for i := range h.Len() {
		_, n, _, ok := h.Field(i)
		if ok && len(n) == len(name) && bytes.EqualFold(n, name) {
			h.DelField(i)
		}
	}
}

// parseResponse scans a whole response head into h.
func parseResponse(h *message.Head, head []byte, lim *Limits, m *meta) *Error {
	m.reset()
	b := h.Load(head)
	eol := bytes.IndexByte(b, '\n')
	line := b[:eol-1]
	// "HTTP/1.1 200" with or without the space that belongs behind it: some
	// servers leave both space and reason out.
	if len(line) < 12 || string(line[:7]) != "HTTP/1." || line[8] != ' ' || len(line) > 12 && line[12] != ' ' {
		return errStatusLine
	}
	switch line[7] {
	case '1':
		m.version = message.HTTP11
	case '0':
		m.version = message.HTTP10
	default:
		return errVersion
	}
	code, ok := syntax.Decimal(line[9:12])
	if !ok || code < 100 || code > 599 || !syntax.CleanValue(line[12:]) {
		return errStatusLine
	}
	h.SetStatus(int(code))
	if err := fields(h, b, eol+1, lim, m); err != nil {
		return err
	}
	switch {
	case m.te && m.version == message.HTTP10:
		return errTE10
	case m.te && m.length >= 0:
		return errLengthAndTE
	}
	return hopByHop(h, m)
}

// parseTrailers scans a trailer section, which ends with its empty line.
// Fields that would change framing, routing or trust are refused (RFC 9110
// §6.5.1).
func parseTrailers(h *message.Head, section []byte, lim *Limits, m *meta) *Error {
	m.reset()
	if err := fields(h, h.Load(section), 0, lim, m); err != nil {
		return err
	}
	for i := range h.Len() {
		if id, _, _, _ := h.Field(i); syntax.NotInTrailers(id) {
			return errTrailer
		}
	}
	return nil
}
