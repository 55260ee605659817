package approval

import (
	"cmp"
	"encoding/binary"
	"maps"
	"slices"
	"strings"

	"github.com/hallpass/hallpass/grant"
)

// The outbox says how far notifications have gone, and holds none of them: each is an
// entry of the audit log, which is replicated and in order already. See
// docs/decisions/0026.
//
//	audit log  … 41 42 43 44 45 46 47 48 …
//	               │  │     │     └ position: nothing from here on was looked at
//	               │  │     └ open: on its way, or tried again
//	               │  └ dead: given up, with a cause
//	               └ settled, or nothing that the target is told

// Target is how far notifications of one receiver have gone.
type Target struct {
	Name     string `json:"name" cbor:"1,keyasint"`
	Revision uint64 `json:"revision" cbor:"2,keyasint"` // counts changes; a settlement names the one that it goes on from
	Position uint64 `json:"position" cbor:"3,keyasint"` // the first audit entry that was not looked at
	// Open are the entries before Position that are neither delivered nor given up, in
	// their order.
	Open    []OpenDelivery `json:"open" cbor:"4,keyasint"`
	Paused  Millis         `json:"paused,omitempty" cbor:"5,keyasint"` // when the receiver said that it wants no more; 0: it did not
	Cause   string         `json:"cause,omitempty" cbor:"6,keyasint"`  // in its words
	Sent    uint64         `json:"sent" cbor:"7,keyasint"`             // delivered so far
	Dead    uint64         `json:"dead" cbor:"8,keyasint"`             // dead letters that there are
	Dropped uint64         `json:"dropped" cbor:"9,keyasint"`          // dead letters that made room for newer ones
}

// OpenDelivery is an entry that is on its way to a target.
type OpenDelivery struct {
	Entry uint64 `json:"entry" cbor:"1,keyasint"`
	Since Millis `json:"since" cbor:"2,keyasint"` // when that was first written down
	Tries uint64 `json:"tries" cbor:"3,keyasint"` // that failed
	Cause string `json:"cause,omitempty" cbor:"4,keyasint"`
}

// DeadLetter is an entry that a target was not told.
type DeadLetter struct {
	Target string `json:"target" cbor:"1,keyasint"`
	Entry  uint64 `json:"entry" cbor:"2,keyasint"`
	Since  Millis `json:"since" cbor:"3,keyasint"`
	Tries  uint64 `json:"tries" cbor:"4,keyasint"`
	Cause  string `json:"cause" cbor:"5,keyasint"` // of the last
	At     Millis `json:"at" cbor:"6,keyasint"`    // when it was given up
}

func (Target) objectKind() string { return "outbox target" }

// SettleOutbox says how deliveries to a target went. The actor is the cluster. The
// first one makes the target, which is told of nothing that was before.
type SettleOutbox struct {
	Target     string       `cbor:"1,keyasint"`
	Base       uint64       `cbor:"2,keyasint"` // the target's revision; 0: there is none yet
	Position   uint64       `cbor:"3,keyasint"`
	Deliveries []Settlement `cbor:"4,keyasint"` // in the order of their entries
	Paused     string       `cbor:"5,keyasint"` // why the target wants no more; "" for no such thing
}

// Settlement is what became of one delivery.
type Settlement struct {
	Entry   uint64  `json:"entry" cbor:"1,keyasint"`
	Outcome Outcome `json:"outcome" cbor:"2,keyasint"`
	Tries   uint64  `json:"tries" cbor:"3,keyasint"` // that failed
	Cause   string  `json:"cause,omitempty" cbor:"4,keyasint"`
}

// Outcome says what became of a delivery.
type Outcome string

// The outcomes.
const (
	OutcomeOpen Outcome = "open" // it is not over
	OutcomeSent Outcome = "sent" // the receiver has it
	OutcomeDead Outcome = "dead" // it was given up
)

// ReplayOutbox has dead letters of a target sent again, and a target that was paused
// go on. The actor is an admin.
type ReplayOutbox struct {
	Target  string   `cbor:"1,keyasint"`
	Entries []uint64 `cbor:"2,keyasint"`
}

// ForgetOutbox forgets a target: one that is configured begins anew, at the end of
// the log. The actor is an admin.
type ForgetOutbox struct {
	Target string `cbor:"1,keyasint"`
}

func (SettleOutbox) kind() Kind { return KindSettleOutbox }
func (ReplayOutbox) kind() Kind { return KindReplayOutbox }
func (ForgetOutbox) kind() Kind { return KindForgetOutbox }

