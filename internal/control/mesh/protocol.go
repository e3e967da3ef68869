package mesh

import "strings"

// Protocol is the application protocol of a port.
type Protocol string

// The protocols of ports. Auto means that nothing declares one and the proxy
// looks at the first bytes.
const (
	Auto    Protocol = ""
	TCP     Protocol = "TCP"
	UDP     Protocol = "UDP"
	HTTP    Protocol = "HTTP"
	HTTP2   Protocol = "HTTP2"
	GRPC    Protocol = "GRPC"
	GRPCWeb Protocol = "GRPC-Web"
	HTTPS   Protocol = "HTTPS"
	TLS     Protocol = "TLS"
	Mongo   Protocol = "Mongo"
	MySQL   Protocol = "MySQL"
	Redis   Protocol = "Redis"
)

// IsHTTP reports whether requests are routed as HTTP.
func (p Protocol) IsHTTP() bool {
	return p == HTTP || p == HTTP2 || p == GRPC || p == GRPCWeb
}

// IsHTTP2 reports whether upstreams must be spoken to in HTTP/2.
func (p Protocol) IsHTTP2() bool {
	return p == HTTP2 || p == GRPC || p == GRPCWeb
}

// IsTLS reports whether connections are routed by server name.
func (p Protocol) IsTLS() bool { return p == HTTPS || p == TLS }

// ParseProtocol returns the protocol that a word names, case-insensitively, and
// Auto for a word that names none.
func ParseProtocol(word string) Protocol {
	switch strings.ToLower(word) {
	case "tcp":
		return TCP
	case "udp":
		return UDP
	case "http":
		return HTTP
	case "http2":
		return HTTP2
	case "grpc":
		return GRPC
	case "grpc-web":
		return GRPCWeb
	case "https":
		return HTTPS
	case "tls":
		return TLS
	case "mongo":
		return Mongo
	case "mysql":
		return MySQL
	case "redis":
		return Redis
	}
	return Auto
}

// servicePortProtocol decides the protocol of a Kubernetes service port as
// Istio does: transport, then appProtocol, then the prefix of the port's name;
// ports of well-known protocols where the server speaks first are TCP.
func servicePortProtocol(number uint16, name, transport, appProtocol string) Protocol {
	if transport == "UDP" {
		return UDP
	}
	word := name
	if appProtocol != "" {
		switch strings.ToLower(appProtocol) {
		case "kubernetes.io/h2c":
			return HTTP2
		case "kubernetes.io/ws":
			return HTTP
		case "kubernetes.io/wss":
			return HTTPS
		}
		word = appProtocol
	}
	if len(word) >= len("grpc-web") && strings.EqualFold(word[:len("grpc-web")], "grpc-web") {
		return GRPCWeb
	}
	prefix, _, _ := strings.Cut(word, "-")
	p := ParseProtocol(prefix)
	if p == Auto {
		switch number {
		case 25, 53, 3306, 27017:
			return TCP
		}
	}
	return p
}
