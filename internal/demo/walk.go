package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"
)

// ErrFailed is returned when a step of the walk did not go as it should.
var ErrFailed = errors.New("demo: a step failed")

// request is what the command line says of an access request.
type request struct {
	ID    string `json:"id"`
	State string `json:"state"`
}

// walker is the state that the steps of the walk hand on.
type walker struct {
	*Stage
	command string  // what the first refusal told alice to type
	first   request // the request it made
	alice   *caller // with the grant certificate
}

// Run starts everything, walks, stops everything and removes it. The last line
// is "demo: N steps passed, M failed".
func Run(ctx context.Context, o Options) error {
	s, err := NewStage(o)
	if err != nil {
		return err
	}
	defer s.Close()
	w := &walker{Stage: s}
	begin := time.Now()
	for _, step := range []struct {
		name string
		do   func(context.Context) (string, error)
	}{
		{"a cluster from nothing", w.build},
		{"no grant: refused", w.refused},
		{"ask, as the refusal says", w.ask},
		{"approve one's own request: refused", w.selfApproval},
		{"somebody else approves", w.approve},
		{"the certificate is the permission", w.admitted},
		{"outside its scope: refused", w.outside},
		{"a grant is not an identity", w.notAnIdentity},
		{"leader killed: access goes on", w.leaderKilled},
		{"leader killed: so do approvals", w.newLeader},
		{"all control nodes killed", w.allKilled},
		{"restarted: nothing was lost", w.restarted},
		{"a live stream ends with the grant", w.streamExpires},
		{"revoked: cut at once", w.revoked},
		{"the audit log, verified offline", w.audited},
		{"a tampered copy: refused", w.tampered},
	} {
		if ctx.Err() != nil || (w.passed == 0 && w.failed > 0) {
			break // without a cluster there is nothing to walk on
		}
		stepCtx, done := context.WithTimeout(ctx, time.Minute)
		s.step(step.name, func() (string, error) { return step.do(stepCtx) })
		done()
	}
	fmt.Fprintf(s.out, "     took %s\n", time.Since(begin).Round(100*time.Millisecond))
	fmt.Fprintf(s.out, "demo: %d steps passed, %d failed\n", w.passed, w.failed)
	if w.failed > 0 || ctx.Err() != nil {
		return ErrFailed
	}
	return nil
}

func (w *walker) build(ctx context.Context) (string, error) {
	if err := w.Start(ctx); err != nil {
		return "", err
	}
	return "three control nodes, a proxy and an upstream, each its own process", nil
}

func (w *walker) refused(ctx context.Context) (string, error) {
	c, err := w.newCaller(w.Identity("alice"))
	if err != nil {
		return "", err
	}
	said, err := c.want(ctx, http.StatusForbidden, http.MethodGet, "/accounts/42")
	if err != nil {
		return "", err
	}
	if !strings.HasPrefix(said.Command, "hallpass request create ") {
		return "", fmt.Errorf("the refusal names no command: %+v", said)
	}
	w.command = said.Command
	return "GET /accounts/42 → 403, " + said.Command, nil
}

// ask types what the refusal said. Its words are split as a shell would; they
// come from the proxy's own refusal, so only simple quotes are in them.
func (w *walker) ask(ctx context.Context) (string, error) {
	args, err := splitWords(strings.TrimPrefix(w.command, "hallpass "))
	if err != nil {
		return "", err
	}
	if err := w.read(ctx, &w.first, "alice", args...); err != nil {
		return "", err
	}
	if w.first.State != "pending" {
		return "", fmt.Errorf("the request is %s at once", w.first.State)
	}
	return "request " + w.first.ID + " is pending", nil
}

func (w *walker) selfApproval(ctx context.Context) (string, error) {
	for _, as := range []string{"alice", "alice-phone"} {
		a, err := w.cli(ctx, as, "review", "approve", w.first.ID)
		if err != nil {
			return "", err
		}
		if a.status != 3 {
			return "", fmt.Errorf("as %s: exit status %d where 3 (denied) is right: %s", as, a.status, a.stderr)
		}
	}
	return "by her other identity too", nil
}

