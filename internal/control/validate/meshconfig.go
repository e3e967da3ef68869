package validate

import (
	"strings"
	"sync"

	"google.golang.org/protobuf/reflect/protoreflect"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

func (c *checker) meshConfig(m *meshconfig.MeshConfig) {
	const base = resource.MeshConfigPath + "@"
	c.deprecatedAt(m, base)
	c.meshConfigNotApplied(m, base)
	names := map[string]bool{}
	for i, p := range m.ExtensionProviders {
		path := at(base+"extensionProviders", "[%d]", i)
		if p.Name == "" {
			c.add(finding.RequiredField, path, "", "%s has no name", path)
		} else if names[p.Name] {
			c.addValue(finding.InvalidReference, path+".name", "", "provider %q is defined twice; the first holds", p.Name)
		}
		names[p.Name] = true
		if o := p.GetOpentelemetry(); o != nil && (o.Service == "" || o.Port < 1 || o.Port > 65535) {
			c.add(finding.RequiredField, path+".opentelemetry", "", "provider %q needs service and port", p.Name)
		}
	}
	if s := m.GetDefaultConfig().GetTracing().GetSampling(); s < 0 || s > 100 {
		c.addValue(finding.Sampling, base+"defaultConfig.tracing.sampling", "", "sampling %v is not from 0 to 100; it counts as 100", s)
	}
}

// meshConfigApplied are the fields of MeshConfig, of its defaultConfig, tracing
// and extension providers that have an effect. It lists what works, unlike the
// table of the kinds, since most of MeshConfig is about istiod and Envoy.
var meshConfigApplied = sync.OnceValue(func() map[string]bool {
	out := map[string]bool{}
	for message, fields := range map[string]string{
		"MeshConfig": `access_log_encoding access_log_file access_log_format connect_timeout default_config
			default_destination_rule_export_to default_http_retry_policy default_providers default_service_export_to
			default_virtual_service_export_to dns_refresh_rate enable_auto_mtls enable_tracing extension_providers
			h2_upgrade_policy locality_lb_setting mesh_mTLS outbound_traffic_policy path_normalization
			protocol_detection_timeout tcp_keepalive trust_domain trust_domain_aliases`,
		"ProxyConfig":                  "gateway_topology tracing",
		"Tracing":                      "custom_tags enable_istio_tags open_census_agent sampling",
		"MeshConfig.ExtensionProvider": "name opentelemetry envoy_file_access_log envoy_otel_als prometheus",
	} {
		for f := range strings.FieldsSeq(fields) {
			out[message+"."+f] = true
		}
	}
	return out
})

// meshConfigNotApplied reports what of a MeshConfig is read and has no effect.
func (c *checker) meshConfigNotApplied(m *meshconfig.MeshConfig, base string) {
	applied, told, table := meshConfigApplied(), deprecations(), fieldsNotApplied()
	listed := map[protoreflect.FullName]bool{
		"istio.mesh.v1alpha1.MeshConfig": true, "istio.mesh.v1alpha1.ProxyConfig": true, "istio.mesh.v1alpha1.Tracing": true,
		"istio.mesh.v1alpha1.MeshConfig.ExtensionProvider": true,
	}
	under := ""
	visitFields(m.ProtoReflect(), base, func(path string, fd protoreflect.FieldDescriptor, v protoreflect.Value) {
		name := fieldName(fd)
		if _, ok := told[name]; ok || under != "" && strings.HasPrefix(path, under) {
			return
		}
		if !table[name] && (applied[name] || !listed[fd.ContainingMessage().FullName()]) {
			return
		}
		if name == "MeshConfig.root_namespace" && v.String() == rootNamespace {
			return
		}
		under = path
		c.add(finding.FieldNotApplied, path, "", "%s is read and not applied by this version of Lateen", lastName(path))
	})
}

// rootNamespace is the one that Lateen always has.
const rootNamespace = "istio-system"
