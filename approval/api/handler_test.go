package api_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hallpass/hallpass/approval/api"
)

var update = flag.Bool("update", false, "write docs/openapi.json")

func newHandler(t *testing.T, b api.Backend) *api.Handler {
	t.Helper()
	h, err := api.NewHandler(api.Config{Backend: b, Logger: discardLogger()})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func call(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r.WithContext(api.WithCaller(r.Context(), alice())))
	return w
}

func postJSON(path, body string, header ...string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return r
}

func problem(t *testing.T, w *httptest.ResponseRecorder) api.Problem {
	t.Helper()
	if ct := w.Header().Get("Content-Type"); ct != "application/problem+json" {
		t.Fatalf("status %d, Content-Type %q, body %s", w.Code, ct, w.Body)
	}
	var p api.Problem
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
		t.Fatal(err)
	}
	if p.Status != w.Code || p.Code == "" || p.Title == "" || p.RequestID == "" {
		t.Errorf("incomplete problem, status %d: %+v", w.Code, p)
	}
	if p.RequestID != w.Header().Get("X-Request-Id") {
		t.Errorf("request_id %q, header %q", p.RequestID, w.Header().Get("X-Request-Id"))
	}
	return p
}

const goodRequest = `{"service":"payments","permissions":["GET /accounts/**"],"reason":"ticket 7","duration":"30m"}`

func TestOpenAPIIsCurrent(t *testing.T) {
	got := newHandler(t, newFake()).OpenAPI()
	file := filepath.Join("..", "..", "docs", "openapi.json")
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("docs/openapi.json is not what the routes say; run: go test ./approval/api -run OpenAPI -update\n%s",
			cmp.Diff(string(want), string(got)))
	}
	var doc struct {
		OpenAPI string                    `json:"openapi"`
		Paths   map[string]map[string]any `json:"paths"`
	}
	if err := json.Unmarshal(got, &doc); err != nil {
		t.Fatal(err)
	}
	operations := 0
	for _, p := range doc.Paths {
		operations += len(p)
	}
	if doc.OpenAPI != "3.1.0" || operations != 58 {
		t.Errorf("OpenAPI %s with %d operations", doc.OpenAPI, operations)
	}
	w := call(newHandler(t, newFake()), httptest.NewRequest(http.MethodGet, "/openapi.json", nil))
	if w.Code != http.StatusOK || !bytes.Equal(w.Body.Bytes(), got) {
		t.Errorf("GET /openapi.json: status %d", w.Code)
	}
}

// docs/api.md leaves no route and no code out.
func TestTheDocumentNamesEverything(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "api.md"))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths map[string]any `json:"paths"`
	}
	if err := json.Unmarshal(newHandler(t, newFake()).OpenAPI(), &doc); err != nil {
		t.Fatal(err)
	}
	for path := range doc.Paths {
		part := path[strings.LastIndex(path, "/v1"):]
		if i := strings.Index(part, "/{id}/"); i >= 0 && !strings.Contains(string(text), part) {
			part = "…" + part[i:] // `/v1/changes`, `…/{id}/decisions`
		}
		if rest, ok := strings.CutPrefix(part, "/v1/audit/"); ok && rest != "entries" {
			part = "/" + rest
		}
		if !strings.Contains(string(text), part) {
			t.Errorf("docs/api.md does not name %s", path)
		}
	}
	for _, code := range []api.Code{
		api.CodeNotFound, api.CodeDenied, api.CodeConflict, api.CodeStale, api.CodeInvalid, api.CodeExpired,
		api.CodeLimit, api.CodeMismatch, api.CodeMethod, api.CodeNotAcceptable, api.CodeMediaType, api.CodeTooLarge,
		api.CodeTimeout, api.CodeUnauthorized, api.CodeNoLeader, api.CodeAmbiguous, api.CodeUnavailable, api.CodeInternal,
	} {
		if !strings.Contains(string(text), "`"+string(code)+"`") {
			t.Errorf("docs/api.md does not name the code %s", code)
		}
	}
}

