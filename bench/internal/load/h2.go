//go:build linux

package load

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"lateen.dev/lateen/internal/proxy/loop"
	"lateen.dev/lateen/internal/proxy/message"
)

// grpcBody is the size of a call's message.
const grpcBody = 100

// Windows of both ends: none of them shall be what limits.
const (
	streamWindow = 1 << 20
	connWindow   = 1 << 29
	maxFrame     = 1 << 14
)

// frame appends one HTTP/2 frame (RFC 9113 §4.1).
func frame(b []byte, typ http2.FrameType, flags http2.Flags, stream uint32, payload []byte) []byte {
	b = append(b, byte(len(payload)>>16), byte(len(payload)>>8), byte(len(payload)), byte(typ), byte(flags))
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(b, payload...)
}

// greeting is the SETTINGS and the connection window of either end.
func greeting() []byte {
	var s []byte
	for id, v := range map[http2.SettingID]uint32{
		http2.SettingInitialWindowSize: streamWindow, http2.SettingMaxConcurrentStreams: 4096,
	} {
		s = binary.BigEndian.AppendUint16(s, uint16(id))
		s = binary.BigEndian.AppendUint32(s, v)
	}
	b := frame(nil, http2.FrameSettings, 0, 0, s)
	return frame(b, http2.FrameWindowUpdate, 0, 0, binary.BigEndian.AppendUint32(nil, connWindow))
}

// block encodes fields without a dynamic table, so that it can be sent on any
// connection again and again.
func block(fields ...string) []byte {
	var buf bytes.Buffer
	e := hpack.NewEncoder(&buf)
	e.SetMaxDynamicTableSize(0)
	_ = e.WriteField(hpack.HeaderField{Name: ":method", Value: "GET"}) // goes out with the change of the table's size
	buf.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}) // a buffer takes everything
	}
	return buf.Bytes()
}

// h2Conn is what both ends of HTTP/2 share: frames in, acknowledgements out.
type h2Conn struct {
	t message.Transport
	// received counts DATA since the connection window was last topped up.
	received int
}

// frames calls f for each whole frame and returns how much was consumed.
func (c *h2Conn) frames(p []byte, f func(typ http2.FrameType, flags http2.Flags, stream uint32, payload []byte) error) (int, error) {
	used := 0
	for len(p)-used >= 9 {
		h := p[used:]
		n := int(h[0])<<16 | int(h[1])<<8 | int(h[2])
		if n > maxFrame {
			return len(p), fmt.Errorf("a frame of %d bytes", n)
		}
		if len(h) < 9+n {
			break
		}
		typ, flags, stream, payload := http2.FrameType(h[3]), http2.Flags(h[4]), binary.BigEndian.Uint32(h[5:])&(1<<31-1), h[9:9+n]
		used += 9 + n
		switch {
		case typ == http2.FrameSettings && flags&http2.FlagSettingsAck == 0:
			c.t.Write(frame(nil, http2.FrameSettings, http2.FlagSettingsAck, 0, nil))
		case typ == http2.FramePing && flags&http2.FlagPingAck == 0:
			c.t.Write(frame(nil, http2.FramePing, http2.FlagPingAck, 0, payload))
		case typ == http2.FrameData:
			if c.received += n; c.received >= connWindow/4 {
				c.t.Write(frame(nil, http2.FrameWindowUpdate, 0, 0, binary.BigEndian.AppendUint32(nil, uint32(c.received))))
				c.received = 0
			}
		}
		if err := f(typ, flags, stream, payload); err != nil {
			return used, err
		}
	}
	return used, nil
}

// H2 is a generator of HTTP/2 with prior knowledge: so many streams on each
// connection, each asking again when it is answered.
type H2 struct {
	counts  Counts
	conns   []*h2Client
	stopped bool
}

type h2Client struct {
	h2Conn
	g       *H2
	conn    *loop.Conn
	head    []byte // HEADERS payload of every request
	body    []byte // DATA payload, nil for none
	next    uint32
	sent    map[uint32]int64
	decoder *hpack.Decoder
	status  string // of the block just decoded
	grpc    string
	alive   bool
}

// NewH2 takes over connected descriptors; loop only. With grpc the requests are
// unary calls.
func NewH2(l *loop.Loop, fds []int, host string, streams int, grpc bool) (*H2, error) {
	g := &H2{counts: Counts{Nanos: make([]int64, 0, maxSamples)}}
	common := []string{
		":scheme", "http", ":authority", host, "user-agent", "Mozilla/5.0 (X11; Linux x86_64) bench",
		"accept", "application/json, text/plain, */*", "accept-language", "en-US,en;q=0.9", "cookie", "session=0123456789abcdef0123456789abcdef; theme=dark", "cache-control", "no-cache",
	}
	head, body := block(append([]string{":method", "GET", ":path", Path}, common...)...), []byte(nil)
	if grpc {
		head = block(append(append([]string{":method", "POST", ":path", "/bench.Echo/Say"}, common...), "content-type", "application/grpc", "te", "trailers")...)
		body = append(binary.BigEndian.AppendUint32([]byte{0}, grpcBody), bytes.Repeat([]byte("q"), grpcBody)...)
	}
	for _, fd := range fds {
		conn, err := l.Adopt(fd, message.Conn{})
		if err != nil {
			return g, err
		}
		c := &h2Client{h2Conn: h2Conn{t: conn}, g: g, conn: conn, head: head, body: body, next: 1, sent: map[uint32]int64{}, alive: true}
		c.decoder = hpack.NewDecoder(4096, func(f hpack.HeaderField) {
			switch f.Name {
			case ":status":
				c.status = f.Value
			case "grpc-status":
				c.grpc = f.Value
			}
		})
		g.conns = append(g.conns, c)
		conn.SetHandler(c)
		conn.Write(append([]byte(http2.ClientPreface), greeting()...))
		for range streams {
			c.send()
		}
	}
	return g, nil
}

