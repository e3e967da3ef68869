package translate

import (
	"strconv"
	"strings"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routepb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	commonfaultpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	corspb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	previoushostspb "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	previousprioritiespb "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	matcherpb "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typepb "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networkingpb "istio.io/api/networking/v1alpha3"

	"lateen.dev/lateen/internal/control/mesh"
)

// defaultRetryOn are Istio's conditions for retries that nobody configured.
const defaultRetryOn = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"

func setFilterConfig(r *routepb.Route, name string, m proto.Message) {
	if r.TypedPerFilterConfig == nil {
		r.TypedPerFilterConfig = map[string]*anypb.Any{}
	}
	r.TypedPerFilterConfig[name] = pack(m)
}

// setAction makes the forwarding action of a route.
func (b *builder) setAction(out *routepb.Route, in *networkingpb.HTTPRoute, at routeScope) {
	timeout := in.GetTimeout()
	if timeout == nil {
		timeout = durationpb.New(0)
	}
	a := &routepb.RouteAction{
		Timeout:        timeout,
		MaxGrpcTimeout: timeout,
	}
	if _, _, host := headerOps(in.GetHeaders().GetRequest()); host != "" {
		a.HostRewriteSpecifier = &routepb.RouteAction_HostRewriteLiteral{HostRewriteLiteral: host}
	}
	if rw := in.GetRewrite(); rw != nil {
		if re := rw.GetUriRegexRewrite(); re != nil {
			a.RegexRewrite = &matcherpb.RegexMatchAndSubstitute{
				Pattern: &matcherpb.RegexMatcher{Regex: re.GetMatch()}, Substitution: re.GetRewrite(),
			}
		} else {
			a.PrefixRewrite = rw.GetUri()
		}
		if rw.GetAuthority() != "" {
			a.HostRewriteSpecifier = &routepb.RouteAction_HostRewriteLiteral{HostRewriteLiteral: rw.GetAuthority()}
		}
	}
	b.setMirrors(a, in, at)
	b.setDestinations(out, a, in, at)
	a.RetryPolicy = b.retryPolicy(in.GetRetries(), len(a.GetHashPolicy()) > 0)
	out.Action = &routepb.Route_Route{Route: a}
}

// setDestinations chooses the cluster or the weighted clusters of a route.
func (b *builder) setDestinations(out *routepb.Route, a *routepb.RouteAction, in *networkingpb.HTTPRoute, at routeScope) {
	dests := in.GetRoute()
	if len(dests) == 1 {
		d := dests[0]
		a.ClusterSpecifier = &routepb.RouteAction_Cluster{Cluster: b.destinationCluster(d.GetDestination(), at.port)}
		b.setHeaders(out, d.GetHeaders())
		if _, _, host := headerOps(d.GetHeaders().GetRequest()); host != "" {
			a.HostRewriteSpecifier = &routepb.RouteAction_HostRewriteLiteral{HostRewriteLiteral: host}
		}
		a.HashPolicy = b.destinationHash(d.GetDestination(), at.port)
		return
	}
	w := &routepb.WeightedCluster{}
	for _, d := range dests {
		if d.GetWeight() <= 0 {
			continue
		}
		c := &routepb.WeightedCluster_ClusterWeight{
			Name:   b.destinationCluster(d.GetDestination(), at.port),
			Weight: wrapperspb.UInt32(uint32(d.GetWeight())),
		}
		var host string
		c.RequestHeadersToAdd, c.RequestHeadersToRemove, host = headerOps(d.GetHeaders().GetRequest())
		if host != "" {
			c.HostRewriteSpecifier = &routepb.WeightedCluster_ClusterWeight_HostRewriteLiteral{HostRewriteLiteral: host}
		}
		c.ResponseHeadersToAdd, c.ResponseHeadersToRemove, _ = headerOps(d.GetHeaders().GetResponse())
		w.Clusters = append(w.Clusters, c)
		a.HashPolicy = append(a.HashPolicy, b.destinationHash(d.GetDestination(), at.port)...)
	}
	a.ClusterSpecifier = &routepb.RouteAction_WeightedClusters{WeightedClusters: w}
}

// destinationCluster names the cluster of a destination. Without a port it is
// the port that the request came to; a gateway uses the only port of a service
// that has one. A host or subset that does not exist gives a cluster that does
// not exist, which answers 503.
func (b *builder) destinationCluster(d *networkingpb.Destination, port uint16) string {
	return clusterName(b.destinationPort(d, port), d.GetSubset(), d.GetHost())
}

