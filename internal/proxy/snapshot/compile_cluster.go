package snapshot

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
)

// cluster compiles a Cluster without the endpoints that EDS brings. Fields left
// out: alt_stat_name, buffer limits, DNS resolver tuning (the pod's resolver is
// used), cleanup_interval, slow start and track_cluster_stats. Active health
// checks, subsets, filters and the newer load_balancing_policy are refused.
//
//nolint:staticcheck // deprecated fields still arrive
func cluster(m *clusterpb.Cluster) (*Cluster, error) {
	if err := only(m, `name alt_stat_name type eds_cluster_config connect_timeout per_connection_buffer_limit_bytes
		lb_policy load_assignment circuit_breakers http2_protocol_options http_protocol_options
		common_http_protocol_options upstream_http_protocol_options typed_extension_protocol_options
		dns_refresh_rate dns_jitter dns_failure_refresh_rate respect_dns_ttl dns_lookup_family
		typed_dns_resolver_config dns_resolution_config outlier_detection cleanup_interval upstream_bind_config
		ring_hash_lb_config maglev_lb_config original_dst_lb_config least_request_lb_config
		round_robin_lb_config common_lb_config transport_socket transport_socket_matches metadata
		protocol_selection upstream_connection_options close_connections_on_host_health_failure
		ignore_health_on_host_removal filters track_cluster_stats track_timeout_budgets preconnect_policy`); err != nil {
		return nil, err
	}
	c := &Cluster{
		Name: m.GetName(), EDSName: m.GetName(), ConnectTimeout: 5 * time.Second, IdleTimeout: time.Hour,
		DNSRefresh: 5 * time.Second, ChoiceCount: 2, PanicThreshold: 50,
		localityWeighted: m.GetCommonLbConfig().GetLocalityWeightedLbConfig() != nil,
		Limits:           Limits{MaxConnections: 1024, MaxPending: 1024, MaxRequests: 1024, MaxRetries: 3},
	}
	clusterMetadata(c, m.GetMetadata())
	err := firstError(
		clusterType(c, m), clusterBalancing(c, m), clusterLimits(c, m.GetCircuitBreakers()),
		clusterOutlier(c, m.GetOutlierDetection()), clusterTransports(c, m), clusterHTTP(c, m),
		clusterSockets(c, m), clusterFilters(m.GetFilters()),
		into(&c.ConnectTimeout, m.GetConnectTimeout(), "connect_timeout"),
		into(&c.DNSRefresh, m.GetDnsRefreshRate(), "dns_refresh_rate"),
	)
	if err != nil {
		return nil, err
	}
	if c.Outlier != nil {
		c.Outlier.Origin = c.Origin
	}
	return c, nil
}

// clusterMetadata reads Istio's "istio" metadata and our origin.
func clusterMetadata(c *Cluster, m *corepb.Metadata) {
	c.Origin, c.Config = origin(m), metadataText(m, "istio", "config")
	c.Subset = metadataText(m, "istio", "subset")
	services := m.GetFilterMetadata()["istio"].GetFields()["services"].GetListValue().GetValues()
	if len(services) > 0 {
		s := services[0].GetStructValue()
		c.Service, c.Namespace, c.ServiceName = structText(s, "host"), structText(s, "namespace"), structText(s, "name")
	}
}

func clusterType(c *Cluster, m *clusterpb.Cluster) error {
	if _, ok := m.GetClusterDiscoveryType().(*clusterpb.Cluster_ClusterType); ok {
		return fmt.Errorf("cluster_type is not supported")
	}
	switch m.GetType() {
	case clusterpb.Cluster_STATIC:
		c.Type, c.Warm = Static, true
	case clusterpb.Cluster_STRICT_DNS:
		c.Type, c.Warm = StrictDNS, true
	case clusterpb.Cluster_LOGICAL_DNS:
		c.Type, c.Warm = LogicalDNS, true
	case clusterpb.Cluster_ORIGINAL_DST:
		c.Type, c.Warm = OriginalDst, true
	case clusterpb.Cluster_EDS:
		c.Type = EDS
		if n := m.GetEdsClusterConfig().GetServiceName(); n != "" {
			c.EDSName = n
		}
	default:
		return fmt.Errorf("type %v is not supported", m.GetType())
	}
	if a := m.GetLoadAssignment(); a != nil {
		if c.Type == EDS || c.Type == OriginalDst {
			return fmt.Errorf("load_assignment with type %v", m.GetType())
		}
		var err error
		c.Endpoints, err = endpoints(a, c.Type != Static, c.localityWeighted)
		return at(err, "load_assignment")
	}
	return nil
}

