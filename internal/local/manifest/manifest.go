// Package manifest is the part of Kubernetes' objects that one machine can run:
// plain structs for their JSON form, the fields that mean something here, and
// the evaluation of environment and quantities.
//
// It has its own types instead of k8s.io/api because the node and the proxy's
// program carry this code, and Kubernetes' types alone cost more memory than
// both. A field that is written and not honoured is never dropped silently:
// Unsupported lists it.
package manifest

import (
	"encoding/json"
	"fmt"
	"time"
)

// Metadata is metav1.ObjectMeta.
type Metadata struct {
	Name              string            `json:"name,omitempty"`
	GenerateName      string            `json:"generateName,omitempty"`
	Namespace         string            `json:"namespace,omitempty"`
	UID               string            `json:"uid,omitempty"`
	Labels            map[string]string `json:"labels,omitempty"`
	Annotations       map[string]string `json:"annotations,omitempty"`
	OwnerReferences   []OwnerReference  `json:"ownerReferences,omitempty"`
	CreationTimestamp *time.Time        `json:"creationTimestamp,omitempty"`
	DeletionTimestamp *time.Time        `json:"deletionTimestamp,omitempty"`
}

// OwnerReference is metav1.OwnerReference.
type OwnerReference struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Name       string `json:"name"`
	UID        string `json:"uid"`
	Controller bool   `json:"controller,omitempty"`
}

// TypeMeta is metav1.TypeMeta.
type TypeMeta struct {
	APIVersion string `json:"apiVersion,omitempty"`
	Kind       string `json:"kind,omitempty"`
}

// Pod is a v1 Pod.
type Pod struct {
	TypeMeta
	Metadata Metadata   `json:"metadata"`
	Spec     PodSpec    `json:"spec"`
	Status   *PodStatus `json:"status,omitempty"`
}

// PodTemplate is a v1 PodTemplateSpec.
type PodTemplate struct {
	Metadata Metadata `json:"metadata"`
	Spec     PodSpec  `json:"spec"`
}

// PodSpec is a v1 PodSpec.
type PodSpec struct {
	Containers                    []Container         `json:"containers"`
	InitContainers                []Container         `json:"initContainers,omitempty"`
	Volumes                       []Volume            `json:"volumes,omitempty"`
	ServiceAccountName            string              `json:"serviceAccountName,omitempty"`
	DeprecatedServiceAccount      string              `json:"serviceAccount,omitempty"`
	NodeName                      string              `json:"nodeName,omitempty"`
	Hostname                      string              `json:"hostname,omitempty"`
	HostNetwork                   bool                `json:"hostNetwork,omitempty"`
	RestartPolicy                 string              `json:"restartPolicy,omitempty"`
	TerminationGracePeriodSeconds *int64              `json:"terminationGracePeriodSeconds,omitempty"`
	SecurityContext               *PodSecurityContext `json:"securityContext,omitempty"`
	HostAliases                   []HostAlias         `json:"hostAliases,omitempty"`
}

// HostAlias is a v1 HostAlias.
type HostAlias struct {
	IP        string   `json:"ip"`
	Hostnames []string `json:"hostnames,omitempty"`
}

// PodSecurityContext is the part of v1 PodSecurityContext that is honoured.
type PodSecurityContext struct {
	RunAsUser  *int64 `json:"runAsUser,omitempty"`
	RunAsGroup *int64 `json:"runAsGroup,omitempty"`
}

// SecurityContext is the part of v1 SecurityContext that is honoured.
type SecurityContext struct {
	RunAsUser              *int64 `json:"runAsUser,omitempty"`
	RunAsGroup             *int64 `json:"runAsGroup,omitempty"`
	ReadOnlyRootFilesystem bool   `json:"readOnlyRootFilesystem,omitempty"`
}

// Container is a v1 Container.
type Container struct {
	Name            string           `json:"name"`
	Image           string           `json:"image,omitempty"`
	Command         []string         `json:"command,omitempty"`
	Args            []string         `json:"args,omitempty"`
	WorkingDir      string           `json:"workingDir,omitempty"`
	Ports           []ContainerPort  `json:"ports,omitempty"`
	Env             []EnvVar         `json:"env,omitempty"`
	EnvFrom         []EnvFromSource  `json:"envFrom,omitempty"`
	VolumeMounts    []VolumeMount    `json:"volumeMounts,omitempty"`
	LivenessProbe   *Probe           `json:"livenessProbe,omitempty"`
	ReadinessProbe  *Probe           `json:"readinessProbe,omitempty"`
	StartupProbe    *Probe           `json:"startupProbe,omitempty"`
	Lifecycle       *Lifecycle       `json:"lifecycle,omitempty"`
	Resources       Resources        `json:"resources,omitzero"`
	SecurityContext *SecurityContext `json:"securityContext,omitempty"`
	RestartPolicy   string           `json:"restartPolicy,omitempty"`
}

