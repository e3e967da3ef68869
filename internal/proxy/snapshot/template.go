package snapshot

import (
	"bytes"
	"fmt"
	"strings"
)

// Template is a compiled URI template (Envoy's uri_template matcher): literal
// segments, "*" for exactly one non-empty segment, "**" for the rest of the
// path, and both as named variables "{name}", "{name=*}" and "{name=**}".
type Template struct {
	text     string
	segments []segment
}

type segment struct {
	literal string
	kind    segmentKind
}

type segmentKind uint8

const (
	segmentLiteral segmentKind = iota
	segmentOne
	segmentRest
)

// CompileTemplate parses a path template. "**" may occur once; literal
// segments may follow it.
func CompileTemplate(text string) (*Template, error) {
	if !strings.HasPrefix(text, "/") {
		return nil, fmt.Errorf("path template %q does not begin with /", text)
	}
	t := &Template{text: text}
	rest := 0
	for _, part := range strings.Split(text[1:], "/") {
		if inner, ok := strings.CutPrefix(part, "{"); ok {
			inner, ok = strings.CutSuffix(inner, "}")
			if !ok {
				return nil, fmt.Errorf("path template %q: variable %q is not closed", text, part)
			}
			_, pattern, has := strings.Cut(inner, "=")
			switch {
			case inner == "*" || inner == "**": // Istio's spelling in policies
				pattern = inner
			case !has:
				pattern = "*"
			}
			part = pattern
		}
		s := segment{literal: part}
		switch part {
		case "*":
			s.kind = segmentOne
		case "**":
			s.kind = segmentRest
			rest++
		default:
			if strings.ContainsAny(part, "*{}") {
				return nil, fmt.Errorf("path template %q: segment %q mixes text and wildcards", text, part)
			}
		}
		t.segments = append(t.segments, s)
	}
	if rest > 1 {
		return nil, fmt.Errorf("path template %q has more than one **", text)
	}
	return t, nil
}

// String returns the template as it was written.
func (t *Template) String() string { return t.text }

// Match says whether the path (without query) fits. It does not allocate.
func (t *Template) Match(path []byte) bool {
	if t == nil || len(path) == 0 || path[0] != '/' {
		return false
	}
	return matchSegments(t.segments, path[1:])
}

// matchSegments matches from the left until "**" and then from the right: there
// is at most one, so no backtracking is needed.
func matchSegments(segments []segment, path []byte) bool {
	for len(segments) > 0 && segments[0].kind != segmentRest {
		part, more := path, false
		if i := bytes.IndexByte(path, '/'); i >= 0 {
			part, path, more = path[:i], path[i+1:], true
		}
		if !segments[0].fits(part) {
			return false
		}
		segments = segments[1:]
		if more != (len(segments) > 0) {
			return false
		}
	}
	for len(segments) > 1 {
		last := segments[len(segments)-1]
		i := bytes.LastIndexByte(path, '/')
		if i < 0 || !last.fits(path[i+1:]) {
			return false
		}
		path, segments = path[:i], segments[:len(segments)-1]
	}
	return true
}

func (s segment) fits(part []byte) bool {
	if s.kind == segmentOne {
		return len(part) > 0
	}
	return string(part) == s.literal
}