//nolint:staticcheck // the lb_policy form is what Istio sends
func clusterBalancing(c *Cluster, m *clusterpb.Cluster) error {
	switch m.GetLbPolicy() {
	case clusterpb.Cluster_ROUND_ROBIN:
		c.LB = RoundRobin
	case clusterpb.Cluster_LEAST_REQUEST:
		c.LB = LeastRequest
	case clusterpb.Cluster_RANDOM:
		c.LB = Random
	case clusterpb.Cluster_RING_HASH:
		c.LB = RingHash
	case clusterpb.Cluster_MAGLEV:
		c.LB = Maglev
	case clusterpb.Cluster_CLUSTER_PROVIDED:
		c.LB = ClusterProvided
	default:
		return fmt.Errorf("lb_policy %v is not supported", m.GetLbPolicy())
	}
	if n := m.GetLeastRequestLbConfig().GetChoiceCount(); n != nil {
		c.ChoiceCount = max(n.GetValue(), 2)
	}
	c.MinRingSize = 1024
	if n := m.GetRingHashLbConfig().GetMinimumRingSize(); n != nil {
		c.MinRingSize = n.GetValue()
	}
	if c.MaglevTable = 65537; m.GetMaglevLbConfig().GetTableSize() != nil {
		c.MaglevTable = m.GetMaglevLbConfig().GetTableSize().GetValue()
	}
	if c.MinRingSize > 8<<20 || c.MaglevTable > 5000011 {
		return fmt.Errorf("ring_hash_lb_config or maglev_lb_config: table is larger than 8 Mi entries")
	}
	if o := m.GetOriginalDstLbConfig(); o != nil {
		if err := only(o, "upstream_port_override"); err != nil {
			return at(err, "original_dst_lb_config")
		}
		var err error
		if c.PortOverride, err = port(o.GetUpstreamPortOverride().GetValue()); err != nil {
			return at(err, "original_dst_lb_config.upstream_port_override")
		}
	}
	l := m.GetCommonLbConfig()
	if l == nil {
		return nil
	}
	// zone_aware_lb_config without locality weights: endpoints of a priority are
	// equal. update_merge_window and close_connections: our own batching.
	if err := only(l, `healthy_panic_threshold locality_weighted_lb_config zone_aware_lb_config
		update_merge_window ignore_new_hosts_until_first_hc close_connections_on_host_set_change
		consistent_hashing_lb_config`); err != nil {
		return at(err, "common_lb_config")
	}
	p, err := percent(l.GetHealthyPanicThreshold(), 50)
	c.PanicThreshold = uint32(math.Ceil(p))
	return at(err, "common_lb_config.healthy_panic_threshold")
}

func clusterLimits(c *Cluster, m *clusterpb.CircuitBreakers) error {
	for i, t := range m.GetThresholds() {
		if t.GetPriority() != corepb.RoutingPriority_DEFAULT {
			continue // there is one priority only
		}
		if err := only(t, `priority max_connections max_pending_requests max_requests max_retries
			retry_budget track_remaining`); err != nil {
			return at(err, "circuit_breakers.thresholds[%d]", i)
		}
		if v := t.GetMaxConnections(); v != nil {
			c.Limits.MaxConnections = v.GetValue()
		}
		if v := t.GetMaxPendingRequests(); v != nil {
			c.Limits.MaxPending = v.GetValue()
		}
		if v := t.GetMaxRequests(); v != nil {
			c.Limits.MaxRequests = v.GetValue()
		}
		if v := t.GetMaxRetries(); v != nil {
			c.Limits.MaxRetries = v.GetValue()
		}
		if b := t.GetRetryBudget(); b != nil {
			p, err := percent(b.GetBudgetPercent(), 20)
			if err != nil {
				return at(err, "circuit_breakers.thresholds[%d].retry_budget", i)
			}
			c.Limits.RetryBudgetPercent, c.Limits.RetryBudgetMin = p, 3
			if v := b.GetMinRetryConcurrency(); v != nil {
				c.Limits.RetryBudgetMin = v.GetValue()
			}
		}
	}
	return nil
}

