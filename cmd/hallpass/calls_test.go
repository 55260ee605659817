package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
)

// createArgs asks for what request gives.
func createArgs(more ...string) []string {
	return append([]string{
		"request", "create", "payments", "--allow", "GET /accounts/**", "--for", "30m", "--reason", "ticket 4711",
	}, more...)
}

func TestRequestStatuses(t *testing.T) {
	state := func(s string) api.Request { return request(func(r *api.Request) { r.State = s }) }
	denied := api.NewProblem(api.CodeDenied, "no rule allows it", "ask for less")
	denied.RequestID = "req-1"
	tests := []struct {
		name    string
		created any // what POST /v1/requests answers
		code    int
		later   api.Request // what GET /v1/requests/ID answers
		args    []string
		status  int
		stdout  string
		stderr  string
	}{
		{"pending", state(api.RequestPending), 201, api.Request{}, createArgs(), exitOK, "state         pending", "next: an approver runs: hallpass review show 01a2"},
		{"quiet", state(api.RequestPending), 201, api.Request{}, createArgs("-q"), exitOK, "01a20afa-e731-7f26-a3d8-3e7dc7f78185\n", ""},
		{"granted at once", state(api.RequestApproved), 201, api.Request{}, createArgs("--wait"), exitOK, "approved", "next: hallpass grant cert"},
		{"approved while waiting", state(api.RequestPending), 201, state(api.RequestApproved), createArgs("--wait=1m"), exitOK, "approved", "waits for payments-owners (0 of 1)"},
		{"denied while waiting", state(api.RequestPending), 201, state(api.RequestDenied), createArgs("--wait=1m"), exitDenied, "denied", "is denied"},
		{"expired while waiting", state(api.RequestPending), 201, state(api.RequestExpired), createArgs("--wait=1m"), exitDenied, "expired", "is expired"},
		{"still pending", state(api.RequestPending), 201, state(api.RequestPending), createArgs("--wait=20ms"), exitPending, "pending", "is still pending: it needs payments-owners (0 of 1)"},
		{"refused by the policy", denied, 403, api.Request{}, createArgs(), exitDenied, "", "hallpass: denied: no rule allows it\nnext: ask for less\nlogs: request req-1\n"},
		{"dry run, allowed", api.DryRun{Allowed: true, MaxDuration: api.Duration(time.Hour)}, 200, api.Request{}, createArgs("--dry-run"), exitOK, "at most       1h", ""},
		{"dry run, denied", api.DryRun{Reason: "no rule"}, 200, api.Request{}, createArgs("--dry-run"), exitDenied, "because  no rule", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t)
			f.answer("POST /v1/requests", tt.code, tt.created)
			f.mux.HandleFunc("GET /v1/requests/{id}", func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Query().Get("wait") != "" && tt.later.State == api.RequestPending {
					<-r.Context().Done()
					return
				}
				reply(w, http.StatusOK, tt.later)
			})
			got := f.as(t, f.identity, tt.args...)
			if got.status != tt.status || !strings.Contains(got.stdout, tt.stdout) || !strings.Contains(got.stderr, tt.stderr) {
				t.Errorf("status %d, want %d, with %q and %q:\n%s%s", got.status, tt.status, tt.stdout, tt.stderr, got.stdout, got.stderr)
			}
		})
	}
}

func TestTheServerMustKnowWhoAsks(t *testing.T) {
	f, other := newFake(t), newFake(t)
	f.answer("GET /v1/requests", http.StatusOK, api.RequestList{})
	if got := f.as(t, f.identity, "request", "list"); got.status != exitOK {
		t.Fatalf("with a good identity: %+v", got)
	}
	// An identity of another root: its bundle does not know the server either.
	if got := f.as(t, other.identity, "request", "list"); got.status == exitOK {
		t.Errorf("an identity of another root: %+v", got)
	}
	// An identity that the server does not accept, though it trusts the server.
	root, err := os.ReadFile(filepath.Join(f.identity, ca.FolderIdentityBundle))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(other.identity, ca.FolderIdentityBundle), root, 0o600); err != nil {
		t.Fatal(err)
	}
	got := f.as(t, other.identity, "request", "list")
	if got.status != exitUnauthenticated || !strings.Contains(got.stderr, "does not accept this identity") {
		t.Errorf("a stranger's identity: %+v", got)
	}
	problem := api.NewProblem(api.CodeUnauthorized, "who are you", "")
	f.answer("GET /v1/grants", http.StatusUnauthorized, problem)
	if got := f.as(t, f.identity, "grant", "list"); got.status != exitUnauthenticated {
		t.Errorf("a 401: %+v", got)
	}
	if got := run(t, []string{"HALLPASS_SERVER=https://" + closedAddress(t), "HALLPASS_IDENTITY=" + f.identity}, "request", "list", "--timeout", "1ms"); got.status != exitError {
		t.Errorf("nobody there: %+v", got)
	}
}

