package approval

import (
	"time"
)

// Millis is a moment in unix milliseconds, 0 for none. Its JSON is RFC 3339.
type Millis int64

// MillisOf returns the moment t.
func MillisOf(t time.Time) Millis { return Millis(t.UnixMilli()) }

// Time returns the moment as a time.Time in UTC; the zero time for 0.
func (m Millis) Time() time.Time {
	if m == 0 {
		return time.Time{}
	}
	return time.UnixMilli(int64(m)).UTC()
}

// Add returns the moment d later.
func (m Millis) Add(d time.Duration) Millis { return m + Millis(d.Milliseconds()) }

// String returns the moment in RFC 3339, "" for none.
func (m Millis) String() string {
	if m == 0 {
		return ""
	}
	return m.Time().Format("2006-01-02T15:04:05.000Z07:00")
}

// MarshalText implements encoding.TextMarshaler.
func (m Millis) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *Millis) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*m = 0
		return nil
	}
	t, err := time.Parse(time.RFC3339Nano, string(text))
	if err != nil {
		return err
	}
	*m = MillisOf(t)
	return nil
}

// Verdict is approve or deny.
type Verdict string

// The verdicts.
const (
	Approve Verdict = "approve"
	Deny    Verdict = "deny"
)

// RequestState is where an access request stands.
type RequestState string

// The states of a request; all but pending are final.
const (
	RequestPending   RequestState = "pending"
	RequestApproved  RequestState = "approved"
	RequestDenied    RequestState = "denied"
	RequestCancelled RequestState = "cancelled"
	RequestExpired   RequestState = "expired"
)

// GrantState is where a grant stands.
type GrantState string

// The states of a grant; all but active are final.
const (
	GrantActive   GrantState = "active"
	GrantRevoked  GrantState = "revoked"
	GrantReturned GrantState = "returned"
	GrantExpired  GrantState = "expired"
)

// ChangeState is where a change stands.
type ChangeState string

// The states of a change; all but pending are final.
const (
	ChangePending   ChangeState = "pending"
	ChangeApplied   ChangeState = "applied"
	ChangeDenied    ChangeState = "denied"
	ChangeCancelled ChangeState = "cancelled"
	ChangeExpired   ChangeState = "expired"
)

// Requirement is how many persons of a group must approve.
type Requirement struct {
	Group     string `json:"group" cbor:"1,keyasint"`
	Approvals int    `json:"approvals" cbor:"2,keyasint"`
}

// Revision is what a request said at one time: what a decision's hash names.
type Revision struct {
	Hash         string        `json:"hash" cbor:"1,keyasint"`
	Parent       string        `json:"parent,omitempty" cbor:"2,keyasint,omitempty"` // hash of the revision this one narrowed
	Permissions  []string      `json:"permissions" cbor:"3,keyasint"`
	DurationMS   int64         `json:"duration_ms" cbor:"4,keyasint"`
	Requirements []Requirement `json:"requirements" cbor:"5,keyasint"`
	By           string        `json:"by" cbor:"6,keyasint"` // SPIFFE ID of who wrote it
	At           Millis        `json:"at" cbor:"7,keyasint"`

	// What the policy allowed this content at most.
	Auto           bool  `json:"auto,omitempty" cbor:"8,keyasint,omitempty"`
	MaxDurationMS  int64 `json:"max_duration_ms" cbor:"9,keyasint"`
	CertificateTTL int64 `json:"certificate_ttl_ms" cbor:"10,keyasint"` // ms

	Escalation *Escalation `json:"escalation,omitempty" cbor:"11,keyasint,omitempty"` // nil: nobody else may approve
}

// Decision is one person's verdict on a request or change.
type Decision struct {
	Person  string  `json:"person" cbor:"1,keyasint"`
	Actor   string  `json:"actor" cbor:"2,keyasint"` // the SPIFFE ID it came from
	Verdict Verdict `json:"decision" cbor:"3,keyasint"`
	Comment string  `json:"comment,omitempty" cbor:"4,keyasint,omitempty"`
	Hash    string  `json:"hash" cbor:"5,keyasint"` // of the content it holds for
	At      Millis  `json:"at" cbor:"6,keyasint"`
	Slack   string  `json:"slack,omitempty" cbor:"7,keyasint,omitempty"` // account whose button it was; "": the person's certificate was seen
}

