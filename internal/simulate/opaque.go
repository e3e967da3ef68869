package simulate

import (
	"lateen.dev/lateen/internal/proxy/filter"
	"lateen.dev/lateen/internal/proxy/filter/authz"
	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
	"lateen.dev/lateen/internal/proxy/upstream"
)

// opaque is the near end of a connection whose bytes a proxy does not look at.
// Only what DialTCP's caller needs of a Transport exists: who answers.
type opaque struct {
	message.Transport
	conn, far *message.Conn
	accept    server
}

func (o *opaque) Conn() *message.Conn { return o.conn }
func (o *opaque) Abort()              {}

// DialTCP implements upstream.Dialer.
func (d *dialer) DialTCP(t upstream.Target, done func(message.Transport, *upstream.Error)) func() {
	cancelled := false
	d.world.later(func() {
		if cancelled {
			return
		}
		conn := d.near(t)
		accept, far, err := d.world.reach(d.from, t, conn)
		if err != nil {
			done(nil, err)
			return
		}
		done(&opaque{conn: conn, far: far, accept: accept}, nil)
	})
	return func() { cancelled = true }
}

// allowed asks the network filters of a chain about a connection.
func (x *proxy) allowed(chain *snapshot.FilterChain, conn *message.Conn) bool {
	if len(chain.NetworkRBAC) == 0 {
		return true
	}
	r := authz.Connection(chain.NetworkRBAC, &snapshot.Subject{Conn: conn})
	if r.Verdict == filter.Continue {
		return true
	}
	h := Hop{Pod: x.pod.name + "." + x.pod.namespace, Direction: snapshot.Inbound, Details: r.Details}
	if r.Policy != nil {
		h.Policy, h.Origin = r.Policy.Name, string(r.Policy.Origin)
	}
	x.addHop(h)
	return false
}

// join carries an exchange as opaque bytes to a cluster. The exchange is that of
// the two ends; the proxy between them sees none of it.
func (x *proxy) join(chain *snapshot.FilterChain, conn *message.Conn, down message.Sender) message.Receiver {
	hop := Hop{Pod: x.pod.name + "." + x.pod.namespace, Attempts: 1, Origin: string(chain.TCP.Origin)}
	w := snapshot.PickCluster(chain.TCP.Clusters, x.env.Rand.Uint64())
	if w == nil || x.snap.Clusters[w.Cluster] == nil {
		hop.Flags = []string{"NC"}
		x.addHop(hop)
		return nil
	}
	hop.Cluster = w.Cluster
	r := &relay{down: down}
	request := &upstream.TCPRequest{Cluster: x.snap.Clusters[w.Cluster], OriginalDst: conn.OriginalDst}
	if chain.TCP.HashSourceIP {
		request.HashSource(conn.Remote.Addr())
	}
	request.Done = func(t message.Transport, err *upstream.Error) {
		if err != nil {
			hop.Flags, hop.Details = []string{"UF", "URX"}, err.Reason
			if err.NoHost {
				hop.Flags = []string{"UH"}
			}
			x.addHop(hop)
			down.Reset(message.ResetTermination)
			return
		}
		o := t.(*opaque)
		up := &link{world: x.world, client: (*relayBack)(r), conn: o.conn, over: func(bool) {
			x.env.Upstream.(*upstream.Manager).Release(request)
			x.addHop(hop)
		}}
		up.connect(o.accept, o.far)
		r.open((*clientSender)(up))
	}
	x.env.Upstream.(*upstream.Manager).DialTCP(request)
	return r
}

// relay passes a request on, from when its upstream is connected.
type relay struct {
	down    message.Sender
	up      message.Sender
	waiting []func(message.Sender)
}

func (r *relay) open(up message.Sender) {
	r.up = up
	for _, f := range r.waiting {
		f(up)
	}
}

func (r *relay) pass(f func(message.Sender)) {
	if r.up == nil {
		r.waiting = append(r.waiting, f)
		return
	}
	f(r.up)
}

func (r *relay) OnInformational(*message.Head) {}
func (r *relay) OnDrained()                    {}
func (r *relay) OnHead(h *message.Head, end bool) {
	c := copyOf(h)
	r.pass(func(s message.Sender) { s.SendHead(c, end) })
}

func (r *relay) OnData(p []byte, end bool) {
	c := append([]byte(nil), p...)
	r.pass(func(s message.Sender) { s.SendData(c, end) })
}

func (r *relay) OnTrailers(h *message.Head)     { r.pass(func(s message.Sender) { s.SendTrailers(h) }) }
func (r *relay) OnReset(code message.ResetCode) { r.pass(func(s message.Sender) { s.Reset(code) }) }

// relayBack passes the response back.
type relayBack relay

func (r *relayBack) OnInformational(h *message.Head)  { r.down.SendInformational(h) }
func (r *relayBack) OnDrained()                       {}
func (r *relayBack) OnHead(h *message.Head, end bool) { r.down.SendHead(h, end) }
func (r *relayBack) OnData(p []byte, end bool)        { r.down.SendData(p, end) }
func (r *relayBack) OnTrailers(h *message.Head)       { r.down.SendTrailers(h) }
func (r *relayBack) OnReset(code message.ResetCode)   { r.down.Reset(code) }
