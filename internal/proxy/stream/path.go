package stream

import (
	"bytes"

	"lateen.dev/lateen/internal/proxy/snapshot"
)

// pathResult says what became of a path.
type pathResult uint8

const (
	pathUnchanged pathResult = iota
	pathChanged
	// pathBad paths are answered with 400: a fragment, a control character, a
	// path that climbs above the root.
	pathBad
	// pathRedirect asks the client to come back with the unescaped path.
	pathRedirect
)

// pathRules is how a manager wants paths to look.
type pathRules struct {
	normalize, mergeSlashes bool
	escaped                 snapshot.EscapedSlashes
}

// normalizePath brings a path into the one form that routing, policy and the
// upstream all see (RFC 3986 §6.2.2; notes on each rule in specPath, the plain
// version that fuzzing compares with). The query is left alone. dst is memory
// to use; the result is src itself when nothing changes.
func normalizePath(dst, src []byte, r pathRules) ([]byte, pathResult) {
	path, query := src, []byte(nil)
	for i, c := range src {
		if c == '#' || c < 0x20 || c == 0x7f {
			return src, pathBad // a fragment never travels in a request (RFC 9112 §3.2)
		}
		if c == '?' && query == nil {
			path, query = src[:i], src[i:]
		}
	}
	if len(path) == 0 || path[0] != '/' {
		return src, pathUnchanged // "*" and CONNECT
	}
	if canonical(path, r) {
		return src, pathUnchanged
	}
	out := dst[:0]
	result := pathChanged
	unescaped := false
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c == '%' {
			v, ok := unhex(path, i)
			switch {
			case !ok:
			case v == '/' || v == '\\':
				switch r.escaped {
				case snapshot.EscapedReject:
					return src, pathBad
				case snapshot.EscapedUnescapeRedirect, snapshot.EscapedUnescapeForward:
					c, unescaped = v, true
					i += 2
				}
			case r.normalize && unreserved(v):
				c = v
				i += 2
			}
		}
		if c == '\\' && r.normalize {
			c = '/'
		}
		out = append(out, c)
	}
	if r.mergeSlashes {
		out = mergeSlashes(out)
	}
	if r.normalize {
		var ok bool
		if out, ok = removeDots(out); !ok {
			return src, pathBad
		}
	}
	if unescaped && r.escaped == snapshot.EscapedUnescapeRedirect {
		result = pathRedirect
	}
	out = append(out, query...)
	if bytes.Equal(out, src) {
		return src, pathUnchanged
	}
	return out, result
}

// canonical is the fast test that most paths pass: nothing in them could change.
func canonical(path []byte, r pathRules) bool {
	for i, c := range path {
		switch c {
		case '%', '\\':
			return false
		case '/':
			if i+1 < len(path) && (path[i+1] == '/' && r.mergeSlashes || path[i+1] == '.') {
				return false
			}
		}
	}
	return true
}

// unhex reads the escape at p[i].
func unhex(p []byte, i int) (byte, bool) {
	if i+2 >= len(p) {
		return 0, false
	}
	hi, ok1 := hexValue(p[i+1])
	lo, ok2 := hexValue(p[i+2])
	return hi<<4 | lo, ok1 && ok2
}

func hexValue(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// unreserved characters mean the same escaped or not (RFC 3986 §2.3).
func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		c == '-' || c == '.' || c == '_' || c == '~'
}

// mergeSlashes joins runs of slashes, in place.
func mergeSlashes(p []byte) []byte {
	out := p[:0]
	for _, c := range p {
		if c == '/' && len(out) > 0 && out[len(out)-1] == '/' {
			continue
		}
		out = append(out, c)
	}
	return out
}

// removeDots resolves "." and ".." segments, in place (RFC 3986 §5.2.4). A path
// above the root is refused instead of clamped: no honest client sends one.
func removeDots(p []byte) ([]byte, bool) {
	out := p[:0]
	for i := 0; i < len(p); {
		end := i + 1 // p[i] is a slash
		for end < len(p) && p[end] != '/' {
			end++
		}
		segment, last := p[i+1:end], end == len(p)
		switch {
		case len(segment) == 1 && segment[0] == '.':
			if last {
				out = append(out, '/')
			}
		case len(segment) == 2 && segment[0] == '.' && segment[1] == '.':
			cut := bytes.LastIndexByte(out, '/')
			if cut < 0 {
				return nil, false
			}
			out = out[:cut]
			if last {
				out = append(out, '/')
			}
		default:
			out = append(out, p[i:end]...)
		}
		i = end
	}
	if len(out) == 0 {
		out = append(out, '/')
	}
	return out, true
}

// normalizeHost brings an authority into lower case without a trailing dot, in
// place. ok is false for one that names no host.
func normalizeHost(h []byte) (host []byte, changed, ok bool) {
	for i, c := range h {
		switch {
		case 'A' <= c && c <= 'Z':
			h[i] = c + 'a' - 'A' // in place: same length
			changed = true
		case c <= ' ' || c == 0x7f || c == '/' || c == '\\' || c == '?' || c == '#' || c == '@' || c == '%' && !bytes.HasPrefix(h, []byte("[")):
			return h, changed, false
		}
	}
	name, port := h, []byte(nil)
	if i := bytes.LastIndexByte(h, ':'); i >= 0 && bytes.IndexByte(h[i:], ']') < 0 {
		name, port = h[:i], h[i:]
	}
	if n := len(name); n > 0 && name[n-1] == '.' {
		if n == 1 || name[n-2] == '.' {
			return h, changed, false
		}
		copied := make([]byte, 0, len(h)) // rare: only hosts with a trailing dot pay
		return append(append(copied, name[:n-1]...), port...), true, true
	}
	return h, changed, true
}
