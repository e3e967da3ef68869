package message

import "bytes"

// Head is the head of one message: pseudo fields and header fields in wire
// order, as offsets into one flat arena. Names are stored in lower case. It is
// made to be reused: Reset keeps the memory.
//
// Slices returned by accessors point into the arena and are valid until the
// next call that adds or sets something.
type Head struct {
	arena  []byte
	fields []field
	// seen has a bit for each interned name that was ever added. Most lookups of
	// a request path are for names that are absent; they end here.
	seen                            nameSet
	method, scheme, authority, path span
	status                          int
}

// nameSet is a set of interned names.
type nameSet [(nameCount + 63) / 64]uint64

func (s *nameSet) add(id NameID)      { s[id/64] |= 1 << (id % 64) }
func (s *nameSet) has(id NameID) bool { return s[id/64]&(1<<(id%64)) != 0 }

type span struct{ off, len uint32 }

type field struct {
	id          NameID
	deleted     bool
	sensitive   bool
	name, value span
}

// Reset empties the head and keeps its memory.
func (h *Head) Reset() {
	h.arena = h.arena[:0]
	h.fields = h.fields[:0]
	h.seen = nameSet{}
	h.method, h.scheme, h.authority, h.path = span{}, span{}, span{}, span{}
	h.status = 0
}

// CopyFrom makes h an independent copy of src.
func (h *Head) CopyFrom(src *Head) {
	h.arena = append(h.arena[:0], src.arena...)
	h.fields = append(h.fields[:0], src.fields...)
	h.seen = src.seen
	h.method, h.scheme, h.authority, h.path = src.method, src.scheme, src.authority, src.path
	h.status = src.status
}

func (h *Head) put(v []byte) span {
	off := len(h.arena)
	h.arena = append(h.arena, v...)
	return span{uint32(off), uint32(len(v))}
}

func (h *Head) putString(v string) span {
	off := len(h.arena)
	h.arena = append(h.arena, v...)
	return span{uint32(off), uint32(len(v))}
}

func (h *Head) bytes(s span) []byte { return h.arena[s.off : s.off+s.len : s.off+s.len] }

// Method returns the request method, for example GET.
func (h *Head) Method() []byte { return h.bytes(h.method) }

// Scheme returns http or https, lower case; empty if unknown.
func (h *Head) Scheme() []byte { return h.bytes(h.scheme) }

// Authority returns the host and optional port the request is for, lower case.
func (h *Head) Authority() []byte { return h.bytes(h.authority) }

// Path returns the path with query, always beginning with "/" except for
// CONNECT (empty) and OPTIONS * ("*").
func (h *Head) Path() []byte { return h.bytes(h.path) }

// PathOnly returns the path without query.
func (h *Head) PathOnly() []byte {
	p := h.Path()
	if i := bytes.IndexByte(p, '?'); i >= 0 {
		return p[:i]
	}
	return p
}

// Query returns what follows "?" in the path, without the mark.
func (h *Head) Query() []byte {
	p := h.Path()
	if i := bytes.IndexByte(p, '?'); i >= 0 {
		return p[i+1:]
	}
	return nil
}

// Status returns the response status, 0 in a request.
func (h *Head) Status() int { return h.status }

// SetMethod sets the request method.
func (h *Head) SetMethod(v []byte) { h.method = h.put(v) }

// SetScheme sets the scheme.
func (h *Head) SetScheme(v []byte) { h.scheme = h.put(v) }

// SetAuthority sets the authority.
func (h *Head) SetAuthority(v []byte) { h.authority = h.put(v) }

// SetPath sets the path with query.
func (h *Head) SetPath(v []byte) { h.path = h.put(v) }

// SetStatus sets the response status.
func (h *Head) SetStatus(code int) { h.status = code }

// Len is the number of field slots; deleted ones count. Use it with Field.
func (h *Head) Len() int { return len(h.fields) }

// Size is the number of bytes the head occupies, edits included.
func (h *Head) Size() int { return len(h.arena) }

// Field returns field i in wire order. ok is false for a deleted one.
func (h *Head) Field(i int) (id NameID, name, value []byte, ok bool) {
	f := &h.fields[i]
	return f.id, h.bytes(f.name), h.bytes(f.value), !f.deleted
}

