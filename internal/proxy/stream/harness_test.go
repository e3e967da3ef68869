package stream

import (
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"lateen.dev/lateen/internal/proxy/clock"
	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/record"
	"lateen.dev/lateen/internal/proxy/snapshot"
	"lateen.dev/lateen/internal/proxy/upstream"
)

// bed is a request path with everything around it faked: a manual clock, an
// HTTP/2-shaped connection on both sides (many exchanges, windows, resets,
// trailers) and a recorder.
type bed struct {
	t       *testing.T
	clock   *clock.Manual
	env     *Env
	up      *fakeUpstream
	records []record.Record
	site    *Site
}

func newBed(t *testing.T, routes ...*snapshot.Route) *bed {
	t.Helper()
	b := &bed{t: t, clock: clock.NewManual(time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC))}
	b.up = &fakeUpstream{b: b, retries: math.MaxInt}
	b.env = &Env{Clock: b.clock, Rand: rand.New(rand.NewPCG(1, 2)), Upstream: b.up, Recorder: b}
	vh := &snapshot.VirtualHost{Name: "reviews", Domains: []string{"reviews", "reviews:80"}, Routes: routes, IncludeAttemptCount: true}
	table, err := snapshot.NewRouteTable("80", vh)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		r.Match.RuntimePerMillion = 1e6
	}
	b.site = &Site{
		Snapshot: &snapshot.Snapshot{Clusters: map[string]*snapshot.Cluster{"v1": {Name: "v1"}, "v2": {Name: "v2"}, "shadow": {Name: "shadow"}}},
		Listener: &snapshot.Listener{Direction: snapshot.Outbound},
		Manager:  &snapshot.HTTPManager{Routes: table, NormalizePath: true},
	}
	return b
}

// route sends everything to cluster v1.
func route(edit ...func(*snapshot.Route)) *snapshot.Route {
	r := &snapshot.Route{
		Name: "r", Origin: "VirtualService/reviews.default#spec.http[0]",
		Match:    snapshot.RouteMatch{Path: snapshot.PathMatch{Kind: snapshot.PathPrefix, Text: "/"}, CaseSensitive: true},
		Clusters: []snapshot.WeightedCluster{{Cluster: "v1", Weight: 1}},
	}
	for _, e := range edit {
		e(r)
	}
	return r
}

func (b *bed) Done(r *record.Record) {
	c := *r
	c.Attempts = append([]record.Attempt(nil), r.Attempts...)
	b.records = append(b.records, c)
}

// last returns the only record since the last call.
func (b *bed) last() record.Record {
	b.t.Helper()
	if len(b.records) != 1 {
		b.t.Fatalf("%d records, want exactly 1", len(b.records))
	}
	r := b.records[0]
	b.records = nil
	return r
}

// request builds a head from "GET /path" and header pairs.
func request(line string, pairs ...string) *message.Head {
	h := &message.Head{}
	method, path, _ := strings.Cut(line, " ")
	h.SetMethod([]byte(method))
	h.SetPath([]byte(path))
	h.SetAuthority([]byte("reviews"))
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i] == ":authority" {
			h.SetAuthority([]byte(pairs[i+1]))
			continue
		}
		h.AddNameString(pairs[i], pairs[i+1])
	}
	return h
}

// get runs a request without body and returns the client's side.
func (b *bed) get(line string, pairs ...string) *fakeDown {
	d := b.start(line, pairs...)
	d.in.OnHead(d.head, true)
	return d
}

// start begins a request and lets the test send its events.
func (b *bed) start(line string, pairs ...string) *fakeDown {
	d := &fakeDown{head: request(line, pairs...)}
	d.conn.Remote = netip.MustParseAddrPort("10.0.0.9:4711")
	d.conn.Local = netip.MustParseAddrPort("10.0.0.1:15001")
	d.x = b.env.New(b.site, d)
	d.in = d.x
	return d
}

// fakeDown is the client's exchange: what it got.
type fakeDown struct {
	x      *Exchange
	in     message.Receiver
	head   *message.Head
	conn   message.Conn
	resp   message.Head
	heads  int
	infos  []int
	body   []byte
	trail  message.Head
	end    bool
	reset  message.ResetCode
	paused bool
	window int // 0 means unlimited
	full   bool
}

func (d *fakeDown) SendHead(h *message.Head, end bool) { d.heads++; d.resp.CopyFrom(h); d.end = end }
func (d *fakeDown) SendInformational(h *message.Head)  { d.infos = append(d.infos, h.Status()) }
func (d *fakeDown) SendData(p []byte, end bool)        { d.body = append(d.body, p...); d.end = d.end || end }
func (d *fakeDown) SendTrailers(h *message.Head)       { d.trail.CopyFrom(h); d.end = true }
func (d *fakeDown) Reset(c message.ResetCode)          { d.reset = c }
func (d *fakeDown) Pause(on bool)                      { d.paused = on }
func (d *fakeDown) Buffered() int                      { return len(d.body) }
func (d *fakeDown) OverHigh() bool                     { return d.full || d.window > 0 && len(d.body) > d.window }
func (d *fakeDown) Conn() *message.Conn                { return &d.conn }

// fakeUpstream answers each request as its script says.
type fakeUpstream struct {
	b *bed
	// script decides per request; nil answers 200 "ok".
	script    func(n int, u *fakeUp)
	all       []*fakeUp
	retries   int
	inRetry   int
	finished  []upstream.Outcome
	summaries []upstream.Summary
}

