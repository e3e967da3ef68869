package proxy

import (
	"fmt"
	"net/netip"
	"reflect"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/proxy/filter"
	"lateen.dev/lateen/internal/proxy/filter/authz"
	"lateen.dev/lateen/internal/proxy/loop"
	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/record"
	"lateen.dev/lateen/internal/proxy/snapshot"
	"lateen.dev/lateen/internal/proxy/sniff"
	"lateen.dev/lateen/internal/proxy/stream"
	"lateen.dev/lateen/internal/proxy/tcp"
	"lateen.dev/lateen/internal/proxy/upstream"
)

// Waiting times of protocol detection, used when a listener that also serves
// other protocols sets none. Istio waits for ever, which stalls every protocol
// in which the server speaks first; here such a connection goes on as TCP. A
// declared HTTP port waits longer, because its clients may connect ahead of
// their first request.
const (
	detectTimeout     = time.Second
	detectTimeoutHTTP = 5 * time.Second
)

// handshakeTimeout bounds a TLS handshake whose chain sets no bound (Istio's
// transport_socket_connect_timeout).
const handshakeTimeout = 15 * time.Second

// downstream is one accepted connection. Before its chain is known it inspects
// the first bytes; afterwards it accepts exchanges, or joins bytes.
type downstream struct {
	w     *worker
	bound string // name of the listener it was accepted for
	conn  *loop.Conn
	info  snapshot.ConnInfo

	listener *snapshot.Listener
	chain    *snapshot.FilterChain
	site     *stream.Site
	codec    serverCodec // nil until it is known, and for TCP
	pair     *tcp.Pair
	request  *upstream.TCPRequest
	dialing  bool

	transport          message.Transport
	timer              *loop.Timer // inspection or handshake
	wantTLS, wantHTTP  bool
	rec                record.ConnRecord
	handed, gone, over bool
}

// start adopts the descriptor and begins to find the filter chain.
func (d *downstream) start(fd int, remote netip.AddrPort) error {
	b := d.w.s.o.Bootstrap
	local, dst, captured, err := destination(b, fd)
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	if !captured && captures(b, local.Port()) {
		_ = unix.Close(fd) // it would be forwarded to ourselves
		return fmt.Errorf("%v was dialled directly; only redirected connections belong here", local)
	}
	info := message.Conn{Local: local, Remote: unmap(remote)}
	if captured {
		info.OriginalDst = dst
	}
	if d.conn, err = d.w.loop.Adopt(fd, info); err != nil {
		return err
	}
	d.transport = d.conn
	d.info = snapshot.ConnInfo{Destination: dst, Source: info.Remote, Transport: snapshot.TransportRaw}
	d.rec = record.ConnRecord{Start: d.w.loop.Wall(), Conn: d.conn.Conn()}
	d.rec.Gateway = b.Role == "router"
	d.w.add(d)
	d.listener = d.findListener(d.w.snap)
	if d.listener == nil {
		d.refuse(record.FlagNR, "listener_not_found")
		return nil
	}
	d.rec.Listener, d.rec.Direction = d.listener, d.listener.Direction
	d.wantTLS, d.wantHTTP = d.listener.Inspectors(dst)
	if !d.wantTLS && !d.wantHTTP {
		d.choose()
		return nil
	}
	d.inspectBounded()
	d.conn.SetHandler(d)
	return nil
}

// findListener returns the listener of a snapshot that this connection belongs
// to: the one it was accepted for, or for captured outbound connections the one
// of its destination.
func (d *downstream) findListener(s *snapshot.Snapshot) *snapshot.Listener {
	l := s.Listeners[d.bound]
	if l == nil || !l.UseOriginalDst || l.Direction == snapshot.Inbound {
		return l
	}
	if special := s.OutboundListener(d.info.Destination); special != nil && special != l {
		return special
	}
	return l
}

// inspectBounded limits the wait for the client's first bytes.
func (d *downstream) inspectBounded() {
	t := d.listener.InspectTimeout
	if t <= 0 {
		if !d.servesOther() {
			return // nothing else to do than to wait; the codec has its own bounds
		}
		t = detectTimeout
		if d.listener.Direction == snapshot.Outbound && len(d.listener.Addresses) > 0 && d.listener.Addresses[0].Addr().IsUnspecified() {
			t = detectTimeoutHTTP
		}
	}
	d.arm(t, func() {
		if d.listener.InspectTimeout > 0 && !d.listener.ContinueOnTimeout {
			d.refuse(0, "listener_filter_timeout")
			return
		}
		d.choose()
	})
}

