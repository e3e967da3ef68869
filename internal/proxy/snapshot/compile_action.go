package snapshot

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	routepb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
)

// routeAction compiles where a request goes. Fields left out: priority (there
// is one set of limits), flush_timeout and early_data_policy (no early data).
//
//nolint:staticcheck // deprecated fields still arrive
func routeAction(r *Route, m *routepb.RouteAction, inherited *RetryPolicy) error {
	if err := only(m, `cluster weighted_clusters cluster_not_found_response_code prefix_rewrite regex_rewrite
		host_rewrite_literal auto_host_rewrite append_x_forwarded_host timeout idle_timeout flush_timeout
		early_data_policy retry_policy request_mirror_policies priority hash_policy max_grpc_timeout
		upgrade_configs max_stream_duration`); err != nil {
		return err
	}
	r.PrefixRewrite, r.HostRewrite = m.GetPrefixRewrite(), m.GetHostRewriteLiteral()
	r.AutoHost, r.AppendXFH = m.GetAutoHostRewrite().GetValue(), m.GetAppendXForwardedHost()
	if !validHeader(HeaderValue{Name: "host", Value: r.HostRewrite + r.PrefixRewrite}) {
		return fmt.Errorf("rewrite holds a control character")
	}
	if m.GetClusterNotFoundResponseCode() == routepb.RouteAction_NOT_FOUND {
		r.ClusterNotFoundCode = 404
	} else if m.GetClusterNotFoundResponseCode() == routepb.RouteAction_INTERNAL_SERVER_ERROR {
		r.ClusterNotFoundCode = 500
	}
	var errs [6]error
	errs[0] = destinations(r, m)
	r.RegexRewrite, errs[1] = regexRewrite(m.GetRegexRewrite())
	r.Retry, errs[2] = retryPolicy(m.GetRetryPolicy())
	errs[3] = routeTimeouts(r, m)
	r.Hash, errs[4] = hashPolicies(m.GetHashPolicy())
	r.Mirrors, errs[5] = mirrors(m.GetRequestMirrorPolicies())
	if err := firstError(errs[:]...); err != nil {
		return err
	}
	if r.Retry == nil {
		r.Retry = inherited
	} else {
		r.Retry.Origin = r.Origin
	}
	for _, u := range m.GetUpgradeConfigs() {
		if err := only(u, "upgrade_type enabled"); err != nil {
			return at(err, "upgrade_configs")
		}
		if r.Upgrades == nil {
			r.Upgrades = map[string]bool{}
		}
		r.Upgrades[strings.ToLower(u.GetUpgradeType())] = u.GetEnabled() == nil || u.GetEnabled().GetValue()
	}
	return nil
}

func destinations(r *Route, m *routepb.RouteAction) error {
	if name := m.GetCluster(); name != "" {
		r.Clusters, r.TotalWeight = []WeightedCluster{{Cluster: name, Weight: 1}}, 1
		return nil
	}
	w := m.GetWeightedClusters()
	if w == nil {
		return fmt.Errorf("cluster is missing")
	}
	// runtime_key_prefix: no runtime here. total_weight: deprecated, unused.
	if err := only(w, "clusters total_weight runtime_key_prefix"); err != nil {
		return at(err, "weighted_clusters")
	}
	total := uint64(0)
	for i, c := range w.GetClusters() {
		if err := only(c, `name weight request_headers_to_add request_headers_to_remove
			response_headers_to_add response_headers_to_remove host_rewrite_literal`); err != nil {
			return at(err, "weighted_clusters[%d]", i)
		}
		d := WeightedCluster{Cluster: c.GetName(), Weight: c.GetWeight().GetValue(), HostRewrite: c.GetHostRewriteLiteral()}
		var errs [2]error
		d.Request, errs[0] = headerOps(c.GetRequestHeadersToAdd(), c.GetRequestHeadersToRemove())
		d.Response, errs[1] = headerOps(c.GetResponseHeadersToAdd(), c.GetResponseHeadersToRemove())
		if err := firstError(errs[:]...); err != nil {
			return at(err, "weighted_clusters[%d]", i)
		}
		if d.Cluster == "" || !validHeader(HeaderValue{Name: "host", Value: d.HostRewrite}) {
			return fmt.Errorf("weighted_clusters[%d]: name or host is not valid", i)
		}
		total += uint64(d.Weight)
		r.Clusters = append(r.Clusters, d)
	}
	if total == 0 || total > maxWeight {
		return fmt.Errorf("weighted_clusters: weights sum to %d", total)
	}
	r.TotalWeight = uint32(total)
	return nil
}

