package agent

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/bootstrap"
)

// appHealth makes the application's probes for whoever asks by
// /app-health/CONTAINER/KIND. It dials with the inbound mark: the application
// itself must answer, whatever the mesh asks of other callers.
type appHealth struct {
	probes map[string]bootstrap.AppProbe
	ip     netip.Addr
	marked bool
}

func newAppHealth(b *bootstrap.Bootstrap) http.Handler {
	if len(b.AppProbes) == 0 || len(b.IPs) == 0 {
		return nil
	}
	return &appHealth{probes: b.AppProbes, ip: b.IPs[0], marked: b.Capture == bootstrap.CaptureMark}
}

// ServeHTTP answers with the application's status, 500 when it cannot be had
// (Istio: pilot-agent's app-health).
func (a *appHealth) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p, ok := a.probes[strings.TrimPrefix(r.URL.Path, "/app-health/")]
	if !ok {
		http.Error(w, "no such probe: want /app-health/CONTAINER/livez, readyz or startupz", http.StatusNotFound)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), time.Duration(max(1, p.TimeoutSeconds))*time.Second)
	defer cancel()
	status, err := a.check(ctx, p)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.WriteHeader(status)
}

func (a *appHealth) check(ctx context.Context, p bootstrap.AppProbe) (int, error) {
	addr := net.JoinHostPort(a.ip.String(), strconv.Itoa(p.Port))
	if p.Path == "" {
		c, err := a.dial(ctx, "tcp", addr)
		if err != nil {
			return 0, err
		}
		return http.StatusOK, c.Close()
	}
	scheme := "http"
	if p.TLS {
		scheme = "https"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+addr+p.Path, nil)
	if err != nil {
		return 0, fmt.Errorf("probe %s: %w", p.Path, err)
	}
	for k, v := range p.Headers {
		req.Header.Set(k, v)
	}
	req.Host = p.Host
	tr := &http.Transport{
		DisableKeepAlives: true, DialContext: a.dial,
		// Kubernetes does not verify the certificate of a probe either.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 10<<10)) // only the status counts
	return resp.StatusCode, nil
}

func (a *appHealth) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	if a.marked {
		d.Control = func(_, _ string, c syscall.RawConn) error {
			var inner error
			err := c.Control(func(fd uintptr) {
				inner = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, bootstrap.InboundMark)
			})
			if inner != nil {
				return fmt.Errorf("mark the socket of a probe: %w", inner)
			}
			return err
		}
	}
	return d.DialContext(ctx, network, addr)
}
