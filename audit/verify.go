package audit

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

var (
	// ErrTampered is returned when the entries are not those the checkpoint
	// was signed over: one was changed, left out, added or moved. Use
	// [errors.As] with a [TamperError] to learn which.
	ErrTampered = errors.New("audit: the log was tampered with")
	// ErrFork is returned when two signed checkpoints of one log cannot both
	// be true: the cluster, or a stolen key of it, wrote two histories.
	ErrFork = errors.New("audit: two histories were signed")
)

// TamperError says where the entries leave what was signed.
type TamperError struct {
	// Index is the first entry that shows it; -1 when only the root does.
	Index int64
	// From and To enclose the first wrong entry: all before From are proven by
	// an older checkpoint, and To itself, or one before it, is wrong.
	From, To int64
	// Reason says what is wrong in words.
	Reason string
}

func (e *TamperError) Error() string {
	if e.Index >= 0 {
		return fmt.Sprintf("%v: entry %d: %s", ErrTampered, e.Index, e.Reason)
	}
	return fmt.Sprintf("%v: an entry from %d to %d: %s", ErrTampered, e.From, e.To, e.Reason)
}

// Unwrap makes errors.Is(err, ErrTampered) hold.
func (e *TamperError) Unwrap() error { return ErrTampered }

// Evidence is what an auditor holds.
type Evidence struct {
	// Entries are the bodies from entry 0 on, one a line, in order.
	Entries io.Reader
	// Checkpoint is the signed head over exactly these entries.
	Checkpoint []byte
	// Older are signed heads kept from earlier; each must be of a prefix. They
	// show a history rewritten by the cluster itself, and narrow down a change.
	Older [][]byte
	// Leaves, when not nil, are the log's leaf hashes, base64, one a line.
	// They need no trust, being checked against the signed root, and let a
	// changed entry be named that otherwise only the root betrays.
	Leaves io.Reader
	// Verifiers are the public keys that are believed.
	Verifiers note.Verifiers
}

// Report says what was verified.
type Report struct {
	TrustDomain string
	Epoch       uint64
	// Checkpoint is the head all entries were checked against.
	Checkpoint Checkpoint
	// Signers are the names of the keys whose signatures on it were verified.
	Signers []string
	// Cosigners are those whose cosignatures on it were: see [Report.Require].
	Cosigners []string
	// Older is the number of older checkpoints that were found to be prefixes.
	Older int
	// First and Last are the times of the first and last entry; zero for an
	// empty log.
	First, Last time.Time
}

// Verify checks the entries that r gives, one a line, against a signed
// checkpoint over exactly them, with nothing but public keys.
func Verify(r io.Reader, checkpoint []byte, verifiers note.Verifiers) (Report, error) {
	return Evidence{Entries: r, Checkpoint: checkpoint, Verifiers: verifiers}.Verify()
}

// Verify checks that the entries are what the checkpoint was signed over, and
// that each older checkpoint is of a prefix of them. Errors wrap
// [ErrCheckpoint], [ErrTampered] or [ErrFork]; others are the readers' own.
func (ev Evidence) Verify() (Report, error) {
	v, err := ev.open()
	if err != nil {
		return Report{}, err
	}
	if err := v.readAll(); err != nil {
		return Report{}, err
	}
	if err := v.conclude(); err != nil {
		return Report{}, err
	}
	return v.report, nil
}

// verification is one run over the evidence.
type verification struct {
	lines  *lineReader
	leaves *lineReader // nil without
	head   Checkpoint
	older  []Checkpoint // ascending by size
	report Report

	tree    frontier // of the entries as read
	listed  frontier // of the leaf hashes as listed
	differs int64    // first entry that is not the listed leaf; -1 for none
	proven  int64    // every entry before it is under a matching older checkpoint
	broken  int64    // size of the first older checkpoint after proven that does not match; -1 for none
	fork    int64    // size of an older checkpoint contradicted by another that matches; -1 for none

	epochs map[int64]uint64 // that of each older checkpoint, by its size; the lowest
	begun  []epochStart     // in order
}

// epochStart is an entry that says that an epoch has begun.
type epochStart struct {
	index int64
	epoch uint64
}

// kindEpoch is the kind of such an entry. Its details name the epoch.
const kindEpoch = "epoch.begin"

