package approval

import "slices"

// decideRequest takes one person's approve or deny. A deny ends the request; an
// approve grants it once every requirement is met.
func (t *turn) decideRequest(b DecideRequest) (Object, error) {
	r, err := t.pendingRequest(b.Request)
	if err != nil {
		return nil, err
	}
	if b.Slack != "" {
		if err := t.inSlack(r, b); err != nil {
			return nil, err
		}
	}
	if err := t.checkVoter(r, b); err != nil {
		return nil, err
	}
	if b.Hash != r.Hash() {
		// An approver who was shown one thing would have approved another.
		return nil, stale("the request has changed since: its hash is %s now, not %s", shortHash(r.Hash()), shortHash(b.Hash)).
			then("look at the request again, then decide with its new hash")
	}
	d := requestDetails{Answers: answerTexts(slices.Concat(b.Answers, b.Narrowed)), Person: t.person, Decision: b.Verdict, Comment: b.Comment, Extends: r.extends(), Hash: b.Hash, Slack: b.Slack, NoCertificate: b.Slack != ""}
	if b.Verdict == Deny {
		err = t.denyRequest(&r, b)
	} else {
		d.Grant, err = t.approveRequest(&r, b, &d)
	}
	if err != nil {
		return nil, err
	}
	d.State = r.State
	t.details = d
	return r, nil
}

// checkVoter refuses one who may not decide on r.
func (t *turn) checkVoter(r Request, b DecideRequest) error {
	if b.Verdict != Approve && b.Verdict != Deny {
		return invalid("the decision is %q or %q, not %q", Approve, Deny, b.Verdict)
	}
	if err := checkText("the comment", b.Comment, 0); err != nil {
		return err
	}
	if t.person == "" {
		// A workload with many IDs would otherwise be many voters.
		return denied("%s is nobody's: only persons decide", t.actor).then("have an admin propose a person with this ID")
	}
	if err := t.checkBlocked(t.actor.String()); err != nil {
		return err
	}
	if err := eligible(t.state().involved(r), t.person); err != nil {
		return err
	}
	if len(t.state().groupsFor(r.deciders(), t.person)) == 0 {
		if err := t.tooEarly(r); err != nil {
			return err
		}
		if err := t.away(r); err != nil {
			return err
		}
		return denied("%s is in none of the groups that must approve: %s", t.person, describe(r.deciders()))
	}
	return nil
}

func (t *turn) denyRequest(r *Request, b DecideRequest) error {
	if len(b.Permissions) > 0 || b.Duration != 0 {
		return invalid("a deny narrows nothing")
	}
	if len(b.Answers)+len(b.Narrowed) > 0 {
		return invalid("a deny asks no condition")
	}
	t.record(r, b)
	t.endRequest(r, RequestDenied)
	return nil
}

// approveRequest records an approval, of the request as it is or narrowed, and
// grants it when that was the last one needed.
func (t *turn) approveRequest(r *Request, b DecideRequest, d *requestDetails) (*grantDetails, error) {
	if err := t.checkRevisions(b.PolicyRevision, b.DirectoryRevision); err != nil {
		return nil, err
	}
	if err := t.checkBlocked(r.Subject); err != nil {
		return nil, err
	}
	if err := t.checkPinned(r, b); err != nil {
		return nil, err
	}
	// What has been approved may be enough since it was escalated, or since who had stood in for an approver does so no more, and nobody
	// has counted: who says so again has it counted. Up to version 3 that was refused.
	_, _, enough := t.state().count(*r)
	for _, earlier := range r.Decisions {
		if t.m.version() >= 4 && enough {
			break
		}
		if earlier.Slack != "" && b.Slack == "" {
			continue // what is proven takes the place of what was not
		}
		if earlier.Person == t.person && stands(*r, earlier) {
			return nil, conflict("%s has approved request %s already", t.person, r.ID).then("wait for others to decide")
		}
	}
	if len(r.Decisions) >= MaxDecisions {
		return nil, limited("request %s has %d decisions", r.ID, len(r.Decisions))
	}
	if err := t.narrow(r, b); err != nil {
		return nil, err
	}
	v := r.Current()
	if d.Hash != v.Hash {
		d.Hash, d.Permissions, d.DurationMS, d.Requirements = v.Hash, v.Permissions, v.DurationMS, requirementDetails(v.Requirements)
		d.Escalation = v.Escalation.details()
	}
	t.record(r, b)
	votes, of, satisfied := t.state().count(*r)
	if !satisfied {
		if err := t.heard(*r); err != nil {
			return nil, err
		}
		t.saveRequest(r)
		return nil, nil //nolint:nilnil // no grant yet
	}
	return t.approve(r, votes, of)
}

// record puts the actor's decision on what r says now in place of an earlier
// one of the same person.
func (t *turn) record(r *Request, b DecideRequest) {
	r.Decisions = slices.DeleteFunc(slices.Clone(r.Decisions), func(d Decision) bool { return d.Person == t.person })
	r.Decisions = append(r.Decisions, Decision{
		Person: t.person, Actor: t.actor.String(), Verdict: b.Verdict,
		Comment: b.Comment, Hash: r.Hash(), At: t.now, Slack: b.Slack,
	})
}

// narrow makes a new revision of r if the approver wants less than it asks for.
func (t *turn) narrow(r *Request, b DecideRequest) error {
	was := r.Current()
	v := Revision{Parent: was.Hash, Permissions: was.Permissions, DurationMS: was.DurationMS, By: t.actor.String(), At: t.now}
	if len(b.Permissions) > 0 {
		v.Permissions = b.Permissions
	}
	if b.Duration != 0 {
		v.DurationMS = b.Duration
	}
	if slices.Equal(v.Permissions, was.Permissions) && v.DurationMS == was.DurationMS {
		if len(b.Narrowed) > 0 {
			return invalid("answers about a request narrowed to what it is")
		}
		return nil
	}
	if r.Extends != nil && !slices.Equal(v.Permissions, was.Permissions) {
		return denied("an extension is of the whole grant").then("shorten it, or deny it and have the requester ask for less in a new request")
	}
	if err := t.checkScope(*r, v.Permissions); err != nil {
		return err
	}
	if v.DurationMS < 1000 {
		return invalid("a duration is at least 1s, not %d ms", v.DurationMS)
	}
	if !within(r.Service, v, was) {
		// Whoever approved before would have approved something else.
		return denied("an approver may narrow a request, not widen it").then("deny it, and have the requester ask for more")
	}
	out, err := t.outcome(*r, v, b.Narrowed)
	if err != nil {
		return err
	}
	if !out.Allowed {
		return denied("narrowed so, %s", out.Reason)
	}
	if !r.Delegation.within(delegationOf(out.Delegation)) {
		return denied("narrowed so, less of it may be delegated than is asked for").then("deny it, and have the requester ask for less")
	}
	t.noEscalation(*r)
	if v, err = pin(r, v, out); err != nil {
		return err
	}
	if !v.Escalation.same(was.Escalation) {
		r.Escalated = 0 // to others, or at another time: it is their turn when that has come
	}
	t.awaitEscalation(*r)
	return nil
}
