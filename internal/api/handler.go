package api

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"

	"lateen.dev/lateen/internal/finding"
)

// maxBodyBytes bounds a request body: a folder of manifests, or the pods of a
// large local cluster.
const maxBodyBytes = 32 << 20

// Backend decides what the answers are. Methods are called concurrently. An
// *Error reaches the caller as it is; any other error is logged and reported
// without its text.
type Backend interface {
	// Watch calls emit with every object of the kinds (none means all), then
	// with one Synced event, then with each change, until ctx ends or emit
	// returns an error, which it returns.
	Watch(ctx context.Context, kinds []string, emit func(Event) error) error
	WriteLocal(ctx context.Context, state LocalState) error
	Token(ctx context.Context, req TokenRequest) (TokenResponse, error)
	Status(ctx context.Context) (Status, error)
	Objects(ctx context.Context, q ObjectQuery) ([]ObjectItem, error)
	Findings(ctx context.Context) ([]finding.Finding, error)
	Apply(ctx context.Context, req Applied) (ApplyResult, error)
	Delete(ctx context.Context, req Deleted) (ApplyResult, error)
	Proxies(ctx context.Context) ([]ProxyStatus, error)
	ProxyResources(ctx context.Context, id string) (ProxyResources, error)
}

// Handler serves b over HTTP. mounts adds more handlers by pattern, for
// example "/v1/telemetry/"; a pattern may not collide with the built-in ones.
// The handler trusts its caller: only a listener from Listen may face it.
func Handler(b Backend, mounts map[string]http.Handler, log *slog.Logger) http.Handler {
	h := &handler{b: b, log: log}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/watch", h.watch)
	mux.HandleFunc("POST /v1/local", h.local)
	mux.HandleFunc("POST /v1/tokens", h.token)
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		v, err := b.Status(r.Context())
		h.reply(w, v, err)
	})
	mux.HandleFunc("GET /v1/objects", h.objects)
	mux.HandleFunc("GET /v1/findings", func(w http.ResponseWriter, r *http.Request) {
		v, err := b.Findings(r.Context())
		h.reply(w, v, err)
	})
	mux.HandleFunc("POST /v1/apply", h.apply)
	mux.HandleFunc("POST /v1/delete", h.delete)
	mux.HandleFunc("GET /v1/proxies", func(w http.ResponseWriter, r *http.Request) {
		v, err := b.Proxies(r.Context())
		h.reply(w, v, err)
	})
	mux.HandleFunc("GET /v1/proxies/{id}/resources", func(w http.ResponseWriter, r *http.Request) {
		v, err := b.ProxyResources(r.Context(), r.PathValue("id"))
		h.reply(w, v, err)
	})
	for pattern, m := range mounts {
		mux.Handle(pattern, m)
	}
	return mux
}

type handler struct {
	b   Backend
	log *slog.Logger
}

func (h *handler) watch(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	err := h.b.Watch(r.Context(), r.URL.Query()["kind"], func(e Event) error {
		if err := enc.Encode(e); err != nil {
			return err
		}
		return rc.Flush()
	})
	if err != nil && r.Context().Err() == nil {
		h.log.Warn("watch ended", "error", err)
	}
}

func (h *handler) local(w http.ResponseWriter, r *http.Request) {
	var state LocalState
	if h.decode(w, r, &state) {
		h.reply(w, struct{}{}, h.b.WriteLocal(r.Context(), state))
	}
}

func (h *handler) token(w http.ResponseWriter, r *http.Request) {
	var req TokenRequest
	if h.decode(w, r, &req) {
		v, err := h.b.Token(r.Context(), req)
		h.reply(w, v, err)
	}
}

func (h *handler) objects(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	v, err := h.b.Objects(r.Context(), ObjectQuery{Kind: q.Get("kind"), Namespace: q.Get("namespace"), Name: q.Get("name")})
	h.reply(w, v, err)
}

func (h *handler) apply(w http.ResponseWriter, r *http.Request) {
	var req Applied
	if h.decode(w, r, &req) {
		v, err := h.b.Apply(r.Context(), req)
		h.reply(w, v, err)
	}
}

func (h *handler) delete(w http.ResponseWriter, r *http.Request) {
	var req Deleted
	if h.decode(w, r, &req) {
		v, err := h.b.Delete(r.Context(), req)
		h.reply(w, v, err)
	}
}

// decode reads a JSON body strictly; it has replied when it returns false.
func (h *handler) decode(w http.ResponseWriter, r *http.Request, v any) bool {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBodyBytes))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		h.reply(w, nil, &Error{Code: CodeInvalid, Message: "read request: " + err.Error()})
		return false
	}
	return true
}

func (h *handler) reply(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		e := new(Error)
		if !errors.As(err, &e) {
			h.log.Error("control API call", "error", err)
			e = &Error{Code: CodeInternal, Message: "the control process could not answer", Hint: "its log says why"}
		}
		w.WriteHeader(e.httpStatus())
		v = e
	}
	// The only error left is a caller who has gone.
	_ = json.NewEncoder(w).Encode(v)
}