// ContainerPort is a v1 ContainerPort.
type ContainerPort struct {
	Name          string `json:"name,omitempty"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol,omitempty"`
}

// Resources is v1 ResourceRequirements without claims.
type Resources struct {
	Limits   map[string]Quantity `json:"limits,omitempty"`
	Requests map[string]Quantity `json:"requests,omitempty"`
}

// EnvVar is a v1 EnvVar.
type EnvVar struct {
	Name      string     `json:"name"`
	Value     string     `json:"value,omitempty"`
	ValueFrom *EnvSource `json:"valueFrom,omitempty"`
}

// EnvSource is a v1 EnvVarSource.
type EnvSource struct {
	FieldRef         *FieldRef `json:"fieldRef,omitempty"`
	ResourceFieldRef *struct {
		ContainerName string   `json:"containerName,omitempty"`
		Resource      string   `json:"resource"`
		Divisor       Quantity `json:"divisor,omitempty"`
	} `json:"resourceFieldRef,omitempty"`
	ConfigMapKeyRef *KeyRef `json:"configMapKeyRef,omitempty"`
	SecretKeyRef    *KeyRef `json:"secretKeyRef,omitempty"`
}

// FieldRef is a v1 ObjectFieldSelector.
type FieldRef struct {
	APIVersion string `json:"apiVersion,omitempty"`
	FieldPath  string `json:"fieldPath"`
}

// KeyRef is a v1 ConfigMapKeySelector or SecretKeySelector.
type KeyRef struct {
	Name     string `json:"name"`
	Key      string `json:"key"`
	Optional bool   `json:"optional,omitempty"`
}

// EnvFromSource is a v1 EnvFromSource.
type EnvFromSource struct {
	Prefix       string   `json:"prefix,omitempty"`
	ConfigMapRef *NameRef `json:"configMapRef,omitempty"`
	SecretRef    *NameRef `json:"secretRef,omitempty"`
}

// NameRef names a ConfigMap or Secret.
type NameRef struct {
	Name     string `json:"name"`
	Optional bool   `json:"optional,omitempty"`
}

// Volume is a v1 Volume.
type Volume struct {
	Name      string           `json:"name"`
	ConfigMap *ConfigMapVolume `json:"configMap,omitempty"`
	Secret    *SecretVolume    `json:"secret,omitempty"`
	EmptyDir  *EmptyDirVolume  `json:"emptyDir,omitempty"`
}

// ConfigMapVolume is a v1 ConfigMapVolumeSource.
type ConfigMapVolume struct {
	Name        string      `json:"name"`
	Items       []KeyToPath `json:"items,omitempty"`
	DefaultMode *int32      `json:"defaultMode,omitempty"`
	Optional    bool        `json:"optional,omitempty"`
}

// SecretVolume is a v1 SecretVolumeSource.
type SecretVolume struct {
	SecretName  string      `json:"secretName"`
	Items       []KeyToPath `json:"items,omitempty"`
	DefaultMode *int32      `json:"defaultMode,omitempty"`
	Optional    bool        `json:"optional,omitempty"`
}

// KeyToPath is a v1 KeyToPath.
type KeyToPath struct {
	Key  string `json:"key"`
	Path string `json:"path"`
	Mode *int32 `json:"mode,omitempty"`
}

// EmptyDirVolume is a v1 EmptyDirVolumeSource. All are in memory here.
type EmptyDirVolume struct {
	Medium    string   `json:"medium,omitempty"`
	SizeLimit Quantity `json:"sizeLimit,omitempty"`
}

// VolumeMount is a v1 VolumeMount.
type VolumeMount struct {
	Name      string `json:"name"`
	MountPath string `json:"mountPath"`
	SubPath   string `json:"subPath,omitempty"`
	ReadOnly  bool   `json:"readOnly,omitempty"`
}

