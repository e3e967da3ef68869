package pod

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/local/manifest"
	"lateen.dev/lateen/internal/local/netns"
	"lateen.dev/lateen/internal/local/shim"
)

// files are the files of name resolution that every container has of its own.
// nsswitch.conf matters as much as resolv.conf: the host's may ask daemons over
// sockets instead of DNS.
func (p *Pod) files(ns *netns.Namespace) map[string]string {
	m := &p.cfg.Manifest.Metadata
	host := p.cfg.Manifest.Spec.Hostname
	if host == "" {
		host = m.Name
	}
	var hosts strings.Builder
	hosts.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
	for _, ip := range ns.IPs {
		fmt.Fprintf(&hosts, "%s %s\n", ip, host)
	}
	for _, a := range p.cfg.Manifest.Spec.HostAliases {
		fmt.Fprintf(&hosts, "%s %s\n", a.IP, strings.Join(a.Hostnames, " "))
	}
	return map[string]string{
		"/etc/resolv.conf": fmt.Sprintf(
			"nameserver %s\nsearch %s.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n",
			netns.Node4, m.Namespace),
		"/etc/hosts":         hosts.String(),
		"/etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\n",
		"/etc/hostname":      host + "\n",
	}
}

// Stdio are the three descriptors of a command; they stay the caller's.
type Stdio [3]int

// Exec runs a command in a container, the first one if name is empty, and
// returns its exit code. A nil stdio discards output. When ctx ends the command
// is ended too.
func (p *Pod) Exec(ctx context.Context, name string, command []string, stdio *Stdio) (int, error) {
	if len(command) == 0 {
		return 0, errors.New("no command given")
	}
	c, err := p.container(name)
	if err != nil {
		return 0, err
	}
	c.mu.Lock()
	proc, env := c.proc, c.env
	c.mu.Unlock()
	if proc == nil {
		return 0, fmt.Errorf("container %s is not running", c.spec.Name)
	}
	if stdio == nil {
		null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return 0, fmt.Errorf("open /dev/null: %w", err)
		}
		defer unix.Close(null)
		stdio = &Stdio{null, null, null}
	}
	var ids shim.Spec
	c.user(&ids)
	spec := shim.ExecSpec{Args: command, Env: env, Dir: manifest.Expand(c.spec.WorkingDir, nil), UID: ids.UID, GID: ids.GID}
	run, err := shim.Exec(p.env.Reap, spec, proc.PID, *stdio)
	if err != nil {
		return 0, err
	}
	select {
	case <-run.Done():
		return run.Code(), nil
	case <-ctx.Done():
		// The helper passes it on; a command that ignores it goes with its pod.
		run.Signal(unix.SIGTERM)
		return 0, fmt.Errorf("%s: %w", command[0], context.Cause(ctx))
	}
}

func (p *Pod) container(name string) (*container, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var names []string
	for _, c := range p.containers {
		if c.spec.Name == name || (name == "" && !c.init) {
			return c, nil
		}
		names = append(names, c.spec.Name)
	}
	if name == ProxyContainer && p.proxy != nil {
		return nil, errors.New("the proxy is not a container here: it has no file system of its own to enter")
	}
	return nil, fmt.Errorf("no container %q\nhint: there are %s", name, strings.Join(names, ", "))
}

// Signal sends a signal to a container's first process, or to the proxy.
func (p *Pod) Signal(name string, sig unix.Signal) error {
	if name == ProxyContainer && p.proxy != nil {
		p.proxy.mu.Lock()
		proc := p.proxy.proc
		p.proxy.mu.Unlock()
		if proc == nil {
			return errors.New("the proxy is not running")
		}
		proc.Signal(sig)
		return nil
	}
	c, err := p.container(name)
	if err != nil {
		return err
	}
	c.mu.Lock()
	proc := c.proc
	c.mu.Unlock()
	if proc == nil {
		return fmt.Errorf("container %s is not running", c.spec.Name)
	}
	proc.Signal(sig)
	return nil
}
