package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/raftstore"
)

// Cleanup has the leader remove members that it has not heard for long. The zero
// Cleanup removes none.
type Cleanup struct {
	After     time.Duration // without a word; 0: never
	MinVoters int           // that are left at least; 0 means 3
}

// minVoters is what Cleanup never goes below, and what a cluster that survives
// the loss of a node has.
const minVoters = 3

func (c Cleanup) checked() (Cleanup, error) {
	if c.MinVoters == 0 {
		c.MinVoters = minVoters
	}
	switch {
	case c.After < 0:
		return c, fmt.Errorf("a time of %s", c.After)
	case c.MinVoters < minVoters:
		return c, fmt.Errorf("at least %d voters stay, not %d", minVoters, c.MinVoters)
	}
	return c, nil
}

// removeDead removes one member that this leader, which has led since the given
// time, has not heard for too long. What its predecessors heard is not known, so
// that a change of leader gives the silent more time and never less.
func (n *node) removeDead(ctx context.Context, since time.Time) error {
	if n.cleanup.After == 0 || time.Since(since) < n.cleanup.After {
		return nil
	}
	status, left := n.store.Status(), 0
	for _, p := range status.Peers {
		if p.Role == raftstore.RoleVoter {
			left++
		}
	}
	for _, p := range status.Peers {
		silent := p.LastContact
		if silent < 0 {
			silent = time.Since(since)
		}
		if p.Self || p.Role == raftstore.RoleNone || silent < n.cleanup.After {
			continue
		}
		if p.Role == raftstore.RoleVoter && left-1 < n.cleanup.MinVoters {
			continue // one of those that the operator wants to keep
		}
		return n.removeSilent(ctx, p.ID, silent)
	}
	return nil
}

func (n *node) removeSilent(ctx context.Context, id string, silent time.Duration) error {
	if err := n.hasAuditLog(id); err != nil {
		return fmt.Errorf("%q has been silent for %s and stays a member: %w", id, silent.Round(time.Second), err)
	}
	body := approval.RemoveNode{Node: id, Reason: fmt.Sprintf("not heard for %s", silent.Round(time.Second))}
	err := n.store.Remove(ctx, id, func() error {
		cmd, err := n.command(ctx, body)
		if err != nil {
			return err
		}
		_, err = n.commit(ctx, cmd)
		return err
	})
	if errors.Is(err, raftstore.ErrMembership) {
		return fmt.Errorf("%q has been silent for %s and stays a member: %w", id, silent.Round(time.Second), err)
	}
	if err == nil {
		n.log.LogAttrs(ctx, slog.LevelWarn, "removed a node that was silent for too long", slog.String("removed", id), slog.Duration("silent", silent))
	}
	return err
}
