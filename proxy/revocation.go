package proxy

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
)

// ErrState is returned when the revocation state file cannot be used.
var ErrState = errors.New("bad revocation state file")

// feedEntry is one revoked grant or denied issuer, and until when a certificate
// that it speaks of may still be valid.
type feedEntry struct {
	ID    string    `json:"id"`
	Until time.Time `json:"until"`
}

// feedDoc is the whole revocation feed, as a control node tells it.
type feedDoc struct {
	EpochBegan time.Time   `json:"epoch_began,omitzero"` // when the cluster was restored last
	Epoch      uint64      `json:"epoch"`
	Revision   uint64      `json:"revision"`
	Grants     []feedEntry `json:"grants"`
	Issuers    []feedEntry `json:"issuers"`
	VerifiedAt time.Time   `json:"verified_at"`
	Roots      uint64      `json:"roots,omitempty"` // roots documents that the node knows
}

// savedDoc is the list as it stands on disk. The sum is over what is believed of
// the file: one changed bit in an id would admit a revoked grant, one in a key
// forget them all, and both are good JSON. A file of an older version has none.
type savedDoc struct {
	feedDoc
	Sum string `json:"sum,omitempty"`
}

// sum is the CRC-32C of the list, in hex.
func (d feedDoc) sum() (string, error) {
	data, err := json.Marshal(d)
	return fmt.Sprintf("%08x", crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))), err
}

// readSaved reads what save wrote.
func readSaved(data []byte) (doc feedDoc, ok bool) {
	var saved savedDoc
	if err := json.Unmarshal(data, &saved); err != nil || saved.Epoch == 0 {
		return feedDoc{}, false
	}
	if saved.Sum == "" {
		return saved.feedDoc, true
	}
	sum, err := saved.sum()
	return saved.feedDoc, err == nil && sum == saved.Sum
}

// heartbeat says that nothing newer than Revision was known at VerifiedAt.
type heartbeat struct {
	Epoch      uint64    `json:"epoch"`
	Revision   uint64    `json:"revision"`
	VerifiedAt time.Time `json:"verified_at"`
	Roots      uint64    `json:"roots,omitempty"`
}

// denials is what must be refused. It is never changed, only replaced.
type denials struct {
	epoch, revision uint64
	grants, issuers map[string]time.Time

	began time.Time // grants made before are denied, listed or not; zero in a cluster that was never restored
}

// denies says why a is refused, or "".
func (d *denials) denies(a *admission) string {
	if a.grantID != "" {
		if _, ok := d.grants[a.grantID]; ok {
			return reasonRevoked
		}
		// A restored cluster does not know the grants that were made after its
		// snapshot, nor which of them were revoked: no list could name them.
		if !d.began.IsZero() && grantedBefore(a.grantID, d.began) {
			return reasonEpochEnded
		}
	}
	for _, id := range a.issuers {
		if _, ok := d.issuers[id]; ok {
			return reasonIssuerDenied
		}
	}
	return ""
}

// grantedBefore reads the time in a grant's id, a UUIDv7: milliseconds in its
// first 48 bits. An id without one was made before anything.
func grantedBefore(id string, t time.Time) bool {
	u, err := uuid.Parse(id)
	if err != nil || u.Version() != 7 {
		return true
	}
	ms := binary.BigEndian.Uint64(append([]byte{0, 0}, u[:6]...))
	return int64(ms) < t.UnixMilli()
}

// freshness is when the list was last known to be whole.
type freshness struct {
	verified time.Time // by the leader's clock
	received time.Time // by ours, its monotonic reading kept
}

// revocations holds the newest list and keeps it on disk.
//
// Nothing on it is forgotten before its time: an entry stays until the
// certificates it speaks of have expired, whatever a later list, another node or
// another epoch says. Revision never goes back within an epoch, nor epoch at all;
// what a list denies is denied even so.
type revocations struct {
	path     string
	skew     time.Duration
	maxStale time.Duration
	now      func() time.Time
	log      *slog.Logger
	onChange func(*denials) // cuts connections; called before the list is on disk

	cur   atomic.Pointer[denials]
	fresh atomic.Pointer[freshness]

	mu      sync.Mutex // owns changes of cur and fresh, and unsaved
	unsaved bool
}

