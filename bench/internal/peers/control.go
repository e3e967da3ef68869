//go:build linux

package peers

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"lateen.dev/lateen/internal/api"
	"lateen.dev/lateen/internal/control"
	"lateen.dev/lateen/internal/local/netns"
)

// plane is the control plane that Lateen and Envoy get everything from, and the
// collector that their spans go to. Both run in this process.
type plane struct {
	address string
	client  *api.Client
	stop    context.CancelFunc
	ended   chan error
	sink    *grpc.Server
}

// startPlane runs a control plane over a mesh.
func startPlane(ctx context.Context, dir, yaml string, local []json.RawMessage) (*plane, error) {
	data := filepath.Join(dir, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "mesh.yaml")
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		return nil, err
	}
	xds, err := net.Listen("tcp", netip.AddrPortFrom(netns.Node4, 0).String())
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "api.sock")
	listener, err := api.Listen(socket)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	p := &plane{address: xds.Addr().String(), client: api.NewClient(socket), stop: stop, ended: make(chan error, 1)}
	log, err := os.Create(filepath.Join(dir, "control.log"))
	if err != nil {
		stop()
		return nil, err
	}
	go func() {
		p.ended <- control.Run(ctx, control.Options{
			DataDir: data, Paths: []string{file}, XDS: xds, API: listener, ClusterID: "bench", AwaitLocal: true,
			ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.78.0.0/16")},
			Log:          slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelInfo})),
		})
	}()
	if err := p.startSink(); err != nil {
		p.close()
		return nil, err
	}
	if err := p.writeLocal(ctx, local); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *plane) writeLocal(ctx context.Context, local []json.RawMessage) (err error) {
	for range 100 { // the socket is there before the server is
		if err = p.client.WriteLocal(ctx, api.LocalState{Replace: true, Put: local}); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

// startSink takes every call of any OTLP service and answers that all is well.
func (p *plane) startSink() error {
	l, err := net.Listen("tcp", netip.AddrPortFrom(netns.Node4, sinkPort).String())
	if err != nil {
		return fmt.Errorf("open the collector: %w", err)
	}
	p.sink = grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		for {
			var any emptypb.Empty // keeps what it does not know
			if err := s.RecvMsg(&any); err != nil {
				if err == io.EOF {
					return nil
				}
				return err
			}
			if err := s.SendMsg(&emptypb.Empty{}); err != nil {
				return err
			}
		}
	}))
	go func() { _ = p.sink.Serve(l) }() // ends with Stop
	return nil
}

func (p *plane) close() {
	if p.sink != nil {
		p.sink.Stop()
	}
	p.client.Close()
	p.stop()
	<-p.ended
}
