package hpack

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	oracle "golang.org/x/net/http2/hpack"

	"lateen.dev/lateen/internal/proxy/message"
)

// decodeAll returns the fields of a block as "name: value" lines; sensitive
// ones are marked.
func decodeAll(d *Decoder, block []byte) ([]string, error) {
	var out []string
	var s Scratch
	d.Begin(block, &s)
	var f Field
	for d.Next(&f) {
		out = append(out, line(string(f.Name), string(f.Value), f.Sensitive))
	}
	return out, d.Err()
}

func line(name, value string, sensitive bool) string {
	if sensitive {
		return name + ": " + value + " (sensitive)"
	}
	return name + ": " + value
}

type oracleDecoder struct {
	d   *oracle.Decoder
	out []string
}

func newOracle() *oracleDecoder {
	o := &oracleDecoder{}
	o.d = oracle.NewDecoder(TableSize, func(f oracle.HeaderField) { o.out = append(o.out, line(f.Name, f.Value, f.Sensitive)) })
	return o
}

func (o *oracleDecoder) decode(block []byte) ([]string, error) {
	o.out = nil
	_, err := o.d.Write(block)
	if err == nil {
		err = o.d.Close()
	}
	return o.out, err
}

func same(a, b []string) bool { return strings.Join(a, "\n") == strings.Join(b, "\n") }

// The examples of RFC 7541 C.4 and C.6 share tables from block to block.
func TestDecoder_examplesOfTheRFC(t *testing.T) {
	unhex := func(s string) []byte {
		var b []byte
		if _, err := fmt.Sscanf(strings.ReplaceAll(s, " ", ""), "%x", &b); err != nil {
			t.Fatal(err)
		}
		return b
	}
	var d Decoder
	for _, c := range []struct{ block, want string }{
		{"8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com"},
		{"8286 84be 5886 a8eb 1064 9cbf", ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com\ncache-control: no-cache"},
		{
			"8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
			":method: GET\n:scheme: https\n:path: /index.html\n:authority: www.example.com\ncustom-key: custom-value",
		},
	} {
		got, err := decodeAll(&d, unhex(c.block))
		if err != nil || strings.Join(got, "\n") != c.want {
			t.Errorf("%s: %q, %v", c.block, got, err)
		}
	}
}

func TestHuffman_everySymbolAndEveryPadding(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 20_000 {
		p := make([]byte, rnd.IntN(12))
		for j := range p {
			if p[j] = byte(rnd.IntN(256)); i%2 == 0 {
				p[j] = "/abc 0123-=xyz"[rnd.IntN(14)]
			}
		}
		if i < 256 {
			p = []byte{byte(i)}
		}
		coded := oracle.AppendHuffmanString(nil, string(p))
		got, ok := appendHuffman(nil, coded)
		if !ok || !bytes.Equal(got, p) {
			t.Fatalf("%q: %q %v", p, got, ok)
		}
	}
}

func FuzzHuffman(f *testing.F) {
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0xff, 0xff, 0xff, 0xea, 0xff})
	f.Add([]byte{0x1f, 0xfe})
	f.Fuzz(func(t *testing.T, p []byte) {
		want, err := oracle.HuffmanDecodeToString(p)
		got, ok := appendHuffman(nil, p)
		if ok != (err == nil) || ok && string(got) != want {
			t.Fatalf("%x: %q %v, oracle %q %v", p, got, ok, want, err)
		}
	})
}

func TestDecoder_errors(t *testing.T) {
	for name, block := range map[string][]byte{
		"index 0":                  {0x80},
		"index beyond both tables": {0xff, 0x00},
		"name index beyond":        {0x7f, 0x00, 0x00},
		"truncated index":          {0xff},
		"integer without end":      {0xff, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80},
		"string beyond the block":  {0x40, 0x05, 'a'},
		"no value":                 {0x41},
		"size update too large":    {0x3f, 0xe2, 0x1f},
		"size update after field":  {0x82, 0x20},
		"padding of zeros":         {0x41, 0x81, 0x00},
		"padding of 8 bits":        {0x41, 0x82, 0x1f, 0xff},
		"EOS":                      {0x41, 0x84, 0xff, 0xff, 0xff, 0xff},
	} {
		var d Decoder
		if out, err := decodeAll(&d, block); err == nil {
			t.Errorf("%s: %q", name, out)
		}
		if out, err := decodeAll(&d, []byte{0x82}); err == nil {
			t.Errorf("%s: went on with %q", name, out)
		}
	}
}

