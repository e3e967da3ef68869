package stream

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"net/netip"
	"net/url"
	"strings"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

func lowerASCII(v []byte) []byte { return bytes.ToLower(v) }

// edgeHeaders steer the proxy and are not believed from outside the mesh
// (Envoy: headers that are sanitized for external requests).
var edgeHeaders = [...]message.NameID{
	message.XEnvoyInternal, message.XEnvoyForceTrace, message.XEnvoyRetryOn, message.XEnvoyMaxRetries,
	message.XEnvoyUpstreamRqTimeoutMs, message.XEnvoyUpstreamRqPerTryTimeoutMs, message.XEnvoyExpectedRqTimeoutMs,
	message.XEnvoyOriginalPath, message.XEnvoyDecoratorOperation, message.XEnvoyAttemptCount,
	message.XEnvoyPeerMetadata, message.XEnvoyPeerMetadataID,
}

// edgeNames are those without an interned name.
var edgeNames = [...]string{
	"x-envoy-downstream-service-cluster", "x-envoy-downstream-service-node", "x-envoy-external-address",
	"x-envoy-hedge-on-per-try-timeout", "x-envoy-ip-tags", "x-envoy-retry-grpc-on", "x-envoy-retriable-status-codes",
	"x-envoy-retriable-header-names", "x-envoy-upstream-alt-stat-name", "x-envoy-upstream-rq-timeout-alt-response",
	"x-envoy-upstream-stream-duration-ms", "x-envoy-original-host", "x-envoy-original-dst-host",
}

func cleanEdge(h *message.Head) {
	for i := range h.Len() {
		id, name, _, ok := h.Field(i)
		if ok && id == message.Other && aliased(name) {
			h.DelField(i)
			continue
		}
		if !ok || !bytes.HasPrefix(name, []byte("x-envoy-")) {
			continue
		}
		if id != message.Other {
			for _, e := range edgeHeaders {
				if e == id {
					h.DelField(i)
					break
				}
			}
			continue
		}
		for _, e := range edgeNames {
			if string(name) == e {
				h.DelField(i)
				break
			}
		}
	}
}

// aliased says that a name is one of those that the mesh speaks by, spelled with
// underscores: CGI and its heirs do not tell "_" from "-", so an application
// might take it for ours.
func aliased(name []byte) bool {
	if bytes.IndexByte(name, '_') < 0 {
		return false
	}
	dashed := strings.ReplaceAll(string(name), "_", "-")
	return strings.HasPrefix(dashed, "x-envoy-") || strings.HasPrefix(dashed, "x-forwarded-") ||
		dashed == "x-real-ip" || dashed == "x-request-id"
}

// forwardedFor keeps x-forwarded-for true and finds the client's address behind
// trusted hops. At the edge our peer's address is appended; inside the mesh the
// header passes as it is and its last entry is the client (Envoy:
// use_remote_address, xff_num_trusted_hops).
func (x *Exchange) forwardedFor() {
	h, m, peer := x.head, x.site.Manager, x.rec.Conn.Remote.Addr().Unmap()
	x.remote = peer
	if !x.edge {
		if a, ok := fromXFF(h.Get(message.XForwardedFor), m.XFFTrustedHops); ok {
			x.remote = a
		}
		return
	}
	if m.XFFTrustedHops > 0 {
		if a, ok := fromXFF(h.Get(message.XForwardedFor), m.XFFTrustedHops-1); ok {
			x.remote = a
		}
	}
	e := x.env
	e.buf = e.buf[:0]
	h.ValuesOf(message.XForwardedFor, func(v []byte) bool {
		if len(e.buf) > 0 {
			e.buf = append(e.buf, ',')
		}
		e.buf = append(e.buf, v...)
		return true
	})
	if len(e.buf) > 0 {
		e.buf = append(e.buf, ',')
	}
	e.buf = peer.AppendTo(e.buf)
	h.Set(message.XForwardedFor, e.buf)
}

// fromXFF takes an address from the list, counted from the right.
func fromXFF(v []byte, skip uint32) (netip.Addr, bool) {
	for {
		if len(v) == 0 {
			return netip.Addr{}, false
		}
		item := v
		i := bytes.LastIndexByte(v, ',')
		if i >= 0 {
			item, v = v[i+1:], v[:i]
		} else {
			v = nil
		}
		if skip > 0 {
			skip--
			continue
		}
		a, err := netip.ParseAddr(string(bytes.TrimSpace(item)))
		return a.Unmap(), err == nil
	}
}

