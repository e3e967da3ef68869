package resource

import (
	"errors"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"

	"lateen.dev/lateen/internal/finding"
)

// positions maps the fields of an object to their places in its file: it holds
// the parsed node tree, whose nodes know line and column.
type positions struct {
	text *Text
	root *yaml.Node // the object's mapping; nil for objects without a text
}

// Place is where one field stands in a text.
type Place struct {
	// Key is the node of the mapping key, nil for list items and the object itself.
	Key *yaml.Node
	// Value is the field's value with aliases not followed.
	Value *yaml.Node
	// Parent is the mapping or list that holds the field, nil for the root.
	Parent *yaml.Node
	// Exact is false when the path was not found and this is its nearest ancestor.
	Exact bool
}

// Node returns the node that stands for the place: the key if there is one.
func (p Place) Node() *yaml.Node {
	if p.Key != nil {
		return p.Key
	}
	return p.Value
}

// Text returns the file the object was decoded from; nil for objects that
// never had one.
func (o *Object) Text() *Text { return o.fields.text }

// Root returns the object's node tree; nil for objects that never had one.
// It must not be changed.
func (o *Object) Root() *yaml.Node { return o.fields.root }

// Find returns the place of a field, or of its nearest known ancestor.
func (o *Object) Find(path string) Place {
	at := Place{Value: o.fields.root, Exact: true}
	if at.Value == nil {
		return Place{}
	}
	for _, s := range splitPath(path) {
		next, ok := o.descend(at, s)
		if !ok {
			at.Exact = false
			return at
		}
		at = next
	}
	return at
}

func (o *Object) descend(at Place, s step) (Place, bool) {
	v := resolveAlias(at.Value)
	switch {
	case v == nil:
		return at, false
	case s.embedded:
		root, err := o.embeddedNode(at)
		if err != nil || root == nil {
			return at, false
		}
		return Place{Key: at.Key, Value: root, Exact: true}, true
	case s.index >= 0:
		if v.Kind != yaml.SequenceNode || s.index >= len(v.Content) {
			return at, false
		}
		return Place{Value: v.Content[s.index], Parent: v, Exact: true}, true
	case v.Kind == yaml.MappingNode:
		for i := 0; i+1 < len(v.Content); i += 2 {
			if v.Content[i].Value == s.key {
				return Place{Key: v.Content[i], Value: v.Content[i+1], Parent: v, Exact: true}, true
			}
		}
	}
	return at, false
}

// Pos returns the place of the field's key (for a list item, of the item), or
// of the nearest known ancestor.
func (o *Object) Pos(path string) finding.Position {
	return o.position(o.Find(path).Node())
}

// ValuePos returns the place of the field's value, or of the nearest known
// ancestor's key when the field is not there.
func (o *Object) ValuePos(path string) finding.Position {
	p := o.Find(path)
	if !p.Exact {
		return o.position(p.Node())
	}
	return o.position(p.Value)
}

// Has reports whether the manifest spells the field out.
func (o *Object) Has(path string) bool { return o.Find(path).Exact }

func (o *Object) position(n *yaml.Node) finding.Position {
	if n == nil || o.fields.text == nil {
		return finding.Position{File: o.Source}
	}
	return finding.Position{File: o.fields.text.Name, Line: n.Line, Column: n.Column}
}

func resolveAlias(n *yaml.Node) *yaml.Node {
	for n != nil && n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

// Embedded parses the YAML that a string field holds and returns its root
// node, nil for an empty text. Nodes have the line and column of the file when
// the string is a literal block scalar; for other styles all of them have the
// place of the string, since escapes make columns meaningless.
func (o *Object) Embedded(path string) (*yaml.Node, error) {
	p := o.Find(path)
	if !p.Exact {
		return nil, fmt.Errorf("no field %s", path)
	}
	return o.embeddedNode(p)
}

func (o *Object) embeddedNode(p Place) (*yaml.Node, error) {
	v := resolveAlias(p.Value)
	if v == nil || v.Kind != yaml.ScalarNode {
		return nil, errors.New("the field is not a text")
	}
	if len(v.Value) > maxDocument {
		return nil, errors.New("the text is too large")
	}
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(v.Value), &doc); err != nil {
		return nil, shiftYAMLError(err, v)
	}
	if len(doc.Content) == 0 {
		return nil, nil
	}
	lines, columns := 0, 0
	literal := v.Style&yaml.LiteralStyle != 0 && o.fields.text != nil
	if literal {
		lines, columns = v.Line, blockIndent(o.fields.text, v)
	}
	moveNodes(&doc, func(n *yaml.Node) {
		if literal {
			n.Line, n.Column = n.Line+lines, n.Column+columns
		} else {
			n.Line, n.Column = v.Line, v.Column
		}
	})
	return doc.Content[0], nil
}

// shiftYAMLError makes the line in a parser's message that of the file.
func shiftYAMLError(err error, v *yaml.Node) error {
	line, text := splitYAMLError(err)
	if line == 0 || v.Style&yaml.LiteralStyle == 0 {
		return errors.New(text)
	}
	return &yamlError{line: v.Line + line, text: text}
}

// blockIndent returns the number of columns that a literal block scalar's
// lines are indented by in the file: that of its first line that is not blank,
// or what its header says ("|2").
func blockIndent(t *Text, v *yaml.Node) int {
	header := string(t.Line(v.Line))
	if i := strings.LastIndexAny(header, "|>"); i >= 0 {
		for _, r := range header[i+1:] {
			if r == '#' {
				break
			}
			if r >= '1' && r <= '9' {
				return headerIndent(t, v, int(r-'0'))
			}
		}
	}
	for n := v.Line + 1; n <= t.Lines(); n++ {
		line := t.Line(n)
		text := strings.TrimLeft(string(line), " ")
		if strings.TrimSpace(text) != "" {
			return len(line) - len(text)
		}
	}
	return 0
}

// headerIndent is the indentation for an explicit indicator, which counts from
// the indentation of the parent: the column of the line's own first character.
func headerIndent(t *Text, v *yaml.Node, more int) int {
	line := string(t.Line(v.Line))
	indent := len(line) - len(strings.TrimLeft(line, " -"))
	return indent + more
}

// moveNodes calls f on n and all nodes under it once; aliases are not followed.
func moveNodes(n *yaml.Node, f func(*yaml.Node)) {
	f(n)
	for _, c := range n.Content {
		moveNodes(c, f)
	}
}
