package control

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v3"

	"lateen.dev/lateen/internal/control/disk"
	"lateen.dev/lateen/internal/control/source/file"
	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

// store keeps the objects that were applied, one plain YAML file each, in
// .lateen/config: readable, and fit to be copied into a repository.
type store struct {
	dir     string
	objects map[resource.Key]*resource.Object
	// findings are about stored files that cannot be read any more.
	findings []finding.Finding
}

func openStore(dir string, log *slog.Logger) (*store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open applied objects: %w", err)
	}
	s := &store{dir: dir, objects: make(map[resource.Key]*resource.Object)}
	state := file.New([]string{dir}, log).Load()
	for _, o := range state.Objects {
		s.objects[o.Key] = o
	}
	s.findings = state.Findings
	return s, nil
}

// path is where an object is kept: namespace/kind/name.yaml.
func (s *store) path(k resource.Key) string {
	ns := k.Namespace
	if ns == "" {
		ns = "_cluster"
	}
	return filepath.Join(s.dir, ns, string(k.Kind), k.Name+".yaml")
}

// put stores objects as one change: all of them or, on an error, none. The
// stored documents keep their comments.
func (s *store) put(objects []*resource.Object) error {
	next := make([]*resource.Object, 0, len(objects))
	data := make([][]byte, 0, len(objects))
	for _, o := range objects {
		text, err := document(o)
		if err != nil {
			return err
		}
		stored, findings := resource.Decode(s.path(o.Key), text)
		if len(stored) != 1 || stored[0].Key != o.Key {
			return fmt.Errorf("store %v: it reads back differently: %v", o.Key, findings)
		}
		next, data = append(next, stored[0]), append(data, text)
	}
	for i, o := range next {
		path := s.path(o.Key)
		err := os.MkdirAll(filepath.Dir(path), 0o700)
		if err == nil {
			err = disk.WriteFile(path, data[i], 0o600)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("store %v: %w", o.Key, err), s.restore(next[:i]))
		}
	}
	for _, o := range next {
		s.objects[o.Key] = o
	}
	return nil
}

// restore puts the files of a change that went wrong half-way back.
func (s *store) restore(objects []*resource.Object) error {
	var errs []error
	for _, o := range objects {
		old := s.objects[o.Key]
		if old == nil {
			errs = append(errs, os.Remove(s.path(o.Key)))
			continue
		}
		text, err := document(old)
		if err == nil {
			err = disk.WriteFile(s.path(o.Key), text, 0o600)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// remove deletes an applied object; it is no error if its file is gone.
func (s *store) remove(k resource.Key) error {
	o, ok := s.objects[k]
	if !ok {
		return nil
	}
	path := s.path(k)
	if t := o.Text(); t != nil && t.Name != path {
		return fmt.Errorf("remove %v: it is in %s, which people wrote: edit that file", k, t.Name)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %v: %w", k, err)
	}
	delete(s.objects, k)
	return nil
}

// document is the YAML of one object: as it was written, comments included,
// where that is known.
func document(o *resource.Object) ([]byte, error) {
	root := o.Root()
	if root == nil {
		data, err := o.JSON()
		if err != nil {
			return nil, err
		}
		root = new(yaml.Node)
		if err := yaml.Unmarshal(data, root); err != nil {
			return nil, fmt.Errorf("encode %v: %w", o.Key, err)
		}
	}
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(root), enc.Close()); err != nil {
		return nil, fmt.Errorf("encode %v: %w", o.Key, err)
	}
	return out.Bytes(), nil
}
