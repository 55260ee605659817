package sim

import (
	"context"
	"fmt"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

// block ends all that an engineer has, unless somebody is blocked already.
func (p *person) block(ctx context.Context, c choice) {
	b := p.run.book
	subject := personID(engineers()[int(c.which*float64(len(engineers())))])
	b.mu.Lock()
	busy := b.blocked != ""
	if !busy {
		b.blocked = subject
	}
	b.mu.Unlock()
	if busy {
		p.unblock(ctx, c)
		return
	}
	o := p.do(ctx, c, func(ctx context.Context, opts ...api.CallOption) error {
		_, err := p.client.BlockSubject(ctx, api.BlockInput{Subject: subject, Reason: "a drill"}, opts...)
		return err
	})
	p.run.history.note(p.name, "block %s: %s", subject, told(o, output{}))
	p.noteBlock(o, subject, block)
}

func (p *person) noteBlock(o outcome, subject string, what act) {
	in := input{act: what, person: p.name, began: o.began, ended: time.Now()}
	if !o.none && o.code == "" {
		p.run.book.blockOp(subject, p.number, in, output{}, o.call)
	} else if o.none || o.doubt {
		p.run.book.blockOp(subject, p.run.book.stranger(), in, output{perhaps: true}, o.call)
	}
}

// unblock proposes that whoever is blocked be unblocked, or decides on what another admin has proposed.
func (p *person) unblock(ctx context.Context, c choice) {
	b := p.run.book
	b.mu.Lock()
	subject := b.blocked
	var open *changeItem
	for _, ch := range b.changes {
		if !ch.over && ch.author != p.name && ch.subject == subject && !ch.decided[p.name] {
			open = ch
		}
	}
	proposed := false
	for _, ch := range b.changes {
		proposed = proposed || !ch.over && ch.subject == subject
	}
	b.mu.Unlock()
	switch {
	case subject == "":
		p.feed(ctx, c)
	case open != nil:
		p.decideChange(ctx, c, open)
	case !proposed:
		p.propose(ctx, c, subject)
	default:
		p.audit(ctx, c)
	}
}

func (p *person) propose(ctx context.Context, c choice, subject string) {
	var ch api.Change
	o := p.do(ctx, c, func(ctx context.Context, opts ...api.CallOption) (err error) {
		ch, err = p.client.ProposeChange(ctx, api.ChangeInput{
			Change: api.ChangeSpec{Kind: api.ChangeSubjectUnblock, Subject: subject}, BaseRevision: 1,
		}, opts...)
		return err
	})
	p.run.history.note(p.name, "propose to unblock %s: %s", subject, told(o, output{}))
	b := p.run.book
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case o.none:
	case o.code == "":
		b.changes = append(b.changes, &changeItem{
			id: ch.ID, hash: ch.Hash, subject: subject, author: p.name, decided: map[string]bool{},
		})
	case o.code == api.CodeNotFound && b.blocked == subject:
		b.blocked = "" // the block never came about
	}
}

func (p *person) decideChange(ctx context.Context, c choice, ch *changeItem) {
	var after api.Change
	o := p.do(ctx, c, func(ctx context.Context, opts ...api.CallOption) (err error) {
		after, err = p.client.DecideChange(ctx, ch.id, api.ChangeDecisionInput{Decision: string(approve), Hash: ch.hash}, opts...)
		return err
	})
	p.run.history.note(p.name, "approve to unblock %s: %s %s", ch.subject, told(o, output{}), after.State)
	if o.none || o.code != "" || after.State == api.ChangeApplied {
		p.noteBlock(o, ch.subject, unblock)
	}
	b := p.run.book
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case o.none:
	case o.code != "":
		// It is over, or it never comes to anything: another is proposed.
		ch.over = true
	default:
		ch.decided[p.name] = true
		if after.State == api.ChangeApplied {
			ch.over, b.blocked = true, ""
		}
	}
}

// identity has an identity of a service issued.
func (p *person) identity(ctx context.Context, c choice) {
	began := time.Now()
	var cert api.Certificate
	o := p.do(ctx, c, func(ctx context.Context, opts ...api.CallOption) (err error) {
		cert, err = p.client.IssueIdentity(ctx, api.IdentityInput{
			CSR: p.csr, SPIFFEID: fmt.Sprintf("spiffe://%s/service/s%d", trustDomain, p.calls), TTL: api.Duration(identityTTL),
		}, opts...)
		return err
	})
	p.run.history.note(p.name, "identity: %s %s", told(o, output{}), cert.Serial)
	if !o.none && o.code == "" {
		p.hold("", began, cert)
	}
}

const identityTTL = time.Hour

// audit reads a checkpoint and some entries.
func (p *person) audit(ctx context.Context, c choice) {
	var head api.AuditCheckpoint
	var list api.AuditEntries
	o := p.do(ctx, c, func(ctx context.Context, _ ...api.CallOption) (err error) {
		if head, err = p.client.AuditCheckpoint(ctx); err != nil {
			return err
		}
		list, err = p.client.AuditEntries(ctx, uint64(c.which*float64(head.Size)), 10)
		return err
	})
	p.run.history.note(p.name, "audit: %s %d", told(o, output{}), head.Size)
	if o.none || o.code != "" {
		return
	}
	b := p.run.book
	b.mu.Lock()
	defer b.mu.Unlock()
	if old, ok := b.heads[int64(head.Size)]; ok && old != head.Root {
		defer p.run.history.violation(p.name, "the audit log of %d entries had the root %s, and has %s", head.Size, old, head.Root)
	}
	b.heads[int64(head.Size)] = head.Root
	for i, e := range list.Entries {
		index := uint64(c.which*float64(head.Size)) + uint64(i)
		if old, ok := b.leaves[index]; ok && old != string(e) {
			defer p.run.history.violation(p.name, "audit entry %d was %s, and is %s", index, old, e)
		}
		b.leaves[index] = string(e)
	}
}

// feedSeen is the revocation feed as a node told it.
type feedSeen struct {
	who            string
	verified, told time.Time
	grants         map[string]bool
}

// feed reads the revocation feed of whatever node answers.
func (p *person) feed(ctx context.Context, c choice) {
	var f api.Feed
	o := p.do(ctx, c, func(ctx context.Context, _ ...api.CallOption) (err error) {
		f, err = p.client.Revocations(ctx)
		return err
	})
	if o.none || o.code != "" {
		return
	}
	seen := feedSeen{who: p.name, verified: f.VerifiedAt, told: time.Now(), grants: map[string]bool{}}
	for _, e := range f.Grants {
		seen.grants[e.ID] = true
	}
	p.run.history.note(p.name, "feed: %d grants as of %s", len(f.Grants), f.VerifiedAt.Format("15:04:05.000"))
	if f.VerifiedAt.After(seen.told.Add(slack)) {
		// Whoever trusts a list for so long as it is fresh would trust this one for as much too long.
		p.run.history.violation(p.name, "the feed was confirmed %v from now", f.VerifiedAt.Sub(seen.told))
	}
	b := p.run.book
	b.mu.Lock()
	defer b.mu.Unlock()
	b.feeds = append(b.feeds, seen)
}