func (w *walker) approve(ctx context.Context) (string, error) {
	var after request
	if err := w.read(ctx, &after, "bob", "review", "approve", w.first.ID, "--comment", "looks right"); err != nil {
		return "", err
	}
	return "bob: " + after.State, nil
}

func (w *walker) admitted(ctx context.Context) (string, error) {
	folder := w.path("people", "alice-grant")
	if _, err := w.must(ctx, "alice", "grant", "cert", w.first.ID, "--out", folder); err != nil {
		return "", err
	}
	var err error
	if w.alice, err = w.newCaller(folder); err != nil {
		return "", err
	}
	if _, err := w.alice.want(ctx, http.StatusOK, http.MethodGet, "/accounts/42"); err != nil {
		return "", err
	}
	words, err := w.must(ctx, "", "cert", "inspect", folder+"/cert.pem")
	if err != nil {
		return "", err
	}
	if !strings.Contains(words, service) {
		return "", fmt.Errorf("cert inspect does not name the service: %s", words)
	}
	return "GET /accounts/42 → 200", nil
}

func (w *walker) outside(ctx context.Context) (string, error) {
	for _, c := range [][2]string{{http.MethodGet, "/admin"}, {http.MethodPost, "/accounts/42"}, {http.MethodGet, "/accounts/43"}} {
		if _, err := w.alice.want(ctx, http.StatusForbidden, c[0], c[1]); err != nil {
			return "", err
		}
	}
	for _, path := range []string{"/accounts/%2e%2e/admin", "/accounts/42//", "/accounts/42;x"} {
		if _, err := w.alice.want(ctx, http.StatusBadRequest, http.MethodGet, path); err != nil {
			return "", err
		}
	}
	return "GET /admin → 403, GET /accounts/%2e%2e/admin → 400", nil
}

func (w *walker) notAnIdentity(ctx context.Context) (string, error) {
	a, err := w.cli(ctx, "alice-grant", "request", "list")
	if err != nil {
		return "", err
	}
	if a.status != 5 {
		return "", fmt.Errorf("exit status %d where 5 (not authenticated) is right: %s", a.status, a.stderr)
	}
	return "the control API ends the handshake", nil
}

// leader returns the name of the node that leads.
func (w *walker) leader(ctx context.Context) (string, error) {
	var cluster struct {
		Leader string `json:"leader"`
	}
	if err := w.read(ctx, &cluster, "bob", "cluster", "status"); err != nil {
		return "", err
	}
	if w.nodes[cluster.Leader] == nil {
		return "", fmt.Errorf("the leader is %q, no node of ours", cluster.Leader)
	}
	return cluster.Leader, nil
}

func (w *walker) leaderKilled(ctx context.Context) (string, error) {
	name, err := w.leader(ctx)
	if err != nil {
		return "", err
	}
	w.KillNode(name)
	if _, err := w.alice.want(ctx, http.StatusOK, http.MethodGet, "/accounts/42"); err != nil {
		return "", err
	}
	return name + " killed, GET /accounts/42 → 200", nil
}

func (w *walker) newLeader(ctx context.Context) (string, error) {
	id, err := w.granted(ctx, "10m")
	if err != nil {
		return "", err
	}
	name, err := w.leader(ctx)
	if err != nil {
		return "", err
	}
	return "under " + name + ": " + id + " granted", nil
}

// granted asks as alice and approves as bob.
func (w *walker) granted(ctx context.Context, duration string) (string, error) {
	var r request
	if err := w.read(ctx, &r, "alice", "request", "create", service, "--allow", "GET /stream",
		"--for", duration, "--reason", "watching the ledger"); err != nil {
		return "", err
	}
	if err := w.read(ctx, &r, "bob", "review", "approve", r.ID); err != nil {
		return "", err
	}
	return r.ID, nil
}

