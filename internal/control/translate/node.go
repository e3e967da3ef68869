package translate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"lateen.dev/lateen/internal/control/mesh"
)

// ParseNode reads the xDS node of a proxy. It returns an error that says which
// field is missing or malformed. It trusts nothing: the caller must check
// Namespace and ServiceAccount against the peer's identity.
func ParseNode(p *corepb.Node) (Node, error) {
	parts := strings.Split(p.GetId(), "~")
	if len(parts) != 4 {
		return Node{}, fmt.Errorf("node id %q: want role~ip~name.namespace~domain", p.GetId())
	}
	meta := p.GetMetadata().GetFields()
	n := Node{
		ID: p.GetId(), Role: parts[0], ServiceCluster: p.GetCluster(),
		Namespace: text(meta, "NAMESPACE"), ServiceAccount: text(meta, "SERVICE_ACCOUNT"),
		PodName: text(meta, "NAME"), WorkloadName: text(meta, "WORKLOAD_NAME"),
		ClusterID: text(meta, "CLUSTER_ID"), MeshID: text(meta, "MESH_ID"),
		Labels:     textMap(meta, "LABELS"),
		Locality:   mesh.Locality{Region: p.GetLocality().GetRegion(), Zone: p.GetLocality().GetZone(), SubZone: p.GetLocality().GetSubZone()},
		Caps:       words(meta, "LATEEN_CAPS"),
		IstioProxy: text(meta, "ISTIO_VERSION") != "",
		Capture:    strings.ToLower(text(meta, "INTERCEPTION_MODE")),
		HTTP10:     text(meta, "HTTP10") == "1",

		OTLPCluster: text(meta, "LATEEN_OTLP_CLUSTER"),
	}
	if n.Role != "sidecar" && n.Role != "router" {
		return Node{}, fmt.Errorf("node id %q: role %q is not served: want sidecar or router", p.GetId(), n.Role)
	}
	name, ns, _ := strings.Cut(parts[2], ".")
	if n.PodName == "" {
		n.PodName = name
	}
	if n.Namespace == "" {
		n.Namespace = ns
	}
	if n.Namespace == "" {
		return Node{}, fmt.Errorf("node %q: metadata NAMESPACE is missing", p.GetId())
	}
	if c := text(meta, "LATEEN_CAPTURE"); c != "" {
		n.Capture = strings.ToLower(c)
	}
	if c := meta["PROXY_CONFIG"].GetStructValue(); c != nil {
		n.ProxyConfig = c.AsMap()
	}
	for _, e := range p.GetExtensions() {
		if n.Extensions == nil {
			n.Extensions = map[string]bool{}
		}
		n.Extensions[e.GetName()] = true
	}
	if n.Extensions != nil {
		n.IstioProxy = n.Extensions["istio.stats"] && n.Extensions["istio.alpn"]
	}
	return n, n.readIPs(parts[1], text(meta, "INSTANCE_IPS"))
}

func (n *Node) readIPs(own, list string) error {
	for t := range strings.SplitSeq(own+","+list, ",") {
		t = strings.TrimSpace(t)
		if t == "" {
			continue
		}
		ip, err := netip.ParseAddr(t)
		if err != nil {
			return fmt.Errorf("node %q: address %q in INSTANCE_IPS or id: %w", n.ID, t, err)
		}
		if ip = ip.Unmap(); !slices.Contains(n.IPs, ip) {
			n.IPs = append(n.IPs, ip)
		}
	}
	if len(n.IPs) == 0 {
		return fmt.Errorf("node %q: no IP address in its id or INSTANCE_IPS", n.ID)
	}
	slices.SortStableFunc(n.IPs, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	return nil
}

func text(m map[string]*structpb.Value, key string) string { return m[key].GetStringValue() }

func textMap(m map[string]*structpb.Value, key string) map[string]string {
	fields := m[key].GetStructValue().GetFields()
	out := make(map[string]string, len(fields))
	for k, v := range fields {
		out[k] = v.GetStringValue()
	}
	return out
}

func words(m map[string]*structpb.Value, key string) map[string]bool {
	list := m[key].GetListValue().GetValues()
	if len(list) == 0 {
		return nil
	}
	out := make(map[string]bool, len(list))
	for _, v := range list {
		out[v.GetStringValue()] = true
	}
	return out
}

// setting returns the value at a path of PROXY_CONFIG, nil if there is none.
func (n *Node) setting(path ...string) any {
	var v any = n.ProxyConfig
	for _, p := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[p]
	}
	return v
}
