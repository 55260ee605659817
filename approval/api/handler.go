package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/trace"
)

const (
	// MaxBody is how long a request's body may be.
	MaxBody = 64 << 10
	// MaxManifest is how long that of POST /v1/cluster/manifest may be.
	MaxManifest = 1 << 20
	// MaxSeen is how long that of POST /v1/certificates/seen may be: a thief's
	// certificate may be as long as a handshake takes.
	MaxSeen = 1 << 20
	// MaxWait is how long a read may block.
	MaxWait = 60 * time.Second
	// bodyTimeout is how long a body may take to arrive.
	bodyTimeout = 10 * time.Second
	// maxKey is how long an Idempotency-Key may be.
	maxKey = 128

	headerRequestID = "X-Request-Id"
)

// Config is what a Handler is made of.
type Config struct {
	Backend Backend
	Logger  *slog.Logger
	// Heartbeat is how often a silent stream says that it lives; zero means 5 s.
	Heartbeat time.Duration
	// Elsewhere says who answers a call that this handler has admitted: nil for
	// the Backend. The body that it passes on is in memory.
	Elsewhere func(*http.Request) http.Handler
}

// Handler serves the API. It expects a Caller in each request's context.
type Handler struct {
	backend   Backend
	log       *slog.Logger
	heartbeat time.Duration
	elsewhere func(*http.Request) http.Handler
	mux       *http.ServeMux
	origin    *http.CrossOriginProtection
	openapi   []byte
}

// NewHandler makes a Handler.
func NewHandler(cfg Config) (*Handler, error) {
	if cfg.Backend == nil || cfg.Logger == nil {
		return nil, errors.New("api: Config needs a Backend and a Logger")
	}
	h := &Handler{
		backend:   cfg.Backend,
		log:       cfg.Logger,
		heartbeat: cfg.Heartbeat,
		elsewhere: cfg.Elsewhere,
		mux:       http.NewServeMux(),
		origin:    http.NewCrossOriginProtection(),
	}
	if h.heartbeat == 0 {
		h.heartbeat = 5 * time.Second
	}
	doc, err := h.register()
	if err != nil {
		return nil, err
	}
	h.openapi = doc
	h.mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openapi+json")
		_, _ = w.Write(h.openapi) // the client's loss
	})
	return h, nil
}

// OpenAPI returns the API's OpenAPI 3.1 document.
func (h *Handler) OpenAPI() []byte { return bytes.Clone(h.openapi) }

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := RequestIDFrom(r.Context())
	if id == "" {
		id = NewRequestID()
		r = r.WithContext(WithRequestID(r.Context(), id))
	}
	w.Header().Set(headerRequestID, id)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	defer h.recover(w, r)
	expectBody(w, r)
	admitted, p := h.admit(w, r)
	if p != nil {
		h.Refuse(w, r, p)
		return
	}
	if h.elsewhere != nil {
		if other := h.elsewhere(admitted); other != nil {
			other.ServeHTTP(w, admitted)
			return
		}
	}
	h.mux.ServeHTTP(w, admitted)
}

