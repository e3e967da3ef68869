package resource

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// LocalCluster is lateen.dev/v1alpha1 LocalCluster: what running manifests on
// this machine needs to know besides them. It is decoded strictly.
type LocalCluster struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              LocalClusterSpec `json:"spec,omitempty"`
}

// LocalClusterSpec is the body of a LocalCluster.
type LocalClusterSpec struct {
	// Images maps the image names of containers to programs: a path, relative to
	// the file it stands in, or a name looked up in PATH.
	Images map[string]string `json:"images,omitempty"`
	// HostPorts are TCP ports of the machine's own loopback that pods reach as
	// host.lateen.internal. None is reachable unless it is listed.
	HostPorts []uint16 `json:"hostPorts,omitempty"`
}
