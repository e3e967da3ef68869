package http2

import (
	"fmt"
	"strings"
	"testing"
	"time"

	xnet "golang.org/x/net/http2"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/message/messagetest"
)

// Every way to make a proxy work for nothing ends the connection, is counted,
// and is told apart from its neighbours.
func TestServer_floods(t *testing.T) {
	for _, c := range []struct {
		name    string
		attack  func(p *peer)
		details string
		count   func(s *Stats) uint64
	}{
		{"rapid reset", func(p *peer) {
			for i := range uint32(300) {
				p.get(2*i + 1)
				_ = p.WriteRSTStream(2*i+1, 8)
			}
		}, "http2.rapid_reset", func(s *Stats) uint64 { return s.RapidReset.Load() }},
		{"resets that the client provokes", func(p *peer) {
			for i := range uint32(300) {
				p.post(2*i + 1)
				_ = p.WriteWindowUpdate(2*i+1, 0)
			}
		}, "http2.rapid_reset", func(s *Stats) uint64 { return s.RapidReset.Load() }},
		{"streams over the limit", func(p *peer) {
			for i := range uint32(400) {
				p.post(2*i + 1)
			}
		}, "http2.rapid_reset", func(s *Stats) uint64 { return s.RapidReset.Load() }},
		{"PING", func(p *peer) {
			for range 3000 {
				_ = p.WritePing(false, [8]byte{})
			}
		}, "http2.outbound_control_flood", func(s *Stats) uint64 { return s.OutboundControlFlood.Load() }},
		{"PING, answers read", func(p *peer) {
			for range 3000 {
				_ = p.WritePing(false, [8]byte{})
				p.out()
			}
		}, "http2.inbound_control_frames_flood", func(s *Stats) uint64 { return s.InboundControlFramesFlood.Load() }},
		{"unknown frames", func(p *peer) {
			for range 3000 {
				_ = p.WriteRawFrame(0x42, 0, 0, nil)
			}
		}, "http2.inbound_control_frames_flood", func(s *Stats) uint64 { return s.InboundControlFramesFlood.Load() }},
		{"SETTINGS", func(p *peer) {
			for range 100 {
				_ = p.WriteSettings()
				p.out()
			}
		}, "http2.inbound_control_frames_flood", func(s *Stats) uint64 { return s.InboundControlFramesFlood.Load() }},
		{"SETTINGS with many entries", func(p *peer) {
			_ = p.WriteSettings(make([]xnet.Setting, 33)...)
		}, "http2.inbound_control_frames_flood", func(s *Stats) uint64 { return s.InboundControlFramesFlood.Load() }},
		{"PRIORITY", func(p *peer) {
			for range 200 {
				_ = p.WritePriority(1, xnet.PriorityParam{StreamDep: 3})
			}
		}, "http2.inbound_priority_frames_flood", func(s *Stats) uint64 { return s.InboundPriorityFramesFlood.Load() }},
		{"WINDOW_UPDATE", func(p *peer) {
			for range 3000 {
				_ = p.WriteWindowUpdate(0, 1)
			}
		}, "http2.inbound_window_update_frames_flood", func(s *Stats) uint64 { return s.InboundWindowUpdateFramesFlood.Load() }},
		{"empty DATA", func(p *peer) {
			p.post(1)
			for range 20 {
				_ = p.WriteData(1, false, nil)
			}
		}, "http2.inbound_empty_frames_flood", func(s *Stats) uint64 { return s.InboundEmptyFramesFlood.Load() }},
		{"CONTINUATION", func(p *peer) {
			_ = p.WriteHeaders(xnet.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(getFields...)})
			for range 10 {
				_ = p.WriteContinuation(1, false, nil)
			}
		}, "http2.inbound_continuation_frames_flood", func(s *Stats) uint64 { return s.InboundContinuationFramesFlood.Load() }},
		{"long header block", func(p *peer) {
			_ = p.WriteHeaders(xnet.HeadersFrameParam{StreamID: 1, BlockFragment: make([]byte, 16384)})
			for range 5 {
				_ = p.WriteContinuation(1, false, make([]byte, 16384))
			}
		}, "http2.inbound_continuation_frames_flood", func(s *Stats) uint64 { return s.InboundContinuationFramesFlood.Load() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := toServer(t, nil)
			c.attack(p)
			p.feed()
			if !p.tr.Closing() && !p.tr.Aborted {
				t.Fatal("the connection goes on")
			}
			if len(p.err) == 0 || p.err[len(p.err)-1] != c.details || c.count(p.srv.stats) != 1 {
				t.Errorf("errors %q, counted %d", p.err, c.count(p.srv.stats))
			}
			for i, x := range p.acc.Exchanges {
				if !x.WasReset {
					t.Errorf("exchange %d was not reset", i)
				}
			}
		})
	}
}

