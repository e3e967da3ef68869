package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"time"

	"go.yaml.in/yaml/v3"

	"lateen.dev/lateen/internal/finding"
)

// Client calls the control process over its unix socket. It is safe for
// concurrent use.
type Client struct {
	path string
	http *http.Client
}

// NewClient returns a Client for the socket at path. Nothing is connected yet.
func NewClient(path string) *Client {
	transport := &http.Transport{
		DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, path) },
		MaxIdleConns:    4,
		IdleConnTimeout: 30 * time.Second,
	}
	return &Client{path: path, http: &http.Client{Transport: transport}}
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// HTTP returns the client's HTTP client, for mounted handlers; the host part of
// a URL is ignored ("http://control/v1/telemetry/…").
func (c *Client) HTTP() *http.Client { return c.http }

// Status returns the summary of the control plane.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var v Status
	return v, c.call(ctx, http.MethodGet, "/v1/status", nil, &v)
}

// Objects returns the objects in force that match q.
func (c *Client) Objects(ctx context.Context, q ObjectQuery) ([]ObjectItem, error) {
	values := url.Values{}
	for k, v := range map[string]string{"kind": q.Kind, "namespace": q.Namespace, "name": q.Name} {
		if v != "" {
			values.Set(k, v)
		}
	}
	var v []ObjectItem
	return v, c.call(ctx, http.MethodGet, "/v1/objects?"+values.Encode(), nil, &v)
}

// Findings returns what there is to say about the configuration in force.
func (c *Client) Findings(ctx context.Context) ([]finding.Finding, error) {
	var v []finding.Finding
	return v, c.call(ctx, http.MethodGet, "/v1/findings", nil, &v)
}

// Apply adds or replaces objects. Nothing is changed when a finding of the
// result is an Error.
func (c *Client) Apply(ctx context.Context, req Applied) (ApplyResult, error) {
	var v ApplyResult
	return v, c.call(ctx, http.MethodPost, "/v1/apply", req, &v)
}

// Delete removes objects that were applied.
func (c *Client) Delete(ctx context.Context, req Deleted) (ApplyResult, error) {
	var v ApplyResult
	return v, c.call(ctx, http.MethodPost, "/v1/delete", req, &v)
}

// Proxies returns the sync state of every connected proxy.
func (c *Client) Proxies(ctx context.Context) ([]ProxyStatus, error) {
	var v []ProxyStatus
	return v, c.call(ctx, http.MethodGet, "/v1/proxies", nil, &v)
}

// ProxyResources returns what a proxy (pod.namespace) was last sent.
func (c *Client) ProxyResources(ctx context.Context, id string) (ProxyResources, error) {
	var v ProxyResources
	return v, c.call(ctx, http.MethodGet, "/v1/proxies/"+url.PathEscape(id)+"/resources", nil, &v)
}

// Token asks for a bootstrap token.
func (c *Client) Token(ctx context.Context, req TokenRequest) (TokenResponse, error) {
	var v TokenResponse
	return v, c.call(ctx, http.MethodPost, "/v1/tokens", req, &v)
}

// WriteLocal writes pods and endpoint slices.
func (c *Client) WriteLocal(ctx context.Context, state LocalState) error {
	return c.call(ctx, http.MethodPost, "/v1/local", state, &struct{}{})
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("call control %s: %w", path, err)
		}
		body = bytes.NewReader(data)
	}
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("call control %s: read answer: %w", path, err)
	}
	return nil
}

