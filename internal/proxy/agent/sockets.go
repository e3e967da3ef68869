package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/bootstrap"
	"lateen.dev/lateen/internal/egress"
	"lateen.dev/lateen/internal/proxy/record"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// sockets opens the proxy's own connections, so that capture rules know them:
// by mark, and through the egress broker for what is not on the node.
type sockets struct {
	dialer   net.Dialer
	resolver *net.Resolver
	broker   string
	networks []netip.Prefix
}

func newSockets(b *bootstrap.Bootstrap) *sockets {
	s := &sockets{broker: b.Egress, networks: b.Networks, resolver: net.DefaultResolver}
	s.dialer.Timeout = 10 * time.Second
	if b.Capture == bootstrap.CaptureMark {
		s.dialer.Control = func(_, _ string, c syscall.RawConn) error {
			var inner error
			err := c.Control(func(fd uintptr) {
				inner = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, bootstrap.OutboundMark)
			})
			if inner != nil {
				return fmt.Errorf("mark socket (it would be captured without): %w", inner)
			}
			return err
		}
	}
	if b.DNS != "" {
		s.resolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return s.dialer.DialContext(ctx, network, b.DNS)
		}}
	}
	return s
}

// dial connects to host:port of the control plane.
func (s *sockets) dial(ctx context.Context, address string) (net.Conn, error) {
	return s.dialContext(ctx, "tcp", address)
}

// dialContext connects to host:port, through the broker if it is elsewhere.
func (s *sockets) dialContext(ctx context.Context, network, address string) (net.Conn, error) {
	ap, err := netip.ParseAddrPort(address)
	if s.broker == "" || err != nil || s.local(ap.Addr()) {
		return s.dialer.DialContext(ctx, network, address)
	}
	fd, err := egress.Dial(ctx, s.broker, network, address)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), address)
	defer f.Close() // FileConn has a descriptor of its own
	return net.FileConn(f)
}

func (s *sockets) local(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsLoopback() || len(s.networks) == 0 ||
		slices.ContainsFunc(s.networks, func(p netip.Prefix) bool { return p.Contains(a) })
}

// egress asks the broker for a connected descriptor.
func (s *sockets) egress(ctx context.Context, addr netip.AddrPort) (int, error) {
	return egress.Dial(ctx, s.broker, "tcp", addr.String())
}

// resolve looks a name up for DNS clusters.
func (s *sockets) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	return s.resolver.LookupNetIP(ctx, "ip", host)
}

// target finds where telemetry for a provider's cluster goes now.
func (a *Agent) target(cluster string) (record.Target, error) {
	s := a.config.snapshotNow()
	if s == nil || s.Clusters[cluster] == nil {
		return record.Target{}, fmt.Errorf("cluster %q does not exist", cluster)
	}
	c := s.Clusters[cluster]
	var usable []*snapshot.Endpoint
	for _, e := range c.Endpoints {
		if (e.Health == snapshot.Healthy || e.Health == snapshot.HealthUnknown) &&
			(len(usable) == 0 || usable[0].Priority == e.Priority) {
			usable = append(usable, e)
		}
	}
	if len(usable) == 0 {
		return record.Target{}, fmt.Errorf("cluster %q has no endpoint", cluster)
	}
	e := usable[rand.IntN(len(usable))]
	t := record.Target{Address: e.Addr.String()}
	if e.Host != "" {
		t.Address = net.JoinHostPort(e.Host, strconv.Itoa(int(e.Port)))
	}
	tr, ok := c.Transport(e)
	if !ok {
		return record.Target{}, fmt.Errorf("cluster %q has no transport for %s", cluster, t.Address)
	}
	if tr.TLS != nil {
		t.TLS = a.secrets.ClientConfig(tr.TLS, e.Host, tr.TLS.Offers(snapshot.SpeakHTTP2))
		t.TLS.NextProtos = telemetryProtocols(tr.TLS)
	}
	return t, nil
}

// telemetryProtocols is what a gRPC client offers. A mesh peer takes a
// connection by Istio's names; gRPC itself is content with any agreed protocol
// only if it is h2, so that comes first.
func telemetryProtocols(u *snapshot.UpstreamTLS) []string {
	if u.Mesh {
		return []string{"h2", "istio"}
	}
	return []string{"h2"}
}

// maxToken bounds what is read as a token.
const maxToken = 16 << 10

func readToken(r io.Reader) (string, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxToken))
	if err != nil {
		return "", err
	}
	t := strings.TrimSpace(string(data))
	if t == "" {
		return "", errors.New("it is empty; it is for one use only")
	}
	return t, nil
}
