package record

import (
	"cmp"

	"lateen.dev/lateen/internal/bootstrap"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// Identity is this proxy as telemetry describes it.
type Identity struct {
	snapshot.Workload
	NodeID, Pod, MeshID, ServiceAccount, TrustDomain string
	Zone, Region, IP                                 string
	Role                                             bootstrap.Role
	Version                                          string // of Lateen
}

// IdentityOf reads the identity from the bootstrap message (Istio's metadata
// keys). version is that of the program.
func IdentityOf(b *bootstrap.Bootstrap, version string) Identity {
	str := func(key string) string { s, _ := b.Node.Metadata[key].(string); return s }
	labels := map[string]string{}
	switch m := b.Node.Metadata["LABELS"].(type) {
	case map[string]any:
		for k, v := range m {
			labels[k], _ = v.(string)
		}
	case map[string]string:
		labels = m
	}
	id := Identity{
		NodeID: b.Node.ID, Pod: str("NAME"), MeshID: str("MESH_ID"), Version: version, Role: b.Role,
		ServiceAccount: cmp.Or(b.Identity.ServiceAccount, str("SERVICE_ACCOUNT")), TrustDomain: b.Identity.TrustDomain,
		Zone: b.Node.Zone, Region: b.Node.Region,
	}
	id.Name = cmp.Or(str("WORKLOAD_NAME"), id.Pod)
	id.Namespace = cmp.Or(b.Identity.Namespace, str("NAMESPACE"))
	id.Cluster = str("CLUSTER_ID")
	id.App, id.Workload.Version = labels["app"], labels["version"]
	id.CanonicalService = cmp.Or(labels["service.istio.io/canonical-name"], labels["app.kubernetes.io/name"], id.App, id.Name)
	id.CanonicalRevision = cmp.Or(labels["service.istio.io/canonical-revision"], labels["app.kubernetes.io/version"], id.Workload.Version, "latest")
	if len(b.IPs) > 0 {
		id.IP = b.IPs[0].String()
	}
	return id
}
