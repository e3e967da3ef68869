package simulate

import (
	"crypto/x509"
	"net/netip"
	"slices"

	"lateen.dev/lateen/internal/bootstrap"
	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
	"lateen.dev/lateen/internal/proxy/upstream"
)

// server is the far side of a simulated connection: a proxy or an application.
// accept returns nil to close the connection instead.
type server func(conn *message.Conn, down message.Sender) message.Receiver

// dialer makes the connections of one pod's proxy.
type dialer struct {
	world *World
	from  *pod
}

// DialHTTP implements upstream.Dialer.
func (d *dialer) DialHTTP(t upstream.Target, o message.ClientObserver, done func(message.ClientConn, *upstream.Error)) func() {
	cancelled := false
	d.world.later(func() {
		if cancelled {
			return
		}
		c, err := d.connect(t, o)
		if err != nil {
			done(nil, err)
			return
		}
		done(c, nil)
	})
	return func() { cancelled = true }
}

func (d *dialer) connect(t upstream.Target, o message.ClientObserver) (*clientConn, *upstream.Error) {
	conn := d.near(t)
	accept, far, err := d.world.reach(d.from, t, conn)
	if err != nil {
		return nil, err
	}
	return &clientConn{world: d.world, conn: conn, far: far, accept: accept, observer: o}, nil
}

// near is a new connection to a target as the dialling proxy sees it.
func (d *dialer) near(t upstream.Target) *message.Conn {
	d.world.nextID++
	c := &message.Conn{ID: d.world.nextID, Local: netip.AddrPortFrom(d.from.view.IPs[0], 40000), Remote: t.Addr}
	speaks(c, "", t.Speak)
	return c
}

// speaks sets what is spoken on a connection: what was negotiated, else what it
// was made for.
func speaks(c *message.Conn, negotiated string, s snapshot.Speak) {
	c.ALPN, c.Protocol = negotiated, message.HTTP11
	c.Trunk = negotiated == message.ALPNTrunk
	if !c.Trunk && snapshot.SpeaksHTTP2(negotiated, s == snapshot.SpeakHTTP2) {
		c.Protocol = message.HTTP2
	}
}

// reach finds who answers at an address and what both ends know of the
// connection.
func (w *World) reach(from *pod, t upstream.Target, conn *message.Conn) (server, *message.Conn, *upstream.Error) {
	far := &message.Conn{ID: conn.ID, Local: t.Addr, Remote: conn.Local, OriginalDst: t.Addr, SNI: t.SNI}
	speaks(far, "", t.Speak)
	to := w.byIP[t.Addr.Addr()]
	if to == nil || t.Mark == bootstrap.InboundMark || to.proxy == nil {
		name := "external-" + t.Addr.String()
		if to != nil {
			name = to.name
		}
		if t.TLS != nil {
			return nil, nil, &upstream.Error{Code: message.ResetTLSFailure, Reason: "TLS_error: the peer speaks plaintext"}
		}
		return w.application(name), far, nil
	}
	if t.TLS != nil {
		if err := w.secure(from, to, t, conn, far); err != nil {
			return nil, nil, err
		}
	}
	return to.proxy.inbound, far, nil
}

// secure fills in what both ends know after a TLS handshake between pods.
func (w *World) secure(from, to *pod, t upstream.Target, conn, far *message.Conn) *upstream.Error {
	client, serverID := from.identity(w.trustDomain()), to.identity(w.trustDomain())
	if t.TLS.Validation != nil && !matchesSAN(t.TLS.Validation, serverID) {
		return &upstream.Error{Code: message.ResetTLSFailure, Reason: "TLS_error: certificate of " + serverID + " does not match"}
	}
	conn.TLS = &message.TLSInfo{PeerURISANs: []string{serverID}, LocalURISAN: client, Mutual: t.TLS.Certificate != ""}
	far.TLS = &message.TLSInfo{LocalURISAN: serverID, Mutual: conn.TLS.Mutual}
	if t.TLS.Certificate != "" {
		far.TLS.PeerURISANs = []string{client}
		far.TLS.PeerCert = &x509.Certificate{Raw: []byte(client)}
	}
	offers := t.TLS.Offers(t.Speak)
	w.offers[conn.ID] = offers
	negotiated := to.proxy.negotiate(far, offers)
	speaks(conn, negotiated, t.Speak)
	speaks(far, negotiated, t.Speak)
	return nil
}

