package record

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Target is where a destination can be reached now.
type Target struct {
	Address string // host:port
	// TLS is nil for plaintext.
	TLS *tls.Config
}

// ExporterOptions configure an Exporter.
type ExporterOptions struct {
	// Hub is the OTLP/gRPC address for everything without a provider of its
	// own; with an empty one such data is dropped and counted (reason no_hub).
	Hub string
	// Resolve finds a provider's cluster. An error is retried like an
	// unreachable server.
	Resolve func(cluster string) (Target, error)
	// Dial opens every connection, so that the socket can be marked; nil means
	// net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// QueueBytes bounds what waits for one destination; 0 means 8 MiB.
	QueueBytes int
	// RequestBytes bounds one request; 0 means 1 MiB.
	RequestBytes int
	// Timeout bounds one call; 0 means 10 s.
	Timeout time.Duration
	// Backoff is the first pause after a retryable failure, doubled up to
	// 32 times itself; 0 means 500 ms. MaxElapsed bounds the retries of one
	// request; 0 means 5 min.
	Backoff, MaxElapsed time.Duration
	Log                 *slog.Logger
}

// DropReason says why data was not delivered.
type DropReason string

// The reasons of a drop.
const (
	DropQueueFull DropReason = "queue_full"
	DropRejected  DropReason = "rejected" // the server refused it, wholly or in part
	DropExpired   DropReason = "expired"  // retried until MaxElapsed
	DropNoHub     DropReason = "no_hub"
	DropShutdown  DropReason = "shutdown"
)

// Counts account for the records of one signal: Made is always the sum of
// Sent, Dropped and Queued.
type Counts struct {
	Made, Sent, Queued uint64
	Dropped            map[DropReason]uint64
}

// Exporter sends encoded OTLP from bounded queues, one sender per destination.
// Nothing it does blocks a loop. It is safe for concurrent use.
type Exporter struct {
	opts ExporterOptions
	ctx  context.Context
	stop context.CancelFunc
	done sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	senders map[Destination]*sender
	counts  [signalCount]Counts
}

// chunk is a run of encoded records that share a resource.
type chunk struct {
	signal Signal
	dest   Destination
	prefix *prefix
	data   []byte
	count  int
}

// sender owns the queue and the connection of one destination.
type sender struct {
	e    *Exporter
	dest Destination
	wake chan struct{}

	// Used by the sender's goroutine alone.
	conn              transport
	connected, warned time.Time

	// Guarded by e.mu.
	queue []chunk
	bytes int
	busy  bool
}

// NewExporter makes an exporter; senders start with the first data for their
// destination. Close it.
func NewExporter(o ExporterOptions) *Exporter {
	if o.QueueBytes <= 0 {
		o.QueueBytes = 8 << 20
	}
	if o.RequestBytes <= 0 {
		o.RequestBytes = 1 << 20
	}
	if o.Timeout <= 0 {
		o.Timeout = 10 * time.Second
	}
	if o.Backoff <= 0 {
		o.Backoff = 500 * time.Millisecond
	}
	if o.MaxElapsed <= 0 {
		o.MaxElapsed = 5 * time.Minute
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{}).DialContext
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Resolve == nil {
		o.Resolve = func(cluster string) (Target, error) {
			return Target{}, errors.New("no cluster can be resolved")
		}
	}
	e := &Exporter{opts: o, senders: make(map[Destination]*sender)}
	e.ctx, e.stop = context.WithCancel(context.Background())
	for i := range e.counts {
		e.counts[i].Dropped = make(map[DropReason]uint64)
	}
	return e
}

