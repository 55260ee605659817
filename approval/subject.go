package approval

import "github.com/spiffe/go-spiffe/v2/spiffeid"

// blockDetails is the audit leaf of a block.
type blockDetails struct {
	Reason string   `json:"reason"`
	Grants []string `json:"grants"` // that ended
}

// checkBlocked refuses a blocked SPIFFE ID. It may neither hold nor ask for
// grants, nor approve any. What an admin does besides is left to them: an admin
// who could stop the others by blocking them would rule alone.
func (t *turn) checkBlocked(id string) error {
	b, blocked, err := load[Block](t, key(prefixBlock, id))
	if err != nil {
		return err
	}
	if blocked {
		return denied("%s is blocked since %s: %s", id, b.At, b.Reason).then("have an admin propose to unblock it")
	}
	return nil
}

// blockSubject ends all grants of a subject and lets none be made.
func (t *turn) blockSubject(b BlockSubject) (Object, error) {
	if !t.admin {
		return nil, denied("only an admin blocks a subject")
	}
	if err := t.checkSubject("the subject", b.Subject); err != nil {
		return nil, err
	}
	if err := checkText("the reason", b.Reason, 1); err != nil {
		return nil, err
	}
	if old, blocked, err := load[Block](t, key(prefixBlock, b.Subject)); err != nil {
		return nil, err
	} else if blocked {
		t.unchanged = true
		return old, nil
	}
	block := Block{Subject: b.Subject, Reason: b.Reason, By: t.cmd.Actor, At: t.now, Index: t.index}
	t.save(key(prefixBlock, b.Subject), block)
	d := blockDetails{Reason: b.Reason, Grants: []string{}}
	for _, id := range suffixes(t, pairPrefix(prefixLiveGrant, b.Subject)) {
		var u uid
		copy(u[:], id)
		g, err := t.state().Grant(u.String())
		if err != nil {
			return nil, err
		}
		if g.StateAt(t.now) == GrantActive {
			ended := t.endGrant(&g, GrantRevoked, "the subject was blocked: "+b.Reason)
			d.Grants = append(append(d.Grants, g.ID), ended.Children...)
		}
	}
	t.details = d
	return block, nil
}

// unblock lets a subject have grants again. Those that it had stay revoked.
func (t *turn) unblock(subject string, index uint64) error {
	b, err := find[Block](t, key(prefixBlock, subject), "block of", subject)
	if err != nil {
		return err
	}
	if index != 0 && b.Index != index {
		return stale("%s was blocked again meanwhile: %s", subject, b.Reason).then("propose the change again")
	}
	t.Delete(key(prefixBlock, subject))
	return nil
}

// isServiceOrNode says whether id is one that an admin may have issued.
func (t *turn) isServiceOrNode(id spiffeid.ID) bool {
	return id.TrustDomain().Name() == t.m.TrustDomain && t.issuable(id.String())
}
