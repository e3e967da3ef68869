package snapshot

import (
	"net/netip"
	"time"
)

// DiscoveryType tells where endpoints of a cluster come from.
type DiscoveryType uint8

// The discovery types of a cluster.
const (
	Static DiscoveryType = iota
	StrictDNS
	LogicalDNS
	EDS
	OriginalDst
)

// LBPolicy is a balancing policy.
type LBPolicy uint8

// The balancing policies.
const (
	RoundRobin LBPolicy = iota
	LeastRequest
	Random
	RingHash
	Maglev
	ClusterProvided
)

// Cluster is an upstream: where to send requests and within which limits.
type Cluster struct {
	Name           string
	Type           DiscoveryType
	LB             LBPolicy
	ChoiceCount    uint32 // least request; 2 unless configured
	MinRingSize    uint64
	MaglevTable    uint64
	ConnectTimeout time.Duration
	// Endpoints are ordered by priority, then as received. Empty until the
	// first EDS answer, which Warm records.
	Endpoints []*Endpoint
	Warm      bool
	// PanicThreshold in percent; 0 switches panic mode off (Istio's default).
	PanicThreshold uint32
	Limits         Limits
	Outlier        *Outlier
	// TLS is the transport of endpoints whose tlsMode label matches; the last
	// entry with an empty match is the default. Nil TLS means plaintext.
	Transports []TransportMatch
	// HTTP is the version of HTTP that endpoints are spoken to in, H2 how.
	HTTP                  UpstreamHTTP
	H2                    HTTP2Options
	IdleTimeout           time.Duration
	MaxConnectionDuration time.Duration
	MaxRequestsPerConn    uint32
	TCPKeepalive          *Keepalive
	// Bind is the source address for upstream sockets (inbound passthrough), zero for any.
	Bind netip.Addr
	// Mark is the socket mark for upstream sockets, 0 for none.
	Mark uint32
	// Origin and Config name the DestinationRule, "" for none; Service, Subset
	// and Namespace the destination as telemetry labels see it.
	Origin                     Origin
	Config                     string
	Service, Namespace, Subset string
	ServiceName                string
	DNSRefresh                 time.Duration
	// EDSName is the EDS resource; Name unless configured.
	EDSName string
	// PortOverride replaces the port of an ORIGINAL_DST cluster, 0 keeps it.
	PortOverride uint16
	// localityWeighted folds the weights of localities into those of endpoints.
	localityWeighted bool
}

// UpstreamHTTP tells which version of HTTP a cluster's endpoints are spoken to in.
type UpstreamHTTP uint8

// The choices of an upstream's version of HTTP.
const (
	UpstreamHTTP1 UpstreamHTTP = iota
	UpstreamHTTP2
	// UpstreamAsDownstream speaks what the client of each exchange spoke.
	UpstreamAsDownstream
	// UpstreamByALPN lets the TLS handshake decide.
	UpstreamByALPN
)

// HTTP2Options shape the HTTP/2 connections of one side; zero values leave the
// codec's defaults.
type HTTP2Options struct {
	// MaxConcurrentStreams is what we allow the peer of a listener, and how many
	// exchanges we put on one connection of a cluster.
	MaxConcurrentStreams           uint32
	StreamWindow, ConnectionWindow uint32
	HeaderTableSize                uint32
	// KeepaliveInterval between PINGs, 0 for none, and how long an answer may take.
	KeepaliveInterval, KeepaliveTimeout time.Duration
}

// TransportMatch chooses a transport by an endpoint's metadata labels.
type TransportMatch struct {
	Name  string
	Match map[string]string
	TLS   *UpstreamTLS
}

// Limits are the circuit breakers of a cluster; math.MaxUint32 means none.
type Limits struct {
	MaxConnections, MaxPending, MaxRequests, MaxRetries uint32
	// RetryBudgetPercent of active requests may be retries, at least
	// RetryBudgetMin; 0 means MaxRetries rules.
	RetryBudgetPercent float64
	RetryBudgetMin     uint32
}

// Outlier is passive health checking.
type Outlier struct {
	Consecutive5xx, ConsecutiveGateway, ConsecutiveLocal uint32 // 0 means off
	SplitExternalLocal                                   bool
	Interval, BaseEjection, MaxEjection                  time.Duration
	MaxEjectionPercent                                   uint32
	Origin                                               Origin
}

// Keepalive is TCP keep-alive; zero fields keep the system's value.
type Keepalive struct {
	Probes         uint32
	Time, Interval time.Duration
}

// Health is the state of an endpoint as the control plane sees it.
type Health uint8

// The health states of an endpoint.
const (
	HealthUnknown Health = iota
	Healthy
	Unhealthy
	Draining
	Degraded
)

// Endpoint is one address of a cluster.
type Endpoint struct {
	Addr netip.AddrPort
	// Host is set instead of Addr for DNS clusters before resolution.
	Host     string
	Port     uint16
	Weight   uint32
	Priority uint32
	Region   string
	Zone     string
	Health   Health
	// Labels are the transport-socket match labels ("tlsMode": "istio").
	Labels map[string]string
	// Workload is Istio's peer description "name;namespace;service;revision;cluster".
	Workload Workload
}

// Workload is who stands behind an endpoint or a peer, for telemetry labels.
type Workload struct {
	Name, Namespace, CanonicalService, CanonicalRevision, Cluster string
	// App and Version are the labels of the same names; the canonical service
	// and revision stand in for them when they are empty.
	App, Version string
}
