package record

import (
	"encoding/hex"
	"math/rand/v2"
	"strings"
	"testing"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

const (
	traceA = "4bf92f3577b34da6a3ce929d0e0e4736"
	spanA  = "00f067aa0ba902b7"
)

func testRand() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }

func tracing(random float64) *snapshot.Tracing {
	return &snapshot.Tracing{Client: 100, Random: random, Overall: 100}
}

func head(fields ...string) *message.Head {
	h := &message.Head{}
	h.SetMethod([]byte("GET"))
	h.SetScheme([]byte("http"))
	h.SetAuthority([]byte("user-service:8080"))
	h.SetPath([]byte("/users/7?full=1"))
	for i := 0; i < len(fields); i += 2 {
		h.AddNameString(fields[i], fields[i+1])
	}
	return h
}

func TestBegin_readsContexts(t *testing.T) {
	uuid := "x-request-id"
	for _, c := range []struct {
		name    string
		in      []string
		random  float64
		trace   string // "" = a new one
		parent  string
		sampled bool
		dropped string // header that must be gone
	}{
		{"w3c sampled", []string{"traceparent", "00-" + traceA + "-" + spanA + "-01"}, 0, traceA, spanA, true, ""},
		{"w3c unsampled beats 100 %", []string{"traceparent", "00-" + traceA + "-" + spanA + "-00"}, 100, traceA, spanA, false, ""},
		{"w3c unsampled beats force", []string{"traceparent", "00-" + traceA + "-" + spanA + "-00", "x-envoy-force-trace", "1"}, 100, traceA, spanA, false, ""},
		{"future version with more", []string{"traceparent", "cc-" + traceA + "-" + spanA + "-01-what"}, 0, traceA, spanA, true, ""},
		{"future version glued", []string{"traceparent", "cc-" + traceA + "-" + spanA + "-01what"}, 0, "", "", false, "traceparent"},
		{"version ff", []string{"traceparent", "ff-" + traceA + "-" + spanA + "-01"}, 0, "", "", false, "traceparent"},
		{"upper case", []string{"traceparent", "00-" + strings.ToUpper(traceA) + "-" + spanA + "-01", "tracestate", "a=b"}, 0, "", "", false, "tracestate"},
		{"zero trace", []string{"traceparent", "00-" + strings.Repeat("0", 32) + "-" + spanA + "-01"}, 0, "", "", false, "traceparent"},
		{"version 00 too long", []string{"traceparent", "00-" + traceA + "-" + spanA + "-01-x"}, 0, "", "", false, "traceparent"},
		{"two traceparents", []string{"traceparent", "00-" + traceA + "-" + spanA + "-01", "traceparent", "00-" + traceA + "-" + spanA + "-01"}, 0, "", "", false, "traceparent"},
		{"malformed restarts although b3 is there", []string{"traceparent", "junk", "b3", traceA + "-" + spanA + "-1"}, 0, "", "", false, ""},
		{"tracestate alone", []string{"tracestate", "a=b"}, 0, "", "", false, "tracestate"},
		{"b3 single", []string{"b3", traceA + "-" + spanA + "-1-05e3ac9a4f6e3b90"}, 0, traceA, spanA, true, ""},
		{"b3 single 64 bit, undecided", []string{"b3", "a3ce929d0e0e4736-" + spanA}, 100, strings.Repeat("0", 16) + "a3ce929d0e0e4736", spanA, true, ""},
		{"b3 deny", []string{"b3", "0"}, 100, "", "", false, ""},
		{"b3 multi", []string{"x-b3-traceid", traceA, "x-b3-spanid", spanA, "x-b3-sampled", "0"}, 100, traceA, spanA, false, ""},
		{"b3 multi debug", []string{"x-b3-traceid", traceA, "x-b3-spanid", spanA, "x-b3-flags", "1"}, 0, traceA, spanA, true, ""},
		{"b3 multi broken", []string{"x-b3-traceid", "zz", "x-b3-spanid", spanA, "x-b3-sampled", "1"}, 0, "", "", false, ""},
		{"force", []string{"x-envoy-force-trace", "1"}, 0, "", "", true, ""},
		{"client", []string{"x-client-trace-id", "z"}, 0, "", "", true, ""},
		{"request id says sampled", []string{uuid, "ffffffff-0000-9000-8000-000000000000"}, 0, "", "", true, ""},
		{"request id draws 0", []string{uuid, "00000000-0000-4000-8000-000000000000"}, 0.01, "", "", true, ""},
		{"request id draws high", []string{uuid, "0000270f-0000-4000-8000-000000000000"}, 99.99, "", "", false, ""},
		{"none", nil, 0, "", "", false, ""},
		{"all", nil, 100, "", "", true, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := head(c.in...)
			s := Begin(h, Input{Tracing: tracing(c.random), Rand: testRand()})
			if got := hex.EncodeToString(s.TraceID[:]); c.trace != "" && got != c.trace || !s.HasTrace() || c.trace == "" && got == traceA {
				t.Errorf("trace id %s, want %q", got, c.trace)
			}
			if want := c.parent; want == "" && s.ParentID != [8]byte{} || want != "" && hex.EncodeToString(s.ParentID[:]) != want {
				t.Errorf("parent %x, want %q", s.ParentID, want)
			}
			if s.Sampled != c.sampled {
				t.Errorf("sampled %v, want %v", s.Sampled, c.sampled)
			}
			if c.dropped != "" && h.GetName(c.dropped) != nil {
				t.Errorf("%s is still there", c.dropped)
			}
			if s.ID == ([8]byte{}) || s.ID == s.ParentID {
				t.Errorf("own span id %x", s.ID)
			}
		})
	}
}

