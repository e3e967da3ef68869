// Package syntax is the grammar that the HTTP codecs share: tokens, field
// values, hosts and request targets in the one strict form that routing,
// policy and the next hop see, whatever version of HTTP brought them.
//
// Everything here is a pure function of bytes. What a codec does about a
// breach, and how it frames messages, is the codec's own business.
package syntax

import (
	"bytes"
	"encoding/binary"

	"lateen.dev/lateen/internal/proxy/message"
)

// Problem says which rule a host or request target breaks.
type Problem uint8

// The problems; OK is none.
const (
	OK Problem = iota
	BadHost
	Userinfo
	BadTarget
	Fragment
)

// MaxName bounds a header name, in bytes.
const MaxName = 256

// Lower maps a token character (RFC 9110 §5.6.2) to its lower case and all else to 0.
var Lower = func() (t [256]byte) {
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

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// CleanValue says that v has no control characters but HTAB. Eight bytes are
// looked at together: 60-byte values cost a third of a byte loop
// (BenchmarkCleanValue).
func CleanValue(v []byte) bool {
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

// Token says that v is a token, not longer than MaxName.
func Token(v []byte) bool {
	for _, c := range v {
		if Lower[c] == 0 {
			return false
		}
	}
	return len(v) > 0 && len(v) <= MaxName
}

// LowerToken says that name is a token without upper-case letters, not longer
// than MaxName.
func LowerToken(name []byte) bool {
	for _, c := range name {
		if Lower[c] != c || c == 0 {
			return false
		}
	}
	return len(name) > 0 && len(name) <= MaxName
}

// Decimal parses 1*DIGIT; more than 18 digits are no length anybody means.
func Decimal(v []byte) (int64, bool) {
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

// EqualFold compares v with a lower-case ASCII string.
func EqualFold(v []byte, s string) bool {
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

// NextToken cuts the first element off a comma-separated list, trimmed.
func NextToken(v []byte) (token, rest []byte) {
	if i := bytes.IndexByte(v, ','); i >= 0 {
		token, rest = v[:i], v[i+1:]
	} else {
		token = v
	}
	return bytes.Trim(token, " \t"), rest
}

// HasToken says whether a comma-separated list has the element s (lower case);
// parameters behind ";" do not count.
func HasToken(v []byte, s string) bool {
	for len(v) > 0 {
		var t []byte
		t, v = NextToken(v)
		if i := bytes.IndexByte(t, ';'); i >= 0 {
			t = bytes.TrimRight(t[:i], " \t")
		}
		if EqualFold(t, s) {
			return true
		}
	}
	return false
}

// Authority checks and normalises host[:port] in place: lower case, one
// trailing dot of the host removed. Rewriting may shorten it, so the result is
// a length.
func Authority(v []byte) (int, Problem) {
	if len(v) == 0 {
		return 0, BadHost
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
				return 0, BadHost
			}
		}
		if i >= len(v) || i < 3 {
			return 0, BadHost
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
					return 0, Userinfo
				}
				return 0, BadHost
			}
			i++
		}
		host = i
		if host > 0 && v[host-1] == '.' {
			host--
		}
		if host == 0 || v[host-1] == '.' {
			return 0, BadHost
		}
	}
	if i == len(v) {
		return host, OK
	}
	if v[i] != ':' {
		return 0, BadHost
	}
	port := v[i+1:]
	if n, ok := Decimal(port); !ok || n > 65535 {
		if bytes.IndexByte(port, '@') >= 0 {
			return 0, Userinfo
		}
		return 0, BadHost
	}
	return host + copy(v[host:], v[i:]), OK
}

// HasPort says that a checked authority names a port.
func HasPort(authority []byte) bool {
	i := bytes.LastIndexByte(authority, ':')
	return i >= 0 && i > bytes.LastIndexByte(authority, ']')
}

// Target checks the bytes of a request target: visible ASCII without "#".
func Target(t []byte) Problem {
	for _, c := range t {
		if c <= ' ' || c >= 0x7f {
			return BadTarget
		}
		if c == '#' {
			return Fragment
		}
	}
	return OK
}

// NotInTrailers says that a field would change framing, routing or trust and
// must not arrive after the body (RFC 9110 §6.5.1).
func NotInTrailers(id message.NameID) bool {
	switch id {
	case message.Host, message.ContentLength, message.TransferEncoding, message.Connection,
		message.KeepAlive, message.ProxyConnection, message.TE, message.Trailer, message.Upgrade,
		message.Expect, message.Authorization, message.Cookie, message.XForwardedFor,
		message.XForwardedProto, message.XForwardedHost, message.XForwardedClientCert:
		return true
	}
	return false
}
