package approval

// Version is the newest version of commands that this code knows. A command of a
// version is accepted once the cluster has agreed on it, which every member must
// know before: see RaiseVersion. What a version means never changes afterwards.
const Version = 4

// Next is the version after Version: there is none yet, and Machine.Speaks takes
// it so that agreeing on it can be rehearsed.
const Next = Version + 1

// MaxCommandBytes is how long an encoded command may be.
const MaxCommandBytes = 1 << 20

// Kind names what a command does. Each kind has one body type.
type Kind string

// The kinds.
const (
	KindBootstrap     Kind = "bootstrap"
	KindCreateRequest Kind = "request.create"
	KindDecideRequest Kind = "request.decide"
	KindCancelRequest Kind = "request.cancel"
	KindTick          Kind = "tick"
	KindIssueGrant    Kind = "grant.issue"
	KindRevokeGrant   Kind = "grant.revoke"
	KindReturnGrant   Kind = "grant.return"
	KindIssueIdentity Kind = "identity.issue"
	KindBlockSubject  Kind = "subject.block"
	KindDenyIssuer    Kind = "issuer.deny"
	KindInstallIssuer Kind = "issuer.install"
	KindSetRoots      Kind = "roots.set"
	KindAdoptManifest Kind = "manifest.adopt"
	KindJoinNode      Kind = "node.join"
	KindPromoteNode   Kind = "node.promote"
	KindRemoveNode    Kind = "node.remove"
	KindHandOver      Kind = "leader.transfer"
	KindRaiseVersion  Kind = "version.raise"
	KindBeginEpoch    Kind = "epoch.begin" // since version 2
	KindProposeChange Kind = "change.propose"
	KindDecideChange  Kind = "change.decide"
	KindCancelChange  Kind = "change.cancel"

	// Since version 2.
	KindRegisterEmergency Kind = "emergency.register"
	KindImportEmergency   Kind = "emergency.import"
	KindRevokeEmergency   Kind = "emergency.revoke"

	// Since version 3.
	KindAnchorAccess Kind = "access.anchor"

	// Since version 4.
	KindEscalateRequest Kind = "request.escalate"
	KindSetDuty         Kind = "group.duty"
	KindNameStandIn     Kind = "group.stand_in"
	KindEndStandIn      Kind = "group.stand_in.end"

	KindCloseReview  Kind = "review.close"
	KindSettleOutbox Kind = "outbox.settle"
	KindReplayOutbox Kind = "outbox.replay"
	KindForgetOutbox Kind = "outbox.forget"
)

// since is the version of commands that brought a kind.
func (k Kind) since() int {
	switch k { //nolint:exhaustive // all others were there from the first on
	case KindBeginEpoch, KindRegisterEmergency, KindImportEmergency, KindRevokeEmergency:
		return 2
	case KindAnchorAccess:
		return 3
	case KindNameStandIn, KindEndStandIn:
		return 4
	case KindCloseReview, KindSettleOutbox, KindReplayOutbox, KindForgetOutbox, KindEscalateRequest, KindSetDuty:
		return 4
	}
	return 1
}

// Command is one entry of the replicated log. Time, ids and whatever else a
// node may not make up while applying arrive in it.
type Command struct {
	V     int    // what the cluster has agreed on; Encode makes Version of 0
	ID    string // UUIDv7, made by the proposing node
	Kind  Kind   // Encode fills in "" from the body
	Now   int64  // the proposing node's clock, unix ms
	Node  string // the node that verified the actor
	Actor string // SPIFFE ID of who asks; "" is the cluster itself
	Trace string // W3C traceparent, or ""
	Idem  *Idem  // nil: not idempotent
	Body  Body
}

// Idem is a caller's Idempotency-Key. BodyHash MUST cover the method, the path
// and the body of the call.
type Idem struct {
	Key      string `cbor:"1,keyasint"`
	BodyHash string `cbor:"2,keyasint"`
}

// Body is the part of a command that is its kind's own: one of the structs of
// this package, passed by value.
type Body interface {
	kind() Kind
	// target is the object that the command is about, "" for one that makes it.
	target() string
}

