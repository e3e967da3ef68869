package proxy

import (
	"context"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// interopServer is gRPC's own test service.
func interopServer(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	testgrpc.RegisterTestServiceServer(s, interop.NewTestServer())
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return l.Addr().String()
}

// grpcMesh is a gRPC client → sidecar → mTLS → sidecar → gRPC server.
func grpcMesh(t testing.TB, app string) string {
	ca := newAuthority(t)
	in, out := start(t, ca.issue(t, serverID)), start(t, ca.issue(t, clientID))
	inAddr, outAddr := freeAddr(t), freeAddr(t)
	c := newConfig(t)
	c.cluster("app", app).HTTP = snapshot.UpstreamHTTP2
	unbounded := time.Duration(0)
	l := c.listen(inAddr, inbound(c.manager("app", func(r *snapshot.Route) { r.GRPCTimeoutMax = &unbounded }), true)...)
	l.Chains, l.Default = append(l.Chains, l.Default), nil
	l.Chains[0].TLS.ALPN = []string{message.ALPNTrunk, "h2", "http/1.1", "istio"}
	l.TLSInspector, l.Direction = true, snapshot.Inbound
	apply(t, in, c)

	c = newConfig(t)
	cl := c.cluster("server", inAddr)
	cl.HTTP = snapshot.UpstreamHTTP2
	cl.Transports = []snapshot.TransportMatch{{TLS: &snapshot.UpstreamTLS{
		Certificate: "default", Mesh: true, ALPN: []string{"istio", "h2"},
		Validation: &snapshot.Validation{SANs: []snapshot.StringMatcher{{Text: serverID}}},
	}}}
	c.listen(outAddr, httpChain(c.manager("server", func(r *snapshot.Route) { r.GRPCTimeoutMax = &unbounded })))
	apply(t, out, c)
	return outAddr
}

func grpcClient(t testing.TB, addr string) *grpc.ClientConn {
	cc, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc
}

// TestGRPC_interoperability runs the cases of gRPC's interoperability suite
// through two proxies with mutual TLS. A case that fails ends the process.
func TestGRPC_interoperability(t *testing.T) {
	cc := grpcClient(t, grpcMesh(t, interopServer(t)))
	tc := testgrpc.NewTestServiceClient(cc)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, c := range []struct {
		name string
		run  func()
	}{
		{"empty_unary", func() { interop.DoEmptyUnaryCall(ctx, tc) }},
		{"large_unary", func() { interop.DoLargeUnaryCall(ctx, tc) }},
		{"client_streaming", func() { interop.DoClientStreaming(ctx, tc) }},
		{"server_streaming", func() { interop.DoServerStreaming(ctx, tc) }},
		{"ping_pong", func() { interop.DoPingPong(ctx, tc) }},
		{"empty_stream", func() { interop.DoEmptyStream(ctx, tc) }},
		{"timeout_on_sleeping_server", func() { interop.DoTimeoutOnSleepingServer(ctx, tc) }},
		{"cancel_after_begin", func() { interop.DoCancelAfterBegin(ctx, tc) }},
		{"cancel_after_first_response", func() { interop.DoCancelAfterFirstResponse(ctx, tc) }},
		{"custom_metadata", func() { interop.DoCustomMetadata(ctx, tc) }},
		{"status_code_and_message", func() { interop.DoStatusCodeAndMessage(ctx, tc) }},
		{"special_status_message", func() { interop.DoSpecialStatusMessage(ctx, tc) }},
		{"unimplemented_service", func() { interop.DoUnimplementedService(ctx, testgrpc.NewUnimplementedServiceClient(cc)) }},
		{"unimplemented_method", func() { interop.DoUnimplementedMethod(ctx, cc) }},
	} {
		t.Run(c.name, func(*testing.T) { c.run() })
	}
}

// TestGRPC_serverThatIsNotThere: what the proxies say themselves reaches the
// client as a gRPC status with its text.
func TestGRPC_serverThatIsNotThere(t *testing.T) {
	tc := testgrpc.NewTestServiceClient(grpcClient(t, grpcMesh(t, freeAddr(t))))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := tc.EmptyCall(ctx, &testgrpc.Empty{})
	if s := status.Convert(err); s.Code() != codes.Unavailable || s.Message() == "" {
		t.Errorf("%v", err)
	}
}
