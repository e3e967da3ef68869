//go:build linux

package e2e

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// front is a host port for the service of small.
const front = `---
apiVersion: v1
kind: Service
metadata: {name: front}
spec:
  type: LoadBalancer
  selector: {app: web}
  ports: [{name: http, port: 8080}]
`

// TestEnd_nothingIsLeftBehind ends a mesh in every way a mesh can end and looks
// for what remains: processes, namespaces, mounts, rules, sockets, files.
func TestEnd_nothingIsLeftBehind(t *testing.T) {
	parent := func(s unix.Signal) func(*mesh) {
		return func(m *mesh) { _ = m.cmd.Process.Signal(s) } // what remains is looked at
	}
	for name, c := range map[string]struct {
		end  func(*mesh)
		code int    // of lateen up
		says string // what it says last
	}{
		"Ctrl-C":               {parent(unix.SIGINT), 0, ""},
		"terminated":           {parent(unix.SIGTERM), 0, ""},
		"terminal closed":      {parent(unix.SIGHUP), 0, ""},
		"parent killed":        {parent(unix.SIGKILL), -1, ""},
		"node killed":          {func(m *mesh) { kill(m.t, m.child("lateen-node", "__node")) }, 1, "the node ended unexpectedly"},
		"killed while it ends": {func(m *mesh) { parent(unix.SIGTERM)(m); time.Sleep(20 * time.Millisecond); parent(unix.SIGKILL)(m) }, -1, ""},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			m := up(t, folder(t, small+front), 4, "-f", "m")
			tree := lives(append(m.children(), m.cmd.Process.Pid))
			spaces := namespaces(tree)
			if len(tree) < 9 || len(spaces) < 10 {
				t.Fatalf("%d processes in %d namespaces, want more", len(tree), len(spaces))
			}
			ended := uptime(t)
			c.end(m)
			err := <-m.exited
			m.exited <- err
			if got := m.cmd.ProcessState.ExitCode(); got != c.code || !strings.Contains(m.out.String(), c.says) {
				t.Errorf("exit code %d, want %d; %s\nwant %q", got, c.code, tail(m.out.String(), 500), c.says)
			}
			nothingLeft(t, m, tree, spaces, ended)
		})
	}
}

func nothingLeft(t *testing.T, m *mesh, tree map[int]uint64, spaces map[string]bool, ended uint64) {
	t.Helper()
	var left string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if left = remains(m, tree, spaces, ended); left == "" {
			break
		}
	}
	if left != "" {
		t.Error("left behind:", left)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(mounts, []byte(m.dir)) {
		t.Errorf("mounts are left: %v", err)
	}
	if os.Geteuid() == 0 {
		tables, err := (&nftables.Conn{}).ListTables()
		if err != nil {
			t.Fatal(err)
		}
		for _, table := range tables {
			if strings.Contains(table.Name, "lateen") {
				t.Errorf("nftables table %s is left", table.Name)
			}
		}
	}
	// The same directory serves again, at once.
	again := launch(t, m.dir, "-f", "m")
	again.until(20*time.Second, "started again", func() error {
		if !strings.Contains(again.out.String(), "node ") {
			return fmt.Errorf("%s", again.out)
		}
		return nil
	})
}

// remains says what is left of processes, namespaces, sockets and temporary
// files.
func remains(m *mesh, tree map[int]uint64, spaces map[string]bool, ended uint64) string {
	for pid, began := range lives(nil) {
		if tree[pid] == began {
			line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			return fmt.Sprintf("process %d %q", pid, line)
		}
		if began > ended {
			continue // a later namespace may have an old one's number
		}
		for space := range namespaces(map[int]uint64{pid: 0}) {
			if spaces[space] {
				return fmt.Sprintf("%s of process %d", space, pid)
			}
		}
	}
	left := ""
	_ = filepath.WalkDir(m.dir, func(name string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(m.dir, name)
		top := strings.Split(rel, "/")
		switch {
		case err != nil: // it goes just now
		case d.Type() == fs.ModeSocket, rel == "d/run", !slices.Contains([]string{".", "m", "d"}, top[0]):
			left = rel
		case strings.HasPrefix(d.Name(), ".") && rel != "." && rel != "d/.gitignore":
			left = rel
		}
		return nil
	})
	return left
}

// lives are processes, all of them for none, and when each began in ticks since
// the machine did.
func lives(pids []int) map[int]uint64 {
	if pids == nil {
		names, _ := filepath.Glob("/proc/[0-9]*")
		for _, n := range names {
			pid, _ := strconv.Atoi(filepath.Base(n))
			pids = append(pids, pid)
		}
	}
	out := map[int]uint64{}
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if began, err := strconv.ParseUint(f[19], 10, 64); err == nil && (f[0] != "Z" || len(tasks) > 1) {
			out[pid] = began
		}
	}
	return out
}

// namespaces are those of processes which this process is not in.
func namespaces(pids map[int]uint64) map[string]bool {
	out := map[string]bool{}
	for pid := range pids {
		for _, kind := range []string{"net", "mnt", "pid", "user", "ipc", "uts"} {
			own, _ := os.Readlink("/proc/self/ns/" + kind)
			if to, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)); err == nil && to != own {
				out[to] = true
			}
		}
	}
	return out
}

// uptime is the age of the machine in the ticks of lives.
func uptime(t *testing.T) uint64 {
	t.Helper()
	text, err := os.ReadFile("/proc/uptime")
	if err != nil {
		t.Fatal(err)
	}
	var seconds float64
	if _, err := fmt.Sscan(string(text), &seconds); err != nil {
		t.Fatal(err)
	}
	return uint64(seconds * 100)
}
