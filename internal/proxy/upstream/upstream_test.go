package upstream

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// story drives a Detector: "a=503" observes, "+10s" moves time and ticks, and
// what is out afterwards must be as told.
func story(t *testing.T, config snapshot.Outlier, hosts string, steps ...string) {
	t.Helper()
	d := NewDetector(config)
	var addrs []netip.AddrPort
	for i := range len(hosts) {
		addrs = append(addrs, addr(int(hosts[i])))
	}
	d.SetHosts(addrs)
	now := int64(0)
	for i := 0; i < len(steps); i += 2 {
		for _, word := range strings.Fields(steps[i]) {
			if strings.HasPrefix(word, "+") {
				dt, err := time.ParseDuration(word[1:])
				if err != nil {
					t.Fatal(err)
				}
				now += int64(dt)
				d.Tick(now)
				continue
			}
			host := addr(int(word[0]))
			switch what := word[2:]; what {
			case "connect":
				d.Observe(host, Outcome{Reset: message.ResetConnectFailure}, now)
			case "timeout":
				d.Observe(host, Outcome{Reset: message.ResetCancel, TimedOut: true}, now)
			case "cancel":
				d.Observe(host, Outcome{Reset: message.ResetCancel}, now)
			default:
				var status int
				if _, err := fmt.Sscan(what, &status); err != nil {
					t.Fatal(err)
				}
				d.Observe(host, Outcome{Status: status}, now)
			}
		}
		var out []string
		for _, a := range d.Ejected() {
			out = append(out, string(rune(a.Addr().As4()[3])))
		}
		if got := strings.Join(out, ""); got != steps[i+1] {
			t.Errorf("after %q: out %q, want %q", steps[i], got, steps[i+1])
		}
	}
}

func TestDetector_consecutiveErrors(t *testing.T) {
	c := snapshot.Outlier{Consecutive5xx: 3, Interval: 10 * time.Second, BaseEjection: 30 * time.Second, MaxEjectionPercent: 100}
	story(t, c, "ab",
		"a=503 a=500", "",
		"a=200 a=503 a=503", "", // a success starts the count again
		"a=404", "",
		"a=500 a=500 a=500", "a",
		"a=500 a=500 a=500", "a")
	story(t, c, "ab", "a=connect a=timeout a=503", "a") // no response counts like a gateway error
	story(t, c, "ab", "a=cancel a=cancel a=cancel a=cancel", "")
}

func TestDetector_gatewayErrorsOnly(t *testing.T) {
	c := snapshot.Outlier{ConsecutiveGateway: 2, MaxEjectionPercent: 100, BaseEjection: time.Second}
	story(t, c, "ab", "a=500 a=500 a=500", "", "a=502 a=500 a=504", "", "a=503", "a")
}

func TestDetector_localOriginApart(t *testing.T) {
	c := snapshot.Outlier{Consecutive5xx: 2, ConsecutiveLocal: 3, SplitExternalLocal: true, MaxEjectionPercent: 100, BaseEjection: time.Second}
	story(t, c, "ab", "a=connect a=connect", "", "a=503", "", "a=connect a=connect a=connect", "a")
}

func TestDetector_maximumShareStays(t *testing.T) {
	c := snapshot.Outlier{Consecutive5xx: 2, MaxEjectionPercent: 50, BaseEjection: time.Minute}
	story(t, c, "ab", "a=503 a=503", "a", "b=503 b=503 b=503", "a") // ejecting b would pass 50 %
	c.MaxEjectionPercent = 10
	story(t, c, "ab", "a=503 a=503 a=503", "")
}