// servesOther says whether the listener has a chain without HTTP.
func (d *downstream) servesOther() bool {
	if c := d.listener.Default; c != nil && c.HTTP == nil {
		return true
	}
	for _, c := range d.listener.Chains {
		if c.HTTP == nil && (c.Match.DestinationPort == 0 || c.Match.DestinationPort == d.info.Destination.Port()) {
			return true
		}
	}
	return false
}

func (d *downstream) arm(t time.Duration, f func()) {
	d.disarm()
	d.timer = &loop.Timer{F: func() {
		if !d.over {
			f()
		}
	}}
	d.w.loop.Arm(d.timer, t)
}

func (d *downstream) disarm() {
	if d.timer != nil && d.timer.Armed() {
		d.w.loop.Disarm(d.timer)
	}
}

// OnBytes implements message.TransportHandler while the connection is being
// inspected. It consumes nothing: the bytes belong to the protocol they reveal.
func (d *downstream) OnBytes(p []byte) int {
	if d.handed {
		return 0
	}
	if d.wantTLS {
		hello, v := sniff.ClientHello(p)
		switch v {
		case sniff.NeedMore:
			return 0
		case sniff.Match:
			d.info.Transport, d.info.SNI, d.info.ALPN = snapshot.TransportTLS, hello.SNI, hello.ALPN
			c := d.conn.Conn()
			c.SNI = hello.SNI
			d.choose()
			return 0
		}
	}
	if d.wantHTTP {
		switch p, v := sniff.HTTP(p); {
		case v == sniff.NeedMore:
			return 0
		case v == sniff.Match && p == message.HTTP11:
			d.info.ALPN = []string{"http/1.1"}
		case v == sniff.Match && p == message.HTTP10:
			d.info.ALPN = []string{"http/1.0"}
		case v == sniff.Match && p == message.HTTP2:
			d.info.ALPN = []string{"h2c"}
		}
	}
	d.choose()
	return 0
}

// OnEOF implements message.TransportHandler during inspection: the client will
// say no more, so what it said must do.
func (d *downstream) OnEOF() {
	if !d.handed {
		d.choose()
	}
}

// OnDrained implements message.TransportHandler.
func (d *downstream) OnDrained() {}

// OnClosed implements message.TransportHandler while nobody else handles the
// connection.
func (d *downstream) OnClosed(err error) {
	d.gone = true
	if d.dialing {
		d.dialing = false
		d.w.upstream.CancelTCP(d.request)
		d.rec.Flags |= record.FlagDC
	}
	if err != nil && d.rec.Termination == "" {
		d.rec.Termination = "downstream_remote_disconnect"
	}
	d.end()
}

// choose finds the filter chain and goes on with TLS or the protocol itself.
func (d *downstream) choose() {
	d.disarm()
	d.handed = true
	d.chain = d.listener.Match(d.info)
	d.rec.Chain = d.chain
	switch {
	case d.chain == nil:
		d.rec.Decider = d.listener.RefusedBy(d.info)
		d.refuse(record.FlagNR, "filter_chain_not_found")
	case d.chain.TLS != nil:
		d.handshake()
	default:
		d.serve(d.conn)
	}
}

// handshake terminates TLS away from the loop.
func (d *downstream) handshake() {
	o := &d.w.s.o
	if o.Secrets == nil || o.Handshakes == nil {
		d.refuse(0, "tls_not_available")
		return
	}
	t := d.chain.ConnectTimeout
	if t <= 0 {
		t = handshakeTimeout
	}
	d.arm(t, func() {
		d.rec.UpstreamError = "TLS handshake timeout"
		d.conn.Abort()
	})
	o.Handshakes.Server(d.conn, nil, o.Secrets.ServerConfig(d.chain.TLS), func(tr message.Transport, err error) {
		if d.over {
			if tr != nil {
				tr.Abort()
			}
			return
		}
		d.disarm()
		if err != nil {
			d.rec.Termination = "downstream_transport_failure: " + err.Error()
			d.w.s.log.Debug("TLS handshake with client", "remote", d.info.Source, "cause", err)
			d.end()
			return
		}
		d.serve(tr)
	})
}

