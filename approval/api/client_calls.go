package api

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Page selects a page of a list.
type Page struct {
	Limit  int    // zero means the server's default, 50
	Cursor string // Next of the page before
}

func (p Page) query() url.Values {
	q := url.Values{}
	if p.Limit > 0 {
		q.Set("limit", strconv.Itoa(p.Limit))
	}
	set(q, "cursor", p.Cursor)
	return q
}

// Filter selects requests or grants. Empty fields select all.
type Filter struct {
	State, Service, Subject, Requester string
	Page
}

func (f Filter) query() url.Values {
	q := f.Page.query()
	set(q, "state", f.State)
	set(q, "service", f.Service)
	set(q, "subject", f.Subject)
	set(q, "requester", f.Requester)
	return q
}

func set(q url.Values, name, value string) {
	if value != "" {
		q.Set(name, value)
	}
}

// WhoAmI says who the server takes the caller for.
func (c *Client) WhoAmI(ctx context.Context, opts ...CallOption) (out WhoAmI, err error) {
	err = c.get(ctx, "/v1/whoami", nil, &out, opts)
	return out, err
}

// Cluster describes the control plane.
func (c *Client) Cluster(ctx context.Context, opts ...CallOption) (out Cluster, err error) {
	err = c.get(ctx, "/v1/cluster", nil, &out, opts)
	return out, err
}

// Bundle gives the roots of both trust domains.
func (c *Client) Bundle(ctx context.Context, opts ...CallOption) (out Bundle, err error) {
	err = c.get(ctx, "/v1/bundle", nil, &out, opts)
	return out, err
}

// Policy gives the policy in force.
func (c *Client) Policy(ctx context.Context, opts ...CallOption) (out Policy, err error) {
	err = c.get(ctx, "/v1/policy", nil, &out, opts)
	return out, err
}

// Groups gives the groups in force.
func (c *Client) Groups(ctx context.Context, opts ...CallOption) (out Groups, err error) {
	err = c.get(ctx, "/v1/groups", nil, &out, opts)
	return out, err
}

// Persons gives the persons in force.
func (c *Client) Persons(ctx context.Context, opts ...CallOption) (out Persons, err error) {
	err = c.get(ctx, "/v1/persons", nil, &out, opts)
	return out, err
}

// DryRun says what the policy would answer to in; nothing is written.
func (c *Client) DryRun(ctx context.Context, in RequestInput, opts ...CallOption) (out DryRun, err error) {
	in.DryRun = true
	err = c.post(ctx, "/v1/requests", in, &out, opts)
	return out, err
}

// CreateRequest asks for access.
func (c *Client) CreateRequest(ctx context.Context, in RequestInput, opts ...CallOption) (out Request, err error) {
	in.DryRun = false
	err = c.post(ctx, "/v1/requests", in, &out, opts)
	return out, err
}

// Request reads a request.
func (c *Client) Request(ctx context.Context, id string, opts ...CallOption) (out Request, err error) {
	err = c.get(ctx, "/v1/requests/"+url.PathEscape(id), nil, &out, opts)
	return out, err
}

// PollRequest reads a request once it has changed after index since, or as it
// is when wait is over. It returns the index to give as since the next time.
func (c *Client) PollRequest(ctx context.Context, id string, since uint64, wait time.Duration) (out Request, index uint64, err error) {
	cl := newCall(http.MethodGet, "/v1/requests/"+url.PathEscape(id), nil)
	if since > 0 {
		cl.wait = wait
		cl.query.Set("wait", wait.String())
		cl.query.Set("index", strconv.FormatUint(since, 10))
	}
	err = c.do(ctx, cl, &out)
	return out, cl.index, err
}

// WaitRequest waits until the request is pending no more. When ctx ends first
// it returns the request as last seen, with ctx's error.
func (c *Client) WaitRequest(ctx context.Context, id string) (Request, error) {
	var last Request
	var since uint64
	for {
		r, index, err := c.PollRequest(ctx, id, since, 30*time.Second)
		if err != nil {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return last, err
		}
		if r.State != RequestPending {
			return r, nil
		}
		last, since = r, index
	}
}

// Requests lists requests that the caller may see, newest first.
func (c *Client) Requests(ctx context.Context, f Filter, opts ...CallOption) (out RequestList, err error) {
	err = c.get(ctx, "/v1/requests", f.query(), &out, opts)
	return out, err
}

// DecideRequest approves or denies.
func (c *Client) DecideRequest(ctx context.Context, id string, in DecisionInput, opts ...CallOption) (out Request, err error) {
	err = c.post(ctx, "/v1/requests/"+url.PathEscape(id)+"/decisions", in, &out, opts)
	return out, err
}

// CancelRequest withdraws a pending request.
func (c *Client) CancelRequest(ctx context.Context, id string, opts ...CallOption) (out Request, err error) {
	err = c.post(ctx, "/v1/requests/"+url.PathEscape(id)+"/cancel", struct{}{}, &out, opts)
	return out, err
}

// Grant reads a grant.
func (c *Client) Grant(ctx context.Context, id string, opts ...CallOption) (out Grant, err error) {
	err = c.get(ctx, "/v1/grants/"+url.PathEscape(id), nil, &out, opts)
	return out, err
}

