package proxy

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/bootstrap"
	"lateen.dev/lateen/internal/proxy/loop"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// socketKey names one listening socket.
type socketKey struct {
	listener  string
	addr      netip.AddrPort
	inherited bool
}

// socket is a listening socket on its way to a loop.
type socket struct {
	key socketKey
	fd  int // taken over by the loop once it listens
}

func (k *socket) close() {
	if k.fd >= 0 {
		_ = unix.Close(k.fd)
		k.fd = -1
	}
}

// planSockets opens what next needs and does not have, and names what it does
// not need any more.
func (s *Server) planSockets(next *snapshot.Snapshot) (opened []*socket, stale []socketKey, err error) {
	wanted := map[socketKey]bool{}
	var errs []error
	for _, l := range next.Listeners {
		for _, key := range s.socketsOf(l) {
			wanted[key] = true
			if s.sockets[key] != nil {
				continue
			}
			k, err := s.open(key)
			if err != nil {
				if !s.covered(key) {
					errs = append(errs, err)
				}
				continue
			}
			opened = append(opened, k)
		}
	}
	for key := range s.sockets {
		if !wanted[key] {
			stale = append(stale, key)
		}
	}
	return opened, stale, errors.Join(errs...)
}

// socketsOf lists the sockets of a listener: its addresses, an inherited
// descriptor for its port, and the IPv6 twin of a capture listener in a pod that
// has IPv6 addresses.
func (s *Server) socketsOf(l *snapshot.Listener) []socketKey {
	if !l.BindToPort {
		return nil
	}
	b := s.o.Bootstrap
	var keys []socketKey
	seen := map[netip.AddrPort]bool{}
	add := func(a netip.AddrPort) {
		if !seen[a] {
			seen[a] = true
			keys = append(keys, socketKey{listener: l.Name, addr: a})
		}
	}
	for _, a := range l.Addresses {
		add(a)
		if captures(b, a.Port()) && a.Addr() == netip.IPv4Unspecified() && hasIPv6(b) {
			add(netip.AddrPortFrom(netip.IPv6Unspecified(), a.Port()))
		}
		for _, in := range b.Inherited {
			if in.Port == a.Port() {
				keys = append(keys, socketKey{listener: l.Name, addr: netip.AddrPortFrom(netip.IPv4Unspecified(), in.Port), inherited: true})
			}
		}
	}
	return keys
}

// captures says whether a port receives redirected connections.
func captures(b *bootstrap.Bootstrap, port uint16) bool {
	return b.Capture != bootstrap.CaptureNone && (port == bootstrap.OutboundPort || port == bootstrap.InboundPort)
}

func hasIPv6(b *bootstrap.Bootstrap) bool {
	for _, ip := range b.IPs {
		if ip.Is6() && !ip.Is4In6() {
			return true
		}
	}
	return false
}

// covered says that a port which cannot be bound is served by an inherited
// descriptor, which may be the very reason.
func (s *Server) covered(key socketKey) bool {
	for _, in := range s.o.Bootstrap.Inherited {
		if in.Port == key.addr.Port() && !key.inherited {
			return true
		}
	}
	return false
}

// open makes the socket for a key.
func (s *Server) open(key socketKey) (*socket, error) {
	if key.inherited {
		for _, in := range s.o.Bootstrap.Inherited {
			if in.Port != key.addr.Port() {
				continue
			}
			fd, err := unix.FcntlInt(uintptr(in.FD), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				return nil, fmt.Errorf("listen for %q on inherited descriptor %d of port %d: %w", key.listener, in.FD, in.Port, err)
			}
			return &socket{key: key, fd: fd}, nil
		}
	}
	addr := key.addr
	if s.o.Bootstrap.Capture == bootstrap.CaptureMark && addr.Port() == bootstrap.OutboundPort && addr.Addr().IsUnspecified() {
		// Redirected connections of the pod arrive on loopback; nobody else has
		// business here.
		local := netip.AddrFrom4([4]byte{127, 0, 0, 1})
		if addr.Addr().Is6() {
			local = netip.IPv6Loopback()
		}
		addr = netip.AddrPortFrom(local, addr.Port())
	}
	fd, err := bindTCP(addr)
	if err != nil {
		return nil, fmt.Errorf("listen for %q on %v: %w", key.listener, addr, err)
	}
	return &socket{key: key, fd: fd}, nil
}

