package translate

import (
	"math"
	"slices"
	"time"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httppb "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typepb "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshconfigpb "istio.io/api/mesh/v1alpha1"
	networkingpb "istio.io/api/networking/v1alpha3"

	"lateen.dev/lateen/internal/control/mesh"
)

type percent = typepb.Percent

// mergePolicy returns the traffic policy in force on a port: the rule's own, in
// which a subset's fields replace whole fields, and in which settings of the
// port replace all four of load balancer, pool, outlier detection and TLS. That
// they do not merge is Istio's documented behaviour.
func mergePolicy(rule *mesh.DestinationRule, subset *networkingpb.Subset, port uint16) *networkingpb.TrafficPolicy {
	if rule == nil {
		return nil
	}
	out := atPort(rule.Policy, port)
	s := subset.GetTrafficPolicy()
	if s == nil {
		return out
	}
	if out == nil {
		return atPort(s, port)
	}
	merged := &networkingpb.TrafficPolicy{
		LoadBalancer: out.GetLoadBalancer(), ConnectionPool: out.GetConnectionPool(),
		OutlierDetection: out.GetOutlierDetection(), Tls: out.GetTls(),
		Tunnel: out.GetTunnel(), ProxyProtocol: out.GetProxyProtocol(), RetryBudget: out.GetRetryBudget(),
	}
	if s.GetLoadBalancer() != nil {
		merged.LoadBalancer = s.GetLoadBalancer()
	}
	if s.GetConnectionPool() != nil {
		merged.ConnectionPool = s.GetConnectionPool()
	}
	if s.GetOutlierDetection() != nil {
		merged.OutlierDetection = s.GetOutlierDetection()
	}
	if s.GetTls() != nil {
		merged.Tls = s.GetTls()
	}
	if s.GetRetryBudget() != nil {
		merged.RetryBudget = s.GetRetryBudget()
	}
	merged.PortLevelSettings = s.GetPortLevelSettings()
	return atPort(merged, port)
}

func atPort(p *networkingpb.TrafficPolicy, port uint16) *networkingpb.TrafficPolicy {
	for _, l := range p.GetPortLevelSettings() {
		if l.GetPort().GetNumber() == uint32(port) {
			return &networkingpb.TrafficPolicy{
				LoadBalancer: l.GetLoadBalancer(), ConnectionPool: l.GetConnectionPool(),
				OutlierDetection: l.GetOutlierDetection(), Tls: l.GetTls(),
				ProxyProtocol: p.GetProxyProtocol(), RetryBudget: p.GetRetryBudget(),
			}
		}
	}
	return p
}

// breakers makes the circuit breakers; what a pool does not limit is unlimited.
func breakers(pool *networkingpb.ConnectionPoolSettings, budget *networkingpb.TrafficPolicy_RetryBudget) *clusterpb.CircuitBreakers {
	limit := func(v int32) *wrapperspb.UInt32Value {
		if v > 0 {
			return wrapperspb.UInt32(uint32(v))
		}
		return wrapperspb.UInt32(math.MaxUint32)
	}
	t := &clusterpb.CircuitBreakers_Thresholds{
		MaxConnections:     limit(pool.GetTcp().GetMaxConnections()),
		MaxPendingRequests: limit(pool.GetHttp().GetHttp1MaxPendingRequests()),
		MaxRequests:        limit(pool.GetHttp().GetHttp2MaxRequests()),
		MaxRetries:         limit(pool.GetHttp().GetMaxRetries()),
	}
	if budget != nil {
		t.RetryBudget = &clusterpb.CircuitBreakers_Thresholds_RetryBudget{}
		if budget.GetPercent() != nil {
			t.RetryBudget.BudgetPercent = &percent{Value: budget.GetPercent().GetValue()}
		}
		if budget.GetMinRetryConcurrency() > 0 {
			t.RetryBudget.MinRetryConcurrency = wrapperspb.UInt32(budget.GetMinRetryConcurrency())
		}
	}
	return &clusterpb.CircuitBreakers{Thresholds: []*clusterpb.CircuitBreakers_Thresholds{t}}
}

func (b *builder) setPool(c *clusterpb.Cluster, s *mesh.Service, p mesh.Port, policy *networkingpb.TrafficPolicy) {
	b.setPoolFor(c, p, policy, true)
	if policy.GetConnectionPool().GetTcp().GetConnectTimeout() == nil {
		c.ConnectTimeout = b.m.Config.GetConnectTimeout()
	}
}