// negotiate is the server's choice among the protocols that a client offers.
func (x *proxy) negotiate(conn *message.Conn, offers snapshot.ALPN) string {
	l := x.listener(conn)
	if l == nil {
		return ""
	}
	chain := l.Match(x.connInfo(l, conn))
	if chain == nil || chain.TLS == nil {
		return ""
	}
	for _, p := range chain.TLS.ALPN {
		if slices.Contains(offers, p) {
			return p
		}
	}
	return ""
}

// inbound begins an exchange that arrived at the pod from outside.
func (x *proxy) inbound(conn *message.Conn, down message.Sender) message.Receiver {
	listener := x.listener(conn)
	if listener == nil {
		return nil
	}
	return x.begin(listener, conn, down)
}

// listener is the one that a connection from outside arrives at.
func (x *proxy) listener(conn *message.Conn) *snapshot.Listener {
	if x.snap.Inbound == nil || isGateway(x.pod) {
		return x.boundTo(conn.Local.Port())
	}
	return x.snap.Inbound
}

// boundTo returns the listener that binds a port itself.
func (x *proxy) boundTo(port uint16) *snapshot.Listener {
	for _, l := range x.snap.Listeners {
		for _, a := range l.Addresses {
			if l.BindToPort && a.Port() == port {
				return l
			}
		}
	}
	return nil
}

// maxStreams is how many exchanges a simulated HTTP/2 connection carries.
const maxStreams = 128

// clientConn is the near end of a connection: with one exchange at a time, or
// with many.
type clientConn struct {
	world    *World
	conn     *message.Conn
	far      *message.Conn
	accept   server
	observer message.ClientObserver
	used     int
	active   int
	closing  bool
	closed   bool
}

func (c *clientConn) Conn() *message.Conn { return c.conn }
func (c *clientConn) Used() int           { return c.used }
func (c *clientConn) Active() int         { return c.active }

func (c *clientConn) many() bool { return c.conn.Trunk || c.conn.Protocol == message.HTTP2 }

func (c *clientConn) Capacity() int {
	switch {
	case c.closing || c.closed:
		return 0
	case c.many():
		return maxStreams - c.active
	}
	return 1 - c.active
}

func (c *clientConn) Close(graceful bool) {
	c.closing = true
	if c.closed || graceful && c.active > 0 {
		return
	}
	c.close(message.ResetNone)
}

func (c *clientConn) close(code message.ResetCode) {
	if c.closed {
		return
	}
	c.closed = true
	c.world.later(func() { c.observer.OnClosed(c, code, nil) })
}

// Open implements message.ClientConn.
func (c *clientConn) Open(r message.Receiver) message.Sender {
	c.used++
	c.active++
	x := &link{world: c.world, client: r, conn: c.conn, over: func(reset bool) {
		c.active--
		switch {
		case reset && !c.many():
			c.close(message.ResetTermination)
		case c.closing && c.active == 0:
			c.close(message.ResetNone)
		case !c.closed && !c.closing:
			c.observer.OnCapacity(c)
		}
	}}
	x.connect(c.accept, c.far)
	return (*clientSender)(x)
}

// maxLinks bounds the exchanges of one call, retries and mirrors included: a
// configuration in which a proxy calls itself must end.
const maxLinks = 200

// link carries one exchange: requests one way, responses the other, every event
// by way of the world's queue.
type link struct {
	world          *World
	client, server message.Receiver
	conn, farConn  *message.Conn
	over           func(reset bool)
	reqEnd, resEnd bool
	dead           bool
}

