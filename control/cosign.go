package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/audit"
)

const (
	// cosignedFile is where a node remembers the newest head that it cosigned.
	cosignedFile = "cosigned"
	// cosignPatience is how long a head waits for other nodes' cosignatures.
	cosignPatience = 2 * time.Second
)

var (
	// errForked is returned when a head contradicts this node's own log.
	errForked = errors.New("it is not of this node's log")
	// errEpoch is returned for a head of another epoch than this node's.
	errEpoch = errors.New("it is of another epoch")
	// errSmaller is returned for a head that is older than one cosigned before.
	errSmaller = errors.New("a larger one has been cosigned")
	// errBehind is returned when this node has not applied as much yet.
	errBehind = errors.New("this node has not got that far")
)

// cosigner states that heads of the log are those of this node's own tree, which
// it built itself from what a quorum committed.
//
// The newest head is on disk before its cosignature leaves: a node that was
// restarted goes by it. One whose file was put back by a thief goes by an older
// one, and cosigns a smaller head once more, but still none that is not of its own
// tree.
type cosigner struct {
	path   string
	signer *audit.Cosigner

	// turn has a place for whoever looks at a head and writes it down: one at a time. No lock
	// is held for so long: what of the log is missing here is fetched from others.
	turn chan struct{}

	mu     sync.Mutex
	last   audit.Checkpoint // guarded by mu, and changed by whoever has the turn; no Origin: none yet
	broken error            // guarded by mu; the file cannot be relied on
	forked string           // guarded by mu; who asked for what contradicts this node's log
}

// openCosigner reads what a node cosigned before. A file that is not as the node
// left it is not started over: the node cosigns nothing until somebody has looked.
func openCosigner(dir string, signer note.Signer, verifierKey string) *cosigner {
	c := &cosigner{path: filepath.Join(dir, cosignedFile), turn: make(chan struct{}, 1)}
	if c.signer, c.broken = audit.NewCosigner(signer, verifierKey); c.broken != nil {
		return c
	}
	data, err := os.ReadFile(c.path)
	if errors.Is(err, fs.ErrNotExist) {
		return c
	}
	var own note.Verifiers
	if err == nil {
		own, err = audit.Verifiers(verifierKey)
	}
	if err == nil {
		c.last, err = audit.ParseCheckpoint(data, own)
	}
	if err != nil {
		c.broken = fmt.Errorf("%s: %w", c.path, err)
	}
	return c
}

