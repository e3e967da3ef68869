package ads

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routepb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlspb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
)

// world writes resources shortly: "CDS a=1 b=1; RDS r=2" are clusters a and b
// and route configuration r, each with a content.
func world(revision uint64, s string) Resources {
	r := Resources{Revision: revision, ByType: map[string]map[string]proto.Message{}}
	for part := range strings.SplitSeq(s, ";") {
		fields := strings.Fields(part)
		if len(fields) == 0 {
			continue
		}
		typeURL := typeOf(fields[0])
		r.ByType[typeURL] = map[string]proto.Message{}
		for _, f := range fields[1:] {
			name, content, _ := strings.Cut(f, "=")
			r.ByType[typeURL][name] = message(typeURL, name, content)
		}
	}
	return r
}

func typeOf(short string) string {
	for _, t := range pushOrder {
		if ShortName(t) == short {
			return t
		}
	}
	panic("unknown type " + short)
}

func message(typeURL, name, content string) proto.Message {
	switch typeURL {
	case clusterType:
		return &clusterpb.Cluster{Name: name, AltStatName: content}
	case endpointType:
		p := &endpointpb.ClusterLoadAssignment{ClusterName: name}
		for range content {
			p.Endpoints = append(p.Endpoints, &endpointpb.LocalityLbEndpoints{Priority: uint32(content[0])})
		}
		return p
	case listenerType:
		return &listenerpb.Listener{Name: name, StatPrefix: content}
	case routeType:
		return &routepb.RouteConfiguration{Name: name, RequestHeadersToRemove: []string{content}}
	case secretType:
		return &tlspb.Secret{Name: name}
	}
	return &clusterpb.Cluster{Name: name, AltStatName: content}
}

// steps drives a session and writes what it answers in one line.
type steps struct {
	t     *testing.T
	s     *session
	c     encoder
	last  map[string]string // newest nonce by short type
	clock time.Time
}

func newSteps(t *testing.T, delta bool, resources string) *steps {
	st := &steps{t: t, s: newSession(&Node{Caps: map[string]bool{"http1": true}}, delta, 100), last: map[string]string{}, clock: time.Unix(1000, 0)}
	st.s.set = st.encode(1, resources)
	return st
}

func (st *steps) encode(revision uint64, resources string) *resourceSet {
	set, err := st.c.encode(world(revision, resources), true)
	if err != nil {
		st.t.Fatal(err)
	}
	return set
}

func (st *steps) show(out []response) string {
	var parts []string
	for _, r := range out {
		p := ShortName(r.typeURL)
		for _, e := range r.resources {
			p += " " + e.name
		}
		for _, name := range r.removed {
			p += " -" + name
		}
		parts = append(parts, p)
		st.last[ShortName(r.typeURL)] = r.nonce
	}
	return strings.Join(parts, "; ")
}

func (st *steps) want(what string, out []response, want string) {
	st.t.Helper()
	if got := st.show(out); got != want {
		st.t.Errorf("%s: sent %q, want %q", what, got, want)
	}
}

func (st *steps) req(r request) []response {
	st.t.Helper()
	r.typeURL = typeOf(r.typeURL)
	out, err := st.s.handle(r, st.clock)
	if err != nil {
		st.t.Fatal(err)
	}
	return out
}

func (st *steps) ack(types ...string) {
	st.t.Helper()
	for _, short := range types {
		r := request{typeURL: short, nonce: st.last[short]}
		if !st.s.delta {
			sub := st.s.subs[typeOf(short)]
			for n := range sub.names {
				r.names = append(r.names, n)
			}
		}
		st.want("ack "+short, st.req(r), "")
	}
}

func (st *steps) offer(revision uint64, resources string) []response {
	return st.s.offer(st.encode(revision, resources), st.clock)
}

