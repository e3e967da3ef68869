//go:build linux

package load

import (
	"time"

	"lateen.dev/lateen/internal/proxy/loop"
)

// bulkEvery makes a stream of HugeBody bytes one of 100 MB/s.
const bulkEvery = 100 * time.Millisecond

// Beside is a fixed rate of small requests beside one stream of bulk; only the
// small ones are counted.
type Beside struct {
	*Closed
	bulk *Closed
}

// NewBeside starts both; loop only.
func NewBeside(l *loop.Loop, small, bulk []int, host string, perSecond int) (*Beside, error) {
	g := &Beside{}
	var err error
	if g.bulk, err = NewRate(l, bulk, host, BulkPath, int(time.Second/bulkEvery)); err != nil {
		return g, err
	}
	g.Closed, err = NewRate(l, small, host, Path, perSecond)
	return g, err
}

// Reset implements Generator.
func (g *Beside) Reset() {
	g.Closed.Reset()
	g.bulk.Reset()
}

// Counts implements Generator: errors of the bulk stream count, and so does its
// silence.
func (g *Beside) Counts() Counts {
	c, b := g.Closed.Counts(), g.bulk.Counts()
	if b.Requests == 0 {
		b.fail("the bulk stream brought nothing")
	}
	if b.Errors > 0 {
		c.Errors += b.Errors
		if c.First == "" {
			c.First = b.First
		}
	}
	return c
}

// Stop implements Generator.
func (g *Beside) Stop() {
	g.Closed.Stop()
	g.bulk.Stop()
}
