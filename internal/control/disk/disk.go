// Package disk replaces small files atomically: the control plane's root key,
// tokens, address allocations and applied objects. A reader, or a process that
// starts after a kill, sees the old content or the new one and never a part.
package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteFile replaces path by data with the given mode. The directory must
// exist. The data is flushed before the rename, so that a power loss leaves no
// empty file behind.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	dir, base := filepath.Split(path)
	f, err := os.CreateTemp(dir, "."+base+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the first error is the one that matters
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Private reports an error when others than the owner may read path.
func Private(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s is readable by others (mode %04o): run chmod 600 %s", path, st.Mode().Perm(), path)
	}
	return nil
}
