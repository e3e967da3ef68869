//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/local/node"
	"lateen.dev/lateen/internal/local/wire"
)

// Client talks to the node of a data directory over its socket. It is safe for
// concurrent use; every call is a connection of its own.
type Client struct {
	socket string
}

// NewClient returns a Client for the data directory.
func NewClient(dataDir string) *Client {
	return &Client{socket: filepath.Join(dataDir, node.RunDir, node.NodeSocket)}
}

func (c *Client) open(ctx context.Context, req node.Request, fds ...int) (*wire.Conn, error) {
	conn, err := wire.Dial(ctx, c.socket)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
			return nil, fmt.Errorf("%w: data directory %s", ErrNotRunning, filepath.Dir(filepath.Dir(c.socket)))
		}
		return nil, err
	}
	if err := conn.Send(req, fds...); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// call makes a request and hands every response to each until the last.
func (c *Client) call(ctx context.Context, req node.Request, fds []int, each func(node.Response, []int) error) error {
	conn, err := c.open(ctx, req, fds...)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	for {
		var r node.Response
		got, err := conn.Recv(&r)
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if errors.Is(err, io.EOF) {
				return errors.New("the node went away")
			}
			return err
		}
		if r.Error != "" {
			wire.CloseAll(got)
			return errors.New(r.Error)
		}
		if err := each(r, got); err != nil || r.Done {
			return err
		}
	}
}

// Pods returns the state of every pod, sorted by namespace and name.
func (c *Client) Pods(ctx context.Context) ([]PodStatus, error) {
	var out []PodStatus
	err := c.call(ctx, node.Request{Op: node.OpPods}, nil, func(r node.Response, fds []int) error {
		wire.CloseAll(fds)
		if r.Pod != nil {
			out = append(out, *r.Pod)
		}
		return nil
	})
	return out, err
}

// Pod returns the one pod called NAME, NAME.NAMESPACE, or the first ready one of
// the Deployment of that name.
func (c *Client) Pod(ctx context.Context, name string) (PodStatus, error) {
	pods, err := c.Pods(ctx)
	if err != nil {
		return PodStatus{}, err
	}
	var best *PodStatus
	var have []string
	for i := range pods {
		p := &pods[i]
		have = append(have, p.Name+"."+p.Namespace)
		if name == p.Name || name == p.Name+"."+p.Namespace {
			return *p, nil
		}
		if (name == p.OwnerName || name == p.OwnerName+"."+p.Namespace) && (best == nil || p.Ready && !best.Ready) {
			best = p
		}
	}
	if best == nil {
		slices.Sort(have)
		return PodStatus{}, fmt.Errorf("no pod %q\nhint: there are %s", name, strings.Join(have, ", "))
	}
	return *best, nil
}

// Exec runs a command in a container with the given files as its standard
// input, output and error, and returns its exit code.
func (c *Client) Exec(ctx context.Context, podName, container string, command []string, stdin, stdout, stderr *os.File) (int, error) {
	fds := []int{int(stdin.Fd()), int(stdout.Fd()), int(stderr.Fd())}
	code := 0
	err := c.call(ctx, node.Request{Op: node.OpExec, Pod: podName, Container: container, Command: command}, fds,
		func(r node.Response, fds []int) error {
			wire.CloseAll(fds)
			code = r.Exit
			return nil
		})
	return code, err
}

// Dial opens a connection to a port of a pod's own loopback, past its proxy, as
// port-forward does.
func (c *Client) Dial(ctx context.Context, podName string, port int) (net.Conn, error) {
	var conn net.Conn
	err := c.call(ctx, node.Request{Op: node.OpDial, Pod: podName, Port: port}, nil, func(_ node.Response, fds []int) error {
		if len(fds) != 1 {
			wire.CloseAll(fds)
			return errors.New("the node answered without a connection")
		}
		f := os.NewFile(uintptr(fds[0]), "pod")
		defer f.Close() // FileConn duplicates
		var err error
		conn, err = net.FileConn(f)
		return err
	})
	return conn, err
}

