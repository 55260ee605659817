package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/raftstore"
)

// maxCatchUp is how long a call to promote a node waits for it to catch up.
const maxCatchUp = 5 * time.Second

// AdoptManifest implements api.MemberBackend. That a root in force signed it is
// checked where it is applied; what is checked here besides is that everything in
// it is what it ought to be.
func (b backend) AdoptManifest(ctx context.Context, call api.Call, in api.ManifestInput) (out api.Cluster, err error) {
	m, err := ca.ParseManifest([]byte(in.Manifest))
	if err != nil {
		return out, b.counted(ctx, api.NewProblem(api.CodeInvalid, err.Error(), "send the manifest.json that ca sign-node wrote"))
	}
	body, err := adoption(m)
	if err != nil {
		return out, err
	}
	if _, err := b.proposeAsAdmin(ctx, call, body); err != nil {
		return out, err
	}
	if err := b.local(b.takeRoster); err != nil { // or the next call, to join a node of it, comes too soon
		return out, err
	}
	return b.Cluster(ctx, call)
}

// JoinNode implements api.MemberBackend.
func (b backend) JoinNode(ctx context.Context, call api.Call, id string) (api.Node, error) {
	return b.changeMember(ctx, call, id, approval.JoinNode{Node: id}, func(ctx context.Context, role raftstore.Role, leaf func() error) error {
		if role != raftstore.RoleNone {
			return nil
		}
		if err := b.checkSpeaks(ctx, id); err != nil {
			return err
		}
		return b.store.AddNonvoter(ctx, id, leaf)
	})
}

// PromoteNode implements api.MemberBackend.
func (b backend) PromoteNode(ctx context.Context, call api.Call, id string) (api.Node, error) {
	return b.changeMember(ctx, call, id, approval.PromoteNode{Node: id}, func(ctx context.Context, role raftstore.Role, leaf func() error) error {
		if role == raftstore.RoleVoter {
			return nil
		}
		err := b.store.Promote(ctx, id, leaf)
		if errors.Is(err, raftstore.ErrMembership) && errors.Is(err, context.DeadlineExceeded) {
			p := api.NewProblem(api.CodeUnavailable, words(err), "try again: it is being sent what it lacks")
			p.RetryAfter = time.Second
			return p
		}
		return err
	})
}

// RemoveNode implements api.MemberBackend.
func (b backend) RemoveNode(ctx context.Context, call api.Call, id string, in api.RemoveNodeInput) (api.Node, error) {
	body := approval.RemoveNode{Node: id, Reason: in.Reason, Retired: in.Retired}
	return b.changeMember(ctx, call, id, body, func(ctx context.Context, role raftstore.Role, leaf func() error) error {
		switch {
		case role == raftstore.RoleNone: // known, and no member: only its issuers and keys go
			return leaf()
		case id == b.node.node.ID:
			if err := b.store.TransferLeadership(); err != nil {
				return err
			}
			return noLeader() // the same call, made again, finds the next leader
		case !in.WithoutAuditEntries:
			if err := b.hasAuditLog(id); err != nil {
				return err
			}
		}
		return b.store.Remove(ctx, id, leaf)
	})
}

// hasAuditLog keeps the only copy of a part of the audit log from being thrown
// away: while this node, which leads and stays, lacks entries, the one that is to
// go may be the one that it would fetch them from.
func (n *node) hasAuditLog(gone string) error {
	st := n.store.Status()
	if st.RecordsMissing == 0 {
		return nil
	}
	p := api.NewProblem(api.CodeUnavailable,
		fmt.Sprintf("%d of %d entries of the audit log are missing on %s, which leads: %s may be the only node that has them",
			st.RecordsMissing, st.Records, n.node.ID, gone),
		"try again once they were fetched, with "+gone+" started where it is down; if it never comes back: --without-audit-entries")
	p.RetryAfter = time.Second
	return p
}

// HandOver implements api.MemberBackend.
func (b backend) HandOver(ctx context.Context, call api.Call, id string) (api.Node, error) {
	return b.changeMember(ctx, call, id, approval.HandOver{Node: id}, func(_ context.Context, _ raftstore.Role, leaf func() error) error {
		if id == b.node.node.ID {
			return nil
		}
		return b.store.TransferLeadershipTo(id, leaf)
	})
}

