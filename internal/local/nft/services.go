package nft

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	protoTCP = unix.IPPROTO_TCP
	protoUDP = unix.IPPROTO_UDP
	// servicesTable is the node's table.
	servicesTable = "lateen-node"
)

// ServicePort is one virtual address and the ready endpoints behind it, all of
// one address family.
type ServicePort struct {
	VIP       netip.Addr
	Port      uint16
	UDP       bool
	Endpoints []netip.AddrPort
}

// Services is the node's rule set.
type Services struct {
	Ports []ServicePort
	// VIPs are the ranges that service addresses come from: what no rule serves
	// there is refused at once.
	VIPs []netip.Prefix
	// Cluster are all ranges that stay inside the node. TCP that a pod sends
	// elsewhere goes to the forwarder.
	Cluster []netip.Prefix
	// HostAddrs lie inside the ranges of Cluster and go to the forwarder all the same: they
	// stand for the machine itself.
	HostAddrs []netip.Addr
	// ForwarderPort is the node's port of the forwarder; 0 means none.
	ForwarderPort uint16
	// Pods are the addresses of all pods; a pod that reaches itself through a
	// service must see another source than itself.
	Pods []netip.Addr
}

// Apply replaces the node's rule set in one step. Established connections keep
// the endpoint they have.
func (s Services) Apply() error {
	b, err := newBatch(0, servicesTable)
	if err != nil {
		return err
	}
	pre := b.chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest)
	out := b.chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, *nftables.ChainPriorityNATDest)
	post := b.chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource)
	forward := b.chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, *nftables.ChainPriorityFilter)
	local := b.chain("local", nftables.ChainTypeFilter, nftables.ChainHookOutput, *nftables.ChainPriorityFilter)
	for _, p := range s.Ports {
		if len(p.Endpoints) == 0 {
			continue // refused below
		}
		b.rule(pre, b.toEndpoint(p))
		b.rule(out, b.toEndpoint(p))
	}
	s.forwarder(b, pre)
	for _, p := range s.VIPs {
		for _, ch := range []*nftables.Chain{forward, local} {
			b.rule(ch, daddr(p, expr.CmpOpEq), tcp(), reject(rejectTCPReset, 0))
			b.rule(ch, daddr(p, expr.CmpOpEq), reject(rejectICMPX, icmpxPort))
		}
	}
	for _, a := range s.Pods {
		b.rule(post, hairpin(a))
	}
	return b.apply()
}

// forwarder leads TCP for the outside to the node's forwarder.
func (s Services) forwarder(b *batch, pre *nftables.Chain) {
	if s.ForwarderPort == 0 {
		return
	}
	for _, a := range s.HostAddrs {
		b.rule(pre, daddr(netip.PrefixFrom(a, a.BitLen()), expr.CmpOpEq), tcp(), redirect(s.ForwarderPort))
	}
	for _, p := range s.Cluster {
		b.rule(pre, daddr(p, expr.CmpOpEq), done())
	}
	b.rule(pre, inLoopback(), done())
	b.rule(pre, tcp(), redirect(s.ForwarderPort))
}

// toEndpoint sends one service port to an endpoint chosen at random per
// connection.
func (b *batch) toEndpoint(p ServicePort) []expr.Any {
	v6 := p.VIP.Is6()
	proto := byte(protoTCP)
	if p.UDP {
		proto = protoUDP
	}
	out := append(daddr(netip.PrefixFrom(p.VIP, p.VIP.BitLen()), expr.CmpOpEq), l4(proto)...)
	out = append(out, dport(p.Port)...)
	m := b.endpointMap(v6, p.Endpoints)
	out = append(
		out,
		&expr.Numgen{Register: reg, Modulus: uint32(len(p.Endpoints)), Type: unix.NFT_NG_RANDOM},
		&expr.Lookup{SourceRegister: reg, DestRegister: reg, IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
	)
	nat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg, RegProtoMin: unix.NFT_REG32_01}
	if v6 {
		// An IPv6 address fills the first register; the port follows in the next.
		nat.Family, nat.RegProtoMin = unix.NFPROTO_IPV6, unix.NFT_REG_2
	}
	nat.Specified = true
	return append(out, nat)
}

func (b *batch) endpointMap(v6 bool, eps []netip.AddrPort) *nftables.Set {
	addr := nftables.TypeIPAddr
	if v6 {
		addr = nftables.TypeIP6Addr
	}
	m := &nftables.Set{
		Table: b.table, Anonymous: true, Constant: true, IsMap: true,
		KeyType: nftables.TypeInteger, DataType: nftables.MustConcatSetType(addr, nftables.TypeInetService),
	}
	elems := make([]nftables.SetElement, len(eps))
	for i, ep := range eps {
		val := append(ep.Addr().AsSlice(), be16(ep.Port())...)
		elems[i] = nftables.SetElement{
			Key: binaryutil.NativeEndian.PutUint32(uint32(i)),
			Val: append(val, 0, 0), // padded to a register
		}
	}
	if err := b.c.AddSet(m, elems); err != nil && b.err == nil {
		b.err = fmt.Errorf("map of %d endpoints: %w", len(eps), err)
	}
	return m
}

// hairpin gives a connection from a pod to itself the node's address as source.
func hairpin(a netip.Addr) []expr.Any {
	p := netip.PrefixFrom(a, a.BitLen())
	out := daddr(p, expr.CmpOpEq)
	src := &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}
	if a.Is6() {
		src = &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 8, Len: 16}
	}
	return append(out, src, equal(a.AsSlice()), &expr.Masq{})
}