// PortForward accepts on l until ctx ends and joins every connection with a port
// of the pod.
func (c *Client) PortForward(ctx context.Context, l net.Listener, podName string, port int) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		down, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("port-forward: %w", err)
		}
		go func() {
			defer down.Close()
			up, err := c.Dial(ctx, podName, port)
			if err != nil {
				return // the caller sees a closed connection
			}
			defer up.Close()
			done := make(chan struct{}, 2)
			for _, pair := range [][2]net.Conn{{up, down}, {down, up}} {
				go func() {
					_, _ = io.Copy(pair[0], pair[1]) // ends with either side
					if w, ok := pair[0].(*net.TCPConn); ok {
						_ = w.CloseWrite()
					}
					done <- struct{}{}
				}()
			}
			<-done
			<-done
		}()
	}
}

// followInterval is how often a followed log is looked at.
const followInterval = 200 * time.Millisecond

// Logs copies what a container has written to w; container "proxy" or
// "istio-proxy" is the proxy, "" or "app" the first container. With follow it goes
// on until ctx ends.
func (c *Client) Logs(ctx context.Context, podName, container string, follow bool, w io.Writer) error {
	p, err := c.Pod(ctx, podName)
	if err != nil {
		return err
	}
	path := ""
	for _, cs := range p.Containers {
		isProxy := cs.Name == ProxyContainer
		if cs.Name == container || (container == "proxy" && isProxy) || ((container == "" || container == "app") && !isProxy) {
			path = cs.Log
			break
		}
	}
	if path == "" && container == "" && len(p.Containers) == 1 {
		path = p.Containers[0].Log // a gateway is its proxy
	}
	if path == "" {
		var have []string
		for _, cs := range p.Containers {
			have = append(have, cs.Name)
		}
		return fmt.Errorf("pod %s has no container %q\nhint: there are %s", p.Name, container, strings.Join(have, ", "))
	}
	if old, err := os.Open(path + ".1"); err == nil {
		_, err = io.Copy(w, old)
		old.Close()
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
	}
	return tail(ctx, path, follow, w)
}

// tail copies a log file, and what is appended to it or to the file that takes
// its place.
func tail(ctx context.Context, path string, follow bool, w io.Writer) error {
	var f *os.File
	defer func() {
		if f != nil {
			f.Close()
		}
	}()
	for {
		if f == nil {
			var err error
			if f, err = os.Open(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("read log: %w", err)
			}
			if err != nil {
				f = nil
			}
		}
		if f != nil {
			if _, err := io.Copy(w, f); err != nil {
				return fmt.Errorf("read log: %w", err)
			}
		}
		if !follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followInterval):
		}
		if f != nil && replaced(f, path) {
			_, err := io.Copy(w, f) // what came between
			f.Close()
			f = nil
			if err != nil {
				return fmt.Errorf("read log: %w", err)
			}
		}
	}
}

func replaced(f *os.File, path string) bool {
	a, err1 := f.Stat()
	b, err2 := os.Stat(path)
	return err1 == nil && err2 == nil && !os.SameFile(a, b)
}

// Delete stops a pod gracefully; its Deployment replaces it.
func (c *Client) Delete(ctx context.Context, podName string) error {
	return c.simple(ctx, node.Request{Op: node.OpDelete, Pod: podName})
}

// Signal sends a signal to a container's first process, or to the proxy
// (container "istio-proxy").
func (c *Client) Signal(ctx context.Context, podName, container string, sig syscall.Signal) error {
	return c.simple(ctx, node.Request{Op: node.OpSignal, Pod: podName, Container: container, Signal: int(sig)})
}

// Down asks the node to stop everything gracefully and waits until it has.
func (c *Client) Down(ctx context.Context) error {
	if err := c.simple(ctx, node.Request{Op: node.OpDown}); err != nil {
		return err
	}
	for {
		if _, err := c.Info(ctx); errors.Is(err, ErrNotRunning) {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Info describes the node.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var info Info
	err := c.call(ctx, node.Request{Op: node.OpInfo}, nil, func(r node.Response, fds []int) error {
		wire.CloseAll(fds)
		if r.Info != nil {
			info = *r.Info
		}
		return nil
	})
	return info, err
}

// Events calls fn with everything that has happened and then with what happens,
// until ctx ends or fn returns an error.
func (c *Client) Events(ctx context.Context, fn func(Event) error) error {
	return c.call(ctx, node.Request{Op: node.OpEvents}, nil, func(r node.Response, fds []int) error {
		wire.CloseAll(fds)
		if r.Event == nil {
			return nil
		}
		return fn(*r.Event)
	})
}

func (c *Client) simple(ctx context.Context, req node.Request) error {
	return c.call(ctx, req, nil, func(_ node.Response, fds []int) error {
		wire.CloseAll(fds)
		return nil
	})
}
