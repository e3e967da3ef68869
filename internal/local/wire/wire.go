// Package wire carries JSON messages and file descriptors between the processes
// of the local cluster over SOCK_SEQPACKET unix sockets: parent and node, the
// descriptor broker and its clients, the command line and the node. One message
// is one packet, so a message and its descriptors never part.
//
// It is a leaf. It promises that every descriptor it receives is close-on-exec
// and owned by the caller. It does not know what the messages mean.
package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	// maxMessage bounds one message in bytes. The kernel's default send buffer
	// of a unix socket is 208 KiB.
	maxMessage = 128 << 10
	// maxFDs bounds the descriptors of one message.
	maxFDs = 64
	// maxPath is the longest name that fits sun_path with its terminator.
	maxPath = 107
)

// Conn is one connection. Send and Recv may be called at the same time from two
// goroutines, but each by one at a time.
type Conn struct {
	uc  *net.UnixConn
	buf []byte
	oob []byte
}

// New makes a Conn of a connected SOCK_SEQPACKET socket.
func New(uc *net.UnixConn) *Conn {
	return &Conn{uc: uc}
}

// FromFD makes a Conn of an inherited descriptor, which it takes over.
func FromFD(fd int) (*Conn, error) {
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "wire")
	defer f.Close() // FileConn duplicates
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("use descriptor %d as a control socket: %w", fd, err)
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("use descriptor %d as a control socket: it is a %T", fd, c)
	}
	return New(uc), nil
}

// Pair returns a connected pair: one end for this process and one to hand to a
// child.
func Pair() (*Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a control socket pair: %w", err)
	}
	c, err := FromFD(fds[0])
	if err != nil {
		unix.Close(fds[1])
		return nil, nil, err
	}
	return c, os.NewFile(uintptr(fds[1]), "wire"), nil
}

// Listen listens on a socket file with mode 0600. A file that is already there
// is replaced. Names longer than sun_path go through /proc/self/fd.
func Listen(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: remove the old socket: %w", path, err)
	}
	short, done, err := shortPath(path)
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: short, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

// Dial connects to a socket made by Listen.
func Dial(ctx context.Context, path string) (*Conn, error) {
	short, done, err := shortPath(path)
	if err != nil {
		return nil, err
	}
	defer done()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixpacket", short)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return New(c.(*net.UnixConn)), nil
}

// shortPath returns a name of path that fits into a socket address, and a
// function that releases it.
func shortPath(path string) (string, func(), error) {
	if len(path) <= maxPath {
		return path, func() {}, nil
	}
	fd, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("open %s: %w", filepath.Dir(path), err)
	}
	return "/proc/self/fd/" + strconv.Itoa(fd) + "/" + filepath.Base(path), func() { unix.Close(fd) }, nil
}

// Send writes one message with descriptors, which stay the caller's.
func (c *Conn) Send(v any, fds ...int) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(data) > maxMessage {
		return fmt.Errorf("send message: %d bytes are more than %d", len(data), maxMessage)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := c.uc.WriteMsgUnix(data, oob, nil); err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

// Recv reads one message into v and returns its descriptors. At the end of the
// connection it returns io.EOF.
func (c *Conn) Recv(v any) ([]int, error) {
	if c.buf == nil {
		c.buf = make([]byte, maxMessage)
		c.oob = make([]byte, unix.CmsgSpace(maxFDs*4))
	}
	n, oobn, flags, _, err := c.uc.ReadMsgUnix(c.buf, c.oob)
	if err != nil {
		return nil, err
	}
	fds, err := rights(c.oob[:oobn])
	if err != nil {
		return nil, err
	}
	if n == 0 {
		CloseAll(fds)
		return nil, io.EOF
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		CloseAll(fds)
		return nil, errors.New("receive message: longer than a message may be")
	}
	if err := json.Unmarshal(c.buf[:n], v); err != nil {
		CloseAll(fds)
		return nil, fmt.Errorf("decode message: %w", err)
	}
	return fds, nil
}

func rights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("receive descriptors: %w", err)
	}
	var fds []int
	for i := range msgs {
		got, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue // another kind of control message
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

// PeerUID returns the user of the other end, as this process's user namespace
// sees it.
func (c *Conn) PeerUID() (int, error) {
	raw, err := c.uc.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, fmt.Errorf("peer credentials: %w", err)
	}
	if credErr != nil {
		return 0, fmt.Errorf("peer credentials: %w", credErr)
	}
	return int(cred.Uid), nil
}

// Unix returns the socket, for deadlines.
func (c *Conn) Unix() *net.UnixConn { return c.uc }

// Close closes the connection.
func (c *Conn) Close() error { return c.uc.Close() }

// CloseAll closes descriptors that nobody wants.
func CloseAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
