package resource

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"lateen.dev/lateen/internal/finding"
)

// Decode reads a file of YAML or JSON documents. Each document stands for
// itself: what is wrong with one does not touch the others.
//
// The findings returned are those about documents that became no object. What
// is wrong inside an object that was made is in its Findings, and
// validate.Object reports it; an object with an Error among them must not be
// put in force.
//
// Decode keeps data, which the caller must not change, and never panics.
func Decode(file string, data []byte) ([]*Object, []finding.Finding) {
	if len(data) > maxFile {
		return nil, []finding.Finding{finding.Newf(finding.TooLarge, finding.Object{}, "", finding.Position{File: file},
			"the file has %d MiB; at most %d MiB are read", len(data)>>20, maxFile>>20)}
	}
	t := NewText(file, data)
	if f, ok := checkEncoding(t); !ok {
		return nil, []finding.Finding{f}
	}
	var objects []*Object
	var findings []finding.Finding
	for _, d := range documents(t) {
		os, fs := decodeDocument(t, d)
		objects, findings = append(objects, os...), append(findings, fs...)
	}
	return objects, findings
}

// DecodeJSON reads one object that came over an API in Kubernetes' JSON form.
// Unlike Decode it returns everything there is to say, what is wrong inside the
// object included; the object is nil when none could be made.
func DecodeJSON(source string, data []byte) (*Object, []finding.Finding) {
	objects, findings := Decode(source, data)
	if len(objects) == 0 {
		if len(findings) == 0 {
			findings = append(findings, finding.New(finding.NoKind, finding.Object{}, "", finding.Position{File: source}, "no object"))
		}
		return nil, findings
	}
	o := objects[0]
	o.Source = source
	return o, append(findings, o.problems...)
}

// checkEncoding refuses what is not UTF-8, which the parser would half-read.
func checkEncoding(t *Text) (finding.Finding, bool) {
	bad := func(off int, msg string) (finding.Finding, bool) {
		return finding.New(finding.Encoding, finding.Object{}, "", t.Position(off), msg).
			WithHint("save the file as UTF-8"), false
	}
	if bytes.HasPrefix(t.Data, []byte{0xff, 0xfe}) || bytes.HasPrefix(t.Data, []byte{0xfe, 0xff}) {
		return bad(0, "the file is UTF-16")
	}
	if utf8.Valid(t.Data) {
		return finding.Finding{}, true
	}
	for i := 0; i < len(t.Data); {
		r, n := utf8.DecodeRune(t.Data[i:])
		if r == utf8.RuneError && n <= 1 {
			return bad(i, "the file is not UTF-8 text from here on")
		}
		i += n
	}
	return finding.Finding{}, true
}

// span is the part of a text that one document covers.
type span struct {
	start, end int
	line       int // of its first byte, from 1
}

// documents splits a text at its document markers. YAML forbids "---" at the
// start of a line inside any value, so no parser is needed, and a document that
// does not parse cannot swallow its neighbours.
func documents(t *Text) []span {
	var spans []span
	begin := 1
	flush := func(next int) {
		s := span{t.LineStart(begin), t.LineStart(next), begin}
		if begin == 1 && bytes.HasPrefix(t.Data, []byte("\xef\xbb\xbf")) {
			s.start = 3
		}
		if s.start < s.end {
			spans = append(spans, s)
		}
	}
	for n := 1; n <= t.Lines(); n++ {
		line := t.Line(n)
		switch {
		case marker(line, "---") && n > begin:
			flush(n)
			begin = n
		case marker(line, "..."):
			flush(n)
			begin = n + 1
		}
	}
	flush(t.Lines() + 1)
	return spans
}

func marker(line []byte, mark string) bool {
	return bytes.HasPrefix(line, []byte(mark)) && (len(line) == 3 || line[3] == ' ' || line[3] == '\t')
}

func decodeDocument(t *Text, d span) ([]*Object, []finding.Finding) {
	if d.end-d.start > maxDocument {
		pos := finding.Position{File: t.Name, Line: d.line, Column: 1}
		return nil, []finding.Finding{finding.Newf(finding.TooLarge, finding.Object{}, "", pos,
			"the document that begins here has %.1f MiB; at most %d MiB are read", float64(d.end-d.start)/(1<<20), maxDocument>>20).
			WithHint("Kubernetes stores no object over 1.5 MiB; split it")}
	}
	root, err := parse(t, d)
	if err != nil {
		return nil, []finding.Finding{syntaxFinding(t, d, err)}
	}
	if root == nil {
		return nil, nil
	}
	return decodeRoot(t, root)
}

