package http2

import "slices"

// What a peer may make us do. Counters run against what useful work allows, as
// in Envoy, and start anew every guardWindow, so that a quiet connection that
// lives for months is never mistaken for an attack.
const (
	guardWindow = 60e9 // ns
	// resetBudget is how many more streams may be reset within a second than
	// come to their end (CVE-2023-44487, CVE-2025-8671), or resetPerStream for
	// each that may be open: on a trunk between mesh peers all of them may be
	// given up at once for good reason.
	resetBudget    = 200
	resetPerStream = 2
	resetWindow    = 1e9
	// maxEmpty bounds DATA frames without payload and without END_STREAM in a row.
	maxEmpty = 16
	// PRIORITY frames per stream; WINDOW_UPDATE frames, beside a start of
	// controlBudget, per stream and per DATA frame that we sent.
	priorityPerStream = 100
	updatesPerStream  = 2
	updatesPerData    = 20
	// controlBudget bounds SETTINGS, PING and unknown frames: this many, and
	// controlPerFrame for each stream and DATA frame.
	controlBudget   = 2000
	controlPerFrame = 10
	// settingsBudget bounds SETTINGS frames, maxSettings the entries of one.
	settingsBudget = 64
	maxSettings    = 32
	// maxOutstanding bounds the answers (PING, SETTINGS, RST_STREAM) that have not
	// left because the peer does not read.
	maxOutstanding = 1000
	// maxContinuations bounds the pieces of a header block behind the first.
	maxContinuations = 8
	// maxHeadInfos bounds the 1xx responses before a final one.
	maxHeadInfos = 16
	// rememberResets is how many streams we reset are remembered, to tell frames
	// that crossed our RST_STREAM from frames that break the protocol.
	rememberResets = 64
)

// guard counts what could be abuse.
type guard struct {
	since       int64
	priorities  uint32
	updates     uint32
	controls    uint32
	settings    uint32
	opened      uint32 // streams of the peer
	completed   uint32 // streams that came to their proper end
	dataIn      uint32
	dataOut     uint32
	empty       uint32 // in a row
	outstanding uint32

	resets     uint32
	completedR uint32 // completed, when resets were counted last
	resetSince int64

	resetIDs []uint32
	resetAt  uint32
}

// renew starts the counters anew after guardWindow; it says whether it did.
func (g *guard) renew(c *conn) bool {
	if c.timers == nil || c.timers.Now()-g.since < guardWindow {
		return false
	}
	g.since = c.timers.Now()
	g.priorities, g.updates, g.controls, g.settings = 0, 0, 0, 0
	g.opened, g.dataIn, g.dataOut = 0, 0, 0
	return true
}

func (g *guard) data(empty bool) *Error {
	g.dataIn++
	if !empty {
		g.empty = 0
		return nil
	}
	if g.empty++; g.empty > maxEmpty {
		return errEmptyFlood
	}
	return nil
}

func (g *guard) priority(c *conn) *Error {
	if g.priorities++; g.priorities > priorityPerStream*(1+g.opened) && !g.renew(c) {
		return errPriorityFlood
	}
	return nil
}

func (g *guard) windowUpdate(c *conn) *Error {
	streams := g.opened
	if c.cli != nil {
		streams = c.cli.opened()
	}
	if g.updates++; g.updates > controlBudget+updatesPerStream*(streams+updatesPerData*g.dataOut) && !g.renew(c) {
		return errWindowFlood
	}
	return nil
}

// controlFrame counts a frame that carries nothing for an exchange; it returns
// false after it ended the connection.
func (c *conn) controlFrame() bool {
	g := &c.guard
	streams := g.opened
	if c.cli != nil {
		streams = c.cli.opened()
	}
	if g.controls++; g.controls > controlBudget+controlPerFrame*(streams+g.dataIn+g.dataOut) && !g.renew(c) {
		c.fail(errControlFlood)
		return false
	}
	return true
}

// writeControl sends an answer the peer asked for. A peer that asks without
// reading the answers is cut off.
func (c *conn) writeControl(b []byte) {
	if c.state == connClosed {
		return
	}
	g := &c.guard
	if c.t.Buffered() == 0 {
		g.outstanding = 0
	}
	if g.outstanding++; g.outstanding > maxOutstanding {
		c.fail(errOutboundFlood)
		c.t.Abort()
		return
	}
	c.t.Write(b)
}

// abuse counts a stream that the client made end before its time, by its own
// RST_STREAM or by an error that made us reset it.
func (c *conn) abuse() {
	g := &c.guard
	done := g.completed - g.completedR
	g.completedR = g.completed
	if c.timers != nil {
		if now := c.timers.Now(); now-g.resetSince >= resetWindow {
			g.resetSince, g.resets = now, 0
		}
	}
	if g.resets = g.resets - min(g.resets, done) + 1; g.resets > max(resetBudget, resetPerStream*c.srv.o.MaxStreams) {
		c.fail(errRapidReset)
	}
}

// remember notes that we reset a stream, or that the peer did if mark is peerReset.
func (g *guard) remember(id, mark uint32) {
	id ^= mark
	if len(g.resetIDs) < rememberResets {
		g.resetIDs = append(g.resetIDs, id)
		return
	}
	g.resetIDs[g.resetAt%rememberResets] = id
	g.resetAt++
}

// Marks of remembered streams; every identifier that occurs is odd.
const (
	ownReset  = 0
	peerReset = 1
)

// lateFrame says what a frame on a closed stream is: one that crossed our
// RST_STREAM and means nothing (nil, false), a breach on a stream that the peer
// reset, or that nobody remembers (nil, true), or one after END_STREAM (an
// error of the connection).
func (g *guard) lateFrame(id uint32) (err *Error, breach bool) {
	switch {
	case slices.Contains(g.resetIDs, id^ownReset):
		return nil, false
	case g.resetAt > 0 || slices.Contains(g.resetIDs, id^peerReset):
		return nil, true
	}
	return errClosed, true
}
