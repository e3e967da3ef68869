// Package logfile keeps what processes of the local cluster write: a pipe to
// inherit, a file of bounded size behind it, and the file before that.
package logfile

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// maxLog bounds a log file in bytes; the one before it is kept as FILE.1.
const maxLog = 8 << 20

// File keeps what a process writes. A full disk loses lines and never stops
// the container.
type File struct {
	path string

	mu   sync.Mutex
	f    *os.File
	size int64
	// drains counts pipes that are still read.
	drains sync.WaitGroup
}

// New returns a log at path. Nothing is opened yet.
func New(path string) *File { return &File{path: path} }

// Path returns the name of the file.
func (l *File) Path() string { return l.path }

// Writer returns the writing end of a pipe into the log, to be inherited and
// closed by the caller. The pipe drains until its last holder closes it.
func (l *File) Writer() (int, error) {
	if err := l.open(); err != nil {
		return -1, err
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return -1, fmt.Errorf("make a pipe for the log: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return -1, fmt.Errorf("make a pipe for the log: %w", err)
	}
	r := os.NewFile(uintptr(fds[0]), "log")
	l.drains.Go(func() {
		defer r.Close()
		buf := make([]byte, 16<<10)
		for {
			n, err := r.Read(buf)
			l.append(buf[:n])
			if err != nil {
				return
			}
		}
	})
	return fds[1], nil
}

func (l *File) open() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(l.path), 0o700); err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("open log: %w", err)
	}
	l.f, l.size = f, st.Size()
	return nil
}

func (l *File) append(b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil || len(b) == 0 {
		return
	}
	if l.size > maxLog {
		if f, err := os.OpenFile(l.path+".new", os.O_CREATE|os.O_TRUNC|os.O_APPEND|os.O_WRONLY, 0o600); err == nil {
			_ = os.Rename(l.path, l.path+".1")
			_ = os.Rename(l.path+".new", l.path)
			l.f.Close()
			l.f, l.size = f, 0
		}
	}
	n, _ := l.f.Write(b) // see above: a full disk
	l.size += int64(n)
}

// Close ends writing once the pipes are drained: every process that holds one
// has ended by then.
func (l *File) Close() {
	l.drains.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		l.f.Close()
		l.f = nil
	}
}
