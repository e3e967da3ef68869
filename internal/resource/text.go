package resource

import (
	"bytes"
	"sort"
	"unicode/utf8"

	"lateen.dev/lateen/internal/finding"
)

// Text is the content of one configuration file with an index of its lines. It
// turns places (line, column) into byte offsets and back, so that findings can
// point and fixes can edit. A Text never changes.
type Text struct {
	Name string
	Data []byte
	// lines holds the offset of the first byte of each line.
	lines []int
}

// NewText indexes data. It keeps data, which the caller must not change.
func NewText(name string, data []byte) *Text {
	t := &Text{Name: name, Data: data, lines: []int{0}}
	for i := 0; i < len(data); {
		n := bytes.IndexByte(data[i:], '\n')
		if n < 0 {
			break
		}
		i += n + 1
		t.lines = append(t.lines, i)
	}
	return t
}

// Lines returns the number of lines; a trailing newline begins another, empty one.
func (t *Text) Lines() int { return len(t.lines) }

// Line returns line n (from 1) without its line ending.
func (t *Text) Line(n int) []byte {
	if n < 1 || n > len(t.lines) {
		return nil
	}
	return bytes.TrimRight(t.Data[t.lines[n-1]:t.LineEnd(n)], "\r\n")
}

// LineStart returns the offset of the first byte of line n, or the length of
// the text for lines past its end.
func (t *Text) LineStart(n int) int {
	if n < 1 {
		return 0
	}
	if n > len(t.lines) {
		return len(t.Data)
	}
	return t.lines[n-1]
}

// LineEnd returns the offset past the line ending of line n.
func (t *Text) LineEnd(n int) int {
	return t.LineStart(n + 1)
}

// Offset returns the byte offset of a place. Columns count runes from 1.
func (t *Text) Offset(line, column int) int {
	off, end := t.LineStart(line), t.LineEnd(line)
	for c := 1; c < column && off < end; c++ {
		_, n := utf8.DecodeRune(t.Data[off:end])
		off += n
	}
	return off
}

// Position returns the place of a byte offset.
func (t *Text) Position(offset int) finding.Position {
	line := sort.Search(len(t.lines), func(i int) bool { return t.lines[i] > offset })
	start := t.lines[line-1]
	return finding.Position{
		File: t.Name, Line: line,
		Column: utf8.RuneCount(t.Data[start:min(offset, len(t.Data))]) + 1,
	}
}

// NewLine returns the line ending the text uses.
func (t *Text) NewLine() string {
	if i := bytes.IndexByte(t.Data, '\n'); i > 0 && t.Data[i-1] == '\r' {
		return "\r\n"
	}
	return "\n"
}
