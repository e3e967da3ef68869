//go:build linux

package conformance

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"lateen.dev/lateen/internal/bootstrap"
)

// proxy is a running lateen-proxy.
type proxy struct {
	node  string
	ready string
	cmd   *exec.Cmd
	ended chan struct{}
}

// launch starts lateen-proxy below a control plane. It need not be ready yet.
func launch(t *testing.T, p *plane, role bootstrap.Role, account string, edit ...func(*bootstrap.Bootstrap)) *proxy {
	t.Helper()
	program, dir := need(t, proxyProgram), t.TempDir()
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte("spiffe://cluster.local/ns/default/sa/"+account), 0o600); err != nil {
		t.Fatal(err)
	}
	ready := freePort(t)
	b := &bootstrap.Bootstrap{
		Role: role, Capture: bootstrap.CaptureNone, IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
		Node: bootstrap.Node{
			ID:      string(role) + "~127.0.0.1~" + account + ".default~default.svc.cluster.local",
			Cluster: account + ".default", Metadata: map[string]any{"NAMESPACE": "default"},
		},
		Control:     bootstrap.Control{Address: p.address, RootsPEM: p.ca.PEM},
		Identity:    bootstrap.Identity{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: account, TokenFile: token},
		Concurrency: 1, DrainSeconds: 1,
		Ports: &bootstrap.Ports{Admin: -1, Ready: int(ready.Port()), Prometheus: -1, DNS: -1, Status: -1},
	}
	for _, f := range edit {
		f(b)
	}
	data, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "bootstrap.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	x := &proxy{node: b.Node.ID, ready: fmt.Sprintf("http://%v/healthz/ready", ready), ended: make(chan struct{})}
	x.cmd = exec.Command(program, "--bootstrap", file)
	x.cmd.Stdout, x.cmd.Stderr = t.Output(), t.Output()
	if err := x.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = x.cmd.Wait() // the cleanup looks at its state
		close(x.ended)
	}()
	t.Cleanup(func() { x.stop(t) })
	return x
}

// stop ends the proxy in order; one that has ended before is a failure.
func (x *proxy) stop(t *testing.T) {
	select {
	case <-x.ended:
		t.Errorf("%s had ended: %v", x.node, x.cmd.ProcessState)
		return
	default:
	}
	_ = x.cmd.Process.Signal(syscall.SIGTERM) // it may have ended just now
	select {
	case <-x.ended:
	case <-time.After(10 * time.Second):
		_ = x.cmd.Process.Kill()
		<-x.ended
		t.Errorf("%s did not end within 10 s of SIGTERM", x.node)
	}
}

// await waits until the proxy says that it is ready.
func (x *proxy) await(t *testing.T) {
	t.Helper()
	wait(t, "readiness of "+x.node, func() error { return status(x.ready, 200) })
}

// status makes a request on a connection of its own and checks its answer's status.
func status(url string, want int) error {
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != want {
		return fmt.Errorf("%s answered %d, want %d", url, resp.StatusCode, want)
	}
	return nil
}

func wait(t testing.TB, what string, ok func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		err := ok()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func freePort(t testing.TB) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}

// serverCertificate is a gateway's credential for localhost.
func (p *plane) serverCertificate(t testing.TB) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := p.ca.Issue(key.Public(), func(c *x509.Certificate) {
		c.DNSNames, c.IPAddresses = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}
	})
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
}
