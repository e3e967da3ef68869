// Package snapshot turns xDS resources into the tables that the proxy reads on
// every request. It sits between xds (bytes from the control plane) and the
// request path. Compile is pure; a *Snapshot never changes after it was made,
// so any number of loops may read it without locks. Matching (filter chains,
// virtual hosts, routes, authorization) is pure too.
//
// It does not own anything that lives: connections, balancer positions, outlier
// state and statistics belong to upstream and record, keyed by cluster name and
// endpoint address, so that they survive a new snapshot.
package snapshot

import (
	"net/netip"
	"regexp"
	"time"
)

// Snapshot is one complete, consistent configuration of the proxy.
type Snapshot struct {
	// Version counts accepted updates, from 1.
	Version  uint64
	Clusters map[string]*Cluster
	// Listeners holds every listener by name; Inbound and Outbound are the two
	// capture listeners ("virtualInbound", "virtualOutbound"), nil if absent.
	Listeners map[string]*Listener
	Inbound   *Listener
	Outbound  *Listener
	// Warnings name what was accepted without being applied (telemetry details
	// only; whatever bears on routing or security is refused instead).
	Warnings []Rejected
	source   sources
	// outboundByAddr finds the listener for a captured destination: exact
	// address and port first, then the wildcard address of the port.
	outboundByAddr map[netip.AddrPort]*Listener
}

// Direction says on which side of the application a listener stands.
type Direction uint8

// The directions of a listener.
const (
	DirectionUnspecified Direction = iota
	Inbound
	Outbound
)

// Listener is a set of filter chains for connections to one address.
type Listener struct {
	Name      string
	Addresses []netip.AddrPort
	// BindToPort is false for listeners that only receive captured connections.
	BindToPort     bool
	UseOriginalDst bool
	Direction      Direction
	// Inspectors needed before a chain can be chosen.
	TLSInspector, HTTPInspector, ProxyProtocol bool
	// tlsOff and httpOff switch an inspector off for some ports; see Inspectors.
	tlsOff, httpOff *portPredicate
	// InspectTimeout bounds inspection; 0 means no bound of its own. When
	// ContinueOnTimeout is set the connection goes on unclassified.
	InspectTimeout    time.Duration
	ContinueOnTimeout bool
	Chains            []*FilterChain
	Default           *FilterChain
	AccessLogs        []*AccessLog
}

// ChainMatch holds the criteria of one filter chain; empty ones match all.
// Precedence among chains is Envoy's: destination port, destination IP, server
// name, transport protocol, application protocol, source.
type ChainMatch struct {
	DestinationPort  uint16
	Destination      []netip.Prefix
	ServerNames      []string
	Transport        string // "tls", "raw_buffer" or ""
	ApplicationProto []string
	Source           []netip.Prefix
	SourcePorts      []uint16
}

// FilterChain says what to do with a connection: at most one of HTTP and TCP is
// set; neither means close.
type FilterChain struct {
	Name  string
	Match ChainMatch
	// TLS is nil for plaintext chains.
	TLS *DownstreamTLS
	// NetworkRBAC is evaluated for every connection before HTTP or TCP, in order.
	NetworkRBAC []*RBAC
	HTTP        *HTTPManager
	TCP         *TCPProxy
	// Stats is set when the chain counts connections (Istio's network stats filter).
	Stats          *StatsConfig
	ConnectTimeout time.Duration
	AccessLogs     []*AccessLog
	// Origin is the configuration that decided about the chain's TLS, "" for none.
	Origin Origin
}

// DownstreamTLS is how a chain terminates TLS.
type DownstreamTLS struct {
	// Certificate names the SDS secret: "default" is the proxy's own SVID,
	// "kubernetes://…" a gateway credential.
	Certificates []string
	// Validation is nil when no client certificate is asked for.
	Validation        *Validation
	RequireClientCert bool
	ALPN              []string
	MinVersion        uint16 // crypto/tls constants; 0 means TLS 1.2
	MaxVersion        uint16
	// CipherSuites limits TLS 1.2, crypto/tls ids; empty means Go's defaults.
	CipherSuites []uint16
	// SessionTickets is always false between mesh peers.
	SessionTickets bool
}

// Validation says which peers a TLS context accepts.
type Validation struct {
	// RootSecret names the SDS validation context ("ROOTCA", "file-root:…");
	// RootsPEM holds inline roots.
	RootSecret string
	RootsPEM   []byte
	// SANs is matched against URI and DNS names; empty accepts any name that chains.
	SANs []StringMatcher
}

