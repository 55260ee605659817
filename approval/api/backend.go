package api

import (
	"context"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Caller is whose certificate opened the connection. The zero Caller is nobody.
type Caller struct {
	ID       spiffeid.ID
	NotAfter time.Time // end of the certificate that was proven
}

// IsZero reports whether there is no caller.
func (c Caller) IsZero() bool { return c.ID.IsZero() }

// Call is what a Backend is told about a call besides its input.
type Call struct {
	Caller Caller
	// Key and BodyHash are a POST's Idempotency-Key ("" for none) and the hex
	// SHA-256 of its method, path and body.
	Key, BodyHash string
	// Stale asks for the node's own state; without it a read is linearizable.
	Stale bool
}

// Wait makes a read block: until the object has changed after Index, or For is
// over, whichever comes first. The zero Wait does not block.
type Wait struct {
	Index uint64
	For   time.Duration
}

// Backend is what the API stands on. Every method MUST authorize call.Caller
// itself, and MUST answer ErrNotFound for what the caller may not see. A method
// that writes MUST be idempotent under (call.Caller, call.Key) and refuse a key
// that it knows with another BodyHash. Errors are *Problem, *approval.Error, or
// internal: the text of the last never reaches the caller.
type Backend interface {
	RequestBackend
	LifeBackend
	CatalogueBackend
	GrantBackend
	ChangeBackend
	DirectoryBackend
	StandInBackend
	TrustBackend
	MemberBackend
	EmergencyBackend
	NotifyBackend
	AuditBackend
	BackupBackend
	StreamBackend
}

// RequestBackend serves /v1/requests.
type RequestBackend interface {
	DryRun(ctx context.Context, call Call, in RequestInput) (DryRun, error)
	CreateRequest(ctx context.Context, call Call, in RequestInput) (Request, error)
	// Request also returns the index of the request's last change, or its grant's.
	Request(ctx context.Context, call Call, id string, wait Wait) (Request, uint64, error)
	Requests(ctx context.Context, call Call, f Filter) (RequestList, error)
	DecideRequest(ctx context.Context, call Call, id string, in DecisionInput) (Request, error)
	CancelRequest(ctx context.Context, call Call, id string) (Request, error)
}

// GrantBackend serves /v1/grants and /v1/identities.
type GrantBackend interface {
	Grant(ctx context.Context, call Call, id string) (Grant, error)
	Grants(ctx context.Context, call Call, f Filter) (GrantList, error)
	// GrantCertificate MUST return only what was committed before it was signed.
	GrantCertificate(ctx context.Context, call Call, id string, in CertificateInput) (Certificate, error)
	RevokeGrant(ctx context.Context, call Call, id string, in RevokeInput) (Grant, error)
	IssueIdentity(ctx context.Context, call Call, in IdentityInput) (Certificate, error)
	BlockSubject(ctx context.Context, call Call, in BlockInput) (Block, error)
	DenyIssuer(ctx context.Context, call Call, id string, in ReasonInput) (Issuer, error)
	// ReportCertificates is answered from the node's own state.
	ReportCertificates(ctx context.Context, call Call, in SeenInput) (Seen, error)
	// AnchorAccess returns once the head is committed.
	AnchorAccess(ctx context.Context, call Call, in AnchorInput) (Anchored, error)
}

// ChangeBackend serves /v1/changes.
type ChangeBackend interface {
	ProposeChange(ctx context.Context, call Call, in ChangeInput) (Change, error)
	Change(ctx context.Context, call Call, id string) (Change, error)
	Changes(ctx context.Context, call Call, state string, p Page) (ChangeList, error)
	DecideChange(ctx context.Context, call Call, id string, in ChangeDecisionInput) (Change, error)
	CancelChange(ctx context.Context, call Call, id string) (Change, error)
}

// DirectoryBackend serves what the cluster and the caller are.
type DirectoryBackend interface {
	WhoAmI(ctx context.Context, call Call) (WhoAmI, error)
	Policy(ctx context.Context, call Call) (Policy, error)
	Groups(ctx context.Context, call Call) (Groups, error)
	Persons(ctx context.Context, call Call) (Persons, error)
	Bundle(ctx context.Context, call Call) (Bundle, error)
	Cluster(ctx context.Context, call Call) (Cluster, error)
}

// TrustBackend serves /v1/issuers and /v1/roots.
type TrustBackend interface {
	InstallIssuers(ctx context.Context, call Call, in InstallInput) (Installed, error)
	// NodeIssuers are as the answering node knows them.
	NodeIssuers(ctx context.Context, call Call) (NodeIssuers, error)
	// NodeRequest is that of the answering node.
	NodeRequest(ctx context.Context, call Call) (NodeRequest, error)
	// Roots are as the answering node knows them.
	Roots(ctx context.Context, call Call) (Roots, error)
	SetRoots(ctx context.Context, call Call, in RootsInput) (RootSet, error)
}

// MemberBackend serves /v1/nodes and /v1/cluster/manifest, to admins.
type MemberBackend interface {
	AdoptManifest(ctx context.Context, call Call, in ManifestInput) (Cluster, error)
	JoinNode(ctx context.Context, call Call, id string) (Node, error)
	PromoteNode(ctx context.Context, call Call, id string) (Node, error)
	RemoveNode(ctx context.Context, call Call, id string, in RemoveNodeInput) (Node, error)
	HandOver(ctx context.Context, call Call, id string) (Node, error)
}

// EmergencyBackend serves /v1/emergency: to persons what there is, to admins the rest.
type EmergencyBackend interface {
	Emergencies(ctx context.Context, call Call) (Emergencies, error)
	RegisterEmergencyIssuer(ctx context.Context, call Call, in EmergencyIssuerInput) (Issuer, error)
	ImportEmergencyRecord(ctx context.Context, call Call, in EmergencyRecordInput) (EmergencyJournal, error)
	RevokeEmergencyGrant(ctx context.Context, call Call, id string, in ReasonInput) (EmergencyRevocation, error)
}

// NotifyBackend serves /v1/notify, to admins.
type NotifyBackend interface {
	NotifyTargets(ctx context.Context, call Call) (NotifyTargets, error)
	// DeadLetters takes target "" for those of all.
	DeadLetters(ctx context.Context, call Call, target string) (DeadLetters, error)
	ReplayNotifications(ctx context.Context, call Call, target string, in ReplayInput) (NotifyTarget, error)
	ForgetTarget(ctx context.Context, call Call, target string) (NotifyTarget, error)
	// TestTarget MUST send now, and change nothing.
	TestTarget(ctx context.Context, call Call, target string) (NotifyTested, error)
}

// AuditBackend serves /v1/audit.
type AuditBackend interface {
	AuditEntries(ctx context.Context, call Call, from uint64, limit int) (AuditEntries, error)
	AuditCheckpoint(ctx context.Context, call Call) (AuditCheckpoint, error)
	// InclusionProof takes size 0 for the log's size now.
	InclusionProof(ctx context.Context, call Call, index, size uint64) (InclusionProof, error)
	// ConsistencyProof takes to 0 for the log's size now.
	ConsistencyProof(ctx context.Context, call Call, from, to uint64) (ConsistencyProof, error)
}

// StreamBackend serves the two event streams, from the node's own state.
type StreamBackend interface {
	// Revocations returns the feed once its revision is not since or wait is
	// over, whichever comes first; a wait of zero returns it at once.
	Revocations(ctx context.Context, call Call, since FeedPosition, wait time.Duration) (Feed, error)
	// Events returns events after the given id that the caller may see, oldest
	// first, waiting up to wait for the first, and the id to go on from.
	Events(ctx context.Context, call Call, after uint64, wait time.Duration) (events []Event, last uint64, err error)
	// LastEvent is the id of the newest event.
	LastEvent(ctx context.Context, call Call) (uint64, error)
}

// FeedPosition says which list a follower of the feed holds.
type FeedPosition struct{ Epoch, Revision uint64 }

type contextKey int

const (
	callerKey contextKey = iota
	requestIDKey
	callKey
)

// WithCaller returns a context that says who is calling. Only who has verified
// the caller's certificate may make one.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey, c)
}

// CallerFrom returns the caller in ctx, the zero Caller when there is none.
func CallerFrom(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey).(Caller)
	return c
}

// WithRequestID returns a context whose request is known by id already.
func WithRequestID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestIDKey, id)
}

// RequestIDFrom returns the request's id, "" when there is none.
func RequestIDFrom(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey).(string)
	return id
}
