// Package control is the control plane as one process: configuration in, xDS
// and certificates out. It wires the parts together and owns the state between
// them.
//
//	files ──┐                         ┌─→ watchers (the supervisor, the API)
//	applied ┼→ accept → addresses ────┤
//	local ──┘  (validate, last good)  └─→ mesh.Build → ads push → analyze
//
// One goroutine owns what changes (controller); everybody else reads an
// immutable View through an atomic pointer, or sends the owner a function. A
// broken object is refused alone and its last good version stays in force, also
// over a restart. Sockets are given, never opened here.
package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"lateen.dev/lateen/internal/api"
	"lateen.dev/lateen/internal/control/ads"
	"lateen.dev/lateen/internal/control/ca"
	"lateen.dev/lateen/internal/control/source/file"
	"lateen.dev/lateen/internal/spiffe"
	"lateen.dev/lateen/internal/xdspb/istioca"
)

// Options is everything a control plane is made of.
type Options struct {
	// DataDir keeps root, tokens, addresses, applied objects and last good
	// versions; it is locked while Run runs.
	DataDir string
	// Paths are the manifests to watch.
	Paths []string

	// XDS is port 15012: xDS and certificates over mTLS.
	XDS net.Listener
	// Plain is port 15010, plaintext xDS. It must be reachable by the control
	// process itself only. Nil means none.
	Plain net.Listener
	// API is the unix socket of the control API, from api.Listen. Nil means
	// none.
	API net.Listener
	// Debug is port 15014: metrics and Istio's debug pages in plaintext, for the
	// control process's own loopback only. Nil means none.
	Debug net.Listener

	// TrustDomain, when empty, is the MeshConfig's at start, else
	// cluster.local. It is fixed while the process lives.
	TrustDomain string
	// ClusterID and Version are shown to proxies and people.
	ClusterID, Version string
	// CertLifetime of SVIDs; 0 means 24 h.
	CertLifetime time.Duration
	// Plugin replaces the self-signed root.
	Plugin *ca.Plugin
	// ServiceCIDRs are the prefixes that Services and ServiceEntry hosts
	// without an address get one of: IPv4 first, then IPv6. None means that
	// nothing is allocated.
	ServiceCIDRs []netip.Prefix

	// AwaitLocal holds back all configuration until the supervisor has written
	// its complete local state once: a control plane that restarts must not push
	// a mesh without endpoints.
	AwaitLocal bool
	// DebounceQuiet is how long changes must rest before they are acted on,
	// DebounceMax how long they may be put off at most. 0 means 25 ms and 10 s.
	DebounceQuiet, DebounceMax time.Duration

	// Mounts adds handlers to the control API, by pattern.
	Mounts map[string]http.Handler
	// Observe is called with every new View, on the owner's goroutine: it must
	// not block.
	Observe func(*View)
	// Now is the clock of certificates and status; nil means the wall clock.
	Now func() time.Time
	Log *slog.Logger
}

// Run runs a control plane until ctx ends or a listener breaks. It closes the
// listeners. The error is nil after an ordinary end.
func Run(ctx context.Context, o Options) error {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.XDS == nil || o.Log == nil {
		return errors.New("run control plane: Options.XDS and Options.Log are required")
	}
	lock, err := lockData(o.DataDir)
	if err != nil {
		return err
	}
	err = run(ctx, o)
	return errors.Join(err, lock.release())
}

func run(ctx context.Context, o Options) error {
	source := file.New(o.Paths, o.Log)
	c, err := newController(o, source.Load())
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	done := make(chan struct{})
	tasks := 0
	start := func(what string, f func(context.Context) error) {
		tasks++
		go func() {
			defer func() { done <- struct{}{} }()
			if err := f(ctx); err != nil && ctx.Err() == nil {
				stop(fmt.Errorf("%s: %w", what, err))
			}
		}()
	}
	start("controller", c.run)
	start("watch files", func(ctx context.Context) error {
		return source.Run(ctx, func(s file.State) { c.call(ctx, func() { c.setFiles(s) }) })
	})
	start("serve xDS", func(ctx context.Context) error {
		return serveGRPC(ctx, o.XDS, c.grpcServer(true))
	})
	if o.Plain != nil {
		start("serve plaintext xDS", func(ctx context.Context) error {
			return serveGRPC(ctx, o.Plain, c.grpcServer(false))
		})
	}
	if o.API != nil {
		start("serve API", func(ctx context.Context) error {
			return api.Serve(ctx, o.API, api.Handler(&backend{c: c}, o.Mounts, o.Log), o.Log)
		})
	}
	if o.Debug != nil {
		start("serve debug pages", func(ctx context.Context) error { return c.serveDebug(ctx, o.Debug) })
	}
	<-ctx.Done()
	for range tasks {
		<-done
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	return nil
}

// grpcServer makes the server of one xDS port. Certificates are bought over
// TLS only.
func (c *controller) grpcServer(secure bool) *grpc.Server {
	opts := ads.ServerOptions(c.log)
	if secure {
		opts = append(opts, grpc.Creds(credentials.NewTLS(c.ca.ServerTLS())))
	}
	s := grpc.NewServer(opts...)
	c.ads.Register(s, secure)
	if secure {
		istioca.Register(s, c.ca)
	}
	return s
}

func serveGRPC(ctx context.Context, l net.Listener, s *grpc.Server) error {
	stop := context.AfterFunc(ctx, s.Stop)
	defer stop()
	return s.Serve(l)
}

// openCA opens the authority in the trust domain that the options, or else the
// mesh configuration at start, name.
func openCA(o Options, fromMesh string) (*ca.Authority, error) {
	td := o.TrustDomain
	if td == "" {
		td = fromMesh
	}
	if td == "" {
		td = spiffe.DefaultTrustDomain
	}
	return ca.Open(ca.Options{
		Dir: filepath.Join(o.DataDir, "ca"), TrustDomain: td, Lifetime: o.CertLifetime,
		Plugin: o.Plugin, Now: o.Now, Log: o.Log,
	})
}
