package resource

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"lateen.dev/lateen/internal/finding"
)

const (
	// maxDocument is the largest document that is read: twice what Kubernetes'
	// store accepts for an object.
	maxDocument = 3 << 20
	// maxFile is the largest file that is read.
	maxFile = 64 << 20
	// maxExpansion bounds the values that aliases may add to one document, so
	// that a few lines cannot become gigabytes.
	maxExpansion = 100_000
	maxDepth     = 100
)

// walker turns one document's nodes into the JSON tree that the typed decoders
// read, checking each value against a shape on the way. What it reports it
// leaves out, so that the rest of the object still decodes.
type walker struct {
	object   finding.Object
	pos      func(*yaml.Node) finding.Position
	root     shape
	findings []finding.Finding
	depth    int
	inAlias  int
	expanded int
	bomb     bool
}

func (w *walker) report(code, path string, n *yaml.Node, hint, format string, args ...any) {
	f := finding.Newf(code, w.object, path, w.pos(n), format, args...)
	f.Hint = hint
	w.findings = append(w.findings, f)
}

// value converts n, which stands at path and must look like s. The second
// result is false when the value is to be left out.
func (w *walker) value(n *yaml.Node, s shape, path string) (any, bool) {
	if n.Kind == yaml.AliasNode {
		w.inAlias++
		defer func() { w.inAlias-- }()
		n = resolveAlias(n)
	}
	if !w.affordable(n, path) {
		return nil, false
	}
	w.depth++
	defer func() { w.depth-- }()
	switch n.Kind {
	case yaml.ScalarNode:
		return w.scalar(n, s, path)
	case yaml.SequenceNode:
		return w.list(n, s, path)
	case yaml.MappingNode:
		return w.mapping(n, s, path)
	}
	return nil, false
}

// affordable counts what aliases add and how deep values nest.
func (w *walker) affordable(n *yaml.Node, path string) bool {
	if w.bomb || n == nil {
		return false
	}
	if w.inAlias > 0 {
		w.expanded++
	}
	if w.expanded > maxExpansion || w.depth > maxDepth {
		w.bomb = true
		w.report(finding.Expansion, path, n, "write the values out, or generate the file",
			"aliases and nesting expand this document to more than %d values or %d levels", maxExpansion, maxDepth)
		return false
	}
	return true
}

func (w *walker) scalar(n *yaml.Node, s shape, path string) (any, bool) {
	sc := scalarOf(n)
	switch s.kind() {
	case objectShape, listShape, mapShape:
		if sc.tag == "!!null" {
			return nil, false
		}
		_, want, hint := s.check(sc)
		switch {
		case want != "":
		case s.kind() == listShape:
			want = "a list"
		default:
			want = "an object"
		}
		w.report(finding.WrongType, path, n, hint, "%s is %s; it must be %s", lastOf(path), sc, want)
		return nil, false
	case anyShape:
		v := plainValue(sc)
		return v, v != nil
	}
	v, want, hint := s.check(sc)
	if want != "" {
		code := finding.WrongType
		if strings.HasPrefix(want, "one of ") {
			code = finding.UnknownEnum
		}
		w.report(code, path, n, hint, "%s is %s; it must be %s", lastOf(path), sc, want)
		return nil, false
	}
	return v, v != nil
}

func (w *walker) list(n *yaml.Node, s shape, path string) (any, bool) {
	switch s.kind() {
	case listShape, anyShape, looseShape:
	default:
		w.report(finding.WrongType, path, n, "", "%s is a list; it must be %s", lastOf(path), wanted(s))
		return nil, false
	}
	out := make([]any, 0, len(n.Content))
	for i, item := range n.Content {
		v, ok := w.value(item, s.elem(), Item(path, i))
		if !ok && s.kind() == listShape && s.elem().kind() == objectShape && isNull(item) {
			// "- " with nothing after it: an empty member keeps its index.
			v, ok = map[string]any{}, true
		}
		if ok || s.kind() != listShape {
			out = append(out, v)
		}
	}
	return out, true
}

func isNull(n *yaml.Node) bool {
	n = resolveAlias(n)
	return n != nil && n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

func wanted(s shape) string {
	switch s.kind() {
	case objectShape, mapShape:
		return "an object"
	case listShape:
		return "a list"
	}
	_, want, _ := s.check(scalar{tag: "!!map"})
	if want == "" {
		return "a plain value"
	}
	return want
}

func (w *walker) mapping(n *yaml.Node, s shape, path string) (any, bool) {
	switch s.kind() {
	case objectShape, mapShape, anyShape, looseShape:
	default:
		w.report(finding.WrongType, path, n, "", "%s is an object; it must be %s", lastOf(path), wanted(s))
		return nil, false
	}
	out := make(map[string]any, len(n.Content)/2)
	seen := make(map[string]*yaml.Node, len(n.Content)/2)
	groups := map[string]string{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := resolveAlias(n.Content[i]), n.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			w.report(finding.WrongType, path, key, "", "a key of %s is not a plain word", lastOf(path))
			continue
		}
		if key.Tag == "!!merge" || key.Value == "<<" && key.Style == 0 {
			w.merge(val, s, path, out, n)
			continue
		}
		if first := seen[key.Value]; first != nil {
			w.report(finding.DuplicateKey, Field(path, key.Value), key, "keep one of the two",
				"key %q appears twice; first at line %d", clip(key.Value, 60), w.pos(first).Line)
			continue
		}
		seen[key.Value] = key
		w.member(out, groups, key, val, s, path)
	}
	return out, true
}

