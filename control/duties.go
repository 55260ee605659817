package control

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/ca"
)

// lead does what one node must do for all, while this one leads. Each duty is
// a command that the state machine refuses or ignores the second time, so a
// leader that dies half-way leaves nothing undone and nothing done twice.
func (n *node) lead(ctx context.Context) {
	n.log.LogAttrs(ctx, slog.LevelInfo, "leading")
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { n.publishAll(ctx) })
	group.Go(func() { n.notifyAll(ctx) })
	for _, r := range n.resolvers {
		group.Go(func() { n.resolve(ctx, r) })
	}
	known, said := met{}, ""
	for ctx.Err() == nil {
		err := errors.Join(n.duties(ctx), n.escalations(ctx), n.handOvers(ctx), n.memberDuties(ctx, known))
		if now := fmt.Sprint(err); err != nil && ctx.Err() == nil && now != said {
			said = now
			n.log.LogAttrs(ctx, slog.LevelWarn, "leader duty failed", slog.String("error", now))
		}
		if pause(ctx, n.limits.Tick) != nil {
			return
		}
	}
}

// duties does what is due now.
func (n *node) duties(ctx context.Context) error {
	for more := true; more && ctx.Err() == nil; {
		var due approval.Due
		err := n.local(func(s approval.State) error {
			if _, err := s.Cluster(); err != nil {
				return err
			}
			due = s.Due(approval.MillisOf(n.now()), n.retention)
			return nil
		})
		if errors.Is(err, approval.ErrNotFound) {
			return n.bootstrap(ctx)
		}
		if err == nil {
			err = n.beginEpoch(ctx)
		}
		if err != nil || !due.Now {
			return err
		}
		if more, err = n.tick(ctx); err != nil {
			return err
		}
	}
	return nil
}

// memberDuties keeps the membership what it was made.
func (n *node) memberDuties(ctx context.Context, known met) error {
	if n.version.Load() == 0 {
		return nil // nothing is known of the state yet
	}
	err := errors.Join(n.adoptOwn(ctx), n.dropForgotten(ctx), n.raiseVersion(ctx), n.removeDead(ctx, known))
	if errors.Is(err, approval.ErrNotFound) {
		return nil // not bootstrapped yet
	}
	return err
}

// tick expires what is due and says whether more is.
func (n *node) tick(ctx context.Context) (more bool, err error) {
	ctx, span := n.spans.Start(ctx, "tick")
	defer func() { ended(span, err) }()
	cmd, err := n.command(ctx, approval.Tick{RetainMS: n.retention.Milliseconds()})
	if err != nil {
		return false, err
	}
	res, err := n.commit(ctx, cmd)
	if err != nil {
		return false, err
	}
	done, ok := res.Object.(approval.Ticked)
	if !ok {
		return false, nil
	}
	for range done.Requests {
		n.metrics.requestExpired(ctx)
	}
	return done.More, nil
}

// bootstrap makes the cluster from the manifest. Every node has the same one,
// so it does not matter which leads first.
func (n *node) bootstrap(ctx context.Context) error {
	if err := n.checkEpoch(); err != nil {
		return err // what was restored is not there
	}
	m := n.manifest
	body := approval.Bootstrap{
		Cluster: m.Cluster, TrustDomain: m.TrustDomain.Name(), GrantTrustDomain: m.GrantTrustDomain.Name(),
		Policy: m.Policy, Manifest: m.Sequence,
		IdentityRoots: mapped(m.IdentityRoots, func(c *x509.Certificate) []byte { return c.Raw }),
		GrantRoots:    mapped(m.GrantRoots, func(c *x509.Certificate) []byte { return c.Raw }),
		RootDocuments: mapped(m.RootDocuments, func(d string) []byte { return []byte(d) }),
		Persons: mapped(m.Persons, func(p ca.Person) approval.Person {
			return approval.Person{Name: p.Name, IDs: list(p.IDs), Owns: list(p.Owns)}
		}),
		Groups: mapped(m.Groups, func(g ca.Group) approval.Group {
			return approval.Group{Name: g.Name, Members: list(g.Members)}
		}),
		Nodes: mapped(m.Nodes, func(e ca.NodeEntry) approval.BootstrapNode {
			return approval.BootstrapNode{
				ID: e.ID, Key: e.Key, AuditKey: e.AuditKey, RaftAddress: e.RaftAddress, APIAddress: e.APIAddress,
				IdentityIssuer: e.IdentityIssuer.Raw, GrantIssuer: e.GrantIssuer.Raw,
			}
		}),
	}
	cmd, err := n.command(ctx, body)
	if err != nil {
		return err
	}
	// The first members run this release: there is nothing before it to agree with.
	cmd.V = min(approval.Version, n.machine.Knows())
	if _, err := n.commit(ctx, cmd); err != nil && !errors.Is(err, approval.ErrConflict) {
		return err
	}
	n.log.LogAttrs(ctx, slog.LevelInfo, "cluster bootstrapped", slog.String("cluster", m.Cluster))
	return nil
}
