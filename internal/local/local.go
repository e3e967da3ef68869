//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/local/inherit"
	"lateen.dev/lateen/internal/local/manifest"
	"lateen.dev/lateen/internal/local/node"
	"lateen.dev/lateen/internal/local/preflight"
	"lateen.dev/lateen/internal/local/shim"
	"lateen.dev/lateen/internal/local/wire"
)

// HiddenRole plays one of the roles that Up starts its own program in. Main calls
// it first thing and exits with code when handled is true.
func HiddenRole(args []string) (handled bool, code int) { return node.HiddenRole(args) }

// stopTimeout bounds a graceful stop; then everything is killed.
const stopTimeout = 25 * time.Second

// Up runs the cluster until ctx ends, the node is told to stop, or something
// fails. It returns nil after a stop that was asked for. On return nothing is
// left running.
func Up(ctx context.Context, o Options) (err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Progress == nil {
		o.Progress = func(Event) {}
	}
	if o.NodeProgram == "" {
		o.NodeProgram = shim.Self
	}
	if o.SelfProgram == "" {
		exe, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find the running program: %w", err)
		}
		o.SelfProgram = exe
	}
	if o.ProxyProgram, err = filepath.Abs(o.ProxyProgram); err != nil {
		return fmt.Errorf("path of lateen-proxy: %w", err)
	}
	dir, err := openDataDir(o.DataDir)
	if err != nil {
		return err
	}
	defer dir.close()
	o.DataDir = dir.path
	broker, err := startBroker(filepath.Join(dir.path, node.RunDir, node.EgressName), o.Log)
	if err != nil {
		return err
	}
	defer broker.close()
	p := &parent{o: o, broker: broker, lock: dir.lock}
	return p.run(ctx)
}

// parent is the running parent process.
type parent struct {
	o      Options
	broker *broker
	lock   *os.File
	rope   *wire.Conn
	sendMu sync.Mutex
	tellMu sync.Mutex
}

// progress tells of an event, one at a time.
func (p *parent) progress(e Event) {
	p.tellMu.Lock()
	defer p.tellMu.Unlock()
	p.o.Progress(e)
}

func (p *parent) run(ctx context.Context) error {
	cfg, files, err := p.config()
	if err != nil {
		return err
	}
	// The node ends by itself when the rope does, and cleans up first.
	proc, err := startNode(p.o.NodeProgram, node.Role, 0)
	if err != nil {
		closeFiles(files)
		return preflight.Explain(preflight.Clone, err, p.o.NodeProgram)
	}
	defer proc.kill()
	p.rope = proc.rope
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	cfg.Inherited, fds = append(cfg.Inherited, node.LockName), append(fds, int(p.lock.Fd()))
	err = p.rope.Send(node.Message{Type: node.Configure, Config: cfg}, fds...)
	closeFiles(files)
	if err != nil {
		return fmt.Errorf("configure the node: %w", err)
	}
	var overdue atomic.Bool
	stop := context.AfterFunc(ctx, func() {
		p.send(node.Message{Type: node.Stop})
		time.AfterFunc(stopTimeout, func() {
			overdue.Store(true)
			proc.kill()
		})
	})
	defer stop()
	watch, unwatch := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { p.watchDisk(watch) })
	err = p.serve()
	unwatch()
	watching.Wait()
	<-proc.done
	if err != nil && overdue.Load() {
		return fmt.Errorf("the cluster did not stop within %v and was killed; the node's log is %s", stopTimeout, filepath.Join(p.o.DataDir, node.LogDir, "node.log"))
	}
	var refusal *preflight.Refusal
	if err != nil && ctx.Err() == nil && !errors.As(err, &refusal) {
		return fmt.Errorf("%w; the node's log is %s", err, filepath.Join(p.o.DataDir, node.LogDir, "node.log"))
	}
	return err
}

