// Package sniff recognises protocols by the first bytes a client sends: a TLS
// ClientHello, with the names it carries, and HTTP. The listener calls it on
// bytes that stay in the connection, before a filter chain is chosen (Envoy:
// tls_inspector and http_inspector).
//
// Its functions are pure, look at a bounded number of bytes, and never trust a
// length they have not checked. They do not decrypt, validate or decide.
package sniff

import (
	"bytes"
	"encoding/binary"

	"lateen.dev/lateen/internal/proxy/message"
)

// Verdict is what the bytes so far allow to say.
type Verdict uint8

// The verdicts.
const (
	// NeedMore: the bytes are a proper beginning of it; ask again with more.
	NeedMore Verdict = iota
	// Match: it is that protocol, and the result is complete.
	Match
	// NoMatch: it is not, whatever follows.
	NoMatch
)

// String returns the verdict's name.
func (v Verdict) String() string {
	return [...]string{"NeedMore", "Match", "NoMatch"}[v]
}

// Hello is what a ClientHello says in clear text.
type Hello struct {
	// SNI is the host name asked for, lower case, "" if none.
	SNI string
	// ALPN are the protocols offered, in the client's order.
	ALPN []string
}

// MaxHello bounds the ClientHello, all records together; larger ones do not match.
const MaxHello = 32 << 10

// maxRecords bounds the pieces a ClientHello may come in: real ones have one or
// two, and putting together many is work that costs the sender nothing.
const maxRecords = 64

const (
	recordHeader     = 5
	maxRecord        = 16 << 10
	typeHandshake    = 22
	typeClientHello  = 1
	extensionSNI     = 0
	extensionALPN    = 16
	handshakeHeader  = 4
	randomAndVersion = 2 + 32
)

// ClientHello looks for a TLS ClientHello at the beginning of p (RFC 8446
// §4.1.2), which may be spread over several records.
func ClientHello(p []byte) (Hello, Verdict) {
	msg, v := handshake(p)
	if v != Match {
		return Hello{}, v
	}
	h, ok := parseHello(msg)
	if !ok {
		return Hello{}, NoMatch
	}
	return h, Match
}

// handshake returns the first handshake message without its header.
func handshake(p []byte) ([]byte, Verdict) {
	var whole []byte // only for a message in several records
	for records := 0; records < maxRecords; records++ {
		if len(p) >= 1 && p[0] != typeHandshake || len(p) >= 2 && p[1] != 3 || len(p) >= 3 && p[2] > 4 {
			return nil, NoMatch
		}
		if len(p) < recordHeader {
			return nil, NeedMore
		}
		n := int(binary.BigEndian.Uint16(p[3:]))
		if n == 0 || n > maxRecord {
			return nil, NoMatch
		}
		part := p[recordHeader:min(len(p), recordHeader+n)]
		switch records {
		case 0:
			whole = part
		case 1:
			whole = append(append(make([]byte, 0, MaxHello/8), whole...), part...)
		default:
			whole = append(whole, part...)
		}
		if len(whole) >= 1 && whole[0] != typeClientHello {
			return nil, NoMatch
		}
		if len(whole) >= handshakeHeader {
			need := handshakeHeader + int(whole[1])<<16 + int(whole[2])<<8 + int(whole[3])
			if need > MaxHello {
				return nil, NoMatch
			}
			if len(whole) >= need {
				return whole[handshakeHeader:need], Match
			}
		}
		if len(p) < recordHeader+n {
			return nil, NeedMore
		}
		p = p[recordHeader+n:]
	}
	return nil, NoMatch
}

// reader cuts length-prefixed vectors; ok turns false at the first that is too long.
type reader struct {
	b  []byte
	ok bool
}

