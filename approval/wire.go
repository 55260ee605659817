package approval

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/fxamacker/cbor/v2"
)

// The encoding is deterministic CBOR (RFC 8949 §4.2.1) with integer keys.
// Decoding is strict, and whatever does not encode again to the very same bytes
// is refused: one command has one spelling.
//
//nolint:gochecknoglobals // made once, never changed
var (
	encoder = encoderMode()
	decoder = decoderMode()
)

func encoderMode() cbor.EncMode {
	o := cbor.CoreDetEncOptions()
	o.NilContainers = cbor.NilContainerAsEmpty
	m, err := o.EncMode()
	if err != nil {
		panic("approval: encoder options: " + err.Error())
	}
	return m
}

func decoderMode() cbor.DecMode {
	m, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
		MaxNestedLevels:   16,
		MaxArrayElements:  1 << 16,
		MaxMapPairs:       1 << 12,
	}.DecMode()
	if err != nil {
		panic("approval: decoder options: " + err.Error())
	}
	return m
}

// envelope is a command on the wire.
type envelope struct {
	V     int             `cbor:"1,keyasint"`
	ID    string          `cbor:"2,keyasint"`
	Kind  Kind            `cbor:"3,keyasint"`
	Now   int64           `cbor:"4,keyasint"`
	Node  string          `cbor:"5,keyasint"`
	Actor string          `cbor:"6,keyasint"`
	Trace string          `cbor:"7,keyasint"`
	Idem  *Idem           `cbor:"8,keyasint"`
	Body  cbor.RawMessage `cbor:"9,keyasint"`
}

// Encode returns the command's one encoding.
func (c Command) Encode() ([]byte, error) {
	if c.Body == nil {
		return nil, fmt.Errorf("approval: encode command: %w: no body", ErrInvalid)
	}
	if c.V == 0 {
		c.V = Version
	}
	if c.Kind == "" {
		c.Kind = c.Body.kind()
	}
	if c.V < 1 || c.V > Next || c.Kind != c.Body.kind() {
		return nil, fmt.Errorf("approval: encode command: %w: version %d, kind %q with a body of kind %q", ErrInvalid, c.V, c.Kind, c.Body.kind())
	}
	body, err := encoder.Marshal(c.Body)
	if err != nil {
		return nil, fmt.Errorf("approval: encode command: %w", err)
	}
	data, err := encoder.Marshal(envelope{c.V, c.ID, c.Kind, c.Now, c.Node, c.Actor, c.Trace, c.Idem, body})
	if err != nil {
		return nil, fmt.Errorf("approval: encode command: %w", err)
	}
	if len(data) > MaxCommandBytes {
		return nil, fmt.Errorf("approval: encode command: %w: %d bytes, at most %d", ErrLimit, len(data), MaxCommandBytes)
	}
	return data, nil
}

// DecodeCommand reads what Encode wrote, of the versions that this code knows, and
// refuses everything else.
func DecodeCommand(data []byte) (Command, error) { return decodeCommand(data, Version) }

func decodeCommand(data []byte, speaks int) (Command, error) {
	if len(data) > MaxCommandBytes {
		return Command{}, fmt.Errorf("approval: decode command: %w: %d bytes, at most %d", ErrInvalid, len(data), MaxCommandBytes)
	}
	var e envelope
	if err := decoder.Unmarshal(data, &e); err != nil {
		return Command{}, fmt.Errorf("approval: decode command: %w: %w", ErrInvalid, err)
	}
	if e.V < 1 || e.V > speaks {
		return Command{}, notSpoken(e.V)
	}
	if e.V < e.Kind.since() {
		// A node that knows earlier versions alone refuses it too.
		return Command{}, notSpoken(e.V)
	}
	body, err := decodeBody(e.Kind, e.Body)
	if err != nil {
		return Command{}, fmt.Errorf("approval: decode command: %w: %w", ErrInvalid, err)
	}
	if e.V < needs(body) {
		return Command{}, notSpoken(e.V)
	}
	c := Command{e.V, e.ID, e.Kind, e.Now, e.Node, e.Actor, e.Trace, e.Idem, body}
	again, err := c.Encode()
	if err != nil {
		return Command{}, err
	}
	if !bytes.Equal(again, data) {
		return Command{}, fmt.Errorf("approval: decode command: %w: not the canonical encoding", ErrInvalid)
	}
	return c, nil
}

