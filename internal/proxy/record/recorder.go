package record

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// Options configure a Set.
type Options struct {
	Identity Identity
	// Exporter takes encoded OTLP; nil means that spans, OTLP logs and OTLP
	// metrics are not made.
	Exporter *Exporter
	// Origins resolves a stable origin id to "file:line", "" when it cannot.
	// It is called on loops and must not block; nil resolves nothing.
	Origins func(snapshot.Origin) string
	// Mode chooses span attribute names; empty means ModeSemconv.
	Mode Mode
	// HubLogs sends every line of a file access log also to the hub as an OTLP
	// log record.
	HubLogs bool
	// Getenv feeds %ENVIRONMENT% and environment tags; nil means os.Getenv.
	Getenv func(string) string
	// MaxSeries bounds the metric series of one loop; 0 means 5000.
	MaxSeries int
	// FlushInterval bounds how long a record waits on its loop; 0 means 250 ms.
	FlushInterval time.Duration
	// MetricsInterval is the period of OTLP metrics; 0 means 10 s.
	MetricsInterval time.Duration
	Log             *slog.Logger
}

// Set holds what all loops of a process share: the exporter, the access-log
// files and the list of recorders. It is safe for concurrent use.
type Set struct {
	opts  Options
	env   Env
	files *files
	kick  chan struct{}

	mu        sync.Mutex
	recorders []*Recorder
}

// NewSet makes a Set. Run it, or call Flush, to move records on.
func NewSet(o Options) *Set {
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	if o.MaxSeries <= 0 {
		o.MaxSeries = 5000
	}
	if o.FlushInterval <= 0 {
		o.FlushInterval = 250 * time.Millisecond
	}
	if o.MetricsInterval <= 0 {
		o.MetricsInterval = 10 * time.Second
	}
	if o.Mode == "" {
		o.Mode = ModeSemconv
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Origins == nil {
		o.Origins = func(snapshot.Origin) string { return "" }
	}
	s := &Set{opts: o, kick: make(chan struct{}, 1), files: newFiles(o.Log)}
	s.env = Env{Getenv: o.Getenv, Origins: o.Origins, Hostname: o.Identity.Pod, Identity: &s.opts.Identity}
	return s
}

// Recorder makes the recorder of one loop. post runs a function on that loop
// from any goroutine; it may drop the function once the loop has stopped.
func (s *Set) Recorder(post func(func())) *Recorder {
	r := &Recorder{
		set:     s,
		post:    post,
		table:   table{series: make(map[SeriesKey]*Series), max: s.opts.MaxSeries},
		logs:    make(map[*snapshot.AccessLog]*logger),
		lines:   make(map[string]*lineBuffer),
		tracers: make(map[*snapshot.Tracing]*tracer),
		streams: make(map[streamKey]*stream),
	}
	s.mu.Lock()
	s.recorders = append(s.recorders, r)
	s.mu.Unlock()
	return r
}

// Recorder turns records into telemetry on one loop. Its methods other than
// those of Set must be called on that loop; they never block and never fail.
type Recorder struct {
	set     *Set
	post    func(func())
	table   table
	logs    map[*snapshot.AccessLog]*logger
	lines   map[string]*lineBuffer
	tracers map[*snapshot.Tracing]*tracer
	streams map[streamKey]*stream
	scratch []byte
	tcp     Record // reused view of a ConnRecord
	tcpTry  [1]Attempt
	// pending says that something waits for Flush; only its change from false
	// to true costs anything.
	pending atomic.Bool
}

// Done takes one finished exchange. Nothing of rec is kept.
func (r *Recorder) Done(rec *Record) {
	now := rec.Start.Add(rec.Total)
	r.observe(rec, now.UnixNano())
	if rec.Manager != nil {
		r.accessLogs(rec.Manager.AccessLogs, rec)
	}
	if rec.Trace.Sampled && rec.Trace.Tracing != nil && r.set.opts.Exporter != nil {
		r.spans(rec)
	}
}

// ConnRecord is one TCP connection, or one that ended before any exchange.
// Fill it as things happen; the recorder adds to reported itself.
type ConnRecord struct {
	Start time.Time
	Total time.Duration

	Conn      *message.Conn
	Direction snapshot.Direction
	Gateway   bool
	Listener  *snapshot.Listener
	// Chain is nil when no filter chain matched.
	Chain *snapshot.FilterChain

	Cluster       *snapshot.Cluster
	ClusterName   string
	Endpoint      *snapshot.Endpoint
	Local, Remote netip.AddrPort // of the upstream connection
	TLS           *message.TLSInfo

	// Received and Sent count bytes from and to the downstream so far.
	Received, Sent uint64
	Flags          Flags
	Details        string
	Termination    string
	UpstreamError  string
	Decider        snapshot.Origin
	Policy         string
	Peer           snapshot.Workload

	reportedReceived, reportedSent uint64
	opened                         bool
}

// ConnOpened counts a connection once its upstream is known.
func (r *Recorder) ConnOpened(c *ConnRecord) {
	if s := r.connSeries(c); s != nil {
		s.Opened++
	}
	c.opened = true
}

// ConnProgress counts the bytes moved since the last call, so that long
// connections show before they end (Istio: tcp_reporting_duration).
func (r *Recorder) ConnProgress(c *ConnRecord) {
	if s := r.connSeries(c); s != nil {
		r.connBytes(c, s)
	}
}

func (r *Recorder) connBytes(c *ConnRecord, s *Series) {
	s.Received += c.Received - c.reportedReceived
	s.Sent += c.Sent - c.reportedSent
	c.reportedReceived, c.reportedSent = c.Received, c.Sent
}

// ConnDone takes one finished connection: metrics and access log.
func (r *Recorder) ConnDone(c *ConnRecord) {
	if !c.opened {
		r.ConnOpened(c)
	}
	if s := r.connSeries(c); s != nil {
		r.connBytes(c, s)
		s.Closed++
	}
	rec := r.connView(c)
	switch {
	case c.Chain != nil && c.Chain.TCP != nil:
		r.accessLogs(c.Chain.TCP.AccessLogs, rec)
	case c.Listener != nil:
		// Connections that reached no proxy filter are the listener's to log.
		r.accessLogs(c.Listener.AccessLogs, rec)
	}
}

func (r *Recorder) connSeries(c *ConnRecord) *Series {
	k := SeriesKey{Protocol: protoTCP, GRPCStatus: -1, Flags: c.Flags}
	r.fillKey(&k, r.connView(c))
	return r.table.get(&k, c.Start.Add(c.Total).UnixNano())
}

// connView presents a connection as a record without request.
func (r *Recorder) connView(c *ConnRecord) *Record {
	r.tcpTry[0] = Attempt{Start: c.Start, Duration: c.Total, Endpoint: c.Endpoint, Local: c.Local, Remote: c.Remote, TLS: c.TLS}
	r.tcp = Record{
		Start: c.Start, Total: c.Total, Conn: c.Conn, Direction: c.Direction, Gateway: c.Gateway, Listener: c.Listener,
		Flags: c.Flags, Details: c.Details, Termination: c.Termination, UpstreamError: c.UpstreamError,
		BytesReceived: c.Received, BytesSent: c.Sent, Cluster: c.Cluster, ClusterName: c.ClusterName,
		Decider: c.Decider, Policy: c.Policy, Peer: c.Peer,
	}
	if c.Endpoint != nil || c.Remote.IsValid() {
		r.tcp.Attempts = r.tcpTry[:]
	}
	return &r.tcp
}

// mark notes that something waits, and wakes the flusher at the first thing.
func (r *Recorder) mark() {
	if r.pending.Load() {
		return
	}
	r.pending.Store(true)
	select {
	case r.set.kick <- struct{}{}:
	default:
	}
}

// Flush hands everything that waits to the files and the exporter. Call it on
// the loop; Set does so by itself while Run is active.
func (r *Recorder) Flush() {
	r.pending.Store(false)
	for _, b := range r.lines {
		if len(b.data) > 0 {
			r.handOverLines(b)
		}
	}
	for k, s := range r.streams {
		if s.count > 0 {
			r.handOver(k, s)
		}
	}
}

// Run flushes recorders soon after they have something and exports metrics
// periodically. It returns when ctx ends, after a last flush.
func (s *Set) Run(ctx context.Context) {
	var metrics <-chan time.Time
	if s.opts.Exporter != nil {
		t := time.NewTicker(s.opts.MetricsInterval)
		defer t.Stop()
		metrics = t.C
	}
	var due <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			s.Flush(last)
			cancel()
			return
		case <-s.kick:
			if due == nil {
				due = time.After(s.opts.FlushInterval)
			}
		case <-due:
			due = nil
			s.flushPending()
		case <-metrics:
			s.exportMetrics(ctx)
		}
	}
}