// UpstreamTLS is how a cluster originates TLS.
type UpstreamTLS struct {
	Certificate string // SDS secret name, "" for none
	Validation  *Validation
	SNI         string
	// AutoSNI uses the request's host as SNI and, with AutoSANValidation, demands it.
	AutoSNI, AutoSANValidation bool
	ALPN                       []string
	MinVersion, MaxVersion     uint16
	// Mesh marks Istio mutual TLS (certificate "default", roots "ROOTCA").
	Mesh bool
}

// TCPProxy forwards bytes to a cluster.
type TCPProxy struct {
	StatPrefix string
	Clusters   []WeightedCluster
	// IdleTimeout ends a connection without traffic; 0 means never.
	IdleTimeout, MaxConnectionDuration time.Duration
	// HashSourceIP chooses the endpoint by the client's address where the
	// cluster balances consistently.
	HashSourceIP bool
	AccessLogs   []*AccessLog
	Origin       Origin
}

// HTTPManager is an HTTP connection manager: codec options, filters and routes.
type HTTPManager struct {
	StatPrefix string
	// RouteName is the RDS name, "" for inline routes. Routes is never nil in a
	// compiled snapshot.
	RouteName string
	Routes    *RouteTable
	// Filters in configured order, the router left out.
	Filters []HTTPFilter
	Tracing *Tracing
	// Stats is nil when no metrics provider is configured.
	Stats      *StatsConfig
	AccessLogs []*AccessLog
	ServerName string
	// ServerPassThrough leaves the server header of responses alone.
	ServerPassThrough bool
	UseRemoteAddress  bool
	XFFTrustedHops    uint32
	ForwardClientCert ForwardClientCert
	SetClientCert     SetClientCert
	NormalizePath     bool
	MergeSlashes      bool
	EscapedSlashes    EscapedSlashes
	// Upgrades are the lower-case upgrade types that may pass ("websocket").
	Upgrades          map[string]bool
	StreamIdleTimeout time.Duration
	RequestTimeout    time.Duration
	IdleTimeout       time.Duration
	MaxRequestHeaders int // bytes; 0 means 60 KiB
	// Codec is the version of HTTP that clients speak, H2 how.
	Codec             Codec
	H2                HTTP2Options
	AcceptHTTP10      bool
	PreserveRequestID bool
}

// Codec tells which versions of HTTP a manager takes.
type Codec uint8

// The codecs of a manager. CodecAuto goes by ALPN, else by the client's first
// bytes.
const (
	CodecAuto Codec = iota
	CodecHTTP1
	CodecHTTP2
)

// ForwardClientCert is Envoy's treatment of x-forwarded-client-cert.
type ForwardClientCert uint8

// The treatments of x-forwarded-client-cert.
const (
	XFCCSanitize ForwardClientCert = iota
	XFCCForwardOnly
	XFCCAppendForward
	XFCCSanitizeSet
	XFCCAlwaysForwardOnly
)

// SetClientCert says which parts of the client certificate XFCC tells.
type SetClientCert struct{ Subject, URI, DNS, Cert, Chain bool }

// EscapedSlashes is Envoy's path_with_escaped_slashes_action.
type EscapedSlashes uint8

// What to do with %2F and %5C in a path.
const (
	EscapedKeep EscapedSlashes = iota
	EscapedReject
	EscapedUnescapeRedirect
	EscapedUnescapeForward
)

// HTTPFilter is one HTTP filter of a manager; exactly one field is set.
type HTTPFilter struct {
	Name  string
	RBAC  *RBAC
	Fault *Fault
	CORS  *CORS
	// MetadataExchange, Stats and GRPCStats mark the presence of Istio's filters.
	// ALPN (istio.alpn) makes HTTP to mesh peers offer istio-http/1.1 and istio.
	MetadataExchange, Stats, GRPCStats, ALPN bool
}

// RouteTable finds the virtual host for an authority.
type RouteTable struct {
	Name string
	// Hosts is every virtual host in order, for dumps.
	Hosts []*VirtualHost
	exact map[string]*VirtualHost
	// suffix ("*.example.com") and prefix ("example.*") wildcards, longest first.
	suffix, prefix []wildcard
	any            *VirtualHost
	// IgnorePort strips the port before matching.
	IgnorePort bool
	// Pending says that the control plane has not answered yet; the table is
	// empty until then, and the listener that names it waits (see Warmed).
	Pending bool
}

