package messagetest

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"lateen.dev/lateen/internal/proxy/message"
)

// Many exchanges at once, each echoing in its own order, interleaved at random.
func TestMux_manyStreamsKeepTheirOrder(t *testing.T) {
	for seed := range uint64(20) {
		acc := &Acceptor{Prepare: func(r *Receiver) {
			r.HeadHook = func(h *message.Head, end bool) { r.Sender.SendHead(Response(200, "n", string(h.Path())), false) }
			r.DataHook = func(p []byte, end bool) { r.Sender.SendData(p, false) }
			r.EndHook = func() { r.Sender.SendTrailers(Trailers("grpc-status", "0")) }
		}}
		obs := &Observer{}
		m := NewMux(acc, obs, MuxOptions{MaxStreams: 8, Rand: rand.New(rand.NewPCG(seed, 0))})
		var rs []*Receiver
		for i := range 8 {
			r := &Receiver{}
			s := m.Open(r)
			s.SendHead(Request("POST", "a", fmt.Sprintf("/%d", i)), false)
			for j := range 10 {
				s.SendData(fmt.Appendf(nil, "%d.%d ", i, j), j == 9)
			}
			rs = append(rs, r)
		}
		if m.Capacity() != 0 || m.Active() != 8 {
			t.Fatalf("capacity %d, active %d", m.Capacity(), m.Active())
		}
		m.Pump()
		for i, r := range rs {
			want := ""
			for j := range 10 {
				want += fmt.Sprintf("%d.%d ", i, j)
			}
			if got := strings.Join(r.Log, "; "); string(r.Body) != want || got != fmt.Sprintf("head 200 n=/%d; data; trailers grpc-status=0 end", i) {
				t.Errorf("seed %d, exchange %d: %s %q", seed, i, got, r.Body)
			}
		}
		if m.Active() != 0 || m.Capacity() != 8 || obs.Capacity != 8 {
			t.Errorf("active %d, capacity %d, announced %d", m.Active(), m.Capacity(), obs.Capacity)
		}
	}
}

func TestMux_windowPauseAndReset(t *testing.T) {
	acc := &Acceptor{}
	m := NewMux(acc, &Observer{}, MuxOptions{Window: 100})
	slow, gone := &Receiver{}, &Receiver{}
	s, g := m.Open(slow), m.Open(gone)
	s.SendHead(Request("POST", "a", "/slow"), false)
	g.SendHead(Request("POST", "a", "/gone"), false)
	m.Pump()
	server := acc.Exchanges[0].Sender
	server.Pause(true)
	s.SendData(make([]byte, 150), false)
	if !s.OverHigh() || g.OverHigh() {
		t.Errorf("windows: slow %v, other %v", s.OverHigh(), g.OverHigh())
	}
	g.Reset(message.ResetCancel)
	m.Pump()
	if x := acc.Exchanges[1]; !x.WasReset || x.Code != message.ResetRemote || gone.WasReset {
		t.Errorf("server %v, client %v", x.Log, gone.Log)
	}
	if len(acc.Exchanges[0].Body) != 0 {
		t.Error("data reached a paused side")
	}
	server.Pause(false)
	m.Pump()
	if slow.Drained != 1 || len(acc.Exchanges[0].Body) != 150 {
		t.Errorf("drained %d, delivered %d", slow.Drained, len(acc.Exchanges[0].Body))
	}
}

func TestMux_goAwayRefusesWhatWasNotAccepted(t *testing.T) {
	acc, obs := &Acceptor{}, &Observer{}
	m := NewMux(acc, obs, MuxOptions{})
	first, second := &Receiver{}, &Receiver{}
	m.Open(first).SendHead(Request("GET", "a", "/1"), true)
	m.Pump()
	m.Open(second).SendHead(Request("GET", "a", "/2"), true)
	m.GoAway()
	m.Pump()
	if !second.WasReset || second.Code != message.ResetRefused || first.WasReset || m.Capacity() != 0 {
		t.Errorf("first %v, second %v", first.Log, second.Log)
	}
	acc.Exchanges[0].Sender.SendHead(Response(200), true)
	m.Pump()
	if !first.Ended || !obs.Closed || !acc.Closed {
		t.Errorf("first %v, closed %v %v", first.Log, obs.Closed, acc.Closed)
	}
}