// Bootstrap makes the cluster: the members, the issuers, the first persons,
// groups and policy. It is accepted once, before anything else, and names at
// least MinAdmins admins.
type Bootstrap struct {
	Cluster          string          `cbor:"1,keyasint"`
	TrustDomain      string          `cbor:"2,keyasint"`
	GrantTrustDomain string          `cbor:"3,keyasint"`
	Nodes            []BootstrapNode `cbor:"4,keyasint"`
	Persons          []Person        `cbor:"5,keyasint"`
	Groups           []Group         `cbor:"6,keyasint"`
	Policy           string          `cbor:"7,keyasint"`
	IdentityRoots    [][]byte        `cbor:"8,keyasint"`  // DER
	GrantRoots       [][]byte        `cbor:"9,keyasint"`  // DER
	Manifest         uint64          `cbor:"10,keyasint"` // sequence number of the manifest that all this is from
	RootDocuments    [][]byte        `cbor:"11,keyasint"` // of both trust domains, in force already
}

// BootstrapNode is one first member of the cluster. The issuers are DER.
type BootstrapNode struct {
	ID             string `cbor:"1,keyasint"`
	Key            []byte `cbor:"2,keyasint"`
	AuditKey       string `cbor:"3,keyasint"`
	RaftAddress    string `cbor:"4,keyasint"`
	APIAddress     string `cbor:"5,keyasint"`
	IdentityIssuer []byte `cbor:"6,keyasint"`
	GrantIssuer    []byte `cbor:"7,keyasint"`
}

// CreateRequest asks for access; the actor is the requester. The id becomes the
// grant's.
type CreateRequest struct {
	ID                string   `cbor:"1,keyasint"` // UUIDv7
	Subject           string   `cbor:"2,keyasint"`
	Service           string   `cbor:"3,keyasint"`
	Permissions       []string `cbor:"4,keyasint"` // grant.Scope.Texts: canonical
	Reason            string   `cbor:"5,keyasint"`
	Start             int64    `cbor:"6,keyasint"` // unix ms; 0: when approved
	Duration          int64    `cbor:"7,keyasint"` // ms
	CSRKey            string   `cbor:"8,keyasint"` // hex SHA-256 of the SPKI, or ""
	PolicyRevision    uint64   `cbor:"9,keyasint"`
	DirectoryRevision uint64   `cbor:"10,keyasint"`
	Answers           []Answer `cbor:"11,keyasint,omitempty"` // since version 3
	BreakGlass        bool     `cbor:"12,keyasint,omitempty"` // do without approval; since version 4
	Extends           string   `cbor:"13,keyasint,omitempty"` // a grant, for Duration longer; since version 4
	Delegable         bool     `cbor:"14,keyasint,omitempty"` // so that its subject makes others of it; since version 4
	Parent            string   `cbor:"15,keyasint,omitempty"` // the grant that it is made of; since version 4
	Bundles           []string `cbor:"20,keyasint,omitempty"` // names that permissions were asked for by, ascending; since version 4
}

// Answer is what a condition of the policy came to, on the node that proposes. A
// command has one for each that matters to it, in the policy's order.
type Answer struct {
	Rule  string `cbor:"1,keyasint"`
	Holds bool   `cbor:"2,keyasint"`
}

// DecideRequest is one person's approve or deny. Narrowed permissions (nil: as
// they are) and duration (0: as it is) make a new revision of the request.
type DecideRequest struct {
	Request           string   `cbor:"1,keyasint"`
	Hash              string   `cbor:"2,keyasint"` // of the revision that was shown
	Verdict           Verdict  `cbor:"3,keyasint"`
	Comment           string   `cbor:"4,keyasint"`
	Permissions       []string `cbor:"5,keyasint"`
	Duration          int64    `cbor:"6,keyasint"` // ms
	PolicyRevision    uint64   `cbor:"7,keyasint"`
	DirectoryRevision uint64   `cbor:"8,keyasint"`
	Answers           []Answer `cbor:"9,keyasint,omitempty"`  // about the request as it is; since version 3
	Narrowed          []Answer `cbor:"10,keyasint,omitempty"` // about it as narrowed; since version 3
	Slack             string   `cbor:"11,keyasint,omitempty"` // account whose button it was: the actor is the bridge; since version 4
}

