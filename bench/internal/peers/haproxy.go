//go:build linux

package peers

import (
	"fmt"
	"strings"
)

// haproxyMain is common to all. The log goes to a ring in memory, which costs
// HAProxy less than any file.
const haproxyMain = `global
  nbthread 1
  maxconn 6000
  ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets
  ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
  ssl-default-bind-curves X25519
  ssl-default-server-options ssl-min-ver TLSv1.3
  ssl-default-server-ciphersuites TLS_AES_128_GCM_SHA256
  tune.ssl.cachesize 0
  tune.h2.max-concurrent-streams 1024
ring access
  format raw
  maxlen 1200
  size 1048576
defaults
  mode %[1]s
  timeout connect 5s
  timeout client 600s
  timeout http-keep-alive 600s
  timeout server 15s
%[2]sfrontend in
  bind %[3]s
  default_backend up
%[4]sbackend up
%[5]s  server s %[6]s
`

const haproxyDuties = `  log ring@access local0 info
  log-format '%%T "%%HM %%HP %%HV" %%ST %%B %%Ta "%%[capture.req.hdr(0)]" "%%ID" "%%[capture.req.hdr(1)]" "%%s"'
  capture request header User-Agent len 64
  capture request header Host len 64
  unique-id-format %%{+X}o%%ci%%cp%%fi%%fp%%Ts%%rt%%pid
  unique-id-header X-Request-Id
  http-request set-header Traceparent 00-0123456789abcdef0123456789abcdef-0000000000000001-01
  http-request set-header X-Forwarded-Proto http
  http-request set-header X-Envoy-Attempt-Count 1
  http-request set-header X-Envoy-Expected-Rq-Timeout-Ms 15000
  http-request set-header X-Envoy-Peer-Metadata-Id sidecar~10.77.0.2~client-0.bench~bench.svc.cluster.local
  http-request set-header X-Envoy-Peer-Metadata %[1]s
  http-response set-header X-Envoy-Upstream-Service-Time 1
`

// startHAProxy runs HAProxy as each hop of the candidate.
func (s *Set) startHAProxy(p *Peer, ca *authority) error {
	for _, h := range s.hops(p) {
		if err := ca.files(p, h.identity()); err != nil {
			return err
		}
		conf, err := p.write(h.name+".cfg", []byte(s.haproxyConfig(p, h)))
		if err != nil {
			return err
		}
		x, err := h.pod.startIn(p.dir, h.name, s.o.Programs.HAProxy, "-db", "-f", conf)
		if err != nil {
			return err
		}
		p.procs = append(p.procs, x)
	}
	return nil
}

func (s *Set) haproxyConfig(p *Peer, h hop) string {
	mode, defaults, front, back := "http", "  http-reuse always\n", "", ""
	bind, server := h.listen.String(), h.up.String()
	switch s.o.Shape.Protocol {
	case "tcp":
		mode, defaults = "tcp", "  option splice-auto\n"
	case "http2", "grpc":
		bind, server = bind+" proto h2", server+" proto h2"
	}
	if s.o.Shape.Duties {
		front = fmt.Sprintf(haproxyDuties, metadata())
		if h.name == "server" && h.tlsIn {
			front += `  http-request set-header X-Forwarded-Client-Cert By=spiffe://cluster.local/ns/bench/sa/server;Hash=%[ssl_c_sha1,hex];URI=spiffe://cluster.local/ns/bench/sa/client` + "\n"
		}
	}
	if h.tlsIn {
		bind += fmt.Sprintf(" ssl crt %[1]s/%[2]s.pem ca-file %[1]s/root.pem verify required", p.dir, h.identity())
	}
	if h.tlsUpstream {
		server += fmt.Sprintf(" ssl crt %[1]s/%[2]s.pem ca-file %[1]s/root.pem verify required verifyhost %[3]s", p.dir, h.identity(), serverName)
	}
	return strings.ReplaceAll(fmt.Sprintf(haproxyMain, mode, defaults, bind, front, back, server), "\t", "  ")
}