func (b *builder) destinationPort(d *networkingpb.Destination, port uint16) uint16 {
	if n := d.GetPort().GetNumber(); n != 0 {
		return uint16(n)
	}
	if b.n.router() {
		if s, ok := b.scope.Service(d.GetHost()); ok && len(s.Ports) == 1 {
			return s.Ports[0].Number
		}
	}
	return port
}

func (b *builder) destinationHash(d *networkingpb.Destination, port uint16) []*routepb.RouteAction_HashPolicy {
	s, ok := b.scope.Service(d.GetHost())
	if !ok {
		return nil
	}
	return b.hashPolicy(s, d.GetSubset(), b.destinationPort(d, port))
}

// hashPolicy tells what requests are hashed by for consistent balancing.
func (b *builder) hashPolicy(s *mesh.Service, subset string, port uint16) []*routepb.RouteAction_HashPolicy {
	rule := b.rule(s)
	if rule == nil {
		return nil
	}
	sub, _ := rule.Subset(subset)
	h := mergePolicy(rule, sub.Subset, port).GetLoadBalancer().GetConsistentHash()
	switch k := h.GetHashKey().(type) {
	case *networkingpb.LoadBalancerSettings_ConsistentHashLB_HttpHeaderName:
		return []*routepb.RouteAction_HashPolicy{{PolicySpecifier: &routepb.RouteAction_HashPolicy_Header_{
			Header: &routepb.RouteAction_HashPolicy_Header{HeaderName: k.HttpHeaderName},
		}}}
	case *networkingpb.LoadBalancerSettings_ConsistentHashLB_HttpCookie:
		return []*routepb.RouteAction_HashPolicy{{PolicySpecifier: &routepb.RouteAction_HashPolicy_Cookie_{
			Cookie: &routepb.RouteAction_HashPolicy_Cookie{
				Name: k.HttpCookie.GetName(), Path: k.HttpCookie.GetPath(), Ttl: k.HttpCookie.GetTtl(),
			},
		}}}
	case *networkingpb.LoadBalancerSettings_ConsistentHashLB_UseSourceIp:
		return []*routepb.RouteAction_HashPolicy{{PolicySpecifier: &routepb.RouteAction_HashPolicy_ConnectionProperties_{
			ConnectionProperties: &routepb.RouteAction_HashPolicy_ConnectionProperties{SourceIp: k.UseSourceIp},
		}}}
	case *networkingpb.LoadBalancerSettings_ConsistentHashLB_HttpQueryParameterName:
		return []*routepb.RouteAction_HashPolicy{{PolicySpecifier: &routepb.RouteAction_HashPolicy_QueryParameter_{
			QueryParameter: &routepb.RouteAction_HashPolicy_QueryParameter{Name: k.HttpQueryParameterName},
		}}}
	}
	return nil
}

func (b *builder) destinationTCPHash(d *networkingpb.Destination, port uint16) []*typepb.HashPolicy {
	s, ok := b.scope.Service(d.GetHost())
	if !ok {
		return nil
	}
	return b.tcpHash(s, d.GetSubset(), b.destinationPort(d, port))
}

// tcpHash is hashPolicy for opaque connections, which have nothing to hash but
// the caller's address.
func (b *builder) tcpHash(s *mesh.Service, subset string, port uint16) []*typepb.HashPolicy {
	for _, p := range b.hashPolicy(s, subset, port) {
		if p.GetConnectionProperties().GetSourceIp() {
			return []*typepb.HashPolicy{{PolicySpecifier: &typepb.HashPolicy_SourceIp_{SourceIp: &typepb.HashPolicy_SourceIp{}}}}
		}
	}
	return nil
}

