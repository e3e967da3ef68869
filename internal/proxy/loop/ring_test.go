package loop

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/proxy/message"
)

// needRing skips where the kernel has no ring: everything works without.
func needRing(t *testing.T) {
	t.Helper()
	u, err := newURing(maxBatch)
	if err != nil {
		t.Skipf("skipped: %v", err)
	}
	u.close()
}

// pairs adopts n socket pairs on l before anything is written, so that one
// round can see all of them.
func pairs(t *testing.T, l *Loop, n int, handler func(i int, c *Conn) message.TransportHandler) (peers []int, conns []*Conn) {
	t.Helper()
	for i := range n {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		peers = append(peers, fds[0])
		t.Cleanup(func() { unix.Close(fds[0]) })
		c, err := l.Adopt(fds[1], message.Conn{})
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
		c.SetHandler(handler(i, c))
	}
	return peers, conns
}

// tape is a handler that keeps what it is told.
type tape struct {
	got    []byte
	eof    bool
	closed bool
	err    error
	first  func()
}

func (h *tape) OnBytes(p []byte) int {
	if h.first != nil {
		h.first()
		h.first = nil
	}
	h.got = append(h.got, p...)
	return len(p)
}
func (h *tape) OnEOF()             { h.eof = true }
func (h *tape) OnDrained()         {}
func (h *tape) OnClosed(err error) { h.closed, h.err = true, err }

// What was read ahead is not lost, not doubled and not given to a handler that
// does not want it, whatever an earlier handler of the same round does.
func TestRing_readAheadKeepsItsPromises(t *testing.T) {
	needRing(t)
	l, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.shutdown()
	const n = 8
	tapes := make([]*tape, n)
	var conns []*Conn
	peers, conns := pairs(t, l, n, func(i int, _ *Conn) message.TransportHandler {
		tapes[i] = &tape{}
		return tapes[i]
	})
	// The first handler of the round pauses, closes and aborts its neighbours.
	tapes[0].first = func() {
		conns[1].PauseRead(true) // with input
		conns[2].PauseRead(true) // with input and FIN
		conns[3].PauseRead(true) // with FIN alone
		conns[4].Abort()
		conns[5].Close()
	}
	long := bytes.Repeat([]byte("long"), aheadSize) // four times what is read ahead
	for i, p := range peers {
		switch i {
		case 3:
		case 6:
			unix.Write(p, long)
		default:
			fmt.Fprintf(fdWriter(p), "input of %d", i)
		}
		if i == 2 || i == 3 {
			unix.Shutdown(p, unix.SHUT_WR)
		}
	}
	turn := func() {
		n, err := l.wait()
		if err != nil {
			t.Fatal(err)
		}
		l.round(n)
	}
	turn()
	if !l.ring.ready() {
		t.Fatal("the round made no ring")
	}
	for i, want := range []string{0: "input of 0", 1: "", 2: "", 3: "", 4: "", 5: "", 6: string(long), 7: "input of 7"} {
		if i == 6 {
			for range 8 {
				l.Later(func() {}) // nothing may be left to wait for
				turn()
			}
		}
		if string(tapes[i].got) != want {
			t.Errorf("connection %d heard %.20q (%d bytes), want %.20q", i, tapes[i].got, len(tapes[i].got), want)
		}
	}
	if tapes[2].eof || tapes[3].eof || !tapes[4].closed {
		t.Error("a paused connection heard FIN, or an aborted one did not end")
	}
	for i := 1; i <= 3; i++ {
		conns[i].PauseRead(false)
	}
	for range 4 {
		l.Later(func() {})
		turn()
	}
	for i, want := range []string{1: "input of 1", 2: "input of 2", 3: ""} {
		if i > 0 && string(tapes[i].got) != want {
			t.Errorf("resumed connection %d heard %q, want %q", i, tapes[i].got, want)
		}
	}
	if tapes[1].eof || !tapes[2].eof || !tapes[3].eof {
		t.Errorf("FIN was told as %v %v %v", tapes[1].eof, tapes[2].eof, tapes[3].eof)
	}
}

type fdWriter int

func (w fdWriter) Write(p []byte) (int, error) { return unix.Write(int(w), p) }

// With and without the ring, many busy connections get their own bytes back,
// also those that reset or that are closed by the loop in between.
func TestRing_echoesLikePlainCalls(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("plain=%v", plain), func(t *testing.T) {
			if !plain {
				needRing(t)
			}
			l := startLoop(t, Options{PlainIO: plain})
			addr, _ := serveEcho(t, l, false)
			var wg sync.WaitGroup
			for i := range 48 {
				wg.Go(func() {
					for round := range 6 {
						if err := echoOnce(addr.String(), i, round); err != nil {
							t.Errorf("client %d, round %d: %v", i, round, err)
						}
					}
				})
			}
			wg.Wait()
			on(l, func() {
				if l.ring.ready() == plain && !plain {
					t.Error("48 busy connections made no ring")
				}
			})
		})
	}
}

func echoOnce(addr string, i, round int) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	for k := range 20 {
		sent := bytes.Repeat([]byte{byte('a' + (i+k)%26)}, 1+(i*997+round*13+k*k*499)%20000)
		if _, err := c.Write(sent); err != nil {
			return err
		}
		got := make([]byte, len(sent))
		if _, err := io.ReadFull(c, got); err != nil {
			return err
		}
		if !bytes.Equal(got, sent) {
			return fmt.Errorf("message %d of %d bytes came back changed", k, len(sent))
		}
		if (i+round)%5 == 4 && k == 10 {
			return c.(*net.TCPConn).SetLinger(0) // ends in RST
		}
	}
	return nil
}
