package agent

import (
	"slices"
	"strings"
	"testing"
)

func TestCleanMappings(t *testing.T) {
	const smaps = `00400000-00c00000 r-xp 00000000 00:2b 12 /bin/p
Rss: 4 kB
Anonymous:             0 kB
00c00000-00d00000 r--p 00800000 00:2b 12 /bin/p
Anonymous:             4 kB
00d00000-00e00000 rw-p 00900000 00:2b 12 /bin/p
Anonymous:             0 kB
00e00000-00f00000 r-xp 00000000 00:2b 13 /lib/other
Anonymous:             0 kB
00f00000-01000000 r--p 00000000 00:2b 12 /bin/p
Anonymous:             0 kB
c000000000-c000400000 rw-p 00000000 00:00 0
Anonymous:             0 kB
`
	want := []mapping{{0x400000, 0xc00000}, {0xf00000, 0x1000000}}
	if got := cleanMappings(strings.NewReader(smaps), "/bin/p"); !slices.Equal(got, want) {
		t.Errorf("got %x", got)
	}
	// For real: the process goes on.
	if err := giveBack(); err != nil {
		t.Error(err)
	}
}
