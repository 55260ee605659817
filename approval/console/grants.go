package console

import (
	"crypto/rand"
	"net/http"
	"slices"
	"strings"

	"github.com/hallpass/hallpass/approval/api"
)

// listPage is how many grants or requests a page has.
const listPage = 50

type grantsBody struct {
	Active, Scheduled []api.Grant
	Next              string
	First             bool
	MoreScheduled     bool // than are shown
}

// grants shows who has access now, or will have.
func (c *Console) grants(v visit) (view, error) {
	b := grantsBody{First: v.URL.Query().Get("cursor") == ""}
	list := func(state string) (api.GrantList, error) {
		return v.api.Grants(v.Context(), api.Filter{State: state, Page: api.Page{Limit: listPage, Cursor: v.URL.Query().Get("cursor")}})
	}
	err := together(func() error {
		l, err := list(api.GrantActive)
		b.Active, b.Next = l.Grants, l.Next
		return err
	}, func() error {
		if !b.First {
			return nil
		}
		l, err := list(api.GrantScheduled)
		b.Scheduled, b.MoreScheduled = l.Grants, l.Next != ""
		return err
	})
	if err != nil {
		return view{}, err
	}
	slices.SortStableFunc(b.Active, func(x, y api.Grant) int { return x.ExpiresAt.Compare(y.ExpiresAt) })
	return view{page: "grants", title: "Grants", body: b}, nil
}

type grantBody struct {
	api.Grant
	Alert  *trouble
	Reason string // that was typed before the alert
	Live   bool
	Own    bool // its subject needs no reason
	Key    string
}

// grant shows one grant and its certificates.
func (c *Console) grant(v visit) (view, error) { return grantView(v, v.PathValue("id")) }

func grantView(v visit, id string) (view, error) {
	g, err := v.api.Grant(v.Context(), id)
	if err != nil {
		return view{}, err
	}
	b := grantBody{Grant: g, Own: g.Subject == v.me.ID, Key: rand.Text(), Live: g.State == api.GrantActive || g.State == api.GrantScheduled}
	return view{page: "grant", title: "Grant of " + who(&v.me, g.Subject) + " at " + g.Service, body: b}, nil
}

// revoke ends a grant.
func (c *Console) revoke(_ http.ResponseWriter, v visit) (outcome, error) {
	id := v.PathValue("id")
	reason := typed(v.Request, "reason")
	_, cause := v.api.RevokeGrant(v.Context(), id, reason, formKey(v.Request))
	if cause == nil {
		return outcome{see: link("grants", id)}, nil
	}
	status, t := c.undone(v.Context(), cause)
	out, err := grantView(v, id)
	if err != nil {
		return outcome{view: troublePage(status, t)}, nil //nolint:nilerr // the page tells of the cause
	}
	b, ok := out.body.(grantBody)
	if !ok {
		return outcome{}, cause
	}
	b.Alert, b.Reason = &t, reason
	out.status, out.body = status, b
	return outcome{view: out}, nil
}

type historyBody struct {
	api.Filter
	States   []string
	Requests []api.Request
	Older    string // address of the next page
	First    bool
}

// history shows all requests, by what they are about.
func (c *Console) history(v visit) (view, error) {
	q := v.URL.Query()
	b := historyBody{
		Filter: api.Filter{
			State: q.Get("state"), Service: strings.TrimSpace(q.Get("service")), Subject: expand(v.me, q.Get("subject")), Requester: expand(v.me, q.Get("requester")),
			Page: api.Page{Limit: listPage, Cursor: q.Get("cursor")},
		},
		States: []string{api.RequestPending, api.RequestApproved, api.RequestDenied, api.RequestCancelled, api.RequestExpired},
		First:  q.Get("cursor") == "",
	}
	if b.State != "" && !slices.Contains(b.States, b.State) {
		return view{}, api.NewProblem(api.CodeInvalid, "there is no such state", "choose one of the list")
	}
	list, err := v.api.Requests(v.Context(), b.Filter)
	if err != nil {
		return view{}, err
	}
	b.Requests = list.Requests
	if list.Next != "" {
		q.Set("cursor", list.Next)
		b.Older = "/history?" + q.Encode()
	}
	return view{page: "history", title: "History", body: b}, nil
}

// expand takes "user/alice" for that of one's own trust domain.
func expand(me api.WhoAmI, text string) string {
	text = strings.TrimSpace(text)
	if text == "" || strings.Contains(text, "://") {
		return text
	}
	return "spiffe://" + me.TrustDomain + "/" + strings.TrimPrefix(text, "/")
}
