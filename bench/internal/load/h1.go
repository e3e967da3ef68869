//go:build linux

package load

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"lateen.dev/lateen/internal/proxy/loop"
	"lateen.dev/lateen/internal/proxy/message"
)

// Request is about 400 bytes with realistic headers, the same for everyone.
func Request(host, path string) []byte {
	return []byte("GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) bench\r\n" +
		"Accept: application/json, text/plain, */*\r\nAccept-Language: en-US,en;q=0.9\r\nAccept-Encoding: gzip, deflate\r\n" +
		"Cookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\nCache-Control: no-cache\r\n\r\n")
}

// Path is the path of small requests.
const Path = "/api/items/12345?page=2"

// Counts are what a generator saw since it was last reset.
type Counts struct {
	Requests, Errors int
	First            string  // the first error
	Nanos            []int64 // of each answer, unsorted
}

func (c *Counts) fail(why string) {
	c.Errors++
	if c.First == "" {
		c.First = why
	}
}

func (c *Counts) answered(nanos int64) {
	c.Requests++
	if len(c.Nanos) < cap(c.Nanos) {
		c.Nanos = append(c.Nanos, nanos)
	}
}

// Generator asks until it is stopped. Its methods are called on its loop.
type Generator interface {
	// Reset forgets what was counted.
	Reset()
	// Counts returns what was counted since; it stays valid.
	Counts() Counts
	// Stop ends all connections.
	Stop()
}

// protocol is what one connection speaks: how to ask, and where answers end.
type protocol interface {
	ask() []byte
	// answers consumes input and returns how much; it calls done at the end of
	// each answer.
	answers(p []byte, c *client) int
}

// Closed is a generator whose connections ask again as soon as they are
// answered.
type Closed struct {
	counts  Counts
	clients []*client
	stopped bool
	// due are the arrivals that wait for a connection, of an open loop.
	open *openLoop
}

// client is one connection.
type client struct {
	g     *Closed
	proto protocol
	t     *loop.Conn
	sent  int64
	need  int // body bytes still to come; -1 while the head is incomplete
	busy  bool
	alive bool
}

// maxSamples bounds the latencies that are kept of one slice.
const maxSamples = 1 << 18

// newClosed takes over connected descriptors; loop only.
func newClosed(l *loop.Loop, fds []int, proto protocol) (*Closed, error) {
	g := &Closed{counts: Counts{Nanos: make([]int64, 0, maxSamples)}}
	for _, fd := range fds {
		conn, err := l.Adopt(fd, message.Conn{})
		if err != nil {
			return g, err
		}
		c := &client{g: g, proto: proto, need: -1, t: conn, alive: true}
		g.clients = append(g.clients, c)
		conn.SetHandler(c)
	}
	return g, nil
}

func (g *Closed) start() {
	for _, c := range g.clients {
		c.send(time.Now().UnixNano())
	}
}

// NewHTTP asks for path by HTTP/1.1 on each of the connections; loop only.
func NewHTTP(l *loop.Loop, fds []int, host, path string) (*Closed, error) {
	g, err := newClosed(l, fds, &http1{request: Request(host, path)})
	if err == nil {
		g.start()
	}
	return g, err
}

// NewBlocks sends a KiB and expects answer bytes back, again and again; loop
// only.
func NewBlocks(l *loop.Loop, fds []int, answer int) (*Closed, error) {
	g, err := newClosed(l, fds, &blocks{request: bytes.Repeat([]byte("q"), SmallBody), answer: answer})
	if err == nil {
		g.start()
	}
	return g, err
}

// Reset implements Generator.
func (g *Closed) Reset() {
	g.counts = Counts{Nanos: make([]int64, 0, maxSamples)}
}

// Counts implements Generator.
func (g *Closed) Counts() Counts { return g.counts }

// Stop implements Generator.
func (g *Closed) Stop() {
	g.stopped = true
	if g.open != nil {
		close(g.open.end)
	}
	for _, c := range g.clients {
		if c.alive {
			c.t.Abort()
		}
	}
}

func (c *client) send(arrived int64) {
	c.sent, c.busy = arrived, true
	c.t.Write(c.proto.ask())
}

func (c *client) OnBytes(p []byte) int { return c.proto.answers(p, c) }

// done is called when an answer is complete.
func (c *client) done() {
	c.need, c.busy = -1, false
	c.g.counts.answered(time.Now().UnixNano() - c.sent)
	if c.g.stopped || !c.alive {
		return
	}
	if c.g.open == nil {
		c.send(time.Now().UnixNano())
	} else if due := c.g.open.next(); due != 0 {
		c.send(due)
	}
}

func (c *client) OnEOF()           { c.lost(errors.New("the proxy closed the connection")) }
func (c *client) OnDrained()       {}
func (c *client) OnClosed(e error) { c.lost(e) }

func (c *client) lost(why error) {
	if c.alive && !c.g.stopped {
		c.g.counts.fail(fmt.Sprint("connection lost: ", why))
	}
	c.alive = false
}

// http1 speaks HTTP/1.1.
type http1 struct{ request []byte }

func (h *http1) ask() []byte { return h.request }

func (h *http1) answers(p []byte, c *client) int {
	used := 0
	for used < len(p) {
		if c.need < 0 {
			i := bytes.Index(p[used:], []byte("\r\n\r\n"))
			if i < 0 {
				return used
			}
			n, why := bodyLength(p[used : used+i])
			if why != "" {
				c.g.counts.fail(why)
			}
			c.need = n
			used += i + 4
		}
		n := min(c.need, len(p)-used)
		used += n
		c.need -= n
		if c.need > 0 {
			return used
		}
		c.done()
	}
	return used
}

// bodyLength checks the status and reads Content-Length of a head. why is not
// empty when the answer is not as it should be.
func bodyLength(head []byte) (n int, why string) {
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 200")) {
		line, _, _ := bytes.Cut(head, []byte("\r\n"))
		why = "answered with " + string(line)
	}
	_, rest, ok := bytes.Cut(bytes.ToLower(head), []byte("content-length:"))
	if !ok {
		return 0, why + " without a length"
	}
	value, _, _ := bytes.Cut(rest, []byte("\r\n"))
	n, err := strconv.Atoi(string(bytes.TrimSpace(value)))
	if err != nil {
		return 0, err.Error()
	}
	return n, why
}

// blocks speaks nothing: so many bytes for so many.
type blocks struct {
	request []byte
	answer  int
}

func (b *blocks) ask() []byte { return b.request }

func (b *blocks) answers(p []byte, c *client) int {
	used := 0
	for used < len(p) {
		if c.need < 0 {
			c.need = b.answer
		}
		n := min(c.need, len(p)-used)
		used += n
		c.need -= n
		if c.need == 0 {
			c.done()
		}
	}
	return used
}

// Percentile of nanoseconds, in microseconds. It sorts v.
func Percentile(v []int64, p float64) float64 {
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return float64(v[min(len(v)-1, int(p*float64(len(v))))]) / 1e3
}

// Mean of nanoseconds, in microseconds.
func Mean(v []int64) float64 {
	if len(v) == 0 {
		return 0
	}
	var sum int64
	for _, n := range v {
		sum += n
	}
	return float64(sum) / float64(len(v)) / 1e3
}
