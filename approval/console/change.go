package console

import (
	"crypto/rand"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/diff"

	"github.com/hallpass/hallpass/approval/api"
)

// changesBody is what the page of changes says.
type changesBody struct {
	api.ChangeList
	States []string
	State  string
	First  bool
	Older  string
}

// changes shows what was proposed about policy, groups and persons, the newest first.
func (c *Console) changes(v visit) (view, error) {
	q := v.URL.Query()
	b := changesBody{
		States: []string{api.ChangePending, api.ChangeApplied, api.ChangeDenied, api.ChangeCancelled, api.ChangeExpired},
		State:  q.Get("state"), First: q.Get("cursor") == "",
	}
	if b.State != "" && !slices.Contains(b.States, b.State) {
		return view{}, api.NewProblem(api.CodeInvalid, "there is no such state", "choose one of the list")
	}
	var err error
	if b.ChangeList, err = v.api.Changes(v.Context(), b.State, api.Page{Limit: listPage, Cursor: q.Get("cursor")}); err != nil {
		return view{}, err
	}
	if b.Next != "" {
		q.Set("cursor", b.Next)
		b.Older = "/changes?" + q.Encode()
	}
	return view{page: "changes", title: "Changes", body: b}, nil
}

// changeBody is what the page of a change says.
type changeBody struct {
	api.Change
	standing
	Alert   *trouble
	Comment string // that was typed before the alert
	Lines   []line
	Stale   bool // what it changes has changed since it was written
	Blocked string
	MyVote  *api.Decision
	Key     string // of the form, so that sending it twice decides once
}

// line is one of what a change would make of what is in force.
type line struct {
	Mark string // "+", "-" or "" for one that stays
	Text string
}

func (c *Console) change(v visit) (view, error) { return c.changeView(v, v.PathValue("id")) }

func (c *Console) changeView(v visit, id string) (view, error) {
	ch, err := v.api.Change(v.Context(), id)
	if err != nil {
		return view{}, err
	}
	var (
		persons api.Persons
		groups  api.Groups
		policy  api.Policy
		cluster api.Cluster
	)
	err = together(func() (err error) {
		persons, err = v.api.Persons(v.Context())
		return err
	}, func() (err error) {
		groups, err = v.api.Groups(v.Context())
		return err
	}, func() (err error) {
		policy, err = v.api.Policy(v.Context())
		return err
	}, func() (err error) {
		if ch.Change.Kind == api.ChangeSubjectUnblock {
			cluster, err = v.api.Cluster(v.Context())
		}
		return err
	})
	if err != nil {
		return view{}, err
	}
	b := changeBody{Change: ch, Key: rand.Text(), standing: changeStanding(v.me, ch)}
	before, after := sides(ch.Change, policy, persons, groups)
	if ch.State != api.ChangePending {
		before = after // it was compared with what was in force then, which nobody knows here
	}
	b.Lines = compare(before, after)
	b.Stale = ch.State == api.ChangePending && ch.Change.Kind == api.ChangePolicySet && ch.BaseRevision != policy.Revision
	for _, one := range cluster.Blocked {
		if one.Subject == ch.Change.Subject {
			b.Blocked = one.Reason
		}
	}
	for i, d := range ch.Decisions {
		if d.Person == v.me.Person && d.Person != "" {
			b.MyVote = &ch.Decisions[i]
		}
	}
	return view{page: "change", title: "Change of " + whatChanges(ch.Change), body: b}, nil
}

// whatChanges is what a change is about, in words.
func whatChanges(s api.ChangeSpec) string {
	switch s.Kind {
	case api.ChangePolicySet:
		return "the policy"
	case api.ChangeGroupSet, api.ChangeGroupDelete:
		return "the group " + s.Name
	case api.ChangePersonSet, api.ChangePersonDelete:
		return "the person " + s.Name
	case api.ChangeSubjectUnblock:
		return "the block of " + s.Subject
	default:
		return s.Kind
	}
}

// changeStanding says whether one may decide on a change, as far as can be told from outside.
func changeStanding(me api.WhoAmI, ch api.Change) standing {
	s := standing{Mine: ch.Author == me.ID || me.Person != "" && ch.AuthorPerson == me.Person}
	voted := slices.ContainsFunc(ch.Decisions, func(d api.Decision) bool { return d.Person == me.Person && d.Decision == "approve" && !d.Void })
	switch {
	case ch.State != api.ChangePending:
		s.Why = "It is " + ch.State + ": there is nothing left to decide."
	case s.Mine:
		s.Why = "You have proposed it. Two other admins decide."
	case !me.Admin:
		s.Why = "You are no admin, and only admins decide on changes."
	case voted:
		s.MayDeny, s.Why = true, "You have approved it already. It waits for another admin."
	default:
		s.May, s.MayDeny = true, true
	}
	return s
}

