package validate

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

// visitFields calls f for every field of m that is set, with its path, outer
// fields first.
func visitFields(m protoreflect.Message, path string, f func(path string, fd protoreflect.FieldDescriptor, v protoreflect.Value)) {
	var set []protoreflect.FieldDescriptor
	m.Range(func(fd protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		set = append(set, fd)
		return true
	})
	slices.SortFunc(set, func(a, b protoreflect.FieldDescriptor) int { return a.Index() - b.Index() })
	for _, fd := range set {
		v := m.Get(fd)
		p := resource.Field(path, fd.JSONName())
		f(p, fd, v)
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() != nil {
				visitMap(v.Map(), p, f)
			}
		case fd.IsList() && fd.Message() != nil:
			for i := range v.List().Len() {
				visitFields(v.List().Get(i).Message(), resource.Item(p, i), f)
			}
		case !fd.IsList() && fd.Message() != nil:
			visitFields(v.Message(), p, f)
		}
	}
}

func visitMap(m protoreflect.Map, path string, f func(string, protoreflect.FieldDescriptor, protoreflect.Value)) {
	values := map[string]protoreflect.Message{}
	m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		values[k.String()] = v.Message()
		return true
	})
	for _, k := range sorted(values) {
		visitFields(values[k], resource.Field(path, k), f)
	}
}

// fieldName names a field by its message and itself, without the package.
func fieldName(fd protoreflect.FieldDescriptor) string {
	parts := strings.Split(string(fd.FullName()), ".")
	for i, p := range parts {
		if p != "" && p[0] >= 'A' && p[0] <= 'Z' {
			return strings.Join(parts[i:], ".")
		}
	}
	return string(fd.Name())
}

// deprecation is what became of a field.
type deprecation struct {
	code, message, hint string
}

// deprecations are the fields that old manifests still have. What Istio still
// applies is an Info, what it leaves out in silence a Warning.
var deprecations = sync.OnceValue(func() map[string]deprecation {
	applied := func(instead string) deprecation {
		return deprecation{finding.DeprecatedField, "%s is deprecated; it still applies", "write " + instead}
	}
	ignored := func(instead string) deprecation {
		return deprecation{finding.IgnoredField, "%s is read and has no effect, as in Istio", instead}
	}
	tracer := func() deprecation {
		return deprecation{finding.RetiredTracer, "the tracer %s was removed from Istio and Envoy; it has no effect there", "use an extensionProvider of kind opentelemetry"}
	}
	return map[string]deprecation{
		"OutlierDetection.consecutive_errors": {
			finding.ConsecutiveErrors, "%s is deprecated and has no effect in current Istio: no host is ejected by it",
			"write consecutiveGatewayErrors (502, 503, 504) or consecutive5xxErrors",
		},
		"HTTPRoute.mirror_percent":                                applied("mirrorPercentage.value"),
		"CorsPolicy.allow_origin":                                 applied("allowOrigins"),
		"HTTPFaultInjection.Delay.percent":                        applied("percentage.value"),
		"HTTPFaultInjection.Delay.exponential_delay":              ignored("use fixedDelay"),
		"HTTPFaultInjection.Abort.http2_error":                    ignored("use httpStatus or grpcStatus"),
		"L4MatchAttributes.source_subnet":                         ignored("use sourceLabels or sourceNamespace"),
		"Server.default_endpoint":                                 ignored("remove it"),
		"Port.target_port":                                        ignored("remove it"),
		"SidecarPort.target_port":                                 ignored("remove it"),
		"MeshConfig.certificates":                                 ignored("remove it"),
		"MeshConfig.verify_certificate_at_client":                 ignored("servers are verified by default"),
		"Tracing.lightstep":                                       tracer(),
		"Tracing.stackdriver":                                     tracer(),
		"MeshConfig.ExtensionProvider.lightstep":                  tracer(),
		"MeshConfig.ExtensionProvider.stackdriver":                tracer(),
		"MeshConfig.ExtensionProvider.opencensus":                 tracer(),
		"ProxyConfig.zipkin_address":                              applied("an extensionProvider of kind zipkin"),
		"LoadBalancerSettings.ConsistentHashLB.minimum_ring_size": applied("ringHash.minimumRingSize"),
		"Tracing.open_census_agent": {
			finding.OpenCensusAgent, "%s was removed from Istio (1.23) and Envoy; it has no effect there, and Lateen sends OTLP instead",
			"define an extensionProvider of kind opentelemetry with the same host and port 4317",
		},
	}
})

func (c *checker) deprecated(m proto.Message) { c.deprecatedAt(m, "spec") }