// serve hands the connection to its protocol, once network policy lets it in.
func (d *downstream) serve(t message.Transport) {
	d.transport = t
	c := t.Conn()
	if len(d.info.SNI) > 0 && c.SNI == "" {
		c.SNI = d.info.SNI
	}
	d.rec.Conn, d.rec.TLS = c, c.TLS
	if res := d.networkPolicy(d.chain); res.Verdict != filter.Continue {
		d.rec.Policy, d.rec.Decider = policyOf(res)
		d.refuse(0, res.Details)
		return
	}
	switch {
	case d.chain.HTTP != nil:
		d.serveHTTP()
	case d.chain.TCP != nil:
		d.serveTCP()
	default:
		d.refuse(record.FlagNR, "filter_chain_without_proxy")
	}
}

func (d *downstream) networkPolicy(c *snapshot.FilterChain) authz.Result {
	if len(c.NetworkRBAC) == 0 {
		return authz.Result{}
	}
	return authz.Connection(c.NetworkRBAC, &snapshot.Subject{Conn: d.transport.Conn()})
}

func policyOf(r authz.Result) (name string, origin snapshot.Origin) {
	if r.Policy != nil {
		name = r.Policy.Name
	}
	return name, r.Origin
}

// refuse closes a connection that may not go on and records why.
func (d *downstream) refuse(flags record.Flags, details string) {
	d.disarm()
	d.handed = true
	d.rec.Flags |= flags
	d.rec.Details, d.rec.Termination = details, details
	d.transport.SetHandler(d)
	d.transport.Abort()
	d.end()
}

// Accept implements message.Acceptor: every exchange runs with the snapshot of
// its own beginning.
func (d *downstream) Accept(s message.Sender) message.Receiver {
	return d.w.env.New(d.site, s)
}

// OnConnClosed implements message.Acceptor.
func (d *downstream) OnConnClosed() {
	d.gone = true
	d.end()
}

// rematch looks whether a new snapshot still wants this connection as it is:
// the same kind of chain with the same TLS, and network policy that lets it in.
// If not, it is closed after the exchange in flight.
func (d *downstream) rematch(next *snapshot.Snapshot) {
	if d.chain == nil || d.over {
		if d.chain == nil && !d.handed && !d.over {
			d.relisten(next)
		}
		return
	}
	l := d.findListener(next)
	if l == d.listener {
		d.adoptSite(next, d.chain)
		return
	}
	var c *snapshot.FilterChain
	if l != nil {
		c = l.Match(d.info)
	}
	if c == nil || !sameTransport(d.chain, c) || !sameCodec(d.chain.HTTP, c.HTTP) ||
		d.networkPolicy(c).Verdict != filter.Continue {
		d.drain()
		return
	}
	d.listener, d.chain = l, c
	d.rec.Listener, d.rec.Chain = l, c
	d.adoptSite(next, c)
}

// relisten gives a connection that is still being inspected today's listener.
func (d *downstream) relisten(next *snapshot.Snapshot) {
	l := d.findListener(next)
	if l == nil {
		d.refuse(record.FlagNR, "listener_not_found")
		return
	}
	d.listener, d.rec.Listener = l, l
}

func (d *downstream) adoptSite(next *snapshot.Snapshot, c *snapshot.FilterChain) {
	if d.site != nil {
		d.site = &stream.Site{Snapshot: next, Listener: d.listener, Manager: c.HTTP, Gateway: d.rec.Gateway}
	}
}

// sameTransport says whether two chains secure a connection in the same way.
func sameTransport(a, b *snapshot.FilterChain) bool {
	return a.TLS == b.TLS || a.TLS != nil && b.TLS != nil && reflect.DeepEqual(a.TLS, b.TLS)
}

// sameCodec says whether two chains read a connection in the same way.
func sameCodec(a, b *snapshot.HTTPManager) bool {
	return (a == nil) == (b == nil) && (a == nil || a.Codec == b.Codec)
}

// drain ends the connection after what is in flight, at once when idle.
func (d *downstream) drain() {
	switch {
	case d.over:
	case d.codec != nil:
		d.codec.Drain()
	case d.pair != nil:
		d.pair.Close()
	case d.site != nil: // not one byte has come yet
		d.transport.Close()
	}
}

// lastExchange lets the connection end with its next response; a request that
// is on its way already is still served.
func (d *downstream) lastExchange() {
	if !d.over && d.codec != nil {
		d.codec.Last()
	}
}

// end is the last thing that happens to a connection.
func (d *downstream) end() {
	if d.over {
		return
	}
	d.over = true
	d.disarm()
	d.w.remove(d)
	if d.site != nil {
		return // its exchanges have been recorded
	}
	d.rec.Total = d.w.loop.Wall().Sub(d.rec.Start)
	d.w.recorder.ConnDone(&d.rec)
}
