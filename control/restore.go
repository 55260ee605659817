package control

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/raftstore"
)

// Offline is a control node that does not run: what is done to its data directory
// until it starts again.
type Offline struct {
	Node     *ca.Node
	Manifest ca.Manifest
	DataDir  string
	LogStore string // as Config.LogStore
	Skew     time.Duration
	Now      func() time.Time // nil: time.Now
	Logger   *slog.Logger
}

// ErrRefused is returned when a snapshot, or what a node has left, is not what the
// node can go on from, or not what the operator says that it is. The words that
// follow say which, and what to do.
var ErrRefused = errors.New("control: refused")

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrRefused, fmt.Errorf(format, args...))
}

// RestoreOptions say what an operator knows of a snapshot from elsewhere, and what
// to do without.
type RestoreOptions struct {
	SHA256    string // of the file, in hex; "" is not compared
	AuditRoot string // of the audit log in it, as inspect prints it; "" is not compared
	// Entries is where the audit log's entries are, for a snapshot that has none: the
	// data directory of a node, or the folder of an audit export. "" is nowhere.
	Entries        string
	WithoutEntries bool      // go on without those that are nowhere
	LostUntil      time.Time // no later than this was the cluster still at work, as far as anybody knows; zero: as its newest entry and this clock say
	Reason         string    // why, besides; may be empty
}

// Restored is what a node was made of.
type Restored struct {
	Node     string       `json:"node"`
	Snapshot SnapshotInfo `json:"snapshot"`
	NewBeginning

	Introduced     bool   `json:"introduced"`      // the snapshot does not know the node: the manifest does
	EntriesMissing uint64 `json:"entries_missing"` // of the audit log
}

// NewBeginning is what a restore and a recovery have in common.
type NewBeginning struct {
	Lineage string    `json:"new_lineage"` // of the replicated log that begins
	Epoch   uint64    `json:"new_epoch"`
	Begins  time.Time `json:"begins"` // nothing new is made before
	Others  []string  `json:"others"` // nodes that the state knows, and that are not members any more
}

// maxAhead is how far an epoch may begin after this machine's clock: until then
// nobody gets anything.
const maxAhead = time.Hour

// Restore makes a node's data directory, which must be empty, of a snapshot. The node
// is the only voter of a new log, and its start begins a new epoch. Whatever is wrong,
// the directory stays as it was.
func Restore(o Offline, snapshot io.Reader, opts RestoreOptions) (done Restored, err error) {
	sum := sha256.New()
	in := &counting{r: io.TeeReader(bufio.NewReaderSize(snapshot, 1<<20), sum)}
	cfg := raftstore.RestoreConfig{
		ID: o.Node.ID, Dir: o.DataDir, LogFormat: raftstore.LogFormat(o.LogStore), Check: snapshotCheck(), Logger: o.Logger,
		Accept: func(head raftstore.BackupHead, r raftstore.Reader) error { return o.accept(head, r, opts) },
		Finish: func(folder string, r raftstore.Restored) error {
			done.Node, done.Snapshot, done.EntriesMissing = o.Node.ID, infoOf(r.Head), r.Missing
			done.Snapshot.Bytes, done.Snapshot.SHA256 = in.n, hex.EncodeToString(sum.Sum(nil))
			if want := strings.ToLower(opts.SHA256); want != "" && want != done.Snapshot.SHA256 {
				return refuse("the SHA-256 of the snapshot is %s, not %s: it is not the file that you kept the sum of", done.Snapshot.SHA256, want)
			}
			reason := fmt.Sprintf("restored a snapshot of %s with %d audit entries", done.Snapshot.Newest.Format(time.RFC3339), done.Snapshot.AuditSize)
			var err error
			done.NewBeginning, done.Introduced, err = o.begin(folder, r.State(), r.Lineage, opts.LostUntil, withReason(reason, opts.Reason))
			return err
		},
	}
	if opts.Entries != "" {
		cfg.Records = func(total uint64, fn func([]byte) error) error { return entriesIn(opts.Entries, total, fn) }
	}
	_, err = raftstore.Restore(cfg, in)
	return done, err
}

func withReason(what, why string) string {
	if why == "" {
		return what
	}
	return what + ": " + why
}

