package loop

import (
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// acceptBatch bounds the connections taken from one listener in one round, so
// that a flood of new ones does not starve those that are there.
const acceptBatch = 64

// Bounds of the pause after accept failed for want of descriptors.
const (
	acceptBackoffMin = 10 * time.Millisecond
	acceptBackoffMax = time.Second
)

// Listener takes connections from one listening socket on one loop.
type Listener struct {
	l        *Loop
	fd       int
	slot     uint32
	onAccept func(fd int, remote netip.AddrPort)
	reserve  int // a descriptor kept to shed connections when none are left
	backoff  time.Duration
	timer    Timer
	parked   bool // by the caller
	resting  bool // after an error
	closed   bool
	local    netip.AddrPort
}

// Listen accepts connections on fd, a bound and listening stream socket, and
// gives each to onAccept as a non-blocking descriptor that the callback owns;
// remote is zero for unix sockets. The Listener takes over fd, also on error.
// Loop only.
func (l *Loop) Listen(fd int, onAccept func(fd int, remote netip.AddrPort)) (*Listener, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("event loop: listen on descriptor %d: %w", fd, err)
	}
	ln := &Listener{l: l, fd: fd, onAccept: onAccept, reserve: -1, local: LocalAddr(fd)}
	ln.timer.F = ln.retry
	// Level-triggered: what one round leaves in the backlog is reported again.
	index, _, err := l.register(fd, ln, unix.EPOLLIN)
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	ln.slot = index
	ln.openReserve()
	return ln, nil
}

// Addr is the address the socket is bound to.
func (ln *Listener) Addr() netip.AddrPort { return ln.local }

func (ln *Listener) openReserve() {
	if ln.reserve < 0 {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			ln.reserve = fd
		}
	}
}

// onEvents accepts what is waiting.
func (ln *Listener) onEvents(uint32) {
	defer ln.l.contain(nil)
	for range acceptBatch {
		if ln.closed || ln.parked {
			return
		}
		fd, sa, err := unix.Accept4(ln.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch err {
		case nil:
			ln.backoff = 0
			ln.l.stats.Accepted.Add(1)
			ln.onAccept(fd, addrPort(sa))
		case unix.EINTR, unix.ECONNABORTED, unix.EPROTO:
		case unix.EAGAIN:
			return
		case unix.EMFILE, unix.ENFILE:
			ln.shed(err)
			return
		default:
			ln.rest(err)
			return
		}
	}
}

// shed drops one waiting connection by means of the reserve descriptor, so that
// its client hears something, and then rests.
func (ln *Listener) shed(cause error) {
	if ln.reserve >= 0 {
		_ = unix.Close(ln.reserve)
		ln.reserve = -1
		fd, _, err := unix.Accept4(ln.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err == nil {
			_ = unix.Close(fd)
		}
		ln.openReserve()
	}
	ln.rest(cause)
}

// rest stops accepting for a while: the error would come back at once.
func (ln *Listener) rest(cause error) {
	ln.l.stats.AcceptErrors.Add(1)
	ln.backoff = min(max(2*ln.backoff, acceptBackoffMin), acceptBackoffMax)
	if ln.backoff == acceptBackoffMin {
		ln.l.log.Warn("accept: resting", "listener", ln.local, "cause", cause)
	}
	ln.resting = true
	ln.watch()
	ln.l.Arm(&ln.timer, ln.backoff)
}

func (ln *Listener) retry() {
	ln.openReserve()
	ln.resting = false
	ln.watch()
}

// Park stops (true) or resumes (false) accepting; waiting clients stay in the
// kernel's backlog.
func (ln *Listener) Park(on bool) {
	ln.parked = on
	ln.watch()
}

func (ln *Listener) watch() {
	if ln.closed {
		return
	}
	events := uint32(unix.EPOLLIN)
	if ln.parked || ln.resting {
		events = 0
	}
	if err := ln.l.modify(ln.fd, ln.slot, events); err != nil {
		ln.l.log.Error("accept: change interest", "listener", ln.local, "cause", err)
	}
}

// Close stops accepting and closes the socket. Connections accepted before stay.
func (ln *Listener) Close() {
	if ln.closed {
		return
	}
	ln.closed = true
	ln.l.Disarm(&ln.timer)
	// An inherited socket may be open elsewhere; the registration must go by itself.
	_ = unix.EpollCtl(ln.l.ep, unix.EPOLL_CTL_DEL, ln.fd, nil)
	ln.l.release(ln.slot)
	_ = unix.Close(ln.fd)
	if ln.reserve >= 0 {
		_ = unix.Close(ln.reserve)
	}
}