// config makes the node's configuration and the sockets that go with it.
func (p *parent) config() (*node.Config, []*os.File, error) {
	cfg := &node.Config{
		DataDir: p.o.DataDir, ProxyProgram: p.o.ProxyProgram, SelfProgram: p.o.SelfProgram,
		Control: p.o.Control, ControlEnv: p.o.ControlEnv, LogLevel: p.o.LogLevel,
		Images: map[string]manifest.Program{},
	}
	if len(cfg.Control) == 0 {
		return nil, nil, errors.New("no control process is configured")
	}
	for image, program := range p.o.Images {
		if strings.Contains(program, "/") {
			abs, err := filepath.Abs(program)
			if err != nil {
				return nil, nil, fmt.Errorf("--image %s: %w", image, err)
			}
			program = abs
		}
		cfg.Images[image] = manifest.Program{Args: []string{program}}
	}
	var files []*os.File
	for _, l := range []struct {
		name       string
		port, from int
	}{{inherit.OTLPGRPC, p.o.OTLPGRPCPort, 4317}, {inherit.OTLPHTTP, p.o.OTLPHTTPPort, 4318}} {
		if l.port < 0 {
			continue
		}
		if l.port == 0 {
			l.port = l.from
		}
		f, addr, err := listenHost(uint16(l.port))
		if err != nil { // pods and proxies have an address of their own to send to
			p.progress(Event{Kind: "telemetry", Name: l.name, Error: true, Message: fmt.Sprintf("not reachable from this machine: %v; free one of them and start again to send telemetry from outside of the mesh", err)})
			continue
		}
		files = append(files, f)
		cfg.Inherited = append(cfg.Inherited, l.name)
		p.progress(Event{Kind: "telemetry", Name: l.name, Message: "listening on " + addr.String()})
	}
	return cfg, files, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

func (p *parent) send(m node.Message, fds ...int) {
	p.sendMu.Lock()
	defer p.sendMu.Unlock()
	if err := p.rope.Send(m, fds...); err != nil {
		p.o.Log.Debug("tell the node", "error", err) // it has ended; serve reports it
	}
}

// serve answers the node until it ends.
func (p *parent) serve() error {
	for {
		var m node.Message
		fds, err := p.rope.Recv(&m)
		wire.CloseAll(fds)
		if errors.Is(err, io.EOF) {
			return errors.New("the node ended unexpectedly")
		}
		if err != nil {
			return fmt.Errorf("the node ended unexpectedly: %w", err)
		}
		switch m.Type {
		case node.Started:
			p.progress(Event{Kind: "node", Message: "ready"})
		case node.Happened:
			p.progress(*m.Event)
		case node.AllowPorts:
			p.broker.allow(m.Ports)
		case node.Listen:
			p.listen(m)
		case node.Failed:
			return failure(m, p.o.NodeProgram)
		case node.Stopped:
			return nil
		}
	}
}

func (p *parent) listen(m node.Message) {
	f, addr, err := listenHost(m.Port)
	if err != nil {
		p.send(node.Message{Type: node.Listened, ID: m.ID, Error: err.Error()})
		return
	}
	defer f.Close()
	p.send(node.Message{Type: node.Listened, ID: m.ID, Addr: addr.String()}, int(f.Fd()))
}

// failure turns a refused step into an explanation.
func failure(m node.Message, program string) error {
	var err error = errors.New(m.Error)
	if m.Errno != 0 {
		err = &machineError{text: m.Error, errno: unix.Errno(m.Errno)}
	}
	if m.Stage == "" {
		return fmt.Errorf("start the node: %w", err)
	}
	return preflight.Explain(m.Stage, err, program)
}

// machineError is an error that crossed a process boundary with its number.
type machineError struct {
	text  string
	errno unix.Errno
}

func (e *machineError) Error() string { return e.text }
func (e *machineError) Unwrap() error { return e.errno }

// Preflight tries once, in a few milliseconds, what a node needs. A refusal is a
// *preflight.Refusal with cause and remedy.
func Preflight() error {
	proc, err := startNode(shim.Self, node.RolePreflight, unix.SIGKILL)
	if err != nil {
		return preflight.Explain(preflight.Clone, err, shim.Self)
	}
	defer proc.kill()
	var m node.Message
	if _, err := proc.rope.Recv(&m); err != nil {
		return fmt.Errorf("preflight: %w", err)
	}
	if m.Type == node.Failed {
		exe, err := os.Executable()
		if err != nil {
			exe = shim.Self
		}
		return failure(m, exe)
	}
	return nil
}

// nodeProcess is the started node.
type nodeProcess struct {
	rope *wire.Conn
	cmd  *exec.Cmd
	done chan struct{}
}

// startNode forks a hidden role in new namespaces. It gets the signal onDeath when
// this process dies, 0 for none.
func startNode(program, role string, onDeath unix.Signal) (*nodeProcess, error) {
	rope, theirs, err := wire.Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd := &exec.Cmd{
		Path: program, Args: []string{"lateen-node", role}, Env: os.Environ(),
		Stdout: os.Stderr, Stderr: os.Stderr, ExtraFiles: []*os.File{theirs},
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWNET |
				unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
			Pdeathsig:   onDeath,
			Setsid:      true, // Ctrl-C reaches the parent alone, which stops in order
		},
	}
	p := &nodeProcess{rope: rope, cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// The death signal fires when this thread ends, not when the process
		// does: the thread waits as long as the node lives.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // the rope tells what happened
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		rope.Close()
		return nil, err
	}
	return p, nil
}

// kill ends the node and with it everything.
func (p *nodeProcess) kill() {
	select {
	case <-p.done:
	default:
		_ = p.cmd.Process.Kill() // it may be ending
		<-p.done
	}
	p.rope.Close()
}
