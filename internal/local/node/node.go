// Package node is PID 1 of the local cluster's namespaces: it sets them up,
// starts the control process, and runs the supervisor, the name server, the
// forwarder to the outside and the socket the command line talks to.
//
// Main is a hidden role of the program, started by package local in new user,
// mount, network, PID, IPC and UTS namespaces. When it ends, for whatever
// reason, the kernel ends everything in them.
package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	mdns "github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/api"
	"lateen.dev/lateen/internal/dns"
	"lateen.dev/lateen/internal/egress"
	"lateen.dev/lateen/internal/local/manifest"
	"lateen.dev/lateen/internal/local/netns"
	"lateen.dev/lateen/internal/local/nft"
	"lateen.dev/lateen/internal/local/pod"
	"lateen.dev/lateen/internal/local/preflight"
	"lateen.dev/lateen/internal/local/reap"
	"lateen.dev/lateen/internal/local/shim"
	"lateen.dev/lateen/internal/local/supervisor"
	"lateen.dev/lateen/internal/local/wire"
)

// Role is the hidden first argument of the node; RolePreflight only tries what a
// node needs.
const (
	Role          = "__node"
	RolePreflight = "__preflight"
)

// ropeFD is the control socket to the parent: the node's life hangs on it.
const ropeFD = 3

// Config is what the parent tells the node, with descriptors for Inherited in
// the same message.
type Config struct {
	DataDir      string                      `json:"dataDir"`
	ProxyProgram string                      `json:"proxyProgram"`
	SelfProgram  string                      `json:"selfProgram"`
	Control      []string                    `json:"control"`
	ControlEnv   []string                    `json:"controlEnv,omitempty"`
	Images       map[string]manifest.Program `json:"images,omitempty"`
	Inherited    []string                    `json:"inherited,omitempty"`
	LogLevel     string                      `json:"logLevel,omitempty"`
}

// Layout of the data directory, shared with the parent and the command line.
const (
	RunDir      = "run"
	LogDir      = "logs"
	StateDir    = "state"
	NodeSocket  = "node.sock"
	EgressName  = "egress.sock"
	stagingName = "root"
	volumesName = "volumes"
	// LockName is the data directory's lock among Config.Inherited: the directory
	// is free again when parent and node have both ended.
	LockName = "lock"
)

// Message is what parent and node say to each other.
type Message struct {
	Type MessageType `json:"type"`
	// ID joins a request and its answer.
	ID     int               `json:"id,omitempty"`
	Config *Config           `json:"config,omitempty"`
	Event  *supervisor.Event `json:"event,omitempty"`
	Port   uint16            `json:"port,omitempty"`
	Ports  []uint16          `json:"ports,omitempty"`
	Addr   string            `json:"addr,omitempty"`
	Stage  preflight.Stage   `json:"stage,omitempty"`
	Error  string            `json:"error,omitempty"`
	Errno  int               `json:"errno,omitempty"`
}

// MessageType says what a Message means.
type MessageType string

// The messages. The parent sends Configure, Stop and Listened; the node sends the
// others.
const (
	Configure  MessageType = "configure"
	Stop       MessageType = "stop"
	Listened   MessageType = "listened"
	Started    MessageType = "started"
	Failed     MessageType = "failed"
	Happened   MessageType = "event"
	Listen     MessageType = "listen"
	AllowPorts MessageType = "allow-ports"
	Stopped    MessageType = "stopped"
)

// HiddenRole plays one of the roles that the local cluster starts its own program
// in. A program that may be such a child calls it first thing in main and exits
// with code when handled is true.
func HiddenRole(args []string) (handled bool, code int) {
	if len(args) < 2 {
		return false, 0
	}
	switch args[1] {
	case Role:
		return true, Main()
	case RolePreflight:
		return true, PreflightMain()
	case shim.RoleContainer:
		return true, shim.Main()
	case shim.RoleExec:
		return true, shim.ExecMain()
	}
	return false, 0
}

// stageError is a setup step that was refused.
type stageError struct {
	stage preflight.Stage
	err   error
}

func (e *stageError) Error() string { return string(e.stage) + ": " + e.err.Error() }
func (e *stageError) Unwrap() error { return e.err }

