package approval

// AdminGroup is the group whose persons change policy, groups and persons.
const AdminGroup = "admins"

// MinAdmins is how many persons AdminGroup never has fewer of: an author and
// two others who approve.
const MinAdmins = 3

// Person is who is behind SPIFFE IDs, and who owns others.
type Person struct {
	Name  string   `json:"name" cbor:"1,keyasint"`
	IDs   []string `json:"ids" cbor:"2,keyasint"`
	Owns  []string `json:"owns" cbor:"3,keyasint"`                      // subjects that act for this person
	Slack string   `json:"slack,omitempty" cbor:"4,keyasint,omitempty"` // account, TEAM/USER; since version 4
}

// Group is a set of persons.
type Group struct {
	Name    string   `json:"name" cbor:"1,keyasint"`
	Members []string `json:"members" cbor:"2,keyasint"`
	OnCall  *OnCall  `json:"on_call,omitempty" cbor:"3,keyasint,omitempty"` // nil: all are in it all the time; since version 4

	Substitutes []string `json:"substitutes,omitempty" cbor:"4,keyasint,omitempty"` // who may stand in for members; since version 4
}

// EditKind names what a change does.
type EditKind string

// The kinds of edit.
const (
	EditPolicySet      EditKind = "policy.set"
	EditGroupSet       EditKind = "group.set"
	EditGroupDelete    EditKind = "group.delete"
	EditPersonSet      EditKind = "person.set"
	EditPersonDelete   EditKind = "person.delete"
	EditSubjectUnblock EditKind = "subject.unblock"
)

// Edit is what a change does. Exactly the field of its kind is set: YAML for
// policy.set, Group for group.set, Person for person.set, Name for the two
// deletes, Subject for subject.unblock.
type Edit struct {
	Kind    EditKind `json:"kind" cbor:"1,keyasint"`
	YAML    string   `json:"yaml,omitempty" cbor:"2,keyasint,omitempty"`
	Group   *Group   `json:"group,omitempty" cbor:"3,keyasint,omitempty"`
	Person  *Person  `json:"person,omitempty" cbor:"4,keyasint,omitempty"`
	Name    string   `json:"name,omitempty" cbor:"5,keyasint,omitempty"`
	Subject string   `json:"subject,omitempty" cbor:"6,keyasint,omitempty"`
}

// Change is a proposed change of policy, groups, persons or blocks.
type Change struct {
	ID           string      `json:"id" cbor:"1,keyasint"`
	State        ChangeState `json:"state" cbor:"2,keyasint"`
	Author       string      `json:"author" cbor:"3,keyasint"` // SPIFFE ID
	AuthorPerson string      `json:"author_person" cbor:"4,keyasint"`
	Edit         Edit        `json:"edit" cbor:"5,keyasint"`
	BaseRevision uint64      `json:"base_revision" cbor:"6,keyasint"`
	BlockIndex   uint64      `json:"block_index,omitempty" cbor:"7,keyasint,omitempty"` // subject.unblock: which block
	Hash         string      `json:"hash" cbor:"8,keyasint"`
	Decisions    []Decision  `json:"decisions" cbor:"9,keyasint"`
	Created      Millis      `json:"created" cbor:"10,keyasint"`
	Expires      Millis      `json:"expires" cbor:"11,keyasint"`
	Ended        Millis      `json:"ended,omitempty" cbor:"12,keyasint,omitempty"`
	EndedBy      string      `json:"ended_by,omitempty" cbor:"13,keyasint,omitempty"`
	Index        uint64      `json:"index" cbor:"14,keyasint"` // Raft index of its last change
}

// StateAt returns the state, counting a pending change as expired once its time
// is over, whether or not a tick has said so yet.
func (c Change) StateAt(now Millis) ChangeState {
	if c.State == ChangePending && now >= c.Expires {
		return ChangeExpired
	}
	return c.State
}

// PolicyDoc is the policy in force.
type PolicyDoc struct {
	Revision uint64 `json:"revision" cbor:"1,keyasint"`
	YAML     string `json:"yaml" cbor:"2,keyasint"`
}

// Role says what an issuer signs.
type Role string

// The roles.
const (
	RoleIdentity Role = "identity"
	RoleGrant    Role = "grant"
	// RoleEmergency is that of an issuer of grants which custodians hold, and no
	// node. Nothing that the cluster commits is signed by it.
	RoleEmergency Role = "emergency"
)

