//go:build linux

package local

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// needed is the space in bytes that a start asks of the disk: certificates,
	// sockets and an empty store fit with room to spare.
	needed = 2 << 20
	// full is when a disk counts as full: small files may still fit.
	full = 512 << 10
	// diskEvery is how often the disk is looked at.
	diskEvery = 2 * time.Second
)

// space returns what an ordinary user may still write below dir.
func space(dir string) (bytes uint64, known bool) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Blocks == 0 {
		return 0, false // some file systems do not say
	}
	return st.Bavail * uint64(st.Bsize), true
}

// roomToStart refuses a start that could only be half done.
func roomToStart(dir string) error {
	left, known := space(dir)
	if !known || left >= needed {
		return nil
	}
	return fmt.Errorf("the disk of %s is full: %d KiB are left, a start needs %d\nhint: free some space, or give a directory on another disk with --data", dir, left>>10, needed>>10)
}

// watchDisk tells once when the disk of the data directory is full, and when it
// is no more.
func (p *parent) watchDisk(ctx context.Context) {
	told := false
	tick := time.NewTicker(diskEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		left, known := space(p.o.DataDir)
		switch {
		case known && left < full && !told:
			told = true
			p.progress(Event{Kind: "disk", Error: true, Message: fmt.Sprintf("the disk of %s is full: traffic and policies go on, "+
				"new spans are dropped and changes are not kept over a restart; free some space", p.o.DataDir)})
		case told && left > 2*full:
			told = false
			p.progress(Event{Kind: "disk", Message: fmt.Sprintf("the disk of %s has room again", p.o.DataDir)})
		}
	}
}
