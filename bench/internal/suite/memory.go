//go:build linux

package suite

import (
	"crypto/tls"
	"net"
	"time"

	"lateen.dev/lateen/bench/internal/load"
	"lateen.dev/lateen/bench/internal/measure"
	"lateen.dev/lateen/bench/internal/peers"
)

// curves are the key exchanges that a client offers.
func curves(hybrid bool) []tls.CurveID {
	if hybrid {
		return []tls.CurveID{tls.X25519MLKEM768, tls.X25519}
	}
	return []tls.CurveID{tls.X25519}
}

// memory measures a candidate that has just been started: its memory at rest, or
// what each of many resting connections adds to it.
func (s *Suite) memory(sc Scenario, p *peers.Peer) measure.Slice {
	time.Sleep(s.Settle)
	before := measure.Resident(p.Pids())
	if sc.kind == idleProxy {
		return measure.Slice{Requests: 1, Values: map[string]float64{measure.RSS: before}}
	}
	config := p.TLS
	if config != nil {
		config = config.Clone()
		config.CurvePreferences = curves(false)
	}
	conns := make([]net.Conn, 0, sc.conns)
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	request := load.Request(p.Host, load.Path)
	for range sc.conns {
		c, err := load.Open(p.Conn, config)
		if err != nil {
			return failed(err)
		}
		conns = append(conns, c)
		if err := load.Ask(c, request); err != nil {
			return failed(err)
		}
	}
	time.Sleep(s.Settle)
	return measure.Slice{Requests: sc.conns, Values: map[string]float64{
		measure.RSS: (measure.Resident(p.Pids()) - before) / float64(sc.conns),
	}}
}