func routeTimeouts(r *Route, m *routepb.RouteAction) error {
	r.Timeout = defaultRouteTimeout
	s := m.GetMaxStreamDuration()
	if err := only(s, "max_stream_duration grpc_timeout_header_max"); s != nil && err != nil {
		return at(err, "max_stream_duration")
	}
	var most time.Duration
	err := firstError(
		into(&r.Timeout, m.GetTimeout(), "timeout"),
		into(&r.IdleTimeout, m.GetIdleTimeout(), "idle_timeout"),
		into(&most, s.GetMaxStreamDuration(), "max_stream_duration"),
	)
	if err != nil {
		return err
	}
	// The bound of the stream and the bound of the response are kept by one
	// timer: the smaller one.
	if most > 0 && (r.Timeout == 0 || most < r.Timeout) {
		r.Timeout = most
	}
	grpc := s.GetGrpcTimeoutHeaderMax()
	if grpc == nil {
		grpc = m.GetMaxGrpcTimeout() //nolint:staticcheck // deprecated, still sent
	}
	if grpc != nil {
		var d time.Duration
		if err := into(&d, grpc, "grpc_timeout_header_max"); err != nil {
			return err
		}
		r.GRPCTimeoutMax = &d
	}
	return nil
}

// retryWords are Envoy's retry_on and retry_grpc_on keywords.
func retryWord(word string) (RetryOn, bool) {
	switch word {
	case "5xx":
		return RetryOn5xx, true
	case "gateway-error":
		return RetryOnGatewayError, true
	case "reset":
		return RetryOnReset, true
	case "reset-before-request":
		return RetryOnResetBeforeRequest, true
	case "connect-failure":
		return RetryOnConnectFailure, true
	case "refused-stream":
		return RetryOnRefusedStream, true
	case "retriable-4xx":
		return RetryOnRetriable4xx, true
	case "retriable-status-codes":
		return RetryOnRetriableStatusCodes, true
	case "retriable-headers":
		return RetryOnRetriableHeaders, true
	case "envoy-ratelimited":
		return RetryOnEnvoyRateLimited, true
	case "http3-post-connect-failure":
		return RetryOnHTTP3PostConnectFailure, true
	case "cancelled":
		return RetryOnGRPCCancelled, true
	case "deadline-exceeded":
		return RetryOnGRPCDeadlineExceeded, true
	case "internal":
		return RetryOnGRPCInternal, true
	case "resource-exhausted":
		return RetryOnGRPCResourceExhausted, true
	case "unavailable":
		return RetryOnGRPCUnavailable, true
	}
	return 0, false
}

// ParseRetryOn reads a retry_on list. Unknown words are ignored, as in Envoy,
// except status numbers, which are returned.
func ParseRetryOn(list string) (on RetryOn, codes []int) {
	for word := range strings.SplitSeq(list, ",") {
		word = strings.TrimSpace(word)
		if bit, ok := retryWord(word); ok {
			on |= bit
		} else if code, err := strconv.Atoi(word); err == nil && code >= 100 && code <= 599 {
			on |= RetryOnRetriableStatusCodes
			codes = append(codes, code)
		}
	}
	return on, codes
}

