package ads

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"lateen.dev/lateen/internal/spiffe"
)

// service is the server as one listener sees it.
type service struct {
	discoverypb.UnimplementedAggregatedDiscoveryServiceServer
	server      *Server
	requireSVID bool
}

// StreamAggregatedResources serves the state-of-the-world variant.
func (s *service) StreamAggregatedResources(ss discoverypb.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return s.serve(ss.Context(), false, func() (request, *corepb.Node, error) {
		r, err := ss.Recv()
		if err != nil {
			return request{}, nil, err
		}
		return request{
			typeURL: r.GetTypeUrl(), nonce: r.GetResponseNonce(), names: r.GetResourceNames(),
			nack: r.GetErrorDetail() != nil, refusal: printable(r.GetErrorDetail().GetMessage()),
		}, r.GetNode(), nil
	}, func(r response) error {
		resources := make([]*anypb.Any, len(r.resources))
		for i, e := range r.resources {
			resources[i] = e.any
		}
		return ss.Send(&discoverypb.DiscoveryResponse{
			TypeUrl: r.typeURL, Nonce: r.nonce, VersionInfo: r.version, Resources: resources,
			ControlPlane: &corepb.ControlPlane{Identifier: "lateen"},
		})
	})
}

// DeltaAggregatedResources serves the delta variant.
func (s *service) DeltaAggregatedResources(ss discoverypb.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return s.serve(ss.Context(), true, func() (request, *corepb.Node, error) {
		r, err := ss.Recv()
		if err != nil {
			return request{}, nil, err
		}
		return request{
			typeURL: r.GetTypeUrl(), nonce: r.GetResponseNonce(),
			subscribe: r.GetResourceNamesSubscribe(), unsubscribe: r.GetResourceNamesUnsubscribe(), initial: r.GetInitialResourceVersions(),
			nack: r.GetErrorDetail() != nil, refusal: printable(r.GetErrorDetail().GetMessage()),
		}, r.GetNode(), nil
	}, func(r response) error {
		resources := make([]*discoverypb.Resource, len(r.resources))
		for i, e := range r.resources {
			resources[i] = &discoverypb.Resource{Name: e.name, Version: e.version, Resource: e.any}
		}
		return ss.Send(&discoverypb.DeltaDiscoveryResponse{
			TypeUrl: r.typeURL, Nonce: r.nonce, SystemVersionInfo: r.version, Resources: resources, RemovedResources: r.removed,
			ControlPlane: &corepb.ControlPlane{Identifier: "lateen"},
		})
	})
}

// printable makes a proxy's words fit for a log line and a terminal.
func printable(s string) string {
	const most = 2000
	out := make([]rune, 0, min(len(s), most))
	for _, r := range s {
		if len(out) == most {
			return string(out) + "…"
		}
		if r < ' ' || r == 0x7f {
			r = ' '
		}
		out = append(out, r)
	}
	return string(out)
}

// stream is one connected proxy. Its goroutine owns the session; the lock lets
// status look in.
type stream struct {
	server *Server
	node   *Node
	since  time.Time
	expiry time.Time // of the client certificate; zero without one
	log    *slog.Logger
	send   func(response) error
	wake   chan struct{}

	mu      sync.Mutex
	session *session
	// wanted is the newest revision that touches the node. A push is due while
	// it is newer than what the session has.
	wanted uint64
	// removeAt is when what went away may be removed; zero when nothing waits.
	removeAt time.Time
}

// serve runs one stream of either variant.
func (s *service) serve(ctx context.Context, delta bool, recv func() (request, *corepb.Node, error), send func(response) error) error {
	id, expiry, err := s.identify(ctx)
	if err != nil {
		return err // before a single byte of the request is looked at
	}
	first, nodepb, err := recv()
	if err != nil {
		return ended(err)
	}
	node, err := ParseNode(nodepb, id)
	if errors.Is(err, errIdentity) {
		s.server.o.Log.Warn("proxy refused", "node", nodepb.GetId(), "identity", id.String(), "error", err)
		return status.Error(codes.PermissionDenied, err.Error())
	}
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if err := s.server.admit(ctx, node); err != nil {
		s.server.o.Log.Warn("proxy refused", "node", node.ID, "identity", id.String(), "error", err)
		return err
	}
	st := &stream{
		server: s.server, node: node, since: s.server.o.Now(), expiry: expiry,
		log: s.server.o.Log.With("proxy", node.Key()), send: send, wake: make(chan struct{}, 1),
		session: newSession(node, delta, s.server.o.MaxNames),
	}
	if err := s.server.add(st); err != nil {
		return err
	}
	defer s.server.remove(st)
	st.log.Info("proxy connected", "role", node.Role, "delta", delta, "agent", node.Agent)
	defer st.log.Info("proxy disconnected")
	return st.run(ctx, first, recv)
}

