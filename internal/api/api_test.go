package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lateen.dev/lateen/internal/finding"
)

// store is a Backend over a map, with what the tests need to look at.
type store struct {
	mu      sync.Mutex
	objects map[ObjectKey]Event
	changed chan struct{}
	local   []LocalState
}

func newStore(events ...Event) *store {
	s := &store{objects: map[ObjectKey]Event{}, changed: make(chan struct{}, 1)}
	for _, e := range events {
		s.objects[e.Key] = e
	}
	return s
}

func put(kind, name, body string) Event {
	return Event{Type: Put, Key: ObjectKey{Kind: kind, Name: name}, Object: json.RawMessage(body), Source: name + ".yaml:1"}
}

func (s *store) Watch(ctx context.Context, kinds []string, emit func(Event) error) error {
	s.mu.Lock()
	for _, e := range s.objects {
		if len(kinds) == 0 || slices.Contains(kinds, e.Key.Kind) {
			if err := emit(e); err != nil {
				s.mu.Unlock()
				return err
			}
		}
	}
	s.mu.Unlock()
	if err := emit(Event{Type: Synced}); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-s.changed:
		return errors.New("connection lost on purpose")
	}
}

func (s *store) WriteLocal(_ context.Context, l LocalState) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.local = append(s.local, l)
	return nil
}

func (s *store) Token(_ context.Context, r TokenRequest) (TokenResponse, error) {
	if r.Pod == "" {
		return TokenResponse{}, &Error{Code: CodeInvalid, Message: "no pod", Hint: "name one"}
	}
	return TokenResponse{Token: "t-" + r.Pod}, nil
}

func (s *store) Status(context.Context) (Status, error) {
	return Status{}, errors.New("secret detail")
}

func (s *store) Objects(_ context.Context, q ObjectQuery) ([]ObjectItem, error) {
	return []ObjectItem{{Key: ObjectKey(q), Object: json.RawMessage(`{"a":1}`)}}, nil
}

func (s *store) Findings(context.Context) ([]finding.Finding, error) {
	return []finding.Finding{{Code: "LAT0104", Severity: finding.Error, Pos: finding.Position{File: "x", Line: 3}}}, nil
}

func (s *store) Apply(_ context.Context, a Applied) (ApplyResult, error) {
	return ApplyResult{Changed: []ObjectKey{{Name: a.Manifests[0].Source + string(a.Manifests[0].Data)}}}, nil
}

func (s *store) Delete(_ context.Context, d Deleted) (ApplyResult, error) {
	return ApplyResult{Changed: d.Keys}, nil
}
func (s *store) Proxies(context.Context) ([]ProxyStatus, error) { return nil, nil }
func (s *store) ProxyResources(_ context.Context, id string) (ProxyResources, error) {
	return nil, &Error{Code: CodeNotFound, Message: "no proxy " + id}
}

