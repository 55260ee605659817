package api

import (
	"fmt"
	"strings"
	"time"
)

// Duration is a length of time, on the wire as Go writes it: "30m", "1h30m".
type Duration time.Duration

// String gives the shortest spelling: "30m", not "30m0s".
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("duration %q: want a form such as 30m or 1h30m", text)
	}
	*d = Duration(v)
	return nil
}

// RequestInput asks for access: the body of POST /v1/requests.
type RequestInput struct {
	Service     string     `json:"service" maxLength:"63" doc:"short name of the service" example:"payments"`
	Permissions []string   `json:"permissions,omitempty" maxItems:"32" nullable:"false" doc:"permissions in text form; at least one, or a bundle" example:"[\"GET,HEAD /accounts/**\"]"`
	Bundles     []string   `json:"bundles,omitempty" maxItems:"8" nullable:"false" doc:"names of bundles of the service, see /v1/services; they are replaced by their permissions now, and for good" example:"[\"read-accounts\"]"`
	Reason      string     `json:"reason" maxLength:"2000" doc:"why, for the approvers and the audit log"`
	Duration    Duration   `json:"duration" doc:"how long the access should last, counted from approval or from start" example:"30m"`
	Start       *time.Time `json:"start,omitempty" doc:"scheduled start; absent means on approval"`
	Subject     string     `json:"subject,omitempty" maxLength:"2048" doc:"SPIFFE ID that gets the access; absent means the caller"`
	CSR         string     `json:"csr,omitempty" maxLength:"8192" doc:"PEM certificate request whose key the grant is pinned to; optional"`
	Delegable   bool       `json:"delegable,omitempty" doc:"its subject is to make narrower and shorter grants of it for others, where the policy permits"`
	BreakGlass  bool       `json:"break_glass,omitempty" doc:"get it at once without approval, where the policy lets the caller, and have it reviewed"`
	DryRun      bool       `json:"dry_run,omitempty" doc:"only say which rule decides and who must approve"`
}

// DryRun says what the policy would answer to a request.
type DryRun struct {
	Allowed        bool          `json:"allowed"`
	Auto           bool          `json:"auto" doc:"granted at once, without approval"`
	Rules          []string      `json:"rules" doc:"names of the rules that matched"`
	Require        []Requirement `json:"require" doc:"groups that must approve, all of them"`
	MaxDuration    Duration      `json:"max_duration" doc:"the longest duration that these rules allow"`
	CertificateTTL Duration      `json:"certificate_ttl"`
	StepUp         Duration      `json:"step_up,omitempty" doc:"how long ago at most whoever approves in the console must have signed in; absent: it does not matter"`
	Reason         string        `json:"reason,omitempty" doc:"why it would be refused, and what would be right"`
	SPIFFEID       string        `json:"spiffe_id,omitempty" doc:"what the certificate would say, with a placeholder for the grant's id"`
	PolicyRevision uint64        `json:"policy_revision"`
	Escalation     *Escalation   `json:"escalation,omitempty" doc:"who may approve instead, once it has waited"`
	Delegation     *Delegation   `json:"delegation,omitempty" doc:"of a delegable request: what may be done with it"`
	Permissions    []string      `json:"permissions" doc:"what would be asked for, bundles replaced by what they stand for"`
	BreakGlass     *BreakGlass   `json:"break_glass,omitempty" doc:"of a request to break the glass: require is done without, and it is reviewed"`
}

// Requirement is a number of approvals from one group.
type Requirement struct {
	Group     string `json:"group"`
	Approvals int    `json:"approvals" doc:"persons of the group who must approve"`
	Given     int    `json:"given" doc:"persons of the group who have approved; one in several groups counts once, for one of them"`
}

// States of an access request.
const (
	RequestPending   = "pending"
	RequestApproved  = "approved"
	RequestDenied    = "denied"
	RequestCancelled = "cancelled"
	RequestExpired   = "expired"
)