// Answer has this handler's Backend answer a call that was admitted, after
// Elsewhere found nobody else to.
func (h *Handler) Answer(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

// NewRequestID makes an id for a request.
func NewRequestID() string {
	id, err := uuid.NewV7()
	if err != nil {
		return "00000000-0000-7000-8000-000000000000" // no randomness: ids are only for finding log lines
	}
	return id.String()
}

// recover answers for a handler that panicked: one bad request must not take
// the others on its connection down.
func (h *Handler) recover(w http.ResponseWriter, r *http.Request) {
	v := recover()
	if v == nil {
		return
	}
	if v == http.ErrAbortHandler { //nolint:errorlint // net/http compares it so
		panic(v)
	}
	if r.Context().Err() != nil {
		return // the client left while its answer was written
	}
	h.Problem(w, r, fmt.Errorf("panic: %v", v))
}

// admit refuses what no route should see, and buffers the body.
func (h *Handler) admit(w http.ResponseWriter, r *http.Request) (*http.Request, *Problem) {
	if CallerFrom(r.Context()).IsZero() {
		return nil, NewProblem(CodeUnauthorized, "no verified identity on this connection", "connect with an identity of the cluster's trust domain")
	}
	// A path that a router would clean or decode could be one route here and
	// another in whatever logged or filtered it before.
	if r.URL.RawPath != "" || path.Clean(r.URL.Path) != r.URL.Path {
		return nil, NewProblem(CodeNotFound, "no such route", "see /openapi.json")
	}
	// A page in a browser that holds a client certificate could otherwise make
	// it approve something.
	if err := h.origin.Check(r); err != nil {
		return nil, NewProblem(CodeDenied, "cross-origin request from a browser", "")
	}
	if p := h.route(w, r); p != nil {
		return nil, p
	}
	if p := acceptable(r); p != nil {
		return nil, p
	}
	if p := query(r); p != nil {
		return nil, p
	}
	if r.Method != http.MethodPost {
		if r.ContentLength != 0 {
			return nil, NewProblem(CodeInvalid, r.Method+" takes no body", "leave it out")
		}
		return r, nil
	}
	if key := r.Header.Values(headerKey); len(key) > 1 || len(key) == 1 && !validKey(key[0]) {
		return nil, NewProblem(CodeInvalid, "Idempotency-Key: want one header of 1 to 128 visible ASCII characters", "use a UUID")
	}
	return bufferBody(w, r)
}

// query refuses parameters that are there twice or cannot be read: what filtered
// or logged the call before may have gone by the other one.
func query(r *http.Request) *Problem {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return NewProblem(CodeInvalid, "the query cannot be read: "+err.Error(), "percent-encode its values")
	}
	for name, all := range values {
		if len(all) > 1 {
			return NewProblem(CodeInvalid, fmt.Sprintf("%q is in the query %d times", name, len(all)), "keep one")
		}
	}
	return nil
}

func validKey(s string) bool {
	if s == "" || len(s) > maxKey {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// route refuses unknown paths, and methods that a path does not have.
func (h *Handler) route(w http.ResponseWriter, r *http.Request) *Problem {
	if _, pattern := h.mux.Handler(r); pattern != "" {
		return nil
	}
	var allow []string
	for _, m := range []string{http.MethodGet, http.MethodPost} {
		probe := &http.Request{Method: m, URL: r.URL, Host: r.Host}
		if _, pattern := h.mux.Handler(probe); pattern != "" {
			allow = append(allow, m)
		}
	}
	if len(allow) == 0 {
		return NewProblem(CodeNotFound, "no such route", "see /openapi.json")
	}
	w.Header().Set("Allow", strings.Join(allow, ", "))
	return NewProblem(CodeMethod, fmt.Sprintf("%s has no %s", r.URL.Path, r.Method), "use "+strings.Join(allow, " or "))
}

func acceptable(r *http.Request) *Problem {
	if accepts(r, "application/json") || accepts(r, "application/problem+json") ||
		r.URL.Path == pathSnapshot && accepts(r, octets) || r.URL.Path == pathEvents || r.URL.Path == pathRevocations || r.URL.Path == "/openapi.json" {
		return nil
	}
	return NewProblem(CodeNotAcceptable, "answers are application/json", "send Accept: application/json")
}

// accepts reports whether the request's Accept header allows mediaType.
func accepts(r *http.Request, mediaType string) bool {
	headers := r.Header.Values("Accept")
	if len(headers) == 0 {
		return mediaType == "application/json"
	}
	kind, _, _ := strings.Cut(mediaType, "/")
	for part := range strings.SplitSeq(strings.Join(headers, ","), ",") {
		name, params, err := mime.ParseMediaType(part)
		if err != nil {
			continue
		}
		if q, err := strconv.ParseFloat(params["q"], 64); err == nil && q == 0 {
			continue
		}
		if name == mediaType || mediaType != eventStream && (name == "*/*" || name == kind+"/*") {
			return true
		}
	}
	return false
}

// expectBody bounds how long a body may take to arrive. One that trickles in, or
// stops, would otherwise hold its goroutine for as long as the sender likes, and
// after a refusal, too: net/http reads on before it answers.
func expectBody(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 {
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout)) // without one, the server's own timeouts stand
	}
}

