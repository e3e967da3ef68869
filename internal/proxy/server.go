// Package proxy wires the data plane together: sockets on event loops become
// connections, connections meet a filter chain of the snapshot, and the chain's
// codec hands exchanges to the request path (package stream) or joins bytes
// (package tcp). It owns listeners, the connections accepted on them, and the
// dialling of upstream connections with marks, TLS and the egress broker.
//
// A Server runs one worker per event loop; workers share nothing but counters
// of configured limits. Apply puts a snapshot in force on all of them without
// dropping what is in flight; Drain ends the process gracefully. Configuration
// arrives from outside (package agent) as compiled snapshots only.
package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"lateen.dev/lateen/internal/bootstrap"
	"lateen.dev/lateen/internal/proxy/loop"
	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/record"
	"lateen.dev/lateen/internal/proxy/snapshot"
	"lateen.dev/lateen/internal/proxy/stream"
	"lateen.dev/lateen/internal/proxy/upstream"
)

// Secrets makes TLS configurations that follow certificate rotation by
// themselves; secret.Store is one. Both methods may be called on loops.
type Secrets interface {
	ServerConfig(d *snapshot.DownstreamTLS) *tls.Config
	ClientConfig(u *snapshot.UpstreamTLS, host string, offers snapshot.ALPN) *tls.Config
}

// Handshakes runs TLS handshakes away from the loops; mtls.Pool is one. done is
// called exactly once on the connection's loop, unless the connection is
// aborted before.
type Handshakes interface {
	Server(c *loop.Conn, prefix []byte, cfg *tls.Config, done func(message.Transport, error))
	Client(c *loop.Conn, cfg *tls.Config, done func(message.Transport, error))
}

// Options are what a Server is made of. Log may be nil; Secrets and Handshakes
// may be nil in a proxy that never speaks TLS, Recorder in tests and tools, Resolver without DNS
// clusters.
type Options struct {
	Bootstrap  *bootstrap.Bootstrap
	Secrets    Secrets
	Handshakes Handshakes
	// Recorder gives each loop its own recorder; nil records nothing.
	Recorder *record.Set
	// Resolve looks up names for DNS clusters; it is called on goroutines.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// Egress opens a connection outside the node's networks and returns its
	// descriptor; it is called on goroutines. Nil dials everything directly.
	Egress func(ctx context.Context, addr netip.AddrPort) (fd int, err error)
	Log    *slog.Logger
}

// Recorder is what a worker hands its records to.
type Recorder interface {
	Done(r *record.Record)
	ConnOpened(c *record.ConnRecord)
	ConnProgress(c *record.ConnRecord)
	ConnDone(c *record.ConnRecord)
}

// noRecords is the Recorder of a Server without record.Set.
type noRecords struct{}

func (noRecords) Done(*record.Record)             {}
func (noRecords) ConnOpened(*record.ConnRecord)   {}
func (noRecords) ConnProgress(*record.ConnRecord) {}
func (noRecords) ConnDone(*record.ConnRecord)     {}

// Server is the data plane of one process. Its methods are safe for concurrent
// use.
type Server struct {
	o        Options
	log      *slog.Logger
	workers  []*worker
	shared   *upstream.Shared
	identity record.Identity
	peers    *peers
	running  sync.WaitGroup

	mu       sync.Mutex // serializes Apply, Drain and Close
	snap     atomic.Pointer[snapshot.Snapshot]
	sockets  map[socketKey]*socket
	draining atomic.Bool
	closed   bool
}