// What busy and long-lived honest clients do is no flood.
func TestServer_honestClientsAreServed(t *testing.T) {
	p := toServer(t, nil)
	p.acc.Prepare = func(r *messagetest.Receiver) {
		r.EndHook = func() { r.Sender.SendHead(messagetest.Response(200), true) }
	}
	for i := range uint32(5000) {
		id := 2*i + 1
		p.post(id)
		if i%2 == 0 {
			_ = p.WriteRSTStream(id, 8) // every other request is cancelled
		} else {
			_ = p.WriteData(id, true, []byte("x"))
		}
		_ = p.WritePing(false, [8]byte{}) // as gRPC measures bandwidth
		p.out()
	}
	for range 10_000 { // a PING each ten seconds for a day
		p.clock.pass(10 * time.Second)
		_ = p.WritePing(false, [8]byte{})
		p.out()
	}
	if p.tr.Closing() || len(p.err) > 0 {
		t.Errorf("taken for an attack: %v", p.err)
	}
}

func TestServer_headerLimits(t *testing.T) {
	for _, c := range []struct {
		name, want, details string
		do                  func(p *peer)
	}{
		{"too many fields", "HEADERS 1 :status=431 content-length=0 end", "http2.too_many_headers", func(p *peer) {
			kv := append([]string(nil), getFields...)
			for i := range 101 {
				kv = append(kv, fmt.Sprint("x-", i), "v")
			}
			p.headers(1, true, kv...)
		}},
		{"list too long", "HEADERS 1 :status=431 content-length=0 end", "http2.header_overflow", func(p *peer) {
			b := p.block(append(getFields[:8:8], "a", strings.Repeat("v", 22_000), "b", strings.Repeat("v", 22_000), "c", strings.Repeat("v", 22_000))...)
			_ = p.WriteHeaders(xnet.HeadersFrameParam{StreamID: 1, BlockFragment: b[:16384], EndStream: true})
			for b = b[16384:]; len(b) > 16384; b = b[16384:] {
				_ = p.WriteContinuation(1, false, b[:16384])
			}
			_ = p.WriteContinuation(1, true, b)
		}},
		{"bomb: one entry, many references", "HEADERS 1 :status=431 content-length=0 end", "http2.header_overflow", func(p *peer) {
			b := []byte{0x82, 0x86, 0x84, 0x01, 1, 'a', 0x40, 1, 'x', 0x7f, 0xa1, 0x1e} // 4000 bytes
			b = append(b, make([]byte, 4000)...)
			for i := range 4000 {
				b[len(b)-1-i] = 'v'
			}
			for range 13_000 {
				b = append(b, 0xbe)
			}
			_ = p.WriteHeaders(xnet.HeadersFrameParam{StreamID: 1, BlockFragment: b[:16384], EndStream: true})
			_ = p.WriteContinuation(1, true, b[16384:])
		}},
		{"crumbs count", "HEADERS 1 :status=431 content-length=0 end", "http2.too_many_headers", func(p *peer) {
			kv := append([]string(nil), getFields...)
			for range 101 {
				kv = append(kv, "cookie", "a=1")
			}
			p.headers(1, true, kv...)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := toServer(t, nil)
			c.do(p)
			p.want(c.want)
			p.wantError(c.details)
			p.get(3, "x", "y") // tables still agree
			p.feed()
			if x := p.acc.Last(); x == nil || logOf(x) != "head GET http://a/ x=y end" {
				t.Error("the connection is of no use any more")
			}
		})
	}
}

// A server cannot make a client work for nothing either.
func TestClient_floods(t *testing.T) {
	for name, attack := range map[string]func(p *peer){
		"PING": func(p *peer) {
			for range 3000 {
				_ = p.WritePing(false, [8]byte{})
				p.out()
			}
		},
		"WINDOW_UPDATE": func(p *peer) {
			for range 3000 {
				_ = p.WriteWindowUpdate(0, 1)
			}
		},
		"empty DATA": func(p *peer) {
			p.headers(1, false, ":status", "200")
			for range 20 {
				_ = p.WriteData(1, false, nil)
			}
		},
	} {
		p := toClient(t, nil)
		r, _ := p.open("GET", true)
		p.out()
		attack(p)
		p.feed()
		if !p.obs.Closed && !p.tr.Closing() || !r.WasReset || r.Code != message.ResetProtocol {
			t.Errorf("%s: closing %v, %v", name, p.tr.Closing(), r.Log)
		}
	}
}

func TestStreamTable(t *testing.T) {
	var tab streamTable
	live := map[uint32]*stream{}
	next := uint32(1)
	step := func(i int) {
		if i%3 != 2 || len(live) == 0 {
			s := &stream{id: next}
			next += 2
			live[s.id] = s
			tab.put(s)
		} else {
			for id := range live { // any
				tab.remove(id)
				delete(live, id)
				break
			}
		}
		if tab.count != len(live) {
			t.Fatalf("%d, want %d", tab.count, len(live))
		}
		for id, s := range live {
			if tab.get(id) != s {
				t.Fatalf("stream %d is lost", id)
			}
		}
	}
	for i := range 300 {
		step(i)
	}
	for id := range live {
		tab.remove(id)
		tab.remove(id)
		if tab.get(id) != nil {
			t.Fatalf("stream %d is still there", id)
		}
	}
	if tab.count != 0 {
		t.Error(tab.count)
	}
}