// identify returns the caller's identity and until when it is good.
func (s *service) identify(ctx context.Context) (spiffe.ID, time.Time, error) {
	p, _ := peer.FromContext(ctx)
	if p != nil {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(info.State.VerifiedChains) > 0 {
			leaf := info.State.VerifiedChains[0][0]
			id, err := spiffe.FromCertificate(leaf)
			if err != nil {
				return spiffe.ID{}, time.Time{}, status.Error(codes.Unauthenticated, err.Error())
			}
			return id, leaf.NotAfter, nil
		}
	}
	if s.requireSVID {
		return spiffe.ID{}, time.Time{}, status.Error(codes.Unauthenticated, "configuration is served to holders of a certificate of this mesh only")
	}
	return spiffe.ID{}, time.Time{}, nil
}

// admit asks the hook once there is a configuration to judge by.
func (s *Server) admit(ctx context.Context, n *Node) error {
	if s.o.Admit == nil {
		return nil
	}
	if err := s.await(ctx); err != nil {
		return err
	}
	view, err := s.o.Admit(n)
	if err == nil {
		n.View = view
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.PermissionDenied, err.Error())
}

// await blocks until the first Update.
func (s *Server) await(ctx context.Context) error {
	select {
	case <-s.ready:
		return nil
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}

// ended translates the end of a stream: a client that leaves is no error.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// run is the life of a stream: requests in, responses out, pushes in between.
func (st *stream) run(ctx context.Context, first request, recv func() (request, *corepb.Node, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	requests, broken := make(chan request), make(chan error, 1)
	go func() {
		// Ends when the handler returns: gRPC then ends the stream's context.
		for {
			r, _, err := recv()
			if err != nil {
				broken <- err
				return
			}
			select {
			case requests <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	if err := st.server.await(ctx); err != nil {
		return err
	}
	if err := st.receive(ctx, first); err != nil {
		return err
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		next, err := st.progress(ctx)
		if err != nil {
			return err
		}
		timer.Reset(next)
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case err := <-broken:
			return ended(err)
		case r := <-requests:
			if err := st.receive(ctx, r); err != nil {
				return err
			}
		case <-st.wake:
		case <-timer.C:
		}
	}
}

// receive takes one request in and sends what it calls for.
func (st *stream) receive(ctx context.Context, r request) error {
	if r.typeURL == "" {
		return status.Error(codes.InvalidArgument, "request without type_url")
	}
	st.mu.Lock()
	fresh := st.session.set == nil
	st.mu.Unlock()
	if fresh {
		set, err := st.generate(ctx)
		if err != nil {
			return err
		}
		st.mu.Lock()
		st.session.set = set
		st.mu.Unlock()
	}
	now := st.server.o.Now()
	st.mu.Lock()
	out, err := st.session.handle(r, now)
	if st.removeAt.IsZero() && st.session.leftovers() {
		st.removeAt = now.Add(st.server.o.RemovalDelay)
	}
	st.mu.Unlock()
	if r.nack {
		st.log.Warn("proxy refused a push", "type", ShortName(r.typeURL), "nonce", r.nonce, "reason", r.refusal)
	}
	if err != nil {
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	return st.sendAll(out)
}

// progress pushes and removes what is due, and returns when to look again.
func (st *stream) progress(ctx context.Context) (time.Duration, error) {
	const idle = time.Minute
	o := &st.server.o
	now := o.Now()
	if !st.expiry.IsZero() && now.After(st.expiry) {
		return 0, status.Error(codes.Unauthenticated, "the certificate of this stream has expired: connect with the new one")
	}
	st.mu.Lock()
	s := st.session
	if oldest, waits := s.oldest(); waits {
		wait := oldest.Add(o.AckTimeout).Sub(now)
		if wait > 0 {
			st.mu.Unlock()
			return min(wait, idle), nil
		}
		st.log.Warn("proxy does not answer pushes", "sent", oldest)
		s.abandon(now.Add(-o.AckTimeout))
	}
	due := s.set.revision < st.wanted
	st.mu.Unlock()
	if due {
		set, err := st.generate(ctx)
		if err != nil {
			return 0, err
		}
		st.mu.Lock()
		out := s.offer(set, now)
		if s.leftovers() {
			st.removeAt = now.Add(o.RemovalDelay)
		}
		st.mu.Unlock()
		return 0, st.sendAll(out)
	}
	return st.remove(now, idle)
}

// remove sends removals when their time has come.
func (st *stream) remove(now time.Time, idle time.Duration) (time.Duration, error) {
	st.mu.Lock()
	if st.removeAt.IsZero() {
		st.mu.Unlock()
		return idle, nil
	}
	if wait := st.removeAt.Sub(now); wait > 0 {
		st.mu.Unlock()
		return min(wait, idle), nil
	}
	st.removeAt = time.Time{}
	out := st.session.removals(now)
	st.mu.Unlock()
	return idle, st.sendAll(out)
}

// generate makes the node's resources, a bounded number at a time.
func (st *stream) generate(ctx context.Context) (*resourceSet, error) {
	select {
	case st.server.slots <- struct{}{}:
		defer func() { <-st.server.slots }()
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	r, err := st.server.o.Generator.Generate(st.node)
	var set *resourceSet
	if err == nil {
		// Secrets never go to a caller who proved nothing.
		set, err = st.server.encoder.encode(r, st.node.Authenticated())
	}
	if err != nil {
		st.log.Error("make resources", "error", err)
		return nil, status.Error(codes.Unavailable, "the configuration of this proxy could not be made; the control plane's log says why")
	}
	return set, nil
}

func (st *stream) sendAll(out []response) error {
	for _, r := range out {
		if err := st.send(r); err != nil {
			return err
		}
		if st.log.Enabled(context.Background(), slog.LevelDebug) {
			st.log.Debug("sent", "type", ShortName(r.typeURL), "nonce", r.nonce, "resources", len(r.resources), "removed", len(r.removed))
		}
	}
	return nil
}

// touch says that a revision concerns this proxy.
func (st *stream) touch(revision uint64) {
	st.mu.Lock()
	st.wanted = max(st.wanted, revision)
	st.mu.Unlock()
	select {
	case st.wake <- struct{}{}:
	default: // it will look anyway
	}
}

func (st *stream) status(revision uint64) Status {
	st.mu.Lock()
	defer st.mu.Unlock()
	out := Status{
		Node: st.node, Since: st.since, Delta: st.session.delta, Revision: st.session.acked, CertExpiry: st.expiry,
		Types: make(map[string]TypeStatus),
	}
	if st.session.acked >= st.wanted {
		out.Revision = revision
	}
	for _, t := range pushOrder {
		out.Types[ShortName(t)] = TypeStatus{State: Unwanted, Since: st.since}
	}
	for t, sub := range st.session.subs {
		ts := TypeStatus{State: Synced, Since: sub.since, Version: sub.version}
		if len(sub.inflight) > 0 {
			ts.State = Sent
		}
		if len(sub.refused) > 0 {
			ts.State, ts.Reason = Refused, sub.reason
		}
		for _, e := range sub.known {
			if e != absent {
				ts.Count++
			}
		}
		out.Types[ShortName(t)] = ts
	}
	return out
}

func (st *stream) resources() map[string]map[string]*anypb.Any {
	st.mu.Lock()
	defer st.mu.Unlock()
	out := make(map[string]map[string]*anypb.Any)
	for t, sub := range st.session.subs {
		out[t] = make(map[string]*anypb.Any)
		for name, e := range sub.known {
			if e != absent && e.any != nil {
				out[t][name] = e.any
			}
		}
	}
	return out
}

// recoverUnary is the unary twin of the stream interceptor in ServerOptions.
func recoverUnary(log *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (resp any, err error) {
		defer recovered(log, info.FullMethod, &err)
		return h(ctx, req)
	}
}