// Main is the role Role.
func Main() int {
	rope, err := wire.FromFD(ropeFD)
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		return 1
	}
	var m Message
	fds, err := rope.Recv(&m)
	if err != nil || m.Type != Configure || m.Config == nil || len(fds) != len(m.Config.Inherited) {
		fmt.Fprintln(os.Stderr, "error: the node was started without a configuration:", err)
		return 1
	}
	n := &node{cfg: *m.Config, rope: rope, stop: make(chan struct{}), answers: map[int]chan answer{}}
	n.inherited = map[string]int{}
	for i, name := range m.Config.Inherited {
		if name == LockName {
			continue // held open as long as this process lives
		}
		n.inherited[name] = fds[i]
	}
	if err := n.run(); err != nil {
		n.sendFailure(err)
		return 1
	}
	return 0
}

// node is the running node.
type node struct {
	cfg       Config
	rope      *wire.Conn
	sendMu    sync.Mutex
	inherited map[string]int
	log       *slog.Logger
	reaper    *reap.Reaper
	sup       *supervisor.Supervisor
	control   *control
	sink      int

	stopOnce sync.Once
	stop     chan struct{}

	mu      sync.Mutex
	nextID  int
	answers map[int]chan answer
	history history
}

type answer struct {
	m   Message
	fds []int
}

func (n *node) send(m Message) {
	n.sendMu.Lock()
	defer n.sendMu.Unlock()
	if err := n.rope.Send(m); err != nil {
		// The parent is gone; the reader of the rope ends the node.
		n.log.Debug("tell the parent", "error", err)
	}
}

func (n *node) sendFailure(err error) {
	m := Message{Type: Failed, Error: err.Error()}
	var se *stageError
	if errors.As(err, &se) {
		m.Stage, m.Error = se.stage, se.err.Error()
	}
	var errno unix.Errno
	if errors.As(err, &errno) {
		m.Errno = int(errno)
	}
	if err := n.rope.Send(m); err != nil {
		fmt.Fprintln(os.Stderr, "error:", m.Error)
	}
}

func (n *node) dir(parts ...string) string {
	return filepath.Join(append([]string{n.cfg.DataDir}, parts...)...)
}

// run is the node's life.
func (n *node) run() error {
	logFile, err := os.OpenFile(n.dir(LogDir, "node.log"), os.O_CREATE|os.O_TRUNC|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the node's log: %w", err)
	}
	defer logFile.Close()
	level := slog.LevelInfo
	if n.cfg.LogLevel == "debug" {
		level = slog.LevelDebug
	}
	n.log = slog.New(slog.NewTextHandler(logFile, &slog.HandlerOptions{Level: level}))
	if n.sink, err = setup(n.dir(RunDir, volumesName)); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go n.readRope()
	n.reaper = reap.New()
	var group sync.WaitGroup
	group.Go(func() { n.reaper.Run(ctx) })
	if err := n.start(ctx, &group); err != nil {
		return err
	}
	n.send(Message{Type: Started})
	<-n.stop
	n.sup.Shutdown(shutdownLimit)
	n.control.end()
	n.send(Message{Type: Stopped})
	return nil
}

// shutdownLimit bounds the grace period of each pod when everything stops.
const shutdownLimit = 5 * time.Second

