package control

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hallpass/hallpass/audit"
)

// Witness says where the leader publishes the log's head, cosigned by a majority,
// so that who keeps it can show a history that was rewritten later.
type Witness struct {
	Every    time.Duration // at most this often: zero means 1 min
	Files    []string      // each a history that is only added to; beside it, FILE.latest
	Webhooks []string      // URLs, each sent the newest head
	Secret   []byte        // that the webhooks check signatures with
}

const (
	witnessTimeout = 10 * time.Second
	maxWitnessTail = 1 << 20 // how much of a history is read to find its end
)

// LoadWebhookSecret reads a secret of Standard Webhooks, "whsec_" and 24 to 64 bytes
// in base64, from a file that only its owner may access.
func LoadWebhookSecret(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s: mode %s: want a file that only its owner may access; chmod 600 it", path, info.Mode())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	encoded, ok := strings.CutPrefix(strings.TrimSpace(string(text)), "whsec_")
	secret, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil || len(secret) < 24 || len(secret) > 64 {
		return nil, fmt.Errorf("%s: want whsec_ and 24 to 64 bytes in base64", path) // and not what it says
	}
	return secret, nil
}

// witness is one place that heads are published at.
type witness struct {
	name string
	put  func(ctx context.Context, head audit.Checkpoint, signed []byte) error

	mu   sync.Mutex
	size int64 // guarded by mu; of the newest head that is there
	err  error // guarded by mu; why the newest is not
}

func (n *node) newWitnesses(w Witness) []*witness {
	var all []*witness
	for _, path := range w.Files {
		all = append(all, &witness{name: path, put: func(ctx context.Context, head audit.Checkpoint, signed []byte) error {
			return n.toFile(ctx, path, head, signed)
		}})
	}
	for i, where := range w.Webhooks {
		all = append(all, &witness{name: webhookName(i, where), put: func(ctx context.Context, head audit.Checkpoint, signed []byte) error {
			return toWebhook(ctx, where, w.Secret, n.now(), head, signed)
		}})
	}
	return all
}

// webhookName is what is said of a webhook. What is behind its host is often what
// lets one in there, and logs are read by others.
func webhookName(i int, where string) string {
	u, err := url.Parse(where)
	if err != nil {
		return fmt.Sprintf("webhook %d", i+1)
	}
	return fmt.Sprintf("webhook %d, %s://%s", i+1, u.Scheme, u.Host)
}

// publishAll publishes at every witness while this node leads. A node that begins
// to lead publishes the newest head, which those that have it take for what it is.
func (n *node) publishAll(ctx context.Context) {
	var group sync.WaitGroup
	for _, w := range n.witnesses {
		group.Go(func() { n.publishAt(ctx, w) })
	}
	group.Wait()
}

// publishAt keeps one witness up to date. What it could not be given is not given
// later, but what is newest by then.
func (n *node) publishAt(ctx context.Context, w *witness) {
	var last audit.Checkpoint
	said, retry := "", n.limits.Tick
	for {
		head, err := n.publishNewest(ctx, w, last)
		if ctx.Err() != nil {
			return
		}
		w.took(head, err)
		wait := n.witnessEvery
		if err == nil {
			last, said, retry = head, "", n.limits.Tick
		} else {
			if now := clip(err.Error(), 512); now != said {
				said = now
				n.log.LogAttrs(ctx, slog.LevelWarn, "the log's head could not be published", slog.String("witness", w.name), slog.String("error", now))
			}
			n.metrics.unwitnessed(ctx)
			wait, retry = min(retry, n.witnessEvery), min(2*retry, time.Hour)
		}
		if pause(ctx, wait) != nil {
			return
		}
	}
}

// took notes what came of giving a witness a head.
func (w *witness) took(head audit.Checkpoint, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err = err; err == nil {
		w.size = head.Size
	}
}

// publishNewest gives a witness the head, if it is another than the last.
func (n *node) publishNewest(ctx context.Context, w *witness, last audit.Checkpoint) (audit.Checkpoint, error) {
	head, signed, err := n.publish(ctx, audit.Checkpoint{})
	if err != nil || head == last {
		return head, err
	}
	if err := n.byMajority(signed); err != nil {
		return head, err
	}
	ctx, cancel := context.WithTimeout(ctx, witnessTimeout)
	defer cancel()
	return head, w.put(ctx, head, signed)
}

// byMajority checks that more than half of the members cosigned a head: a witness
// should hold none that a single node made.
func (n *node) byMajority(signed []byte) error {
	members := n.store.Membership()
	ids := make([]string, 0, len(members))
	for id := range members {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	known, err := n.auditVerifiers(ids...)
	if err != nil {
		return err
	}
	r, _, err := audit.Growth{Older: signed, Newer: signed, Verifiers: known}.Verify()
	if err != nil {
		return err
	}
	return r.Require(len(ids)/2 + 1)
}

// errWitness is returned when a witness holds what this node's log contradicts.
var errWitness = errors.New("the witness holds another history than this node's log")

// toFile adds a head to a history, and puts it beside it as the latest.
//
// What is there already is compared with this node's own log, so that a log that
// was cut back or rewritten does not go on in the same file as if nothing were.
func (n *node) toFile(ctx context.Context, path string, head audit.Checkpoint, signed []byte) error {
	// Others read it: it is public, and signed.
	f, err := os.OpenFile(filepath.Clean(path), os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o644) //nolint:gosec // as the line above says
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // what matters is synced
	// A node that has just stopped leading may be at it still.
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("%s: another node writes there: %w", path, err)
	}
	last, whole, err := lastOf(f, head.Origin)
	if err != nil {
		return err
	}
	if last.Origin != "" {
		if err := n.extends(ctx, last, head); err != nil {
			return err
		}
	}
	if last != head {
		entry := append(bytes.Clone(signed), '\n')
		if !whole { // the end of one that a crash has torn
			entry = append([]byte("\n\n"), entry...)
		}
		if _, err := f.Write(entry); err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), syncDir(filepath.Dir(path))); err != nil {
			return err
		}
	}
	return writeSyncedMode(path+".latest", signed, 0o644)
}

