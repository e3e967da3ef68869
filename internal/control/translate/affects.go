package translate

import (
	"lateen.dev/lateen/internal/control/mesh"
	"lateen.dev/lateen/internal/resource"
)

// Affects reports whether a change of the mesh may change what Build returns
// for the node; m is the model after the change. It never returns false for a
// change that matters.
func Affects(m *mesh.Mesh, n Node, d mesh.Diff) bool {
	switch {
	case d.Full:
		return true
	case len(d.Moved) > 0 && n.Caps["origins"]:
		return true
	case len(d.Services) > 0:
		// A service that came or went changes routes, clusters and names of
		// whoever sees it; one that went can no longer be asked.
		return true
	}
	var scope *mesh.Scope
	for host := range d.Endpoints {
		if scope == nil {
			scope = scopeOf(m, n)
		}
		if _, ok := scope.Service(host); ok {
			return true
		}
	}
	for k := range d.Workloads {
		if k.Namespace == n.Namespace && k.Name == n.PodName {
			return true
		}
	}
	for k := range d.Objects {
		if objectMatters(m, n, k) {
			return true
		}
	}
	return false
}

func scopeOf(m *mesh.Mesh, n Node) *mesh.Scope {
	if n.router() {
		return m.GatewayScope(n.Namespace)
	}
	return m.Scope(n.Namespace, n.Labels)
}

// objectMatters reports whether an object of this key can play a part for the
// node. Objects that went away can only be judged by their key.
func objectMatters(m *mesh.Mesh, n Node, k resource.Key) bool {
	inReach := k.Namespace == n.Namespace || k.Namespace == m.RootNamespace
	switch k.Kind {
	case "PeerAuthentication", "AuthorizationPolicy", "RequestAuthentication", "Telemetry", "Sidecar":
		// Endpoints whose mutual TLS changed are told apart by Diff.Endpoints.
		return inReach
	case "Gateway":
		return n.router()
	case "Secret":
		return n.router() && k.Namespace == n.Namespace
	case "Namespace":
		return false
	}
	return true
}