// Issuer is a node's certificate authority for one trust domain, or an emergency
// issuer, which has no node.
type Issuer struct {
	ID       string `json:"id" cbor:"1,keyasint"` // hex SHA-256 of the DER
	Node     string `json:"node" cbor:"2,keyasint"`
	Role     Role   `json:"role" cbor:"3,keyasint"`
	NotAfter Millis `json:"not_after" cbor:"4,keyasint"`
	Denied   Millis `json:"denied,omitempty" cbor:"5,keyasint,omitempty"` // when; 0: in use
	DeniedBy string `json:"denied_by,omitempty" cbor:"6,keyasint,omitempty"`
	Reason   string `json:"reason,omitempty" cbor:"7,keyasint,omitempty"`
	DER      []byte `json:"der" cbor:"8,keyasint"`
	Index    uint64 `json:"index" cbor:"9,keyasint"` // Raft index of its last change
	Root     string `json:"root" cbor:"10,keyasint"` // id of the root that signed it
	// Retired is when its node was removed with its keys destroyed: it signs
	// nothing more, and what it signed stays good. 0: it was not.
	Retired Millis `json:"retired,omitempty" cbor:"11,keyasint,omitempty"`
	// Orphan says that it was denied because its root is not in force any more, and
	// for nothing else: its key may be signed again, by a root that is. From
	// version 2 on.
	Orphan bool `json:"orphan,omitempty" cbor:"12,keyasint,omitempty"`
}

// Node is a member of the cluster.
type Node struct {
	ID          string `json:"id" cbor:"1,keyasint"`
	Key         []byte `json:"key" cbor:"2,keyasint"`       // Ed25519, of the node-to-node transport
	AuditKey    string `json:"audit_key" cbor:"3,keyasint"` // note verifier key
	RaftAddress string `json:"raft_address" cbor:"4,keyasint"`
	APIAddress  string `json:"api_address" cbor:"5,keyasint"`

	// APICertificate is DER, empty while the one of the manifest is the newest.
	APICertificate []byte `json:"api_certificate,omitempty" cbor:"6,keyasint,omitempty"`
}

// manifestTaken is the newest manifest that the cluster took.
type manifestTaken struct {
	Sequence uint64 `cbor:"1,keyasint"`
	SHA256   string `cbor:"2,keyasint"` // of what was signed
	Index    uint64 `cbor:"3,keyasint"` // Raft index
}

// Installed is what a member got: its new issuers, by id.
type Installed struct {
	Node    string   `json:"node" cbor:"1,keyasint"`
	Issuers []string `json:"issuers" cbor:"2,keyasint"`
}

// Roots are the roots of one trust domain as the cluster knows them.
type Roots struct {
	Role      Role     `json:"role" cbor:"1,keyasint"`      // whose issuers they sign
	Sequence  uint64   `json:"sequence" cbor:"2,keyasint"`  // of the document in force; 0: those of the bootstrap
	Anchors   [][]byte `json:"anchors" cbor:"3,keyasint"`   // of the bootstrap, DER
	InForce   [][]byte `json:"in_force" cbor:"4,keyasint"`  // DER
	Documents [][]byte `json:"documents" cbor:"5,keyasint"` // all that were in force, the oldest first
	Index     uint64   `json:"index" cbor:"6,keyasint"`     // Raft index of its last change
}

// Cluster is what the cluster is: its names, members, issuers and counters.
type Cluster struct {
	ID                string   `json:"id"`
	TrustDomain       string   `json:"trust_domain"`
	GrantTrustDomain  string   `json:"grant_trust_domain"`
	Epoch             uint64   `json:"epoch"`
	EpochBegan        Millis   `json:"epoch_began,omitempty"` // 0: never restored
	Lineage           string   `json:"lineage,omitempty"`     // of the replicated log in which the epoch began
	LastNow           Millis   `json:"last_now"`              // effective time of the last accepted command
	PolicyRevision    uint64   `json:"policy_revision"`
	DirectoryRevision uint64   `json:"directory_revision"`
	FeedRevision      uint64   `json:"feed_revision"`
	AuditSize         uint64   `json:"audit_size"` // leaves of the audit log
	Manifest          uint64   `json:"manifest"`   // sequence number of the newest manifest taken
	Removed           uint64   `json:"removed"`    // nodes removed since
	Version           int      `json:"version"`    // of commands, that the cluster has agreed on
	Nodes             []Node   `json:"nodes"`
	Issuers           []Issuer `json:"issuers"`
}

// Block says that a subject gets no grants.
type Block struct {
	Subject string `json:"subject" cbor:"1,keyasint"`
	Reason  string `json:"reason" cbor:"2,keyasint"`
	By      string `json:"by" cbor:"3,keyasint"`
	At      Millis `json:"at" cbor:"4,keyasint"`
	Index   uint64 `json:"index" cbor:"5,keyasint"`
}