// parse returns the root node of a document with the file's lines, nil for a
// document of comments only.
func parse(t *Text, d span) (root *yaml.Node, err error) {
	defer func() {
		// The library reports some malformed input by panicking.
		if r := recover(); r != nil {
			root, err = nil, fmt.Errorf("yaml: %v", r)
		}
	}()
	data := t.Data[d.start:d.end]
	if trimmed := bytes.TrimLeft(data, " \t\r\n"); len(trimmed) > 0 && trimmed[0] == '{' && bytes.IndexByte(data, '\t') >= 0 {
		// JSON may be indented by tabs; as blanks they leave every place as it is.
		data = bytes.ReplaceAll(data, []byte{'\t'}, []byte{' '})
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	if len(doc.Content) == 0 {
		return nil, nil
	}
	if shift := d.line - 1; shift > 0 {
		moveNodes(&doc, func(n *yaml.Node) { n.Line += shift })
	}
	if root := doc.Content[0]; root.Kind != yaml.ScalarNode || root.ShortTag() != "!!null" {
		return root, nil
	}
	return nil, nil
}

type yamlError struct {
	line int
	text string
}

func (e *yamlError) Error() string { return fmt.Sprintf("line %d: %s", e.line, e.text) }

// ErrorLine returns the line of the file that a parser's error is about, 0 if
// it does not tell, and the message without it.
func ErrorLine(err error) (int, string) {
	var e *yamlError
	if errors.As(err, &e) {
		return e.line, e.text
	}
	return 0, err.Error()
}

var yamlLine = regexp.MustCompile(`^(?:yaml: )?(?:unmarshal errors:\s*)?line (\d+): `)

// splitYAMLError separates the line from a message of the YAML library.
func splitYAMLError(err error) (int, string) {
	text := err.Error()
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		n, _ := strconv.Atoi(m[1])
		return n, strings.TrimPrefix(text, m[0])
	}
	return 0, strings.TrimPrefix(text, "yaml: ")
}

// syntaxFinding explains why a document does not parse.
func syntaxFinding(t *Text, d span, err error) finding.Finding {
	line, text := splitYAMLError(err)
	pos := finding.Position{File: t.Name, Line: d.line + max(line, 1) - 1, Column: 1}
	hint := ""
	// The parser counts from where its context began; a tab or a template near
	// there is what people really have to mend.
	for n := max(pos.Line-1, d.line); n <= pos.Line+1 && n <= t.Lines(); n++ {
		l := t.Line(n)
		indent := l[:len(l)-len(bytes.TrimLeft(l, " \t"))]
		if i := bytes.IndexByte(indent, '\t'); i >= 0 {
			pos.Line, pos.Column = n, i+1
			text = "the line is indented by a tab, which YAML does not allow"
			hint = "indent by spaces"
			break
		}
		if bytes.Contains(l, []byte("{{")) {
			pos.Line = n
			hint = "this looks like a template: render it first"
			break
		}
	}
	if strings.Contains(text, "alias") && strings.Contains(text, "contains itself") || strings.Contains(text, "excessive") {
		return finding.New(finding.Expansion, finding.Object{}, "", pos, text).WithHint("write the values out")
	}
	if hint == "" {
		hint = "complete or correct the document; its last good version stays in force"
	}
	return finding.New(finding.Syntax, finding.Object{}, "", pos, "not valid YAML: "+text).WithHint("%s", hint)
}

// Document is one parsed document of a text.
type Document struct {
	Root *yaml.Node
	// Start and End are its bytes, its marker included.
	Start, End int
}

// DocumentAt returns the document that a line belongs to; false if it does not
// parse.
func DocumentAt(t *Text, line int) (Document, bool) {
	for _, d := range documents(t) {
		if line < d.line || t.LineStart(line) >= d.end {
			continue
		}
		root, err := parse(t, d)
		if err != nil || root == nil {
			return Document{}, false
		}
		return Document{Root: root, Start: d.start, End: d.end}, true
	}
	return Document{}, false
}
