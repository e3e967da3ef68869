// Package agent is the lateen-proxy process: it joins identity, ADS client,
// compiled snapshots, data plane, name server, admin ports and telemetry export,
// and ends them in order. Everything it does is assembly; decisions live in the
// packages it joins.
//
// It promises that nothing is served before a configuration is in force, that
// readiness goes down before a drain begins, and that a proxy that cannot prove
// its identity any more ends instead of going on in plaintext.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"lateen.dev/lateen/internal/bootstrap"
	"lateen.dev/lateen/internal/proxy"
	"lateen.dev/lateen/internal/proxy/mtls"
	"lateen.dev/lateen/internal/proxy/record"
	"lateen.dev/lateen/internal/proxy/secret"
	"lateen.dev/lateen/internal/proxy/xds"
	"lateen.dev/lateen/internal/spiffe"
	"lateen.dev/lateen/internal/version"
)

// Agent is one running proxy.
type Agent struct {
	boot     *bootstrap.Bootstrap
	log      *slog.Logger
	started  time.Time
	sockets  *sockets
	secrets  *secret.Store
	xds      *xds.Client
	server   *proxy.Server
	exporter *record.Exporter
	records  *record.Set
	draining atomic.Bool
	// failed is set by /healthcheck/fail; quit ends the process in order.
	failed atomic.Bool
	quit   func()
	level  *slog.LevelVar

	config config
	names  names
}