func TestDecoder_judgesNamesAndValues(t *testing.T) {
	var d Decoder
	var s Scratch
	var f Field
	block := []byte{0x40, 3, 'X', '-', 'A', 1, 'v', 0x40, 1, 'a', 2, 'v', '\n', 0x40, 0, 1, 'v', 0x40, 6, ':', 'w', 'h', 'a', 't', '!', 1, 'v'}
	for range 2 {
		d.Begin(block, &s)
		var got []string
		for d.Next(&f) {
			got = append(got, fmt.Sprint(f.BadName, f.BadValue, f.Kind))
		}
		want := "true false 0, false true 0, true false 0, false false 7"
		if g := strings.Join(got, ", "); g != want || d.Err() != nil {
			t.Errorf("%s, want %s, %v", g, want, d.Err())
		}
		block = []byte{0xc1, 0xc0, 0xbf, 0xbe} // the same from the table
	}
	if d.Begin([]byte{0x58, 1, 'x'}, &s); !d.Next(&f) || f.ID != message.Other || f.BadName {
		t.Error("cache-control")
	}
	if d.Begin([]byte{0x5c, 1, '7'}, &s); !d.Next(&f) || f.ID != message.ContentLength {
		t.Error("content-length")
	}
}

// Sequences of blocks against the oracle: same fields, same verdict.
func FuzzDecoder(f *testing.F) {
	f.Add([]byte{0x82, 0x86, 0x84, 0x41, 1, 'a', 0xbe}, uint8(3))
	f.Add([]byte{0x20, 0x3f, 0xe1, 0x1f, 0x40, 1, 'a', 1, 'b', 0xbe}, uint8(2))
	f.Fuzz(func(t *testing.T, p []byte, cut uint8) {
		var d Decoder
		o := newOracle()
		n := int(cut)%8 + 1
		for len(p) > 0 {
			k := min(len(p), max(1, len(p)/n))
			block := p[:k]
			p = p[k:]
			got, err := decodeAll(&d, append([]byte(nil), block...))
			want, werr := o.decode(block)
			if errors.Is(err, errLate) || errors.Is(err, errInteger) && werr == nil && overlong(block) {
				return // the oracle lets size updates follow fields and integers be written long
			}
			if (err == nil) != (werr == nil) {
				t.Fatalf("%x: %v %q, oracle %v %q", block, err, got, werr, want)
			}
			if err != nil {
				return
			}
			if !same(got, want) {
				t.Fatalf("%x: %q, oracle %q", block, got, want)
			}
		}
	})
}

// overlong says that four continuation bytes in a row may be an integer that is
// written too long.
func overlong(p []byte) bool {
	run := 0
	for _, c := range p {
		if run++; c&0x80 == 0 {
			run = 0
		}
		if run >= 3 {
			return true
		}
	}
	return false
}

// vocabulary makes fields that repeat, change and grow.
func randomField(rnd *rand.Rand) (name, value string) {
	names := []string{
		"user-agent", "accept", "x-request-id", "traceparent", "authorization", "cookie", "content-length", "cache-control",
		"x-own", "x-other-name", "grpc-timeout", "date", "x-" + fmt.Sprint(rnd.IntN(40)),
	}
	name = names[rnd.IntN(len(names))]
	switch rnd.IntN(4) {
	case 0:
		value = fmt.Sprint(rnd.Uint64())
	case 1:
		value = strings.Repeat(string(rune('a'+rnd.IntN(26))), rnd.IntN(1500))
	default:
		value = fmt.Sprint("value ", rnd.IntN(5))
	}
	return name, value
}

