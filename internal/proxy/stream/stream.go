// Package stream is the request path: it joins one downstream exchange with its
// upstream attempts. Read request.go first; it is the list of verbs
//
//	accept → head → route → request filters → pick → connect → forward →
//	response filters → reply → record
//
// An Exchange is driven by plain events: message.Receiver calls from the codecs
// on both sides, timers of a clock.Clock and answers of an Upstream. It knows no
// socket and no codec, so simulation and tests run the very same code.
//
// Each exchange reads one snapshot, from its first byte to its record, and
// hands one record.Record to the Recorder when it is over, whatever happened.
// Everything belongs to one loop; nothing here is safe for concurrent use. A
// steady request allocates nothing: exchanges are reused.
package stream

import (
	"math/rand/v2"
	"net/netip"
	"time"

	"lateen.dev/lateen/internal/proxy/clock"
	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/record"
	"lateen.dev/lateen/internal/proxy/snapshot"
	"lateen.dev/lateen/internal/proxy/upstream"
)

// Upstream gives exchanges with clusters; upstream.Manager does it with pools,
// tests and simulation with fakes. See upstream.Manager for what each promises.
type Upstream interface {
	Open(r *upstream.Request)
	Cancel(r *upstream.Request)
	Finish(r *upstream.Request, o upstream.Outcome)
	RetryStart(c *snapshot.Cluster) bool
	RetryDone(c *snapshot.Cluster)
	Completed(r *upstream.Request, s upstream.Summary)
}

// Recorder takes the record of an exchange; it may keep nothing of it.
type Recorder interface {
	Done(r *record.Record)
}

// Env is what all exchanges of one loop share.
type Env struct {
	Clock    clock.Clock
	Rand     *rand.Rand
	Upstream Upstream
	Recorder Recorder
	// ReplayBytes bounds the request body kept for retries and while waiting
	// for a connection; 0 means 64 KiB.
	ReplayBytes int
	// Format is what the operators in configured headers (%PROTOCOL%) may know
	// about this proxy.
	Format *record.Env
	// Peers translates the peer metadata headers of Istio; nil ignores them.
	Peers PeerMetadata

	free    []*Exchange
	formats map[string]*record.Format
	scratch snapshot.Scratch
	buf     []byte
	date    dateCache
	active  int
}

// PeerMetadata reads and writes the workload description that mesh proxies tell
// each other in x-envoy-peer-metadata.
type PeerMetadata interface {
	// Own returns the values to send: id and metadata, "" to send nothing.
	Own() (id, metadata string)
	// Read decodes what a peer sent; ok is false if it cannot be read.
	Read(id, metadata []byte) (w snapshot.Workload, ok bool)
}

// Site is where an exchange arrives: the parts of a snapshot that its
// connection was matched to. A connection keeps one Site and replaces it when
// a new snapshot is in force.
type Site struct {
	Snapshot *snapshot.Snapshot
	Listener *snapshot.Listener
	Manager  *snapshot.HTTPManager
	// Gateway marks a router; its spans and labels differ.
	Gateway bool
	// xfcc is this connection's element of x-forwarded-client-cert, built once.
	xfcc     string
	xfccDone bool
}

// defaultReplay is the request body kept for a retry.
const defaultReplay = 64 << 10

// freeExchanges bounds the exchanges kept for reuse by a loop, and keepBody the
// replay buffer that one may keep: together at most 4 MiB.
const (
	freeExchanges = 256
	keepBody      = 16 << 10
)

// Active is the number of exchanges that are not recorded yet.
func (e *Env) Active() int { return e.active }

// New begins an exchange whose responses go to down. The events of the request
// are to be delivered to the result.
func (e *Env) New(site *Site, down message.Sender) *Exchange {
	var x *Exchange
	if n := len(e.free); n > 0 {
		x = e.free[n-1]
		e.free = e.free[:n-1]
	} else {
		x = &Exchange{env: e}
		x.first.x = x
	}
	e.active++
	x.site, x.down = site, down
	x.startAt = e.Clock.Now()
	x.lastActive = x.startAt
	x.rec.Start = e.Clock.Wall()
	x.rec.Conn = down.Conn()
	x.rec.Listener = site.Listener
	x.rec.Manager = site.Manager
	x.rec.Gateway = site.Gateway
	if site.Listener != nil {
		x.rec.Direction = site.Listener.Direction
	}
	return x
}

