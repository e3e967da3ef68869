package snapshot

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"

	"lateen.dev/lateen/internal/proxy/message"
)

// Transport protocols as filter chains name them.
const (
	TransportTLS = "tls"
	TransportRaw = "raw_buffer"
)

// ConnInfo is what the inspectors found out about a new connection.
type ConnInfo struct {
	// Destination is the original destination of a captured connection, or our
	// own address.
	Destination netip.AddrPort
	Source      netip.AddrPort
	// SNI in lower case; "" without TLS.
	SNI string
	// Transport is TransportTLS or TransportRaw.
	Transport string
	// ALPN is the client's list in its order; for plaintext what the HTTP
	// inspector found ("http/1.0", "http/1.1" or "h2c"), or empty.
	ALPN []string
}

// candidates is the set of chains that are still possible, held on the stack
// for listeners of ordinary size.
type candidates []*FilterChain

// keep narrows the set to the chains with the highest rank; a negative rank
// excludes. It works in place.
func (c candidates) keep(rank func(*ChainMatch) int) candidates {
	best, out := 0, c[:0]
	for _, chain := range c {
		switch r := rank(&chain.Match); {
		case r < 0 || r < best:
		case r > best:
			best, out = r, append(out[:0], chain)
		default:
			out = append(out, chain)
		}
	}
	return out
}

// Match returns the filter chain for a connection, nil when it has to be
// closed. The criteria are taken in Envoy's order and each one only keeps the
// most specific chains; there is no way back to a less specific one
// (config.listener.v3.FilterChainMatch).
func (l *Listener) Match(info ConnInfo) *FilterChain {
	var stack [32]*FilterChain
	c := candidates(append(stack[:0], l.Chains...))
	c = c.keep(func(m *ChainMatch) int { return rankPort(m, info.Destination.Port()) })
	c = c.keep(func(m *ChainMatch) int { return rankPrefix(m.Destination, info.Destination.Addr()) })
	c = c.keep(func(m *ChainMatch) int { return rankServerName(m.ServerNames, info.SNI) })
	c = c.keep(func(m *ChainMatch) int { return rankText(m.Transport, info.Transport) })
	c = c.keep(func(m *ChainMatch) int { return rankALPN(m.ApplicationProto, info.ALPN) })
	c = c.keep(func(m *ChainMatch) int { return rankPrefix(m.Source, info.Source.Addr()) })
	c = c.keep(func(m *ChainMatch) int { return rankSourcePort(m.SourcePorts, info.Source.Port()) })
	if len(c) == 0 {
		return l.Default
	}
	return c[0]
}

// RefusedBy is why a connection that no chain takes is refused: for plaintext,
// the configuration of the chain that would have taken it over mutual TLS
// (PeerAuthentication STRICT). It is "" when nothing is known.
func (l *Listener) RefusedBy(info ConnInfo) Origin {
	if info.Transport == TransportTLS {
		return ""
	}
	info.Transport, info.ALPN = TransportTLS, nil
	if c := l.Match(info); c != nil {
		return c.Origin
	}
	return ""
}

func rankPort(m *ChainMatch, port uint16) int {
	switch m.DestinationPort {
	case 0:
		return 0
	case port:
		return 1
	}
	return -1
}

// rankPrefix is the length of the longest matching prefix plus one, 0 without
// criteria.
func rankPrefix(prefixes []netip.Prefix, addr netip.Addr) int {
	if len(prefixes) == 0 {
		return 0
	}
	best, addr := -1, addr.Unmap()
	for _, p := range prefixes {
		if p.Contains(addr) {
			best = max(best, p.Bits()+1)
		}
	}
	return best
}

// rankServerName prefers the exact name, then the longest wildcard suffix.
func rankServerName(names []string, sni string) int {
	if len(names) == 0 {
		return 0
	}
	best := -1
	for _, n := range names {
		if suffix, ok := strings.CutPrefix(n, "*"); ok && strings.HasPrefix(suffix, ".") {
			if len(sni) > len(suffix) && strings.HasSuffix(sni, suffix) {
				best = max(best, len(suffix))
			}
		} else if n == sni && sni != "" {
			best = 1 << 16
		}
	}
	return best
}

func rankText(want, have string) int {
	switch want {
	case "":
		return 0
	case have:
		return 1
	}
	return -1
}

// rankALPN prefers what stands first in the client's list.
func rankALPN(want, have []string) int {
	if len(want) == 0 {
		return 0
	}
	for i, p := range have {
		if slices.Contains(want, p) {
			return len(have) - i
		}
	}
	return -1
}

func rankSourcePort(ports []uint16, port uint16) int {
	switch {
	case len(ports) == 0:
		return 0
	case slices.Contains(ports, port):
		return 1
	}
	return -1
}

