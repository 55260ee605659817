package notify

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestResolver: it is asked by name, with a signature that it can check, and what it answers comes back as it is.
func TestResolver(t *testing.T) {
	var got http.Header
	var body []byte
	server, roots := tlsServer(t, func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Clone()
		body, _ = io.ReadAll(r.Body)
		_, _ = io.WriteString(w, `{"on_call":["bob"]}`)
	})
	now := time.UnixMilli(1772355601000)
	r, err := NewResolver(ResolverConfig{
		Group: "leads", URL: server.URL + "/who?token=secret-query", Roots: roots, Keys: []SigningKey{key(t, secretText)},
	}, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	answer, err := r.Ask(t.Context(), "duty_1", []string{"bob", "dave"})
	if err != nil || string(answer) != `{"on_call":["bob"]}` {
		t.Errorf("%q, %v", answer, err)
	}
	if want := `{"group":"leads","members":["bob","dave"],"at":"2026-03-01T09:00:01Z"}`; string(body) != want {
		t.Errorf("%s, want %s", body, want)
	}
	if got.Get("Webhook-Id") != "duty_1" || got.Get("Webhook-Timestamp") != "1772355601" || got.Get("Webhook-Signature") != sign([]SigningKey{key(t, secretText)}, "duty_1", "1772355601", body) {
		t.Errorf("%v", got)
	}
	if r.Group() != "leads" || r.Every() != DefaultEvery || r.Host() != server.URL {
		t.Errorf("%s, %s, %s", r.Group(), r.Every(), r.Host())
	}
}

// TestResolverAttacks: who answers for a resolver has a node call nobody else, fill no memory, and write nothing into its log.
func TestResolverAttacks(t *testing.T) {
	var reached atomic.Int64
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	t.Cleanup(elsewhere.Close)
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"it sends elsewhere": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		}, "redirects are not followed"},
		"words":             {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "\x1b[2J"+secretText, 500) }, "answered 500"},
		"without end":       {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 1<<20)) }, errLongAnswer.Error()},
		"one byte too long": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, maxAnswer+1)) }, errLongAnswer.Error()},
		"just as long":      {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, maxAnswer)) }, ""},
		"it breaks off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "99")
			_, _ = w.Write([]byte(`{"on_call":[]`))
		}, errCutOff.Error()},
		"there is nobody":       {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }, "answered 404"},
		"it breaks off at once": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
	} {
		server, roots := tlsServer(t, c.answer)
		r, err := NewResolver(ResolverConfig{Group: "leads", URL: server.URL + "/secret-path", Roots: roots, Keys: []SigningKey{key(t, secretText)}}, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.Ask(t.Context(), "duty_1", nil)
		switch {
		case c.want == "" && err != nil, c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", name, err, c.want)
		case err != nil && (strings.Contains(err.Error(), "secret-path") || strings.Contains(err.Error(), secretText)):
			t.Errorf("%s: %v tells what it should not", name, err)
		}
	}
	if reached.Load() > 0 {
		t.Error("a redirect was followed")
	}
}

// TestResolverRefused: a resolver that could be read on the way, or that cannot know who asks, is none.
func TestResolverRefused(t *testing.T) {
	k := []SigningKey{key(t, secretText)}
	for field, c := range map[string]ResolverConfig{
		"group":        {URL: "https://w.test/", Keys: k},
		"url":          {Group: "leads", URL: "http://w.test/", Keys: k},
		"secret_files": {Group: "leads", URL: "https://w.test/"},
		"every":        {Group: "leads", URL: "https://w.test/", Keys: k, Every: time.Second},
	} {
		if _, err := NewResolver(c, time.Now); !isField(err, field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func isField(err error, field string) bool {
	f, ok := errors.AsType[*FieldError](err)
	return ok && f.Field == field
}