func TestCreateRequest(t *testing.T) {
	f := newFake()
	h := newHandler(t, f)
	w := call(h, postJSON("/v1/requests", goodRequest, "Idempotency-Key", "k1"))
	if w.Code != http.StatusCreated || w.Header().Get("Location") != "/v1/requests/r1" {
		t.Fatalf("status %d, Location %q, body %s", w.Code, w.Header().Get("Location"), w.Body)
	}
	c := f.lastCall(t)
	if c.Key != "k1" || len(c.BodyHash) != 64 || c.Caller.ID != alice().ID {
		t.Errorf("call %+v", c)
	}
	if got := f.requests[0].Duration.String(); got != "30m" {
		t.Errorf("duration %s", got)
	}
	w = call(h, postJSON("/v1/requests", strings.Replace(goodRequest, "ticket 7", "ticket 8", 1)))
	if c2 := f.lastCall(t); w.Code != http.StatusCreated || c2.BodyHash == c.BodyHash || c2.Key != "" {
		t.Errorf("status %d, call %+v", w.Code, c2)
	}
	w = call(h, postJSON("/v1/requests", strings.Replace(goodRequest, "{", `{"dry_run":true,`, 1)))
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"allowed":true`) {
		t.Errorf("dry run: status %d, body %s", w.Code, w.Body)
	}
}

func TestRefusedBeforeTheBackend(t *testing.T) {
	big := strings.Replace(goodRequest, "ticket 7", strings.Repeat("x", api.MaxBody), 1)
	get := func(path string, header ...string) *http.Request {
		r := httptest.NewRequest(http.MethodGet, path, nil)
		for i := 0; i < len(header); i += 2 {
			r.Header.Add(header[i], header[i+1])
		}
		return r
	}
	chunked := func() *http.Request {
		r := postJSON("/v1/requests", big)
		r.ContentLength = -1
		return r
	}
	tests := []struct {
		name   string
		req    *http.Request
		status int
		code   api.Code
		detail string
	}{
		{"huge body", postJSON("/v1/requests", big), 413, api.CodeTooLarge, "65536"},
		{"huge body of unsaid length", chunked(), 413, api.CodeTooLarge, "65536"},
		{"not JSON", postJSON("/v1/requests", "service=payments"), 400, api.CodeInvalid, "not JSON"},
		{"no body", postJSON("/v1/requests", ""), 400, api.CodeInvalid, "required"},
		{"a second value", postJSON("/v1/requests", goodRequest+"{}"), 400, api.CodeInvalid, "after the JSON value"},
		{"not UTF-8", postJSON("/v1/requests", strings.Replace(goodRequest, "ticket", "\xff", 1)), 400, api.CodeInvalid, "UTF-8"},
		{"unknown field", postJSON("/v1/requests", strings.Replace(goodRequest, "{", `{"admin":true,`, 1)), 422, api.CodeInvalid, "admin"},
		{"doubled field", postJSON("/v1/requests", strings.Replace(goodRequest, "{", `{"service":"orders",`, 1)), 400, api.CodeInvalid, "twice"},
		{"other case", postJSON("/v1/requests", strings.Replace(goodRequest, "service", "Service", 1)), 400, api.CodeInvalid, "Service"},
		{"missing field", postJSON("/v1/requests", `{"service":"payments"}`), 422, api.CodeInvalid, "duration"},
		{"no permissions", postJSON("/v1/requests", strings.Replace(goodRequest, `"GET /accounts/**"`, "", 1)), 422, api.CodeInvalid, "permissions"},
		{"null permissions", postJSON("/v1/requests", strings.Replace(goodRequest, `["GET /accounts/**"]`, "null", 1)), 422, api.CodeInvalid, "permissions"},
		{"wrong type", postJSON("/v1/requests", strings.Replace(goodRequest, `"30m"`, "30", 1)), 422, api.CodeInvalid, "duration"},
		{"bad duration", postJSON("/v1/requests", strings.Replace(goodRequest, `"30m"`, `"soon"`, 1)), 422, api.CodeInvalid, "soon"},
		{"deep", postJSON("/v1/requests", strings.Repeat("[", 100)+strings.Repeat("]", 100)), 400, api.CodeInvalid, "deep"},
		{"bad decision", postJSON("/v1/requests/r1/decisions", `{"decision":"maybe","hash":"h"}`), 422, api.CodeInvalid, "decision"},
		{"no hash", postJSON("/v1/requests/r1/decisions", `{"decision":"approve"}`), 422, api.CodeInvalid, "hash"},
		{"form", postJSON("/v1/requests", goodRequest, "Content-Type", "text/plain"), 415, api.CodeMediaType, "application/json"},
		{"other charset", postJSON("/v1/requests", goodRequest, "Content-Type", "application/json; charset=utf-7"), 415, api.CodeMediaType, "application/json"},
		{"cross-origin page", postJSON("/v1/requests/r1/cancel", "", "Sec-Fetch-Site", "cross-site"), 403, api.CodeDenied, "cross-origin"},
		{"empty key", postJSON("/v1/requests", goodRequest, "Idempotency-Key", ""), 422, api.CodeInvalid, "Idempotency-Key"},
		{"long key", postJSON("/v1/requests", goodRequest, "Idempotency-Key", strings.Repeat("k", 129)), 422, api.CodeInvalid, "Idempotency-Key"},
		{"key with a blank", postJSON("/v1/requests", goodRequest, "Idempotency-Key", "a b"), 422, api.CodeInvalid, "Idempotency-Key"},
		{"unknown query parameter", get("/v1/requests?status=pending"), 422, api.CodeInvalid, "status"},
		{"bad limit", get("/v1/requests?limit=0"), 422, api.CodeInvalid, "limit"},
		{"no state of a request", get("/v1/requests?state=active"), 422, api.CodeInvalid, "state"},
		{"no state of a grant", get("/v1/grants?state=live"), 422, api.CodeInvalid, "state"},
		{"no state of a change", get("/v1/changes?state=approved"), 422, api.CodeInvalid, "state"},
		{"bad wait", get("/v1/requests/r1?wait=long&index=1"), 422, api.CodeInvalid, "wait"},
		{"unknown route", get("/v1/nothing"), 404, api.CodeNotFound, "route"},
		{"dot segments", get("/v1/grants/../requests"), 404, api.CodeNotFound, "route"},
		{"empty segment", get("/v1//requests"), 404, api.CodeNotFound, "route"},
		{"encoded slash", get("/v1/requests/a%2Fb"), 404, api.CodeNotFound, "route"},
		{"method", httptest.NewRequest(http.MethodDelete, "/v1/requests/r1", nil), 405, api.CodeMethod, "DELETE"},
		{"POST to a read", postJSON("/v1/whoami", "{}"), 405, api.CodeMethod, "POST"},
		{"XML please", get("/v1/requests", "Accept", "application/xml"), 406, api.CodeNotAcceptable, "application/json"},
		{"JSON not wanted", get("/v1/requests", "Accept", "application/json;q=0, text/html"), 406, api.CodeNotAcceptable, "application/json"},
		{"events as JSON", get("/v1/events", "Accept", "application/json"), 406, api.CodeNotAcceptable, "streams"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake()
			w := call(newHandler(t, f), tt.req)
			p := problem(t, w)
			if p.Status != tt.status || p.Code != tt.code || !strings.Contains(p.Detail, tt.detail) {
				t.Errorf("got %d %s %q, want %d %s …%s…", p.Status, p.Code, p.Detail, tt.status, tt.code, tt.detail)
			}
			if f.called() != 0 {
				t.Error("the backend heard of it")
			}
		})
	}
}

func TestNobodyGetsNothing(t *testing.T) {
	w := httptest.NewRecorder()
	newHandler(t, newFake()).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v1/whoami", nil))
	if p := problem(t, w); p.Status != http.StatusUnauthorized {
		t.Errorf("got %+v", p)
	}
}

func TestErrorsOfTheBackend(t *testing.T) {
	f := newFake()
	h := newHandler(t, f)
	f.err = errStale
	p := problem(t, call(h, postJSON("/v1/requests/r1/decisions", `{"decision":"approve","hash":"h"}`)))
	if p.Status != http.StatusConflict || p.Code != api.CodeStale || p.Detail != "the request changed" || p.Next != "look again" {
		t.Errorf("stale: %+v", p)
	}
	f.err = errSecret
	w := call(h, postJSON("/v1/requests", goodRequest))
	if p := problem(t, w); p.Code != api.CodeInternal || strings.Contains(w.Body.String(), "bbolt") {
		t.Errorf("internal text left: %s", w.Body)
	}
	if p := problem(t, call(h, httptest.NewRequest(http.MethodGet, "/v1/policy", nil))); p.Code != api.CodeInternal {
		t.Errorf("panic: %+v", p)
	}
}

func TestAcceptedMediaTypes(t *testing.T) {
	for _, accept := range []string{"", "*/*", "application/*", "text/html, application/json;q=0.5", "application/problem+json"} {
		r := httptest.NewRequest(http.MethodGet, "/v1/requests", nil)
		if accept != "" {
			r.Header.Set("Accept", accept)
		}
		if w := call(newHandler(t, newFake()), r); w.Code != http.StatusOK {
			t.Errorf("Accept %q: status %d %s", accept, w.Code, w.Body)
		}
	}
}

func TestACancelNeedsNoBody(t *testing.T) {
	for _, body := range []string{"", "{}"} {
		if w := call(newHandler(t, newFake()), postJSON("/v1/requests/r1/cancel", body)); w.Code != http.StatusOK {
			t.Errorf("body %q: status %d %s", body, w.Code, w.Body)
		}
	}
	if w := call(newHandler(t, newFake()), postJSON("/v1/requests/r1/cancel", `{"x":1}`)); w.Code != http.StatusUnprocessableEntity {
		t.Errorf("unknown member: status %d %s", w.Code, w.Body)
	}
}

func TestAuditEntriesLeaveByteForByte(t *testing.T) {
	body := `{"actor":"a<b>&c","kind":"x"}`
	f := &auditFake{fake: newFake(), entry: body}
	w := call(newHandler(t, f), httptest.NewRequest(http.MethodGet, "/v1/audit/entries", nil))
	got, _ := io.ReadAll(w.Body)
	if !bytes.Contains(got, []byte(body)) {
		t.Errorf("got %s", got)
	}
}

func discardLogger() *slog.Logger { return slog.New(slog.DiscardHandler) }
