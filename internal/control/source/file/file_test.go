package file

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lateen.dev/lateen/internal/finding"
)

func account(names ...string) string {
	var docs []string
	for _, n := range names {
		docs = append(docs, "apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: "+n+"\n")
	}
	return strings.Join(docs, "---\n")
}

func write(t *testing.T, name, data string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

func names(s State) string {
	var out []string
	for _, o := range s.Objects {
		out = append(out, o.Name)
	}
	return strings.Join(out, " ")
}

func TestLoad_foldersAndLastGood(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/b.yaml", account("b1", "b2"))
	write(t, dir+"/a/deep/a.yml", account("a"))
	write(t, dir+"/.git/x.yaml", account("hidden"))
	write(t, dir+"/main.go.txt", "package main")
	s := New([]string{dir}, slog.New(slog.DiscardHandler))
	expect := func(want string, codes ...string) {
		t.Helper()
		state := s.Load()
		if got := names(state); got != want {
			t.Errorf("objects %q, want %q", got, want)
		}
		var got []string
		for _, f := range state.Findings {
			got = append(got, f.Code)
		}
		if !slices.Equal(got, codes) {
			t.Errorf("findings %v, want codes %v", state.Findings, codes)
		}
	}
	expect("a b1 b2")
	write(t, dir+"/b.yaml", account("b1")+"---\nkind: [half")
	expect("a b1 b2", finding.Syntax)
	write(t, dir+"/b.yaml", account("b1"))
	expect("a b1")
	write(t, dir+"/c.yaml", account("a", "c"))
	expect("a b1 c", finding.DuplicateObject)
	if err := os.RemoveAll(dir + "/a"); err != nil {
		t.Fatal(err)
	}
	expect("b1 a c")
	if err := os.Remove(dir + "/c.yaml"); err != nil {
		t.Fatal(err)
	}
	expect("b1")
}

func TestLoad_duplicateNamesBothPlaces(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/1.yaml", account("x"))
	write(t, dir+"/2.yaml", account("y", "x"))
	state := New([]string{dir}, slog.New(slog.DiscardHandler)).Load()
	if len(state.Findings) != 1 {
		t.Fatalf("findings %v", state.Findings)
	}
	f := state.Findings[0]
	if f.Pos.String() != dir+"/2.yaml:9:3" || !strings.Contains(f.Message, dir+"/1.yaml:4:3") {
		t.Errorf("%s: %s", f.Pos, f.Message)
	}
}

func TestLoad_missingAndUnreadable(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", account("a"))
	if err := os.Symlink("nowhere", dir+"/b.yaml"); err != nil {
		t.Fatal(err)
	}
	state := New([]string{dir, dir + "/none/x.yaml"}, slog.New(slog.DiscardHandler)).Load()
	if names(state) != "a" || len(state.Findings) != 2 ||
		state.Findings[0].Code != finding.Unreadable || state.Findings[1].Code != finding.Unreadable {
		t.Errorf("%q %v", names(state), state.Findings)
	}
}

func TestRun_seesEveryWayOfSaving(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", account("a"))
	ctx, cancel := context.WithCancel(t.Context())
	states := make(chan State, 100)
	done := make(chan error)
	go func() {
		done <- New([]string{dir}, slog.New(slog.DiscardHandler)).Run(ctx, func(s State) { states <- s })
	}()
	expect := func(want string) {
		t.Helper()
		last := "nothing"
		timeout := time.After(10 * time.Second)
		for last != want {
			select {
			case s := <-states:
				last = names(s)
			case <-timeout:
				t.Fatalf("last state %q, want %q", last, want)
			}
		}
	}
	expect("a")
	write(t, dir+"/a.yaml", account("b")) // truncate and write
	expect("b")
	write(t, dir+"/.a.yaml.tmp", account("c")) // write aside and rename
	if err := os.Rename(dir+"/.a.yaml.tmp", dir+"/a.yaml"); err != nil {
		t.Fatal(err)
	}
	expect("c")
	write(t, dir+"/new/sub/d.yaml", account("d"))
	expect("c d")
	write(t, dir+"/new/sub/d.yaml", account("e"))
	expect("c e")
	if err := os.RemoveAll(dir + "/new"); err != nil {
		t.Fatal(err)
	}
	expect("c")
	cancel()
	if err := <-done; err != context.Canceled {
		t.Errorf("Run: %v", err)
	}
	if n := len(states); n > 0 {
		t.Errorf("%d more states without a change", n)
	}
}

func TestBelieves_lossesOnlyWhenTheyLast(t *testing.T) {
	s := New(nil, slog.New(slog.DiscardHandler))
	now := time.Unix(1000, 0)
	if !s.believes("f", []byte("long"), []byte("s"), now) {
		t.Error("a source that only loads doubts")
	}
	s.doubts = map[string]doubt{}
	steps := []struct {
		after time.Duration
		data  []byte
		want  bool
	}{
		{0, []byte(""), false},
		{settle, []byte(""), false},             // empty waits longer
		{0, []byte("half"), false},              // something else again
		{settle / 2, []byte("half"), false},     // not long enough
		{settle, []byte("long and more"), true}, // written out
		{0, []byte("half"), false},
		{settle, []byte("half"), true}, // it is meant so
		{0, nil, false},
		{0, []byte(""), false}, // gone and empty are not the same
		{settleEmpty, []byte(""), true},
		{0, nil, false},
		{settle, nil, true},
	}
	for i, step := range steps {
		now = now.Add(step.after)
		if got := s.believes("f", []byte("the long file"), step.data, now); got != step.want {
			t.Errorf("step %d: %q believed = %v", i, step.data, got)
		}
	}
}

func TestScan_halfWrittenAndReplacedFilesLoseNothing(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", account("a1", "a2"))
	write(t, dir+"/b.yaml", account("b"))
	write(t, dir+"/c.yaml", account("c"))
	s := New([]string{dir}, slog.New(slog.DiscardHandler))
	s.doubts = map[string]doubt{}
	expect := func(want string, changes bool) {
		t.Helper()
		state, changed := s.scan()
		if got := names(state); got != want || changed != changes {
			t.Errorf("objects %q changed %v, want %q %v", got, changed, want, changes)
		}
	}
	expect("a1 a2 b c", true)
	write(t, dir+"/a.yaml", "")
	expect("a1 a2 b c", false)
	write(t, dir+"/a.yaml", account("a1"))
	expect("a1 a2 b c", false)
	if err := os.Remove(dir + "/b.yaml"); err != nil {
		t.Fatal(err)
	}
	expect("a1 a2 b c", false)
	write(t, dir+"/b.yaml", account("b", "b2"))
	write(t, dir+"/a.yaml", account("a1", "a2", "a3"))
	expect("a1 a2 a3 b b2 c", true)
}
