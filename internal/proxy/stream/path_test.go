package stream

import (
	"strings"
	"testing"

	"lateen.dev/lateen/internal/proxy/snapshot"
)

// specPath is the plain version of normalizePath: one rule after the other, on
// strings.
func specPath(src string, r pathRules) (string, pathResult) {
	if strings.Contains(src, "#") || strings.ContainsFunc(src, func(c rune) bool { return c < 0x20 || c == 0x7f }) {
		return src, pathBad
	}
	path, query := src, ""
	if i := strings.IndexByte(src, '?'); i >= 0 {
		path, query = src[:i], src[i:]
	}
	if !strings.HasPrefix(path, "/") {
		return src, pathUnchanged
	}
	redirect := false
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		if path[i] == '%' && i+2 < len(path) {
			const digits = "0123456789abcdef"
			hi := strings.IndexByte(digits, strings.ToLower(path[i+1 : i+2])[0])
			lo := strings.IndexByte(digits, strings.ToLower(path[i+2 : i+3])[0])
			if hi >= 0 && lo >= 0 {
				c := byte(hi*16 + lo)
				slash := c == '/' || c == '\\'
				if slash && r.escaped == snapshot.EscapedReject {
					return src, pathBad
				}
				unescape := slash && r.escaped != snapshot.EscapedKeep
				plain := strings.IndexByte("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~", c) >= 0
				if unescape || r.normalize && plain {
					redirect = redirect || unescape
					b.WriteByte(c)
					i += 2
					continue
				}
			}
		}
		b.WriteByte(path[i])
	}
	out := b.String()
	if r.normalize {
		out = strings.ReplaceAll(out, `\`, "/")
	}
	if r.mergeSlashes {
		for strings.Contains(out, "//") {
			out = strings.ReplaceAll(out, "//", "/")
		}
	}
	if r.normalize {
		var kept []string
		segments := strings.Split(out, "/")[1:]
		for i, s := range segments {
			last := i == len(segments)-1
			switch s {
			case ".":
				if last {
					kept = append(kept, "")
				}
			case "..":
				if len(kept) == 0 {
					return src, pathBad
				}
				kept = kept[:len(kept)-1]
				if last {
					kept = append(kept, "")
				}
			default:
				kept = append(kept, s)
			}
		}
		out = "/" + strings.Join(kept, "/")
	}
	out += query
	switch {
	case out == src:
		return src, pathUnchanged
	case redirect && r.escaped == snapshot.EscapedUnescapeRedirect:
		return out, pathRedirect
	}
	return out, pathChanged
}

func TestNormalizePath_table(t *testing.T) {
	all := pathRules{normalize: true, mergeSlashes: true}
	for _, c := range []struct {
		in   string
		r    pathRules
		want string
		how  pathResult
	}{
		{"/a/b", all, "/a/b", pathUnchanged},
		{"/", all, "/", pathUnchanged},
		{"*", all, "*", pathUnchanged},
		{"//admin", all, "/admin", pathChanged},
		{"/a/./b/../c", all, "/a/c", pathChanged},
		{"/public/..", all, "/", pathChanged},
		{"/%41dmin", all, "/Admin", pathChanged},
		{"/x/%2e%2E/admin?u=../x", all, "/admin?u=../x", pathChanged},
		{"/..", all, "/..", pathBad},
		{"/a#b", all, "/a#b", pathBad},
		{"/a%2Fb", all, "/a%2Fb", pathUnchanged},
		{"/a%2Fb", pathRules{normalize: true, escaped: snapshot.EscapedReject}, "/a%2Fb", pathBad},
		{"/a%2Fb", pathRules{normalize: true, escaped: snapshot.EscapedUnescapeForward}, "/a/b", pathChanged},
		{"/a%5c..%5cb", pathRules{normalize: true, escaped: snapshot.EscapedUnescapeForward}, "/b", pathChanged},
		{"/a%2Fb", pathRules{normalize: true, escaped: snapshot.EscapedUnescapeRedirect}, "/a/b", pathRedirect},
		{"/a%", all, "/a%", pathUnchanged},
		{"/%252e%252e/x", all, "/%252e%252e/x", pathUnchanged},
	} {
		got, how := normalizePath(nil, []byte(c.in), c.r)
		if string(got) != c.want || how != c.how {
			t.Errorf("%q %+v: %q %d, want %q %d", c.in, c.r, got, how, c.want, c.how)
		}
	}
}

func FuzzNormalizePath(f *testing.F) {
	for _, s := range []string{"/", "/a/../b", "//x/%2e%2e/", `/a\..\b`, "/%2f%5C?x", "/.", "/..", "/a/.", "*", "/%zz%4", "/a//../b"} {
		for flags := range byte(16) {
			f.Add(s, flags)
		}
	}
	f.Fuzz(func(t *testing.T, path string, flags byte) {
		r := pathRules{normalize: flags&1 != 0, mergeSlashes: flags&2 != 0, escaped: snapshot.EscapedSlashes(flags >> 2 & 3)}
		want, how := specPath(path, r)
		got, result := normalizePath(nil, []byte(path), r)
		if string(got) != want || result != how {
			t.Fatalf("%q %+v: %q %d, want %q %d", path, r, got, result, want, how)
		}
		if result == pathChanged && r.normalize {
			// One form: doing it again changes nothing, unless an escape was
			// revealed by another ("%2%35"), which must not be decoded twice.
			again, _ := normalizePath(nil, got, r)
			if string(again) != string(got) && !strings.Contains(string(got), "%") {
				t.Fatalf("%q becomes %q, then %q", path, got, again)
			}
		}
	})
}

func FuzzNormalizeHost(f *testing.F) {
	for _, s := range []string{"a", "A.B.", "a..", "[::1]:80", "a:80", "a.:80", ".", "a@b", "a b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, host string) {
		got, _, ok := normalizeHost([]byte(host))
		if !ok {
			return
		}
		if again, changed, ok := normalizeHost(append([]byte(nil), got...)); !ok || changed || string(again) != string(got) {
			t.Fatalf("%q becomes %q, then %q (%v)", host, got, again, ok)
		}
		if strings.ToLower(string(got)) != string(got) && strings.ToValidUTF8(host, "") == host && isASCII(host) {
			t.Fatalf("%q keeps upper case: %q", host, got)
		}
	})
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r > 0x7f })
}