// NewServer makes a Server and starts its loops, as many as the bootstrap's
// concurrency says. It serves nothing until Apply.
func NewServer(o Options) (*Server, error) {
	if o.Bootstrap == nil {
		return nil, errors.New("make proxy server: no bootstrap")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{o: o, log: o.Log, shared: upstream.NewShared(), sockets: map[socketKey]*socket{}}
	s.identity = record.IdentityOf(o.Bootstrap, "")
	s.peers = newPeers(&s.identity)
	for i := range max(1, o.Bootstrap.Concurrency) {
		w, err := s.newWorker(i)
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("make proxy server: %w", err)
		}
		s.workers = append(s.workers, w)
		s.running.Go(func() {
			if err := w.loop.Run(); err != nil {
				s.log.Error("event loop ended", "loop", i, "cause", err)
			}
		})
	}
	return s, nil
}

func (s *Server) newWorker(id int) (*worker, error) {
	l, err := loop.New(loop.Options{
		Log: s.log, ID: id, PlainIO: s.o.Bootstrap.PlainIO,
		LightSleep: runtime.GOMAXPROCS(0) > max(1, s.o.Bootstrap.Concurrency),
	})
	if err != nil {
		return nil, err
	}
	w := &worker{
		s: s, loop: l, rand: record.NewRand(), conns: map[*downstream]struct{}{},
		listeners: map[socketKey]*loop.Listener{}, recorder: noRecords{},
	}
	w.init()
	if s.o.Recorder != nil {
		w.recorder = s.o.Recorder.Recorder(func(f func()) { l.Post(f) })
	}
	w.env.Recorder = w.recorder
	return w, nil
}

// Snapshot returns what is in force, nil before the first Apply.
func (s *Server) Snapshot() *snapshot.Snapshot { return s.snap.Load() }

// Apply puts a snapshot in force on every loop and returns when all have it.
// New listeners are opened before old ones close. A listener that cannot be
// opened is reported in the error; everything else is in force regardless.
// Exchanges in flight finish with the snapshot they began with; connections
// that no filter chain wants any more are closed once they are idle.
func (s *Server) Apply(next *snapshot.Snapshot) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.New("apply snapshot: the server is closed")
	}
	opened, stale, err := s.planSockets(next)
	s.snap.Store(next)
	s.onAll(func(w *worker) { w.apply(next) })
	s.accept(opened, stale)
	return err
}

// onAll runs f on every loop and waits for all.
func (s *Server) onAll(f func(*worker)) {
	var wg sync.WaitGroup
	for _, w := range s.workers {
		wg.Add(1)
		if !w.loop.Post(func() { defer wg.Done(); f(w) }) {
			wg.Done()
		}
	}
	wg.Wait()
}

// drainQuiet is how long a draining proxy must be without connections before it
// is done: callers may not know yet that it is leaving. drainIdle is how long
// idle connections may wait for a last request.
const (
	drainQuiet = 500 * time.Millisecond
	drainIdle  = 2 * time.Second
)