// Exchange is one request and its response. It implements message.Receiver for
// the downstream side.
type Exchange struct {
	env  *Env
	site *Site
	down message.Sender
	rec  record.Record

	head        *message.Head // the request head, owned by the downstream codec
	reqTrailers message.Head
	hasTrailers bool
	// body is what a retry would replay, or what waits for a connection;
	// bodyLost means that part of it is gone and no attempt can follow.
	body     []byte
	bodyLost bool

	startAt, lastActive int64
	requestAt           int64 // when the request was complete
	// facts of the request
	remote  netip.Addr // the client as trusted hops tell it
	upgrade bool
	grpc    bool
	// sentFrames and gotFrames follow gRPC messages in the two bodies.
	sentFrames, gotFrames frames
	edge                  bool
	hash                  uint64
	hashed                bool
	cookie                []byte // set-cookie of consistent hashing, nil for none
	corsFor               *snapshot.CORS
	origin                []byte // the Origin that corsFor allows
	filterAt              int
	weighted              *snapshot.WeightedCluster
	timeout               time.Duration
	capped                bool // timeout came from grpc-timeout: max stream duration
	perTry                time.Duration
	retry                 *snapshot.RetryPolicy
	left                  uint32 // retries left
	// retrying holds a unit of the cluster's retry limit.
	retrying   bool
	staleRetry bool
	tried      []netip.AddrPort
	mirrors    []*shadow
	respHead   message.Head // local replies are built here
	first      attempt
	cur        *attempt
	deadline   clock.Timer
	wait       clock.Timer // fault delay or retry back-off
	idle       clock.Timer
	idleFor    time.Duration
	waitingFor waitReason
	forwarding bool // filters are through, the route's timeout counts
	reqEnded   bool
	responded  bool
	paused     bool // downstream input is paused
	done       bool
	live       int // attempts whose upstream exchange is not over
	untrusted  bool
}

type waitReason uint8

const (
	waitNothing waitReason = iota
	waitFault
	waitBackoff
)

// OnData implements message.Receiver.
func (x *Exchange) OnData(p []byte, end bool) {
	if x.done {
		if end {
			x.reqEnded = true
			x.recycle()
		}
		return
	}
	x.rec.BytesReceived += uint64(len(p))
	if x.grpc {
		x.rec.RequestMessages += x.sentFrames.count(p)
	}
	x.lastActive = x.env.Clock.Now()
	for _, s := range x.mirrors {
		s.data(p, end)
	}
	if end {
		x.requestComplete()
	}
	a := x.cur
	if a == nil || !a.open {
		x.hold(p)
		return
	}
	x.keep(p)
	a.sendData(p, end)
}

// hold keeps body bytes that cannot be sent yet. Beyond the budget the client
// has to wait: nothing is queued without bound.
func (x *Exchange) hold(p []byte) {
	x.body = append(x.body, p...)
	if len(x.body) > x.env.replayBytes() && !x.paused {
		x.paused = true
		x.down.Pause(true)
	}
}

// keep remembers body bytes that are sent now, for a replay.
func (x *Exchange) keep(p []byte) {
	if x.bodyLost || x.responded {
		return
	}
	if len(x.body)+len(p) > x.env.replayBytes() {
		x.bodyLost = true
		x.body = x.body[:0]
		return
	}
	x.body = append(x.body, p...)
}

func (e *Env) replayBytes() int {
	if e.ReplayBytes > 0 {
		return e.ReplayBytes
	}
	return defaultReplay
}

// OnTrailers implements message.Receiver.
func (x *Exchange) OnTrailers(h *message.Head) {
	if x.done {
		x.reqEnded = true
		x.recycle()
		return
	}
	x.reqTrailers.CopyFrom(h)
	x.hasTrailers = true
	x.requestComplete()
	for _, s := range x.mirrors {
		s.data(nil, true)
	}
	if a := x.cur; a != nil && a.open {
		a.sentEnd = true
		a.s.SendTrailers(h)
		a.settle()
	}
}

// requestComplete notes the end of the request; timeouts run from here.
func (x *Exchange) requestComplete() {
	x.reqEnded = true
	x.requestAt = x.env.Clock.Now()
	x.rec.RequestRead = time.Duration(x.requestAt - x.startAt)
	if x.forwarding && !x.capped { // a deadline of the client's runs since the head
		x.armDeadline()
	}
	if a := x.cur; a != nil && a.open {
		a.armPerTry()
	}
}

