package snapshot

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	netrbacpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	tcppb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
)

// Message names of the listener filters that this proxy knows.
const (
	typeTLSInspector  = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
	typeHTTPInspector = "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector"
	typeOriginalDst   = "envoy.extensions.filters.listener.original_dst.v3.OriginalDst"
	typeProxyProtocol = "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol"
)

// portPredicate says for which destination ports a listener filter is off.
type portPredicate struct {
	kind predicateKind
	// lo and hi are the inclusive range of a leaf.
	lo, hi uint16
	rules  []*portPredicate
}

type predicateKind uint8

const (
	predicateRange predicateKind = iota
	predicateAny
	predicateOr
	predicateAnd
	predicateNot
)

func (p *portPredicate) match(port uint16) bool {
	if p == nil {
		return false
	}
	switch p.kind {
	case predicateAny:
		return true
	case predicateRange:
		return p.lo <= port && port <= p.hi
	case predicateNot:
		return !p.rules[0].match(port)
	}
	for _, r := range p.rules {
		if r.match(port) == (p.kind == predicateOr) {
			return p.kind == predicateOr
		}
	}
	return p.kind == predicateAnd
}

// Inspectors says which inspectors have to look at a connection to dst before a
// chain can be chosen. A server that speaks first must not be waited for.
func (l *Listener) Inspectors(dst netip.AddrPort) (tls, http bool) {
	return l.TLSInspector && !l.tlsOff.match(dst.Port()), l.HTTPInspector && !l.httpOff.match(dst.Port())
}

func predicate(m *listenerpb.ListenerFilterChainMatchPredicate, depth int) (*portPredicate, error) {
	if m == nil {
		return nil, nil
	}
	if depth > maxRuleDepth {
		return nil, fmt.Errorf("nested deeper than %d", maxRuleDepth)
	}
	p := &portPredicate{}
	var list []*listenerpb.ListenerFilterChainMatchPredicate
	switch r := m.GetRule().(type) {
	case *listenerpb.ListenerFilterChainMatchPredicate_AnyMatch:
		p.kind = predicateAny
		return p, nil
	case *listenerpb.ListenerFilterChainMatchPredicate_DestinationPortRange:
		lo, hi := r.DestinationPortRange.GetStart(), r.DestinationPortRange.GetEnd()
		if lo < 0 || hi > 65536 || lo >= hi {
			return nil, fmt.Errorf("destination_port_range: [%d, %d) is not valid", lo, hi)
		}
		p.lo, p.hi = uint16(lo), uint16(hi-1)
		return p, nil
	case *listenerpb.ListenerFilterChainMatchPredicate_OrMatch:
		p.kind, list = predicateOr, r.OrMatch.GetRules()
	case *listenerpb.ListenerFilterChainMatchPredicate_AndMatch:
		p.kind, list = predicateAnd, r.AndMatch.GetRules()
	case *listenerpb.ListenerFilterChainMatchPredicate_NotMatch:
		p.kind, list = predicateNot, []*listenerpb.ListenerFilterChainMatchPredicate{r.NotMatch}
	}
	for _, sub := range list {
		c, err := predicate(sub, depth+1)
		if err != nil {
			return nil, err
		}
		if c != nil {
			p.rules = append(p.rules, c)
		}
	}
	if len(p.rules) == 0 {
		return nil, fmt.Errorf("predicate is empty")
	}
	return p, nil
}

