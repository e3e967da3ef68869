package agent

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"lateen.dev/lateen/internal/bootstrap"
	"lateen.dev/lateen/internal/dns"
	"lateen.dev/lateen/internal/proxy/admin"
	"lateen.dev/lateen/internal/proxy/secret"
	"lateen.dev/lateen/internal/proxy/upstream"
	"lateen.dev/lateen/internal/version"
	"lateen.dev/lateen/internal/xdspb/nds"
)

// names is the mesh's name table as the DNS server reads it.
type names struct {
	namespace string
	table     atomic.Pointer[dns.Table]
}

// set installs a new table; nil leaves the one before.
func (n *names) set(t *nds.NameTable) {
	if t == nil {
		return
	}
	entries := make([]dns.Entry, 0, len(t.GetTable()))
	for host, info := range t.GetTable() {
		e := dns.Entry{Host: host, Namespace: info.GetNamespace(), ShortName: info.GetShortname()}
		for _, ip := range info.GetIps() {
			if a, err := netip.ParseAddr(ip); err == nil {
				e.IPs = append(e.IPs, a.Unmap())
			}
		}
		entries = append(entries, e)
	}
	n.table.Store(dns.NewTable(entries, n.namespace))
}

func (n *names) resolve(name string, _ netip.Addr) dns.Answer {
	if t := n.table.Load(); t != nil {
		return t.Lookup(name)
	}
	return dns.Answer{}
}

// serve opens the proxy's own servers: names, admin, readiness, metrics.
func (a *Agent) serve(ctx context.Context, wg *sync.WaitGroup) error {
	var p bootstrap.Ports
	if a.boot.Ports != nil {
		p = *a.boot.Ports
	}
	o := a.adminOptions()
	scraped := o
	scraped.Stats = a.serverStats // a cluster's are on the admin port: too many to scrape by default
	if err := a.serveOwner(ctx, wg, o); err != nil {
		return err
	}
	o.ReadOnly = true
	for _, s := range []struct {
		what       string
		host       string
		port, well int
		handler    http.Handler
	}{
		{"admin", "127.0.0.1", p.Admin, bootstrap.AdminPort, admin.Handler(o)},
		{"readiness", "", p.Ready, bootstrap.ReadyPort, admin.Readiness(a.ready)},
		{"status", "", p.Status, bootstrap.StatusPort, admin.Status(scraped, a.ready, newAppHealth(a.boot))},
		{"metrics", "", p.Prometheus, bootstrap.PrometheusPort, admin.Prometheus(scraped)},
	} {
		if s.port < 0 {
			continue
		}
		l, err := net.Listen("tcp", net.JoinHostPort(s.host, strconv.Itoa(cmp.Or(s.port, s.well))))
		if err != nil {
			return fmt.Errorf("open the %s port: %w", s.what, err)
		}
		a.answer(ctx, wg, l, s.handler, s.what)
	}
	if a.boot.Role != bootstrap.Sidecar || p.DNS < 0 {
		return nil
	}
	return a.serveNames(ctx, wg, cmp.Or(p.DNS, bootstrap.DNSPort))
}

func (a *Agent) answer(ctx context.Context, wg *sync.WaitGroup, l net.Listener, h http.Handler, what string) {
	srv := admin.Serve(h)
	wg.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			a.log.Error("a port of the proxy itself failed", "port", what, "error", err)
		}
	})
	context.AfterFunc(ctx, func() { srv.Close() })
}

