package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

var t0 = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func open(t *testing.T, o Options) *Store {
	t.Helper()
	if o.Now == nil {
		o.Now = func() time.Time { return t0.Add(time.Minute) }
	}
	s, err := Open(filepath.Join(t.TempDir(), "a b?c", "telemetry.db"), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// id makes a trace or span id of n bytes.
func id(n int, v byte) ID {
	b := make(ID, n)
	b[0], b[n-1] = v, v
	return b
}

func span(trace, self, parent byte, service string, at, d time.Duration) Span {
	s := Span{TraceID: id(16, trace), SpanID: id(8, self), Service: service, Name: "GET /", Kind: KindServer, Start: t0.Add(at), Duration: d, Attributes: map[string]any{"n": "v"}}
	if parent != 0 {
		s.ParentID = id(8, parent)
	}
	return s
}

func write(t *testing.T, s *Store, spans []Span, logs ...Log) {
	t.Helper()
	if err := s.Write(t.Context(), spans, logs); err != nil {
		t.Fatal(err)
	}
}

func TestStore_listsAndFilters(t *testing.T) {
	s := open(t, Options{})
	failed := span(2, 3, 2, "order-service.default", 11*time.Millisecond, time.Millisecond)
	failed.Status = StatusError
	write(t, s, []Span{
		span(1, 1, 9, "frontend", 0, 30*time.Millisecond), // its parent never came
		span(1, 2, 1, "user-service", time.Millisecond, 5*time.Millisecond),
		span(2, 2, 0, "gateway", 10*time.Millisecond, 2*time.Millisecond), failed,
	})
	for _, c := range []struct {
		f    Filter
		want string
	}{
		{Filter{}, "gateway/2/1 frontend/2/0"},
		{Filter{Limit: 1}, "gateway/2/1"},
		{Filter{Error: true}, "gateway/2/1"},
		{Filter{Min: 10 * time.Millisecond}, "frontend/2/0"},
		{Filter{Service: "user-service"}, "frontend/2/0"},
		{Filter{Service: "order-service"}, "gateway/2/1"},
		{Filter{Service: "order_service"}, ""},
		{Filter{Since: t0.Add(5 * time.Millisecond)}, "gateway/2/1"},
	} {
		list, err := s.Traces(t.Context(), c.f)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, x := range list {
			got = append(got, fmt.Sprintf("%s/%d/%d", x.Service, x.Spans, x.Errors))
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%+v: %v, want %s", c.f, got, c.want)
		}
	}
}

func TestStore_spanIsKeptOnce(t *testing.T) {
	s := open(t, Options{})
	a := span(1, 1, 0, "frontend", 0, time.Second)
	write(t, s, []Span{a})
	write(t, s, []Span{a, a}, Log{Time: t0, TraceID: a.TraceID, Body: "line", Service: "frontend"})
	got, err := s.Trace(t.Context(), "01")
	if err != nil || len(got) != 1 || got[0].Duration != time.Second || got[0].Attributes["n"] != "v" || !got[0].Start.Equal(t0) {
		t.Errorf("%v %v", got, err)
	}
	if logs, err := s.Logs(t.Context(), a.TraceID); err != nil || len(logs) != 1 || logs[0].Body != "line" {
		t.Errorf("%v %v", logs, err)
	}
}

func TestTrace_shortIDs(t *testing.T) {
	s := open(t, Options{})
	write(t, s, []Span{span(0x12, 1, 0, "a", 0, 1), span(0x13, 1, 0, "a", 0, 1)})
	for prefix, want := range map[string]error{"12": nil, "120": nil, "1": ErrAmbiguous, "2": ErrNotFound, "zz": ErrNotFound, id(16, 0x13).String(): nil, "%": ErrNotFound} {
		if _, err := s.Trace(t.Context(), prefix); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", prefix, err, want)
		}
	}
}

func TestPrune_byAgeAndBytes(t *testing.T) {
	s := open(t, Options{MaxAge: time.Hour, MaxBytes: 300 << 10})
	write(t, s, []Span{span(1, 1, 0, "old", -2*time.Hour, 1)})
	if err := s.Prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Trace(t.Context(), "01"); !errors.Is(err, ErrNotFound) {
		t.Errorf("aged span: %v", err)
	}
	for i := range 20 {
		var spans []Span
		for j := range 50 {
			x := span(byte(i), byte(j), 0, "s", time.Duration(i)*time.Second, 1)
			x.TraceID[5], x.Attributes = byte(j), map[string]any{"big": strings.Repeat("x", 1000)}
			spans = append(spans, x)
		}
		write(t, s, spans)
	}
	if err := s.Prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	n, err := s.Bytes(t.Context())
	if err != nil || n > 300<<10 {
		t.Errorf("%d bytes, %v", n, err)
	}
	list, err := s.Traces(t.Context(), Filter{Limit: 1})
	if err != nil || len(list) != 1 || !list[0].Start.Equal(t0.Add(19*time.Second)) {
		t.Errorf("the newest must stay: %v %v", list, err)
	}
}

func TestStore_concurrentAndReopened(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.db")
	s, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := s.Write(context.Background(), []Span{span(byte(i+1), 1, 0, "s", 0, 1)}, nil); err != nil {
				t.Error(err)
			}
			if _, err := s.Traces(context.Background(), Filter{}); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(path, Options{}); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if list, err := s.Traces(t.Context(), Filter{}); err != nil || len(list) != 8 {
		t.Errorf("%d traces after reopening, %v", len(list), err)
	}
	if _, err := s.write.Exec("PRAGMA user_version = 99"); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Options{}); err == nil || !strings.Contains(err.Error(), "layout version 99") {
		t.Errorf("foreign layout: %v", err)
	}
}

