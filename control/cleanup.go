package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
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

// met is since when this leader has known each member. What its predecessors heard is
// not known, so that a change of leader gives the silent more time and never less. And
// one that has only just joined, or joined again, has not been silent for as long as
// this leader leads: it may be taking a snapshot before it says its first word.
type met map[string]time.Time

func (m met) note(peers []raftstore.PeerStatus, now time.Time) {
	before := maps.Clone(m)
	clear(m)
	for _, p := range peers {
		if p.Role == raftstore.RoleNone {
			continue
		}
		m[p.ID] = now
		if at, ok := before[p.ID]; ok {
			m[p.ID] = at
		}
	}
}

// silent is how long a member has not been heard, of the time that it has been known.
func (m met) silent(p raftstore.PeerStatus, now time.Time) time.Duration {
	known := now.Sub(m[p.ID])
	if p.LastContact < 0 {
		return known
	}
	return min(p.LastContact, known)
}

// removeDead removes one member that this leader has not heard for too long.
func (n *node) removeDead(ctx context.Context, m met) error {
	if n.cleanup.After == 0 {
		return nil
	}
	now, status, left := time.Now(), n.store.Status(), 0
	m.note(status.Peers, now)
	for _, p := range status.Peers {
		if p.Role == raftstore.RoleVoter {
			left++
		}
	}
	for _, p := range status.Peers {
		if p.Self || p.Role == raftstore.RoleNone || m.silent(p, now) < n.cleanup.After {
			continue
		}
		if p.Role == raftstore.RoleVoter && left-1 < n.cleanup.MinVoters {
			continue // one of those that the operator wants to keep
		}
		return n.removeSilent(ctx, p.ID, m.silent(p, now))
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
