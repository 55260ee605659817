package console_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/testenv"
)

func policyChange(edit func(*api.Change)) api.Change {
	ch := api.Change{
		ID: "p1", State: api.ChangePending, Author: id("dana"), AuthorPerson: "dana", Hash: "77b8", BaseRevision: 3, Needed: 2,
		Change: api.ChangeSpec{Kind: api.ChangePolicySet, YAML: "version: 1\nrules: [{name: <script>alert(1)</script>}]\n"},
	}
	if edit != nil {
		edit(&ch)
	}
	return ch
}

// TestChangePages: what would change is shown line by line, as text, and who may decide on it.
func TestChangePages(t *testing.T) {
	b := newBed(t)
	b.changes = []api.Change{
		policyChange(nil),
		policyChange(func(ch *api.Change) { ch.ID, ch.BaseRevision = "stale", 2 }),
		policyChange(func(ch *api.Change) { ch.ID, ch.AuthorPerson = "mine", "bob" }),
		policyChange(func(ch *api.Change) {
			ch.ID, ch.Decisions = "voted", []api.Decision{{Decision: "approve", Person: "bob", Identity: id("bob")}}
		}),
		policyChange(func(ch *api.Change) { ch.ID, ch.State = "done", api.ChangeApplied }),
		policyChange(func(ch *api.Change) {
			ch.ID, ch.Change = "group", api.ChangeSpec{Kind: api.ChangeGroupSet, Name: "owners", Members: []string{"bob", "dana"}, Substitutes: []string{"erin"}}
		}),
		policyChange(func(ch *api.Change) {
			ch.ID, ch.Change = "person", api.ChangeSpec{Kind: api.ChangePersonSet, Name: "alice", IDs: []string{id("alice"), id("alice-phone")}, Owns: []string{"spiffe://acme.test/job/*"}}
		}),
		policyChange(func(ch *api.Change) {
			ch.ID, ch.Change = "gone", api.ChangeSpec{Kind: api.ChangePersonDelete, Name: "alice"}
		}),
		policyChange(func(ch *api.Change) {
			ch.ID, ch.Change = "unblock", api.ChangeSpec{Kind: api.ChangeSubjectUnblock, Subject: id("mallory")}
		}),
	}
	b.substitutes = map[string][]string{"owners": {"alice"}}
	b.cluster = api.Cluster{Blocked: []api.Block{{Subject: id("mallory"), Reason: "a lost laptop"}}}
	who := b.signIn(t)
	wants(t, who.get("/changes/p1"), http.StatusOK, "You are no admin", "of the policy", "<ins>+ rules: [{name: &lt;script&gt;alert(1)&lt;/script&gt;}]</ins>", "<del>- rules: []</del>", "  version: 1")
	if got := who.get("/"); strings.Contains(got.body, "for an admin to decide") {
		t.Error("who is no admin is sent to changes")
	}
	b.change(func() { b.me.Admin = true })
	wants(t, who.get("/"), http.StatusOK, "6 changes of policy, groups or persons")
	if got := who.get("/changes/p1"); !strings.Contains(got.body, ">Approve<") || strings.Contains(got.body, "Look twice") {
		t.Errorf("an admin may not decide:\n%s", got.body)
	}
	wants(t, who.get("/changes/stale"), http.StatusOK, "Look twice", "written against revision 2")
	wants(t, who.get("/changes/voted"), http.StatusOK, "You have approved it already.", "You approved this", ">Deny<")
	wants(t, who.get("/changes/group"), http.StatusOK, "of <bdi>the group owners", "<del>- member carol</del>", "<ins>+ member dana</ins>", "  member bob", "<del>- substitute alice</del>", "<ins>+ substitute erin</ins>")
	wants(t, who.get("/changes/person"), http.StatusOK, "<ins>+ identity "+id("alice-phone"), "  identity "+id("alice"), "answers for spiffe://acme.test/job/*")
	wants(t, who.get("/changes/gone"), http.StatusOK, "<del>- identity "+id("alice"))
	wants(t, who.get("/changes/unblock"), http.StatusOK, "it was blocked because: <bdi>a lost laptop", "<del>- blocked "+id("mallory"))
	for path, words := range map[string]string{"/changes/mine": "You have proposed it. Two other admins decide.", "/changes/done": "It is applied: there is nothing left to decide."} {
		got := who.get(path)
		wants(t, got, http.StatusOK, words)
		if strings.Contains(got.body, ">Approve<") || strings.Contains(got.body, ">Deny<") {
			t.Errorf("%s can be decided on", path)
		}
	}
	wants(t, who.get("/changes?state=applied"), http.StatusOK, "/changes/done")
	wants(t, who.get("/changes?state=lost"), http.StatusUnprocessableEntity, "no such state")
	wants(t, who.get("/changes/nowhere"), http.StatusNotFound)
}

