package loop

// Sizes of what a loop lends to its connections.
const (
	// readSize is the loop's one read buffer: input that a codec consumes at
	// once never needs a buffer of its connection.
	readSize = 64 << 10
	// chunkSize is one piece of an output queue. Small pieces at odd distances
	// share the sets of a small cache better than large ones: against 16 KiB a
	// request of the benchmark cost 0.96 (bench/perf, h1-mesh-c64).
	chunkSize = 4 << 10
	// maxKept bounds the input that a handler may leave unconsumed.
	maxKept = 256 << 10
	// keepFree bounds the chunks and buffers a loop holds for reuse.
	keepFree = 128
)

// chunk is one piece of an output queue, borrowed from the loop.
type chunk struct {
	next     *chunk
	off, end int
	buf      [chunkSize]byte
}

// outQueue is the output of one connection: a list of chunks.
type outQueue struct {
	head, tail *chunk
	bytes      int
}

// append copies p to the end of the queue.
func (q *outQueue) append(l *Loop, p []byte) {
	q.bytes += len(p)
	for len(p) > 0 {
		t := q.tail
		if t == nil || t.end == chunkSize {
			t = l.getChunk()
			if q.tail == nil {
				q.head = t
			} else {
				q.tail.next = t
			}
			q.tail = t
		}
		n := copy(t.buf[t.end:], p)
		t.end += n
		p = p[n:]
	}
}

// advance drops n bytes that the kernel has taken.
func (q *outQueue) advance(l *Loop, n int) {
	q.bytes -= n
	for n > 0 {
		h := q.head
		if have := h.end - h.off; n < have {
			h.off += n
			return
		} else {
			n -= have
		}
		q.head = h.next
		if q.head == nil {
			q.tail = nil
		}
		l.putChunk(h)
	}
}

func (q *outQueue) drop(l *Loop) {
	for h := q.head; h != nil; {
		next := h.next
		l.putChunk(h)
		h = next
	}
	*q = outQueue{}
}

func (l *Loop) getChunk() *chunk {
	c := l.freeChunks
	if c == nil {
		return new(chunk)
	}
	l.freeChunks = c.next
	l.freeChunkCount--
	c.next, c.off, c.end = nil, 0, 0
	return c
}

func (l *Loop) putChunk(c *chunk) {
	if l.freeChunkCount >= keepFree {
		return
	}
	c.next = l.freeChunks
	l.freeChunks = c
	l.freeChunkCount++
}

// inputClasses are the capacities of kept-input buffers, smallest first.
var inputClasses = [...]int{4 << 10, 16 << 10, 64 << 10, maxKept}

// getInput lends a buffer with room for at least n bytes, length 0.
func (l *Loop) getInput(n int) []byte {
	for i, size := range inputClasses {
		if n > size {
			continue
		}
		free := l.freeInput[i]
		if len(free) == 0 {
			return make([]byte, 0, size)
		}
		b := free[len(free)-1]
		l.freeInput[i] = free[:len(free)-1]
		return b
	}
	return make([]byte, 0, n)
}

func (l *Loop) putInput(b []byte) {
	for i, size := range inputClasses {
		if cap(b) == size && len(l.freeInput[i]) < keepFree>>(2*i) {
			l.freeInput[i] = append(l.freeInput[i], b[:0])
		}
	}
}

// Borrow lends a buffer of length 0 with room for at least n bytes; give it
// back with Return when it is empty. Loop only.
func (l *Loop) Borrow(n int) []byte { return l.getInput(n) }

// Return takes a borrowed buffer back. Loop only.
func (l *Loop) Return(b []byte) { l.putInput(b) }

// Scratch is one 64 KiB buffer of the loop for layers between connection and
// codec; what is in it does not outlive the current call. Loop only.
func (l *Loop) Scratch() []byte {
	if l.scratch == nil {
		l.scratch = make([]byte, readSize)
	}
	return l.scratch
}