func (r *reader) take(n int) []byte {
	if !r.ok || n > len(r.b) {
		r.ok = false
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) vec8() []byte {
	n := r.take(1)
	if n == nil {
		return nil
	}
	return r.take(int(n[0]))
}

func (r *reader) vec16() []byte {
	n := r.take(2)
	if n == nil {
		return nil
	}
	return r.take(int(binary.BigEndian.Uint16(n)))
}

func parseHello(msg []byte) (h Hello, ok bool) {
	r := reader{msg, true}
	r.take(randomAndVersion)
	r.vec8()  // session id
	r.vec16() // cipher suites
	r.vec8()  // compression methods
	if !r.ok {
		return h, false
	}
	if len(r.b) == 0 {
		return h, true // no extensions: TLS before 1.2
	}
	ext := reader{r.vec16(), r.ok}
	if !r.ok || len(r.b) != 0 {
		return h, false
	}
	var sni, alpn bool
	for len(ext.b) > 0 {
		kind := ext.take(2)
		data := ext.vec16()
		if !ext.ok {
			return h, false
		}
		switch binary.BigEndian.Uint16(kind) {
		case extensionSNI:
			if sni {
				return h, false
			}
			sni = true
			if h.SNI, ok = parseSNI(data); !ok {
				return h, false
			}
		case extensionALPN:
			if alpn {
				return h, false
			}
			alpn = true
			if h.ALPN, ok = parseALPN(data); !ok {
				return h, false
			}
		}
	}
	return h, true
}

// parseSNI reads the server_name extension (RFC 6066 §3).
func parseSNI(data []byte) (string, bool) {
	r := reader{data, true}
	list := reader{r.vec16(), r.ok}
	if !r.ok || len(r.b) != 0 || len(list.b) == 0 {
		return "", false
	}
	name := ""
	for len(list.b) > 0 {
		kind := list.take(1)
		v := list.vec16()
		if !list.ok || len(v) == 0 {
			return "", false
		}
		if kind[0] != 0 {
			continue
		}
		if name != "" || v[len(v)-1] == '.' {
			return "", false // twice, or a trailing dot, which the RFC forbids
		}
		for _, c := range v {
			if c <= ' ' || c >= 0x7f {
				return "", false
			}
		}
		name = string(bytes.ToLower(v))
	}
	return name, true
}

// parseALPN reads the list of protocol names (RFC 7301 §3.1).
func parseALPN(data []byte) ([]string, bool) {
	r := reader{data, true}
	list := reader{r.vec16(), r.ok}
	if !r.ok || len(r.b) != 0 || len(list.b) == 0 {
		return nil, false
	}
	var names []string
	for len(list.b) > 0 {
		v := list.vec8()
		if !list.ok || len(v) == 0 {
			return nil, false
		}
		names = append(names, string(v))
	}
	return names, true
}

// preface is the beginning of every HTTP/2 connection (RFC 9113 §3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// HTTP2 tells HTTP/2, by its preface, from everything else.
func HTTP2(p []byte) Verdict {
	n := min(len(p), len(preface))
	switch {
	case string(p[:n]) != preface[:n]:
		return NoMatch
	case n < len(preface):
		return NeedMore
	}
	return Match
}

// MaxRequestLine bounds the search for the end of an HTTP/1 request line. A
// longer line that has begun like a request counts as HTTP/1.1, so that the
// codec can say what is wrong with it.
const MaxRequestLine = 8<<10 + 64

// maxMethod is longer than every registered method.
const maxMethod = 24

// HTTP tells HTTP/1 (by its whole request line) and HTTP/2 (by its preface)
// from everything else.
func HTTP(p []byte) (message.Protocol, Verdict) {
	switch HTTP2(p) {
	case Match:
		return message.HTTP2, Match
	case NeedMore:
		return message.ProtocolUnknown, NeedMore
	}
	i := 0
	for i < len(p) && i <= maxMethod && (p[i] >= 'A' && p[i] <= 'Z' || p[i] == '-' || p[i] == '_') {
		i++
	}
	switch {
	case i > maxMethod:
		return message.ProtocolUnknown, NoMatch
	case i == len(p):
		return message.ProtocolUnknown, NeedMore
	case i == 0 || p[i] != ' ':
		return message.ProtocolUnknown, NoMatch
	}
	line := p[:min(len(p), MaxRequestLine)]
	eol := bytes.IndexByte(line, '\n')
	if eol < 0 {
		if len(p) < MaxRequestLine {
			return message.ProtocolUnknown, NeedMore
		}
		return message.HTTP11, Match
	}
	line = bytes.TrimSuffix(line[:eol], []byte("\r"))
	switch {
	case bytes.HasSuffix(line, []byte(" HTTP/1.1")):
		return message.HTTP11, Match
	case bytes.HasSuffix(line, []byte(" HTTP/1.0")):
		return message.HTTP10, Match
	}
	return message.ProtocolUnknown, NoMatch
}