func (h *Head) add(id NameID, name, value span) {
	h.seen.add(id)
	h.fields = append(h.fields, field{id: id, name: name, value: value})
}

// Add appends a field with an interned name.
func (h *Head) Add(id NameID, value []byte) {
	h.add(id, h.putString(names[id]), h.put(value))
}

// AddString is Add for a string value.
func (h *Head) AddString(id NameID, value string) {
	h.add(id, h.putString(names[id]), h.putString(value))
}

// AddName appends a field; name must be lower case.
func (h *Head) AddName(name, value []byte) {
	h.add(Lookup(name), h.put(name), h.put(value))
}

// AddNameString is AddName for strings.
func (h *Head) AddNameString(name, value string) {
	h.add(ids[name], h.putString(name), h.putString(value))
}

// MarkSensitive says that the field added last must never enter a compression
// table: its sender said so (RFC 7541 §7.1.3).
func (h *Head) MarkSensitive() { h.fields[len(h.fields)-1].sensitive = true }

// Sensitive says whether field i was marked.
func (h *Head) Sensitive(i int) bool { return h.fields[i].sensitive }

// Get returns the first value of an interned name, nil if absent.
func (h *Head) Get(id NameID) []byte {
	if !h.seen.has(id) {
		return nil
	}
	return h.find(id)
}

func (h *Head) find(id NameID) []byte {
	for i := range h.fields {
		if f := &h.fields[i]; f.id == id && !f.deleted {
			return h.bytes(f.value)
		}
	}
	return nil
}

// Has says whether a field with this interned name is present.
func (h *Head) Has(id NameID) bool {
	return h.seen.has(id) && h.find(id) != nil
}

// GetName returns the first value of a lower-case name, nil if absent.
func (h *Head) GetName(name string) []byte {
	for i := range h.fields {
		if f := &h.fields[i]; !f.deleted && string(h.bytes(f.name)) == name {
			return h.bytes(f.value)
		}
	}
	return nil
}

// ValuesOf calls yield for each value of an interned name, in order.
func (h *Head) ValuesOf(id NameID, yield func(value []byte) bool) {
	if !h.seen.has(id) {
		return
	}
	for i := range h.fields {
		f := &h.fields[i]
		if f.id == id && !f.deleted && !yield(h.bytes(f.value)) {
			return
		}
	}
}

// Values calls yield for each value of a lower-case name, in order.
func (h *Head) Values(name string, yield func(value []byte) bool) {
	for i := range h.fields {
		f := &h.fields[i]
		if !f.deleted && string(h.bytes(f.name)) == name && !yield(h.bytes(f.value)) {
			return
		}
	}
}

// Set replaces all fields of an interned name by one.
func (h *Head) Set(id NameID, value []byte) {
	h.set(id, names[id], h.put(value))
}

// SetString is Set for a string value.
func (h *Head) SetString(id NameID, value string) {
	h.set(id, names[id], h.putString(value))
}

// SetName replaces all fields of a lower-case name by one.
func (h *Head) SetName(name, value string) {
	h.set(ids[name], name, h.putString(value))
}

func (h *Head) set(id NameID, name string, value span) {
	if !h.seen.has(id) {
		h.add(id, h.putString(name), value)
		return
	}
	done := false
	for i := range h.fields {
		f := &h.fields[i]
		if f.deleted || f.id != id || id == Other && string(h.bytes(f.name)) != name {
			continue
		}
		if done {
			f.deleted = true
			continue
		}
		f.value, done = value, true
	}
	if !done {
		h.add(id, h.putString(name), value)
	}
}

// Del removes all fields of an interned name.
func (h *Head) Del(id NameID) {
	if h.seen.has(id) {
		h.del(id)
	}
}

func (h *Head) del(id NameID) {
	for i := range h.fields {
		if h.fields[i].id == id {
			h.fields[i].deleted = true
		}
	}
}

// DelName removes all fields of a lower-case name.
func (h *Head) DelName(name string) {
	for i := range h.fields {
		if f := &h.fields[i]; string(h.bytes(f.name)) == name {
			f.deleted = true
		}
	}
}

// DelField removes field i.
func (h *Head) DelField(i int) { h.fields[i].deleted = true }
