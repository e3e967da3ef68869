package message

// The functions of this file let a codec fill a Head without copying field by
// field: it loads a whole head section at once and then names the pieces.

// Load empties the head and makes its arena a copy of block, which it returns
// for editing in place (lower-casing of names). Positions given to the *Span
// functions are offsets into block.
func (h *Head) Load(block []byte) []byte {
	h.Reset()
	h.arena = append(h.arena, block...)
	return h.arena
}

// AddSpan appends the field whose lower-case name and trimmed value lie in the
// loaded block.
func (h *Head) AddSpan(id NameID, nameOff, nameLen, valueOff, valueLen int) {
	h.add(id, span{uint32(nameOff), uint32(nameLen)}, span{uint32(valueOff), uint32(valueLen)})
}

// AddKnown appends a field whose id, Lookup(name), the codec knows already.
func (h *Head) AddKnown(id NameID, name, value []byte) {
	h.add(id, h.put(name), h.put(value))
}

// SetMethodSpan sets the request method to a piece of the loaded block.
func (h *Head) SetMethodSpan(off, n int) { h.method = span{uint32(off), uint32(n)} }

// SetAuthoritySpan sets the authority to a piece of the loaded block.
func (h *Head) SetAuthoritySpan(off, n int) { h.authority = span{uint32(off), uint32(n)} }

// SetPathSpan sets path and query to a piece of the loaded block.
func (h *Head) SetPathSpan(off, n int) { h.path = span{uint32(off), uint32(n)} }

// SetSchemeString sets the scheme.
func (h *Head) SetSchemeString(v string) { h.scheme = h.putString(v) }

// SetMethodString sets the request method.
func (h *Head) SetMethodString(v string) { h.method = h.putString(v) }

// SetAuthorityString sets the authority.
func (h *Head) SetAuthorityString(v string) { h.authority = h.putString(v) }

// SetPathString sets path and query.
func (h *Head) SetPathString(v string) { h.path = h.putString(v) }
