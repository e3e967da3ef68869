package node

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/api"
	"lateen.dev/lateen/internal/local/inherit"
	"lateen.dev/lateen/internal/local/logfile"
	"lateen.dev/lateen/internal/local/netns"
	"lateen.dev/lateen/internal/local/reap"
	"lateen.dev/lateen/internal/local/supervisor"
)

// control keeps the control process running. Its listening sockets belong to the
// node and outlive it.
type control struct {
	n     *node
	files map[string]*os.File
	log   *logfile.File

	mu       sync.Mutex
	proc     *reap.Process
	restarts int
	stopping bool
	ended    chan struct{}
}

// startControl opens the sockets and starts the control process for the first
// time.
func (n *node) startControl(ctx context.Context, group *sync.WaitGroup) (*control, error) {
	c := &control{n: n, files: map[string]*os.File{}, log: logfile.New(n.dir(LogDir, "control.log")), ended: make(chan struct{})}
	for name, fd := range n.inherited {
		c.files[name] = os.NewFile(uintptr(fd), name)
	}
	if err := c.listen(); err != nil {
		return nil, err
	}
	group.Go(func() { c.supervise(ctx) })
	return c, nil
}

// listen opens the sockets inside the node.
func (c *control) listen() error {
	l, err := api.Listen(c.n.dir("run", api.SocketName))
	if err != nil {
		return err
	}
	if err := c.keep(inherit.API, l); err != nil {
		return err
	}
	for name, addr := range map[string]string{
		inherit.XDS: hostPort(netns.Node4, 15012), inherit.XDSPlain: "127.0.0.1:15010",
		inherit.HubGRPC: hostPort(netns.Node4, 4317), inherit.HubHTTP: hostPort(netns.Node4, 4318),
	} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return fmt.Errorf("listen for the control process: %w", err)
		}
		if err := c.keep(name, l); err != nil {
			return err
		}
	}
	return nil
}

func (c *control) keep(name string, l net.Listener) error {
	defer l.Close()
	f, err := l.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		return fmt.Errorf("keep socket %s: %w", name, err)
	}
	c.files[name] = f
	return nil
}

// supervise starts the process again whenever it ends.
func (c *control) supervise(ctx context.Context) {
	defer close(c.ended)
	backoff := 50 * time.Millisecond
	told := ""
	for {
		start := time.Now()
		reason, last := "ended", ""
		proc, err := c.start()
		if err != nil {
			reason = err.Error()
		} else {
			<-proc.Done()
			reason = fmt.Sprintf("ended with code %d", proc.Code())
			if words := logfile.LastWords(c.log.Path()); words != "" && proc.Code() < 128 {
				last = ": " + words
			}
		}
		c.mu.Lock()
		c.proc = nil
		stopping := c.stopping
		c.restarts++
		c.mu.Unlock()
		if stopping || ctx.Err() != nil {
			return
		}
		if time.Since(start) > 10*time.Second {
			backoff, told = 50*time.Millisecond, ""
		}
		if reason != told { // the same failure again is no news
			told = reason
			c.n.event(supervisor.Event{
				Kind: "control", Error: true,
				Message: fmt.Sprintf("the control process %s%s; starting it again; its log is %s", reason, last, c.log.Path()),
			})
		}
		select {
		case <-time.After(backoff):
		case <-c.n.stop:
			return
		}
		backoff = min(2*backoff, 5*time.Second)
	}
}

func (c *control) start() (*reap.Process, error) {
	out, err := c.log.Writer()
	if err != nil {
		return nil, err
	}
	defer unix.Close(out)
	null, err := os.Open("/dev/null")
	if err != nil {
		return nil, fmt.Errorf("start the control process: %w", err)
	}
	defer null.Close()
	files := []uintptr{null.Fd(), uintptr(out), uintptr(out)}
	fds := map[string]int{}
	for name, f := range c.files {
		fds[name] = len(files)
		files = append(files, f.Fd())
	}
	env := append(withoutLateen(os.Environ()), c.n.cfg.ControlEnv...)
	env = append(env, inherit.Environ(fds))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopping {
		return nil, fmt.Errorf("start the control process: the node is stopping")
	}
	proc, err := c.n.reaper.Start(c.n.cfg.Control[0], c.n.cfg.Control, &syscall.ProcAttr{
		Env: env, Files: files, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	c.proc = proc
	return proc, err
}

func withoutLateen(env []string) []string {
	var out []string
	for _, e := range env {
		if !strings.HasPrefix(e, "LATEEN_LISTENERS=") {
			out = append(out, e)
		}
	}
	return out
}

// end stops the control process gracefully.
func (c *control) end() {
	c.mu.Lock()
	c.stopping = true
	proc := c.proc
	c.mu.Unlock()
	if proc != nil {
		proc.Signal(unix.SIGTERM)
	}
	t := time.NewTimer(3 * time.Second)
	defer t.Stop()
	select {
	case <-c.ended:
	case <-t.C:
		if proc != nil {
			proc.Signal(unix.SIGKILL)
		}
		<-c.ended
	}
	c.log.Close()
}

// state returns the process and how often it was started again.
func (c *control) state() (pid, restarts int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.proc != nil {
		pid = c.proc.PID
	}
	return pid, c.restarts
}
