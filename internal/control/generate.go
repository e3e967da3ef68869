package control

import (
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"lateen.dev/lateen/internal/control/ads"
	"lateen.dev/lateen/internal/control/translate"
)

// admit makes the translator's view of a node. Identity comes from the
// certificate; a pod that is known must run as that service account.
func (c *controller) admit(n *ads.Node) (any, error) {
	node, err := translate.ParseNode(n.Proto)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	node.Namespace, node.PodName = n.Namespace, n.Name
	if n.ServiceAccount != "" {
		node.ServiceAccount = n.ServiceAccount
	}
	if w, ok := c.current.Load().Mesh.Workload(n.Namespace, n.Name); ok && n.Authenticated() && w.ServiceAccount != n.Identity.ServiceAccount {
		return nil, fmt.Errorf("pod %s runs as service account %q, the certificate is for %q", n.Key(), w.ServiceAccount, n.Identity.ServiceAccount)
	}
	return node, nil
}

// Generate implements ads.Generator on the newest view.
func (c *controller) Generate(n *ads.Node) (ads.Resources, error) {
	v := c.current.Load()
	node, ok := nodeIn(v, n)
	if !ok {
		return ads.Resources{}, fmt.Errorf("node %s was not admitted", n.Key())
	}
	r := translate.Build(v.Mesh, node)
	return ads.Resources{Revision: v.Revision, ByType: r.ByType}, nil
}

// nodeIn is a proxy as the translator is to see it. Labels decide which
// policies and gateways are a proxy's; for a pod that is known they are the
// pod's, whatever the node says.
func nodeIn(v *View, n *ads.Node) (translate.Node, bool) {
	node, ok := n.View.(translate.Node)
	if w, known := v.Mesh.Workload(n.Namespace, n.Name); ok && known {
		node.Labels = w.Labels
	}
	return node, ok
}
