package control

import (
	"context"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
)

// WhoAmI implements api.DirectoryBackend. Everyone may ask.
func (b backend) WhoAmI(ctx context.Context, call api.Call) (out api.WhoAmI, err error) {
	err = b.view(ctx, call, func(s approval.State) error {
		e, err := eyesOf(s, call.Caller.ID)
		if err != nil {
			return err
		}
		out = api.WhoAmI{
			ID: call.Caller.ID.String(), Person: e.person, Groups: list(e.groups), Admin: e.admin,
			TrustDomain: b.trustDomain.Name(), NotAfter: call.Caller.NotAfter.UTC(), Node: b.node.node.ID,
		}
		return nil
	})
	return out, err
}

// Policy implements api.DirectoryBackend.
func (b backend) Policy(ctx context.Context, call api.Call) (out api.Policy, err error) {
	err = b.viewAsPerson(ctx, call, func(s approval.State) error {
		doc, err := s.Policy()
		out = api.Policy{Revision: doc.Revision, YAML: doc.YAML}
		return err
	})
	return out, err
}

// Groups implements api.DirectoryBackend.
func (b backend) Groups(ctx context.Context, call api.Call) (out api.Groups, err error) {
	err = b.viewAsPerson(ctx, call, func(s approval.State) error {
		c, err := s.Cluster()
		if err != nil {
			return err
		}
		groups, err := s.Groups()
		if err != nil {
			return err
		}
		out = api.Groups{Revision: c.DirectoryRevision, Groups: make([]api.Group, 0, len(groups))}
		for _, g := range groups {
			group, err := wireGroup(s, g)
			if err != nil {
				return err
			}
			out.Groups = append(out.Groups, group)
		}
		return nil
	})
	return out, err
}

// Persons implements api.DirectoryBackend.
func (b backend) Persons(ctx context.Context, call api.Call) (out api.Persons, err error) {
	err = b.viewAsPerson(ctx, call, func(s approval.State) error {
		c, err := s.Cluster()
		if err != nil {
			return err
		}
		persons, err := s.Persons()
		if err != nil {
			return err
		}
		away, err := s.Away()
		if err != nil {
			return err
		}
		out = api.Persons{Revision: c.DirectoryRevision, Persons: mapped(persons, func(p approval.Person) api.Person {
			return api.Person{
				Name: p.Name, IDs: list(p.IDs), Owns: list(p.Owns), Groups: list(s.GroupsOf(p.Name)), Slack: p.Slack,
				Away: mapped(away[p.Name], wireStandIn),
			}
		})}
		return nil
	})
	return out, err
}

// Bundle implements api.DirectoryBackend. Everyone may ask, of a node without a
// leader too.
func (b backend) Bundle(context.Context, api.Call) (api.Bundle, error) {
	t := b.custody.get()
	return api.Bundle{
		TrustDomain: b.trustDomain.Name(), GrantTrustDomain: b.grantDomain.Name(),
		IdentityRoots: string(ca.EncodeCertificates(t.roots...)),
		GrantRoots:    string(ca.EncodeCertificates(t.grantRoots...)),
	}, nil
}

// Cluster implements api.DirectoryBackend.
func (b backend) Cluster(ctx context.Context, call api.Call) (out api.Cluster, err error) {
	err = b.viewAsPerson(ctx, call, func(s approval.State) error {
		status := b.store.Status() // after the wait for the state to be as new as anyone was told
		c, err := s.Cluster()
		if err != nil {
			return err
		}
		blocks, err := s.Blocks()
		if err != nil {
			return err
		}
		out = api.Cluster{
			ID: c.ID, TrustDomain: c.TrustDomain, GrantTrustDomain: c.GrantTrustDomain, Epoch: c.Epoch, EpochBegan: moment(c.EpochBegan),
			Node: b.node.node.ID, Leader: status.Leader, Term: status.Term, Index: status.Applied,
			Manifest: c.Manifest, Commands: c.Version,
			Nodes:   mapped(c.Nodes, func(n approval.Node) api.Node { return b.wireNode(n, status) }),
			Issuers: mapped(c.Issuers, wireIssuer),
			Blocked: mapped(blocks, wireBlock),
		}
		return nil
	})
	return out, err
}
