package mesh

import (
	"cmp"
	"math"
	"strings"

	meshconfigpb "istio.io/api/mesh/v1alpha1"
	telemetrypb "istio.io/api/telemetry/v1alpha1"
)

// Direction is the side of a proxy that telemetry is about.
type Direction uint8

// The directions: Client is outbound (and gateways), Server inbound.
const (
	Client Direction = iota
	Server
)

// Provider is a telemetry provider that a name was resolved to.
type Provider struct {
	Name string
	// Hub says that this is the built-in provider ("opentelemetry", "otel"):
	// what it receives goes to the endpoint of the proxy's bootstrap.
	Hub bool
	// Config is nil for the hub and for built-in names without settings.
	Config *meshconfigpb.MeshConfig_ExtensionProvider
}

// Tracing is the tracing configuration of one direction of a proxy.
type Tracing struct {
	// Disabled reports no spans; the context is still propagated.
	Disabled bool
	// Provider is nil when none is configured: spans go to the proxy's own
	// endpoint. Unresolved is then the name that no provider has, if any.
	Provider   *Provider
	Unresolved string
	// Sampling is the share of new traces in percent, 0…100.
	Sampling float64
	Tags     map[string]*telemetrypb.Tracing_CustomTag
	// UseRequestID lets the request id carry the decision (Istio's default).
	UseRequestID bool
	// IstioTags adds Istio's standard tags.
	IstioTags bool
	Origin    Origin
}

// defaultSampling is Istio's PILOT_TRACE_SAMPLING, in percent.
const defaultSampling = 1.0

// Provider returns the provider of a name: one that the mesh configuration
// declares (names ignore case, as in Istio), else a built-in one.
func (m *Mesh) Provider(name string) (*Provider, bool) {
	for _, p := range m.Config.GetExtensionProviders() {
		if strings.EqualFold(p.GetName(), name) {
			return &Provider{Name: p.GetName(), Config: p}, true
		}
	}
	switch strings.ToLower(name) {
	case "opentelemetry", "otel":
		return &Provider{Name: name, Hub: true}, true
	case "prometheus":
		return &Provider{Name: name, Config: &meshconfigpb.MeshConfig_ExtensionProvider{
			Name: name, Provider: &meshconfigpb.MeshConfig_ExtensionProvider_Prometheus{
				Prometheus: &meshconfigpb.MeshConfig_ExtensionProvider_PrometheusMetricsProvider{},
			},
		}}, true
	case "envoy":
		return &Provider{Name: name, Config: &meshconfigpb.MeshConfig_ExtensionProvider{
			Name: name, Provider: &meshconfigpb.MeshConfig_ExtensionProvider_EnvoyFileAccessLog{
				EnvoyFileAccessLog: &meshconfigpb.MeshConfig_ExtensionProvider_EnvoyFileAccessLogProvider{Path: "/dev/stdout"},
			},
		}}, true
	}
	return nil, false
}

// TelemetriesFor returns the Telemetry objects of a workload from the most
// general to the most specific: root namespace, namespace, workload. At each
// level the oldest counts.
func (m *Mesh) TelemetriesFor(namespace string, labels map[string]string) []*Telemetry {
	var root, ns, workload *Telemetry
	for _, t := range m.telemetry {
		if t.Spec.GetTargetRef() != nil || len(t.Spec.GetTargetRefs()) > 0 {
			continue
		}
		selector := t.Spec.GetSelector().GetMatchLabels()
		switch {
		case len(selector) > 0:
			if t.Namespace == namespace && matches(selector, labels) && workload == nil {
				workload = t
			}
		case t.Namespace == m.RootNamespace:
			root = cmp.Or(root, t)
		case t.Namespace == namespace:
			ns = cmp.Or(ns, t)
		}
	}
	var out []*Telemetry
	for _, t := range []*Telemetry{root, ns, workload} {
		if t != nil {
			out = append(out, t)
		}
	}
	return out
}