// What our encoder makes, the oracle and our decoder read alike; limits change
// and blocks are given up on the way.
func TestEncoder_isUnderstood(t *testing.T) {
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		var e Encoder
		var d Decoder
		o := newOracle()
		for block := range 200 {
			if rnd.IntN(20) == 0 {
				e.SetLimit(uint32(rnd.IntN(6000)))
			}
			var want []string
			b := e.Begin(nil)
			if rnd.IntN(2) == 0 {
				code := 200 + rnd.IntN(10)
				b = e.Status(b, code)
				want = append(want, line(":status", fmt.Sprint(code), false))
			} else {
				path := fmt.Sprint("/", rnd.IntN(3))
				b = e.Path(e.Authority(e.Scheme(e.Method(b, []byte("PUT")), []byte("https")), []byte("a.example")), []byte(path))
				want = append(want, ":method: PUT", ":scheme: https", ":authority: a.example", ":path: "+path)
			}
			for range rnd.IntN(20) {
				name, value := randomField(rnd)
				sensitive := rnd.IntN(10) == 0
				id := message.Lookup([]byte(name))
				b = e.Field(b, id, []byte(name), []byte(value), sensitive)
				how := policies[id]
				want = append(want, line(name, value, sensitive || how == never || id == message.Cookie && len(value) < shortCookie))
			}
			switch rnd.IntN(30) {
			case 0:
				e.Field(b, message.Other, []byte("x"), []byte("a\r\nb"), false)
				if e.End() {
					t.Fatal("a line break went through")
				}
				continue
			case 1:
				e.Abandon()
				continue
			}
			if !e.End() {
				t.Fatal("refused")
			}
			got, err := decodeAll(&d, b)
			ref, rerr := o.decode(b)
			if err != nil || rerr != nil || !same(got, ref) {
				t.Fatalf("seed %d, block %d: %v %q, oracle %v %q", seed, block, err, got, rerr, ref)
			}
			if !same(unmarkNames(got), unmarkNames(want)) {
				t.Fatalf("seed %d, block %d: %q, want %q", seed, block, got, want)
			}
		}
	}
}

// unmarkNames drops the mark of fields whose name alone is indexed: whether the
// first of them is marked depends on the table.
func unmarkNames(lines []string) []string {
	out := make([]string, len(lines))
	for i, l := range lines {
		out[i] = l
		if strings.HasPrefix(l, "traceparent") || strings.HasPrefix(l, "x-request-id") {
			out[i] = strings.TrimSuffix(l, " (sensitive)")
		}
	}
	return out
}

// The oracle's encoder, with Huffman coding, against our decoder.
func TestDecoder_understandsTheOracle(t *testing.T) {
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 9))
		var buf bytes.Buffer
		e := oracle.NewEncoder(&buf)
		var d Decoder
		for range 200 {
			buf.Reset()
			if rnd.IntN(20) == 0 {
				e.SetMaxDynamicTableSize(uint32(rnd.IntN(TableSize)))
			}
			var want []string
			for range rnd.IntN(20) {
				name, value := randomField(rnd)
				s := rnd.IntN(10) == 0
				_ = e.WriteField(oracle.HeaderField{Name: name, Value: value, Sensitive: s})
				want = append(want, line(name, value, s))
			}
			got, err := decodeAll(&d, buf.Bytes())
			if err != nil || !same(got, want) {
				t.Fatalf("seed %d: %v %q, want %q", seed, err, got, want)
			}
		}
	}
}

func TestEncoder_refusesWhatIsNotWellFormed(t *testing.T) {
	for _, c := range []struct{ name, value string }{
		{"X-Upper", "v"},
		{"", "v"},
		{"a b", "v"},
		{"a:", "v"},
		{"x", "a\x00b"},
		{"x", "a\nb"},
		{"x", "\r"},
	} {
		var e Encoder
		e.Field(e.Begin(nil), message.Other, []byte(c.name), []byte(c.value), false)
		if e.End() {
			t.Errorf("%q: %q was accepted", c.name, c.value)
		}
	}
}

// fixture is a request with two fields that change and a response, as mesh
// peers exchange them.
type fixture struct {
	n                 int
	enc, renc         Encoder
	dec, rdec         Decoder
	scratch           Scratch
	buf, rbuf         []byte
	requestID, parent []byte
}