// OnInformational implements message.Receiver; clients send no 1xx.
func (x *Exchange) OnInformational(*message.Head) {}

// OnDrained implements message.Receiver: the client took what we sent, so the
// upstream may go on.
func (x *Exchange) OnDrained() {
	if a := x.cur; a != nil && a.paused {
		a.paused = false
		a.s.Pause(false)
	}
}

// OnReset implements message.Receiver: the client is gone.
func (x *Exchange) OnReset(code message.ResetCode) {
	if x.done {
		x.untrusted = true // the codec is through with us, but the order of calls is its own
		return
	}
	x.untrusted = true
	h2 := x.down.Conn().Protocol == message.HTTP2
	switch {
	case code == message.ResetProtocol && (h2 || x.down.Conn().Trunk):
		x.rec.Flags |= record.FlagDPE
		x.rec.Details = "http2.codec_error"
	case code == message.ResetProtocol:
		x.rec.Flags |= record.FlagDPE
		x.rec.Details = "http1.codec_error"
	case h2 && code == message.ResetRemote:
		x.rec.Flags |= record.FlagDR
		x.rec.Details = "http2.remote_reset"
	default:
		x.rec.Flags |= record.FlagDC
		x.rec.Details = "downstream_remote_disconnect"
	}
	x.finish()
}

// finish ends the exchange: it stops what still runs upstream and hands over
// the record.
func (x *Exchange) finish() {
	if x.done {
		return
	}
	x.done = true
	x.env.active--
	x.stopTimers()
	if a := x.cur; a != nil {
		x.cur = nil
		a.abandon()
	}
	x.releaseRetry()
	for _, s := range x.mirrors {
		s.requestOver(x.reqEnded)
	}
	x.mirrors = x.mirrors[:0]
	x.rec.Total = time.Duration(x.env.Clock.Now() - x.startAt)
	if x.head != nil {
		x.rec.Request = x.head
	}
	x.count()
	x.env.Recorder.Done(&x.rec)
	x.recycle()
}

// count tells the cluster's statistics how the exchange ended. The first
// attempt's request knows the cluster as well as any other.
func (x *Exchange) count() {
	n := len(x.rec.Attempts)
	if n == 0 {
		return
	}
	s := upstream.Summary{Status: x.rec.Status, Retries: n - 1, RetryLimit: x.rec.Flags&record.FlagURX != 0}
	if x.rec.Flags&record.FlagUT != 0 {
		s.Timeout = x.rec.Details == "response_timeout"
	}
	if n > 1 || x.rec.Flags&record.FlagUT != 0 {
		for i := range x.rec.Attempts {
			if x.rec.Attempts[i].Details == "upstream_per_try_timeout" {
				s.PerTryTimeouts++
			}
		}
	}
	x.env.Upstream.Completed(&x.first.req, s)
}

func (x *Exchange) stopTimers() {
	for _, t := range [...]clock.Timer{x.deadline, x.wait, x.idle} {
		if t != nil {
			t.Disarm()
		}
	}
	x.waitingFor = waitNothing
}

// recycle puts a finished exchange back for reuse, once no codec can call it
// any more. One that ended in disorder is left to the garbage collector.
func (x *Exchange) recycle() {
	if !x.done || !x.reqEnded || x.untrusted || x.live > 0 || x.site == nil {
		return
	}
	e := x.env
	if len(e.free) >= freeExchanges {
		return
	}
	x.reset()
	e.free = append(e.free, x)
}

// reset clears everything but memory worth keeping.
func (x *Exchange) reset() {
	attempts, tried, body, mirrors := x.rec.Attempts[:0], x.tried[:0], x.body[:0], x.mirrors[:0]
	clear(attempts[:cap(attempts)])
	if cap(body) > keepBody {
		body = nil
	}
	env, trailers, resp := x.env, x.reqTrailers, x.respHead
	deadline, wait, idle, perTry := x.deadline, x.wait, x.idle, x.first.perTry
	*x = Exchange{} // alone, it is one clearing of memory; with fields it is also a copy
	x.env, x.reqTrailers, x.respHead = env, trailers, resp
	x.reqTrailers.Reset()
	x.respHead.Reset()
	x.deadline, x.wait, x.idle = deadline, wait, idle
	x.tried, x.body, x.mirrors, x.rec.Attempts = tried, body, mirrors, attempts
	x.first.x, x.first.perTry = x, perTry
}
