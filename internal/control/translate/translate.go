// Package translate turns the mesh model into the xDS resources of one proxy:
// clusters, endpoints, listeners, routes, gateway secrets, the name table and
// the table of origins. It is the last pure step of the control plane: given the
// same model and node it returns the same resources, byte for byte, and it
// touches no socket, file or clock.
//
// Names are Istio's (outbound|8080|v1|host, 0.0.0.0_8080, http.8080, …), as are
// filter order and defaults. What a node is sent depends on the capabilities it
// announces, never on who made it.
package translate

import (
	"net/netip"

	"google.golang.org/protobuf/proto"

	"lateen.dev/lateen/internal/control/mesh"
)

// Node is the proxy that resources are made for, as its xDS node describes it.
// Identity (Namespace, ServiceAccount) must have been checked against the
// proxy's certificate before.
type Node struct {
	ID string
	// Role is "sidecar" or "router".
	Role string
	// IPs are the addresses of the workload, IPv4 first.
	IPs            []netip.Addr
	Namespace      string
	ServiceAccount string
	PodName        string
	WorkloadName   string
	// ServiceCluster is node.cluster, "app.namespace".
	ServiceCluster string
	ClusterID      string
	MeshID         string
	Labels         map[string]string
	Locality       mesh.Locality
	// Caps are the words of LATEEN_CAPS; empty for other proxies.
	Caps map[string]bool
	// Extensions are the names of Envoy extensions the node announces; nil if it
	// announces none.
	Extensions map[string]bool
	// IstioProxy says that the node has what Istio's build of Envoy adds:
	// istio.stats, istio.alpn and metadata exchange. What its extensions say
	// counts; a node that announces none is believed by its ISTIO_VERSION.
	IstioProxy bool
	// OTLPCluster is the cluster of the node's own bootstrap that leads to the
	// built-in hub by OTLP over gRPC (LATEEN_OTLP_CLUSTER); "" means none.
	OTLPCluster string
	// Capture is LATEEN_CAPTURE ("mark") or the lower-case INTERCEPTION_MODE
	// ("redirect", "tproxy", "none"); "" means redirect.
	Capture string
	// HTTP10 accepts HTTP/1.0 requests (metadata HTTP10=1).
	HTTP10 bool
	// ProxyConfig is the decoded PROXY_CONFIG of the node, nil for none.
	ProxyConfig map[string]any
}

// The xDS types that Build makes.
const (
	ClusterType  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	EndpointType = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	ListenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"
	RouteType    = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	SecretType   = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	NameType     = "type.googleapis.com/istio.networking.nds.v1.NameTable"
	OriginType   = "type.googleapis.com/lateen.origin.v1.Table"
)

// Resources are all resources of one proxy, by type URL and name. The name
// table is one resource named NameTable, the origin table one named Origins.
type Resources struct {
	ByType map[string]map[string]proto.Message
}

// Names of the resources of types that have exactly one.
const (
	NameTable = "nametable"
	Origins   = "origins"
)
