package http1

import (
	"bytes"
	"net/http"
	"strconv"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/syntax"
)

// framing is what a codec adds to a head it sends.
type framing struct {
	kind   bodyKind
	length int64
	// declare makes the writer add the content-length; otherwise one is already
	// among the fields, or there is none.
	declare   bool
	dropCL    bool
	close     bool
	keepAlive bool // say so, for an HTTP/1.0 peer
	upgrade   bool
}

// reasons are the ready-made status lines of the codes that have a name.
var statusLines = func() (t [600]string) {
	for code := 100; code < 600; code++ {
		t[code] = "HTTP/1.1 " + strconv.Itoa(code) + " " + http.StatusText(code) + "\r\n"
	}
	return t
}()

func appendStatusLine(b []byte, code int) []byte {
	if code < 100 || code > 599 {
		code = 500
	}
	return append(b, statusLines[code]...)
}

func appendRequestLine(b []byte, h *message.Head) []byte {
	b = append(b, h.Method()...)
	b = append(b, ' ')
	if string(h.Method()) == "CONNECT" {
		b = append(b, h.Authority()...)
	} else {
		b = append(b, h.Path()...)
	}
	b = append(b, " HTTP/1.1\r\nhost: "...)
	b = append(b, h.Authority()...)
	return append(b, "\r\n"...)
}

// appendFields writes the fields and the framing and ends the head; lines is
// how many lines that made. Fields that belong to the connection are the
// codec's own business and are skipped.
func appendFields(b []byte, h *message.Head, f framing) (block []byte, lines int) {
	for i := range h.Len() {
		id, name, value, ok := h.Field(i)
		if !ok {
			continue
		}
		switch id {
		case message.Host, message.Connection, message.KeepAlive, message.ProxyConnection, message.TransferEncoding:
			continue
		case message.ContentLength:
			if f.dropCL {
				continue
			}
		case message.Upgrade:
			if !f.upgrade {
				continue
			}
		}
		b = appendField(b, name, value)
		lines++
	}
	if f.declare {
		lines++
		b = append(b, "content-length: "...)
		b = strconv.AppendInt(b, f.length, 10)
		b = append(b, "\r\n"...)
	}
	if f.kind == bodyChunked {
		lines++
		b = append(b, "transfer-encoding: chunked\r\n"...)
	}
	switch {
	case f.upgrade:
		lines++
		b = append(b, "connection: upgrade\r\n"...)
	case f.close:
		lines++
		b = append(b, "connection: close\r\n"...)
	case f.keepAlive:
		lines++
		b = append(b, "connection: keep-alive\r\n"...)
	}
	return append(b, "\r\n"...), lines + 1
}

func appendField(b, name, value []byte) []byte {
	b = append(b, name...)
	b = append(b, ": "...)
	b = append(b, value...)
	return append(b, "\r\n"...)
}

// wellFormed is the last check before a head leaves: no value that a filter, a
// certificate or a configuration brought in may contain a line break or NUL.
// Every line break in block is then the end of one of its lines: counting costs
// a tenth of looking at each value (BenchmarkWellFormed).
func wellFormed(block []byte, lines int) bool {
	return bytes.Count(block, []byte{'\n'}) == lines && bytes.Count(block, []byte{'\r'}) == lines &&
		bytes.IndexByte(block, 0) < 0
}

const hexDigits = "0123456789abcdef"

// appendChunkSize writes "<hex>\r\n".
func appendChunkSize(b []byte, n int) []byte {
	started := false
	for shift := 60; shift >= 0; shift -= 4 {
		d := n >> shift & 15
		if started = started || d != 0; started {
			b = append(b, hexDigits[d])
		}
	}
	return append(b, "\r\n"...)
}

// contentLength reads the content-length field of a head that is to be sent.
// present is false when there is none; bad ones count as -1.
func contentLength(h *message.Head) (n int64, present bool) {
	v := h.Get(message.ContentLength)
	if v == nil {
		return 0, false
	}
	n, ok := syntax.Decimal(v)
	if !ok {
		return -1, true
	}
	return n, true
}
