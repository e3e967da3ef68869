// Package xds is the proxy's ADS client. It speaks delta xDS with the control
// plane, or its state-of-the-world variant (see sotw.go), keeps what was accepted in a cache by type, and hands every change to
// its owner, who compiles it and says what is refused and which names are wanted
// next. It promises that a refused resource never displaces a good one, that a
// lost stream changes nothing that is in force, and that what was accepted is on
// disk for a restart while the control plane is away (see lastgood.go).
//
// It does not compile, warm or serve anything.
package xds

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"lateen.dev/lateen/internal/bootstrap"
	"lateen.dev/lateen/internal/proxy/snapshot"
	"lateen.dev/lateen/internal/xdspb/nds"
	"lateen.dev/lateen/internal/xdspb/origin"
)

// endpointsTimeout is how long a first endpoints answer is waited for before
// the cluster counts as having none (Envoy's initial_fetch_timeout).
const endpointsTimeout = 15 * time.Second

// Options configure a Client.
type Options struct {
	Node    bootstrap.Node
	Version string // of the program, told to the control plane
	// Address is host:port of the control plane.
	Address string
	// Dial opens connections; nil means net.Dialer.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// StateOfTheWorld speaks the older variant of ADS, for a control plane without
	// delta.
	StateOfTheWorld bool
	// TLS is asked for at every connection; nil means plaintext, which only
	// tests use.
	TLS func() *tls.Config
	// Update is called on the client's goroutine after every change, and once
	// at the start if a last good configuration was found.
	Update func(State) Answer
	// File keeps the last good configuration, "" for none; Identity is whom it
	// belongs to. MaxAge bounds its age, 0 means 24 h.
	File, Identity string
	MaxAge         time.Duration
	// Now is the wall clock; nil means time.Now.
	Now func() time.Time
	// Backoff is the first pause after a lost stream, doubled up to 8 times
	// itself and jittered; 0 means 500 ms.
	Backoff time.Duration
	Log     *slog.Logger
}

// State is everything that is known. Its maps belong to the client and are
// valid until Update returns.
type State struct {
	Resources snapshot.Resources
	Secrets   map[string]*Secret
	Names     *nds.NameTable
	Origins   *origin.Table
	// Changed is the type of the response, "" for the state from disk.
	Changed string
	// Stale says that the control plane has not been heard since the start.
	Stale bool
}

// Answer is what the owner makes of a State.
type Answer struct {
	Rejected []snapshot.Rejected
	// Endpoints, Routes and Secrets are the names wanted from now on.
	Endpoints, Routes, Secrets []string
}

// Client is the ADS client. Run it once.
type Client struct {
	o     Options
	node  *corepb.Node
	cache cache
	// wanted are the names subscribed to, of types without wildcard.
	wanted  map[string][]string
	secrets map[string]*Secret
	names   *nds.NameTable
	origins *origin.Table
	// pending are endpoint names without an answer, with their deadline.
	pending map[string]time.Time
	// agreed are the versions agreed to by type, of the state of the world.
	agreed map[string]string
	heard  bool
	dirty  bool // accepted, but not yet on disk
}

// New makes a Client.
func New(o Options) (*Client, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Backoff <= 0 {
		o.Backoff = 500 * time.Millisecond
	}
	if o.MaxAge <= 0 {
		o.MaxAge = 24 * time.Hour
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Dial == nil {
		o.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}
	}
	n, err := node(o.Node, o.Version)
	if err != nil {
		return nil, err
	}
	return &Client{
		o: o, node: n, cache: cache{}, wanted: map[string][]string{}, secrets: map[string]*Secret{},
		pending: map[string]time.Time{}, agreed: map[string]string{},
	}, nil
}

