package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"lateen.dev/lateen/internal/api"
	"lateen.dev/lateen/internal/bootstrap"
	"lateen.dev/lateen/internal/control"
)

// hosts is the number of virtual hosts the gateway carries.
const hosts = 200

// manifests is the mesh: a gateway on port, hosts VirtualServices with a
// timeout, one destination that is the backend, tracing of one request in a
// hundred and the same access log as nginx's.
func manifests(port uint16, backend netip.AddrPort) string {
	var b strings.Builder
	fmt.Fprintf(&b, `apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    accessLogFile: /dev/stdout
    accessLogFormat: |
      %%START_TIME%% "%%REQ(:METHOD)%% %%REQ(:PATH)%% %%PROTOCOL%%" %%RESPONSE_CODE%% %%BYTES_SENT%% %%DURATION%% "%%REQ(USER-AGENT)%%" "%%REQ(X-REQUEST-ID)%%" "%%REQ(:AUTHORITY)%%" "%%UPSTREAM_HOST%%"
    extensionProviders:
    - name: otel
      opentelemetry: {service: otel.bench.test, port: 4317}
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: mesh, namespace: istio-system}
spec:
  tracing:
  - providers: [{name: otel}]
    randomSamplingPercentage: 1
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: bench, namespace: istio-system}
spec:
  selector: {istio: bench}
  servers:
  - port: {number: %d, name: http, protocol: HTTP}
    hosts: ["*"]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: backend, namespace: istio-system}
spec:
  hosts: [backend.bench.test]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 8080, name: http, protocol: HTTP, targetPort: %d}]
  endpoints: [{address: %s}]
`, port, backend.Port(), backend.Addr())
	for i := range hosts {
		fmt.Fprintf(&b, `---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: svc-%[1]d, namespace: istio-system}
spec:
  hosts: [svc-%[1]d.bench.test]
  gateways: [bench]
  http:
  - match: [{uri: {prefix: /api/}}]
    timeout: 15s
    route: [{destination: {host: backend.bench.test, port: {number: 8080}}}]
`, i)
	}
	return b.String()
}

// startLateen runs a control plane in this process and lateen-proxy as its
// gateway in front of backend.
func startLateen(ctx context.Context, dir, program, profile string, backend netip.AddrPort) (c candidate, stop func(), err error) {
	port, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return c, nil, err
	}
	defer func() { _ = port.Close() }()
	addr := port.Addr().(*net.TCPAddr).AddrPort()
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		if err != nil {
			cancel()
		}
	}()
	control, socket, failed, err := startControl(ctx, dir, manifests(addr.Port(), backend))
	if err != nil {
		return c, nil, err
	}
	client := api.NewClient(socket)
	defer client.Close()
	token, err := client.Token(ctx, api.TokenRequest{Namespace: "istio-system", ServiceAccount: "bench", Pod: "bench"})
	if err != nil {
		return c, nil, err
	}
	cmd, err := startProxy(dir, program, profile, control, token, port.(*net.TCPListener))
	if err != nil {
		return c, nil, err
	}
	stop = func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait(); cancel(); <-failed }
	if err := awaitOK(addr, 20*time.Second); err != nil {
		text, _ := os.ReadFile(filepath.Join(dir, "proxy.log"))
		stop()
		return c, nil, fmt.Errorf("%w; the proxy said:\n%s", err, text)
	}
	if err := pin(cmd.Process.Pid, proxyCPU); err != nil {
		stop()
		return c, nil, err
	}
	return candidate{name: "lateen", addr: addr, pids: []int{cmd.Process.Pid}}, stop, nil
}

func startControl(ctx context.Context, dir, yaml string) (address, socket string, ended <-chan error, err error) {
	data := filepath.Join(dir, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return "", "", nil, err
	}
	file := filepath.Join(dir, "mesh.yaml")
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		return "", "", nil, err
	}
	xds, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", nil, err
	}
	socket = filepath.Join(dir, "api.sock")
	listener, err := api.Listen(socket)
	if err != nil {
		return "", "", nil, err
	}
	done := make(chan error, 1)
	go func() {
		done <- control.Run(ctx, control.Options{
			DataDir: data, Paths: []string{file}, XDS: xds, API: listener, ClusterID: "bench",
			ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.78.0.0/16")},
			Log:          slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		})
	}()
	return xds.Addr().String(), socket, done, nil
}

// startProxy runs lateen-proxy with one loop; its access log goes to a file.
func startProxy(dir, program, profile, control string, token api.TokenResponse, port *net.TCPListener) (*exec.Cmd, error) {
	socket, err := port.File()
	if err != nil {
		return nil, err
	}
	defer func() { _ = socket.Close() }()
	tokenFile, bootFile := filepath.Join(dir, "token"), filepath.Join(dir, "bootstrap.json")
	off := &bootstrap.Ports{Admin: -1, Status: -1, Ready: -1, Prometheus: -1, DNS: -1}
	b, err := json.Marshal(bootstrap.Bootstrap{
		Role: bootstrap.Router, Capture: bootstrap.CaptureNone, IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
		Control:  bootstrap.Control{Address: control, RootsPEM: token.RootsPEM},
		Identity: bootstrap.Identity{TrustDomain: token.TrustDomain, Namespace: "istio-system", ServiceAccount: "bench", TokenFile: tokenFile},
		Node: bootstrap.Node{
			ID: "router~127.0.0.1~bench.istio-system~istio-system.svc.cluster.local", Cluster: "bench.istio-system",
			Metadata: map[string]any{
				"NAME": "bench", "NAMESPACE": "istio-system", "SERVICE_ACCOUNT": "bench", "CLUSTER_ID": "bench",
				"LABELS": map[string]string{"istio": "bench"}, "INSTANCE_IPS": "127.0.0.1", "ISTIO_VERSION": "1.31.0",
				"LATEEN_CAPS": []string{"http1", "tcp", "tls", "origins", "rbac", "outlier"},
			},
		},
		Inherited:   []bootstrap.InheritedListener{{Port: port.Addr().(*net.TCPAddr).AddrPort().Port(), FD: 3}},
		Concurrency: 1, Ports: off, LogLevel: "warn",
	})
	if err != nil {
		return nil, err
	}
	for name, data := range map[string][]byte{tokenFile: []byte(token.Token), bootFile: b} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			return nil, err
		}
	}
	log, err := os.Create(filepath.Join(dir, "proxy.log"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	access, err := os.Create(filepath.Join(dir, "access.log"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = access.Close() }()
	cmd := exec.Command(program, "--bootstrap", bootFile)
	if profile != "" {
		cmd.Args = append(cmd.Args, "--cpuprofile", profile)
	}
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = access, log, []*os.File{socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start lateen-proxy: %w; build it with make", err)
	}
	return cmd, nil
}

// awaitOK waits until the proxy answers the benchmark's host.
func awaitOK(addr netip.AddrPort, limit time.Duration) error {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var last error
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		req, err := http.NewRequest(http.MethodGet, "http://"+addr.String()+"/api/items/1", http.NoBody)
		if err != nil {
			return err
		}
		req.Host = "svc-117.bench.test"
		resp, err := client.Do(req)
		if err != nil {
			last = err
			continue
		}
		_ = resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return nil
		}
		last = fmt.Errorf("status %s", resp.Status)
	}
	return fmt.Errorf("no 200 through %s after %v: %w", addr, limit, last)
}