// extends checks that a witness's newest head is of this node's log, and not newer
// than the one that is to follow.
func (n *node) extends(ctx context.Context, last, head audit.Checkpoint) error {
	td, epoch, err := audit.ParseOrigin(head.Origin)
	if err != nil {
		return err
	}
	lastTD, lastEpoch, err := audit.ParseOrigin(last.Origin)
	switch {
	case err != nil:
		return err
	case td != lastTD, lastEpoch > epoch:
		return fmt.Errorf("%w: it is of %s, this is %s", errWitness, last.Origin, head.Origin)
	case lastEpoch < epoch:
		return nil // a restore began another, and its name says so
	case last.Size > head.Size:
		return fmt.Errorf("%w: it has %d entries, this has %d", errWitness, last.Size, head.Size)
	}
	own, err := n.ownHead(ctx, last.Size)
	if err == nil && own != last {
		err = fmt.Errorf("%w: another root over the same %d entries", errWitness, last.Size)
	}
	return err
}

// lastOf reads the last head of a history, and whether nothing torn follows it.
// What holds no head is a history only if it is the beginning of a first one, of
// this origin: a path that was mistyped names somebody else's file.
func lastOf(f *os.File, origin string) (last audit.Checkpoint, whole bool, err error) {
	info, err := f.Stat()
	if err != nil {
		return last, false, err
	}
	if !info.Mode().IsRegular() {
		return last, false, fmt.Errorf("%s: %w: not a regular file", f.Name(), fs.ErrInvalid)
	}
	tail := make([]byte, min(info.Size(), maxWitnessTail))
	if _, err := f.ReadAt(tail, info.Size()-int64(len(tail))); err != nil && !errors.Is(err, io.EOF) {
		return last, false, err
	}
	// A head is its text, an empty line, its signatures and an empty line.
	parts := strings.Split(string(tail), "\n\n")
	for i := len(parts) - 3; i >= 0; i-- {
		if c, err := audit.ReadCheckpoint([]byte(parts[i] + "\n\n" + parts[i+1] + "\n")); err == nil {
			return c, i == len(parts)-3 && parts[len(parts)-1] == "", nil
		}
	}
	begun := strings.HasPrefix(origin, string(tail)) || strings.HasPrefix(string(tail), origin+"\n")
	if !begun || len(parts) > 2 {
		return last, false, fmt.Errorf("%s: holds no head of a log", f.Name())
	}
	return last, info.Size() == 0, nil
}

// event is what a webhook is sent.
type event struct {
	Type      string    `json:"type"`
	Timestamp time.Time `json:"timestamp"`
	Data      eventHead `json:"data"`
}

type eventHead struct {
	Checkpoint string `json:"checkpoint"` // the signed note
	Origin     string `json:"origin"`
	Size       int64  `json:"size"`
	Root       string `json:"root"`
}

// toWebhook sends a head as Standard Webhooks has it. The id is the head's, so that
// one sent by two leaders is known for one.
func toWebhook(ctx context.Context, where string, secret []byte, now time.Time, head audit.Checkpoint, signed []byte) error {
	body, err := json.Marshal(event{
		Type: "audit.checkpoint", Timestamp: now.UTC(),
		Data: eventHead{Checkpoint: string(signed), Origin: head.Origin, Size: head.Size, Root: hash64(head.Root)},
	})
	if err != nil {
		return err
	}
	text, err := head.Text()
	if err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(text))
	id, at := "checkpoint_"+hex.EncodeToString(sum[:16]), strconv.FormatInt(now.Unix(), 10)
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(id + "." + at + "."))
	mac.Write(body)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, where, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Webhook-Id", id)
	req.Header.Set("Webhook-Timestamp", at)
	req.Header.Set("Webhook-Signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	transport := &http.Transport{ResponseHeaderTimeout: witnessTimeout, TLSHandshakeTimeout: witnessTimeout}
	defer transport.CloseIdleConnections()
	// No redirect is followed: whom the head goes to is for the configuration to say.
	res, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	_ = res.Body.Close() // what it says does not matter
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return fmt.Errorf("the webhook answered %s", res.Status)
	}
	return nil
}

// checkWitnesses warns while a witness does not have the newest head.
func (n *node) checkWitnesses() Finding {
	var bad, good []string
	for _, w := range n.witnesses {
		w.mu.Lock()
		if w.err != nil && n.store.IsLeader() {
			bad = append(bad, w.name+": "+w.err.Error())
		} else if w.size > 0 {
			good = append(good, fmt.Sprintf("%s: %d entries", w.name, w.size))
		}
		w.mu.Unlock()
	}
	if len(bad) > 0 {
		return Finding{"witnesses", statusWarn, clip(strings.Join(bad, "; "), 1024)}
	}
	return Finding{"witnesses", statusOK, clip(strings.Join(good, "; "), 1024)}
}
