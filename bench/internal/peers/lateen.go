//go:build linux

package peers

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"lateen.dev/lateen/internal/api"
	"lateen.dev/lateen/internal/bootstrap"
	"lateen.dev/lateen/internal/local/pod"
	"lateen.dev/lateen/internal/proxy/secret"
	"lateen.dev/lateen/internal/spiffe"
)

// startMeshProxies starts a lateen-proxy or an Envoy with its agent in each of
// the candidate's pods. They differ in the program alone.
func (s *Set) startMeshProxies(ctx context.Context, p *Peer) error {
	program := s.o.Programs.Lateen
	if other, ok := s.o.Programs.Others[p.Name]; ok {
		program = other
	}
	var args []string
	switch {
	case p.envoy:
		// As nginx, Envoy writes its access log once a second.
		program, args = s.o.Programs.EnvoyAgent, []string{"-log-flush", "1s"}
	case s.o.Programs.Profile != "":
		args = []string{"-cpuprofile", s.o.Programs.Profile}
	}
	for i := len(p.pods) - 1; i >= 0; i-- {
		role := role{name: fmt.Sprintf("server-%d", p.index), account: "server", namespace: "bench", kind: bootstrap.Sidecar}
		switch {
		case s.o.Shape.Kind == Gateway:
			role.name, role.account, role.namespace, role.kind = "bench-"+strconv.Itoa(p.index), "bench", "istio-system", bootstrap.Router
		case len(p.pods) == 2 && i == 0:
			role.name, role.account = fmt.Sprintf("client-%d", p.index), "client"
			if s.o.Programs.Profile != "" && !p.envoy {
				args = []string{"-cpuprofile", s.o.Programs.Profile + ".client"}
			}
		}
		x, err := s.startMeshProxy(ctx, p, p.pods[i], role, program, args)
		if err != nil {
			return err
		}
		p.procs = append(p.procs, x)
	}
	return nil
}

type role struct {
	name, account, namespace string
	kind                     bootstrap.Role
}

func (s *Set) startMeshProxy(ctx context.Context, p *Peer, in *Pod, r role, program string, args []string) (*process, error) {
	token, err := s.plane.client.Token(ctx, api.TokenRequest{Namespace: r.namespace, ServiceAccount: r.account, Pod: r.name})
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(p.dir, r.name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	const bootFD, tokenFD = 3, 4
	b := bootstrap.Bootstrap{
		Role: r.kind, Capture: bootstrap.CaptureMark, IPs: []netip.Addr{in.IP},
		Control:  bootstrap.Control{Address: s.plane.address, RootsPEM: token.RootsPEM},
		Identity: bootstrap.Identity{TrustDomain: token.TrustDomain, Namespace: r.namespace, ServiceAccount: r.account, TokenFD: tokenFD},
		Node:     r.node(in.IP, token.TrustDomain), Concurrency: 1, StateDir: dir, LogLevel: "warn",
	}
	if r.kind == bootstrap.Router {
		b.Capture = bootstrap.CaptureNone
	}
	bootFile, err := p.writeJSON(r.name+".json", b)
	if err != nil {
		return nil, err
	}
	tokenFile, err := p.write(r.name+".token", []byte(token.Token))
	if err != nil {
		return nil, err
	}
	var extra []*os.File
	for _, name := range []string{bootFile, tokenFile} {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }()
		extra = append(extra, f)
	}
	return in.start(dir, extra, program, append([]string{"-bootstrap-fd", strconv.Itoa(bootFD)}, args...)...)
}

// node is the xDS node, as the local cluster writes it.
func (r role) node(ip netip.Addr, meshID string) bootstrap.Node {
	labels, capture := map[string]string{"app": r.name, "security.istio.io/tlsMode": "istio"}, bootstrap.CaptureMark
	if r.kind == bootstrap.Router {
		labels, capture = map[string]string{"istio": "bench"}, bootstrap.CaptureNone
	}
	return bootstrap.Node{
		ID:      fmt.Sprintf("%s~%s~%s.%s~%s.svc.cluster.local", r.kind, ip, r.name, r.namespace, r.namespace),
		Cluster: r.name + "." + r.namespace,
		Metadata: map[string]any{
			"NAME": r.name, "NAMESPACE": r.namespace, "SERVICE_ACCOUNT": r.account, "CLUSTER_ID": "bench", "MESH_ID": meshID,
			"LABELS": labels, "INSTANCE_IPS": ip.String(), "WORKLOAD_NAME": r.name,
			"ISTIO_VERSION": pod.IstioVersion, "INTERCEPTION_MODE": "REDIRECT",
			"LATEEN_CAPS": pod.Capabilities(), "LATEEN_CAPTURE": string(capture),
		},
	}
}

// clientTLS is what a client of the candidate's server must show and expects:
// an identity of the mesh, or of the authority that nginx and HAProxy trust.
func (s *Set) clientTLS(ctx context.Context, p *Peer, ca *authority) (*tls.Config, error) {
	if !p.meshy {
		return ca.client()
	}
	token, err := s.plane.client.Token(ctx, api.TokenRequest{Namespace: "bench", ServiceAccount: "client", Pod: "client"})
	if err != nil {
		return nil, err
	}
	id, err := spiffe.New(token.TrustDomain, "bench", "client")
	if err != nil {
		return nil, err
	}
	store, err := secret.Open(secret.Options{
		ID: id, RootsPEM: token.RootsPEM, Address: s.plane.address, Log: slog.New(slog.DiscardHandler),
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		},
		Token: func() (string, error) { return token.Token, nil },
	})
	if err != nil {
		return nil, err
	}
	run, stop := context.WithTimeout(ctx, 20*time.Second)
	defer stop()
	go func() { _ = store.Run(run) }() // ends with run; what counts is the certificate
	for !store.Has(secret.Default) {
		select {
		case <-run.Done():
			return nil, errors.New("no certificate for the client")
		case <-store.Changed():
		}
	}
	cert, err := store.Certificate()
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(store.RootsPEM()))
	c := verified(*cert, roots)
	c.NextProtos = []string{"istio-http/1.1", "istio"}
	c.ServerName = "outbound_." + strconv.Itoa(servicePort) + "_._." + strings.TrimSuffix(p.Host, ":"+strconv.Itoa(servicePort))
	return c, nil
}

// verified is a client configuration that checks the server's chain and no
// name: identities of a mesh are no host names.
func verified(cert tls.Certificate, roots *x509.CertPool) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13,
		InsecureSkipVerify: true, // replaced by the next line
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots})
			return err
		},
	}
}

// readiness asks the readiness port of a sidecar.
func readiness(ip netip.Addr) error {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + netip.AddrPortFrom(ip, bootstrap.ReadyPort).String() + "/healthz/ready")
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("not ready: %s %s", resp.Status, text)
	}
	return nil
}

func children(pid int) []int {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	var out []int
	for _, t := range tasks {
		data, _ := os.ReadFile(t) // the thread may have ended
		for f := range strings.FieldsSeq(string(data)) {
			if n, err := strconv.Atoi(f); err == nil {
				out = append(out, n)
			}
		}
	}
	return out
}
