// Package store keeps the spans and logs of the local mesh in one SQLite file,
// so that the command line and the dashboard can show traces. It is written by
// the hub and read by query; only the control process opens it.
//
// It promises that a span (trace id, span id) is kept once however often it
// arrives, that age and size stay within the limits given, and that a batch is
// written whole or not at all. It is safe for concurrent use. It does not
// sample, aggregate or interpret attributes.
package store

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	_ "modernc.org/sqlite" // the "sqlite" driver
)

// ID renders as lower-case hex, in JSON too.
type ID []byte

// String returns lower-case hex.
func (id ID) String() string { return hex.EncodeToString(id) }

// MarshalText writes hex.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads hex.
func (id *ID) UnmarshalText(b []byte) error {
	v, err := hex.DecodeString(string(b))
	if err != nil {
		return fmt.Errorf("id %q: %w", b, err)
	}
	*id = v
	return nil
}

// Kind is a span kind with OTLP's numbers.
type Kind int

// The span kinds.
const (
	KindUnspecified Kind = iota
	KindInternal
	KindServer
	KindClient
	KindProducer
	KindConsumer
)

// String returns the kind as people read it.
func (k Kind) String() string {
	if k < 0 || k > KindConsumer {
		k = KindUnspecified
	}
	return [...]string{"", "internal", "server", "client", "producer", "consumer"}[k]
}

// Status is a span status with OTLP's numbers.
type Status int

// The span statuses.
const (
	StatusUnset Status = iota
	StatusOK
	StatusError
)

// Span is one span as stored.
type Span struct {
	TraceID       ID             `json:"traceId"`
	SpanID        ID             `json:"spanId"`
	ParentID      ID             `json:"parentId,omitempty"`
	Service       string         `json:"service"`
	Name          string         `json:"name"`
	Kind          Kind           `json:"kind"`
	Start         time.Time      `json:"start"`
	Duration      time.Duration  `json:"duration"` // ns
	Status        Status         `json:"status"`
	StatusMessage string         `json:"statusMessage,omitempty"`
	Scope         string         `json:"scope,omitempty"`
	Attributes    map[string]any `json:"attributes,omitempty"`
}

// Log is one log record as stored.
type Log struct {
	Time       time.Time      `json:"time"`
	TraceID    ID             `json:"traceId,omitempty"`
	SpanID     ID             `json:"spanId,omitempty"`
	Service    string         `json:"service"`
	Severity   string         `json:"severity,omitempty"`
	Body       string         `json:"body"`
	Attributes map[string]any `json:"attributes,omitempty"`
}

// Options are the limits of a store.
type Options struct {
	// MaxAge is how long data is kept, 0 means 24 h. MaxBytes bounds what the
	// data occupies, 0 means 2 GiB.
	MaxAge   time.Duration
	MaxBytes int64
	// Now is the clock, nil for the system's.
	Now func() time.Time
}

// Store is an open store.
type Store struct {
	opts  Options
	write *sql.DB // one connection: SQLite has one writer
	read  *sql.DB

	mu     sync.Mutex
	writes int
}

// layout is the version of the schema. Layout 1, whose spans were ordered by
// their ids, is converted; another one is refused.
const layout = 2

// Spans are appended in the order they come and found by a narrow index: ids are
// random, and rows of a kilobyte kept in their order cost every batch hundreds of
// half-filled pages (BenchmarkWrite: 169 µs a span instead of 45).
const schema = `
CREATE TABLE IF NOT EXISTS spans (
  trace_id BLOB NOT NULL, span_id BLOB NOT NULL, parent_id BLOB,
  service TEXT NOT NULL, name TEXT NOT NULL, kind INTEGER NOT NULL,
  start INTEGER NOT NULL, duration INTEGER NOT NULL,
  status INTEGER NOT NULL, status_message TEXT NOT NULL, scope TEXT NOT NULL, attributes TEXT NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS spans_id ON spans (trace_id, span_id);
CREATE INDEX IF NOT EXISTS spans_start ON spans (start);
CREATE TABLE IF NOT EXISTS logs (
  time INTEGER NOT NULL, trace_id BLOB, span_id BLOB, service TEXT NOT NULL,
  severity TEXT NOT NULL, body TEXT NOT NULL, attributes TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS logs_time ON logs (time);
CREATE INDEX IF NOT EXISTS logs_trace ON logs (trace_id) WHERE trace_id IS NOT NULL;
`

