//go:build linux

package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/api"
	"lateen.dev/lateen/internal/bootstrap"
	"lateen.dev/lateen/internal/dns"
	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/local/inherit"
)

// TestMain lets the test program play every part: the node's hidden roles, a
// control plane that reads its objects from a file, a proxy that copies bytes,
// and the applications.
func TestMain(m *testing.M) {
	if handled, code := HiddenRole(os.Args); handled {
		os.Exit(code)
	}
	if len(os.Args) > 1 {
		if f := map[string]func([]string) error{
			"fake-control": fakeControl, "--bootstrap-fd": fakeProxy,
			"app": app, "call": call, "mark": mark, "udp": udpCall, "parent": parentMain,
		}[os.Args[1]]; f != nil {
			if err := f(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, "error:", err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// source is one object of the fake control plane's file.
type source struct {
	Source string          `json:"source"`
	Object json.RawMessage `json:"object"`
}

// fake is a control plane over a file; args: the file of objects, the file it
// writes the local state to.
type fake struct {
	file, out string
	mu        sync.Mutex
	local     map[api.ObjectKey]json.RawMessage
}

func fakeControl(args []string) error {
	listeners, err := inherit.Listeners()
	if err != nil {
		return err
	}
	for _, name := range []string{inherit.API, inherit.XDS, inherit.XDSPlain, inherit.HubGRPC, inherit.HubHTTP} {
		if listeners[name] == nil {
			return fmt.Errorf("socket %s was not inherited", name)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	f := &fake{file: args[0], out: args[1], local: map[api.ObjectKey]json.RawMessage{}}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	return api.Serve(ctx, listeners[inherit.API], api.Handler(f, nil, log), log)
}

func key(object json.RawMessage) api.ObjectKey {
	var o struct {
		Kind     string `json:"kind"`
		Metadata struct{ Name, Namespace string }
	}
	_ = json.Unmarshal(object, &o) // our own file
	return api.ObjectKey{Kind: o.Kind, Namespace: o.Metadata.Namespace, Name: o.Metadata.Name}
}

// Watch sends the file's objects and then its changes.
func (f *fake) Watch(ctx context.Context, _ []string, emit func(api.Event) error) error {
	sent := map[api.ObjectKey][]byte{}
	for first := true; ; first = false {
		var list []source
		data, err := os.ReadFile(f.file)
		if err == nil {
			err = json.Unmarshal(data, &list)
		}
		if err == nil {
			now := map[api.ObjectKey]bool{}
			for _, s := range list {
				k := key(s.Object)
				now[k] = true
				if !bytes.Equal(sent[k], s.Object) {
					sent[k] = s.Object
					if err := emit(api.Event{Type: api.Put, Key: k, Object: s.Object, Source: s.Source}); err != nil {
						return err
					}
				}
			}
			for k := range sent {
				if !now[k] {
					delete(sent, k)
					if err := emit(api.Event{Type: api.Delete, Key: k}); err != nil {
						return err
					}
				}
			}
		}
		if first {
			if err := emit(api.Event{Type: api.Synced}); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (f *fake) WriteLocal(_ context.Context, s api.LocalState) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.Replace {
		clear(f.local)
	}
	for _, o := range s.Put {
		f.local[key(o)] = o
	}
	for _, k := range s.Delete {
		delete(f.local, k)
	}
	var all []json.RawMessage
	for _, o := range f.local {
		all = append(all, o)
	}
	data, err := json.Marshal(all)
	if err != nil {
		return err
	}
	if err := os.WriteFile(f.out+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(f.out+".new", f.out)
}

func (f *fake) Token(_ context.Context, r api.TokenRequest) (api.TokenResponse, error) {
	return api.TokenResponse{Token: "token-of-" + r.Pod, RootsPEM: "roots", TrustDomain: "cluster.local"}, nil
}

var errFake = errors.New("not asked by the supervisor")

func (*fake) Status(context.Context) (api.Status, error) { return api.Status{}, errFake }
func (*fake) Objects(context.Context, api.ObjectQuery) ([]api.ObjectItem, error) {
	return nil, errFake
}
func (*fake) Findings(context.Context) ([]finding.Finding, error) { return nil, errFake }
func (*fake) Apply(context.Context, api.Applied) (api.ApplyResult, error) {
	return api.ApplyResult{}, errFake
}

func (*fake) Delete(context.Context, api.Deleted) (api.ApplyResult, error) {
	return api.ApplyResult{}, errFake
}
func (*fake) Proxies(context.Context) ([]api.ProxyStatus, error) { return nil, errFake }
func (*fake) ProxyResources(context.Context, string) (api.ProxyResources, error) {
	return api.ProxyResources{}, errFake
}

// fakeProxy copies bytes both ways and counts connections. The annotation
// test/vips maps service addresses to pods, as a snapshot would.
func fakeProxy(args []string) error {
	fd, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	data, err := io.ReadAll(os.NewFile(uintptr(fd), "bootstrap"))
	if err != nil {
		return err
	}
	b, err := bootstrap.Parse(data)
	if err != nil {
		return err
	}
	token, err := io.ReadAll(os.NewFile(uintptr(b.Identity.TokenFD), "token"))
	if err != nil || !strings.HasPrefix(string(token), "token-of-") {
		return fmt.Errorf("token %q: %w", token, err)
	}
	p := &toy{b: b, vips: map[string]string{}}
	notes, _ := b.Node.Metadata["ANNOTATIONS"].(map[string]any)
	pairs, _ := notes["test/vips"].(string)
	for pair := range strings.SplitSeq(pairs, ",") {
		vip, pod, _ := strings.Cut(pair, "=")
		p.vips[vip] = pod
	}
	return p.run()
}

type toy struct {
	b             *bootstrap.Bootstrap
	vips          map[string]string
	out, in, name atomic.Int64
}

func (p *toy) run() error {
	for _, a := range []string{"127.0.0.1:15001", "[::1]:15001"} {
		if err := p.serve(a, &p.out, func(dst netip.AddrPort) (string, int) {
			if pod, ok := p.vips[dst.Addr().String()]; ok {
				dst = netip.AddrPortFrom(netip.MustParseAddr(pod), dst.Port())
			}
			return dst.String(), bootstrap.OutboundMark
		}); err != nil {
			return err
		}
	}
	if err := p.serve(":15006", &p.in, func(dst netip.AddrPort) (string, int) { return dst.String(), bootstrap.InboundMark }); err != nil {
		return err
	}
	for _, host := range []string{"127.0.0.1", "::1"} {
		pc, err := net.ListenPacket("udp", net.JoinHostPort(host, "15053"))
		if err != nil {
			return err
		}
		s := &dns.Server{Resolve: func(name string, _ netip.Addr) dns.Answer {
			p.name.Add(1)
			var ips []netip.Addr
			for vip := range p.vips {
				ips = append(ips, netip.MustParseAddr(vip))
			}
			return dns.Answer{Known: strings.HasPrefix(name, "b."), IPs: ips}
		}}
		go s.Serve(context.Background(), pc, nil)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz/ready", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/count", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "out=%d in=%d dns=%d", p.out.Swap(0), p.in.Swap(0), p.name.Swap(0))
	})
	go http.ListenAndServe("127.0.0.1:15000", mux)
	for _, in := range p.b.Inherited {
		l, err := net.FileListener(os.NewFile(uintptr(in.FD), "inherited"))
		if err != nil {
			return err
		}
		go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, "gateway port %d", in.Port)
		}))
	}
	go http.ListenAndServe(":15021", mux)
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, unix.SIGTERM)
	<-sig
	return nil
}

func (p *toy) serve(addr string, n *atomic.Int64, to func(netip.AddrPort) (string, int)) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				dst, err := originalDst(c.(*net.TCPConn))
				if err != nil {
					return
				}
				n.Add(1)
				addr, mark := to(dst)
				d := net.Dialer{Timeout: 3 * time.Second, Control: func(_, _ string, raw syscall.RawConn) error {
					var err error
					_ = raw.Control(func(fd uintptr) {
						err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark)
					})
					return err
				}}
				up, err := d.Dial("tcp", addr)
				if err != nil {
					fmt.Println("dial", addr, err)
					return
				}
				defer up.Close()
				go func() {
					_, _ = io.Copy(up, c)
					_ = up.(*net.TCPConn).CloseWrite()
				}()
				_, _ = io.Copy(c, up)
			}()
		}
	}()
	return nil
}

