// Package netns makes the network of the local cluster: the node's own
// namespace and one namespace per pod, joined by a veth pair each and routed by
// the node. A namespace has no name on disk; it lives as long as a descriptor
// or a process in it.
//
// All functions need CAP_NET_ADMIN and CAP_SYS_ADMIN in the node's user
// namespace. They are safe for concurrent use.
package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	vns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Addresses of the local cluster. A pod has the same low bits in both families.
var (
	// Pods4 and Pods6 hold the pods and the node.
	Pods4 = netip.MustParsePrefix("10.77.0.0/16")
	Pods6 = netip.MustParsePrefix("fd77::/64")
	// Node4 and Node6 are the node: gateway, name server, control plane.
	Node4 = netip.MustParseAddr("10.77.0.1")
	Node6 = netip.MustParseAddr("fd77::1")
)

// mtu is what networks that pods will meet elsewhere have.
const mtu = 1500

// gatewayMAC is the node's end of every pair. Fixed neighbour entries on both
// sides save address resolution.
var gatewayMAC = net.HardwareAddr{0x0e, 0x77, 0, 0, 0, 1}

// Namespace is one pod's network namespace.
type Namespace struct {
	FD int
	// IPs are the pod's addresses, IPv4 first; no IPv6 where the kernel has none.
	IPs []netip.Addr
}

// HasIPv6 says whether the kernel has IPv6.
func HasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// PodIPs returns the addresses of pod number n, from 2 on.
func PodIPs(n int) []netip.Addr {
	b4 := Pods4.Addr().As4()
	b4[2], b4[3] = byte(n>>8), byte(n)
	ips := []netip.Addr{netip.AddrFrom4(b4)}
	if HasIPv6() {
		b6 := Pods6.Addr().As16()
		b6[14], b6[15] = byte(n>>8), byte(n)
		ips = append(ips, netip.AddrFrom16(b6))
	}
	return ips
}

// SetupNode prepares the namespace of the calling process: loopback, addresses,
// forwarding and a sink for addresses without a way. It returns the index of the
// sink's device.
func SetupNode() (sink int, err error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return 0, fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return 0, fmt.Errorf("set lo up: %w", err)
	}
	sysctl("net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0",
		"net.ipv4.conf.all.send_redirects=0", "net.ipv4.conf.default.send_redirects=0",
		"net.ipv4.ip_unprivileged_port_start=0", "net.ipv6.conf.all.forwarding=1",
		"net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_ra=0")
	for _, a := range nodeAddrs() {
		if err := addAddr(&netlink.Handle{}, lo, netip.PrefixFrom(a, a.BitLen())); err != nil {
			return 0, err
		}
	}
	return addSink()
}

// addSink gives every other address a route, so that the node's own connections
// to services get as far as the rules that rewrite them. The device leads
// nowhere; what no rule rewrote is refused there.
func addSink() (int, error) {
	// A veth pair, because pods need veth anyway and a kernel may lack dummy.
	pair := netlink.NewVeth(netlink.LinkAttrs{Name: "sink", MTU: mtu})
	pair.PeerName = "sink-end"
	if err := netlink.LinkAdd(pair); err != nil {
		return 0, fmt.Errorf("add the sink device: %w", err)
	}
	end, err := netlink.LinkByName("sink-end")
	if err != nil {
		return 0, fmt.Errorf("find the sink device: %w", err)
	}
	if err := netlink.LinkSetUp(end); err != nil { // else the other has no carrier
		return 0, fmt.Errorf("set the sink device up: %w", err)
	}
	link, err := netlink.LinkByName("sink")
	if err != nil {
		return 0, fmt.Errorf("find the sink device: %w", err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return 0, fmt.Errorf("set the sink device up: %w", err)
	}
	for _, src := range nodeAddrs() {
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if src.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(all), Src: src.AsSlice(), Scope: netlink.SCOPE_LINK}
		if err := netlink.RouteAdd(r); err != nil {
			return 0, fmt.Errorf("route %s to the sink: %w", all, err)
		}
	}
	return link.Attrs().Index, nil
}

func nodeAddrs() []netip.Addr {
	if HasIPv6() {
		return []netip.Addr{Node4, Node6}
	}
	return []netip.Addr{Node4}
}

// NewPod makes the network namespace of pod number n and joins it to the node.
func NewPod(n int) (*Namespace, error) {
	fd, err := newNamespace()
	if err != nil {
		return nil, err
	}
	ns := &Namespace{FD: fd, IPs: PodIPs(n)}
	if err := ns.connect(n); err != nil {
		ns.Close()
		return nil, fmt.Errorf("network of pod %d: %w", n, err)
	}
	return ns, nil
}

// Close gives up the namespace. The kernel removes it with everything in it once
// no process is left inside.
func (ns *Namespace) Close() {
	if ns.FD >= 0 {
		unix.Close(ns.FD)
		ns.FD = -1
	}
}

