//go:build linux

package liverun

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// process names a process for good: numbers are used again, start times not.
type process struct {
	pid     int
	started string
	name    string
}

func (p process) String() string { return fmt.Sprintf("%d (%s)", p.pid, p.name) }

// readProcess returns a process and its parent; ok is false when it is gone or
// only waits to be collected.
func readProcess(pid int) (p process, parent int, ok bool) {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return process{}, 0, false
	}
	head, rest, found := strings.Cut(string(data), ") ")
	_, name, _ := strings.Cut(head, "(")
	fields := strings.Fields(rest)
	if !found || len(fields) < 20 || fields[0] == "Z" {
		return process{}, 0, false
	}
	parent, err = strconv.Atoi(fields[1])
	return process{pid: pid, started: fields[19], name: name}, parent, err == nil
}

// descendants are the processes below pid.
func descendants(pid int) []process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	children := map[int][]process{}
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			if p, parent, ok := readProcess(n); ok {
				children[parent] = append(children[parent], p)
			}
		}
	}
	var out []process
	for next := []int{pid}; len(next) > 0; next = next[1:] {
		for _, p := range children[next[0]] {
			out = append(out, p)
			next = append(next, p.pid)
		}
	}
	return out
}

// alive returns those of ps that still run. The kernel may take a moment to
// collect the last ones.
func alive(ps []process) []process {
	var left []process
	for range 50 {
		left = left[:0]
		for _, p := range ps {
			if now, _, ok := readProcess(p.pid); ok && now.started == p.started {
				left = append(left, p)
			}
		}
		if len(left) == 0 {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return left
}