func (s *Set) flushPending() {
	for _, r := range s.list() {
		if r.pending.Load() {
			r.post(r.Flush)
		}
	}
}

func (s *Set) list() []*Recorder {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.recorders[:len(s.recorders):len(s.recorders)]
}

// Flush moves everything on: records of all loops, OTLP metrics, and the lines
// of access-log files. It waits for the loops and the files as long as ctx lets it.
func (s *Set) Flush(ctx context.Context) {
	s.eachLoop(ctx, func(r *Recorder) { r.Flush() })
	if s.opts.Exporter != nil {
		s.exportMetrics(ctx)
	}
	s.files.sync(ctx)
}

// eachLoop runs f on every loop, one after the other, and waits.
func (s *Set) eachLoop(ctx context.Context, f func(*Recorder)) {
	for _, r := range s.list() {
		done := make(chan struct{})
		r.post(func() { f(r); close(done) })
		select {
		case <-done:
		case <-ctx.Done():
			return
		}
	}
}

// Totals are counters of the recording itself.
type Totals struct {
	// SeriesRefused counts observations lost to a full series table,
	// SeriesEvicted idle series forgotten.
	SeriesRefused, SeriesEvicted uint64
	// LogLines were written, LogDropped lost because a file did not keep up or
	// could not be written.
	LogLines, LogDropped uint64
}

// Collect sums the series of all loops, ordered by label.
func (s *Set) Collect(ctx context.Context) ([]*Series, Totals) {
	type part struct {
		sum              map[SeriesKey]*Series
		refused, evicted uint64
	}
	sum := make(map[SeriesKey]*Series)
	var t Totals
	for _, r := range s.list() {
		// The loop fills a map of its own: after a timeout it may still write.
		got := make(chan part, 1)
		r.post(func() {
			p := part{sum: make(map[SeriesKey]*Series, len(r.table.series)), refused: r.table.refused, evicted: r.table.evicted}
			r.table.copyTo(p.sum)
			got <- p
		})
		select {
		case p := <-got:
			(&table{series: p.sum}).copyTo(sum)
			t.SeriesRefused += p.refused
			t.SeriesEvicted += p.evicted
		case <-ctx.Done():
		}
	}
	t.LogLines, t.LogDropped = s.files.totals()
	return sortSeries(sum), t
}
