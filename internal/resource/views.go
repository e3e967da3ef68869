package resource

import "net/netip"

// The view types below are what the mesh model needs to know of Kubernetes
// objects, so that it need not know Kubernetes. Object has one accessor for
// each (kubeviews.go).

// Service is the view of a Kubernetes Service.
type Service struct {
	// ClusterIPs is empty for headless services.
	ClusterIPs      []netip.Addr
	Headless        bool
	Type            string // ClusterIP, NodePort, LoadBalancer, ExternalName
	ExternalName    string
	Ports           []ServicePort
	Selector        map[string]string
	PublishNotReady bool
}

// ServicePort is one port of a Service.
type ServicePort struct {
	Name   string
	Number uint16
	// TargetNumber is 0 when TargetName names a container port.
	TargetNumber uint16
	TargetName   string
	Protocol     string // TCP, UDP
	AppProtocol  string
}

// Pod is the view of a running Pod.
type Pod struct {
	IPs            []netip.Addr
	ServiceAccount string
	NodeName       string
	Ports          []ContainerPort
	Ready          bool
	Terminating    bool
	HostNetwork    bool
	// OwnerKind and OwnerName name the workload: the Deployment rather than
	// its ReplicaSet.
	OwnerKind, OwnerName string
	// Sidecar says that a proxy runs in the pod, so that mTLS will be accepted.
	Sidecar bool
}

// ContainerPort is one declared port of a container.
type ContainerPort struct {
	Name     string
	Number   uint16
	Protocol string
}

// EndpointSlice is the view of a Kubernetes EndpointSlice.
type EndpointSlice struct {
	Service   string // name of the Service in the same namespace
	Ports     []ContainerPort
	Endpoints []Endpoint
}

// Endpoint is one entry of an EndpointSlice.
type Endpoint struct {
	Addresses          []netip.Addr
	Ready, Terminating bool
	Pod                string // name of the Pod, "" if none
	NodeName, Zone     string
}

// ConfigMap is the view of a ConfigMap; Secret's values are bytes.
type ConfigMap struct {
	Data map[string]string
}

// Secret is the view of a Secret. It prints without its values.
type Secret struct {
	Type string
	Data map[string][]byte
}

// String hides the values.
func (Secret) String() string { return "[redacted]" }

// GoString hides the values.
func (Secret) GoString() string { return "[redacted]" }