func TestDelta_sendsOnlyWhatChanged(t *testing.T) {
	st := newSteps(t, true, "CDS a=1 b=1; EDS a=1 b=1; LDS l=1; RDS r=1; NDS n=1")
	st.want("wildcard", st.req(request{typeURL: "CDS"}), "CDS a b")
	st.want("by name", st.req(request{typeURL: "EDS", subscribe: []string{"b", "a", "x"}}), "EDS a b -x")
	st.want("star", st.req(request{typeURL: "LDS", subscribe: []string{"*"}}), "LDS l")
	st.want("routes", st.req(request{typeURL: "RDS", subscribe: []string{"r"}}), "RDS r")
	st.want("a type without resources still answers", st.req(request{typeURL: "SDS", subscribe: []string{"s"}}), "SDS -s")
	if !st.s.busy() {
		t.Error("not busy while answers are awaited")
	}
	st.ack("CDS", "EDS", "LDS", "RDS", "SDS")
	if st.s.busy() || st.s.acked != 1 {
		t.Errorf("busy %v, acked %d", st.s.busy(), st.s.acked)
	}
	st.want("no change", st.offer(2, "CDS a=1 b=1; EDS a=1 b=1; LDS l=1; RDS r=1; NDS n=2"), "")
	if st.s.acked != 2 {
		t.Errorf("a push without content is acknowledged by itself; acked %d", st.s.acked)
	}
	st.want("one endpoint", st.offer(3, "CDS a=1 b=1; EDS a=1 b=2; LDS l=1; RDS r=1"), "EDS b")
	st.ack("EDS")
	st.want("appears", st.offer(4, "CDS a=1 b=1; EDS a=1 b=2 x=1; LDS l=1; RDS r=1"), "EDS x")
	st.ack("EDS")
	st.want("unsubscribe says nothing", st.req(request{typeURL: "EDS", unsubscribe: []string{"x"}}), "")
	st.want("not wanted", st.offer(5, "CDS a=1 b=1; EDS a=1 b=2 x=2; LDS l=1; RDS r=1"), "")
	st.want("asked again", st.req(request{typeURL: "EDS", subscribe: []string{"a"}}), "EDS a")
}

func TestDelta_makeBeforeBreak(t *testing.T) {
	st := newSteps(t, true, "CDS old=1; EDS old=1; LDS l=1; RDS r=1")
	st.req(request{typeURL: "CDS"})
	st.req(request{typeURL: "EDS", subscribe: []string{"old"}})
	st.req(request{typeURL: "LDS"})
	st.want("routes", st.req(request{typeURL: "RDS", subscribe: []string{"r"}}), "RDS r")
	for short, nonce := range map[string]string{"CDS": "1", "EDS": "2", "LDS": "3", "RDS": "4"} {
		st.last[short] = nonce
	}
	st.ack("CDS", "EDS", "LDS", "RDS")

	st.want("additions first, in order", st.offer(2, "CDS new=1; EDS new=1; LDS l=2; RDS r=2"), "CDS new; LDS l; RDS r")
	st.want("removals wait for answers", st.s.removals(st.clock), "")
	st.want("endpoints of the new cluster", st.req(request{typeURL: "EDS", subscribe: []string{"new"}}), "EDS new")
	st.ack("CDS", "EDS", "LDS")
	st.want("the route is refused", st.req(request{typeURL: "RDS", nonce: st.last["RDS"], nack: true, refusal: "bad regex"}), "")
	st.want("nothing is taken away while the old route is in force", st.s.removals(st.clock), "")
	st.want("mended", st.offer(3, "CDS new=1; EDS new=1; LDS l=2; RDS r=3"), "RDS r")
	st.ack("RDS")
	st.want("then removals", st.s.removals(st.clock), "CDS -old; EDS -old")
	st.ack("CDS", "EDS")
	if st.s.leftovers() || st.s.acked != 3 {
		t.Errorf("leftovers %v, acked %d", st.s.leftovers(), st.s.acked)
	}
}

