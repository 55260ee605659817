package console

import (
	"crypto/rand"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/grant"
)

const (
	// pairPage is how many requests of the same subject for the same service are
	// looked at, and pairShown how many of them are shown.
	pairPage  = 50
	pairShown = 5
)

// asked is one permission of a request, and what the subject holds of it now.
type asked struct {
	At   int // its place in the request
	Text string
	Held *api.Grant // that allows all of it already
}

// requestBody is what the page of a request says.
type requestBody struct {
	api.Request
	standing
	Alert      *trouble
	Comment    string // that was typed before the alert
	Asked      []asked
	New        int // of them that are not held
	Risks      []string
	Needs      []need
	Instead    []need // who may approve in place of them
	Earlier    []api.Request
	More       bool // there are more earlier ones than were looked at
	Policy     uint64
	Tier       string
	Foreign    bool // asked from another trust domain
	MayCancel  bool
	MayReview  bool // the glass that it broke
	MyDecision *api.Decision
	StepUp     bool   // one has to sign in again, to approve it or to close its review
	Key        string // of the form, so that sending it twice decides once
}

// request shows one request, with what one must know to decide on it.
func (c *Console) request(v visit) (view, error) {
	return c.requestView(v, v.PathValue("id"))
}

func (c *Console) requestView(v visit, id string) (view, error) {
	r, err := v.api.Request(v.Context(), id)
	if err != nil {
		return view{}, err
	}
	var (
		held    api.GrantList
		pair    api.RequestList
		persons api.Persons
		policy  api.Policy
		cluster api.Cluster
	)
	err = together(func() (err error) {
		held, err = v.api.Grants(v.Context(), api.Filter{Subject: r.Subject, Service: r.Service, State: api.GrantActive, Page: api.Page{Limit: pairPage}})
		return err
	}, func() (err error) {
		pair, err = v.api.Requests(v.Context(), api.Filter{Subject: r.Subject, Service: r.Service, Page: api.Page{Limit: pairPage}})
		return err
	}, func() (err error) {
		persons, err = v.persons()
		return err
	}, func() (err error) {
		if v.me.Person != "" {
			policy, err = v.api.Policy(v.Context())
		}
		return err
	}, func() (err error) {
		if v.me.Person != "" {
			cluster, err = v.api.Cluster(v.Context())
		}
		return err
	})
	if err != nil {
		return view{}, err
	}
	b := newRequestBody(v.me, r, newPeople(persons), held.Grants, pair)
	b.Policy, b.Tier = policy.Revision, tierOf(policy, r.Service)
	b.Risks = risks(r, b, c.zone)
	blockedStanding(&b, v.me, cluster.Blocked)
	b.StepUp = v.mustStepUp(r) && (b.May || b.MayReview)
	return view{page: "request", title: "Request of " + who(&v.me, r.Subject) + " for " + r.Service, body: b}, nil
}

func newRequestBody(me api.WhoAmI, r api.Request, p people, held []api.Grant, pair api.RequestList) requestBody {
	b := requestBody{
		Request: r, standing: p.standing(me, r), Needs: p.needs(r, r.Require), Instead: p.instead(r), More: pair.Next != "", Key: rand.Text(),
		Foreign: !strings.HasPrefix(r.Requester, "spiffe://"+me.TrustDomain+"/"),
	}
	b.MayCancel = r.State == api.RequestPending &&
		(r.Requester == me.ID || r.Subject == me.ID || r.RequesterPerson != "" && r.RequesterPerson == me.Person)
	b.MayReview = mayReview(me, r, p.stakes(r))
	for i, text := range r.Permissions {
		a := asked{At: i, Text: text, Held: holder(held, r, text)}
		if a.Held == nil {
			b.New++
		}
		b.Asked = append(b.Asked, a)
	}
	for _, other := range pair.Requests {
		if other.ID != r.ID {
			b.Earlier = append(b.Earlier, other)
		}
	}
	for i, d := range r.Decisions {
		if d.Person == me.Person && d.Person != "" {
			b.MyDecision = &r.Decisions[i]
		}
	}
	return b
}

// Recent are the newest of the earlier requests.
func (b requestBody) Recent() []api.Request { return b.Earlier[:min(len(b.Earlier), pairShown)] }

