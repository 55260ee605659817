package console_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/approval/console"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeAPI answers what a test put into it, and remembers what was decided. What the cluster
// really says is asked of a real one, in cluster_test.go.
type fakeAPI struct {
	mu          sync.Mutex
	me          api.WhoAmI
	substitutes map[string][]string // of groups
	persons     []api.Person
	policy      api.Policy
	cluster     api.Cluster
	requests    []api.Request
	grants      []api.Grant
	changes     []api.Change
	entries     []string
	err         error // of every call but WhoAmI
	filters     []api.Filter
	decided     []api.DecisionInput
	revoked     []string
	tried       []api.RequestInput
	found       []api.ServiceFilter

	services     []api.Service
	moreServices string // cursor
	asked        []api.RequestInput
	says         api.DryRun // to what is tried
	events       chan api.Event
	watchers     atomic.Int32 // of events
}

func id(name string) string { return "spiffe://acme.test/user/" + name }

func newFakeAPI() *fakeAPI {
	person := func(name string, groups ...string) api.Person {
		return api.Person{Name: name, IDs: []string{id(name)}, Owns: []string{}, Groups: groups}
	}
	return &fakeAPI{
		me:      api.WhoAmI{ID: id("bob"), Person: "bob", Groups: []string{"owners"}, TrustDomain: "acme.test", NotAfter: time.Now().Add(time.Hour), Node: "n1"},
		persons: []api.Person{person("alice", "engineers"), person("bob", "owners"), person("carol", "admins", "owners"), person("dana", "admins")},
		policy:  api.Policy{Revision: 3, YAML: "version: 1\nrules: []\n"},
		events:  make(chan api.Event),
	}
}

func (f *fakeAPI) change(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
}

// with locks, and returns the error that the test wants.
func (f *fakeAPI) with(fn func()) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		fn()
	}
	return f.err
}

func (f *fakeAPI) WhoAmI(context.Context, ...api.CallOption) (api.WhoAmI, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.me, nil
}

func (f *fakeAPI) Persons(context.Context, ...api.CallOption) (out api.Persons, err error) {
	err = f.with(func() { out.Persons = f.persons })
	return out, err
}

// Groups has as members those whose groups say so, and the fake's own groups beside them.
func (f *fakeAPI) Groups(context.Context, ...api.CallOption) (out api.Groups, err error) {
	err = f.with(func() {
		in := map[string][]string{}
		for _, p := range f.persons {
			for _, g := range p.Groups {
				in[g] = append(in[g], p.Name)
			}
		}
		for name, members := range in {
			out.Groups = append(out.Groups, api.Group{Name: name, Members: members, Substitutes: f.substitutes[name]})
		}
	})
	return out, err
}

func (f *fakeAPI) Policy(context.Context, ...api.CallOption) (out api.Policy, err error) {
	err = f.with(func() { out = f.policy })
	return out, err
}

func (f *fakeAPI) Cluster(context.Context, ...api.CallOption) (out api.Cluster, err error) {
	err = f.with(func() { out = f.cluster })
	return out, err
}

func (f *fakeAPI) Requests(_ context.Context, q api.Filter, _ ...api.CallOption) (out api.RequestList, err error) {
	err = f.with(func() {
		f.filters = append(f.filters, q)
		for _, r := range f.requests {
			if match(q.State, r.State) && match(q.Service, r.Service) && match(q.Subject, r.Subject) {
				out.Requests = append(out.Requests, r)
			}
		}
	})
	return out, err
}

func (f *fakeAPI) CloseReview(ctx context.Context, id, finding string, _ ...api.CallOption) (api.Request, error) {
	r, err := f.Request(ctx, id)
	if err == nil {
		f.change(func() { f.revoked = append(f.revoked, "review "+id+" "+finding) })
	}
	return r, err
}

