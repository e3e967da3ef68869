package proxy

import (
	"bytes"
	"time"

	"lateen.dev/lateen/internal/proxy/http1"
	"lateen.dev/lateen/internal/proxy/http2"
	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/record"
	"lateen.dev/lateen/internal/proxy/snapshot"
	"lateen.dev/lateen/internal/proxy/sniff"
	"lateen.dev/lateen/internal/proxy/stream"
	"lateen.dev/lateen/internal/proxy/upstream"
)

// headTimeout bounds the arrival of a request head; a client that needs longer
// holds a connection for nothing. idleTimeout is Envoy's default for
// connections without exchange.
const (
	headTimeout = time.Minute
	idleTimeout = time.Hour
)

// Streams that a client may have open at once on one connection, unless the
// manager says so: mesh peers are trusted with more than the world is.
const (
	maxStreams        = 1024
	maxStreamsGateway = 128
)

// stallTimeout bounds how long a finished response waits for an HTTP/2 client
// that grants no window, unless the manager bounds silence.
const stallTimeout = 5 * time.Minute

// serverCodec is what an accepted HTTP connection is driven by.
type serverCodec interface {
	// Drain ends the connection after what is in flight, Last after the next
	// exchange too.
	Drain()
	Last()
}

// codecs holds the options that the HTTP connections of one loop share, one set
// per connection manager and per kind of upstream.
type codecs struct {
	w       *worker
	pool    *http1.Pool
	pool2   *http2.Pool
	client  *http1.ClientOptions
	client2 map[snapshot.HTTP2Options]*http2.ClientOptions
	servers map[*snapshot.HTTPManager]*http1.ServerOptions
	server2 map[*snapshot.HTTPManager]*http2.ServerOptions
}

func (c *codecs) init(w *worker) {
	c.w = w
	c.pool, c.pool2 = http1.NewPool(w.loop.Later), http2.NewPool(w.loop.Later)
	c.client = &http1.ClientOptions{Pool: c.pool}
	c.client2 = map[snapshot.HTTP2Options]*http2.ClientOptions{}
	c.servers = map[*snapshot.HTTPManager]*http1.ServerOptions{}
	c.server2 = map[*snapshot.HTTPManager]*http2.ServerOptions{}
}

// forget drops the options of managers and clusters that an older snapshot had.
func (c *codecs) forget() {
	clear(c.servers)
	clear(c.server2)
	clear(c.client2)
}

func (c *codecs) http1Server(m *snapshot.HTTPManager) *http1.ServerOptions {
	if o := c.servers[m]; o != nil {
		return o
	}
	o := &http1.ServerOptions{
		Pool: c.pool, Timers: c.w.loop, Limits: http1.Limits{HeadBytes: m.MaxRequestHeaders},
		IdleTimeout: m.IdleTimeout, HeadTimeout: headTimeout,
		AllowConnect: m.Upgrades["connect"], AllowUpgrade: true,
	}
	if c.w.s.draining.Load() {
		o.MaxRequests = 1 // the connection came while we are leaving
	}
	if o.IdleTimeout <= 0 {
		o.IdleTimeout = idleTimeout
	}
	o.OnError = func(e *http1.Error, conn *message.Conn) {
		c.w.codecError(m, e.Status, e.Reason, e.Details(), conn)
	}
	c.servers[m] = o
	return o
}

func (c *codecs) http2Server(m *snapshot.HTTPManager) *http2.ServerOptions {
	if o := c.server2[m]; o != nil {
		return o
	}
	o := &http2.ServerOptions{
		Pool: c.pool2, Timers: c.w.loop, Limits: http2.Limits{HeadBytes: m.MaxRequestHeaders},
		MaxStreams: m.H2.MaxConcurrentStreams, IdleTimeout: m.IdleTimeout, HeadTimeout: headTimeout,
		StallTimeout: m.StreamIdleTimeout,
		KeepAlive:    http2.KeepAlive{Interval: m.H2.KeepaliveInterval, Timeout: m.H2.KeepaliveTimeout},
		AllowConnect: m.Upgrades["connect"], AllowUpgrade: true,
	}
	if o.MaxStreams == 0 {
		o.MaxStreams = maxStreams
		if c.w.s.o.Bootstrap.Role == "router" {
			o.MaxStreams = maxStreamsGateway
		}
	}
	if c.w.s.draining.Load() {
		o.MaxRequests = 1
	}
	if o.IdleTimeout <= 0 {
		o.IdleTimeout = idleTimeout
	}
	if o.StallTimeout <= 0 {
		o.StallTimeout = stallTimeout
	}
	o.OnError = func(e *http2.Error, conn *message.Conn) {
		c.w.codecError(m, e.Status, e.Reason, e.Details(), conn)
	}
	c.server2[m] = o
	return o
}

