package analyze

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	meshconfigpb "istio.io/api/mesh/v1alpha1"
	telemetrypb "istio.io/api/telemetry/v1alpha1"

	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

func telemetryOf(o *resource.Object) (*telemetrypb.Telemetry, bool) {
	t, ok := o.Spec.(*telemetrypb.Telemetry)
	return t, ok
}

// telemetry checks that the providers that Telemetry objects name exist, and
// that at each level only one object applies.
func (r *run) telemetry() {
	level := map[string]*resource.Object{}
	for _, o := range r.objects {
		t, ok := telemetryOf(o)
		if !ok {
			continue
		}
		for i, tr := range t.Tracing {
			for j, p := range tr.Providers {
				r.provider(o, fmt.Sprintf("spec.tracing[%d].providers[%d].name", i, j), p.GetName())
			}
		}
		for i, l := range t.AccessLogging {
			for j, p := range l.Providers {
				r.provider(o, fmt.Sprintf("spec.accessLogging[%d].providers[%d].name", i, j), p.GetName())
			}
		}
		for i, m := range t.Metrics {
			for j, p := range m.Providers {
				r.provider(o, fmt.Sprintf("spec.metrics[%d].providers[%d].name", i, j), p.GetName())
			}
		}
		if t.TargetRef != nil || len(t.TargetRefs) > 0 {
			continue
		}
		key := o.Namespace + "|" + labelText(t.GetSelector().GetMatchLabels())
		if first := level[key]; first != nil {
			r.add(o, finding.ConflictingTelemetry, "metadata.name", "merge the two",
				"%s (%s) applies to the same workloads; only the older one counts", first.Key, first.Pos("metadata.name"))
		} else {
			level[key] = o
		}
	}
	r.providerServices()
}

func (r *run) provider(o *resource.Object, path, name string) {
	p, ok := r.mesh.Provider(name)
	switch {
	case !ok:
		r.addValue(o, finding.ProviderUnknown, path, "define it in meshConfig.extensionProviders", "provider %q is not defined, so nothing is reported", name)
	case p.Hub:
		r.addValue(o, finding.ProviderUnknown, path, "define it in meshConfig.extensionProviders to send elsewhere",
			"meshConfig.extensionProviders does not define %q: Istio would report nothing; Lateen sends to its own pipeline", name)
	}
}

// providerServices checks the hosts that providers of the mesh configuration
// send to.
func (r *run) providerServices() {
	o := r.mesh.ConfigObject
	if o == nil {
		return
	}
	for i, p := range r.mesh.Config.GetExtensionProviders() {
		field, service := providerService(p)
		if service == "" {
			continue
		}
		ns, host, ok := strings.Cut(service, "/")
		if !ok {
			ns, host = o.Namespace, service
		}
		if _, known := r.serviceFor(r.mesh.ResolveHost(host, ns), ns); known || r.kubernetesHost(host) {
			continue
		}
		path := fmt.Sprintf("%s@extensionProviders[%d].%s.service", resource.MeshConfigPath, i, field)
		r.addValue(o, finding.ProviderServiceAbsent, path, r.hostHint(host, ns), "provider %q sends to %q, which does not exist in the mesh", p.Name, service)
	}
}

func providerService(p *meshconfigpb.MeshConfig_ExtensionProvider) (field, service string) {
	switch {
	case p.GetOpentelemetry() != nil:
		return "opentelemetry", p.GetOpentelemetry().GetService()
	case p.GetZipkin() != nil:
		return "zipkin", p.GetZipkin().GetService()
	case p.GetEnvoyOtelAls() != nil:
		return "envoyOtelAls", p.GetEnvoyOtelAls().GetService()
	case p.GetEnvoyExtAuthzHttp() != nil:
		return "envoyExtAuthzHttp", p.GetEnvoyExtAuthzHttp().GetService()
	case p.GetEnvoyExtAuthzGrpc() != nil:
		return "envoyExtAuthzGrpc", p.GetEnvoyExtAuthzGrpc().GetService()
	}
	return "", ""
}

// kubernetesHost reports whether "name.namespace" or "name.namespace.svc" is a
// Service; the resolver of a pod finds those, Istio's registry does not.
func (r *run) kubernetesHost(host string) bool {
	name, rest, ok := strings.Cut(host, ".")
	if !ok {
		return false
	}
	ns, _, _ := strings.Cut(rest, ".")
	return r.byKey[resource.Key{Kind: resource.KubeService, Namespace: ns, Name: name}] != nil
}

