package loop

import (
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/proxy/message"
)

// sysRead and sysWritev enter the kernel without telling the Go scheduler:
// every descriptor of a loop is non-blocking, so the calls never wait, and the
// bookkeeping of an ordinary system call would cost about as much as the call.
// recvfrom and sendto lead to the socket directly, past the file layer's locks
// and checks that read and write pass first.
func sysRead(fd int, p []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

func sysWritev(fd int, iov []unix.Iovec) (int, unix.Errno) {
	if len(iov) == 1 {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(iov[0].Base)), uintptr(iov[0].Len), unix.MSG_NOSIGNAL, 0, 0)
		if errno != 0 {
			return 0, errno
		}
		return int(n), 0
	}
	n, _, errno := unix.RawSyscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(iov))), uintptr(len(iov)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// sysEpollWait blocks the thread and with it the scheduler's processor: it is
// for short waits. A signal, such as the scheduler's wish to stop the world,
// ends it.
func sysEpollWait(ep int, events []unix.EpollEvent, millis int) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(ep), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), uintptr(millis), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

func addIovec(iov []unix.Iovec, p []byte) []unix.Iovec {
	v := unix.Iovec{Base: unsafe.SliceData(p)}
	v.SetLen(len(p))
	return append(iov, v)
}

// tuneLocal gives a connection that does not leave this machine, such as a
// sidecar's to its application, the simplest congestion control: there is no
// path to probe or to pace for. Where BBR is the default a request then costs
// 0.98 (bench/perf); elsewhere nothing changes that can be measured.
func tuneLocal(fd int, info *message.Conn) {
	local, remote := info.Local.Addr(), info.Remote.Addr()
	if local.IsLoopback() || remote.IsLoopback() || local.IsValid() && local == remote {
		_ = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno")
	}
}

// unread is the number of bytes waiting in the socket.
func unread(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return 0
	}
	return n
}

// socketError takes the pending error of a socket, nil if there is none.
func socketError(fd int) error {
	v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if v == 0 {
		return nil
	}
	return unix.Errno(v)
}

// addrPort converts a kernel address; v4-mapped ones become plain IPv4. Unix
// sockets have none.
func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// sockaddr is the inverse of addrPort.
func sockaddr(a netip.AddrPort) (int, unix.Sockaddr) {
	addr := a.Addr().Unmap()
	if addr.Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: addr.As4()}
	}
	sa := &unix.SockaddrInet6{Port: int(a.Port()), Addr: addr.As16()}
	if zone := addr.Zone(); zone != "" {
		for _, r := range zone {
			if r < '0' || r > '9' {
				sa.ZoneId = 0
				break
			}
			sa.ZoneId = sa.ZoneId*10 + uint32(r-'0')
		}
	}
	return unix.AF_INET6, sa
}

// LocalAddr is the address a socket is bound to; zero for unix sockets.
func LocalAddr(fd int) netip.AddrPort {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	return addrPort(sa)
}

// RemoteAddr is the address of the peer; zero for unix sockets.
func RemoteAddr(fd int) netip.AddrPort {
	sa, err := unix.Getpeername(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	return addrPort(sa)
}

// soOriginalDst is SO_ORIGINAL_DST of netfilter, the same number for IPv4
// (SOL_IP) and IPv6 (SOL_IPV6).
const soOriginalDst = 80

// OriginalDst is where an accepted connection wanted to go before netfilter
// redirected it. A connection that was not redirected has its local address as
// original destination; so has one whose kernel cannot tell (no conntrack
// entry). A caller that captures must treat "equal to the listener" as an
// error: somebody dialled the listener itself.
func OriginalDst(fd int) (netip.AddrPort, error) {
	local := LocalAddr(fd)
	if !local.IsValid() {
		return netip.AddrPort{}, fmt.Errorf("original destination of descriptor %d: not an IP socket", fd)
	}
	if local.Addr().Is4() {
		// A sockaddr_in; the kernel's struct is shorter than the one x/sys offers,
		// port and address are its bytes 2 to 7.
		v, err := unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, soOriginalDst)
		if err == unix.ENOENT || err == unix.ENOPROTOOPT {
			return local, nil
		}
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("original destination of %v: %w", local, err)
		}
		b := v.Multiaddr
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), uint16(b[2])<<8|uint16(b[3])), nil
	}
	v, err := unix.GetsockoptIPv6MTUInfo(fd, unix.SOL_IPV6, soOriginalDst)
	if err == unix.ENOENT || err == unix.ENOPROTOOPT {
		return local, nil
	}
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination of %v: %w", local, err)
	}
	// The port field holds network byte order whatever the machine's.
	p := (*[2]byte)(unsafe.Pointer(&v.Addr.Port))
	return netip.AddrPortFrom(netip.AddrFrom16(v.Addr.Addr), uint16(p[0])<<8|uint16(p[1])), nil
}
