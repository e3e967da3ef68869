package mesh

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshconfigpb "istio.io/api/mesh/v1alpha1"
	networkingpb "istio.io/api/networking/v1alpha3"
	securitypb "istio.io/api/security/v1beta1"
	telemetrypb "istio.io/api/telemetry/v1alpha1"

	"lateen.dev/lateen/internal/resource"
)

// Names of the places where Istio keeps its mesh configuration.
const (
	configMapName        = "istio"
	defaultRootNamespace = "istio-system"
	defaultDomain        = "cluster.local"
	defaultCluster       = "Kubernetes"
)

// Build makes a model of in. With a previous model it reuses what did not
// change and says in Diff what did; without one, Diff is Full. The model is the
// same either way.
func Build(in Input, prev *Mesh) (*Mesh, Diff) {
	m := &Mesh{
		TrustDomain:   cmp.Or(in.TrustDomain, defaultDomain),
		RootNamespace: cmp.Or(in.RootNamespace, defaultRootNamespace),
		ClusterID:     cmp.Or(in.ClusterID, defaultCluster),
		DomainSuffix:  cmp.Or(in.DomainSuffix, defaultDomain),
		Built:         in.Now,
		objects:       make(map[resource.Key]*resource.Object, len(in.Objects)),
		vips:          in.VIPs,
	}
	for _, o := range in.Objects {
		m.objects[o.Key] = o
	}
	byKind := m.sortedByKind()
	m.readConfig()
	m.readNamespaces(byKind)
	m.readPolicies(byKind)
	if m.sameRegistry(prev, byKind) {
		m.services, m.byHost, m.endpoints = prev.services, prev.byHost, prev.endpoints
		m.workloads, m.workloadKey, m.workloadIP, m.nodes = prev.workloads, prev.workloadKey, prev.workloadIP, prev.nodes
	} else {
		m.readNodes(byKind)
		m.readWorkloads(byKind)
		newRegistry(m, byKind).read()
	}
	if m.sameKind(prev, byKind, "VirtualService") {
		m.virtualServices = prev.virtualServices
	} else {
		m.readVirtualServices(byKind)
	}
	m.readDestinationRules(byKind)
	return m, m.diff(prev)
}

// sortedByKind groups the objects by kind in Istio's order of precedence:
// oldest first, then by name, then by namespace.
func (m *Mesh) sortedByKind() map[resource.Kind][]*resource.Object {
	out := map[resource.Kind][]*resource.Object{}
	for _, o := range m.objects {
		out[o.Kind] = append(out[o.Kind], o)
	}
	for _, list := range out {
		slices.SortFunc(list, older)
	}
	return out
}

func older(a, b *resource.Object) int {
	return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.Name, b.Name), strings.Compare(a.Namespace, b.Namespace))
}

func (m *Mesh) readConfig() {
	key := resource.Key{Kind: "ConfigMap", Namespace: m.RootNamespace, Name: configMapName}
	var cfg *meshconfigpb.MeshConfig
	if o, ok := m.objects[key]; ok {
		c, findings := resource.MeshConfig(o)
		m.findings = append(m.findings, findings...)
		if c != nil {
			cfg, m.ConfigObject = proto.CloneOf(c), o
		}
	}
	if cfg == nil {
		cfg = &meshconfigpb.MeshConfig{}
	}
	if cfg.ConnectTimeout == nil {
		cfg.ConnectTimeout = durationpb.New(10 * time.Second)
	}
	if cfg.EnableAutoMtls == nil {
		cfg.EnableAutoMtls = wrapperspb.Bool(true)
	}
	if cfg.OutboundTrafficPolicy == nil {
		cfg.OutboundTrafficPolicy = &meshconfigpb.MeshConfig_OutboundTrafficPolicy{
			Mode: meshconfigpb.MeshConfig_OutboundTrafficPolicy_ALLOW_ANY,
		}
	}
	if cfg.DnsRefreshRate == nil {
		cfg.DnsRefreshRate = durationpb.New(time.Minute)
	}
	if cfg.DefaultProviders == nil {
		// Istio's own installation profile switches metrics on this way; a mesh
		// configuration written by hand usually forgets it.
		cfg.DefaultProviders = &meshconfigpb.MeshConfig_DefaultProviders{Metrics: []string{"prometheus"}}
	}
	m.TrustDomain = cmp.Or(cfg.TrustDomain, m.TrustDomain)
	m.RootNamespace = cmp.Or(cfg.RootNamespace, m.RootNamespace)
	cfg.TrustDomain, cfg.RootNamespace = m.TrustDomain, m.RootNamespace
	m.Config = cfg
}

