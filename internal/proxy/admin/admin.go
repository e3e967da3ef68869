// Package admin serves Envoy's admin interface for tools that were written for
// Envoy (istioctl, dashboards, probes): port 15000 on loopback, status on 15020,
// readiness on 15021 and Prometheus on 15090. It runs on ordinary goroutines and reads what
// it shows through the functions in Options; it never touches a loop, an xDS
// type or a private key.
//
// Calls that change something answer 400 to GET and change nothing (Envoy's
// rule). Because an application shares the loopback of its proxy, the TCP port
// gets a handler with ReadOnly set, and only a socket of the owner one without.
package admin

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
)

// State is the life-cycle state of the proxy, Envoy's names.
type State string

// The states of a proxy.
const (
	Live            State = "LIVE"
	Draining        State = "DRAINING"
	PreInitializing State = "PRE_INITIALIZING"
	Initializing    State = "INITIALIZING"
)

// number is the value of the statistic server.state.
func (s State) number() uint64 {
	switch s {
	case Live:
		return 0
	case Draining:
		return 1
	case PreInitializing:
		return 2
	}
	return 3
}

// Resource is one xDS resource as it was accepted, or refused.
type Resource struct {
	TypeURL, Name, Version string
	Updated                time.Time
	// Message is the accepted resource, nil if none was accepted yet.
	Message proto.Message
	// Error is the reason of the last refusal, "" when the last one was accepted.
	Error string
}

// Cluster is the live state of an upstream.
type Cluster struct {
	Name      string
	Limits    Limits
	Endpoints []Endpoint
}

// Limits are the circuit breakers of a cluster.
type Limits struct{ MaxConnections, MaxPending, MaxRequests, MaxRetries uint32 }

// Endpoint is the live state of one address.
type Endpoint struct {
	Address, Hostname, Region, Zone string
	Weight, Priority                uint32
	Healthy                         bool
	// FailedOutlier says that outlier detection has ejected it.
	FailedOutlier                                     bool
	ConnectionsActive, ConnectionsTotal, ConnectFails uint64
	RequestsActive, RequestsTotal                     uint64
	RequestsSuccess, RequestsError, RequestsTimeout   uint64
}

// Listener is one listening address.
type Listener struct {
	Name    string
	Address string // host:port
}

// Certificate is a chain in use, leaf first, or a set of roots.
type Certificate struct {
	Name  string
	Chain []*x509.Certificate
	Roots []*x509.Certificate
}

// Stat is one counter or gauge by Envoy's dotted name.
type Stat struct {
	Name  string
	Value uint64
	Gauge bool
}

// Options say what to show and what to do. A nil function shows nothing and,
// for an action, answers 501.
type Options struct {
	Version string
	NodeID  string
	Started time.Time
	// Bootstrap is marshalled as JSON; it must not hold secrets.
	Bootstrap    any
	State        func() State
	Resources    func() []Resource
	Clusters     func() []Cluster
	Listeners    func() []Listener
	Certificates func() []Certificate
	Stats        func() []Stat
	// Prometheus writes Istio's standard metrics.
	Prometheus func(ctx context.Context, w io.Writer) error

	// ReadOnly refuses every call that changes something with 403.
	ReadOnly       bool
	DrainListeners func(inboundOnly, graceful bool)
	Quit           func()
	FailHealth     func(fail bool)
	ResetCounters  func()
	Level          *slog.LevelVar
}

type server struct{ o Options }

// Handler serves the admin interface.
func Handler(o Options) http.Handler {
	s := &server{o}
	m := http.NewServeMux()
	read := func(path string, f http.HandlerFunc) { m.HandleFunc(path, f) }
	read("/config_dump", s.configDump)
	read("/clusters", s.clusters)
	read("/listeners", s.listeners)
	read("/stats", s.stats)
	read("/stats/prometheus", s.prometheus)
	read("/ready", s.ready)
	read("/server_info", s.serverInfo)
	read("/certs", s.certs)
	read("/memory", s.memory)
	s.change(m, "/logging", s.logging)
	s.change(m, "/drain_listeners", s.drain)
	s.change(m, "/quitquitquit", s.quit)
	s.change(m, "/healthcheck/fail", s.health(true))
	s.change(m, "/healthcheck/ok", s.health(false))
	s.change(m, "/reset_counters", s.reset)
	read("/{$}", s.help)
	read("/help", s.help)
	return m
}

// change registers a call that changes something.
func (s *server) change(m *http.ServeMux, path string, f http.HandlerFunc) {
	m.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method != http.MethodPost:
			http.Error(w, "Invalid request: "+path+" changes the proxy and must be called with POST", http.StatusBadRequest)
		case s.o.ReadOnly:
			http.Error(w, path+" is not available on this port: the application shares it", http.StatusForbidden)
		default:
			f(w, r)
		}
	})
}

