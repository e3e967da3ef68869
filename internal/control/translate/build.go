package translate

import (
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"lateen.dev/lateen/internal/control/mesh"
)

// ParseNode reads the xDS node of a proxy. It returns an error that says which
// field is missing or malformed. It trusts nothing: the caller must check
// Namespace and ServiceAccount against the peer's identity.
func ParseNode(n *corepb.Node) (Node, error) {
	panic("translate: ParseNode is not written yet")
}

// Build makes all resources of one proxy.
func Build(m *mesh.Mesh, n Node) *Resources {
	panic("translate: Build is not written yet")
}

// Affects reports whether a change of the mesh may change what Build returns
// for the node. It never returns false for a change that matters.
func Affects(m *mesh.Mesh, n Node, d mesh.Diff) bool {
	panic("translate: Affects is not written yet")
}
