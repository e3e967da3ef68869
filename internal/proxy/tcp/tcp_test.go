package tcp

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/proxy/loop"
	"lateen.dev/lateen/internal/proxy/message"
	mt "lateen.dev/lateen/internal/proxy/message/messagetest"
)

type fixture struct {
	client, down, up, server *mt.Transport
	peerEnds                 [2]*notes
	p                        *Pair
	result                   *Result
}

// notes is what a peer of the pair hears.
type notes struct {
	got    bytes.Buffer
	eof    bool
	closed bool
	err    error
}

func (n *notes) OnBytes(p []byte) int { n.got.Write(p); return len(p) }
func (n *notes) OnEOF()               { n.eof = true }
func (n *notes) OnDrained()           {}
func (n *notes) OnClosed(err error)   { n.closed, n.err = true, err }

func newFixture(o Options) *fixture {
	f := &fixture{
		client: mt.NewTransport(message.Conn{}), down: mt.NewTransport(message.Conn{}),
		up: mt.NewTransport(message.Conn{}), server: mt.NewTransport(message.Conn{}),
	}
	for i, t := range []*mt.Transport{f.client, f.server} {
		f.peerEnds[i] = &notes{}
		t.SetHandler(f.peerEnds[i])
	}
	f.p = Join(f.down, f.up, o, func(r Result) {
		if f.result != nil {
			panic("done called twice")
		}
		f.result = &r
	})
	return f
}

func (f *fixture) pump() {
	for range 4 {
		mt.Pump(f.client, f.down)
		mt.Pump(f.up, f.server)
	}
}

func TestJoin_copiesBothWaysAndKeepsHalfCloseHalf(t *testing.T) {
	f := newFixture(Options{})
	f.client.Write([]byte("question"))
	f.client.CloseWrite()
	f.pump()
	if s := f.peerEnds[1]; s.got.String() != "question" || !s.eof || f.result != nil {
		t.Fatalf("server heard %q, FIN %v; result %v", s.got.String(), s.eof, f.result)
	}
	f.server.Write([]byte("the answer"))
	f.server.CloseWrite()
	f.pump()
	if c := f.peerEnds[0]; c.got.String() != "the answer" || !c.eof {
		t.Errorf("client heard %q, FIN %v", c.got.String(), c.eof)
	}
	want := Result{Received: 8, Sent: 10, First: Downstream}
	if f.result == nil || *f.result != want {
		t.Errorf("result %+v, want %+v", f.result, want)
	}
}

func TestJoin_passesAResetOnAsAReset(t *testing.T) {
	f := newFixture(Options{})
	f.server.Abort()
	f.pump()
	if !f.down.Aborted || f.result == nil || f.result.First != Upstream || !errors.Is(f.result.Err, mt.ErrReset) {
		t.Errorf("downstream reset %v, result %+v", f.down.Aborted, f.result)
	}
}

func TestJoin_stopsReadingFromTheFastSide(t *testing.T) {
	f := newFixture(Options{})
	f.up.High, f.up.Low = 100, 50
	f.client.Write(make([]byte, 150))
	mt.Pump(f.client, f.down)
	if !f.down.Paused() {
		t.Fatal("reading goes on although the upstream is slow")
	}
	f.pump()
	if f.down.Paused() || f.peerEnds[1].got.Len() != 150 {
		t.Errorf("paused %v after %d bytes have left", f.down.Paused(), f.peerEnds[1].got.Len())
	}
}

func TestJoin_inputThatIsThereAlreadyGoesThrough(t *testing.T) {
	down, up := mt.NewTransport(message.Conn{}), mt.NewTransport(message.Conn{})
	down.Feed([]byte("early"))
	Join(down, up, Options{}, func(Result) {})
	if got := up.TakeString(); got != "early" {
		t.Errorf("upstream got %q", got)
	}
}

// timers is a clock the test moves.
type timers struct {
	armed map[*loop.Timer]time.Duration
}

func (c *timers) Arm(t *loop.Timer, d time.Duration) { c.armed[t] = d }
func (c *timers) Disarm(t *loop.Timer)               { delete(c.armed, t) }

func TestJoin_idleTimeout(t *testing.T) {
	c := &timers{map[*loop.Timer]time.Duration{}}
	f := newFixture(Options{Timers: c, IdleTimeout: time.Minute})
	if len(c.armed) != 1 {
		t.Fatal("no timer")
	}
	for tm, d := range c.armed {
		if d != time.Minute {
			t.Errorf("armed with %v", d)
		}
		delete(c.armed, tm)
		f.client.Write([]byte("x"))
		f.pump()
		if c.armed[tm] != time.Minute {
			t.Error("traffic does not arm the timer anew")
		}
		tm.F()
	}
	f.pump()
	if f.result == nil || !errors.Is(f.result.Err, ErrIdle) || len(c.armed) != 0 {
		t.Errorf("result %+v, %d timers left", f.result, len(c.armed))
	}
}

// Over real sockets: many megabytes each way at once, against a reader that is
// slow and a peer that half-closes.
func TestJoin_bulkOverSockets(t *testing.T) {
	l, err := loop.New(loop.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = l.Run() }()
	defer func() { l.Stop(); <-ended }()
	server, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan Result, 1)
	l.Post(func() {
		down, err := l.Adopt(pair[0], message.Conn{})
		if err != nil {
			t.Error(err)
			return
		}
		addr := netip.MustParseAddrPort(server.Addr().String())
		l.Dial(loop.DialOptions{Addr: addr}, func(up *loop.Conn, err error) {
			if err != nil {
				t.Error(err)
				return
			}
			Join(down, up, Options{Timers: l, IdleTimeout: time.Minute}, func(r Result) { done <- r })
		})
	})
	up, down := random(9<<20, 1), random(7<<20, 2)
	s, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = s.Write(down); _ = s.(*net.TCPConn).CloseWrite() }()
	go func() {
		for p := up; len(p) > 0; {
			n, err := unix.Write(pair[1], p)
			if err != nil {
				return
			}
			p = p[n:]
		}
		_ = unix.Shutdown(pair[1], unix.SHUT_WR)
	}()
	gotDown := make(chan []byte, 1)
	go func() {
		var all []byte
		buf := make([]byte, 3000)
		for {
			n, err := unix.Read(pair[1], buf)
			if n <= 0 || err != nil {
				break
			}
			all = append(all, buf[:n]...)
		}
		gotDown <- all
	}()
	gotUp, err := io.ReadAll(s)
	if err != nil || !bytes.Equal(gotUp, up) {
		t.Errorf("server got %d bytes, %v", len(gotUp), err)
	}
	if got := <-gotDown; !bytes.Equal(got, down) {
		t.Errorf("client got %d bytes", len(got))
	}
	_ = unix.Close(pair[1])
	if r := <-done; r.Err != nil || r.Received != uint64(len(up)) || r.Sent != uint64(len(down)) {
		t.Errorf("result %+v", r)
	}
}

func random(n int, seed byte) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(p)
	return p
}
