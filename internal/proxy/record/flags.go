package record

import "math/bits"

// flagNames are the access-log spellings in bit order.
var flagNames = [...]string{
	"LH", "UH", "UT", "LR", "UR", "UF", "UC", "UO", "NR", "DI", "FI", "RL", "UAEX", "RLSE", "DC",
	"URX", "SI", "IH", "DPE", "UMSDR", "NC", "UPE", "DT", "OM", "DF", "DR",
}

// Append appends the flags as access logs print them, comma-separated, "-" for
// none.
func (f Flags) Append(b []byte) []byte {
	if f == 0 {
		return append(b, '-')
	}
	for first := true; f != 0; first = false {
		i := bits.TrailingZeros64(uint64(f))
		f &^= 1 << i
		if i >= len(flagNames) {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		b = append(b, flagNames[i]...)
	}
	return b
}

// String returns the flags as access logs print them.
func (f Flags) String() string {
	if f != 0 && f&(f-1) == 0 {
		if i := bits.TrailingZeros64(uint64(f)); i < len(flagNames) {
			return flagNames[i]
		}
	}
	if f == 0 {
		return "-"
	}
	return string(f.Append(nil))
}

// ParseFlag returns the flag with an access-log name, 0 if there is none.
func ParseFlag(name string) Flags {
	for i, n := range flagNames {
		if n == name {
			return 1 << i
		}
	}
	return 0
}