// CancelRequest withdraws a pending request.
type CancelRequest struct {
	Request string `cbor:"1,keyasint"`
}

// CloseReview says what a person found of a glass that was broken.
type CloseReview struct {
	Request string `cbor:"1,keyasint"`
	Finding string `cbor:"2,keyasint"`
}

// Tick expires what is due, and forgets what ended longer ago than it says. The
// actor is the cluster.
type Tick struct {
	RetainMS int64 `cbor:"1,keyasint"` // from MinRetention to MaxRetention
}

// IssueGrant records a grant certificate before it is signed. The actor is the
// grant's subject.
type IssueGrant struct {
	Grant     string `cbor:"1,keyasint"`
	Serial    string `cbor:"2,keyasint"` // lower-case hex
	TBSHash   string `cbor:"3,keyasint"` // hex SHA-256
	Issuer    string `cbor:"4,keyasint"` // hex SHA-256 of the issuer's DER
	NotBefore int64  `cbor:"5,keyasint"` // unix ms
	NotAfter  int64  `cbor:"6,keyasint"` // unix ms
	Key       string `cbor:"7,keyasint"` // hex SHA-256 of the SPKI
	CSRBy     string `cbor:"8,keyasint"` // SPIFFE ID of who gave the CSR
}

// RevokeGrant ends a grant.
type RevokeGrant struct {
	Grant  string `cbor:"1,keyasint"`
	Reason string `cbor:"2,keyasint"`
}

// ReturnGrant ends a grant that its subject no longer needs.
type ReturnGrant struct {
	Grant string `cbor:"1,keyasint"`
}

// IssueIdentity records an identity certificate before it is signed. The actor
// is an admin.
type IssueIdentity struct {
	Serial    string `cbor:"1,keyasint"`
	TBSHash   string `cbor:"2,keyasint"`
	Issuer    string `cbor:"3,keyasint"`
	SPIFFEID  string `cbor:"4,keyasint"`
	NotBefore int64  `cbor:"5,keyasint"` // unix ms
	NotAfter  int64  `cbor:"6,keyasint"` // unix ms
	Key       string `cbor:"7,keyasint"`
}

// BlockSubject ends all grants of a subject and lets none be made.
type BlockSubject struct {
	Subject string `cbor:"1,keyasint"`
	Reason  string `cbor:"2,keyasint"`
}

// DenyIssuer takes an issuer's certificates out of use, for good.
type DenyIssuer struct {
	Issuer string `cbor:"1,keyasint"`
	Reason string `cbor:"2,keyasint"`
}

// InstallIssuer gives a member the successors of its issuers and of its API
// certificate, DER, each signed by a root in force; an empty one stays as it is.
// The actor is an admin, a service or a node: what makes it good is the root's
// signature.
type InstallIssuer struct {
	Node           string `cbor:"1,keyasint"`
	IdentityIssuer []byte `cbor:"2,keyasint"`
	GrantIssuer    []byte `cbor:"3,keyasint"`
	APICertificate []byte `cbor:"4,keyasint"`
}

// SetRoots puts a roots document in force. The actor is an admin; what makes it
// good is the signature of a root in force.
type SetRoots struct {
	Document []byte `cbor:"1,keyasint"` // one line, see trust.Parse
}

// AdoptManifest makes the nodes of a newer manifest known. The actor is an admin,
// or the cluster where a node was started with it; what makes it good is the
// signature of an identity root in force.
type AdoptManifest struct {
	Statement []byte `cbor:"1,keyasint"` // ca.Manifest.Statement: what the root signed
	Signature []byte `cbor:"2,keyasint"`
}