func (f *fakeAPI) OpenReviews(context.Context, api.Filter, ...api.CallOption) (out api.RequestList, err error) {
	err = f.with(func() {
		for _, r := range f.requests {
			if r.BreakGlass != nil && r.BreakGlass.ClosedAt == nil {
				out.Requests = append(out.Requests, r)
			}
		}
	})
	return out, err
}

func (f *fakeAPI) Services(_ context.Context, q api.ServiceFilter, _ ...api.CallOption) (out api.ServiceList, err error) {
	err = f.with(func() {
		f.found = append(f.found, q)
		for _, s := range f.services {
			if match(q.Name, s.Name) && strings.Contains(s.Name+s.Description, q.Query) {
				out.Services = append(out.Services, s)
			}
		}
		if q.Cursor == "" && q.Name == "" {
			out.Next = f.moreServices
		}
	})
	return out, err
}

func match(want, is string) bool { return want == "" || want == is }

func (f *fakeAPI) Request(_ context.Context, id string, _ ...api.CallOption) (out api.Request, err error) {
	err = f.with(func() {
		at := slices.IndexFunc(f.requests, func(r api.Request) bool { return r.ID == id })
		if at >= 0 {
			out = f.requests[at]
		}
	})
	if err == nil && out.ID == "" {
		err = api.NewProblem(api.CodeNotFound, "no request "+id+" that you may see", "check the id")
	}
	return out, err
}

func (f *fakeAPI) DryRun(_ context.Context, in api.RequestInput, _ ...api.CallOption) (out api.DryRun, err error) {
	err = f.with(func() {
		f.tried = append(f.tried, in)
		out = f.says
	})
	return out, err
}

func (f *fakeAPI) CreateRequest(_ context.Context, in api.RequestInput, _ ...api.CallOption) (out api.Request, err error) {
	err = f.with(func() {
		f.asked = append(f.asked, in)
		out = pending(nil)
	})
	return out, err
}

func (f *fakeAPI) DecideRequest(ctx context.Context, id string, in api.DecisionInput, _ ...api.CallOption) (api.Request, error) {
	r, err := f.Request(ctx, id)
	if err != nil {
		return r, err
	}
	if in.Hash != r.Hash {
		return r, api.NewProblem(api.CodeStale, "the request has changed since", "look at it again")
	}
	return r, f.with(func() { f.decided = append(f.decided, in) })
}

// ambiguous is a cluster that lost its quorum while it was asked to decide.
type undecided struct {
	*fakeAPI
	cause error
}

func (u undecided) DecideRequest(context.Context, string, api.DecisionInput, ...api.CallOption) (api.Request, error) {
	return api.Request{}, u.cause
}

func (u undecided) RevokeGrant(context.Context, string, string, ...api.CallOption) (api.Grant, error) {
	return api.Grant{}, u.cause
}

func (f *fakeAPI) CancelRequest(ctx context.Context, id string, _ ...api.CallOption) (api.Request, error) {
	r, err := f.Request(ctx, id)
	if err == nil {
		f.change(func() { f.revoked = append(f.revoked, "cancel "+id) })
	}
	return r, err
}

func (f *fakeAPI) Grants(_ context.Context, q api.Filter, _ ...api.CallOption) (out api.GrantList, err error) {
	err = f.with(func() {
		f.filters = append(f.filters, q)
		for _, g := range f.grants {
			if match(q.State, g.State) && match(q.Service, g.Service) && match(q.Subject, g.Subject) {
				out.Grants = append(out.Grants, g)
			}
		}
	})
	return out, err
}

func (f *fakeAPI) Grant(_ context.Context, id string, _ ...api.CallOption) (out api.Grant, err error) {
	err = f.with(func() {
		at := slices.IndexFunc(f.grants, func(g api.Grant) bool { return g.ID == id })
		if at >= 0 {
			out = f.grants[at]
		}
	})
	if err == nil && out.ID == "" {
		err = api.NewProblem(api.CodeNotFound, "no grant "+id+" that you may see", "check the id")
	}
	return out, err
}

