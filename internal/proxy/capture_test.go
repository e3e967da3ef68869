package proxy

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"lateen.dev/lateen/internal/bootstrap"
	"lateen.dev/lateen/internal/local/nft"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// inNamespace marks the child process of TestCapture.
const inNamespace = "LATEEN_TEST_CAPTURE_CHILD"

// TestCapture_wholePathThroughBothListeners runs in a network namespace of its
// own, with the capture rules of a real pod: a plain client dials a service
// address, is led to 15001, routed, captured again on its way to the own pod
// address at 15006, and reaches the application there; in IPv4 and IPv6.
func TestCapture_wholePathThroughBothListeners(t *testing.T) {
	if os.Getenv(inNamespace) == "1" {
		captureChild(t)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	if err != nil && len(out) == 0 {
		skip(t, "skipped: no network namespaces here: %v", err)
	}
	if strings.Contains(string(out), "--- SKIP") {
		skip(t, "skipped: %s", out)
	}
	if err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Fatalf("%v\n%s", err, out)
	}
}

// skip says what the machine does not allow; in CI that is a failure.
func skip(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

func addresses(t *testing.T, addrs ...string) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		p, err := netlink.ParseAddr(a)
		if err != nil {
			t.Fatal(err)
		}
		p.Flags = syscall.IFA_F_NODAD
		if err := netlink.AddrAdd(lo, p); err != nil {
			t.Fatalf("%s: %v", a, err)
		}
	}
}

func captureChild(t *testing.T) {
	// The service addresses are unknown to the namespace but for a route: only
	// capture makes them answer.
	addresses(t, "10.77.0.9/32", "fd77::9/128")
	out := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "out0"}, PeerName: "out1"}
	if err := netlink.LinkAdd(out); err != nil {
		skip(t, "skipped: no veth interfaces: %v", err)
	}
	for _, a := range []string{"10.77.0.200/16", "fd77::200/64"} {
		p, _ := netlink.ParseAddr(a)
		p.Flags = syscall.IFA_F_NODAD
		if err := netlink.AddrAdd(out, p); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"out0", "out1"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(l); err != nil {
			t.Fatal(err)
		}
	}
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := (nft.Capture{}).Apply(int(ns.Fd())); err != nil {
		t.Fatal(err)
	}
	pod4, pod6 := netip.MustParseAddr("10.77.0.9"), netip.MustParseAddr("fd77::9")
	for _, ip := range []netip.Addr{pod4, pod6} {
		l, err := net.Listen("tcp", netip.AddrPortFrom(ip, 8080).String())
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprintf(w, "%s %s", r.Header.Get("x-seen"), r.Context().Value(http.LocalAddrContextKey))
			}))
		}()
	}
	s, err := NewServer(Options{
		Bootstrap: &bootstrap.Bootstrap{
			Role: bootstrap.Sidecar, Capture: bootstrap.CaptureMark, Concurrency: 2, IPs: []netip.Addr{pod4, pod6},
		}, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	apply(t, s, captureConfig(t, pod4, pod6))
	client := &http.Client{Timeout: 5 * time.Second}
	for _, c := range []struct{ vip, want string }{
		{"10.77.0.201:80", "via-inbound 10.77.0.9:8080"},
		{"[fd77::201]:80", "via-inbound [fd77::9]:8080"},
	} {
		resp, err := client.Get("http://" + c.vip + "/x")
		if err != nil {
			t.Fatalf("%s: %v", c.vip, err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || string(body) != c.want {
			t.Fatalf("%s: %d %q, want %q", c.vip, resp.StatusCode, body, c.want)
		}
	}
	for _, direct := range []string{"127.0.0.1:15001", "127.0.0.1:15006", "[::1]:15001"} {
		conn, err := net.DialTimeout("tcp", direct, 2*time.Second)
		if err != nil {
			continue
		}
		_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if n, err := conn.Read(make([]byte, 100)); n > 0 || os.IsTimeout(err) {
			t.Errorf("%s served somebody who dialled it directly: %d bytes, %v", direct, n, err)
		}
		conn.Close()
	}
}

// captureConfig is a sidecar's snapshot in small: virtualOutbound leads
// everything to the own pod, virtualInbound to the original destination.
func captureConfig(t *testing.T, pods ...netip.Addr) *config {
	c := newConfig(t)
	for i, p := range pods {
		c.cluster(fmt.Sprintf("outbound|80||app%d", i), netip.AddrPortFrom(p, 8080).String())
	}
	c.snap.Clusters["inbound|8080||"] = &snapshot.Cluster{
		Name: "inbound|8080||", Type: snapshot.OriginalDst, LB: snapshot.ClusterProvided, Warm: true, ConnectTimeout: 2 * time.Second, Limits: noLimits(),
	}
	mark := func(r *snapshot.Route) {
		r.Request.Set = []snapshot.HeaderValue{{Name: "x-seen", Value: "via-inbound"}}
	}
	v6 := httpChain(c.manager("outbound|80||app1"))
	v6.Match.Destination = []netip.Prefix{netip.MustParsePrefix("fd77::/64")}
	out := &snapshot.Listener{
		Name: "virtualOutbound", Addresses: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:15001")}, BindToPort: true,
		UseOriginalDst: true, Direction: snapshot.Outbound, Chains: []*snapshot.FilterChain{v6}, Default: httpChain(c.manager("outbound|80||app0")),
	}
	in := &snapshot.Listener{
		Name: "virtualInbound", Addresses: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:15006")}, BindToPort: true,
		Direction: snapshot.Inbound, Default: httpChain(c.manager("inbound|8080||", mark)),
	}
	c.snap.Listeners["virtualOutbound"], c.snap.Listeners["virtualInbound"] = out, in
	c.snap.Outbound, c.snap.Inbound = out, in
	return c
}
