// Package reap starts processes and collects them. The node is PID 1 of its
// namespace: besides its own children it inherits every orphan, so that one
// place must call wait for all of them.
//
// Everything in the node starts processes through a Reaper and never through
// os/exec, whose children would be collected twice.
package reap

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Reaper collects the children of this process.
type Reaper struct {
	// mu is held from fork until the child is registered, so that a child that
	// ends at once is not taken for an orphan.
	mu       sync.Mutex
	children map[int]*Process
}

// Process is a child that was started. It is safe for concurrent use.
type Process struct {
	PID int

	mu     sync.Mutex
	done   chan struct{}
	status unix.WaitStatus
}

// New returns a Reaper; Run must be running for its processes to end.
func New() *Reaper {
	return &Reaper{children: map[int]*Process{}}
}

// Run collects children until ctx ends.
func (r *Reaper) Run(ctx context.Context) {
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, unix.SIGCHLD)
	defer signal.Stop(sigs)
	for {
		r.collect()
		select {
		case <-sigs:
		case <-ctx.Done():
			return
		}
	}
}

func (r *Reaper) collect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if p := r.children[pid]; p != nil {
			delete(r.children, pid)
			p.end(ws)
		}
	}
}

func (p *Process) end(ws unix.WaitStatus) {
	p.mu.Lock()
	p.status = ws
	p.mu.Unlock()
	close(p.done)
}

// Start forks from the calling thread, so that the child is in the namespaces of
// that thread, and executes argv0.
func (r *Reaper) Start(argv0 string, argv []string, attr *syscall.ProcAttr) (*Process, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(argv0, argv, attr)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", argv0, err)
	}
	p := &Process{PID: pid, done: make(chan struct{})}
	r.children[pid] = p
	return p, nil
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Code returns the exit code as a shell counts it: 128 + n for signal n. It is
// valid after Done.
func (p *Process) Code() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status.Signaled() {
		return 128 + int(p.status.Signal())
	}
	return p.status.ExitStatus()
}

// Signal sends a signal; to a process that has ended it sends nothing.
func (p *Process) Signal(sig unix.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.done:
	default:
		_ = unix.Kill(p.PID, sig) // it may be ending right now
	}
}