// Grants lists grants that the caller may see, newest first.
func (c *Client) Grants(ctx context.Context, f Filter, opts ...CallOption) (out GrantList, err error) {
	err = c.get(ctx, "/v1/grants", f.query(), &out, opts)
	return out, err
}

// GrantCertificate mints a certificate for the key of the given PEM CSR.
func (c *Client) GrantCertificate(ctx context.Context, id, csr string, opts ...CallOption) (out Certificate, err error) {
	err = c.post(ctx, "/v1/grants/"+url.PathEscape(id)+"/certificate", CertificateInput{CSR: csr}, &out, opts)
	return out, err
}

// RevokeGrant ends a grant now. Its subject may leave the reason empty.
func (c *Client) RevokeGrant(ctx context.Context, id, reason string, opts ...CallOption) (out Grant, err error) {
	err = c.post(ctx, "/v1/grants/"+url.PathEscape(id)+"/revoke", RevokeInput{Reason: reason}, &out, opts)
	return out, err
}

// ProposeChange proposes a change of policy, groups or persons.
func (c *Client) ProposeChange(ctx context.Context, in ChangeInput, opts ...CallOption) (out Change, err error) {
	err = c.post(ctx, "/v1/changes", in, &out, opts)
	return out, err
}

// Change reads a change.
func (c *Client) Change(ctx context.Context, id string, opts ...CallOption) (out Change, err error) {
	err = c.get(ctx, "/v1/changes/"+url.PathEscape(id), nil, &out, opts)
	return out, err
}

// Changes lists changes of a state (empty means all), newest first.
func (c *Client) Changes(ctx context.Context, state string, p Page, opts ...CallOption) (out ChangeList, err error) {
	q := p.query()
	set(q, "state", state)
	err = c.get(ctx, "/v1/changes", q, &out, opts)
	return out, err
}

// DecideChange approves or denies a change.
func (c *Client) DecideChange(ctx context.Context, id string, in ChangeDecisionInput, opts ...CallOption) (out Change, err error) {
	err = c.post(ctx, "/v1/changes/"+url.PathEscape(id)+"/decisions", in, &out, opts)
	return out, err
}

// CancelChange withdraws a pending change.
func (c *Client) CancelChange(ctx context.Context, id string, opts ...CallOption) (out Change, err error) {
	err = c.post(ctx, "/v1/changes/"+url.PathEscape(id)+"/cancel", struct{}{}, &out, opts)
	return out, err
}

// BlockSubject ends all of a subject's grants and lets none be made.
func (c *Client) BlockSubject(ctx context.Context, in BlockInput, opts ...CallOption) (out Block, err error) {
	err = c.post(ctx, "/v1/subjects/block", in, &out, opts)
	return out, err
}

// DenyIssuer puts a node's issuer on the revocation feed.
func (c *Client) DenyIssuer(ctx context.Context, id, reason string, opts ...CallOption) (out Issuer, err error) {
	err = c.post(ctx, "/v1/issuers/"+url.PathEscape(id)+"/deny", ReasonInput{Reason: reason}, &out, opts)
	return out, err
}

// IssueIdentity mints an identity for a service or a node.
func (c *Client) IssueIdentity(ctx context.Context, in IdentityInput, opts ...CallOption) (out Certificate, err error) {
	err = c.post(ctx, "/v1/identities", in, &out, opts)
	return out, err
}

// Revocations reads the revocation feed once.
func (c *Client) Revocations(ctx context.Context, opts ...CallOption) (out Feed, err error) {
	err = c.get(ctx, "/v1/revocations", nil, &out, opts)
	return out, err
}

// AuditEntries reads a run of audit entries; limit zero means 100.
func (c *Client) AuditEntries(ctx context.Context, from uint64, limit int, opts ...CallOption) (out AuditEntries, err error) {
	q := url.Values{"from": {strconv.FormatUint(from, 10)}}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	err = c.get(ctx, "/v1/audit/entries", q, &out, opts)
	return out, err
}

// AuditCheckpoint reads the signed checkpoint of the answering node.
func (c *Client) AuditCheckpoint(ctx context.Context, opts ...CallOption) (out AuditCheckpoint, err error) {
	err = c.get(ctx, "/v1/audit/checkpoint", nil, &out, opts)
	return out, err
}

// InclusionProof proves entry index in the log of size entries.
func (c *Client) InclusionProof(ctx context.Context, index, size uint64, opts ...CallOption) (out InclusionProof, err error) {
	q := url.Values{"index": {strconv.FormatUint(index, 10)}, "size": {strconv.FormatUint(size, 10)}}
	err = c.get(ctx, "/v1/audit/proof/inclusion", q, &out, opts)
	return out, err
}

// ConsistencyProof proves that the log of size from is a prefix of that of size to.
func (c *Client) ConsistencyProof(ctx context.Context, from, to uint64, opts ...CallOption) (out ConsistencyProof, err error) {
	q := url.Values{"old": {strconv.FormatUint(from, 10)}, "new": {strconv.FormatUint(to, 10)}}
	err = c.get(ctx, "/v1/audit/proof/consistency", q, &out, opts)
	return out, err
}