func (c *checker) deprecatedAt(m proto.Message, base string) {
	table := deprecations()
	visitFields(m.ProtoReflect(), base, func(path string, fd protoreflect.FieldDescriptor, v protoreflect.Value) {
		d, ok := table[fieldName(fd)]
		switch {
		case ok:
			c.add(d.code, path, d.hint, "%s", fmt.Sprintf(d.message, lastName(path)))
		case fd.Kind() == protoreflect.EnumKind && fd.Enum().FullName() == "istio.networking.v1alpha3.LoadBalancerSettings.SimpleLB" && !fd.IsList() &&
			fd.Enum().Values().ByNumber(v.Enum()) != nil && fd.Enum().Values().ByNumber(v.Enum()).Name() == "LEAST_CONN":
			c.addValue(finding.DeprecatedField, path, "write LEAST_REQUEST", "LEAST_CONN is deprecated; it means LEAST_REQUEST")
		}
	})
}

func lastName(path string) string {
	if i := strings.LastIndexAny(path, ".@"); i >= 0 {
		return path[i+1:]
	}
	return path
}

// kindsNotApplied are the kinds that are decoded and validated without having
// an effect yet.
var kindsNotApplied = sync.OnceValue(func() map[resource.Kind]string {
	all := map[resource.Kind]string{
		resource.EnvoyFilter:           "",
		resource.WasmPlugin:            "",
		resource.TrafficExtension:      "",
		resource.RequestAuthentication: "tokens are not verified; a policy that asks for request principals denies",
		resource.WorkloadGroup:         "",
		resource.ProxyConfig:           "",
		resource.StatefulSet:           "its pods are not run",
		resource.DaemonSet:             "its pods are not run",
		resource.Job:                   "its pods are not run",
		resource.ServiceMonitor:        "nothing is scraped by it",
		resource.PodMonitor:            "nothing is scraped by it",
	}
	for _, k := range resource.Kinds() {
		if _, ok := all[k.Kind]; k.Raw && !ok {
			all[k.Kind] = ""
		}
	}
	return all
})

// fieldsNotApplied are the fields of applied kinds that have no effect yet, by
// message and field. Those of deprecations are not repeated.
var fieldsNotApplied = sync.OnceValue(func() map[string]bool {
	names := []string{
		"HTTPMatchRequest.stat_prefix", "HTTPRetry.retry_remote_localities",
		"TrafficPolicy.tunnel", "TrafficPolicy.proxy_protocol",
		"LoadBalancerSettings.zone_aware_lb_setting", "LoadBalancerSettings.warmup", "LoadBalancerSettings.warmup_duration_secs",
		"LocalityLoadBalancerSetting.failover_priority", "LocalityLoadBalancerSetting.distribute", "TrafficPolicy.RetryBudget.budget_interval",
		"Tracing.disable_context_propagation",
		"OutlierDetection.outlier_detection_http_error_codes",
		"Condition.key", // only those of request attributes; see notApplied
		"Telemetry.metrics", "AccessLogging.filter",
		"Source.request_principals", "Source.not_request_principals", // no token is verified yet
		"Sidecar.ingress",
		"IstioEgressListener.capture_mode",
		"Sidecar.inbound_connection_pool", "OutboundTrafficPolicy.egress_proxy",
		"ServerTLSSettings.verify_certificate_spki", "ServerTLSSettings.verify_certificate_hash", "ServerTLSSettings.ca_crl",
		"ServerTLSSettings.cipher_suites", "ClientTLSSettings.ca_crl",
		"PolicyTargetReference.kind",
	}
	out := map[string]bool{}
	for _, n := range names {
		out[n] = true
	}
	return out
})

// notApplied reports what is decoded and has no effect yet, so that nothing is
// left out in silence.
func (c *checker) notApplied() {
	if why, ok := kindsNotApplied()[c.o.Kind]; ok {
		info, _ := resource.LookupKind(c.o.Kind)
		text := fmt.Sprintf("%s is read and not applied by this version of Lateen", info.Name)
		if why != "" {
			text += ": " + why
		}
		c.add(finding.NotApplied, "kind", "", "%s", text)
		return
	}
	m, ok := c.o.Spec.(proto.Message)
	if !ok {
		return
	}
	table := fieldsNotApplied()
	under := "" // what stands under a reported field is not reported again
	visitFields(m.ProtoReflect(), "spec", func(path string, fd protoreflect.FieldDescriptor, v protoreflect.Value) {
		if !table[fieldName(fd)] || under != "" && strings.HasPrefix(path, under) {
			return
		}
		if fieldName(fd) == "Condition.key" && !strings.HasPrefix(v.String(), "request.auth.") && !strings.HasPrefix(v.String(), "experimental.") {
			return
		}
		under = path
		c.add(finding.FieldNotApplied, path, "", "%s is read and not applied by this version of Lateen", lastName(path))
	})
}