// clusterOutlier compiles outlier detection. Success rate and failure
// percentage detection are refused unless enforced at 0 %, which is what Istio
// sends. An enforcement of 0 switches a detector off; shares between are refused.
func clusterOutlier(c *Cluster, m *clusterpb.OutlierDetection) error {
	if m == nil {
		return nil
	}
	if err := only(m, `consecutive_5xx interval base_ejection_time max_ejection_percent enforcing_consecutive_5xx
		enforcing_success_rate success_rate_minimum_hosts success_rate_request_volume success_rate_stdev_factor
		consecutive_gateway_failure enforcing_consecutive_gateway_failure split_external_local_origin_errors
		consecutive_local_origin_failure enforcing_consecutive_local_origin_failure
		enforcing_local_origin_success_rate enforcing_failure_percentage
		enforcing_failure_percentage_local_origin max_ejection_time max_ejection_time_jitter
		successful_active_health_check_uneject_host`); err != nil {
		return at(err, "outlier_detection")
	}
	o := &Outlier{
		Consecutive5xx: 5, ConsecutiveGateway: 5, ConsecutiveLocal: 5, MaxEjectionPercent: 10,
		Interval: 10 * time.Second, BaseEjection: 30 * time.Second, MaxEjection: 300 * time.Second,
		SplitExternalLocal: m.GetSplitExternalLocalOriginErrors(),
	}
	set := func(dst *uint32, v interface{ GetValue() uint32 }, has bool) {
		if has {
			*dst = v.GetValue()
		}
	}
	set(&o.Consecutive5xx, m.GetConsecutive_5Xx(), m.GetConsecutive_5Xx() != nil)
	set(&o.ConsecutiveGateway, m.GetConsecutiveGatewayFailure(), m.GetConsecutiveGatewayFailure() != nil)
	set(&o.ConsecutiveLocal, m.GetConsecutiveLocalOriginFailure(), m.GetConsecutiveLocalOriginFailure() != nil)
	set(&o.MaxEjectionPercent, m.GetMaxEjectionPercent(), m.GetMaxEjectionPercent() != nil)
	e5, eg, el := uint32(100), uint32(0), uint32(100)
	set(&e5, m.GetEnforcingConsecutive_5Xx(), m.GetEnforcingConsecutive_5Xx() != nil)
	set(&eg, m.GetEnforcingConsecutiveGatewayFailure(), m.GetEnforcingConsecutiveGatewayFailure() != nil)
	set(&el, m.GetEnforcingConsecutiveLocalOriginFailure(), m.GetEnforcingConsecutiveLocalOriginFailure() != nil)
	for _, d := range []struct {
		enforce uint32
		limit   *uint32
	}{{e5, &o.Consecutive5xx}, {eg, &o.ConsecutiveGateway}, {el, &o.ConsecutiveLocal}} {
		if d.enforce == 0 {
			*d.limit = 0
		} else if d.enforce < 100 {
			return fmt.Errorf("outlier_detection: enforcing %d %% is not supported", d.enforce)
		}
	}
	if !o.SplitExternalLocal {
		o.ConsecutiveLocal = 0
	}
	if m.GetEnforcingFailurePercentage().GetValue() > 0 || m.GetEnforcingFailurePercentageLocalOrigin().GetValue() > 0 {
		return fmt.Errorf("outlier_detection: failure percentage is not supported")
	}
	c.Outlier = o
	err := firstError(
		into(&o.Interval, m.GetInterval(), "outlier_detection.interval"),
		into(&o.BaseEjection, m.GetBaseEjectionTime(), "outlier_detection.base_ejection_time"),
		into(&o.MaxEjection, m.GetMaxEjectionTime(), "outlier_detection.max_ejection_time"),
	)
	o.MaxEjection = max(o.MaxEjection, o.BaseEjection)
	if err == nil && o.Interval < time.Millisecond {
		err = fmt.Errorf("outlier_detection.interval: %v is too short", o.Interval)
	}
	return err
}

