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

// resting are the open connections of one candidate and its memory before.
type resting struct {
	conns  []net.Conn
	before float64
	err    error
}

// memory measures candidates that have just been started, all at once because
// nobody works: their memory at rest, or what each of many resting connections
// adds to it.
func (s *Suite) memory(sc Scenario) map[string]measure.Slice {
	time.Sleep(s.Settle)
	out := map[string]measure.Slice{}
	if sc.kind == idleProxy {
		for _, p := range s.set.Peers {
			out[p.Name] = measure.Slice{Requests: 1, Values: map[string]float64{measure.RSS: measure.Resident(p.Pids())}}
		}
		return out
	}
	held := map[string]*resting{}
	for _, p := range s.set.Peers {
		r := &resting{before: measure.Resident(p.Pids())}
		held[p.Name] = r
		defer func() {
			for _, c := range r.conns {
				_ = c.Close()
			}
		}()
		r.err = r.open(p, sc.conns)
	}
	time.Sleep(s.Settle)
	for _, p := range s.set.Peers {
		r := held[p.Name]
		if r.err != nil {
			out[p.Name] = failed(r.err)
			continue
		}
		out[p.Name] = measure.Slice{Requests: sc.conns, Values: map[string]float64{
			measure.RSS: (measure.Resident(p.Pids()) - r.before) / float64(sc.conns),
		}}
	}
	return out
}

// open opens n connections that have made one request each.
func (r *resting) open(p *peers.Peer, n int) error {
	config := p.TLS
	if config != nil {
		config = config.Clone()
		config.CurvePreferences = curves(false)
	}
	request := load.Request(p.Host, load.Path)
	for range n {
		c, err := load.Open(p.Conn, config)
		if err != nil {
			return err
		}
		r.conns = append(r.conns, c)
		if err := load.Ask(c, request); err != nil {
			return err
		}
	}
	return nil
}