func (b SettleOutbox) target() string { return b.Target }
func (b ReplayOutbox) target() string { return b.Target }
func (b ForgetOutbox) target() string { return b.Target }

// Notifies reports whether a kind of audit entry is one that targets may be told. What
// the cluster writes down of its own book-keeping is not: a settlement that was
// announced would be settled, and that announced, without end.
func (k Kind) Notifies() bool {
	switch k { //nolint:exhaustive // all others may be told
	case KindSettleOutbox, KindAnchorAccess:
		return false
	}
	return true
}

// How many and how long.
const (
	// MaxTargets is how many targets there may be.
	MaxTargets = 32
	// MaxOpenDeliveries is how many entries may be on their way to one target: while
	// so many are, nothing is taken from the log, which keeps the rest.
	MaxOpenDeliveries = 256
	// MaxDeadLetters is how many dead letters are kept of one target; the oldest makes
	// room. The audit log has each, with what it was about.
	MaxDeadLetters = 256
	// MaxSettlements is how many deliveries one command settles.
	MaxSettlements = 2 * MaxOpenDeliveries
	// MaxCause is how long the cause of a failure may be, in bytes.
	MaxCause = 256

	maxTries = 1 << 20
)

// outboxDetails is the audit leaf of a settlement.
type outboxDetails struct {
	Position uint64       `json:"position"`
	Settled  []Settlement `json:"settled,omitempty"` // sent or dead; the rest goes on
	Dropped  []uint64     `json:"dropped,omitempty"` // entries of dead letters that made room
	Paused   string       `json:"paused,omitempty"`
}

// settleOutbox writes down how deliveries went. The leader sends first and settles
// afterwards, so that one which dies in between leaves a delivery to be sent again
// and none that was never sent.
func (t *turn) settleOutbox(b SettleOutbox) (Object, error) {
	was, known, err := t.targetAt(b.Target)
	if err != nil {
		return nil, err
	}
	if b.Base != was.Revision {
		// A leader that was deposed and has not noticed would undo what its successor wrote.
		return nil, conflict("target %q is at revision %d, not at %d", b.Target, was.Revision, b.Base)
	}
	if !known {
		if n := len(suffixes(t, []byte(prefixTarget))); n >= MaxTargets {
			return nil, limited("there are %d notification targets", n).then("forget those that are not in use")
		}
		was = Target{Name: b.Target, Position: b.Position}
	}
	if err := b.check(was, t.m.AuditSize); err != nil {
		return nil, err
	}
	next := was
	next.Revision++
	next.Position = b.Position
	d := outboxDetails{Position: b.Position, Paused: b.Paused}
	open := map[uint64]OpenDelivery{}
	for _, o := range was.Open {
		open[o.Entry] = o
	}
	for _, s := range b.Deliveries {
		o, ok := open[s.Entry]
		if !ok {
			o = OpenDelivery{Entry: s.Entry, Since: t.now}
		}
		o.Tries, o.Cause = s.Tries, s.Cause
		switch s.Outcome {
		case OutcomeOpen:
			open[s.Entry] = o
			continue
		case OutcomeSent:
			next.Sent++
		case OutcomeDead:
			t.bury(&next, o, &d)
		}
		delete(open, s.Entry)
		d.Settled = append(d.Settled, s)
	}
	if len(open) > MaxOpenDeliveries {
		return nil, limited("%d deliveries to %q would be open, at most %d", len(open), b.Target, MaxOpenDeliveries)
	}
	next.Open = inOrderOf(open)
	if b.Paused != "" {
		next.Paused, next.Cause = t.now, b.Paused
	}
	t.save(key(prefixTarget, next.Name), next)
	t.details = d
	return next, nil
}

