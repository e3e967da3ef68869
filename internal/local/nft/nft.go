// Package nft builds nftables rules for the local cluster: small matchers and
// verdicts over github.com/google/nftables, and the two rule sets made of them.
// Capture is the pod's set, which leads an application's connections through its
// proxy; Services is the node's set, a small kube-proxy and the door to the
// outside.
//
// Every change is one netlink batch: a rule set is applied whole or not at all.
package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// reg is the register every matcher uses; no rule needs a second one, except
// destination NAT, whose map fills the address here and the port behind it.
const reg = 1

// batch collects the rules of one table and applies them at once.
type batch struct {
	c     *nftables.Conn
	table *nftables.Table
	err   error
}

// newBatch opens a batch in the network namespace nsfd (0 means the caller's) that
// replaces the inet table of that name.
func newBatch(nsfd int, table string) (*batch, error) {
	var opts []nftables.ConnOption
	if nsfd > 0 {
		opts = append(opts, nftables.WithNetNSFd(nsfd))
	}
	c, err := nftables.New(opts...)
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: table}
	c.AddTable(t)
	c.DelTable(t) // add first, so that deleting cannot fail
	c.AddTable(t)
	return &batch{c: c, table: t}, nil
}

func (b *batch) chain(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio nftables.ChainPriority) *nftables.Chain {
	return b.c.AddChain(&nftables.Chain{
		Name: name, Table: b.table, Type: typ, Hooknum: hook, Priority: &prio,
	})
}

// rule adds a rule of the given parts.
func (b *batch) rule(ch *nftables.Chain, parts ...[]expr.Any) {
	b.c.AddRule(&nftables.Rule{Table: b.table, Chain: ch, Exprs: slices.Concat(parts...)})
}

// set adds an anonymous constant set and returns the lookup in it.
func (b *batch) set(typ nftables.SetDatatype, keys [][]byte) []expr.Any {
	s := &nftables.Set{Table: b.table, Anonymous: true, Constant: true, KeyType: typ}
	elems := make([]nftables.SetElement, len(keys))
	for i, k := range keys {
		elems[i] = nftables.SetElement{Key: k}
	}
	if err := b.c.AddSet(s, elems); err != nil && b.err == nil {
		b.err = err
	}
	return []expr.Any{&expr.Lookup{SourceRegister: reg, SetName: s.Name, SetID: s.ID}}
}

func (b *batch) apply() error {
	if b.err != nil {
		return fmt.Errorf("build nftables table %s: %w", b.table.Name, b.err)
	}
	if err := b.c.Flush(); err != nil {
		return fmt.Errorf("apply nftables table %s: %w", b.table.Name, err)
	}
	return nil
}

func equal(data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data}
}

func markIs(mark uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg},
		equal(binaryutil.NativeEndian.PutUint32(mark)),
	}
}

// loopback is the index of lo, the same in every network namespace.
const loopback = 1

func outLoopback() []expr.Any { return outDevice(loopback) }

func outDevice(index int) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyOIF, Register: reg}, equal(binaryutil.NativeEndian.PutUint32(uint32(index)))}
}

func inLoopback() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIF, Register: reg}, equal(binaryutil.NativeEndian.PutUint32(loopback))}
}

func l4(proto byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, equal([]byte{proto})}
}

func tcp() []expr.Any { return l4(unix.IPPROTO_TCP) }

func loadDport() expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
}

func dport(port uint16) []expr.Any { return []expr.Any{loadDport(), equal(be16(port))} }

// dportIn matches destination ports of a set.
func (b *batch) dportIn(ports []uint16) []expr.Any {
	keys := make([][]byte, len(ports))
	for i, p := range ports {
		keys[i] = be16(p)
	}
	return append([]expr.Any{loadDport()}, b.set(nftables.TypeInetService, keys)...)
}

func family(v6 bool) []expr.Any {
	proto := byte(unix.NFPROTO_IPV4)
	if v6 {
		proto = unix.NFPROTO_IPV6
	}
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg}, equal([]byte{proto})}
}

func loadDaddr(v6 bool) expr.Any {
	if v6 {
		return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 24, Len: 16}
	}
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}
}

// daddr matches the destination against a prefix, or against everything else.
func daddr(p netip.Prefix, op expr.CmpOp) []expr.Any {
	p = p.Masked()
	v6 := p.Addr().Is6()
	out := append(family(v6), loadDaddr(v6))
	if !p.IsSingleIP() {
		out = append(out, mask(p))
	}
	return append(out, &expr.Cmp{Op: op, Register: reg, Data: p.Addr().AsSlice()})
}

func mask(p netip.Prefix) expr.Any {
	n := p.Addr().BitLen() / 8
	m := make([]byte, n)
	for i := range p.Bits() {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return &expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: uint32(n), Mask: m, Xor: make([]byte, n)}
}

func done() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}} }

func redirect(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: reg, Data: be16(port)},
		&expr.Redir{RegisterProtoMin: reg},
	}
}

// Reject types of nf_tables: reset the connection, or the ICMP answer that fits
// the packet's family with a code.
const (
	rejectTCPReset = unix.NFT_REJECT_TCP_RST
	rejectICMPX    = unix.NFT_REJECT_ICMPX_UNREACH
	icmpxPort      = 1
)

func reject(typ uint32, code uint8) []expr.Any {
	return []expr.Any{&expr.Reject{Type: typ, Code: code}}
}

func be16(p uint16) []byte { return binary.BigEndian.AppendUint16(nil, p) }