func (ev Evidence) open() (*verification, error) {
	head, err := openCheckpoint(ev.Checkpoint, ev.Verifiers)
	if err != nil {
		return nil, err
	}
	report, err := head.report()
	if err != nil {
		return nil, err
	}
	v := &verification{lines: newLineReader(ev.Entries), head: head.Checkpoint, differs: -1, broken: -1, fork: -1, report: report, epochs: map[int64]uint64{}}
	if ev.Leaves != nil {
		v.leaves = newLineReader(ev.Leaves)
	}
	for i, signed := range ev.Older {
		c, err := openCheckpoint(signed, ev.Verifiers)
		if err != nil {
			return nil, fmt.Errorf("older checkpoint %d: %w", i, err)
		}
		if err := sameLog(c.Checkpoint, head.Checkpoint); err != nil && !errors.Is(err, errRestored) {
			return nil, fmt.Errorf("older checkpoint %d: %w", i, err) // what a restore lost, its entry will say
		}
		v.older = append(v.older, c.Checkpoint)
		_, epoch, _ := ParseOrigin(c.Origin) // it was parsed a moment ago
		if was, ok := v.epochs[c.Size]; !ok || epoch < was {
			v.epochs[c.Size] = epoch
		}
	}
	slices.SortFunc(v.older, func(a, b Checkpoint) int { return cmp.Compare(a.Size, b.Size) })
	for i := 1; i < len(v.older); i++ {
		if a, b := v.older[i-1], v.older[i]; a.Size == b.Size && a.Root != b.Root {
			return nil, fmt.Errorf("%w: two older checkpoints have different roots over the same %d entries", ErrFork, a.Size)
		}
	}
	return v, nil
}

var errRestored = errors.New("the restore that began epoch")

// sameLog checks that older can be an earlier head of the log that newer is
// the head of.
func sameLog(older, newer Checkpoint) error {
	oldTD, oldEpoch, err := ParseOrigin(older.Origin)
	if err != nil {
		return err
	}
	td, epoch, err := ParseOrigin(newer.Origin)
	if err != nil {
		return err
	}
	switch {
	case oldTD != td:
		return fmt.Errorf("%w: it is of another trust domain, %s", ErrCheckpoint, oldTD)
	case oldEpoch > epoch:
		return fmt.Errorf("%w: it is of epoch %d, the newer one of epoch %d", ErrFork, oldEpoch, epoch)
	case older.Size > newer.Size && oldEpoch < epoch:
		return fmt.Errorf("%w: it covers %d entries, the newer one only %d: %w %d lost some", ErrFork, older.Size, newer.Size, errRestored, epoch)
	case older.Size > newer.Size:
		return fmt.Errorf("%w: it covers %d entries, the newer one only %d", ErrFork, older.Size, newer.Size)
	case older.Size == newer.Size && older.Root != newer.Root:
		return fmt.Errorf("%w: it has another root over the same %d entries", ErrFork, newer.Size)
	}
	return nil
}

func (v *verification) readAll() error {
	v.compareOlder()
	for {
		line, err := v.lines.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if errors.Is(err, errLongLine) {
			return v.tampered(v.tree.size, "longer than any entry can be")
		}
		if err != nil {
			return fmt.Errorf("read entry %d: %w", v.tree.size, err)
		}
		if err := v.entry(line); err != nil {
			return err
		}
		v.compareOlder()
	}
	if v.tree.size < v.head.Size {
		return v.tampered(v.tree.size, fmt.Sprintf("missing, and all after it: the checkpoint covers %d entries", v.head.Size))
	}
	return nil
}

func (v *verification) entry(body []byte) error {
	i := v.tree.size
	if i >= v.head.Size {
		return v.tampered(i, fmt.Sprintf("not covered by the checkpoint, which has %d entries", v.head.Size))
	}
	e, err := ParseEntry(body)
	if err != nil {
		return v.tampered(i, err.Error())
	}
	switch at := int64(e.Index); {
	case at > i:
		return v.tampered(i, fmt.Sprintf("missing or moved: entry %d stands in its place", at))
	case at < i:
		return v.tampered(i, fmt.Sprintf("entry %d stands in its place a second time or out of order", at))
	}
	if e.Kind == kindEpoch {
		var d struct {
			Epoch uint64 `json:"epoch"`
		}
		if err := json.Unmarshal(e.Details, &d); err == nil {
			v.begun = append(v.begun, epochStart{i, d.Epoch})
		}
	}
	leaf := LeafHash(body)
	v.tree.append(leaf)
	if err := v.listedLeaf(i, leaf); err != nil {
		return err
	}
	if i == 0 {
		v.report.First = e.Time
	}
	v.report.Last = e.Time
	return nil
}

