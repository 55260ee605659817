package control

import (
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
)

// This file turns the state machine's objects into those on the wire.

func duration(ms int64) api.Duration { return api.Duration(time.Duration(ms) * time.Millisecond) }

// moment is nil for no time.
func moment(m approval.Millis) *time.Time {
	if m == 0 {
		return nil
	}
	t := m.Time()
	return &t
}

// list is never null on the wire.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func mapped[A, B any](in []A, fn func(A) B) []B {
	out := make([]B, 0, len(in))
	for _, a := range in {
		out = append(out, fn(a))
	}
	return out
}

// wireRequest shows a request with its grant, as of now.
func (n *node) wireRequest(s approval.State, r approval.Request) (api.Request, error) {
	cur := r.Current()
	out := api.Request{
		ID: r.ID, State: string(r.StateAt(approval.MillisOf(n.now()))),
		Requester: r.Requester, RequesterPerson: r.RequesterPerson, Subject: r.Subject,
		Service: r.Service, Permissions: list(cur.Permissions), Reason: r.Reason, Duration: duration(cur.DurationMS),
		Start: moment(r.Start), CSRKey: r.CSRKey,
		CreatedAt: r.Created.Time(), EndedAt: moment(r.Ended), EndedBy: r.EndedBy, ExpiresAt: r.Expires.Time(),
		Hash: cur.Hash, PolicyRevision: r.PolicyRevision, Auto: r.Auto, Rules: list(r.Rules),
		CertificateTTL: duration(r.CertificateTTL), BreakGlass: n.wireReview(s, r),
		Delegation: wireDelegation(r.Delegation), Parent: r.Parent, Bundles: r.Bundles,
		Revisions: mapped(r.Revisions, func(v approval.Revision) api.Revision {
			return api.Revision{Hash: v.Hash, Permissions: list(v.Permissions), Duration: duration(v.DurationMS), By: v.By, At: v.At.Time()}
		}),
	}
	if r.State == approval.RequestPending || out.BreakGlass != nil && out.BreakGlass.ClosedAt == nil {
		p, err := s.Rules()
		if err != nil {
			return out, err
		}
		rev, err := s.Revisions()
		if err != nil {
			return out, err
		}
		step := p.StepUp(r.Rules)
		if r.PolicyRevision != rev.Policy {
			step = p.StepUpAt(r.Service) // other rules may apply by now, or the same by other names
		}
		out.StepUp = api.Duration(step)
	}
	// A decided request shows the votes that its grant stands on: who counts may
	// be another since.
	var votes []approval.Vote
	var counts []bool
	if len(r.Decisions) > 0 {
		votes, counts = s.Standing(r)
	}
	if r.State == approval.RequestApproved && r.Extends == nil {
		g, err := s.Grant(r.ID)
		if err != nil {
			return out, err
		}
		wire := n.wireGrant(g)
		out.Grant, votes = &wire, g.Votes
	}
	given := map[string]int{}
	for _, v := range votes {
		given[v.Group]++
	}
	if err := n.wireExtends(s, r, &out, given); err != nil {
		return out, err
	}
	out.Require = mapped(cur.Requirements, func(q approval.Requirement) api.Requirement {
		return api.Requirement{Group: q.Group, Approvals: q.Approvals, Given: given[q.Group]}
	})
	out.Escalation = wireEscalation(s, r, given)
	out.Decisions = wireDecisions(r.Decisions)
	for i := range out.Decisions {
		out.Decisions[i].Void = r.State == approval.RequestPending && !counts[i]
	}
	return out, nil
}

func wireDecisions(in []approval.Decision) []api.Decision {
	return mapped(in, func(d approval.Decision) api.Decision {
		return api.Decision{
			Decision: string(d.Verdict), Person: d.Person, Identity: d.Actor,
			Comment: d.Comment, Hash: d.Hash, At: d.At.Time(), Slack: d.Slack,
		}
	})
}

// wireGrant shows a grant as of now.
func (n *node) wireGrant(g approval.Grant) api.Grant {
	now := approval.MillisOf(n.now())
	state := string(g.StateAt(now))
	if state == api.GrantActive && now < g.NotBefore {
		state = api.GrantScheduled
	}
	out := api.Grant{
		ID: g.ID, State: state, Requester: g.Requester, Subject: g.Subject,
		Service: g.Service, Permissions: list(g.Permissions), SPIFFEID: g.SPIFFEID,
		NotBefore: g.NotBefore.Time(), ExpiresAt: g.Expiry.Time(),
		CertificateTTL: duration(g.CertificateTTL), CSRKey: g.CSRKey, BreakGlass: g.BreakGlass,
		Delegation: wireDelegation(g.Delegation), Parent: g.Parent,
	}
	for _, e := range g.Extensions {
		out.Extensions = append(out.Extensions, api.Extension{Request: e.Request, Duration: duration(e.MS)})
	}
	if e := g.Emergency; e != nil {
		out.Emergency = &api.EmergencyOrigin{
			Issuer: e.Issuer, N: e.Place, Custodians: list(e.Custodians), Reason: e.Reason, ImportedBy: e.ImportedBy, ImportedAt: e.Imported.Time(),
		}
	}
	if g.State == approval.GrantRevoked {
		out.Revoked = &api.Revoked{By: g.EndedBy, Reason: g.EndReason, At: g.Ended.Time()}
	}
	return out
}