// Readiness serves port 15021.
func Readiness(ready func() error) http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("/healthz/ready", func(w http.ResponseWriter, _ *http.Request) {
		if err := ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	return m
}

// Status serves port 15020, Istio's agent: readiness, metrics and, where
// appHealth is given, the application's probes, which the kubelet cannot make
// itself where mTLS is STRICT. Nothing here changes anything.
func Status(o Options, ready func() error, appHealth http.Handler) http.Handler {
	m := http.NewServeMux()
	m.Handle("/healthz/ready", Readiness(ready))
	m.HandleFunc("/stats/prometheus", (&server{o}).prometheus)
	if appHealth != nil {
		m.Handle("/app-health/", appHealth)
	}
	return m
}

// Prometheus serves port 15090.
func Prometheus(o Options) http.Handler {
	s := &server{o}
	m := http.NewServeMux()
	m.HandleFunc("/stats/prometheus", s.prometheus)
	return m
}

// Serve runs h on an http.Server with the timeouts that an admin port needs.
func Serve(h http.Handler) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
}

func (s *server) state() State {
	if s.o.State == nil {
		return Initializing
	}
	return s.o.State()
}

func (s *server) ready(w http.ResponseWriter, _ *http.Request) {
	st := s.state()
	if st != Live {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	fmt.Fprintln(w, st)
}

func (s *server) serverInfo(w http.ResponseWriter, _ *http.Request) {
	up := fmt.Sprintf("%ds", int(time.Since(s.o.Started).Seconds()))
	writeJSON(w, map[string]any{
		"version": "lateen/" + s.o.Version, "state": s.state(), "uptime_current_epoch": up, "uptime_all_epochs": up,
		"hot_restart_version": "disabled", "node": map[string]any{"id": s.o.NodeID},
	})
}

func (s *server) logging(w http.ResponseWriter, r *http.Request) {
	if s.o.Level == nil {
		http.Error(w, "the log level cannot be changed", http.StatusNotImplemented)
		return
	}
	q := r.URL.Query()
	for k, v := range q {
		if k != "level" || len(v) != 1 {
			http.Error(w, fmt.Sprintf("%q: there is one logger; use level=debug|info|warn|error", k), http.StatusBadRequest)
			return
		}
		level, ok := map[string]slog.Level{
			"trace": slog.LevelDebug, "debug": slog.LevelDebug, "info": slog.LevelInfo, "warning": slog.LevelWarn,
			"warn": slog.LevelWarn, "error": slog.LevelError, "critical": slog.LevelError, "off": slog.LevelError + 4,
		}[v[0]]
		if !ok {
			http.Error(w, fmt.Sprintf("level %q is unknown", v[0]), http.StatusBadRequest)
			return
		}
		s.o.Level.Set(level)
	}
	fmt.Fprintf(w, "active loggers:\n  lateen: %s\n", strings.ToLower(s.o.Level.Level().String()))
}

func (s *server) drain(w http.ResponseWriter, r *http.Request) {
	if s.o.DrainListeners == nil {
		http.Error(w, "listeners cannot be drained", http.StatusNotImplemented)
		return
	}
	q := r.URL.Query()
	s.o.DrainListeners(q.Has("inboundonly"), q.Has("graceful"))
	fmt.Fprintln(w, "OK")
}

func (s *server) quit(w http.ResponseWriter, _ *http.Request) {
	if s.o.Quit == nil {
		http.Error(w, "the proxy cannot be stopped from here", http.StatusNotImplemented)
		return
	}
	fmt.Fprintln(w, "OK")
	go s.o.Quit() // after the answer has left
}

func (s *server) health(fail bool) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if s.o.FailHealth == nil {
			http.Error(w, "health cannot be changed", http.StatusNotImplemented)
			return
		}
		s.o.FailHealth(fail)
		fmt.Fprintln(w, "OK")
	}
}

func (s *server) reset(w http.ResponseWriter, _ *http.Request) {
	if s.o.ResetCounters == nil {
		http.Error(w, "counters cannot be reset", http.StatusNotImplemented)
		return
	}
	s.o.ResetCounters()
	fmt.Fprintln(w, "OK")
}

func (s *server) help(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprint(w, `admin commands are:
  /certs: print certificates, without keys
  /clusters: upstream cluster status (format=json)
  /config_dump: dump the accepted configuration (include_eds, resource, name_regex)
  /drain_listeners (POST): drain listeners (inboundonly, graceful)
  /healthcheck/fail (POST): cause the server to fail health checks
  /healthcheck/ok (POST): cause the server to pass health checks
  /help: print this
  /listeners: print listener info (format=json)
  /logging (POST): change the log level (level)
  /memory: print memory use
  /quitquitquit (POST): exit
  /ready: print server state, 200 if LIVE
  /reset_counters (POST): reset counters
  /server_info: print version and state
  /stats: print statistics (usedonly, filter, format=text|json|prometheus)
  /stats/prometheus: print statistics in Prometheus format
`)
}

func writeJSON(w http.ResponseWriter, v any) {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		http.Error(w, "encode answer: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(append(b, '\n'))
}