// start serves b on a real socket and returns a client and a stop function
// that waits for the server to end.
func start(t *testing.T, path string, b Backend) (*Client, func()) {
	t.Helper()
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	mounts := map[string]http.Handler{"/v1/telemetry/": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "telemetry "+r.URL.Path)
	})}
	log := slog.New(slog.DiscardHandler)
	go func() { done <- Serve(ctx, l, Handler(b, mounts, log), log) }()
	c := NewClient(path)
	stop := sync.OnceFunc(func() {
		c.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return c, stop
}

func TestSocket_callsAndErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", SocketName)
	c, _ := start(t, path, newStore())
	ctx := t.Context()
	if st, err := os.Stat(filepath.Dir(path)); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("directory %v, %v", st.Mode(), err)
	}
	if r, err := c.Token(ctx, TokenRequest{Pod: "p"}); err != nil || r.Token != "t-p" {
		t.Errorf("Token = %v, %v", r, err)
	}
	var e *Error
	if _, err := c.Token(ctx, TokenRequest{}); !errors.As(err, &e) || e.Code != CodeInvalid || e.Error() != "no pod: name one" {
		t.Errorf("typed error arrived as %v", err)
	}
	if _, err := c.ProxyResources(ctx, "a/b?c"); !IsNotFound(err) || !strings.Contains(err.Error(), "a/b?c") {
		t.Errorf("id in the path: %v", err)
	}
	if _, err := c.Status(ctx); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("internal error shown to the caller: %v", err)
	}
	if o, err := c.Objects(ctx, ObjectQuery{Kind: "Pod", Name: "a b"}); err != nil || o[0].Key != (ObjectKey{Kind: "Pod", Name: "a b"}) {
		t.Errorf("Objects = %v, %v", o, err)
	}
	if f, err := c.Findings(ctx); err != nil || len(f) != 1 || f[0].Severity != finding.Error || f[0].Pos.Line != 3 {
		t.Errorf("Findings = %v, %v", f, err)
	}
	if r, err := c.Apply(ctx, Applied{Manifests: []Manifest{{Source: "f", Data: []byte(":x")}}}); err != nil || r.Changed[0].Name != "f:x" {
		t.Errorf("Apply = %v, %v", r, err)
	}
	resp, err := c.HTTP().Get("http://control/v1/telemetry/traces")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); string(body) != "telemetry /v1/telemetry/traces" {
		t.Errorf("mounted handler said %q", body)
	}
	resp2, err := c.HTTP().Post("http://control/v1/local", "application/json", strings.NewReader(`{"putt":[]}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp2.Body.Close()
	if resp2.StatusCode != http.StatusBadRequest {
		t.Errorf("unknown field: %s", resp2.Status)
	}
}

func TestSocket_longPath(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("deep/", 30), SocketName)
	c, _ := start(t, path, newStore())
	if _, err := c.Token(t.Context(), TokenRequest{Pod: "p"}); err != nil {
		t.Error(err)
	}
}

type strangerConn struct{ net.Conn }

func TestOwnUser_refusesWhoIsNotKnown(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	l := OwnUser(&oneConn{c: strangerConn{a}}, slog.New(slog.DiscardHandler))
	if c, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept = %v, %v", c, err)
	}
	if _, err := a.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the stranger's connection is open: %v", err)
	}
}

type oneConn struct {
	net.Listener
	c net.Conn
}

func (l *oneConn) Accept() (net.Conn, error) {
	if c := l.c; c != nil {
		l.c = nil
		return c, nil
	}
	return nil, net.ErrClosed
}

func TestWatch_oneStoryOverReconnects(t *testing.T) {
	path := filepath.Join(t.TempDir(), SocketName)
	s := newStore(put("Pod", "a", `{"v":1}`), put("Pod", "b", `{"v":1}`), put("Service", "x", `{}`))
	_, stop := start(t, path, s)
	c := NewClient(path)
	defer c.Close()

	events := make(chan Event, 16)
	connects := 0
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	done := make(chan error, 1)
	errEnough := errors.New("enough")
	go func() {
		synced := 0
		done <- c.Watch(ctx, WatchOptions{Kinds: []string{"Pod"}, OnConnect: func(ctx context.Context) error {
			connects++
			return c.WriteLocal(ctx, LocalState{Replace: true})
		}}, func(e Event) error {
			events <- e
			if e.Type == Synced {
				if synced++; synced == 3 {
					return errEnough
				}
			}
			return nil
		})
	}()
	want := func(steps ...string) {
		t.Helper()
		var got []string
		for range steps {
			select {
			case e := <-events:
				got = append(got, strings.TrimSpace(string(e.Type)+" "+e.Key.Name))
			case <-ctx.Done():
				t.Fatalf("got %v, want %v", got, steps)
			}
		}
		if len(got) > 1 {
			slices.Sort(got[:len(got)-1])
		}
		if !slices.Equal(got, steps) {
			t.Fatalf("got %v, want %v", got, steps)
		}
	}
	want("put a", "put b", "synced")

	s.mu.Lock()
	delete(s.objects, ObjectKey{Kind: "Pod", Name: "b"})
	e := put("Pod", "c", `{}`)
	s.objects[e.Key] = e
	s.mu.Unlock()
	s.changed <- struct{}{}
	want("delete b", "put c", "synced") // a is not repeated

	stop() // the control process dies and comes back
	start(t, path, newStore(put("Pod", "a", `{"v":2}`), e))
	want("put a", "synced")
	if err := <-done; !errors.Is(err, errEnough) {
		t.Errorf("Watch = %v", err)
	}
	if connects < 3 {
		t.Errorf("OnConnect was called %d times", connects)
	}
}

func TestYAML_keepsOrderAndQuotes(t *testing.T) {
	got, err := YAML(json.RawMessage(`{"kind":"A","spec":{"b":["x",1],"a":"1","t":"true","m":"l1\nl2\n"},"e":{},"html":"\u003ca\u003e"}`))
	if err != nil {
		t.Fatal(err)
	}
	want := "kind: A\nspec:\n  b:\n    - x\n    - 1\n  a: \"1\"\n  t: \"true\"\n  m: |\n    l1\n    l2\ne: {}\nhtml: <a>\n"
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