func wireIssuance(i approval.Issue) api.Issuance {
	return api.Issuance{
		Serial: i.Serial, Issuer: i.Issuer, NotBefore: i.NotBefore.Time(), NotAfter: i.NotAfter.Time(),
		Key: i.Key, At: i.At.Time(),
	}
}

func wireIssuer(i approval.Issuer) api.Issuer {
	out := api.Issuer{ID: i.ID, Node: i.Node, Role: string(i.Role), NotAfter: i.NotAfter.Time()}
	if i.Denied != 0 {
		out.Denied = &api.Revoked{By: i.DeniedBy, Reason: i.Reason, At: i.Denied.Time()}
	}
	return out
}

func wireBlock(b approval.Block) api.Block {
	return api.Block{Subject: b.Subject, Reason: b.Reason, By: b.By, At: b.At.Time()}
}

func wireEdit(e approval.Edit) api.ChangeSpec {
	out := api.ChangeSpec{Kind: string(e.Kind), YAML: e.YAML, Name: e.Name, Subject: e.Subject}
	if e.Group != nil {
		out.Name, out.Members, out.OnCall, out.Substitutes = e.Group.Name, e.Group.Members, wireOnCall(e.Group.OnCall), e.Group.Substitutes
	}
	if e.Person != nil {
		out.Name, out.IDs, out.Owns, out.Slack = e.Person.Name, e.Person.IDs, e.Person.Owns, e.Person.Slack
	}
	return out
}

// editOf reads a change. A field that its kind does not have is refused: what
// an admin thought it did would not be done.
func editOf(in api.ChangeSpec) (approval.Edit, error) {
	e := approval.Edit{Kind: approval.EditKind(in.Kind)}
	back := api.ChangeSpec{Kind: in.Kind}
	switch e.Kind {
	case approval.EditPolicySet:
		e.YAML, back.YAML = in.YAML, in.YAML
	case approval.EditGroupSet:
		e.Group = &approval.Group{Name: in.Name, Members: list(in.Members), OnCall: onCallOf(in.OnCall), Substitutes: in.Substitutes}
		back.Name, back.Members, back.OnCall, back.Substitutes = in.Name, in.Members, in.OnCall, in.Substitutes
	case approval.EditPersonSet:
		e.Person = &approval.Person{Name: in.Name, IDs: list(in.IDs), Owns: list(in.Owns), Slack: in.Slack}
		back.Name, back.IDs, back.Owns, back.Slack = in.Name, in.IDs, in.Owns, in.Slack
	case approval.EditGroupDelete, approval.EditPersonDelete:
		e.Name, back.Name = in.Name, in.Name
	case approval.EditSubjectUnblock:
		e.Subject, back.Subject = in.Subject, in.Subject
	default:
		return e, api.NewProblem(api.CodeInvalid, "change.kind: unknown", "see /openapi.json")
	}
	if back.YAML != in.YAML || back.Name != in.Name || back.Subject != in.Subject || back.Slack != in.Slack || back.OnCall != in.OnCall ||
		len(back.Members) != len(in.Members) || len(back.Substitutes) != len(in.Substitutes) || len(back.IDs) != len(in.IDs) || len(back.Owns) != len(in.Owns) {
		return e, api.NewProblem(api.CodeInvalid, "change: a field that "+in.Kind+" does not have", "see /openapi.json")
	}
	return e, nil
}

func (n *node) wireChange(s approval.State, c approval.Change) api.Change {
	out := api.Change{
		ID: c.ID, State: string(c.StateAt(approval.MillisOf(n.now()))), Change: wireEdit(c.Edit),
		BaseRevision: c.BaseRevision, Author: c.Author, AuthorPerson: c.AuthorPerson, Hash: c.Hash,
		CreatedAt: c.Created.Time(), ExpiresAt: c.Expires.Time(), EndedAt: moment(c.Ended), EndedBy: c.EndedBy,
		Needed: approval.MinAdmins - 1, Decisions: wireDecisions(c.Decisions),
	}
	for _, d := range c.Decisions {
		if d.Verdict == approval.Approve && d.Person != c.AuthorPerson && slices.Contains(s.GroupsOf(d.Person), approval.AdminGroup) {
			out.Approvals++
		}
	}
	return out
}

func parseSPIFFEID(what, text string) (spiffeid.ID, error) {
	id, err := spiffeid.FromString(text)
	if err != nil {
		return id, api.NewProblem(api.CodeInvalid, what+": not a SPIFFE ID: "+err.Error(), "want a form such as spiffe://acme.test/user/alice")
	}
	return id, nil
}
