package http2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	xnet "golang.org/x/net/http2"
	oracle "golang.org/x/net/http2/hpack"

	"lateen.dev/lateen/internal/proxy/loop"
	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/message/messagetest"
)

// manual is a clock that moves when the test says so.
type manual struct {
	now    int64
	timers map[*loop.Timer]int64
}

func newManual() *manual { return &manual{now: 1e9, timers: map[*loop.Timer]int64{}} }

func (m *manual) Now() int64                         { return m.now }
func (m *manual) Arm(t *loop.Timer, d time.Duration) { m.timers[t] = m.now + int64(d) }
func (m *manual) Disarm(t *loop.Timer)               { delete(m.timers, t) }
func (m *manual) pass(d time.Duration) {
	for end := m.now + int64(d); ; {
		var next *loop.Timer
		for t, at := range m.timers {
			if at <= end && (next == nil || at < m.timers[next]) {
				next = t
			}
		}
		if next == nil {
			m.now = end
			return
		}
		m.now = max(m.now, m.timers[next])
		delete(m.timers, next)
		next.F()
	}
}

// peer plays the other end of a connection frame by frame, with the framer and
// the HPACK of golang.org/x/net.
type peer struct {
	t     *testing.T
	tr    *messagetest.Transport
	clock *manual
	buf   bytes.Buffer
	*xnet.Framer
	hbuf   bytes.Buffer
	enc    *oracle.Encoder
	dec    *oracle.Decoder
	fields []string
	blockS string
	blockE bool

	srv *Server
	acc *messagetest.Acceptor
	cli *Client
	obs *messagetest.Observer
	err []string // what OnError and OnBodyError were told
}

func newPeer(t *testing.T) *peer {
	p := &peer{t: t, tr: messagetest.NewTransport(message.Conn{}), clock: newManual()}
	p.Framer = xnet.NewFramer(&p.buf, nil)
	p.AllowIllegalWrites = true
	p.enc = oracle.NewEncoder(&p.hbuf)
	p.dec = oracle.NewDecoder(4096, func(f oracle.HeaderField) { p.fields = append(p.fields, f.Name+"="+f.Value) })
	return p
}

// toServer is a client whose preface and SETTINGS have been exchanged.
func toServer(t *testing.T, o *ServerOptions) *peer {
	p := rawToServer(t, o)
	p.buf.WriteString(preface)
	_ = p.WriteSettings()
	p.want("SETTINGS; WINDOW_UPDATE 0 983041; SETTINGS ack")
	_ = p.WriteSettingsAck()
	p.want("")
	return p
}

func rawToServer(t *testing.T, o *ServerOptions) *peer {
	p := newPeer(t)
	if o == nil {
		o = &ServerOptions{}
	}
	o.Timers = p.clock
	o.OnError = func(e *Error, _ *message.Conn) { p.err = append(p.err, e.Details()) }
	o.OnBodyError = func(e *Error, _ *message.Conn) { p.err = append(p.err, e.Details()) }
	p.acc = &messagetest.Acceptor{}
	p.srv = NewServer(p.tr, p.acc, o)
	return p
}

// toClient is a server whose SETTINGS have been exchanged.
func toClient(t *testing.T, o *ClientOptions, settings ...xnet.Setting) *peer {
	p := newPeer(t)
	if o == nil {
		o = &ClientOptions{}
	}
	o.Timers = p.clock
	p.obs = &messagetest.Observer{}
	p.cli = NewClient(p.tr, p.obs, o)
	p.want("PREFACE; SETTINGS; WINDOW_UPDATE 0 983041")
	_ = p.WriteSettings(settings...)
	p.want("SETTINGS ack")
	_ = p.WriteSettingsAck()
	p.want("")
	return p
}

func (p *peer) block(kv ...string) []byte {
	p.hbuf.Reset()
	for i := 0; i+1 < len(kv); i += 2 {
		_ = p.enc.WriteField(oracle.HeaderField{Name: kv[i], Value: kv[i+1]})
	}
	return bytes.Clone(p.hbuf.Bytes())
}

// headers writes HEADERS with the fields.
func (p *peer) headers(id uint32, end bool, kv ...string) {
	_ = p.WriteHeaders(xnet.HeadersFrameParam{StreamID: id, BlockFragment: p.block(kv...), EndStream: end, EndHeaders: true})
}

