package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// nginxConfig gives nginx a sidecar's duties as far as it has them: the headers
// that Lateen adds for the upstream (same names, same number of bytes), the same
// access log in a buffer, a timeout, a keep-alive pool. It measures no metrics
// and samples no spans.
const nginxConfig = `worker_processes 1;
daemon off;
pid %[1]s/nginx.pid;
error_log %[1]s/error.log warn;
events { worker_connections 4096; }
http {
  log_format mesh '$time_iso8601 "$request" $status $body_bytes_sent $request_time "$http_user_agent" "$request_id" "$host" "$upstream_addr"';
  access_log %[1]s/access.log mesh buffer=64k flush=1s;
  client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  keepalive_requests 100000000;
  upstream backend { server %[2]s; keepalive 512; keepalive_requests 100000000; }
  server {
    listen %[3]s;
    location / {
      proxy_pass http://backend;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $host;
      proxy_set_header X-Request-Id $request_id;
      proxy_set_header Traceparent "00-$request_id-0000000000000001-01";
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Envoy-Attempt-Count 1;
      proxy_set_header X-Envoy-Expected-Rq-Timeout-Ms 15000;
      proxy_set_header X-Envoy-Peer-Metadata-Id "router~127.0.0.1~bench.istio-system~istio-system.svc.cluster.local";
      proxy_set_header X-Envoy-Peer-Metadata "%[4]s";
      add_header X-Envoy-Upstream-Service-Time $upstream_response_time;
      proxy_read_timeout 15s;
    }
  }
}
`

// startNginx runs nginx in front of backend and returns it as a candidate.
func startNginx(dir string, backend netip.AddrPort) (candidate, func(), error) {
	addr, err := freePort()
	if err != nil {
		return candidate{}, nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return candidate{}, nil, err
	}
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, nginxConfig, dir, backend, addr, strings.Repeat("CkNM", 75)), 0o600); err != nil {
		return candidate{}, nil, err
	}
	cmd := exec.Command("nginx", "-c", conf, "-e", filepath.Join(dir, "error.log"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return candidate{}, nil, fmt.Errorf("start nginx: %w", err)
	}
	stop := func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() }
	if err := waitPort(addr, 5*time.Second); err != nil {
		stop()
		return candidate{}, nil, err
	}
	pids := append([]int{cmd.Process.Pid}, children(cmd.Process.Pid)...)
	for _, pid := range pids {
		if err := pin(pid, proxyCPU); err != nil {
			stop()
			return candidate{}, nil, err
		}
	}
	return candidate{name: "nginx", addr: addr, pids: pids}, stop, nil
}

func children(pid int) []int {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	var out []int
	for f := range strings.FieldsSeq(string(data)) {
		if n, err := strconv.Atoi(f); err == nil {
			out = append(out, n)
		}
	}
	return out
}

func freePort() (netip.AddrPort, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).AddrPort(), nil
}

func waitPort(addr netip.AddrPort, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for time.Now().Before(deadline) {
		c, err := net.DialTimeout("tcp", addr.String(), 200*time.Millisecond)
		if err == nil {
			return c.Close()
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("nothing listens on %s after %v", addr, limit)
}
