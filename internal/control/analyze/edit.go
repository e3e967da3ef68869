package analyze

import (
	"bytes"
	"strings"

	"go.yaml.in/yaml/v3"

	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

// The edits below work on lines of block-style YAML, so that comments and
// everything they do not touch stay as they are. What is written in flow style
// ("{a: b}") is left to people.

// entry is the lines [first, last] of one "key: value" in block style.
type entry struct {
	text        *resource.Text
	first, last int
	indent      int // blanks before the key
}

// blockEntry returns the lines of a mapping entry whose key begins its line, or
// stands behind a list item's "- ".
func blockEntry(t *resource.Text, p resource.Place) (entry, bool) {
	if t == nil || p.Key == nil || p.Parent == nil || p.Parent.Style&yaml.FlowStyle != 0 {
		return entry{}, false
	}
	line := t.Line(p.Key.Line)
	before := line[:min(p.Key.Column-1, len(line))]
	if strings.Trim(string(before), " ") != "" {
		return entry{}, false
	}
	e := entry{text: t, first: p.Key.Line, indent: p.Key.Column - 1}
	e.last = blockEnd(t, p.Key.Line, e.indent, p.Value.Kind == yaml.SequenceNode)
	return e, true
}

// blockEnd returns the last line of the block that begins at line first with
// the given indentation: what follows deeper, without blanks and comments at
// its end that belong to what comes after.
func blockEnd(t *resource.Text, first, indent int, list bool) int {
	last := first
	for n := first + 1; n <= t.Lines(); n++ {
		line := string(t.Line(n))
		body := strings.TrimLeft(line, " ")
		deep := len(line) - len(body)
		switch {
		case strings.TrimSpace(body) == "":
			continue
		case strings.HasPrefix(line, "---"), strings.HasPrefix(line, "..."):
			return last
		case deep > indent, list && deep == indent && (strings.HasPrefix(body, "- ") || body == "-"):
			last = n
		default:
			return last
		}
	}
	return last
}

// withComments extends the entry by the comment lines right above it, which are
// about it when they have its indentation.
func (e entry) withComments() entry {
	for e.first > 1 {
		line := string(e.text.Line(e.first - 1))
		body := strings.TrimLeft(line, " ")
		if !strings.HasPrefix(body, "#") || len(line)-len(body) != e.indent {
			break
		}
		e.first--
	}
	return e
}

// remove returns the edit that deletes the entry's lines, and a blank line
// before them when there is one.
func (e entry) remove() finding.Edit {
	first := e.first
	if first > 1 && len(bytes.TrimSpace(e.text.Line(first-1))) == 0 {
		first--
	}
	return finding.Edit{File: e.text.Name, Start: e.text.LineStart(first), End: e.text.LineEnd(e.last)}
}

// indented returns the entry's lines moved to another indentation.
func (e entry) indented(to int) string {
	return reindent(e.text, e.first, e.last, e.indent, to)
}

// reindent returns lines [first, last] of t, indented by from blanks, as they
// read when indented by to.
func reindent(t *resource.Text, first, last, from, to int) string {
	var b strings.Builder
	for n := first; n <= last; n++ {
		line := string(t.Line(n))
		if strings.TrimSpace(line) == "" {
			b.WriteString(t.NewLine())
			continue
		}
		blanks := len(line) - len(strings.TrimLeft(line, " "))
		b.WriteString(strings.Repeat(" ", max(to+min(blanks, 1<<10)-from, 0)) + line[blanks:] + t.NewLine())
	}
	return b.String()
}

// insertAfter returns the edit that puts whole lines behind line n.
func insertAfter(t *resource.Text, n int, lines string) finding.Edit {
	at := t.LineEnd(n)
	if at == len(t.Data) && at > 0 && t.Data[at-1] != '\n' {
		lines = t.NewLine() + strings.TrimSuffix(lines, t.NewLine())
	}
	return finding.Edit{File: t.Name, Start: at, End: at, Text: lines}
}

// replace returns the edit that replaces a scalar's text, old, where the node
// stands; false when the file spells it in another way (escapes, folding).
func replace(t *resource.Text, n *yaml.Node, old, text string) (finding.Edit, bool) {
	if t == nil || n == nil || n.Kind != yaml.ScalarNode {
		return finding.Edit{}, false
	}
	start := t.Offset(n.Line, n.Column)
	rest := t.Data[start:t.LineEnd(n.Line)]
	i := bytes.Index(rest, []byte(old))
	// At most a quote or the host's scheme may stand before it.
	if i < 0 || bytes.ContainsAny(rest[:i], " \t#") {
		return finding.Edit{}, false
	}
	return finding.Edit{File: t.Name, Start: start + i, End: start + i + len(old), Text: text}, true
}

// fixOf makes a fix of edits; nil when there are none.
func fixOf(summary string, edits ...finding.Edit) *finding.Fix {
	if len(edits) == 0 {
		return nil
	}
	return &finding.Fix{Summary: summary, Edits: edits}
}

// hostFix puts a namespace behind a host in the value at path.
func hostFix(o *resource.Object, path, host, namespace string) *finding.Fix {
	e, ok := replace(o.Text(), o.Find(path).Value, host, host+"."+namespace)
	if !ok {
		return nil
	}
	return fixOf("give "+host+" its namespace: names resolve in the workload's own namespace first", e)
}

// itemEnd returns the last line of a list item in block style and the column of
// its keys, counted from 0; false for other items.
func itemEnd(t *resource.Text, list, item *yaml.Node) (last, indent int, ok bool) {
	if t == nil || item == nil || item.Kind != yaml.MappingNode || item.Style&yaml.FlowStyle != 0 ||
		list.Style&yaml.FlowStyle != 0 || len(item.Content) == 0 {
		return 0, 0, false
	}
	first := item.Content[0]
	dash := strings.IndexByte(string(t.Line(first.Line)), '-')
	if dash < 0 || dash >= first.Column-1 {
		return 0, 0, false
	}
	return blockEnd(t, first.Line, dash, false), first.Column - 1, true
}

// mapEnd returns the last line and the indentation of a block mapping's keys.
func mapEnd(t *resource.Text, p resource.Place) (last, indent int, ok bool) {
	v := p.Value
	if t == nil || v == nil || v.Kind != yaml.MappingNode || v.Style&yaml.FlowStyle != 0 || len(v.Content) == 0 {
		return 0, 0, false
	}
	n := len(v.Content)
	key := v.Content[n-2]
	indent = v.Content[0].Column - 1
	return blockEnd(t, key.Line, key.Column-1, v.Content[n-1].Kind == yaml.SequenceNode), indent, true
}