// otlpVariables are the environment variables in which SDKs find a collector.
func otlpVariables() []string {
	return []string{
		"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
		"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
		"OTEL_EXPORTER_JAEGER_ENDPOINT", "OTEL_EXPORTER_ZIPKIN_ENDPOINT",
	}
}

// endpoints checks that the collectors named in containers' environments
// resolve from there.
func (r *run) endpoints() {
	for _, t := range r.templates {
		if t.running() {
			continue
		}
		for _, c := range t.Containers {
			for _, e := range c.Env {
				r.endpoint(t, e)
			}
		}
	}
}

func (r *run) endpoint(t template, e resource.EnvVar) {
	path := e.Path
	known := false
	for _, v := range otlpVariables() {
		known = known || v == e.Name
	}
	if !known || e.Value == "" || strings.Contains(e.Value, "$(") {
		return
	}
	host := endpointHost(e.Value)
	name, missing := r.unresolved(host, t.namespace)
	if !missing {
		return
	}
	others := r.elsewhere(name, t.namespace)
	if len(others) == 0 || strings.Contains(host, ".") {
		r.addValue(t.object, finding.EndpointHost, path, "declare a Service of that name", "%s: host %q does not resolve in namespace %s", e.Name, host, t.namespace)
		return
	}
	f := r.addValue(t.object, finding.EndpointHost, path, fmt.Sprintf("write %s.%s", name, others[0]),
		"%s: host %q does not resolve in namespace %s; Service %s exists in namespace %s", e.Name, host, t.namespace, name, strings.Join(others, ", "))
	if len(others) == 1 {
		f.Fix = hostFix(t.object, path, host, others[0])
	}
}

// endpointHost returns the host of "http://host:4317", "host:4317" or "host".
func endpointHost(value string) string {
	if !strings.Contains(value, "://") {
		value = "x://" + value
	}
	u, err := url.Parse(value)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// unresolved reports whether a host that a pod of the namespace uses names a
// Service that does not exist. Names of the outside world are not judged.
func (r *run) unresolved(host, namespace string) (name string, missing bool) {
	host = strings.TrimSuffix(host, ".")
	if _, err := netip.ParseAddr(host); err == nil || host == "" || host == "localhost" || strings.HasSuffix(host, ".lateen.internal") {
		return "", false
	}
	if _, ok := r.serviceFor(r.mesh.ResolveHost(host, namespace), namespace); ok {
		return "", false
	}
	parts := strings.Split(host, ".")
	switch {
	case len(parts) == 1:
		return host, true
	case r.kubernetesHost(host):
		return "", false
	case len(parts) == 2:
		// "name.namespace", if there is such a namespace; else a public name.
		_, isNamespace := r.mesh.Namespace(parts[1])
		return parts[0], isNamespace
	}
	return parts[0], parts[2] == "svc"
}

// monitors checks ServiceMonitors and PodMonitors.
func (r *run) monitors() {
	for _, o := range r.objects {
		if o.Kind != resource.PodMonitor && o.Kind != resource.ServiceMonitor {
			continue
		}
		raw, ok := o.Spec.(*resource.Raw)
		if !ok {
			continue
		}
		spec, _ := raw.Object["spec"].(map[string]any)
		list := "endpoints"
		if o.Kind == resource.PodMonitor {
			list = "podMetricsEndpoints"
		}
		entries, _ := spec[list].([]any)
		for i, e := range entries {
			m, _ := e.(map[string]any)
			if m["port"] == nil && m["targetPort"] == nil && m["portNumber"] == nil {
				r.add(o, finding.MonitorPort, fmt.Sprintf("spec.%s[%d]", list, i), "add port: http-envoy-prom for proxies, or the name of the application's port",
					"the endpoint names no port, so every declared port of the pods is scraped")
			}
		}
		if _, ok := spec["namespaceSelector"]; !ok && o.Kind == resource.PodMonitor {
			r.add(o, finding.MonitorNamespaces, "spec", "add namespaceSelector: {any: true}",
				"without a namespaceSelector only pods of namespace %s are scraped", o.Namespace)
		}
	}
}