// serveOwner opens the admin interface with the calls that change something on
// a unix socket in the state directory, which the application cannot see. Its
// path goes by the directory's descriptor: socket addresses are short.
func (a *Agent) serveOwner(ctx context.Context, wg *sync.WaitGroup, o admin.Options) error {
	if a.boot.StateDir == "" {
		return nil
	}
	if err := os.MkdirAll(a.boot.StateDir, 0o700); err != nil {
		return fmt.Errorf("open the admin socket: %w", err)
	}
	dir, err := os.Open(a.boot.StateDir)
	if err != nil {
		return fmt.Errorf("open the admin socket: %w", err)
	}
	context.AfterFunc(ctx, func() { dir.Close() })
	path := fmt.Sprintf("/proc/self/fd/%d/admin.sock", dir.Fd())
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open the admin socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("open the admin socket: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // the descriptor may be gone by then
	a.answer(ctx, wg, l, admin.Handler(o), "admin socket")
	return nil
}

// serveNames answers DNS on both loopback addresses. A pod without IPv6 has no
// second one.
func (a *Agent) serveNames(ctx context.Context, wg *sync.WaitGroup, port int) error {
	s := &dns.Server{Resolve: a.names.resolve, Log: a.log}
	if a.boot.DNS != "" {
		s.Forward = dns.ForwardTo(a.boot.DNS, a.sockets.dialer)
	}
	for _, host := range []string{"127.0.0.1", "::1"} {
		address := net.JoinHostPort(host, strconv.Itoa(port))
		pc, err := net.ListenPacket("udp", address)
		var l net.Listener
		if err == nil {
			if l, err = net.Listen("tcp", address); err != nil {
				pc.Close()
			}
		}
		if err != nil && host == "::1" {
			a.log.Info("names are answered over IPv4 only", "error", err)
			continue
		}
		if err != nil {
			return fmt.Errorf("open the DNS port: %w", err)
		}
		wg.Go(func() {
			if err := s.Serve(ctx, pc, l); err != nil && ctx.Err() == nil {
				a.log.Error("the name server ended", "address", address, "error", err)
			}
		})
	}
	return nil
}

// adminOptions say what the admin interface shows.
func (a *Agent) adminOptions() admin.Options {
	shown := *a.boot
	return admin.Options{
		Version: version.Version, NodeID: a.boot.Node.ID, Started: a.started, Bootstrap: &shown, Level: a.level,
		State: a.state, Resources: a.resources, Clusters: a.clusters, Listeners: a.listeners,
		Certificates: a.certificates, Prometheus: a.records.WritePrometheus,
		Stats: func() []admin.Stat { return append(a.serverStats(), a.clusterStats()...) },
		DrainListeners: func(bool, bool) {
			a.draining.Store(true)
			go a.server.Drain(context.Background()) //nolint:errcheck // it ends when no connection is left
		},
		Quit: a.quit, ResetCounters: a.server.ResetStats,
		FailHealth: func(fail bool) { a.failed.Store(fail) },
	}
}

// serverStats are the few statistics of the process that Istio's proxies keep by
// default.
func (a *Agent) serverStats() []admin.Stat {
	out := []admin.Stat{
		{Name: "server.total_connections", Value: uint64(a.server.Connections()), Gauge: true},
		{Name: "server.uptime", Value: uint64(time.Since(a.started).Seconds()), Gauge: true},
		{Name: "server.concurrency", Value: uint64(len(a.server.Loops())), Gauge: true},
	}
	if c, err := a.secrets.Certificate(); err == nil && c.Leaf != nil {
		left := max(0, time.Until(c.Leaf.NotAfter))
		out = append(out, admin.Stat{Name: "server.days_until_first_cert_expiring", Value: uint64(left.Hours() / 24), Gauge: true})
	}
	if s := a.config.snapshotNow(); s != nil {
		out = append(
			out,
			admin.Stat{Name: "cluster_manager.active_clusters", Value: uint64(len(s.Clusters)), Gauge: true},
			admin.Stat{Name: "listener_manager.total_listeners_active", Value: uint64(len(s.Listeners)), Gauge: true},
		)
	}
	for name, v := range a.server.HTTP2Stats() {
		out = append(out, admin.Stat{Name: "http2." + name, Value: v})
	}
	return out
}

// clusterStats are the statistics of every cluster; one that nobody used yet has
// zeros, as in Envoy.
func (a *Agent) clusterStats() []admin.Stat {
	s := a.config.snapshotNow()
	if s == nil {
		return nil
	}
	living := a.server.ClusterStats()
	var out []admin.Stat
	for name, c := range s.Clusters {
		prefix := "cluster." + name + "."
		stats := living[name]
		if stats == nil {
			stats = &upstream.Stats{}
			stats.Counts[upstream.MembershipTotal] = uint64(len(c.Endpoints))
			stats.Counts[upstream.MembershipHealthy] = uint64(len(c.Endpoints))
		}
		for i, v := range stats.Counts {
			stat := upstream.Stat(i)
			out = append(out, admin.Stat{Name: prefix + stat.String(), Value: v, Gauge: stat.Gauge()})
		}
		for _, code := range stats.Statuses {
			out = append(out, admin.Stat{Name: prefix + "upstream_rq_" + strconv.Itoa(code.Status), Value: code.Count})
		}
	}
	return out
}

func (a *Agent) state() admin.State {
	switch {
	case a.draining.Load():
		return admin.Draining
	case a.ready() == nil:
		return admin.Live
	case a.config.snapshotNow() == nil:
		return admin.PreInitializing
	}
	return admin.Initializing
}

// resources lists what was accepted and what was refused.
func (a *Agent) resources() []admin.Resource {
	var out []admin.Resource
	accepted, refused := a.config.dump()
	for typ, list := range accepted {
		for name, r := range list {
			out = append(out, admin.Resource{
				TypeURL: typ, Name: name, Updated: r.since, Message: printable(r.message), Error: refused[typ][name],
			})
		}
		for name, why := range refused[typ] {
			if _, ok := list[name]; !ok {
				out = append(out, admin.Resource{TypeURL: typ, Name: name, Error: why})
			}
		}
	}
	return out
}

// clusters lists endpoints with what all loops know of them.
func (a *Agent) clusters() []admin.Cluster {
	s := a.config.snapshotNow()
	if s == nil {
		return nil
	}
	type key struct {
		cluster string
		addr    netip.AddrPort
	}
	live := map[key]*admin.Endpoint{}
	byCluster := map[string][]*admin.Endpoint{}
	for _, st := range a.server.Endpoints() {
		k := key{st.Cluster, st.Address}
		e := live[k]
		if e == nil {
			e = &admin.Endpoint{Address: st.Address.String(), Healthy: true, Weight: 1}
			if ep := st.Endpoint; ep != nil {
				e.Hostname, e.Region, e.Zone, e.Weight, e.Priority = ep.Host, ep.Region, ep.Zone, ep.Weight, ep.Priority
			}
			live[k] = e
			byCluster[st.Cluster] = append(byCluster[st.Cluster], e)
		}
		e.FailedOutlier = e.FailedOutlier || st.Ejected
		e.Healthy = e.Healthy && !st.Ejected
		e.ConnectionsActive += uint64(st.Connections)
		e.RequestsActive += uint64(st.Active)
		e.ConnectionsTotal += st.CxTotal
		e.ConnectFails += st.CxConnectFail
		e.RequestsTotal += st.RqTotal
		e.RequestsSuccess += st.RqSuccess
		e.RequestsError += st.RqError
		e.RequestsTimeout += st.RqTimeout
	}
	var out []admin.Cluster
	for name, c := range s.Clusters {
		ac := admin.Cluster{Name: name, Limits: admin.Limits{
			MaxConnections: c.Limits.MaxConnections, MaxPending: c.Limits.MaxPending,
			MaxRequests: c.Limits.MaxRequests, MaxRetries: c.Limits.MaxRetries,
		}}
		for _, e := range byCluster[name] {
			ac.Endpoints = append(ac.Endpoints, *e)
		}
		out = append(out, ac)
	}
	return out
}

func (a *Agent) listeners() []admin.Listener {
	s := a.config.snapshotNow()
	if s == nil {
		return nil
	}
	var out []admin.Listener
	for name, l := range s.Listeners {
		for _, addr := range l.Addresses {
			out = append(out, admin.Listener{Name: name, Address: addr.String()})
		}
	}
	return out
}

// certificates lists the SVID and the roots of the mesh; gateway credentials are
// the control plane's to show.
func (a *Agent) certificates() []admin.Certificate {
	var out []admin.Certificate
	if c, err := a.secrets.Certificate(); err == nil {
		out = append(out, describe(secret.Default, c))
	}
	named := a.secrets.Named()
	for _, name := range slices.Sorted(maps.Keys(named)) {
		out = append(out, describe(name, named[name]))
	}
	roots := admin.Certificate{Name: secret.RootCA}
	for rest := []byte(a.secrets.RootsPEM()); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if x, err := x509.ParseCertificate(block.Bytes); err == nil {
			roots.Roots = append(roots.Roots, x)
		}
	}
	return append(out, roots)
}

// describe is what may be told of a certificate: all but its key.
func describe(name string, c *tls.Certificate) admin.Certificate {
	out := admin.Certificate{Name: name}
	for _, der := range c.Certificate {
		if x, err := x509.ParseCertificate(der); err == nil {
			out.Chain = append(out.Chain, x)
		}
	}
	return out
}
