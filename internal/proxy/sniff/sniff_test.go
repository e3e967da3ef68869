package sniff

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"lateen.dev/lateen/internal/proxy/message"
)

// capture is a net.Conn that collects what a TLS client says first.
type capture struct {
	bytes.Buffer
	in *bytes.Reader
}

func (c *capture) Read(p []byte) (int, error) {
	if c.in == nil {
		return 0, io.EOF
	}
	return c.in.Read(p)
}
func (*capture) Close() error                     { return nil }
func (*capture) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (*capture) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (*capture) SetDeadline(time.Time) error      { return nil }
func (*capture) SetReadDeadline(time.Time) error  { return nil }
func (*capture) SetWriteDeadline(time.Time) error { return nil }

func hello(cfg *tls.Config) []byte {
	var c capture
	_ = tls.Client(&c, cfg).HandshakeContext(context.Background())
	return c.Bytes()
}

var errSeen = errors.New("seen")

// oracle is crypto/tls's own reading of a ClientHello.
func oracle(p []byte) (h Hello, ok bool) {
	srv := tls.Server(&capture{in: bytes.NewReader(p)}, &tls.Config{
		GetConfigForClient: func(i *tls.ClientHelloInfo) (*tls.Config, error) {
			h, ok = Hello{strings.ToLower(i.ServerName), i.SupportedProtos}, true
			return nil, errSeen
		},
	})
	_ = srv.HandshakeContext(context.Background())
	return h, ok
}

// split puts the payload of one record into records of n bytes.
func split(p []byte, n int) []byte {
	var out []byte
	for part := range slices.Chunk(p[5:], n) {
		out = append(out, p[0], p[1], p[2], byte(len(part)>>8), byte(len(part)))
		out = append(out, part...)
	}
	return out
}

func seeds() [][]byte {
	a := hello(&tls.Config{ServerName: "User-Service.default.svc.cluster.local", NextProtos: []string{"istio", "h2"}})
	return [][]byte{
		a,
		hello(&tls.Config{InsecureSkipVerify: true}),
		hello(&tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}),
		split(a, 40), split(a, 900),
		append(slices.Clone(a), "early data"...),
	}
}

func TestClientHello_everyPrefixNeedsMoreUntilItMatches(t *testing.T) {
	for i, p := range seeds() {
		want, ok := oracle(p)
		if !ok {
			t.Fatalf("seed %d is no ClientHello", i)
		}
		matched := false
		for n := range len(p) + 1 {
			h, v := ClientHello(p[:n])
			switch {
			case v == NoMatch, matched && v != Match:
				t.Fatalf("seed %d, %d bytes: %v", i, n, v)
			case v == Match && (h.SNI != want.SNI || !slices.Equal(h.ALPN, want.ALPN)):
				t.Fatalf("seed %d: %+v, want %+v", i, h, want)
			}
			matched = v == Match
		}
		if !matched {
			t.Fatalf("seed %d never matched", i)
		}
	}
}

// unusual says that p is more than we are willing to put together, or has
// record headers that no TLS stack sends and crypto/tls lets pass.
func unusual(p []byte) bool {
	records := 0
	for whole := p; len(whole) >= recordHeader; records++ {
		n := int(whole[3])<<8 | int(whole[4])
		if whole[1] != 3 || whole[2] > 4 || n == 0 || n > maxRecord {
			return true
		}
		whole = whole[min(len(whole), recordHeader+n):]
	}
	return records > maxRecords || len(p) > MaxHello
}

// Where crypto/tls reads a ClientHello we must read the same names; where we
// see one that it does not, it is malformed in parts we do not look at.
func FuzzClientHello(f *testing.F) {
	for _, p := range seeds() {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		h, v := ClientHello(p)
		want, ok := oracle(p)
		if !ok {
			return
		}
		if v == NoMatch && unusual(p) {
			return
		}
		if v != Match {
			// crypto/tls leaves the characters of the name to its caller.
			for _, c := range []byte(want.SNI) {
				if c <= ' ' || c >= 0x7f {
					return
				}
			}
			t.Fatalf("%v, but crypto/tls sees %+v", v, want)
		}
		if h.SNI != want.SNI || !slices.Equal(h.ALPN, want.ALPN) {
			t.Fatalf("%+v, crypto/tls sees %+v", h, want)
		}
	})
}

func TestHTTP(t *testing.T) {
	for _, c := range []struct {
		in    string
		proto message.Protocol
		want  Verdict
	}{
		{"", 0, NeedMore},
		{"G", 0, NeedMore},
		{"GET / HTTP/1.1\r", 0, NeedMore},
		{"GET / HTTP/1.1\r\n", message.HTTP11, Match},
		{"GET / HTTP/1.1\n", message.HTTP11, Match}, // the codec says what is wrong with it
		{"POST /a b HTTP/1.0\r\nx", message.HTTP10, Match},
		{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00", message.HTTP2, Match},
		{"PRI * HT", 0, NeedMore},
		{"PRI /x HTTP/1.1\r\n", message.HTTP11, Match},
		{"M-SEARCH * HTTP/1.1\r\n", message.HTTP11, Match},
		{"GET " + strings.Repeat("a", 9000), message.HTTP11, Match},
		{"\x16\x03\x01", 0, NoMatch},
		{"*1\r\n$4\r\nPING\r\n", 0, NoMatch},
		{"PING\r\n", 0, NoMatch},
		{"SET key value\r\n", 0, NoMatch},
		{"EHLO mail.example.com\r\n", 0, NoMatch},
		{"get / HTTP/1.1\r\n", 0, NoMatch},
		{strings.Repeat("A", 25), 0, NoMatch},
		{" GET / HTTP/1.1\r\n", 0, NoMatch},
	} {
		if proto, v := HTTP([]byte(c.in)); v != c.want || proto != c.proto {
			t.Errorf("HTTP(%.40q) = %v, %v; want %v, %v", c.in, proto, v, c.proto, c.want)
		}
	}
}

// A verdict other than NeedMore must not change with more bytes.
func FuzzHTTP(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nhost: a\r\n\r\n"))
	f.Add([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
	f.Fuzz(func(t *testing.T, p []byte) {
		last, proto := NeedMore, message.ProtocolUnknown
		for n := range len(p) + 1 {
			pr, v := HTTP(p[:n])
			if last != NeedMore && (v != last || pr != proto) {
				t.Fatalf("%d bytes: %v %v after %v %v", n, pr, v, proto, last)
			}
			last, proto = v, pr
		}
	})
}
