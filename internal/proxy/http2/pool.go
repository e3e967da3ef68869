// Package http2 is the HTTP/2 codec of the proxy (RFC 9113, RFC 8441): it turns
// the bytes of a message.Transport into message events and message events into
// bytes, on the server side (downstream) and the client side (upstream). Many
// exchanges share a connection; each has a flow-control window of its own.
//
// It is as strict as http1, with the same grammar (package syntax) and the same
// canonical form of host, path and fields: what one codec refuses, the other
// does not let through. Everything a peer can make us keep or do is bounded;
// a peer that goes beyond is told ENHANCE_YOUR_CALM and counted in Stats.
//
// An upgrade looks to the request path as in HTTP/1.1: extended CONNECT becomes
// a GET with an upgrade field and its 2xx becomes 101, and the other way round.
//
// Read server.go and client.go first, then conn.go for what comes in and
// send.go for what goes out; headers.go has the rules about header sections and
// guard.go the bounds. Frames are appended to the transport's output, which the
// loop writes once per batch. Everything runs on the loop of the transport. The
// codec does not route, retry, log, or add date, server or tracing fields: that
// is the request path's. It neither uses nor offers server push or priorities.
package http2

import (
	"sync/atomic"
	"time"

	"lateen.dev/lateen/internal/proxy/http2/hpack"
	"lateen.dev/lateen/internal/proxy/loop"
	"lateen.dev/lateen/internal/proxy/message"
)

// Timers is the clock of the loop that owns a connection; *loop.Loop is one.
type Timers interface {
	// Now is monotonic, in nanoseconds.
	Now() int64
	Arm(t *loop.Timer, d time.Duration)
	Disarm(t *loop.Timer)
}

// Limits bounds what a peer may send; zero fields mean the defaults.
type Limits struct {
	// HeadBytes bounds a header list, counted as SETTINGS_MAX_HEADER_LIST_SIZE
	// is; 60 KiB by default (Envoy: max_request_headers_kb).
	HeadBytes int
	// Headers bounds the number of header fields; 100 by default, as in Envoy.
	Headers int
	// PathBytes bounds :path; 8 KiB by default.
	PathBytes int
}

func (l *Limits) setDefaults() {
	if l.HeadBytes == 0 {
		l.HeadBytes = 60 << 10
	}
	if l.Headers == 0 {
		l.Headers = 100
	}
	if l.PathBytes == 0 {
		l.PathBytes = 8 << 10
	}
}

// KeepAlive pings a silent or dead peer; the zero value does not.
type KeepAlive struct {
	// Interval is the time between pings, Timeout the wait for the answer, 20 s
	// by default, after which the connection is closed.
	Interval, Timeout time.Duration
}

// Stats counts what happens to the connections of one loop; any goroutine may
// read it. The names are those of Envoy's http2 statistics where it has one.
type Stats struct {
	// RxReset and TxReset are RST_STREAM frames.
	RxReset, TxReset atomic.Uint64
	GoAwayReceived   atomic.Uint64
	GoAwaySent       atomic.Uint64
	// RxMessagingError: messages that broke the rules of RFC 9113 §8.
	RxMessagingError atomic.Uint64
	// ProtocolError: connections that ended because the peer broke the protocol.
	ProtocolError atomic.Uint64
	// HeaderOverflow: header lists over Limits.HeadBytes; TooManyHeaders over Limits.Headers.
	HeaderOverflow, TooManyHeaders atomic.Uint64
	// RefusedStreams: requests over MaxStreams.
	RefusedStreams atomic.Uint64
	// RapidReset: connections ended because too many of their streams were reset.
	RapidReset                     atomic.Uint64
	InboundEmptyFramesFlood        atomic.Uint64
	InboundPriorityFramesFlood     atomic.Uint64
	InboundWindowUpdateFramesFlood atomic.Uint64
	InboundControlFramesFlood      atomic.Uint64
	InboundContinuationFramesFlood atomic.Uint64
	OutboundControlFlood           atomic.Uint64
	KeepAliveTimeout               atomic.Uint64
	SettingsTimeout                atomic.Uint64
	// TxFlushTimeout: streams whose end the peer's window did not let through in time.
	TxFlushTimeout atomic.Uint64
}