// bindTCP returns a listening socket.
func bindTCP(a netip.AddrPort) (fd int, err error) {
	family, sa := unix.AF_INET, unix.Sockaddr(nil)
	if a.Addr().Is4() {
		sa = &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	} else {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return -1, fmt.Errorf("SO_REUSEADDR: %w", err)
	}
	if family == unix.AF_INET6 {
		if err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return -1, fmt.Errorf("IPV6_V6ONLY: %w", err)
		}
	}
	if err = unix.Bind(fd, sa); err != nil {
		return -1, fmt.Errorf("bind: %w", err)
	}
	if err = unix.Listen(fd, 4096); err != nil {
		return -1, fmt.Errorf("listen: %w", err)
	}
	return fd, nil
}

// accept starts listening on new sockets and stops on stale ones. One loop
// accepts for all: with one listening socket per loop, connections would stay
// with loops that are busy while others sleep.
func (s *Server) accept(opened []*socket, stale []socketKey) {
	if len(s.workers) == 0 {
		return
	}
	w := s.workers[0]
	done := make(chan struct{})
	posted := w.loop.Post(func() {
		defer close(done)
		for _, k := range opened {
			ln, err := w.loop.Listen(k.fd, func(fd int, remote netip.AddrPort) { s.place(k.key.listener, fd, remote) })
			k.fd = -1
			if err != nil {
				s.log.Error("listen", "listener", k.key.listener, "address", k.key.addr, "cause", err)
				continue
			}
			w.listeners[k.key] = ln
		}
		for _, key := range stale {
			if ln := w.listeners[key]; ln != nil {
				ln.Close()
				delete(w.listeners, key)
			}
		}
	})
	if !posted {
		return
	}
	<-done
	for _, k := range opened {
		s.sockets[k.key] = k
	}
	for _, key := range stale {
		delete(s.sockets, key)
	}
}

// keepLocal is the number of connections that the accepting loop keeps for
// itself before it shares: at low load one awake loop is cheaper than two.
const keepLocal = 8

// place gives a new connection to a loop: the accepting one at low load, else
// the one with the fewest connections.
func (s *Server) place(listener string, fd int, remote netip.AddrPort) {
	w := s.workers[0]
	if w.count.Load() >= keepLocal {
		for _, o := range s.workers[1:] {
			if o.count.Load() < w.count.Load() {
				w = o
			}
		}
	}
	if w == s.workers[0] {
		w.accepted(listener, fd, remote)
		return
	}
	w.count.Add(1) // until the loop has it
	if !w.loop.Post(func() { w.accepted(listener, fd, remote) }) {
		_ = unix.Close(fd)
	}
}

// accepted finds out what a connection is about.
func (w *worker) accepted(listener string, fd int, remote netip.AddrPort) {
	w.count.Store(int64(len(w.conns)))
	if w.snap == nil {
		_ = unix.Close(fd)
		return
	}
	d := &downstream{w: w, bound: listener}
	if err := d.start(fd, remote); err != nil {
		w.s.log.Debug("connection refused", "listener", listener, "remote", remote, "cause", err)
	}
}

// destination says where a connection wanted to go. captured is false for one
// that was made to this very socket.
func destination(b *bootstrap.Bootstrap, fd int) (local, dst netip.AddrPort, captured bool, err error) {
	local = unmap(loop.LocalAddr(fd))
	if b.Capture == bootstrap.CaptureNone {
		return local, local, false, nil
	}
	if dst, err = loop.OriginalDst(fd); err != nil {
		return local, local, false, err
	}
	dst = unmap(dst)
	return local, dst, dst != local || b.Capture == bootstrap.CaptureTProxy, nil
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