// forwardedProto says how the client spoke to the mesh. The edge decides it;
// inside, a peer's word stands if it is http or https.
func (x *Exchange) forwardedProto() {
	h, m := x.head, x.site.Manager
	own := "http"
	if x.rec.Conn.TLS != nil {
		own = "https"
	}
	have := string(h.Get(message.XForwardedProto))
	trusted := !x.edge || m.XFFTrustedHops > 0
	if have != "http" && have != "https" || !trusted {
		h.SetString(message.XForwardedProto, own)
		have = own
	}
	h.SetScheme([]byte(have))
}

// clientCert treats x-forwarded-client-cert as the manager is told: what a
// client without a verified certificate claims is always removed, unless
// everything is passed on.
func (x *Exchange) clientCert() {
	h, m := x.head, x.site.Manager
	mode := m.ForwardClientCert
	if mode == snapshot.XFCCAlwaysForwardOnly {
		return
	}
	tls := x.rec.Conn.TLS
	if mode == snapshot.XFCCSanitize || tls == nil || tls.PeerCert == nil {
		h.Del(message.XForwardedClientCert)
		return
	}
	if mode == snapshot.XFCCForwardOnly {
		return
	}
	element := x.site.clientCertElement(x.rec.Conn)
	if before := h.Get(message.XForwardedClientCert); mode == snapshot.XFCCAppendForward && len(before) > 0 {
		e := x.env
		e.buf = append(append(append(e.buf[:0], before...), ','), element...)
		h.Set(message.XForwardedClientCert, e.buf)
		return
	}
	h.SetString(message.XForwardedClientCert, element)
}

// clientCertElement builds this connection's element, once (Envoy: By, Hash,
// Cert, Chain, Subject, URI, DNS).
func (s *Site) clientCertElement(c *message.Conn) string {
	if s.xfccDone {
		return s.xfcc
	}
	s.xfccDone = true
	set, tls := s.Manager.SetClientCert, c.TLS
	var parts []string
	if tls.LocalURISAN != "" {
		parts = append(parts, "By="+tls.LocalURISAN)
	}
	sum := sha256.Sum256(tls.PeerCert.Raw)
	parts = append(parts, "Hash="+hex.EncodeToString(sum[:]))
	if set.Cert {
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tls.PeerCert.Raw})
		parts = append(parts, `Cert="`+url.QueryEscape(string(text))+`"`)
	}
	if set.Subject {
		parts = append(parts, `Subject="`+escapeXFCC(tls.PeerSubject)+`"`)
	}
	if set.URI {
		for _, u := range tls.PeerURISANs {
			parts = append(parts, "URI="+escapeXFCC(u))
		}
	}
	if set.DNS {
		for _, d := range tls.PeerDNSSANs {
			parts = append(parts, "DNS="+escapeXFCC(d))
		}
	}
	s.xfcc = strings.Join(parts, ";")
	return s.xfcc
}

// escapeXFCC keeps what a certificate says from breaking out of its element or
// of the header line.
func escapeXFCC(v string) string {
	clean := func(r rune) bool { return r < 0x20 || r == 0x7f || r == '"' || r == ',' || r == ';' || r == '\\' }
	if !strings.ContainsFunc(v, clean) {
		return v
	}
	var b strings.Builder
	for _, r := range v {
		switch {
		case r < 0x20 || r == 0x7f:
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// readPeer takes the workload description that a mesh peer sent. On the way to
// the application it is removed: it is between proxies.
func (x *Exchange) readPeer() {
	h := x.head
	id := h.Get(message.XEnvoyPeerMetadataID)
	if id == nil && !h.Has(message.XEnvoyPeerMetadata) {
		return
	}
	if x.rec.Direction == snapshot.Inbound && x.env.Peers != nil {
		if w, ok := x.env.Peers.Read(id, h.Get(message.XEnvoyPeerMetadata)); ok {
			x.rec.Peer = w
		}
	}
	h.Del(message.XEnvoyPeerMetadataID)
	h.Del(message.XEnvoyPeerMetadata)
}

// announcePeer tells the next mesh proxy who we are, if metadata exchange is on.
func (x *Exchange) announcePeer() {
	if x.rec.Direction != snapshot.Outbound && !x.rec.Gateway {
		return
	}
	x.addPeer(x.head)
}

func (x *Exchange) addPeer(h *message.Head) {
	if x.env.Peers == nil || !x.exchangesMetadata() {
		return
	}
	id, metadata := x.env.Peers.Own()
	if metadata == "" {
		return
	}
	h.SetString(message.XEnvoyPeerMetadataID, id)
	h.SetString(message.XEnvoyPeerMetadata, metadata)
}

func (x *Exchange) exchangesMetadata() bool {
	filters := x.site.Manager.Filters
	for i := range filters {
		if filters[i].MetadataExchange {
			return true
		}
	}
	return false
}