func clusterTransports(c *Cluster, m *clusterpb.Cluster) error {
	for i, t := range m.GetTransportSocketMatches() {
		if err := only(t, "name match transport_socket"); err != nil {
			return at(err, "transport_socket_matches[%d]", i)
		}
		u, err := upstreamTLS(t.GetTransportSocket())
		if err != nil {
			return at(err, "transport_socket_matches[%d].transport_socket", i)
		}
		tm := TransportMatch{Name: t.GetName(), TLS: u, Match: map[string]string{}}
		for k, v := range t.GetMatch().GetFields() {
			tm.Match[k] = v.GetStringValue()
		}
		c.Transports = append(c.Transports, tm)
	}
	u, err := upstreamTLS(m.GetTransportSocket())
	if err != nil {
		return at(err, "transport_socket")
	}
	if n := len(c.Transports); u != nil || n == 0 || len(c.Transports[n-1].Match) > 0 {
		c.Transports = append(c.Transports, TransportMatch{TLS: u})
	}
	return nil
}

// Linux socket options that a cluster may ask for.
const (
	solSocket = 1
	soMark    = 36
)

func clusterSockets(c *Cluster, m *clusterpb.Cluster) error {
	if k := m.GetUpstreamConnectionOptions().GetTcpKeepalive(); k != nil {
		c.TCPKeepalive = &Keepalive{
			Probes:   k.GetKeepaliveProbes().GetValue(),
			Time:     time.Duration(k.GetKeepaliveTime().GetValue()) * time.Second,
			Interval: time.Duration(k.GetKeepaliveInterval().GetValue()) * time.Second,
		}
	}
	b := m.GetUpstreamBindConfig()
	if b == nil {
		return nil
	}
	if err := only(b, "source_address socket_options extra_source_addresses"); err != nil {
		return at(err, "upstream_bind_config")
	}
	// extra_source_addresses is the other address family of the passthrough
	// address; the loop picks the family of the destination.
	if s := b.GetSourceAddress(); s != nil {
		addr, err := netip.ParseAddr(s.GetAddress())
		if err != nil {
			return at(err, "upstream_bind_config.source_address")
		}
		if addr = addr.Unmap(); !addr.IsUnspecified() {
			c.Bind = addr
		}
	}
	for i, o := range b.GetSocketOptions() {
		v, isInt := o.GetValue().(*corepb.SocketOption_IntValue)
		if o.GetLevel() != solSocket || o.GetName() != soMark || !isInt || v.IntValue < 0 || v.IntValue > math.MaxUint32 {
			return fmt.Errorf("upstream_bind_config.socket_options[%d]: only SO_MARK is supported", i)
		}
		c.Mark = uint32(v.IntValue)
	}
	return nil
}

// clusterFilters accepts Istio's TCP metadata exchange, which only tells the
// peer who we are; anything else is refused.
func clusterFilters(list []*clusterpb.Filter) error {
	for i, f := range list {
		full, err := typeName(f.GetTypedConfig())
		if err != nil {
			return at(err, "filters[%d]", i)
		}
		if full != typeTCPPeers {
			return fmt.Errorf("filters[%d] %q: type %q is not supported", i, f.GetName(), full)
		}
	}
	return nil
}

