package stream

import (
	"testing"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/record"
	"lateen.dev/lateen/internal/proxy/snapshot"
	"lateen.dev/lateen/internal/proxy/upstream"
)

// quiet is an upstream and a client that keep nothing, so that only the request
// path itself can allocate.
type quiet struct {
	conn message.Conn
	resp message.Head
	in   message.Receiver
	done int
}

func (q *quiet) Open(r *upstream.Request) {
	q.in = r.Receiver
	r.Waiter.OnOpen(q, false)
}
func (q *quiet) Cancel(*upstream.Request)                      {}
func (q *quiet) Finish(*upstream.Request, upstream.Outcome)    { q.done++ }
func (q *quiet) RetryStart(*snapshot.Cluster) bool             { return true }
func (q *quiet) RetryDone(*snapshot.Cluster)                   {}
func (q *quiet) Completed(*upstream.Request, upstream.Summary) {}
func (q *quiet) Done(*record.Record)                           {}
func (q *quiet) SendHead(*message.Head, bool)                  {}
func (q *quiet) SendInformational(*message.Head)               {}
func (q *quiet) SendData([]byte, bool)                         {}
func (q *quiet) SendTrailers(*message.Head)                    {}
func (q *quiet) Reset(message.ResetCode)                       {}
func (q *quiet) Pause(bool)                                    {}
func (q *quiet) Buffered() int                                 { return 0 }
func (q *quiet) OverHigh() bool                                { return false }
func (q *quiet) Conn() *message.Conn                           { return &q.conn }

func TestExchange_steadyRequestAllocatesNothing(t *testing.T) {
	b := newBed(t, route(func(r *snapshot.Route) {
		r.Timeout = 15e9
		r.Retry = &snapshot.RetryPolicy{On: snapshot.RetryOnConnectFailure, Retries: 2, PreviousHosts: true}
	}))
	q := &quiet{}
	b.env.Upstream, b.env.Recorder = q, q
	b.site.Manager.Tracing = &snapshot.Tracing{Random: 1, Overall: 100, Client: 100, ClientSpan: true}
	b.site.Manager.Filters = []snapshot.HTTPFilter{{MetadataExchange: true}, {Fault: &snapshot.Fault{AbortGRPCStatus: -1}}, {CORS: &snapshot.CORS{}}}
	model := request("POST /ratings/7?x=1", "user-agent", "test", "accept", "*/*")
	var head message.Head
	body := make([]byte, 1024)
	one := func() {
		head.CopyFrom(model)
		x := b.env.New(b.site, q)
		x.OnHead(&head, false)
		x.OnData(body, true)
		q.resp.Reset()
		q.resp.SetStatus(200)
		q.resp.AddString(message.ContentType, "text/plain")
		in := q.in
		in.OnHead(&q.resp, false)
		in.OnData(body, true)
	}
	one()
	if n := testing.AllocsPerRun(200, one); n != 0 {
		t.Fatalf("%.1f allocations per request, want 0", n)
	}
	if q.done < 200 {
		t.Fatalf("only %d exchanges finished", q.done)
	}
}
