package translate

import (
	"net/netip"
	"strconv"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"lateen.dev/lateen/internal/control/mesh"
)

// Build makes all resources of one proxy.
func Build(m *mesh.Mesh, n Node) *Resources {
	b := newBuilder(m, n)
	b.addClusters()
	if n.router() {
		b.addGateways()
	} else {
		b.addOutbound()
		b.addInbound()
	}
	b.addNames()
	if n.Caps["origins"] {
		b.addOrigins()
	}
	return &Resources{ByType: b.res}
}

// builder holds what is worked out once for a node.
type builder struct {
	m     *mesh.Mesh
	n     Node
	scope *mesh.Scope
	res   map[string]map[string]proto.Message
	// rules caches the DestinationRule of each host.
	rules map[string]*mesh.DestinationRule
	// http are the VirtualServices with HTTP routes, nil until asked for.
	http []*mesh.VirtualService
	// origins are the places that resources refer to.
	origins map[string]mesh.Origin
	// targets are the inbound ports of the workload, by port.
	targets []target
	v4, v6  bool
}

func newBuilder(m *mesh.Mesh, n Node) *builder {
	b := &builder{
		m: m, n: n, res: map[string]map[string]proto.Message{}, rules: map[string]*mesh.DestinationRule{},
		origins: map[string]mesh.Origin{},
	}
	for _, t := range []string{ClusterType, EndpointType, ListenerType, RouteType, SecretType, NameType} {
		b.res[t] = map[string]proto.Message{}
	}
	if n.router() {
		b.scope = m.GatewayScope(n.Namespace)
	} else {
		b.scope = m.Scope(n.Namespace, n.Labels)
	}
	for _, ip := range n.IPs {
		if ip.Is4() {
			b.v4 = true
		} else {
			b.v6 = true
		}
	}
	if !b.v4 && !b.v6 {
		b.v4 = true
	}
	b.targets = b.inboundTargets()
	return b
}

func (n *Node) router() bool { return n.Role == "router" }

// lateen reports whether the node announces its abilities in our own words.
func (n *Node) lateen() bool { return len(n.Caps) > 0 }

// http2 reports whether the node can speak HTTP/2. Envoy can.
func (n *Node) http2() bool { return !n.lateen() || n.Caps["http2"] }

// has reports whether the node may be sent an extension: it announces it, or
// announces none at all.
func (n *Node) has(extension string) bool { return n.Extensions == nil || n.Extensions[extension] }

// istioFilters reports whether the node has istio.stats, istio.alpn and the
// HTTP side of metadata exchange.
func (n *Node) istioFilters() bool { return n.lateen() || n.IstioProxy }

// tcpExchange reports whether the node exchanges peer metadata on TCP
// connections (ALPN istio-peer-exchange), as Istio's proxy does.
func (n *Node) tcpExchange() bool { return n.IstioProxy && !n.lateen() }

// capturing reports whether connections are redirected to the proxy; without
// capture, listeners bind their ports on loopback.
func (n *Node) capturing() bool { return n.Capture != "none" }

// protocol returns how the node treats a port: without HTTP/2, gRPC and HTTP/2
// ports are carried as opaque TCP.
func (b *builder) protocol(p mesh.Port) mesh.Protocol {
	if p.Protocol.IsHTTP2() && !b.n.http2() {
		return mesh.TCP
	}
	return p.Protocol
}

func (b *builder) add(typeURL, name string, m proto.Message) { b.res[typeURL][name] = m }

// rule returns the DestinationRule that the node applies to a service.
func (b *builder) rule(s *mesh.Service) *mesh.DestinationRule {
	r, ok := b.rules[s.Host]
	if !ok {
		r = b.m.DestinationRuleFor(s, b.n.Namespace, b.n.Labels)
		b.rules[s.Host] = r
	}
	return r
}

// pack puts a message into an Any, with fields in a fixed order. Messages are
// ours; one that does not encode is a defect of this package.
func pack(m proto.Message) *anypb.Any {
	a := new(anypb.Any)
	// Maps must not show through: equal resources must have equal bytes.
	if err := anypb.MarshalFrom(a, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		panic("translate: cannot encode " + string(m.ProtoReflect().Descriptor().FullName()) + ": " + err.Error())
	}
	return a
}

// wildcards returns the wildcard addresses that a listener for everyone binds,
// the first to be named in the listener's name.
func (b *builder) wildcards() []netip.Addr {
	var out []netip.Addr
	if b.v4 {
		out = append(out, netip.IPv4Unspecified())
	}
	if b.v6 {
		out = append(out, netip.IPv6Unspecified())
	}
	return out
}

// reachable reports whether the node has an address of the family of a.
func (b *builder) reachable(a netip.Addr) bool {
	if a.Is4() {
		return b.v4
	}
	return b.v6
}

// reachableOf returns the addresses of the families that the node has.
func (b *builder) reachableOf(list []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		if b.reachable(a) {
			out = append(out, a)
		}
	}
	return out
}

// clusterName returns Istio's name of an outbound cluster.
func clusterName(port uint16, subset, host string) string {
	return "outbound|" + itoa(port) + "|" + subset + "|" + host
}

func inboundClusterName(port uint16) string { return "inbound|" + itoa(port) + "||" }

func itoa(port uint16) string { return strconv.Itoa(int(port)) }