// member converts one entry of a mapping into out.
func (w *walker) member(out map[string]any, groups map[string]string, key, val *yaml.Node, s shape, path string) {
	name := key.Value
	at := Field(path, name)
	child := s.elem()
	if s.kind() == objectShape {
		var known bool
		if child, known = s.field(name); !known {
			w.unknown(key, s, path)
			return
		}
		if g := s.oneof(name); g != "" && !isNull(val) {
			if other := groups[g]; other != "" {
				w.report(finding.OneOf, at, key, "remove one of them",
					"%q and %q exclude each other in %s", other, name, lastOf(path))
				return
			}
			groups[g] = name
		}
	}
	if v, ok := w.value(val, child, at); ok {
		out[name] = v
	}
}

// merge adds what "<<" points to, without overriding what is there.
func (w *walker) merge(val *yaml.Node, s shape, path string, out map[string]any, host *yaml.Node) {
	w.inAlias++
	defer func() { w.inAlias-- }()
	val = resolveAlias(val)
	if val == nil || !w.affordable(val, path) {
		return
	}
	w.depth++
	defer func() { w.depth-- }()
	switch val.Kind {
	case yaml.SequenceNode:
		for _, item := range val.Content {
			w.merge(item, s, path, out, host)
		}
	case yaml.MappingNode:
		v, ok := w.mapping(val, s, path)
		if !ok {
			return
		}
		for k, member := range v.(map[string]any) {
			if _, there := out[k]; !there && !hasKey(host, k) {
				out[k] = member
			}
		}
	default:
		w.report(finding.WrongType, path, val, "", "<< must name an object")
	}
}

func hasKey(n *yaml.Node, key string) bool {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return true
		}
	}
	return false
}

// unknown reports a field that the schema does not have, with where it belongs
// or what was probably meant.
func (w *walker) unknown(key *yaml.Node, s shape, path string) {
	name, at := key.Value, Field(path, key.Value)
	in := lastOf(path)
	if in == "" {
		in = "the object"
	}
	if near := nearest(name, s.names()); near != "" {
		w.report(finding.UnknownField, at, key, fmt.Sprintf("did you mean %q?", near),
			"unknown field %q in %s", clip(name, 60), in)
		return
	}
	if below := whereBelongs(s, name); below != "" {
		full := joinPath(path, below)
		home := strings.TrimSuffix(full, "."+name)
		hint := fmt.Sprintf("move it into %s", home)
		if list, each := strings.CutSuffix(home, "[]"); each {
			home = "the entries of " + list
			hint = fmt.Sprintf("move it into the entries it is for, for example %s", strings.ReplaceAll(full, "[]", "[0]"))
		}
		w.report(finding.Misplaced, at, key, hint,
			"field %q does not belong in %s but in %s; as written it has no effect", name, in, home)
		return
	}
	if elsewhere := whereBelongs(w.root, name); elsewhere != "" {
		w.report(finding.UnknownField, at, key, fmt.Sprintf("%s has such a field", strings.TrimSuffix(elsewhere, "."+name)),
			"unknown field %q in %s", clip(name, 60), in)
		return
	}
	w.report(finding.UnknownField, at, key, "remove it; the kind has no such field", "unknown field %q in %s", clip(name, 60), in)
}

func joinPath(path, below string) string {
	switch {
	case path == "":
		return below
	case strings.HasPrefix(below, "["), strings.HasSuffix(path, "@"):
		return path + below
	}
	return path + "." + below
}

// lastOf names a path in a message: the path itself, without the manifest's
// top for the object as a whole.
func lastOf(path string) string {
	if path == "" {
		return "the object"
	}
	return path
}

func scalarOf(n *yaml.Node) scalar {
	return scalar{
		tag:  n.ShortTag(),
		text: n.Value,
		quoted: n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|
			yaml.FoldedStyle) != 0,
	}
}

// plainValue is the JSON value of a scalar that no schema describes.
func plainValue(s scalar) any {
	if s.quoted {
		return s.text
	}
	switch s.tag {
	case "!!null":
		return nil
	case "!!bool":
		return strings.EqualFold(s.text, "true")
	case "!!int":
		if n, err := strconv.ParseInt(strings.ReplaceAll(s.text, "_", ""), 0, 64); err == nil {
			return json.Number(strconv.FormatInt(n, 10))
		}
		return s.text
	case "!!float":
		f, err := strconv.ParseFloat(strings.ReplaceAll(s.text, "_", ""), 64)
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return s.text
		}
		return f
	}
	return s.text
}
