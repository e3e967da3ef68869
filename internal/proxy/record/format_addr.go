package record

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// addressOperators print socket addresses, whole, without port, or the port.
func addressOperators(name string) opFunc {
	part := 0
	switch {
	case strings.HasSuffix(name, "_WITHOUT_PORT"):
		name, part = strings.TrimSuffix(name, "_WITHOUT_PORT"), 1
	case strings.HasSuffix(name, "_PORT"):
		name, part = strings.TrimSuffix(name, "_PORT"), 2
		if !strings.HasSuffix(name, "_ADDRESS") {
			name += "_ADDRESS" // DOWNSTREAM_LOCAL_PORT
		}
	}
	get := addressOf(name)
	if get == nil {
		return nil
	}
	return func(b []byte, rec *Record, _ *Env) ([]byte, bool) {
		a := get(rec)
		if !a.IsValid() {
			return b, false
		}
		a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
		switch part {
		case 1:
			return a.Addr().AppendTo(b), true
		case 2:
			return strconv.AppendUint(b, uint64(a.Port()), 10), true
		}
		return a.AppendTo(b), true
	}
}

func addressOf(name string) func(*Record) netip.AddrPort {
	switch name {
	case "UPSTREAM_HOST", "UPSTREAM_REMOTE_ADDRESS":
		return func(rec *Record) netip.AddrPort {
			a := rec.Last()
			if a == nil {
				return netip.AddrPort{}
			}
			if !a.Remote.IsValid() && a.Endpoint != nil {
				return a.Endpoint.Addr // chosen, but never connected
			}
			return a.Remote
		}
	case "UPSTREAM_LOCAL_ADDRESS":
		return func(rec *Record) netip.AddrPort {
			if a := rec.Last(); a != nil {
				return a.Local
			}
			return netip.AddrPort{}
		}
	case "DOWNSTREAM_LOCAL_ADDRESS":
		return func(rec *Record) netip.AddrPort {
			if rec.Conn == nil {
				return netip.AddrPort{}
			}
			if rec.Conn.OriginalDst.IsValid() {
				return rec.Conn.OriginalDst // what the client dialled, before capture
			}
			return rec.Conn.Local
		}
	case "DOWNSTREAM_REMOTE_ADDRESS", "DOWNSTREAM_DIRECT_REMOTE_ADDRESS":
		return func(rec *Record) netip.AddrPort {
			if rec.Conn == nil {
				return netip.AddrPort{}
			}
			return rec.Conn.Remote
		}
	}
	return nil
}

// timeOperator implements START_TIME(strftime). The default is ISO 8601 with
// milliseconds in UTC.
func timeOperator(layout string, local bool) (opFunc, error) {
	place := func(t time.Time) time.Time {
		if local {
			return t.Local()
		}
		return t.UTC()
	}
	if layout == "" {
		return func(b []byte, rec *Record, _ *Env) ([]byte, bool) {
			if local {
				return rec.Start.Local().AppendFormat(b, "2006-01-02T15:04:05.000Z07:00"), true
			}
			return appendISO(b, rec.Start.UTC()), true
		}, nil
	}
	type part struct {
		text string
		f    func([]byte, time.Time) []byte
	}
	var parts []part
	for i := 0; i < len(layout); {
		if layout[i] != '%' {
			j := strings.IndexByte(layout[i:], '%')
			if j < 0 {
				j = len(layout) - i
			}
			parts = append(parts, part{text: layout[i : i+j]})
			i += j
			continue
		}
		f, n := strftime(layout[i+1:])
		if f == nil {
			return nil, fmt.Errorf("operator START_TIME: %q is not supported in a time format", clip(layout[i:], 4))
		}
		parts = append(parts, part{f: f})
		i += 1 + n
	}
	return func(b []byte, rec *Record, _ *Env) ([]byte, bool) {
		t := place(rec.Start)
		for i := range parts {
			if parts[i].f == nil {
				b = append(b, parts[i].text...)
			} else {
				b = parts[i].f(b, t)
			}
		}
		return b, true
	}, nil
}

// appendISO writes t, in UTC, as 2006-01-02T15:04:05.000Z. AppendFormat reads
// its layout anew for each line.
func appendISO(b []byte, t time.Time) []byte {
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	ms := t.Nanosecond() / 1e6
	two := func(v int) (byte, byte) { return byte('0' + v/10%10), byte('0' + v%10) }
	y1, y2 := two(year / 100)
	y3, y4 := two(year)
	mo1, mo2 := two(int(month))
	d1, d2 := two(day)
	h1, h2 := two(hour)
	m1, m2 := two(minute)
	s1, s2 := two(second)
	f2, f3 := two(ms)
	return append(b, y1, y2, y3, y4, '-', mo1, mo2, '-', d1, d2, 'T', h1, h2, ':', m1, m2, ':', s1, s2, '.', byte('0'+ms/100), f2, f3, 'Z')
}

// strftime returns the writer for one conversion and its length after "%".
func strftime(s string) (f func([]byte, time.Time) []byte, n int) {
	if s == "" {
		return nil, 0
	}
	layouts := map[byte]string{
		'Y': "2006", 'm': "01", 'd': "02", 'e': "_2", 'H': "15", 'I': "03", 'M': "04", 'S': "05", 'p': "PM", 'y': "06",
		'b': "Jan", 'h': "Jan", 'B': "January", 'a': "Mon", 'A': "Monday", 'j': "002", 'z': "-0700", 'Z': "MST",
		'T': "15:04:05", 'F': "2006-01-02", 'D': "01/02/06", 'R': "15:04",
	}
	if l, ok := layouts[s[0]]; ok {
		return func(b []byte, t time.Time) []byte { return t.AppendFormat(b, l) }, 1
	}
	fraction := func(digits int) func([]byte, time.Time) []byte {
		return func(b []byte, t time.Time) []byte {
			v := strconv.Itoa(1_000_000_000 + t.Nanosecond())[1:]
			return append(b, v[:digits]...)
		}
	}
	switch {
	case s[0] == 's':
		return func(b []byte, t time.Time) []byte { return strconv.AppendInt(b, t.Unix(), 10) }, 1
	case s[0] == '%':
		return func(b []byte, _ time.Time) []byte { return append(b, '%') }, 1
	case s[0] == 'f':
		return fraction(9), 1
	case s[0] >= '1' && s[0] <= '9' && len(s) > 1 && s[1] == 'f':
		return fraction(int(s[0] - '0')), 2
	case len(s) > 2 && s[0] == 'E' && s[1] >= '1' && s[1] <= '9' && s[2] == 'S': // %E3S: seconds with fraction
		frac := fraction(int(s[1] - '0'))
		return func(b []byte, t time.Time) []byte { return frac(append(t.AppendFormat(b, "05"), '.'), t) }, 3
	}
	return nil, 0
}

// tlsVersion and cipherName print as Envoy does.
func tlsVersion(v uint16) string {
	switch v {
	case tls.VersionTLS10:
		return "TLSv1"
	case tls.VersionTLS11:
		return "TLSv1.1"
	case tls.VersionTLS12:
		return "TLSv1.2"
	case tls.VersionTLS13:
		return "TLSv1.3"
	}
	return ""
}

func cipherName(id uint16) string {
	if id == 0 {
		return ""
	}
	return tls.CipherSuiteName(id)
}