// endpoints compiles a load assignment, ordered by priority. names allows host
// names, which DNS clusters resolve later. Fields left out: the overprovisioning
// factor and endpoint_stale_after.
func endpoints(m *endpointpb.ClusterLoadAssignment, names, weighted bool) ([]*Endpoint, error) {
	if err := only(m, "cluster_name endpoints policy"); err != nil {
		return nil, err
	}
	if p := m.GetPolicy(); p != nil {
		if err := only(p, "overprovisioning_factor endpoint_stale_after weighted_priority_health"); err != nil {
			return nil, at(err, "policy")
		}
	}
	var out []*Endpoint
	for i, l := range m.GetEndpoints() {
		if err := only(l, "locality lb_endpoints load_balancing_weight priority proximity metadata"); err != nil {
			return nil, at(err, "endpoints[%d]", i)
		}
		from := len(out)
		for j, e := range l.GetLbEndpoints() {
			c, err := endpoint(e, l, names)
			if err != nil {
				return nil, at(err, "endpoints[%d].lb_endpoints[%d]", i, j)
			}
			out = append(out, c)
		}
		if w := l.GetLoadBalancingWeight(); weighted {
			spreadWeight(out[from:], w.GetValue())
		}
	}
	slices.SortStableFunc(out, func(a, b *Endpoint) int { return int(a.Priority) - int(b.Priority) })
	return out, nil
}

// spreadWeight gives a locality's share to its endpoints, so that choosing by
// endpoint weight alone also keeps the shares of localities. A locality without
// weight gets nothing (config.endpoint.v3.LocalityLbEndpoints).
func spreadWeight(list []*Endpoint, locality uint32) {
	total := uint64(0)
	for _, e := range list {
		total += uint64(e.Weight)
	}
	const scale = 1000
	for _, e := range list {
		e.Weight = uint32(min(uint64(locality)*scale*uint64(e.Weight)/max(total, 1), math.MaxUint32))
	}
}

func endpoint(m *endpointpb.LbEndpoint, l *endpointpb.LocalityLbEndpoints, names bool) (*Endpoint, error) {
	if err := only(m, "endpoint health_status metadata load_balancing_weight"); err != nil {
		return nil, err
	}
	if err := only(m.GetEndpoint(), "address hostname health_check_config"); err != nil {
		return nil, err
	}
	e := &Endpoint{
		Weight: 1, Priority: min(l.GetPriority(), 128),
		Region: l.GetLocality().GetRegion(), Zone: l.GetLocality().GetZone(),
	}
	if w := m.GetLoadBalancingWeight(); w != nil {
		e.Weight = w.GetValue()
	}
	host, p, err := hostPort(m.GetEndpoint().GetAddress())
	if err != nil {
		return nil, err
	}
	e.Port = p
	addr, err := netip.ParseAddr(host)
	switch {
	case err == nil:
		e.Addr = netip.AddrPortFrom(addr.Unmap(), p)
	case names && host != "":
		e.Host = host
	default:
		return nil, fmt.Errorf("address %q is not an IP address", host)
	}
	switch m.GetHealthStatus() {
	case corepb.HealthStatus_HEALTHY:
		e.Health = Healthy
	case corepb.HealthStatus_UNHEALTHY, corepb.HealthStatus_TIMEOUT:
		e.Health = Unhealthy
	case corepb.HealthStatus_DRAINING:
		e.Health = Draining
	case corepb.HealthStatus_DEGRADED:
		e.Health = Degraded
	}
	for k, v := range m.GetMetadata().GetFilterMetadata()["envoy.transport_socket_match"].GetFields() {
		if e.Labels == nil {
			e.Labels = map[string]string{}
		}
		e.Labels[k] = v.GetStringValue()
	}
	e.Workload = parseWorkload(metadataText(m.GetMetadata(), "istio", "workload"))
	return e, nil
}

// parseWorkload reads "name;namespace;service;revision;cluster".
func parseWorkload(text string) Workload {
	var f [5]string
	copy(f[:], strings.SplitN(text, ";", 5))
	return Workload{Name: f[0], Namespace: f[1], CanonicalService: f[2], CanonicalRevision: f[3], Cluster: f[4]}
}

// Transport returns the transport for an endpoint: the first match whose labels
// the endpoint has, else plaintext's nil TLS by the default entry. ok is false
// when no entry fits, in which case the endpoint must not be used.
func (c *Cluster) Transport(e *Endpoint) (t *TransportMatch, ok bool) {
	for i := range c.Transports {
		fits := true
		for k, v := range c.Transports[i].Match {
			if e.Labels[k] != v {
				fits = false
				break
			}
		}
		if fits {
			return &c.Transports[i], true
		}
	}
	return nil, false
}
