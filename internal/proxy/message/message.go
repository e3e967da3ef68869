// Package message is the seam between protocol codecs and the request path:
// heads, body bytes, trailers, end and reset, whatever the wire format. http1
// and http2 make these events from bytes and bytes from these events; stream
// joins one downstream exchange with its upstream attempts and knows neither
// sockets nor codecs.
//
// An upgrade has one form here, that of HTTP/1.1: a request whose head has an
// Upgrade field and that does not end, answered by 101; after it, data is raw
// bytes. The codec of HTTP/2 translates it from and to extended CONNECT (RFC
// 8441: the Upgrade field's value is ":protocol", the method GET, 101 is 200 on
// the wire). CONNECT without :protocol stays CONNECT.
//
// Everything here happens on the loop that owns the connection; nothing is safe
// for concurrent use. Slices handed to a callback are borrowed: they are valid
// until the callback returns.
package message

import (
	"crypto/x509"
	"net/netip"
)

// ResetCode says why an exchange ended without its proper end. The request
// path turns it into a response flag and a detail string.
type ResetCode uint8

// The reasons an exchange can be reset.
const (
	ResetNone ResetCode = iota
	// ResetCancel: our side no longer wants the exchange.
	ResetCancel
	// ResetConnectFailure: the connection could not be established.
	ResetConnectFailure
	// ResetConnectTimeout: establishing the connection took too long.
	ResetConnectTimeout
	// ResetTLSFailure: the TLS handshake failed.
	ResetTLSFailure
	// ResetTermination: the connection ended (FIN or RST) before the message did.
	ResetTermination
	// ResetRemote: the peer reset this exchange alone (RST_STREAM).
	ResetRemote
	// ResetRefused: the peer promises that it did not process the exchange
	// (REFUSED_STREAM, GOAWAY with a lower id, connection closed while idle).
	ResetRefused
	// ResetProtocol: the peer broke the protocol.
	ResetProtocol
	// ResetOverflow: a limit of ours (pending requests, streams) was reached.
	ResetOverflow
)

// Receiver is told what arrives on one exchange. The request path implements
// it twice: for requests (downstream) and for responses (upstream).
//
// Order of calls: OnInformational*, OnHead, OnData*, then at most one of
// OnTrailers; the last message event has end set (or is OnTrailers). OnReset
// may come at any time and is the last call. Nothing follows end but OnReset,
// and only while the other direction is still open.
type Receiver interface {
	// OnHead delivers the head. The Head belongs to the codec and stays valid
	// until the exchange has ended in both directions; the receiver may edit it.
	OnHead(h *Head, end bool)
	// OnInformational delivers a 1xx response head other than 101.
	OnInformational(h *Head)
	// OnData delivers body bytes; p is borrowed.
	OnData(p []byte, end bool)
	// OnTrailers delivers trailer fields and ends the message.
	OnTrailers(h *Head)
	// OnReset ends the exchange abnormally.
	OnReset(code ResetCode)
	// OnDrained says that what was sent has left: Buffered is below the low
	// watermark again after it was above the high one.
	OnDrained()
}

// Sender sends one exchange's other direction. Calls after the end of the
// message or after a reset are ignored.
type Sender interface {
	// SendHead sends the head. The codec adds framing (content-length is taken
	// from the head if present, else the body is delimited as the protocol
	// demands) and does not keep h.
	SendHead(h *Head, end bool)
	// SendInformational sends a 1xx head; codecs whose peer cannot take one drop it.
	SendInformational(h *Head)
	// SendData appends body bytes to the connection's output; p is not kept.
	SendData(p []byte, end bool)
	// SendTrailers sends trailer fields and ends the message. A codec that
	// cannot carry them (HTTP/1.1 without chunking) ends the message without.
	SendTrailers(h *Head)
	// Reset abandons the exchange in both directions.
	Reset(code ResetCode)
	// Pause stops (true) or resumes (false) the peer: back-pressure. What the peer
	// was allowed to send already may still be delivered: a window of HTTP/2.
	Pause(on bool)
	// Buffered is the number of output bytes that have not left yet.
	Buffered() int
	// OverHigh says that Buffered is above the high watermark; the producer
	// should pause its source until OnDrained.
	OverHigh() bool
	// Conn describes the connection below. It is never nil and constant.
	Conn() *Conn
}

// Protocol is the version of HTTP on a connection.
type Protocol uint8

// The protocols of an exchange.
const (
	ProtocolUnknown Protocol = iota
	HTTP10
	HTTP11
	HTTP2
)

// String returns the protocol as access logs print it ("HTTP/1.1").
func (p Protocol) String() string {
	switch p {
	case HTTP10:
		return "HTTP/1.0"
	case HTTP11:
		return "HTTP/1.1"
	case HTTP2:
		return "HTTP/2"
	}
	return "-"
}

// Conn is what policies and records may know about a connection. It never
// changes once the first exchange on it has begun.
type Conn struct {
	ID uint64
	// Local is our end of the socket, Remote the peer's.
	Local, Remote netip.AddrPort
	// OriginalDst is where the client wanted to go, before capture. For an
	// upstream connection it is zero.
	OriginalDst netip.AddrPort
	// TLS is nil for plaintext.
	TLS *TLSInfo
	// SNI and ALPN as sniffed from the ClientHello or negotiated.
	SNI, ALPN string
	Protocol  Protocol
	// Trunk says that a mesh peer carries HTTP/1.1 exchanges here as streams of
	// HTTP/2: Protocol is HTTP11, and a stream stands for a connection.
	Trunk bool
}

// ALPNTrunk is the protocol by which two mesh peers of ours agree on a trunk.
const ALPNTrunk = "lateen-h2"

// TLSInfo describes a finished handshake.
type TLSInfo struct {
	Version, CipherSuite uint16
	// PeerURISANs are the URI names of the verified peer certificate; the
	// first is its SPIFFE id. Empty when the peer showed no certificate.
	PeerURISANs []string
	PeerDNSSANs []string
	PeerSubject string
	// PeerCert is the verified leaf, nil without client certificate.
	PeerCert *x509.Certificate
	// LocalURISAN is the SPIFFE id we presented.
	LocalURISAN string
	// Mutual says that both ends showed a certificate.
	Mutual bool
}

// Principal is the peer's SPIFFE id, or "" when it proved none.
func (c *Conn) Principal() string {
	if c.TLS == nil || len(c.TLS.PeerURISANs) == 0 {
		return ""
	}
	return c.TLS.PeerURISANs[0]
}
