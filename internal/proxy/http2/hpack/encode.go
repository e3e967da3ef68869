package hpack

import (
	"encoding/binary"
	"strconv"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/syntax"
)

// Encoder compresses the header blocks of one direction of a connection. A
// field enters the dynamic table when its value is seen for the second time, so
// that values of one request push nothing useful out; strings are not Huffman
// coded, which costs more than it saves inside a mesh. The zero value is ready
// for use.
//
// The calls of one block are Begin, the pseudo fields, Field*, End.
type Encoder struct {
	t   table
	idx *index // made with the first field that is not in the static table

	started bool
	update  bool // the next block begins with size updates
	least   int  // the smallest limit since the last block
	bad     bool
}

// index finds entries of the table again. Slots hold entry number + 1 and are
// only hints: what they point at is compared.
type index struct {
	fields [256]uint32
	names  [128]uint32
	seen   [256]uint16 // admission: hashes of fields seen once
}

// How a field is represented.
type policy uint8

const (
	// onSecondSight indexes a field that comes again.
	onSecondSight policy = iota
	// nameOnly indexes the name with the first value; later values are literals.
	nameOnly
	// plain never indexes, the next hop may.
	plain
	// never indexes, here and at every hop (RFC 7541 §7.1.3).
	never
)

// policies says how fields whose values are secret or never the same are sent.
var policies = [256]policy{
	message.Authorization: never,
	message.ContentLength: plain,
	message.Traceparent:   nameOnly, message.Tracestate: nameOnly, message.XRequestID: nameOnly,
	message.XClientTraceID: nameOnly, message.B3: nameOnly, message.XB3TraceID: nameOnly,
	message.XB3SpanID: nameOnly, message.XB3ParentSpanID: nameOnly,
}

// shortCookie is the length below which a cookie could be guessed by watching
// compressed sizes.
const shortCookie = 20

// pseudoKey makes keys of pseudo fields beside those of interned names.
const pseudoKey = 200

// staticNames has the static index of each interned name, 0 if there is none;
// staticOther those of the names that are not interned.
var staticNames, staticOther = func() (ids [256]uint8, other map[string]uint8) {
	other = map[string]uint8{}
	for i := staticCount; i > 0; i-- { // the lowest index of a name wins
		switch f := &static[i]; {
		case f.Kind != Regular:
			ids[pseudoKey+f.Kind] = uint8(i)
		case f.ID != message.Other:
			ids[f.ID] = uint8(i)
		default:
			other[string(f.Name)] = uint8(i)
		}
	}
	return ids, other
}()

// SetLimit follows the peer's SETTINGS_HEADER_TABLE_SIZE.
func (e *Encoder) SetLimit(n uint32) {
	e.start()
	limit := min(int(n), TableSize)
	if limit == e.t.limit {
		return
	}
	e.t.setLimit(limit)
	e.sizeChanged(limit)
}

func (e *Encoder) start() {
	if !e.started {
		e.started, e.t.limit = true, TableSize
	}
}

func (e *Encoder) sizeChanged(n int) {
	if !e.update || n < e.least {
		e.least = n
	}
	e.update = true
}

// Begin starts a block behind b.
func (e *Encoder) Begin(b []byte) []byte {
	e.start()
	e.bad = false
	if e.update {
		e.update = false
		if e.least < e.t.limit {
			b = appendInt(b, 0x20, 5, uint32(e.least))
		}
		b = appendInt(b, 0x20, 5, uint32(e.t.limit))
	}
	return b
}

// End says whether the block may be sent. It may not when a name or a value is
// not well-formed; the table is then as if the block had never been begun.
func (e *Encoder) End() (ok bool) {
	if e.bad {
		e.Abandon()
		return false
	}
	return true
}

// Abandon makes up for a block that is not sent: both ends start over with an
// empty table.
func (e *Encoder) Abandon() {
	e.t.clear()
	e.sizeChanged(0)
}

// Status appends :status.
func (e *Encoder) Status(b []byte, code int) []byte {
	switch code {
	case 200:
		return append(b, 0x80|8)
	case 204:
		return append(b, 0x80|9)
	case 206:
		return append(b, 0x80|10)
	case 304:
		return append(b, 0x80|11)
	case 400:
		return append(b, 0x80|12)
	case 404:
		return append(b, 0x80|13)
	case 500:
		return append(b, 0x80|14)
	}
	var v [8]byte
	return e.field(b, pseudoKey+uint8(Status), static[8].Name, strconv.AppendInt(v[:0], int64(code), 10), onSecondSight)
}

// Method appends :method.
func (e *Encoder) Method(b, v []byte) []byte {
	switch string(v) {
	case "GET":
		return append(b, 0x80|2)
	case "POST":
		return append(b, 0x80|3)
	}
	return e.field(b, pseudoKey+uint8(Method), static[2].Name, v, onSecondSight)
}

// Scheme appends :scheme.
func (e *Encoder) Scheme(b, v []byte) []byte {
	switch string(v) {
	case "http":
		return append(b, 0x80|6)
	case "https":
		return append(b, 0x80|7)
	}
	return e.field(b, pseudoKey+uint8(Scheme), static[6].Name, v, onSecondSight)
}

// Authority appends :authority.
func (e *Encoder) Authority(b, v []byte) []byte {
	return e.field(b, pseudoKey+uint8(Authority), static[1].Name, v, onSecondSight)
}

// Path appends :path.
func (e *Encoder) Path(b, v []byte) []byte {
	if len(v) == 1 && v[0] == '/' {
		return append(b, 0x80|4)
	}
	return e.field(b, pseudoKey+uint8(Path), static[4].Name, v, onSecondSight)
}

var protocolName = []byte(":protocol")