// TestChangeForms: a decision is on what was on the screen, from a page of this session, and a denial says why.
func TestChangeForms(t *testing.T) {
	b := newBed(t)
	b.changes, b.me.Admin = []api.Change{policyChange(nil)}, true
	who := b.signIn(t)
	form := fields(t, who.get("/changes/p1").body, "/changes/p1/decide")
	for name, value := range map[string]string{"csrf": "another", "hash": "", "decision": "apply"} {
		was := form.Get(name)
		form.Set(name, value)
		if got := who.post("/changes/p1/decide", form); got.StatusCode < 400 || len(b.revoked) != 0 {
			t.Errorf("%s is %q: %d, %v", name, value, got.StatusCode, b.revoked)
		}
		form.Set(name, was)
	}
	form.Set("decision", "deny")
	wants(t, who.post("/changes/p1/decide", form), http.StatusUnprocessableEntity, "denial needs a reason. Nothing was decided.")
	form.Set("comment", "not now")
	if got := who.post("/changes/p1/decide", form); got.StatusCode != http.StatusSeeOther || got.Header.Get("Location") != "/changes/p1" || b.revoked[0] != "deny change p1 77b8 not now" {
		t.Errorf("%d %v", got.StatusCode, b.revoked)
	}
}

// TestChangeOnACluster: two admins decide on a policy on these pages, and it is in force.
func TestChangeOnACluster(t *testing.T) {
	env := testenv.Start(t, testenv.Options{Nodes: 1})
	p, err := env.Client("carol").Policy(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ch, err := env.Client("carol").ProposeChange(t.Context(), api.ChangeInput{
		BaseRevision: p.Revision, Change: api.ChangeSpec{Kind: api.ChangePolicySet, YAML: strings.Replace(p.YAML, "1h", "2h", 1)},
	})
	if err != nil {
		t.Fatal(err)
	}
	path := "/changes/" + ch.ID
	carol, dana, erin := as(t, env, "carol"), as(t, env, "dana"), as(t, env, "erin")
	wants(t, dana.get("/"), http.StatusOK, "1 change of policy, groups or persons")
	page := dana.get(path)
	wants(t, page, http.StatusOK, "<del>-     max_duration: 1h</del>", "<ins>+     max_duration: 2h</ins>", "0 of 2, other than its author")
	form := fields(t, page.body, path+"/decide")
	carols := fields(t, carol.get(path).body, path+"/cancel")
	carols.Set("hash", ch.Hash)
	carols.Set("decision", "approve")
	wants(t, carol.post(path+"/decide", carols), http.StatusForbidden, "Nothing was decided.")
	form.Set("hash", strings.Repeat("0", len(ch.Hash)))
	if got := dana.post(path+"/decide", form); got.StatusCode < 400 {
		t.Errorf("another hash: %d", got.StatusCode)
	}
	form.Set("hash", ch.Hash)
	for range 2 { // by a double click
		if got := dana.post(path+"/decide", form); got.StatusCode != http.StatusSeeOther {
			t.Errorf("%d %s", got.StatusCode, got.body)
		}
	}
	wants(t, dana.get(path), http.StatusOK, "1 of 2, other than its author", "It waits for another admin.")
	if got := erin.post(path+"/decide", fields(t, erin.get(path).body, path+"/decide")); got.StatusCode != http.StatusSeeOther {
		t.Errorf("%d %s", got.StatusCode, got.body)
	}
	wants(t, erin.get(path), http.StatusOK, ">applied<", "What it said")
	wants(t, erin.get("/policy"), http.StatusOK, "max_duration: 2h")
}