func (w *walker) allKilled(ctx context.Context) (string, error) {
	for _, name := range nodes {
		w.KillNode(name)
	}
	if _, err := w.alice.want(ctx, http.StatusOK, http.MethodGet, "/accounts/42"); err != nil {
		return "", err
	}
	a, err := w.cli(ctx, "alice", "request", "list", "--timeout", "1s")
	if err != nil {
		return "", err
	}
	if a.status == 0 {
		return "", errors.New("somebody still answers the control API")
	}
	return "GET /accounts/42 → 200, from the certificate alone", nil
}

func (w *walker) restarted(ctx context.Context) (string, error) {
	if err := w.StartNodes(ctx, nodes[:]...); err != nil {
		return "", err
	}
	var r request
	if err := w.read(ctx, &r, "alice", "request", "get", w.first.ID); err != nil {
		return "", err
	}
	if r.State == "pending" {
		return "", errors.New("the approval is gone")
	}
	return "request " + r.ID + " is still " + r.State, nil
}

// live opens the stream under a fresh grant of that length.
func (w *walker) live(ctx context.Context, duration, folder string) (string, <-chan cut, error) {
	id, err := w.granted(ctx, duration)
	if err != nil {
		return "", nil, err
	}
	folder = w.path("people", folder)
	if _, err := w.must(ctx, "alice", "grant", "cert", id, "--out", folder); err != nil {
		return "", nil, err
	}
	c, err := w.newCaller(folder)
	if err != nil {
		return "", nil, err
	}
	ended, err := c.follow(ctx)
	return id, ended, err
}

func (w *walker) streamExpires(ctx context.Context) (string, error) {
	_, ended, err := w.live(ctx, "6s", "alice-short")
	if err != nil {
		return "", err
	}
	select {
	case c := <-ended:
		late := c.at.Sub(c.notAfter)
		said := fmt.Sprintf("read error %+d ms from NotAfter %s, after %d events",
			late.Milliseconds(), c.notAfter.UTC().Format(time.TimeOnly), c.events)
		if late > time.Second || late < -3*time.Second || c.events == 0 {
			return "", errors.New(said)
		}
		return said, nil
	case <-ctx.Done():
		return "", fmt.Errorf("the stream was not cut: %w", ctx.Err())
	}
}

func (w *walker) revoked(ctx context.Context) (string, error) {
	id, ended, err := w.live(ctx, "10m", "alice-revoked")
	if err != nil {
		return "", err
	}
	if _, err := w.must(ctx, "bob", "grant", "revoke", id, "--reason", "the incident is over"); err != nil {
		return "", err
	}
	acknowledged := time.Now()
	select {
	case c := <-ended:
		after := c.at.Sub(acknowledged)
		if after > 5*time.Second {
			return "", fmt.Errorf("cut %s after the revocation was acknowledged", after)
		}
		return fmt.Sprintf("cut %+d ms from when the revoking command returned", after.Milliseconds()), nil
	case <-time.After(10 * time.Second):
		return "", errors.New("the stream goes on after the revocation")
	}
}

func (w *walker) audited(ctx context.Context) (string, error) {
	if _, err := w.must(ctx, "carol", "audit", "export", "--out", w.path("audit")); err != nil {
		return "", err
	}
	said, err := w.must(ctx, "", "audit", "verify", w.path("audit"), "--manifest", w.path("offline", "manifest.json"))
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(strings.TrimSpace(said), "\n")
	return line, nil
}

func (w *walker) tampered(ctx context.Context) (string, error) {
	file := w.path("audit", "entries.jsonl")
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	changed := bytes.Replace(text, []byte("user/bob"), []byte("user/eve"), 1)
	if bytes.Equal(text, changed) {
		return "", errors.New("bob is not in the audit log")
	}
	if err := os.WriteFile(file, changed, 0o600); err != nil {
		return "", err
	}
	a, err := w.cli(ctx, "", "audit", "verify", w.path("audit"), "--manifest", w.path("offline", "manifest.json"))
	if err != nil {
		return "", err
	}
	if a.status != 1 {
		return "", fmt.Errorf("exit status %d where 1 is right: %s", a.status, a.stdout)
	}
	line, _, _ := strings.Cut(a.stderr, "\n")
	return line, nil
}
