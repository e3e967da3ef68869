// Package file reads configuration from files and folders and watches them. It
// is the first step of a configuration change: what it yields is decoded and
// still has to be validated.
//
// A file that cannot be read, or a document that does not parse, keeps its last
// good objects; a file that is gone takes its objects along. While it watches, a
// file that is gone, empty or shorter than before is looked at again before the
// loss is believed: it may be half-written. It does not judge
// objects, and it does not write.
package file

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

// State is what the given paths hold at one moment. Objects are in the order of
// the paths, within a folder in the order of file names; no two have the same
// key. Findings are about files and documents that became no object.
type State struct {
	Objects  []*resource.Object
	Findings []finding.Finding
}

// Source reads a set of paths. Load and Run must not be called at the same time.
type Source struct {
	paths []string
	log   *slog.Logger
	// files holds what was last read from each file.
	files map[string]*content
	// order lists the files of the last scan, folders the directories met.
	order    []string
	folders  []string
	problems []finding.Finding
	// doubts holds losses that are not believed yet; nil believes everything.
	doubts map[string]doubt
}

// content is the last reading of one file.
type content struct {
	data     []byte
	objects  []*resource.Object
	findings []finding.Finding
}

// New returns a source of the given files and folders. Folders are read
// recursively, without hidden ones; of their files those ending in .yaml, .yml
// and .json.
func New(paths []string, log *slog.Logger) *Source {
	return &Source{paths: paths, log: log, files: map[string]*content{}}
}

// Load reads all paths now.
func (s *Source) Load() State {
	state, _ := s.scan()
	return state
}

// scan reads all paths and tells whether anything differs from the last scan.
func (s *Source) scan() (State, bool) {
	var problems []finding.Finding
	var order []string
	folders := map[string]bool{}
	for _, p := range s.paths {
		files, fs := listFiles(p, folders)
		problems = append(problems, fs...)
		for _, f := range files {
			if !slices.Contains(order, f) {
				order = append(order, f)
			}
		}
	}
	found := order
	if s.doubts != nil {
		order = s.doubtGone(order, time.Now())
	}
	changed := !slices.Equal(order, s.order) || !slices.EqualFunc(problems, s.problems, same)
	for name := range s.files {
		if !slices.Contains(order, name) && !unreachable(problems, name) {
			delete(s.files, name)
			changed = true
		}
	}
	for _, name := range order {
		if slices.Contains(found, name) && s.read(name) {
			changed = true
		}
	}
	s.order, s.problems = order, problems
	s.folders = s.folders[:0]
	for f := range folders {
		s.folders = append(s.folders, f)
	}
	slices.Sort(s.folders)
	return s.merge(problems), changed
}

// same compares findings about files, which carry no fixes.
func same(a, b finding.Finding) bool {
	return a.Code == b.Code && a.Pos == b.Pos && a.Message == b.Message
}

// unreachable reports whether a file is missing from the listing only because a
// folder above it could not be read.
func unreachable(problems []finding.Finding, name string) bool {
	for _, p := range problems {
		if strings.HasPrefix(name, p.Pos.File+string(filepath.Separator)) {
			return true
		}
	}
	return false
}

// listFiles returns the configuration files under path and notes the folders.
func listFiles(path string, folders map[string]bool) ([]string, []finding.Finding) {
	info, err := os.Stat(path)
	if err != nil {
		folders[existingParent(path)] = true
		return nil, []finding.Finding{unreadable(path, err)}
	}
	if !info.IsDir() {
		folders[filepath.Dir(path)] = true
		return []string{path}, nil
	}
	var files []string
	var problems []finding.Finding
	err = filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
		hidden := name != path && strings.HasPrefix(d.Name(), ".")
		switch {
		case err != nil:
			problems = append(problems, unreadable(name, err))
			if d != nil && d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir() && hidden:
			return fs.SkipDir
		case d.IsDir():
			folders[name] = true
		case !hidden && isManifest(name) && regular(name, d):
			files = append(files, name)
		}
		return nil
	})
	if err != nil {
		problems = append(problems, unreadable(path, err))
	}
	return files, problems
}