// Request is an access request and what became of it. Its id is also the
// grant's id, once granted.
type Request struct {
	ID              string        `json:"id" doc:"UUIDv7, also the id of the grant"`
	State           string        `json:"state" enum:"pending,approved,denied,cancelled,expired"`
	Requester       string        `json:"requester" doc:"SPIFFE ID that asked"`
	RequesterPerson string        `json:"requester_person,omitempty"`
	Subject         string        `json:"subject" doc:"SPIFFE ID that gets the access"`
	Service         string        `json:"service"`
	Permissions     []string      `json:"permissions"`
	Reason          string        `json:"reason"`
	Duration        Duration      `json:"duration"`
	Start           *time.Time    `json:"start,omitempty"`
	CSRKey          string        `json:"csr_key,omitempty" doc:"hex SHA-256 of the public key that the grant is pinned to"`
	CreatedAt       time.Time     `json:"created_at"`
	EndedAt         *time.Time    `json:"ended_at,omitempty" doc:"when it stopped being pending"`
	ExpiresAt       time.Time     `json:"expires_at" doc:"when an undecided request lapses"`
	EndedBy         string        `json:"ended_by,omitempty"`
	Hash            string        `json:"hash" doc:"canonical hash of the last revision, which a decision must name"`
	Revisions       []Revision    `json:"revisions" doc:"the first is what was asked, each further one a narrowing"`
	PolicyRevision  uint64        `json:"policy_revision"`
	Auto            bool          `json:"auto,omitempty"`
	Rules           []string      `json:"rules" doc:"names of the rules that matched"`
	Require         []Requirement `json:"require"`
	Escalation      *Escalation   `json:"escalation,omitempty" doc:"who may approve instead, once it has waited; absent: nobody"`
	CertificateTTL  Duration      `json:"certificate_ttl"`
	StepUp          Duration      `json:"step_up,omitempty" doc:"how long ago at most whoever approves it, or closes its review, in the console must have signed in, by the policy in force; absent: it does not matter"`
	Decisions       []Decision    `json:"decisions"`
	Grant           *Grant        `json:"grant,omitempty" doc:"present once granted"`
	Bundles         []string      `json:"bundles,omitempty" doc:"names that it was asked for by, as the policy had them then; what they stood for is among the permissions of its first revision"`
	BreakGlass      *BreakGlass   `json:"break_glass,omitempty" doc:"present when the glass was broken: it was granted without what it requires"`
	Delegation      *Delegation   `json:"delegation,omitempty" doc:"present when it is delegable: what its subject may make of it for others"`
	Parent          string        `json:"parent,omitempty" doc:"the grant that it was made of, without an approval of its own"`
	Extends         *Extends      `json:"extends,omitempty" doc:"present when it makes no grant of its own, but extends one; grant is that one once it is approved"`
}

// Decision is one person's vote.
type Decision struct {
	Decision string    `json:"decision" enum:"approve,deny"`
	Person   string    `json:"person" doc:"who is counted"`
	Identity string    `json:"identity" doc:"SPIFFE ID that was used"`
	Comment  string    `json:"comment,omitempty"`
	Hash     string    `json:"hash" doc:"what was on the screen"`
	At       time.Time `json:"at"`
	Void     bool      `json:"void,omitempty" doc:"no longer counts: the request changed since"`
	Slack    string    `json:"slack,omitempty" doc:"account whose button it was, TEAM/USER: no certificate of the person was seen, and identity is the bridge's; absent: identity is the person's"`
}

// DecisionInput is the body of POST /v1/requests/{id}/decisions.
type DecisionInput struct {
	Decision    string   `json:"decision" enum:"approve,deny"`
	Hash        string   `json:"hash" minLength:"1" maxLength:"128" doc:"the request's hash, as shown to the person who decides"`
	Comment     string   `json:"comment,omitempty" maxLength:"2000"`
	Permissions []string `json:"permissions,omitempty" maxItems:"32" nullable:"false" doc:"narrow to these"`
	Duration    Duration `json:"duration,omitempty" doc:"shorten to this"`
	Slack       string   `json:"slack,omitempty" maxLength:"65" doc:"account whose button it was, TEAM/USER; for the bridge that the policy names alone, with decision and hash and nothing else"`
}

// Revision is what a request said at one time.
type Revision struct {
	Hash        string    `json:"hash"`
	Permissions []string  `json:"permissions"`
	Duration    Duration  `json:"duration"`
	By          string    `json:"by" doc:"SPIFFE ID of who wrote it"`
	At          time.Time `json:"at"`
}

// RequestList is a page of requests, newest first.
type RequestList struct {
	Requests []Request `json:"requests"`
	Next     string    `json:"next,omitempty" doc:"cursor of the next page"`
}