// Each calls yield for every counter, by the name it has in Envoy's http2
// statistics, or would have.
func (s *Stats) Each(yield func(name string, value uint64)) {
	for _, c := range [...]struct {
		name string
		v    *atomic.Uint64
	}{
		{"rx_reset", &s.RxReset},
		{"tx_reset", &s.TxReset},
		{"goaway_received", &s.GoAwayReceived},
		{"goaway_sent", &s.GoAwaySent},
		{"rx_messaging_error", &s.RxMessagingError},
		{"protocol_error", &s.ProtocolError},
		{"header_overflow", &s.HeaderOverflow},
		{"too_many_headers", &s.TooManyHeaders},
		{"stream_refused_errors", &s.RefusedStreams},
		{"rapid_reset", &s.RapidReset},
		{"inbound_empty_frames_flood", &s.InboundEmptyFramesFlood},
		{"inbound_priority_frames_flood", &s.InboundPriorityFramesFlood},
		{"inbound_window_update_frames_flood", &s.InboundWindowUpdateFramesFlood},
		{"inbound_control_frames_flood", &s.InboundControlFramesFlood},
		{"inbound_continuation_frames_flood", &s.InboundContinuationFramesFlood},
		{"outbound_control_flood", &s.OutboundControlFlood},
		{"keepalive_timeout", &s.KeepAliveTimeout},
		{"settings_timeout", &s.SettingsTimeout},
		{"tx_flush_timeout", &s.TxFlushTimeout},
	} {
		yield(c.name, c.v.Load())
	}
}

// heads is what an exchange borrows while it lasts.
type heads struct {
	head, extra message.Head
}

// chunkSize is one piece of data that waits for the peer's window, and the
// largest DATA frame.
const chunkSize = 16 << 10

type chunk struct {
	next     *chunk
	off, end int
	buf      [chunkSize]byte
}

// Pool lends memory to the connections of one loop, so that an idle connection
// owns little. Not safe for concurrent use, Stats apart.
type Pool struct {
	stats        Stats
	heads        []*heads
	limboHeads   []*heads
	streams      []*stream
	limboStreams []*stream
	chunks       *chunk
	chunkCount   int
	later        func(func())
	recycleFunc  func()
	waiting      bool
	scratch      []byte
	hpack        hpack.Scratch
	section      section
}

// NewPool makes the pool of one loop. later is (*loop.Loop).Later: heads and
// streams are lent anew only after the round in which their exchange ended,
// because the request path still reads them to write its record. A nil later
// leaves them to the garbage collector.
func NewPool(later func(func())) *Pool {
	p := &Pool{later: later}
	p.recycleFunc = p.recycle
	return p
}

// Stats returns the counters of the connections that have none of their own.
func (p *Pool) Stats() *Stats { return &p.stats }

// What a pool holds for reuse at most: 1 MiB of data chunks, and heads and
// streams for the exchanges of a busy loop.
const (
	keepHeads     = 512
	keepHeadBytes = 16 << 10
	keepStreams   = 512
	keepChunks    = 64
)

func (p *Pool) getHeads() *heads {
	if n := len(p.heads); n > 0 {
		h := p.heads[n-1]
		p.heads = p.heads[:n-1]
		return h
	}
	return &heads{}
}

func (p *Pool) putHeads(h *heads) {
	if h == nil || p.later == nil || len(p.limboHeads)+len(p.heads) >= keepHeads ||
		h.head.Size() > keepHeadBytes || h.extra.Size() > keepHeadBytes {
		return
	}
	p.limboHeads = append(p.limboHeads, h)
	p.wait()
}

func (p *Pool) getStream() *stream {
	if n := len(p.streams); n > 0 {
		s := p.streams[n-1]
		p.streams = p.streams[:n-1]
		*s = stream{}
		return s
	}
	return &stream{}
}

func (p *Pool) putStream(s *stream) {
	if p.later == nil || len(p.limboStreams)+len(p.streams) >= keepStreams {
		return
	}
	p.limboStreams = append(p.limboStreams, s)
	p.wait()
}

func (p *Pool) wait() {
	if !p.waiting {
		p.waiting = true
		p.later(p.recycleFunc)
	}
}

func (p *Pool) recycle() {
	p.waiting = false
	p.heads = append(p.heads, p.limboHeads...)
	clear(p.limboHeads)
	p.limboHeads = p.limboHeads[:0]
	p.streams = append(p.streams, p.limboStreams...)
	clear(p.limboStreams)
	p.limboStreams = p.limboStreams[:0]
}

func (p *Pool) getChunk() *chunk {
	c := p.chunks
	if c == nil {
		return new(chunk)
	}
	p.chunks = c.next
	p.chunkCount--
	c.next, c.off, c.end = nil, 0, 0
	return c
}

func (p *Pool) putChunk(c *chunk) {
	if p.chunkCount < keepChunks {
		c.next = p.chunks
		p.chunks = c
		p.chunkCount++
	}
}