type wildcard struct {
	text string
	host *VirtualHost
}

// VirtualHost is a list of routes tried in order.
type VirtualHost struct {
	Name     string
	Domains  []string
	Routes   []*Route
	Request  HeaderOps
	Response HeaderOps
	Retry    *RetryPolicy
	// IncludeAttemptCount adds x-envoy-attempt-count to requests.
	IncludeAttemptCount bool
	// Origin is the object that owns the host: to blame when no route matches.
	Origin Origin
}

// Origin is a stable id of the object and field that a table entry came from,
// for example "VirtualService/go-app.default#spec.http[1]". The id does not
// change when lines move; origins resolve to file:line apart from it.
type Origin string

// Route is one route: what it matches and what happens then. Exactly one of
// Clusters, Redirect and Direct is set.
type Route struct {
	Name   string
	Match  RouteMatch
	Origin Origin
	// Config is Istio's metadata "istio"→"config", the path of the VirtualService.
	Config   string
	Clusters []WeightedCluster
	// TotalWeight is the sum of weights.
	TotalWeight uint32
	Redirect    *Redirect
	Direct      *DirectResponse

	PrefixRewrite string
	RegexRewrite  *RegexRewrite
	HostRewrite   string
	AutoHost      bool
	AppendXFH     bool

	Request  HeaderOps
	Response HeaderOps

	// Timeout bounds the whole exchange, 0 means none; IdleTimeout a silence.
	Timeout     time.Duration
	IdleTimeout time.Duration
	// GRPCTimeoutMax honours grpc-timeout up to this bound; nil ignores it, 0 means unbounded.
	GRPCTimeoutMax *time.Duration
	Retry          *RetryPolicy
	Hash           []HashPolicy
	Mirrors        []Mirror
	Fault          *Fault
	CORS           *CORS
	RBAC           map[string]*RBAC // per-route override by filter name
	Upgrades       map[string]bool
	// Decorator is the span operation, "host:port/*".
	Decorator           string
	ClusterNotFoundCode int // 503 unless the route says otherwise
}

// RouteMatch holds the criteria of a route, all of which must hold.
type RouteMatch struct {
	Path          PathMatch
	CaseSensitive bool
	Headers       []HeaderMatch // :method and :authority included
	Query         []QueryMatch
	GRPC          bool
	// RuntimePerMillion limits the match to a share of requests; 1e6 is all.
	RuntimePerMillion uint32
}

// PathKind tells how a path is matched.
type PathKind uint8

// The kinds of path match.
const (
	PathPrefix PathKind = iota
	PathExact
	PathRegex
	PathSeparatedPrefix
	PathTemplate
	PathConnect
)

// PathMatch matches the path without query.
type PathMatch struct {
	Kind  PathKind
	Text  string
	Regex *regexp.Regexp // anchored at both ends
	// Template is set for PathTemplate.
	Template *Template
}

// StringKind tells how a StringMatcher compares.
type StringKind uint8

// The kinds of string match.
const (
	StringExact StringKind = iota
	StringPrefix
	StringSuffix
	StringContains
	StringRegex
	StringPresent
)

// StringMatcher is Envoy's StringMatcher, compiled. Regexes are RE2 and match
// the whole value.
type StringMatcher struct {
	Kind       StringKind
	Text       string
	IgnoreCase bool
	Regex      *regexp.Regexp
	Invert     bool
}

// HeaderMatch matches one header. Several values of the same name are joined by
// "," first, as in Envoy.
type HeaderMatch struct {
	Name    string // lower case; pseudo names start with ":"
	Value   StringMatcher
	Invert  bool
	Present bool // the value is not looked at
	// TreatMissingAsEmpty lets an absent header match as "".
	TreatMissingAsEmpty bool
	Range               *[2]int64 // [start, end)
}

// QueryMatch matches one query parameter.
type QueryMatch struct {
	Name    string
	Value   StringMatcher
	Present bool
}

// WeightedCluster is one destination of a route.
type WeightedCluster struct {
	Cluster     string
	Weight      uint32
	Request     HeaderOps
	Response    HeaderOps
	HostRewrite string
}

// HeaderOps are header edits, applied in the order remove, set, add.
// Values may hold Envoy's command operators (%DOWNSTREAM_REMOTE_ADDRESS% …).
type HeaderOps struct {
	Remove []string
	Set    []HeaderValue
	Add    []HeaderValue
}

// HeaderValue is one header to set or add.
type HeaderValue struct{ Name, Value string }

