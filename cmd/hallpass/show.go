package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/hallpass/hallpass/approval/api"
)

// requestFields writes all of a request. An approver signs its hash, so nothing is left out.
func requestFields(w *tabular, r api.Request) {
	w.field("request", r.ID)
	w.field("state", r.State)
	glassFields(w, r.BreakGlass)
	w.field("subject", r.Subject)
	if r.Requester != r.Subject {
		w.field("asked by", r.Requester)
	}
	w.field("person", r.RequesterPerson)
	w.field("service", r.Service)
	w.field("bundles", strings.Join(r.Bundles, ", "))
	w.field("may", strings.Join(r.Permissions, "\n"))
	if e := r.Extends; e != nil {
		w.field("extends", "grant "+e.Grant, fmt.Sprintf("by %s, from %s to %s", r.Duration, w.when(e.From), w.when(e.To)))
	} else if r.Start != nil {
		w.field("for", fmt.Sprintf("%s from %s", r.Duration, w.when(*r.Start)))
	} else {
		w.field("for", r.Duration.String()+" from approval")
	}
	delegationFields(w, r.Delegation)
	w.field("made of", r.Parent)
	w.field("reason", r.Reason)
	w.field("key", r.CSRKey)
	w.field("rules", strings.Join(r.Rules, ", "))
	w.field("needs", strings.Join(needs(r.Require), "\n"))
	escalationFields(w, r.Escalation)
	w.field("certificates", "live "+r.CertificateTTL.String())
	stepUpField(w, r.StepUp)
	w.field("asked", w.when(r.CreatedAt))
	if r.State == api.RequestPending {
		w.field("lapses", w.when(r.ExpiresAt))
	}
	if len(r.Revisions) > 1 {
		first := r.Revisions[0]
		w.field("narrowed from", strings.Join(first.Permissions, "\n"), "for "+first.Duration.String())
	}
	w.field("hash", r.Hash)
	for _, d := range r.Decisions {
		w.field("decision", decisionLine(w, d))
	}
	if g := r.Grant; g != nil {
		w.field("grant", g.State)
		w.field("from", w.when(g.NotBefore))
		w.field("until", w.when(g.ExpiresAt))
		w.field("name", g.SPIFFEID)
	} else if r.EndedAt != nil {
		w.field("ended", strings.TrimSpace(w.when(*r.EndedAt)+" "+r.EndedBy))
	}
}

// stepUpField says what the console asks of whoever approves.
func stepUpField(w *tabular, d api.Duration) {
	if d > 0 {
		w.field("in the console", "approved by who signed in at most "+d.String()+" before")
	}
}

func decisionLine(w *tabular, d api.Decision) string {
	text := fmt.Sprintf("%s by %s as %s, %s", d.Decision, d.Person, d.Identity, w.when(d.At))
	if d.Slack != "" {
		text = fmt.Sprintf("%s by %s in Slack (%s, no certificate seen), %s", d.Decision, d.Person, d.Slack, w.when(d.At))
	}
	if d.Void {
		text += ", no longer counts"
	}
	if d.Comment != "" {
		text += ": " + d.Comment
	}
	return text
}

func grantFields(w *tabular, g api.Grant) {
	w.field("grant", g.ID)
	w.field("state", g.State)
	if g.BreakGlass {
		w.field("GLASS BROKEN", "made without the approvals that it needs")
	}
	w.field("subject", g.Subject)
	if g.Requester != g.Subject {
		w.field("asked by", g.Requester)
	}
	w.field("service", g.Service)
	w.field("may", strings.Join(g.Permissions, "\n"))
	w.field("from", w.when(g.NotBefore))
	w.field("until", w.when(g.ExpiresAt))
	delegationFields(w, g.Delegation)
	w.field("made of", g.Parent)
	for _, e := range g.Extensions {
		w.field("extended", fmt.Sprintf("by %s, request %s", e.Duration, e.Request))
	}
	w.field("name", g.SPIFFEID)
	if e := g.Emergency; e != nil {
		w.field("EMERGENCY", fmt.Sprintf("made offline by %s, record %d of issuer %s", strings.Join(e.Custodians, " and "), e.N, e.Issuer),
			"because: "+e.Reason, fmt.Sprintf("imported %s by %s", w.when(e.ImportedAt), e.ImportedBy))
	}
	if g.Revoked != nil {
		w.field("revoked", fmt.Sprintf("%s by %s: %s", w.when(g.Revoked.At), g.Revoked.By, g.Revoked.Reason))
	}
	for _, i := range g.Issuances {
		w.field("certificate", fmt.Sprintf("%s until %s", i.Serial, w.when(i.NotAfter)))
	}
}

