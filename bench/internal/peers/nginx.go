//go:build linux

package peers

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
)

// nginxMain is common to all. One process without a master works as a worker
// does and needs no other user.
const nginxMain = `master_process off;
daemon off;
user root;
pid %[1]s/%[2]s.pid;
error_log stderr error;
events { worker_connections 9000; }
http {
  log_format mesh '$time_iso8601 "$request" $status $body_bytes_sent $request_time "$http_user_agent" "$request_id" "$host" "$upstream_addr"';
  access_log %[3]s;
  client_body_temp_path %[1]s/%[2]s-body; proxy_temp_path %[1]s/%[2]s-proxy; fastcgi_temp_path %[1]s/%[2]s-f; uwsgi_temp_path %[1]s/%[2]s-u; scgi_temp_path %[1]s/%[2]s-s;
  keepalive_requests 100000000; keepalive_timeout 600s;
  http2_max_concurrent_streams 1024;
  upstream up { server %[4]s; keepalive 1024; keepalive_requests 100000000; keepalive_timeout 600s; }
  server {
    listen %[5]s;
%[6]s    location / {
%[7]s    }
  }
}
`

// nginxDuties are the headers that Lateen adds for the upstream: same names,
// about the same number of bytes. %[1]s is the module, %[2]s peer metadata.
const nginxDuties = `      %[1]s_set_header X-Request-Id $request_id;
      %[1]s_set_header Traceparent "00-$request_id-0000000000000001-01";
      %[1]s_set_header X-Forwarded-Proto $scheme;
      %[1]s_set_header X-Envoy-Attempt-Count 1;
      %[1]s_set_header X-Envoy-Expected-Rq-Timeout-Ms 15000;
      %[1]s_set_header X-Envoy-Peer-Metadata-Id "sidecar~10.77.0.2~client-0.bench~bench.svc.cluster.local";
      %[1]s_set_header X-Envoy-Peer-Metadata "%[2]s";
      add_header X-Envoy-Upstream-Service-Time $upstream_response_time;
`

// metadata is as long as Istio's peer metadata of a small pod.
func metadata() string { return strings.Repeat("CkNM", 75) }

// hop is one proxy of a candidate: where it listens, where it leads, and which
// of its sides speak mutual TLS.
type hop struct {
	name               string
	pod                *Pod
	listen, up         netip.AddrPort
	tlsIn, tlsUpstream bool
}

// The ports that capture leads to.
const (
	outboundPort = 15001
	inboundPort  = 15006
)

// hops are the proxies of a candidate for a shape.
func (s *Set) hops(p *Peer) []hop {
	any4 := netip.IPv4Unspecified()
	server := hop{
		name: "server", pod: p.Server, listen: netip.AddrPortFrom(any4, inboundPort),
		up: netip.AddrPortFrom(loopback, backendPort), tlsIn: true,
	}
	switch s.o.Shape.Kind {
	case Gateway:
		server.listen, server.tlsIn = netip.AddrPortFrom(loopback, gatewayPort), false
		return []hop{server}
	case Chain:
		client := hop{
			name: "client", pod: p.Client, listen: netip.AddrPortFrom(any4, outboundPort),
			up: netip.AddrPortFrom(p.Server.IP, backendPort), tlsUpstream: true,
		}
		return []hop{server, client}
	default:
		return []hop{server}
	}
}

// startNginx runs nginx as each hop of the candidate.
func (s *Set) startNginx(p *Peer, ca *authority) error {
	for _, h := range s.hops(p) {
		if err := ca.files(p, h.identity()); err != nil {
			return err
		}
		conf, err := p.write(h.name+".conf", []byte(s.nginxConfig(p, h)))
		if err != nil {
			return err
		}
		x, err := h.pod.startIn(p.dir, h.name, s.o.Programs.Nginx, "-c", conf, "-e", "stderr", "-p", p.dir)
		if err != nil {
			return err
		}
		p.procs = append(p.procs, x)
	}
	return nil
}

func (h hop) identity() string {
	if h.name == "server" {
		return serverName
	}
	return "client.bench.test"
}

func (s *Set) nginxConfig(p *Peer, h hop) string {
	var server, location strings.Builder
	module, scheme, listen := "proxy", "http", h.listen.String()
	if s.o.Shape.Protocol == "http2" || s.o.Shape.Protocol == "grpc" {
		module, scheme, listen = "grpc", "grpc", listen+" http2"
	}
	if h.tlsIn {
		listen += " ssl"
		fmt.Fprintf(&server, `    ssl_certificate %[1]s/%[2]s.crt; ssl_certificate_key %[1]s/%[2]s.key; ssl_client_certificate %[1]s/root.pem;
    ssl_verify_client on; ssl_protocols TLSv1.3; ssl_ecdh_curve X25519; ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
    ssl_session_tickets off; ssl_session_cache none;
`, p.dir, h.identity())
	}
	if h.tlsUpstream {
		scheme += "s"
		fmt.Fprintf(&location, `      proxy_ssl_certificate %[1]s/%[2]s.crt; proxy_ssl_certificate_key %[1]s/%[2]s.key; proxy_ssl_trusted_certificate %[1]s/root.pem;
      proxy_ssl_verify on; proxy_ssl_name %[3]s; proxy_ssl_protocols TLSv1.3; proxy_ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
`, p.dir, h.identity(), serverName)
	}
	fmt.Fprintf(&location, "      %s_pass %s://up; %[1]s_read_timeout 15s;\n", module, scheme)
	if module == "proxy" {
		location.WriteString("      proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $http_host; proxy_buffers 8 64k; proxy_max_temp_file_size 0;\n")
	}
	log := "off"
	if s.o.Shape.Duties {
		log = filepath.Join(p.dir, h.name+"-access.log") + " mesh buffer=64k flush=1s"
		fmt.Fprintf(&location, nginxDuties, module, metadata())
		if h.name == "server" && h.tlsIn {
			fmt.Fprintf(&location, "      %s_set_header X-Forwarded-Client-Cert \"By=spiffe://cluster.local/ns/bench/sa/server;Hash=$ssl_client_fingerprint;Subject=\\\"\\\";URI=spiffe://cluster.local/ns/bench/sa/client\";\n", module)
		}
	}
	return fmt.Sprintf(nginxMain, p.dir, h.name, log, h.up, listen, server.String(), location.String())
}