// Request is an access request. Its current content is its last revision.
type Request struct {
	ID              string       `json:"id" cbor:"1,keyasint"`
	State           RequestState `json:"state" cbor:"2,keyasint"`
	Requester       string       `json:"requester" cbor:"3,keyasint"`
	RequesterPerson string       `json:"requester_person,omitempty" cbor:"4,keyasint,omitempty"`
	Subject         string       `json:"subject" cbor:"5,keyasint"`
	Service         string       `json:"service" cbor:"6,keyasint"`
	Reason          string       `json:"reason" cbor:"7,keyasint"`
	Start           Millis       `json:"start,omitempty" cbor:"8,keyasint,omitempty"` // 0: when approved
	CSRKey          string       `json:"csr_key,omitempty" cbor:"9,keyasint,omitempty"`
	CSRBy           string       `json:"csr_by,omitempty" cbor:"10,keyasint,omitempty"`
	PolicyRevision  uint64       `json:"policy_revision" cbor:"11,keyasint"`
	Rules           []string     `json:"rules" cbor:"12,keyasint"` // of the policy that matched
	Auto            bool         `json:"auto,omitempty" cbor:"13,keyasint,omitempty"`
	MaxDurationMS   int64        `json:"max_duration_ms" cbor:"14,keyasint"`    // the least over all revisions
	CertificateTTL  int64        `json:"certificate_ttl_ms" cbor:"15,keyasint"` // ms; the least over all revisions
	Revisions       []Revision   `json:"revisions" cbor:"16,keyasint"`
	Decisions       []Decision   `json:"decisions" cbor:"17,keyasint"`
	Created         Millis       `json:"created" cbor:"18,keyasint"`
	Expires         Millis       `json:"expires" cbor:"19,keyasint"` // when it does if it stays pending
	Ended           Millis       `json:"ended,omitempty" cbor:"20,keyasint,omitempty"`
	EndedBy         string       `json:"ended_by,omitempty" cbor:"21,keyasint,omitempty"`
	Trace           string       `json:"trace,omitempty" cbor:"22,keyasint,omitempty"`
	Index           uint64       `json:"index" cbor:"23,keyasint"` // Raft index of its last change

	Emergency  *Emergency  `json:"emergency,omitempty" cbor:"24,keyasint,omitempty"`  // nil: it was asked for and decided here
	Review     *Review     `json:"review,omitempty" cbor:"25,keyasint,omitempty"`     // there when the glass was broken: its requirements were not met
	Delegation *Delegation `json:"delegation,omitempty" cbor:"27,keyasint,omitempty"` // nil: its grant is not delegable
	Parent     string      `json:"parent,omitempty" cbor:"28,keyasint,omitempty"`     // the grant that its grant is made of, "" for none
	Extends    *Extends    `json:"extends,omitempty" cbor:"26,keyasint,omitempty"`    // nil: it makes a grant of its own

	Escalated Millis `json:"escalated,omitempty" cbor:"31,keyasint,omitempty"` // when others were asked, too, of which the last revision says who; 0: they were not

	Notify []string `json:"notify,omitempty" cbor:"32,keyasint,omitempty"` // targets that its rules named when it was made

	Bundles []string `json:"bundles,omitempty" cbor:"30,keyasint,omitempty"` // of the policy then, that it was asked for by; what it allows is in its revisions
}

// Current returns what the request says now.
func (r Request) Current() Revision {
	if len(r.Revisions) == 0 {
		return Revision{}
	}
	return r.Revisions[len(r.Revisions)-1]
}

// Hash returns the hash that a decision must name now.
func (r Request) Hash() string { return r.Current().Hash }