func changeFields(w *tabular, c api.Change) {
	w.field("change", c.ID)
	w.field("state", c.State)
	w.field("author", fmt.Sprintf("%s as %s", c.AuthorPerson, c.Author))
	specFields(w, c.Change)
	w.field("written against", fmt.Sprintf("revision %d", c.BaseRevision))
	w.field("approvals", fmt.Sprintf("%d of %d admins other than the author", c.Approvals, c.Needed))
	w.field("proposed", w.when(c.CreatedAt))
	if c.State == api.ChangePending {
		w.field("lapses", w.when(c.ExpiresAt))
	}
	w.field("hash", c.Hash)
	for _, d := range c.Decisions {
		w.field("decision", decisionLine(w, d))
	}
	if c.EndedAt != nil {
		w.field("ended", strings.TrimSpace(w.when(*c.EndedAt)+" "+c.EndedBy))
	}
	if c.Change.YAML != "" {
		w.line("")
		for line := range strings.Lines(c.Change.YAML) {
			w.line("  %s", strings.TrimRight(line, "\n"))
		}
	}
}

// specFields says what a change would do.
func specFields(w *tabular, s api.ChangeSpec) {
	w.field("would", s.Kind)
	w.field("name", s.Name)
	w.field("subject", s.Subject)
	switch s.Kind {
	case api.ChangeGroupSet:
		w.field("members", listed(s.Members))
		w.field("on call", cmp.Or(s.OnCall.Words(), "nobody takes turns: all members are in it"))
		w.field("substitutes", listed(s.Substitutes))
	case api.ChangePersonSet:
		w.field("ids", listed(s.IDs))
		w.field("answers for", listed(s.Owns))
		w.field("Slack account", cmp.Or(s.Slack, "none"))
	case api.ChangePolicySet:
		w.field("policy", fmt.Sprintf("%d lines, below", strings.Count(s.YAML, "\n")))
	}
}

// listed is one entry a line; an empty list is said, not left out: `group set x` with no member
// empties the group.
func listed(items []string) string {
	if len(items) == 0 {
		return "nobody"
	}
	return strings.Join(items, "\n")
}

// needs says what each group still has to do: "payments-owners (1 of 2)".
func needs(require []api.Requirement) []string {
	texts := make([]string, 0, len(require))
	for _, r := range require {
		texts = append(texts, fmt.Sprintf("%s (%d of %d)", r.Group, r.Given, r.Approvals))
	}
	slices.Sort(texts)
	return texts
}

// escalationFields says who may approve instead, and when.
func escalationFields(w *tabular, e *api.Escalation) {
	if e == nil {
		return
	}
	who := strings.Join(needs(e.Require), " and ")
	switch {
	case e.EscalatedAt != nil:
		w.field("or, escalated", fmt.Sprintf("%s, since %s", who, w.when(*e.EscalatedAt)))
	case e.At != nil:
		w.field("or, undecided", fmt.Sprintf("%s, from %s on", who, w.when(*e.At)))
	default:
		w.field("or, undecided", fmt.Sprintf("%s, after %s", who, e.After))
	}
}

// waitsFor says on one line whom a request waits for now.
func waitsFor(r api.Request, and string) string {
	text := strings.Join(needs(r.Require), and)
	if e := r.Escalation; e != nil && e.EscalatedAt != nil {
		text += ", or escalated " + strings.Join(needs(e.Require), and)
	}
	return text
}

// brief is the first permission and how many more there are.
func brief(permissions []string) string {
	switch len(permissions) {
	case 0:
		return ""
	case 1:
		return permissions[0]
	default:
		return fmt.Sprintf("%s +%d", permissions[0], len(permissions)-1)
	}
}

// more says that a list has another page.
func more(w *tabular, next string) {
	if next != "" {
		w.line("there are more: --all, or a larger --limit")
	}
}
