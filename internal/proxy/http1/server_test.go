package http1

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"lateen.dev/lateen/internal/proxy/loop"
	"lateen.dev/lateen/internal/proxy/message"
	mt "lateen.dev/lateen/internal/proxy/message/messagetest"
)

type fixture struct {
	t   *mt.Transport
	a   *mt.Acceptor
	s   *Server
	err *Error
}

func newFixture(o ServerOptions) *fixture {
	f := &fixture{t: mt.NewTransport(message.Conn{}), a: &mt.Acceptor{}}
	o.OnError = func(e *Error, _ *message.Conn) { f.err = e }
	o.OnBodyError = o.OnError
	f.s = NewServer(f.t, f.a, &o)
	return f
}

func (f *fixture) logs() string {
	var all []string
	for _, x := range f.a.Exchanges {
		all = append(all, x.Log...)
	}
	return strings.Join(all, "; ")
}

const ok200 = "HTTP/1.1 200 OK\r\n"

// accepted are requests in order, with what the request path must see.
var accepted = []struct{ name, in, want string }{
	{"plain", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "head GET http://a/ end"},
	{"leading empty line", "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "head GET http://a/ end"},
	{"names in lower case, values trimmed (B018)", "GET /x?y HTTP/1.1\r\nHOST: A.B:80\r\nX-Y: \t v w \t\r\nE:\r\n\r\n", "head GET http://a.b:80/x?y x-y=v w e= end"},
	{"one trailing dot of the host (B034)", "GET / HTTP/1.1\r\nHost: Example.com.:8080\r\n\r\n", "head GET http://example.com:8080/ end"},
	{"IPv6 host", "GET / HTTP/1.1\r\nHost: [FD00::1]:80\r\n\r\n", "head GET http://[fd00::1]:80/ end"},
	{"absolute form wins over Host", "GET http://B/p HTTP/1.1\r\nHost: a\r\n\r\n", "head GET http://b/p end"},
	{"absolute form without path", "GET HTTP://b HTTP/1.1\r\nHost: a\r\n\r\n", "head GET http://b/ end"},
	{"absolute form with query only", "GET http://b?q=1 HTTP/1.1\r\nHost: a\r\n\r\n", "head GET http://b/?q=1 end"},
	{"OPTIONS *", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "head OPTIONS http://a* end"},
	{"content length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", "head POST http://a/ content-length=3; data end"},
	{"content length 0", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", "head POST http://a/ content-length=0 end"},
	{"chunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n3;x=\"y\"\r\nabc\r\n0\r\n\r\n", "head POST http://a/; data end"},
	{"trailers", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-T: v\r\n\r\n", "head POST http://a/; data; trailers x-t=v end"},
	{"hop-by-hop (B052)", "GET / HTTP/1.1\r\nHost: a\r\nConnection: X-Real-Ip, keep-alive\r\nx-real-ip: 1\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nTE: trailers, gzip\r\nz: 1\r\n\r\n", "head GET http://a/ z=1 te=trailers end"},
	{"HTTP/1.0 without Host", "GET / HTTP/1.0\r\n\r\n", "head GET http://fallback/ end"},
	{"h2c upgrade is dropped (B006)", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n\r\n", "head GET http://a/ end"},
	{"upgrade not listed in Connection", "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n", "head GET http://a/ end"},
	{"upgrade with a body is an ordinary request", "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\nx", "head GET http://a/ content-length=1; data end"},
	{"upgrade", "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", "head GET http://a/ upgrade=websocket"},
	{"CONNECT", "CONNECT B:443 HTTP/1.1\r\nHost: b:443\r\n\r\n", "head CONNECT http://b:443"},
	{"obs-text in a value", "GET / HTTP/1.1\r\nHost: a\r\nx: \xc3\xa9\r\n\r\n", "head GET http://a/ x=\xc3\xa9 end"},
}

func TestServer_accepts(t *testing.T) {
	for _, c := range accepted {
		checkAccepted(t, c.name, c.in, c.want)
	}
}

// checkAccepted feeds a request whole and in pieces.
func checkAccepted(t *testing.T, name, in, want string) {
	t.Helper()
	for _, step := range []int{len(in), 1, 3} {
		f := newFixture(ServerOptions{AllowConnect: true, AllowUpgrade: true, DefaultHost: "fallback"})
		for part := range slices.Chunk([]byte(in), step) {
			f.t.Feed(part)
		}
		if got := f.logs(); got != want {
			t.Errorf("%s in steps of %d:\n got %s\nwant %s (%v)", name, step, got, want, f.err)
		}
	}
}

func chunked(body string) string {
	return "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + body
}

func get(lines ...string) string {
	return "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Join(lines, "\r\n") + "\r\n\r\n"
}

// refused are requests that must be answered by the codec, with the reason.
var refused = []struct {
	name, in string
	want     *Error
}{
	{"B001 CL and TE", get("Content-Length: 3", "Transfer-Encoding: chunked"), errLengthAndTE},
	{"B001 space in name", get("Content Length: 3"), errName},
	{"B002 space before colon", get("Content-Length : 3"), errName},
	{"B003 odd TE", get("Transfer-Encoding: \x0bchunked"), errControl},
	{"B003 TE list", get("Transfer-Encoding: chunked, identity"), errTE},
	{"B003 xchunked", get("Transfer-Encoding: xchunked"), errTE},
	{"B003 two TE lines", get("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), errTE},
	{"B003 empty TE", get("Transfer-Encoding:"), errTE},
	{"B003 quoted TE", get("Transfer-Encoding: \"chunked\""), errTE},
	{"B003 TE with parameter", get("Transfer-Encoding: chunked;q=1"), errTE},
	{"B003 gzip, chunked", get("Transfer-Encoding: gzip, chunked"), errTE},
	{"B004 bare LF after chunk size", chunked("1\nx\r\n0\r\n\r\n"), errBareLF},
	{"B004 bare LF after extension", chunked("1;a\nx\r\n0\r\n\r\n"), errBareLF},
	{"bare LF ends a header line", "GET / HTTP/1.1\nHost: a\r\n\r\n", errBareLF},
	{"bare LF ends the head", "GET / HTTP/1.1\r\nHost: a\r\n\n", errBareLF},
	{"bare LF only", "GET / HTTP/1.1\nHost: a\n\n", errBareLF},
	{"bare LF in trailers", chunked("0\r\nx: y\n\r\n"), errBareLF},
	{"B005 huge extensions", chunked(strings.Repeat("1;"+strings.Repeat("x", 900)+"\r\na\r\n", 40)), errChunkExtension},
	{"B005 one huge extension", chunked("1;" + strings.Repeat("x", 5000)), errChunkExtension},
	{"B007 long name", get(strings.Repeat("x", 257) + ": 1"), errNameLong},
	{"duplicate CL", get("Content-Length: 3", "Content-Length: 3"), errLengthTwice},
	{"B008 empty name", get(": x"), errNameEmpty},
	{"B009 empty CL", get("Content-Length:"), errLength},
	{"B009 +5", get("Content-Length: +5"), errLength},
	{"B009 0x5", get("Content-Length: 0x5"), errLength},
	{"B009 5,5", get("Content-Length: 5,5"), errLength},
	{"B009 5 5", get("Content-Length: 5 5"), errLength},
	{"B009 -1", get("Content-Length: -1"), errLength},
	{"CL overflow", get("Content-Length: 18446744073709551617"), errLength},
	{"B010 # in target", "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", errFragment},
	{"B019 no Host", "GET / HTTP/1.1\r\n\r\n", errHostMissing},
	{"two Hosts", get("Host: a"), errHostTwice},
	{"B020 Host with space", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", errHost},
	{"B020 Host with slash", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", errHost},
	{"empty Host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", errHost},
	{"two trailing dots (B034)", "GET / HTTP/1.1\r\nHost: a..\r\n\r\n", errHost},
	{"userinfo", "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", errUserinfo},
	{"userinfo in absolute form", "GET http://u:p@a/ HTTP/1.1\r\nHost: a\r\n\r\n", errUserinfo},
	{"bad Host beside absolute form", "GET http://a/ HTTP/1.1\r\nHost: a b\r\n\r\n", errHost},
	{"port too large", "GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n", errHost},
	{"port empty", "GET / HTTP/1.1\r\nHost: a:\r\n\r\n", errHost},
	{"B022 other scheme", "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", errScheme},
	{"B023 obs-fold", get("a: b\r\n c"), errFold},
	{"B023 fold on first line", "GET / HTTP/1.1\r\n Host: a\r\n\r\n", errFold},
	{"B023 NUL in value", get("a: b\x00c"), errControl},
	{"B023 NUL in name", get("a\x00: b"), errName},
	{"B023 CR alone in value", get("a: b\rc"), errControl},
	{"B023 DEL in value", get("a: b\x7f"), errControl},
	{"B023 two spaces", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", errTarget},
	{"B023 tab separator", "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", errRequestLine},
	{"B023 trailing space", "GET / HTTP/1.1 \r\nHost: a\r\n\r\n", errVersion},
	{"B023 HTTP/1.10", "GET / HTTP/1.10\r\nHost: a\r\n\r\n", errVersion},
	{"B023 HTTP/1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", errVersion},
	{"B023 HTTP/2.0", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", errVersion},
	{"B023 http/1.1", "GET / http/1.1\r\nHost: a\r\n\r\n", errVersion},
	{"B023 0.9", "GET /\r\n\r\n", errRequestLine},
	{"B023 chunk size 0x5", chunked("0x5\r\nabcde\r\n0\r\n\r\n"), errChunkSize},
	{"B023 chunk size _5", chunked("_5\r\nabcde\r\n0\r\n\r\n"), errChunkSize},
	{"B023 chunk size -1", chunked("-1\r\na\r\n0\r\n\r\n"), errChunkSize},
	{"B023 chunk size 17 digits", chunked("00000000000000001\r\na\r\n"), errChunkSize},
	{"B023 chunk size empty", chunked("\r\na\r\n"), errChunkSize},
	{"B023 chunk size with space", chunked("1 \r\na\r\n"), errChunkSize},
	{"B023 space before extension", chunked("1 ;x\r\na\r\n"), errChunkSize},
	{"B023 leading space", chunked(" 1\r\na\r\n"), errChunkSize},
	{"B023 missing CRLF after data", chunked("1\r\nab\r\n0\r\n\r\n"), errChunkEnd},
	{"B023 LF after data", chunked("1\r\na\n0\r\n\r\n"), errChunkEnd},
	{"B023 trailers with CL", chunked("0\r\nContent-Length: 1\r\n\r\n"), errTrailer},
	{"B023 trailers with TE", chunked("0\r\nTransfer-Encoding: chunked\r\n\r\n"), errTrailer},
	{"B023 trailers with Host", chunked("0\r\nHost: b\r\n\r\n"), errTrailer},
	{"B023 folded trailer", chunked("0\r\na: b\r\n c\r\n\r\n"), errFold},
	{"B023 CL on CONNECT", "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nContent-Length: 1\r\n\r\n", errConnectBody},
	{"TE on CONNECT", "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nTransfer-Encoding: chunked\r\n\r\n", errConnectBody},
	{"CONNECT with a path", "CONNECT /x HTTP/1.1\r\nHost: a\r\n\r\n", errHost},
	{"CONNECT without port", "CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", errTargetForm},
	{"GET *", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", errTargetForm},
	{"authority form with GET", "GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n", errTarget},
	{"high byte in target", "GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", errTarget},
	{"control in target", "GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", errTarget},
	{"TE in HTTP/1.0", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", errTE10},
	{"Connection names Content-Length", get("Connection: content-length"), errConnectionList},
	{"Connection names Host", get("Connection: close, Host"), errConnectionList},
	{"TLS on a plain port", "\x16\x03\x01\x02\x00\x01", errFirstByte},
	{"lone CR first", "\rGET / HTTP/1.1\r\n", errFirstByte},
	{"B065 101 headers", get(strings.Split(strings.Repeat("a: b\n", 100)+"c: d", "\n")...), errHeaderCount},
	{"B068 long head", get("a: " + strings.Repeat("x", 62<<10)), errHeadLong},
	{"B068 long head unfinished", "GET / HTTP/1.1\r\na: " + strings.Repeat("x", 62<<10), errHeadLong},
	{"B081 long path", "GET /" + strings.Repeat("a", 8<<10) + " HTTP/1.1\r\nHost: a\r\n\r\n", errPathLong},
	{"long path unfinished", "GET /" + strings.Repeat("a", 9<<10), errPathLong},
	{"long trailers", chunked("0\r\na: " + strings.Repeat("x", 62<<10)), errHeadLong},
}

func TestServer_refuses(t *testing.T) {
	for _, c := range refused {
		checkRefused(t, c.name, c.in, c.want)
	}
}

func checkRefused(t *testing.T, name, in string, want *Error) {
	t.Helper()
	f := newFixture(ServerOptions{AllowConnect: true})
	f.t.Feed([]byte(in))
	if f.err != want {
		t.Errorf("%s: refused with %v, want %v; the request path saw %q", name, f.err, want, f.logs())
		return
	}
	text := refusalText(want.Status)
	reply := fmt.Sprintf("HTTP/1.1 %d %s\r\ncontent-length: %d\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n%s",
		want.Status, text, len(text), text)
	if got := f.t.TakeString(); got != reply {
		t.Errorf("%s: answered %q", name, got)
	}
	if !f.t.Ended() || !f.a.Closed {
		t.Errorf("%s: connection left open", name)
	}
	for _, x := range f.a.Exchanges { // only bodies may be found bad after the head
		if !x.WasReset || x.Code != message.ResetProtocol || x.Ended {
			t.Errorf("%s: the request path saw %v", name, x.Log)
		}
	}
}

// answer makes every exchange of f answer at its end.
func (f *fixture) answer(head *message.Head, body string) {
	f.a.Prepare = func(r *mt.Receiver) {
		r.EndHook = func() {
			r.Sender.SendHead(head, body == "")
			if body != "" {
				r.Sender.SendData([]byte(body), true)
			}
		}
	}
}

func TestServer_framesResponses(t *testing.T) {
	long := mt.Response(200, "content-length", "2")
	for _, c := range []struct {
		name, request string
		head          *message.Head
		body, want    string
		closed        bool
	}{
		{"length", get(), long, "hi", ok200 + "content-length: 2\r\n\r\nhi", false},
		{"no length is chunked", get(), mt.Response(200, "a", "b"), "hi", ok200 + "a: b\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", false},
		{"no body", get(), mt.Response(404), "", "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", false},
		{"204", get(), mt.Response(204, "content-length", "0"), "", "HTTP/1.1 204 No Content\r\n\r\n", false},
		{"304 keeps its length", get(), mt.Response(304, "content-length", "9"), "", "HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", false},
		{"HEAD", "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", long, "hi", ok200 + "content-length: 2\r\n\r\n", false},
		{"close", get("Connection: close"), long, "hi", ok200 + "content-length: 2\r\nconnection: close\r\n\r\nhi", true},
		{"1.0", "GET / HTTP/1.0\r\nHost: a\r\n\r\n", long, "hi", ok200 + "content-length: 2\r\nconnection: close\r\n\r\nhi", true},
		{"1.0 without length ends by FIN", "GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n", mt.Response(200), "hi", ok200 + "connection: close\r\n\r\nhi", true},
		{"1.0 keep-alive", "GET / HTTP/1.0\r\nHost: a\r\nConnection: Keep-Alive\r\n\r\n", long, "hi", ok200 + "content-length: 2\r\nconnection: keep-alive\r\n\r\nhi", false},
		{"a filter's bad length", get(), mt.Response(200, "content-length", "x"), "hi", ok200 + "transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", false},
		{"a bad length for HEAD", "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", mt.Response(200, "content-length", "x"), "hi", ok200 + "\r\n", false},
		{"our own fields never get through twice", get(), mt.Response(200, "connection", "x", "transfer-encoding", "chunked", "content-length", "2"), "hi", ok200 + "content-length: 2\r\n\r\nhi", false},
	} {
		f := newFixture(ServerOptions{})
		f.answer(c.head, c.body)
		f.t.Feed([]byte(c.request))
		if got := f.t.TakeString(); got != c.want {
			t.Errorf("%s:\n got %q\nwant %q", c.name, got, c.want)
		}
		if f.t.Ended() != c.closed {
			t.Errorf("%s: closed %v", c.name, f.t.Ended())
		}
	}
}

func TestServer_pipeliningAnswersOneAfterTheOther(t *testing.T) {
	f := newFixture(ServerOptions{})
	f.t.Feed([]byte("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\n\r\n"))
	for i := 1; i <= 3; i++ {
		if len(f.a.Exchanges) != i {
			t.Fatalf("%d exchanges begun, want %d", len(f.a.Exchanges), i)
		}
		if i < 3 && !f.t.Paused() {
			t.Error("reading goes on while a response is pending")
		}
		f.a.Last().Sender.SendHead(mt.Response(200, "x-n", fmt.Sprint(i)), true)
	}
	want := ""
	for i := 1; i <= 3; i++ {
		want += fmt.Sprintf("%sx-n: %d\r\ncontent-length: 0\r\n\r\n", ok200, i)
	}
	if got := f.t.TakeString(); got != want {
		t.Errorf("got %q", got)
	}
}

func TestServer_clientMayCloseItsHalfAndWait(t *testing.T) {
	f := newFixture(ServerOptions{})
	f.t.Feed([]byte(get()))
	f.t.FeedEOF()
	x := f.a.Last()
	if x.WasReset {
		t.Fatal("FIN after the request took the exchange away")
	}
	x.Sender.SendHead(mt.Response(200, "content-length", "2"), false)
	x.Sender.SendData([]byte("hi"), true)
	if got := f.t.TakeString(); !strings.HasSuffix(got, "\r\n\r\nhi") || !f.t.Ended() {
		t.Errorf("got %q, ended %v", got, f.t.Ended())
	}
}

func TestServer_truncatedRequestIsAReset(t *testing.T) {
	f := newFixture(ServerOptions{})
	f.t.Feed([]byte("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab"))
	f.t.FeedEOF()
	if x := f.a.Last(); !x.WasReset || x.Ended || x.Code != message.ResetTermination {
		t.Errorf("the request path saw %v", x.Log)
	}
}

func TestServer_truncatedResponseIsNeverACleanEnd(t *testing.T) {
	for _, head := range []*message.Head{mt.Response(200, "content-length", "5"), mt.Response(200)} {
		f := newFixture(ServerOptions{})
		f.t.Feed([]byte(get()))
		s := f.a.Last().Sender
		s.SendHead(head, false)
		s.SendData([]byte("ab"), false)
		s.Reset(message.ResetTermination)
		if !f.t.Aborted {
			t.Error("connection not reset")
		}
	}
	f := newFixture(ServerOptions{})
	f.t.Feed([]byte(get()))
	s := f.a.Last().Sender
	s.SendHead(mt.Response(200, "content-length", "5"), false)
	s.SendData([]byte("ab"), true)
	if !f.t.Aborted {
		t.Error("a body shorter than its length ended cleanly")
	}
}

func TestServer_expectContinue(t *testing.T) {
	request := "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
	f := newFixture(ServerOptions{})
	f.answer(mt.Response(201), "")
	f.t.Feed([]byte(request))
	x := f.a.Last()
	if string(x.Head.Get(message.Expect)) != "100-continue" {
		t.Error("Expect is not passed on")
	}
	x.Sender.SendInformational(mt.Response(100))
	x.Sender.SendInformational(mt.Response(103, "link", "x"))
	if got := f.t.TakeString(); got != "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" {
		t.Errorf("got %q", got)
	}
	f.t.Feed([]byte("ok"))
	if got := f.t.TakeString(); got != "HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n" || f.t.Ended() {
		t.Errorf("got %q, ended %v", got, f.t.Ended())
	}
	// A final answer instead of 100: the body may come or not, so nothing after
	// it can be trusted (B073).
	f = newFixture(ServerOptions{})
	f.t.Feed([]byte(request))
	f.a.Last().Sender.SendHead(mt.Response(417), true)
	if got := f.t.TakeString(); !strings.Contains(got, "connection: close") || !f.t.Ended() {
		t.Errorf("got %q, ended %v", got, f.t.Ended())
	}
}

func TestServer_earlyAnswerDrainsASmallBodyAndClosesOnALargeOne(t *testing.T) {
	f := newFixture(ServerOptions{})
	f.t.Feed([]byte("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab"))
	f.a.Last().Sender.SendHead(mt.Response(403), true)
	f.t.Feed([]byte("cdGET /next HTTP/1.1\r\nHost: a\r\n\r\n"))
	if len(f.a.Exchanges) != 2 || f.a.Last().Log[0] != "head GET http://a/next end" {
		t.Errorf("after draining: %s", f.logs())
	}
	f = newFixture(ServerOptions{})
	f.t.Feed([]byte("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999\r\n\r\nab"))
	f.a.Last().Sender.SendHead(mt.Response(403), true)
	if got := f.t.TakeString(); !strings.Contains(got, "connection: close") || !f.t.Ended() {
		t.Errorf("got %q, ended %v", got, f.t.Ended())
	}
	f = newFixture(ServerOptions{})
	f.t.Feed([]byte(chunked("4\r\nabcd\r\n")))
	f.a.Last().Sender.SendHead(mt.Response(403), true)
	f.t.Feed([]byte(strings.Repeat("4\r\nabcd\r\n", 20_000)))
	f.t.Take()
	if !f.t.Ended() {
		t.Error("draining has no end")
	}
}

func TestServer_upgradeHoldsEarlyDataUntilAccepted(t *testing.T) {
	request := "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nearly"
	f := newFixture(ServerOptions{AllowUpgrade: true})
	f.t.Feed([]byte(request))
	x := f.a.Last()
	if len(x.Body) != 0 || !f.t.Paused() {
		t.Fatalf("early data went through: %q", x.Body)
	}
	x.Sender.SendHead(mt.Response(101, "upgrade", "websocket"), false)
	if string(x.Body) != "early" {
		t.Errorf("after 101 the request path has %q", x.Body)
	}
	x.Sender.SendData([]byte("frames"), false)
	want := "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nframes"
	if got := f.t.TakeString(); got != want {
		t.Errorf("got %q", got)
	}
	f.t.FeedEOF()
	if !x.Ended || f.t.Ended() {
		t.Error("half-close of a tunnel is not passed on as such")
	}
	x.Sender.SendData(nil, true)
	f.t.Take()
	if !f.t.Ended() || x.WasReset {
		t.Errorf("tunnel did not end in order: %v", x.Log)
	}

	f = newFixture(ServerOptions{AllowUpgrade: true})
	f.t.Feed([]byte(request))
	f.a.Last().Sender.SendHead(mt.Response(200), true)
	f.t.Take()
	if len(f.a.Exchanges) != 1 || !f.t.Ended() {
		t.Error("data behind a refused upgrade was taken for a request (B012)")
	}
}

func TestServer_refusesToWriteLineBreaks(t *testing.T) {
	f := newFixture(ServerOptions{})
	f.t.Feed([]byte(get()))
	f.a.Last().Sender.SendHead(mt.Response(200, "x", "a\r\nset-cookie: b"), true)
	if got := f.t.TakeString(); got != "" || !f.t.Aborted {
		t.Errorf("wrote %q (B057)", got)
	}
}

func TestServer_trailersOnlyWhereTheyAreWelcome(t *testing.T) {
	for te, want := range map[string]string{
		"TE: trailers": "1\r\na\r\n0\r\ngrpc-status: 0\r\n\r\n",
		"X: y":         "1\r\na\r\n0\r\n\r\n",
	} {
		f := newFixture(ServerOptions{})
		f.t.Feed([]byte(get(te)))
		s := f.a.Last().Sender
		s.SendHead(mt.Response(200), false)
		s.SendData([]byte("a"), false)
		s.SendTrailers(mt.Trailers("grpc-status", "0"))
		if _, got, _ := strings.Cut(f.t.TakeString(), "\r\n\r\n"); got != want {
			t.Errorf("%s: %q", te, got)
		}
	}
}

func TestServer_backPressure(t *testing.T) {
	f := newFixture(ServerOptions{})
	f.t.High, f.t.Low = 10, 5
	f.a.Prepare = func(r *mt.Receiver) {
		r.HeadHook = func(*message.Head, bool) { r.Sender.Pause(true) }
	}
	f.t.Feed([]byte("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nabcd"))
	x := f.a.Last()
	if len(x.Body) != 0 {
		t.Fatal("data delivered while paused")
	}
	x.Sender.Pause(false)
	if string(x.Body) != "abcd" || !x.Ended {
		t.Fatalf("resumed: %v", x.Log)
	}
	x.Sender.SendHead(mt.Response(200), false)
	x.Sender.SendData([]byte("0123456789"), false)
	if !x.Sender.OverHigh() {
		t.Error("not over the high watermark")
	}
	f.t.Take()
	if x.Drained != 1 || x.Sender.OverHigh() {
		t.Errorf("drained %d times", x.Drained)
	}
}

// clock is a Timers that the test moves.
type clock struct {
	t *loop.Timer
	d time.Duration
}

func (c *clock) Arm(t *loop.Timer, d time.Duration) { c.t, c.d = t, d }
func (c *clock) Disarm(*loop.Timer)                 { c.t, c.d = nil, 0 }

func TestServer_boundsTheWaitForARequest(t *testing.T) {
	c := &clock{}
	o := ServerOptions{Timers: c, HeadTimeout: 5 * time.Second, IdleTimeout: time.Hour}
	f := newFixture(o)
	if c.d != 5*time.Second {
		t.Errorf("a new connection may be silent for %v", c.d)
	}
	f.t.Feed([]byte("GET / HT"))
	c.t.F()
	if got := f.t.TakeString(); !strings.HasPrefix(got, "HTTP/1.1 408 Request Timeout\r\n") || !f.t.Ended() {
		t.Errorf("half a head: %q", got)
	}
	f = newFixture(o)
	c.t.F()
	if got := f.t.TakeString(); got != "" || !f.t.Ended() {
		t.Errorf("silence: %q, ended %v", got, f.t.Ended())
	}
	f = newFixture(o)
	f.answer(mt.Response(204), "")
	f.t.Feed([]byte(get()))
	if c.d != time.Hour {
		t.Errorf("between requests the client may be silent for %v", c.d)
	}
}

func TestServer_pauseEndsWithItsExchange(t *testing.T) {
	f := newFixture(ServerOptions{})
	f.t.Feed([]byte(get()))
	s := f.a.Last().Sender
	s.Pause(true)
	s.SendHead(mt.Response(204), true)
	f.t.Feed([]byte(get()))
	if len(f.a.Exchanges) != 2 {
		t.Error("the connection stayed paused")
	}
}

func TestServer_drainAndMaxRequestsEndTheConnectionPolitely(t *testing.T) {
	f := newFixture(ServerOptions{MaxRequests: 2})
	f.answer(mt.Response(204), "")
	f.t.Feed([]byte(get()))
	f.t.Feed([]byte(get()))
	if got := f.t.TakeString(); strings.Count(got, "connection: close") != 1 || !f.t.Ended() {
		t.Errorf("got %q", got)
	}
	f = newFixture(ServerOptions{})
	f.t.Feed([]byte(get()))
	f.s.Drain()
	f.a.Last().Sender.SendHead(mt.Response(204), true)
	if got := f.t.TakeString(); !strings.Contains(got, "connection: close") || !f.t.Ended() {
		t.Errorf("got %q", got)
	}
	f = newFixture(ServerOptions{})
	f.s.Drain()
	f.t.Settle()
	if !f.t.Ended() {
		t.Error("an idle connection outlived Drain")
	}
}

func TestServer_lostConnectionResetsTheExchangeOnce(t *testing.T) {
	f := newFixture(ServerOptions{})
	f.t.Feed([]byte(get()))
	f.t.FeedError(mt.ErrReset)
	x := f.a.Last()
	if !x.WasReset || x.Code != message.ResetTermination || !f.a.Closed {
		t.Errorf("saw %v, closed %v", x.Log, f.a.Closed)
	}
	x.Sender.SendHead(mt.Response(200), true) // must be ignored
}

// A connection that is lost at any byte ends its exchange exactly once, and
// nothing is delivered afterwards (B078).
func TestServer_lossAtEveryByte(t *testing.T) {
	in := "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc" + chunked("3\r\nabc\r\n0\r\nt: v\r\n\r\n") + get()
	for n := range len(in) + 1 {
		for _, lose := range []func(*mt.Transport){
			func(tr *mt.Transport) { tr.FeedError(mt.ErrReset) },
			func(tr *mt.Transport) { tr.FeedEOF(); tr.FeedError(mt.ErrReset) },
		} {
			f := newFixture(ServerOptions{})
			f.a.Prepare = func(r *mt.Receiver) {
				r.HeadHook = func(*message.Head, bool) { r.Sender.SendHead(mt.Response(200), false) }
				r.EndHook = func() {
					if len(f.a.Exchanges) < 3 {
						r.Sender.SendData([]byte("x"), true)
					}
				}
			}
			f.t.Feed([]byte(in[:n]))
			lose(f.t)
			if !f.a.Closed {
				t.Fatalf("%d bytes: the acceptor does not know", n)
			}
			for i, x := range f.a.Exchanges {
				if log := strings.Join(x.Log, "; "); strings.Contains(log, "AFTER") || strings.Contains(log, "SECOND") ||
					x.Ended == x.WasReset && i < 2 || i == 2 && !x.WasReset {
					t.Fatalf("%d bytes: exchange %d saw %s", n, i, log)
				}
			}
		}
	}
}
