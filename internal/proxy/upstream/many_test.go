package upstream

import (
	"testing"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

var (
	h2Conn    = message.Conn{Protocol: message.HTTP2}
	trunkConn = message.Conn{Protocol: message.HTTP11, Trunk: true}
)

// manual makes dials wait for the test.
func manual(t *testing.T) *bed {
	b := newBed(t)
	b.auto = false
	return b
}

func h2Cluster(edit ...func(*snapshot.Cluster)) *snapshot.Cluster {
	c := makeCluster(snapshot.RoundRobin, 1)
	c.HTTP = snapshot.UpstreamHTTP2
	for _, e := range edit {
		e(c)
	}
	return c
}

// trunkCluster has a peer that takes trunks.
func trunkCluster(edit ...func(*snapshot.Cluster)) *snapshot.Cluster {
	c := makeCluster(snapshot.RoundRobin, 1)
	c.Transports = []snapshot.TransportMatch{{TLS: &snapshot.UpstreamTLS{
		Mesh: true, SNI: "outbound_.80_._.c", ALPN: []string{message.ALPNTrunk, "istio"},
	}}}
	for _, e := range edit {
		e(c)
	}
	return c
}

func (b *bed) openMany(c *snapshot.Cluster, n int) []*call {
	var all []*call
	for range n {
		all = append(all, b.open(c))
	}
	return all
}

func opened(calls []*call) (n int) {
	for _, c := range calls {
		if c.open {
			n++
		}
	}
	return n
}

func TestManyExchangesShareOneConnection(t *testing.T) {
	b := manual(t)
	c := h2Cluster()
	calls := b.openMany(c, 5)
	if len(b.dials) != 1 || b.dials[0].target.Speak != snapshot.SpeakHTTP2 {
		t.Fatalf("%d dials, want one for HTTP/2", len(b.dials))
	}
	conn := b.dials[0].succeedWith(100, h2Conn)
	calls = append(calls, b.openMany(c, 5)...)
	if opened(calls) != 10 || conn.active != 10 || len(b.dials) != 1 {
		t.Fatalf("%d open, %d on the connection, %d dials", opened(calls), conn.active, len(b.dials))
	}
}

func TestAnotherConnectionAtTheCap(t *testing.T) {
	for name, c := range map[string]*snapshot.Cluster{
		"the peer's": h2Cluster(),
		"ours":       h2Cluster(func(c *snapshot.Cluster) { c.H2.MaxConcurrentStreams = 3 }),
	} {
		b := manual(t)
		b.open(c)
		most := 3
		if c.H2.MaxConcurrentStreams > 0 {
			most = 100
		}
		first := b.dials[0].succeedWith(most, h2Conn)
		calls := b.openMany(c, 5)
		if len(b.dials) != 2 || first.active != 3 {
			t.Fatalf("%s: %d dials, %d on the first", name, len(b.dials), first.active)
		}
		second := b.dials[1].succeedWith(most, h2Conn)
		if second.active != 3 || opened(calls) != 5 {
			t.Errorf("%s: %d on the second, %d of 5 open", name, second.active, opened(calls))
		}
	}
}

func TestRefusingConnectionIsLeftForANewOne(t *testing.T) {
	b := manual(t)
	c := h2Cluster()
	old := b.open(c)
	first := b.dials[0].succeedWith(100, h2Conn)
	first.draining = true // GOAWAY: nobody is told, there is no room any more
	next := b.open(c)
	if next.open || len(b.dials) != 2 {
		t.Fatalf("open %v, %d dials", next.open, len(b.dials))
	}
	b.dials[1].succeedWith(100, h2Conn)
	if !next.open || next.req.conn.codec == old.req.conn.codec {
		t.Fatal("the new exchange did not go to a new connection")
	}
	old.finish(200)
	if !first.closed {
		t.Error("the old connection lives on")
	}
}

func TestHTTP2ConnectionWearsOut(t *testing.T) {
	b := manual(t)
	c := h2Cluster(func(c *snapshot.Cluster) { c.MaxRequestsPerConn = 2 })
	calls := b.openMany(c, 3)
	first := b.dials[0].succeedWith(100, h2Conn)
	if first.used != 2 || opened(calls) != 2 || len(b.dials) != 2 {
		t.Fatalf("used %d, open %d, dials %d", first.used, opened(calls), len(b.dials))
	}
	calls[0].finish(200)
	calls[1].finish(200)
	if !first.closed {
		t.Error("a worn connection was kept")
	}
}

func TestTrunkCountsExchangesAsConnections(t *testing.T) {
	b := manual(t)
	c := trunkCluster(func(c *snapshot.Cluster) {
		c.Limits.MaxConnections, c.Limits.MaxPending, c.MaxRequestsPerConn = 1, 1, 1
	})
	one := b.open(c)
	conn := b.dials[0].succeedWith(100, trunkConn)
	two, three := b.open(c), b.open(c)
	if !one.open || two.open || two.err != nil || three.err == nil || three.err.Code != message.ResetOverflow {
		t.Fatalf("one %v, two %v %v, three %v", one.open, two.open, two.err, three.err)
	}
	if len(b.dials) != 1 {
		t.Fatalf("%d dials for requests that a limit holds back", len(b.dials))
	}
	one.finish(200)
	if !two.open {
		t.Fatal("the waiting request was not served")
	}
	two.finish(200)
	for range 3 {
		x := b.open(c)
		x.finish(200)
	}
	if conn.closed || len(b.dials) != 1 {
		t.Errorf("closed %v, %d dials: settings for connections tore the trunk down", conn.closed, len(b.dials))
	}
	if n := b.shared.cluster(c).connections.Load(); n != 0 {
		t.Errorf("%d connections still counted", n)
	}
}

func TestPeerWithoutTrunkGetsAConnectionEach(t *testing.T) {
	b := manual(t)
	c := trunkCluster()
	calls := b.openMany(c, 3)
	if len(b.dials) != 1 {
		t.Fatalf("%d dials before it is known what the peer takes", len(b.dials))
	}
	b.dials[0].succeed()
	if len(b.dials) != 3 || opened(calls) != 1 {
		t.Fatalf("%d dials, %d open", len(b.dials), opened(calls))
	}
	b.dials[1].succeed()
	b.dials[2].succeed()
	if opened(calls) != 3 {
		t.Errorf("%d of 3 open", opened(calls))
	}
}

func TestClusterThatFollowsTheClient(t *testing.T) {
	b := manual(t)
	c := makeCluster(snapshot.RoundRobin, 1)
	c.HTTP = snapshot.UpstreamAsDownstream
	b.open(c, func(r *Request) { r.Downstream = message.HTTP11 })
	b.open(c, func(r *Request) { r.Downstream = message.HTTP2 })
	if len(b.dials) != 2 || b.dials[0].target.Speak != snapshot.SpeakHTTP1 || b.dials[1].target.Speak != snapshot.SpeakHTTP2 {
		t.Fatalf("%d dials", len(b.dials))
	}
}

func TestFailedDialFailsAllThatWaitForIt(t *testing.T) {
	b := manual(t)
	calls := b.openMany(h2Cluster(), 4)
	b.dials[0].fail(message.ResetConnectFailure)
	for i, c := range calls {
		if c.err == nil {
			t.Errorf("request %d still waits", i)
		}
	}
	if len(b.dials) != 1 {
		t.Errorf("%d dials", len(b.dials))
	}
}
