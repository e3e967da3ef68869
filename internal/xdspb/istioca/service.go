package istioca

import (
	"context"

	"google.golang.org/grpc"
)

// createCertificate is the full name of the one method.
const createCertificate = "/istio.v1.auth.IstioCertificateService/CreateCertificate"

// Server is what an authority implements.
type Server interface {
	CreateCertificate(context.Context, *IstioCertificateRequest) (*IstioCertificateResponse, error)
}

// Register makes srv answer on r.
func Register(r grpc.ServiceRegistrar, srv Server) {
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: "istio.v1.auth.IstioCertificateService",
		HandlerType: (*Server)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "CreateCertificate", Handler: handleCreate}},
		Metadata:    "istioca.proto",
	}, srv)
}

func handleCreate(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
	req := new(IstioCertificateRequest)
	if err := decode(req); err != nil {
		return nil, err
	}
	if intercept == nil {
		return srv.(Server).CreateCertificate(ctx, req)
	}
	info := &grpc.UnaryServerInfo{Server: srv, FullMethod: createCertificate}
	return intercept(ctx, req, info, func(ctx context.Context, req any) (any, error) {
		return srv.(Server).CreateCertificate(ctx, req.(*IstioCertificateRequest))
	})
}

// Client calls an authority over an existing connection. It is safe for
// concurrent use.
type Client struct{ conn grpc.ClientConnInterface }

// NewClient returns a Client that calls over conn. The credential (a bearer
// token in the call's metadata, or conn's client certificate) is the caller's
// business.
func NewClient(conn grpc.ClientConnInterface) *Client { return &Client{conn: conn} }

// CreateCertificate asks for a certificate.
func (c *Client) CreateCertificate(ctx context.Context, req *IstioCertificateRequest, opts ...grpc.CallOption) (*IstioCertificateResponse, error) {
	resp := new(IstioCertificateResponse)
	if err := c.conn.Invoke(ctx, createCertificate, req, resp, opts...); err != nil {
		return nil, err
	}
	return resp, nil
}
