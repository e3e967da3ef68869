//go:build linux

package conformance

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"maps"
	"net"
	"strconv"
	"sync"
	"testing"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"lateen.dev/lateen/internal/proxy/secret/secrettest"
	"lateen.dev/lateen/internal/xdspb/istioca"
)

// plane is a control plane that is not ours: go-control-plane's ADS server, beside
// an authority that signs for whoever brings its SPIFFE ID as the token.
type plane struct {
	ca      *secrettest.Authority
	cache   cache.SnapshotCache
	address string
	grpc    *grpc.Server

	mu      sync.Mutex
	version int
	heard   []request
	nodes   map[int64]string // of delta streams, whose first request alone names the node
}

// request is what the tests look at in a discovery request, of either protocol.
type request struct {
	stream  int64
	delta   bool
	node    string
	typ     string
	nonce   string
	version string            // state of the world
	initial map[string]string // delta
	nack    string
}

func newPlane(t testing.TB) *plane {
	p := &plane{ca: secrettest.NewAuthority(t), cache: cache.NewSnapshotCache(true, cache.IDHash{}, nil), nodes: map[int64]string{}}
	p.start(t, "127.0.0.1:0")
	return p
}

// CreateCertificate implements Istio's certificate service.
func (p *plane) CreateCertificate(ctx context.Context, req *istioca.IstioCertificateRequest) (*istioca.IstioCertificateResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	tok := md.Get("authorization")
	block, _ := pem.Decode([]byte(req.GetCsr()))
	if len(tok) != 1 || block == nil {
		return nil, errors.New("no token or no request")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	der, err := p.ca.Issue(csr.PublicKey, nil, tok[0][len("Bearer "):])
	if err != nil {
		return nil, err
	}
	leaf := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return &istioca.IstioCertificateResponse{CertChain: []string{string(leaf), p.ca.PEM}}, nil
}

func (p *plane) note(r request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.node == "" {
		r.node = p.nodes[r.stream]
	}
	p.nodes[r.stream] = r.node
	p.heard = append(p.heard, r)
}

// start listens at address.
func (p *plane) start(t testing.TB, address string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := p.ca.Issue(key.Public(), nil, "spiffe://cluster.local/ns/istio-system/sa/istiod")
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(p.ca.Cert)
	p.grpc = grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		ClientAuth:   tls.VerifyClientCertIfGiven, ClientCAs: pool, MinVersion: tls.VersionTLS12,
	})))
	istioca.Register(p.grpc, p)
	discoverypb.RegisterAggregatedDiscoveryServiceServer(p.grpc, server.NewServer(context.Background(), p.cache, p.callbacks()))
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	p.address = l.Addr().String()
	go func() { _ = p.grpc.Serve(l) }() // until Stop
	t.Cleanup(p.grpc.Stop)
}

// callbacks has what clients say written down.
func (p *plane) callbacks() server.CallbackFuncs {
	return server.CallbackFuncs{
		StreamDeltaRequestFunc: func(stream int64, r *discoverypb.DeltaDiscoveryRequest) error {
			p.note(request{
				stream: stream, delta: true, node: r.GetNode().GetId(), typ: r.GetTypeUrl(), nonce: r.GetResponseNonce(),
				initial: maps.Clone(r.GetInitialResourceVersions()), nack: r.GetErrorDetail().GetMessage(),
			})
			return nil
		},
		StreamRequestFunc: func(stream int64, r *discoverypb.DiscoveryRequest) error {
			p.note(request{
				stream: stream, node: r.GetNode().GetId(), typ: r.GetTypeUrl(), nonce: r.GetResponseNonce(),
				version: r.GetVersionInfo(), nack: r.GetErrorDetail().GetMessage(),
			})
			return nil
		},
	}
}

// push makes these the resources of a node.
func (p *plane) push(t testing.TB, node string, all map[resource.Type][]types.Resource) {
	t.Helper()
	p.mu.Lock()
	p.version++
	version := strconv.Itoa(p.version)
	p.mu.Unlock()
	s, err := cache.NewSnapshot(version, all)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cache.SetSnapshot(context.Background(), node, s); err != nil {
		t.Fatal(err)
	}
}

// requests returns what was heard and forgets it.
func (p *plane) requests() []request {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := p.heard
	p.heard = nil
	return out
}
