package resource

// A shape is what a schema says about one value. Two schemas have shapes:
// protobuf messages (Istio's kinds, MeshConfig) and Go structs (Kubernetes
// kinds and our own).
type shape interface {
	// kind tells which of the other methods mean something.
	kind() shapeKind
	// field returns the shape of a field of an objectShape.
	field(name string) (shape, bool)
	// names lists the field names of an objectShape in schema order.
	names() []string
	// elem returns the shape of the members of a listShape or mapShape.
	elem() shape
	// check converts a scalar, whose kind is scalarShape, to its JSON value.
	// The message says what is wanted instead; hint may say how to write it.
	check(s scalar) (value any, problem, hint string)
	// oneof returns the group of a field that excludes other fields, or "".
	oneof(name string) string
	// id is equal for equal shapes, so that a search can stop at cycles.
	id() any
}

type shapeKind uint8

const (
	anyShape shapeKind = iota
	objectShape
	listShape
	mapShape
	scalarShape
	// looseShape is checked as a scalar when it is one and taken as it is
	// otherwise (a Go type that decodes itself).
	looseShape
)

// scalar is a resolved YAML scalar.
type scalar struct {
	tag    string // !!str !!int !!float !!bool !!null !!timestamp !!binary
	text   string
	quoted bool
}

func (s scalar) String() string {
	if s.quoted || s.tag == "!!str" {
		return `the text "` + clip(s.text, 60) + `"`
	}
	switch s.tag {
	case "!!null":
		return "null"
	case "!!bool":
		return "the boolean " + s.text
	case "!!int", "!!float":
		return "the number " + clip(s.text, 40)
	}
	return clip(s.text, 60)
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}

// whereBelongs searches the schema under root for a field of the given name and
// returns its path below root with [] for list items, nearest first; "" if
// there is none or several equally near.
func whereBelongs(root shape, name string) string {
	type place struct {
		s    shape
		path string
	}
	seen := map[any]bool{}
	level := []place{{root, ""}}
	for depth := 0; depth < 6 && len(level) > 0; depth++ {
		var next []place
		var hits []string
		for _, p := range level {
			switch p.s.kind() {
			case listShape:
				next = append(next, place{p.s.elem(), p.path + "[]"})
			case objectShape:
				if seen[p.s.id()] {
					continue
				}
				seen[p.s.id()] = true
				if _, ok := p.s.field(name); ok && depth > 0 {
					hits = append(hits, Field(p.path, name))
				}
				for _, n := range p.s.names() {
					child, _ := p.s.field(n)
					next = append(next, place{child, Field(p.path, n)})
				}
			}
		}
		if len(hits) == 1 || len(hits) > 1 && depth <= 2 {
			return hits[0]
		}
		if len(hits) > 1 {
			return ""
		}
		level = next
	}
	return ""
}

// nearest returns the candidate within edit distance 2 of name (1 for short
// names), or "".
func nearest(name string, candidates []string) string {
	limit := 2
	if len(name) <= 4 {
		limit = 1
	}
	best, found := limit+1, ""
	for _, c := range candidates {
		if d := distance(name, c, best); d < best {
			best, found = d, c
		}
	}
	return found
}

// Nearest returns the candidate that a mistyped name most likely means, or "".
func Nearest(name string, candidates []string) string { return nearest(name, candidates) }

// distance is the number of letters to insert, remove, replace or swap with
// their neighbour to get from a to b, cut off at limit. A difference in ASCII
// case alone counts 1.
func distance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	if a != b && asciiLower(a) == asciiLower(b) {
		return min(1, limit)
	}
	var before []int
	last := make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row := make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(row[j]+1, last[j+1]+1, last[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last = last, row
	}
	return min(last[len(b)], limit)
}

func asciiLower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