func openRevocations(cfg *config) (*revocations, error) {
	r := &revocations{path: cfg.stateFile, skew: cfg.skew, maxStale: cfg.staleness, now: cfg.now, log: cfg.log}
	r.cur.Store(&denials{})
	r.fresh.Store(&freshness{})
	if r.path == "" {
		return r, nil
	}
	data, err := os.ReadFile(r.path)
	if errors.Is(err, os.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	// A file that cannot be read is no empty list: what it held would be admitted.
	doc, ok := readSaved(data)
	if !ok {
		return nil, fmt.Errorf("%w: %s is damaged; restore it, or remove it to start without what it knew", ErrState, r.path)
	}
	r.cur.Store(r.merge(&denials{}, doc))
	r.fresh.Store(&freshness{verified: doc.VerifiedAt})
	return r, nil
}

// behind says that news comes from a node that knows less than we do.
func (d *denials) behind(epoch, revision uint64) bool {
	return epoch < d.epoch || epoch == d.epoch && revision < d.revision
}

// errBehind is returned when news is older than what is known already.
var errBehind = errors.New("the node is behind")

// apply takes in a whole list: connections it speaks of are cut first, then it is saved.
func (r *revocations) apply(doc feedDoc) error {
	if doc.Epoch == 0 {
		return errors.New("the feed has no epoch")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.cur.Load()
	if old.behind(doc.Epoch, doc.Revision) {
		// What it denies is denied all the same. A thief with one node's key can tell a
		// revision, or an epoch, that no honest node ever reaches, and would else have
		// made the proxy deaf to all of them for good, on disk and long after the node
		// was put out.
		behind := fmt.Errorf("%w: epoch %d revision %d, known %d and %d", errBehind, doc.Epoch, doc.Revision, old.epoch, old.revision)
		doc.Epoch, doc.Revision = old.epoch, old.revision
		r.take(old, doc, r.fresh.Load().verified)
		return behind
	}
	r.freshen(doc.VerifiedAt)
	r.take(old, doc, doc.VerifiedAt)
	return nil
}

// take adds what a list denies to what is denied already.
func (r *revocations) take(old *denials, doc feedDoc, verified time.Time) {
	next := r.merge(old, doc)
	same := next.epoch == old.epoch && next.revision == old.revision && maps.Equal(next.grants, old.grants) && maps.Equal(next.issuers, old.issuers) &&
		next.began.Equal(old.began)
	if !same {
		r.cur.Store(next)
		if r.onChange != nil {
			r.onChange(next)
		}
	}
	if !same || r.unsaved {
		r.save(next, verified)
	}
}

// beat takes in a heartbeat.
func (r *revocations) beat(h heartbeat) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	cur := r.cur.Load()
	if h.Epoch == 0 {
		h.Epoch = cur.epoch
	}
	// Of another epoch, also a later one, nothing is known before its list was read.
	if cur.epoch == 0 || h.Epoch != cur.epoch || cur.behind(h.Epoch, h.Revision) {
		return errBehind
	}
	if r.unsaved {
		r.save(cur, h.VerifiedAt)
	}
	if !r.freshen(h.VerifiedAt) {
		return errBehind // a node that has lost its leader repeats itself
	}
	return nil
}

// freshen notes that the list was whole at verified, and says whether that is
// news. What is repeated counts from when it was first heard: a node cut off from
// a leader whose clock was ahead would else keep its list fresh by repeating it.
func (r *revocations) freshen(verified time.Time) bool {
	if !verified.After(r.fresh.Load().verified) {
		return false
	}
	r.fresh.Store(&freshness{verified: verified, received: time.Now()})
	return true
}

// merge is old and doc together, without what has run out.
func (r *revocations) merge(old *denials, doc feedDoc) *denials {
	now := wall(r.now)
	join := func(known map[string]time.Time, said []feedEntry) map[string]time.Time {
		all := make(map[string]time.Time, len(said))
		put := func(id string, until time.Time) {
			if had, ok := all[id]; ok && (had.IsZero() || !until.IsZero() && until.Before(had)) {
				return
			}
			// An entry without an end is kept for good.
			if until.IsZero() || now.Before(until.Add(r.skew)) {
				all[id] = until
			}
		}
		for id, until := range known {
			put(id, until)
		}
		for _, e := range said {
			put(e.ID, e.Until)
		}
		return all
	}
	began := doc.EpochBegan
	if began.Before(old.began) {
		began = old.began // what one list ended, no later one revives
	}
	return &denials{
		epoch: doc.Epoch, revision: doc.Revision, began: began,
		grants: join(old.grants, doc.Grants), issuers: join(old.issuers, doc.Issuers),
	}
}

// save writes the list so that a crash leaves the old file or the new one. A
// failure is tried again with the next news.
func (r *revocations) save(d *denials, verified time.Time) {
	if r.path == "" {
		return
	}
	doc := feedDoc{Epoch: d.epoch, Revision: d.revision, EpochBegan: d.began, VerifiedAt: verified, Grants: entries(d.grants), Issuers: entries(d.issuers)}
	sum, err := doc.sum()
	var data []byte
	if err == nil {
		data, err = json.Marshal(savedDoc{doc, sum})
	}
	if err == nil {
		err = replaceFile(r.path, append(data, '\n'))
	}
	if r.unsaved = err != nil; r.unsaved {
		r.log.Error("revocations are known but cannot be saved; a restart while cut off would forget them", slog.Any("error", err))
	}
}

func entries(m map[string]time.Time) []feedEntry {
	out := make([]feedEntry, 0, len(m))
	for id, until := range m {
		out = append(out, feedEntry{id, until})
	}
	return out
}

// replaceFile writes data beside path, syncs it and renames it into place.
func replaceFile(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // made with mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if _, err := f.Write(data); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Clean(dir))
	if err != nil {
		return nil // the file is in place; only its survival of a power cut is in doubt
	}
	return errors.Join(ignoreUnsupported(d.Sync()), d.Close())
}

// ignoreUnsupported lets file systems be that cannot sync a folder.
func ignoreUnsupported(err error) error {
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, os.ErrInvalid) {
		return nil
	}
	return err
}

// age is how long ago the list was last known to be whole, and false when it never was.
func (r *revocations) age() (time.Duration, bool) {
	f := r.fresh.Load()
	if f.verified.IsZero() {
		return 0, false
	}
	age := wall(r.now).Sub(f.verified.Round(0))
	// A node whose clock is ahead must not make old news look fresh, nor may our
	// own clock when it is set back, nor the monotonic one asleep in a suspend.
	if !f.received.IsZero() {
		age = max(age, time.Since(f.received), wall(r.now).Sub(f.received.Round(0)))
	}
	return age, true
}

// stale says whether this service must refuse everybody for want of news.
func (r *revocations) stale() bool {
	if r.maxStale <= 0 {
		return false
	}
	age, ok := r.age()
	return !ok || age > r.maxStale
}
