package loop

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/proxy/message"
)

// startLoop runs a loop for the length of a test.
func startLoop(t testing.TB, opts Options) *Loop {
	t.Helper()
	l, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- l.Run() }()
	t.Cleanup(func() {
		l.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return l
}

// on runs f on the loop and waits for it.
func on(l *Loop, f func()) {
	done := make(chan struct{})
	l.Post(func() { defer close(done); f() })
	<-done
}

// listenFD returns a descriptor that listens on loopback, and its address.
func listenFD(t testing.TB) (int, netip.AddrPort) {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	return fd, ln.Addr().(*net.TCPAddr).AddrPort()
}

// echo sends back what it gets, with back-pressure.
type echo struct {
	c      *Conn
	closed chan error
	panics bool
}

func (e *echo) OnBytes(p []byte) int {
	if e.panics && bytes.Contains(p, []byte("boom")) {
		panic("boom")
	}
	e.c.Write(p)
	if e.c.OverHigh() {
		e.c.PauseRead(true)
	}
	return len(p)
}
func (e *echo) OnEOF()     { e.c.CloseWrite() }
func (e *echo) OnDrained() { e.c.PauseRead(false) }
func (e *echo) OnClosed(err error) {
	select {
	case e.closed <- err:
	default:
	}
}

func serveEcho(t *testing.T, l *Loop, panics bool) (netip.AddrPort, chan error) {
	fd, addr := listenFD(t)
	closed := make(chan error, 16)
	on(l, func() {
		_, err := l.Listen(fd, func(fd int, remote netip.AddrPort) {
			c, err := l.Adopt(fd, message.Conn{Remote: remote, Local: LocalAddr(fd)})
			if err != nil {
				t.Error(err)
				return
			}
			c.SetHandler(&echo{c: c, closed: closed, panics: panics})
		})
		if err != nil {
			t.Error(err)
		}
	})
	return addr, closed
}

func TestConn_echoesMegabytesAgainstASlowReader(t *testing.T) {
	l := startLoop(t, Options{})
	addr, closed := serveEcho(t, l, false)
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want := make([]byte, 8<<20)
	for i := range want {
		want[i] = byte(i * 7 >> 3)
	}
	go func() {
		_, _ = c.Write(want)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	var got bytes.Buffer
	buf := make([]byte, 10_000)
	for {
		n, err := c.Read(buf)
		got.Write(buf[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Fatalf("echoed %d bytes that differ from the %d sent", got.Len(), len(want))
	}
	if err := <-closed; err != nil {
		t.Errorf("orderly close reported %v", err)
	}
	if n := l.Stats().Conns.Load(); n != 0 {
		t.Errorf("%d connections left", n)
	}
}

func TestConn_panicEndsOnlyItsOwnConnection(t *testing.T) {
	l := startLoop(t, Options{})
	addr, closed := serveEcho(t, l, true)
	good, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer good.Close()
	bad, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer bad.Close()
	_, _ = bad.Write([]byte("boom"))
	if err := <-closed; !errors.Is(err, ErrPanic) {
		t.Errorf("closed with %v, want ErrPanic", err)
	}
	_, _ = good.Write([]byte("still here"))
	buf := make([]byte, 10)
	if _, err := io.ReadFull(good, buf); err != nil || string(buf) != "still here" {
		t.Errorf("the other connection said %q, %v", buf, err)
	}
	if n := l.Stats().Panics.Load(); n != 1 {
		t.Errorf("%d panics counted", n)
	}
}

func TestConn_abortIsAReset(t *testing.T) {
	l := startLoop(t, Options{})
	fd, addr := listenFD(t)
	on(l, func() {
		_, _ = l.Listen(fd, func(fd int, _ netip.AddrPort) {
			c, _ := l.Adopt(fd, message.Conn{})
			c.SetHandler(sink(func([]byte) { c.Abort() }))
		})
	})
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Write([]byte("x"))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v, want connection reset", err)
	}
}

// lastWords writes, closes at once and never reads.
type lastWords struct{ c *Conn }

func (h *lastWords) OnBytes(p []byte) int {
	h.c.Write([]byte("400 and goodbye"))
	h.c.Close()
	return len(p)
}
func (h *lastWords) OnEOF()         {}
func (h *lastWords) OnDrained()     {}
func (h *lastWords) OnClosed(error) {}

func TestConn_closeLetsLastWordsArriveWhileThePeerStillSends(t *testing.T) {
	l := startLoop(t, Options{})
	fd, addr := listenFD(t)
	on(l, func() {
		_, _ = l.Listen(fd, func(fd int, _ netip.AddrPort) {
			c, _ := l.Adopt(fd, message.Conn{})
			c.SetHandler(&lastWords{c})
		})
	})
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Write(make([]byte, 100_000))
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "400 and goodbye" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestDial_reportsSuccessRefusalTimeoutAndHonoursCancel(t *testing.T) {
	l := startLoop(t, Options{})
	fd, addr := listenFD(t)
	type result struct {
		c   *Conn
		err error
	}
	dial := func(o DialOptions) result {
		ch := make(chan result, 1)
		l.Post(func() { l.Dial(o, func(c *Conn, err error) { ch <- result{c, err} }) })
		return <-ch
	}
	r := dial(DialOptions{Addr: addr, Timeout: time.Second, Bind: netip.MustParseAddr("127.0.0.1")})
	if r.err != nil || r.c.Conn().Remote != addr || !r.c.Conn().Local.IsValid() {
		t.Fatalf("dial: %+v", r)
	}
	on(l, r.c.Abort)
	_ = unix.Close(fd)
	if r := dial(DialOptions{Addr: addr, Timeout: time.Second}); !errors.Is(r.err, syscall.ECONNREFUSED) {
		t.Errorf("refused dial: %v", r.err)
	}
	// A listener with a full backlog does not answer.
	full, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(full)
	_ = unix.Bind(full, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	_ = unix.Listen(full, 0)
	var last result
	for range 4 {
		if last = dial(DialOptions{Addr: LocalAddr(full), Timeout: 50 * time.Millisecond}); last.err != nil {
			break
		}
	}
	if !IsTimeout(last.err) {
		t.Errorf("dial into a full backlog: %v", last.err)
	}
	on(l, func() {
		d := l.Dial(DialOptions{Addr: addr}, func(*Conn, error) { t.Error("done after Cancel") })
		d.Cancel()
	})
	on(l, func() {})
}

func TestDial_adoptsADescriptorConnectedElsewhere(t *testing.T) {
	l := startLoop(t, Options{})
	addr, _ := serveEcho(t, l, false)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}); err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1)
	on(l, func() {
		l.Dial(DialOptions{Addr: addr, FD: fd}, func(c *Conn, err error) {
			if err != nil {
				t.Error(err)
				return
			}
			c.SetHandler(sink(func(p []byte) { got <- string(p) }))
			c.Write([]byte("hello"))
		})
	})
	if s := <-got; s != "hello" {
		t.Errorf("got %q", s)
	}
}

type sink func(p []byte)

func (s sink) OnBytes(p []byte) int { s(p); return len(p) }
func (sink) OnEOF()                 {}
func (sink) OnDrained()             {}
func (sink) OnClosed(error)         {}

// keeper consumes nothing until it is replaced.
type keeper struct {
	c    *Conn
	next message.TransportHandler
}

func (k *keeper) OnBytes(p []byte) int {
	if len(p) >= 6 {
		k.c.SetHandler(k.next)
	}
	return 0
}
func (k *keeper) OnEOF()         {}
func (k *keeper) OnDrained()     {}
func (k *keeper) OnClosed(error) {}

func TestConn_unconsumedInputGoesToTheNextHandler(t *testing.T) {
	l := startLoop(t, Options{})
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[1])
	got := make(chan string, 1)
	on(l, func() {
		c, err := l.Adopt(pair[0], message.Conn{})
		if err != nil {
			t.Error(err)
			return
		}
		c.SetHandler(&keeper{c, sink(func(p []byte) { got <- string(p) })})
	})
	for _, s := range []string{"abc", "def"} {
		_, _ = unix.Write(pair[1], []byte(s))
		on(l, func() {})
	}
	if s := <-got; s != "abcdef" {
		t.Errorf("the second handler got %q", s)
	}
}

// late replaces itself by next when it hears of the FIN.
type late struct {
	c    *Conn
	next message.TransportHandler
}

func (h *late) OnBytes([]byte) int { return 0 }
func (h *late) OnEOF()             { h.c.SetHandler(h.next) }
func (h *late) OnDrained()         {}
func (h *late) OnClosed(error)     {}

func TestConn_finIsToldToTheNextHandlerAfterTheInput(t *testing.T) {
	l := startLoop(t, Options{})
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[1])
	on(l, func() {
		c, err := l.Adopt(pair[0], message.Conn{})
		if err != nil {
			t.Error(err)
			return
		}
		c.SetHandler(&late{c, &echo{c: c, closed: make(chan error, 1)}})
	})
	_, _ = unix.Write(pair[1], []byte("short"))
	_ = unix.Shutdown(pair[1], unix.SHUT_WR)
	buf := make([]byte, 10)
	if n, err := unix.Read(pair[1], buf); string(buf[:max(n, 0)]) != "short" {
		t.Errorf("echoed %q, %v", buf[:max(n, 0)], err)
	}
	if n, err := unix.Read(pair[1], buf); n != 0 || err != nil {
		t.Errorf("after the echo: %d, %v; want FIN", n, err)
	}
}

