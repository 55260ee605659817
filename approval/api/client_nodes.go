package api

import (
	"context"
	"net/url"
)

// AdoptManifest makes the nodes of a newer manifest known to the cluster.
func (c *Client) AdoptManifest(ctx context.Context, manifest string, opts ...CallOption) (out Cluster, err error) {
	err = c.post(ctx, pathManifest, ManifestInput{Manifest: manifest}, &out, opts)
	return out, err
}

// JoinNode has a known node be sent the log, without a vote.
func (c *Client) JoinNode(ctx context.Context, id string, opts ...CallOption) (out Node, err error) {
	err = c.post(ctx, nodePath(id, "join"), NodeInput{}, &out, opts)
	return out, err
}

// PromoteNode gives a node a vote once it has caught up. Until then the error is
// ErrUnavailable.
func (c *Client) PromoteNode(ctx context.Context, id string, opts ...CallOption) (out Node, err error) {
	err = c.post(ctx, nodePath(id, "promote"), NodeInput{}, &out, opts)
	return out, err
}

// RemoveNode takes a node out of the cluster, and its issuers out of use.
func (c *Client) RemoveNode(ctx context.Context, id string, in RemoveNodeInput, opts ...CallOption) (out Node, err error) {
	err = c.post(ctx, nodePath(id, "remove"), in, &out, opts)
	return out, err
}

// HandOver has the node named lead.
func (c *Client) HandOver(ctx context.Context, id string, opts ...CallOption) (out Node, err error) {
	err = c.post(ctx, nodePath(id, "lead"), NodeInput{}, &out, opts)
	return out, err
}

func nodePath(id, what string) string { return "/v1/nodes/" + url.PathEscape(id) + "/" + what }
