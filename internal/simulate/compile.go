package simulate

import (
	"lateen.dev/lateen/internal/control/translate"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// compile turns what the control plane made for a proxy into what the proxy
// makes of it. The two meet here in xDS, as they do on the wire.
func compile(r *translate.Resources) (*snapshot.Snapshot, []snapshot.Rejected) {
	return snapshot.Compile(snapshot.Resources{
		Listeners: r.ByType[translate.ListenerType],
		Clusters:  r.ByType[translate.ClusterType],
		Endpoints: r.ByType[translate.EndpointType],
		Routes:    r.ByType[translate.RouteType],
	}, nil)
}
