package http1

import (
	"bytes"
	"encoding/binary"

	"lateen.dev/lateen/internal/proxy/message"
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

const maxName = 256

// lower maps a token character (RFC 9110 §5.6.2) to its lower case and all else to 0.
var lower = func() (t [256]byte) {
	for c := byte('a'); c <= 'z'; c++ {
		t[c], t[c-32] = c, c
	}
	for _, c := range []byte("0123456789!#$%&'*+-.^_`|~") {
		t[c] = c
	}
	return t
}()

// hostChar marks the characters of a host name; IP literals are checked apart.
var hostChar = func() (t [256]bool) {
	for c := byte('a'); c <= 'z'; c++ {
		t[c] = true
	}
	for _, c := range []byte("0123456789-._~") {
		t[c] = true
	}
	return t
}()

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
		for lower[b[j]] != 0 {
			b[j] = lower[b[j]]
			j++
		}
		switch {
		case b[j] != ':':
			return errName
		case j == off:
			return errNameEmpty
		case j-off > maxName:
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
		if !cleanValue(b[start:end]) {
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
		n, ok := decimal(v)
		if !ok {
			return errLength
		}
		m.length = n
	case message.TransferEncoding:
		if m.te || !equalFold(v, "chunked") {
			return errTE
		}
		m.te = true
	case message.Connection, message.ProxyConnection:
		m.connection = true
	case message.Upgrade:
		m.hasUpgrade = true
	case message.TE:
		m.hasTE = true
		m.teTrailers = m.teTrailers || hasToken(v, "trailers")
	case message.Expect:
		m.expect = true
	}
	return nil
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// cleanValue says that v has no control characters but HTAB. Eight bytes are
// looked at together: 60-byte values cost a third of a byte loop
// (BenchmarkCleanValue).
func cleanValue(v []byte) bool {
	for len(v) >= 8 {
		w := binary.LittleEndian.Uint64(v)
		// A byte below 0x20 borrows into its high bit; DEL becomes 0 by the xor.
		del := w ^ (0x7f * ones)
		if ((w-0x20*ones)&^w|(del-ones)&^del)&highs != 0 {
			for _, c := range v[:8] {
				if c < ' ' && c != '\t' || c == 0x7f {
					return false
				}
			}
		}
		v = v[8:]
	}
	for _, c := range v {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// decimal parses 1*DIGIT; more than 18 digits are no length anybody means.
func decimal(v []byte) (int64, bool) {
	if len(v) == 0 || len(v) > 18 {
		return 0, false
	}
	var n int64
	for _, c := range v {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// equalFold compares v with a lower-case ASCII string.
func equalFold(v []byte, s string) bool {
	if len(v) != len(s) {
		return false
	}
	for i := range v {
		c := v[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != s[i] {
			return false
		}
	}
	return true
}

// nextToken cuts the first element off a comma-separated list, trimmed.
func nextToken(v []byte) (token, rest []byte) {
	if i := bytes.IndexByte(v, ','); i >= 0 {
		token, rest = v[:i], v[i+1:]
	} else {
		token = v
	}
	return bytes.Trim(token, " \t"), rest
}

// hasToken says whether a comma-separated list has the element s (lower case);
// parameters behind ";" do not count.
func hasToken(v []byte, s string) bool {
	for len(v) > 0 {
		var t []byte
		t, v = nextToken(v)
		if i := bytes.IndexByte(t, ';'); i >= 0 {
			t = bytes.TrimRight(t[:i], " \t")
		}
		if equalFold(t, s) {
			return true
		}
	}
	return false
}

// authority checks and normalises host[:port] in place: lower case, one
// trailing dot of the host removed. Rewriting may shorten it, so the result is
// a length.
func authority(v []byte) (int, *Error) {
	if len(v) == 0 {
		return 0, errHost
	}
	host, i := 0, 0
	if v[0] == '[' {
		for i = 1; i < len(v) && v[i] != ']'; i++ {
			c := v[i]
			if 'A' <= c && c <= 'F' {
				c += 'a' - 'A'
				v[i] = c
			}
			if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c == ':' || c == '.') {
				return 0, errHost
			}
		}
		if i >= len(v) || i < 3 {
			return 0, errHost
		}
		i++
		host = i
	} else {
		for i < len(v) && v[i] != ':' {
			c := v[i]
			if 'A' <= c && c <= 'Z' {
				c += 'a' - 'A'
				v[i] = c
			}
			if !hostChar[c] {
				if c == '@' {
					return 0, errUserinfo
				}
				return 0, errHost
			}
			i++
		}
		host = i
		if host > 0 && v[host-1] == '.' {
			host--
		}
		if host == 0 || v[host-1] == '.' {
			return 0, errHost
		}
	}
	if i == len(v) {
		return host, nil
	}
	if v[i] != ':' {
		return 0, errHost
	}
	port := v[i+1:]
	if n, ok := decimal(port); !ok || n > 65535 {
		if bytes.IndexByte(port, '@') >= 0 {
			return 0, errUserinfo
		}
		return 0, errHost
	}
	return host + copy(v[host:], v[i:]), nil
}