// notSpoken refuses a version: in the same words where the code does not know it
// and where the cluster has not agreed on it, so that all nodes come to the same.
func notSpoken(version int) error {
	return fmt.Errorf("approval: %w: the cluster does not speak version %d of commands", ErrInvalid, version)
}

// needs is the version of commands that brought what a body says, beyond that of
// its kind.
func needs(body Body) int {
	switch b := body.(type) {
	case CreateRequest:
		if b.BreakGlass || b.Delegable || b.Extends != "" || b.Parent != "" || len(b.Bundles) > 0 {
			return 4
		}
		if len(b.Answers) > 0 {
			return 3
		}
	case DecideRequest:
		if b.Slack != "" {
			return 4
		}
		if len(b.Answers)+len(b.Narrowed) > 0 {
			return 3
		}
	case Bootstrap:
		if slices.ContainsFunc(b.Persons, func(p Person) bool { return p.Slack != "" }) || slices.ContainsFunc(b.Groups, func(g Group) bool { return g.OnCall != nil }) {
			return 4
		}
		if slices.ContainsFunc(b.Groups, func(g Group) bool { return len(g.Substitutes) > 0 }) {
			return 4
		}
	case ProposeChange:
		if p := b.Edit.Person; p != nil && p.Slack != "" {
			return 4
		}
		if g := b.Edit.Group; g != nil && (g.OnCall != nil || len(g.Substitutes) > 0) {
			return 4
		}
	}
	return 1
}

func decodeBody(kind Kind, data []byte) (Body, error) {
	switch kind {
	case KindBootstrap:
		return decodeAs[Bootstrap](data)
	case KindCreateRequest:
		return decodeAs[CreateRequest](data)
	case KindDecideRequest:
		return decodeAs[DecideRequest](data)
	case KindCancelRequest:
		return decodeAs[CancelRequest](data)
	case KindTick:
		return decodeAs[Tick](data)
	case KindIssueGrant:
		return decodeAs[IssueGrant](data)
	case KindRevokeGrant:
		return decodeAs[RevokeGrant](data)
	case KindReturnGrant:
		return decodeAs[ReturnGrant](data)
	case KindIssueIdentity:
		return decodeAs[IssueIdentity](data)
	case KindBlockSubject:
		return decodeAs[BlockSubject](data)
	case KindDenyIssuer:
		return decodeAs[DenyIssuer](data)
	case KindInstallIssuer:
		return decodeAs[InstallIssuer](data)
	case KindSetRoots:
		return decodeAs[SetRoots](data)
	case KindAdoptManifest:
		return decodeAs[AdoptManifest](data)
	case KindJoinNode:
		return decodeAs[JoinNode](data)
	case KindPromoteNode:
		return decodeAs[PromoteNode](data)
	case KindRemoveNode:
		return decodeAs[RemoveNode](data)
	case KindHandOver:
		return decodeAs[HandOver](data)
	case KindRaiseVersion:
		return decodeAs[RaiseVersion](data)
	case KindBeginEpoch:
		return decodeAs[BeginEpoch](data)
	case KindProposeChange:
		return decodeAs[ProposeChange](data)
	case KindDecideChange:
		return decodeAs[DecideChange](data)
	case KindCancelChange:
		return decodeAs[CancelChange](data)
	case KindRegisterEmergency:
		return decodeAs[RegisterEmergency](data)
	case KindImportEmergency:
		return decodeAs[ImportEmergency](data)
	case KindRevokeEmergency:
		return decodeAs[RevokeEmergency](data)
	case KindAnchorAccess:
		return decodeAs[AnchorAccess](data)
	case KindEscalateRequest:
		return decodeAs[EscalateRequest](data)
	case KindSetDuty:
		return decodeAs[SetDuty](data)
	case KindNameStandIn:
		return decodeAs[NameStandIn](data)
	case KindEndStandIn:
		return decodeAs[EndStandIn](data)
	case KindCloseReview:
		return decodeAs[CloseReview](data)
	case KindSettleOutbox:
		return decodeAs[SettleOutbox](data)
	case KindReplayOutbox:
		return decodeAs[ReplayOutbox](data)
	case KindForgetOutbox:
		return decodeAs[ForgetOutbox](data)
	}
	return nil, fmt.Errorf("unknown kind %q", kind)
}

