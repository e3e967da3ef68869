package logfile

import (
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLastWords bounds what is quoted of a program's log, in bytes.
const maxLastWords = 400

// LastWords returns the last line of the log at path, or as much of it as is
// worth quoting, or that the disk is full, which keeps logs from telling.
func LastWords(path string) string {
	var disk unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(path), &disk); err == nil && disk.Bavail == 0 {
		return "the disk of " + filepath.Dir(path) + " is full"
	}
	f, err := os.Open(path)
	if err != nil {
		return "" // nothing was written
	}
	defer f.Close()
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, size-4096), io.SeekStart) // from the start, then
	}
	data, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return ""
	}
	text := strings.TrimSpace(string(data))
	line := strings.TrimSpace(text[strings.LastIndexByte(text, '\n')+1:])
	if len(line) > maxLastWords {
		line = strings.ToValidUTF8(line[:maxLastWords], "") + "…"
	}
	return line
}