// fakeUp is one upstream exchange.
type fakeUp struct {
	b        *bed
	req      *upstream.Request
	in       message.Receiver
	cluster  string
	head     message.Head
	body     []byte
	trail    message.Head
	gotEnd   bool
	reset    message.ResetCode
	paused   bool
	full     bool
	conn     message.Conn
	cancel   bool
	finished bool
	fresh    bool
	onEnd    func()
	hash     uint64
	hashed   bool
	tried    []netip.AddrPort
}

func (f *fakeUpstream) Open(r *upstream.Request) {
	u := &fakeUp{b: f.b, req: r, in: r.Receiver, cluster: r.Cluster.Name, fresh: true, hash: r.Hash, hashed: r.Hashed, tried: slices.Clone(r.Tried)}
	n := len(f.all)
	f.all = append(f.all, u)
	if f.script == nil {
		u.answer(200, "ok")
		return
	}
	f.script(n, u)
}

func (f *fakeUpstream) Cancel(r *upstream.Request) {
	for _, u := range f.all {
		if u.req == r {
			u.cancel = true
		}
	}
}

func (f *fakeUpstream) Finish(r *upstream.Request, o upstream.Outcome) {
	for _, u := range f.all {
		if u.req == r && u.in == r.Receiver && !u.finished {
			u.finished = true
			f.finished = append(f.finished, o)
			return
		}
	}
	f.b.t.Error("an upstream exchange was finished twice or never opened")
}

func (f *fakeUpstream) RetryStart(*snapshot.Cluster) bool {
	if f.inRetry >= f.retries {
		return false
	}
	f.inRetry++
	return true
}

func (f *fakeUpstream) Completed(_ *upstream.Request, s upstream.Summary) {
	f.summaries = append(f.summaries, s)
}
func (f *fakeUpstream) RetryDone(*snapshot.Cluster) { f.inRetry-- }

// open connects.
func (u *fakeUp) open() *fakeUp {
	u.req.Address = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(len(u.b.up.all))}), 8080)
	u.req.Endpoint = &snapshot.Endpoint{Addr: u.req.Address}
	u.req.Waiter.OnOpen(u, u.fresh)
	return u
}

// answer connects and responds once the request is complete.
func (u *fakeUp) answer(status int, body string) {
	u.onEnd = func() { u.respond(status, body) }
	u.open()
}

func (u *fakeUp) respond(status int, body string, pairs ...string) {
	h := &message.Head{}
	h.SetStatus(status)
	for i := 0; i < len(pairs); i += 2 {
		h.AddNameString(pairs[i], pairs[i+1])
	}
	u.in.OnHead(h, body == "")
	if body != "" {
		u.in.OnData([]byte(body), true)
	}
}

func (u *fakeUp) refuse(code message.ResetCode, reason string) {
	u.req.Waiter.OnUnavailable(&upstream.Error{Code: code, Reason: reason})
}

func (u *fakeUp) ended(end bool) {
	u.gotEnd = u.gotEnd || end
	if end && u.onEnd != nil {
		u.onEnd()
	}
}

func (u *fakeUp) SendHead(h *message.Head, end bool) { u.head.CopyFrom(h); u.ended(end) }
func (u *fakeUp) SendInformational(*message.Head)    {}
func (u *fakeUp) SendData(p []byte, end bool)        { u.body = append(u.body, p...); u.ended(end) }
func (u *fakeUp) SendTrailers(h *message.Head)       { u.trail.CopyFrom(h); u.ended(true) }
func (u *fakeUp) Reset(c message.ResetCode)          { u.reset = c }
func (u *fakeUp) Pause(on bool)                      { u.paused = on }
func (u *fakeUp) Buffered() int                      { return len(u.body) }
func (u *fakeUp) OverHigh() bool                     { return u.full }
func (u *fakeUp) Conn() *message.Conn                { return &u.conn }
func (b *bed) nth(n int) *fakeUp                     { return b.up.all[n] }
func header(h *message.Head, name string) string     { return string(h.GetName(name)) }
func always(f func(u *fakeUp)) func(int, *fakeUp)    { return func(_ int, u *fakeUp) { f(u) } }
func hang(_ int, u *fakeUp)                          { u.open() }
func (d *fakeDown) status() int                      { return d.resp.Status() }
func (d *fakeDown) want(t *testing.T, status int, body string) {
	t.Helper()
	if d.status() != status || string(d.body) != body || !d.end || d.heads != 1 {
		t.Fatalf("client got %d %q end=%v heads=%d, want %d %q", d.status(), d.body, d.end, d.heads, status, body)
	}
}

// wantRecord checks flags and details.
func (b *bed) wantRecord(flags, details string, attempts int) record.Record {
	b.t.Helper()
	r := b.last()
	got := r.Flags.String()
	if got == "-" {
		got = ""
	}
	if got != flags || r.Details != details || len(r.Attempts) != attempts {
		b.t.Fatalf("record %q %q with %d attempts, want %q %q with %d", got, r.Details, len(r.Attempts), flags, details, attempts)
	}
	return r
}

// settled checks that nothing is left behind.
func (b *bed) settled() {
	b.t.Helper()
	if b.env.Active() != 0 || b.up.inRetry != 0 || b.clock.Pending() != 0 {
		b.t.Fatalf("left behind: %d exchanges, %d retries, %d timers", b.env.Active(), b.up.inRetry, b.clock.Pending())
	}
}