func (f *fakeAPI) RevokeGrant(ctx context.Context, id, reason string, _ ...api.CallOption) (api.Grant, error) {
	g, err := f.Grant(ctx, id)
	if err == nil {
		f.change(func() { f.revoked = append(f.revoked, id+" "+reason) })
	}
	return g, err
}

func (f *fakeAPI) Changes(_ context.Context, state string, _ api.Page, _ ...api.CallOption) (out api.ChangeList, err error) {
	err = f.with(func() {
		for _, ch := range f.changes {
			if match(state, ch.State) {
				out.Changes = append(out.Changes, ch)
			}
		}
	})
	return out, err
}

func (f *fakeAPI) Change(_ context.Context, id string, _ ...api.CallOption) (out api.Change, err error) {
	err = f.with(func() {
		at := slices.IndexFunc(f.changes, func(ch api.Change) bool { return ch.ID == id })
		if at >= 0 {
			out = f.changes[at]
		}
	})
	if err == nil && out.ID == "" {
		err = api.NewProblem(api.CodeNotFound, "no change "+id, "check the id")
	}
	return out, err
}

func (f *fakeAPI) DecideChange(ctx context.Context, id string, in api.ChangeDecisionInput, _ ...api.CallOption) (api.Change, error) {
	ch, err := f.Change(ctx, id)
	if err == nil {
		f.change(func() { f.revoked = append(f.revoked, in.Decision+" change "+id+" "+in.Hash+" "+in.Comment) })
	}
	return ch, err
}

func (f *fakeAPI) CancelChange(ctx context.Context, id string, _ ...api.CallOption) (api.Change, error) {
	ch, err := f.Change(ctx, id)
	if err == nil {
		f.change(func() { f.revoked = append(f.revoked, "cancel change "+id) })
	}
	return ch, err
}

func (f *fakeAPI) AuditEntries(_ context.Context, from uint64, limit int, _ ...api.CallOption) (out api.AuditEntries, err error) {
	err = f.with(func() {
		out.Size = uint64(len(f.entries))
		for at := from; at < out.Size && len(out.Entries) < limit; at++ {
			out.Entries = append(out.Entries, json.RawMessage(f.entries[at]))
		}
	})
	return out, err
}

func (f *fakeAPI) AuditCheckpoint(context.Context, ...api.CallOption) (out api.AuditCheckpoint, err error) {
	return out, f.with(func() {})
}

func (f *fakeAPI) InclusionProof(context.Context, uint64, uint64, ...api.CallOption) (out api.InclusionProof, err error) {
	return out, f.with(func() {})
}

