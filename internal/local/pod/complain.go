package pod

import (
	"fmt"
	"io"
	"os"
	"strings"
)

// maxLastWords bounds what is quoted of a program's log, in bytes.
const maxLastWords = 400

// complain reports why a container ended or could not start, with its last words
// and where the rest of them is. The same complaint is made once, however often
// the container is started again.
func (c *container) complain(reason string, started bool) {
	message := fmt.Sprintf("container %s: %s", c.spec.Name, reason)
	if started {
		if words := lastWords(c.log.Path()); words != "" {
			message += ": " + words
		}
		message += "; its log is " + c.log.Path()
	}
	// Times and addresses in the last words differ, the failure does not.
	if c.complaint == reason {
		return
	}
	c.complaint = reason
	c.pod.event(message)
}

// lastWords returns the last line of a log, or as much of its end as is worth
// quoting.
func lastWords(path string) string {
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
