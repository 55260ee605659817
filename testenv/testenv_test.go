package testenv_test

import (
	"context"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/testenv"
)

// The whole path, by what a service owner would write.
func TestFromRefusalToExpiry(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t, testenv.Options{})
	up := env.HTTPUpstream(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Header.Get("X-Hallpass-Subject"))
	}))
	p := env.Proxy("payments", testenv.ProxyOptions{Upstream: up})

	get := func(c *http.Client, path string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.URL(path), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}

	if status, _ := get(env.HTTPClient(env.Certificate("alice")), "/accounts/1"); status != http.StatusForbidden {
		t.Fatalf("without a grant: status %d, want 403", status)
	}
	granted := env.Grant("alice", "payments", time.Hour, "GET /accounts/**")
	alice := env.HTTPClient(granted.Cert)
	if status, body := get(alice, "/accounts/1"); status != http.StatusOK || body != "spiffe://acme.test/user/alice" {
		t.Fatalf("with a grant: status %d, the upstream saw %q", status, body)
	}
	if status, _ := get(alice, "/admin"); status != http.StatusForbidden {
		t.Fatalf("outside the scope: status %d, want 403", status)
	}

	env.Revoke("bob", granted.ID)
	env.Eventually("the revoked grant is refused", func() bool {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.URL("/accounts/1"), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := alice.Do(req)
		if err != nil {
			return true
		}
		defer func() { _ = resp.Body.Close() }()
		return resp.StatusCode == http.StatusForbidden
	})
}

// With every control node gone a live grant keeps working, and nobody gets a
// new one.
func TestControlPlaneGone(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t, testenv.Options{})
	up := env.HTTPUpstream(http.NotFoundHandler())
	p := env.Proxy("payments", testenv.ProxyOptions{Upstream: up})
	granted := env.Grant("alice", "payments", time.Hour, "GET /accounts/**")
	for _, n := range env.Nodes() {
		n.Kill()
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.URL("/accounts/1"), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := env.HTTPClient(granted.Cert).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusNotFound { // the upstream's own answer
		t.Fatalf("status %d, want the upstream's 404", resp.StatusCode)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := env.Client("alice").WhoAmI(ctx); err == nil {
		t.Fatal("a dead cluster answers")
	}
	for _, n := range env.Nodes() {
		n.Start()
	}
	env.WaitReady()
	if g, err := env.Client("alice").Grant(t.Context(), granted.ID); err != nil || g.State != api.GrantActive {
		t.Fatalf("after the restart the grant is %q: %v", g.State, err)
	}
}
