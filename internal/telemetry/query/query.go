// Package query answers questions about stored telemetry: which traces there
// were, what happened in one. It serves them over HTTP below the control API,
// asks for them as a client, and renders them as text for the command line.
// It reads the store only; it is safe for concurrent use.
package query

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"lateen.dev/lateen/internal/telemetry/store"
)

// apiVersion marks every JSON answer.
const apiVersion = "lateen.dev/v1alpha1"

// Reader is where the answers come from; *store.Store is one.
type Reader interface {
	Traces(ctx context.Context, f store.Filter) ([]store.Summary, error)
	Trace(ctx context.Context, id string) ([]store.Span, error)
	Logs(ctx context.Context, trace store.ID) ([]store.Log, error)
}

// TraceList is the answer to a search.
type TraceList struct {
	APIVersion string          `json:"apiVersion"`
	Traces     []store.Summary `json:"traces"`
}

// Trace is one trace with its spans by start time and the logs that name it.
type Trace struct {
	APIVersion string       `json:"apiVersion"`
	TraceID    store.ID     `json:"traceId"`
	Spans      []store.Span `json:"spans"`
	Logs       []store.Log  `json:"logs,omitempty"`
}

// List searches traces.
func List(ctx context.Context, r Reader, f store.Filter) (*TraceList, error) {
	traces, err := r.Traces(ctx, f)
	if err != nil {
		return nil, err
	}
	if traces == nil {
		traces = []store.Summary{}
	}
	return &TraceList{APIVersion: apiVersion, Traces: traces}, nil
}

// Get reads one trace; id is hex and may be shortened while it is unique.
func Get(ctx context.Context, r Reader, id string) (*Trace, error) {
	spans, err := r.Trace(ctx, id)
	if err != nil {
		return nil, err
	}
	t := &Trace{APIVersion: apiVersion, TraceID: spans[0].TraceID, Spans: spans}
	if t.Logs, err = r.Logs(ctx, t.TraceID); err != nil {
		return nil, err
	}
	return t, nil
}

// Mounts returns the handlers by pattern, to mount under the control API:
//
//	GET /v1/traces?service=&min=200ms&error=true&since=1h&limit=20
//	GET /v1/traces/{id}
//
// since is a duration back from now or an RFC 3339 time; now is the clock.
func Mounts(r Reader, now func() time.Time) map[string]http.Handler {
	return map[string]http.Handler{
		"GET /v1/traces": http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			f, err := parseFilter(req.URL.Query(), now())
			if err != nil {
				reply(w, nil, http.StatusBadRequest, err)
				return
			}
			l, err := List(req.Context(), r, f)
			reply(w, l, http.StatusInternalServerError, err)
		}),
		"GET /v1/traces/{id}": http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			t, err := Get(req.Context(), r, req.PathValue("id"))
			code := http.StatusInternalServerError
			switch {
			case errors.Is(err, store.ErrNotFound):
				code = http.StatusNotFound
			case errors.Is(err, store.ErrAmbiguous):
				code = http.StatusBadRequest
			}
			reply(w, t, code, err)
		}),
	}
}

func reply(w http.ResponseWriter, v any, code int, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(code)
		kind := map[int]string{http.StatusNotFound: "not-found", http.StatusBadRequest: "invalid"}[code]
		if kind == "" {
			kind = "internal"
		}
		v = map[string]string{"code": kind, "message": err.Error()} // as the control API answers
	}
	json.NewEncoder(w).Encode(v) //nolint:errcheck // the caller went away
}

func parseFilter(q url.Values, now time.Time) (f store.Filter, err error) {
	f.Service = q.Get("service")
	if v := q.Get("min"); v != "" {
		if f.Min, err = time.ParseDuration(v); err != nil {
			return f, fmt.Errorf("min: %w", err)
		}
	}
	if v := q.Get("error"); v != "" {
		if f.Error, err = strconv.ParseBool(v); err != nil {
			return f, fmt.Errorf("error: %q: want true or false", v)
		}
	}
	if v := q.Get("limit"); v != "" {
		if f.Limit, err = strconv.Atoi(v); err != nil || f.Limit < 1 || f.Limit > 10000 {
			return f, fmt.Errorf("limit: %q: want a number from 1 to 10000", v)
		}
	}
	if v := q.Get("since"); v != "" {
		if d, derr := time.ParseDuration(v); derr == nil {
			f.Since = now.Add(-d)
		} else if f.Since, err = time.Parse(time.RFC3339, v); err != nil {
			return f, fmt.Errorf("since: %q: want a duration such as 1h or an RFC 3339 time", v)
		}
	}
	return f, nil
}

// Client asks a control process.
type Client struct {
	// HTTP reaches the control API; the host of the URL is ignored.
	HTTP *http.Client
}

// List searches traces.
func (c *Client) List(ctx context.Context, f store.Filter) (*TraceList, error) {
	q := url.Values{}
	if f.Service != "" {
		q.Set("service", f.Service)
	}
	if f.Min > 0 {
		q.Set("min", f.Min.String())
	}
	if f.Error {
		q.Set("error", "true")
	}
	if f.Limit > 0 {
		q.Set("limit", strconv.Itoa(f.Limit))
	}
	if !f.Since.IsZero() {
		q.Set("since", f.Since.UTC().Format(time.RFC3339))
	}
	var l TraceList
	return &l, c.get(ctx, "/v1/traces?"+q.Encode(), &l)
}

// Get reads one trace. A missing one is store.ErrNotFound.
func (c *Client) Get(ctx context.Context, id string) (*Trace, error) {
	var t Trace
	return &t, c.get(ctx, "/v1/traces/"+url.PathEscape(id), &t)
}

func (c *Client) get(ctx context.Context, path string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://control"+path, nil)
	if err != nil {
		return err
	}
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return fmt.Errorf("ask the control process: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 256<<20))
	if err != nil {
		return fmt.Errorf("ask the control process: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var e struct{ Code, Message string }
		if json.Unmarshal(body, &e) != nil || e.Message == "" {
			e.Message = resp.Status
		}
		if e.Code == "not-found" {
			return &answerError{e.Message, store.ErrNotFound}
		}
		return errors.New(e.Message)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("read the control process's answer: %w", err)
	}
	return nil
}

// answerError keeps the server's words and the kind of error.
type answerError struct {
	text string
	kind error
}

// Error returns the server's words.
func (e *answerError) Error() string { return e.text }

// Unwrap returns the kind.
func (e *answerError) Unwrap() error { return e.kind }
