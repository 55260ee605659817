package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

// pageSize is the most that the API takes.
const pageSize = 1000

// CatchUp waits until a node's own state is as new as the cluster's is now: it has then all that was
// acknowledged before. A node that can be asked for nothing yet is waited for, too.
func CatchUp(ctx context.Context, node, cluster *api.Client) error {
	now, err := cluster.Cluster(ctx)
	if err != nil {
		return err
	}
	for {
		at, err := node.Cluster(ctx, api.Stale())
		if err == nil && at.Index >= now.Index {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the node is at index %d, the cluster at %d: %w", at.Index, now.Index, errors.Join(context.Cause(ctx), err))
		}
	}
}

// Check asks one node for everything in entries, by the eyes of someone who may see all of it. The
// node MUST have come to where the cluster was when the last of them was acknowledged: see CatchUp.
func Check(ctx context.Context, client *api.Client, entries []Entry) error {
	requests, err := allRequests(ctx, client)
	if err != nil {
		return err
	}
	grants, err := allGrants(ctx, client)
	if err != nil {
		return err
	}
	feed, err := client.Revocations(ctx, api.Stale())
	if err != nil {
		return err
	}
	cut := make(map[string]bool)
	for _, e := range feed.Grants {
		cut[e.ID] = true
	}
	var errs []error
	for _, e := range entries {
		err := e.there(requests, grants)
		if err == nil && e.Revoked && !cut[e.ID] && e.mayBeUsed() {
			err = errors.New("it was revoked, has a certificate, and is not on the feed")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s (%s): %w", e.ID, e.Reason, err))
		}
	}
	return few(errs)
}

// few keeps a report readable.
func few(errs []error) error {
	if n := len(errs); n > 20 {
		errs = append(errs[:20:20], fmt.Errorf("and %d more", n-20))
	}
	return errors.Join(errs...)
}

func allRequests(ctx context.Context, client *api.Client) (map[string]api.Request, error) {
	all := make(map[string]api.Request)
	for page := (api.Page{Limit: pageSize}); ; {
		list, err := client.Requests(ctx, api.Filter{Page: page}, api.Stale())
		if err != nil {
			return nil, err
		}
		for _, r := range list.Requests {
			all[r.ID] = r
		}
		if page.Cursor = list.Next; page.Cursor == "" {
			return all, nil
		}
	}
}

func allGrants(ctx context.Context, client *api.Client) (map[string]api.Grant, error) {
	all := make(map[string]api.Grant)
	for page := (api.Page{Limit: pageSize}); ; {
		list, err := client.Grants(ctx, api.Filter{Page: page}, api.Stale())
		if err != nil {
			return nil, err
		}
		for _, g := range list.Grants {
			all[g.ID] = g
		}
		if page.Cursor = list.Next; page.Cursor == "" {
			return all, nil
		}
	}
}

// there checks what a node says of one request. What was not acknowledged may have happened all the
// same: the answer was lost, or is on its way.
func (e Entry) there(requests map[string]api.Request, grants map[string]api.Grant) error {
	r, ok := requests[e.ID]
	if !ok {
		return errors.New("the request is not there")
	}
	want := map[string]string{"": api.RequestPending, "approve": api.RequestApproved, "deny": api.RequestDenied}[e.Decision]
	if e.Cancelled {
		want = api.RequestCancelled
	}
	if settled := e.Over || want != api.RequestPending; r.Reason != e.Reason || settled && r.State != want {
		return fmt.Errorf("the request is %s, for %q", r.State, r.Reason)
	}
	if len(r.Decisions) > 1 {
		return fmt.Errorf("one decision was made, and it has %d", len(r.Decisions))
	}
	if e.Decision != "" && !slices.ContainsFunc(r.Decisions, func(d api.Decision) bool {
		return d.Person == e.Voter && d.Decision == e.Decision && d.Hash == e.Hash && d.Comment == e.Reason
	}) {
		return fmt.Errorf("its decisions are %+v", r.Decisions)
	}
	if e.Decision != "approve" {
		return nil
	}
	g, ok := grants[e.ID]
	switch {
	case !ok:
		return errors.New("the grant is not there")
	case e.Revoked && g.State != api.GrantRevoked, !e.Revoking && g.State != api.GrantActive:
		return fmt.Errorf("the grant is %s", g.State)
	}
	return nil
}

// mayBeUsed reports whether a certificate of it is still valid.
func (e Entry) mayBeUsed() bool {
	for _, c := range e.Certificates {
		if time.Now().Before(c.Leaf.NotAfter) {
			return true
		}
	}
	return false
}

// Live reports whether the grant is to be had, and nobody is about to revoke it.
func (e Entry) Live() bool { return e.Over && e.Decision == "approve" && !e.Revoking }

// CheckFetch has a certificate minted for a live grant, as the person who asked for it. It adds the
// certificate to the entry, so that CheckLog looks for it.
func (e *Entry) CheckFetch(ctx context.Context, asker *api.Client) error {
	key, csr, err := newKey()
	if err != nil {
		return err
	}
	cert, err := fetch(ctx, asker, e.ID, key, csr)
	if err != nil {
		return fmt.Errorf("%s (%s) is live and gives no certificate: %w", e.ID, e.Reason, err)
	}
	e.Certificates = append(e.Certificates, cert)
	return nil
}

// Issued is a certificate as the log has it.
type Issued struct{ Serial, Grant, TBSHash string }

// CheckIssuances asks one node for the record of each grant that the log has certificates of: all
// of them have to be in it, and no others.
func CheckIssuances(ctx context.Context, client *api.Client, issued []Issued) error {
	of := make(map[string][]string)
	for _, i := range issued {
		of[i.Grant] = append(of[i.Grant], i.Serial)
	}
	var errs []error
	for id, want := range of {
		g, err := client.Grant(ctx, id, api.Stale())
		if err != nil {
			return fmt.Errorf("grant %s: %w", id, err)
		}
		var got []string
		for _, i := range g.Issuances {
			got = append(got, i.Serial)
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			errs = append(errs, fmt.Errorf("grant %s has the certificates %v, and the log %v", id, got, want))
		}
	}
	return few(errs)
}
