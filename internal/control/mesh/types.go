package mesh

import (
	"net/netip"
	"time"

	networkingpb "istio.io/api/networking/v1alpha3"
	securitypb "istio.io/api/security/v1beta1"
	telemetrypb "istio.io/api/telemetry/v1alpha1"

	"lateen.dev/lateen/internal/resource"
)

// Registry tells which kind of object declared a service.
type Registry string

// The registries, in Istio's words.
const (
	Kubernetes Registry = "Kubernetes"
	External   Registry = "External"
)

// Resolution tells how a proxy finds the endpoints of a service.
type Resolution uint8

// The resolutions. Passthrough goes to the original destination; ClientSideLB
// balances over known endpoints; the DNS kinds resolve names.
const (
	ClientSideLB Resolution = iota
	Passthrough
	DNS
	DNSRoundRobin
	DynamicDNS
)

// Service is one host that proxies can call, declared by a Kubernetes Service
// or by a ServiceEntry (one Service for each of its hosts).
type Service struct {
	// Host is the fully qualified name, or a wildcard such as "*.example.com".
	Host            string
	Name, Namespace string
	Registry        Registry
	Object          *resource.Object
	Resolution      Resolution
	// MeshExternal services are never called with mesh identities.
	MeshExternal bool
	Headless     bool
	// VIPs are the virtual addresses, IPv4 first; CIDRs the address ranges of a
	// ServiceEntry. AutoVIP says that VIPs were allocated by the mesh.
	VIPs    []netip.Addr
	CIDRs   []netip.Prefix
	AutoVIP bool
	Ports   []Port
	// Aliases are further hosts that lead here (ExternalName services).
	Aliases []string
	// Selector chooses workloads of the namespace; empty for none.
	Selector        map[string]string
	SubjectAltNames []string
	ExportTo        Visibility
	Created         time.Time
}

// Port is one port of a Service.
type Port struct {
	Name   string
	Number uint16
	// Target is the port of the workload; 0 when TargetName names a container
	// port, which may differ from pod to pod.
	Target     uint16
	TargetName string
	Protocol   Protocol
	// Declared is false where the protocol must be found out from the bytes.
	Declared bool
}

// Port returns the port with the given number.
func (s *Service) Port(number uint16) (Port, bool) {
	for _, p := range s.Ports {
		if p.Number == number {
			return p, true
		}
	}
	return Port{}, false
}

// Endpoint is one address behind a port of a service.
type Endpoint struct {
	// Address is an IP address, a DNS name, or a path of the form unix:///x.
	Address string
	// Port is the port of the endpoint; ServicePort the port of the service.
	Port        uint16
	ServicePort uint16
	Labels      map[string]string
	// Pod is the pod behind the address, "" if none is known.
	Pod string
	// Name is the workload (the Deployment of the pod, else the pod or workload
	// entry itself); with Namespace, CanonicalService and CanonicalRevision it
	// describes the endpoint to telemetry.
	Name, Namespace                     string
	CanonicalService, CanonicalRevision string
	ServiceAccount                      string
	Locality                            Locality
	Network                             string
	Weight                              uint32
	// MTLS says that the endpoint accepts mutual TLS on this port: it has a
	// proxy and no PeerAuthentication disables it.
	MTLS bool
}

// Workload is one pod.
type Workload struct {
	Name, Namespace      string
	Labels               map[string]string
	Annotations          map[string]string
	ServiceAccount       string
	IPs                  []netip.Addr
	Ports                []resource.ContainerPort
	NodeName             string
	Locality             Locality
	OwnerKind, OwnerName string
	Sidecar              bool
	Ready, Terminating   bool
	Object               *resource.Object
}

// Visibility is a decoded exportTo.
type Visibility struct {
	all, own   bool
	namespaces map[string]bool
}

// VirtualService holds routing rules with hosts, gateways and destinations
// fully resolved and delegates merged in.
type VirtualService struct {
	Name, Namespace string
	Object          *resource.Object
	Hosts           []string
	// Gateways are "mesh" or "namespace/name".
	Gateways []string
	HTTP     []HTTPRoute
	TLS      []TLSRoute
	TCP      []TCPRoute
	ExportTo Visibility
	// Delegate says that this object only provides routes to others.
	Delegate bool
}

// HTTPRoute is one entry of spec.http.
type HTTPRoute struct {
	Route *networkingpb.HTTPRoute
	// Origin is the entry itself, in the delegate's object if it came from one.
	Origin Origin
}

// TLSRoute is one entry of spec.tls.
type TLSRoute struct {
	Route  *networkingpb.TLSRoute
	Origin Origin
}

// TCPRoute is one entry of spec.tcp.
type TCPRoute struct {
	Route  *networkingpb.TCPRoute
	Origin Origin
}

// DestinationRule is the policy of a host. Several objects of one namespace for
// one host are merged: subsets are united, the oldest object's policy wins.
type DestinationRule struct {
	// Name and Namespace are those of the object that wins.
	Name, Namespace string
	Object          *resource.Object
	Host            string
	Policy          *networkingpb.TrafficPolicy
	Subsets         []Subset
	// Selector limits the rule to client workloads, nil for all.
	Selector map[string]string
	ExportTo Visibility
	// Objects are all objects merged into this rule, the winner first.
	Objects []*resource.Object
}

// Subset is one subset of a DestinationRule.
type Subset struct {
	Subset *networkingpb.Subset
	Origin Origin
}

// Subset returns the named subset.
func (d *DestinationRule) Subset(name string) (Subset, bool) {
	for _, s := range d.Subsets {
		if s.Subset.GetName() == name {
			return s, true
		}
	}
	return Subset{}, false
}

// Gateway configures gateway proxies that its selector chooses.
type Gateway struct {
	Name, Namespace string
	Object          *resource.Object
	Spec            *networkingpb.Gateway
}

// FullName returns "namespace/name".
func (g *Gateway) FullName() string { return g.Namespace + "/" + g.Name }

// Sidecar limits what proxies see.
type Sidecar struct {
	Name, Namespace string
	Object          *resource.Object
	Spec            *networkingpb.Sidecar
}

// PeerAuthentication sets which connections workloads accept.
type PeerAuthentication struct {
	Name, Namespace string
	Object          *resource.Object
	Spec            *securitypb.PeerAuthentication
}

// AuthorizationPolicy is one access policy.
type AuthorizationPolicy struct {
	Name, Namespace string
	Object          *resource.Object
	Spec            *securitypb.AuthorizationPolicy
	// DryRun policies (annotation istio.io/dry-run) are evaluated and reported
	// but never change an outcome.
	DryRun bool
}

// RequestAuthentication says which tokens requests may carry.
type RequestAuthentication struct {
	Name, Namespace string
	Object          *resource.Object
	Spec            *securitypb.RequestAuthentication
}

// Telemetry is one Telemetry object.
type Telemetry struct {
	Name, Namespace string
	Object          *resource.Object
	Spec            *telemetrypb.Telemetry
}