// listedLeaf reads the next listed leaf hash and notes the first difference. A
// list that is cut short or garbled names nothing, and clears nothing either:
// it is laid aside.
func (v *verification) listedLeaf(i int64, leaf tlog.Hash) error {
	if v.leaves == nil {
		return nil
	}
	line, err := v.leaves.next()
	if errors.Is(err, io.EOF) || errors.Is(err, errLongLine) {
		line, err = nil, nil // no hash
	}
	if err != nil {
		return fmt.Errorf("read leaf hash %d: %w", i, err)
	}
	listed, malformed := tlog.ParseHash(string(line))
	if malformed != nil {
		v.leaves = nil
		return nil //nolint:nilerr // an aid that does not help is no failure
	}
	v.listed.append(listed)
	if listed != leaf && v.differs < 0 {
		v.differs = i
	}
	return nil
}

// compareOlder compares the tree with the older checkpoints of its size.
func (v *verification) compareOlder() {
	for len(v.older) > 0 && v.older[0].Size == v.tree.size {
		c := v.older[0]
		v.older = v.older[1:]
		switch {
		case v.tree.root() == c.Root:
			// What came before is true, so an earlier mismatch was not the
			// entries' fault but that checkpoint's.
			v.proven, v.fork, v.broken = c.Size, max(v.fork, v.broken), -1
			v.report.Older++
		case v.broken < 0:
			v.broken = c.Size
		}
	}
}

// conclude compares the roots, all entries having been read.
func (v *verification) conclude() error {
	if v.tree.root() == v.head.Root {
		v.fork = max(v.fork, v.broken)
	}
	whole := v.tree.root() == v.head.Root
	if b, ok := v.lostBy(v.fork); ok {
		return lostError(b, v.fork)
	}
	if whole && v.fork < 0 && len(v.older) > 0 { // they cover more than there is by now
		c := v.older[0]
		if b, ok := v.lostBy(c.Size); ok {
			return lostError(b, c.Size)
		}
		return sameLog(c, v.head)
	}
	if v.fork >= 0 {
		return fmt.Errorf("%w: these entries match a newer checkpoint, but their first %d not the older one of that size", ErrFork, v.fork)
	}
	if whole {
		return nil
	}
	// Listed leaves that do not hash to the signed root are as forged as the
	// entries may be, and name nothing.
	if v.leaves != nil && v.differs >= 0 && v.listed.root() == v.head.Root {
		return &TamperError{Index: v.differs, From: v.differs, To: v.differs, Reason: "its text is not what was logged"}
	}
	to := v.head.Size - 1
	if v.broken >= 0 {
		to = v.broken - 1
	}
	return &TamperError{Index: -1, From: v.proven, To: to, Reason: "its text is not what was logged: the tree's root differs from the signed one"}
}

func lostError(b epochStart, size int64) error {
	return fmt.Errorf("%w: %w %d lost entries %d to %d", ErrFork, errRestored, b.epoch, b.index, size-1)
}

// lostBy finds the restore after which the entries under an older checkpoint of a size
// are others: what was logged in between is lost, and the log says so itself.
func (v *verification) lostBy(size int64) (epochStart, bool) {
	for _, b := range v.begun {
		if b.index < size && b.epoch > v.epochs[size] {
			return b, true
		}
	}
	return epochStart{}, false
}

func (v *verification) tampered(i int64, reason string) error {
	to := i
	if v.broken >= 0 {
		to = min(i, v.broken-1)
	}
	return &TamperError{Index: i, From: v.proven, To: to, Reason: reason}
}

var errLongLine = errors.New("audit: line too long")

// lineReader reads lines of at most MaxBody bytes.
type lineReader struct{ r *bufio.Reader }

func newLineReader(r io.Reader) *lineReader {
	return &lineReader{bufio.NewReaderSize(r, MaxBody+1)}
}

// next returns the next line without its "\n", valid until the call after, and
// io.EOF after the last.
func (l *lineReader) next() ([]byte, error) {
	line, err := l.r.ReadSlice('\n')
	switch {
	case err == nil:
		return line[:len(line)-1], nil
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, errLongLine
	case errors.Is(err, io.EOF) && len(line) > 0:
		return line, nil
	default:
		return nil, err
	}
}
