package resource

import (
	"reflect"
	"strings"
	"sync"

	networkingv1 "istio.io/api/networking/v1"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
	networkingv1beta1 "istio.io/api/networking/v1beta1"

	extensionsv1alpha1 "istio.io/api/extensions/v1alpha1"
	securityv1 "istio.io/api/security/v1"
	telemetryv1 "istio.io/api/telemetry/v1"

	"google.golang.org/protobuf/proto"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// The kinds that Lateen acts on. Gateway is Istio's; the Gateway API's kind of
// that name is KubernetesGateway.
const (
	VirtualService        Kind = "VirtualService"
	DestinationRule       Kind = "DestinationRule"
	Gateway               Kind = "Gateway"
	ServiceEntry          Kind = "ServiceEntry"
	Sidecar               Kind = "Sidecar"
	WorkloadEntry         Kind = "WorkloadEntry"
	WorkloadGroup         Kind = "WorkloadGroup"
	ProxyConfig           Kind = "ProxyConfig"
	EnvoyFilter           Kind = "EnvoyFilter"
	AuthorizationPolicy   Kind = "AuthorizationPolicy"
	PeerAuthentication    Kind = "PeerAuthentication"
	RequestAuthentication Kind = "RequestAuthentication"
	Telemetry             Kind = "Telemetry"
	WasmPlugin            Kind = "WasmPlugin"
	TrafficExtension      Kind = "TrafficExtension"

	Namespace      Kind = "Namespace"
	ServiceAccount Kind = "ServiceAccount"
	KubeService    Kind = "Service"
	KubePod        Kind = "Pod"
	Deployment     Kind = "Deployment"
	StatefulSet    Kind = "StatefulSet"
	DaemonSet      Kind = "DaemonSet"
	Job            Kind = "Job"
	KubeConfigMap  Kind = "ConfigMap"
	KubeSecret     Kind = "Secret"
	KubeSlice      Kind = "EndpointSlice"
	Node           Kind = "Node"

	ServiceMonitor Kind = "ServiceMonitor"
	PodMonitor     Kind = "PodMonitor"
	LocalClusterKd Kind = "LocalCluster"

	KubernetesGateway Kind = "KubernetesGateway"
)

// KindInfo is one entry of the registry of kinds.
type KindInfo struct {
	Kind Kind
	// Name is the kind as manifests spell it.
	Name  string
	Group string
	// Versions are those served, the preferred one first.
	Versions []string
	// ClusterScoped objects have no namespace.
	ClusterScoped bool
	// Raw kinds are recognised and kept as *Raw, without a schema.
	Raw bool

	message func() proto.Message // Istio kinds
	object  reflect.Type         // Kubernetes kinds and our own
}

// Istio reports whether the kind is one of Istio's.
func (k KindInfo) Istio() bool { return k.message != nil }

// Kinds returns the registry in the order the documentation lists it. It must
// not be changed.
func Kinds() []KindInfo { return allKinds() }

// allKinds is made once, since every object is looked up in it several times.
var allKinds = sync.OnceValue(func() []KindInfo {
	var all []KindInfo
	all = append(all, istioKinds()...)
	all = append(all, kubernetesKinds()...)
	return append(all, otherKinds()...)
})

func istioKinds() []KindInfo {
	three := []string{"v1", "v1beta1", "v1alpha3"}
	two := []string{"v1", "v1beta1"}
	const networking, security, extensions = "networking.istio.io", "security.istio.io", "extensions.istio.io"
	istio := func(k Kind, group string, versions []string, m func() proto.Message) KindInfo {
		return KindInfo{Kind: k, Name: string(k), Group: group, Versions: versions, message: m}
	}
	return []KindInfo{
		istio(VirtualService, networking, three, func() proto.Message { return &networkingv1.VirtualService{} }),
		istio(DestinationRule, networking, three, func() proto.Message { return &networkingv1.DestinationRule{} }),
		istio(Gateway, networking, three, func() proto.Message { return &networkingv1.Gateway{} }),
		istio(ServiceEntry, networking, three, func() proto.Message { return &networkingv1.ServiceEntry{} }),
		istio(Sidecar, networking, three, func() proto.Message { return &networkingv1.Sidecar{} }),
		istio(WorkloadEntry, networking, three, func() proto.Message { return &networkingv1.WorkloadEntry{} }),
		istio(WorkloadGroup, networking, three, func() proto.Message { return &networkingv1.WorkloadGroup{} }),
		istio(ProxyConfig, networking, []string{"v1beta1"}, func() proto.Message { return &networkingv1beta1.ProxyConfig{} }),
		istio(EnvoyFilter, networking, []string{"v1alpha3"}, func() proto.Message { return &networkingv1alpha3.EnvoyFilter{} }),
		istio(AuthorizationPolicy, security, two, func() proto.Message { return &securityv1.AuthorizationPolicy{} }),
		istio(PeerAuthentication, security, two, func() proto.Message { return &securityv1.PeerAuthentication{} }),
		istio(RequestAuthentication, security, two, func() proto.Message { return &securityv1.RequestAuthentication{} }),
		istio(Telemetry, "telemetry.istio.io", []string{"v1", "v1alpha1"}, func() proto.Message { return &telemetryv1.Telemetry{} }),
		istio(WasmPlugin, extensions, []string{"v1alpha1"}, func() proto.Message { return &extensionsv1alpha1.WasmPlugin{} }),
		istio(TrafficExtension, extensions, []string{"v1alpha1"}, func() proto.Message { return &extensionsv1alpha1.TrafficExtension{} }),
	}
}

func kubernetesKinds() []KindInfo {
	v1 := []string{"v1"}
	kube := func(k Kind, group string, t reflect.Type) KindInfo {
		return KindInfo{Kind: k, Name: string(k), Group: group, Versions: v1, object: t}
	}
	ns, node := kube(Namespace, "", reflect.TypeFor[corev1.Namespace]()), kube(Node, "", reflect.TypeFor[corev1.Node]())
	ns.ClusterScoped, node.ClusterScoped = true, true
	return []KindInfo{
		ns,
		kube(ServiceAccount, "", reflect.TypeFor[corev1.ServiceAccount]()),
		kube(KubeService, "", reflect.TypeFor[corev1.Service]()),
		kube(KubePod, "", reflect.TypeFor[corev1.Pod]()),
		kube(Deployment, "apps", reflect.TypeFor[appsv1.Deployment]()),
		kube(StatefulSet, "apps", reflect.TypeFor[appsv1.StatefulSet]()),
		kube(DaemonSet, "apps", reflect.TypeFor[appsv1.DaemonSet]()),
		kube(Job, "batch", reflect.TypeFor[batchv1.Job]()),
		kube(KubeConfigMap, "", reflect.TypeFor[corev1.ConfigMap]()),
		kube(KubeSecret, "", reflect.TypeFor[corev1.Secret]()),
		kube(KubeSlice, "discovery.k8s.io", reflect.TypeFor[discoveryv1.EndpointSlice]()),
		node,
	}
}

// otherKinds are our own and those that are recognised without being applied.
func otherKinds() []KindInfo {
	kinds := []KindInfo{
		{Kind: LocalClusterKd, Name: "LocalCluster", Group: "lateen.dev", Versions: []string{"v1alpha1"}, object: reflect.TypeFor[LocalCluster]()},
	}
	raw := func(group, versions, scope string, names ...string) {
		for _, n := range names {
			kinds = append(kinds, KindInfo{
				Kind: Kind(n), Name: n, Group: group, Versions: strings.Fields(versions),
				ClusterScoped: scope == "cluster", Raw: true,
			})
		}
	}
	raw("monitoring.coreos.com", "v1", "", "ServiceMonitor", "PodMonitor")
	raw("monitoring.coreos.com", "v1", "", "PrometheusRule", "Prometheus", "Alertmanager")
	const gatewayAPI = "gateway.networking.k8s.io"
	kinds = append(kinds, KindInfo{
		Kind: KubernetesGateway, Name: "Gateway", Group: gatewayAPI, Versions: []string{"v1", "v1beta1"}, Raw: true,
	})
	raw(gatewayAPI, "v1 v1beta1", "cluster", "GatewayClass")
	raw(gatewayAPI, "v1 v1beta1 v1alpha2 v1alpha3", "", "HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute", "UDPRoute", "ReferenceGrant", "BackendTLSPolicy", "ListenerSet")
	raw("apps", "v1", "", "ReplicaSet")
	raw("batch", "v1", "", "CronJob")
	raw("", "v1", "", "Endpoints", "Event", "LimitRange", "PersistentVolumeClaim", "ResourceQuota", "ReplicationController")
	raw("", "v1", "cluster", "PersistentVolume")
	raw("autoscaling", "v2 v1", "", "HorizontalPodAutoscaler")
	raw("policy", "v1", "", "PodDisruptionBudget")
	raw("networking.k8s.io", "v1", "", "Ingress", "NetworkPolicy")
	raw("networking.k8s.io", "v1", "cluster", "IngressClass")
	raw("rbac.authorization.k8s.io", "v1", "", "Role", "RoleBinding")
	raw("rbac.authorization.k8s.io", "v1", "cluster", "ClusterRole", "ClusterRoleBinding")
	raw("storage.k8s.io", "v1", "cluster", "StorageClass")
	raw("scheduling.k8s.io", "v1", "cluster", "PriorityClass")
	raw("coordination.k8s.io", "v1", "", "Lease")
	raw("apiextensions.k8s.io", "v1", "cluster", "CustomResourceDefinition")
	raw("admissionregistration.k8s.io", "v1", "cluster", "ValidatingWebhookConfiguration", "MutatingWebhookConfiguration")
	return kinds
}

// kindByName finds the entry for a manifest's group and kind.
func kindByName(group, name string) (KindInfo, bool) {
	for _, k := range Kinds() {
		if k.Group == group && k.Name == name {
			return k, true
		}
	}
	return KindInfo{}, false
}

// LookupKind finds the registry entry of a kind.
func LookupKind(kind Kind) (KindInfo, bool) {
	for _, k := range Kinds() {
		if k.Kind == kind {
			return k, true
		}
	}
	return KindInfo{}, false
}

// retired explains kinds that no current Istio reads; "" for others.
func retired(group, name string) string {
	switch group {
	case "rbac.istio.io":
		return "write an AuthorizationPolicy (security.istio.io/v1) instead"
	case "authentication.istio.io":
		return "write a PeerAuthentication or RequestAuthentication (security.istio.io/v1) instead"
	case "config.istio.io":
		return "Mixer is gone: write a Telemetry (telemetry.istio.io/v1) or an AuthorizationPolicy instead"
	case "install.istio.io":
		return "IstioOperator describes an installation; Lateen reads the ConfigMap istio instead"
	}
	if group == "networking.istio.io" && name == "RouteRule" {
		return "write a VirtualService instead"
	}
	return ""
}

// Message returns an empty spec message of one of Istio's kinds; false for
// other kinds.
func (k KindInfo) Message() (proto.Message, bool) {
	if k.message == nil {
		return nil, false
	}
	return k.message(), true
}
