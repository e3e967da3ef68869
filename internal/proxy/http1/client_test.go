package http1

import (
	"slices"
	"strings"
	"testing"

	"lateen.dev/lateen/internal/proxy/message"
	mt "lateen.dev/lateen/internal/proxy/message/messagetest"
)

type clientFixture struct {
	t   *mt.Transport
	obs *mt.Observer
	c   *Client
}

func newClientFixture() *clientFixture {
	f := &clientFixture{t: mt.NewTransport(message.Conn{}), obs: &mt.Observer{}}
	f.c = NewClient(f.t, f.obs, &ClientOptions{})
	return f
}

// call opens an exchange and sends a request without body.
func (f *clientFixture) call(method string) *mt.Receiver {
	r := &mt.Receiver{}
	s := f.c.Open(r)
	s.SendHead(mt.Request(method, "up:80", "/p"), true)
	r.Sender = s
	f.t.Take()
	return r
}

// read are responses in order, with what the request path must see and whether
// the connection may be used again.
var read = []struct {
	name, method, in, want string
	reusable               bool
}{
	{"length", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: y\r\n\r\nhi", "head 200 content-length=2 x=y; data end", true},
	{"no reason, no space", "GET", "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", "head 200 content-length=0 end", true},
	{"chunked with trailers", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nGrpc-Status: 0\r\n\r\n", "head 200; data; trailers grpc-status=0 end", true},
	{"100 and 103 first", "GET", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: l\r\n\r\nHTTP/1.1 204 None\r\n\r\n", "info 100; info 103 link=l; head 204 end", true},
	{"HEAD with a length", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", "head 200 content-length=99 end", true},
	{"HEAD chunked", "HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "head 200 end", true},
	{"304 with a length", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", "head 304 content-length=99 end", true},
	{"hop-by-hop", "GET", "HTTP/1.1 200 OK\r\nConnection: x-a\r\nX-A: 1\r\nKeep-Alive: 3\r\nContent-Length: 0\r\n\r\n", "head 200 content-length=0 end", true},
	{"close", "GET", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", "head 200 content-length=0 end", false},
	{"1.0", "GET", "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", "head 200 content-length=0 end", false},
	{"1.0 keep-alive", "GET", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", "head 200 content-length=0 end", true},
	{"upgrade in a 200 is no tunnel (B011)", "GET", "HTTP/1.1 200 OK\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nhi", "head 200 content-length=2; data end", true},
	{"bytes behind the response (B013)", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\n", "head 200 content-length=2; data end", false},
}

func TestClient_reads(t *testing.T) {
	for _, c := range read {
		checkRead(t, c.name, c.method, c.in, c.want, c.reusable)
	}
}

func checkRead(t *testing.T, name, method, in, want string, reusable bool) {
	t.Helper()
	for _, step := range []int{len(in), 1} {
		f := newClientFixture()
		r := f.call(method)
		for part := range slices.Chunk([]byte(in), step) {
			f.t.Feed(part)
		}
		if got := strings.Join(r.Log, "; "); got != want {
			t.Errorf("%s in steps of %d:\n got %s\nwant %s", name, step, got, want)
		}
		if got := f.c.Capacity() == 1; got != reusable && len(in) == step {
			t.Errorf("%s: reusable %v", name, got)
		}
	}
}

func TestClient_bodyUntilTheEndOfTheConnection(t *testing.T) {
	f := newClientFixture()
	r := f.call("GET")
	f.t.Feed([]byte("HTTP/1.1 200 OK\r\n\r\nall"))
	f.t.Feed([]byte(" of it"))
	if r.Ended {
		t.Fatal("ended before the connection")
	}
	f.t.FeedEOF()
	if !r.Ended || string(r.Body) != "all of it" || !f.obs.Closed {
		t.Errorf("%v %q", r.Log, r.Body)
	}
}

func answer(lines ...string) string {
	return "HTTP/1.1 200 OK\r\n" + strings.Join(lines, "\r\n") + "\r\n\r\n"
}

// unreadable are responses that end their connection, with the reason.
var unreadable = []struct {
	name, in string
	want     *Error
}{
	{"B001 CL and TE", answer("Content-Length: 3", "Transfer-Encoding: chunked"), errLengthAndTE},
	{"duplicate CL", answer("Content-Length: 3", "Content-Length: 4"), errLengthTwice},
	{"B003 TE list", answer("Transfer-Encoding: gzip, chunked"), errTE},
	{"B002 space before colon", answer("Content-Length : 3"), errName},
	{"B008 empty name", answer(": 3"), errNameEmpty},
	{"B023 fold", answer("a: b", " c"), errFold},
	{"B004 bare LF", "HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n", errBareLF},
	{"TE in 1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", errTE10},
	{"NUL", answer("a: \x00"), errControl},
	{"version", "HTTP/1.2 200 OK\r\n\r\n", errVersion},
	{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", errStatusLine},
	{"something else, no line end", "SSH-2.0-x", errStatusLine},
	{"two-digit status", "HTTP/1.1 20 OK\r\n\r\n", errStatusLine},
	{"status 600", "HTTP/1.1 600 X\r\n\r\n", errStatusLine},
	{"status 099", "HTTP/1.1 099 X\r\n\r\n", errStatusLine},
	{"control in reason", "HTTP/1.1 200 O\x01K\r\n\r\n", errStatusLine},
	{"101 nobody asked for", "HTTP/1.1 101 Switching\r\n\r\n", errSwitch},
	{"endless 1xx", strings.Repeat("HTTP/1.1 103 Early\r\n\r\n", 20), errInformational},
	{"B072 endless head", "HTTP/1.1 200 OK\r\n" + strings.Repeat("a: b\r\n", 20_000), errHeadLong},
	{"too many fields", answer(strings.Split(strings.Repeat("a: b\n", 100)+"c: d", "\n")...), errHeaderCount},
	{"bad chunk", answer("Transfer-Encoding: chunked") + "x\r\n", errChunkSize},
}

func TestClient_refuses(t *testing.T) {
	for _, c := range unreadable {
		checkUnreadable(t, c.name, c.in, c.want)
	}
}

func checkUnreadable(t *testing.T, name, in string, want *Error) {
	t.Helper()
	f := newClientFixture()
	r := f.call("GET")
	f.t.Feed([]byte(in))
	if !r.WasReset || r.Code != message.ResetProtocol || r.Ended || !f.t.Aborted {
		t.Errorf("%s: saw %v, aborted %v", name, r.Log, f.t.Aborted)
	}
	f.t.Settle()
	if f.obs.Err != want || f.obs.Code != message.ResetProtocol {
		t.Errorf("%s: pool heard %v, %v; want %v", name, f.obs.Code, f.obs.Err, want)
	}
}

func TestClient_truncationIsAReset(t *testing.T) {
	for _, in := range []string{
		"", "HTTP/1.1 200 OK\r\nContent-Le", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n",
	} {
		f := newClientFixture()
		r := f.call("GET")
		f.t.Feed([]byte(in))
		f.t.FeedEOF()
		if !r.WasReset || r.Ended || r.Code != message.ResetTermination {
			t.Errorf("after %q: %v", in, r.Log)
		}
	}
	f := newClientFixture()
	r := f.call("GET")
	f.t.Feed([]byte("HTTP/1.1 200 OK\r\n\r\nab"))
	f.t.FeedError(mt.ErrReset)
	if !r.WasReset || r.Ended {
		t.Errorf("a body until FIN that ended by RST: %v", r.Log)
	}
}

func TestClient_frames(t *testing.T) {
	body := func(h *message.Head, data ...string) string {
		f := newClientFixture()
		s := f.c.Open(&mt.Receiver{})
		s.SendHead(h, len(data) == 0)
		for i, d := range data {
			s.SendData([]byte(d), i == len(data)-1)
		}
		if f.t.Aborted {
			return "aborted"
		}
		return f.t.TakeString()
	}
	for _, c := range []struct{ name, got, want string }{
		{"GET", body(mt.Request("GET", "a:1", "/x?y", "b", "c")), "GET /x?y HTTP/1.1\r\nhost: a:1\r\nb: c\r\n\r\n"},
		{"POST without body", body(mt.Request("POST", "a", "/")), "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"},
		{"length", body(mt.Request("POST", "a", "/", "content-length", "2"), "h", "i"), "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi"},
		{"chunked", body(mt.Request("POST", "a", "/"), "h", strings.Repeat("x", 26), ""), "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\nh\r\n1a\r\n" + strings.Repeat("x", 26) + "\r\n0\r\n\r\n"},
		{"OPTIONS *", body(mt.Request("OPTIONS", "a", "*")), "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n"},
		{"too little", body(mt.Request("POST", "a", "/", "content-length", "3"), "hi"), "aborted"},
		{"too much", body(mt.Request("POST", "a", "/", "content-length", "1"), "hi"), "aborted"},
		{"declared, not sent (B014)", body(mt.Request("POST", "a", "/", "content-length", "3")), "aborted"},
		{"line break in a value", body(mt.Request("GET", "a", "/", "b", "c\r\nd: e")), "aborted"},
		{"space in the path", body(mt.Request("GET", "a", "/ HTTP/1.1")), "aborted"},
		{"no path", body(mt.Request("GET", "a", "")), "aborted"},
		{"path without slash", body(mt.Request("GET", "a", "x")), "aborted"},
		{"line break in the path", body(mt.Request("GET", "a", "/\r\n")), "aborted"},
	} {
		if c.got != c.want {
			t.Errorf("%s:\n got %q\nwant %q", c.name, c.got, c.want)
		}
	}
}

func TestClient_earlyFinalAnswerUsesTheConnectionUp(t *testing.T) {
	f := newClientFixture()
	r := &mt.Receiver{}
	s := f.c.Open(r)
	s.SendHead(mt.Request("PUT", "a", "/", "content-length", "9"), false)
	f.t.Take()
	f.t.Feed([]byte("HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"))
	s.SendData([]byte("late"), false) // must be ignored
	f.t.Take()
	if !r.Ended || f.c.Capacity() != 0 || !f.obs.Closed || r.WasReset {
		t.Errorf("%v, capacity %d, closed %v", r.Log, f.c.Capacity(), f.obs.Closed)
	}
}

func TestClient_reusesTheConnectionFromWithinTheLastEvent(t *testing.T) {
	f := newClientFixture()
	second := &mt.Receiver{}
	first := &mt.Receiver{EndHook: func() {
		if f.c.Capacity() != 1 {
			t.Error("no capacity in the last event")
		}
		f.c.Open(second).SendHead(mt.Request("GET", "a", "/2"), true)
	}}
	f.c.Open(first).SendHead(mt.Request("GET", "a", "/1"), true)
	f.t.Take()
	f.t.Feed([]byte("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
	if got := f.t.TakeString(); !strings.HasPrefix(got, "GET /2 ") {
		t.Fatalf("sent %q", got)
	}
	if f.obs.Capacity != 0 {
		t.Error("capacity announced that is taken already")
	}
	f.t.Feed([]byte("HTTP/1.1 204 None\r\n\r\n"))
	if !second.Ended || f.obs.Capacity != 1 || f.c.Used() != 2 {
		t.Errorf("second: %v, capacity announced %d times", second.Log, f.obs.Capacity)
	}
}

func TestClient_idleConnectionEndsOnFinAndOnUnaskedBytes(t *testing.T) {
	f := newClientFixture()
	f.t.FeedEOF()
	if f.c.Capacity() != 0 || !f.obs.Closed || f.obs.Code != message.ResetNone {
		t.Errorf("after FIN: capacity %d, closed %v, %v", f.c.Capacity(), f.obs.Closed, f.obs.Code)
	}
	f = newClientFixture()
	f.t.Feed([]byte("HTTP/1.1 408 Request Timeout\r\n\r\n"))
	if f.c.Capacity() != 0 || !f.t.Aborted || f.obs.Err != errUnsolicited {
		t.Errorf("after unasked bytes: capacity %d, %v", f.c.Capacity(), f.obs.Err)
	}
}

func TestClient_tunnel(t *testing.T) {
	f := newClientFixture()
	r := &mt.Receiver{}
	s := f.c.Open(r)
	s.SendHead(mt.Request("GET", "a", "/", "upgrade", "websocket"), false)
	if got := f.t.TakeString(); got != "GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n" {
		t.Errorf("sent %q", got)
	}
	f.t.Feed([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly"))
	s.SendData([]byte("frame"), false)
	if got := f.t.TakeString(); got != "frame" || string(r.Body) != "early" {
		t.Errorf("sent %q, got %q", got, r.Body)
	}
	f.t.FeedEOF()
	s.SendData(nil, true)
	f.t.Take()
	if !r.Ended || r.WasReset || !f.obs.Closed || f.c.Capacity() != 0 {
		t.Errorf("%v, closed %v", r.Log, f.obs.Closed)
	}
}

func TestClient_closeAndReset(t *testing.T) {
	f := newClientFixture()
	r := f.call("GET")
	f.c.Close(true)
	f.t.Feed([]byte("HTTP/1.1 204 None\r\n\r\n"))
	if !r.Ended || !f.obs.Closed {
		t.Errorf("graceful: %v, closed %v", r.Log, f.obs.Closed)
	}
	f = newClientFixture()
	r = f.call("GET")
	f.c.Close(false)
	f.t.Settle()
	if !r.WasReset || !f.obs.Closed {
		t.Errorf("at once: %v, closed %v", r.Log, f.obs.Closed)
	}
	f = newClientFixture()
	r = f.call("GET")
	r.Sender.Reset(message.ResetCancel)
	f.t.Settle()
	if r.WasReset || !f.obs.Closed || !f.t.Aborted {
		t.Errorf("own reset: %v, closed %v", r.Log, f.obs.Closed)
	}
}
