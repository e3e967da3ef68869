package nft

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"lateen.dev/lateen/internal/bootstrap"
)

// captureTable is the name of a pod's table.
const captureTable = "lateen"

// Capture says which of a pod's connections go through its proxy. The zero value
// captures everything.
type Capture struct {
	ExcludeOutboundPorts []uint16
	// IncludeOutboundPorts are captured whatever their address.
	IncludeOutboundPorts []uint16
	ExcludeOutbound      []netip.Prefix
	// IncludeOutbound limits capture to these addresses; nil means all, empty
	// means none.
	IncludeOutbound     []netip.Prefix
	IncludeOutboundSet  bool
	ExcludeInboundPorts []uint16
	// IncludeInboundPorts limits capture to these ports when IncludeInboundSet.
	IncludeInboundPorts []uint16
	IncludeInboundSet   bool
	// DNS leads port 53 to the proxy's resolver.
	DNS bool
}

// Annotations that Istio reads for capture.
const (
	annotationPrefix = "traffic.sidecar.istio.io/"
	excludeOutPorts  = annotationPrefix + "excludeOutboundPorts"
	includeOutPorts  = annotationPrefix + "includeOutboundPorts"
	excludeOutRanges = annotationPrefix + "excludeOutboundIPRanges"
	includeOutRanges = annotationPrefix + "includeOutboundIPRanges"
	excludeInPorts   = annotationPrefix + "excludeInboundPorts"
	includeInPorts   = annotationPrefix + "includeInboundPorts"
)

// ParseCapture reads Istio's traffic.sidecar.istio.io annotations. An annotation
// of that prefix that is not understood is an error: capture must not silently
// differ from what was asked for.
func ParseCapture(annotations map[string]string) (Capture, error) {
	c := Capture{DNS: true}
	for name, value := range annotations {
		if !strings.HasPrefix(name, annotationPrefix) {
			continue
		}
		if err := c.annotation(name, value); err != nil {
			return Capture{}, fmt.Errorf("annotation %s: %w", name, err)
		}
	}
	return c, nil
}

func (c *Capture) annotation(name, value string) (err error) {
	switch name {
	case excludeOutPorts:
		c.ExcludeOutboundPorts, err = parsePorts(value)
	case includeOutPorts:
		c.IncludeOutboundPorts, err = parsePorts(value)
	case excludeInPorts:
		c.ExcludeInboundPorts, err = parsePorts(value)
	case includeInPorts:
		if value != "*" {
			c.IncludeInboundSet = true
			c.IncludeInboundPorts, err = parsePorts(value)
		}
	case excludeOutRanges:
		c.ExcludeOutbound, err = parseRanges(value)
	case includeOutRanges:
		if value != "*" {
			c.IncludeOutboundSet = true
			c.IncludeOutbound, err = parseRanges(value)
		}
	default:
		return fmt.Errorf("not supported on one machine; remove it")
	}
	return err
}

func parsePorts(s string) ([]uint16, error) {
	var out []uint16
	for f := range strings.SplitSeq(s, ",") {
		f = strings.TrimSpace(f)
		if f == "" {
			continue
		}
		p, err := strconv.ParseUint(f, 10, 16)
		if err != nil || p == 0 {
			return nil, fmt.Errorf("%q is not a port", f)
		}
		out = append(out, uint16(p))
	}
	return out, nil
}

func parseRanges(s string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for f := range strings.SplitSeq(s, ",") {
		f = strings.TrimSpace(f)
		if f == "" {
			continue
		}
		p, err := netip.ParsePrefix(f)
		if err != nil {
			a, aerr := netip.ParseAddr(f)
			if aerr != nil {
				return nil, fmt.Errorf("%q is not an address range", f)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// Apply installs the capture rules in the pod's network namespace, for IPv4 and
// IPv6 at once.
func (c Capture) Apply(nsfd int) error {
	b, err := newBatch(nsfd, captureTable)
	if err != nil {
		return err
	}
	c.output(b)
	c.prerouting(b)
	return b.apply()
}

func (c Capture) output(b *batch) {
	out := b.chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, *nftables.ChainPriorityNATDest)
	// The proxy to its own application, and probes.
	b.rule(out, markIs(bootstrap.InboundMark), done())
	// A call to oneself: the outbound half dialled an address of this pod. It
	// still passes the inbound half, so that mTLS and policy hold. The loopback
	// addresses themselves stay direct.
	b.rule(out, markIs(bootstrap.OutboundMark), outLoopback(), tcp(),
		daddr(netip.MustParsePrefix("127.0.0.0/8"), expr.CmpOpNeq), redirect(bootstrap.InboundPort))
	b.rule(out, markIs(bootstrap.OutboundMark), outLoopback(), tcp(),
		daddr(netip.MustParsePrefix("::1/128"), expr.CmpOpNeq), redirect(bootstrap.InboundPort))
	b.rule(out, markIs(bootstrap.OutboundMark), done())
	if c.DNS {
		// Before the loopback rule, so that any name server address works.
		b.rule(out, l4(protoUDP), dport(53), redirect(bootstrap.DNSPort))
		b.rule(out, tcp(), dport(53), redirect(bootstrap.DNSPort))
	}
	b.rule(out, outLoopback(), done())
	if len(c.ExcludeOutboundPorts) > 0 {
		b.rule(out, tcp(), b.dportIn(c.ExcludeOutboundPorts), done())
	}
	for _, p := range c.ExcludeOutbound {
		b.rule(out, daddr(p, expr.CmpOpEq), done())
	}
	if len(c.IncludeOutboundPorts) > 0 {
		b.rule(out, tcp(), b.dportIn(c.IncludeOutboundPorts), redirect(bootstrap.OutboundPort))
	}
	if !c.IncludeOutboundSet {
		b.rule(out, tcp(), redirect(bootstrap.OutboundPort))
		return
	}
	for _, p := range c.IncludeOutbound {
		b.rule(out, tcp(), daddr(p, expr.CmpOpEq), redirect(bootstrap.OutboundPort))
	}
}

func (c Capture) prerouting(b *batch) {
	in := b.chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest)
	b.rule(in, inLoopback(), done())
	b.rule(in, tcp(), b.dportIn([]uint16{
		bootstrap.InboundPort, bootstrap.StatusPort, bootstrap.ReadyPort, bootstrap.PrometheusPort,
	}), done())
	if len(c.ExcludeInboundPorts) > 0 {
		b.rule(in, tcp(), b.dportIn(c.ExcludeInboundPorts), done())
	}
	switch {
	case !c.IncludeInboundSet:
		b.rule(in, tcp(), redirect(bootstrap.InboundPort))
	case len(c.IncludeInboundPorts) > 0:
		b.rule(in, tcp(), b.dportIn(c.IncludeInboundPorts), redirect(bootstrap.InboundPort))
	}
}