func TestBegin_requestID(t *testing.T) {
	in := Input{Tracing: tracing(100), Rand: testRand()}
	h := head()
	Begin(h, in)
	made := string(h.Get(message.XRequestID))
	if len(made) != 36 || made[14] != markSample || made[8] != '-' {
		t.Errorf("made %q", made)
	}
	h = head("x-request-id", "not-a-uuid")
	if s := Begin(h, in); string(h.Get(message.XRequestID)) != "not-a-uuid" || !s.Sampled {
		t.Errorf("a foreign id must be kept and draw at random: %q", h.Get(message.XRequestID))
	}
	h = head("x-request-id", made, "x-envoy-force-trace", "1")
	in.Edge = true
	Begin(h, in)
	if string(h.Get(message.XRequestID)) == made || h.Has(message.XEnvoyForceTrace) {
		t.Error("the edge believed its client")
	}
	h = head("x-request-id", made)
	in.PreserveRequestID = true
	if Begin(h, in); string(h.Get(message.XRequestID)) != made {
		t.Error("preserve_external_request_id was ignored")
	}
	h = head("x-envoy-force-trace", "1")
	Begin(h, Input{Tracing: tracing(0), Rand: testRand()})
	if id := h.Get(message.XRequestID); id[14] != markForced {
		t.Errorf("forced trace marks %q", id)
	}
	capped := tracing(100)
	capped.Overall = 0
	h = head()
	if s := Begin(h, Input{Tracing: capped, Rand: testRand()}); s.Sampled || h.Get(message.XRequestID)[14] != markNone {
		t.Error("overall sampling of 0 % was ignored")
	}
}

func TestBegin_withoutTracingTouchesNothing(t *testing.T) {
	for _, tr := range []*snapshot.Tracing{nil, {Disabled: true, Random: 100, Overall: 100}} {
		h := head("traceparent", "00-"+traceA+"-"+spanA+"-01", "tracestate", "a=b", "b3", "junk")
		s := Begin(h, Input{Tracing: tr, Rand: testRand()})
		s.Inject(h, [8]byte{1})
		if string(h.Get(message.Traceparent)) != "00-"+traceA+"-"+spanA+"-01" || string(h.Get(message.Tracestate)) != "a=b" || string(h.Get(message.B3)) != "junk" {
			t.Error("trace headers changed")
		}
		if hex.EncodeToString(s.TraceID[:]) != traceA {
			t.Error("the trace id must still reach access logs")
		}
	}
}