// start brings up all services of the node.
func (n *node) start(ctx context.Context, group *sync.WaitGroup) error {
	if err := n.forwarder(ctx, group); err != nil {
		return err
	}
	if err := n.nameServer(ctx, group); err != nil {
		return err
	}
	var err error
	if n.control, err = n.startControl(ctx, group); err != nil {
		return err
	}
	client := api.NewClient(n.dir(RunDir, api.SocketName))
	env := &pod.Env{
		Reap: n.reaper, Log: n.log, Token: client.Token,
		NodeName: NodeName, ProxyProgram: n.cfg.ProxyProgram,
		VolumeDir: n.dir(RunDir, volumesName), StateDir: n.dir(StateDir, "proxies"), LogDir: n.dir(LogDir),
		Staging: n.dir(RunDir, stagingName), Hide: []string{n.cfg.DataDir}, Egress: n.dir(RunDir, EgressName),
		ControlAddress: hostPort(netns.Node4, 15012), TelemetryAddress: hostPort(netns.Node4, 4317),
		DNSAddress: hostPort(netns.Node4, 53), LogLevel: n.cfg.LogLevel,
	}
	n.sup = supervisor.New(supervisor.Options{
		Control: client, Host: n, Env: env, Log: n.log, Images: n.cfg.Images, SelfProgram: n.cfg.SelfProgram,
		HubAddress: env.TelemetryAddress, Services: n.applyServices, Relay: n.relay, Event: n.event,
		DrainDelay: drainDelay, ClusterID: "Kubernetes",
	})
	if err := n.serveAPI(ctx, group); err != nil {
		return err
	}
	group.Go(func() {
		if err := n.sup.Run(ctx); err != nil {
			n.log.Error("supervisor", "error", err)
		}
	})
	return nil
}

// NodeName is the name of the only node.
const NodeName = "lateen"

// drainDelay covers the control plane's debounce (100 ms), a push and the proxies'
// applying it, several times over.
const drainDelay = time.Second

func hostPort(a netip.Addr, port uint16) string {
	return net.JoinHostPort(a.String(), strconv.Itoa(int(port)))
}

func (n *node) applyServices(s nft.Services) error {
	s.Sink = n.sink
	s.Cluster = []netip.Prefix{netns.Pods4}
	s.Forwarder = []netip.AddrPort{netip.AddrPortFrom(netns.Node4, forwarderPort)}
	s.HostAddrs = []netip.Addr{egress.HostIPv4}
	if netns.HasIPv6() {
		s.Cluster = append(s.Cluster, netns.Pods6)
		s.Forwarder = append(s.Forwarder, netip.AddrPortFrom(netns.Node6, forwarderPort))
		s.HostAddrs = append(s.HostAddrs, egress.HostIPv6)
	}
	return s.Apply()
}

// readRope takes the parent's messages. At the end of the rope the parent is gone,
// however it ended: the node takes away what has a name outside of its namespaces
// and ends at once, and the kernel ends everything else.
func (n *node) readRope() {
	for {
		var m Message
		fds, err := n.rope.Recv(&m)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				n.log.Error("the parent is gone", "error", err)
			}
			_ = unix.Unmount(n.dir(RunDir, volumesName), unix.MNT_DETACH)
			if err := Clear(n.cfg.DataDir); err != nil {
				n.log.Error("remove sockets; the next start does", "error", err)
			}
			os.Exit(1)
		}
		switch m.Type {
		case Stop:
			n.requestStop()
		case Listened:
			n.mu.Lock()
			ch := n.answers[m.ID]
			delete(n.answers, m.ID)
			n.mu.Unlock()
			if ch != nil {
				ch <- answer{m, fds}
				continue
			}
		}
		wire.CloseAll(fds)
	}
}

// Clear removes from a data directory what is only for a running cluster: the run
// directory and the proxies' own sockets.
func Clear(dir string) error {
	err := os.RemoveAll(filepath.Join(dir, RunDir))
	sockets, _ := filepath.Glob(filepath.Join(dir, StateDir, "proxies", "*", "*.sock"))
	for _, s := range sockets {
		err = errors.Join(err, os.Remove(s))
	}
	return err
}

func (n *node) requestStop() { n.stopOnce.Do(func() { close(n.stop) }) }

// Listen implements supervisor.Host: the parent opens the port on the host.
func (n *node) Listen(ctx context.Context, port uint16) (int, netip.AddrPort, error) {
	ch := make(chan answer, 1)
	n.mu.Lock()
	n.nextID++
	id := n.nextID
	n.answers[id] = ch
	n.mu.Unlock()
	n.send(Message{Type: Listen, ID: id, Port: port})
	select {
	case a := <-ch:
		if a.m.Error != "" || len(a.fds) != 1 {
			wire.CloseAll(a.fds)
			return -1, netip.AddrPort{}, errors.New(a.m.Error)
		}
		addr, err := netip.ParseAddrPort(a.m.Addr)
		if err != nil {
			wire.CloseAll(a.fds)
			return -1, netip.AddrPort{}, fmt.Errorf("listen on the host: %w", err)
		}
		return a.fds[0], addr, nil
	case <-ctx.Done():
		n.mu.Lock()
		delete(n.answers, id)
		n.mu.Unlock()
		return -1, netip.AddrPort{}, fmt.Errorf("listen on the host: %w", ctx.Err())
	}
}

