package control

import (
	"context"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
)

// visibleGrant reads a grant if the caller may see it.
func visibleGrant(s approval.State, who spiffeid.ID, id string) (approval.Grant, error) {
	g, err := s.Grant(id)
	if errors.Is(err, approval.ErrNotFound) {
		return g, notFound("grant", id)
	}
	if err != nil {
		return g, err
	}
	// The request knows its requester's person, and every group that had a say.
	_, err = visibleRequest(s, who, id)
	if person := s.PersonName(who); errors.Is(err, api.ErrNotFound) && person != "" && g.StandsOn(person) {
		return g, nil // who approved that it goes on, and may end it
	}
	if err != nil {
		if errors.Is(err, api.ErrNotFound) {
			err = notFound("grant", id)
		}
		return approval.Grant{}, err
	}
	return g, nil
}

// Grant implements api.GrantBackend.
func (b backend) Grant(ctx context.Context, call api.Call, id string) (out api.Grant, err error) {
	err = b.view(ctx, call, func(s approval.State) error {
		g, err := visibleGrant(s, call.Caller.ID, id)
		if err != nil {
			return err
		}
		issues, err := s.Issuances(id)
		if err != nil {
			return err
		}
		out = b.wireGrant(g)
		out.Issuances = mapped(issues, wireIssuance)
		return nil
	})
	return out, err
}

// Grants implements api.GrantBackend.
func (b backend) Grants(ctx context.Context, call api.Call, f api.Filter) (out api.GrantList, err error) {
	out.Grants = []api.Grant{}
	err = b.view(ctx, call, func(s approval.State) error {
		e, err := eyesOf(s, call.Caller.ID)
		if err != nil {
			return err
		}
		want := filter(f)
		if want.State == api.GrantScheduled {
			want.State = api.GrantActive // the state machine's word for both
		}
		page, cursor, err := visiblePage(e.among(want), s.Grants, func(g approval.Grant) bool {
			if f.State != "" && b.wireGrant(g).State != f.State {
				return false
			}
			if e.seesGrant(g) {
				return true
			}
			r, err := s.Request(g.ID)
			return err == nil && e.sees(r)
		}, weighGrant)
		if err != nil {
			return err
		}
		out.Grants, out.Next = mapped(page, b.wireGrant), cursor
		return nil
	})
	return out, err
}

// RevokeGrant implements api.GrantBackend. A subject that gives no reason
// returns its grant.
func (b backend) RevokeGrant(ctx context.Context, call api.Call, id string, in api.RevokeInput) (out api.Grant, err error) {
	var g approval.Grant
	if err := b.look(ctx, call, func(s approval.State) (err error) {
		g, err = visibleGrant(s, call.Caller.ID, id)
		return err
	}); err != nil {
		return out, b.counted(ctx, err)
	}
	var body approval.Body = approval.RevokeGrant{Grant: id, Reason: in.Reason}
	if in.Reason == "" && g.Subject == call.Caller.ID.String() {
		body = approval.ReturnGrant{Grant: id}
	}
	ctx, span := b.continued(ctx, "grant.revoke", g.Trace, grantAttr(id))
	defer func() { ended(span, err) }()
	res, err := b.propose(ctx, call, body)
	if err != nil {
		return out, b.counted(ctx, err)
	}
	changed, ok := res.Object.(approval.Grant)
	if !ok {
		return out, fmt.Errorf("result is a %T, not a grant", res.Object)
	}
	return b.wireGrant(changed), nil
}

// BlockSubject implements api.GrantBackend.
func (b backend) BlockSubject(ctx context.Context, call api.Call, in api.BlockInput) (out api.Block, err error) {
	res, err := b.proposeAsAdmin(ctx, call, approval.BlockSubject{Subject: in.Subject, Reason: in.Reason})
	if err != nil {
		return out, err
	}
	block, ok := res.Object.(approval.Block)
	if !ok {
		return out, fmt.Errorf("result is a %T, not a block", res.Object)
	}
	return wireBlock(block), nil
}

// DenyIssuer implements api.GrantBackend.
func (b backend) DenyIssuer(ctx context.Context, call api.Call, id string, in api.ReasonInput) (out api.Issuer, err error) {
	res, err := b.proposeAsAdmin(ctx, call, approval.DenyIssuer{Issuer: id, Reason: in.Reason})
	if err != nil {
		return out, err
	}
	issuer, ok := res.Object.(approval.Issuer)
	if !ok {
		return out, fmt.Errorf("result is a %T, not an issuer", res.Object)
	}
	return wireIssuer(issuer), nil
}

// proposeAsAdmin proposes what only admins may. A replayed answer goes only to
// one who still is an admin.
func (b backend) proposeAsAdmin(ctx context.Context, call api.Call, body approval.Body) (approval.Result, error) {
	err := b.look(ctx, call, func(s approval.State) error {
		if !s.IsAdmin(call.Caller.ID) {
			return api.NewProblem(api.CodeDenied, "only an admin may do this", "ask one of the group "+approval.AdminGroup)
		}
		return nil
	})
	if err != nil {
		return approval.Result{}, b.counted(ctx, err)
	}
	res, err := b.propose(ctx, call, body)
	return res, b.counted(ctx, err)
}
