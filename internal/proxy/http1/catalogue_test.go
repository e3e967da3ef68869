package http1

import (
	"slices"
	"strings"
	"testing"

	mt "lateen.dev/lateen/internal/proxy/message/messagetest"
)

// More ways in which HTTP/1 messages have been read differently by two ends of
// a chain: the spellings around each row of the tables in server_test.go and
// client_test.go. B numbers name what was exploited.

func post(lines ...string) string {
	return "POST / HTTP/1.1\r\nHost: a\r\n" + strings.Join(lines, "\r\n") + "\r\n\r\n"
}

func hosted(host string) string { return "GET / HTTP/1.1\r\nHost: " + host + "\r\n\r\n" }

// moreAccepted have one meaning only; want is what the request path sees.
var moreAccepted = []struct{ name, in, want string }{
	{"B003 white space around chunked", chunkedAs(" \tchunked\t "), "head POST http://a/; data end"},
	{"B003 upper case", chunkedAs("CHUNKED"), "head POST http://a/; data end"},
	{"B005 a few extensions", chunked("1;a=b;c\r\nx\r\n0;last\r\n\r\n"), "head POST http://a/; data end"},
	{"B006 h2c upgrade with a body", post("Connection: upgrade, http2-settings", "Upgrade: h2c", "HTTP2-Settings: AAM", "Content-Length: 1") + "x", "head POST http://a/ content-length=1; data end"},
	{"B007 a name of 256 bytes", get(strings.Repeat("x", 256) + ": 1"), "head GET http://a/ " + strings.Repeat("x", 256) + "=1 end"},
	{"B009 leading zeros", post("Content-Length: 0001") + "x", "head POST http://a/ content-length=0001; data end"},
	{"B010 an encoded #", "GET /%23 HTTP/1.1\r\nHost: a\r\n\r\n", "head GET http://a/%23 end"},
	{"B018 tabs around a value", get("x: \t v\t"), "head GET http://a/ x=v end"},
	{"B022 scheme in mixed case", "GET HTTPs://b/ HTTP/1.1\r\nHost: a\r\n\r\n", "head GET https://b/ end"},
	{"B023 a body with HEAD", "HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", "head HEAD http://a/ content-length=1; data end"},
	{"B023 a body with GET", "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", "head GET http://a/ content-length=1; data end"},
	{"B023 two empty lines in front", "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "head GET http://a/ end"},
	{"B023 an unknown method", "BREW / HTTP/1.1\r\nHost: a\r\n\r\n", "head BREW http://a/ end"},
	{"B023 chunk size of 15 digits", chunked("000000000000001\r\nx\r\n0\r\n\r\n"), "head POST http://a/; data end"},
	{"B023 chunk sizes in both cases", chunked("A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n"), "head POST http://a/; data end"},
	{"B023 last chunk of many zeros", chunked("1\r\nx\r\n00000\r\n\r\n"), "head POST http://a/; data end"},
	{"B030 two slashes are a path", "GET //host/secret HTTP/1.1\r\nHost: a\r\n\r\n", "head GET http://a//host/secret end"},
	{"B032 host in capitals", hosted("Secret.COM"), "head GET http://secret.com/ end"},
	{"B052 Connection names what we add", get("Connection: X-Forwarded-For", "X-Forwarded-For: 6.6.6.6"), "head GET http://a/ end"},
	{"B052 Connection names itself and nothing", get("Connection: connection, , "), "head GET http://a/ end"},
	{"B052 Proxy-Connection does not count", get("Proxy-Connection: X-A", "X-A: 1"), "head GET http://a/ x-a=1 end"},
	{"B065 exactly 100 fields", get(slices.Repeat([]string{"a:"}, 99)...), "head GET http://a/" + strings.Repeat(" a=", 99) + " end"},
	{"B066 a byte per chunk", chunked(strings.Repeat("1\r\nx\r\n", 3) + "0\r\n\r\n"), "head POST http://a/; data end"},
	{"B070 cookies are opaque", get("Cookie: " + strings.Repeat("a=;", 500)), "head GET http://a/ cookie=" + strings.Repeat("a=;", 500) + " end"},
}

func chunkedAs(te string) string {
	return post("Transfer-Encoding:"+te) + "1\r\nx\r\n0\r\n\r\n"
}

// moreRefused have several readings or none.
var moreRefused = []struct {
	name, in string
	want     *Error
}{
	{"B001 TE before CL", post("Transfer-Encoding: chunked", "Content-Length: 3"), errLengthAndTE},
	{"B001 CL 0 and TE", post("Content-Length: 0", "Transfer-Encoding: chunked") + "0\r\n\r\nGET /smuggled HTTP/1.1\r\n", errLengthAndTE},
	{"B001 both in HTTP/1.0", "POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", errTE10},
	{"B001 CL differs", post("Content-Length: 3", "Content-Length: 4"), errLengthTwice},
	{"B001 CL in other case twice", post("content-length: 3", "CONTENT-LENGTH: 3"), errLengthTwice},
	{"B001 TE with a space in its name", post("Transfer Encoding: chunked"), errName},
	{"B002 tab before colon", post("Content-Length\t: 5"), errName},
	{"B002 space before the colon of TE", post("Transfer-Encoding : chunked"), errName},
	{"B002 space before the colon of Host", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", errName},
	{"B002 vertical tab before colon", post("Transfer-Encoding\x0b: chunked"), errName},
	{"B003 identity", post("Transfer-Encoding: identity"), errTE},
	{"B003 chunked twice in a list", post("Transfer-Encoding: chunked, chunked"), errTE},
	{"B003 trailing comma", post("Transfer-Encoding: chunked,"), errTE},
	{"B003 leading comma", post("Transfer-Encoding: ,chunked"), errTE},
	{"B003 NUL behind it", post("Transfer-Encoding: chunked\x00"), errControl},
	{"B003 cow", post("Transfer-Encoding: cow"), errTE},
	{"B003 cow, then chunked on a line of its own", post("Transfer-Encoding: cow", "Transfer-Encoding: chunked"), errTE},
	{"B003 a letter that folds to k elsewhere", post("Transfer-Encoding: chun\xe2\x84\xaaed"), errTE},
	{"B003 form feed in front", post("Transfer-Encoding: \x0cchunked"), errControl},
	{"B003 folded", post("Transfer-Encoding:\r\n chunked"), errTE},
	{"B004 bare LF behind the last chunk", chunked("0\n\r\n"), errBareLF},
	{"B004 bare LF ends the trailers", chunked("0\r\n\n"), errBareLF},
	{"B004 CR CR LF", "GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", errVersion},
	{"B004 CR CR LF in a field", get("a: b\r"), errControl},
	{"B004 LF LF", "GET / HTTP/1.1\r\nHost: a\n\n", errBareLF},
	{"B005 an extension with a control", chunked("1;\x01\r\nx\r\n"), errChunkSize},
	{"B005 an extension with a CR", chunked("1;a\rb\r\nx\r\n"), errChunkSize},
	{"B006 the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", errVersion},
	{"B007 a name of 64 KiB", get(strings.Repeat("x", 64<<10) + ": 1"), errHeadLong},
	{"B007 a second CL behind a long name", post(strings.Repeat("x", 300)+": 1", "Content-Length: 5", "Content-Length: 0"), errNameLong},
	{"B008 an empty name between fields", get("a: b", ": c", "d: e"), errNameEmpty},
	{"B008 a line without colon", get("abc"), errName},
	{"B009 an empty CL, then a good one", post("Content-Length:", "Content-Length: 5"), errLength},
	{"B009 decimal point", post("Content-Length: 5.0"), errLength},
	{"B009 exponent", post("Content-Length: 5e0"), errLength},
	{"B009 other digits", post("Content-Length: \xd9\xa3"), errLength},
	{"B009 semicolon", post("Content-Length: 5;"), errLength},
	{"B009 equal values in a list", post("Content-Length: 5, 5"), errLength},
	{"B009 20 digits", post("Content-Length: 00000000000000000005"), errLength},
	{"B009 underscore", post("Content-Length: 1_0"), errLength},
	{"B009 CL in HTTP/1.0", "POST / HTTP/1.0\r\nHost: a\r\nContent-Length: +1\r\n\r\n", errLength},
	{"B010 # behind a query", "GET /a?b#c HTTP/1.1\r\nHost: a\r\n\r\n", errFragment},
	{"B010 # in absolute form", "GET http://a/#x HTTP/1.1\r\nHost: a\r\n\r\n", errFragment},
	{"B010 # in the authority", "GET http://a#@b/ HTTP/1.1\r\nHost: a\r\n\r\n", errFragment},
	{"B019 an empty Host in HTTP/1.0", "GET / HTTP/1.0\r\nHost:\r\n\r\n", errHost},
	{"B019 absolute form without Host", "GET http://a/ HTTP/1.1\r\n\r\n", errHostMissing},
	{"B019 absolute form with an empty authority", "GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", errHost},
	{"B020 tab in Host", hosted("a\tb"), errHost},
	{"B020 comma in Host", hosted("a,b"), errHost},
	{"B020 per cent in Host", hosted("a%2eb"), errHost},
	{"B020 backslash in Host", hosted(`a\b`), errHost},
	{"B020 question mark in Host", hosted("a?b"), errHost},
	{"B020 quote in Host", hosted(`a"b`), errHost},
	{"B020 high byte in Host", hosted("\xc3\xa4"), errHost},
	{"B020 CR in Host", hosted("a\rb"), errControl},
	{"B020 open bracket", hosted("[::1"), errHost},
	{"B020 text behind a bracket", hosted("[::1]x"), errHost},
	{"B020 a zone in an IPv6 host", hosted("[fe80::1%25eth0]"), errHost},
	{"B020 two ports", hosted("a:80:81"), errHost},
	{"B020 signed port", hosted("a:+80"), errHost},
	{"B020 only a port", hosted(":80"), errHost},
	{"B020 only a dot", hosted("."), errHost},
	{"B020 user in front of a port", hosted("a:80@b"), errUserinfo},
	{"B022 a scheme of letters", "GET gopher://a/ HTTP/1.1\r\nHost: a\r\n\r\n", errScheme},
	{"B022 no scheme", "GET ://a/ HTTP/1.1\r\nHost: a\r\n\r\n", errScheme},
	{"B023 NUL in the version", "GET / HTTP/1.1\x00\r\nHost: a\r\n\r\n", errVersion},
	{"B023 NUL in the target", "GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", errTarget},
	{"B023 HTTP/01.1", "GET / HTTP/01.1\r\nHost: a\r\n\r\n", errVersion},
	{"B023 HTTP/1.1x", "GET / HTTP/1.1x\r\nHost: a\r\n\r\n", errVersion},
	{"B023 space in the version", "GET / HTTP/ 1.1\r\nHost: a\r\n\r\n", errVersion},
	{"B023 HTTP/1,1", "GET / HTTP/1,1\r\nHost: a\r\n\r\n", errVersion},
	{"B023 another protocol", "GET / RTSP/1.0\r\nHost: a\r\n\r\n", errVersion},
	{"B023 leading space", " GET / HTTP/1.1\r\nHost: a\r\n\r\n", errFirstByte},
	{"B023 @ in the method", "G@T / HTTP/1.1\r\nHost: a\r\n\r\n", errRequestLine},
	{"B023 no target", "GET HTTP/1.1\r\nHost: a\r\n\r\n", errRequestLine},
	{"B023 a space in the target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", errTarget},
	{"B023 a relative target", "GET a HTTP/1.1\r\nHost: a\r\n\r\n", errTarget},
	{"B023 DEL in the target", "GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n", errTarget},
	{"B023 DEL in a name", get("a\x7f: b"), errName},
	{"B023 high byte in a name", get("\xc3\xa9: b"), errName},
	{"B023 slash in a name", get("a/b: c"), errName},
	{"B023 fold with a tab", get("a: b", "\tc: d"), errFold},
	{"B023 a line of blanks", get("a: b", " "), errFold},
	{"B023 bell in a value", get("a: \x07"), errControl},
	{"B023 chunk size g", chunked("g\r\n"), errChunkSize},
	{"B023 chunk size 1_0", chunked("1_0\r\n"), errChunkSize},
	{"B023 chunk size +1", chunked("+1\r\nx\r\n"), errChunkSize},
	{"B023 chunk size FFFFFFFFFFFFFFFF", chunked("FFFFFFFFFFFFFFFF\r\n"), errChunkSize},
	{"B023 chunk size with a tab", chunked("1\t\r\nx\r\n"), errChunkSize},
	{"B023 chunk size with a quote", chunked("\"1\"\r\nx\r\n"), errChunkSize},
	{"B023 chunk size without digits, with extension", chunked(";a\r\n"), errChunkSize},
	{"B023 CR CR LF behind the size", chunked("1\r\r\nx\r\n"), errChunkSize},
	{"B023 more data than said", chunked("1\r\nxy\r\n0\r\n\r\n"), errChunkEnd},
	{"B023 less data than said", chunked("3\r\nx\r\n0\r\n\r\n"), errChunkEnd},
	{"B023 CR without LF behind data", chunked("1\r\nx\rz"), errChunkEnd},
	{"B023 trailers with Connection", chunked("0\r\nConnection: close\r\n\r\n"), errTrailer},
	{"B023 trailers with Authorization", chunked("0\r\nAuthorization: x\r\n\r\n"), errTrailer},
	{"B023 trailers with X-Forwarded-For", chunked("0\r\nX-Forwarded-For: 1\r\n\r\n"), errTrailer},
	{"B023 a trailer with a bad name", chunked("0\r\na b: c\r\n\r\n"), errName},
	{"B023 a trailer with a control", chunked("0\r\na: \x01\r\n\r\n"), errControl},
	{"B023 CONNECT with a user", "CONNECT u@a:1 HTTP/1.1\r\nHost: a\r\n\r\n", errUserinfo},
	{"B023 CONNECT with a scheme", "CONNECT http://a:1 HTTP/1.1\r\nHost: a\r\n\r\n", errHost},
	{"B031 a path without its slash", "POST pkg.Service/Method HTTP/1.1\r\nHost: a\r\n\r\n", errTarget},
	{"B034 three trailing dots", hosted("a..."), errHost},
	{"B052 Connection names TE", get("Connection: transfer-encoding"), errConnectionList},
	{"B052 Connection names a pseudo header", get("Connection: :path"), errConnectionList},
	{"B065 a thousand tiny fields", get(slices.Repeat([]string{"a:"}, 1000)...), errHeaderCount},
	{"B068 one line without end", "GET / HTTP/1.1\r\nHost: a\r\nx: " + strings.Repeat("y", 70<<10), errHeadLong},
}

// moreRead and moreUnreadable are the client's side.
var moreRead = []struct {
	name, in, want string
	reusable       bool
}{
	{"B011 a 200 that names a protocol", answer("Upgrade: websocket", "Connection: upgrade", "Content-Length: 0"), "head 200 content-length=0 end", true},
	{"B014 more than was said", answer("Content-Length: 1") + "xy", "head 200 content-length=1; data end", false},
	{"B023 a body with 204", "HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\nhi", "head 204 content-length=2 end", false},
	{"B023 a body with 304", "HTTP/1.1 304 No\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "head 304 end", false},
	{"B052 Connection names a field of the response", answer("Connection: Set-Cookie", "Set-Cookie: a", "Content-Length: 0"), "head 200 content-length=0 end", true},
	{"an odd status", "HTTP/1.1 299 Odd\r\nContent-Length: 0\r\n\r\n", "head 299 content-length=0 end", true},
	{"high bytes in the reason", "HTTP/1.1 200 \xc3\xa4\r\nContent-Length: 0\r\n\r\n", "head 200 content-length=0 end", true},
}

var moreUnreadable = []struct {
	name, in string
	want     *Error
}{
	{"B001 TE before CL", answer("Transfer-Encoding: chunked", "Content-Length: 3"), errLengthAndTE},
	{"B002 tab before colon", answer("Content-Length\t: 3"), errName},
	{"B003 identity", answer("Transfer-Encoding: identity"), errTE},
	{"B003 two lines", answer("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), errTE},
	{"B004 bare LF in a field", answer("a: b\nc: d"), errBareLF},
	{"B004 bare LF behind a chunk size", answer("Transfer-Encoding: chunked") + "1\nx\r\n", errBareLF},
	{"B005 extensions without end", answer("Transfer-Encoding: chunked") + "1;" + strings.Repeat("x", 5000), errChunkExtension},
	{"B009 +5", answer("Content-Length: +5"), errLength},
	{"B009 5, 5", answer("Content-Length: 5, 5"), errLength},
	{"B009 empty", answer("Content-Length:"), errLength},
	{"B023 CR in a value", answer("a: b\rc"), errControl},
	{"B023 a fold on the first line", "HTTP/1.1 200 OK\r\n a: b\r\n\r\n", errFold},
	{"B023 a trailer with CL", answer("Transfer-Encoding: chunked") + "0\r\nContent-Length: 1\r\n\r\n", errTrailer},
	{"B023 chunk data is not over", answer("Transfer-Encoding: chunked") + "1\r\nxy\r\n", errChunkEnd},
	{"B023 status with a sign", "HTTP/1.1 +20 OK\r\n\r\n", errStatusLine},
	{"B023 lower case", "http/1.1 200 OK\r\n\r\n", errStatusLine},
	{"B023 two spaces", "HTTP/1.1  200 OK\r\n\r\n", errStatusLine},
	{"B023 NUL in the reason", "HTTP/1.1 200 O\x00K\r\n\r\n", errStatusLine},
}

func TestCatalogue_requests(t *testing.T) {
	for _, c := range moreAccepted {
		checkAccepted(t, c.name, c.in, c.want)
	}
	for _, c := range moreRefused {
		checkRefused(t, c.name, c.in, c.want)
	}
}

func TestCatalogue_responses(t *testing.T) {
	for _, c := range moreRead {
		checkRead(t, c.name, "GET", c.in, c.want, c.reusable)
	}
	for _, c := range moreUnreadable {
		checkUnreadable(t, c.name, c.in, c.want)
	}
}

// One bad request is answered once, whatever follows it on the connection, and
// a client that never reads cannot make us keep more (B067).
func TestCatalogue_oneAnswerToPipelinedNonsense(t *testing.T) {
	f := newFixture(ServerOptions{})
	for range 100 {
		f.t.Feed([]byte("GET / HTTP/9.9\r\n\r\n"))
	}
	if got := f.t.TakeString(); strings.Count(got, "HTTP/1.1 400") != 1 || !f.t.Ended() {
		t.Errorf("answered %q", got)
	}
}

// A connection that carried Expect and got another final status first is closed,
// on the client's side too (B073); a tunnel never returns to a pool (B013).
func TestCatalogue_usedUpConnections(t *testing.T) {
	f := newClientFixture()
	r := &mt.Receiver{}
	s := f.c.Open(r)
	s.SendHead(mt.Request("PUT", "up:80", "/p", "expect", "100-continue", "content-length", "3"), false)
	f.t.Feed([]byte("HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n"))
	if f.c.Capacity() != 0 {
		t.Error("a connection with half a request on it takes another")
	}
	f = newClientFixture()
	r = &mt.Receiver{}
	s = f.c.Open(r)
	s.SendHead(mt.Request("CONNECT", "up:80", ""), false)
	f.t.Feed([]byte("HTTP/1.1 200 OK\r\n\r\nraw"))
	if string(r.Body) != "raw" || f.c.Capacity() != 0 {
		t.Errorf("the tunnel carries %q, capacity %d", r.Body, f.c.Capacity())
	}
}

func TestCatalogue_isLarge(t *testing.T) {
	n := len(accepted) + len(refused) + len(read) + len(unreadable) +
		len(moreAccepted) + len(moreRefused) + len(moreRead) + len(moreUnreadable)
	t.Logf("%d messages with a golden answer", n)
	if n < 250 {
		t.Errorf("only %d messages are left", n)
	}
	var all []string
	for _, c := range slices.Concat(refused, moreRefused, unreadable, moreUnreadable) {
		all = append(all, c.name)
	}
	for _, c := range slices.Concat(accepted, moreAccepted) {
		all = append(all, c.name)
	}
	text := strings.Join(all, "\n")
	for _, row := range strings.Fields(`B001 B002 B003 B004 B005 B006 B007 B008 B009 B010 B018 B019 B020 B022 B023 B030 B031 B032
		B034 B052 B065 B066 B068 B070 B072 B081`) {
		if !strings.Contains(text, row) {
			t.Errorf("%s has no message", row)
		}
	}
}