func (c *h2Client) send() {
	id := c.next
	c.next += 2
	c.sent[id] = time.Now().UnixNano()
	flags := http2.FlagHeadersEndHeaders
	if c.body == nil {
		flags |= http2.FlagHeadersEndStream
	}
	b := frame(nil, http2.FrameHeaders, flags, id, c.head)
	if c.body != nil {
		b = frame(b, http2.FrameData, http2.FlagDataEndStream, id, c.body)
	}
	c.conn.Write(b)
}

func (c *h2Client) OnBytes(p []byte) int {
	n, err := c.frames(p, c.onFrame)
	if err != nil {
		c.g.counts.fail(err.Error())
	}
	return n
}

func (c *h2Client) onFrame(typ http2.FrameType, flags http2.Flags, stream uint32, payload []byte) error {
	switch typ {
	case http2.FrameHeaders, http2.FrameContinuation:
		if flags&(http2.FlagHeadersPadded|http2.FlagHeadersPriority) != 0 {
			return errors.New("padded or prioritized headers are not read here")
		}
		if _, err := c.decoder.Write(payload); err != nil {
			return fmt.Errorf("header block: %w", err)
		}
		if typ == http2.FrameHeaders && c.status != "200" && c.status != "" {
			return errors.New("answered with " + c.status)
		}
		c.status = ""
	case http2.FrameRSTStream:
		delete(c.sent, stream)
		if !c.g.stopped {
			c.send()
		}
		return fmt.Errorf("stream reset: %v", http2.ErrCode(binary.BigEndian.Uint32(payload)))
	case http2.FrameGoAway:
		return fmt.Errorf("connection ended by GOAWAY: %v", http2.ErrCode(binary.BigEndian.Uint32(payload[4:])))
	}
	if (typ == http2.FrameHeaders || typ == http2.FrameData) && flags&http2.FlagDataEndStream != 0 {
		return c.done(stream)
	}
	return nil
}

func (c *h2Client) done(stream uint32) error {
	sent, ok := c.sent[stream]
	if !ok {
		return fmt.Errorf("stream %d ended twice", stream)
	}
	delete(c.sent, stream)
	c.g.counts.answered(time.Now().UnixNano() - sent)
	why := c.grpc
	c.grpc = ""
	if !c.g.stopped && c.alive {
		c.send()
	}
	if c.body != nil && why != "0" {
		return fmt.Errorf("the call ended with grpc-status %q", why)
	}
	return nil
}

func (c *h2Client) OnEOF()           { c.lost(errors.New("the proxy closed the connection")) }
func (c *h2Client) OnDrained()       {}
func (c *h2Client) OnClosed(e error) { c.lost(e) }

func (c *h2Client) lost(why error) {
	if c.alive && !c.g.stopped {
		c.g.counts.fail(fmt.Sprint("connection lost: ", why))
	}
	c.alive = false
}

// Reset implements Generator.
func (g *H2) Reset() { g.counts = Counts{Nanos: make([]int64, 0, maxSamples)} }

// Counts implements Generator.
func (g *H2) Counts() Counts { return g.counts }

// Stop implements Generator.
func (g *H2) Stop() {
	g.stopped = true
	for _, c := range g.conns {
		if c.alive {
			c.conn.Abort()
		}
	}
}

// OnceH2 makes one request of HTTP/2 by another implementation, golang.org/x/net.
func OnceH2(dial Dialer, host string, grpc bool) error {
	t := &http2.Transport{AllowHTTP: true, DialTLSContext: func(context.Context, string, string, *tls.Config) (net.Conn, error) { return dial() }}
	defer t.CloseIdleConnections()
	ctx, stop := context.WithTimeout(context.Background(), requestLimit)
	defer stop()
	method, path, body, size := http.MethodGet, Path, io.Reader(http.NoBody), int64(SmallBody)
	if grpc {
		method, path, size = http.MethodPost, "/bench.Echo/Say", SmallBody+5
		body = bytes.NewReader(append(binary.BigEndian.AppendUint32([]byte{0}, grpcBody), make([]byte, grpcBody)...))
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+host+path, body)
	if err != nil {
		return err
	}
	if grpc {
		req.Header.Set("Content-Type", "application/grpc")
		req.Header.Set("Te", "trailers")
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || n != size || grpc && resp.Trailer.Get("Grpc-Status") != "0" {
		return fmt.Errorf("answered with %s, %d bytes, trailers %v", resp.Status, n, resp.Trailer)
	}
	return nil
}