// retryPolicy translates retries; nil means the mesh's default, and zero
// attempts mean none. Where requests are hashed to endpoints a retry goes to the
// same one again, unless told otherwise.
func (b *builder) retryPolicy(in *networkingpb.HTTPRetry, hashed bool) *routepb.RetryPolicy {
	if in == nil {
		in = b.m.Config.GetDefaultHttpRetryPolicy()
	}
	if in != nil && in.GetAttempts() <= 0 {
		return nil
	}
	out := &routepb.RetryPolicy{
		RetryOn: defaultRetryOn, NumRetries: wrapperspb.UInt32(2), HostSelectionRetryMaxAttempts: 5,
	}
	avoid := !hashed
	if v := in.GetRetryIgnorePreviousHosts(); v != nil {
		avoid = v.GetValue()
	}
	if avoid {
		out.RetryHostPredicate = []*routepb.RetryPolicy_RetryHostPredicate{{
			Name: "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &routepb.RetryPolicy_RetryHostPredicate_TypedConfig{
				TypedConfig: pack(&previoushostspb.PreviousHostsPredicate{}),
			},
		}}
	}
	if in == nil {
		return out
	}
	out.NumRetries = wrapperspb.UInt32(uint32(in.GetAttempts()))
	if in.GetRetryOn() != "" {
		out.RetryOn, out.RetriableStatusCodes = retryOn(in.GetRetryOn())
	}
	if in.GetPerTryTimeout() != nil {
		out.PerTryTimeout = in.GetPerTryTimeout()
	}
	if in.GetRetryRemoteLocalities().GetValue() {
		out.RetryPriority = &routepb.RetryPolicy_RetryPriority{
			Name: "envoy.retry_priorities.previous_priorities",
			ConfigType: &routepb.RetryPolicy_RetryPriority_TypedConfig{
				TypedConfig: pack(&previousprioritiespb.PreviousPrioritiesConfig{UpdateFrequency: 2}),
			},
		}
	}
	if in.GetBackoff() != nil {
		out.RetryBackOff = &routepb.RetryPolicy_RetryBackOff{BaseInterval: in.GetBackoff()}
	}
	return out
}

// retryOn separates status codes, which Istio allows among the conditions, from
// the conditions.
func retryOn(text string) (string, []uint32) {
	var words []string
	var codes []uint32
	listed := false
	for w := range strings.SplitSeq(text, ",") {
		w = strings.TrimSpace(w)
		if code, err := strconv.ParseUint(w, 10, 16); err == nil {
			codes = append(codes, uint32(code))
			continue
		}
		if w != "" {
			words = append(words, w)
		}
		listed = listed || w == "retriable-status-codes"
	}
	if len(codes) > 0 && !listed {
		words = append(words, "retriable-status-codes")
	}
	return strings.Join(words, ","), codes
}

// setMirrors adds copies of requests to other destinations.
func (b *builder) setMirrors(a *routepb.RouteAction, in *networkingpb.HTTPRoute, at routeScope) {
	add := func(d *networkingpb.Destination, share *typepb.FractionalPercent) {
		if share.GetNumerator() == 0 {
			return
		}
		a.RequestMirrorPolicies = append(a.RequestMirrorPolicies, &routepb.RouteAction_RequestMirrorPolicy{
			Cluster:                       b.destinationCluster(d, at.port),
			RuntimeFraction:               &corepb.RuntimeFractionalPercent{DefaultValue: share},
			TraceSampled:                  wrapperspb.Bool(false),
			DisableShadowHostSuffixAppend: true,
		})
	}
	all := &typepb.FractionalPercent{Numerator: 100}
	if d := in.GetMirror(); d != nil {
		share := all
		switch {
		case in.GetMirrorPercentage() != nil:
			share = perMillion(in.GetMirrorPercentage())
		case in.GetMirrorPercent() != nil:
			share = &typepb.FractionalPercent{Numerator: in.GetMirrorPercent().GetValue()}
		}
		add(d, share)
	}
	for _, m := range in.GetMirrors() {
		share := all
		if m.GetPercentage() != nil {
			share = perMillion(m.GetPercentage())
		}
		add(m.GetDestination(), share)
	}
}

func perMillion(p *networkingpb.Percent) *typepb.FractionalPercent {
	v := min(max(p.GetValue(), 0), 100)
	return &typepb.FractionalPercent{Numerator: uint32(v*10000 + 0.5), Denominator: typepb.FractionalPercent_MILLION}
}

// redirect translates a redirect. A derived port is the request's own, unless
// that is the scheme's default.
func redirect(in *networkingpb.HTTPRedirect, at routeScope) *routepb.RedirectAction {
	out := &routepb.RedirectAction{HostRedirect: in.GetAuthority()}
	switch {
	case in.GetPrefixRewrite() != "":
		out.PathRewriteSpecifier = &routepb.RedirectAction_PrefixRewrite{PrefixRewrite: in.GetPrefixRewrite()}
	case in.GetUri() != "":
		out.PathRewriteSpecifier = &routepb.RedirectAction_PathRedirect{PathRedirect: in.GetUri()}
	}
	if in.GetScheme() != "" {
		out.SchemeRewriteSpecifier = &routepb.RedirectAction_SchemeRedirect{SchemeRedirect: in.GetScheme()}
	}
	switch p := in.GetRedirectPort().(type) {
	case *networkingpb.HTTPRedirect_Port:
		out.PortRedirect = p.Port
	case *networkingpb.HTTPRedirect_DerivePort:
		usual := !at.tls && at.port == 80 || at.tls && at.port == 443
		if p.DerivePort == networkingpb.HTTPRedirect_FROM_REQUEST_PORT && !usual {
			out.PortRedirect = uint32(at.port)
		}
	}
	switch in.GetRedirectCode() {
	case 302:
		out.ResponseCode = routepb.RedirectAction_FOUND
	case 303:
		out.ResponseCode = routepb.RedirectAction_SEE_OTHER
	case 307:
		out.ResponseCode = routepb.RedirectAction_TEMPORARY_REDIRECT
	case 308:
		out.ResponseCode = routepb.RedirectAction_PERMANENT_REDIRECT
	}
	return out
}

