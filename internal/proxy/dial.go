package proxy

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/bootstrap"
	"lateen.dev/lateen/internal/proxy/loop"
	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/upstream"
)

// dialer makes upstream connections for one worker; it implements
// upstream.Dialer.
type dialer struct{ w *worker }

// dialling is one connection on its way: socket, perhaps a broker, perhaps TLS.
// It tells done exactly once, unless cancelled.
type dialling struct {
	w      *worker
	target upstream.Target
	done   func(message.Transport, *upstream.Error)
	socket *loop.Dialing
	conn   *loop.Conn
	timer  loop.Timer
	stop   context.CancelFunc // of the broker's answer
	over   bool
}

// DialHTTP implements upstream.Dialer.
func (d dialer) DialHTTP(t upstream.Target, o message.ClientObserver, done func(message.ClientConn, *upstream.Error)) func() {
	return d.dial(t, func(tr message.Transport, err *upstream.Error) {
		if err != nil {
			done(nil, err)
			return
		}
		done(d.w.codec.newClient(tr, &t, o), nil)
	})
}

// DialTCP implements upstream.Dialer.
func (d dialer) DialTCP(t upstream.Target, done func(message.Transport, *upstream.Error)) func() {
	return d.dial(t, done)
}

func (d dialer) dial(t upstream.Target, done func(message.Transport, *upstream.Error)) func() {
	a := &dialling{w: d.w, target: t, done: done}
	if t.Mark == 0 && d.w.s.o.Bootstrap.Capture == bootstrap.CaptureMark {
		a.target.Mark = defaultMark(t.Cluster)
	}
	a.timer.F = func() { a.fail(&upstream.Error{Code: message.ResetConnectTimeout}) }
	d.w.loop.Arm(&a.timer, t.Timeout)
	if d.w.s.brokered(t.Addr.Addr()) {
		a.askBroker()
	} else {
		a.connect(0)
	}
	return a.cancel
}

// defaultMark is the mark of a cluster that sets none: without it the capture
// rules would send our own connection back to us.
func defaultMark(cluster string) uint32 {
	if strings.HasPrefix(cluster, "inbound|") || cluster == "InboundPassthroughCluster" {
		return bootstrap.InboundMark
	}
	return bootstrap.OutboundMark
}

// brokered says whether an address is outside the node, where only the parent
// can connect. Without knowledge of the node's networks everything is dialled.
func (s *Server) brokered(a netip.Addr) bool {
	b := s.o.Bootstrap
	if a = a.Unmap(); s.o.Egress == nil || a.IsLoopback() || len(b.Networks) == 0 {
		return false
	}
	for _, ip := range b.IPs {
		if ip == a {
			return false
		}
	}
	for _, n := range b.Networks {
		if n.Contains(a) {
			return false
		}
	}
	return true
}

// askBroker waits for a connected descriptor on a goroutine.
func (a *dialling) askBroker() {
	ctx, cancel := context.WithTimeout(context.Background(), a.target.Timeout)
	a.stop = cancel
	l, egress, addr := a.w.loop, a.w.s.o.Egress, a.target.Addr
	go func() {
		fd, err := egress(ctx, addr)
		if !l.Post(func() { a.brokerAnswered(fd, err) }) && err == nil {
			_ = unix.Close(fd)
		}
	}()
}

func (a *dialling) brokerAnswered(fd int, err error) {
	switch {
	case a.over:
		if err == nil {
			_ = unix.Close(fd)
		}
	case errors.Is(err, context.DeadlineExceeded):
		a.fail(&upstream.Error{Code: message.ResetConnectTimeout})
	case err != nil:
		a.fail(&upstream.Error{Code: message.ResetConnectFailure, Reason: "immediate connect error: " + err.Error()})
	default:
		a.connect(fd)
	}
}

// connect opens the socket, or waits for the one of the broker.
func (a *dialling) connect(fd int) {
	t := &a.target
	o := loop.DialOptions{Addr: t.Addr, FD: fd, Mark: t.Mark, Bind: t.Bind}
	if o.Bind.IsValid() && o.Bind.Is4() != t.Addr.Addr().Unmap().Is4() {
		o.Bind = netip.Addr{} // a source address of the other family helps nobody
	}
	if k := t.Keepalive; k != nil {
		o.Keepalive = loop.Keepalive{Idle: k.Time, Interval: k.Interval, Count: int(k.Probes)}
		if o.Keepalive.Idle <= 0 {
			o.Keepalive.Idle = 2 * time.Hour // the system's default; the option means "on"
		}
	}
	a.socket = a.w.loop.Dial(o, a.connected)
}

func (a *dialling) connected(c *loop.Conn, err error) {
	if err != nil {
		if loop.IsTimeout(err) {
			a.fail(&upstream.Error{Code: message.ResetConnectTimeout})
			return
		}
		a.fail(&upstream.Error{Code: message.ResetConnectFailure, Reason: "delayed connect error: " + reason(err)})
		return
	}
	a.conn = c
	if a.target.TLS == nil {
		a.succeed(c)
		return
	}
	o := &a.w.s.o
	if o.Secrets == nil || o.Handshakes == nil {
		c.Abort()
		a.fail(&upstream.Error{Code: message.ResetTLSFailure, Reason: "TLS_error: no certificates in this proxy"})
		return
	}
	t := &a.target
	o.Handshakes.Client(c, o.Secrets.ClientConfig(t.TLS, t.SNI, t.TLS.Offers(t.Speak)), func(tr message.Transport, err error) {
		switch {
		case a.over:
			if tr != nil {
				tr.Abort()
			}
		case err != nil:
			a.fail(&upstream.Error{Code: message.ResetTLSFailure, Reason: "TLS_error: " + err.Error()})
		default:
			a.succeed(tr)
		}
	})
}

// reason is the system's text of an error, as Envoy prints it.
func reason(err error) string {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err.Error()
	}
	text := errno.Error()
	return strings.ToUpper(text[:1]) + text[1:]
}

func (a *dialling) end() {
	a.over = true
	if a.timer.Armed() {
		a.w.loop.Disarm(&a.timer)
	}
	if a.stop != nil {
		a.stop()
	}
}

func (a *dialling) succeed(t message.Transport) {
	if !a.over {
		a.end()
		a.done(t, nil)
	}
}

func (a *dialling) fail(err *upstream.Error) {
	if !a.over {
		a.cancel()
		a.done(nil, err)
	}
}

// cancel stops whatever is under way.
func (a *dialling) cancel() {
	if a.over {
		return
	}
	a.end()
	if a.conn != nil {
		a.conn.Abort()
	} else if a.socket != nil {
		a.socket.Cancel()
	}
}

// resolver looks up names on goroutines; it implements upstream.Resolver.
type resolver struct{ w *worker }

// resolveTimeout bounds one lookup.
const resolveTimeout = 5 * time.Second

// Resolve implements upstream.Resolver.
func (r resolver) Resolve(host string, done func([]netip.Addr, error)) {
	resolve := r.w.s.o.Resolve
	if resolve == nil {
		r.w.loop.Later(func() { done(nil, errors.New("resolve "+host+": this proxy has no resolver")) })
		return
	}
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), resolveTimeout)
		defer cancel()
		addrs, err := resolve(ctx, host)
		r.w.loop.Post(func() { done(addrs, err) })
	}()
}