func (f *fakeAPI) WatchEvents(ctx context.Context, after uint64, fn func(api.Event) error) error {
	f.watchers.Add(1)
	defer f.watchers.Add(-1)
	for {
		select {
		case e := <-f.events:
			if e.ID <= after {
				continue
			}
			if err := fn(e); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// pending is a request of alice's.
func pending(change func(*api.Request)) api.Request {
	r := api.Request{
		ID: "01a20afa-e731-7f26-a3d8-3e7dc7f78185", State: api.RequestPending,
		Requester: id("alice"), Subject: id("alice"), RequesterPerson: "alice",
		Service: "payments", Permissions: []string{"GET /accounts/**"}, Reason: "ticket 4711",
		Duration: api.Duration(30 * time.Minute), CreatedAt: time.Date(2026, 3, 4, 11, 0, 0, 0, time.UTC), ExpiresAt: time.Date(2026, 3, 5, 11, 0, 0, 0, time.UTC),
		Hash: "66a7", PolicyRevision: 3, Rules: []string{"payments-read"}, Require: []api.Requirement{{Group: "owners", Approvals: 1}},
		Revisions: []api.Revision{{Hash: "66a7", Permissions: []string{"GET /accounts/**"}, Duration: api.Duration(30 * time.Minute), By: id("alice")}},
	}
	if change != nil {
		change(&r)
	}
	return r
}

const testHost = "hallpass-test.localhost:4711"

// bed is a console over a fake, and who signs in to it.
type bed struct {
	*fakeAPI
	local *console.Local
	pages *console.Console
	again []string // links to sign in once more, as the terminal has them
}

func newBed(t *testing.T) *bed {
	t.Helper()
	f := newFakeAPI()
	return bedOver(t, f, f)
}

func bedOver(t *testing.T, f *fakeAPI, a console.API) *bed {
	t.Helper()
	b := &bed{fakeAPI: f}
	b.local = console.NewLocal(console.LocalConfig{
		API: a, Who: id("bob"), Again: func(link string, _ time.Time, _ string) { b.again = append(b.again, link) },
	})
	t.Cleanup(b.local.Close)
	var err error
	b.pages, err = console.New(console.Config{Sessions: b.local, Host: testHost, Zone: time.UTC, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// browser is what a browser keeps and sends.
type browser struct {
	t      *testing.T
	pages  http.Handler
	cookie string
	edit   func(*http.Request) // of each request; nil for none
}

type answer struct {
	*http.Response
	body string
}

func (b *browser) do(method, target, body string) answer {
	b.t.Helper()
	r := httptest.NewRequestWithContext(b.t.Context(), method, "http://"+testHost+target, strings.NewReader(body))
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Sec-Fetch-Site", "same-origin")
		r.Header.Set("Origin", "http://"+testHost)
	}
	if b.cookie != "" {
		r.Header.Set("Cookie", "__Host-hallpass="+b.cookie)
	}
	if b.edit != nil {
		b.edit(r)
	}
	w := httptest.NewRecorder()
	b.pages.ServeHTTP(w, r)
	resp := w.Result()
	b.t.Cleanup(func() { _ = resp.Body.Close() })
	return answer{resp, w.Body.String()}
}

func (b *browser) get(target string) answer {
	b.t.Helper()
	return b.do(http.MethodGet, target, "")
}

func (b *browser) post(target string, form url.Values) answer {
	b.t.Helper()
	return b.do(http.MethodPost, target, form.Encode())
}

// anyone is a browser that has not signed in.
func (b *bed) anyone(t *testing.T) *browser { return &browser{t: t, pages: b.pages} }

// linkToken is the secret of the one-time link.
func (b *bed) linkToken(t *testing.T) string {
	t.Helper()
	u, err := url.Parse(b.local.Link(testHost))
	if err != nil {
		t.Fatal(err)
	}
	return u.Query().Get("token")
}

// signIn is a browser in which the person has used the link.
func (b *bed) signIn(t *testing.T) *browser {
	t.Helper()
	who := b.anyone(t)
	got := who.post("/sign-in", url.Values{"token": {b.linkToken(t)}})
	if got.StatusCode != http.StatusSeeOther || len(got.Cookies()) != 1 {
		t.Fatalf("sign-in: %d %s", got.StatusCode, got.body)
	}
	who.cookie = got.Cookies()[0].Value
	return who
}

// fields are what the form that posts to action sends when nothing is filled in.
func fields(t *testing.T, page, action string) url.Values {
	t.Helper()
	form := regexp.MustCompile(`(?s)<form[^>]* action="` + regexp.QuoteMeta(action) + `"[^>]*>(.*?)</form>`).FindStringSubmatch(page)
	if form == nil {
		t.Fatalf("no form posts to %s:\n%s", action, page)
	}
	out := url.Values{}
	for _, m := range regexp.MustCompile(`<input type="(?:hidden|checkbox)" name="([^"]*)" value="([^"]*)"`).FindAllStringSubmatch(form[1], -1) {
		out.Add(m[1], m[2])
	}
	return out
}

func wants(t *testing.T, got answer, status int, words ...string) {
	t.Helper()
	if got.StatusCode != status {
		t.Errorf("status %d, want %d:\n%s", got.StatusCode, status, got.body)
	}
	for _, want := range words {
		if !strings.Contains(got.body, want) {
			t.Errorf("it does not say %q:\n%s", want, got.body)
		}
	}
}
