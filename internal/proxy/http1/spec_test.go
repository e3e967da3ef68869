package http1

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"lateen.dev/lateen/internal/proxy/message"
	mt "lateen.dev/lateen/internal/proxy/message/messagetest"
	"lateen.dev/lateen/internal/proxy/syntax"
)

// This file is the plain version of the scanner: regular expressions and
// strings, no cleverness. The fuzz tests hold the fast one against it, and both
// against net/http.

var (
	specToken = regexp.MustCompile("^[!#$%&'*+\\-.^_`|~0-9A-Za-z]+$")
	specLine  = regexp.MustCompile(`^([^ ]+) (.+) HTTP/1\.([01])$`)
	// Not (?i): to Unicode the Kelvin sign is a k too.
	specChunked = regexp.MustCompile("^[Cc][Hh][Uu][Nn][Kk][Ee][Dd]$")
	specBad     = regexp.MustCompile("[\x00-\x08\x0a-\x1f\x7f]")
	specAuth    = regexp.MustCompile(`^(\[[0-9A-Fa-f:.]{2,}\]|[A-Za-z0-9\-._~]+)(?::([0-9]{1,18}))?$`)
	specAbs     = regexp.MustCompile(`^([^:]*(?:[^/:][^:]*)?)://([^/?]*)(.*)$`)
)

func specAuthority(s string) (string, bool) {
	m := specAuth.FindStringSubmatch(s)
	if m == nil {
		return "", false
	}
	host := strings.ToLower(m[1])
	if host[0] != '[' {
		host = strings.TrimSuffix(host, ".")
		if host == "" || strings.HasSuffix(host, ".") {
			return "", false
		}
	}
	if m[2] == "" {
		return host, true
	}
	if strings.TrimLeft(m[2], "0") != "" && (len(strings.TrimLeft(m[2], "0")) > 5 || len(strings.TrimLeft(m[2], "0")) == 5 && strings.TrimLeft(m[2], "0") > "65535") {
		return "", false
	}
	return host + ":" + m[2], true
}

type specField struct{ name, value string }

func specFields(lines []string, lim Limits) ([]specField, bool) {
	var fs []specField
	for _, l := range lines {
		name, value, ok := strings.Cut(l, ":")
		if !ok || !specToken.MatchString(name) || len(name) > syntax.MaxName {
			return nil, false
		}
		value = strings.Trim(value, " \t")
		if specBad.MatchString(value) {
			return nil, false
		}
		fs = append(fs, specField{strings.ToLower(name), value})
	}
	return fs, len(fs) <= lim.Headers
}

func values(fs []specField, name string) []string {
	var vs []string
	for _, f := range fs {
		if f.name == name {
			vs = append(vs, f.value)
		}
	}
	return vs
}

