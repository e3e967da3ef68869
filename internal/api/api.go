// Package api is the control process's own interface: JSON over HTTP on a unix
// socket in the data directory. The supervisor of the local cluster uses it as
// a kubelet uses the API server (watch desired objects, write pods and
// endpoint slices, fetch bootstrap tokens); the command line and later the
// dashboard use the rest. It holds types, a client and the HTTP handler; what
// the answers are is decided by the Backend it is given.
package api

import (
	"encoding/json"
	"time"

	"lateen.dev/lateen/internal/finding"
)

// Event is one message of a watch: newline-delimited JSON. After the first
// full listing comes one Event of type Synced; from then on changes follow.
type Event struct {
	Type   EventType       `json:"type"`
	Object json.RawMessage `json:"object,omitempty"` // the object in Kubernetes' JSON form
	Key    ObjectKey       `json:"key"`
	// Source is the file:line the object came from, for messages.
	Source string `json:"source,omitempty"`
}

// EventType says what an Event means.
type EventType string

// The kinds of Event.
const (
	Put    EventType = "put"
	Delete EventType = "delete"
	Synced EventType = "synced"
)

// ObjectKey names an object on the wire.
type ObjectKey struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

// LocalState is what the supervisor writes: pods and endpoint slices in
// Kubernetes' JSON form. Replace makes Put the complete truth; it is sent first
// after every (re)connect.
type LocalState struct {
	Replace bool              `json:"replace,omitempty"`
	Put     []json.RawMessage `json:"put,omitempty"`
	Delete  []ObjectKey       `json:"delete,omitempty"`
}

// TokenRequest asks for a single-use bootstrap token bound to a pod.
type TokenRequest struct {
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
	Pod            string `json:"pod"`
}

// TokenResponse carries the token and what a proxy must trust and reach.
type TokenResponse struct {
	Token       string `json:"token"`
	RootsPEM    string `json:"rootsPEM"`
	TrustDomain string `json:"trustDomain"`
}

// ProxyStatus is the sync state of one connected proxy.
type ProxyStatus struct {
	ID      string    `json:"id"`   // pod.namespace
	Node    string    `json:"node"` // the whole xDS node id
	Role    string    `json:"role"`
	Since   time.Time `json:"since"`
	Version string    `json:"version,omitempty"`
	// Identity is the SVID's; empty for a client on the plaintext port.
	Identity string `json:"identity,omitempty"`
	// Revision is the newest configuration revision (Status.Revision) that the
	// proxy has acknowledged in full or that did not concern it.
	Revision uint64                `json:"revision"`
	Types    map[string]TypeStatus `json:"types"` // by short name: CDS EDS LDS RDS NDS
	// CertExpiry is the end of the SVID last signed for this proxy.
	CertExpiry time.Time `json:"certExpiry,omitzero"`
}

// TypeStatus is the sync state of one resource type.
type TypeStatus struct {
	State   string    `json:"state"` // synced, sent, refused, unwanted
	Since   time.Time `json:"since"`
	Version string    `json:"version,omitempty"`
	Error   string    `json:"error,omitempty"` // NACK reason
	Count   int       `json:"count"`
}

// Status is the summary that `lateen status` prints.
type Status struct {
	APIVersion  string            `json:"apiVersion"` // lateen.dev/v1alpha1
	Version     string            `json:"version"`
	TrustDomain string            `json:"trustDomain"`
	RootExpiry  time.Time         `json:"rootExpiry"`
	Objects     map[string]int    `json:"objects"` // count by kind
	Proxies     []ProxyStatus     `json:"proxies"`
	Findings    []finding.Finding `json:"findings"`
	// Revision counts accepted configuration changes, from 1.
	Revision uint64 `json:"revision"`
}

// ApplyResult is the outcome of apply and delete: what changed, what was
// refused and why. Nothing is half-applied: with an error finding, none is.
type ApplyResult struct {
	Changed  []ObjectKey       `json:"changed"`
	Findings []finding.Finding `json:"findings"`
}

// ObjectQuery selects objects; an empty field matches everything.
type ObjectQuery struct {
	Kind, Namespace, Name string
}

// ObjectItem is one object that is in force, with where it came from.
type ObjectItem struct {
	Key    ObjectKey `json:"key"`
	Source string    `json:"source,omitempty"` // file:line, "apply" or "local"
	// Object is the object in Kubernetes' JSON form.
	Object json.RawMessage `json:"object"`
}

// Applied is the request body of apply: manifests that are applied together or
// not at all.
type Applied struct {
	Manifests []Manifest `json:"manifests"`
	DryRun    bool       `json:"dryRun,omitempty"`
}

// Manifest holds YAML or JSON documents and the name that findings call them by.
type Manifest struct {
	Source string `json:"source"`
	Data   []byte `json:"data"`
}

// Deleted is the request body of delete.
type Deleted struct {
	Keys   []ObjectKey `json:"keys"`
	DryRun bool        `json:"dryRun,omitempty"`
}

// ProxyResources is what a proxy was last sent: short type name (CDS, EDS, LDS,
// RDS, SDS, NDS, ORIGIN) → resource name → protojson. Private keys are left out.
type ProxyResources map[string]map[string]json.RawMessage
