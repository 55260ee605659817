package api

import "context"

// InstallIssuers gives a node the successors of its certificates.
func (c *Client) InstallIssuers(ctx context.Context, in InstallInput, opts ...CallOption) (out Installed, err error) {
	err = c.post(ctx, "/v1/issuers", in, &out, opts)
	return out, err
}

// NodeIssuers are the issuers of all nodes as the answering node knows them.
func (c *Client) NodeIssuers(ctx context.Context, opts ...CallOption) (out NodeIssuers, err error) {
	err = c.get(ctx, "/v1/issuers", nil, &out, opts)
	return out, err
}

// NodeRequest is the answering node's request to have its keys signed.
func (c *Client) NodeRequest(ctx context.Context, opts ...CallOption) (out NodeRequest, err error) {
	err = c.get(ctx, "/v1/issuers/request", nil, &out, opts)
	return out, err
}

// Roots are the roots of both trust domains as the answering node knows them.
func (c *Client) Roots(ctx context.Context, opts ...CallOption) (out Roots, err error) {
	err = c.get(ctx, "/v1/roots", nil, &out, opts)
	return out, err
}

// SetRoots puts a roots document in force.
func (c *Client) SetRoots(ctx context.Context, document string, opts ...CallOption) (out RootSet, err error) {
	err = c.post(ctx, "/v1/roots", RootsInput{Document: document}, &out, opts)
	return out, err
}
