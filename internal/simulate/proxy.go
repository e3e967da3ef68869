package simulate

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"strings"

	"lateen.dev/lateen/internal/control/mesh"
	"lateen.dev/lateen/internal/control/translate"
	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/record"
	"lateen.dev/lateen/internal/proxy/snapshot"
	"lateen.dev/lateen/internal/proxy/stream"
	"lateen.dev/lateen/internal/proxy/upstream"
	"lateen.dev/lateen/internal/xdspb/nds"
	"lateen.dev/lateen/internal/xdspb/origin"
)

// proxy is the data plane of one pod: a snapshot and one loop's worth of state.
type proxy struct {
	world  *World
	pod    *pod
	snap   *snapshot.Snapshot
	env    *stream.Env
	names  *nds.NameTable
	places map[string]*origin.Place
	// recorder writes what the exchange would look like in telemetry.
	recorder *record.Recorder
}

func (w *World) startProxy(p *pod, resources *translate.Resources) error {
	snap, rejected := compile(resources)
	var errs []error
	for _, r := range rejected {
		errs = append(errs, errors.New(r.String()))
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	x := &proxy{world: w, pod: p, snap: snap}
	x.names, _ = resources.ByType[translate.NameType][translate.NameTable].(*nds.NameTable)
	if table, ok := resources.ByType[translate.OriginType][translate.Origins].(*origin.Table); ok {
		x.places = table.GetPlaces()
	}
	w.nextID++
	source := rand.New(rand.NewPCG(w.seed, w.nextID))
	manager := upstream.NewManager(upstream.Options{
		Clock: w.clock, Rand: source.Uint64, Dialer: &dialer{from: p, world: w}, Shared: upstream.NewShared(),
	})
	manager.Apply(snap)
	x.env = &stream.Env{Clock: w.clock, Rand: source, Upstream: manager, Recorder: x}
	x.recorder = record.NewSet(record.Options{
		Identity: identityOf(p), Getenv: func(string) string { return "" }, Origins: x.place,
	}).Recorder(nil)
	p.proxy = x
	return nil
}

// place resolves an origin id as a proxy does, from the table it was sent.
func (x *proxy) place(o snapshot.Origin) string {
	if p, ok := x.places[string(o)]; ok {
		return placeText(p)
	}
	return ""
}

// identityOf describes a pod as telemetry does.
func identityOf(p *pod) record.Identity {
	n := node(p)
	service, revision := mesh.CanonicalService(p.labels, p.view.OwnerName)
	return record.Identity{
		Workload: snapshot.Workload{
			Name: p.view.OwnerName, Namespace: p.namespace, Cluster: n.ClusterID, App: p.labels["app"], Version: p.labels["version"],
			CanonicalService: service, CanonicalRevision: revision,
		},
		NodeID: n.ID, Pod: p.name, MeshID: n.MeshID, ServiceAccount: p.view.ServiceAccount, IP: p.view.IPs[0].String(),
	}
}

// Done implements stream.Recorder.
func (x *proxy) Done(r *record.Record) {
	h := Hop{
		Pod: x.pod.name + "." + x.pod.namespace, Direction: r.Direction, Gateway: r.Gateway, Status: r.Status,
		Flags: flagNames(r.Flags), Details: r.Details, Cluster: r.ClusterName, Policy: r.Policy,
		Attempts: len(r.Attempts), Origin: string(r.Decider),
	}
	told := x.recorder.Explain(r)
	h.Lines, h.Spans = told.Lines, told.Spans
	if r.Route != nil {
		h.Route = r.Route.Name
		if h.Origin == "" {
			h.Origin = string(r.Route.Origin)
		}
	}
	x.addHop(h)
}

func (x *proxy) addHop(h Hop) {
	if place := x.places[h.Origin]; place != nil {
		h.Place = placeText(place)
	}
	x.world.hops = append(x.world.hops, h)
}

func flagNames(f record.Flags) []string {
	text := f.String()
	if text == "" || text == "-" {
		return nil
	}
	return strings.Split(text, ",")
}

// outbound begins an exchange of the pod's own application with dst. As in the
// proxy, the capturing listener hands over to the one of the destination.
func (x *proxy) outbound(conn *message.Conn, down message.Sender) message.Receiver {
	listener := x.snap.Outbound
	if listener == nil {
		return nil
	}
	if special := x.snap.OutboundListener(conn.OriginalDst); special != nil && listener.UseOriginalDst {
		listener = special
	}
	return x.begin(listener, conn, down)
}

// begin matches a connection to a filter chain and starts an exchange; nil
// means that the connection is closed.
func (x *proxy) begin(listener *snapshot.Listener, conn *message.Conn, down message.Sender) message.Receiver {
	chain := listener.Match(x.connInfo(listener, conn))
	if chain == nil || (chain.TLS != nil) != (conn.TLS != nil) {
		return nil
	}
	if chain.TLS != nil && !acceptsPeer(chain.TLS, conn.TLS) || !x.allowed(chain, conn) {
		return nil
	}
	switch {
	case chain.HTTP != nil:
		site := &stream.Site{Snapshot: x.snap, Listener: listener, Manager: chain.HTTP, Gateway: isGateway(x.pod)}
		return x.env.New(site, down)
	case chain.TCP != nil:
		return x.join(chain, conn, down)
	}
	return nil
}

// connInfo is what the listener's inspectors find out about a connection.
func (x *proxy) connInfo(l *snapshot.Listener, conn *message.Conn) snapshot.ConnInfo {
	info := snapshot.ConnInfo{Destination: conn.OriginalDst, Source: conn.Remote, Transport: snapshot.TransportRaw}
	tls, http := l.Inspectors(conn.OriginalDst)
	switch {
	case conn.TLS != nil && tls:
		info.Transport, info.SNI, info.ALPN = snapshot.TransportTLS, conn.SNI, x.world.offers[conn.ID]
	case conn.TLS == nil && http && conn.Protocol == message.HTTP2:
		info.ALPN = []string{"h2c"}
	case conn.TLS == nil && http:
		info.ALPN = []string{"http/1.1"}
	}
	return info
}

// acceptsPeer says whether a chain's validation takes the client's certificate.
func acceptsPeer(d *snapshot.DownstreamTLS, info *message.TLSInfo) bool {
	if len(info.PeerURISANs) == 0 {
		return !d.RequireClientCert
	}
	return d.Validation == nil || matchesSAN(d.Validation, info.PeerURISANs[0])
}

func matchesSAN(v *snapshot.Validation, san string) bool {
	if len(v.SANs) == 0 {
		return true
	}
	for i := range v.SANs {
		if v.SANs[i].MatchString(san) {
			return true
		}
	}
	return false
}

// resolve answers a name as the proxy's DNS server would: as written, then with
// the search domains of the pod's namespace.
func (x *proxy) resolve(host string) []netip.Addr {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	table := x.names.GetTable()
	for _, name := range searched(host, x.pod.namespace) {
		if entry := table[name]; entry != nil {
			return parseAddrs(entry.GetIps())
		}
	}
	return nil
}

// searched lists a name as written and with the search domains of a pod.
func searched(host, namespace string) []string {
	return []string{host, host + "." + namespace + ".svc.cluster.local", host + ".svc.cluster.local", host + ".cluster.local"}
}

func parseAddrs(texts []string) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		if a, err := netip.ParseAddr(t); err == nil {
			out = append(out, a)
		}
	}
	return out
}