// setPoolFor applies connection pool settings and chooses the upstream
// protocol: HTTP/2 for ports declared so on both sides, as their applications
// speak nothing else, and the caller's own where none is declared.
func (b *builder) setPoolFor(c *clusterpb.Cluster, p mesh.Port, policy *networkingpb.TrafficPolicy, outbound bool) {
	pool := policy.GetConnectionPool()
	c.CircuitBreakers = breakers(pool, policy.GetRetryBudget())
	c.ConnectTimeout = pool.GetTcp().GetConnectTimeout()
	c.UpstreamConnectionOptions = keepalive(b.m.Config.GetTcpKeepalive(), pool.GetTcp().GetTcpKeepalive())
	common := commonHTTP(pool)
	options := &httppb.HttpProtocolOptions{CommonHttpProtocolOptions: common}
	sniffed := p.Protocol == mesh.Auto && b.n.http2() && !b.n.router()
	switch {
	case outbound && b.wantsHTTP2(p, pool), !outbound && p.Protocol.IsHTTP2() && b.n.http2():
		options.UpstreamProtocolOptions = &httppb.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httppb.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httppb.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: http2Options(pool)},
			},
		}
	case sniffed, outbound && p.Protocol.IsHTTP() && pool.GetHttp().GetUseClientProtocol():
		options.UpstreamProtocolOptions = downstreamProtocol(&corepb.Http2ProtocolOptions{})
	case common != nil:
		options.UpstreamProtocolOptions = http1Only()
	default:
		return
	}
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptionsName: pack(options)}
}

func http2Options(pool *networkingpb.ConnectionPoolSettings) *corepb.Http2ProtocolOptions {
	h2 := &corepb.Http2ProtocolOptions{}
	if n := pool.GetHttp().GetMaxConcurrentStreams(); n > 0 {
		h2.MaxConcurrentStreams = wrapperspb.UInt32(uint32(n))
	}
	if k := pool.GetHttp().GetHttp2KeepAlive(); k != nil {
		h2.ConnectionKeepalive = &corepb.KeepaliveSettings{Interval: k.GetInterval(), Timeout: k.GetTimeout()}
	}
	return h2
}

func http1Only() *httppb.HttpProtocolOptions_ExplicitHttpConfig_ {
	return &httppb.HttpProtocolOptions_ExplicitHttpConfig_{
		ExplicitHttpConfig: &httppb.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httppb.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{
				HttpProtocolOptions: &corepb.Http1ProtocolOptions{},
			},
		},
	}
}

// wantsHTTP2 reports whether upstreams of a port are spoken to in HTTP/2: by
// the port's protocol, or by an upgrade policy for plain HTTP ports.
func (b *builder) wantsHTTP2(p mesh.Port, pool *networkingpb.ConnectionPoolSettings) bool {
	if !b.n.http2() {
		return false
	}
	if p.Protocol.IsHTTP2() {
		return true
	}
	if p.Protocol != mesh.HTTP {
		return false
	}
	switch pool.GetHttp().GetH2UpgradePolicy() {
	case networkingpb.ConnectionPoolSettings_HTTPSettings_UPGRADE:
		return true
	case networkingpb.ConnectionPoolSettings_HTTPSettings_DO_NOT_UPGRADE:
		return false
	}
	return b.m.Config.GetH2UpgradePolicy() == meshconfigpb.MeshConfig_UPGRADE
}

func commonHTTP(pool *networkingpb.ConnectionPoolSettings) *corepb.HttpProtocolOptions {
	var out corepb.HttpProtocolOptions
	out.IdleTimeout = pool.GetTcp().GetIdleTimeout()
	if t := pool.GetHttp().GetIdleTimeout(); t != nil {
		out.IdleTimeout = t
	}
	out.MaxConnectionDuration = pool.GetTcp().GetMaxConnectionDuration()
	if n := pool.GetHttp().GetMaxRequestsPerConnection(); n > 0 {
		out.MaxRequestsPerConnection = wrapperspb.UInt32(uint32(n))
	}
	if out.IdleTimeout == nil && out.MaxConnectionDuration == nil && out.MaxRequestsPerConnection == nil {
		return nil
	}
	return &out
}

func keepalive(byDefault, own *networkingpb.ConnectionPoolSettings_TCPSettings_TcpKeepalive) *clusterpb.UpstreamConnectionOptions {
	if byDefault == nil && own == nil {
		return nil
	}
	k := &corepb.TcpKeepalive{}
	for _, s := range []*networkingpb.ConnectionPoolSettings_TCPSettings_TcpKeepalive{byDefault, own} {
		if s.GetProbes() > 0 {
			k.KeepaliveProbes = wrapperspb.UInt32(s.GetProbes())
		}
		if s.GetTime() != nil {
			k.KeepaliveTime = wrapperspb.UInt32(seconds(s.GetTime()))
		}
		if s.GetInterval() != nil {
			k.KeepaliveInterval = wrapperspb.UInt32(seconds(s.GetInterval()))
		}
	}
	return &clusterpb.UpstreamConnectionOptions{TcpKeepalive: k}
}

