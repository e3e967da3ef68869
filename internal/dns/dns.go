// Package dns is the small name server of the mesh. A proxy serves its pod's
// names from the table the control plane sends it; the node serves pods without
// a proxy from what it runs.
//
// Table is pure: names to addresses. Server speaks the protocol over UDP and
// TCP, answers from a Resolver and forwards what the mesh does not know. It keeps
// no cache: the mesh's answers are in memory, and the host's resolver has one.
package dns

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// ttl is short, because pods of headless services come and go.
const ttl = 30

// Answer is what is known of a name.
type Answer struct {
	// Known says that the mesh owns the name; with no address of the asked
	// family the answer is then empty, and never forwarded.
	Known bool
	IPs   []netip.Addr
}

// Resolver answers for the names of the mesh. Name is lower case and has no final
// dot; client is who asks. It must be safe for concurrent use and not block.
type Resolver func(name string, client netip.Addr) Answer

// Forwarder sends a query to an upstream resolver over "udp" or "tcp".
type Forwarder func(ctx context.Context, q *dns.Msg, network string) (*dns.Msg, error)

// Server answers queries. The zero value is not useful; fill Resolve.
type Server struct {
	Resolve Resolver
	// Forward may be nil: unknown names then do not exist.
	Forward Forwarder
	Log     *slog.Logger
}

// forwardTimeout bounds a forwarded query; resolvers ask again after 5 s.
const forwardTimeout = 4 * time.Second

// Serve answers on a packet socket and a listener, either of which may be nil,
// until ctx ends. It closes both. The packet socket must not be bound to the
// wildcard address: its answers would leave from another address than was asked.
func (s *Server) Serve(ctx context.Context, pc net.PacketConn, l net.Listener) error {
	var servers []*dns.Server
	if pc != nil {
		servers = append(servers, &dns.Server{PacketConn: pc, Handler: s, UDPSize: 4096})
	}
	if l != nil {
		servers = append(servers, &dns.Server{Listener: l, Handler: s, ReadTimeout: 10 * time.Second, MaxTCPQueries: 1024})
	}
	errs := make([]error, len(servers))
	var group sync.WaitGroup
	for i, srv := range servers {
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		ended := make(chan struct{})
		group.Go(func() {
			defer close(ended)
			errs[i] = srv.ActivateAndServe()
		})
		group.Go(func() {
			select {
			case <-started:
			case <-ended:
				return
			}
			select {
			case <-ctx.Done():
				_ = srv.Shutdown() // the sockets are closed either way
			case <-ended:
			}
		})
	}
	group.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return errors.Join(errs...)
}

// ServeDNS answers one query.
func (s *Server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	client := addrOf(w.RemoteAddr())
	network := "udp"
	if _, ok := w.RemoteAddr().(*net.TCPAddr); ok {
		network = "tcp"
	}
	reply := s.reply(q, client.Addr(), network)
	if network == "udp" {
		size := dns.MinMsgSize
		if o := q.IsEdns0(); o != nil {
			size = max(size, int(o.UDPSize()))
		}
		reply.Truncate(size)
	}
	if err := w.WriteMsg(reply); err != nil && s.Log != nil {
		s.Log.Debug("answer DNS query", "client", client, "error", err)
	}
}

func addrOf(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.UDPAddr:
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
	case *net.TCPAddr:
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
	}
	return netip.AddrPort{}
}

func (s *Server) reply(q *dns.Msg, client netip.Addr, network string) *dns.Msg {
	r := new(dns.Msg)
	if len(q.Question) != 1 || q.Opcode != dns.OpcodeQuery {
		r.SetRcode(q, dns.RcodeNotImplemented)
		return r
	}
	name := strings.TrimSuffix(strings.ToLower(q.Question[0].Name), ".")
	a := s.Resolve(name, client)
	switch {
	case a.Known:
		r.SetReply(q)
		r.Authoritative, r.RecursionAvailable = true, s.Forward != nil
		r.Answer = records(q.Question[0], a.IPs)
		return r
	case s.Forward == nil || insideMesh(name):
		r.SetRcode(q, dns.RcodeNameError)
		r.RecursionAvailable = s.Forward != nil
		return r
	}
	ctx, cancel := context.WithTimeout(context.Background(), forwardTimeout)
	defer cancel()
	up, err := s.Forward(ctx, q, network)
	if err != nil {
		if s.Log != nil {
			s.Log.Debug("forward DNS query", "name", name, "error", err)
		}
		r.SetRcode(q, dns.RcodeServerFailure)
		return r
	}
	up.Id = q.Id
	return up
}

// insideMesh names are never asked outside: they would leak, and an outer answer
// for them would be wrong.
func insideMesh(name string) bool {
	for _, zone := range []string{"cluster.local", "lateen.internal"} {
		if name == zone || strings.HasSuffix(name, "."+zone) {
			return true
		}
	}
	return false
}

func records(q dns.Question, ips []netip.Addr) []dns.RR {
	var out []dns.RR
	for _, ip := range ips {
		h := dns.RR_Header{Name: q.Name, Class: dns.ClassINET, Ttl: ttl}
		switch {
		case ip.Is4() && (q.Qtype == dns.TypeA || q.Qtype == dns.TypeANY):
			h.Rrtype = dns.TypeA
			out = append(out, &dns.A{Hdr: h, A: ip.AsSlice()})
		case ip.Is6() && (q.Qtype == dns.TypeAAAA || q.Qtype == dns.TypeANY):
			h.Rrtype = dns.TypeAAAA
			out = append(out, &dns.AAAA{Hdr: h, AAAA: ip.AsSlice()})
		}
	}
	return out
}

// ForwardTo returns a Forwarder to host:port. control, if not nil, is applied to
// the outgoing sockets, for example to mark them.
func ForwardTo(addr string, d net.Dialer) Forwarder {
	return func(ctx context.Context, q *dns.Msg, network string) (*dns.Msg, error) {
		conn, err := d.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return Exchange(ctx, conn, q)
	}
}

// Exchange sends one query over a connection, which it closes.
func Exchange(ctx context.Context, conn net.Conn, q *dns.Msg) (*dns.Msg, error) {
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	c := &dns.Conn{Conn: conn, UDPSize: 4096}
	q = q.Copy()
	q.Id = dns.Id() // nobody else may guess it from the client's
	if err := c.WriteMsg(q); err != nil {
		return nil, err
	}
	for {
		r, err := c.ReadMsg()
		if err != nil {
			return nil, err
		}
		if r.Id == q.Id { // an answer to an older query is skipped
			return r, nil
		}
	}
}
