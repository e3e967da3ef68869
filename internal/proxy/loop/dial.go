package loop

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/proxy/message"
)

// ErrConnectTimeout is the cause when a connection was not established in time;
// it is also an os.ErrDeadlineExceeded.
var ErrConnectTimeout error = connectTimeout{}

type connectTimeout struct{}

func (connectTimeout) Error() string        { return "connect timeout" }
func (connectTimeout) Is(target error) bool { return target == os.ErrDeadlineExceeded }

// Keepalive configures TCP keep-alive probes; zero Idle leaves them off.
type Keepalive struct {
	Idle, Interval time.Duration
	Count          int
}

// DialOptions says where to connect and how.
type DialOptions struct {
	Addr netip.AddrPort
	// FD, when not 0, is a socket that somebody else has created, connected or
	// connecting (egress by passed descriptor); the dial takes it over and only
	// waits for it. Mark and Bind are then not applied.
	FD int
	// Mark is SO_MARK, for capture rules to recognise; 0 sets none. It needs
	// CAP_NET_ADMIN in the namespace's user namespace.
	Mark uint32
	// Bind is the local address to use; the zero value lets the kernel choose.
	Bind netip.Addr
	// Timeout bounds establishment; 0 means the kernel's own.
	Timeout   time.Duration
	Keepalive Keepalive
}

// Dialing is a connection being established.
type Dialing struct {
	l          *Loop
	fd         int
	slot       uint32
	registered bool
	over       bool
	opts       DialOptions
	done       func(*Conn, error)
	timer      Timer
}

// Dial connects without blocking. done is called exactly once on the loop,
// never out of the call itself: with a Conn whose Local and Remote are filled
// in and that has no handler yet, or with an error that names address and
// cause. After Cancel done is not called. Loop only.
func (l *Loop) Dial(opts DialOptions, done func(*Conn, error)) *Dialing {
	d := &Dialing{l: l, fd: -1, opts: opts, done: done}
	if err := d.start(); err != nil {
		d.closeFD()
		l.Later(func() { d.finish(nil, err) })
		return d
	}
	if opts.Timeout > 0 {
		d.timer.F = func() { d.finish(nil, ErrConnectTimeout) }
		l.Arm(&d.timer, opts.Timeout)
	}
	return d
}

func (d *Dialing) start() error {
	family, sa := sockaddr(d.opts.Addr)
	if d.fd = d.opts.FD; d.fd == 0 {
		d.fd = -1
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		d.fd = fd
	} else if err := unix.SetNonblock(d.fd, true); err != nil {
		return fmt.Errorf("descriptor %d: %w", d.fd, err)
	}
	if err := d.configure(); err != nil {
		return err
	}
	if d.opts.FD == 0 {
		switch err := unix.Connect(d.fd, sa); err {
		case nil, unix.EINPROGRESS, unix.EINTR:
		default:
			return err
		}
	}
	index, _, err := d.l.register(d.fd, d, connEvents)
	if err != nil {
		return err
	}
	d.slot, d.registered = index, true
	return nil
}

// configure sets the socket options that must be there before connect.
func (d *Dialing) configure() error {
	_ = unix.SetsockoptInt(d.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if k := d.opts.Keepalive; k.Idle > 0 {
		_ = unix.SetsockoptInt(d.fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		_ = unix.SetsockoptInt(d.fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, max(int(k.Idle/time.Second), 1))
		if k.Interval > 0 {
			_ = unix.SetsockoptInt(d.fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, max(int(k.Interval/time.Second), 1))
		}
		if k.Count > 0 {
			_ = unix.SetsockoptInt(d.fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, k.Count)
		}
	}
	if d.opts.FD != 0 {
		return nil
	}
	if d.opts.Mark != 0 {
		if err := unix.SetsockoptInt(d.fd, unix.SOL_SOCKET, unix.SO_MARK, int(d.opts.Mark)); err != nil {
			return fmt.Errorf("set mark %#x: %w", d.opts.Mark, err)
		}
	}
	if d.opts.Bind.IsValid() {
		// The port is chosen at connect, when the whole 4-tuple is known.
		_ = unix.SetsockoptInt(d.fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		_, sa := sockaddr(netip.AddrPortFrom(d.opts.Bind, 0))
		if err := unix.Bind(d.fd, sa); err != nil {
			return fmt.Errorf("bind %v: %w", d.opts.Bind, err)
		}
	}
	return nil
}

// onEvents hears that the attempt has ended one way or the other.
func (d *Dialing) onEvents(events uint32) {
	defer d.l.contain(nil)
	if events&(unix.EPOLLOUT|unix.EPOLLERR|unix.EPOLLHUP) == 0 {
		return
	}
	if err := socketError(d.fd); err != nil {
		d.finish(nil, err)
		return
	}
	info := message.Conn{Local: LocalAddr(d.fd), Remote: d.opts.Addr}
	tuneLocal(d.fd, &info)
	c := d.l.newConn(d.fd, info)
	c.slot = d.slot
	c.shared = d.opts.FD != 0
	// The edges so far were the Dialing's; the Conn looks for itself.
	c.readPending = events&(unix.EPOLLIN|unix.EPOLLRDHUP) != 0
	c.sawHup = events&unix.EPOLLRDHUP != 0
	d.l.slots[d.slot].src = c
	d.registered, d.fd = false, -1
	d.l.stats.Conns.Add(1)
	d.finish(c, nil)
}

func (d *Dialing) closeFD() {
	if d.registered {
		if d.opts.FD != 0 {
			_ = unix.EpollCtl(d.l.ep, unix.EPOLL_CTL_DEL, d.fd, nil)
		}
		d.l.release(d.slot)
		d.registered = false
	}
	if d.fd >= 0 {
		_ = unix.Close(d.fd)
		d.fd = -1
	}
}

func (d *Dialing) finish(c *Conn, err error) {
	if d.over {
		return
	}
	d.over = true
	d.l.Disarm(&d.timer)
	d.closeFD()
	if err != nil {
		err = fmt.Errorf("connect %v: %w", d.opts.Addr, err)
	}
	d.done(c, err)
}

// Cancel gives up; done will not be called. It does nothing once done was
// called. Loop only.
func (d *Dialing) Cancel() {
	if d.over {
		return
	}
	d.over = true
	d.l.Disarm(&d.timer)
	d.closeFD()
}

// IsTimeout says whether a dial or handshake error was a matter of time rather
// than of refusal.
func IsTimeout(err error) bool {
	return errors.Is(err, ErrConnectTimeout) || errors.Is(err, context.DeadlineExceeded)
}
