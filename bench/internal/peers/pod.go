//go:build linux

// Package peers starts the proxies that are compared: lateen-proxy and Envoy with
// what Lateen's own control plane tells them, nginx and HAProxy with
// configurations of the same duties. Each proxy has a network namespace of its
// own, as a pod of the local cluster has, so that all of them may use the same
// ports; one-proxy scenarios use the namespace's loopback, chains use two
// namespaces with the capture rules of the local cluster.
//
// It promises that everything it started has ended when Set.Stop returns. It
// measures nothing.
package peers

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/local/netns"
)

// The CPUs of the generator with the backend, and of every proxy.
const (
	LoadCPU  = 0
	ProxyCPU = 1
)

// Pod is one network namespace with a thread of the benchmark in it.
type Pod struct {
	IP   netip.Addr
	ns   *netns.Namespace
	work chan func()
}

// newPod makes pod number n. Its thread lives as long as the pod: a program
// started from it is told to end when that thread does.
func newPod(n int) (*Pod, error) {
	ns, err := netns.NewPod(n)
	if err != nil {
		return nil, err
	}
	p := &Pod{IP: ns.IPs[0], ns: ns, work: make(chan func())}
	entered := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the pod
		if err := unix.Setns(ns.FD, unix.CLONE_NEWNET); err != nil {
			entered <- fmt.Errorf("enter the network of pod %d: %w", n, err)
			return
		}
		// What is started here inherits the CPU, so that a runtime sizes itself by it.
		entered <- pinThread(0, ProxyCPU)
		for f := range p.work {
			f()
		}
	}()
	if err := <-entered; err != nil {
		ns.Close()
		return nil, err
	}
	return p, nil
}

func (p *Pod) close() {
	close(p.work)
	p.ns.Close()
}

// do runs f on the pod's thread.
func (p *Pod) do(f func() error) error {
	done := make(chan error)
	p.work <- func() { done <- f() }
	return <-done
}

// Dial opens n connections to addr from inside the pod and returns their
// descriptors, which the caller owns.
func (p *Pod) Dial(addr netip.AddrPort, n int) ([]int, error) {
	var fds []int
	err := p.do(func() error {
		for range n {
			fd, err := connect(addr)
			if err != nil {
				return err
			}
			fds = append(fds, fd)
		}
		return nil
	})
	if err != nil {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
		return nil, err
	}
	return fds, nil
}

func connect(addr netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open a socket: %w", err)
	}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 2})
	for {
		err = unix.Connect(fd, &unix.SockaddrInet4{Addr: addr.Addr().As4(), Port: int(addr.Port())})
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil && !errors.Is(err, unix.EISCONN) {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("connect to %s: %w", addr, err)
	}
	return fd, nil
}

// Conn opens one connection as an ordinary net.Conn.
func (p *Pod) Conn(addr netip.AddrPort) (net.Conn, error) {
	fds, err := p.Dial(addr, 1)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fds[0]), "connection")
	defer func() { _ = f.Close() }()
	return net.FileConn(f)
}

// Listen opens a listening socket in the pod and returns its descriptor.
func (p *Pod) Listen(addr string) (fd int, err error) {
	err = p.do(func() error {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		defer func() { _ = l.Close() }()
		file, err := l.(*net.TCPListener).File()
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		fd, err = unix.Dup(int(file.Fd()))
		if err != nil {
			return err
		}
		return unix.SetNonblock(fd, true)
	})
	return fd, err
}

// process is a program that runs in a pod.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{}
	log   string // path of what it says
}

// start runs a program in the pod. Its output goes to dir/access.log, its
// complaints to dir/error.log.
func (p *Pod) start(dir string, extra []*os.File, program string, args ...string) (*process, error) {
	x := &process{ended: make(chan struct{}), log: filepath.Join(dir, "error.log")}
	out, err := os.Create(filepath.Join(dir, "access.log"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }()
	log, err := os.Create(x.log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	x.cmd = exec.Command(program, args...)
	x.cmd.Dir, x.cmd.Stdout, x.cmd.Stderr, x.cmd.ExtraFiles = dir, out, log, extra
	x.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := p.do(x.cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	go func() {
		_ = x.cmd.Wait() // an early end is seen by whoever waits for an answer
		close(x.ended)
	}()
	return x, nil
}

// startIn is start with a folder of its own for what the program says.
func (p *Pod) startIn(dir, name, program string, args ...string) (*process, error) {
	dir = filepath.Join(dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return p.start(dir, nil, program, args...)
}

// stopLimit bounds an orderly end.
const stopLimit = 8 * time.Second

func (x *process) stop() {
	_ = x.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-x.ended:
	case <-time.After(stopLimit):
		_ = x.cmd.Process.Kill()
		<-x.ended
	}
}

// words is the end of what the program said, for messages.
func (x *process) words() string {
	text, err := os.ReadFile(x.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-3000):])
}

// PinSelf binds this process to the generator's CPU.
func PinSelf() error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("pin the generator: %w", err)
	}
	for _, t := range tasks {
		tid, _ := strconv.Atoi(t.Name())
		if err := pinThread(tid, LoadCPU); err != nil {
			return err
		}
	}
	return nil
}

func pinThread(tid, cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(tid, &set); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("pin thread %d to CPU %d: %w; two CPUs are needed", tid, cpu, err)
	}
	return nil
}

// Conn opens one connection to the candidate from where its clients are.
func (p *Peer) Conn() (net.Conn, error) {
	if p.Client == nil {
		return net.DialTimeout("tcp", p.Addr.String(), 2*time.Second)
	}
	return p.Client.Conn(p.Addr)
}
