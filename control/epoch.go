package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
)

// epochFile is where a restore or a recovery leaves word, in the data directory,
// that the history which begins there is a new epoch.
const epochFile = "epoch.json"

// NewEpoch is that word: what the first command of the new history will say.
type NewEpoch struct {
	Began   time.Time `json:"began"`   // later than any id that the history before may have made
	Lineage string    `json:"lineage"` // of the replicated log that begins; lower-case hex
	Reason  string    `json:"reason"`
}

// EpochBegins is when an epoch begins that is to be later than all ids of the
// history before: later than the newest command that is known of it, and than the
// clock of who restores it now, by more than any two clocks of nodes differ.
func EpochBegins(newest, now time.Time, skew time.Duration) time.Time {
	if now.After(newest) {
		newest = now
	}
	return newest.Add(2*skew + time.Millisecond).UTC().Truncate(time.Millisecond)
}

// WriteNewEpoch leaves the word in a data directory that no node runs on.
func WriteNewEpoch(dir string, e NewEpoch) error {
	data, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("control: %w", err)
	}
	if err := writeSynced(filepath.Join(dir, epochFile), append(data, '\n')); err != nil {
		return fmt.Errorf("control: %w", err)
	}
	return nil
}

// readNewEpoch returns nil where there is none.
func readNewEpoch(dir string) (*NewEpoch, error) {
	path := filepath.Join(dir, epochFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // most nodes were never restored
	}
	if err != nil {
		return nil, err
	}
	var e NewEpoch
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil || e.Lineage == "" || e.Began.IsZero() {
		// Without it, the node would go on as if what it holds were all that ever was:
		// grants that were revoked after the snapshot would live again.
		return nil, fmt.Errorf("%s is not what a restore or a recovery writes (%w): restore, or recover, again", path, errors.Join(err, errNoEpoch))
	}
	return &e, nil
}

var errNoEpoch = errors.New("a time, a lineage and a reason")

// beginEpoch begins the epoch that a restore left word of, and then throws the word
// away. Until it has, the node answers no call that would change anything.
func (n *node) beginEpoch(ctx context.Context) error {
	e := n.epoch.Load()
	if e == nil {
		return nil
	}
	var c approval.Cluster
	known := true
	err := n.local(func(s approval.State) (err error) {
		if c, err = s.Cluster(); err == nil {
			_, err = s.Node(n.node.ID)
		}
		if errors.Is(err, approval.ErrNotFound) && c.ID != "" {
			known, err = false, nil
		}
		return err
	})
	if err != nil {
		return err
	}
	if c.Lineage != e.Lineage {
		if err := n.proposeEpoch(ctx, *e, c, known); err != nil {
			return fmt.Errorf("begin a new epoch: %w", err)
		}
	}
	n.epoch.Store(nil)
	if err := os.Remove(filepath.Join(n.dataDir, epochFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("begin a new epoch: %w", err) // it is ignored at the next start too
	}
	return nil
}

// proposeEpoch commits what begins an epoch, after what has to come before it.
func (n *node) proposeEpoch(ctx context.Context, e NewEpoch, c approval.Cluster, known bool) error {
	if !known { // this node is newer than what was restored, and a root says that it is one
		if err := n.adopt(ctx, c.Version); err != nil {
			return err
		}
	}
	if c.Version < 2 { // of the release that took the snapshot; this node is the only one
		if err := n.raiseVersion(ctx); err != nil {
			return err
		}
	}
	// What came before it in this very history has a later time, perhaps, than when the
	// word was written.
	if err := n.local(func(s approval.State) (err error) { c, err = s.Cluster(); return err }); err != nil {
		return err
	}
	began := max(e.Began.UnixMilli(), int64(c.LastNow)+1)
	cmd, err := n.command(ctx, approval.BeginEpoch{Began: began, Lineage: e.Lineage, Reason: e.Reason})
	if err != nil {
		return err
	}
	cmd.V = c.Version // of the state, which may be of an earlier release than this
	if _, err := n.commit(ctx, cmd); err != nil {
		return err
	}
	n.log.LogAttrs(ctx, slog.LevelWarn, "a new epoch has begun: all grants and requests of before have ended",
		slog.Time("began", time.UnixMilli(began)), slog.String("lineage", e.Lineage), slog.String("reason", e.Reason))
	return nil
}

// epochPending reports whether an epoch is to begin that has not.
func (n *node) epochPending() bool {
	e := n.epoch.Load()
	if e == nil {
		return false
	}
	began := false
	err := n.local(func(s approval.State) error {
		c, err := s.Cluster()
		began = c.Lineage == e.Lineage
		return err
	})
	return err != nil || !began
}

// checkEpoch refuses calls before the epoch has begun. What they did would be of the
// one before, and what they were answered as well: a grant that was revoked after the
// snapshot would look alive, and a proxy would hear that a quorum says so.
func (n *node) checkEpoch() error {
	if !n.epochPending() {
		return nil
	}
	p := api.NewProblem(api.CodeUnavailable, "this node was restored, and its epoch has not begun yet", "try again in a moment; the node's log says what it waits for")
	p.RetryAfter = time.Second
	return p
}

func (n *node) checkBegun() Finding {
	if n.epochPending() {
		return Finding{"epoch", statusFail, "this node was restored or recovered, and its epoch has not begun: it answers nobody until then"}
	}
	return Finding{"epoch", statusOK, ""}
}

// checkID refuses an id that is older than the epoch. The proxies would refuse the
// grant: its id could be one that the cluster had made, and revoked, before it
// forgot.
func checkID(id uuid.UUID, c approval.Revisions) error {
	sec, nsec := id.Time().UnixTime()
	wait := c.EpochBegan.Time().Sub(time.Unix(sec, nsec))
	if c.EpochBegan == 0 || wait <= 0 {
		return nil
	}
	p := api.NewProblem(api.CodeUnavailable,
		fmt.Sprintf("the cluster was restored, and makes nothing new before %s, when its epoch %d begins", c.EpochBegan, c.Epoch), "try again then")
	p.RetryAfter = wait.Truncate(time.Second) + time.Second
	return p
}