// TracingFor merges the tracing settings of a workload and direction. proxy is
// the sampling that the node's own proxy configuration asks for, nil for none.
func (m *Mesh) TracingFor(namespace string, labels map[string]string, dir Direction, proxy *float64) Tracing {
	t := Tracing{Sampling: defaultSampling, UseRequestID: true, IstioTags: true}
	switch base := m.Config.GetDefaultConfig().GetTracing(); {
	case proxy != nil:
		t.Sampling = *proxy
	case base.GetSampling() != 0:
		t.Sampling = base.GetSampling()
		t.Origin = Origin{Object: m.ConfigObject}
	}
	if names := m.Config.GetDefaultProviders().GetTracing(); len(names) > 0 {
		t.setProvider(m, names[0])
	} else {
		t.Provider = m.legacyProvider()
	}
	for _, tel := range m.TelemetriesFor(namespace, labels) {
		for _, s := range tel.Spec.GetTracing() {
			if !modeMatches(s.GetMatch().GetMode(), dir) {
				continue
			}
			t.merge(m, s)
			t.Origin = Origin{Object: tel.Object, Path: "spec.tracing"}
		}
	}
	if math.IsNaN(t.Sampling) {
		t.Sampling = 0
	}
	t.Sampling = min(max(t.Sampling, 0), 100)
	return t
}

// otlpPort is the port of OTLP over gRPC.
const otlpPort = 4317

// legacyProvider stands in for defaultConfig.tracing.openCensusAgent, whose
// protocol no proxy speaks any more: the same host by OTLP if it is a service
// that has the port, else the built-in provider. It is nil when nobody asks.
func (m *Mesh) legacyProvider() *Provider {
	agent := m.Config.GetDefaultConfig().GetTracing().GetOpenCensusAgent()
	if agent == nil {
		return nil
	}
	address := agent.GetAddress()
	for _, scheme := range []string{"dns:///", "dns://", "dns:"} {
		address = strings.TrimPrefix(address, scheme)
	}
	host, _, _ := strings.Cut(address, ":")
	for _, h := range []string{host, host + "." + m.DomainSuffix, host + ".svc." + m.DomainSuffix} {
		for _, s := range m.byHost[h] {
			if _, ok := s.Port(otlpPort); ok {
				return &Provider{Name: "openCensusAgent", Config: &meshconfigpb.MeshConfig_ExtensionProvider{
					Name: "openCensusAgent", Provider: &meshconfigpb.MeshConfig_ExtensionProvider_Opentelemetry{
						Opentelemetry: &meshconfigpb.MeshConfig_ExtensionProvider_OpenTelemetryTracingProvider{Service: h, Port: otlpPort},
					},
				}}
			}
		}
	}
	return &Provider{Name: "openCensusAgent", Hub: true}
}

func (t *Tracing) merge(m *Mesh, s *telemetrypb.Tracing) {
	if p := s.GetProviders(); len(p) > 0 {
		t.setProvider(m, p[0].GetName())
	}
	if s.GetDisableSpanReporting() != nil {
		t.Disabled = s.GetDisableSpanReporting().GetValue()
	}
	if s.GetRandomSamplingPercentage() != nil {
		t.Sampling = s.GetRandomSamplingPercentage().GetValue()
	}
	if s.GetCustomTags() != nil {
		t.Tags = s.GetCustomTags()
	}
	if s.GetUseRequestIdForTraceSampling() != nil {
		t.UseRequestID = s.GetUseRequestIdForTraceSampling().GetValue()
	}
	if s.GetEnableIstioTags() != nil {
		t.IstioTags = s.GetEnableIstioTags().GetValue()
	}
}

func (t *Tracing) setProvider(m *Mesh, name string) {
	t.Provider, t.Unresolved = nil, ""
	if p, ok := m.Provider(name); ok {
		t.Provider = p
	} else {
		t.Unresolved = name
	}
}

func modeMatches(mode telemetrypb.WorkloadMode, dir Direction) bool {
	switch mode {
	case telemetrypb.WorkloadMode_CLIENT:
		return dir == Client
	case telemetrypb.WorkloadMode_SERVER:
		return dir == Server
	}
	return true
}