// Original is what was asked first, nil where nobody has narrowed it.
func (b requestBody) Original() *api.Revision {
	if len(b.Revisions) < 2 {
		return nil
	}
	return &b.Revisions[0]
}

// holder is the live grant of the subject that allows all of a permission and
// ends last; nil when none does.
func holder(held []api.Grant, r api.Request, permission string) (best *api.Grant) {
	want, err := grant.ParseScope(r.Service, []string{permission})
	if err != nil {
		return nil
	}
	for i, g := range held {
		if g.ID == r.ID || g.Subject != r.Subject || g.Service != r.Service || g.State != api.GrantActive {
			continue
		}
		have, err := grant.ParseScope(g.Service, g.Permissions)
		if err == nil && have.Covers(want) && (best == nil || g.ExpiresAt.After(best.ExpiresAt)) {
			best = &held[i]
		}
	}
	return best
}

// blockedStanding says that an identity is blocked: it can neither decide nor be
// given anything.
func blockedStanding(b *requestBody, me api.WhoAmI, blocked []api.Block) {
	if b.State != api.RequestPending {
		return
	}
	for _, one := range blocked {
		switch one.Subject {
		case me.ID:
			b.May, b.MayDeny, b.Why = false, false, "You are blocked: "+one.Reason
		case b.Subject:
			b.Risks = append([]string{"Who would get the access is blocked: " + one.Reason + ". An approval will be refused."}, b.Risks...)
		}
	}
}

// decide takes the decision of a person on what was on the screen.
func (c *Console) decide(_ http.ResponseWriter, v visit) (outcome, error) {
	id := v.PathValue("id")
	in, err := decisionOf(v.Request)
	if err == nil && in.Decision == "approve" {
		err = v.stepUp(id)
	}
	if err == nil {
		if len(in.Permissions) > 0 || v.PostForm.Get("narrow") != "" {
			err = v.narrowed(id, &in)
		}
	}
	if err == nil {
		_, err = v.api.DecideRequest(v.Context(), id, in, formKey(v.Request))
	}
	if err == nil {
		return outcome{see: link("requests", id)}, nil
	}
	return c.undecided(v, id, in.Comment, err)
}

// undecided shows the request as it is now, with why nothing was decided: it has
// changed, one has lost the right since the page was opened, or another was
// faster.
func (c *Console) undecided(v visit, id, comment string, cause error) (outcome, error) {
	status, t := c.undone(v.Context(), cause)
	switch {
	case uncertain(cause):
		// It may have been decided: saying that it was not would be a lie.
	case errors.Is(cause, api.ErrStale):
		t.What = "The request has changed since you opened it. Nothing was decided."
		t.Next = "This is what it says now. Read it again, then decide."
	default:
		t.What = strings.TrimSuffix(t.What, ".") + ". Nothing was decided."
	}
	out, err := c.requestView(v, id)
	switch {
	case errors.Is(err, api.ErrNotFound) && errors.Is(cause, api.ErrNotFound):
		return outcome{view: view{page: "problem", title: "Not yours to decide", status: http.StatusForbidden, body: trouble{
			What: "You may not see this request any more. Unless an earlier try of the same form got no answer, nothing was decided.",
			Next: "Since you opened it, a group that decides on it, or whom your identity belongs to, has changed: you have no say in it now.",
		}}}, nil
	case err != nil:
		return outcome{view: troublePage(status, t)}, nil //nolint:nilerr // the page tells of the cause
	}
	b, ok := out.body.(requestBody)
	if !ok {
		return outcome{}, cause
	}
	b.Alert, b.Comment = &t, comment
	out.status, out.body = status, b
	return outcome{view: out}, nil
}