// Refuse answers a request whose body was not read with p, and on HTTP/1 does not
// use its connection again.
func (h *Handler) Refuse(w http.ResponseWriter, r *http.Request, p *Problem) {
	if r.ContentLength != 0 {
		expectBody(w, r)
		if r.ProtoMajor == 1 {
			w.Header().Set("Connection", "close")
		}
	}
	h.Problem(w, r, p)
}

// BodyLimit is how long the body of a call may be.
func BodyLimit(r *http.Request) int64 { return bodyLimit(r.URL.Path) }

func bodyLimit(path string) int64 {
	switch path {
	case pathManifest:
		return MaxManifest
	case pathSeen:
		return MaxSeen
	}
	return MaxBody
}

// bufferBody reads the body within its limits and replaces it by what was read.
func bufferBody(w http.ResponseWriter, r *http.Request) (*http.Request, *Problem) {
	limit := BodyLimit(r)
	if r.ContentLength > limit {
		return nil, tooLarge()
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var tooBig *http.MaxBytesError
	switch {
	case errors.As(err, &tooBig):
		return nil, tooLarge()
	case err != nil:
		return nil, NewProblem(CodeTimeout, "the body did not arrive whole and in time", "send it again, with the same Idempotency-Key")
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // a blocking answer takes longer than a body
	if len(body) > 0 {
		name, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
		charset, given := params["charset"]
		if err != nil || name != "application/json" || given && !strings.EqualFold(charset, "utf-8") {
			return nil, NewProblem(CodeMediaType, "bodies are application/json", "send Content-Type: application/json")
		}
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%s", r.Method, r.URL.Path, body))
	call := Call{Key: r.Header.Get(headerKey), BodyHash: hex.EncodeToString(sum[:])}
	r = r.WithContext(context.WithValue(r.Context(), callKey, call))
	r.Body = io.NopCloser(bytes.NewReader(body))
	r.ContentLength = int64(len(body))
	return r, nil
}

func tooLarge() *Problem {
	return NewProblem(CodeTooLarge, fmt.Sprintf("bodies are at most %d bytes", MaxBody), "")
}

// callFrom collects what a Backend is told about a request.
func callFrom(ctx context.Context, stale bool) Call {
	c, _ := ctx.Value(callKey).(Call)
	c.Caller, c.Stale = CallerFrom(ctx), stale
	return c
}

// Problem answers r with err. It is what every refusal goes through, also those
// of servers around this handler.
func (h *Handler) Problem(w http.ResponseWriter, r *http.Request, err error) {
	p := h.problem(r.Context(), err)
	maps.Copy(w.Header(), p.GetHeaders())
	w.Header().Set("Content-Type", p.ContentType(""))
	w.WriteHeader(p.Status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(p) // the client's loss
}

// problem makes the Problem that err is told as, and logs what is not told.
func (h *Handler) problem(ctx context.Context, err error) *Problem {
	p := problemOf(err)
	if p.Code == CodeInternal {
		h.log.LogAttrs(ctx, slog.LevelError, "request failed",
			slog.String("request_id", RequestIDFrom(ctx)), slog.String("error", err.Error()))
	}
	p.RequestID = RequestIDFrom(ctx)
	if sc := trace.SpanContextFromContext(ctx); sc.HasTraceID() {
		p.TraceID = sc.TraceID().String()
	}
	return p
}
