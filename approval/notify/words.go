package notify

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/hallpass/hallpass/approval"
)

const (
	maxTitle = 200  // bytes of a message's title
	maxValue = 1500 // bytes of a field
)

// message is an event in words. All texts are plain, may hold whatever people wrote, and
// are escaped where they are put into a form. Only values of fields have several lines.
type message struct {
	title  string
	fields []field
	link   string // to the page to go on from; "" for none
	next   string // what to type instead; "" for nothing
}

type field struct{ name, value string }

// details are what entries' details have in common, as far as messages tell it.
type details struct {
	Decision    string             `json:"decision"`
	Person      string             `json:"person"`
	Comment     string             `json:"comment"`
	Slack       string             `json:"slack"` // account whose button it was; person says whose that is
	Reason      string             `json:"reason"`
	State       string             `json:"state"`
	Service     string             `json:"service"`
	Permissions []string           `json:"permissions"`
	DurationMS  int64              `json:"duration_ms"`
	Requests    []string           `json:"requests"` // of a tick, as are the next
	Escalation  *escalation        `json:"escalation"`
	BreakGlass  *struct{}          `json:"break_glass"` // nil: the approvals that it requires were, or are, waited for
	Grants      []string           `json:"grants"`
	Changes     []string           `json:"changes"`
	Persons     []string           `json:"persons"` // who is on call
	Lapsed      string             `json:"lapsed"`  // who counts instead
	By          string             `json:"by"`      // who stands in, for the next, until then
	For         string             `json:"for"`
	Until       string             `json:"until"`
	StandIns    []approval.StandIn `json:"stand_ins"` // that ran out
}

// escalation says who may decide on a request in place of others.
type escalation struct {
	AfterMS      int64                  `json:"after_ms"`
	Requirements []approval.Requirement `json:"requirements"`
}

func (e *escalation) words() string {
	if e == nil {
		return ""
	}
	var texts []string
	for _, q := range e.Requirements {
		texts = append(texts, fmt.Sprintf("%d of %s", q.Approvals, q.Group))
	}
	return strings.Join(texts, " and ") + ", after " + (time.Duration(e.AfterMS) * time.Millisecond).String()
}

// words says an event in words.
func (e Event) words() message {
	var d details
	_ = json.Unmarshal(e.Details, &d) // what does not read is not told
	m := message{title: e.headline(d), link: e.Link}
	add := func(name, value string) {
		if value != "" {
			m.fields = append(m.fields, field{name, visible(value, maxValue)})
		}
	}
	if r := e.Request; r != nil {
		add("service", r.Service)
		add("permissions", strings.Join(r.Permissions, "\n"))
		add("for", (time.Duration(r.DurationMS) * time.Millisecond).String())
		add("subject", r.Subject)
		if r.Requester != r.Subject {
			add("requester", r.Requester)
		}
		add("reason", r.Reason)
		add("request", r.ID)
		if (e.Kind == approval.KindCreateRequest || e.Kind == approval.KindEscalateRequest) && r.State == string(approval.RequestPending) {
			m.next = "hallpass review show " + r.ID
		}
	} else {
		add("about", e.Object)
	}
	add("to decide instead", d.Escalation.words())
	add("by", e.Actor)
	if d.Slack != "" {
		add("decided", "in Slack by "+d.Person+", account "+d.Slack+": no certificate was seen")
	}
	add("comment", d.Comment)
	if e.Request == nil || e.Kind == approval.KindRevokeGrant {
		add("why", d.Reason)
	}
	add("expired requests", strings.Join(d.Requests, "\n"))
	if e.Kind == approval.KindTick {
		add("expired grants", strings.Join(d.Grants, "\n"))
	} else {
		add("grants that ended with it", strings.Join(d.Grants, "\n"))
	}
	add("expired changes", strings.Join(d.Changes, "\n"))
	for _, in := range d.StandIns {
		add("is back", in.For+" in "+in.Group+", for whom "+in.By+" stood in")
	}
	add("cluster", e.Cluster)
	add("at", e.Time.UTC().Format(time.RFC3339))
	return m
}

