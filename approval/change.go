package approval

import (
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// changeDetails is the audit leaf of what happens to a change.
type changeDetails struct {
	Edit         *Edit       `json:"edit,omitempty"`
	BaseRevision uint64      `json:"base_revision,omitempty"`
	Hash         string      `json:"hash"`
	Person       string      `json:"person,omitempty"`
	Decision     Verdict     `json:"decision,omitempty"`
	Comment      string      `json:"comment,omitempty"`
	State        ChangeState `json:"state"`
	Approved     []string    `json:"approved,omitempty"` // the persons whose approvals were counted
	Revision     uint64      `json:"revision,omitempty"` // that the change made
}

// proposeChange opens a change. Anyone who is a person may: what counts is that
// two admins besides the author approve. One who is nobody may not, or the
// author could approve as himself.
func (t *turn) proposeChange(b ProposeChange) (Object, error) {
	u, ok := parseUID(b.ID)
	if !ok {
		return nil, invalid("change id %q is not a UUIDv7", b.ID)
	}
	t.object = b.ID
	if t.has(keyUID(prefixChange, u)) {
		return nil, conflict("there is a change %s already", b.ID)
	}
	if t.person == "" {
		return nil, denied("%s is nobody's: only persons propose changes", t.actor)
	}
	if n := t.countOpen(pairPrefix(prefixPendingChg, t.cmd.Actor), MaxPendingChanges); n >= MaxPendingChanges {
		return nil, limited("%s has %d pending changes", t.actor, n).then("cancel some")
	}
	c := Change{
		ID: b.ID, State: ChangePending, Author: t.cmd.Actor, AuthorPerson: t.person, Edit: b.Edit,
		BaseRevision: b.BaseRevision, Decisions: []Decision{}, Created: t.now, Expires: t.now.Add(ChangeLife),
	}
	if err := t.checkEdit(&c); err != nil {
		return nil, err
	}
	hash, err := changeHash(c)
	if err != nil {
		return nil, err
	}
	c.Hash = hash
	for _, k := range changeIndex(c) {
		t.mark(k)
	}
	t.Put(pairKey(prefixPendingChg, c.Author, string(u[:])), until(c.Expires))
	t.mark(dueAt(prefixDue, c.Expires, dueChange, string(u[:])))
	t.saveChange(&c)
	t.details = changeDetails{Edit: &c.Edit, BaseRevision: c.BaseRevision, Hash: c.Hash, Person: t.person, State: c.State}
	return c, nil
}

// checkEdit refuses a change that could not be applied now. It does so by
// applying it to a draft of its own.
func (t *turn) checkEdit(c *Change) error {
	if err := t.checkBase(*c); err != nil {
		return err
	}
	if c.Edit.Kind == EditSubjectUnblock {
		b, err := find[Block](t, key(prefixBlock, c.Edit.Subject), "block of", c.Edit.Subject)
		if err != nil {
			return err
		}
		// The block itself is what this change goes by.
		c.BlockIndex, c.BaseRevision = b.Index, t.m.DirectoryRevision
	}
	trial := *t
	trial.draft = newDraft(t.draft)
	if err := trial.edit(*c); err != nil {
		return err
	}
	return trial.err
}

func (t *turn) saveChange(c *Change) {
	u, _ := parseUID(c.ID)
	c.Index = t.index
	t.save(keyUID(prefixChange, u), c)
}

// changeIndex is the keys that list a change.
func changeIndex(c Change) [][]byte {
	u, _ := parseUID(c.ID)
	d := u.turned()
	return [][]byte{
		keyUID(prefixChangeAll, d), pairKey(prefixChangeState, string(c.State), string(d[:])),
		pairKey(prefixChangeAuthor, c.Author, string(d[:])),
	}
}

// endChange takes a change out of the pending ones, for good.
func (t *turn) endChange(c *Change, state ChangeState) {
	u, _ := parseUID(c.ID)
	t.leaveState(prefixChangeState, u, string(c.State))
	t.enterState(prefixChangeState, u, string(state))
	t.unmark(pairKey(prefixPendingChg, c.Author, string(u[:])))
	t.unmark(dueAt(prefixDue, c.Expires, dueChange, string(u[:])))
	c.State, c.Ended, c.EndedBy = state, t.now, t.cmd.Actor
	t.mark(dueAt(prefixEnded, c.Ended, endedChange, string(u[:])))
	t.saveChange(c)
}

// pendingChange returns a change that can still be decided on.
func (t *turn) pendingChange(id string) (Change, error) {
	c, err := t.state().Change(id)
	if err != nil {
		return Change{}, err
	}
	switch state := c.StateAt(t.now); state {
	case ChangePending:
		return c, nil
	case ChangeExpired:
		return Change{}, expired("change %s expired at %s", id, c.Expires).then("propose it again")
	default:
		return Change{}, conflict("change %s is %s already", id, state)
	}
}

// cancelChange withdraws a change.
func (t *turn) cancelChange(b CancelChange) (Object, error) {
	c, err := t.pendingChange(b.Change)
	if err != nil {
		return nil, err
	}
	if t.cmd.Actor != c.Author && (t.person == "" || t.person != c.AuthorPerson) {
		return nil, denied("only its author cancels a change").then("deny it instead, as an admin")
	}
	t.endChange(&c, ChangeCancelled)
	t.details = changeDetails{Hash: c.Hash, State: c.State}
	return c, nil
}

// decideChange takes one admin's approve or deny. The second admin besides the
// author who approves applies the change.
func (t *turn) decideChange(b DecideChange) (Object, error) {
	c, err := t.pendingChange(b.Change)
	if err != nil {
		return nil, err
	}
	if err := t.checkAdminVote(c, b); err != nil {
		return nil, err
	}
	if b.Hash != c.Hash {
		return nil, stale("that is not the hash of change %s, which is %s", c.ID, shortHash(c.Hash)).then("look at the change again")
	}
	d := changeDetails{Hash: c.Hash, Person: t.person, Decision: b.Verdict, Comment: b.Comment}
	for _, earlier := range c.Decisions {
		if earlier.Person == t.person && b.Verdict == Approve {
			return nil, conflict("%s has approved change %s already", t.person, c.ID).then("wait for another admin")
		}
	}
	c.Decisions = slices.DeleteFunc(slices.Clone(c.Decisions), func(e Decision) bool { return e.Person == t.person })
	c.Decisions = append(c.Decisions, Decision{
		Person: t.person, Actor: t.cmd.Actor, Verdict: b.Verdict, Comment: b.Comment, Hash: c.Hash, At: t.now,
	})
	if b.Verdict == Deny {
		t.endChange(&c, ChangeDenied)
	} else if err := t.approveChange(&c, &d); err != nil {
		return nil, err
	}
	d.State = c.State
	t.details = d
	return c, nil
}

func (t *turn) checkAdminVote(c Change, b DecideChange) error {
	if b.Verdict != Approve && b.Verdict != Deny {
		return invalid("the decision is %q or %q, not %q", Approve, Deny, b.Verdict)
	}
	if err := checkText("the comment", b.Comment, 0); err != nil {
		return err
	}
	if !t.admin {
		return denied("only admins decide on changes")
	}
	if t.isAuthor(c, t.person) {
		return denied("%s is the author of change %s", t.person, c.ID).then("two other admins have to approve it")
	}
	return nil
}

// isAuthor says whether a person proposed c, as whoever the author's ID was then
// or is now.
func (t *turn) isAuthor(c Change, person string) bool {
	id, err := spiffeid.FromString(c.Author)
	return err != nil || person == c.AuthorPerson || person == t.state().personOf(id)
}

// approveChange applies a change if that was the last approval it needed.
// Approvals count for who is an admin now.
func (t *turn) approveChange(c *Change, d *changeDetails) error {
	if err := t.checkBase(*c); err != nil {
		return err
	}
	for _, e := range c.Decisions {
		if e.Verdict == Approve && e.Hash == c.Hash && t.state().speaksFor(e) && !t.isAuthor(*c, e.Person) &&
			t.state().isMember(e.Person, AdminGroup) && !slices.Contains(d.Approved, e.Person) {
			d.Approved = append(d.Approved, e.Person)
		}
	}
	if len(d.Approved) < 2 {
		t.saveChange(c)
		return nil
	}
	if err := t.edit(*c); err != nil {
		return err
	}
	t.endChange(c, ChangeApplied)
	switch c.Edit.Kind {
	case EditPolicySet:
		d.Revision = t.m.PolicyRevision
	case EditGroupSet, EditGroupDelete, EditPersonSet, EditPersonDelete:
		d.Revision = t.m.DirectoryRevision
	case EditSubjectUnblock:
	}
	return nil
}