// sides are what is in force and what would be, as text. Of a group that is its members: who stands in for one is
// in it in another way, and would seem to be put out of it.
func sides(s api.ChangeSpec, policy api.Policy, persons api.Persons, groups api.Groups) (before, after string) {
	switch s.Kind {
	case api.ChangePolicySet:
		return policy.YAML, s.YAML
	case api.ChangeGroupSet, api.ChangeGroupDelete:
		for _, g := range groups.Groups {
			if g.Name == s.Name {
				before = groupLines(g.Members, g.OnCall) + listing("substitute", g.Substitutes)
			}
		}
		return before, groupLines(s.Members, s.OnCall) + listing("substitute", s.Substitutes)
	case api.ChangePersonSet, api.ChangePersonDelete:
		for _, p := range persons.Persons {
			if p.Name == s.Name {
				before = listing("identity", p.IDs) + listing("answers for", p.Owns) + listing("Slack account", strings.Fields(p.Slack))
			}
		}
		return before, listing("identity", s.IDs) + listing("answers for", s.Owns) + listing("Slack account", strings.Fields(s.Slack))
	case api.ChangeSubjectUnblock:
		return "blocked " + s.Subject + "\n", ""
	default:
		return "", ""
	}
}

// groupLines are the members of a group, and how they take turns.
func groupLines(members []string, turns *api.OnCall) string {
	lines := listing("member", members)
	if words := turns.Words(); words != "" {
		lines += "on call " + words + "\n"
	}
	return lines
}

// listing is a line for each, in order.
func listing(what string, all []string) string {
	var b strings.Builder
	for _, one := range slices.Sorted(slices.Values(all)) {
		b.WriteString(what + " " + one + "\n")
	}
	return b.String()
}

// compare is what changes, between some lines of what stays; all of it where nothing does.
func compare(before, after string) (out []line) {
	if before == after {
		for text := range strings.Lines(after) {
			out = append(out, line{Text: strings.TrimSuffix(text, "\n")})
		}
		return out
	}
	// Its first lines name the two sides.
	for at, text := range strings.Split(strings.TrimSuffix(string(diff.Diff("a", []byte(before), "b", []byte(after))), "\n"), "\n") {
		switch {
		case at < 3 || text == "":
		case strings.HasPrefix(text, "@@"):
			out = append(out, line{Text: "…"})
		case text[0] == '+' || text[0] == '-':
			out = append(out, line{Mark: text[:1], Text: text[1:]})
		default:
			out = append(out, line{Text: strings.TrimPrefix(text, " ")})
		}
	}
	return out
}

// decideChange takes an admin's decision on what was on the screen.
func (c *Console) decideChange(_ http.ResponseWriter, v visit) (outcome, error) {
	id, f := v.PathValue("id"), v.PostForm
	in := api.ChangeDecisionInput{Decision: f.Get("decision"), Hash: f.Get(fieldHash), Comment: typed(v.Request, "comment")}
	var err error
	switch {
	case in.Decision != "approve" && in.Decision != "deny":
		err = api.NewProblem(api.CodeInvalid, "the decision is neither approve nor deny", "")
	case in.Hash == "":
		err = api.NewProblem(api.CodeInvalid, "the form does not say what was on the screen", "open the page again")
	case in.Decision == "deny" && in.Comment == "":
		err = api.NewProblem(api.CodeInvalid, "a denial needs a reason", "say what would be right")
	default:
		_, err = v.api.DecideChange(v.Context(), id, in, formKey(v.Request))
	}
	return c.changed(v, id, in.Comment, err)
}

// cancelChange withdraws one's own change.
func (c *Console) cancelChange(_ http.ResponseWriter, v visit) (outcome, error) {
	id := v.PathValue("id")
	_, err := v.api.CancelChange(v.Context(), id, formKey(v.Request))
	return c.changed(v, id, "", err)
}

// changed goes to the change, or shows it with why nothing was done.
func (c *Console) changed(v visit, id, comment string, cause error) (outcome, error) {
	if cause == nil {
		return outcome{see: link("changes", id)}, nil
	}
	status, t := c.undone(v.Context(), cause)
	if !uncertain(cause) {
		t.What = strings.TrimSuffix(t.What, ".") + ". Nothing was decided."
	}
	out, err := c.changeView(v, id)
	if err != nil {
		return outcome{view: troublePage(status, t)}, nil //nolint:nilerr // the page tells of the cause
	}
	b, ok := out.body.(changeBody)
	if !ok {
		return outcome{}, errors.New("the page of a change has another body")
	}
	b.Alert, b.Comment = &t, comment
	out.status, out.body = status, b
	return outcome{view: out}, nil
}
