// Package probe asks a container whether it lives and is ready, with the meaning
// of Kubernetes' probes.
//
// HTTP and TCP probes are dialled from inside the pod's network namespace with
// the inbound mark: they reach the application itself, whatever the mesh
// demands of other callers.
package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"lateen.dev/lateen/internal/bootstrap"
	"lateen.dev/lateen/internal/local/manifest"
	"lateen.dev/lateen/internal/local/netns"
)

// Target is the container that is asked.
type Target struct {
	NetNS      int
	IP         netip.Addr
	Containers []manifest.Container
	// Exec runs a command in the container and returns its exit code.
	Exec func(ctx context.Context, command []string) (int, error)
}

// Dial opens a connection from inside the pod to one of its own addresses.
func Dial(ctx context.Context, nsfd int, addr string) (net.Conn, error) {
	var conn net.Conn
	err := netns.Do(nsfd, func() error {
		d := net.Dialer{Control: netns.MarkControl(bootstrap.InboundMark)}
		var err error
		// addr is numeric: the dialer opens the socket on this thread.
		conn, err = d.DialContext(ctx, "tcp", addr)
		return err
	})
	return conn, err
}

// Check makes one attempt. A nil error means success; ctx carries the timeout.
func Check(ctx context.Context, p *manifest.Probe, t Target) error {
	switch {
	case p.HTTPGet != nil:
		return HTTP(ctx, p.HTTPGet, t)
	case p.TCPSocket != nil:
		addr, err := t.address(p.TCPSocket.Host, p.TCPSocket.Port)
		if err != nil {
			return err
		}
		c, err := Dial(ctx, t.NetNS, addr)
		if err != nil {
			return err
		}
		return c.Close()
	case p.Exec != nil:
		code, err := t.Exec(ctx, p.Exec.Command)
		if err != nil {
			return err
		}
		if code != 0 {
			return fmt.Errorf("%s: exit code %d", strings.Join(p.Exec.Command, " "), code)
		}
		return nil
	}
	return errors.New("the probe has no handler that is supported here (httpGet, tcpSocket, exec)")
}

// Supported returns an error for a probe that Check cannot make.
func Supported(p *manifest.Probe) error {
	if p != nil && p.HTTPGet == nil && p.TCPSocket == nil && p.Exec == nil {
		return errors.New("only httpGet, tcpSocket and exec probes are supported on one machine")
	}
	return nil
}

func (t Target) address(host string, port manifest.IntOrString) (string, error) {
	n := port.Port(t.Containers)
	if n <= 0 || n > 65535 {
		return "", fmt.Errorf("no container port is named %q", port.Str)
	}
	if host == "" || host == "localhost" {
		host = t.IP.String()
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return "", fmt.Errorf("probe host %q: only an address or none is supported", host)
	}
	return net.JoinHostPort(host, strconv.Itoa(n)), nil
}

// HTTP makes an HTTP GET; a status from 200 to 399 is success. Redirects count as
// success and are not followed to other hosts.
func HTTP(ctx context.Context, g *manifest.HTTPGet, t Target) error {
	addr, err := t.address(g.Host, g.Port)
	if err != nil {
		return err
	}
	scheme := "http"
	if strings.EqualFold(g.Scheme, "https") {
		scheme = "https"
	}
	path := g.Path
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+addr+path, nil)
	if err != nil {
		return fmt.Errorf("probe %s: %w", path, err)
	}
	req.Header.Set("User-Agent", "kube-probe/lateen")
	for _, h := range g.HTTPHeaders {
		if strings.EqualFold(h.Name, "host") {
			req.Host = h.Value
			continue
		}
		req.Header.Set(h.Name, h.Value)
	}
	tr := &http.Transport{
		DisableKeepAlives: true, // a probe says whether the application accepts
		// Kubernetes does not verify the certificate of a probe either.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return Dial(ctx, t.NetNS, addr)
		},
	}
	defer tr.CloseIdleConnections()
	client := &http.Client{
		Transport: tr,
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if r.URL.Host != addr || len(via) > 9 {
				return http.ErrUseLastResponse
			}
			return nil
		},
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 10<<10)) // only the status counts
	if resp.StatusCode < 200 || resp.StatusCode > 399 {
		return fmt.Errorf("HTTP probe of %s answered %d", path, resp.StatusCode)
	}
	return nil
}

// fastInterval is how often a probe is repeated before its first success: an
// application that starts in 40 ms need not wait for the end of a period.
const fastInterval = 25 * time.Millisecond

// Run repeats a probe until ctx ends and calls set whenever the verdict changes:
// true after SuccessThreshold successes, false with the last error after
// FailureThreshold failures. The verdict before the first call is unknown.
func Run(ctx context.Context, p *manifest.Probe, t Target, set func(ok bool, err error)) {
	period := orSeconds(p.PeriodSeconds, 10)
	timeout := orSeconds(p.TimeoutSeconds, 1)
	needOK, needBad := max(p.SuccessThreshold, 1), p.FailureThreshold
	if needBad <= 0 {
		needBad = 3
	}
	if !sleep(ctx, time.Duration(p.InitialDelaySeconds)*time.Second) {
		return
	}
	start := time.Now()
	oks, bads, known, good := 0, 0, false, false
	for ctx.Err() == nil {
		err := once(ctx, p, t, timeout)
		if ctx.Err() != nil {
			return
		}
		// Before the first success, attempts within one period count as one.
		fast := !known && err != nil && time.Since(start) < period
		switch {
		case err == nil:
			oks, bads = oks+1, 0
			if oks >= needOK && (!known || !good) {
				known, good = true, true
				set(true, nil)
			}
		case !fast:
			oks, bads = 0, bads+1
			if bads >= needBad && (!known || good) {
				known, good = true, false
				set(false, err)
			}
		}
		wait := period
		if fast {
			wait = fastInterval
		}
		if !sleep(ctx, wait) {
			return
		}
	}
}

func once(ctx context.Context, p *manifest.Probe, t Target, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return Check(ctx, p, t)
}

func orSeconds(n, fallback int) time.Duration {
	if n <= 0 {
		n = fallback
	}
	return time.Duration(n) * time.Second
}

// sleep waits and says whether ctx still goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
