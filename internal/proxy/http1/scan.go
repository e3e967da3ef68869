package http1

import (
	"bytes"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/syntax"
)

// Limits bounds what a peer may send; zero fields mean the defaults.
type Limits struct {
	// HeadBytes bounds a message head and a trailer section; 60 KiB by default
	// (Envoy: max_request_headers_kb).
	HeadBytes int
	// Headers bounds the number of header fields; 100 by default, as in Envoy.
	Headers int
	// PathBytes bounds the request target; 8 KiB by default.
	PathBytes int
}

func (l *Limits) setDefaults() {
	if l.HeadBytes == 0 {
		l.HeadBytes = 60 << 10
	}
	if l.Headers == 0 {
		l.Headers = 100
	}
	if l.PathBytes == 0 {
		l.PathBytes = 8 << 10
	}
}

// headEnd looks for the empty line that ends a head. line is where the first
// line that has not been seen whole begins; the new value is returned so that a
// slow sender costs no rescans. end is 0 while the head is incomplete.
func headEnd(p []byte, line int) (end, newLine int, err *Error) {
	for {
		i := bytes.IndexByte(p[line:], '\n')
		if i < 0 {
			return 0, line, nil
		}
		if i == 0 || p[line+i-1] != '\r' {
			return 0, line, errBareLF
		}
		if i == 1 {
			return line + 2, line, nil
		}
		line += i + 1
	}
}

// meta is what the scanner notes about a head on the way: everything that
// framing, persistence and hop-by-hop rules need. Indexes are field positions
// in the Head, -1 if absent.
type meta struct {
	version    message.Protocol
	host       int
	hosts      int
	length     int64 // -1 if absent
	te         bool
	connection bool
	close      bool
	keepAlive  bool
	upgrade    bool // Connection lists it and an Upgrade field is there
	hasUpgrade bool
	hasTE      bool
	teTrailers bool
	expect     bool
}

func (m *meta) reset() { *m = meta{host: -1, length: -1} }

// fields scans header lines of the loaded block b from off up to the empty line
// and adds them to h, lower-casing names in place.
func fields(h *message.Head, b []byte, off int, lim *Limits, m *meta) *Error {
	count := 0
	for {
		c := b[off]
		if c == '\r' {
			if b[off+1] != '\n' || off+2 != len(b) {
				return errControl
			}
			return nil
		}
		if c == ' ' || c == '\t' {
			return errFold
		}
		j := off
		for syntax.Lower[b[j]] != 0 {
			b[j] = syntax.Lower[b[j]]
			j++
		}
		switch {
		case b[j] != ':':
			return errName
		case j == off:
			return errNameEmpty
		case j-off > syntax.MaxName:
			return errNameLong
		}
		if count++; count > lim.Headers {
			return errHeaderCount
		}
		name := b[off:j]
		nameOff := off
		eol := j + 1 + bytes.IndexByte(b[j+1:], '\n')
		start, end := j+1, eol-1
		for start < end && (b[start] == ' ' || b[start] == '\t') {
			start++
		}
		for end > start && (b[end-1] == ' ' || b[end-1] == '\t') {
			end--
		}
		if !syntax.CleanValue(b[start:end]) {
			return errControl
		}
		id := message.Lookup(name)
		h.AddSpan(id, nameOff, len(name), start, end-start)
		if id != message.Other {
			if err := note(m, id, h.Len()-1, b[start:end]); err != nil {
				return err
			}
		}
		off = eol + 1
	}
}

// note keeps what matters about a known field.
func note(m *meta, id message.NameID, index int, v []byte) *Error {
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
	case message.TransferEncoding:
		if m.te || !syntax.EqualFold(v, "chunked") {
			return errTE
		}
		m.te = true
	case message.Connection, message.ProxyConnection:
		m.connection = true
	case message.Upgrade:
		m.hasUpgrade = true
	case message.TE:
		m.hasTE = true
		m.teTrailers = m.teTrailers || syntax.HasToken(v, "trailers")
	case message.Expect:
		m.expect = true
	}
	return nil
}

// authority is syntax.Authority with the refusal that belongs to the problem.
func authority(v []byte) (int, *Error) {
	n, p := syntax.Authority(v)
	return n, problems[p]
}