func decodeAs[T Body](data []byte) (Body, error) {
	var b T
	if err := decoder.Unmarshal(data, &b); err != nil {
		return nil, err
	}
	return b, nil
}

// resultWire is a Result on the wire.
type resultWire struct {
	Index    uint64          `cbor:"1,keyasint"`
	Err      *Error          `cbor:"2,keyasint"`
	Kind     string          `cbor:"3,keyasint"`
	Object   cbor.RawMessage `cbor:"4,keyasint"`
	Changed  bool            `cbor:"5,keyasint"`
	Replayed bool            `cbor:"6,keyasint"`
}

// Encode returns the result for the replicated log's caller.
func (r Result) Encode() ([]byte, error) {
	w := resultWire{Index: r.Index, Err: r.Err, Changed: r.Changed, Replayed: r.Replayed, Object: cbor.RawMessage{0xf6}}
	if r.Object != nil {
		w.Kind = r.Object.objectKind()
		object, err := encoder.Marshal(r.Object)
		if err != nil {
			return nil, fmt.Errorf("approval: encode result: %w", err)
		}
		w.Object = object
	}
	data, err := encoder.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("approval: encode result: %w", err)
	}
	return data, nil
}

// DecodeResult reads what Result.Encode wrote.
func DecodeResult(data []byte) (Result, error) {
	var w resultWire
	if err := decoder.Unmarshal(data, &w); err != nil {
		return Result{}, fmt.Errorf("approval: decode result: %w", err)
	}
	object, err := decodeObject(w.Kind, w.Object)
	if err != nil {
		return Result{}, fmt.Errorf("approval: decode result: %w", err)
	}
	return Result{Index: w.Index, Err: w.Err, Object: object, Changed: w.Changed, Replayed: w.Replayed}, nil
}

func decodeObject(kind string, data []byte) (Object, error) {
	switch kind {
	case "":
		return nil, nil //nolint:nilnil // a refusal has no object
	case "request":
		return objectAs[Request](data)
	case "grant":
		return objectAs[Grant](data)
	case "change":
		return objectAs[Change](data)
	case "issue":
		return objectAs[Issue](data)
	case "block":
		return objectAs[Block](data)
	case "issuer":
		return objectAs[Issuer](data)
	case "installed":
		return objectAs[Installed](data)
	case "roots":
		return objectAs[Roots](data)
	case "node":
		return objectAs[Node](data)
	case "cluster":
		return objectAs[Cluster](data)
	case "ticked":
		return objectAs[Ticked](data)
	case "emergency journal":
		return objectAs[EmergencyJournal](data)
	case "emergency revocation":
		return objectAs[EmergencyRevocation](data)
	case "anchored":
		return objectAs[Anchored](data)
	case "duty":
		return objectAs[Duty](data)
	case "stand-in":
		return objectAs[StandIn](data)
	case "outbox target":
		return objectAs[Target](data)
	}
	return nil, fmt.Errorf("unknown object kind %q", kind)
}

func objectAs[T Object](data []byte) (Object, error) {
	var o T
	if err := decoder.Unmarshal(data, &o); err != nil {
		return nil, err
	}
	return o, nil
}