// newNamespace makes an empty namespace on a thread that dies afterwards.
func newNamespace() (int, error) {
	type result struct {
		fd  int
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- result{-1, fmt.Errorf("make a network namespace: %w", err)}
			return
		}
		// Written here because /proc/sys/net shows the namespace of the reader.
		sysctl("net.ipv4.ip_unprivileged_port_start=0", "net.ipv4.ping_group_range=0 2147483647",
			"net.ipv4.conf.all.accept_redirects=0", "net.ipv4.conf.default.accept_redirects=0",
			"net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0",
			"net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0",
			"net.ipv6.conf.default.accept_ra=0", "net.ipv6.conf.all.accept_redirects=0",
			"net.ipv6.conf.default.accept_redirects=0")
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		done <- result{fd, err}
	}()
	r := <-done
	return r.fd, r.err
}

func (ns *Namespace) connect(n int) error {
	host := fmt.Sprintf("pod%d", n)
	mac := net.HardwareAddr{0x0e, 0x77, 0, 1, byte(n >> 8), byte(n)}
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: host, MTU: mtu, HardwareAddr: gatewayMAC})
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerMTU = "eth0", mac, mtu
	veth.PeerNamespace = netlink.NsFd(ns.FD)
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth %s: %w", host, err)
	}
	if err := ns.nodeSide(host, mac); err != nil {
		return err
	}
	return ns.podSide()
}

// nodeSide brings up the node's end and routes the pod's addresses to it.
func (ns *Namespace) nodeSide(host string, mac net.HardwareAddr) error {
	link, err := netlink.LinkByName(host)
	if err != nil {
		return fmt.Errorf("find %s: %w", host, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", host, err)
	}
	idx := link.Attrs().Index
	for _, ip := range ns.IPs {
		src := Node4
		if ip.Is6() {
			src = Node6
		}
		if err := neighbour(&netlink.Handle{}, idx, ip, mac); err != nil {
			return err
		}
		r := &netlink.Route{
			LinkIndex: idx, Dst: ipNet(netip.PrefixFrom(ip, ip.BitLen())),
			Src: src.AsSlice(), Scope: netlink.SCOPE_LINK,
		}
		if err := netlink.RouteAdd(r); err != nil {
			return fmt.Errorf("route %s: %w", ip, err)
		}
	}
	return nil
}

// podSide brings up the pod's end. Both families need a default route: capture
// happens after routing, so an address without a route would never be captured.
func (ns *Namespace) podSide() error {
	h, err := netlink.NewHandleAt(vns.NsHandle(ns.FD))
	if err != nil {
		return fmt.Errorf("netlink in the pod: %w", err)
	}
	defer h.Close()
	for _, name := range []string{"lo", "eth0"} {
		link, err := h.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		if name == "eth0" {
			for _, ip := range ns.IPs {
				if err := addAddr(h, link, netip.PrefixFrom(ip, ip.BitLen())); err != nil {
					return err
				}
			}
		}
		if err := h.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up: %w", name, err)
		}
	}
	link, err := h.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("find eth0: %w", err)
	}
	for _, ip := range ns.IPs {
		if err := defaultRoute(h, link.Attrs().Index, ip); err != nil {
			return err
		}
	}
	return nil
}

func defaultRoute(h *netlink.Handle, idx int, ip netip.Addr) error {
	gw, all := Node4, netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if ip.Is6() {
		gw, all = Node6, netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	if err := neighbour(h, idx, gw, gatewayMAC); err != nil {
		return err
	}
	link := &netlink.Route{LinkIndex: idx, Dst: ipNet(netip.PrefixFrom(gw, gw.BitLen())), Scope: netlink.SCOPE_LINK}
	if err := h.RouteAdd(link); err != nil {
		return fmt.Errorf("route to the node: %w", err)
	}
	def := &netlink.Route{LinkIndex: idx, Dst: ipNet(all), Gw: gw.AsSlice(), Src: ip.AsSlice()}
	if err := h.RouteAdd(def); err != nil {
		return fmt.Errorf("default route by %s: %w", gw, err)
	}
	return nil
}

func neighbour(h *netlink.Handle, idx int, ip netip.Addr, mac net.HardwareAddr) error {
	fam := unix.AF_INET
	if ip.Is6() {
		fam = unix.AF_INET6
	}
	n := &netlink.Neigh{
		LinkIndex: idx, Family: fam, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac,
	}
	if err := h.NeighSet(n); err != nil {
		return fmt.Errorf("neighbour %s: %w", ip, err)
	}
	return nil
}

func addAddr(h *netlink.Handle, link netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD // else the address is tentative for a second
	}
	if err := h.AddrAdd(link, a); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add address %s: %w", p, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// sysctl writes settings. A kernel that lacks one works without it.
func sysctl(settings ...string) {
	for _, s := range settings {
		name, value, _ := strings.Cut(s, "=")
		path := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			continue
		}
		_, _ = f.WriteString(value) // best effort, see above
		f.Close()
	}
}

// Do runs f on a thread inside the namespace nsfd. What f opens or starts belongs
// to that namespace. f must not start goroutines that need it.
func Do(nsfd int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(nsfd, unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter the pod's network: %w", err)
			return
		}
		err := f()
		// The thread is not worth restoring: it stays locked and ends here.
		done <- err
	}()
	return <-done
}

// MarkControl is a net.Dialer Control function that marks the socket.
func MarkControl(mark int) func(string, string, syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) error {
		var serr error
		if err := raw.Control(func(fd uintptr) {
			serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark)
		}); err != nil {
			return err
		}
		return serr
	}
}