func TestDetector_ejectionGrowsAndHeals(t *testing.T) {
	c := snapshot.Outlier{Consecutive5xx: 1, MaxEjectionPercent: 100, Interval: 10 * time.Second, BaseEjection: 30 * time.Second, MaxEjection: 80 * time.Second}
	story(t, c, "ab",
		"a=503", "a",
		"+20s", "a",
		"+10s", "", // 1 × 30 s
		"a=503 +50s", "a",
		"+10s", "", // 2 × 30 s
		"a=503 +70s", "a",
		"+10s", "", // 3 × 30 s, capped at 80 s
		"+10s +10s +10s a=503 +30s", "") // three healthy intervals forgive
}

func TestManager_ejectedEndpointGetsNothing(t *testing.T) {
	b := newBed(t)
	c := makeCluster(snapshot.RoundRobin, 1, 1, 1)
	c.Outlier = &snapshot.Outlier{Consecutive5xx: 2, Interval: 10 * time.Second, BaseEjection: 30 * time.Second, MaxEjectionPercent: 50}
	b.m.Apply(snap(c))
	for range 6 {
		call := b.open(c)
		status := 200
		if call.req.Address == addr(2) {
			status = 503
		}
		call.finish(status)
	}
	other := b.manager() // another loop of the process
	other.Apply(snap(c))
	for i := range 10 {
		if got := b.once(c); got == 2 {
			t.Fatal("an ejected endpoint was picked")
		}
		r := &call{b: b, m: other}
		r.req = Request{Cluster: c, Waiter: r}
		if other.Open(&r.req); r.req.Address == addr(2) {
			t.Fatalf("another loop picked it (%d)", i)
		}
		r.finish(200)
	}
	if got := b.shared.Ejected("c"); !slices.Equal(got, []netip.AddrPort{addr(2)}) {
		t.Fatalf("ejected %v", got)
	}
	again := *c // a new snapshot does not pardon
	b.m.Apply(snap(&again))
	for range 6 {
		if b.once(&again) == 2 {
			t.Fatal("a new snapshot brought the endpoint back")
		}
	}
	b.clock.Advance(40 * time.Second)
	seen := map[byte]bool{}
	for range 6 {
		seen[b.once(&again)] = true
	}
	if !seen[2] {
		t.Fatal("the endpoint never came back")
	}
}

func TestBalance_distribution(t *testing.T) {
	const n = 3000
	for _, c := range []struct {
		name    string
		lb      snapshot.LBPolicy
		weights []uint32
		want    []int // per cent
		within  int
	}{
		{"round robin", snapshot.RoundRobin, []uint32{1, 1, 1}, []int{33, 33, 33}, 1},
		{"round robin weighted", snapshot.RoundRobin, []uint32{1, 3}, []int{25, 75}, 1},
		{"random", snapshot.Random, []uint32{1, 1}, []int{50, 50}, 4},
		{"random weighted", snapshot.Random, []uint32{1, 4}, []int{20, 80}, 4},
		{"least request", snapshot.LeastRequest, []uint32{1, 1}, []int{50, 50}, 4},
		{"ring hash", snapshot.RingHash, []uint32{1, 1}, []int{50, 50}, 10},
		{"maglev weighted", snapshot.Maglev, []uint32{1, 3}, []int{25, 75}, 4},
	} {
		b := newBed(t)
		cl := makeCluster(c.lb, c.weights...)
		count := make([]int, len(c.weights)+1)
		for range n {
			count[b.once(cl)]++
		}
		for i, want := range c.want {
			if got := 100 * count[i+1] / n; got < want-c.within || got > want+c.within {
				t.Errorf("%s: endpoint %d got %d %%, want %d", c.name, i+1, got, want)
			}
		}
	}
}

func TestBalance_leastRequestAvoidsTheBusy(t *testing.T) {
	b := newBed(t)
	c := makeCluster(snapshot.LeastRequest, 1, 1)
	var slow []*call
	for len(slow) < 20 {
		call := b.open(c)
		if call.req.Address == addr(1) {
			slow = append(slow, call) // endpoint 1 never answers
			continue
		}
		call.finish(200)
	}
	count := map[byte]int{}
	for range 1000 {
		count[b.once(c)]++
	}
	if count[1] > 350 { // only when both draws hit it
		t.Fatalf("the busy endpoint got %d of 1000", count[1])
	}
}

