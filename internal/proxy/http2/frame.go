package http2

import "encoding/binary"

// preface is what a client sends first (RFC 9113 §3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

const frameHeader = 9

// Frame types.
const (
	frameData = iota
	frameHeaders
	framePriority
	frameRSTStream
	frameSettings
	framePushPromise
	framePing
	frameGoAway
	frameWindowUpdate
	frameContinuation
)

// Flags.
const (
	flagEndStream  = 0x1
	flagAck        = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

// Settings.
const (
	settingHeaderTableSize      = 0x1
	settingEnablePush           = 0x2
	settingMaxConcurrentStreams = 0x3
	settingInitialWindowSize    = 0x4
	settingMaxFrameSize         = 0x5
	settingMaxHeaderListSize    = 0x6
	settingEnableConnect        = 0x8 // RFC 8441
)

const (
	// maxFrame is the largest frame we accept, the protocol's default, and make.
	maxFrame      = 16 << 10
	initialWindow = 65535
	maxWindow     = 1<<31 - 1
	maxStreamID   = 1<<31 - 1
)

// appendFrame appends the header of a frame.
func appendFrame(b []byte, length int, typ, flags byte, id uint32) []byte {
	return append(b, byte(length>>16), byte(length>>8), byte(length), typ, flags,
		byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

// putFrame writes the header of a frame over the first bytes of b.
func putFrame(b []byte, length int, typ, flags byte, id uint32) {
	b[0], b[1], b[2], b[3], b[4] = byte(length>>16), byte(length>>8), byte(length), typ, flags
	binary.BigEndian.PutUint32(b[5:], id)
}

func appendWord(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }

func appendSetting(b []byte, id uint16, v uint32) []byte {
	return appendWord(append(b, byte(id>>8), byte(id)), v)
}

// streamTable finds streams by identifier: open addressing with linear probing,
// because identifiers are dense and a connection without streams must not cost
// more than a nil slice.
type streamTable struct {
	slots []*stream
	count int
}

func (t *streamTable) home(id uint32) int { return int(id>>1) & (len(t.slots) - 1) }

func (t *streamTable) get(id uint32) *stream {
	if t.count == 0 {
		return nil
	}
	for i := t.home(id); ; i = (i + 1) & (len(t.slots) - 1) {
		s := t.slots[i]
		if s == nil || s.id == id {
			return s
		}
	}
}

func (t *streamTable) put(s *stream) {
	if 2*(t.count+1) > len(t.slots) {
		old := t.slots
		t.slots = make([]*stream, max(8, 2*len(old)))
		for _, s := range old {
			if s != nil {
				t.slots[t.free(s.id)] = s
			}
		}
	}
	t.slots[t.free(s.id)] = s
	t.count++
}

func (t *streamTable) free(id uint32) int {
	i := t.home(id)
	for t.slots[i] != nil {
		i = (i + 1) & (len(t.slots) - 1)
	}
	return i
}

// remove takes a stream out and closes the gap it leaves.
func (t *streamTable) remove(id uint32) {
	mask := len(t.slots) - 1
	i := t.home(id)
	for t.slots[i] == nil || t.slots[i].id != id {
		if t.slots[i] == nil {
			return
		}
		i = (i + 1) & mask
	}
	t.count--
	for j := i; ; {
		t.slots[i] = nil
		for {
			j = (j + 1) & mask
			if t.slots[j] == nil {
				return
			}
			// A stream whose home lies cyclically in (i, j] stays where it is.
			if h := t.home(t.slots[j].id); (j-h)&mask >= (j-i)&mask {
				break
			}
		}
		t.slots[i] = t.slots[j]
		i = j
	}
}