// States of a grant.
const (
	GrantScheduled = "scheduled"
	GrantActive    = "active"
	GrantRevoked   = "revoked"
	GrantReturned  = "returned" // by its subject
	GrantExpired   = "expired"
)

// Grant is an approved request.
type Grant struct {
	ID             string     `json:"id"`
	State          string     `json:"state" enum:"scheduled,active,revoked,returned,expired"`
	Requester      string     `json:"requester"`
	Subject        string     `json:"subject"`
	Service        string     `json:"service"`
	Permissions    []string   `json:"permissions"`
	SPIFFEID       string     `json:"spiffe_id" doc:"what its certificates say"`
	NotBefore      time.Time  `json:"not_before"`
	ExpiresAt      time.Time  `json:"expires_at"`
	CertificateTTL Duration   `json:"certificate_ttl"`
	CSRKey         string     `json:"csr_key,omitempty"`
	Revoked        *Revoked   `json:"revoked,omitempty"`
	Issuances      []Issuance `json:"issuances,omitempty" doc:"certificates minted for it, until a week after they end; only when one grant is read"`

	Emergency *EmergencyOrigin `json:"emergency,omitempty" doc:"there when custodians made it while there was no cluster"`

	BreakGlass bool        `json:"break_glass,omitempty" doc:"it was made without the approvals that it requires"`
	Delegation *Delegation `json:"delegation,omitempty" doc:"present when it is delegable"`
	Parent     string      `json:"parent,omitempty" doc:"the grant that it was made of, and ends with"`
	Extensions []Extension `json:"extensions,omitempty" doc:"by which it lives longer than was approved first"`
}

