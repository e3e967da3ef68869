// Package ads serves xDS: the aggregated discovery service, delta and
// state-of-the-world, for Lateen's proxies, Envoy and gRPC clients. It takes
// complete sets of resources from a Generator and sends each proxy exactly what
// changed for it, in make-before-break order, one push at a time.
//
//	Update ─→ who is affected ─→ stream: Generator ─→ session ─→ responses
//	                                        ACK, NACK, subscriptions ─┘
//
// A stream is one goroutine that owns a session, the protocol's state without
// sockets or clock of its own; a second goroutine only receives. A slow proxy
// never holds up another, and receives the sum of what it missed, not a queue.
// Nothing is sent before the first Update, so that a control plane that has
// just started never pushes an empty mesh.
//
// Who a proxy is comes from its certificate; the node message must agree with
// it and grants nothing. The package does not know what resources mean.
package ads

import (
	"google.golang.org/protobuf/proto"
)

// The type URLs that order matters for, and Istio's and Lateen's own.
const (
	clusterType  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	endpointType = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	listenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"
	routeType    = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	secretType   = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	nameType     = "type.googleapis.com/istio.networking.nds.v1.NameTable"
	originType   = "type.googleapis.com/lateen.origin.v1.Table"
)

// pushOrder is make-before-break: what is referred to comes before what refers
// to it. Removals follow in a second phase. Origins come before the listeners
// whose decisions they explain; names come last, when they can be reached.
var pushOrder = [...]string{clusterType, endpointType, secretType, originType, listenerType, routeType, nameType}

// ShortName returns the customary short name of a type: CDS, EDS, LDS, RDS,
// SDS, NDS, ORIGIN; any other type URL is returned as it is.
func ShortName(typeURL string) string {
	switch typeURL {
	case clusterType:
		return "CDS"
	case endpointType:
		return "EDS"
	case listenerType:
		return "LDS"
	case routeType:
		return "RDS"
	case secretType:
		return "SDS"
	case nameType:
		return "NDS"
	case originType:
		return "ORIGIN"
	}
	return typeURL
}

// wildcardByDefault reports whether a first subscription without names asks
// for everything. The protocol says so for listeners and clusters; Istio's
// agent asks for its name table that way, and the origin table is alike.
func wildcardByDefault(typeURL string) bool {
	switch typeURL {
	case clusterType, listenerType, nameType, originType:
		return true
	}
	return false
}

// fullState reports whether a state-of-the-world response must carry every
// resource of the type, absence meaning removal.
func fullState(typeURL string) bool { return typeURL == clusterType || typeURL == listenerType }

// Resources is everything one proxy may have under one revision of the
// configuration, by type URL and name. Names must be those inside the messages.
type Resources struct {
	Revision uint64
	ByType   map[string]map[string]proto.Message
}

// Generator makes the resources of a proxy from the configuration in force. It
// is called from many goroutines; what it returns is only read.
type Generator interface {
	Generate(n *Node) (Resources, error)
}
