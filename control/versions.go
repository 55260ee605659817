package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/raftstore"
)

const pathSpeaks = "/peer/speaks"

// speaks is what a node says of itself to the others.
type speaks struct {
	Node     string `json:"node"`
	Commands int    `json:"commands"` // the newest version of commands that it knows
}

func (n *node) serveSpeaks(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(speaks{Node: n.node.ID, Commands: n.machine.Knows()}) // the other node's loss
}

// askSpeaks asks another node what version of commands it knows. One that does
// not know the question knows the first.
func (n *node) askSpeaks(ctx context.Context, id string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	resp, err := n.forward.do(ctx, id, http.MethodGet, pathSpeaks, http.Header{}, nil)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return 1, nil
	}
	var s speaks
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1024)).Decode(&s); err != nil {
		return 0, fmt.Errorf("what node %q says of itself: %w", id, err)
	}
	if s.Node != id {
		return 0, fmt.Errorf("node %q calls itself %q", id, s.Node)
	}
	return s.Commands, nil
}

// checkSpeaks refuses a node that would not understand what the others agreed on.
func (n *node) checkSpeaks(ctx context.Context, id string) error {
	knows, err := n.askSpeaks(ctx, id)
	switch next := "start it with the newest manifest, and see its log"; {
	case errors.Is(err, raftstore.ErrRefused), errors.Is(err, raftstore.ErrUnknownPeer):
		return api.NewProblem(api.CodeConflict, fmt.Sprintf("node %q does not let the leader in: %v", id, err), next)
	case err != nil: // it may be about to start
		p := api.NewProblem(api.CodeUnavailable, fmt.Sprintf("node %q cannot be reached: %v", id, err), next)
		p.RetryAfter = time.Second
		return p
	}
	if agreed := int(n.version.Load()); knows < agreed {
		return api.NewProblem(api.CodeConflict, fmt.Sprintf("node %q knows version %d of commands, and the cluster speaks %d", id, knows, agreed),
			"install the release that the others run")
	}
	return nil
}

// raiseVersion has the cluster speak the next version of commands once every
// member says that it knows it. Until then an upgrade can be taken back; who does
// not answer holds it up.
func (n *node) raiseVersion(ctx context.Context) error {
	agreed := int(n.version.Load())
	if agreed == 0 || n.machine.Knows() <= agreed {
		return nil
	}
	for id := range n.store.Membership() {
		if id == n.node.ID {
			continue
		}
		if knows, err := n.askSpeaks(ctx, id); err != nil || knows <= agreed {
			n.log.LogAttrs(ctx, slog.LevelDebug, "a node is not known to know the next version of commands",
				slog.String("of", id), slog.Int("knows", knows), slog.Any("error", err))
			return nil // one that cannot be asked is waited for
		}
	}
	cmd, err := n.command(ctx, approval.RaiseVersion{Version: agreed + 1})
	if err != nil {
		return err
	}
	if _, err := n.commit(ctx, cmd); err != nil {
		return fmt.Errorf("raise the version of commands: %w", err)
	}
	n.log.LogAttrs(ctx, slog.LevelInfo, "the cluster speaks a new version of commands", slog.Int("version", agreed+1))
	return nil
}

// errOld is what ends a node whose release is older than the cluster's.
var errOld = errors.New("this release is older than what the cluster has agreed on: install the one that the other nodes run")

// checkVersion refuses to go on from a state that commands led to which this
// release does not know: it would come to another than the others.
func (m *machine) checkVersion(r raftstore.Reader) error {
	version, err := m.Read(r).Version()
	if err == nil && version > m.Knows() {
		err = fmt.Errorf("%w (it knows version %d of commands, they speak %d)", errOld, m.Knows(), version)
	}
	return err
}