func TestBalance_hashSticksAndMovesLittle(t *testing.T) {
	for _, lb := range []snapshot.LBPolicy{snapshot.RingHash, snapshot.Maglev} {
		b := newBed(t)
		c := makeCluster(lb, 1, 1, 1, 1, 1)
		b.m.Apply(snap(c))
		key := func(i int) func(*Request) {
			return func(r *Request) { r.Hash, r.Hashed = Hash(0, fmt.Append(nil, "user", i)), true }
		}
		before := map[int]byte{}
		for i := range 500 {
			before[i] = b.once(c, key(i))
			if again := b.once(c, key(i)); again != before[i] {
				t.Fatalf("key %d moved without a reason", i)
			}
		}
		less := *c
		less.Endpoints = c.Endpoints[:4]
		b.m.Apply(snap(&less))
		moved := 0
		for i := range 500 {
			if b.once(&less, key(i)) != before[i] && before[i] != 5 {
				moved++
			}
		}
		if moved > 75 { // 15 %: the keys of the others mostly stay
			t.Errorf("policy %d: %d of 500 keys moved without need", lb, moved)
		}
	}
}

func TestBalance_priorityAndHealth(t *testing.T) {
	b := newBed(t)
	c := makeCluster(snapshot.RoundRobin, 1, 1, 1, 1)
	c.Endpoints[2].Priority, c.Endpoints[3].Priority = 1, 1
	b.m.Apply(snap(c))
	for range 20 {
		if b.once(c) > 2 {
			t.Fatal("priority 1 is used while priority 0 is well")
		}
	}
	sick := *c
	sick.Endpoints = nil
	for i, e := range c.Endpoints {
		e := *e
		if i < 2 {
			e.Health = snapshot.Unhealthy
		}
		sick.Endpoints = append(sick.Endpoints, &e)
	}
	b.m.Apply(snap(&sick))
	for range 20 {
		if b.once(&sick) <= 2 {
			t.Fatal("an unhealthy endpoint was picked")
		}
	}
	dead := makeCluster(snapshot.RoundRobin, 1)
	dead.Endpoints[0].Health = snapshot.Draining
	b.m.Apply(snap(dead))
	if call := b.open(dead); call.err == nil || !call.err.NoHost {
		t.Fatalf("a cluster without a healthy endpoint gave %+v", call.err)
	}
	panicking := *dead
	panicking.PanicThreshold = 50
	b.m.Apply(snap(&panicking))
	b.once(&panicking)
}

func TestBalance_retryAvoidsTriedEndpoints(t *testing.T) {
	b := newBed(t)
	c := makeCluster(snapshot.LeastRequest, 1, 1, 1)
	for range 50 {
		got := b.once(c, func(r *Request) { r.Tried = []netip.AddrPort{addr(1), addr(3)} })
		if got != 2 {
			t.Fatalf("picked %d though 2 was never tried", got)
		}
	}
	if got := b.once(makeOnly(c), func(r *Request) { r.Tried = []netip.AddrPort{addr(1)} }); got != 1 {
		t.Fatal("a lone endpoint must be tried again")
	}
}

func makeOnly(c *snapshot.Cluster) *snapshot.Cluster {
	one := *c
	one.Name, one.Endpoints = "one", c.Endpoints[:1]
	return &one
}

