package control

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
)

// ProposeChange implements api.ChangeBackend.
func (b backend) ProposeChange(ctx context.Context, call api.Call, in api.ChangeInput) (out api.Change, err error) {
	edit, err := editOf(in.Change)
	if err != nil {
		return out, b.counted(ctx, err)
	}
	if edit.Kind == approval.EditPolicySet {
		if err := checkProposed(ctx, edit.YAML); err != nil {
			return out, b.counted(ctx, err)
		}
	}
	id, err := uuid.NewV7()
	if err != nil {
		return out, fmt.Errorf("change id: %w", err)
	}
	return b.changed(ctx, call, approval.ProposeChange{ID: id.String(), Edit: edit, BaseRevision: in.BaseRevision})
}

// DecideChange implements api.ChangeBackend.
func (b backend) DecideChange(ctx context.Context, call api.Call, id string, in api.ChangeDecisionInput) (api.Change, error) {
	return b.changed(ctx, call, approval.DecideChange{
		Change: id, Hash: in.Hash, Verdict: approval.Verdict(in.Decision), Comment: in.Comment,
	})
}

// CancelChange implements api.ChangeBackend.
func (b backend) CancelChange(ctx context.Context, call api.Call, id string) (api.Change, error) {
	return b.changed(ctx, call, approval.CancelChange{Change: id})
}

func (b backend) changed(ctx context.Context, call api.Call, body approval.Body) (out api.Change, err error) {
	res, err := b.proposeAsAdmin(ctx, call, body)
	if err != nil {
		return out, err
	}
	c, ok := res.Object.(approval.Change)
	if !ok {
		return out, fmt.Errorf("result is a %T, not a change", res.Object)
	}
	err = b.told(func(s approval.State) error {
		out = b.wireChange(s, c)
		return nil
	})
	return out, err
}

// Change implements api.ChangeBackend.
func (b backend) Change(ctx context.Context, call api.Call, id string) (out api.Change, err error) {
	err = b.viewAsPerson(ctx, call, func(s approval.State) error {
		c, err := s.Change(id)
		if err != nil {
			return err
		}
		out = b.wireChange(s, c)
		return nil
	})
	return out, err
}

// Changes implements api.ChangeBackend.
func (b backend) Changes(ctx context.Context, call api.Call, state string, p api.Page) (out api.ChangeList, err error) {
	out.Changes = []api.Change{}
	err = b.viewAsPerson(ctx, call, func(s approval.State) error {
		all := approval.Filter{State: state, Limit: p.Limit, Cursor: p.Cursor}
		page, cursor, err := visiblePage(all, s.Changes, func(approval.Change) bool { return true }, weighChange)
		if err != nil {
			return err
		}
		out.Next = cursor
		for _, c := range page {
			out.Changes = append(out.Changes, b.wireChange(s, c))
		}
		return nil
	})
	return out, err
}

// viewAsPerson reads what any person may.
func (b backend) viewAsPerson(ctx context.Context, call api.Call, fn func(approval.State) error) error {
	return b.view(ctx, call, func(s approval.State) error {
		e, err := eyesOf(s, call.Caller.ID)
		if err != nil {
			return err
		}
		if err := e.mapped(); err != nil {
			return err
		}
		return fn(s)
	})
}
