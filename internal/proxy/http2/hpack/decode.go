package hpack

import (
	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/syntax"
)

// Decoder expands the header blocks of one direction of a connection. The zero
// value is ready for use once Begin was called.
type Decoder struct {
	t       table
	block   []byte
	scratch *Scratch
	started bool
	fields  bool // a field of this block was seen: no size update may follow
	err     error
}

// Scratch holds the Huffman-decoded strings of one field; the connections of
// one loop share one.
type Scratch struct{ buf []byte }

// maxInt bounds every integer of the format: none of ours can be larger.
const maxInt = 1 << 24

// Begin starts on a complete block, which must stay as it is until Next has
// returned false.
func (d *Decoder) Begin(block []byte, s *Scratch) {
	if !d.started {
		d.started, d.t.limit = true, TableSize
	}
	d.block, d.scratch, d.fields = block, s, false
}

// Err wraps ErrCompression once a block was malformed; nothing can be decoded any
// more.
func (d *Decoder) Err() error { return d.err }

// Next decodes one field into f. It returns false at the end of the block and
// on an error.
func (d *Decoder) Next(f *Field) bool {
	for len(d.block) > 0 && d.err == nil {
		c := d.block[0]
		switch {
		case c&0x80 != 0:
			d.fields = true
			return d.indexed(f, d.integer(7))
		case c&0xc0 == 0x40:
			return d.literal(f, 6, true)
		case c&0xe0 == 0x20:
			n := d.integer(5)
			switch {
			case d.err != nil:
			case d.fields:
				d.err = errLate // RFC 7541 §4.2
			case n > TableSize:
				d.err = errUpdate // §6.3
			default:
				d.t.setLimit(int(n))
			}
		default:
			ok := d.literal(f, 4, false)
			f.Sensitive = c&0x10 != 0
			return ok
		}
	}
	return false
}

// indexed looks a field up in the static or the dynamic table.
func (d *Decoder) indexed(f *Field, index uint32) bool {
	switch {
	case d.err != nil:
		return false
	case index-1 < staticCount:
		s := &static[index]
		f.Name, f.Value, f.Facts = s.Name, s.Value, s.Facts
	case index > staticCount && index-staticCount <= d.t.count:
		d.t.fill(f, d.t.inserted-(index-staticCount))
	default:
		d.err = errIndex
		return false
	}
	return true
}

// literal decodes a field whose value, and perhaps name, is in the block.
func (d *Decoder) literal(f *Field, prefix uint, insert bool) bool {
	d.fields = true
	d.scratch.buf = d.scratch.buf[:0]
	if index := d.integer(prefix); index != 0 {
		if !d.indexed(f, index) {
			return false
		}
	} else {
		*f = Field{Name: d.text()}
		f.classify()
	}
	f.Value = d.text()
	if d.err != nil {
		return false
	}
	f.BadValue = !syntax.CleanValue(f.Value)
	if !insert {
		return true
	}
	if e := d.t.insert(f.Name, f.Value); e != nil {
		e.Facts = f.Facts
		f.Name = d.t.nameOf(e) // the old one may have been overwritten
	}
	return true
}

// integer reads a number whose first bits are the rest of the current byte
// (RFC 7541 §5.1).
func (d *Decoder) integer(prefix uint) uint32 {
	top := uint32(1)<<prefix - 1
	n := uint32(d.block[0]) & top
	d.block = d.block[1:]
	if n < top {
		return n
	}
	for shift := uint(0); shift <= 21; shift += 7 {
		if len(d.block) == 0 {
			break
		}
		c := d.block[0]
		d.block = d.block[1:]
		n += uint32(c&0x7f) << shift
		if c&0x80 == 0 && n < maxInt {
			return n
		}
	}
	d.err = errInteger
	return 0
}

// text reads a string literal (RFC 7541 §5.2).
func (d *Decoder) text() []byte {
	if d.err != nil {
		return nil
	}
	if len(d.block) == 0 {
		d.err = errString
		return nil
	}
	coded := d.block[0]&0x80 != 0
	n := int(d.integer(7))
	if d.err == nil && n > len(d.block) {
		d.err = errString
	}
	if d.err != nil {
		return nil
	}
	p := d.block[:n:n]
	d.block = d.block[n:]
	if !coded {
		return p
	}
	start := len(d.scratch.buf)
	out, ok := appendHuffman(d.scratch.buf, p)
	if !ok {
		d.err = errHuffman
		return nil
	}
	d.scratch.buf = out
	return out[start:len(out):len(out)]
}

// classify finds out what a name is.
func (f *Field) classify() {
	if len(f.Name) > 0 && f.Name[0] == ':' {
		f.Kind = pseudo(f.Name)
		return
	}
	f.ID = message.Lookup(f.Name)
	f.BadName = f.ID == message.Other && !syntax.LowerToken(f.Name)
}

func pseudo(name []byte) Kind {
	switch string(name) {
	case ":method":
		return Method
	case ":scheme":
		return Scheme
	case ":authority":
		return Authority
	case ":path":
		return Path
	case ":status":
		return Status
	case ":protocol":
		return Protocol
	}
	return UnknownPseudo
}
