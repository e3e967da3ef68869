package syntax

import (
	"bytes"
	"testing"

	"lateen.dev/lateen/internal/proxy/message"
)

// CleanValue against a byte loop.
func FuzzCleanValue(f *testing.F) {
	f.Add([]byte("gzip, deflate\tbr"))
	f.Add([]byte("12345678\x7f\x80\xff\x1f"))
	f.Fuzz(func(t *testing.T, p []byte) {
		want := true
		for _, c := range p {
			want = want && (c >= ' ' && c != 0x7f || c == '\t')
		}
		if CleanValue(p) != want {
			t.Fatalf("%q: %v", p, !want)
		}
	})
}

func TestAuthority_oneFormPerHost(t *testing.T) {
	for in, want := range map[string]string{
		"Example.COM": "example.com", "a.": "a", "a.:80": "a:80", "[FE80::1]:8080": "[fe80::1]:8080", "10.0.0.1": "10.0.0.1",
	} {
		v := []byte(in)
		n, p := Authority(v)
		if p != OK || string(v[:n]) != want {
			t.Errorf("%q: %q, problem %d; want %q", in, v[:n], p, want)
		}
	}
	for in, want := range map[string]Problem{
		"": BadHost, "a..": BadHost, ".": BadHost, "a b": BadHost, "a/b": BadHost, "u@h": Userinfo, "h:1@b": Userinfo,
		"h:": BadHost, "h:65536": BadHost, "h:+1": BadHost, "[::1": BadHost, "[]": BadHost, "[::1]x": BadHost, "h\r\n": BadHost,
	} {
		if _, p := Authority([]byte(in)); p != want {
			t.Errorf("%q: problem %d, want %d", in, p, want)
		}
	}
}

func TestLowerToken(t *testing.T) {
	for in, want := range map[string]bool{
		"x-a": true, "x_a": true, "": false, "X-a": false, "a b": false, ":path": false, "a:": false, "\x80": false, "a\x00": false,
		string(bytes.Repeat([]byte("a"), MaxName)): true, string(bytes.Repeat([]byte("a"), MaxName+1)): false,
	} {
		if LowerToken([]byte(in)) != want {
			t.Errorf("%q: %v", in, !want)
		}
		if upper := bytes.ToUpper([]byte(in)); Token(upper) != (want || in == "X-a") {
			t.Errorf("%q is a token: %v", upper, !want)
		}
	}
}

func TestNotInTrailers(t *testing.T) {
	if !NotInTrailers(message.ContentLength) || NotInTrailers(message.GRPCStatus) || NotInTrailers(message.Other) {
		t.Error("framing must not come late, status may")
	}
}

func BenchmarkCleanValue(b *testing.B) {
	v := bytes.Repeat([]byte("value of "), 7)
	for b.Loop() {
		if !CleanValue(v) {
			b.Fatal("unclean")
		}
	}
}
