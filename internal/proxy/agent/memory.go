package agent

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// giveBack returns memory that starting took and running does not need: free
// heap, and the program's own pages, most of which only decoding the first
// configuration touches. The kernel maps what is used again from its page
// cache. Measured idle with 134 clusters: resident 29.7 MB → 15.2 MB.
func giveBack() error {
	debug.FreeOSMemory()
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("give back memory: %w", err)
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return fmt.Errorf("give back memory: %w", err)
	}
	defer f.Close()
	for _, m := range cleanMappings(f, self) {
		if err := unix.Madvise(memory(m.from, int(m.to-m.from)), unix.MADV_DONTNEED); err != nil {
			return fmt.Errorf("give back memory at %x: %w", m.from, err)
		}
	}
	return nil
}

// cpuTime is what the process has used so far.
func cpuTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

type mapping struct{ from, to uintptr }

// cleanMappings reads smaps and returns the mappings of a file that are not
// writable and of which no page was ever written to (relocation does that):
// their content can be had from the file again.
func cleanMappings(smaps io.Reader, file string) []mapping {
	var out []mapping
	var at mapping
	wanted := false
	for lines := bufio.NewScanner(smaps); lines.Scan(); {
		line := lines.Text()
		key, value, _ := strings.Cut(line, " ")
		if !strings.HasSuffix(key, ":") { // the head of the next mapping
			n, _ := fmt.Sscanf(key, "%x-%x", &at.from, &at.to)
			wanted = n == 2 && strings.HasPrefix(value, "r-") && strings.HasSuffix(line, " "+file)
			continue
		}
		if wanted && key == "Anonymous:" && strings.TrimSpace(value) == "0 kB" {
			out = append(out, at)
		}
	}
	return out
}

// memory is a part of the address space that the kernel told us about. Go's
// allocator knows nothing of it, and it is only handed to the kernel.
func memory(from uintptr, size int) []byte {
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&from)), size)
}