// remember puts a head on disk, and only then counts it as cosigned.
func (c *cosigner) remember(head, last audit.Checkpoint, line string) error {
	if head == last {
		return nil
	}
	text, err := head.Text()
	if err == nil {
		err = writeSynced(c.path, []byte(text+"\n"+line))
	}
	if err != nil {
		return fmt.Errorf("remember what is cosigned: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = head
	return nil
}

// before is the head that was cosigned last, or why none is any more.
func (c *cosigner) before() (audit.Checkpoint, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last, c.broken
}

// writeSynced replaces a file, whole or not at all, and returns when it would
// survive a power cut.
func writeSynced(path string, data []byte) error { return writeSyncedMode(path, data, 0o600) }

func writeSyncedMode(path string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// cosign returns this node's cosignature of a head, if it is one of its own log
// and none smaller than one before. It waits for entries that are on their way.
func (n *node) cosign(ctx context.Context, head audit.Checkpoint) (line string, err error) {
	if err := n.awaitEntries(ctx, head.Size); err != nil {
		return "", err
	}
	c := n.cosigner
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return "", fmt.Errorf("others are cosigned first: %w", ctx.Err())
	}
	last, err := c.before()
	if err != nil {
		return "", err
	}
	if err := n.ownHistory(ctx, head, last); err != nil {
		return "", err
	}
	now := n.now()
	if err := n.clock.check(now); err != nil {
		return "", err
	}
	if line, err = c.signer.Cosign(head, now); err != nil {
		return "", err
	}
	return line, c.remember(head, last, line)
}

// ownHistory checks that a head, and the one cosigned before it, are of this
// node's log.
//
// A leader that shows auditors another log than the one that it replicates gets no
// cosignature for it but its own.
func (n *node) ownHistory(ctx context.Context, head, last audit.Checkpoint) error {
	own, err := n.ownHead(ctx, head.Size)
	if err != nil {
		return err
	}
	if own.Origin != head.Origin {
		return fmt.Errorf("%w: of %s, this node's is %s", errEpoch, head.Origin, own.Origin)
	}
	if own.Root != head.Root {
		return fmt.Errorf("%w: another root over the same %d entries", errForked, head.Size)
	}
	switch _, before, err := audit.ParseOrigin(last.Origin); {
	case last.Origin == "":
		return nil
	case err != nil:
		return err
	case last.Origin != head.Origin:
		if _, epoch, err := audit.ParseOrigin(head.Origin); err != nil || epoch <= before {
			return fmt.Errorf("%w: %s was cosigned already", errEpoch, last.Origin)
		}
		return nil // a restore began another history, and says so in its name
	case head.Size < last.Size:
		return fmt.Errorf("%w: of %d entries, not %d", errSmaller, last.Size, head.Size)
	}
	if own, err = n.ownHead(ctx, last.Size); err != nil {
		return err
	}
	if own.Root != last.Root {
		return fmt.Errorf("%w: nor is it of the one that this node cosigned at %d entries", errForked, last.Size)
	}
	return nil
}

// awaitEntries waits until this node's log has as many entries.
func (n *node) awaitEntries(ctx context.Context, size int64) error {
	for {
		seen, have := n.store.Index(), int64(0)
		if err := n.local(func(s approval.State) (err error) {
			have, err = s.AuditSize()
			return err
		}); err != nil {
			return err
		}
		if have >= size {
			return nil
		}
		if _, err := n.store.Wait(ctx, seen); err != nil {
			return fmt.Errorf("%w: %d entries of %d: %w", errBehind, have, size, err)
		}
	}
}

// ownHead is the head of the first entries of this node's log; a negative size
// stands for all of them.
func (n *node) ownHead(ctx context.Context, size int64) (head audit.Checkpoint, err error) {
	err = n.local(func(s approval.State) error {
		cluster, err := s.Cluster()
		if err != nil {
			return err
		}
		have, err := s.AuditSize()
		if err != nil {
			return err
		}
		if size > have {
			return fmt.Errorf("%w: %d entries of %d", errBehind, have, size)
		}
		head.Origin, head.Size = audit.Origin(cluster.TrustDomain, cluster.Epoch), size
		if size < 0 {
			head.Size = have
		}
		head.Root, err = audit.Root(s, head.Size)
		return err
	})
	if !errors.Is(err, audit.ErrStorage) {
		return head, err
	}
	// The tree's edge of that time is inside of a chunk that is complete by now.
	chunks, err := n.chunks(ctx, head.Size, []int64{head.Size / audit.Chunk * audit.Chunk})
	if err != nil {
		return head, err
	}
	err = n.local(func(s approval.State) (err error) {
		head.Root, err = audit.Root(audit.WithChunks(s, chunks), head.Size)
		return err
	})
	return head, err
}

// suspect notes who asked this node to cosign another history than its own. It is
// in /readyz until the node is started again, and in its log for good.
func (n *node) suspect(ctx context.Context, who string, signed []byte, why error) {
	c := n.cosigner
	c.mu.Lock()
	c.forked = fmt.Sprintf("%s signed another history: %v; see the log, and keep it", who, why)
	c.mu.Unlock()
	n.metrics.forked(ctx)
	n.log.LogAttrs(ctx, slog.LevelError, "asked to cosign another history than this node's",
		slog.String("by", who), slog.String("error", why.Error()), slog.String("checkpoint", clip(string(signed), 2048)))
}

// checkCosigner warns while this node cosigns nothing, or knows of two histories.
func (n *node) checkCosigner() Finding {
	c := n.cosigner
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.forked != "":
		return Finding{"cosigning", statusWarn, clip(c.forked, 512)}
	case c.broken != nil:
		return Finding{"cosigning", statusWarn, clip(c.broken.Error(), 512)}
	case c.last.Origin == "":
		return Finding{"cosigning", statusOK, "nothing cosigned yet"}
	}
	return Finding{"cosigning", statusOK, fmt.Sprintf("%d entries cosigned", c.last.Size)}
}
