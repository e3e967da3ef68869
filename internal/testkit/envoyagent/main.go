//go:build linux

// Command envoyagent stands in a pod in the place of lateen-proxy and runs a
// stock Envoy there. It takes the same bootstrap message, buys the pod's
// certificate by the same client, and does for Envoy what an agent beside it
// does in Istio: it writes its bootstrap, serves its secrets (cluster sds-grpc),
// answers DNS from the control plane's name table, and says when it is ready.
// Configuration reaches Envoy from the control plane directly, over mutual TLS.
//
// It is used by tests only, which put an Envoy beside it under the name envoy. In
// pods that a mix (package envoyrun) leaves to lateen-proxy it becomes that. It ends when Envoy ends, and Envoy never outlives it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/bootstrap"
	"lateen.dev/lateen/internal/proxy/secret"
	"lateen.dev/lateen/internal/spiffe"
	"lateen.dev/lateen/internal/testkit/envoyrun"
)

func main() {
	// The parent-death signal of Envoy belongs to the thread that starts it.
	runtime.LockOSThread()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "envoyagent:", err)
		os.Exit(1)
	}
}

func run() error {
	fd := flag.Int("bootstrap-fd", -1, "read the bootstrap message from this open `descriptor`")
	flush := flag.Duration("log-flush", 20*time.Millisecond, "how often Envoy writes its access log")
	flag.Parse()
	in := os.NewFile(uintptr(*fd), "bootstrap")
	data, err := io.ReadAll(in) // a nil file answers with an error
	if err != nil {
		return fmt.Errorf("read bootstrap: %w", err)
	}
	b, err := bootstrap.Parse(data)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the running program: %w", err)
	}
	dir := filepath.Dir(self)
	mix, err := envoyrun.ReadMix(dir)
	if err != nil {
		return err
	}
	if !mix.Has(b.Identity.ServiceAccount) {
		if _, err := in.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("rewind the bootstrap: %w", err)
		}
		return syscall.Exec(filepath.Join(dir, envoyrun.OwnProxy), os.Args, os.Environ())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	a := &agent{
		boot: b, program: filepath.Join(dir, "envoy"), logFlush: *flush,
		log: slog.New(slog.NewTextHandler(os.Stderr, nil)), dialer: dialer(b),
	}
	return a.run(ctx)
}

// agent is what stands around one Envoy.
type agent struct {
	boot    *bootstrap.Bootstrap
	program string // Envoy
	log     *slog.Logger
	dialer  net.Dialer
	secrets *secret.Store
	names   names
	servers sync.WaitGroup

	logFlush time.Duration
}

// dialer marks the agent's own connections, which would be captured without.
func dialer(b *bootstrap.Bootstrap) net.Dialer {
	d := net.Dialer{Timeout: 10 * time.Second}
	if b.Capture != bootstrap.CaptureMark {
		return d
	}
	d.Control = func(_, _ string, c syscall.RawConn) error {
		var inner error
		err := c.Control(func(fd uintptr) {
			inner = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, bootstrap.OutboundMark)
		})
		return errors.Join(err, inner)
	}
	return d
}

// run is the life of the pod's proxy.
func (a *agent) run(ctx context.Context) error {
	// The state directory is private to the node, and from there the socket of
	// the secret server has a short name.
	if err := os.Chdir(a.boot.StateDir); err != nil {
		return fmt.Errorf("enter the state directory: %w", err)
	}
	ctx, stop := context.WithCancel(ctx)
	defer a.servers.Wait()
	defer stop()
	if err := a.identify(ctx); err != nil {
		return err
	}
	changed := newBell()
	a.servers.Go(func() { changed.follow(ctx, a.secrets.Changed()) })
	if err := a.serveSecrets(ctx, changed); err != nil {
		return err
	}
	if a.boot.Role == bootstrap.Sidecar {
		if err := a.serveNames(ctx); err != nil {
			return err
		}
	}
	if err := a.forwardInherited(ctx); err != nil {
		return err
	}
	if err := a.serveReadiness(ctx); err != nil {
		return err
	}
	return a.runEnvoy(ctx)
}

// identify buys the first certificate.
func (a *agent) identify(ctx context.Context) error {
	id, err := spiffe.New(a.boot.Identity.TrustDomain, a.boot.Identity.Namespace, a.boot.Identity.ServiceAccount)
	if err != nil {
		return err
	}
	o := secret.Options{
		ID: id, RootsPEM: a.boot.Control.RootsPEM, Address: a.boot.Control.Address, ServerName: a.boot.Control.ServerName,
		Dial: secret.DialContext(&a.dialer), Token: a.token, Log: a.log,
	}
	if fd := a.boot.Identity.SVIDFD; fd > 0 {
		o.Keep = os.NewFile(uintptr(fd), "svid")
	}
	if a.secrets, err = secret.Open(o); err != nil {
		return err
	}
	a.servers.Go(func() {
		if err := a.secrets.Run(ctx); err != nil {
			a.log.Error("the certificate is lost", "error", err)
		}
	})
	for !a.secrets.Has(secret.Default) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.secrets.Changed():
		}
	}
	return nil
}

func (a *agent) token() (string, error) {
	if a.boot.Identity.TokenFD == 0 {
		return "", errors.New("no token was handed over")
	}
	f := os.NewFile(uintptr(a.boot.Identity.TokenFD), "token")
	defer f.Close()
	data, err := io.ReadAll(f)
	return strings.TrimSpace(string(data)), err
}

// stopGrace is how long Envoy may take to end.
const stopGrace = 3 * time.Second

// runEnvoy runs Envoy until ctx or Envoy ends.
func (a *agent) runEnvoy(ctx context.Context) error {
	config, err := a.envoyBootstrap()
	if err != nil {
		return err
	}
	if err := os.WriteFile("envoy.json", config, 0o600); err != nil {
		return fmt.Errorf("write Envoy's bootstrap: %w", err)
	}
	// One worker: what a scenario counts (round robin, limits of a connection
	// pool) Envoy counts by worker. Access logs must not wait for ten seconds
	// where they are read at once.
	cmd := exec.CommandContext(ctx, a.program, "-c", "envoy.json",
		"--disable-hot-restart", "--concurrency", "1", "--file-flush-interval-msec", strconv.FormatInt(a.logFlush.Milliseconds(), 10), "--log-level", "warning",
		"--drain-time-s", "1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopGrace
	err = cmd.Run()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("envoy ended: %w", err)
}
