//go:build linux

// Package suite is the list of scenarios and what runs them: it starts the
// peers of each, lets them answer in turns, and hands rows to the report.
package suite

import (
	"lateen.dev/lateen/bench/internal/measure"
	"lateen.dev/lateen/bench/internal/peers"
)

// kind is what is done to the candidates of a scenario.
type kind int

const (
	closedHTTP   kind = iota // requests, each after the answer to the last
	rateHTTP                 // requests by the clock
	fairness                 // requests by the clock beside bulk
	roundTrip                // a KiB for a KiB
	bulk                     // a MiB for a KiB
	http2Streams             // requests of HTTP/2, so many at once on a connection
	grpcStreams              // unary calls
	handshake                // connections
	idleConns                // memory of connections that rest
	idleProxy                // memory of a proxy that rests
)

// Scenario is one row of the matrix.
type Scenario struct {
	Name  string
	shape peers.Shape
	kind  kind
	// conns are connections; rate is requests per second where the clock asks.
	conns, rate int
	// streams are requests at once on each connection of HTTP/2.
	streams int
	// hybrid offers the post-quantum key exchange first.
	hybrid bool
	// metrics are those that rows are made of.
	metrics []string
}

var (
	closedMetrics = []string{measure.CPU, measure.RPS, measure.P50, measure.P99, measure.RSS}
	rateMetrics   = []string{measure.CPU, measure.Mean, measure.P50, measure.P99, measure.RSS}
	bulkMetrics   = []string{measure.CPU, measure.RPS, measure.RSS}
	memoryMetrics = []string{measure.RSS}
)

// How many connections rest in the scenarios of idle connections. A client's end
// of a TLS connection is large, and it is here too.
const (
	idleCount    = 4000
	idleTLSCount = 2000
)

// hosts is what a proxy with duties chooses among.
const hosts = 200

// All are the scenarios in the order in which they are run.
func All() []Scenario {
	gateway := func(protocol string, duties bool) peers.Shape {
		s := peers.Shape{Kind: peers.Gateway, Protocol: protocol, Duties: duties}
		if duties {
			s.Services = hosts
		}
		return s
	}
	chain := peers.Shape{Kind: peers.Chain, Duties: true, Services: hosts}
	inbound := peers.Shape{Kind: peers.Inbound}
	sized := func(n int) peers.Shape { return peers.Shape{Kind: peers.Idle, Duties: true, Services: n} }
	return []Scenario{
		{Name: "h1-mesh-c64", shape: gateway("http", true), conns: 64, metrics: closedMetrics},
		{Name: "h1-mesh-c8", shape: gateway("http", true), conns: 8, metrics: closedMetrics},
		{Name: "h1-plain-c64", shape: gateway("http", false), conns: 64, metrics: closedMetrics},
		{Name: "h1-plain-c512", shape: gateway("http", false), conns: 512, metrics: closedMetrics},
		{Name: "chain-mtls-c8", shape: chain, conns: 8, metrics: closedMetrics},
		{Name: "chain-mtls-c64", shape: chain, conns: 64, metrics: closedMetrics},
		{Name: "chain-mtls-c256", shape: chain, conns: 256, metrics: closedMetrics},
		{Name: "chain-mtls-1000rps", shape: chain, kind: rateHTTP, conns: 32, rate: 1000, metrics: rateMetrics},
		{Name: "chain-bulk-fairness", shape: chain, kind: fairness, conns: 64, rate: 2000, metrics: []string{measure.P50, measure.P99}},
		{Name: "h2c-c8-m32", shape: gateway("http2", true), kind: http2Streams, conns: 8, streams: 32, metrics: closedMetrics},
		{Name: "h2c-c64-m32", shape: gateway("http2", true), kind: http2Streams, conns: 64, streams: 32, metrics: closedMetrics},
		{Name: "grpc-unary-c8-m32", shape: gateway("grpc", true), kind: grpcStreams, conns: 8, streams: 32, metrics: closedMetrics},
		{Name: "tcp-rr", shape: gateway("tcp", false), kind: roundTrip, conns: 64, metrics: closedMetrics},
		{Name: "tcp-bulk", shape: gateway("tcp", false), kind: bulk, conns: 8, metrics: bulkMetrics},
		{Name: "handshake", shape: inbound, kind: handshake, conns: 8, metrics: closedMetrics},
		{Name: "handshake-hybrid", shape: inbound, kind: handshake, conns: 8, hybrid: true, metrics: closedMetrics},
		{Name: "idle-conn", shape: gateway("http", false), kind: idleConns, conns: idleCount, metrics: memoryMetrics},
		{Name: "idle-conn-mtls", shape: inbound, kind: idleConns, conns: idleTLSCount, metrics: memoryMetrics},
		{Name: "rss-100svc", shape: sized(100), kind: idleProxy, metrics: memoryMetrics},
		{Name: "rss-1000svc", shape: sized(1000), kind: idleProxy, metrics: memoryMetrics},
	}
}

// fresh says that each round needs proxies that have done nothing yet.
func (s Scenario) fresh() bool { return s.kind == idleConns || s.kind == idleProxy }

// sameSetup says that two scenarios may use the same proxies.
func (s Scenario) sameSetup(t Scenario) bool {
	return s.shape == t.shape && s.backend() == t.backend() && !s.fresh() && !t.fresh()
}

// backend is what answers behind the proxies.
func (s Scenario) backend() kind {
	switch {
	case s.kind == bulk, s.kind == roundTrip, s.kind == http2Streams, s.kind == grpcStreams:
		return s.kind
	case s.shape.Kind == peers.Idle:
		return idleProxy
	}
	return closedHTTP
}