func TestPool_reusesQueuesAndLimits(t *testing.T) {
	b := newBed(t)
	b.auto = false
	c := makeCluster(snapshot.RoundRobin, 1)
	c.Limits.MaxConnections, c.Limits.MaxPending = 1, 2
	a := b.open(c)
	second, third := b.open(c), (*call)(nil)
	if len(b.dials) != 1 {
		t.Fatalf("%d connections for a limit of 1", len(b.dials))
	}
	third = b.open(c)
	if third.err == nil || third.err.Code != message.ResetOverflow {
		t.Fatalf("the third pending request: %+v", third.err)
	}
	b.dials[0].succeed()
	if !a.open || !a.fresh || second.open {
		t.Fatalf("first open=%v fresh=%v second open=%v", a.open, a.fresh, second.open)
	}
	a.finish(200)
	if !second.open || second.fresh {
		t.Fatal("the waiting request did not get the freed connection")
	}
	second.finish(200)
	if fourth := b.open(c); !fourth.open || len(b.dials) != 1 {
		t.Fatal("an idle connection was not reused")
	}
}

func TestPool_limitIsPerProcessButEveryLoopGetsOne(t *testing.T) {
	b := newBed(t)
	c := makeCluster(snapshot.RoundRobin, 1)
	c.Limits.MaxConnections = 1
	b.open(c)
	other := b.manager()
	r := &call{b: b, m: other}
	r.req = Request{Cluster: c, Waiter: r}
	other.Open(&r.req)
	if !r.open {
		t.Fatal("a loop without a connection was starved")
	}
	r2 := &call{b: b, m: other}
	r2.req = Request{Cluster: c, Waiter: r2}
	other.Open(&r2.req)
	if r2.open || len(b.dials) != 2 {
		t.Fatalf("open %v after %d dials: the limit of the process does not hold", r2.open, len(b.dials))
	}
}

func TestPool_connectFailureFailsWhatWaits(t *testing.T) {
	b := newBed(t)
	b.auto = false
	c := makeCluster(snapshot.RoundRobin, 1)
	c.Limits.MaxConnections = 1
	x, y := b.open(c), b.open(c)
	b.dials[0].fail(message.ResetConnectFailure)
	for _, call := range []*call{x, y} {
		if call.err == nil || call.err.Code != message.ResetConnectFailure {
			t.Errorf("%+v", call.err)
		}
	}
	if b.m.Active() != 0 {
		t.Errorf("%d active", b.m.Active())
	}
	if z := b.open(c); z.err != nil || len(b.dials) != 2 {
		t.Error("the connection limit was not given back")
	}
}

func TestPool_cancelWhileWaiting(t *testing.T) {
	b := newBed(t)
	b.auto = false
	c := makeCluster(snapshot.RoundRobin, 1)
	x, y := b.open(c), b.open(c)
	b.m.Cancel(&x.req)
	b.m.Cancel(&y.req)
	if len(b.dials) != 2 || !b.dials[1].cancelled || b.dials[0].cancelled {
		t.Fatal("of two connections nobody waits for, one should be kept for the next request")
	}
	b.dials[0].succeed()
	if x.open || y.open || b.m.Active() != 0 {
		t.Fatal("a cancelled request was opened")
	}
	if z := b.open(c); !z.open || !z.fresh || len(b.dials) != 2 {
		t.Fatal("the connection on the way was not used")
	}
}

func TestPool_requestsPerConnectionAndIdleTimeout(t *testing.T) {
	b := newBed(t)
	c := makeCluster(snapshot.RoundRobin, 1)
	c.MaxRequestsPerConn, c.IdleTimeout = 2, time.Minute
	for range 4 {
		b.once(c)
	}
	if len(b.dials) != 2 || !b.dials[0].conn.closed || !b.dials[1].conn.closed {
		t.Fatalf("%d connections for 4 requests at 2 each", len(b.dials))
	}
	b.once(c)
	b.clock.Advance(59 * time.Second)
	if b.dials[2].conn.closed {
		t.Fatal("closed before the idle timeout")
	}
	b.clock.Advance(2 * time.Second)
	if !b.dials[2].conn.closed {
		t.Fatal("an idle connection was kept beyond its timeout")
	}
}