func TestInject_writesWhatArrived(t *testing.T) {
	attempt := [8]byte{1, 2, 3, 4, 5, 6, 7, 8}
	for _, c := range []struct{ in, want []string }{
		{
			[]string{"traceparent", "00-" + traceA + "-" + spanA + "-03"},
			[]string{"traceparent", "00-" + traceA + "-0102030405060708-03", "b3", "", "x-b3-traceid", ""},
		},
		{
			[]string{"b3", traceA + "-" + spanA + "-d"},
			[]string{"traceparent", "00-" + traceA + "-0102030405060708-01", "b3", traceA + "-0102030405060708-d"},
		},
		{
			[]string{"x-b3-traceid", "a3ce929d0e0e4736", "x-b3-spanid", spanA, "x-b3-sampled", "1", "x-b3-parentspanid", "1111111111111111"},
			[]string{
				"traceparent", "00-0000000000000000a3ce929d0e0e4736-0102030405060708-01", "x-b3-traceid", "a3ce929d0e0e4736",
				"x-b3-spanid", "0102030405060708", "x-b3-sampled", "1", "x-b3-parentspanid", spanA,
			},
		},
		{ // both: W3C wins and B3 is made to agree
			[]string{"traceparent", "00-" + traceA + "-" + spanA + "-00", "b3", "ffffffffffffffffffffffffffffffff-eeeeeeeeeeeeeeee-1"},
			[]string{"traceparent", "00-" + traceA + "-0102030405060708-00", "b3", traceA + "-0102030405060708-0"},
		},
	} {
		h := head(c.in...)
		s := Begin(h, Input{Tracing: tracing(0), Rand: testRand()})
		s.Inject(h, attempt)
		for i := 0; i < len(c.want); i += 2 {
			if got := string(h.GetName(c.want[i])); got != c.want[i+1] {
				t.Errorf("%v: %s = %q, want %q", c.in, c.want[i], got, c.want[i+1])
			}
		}
	}
}

func TestAttemptID_inboundIsTheServerSpan(t *testing.T) {
	rnd := testRand()
	in := Begin(head(), Input{Tracing: tracing(100), Direction: snapshot.Inbound, Rand: rnd})
	if in.AttemptID(rnd) != in.ID {
		t.Error("inbound attempts must continue the server span")
	}
	out := Begin(head(), Input{Tracing: tracing(100), Direction: snapshot.Outbound, Rand: rnd})
	if a, b := out.AttemptID(rnd), out.AttemptID(rnd); a == out.ID || a == b {
		t.Error("outbound attempts need ids of their own")
	}
}

func TestUnsampled_doesNotAllocate(t *testing.T) {
	rnd := testRand()
	tr := tracing(0)
	src := head("traceparent", "00-"+traceA+"-"+spanA+"-00", "x-request-id", "0000270f-0000-4000-8000-000000000000", "b3", "0")
	var h message.Head
	run := func() {
		h.CopyFrom(src)
		s := Begin(&h, Input{Tracing: tr, Direction: snapshot.Outbound, Rand: rnd})
		s.Inject(&h, s.AttemptID(rnd))
	}
	run()
	if n := testing.AllocsPerRun(200, run); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzBegin(f *testing.F) {
	f.Add("00-"+traceA+"-"+spanA+"-01", traceA+"-"+spanA+"-1", traceA, spanA, "1", "0000270f-0000-4000-8000-000000000000")
	f.Add("", "0", "", "", "", "")
	f.Fuzz(func(t *testing.T, tp, b3, trace, span, smp, id string) {
		h := head("traceparent", tp, "b3", b3, "x-b3-traceid", trace, "x-b3-spanid", span, "x-b3-sampled", smp, "x-request-id", id)
		rnd := testRand()
		s := Begin(h, Input{Tracing: tracing(50), Rand: rnd})
		s.Inject(h, s.AttemptID(rnd))
		// What goes out must read back as the same trace.
		again := Begin(h, Input{Tracing: tracing(0), Rand: rnd})
		if again.TraceID != s.TraceID || again.Sampled != s.Sampled {
			t.Fatalf("wrote %q: read back %x sampled=%v, want %x %v", h.Get(message.Traceparent), again.TraceID, again.Sampled, s.TraceID, s.Sampled)
		}
	})
}
