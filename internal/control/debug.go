package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"lateen.dev/lateen/internal/api"
)

// serveDebug answers on port 15014: metrics, and the pages that people who
// know istiod look for. It is plaintext and shows the whole mesh, so requests
// must come from and be meant for loopback.
func (c *controller) serveDebug(ctx context.Context, l net.Listener) error {
	b := &backend{c: c}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		v := c.current.Load()
		if v == nil {
			http.Error(w, "no configuration yet", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintf(w, "revision %d\n", v.Revision)
	})
	mux.HandleFunc("GET /debug/syncz", func(w http.ResponseWriter, r *http.Request) {
		v, err := b.Proxies(r.Context())
		writeJSON(w, v, err)
	})
	mux.HandleFunc("GET /debug/config_dump", func(w http.ResponseWriter, r *http.Request) {
		v, err := b.ProxyResources(r.Context(), r.URL.Query().Get("proxyID"))
		writeJSON(w, v, err)
	})
	mux.HandleFunc("GET /debug/endpointz", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, c.endpoints(), nil) })
	mux.HandleFunc("GET /metrics", c.metrics)
	srv := &http.Server{
		Handler: loopbackOnly(mux), ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(c.log.Handler(), slog.LevelWarn),
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); ctx.Err() == nil {
		return err
	}
	return nil
}

// loopbackOnly refuses strangers, and web pages that had a browser resolve
// their own name to loopback.
func loopbackOnly(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, err := netip.ParseAddrPort(r.RemoteAddr)
		host, _, splitErr := net.SplitHostPort(r.Host)
		if splitErr != nil {
			host = r.Host
		}
		ip, ipErr := netip.ParseAddr(host)
		local := host == "localhost" || ipErr == nil && ip.IsLoopback()
		if err != nil || !peer.Addr().Unmap().IsLoopback() || !local || r.Header.Get("Origin") != "" {
			http.Error(w, "only for this process's own loopback", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

func writeJSON(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		code, text := http.StatusInternalServerError, "the page could not be made"
		var e *api.Error
		if errors.As(err, &e) && e.Code == api.CodeNotFound {
			code, text = http.StatusNotFound, e.Error()
		}
		w.WriteHeader(code)
		v = map[string]string{"error": text}
	}
	_ = json.NewEncoder(w).Encode(v) // the only error left is a reader who has gone
}

// endpointz is one service with its endpoints.
type endpointz struct {
	Host      string   `json:"host"`
	Namespace string   `json:"namespace"`
	Addresses []string `json:"addresses,omitempty"`
	Endpoints []string `json:"endpoints"`
}

func (c *controller) endpoints() []endpointz {
	m := c.current.Load().Mesh
	out := []endpointz{}
	for _, s := range m.Services() {
		e := endpointz{Host: s.Host, Namespace: s.Namespace, Endpoints: []string{}}
		for _, ip := range s.VIPs {
			e.Addresses = append(e.Addresses, ip.String())
		}
		for _, ep := range m.Endpoints(s) {
			e.Endpoints = append(e.Endpoints, fmt.Sprintf("%d -> %s", ep.ServicePort, net.JoinHostPort(ep.Address, fmt.Sprint(ep.Port))))
		}
		out = append(out, e)
	}
	return out
}

// metrics writes the counters of the control plane in Prometheus's text form.
func (c *controller) metrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	v, s := c.current.Load(), c.ca.Stats()
	line := func(kind, name, help string, value any) {
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n%s %v\n", name, help, name, kind, name, value)
	}
	line("gauge", "lateen_control_revision", "Revision of the configuration in force.", v.Revision)
	line("gauge", "lateen_control_objects", "Configured objects in force.", len(v.Objects))
	line("gauge", "lateen_control_findings", "Findings about the configuration.", len(v.Findings))
	line("gauge", "lateen_control_proxies", "Connected proxies.", len(c.ads.Status()))
	line("counter", "lateen_ca_issued_total", "First certificates signed.", s.Issued)
	line("counter", "lateen_ca_renewed_total", "Certificates renewed.", s.Renewed)
	line("counter", "lateen_ca_refused_tokens_total", "Bootstrap tokens refused.", s.RefusedTokens)
	line("counter", "lateen_ca_refused_callers_total", "Callers without a usable credential.", s.RefusedCallers)
	line("counter", "lateen_ca_refused_requests_total", "Certificate requests refused.", s.RefusedRequests)
	line("gauge", "lateen_ca_root_expiry_seconds", "End of the root certificate, in seconds since 1970.", c.ca.RootExpiry().Unix())
}
