package snapshot

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"unsafe"

	"lateen.dev/lateen/internal/proxy/message"
)

// maxRegex bounds a regular expression that a control plane may send. Istio
// allows 1,024 bytes; unions that it makes of several are longer.
const maxRegex = 16 << 10

// CompileRegex compiles an RE2 expression that has to match the whole value,
// as Envoy's safe_regex does.
func CompileRegex(expr string) (*regexp.Regexp, error) {
	if len(expr) > maxRegex {
		return nil, fmt.Errorf("regex of %d bytes is longer than %d", len(expr), maxRegex)
	}
	if _, err := regexp.Compile(expr); err != nil {
		return nil, err // without our anchors in the message
	}
	return regexp.Compile(`\A(?:` + expr + `)\z`)
}

// regexMatcher compiles a whole-value regex. Shapes that are only a literal
// with ".*" at an end become plain comparisons: Istio writes namespaces as
// ".*/ns/NAME/.*", and a substring search costs a tenth of the automaton.
func regexMatcher(expr string) (StringMatcher, error) {
	re, err := CompileRegex(expr)
	if err != nil {
		return StringMatcher{}, err
	}
	lit, front := strings.CutPrefix(expr, ".*")
	lit, back := strings.CutSuffix(lit, ".*")
	if lit != "" && regexp.QuoteMeta(lit) == lit {
		switch {
		case front && back:
			return StringMatcher{Kind: StringContains, Text: lit, Regex: re}, nil
		case front:
			return StringMatcher{Kind: StringSuffix, Text: lit, Regex: re}, nil
		case back:
			return StringMatcher{Kind: StringPrefix, Text: lit, Regex: re}, nil
		}
	}
	return StringMatcher{Kind: StringRegex, Text: expr, Regex: re}, nil
}

// Match says whether v matches. It does not allocate.
func (m *StringMatcher) Match(v []byte) bool { return m.match(v) != m.Invert }

func (m *StringMatcher) match(v []byte) bool {
	switch m.Kind {
	case StringExact:
		return len(v) == len(m.Text) && m.equal(v, m.Text)
	case StringPrefix:
		return len(v) >= len(m.Text) && m.equal(v[:len(m.Text)], m.Text)
	case StringSuffix:
		return len(v) >= len(m.Text) && m.equal(v[len(v)-len(m.Text):], m.Text)
	case StringContains:
		for i := 0; i+len(m.Text) <= len(v); i++ {
			if m.equal(v[i:i+len(m.Text)], m.Text) {
				return true
			}
		}
		return false
	case StringRegex:
		return m.Regex != nil && m.Regex.Match(v)
	case StringPresent:
		return true
	}
	return false
}

// MatchString is Match for a string.
func (m *StringMatcher) MatchString(v string) bool {
	// No copy: matching only reads, and principals are compared on every request.
	return m.Match(unsafe.Slice(unsafe.StringData(v), len(v)))
}

// equal compares values of the same length.
func (m *StringMatcher) equal(v []byte, text string) bool {
	if !m.IgnoreCase {
		return string(v) == text
	}
	return equalFold(v, text)
}

// equalFold compares ASCII letters without case, as Envoy does; lengths must be
// equal.
func equalFold(v []byte, text string) bool {
	if len(v) != len(text) {
		return false
	}
	for i, c := range v {
		if lower(c) != lower(text[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// Scratch is reusable memory for matching. The zero value is ready; it belongs
// to one goroutine.
type Scratch struct{ buf []byte }

// headerValue returns the value of a header as route matching sees it: several
// fields of one name joined by ",". It borrows from h or s.
func headerValue(h *message.Head, name string, s *Scratch) (value []byte, present bool) {
	if len(name) > 0 && name[0] == ':' || name == "host" {
		return pseudo(h, name)
	}
	joined := false
	for i := range h.Len() {
		_, n, v, ok := h.Field(i)
		if !ok || string(n) != name {
			continue
		}
		switch {
		case !present:
			value, present = v, true
		case !joined:
			s.buf = append(append(append(s.buf[:0], value...), ','), v...)
			value, joined = s.buf, true
		default:
			s.buf = append(append(s.buf, ','), v...)
			value = s.buf
		}
	}
	return value, present
}

// pseudo returns a pseudo header; "host" is the authority, as in Envoy.
func pseudo(h *message.Head, name string) ([]byte, bool) {
	var v []byte
	switch name {
	case ":method":
		v = h.Method()
	case ":authority", "host":
		v = h.Authority()
	case ":path":
		v = h.Path()
	case ":scheme":
		v = h.Scheme()
	}
	return v, len(v) > 0
}

// Match says whether the head fulfils the header criterion. An absent header
// matches only an inverted presence check, or as "" when asked to
// (config.route.v3.HeaderMatcher).
func (m *HeaderMatch) Match(h *message.Head, s *Scratch) bool {
	v, present := headerValue(h, m.Name, s)
	return m.matchValue(v, present)
}

// matchValue applies the criterion to one value.
func (m *HeaderMatch) matchValue(v []byte, present bool) bool {
	if m.Present {
		return present != m.Invert
	}
	if !present {
		if !m.TreatMissingAsEmpty {
			return false
		}
		v = nil
	}
	if m.Range != nil {
		n, ok := parseInt(v)
		return (ok && n >= m.Range[0] && n < m.Range[1]) != m.Invert
	}
	return m.Value.Match(v) != m.Invert
}

// parseInt reads a decimal 64-bit integer without allocating.
func parseInt(v []byte) (n int64, ok bool) {
	neg := false
	if len(v) > 0 && (v[0] == '-' || v[0] == '+') {
		neg, v = v[0] == '-', v[1:]
	}
	if len(v) == 0 || len(v) > 18 {
		return 0, false
	}
	for _, c := range v {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	if neg {
		n = -n
	}
	return n, true
}

// queryValue returns the first value of a query parameter, not decoded, as
// Envoy's route matching sees it.
func queryValue(query []byte, name string) ([]byte, bool) {
	for len(query) > 0 {
		part := query
		if i := bytes.IndexByte(query, '&'); i >= 0 {
			part, query = query[:i], query[i+1:]
		} else {
			query = nil
		}
		key, value := part, []byte(nil)
		if i := bytes.IndexByte(part, '='); i >= 0 {
			key, value = part[:i], part[i+1:]
		}
		if string(key) == name {
			return value, true
		}
	}
	return nil, false
}

// Match says whether the query (without "?") fulfils the criterion.
func (m *QueryMatch) Match(query []byte) bool {
	v, ok := queryValue(query, m.Name)
	if !ok {
		return false
	}
	return m.Present || m.Value.Match(v)
}
