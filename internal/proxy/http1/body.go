package http1

import (
	"bytes"

	"lateen.dev/lateen/internal/proxy/syntax"
)

// bodyKind is how a message body is delimited.
type bodyKind uint8

const (
	bodyNone bodyKind = iota
	bodyLength
	bodyChunked
	// bodyClose: until the connection ends.
	bodyClose
	// bodyRaw: not HTTP any more, after 101 or CONNECT.
	bodyRaw
)

const (
	// maxChunkLine bounds one chunk-size line with its extensions.
	maxChunkLine = 4 << 10
	// freeExtension is how many bytes of chunk extensions a body may have for
	// nothing; beyond it they must stay below 16 times the data.
	freeExtension = 16 << 10
)

type chunkState uint8

const (
	chunkSize chunkState = iota
	chunkData
	chunkCRLF
	chunkTrailers
	chunkDone
)

// body reads one message body out of the input.
type body struct {
	kind      bodyKind
	state     chunkState
	remain    int64 // bytes left of the body or of the chunk
	extension int64
	total     int64
}

func (b *body) start(kind bodyKind, length int64) {
	*b = body{kind: kind, remain: length}
}

// next takes the next piece out of p: n bytes are consumed, data is what of
// them is body, done says that the body is complete. trailers is the whole
// trailer section when there is one. n is 0 when p is too short to go on.
func (b *body) next(p []byte, lim *Limits) (n int, data, trailers []byte, done bool, err *Error) {
	switch b.kind {
	case bodyLength:
		n = int(min(int64(len(p)), b.remain))
		b.remain -= int64(n)
		b.total += int64(n)
		return n, p[:n], nil, b.remain == 0, nil
	case bodyChunked:
		return b.nextChunked(p, lim)
	}
	b.total += int64(len(p))
	return len(p), p, nil, false, nil
}

func (b *body) nextChunked(p []byte, lim *Limits) (n int, data, trailers []byte, done bool, err *Error) {
	for len(p) > n {
		switch b.state {
		case chunkSize:
			used, err := b.sizeLine(p[n:])
			if err != nil || used == 0 {
				return n, nil, nil, false, err
			}
			n += used
		case chunkData:
			use := int(min(int64(len(p)-n), b.remain))
			data = p[n : n+use]
			n += use
			b.total += int64(use)
			if b.remain -= int64(use); b.remain == 0 {
				b.state = chunkCRLF
			}
			return n, data, nil, false, nil
		case chunkCRLF:
			if p[n] != '\r' || len(p)-n > 1 && p[n+1] != '\n' {
				return n, nil, nil, false, errChunkEnd
			}
			if len(p)-n < 2 {
				return n, nil, nil, false, nil
			}
			n += 2
			b.state = chunkSize
		case chunkTrailers:
			end, _, err := headEnd(p[n:], 0)
			if err == nil && (end > lim.HeadBytes || end == 0 && len(p)-n > lim.HeadBytes) {
				err = errHeadLong
			}
			if err != nil || end == 0 {
				return n, nil, nil, false, err
			}
			if end > 2 {
				trailers = p[n : n+end]
			}
			b.state = chunkDone
			return n + end, nil, trailers, true, nil
		default:
			return n, nil, nil, true, nil
		}
	}
	return n, nil, nil, false, nil
}

// sizeLine reads "1*HEXDIG [ ; extensions ] CRLF" and returns its length, 0 if
// it is incomplete.
func (b *body) sizeLine(p []byte) (int, *Error) {
	i := bytes.IndexByte(p, '\n')
	line := p
	if i >= 0 {
		if i == 0 || p[i-1] != '\r' {
			return 0, errBareLF
		}
		line = p[:i-1]
	} else if len(line) > 0 && line[len(line)-1] == '\r' {
		line = line[:len(line)-1]
	}
	if len(line) > maxChunkLine {
		return 0, errChunkExtension
	}
	var size int64
	digits := 0
	for digits < len(line) {
		v := unhex(line[digits])
		if v < 0 {
			break
		}
		// 15 digits fill 60 bits; leading zeros count too.
		if digits++; digits > 15 {
			return 0, errChunkSize
		}
		size = size<<4 | int64(v)
	}
	ext := line[digits:]
	if len(ext) > 0 && (digits == 0 || ext[0] != ';' || !syntax.CleanValue(ext)) {
		return 0, errChunkSize
	}
	if i < 0 {
		return 0, nil
	}
	if digits == 0 {
		return 0, errChunkSize
	}
	b.extension += int64(len(ext))
	if b.extension > freeExtension+16*b.total {
		return 0, errChunkExtension
	}
	b.remain = size
	b.state = chunkData
	if size == 0 {
		b.state = chunkTrailers
	}
	return i + 1, nil
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// requestBody says how the body of a request is delimited.
func requestBody(m *meta) (bodyKind, int64) {
	switch {
	case m.te:
		return bodyChunked, 0
	case m.length > 0:
		return bodyLength, m.length
	}
	return bodyNone, 0
}

// responseBody says how the body of a final response is delimited, given the
// method of its request (RFC 9112 §6.3).
func responseBody(m *meta, status int, head bool) (bodyKind, int64) {
	switch {
	case head || status == 204 || status == 304 || status < 200:
		return bodyNone, 0
	case m.te:
		return bodyChunked, 0
	case m.length > 0:
		return bodyLength, m.length
	case m.length == 0:
		return bodyNone, 0
	}
	return bodyClose, 0
}