// enqueue takes ownership of c. It holds a lock only to append.
func (e *Exporter) enqueue(c chunk) {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := &e.counts[c.signal]
	n.Made += uint64(c.count)
	switch {
	case e.closed:
		n.Dropped[DropShutdown] += uint64(c.count)
		return
	case c.dest.Cluster == "" && e.opts.Hub == "":
		n.Dropped[DropNoHub] += uint64(c.count)
		return
	}
	s := e.senders[c.dest]
	if s == nil {
		s = &sender{e: e, dest: c.dest, wake: make(chan struct{}, 1)}
		e.senders[c.dest] = s
		e.done.Add(1)
		go s.run()
	}
	if s.bytes+len(c.data) > e.opts.QueueBytes {
		n.Dropped[DropQueueFull] += uint64(c.count)
		return
	}
	n.Queued += uint64(c.count)
	s.bytes += len(c.data)
	s.queue = append(s.queue, c)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Counts returns the accounting of one signal.
func (e *Exporter) Counts(s Signal) Counts {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.counts[s]
	c.Dropped = make(map[DropReason]uint64, len(e.counts[s].Dropped))
	for k, v := range e.counts[s].Dropped {
		c.Dropped[k] = v
	}
	return c
}

// Drain waits until every queue is empty or ctx ends.
func (e *Exporter) Drain(ctx context.Context) {
	for {
		e.mu.Lock()
		left := false
		for _, s := range e.senders {
			left = left || s.busy || len(s.queue) > 0
		}
		e.mu.Unlock()
		if !left {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Close stops the senders. What is still queued is dropped and counted.
func (e *Exporter) Close() {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.stop()
	e.done.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.senders {
		for _, c := range s.queue {
			e.settle(c.signal, 0, uint64(c.count), DropShutdown)
		}
		s.queue, s.bytes = nil, 0
	}
}

// settle moves queued records to sent or dropped. Callers hold e.mu.
func (e *Exporter) settle(sig Signal, sent, dropped uint64, why DropReason) {
	n := &e.counts[sig]
	n.Queued -= sent + dropped
	n.Sent += sent
	if dropped > 0 {
		n.Dropped[why] += dropped
	}
}

func (s *sender) run() {
	defer s.e.done.Done()
	defer func() {
		if s.conn != nil {
			s.conn.close()
		}
	}()
	for {
		select {
		case <-s.e.ctx.Done():
			return
		case <-s.wake:
		}
		for {
			batch := s.take()
			if len(batch) == 0 {
				break
			}
			s.deliver(batch)
			if s.e.ctx.Err() != nil {
				return
			}
		}
	}
}

// take removes the longest run of chunks that fit one request.
func (s *sender) take() []chunk {
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	n, size := 0, 0
	for n < len(s.queue) && (n == 0 || s.queue[n].signal == s.queue[0].signal && size+len(s.queue[n].data) <= s.e.opts.RequestBytes) {
		size += len(s.queue[n].data)
		n++
	}
	batch := append([]chunk(nil), s.queue[:n]...)
	s.queue = append(s.queue[:0], s.queue[n:]...)
	clear(s.queue[len(s.queue):cap(s.queue)])
	s.busy = n > 0
	return batch
}

// finish settles a whole batch.
func (s *sender) finish(batch []chunk, rejected uint64, dropped bool, why DropReason) {
	var count uint64
	size := 0
	for i := range batch {
		count += uint64(batch[i].count)
		size += len(batch[i].data)
	}
	if dropped {
		rejected = count
	}
	rejected = min(rejected, count)
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	s.bytes -= size // bytes in flight stay accounted until they are settled
	s.busy = false
	s.e.settle(batch[0].signal, count-rejected, rejected, why)
}

// deliver sends one batch, retrying as OTLP allows.
func (s *sender) deliver(batch []chunk) {
	signal := batch[0].signal
	body := assemble(batch)
	pause := s.e.opts.Backoff
	deadline := time.Now().Add(s.e.opts.MaxElapsed)
	for {
		res := s.send(signal, body)
		switch {
		case res.err == nil:
			if res.rejected > 0 || res.message != "" {
				s.warn("OTLP receiver answered with a partial success", "signal", signal.String(), "rejected", res.rejected, "message", res.message)
			}
			s.finish(batch, uint64(max(res.rejected, 0)), false, DropRejected)
			return
		case !res.retry:
			s.warn("OTLP receiver refused data, it is dropped", "signal", signal.String(), "destination", s.name(), "error", res.err)
			s.finish(batch, 0, true, DropRejected)
			return
		}
		if res.after > 0 {
			pause = res.after
		}
		// Jitter keeps a fleet from coming back in one moment.
		wait := pause/2 + rand.N(pause/2+1)
		if time.Now().Add(wait).After(deadline) {
			s.warn("OTLP receiver stayed away, data is dropped", "signal", signal.String(), "destination", s.name(), "error", res.err)
			s.finish(batch, 0, true, DropExpired)
			return
		}
		s.warn("OTLP receiver cannot be reached, trying again", "destination", s.name(), "error", res.err)
		select {
		case <-s.e.ctx.Done():
			s.finish(batch, 0, true, DropShutdown)
			return
		case <-time.After(wait):
		}
		pause = min(2*pause, 32*s.e.opts.Backoff)
	}
}

func (s *sender) name() string {
	if s.dest.Cluster == "" {
		return s.e.opts.Hub
	}
	return s.dest.Cluster
}

// warn logs at most once a minute per destination.
func (s *sender) warn(msg string, args ...any) {
	if time.Since(s.warned) < time.Minute {
		return
	}
	s.warned = time.Now()
	s.e.opts.Log.Warn(msg, args...)
}

// assemble builds the Export…ServiceRequest: one Resource… per run of chunks
// with the same resource. All three signals use the same field numbers.
func assemble(batch []chunk) []byte {
	size := 0
	for i := range batch {
		size += len(batch[i].data) + len(batch[i].prefix.resource) + len(batch[i].prefix.scope) + len(schemaURL) + 16
	}
	b := make([]byte, 0, size)
	for i := 0; i < len(batch); {
		p := batch[i].prefix
		var resource, scope int
		b, resource = open(b, 1)
		b = append(b, p.resource...)
		b, scope = open(b, 2)
		b = append(b, p.scope...)
		for ; i < len(batch) && batch[i].prefix == p; i++ {
			b = append(b, batch[i].data...)
		}
		b = appendStr(b, 3, schemaURL)
		b = closeMsg(b, scope)
		b = closeMsg(b, resource)
	}
	return b
}