// check refuses a settlement that contradicts itself, or what is known.
func (b SettleOutbox) check(was Target, size uint64) error {
	if err := checkTarget(b.Target); err != nil {
		return err
	}
	if b.Position < was.Position || b.Position > size {
		return invalid("target %q cannot be at entry %d: it is at %d, and the log has %d", b.Target, b.Position, was.Position, size)
	}
	if len(b.Deliveries) > MaxSettlements {
		return invalid("%d settlements, at most %d", len(b.Deliveries), MaxSettlements)
	}
	if b.Paused != "" {
		if err := checkCause("why the target is paused", b.Paused); err != nil {
			return err
		}
	}
	open := map[uint64]bool{}
	for _, o := range was.Open {
		open[o.Entry] = true
	}
	for i, s := range b.Deliveries {
		switch {
		case i > 0 && s.Entry <= b.Deliveries[i-1].Entry:
			return invalid("entry %d comes after entry %d", s.Entry, b.Deliveries[i-1].Entry)
		case s.Entry >= b.Position || s.Entry < was.Position && !open[s.Entry]:
			// One that was settled would be delivered again, and counted twice.
			return invalid("entry %d is not on its way to %q", s.Entry, b.Target)
		case s.Outcome != OutcomeOpen && s.Outcome != OutcomeSent && s.Outcome != OutcomeDead:
			return invalid("entry %d came to %q", s.Entry, s.Outcome)
		case s.Tries > maxTries:
			return invalid("entry %d was tried %d times", s.Entry, s.Tries)
		}
		if err := checkCause("the cause", s.Cause); err != nil {
			return err
		}
	}
	return nil
}

// bury makes a dead letter of a delivery. The oldest makes room for it.
func (t *turn) bury(target *Target, o OpenDelivery, d *outboxDetails) {
	if target.Dead >= MaxDeadLetters {
		under := pairPrefix(prefixDeadLetter, target.Name)
		t.Scan(under, nil, func(k, _ []byte) bool {
			d.Dropped = append(d.Dropped, binary.BigEndian.Uint64(k[len(under):]))
			return false
		})
		t.Delete(deadKey(target.Name, d.Dropped[len(d.Dropped)-1]))
		target.Dead--
		target.Dropped++
	}
	l := DeadLetter{Target: target.Name, Entry: o.Entry, Since: o.Since, Tries: o.Tries, Cause: o.Cause, At: t.now}
	t.save(deadKey(l.Target, l.Entry), l)
	target.Dead++
}

// replayOutbox opens dead letters again.
func (t *turn) replayOutbox(b ReplayOutbox) (Object, error) {
	target, err := t.targetForAdmin(b.Target)
	if err != nil {
		return nil, err
	}
	if n := len(b.Entries); n > MaxDeadLetters {
		return nil, invalid("%d entries, at most %d", n, MaxDeadLetters)
	}
	open := map[uint64]OpenDelivery{}
	for _, o := range target.Open {
		open[o.Entry] = o
	}
	for _, entry := range b.Entries {
		if !t.has(deadKey(b.Target, entry)) {
			return nil, notFound("entry %d is no dead letter of %q", entry, b.Target).then("hallpass notify dead")
		}
		t.Delete(deadKey(b.Target, entry))
		target.Dead--
		open[entry] = OpenDelivery{Entry: entry, Since: t.now}
	}
	if len(open) > MaxOpenDeliveries {
		return nil, limited("%d deliveries to %q would be open, at most %d", len(open), b.Target, MaxOpenDeliveries).
			then("replay fewer, and the rest once they are through")
	}
	if len(b.Entries) == 0 && target.Paused == 0 {
		t.unchanged = true
		return target, nil
	}
	target.Open, target.Paused, target.Cause = inOrderOf(open), 0, ""
	target.Revision++
	t.save(key(prefixTarget, target.Name), target)
	t.details = struct {
		Entries []uint64 `json:"entries,omitempty"`
	}{b.Entries}
	return target, nil
}

// forgetOutbox drops all that is known of a target.
func (t *turn) forgetOutbox(b ForgetOutbox) (Object, error) {
	target, err := t.targetForAdmin(b.Target)
	if err != nil {
		return nil, err
	}
	under := pairPrefix(prefixDeadLetter, target.Name)
	var spent [][]byte
	t.Scan(under, nil, func(k, _ []byte) bool {
		spent = append(spent, slices.Clone(k))
		return true
	})
	for _, k := range spent {
		t.Delete(k)
	}
	t.Delete(key(prefixTarget, target.Name))
	t.details = struct {
		Position uint64 `json:"position"`
		Open     int    `json:"open"`
		Dead     int    `json:"dead"`
	}{target.Position, len(target.Open), len(spent)}
	return target, nil
}

// targetForAdmin returns a target to an admin.
func (t *turn) targetForAdmin(name string) (Target, error) {
	if !t.admin {
		return Target{}, denied("only an admin says what becomes of notifications")
	}
	target, known, err := t.targetAt(name)
	if err == nil && !known {
		err = notFound("there is no notification target %q", name).then("hallpass notify list")
	}
	return target, err
}

