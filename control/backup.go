package control

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/audit"
	"github.com/hallpass/hallpass/raftstore"
)

// SnapshotInfo is what a snapshot is of. All of it was checked against what is in
// the file.
type SnapshotInfo struct {
	Format      int              `json:"format"`
	Cluster     string           `json:"cluster"`
	Lineage     string           `json:"lineage"` // of the history that it was taken from
	Node        string           `json:"node"`    // that led, and wrote it
	Index       uint64           `json:"index"`   // of the last command in it
	Term        uint64           `json:"term"`
	StateHash   string           `json:"state_hash"`
	AuditBodies bool             `json:"audit_bodies"` // the entries of the audit log are in it
	Members     []SnapshotMember `json:"members"`
	snapshotAbout

	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"` // of the file
}

// SnapshotMember is a member of the cluster when the snapshot was taken.
type SnapshotMember = raftstore.BackupMember

// snapshotAbout is what the head of a snapshot says of the state in it.
type snapshotAbout struct {
	TrustDomain      string    `json:"trust_domain"`
	GrantTrustDomain string    `json:"grant_trust_domain"`
	Epoch            uint64    `json:"epoch"`
	Newest           time.Time `json:"newest"` // when the last command in it was made
	AuditSize        uint64    `json:"audit_size"`
	AuditRoot        string    `json:"audit_root"`
	Manifest         uint64    `json:"manifest"`
	Commands         int       `json:"commands"` // version of the commands in it
}

func aboutState(r raftstore.Reader) (a snapshotAbout, err error) {
	s := approval.Read(r)
	c, err := s.Cluster()
	if err != nil {
		return a, err
	}
	root, err := audit.Root(s, int64(c.AuditSize))
	if err != nil {
		return a, err
	}
	return snapshotAbout{
		TrustDomain: c.TrustDomain, GrantTrustDomain: c.GrantTrustDomain, Epoch: c.Epoch, Newest: c.LastNow.Time().UTC(),
		AuditSize: c.AuditSize, AuditRoot: hash64(root), Manifest: c.Manifest, Commands: c.Version,
	}, nil
}

// snapshotCheck is how the state machine's part of a snapshot is checked.
func snapshotCheck() raftstore.BackupCheck {
	return raftstore.BackupCheck{
		Keep: approval.Outlines,
		About: func(r raftstore.Reader, text []byte) error {
			var said snapshotAbout // a later release may say more
			if err := json.Unmarshal(text, &said); err != nil {
				return err
			}
			found, err := aboutState(r)
			if err == nil && found != said {
				err = fmt.Errorf("the head describes another state: it says %+v, and the state is %+v", said, found)
			}
			return err
		},
		CheckRecords: func(r raftstore.Reader, first uint64, records [][]byte) error {
			return approval.CheckRecords(r, first, records)
		},
	}
}

// InspectSnapshot reads a snapshot to its end. Unless all of it is as it was
// written, and the audit log in it is the one that the state knows, the error
// says where the damage is; it then wraps raftstore.ErrDamagedBackup.
func InspectSnapshot(path string) (info SnapshotInfo, err error) {
	file, err := os.Open(path)
	if err != nil {
		return info, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	sum := sha256.New()
	in := &counting{r: io.TeeReader(bufio.NewReaderSize(file, 1<<20), sum)}
	head, err := raftstore.CheckBackup(in, snapshotCheck())
	if err != nil {
		return info, fmt.Errorf("%s: %w", path, err)
	}
	info = infoOf(head)
	info.Bytes, info.SHA256 = in.n, hex.EncodeToString(sum.Sum(nil))
	return info, nil
}

func infoOf(head raftstore.BackupHead) SnapshotInfo {
	info := SnapshotInfo{
		Format: head.Format, Cluster: head.Cluster, Lineage: head.Lineage, Node: head.Node, Index: head.Index, Term: head.Term,
		StateHash: head.StateHash, AuditBodies: head.WithRecords, Members: head.Members,
	}
	_ = json.Unmarshal(head.About, &info.snapshotAbout) // it was read before
	return info
}

type counting struct {
	r io.Reader
	n int64
}

// Read implements io.Reader.
func (c *counting) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// Snapshot implements api.BackupBackend. A snapshot has all that is in the
// cluster, so it is for admins; one at a time, for it is written to this node's
// disk first.
func (b backend) Snapshot(ctx context.Context, call api.Call, bodies bool, w io.Writer) error {
	err := b.view(ctx, call, func(s approval.State) error {
		if !s.IsAdmin(call.Caller.ID) {
			return api.NewProblem(api.CodeDenied, "only an admin takes a snapshot", "ask one of the group "+approval.AdminGroup)
		}
		_, err := s.Cluster()
		return err
	})
	if err != nil {
		return b.counted(ctx, err)
	}
	if !b.saving.CompareAndSwap(false, true) {
		p := api.NewProblem(api.CodeUnavailable, "a snapshot is being taken already", "wait for that one to end")
		p.RetryAfter = 5 * time.Second
		return p
	}
	defer b.saving.Store(false)
	out := &countingWriter{w: w}
	head, err := b.store.Backup(ctx, out, raftstore.BackupOptions{
		WithRecords: bodies,
		About: func(r raftstore.Reader) ([]byte, error) {
			a, err := aboutState(r)
			if err != nil {
				return nil, err
			}
			return json.Marshal(a)
		},
	})
	// Whoever has it has read everything: see docs/security.md.
	b.log.LogAttrs(ctx, slog.LevelWarn, "a snapshot was taken", slog.String("by", call.Caller.ID.String()),
		slog.String("via", b.asserting(ctx)), slog.Uint64("index", head.Index), slog.Bool("audit_bodies", bodies),
		slog.Int64("bytes", out.n), slog.Bool("whole", err == nil), slog.String("request_id", api.RequestIDFrom(ctx)))
	return storeProblem(err)
}

type countingWriter struct {
	w io.Writer
	n int64
}

// Write implements io.Writer.
func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
