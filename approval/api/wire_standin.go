package api

import (
	"context"
	"net/url"
	"time"
)

// StandIn says who counts in a group in the place of a member who is away.
type StandIn struct {
	Group  string    `json:"group"`
	For    string    `json:"for" doc:"name of the member who is away, and does not count meanwhile"`
	By     string    `json:"by" doc:"name of the person who counts instead"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	Until  time.Time `json:"until"`
}

// StandInInput is the body of POST /v1/groups/{id}/stand-in.
type StandInInput struct {
	By       string   `json:"by" minLength:"1" maxLength:"128" doc:"name of one of the group's substitutes"`
	Duration Duration `json:"duration" doc:"for how long, from now on; at most 720h" example:"72h"`
	Reason   string   `json:"reason" minLength:"1" maxLength:"2000" doc:"why, for the audit log"`
}

// EndStandInInput is the body of POST /v1/groups/{id}/stand-in/end.
type EndStandInInput struct {
	For string `json:"for,omitempty" maxLength:"128" doc:"name of the member who is back; absent: the caller"`
}

// StandInBackend serves who stands in for whom.
type StandInBackend interface {
	// StandIn has somebody stand in for the caller.
	StandIn(ctx context.Context, call Call, group string, in StandInInput) (StandIn, error)
	EndStandIn(ctx context.Context, call Call, group string, in EndStandInInput) (StandIn, error)
}

func (h *Handler) standInRoutes(r *registrar) {
	b := h.backend
	post(r, "standIn", "/v1/groups/{id}/stand-in", "Have one of a group's substitutes stand in for the caller, who is a member, in place of whoever does; for the member's own identities",
		func(ctx context.Context, in *postIDInput[StandInInput]) (StandIn, error) {
			return b.StandIn(ctx, callFrom(ctx, false), in.ID, in.Body)
		})
	post(r, "endStandIn", "/v1/groups/{id}/stand-in/end", "Have a member back before the time; for that member, who stands in for them, and admins",
		func(ctx context.Context, in *postIDInput[EndStandInInput]) (StandIn, error) {
			return b.EndStandIn(ctx, callFrom(ctx, false), in.ID, in.Body)
		})
}

// StandIn has one of a group's substitutes stand in for the caller.
func (c *Client) StandIn(ctx context.Context, group string, in StandInInput, opts ...CallOption) (out StandIn, err error) {
	err = c.post(ctx, "/v1/groups/"+url.PathEscape(group)+"/stand-in", in, &out, opts)
	return out, err
}

// EndStandIn has a member back; "" for the caller.
func (c *Client) EndStandIn(ctx context.Context, group, member string, opts ...CallOption) (out StandIn, err error) {
	err = c.post(ctx, "/v1/groups/"+url.PathEscape(group)+"/stand-in/end", EndStandInInput{For: member}, &out, opts)
	return out, err
}
