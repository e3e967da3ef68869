// Package bootstrap is what a proxy is told when it starts: who it is, where
// its control plane lives, which sockets it inherits and how traffic reaches
// it. Whoever starts a proxy (the local supervisor, an injected pod) writes it
// as JSON; lateen-proxy reads it once. It is data only and a leaf.
package bootstrap

import (
	"encoding/json"
	"fmt"
	"net/netip"
)

// Role says which kind of proxy this is. It is Istio's node type.
type Role string

// The roles a proxy can have.
const (
	Sidecar Role = "sidecar"
	Router  Role = "router"
)

// Capture says how connections of the application reach the proxy.
type Capture string

// The capture modes. Mark is used on one machine: nftables rules tell the
// proxy's own sockets by two socket marks. UID is Istio's rule (uid 1337).
const (
	CaptureMark   Capture = "mark"
	CaptureUID    Capture = "uid"
	CaptureTProxy Capture = "tproxy"
	CaptureNone   Capture = "none"
)

// Socket marks of capture mode "mark". Outbound marks a connection that the
// proxy opens towards other pods; Inbound one that it opens to its own
// application.
const (
	OutboundMark = 0x4c01
	InboundMark  = 0x4c02
)

// Well-known ports of a proxy, the same as in Istio.
const (
	AdminPort      = 15000
	OutboundPort   = 15001
	InboundPort    = 15006
	StatusPort     = 15020
	ReadyPort      = 15021
	DNSPort        = 15053
	PrometheusPort = 15090
)

// Ports of the control plane, the same as in Istio.
const (
	XDSPlainPort = 15010
	XDSPort      = 15012
)

// Bootstrap is the whole message.
type Bootstrap struct {
	Role     Role     `json:"role"`
	Node     Node     `json:"node"`
	Control  Control  `json:"control"`
	Identity Identity `json:"identity"`
	Capture  Capture  `json:"capture"`
	// IPs are the pod's addresses, IPv4 first. The inbound half dials the
	// application at the address the caller used.
	IPs []netip.Addr `json:"ips"`
	// Inherited are listening sockets handed over at start, for example the
	// host's loopback ports of a gateway. They replace binding that port.
	Inherited []InheritedListener `json:"inherited,omitempty"`
	// Egress is the path of the unix socket of the descriptor broker: a
	// connection to an address outside the node is dialled there. Empty means
	// dial directly.
	Egress string `json:"egress,omitempty"`
	// Networks are the node's own networks (pods, services). With Egress set,
	// any other address is dialled by the broker; loopback never is.
	Networks []netip.Prefix `json:"networks,omitempty"`
	// DNS is the upstream resolver (host:port) for names the mesh does not
	// know. Empty means that such names do not resolve.
	DNS string `json:"dns,omitempty"`
	// Telemetry is the OTLP/gRPC endpoint (host:port) used when no provider is
	// configured. Empty switches export off.
	Telemetry string `json:"telemetry,omitempty"`
	// Concurrency is the number of event loops, at least 1; 0 means 2.
	Concurrency int `json:"concurrency,omitempty"`
	// PlainIO keeps the event loops from using io_uring where the kernel has it.
	PlainIO bool `json:"plainIO,omitempty"`
	// MemoryLimit in bytes becomes GOMEMLIMIT at 90 %; 0 means none.
	MemoryLimit int64 `json:"memoryLimit,omitempty"`
	// StateDir keeps the last accepted configuration, 0700. Empty means none is
	// kept and the proxy cannot start while the control plane is away.
	StateDir string `json:"stateDir,omitempty"`
	// DrainSeconds bounds how long a terminating proxy serves what is in
	// flight; 0 means 5.
	DrainSeconds int `json:"drainSeconds,omitempty"`
	// Ports replaces the well-known ports of the proxy's own servers; nil keeps
	// them. A port of -1 switches that server off.
	Ports *Ports `json:"ports,omitempty"`
	// AppProbes are the probes of the application by "CONTAINER/livez", "readyz"
	// or "startupz".
	AppProbes map[string]AppProbe `json:"appProbes,omitempty"`
	// LogLevel is debug, info, warn or error; empty means info.
	LogLevel string `json:"logLevel,omitempty"`
}