// JoinNode has a known node be sent the log, without a vote. This and the next
// ones record who asked for it; the membership itself is the replicated log's.
type JoinNode struct {
	Node string `cbor:"1,keyasint"`
}

// PromoteNode gives a node that was sent the log a vote.
type PromoteNode struct {
	Node string `cbor:"1,keyasint"`
}

// RemoveNode makes a node unknown and denies its issuers. The actor is an admin,
// or the cluster, which may be told to remove nodes that were not heard for long.
// Retired says that the node's keys were destroyed: what they signed stays good.
type RemoveNode struct {
	Node    string `cbor:"1,keyasint"`
	Reason  string `cbor:"2,keyasint"`
	Retired bool   `cbor:"3,keyasint"`
}

// HandOver has another node lead.
type HandOver struct {
	Node string `cbor:"1,keyasint"`
}

// RaiseVersion has the cluster speak the next version of commands. The actor is
// the cluster.
type RaiseVersion struct {
	Version int `cbor:"1,keyasint"`
}

// BeginEpoch ends what an earlier history of the cluster granted: it is the first
// command after a restore from a snapshot, or after a lost quorum was given up. The
// actor is the cluster.
type BeginEpoch struct {
	Began   int64  `cbor:"1,keyasint"` // unix ms, later than any id that the history before may have made
	Lineage string `cbor:"2,keyasint"` // of the replicated log that begins; hex, 16 to 64 digits
	Reason  string `cbor:"3,keyasint"`
}

// ProposeChange asks for a change of policy, groups, persons or blocks.
// BaseRevision is the policy revision for policy.set, otherwise the directory
// revision; subject.unblock goes by the block itself and ignores it.
type ProposeChange struct {
	ID           string `cbor:"1,keyasint"` // UUIDv7
	Edit         Edit   `cbor:"2,keyasint"`
	BaseRevision uint64 `cbor:"3,keyasint"`
}

// DecideChange is one admin's approve or deny of a change.
type DecideChange struct {
	Change  string  `cbor:"1,keyasint"`
	Hash    string  `cbor:"2,keyasint"`
	Verdict Verdict `cbor:"3,keyasint"`
	Comment string  `cbor:"4,keyasint"`
}

// CancelChange withdraws a pending change.
type CancelChange struct {
	Change string `cbor:"1,keyasint"`
}

// RegisterEmergency makes an emergency issuer known. The actor is an admin; what
// makes it good is the signature of a grants root in force.
type RegisterEmergency struct {
	Issuer []byte `cbor:"1,keyasint"` // DER
}

// ImportEmergency brings a record of an emergency issuer's journal, each after the
// one before. The actor is an admin; what makes it good is the issuer's signature.
type ImportEmergency struct {
	Record []byte `cbor:"1,keyasint"` // one line, see emergency.ParseRecord
}

// RevokeEmergency ends an emergency grant whose record was not imported yet.
type RevokeEmergency struct {
	Grant  string `cbor:"1,keyasint"`
	Reason string `cbor:"2,keyasint"`
}

// AnchorAccess writes down the heads of proxies' access logs, and what the proxies
// let through. The actor is the cluster: a node puts together what proxies told it
// in a second, each with the identity that it proved.
type AnchorAccess struct {
	Heads    []AnchoredHead  `cbor:"1,keyasint"`
	Settings []ProxySettings `cbor:"2,keyasint"`
}

// AnchoredHead is the head of one access log.
type AnchoredHead struct {
	By   string `json:"by" cbor:"1,keyasint"`  // SPIFFE ID of the service whose proxy writes it
	Log  string `json:"log" cbor:"2,keyasint"` // its name: 32 hex digits
	Size int64  `json:"size" cbor:"3,keyasint"`
	Root string `json:"root" cbor:"4,keyasint"` // hex SHA-256, RFC 6962
	Sent Millis `json:"sent" cbor:"5,keyasint"` // by the proxy's clock, later each time
}