// accept refuses a snapshot that this node cannot go on from: first by what it says
// of itself, then, with a Reader, by what is in it.
func (o Offline) accept(head raftstore.BackupHead, r raftstore.Reader, opts RestoreOptions) error {
	if head.Cluster != o.Manifest.Cluster {
		return refuse("the snapshot is of cluster %s, and the manifest of %s", head.Cluster, o.Manifest.Cluster)
	}
	if r == nil {
		return nil
	}
	about, err := aboutState(r)
	if err != nil {
		return err
	}
	switch {
	case opts.AuditRoot != "" && opts.AuditRoot != about.AuditRoot:
		return refuse("the root of the audit log in the snapshot is %s, not %s", about.AuditRoot, opts.AuditRoot)
	case head.WithRecords && opts.Entries != "":
		return refuse("the snapshot has the entries of the audit log: leave %s out", opts.Entries)
	case !head.WithRecords && head.Records > 0 && opts.Entries == "" && !opts.WithoutEntries:
		return refuse("the snapshot lacks the %d entries of the audit log: say where they are, a node's data_dir or an export, or that they are lost", head.Records)
	}
	return o.checkState(r)
}

// checkState refuses a state that is another cluster's, or a later release's, or in
// which this node has no place and gets none.
func (o Offline) checkState(r raftstore.Reader) error {
	s := approval.Read(r)
	c, err := s.Cluster()
	if err != nil {
		return err
	}
	m := o.Manifest
	switch {
	case c.ID != m.Cluster:
		return refuse("the state is of cluster %s, and the manifest of %s", c.ID, m.Cluster)
	case c.TrustDomain != m.TrustDomain.Name() || c.GrantTrustDomain != m.GrantTrustDomain.Name():
		return refuse("the state is of the trust domains %s and %s, and the manifest of %s and %s", c.TrustDomain, c.GrantTrustDomain, m.TrustDomain, m.GrantTrustDomain)
	case c.Version > approval.Version:
		return refuse("%w (it knows version %d of commands, the state is of version %d)", errOld, approval.Version, c.Version)
	}
	own, ok := m.Node(o.Node.ID)
	if !ok {
		return refuse("the manifest does not list node %s", o.Node.ID)
	}
	known, err := s.Node(o.Node.ID)
	switch {
	case err == nil && sameKeys(known, own):
		return nil
	case err == nil:
		return refuse("the state knows node %[1]s by other keys than the manifest does, and a cluster does not exchange a node's keys: "+
			"make keys for a node of a new name, hallpass server init, and have it signed, hallpass ca sign-node --add", o.Node.ID)
	case !errors.Is(err, approval.ErrNotFound):
		return err
	}
	return o.checkIntroduction(c)
}

func sameKeys(a approval.Node, b ca.NodeEntry) bool {
	return bytes.Equal(a.Key, b.Key) && a.AuditKey == b.AuditKey
}

// checkIntroduction refuses a manifest that the state would not take: without it, the
// node would be nobody there, and could not begin anything.
func (o Offline) checkIntroduction(c approval.Cluster) error {
	m := o.Manifest
	next := "have this node signed by the newest manifest that there is: hallpass ca sign-node --add"
	if m.Sequence <= c.Manifest {
		return refuse("the state does not know node %s, and has taken manifest %d already, while this is number %d: %s", o.Node.ID, c.Manifest, m.Sequence, next)
	}
	if c.Version < 2 {
		return refuse("the state is an earlier release's and does not know node %s: go on at a node that it knows", o.Node.ID)
	}
	for _, n := range c.Nodes {
		if e, ok := m.Node(n.ID); !ok || !sameKeys(n, e) {
			return refuse("the state does not know node %s, and does not take manifest %d, which lacks node %s with its keys: %s", o.Node.ID, m.Sequence, n.ID, next)
		}
	}
	return nil
}

