package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/audit"
)

const (
	pathCosign = "/peer/cosign"
	maxCosign  = 16 << 10
)

// cosigned is a node's answer to who asks it to cosign.
type cosigned struct {
	Line    string `json:"line,omitempty"`
	Refused string `json:"refused,omitempty"`
}

// serveCosign cosigns the signed head that another node shows. It must bear that
// node's own signature: what contradicts this node's log is evidence against it.
func (n *node) serveCosign(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), cosignPatience)
	defer cancel()
	via, _ := r.Context().Value(viaKey).(string)
	signed, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxCosign))
	var head audit.Checkpoint
	if err == nil {
		head, err = n.shownBy(via, signed)
	}
	if err != nil {
		answerCosign(w, http.StatusBadRequest, cosigned{Refused: clip(err.Error(), 512)})
		return
	}
	line, err := n.cosign(ctx, head)
	if errors.Is(err, errForked) {
		n.suspect(ctx, via, signed, err)
	}
	switch {
	case err == nil:
		answerCosign(w, http.StatusOK, cosigned{Line: line})
	case errors.Is(err, errForked), errors.Is(err, errEpoch), errors.Is(err, errSmaller):
		answerCosign(w, http.StatusConflict, cosigned{Refused: clip(err.Error(), 512)})
	default:
		answerCosign(w, http.StatusServiceUnavailable, cosigned{Refused: clip(err.Error(), 512)})
	}
}

func answerCosign(w http.ResponseWriter, status int, c cosigned) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(c) // the other node's loss
}

// shownBy reads a head that a node has signed.
func (n *node) shownBy(id string, signed []byte) (audit.Checkpoint, error) {
	known, err := n.auditVerifiers(id)
	if err != nil {
		return audit.Checkpoint{}, err
	}
	return audit.ParseCheckpoint(signed, known)
}

// auditVerifiers are those of the audit keys that the cluster has of these nodes.
func (n *node) auditVerifiers(ids ...string) (known note.Verifiers, err error) {
	err = n.local(func(s approval.State) error {
		var keys []string
		for _, id := range ids {
			entry, err := s.Node(id)
			if err != nil {
				return err
			}
			keys = append(keys, entry.AuditKey)
		}
		known, err = audit.Verifiers(keys...)
		return err
	})
	return known, err
}

// askCosign asks another node to cosign.
func (n *node) askCosign(ctx context.Context, id string, signed []byte) (string, error) {
	resp, err := n.forward.do(ctx, id, http.MethodPost, pathCosign, http.Header{}, signed)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	var c cosigned
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxCosign)).Decode(&c); err != nil || resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %d: %s", resp.StatusCode, clip(c.Refused, 512))
	}
	// Its own, and over this head: what another node said it does not pass on.
	name, err := audit.KeyName(n.trustDomain.Name(), id)
	if err != nil {
		return "", err
	}
	known, err := n.auditVerifiers(n.node.ID, id)
	if err == nil {
		_, err = audit.AddCosignatures(signed, known, c.Line)
	}
	if err == nil && !strings.HasPrefix(c.Line, "— "+name+" ") {
		err = errors.New("it is another node's cosignature")
	}
	return c.Line, err
}

// checkpoints keeps the last checkpoint that this node signed.
type checkpoints struct {
	turn chan struct{} // holds a token while a head is being cosigned

	mu     sync.Mutex
	last   audit.Checkpoint // guarded by mu
	signed []byte           // guarded by mu
	whole  bool             // guarded by mu; every member cosigned it
	tried  time.Time        // guarded by mu; when the members were last asked
}

func newCheckpoints() *checkpoints { return &checkpoints{turn: make(chan struct{}, 1)} }

// again is how soon members that did not cosign a head are asked once more.
const again = time.Second

// enough returns the last head if it has at least these entries, and asking again
// would change nothing.
func (c *checkpoints) enough(head audit.Checkpoint) (audit.Checkpoint, []byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ok := c.signed != nil && c.last.Origin == head.Origin && c.last.Size >= head.Size && (c.whole || time.Since(c.tried) < again)
	return c.last, c.signed, ok
}

// publish returns a head of the log that has at least the entries of the one
// given, signed by this node and cosigned by all who do so in time. Callers that
// come together are answered together.
func (n *node) publish(ctx context.Context, atLeast audit.Checkpoint) (audit.Checkpoint, []byte, error) {
	select {
	case n.heads.turn <- struct{}{}:
	case <-ctx.Done():
		return audit.Checkpoint{}, nil, ctx.Err()
	}
	defer func() { <-n.heads.turn }()
	if head, signed, ok := n.heads.enough(atLeast); ok {
		return head, signed, nil
	}
	head, err := n.ownHead(ctx, -1)
	if err != nil {
		return head, nil, err
	}
	signed, err := head.Sign(n.node.AuditSigner)
	if err != nil {
		return head, nil, err
	}
	signed, whole := n.gather(ctx, head, signed)
	if err := ctx.Err(); err != nil {
		// Whoever asks and hangs up would else leave the others, and the witnesses, a
		// head that nobody had the time to cosign.
		return head, nil, err
	}
	n.heads.mu.Lock()
	defer n.heads.mu.Unlock()
	n.heads.last, n.heads.signed, n.heads.whole, n.heads.tried = head, signed, whole, time.Now()
	return head, signed, nil
}

// gather adds the cosignatures of this node and of the others.
func (n *node) gather(ctx context.Context, head audit.Checkpoint, signed []byte) (_ []byte, whole bool) {
	ctx, cancel := context.WithTimeout(ctx, cosignPatience)
	defer cancel()
	var (
		group sync.WaitGroup
		mu    sync.Mutex
		lines []string // guarded by mu
	)
	members := n.store.Membership()
	for id := range members {
		group.Go(func() {
			var line string
			var err error
			if id == n.node.ID {
				if line, err = n.cosign(ctx, head); errors.Is(err, errForked) {
					n.suspect(ctx, id, signed, err)
				}
			} else {
				line, err = n.askCosign(ctx, id, signed)
			}
			if err != nil {
				n.log.LogAttrs(ctx, slog.LevelInfo, "a node did not cosign the log's head", slog.String("of", id),
					slog.Int64("entries", head.Size), slog.String("error", clip(err.Error(), 512)))
				return
			}
			mu.Lock()
			defer mu.Unlock()
			lines = append(lines, line)
		})
	}
	group.Wait()
	slices.Sort(lines) // by name
	out := bytes.Clone(signed)
	return append(out, strings.Join(lines, "")...), len(lines) == len(members)
}
