//go:build !linux

package local

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
)

// errPlatform is the answer to everything that needs namespaces.
var errPlatform = errors.New("running a mesh on this machine needs Linux (namespaces and nftables)\nhint: use a Linux virtual machine; analyze, fix and the other offline commands work here")

// HiddenRole handles nothing here.
func HiddenRole([]string) (handled bool, code int) { return false, 0 }

// Up says why it cannot.
func Up(context.Context, Options) error { return errPlatform }

// Preflight says why Up cannot.
func Preflight() error { return errPlatform }

// Client has nothing to talk to here.
type Client struct{}

// NewClient returns a Client whose calls say why they cannot.
func NewClient(string) *Client { return &Client{} }

// Pods is not possible here.
func (*Client) Pods(context.Context) ([]PodStatus, error) { return nil, errPlatform }

// Pod is not possible here.
func (*Client) Pod(context.Context, string) (PodStatus, error) { return PodStatus{}, errPlatform }

// Exec is not possible here.
func (*Client) Exec(context.Context, string, string, []string, *os.File, *os.File, *os.File) (int, error) {
	return 0, errPlatform
}

// Dial is not possible here.
func (*Client) Dial(context.Context, string, int) (net.Conn, error) { return nil, errPlatform }

// PortForward is not possible here.
func (*Client) PortForward(context.Context, net.Listener, string, int) error { return errPlatform }

// Logs is not possible here.
func (*Client) Logs(context.Context, string, string, bool, io.Writer) error { return errPlatform }

// Delete is not possible here.
func (*Client) Delete(context.Context, string) error { return errPlatform }

// Signal is not possible here.
func (*Client) Signal(context.Context, string, string, syscall.Signal) error { return errPlatform }

// Down is not possible here.
func (*Client) Down(context.Context) error { return errPlatform }

// Info is not possible here.
func (*Client) Info(context.Context) (Info, error) { return Info{}, errPlatform }

// Events is not possible here.
func (*Client) Events(context.Context, func(Event) error) error { return errPlatform }
