//go:build linux

package load

import (
	"bytes"
	"encoding/binary"
	"strconv"

	"golang.org/x/net/http2"

	"lateen.dev/lateen/internal/proxy/message"
)

// HTTP2 answers every request of HTTP/2 with prior knowledge with 1 KiB; with
// grpc as a unary call. It reads no header block: its answer never differs.
func (b *Backend) HTTP2(grpc bool) func(fd int) (*Listener, error) {
	a := h2Answer{head: block(":status", "200", "content-type", "text/plain", "content-length", strconv.Itoa(SmallBody)), body: b.bulk[:SmallBody]}
	if grpc {
		a.head, a.trailers = block(":status", "200", "content-type", "application/grpc"), block("grpc-status", "0")
		a.body = append(binary.BigEndian.AppendUint32([]byte{0}, SmallBody), a.body...)
	}
	return func(fd int) (*Listener, error) {
		return b.serve(fd, func(t message.Transport) message.TransportHandler {
			t.Write(greeting())
			return &h2Server{h2Conn: h2Conn{t: t}, answer: a, window: 65535}
		})
	}
}

// h2Answer are the payloads of the frames of every answer.
type h2Answer struct{ head, body, trailers []byte }

// h2Server is one HTTP/2 connection of the backend.
type h2Server struct {
	h2Conn
	answer h2Answer
	begun  bool
	// window is how much DATA the peer still takes on the connection. A stream's
	// own window is always larger than an answer.
	window  int
	waiting []uint32 // streams whose answer waits for the window
}

func (c *h2Server) OnBytes(p []byte) int {
	used := 0
	if !c.begun {
		if len(p) < len(http2.ClientPreface) {
			return 0
		}
		if !bytes.HasPrefix(p, []byte(http2.ClientPreface)) {
			c.t.Abort()
			return len(p)
		}
		c.begun, used = true, len(http2.ClientPreface)
	}
	n, err := c.frames(p[used:], c.onFrame)
	if err != nil {
		c.t.Abort()
	}
	return used + n
}

func (c *h2Server) onFrame(typ http2.FrameType, flags http2.Flags, stream uint32, payload []byte) error {
	switch typ {
	case http2.FrameWindowUpdate:
		if stream == 0 {
			c.window += int(binary.BigEndian.Uint32(payload))
			c.resume()
		}
	case http2.FrameRSTStream:
		for i, id := range c.waiting {
			if id == stream {
				c.waiting = append(c.waiting[:i], c.waiting[i+1:]...)
				break
			}
		}
	case http2.FrameHeaders, http2.FrameData:
		if flags&http2.FlagDataEndStream != 0 { // the same bit in both
			c.waiting = append(c.waiting, stream)
			c.resume()
		}
	}
	return nil
}

// resume answers as many streams as the window allows.
func (c *h2Server) resume() {
	for len(c.waiting) > 0 && c.window >= len(c.answer.body) {
		id := c.waiting[0]
		c.waiting = c.waiting[1:]
		c.window -= len(c.answer.body)
		b := frame(nil, http2.FrameHeaders, http2.FlagHeadersEndHeaders, id, c.answer.head)
		if c.answer.trailers == nil {
			b = frame(b, http2.FrameData, http2.FlagDataEndStream, id, c.answer.body)
		} else {
			b = frame(b, http2.FrameData, 0, id, c.answer.body)
			b = frame(b, http2.FrameHeaders, http2.FlagHeadersEndHeaders|http2.FlagHeadersEndStream, id, c.answer.trailers)
		}
		c.t.Write(b)
	}
}

func (c *h2Server) OnEOF()         { c.t.Close() }
func (c *h2Server) OnDrained()     {}
func (c *h2Server) OnClosed(error) {}
