package ads

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

// Options configures a Server. Generator and Log are required; zero values
// elsewhere mean the defaults.
type Options struct {
	Generator Generator
	// Admit is called for each stream after the node's identity was checked and
	// the first Update has come; nil admits everybody. It may refuse the node
	// (its error is shown to the proxy, as PermissionDenied if it is no gRPC
	// status), and what it returns is kept as Node.View.
	Admit func(*Node) (view any, err error)
	Log   *slog.Logger
	// Now is the clock; nil means the wall clock.
	Now func() time.Time
	// AckTimeout is how long a push waits for the answer to the last one; 0
	// means 30 s.
	AckTimeout time.Duration
	// RemovalDelay is how long resources that went away stay with a proxy after
	// it acknowledged what replaces them, while it warms that; 0 means 250 ms.
	RemovalDelay time.Duration
	// MaxStreams and MaxStreamsPerIdentity bound open streams; 0 means 10,000
	// and 1,024.
	MaxStreams, MaxStreamsPerIdentity int
	// MaxNames bounds the names one stream may subscribe to for one type; 0
	// means 20,000.
	MaxNames int
}

// Server serves ADS. It is safe for concurrent use.
type Server struct {
	o       Options
	encoder encoder
	// slots bounds how many resource sets are made at once: when every proxy
	// reconnects, more at a time would only cost memory.
	slots chan struct{}
	ready chan struct{} // closed by the first Update

	mu       sync.Mutex
	revision uint64
	streams  map[*stream]struct{}
	perID    map[string]int
}

// New returns a Server. It sends nothing before the first Update.
func New(o Options) *Server {
	if o.Now == nil {
		o.Now = time.Now
	}
	o.AckTimeout = cmp.Or(o.AckTimeout, 30*time.Second)
	o.RemovalDelay = cmp.Or(o.RemovalDelay, 250*time.Millisecond)
	o.MaxStreams = cmp.Or(o.MaxStreams, 10_000)
	o.MaxStreamsPerIdentity = cmp.Or(o.MaxStreamsPerIdentity, 1_024)
	o.MaxNames = cmp.Or(o.MaxNames, 20_000)
	return &Server{
		o: o, slots: make(chan struct{}, runtime.GOMAXPROCS(0)), ready: make(chan struct{}),
		streams: make(map[*stream]struct{}), perID: make(map[string]int),
	}
}

// Register makes the server answer on r. With requireSVID a caller without a
// verified client certificate is refused; without it, callers are served
// everything but secrets, so such a listener may only be reachable by the
// control process itself.
func (s *Server) Register(r grpc.ServiceRegistrar, requireSVID bool) {
	discoverypb.RegisterAggregatedDiscoveryServiceServer(r, &service{server: s, requireSVID: requireSVID})
}

// Update says that the configuration has a new revision, which the Generator
// already serves, and which nodes it touches; nil means all. It does not block
// on any proxy. Calls must come one at a time, with rising revisions.
func (s *Server) Update(revision uint64, affects func(*Node) bool) {
	s.mu.Lock()
	first := s.revision == 0
	s.revision = revision
	streams := slices.Collect(maps.Keys(s.streams))
	s.mu.Unlock()
	if first {
		close(s.ready)
		affects = nil
	}
	for _, st := range streams {
		if affects == nil || affects(st.node) {
			st.touch(revision)
		}
	}
}

// add admits a stream, or says why not.
func (s *Server) add(st *stream) error {
	id := st.node.Identity.String()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.streams) >= s.o.MaxStreams {
		return status.Errorf(codes.ResourceExhausted, "%d streams are open, at most %d", len(s.streams), s.o.MaxStreams)
	}
	if s.perID[id] >= s.o.MaxStreamsPerIdentity {
		return status.Errorf(codes.ResourceExhausted, "%v has %d streams open, at most %d", st.node.Identity, s.perID[id], s.o.MaxStreamsPerIdentity)
	}
	s.perID[id]++
	s.streams[st] = struct{}{}
	// An Update that came between is not missed: what is generated later is
	// newer than this.
	st.wanted = s.revision
	return nil
}

func (s *Server) remove(st *stream) {
	id := st.node.Identity.String()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
	if s.perID[id]--; s.perID[id] <= 0 {
		delete(s.perID, id)
	}
}

// The states of a type in a Status.
const (
	Synced   = "synced"   // everything sent is acknowledged
	Sent     = "sent"     // an answer is awaited
	Refused  = "refused"  // something sent was not accepted
	Unwanted = "unwanted" // not subscribed
)

// Status is the state of one connected proxy.
type Status struct {
	Node  *Node
	Since time.Time // of the stream
	Delta bool
	// Revision is the newest configuration revision that is acknowledged in
	// full or did not concern the proxy.
	Revision uint64
	// CertExpiry is the end of the certificate the stream was opened with.
	CertExpiry time.Time
	Types      map[string]TypeStatus // by short name
}

// TypeStatus is the state of one resource type of a proxy.
type TypeStatus struct {
	State   string
	Since   time.Time
	Version string
	Reason  string // of a refusal
	Count   int    // of resources the proxy was sent
}

// Status returns the state of every connected proxy, by name. Of several
// streams of one proxy the newest counts.
func (s *Server) Status() []Status {
	s.mu.Lock()
	revision := s.revision
	streams := slices.Collect(maps.Keys(s.streams))
	s.mu.Unlock()
	byKey := make(map[string]Status, len(streams))
	for _, st := range streams {
		key := st.node.Key()
		if old, ok := byKey[key]; !ok || old.Since.Before(st.since) {
			byKey[key] = st.status(revision)
		}
	}
	out := slices.Collect(maps.Values(byKey))
	slices.SortFunc(out, func(a, b Status) int { return cmp.Compare(a.Node.Key(), b.Node.Key()) })
	return out
}

// Resources returns what a proxy (name.namespace) was last sent, by type URL
// and name; false means that it is not connected.
func (s *Server) Resources(key string) (map[string]map[string]*anypb.Any, bool) {
	s.mu.Lock()
	var newest *stream
	for st := range s.streams {
		if st.node.Key() == key && (newest == nil || newest.since.Before(st.since)) {
			newest = st
		}
	}
	s.mu.Unlock()
	if newest == nil {
		return nil, false
	}
	return newest.resources(), true
}

// ServerOptions returns how a gRPC server for xDS and certificates should be
// made: bounded messages and streams, dead peers found within 30 s, and a panic
// ends its own call only.
func ServerOptions(log *slog.Logger) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(4 << 20),
		grpc.MaxConcurrentStreams(256),
		grpc.MaxHeaderListSize(64 << 10),
		grpc.ConnectionTimeout(20 * time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 15 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) (err error) {
			defer recovered(log, info.FullMethod, &err)
			return h(srv, ss)
		}),
		grpc.UnaryInterceptor(recoverUnary(log)),
	}
}

// recovered turns a panic into an error of the call.
func recovered(log *slog.Logger, method string, err *error) {
	if p := recover(); p != nil {
		log.Error("call panicked; only this call is ended", "method", method, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		*err = status.Error(codes.Internal, "internal error; the control plane's log says more")
	}
}
