// Package egress asks the parent process of the local cluster to open a
// connection on the host. A pod's network namespace has no way out of the
// machine; the parent dials and hands over the connected descriptor, which then
// costs nothing more.
//
// Dial is the client that proxies and the node use; Request, Reply and Error are
// the protocol. What may be dialled is the parent's decision, not made here.
package egress

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/local/wire"
)

// HostIPv4 and HostIPv6 stand for the host's own loopback: the addresses of
// host.lateen.internal. They are dialled only at ports that were opened.
var (
	HostIPv4 = netip.AddrFrom4([4]byte{10, 77, 255, 254})
	HostIPv6 = netip.MustParseAddr("fd77::ffff:fffe")
)

// HostName resolves to HostIPv4 and HostIPv6.
const HostName = "host.lateen.internal"

// NetworkDNS and NetworkDNSTCP ask for a connection to the host's resolver;
// the address is then the number of the resolver, from "0".
const (
	NetworkDNS    = "dns"
	NetworkDNSTCP = "dns-tcp"
)

// Request is what a client sends.
type Request struct {
	Network string `json:"network"` // tcp, udp, dns, dns-tcp
	Address string `json:"address"` // host:port
}

// Reply is the answer; without an error it carries one descriptor.
type Reply struct {
	Kind  Kind   `json:"kind,omitempty"`
	Error string `json:"error,omitempty"`
}

// Kind classifies why a connection was not made.
type Kind string

// The reasons. Denied means that policy forbids the address; the others are the
// network's answer.
const (
	Denied      Kind = "denied"
	ConnRefused Kind = "refused"
	Timeout     Kind = "timeout"
	Unreachable Kind = "unreachable"
	Unresolved  Kind = "unresolved"
	Failed      Kind = "failed"
)

// Error is a connection that was not made.
type Error struct {
	Kind    Kind
	Address string
	Reason  string
}

// Error says what was asked and why it was not done.
func (e *Error) Error() string {
	return fmt.Sprintf("egress to %s: %s", e.Address, e.Reason)
}

// Dial asks the broker at socketPath for a connection. The returned descriptor
// is connected, non-blocking, close-on-exec and the caller's. A refusal is an
// *Error.
func Dial(ctx context.Context, socketPath, network, addr string) (int, error) {
	c, err := wire.Dial(ctx, socketPath)
	if err != nil {
		return -1, err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.Unix().SetDeadline(deadline); err != nil {
			return -1, fmt.Errorf("egress to %s: %w", addr, err)
		}
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if err := c.Send(Request{Network: network, Address: addr}); err != nil {
		return -1, fmt.Errorf("egress to %s: %w", addr, err)
	}
	var r Reply
	fds, err := c.Recv(&r)
	if err != nil {
		if ctx.Err() != nil {
			return -1, fmt.Errorf("egress to %s: %w", addr, context.Cause(ctx))
		}
		return -1, fmt.Errorf("egress to %s: %w", addr, err)
	}
	if r.Error != "" {
		wire.CloseAll(fds)
		return -1, &Error{Kind: r.Kind, Address: addr, Reason: r.Error}
	}
	if len(fds) != 1 {
		wire.CloseAll(fds)
		return -1, errors.New("egress to " + addr + ": the broker answered without a descriptor")
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		wire.CloseAll(fds)
		return -1, fmt.Errorf("egress to %s: %w", addr, err)
	}
	return fds[0], nil
}
