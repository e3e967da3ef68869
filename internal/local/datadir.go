//go:build linux

package local

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/local/node"
)

// layoutVersion is the version of the data directory's layout. A directory of
// another version is refused, not guessed at.
const layoutVersion = "1"

// dataDir is the locked data directory.
type dataDir struct {
	path string   // absolute
	lock *os.File // the lock goes with its last descriptor
}

// openDataDir prepares the data directory and locks it.
func openDataDir(path string) (*dataDir, error) {
	if path == "" {
		return nil, errors.New("no data directory given")
	}
	dir, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", path, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := roomToStart(dir); err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	d := &dataDir{path: dir}
	if d.lock, err = lock(dir); err != nil {
		return nil, err
	}
	if err := layout(dir); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// close removes what is only for a running cluster and gives the lock back.
func (d *dataDir) close() {
	_ = node.Clear(d.path) // the next start tries again, and tells
	_ = d.lock.Truncate(0)
	d.lock.Close()
}

// lock takes the directory's lock, or says who has it.
func lock(dir string) (*os.File, error) {
	name := filepath.Join(dir, "lock")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		who := "another process"
		if pid, err := os.ReadFile(name); err == nil && len(pid) > 0 {
			who = "process " + strings.TrimSpace(string(pid))
		}
		return nil, fmt.Errorf("%s already runs a cluster in %s\nhint: stop it with lateen down --data %s, or give another directory with --data", who, dir, dir)
	}
	if err := errors.Join(f.Truncate(0), write(f, fmt.Sprintln(os.Getpid()))); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return f, nil
}

func write(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

// layout makes the folders and checks the version.
func layout(dir string) error {
	name := filepath.Join(dir, "version")
	have, err := os.ReadFile(name)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if err := os.WriteFile(name, []byte(layoutVersion+"\n"), 0o600); err != nil {
			return fmt.Errorf("data directory: %w", err)
		}
	case err != nil:
		return fmt.Errorf("data directory: %w", err)
	case strings.TrimSpace(string(have)) != layoutVersion:
		return fmt.Errorf("data directory %s has layout version %q, this program knows %q\nhint: use another --data, or the program that made it",
			dir, strings.TrimSpace(string(have)), layoutVersion)
	}
	// Nothing in it belongs into a repository.
	if err := os.WriteFile(filepath.Join(dir, ".gitignore"), []byte("*\n"), 0o600); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	run := filepath.Join(dir, node.RunDir)
	if err := os.RemoveAll(run); err != nil {
		return fmt.Errorf("data directory: remove what an earlier run left: %w", err)
	}
	// Logs and proxies' state are kept until the next start, by pod.
	for _, pattern := range []string{node.LogDir + "/*_*", node.StateDir + "/proxies/*"} {
		old, err := filepath.Glob(filepath.Join(dir, pattern))
		for _, d := range old {
			err = errors.Join(err, os.RemoveAll(d))
		}
		if err != nil {
			return fmt.Errorf("data directory: remove what an earlier run left: %w", err)
		}
	}
	for _, d := range []string{run, run + "/root", run + "/volumes", dir + "/" + node.LogDir, dir + "/" + node.StateDir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("data directory: %w", err)
		}
	}
	return nil
}