// changeMember makes a change of the membership for an admin, once its audit leaf
// is committed. make is given what the node is now, and calls leaf, which commits
// it, when the change was found safe.
func (b backend) changeMember(ctx context.Context, call api.Call, id string, body approval.Body,
	make func(ctx context.Context, role raftstore.Role, leaf func() error) error,
) (out api.Node, err error) {
	err = b.view(ctx, call, func(s approval.State) error {
		if !s.IsAdmin(call.Caller.ID) {
			return api.NewProblem(api.CodeDenied, "only an admin changes what nodes the cluster has", "ask one of the group "+approval.AdminGroup)
		}
		node, err := s.Node(id)
		out = b.wireNode(node, b.store.Status())
		return err
	})
	if errors.Is(err, approval.ErrNotFound) {
		return b.changedBefore(ctx, call, body, err)
	}
	if err != nil {
		return out, b.counted(ctx, err)
	}
	ctx, cancel := context.WithTimeout(ctx, maxCatchUp)
	defer cancel()
	err = make(ctx, b.store.Membership()[id], func() error {
		_, err := b.propose(ctx, call, body)
		return err
	})
	if err != nil {
		return out, b.counted(ctx, memberProblem(err))
	}
	for _, p := range b.store.Status().Peers {
		if p.ID == id {
			out.Role = roleOnWire(p.Role)
		}
	}
	return out, nil
}

// changedBefore answers a call about a node that is not known: perhaps since this
// very call, made before, took it out. What that left undone, dropForgotten does.
func (b backend) changedBefore(ctx context.Context, call api.Call, body approval.Body, notFound error) (api.Node, error) {
	if call.Key == "" {
		return api.Node{}, b.counted(ctx, notFound)
	}
	res, err := b.propose(ctx, call, body)
	if err != nil {
		return api.Node{}, b.counted(ctx, err)
	}
	node, ok := res.Object.(approval.Node)
	if !ok {
		return api.Node{}, fmt.Errorf("result is a %T, not a node", res.Object)
	}
	return b.wireNode(node, b.store.Status()), nil
}

// memberProblem says why a membership stays as it is.
func memberProblem(err error) error {
	if errors.Is(err, raftstore.ErrMembership) {
		return api.NewProblem(api.CodeConflict, words(err), "see hallpass cluster status")
	}
	if errors.Is(err, raftstore.ErrTransfer) {
		p := api.NewProblem(api.CodeUnavailable, words(err), "try again in a moment")
		p.RetryAfter = time.Second
		return p
	}
	return storeProblem(err)
}

// words are an error's, without the name of the package that made it.
func words(err error) string { return clip(err.Error(), 1024) }

func roleOnWire(r raftstore.Role) string {
	if r == raftstore.RoleNone {
		return api.NodeUnjoined
	}
	return string(r)
}

// wireNode shows a node with what this one knows of it.
func (n *node) wireNode(node approval.Node, status raftstore.Status) api.Node {
	out := api.Node{
		ID: node.ID, APIAddress: node.APIAddress, RaftAddress: node.RaftAddress,
		AuditKey: node.AuditKey, Leader: node.ID == status.Leader, Role: api.NodeUnjoined,
	}
	at := slices.IndexFunc(status.Peers, func(p raftstore.PeerStatus) bool { return p.ID == node.ID })
	if at < 0 {
		return out
	}
	p := status.Peers[at]
	out.Role = roleOnWire(p.Role)
	if status.State != "leader" || p.Role == raftstore.RoleNone {
		return out
	}
	if p.LastContact >= 0 {
		silent := api.Duration(p.LastContact.Round(time.Millisecond))
		out.SilentFor = &silent
	}
	if p.Self {
		silent := api.Duration(0)
		out.SilentFor = &silent
	}
	if p.Match > 0 {
		behind := status.LastLog - min(p.Match, status.LastLog)
		out.Behind = &behind
	}
	return out
}

// dropForgotten takes out of the log's membership who is not known any more: a
// leader that died between the two left it there, and it counts for the quorum.
func (n *node) dropForgotten(ctx context.Context) error {
	var known []approval.Node
	err := n.local(func(s approval.State) (err error) {
		_, known, err = s.Roster()
		return err
	})
	if err != nil {
		return err
	}
	for id := range n.store.Membership() {
		if slices.ContainsFunc(known, func(k approval.Node) bool { return k.ID == id }) {
			continue
		}
		if id == n.node.ID {
			return n.store.TransferLeadership()
		}
		if err := n.store.Remove(ctx, id); err != nil {
			return fmt.Errorf("remove %q, which was taken out of the cluster: %w", id, err)
		}
		n.log.LogAttrs(ctx, slog.LevelInfo, "removed a node that is not known any more", slog.String("removed", id))
	}
	return nil
}
