package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/raftstore"
)

// members are the nodes of a manifest, as the store wants them.
func membersOf(m ca.Manifest) []raftstore.Member {
	return mapped(m.Nodes, func(n ca.NodeEntry) raftstore.Member {
		return raftstore.Member{ID: n.ID, Address: n.RaftAddress, Key: n.Key}
	})
}

// watchRoster gives the store the nodes that the state knows whenever these
// change, until ctx ends, and notes what version of commands is spoken. Whether a
// root signed them was checked where the change was applied.
func (n *node) watchRoster(ctx context.Context) {
	for {
		var seen uint64
		err := n.store.View(func(r raftstore.Reader, index uint64) error {
			seen = index
			return n.takeRoster(approval.Read(r))
		})
		if err == nil {
			_, err = n.store.Wait(ctx, seen)
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			n.log.LogAttrs(ctx, slog.LevelWarn, "the cluster's nodes cannot be read", slog.String("error", err.Error()))
			if pause(ctx, n.limits.Tick) != nil {
				return
			}
		}
	}
}

func (n *node) takeRoster(s approval.State) error {
	version, err := s.Version()
	if err != nil {
		return err
	}
	n.version.Store(int32(version))
	revision, err := s.RosterRevision()
	if errors.Is(err, approval.ErrNotFound) {
		return nil // not bootstrapped yet: the manifest's hold
	}
	if err != nil || revision <= n.store.MembersRevision() {
		return err
	}
	_, nodes, err := s.Roster()
	if err != nil {
		return err
	}
	return n.store.SetMembers(revision, mapped(nodes, func(m approval.Node) raftstore.Member {
		return raftstore.Member{ID: m.ID, Address: m.RaftAddress, Key: m.Key}
	}))
}

// adoptOwn has the cluster take the manifest that this node was started with,
// where that is a newer one than the cluster's: the way in when no API answers
// any more, all of its certificates having ended.
func (n *node) adoptOwn(ctx context.Context) error {
	var known uint64
	err := n.local(func(s approval.State) error {
		c, err := s.Cluster()
		known = c.Manifest
		return err
	})
	if err != nil || n.manifest.Sequence <= known {
		return err
	}
	return n.adopt(ctx, max(int(n.version.Load()), 1))
}

// adopt has the cluster take this node's manifest, by a command of a version.
func (n *node) adopt(ctx context.Context, version int) error {
	body, err := adoption(n.manifest)
	if err != nil {
		return err
	}
	cmd, err := n.command(ctx, body)
	if err != nil {
		return err
	}
	cmd.V = version
	if _, err := n.commit(ctx, cmd); err != nil {
		return fmt.Errorf("manifest %d, which this node was started with: %w", n.manifest.Sequence, err)
	}
	n.log.LogAttrs(ctx, slog.LevelInfo, "took the manifest that this node was started with", slog.Uint64("sequence", n.manifest.Sequence))
	return nil
}

func adoption(m ca.Manifest) (approval.AdoptManifest, error) {
	statement, err := m.Statement()
	return approval.AdoptManifest{Statement: statement, Signature: m.Signature}, err
}