// Run runs a proxy until ctx ends, then drains it. It returns an error when the
// proxy cannot start, or cannot go on because its identity ran out. level, which may be nil,
// is the one that log goes by; the admin interface changes it.
func Run(ctx context.Context, b *bootstrap.Bootstrap, log *slog.Logger, level *slog.LevelVar) error {
	ctx, quit := context.WithCancel(ctx)
	defer quit()
	limitRuntime(b)
	a := &Agent{boot: b, log: log, started: time.Now(), sockets: newSockets(b), quit: quit, level: level}
	if err := a.assemble(); err != nil {
		return fmt.Errorf("start proxy %s: %w", b.Node.ID, err)
	}
	defer a.server.Close()

	run, stop := context.WithCancelCause(context.Background())
	defer stop(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop(nil)
	if err := a.serve(run, &wg); err != nil {
		return fmt.Errorf("start proxy %s: %w", b.Node.ID, err)
	}
	wg.Go(func() {
		if err := a.secrets.Run(run); err != nil {
			stop(err)
		}
	})
	wg.Go(func() { a.follow(run) })
	wg.Go(func() { a.records.Run(run) })
	log.Info("proxy started", "node", b.Node.ID, "control", b.Control.Address, "version", version.Version)

	select {
	case <-ctx.Done():
		a.drain()
		return nil
	case <-run.Done():
		err := context.Cause(run)
		a.drain()
		return fmt.Errorf("proxy %s: %w", b.Node.ID, err)
	}
}

// Level is the log level that a bootstrap asks for.
func Level(b *bootstrap.Bootstrap) slog.Level {
	var l slog.Level
	switch b.LogLevel {
	case "debug":
		l = slog.LevelDebug
	case "warn", "warning":
		l = slog.LevelWarn
	case "error":
		l = slog.LevelError
	}
	return l
}

// limitRuntime fits the Go runtime to what the proxy was given: a thread per
// loop and one for everything else.
func limitRuntime(b *bootstrap.Bootstrap) {
	runtime.GOMAXPROCS(max(b.Concurrency, 1) + 1)
	if b.MemoryLimit > 0 {
		debug.SetMemoryLimit(b.MemoryLimit / 10 * 9)
	}
}

// assemble makes the parts; nothing runs yet but the idle event loops.
func (a *Agent) assemble() error {
	id, err := spiffe.New(a.boot.Identity.TrustDomain, a.boot.Identity.Namespace, a.boot.Identity.ServiceAccount)
	if err != nil {
		return err
	}
	o := secret.Options{
		ID: id, RootsPEM: a.boot.Control.RootsPEM, Address: a.boot.Control.Address,
		ServerName: a.boot.Control.ServerName, Dial: a.sockets.dial, Token: token(a.boot.Identity), Log: a.log,
	}
	if fd := a.boot.Identity.SVIDFD; fd > 0 {
		o.Keep = os.NewFile(uintptr(fd), "svid")
	}
	if a.secrets, err = secret.Open(o); err != nil {
		return err
	}
	a.config.init(a)
	a.names.namespace = a.boot.Identity.Namespace
	a.exporter = record.NewExporter(record.ExporterOptions{
		Hub: a.boot.Telemetry, Resolve: a.target, Log: a.log,
		Dial: a.sockets.dialContext,
	})
	a.records = record.NewSet(record.Options{
		Identity: record.IdentityOf(a.boot, version.Version), Exporter: a.exporter, Origins: a.config.place, Log: a.log,
		HubLogs: a.boot.Telemetry != "",
	})
	po := proxy.Options{
		Bootstrap: a.boot, Secrets: a.secrets, Handshakes: mtls.NewPool(mtls.Options{}),
		Recorder: a.records, Resolve: a.sockets.resolve, Log: a.log,
	}
	if a.boot.Egress != "" {
		po.Egress = a.sockets.egress
	}
	if a.server, err = proxy.NewServer(po); err != nil {
		return err
	}
	xo := xds.Options{
		Node: a.boot.Node, Version: version.Version, Address: a.boot.Control.Address, Dial: a.sockets.dial,
		TLS: a.secrets.ControlConfig, Update: a.config.update, Identity: id.String(), Log: a.log,
		StateOfTheWorld: a.boot.Control.Protocol == bootstrap.StateOfTheWorld,
	}
	if a.boot.StateDir != "" {
		xo.File = a.boot.StateDir + "/last-good"
	}
	a.xds, err = xds.New(xo)
	return err
}

// follow waits for the certificate, which ADS needs, and follows the control
// plane from then on.
func (a *Agent) follow(ctx context.Context) {
	for !a.secrets.Has(secret.Default) {
		select {
		case <-ctx.Done():
			return
		case <-a.secrets.Changed():
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { a.xds.Run(ctx) })
	wg.Go(func() { a.settle(ctx) })
	for {
		select {
		case <-ctx.Done():
			wg.Wait()
			return
		case <-a.secrets.Changed():
			a.config.rewarm()
		}
	}
}

// settle gives memory back: once the first configuration is in force, for
// starting takes several times what running does, and once each time the proxy
// falls idle, for load maps pages and grows the heap.
func (a *Agent) settle(ctx context.Context) {
	for a.ready() != nil {
		select {
		case <-ctx.Done():
			return
		case <-time.After(500 * time.Millisecond):
		}
	}
	given, last := time.Duration(0), cpuTime()
	for wait := settleAfter; ; wait = settleEvery {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		now := cpuTime()
		if quiet := now-last < wait/200; wait == settleAfter || quiet && now-given > settleWork {
			if err := giveBack(); err != nil {
				a.log.Debug("memory is kept", "error", err)
			}
			now = cpuTime()
			given = now
		}
		last = now
	}
}

// settleAfter is how long a start takes to be over, settleEvery how often the
// proxy looks whether it is idle, below half a per cent of a core, and
// settleWork what must have been done since the last time to make it worth while.
const (
	settleAfter = 2 * time.Second
	settleEvery = 5 * time.Second
	settleWork  = 30 * time.Millisecond
)

// drain takes the proxy out of service: readiness first, then connections, then
// what telemetry still waits for.
func (a *Agent) drain() {
	a.draining.Store(true)
	limit := time.Duration(max(a.boot.DrainSeconds, 1)) * time.Second
	a.log.Info("draining", "at most", limit)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := a.server.Drain(ctx); err != nil {
		a.log.Warn("not everything was drained", "error", err)
	}
	flush, cancelFlush := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancelFlush()
	a.records.Flush(flush)
	a.exporter.Drain(flush)
	a.exporter.Close()
}

var (
	errDraining = errors.New("draining")
	errFailed   = errors.New("failed by /healthcheck/fail")
	errStarting = errors.New("no certificate yet")
)

// ready says why the proxy must not get traffic yet, or any more.
func (a *Agent) ready() error {
	switch {
	case a.draining.Load():
		return errDraining
	case a.failed.Load():
		return errFailed
	case !a.secrets.Has(secret.Default):
		return errStarting
	}
	return a.config.ready()
}

// token returns the reader of the single-use bootstrap token, nil without one.
func token(id bootstrap.Identity) func() (string, error) {
	switch {
	case id.TokenFD > 0:
		return func() (string, error) {
			f := os.NewFile(uintptr(id.TokenFD), "token")
			if f == nil {
				return "", fmt.Errorf("descriptor %d is not open", id.TokenFD)
			}
			defer f.Close()
			return readToken(f)
		}
	case id.TokenFile != "":
		return func() (string, error) {
			f, err := os.Open(id.TokenFile)
			if err != nil {
				return "", err
			}
			defer f.Close()
			return readToken(f)
		}
	}
	return nil
}