// listener compiles a Listener; routes is asked for the tables of RDS names.
// Fields left out: buffer limits, backlog and accept tuning, reuse_port,
// drain_type (the proxy drains by time).
func (c *compiler) listener(m *listenerpb.Listener) (*Listener, error) {
	if err := only(m, `name address additional_addresses stat_prefix filter_chains use_original_dst
		default_filter_chain per_connection_buffer_limit_bytes metadata deprecated_v1 drain_type listener_filters
		listener_filters_timeout continue_on_listener_filters_timeout freebind
		tcp_fast_open_queue_length traffic_direction connection_balance_config reuse_port enable_reuse_port
		access_log tcp_backlog_size max_connections_to_accept_per_socket_event bind_to_port
		ignore_global_conn_limit bypass_overload_manager transparent`); err != nil {
		return nil, err
	}
	if m.GetTransparent().GetValue() {
		return nil, fmt.Errorf("transparent is not supported")
	}
	l := &Listener{
		Name: m.GetName(), BindToPort: true, InspectTimeout: 15 * time.Second,
		UseOriginalDst:    m.GetUseOriginalDst().GetValue(),
		ContinueOnTimeout: m.GetContinueOnListenerFiltersTimeout(),
	}
	if b := m.GetBindToPort(); b != nil {
		l.BindToPort = b.GetValue()
	}
	if b := m.GetDeprecatedV1().GetBindToPort(); b != nil { //nolint:staticcheck // still valid
		l.BindToPort = b.GetValue()
	}
	switch m.GetTrafficDirection() {
	case corepb.TrafficDirection_INBOUND:
		l.Direction = Inbound
	case corepb.TrafficDirection_OUTBOUND:
		l.Direction = Outbound
	}
	var errs [3]error
	errs[0] = into(&l.InspectTimeout, m.GetListenerFiltersTimeout(), "listener_filters_timeout")
	errs[1] = listenerAddresses(l, m)
	errs[2] = listenerFilters(l, m.GetListenerFilters())
	if err := firstError(errs[:]...); err != nil {
		return nil, err
	}
	l.AccessLogs = c.accessLogs(m.GetAccessLog(), origin(m.GetMetadata()))
	for i, f := range m.GetFilterChains() {
		chain, err := c.filterChain(f, l.Direction)
		if err != nil {
			return nil, at(err, "filter_chains[%d] %q", i, f.GetName())
		}
		l.Chains = append(l.Chains, chain)
	}
	if f := m.GetDefaultFilterChain(); f != nil {
		chain, err := c.filterChain(f, l.Direction)
		if err != nil {
			return nil, at(err, "default_filter_chain")
		}
		l.Default = chain
	}
	if len(l.Chains) == 0 && l.Default == nil {
		return nil, fmt.Errorf("filter_chains is empty")
	}
	return l, nil
}

func listenerAddresses(l *Listener, m *listenerpb.Listener) error {
	a, err := socketAddress(m.GetAddress())
	if err != nil {
		return at(err, "address")
	}
	l.Addresses = append(l.Addresses, a)
	for i, x := range m.GetAdditionalAddresses() {
		a, err := socketAddress(x.GetAddress())
		if err != nil {
			return at(err, "additional_addresses[%d]", i)
		}
		l.Addresses = append(l.Addresses, a)
	}
	return nil
}

func listenerFilters(l *Listener, list []*listenerpb.ListenerFilter) error {
	for i, f := range list {
		if err := only(f, "name typed_config filter_disabled"); err != nil {
			return at(err, "listener_filters[%d] %q", i, f.GetName())
		}
		off, err := predicate(f.GetFilterDisabled(), 0)
		if err != nil {
			return at(err, "listener_filters[%d].filter_disabled", i)
		}
		full, err := typeName(f.GetTypedConfig())
		if err != nil {
			return at(err, "listener_filters[%d] %q", i, f.GetName())
		}
		switch full {
		case typeTLSInspector:
			l.TLSInspector, l.tlsOff = true, off
		case typeHTTPInspector:
			l.HTTPInspector, l.httpOff = true, off
		case typeOriginalDst:
			l.UseOriginalDst = true
		case typeProxyProtocol:
			if off != nil {
				return fmt.Errorf("listener_filters[%d].filter_disabled is not supported for %s", i, full)
			}
			l.ProxyProtocol = true
		default:
			return fmt.Errorf("listener_filters[%d] %q: type %q is not supported", i, f.GetName(), full)
		}
	}
	return nil
}

// filterChain compiles one chain.
func (c *compiler) filterChain(m *listenerpb.FilterChain, dir Direction) (*FilterChain, error) {
	if err := only(m, "name filter_chain_match filters metadata transport_socket transport_socket_connect_timeout"); err != nil {
		return nil, err
	}
	f := &FilterChain{Name: m.GetName()}
	var errs [3]error
	f.Match, errs[0] = chainMatch(m.GetFilterChainMatch())
	f.TLS, errs[1] = downstreamTLS(m.GetTransportSocket())
	errs[2] = into(&f.ConnectTimeout, m.GetTransportSocketConnectTimeout(), "transport_socket_connect_timeout")
	if err := firstError(errs[:]...); err != nil {
		return nil, err
	}
	from := origin(m.GetMetadata())
	f.Origin = from
	for i, n := range m.GetFilters() {
		if f.HTTP != nil || f.TCP != nil {
			return nil, fmt.Errorf("filters[%d]: comes after the filter that ends the chain", i)
		}
		if err := c.networkFilter(f, n, dir, from); err != nil {
			return nil, at(err, "filters[%d] %q", i, n.GetName())
		}
	}
	return f, spokenALPN(f)
}

