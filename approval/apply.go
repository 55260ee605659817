package approval

import (
	"errors"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Machine applies commands. All that it keeps between them is a Memory. The zero
// Machine is ready; it may be used from several goroutines.
type Machine struct {
	// Speaks is the newest version of commands that the machine knows; 0 means
	// Version. Anything else is for rehearsing an upgrade.
	Speaks int

	memory Memory
}

// Apply decides one command and, when it is accepted, writes all of its effects
// to tx; a refused command writes nothing. It is a pure function of tx, index
// and data: no clock, no randomness, and for no data a panic.
func (m *Machine) Apply(tx Tx, index uint64, data []byte) Result {
	d := newDraft(tx)
	result := m.decide(d, index, data)
	if result.Err == nil && result.Changed {
		d.commit()
	}
	return result
}

// Read returns the state in r, as read with the machine's memory.
func (m *Machine) Read(r Reader) State { return m.memory.Read(r) }

// Knows is the newest version of commands that the machine knows.
func (m *Machine) Knows() int {
	if m.Speaks == 0 {
		return Version
	}
	return m.Speaks
}

// Apply is Machine.Apply without a memory.
func Apply(tx Tx, index uint64, data []byte) Result {
	return new(Machine).Apply(tx, index, data)
}

// decide comes to the result of a command and writes its effects to d.
func (m *Machine) decide(d *draft, index uint64, data []byte) (result Result) {
	defer func() {
		// A panic here would stop every node on the same log entry, again after
		// each restart: one poisoned command and the cluster is gone for good.
		// A store that panics is another matter: a node that went on without
		// what the others wrote would be on its own from here.
		if p := recover(); p != nil {
			if d.inBase {
				panic(p)
			}
			result = Result{Index: index, Err: &Error{Code: CodeInternal, Detail: "the command could not be applied"}}
		}
	}()
	c, err := decodeCommand(data, m.Knows())
	if err != nil {
		return refused(index, err)
	}
	t := &turn{draft: d, memory: &m.memory, speaks: m.Knows(), index: index, cmd: c}
	result, err = t.run()
	if err == nil && d.err != nil {
		err = d.err
	}
	if err != nil {
		return refused(index, err)
	}
	return result
}

func refused(index uint64, err error) Result {
	var e *Error
	switch {
	case errors.As(err, &e):
	case errors.Is(err, ErrInvalid):
		e = invalid("%s", err)
	default:
		e = &Error{Code: CodeInternal, Detail: "the stored state contradicts itself"}
	}
	return Result{Index: index, Err: e}
}

// turn is one command on its way through the state.
type turn struct {
	*draft
	memory *Memory
	speaks int // the newest version of commands that is known

	index uint64
	cmd   Command
	m     meta
	now   Millis // effective: never before that of an earlier command

	actor  spiffeid.ID // zero: the cluster itself
	person string      // behind the actor; "" for none
	admin  bool

	parsed *parsedScope // by scopeOf last

	unchanged   bool // accepted, but there was nothing to do
	feedChanged bool
	object      string // what the audit leaf is about
	details     any    // what it says; marshals to a JSON object
}

func (t *turn) state() State { return t.memory.Read(t.draft) }

// run checks what all commands have in common, then the command itself, and
// finishes what it changed with its audit leaf.
func (t *turn) run() (Result, error) {
	if err := t.checkEnvelope(); err != nil {
		return Result{}, err
	}
	if err := t.begin(); err != nil {
		return Result{}, err
	}
	if replay, ok, err := t.replay(); ok || err != nil {
		return replay, err
	}
	object, err := t.perform()
	if err != nil {
		return Result{}, err
	}
	result := Result{Index: t.index, Object: object, Changed: !t.unchanged}
	if t.unchanged {
		return result, nil
	}
	return result, t.finish(&result)
}

// checkEnvelope refuses a command whose outer fields make no sense.
func (t *turn) checkEnvelope() error {
	c := t.cmd
	if _, ok := parseUID(c.ID); !ok {
		return invalid("command id %q is not a UUIDv7", c.ID)
	}
	if c.Now <= 0 || c.Now > maxNow {
		return invalid("command time %d is out of range", c.Now)
	}
	if c.Idem != nil {
		if c.Idem.Key == "" || len(c.Idem.Key) > maxIdemKey {
			return invalid("an idempotency key has 1 to %d bytes", maxIdemKey)
		}
		if err := checkHash("the body hash", c.Idem.BodyHash); err != nil {
			return err
		}
	}
	return checkTrace(c.Trace)
}

// begin reads the state that every command needs and says who is asking.
func (t *turn) begin() error {
	t.now = Millis(t.cmd.Now)
	t.object = t.cmd.Body.target()
	m, ok, err := t.state().found()
	if err != nil {
		return err
	}
	if t.cmd.Kind == KindBootstrap {
		if ok {
			return conflict("the cluster has been bootstrapped already")
		}
		return t.clusterOnly()
	}
	if !ok {
		return notFound("the cluster has not been bootstrapped")
	}
	t.m = m
	t.now = max(t.now, m.LastNow)
	if t.cmd.V > m.version() {
		return notSpoken(t.cmd.V)
	}
	if !t.has(key(prefixNode, t.cmd.Node)) && !t.introduces() {
		return denied("node %q is not a member of the cluster", t.cmd.Node)
	}
	switch t.cmd.Kind { //nolint:exhaustive // all others are somebody's
	case KindTick, KindRaiseVersion, KindBeginEpoch, KindAnchorAccess, KindSettleOutbox, KindEscalateRequest, KindSetDuty:
		return t.clusterOnly()
	case KindAdoptManifest, KindRemoveNode:
		if t.cmd.Actor == "" {
			return nil
		}
	}
	return t.identify()
}

// introduces reports whether a node that is not known brings a manifest, in nobody's
// name. A snapshot that is restored may be older than the nodes that are left; what
// makes one of them known is that a root has signed it: see adoptManifest.
func (t *turn) introduces() bool {
	return t.cmd.Kind == KindAdoptManifest && t.cmd.Actor == "" && t.cmd.V >= 2
}

// clusterOnly refuses persons what only the cluster does of itself.
func (t *turn) clusterOnly() error {
	if t.cmd.Actor != "" {
		return denied("%s is a command of the cluster, not of %s", t.cmd.Kind, t.cmd.Actor)
	}
	return nil
}

func (t *turn) identify() error {
	if t.cmd.Actor == "" {
		return denied("%s needs someone who asks", t.cmd.Kind)
	}
	id, err := parseID("the actor", t.cmd.Actor)
	if err != nil {
		return err
	}
	if id.TrustDomain().Name() == t.m.GrantTrustDomain {
		// A stolen grant certificate would otherwise approve, renew and revoke.
		return denied("%s is a grant, and a grant is not an identity", id)
	}
	t.actor = id
	t.person = t.state().personOf(id)
	t.admin = t.person != "" && t.state().isMember(t.person, AdminGroup)
	return nil
}

func (t *turn) perform() (Object, error) {
	switch b := t.cmd.Body.(type) {
	case Bootstrap:
		return t.bootstrap(b)
	case CreateRequest:
		return t.createRequest(b)
	case DecideRequest:
		return t.decideRequest(b)
	case CancelRequest:
		return t.cancelRequest(b)
	case Tick:
		return t.tick(b)
	case IssueGrant:
		return t.issueGrant(b)
	case RevokeGrant:
		return t.revokeGrant(b)
	case ReturnGrant:
		return t.returnGrant(b)
	case IssueIdentity:
		return t.issueIdentity(b)
	case BlockSubject:
		return t.blockSubject(b)
	case DenyIssuer:
		return t.denyIssuer(b)
	case InstallIssuer:
		return t.installIssuer(b)
	case SetRoots:
		return t.setRoots(b)
	case AdoptManifest:
		return t.adoptManifest(b)
	case JoinNode:
		return t.aboutMember(b.Node)
	case PromoteNode:
		return t.aboutMember(b.Node)
	case RemoveNode:
		return t.removeNode(b)
	case HandOver:
		return t.aboutMember(b.Node)
	case RaiseVersion:
		return t.raiseVersion(b)
	case BeginEpoch:
		return t.beginEpoch(b)
	case ProposeChange:
		return t.proposeChange(b)
	case DecideChange:
		return t.decideChange(b)
	case CancelChange:
		return t.cancelChange(b)
	case RegisterEmergency:
		return t.registerEmergency(b)
	case ImportEmergency:
		return t.importEmergency(b)
	case RevokeEmergency:
		return t.revokeEmergency(b)
	case AnchorAccess:
		return t.anchorAccess(b)
	case EscalateRequest:
		return t.escalateRequest(b)
	case SetDuty:
		return t.setDuty(b)
	case NameStandIn:
		return t.nameStandIn(b)
	case EndStandIn:
		return t.endStandIn(b)
	case CloseReview:
		return t.closeReview(b)
	case SettleOutbox:
		return t.settleOutbox(b)
	case ReplayOutbox:
		return t.replayOutbox(b)
	case ForgetOutbox:
		return t.forgetOutbox(b)
	}
	return nil, invalid("unknown kind %q", t.cmd.Kind)
}

// finish closes the books on an accepted change: counters, audit leaf, kept
// result.
func (t *turn) finish(result *Result) error {
	t.m.LastNow = t.now
	t.m.Changes++
	if t.feedChanged {
		t.m.FeedRevision++
	}
	if err := t.appendLeaf(); err != nil {
		return err
	}
	if c, ok := result.Object.(Cluster); ok {
		c.AuditSize, c.LastNow = t.m.AuditSize, t.now
		result.Object = c
	}
	t.pruneKept(maxIdemPrune)
	if _, err := t.pruneIssues(maxIssuePrune); err != nil {
		return err
	}
	if err := t.keepResult(*result); err != nil {
		return err
	}
	t.saveMeta()
	return nil
}

// saveMeta writes the counters, and remembers how they read: as they are, since
// all text in them came in commands that were decoded.
func (t *turn) saveMeta() {
	t.save([]byte(keyMeta), t.m)
	if data := t.writes[keyMeta]; data != nil {
		t.memory.meta.Store(&remembered[meta]{data: data, read: t.m})
	}
}