func TestReviewNamesTheHashThatWasShown(t *testing.T) {
	f := newFake(t)
	f.answer("GET /v1/requests/{id}", http.StatusOK, request(nil))
	var in api.DecisionInput
	f.mux.HandleFunc("POST /v1/requests/{id}/decisions", func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			t.Error(err)
		}
		if in.Hash != "66a7" {
			reply(w, http.StatusConflict, api.NewProblem(api.CodeStale, "it has changed", "look again"))
			return
		}
		reply(w, http.StatusOK, request(func(r *api.Request) { r.State = api.RequestApproved }))
	})
	got := f.as(t, f.identity, "review", "approve", "ID", "--only", "GET /accounts/1", "--for", "5m", "--comment", "fine")
	if got.status != exitOK || !strings.Contains(got.stderr, "ticket 4711") || strings.Contains(got.stdout, "pending") {
		t.Errorf("approve: %+v", got)
	}
	want := api.DecisionInput{Decision: "approve", Hash: "66a7", Comment: "fine", Permissions: []string{"GET /accounts/1"}, Duration: api.Duration(5 * time.Minute)}
	if in.Decision != want.Decision || in.Hash != want.Hash || in.Comment != want.Comment || in.Permissions[0] != want.Permissions[0] || in.Duration != want.Duration {
		t.Errorf("decision %+v, want %+v", in, want)
	}
	if got := f.as(t, f.identity, "review", "deny", "ID", "--hash", "66a7"); got.status != exitOK || in.Decision != "deny" {
		t.Errorf("deny: %+v, %+v", got, in)
	}
	got = f.as(t, f.identity, "review", "approve", "ID", "--hash", "old")
	if got.status != exitError || !strings.Contains(got.stderr, "changed since: it has changed\nnext: look again") {
		t.Errorf("approve what has changed: %+v", got)
	}
}

func TestGrantCertBeforeTheDecision(t *testing.T) {
	for state, want := range map[string]int{api.RequestPending: exitPending, api.RequestDenied: exitDenied, api.RequestCancelled: exitDenied} {
		f := newFake(t)
		f.answer("GET /v1/grants/{id}", http.StatusNotFound, api.NewProblem(api.CodeNotFound, "no such grant", ""))
		f.answer("GET /v1/requests/{id}", http.StatusOK, request(func(r *api.Request) { r.State = state }))
		if got := f.as(t, f.identity, "grant", "cert", "ID", "--out", t.TempDir()); got.status != want {
			t.Errorf("%s: %+v, want status %d", state, got, want)
		}
	}
}

func TestGrantCertWritesAFolder(t *testing.T) {
	f := newFake(t)
	chain, err := os.ReadFile(filepath.Join(f.identity, ca.FolderChain))
	if err != nil {
		t.Fatal(err)
	}
	name := "spiffe://acme.test/user/alice"
	f.answer("GET /v1/grants/{id}", http.StatusOK, api.Grant{ID: "ID", SPIFFEID: name, Service: "payments"})
	f.answer("POST /v1/grants/{id}/certificate", http.StatusOK, api.Certificate{Certificate: string(chain), SPIFFEID: name})
	f.answer("GET /v1/bundle", http.StatusOK, api.Bundle{IdentityRoots: "identity roots", GrantRoots: "grant roots"})
	dir := filepath.Join(t.TempDir(), "grant")
	if got := f.as(t, f.identity, "grant", "cert", "ID", "--out", dir); got.status != exitOK {
		t.Fatalf("grant cert: %+v", got)
	}
	info, err := os.Stat(filepath.Join(dir, ca.FolderKey))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's mode: %v, %v", info, err)
	}
	for file, want := range map[string]string{
		ca.FolderChain: string(chain), ca.FolderIdentityBundle: "identity roots", ca.FolderGrantsBundle: "grant roots",
	} {
		if got, err := os.ReadFile(filepath.Join(dir, file)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", file, got, err)
		}
	}
	// Another grant's certificate never lands in the same folder.
	f.answer("GET /v1/grants/other", http.StatusOK, api.Grant{ID: "other", SPIFFEID: "spiffe://grants.acme.test/x"})
	if got := f.as(t, f.identity, "grant", "cert", "other", "--out", dir); got.status != exitError || !strings.Contains(got.stderr, "choose another --out") {
		t.Errorf("into another's folder: %+v", got)
	}
}

func TestConnectPicksTheOnlyGrant(t *testing.T) {
	for n, want := range map[int]int{0: exitDenied, 2: exitUsage} {
		f := newFake(t)
		list := api.GrantList{Grants: make([]api.Grant, n)}
		f.answer("GET /v1/grants", http.StatusOK, list)
		got := f.as(t, f.identity, "connect", "payments", "--via", "127.0.0.1:1", "--listen", "127.0.0.1:0")
		if got.status != want {
			t.Errorf("%d grants: %+v, want status %d", n, got, want)
		}
	}
}
