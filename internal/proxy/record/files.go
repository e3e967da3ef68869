package record

import (
	"context"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"
)

// maxFileQueue bounds the bytes that wait for one slow file or pipe.
const maxFileQueue = 4 << 20

// files writes access-log lines on a goroutine per path, so that a slow disk or
// a reader that stopped reading never stops a loop: lines are dropped and
// counted instead.
type files struct {
	log *slog.Logger
	// open makes the writer of a path; tests replace it.
	open func(path string) (io.Writer, error)

	mu             sync.Mutex
	byPath         map[string]*file
	lines, dropped uint64
}

type file struct {
	queue   []byte
	lines   int
	busy    bool // a goroutine is writing
	w       io.Writer
	warned  time.Time
	settled chan struct{} // closed when the writer goes idle
}

func newFiles(log *slog.Logger) *files {
	return &files{log: log, open: openLog, byPath: make(map[string]*file)}
}

func openLog(path string) (io.Writer, error) {
	switch path {
	case "/dev/stdout":
		return os.Stdout, nil
	case "/dev/stderr":
		return os.Stderr, nil
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
}

// write queues complete lines; data is copied.
func (f *files) write(path string, data []byte, lines int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	x := f.byPath[path]
	if x == nil {
		x = &file{}
		f.byPath[path] = x
	}
	if len(x.queue)+len(data) > maxFileQueue {
		f.dropped += uint64(lines)
		return
	}
	x.queue = append(x.queue, data...)
	x.lines += lines
	if !x.busy {
		x.busy, x.settled = true, make(chan struct{})
		go f.drain(path, x)
	}
}

// drain writes until the queue is empty.
func (f *files) drain(path string, x *file) {
	var spare []byte
	for {
		f.mu.Lock()
		data, lines := x.queue, x.lines
		if len(data) == 0 {
			x.busy = false
			close(x.settled)
			f.mu.Unlock()
			return
		}
		x.queue, x.lines = spare[:0], 0
		f.mu.Unlock()

		err := x.put(f.open, path, data)
		spare = data
		if cap(spare) > 256<<10 {
			spare = nil // a burst must not stay in memory
		}
		f.mu.Lock()
		if err == nil {
			f.lines += uint64(lines)
		} else {
			f.dropped += uint64(lines)
			if time.Since(x.warned) > time.Minute {
				x.warned = time.Now()
				f.log.Warn("access log is not written, lines are dropped", "path", path, "error", err)
			}
		}
		f.mu.Unlock()
	}
}

func (x *file) put(open func(string) (io.Writer, error), path string, data []byte) error {
	if x.w == nil {
		w, err := open(path)
		if err != nil {
			return err
		}
		x.w = w
	}
	_, err := x.w.Write(data)
	return err
}

// sync waits until everything queued was written or dropped.
func (f *files) sync(ctx context.Context) {
	f.mu.Lock()
	var waits []chan struct{}
	for _, x := range f.byPath {
		if x.busy {
			waits = append(waits, x.settled)
		}
	}
	f.mu.Unlock()
	for _, w := range waits {
		select {
		case <-w:
		case <-ctx.Done():
			return
		}
	}
}

func (f *files) totals() (lines, dropped uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lines, f.dropped
}
