// Package finding is the vocabulary for everything Lateen has to say about
// configuration: a coded message about one place in one object, with a hint
// and, where possible, an edit that mends it.
//
// It is a leaf: source, validate, analyze, translate and the command line all
// speak it, and it imports none of them. Values are plain data and safe to
// share once made.
package finding

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Severity orders findings by what they mean for traffic.
type Severity uint8

const (
	// Info is advice: the configuration works as written.
	Info Severity = iota
	// Warning means that something probably does not do what its author meant.
	Warning
	// Error means that the object, or the named part of it, is not in force.
	Error
)

// String returns "info", "warning" or "error".
func (s Severity) String() string {
	switch s {
	case Info:
		return "info"
	case Warning:
		return "warning"
	case Error:
		return "error"
	}
	return fmt.Sprintf("severity(%d)", uint8(s))
}

// ParseSeverity is the inverse of String.
func ParseSeverity(name string) (Severity, error) {
	for _, s := range []Severity{Info, Warning, Error} {
		if s.String() == name {
			return s, nil
		}
	}
	return 0, fmt.Errorf("severity %q is unknown: want info, warning or error", name)
}

// MarshalText writes the severity as its word, in JSON and YAML too.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (s *Severity) UnmarshalText(text []byte) (err error) {
	*s, err = ParseSeverity(string(text))
	return err
}

// Position is a place in a configuration file. Line and Column count from 1;
// Column counts runes. The zero Position means that the place is unknown, for
// example for an object that came over an API.
type Position struct {
	File   string `json:"file,omitempty"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
}

// String returns file:line:column, leaving out what is unknown.
func (p Position) String() string {
	switch {
	case p.File == "":
		return ""
	case p.Line == 0:
		return p.File
	case p.Column == 0:
		return fmt.Sprintf("%s:%d", p.File, p.Line)
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
}

// Object names the object that a finding is about, in the spelling that every
// command accepts back: kind/name.namespace.
type Object struct {
	Kind      string `json:"kind,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
}

// String returns Kind/name.namespace, or Kind/name for a cluster-scoped object.
func (o Object) String() string {
	if o.Name == "" {
		return o.Kind // a fragment, or no object at all
	}
	if o.Namespace == "" {
		return o.Kind + "/" + o.Name
	}
	return o.Kind + "/" + o.Name + "." + o.Namespace
}

// Edit replaces the bytes [Start, End) of File by Text. Edits of one Fix do
// not overlap and refer to the file as it was when the finding was made.
type Edit struct {
	File  string `json:"file"`
	Start int    `json:"start"`
	End   int    `json:"end"`
	Text  string `json:"text"`
}

// Fix is a machine-applicable remedy. Summary says in one line what it does
// and why; it is what `lateen fix` prints.
type Fix struct {
	Summary string `json:"summary"`
	Edits   []Edit `json:"edits,omitempty"`
}

// Finding is one coded message. Code never changes its meaning; Istio holds
// istioctl's code for the same condition ("IST0101") where there is one.
type Finding struct {
	Code     string   `json:"code"`
	Istio    string   `json:"istio,omitempty"`
	Severity Severity `json:"severity"`
	Object   Object   `json:"object"`
	// Path is the field the message is about, for example
	// "spec.http[1].route[0].destination.host".
	Path    string   `json:"path,omitempty"`
	Pos     Position `json:"position"`
	Message string   `json:"message"`
	Hint    string   `json:"hint,omitempty"`
	Fix     *Fix     `json:"fix,omitempty"`
}

// CodeText returns the code as people see it: "LAT0104 (IST0101)".
func (f Finding) CodeText() string {
	if f.Istio == "" {
		return f.Code
	}
	return f.Code + " (" + f.Istio + ")"
}

// Sort orders findings by file, line, column, code and message, so that output
// is the same on every run.
func Sort(fs []Finding) {
	slices.SortStableFunc(fs, func(a, b Finding) int {
		return cmp.Or(
			strings.Compare(a.Pos.File, b.Pos.File),
			cmp.Compare(a.Pos.Line, b.Pos.Line),
			cmp.Compare(a.Pos.Column, b.Pos.Column),
			strings.Compare(a.Code, b.Code),
			strings.Compare(a.Object.String(), b.Object.String()),
			strings.Compare(a.Message, b.Message),
		)
	})
}

// Worst returns the highest severity in fs, and false for none.
func Worst(fs []Finding) (Severity, bool) {
	if len(fs) == 0 {
		return Info, false
	}
	worst := Info
	for _, f := range fs {
		worst = max(worst, f.Severity)
	}
	return worst, true
}