// Protocol appends :protocol (RFC 8441).
func (e *Encoder) Protocol(b, v []byte) []byte {
	return e.field(b, pseudoKey+uint8(Protocol), protocolName, v, onSecondSight)
}

// Field appends a header field; id is message.Lookup(name). Sensitive fields
// are never-indexed literals.
func (e *Encoder) Field(b []byte, id message.NameID, name, value []byte, sensitive bool) []byte {
	how := policies[id]
	if sensitive || id == message.Cookie && len(value) < shortCookie {
		how = never
	}
	if id == message.Other && !syntax.LowerToken(name) {
		e.bad = true
		return b
	}
	return e.field(b, uint8(id), name, value, how)
}

func (e *Encoder) field(b []byte, key uint8, name, value []byte, how policy) []byte {
	x := e.idx
	if x == nil {
		x = new(index)
		e.idx = x
	}
	h := uint32(0)
	if how == onSecondSight {
		h = hashField(key, name, value)
		if n := x.fields[h&0xff]; n != 0 && e.t.alive(n-1) {
			if c := e.t.at(n - 1); c.ID == message.NameID(key) && string(e.t.valueOf(c)) == string(value) &&
				(key != uint8(message.Other) || string(e.t.nameOf(c)) == string(name)) {
				return appendInt(b, 0x80, 7, staticCount+e.t.inserted-(n-1))
			}
		}
	}
	if !syntax.CleanValue(value) {
		e.bad = true
		return b
	}
	slot, nameIndex := e.nameIndex(key, name)
	switch how {
	case nameOnly:
		if nameIndex == 0 && e.fits(name, value) {
			return e.index(b, key, name, value, 0, slot, x)
		}
		return appendLiteral(b, 0x10, 4, nameIndex, name, value)
	case plain:
		return appendLiteral(b, 0, 4, nameIndex, name, value)
	case never:
		return appendLiteral(b, 0x10, 4, nameIndex, name, value)
	}
	tag := uint16(h>>16) | 1
	if seen := &x.seen[h>>8&0xff]; *seen != tag || !e.fits(name, value) {
		*seen = tag
		return appendLiteral(b, 0, 4, nameIndex, name, value)
	}
	b = e.index(b, key, name, value, nameIndex, slot, x)
	x.fields[h&0xff] = e.t.inserted
	return b
}

// fits says that an entry would not push out most of the table.
func (e *Encoder) fits(name, value []byte) bool {
	return len(name)+len(value)+entryOverhead <= e.t.limit/4
}

// index appends a literal that enters both tables.
func (e *Encoder) index(b []byte, key uint8, name, value []byte, nameIndex uint32, slot uint8, x *index) []byte {
	b = appendLiteral(b, 0x40, 6, nameIndex, name, value)
	c := e.t.insert(name, value)
	c.ID = message.NameID(key)
	x.names[slot] = e.t.inserted
	return b
}

// nameIndex finds a name in the tables, 0 if it is in neither; slot is where
// the name's newest entry is remembered.
func (e *Encoder) nameIndex(key uint8, name []byte) (slot uint8, index uint32) {
	slot = key & 0x7f
	if i := staticNames[key]; i != 0 {
		return slot, uint32(i)
	}
	if key == uint8(message.Other) {
		if i := staticOther[string(name)]; i != 0 {
			return slot, uint32(i)
		}
		slot = uint8(mix(uint64(len(name)), name)&0x3f | 0x40)
	}
	if n := e.idx.names[slot]; n != 0 && e.t.alive(n-1) {
		if c := e.t.at(n - 1); c.ID == message.NameID(key) && (key != uint8(message.Other) || string(e.t.nameOf(c)) == string(name)) {
			return slot, staticCount + e.t.inserted - (n - 1)
		}
	}
	return slot, 0
}

const prime = 0x9E3779B97F4A7C15

// hashField mixes the key, and the name if the key does not tell it, with
// length and both ends of the value. Fields that collide lose some compression.
func hashField(key uint8, name, value []byte) uint32 {
	h := uint64(key)<<32 + uint64(len(value))
	if key == uint8(message.Other) {
		h = mix(h, name)
	}
	h = mix(h, value)
	return uint32(h ^ h>>32)
}

func mix(h uint64, v []byte) uint64 {
	switch n := len(v); {
	case n >= 8:
		h = (h ^ binary.LittleEndian.Uint64(v)) * prime
		h ^= h>>29 ^ binary.LittleEndian.Uint64(v[n-8:])
	case n >= 4:
		h ^= uint64(binary.LittleEndian.Uint32(v)) | uint64(binary.LittleEndian.Uint32(v[n-4:]))<<32
	case n > 0:
		h ^= uint64(v[0]) | uint64(v[n>>1])<<8 | uint64(v[n-1])<<16
	}
	h *= prime
	return h ^ h>>31
}

// appendLiteral appends a literal field of the representation in flags.
func appendLiteral(b []byte, flags byte, prefix uint, nameIndex uint32, name, value []byte) []byte {
	b = appendInt(b, flags, prefix, nameIndex)
	if nameIndex == 0 {
		b = appendInt(b, 0, 7, uint32(len(name)))
		b = append(b, name...)
	}
	b = appendInt(b, 0, 7, uint32(len(value)))
	return append(b, value...)
}

// appendInt appends a number behind the flags of its first byte (RFC 7541 §5.1).
func appendInt(b []byte, flags byte, prefix uint, n uint32) []byte {
	top := uint32(1)<<prefix - 1
	if n < top {
		return append(b, flags|byte(n))
	}
	b = append(b, flags|byte(top))
	n -= top
	for n >= 0x80 {
		b = append(b, byte(n)|0x80)
		n >>= 7
	}
	return append(b, byte(n))
}