// BenchmarkWrite is the cost of keeping one span of a proxy, in batches as the
// hub makes them.
func BenchmarkWrite(b *testing.B) {
	s, err := Open(filepath.Join(b.TempDir(), "telemetry.db"), Options{Now: func() time.Time { return t0.Add(time.Minute) }})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	attrs := map[string]any{}
	for i := range 30 {
		attrs[fmt.Sprintf("istio.attribute_%02d", i)] = "outbound|8080||user-service"
	}
	attrs["http.response.status_code"] = int64(200)
	r := rand.New(rand.NewPCG(1, 2))
	const batch = 512
	spans := make([]Span, batch)
	b.ResetTimer()
	for i := 0; i < b.N; i += batch {
		for j := range spans {
			spans[j] = span(1, 1, 1, "frontend.default", time.Duration(i+j)*time.Microsecond, time.Millisecond)
			spans[j].TraceID = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, r.Uint64()), r.Uint64())
			spans[j].SpanID = binary.BigEndian.AppendUint64(nil, r.Uint64())
			spans[j].Attributes = attrs
		}
		if err := s.Write(b.Context(), spans, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func TestOpen_convertsTheFirstLayout(t *testing.T) {
	name := filepath.Join(t.TempDir(), "telemetry.db")
	old, err := connect(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = old.Exec(`CREATE TABLE spans (
  trace_id BLOB NOT NULL, span_id BLOB NOT NULL, parent_id BLOB,
  service TEXT NOT NULL, name TEXT NOT NULL, kind INTEGER NOT NULL,
  start INTEGER NOT NULL, duration INTEGER NOT NULL,
  status INTEGER NOT NULL, status_message TEXT NOT NULL, scope TEXT NOT NULL, attributes TEXT NOT NULL,
  PRIMARY KEY (trace_id, span_id)
) WITHOUT ROWID;
CREATE INDEX spans_start ON spans (start);
CREATE TABLE logs (
  time INTEGER NOT NULL, trace_id BLOB, span_id BLOB, service TEXT NOT NULL,
  severity TEXT NOT NULL, body TEXT NOT NULL, attributes TEXT NOT NULL
);
INSERT INTO spans VALUES (x'12000000000000000000000000000012', x'0100000000000001', NULL, 'old', 'GET /', 2, 1, 5, 0, '', '', '{"n":"v"}');
PRAGMA user_version = 1`)
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing to convert
		s, err := Open(name, Options{Now: func() time.Time { return t0 }})
		if err != nil {
			t.Fatal(err)
		}
		write(t, s, []Span{span(0x12, 1, 0, "again", 0, 1), span(0x12, 2, 1, "new", 0, 1)})
		got, err := s.Trace(t.Context(), "12")
		if err != nil || len(got) != 2 || got[0].Service != "old" || got[0].Attributes["n"] != "v" {
			t.Errorf("%+v %v", got, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
