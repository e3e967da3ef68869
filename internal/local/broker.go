//go:build linux

package local

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/egress"
	"lateen.dev/lateen/internal/local/wire"
)

// dialTimeout bounds one connection to the outside.
const dialTimeout = 10 * time.Second

// broker opens connections on the host for pods. It never opens one to the
// machine itself, except to ports that were allowed, and never one to link-local
// addresses, where clouds keep their credentials.
type broker struct {
	l     *net.UnixListener
	log   *slog.Logger
	ports atomic.Pointer[[]uint16]
	stop  context.CancelFunc
	group sync.WaitGroup
	// machine returns the addresses of this machine; a test replaces it.
	machine func() ([]netip.Addr, error)
	// resolvConf is the file that names the host's resolvers.
	resolvConf string
}

func startBroker(path string, log *slog.Logger) (*broker, error) {
	l, err := wire.Listen(path)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	b := &broker{l: l, log: log, stop: cancel, machine: machineAddrs, resolvConf: "/etc/resolv.conf"}
	b.allow(nil)
	b.group.Go(func() { b.serve(ctx) })
	return b, nil
}

func (b *broker) close() {
	b.stop()
	b.l.Close()
	b.group.Wait()
}

// allow sets the host's own ports that pods may reach.
func (b *broker) allow(ports []uint16) { b.ports.Store(&ports) }

func (b *broker) serve(ctx context.Context) {
	for {
		uc, err := b.l.AcceptUnix()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors, most likely
			continue
		}
		b.group.Go(func() { b.one(ctx, wire.New(uc)) })
	}
}

func (b *broker) one(ctx context.Context, c *wire.Conn) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if uid, err := c.PeerUID(); err != nil || uid != os.Geteuid() {
		b.log.Warn("a stranger asked for a connection", "uid", uid, "error", err)
		return
	}
	var req egress.Request
	fds, err := c.Recv(&req)
	wire.CloseAll(fds)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	go func() { // a caller that has given up needs no connection
		var more egress.Request
		_, _ = c.Recv(&more)
		cancel()
	}()
	f, err := b.dial(ctx, req)
	if err != nil {
		_ = c.Send(egress.Reply{Kind: kind(err), Error: reason(err)}) // the caller may be gone
		return
	}
	defer f.Close()
	_ = c.Send(egress.Reply{}, int(f.Fd()))
}

var errDenied = errors.New("denied")

// kind classifies an error for the proxy's response flags.
func kind(err error) egress.Kind {
	var dnsErr *net.DNSError
	switch {
	case errors.Is(err, errDenied):
		return egress.Denied
	case errors.As(err, &dnsErr):
		return egress.Unresolved
	case errors.Is(err, unix.ECONNREFUSED):
		return egress.ConnRefused
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		return egress.Unreachable
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.ETIMEDOUT):
		return egress.Timeout
	}
	return egress.Failed
}

// reason is the innermost text: the caller knows the address.
func reason(err error) string {
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		err = op.Err
	}
	return err.Error()
}

func (b *broker) dial(ctx context.Context, req egress.Request) (*os.File, error) {
	switch req.Network {
	case egress.NetworkDNS, egress.NetworkDNSTCP:
		server, err := b.resolver(req.Address)
		if err != nil {
			return nil, err
		}
		network := "udp"
		if req.Network == egress.NetworkDNSTCP {
			network = "tcp"
		}
		return dialFile(ctx, &net.Dialer{}, network, server)
	case "tcp", "udp":
	default:
		return nil, fmt.Errorf("network %q: %w", req.Network, errDenied)
	}
	if addr, ok, err := b.hostAlias(req.Address); ok || err != nil {
		if err != nil {
			return nil, err
		}
		return dialFile(ctx, &net.Dialer{}, req.Network, addr)
	}
	own, err := b.machine()
	if err != nil {
		return nil, err
	}
	// Checked where the address is final, so that a name cannot lead elsewhere.
	d := &net.Dialer{ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("address %q: %w", address, errDenied)
		}
		return permitted(ap.Addr().Unmap().WithZone(""), own)
	}}
	return dialFile(ctx, d, req.Network, req.Address)
}

func dialFile(ctx context.Context, d *net.Dialer, network, addr string) (*os.File, error) {
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.(interface{ File() (*os.File, error) }).File()
}

// permitted refuses what is not the outside.
func permitted(a netip.Addr, own []netip.Addr) error {
	switch {
	case a.IsLinkLocalUnicast(), a == netip.MustParseAddr("fd00:ec2::254"):
		return fmt.Errorf("link-local addresses are never reachable: %w", errDenied)
	case a.IsLoopback(), a.IsUnspecified(), slices.Contains(own, a):
		return fmt.Errorf("%s is this machine: list the port under hostPorts of a LocalCluster document and call %s: %w", a, egress.HostName, errDenied)
	case a.IsMulticast(), !a.IsValid():
		return fmt.Errorf("%s is not a host: %w", a, errDenied)
	}
	return nil
}

// hostAlias maps the addresses that stand for the machine to its loopback.
func (b *broker) hostAlias(address string) (string, bool, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", false, fmt.Errorf("address %q: %w", address, errDenied)
	}
	to := "127.0.0.1"
	a, err := netip.ParseAddr(host)
	switch {
	case host == egress.HostName, err == nil && a == egress.HostIPv4:
	case err == nil && a == egress.HostIPv6:
		to = "::1"
	default:
		return "", false, nil
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || !slices.Contains(*b.ports.Load(), uint16(n)) {
		return "", true, fmt.Errorf("port %s of this machine is not open to pods: list it under hostPorts of a LocalCluster document: %w", port, errDenied)
	}
	return net.JoinHostPort(to, port), true, nil
}

// resolver returns the address of the host's n-th resolver.
func (b *broker) resolver(n string) (string, error) {
	i, err := strconv.Atoi(n)
	if err != nil || i < 0 {
		return "", fmt.Errorf("resolver %q: %w", n, errDenied)
	}
	f, err := os.Open(b.resolvConf)
	if err != nil {
		return "", err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if i == 0 {
			return net.JoinHostPort(fields[1], "53"), nil
		}
		i--
	}
	return "", fmt.Errorf("%s names no resolver %s", b.resolvConf, n)
}

func machineAddrs() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list this machine's addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				out = append(out, ip.Unmap())
			}
		}
	}
	return out, nil
}

// listenHost opens a port of the host's loopback, the next free one if it is
// taken.
func listenHost(port uint16) (*os.File, netip.AddrPort, error) {
	const tries = 20
	var first error
	for i := range tries {
		if int(port)+i > 65535 {
			break
		}
		l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", int(port)+i))
		if err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		defer l.Close()
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			return nil, netip.AddrPort{}, fmt.Errorf("listen on port %d: %w", port, err)
		}
		return f, l.Addr().(*net.TCPAddr).AddrPort(), nil
	}
	return nil, netip.AddrPort{}, fmt.Errorf("neither port %d nor the next %d is free: %w", port, tries-1, first)
}
