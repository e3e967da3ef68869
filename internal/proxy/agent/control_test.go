package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
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

	"lateen.dev/lateen/internal/bootstrap"
	"lateen.dev/lateen/internal/proxy/secret/secrettest"
	"lateen.dev/lateen/internal/xdspb/istioca"
)

// plane is a control plane: go-control-plane's server, and an authority that
// takes the token "good" once.
type plane struct {
	probes  map[string]bootstrap.AppProbe
	ca      *secrettest.Authority
	cache   cache.SnapshotCache
	address string
	grpc    *grpc.Server

	mu    sync.Mutex
	spent bool
	nacks []string
	acks  int
}

const proxyID = "spiffe://cluster.local/ns/default/sa/web"

func (p *plane) CreateCertificate(ctx context.Context, req *istioca.IstioCertificateRequest) (*istioca.IstioCertificateResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	if tok := md.Get("authorization"); len(tok) != 1 || tok[0] != "Bearer good" || p.spent {
		return nil, errors.New("no credential")
	}
	p.spent = true
	block, _ := pem.Decode([]byte(req.GetCsr()))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	der, err := p.ca.Issue(csr.PublicKey, nil, proxyID)
	if err != nil {
		return nil, err
	}
	return &istioca.IstioCertificateResponse{CertChain: []string{
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), p.ca.PEM,
	}}, nil
}

func newPlane(t testing.TB) *plane {
	p := &plane{ca: secrettest.NewAuthority(t), cache: cache.NewSnapshotCache(true, cache.IDHash{}, nil)}
	p.start(t, "127.0.0.1:0")
	return p
}

func (p *plane) start(t testing.TB, address string) {
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
		ClientAuth:   tls.VerifyClientCertIfGiven, ClientCAs: pool,
	})))
	istioca.Register(p.grpc, p)
	discoverypb.RegisterAggregatedDiscoveryServiceServer(p.grpc, server.NewServer(context.Background(), p.cache, server.CallbackFuncs{
		StreamDeltaRequestFunc: func(_ int64, r *discoverypb.DeltaDiscoveryRequest) error {
			p.mu.Lock()
			defer p.mu.Unlock()
			if e := r.GetErrorDetail(); e != nil {
				p.nacks = append(p.nacks, e.GetMessage())
			} else if r.GetResponseNonce() != "" {
				p.acks++
			}
			return nil
		},
	}))
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	p.address = l.Addr().String()
	go func() { _ = p.grpc.Serve(l) }()
	t.Cleanup(p.grpc.Stop)
}

// push sends resources.
func (p *plane) push(t testing.TB, version int, all map[resource.Type][]types.Resource) {
	t.Helper()
	s, err := cache.NewSnapshot(strconv.Itoa(version), all)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cache.SetSnapshot(context.Background(), "sidecar~127.0.0.1~web.default~default.svc.cluster.local", s); err != nil {
		t.Fatal(err)
	}
}

func (p *plane) refusals() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.nacks...)
}