// decisionOf reads a decision's form.
func decisionOf(r *http.Request) (api.DecisionInput, error) {
	f := r.PostForm
	in := api.DecisionInput{Decision: f.Get("decision"), Hash: f.Get(fieldHash), Comment: typed(r, "comment")}
	bad := func(detail, next string) (api.DecisionInput, error) {
		return in, api.NewProblem(api.CodeInvalid, detail, next)
	}
	switch {
	case in.Decision != "approve" && in.Decision != "deny":
		return bad("the decision is neither approve nor deny", "")
	case in.Hash == "":
		return bad("the form does not say what was on the screen", "open the page again")
	case in.Decision == "deny" && in.Comment == "":
		return bad("a denial needs a reason", "say what would be right to ask for")
	case in.Decision == "deny":
		return in, nil
	}
	if text := strings.TrimSpace(f.Get("duration")); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil || d <= 0 {
			return bad("the duration cannot be read", "write it as 15m or 1h30m, or leave it empty")
		}
		in.Duration = api.Duration(d)
	}
	in.Permissions = f[fieldMany]
	return in, nil
}

// narrowed turns the places of the permissions that are kept into their texts. The
// hash binds the places to what was on the screen.
func (v visit) narrowed(id string, in *api.DecisionInput) error {
	places := in.Permissions
	in.Permissions = nil
	if len(places) == 0 {
		return api.NewProblem(api.CodeInvalid, "no permission is kept", "deny it instead")
	}
	r, err := v.api.Request(v.Context(), id)
	if err != nil {
		return err
	}
	// By the revision that was on the screen, also when there is a newer one: this
	// very form may have made it, and is sent again. The cluster says what it is.
	at := slices.IndexFunc(r.Revisions, func(seen api.Revision) bool { return seen.Hash == in.Hash })
	if at < 0 {
		return api.NewProblem(api.CodeStale, "the request has changed since", "look at it again")
	}
	seen := r.Revisions[at].Permissions
	for _, place := range places {
		i, err := strconv.Atoi(place)
		if err != nil || i < 0 || i >= len(seen) || slices.Contains(in.Permissions, seen[i]) {
			return api.NewProblem(api.CodeInvalid, "the form names a permission that is not there", "open the page again")
		}
		in.Permissions = append(in.Permissions, seen[i])
	}
	if len(in.Permissions) == len(seen) {
		in.Permissions = nil // all of it
	}
	return nil
}

// formKey has a form that is sent twice, by a double click or a reload, do what it
// does once. The key is the page's; it only ever tells calls of one person apart.
func formKey(r *http.Request) api.CallOption {
	key := r.PostForm.Get(fieldKey)
	if len(key) < 16 || len(key) > 64 || strings.ContainsFunc(key, func(c rune) bool { return c <= ' ' || c > '~' }) {
		key = rand.Text()
	}
	return api.WithKey("console-" + key)
}

// mayReview says whether one may close the review of a broken glass, as far as can be told from
// outside: one of a group that it waits for, without a part in it, once the grant is over.
func mayReview(me api.WhoAmI, r api.Request, stakes map[string]string) bool {
	over := r.Grant == nil || r.Grant.State != api.GrantActive && r.Grant.State != api.GrantScheduled
	return r.BreakGlass != nil && r.BreakGlass.ClosedAt == nil && over && me.Person != "" && stakes[me.Person] == "" &&
		slices.ContainsFunc(r.BreakGlass.WaitsFor, func(g string) bool { return slices.Contains(me.Groups, g) })
}

// closeReview takes what a person has found of a glass that was broken.
func (c *Console) closeReview(_ http.ResponseWriter, v visit) (outcome, error) {
	id, finding := v.PathValue("id"), typed(v.Request, "comment")
	err := api.NewProblem(api.CodeInvalid, "a review needs what was found, in words", "say what was done, and whether it was needed")
	if finding != "" {
		if failed := v.stepUp(id); failed != nil {
			return c.undecided(v, id, finding, failed)
		}
		if _, failed := v.api.CloseReview(v.Context(), id, finding, formKey(v.Request)); failed != nil {
			return c.undecided(v, id, finding, failed)
		}
		return outcome{see: link("requests", id)}, nil
	}
	return c.undecided(v, id, "", err)
}

// cancel withdraws one's own request.
func (c *Console) cancel(_ http.ResponseWriter, v visit) (outcome, error) {
	id := v.PathValue("id")
	if _, err := v.api.CancelRequest(v.Context(), id, formKey(v.Request)); err != nil {
		return c.undecided(v, id, "", err)
	}
	return outcome{see: link("requests", id)}, nil
}