// begin leaves word of the epoch that a state is to begin with.
func (o Offline) begin(folder string, r raftstore.Reader, lineage string, until time.Time, reason string) (b NewBeginning, introduced bool, err error) {
	if err := approval.CheckReason(reason); err != nil { // or the epoch would be refused, at every start
		return b, false, err
	}
	c, err := approval.Read(r).Cluster()
	if err != nil {
		return b, false, err
	}
	now := time.Now
	if o.Now != nil {
		now = o.Now
	}
	newest := c.LastNow.Time()
	if until.After(newest) {
		newest = until
	}
	if ahead := newest.Sub(now()); ahead > maxAhead {
		return b, false, refuse("this machine's clock says %s, and the newest that there was is of %s: set the clock, or say another time: "+
			"until then nobody would get anything", now().UTC().Format(time.RFC3339), newest.UTC().Format(time.RFC3339))
	}
	b = NewBeginning{Lineage: lineage, Epoch: c.Epoch + 1, Begins: EpochBegins(newest, now(), cmp.Or(o.Skew, defaultSkew)), Others: []string{}}
	introduced = true
	for _, n := range c.Nodes {
		if n.ID == o.Node.ID {
			introduced = false
			continue
		}
		b.Others = append(b.Others, n.ID)
	}
	return b, introduced, WriteNewEpoch(folder, NewEpoch{Began: b.Begins, Lineage: lineage, Reason: reason})
}

// entriesIn gives the entries of the audit log in a node's data directory, or in an
// export.
func entriesIn(dir string, total uint64, fn func(entry []byte) error) (err error) {
	file, err := os.Open(filepath.Join(dir, "entries.jsonl"))
	if errors.Is(err, fs.ErrNotExist) {
		return raftstore.RecordsIn(dir, total, fn)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 16<<20)
	for n := uint64(0); n < total && lines.Scan(); n++ {
		if err := fn(lines.Bytes()); err != nil {
			return err
		}
	}
	return lines.Err()
}

// RecoverOptions say what an operator knows of the nodes that are lost.
type RecoverOptions struct {
	Lost      []string  // all other voters
	Reason    string    // why, for the audit log
	LostUntil time.Time // as in RestoreOptions
}

// Recovered is what a node went on from.
type Recovered struct {
	LogSurvey
	NewBeginning

	Entries        uint64 `json:"audit_entries"`
	EntriesMissing uint64 `json:"entries_missing"`
	Aside          string `json:"aside"` // folder with what the node had before
}

// LogSurvey is what a node that does not run has of the replicated log.
type LogSurvey struct {
	Node      string   `json:"node"`
	OldLog    string   `json:"lineage"`   // of the log that there is
	Term      uint64   `json:"term"`      // of its last entry
	Index     uint64   `json:"index"`     // of its last entry
	Committed uint64   `json:"committed"` // up to here a quorum is known to have had them
	Voters    []string `json:"voters"`
	Nonvoters []string `json:"nonvoters"`
	Joining   bool     `json:"joining"` // it had not caught up
}

func surveyOf(s raftstore.Survey) LogSurvey {
	return LogSurvey{
		Node: s.Node, OldLog: s.Lineage, Term: s.Term, Index: s.Index, Committed: s.Committed,
		Voters: s.Voters, Nonvoters: list(s.Nonvoters), Joining: s.Joining,
	}
}

func (o Offline) recoverConfig() raftstore.RecoverConfig {
	return raftstore.RecoverConfig{
		ID: o.Node.ID, Dir: o.DataDir, LogFormat: raftstore.LogFormat(o.LogStore), Machine: &machine{}, Logger: o.Logger,
	}
}

// Survey looks at what a node has, for choosing the one to go on from: the one with
// the highest term, and of these with the highest index.
func (o Offline) Survey() (LogSurvey, error) {
	s, err := raftstore.SurveyLog(o.recoverConfig())
	return surveyOf(s), err
}

// Recover makes a node, whose quorum is lost for good, the only voter of a new log
// with all that it has. Its start begins a new epoch. What it had is put aside.
func Recover(o Offline, opts RecoverOptions) (done Recovered, err error) {
	if opts.Reason == "" {
		return done, refuse("no reason is given, for the audit log")
	}
	cfg := o.recoverConfig()
	cfg.Lost = opts.Lost
	cfg.Finish = func(folder string, r raftstore.Reader, made raftstore.Recovered) error {
		if err := o.checkState(r); err != nil {
			return err
		}
		done.LogSurvey, done.Entries, done.EntriesMissing, done.Aside = surveyOf(made.Survey), made.Records, made.Missing, made.Aside
		reason := "went on at " + o.Node.ID + " without " + strings.Join(made.Others(), ", ")
		var err error
		done.NewBeginning, _, err = o.begin(folder, r, made.NewLineage, opts.LostUntil, withReason(reason, opts.Reason))
		return err
	}
	_, err = raftstore.Recover(cfg)
	return done, err
}