// AccessLog is one access log of a direction of a proxy.
type AccessLog struct {
	Provider *Provider
	// Filter is a CEL expression, "" for all.
	Filter string
	Origin Origin
}

// AccessLogsFor merges the access logging settings of a workload and direction.
// Without any Telemetry about logging the default providers of the mesh count,
// then its accessLogFile. A list of providers replaces that of a more general
// level; disabling names the providers that it disables.
func (m *Mesh) AccessLogsFor(namespace string, labels map[string]string, dir Direction) []AccessLog {
	configured := false
	var names []string
	filters := map[string]string{}
	var at Origin
	for _, name := range m.Config.GetDefaultProviders().GetAccessLogging() {
		configured = true
		names = append(names, name)
	}
	for _, tel := range m.TelemetriesFor(namespace, labels) {
		for _, s := range tel.Spec.GetAccessLogging() {
			configured = true
			if !modeMatches(s.GetMatch().GetMode(), dir) {
				continue
			}
			if s.GetDisabled().GetValue() {
				for _, p := range s.GetProviders() {
					names = without(names, p.GetName())
				}
				continue
			}
			at = Origin{Object: tel.Object, Path: "spec.accessLogging"}
			if len(s.GetProviders()) > 0 {
				names = nil
				for _, p := range s.GetProviders() {
					names = append(names, p.GetName())
					filters[p.GetName()] = ""
				}
			}
			if e := s.GetFilter().GetExpression(); e != "" {
				for _, n := range names {
					filters[n] = e
				}
			}
		}
	}
	var out []AccessLog
	for _, n := range names {
		if p, ok := m.Provider(n); ok {
			out = append(out, AccessLog{Provider: p, Filter: filters[n], Origin: at})
		}
	}
	if !configured && m.Config.GetAccessLogFile() != "" {
		out = append(out, m.meshAccessLog())
	}
	return out
}

func without(names []string, name string) []string {
	var out []string
	for _, n := range names {
		if n != name {
			out = append(out, n)
		}
	}
	return out
}

// meshAccessLog is the log that accessLogFile of the mesh configuration asks
// for.
func (m *Mesh) meshAccessLog() AccessLog {
	return AccessLog{
		Provider: &Provider{Name: "accessLogFile", Config: &meshconfigpb.MeshConfig_ExtensionProvider{
			Name: "accessLogFile", Provider: &meshconfigpb.MeshConfig_ExtensionProvider_EnvoyFileAccessLog{
				EnvoyFileAccessLog: &meshconfigpb.MeshConfig_ExtensionProvider_EnvoyFileAccessLogProvider{Path: m.Config.GetAccessLogFile()},
			},
		}},
		Origin: Origin{Object: m.ConfigObject},
	}
}

// MetricOverride changes one metric of a direction.
type MetricOverride struct {
	// Metric is the name without the istio_ prefix ("requests_total"), or a
	// custom metric's own name.
	Metric   string
	Disabled bool
	Override *telemetrypb.MetricsOverrides
}

// Metrics is the metrics configuration of one direction of a proxy.
type Metrics struct {
	// Enabled is false when no provider is configured.
	Enabled bool
	// Interval is the reporting interval of TCP metrics; nil means the default.
	Objects   []*telemetrypb.Metrics
	Direction Direction
}

// MetricsFor gathers the metrics settings of a workload and direction, from
// the most general to the most specific.
func (m *Mesh) MetricsFor(namespace string, labels map[string]string, dir Direction) Metrics {
	out := Metrics{Direction: dir, Enabled: len(m.Config.GetDefaultProviders().GetMetrics()) > 0}
	for _, tel := range m.TelemetriesFor(namespace, labels) {
		for _, s := range tel.Spec.GetMetrics() {
			if len(s.GetProviders()) > 0 {
				_, out.Enabled = m.Provider(s.GetProviders()[0].GetName())
			}
			out.Objects = append(out.Objects, s)
		}
	}
	return out
}