func (t *turn) targetAt(name string) (Target, bool, error) {
	return load[Target](t, key(prefixTarget, name))
}

// inOrderOf returns open deliveries in the order of their entries.
func inOrderOf(open map[uint64]OpenDelivery) []OpenDelivery {
	return slices.SortedFunc(maps.Values(open), func(a, b OpenDelivery) int { return cmp.Compare(a.Entry, b.Entry) })
}

// deadKey is where a dead letter is kept: in the order of the log.
func deadKey(target string, entry uint64) []byte {
	return binary.BigEndian.AppendUint64(pairPrefix(prefixDeadLetter, target), entry)
}

// checkTarget refuses what is no target's name: a DNS label.
func checkTarget(name string) error {
	if err := grant.ValidService(name); err != nil {
		return invalid("%q is not the name of a notification target: lower-case letters, digits and hyphens", name)
	}
	return nil
}

// checkCause refuses words that are too long, or do not show as what they are: a
// receiver that answers an error chooses some of them, and admins read them.
func checkCause(what, text string) error {
	if len(text) > MaxCause {
		return invalid("%s is %d bytes long, at most %d", what, len(text), MaxCause)
	}
	if strings.Contains(text, "\n") {
		return invalid("%s has several lines", what)
	}
	return checkText(what, text, 0)
}

// Targets returns how far notifications have gone, by name.
func (s State) Targets() ([]Target, error) { return every[Target](s.r, prefixTarget) }

// Target returns a target; false when nothing is known of it.
func (s State) Target(name string) (Target, bool, error) {
	return load[Target](s.r, key(prefixTarget, name))
}

// DeadLetters returns the dead letters of a target, or of all, in the order of the log.
func (s State) DeadLetters(target string) ([]DeadLetter, error) {
	if target == "" {
		return every[DeadLetter](s.r, prefixDeadLetter)
	}
	return every[DeadLetter](s.r, string(pairPrefix(prefixDeadLetter, target)))
}

// outbox checks that targets are within their bounds, and that dead letters are theirs.
func (c *checker) outbox() {
	targets := objects[Target](c, prefixTarget)
	c.need(len(targets) <= MaxTargets, "%d notification targets", len(targets))
	dead := map[string]uint64{}
	inOrder(objects[DeadLetter](c, prefixDeadLetter), func(at string, l DeadLetter) {
		_, known := targets[l.Target]
		c.need(known && string(deadKey(l.Target, l.Entry)) == prefixDeadLetter+at, "dead letter %q of %q, entry %d", at, l.Target, l.Entry)
		dead[l.Target]++
	})
	inOrder(targets, func(name string, t Target) {
		c.need(t.Name == name && t.Revision > 0 && t.Position <= c.m.AuditSize, "target %q calls itself %q, at entry %d of %d", name, t.Name, t.Position, c.m.AuditSize)
		c.need(len(t.Open) <= MaxOpenDeliveries, "%d deliveries to %q are open", len(t.Open), name)
		c.need(t.Dead == dead[name] && t.Dead <= MaxDeadLetters, "target %q has %d dead letters, and counted %d", name, dead[name], t.Dead)
		for i, o := range t.Open {
			c.need(o.Entry < t.Position && (i == 0 || o.Entry > t.Open[i-1].Entry), "open delivery %d of %q, which is at %d", o.Entry, name, t.Position)
			c.need(c.r.Get(deadKey(name, o.Entry)) == nil, "delivery %d to %q is open, and dead", o.Entry, name)
		}
	})
}

// Kinds are all kinds of commands, which are the kinds of audit entries.
func Kinds() []Kind {
	return []Kind{
		KindBootstrap, KindCreateRequest, KindDecideRequest, KindCancelRequest, KindTick, KindIssueGrant, KindRevokeGrant,
		KindReturnGrant, KindIssueIdentity, KindBlockSubject, KindDenyIssuer, KindInstallIssuer, KindSetRoots, KindAdoptManifest,
		KindJoinNode, KindPromoteNode, KindRemoveNode, KindHandOver, KindRaiseVersion, KindBeginEpoch, KindProposeChange,
		KindDecideChange, KindCancelChange, KindRegisterEmergency, KindImportEmergency, KindRevokeEmergency, KindAnchorAccess,
		KindCloseReview, KindSettleOutbox, KindReplayOutbox, KindForgetOutbox, KindEscalateRequest, KindSetDuty,
		KindNameStandIn, KindEndStandIn,
	}
}