// Revoked says who ended a grant or an issuer early and why.
type Revoked struct {
	By     string    `json:"by"`
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// Issuance is the committed record of one certificate.
type Issuance struct {
	Serial    string    `json:"serial"`
	Issuer    string    `json:"issuer" doc:"hex SHA-256 of the issuer's certificate"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	Key       string    `json:"key" doc:"hex SHA-256 of the public key"`
	At        time.Time `json:"at"`
}

// GrantList is a page of grants, newest first.
type GrantList struct {
	Grants []Grant `json:"grants"`
	Next   string  `json:"next,omitempty"`
}

// CertificateInput is the body of POST /v1/grants/{id}/certificate.
type CertificateInput struct {
	CSR string `json:"csr" minLength:"1" maxLength:"8192" doc:"PEM certificate request; only its public key is used"`
}

// Certificate is a freshly signed certificate.
type Certificate struct {
	Certificate string    `json:"certificate" doc:"PEM chain, leaf first"`
	SPIFFEID    string    `json:"spiffe_id"`
	Serial      string    `json:"serial"`
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	RenewAfter  time.Time `json:"renew_after" doc:"a good time to ask for the next one"`
}

// RevokeInput is the body of POST /v1/grants/{id}/revoke. A subject that
// returns its own grant may leave the reason out.
type RevokeInput struct {
	Reason string `json:"reason,omitempty" maxLength:"2000"`
}

// ReasonInput is the body of routes that only need a reason.
type ReasonInput struct {
	Reason string `json:"reason" minLength:"1" maxLength:"2000"`
}

// BlockInput is the body of POST /v1/subjects/block.
type BlockInput struct {
	Subject string `json:"subject" minLength:"1" maxLength:"2048"`
	Reason  string `json:"reason" minLength:"1" maxLength:"2000"`
}

// Block is a subject whose grants are dead and for whom none is made.
type Block struct {
	Subject string    `json:"subject"`
	Reason  string    `json:"reason"`
	By      string    `json:"by"`
	At      time.Time `json:"at"`
}

// Issuer is a node's certificate authority for one trust domain.
type Issuer struct {
	ID       string    `json:"id" doc:"hex SHA-256 of its certificate"`
	Node     string    `json:"node" doc:"whose it is; empty for an emergency issuer"`
	Role     string    `json:"role" enum:"identity,grant,emergency"`
	NotAfter time.Time `json:"not_after"`
	Denied   *Revoked  `json:"denied,omitempty"`
}

// IdentityInput is the body of POST /v1/identities.
type IdentityInput struct {
	CSR         string   `json:"csr" minLength:"1" maxLength:"8192" doc:"PEM certificate request; only its public key is used"`
	SPIFFEID    string   `json:"spiffe_id" minLength:"1" maxLength:"2048" example:"spiffe://acme.test/service/payments"`
	DNSNames    []string `json:"dns_names,omitempty" maxItems:"32" nullable:"false" doc:"names that plain TLS clients dial"`
	IPAddresses []string `json:"ip_addresses,omitempty" maxItems:"32" nullable:"false"`
	TTL         Duration `json:"ttl,omitempty" doc:"absent means 24h; at most 720h"`
}

// Policy is the policy in force.
type Policy struct {
	Revision uint64 `json:"revision"`
	YAML     string `json:"yaml"`
}

// Groups are the groups in force.
type Groups struct {
	Revision uint64  `json:"revision" doc:"of the directory: persons and groups together"`
	Groups   []Group `json:"groups"`
}

// Group is a named set of persons.
type Group struct {
	Name        string    `json:"name"`
	Members     []string  `json:"members" doc:"names of persons"`
	Substitutes []string  `json:"substitutes,omitempty" doc:"names of persons who may stand in for members"`
	StandIns    []StandIn `json:"stand_ins,omitempty" doc:"who does now"`

	OnCall *OnCall    `json:"on_call,omitempty" doc:"how members take turns; absent: all are in it all the time"`
	Now    []string   `json:"now,omitempty" doc:"of a group in which members take turns: who is in it now; absent: nobody"`
	Until  *time.Time `json:"until,omitempty" doc:"of such a group: the next hand-over, or when what its resolver said holds no more; absent: nothing holds"`
}

// Persons are the persons in force.
type Persons struct {
	Revision uint64   `json:"revision" doc:"of the directory: persons and groups together"`
	Persons  []Person `json:"persons"`
}

// Person is who is behind one or more SPIFFE IDs.
type Person struct {
	Name   string    `json:"name"`
	IDs    []string  `json:"ids" doc:"SPIFFE IDs that are this person"`
	Owns   []string  `json:"owns" doc:"SPIFFE IDs, or patterns ending in /* or /**, of workloads that this person answers for"`
	Groups []string  `json:"groups" doc:"that the person counts in now"`
	Away   []StandIn `json:"away,omitempty" doc:"who stands in for this person, in the groups in which they do not count meanwhile"`
	Slack  string    `json:"slack,omitempty" doc:"account, TEAM/USER, that may decide for this person where the policy lets it"`
}

// WhoAmI says who the server takes the caller for.
type WhoAmI struct {
	ID          string    `json:"id" doc:"SPIFFE ID of the certificate"`
	Person      string    `json:"person,omitempty" doc:"empty: this ID maps to no person and cannot vote"`
	Groups      []string  `json:"groups"`
	Admin       bool      `json:"admin"`
	TrustDomain string    `json:"trust_domain"`
	NotAfter    time.Time `json:"not_after" doc:"end of the caller's certificate"`
	Node        string    `json:"node" doc:"the node that answered"`
}

// Bundle holds the roots of both trust domains, PEM.
type Bundle struct {
	TrustDomain      string `json:"trust_domain"`
	GrantTrustDomain string `json:"grant_trust_domain"`
	IdentityRoots    string `json:"identity_roots"`
	GrantRoots       string `json:"grant_roots"`
}

// Cluster is the control plane as one node sees it.
type Cluster struct {
	ID               string     `json:"id"`
	TrustDomain      string     `json:"trust_domain"`
	GrantTrustDomain string     `json:"grant_trust_domain"`
	Epoch            uint64     `json:"epoch" doc:"how often the cluster was restored, and one"`
	EpochBegan       *time.Time `json:"epoch_began,omitempty" doc:"grants that were asked for before have ended; absent: never restored"`
	Node             string     `json:"node" doc:"the node that answered"`
	Leader           string     `json:"leader,omitempty"`
	Term             uint64     `json:"term"`
	Index            uint64     `json:"index" doc:"last applied log index"`
	Manifest         uint64     `json:"manifest" doc:"sequence number of the newest manifest taken"`
	Commands         int        `json:"commands" doc:"version of commands that all nodes have agreed on"`
	Nodes            []Node     `json:"nodes"`
	Issuers          []Issuer   `json:"issuers"`
	Blocked          []Block    `json:"blocked"`
}

// Node is one control node.
type Node struct {
	ID          string `json:"id"`
	APIAddress  string `json:"api_address"`
	RaftAddress string `json:"raft_address"`
	AuditKey    string `json:"audit_key" doc:"verifier key of its checkpoints, in note form"`
	Leader      bool   `json:"leader"`
	Role        string `json:"role" enum:"voter,nonvoter,none" doc:"voter: counts for the quorum; nonvoter: is sent the log; none: known, and not joined yet"`

	SilentFor *Duration `json:"silent_for,omitempty" doc:"since the leader last heard it; absent when it never did, or where the answering node does not lead"`
	Behind    *uint64   `json:"behind,omitempty" doc:"log entries that the leader does not know it to have"`
}

// NodeUnjoined is the Role of a node that is known and not joined.
const NodeUnjoined = "none"

// Kinds of change, each needing two admins other than its author.
const (
	ChangePolicySet      = "policy.set"
	ChangeGroupSet       = "group.set"
	ChangeGroupDelete    = "group.delete"
	ChangePersonSet      = "person.set"
	ChangePersonDelete   = "person.delete"
	ChangeSubjectUnblock = "subject.unblock"
)

// ChangeSpec is what a change would do. Exactly the fields of its kind are
// set: policy.set {yaml}, group.set {name, members, on_call}, group.delete {name},
// person.set {name, ids, owns}, person.delete {name}, subject.unblock {subject}.
type ChangeSpec struct {
	Kind    string   `json:"kind" enum:"policy.set,group.set,group.delete,person.set,person.delete,subject.unblock"`
	YAML    string   `json:"yaml,omitempty" maxLength:"49152"`
	Name    string   `json:"name,omitempty" maxLength:"128"`
	Members []string `json:"members,omitempty" maxItems:"1000" nullable:"false"`
	IDs     []string `json:"ids,omitempty" maxItems:"100" nullable:"false"`
	Owns    []string `json:"owns,omitempty" maxItems:"1000" nullable:"false"`
	Subject string   `json:"subject,omitempty" maxLength:"2048"`
	Slack   string   `json:"slack,omitempty" maxLength:"65" doc:"of person.set: the person's account, TEAM/USER; absent: none"`
	OnCall  *OnCall  `json:"on_call,omitempty" doc:"of group.set: how members take turns; absent: they do not"`

	Substitutes []string `json:"substitutes,omitempty" maxItems:"100" nullable:"false" doc:"of group.set: persons who may stand in for members; absent: none"`
}

// ChangeInput is the body of POST /v1/changes.
type ChangeInput struct {
	Change       ChangeSpec `json:"change"`
	BaseRevision uint64     `json:"base_revision" doc:"the revision that the change was written against: the policy's for policy.set, else the directory's"`
}

// States of a change.
const (
	ChangePending   = "pending"
	ChangeApplied   = "applied"
	ChangeDenied    = "denied"
	ChangeCancelled = "cancelled"
	ChangeExpired   = "expired"
)

// Change is a proposed change of policy, groups or persons.
type Change struct {
	ID           string     `json:"id"`
	State        string     `json:"state" enum:"pending,applied,denied,cancelled,expired"`
	Change       ChangeSpec `json:"change"`
	BaseRevision uint64     `json:"base_revision"`
	Author       string     `json:"author"`
	AuthorPerson string     `json:"author_person"`
	Hash         string     `json:"hash"`
	CreatedAt    time.Time  `json:"created_at"`
	ExpiresAt    time.Time  `json:"expires_at"`
	EndedAt      *time.Time `json:"ended_at,omitempty"`
	EndedBy      string     `json:"ended_by,omitempty"`
	Approvals    int        `json:"approvals" doc:"admins other than the author who have approved"`
	Needed       int        `json:"needed"`
	Decisions    []Decision `json:"decisions"`
}

// ChangeList is a page of changes, newest first.
type ChangeList struct {
	Changes []Change `json:"changes"`
	Next    string   `json:"next,omitempty"`
}

// ChangeDecisionInput is the body of POST /v1/changes/{id}/decisions.
type ChangeDecisionInput struct {
	Decision string `json:"decision" enum:"approve,deny"`
	Hash     string `json:"hash" minLength:"1" maxLength:"128"`
	Comment  string `json:"comment,omitempty" maxLength:"2000"`
}
