package console

import (
	"context"
	"crypto/rand"
	"net/http"
	"strings"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/policy"
)

// startForm is how an input of type datetime-local writes an instant, in the zone of
// whoever reads.
const startForm = "2006-01-02T15:04"

// askBody is what the page for asking says.
type askBody struct {
	Service, Allow, For, Reason, Subject, Start string // as typed
	// FromLink is set where whoever made the link has filled the form in.
	FromLink bool
	Services []string // that the policy in force names
	Alert    *trouble
	Tried    *tried
	Key      string // of the form, so that sending it twice asks once
}

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
		Service: clip(q.Get("service"), 63), Allow: clip(q.Get("allow"), maxQuery), For: clip(q.Get("for"), 16),
		Reason: clip(q.Get("reason"), 2000), Subject: clip(q.Get("subject"), 2048), Key: rand.Text(),
		FromLink: len(q) > 0,
	}
	if b.For == "" {
		b.For = "30m"
	}
	return v.askView(b), nil
}

// askView is the form; without a list of services where the policy cannot be read, so that what
// was typed is never lost.
func (v visit) askView(b askBody) view {
	if v.me.Person != "" {
		if p, err := v.api.Policy(v.Context()); err == nil {
			parsed, _ := policy.Parse([]byte(p.YAML)) // the cluster took it; it may be newer than this program
			b.Services = parsed.Services()
		}
	}
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
	in = api.RequestInput{Service: b.Service, Reason: b.Reason, Subject: expand(me, b.Subject)}
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
	for i, text := range in.Permissions {
		t.Asked = append(t.Asked, asked{At: i, Text: text, Held: holder(held.Grants, as, text)})
	}
	t.Needs = newPeople(persons).needs(as)
	return &t, nil
}
