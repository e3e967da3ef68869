// Package report is what the local cluster tells people about itself: pods,
// containers, the node, and what happened. It is data only, and builds on every
// platform, so that the command line does too.
package report

import (
	"net/netip"
	"time"
)

// Mode says which proxy a pod has.
type Mode string

// The modes: no proxy, a proxy beside the application, or the proxy alone.
const (
	Bare    Mode = "none"
	Sidecar Mode = "sidecar"
	Gateway Mode = "gateway"
)

// Pod is a snapshot of a pod for people and for the control plane.
type Pod struct {
	Namespace  string            `json:"namespace"`
	Name       string            `json:"name"`
	UID        string            `json:"uid"`
	Phase      string            `json:"phase"`
	Ready      bool              `json:"ready"`
	Stopping   bool              `json:"stopping,omitempty"`
	Mode       Mode              `json:"mode"`
	IPs        []netip.Addr      `json:"ips,omitempty"`
	Containers []Container       `json:"containers"`
	Notes      []string          `json:"notes,omitempty"`
	Message    string            `json:"message,omitempty"`
	Started    time.Time         `json:"started"`
	OwnerKind  string            `json:"ownerKind,omitempty"`
	OwnerName  string            `json:"ownerName,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
}

// Container is the state of one container, or of the proxy, whose name is
// "istio-proxy".
type Container struct {
	Name     string   `json:"name"`
	Image    string   `json:"image,omitempty"`
	State    string   `json:"state"` // waiting, running, ended
	Ready    bool     `json:"ready"`
	Restarts int      `json:"restarts"`
	Reason   string   `json:"reason,omitempty"`
	ExitCode int      `json:"exitCode,omitempty"`
	PID      int      `json:"pid,omitempty"`
	Ports    []string `json:"ports,omitempty"`
	Log      string   `json:"log"`
}

// ProxyContainer is the name of the proxy among the containers, as in Istio.
const ProxyContainer = "istio-proxy"

// Info describes the node.
type Info struct {
	ControlPID      int    `json:"controlPID"`
	ControlRestarts int    `json:"controlRestarts"`
	ControlLog      string `json:"controlLog"`
	Pods            int    `json:"pods"`
	Ready           int    `json:"ready"`
}

// Event is one thing that happened.
type Event struct {
	Kind      string `json:"kind"` // pod, service, deployment, ready
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	Message   string `json:"message"`
	Error     bool   `json:"error,omitempty"`
}
