package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"lateen.dev/lateen/internal/api"
	"lateen.dev/lateen/internal/finding"
)

const (
	// tellEvery is how soon a finding about a saved file is seen.
	tellEvery = 500 * time.Millisecond
	// tellAtOnce bounds the findings printed at a time.
	tellAtOnce = 20
)

// teller prints the findings of a running mesh, each once, so that whoever saves
// a broken file sees it where lateen up runs.
type teller struct {
	w      io.Writer
	folder string // positions below it are printed relative to it
	told   map[string]bool
	errors int // in force at the last look
}

// tell asks the control process for its findings until ctx ends. While it does
// not answer there is nothing to tell: lateen up says so itself.
func (o *options) tell(ctx context.Context, w io.Writer) {
	folder, err := os.Getwd()
	if err != nil {
		folder = "" // absolute names are right too
	}
	t := &teller{w: w, folder: folder, told: map[string]bool{}}
	client := api.NewClient(o.controlSocket())
	defer client.Close()
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if s, err := client.Status(ctx); err == nil {
			t.look(s.Findings)
		}
	}
}

// look prints what is new among the errors and warnings in force.
func (t *teller) look(findings []finding.Finding) {
	var b strings.Builder
	now, errors, more := map[string]bool{}, 0, 0
	for _, f := range findings {
		if f.Severity < finding.Warning {
			continue
		}
		if f.Severity == finding.Error {
			errors++
		}
		// Not the line: text above it may move.
		key := strings.Join([]string{f.Pos.File, f.Code, f.Object.String(), f.Path, f.Message}, "\x00")
		if now[key] = true; t.told[key] {
			continue
		}
		if len(now) > tellAtOnce {
			more++
			continue
		}
		pos := f.Pos
		if rel, err := filepath.Rel(t.folder, pos.File); err == nil && filepath.IsLocal(rel) {
			pos.File = rel
		}
		fmt.Fprintln(&b, strings.TrimRight(fmt.Sprintf("  %-10s %s  %s  %s", f.Severity, pos, f.CodeText(), f.Object), " "))
		fmt.Fprintf(&b, "  %-10s %s\n", "", f.Message)
		if f.Hint != "" {
			fmt.Fprintf(&b, "  %-10s hint: %s\n", "", f.Hint)
		}
	}
	if more > 0 {
		fmt.Fprintf(&b, "  %-10s and %d more: lateen status\n", "", more)
	}
	if errors == 0 && t.errors > 0 {
		fmt.Fprintf(&b, "  %-10s no error is left\n", "findings")
	}
	t.told, t.errors = now, errors
	io.WriteString(t.w, b.String())
}

// shared is a writer for several goroutines.
type shared struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *shared) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}
