package hpack

import (
	"encoding/binary"
	"slices"
)

// codeLengths has the length in bits of each symbol's code, of EOS last (RFC
// 7541 Appendix B). The code is canonical, so lengths are all there is to know.
var codeLengths = [257]uint8{
	13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
	28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
	6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
	5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
	13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
	7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
	15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
	6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
	20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
	24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
	22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
	21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
	26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
	19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
	20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
	26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
	30,
}

const (
	eos = 256
	// rootBits is how much of the input one table look-up sees: two of the
	// common symbols, mostly.
	rootBits = 11
	maxBits  = 30
)

// pair is an entry of the root table: up to two whole symbols.
type pair struct {
	first, second uint8
	// bits of the first symbol and of both; 0 if the code is longer than the window.
	firstBits, bits uint8
}

// codeRange has the codes of one length above rootBits. Shorter codes are
// numerically lower when both are written with maxBits bits.
type codeRange struct {
	limit uint32 // left-aligned code behind the last one
	first uint32 // its first code
	bits  uint8
	at    uint16 // where its symbols begin in longSymbols
}

type huffmanTables struct {
	root    [1 << rootBits]pair
	long    []codeRange
	symbols []uint16
}

var huffman = makeHuffman()

func makeHuffman() (t huffmanTables) {
	order := make([]uint16, len(codeLengths))
	for i := range order {
		order[i] = uint16(i)
	}
	slices.SortStableFunc(order, func(a, b uint16) int { return int(codeLengths[a]) - int(codeLengths[b]) })
	code, bits := uint32(0), uint8(0)
	for _, sym := range order {
		n := codeLengths[sym]
		code <<= n - bits
		bits = n
		if n <= rootBits {
			for i := range uint32(1) << (rootBits - n) {
				t.root[code<<(rootBits-n)|i] = pair{first: uint8(sym), firstBits: n, bits: n}
			}
		} else {
			if k := len(t.long); k == 0 || t.long[k-1].bits != n {
				t.long = append(t.long, codeRange{first: code, bits: n, at: uint16(len(t.symbols))})
			}
			t.long[len(t.long)-1].limit = (code + 1) << (maxBits - n)
			t.symbols = append(t.symbols, sym)
		}
		code++
	}
	for i := range t.root {
		p := &t.root[i]
		if p.firstBits == 0 {
			continue
		}
		// What follows the first symbol, as far as the window shows it.
		rest := uint32(i) << p.firstBits & (1<<rootBits - 1)
		if q := t.root[rest]; q.firstBits > 0 && p.firstBits+q.firstBits <= rootBits {
			p.second, p.bits = q.first, p.firstBits+q.firstBits
		}
	}
	return t
}

// appendHuffman appends the string that src encodes. ok is false if src ends
// with more than seven bits of padding or with padding other than ones, or if
// it contains EOS (RFC 7541 §5.2).
func appendHuffman(dst, src []byte) (out []byte, ok bool) {
	var acc uint64 // its lowest n bits are not decoded yet
	n := uint(0)
	for {
		if n < 32 {
			if len(src) >= 4 {
				acc = acc<<32 | uint64(binary.BigEndian.Uint32(src))
				src = src[4:]
				n += 32
			} else {
				for _, c := range src {
					acc = acc<<8 | uint64(c)
					n += 8
				}
				src = nil
			}
		}
		if n < rootBits {
			return lastHuffman(dst, uint32(acc), n)
		}
		p := huffman.root[acc>>(n-rootBits)&(1<<rootBits-1)]
		switch p.bits {
		case 0:
			if dst, n, ok = longHuffman(dst, acc, n); !ok {
				return dst, false
			}
		case p.firstBits:
			dst = append(dst, p.first)
			n -= uint(p.bits)
		default:
			dst = append(dst, p.first, p.second)
			n -= uint(p.bits)
		}
	}
}

// longHuffman decodes one symbol whose code is longer than the root table's window.
func longHuffman(dst []byte, acc uint64, n uint) (out []byte, left uint, ok bool) {
	window := uint32(acc << (64 - n) >> (64 - maxBits)) // zeros behind the end
	for i := range huffman.long {
		r := &huffman.long[i]
		if window >= r.limit {
			continue
		}
		sym := huffman.symbols[uint32(r.at)+window>>(maxBits-r.bits)-r.first]
		if uint(r.bits) > n || sym == eos {
			return dst, n, false
		}
		return append(dst, byte(sym)), n - uint(r.bits), true
	}
	return dst, n, false
}

// lastHuffman decodes the last n bits, fewer than the root table's window.
func lastHuffman(dst []byte, acc uint32, n uint) (out []byte, ok bool) {
	for n > 0 {
		acc &= 1<<n - 1
		p := huffman.root[acc<<(rootBits-n)]
		if p.firstBits == 0 || uint(p.firstBits) > n {
			return dst, n < 8 && acc == 1<<n-1
		}
		dst = append(dst, p.first)
		n -= uint(p.firstBits)
	}
	return dst, true
}