func TestManager_snapshotChangesDrainWhatIsGone(t *testing.T) {
	b := newBed(t)
	c := makeCluster(snapshot.RoundRobin, 1, 1)
	b.m.Apply(snap(c))
	b.once(c)
	b.once(c) // both endpoints have an idle connection
	busy := b.open(c)
	next := *c
	next.Endpoints = nil
	for _, e := range c.Endpoints {
		if e.Addr != busy.req.Address {
			next.Endpoints = append(next.Endpoints, e)
		}
	}
	b.m.Apply(snap(&next))
	busyConn := busy.req.conn.codec.(*fakeConn)
	if busyConn.closed {
		t.Fatal("a busy connection was cut")
	}
	busy.finish(200)
	if !busyConn.closed {
		t.Fatal("the connection of a removed endpoint was kept")
	}
	kept := 0
	for _, d := range b.dials {
		if !d.conn.closed {
			kept++
		}
	}
	if kept != 1 {
		t.Fatalf("%d connections left, want the one of the endpoint that stays", kept)
	}
	before := len(b.dials)
	b.once(&next)
	if len(b.dials) != before {
		t.Fatal("the pool of an unchanged endpoint was lost")
	}
	b.m.Apply(snap())
	if call := b.open(&next); !call.open { // an old exchange may still retry
		t.Fatalf("%+v", call.err)
	}
}

func TestManager_waitingRequestsMoveToTodaysEndpoints(t *testing.T) {
	b := newBed(t)
	b.auto = false
	c := makeCluster(snapshot.RoundRobin, 1)
	b.m.Apply(snap(c))
	x := b.open(c)
	next := *c
	next.Endpoints = []*snapshot.Endpoint{{Addr: addr(9), Weight: 1}}
	b.m.Apply(snap(&next))
	if len(b.dials) != 2 || b.dials[1].target.Addr != addr(9) || !b.dials[0].cancelled {
		t.Fatalf("%d dials", len(b.dials))
	}
	b.dials[1].succeed()
	if !x.open || x.req.Address != addr(9) {
		t.Fatal("the waiting request did not follow")
	}
}

func TestManager_changedTLSDrainsPools(t *testing.T) {
	b := newBed(t)
	c := makeCluster(snapshot.RoundRobin, 1)
	b.m.Apply(snap(c))
	b.once(c)
	tls := *c
	tls.Transports = []snapshot.TransportMatch{{Name: "t", TLS: &snapshot.UpstreamTLS{SNI: "x"}}}
	b.m.Apply(snap(&tls))
	b.once(&tls)
	if !b.dials[0].conn.closed || b.dials[1].target.TLS == nil || b.dials[1].target.SNI != "x" {
		t.Fatal("plaintext connections outlive the change to TLS")
	}
	same := tls
	u := *tls.Transports[0].TLS
	same.Transports = []snapshot.TransportMatch{{Name: "t", TLS: &u}}
	b.m.Apply(snap(&same))
	b.once(&same)
	if len(b.dials) != 2 {
		t.Fatal("an equal TLS configuration drained the pool")
	}
}

func TestManager_originalDestination(t *testing.T) {
	b := newBed(t)
	c := makeCluster(snapshot.ClusterProvided)
	c.Type = snapshot.OriginalDst
	dst := netip.MustParseAddrPort("10.9.9.9:99")
	call := b.open(c, func(r *Request) { r.OriginalDst = dst })
	if call.req.Address != dst || b.dials[0].target.Addr != dst {
		t.Fatalf("went to %v", call.req.Address)
	}
	if call := b.open(c); call.err == nil || !call.err.NoHost {
		t.Fatal("a connection without original destination went somewhere")
	}
	call.finish(200)
	b.dials[0].conn.die()
	if n := len(b.m.clusters["c"].dynamic); n != 0 {
		t.Fatalf("%d endpoints kept without connections", n)
	}
}