// Run loads the last good configuration, then follows the control plane until
// ctx ends. It returns no error: a control plane that is away is waited for.
func (c *Client) Run(ctx context.Context) {
	if c.o.File != "" {
		c.restore()
	}
	pause := c.o.Backoff
	for ctx.Err() == nil {
		answered, err := c.stream(ctx)
		c.persist()
		if ctx.Err() != nil {
			return
		}
		if answered {
			pause = c.o.Backoff
		}
		wait := pause/2 + rand.N(pause)
		c.o.Log.Warn("control plane is away; the configuration stays as it is",
			"address", c.o.Address, "error", err, "retry", wait.Round(time.Millisecond))
		pause = min(2*pause, 8*c.o.Backoff)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// connection is one ADS stream.
type connection struct {
	stream wire
	node   *corepb.Node // sent with the first request only
}

func (s *connection) send(r *discoverypb.DeltaDiscoveryRequest) error {
	r.Node, s.node = s.node, nil
	return s.stream.Send(r)
}

// stream runs one stream until it breaks and says whether it brought an answer.
func (c *Client) stream(ctx context.Context) (answered bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	creds := insecure.NewCredentials()
	if c.o.TLS != nil {
		creds = credentials.NewTLS(c.o.TLS())
	}
	conn, err := grpc.NewClient("passthrough:///"+c.o.Address, grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(c.o.Dial),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(256<<20)))
	if err != nil {
		return false, err
	}
	defer conn.Close()
	ads, err := c.open(ctx, discoverypb.NewAggregatedDiscoveryServiceClient(conn))
	if err != nil {
		return false, describe(err)
	}
	s := &connection{stream: ads, node: c.node}
	if err := c.subscribeAll(s); err != nil {
		return false, describe(err)
	}
	return c.follow(ctx, s)
}

// open opens a stream of the variant that is asked for.
func (c *Client) open(ctx context.Context, ads discoverypb.AggregatedDiscoveryServiceClient) (wire, error) {
	if !c.o.StateOfTheWorld {
		return ads.DeltaAggregatedResources(ctx)
	}
	stream, err := ads.StreamAggregatedResources(ctx)
	if err != nil {
		return nil, err
	}
	return newWorld(stream, c.agreed), nil
}

// follow handles responses and time until the stream breaks.
func (c *Client) follow(ctx context.Context, s *connection) (answered bool, err error) {
	responses, broken := make(chan *discoverypb.DeltaDiscoveryResponse), make(chan error, 1)
	go func() {
		for {
			r, err := s.stream.Recv()
			if err != nil {
				broken <- err
				return
			}
			select {
			case responses <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	saved := c.o.Now()
	for {
		select {
		case r := <-responses:
			answered, c.heard = true, true
			if err := c.handle(s, r); err != nil {
				return answered, describe(err)
			}
		case err := <-broken:
			return answered, describe(err)
		case <-tick.C:
			if err := c.tick(s); err != nil {
				return answered, describe(err)
			}
			// Once an hour without a change too, so that the file does not age
			// while the control plane confirms it by being there.
			if now := c.o.Now(); c.heard && (c.dirty || now.Sub(saved) > time.Hour) {
				c.dirty, saved = true, now
				c.persist()
			}
		}
	}
}

// subscribeAll sends the first request of every type, telling what we have.
func (c *Client) subscribeAll(s *connection) error {
	for _, typ := range order() {
		if !wildcard(typ) && len(c.wanted[typ]) == 0 {
			continue
		}
		r := &discoverypb.DeltaDiscoveryRequest{
			TypeUrl: typ, ResourceNamesSubscribe: c.wanted[typ], InitialResourceVersions: map[string]string{},
		}
		for name, v := range c.cache.table(typ).versions {
			r.InitialResourceVersions[name] = v
		}
		if err := s.send(r); err != nil {
			return err
		}
	}
	return nil
}

// handle takes a response in: apply, let it be judged, take back what was
// refused, ACK or NACK, subscribe to what is wanted next.
func (c *Client) handle(s *connection, r *discoverypb.DeltaDiscoveryResponse) error {
	typ := r.GetTypeUrl()
	if !slices.Contains(order(), typ) {
		return s.send(&discoverypb.DeltaDiscoveryRequest{
			TypeUrl: typ, ResponseNonce: r.GetNonce(),
			ErrorDetail: &statuspb.Status{Code: int32(codes.InvalidArgument), Message: "type was not asked for"},
		})
	}
	before := c.cache.table(typ).apply(r)
	rejected := c.decode(typ, before)
	for _, bad := range rejected {
		c.cache.table(typ).revert(bad.Name, before[bad.Name])
	}
	if len(rejected) > 0 {
		c.decode(typ, nil) // tables that are joined from several resources
	}
	answer := c.update(typ)
	for _, bad := range answer.Rejected {
		c.o.Log.Warn("a resource was refused", "type", ShortName(bad.Type), "name", bad.Name, "reason", bad.Reason)
		if u, ok := before[bad.Name]; ok && bad.Type == typ {
			c.cache.table(typ).revert(bad.Name, u)
			rejected = append(rejected, bad)
		}
	}
	c.dirty = c.dirty || len(before) > 0
	reply := &discoverypb.DeltaDiscoveryRequest{TypeUrl: typ, ResponseNonce: r.GetNonce()}
	if len(rejected) > 0 {
		reply.ErrorDetail = &statuspb.Status{Code: int32(codes.InvalidArgument), Message: reasons(rejected)}
	}
	if err := s.send(reply); err != nil {
		return err
	}
	return c.resubscribe(s, answer)
}

// decode unpacks the types that are not compiled.
func (c *Client) decode(typ string, before map[string]undo) (rejected []snapshot.Rejected) {
	t := c.cache.table(typ)
	switch typ {
	case TypeNames:
		c.names, rejected = decodeNames(t)
	case TypeOrigin:
		c.origins, rejected = decodeOrigins(t)
	case TypeSecret:
		for name := range before {
			m := t.messages[name]
			if m == nil {
				delete(c.secrets, name)
				continue
			}
			secret, err := decodeSecret(m)
			if err != nil {
				rejected = append(rejected, snapshot.Rejected{Type: typ, Name: name, Reason: err.Error()})
				continue
			}
			c.secrets[name] = secret
		}
	case snapshot.TypeEndpoint:
		for name := range before {
			delete(c.pending, name)
		}
	}
	return rejected
}

func (c *Client) update(changed string) Answer {
	return c.o.Update(State{
		Resources: c.cache.resources(), Secrets: c.secrets, Names: c.names, Origins: c.origins,
		Changed: changed, Stale: !c.heard,
	})
}

// resubscribe follows the wanted names. Resources that nobody wants any more are
// forgotten.
func (c *Client) resubscribe(s *connection, a Answer) error {
	for _, w := range []struct {
		typ   string
		names []string
	}{{snapshot.TypeEndpoint, a.Endpoints}, {snapshot.TypeRoute, a.Routes}, {TypeSecret, a.Secrets}} {
		add, gone := diff(c.wanted[w.typ], w.names)
		c.wanted[w.typ] = slices.Clone(w.names)
		t := c.cache.table(w.typ)
		for _, name := range gone {
			delete(t.messages, name)
			delete(t.versions, name)
			delete(c.pending, name)
			delete(c.secrets, name)
		}
		if w.typ == snapshot.TypeEndpoint {
			for _, name := range add {
				if t.messages[name] == nil {
					c.pending[name] = c.o.Now().Add(endpointsTimeout)
				}
			}
		}
		if len(add)+len(gone) == 0 || s == nil {
			continue
		}
		err := s.send(&discoverypb.DeltaDiscoveryRequest{
			TypeUrl: w.typ, ResourceNamesSubscribe: add, ResourceNamesUnsubscribe: gone,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// diff returns what is new and what is gone between two sorted lists.
func diff(old, next []string) (add, gone []string) {
	for _, n := range next {
		if _, ok := slices.BinarySearch(old, n); !ok {
			add = append(add, n)
		}
	}
	for _, n := range old {
		if _, ok := slices.BinarySearch(next, n); !ok {
			gone = append(gone, n)
		}
	}
	return add, gone
}

// tick does what time asks for.
func (c *Client) tick(s *connection) error {
	if w, ok := s.stream.(*world); ok {
		if err := w.flush(); err != nil {
			return err
		}
	}
	return c.expire(s)
}

// expire stops waiting for endpoints that the control plane never sent.
func (c *Client) expire(s *connection) error {
	now, late := c.o.Now(), []string(nil)
	for name, deadline := range c.pending {
		if now.After(deadline) {
			late = append(late, name)
			delete(c.pending, name)
			c.cache.table(snapshot.TypeEndpoint).messages[name] = noEndpoints(name)
		}
	}
	if len(late) == 0 {
		return nil
	}
	slices.Sort(late)
	c.o.Log.Warn("no endpoints answer in time; the clusters count as empty", "names", late)
	return c.resubscribe(s, c.update(snapshot.TypeEndpoint))
}

// describe makes a gRPC error fit to print.
func describe(err error) error {
	if st, ok := status.FromError(err); ok && st.Code() != codes.OK {
		return fmt.Errorf("%s: %s", st.Code(), st.Message())
	}
	if errors.Is(err, context.Canceled) {
		return errors.New("cancelled")
	}
	return err
}
