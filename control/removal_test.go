package control

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/raftstore"
)

// onlyOneHasTheLog takes the audit log's entries from two nodes while the third,
// which has them, is down. It returns the third.
func onlyOneHasTheLog(t *testing.T) (c *cluster, third string) {
	t.Helper()
	c = newCluster(t, nil)
	c.granted()
	third = c.follower().ID()
	c.halt(third)
	var two []string
	for _, r := range c.live() {
		two = append(two, r.ID())
		c.halt(r.ID())
		must(t, os.RemoveAll(filepath.Join(r.dir, "records")))
	}
	for _, id := range two {
		c.start(id)
	}
	c.until("the two lead and lack entries", func() bool {
		l := c.leading()
		return l != nil && l.Store().Status().RecordsMissing > 0 && finding(l.Health(), "audit log").Status == statusWarn
	})
	return c, third
}

// TestRemovalKeepsTheAuditLog: the only node that has the audit log is removed
// neither by an admin nor as a dead one, until another has it too.
func TestRemovalKeepsTheAuditLog(t *testing.T) {
	t.Parallel()
	c, third := onlyOneHasTheLog(t)
	gone := api.RemoveNodeInput{Reason: "it is down", Retired: true}
	// A leader that has just been elected may refuse for reasons of its own.
	c.until("the leader refuses for the audit log's sake", func() bool {
		_, err := c.once(c.leader(), "user/ann").RemoveNode(t.Context(), third, gone)
		if err == nil {
			t.Fatalf("%s was removed", third)
		}
		var p *api.Problem
		return errors.As(err, &p) && p.Code == api.CodeUnavailable &&
			strings.Contains(p.Detail, "of the audit log are missing") && strings.Contains(p.Next, "--without-audit-entries")
	})
	c.until("the leader refuses to remove it as a dead one", func() bool {
		err := c.leader().n.removeSilent(t.Context(), third, 0)
		if err == nil {
			t.Fatalf("%s was removed as a dead one", third)
		}
		return strings.Contains(err.Error(), "stays a member")
	})
	if role := c.leader().Store().Membership()[third]; role != raftstore.RoleVoter {
		t.Errorf("%s is %q, want a voter still", third, role)
	}
	c.start(third)
	c.until("the entries are fetched", func() bool {
		for _, r := range c.live() {
			if r.Store().Status().RecordsMissing > 0 {
				return false
			}
		}
		return true
	})
	_, err := c.as("user/ann").RemoveNode(t.Context(), third, gone)
	must(t, err)
	c.halt(third)
	c.check()
	c.checkAudit(t)
}

// TestRemovalWithoutTheAuditLog: a node that never comes back is removed all the
// same by an admin who says so.
func TestRemovalWithoutTheAuditLog(t *testing.T) {
	t.Parallel()
	c, third := onlyOneHasTheLog(t)
	_, err := c.as("user/ann").RemoveNode(t.Context(), third, api.RemoveNodeInput{Reason: "it burned", WithoutAuditEntries: true})
	must(t, err)
	must(t, c.leader().n.local(func(s approval.State) error {
		_, err := s.Node(third)
		if err == nil {
			t.Errorf("%s is still known", third)
		}
		return nil
	}))
}
