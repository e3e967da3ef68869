package app

import (
	"errors"
	"net"
	"sync"
)

// join makes one listener of several; nil ones are left out. It returns nil for
// none.
func join(listeners ...net.Listener) net.Listener {
	var present []net.Listener
	for _, l := range listeners {
		if l != nil {
			present = append(present, l)
		}
	}
	switch len(present) {
	case 0:
		return nil
	case 1:
		return present[0]
	}
	j := &joined{listeners: present, accepted: make(chan accept), closed: make(chan struct{})}
	for _, l := range present {
		go j.pump(l)
	}
	return j
}

type accept struct {
	conn net.Conn
	err  error
}

// joined accepts from all its listeners.
type joined struct {
	listeners []net.Listener
	accepted  chan accept
	closed    chan struct{}
	once      sync.Once
}

func (j *joined) pump(l net.Listener) {
	for {
		conn, err := l.Accept()
		select {
		case j.accepted <- accept{conn, err}:
		case <-j.closed:
			if conn != nil {
				_ = conn.Close()
			}
			return
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
	}
}

// Accept implements net.Listener.
func (j *joined) Accept() (net.Conn, error) {
	select {
	case a := <-j.accepted:
		return a.conn, a.err
	case <-j.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (j *joined) Close() error {
	var errs []error
	j.once.Do(func() {
		close(j.closed)
		for _, l := range j.listeners {
			errs = append(errs, l.Close())
		}
	})
	return errors.Join(errs...)
}

// Addr implements net.Listener: the address of the first one.
func (j *joined) Addr() net.Addr { return j.listeners[0].Addr() }
