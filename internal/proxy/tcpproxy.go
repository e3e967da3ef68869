package proxy

import (
	"errors"

	"lateen.dev/lateen/internal/proxy/loop"
	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/record"
	"lateen.dev/lateen/internal/proxy/snapshot"
	"lateen.dev/lateen/internal/proxy/tcp"
	"lateen.dev/lateen/internal/proxy/upstream"
)

// serveTCP connects to the chain's cluster and joins the two connections.
func (d *downstream) serveTCP() {
	p := d.chain.TCP
	d.rec.Decider = p.Origin
	w := snapshot.PickCluster(p.Clusters, d.w.rand.Uint64())
	if w == nil {
		d.refuse(record.FlagNC, "cluster_not_found")
		return
	}
	d.rec.ClusterName = w.Cluster
	d.rec.Cluster = d.w.snap.Clusters[w.Cluster]
	if d.rec.Cluster == nil {
		d.refuse(record.FlagNC, "cluster_not_found")
		return
	}
	// Nothing is read before the upstream is there; a FIN waits with the rest.
	d.transport.PauseRead(true)
	d.transport.SetHandler(d)
	if d.over {
		return
	}
	d.request = &upstream.TCPRequest{Cluster: d.rec.Cluster, OriginalDst: d.transport.Conn().OriginalDst, Done: d.connected}
	if p.HashSourceIP {
		d.request.HashSource(d.transport.Conn().Remote.Addr())
	}
	d.dialing = true
	d.w.upstream.DialTCP(d.request)
}

// connected joins the client with its upstream.
func (d *downstream) connected(up message.Transport, err *upstream.Error) {
	d.dialing = false
	d.rec.Endpoint, d.rec.Remote = d.request.Endpoint, d.request.Address
	if d.over {
		if up != nil {
			up.Abort()
			d.w.upstream.Release(d.request)
		}
		return
	}
	if err != nil {
		d.rec.UpstreamError = err.Reason
		d.refuse(tcpFlags(err))
		return
	}
	c := up.Conn()
	d.rec.Local, d.rec.TLS = c.Local, d.transport.Conn().TLS
	if d.rec.TLS == nil {
		d.rec.TLS = c.TLS
	}
	d.w.recorder.ConnOpened(&d.rec)
	p := d.chain.TCP
	request := d.request
	d.pair = tcp.Join(d.transport, up, tcp.Options{
		Timers: d.w.loop, IdleTimeout: p.IdleTimeout, MaxDuration: p.MaxConnectionDuration,
	}, func(r tcp.Result) {
		d.w.upstream.Release(request)
		d.finished(r)
	})
	d.transport.PauseRead(false)
	if !d.w.progress.Armed() {
		d.w.loop.Arm(&d.w.progress, progressInterval)
	}
}

// tcpFlags tells a failed upstream connection as Envoy's tcp_proxy does.
func tcpFlags(err *upstream.Error) (record.Flags, string) {
	switch {
	case err.NoHost:
		return record.FlagUH, "no_healthy_upstream"
	case err.Code == message.ResetOverflow:
		return record.FlagUO, "upstream_overflow"
	}
	return record.FlagUF | record.FlagURX, "upstream_connection_failure"
}

func (d *downstream) finished(r tcp.Result) {
	d.rec.Received, d.rec.Sent = r.Received, r.Sent
	switch {
	case errors.Is(r.Err, tcp.ErrIdle):
		d.rec.Termination = "idle_timeout"
	case errors.Is(r.Err, loop.ErrStopped):
		d.rec.Termination = "proxy_stopped"
	case r.Err != nil && r.First == tcp.Upstream:
		d.rec.Flags |= record.FlagUC
		d.rec.UpstreamError = r.Err.Error()
	case r.Err != nil && r.First == tcp.Downstream:
		d.rec.Flags |= record.FlagDC
	}
	d.end()
}

func (d *downstream) progress() {
	d.rec.Received, d.rec.Sent = d.pair.Transferred()
	d.rec.Total = d.w.loop.Wall().Sub(d.rec.Start)
	d.w.recorder.ConnProgress(&d.rec)
}
