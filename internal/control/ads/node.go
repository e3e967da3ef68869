package ads

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"

	"lateen.dev/lateen/internal/spiffe"
)

// maxNodeBytes bounds a node message; Istio's agents send a few kilobytes.
const maxNodeBytes = 256 << 10

// Node is a proxy as it describes itself, after its identity was checked. It
// does not change after ParseNode.
type Node struct {
	// ID is the xDS node id, type~ip~name.namespace~domain.
	ID string
	// Role is Istio's node type: "sidecar" or "router".
	Role string
	// Name is the pod's name.
	Name, Namespace, ServiceAccount string
	IPs                             []netip.Addr
	Domain                          string
	// Cluster is node.cluster, "app.namespace".
	Cluster                 string
	Region, Zone, SubZone   string
	WorkloadName            string
	ClusterID, MeshID       string
	Labels                  map[string]string
	Caps, Extensions        map[string]bool
	Capture                 string
	IstioVersion, UserAgent string
	HTTP10                  bool
	ProxyConfig             map[string]any
	// Identity is the SVID's; it is zero on the plaintext port.
	Identity spiffe.ID
}

// Key returns the name of the proxy in commands and status: pod.namespace.
func (n *Node) Key() string { return n.Name + "." + n.Namespace }

// Authenticated reports whether the node proved who it is.
func (n *Node) Authenticated() bool { return !n.Identity.IsZero() }

// errIdentity marks a node that claims to be somebody else.
var errIdentity = errors.New("node does not match its certificate")

// ParseNode reads a node message. With an identity, namespace and service
// account must be the identity's: a node that claims anything else is an
// error wrapping errIdentity.
func ParseNode(n *corepb.Node, id spiffe.ID) (*Node, error) {
	if n.GetId() == "" {
		return nil, errors.New("read node: the first request has no node id")
	}
	if proto.Size(n) > maxNodeBytes {
		return nil, fmt.Errorf("read node %.64q: more than %d bytes", n.GetId(), maxNodeBytes)
	}
	part := strings.Split(n.GetId(), "~")
	if len(part) != 4 {
		return nil, fmt.Errorf("read node %.256q: want type~ip~name.namespace~domain", n.GetId())
	}
	if part[0] != "sidecar" && part[0] != "router" {
		return nil, fmt.Errorf("read node %.256q: type %q is not served: want sidecar or router", n.GetId(), part[0])
	}
	m := n.GetMetadata().AsMap()
	out := &Node{
		ID: n.GetId(), Role: part[0], Domain: part[3], Cluster: n.GetCluster(),
		Region: n.GetLocality().GetRegion(), Zone: n.GetLocality().GetZone(), SubZone: n.GetLocality().GetSubZone(),
		Namespace: text(m["NAMESPACE"]), ServiceAccount: text(m["SERVICE_ACCOUNT"]),
		WorkloadName: text(m["WORKLOAD_NAME"]), ClusterID: text(m["CLUSTER_ID"]), MeshID: text(m["MESH_ID"]),
		Labels: textMap(m["LABELS"]), Caps: words(m["LATEEN_CAPS"]),
		IstioVersion: text(m["ISTIO_VERSION"]), UserAgent: userAgent(n, m),
		HTTP10: text(m["HTTP10"]) == "1", Identity: id,
	}
	out.ProxyConfig, _ = m["PROXY_CONFIG"].(map[string]any)
	if err := out.name(part[2]); err != nil {
		return nil, err
	}
	if err := out.addresses(part[1], text(m["INSTANCE_IPS"])); err != nil {
		return nil, err
	}
	if out.Capture = text(m["LATEEN_CAPTURE"]); out.Capture == "" {
		out.Capture = strings.ToLower(text(m["INTERCEPTION_MODE"]))
	}
	if ext := n.GetExtensions(); len(ext) > 0 {
		out.Extensions = make(map[string]bool, len(ext))
		for _, e := range ext {
			out.Extensions[e.GetName()] = true
		}
	}
	return out, out.checkIdentity()
}

// name splits "pod.namespace"; a pod's name may hold dots, a namespace's not.
func (n *Node) name(s string) error {
	i := strings.LastIndexByte(s, '.')
	if i <= 0 || i == len(s)-1 {
		return fmt.Errorf("read node %.256q: want name.namespace in the third part", n.ID)
	}
	n.Name = s[:i]
	if n.Namespace == "" {
		n.Namespace = s[i+1:]
	}
	if n.Namespace != s[i+1:] {
		return fmt.Errorf("read node %.256q: metadata NAMESPACE is %q", n.ID, n.Namespace)
	}
	return nil
}

func (n *Node) addresses(inID, instanceIPs string) error {
	if instanceIPs == "" {
		instanceIPs = inID
	}
	for s := range strings.SplitSeq(instanceIPs, ",") {
		ip, err := netip.ParseAddr(strings.TrimSpace(s))
		if err != nil {
			return fmt.Errorf("read node %.256q: address: %w", n.ID, err)
		}
		n.IPs = append(n.IPs, ip.Unmap())
	}
	return nil
}

func (n *Node) checkIdentity() error {
	if !n.Authenticated() {
		return nil
	}
	if n.ServiceAccount == "" {
		n.ServiceAccount = n.Identity.ServiceAccount
	}
	if n.Namespace != n.Identity.Namespace || n.ServiceAccount != n.Identity.ServiceAccount {
		return fmt.Errorf("%w: it says namespace %q and service account %q, its certificate says %v",
			errIdentity, n.Namespace, n.ServiceAccount, n.Identity)
	}
	return nil
}

func userAgent(n *corepb.Node, m map[string]any) string {
	if v := text(m["LATEEN_VERSION"]); v != "" {
		return "lateen-proxy " + v
	}
	if v := n.GetUserAgentVersion(); v != "" {
		return strings.TrimSpace(n.GetUserAgentName() + " " + v)
	}
	if v := n.GetUserAgentBuildVersion().GetVersion(); v != nil {
		return fmt.Sprintf("%s %d.%d.%d", n.GetUserAgentName(), v.GetMajorNumber(), v.GetMinorNumber(), v.GetPatch())
	}
	return n.GetUserAgentName()
}

func text(v any) string {
	s, _ := v.(string)
	return s
}

func textMap(v any) map[string]string {
	m, _ := v.(map[string]any)
	out := make(map[string]string, len(m))
	for k, v := range m {
		if s, ok := v.(string); ok {
			out[k] = s
		}
	}
	return out
}

// words reads a list of words, written as a list or separated by commas.
func words(v any) map[string]bool {
	out := make(map[string]bool)
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			if s, ok := e.(string); ok {
				out[s] = true
			}
		}
	case string:
		for s := range strings.SplitSeq(v, ",") {
			if s = strings.TrimSpace(s); s != "" {
				out[s] = true
			}
		}
	}
	return out
}
