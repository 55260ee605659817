package api

import (
	"context"
	"net/url"
)

// NotifyTargets lists who is told what happens.
func (c *Client) NotifyTargets(ctx context.Context, opts ...CallOption) (out NotifyTargets, err error) {
	err = c.get(ctx, pathNotify+"/targets", nil, &out, opts)
	return out, err
}

// DeadLetters lists notifications that were given up, of one target or "" for all.
func (c *Client) DeadLetters(ctx context.Context, target string, opts ...CallOption) (out DeadLetters, err error) {
	query := url.Values{}
	if target != "" {
		query.Set("target", target)
	}
	err = c.get(ctx, pathNotify+"/dead", query, &out, opts)
	return out, err
}

// ReplayNotifications has dead letters sent again, and a paused target go on.
func (c *Client) ReplayNotifications(ctx context.Context, target string, in ReplayInput, opts ...CallOption) (out NotifyTarget, err error) {
	err = c.post(ctx, aboutTarget(target, "replay"), in, &out, opts)
	return out, err
}

// ForgetTarget forgets a target, with its dead letters.
func (c *Client) ForgetTarget(ctx context.Context, target string, opts ...CallOption) (out NotifyTarget, err error) {
	err = c.post(ctx, aboutTarget(target, "forget"), struct{}{}, &out, opts)
	return out, err
}

// TestTarget sends a target a message that says nothing.
func (c *Client) TestTarget(ctx context.Context, target string, opts ...CallOption) (out NotifyTested, err error) {
	err = c.post(ctx, aboutTarget(target, "test"), struct{}{}, &out, opts)
	return out, err
}

func aboutTarget(target, action string) string {
	return pathNotify + "/targets/" + url.PathEscape(target) + "/" + action
}
