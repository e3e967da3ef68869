package nft

import (
	"fmt"
	"net/netip"
	"slices"

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
	// Sink is the index of the device that addresses without a way are routed to:
	// what goes there is refused at once.
	Sink int
	// Cluster are the ranges of pods. TCP that a pod sends to addresses that are
	// neither pods nor services goes to the forwarder.
	Cluster []netip.Prefix
	// HostAddrs lie inside the ranges of Cluster and go to the forwarder all the
	// same: they stand for the machine itself.
	HostAddrs []netip.Addr
	// Forwarder are the node's addresses of the forwarder, one per family.
	Forwarder []netip.AddrPort
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
	for _, p := range s.Ports {
		match := slices.Concat(daddr(netip.PrefixFrom(p.VIP, p.VIP.BitLen()), expr.CmpOpEq), l4(p.proto()), dport(p.Port))
		for _, ch := range []*nftables.Chain{pre, out} {
			rule := done() // without endpoints it is refused below, not sent outside
			if len(p.Endpoints) > 0 {
				rule = b.toEndpoint(p) // an anonymous map belongs to one rule
			}
			b.rule(ch, match, rule)
		}
	}
	for _, a := range s.vips() { // a port that no service has is not outside either
		b.rule(pre, daddr(netip.PrefixFrom(a, a.BitLen()), expr.CmpOpEq), done())
	}
	s.forwarder(b, pre)
	for _, a := range s.Pods {
		b.rule(post, hairpin(a))
	}
	for name, hook := range map[string]*nftables.ChainHook{"forward": nftables.ChainHookForward, "local": nftables.ChainHookOutput} {
		ch := b.chain(name, nftables.ChainTypeFilter, hook, *nftables.ChainPriorityFilter)
		// What was rewritten on its way out still shows the device of its first route.
		b.rule(ch, outDevice(s.Sink), notRewritten(), tcp(), reject(rejectTCPReset, 0))
		b.rule(ch, outDevice(s.Sink), notRewritten(), reject(rejectICMPX, icmpxPort))
	}
	return b.apply()
}

// notRewritten matches connections without destination NAT (IPS_DST_NAT).
func notRewritten() []expr.Any {
	const dstNAT = 1 << 5
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: reg},
		&expr.Bitwise{
			SourceRegister: reg, DestRegister: reg, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(dstNAT), Xor: make([]byte, 4),
		},
		equal(make([]byte, 4)),
	}
}

// vips are the addresses of all services, each once.
func (s Services) vips() []netip.Addr {
	var out []netip.Addr
	for _, p := range s.Ports {
		out = append(out, p.VIP)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

func (p ServicePort) proto() byte {
	if p.UDP {
		return protoUDP
	}
	return protoTCP
}

// forwarder leads TCP for the outside to the node's forwarder. It is destination
// NAT and not a redirect, because the pods' devices have no address here.
func (s Services) forwarder(b *batch, pre *nftables.Chain) {
	var to [2][]expr.Any
	for _, ap := range s.Forwarder {
		fam := 0
		nat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg, RegProtoMin: unix.NFT_REG_2, Specified: true}
		if ap.Addr().Is6() {
			fam, nat.Family = 1, unix.NFPROTO_IPV6
		}
		to[fam] = append(family(fam == 1),
			&expr.Immediate{Register: reg, Data: ap.Addr().AsSlice()},
			&expr.Immediate{Register: unix.NFT_REG_2, Data: be16(ap.Port())}, nat)
	}
	for _, a := range s.HostAddrs {
		fam := 0
		if a.Is6() {
			fam = 1
		}
		if to[fam] != nil {
			b.rule(pre, daddr(netip.PrefixFrom(a, a.BitLen()), expr.CmpOpEq), tcp(), to[fam])
		}
	}
	for _, p := range s.Cluster {
		b.rule(pre, daddr(p, expr.CmpOpEq), done())
	}
	b.rule(pre, inLoopback(), done())
	for _, rule := range to {
		if rule != nil {
			b.rule(pre, tcp(), rule)
		}
	}
}

// toEndpoint sends one service port to an endpoint chosen at random per
// connection.
func (b *batch) toEndpoint(p ServicePort) []expr.Any {
	v6 := p.VIP.Is6()
	m := b.endpointMap(v6, p.Endpoints)
	out := []expr.Any{
		&expr.Numgen{Register: reg, Modulus: uint32(len(p.Endpoints)), Type: unix.NFT_NG_RANDOM},
		&expr.Lookup{SourceRegister: reg, DestRegister: reg, IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
	}
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