// Issue records one certificate; the record is committed before the signature
// is made.
type Issue struct {
	Serial    string `json:"serial" cbor:"1,keyasint"`
	Role      Role   `json:"role" cbor:"2,keyasint"`
	Grant     string `json:"grant,omitempty" cbor:"3,keyasint,omitempty"`
	SPIFFEID  string `json:"spiffe_id" cbor:"4,keyasint"`
	TBSHash   string `json:"tbs_hash" cbor:"5,keyasint"`
	Issuer    string `json:"issuer" cbor:"6,keyasint"`
	NotBefore Millis `json:"not_before" cbor:"7,keyasint"`
	NotAfter  Millis `json:"not_after" cbor:"8,keyasint"`
	Key       string `json:"key" cbor:"9,keyasint"`
	By        string `json:"by" cbor:"10,keyasint"`
	CSRBy     string `json:"csr_by,omitempty" cbor:"11,keyasint,omitempty"`
	At        Millis `json:"at" cbor:"12,keyasint"`
	Index     uint64 `json:"index" cbor:"13,keyasint"`
}

// Emergency says how a grant came about that custodians made while there was no
// cluster.
type Emergency struct {
	Issuer     string   `json:"issuer" cbor:"1,keyasint"`
	Place      uint64   `json:"n" cbor:"2,keyasint"` // in the issuer's journal
	Custodians []string `json:"custodians" cbor:"3,keyasint"`
	Reason     string   `json:"reason" cbor:"6,keyasint"`      // in their words
	ImportedBy string   `json:"imported_by" cbor:"4,keyasint"` // SPIFFE ID
	Imported   Millis   `json:"imported" cbor:"5,keyasint"`
}

// EmergencyJournal is what was taken in of an emergency issuer's journal.
type EmergencyJournal struct {
	Issuer   string `json:"issuer" cbor:"1,keyasint"`
	Count    uint64 `json:"count" cbor:"2,keyasint"`                      // records
	Head     string `json:"head" cbor:"3,keyasint"`                       // hash of the last one; of none, the issuer's id
	Forked   uint64 `json:"forked,omitempty" cbor:"4,keyasint,omitempty"` // place of a record of another history; 0: none was brought
	ForkHash string `json:"fork_hash,omitempty" cbor:"5,keyasint,omitempty"`
	Index    uint64 `json:"index" cbor:"6,keyasint"` // Raft index of its last change
}

// EmergencyRevocation ends an emergency grant that was not imported yet. It goes
// with its entry on the feed, or when the grant comes in.
type EmergencyRevocation struct {
	Grant  string `json:"grant" cbor:"1,keyasint"`
	Reason string `json:"reason" cbor:"2,keyasint"`
	By     string `json:"by" cbor:"3,keyasint"`
	At     Millis `json:"at" cbor:"4,keyasint"`
	Until  Millis `json:"until" cbor:"5,keyasint"`
}

// Feed is the revocation feed: what is revoked and may still have a certificate
// that has not run out.
type Feed struct {
	Epoch    uint64      `json:"epoch"`
	Began    Millis      `json:"epoch_began,omitempty"` // 0: never restored
	Revision uint64      `json:"revision"`
	Grants   []FeedEntry `json:"grants"`
	Issuers  []FeedEntry `json:"issuers"`
}

// FeedEntry is one revoked grant or denied issuer, and until when it stays on
// the feed.
type FeedEntry struct {
	ID    string `json:"id" cbor:"1,keyasint"`
	Until Millis `json:"until" cbor:"2,keyasint"`
}

// Ticked is what a tick ended.
type Ticked struct {
	Requests  []string  `json:"requests,omitempty" cbor:"1,keyasint,omitempty"`
	Grants    []string  `json:"grants,omitempty" cbor:"2,keyasint,omitempty"`
	Changes   []string  `json:"changes,omitempty" cbor:"3,keyasint,omitempty"`
	Feed      []string  `json:"feed,omitempty" cbor:"4,keyasint,omitempty"` // entries that left the feed
	Pruned    int       `json:"pruned,omitempty" cbor:"5,keyasint,omitempty"`
	More      bool      `json:"more,omitempty" cbor:"6,keyasint,omitempty"`      // more is due: tick again
	Forgotten []string  `json:"forgotten,omitempty" cbor:"7,keyasint,omitempty"` // requests, with their grants, and changes
	Issuers   []string  `json:"issuers,omitempty" cbor:"8,keyasint,omitempty"`   // that ended long ago, and were never denied
	StandIns  []StandIn `json:"stand_ins,omitempty" cbor:"9,keyasint,omitempty"` // that ran out
}