// StateAt returns the state, counting a pending request as expired once its
// time is over, whether or not a tick has said so yet.
func (r Request) StateAt(now Millis) RequestState {
	if r.State == RequestPending && now >= r.Expires {
		return RequestExpired
	}
	return r.State
}

// Vote is an approval that was counted for a group when a grant was made.
type Vote struct {
	Group  string `json:"group" cbor:"1,keyasint"`
	Person string `json:"person" cbor:"2,keyasint"`
	Actor  string `json:"actor" cbor:"3,keyasint"`
	Hash   string `json:"hash" cbor:"4,keyasint"`
	At     Millis `json:"at" cbor:"5,keyasint"`
}

// Grant is an approved request.
type Grant struct {
	ID             string        `json:"id" cbor:"1,keyasint"` // the request's
	State          GrantState    `json:"state" cbor:"2,keyasint"`
	SPIFFEID       string        `json:"spiffe_id" cbor:"3,keyasint"` // of its certificates
	Requester      string        `json:"requester" cbor:"4,keyasint"`
	Subject        string        `json:"subject" cbor:"5,keyasint"`
	Service        string        `json:"service" cbor:"6,keyasint"`
	Permissions    []string      `json:"permissions" cbor:"7,keyasint"`
	Hash           string        `json:"hash" cbor:"8,keyasint"` // of the revision approved
	NotBefore      Millis        `json:"not_before" cbor:"9,keyasint"`
	Expiry         Millis        `json:"expiry" cbor:"10,keyasint"`
	CertificateTTL int64         `json:"certificate_ttl_ms" cbor:"11,keyasint"` // ms
	CSRKey         string        `json:"csr_key,omitempty" cbor:"12,keyasint,omitempty"`
	CSRBy          string        `json:"csr_by,omitempty" cbor:"13,keyasint,omitempty"`
	Auto           bool          `json:"auto,omitempty" cbor:"14,keyasint,omitempty"`
	Requirements   []Requirement `json:"requirements" cbor:"15,keyasint"`
	Votes          []Vote        `json:"votes" cbor:"16,keyasint"` // those that were counted
	Created        Millis        `json:"created" cbor:"17,keyasint"`
	Ended          Millis        `json:"ended,omitempty" cbor:"18,keyasint,omitempty"`
	EndedBy        string        `json:"ended_by,omitempty" cbor:"19,keyasint,omitempty"`
	EndReason      string        `json:"end_reason,omitempty" cbor:"20,keyasint,omitempty"`
	Issued         uint64        `json:"issued" cbor:"21,keyasint"` // certificates recorded
	LatestNotAfter Millis        `json:"latest_not_after,omitempty" cbor:"22,keyasint,omitempty"`
	Trace          string        `json:"trace,omitempty" cbor:"23,keyasint,omitempty"`
	Index          uint64        `json:"index" cbor:"24,keyasint"` // Raft index of its last change

	Emergency *Emergency `json:"emergency,omitempty" cbor:"25,keyasint,omitempty"` // as of its request

	BreakGlass bool        `json:"break_glass,omitempty" cbor:"26,keyasint,omitempty"` // it was made without the approvals that it requires
	Delegation *Delegation `json:"delegation,omitempty" cbor:"28,keyasint,omitempty"`  // as of its request
	Parent     string      `json:"parent,omitempty" cbor:"29,keyasint,omitempty"`      // as of its request
	Extensions []Extension `json:"extensions,omitempty" cbor:"27,keyasint,omitempty"`  // Expiry is that of the last

	// Escalated is what its votes fill where those that it requires had not decided in
	// time; nil: they fill the requirements.
	Escalated []Requirement `json:"escalated,omitempty" cbor:"30,keyasint,omitempty"`
}

// StateAt returns the state, counting an active grant as expired once its time
// is over, whether or not a tick has said so yet.
func (g Grant) StateAt(now Millis) GrantState {
	if g.State == GrantActive && now >= g.Expiry {
		return GrantExpired
	}
	return g.State
}