func directResponse(in *networkingpb.HTTPDirectResponse) *routepb.DirectResponseAction {
	out := &routepb.DirectResponseAction{Status: in.GetStatus()}
	switch body := in.GetBody().GetSpecifier().(type) {
	case *networkingpb.HTTPBody_String_:
		out.Body = &corepb.DataSource{Specifier: &corepb.DataSource_InlineString{InlineString: body.String_}}
	case *networkingpb.HTTPBody_Bytes:
		out.Body = &corepb.DataSource{Specifier: &corepb.DataSource_InlineBytes{InlineBytes: body.Bytes}}
	}
	return out
}

// grpcCodes are the names of gRPC status codes, by number.
var grpcCodes = [...]string{
	"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
	"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
	"INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
}

// grpcCode returns the number of a gRPC status name or number.
func grpcCode(text string) (uint32, bool) {
	for i, name := range grpcCodes {
		if strings.EqualFold(name, text) {
			return uint32(i), true
		}
	}
	n, err := strconv.ParseUint(text, 10, 8)
	return uint32(n), err == nil && n < uint64(len(grpcCodes))
}

func fault(in *networkingpb.HTTPFaultInjection) *faultpb.HTTPFault {
	out := &faultpb.HTTPFault{}
	if d := in.GetDelay(); d.GetFixedDelay() != nil {
		out.Delay = &commonfaultpb.FaultDelay{
			FaultDelaySecifier: &commonfaultpb.FaultDelay_FixedDelay{FixedDelay: d.GetFixedDelay()},
			Percentage:         perMillion(d.GetPercentage()),
		}
		if d.GetPercentage() == nil {
			out.Delay.Percentage = &typepb.FractionalPercent{Numerator: uint32(max(d.GetPercent(), 0))}
		}
	}
	if a := in.GetAbort(); a != nil {
		out.Abort = &faultpb.FaultAbort{Percentage: perMillion(a.GetPercentage())}
		switch e := a.GetErrorType().(type) {
		case *networkingpb.HTTPFaultInjection_Abort_HttpStatus:
			out.Abort.ErrorType = &faultpb.FaultAbort_HttpStatus{HttpStatus: uint32(e.HttpStatus)}
		case *networkingpb.HTTPFaultInjection_Abort_GrpcStatus:
			code, ok := grpcCode(e.GrpcStatus)
			if !ok {
				code = 2 // UNKNOWN
			}
			out.Abort.ErrorType = &faultpb.FaultAbort_GrpcStatus{GrpcStatus: code}
		default:
			out.Abort = nil
		}
	}
	return out
}

func cors(in *networkingpb.CorsPolicy) *corspb.CorsPolicy {
	out := &corspb.CorsPolicy{
		AllowMethods: strings.Join(in.GetAllowMethods(), ","), AllowHeaders: strings.Join(in.GetAllowHeaders(), ","),
		ExposeHeaders: strings.Join(in.GetExposeHeaders(), ","), AllowCredentials: in.GetAllowCredentials(),
		FilterEnabled: &corepb.RuntimeFractionalPercent{DefaultValue: &typepb.FractionalPercent{Numerator: 100}},
	}
	if in.GetMaxAge() != nil {
		out.MaxAge = strconv.FormatUint(uint64(seconds(in.GetMaxAge())), 10)
	}
	for _, o := range in.GetAllowOrigins() {
		if s := stringMatch(o); s != nil {
			out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, s)
		}
	}
	for _, o := range in.GetAllowOrigin() {
		if o == "*" {
			out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, withRegex(".*"))
		} else {
			out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, exactly(o))
		}
	}
	switch in.GetUnmatchedPreflights() {
	case networkingpb.CorsPolicy_FORWARD:
		out.ForwardNotMatchingPreflights = wrapperspb.Bool(true)
	case networkingpb.CorsPolicy_IGNORE:
		out.ForwardNotMatchingPreflights = wrapperspb.Bool(false)
	}
	return out
}
