package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// SocketName is the file name of the control socket in the run directory.
const SocketName = "control.sock"

// Listen opens the unix socket at path, replacing a stale one: the caller
// holds the lock of the data directory, so no other process listens there. The
// directory is made with mode 0700, and only connections of this process's own
// user are accepted.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("open control socket: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open control socket: %w", err)
	}
	short, done, err := shortPath(path)
	if err != nil {
		return nil, fmt.Errorf("open control socket: %w", err)
	}
	defer done()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("open control socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false) // short may be gone by then; the next start removes the file
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("open control socket: %w", err), l.Close())
	}
	return l, nil
}

// OwnUser wraps a unix listener: connections of other users are closed at
// once. It is for listeners that were opened elsewhere and handed over.
func OwnUser(l net.Listener, log *slog.Logger) net.Listener { return &ownUser{Listener: l, log: log} }

type ownUser struct {
	net.Listener
	log *slog.Logger
}

// Accept returns the next connection of this process's own user.
func (l *ownUser) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		uid, err := peerUID(c)
		if err == nil && uid == os.Getuid() {
			return c, nil
		}
		l.log.Warn("control socket: connection refused", "uid", uid, "error", err)
		_ = c.Close() // a stranger's connection
	}
}

// Serve answers on a unix listener until ctx ends. Connections of other users
// are refused. It returns nil after a stop by ctx.
func Serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	err := srv.Serve(OwnUser(l, log))
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve control socket: %w", err)
}

// dial connects to the socket at path, whatever the length of its name.
func dial(ctx context.Context, path string) (net.Conn, error) {
	short, done, err := shortPath(path)
	if err != nil {
		return nil, err
	}
	defer done()
	var d net.Dialer
	return d.DialContext(ctx, "unix", short)
}
