package hpack

// table is a dynamic table (RFC 7541 §2.3.2). Entries are numbered from 0 in
// the order of their insertion; number n lives in entries[n modulo length], its
// name and value, one behind the other, in ring. A ring of twice the live bytes
// lets every entry lie in one piece.
type table struct {
	ring     []byte
	entries  []entry // as many as a power of two
	write    int     // where in ring the next entry goes
	live     int     // bytes of ring in use
	size     int     // as RFC 7541 §4.1 counts
	limit    int
	inserted uint32 // the number of the next entry
	count    uint32
}

type entry struct {
	off         uint32
	name, value uint16 // lengths
	Facts              // the ID of a pseudo field is Encoder's own
}

// alive says that entry n has not been evicted.
func (t *table) alive(n uint32) bool { return t.inserted-n-1 < t.count }

func (t *table) at(n uint32) *entry { return &t.entries[n&uint32(len(t.entries)-1)] }

func (t *table) nameOf(e *entry) []byte {
	return t.ring[e.off : e.off+uint32(e.name) : e.off+uint32(e.name)]
}

func (t *table) valueOf(e *entry) []byte {
	start := e.off + uint32(e.name)
	return t.ring[start : start+uint32(e.value) : start+uint32(e.value)]
}

// fill completes f with entry n. Field by field it costs half of what the
// assignment of a whole Field does (BenchmarkDecodeRequest).
func (t *table) fill(f *Field, n uint32) {
	e := t.at(n)
	f.Name, f.Value = t.nameOf(e), t.valueOf(e)
	f.Facts = e.Facts
}

// setLimit changes the size the table may have.
func (t *table) setLimit(n int) {
	t.limit = n
	t.evict(n)
}

// evict drops the oldest entries until the size is not above most.
func (t *table) evict(most int) {
	for t.size > most {
		e := t.at(t.inserted - t.count)
		n := int(e.name) + int(e.value)
		t.size -= n + entryOverhead
		t.live -= n
		t.count--
	}
}

// clear drops all entries.
func (t *table) clear() { t.evict(0) }

// insert adds an entry and returns it, nil if it is too large for the table,
// which is empty then (RFC 7541 §4.4). name may lie in the ring itself, also in
// an entry that has to go.
func (t *table) insert(name, value []byte) *entry {
	n := len(name) + len(value)
	if n+entryOverhead > t.limit {
		t.clear()
		return nil
	}
	t.evict(t.limit - n - entryOverhead)
	t.reserve(n)
	e := t.at(t.inserted)
	*e = entry{off: uint32(t.write), name: uint16(len(name)), value: uint16(len(value))}
	copy(t.ring[t.write:], name)
	copy(t.ring[t.write+len(name):], value)
	t.write += n
	t.live += n
	t.size += n + entryOverhead
	t.inserted++
	t.count++
	return e
}

// reserve makes room for one more entry of n bytes.
func (t *table) reserve(n int) {
	if int(t.count) == len(t.entries) {
		larger := make([]entry, max(16, 2*len(t.entries)))
		for i := t.inserted - t.count; i != t.inserted; i++ {
			larger[i&uint32(len(larger)-1)] = *t.at(i)
		}
		t.entries = larger
	}
	if 2*(t.live+n) > len(t.ring) {
		larger := make([]byte, max(1024, 2*len(t.ring), 2*(t.live+n)))
		t.write = 0
		for i := t.inserted - t.count; i != t.inserted; i++ {
			e := t.at(i)
			off := t.write
			t.write += copy(larger[off:], t.ring[e.off:e.off+uint32(e.name)+uint32(e.value)])
			e.off = uint32(off)
		}
		t.ring = larger
	}
	if t.write+n > len(t.ring) {
		t.write = 0
	}
}