func TestNACK_isNotRepeatedUntilMended(t *testing.T) {
	st := newSteps(t, true, "CDS a=1 b=1")
	st.want("first", st.req(request{typeURL: "CDS"}), "CDS a b")
	st.want("nack", st.req(request{typeURL: "CDS", nonce: "1", nack: true, refusal: "a is bad"}), "")
	sub := st.s.subs[clusterType]
	if sub.reason != "a is bad" || len(sub.refused) != 2 || st.s.acked != 0 {
		t.Errorf("reason %q, refused %v, acked %d", sub.reason, sub.refused, st.s.acked)
	}
	st.want("same content", st.offer(2, "CDS a=1 b=1"), "")
	st.want("an unrelated change", st.offer(3, "CDS a=1 b=1 c=1"), "CDS c")
	st.ack("CDS")
	if len(sub.refused) != 2 {
		t.Errorf("an unrelated ACK cleared the refusal: %v", sub.refused)
	}
	st.want("mended: all in doubt are sent", st.offer(4, "CDS a=2 b=1 c=1"), "CDS a b")
	st.ack("CDS")
	if len(sub.refused) != 0 || sub.reason != "" || st.s.acked != 4 {
		t.Errorf("refused %v, reason %q, acked %d", sub.refused, sub.reason, st.s.acked)
	}
	st.want("again bad", st.offer(5, "CDS a=3 b=1 c=1"), "CDS a")
	st.req(request{typeURL: "CDS", nonce: st.last["CDS"], nack: true})
	st.want("back to what the client has: sent, since the session does not know that", st.offer(6, "CDS a=2 b=1 c=1"), "CDS a")
}

func TestDelta_reconnectSendsOnlyTheDifference(t *testing.T) {
	st := newSteps(t, true, "CDS a=1 b=1; EDS a=1; LDS l=1")
	a := st.s.set.get(clusterType, "a").version
	st.want("a unchanged, b changed, z went away meanwhile",
		st.req(request{typeURL: "CDS", initial: map[string]string{"a": a, "b": "other", "z": "1"}}), "CDS b")
	st.want("endpoints", st.req(request{typeURL: "EDS", subscribe: []string{"a"}, initial: map[string]string{"a": st.s.set.get(endpointType, "a").version}}), "EDS")
	st.ack("CDS", "EDS")
	st.want("z is removed at the end", st.s.removals(st.clock), "CDS -z")
	if st.s.subs[endpointType].known["a"].any == nil {
		t.Error("what the client kept is not shown as its resource")
	}
}

func TestDelta_namesBesideWildcard(t *testing.T) {
	st := newSteps(t, true, "CDS a=1 b=1")
	st.want("both", st.req(request{typeURL: "CDS", subscribe: []string{"*", "a", "x"}}), "CDS a b -x")
	st.ack("CDS")
	st.want("leave the wildcard", st.req(request{typeURL: "CDS", unsubscribe: []string{"*"}}), "")
	st.want("only a is left", st.offer(2, "CDS a=2 b=2"), "CDS a")
}

func TestSotW_fullStateAndPartialTypes(t *testing.T) {
	st := newSteps(t, false, "CDS a=1 b=1; EDS a=1 b=1; LDS l=1; RDS r=1")
	st.want("clusters", st.req(request{typeURL: "CDS"}), "CDS a b")
	st.want("endpoints", st.req(request{typeURL: "EDS", names: []string{"a", "b", "x"}}), "EDS a b")
	st.want("listeners", st.req(request{typeURL: "LDS"}), "LDS l")
	st.ack("CDS", "EDS", "LDS")
	st.want("a repeated ACK", st.req(request{typeURL: "EDS", nonce: st.last["EDS"], names: []string{"a", "b", "x"}}), "")
	st.want("all clusters, one endpoint", st.offer(2, "CDS a=2 b=1; EDS a=2 b=1; LDS l=1; RDS r=1"), "CDS a b; EDS a")
	st.ack("CDS", "EDS")
	st.want("a removed cluster stays in the first phase", st.offer(3, "CDS b=3; EDS b=1; LDS m=1; RDS r=1"), "CDS a b; LDS m")
	st.ack("CDS", "LDS")
	st.want("and goes in the second", st.s.removals(st.clock), "CDS b")
	st.ack("CDS")
	st.want("fewer names", st.req(request{typeURL: "EDS", nonce: st.last["EDS"], names: []string{"b"}}), "")
	st.want("more names", st.req(request{typeURL: "EDS", nonce: st.last["EDS"], names: []string{"b", "a"}}), "EDS")
	st.ack("EDS")
	if st.s.leftovers() {
		t.Error("leftovers")
	}
}

