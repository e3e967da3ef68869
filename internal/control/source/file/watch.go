package file

import (
	"context"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// quiet is how long the files must rest before they are read: editors write
	// in several steps (truncate and write, or write aside and rename).
	quiet = 40 * time.Millisecond
	// patience bounds the wait while something keeps writing.
	patience = 400 * time.Millisecond
	// sweep is how often the paths are read without a notice, for file systems
	// that give none.
	sweep = 2 * time.Second
)

// Run reads the paths, hands the state to changed, and does so again after each
// change until ctx ends. It calls changed from one goroutine, never twice for
// the same content. The error is that of ctx.
func (s *Source) Run(ctx context.Context, changed func(State)) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		s.log.Warn("files are not watched but read every two seconds", "error", err)
		w = &fsnotify.Watcher{} // its channels are nil and never ready
	} else {
		defer w.Close()
	}
	s.doubts = map[string]doubt{}
	state, _ := s.scan()
	changed(state)
	watched := s.follow(w, nil)
	// What changed between the first reading and the watch is met by the first
	// sweep, which therefore comes soon.
	timer := time.NewTimer(quiet)
	defer timer.Stop()
	var since time.Time // the first notice not yet acted on
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case _, ok := <-w.Events:
			if !ok {
				return ctx.Err()
			}
			if since.IsZero() {
				since = time.Now()
			}
			if time.Since(since) < patience {
				timer.Reset(quiet)
			}
		case err := <-w.Errors:
			s.log.Warn("watching files", "error", err)
			timer.Reset(quiet)
		case <-timer.C:
			since = time.Time{}
			if state, ok := s.scan(); ok {
				changed(state)
			}
			watched = s.follow(w, watched)
			if len(s.doubts) > 0 {
				timer.Reset(settle)
			} else {
				timer.Reset(sweep)
			}
		}
	}
}

// follow makes the watcher watch exactly the folders of the last scan. Folders
// rather than files are watched because a save by rename replaces the file.
func (s *Source) follow(w *fsnotify.Watcher, watched []string) []string {
	if w.Events == nil {
		return nil
	}
	for _, f := range watched {
		if !slices.Contains(s.folders, f) {
			// A folder that is gone is no longer watched by itself.
			_ = w.Remove(f)
		}
	}
	var now []string
	for _, f := range s.folders {
		if !slices.Contains(watched, f) {
			if err := w.Add(f); err != nil {
				s.log.Warn("a folder is not watched but read every two seconds", "folder", f, "error", err)
				continue
			}
		}
		now = append(now, f)
	}
	return now
}
