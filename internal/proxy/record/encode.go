package record

import (
	"encoding/binary"
	"math"
	"unicode/utf8"
)

// Hand-written OTLP encoding: every function appends protobuf wire format to a
// buffer that the loop reuses. Nested messages of unknown size get a length
// padded to four bytes, so that a span is written in one pass (0.3 µs against
// 9 µs with the SDK). Tests decode everything with the generated types.

// Wire types of protobuf.
const (
	wireVarint = 0
	wireI64    = 1
	wireLen    = 2
	wireI32    = 5
)

func appendVarint(b []byte, v uint64) []byte { return binary.AppendUvarint(b, v) }

func appendTag(b []byte, field, wire int) []byte {
	return binary.AppendUvarint(b, uint64(field)<<3|uint64(wire))
}

func appendUint(b []byte, field int, v uint64) []byte {
	return appendVarint(appendTag(b, field, wireVarint), v)
}

func appendFixed64(b []byte, field int, v uint64) []byte {
	return binary.LittleEndian.AppendUint64(appendTag(b, field, wireI64), v)
}

func appendFixed32(b []byte, field int, v uint32) []byte {
	return binary.LittleEndian.AppendUint32(appendTag(b, field, wireI32), v)
}

func appendDouble(b []byte, field int, v float64) []byte {
	return appendFixed64(b, field, math.Float64bits(v))
}

func appendStr(b []byte, field int, v string) []byte {
	return append(appendVarint(appendTag(b, field, wireLen), uint64(len(v))), v...)
}

func appendBytes(b []byte, field int, v []byte) []byte {
	return append(appendVarint(appendTag(b, field, wireLen), uint64(len(v))), v...)
}

// open begins a nested message and returns where its length goes; closeMsg
// fills it in.
func open(b []byte, field int) ([]byte, int) {
	b = appendTag(b, field, wireLen)
	return append(b, 0x80, 0x80, 0x80, 0), len(b)
}

func closeMsg(b []byte, at int) []byte {
	n := len(b) - at - 4
	b[at], b[at+1], b[at+2], b[at+3] = byte(n)|0x80, byte(n>>7)|0x80, byte(n>>14)|0x80, byte(n>>21)&0x7f
	return b
}

func varintLen(n int) int {
	l := 1
	for ; n >= 0x80; n >>= 7 {
		l++
	}
	return l
}

// attrHead begins a KeyValue whose AnyValue has n bytes.
func attrHead(b []byte, field int, key string, n int) []byte {
	kv := 1 + varintLen(len(key)) + len(key) + 1 + varintLen(n) + n
	b = appendVarint(appendTag(b, field, wireLen), uint64(kv))
	b = appendStr(b, 1, key)
	return appendVarint(append(b, 2<<3|wireLen), uint64(n))
}

// attr appends a string attribute; an empty value is left out.
func attr[T string | []byte](b []byte, field int, key string, v T) []byte {
	if len(v) == 0 {
		return b
	}
	b = attrHead(b, field, key, 1+varintLen(len(v))+len(v))
	return append(appendVarint(append(b, 1<<3|wireLen), uint64(len(v))), v...)
}

// attrInt appends an integer attribute.
func attrInt(b []byte, field int, key string, v int64) []byte {
	n := 1
	for u := uint64(v); u >= 0x80; u >>= 7 {
		n++
	}
	b = attrHead(b, field, key, 1+n)
	return appendVarint(append(b, 3<<3|wireVarint), uint64(v))
}

// cleanUTF8 replaces what protobuf would refuse from offset at on: header
// values are bytes, OTLP strings are UTF-8.
func cleanUTF8(b []byte, at int) []byte {
	if utf8.Valid(b[at:]) {
		return b
	}
	for i := at; i < len(b); i++ {
		if b[i] >= utf8.RuneSelf {
			b[i] = '?'
		}
	}
	return b
}

// appendLE and appendLEFloat append elements of packed repeated fields.
func appendLE(b []byte, v uint64) []byte { return binary.LittleEndian.AppendUint64(b, v) }

func appendLEFloat(b []byte, v float64) []byte { return appendLE(b, math.Float64bits(v)) }