// Probe is a v1 Probe.
type Probe struct {
	HTTPGet                       *HTTPGet    `json:"httpGet,omitempty"`
	TCPSocket                     *TCPSocket  `json:"tcpSocket,omitempty"`
	Exec                          *ExecAction `json:"exec,omitempty"`
	GRPC                          *GRPCAction `json:"grpc,omitempty"`
	InitialDelaySeconds           int         `json:"initialDelaySeconds,omitempty"`
	TimeoutSeconds                int         `json:"timeoutSeconds,omitempty"`
	PeriodSeconds                 int         `json:"periodSeconds,omitempty"`
	SuccessThreshold              int         `json:"successThreshold,omitempty"`
	FailureThreshold              int         `json:"failureThreshold,omitempty"`
	TerminationGracePeriodSeconds *int64      `json:"terminationGracePeriodSeconds,omitempty"`
}

// HTTPGet is a v1 HTTPGetAction.
type HTTPGet struct {
	Path        string      `json:"path,omitempty"`
	Port        IntOrString `json:"port"`
	Host        string      `json:"host,omitempty"`
	Scheme      string      `json:"scheme,omitempty"`
	HTTPHeaders []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"httpHeaders,omitempty"`
}

// TCPSocket is a v1 TCPSocketAction.
type TCPSocket struct {
	Port IntOrString `json:"port"`
	Host string      `json:"host,omitempty"`
}

// ExecAction is a v1 ExecAction.
type ExecAction struct {
	Command []string `json:"command,omitempty"`
}

// GRPCAction is a v1 GRPCAction.
type GRPCAction struct {
	Port    int    `json:"port"`
	Service string `json:"service,omitempty"`
}

// Lifecycle is a v1 Lifecycle.
type Lifecycle struct {
	PreStop *LifecycleHandler `json:"preStop,omitempty"`
}

// LifecycleHandler is a v1 LifecycleHandler.
type LifecycleHandler struct {
	Exec    *ExecAction `json:"exec,omitempty"`
	HTTPGet *HTTPGet    `json:"httpGet,omitempty"`
	Sleep   *struct {
		Seconds int64 `json:"seconds"`
	} `json:"sleep,omitempty"`
}

// Deployment is an apps/v1 Deployment.
type Deployment struct {
	TypeMeta
	Metadata Metadata       `json:"metadata"`
	Spec     DeploymentSpec `json:"spec"`
}

// DeploymentSpec is an apps/v1 DeploymentSpec.
type DeploymentSpec struct {
	Replicas *int `json:"replicas,omitempty"`
	Selector struct {
		MatchLabels map[string]string `json:"matchLabels,omitempty"`
	} `json:"selector"`
	Template PodTemplate `json:"template"`
	Strategy struct {
		Type          string `json:"type,omitempty"`
		RollingUpdate struct {
			MaxSurge       *IntOrString `json:"maxSurge,omitempty"`
			MaxUnavailable *IntOrString `json:"maxUnavailable,omitempty"`
		} `json:"rollingUpdate,omitzero"`
	} `json:"strategy,omitzero"`
	MinReadySeconds int `json:"minReadySeconds,omitempty"`
}

// Service is a v1 Service.
type Service struct {
	TypeMeta
	Metadata Metadata `json:"metadata"`
	Spec     struct {
		Type                     string            `json:"type,omitempty"`
		ClusterIP                string            `json:"clusterIP,omitempty"`
		ClusterIPs               []string          `json:"clusterIPs,omitempty"`
		ExternalName             string            `json:"externalName,omitempty"`
		Selector                 map[string]string `json:"selector,omitempty"`
		Ports                    []ServicePort     `json:"ports,omitempty"`
		PublishNotReadyAddresses bool              `json:"publishNotReadyAddresses,omitempty"`
	} `json:"spec"`
}

// Headless says that a service has no address of its own.
func (s *Service) Headless() bool { return s.Spec.ClusterIP == "None" }

// ServicePort is a v1 ServicePort.
type ServicePort struct {
	Name       string      `json:"name,omitempty"`
	Protocol   string      `json:"protocol,omitempty"`
	Port       int         `json:"port"`
	TargetPort IntOrString `json:"targetPort,omitempty"`
}

// ConfigMap is a v1 ConfigMap.
type ConfigMap struct {
	Metadata   Metadata          `json:"metadata"`
	Data       map[string]string `json:"data,omitempty"`
	BinaryData map[string][]byte `json:"binaryData,omitempty"`
}

// Secret is a v1 Secret.
type Secret struct {
	Metadata   Metadata          `json:"metadata"`
	Data       map[string][]byte `json:"data,omitempty"`
	StringData map[string]string `json:"stringData,omitempty"`
}

// Namespace is a v1 Namespace.
type Namespace struct {
	Metadata Metadata `json:"metadata"`
}

// ServiceEntry is the part of Istio's ServiceEntry that names resolve to.
type ServiceEntry struct {
	Metadata Metadata `json:"metadata"`
	Spec     struct {
		Hosts      []string `json:"hosts"`
		Addresses  []string `json:"addresses,omitempty"`
		Resolution string   `json:"resolution,omitempty"`
		Endpoints  []struct {
			Address string `json:"address"`
		} `json:"endpoints,omitempty"`
	} `json:"spec"`
}

// LocalCluster is the lateen.dev/v1alpha1 document that describes this machine
// as a cluster.
type LocalCluster struct {
	Metadata Metadata         `json:"metadata"`
	Spec     LocalClusterSpec `json:"spec"`
}

// LocalClusterSpec is the body of LocalCluster.
type LocalClusterSpec struct {
	// Images map an image, or a prefix that ends in "*", to a program.
	Images map[string]Program `json:"images,omitempty"`
	// HostPorts are ports of the machine's loopback that pods reach as
	// host.lateen.internal.
	HostPorts []uint16 `json:"hostPorts,omitempty"`
}

// Program stands for an image. In JSON it is a string (the path), a list (path
// and fixed arguments) or an object.
type Program struct {
	// Args is what the image's entry point would be: a path, relative to the
	// document's folder, or a name in PATH, and fixed arguments.
	Args []string `json:"program"`
	// RootFS is an unpacked image; the program is then a path inside.
	RootFS string `json:"rootFS,omitempty"`
}

// UnmarshalJSON accepts the three forms.
func (p *Program) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		p.Args = []string{one}
		return nil
	}
	if json.Unmarshal(data, &p.Args) == nil {
		return nil
	}
	type plain Program // without this method
	return json.Unmarshal(data, (*plain)(p))
}

// PodStatus is the part of v1 PodStatus that the supervisor writes.
type PodStatus struct {
	Phase             string            `json:"phase"`
	Conditions        []PodCondition    `json:"conditions,omitempty"`
	HostIP            string            `json:"hostIP,omitempty"`
	PodIP             string            `json:"podIP,omitempty"`
	PodIPs            []PodIP           `json:"podIPs,omitempty"`
	Message           string            `json:"message,omitempty"`
	StartTime         *time.Time        `json:"startTime,omitempty"`
	ContainerStatuses []ContainerStatus `json:"containerStatuses,omitempty"`
}

// PodIP is a v1 PodIP.
type PodIP struct {
	IP string `json:"ip"`
}

// PodCondition is a v1 PodCondition.
type PodCondition struct {
	Type   string `json:"type"`
	Status string `json:"status"`
}

// ContainerStatus is the part of v1 ContainerStatus that is kept.
type ContainerStatus struct {
	Name         string `json:"name"`
	Ready        bool   `json:"ready"`
	RestartCount int    `json:"restartCount"`
	Image        string `json:"image"`
	ImageID      string `json:"imageID"`
}

// Decode reads the JSON form of an object.
func Decode[T any](data json.RawMessage) (*T, error) {
	v := new(T)
	if err := json.Unmarshal(data, v); err != nil {
		return nil, fmt.Errorf("decode %T: %w", *v, err)
	}
	return v, nil
}

// EndpointSlice is the part of a discovery.k8s.io/v1 EndpointSlice that the
// supervisor writes.
type EndpointSlice struct {
	TypeMeta
	Metadata    Metadata       `json:"metadata"`
	AddressType string         `json:"addressType"`
	Endpoints   []Endpoint     `json:"endpoints"`
	Ports       []EndpointPort `json:"ports"`
}

// Endpoint is a discovery.k8s.io/v1 Endpoint.
type Endpoint struct {
	Addresses  []string           `json:"addresses"`
	Conditions EndpointConditions `json:"conditions"`
	TargetRef  ObjectReference    `json:"targetRef"`
	NodeName   string             `json:"nodeName"`
}

// EndpointConditions is a discovery.k8s.io/v1 EndpointConditions.
type EndpointConditions struct {
	Ready       bool `json:"ready"`
	Serving     bool `json:"serving"`
	Terminating bool `json:"terminating"`
}

// ObjectReference is the part of v1 ObjectReference that names a pod.
type ObjectReference struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
}

// EndpointPort is a discovery.k8s.io/v1 EndpointPort.
type EndpointPort struct {
	Name     string `json:"name"`
	Protocol string `json:"protocol"`
	Port     int    `json:"port"`
}