func newFixture() *fixture {
	return &fixture{
		requestID: []byte("7b0a4ecb-6f7a-4cf6-8f5e-0f5a1c7f6d11"),
		parent:    []byte("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
	}
}

var steadyFields = []struct {
	id          message.NameID
	name, value []byte
}{
	field("user-agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"),
	field("accept", "application/json"),
	field("accept-encoding", "gzip, deflate, br"),
	field("x-forwarded-proto", "http"),
	field("x-envoy-attempt-count", "1"),
	field("content-type", "application/json"),
	field("authorization", "Bearer 0123456789"),
	field("x-own", "some value"),
	field("te", "trailers"),
}

func field(name, value string) (f struct {
	id          message.NameID
	name, value []byte
},
) {
	f.id, f.name, f.value = message.Lookup([]byte(name)), []byte(name), []byte(value)
	return f
}

func (x *fixture) encode() {
	x.n++
	x.requestID[0] = byte('a' + x.n%26)
	x.parent[5] = byte('a' + x.n%6)
	b := x.enc.Begin(x.buf[:0])
	b = x.enc.Method(b, []byte("GET"))
	b = x.enc.Scheme(b, []byte("http"))
	b = x.enc.Authority(b, []byte("order-service:8080"))
	b = x.enc.Path(b, []byte("/api/v1/orders"))
	b = x.enc.Field(b, message.XRequestID, []byte("x-request-id"), x.requestID, false)
	b = x.enc.Field(b, message.Traceparent, []byte("traceparent"), x.parent, false)
	for i := range steadyFields {
		f := &steadyFields[i]
		b = x.enc.Field(b, f.id, f.name, f.value, false)
	}
	x.buf = b
	if !x.enc.End() {
		panic("refused")
	}
}

func (x *fixture) encodeResponse() {
	b := x.renc.Begin(x.rbuf[:0])
	b = x.renc.Status(b, 200)
	b = x.renc.Field(b, message.ContentType, []byte("content-type"), []byte("application/json"), false)
	b = x.renc.Field(b, message.ContentLength, []byte("content-length"), []byte("1024"), false)
	b = x.renc.Field(b, message.Server, []byte("server"), []byte("lateen"), false)
	b = x.renc.Field(b, message.Date, []byte("date"), []byte("Mon, 01 Jan 2026 00:00:00 GMT"), false)
	x.rbuf = b
	x.renc.End()
}

func drain(d *Decoder, block []byte, s *Scratch) (n int) {
	var f Field
	d.Begin(block, s)
	for d.Next(&f) {
		n++
	}
	if d.Err() != nil {
		panic(d.Err())
	}
	return n
}

func TestSteadyStateAllocatesNothing(t *testing.T) {
	x := newFixture()
	round := func() {
		x.encode()
		x.encodeResponse()
		if drain(&x.dec, x.buf, &x.scratch) != 15 || drain(&x.rdec, x.rbuf, &x.scratch) != 5 {
			t.Fatal("fields were lost")
		}
	}
	for range 10 {
		round()
	}
	if n := testing.AllocsPerRun(1000, round); n != 0 {
		t.Errorf("%v allocations", n)
	}
	t.Logf("request %d bytes, response %d bytes", len(x.buf), len(x.rbuf))
}

func BenchmarkEncodeRequest(b *testing.B) {
	x := newFixture()
	for b.Loop() {
		x.encode()
	}
}

func BenchmarkEncodeResponse(b *testing.B) {
	x := newFixture()
	for b.Loop() {
		x.encodeResponse()
	}
}

func BenchmarkDecodeRequest(b *testing.B) {
	x := newFixture()
	for range 5 {
		x.encode()
		drain(&x.dec, x.buf, &x.scratch)
	}
	for b.Loop() {
		drain(&x.dec, x.buf, &x.scratch)
	}
}

func BenchmarkDecodeResponse(b *testing.B) {
	x := newFixture()
	for range 5 {
		x.encodeResponse()
		drain(&x.rdec, x.rbuf, &x.scratch)
	}
	for b.Loop() {
		drain(&x.rdec, x.rbuf, &x.scratch)
	}
}

// A request as a foreign peer sends it: Huffman coded, two values changing.
func BenchmarkDecodeHuffman(b *testing.B) {
	var buf bytes.Buffer
	e := oracle.NewEncoder(&buf)
	var d Decoder
	var s Scratch
	x := newFixture()
	write := func() {
		x.encode()
		buf.Reset()
		for _, f := range []oracle.HeaderField{
			{Name: ":method", Value: "GET"},
			{Name: ":scheme", Value: "http"},
			{Name: ":authority", Value: "order-service:8080"},
			{Name: ":path", Value: "/api/v1/orders"},
			{Name: "x-request-id", Value: string(x.requestID), Sensitive: true},
			{Name: "traceparent", Value: string(x.parent), Sensitive: true},
		} {
			_ = e.WriteField(f)
		}
		for _, f := range steadyFields {
			_ = e.WriteField(oracle.HeaderField{Name: string(f.name), Value: string(f.value)})
		}
	}
	for range 5 {
		write()
		drain(&d, buf.Bytes(), &s)
	}
	for b.Loop() {
		drain(&d, buf.Bytes(), &s)
	}
}