func TestSotW_staleNonceChangesNothing(t *testing.T) {
	st := newSteps(t, false, "EDS a=1 b=1")
	st.want("first", st.req(request{typeURL: "EDS", names: []string{"a"}}), "EDS a")
	st.ack("EDS")
	st.want("push", st.offer(2, "EDS a=2 b=1"), "EDS a")
	st.want("a change that crossed the push is ignored", st.req(request{typeURL: "EDS", nonce: "1", names: []string{"a", "b"}}), "")
	if !st.s.busy() {
		t.Error("the stale request counted as an answer")
	}
	st.want("and counts when repeated with the ACK", st.req(request{typeURL: "EDS", nonce: "2", names: []string{"a", "b"}}), "EDS b")
}

func TestSotW_legacyWildcardEndsWithNames(t *testing.T) {
	st := newSteps(t, false, "LDS a=1 b=1")
	st.want("everything", st.req(request{typeURL: "LDS"}), "LDS a b")
	st.ack("LDS")
	st.req(request{typeURL: "LDS", nonce: st.last["LDS"], names: []string{"a"}})
	st.want("one name", st.offer(2, "LDS a=2 b=2"), "LDS a")
	st.ack("LDS")
	st.want("no names means none now", st.req(request{typeURL: "LDS", nonce: st.last["LDS"]}), "")
	st.want("nothing", st.offer(3, "LDS a=3 b=3"), "")
	st.want("endpoints without names are nothing", st.req(request{typeURL: "EDS"}), "EDS")
}

func TestEnvoy_changedClusterGetsItsEndpointsAgain(t *testing.T) {
	st := newSteps(t, false, "CDS a=1 b=1; EDS a=1 b=1")
	st.s.node = &Node{}
	st.req(request{typeURL: "CDS"})
	st.want("endpoints", st.req(request{typeURL: "EDS", names: []string{"a", "b"}}), "EDS a b")
	st.last["CDS"] = "1"
	st.ack("CDS", "EDS")
	st.want("warming needs them", st.offer(2, "CDS a=2 b=1; EDS a=1 b=1"), "CDS a b; EDS a b")
}

func TestHandle_bounds(t *testing.T) {
	s := newSession(&Node{}, true, 3)
	s.set = &resourceSet{}
	if _, err := s.handle(request{typeURL: endpointType, subscribe: []string{"a", "b", "c", "d"}}, time.Time{}); err == nil {
		t.Error("more names than allowed were accepted")
	}
	var err error
	for i := range 40 {
		if _, err = s.handle(request{typeURL: fmt.Sprint("t", i)}, time.Time{}); err != nil {
			break
		}
	}
	if err == nil {
		t.Error("any number of types was accepted")
	}
}