// AllowPorts implements supervisor.Host.
func (n *node) AllowPorts(ports []uint16) error {
	n.send(Message{Type: AllowPorts, Ports: ports})
	return nil
}

func (n *node) event(e supervisor.Event) {
	n.history.add(e)
	n.send(Message{Type: Happened, Event: &e})
}

// setup prepares the namespaces this process was started in. volumes is where
// the memory for volumes is mounted.
func setup(volumes string) (sink int, err error) {
	if err := unix.Sethostname([]byte(NodeName)); err != nil {
		return 0, &stageError{preflight.Clone, err}
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return 0, &stageError{preflight.Mount, err}
	}
	// Else /proc shows the host's processes, and this one has no entry of its own.
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return 0, &stageError{preflight.Proc, err}
	}
	if err := unix.Mount("tmpfs", volumes, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0711"); err != nil {
		return 0, &stageError{preflight.Tmpfs, err}
	}
	if sink, err = netns.SetupNode(); err != nil {
		return 0, &stageError{preflight.Network, err}
	}
	if err := (nft.Services{Sink: sink}).Apply(); err != nil {
		return 0, &stageError{preflight.Rules, err}
	}
	return sink, nil
}

// PreflightMain is the role RolePreflight: it does once what a node does, and
// tells the first step that was refused over the rope.
func PreflightMain() int {
	rope, err := wire.FromFD(ropeFD)
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		return 1
	}
	n := &node{rope: rope}
	if err := try(); err != nil {
		n.sendFailure(err)
		return 1
	}
	if err := rope.Send(Message{Type: Started}); err != nil {
		return 1
	}
	return 0
}

func try() error {
	const dir = "/tmp"
	if _, err := setup(dir); err != nil {
		return err
	}
	ns, err := netns.NewPod(2)
	if err != nil {
		return &stageError{preflight.Pod, err}
	}
	defer ns.Close()
	if err := (nft.Capture{DNS: true}).Apply(ns.FD); err != nil {
		return &stageError{preflight.Rules, err}
	}
	r := reap.New()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go r.Run(ctx)
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return &stageError{preflight.Container, err}
	}
	defer null.Close()
	staging, err := os.MkdirTemp(dir, "lateen")
	if err != nil {
		return &stageError{preflight.Container, err}
	}
	fd := int(null.Fd())
	p, err := shim.Start(r, shim.Spec{Hostname: "try", Staging: staging, Args: []string{"true"}}, ns.FD, [3]int{fd, fd, fd})
	if err != nil {
		return &stageError{preflight.Container, err}
	}
	<-p.Done()
	if c := p.Code(); c != 0 {
		return &stageError{preflight.Container, fmt.Errorf("exit code %d", c)}
	}
	return nil
}

// dnsForward sends a query to the host's resolvers, one after the other.
func (n *node) dnsForward(ctx context.Context, q *mdns.Msg, network string) (*mdns.Msg, error) {
	kind := egress.NetworkDNS
	if network == "tcp" {
		kind = egress.NetworkDNSTCP
	}
	var last error
	for i := range 3 {
		fd, err := egress.Dial(ctx, n.dir(RunDir, EgressName), kind, strconv.Itoa(i))
		if err != nil {
			if last == nil {
				last = err
			}
			break // there is no such resolver
		}
		conn, err := fileConn(fd)
		if err != nil {
			return nil, err
		}
		attempt, cancel := context.WithTimeout(ctx, 1500*time.Millisecond)
		r, err := dns.Exchange(attempt, conn, q)
		cancel()
		if err == nil {
			return r, nil
		}
		last = err
	}
	return nil, last
}

func fileConn(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "egress")
	defer f.Close() // FileConn duplicates
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("use a connection of the broker: %w", err)
	}
	return c, nil
}