func (c *compiler) networkFilter(f *FilterChain, m *listenerpb.Filter, dir Direction, from Origin) error {
	if err := only(m, "name typed_config"); err != nil {
		return err
	}
	full, err := typeName(m.GetTypedConfig())
	if err != nil {
		return err
	}
	switch full {
	case typeHCM:
		var h hcmpb.HttpConnectionManager
		if err := decode(m.GetTypedConfig(), &h); err != nil {
			return err
		}
		f.HTTP, err = c.manager(&h, dir, from)
	case typeTCPProxy:
		var t tcppb.TcpProxy
		if err := decode(m.GetTypedConfig(), &t); err != nil {
			return err
		}
		f.TCP, err = c.tcpProxy(&t, from)
	case typeNetworkRBAC:
		var r netrbacpb.RBAC
		if err := decode(m.GetTypedConfig(), &r); err != nil {
			return err
		}
		var compiled *RBAC
		if compiled, err = networkRBAC(&r); err == nil {
			f.NetworkRBAC = append(f.NetworkRBAC, compiled)
		}
	case typeStats:
		f.Stats = statsConfig(dir)
	case typeTCPPeers: // tells the peer who we are; HTTP does so by headers
	default:
		return fmt.Errorf("filter type %q is not supported", full)
	}
	return err
}

func chainMatch(m *listenerpb.FilterChainMatch) (c ChainMatch, err error) {
	if m == nil {
		return c, nil
	}
	if err := only(m, `destination_port prefix_ranges direct_source_prefix_ranges source_prefix_ranges source_ports
		server_names transport_protocol application_protocols`); err != nil {
		return c, at(err, "filter_chain_match")
	}
	if len(m.GetDirectSourcePrefixRanges()) > 0 && len(m.GetSourcePrefixRanges()) > 0 {
		return c, fmt.Errorf("filter_chain_match: both source_prefix_ranges and direct_source_prefix_ranges are set")
	}
	var errs [4]error
	c.DestinationPort, errs[0] = port(m.GetDestinationPort().GetValue())
	c.Destination, errs[1] = cidrs(m.GetPrefixRanges())
	c.Source, errs[2] = cidrs(append(m.GetDirectSourcePrefixRanges(), m.GetSourcePrefixRanges()...))
	for _, p := range m.GetSourcePorts() {
		sp, err := port(p)
		errs[3] = firstError(errs[3], err)
		c.SourcePorts = append(c.SourcePorts, sp)
	}
	for _, n := range m.GetServerNames() {
		n = strings.ToLower(n)
		if n == "" || strings.Contains(strings.TrimPrefix(n, "*."), "*") {
			return c, fmt.Errorf("filter_chain_match.server_names: %q is not valid", n)
		}
		c.ServerNames = append(c.ServerNames, n)
	}
	c.Transport, c.ApplicationProto = m.GetTransportProtocol(), m.GetApplicationProtocols()
	if c.Transport != "" && c.Transport != TransportTLS && c.Transport != TransportRaw {
		return c, fmt.Errorf("filter_chain_match.transport_protocol %q is not supported", c.Transport)
	}
	return c, at(firstError(errs[:]...), "filter_chain_match")
}

// tcpProxy compiles the TCP proxy. Fields left out: max_connect_attempts and
// backoff_options (one attempt), log flush options, stat_prefix's effect.
func (c *compiler) tcpProxy(m *tcppb.TcpProxy, from Origin) (*TCPProxy, error) {
	if err := only(m, `stat_prefix cluster weighted_clusters idle_timeout access_log max_connect_attempts
		backoff_options max_downstream_connection_duration access_log_flush_interval
		flush_access_log_on_connected access_log_options hash_policy`); err != nil {
		return nil, err
	}
	t := &TCPProxy{StatPrefix: m.GetStatPrefix(), IdleTimeout: time.Hour, Origin: from}
	total := uint64(0)
	for _, w := range m.GetWeightedClusters().GetClusters() {
		if err := only(w, "name weight"); err != nil {
			return nil, at(err, "weighted_clusters")
		}
		total += uint64(w.GetWeight())
		t.Clusters = append(t.Clusters, WeightedCluster{Cluster: w.GetName(), Weight: w.GetWeight()})
	}
	if name := m.GetCluster(); name != "" {
		t.Clusters, total = []WeightedCluster{{Cluster: name, Weight: 1}}, 1
	}
	if total == 0 || total > maxWeight {
		return nil, fmt.Errorf("cluster is missing or weights sum to %d", total)
	}
	for i, h := range m.GetHashPolicy() {
		if h.GetSourceIp() == nil {
			return nil, fmt.Errorf("hash_policy[%d]: policy is not supported", i)
		}
		t.HashSourceIP = true
	}
	t.AccessLogs = c.accessLogs(m.GetAccessLog(), from)
	err := firstError(
		into(&t.IdleTimeout, m.GetIdleTimeout(), "idle_timeout"),
		into(&t.MaxConnectionDuration, m.GetMaxDownstreamConnectionDuration(), "max_downstream_connection_duration"),
	)
	return t, err
}