// do returns a response of status 200; anything else is an error.
func (c *Client) do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://control"+path, body)
	if err != nil {
		return nil, fmt.Errorf("call control %s: %w", path, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var ue *url.Error // its text repeats method and URL
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, fmt.Errorf("call control at %s: %w", c.path, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	e := new(Error)
	if err != nil || json.Unmarshal(data, e) != nil || e.Message == "" {
		return nil, fmt.Errorf("call control %s: %s", path, resp.Status)
	}
	return nil, e
}

// WatchOptions configures Watch.
type WatchOptions struct {
	// Kinds to watch; none means all.
	Kinds []string
	// OnConnect is called before every listing, also after a reconnect: the
	// supervisor writes its complete local state there. An error is retried
	// like a lost connection.
	OnConnect func(ctx context.Context) error
	// Log receives lost connections; nil means none.
	Log *slog.Logger
}

// Back-off between attempts to reach the control process. It is restarted by
// its supervisor, so waiting long helps nobody.
const (
	minRetry = 50 * time.Millisecond
	maxRetry = 2 * time.Second
)

// Watch follows the desired objects until ctx ends (it returns ctx's error) or
// fn returns an error (it returns that). Over reconnects fn sees one
// consistent story: an object that did not change is not repeated, and one that
// went away meanwhile is deleted just before the next Synced event.
func (c *Client) Watch(ctx context.Context, o WatchOptions, fn func(Event) error) error {
	w := &watch{client: c, o: o, fn: fn, seen: make(map[ObjectKey][sha256.Size]byte)}
	retry := minRetry
	for {
		synced, err := w.follow(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var stop *stopError
		if errors.As(err, &stop) {
			return stop.err
		}
		if o.Log != nil {
			o.Log.Warn("lost the control process; trying again", "error", err)
		}
		if synced {
			retry = minRetry
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retry/2 + rand.N(retry/2)):
		}
		retry = min(2*retry, maxRetry)
	}
}

// stopError marks an error of the consumer, which ends the watch.
type stopError struct{ err error }

func (e *stopError) Error() string { return e.err.Error() }

type watch struct {
	client *Client
	o      WatchOptions
	fn     func(Event) error
	// seen maps what fn knows to a digest of it and of its source.
	seen map[ObjectKey][sha256.Size]byte
}

// follow runs one connection; synced reports whether its listing completed.
func (w *watch) follow(ctx context.Context) (synced bool, err error) {
	if w.o.OnConnect != nil {
		if err := w.o.OnConnect(ctx); err != nil {
			return false, err
		}
	}
	resp, err := w.client.do(ctx, http.MethodGet, "/v1/watch?"+url.Values{"kind": w.o.Kinds}.Encode(), nil)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	listed := make(map[ObjectKey]bool)
	dec := json.NewDecoder(resp.Body)
	for {
		var e Event
		if err := dec.Decode(&e); err != nil {
			return synced, fmt.Errorf("watch: %w", err)
		}
		switch e.Type {
		case Put:
			if !synced {
				listed[e.Key] = true
			}
			err = w.put(e)
		case Delete:
			err = w.delete(e.Key)
		case Synced:
			for key := range w.seen {
				if !listed[key] && err == nil {
					err = w.delete(key)
				}
			}
			synced, listed = true, nil
			if err == nil {
				err = w.emit(e)
			}
		default:
			err = fmt.Errorf("watch: event of unknown type %q", e.Type)
		}
		if err != nil {
			return synced, err
		}
	}
}

func (w *watch) put(e Event) error {
	digest := sha256.Sum256(append([]byte(e.Source+"\x00"), e.Object...))
	if old, ok := w.seen[e.Key]; ok && old == digest {
		return nil
	}
	w.seen[e.Key] = digest
	return w.emit(e)
}

func (w *watch) delete(key ObjectKey) error {
	if _, ok := w.seen[key]; !ok {
		return nil
	}
	delete(w.seen, key)
	return w.emit(Event{Type: Delete, Key: key})
}

func (w *watch) emit(e Event) error {
	if err := w.fn(e); err != nil {
		return &stopError{err: err}
	}
	return nil
}

// YAML returns the block form of an object that came as JSON, its fields in
// the same order.
func YAML(object json.RawMessage) ([]byte, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(object, &doc); err != nil { // JSON is YAML
		return nil, fmt.Errorf("write YAML: %w", err)
	}
	blockStyle(&doc)
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(&doc), enc.Close()); err != nil {
		return nil, fmt.Errorf("write YAML: %w", err)
	}
	return out.Bytes(), nil
}

// blockStyle lets the encoder choose the plain style wherever it can; quotes
// stay only where a string would be read as something else.
func blockStyle(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		blockStyle(c)
	}
}
