// Package local runs this machine as a cluster, without root, Docker or
// Kubernetes. Up is the parent process: it owns the terminal and the sockets on
// the host, starts the node in namespaces of its own, and dials for it what lies
// outside. Client talks to a node that runs.
//
//	lateen up ── parent: host listeners, egress broker, data directory
//	   └─ node (PID 1 of new namespaces): supervisor, name server, forwarder
//	        ├─ control process
//	        └─ per pod: proxy, containers
//
// Everything hangs on two ropes: the node dies with the thread that forked it,
// and at the end of its control socket. Then the kernel ends every process,
// interface, rule and mount with the node's namespaces.
package local

import (
	"errors"
	"log/slog"

	"lateen.dev/lateen/internal/local/report"
)

// Options configure Up.
type Options struct {
	// DataDir holds everything Lateen keeps; it is made with mode 0700.
	DataDir string
	// Images map images to programs, IMAGE=PROGRAM on the command line. Relative
	// paths start at the working directory.
	Images map[string]string
	// ProxyProgram is the path of lateen-proxy.
	ProxyProgram string
	// NodeProgram plays the hidden roles; empty means the running program. The
	// smaller it is, the faster a container starts.
	NodeProgram string
	// SelfProgram stands for well-known images such as the OpenTelemetry
	// Collector, called with the argument "collector"; empty means the running
	// program.
	SelfProgram string
	// Control is the argument vector of the control process, a path first. It
	// finds its sockets by package inherit.
	Control []string
	// ControlEnv is added to its environment.
	ControlEnv []string
	// OTLPGRPCPort and OTLPHTTPPort are opened on the host's loopback, or the next
	// free ones; 0 means 4317 and 4318, and -1 none.
	OTLPGRPCPort, OTLPHTTPPort int
	// Progress is told what starts and where, from one goroutine at a time; nil
	// means nobody.
	Progress func(Event)
	// LogLevel is debug, info, warn or error, for node and proxies.
	LogLevel string
	Log      *slog.Logger
}

// Event is one thing that happened: a pod, a service or the whole.
type Event = report.Event

// PodStatus is the state of a pod.
type PodStatus = report.Pod

// ContainerStatus is the state of a container or of a proxy.
type ContainerStatus = report.Container

// ProxyContainer is the name of the proxy among a pod's containers.
const ProxyContainer = report.ProxyContainer

// Info describes the node.
type Info = report.Info

// ErrNotRunning means that no cluster runs in the data directory.
var ErrNotRunning = errors.New("no cluster runs here")