// Drain lets connections end: each says "connection: close" with its next
// response, idle ones close after two seconds, TCP may go on until ctx is done.
// New connections are served meanwhile, one exchange each, because callers
// learn late that a pod is leaving. It returns when no connection is left, or
// with an error when ctx is done before.
func (s *Server) Drain(ctx context.Context) error {
	s.draining.Store(true)
	s.onAll(func(w *worker) {
		w.codec.forget()
		for d := range w.conns {
			d.lastExchange()
		}
	})
	began, quiet := time.Now(), time.Now()
	idleClosed := false
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if s.Connections() > 0 {
			quiet = time.Now()
		} else if time.Since(quiet) >= drainQuiet {
			return nil
		}
		if !idleClosed && time.Since(began) >= drainIdle {
			idleClosed = true
			s.onAll(func(w *worker) { w.closeIdle() })
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("drain proxy: %d connections left: %w", s.Connections(), context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// Connections is the number of downstream connections.
func (s *Server) Connections() int {
	n := int64(0)
	for _, w := range s.workers {
		n += w.count.Load()
	}
	return int(n)
}

// Close stops everything at once. Connections are reset.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	s.draining.Store(true)
	for _, w := range s.workers {
		w.loop.Stop()
	}
	s.running.Wait()
	for _, k := range s.sockets {
		k.close()
	}
}

// Endpoints describes the endpoints in use, as each loop sees them, for the
// admin interface.
func (s *Server) Endpoints() []upstream.Status {
	var mu sync.Mutex
	var all []upstream.Status
	s.onAll(func(w *worker) {
		part := w.upstream.Dump()
		mu.Lock()
		all = append(all, part...)
		mu.Unlock()
	})
	return all
}

// ClusterStats are the statistics of the clusters that carried something, by
// name, over all loops.
func (s *Server) ClusterStats() map[string]*upstream.Stats {
	var mu sync.Mutex
	all := map[string]*upstream.Stats{}
	s.onAll(func(w *worker) {
		part := w.upstream.ClusterStats()
		mu.Lock()
		defer mu.Unlock()
		for name, c := range part {
			if have := all[name]; have != nil {
				have.Add(c)
			} else {
				all[name] = c
			}
		}
	})
	return all
}

// ResetStats sets all counters of clusters to zero.
func (s *Server) ResetStats() { s.onAll(func(w *worker) { w.upstream.ResetStats() }) }

// HTTP2Stats are the counters of the HTTP/2 codec over all loops, of both sides,
// by Envoy's names.
func (s *Server) HTTP2Stats() map[string]uint64 {
	all := map[string]uint64{}
	for _, w := range s.workers {
		w.codec.pool2.Stats().Each(func(name string, v uint64) { all[name] += v })
	}
	return all
}

// Loops are the event loops, for statistics.
func (s *Server) Loops() []*loop.Loop {
	var all []*loop.Loop
	for _, w := range s.workers {
		all = append(all, w.loop)
	}
	return all
}

// worker is one event loop with everything that belongs to it.
type worker struct {
	s         *Server
	loop      *loop.Loop
	rand      *rand.Rand
	env       *stream.Env
	upstream  *upstream.Manager
	recorder  Recorder
	snap      *snapshot.Snapshot
	codec     codecs
	conns     map[*downstream]struct{}
	listeners map[socketKey]*loop.Listener
	// count mirrors len(conns) for other goroutines.
	count    atomic.Int64
	progress loop.Timer
}

// init makes the parts that need the loop.
func (w *worker) init() {
	clk := loopClock{w.loop}
	w.upstream = upstream.NewManager(upstream.Options{
		Clock: clk, Rand: w.rand.Uint64, Dialer: dialer{w}, Resolver: resolver{w}, Shared: w.s.shared,
	})
	w.env = &stream.Env{Clock: clk, Rand: w.rand, Upstream: w.upstream, Peers: w.s.peers}
	w.env.Format = &record.Env{Hostname: w.s.identity.Pod, Identity: &w.s.identity}
	w.codec.init(w)
	w.progress.F = w.reportProgress
}

// apply takes over a snapshot. Exchanges find it at their start; connections
// whose listener changed look at once whether they are still wanted.
func (w *worker) apply(next *snapshot.Snapshot) {
	w.snap = next
	w.upstream.Apply(next)
	w.codec.forget()
	for d := range w.conns {
		d.rematch(next)
	}
}

// closeIdle ends HTTP connections without an exchange.
func (w *worker) closeIdle() {
	for d := range w.conns {
		if d.site != nil {
			d.drain()
		}
	}
}

// progressInterval is how often long TCP connections show in metrics (Istio:
// tcp_reporting_duration).
const progressInterval = 15 * time.Second

func (w *worker) reportProgress() {
	any := false
	for d := range w.conns {
		if d.pair != nil {
			d.progress()
			any = true
		}
	}
	if any {
		w.loop.Arm(&w.progress, progressInterval)
	}
}

func (w *worker) add(d *downstream) {
	w.conns[d] = struct{}{}
	w.count.Store(int64(len(w.conns)))
}

func (w *worker) remove(d *downstream) {
	delete(w.conns, d)
	w.count.Store(int64(len(w.conns)))
}
