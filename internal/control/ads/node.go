package ads

import (
	"errors"
	"fmt"
	"strings"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"lateen.dev/lateen/internal/spiffe"
)

// maxNodeBytes bounds a node message; Istio's agents send a few kilobytes.
const maxNodeBytes = 256 << 10

// Node is a proxy as it describes itself, after its identity was checked. It
// does not change after the stream was admitted.
type Node struct {
	// ID is the xDS node id, type~ip~name.namespace~domain.
	ID string
	// Role is Istio's node type: "sidecar" or "router".
	Role string
	// Name is the pod's name.
	Name, Namespace, ServiceAccount string
	// Caps are the words of LATEEN_CAPS; empty for other proxies.
	Caps map[string]bool
	// Agent is the proxy's name and version, for people.
	Agent string
	// Identity is the SVID's; it is zero on the plaintext port.
	Identity spiffe.ID
	// Proto is the whole message.
	Proto *corepb.Node
	// View is what Options.Admit made of the node.
	View any
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
	m := n.GetMetadata().GetFields()
	out := &Node{
		ID: n.GetId(), Role: part[0], Namespace: m["NAMESPACE"].GetStringValue(), ServiceAccount: m["SERVICE_ACCOUNT"].GetStringValue(),
		Caps: words(m["LATEEN_CAPS"]), Agent: agent(n), Identity: id, Proto: n,
	}
	if err := out.name(part[2]); err != nil {
		return nil, err
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

func agent(n *corepb.Node) string {
	if v := n.GetMetadata().GetFields()["LATEEN_VERSION"].GetStringValue(); v != "" {
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

// words reads a list of words, written as a list or separated by commas.
func words(v *structpb.Value) map[string]bool {
	out := make(map[string]bool)
	for _, e := range v.GetListValue().GetValues() {
		out[e.GetStringValue()] = true
	}
	for s := range strings.SplitSeq(v.GetStringValue(), ",") {
		out[strings.TrimSpace(s)] = true
	}
	delete(out, "")
	return out
}