// specRequest parses a head that ends with its empty line. The result is the
// canonical form that the fast scanner's Head prints as.
func specRequest(head string, lim Limits) (canonical string, ok bool) {
	lines := strings.Split(head, "\n")
	lines = lines[:len(lines)-2] // the empty line and what follows the last LF
	for i, l := range lines {
		if !strings.HasSuffix(l, "\r") {
			return "", false
		}
		lines[i] = strings.TrimSuffix(l, "\r")
	}
	m := specLine.FindStringSubmatch(lines[0])
	if m == nil || !specToken.MatchString(m[1]) || len(m[2]) > lim.PathBytes {
		return "", false
	}
	fs, ok := specFields(lines[1:], lim)
	if !ok {
		return "", false
	}
	method, target, old := m[1], m[2], m[3] == "0"
	if strings.ContainsFunc(target, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == '#' }) {
		return "", false
	}
	hosts := values(fs, "host")
	if len(hosts) > 1 || len(hosts) == 0 && !old {
		return "", false
	}
	auth := ""
	if len(hosts) == 1 {
		if auth, ok = specAuthority(hosts[0]); !ok {
			return "", false
		}
	}
	scheme, path := "http", target
	switch {
	case method == "CONNECT":
		a, ok := specAuthority(target)
		if !ok || !regexp.MustCompile(`:[0-9]+$`).MatchString(a) || strings.HasSuffix(a, "]") {
			return "", false
		}
		auth, path = a, ""
	case strings.HasPrefix(target, "/"):
	case target == "*":
		if method != "OPTIONS" {
			return "", false
		}
	default:
		m := specAbs.FindStringSubmatch(target)
		if m == nil {
			return "", false
		}
		scheme = strings.ToLower(m[1])
		a, ok := specAuthority(m[2])
		if !ok || scheme != "http" && scheme != "https" {
			return "", false
		}
		auth, path = a, m[3]
		switch {
		case path == "" && method == "OPTIONS":
			path = "*"
		case !strings.HasPrefix(path, "/"):
			path = "/" + path
		}
	}
	te, cl := values(fs, "transfer-encoding"), values(fs, "content-length")
	switch {
	case len(te) > 1, len(cl) > 1, len(te) > 0 && (len(cl) > 0 || old),
		len(te) == 1 && !specChunked.MatchString(te[0]),
		len(cl) == 1 && !regexp.MustCompile(`^[0-9]{1,18}$`).MatchString(cl[0]),
		method == "CONNECT" && len(te)+len(cl) > 0:
		return "", false
	}
	fs, ok = specHopByHop(fs)
	if !ok {
		return "", false
	}
	out := fmt.Sprintf("%s %s://%s%s", method, scheme, auth, path)
	for _, f := range fs {
		out += " " + f.name + "=" + f.value
	}
	return out, true
}

// elements splits a comma-separated list, without empty elements.
func elements(vs []string) []string {
	var es []string
	for _, v := range vs {
		for e := range strings.SplitSeq(v, ",") {
			if e = strings.Trim(e, " \t"); e != "" {
				es = append(es, strings.ToLower(e))
			}
		}
	}
	return es
}

func specHopByHop(fs []specField) ([]specField, bool) {
	drop := []string{"connection", "proxy-connection", "keep-alive", "transfer-encoding", "te", "host", "http2-settings"}
	upgrade := false
	for _, e := range elements(values(fs, "connection")) {
		switch e {
		case "host", "content-length", "transfer-encoding":
			return nil, false
		case "close", "keep-alive", "te":
		case "upgrade":
			upgrade = true
		default:
			if e[0] == ':' {
				return nil, false
			}
			drop = append(drop, e)
		}
	}
	if !upgrade {
		drop = append(drop, "upgrade")
	}
	trailers := false
	for _, e := range elements(values(fs, "te")) {
		e, _, _ = strings.Cut(e, ";")
		trailers = trailers || strings.TrimRight(e, " \t") == "trailers"
	}
	out := slices.DeleteFunc(slices.Clone(fs), func(f specField) bool { return slices.Contains(drop, f.name) })
	if trailers {
		out = append(out, specField{"te", "trailers"})
	}
	return out, true
}

func requestSeeds(f *testing.F) {
	for _, c := range slices.Concat(accepted, moreAccepted) {
		f.Add([]byte(c.in))
	}
	for _, c := range slices.Concat(refused, moreRefused) {
		if len(c.in) < 4000 {
			f.Add([]byte(c.in))
		}
	}
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade, x\r\nUpgrade: y\r\nX: 1\r\nTE: gzip , trailers ;q=1\r\nconnection:,,\r\n\r\n"))
}

// The fast scanner and the plain one accept the same heads and read the same
// out of them.
func FuzzRequestHead(f *testing.F) {
	requestSeeds(f)
	f.Fuzz(func(t *testing.T, p []byte) {
		var lim Limits
		lim.setDefaults()
		end, _, err := headEnd(p, 0)
		plain := strings.Index("\n"+string(p), "\n\r\n")
		if err == nil && end == 0 {
			return
		}
		if err != nil {
			lf := bytes.IndexByte(p, '\n')
			for lf > 0 && p[lf-1] == '\r' && (plain < 0 || lf < plain) {
				next := bytes.IndexByte(p[lf+1:], '\n')
				if next < 0 {
					t.Fatal("no bare line feed, but refused as one")
				}
				lf += 1 + next
			}
			return
		}
		if end != plain+2 {
			t.Fatalf("head ends at %d, want %d", end, plain+2)
		}
		if end == 2 {
			return // the empty line in front is the server's business
		}
		var h message.Head
		var m meta
		got := ""
		perr := parseRequest(&h, p[:end], &lim, &m, false)
		if perr == nil {
			got = mt.HeadString(&h)
		}
		want, ok := specRequest(string(p[:end]), lim)
		if ok != (perr == nil) || got != want {
			t.Fatalf("%q\nfast: %q, %v\nplain: %q, %v", p[:end], got, perr, want, ok)
		}
	})
}

