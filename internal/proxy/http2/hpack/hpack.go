// Package hpack compresses and expands header sections as RFC 7541 says, for
// the http2 codec and nobody else.
//
// It works on bytes: the dynamic tables are rings of bytes with small entries
// that remember the interned name and whether name and value are well-formed,
// so that a field that comes again is not looked at again. Nothing is a string
// or a map, and a steady connection allocates nothing. Tables grow from nothing
// with use.
//
// The order of blocks is part of the format: a Decoder must see every block of
// a connection in order, whatever becomes of its stream, and a block that an
// Encoder made must be sent, or else End or Abandon must have said otherwise.
package hpack

import (
	"errors"
	"fmt"

	"lateen.dev/lateen/internal/proxy/message"
)

// TableSize is the size of both dynamic tables (RFC 9113 §6.5.2): the default,
// never announced otherwise.
const TableSize = 4096

// ErrCompression is any error in a block; the connection cannot go on.
var ErrCompression = errors.New("malformed header block")

var (
	errIndex   = fmt.Errorf("%w: index beyond the tables", ErrCompression)
	errInteger = fmt.Errorf("%w: number without end or too large", ErrCompression)
	errString  = fmt.Errorf("%w: string longer than the block", ErrCompression)
	errHuffman = fmt.Errorf("%w: Huffman code with bad padding", ErrCompression)
	errUpdate  = fmt.Errorf("%w: table larger than announced", ErrCompression)
	errLate    = fmt.Errorf("%w: table size changed behind a field", ErrCompression)
)

// Kind tells pseudo-header fields apart (RFC 9113 §8.3).
type Kind uint8

// The kinds of fields.
const (
	Regular Kind = iota
	Method
	Scheme
	Authority
	Path
	Status
	Protocol
	UnknownPseudo
)

// Field is one decoded field. Name and Value are valid until the next call.
type Field struct {
	Name, Value []byte
	Facts
}

// Facts are what is known about a field without looking at it again.
type Facts struct {
	ID   message.NameID
	Kind Kind
	// BadName: not a lower-case token. BadValue: a control character is in it.
	BadName, BadValue bool
	// Sensitive fields came as never-indexed literals and must go on as such.
	Sensitive bool
}

// entryOverhead is what an entry costs beyond its bytes (RFC 7541 §4.1).
const entryOverhead = 32

// staticCount is the number of entries in the static table; dynamic ones follow.
const staticCount = 61

// static is the static table (RFC 7541 Appendix A), from index 1.
var static = func() (t [staticCount + 1]Field) {
	for i, f := range staticFields {
		t[i+1] = Field{Name: []byte(f[0]), Value: []byte(f[1])}
		t[i+1].classify()
	}
	return t
}()

var staticFields = [staticCount][2]string{
	{":authority", ""},
	{":method", "GET"},
	{":method", "POST"},
	{":path", "/"},
	{":path", "/index.html"},
	{":scheme", "http"},
	{":scheme", "https"},
	{":status", "200"},
	{":status", "204"},
	{":status", "206"},
	{":status", "304"},
	{":status", "400"},
	{":status", "404"},
	{":status", "500"},
	{"accept-charset", ""},
	{"accept-encoding", "gzip, deflate"},
	{"accept-language", ""},
	{"accept-ranges", ""},
	{"accept", ""},
	{"access-control-allow-origin", ""},
	{"age", ""},
	{"allow", ""},
	{"authorization", ""},
	{"cache-control", ""},
	{"content-disposition", ""},
	{"content-encoding", ""},
	{"content-language", ""},
	{"content-length", ""},
	{"content-location", ""},
	{"content-range", ""},
	{"content-type", ""},
	{"cookie", ""},
	{"date", ""},
	{"etag", ""},
	{"expect", ""},
	{"expires", ""},
	{"from", ""},
	{"host", ""},
	{"if-match", ""},
	{"if-modified-since", ""},
	{"if-none-match", ""},
	{"if-range", ""},
	{"if-unmodified-since", ""},
	{"last-modified", ""},
	{"link", ""},
	{"location", ""},
	{"max-forwards", ""},
	{"proxy-authenticate", ""},
	{"proxy-authorization", ""},
	{"range", ""},
	{"referer", ""},
	{"refresh", ""},
	{"retry-after", ""},
	{"server", ""},
	{"set-cookie", ""},
	{"strict-transport-security", ""},
	{"transfer-encoding", ""},
	{"user-agent", ""},
	{"vary", ""},
	{"via", ""},
	{"www-authenticate", ""},
}
