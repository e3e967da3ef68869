//go:build !linux

package api

import (
	"errors"
	"net"
)

func shortPath(path string) (short string, done func(), err error) {
	return path, func() {}, nil
}

// peerUID refuses everybody: the local cluster needs Linux, and a socket whose
// peer is unknown must not be served.
func peerUID(net.Conn) (int, error) {
	return -1, errors.New("peer credentials are read on Linux only")
}
