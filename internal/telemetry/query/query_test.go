package query

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lateen.dev/lateen/internal/telemetry/store"
)

var t0 = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func span(self, parent byte, service, name string, kind store.Kind, at, d time.Duration) store.Span {
	trace := make(store.ID, 16)
	trace[0], trace[1] = 0x4f, 0x1c
	s := store.Span{TraceID: trace, SpanID: store.ID{self, 0, 0, 0, 0, 0, 0, 1}, Service: service, Name: name, Kind: kind, Start: t0.Add(at), Duration: d, Attributes: map[string]any{}}
	if parent != 0 {
		s.ParentID = store.ID{parent, 0, 0, 0, 0, 0, 0, 1}
	}
	return s
}

func spans() []store.Span {
	root := span(1, 0, "web", "GET /", store.KindServer, 0, 2*time.Second)
	root.Attributes["http.response.status_code"] = 500
	client := span(2, 1, "web.default", "GET /reviews/*", store.KindClient, 100*time.Millisecond, 1800*time.Millisecond)
	client.Status, client.StatusMessage = store.StatusError, "upstream_response_timeout"
	client.Attributes = map[string]any{"http.response.status_code": 503, "response_flags": "UT", "lateen.origin": "VirtualService/reviews.default#spec.http[0]", "lateen.origin.source": "reviews-vs.yaml:15"}
	try1 := span(3, 2, "web.default", "GET /reviews/*", store.KindClient, 100*time.Millisecond, 900*time.Millisecond)
	try2 := span(4, 2, "web.default", "GET /reviews/*", store.KindClient, time.Second, 900*time.Millisecond)
	try2.Attributes["http.request.resend_count"] = 1
	lost := span(5, 9, "rev\x1b[31mil", "orphan", store.KindInternal, time.Second, time.Microsecond)
	return []store.Span{root, client, try1, try2, lost}
}

func TestRenderTrace_waterfall(t *testing.T) {
	var b bytes.Buffer
	tr := &Trace{TraceID: spans()[0].TraceID, Spans: spans()}
	if err := RenderTrace(&b, tr, 0); err != nil {
		t.Fatal(err)
	}
	_, got, _ := strings.Cut(b.String(), "\n") // the first line has the local time
	want := `web              GET /             ██████████████████████████████     2.00s  500
└ web.default    → GET /reviews/*  ·████████████████████████████·     1.80s  503 UT
      upstream_response_timeout; VirtualService/reviews.default#spec.http[0] (reviews-vs.yaml:15)
  ├ web.default  → GET /reviews/*  ·██████████████···············   900.0ms
  └ web.default  → GET /reviews/*  ···············██████████████·   900.0ms  retry 1
rev?[31mil       orphan            ···············█··············       1µs
      its parent 0900000000000001 was not reported
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if !strings.HasSuffix(strings.SplitN(b.String(), "\n", 2)[0], "2.00s  5 spans, 1 failed") {
		t.Errorf("head line %q", b.String())
	}
}

func TestTree_cycleHidesNothing(t *testing.T) {
	a, b := span(1, 2, "a", "a", 0, 0, 1), span(2, 1, "b", "b", 0, 0, 1)
	c := span(3, 2, "c", "c", 0, 0, 1)
	var out bytes.Buffer
	if err := RenderTrace(&out, &Trace{Spans: []store.Span{a, b, c}}, 0); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "µs"); n < 3 {
		t.Errorf("%d durations in\n%s", n, out.String())
	}
}

func TestClient_throughTheHandlers(t *testing.T) {
	st, err := store.Open(filepath.Join(t.TempDir(), "t.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if err := st.Write(t.Context(), spans(), []store.Log{{Time: t0, TraceID: spans()[0].TraceID, Service: "web", Body: "line"}}); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	for p, h := range Mounts(st, func() time.Time { return t0.Add(time.Minute) }) {
		mux.Handle(p, h)
	}
	srv := httptest.NewServer(mux)
	defer srv.Close()
	u, _ := url.Parse(srv.URL)
	c := &Client{HTTP: &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(u)}}}

	l, err := c.List(t.Context(), store.Filter{Service: "web", Min: time.Second, Error: true, Limit: 5, Since: t0})
	if err != nil || len(l.Traces) != 1 || l.Traces[0].Spans != 5 || l.Traces[0].Name != "GET /" || l.APIVersion != apiVersion {
		t.Fatalf("%+v %v", l, err)
	}
	var b bytes.Buffer
	if err := RenderList(&b, l); err != nil || !strings.Contains(b.String(), "4f1c0000000000000000000000000000") || !strings.Contains(b.String(), "2.00s") {
		t.Errorf("%s %v", b.String(), err)
	}
	got, err := c.Get(t.Context(), "4f1c")
	if err != nil || len(got.Spans) != 5 || len(got.Logs) != 1 || got.Spans[1].ParentID.String() != "0100000000000001" {
		t.Errorf("%+v %v", got, err)
	}
	if _, err = c.Get(t.Context(), "ffff"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("missing trace: %v", err)
	}
	for _, q := range []string{"min=x", "limit=0", "since=yesterday", "error=maybe"} {
		resp, err := http.Get(srv.URL + "/v1/traces?" + q)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 400 {
			t.Errorf("%s: %d", q, resp.StatusCode)
		}
	}
	if l, err := c.List(t.Context(), store.Filter{Service: "nobody"}); err != nil || len(l.Traces) != 0 {
		t.Errorf("%v %v", l, err)
	}
}