func (x *link) connect(accept server, far *message.Conn) {
	x.farConn = far
	if x.world.links++; x.world.links <= maxLinks {
		x.server = accept(far, (*serverSender)(x))
	}
	if x.server == nil {
		x.world.later(func() { x.reset(x.resetByPeer(), true, false) })
	}
}

// resetByPeer is what the requester hears when the other side gives up: its
// stream is reset, or the connection goes.
func (x *link) resetByPeer() message.ResetCode {
	if x.conn.Trunk || x.conn.Protocol == message.HTTP2 {
		return message.ResetRemote
	}
	return message.ResetTermination
}

// reset ends the exchange; each side is told unless it began the reset.
func (x *link) reset(code message.ResetCode, tellClient, tellServer bool) {
	if x.dead {
		return
	}
	x.dead = true
	if tellServer && x.server != nil {
		x.server.OnReset(code)
	}
	if tellClient && x.client != nil {
		x.client.OnReset(code)
	}
	x.over(true)
}

func (x *link) finish() {
	if x.reqEnd && x.resEnd && !x.dead {
		x.dead = true
		x.over(false)
	}
}

// deliver queues an event unless the exchange is dead by then.
func (x *link) deliver(f func()) {
	x.world.later(func() {
		if !x.dead {
			f()
		}
	})
}

func copyOf(h *message.Head) *message.Head {
	c := new(message.Head)
	c.CopyFrom(h)
	return c
}

// clientSender is the requester's side of a link.
type clientSender link

func (s *clientSender) SendHead(h *message.Head, end bool) {
	x, c := (*link)(s), copyOf(h)
	x.deliver(func() { x.server.OnHead(c, end); x.requestEnds(end) })
}

func (s *clientSender) SendInformational(*message.Head) {}

func (s *clientSender) SendData(p []byte, end bool) {
	x, c := (*link)(s), append([]byte(nil), p...)
	x.deliver(func() { x.server.OnData(c, end); x.requestEnds(end) })
}

func (s *clientSender) SendTrailers(h *message.Head) {
	x, c := (*link)(s), copyOf(h)
	x.deliver(func() { x.server.OnTrailers(c); x.requestEnds(true) })
}

func (s *clientSender) Reset(code message.ResetCode) { (*link)(s).reset(code, false, true) }
func (s *clientSender) Pause(bool)                   {}
func (s *clientSender) Buffered() int                { return 0 }
func (s *clientSender) OverHigh() bool               { return false }
func (s *clientSender) Conn() *message.Conn          { return s.conn }

func (x *link) requestEnds(end bool) {
	if end {
		x.reqEnd = true
		x.finish()
	}
}

// serverSender is the answering side of a link.
type serverSender link

func (s *serverSender) SendHead(h *message.Head, end bool) {
	x, c := (*link)(s), copyOf(h)
	x.deliver(func() { x.client.OnHead(c, end); x.responseEnds(end) })
}

func (s *serverSender) SendInformational(h *message.Head) {
	x, c := (*link)(s), copyOf(h)
	x.deliver(func() { x.client.OnInformational(c) })
}

func (s *serverSender) SendData(p []byte, end bool) {
	x, c := (*link)(s), append([]byte(nil), p...)
	x.deliver(func() { x.client.OnData(c, end); x.responseEnds(end) })
}

func (s *serverSender) SendTrailers(h *message.Head) {
	x, c := (*link)(s), copyOf(h)
	x.deliver(func() { x.client.OnTrailers(c); x.responseEnds(true) })
}

func (s *serverSender) Reset(message.ResetCode) {
	x := (*link)(s)
	x.deliver(func() { x.reset(x.resetByPeer(), true, false) })
}
func (s *serverSender) Pause(bool)          {}
func (s *serverSender) Buffered() int       { return 0 }
func (s *serverSender) OverHigh() bool      { return false }
func (s *serverSender) Conn() *message.Conn { return s.farConn }

func (x *link) responseEnds(end bool) {
	if end {
		x.resEnd = true
		x.finish()
	}
}
