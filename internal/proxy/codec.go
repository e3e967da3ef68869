package proxy

import (
	"time"

	"lateen.dev/lateen/internal/proxy/http1"
	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/record"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// headTimeout bounds the arrival of a request head; a client that needs longer
// holds a connection for nothing. idleTimeout is Envoy's default for
// connections without exchange.
const (
	headTimeout = time.Minute
	idleTimeout = time.Hour
)

// codecs holds the options that the HTTP/1.1 connections of one loop share, one
// set per connection manager.
type codecs struct {
	w       *worker
	pool    *http1.Pool
	client  *http1.ClientOptions
	servers map[*snapshot.HTTPManager]*http1.ServerOptions
}

func (c *codecs) init(w *worker) {
	c.w = w
	c.pool = http1.NewPool(w.loop.Later)
	c.client = &http1.ClientOptions{Pool: c.pool}
	c.servers = map[*snapshot.HTTPManager]*http1.ServerOptions{}
}

// forget drops the options of managers that an older snapshot had.
func (c *codecs) forget() { clear(c.servers) }

func (c *codecs) server(m *snapshot.HTTPManager) *http1.ServerOptions {
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
	o.OnError = func(e *http1.Error, conn *message.Conn) { c.w.codecError(m, e, conn) }
	c.servers[m] = o
	return o
}

// codecError records a request that never became an exchange.
func (w *worker) codecError(m *snapshot.HTTPManager, e *http1.Error, c *message.Conn) {
	w.s.log.Debug("request refused", "remote", c.Remote, "reason", e.Reason)
	w.recorder.Done(&record.Record{
		Start: w.loop.Wall(), Conn: c, Manager: m, Gateway: w.s.o.Bootstrap.Role == "router",
		Status: e.Status, Flags: record.FlagDPE, Details: e.Details(),
	})
}
