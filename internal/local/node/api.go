package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/local/pod"
	"lateen.dev/lateen/internal/local/probe"
	"lateen.dev/lateen/internal/local/report"
	"lateen.dev/lateen/internal/local/supervisor"
	"lateen.dev/lateen/internal/local/wire"
)

// Request is what a client of the node's socket asks; one per connection.
type Request struct {
	Op        Op       `json:"op"`
	Pod       string   `json:"pod,omitempty"`
	Container string   `json:"container,omitempty"`
	Command   []string `json:"command,omitempty"`
	Port      int      `json:"port,omitempty"`
	Signal    int      `json:"signal,omitempty"`
}

// Op is an operation of the node's socket.
type Op string

// The operations. Exec comes with three descriptors; Dial answers with one.
const (
	OpPods   Op = "pods"
	OpExec   Op = "exec"
	OpDial   Op = "dial"
	OpDelete Op = "delete"
	OpSignal Op = "signal"
	OpInfo   Op = "info"
	OpEvents Op = "events"
	OpDown   Op = "down"
)

// Response is an answer. A listing is one response per item and a last one with
// Done.
type Response struct {
	Error string            `json:"error,omitempty"`
	Pod   *pod.Status       `json:"pod,omitempty"`
	Event *supervisor.Event `json:"event,omitempty"`
	Info  *Info             `json:"info,omitempty"`
	Exit  int               `json:"exit,omitempty"`
	Done  bool              `json:"done,omitempty"`
}

// Info describes the node.
type Info = report.Info

// history keeps the last events for clients that come later.
type history struct {
	mu      sync.Mutex
	events  []supervisor.Event
	waiters map[chan supervisor.Event]bool
}

const maxHistory = 500

func (h *history) add(e supervisor.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.events) == maxHistory {
		h.events = append(h.events[:0], h.events[1:]...)
	}
	h.events = append(h.events, e)
	for ch := range h.waiters {
		select {
		case ch <- e:
		default: // a client that does not read misses events
		}
	}
}

// subscribe returns the events so far and a channel of those to come.
func (h *history) subscribe() ([]supervisor.Event, chan supervisor.Event, func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	ch := make(chan supervisor.Event, maxHistory)
	if h.waiters == nil {
		h.waiters = map[chan supervisor.Event]bool{}
	}
	h.waiters[ch] = true
	return append([]supervisor.Event(nil), h.events...), ch, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.waiters, ch)
	}
}

// serveAPI answers the command line on the node's socket. Only the user who
// started the node is served.
func (n *node) serveAPI(ctx context.Context, group *sync.WaitGroup) error {
	l, err := wire.Listen(n.dir(RunDir, NodeSocket))
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	group.Go(func() {
		for {
			uc, err := l.AcceptUnix()
			if err != nil {
				if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
					return
				}
				time.Sleep(10 * time.Millisecond)
				continue
			}
			go n.serve(ctx, wire.New(uc))
		}
	})
	return nil
}

func (n *node) serve(ctx context.Context, c *wire.Conn) {
	defer c.Close()
	if uid, err := c.PeerUID(); err != nil || uid != os.Getuid() {
		n.log.Warn("a stranger called the node", "uid", uid, "error", err)
		return
	}
	var req Request
	fds, err := c.Recv(&req)
	if err != nil {
		return
	}
	defer wire.CloseAll(fds)
	// The client is gone when its connection ends: what it asked for ends too.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		var more Request
		_, _ = c.Recv(&more) // there is no second request
		cancel()
	}()
	if err := n.answer(ctx, c, req, fds); err != nil {
		_ = c.Send(Response{Error: err.Error(), Done: true}) // the client may be gone
	}
}

func (n *node) answer(ctx context.Context, c *wire.Conn, req Request, fds []int) error {
	switch req.Op {
	case OpPods:
		for _, st := range n.sup.Pods() {
			if err := c.Send(Response{Pod: &st}); err != nil {
				return err
			}
		}
		return c.Send(Response{Done: true})
	case OpExec:
		return n.exec(ctx, c, req, fds)
	case OpDial:
		return n.dial(ctx, c, req)
	case OpDelete:
		if err := n.sup.Delete(req.Pod); err != nil {
			return err
		}
		return c.Send(Response{Done: true})
	case OpSignal:
		p, err := n.sup.Find(req.Pod)
		if err != nil {
			return err
		}
		if err := p.Signal(req.Container, unix.Signal(req.Signal)); err != nil {
			return err
		}
		return c.Send(Response{Done: true})
	case OpInfo:
		return c.Send(Response{Info: n.info(), Done: true})
	case OpEvents:
		return n.events(ctx, c)
	case OpDown:
		n.requestStop()
		return c.Send(Response{Done: true})
	}
	return fmt.Errorf("unknown operation %q", req.Op)
}

func (n *node) info() *Info {
	i := &Info{ControlLog: n.control.log.Path()}
	i.ControlPID, i.ControlRestarts = n.control.state()
	for _, st := range n.sup.Pods() {
		i.Pods++
		if st.Ready {
			i.Ready++
		}
	}
	return i
}

func (n *node) exec(ctx context.Context, c *wire.Conn, req Request, fds []int) error {
	if len(fds) != 3 {
		return fmt.Errorf("exec needs three descriptors, got %d", len(fds))
	}
	p, err := n.sup.Find(req.Pod)
	if err != nil {
		return err
	}
	code, err := p.Exec(ctx, req.Container, req.Command, &pod.Stdio{fds[0], fds[1], fds[2]})
	if err != nil {
		return err
	}
	return c.Send(Response{Exit: code, Done: true})
}

// dial connects to a port on the pod's loopback, as kubectl port-forward does.
func (n *node) dial(ctx context.Context, c *wire.Conn, req Request) error {
	p, err := n.sup.Find(req.Pod)
	if err != nil {
		return err
	}
	if p.NetNS() < 0 {
		return errors.New("the pod has no network yet")
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := probe.Dial(ctx, p.NetNS(), net.JoinHostPort("127.0.0.1", strconv.Itoa(req.Port)))
	if err != nil {
		return err
	}
	defer conn.Close()
	f, err := conn.(*net.TCPConn).File()
	if err != nil {
		return fmt.Errorf("hand over the connection: %w", err)
	}
	defer f.Close()
	return c.Send(Response{Done: true}, int(f.Fd()))
}

func (n *node) events(ctx context.Context, c *wire.Conn) error {
	past, ch, done := n.history.subscribe()
	defer done()
	for _, e := range past {
		if err := c.Send(Response{Event: &e}); err != nil {
			return err
		}
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-ch:
			if err := c.Send(Response{Event: &e}); err != nil {
				return err
			}
		}
	}
}
