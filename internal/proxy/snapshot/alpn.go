package snapshot

import (
	"slices"

	"lateen.dev/lateen/internal/proxy/message"
)

// Speak is what one upstream connection is made for.
type Speak uint8

// The uses of a connection. With SpeakEither the TLS handshake decides between
// the versions of HTTP.
const (
	SpeakBytes Speak = iota
	SpeakHTTP1
	SpeakHTTP2
	SpeakEither
)

// ALPN is a list of protocols that a client offers, in its order of preference.
type ALPN []string

// The lists by which HTTP between mesh peers names itself (istio.alpn's
// overrides). Only a peer of ours knows the trunk; another one takes the rest.
var (
	offersTrunk = ALPN{message.ALPNTrunk, "istio-http/1.1", "istio", "http/1.1"}
	offersHTTP1 = offersTrunk[1:]
	offersHTTP2 = ALPN{"istio-h2", "istio", "h2"}
	offersH1    = ALPN{"http/1.1"}
	offersH2    = ALPN{"h2"}
	offersBoth  = ALPN{"h2", "http/1.1"}
	priorH2     = ALPN{"h2c"}
)

// Offers lists the protocols to offer for what will be spoken. A nil receiver
// stands for plaintext, where HTTP/2 goes by prior knowledge. A trunk is offered
// where the cluster's own list names it.
func (u *UpstreamTLS) Offers(s Speak) ALPN {
	switch {
	case u == nil && s == SpeakHTTP2:
		return priorH2
	case u == nil:
		return nil
	case u.Mesh && s == SpeakHTTP1 && slices.Contains(u.ALPN, message.ALPNTrunk):
		return offersTrunk
	case u.Mesh && s == SpeakHTTP1:
		return offersHTTP1
	case u.Mesh && s == SpeakHTTP2:
		return offersHTTP2
	case s == SpeakHTTP1:
		return u.without(offersH1, "h2", "istio-h2", message.ALPNTrunk)
	case s == SpeakHTTP2 && !slices.Contains(u.ALPN, "h2"):
		return offersH2
	case s == SpeakHTTP2:
		return ALPN(u.ALPN)
	case s == SpeakEither:
		return u.without(offersBoth)
	}
	return u.without(nil, "istio-peer-exchange", "h2", "istio-h2", message.ALPNTrunk)
}

// without is the cluster's own list but for some names, or else if that leaves
// none.
func (u *UpstreamTLS) without(otherwise ALPN, names ...string) ALPN {
	own := slices.DeleteFunc(slices.Clone(u.ALPN), func(p string) bool { return slices.Contains(names, p) })
	if len(own) == 0 {
		return otherwise
	}
	return own
}

// Many says that the first choice carries many exchanges on one connection.
func (a ALPN) Many() bool { return len(a) > 0 && SpeaksHTTP2(a[0], false) }

// SpeaksHTTP2 says whether a protocol negotiated by ALPN has the framing of
// HTTP/2; otherwise is the answer when nothing that says so was negotiated.
func SpeaksHTTP2(negotiated string, otherwise bool) bool {
	switch negotiated {
	case "h2", "istio-h2", "h2c", message.ALPNTrunk:
		return true
	case "http/1.1", "http/1.0", "istio-http/1.1", "istio-http/1.0":
		return false
	}
	return otherwise
}
