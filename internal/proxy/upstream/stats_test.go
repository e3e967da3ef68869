package upstream

import (
	"testing"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// wantStats compares the counters of cluster "c" that are not zero.
func (m *Manager) wantStats(t *testing.T, when string, want map[Stat]uint64) {
	t.Helper()
	got := m.ClusterStats()["c"]
	if got == nil {
		t.Fatalf("%s: no statistics", when)
	}
	for i, v := range got.Counts {
		if s := Stat(i); v != want[s] {
			t.Errorf("%s: %s is %d, want %d", when, s, v, want[s])
		}
	}
}

func TestStats_countAsEnvoyDoes(t *testing.T) {
	b := newBed(t)
	m := b.m
	b.auto = false
	cluster := makeCluster(snapshot.RoundRobin, 1)
	m.Apply(snap(cluster))

	c := b.open(cluster)
	m.wantStats(t, "waiting", map[Stat]uint64{
		CxTotal: 1, CxActive: 1, RqPendingTotal: 1, RqPendingActive: 1,
		MembershipChange: 1, MembershipTotal: 1, MembershipHealthy: 1,
	})
	b.dials[0].succeed()
	m.wantStats(t, "open", map[Stat]uint64{
		CxTotal: 1, CxHTTP1Total: 1, CxActive: 1, RqPendingTotal: 1, RqTotal: 1, RqActive: 1,
		MembershipChange: 1, MembershipTotal: 1, MembershipHealthy: 1,
	})
	c.finish(503)
	m.Completed(&c.req, Summary{Status: 200, Retries: 2, PerTryTimeouts: 1})
	m.Completed(&c.req, Summary{Status: 503, Retries: 1, RetryLimit: true, Timeout: true})
	want := map[Stat]uint64{
		CxTotal: 1, CxHTTP1Total: 1, CxActive: 1, RqPendingTotal: 1, RqTotal: 1, RqCompleted: 2, Rq2xx: 1, Rq5xx: 1,
		RqRetry: 3, RqRetrySuccess: 1, RqRetryLimitExceeded: 1, RqTimeout: 1, RqPerTryTimeout: 1,
		MembershipChange: 1, MembershipTotal: 1, MembershipHealthy: 1,
	}
	m.wantStats(t, "completed", want)
	if d := m.Dump()[0]; d.CxTotal != 1 || d.RqTotal != 1 || d.RqError != 1 || d.RqSuccess != 0 {
		t.Errorf("endpoint %+v", d)
	}
	m.ResetStats()
	m.wantStats(t, "reset", map[Stat]uint64{CxActive: 1, MembershipTotal: 1, MembershipHealthy: 1})
}

func TestStats_failures(t *testing.T) {
	b := newBed(t)
	m := b.m
	b.auto = false
	cluster := makeCluster(snapshot.RoundRobin, 1)
	cluster.Limits.MaxPending = 1
	m.Apply(snap(cluster))
	b.open(cluster)
	b.open(cluster) // over the limit
	b.dials[0].fail(message.ResetConnectTimeout)
	m.wantStats(t, "failed", map[Stat]uint64{
		CxTotal: 1, CxConnectFail: 1, CxConnectTimeout: 1, CxDestroy: 1,
		RqPendingTotal: 1, RqPendingOverflow: 1, RqPendingFailureEject: 1,
		MembershipChange: 1, MembershipTotal: 1, MembershipHealthy: 1,
	})
	c := b.open(cluster)
	b.dials[1].succeed()
	if !c.open {
		t.Fatal("not open")
	}
	m.Finish(&c.req, Outcome{Reset: message.ResetTermination})
	got := m.ClusterStats()["c"]
	if got.Counts[CxDestroyRemoteWithActiveRq] != 1 || got.Counts[RqRxReset] != 0 {
		t.Errorf("a connection closed under a request: %v", got.Counts)
	}
}

func TestStats_addUp(t *testing.T) {
	a := &Stats{Statuses: []StatusCount{{200, 1}}}
	b := &Stats{Statuses: []StatusCount{{200, 2}, {503, 1}}}
	a.Counts[RqTotal], b.Counts[RqTotal] = 1, 3
	a.Counts[MembershipTotal], b.Counts[MembershipTotal] = 2, 2
	a.Add(b)
	if a.Counts[RqTotal] != 4 || a.Counts[MembershipTotal] != 2 || a.Statuses[0].Count != 3 || len(a.Statuses) != 2 {
		t.Errorf("%+v", a)
	}
	for i := range statCount {
		if i.String() == "" {
			t.Errorf("statistic %d has no name", i)
		}
	}
}