// What we accept, net/http accepts too and understands in the same way; body
// bytes included, wherever the input was cut.
func FuzzServerAgainstNetHTTP(f *testing.F) {
	requestSeeds(f)
	f.Fuzz(func(t *testing.T, p []byte) {
		fx := newFixture(ServerOptions{})
		fx.t.Feed(p)
		again := newFixture(ServerOptions{})
		for i := range p {
			again.t.Feed(p[i : i+1])
		}
		if a, b := fx.logs(), again.logs(); a != b && !strings.Contains(b, "reset") {
			t.Fatalf("whole: %s\nbyte by byte: %s", a, b)
		}
		if len(fx.a.Exchanges) == 0 || !fx.a.Exchanges[0].Ended {
			return
		}
		x := fx.a.Exchanges[0]
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(bytes.TrimPrefix(p, []byte("\r\n")))))
		if err != nil {
			// net/url is stricter about what a URL may contain.
			if !strings.Contains(err.Error(), "parse ") && !strings.Contains(err.Error(), "invalid URI") &&
				!strings.Contains(err.Error(), "bad trailer key") && !bytes.HasPrefix(p, []byte("\r\n\r\n")) {
				t.Fatalf("accepted %q, net/http says %v", x.Log[0], err)
			}
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil || !bytes.Equal(body, x.Body) {
			t.Fatalf("body %q, net/http has %q, %v", x.Body, body, err)
		}
		host, ok := specAuthority(r.Host)
		if r.Method != string(x.Head.Method()) || r.Host != "" && (!ok || host != string(x.Head.Authority())) {
			t.Fatalf("%s: net/http has method %s, host %q", x.Log[0], r.Method, r.Host)
		}
		for i := range x.Head.Len() {
			_, name, value, ok := x.Head.Field(i)
			if key := http.CanonicalHeaderKey(string(name)); ok && string(name) != "te" && !slices.Contains(r.Header[key], string(value)) && key != "Trailer" {
				t.Fatalf("%s: net/http has %s = %q", x.Log[0], key, r.Header[key])
			}
		}
	})
}

// Whatever a server sends, an answer that we call complete is one that net/http
// reads to the same end, and nothing panics.
func FuzzClientAgainstNetHTTP(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"), false)
	f.Add([]byte("HTTP/1.1 100 C\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\nhi\r\n0\r\na: b\r\n\r\n"), false)
	f.Add([]byte("HTTP/1.0 204\r\nContent-Length: 2\r\n\r\n"), true)
	f.Add([]byte("HTTP/1.1 200 OK\r\n\r\nuntil the end"), false)
	f.Fuzz(func(t *testing.T, p []byte, head bool) {
		method := "GET"
		if head {
			method = "HEAD"
		}
		fx := newClientFixture()
		x := fx.call(method)
		fx.t.Feed(p)
		fx.t.FeedEOF()
		if !x.Ended {
			return
		}
		br := bufio.NewReader(bytes.NewReader(p))
		req := &http.Request{Method: method}
		r, err := http.ReadResponse(br, req)
		for err == nil && r.StatusCode < 200 {
			r, err = http.ReadResponse(br, req)
		}
		if err != nil {
			if strings.Contains(err.Error(), "bad trailer key") {
				return
			}
			t.Fatalf("complete: %v, net/http says %v", x.Log, err)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil || !bytes.Equal(body, x.Body) || r.StatusCode != x.Head.Status() {
			t.Fatalf("%v with %q, net/http has %d with %q, %v", x.Log, x.Body, r.StatusCode, body, err)
		}
	})
}
