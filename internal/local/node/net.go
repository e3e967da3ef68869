package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/dns"
	"lateen.dev/lateen/internal/egress"
	"lateen.dev/lateen/internal/local/netns"
)

// forwarderPort is the node's port of the forwarder to the outside.
const forwarderPort = 15099

// nodeAddrs are the node's own addresses.
func nodeAddrs() []netip.Addr {
	if netns.HasIPv6() {
		return []netip.Addr{netns.Node4, netns.Node6}
	}
	return []netip.Addr{netns.Node4}
}

// nameServer serves pods without a proxy, and the proxies for names the mesh does
// not know. It binds the node's addresses and never the wildcard, from which
// answers would leave with another source.
func (n *node) nameServer(ctx context.Context, group *sync.WaitGroup) error {
	for _, a := range nodeAddrs() {
		pc, err := net.ListenPacket("udp", hostPort(a, 53))
		if err != nil {
			return fmt.Errorf("start the name server: %w", err)
		}
		l, err := net.Listen("tcp", hostPort(a, 53))
		if err != nil {
			pc.Close()
			return fmt.Errorf("start the name server: %w", err)
		}
		s := &dns.Server{Log: n.log, Forward: n.dnsForward, Resolve: func(name string, client netip.Addr) dns.Answer {
			return n.sup.Resolve(name, client)
		}}
		group.Go(func() {
			if err := s.Serve(ctx, pc, l); err != nil {
				n.log.Error("name server", "address", a, "error", err)
			}
		})
	}
	return nil
}

// forwarder serves TCP that pods send outside: the rules lead it here, and the
// parent opens the other half on the host.
func (n *node) forwarder(ctx context.Context, group *sync.WaitGroup) error {
	for _, a := range nodeAddrs() {
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, forwarderPort)))
		if err != nil {
			return fmt.Errorf("start the forwarder: %w", err)
		}
		group.Go(func() {
			context.AfterFunc(ctx, func() { l.Close() })
			for {
				c, err := l.AcceptTCP()
				if err != nil {
					if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
						return
					}
					time.Sleep(10 * time.Millisecond) // out of descriptors, most likely
					continue
				}
				go n.forward(ctx, c)
			}
		})
	}
	return nil
}

func (n *node) forward(ctx context.Context, c *net.TCPConn) {
	defer c.Close()
	dst, err := originalDst(c)
	if err != nil {
		n.log.Debug("forward to the outside", "error", err)
		return
	}
	dialCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	fd, err := egress.Dial(dialCtx, n.dir(RunDir, EgressName), "tcp", dst.String())
	if err != nil {
		n.log.Info("connection to the outside was not made", "from", c.RemoteAddr(), "to", dst, "error", err)
		_ = c.SetLinger(0) // the caller sees a reset, as from a refused port
		return
	}
	up, err := fileConn(fd)
	if err != nil {
		n.log.Warn("forward to the outside", "error", err)
		return
	}
	defer up.Close()
	join(c, up)
}

// join copies both ways until both halves have ended.
func join(a, b net.Conn) {
	var group sync.WaitGroup
	one := func(dst, src net.Conn) {
		_, err := io.Copy(dst, src)
		if w, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
			_ = w.CloseWrite() // the other side may have gone first
			return
		}
		dst.Close()
		src.Close()
	}
	group.Go(func() { one(a, b) })
	group.Go(func() { one(b, a) })
	group.Wait()
}

// soOriginalDst is SO_ORIGINAL_DST, and IP6T_SO_ORIGINAL_DST.
const soOriginalDst = 80

// originalDst returns where a redirected connection was going to.
func originalDst(c *net.TCPConn) (netip.AddrPort, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	local := c.LocalAddr().(*net.TCPAddr).AddrPort()
	var dst netip.AddrPort
	var serr error
	err = raw.Control(func(fd uintptr) {
		if local.Addr().Unmap().Is4() {
			// The answer is a sockaddr_in; this struct is large enough for it.
			m, err := unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, soOriginalDst)
			if err != nil {
				serr = err
				return
			}
			a := m.Multiaddr
			dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(a[4:8])), binary.BigEndian.Uint16(a[2:4]))
			return
		}
		m, err := unix.GetsockoptIPv6MTUInfo(int(fd), unix.SOL_IPV6, soOriginalDst)
		if err != nil {
			serr = err
			return
		}
		var p [2]byte
		binary.NativeEndian.PutUint16(p[:], m.Addr.Port)
		dst = netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr), binary.BigEndian.Uint16(p[:]))
	})
	if err = errors.Join(err, serr); err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	if dst == local {
		return netip.AddrPort{}, errors.New("original destination: the forwarder was called directly")
	}
	return dst, nil
}

// relay serves a host listener for a Service inside the node.
func (n *node) relay(fd int, to netip.AddrPort) (func(), error) {
	f := os.NewFile(uintptr(fd), "relay")
	defer f.Close() // FileListener duplicates
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("relay to %s: %w", to, err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				time.Sleep(10 * time.Millisecond)
				continue
			}
			go func() {
				defer c.Close()
				up, err := net.DialTimeout("tcp", to.String(), 5*time.Second)
				if err != nil {
					n.log.Info("relay a connection of the host", "to", to, "error", err)
					return
				}
				defer up.Close()
				join(c, up)
			}()
		}
	}()
	return func() { l.Close() }, nil
}