func originalDst(c *net.TCPConn) (dst netip.AddrPort, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return dst, err
	}
	_ = raw.Control(func(fd uintptr) {
		if c.LocalAddr().(*net.TCPAddr).IP.To4() != nil {
			m, e := unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, 80)
			if err = e; err == nil {
				a := m.Multiaddr
				dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(a[4:8])), uint16(a[2])<<8|uint16(a[3]))
			}
			return
		}
		m, e := unix.GetsockoptIPv6MTUInfo(int(fd), unix.SOL_IPV6, 80)
		if err = e; err == nil {
			dst = netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr), m.Addr.Port>>8|m.Addr.Port<<8)
		}
	})
	return dst, err
}

// app is an HTTP server that says who it is and whom it sees; args: port.
func app(args []string) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	pc, err := net.ListenPacket("udp", ":9000")
	if err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(append([]byte("udp "), buf[:n]...), from)
		}
	}()
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		from, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "%s sees %s", host, from)
	})
	mux.HandleFunc("/env", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, os.Getenv(r.URL.Query().Get("name"))) })
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) {
		data, err := os.ReadFile(r.URL.Query().Get("name"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		_, _ = w.Write(data)
	})
	var live atomic.Bool
	live.Store(true)
	mux.HandleFunc("/die", func(http.ResponseWriter, *http.Request) { live.Store(false) })
	mux.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) {
		if !live.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	fmt.Println("app", host, "listens on", args[0])
	srv := &http.Server{Addr: ":" + args[0], Handler: mux}
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, unix.SIGTERM)
	go func() {
		<-sig
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_ = srv.Shutdown(ctx)
	}()
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// call prints the body of a GET; args: URL.
func call(args []string) error {
	c := &http.Client{Timeout: 4 * time.Second}
	resp, err := c.Get(args[0])
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}

// udpCall sends a datagram and prints the answer; args: address.
func udpCall(args []string) error {
	c, err := net.Dial("udp", args[0])
	if err != nil {
		return err
	}
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(buf[:n])
	return err
}

// mark tries what an application must not be able to do.
func mark([]string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, bootstrap.OutboundMark)
	if !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("SO_MARK: %v, want EPERM", err)
	}
	return nil
}

// parentMain runs Up as a process of its own, to be killed; args: data directory,
// objects, local state.
func parentMain(args []string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	return Up(ctx, Options{
		DataDir: args[0], ProxyProgram: exe, OTLPGRPCPort: -1, OTLPHTTPPort: -1,
		Control: []string{exe, "fake-control", args[1], args[2]},
	})
}