func TestManager_dns(t *testing.T) {
	b := newBed(t)
	b.names["db.example"] = []netip.Addr{addr(1).Addr(), addr(2).Addr()}
	c := makeCluster(snapshot.RoundRobin)
	c.Type = snapshot.StrictDNS
	c.Endpoints = []*snapshot.Endpoint{{Host: "db.example", Port: 5432, Weight: 1}}
	b.m.Apply(snap(c))
	seen := map[netip.AddrPort]bool{}
	for range 4 {
		call := b.open(c)
		seen[call.req.Address] = true
		call.finish(200)
	}
	if len(seen) != 2 || !seen[netip.AddrPortFrom(addr(1).Addr(), 5432)] {
		t.Fatalf("used %v", seen)
	}
	delete(b.names, "db.example") // the resolver fails: the last answer stays
	b.clock.Advance(6 * time.Second)
	if b.asked < 2 {
		t.Fatal("the name was not looked up again")
	}
	b.once(c)
	bad := makeCluster(snapshot.RoundRobin)
	bad.Name, bad.Type, bad.Endpoints = "bad", snapshot.LogicalDNS, []*snapshot.Endpoint{{Host: "nowhere.example", Port: 1}}
	if call := b.open(bad); call.err == nil || !call.err.DNS || !call.err.NoHost {
		t.Fatalf("%+v", call.err)
	}
}

func TestManager_retryLimits(t *testing.T) {
	b := newBed(t)
	c := makeCluster(snapshot.RoundRobin, 1)
	c.Limits.MaxRetries = 2
	first, second, third := b.m.RetryStart(c), b.m.RetryStart(c), b.m.RetryStart(c)
	if !first || !second || third {
		t.Fatal("the retry limit does not hold")
	}
	b.m.RetryDone(c)
	if !b.m.RetryStart(c) {
		t.Fatal("a finished retry was not given back")
	}
	budget := makeCluster(snapshot.RoundRobin, 1)
	budget.Name = "budget"
	budget.Limits.RetryBudgetPercent, budget.Limits.RetryBudgetMin = 20, 1
	for range 10 {
		b.open(budget)
	}
	first, second, third = b.m.RetryStart(budget), b.m.RetryStart(budget), b.m.RetryStart(budget)
	if !first || !second || third {
		t.Fatal("20 % of 10 requests are 2 retries")
	}
}

func TestManager_tcp(t *testing.T) {
	b := newBed(t)
	c := makeCluster(snapshot.RoundRobin, 1)
	c.Limits.MaxConnections = 1
	var err *Error
	done := 0
	r := &TCPRequest{Cluster: c, Done: func(_ message.Transport, e *Error) { err = e; done++ }}
	b.m.DialTCP(r)
	r2 := &TCPRequest{Cluster: c, Done: func(_ message.Transport, e *Error) { err = e; done++ }}
	b.m.DialTCP(r2)
	if done != 1 || err == nil || err.Code != message.ResetOverflow {
		t.Fatalf("a second connection beyond the limit: %+v", err)
	}
	b.dials[0].tcp(nil, nil)
	b.m.Release(r)
	b.m.DialTCP(r2)
	if len(b.dials) != 2 {
		t.Fatal("a released connection still counts")
	}
	b.m.CancelTCP(r2)
	if !b.dials[1].cancelled || b.m.Active() != 0 {
		t.Fatal("cancel leaves something behind")
	}
}

func TestSpread_overprovisions(t *testing.T) {
	for _, c := range []struct {
		health []int
		want   []uint32
	}{
		{[]int{100, 100}, []uint32{100, 100}},
		{[]int{72, 100}, []uint32{100, 100}}, // 72 × 1.4 ≥ 100
		{[]int{50, 100}, []uint32{70, 100}},
		{[]int{0, 100}, []uint32{0, 100}},
		{[]int{25, 25}, []uint32{50, 100}},
		{[]int{0, 0}, []uint32{0, 0}},
	} {
		if got := spread(c.health); !slices.Equal(got, c.want) {
			t.Errorf("%v: %v, want %v", c.health, got, c.want)
		}
	}
}