// codecError records a request that never became an exchange.
func (w *worker) codecError(m *snapshot.HTTPManager, status int, reason, details string, c *message.Conn) {
	w.s.log.Debug("request refused", "remote", c.Remote, "reason", reason)
	w.recorder.Done(&record.Record{
		Start: w.loop.Wall(), Conn: c, Manager: m, Gateway: w.s.o.Bootstrap.Role == "router",
		Status: status, Flags: record.FlagDPE, Details: details,
	})
}

// newClient puts the codec on an upstream connection: what was negotiated, else
// what it was made for.
func (c *codecs) newClient(t message.Transport, target *upstream.Target, o message.ClientObserver) message.ClientConn {
	info := t.Conn()
	if !snapshot.SpeaksHTTP2(info.ALPN, target.Speak == snapshot.SpeakHTTP2) {
		info.Protocol = message.HTTP11
		return http1.NewClient(t, o, c.client)
	}
	setHTTP2(info)
	options := c.client2[target.H2]
	if options == nil {
		options = &http2.ClientOptions{
			Pool: c.pool2, Timers: c.w.loop,
			KeepAlive: http2.KeepAlive{Interval: target.H2.KeepaliveInterval, Timeout: target.H2.KeepaliveTimeout},
		}
		c.client2[target.H2] = options
	}
	return http2.NewClient(t, o, options)
}

// setHTTP2 says what the streams of a connection are: exchanges of HTTP/2, or on
// a trunk those of HTTP/1.1.
func setHTTP2(c *message.Conn) {
	c.Protocol = message.HTTP2
	if c.ALPN == message.ALPNTrunk {
		c.Protocol, c.Trunk = message.HTTP11, true
	}
}

// serveHTTP puts the codec on the connection: the manager's, else the one that
// was negotiated or found by inspection, else what the first bytes tell.
func (d *downstream) serveHTTP() {
	d.site = &stream.Site{Snapshot: d.w.snap, Listener: d.listener, Manager: d.chain.HTTP, Gateway: d.rec.Gateway}
	alpn := d.transport.Conn().ALPN
	if d.chain.TLS == nil && len(d.info.ALPN) == 1 {
		alpn = d.info.ALPN[0] // the HTTP inspector's answer
	}
	switch {
	case d.chain.HTTP.Codec == snapshot.CodecHTTP2, d.chain.HTTP.Codec == snapshot.CodecAuto && snapshot.SpeaksHTTP2(alpn, false):
		d.serveHTTP2()
	case d.chain.HTTP.Codec == snapshot.CodecHTTP1, alpn != "":
		d.serveHTTP1()
	default:
		d.arm(headTimeout, func() { d.transport.Close() })
		d.transport.SetHandler((*firstBytes)(d))
	}
}

func (d *downstream) serveHTTP1() {
	d.transport.Conn().Protocol = message.HTTP11
	d.codec = http1.NewServer(d.transport, d, d.w.codec.http1Server(d.chain.HTTP))
}

func (d *downstream) serveHTTP2() {
	setHTTP2(d.transport.Conn())
	d.codec = http2.NewServer(d.transport, d, d.w.codec.http2Server(d.chain.HTTP))
}

// firstBytes is a downstream that waits for enough bytes to tell HTTP/2 with
// prior knowledge, which begins with its preface, from HTTP/1.1. It consumes
// nothing.
type firstBytes downstream

// OnBytes implements message.TransportHandler.
func (f *firstBytes) OnBytes(p []byte) int {
	d := (*downstream)(f)
	if d.codec != nil || d.over {
		return 0
	}
	switch sniff.HTTP2(p) {
	case sniff.NeedMore:
		return 0
	case sniff.Match:
		d.disarm()
		d.serveHTTP2()
	default:
		d.disarm()
		if line, _, whole := bytes.Cut(p, []byte("\n")); whole && !bytes.Contains(line, []byte(" HTTP/")) {
			// An answer in HTTP/1.1 would say nothing to whoever speaks like this.
			d.w.codecError(d.chain.HTTP, 0, "neither HTTP/1 nor HTTP/2", http1.DetailsCodecError, d.transport.Conn())
			d.transport.Close()
			return len(p)
		}
		d.serveHTTP1()
	}
	return 0
}

// OnEOF implements message.TransportHandler.
func (f *firstBytes) OnEOF() { f.transport.Close() }

// OnDrained implements message.TransportHandler.
func (f *firstBytes) OnDrained() {}

// OnClosed implements message.TransportHandler.
func (f *firstBytes) OnClosed(error) { (*downstream)(f).OnConnClosed() }
