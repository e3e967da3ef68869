package control

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"lateen.dev/lateen/internal/control/disk"
)

// layout is the version of the data directory's structure. A directory of a
// newer one is refused; older ones would be migrated here.
const layout = 1

// dataLock holds a data directory for this process until it ends.
type dataLock struct{ file *os.File }

// lockData takes the data directory. It fails at once, naming the holder, when
// another process has it.
func lockData(dir string) (*dataLock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	path := filepath.Join(dir, "control.lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder := "another process"
		if data, readErr := os.ReadFile(path); readErr == nil {
			if pid := strings.TrimSpace(string(data)); pid != "" {
				holder = "process " + pid
			}
		}
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("open data directory %s: %s runs a mesh there: stop it with \"lateen down --data %s\", or choose another directory", dir, holder, dir)
		}
		return nil, fmt.Errorf("lock data directory %s: %w", dir, err)
	}
	err = errors.Join(f.Truncate(0), writeAt(f, strconv.Itoa(os.Getpid())+"\n"), checkLayout(filepath.Join(dir, "layout")))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open data directory %s: %w", dir, err), f.Close())
	}
	return &dataLock{file: f}, nil
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

func checkLayout(path string) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return disk.WriteFile(path, []byte(strconv.Itoa(layout)+"\n"), 0o600)
	}
	if err != nil {
		return err
	}
	got, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return fmt.Errorf("%s does not hold a version: %w", path, err)
	}
	if got > layout {
		return fmt.Errorf("its layout is version %d, this program knows %d: use the newer lateen that made it, or another directory", got, layout)
	}
	return nil
}

func (l *dataLock) release() error { return l.file.Close() }