func isManifest(name string) bool {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// regular follows symbolic links, by which Kubernetes mounts ConfigMaps, and
// leaves out pipes and devices, which a read could block on.
func regular(name string, d fs.DirEntry) bool {
	if d.Type().IsRegular() {
		return true
	}
	info, err := os.Stat(name)
	return err == nil && info.Mode().IsRegular() || err != nil && d.Type()&fs.ModeSymlink != 0
}

func existingParent(path string) string {
	for {
		parent := filepath.Dir(path)
		if parent == path {
			return parent
		}
		if info, err := os.Stat(parent); err == nil && info.IsDir() {
			return parent
		}
		path = parent
	}
}

func readHint(err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "give the user of the mesh the right to read it (chmod u+r, chown); what was read last stays in force"
	case errors.Is(err, fs.ErrNotExist):
		return "put it back, or name another path with -f"
	}
	return "what was read last stays in force"
}

func unreadable(name string, err error) finding.Finding {
	var pe *fs.PathError
	text := err.Error()
	if errors.As(err, &pe) {
		text = pe.Err.Error()
	}
	return finding.Newf(finding.Unreadable, finding.Object{}, "", finding.Position{File: name}, "cannot be read: %s", text).
		WithHint("%s", readHint(err))
}

// read brings the content of one file up to date and tells whether it changed.
func (s *Source) read(name string) bool {
	old := s.files[name]
	data, err := readFile(name)
	if err != nil {
		next := &content{findings: []finding.Finding{unreadable(name, err)}}
		if old != nil {
			next.objects = old.objects
		}
		s.files[name] = next
		return old == nil || !slices.EqualFunc(old.findings, next.findings, same)
	}
	if old != nil && old.data != nil && bytes.Equal(old.data, data) {
		delete(s.doubts, name)
		return false
	}
	if old != nil && old.data != nil && !s.believes(name, old.data, data, time.Now()) {
		return false
	}
	objects, findings := resource.Decode(name, data)
	if old != nil && len(findings) > 0 {
		objects = keepLost(objects, old.objects, findings)
	}
	s.files[name] = &content{data: data, objects: objects, findings: findings}
	return true
}

// maxFile is a little over what resource.Decode accepts, so that it and not the
// memory decides.
const maxFile = 65 << 20

func readFile(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("it is not a regular file (%s)", info.Mode().Type())
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("it has %d MiB", info.Size()>>20)
	}
	data, err := os.ReadFile(name)
	if err == nil && data == nil {
		data = []byte{}
	}
	return data, err
}

// keepLost adds the objects that were in the last reading and are missing now,
// if a document of the file could not be read: it may be theirs. A document
// that parses, but is no object, was written so on purpose.
func keepLost(objects, before []*resource.Object, findings []finding.Finding) []*resource.Object {
	lost := slices.ContainsFunc(findings, func(f finding.Finding) bool {
		switch f.Code {
		case finding.Syntax, finding.TooLarge, finding.Expansion, finding.Encoding, finding.NoKind, finding.BadName:
			return true
		}
		return false
	})
	if !lost {
		return objects
	}
	for _, o := range before {
		if !slices.ContainsFunc(objects, func(n *resource.Object) bool { return n.Key == o.Key }) {
			objects = append(objects, o)
		}
	}
	return objects
}

// merge puts the files together; of objects with the same key the first holds.
func (s *Source) merge(problems []finding.Finding) State {
	state := State{Findings: slices.Clone(problems)}
	first := map[resource.Key]*resource.Object{}
	add := func(c *content) {
		state.Findings = append(state.Findings, c.findings...)
		for _, o := range c.objects {
			if have := first[o.Key]; have != nil {
				state.Findings = append(state.Findings, duplicate(o, have))
				continue
			}
			first[o.Key] = o
			state.Objects = append(state.Objects, o)
		}
	}
	for _, name := range s.order {
		add(s.files[name])
	}
	var kept []string
	for name := range s.files {
		if !slices.Contains(s.order, name) {
			kept = append(kept, name)
		}
	}
	slices.Sort(kept)
	for _, name := range kept {
		add(s.files[name])
	}
	finding.Sort(state.Findings)
	return state
}

func duplicate(o, first *resource.Object) finding.Finding {
	return finding.Newf(finding.DuplicateObject, o.Object(), "metadata.name", o.Pos("metadata.name"),
		"%s is also defined at %s, which holds", o.Key, first.Pos("metadata.name")).
		WithHint("rename or remove one of the two")
}