func TestAbandon_lateAnswersStillCount(t *testing.T) {
	st := newSteps(t, true, "CDS a=1")
	st.want("first", st.req(request{typeURL: "CDS"}), "CDS a")
	st.s.abandon(st.clock)
	if st.s.busy() || st.s.acked != 0 {
		t.Errorf("busy %v, acked %d", st.s.busy(), st.s.acked)
	}
	st.want("pushes go on", st.offer(2, "CDS a=2"), "CDS a")
	for i := range maxFlights + 4 {
		st.s.abandon(st.clock)
		st.offer(uint64(i+3), fmt.Sprint("CDS a=", i+3))
	}
	sub := st.s.subs[clusterType]
	if len(sub.inflight) != maxFlights || sub.reason == "" {
		t.Errorf("%d in flight, reason %q", len(sub.inflight), sub.reason)
	}
	st.req(request{typeURL: "CDS", nonce: sub.inflight[len(sub.inflight)-1].nonce})
	if st.s.acked != uint64(maxFlights+6) || sub.reason != "" {
		t.Errorf("acked %d, reason %q", st.s.acked, sub.reason)
	}
}

// FuzzSession plays a client that follows the protocol against random worlds
// and compares what it has at the end with what it should have.
func FuzzSession(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9}, true)
	f.Add([]byte{0x81, 2, 0x43, 4, 0xc5, 6, 0x17, 8, 9, 200, 100}, false)
	f.Fuzz(func(t *testing.T, script []byte, delta bool) {
		st := newSteps(t, delta, "CDS a=1 b=1 c=1; LDS a=1 b=1 c=1")
		have := map[string]map[string]string{clusterType: {}, listenerType: {}}
		take := func(out []response, refuse bool) {
			for len(out) > 0 {
				var next []response
				for _, r := range out {
					if !refuse {
						if !delta {
							clear(have[r.typeURL])
						}
						for _, e := range r.resources {
							have[r.typeURL][e.name] = e.version
						}
						for _, name := range r.removed {
							delete(have[r.typeURL], name)
						}
					}
					answer, err := st.s.handle(request{typeURL: r.typeURL, nonce: r.nonce, nack: refuse}, st.clock)
					if err != nil {
						t.Fatal(err)
					}
					next = append(next, answer...)
				}
				out = next
			}
		}
		for _, typeURL := range []string{clusterType, listenerType} {
			out, err := st.s.handle(request{typeURL: typeURL}, st.clock)
			if err != nil {
				t.Fatal(err)
			}
			take(out, false)
		}
		revision := uint64(1)
		for _, op := range script {
			revision++
			set := st.encode(revision, fmt.Sprintf("CDS a=%d%s; LDS b=%d%s", op&3, []string{"", " b=1", " c=2", " b=2 c=1"}[op>>2&3], op&1, []string{"", " a=1", " c=1", ""}[op>>4&3]))
			take(st.s.offer(set, st.clock), op>>6 == 3)
			take(st.s.removals(st.clock), op>>6 == 2)
		}
		// A last change of everything mends all refusals.
		take(st.offer(revision+1, "CDS a=x c=y; LDS b=z"), false)
		take(st.s.removals(st.clock), false)
		for typeURL, got := range have {
			want := map[string]string{}
			for name, e := range st.s.set.byType[typeURL] {
				want[name] = e.version
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("delta=%v %s: the client has %v, want %v", delta, ShortName(typeURL), got, want)
			}
		}
		if st.s.busy() || st.s.leftovers() || st.s.acked != revision+1 {
			t.Errorf("busy %v, leftovers %v, acked %d of %d; clusters refused %v gone %v, listeners refused %v gone %v", st.s.busy(), st.s.leftovers(), st.s.acked, revision+1, st.s.subs[clusterType].refused, st.s.subs[clusterType].gone(st.s.set), st.s.subs[listenerType].refused, st.s.subs[listenerType].gone(st.s.set))
		}
	})
}

func TestShortNames_areUnique(t *testing.T) {
	var names []string
	for _, typeURL := range pushOrder {
		names = append(names, ShortName(typeURL))
	}
	slices.Sort(names)
	if len(slices.Compact(names)) != len(pushOrder) {
		t.Error(names)
	}
}