// ProxySettings is what a proxy lets through besides grants.
type ProxySettings struct {
	By     string   `json:"by" cbor:"1,keyasint"`
	Log    string   `json:"log" cbor:"2,keyasint"` // that it wrote when they came into force: which proxy
	SHA256 string   `json:"sha256" cbor:"3,keyasint"`
	Mode   string   `json:"mode" cbor:"4,keyasint"` // enforce or observe
	Until  Millis   `json:"until,omitempty" cbor:"5,keyasint"`
	Open   []string `json:"open" cbor:"6,keyasint"` // observed permissions and standing rules, one a line
	Sent   Millis   `json:"sent" cbor:"7,keyasint"`
}

func (RegisterEmergency) kind() Kind { return KindRegisterEmergency }
func (ImportEmergency) kind() Kind   { return KindImportEmergency }
func (RevokeEmergency) kind() Kind   { return KindRevokeEmergency }

func (RegisterEmergency) target() string { return "" }
func (ImportEmergency) target() string   { return "" }
func (b RevokeEmergency) target() string { return b.Grant }

func (AnchorAccess) kind() Kind     { return KindAnchorAccess }
func (AnchorAccess) target() string { return "" }

func (CloseReview) kind() Kind       { return KindCloseReview }
func (b CloseReview) target() string { return b.Request }

func (Bootstrap) kind() Kind     { return KindBootstrap }
func (CreateRequest) kind() Kind { return KindCreateRequest }
func (DecideRequest) kind() Kind { return KindDecideRequest }
func (CancelRequest) kind() Kind { return KindCancelRequest }
func (Tick) kind() Kind          { return KindTick }
func (IssueGrant) kind() Kind    { return KindIssueGrant }
func (RevokeGrant) kind() Kind   { return KindRevokeGrant }
func (ReturnGrant) kind() Kind   { return KindReturnGrant }
func (IssueIdentity) kind() Kind { return KindIssueIdentity }
func (BlockSubject) kind() Kind  { return KindBlockSubject }
func (DenyIssuer) kind() Kind    { return KindDenyIssuer }
func (InstallIssuer) kind() Kind { return KindInstallIssuer }
func (SetRoots) kind() Kind      { return KindSetRoots }
func (AdoptManifest) kind() Kind { return KindAdoptManifest }
func (JoinNode) kind() Kind      { return KindJoinNode }
func (PromoteNode) kind() Kind   { return KindPromoteNode }
func (RemoveNode) kind() Kind    { return KindRemoveNode }
func (HandOver) kind() Kind      { return KindHandOver }
func (RaiseVersion) kind() Kind  { return KindRaiseVersion }
func (BeginEpoch) kind() Kind    { return KindBeginEpoch }
func (ProposeChange) kind() Kind { return KindProposeChange }
func (DecideChange) kind() Kind  { return KindDecideChange }
func (CancelChange) kind() Kind  { return KindCancelChange }

func (b Bootstrap) target() string     { return b.Cluster }
func (CreateRequest) target() string   { return "" }
func (b DecideRequest) target() string { return b.Request }
func (b CancelRequest) target() string { return b.Request }
func (Tick) target() string            { return "" }
func (b IssueGrant) target() string    { return b.Grant }
func (b RevokeGrant) target() string   { return b.Grant }
func (b ReturnGrant) target() string   { return b.Grant }
func (b IssueIdentity) target() string { return b.SPIFFEID }
func (b BlockSubject) target() string  { return b.Subject }
func (b DenyIssuer) target() string    { return b.Issuer }
func (b InstallIssuer) target() string { return b.Node }
func (SetRoots) target() string        { return "" }
func (AdoptManifest) target() string   { return "" }
func (b JoinNode) target() string      { return b.Node }
func (b PromoteNode) target() string   { return b.Node }
func (b RemoveNode) target() string    { return b.Node }
func (b HandOver) target() string      { return b.Node }
func (RaiseVersion) target() string    { return "" }
func (BeginEpoch) target() string      { return "" }
func (ProposeChange) target() string   { return "" }
func (b DecideChange) target() string  { return b.Change }
func (b CancelChange) target() string  { return b.Change }