// retryPolicy compiles a retry policy. Fields left out: retry_priority (which
// priority is tried is the balancer's choice, and previous endpoints are
// avoided), rate_limited_retry_back_off (needs a header of the upstream; the
// ordinary back-off holds).
func retryPolicy(m *routepb.RetryPolicy) (*RetryPolicy, error) {
	if m == nil {
		return nil, nil
	}
	if err := only(m, `retry_on num_retries per_try_timeout per_try_idle_timeout retry_priority
		retry_host_predicate host_selection_retry_max_attempts retriable_status_codes retry_back_off
		rate_limited_retry_back_off`); err != nil {
		return nil, at(err, "retry_policy")
	}
	p := &RetryPolicy{Retries: 1, BaseInterval: 25 * time.Millisecond, HostAttempts: 1}
	p.On, p.StatusCodes = ParseRetryOn(m.GetRetryOn())
	if m.GetNumRetries() != nil {
		p.Retries = m.GetNumRetries().GetValue()
	}
	for _, c := range m.GetRetriableStatusCodes() {
		if !slices.Contains(p.StatusCodes, int(c)) {
			p.StatusCodes = append(p.StatusCodes, int(c))
		}
	}
	if n := m.GetHostSelectionRetryMaxAttempts(); n > 0 {
		p.HostAttempts = uint32(min(n, 1000))
	}
	for _, h := range m.GetRetryHostPredicate() {
		if h.GetName() != "envoy.retry_host_predicates.previous_hosts" {
			return nil, fmt.Errorf("retry_policy: retry_host_predicate %q is not supported", h.GetName())
		}
		p.PreviousHosts = true
	}
	err := firstError(
		into(&p.PerTryTimeout, m.GetPerTryTimeout(), "per_try_timeout"),
		into(&p.PerTryIdleTimeout, m.GetPerTryIdleTimeout(), "per_try_idle_timeout"),
		into(&p.BaseInterval, m.GetRetryBackOff().GetBaseInterval(), "retry_back_off.base_interval"),
	)
	p.MaxInterval = 10 * p.BaseInterval
	err = firstError(err, into(&p.MaxInterval, m.GetRetryBackOff().GetMaxInterval(), "retry_back_off.max_interval"))
	return p, at(err, "retry_policy")
}

func hashPolicies(list []*routepb.RouteAction_HashPolicy) ([]HashPolicy, error) {
	var out []HashPolicy
	for i, m := range list {
		h := HashPolicy{Terminal: m.GetTerminal()}
		var err error
		switch p := m.GetPolicySpecifier().(type) {
		case *routepb.RouteAction_HashPolicy_Header_:
			h.Header = strings.ToLower(p.Header.GetHeaderName())
			err = only(p.Header, "header_name")
		case *routepb.RouteAction_HashPolicy_Cookie_:
			h.Cookie, h.CookiePath = p.Cookie.GetName(), p.Cookie.GetPath()
			err = only(p.Cookie, "name path ttl")
			if !validHeader(HeaderValue{Name: h.Cookie, Value: h.CookiePath}) {
				err = fmt.Errorf("cookie %q is not valid", h.Cookie)
			}
			if p.Cookie.GetTtl() != nil && err == nil {
				var ttl time.Duration
				err = into(&ttl, p.Cookie.GetTtl(), "ttl")
				h.CookieTTL = &ttl
			}
		case *routepb.RouteAction_HashPolicy_QueryParameter_:
			h.Query = p.QueryParameter.GetName()
		case *routepb.RouteAction_HashPolicy_ConnectionProperties_:
			if h.SourceIP = p.ConnectionProperties.GetSourceIp(); !h.SourceIP {
				err = fmt.Errorf("connection_properties without source_ip")
			}
		default:
			err = fmt.Errorf("policy is not supported")
		}
		if err != nil {
			return nil, at(err, "hash_policy[%d]", i)
		}
		out = append(out, h)
	}
	return out, nil
}

// mirrors compiles mirror policies. Fields left out: trace_sampled and
// disable_shadow_host_suffix_append (the host is kept, as Istio asks).
func mirrors(list []*routepb.RouteAction_RequestMirrorPolicy) ([]Mirror, error) {
	var out []Mirror
	for i, m := range list {
		if err := only(m, "cluster runtime_fraction trace_sampled disable_shadow_host_suffix_append"); err != nil {
			return nil, at(err, "request_mirror_policies[%d]", i)
		}
		if m.GetCluster() == "" {
			return nil, fmt.Errorf("request_mirror_policies[%d]: cluster is missing", i)
		}
		share := perMillion(m.GetRuntimeFraction().GetDefaultValue(), 1e6)
		if m.GetRuntimeFraction() != nil && m.GetRuntimeFraction().GetDefaultValue() == nil {
			share = 0 // a RuntimeFractionalPercent without value is 0 of 100
		}
		out = append(out, Mirror{Cluster: m.GetCluster(), PerMillion: share})
	}
	return out, nil
}