// Ports are where the proxy's own servers listen; 0 means the well-known port.
type Ports struct {
	Admin      int `json:"admin,omitempty"`
	Ready      int `json:"ready,omitempty"`
	Prometheus int `json:"prometheus,omitempty"`
	DNS        int `json:"dns,omitempty"`
	Status     int `json:"status,omitempty"`
}

// AppProbe is a probe of the application that the proxy makes for others, by the
// path /app-health/CONTAINER/KIND on the status port.
type AppProbe struct {
	// Port is the application's. Path is empty for a probe that only connects.
	Port int    `json:"port"`
	Path string `json:"path,omitempty"`
	TLS  bool   `json:"tls,omitempty"`
	Host string `json:"host,omitempty"`
	// Headers are sent besides; TimeoutSeconds 0 means 1.
	Headers        map[string]string `json:"headers,omitempty"`
	TimeoutSeconds int               `json:"timeoutSeconds,omitempty"`
}

// Node is the xDS node (envoy.config.core.v3.Node). Metadata uses Istio's keys
// (NAMESPACE, SERVICE_ACCOUNT, LABELS, INSTANCE_IPS …) plus LATEEN_CAPS, the
// list of what this proxy can do.
type Node struct {
	ID       string         `json:"id"`
	Cluster  string         `json:"cluster"`
	Region   string         `json:"region,omitempty"`
	Zone     string         `json:"zone,omitempty"`
	Metadata map[string]any `json:"metadata,omitempty"`
}

// Control says how to reach the control plane and its certificate authority.
type Control struct {
	// Address is host:port of xDS and CA over mTLS (15012).
	Address string `json:"address"`
	// ServerName is verified in the control plane's certificate; empty means
	// the SPIFFE identity of istiod in istio-system of the trust domain.
	ServerName string `json:"serverName,omitempty"`
	// RootsPEM are the root certificates to trust before the first push.
	RootsPEM string `json:"rootsPEM"`
	// Protocol is the variant of ADS to speak; empty means Delta.
	Protocol Protocol `json:"protocol,omitempty"`
}

// Protocol is a variant of ADS.
type Protocol string

// The variants: Envoy's api_type DELTA_GRPC and GRPC. Istio's agent chooses by
// ISTIO_DELTA_XDS.
const (
	Delta           Protocol = "delta"
	StateOfTheWorld Protocol = "sotw"
)

// Identity is what the proxy asks a certificate for. The control plane grants
// what the token is bound to, not what is written here.
type Identity struct {
	TrustDomain    string `json:"trustDomain"`
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
	// TokenFD is a descriptor from which the single-use bootstrap token is
	// read once; 0 means TokenFile is used.
	TokenFD   int    `json:"tokenFD,omitempty"`
	TokenFile string `json:"tokenFile,omitempty"`
	// SVIDFD is a memfd kept by the node in which the key and certificate
	// outlive a crash of the proxy; 0 means they live in memory only.
	SVIDFD int `json:"svidFD,omitempty"`
}

// InheritedListener hands over one listening TCP socket.
type InheritedListener struct {
	Port uint16 `json:"port"`
	FD   int    `json:"fd"`
}

// Parse decodes and checks a bootstrap message.
func Parse(data []byte) (*Bootstrap, error) {
	var b Bootstrap
	if err := json.Unmarshal(data, &b); err != nil {
		return nil, fmt.Errorf("read bootstrap: %w", err)
	}
	if b.Role != Sidecar && b.Role != Router {
		return nil, fmt.Errorf("read bootstrap: role %q: want %q or %q", b.Role, Sidecar, Router)
	}
	if b.Node.ID == "" || b.Control.Address == "" {
		return nil, fmt.Errorf("read bootstrap: node.id and control.address are required")
	}
	if p := b.Control.Protocol; p != "" && p != Delta && p != StateOfTheWorld {
		return nil, fmt.Errorf("read bootstrap: control.protocol %q: want %q or %q", p, Delta, StateOfTheWorld)
	}
	if b.Concurrency <= 0 {
		b.Concurrency = 2
	}
	if b.DrainSeconds <= 0 {
		b.DrainSeconds = 5
	}
	return &b, nil
}
