//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/structpb"

	"lateen.dev/lateen/internal/bootstrap"
	"lateen.dev/lateen/internal/dns"
	"lateen.dev/lateen/internal/xdspb/nds"
)

// names is the mesh's name table.
type names struct{ table atomic.Pointer[dns.Table] }

func (n *names) resolve(name string, _ netip.Addr) dns.Answer {
	if t := n.table.Load(); t != nil {
		return t.Lookup(name)
	}
	return dns.Answer{}
}

// serveNames answers DNS on both loopback addresses, from a table that it
// follows on a stream of its own. It returns when the first table has come, so
// that Envoy's stream is the newer one of the pod: the control plane shows that.
func (a *agent) serveNames(ctx context.Context) error {
	first := make(chan struct{})
	a.servers.Go(func() {
		once := sync.OnceFunc(func() { close(first) })
		for ctx.Err() == nil {
			if err := a.followNames(ctx, once); err != nil && ctx.Err() == nil {
				a.log.Warn("the name table is not followed", "error", err)
				time.Sleep(200 * time.Millisecond)
			}
		}
	})
	s := &dns.Server{Resolve: a.names.resolve, Log: a.log}
	if a.boot.DNS != "" {
		s.Forward = dns.ForwardTo(a.boot.DNS, a.dialer)
	}
	for _, host := range []string{"127.0.0.1", "::1"} {
		address := net.JoinHostPort(host, strconv.Itoa(bootstrap.DNSPort))
		pc, err := net.ListenPacket("udp", address)
		if err != nil {
			return fmt.Errorf("open the DNS port: %w", err)
		}
		l, err := net.Listen("tcp", address)
		if err != nil {
			return fmt.Errorf("open the DNS port: %w", err)
		}
		a.servers.Go(func() {
			if err := s.Serve(ctx, pc, l); err != nil && ctx.Err() == nil {
				a.log.Error("the name server ended", "error", err)
			}
		})
	}
	select {
	case <-first:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// followNames subscribes to the name table alone and installs what comes.
func (a *agent) followNames(ctx context.Context, arrived func()) error {
	const typeURL = "type.googleapis.com/istio.networking.nds.v1.NameTable"
	conn, err := grpc.NewClient("passthrough:///"+a.boot.Control.Address,
		grpc.WithTransportCredentials(credentials.NewTLS(a.secrets.ControlConfig())),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return a.dialer.DialContext(ctx, "tcp", address)
		}))
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := discoverypb.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	if err != nil {
		return err
	}
	metadata, err := structpb.NewStruct(a.metadata())
	if err != nil {
		return err
	}
	r := &discoverypb.DiscoveryRequest{
		TypeUrl: typeURL, Node: &corepb.Node{Id: a.boot.Node.ID, Cluster: a.boot.Node.Cluster, Metadata: metadata, UserAgentName: "envoyagent"},
	}
	for {
		if err := stream.Send(r); err != nil {
			return err
		}
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		for _, packed := range resp.GetResources() {
			var t nds.NameTable
			if err := packed.UnmarshalTo(&t); err != nil {
				return err
			}
			a.names.table.Store(table(&t, a.boot.Identity.Namespace))
		}
		arrived()
		r = &discoverypb.DiscoveryRequest{TypeUrl: typeURL, ResponseNonce: resp.GetNonce(), VersionInfo: resp.GetVersionInfo()}
	}
}

func table(t *nds.NameTable, namespace string) *dns.Table {
	var entries []dns.Entry
	for host, info := range t.GetTable() {
		e := dns.Entry{Host: host, Namespace: info.GetNamespace(), ShortName: info.GetShortname()}
		for _, ip := range info.GetIps() {
			if addr, err := netip.ParseAddr(ip); err == nil {
				e.IPs = append(e.IPs, addr.Unmap())
			}
		}
		entries = append(entries, e)
	}
	return dns.NewTable(entries, namespace)
}

// serveReadiness answers probes with what Envoy's own admin port says.
func (a *agent) serveReadiness(ctx context.Context) error {
	l, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(bootstrap.ReadyPort)))
	if err != nil {
		return fmt.Errorf("open the readiness port: %w", err)
	}
	admin := fmt.Sprintf("http://127.0.0.1:%d/ready", bootstrap.AdminPort)
	client := &http.Client{Timeout: time.Second}
	s := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		resp, err := client.Get(admin)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		defer resp.Body.Close()
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
	})}
	a.servers.Go(func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			a.log.Error("the readiness port failed", "error", err)
		}
	})
	context.AfterFunc(ctx, func() { s.Close() })
	return nil
}

// forwardInherited leads connections to the host's sockets, which Envoy cannot
// be given, to Envoy's own port of the same number. Both sides are loopback.
func (a *agent) forwardInherited(ctx context.Context) error {
	for _, in := range a.boot.Inherited {
		f := os.NewFile(uintptr(in.FD), "listener")
		l, err := net.FileListener(f)
		if err != nil {
			return fmt.Errorf("listen on the inherited socket of port %d: %w", in.Port, err)
		}
		f.Close()
		context.AfterFunc(ctx, func() { l.Close() })
		a.servers.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go a.forward(ctx, c, net.JoinHostPort("127.0.0.1", strconv.Itoa(int(in.Port))))
			}
		})
	}
	return nil
}

// forward copies both directions and keeps half-closes.
func (a *agent) forward(ctx context.Context, from net.Conn, address string) {
	defer from.Close()
	to, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", address)
	if err != nil {
		return
	}
	defer to.Close()
	var both sync.WaitGroup
	for _, pair := range [][2]net.Conn{{from, to}, {to, from}} {
		both.Go(func() {
			_, _ = io.Copy(pair[1], pair[0])
			if half, ok := pair[1].(*net.TCPConn); ok {
				_ = half.CloseWrite()
			}
		})
	}
	both.Wait()
}