func TestListener_shedsAndRecoversWhenDescriptorsRunOut(t *testing.T) {
	l := startLoop(t, Options{})
	addr, _ := serveEcho(t, l, false)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(client)
	low := old
	low.Cur = uint64(client) + 1
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	err = unix.Connect(client, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()})
	for l.Stats().AcceptErrors.Load() == 0 && l.Stats().Accepted.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &old)
	if err != nil {
		t.Fatal(err)
	}
	if l.Stats().AcceptErrors.Load() == 0 {
		t.Skip("a lower descriptor was free")
	}
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Write([]byte("x"))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Errorf("after recovery: %v", err)
	}
}

func TestLoop_stopTellsEverybody(t *testing.T) {
	l, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- l.Run() }()
	addr, closed := serveEcho(t, l, false)
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Write([]byte("x"))
	_, _ = io.ReadFull(c, make([]byte, 1))
	l.Stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := <-closed; !errors.Is(err, ErrStopped) {
		t.Errorf("closed with %v", err)
	}
	if l.Post(func() {}) {
		t.Error("Post after the end promised to run")
	}
}

func TestOriginalDst_ofAConnectionThatWasNotRedirected(t *testing.T) {
	for _, where := range []string{"127.0.0.1:0", "[::1]:0", "[::]:0"} {
		ln, err := net.Listen("tcp", where)
		if err != nil {
			t.Logf("%s: skipped: %v", where, err)
			continue
		}
		port := ln.Addr().(*net.TCPAddr).AddrPort().Port()
		target := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
		if where == "[::1]:0" {
			target = netip.AddrPortFrom(netip.IPv6Loopback(), port)
		}
		c, err := net.Dial("tcp", target.String())
		if err != nil {
			t.Fatal(err)
		}
		s, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		f, err := s.(*net.TCPConn).File()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := OriginalDst(int(f.Fd())); err != nil || got != target {
			t.Errorf("%s: original destination %v, %v; want %v", where, got, err, target)
		}
		for _, x := range []io.Closer{f, s, c, ln} {
			_ = x.Close()
		}
	}
	fd, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OriginalDst(fd[0]); err == nil {
		t.Error("a unix socket has an original destination")
	}
	_, _ = unix.Close(fd[0]), unix.Close(fd[1])
}