// Redirect answers with a Location.
type Redirect struct {
	Scheme, Host  string
	Port          uint32
	Path          string
	PrefixRewrite string
	RegexRewrite  *RegexRewrite
	Code          int
	StripQuery    bool
}

// RegexRewrite rewrites the path by substitution.
type RegexRewrite struct {
	Regex        *regexp.Regexp
	Substitution string // RE2 style, \1 for groups
}

// DirectResponse answers locally.
type DirectResponse struct {
	Status int
	Body   []byte
}

// Mirror sends a copy of a share of requests to another cluster.
type Mirror struct {
	Cluster    string
	PerMillion uint32
}

// HashPolicy contributes to the hash for consistent balancing.
type HashPolicy struct {
	Header, Cookie, Query string
	CookiePath            string
	CookieTTL             *time.Duration
	SourceIP              bool
	Terminal              bool
}

// RetryOn is a set of retry conditions.
type RetryOn uint32

// The retry conditions, by Envoy's keywords.
const (
	RetryOn5xx RetryOn = 1 << iota
	RetryOnGatewayError
	RetryOnReset
	RetryOnResetBeforeRequest
	RetryOnConnectFailure
	RetryOnRefusedStream
	RetryOnRetriable4xx
	RetryOnRetriableStatusCodes
	RetryOnRetriableHeaders
	RetryOnEnvoyRateLimited
	RetryOnHTTP3PostConnectFailure
	RetryOnGRPCCancelled
	RetryOnGRPCDeadlineExceeded
	RetryOnGRPCInternal
	RetryOnGRPCResourceExhausted
	RetryOnGRPCUnavailable
)

// RetryPolicy says when and how often a request is tried again.
type RetryPolicy struct {
	On          RetryOn
	Retries     uint32
	StatusCodes []int
	// PerTryTimeout bounds one attempt; 0 means the route's timeout.
	PerTryTimeout, PerTryIdleTimeout time.Duration
	// BaseInterval and MaxInterval shape the jittered exponential back-off
	// (Envoy: 25 ms and 10 × base).
	BaseInterval, MaxInterval time.Duration
	// PreviousHosts avoids endpoints already tried; HostAttempts bounds the search.
	PreviousHosts bool
	HostAttempts  uint32
	Origin        Origin
}

// Fault injects a delay or an abort into a share of requests.
type Fault struct {
	Delay           time.Duration
	DelayPerMillion uint32
	AbortStatus     int
	AbortGRPCStatus int // -1 for none
	AbortPerMillion uint32
	Origin          Origin
}

// CORS is Envoy's CORS policy.
type CORS struct {
	AllowOrigins                              []StringMatcher
	AllowMethods, AllowHeaders, ExposeHeaders string
	MaxAge                                    string
	AllowCredentials                          bool
	ForwardNotMatchingPreflights              bool
}

// Tracing configures spans of a manager.
type Tracing struct {
	// Cluster is where OTLP goes; "" means the hub of the bootstrap.
	Cluster     string
	Authority   string
	HTTPPath    string // set for OTLP/HTTP
	ServiceName string
	// Percentages in 0…100; Overall caps.
	Client, Random, Overall float64
	Tags                    []CustomTag
	MaxTagLength            uint32
	// IgnoreRequestID draws at random instead of from x-request-id (Istio's
	// useRequestIdForTraceSampling: false).
	IgnoreRequestID bool
	// ClientSpan makes an outbound (client) span; false a server span.
	ClientSpan bool
	// Disabled reports nothing but still propagates context.
	Disabled bool
	Origin   Origin
}

// CustomTag is one extra span attribute; exactly one source is set.
type CustomTag struct {
	Tag                             string
	Literal                         string
	Environment, EnvironmentDefault string
	Header, HeaderDefault           string
	Format                          string
}

// StatsConfig is Istio's stats filter.
type StatsConfig struct {
	Reporter string // "source", "destination" or "waypoint"
}

// AccessLog is one access log of a listener or manager.
type AccessLog struct {
	// Path is a file ("/dev/stdout"); Cluster an OTLP logs service. One is set.
	Path    string
	Cluster string
	LogName string
	// Format is the text format, for OTLP the body; JSON the fields of a JSON
	// log, for OTLP the attributes.
	Format string
	JSON   map[string]string
	// OnlyFlags limits the log to exchanges with one of these response flags;
	// empty logs all.
	OnlyFlags []string
	Origin    Origin
}
