// Package fix applies the edits that findings carry. It changes bytes in memory
// only: what an edit does not touch, comments and blank lines included, stays as
// it was. Writing the result is the command line's business.
package fix

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"lateen.dev/lateen/internal/control/analyze"
	"lateen.dev/lateen/internal/control/source/file"
	"lateen.dev/lateen/internal/finding"
)

// Result is what fixing a set of files gives.
type Result struct {
	// Files are all files that were read, in reading order.
	Files []File
	// Changes are the fixes applied, in order.
	Changes []Change
	// Before are the findings of the files as they were, Left those of the
	// result.
	Before, Left []finding.Finding
}

// File is one file before and after.
type File struct {
	// Name is the path it was read from, Rel that path within the argument it
	// was found under (its base name, if the argument was the file itself).
	Name, Rel     string
	Before, After []byte
	// Removed says that nothing is left in the file: all of it was merged into
	// others.
	Removed bool
}

// Changed reports whether the file differs from what was read.
func (f File) Changed() bool { return !bytes.Equal(f.Before, f.After) }

// Change is one fix that was applied.
type Change struct {
	Code    string
	Object  finding.Object
	Pos     finding.Position
	Summary string
}

// Files reads the paths and applies every fix to their content in memory. The
// error is that of paths of which nothing could be read.
func Files(paths []string) (*Result, error) {
	contents, problems := file.Read(paths)
	if len(contents) == 0 && len(problems) > 0 {
		return nil, fmt.Errorf("read %s: %s", problems[0].Pos, problems[0].Message)
	}
	res := Contents(contents)
	res.Before, res.Left = append(res.Before, problems...), append(res.Left, problems...)
	finding.Sort(res.Before)
	finding.Sort(res.Left)
	for i := range res.Files {
		res.Files[i].Rel = relative(paths, res.Files[i].Name)
	}
	return res, nil
}

// relative returns a file's path within the argument it was found under.
func relative(paths []string, name string) string {
	for _, p := range paths {
		rel, err := filepath.Rel(p, name)
		if err == nil && rel != "." && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
			return rel
		}
	}
	return filepath.Base(name)
}

// maxRounds bounds how often fixes may uncover further ones.
const maxRounds = 10

// Contents applies every fix to files that were read. Applying it to its own
// result changes nothing.
func Contents(contents []file.Content) *Result {
	res := &Result{}
	current := slices.Clone(contents)
	findings, _ := analyze.Files(current)
	res.Before = findings
	for range maxRounds {
		next, changes := apply(current, findings)
		if len(changes) == 0 {
			break
		}
		after, _ := analyze.Files(next)
		if errorsIn(after) > errorsIn(findings) {
			// An edit that breaks more than it mends is not a fix.
			break
		}
		current, findings = next, after
		res.Changes = append(res.Changes, changes...)
	}
	res.Left = findings
	for i, c := range contents {
		f := File{Name: c.Name, Rel: filepath.Base(c.Name), Before: c.Data, After: current[i].Data}
		f.Removed = f.Changed() && len(bytes.TrimSpace(f.After)) == 0
		res.Files = append(res.Files, f)
	}
	return res
}

func errorsIn(findings []finding.Finding) int {
	n := 0
	for _, f := range findings {
		if f.Severity == finding.Error {
			n++
		}
	}
	return n
}

// apply carries out the fixes of findings that do not overlap; those that do are
// left to the next round.
func apply(contents []file.Content, findings []finding.Finding) ([]file.Content, []Change) {
	var changes []Change
	accepted := map[string][]finding.Edit{}
	for _, f := range findings {
		if f.Fix == nil || !fits(accepted, f.Fix.Edits) {
			continue
		}
		for _, e := range f.Fix.Edits {
			accepted[e.File] = append(accepted[e.File], e)
		}
		changes = append(changes, Change{Code: f.Code, Object: f.Object, Pos: f.Pos, Summary: f.Fix.Summary})
	}
	out := slices.Clone(contents)
	for i, c := range out {
		out[i].Data = rewrite(c.Data, accepted[c.Name])
	}
	return out, changes
}

// fits reports whether a fix touches nothing that an accepted one touches.
// Several insertions at one place are fine and keep their order.
func fits(accepted map[string][]finding.Edit, edits []finding.Edit) bool {
	for _, e := range edits {
		for _, a := range accepted[e.File] {
			if e.Start < a.End && a.Start < e.End ||
				e.Start == e.End && a.Start < e.Start && e.Start < a.End ||
				a.Start == a.End && e.Start < a.Start && a.Start < e.End {
				return false
			}
		}
	}
	return true
}

func rewrite(data []byte, edits []finding.Edit) []byte {
	if len(edits) == 0 {
		return data
	}
	edits = slices.Clone(edits)
	slices.SortStableFunc(edits, func(a, b finding.Edit) int {
		if a.Start != b.Start {
			return a.Start - b.Start
		}
		return a.End - b.End // insertions before what they stand in front of
	})
	var out bytes.Buffer
	at := 0
	for _, e := range edits {
		out.Write(data[at:e.Start])
		out.WriteString(e.Text)
		at = e.End
	}
	out.Write(data[at:])
	return out.Bytes()
}