func seconds(d *durationpb.Duration) uint32 {
	return uint32(min(max(int64(d.AsDuration()/time.Second), 0), math.MaxUint32))
}

// setOutlier makes outlier detection. Ejection by success rate stays off, and
// what the rule does not mention keeps Envoy's default, as in Istio.
func (b *builder) setOutlier(c *clusterpb.Cluster, policy *networkingpb.TrafficPolicy) {
	o := policy.GetOutlierDetection()
	if o == nil {
		return
	}
	out := &clusterpb.OutlierDetection{
		Interval: o.GetInterval(), BaseEjectionTime: o.GetBaseEjectionTime(),
		EnforcingSuccessRate: wrapperspb.UInt32(0),
	}
	enforce := func(v *wrapperspb.UInt32Value) (n, share *wrapperspb.UInt32Value) {
		if v == nil {
			return nil, nil
		}
		if v.GetValue() > 0 {
			return v, wrapperspb.UInt32(100)
		}
		return v, wrapperspb.UInt32(0)
	}
	out.Consecutive_5Xx, out.EnforcingConsecutive_5Xx = enforce(o.GetConsecutive_5XxErrors())
	out.ConsecutiveGatewayFailure, out.EnforcingConsecutiveGatewayFailure = enforce(o.GetConsecutiveGatewayErrors())
	if o.GetMaxEjectionPercent() > 0 {
		out.MaxEjectionPercent = wrapperspb.UInt32(uint32(o.GetMaxEjectionPercent()))
	}
	if o.GetSplitExternalLocalOriginErrors() {
		out.SplitExternalLocalOriginErrors = true
		if v := o.GetConsecutiveLocalOriginFailures(); v.GetValue() > 0 {
			out.ConsecutiveLocalOriginFailure = v
			out.EnforcingConsecutiveLocalOriginFailure = wrapperspb.UInt32(100)
		}
		out.EnforcingLocalOriginSuccessRate = wrapperspb.UInt32(0)
	}
	c.OutlierDetection = out
}

// setBalancing chooses the balancing policy; least request is Istio's default.
func setBalancing(c *clusterpb.Cluster, policy *networkingpb.TrafficPolicy) {
	lb := policy.GetLoadBalancer()
	c.LbPolicy = clusterpb.Cluster_LEAST_REQUEST
	switch lb.GetSimple() {
	case networkingpb.LoadBalancerSettings_ROUND_ROBIN:
		c.LbPolicy = clusterpb.Cluster_ROUND_ROBIN
	case networkingpb.LoadBalancerSettings_RANDOM:
		c.LbPolicy = clusterpb.Cluster_RANDOM
	}
	hash := lb.GetConsistentHash()
	if hash == nil {
		return
	}
	if m := hash.GetMaglev(); m != nil {
		c.LbPolicy = clusterpb.Cluster_MAGLEV
		if m.GetTableSize() > 0 {
			c.LbConfig = &clusterpb.Cluster_MaglevLbConfig_{MaglevLbConfig: &clusterpb.Cluster_MaglevLbConfig{
				TableSize: wrapperspb.UInt64(m.GetTableSize()),
			}}
		}
		return
	}
	size := uint64(1024)
	if n := hash.GetMinimumRingSize(); n > 0 {
		size = n
	}
	if n := hash.GetRingHash().GetMinimumRingSize(); n > 0 {
		size = n
	}
	c.LbPolicy = clusterpb.Cluster_RING_HASH
	c.LbConfig = &clusterpb.Cluster_RingHashLbConfig_{RingHashLbConfig: &clusterpb.Cluster_RingHashLbConfig{
		MinimumRingSize: wrapperspb.UInt64(size),
	}}
}

// localityPriority ranks an endpoint's locality as seen from the node: 0 is the
// same sub-zone, then zone, then region, then a region to fail over to, then
// elsewhere.
func (b *builder) localityPriority(l mesh.Locality, failover []*networkingpb.LocalityLoadBalancerSetting_Failover) uint32 {
	own := b.n.Locality
	switch {
	case own == l:
		return 0
	case own.Region == l.Region && own.Zone == l.Zone:
		return 1
	case own.Region == l.Region:
		return 2
	}
	i := slices.IndexFunc(failover, func(f *networkingpb.LocalityLoadBalancerSetting_Failover) bool { return f.GetFrom() == own.Region })
	if i < 0 || failover[i].GetTo() == l.Region {
		return 3
	}
	return 4
}
