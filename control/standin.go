package control

import (
	"context"
	"fmt"
	"time"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
)

// StandIn implements api.StandInBackend.
func (b backend) StandIn(ctx context.Context, call api.Call, group string, in api.StandInInput) (api.StandIn, error) {
	if in.Duration <= 0 {
		return api.StandIn{}, b.counted(ctx, api.NewProblem(api.CodeInvalid, "duration: must be above 0", "want a form such as 72h"))
	}
	until := approval.MillisOf(b.now()).Add(time.Duration(in.Duration))
	return b.stoodIn(ctx, call, approval.NameStandIn{Group: group, By: in.By, Until: int64(until), Reason: in.Reason})
}

// EndStandIn implements api.StandInBackend.
func (b backend) EndStandIn(ctx context.Context, call api.Call, group string, in api.EndStandInInput) (api.StandIn, error) {
	body := approval.EndStandIn{Group: group, For: in.For}
	if body.For == "" {
		err := b.look(ctx, call, func(s approval.State) error {
			e, err := eyesOf(s, call.Caller.ID)
			if err != nil {
				return err
			}
			body.For = e.person
			return e.mapped()
		})
		if err != nil {
			return api.StandIn{}, b.counted(ctx, err)
		}
	}
	return b.stoodIn(ctx, call, body)
}

func (b backend) stoodIn(ctx context.Context, call api.Call, body approval.Body) (api.StandIn, error) {
	res, err := b.propose(ctx, call, body)
	if err != nil {
		return api.StandIn{}, b.counted(ctx, err)
	}
	in, ok := res.Object.(approval.StandIn)
	if !ok {
		return api.StandIn{}, fmt.Errorf("result is a %T, not who stands in", res.Object)
	}
	return wireStandIn(in), nil
}

func wireStandIn(in approval.StandIn) api.StandIn {
	return api.StandIn{Group: in.Group, For: in.For, By: in.By, Reason: in.Reason, Since: in.Since.Time(), Until: in.Until.Time()}
}
