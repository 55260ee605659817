package api

import (
	"context"
	"net/url"
	"time"
)

// BreakGlass says of a request, or would say of one, that it is granted without the
// approvals that it requires, and how it is reviewed.
type BreakGlass struct {
	Review   []Requirement `json:"review" doc:"groups that must each close the review, by a person without a part in the request"`
	Within   Duration      `json:"within,omitempty" doc:"of what dry_run says: how long the review may be open"`
	DueAt    *time.Time    `json:"due_at,omitempty" doc:"open for longer, its person breaks no other glass"`
	Overdue  bool          `json:"overdue,omitempty"`
	Findings []Finding     `json:"findings"`
	ClosedAt *time.Time    `json:"closed_at,omitempty" doc:"absent while the review is open"`
	WaitsFor []string      `json:"waits_for" doc:"groups that are still to be heard"`
}

// Finding is what one person says of a glass that was broken.
type Finding struct {
	Person   string    `json:"person"`
	Identity string    `json:"identity" doc:"SPIFFE ID that was used"`
	Finding  string    `json:"finding"`
	At       time.Time `json:"at"`
}

// ReviewInput is the body of POST /v1/requests/{id}/review.
type ReviewInput struct {
	Finding string `json:"finding" minLength:"1" maxLength:"2000" doc:"what was found, in words"`
}

// ExtendInput is the body of POST /v1/grants/{id}/extend.
type ExtendInput struct {
	Duration Duration `json:"duration" doc:"how much longer than it would live now" example:"30m"`
	Reason   string   `json:"reason" minLength:"1" maxLength:"2000" doc:"why, for the approvers and the audit log"`
	DryRun   bool     `json:"dry_run,omitempty" doc:"only say which rule decides and who must approve"`
}

// Extends says which grant a request would extend, and until when.
type Extends struct {
	Grant string    `json:"grant"`
	From  time.Time `json:"from" doc:"the end that the grant had"`
	To    time.Time `json:"to" doc:"the end that it has once this is approved"`
}

// Extension is an approved request that moved a grant's end.
type Extension struct {
	Request  string   `json:"request"`
	Duration Duration `json:"duration"`
}

// Delegation says what the subject of a grant may make of it for others, without a new
// approval.
type Delegation struct {
	To          []string `json:"to" doc:"SPIFFE IDs, or patterns ending in /* or /**, that it may be for"`
	Most        int      `json:"max_grants" doc:"how many at a time"`
	MaxDuration Duration `json:"max_duration" doc:"the longest that one of them lives"`
}

// DelegateInput is the body of POST /v1/grants/{id}/delegate.
type DelegateInput struct {
	Subject     string   `json:"subject" minLength:"1" maxLength:"2048" doc:"SPIFFE ID that gets the access"`
	Permissions []string `json:"permissions,omitempty" maxItems:"32" nullable:"false" doc:"absent means all of the grant's"`
	Duration    Duration `json:"duration" doc:"not beyond the grant's end" example:"10m"`
	Reason      string   `json:"reason" minLength:"1" maxLength:"2000" doc:"why, for the audit log"`
}

// LifeBackend serves what happens to requests and grants besides decisions.
type LifeBackend interface {
	// OpenReviews lists requests that broke the glass and whose review is open.
	OpenReviews(ctx context.Context, call Call, f Filter) (RequestList, error)
	CloseReview(ctx context.Context, call Call, id string, in ReviewInput) (Request, error)
	// ExtendGrant asks for a grant to live longer.
	ExtendGrant(ctx context.Context, call Call, id string, in ExtendInput) (Request, error)
	// DelegateGrant makes another grant of one, for its caller to hand on.
	DelegateGrant(ctx context.Context, call Call, id string, in DelegateInput) (Request, error)
	DryRunExtend(ctx context.Context, call Call, id string, in ExtendInput) (DryRun, error)
}

type reviewsInput struct {
	Service   string `query:"service" maxLength:"63"`
	Requester string `query:"requester" maxLength:"2048"`
	Limit     int    `query:"limit" minimum:"1" maximum:"1000" doc:"absent means 100"`
	Cursor    string `query:"cursor" maxLength:"512" doc:"next of the page before"`
	Stale     bool   `query:"stale" doc:"answer from the node's own state, which may be behind"`
}

func (h *Handler) lifeRoutes(r *registrar) {
	b := h.backend
	get(r, "listOpenReviews", "/v1/reviews", "Requests that broke the glass and whose review is open, newest first",
		func(ctx context.Context, in *reviewsInput) (RequestList, error) {
			return b.OpenReviews(ctx, callFrom(ctx, in.Stale), Filter{
				Service: in.Service, Requester: in.Requester, Page: Page{Limit: in.Limit, Cursor: in.Cursor},
			})
		})
	r.extendGrant(b)
	post(r, "delegateGrant", "/v1/grants/{id}/delegate", "Make a narrower and shorter grant of one for another subject; for the grant's subject, where it was approved as delegable",
		func(ctx context.Context, in *postIDInput[DelegateInput]) (Request, error) {
			return b.DelegateGrant(ctx, callFrom(ctx, false), in.ID, in.Body)
		})
	post(r, "closeReview", "/v1/requests/{id}/review", "Say what was found of a glass that was broken; for its reviewers, once the grant is over",
		func(ctx context.Context, in *postIDInput[ReviewInput]) (Request, error) {
			return b.CloseReview(ctx, callFrom(ctx, false), in.ID, in.Body)
		})
}

// ExtendGrant asks for a grant to live longer. The answer is a request as any other.
func (c *Client) ExtendGrant(ctx context.Context, id string, in ExtendInput, opts ...CallOption) (out Request, err error) {
	in.DryRun = false
	err = c.post(ctx, "/v1/grants/"+url.PathEscape(id)+"/extend", in, &out, opts)
	return out, err
}

// DelegateGrant makes a narrower and shorter grant of one, for another subject.
func (c *Client) DelegateGrant(ctx context.Context, id string, in DelegateInput, opts ...CallOption) (out Request, err error) {
	err = c.post(ctx, "/v1/grants/"+url.PathEscape(id)+"/delegate", in, &out, opts)
	return out, err
}

// DryRunExtend says what the policy would answer to ExtendGrant; nothing is written.
func (c *Client) DryRunExtend(ctx context.Context, id string, in ExtendInput, opts ...CallOption) (out DryRun, err error) {
	in.DryRun = true
	err = c.post(ctx, "/v1/grants/"+url.PathEscape(id)+"/extend", in, &out, opts)
	return out, err
}

// OpenReviews lists requests that broke the glass and whose review is open. State and
// Subject of the filter do not apply.
func (c *Client) OpenReviews(ctx context.Context, f Filter, opts ...CallOption) (out RequestList, err error) {
	f.State, f.Subject = "", ""
	err = c.get(ctx, "/v1/reviews", f.query(), &out, opts)
	return out, err
}

// CloseReview says what was found of a glass that was broken.
func (c *Client) CloseReview(ctx context.Context, id, finding string, opts ...CallOption) (out Request, err error) {
	err = c.post(ctx, "/v1/requests/"+url.PathEscape(id)+"/review", ReviewInput{Finding: finding}, &out, opts)
	return out, err
}