var getFields = []string{":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/"}

func (p *peer) get(id uint32, kv ...string) { p.headers(id, true, append(getFields[:8:8], kv...)...) }

func (p *peer) post(id uint32, kv ...string) {
	p.headers(id, false, append([]string{":method", "POST", ":scheme", "http", ":authority", "a", ":path", "/"}, kv...)...)
}

// feed delivers what was written.
func (p *peer) feed() {
	if b := p.buf.Bytes(); len(b) > 0 {
		p.tr.Feed(bytes.Clone(b))
	}
	p.buf.Reset()
}

// out takes the codec's output as text.
func (p *peer) out() string {
	p.feed()
	var lines []string
	b := p.tr.Take()
	if s, ok := bytes.CutPrefix(b, []byte(preface)); ok {
		lines, b = append(lines, "PREFACE"), s
	}
	for len(b) >= 9 {
		n := int(b[0])<<16 | int(b[1])<<8 | int(b[2])
		lines = append(lines, p.frame(b[3], b[4], binary.BigEndian.Uint32(b[5:]), b[9:9+n])...)
		b = b[9+n:]
	}
	if len(b) != 0 {
		p.t.Errorf("half a frame: %x", b)
	}
	if p.tr.Closing() || p.tr.Aborted {
		lines = append(lines, "CLOSE")
	}
	return strings.Join(lines, "; ")
}

func (p *peer) frame(typ, flags byte, id uint32, b []byte) []string {
	end := ""
	if flags&1 != 0 {
		end = " end"
	}
	switch typ {
	case frameData:
		return []string{fmt.Sprintf("DATA %d %d%s", id, len(b), end)}
	case frameHeaders, frameContinuation:
		if typ == frameHeaders {
			p.fields, p.blockE = nil, flags&1 != 0
		} else {
			p.blockS += "+"
		}
		if _, err := p.dec.Write(b); err != nil {
			p.t.Error(err)
		}
		if flags&flagEndHeaders == 0 {
			return nil
		}
		if err := p.dec.Close(); err != nil {
			p.t.Error(err)
		}
		if end = ""; p.blockE {
			end = " end"
		}
		s := fmt.Sprintf("HEADERS%s %d %s%s", p.blockS, id, strings.Join(p.fields, " "), end)
		p.blockS = ""
		return []string{s}
	case frameRSTStream:
		return []string{fmt.Sprintf("RST_STREAM %d %v", id, ErrCode(binary.BigEndian.Uint32(b)))}
	case frameSettings:
		if flags&1 != 0 {
			return []string{"SETTINGS ack"}
		}
		return []string{"SETTINGS"}
	case framePing:
		if flags&1 != 0 {
			return []string{"PING ack " + string(b)}
		}
		return []string{"PING " + string(b)}
	case frameGoAway:
		return []string{fmt.Sprintf("GOAWAY %d %v", binary.BigEndian.Uint32(b), ErrCode(binary.BigEndian.Uint32(b[4:])))}
	case frameWindowUpdate:
		return []string{fmt.Sprintf("WINDOW_UPDATE %d %d", id, binary.BigEndian.Uint32(b))}
	}
	return []string{fmt.Sprintf("TYPE %d", typ)}
}

// want compares the output since the last call.
func (p *peer) want(want string) {
	p.t.Helper()
	if got := p.out(); got != want {
		p.t.Errorf("sent %q\nwant %q", got, want)
	}
}

// log is what the exchange with this number in order of arrival has seen.
func (p *peer) log(i int) string {
	if i >= len(p.acc.Exchanges) {
		return ""
	}
	return strings.Join(p.acc.Exchanges[i].Log, "; ")
}

// wantLog compares what an exchange has seen.
func (p *peer) wantLog(i int, want string) {
	p.t.Helper()
	p.feed()
	if got := p.log(i); got != want {
		p.t.Errorf("exchange %d saw %q\nwant %q", i, got, want)
	}
}

// wantError compares the details the codec's owner was told.
func (p *peer) wantError(want ...string) {
	p.t.Helper()
	if strings.Join(p.err, " ") != strings.Join(want, " ") {
		p.t.Errorf("errors %q, want %q", p.err, want)
	}
}