func (m *Mesh) readNamespaces(byKind map[resource.Kind][]*resource.Object) {
	m.namespaces = map[string]*Namespace{}
	for _, o := range byKind["Namespace"] {
		m.namespaces[o.Name] = &Namespace{Name: o.Name, Labels: o.Labels, Object: o}
	}
	for k := range m.objects {
		if k.Namespace != "" && m.namespaces[k.Namespace] == nil {
			m.namespaces[k.Namespace] = &Namespace{Name: k.Namespace}
		}
	}
}

// readNodes learns the locality of Kubernetes nodes from their well-known
// labels.
func (m *Mesh) readNodes(byKind map[resource.Kind][]*resource.Object) {
	m.nodes = map[string]Locality{}
	for _, o := range byKind["Node"] {
		m.nodes[o.Name] = Locality{
			Region:  o.Labels["topology.kubernetes.io/region"],
			Zone:    o.Labels["topology.kubernetes.io/zone"],
			SubZone: o.Labels["topology.istio.io/subzone"],
		}
	}
}

func (m *Mesh) readPolicies(byKind map[resource.Kind][]*resource.Object) {
	for _, o := range byKind["Gateway"] {
		if spec, ok := o.Spec.(*networkingpb.Gateway); ok {
			m.gateways = append(m.gateways, &Gateway{Name: o.Name, Namespace: o.Namespace, Object: o, Spec: spec})
		}
	}
	m.gatewayByName = make(map[string]*Gateway, len(m.gateways))
	for _, g := range m.gateways {
		m.gatewayByName[g.FullName()] = g
	}
	for _, o := range byKind["Sidecar"] {
		if spec, ok := o.Spec.(*networkingpb.Sidecar); ok {
			m.sidecars = append(m.sidecars, &Sidecar{Name: o.Name, Namespace: o.Namespace, Object: o, Spec: spec})
		}
	}
	for _, o := range byKind["PeerAuthentication"] {
		if spec, ok := o.Spec.(*securitypb.PeerAuthentication); ok {
			m.peerAuth = append(m.peerAuth, &PeerAuthentication{Name: o.Name, Namespace: o.Namespace, Object: o, Spec: spec})
		}
	}
	for _, o := range byKind["AuthorizationPolicy"] {
		if spec, ok := o.Spec.(*securitypb.AuthorizationPolicy); ok {
			m.authorization = append(m.authorization, &AuthorizationPolicy{
				Name: o.Name, Namespace: o.Namespace, Object: o, Spec: spec,
				DryRun: o.Annotations["istio.io/dry-run"] == "true",
			})
		}
	}
	for _, o := range byKind["RequestAuthentication"] {
		if spec, ok := o.Spec.(*securitypb.RequestAuthentication); ok {
			m.requestAuth = append(m.requestAuth, &RequestAuthentication{Name: o.Name, Namespace: o.Namespace, Object: o, Spec: spec})
		}
	}
	for _, o := range byKind["Telemetry"] {
		if spec, ok := o.Spec.(*telemetrypb.Telemetry); ok {
			m.telemetry = append(m.telemetry, &Telemetry{Name: o.Name, Namespace: o.Namespace, Object: o, Spec: spec})
		}
	}
}

// registryKinds are the kinds that services, endpoints and workloads are made
// of. PeerAuthentication decides whether an endpoint accepts mutual TLS.
var registryKinds = [...]resource.Kind{
	"Service", "Pod", "EndpointSlice", "ServiceEntry", "WorkloadEntry", "Node", "PeerAuthentication",
}

func (m *Mesh) sameRegistry(prev *Mesh, byKind map[resource.Kind][]*resource.Object) bool {
	if !m.sameFrame(prev) || !maps.EqualFunc(m.vips, prev.vips, slices.Equal[[]netip.Addr]) {
		return false
	}
	for _, k := range registryKinds {
		if !m.sameKind(prev, byKind, k) {
			return false
		}
	}
	return true
}

// sameFrame reports whether everything that all parts depend on is the same.
func (m *Mesh) sameFrame(prev *Mesh) bool {
	return prev != nil && m.TrustDomain == prev.TrustDomain && m.RootNamespace == prev.RootNamespace &&
		m.ClusterID == prev.ClusterID && m.DomainSuffix == prev.DomainSuffix && proto.Equal(m.Config, prev.Config)
}

// sameKind reports whether the objects of a kind are the very same values as in
// prev; objects never change after decoding.
func (m *Mesh) sameKind(prev *Mesh, byKind map[resource.Kind][]*resource.Object, k resource.Kind) bool {
	if !m.sameFrame(prev) {
		return false
	}
	n := 0
	for key, o := range prev.objects {
		if key.Kind != k {
			continue
		}
		if m.objects[key] != o {
			return false
		}
		n++
	}
	return n == len(byKind[k])
}
