package console

import (
	"context"
	"crypto/rand"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

// startForm is how an input of type datetime-local writes an instant, in the zone of
// whoever reads.
const startForm = "2006-01-02T15:04"

// askBody is what the page for asking says.
type askBody struct {
	Service, Allow, For, Reason, Subject, Start string // as typed
	Bundles                                     []string
	Find                                        string
	// FromLink is set where whoever made the link has filled the form in.
	FromLink bool
	Offers   api.ServiceList // of the catalogue, as found
	Silent   bool            // the cluster did not say what is offered
	Choices  []choice        // the bundles of Service
	Alert    *trouble
	Tried    *tried
	Key      string // of the form, so that sending it twice asks once
}

// choice is a bundle that may be asked for.
type choice struct {
	api.ServiceBundle
	Chosen bool
	Gone   bool // it was chosen, and is not offered, or not here
}

// offersPage is how much the page shows of the catalogue at a time.
const offersPage = 20

// tried is what the policy would say.
type tried struct {
	api.DryRun
	Asked []asked // the permissions as they were read, and what the subject holds of them
	Needs []need
}

// ask shows the form. A link may fill it in; nothing is asked of the cluster by it, and
// whoever follows it is told: a request that somebody else has written would bear this
// person's name.
func (c *Console) ask(v visit) (view, error) {
	q := v.URL.Query()
	b := askBody{
		Find: clip(q.Get("find"), 200), Bundles: named(q[fieldBundles]),
		Service: clip(q.Get("service"), 63), Allow: clip(q.Get("allow"), maxQuery), For: clip(q.Get("for"), 16),
		Reason: clip(q.Get("reason"), 2000), Subject: clip(q.Get("subject"), 2048), Key: rand.Text(),
		FromLink: filled(q),
	}
	if b.For == "" {
		b.For = "30m"
	}
	return v.askView(b), nil
}

// filled reports whether a link has filled in more than the page's own links do, which choose a
// service or go through the catalogue.
func filled(q url.Values) bool {
	for name := range q {
		if name != "service" && name != "find" && name != "cursor" {
			return true
		}
	}
	return false
}

// named are names of bundles, as many and as long as a request takes.
func named(names []string) []string {
	var out []string
	for _, name := range names[:min(len(names), api.MaxBundles)] {
		if name = clip(strings.TrimSpace(name), 63); name != "" && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// askView is the form, with what the catalogue offers to whoever reads: without it where the
// cluster does not say, so that what was typed is never lost.
func (v visit) askView(b askBody) view {
	offered := map[string]bool{}
	var failed, unfound error
	if b.Service != "" {
		var list api.ServiceList
		list, failed = v.api.Services(v.Context(), api.ServiceFilter{Name: b.Service})
		for _, s := range list.Services {
			for _, bundle := range s.Bundles {
				offered[bundle.Name] = true
				b.Choices = append(b.Choices, choice{ServiceBundle: bundle, Chosen: slices.Contains(b.Bundles, bundle.Name)})
			}
		}
	}
	for _, name := range b.Bundles {
		if !offered[name] {
			b.Choices = append(b.Choices, choice{ServiceBundle: api.ServiceBundle{Name: name}, Chosen: true, Gone: failed == nil})
		}
	}
	b.Offers, unfound = v.api.Services(v.Context(), api.ServiceFilter{
		Query: b.Find, Page: api.Page{Limit: offersPage, Cursor: clip(v.URL.Query().Get("cursor"), 63)},
	})
	b.Silent = failed != nil || unfound != nil
	return view{page: "ask", title: "Ask", body: b}
}

// clip is as much of a text as a field takes.
func clip(s string, most int) string {
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "")
	}
	return s
}

// asks takes the form of ask: it says what the policy would say, or asks.
func (c *Console) asks(_ http.ResponseWriter, v visit) (outcome, error) {
	f := v.PostForm
	b := askBody{
		Bundles: named(f[fieldBundles]),
		Service: strings.TrimSpace(f.Get("service")), Allow: typed(v.Request, "allow"), For: strings.TrimSpace(f.Get("duration")),
		Reason: typed(v.Request, "reason"), Subject: strings.TrimSpace(f.Get("subject")), Start: strings.TrimSpace(f.Get("start")), Key: rand.Text(),
	}
	in, err := c.inputOf(v.me, b)
	switch what := f.Get("what"); {
	case err != nil:
	case what == "try":
		b.Tried, err = v.try(in)
	case what == "ask":
		var made api.Request
		if made, err = v.api.CreateRequest(v.Context(), in, formKey(v.Request)); err == nil {
			return outcome{see: link("requests", made.ID)}, nil
		}
		if uncertain(err) {
			b.Key = f.Get(fieldKey) // sent again, it is the same request
		}
	default:
		err = api.NewProblem(api.CodeInvalid, "the form says neither try nor ask", "")
	}
	var status int
	if err != nil {
		var t trouble
		if status, t = c.undone(v.Context(), err); !uncertain(err) {
			t.What = strings.TrimSuffix(t.What, ".") + ". Nothing was asked for."
		}
		b.Alert = &t
	}
	out := v.askView(b)
	out.status = status
	return outcome{view: out}, nil
}

// inputOf reads what was typed. What a service, a permission and a reason may be is for the
// cluster to say.
func (c *Console) inputOf(me api.WhoAmI, b askBody) (in api.RequestInput, err error) {
	in = api.RequestInput{Service: b.Service, Bundles: b.Bundles, Reason: b.Reason, Subject: expand(me, b.Subject)}
	for line := range strings.SplitSeq(b.Allow, "\n") {
		if line = strings.TrimSpace(line); line != "" {
			in.Permissions = append(in.Permissions, line)
		}
	}
	d, err := time.ParseDuration(b.For)
	if err != nil || d <= 0 {
		return in, api.NewProblem(api.CodeInvalid, "the duration cannot be read", "write it as 15m or 1h30m")
	}
	in.Duration = api.Duration(d)
	if b.Start != "" {
		at, err := time.ParseInLocation(startForm, b.Start, c.zone)
		if err != nil {
			return in, api.NewProblem(api.CodeInvalid, "the start cannot be read", "write it as "+startForm+", in your own time zone, or leave it empty")
		}
		in.Start = &at
	}
	return in, nil
}

// try asks what the policy would say, and what of it is held already.
func (v visit) try(in api.RequestInput) (*tried, error) {
	subject := in.Subject
	if subject == "" {
		subject = v.me.ID
	}
	var (
		t       tried
		persons api.Persons
		held    api.GrantList
	)
	err := together(func() (err error) {
		t.DryRun, err = v.api.DryRun(v.Context(), in)
		return err
	}, func() (err error) {
		persons, err = v.persons()
		return err
	}, func() error {
		// By a service or subject that cannot be read nothing is held; the cluster says what is wrong with it.
		held, _ = v.api.Grants(v.Context(), api.Filter{Subject: subject, Service: in.Service, State: api.GrantActive, Page: api.Page{Limit: pairPage}})
		return context.Cause(v.Context())
	})
	if err != nil {
		return nil, err
	}
	as := api.Request{Subject: subject, Service: in.Service, Requester: v.me.ID, RequesterPerson: v.me.Person, Require: t.Require}
	for i, text := range t.Permissions {
		t.Asked = append(t.Asked, asked{At: i, Text: text, Held: holder(held.Grants, as, text)})
	}
	t.Needs = newPeople(persons).needs(as, as.Require)
	return &t, nil
}
