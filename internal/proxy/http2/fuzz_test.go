package http2

import (
	"bytes"
	"strings"
	"testing"

	xnet "golang.org/x/net/http2"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/message/messagetest"
)

// seeds are conversations of a client that the fuzzer takes apart.
func seeds(f *testing.F, build ...func(p *peer)) {
	for _, b := range build {
		p := newPeer(nil)
		b(p)
		f.Add(bytes.Clone(p.buf.Bytes()), uint8(7))
		f.Add(bytes.Clone(p.buf.Bytes()), uint8(255))
	}
}

// checkOrder fails on events that come after the end or after a reset.
func checkOrder(t *testing.T, r *messagetest.Receiver) {
	for i, l := range r.Log {
		if strings.HasPrefix(l, "AFTER END") || strings.HasPrefix(l, "SECOND") || strings.HasPrefix(l, "reset") && i != len(r.Log)-1 {
			t.Fatalf("%v", r.Log)
		}
	}
}

// FuzzServer feeds a whole server: whatever comes, it neither panics nor breaks
// the order of events, what it sends are frames, and at the end of the
// connection nothing is left.
func FuzzServer(f *testing.F) {
	seeds(
		f,
		func(p *peer) {
			_ = p.WriteSettings(xnet.Setting{ID: 4, Val: 10}, xnet.Setting{ID: 1, Val: 100})
			p.get(1, "x", "y")
			p.post(3, "content-length", "5")
			_ = p.WriteDataPadded(3, false, []byte("hel"), make([]byte, 4))
			_ = p.WriteData(3, true, []byte("lo"))
			_ = p.WriteWindowUpdate(1, 100)
			_ = p.WriteWindowUpdate(0, 100)
		},
		func(p *peer) {
			_ = p.WriteSettings()
			p.post(1)
			_ = p.WriteData(1, false, []byte("hello"))
			p.headers(1, true, "t", "1")
			_ = p.WritePing(false, [8]byte{})
			_ = p.WriteRSTStream(1, 8)
			_ = p.WriteSettings(xnet.Setting{ID: 4, Val: 0})
			p.get(3)
			_ = p.WriteSettings(xnet.Setting{ID: 4, Val: 1 << 20})
			_ = p.WriteGoAway(0, 0, nil)
		},
		func(p *peer) {
			_ = p.WriteSettings()
			p.headers(1, false, ":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":authority", "a", ":path", "/chat")
			_ = p.WriteData(1, false, []byte("early"))
			_ = p.WriteHeaders(xnet.HeadersFrameParam{StreamID: 3, BlockFragment: p.block(getFields...), EndStream: true})
			_ = p.WriteContinuation(3, true, nil)
			_ = p.WritePriority(5, xnet.PriorityParam{StreamDep: 3})
			_ = p.WriteRawFrame(0x42, 0, 0, nil)
		},
	)
	f.Fuzz(func(t *testing.T, in []byte, how uint8) {
		p := rawToServer(t, &ServerOptions{AllowUpgrade: true, AllowConnect: true, MaxStreams: 5})
		p.acc.Prepare = func(r *messagetest.Receiver) { answerSomehow(r, how) }
		p.out()
		p.buf.WriteString(preface)
		p.feed()
		for len(in) > 0 && !p.tr.Closing() && !p.tr.Aborted {
			n := min(len(in), 1+int(how)%40)
			p.tr.Feed(in[:n])
			in = in[n:]
			if how&64 != 0 {
				p.out()
			}
		}
		p.out()
		if how&32 != 0 {
			p.srv.Drain()
		}
		p.tr.FeedEOF()
		p.out()
		p.tr.FeedError(nil)
		for _, x := range p.acc.Exchanges {
			checkOrder(t, x)
		}
		if p.srv.streams.count != 0 || p.srv.ring.first != nil || !p.acc.Closed {
			t.Fatalf("left over: %d streams", p.srv.streams.count)
		}
	})
}

// answerSomehow makes the request path behave in one of several ways.
func answerSomehow(r *messagetest.Receiver, how uint8) {
	body := bytes.Repeat([]byte("x"), 30)
	full := func() {
		r.Sender.SendInformational(messagetest.Response(103))
		r.Sender.SendHead(messagetest.Response(200), false)
		r.Sender.SendData(body, false)
		r.Sender.SendTrailers(messagetest.Trailers("t", "1"))
	}
	switch how % 6 {
	case 0:
		r.EndHook = full
	case 1:
		r.HeadHook = func(*message.Head, bool) { full() } // early
	case 2:
		r.HeadHook = func(*message.Head, bool) { r.Sender.Reset(message.ResetCancel) }
	case 3:
		r.HeadHook = func(h *message.Head, _ bool) {
			r.Sender.SendHead(messagetest.Response(101, "upgrade", "websocket"), false)
		}
		r.DataHook = func(p []byte, end bool) { r.Sender.SendData(p, end) }
	case 4:
		r.HeadHook = func(*message.Head, bool) { r.Sender.Pause(true) }
		r.DataHook = func([]byte, bool) { r.Sender.Pause(false); r.Sender.SendHead(messagetest.Response(204), true) }
	case 5:
		r.HeadHook = func(*message.Head, bool) {
			r.Sender.SendHead(messagetest.Response(200, "content-length", "31"), false)
		}
		r.DataHook = func(p []byte, end bool) { r.Sender.SendData(p, end) }
	}
}

// FuzzClient feeds a whole client that has three exchanges open.
func FuzzClient(f *testing.F) {
	seeds(
		f,
		func(p *peer) {
			_ = p.WriteSettings(xnet.Setting{ID: 3, Val: 2}, xnet.Setting{ID: 4, Val: 10})
			p.headers(1, false, ":status", "103")
			p.headers(1, false, ":status", "200", "content-length", "5")
			_ = p.WriteData(1, true, []byte("hello"))
			p.headers(3, true, ":status", "204")
			_ = p.WriteWindowUpdate(5, 1000)
			p.headers(5, false, ":status", "200")
			p.headers(5, true, "grpc-status", "0")
		},
		func(p *peer) {
			_ = p.WriteSettings(xnet.Setting{ID: 8, Val: 1})
			_ = p.WriteRSTStream(1, 7)
			_ = p.WriteGoAway(3, 0, nil)
			p.headers(3, false, ":status", "200")
			_ = p.WriteData(3, false, nil)
			_ = p.WritePushPromise(xnet.PushPromiseParam{StreamID: 3, PromiseID: 2, EndHeaders: true})
		},
	)
	f.Fuzz(func(t *testing.T, in []byte, how uint8) {
		p := newPeer(t)
		p.obs = &messagetest.Observer{}
		p.cli = NewClient(p.tr, p.obs, &ClientOptions{Timers: p.clock})
		var rs []*messagetest.Receiver
		start := func() {
			if p.cli.Capacity() == 0 || len(rs) > 20 {
				return
			}
			r := &messagetest.Receiver{}
			rs = append(rs, r)
			s := p.cli.Open(r)
			switch len(rs) % 3 {
			case 0:
				s.SendHead(messagetest.Request("POST", "a", "/"), false)
				s.SendData(make([]byte, 20), false)
				if how&16 != 0 {
					s.SendData(nil, true)
				}
				r.EndHook = func() { s.Reset(message.ResetCancel) }
			case 1:
				s.SendHead(messagetest.Request("GET", "a", "/"), true)
			case 2:
				s.SendHead(messagetest.Request("GET", "a", "/", "upgrade", "websocket"), false)
				r.HeadHook = func(*message.Head, bool) { s.SendData([]byte("hi"), true) }
			}
		}
		for range 3 {
			start()
		}
		for len(in) > 0 && !p.tr.Closing() && !p.tr.Aborted {
			n := min(len(in), 1+int(how)%40)
			p.tr.Feed(in[:n])
			in = in[n:]
			start()
			if how&64 != 0 {
				p.out()
			}
		}
		p.out()
		if how&32 != 0 {
			p.cli.Close(how&8 != 0)
		}
		p.tr.FeedEOF()
		p.out()
		p.tr.FeedError(nil)
		for _, r := range rs {
			checkOrder(t, r)
			if !r.Ended && !r.WasReset {
				t.Fatalf("left alone: %v", r.Log)
			}
		}
		if p.cli.Active() != 0 || !p.obs.Closed {
			t.Fatalf("left over: %d", p.cli.Active())
		}
	})
}

// FuzzFrames checks that input means the same however it is cut: the frame
// reader has no state of its own but what a frame leaves.
func FuzzFrames(f *testing.F) {
	seeds(f, func(p *peer) {
		_ = p.WriteSettings()
		p.post(1)
		_ = p.WriteDataPadded(1, false, []byte("hello"), make([]byte, 3))
		p.headers(1, true, "t", "1")
		_ = p.WritePing(false, [8]byte{})
	})
	f.Fuzz(func(t *testing.T, in []byte, cut uint8) {
		run := func(step int) (string, string) {
			p := rawToServer(t, nil)
			p.out()
			p.buf.WriteString(preface)
			p.feed()
			for b := in; len(b) > 0; {
				n := min(len(b), step)
				p.tr.Feed(b[:n])
				b = b[n:]
			}
			var logs []string
			for _, x := range p.acc.Exchanges {
				logs = append(logs, logOf(x)+" "+string(x.Body))
			}
			return strings.Join(logs, "\n"), p.out()
		}
		wantLog, wantOut := run(len(in))
		if log, out := run(1 + int(cut)); log != wantLog || out != wantOut {
			t.Fatalf("in pieces of %d: %q %q\nat once: %q %q", 1+int(cut), log, out, wantLog, wantOut)
		}
	})
}
