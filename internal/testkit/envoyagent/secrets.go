//go:build linux

package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlspb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretpb "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	"lateen.dev/lateen/internal/proxy/secret"
)

// bell wakes everybody who waits for secrets to change.
type bell struct {
	mu   sync.Mutex
	next chan struct{}
}

func newBell() *bell { return &bell{next: make(chan struct{})} }

// wait returns a channel that the next change closes.
func (b *bell) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.next
}

func (b *bell) follow(ctx context.Context, changed <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
		b.mu.Lock()
		close(b.next)
		b.next = make(chan struct{})
		b.mu.Unlock()
	}
}

// secretService serves Envoy's secrets by SDS, state of the world, a stream a
// name as Envoy asks for them.
type secretService struct {
	secretpb.UnimplementedSecretDiscoveryServiceServer
	agent   *agent
	changed *bell
}

// serveSecrets opens the secret server in the working directory, which only the
// node's own user may enter.
func (a *agent) serveSecrets(ctx context.Context, changed *bell) error {
	_ = os.Remove(secretSocket) // of a run before this one
	l, err := net.Listen("unix", secretSocket)
	if err != nil {
		return fmt.Errorf("open the secret server: %w", err)
	}
	s := grpc.NewServer()
	secretpb.RegisterSecretDiscoveryServiceServer(s, &secretService{agent: a, changed: changed})
	a.servers.Go(func() {
		if err := s.Serve(l); err != nil {
			a.log.Error("the secret server ended", "error", err)
		}
	})
	context.AfterFunc(ctx, s.Stop)
	return nil
}

// StreamSecrets answers each request that is no acknowledgement, and again when
// a secret changes.
func (s *secretService) StreamSecrets(stream secretpb.SecretDiscoveryService_StreamSecretsServer) error {
	requests := make(chan *discoverypb.DiscoveryRequest)
	broken := make(chan error, 1)
	go func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				broken <- err
				return
			}
			select {
			case requests <- r:
			case <-stream.Context().Done():
				return
			}
		}
	}()
	var wanted []string
	for version := 1; ; version++ {
		changed := s.changed.wait()
		if len(wanted) > 0 {
			if err := s.send(stream, wanted, version); err != nil {
				return err
			}
		}
		var err error
		if wanted, err = s.next(stream.Context(), wanted, requests, changed, broken); err != nil {
			return err
		}
	}
}

// next waits until something has to be sent and returns the names to send.
func (s *secretService) next(
	ctx context.Context, wanted []string, requests <-chan *discoverypb.DiscoveryRequest, changed <-chan struct{}, broken <-chan error,
) ([]string, error) {
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case err := <-broken:
			return nil, err
		case <-changed:
			return wanted, nil
		case r := <-requests:
			if r.GetErrorDetail() != nil {
				s.agent.log.Error("secret rejected: Envoy refused it", "names", r.GetResourceNames(), "reason", r.GetErrorDetail().GetMessage())
			}
			if r.GetResponseNonce() == "" || strings.Join(r.GetResourceNames(), " ") != strings.Join(wanted, " ") {
				return r.GetResourceNames(), nil
			}
		}
	}
}

// send sends those secrets that there are. Envoy waits for the others.
func (s *secretService) send(stream secretpb.SecretDiscoveryService_StreamSecretsServer, names []string, version int) error {
	out := &discoverypb.DiscoveryResponse{
		TypeUrl: "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", VersionInfo: strconv.Itoa(version), Nonce: strconv.Itoa(version),
	}
	for _, name := range names {
		m, err := s.agent.secret(name)
		if err != nil {
			s.agent.log.Warn("a secret is missing", "name", name, "error", err)
			continue
		}
		packed, err := anypb.New(m)
		if err != nil {
			return err
		}
		out.Resources = append(out.Resources, packed)
	}
	if len(out.Resources) == 0 {
		return nil
	}
	return stream.Send(out)
}

// secret makes one secret: the pod's own, the roots of the mesh, or files named
// as Istio names them.
func (a *agent) secret(name string) (*tlspb.Secret, error) {
	if name == secret.RootCA {
		return roots(name, inline([]byte(a.secrets.RootsPEM()))), nil
	}
	if path, ok := strings.CutPrefix(name, "file-root:"); ok {
		if path == "system" {
			path = "/etc/ssl/certs/ca-certificates.crt"
		}
		if _, err := os.Stat(path); err != nil {
			return nil, err
		}
		return roots(name, file(path)), nil
	}
	if pair, ok := strings.CutPrefix(name, "file-cert:"); ok {
		cert, key, _ := strings.Cut(pair, "~")
		return certificate(name, file(cert), file(key)), nil
	}
	if name != secret.Default {
		return nil, fmt.Errorf("no such secret")
	}
	c, err := a.secrets.Certificate()
	if err != nil {
		return nil, err
	}
	var chain []byte
	for _, der := range c.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("encode the key: %w", err)
	}
	return certificate(name, inline(chain), inline(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))), nil
}

func certificate(name string, chain, key *corepb.DataSource) *tlspb.Secret {
	return &tlspb.Secret{Name: name, Type: &tlspb.Secret_TlsCertificate{
		TlsCertificate: &tlspb.TlsCertificate{CertificateChain: chain, PrivateKey: key},
	}}
}

func roots(name string, ca *corepb.DataSource) *tlspb.Secret {
	return &tlspb.Secret{Name: name, Type: &tlspb.Secret_ValidationContext{
		ValidationContext: &tlspb.CertificateValidationContext{TrustedCa: ca},
	}}
}

func inline(pem []byte) *corepb.DataSource {
	return &corepb.DataSource{Specifier: &corepb.DataSource_InlineBytes{InlineBytes: pem}}
}

func file(path string) *corepb.DataSource {
	return &corepb.DataSource{Specifier: &corepb.DataSource_Filename{Filename: path}}
}