// Open opens or creates the store in the file at path.
func Open(path string, o Options) (*Store, error) {
	if o.MaxAge <= 0 {
		o.MaxAge = 24 * time.Hour
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = 2 << 30
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := &Store{opts: o}
	var err error
	pragmas := []string{"busy_timeout(5000)", "auto_vacuum(incremental)", "journal_mode(wal)", "synchronous(normal)", "cache_size(-8000)"}
	if s.write, err = connect(path, pragmas); err != nil {
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	s.write.SetMaxOpenConns(1)
	if err := s.prepare(); err != nil {
		s.write.Close()
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	if s.read, err = connect(path, []string{"busy_timeout(5000)", "query_only(1)"}); err != nil {
		s.write.Close()
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	s.read.SetMaxOpenConns(4)
	return s, nil
}

func connect(path string, pragmas []string) (*sql.DB, error) {
	q := url.Values{"_pragma": pragmas}
	return sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?"+q.Encode())
}

func (s *Store) prepare() error {
	var version int
	if err := s.write.QueryRow("PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	if version < 0 || version > layout {
		return fmt.Errorf("layout version %d, this program knows %d: move the file away to start a new one", version, layout)
	}
	steps := schema
	if version == 1 {
		steps = `ALTER TABLE spans RENAME TO spans_1; DROP INDEX spans_start;` + schema +
			`INSERT INTO spans SELECT * FROM spans_1; DROP TABLE spans_1;`
	}
	tx, err := s.write.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it does nothing
	if _, err := tx.Exec(steps + fmt.Sprintf("PRAGMA user_version = %d", layout)); err != nil {
		return err
	}
	return tx.Commit()
}

// Close closes the store.
func (s *Store) Close() error { return errors.Join(s.read.Close(), s.write.Close()) }

// pruneEvery is the number of batches between two looks at the limits.
const pruneEvery = 64

// Write adds spans and logs in one transaction. A span that is there already
// is left as it is.
func (s *Store) Write(ctx context.Context, spans []Span, logs []Log) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("write telemetry: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it does nothing
	if err := insertSpans(ctx, tx, spans); err != nil {
		return fmt.Errorf("write spans: %w", err)
	}
	if err := insertLogs(ctx, tx, logs); err != nil {
		return fmt.Errorf("write logs: %w", err)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("write telemetry: %w", err)
	}
	s.mu.Lock()
	s.writes++
	due := s.writes%pruneEvery == 0
	s.mu.Unlock()
	if due {
		return s.Prune(ctx)
	}
	return nil
}

func insertSpans(ctx context.Context, tx *sql.Tx, spans []Span) error {
	if len(spans) == 0 {
		return nil
	}
	st, err := tx.PrepareContext(ctx, `INSERT OR IGNORE INTO spans VALUES (?,?,?,?,?,?,?,?,?,?,?,?)`)
	if err != nil {
		return err
	}
	defer st.Close()
	var attrs []byte
	for i := range spans {
		x := &spans[i]
		if attrs, err = appendAttributes(attrs[:0], x.Attributes); err != nil {
			return fmt.Errorf("attributes of span %s: %w", x.SpanID, err)
		}
		_, err = st.ExecContext(
			ctx, []byte(x.TraceID), []byte(x.SpanID), blob(x.ParentID), x.Service, x.Name, int(x.Kind), x.Start.UnixNano(), int64(x.Duration),
			int(x.Status), x.StatusMessage, x.Scope, string(attrs),
		)
		if err != nil {
			return err
		}
	}
	return nil
}

func insertLogs(ctx context.Context, tx *sql.Tx, logs []Log) error {
	if len(logs) == 0 {
		return nil
	}
	st, err := tx.PrepareContext(ctx, `INSERT INTO logs VALUES (?,?,?,?,?,?,?)`)
	if err != nil {
		return err
	}
	defer st.Close()
	var attrs []byte
	for i := range logs {
		x := &logs[i]
		if attrs, err = appendAttributes(attrs[:0], x.Attributes); err != nil {
			return fmt.Errorf("attributes of a log record: %w", err)
		}
		if _, err := st.ExecContext(ctx, x.Time.UnixNano(), blob(x.TraceID), blob(x.SpanID), x.Service, x.Severity, x.Body, string(attrs)); err != nil {
			return err
		}
	}
	return nil
}

func blob(id ID) any {
	if len(id) == 0 {
		return nil
	}
	return []byte(id)
}

// Prune removes what is older than MaxAge, then the oldest until the data
// occupies less than MaxBytes.
func (s *Store) Prune(ctx context.Context) error {
	cut := s.opts.Now().Add(-s.opts.MaxAge).UnixNano()
	for range 64 {
		if err := s.deleteBefore(ctx, cut); err != nil {
			return fmt.Errorf("prune store: %w", err)
		}
		used, err := s.Bytes(ctx)
		if err != nil {
			return fmt.Errorf("prune store: %w", err)
		}
		if used <= s.opts.MaxBytes {
			break
		}
		// A tenth of the time that is left, at least one entry.
		var first, last sql.NullInt64
		err = s.write.QueryRowContext(ctx, `SELECT min(t), max(t) FROM (
			SELECT min(start) AS t FROM spans UNION ALL SELECT max(start) FROM spans
			UNION ALL SELECT min(time) FROM logs UNION ALL SELECT max(time) FROM logs)`).Scan(&first, &last)
		if err != nil {
			return fmt.Errorf("prune store: %w", err)
		}
		if !first.Valid {
			break // nothing left to delete
		}
		cut = first.Int64 + (last.Int64-first.Int64)/10 + 1
	}
	_, err := s.write.ExecContext(ctx, "PRAGMA incremental_vacuum(2000)")
	return err
}

func (s *Store) deleteBefore(ctx context.Context, cut int64) error {
	if _, err := s.write.ExecContext(ctx, "DELETE FROM spans WHERE start < ?", cut); err != nil {
		return err
	}
	_, err := s.write.ExecContext(ctx, "DELETE FROM logs WHERE time < ?", cut)
	return err
}

// Bytes is the space that data occupies, free pages left out.
func (s *Store) Bytes(ctx context.Context) (int64, error) {
	var pages, free, size int64
	for name, v := range map[string]*int64{"page_count": &pages, "freelist_count": &free, "page_size": &size} {
		if err := s.write.QueryRowContext(ctx, "PRAGMA "+name).Scan(v); err != nil {
			return 0, err
		}
	}
	return (pages - free) * size, nil
}

// Filter selects traces. Zero fields select all.
type Filter struct {
	Service string // any span's service; "name" also finds "name.namespace"
	Min     time.Duration
	Error   bool // only traces with a failed span
	Since   time.Time
	Limit   int // 0 means 20
}

// Summary describes one trace.
type Summary struct {
	TraceID  ID            `json:"traceId"`
	Service  string        `json:"service"` // of the root, else of the earliest span
	Name     string        `json:"name"`
	Start    time.Time     `json:"start"`
	Duration time.Duration `json:"duration"`
	Spans    int           `json:"spans"`
	Errors   int           `json:"errors"`
	Services []string      `json:"services"`
}

// Traces lists traces, newest first.
func (s *Store) Traces(ctx context.Context, f Filter) ([]Summary, error) {
	if f.Limit <= 0 {
		f.Limit = 20
	}
	where, args := []string{"1"}, []any{}
	if !f.Since.IsZero() {
		where, args = append(where, "start >= ?"), append(args, f.Since.UnixNano())
	}
	having := []string{"1"}
	if f.Service != "" {
		having = append(having, "sum(service = ? OR service LIKE ? ESCAPE '\\') > 0")
		args = append(args, f.Service, like(f.Service)+".%")
	}
	if f.Min > 0 {
		having, args = append(having, "max(start + duration) - min(start) >= ?"), append(args, int64(f.Min))
	}
	if f.Error {
		having = append(having, "sum(status = 2) > 0")
	}
	rows, err := s.read.QueryContext(ctx, `SELECT trace_id, min(start), max(start + duration), count(*), sum(status = 2), group_concat(DISTINCT service)
		FROM spans WHERE `+strings.Join(where, " AND ")+` GROUP BY trace_id HAVING `+strings.Join(having, " AND ")+
		` ORDER BY 2 DESC LIMIT ?`, append(args, f.Limit)...)
	if err != nil {
		return nil, fmt.Errorf("list traces: %w", err)
	}
	defer rows.Close()
	var out []Summary
	for rows.Next() {
		var x Summary
		var start, end int64
		var services string
		if err := rows.Scan((*[]byte)(&x.TraceID), &start, &end, &x.Spans, &x.Errors, &services); err != nil {
			return nil, fmt.Errorf("list traces: %w", err)
		}
		x.Start, x.Duration = time.Unix(0, start).UTC(), time.Duration(end-start)
		x.Services = strings.Split(services, ",")
		out = append(out, x)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list traces: %w", err)
	}
	for i := range out {
		// A root has no parent, or one that never arrived; the earliest wins.
		err := s.read.QueryRowContext(ctx, `SELECT service, name FROM spans a WHERE trace_id = ? ORDER BY
			(parent_id IS NOT NULL AND EXISTS (SELECT 1 FROM spans b WHERE b.trace_id = a.trace_id AND b.span_id = a.parent_id)), start LIMIT 1`,
			[]byte(out[i].TraceID)).Scan(&out[i].Service, &out[i].Name)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return nil, fmt.Errorf("list traces: %w", err)
		}
	}
	return out, nil
}

func like(s string) string {
	return strings.NewReplacer(`\`, `\\`, "%", `\%`, "_", `\_`).Replace(s)
}

// ErrNotFound says that no trace has the id; ErrAmbiguous that several begin
// with it.
var (
	ErrNotFound  = errors.New("no such trace")
	ErrAmbiguous = errors.New("several traces begin with this id")
)

// Trace returns the spans of one trace by start time. id is hex and may be
// shortened as long as it is unique.
func (s *Store) Trace(ctx context.Context, id string) ([]Span, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT DISTINCT trace_id FROM spans WHERE trace_id >= ? AND hex(trace_id) LIKE ? ORDER BY trace_id LIMIT 2`, idFloor(id), strings.ToUpper(like(id))+"%")
	if err != nil {
		return nil, fmt.Errorf("find trace %s: %w", id, err)
	}
	var ids []ID
	for rows.Next() {
		var x ID
		if err := rows.Scan((*[]byte)(&x)); err != nil {
			rows.Close()
			return nil, fmt.Errorf("find trace %s: %w", id, err)
		}
		ids = append(ids, x)
	}
	rows.Close()
	switch {
	case len(ids) == 0:
		return nil, fmt.Errorf("find trace %s: %w", id, ErrNotFound)
	case len(ids) > 1:
		return nil, fmt.Errorf("find trace %s: %w", id, ErrAmbiguous)
	}
	return s.spans(ctx, ids[0])
}

// idFloor is the smallest id that can begin with a hex prefix.
func idFloor(prefix string) []byte {
	b, err := hex.DecodeString(prefix[:len(prefix)&^1])
	if err != nil {
		return nil
	}
	return b
}

func (s *Store) spans(ctx context.Context, id ID) ([]Span, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT trace_id, span_id, parent_id, service, name, kind, start, duration, status, status_message, scope, attributes
		FROM spans WHERE trace_id = ? ORDER BY start, duration DESC`, []byte(id))
	if err != nil {
		return nil, fmt.Errorf("read trace %s: %w", id, err)
	}
	defer rows.Close()
	var out []Span
	for rows.Next() {
		var x Span
		var start, duration int64
		var attrs string
		err := rows.Scan((*[]byte)(&x.TraceID), (*[]byte)(&x.SpanID), (*[]byte)(&x.ParentID), &x.Service, &x.Name, &x.Kind, &start, &duration, &x.Status, &x.StatusMessage, &x.Scope, &attrs)
		if err != nil {
			return nil, fmt.Errorf("read trace %s: %w", id, err)
		}
		x.Start, x.Duration = time.Unix(0, start).UTC(), time.Duration(duration)
		if err := json.Unmarshal([]byte(attrs), &x.Attributes); err != nil {
			return nil, fmt.Errorf("read trace %s: attributes of span %s: %w", id, x.SpanID, err)
		}
		out = append(out, x)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read trace %s: %w", id, err)
	}
	return out, nil
}

// Logs returns the log records of one trace in time order.
func (s *Store) Logs(ctx context.Context, trace ID) ([]Log, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT time, trace_id, span_id, service, severity, body, attributes FROM logs WHERE trace_id = ? ORDER BY time`, []byte(trace))
	if err != nil {
		return nil, fmt.Errorf("read logs of %s: %w", trace, err)
	}
	defer rows.Close()
	var out []Log
	for rows.Next() {
		var x Log
		var at int64
		var attrs string
		if err := rows.Scan(&at, (*[]byte)(&x.TraceID), (*[]byte)(&x.SpanID), &x.Service, &x.Severity, &x.Body, &attrs); err != nil {
			return nil, fmt.Errorf("read logs of %s: %w", trace, err)
		}
		x.Time = time.Unix(0, at).UTC()
		if err := json.Unmarshal([]byte(attrs), &x.Attributes); err != nil {
			return nil, fmt.Errorf("read logs of %s: %w", trace, err)
		}
		out = append(out, x)
	}
	return out, rows.Err()
}