// OutboundListener returns the listener for a captured destination: the one of
// that very address, else the one of the wildcard address of that port, else
// nil (then the chains of Outbound itself apply).
func (s *Snapshot) OutboundListener(dst netip.AddrPort) *Listener {
	addr := dst.Addr().Unmap().WithZone("")
	if l := s.outboundByAddr[netip.AddrPortFrom(addr, dst.Port())]; l != nil {
		return l
	}
	if addr.Is4() {
		if l := s.outboundByAddr[netip.AddrPortFrom(netip.IPv4Unspecified(), dst.Port())]; l != nil {
			return l
		}
	}
	return s.outboundByAddr[netip.AddrPortFrom(netip.IPv6Unspecified(), dst.Port())]
}

// StripPort returns an authority without its port.
func StripPort(authority []byte) []byte {
	i := bytes.LastIndexByte(authority, ':')
	if i < 0 || bytes.IndexByte(authority[i:], ']') >= 0 {
		return authority
	}
	if bytes.IndexByte(authority[:i], ':') >= 0 && authority[0] != '[' {
		return authority // an IPv6 address without brackets
	}
	return authority[:i]
}

// VirtualHost returns the virtual host for an authority, nil for none: exact
// name, longest suffix wildcard, longest prefix wildcard, "*"
// (config.route.v3.VirtualHost.domains). Upper case is folded.
func (t *RouteTable) VirtualHost(authority []byte) *VirtualHost {
	var buf [256]byte
	for _, c := range authority {
		if 'A' <= c && c <= 'Z' {
			authority = append(buf[:0], authority...)
			for i, c := range authority {
				authority[i] = lower(c)
			}
			break
		}
	}
	if t.IgnorePort {
		authority = StripPort(authority)
	}
	if h := t.exact[string(authority)]; h != nil {
		return h
	}
	for i := range t.suffix {
		w := &t.suffix[i]
		if n := len(authority) - len(w.text); n > 0 && string(authority[n:]) == w.text {
			return w.host
		}
	}
	for i := range t.prefix {
		w := &t.prefix[i]
		if len(authority) > len(w.text) && string(authority[:len(w.text)]) == w.text {
			return w.host
		}
	}
	return t.any
}

// Match returns the first route whose criteria all hold, nil for none. rnd is a
// random number for runtime fractions. It does not allocate once s has grown.
func (v *VirtualHost) Match(h *message.Head, rnd uint64, s *Scratch) *Route {
	path := h.PathOnly()
	if i := bytes.IndexByte(path, '#'); i >= 0 {
		path = path[:i]
	}
	for _, r := range v.Routes {
		if r.Match.match(h, path, rnd, s) {
			return r
		}
	}
	return nil
}

func (m *RouteMatch) match(h *message.Head, path []byte, rnd uint64, s *Scratch) bool {
	if m.Path.Kind == PathConnect {
		if string(h.Method()) != "CONNECT" {
			return false
		}
	} else if !m.Path.Match(path, m.CaseSensitive) {
		return false
	}
	for i := range m.Headers {
		if !m.Headers[i].Match(h, s) {
			return false
		}
	}
	if len(m.Query) > 0 {
		query := h.Query()
		for i := range m.Query {
			if !m.Query[i].Match(query) {
				return false
			}
		}
	}
	if m.GRPC && !isGRPC(h.Get(message.ContentType)) {
		return false
	}
	return m.RuntimePerMillion >= 1e6 || rnd%1e6 < uint64(m.RuntimePerMillion)
}

func isGRPC(contentType []byte) bool {
	const name = "application/grpc"
	return bytes.HasPrefix(contentType, []byte(name)) &&
		(len(contentType) == len(name) || contentType[len(name)] == '+')
}

// Match says whether the path without query fits.
func (p *PathMatch) Match(path []byte, caseSensitive bool) bool {
	switch p.Kind {
	case PathPrefix:
		return hasPrefix(path, p.Text, caseSensitive)
	case PathExact:
		return len(path) == len(p.Text) && hasPrefix(path, p.Text, caseSensitive)
	case PathSeparatedPrefix:
		return hasPrefix(path, p.Text, caseSensitive) &&
			(len(path) == len(p.Text) || path[len(p.Text)] == '/')
	case PathRegex:
		return p.Regex != nil && p.Regex.Match(path)
	case PathTemplate:
		return p.Template.Match(path)
	}
	return false
}

func hasPrefix(path []byte, text string, caseSensitive bool) bool {
	if len(path) < len(text) {
		return false
	}
	if caseSensitive {
		return string(path[:len(text)]) == text
	}
	return equalFold(path[:len(text)], text)
}

// PickCluster chooses one of weighted destinations by a random number, nil if
// the weights sum to 0 or the list is empty.
func PickCluster(list []WeightedCluster, rnd uint64) *WeightedCluster {
	total := uint64(0)
	for i := range list {
		total += uint64(list[i].Weight)
	}
	if len(list) == 1 {
		return &list[0]
	}
	if total == 0 {
		return nil
	}
	at := rnd % total
	for i := range list {
		if w := uint64(list[i].Weight); at < w {
			return &list[i]
		} else {
			at -= w
		}
	}
	return nil
}