// shownWhole says whether a message shows all of these as they are: what a shortened
// one leaves out would be approved unseen.
func (r Request) shownWhole() bool {
	for _, text := range []string{r.Service, strings.Join(r.Permissions, "\n"), r.Subject, r.Requester, r.Reason} {
		if visible(text, maxValue) != text {
			return false
		}
	}
	return true
}

// headline is one line.
func (e Event) headline(d details) string {
	who, about := e.name(e.Actor), ""
	if e.Request != nil {
		about = e.Request.Service + " for " + e.name(e.Request.Subject)
	}
	if d.Slack != "" {
		who = d.Person + ", in Slack,"
	}
	text := ""
	switch {
	case e.Test:
		text = who + " tries whether messages arrive"
	case e.Kind == approval.KindTick:
		text = fmt.Sprintf("expired: %d requests, %d grants, %d changes", len(d.Requests), len(d.Grants), len(d.Changes))
		if len(d.StandIns) > 0 {
			text += fmt.Sprintf(", %d who stood in for others", len(d.StandIns))
		}
	case e.Kind == approval.KindNameStandIn:
		text = d.By + " stands in for " + d.For + " in " + e.Object + ", until " + d.Until
	case e.Kind == approval.KindEndStandIn:
		text = d.For + " is back in " + e.Object + ", for whom " + d.By + " stood in: ended by " + who
	case e.Kind == approval.KindSetDuty && d.Lapsed != "":
		text = "who is on call in " + e.Object + " is not known any more: " + d.Lapsed + " of it count"
	case e.Kind == approval.KindSetDuty && len(d.Persons) == 0:
		text = "nobody is on call in " + e.Object
	case e.Kind == approval.KindSetDuty:
		text = "on call in " + e.Object + ": " + strings.Join(d.Persons, ", ")
	case about == "":
		text = string(e.Kind) + " " + e.name(e.Object) + " by " + who
	case e.Kind == approval.KindCreateRequest && d.BreakGlass != nil:
		text = "GLASS BROKEN: " + who + " took " + about + " without approval"
	case e.Kind == approval.KindCreateRequest && d.State == string(approval.RequestApproved):
		text = who + " was given " + about + ", by the policy alone"
	case e.Kind == approval.KindCreateRequest:
		text = who + " asks for " + about
	case e.Kind == approval.KindDecideRequest && d.Decision == string(approval.Approve) && d.State == string(approval.RequestPending):
		text = who + " approves " + about + ", which waits for others"
	case e.Kind == approval.KindDecideRequest && d.Decision == string(approval.Approve):
		text = who + " approves " + about
	case e.Kind == approval.KindDecideRequest:
		text = who + " denies " + about
	case e.Kind == approval.KindEscalateRequest:
		text = about + " is escalated: nobody has decided on it in time"
	case e.Kind == approval.KindCancelRequest:
		text = who + " withdraws the request of " + about
	case e.Kind == approval.KindRevokeGrant:
		text = who + " revokes " + about
	case e.Kind == approval.KindReturnGrant:
		text = who + " returns " + about
	default:
		text = string(e.Kind) + " of " + about + " by " + who
	}
	return strings.Join(strings.Fields(visible(text, maxTitle)), " ")
}

// name shortens the SPIFFE IDs of the cluster's own trust domain.
func (e Event) name(id string) string {
	if id == "" {
		return "the cluster"
	}
	return strings.TrimPrefix(id, "spiffe://"+e.TrustDomain+"/")
}

// visible leaves of a text what shows as what it is, and no more than n bytes of it.
func visible(text string, n int) string {
	text = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return r
		case r == '\r':
			return -1
		case !unicode.IsPrint(r):
			return unicode.ReplacementChar
		}
		return r
	}, strings.ToValidUTF8(text, "\uFFFD"))
	if len(text) > n {
		return strings.ToValidUTF8(text[:n], "") + "…"
	}
	return text
}

// text is the message as plain text.
func (m message) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", m.title)
	for _, f := range m.fields {
		// A reason with lines of its own does not pass for another field.
		fmt.Fprintf(&b, "%s: %s\n", f.name, strings.ReplaceAll(f.value, "\n", "\n    "))
	}
	if m.link != "" {
		fmt.Fprintf(&b, "\nTo look at it: %s\n", m.link)
	}
	if m.next != "" {
		fmt.Fprintf(&b, "\nTo decide: %s\n", m.next)
	}
	return b.String()
}
