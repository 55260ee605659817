package control

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hallpass/hallpass/approval/api"
)

// TestMissingAuditEntries: a node without the audit log's entries, as one that
// was sent a snapshot, gets them from the others, and until then says what it
// lacks, on its admin port and to whoever asks for them.
func TestMissingAuditEntries(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	for range 5 {
		c.granted()
	}
	want, err := c.as("user/bob").AuditEntries(t.Context(), 0, 1000)
	must(t, err)
	lose := func(r *running) {
		t.Helper()
		must(t, os.RemoveAll(filepath.Join(r.dir, "records")))
	}
	follower := c.follower()
	c.halt(follower.ID())
	lose(follower)
	follower = c.start(follower.ID())
	c.until("the entries are there again", func() bool {
		return finding(follower.Health(), "audit log").Status == statusOK && follower.Store().Status().Records >= want.Size
	})
	got, err := c.at(follower, "user/bob").AuditEntries(t.Context(), 0, len(want.Entries), api.Stale())
	must(t, err)
	text := func(entries []json.RawMessage) (all []string) {
		for _, e := range entries {
			all = append(all, string(e))
		}
		return all
	}
	if !slices.Equal(text(got.Entries), text(want.Entries)) {
		t.Errorf("%d entries, want %d, or other ones", len(got.Entries), len(want.Entries))
	}
	c.check()

	// With nobody to ask, the state answers and the log says what is wrong.
	all := c.live()
	for _, r := range all {
		c.halt(r.ID())
		lose(r)
	}
	alone := c.start(follower.ID())
	c.until("it says what it lacks", func() bool {
		f := finding(alone.Health(), "audit log")
		return f.Status == statusWarn && strings.Contains(f.Detail, "are missing here")
	})
	bob := c.once(alone, "user/bob")
	_, err = bob.AuditEntries(t.Context(), 0, 10, api.Stale())
	p := theProblem(t, err, api.CodeUnavailable)
	if !strings.Contains(p.Detail, "does not have these audit entries yet") || p.Next == "" || p.RetryAfter == 0 {
		t.Errorf("the refusal says %+v", p)
	}
	_, err = bob.InclusionProof(t.Context(), 2, 0, api.Stale())
	wantProblem(t, err, api.CodeUnavailable)
	head, err := bob.AuditCheckpoint(t.Context(), api.Stale())
	must(t, err)
	if head.Size < want.Size {
		t.Errorf("a head of %d entries, want %d or more", head.Size, want.Size)
	}
}
