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

// Position is a place in a configuration file. Line and Column count from 1;
// Column counts runes. The zero Position means that the place is unknown, for
// example for an object that came over an API.
type Position struct {
	File   string
	Line   int
	Column int
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
	Kind, Namespace, Name string
}

// String returns Kind/name.namespace, or Kind/name for a cluster-scoped object.
func (o Object) String() string {
	if o.Namespace == "" {
		return o.Kind + "/" + o.Name
	}
	return o.Kind + "/" + o.Name + "." + o.Namespace
}

// Edit replaces the bytes [Start, End) of File by Text. Edits of one Fix do
// not overlap and refer to the file as it was when the finding was made.
type Edit struct {
	File       string
	Start, End int
	Text       string
}

// Fix is a machine-applicable remedy. Summary says in one line what it does
// and why; it is what `lateen fix` prints.
type Fix struct {
	Summary string
	Edits   []Edit
}

// Finding is one coded message. Code never changes its meaning; Istio holds
// istioctl's code for the same condition ("IST0101") where there is one.
type Finding struct {
	Code     string
	Istio    string
	Severity Severity
	Object   Object
	// Path is the field the message is about, for example
	// "spec.http[1].route[0].destination.host".
	Path    string
	Pos     Position
	Message string
	Hint    string
	Fix     *Fix
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
