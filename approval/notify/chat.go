package notify

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"
)

// PagerDutyEvents is where PagerDuty takes events; in Europe it is another host.
const PagerDutyEvents = "https://events.pagerduty.com/v2/enqueue"

// jsonHeader is that of a body in JSON.
func jsonHeader() http.Header { return http.Header{"Content-Type": {"application/json"}} }

// teams posts to a channel by the address that a workflow of Microsoft Teams was given,
// which is all the secret there is. Teams has no ids of a sender's own and lets nobody
// look what is there: what is sent again after a leader died is there twice, with the
// same delivery at its end.
type teams struct {
	poster *poster
	url    string
}

func (t *Target) teams(c TargetConfig, now func() time.Time) error {
	u, err := checkURL(c.Secret)
	if err != nil {
		return &FieldError{"url_file", "holds no URL: " + err.Error()}
	}
	t.host = u.Scheme + "://" + u.Host
	t.channel = &teams{newPoster(c.Roots, now), c.Secret}
	return nil
}

// Send implements Channel.
func (w *teams) Send(ctx context.Context, d Delivery) error {
	body, err := json.Marshal(teamsCard(d.words(), d.ID))
	if err != nil {
		return &Failure{Cause: clean(err.Error()), Permanent: true}
	}
	return w.poster.post(ctx, w.url, jsonHeader(), body)
}

// card and what is below it are an Adaptive Card 1.4 as Teams takes it.
type card struct {
	Type        string       `json:"type"`
	Attachments []attachment `json:"attachments"`
}

type attachment struct {
	ContentType string  `json:"contentType"`
	Content     content `json:"content"`
}

type content struct {
	Schema  string   `json:"$schema"`
	Type    string   `json:"type"`
	Version string   `json:"version"`
	Body    []block  `json:"body"`
	Actions []action `json:"actions,omitempty"`
}

// block is a RichTextBlock: of all text in a card, only a TextRun knows no markup.
type block struct {
	Type    string `json:"type"`
	Inlines []run  `json:"inlines"`
}

type run struct {
	Type   string `json:"type"`
	Text   string `json:"text"`
	Weight string `json:"weight,omitempty"`
}

type action struct {
	Type  string `json:"type"`
	Title string `json:"title"`
	URL   string `json:"url"`
}

func teamsCard(m message, id string) card {
	line := func(bold, text string) block {
		b := block{Type: "RichTextBlock"}
		if bold != "" {
			b.Inlines = append(b.Inlines, run{"TextRun", bold, "bolder"})
		}
		if text != "" {
			b.Inlines = append(b.Inlines, run{"TextRun", text, ""})
		}
		return b
	}
	c := content{Schema: "http://adaptivecards.io/schemas/adaptive-card.json", Type: "AdaptiveCard", Version: "1.4", Body: []block{line(m.title, "")}}
	for _, f := range m.fields {
		c.Body = append(c.Body, line(f.name+": ", f.value))
	}
	if m.next != "" {
		c.Body = append(c.Body, line("To decide: ", m.next))
	}
	c.Body = append(c.Body, line("", "delivery "+id))
	if m.link != "" {
		c.Actions = []action{{"Action.OpenUrl", "Look at it", m.link}}
	}
	return card{"message", []attachment{{"application/vnd.microsoft.card.adaptive", c}}}
}

// pager raises an alert of PagerDuty for each event, with the delivery's id as its
// dedup_key: what is sent again is the same alert.
type pager struct {
	poster *poster
	url    string
	key    string
}

func (t *Target) pager(c TargetConfig, now func() time.Time) error {
	where := c.URL
	if where == "" {
		where = PagerDutyEvents
	}
	u, err := checkURL(where)
	if err != nil {
		return &FieldError{"url", err.Error()}
	}
	if len(c.Secret) != 32 || strings.Trim(strings.ToLower(c.Secret), "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
		return &FieldError{"key_file", "want the integration key of an Events API v2 integration: 32 letters and digits"}
	}
	t.host = u.Scheme + "://" + u.Host
	t.channel = &pager{newPoster(c.Roots, now), where, c.Secret}
	return nil
}

// pagerEvent is an event of the Events API v2.
type pagerEvent struct {
	RoutingKey  string       `json:"routing_key"`
	EventAction string       `json:"event_action"`
	DedupKey    string       `json:"dedup_key"`
	Payload     pagerPayload `json:"payload"`
	Links       []pagerLink  `json:"links,omitempty"`
	Client      string       `json:"client"`
}

type pagerPayload struct {
	Summary   string            `json:"summary"`
	Source    string            `json:"source"`
	Severity  string            `json:"severity"`
	Timestamp time.Time         `json:"timestamp"`
	Component string            `json:"component,omitempty"`
	Class     string            `json:"class"`
	Details   map[string]string `json:"custom_details"`
}

type pagerLink struct {
	Href string `json:"href"`
	Text string `json:"text"`
}

// Send implements Channel.
func (p *pager) Send(ctx context.Context, d Delivery) error {
	m := d.words()
	e := pagerEvent{
		RoutingKey: p.key, EventAction: "trigger", DedupKey: d.ID, Client: "hallpass",
		Payload: pagerPayload{
			Summary: m.title, Source: "hallpass " + d.Cluster, Severity: "warning", Timestamp: d.Time, Class: string(d.Kind), Details: map[string]string{},
		},
	}
	if d.Request != nil {
		e.Payload.Component = d.Request.Service
	}
	for _, f := range m.fields {
		e.Payload.Details[f.name] = f.value
	}
	if m.link != "" {
		e.Links = []pagerLink{{m.link, "Look at it"}}
	}
	body, err := json.Marshal(e)
	if err != nil {
		return &Failure{Cause: clean(err.Error()), Permanent: true}
	}
	err = p.poster.post(ctx, p.url, jsonHeader(), body)
	if f, ok := errors.AsType[*Failure](err); ok {
		// 400 is for an event that it cannot read, and will not the next time either.
		f.Permanent = strings.HasPrefix(f.Cause, "answered 400 ")
	}
	return err
}
