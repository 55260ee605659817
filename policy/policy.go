package policy

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/grant"
)

// Limits of a policy. A request is decided inside the state machine, so its
// cost must be bounded.
const (
	// MaxSize is the number of bytes over which a policy is refused.
	MaxSize = 256 << 10
	// MaxRules is the number of rules a policy may have.
	MaxRules = 1000
	// MaxApprovals is the number of approvals a rule may demand of one group.
	MaxApprovals = 20
	// MaxDuration is the longest grant a rule may allow.
	MaxDuration = 30 * 24 * time.Hour
	// MinDuration is the shortest max_duration and certificate_ttl.
	MinDuration = time.Minute
	// DefaultCertificateTTL is the certificate_ttl of a rule without one,
	// unless its max_duration is shorter.
	DefaultCertificateTTL = 5 * time.Minute

	maxList = 100
	maxName = 63
)

// Policy is a checked set of rules, as [Parse] returns it. The zero value has
// no rules and denies everything. It is immutable.
type Policy struct {
	rules    []rule
	services map[string]service // version 2: those that there are; nil: not said
	tests    []Test
	version  int
	slack    Slack // zero: nobody decides there
}

// service is what version 2 says of one, for conditions to look at, and version 3
// for requesters to find it by.
type service struct {
	tier        string
	labels      map[string]string
	description string
	owners      []string
	bundles     []Bundle
}

// Request is what is asked for, and by whom.
type Request struct {
	// Requester is the SPIFFE ID of the caller.
	Requester spiffeid.ID
	// Groups are those of the requester's person; empty when it maps to none.
	Groups []string
	// Subject is whom the grant is for; often the requester.
	Subject spiffeid.ID
	// Scope is the service and the permissions there.
	Scope grant.Scope
	// Duration is how long the grant is to live.
	Duration time.Duration
	// Reason is why, in the requester's words.
	Reason string
	// Delegable asks that its subject may make grants of it for others.
	Delegable bool
	// Total is how long the grant would live that the request extends, with this
	// extension; 0: it extends none.
	Total time.Duration
	// BreakGlass asks to do without the approvals that the policy requires.
	BreakGlass bool
	// Start is when the grant would begin. Decide does not look at it: conditions
	// do, before.
	Start time.Time
	// Answers are to the Questions that the policy has about this request, in
	// their order.
	Answers []Answer
}

// Requirement is a group and how many of its persons must approve.
type Requirement struct {
	Group     string `json:"group"`
	Approvals int    `json:"approvals"`
}

// Outcome is what the policy says about a request.
type Outcome struct {
	// Allowed says that the request may be made.
	Allowed bool
	// Auto says that it is granted at once. Exactly one of Auto and a
	// non-empty Require holds for an allowed request.
	Auto bool
	// Rules names the rules that apply, in the policy's order.
	Rules []string
	// Require is what must be met, all of it: sorted by group, each group once.
	Require []Requirement
	// MaxDuration is the longest duration that may be asked for. Also set when
	// the request was denied for asking for more.
	MaxDuration time.Duration
	// CertificateTTL is how long each certificate of the grant may live.
	CertificateTTL time.Duration
	// Escalation is there when others may approve once nobody has for a while.
	Escalation *Escalation
	// Notify names targets of notifications that are told of the request, whatever
	// becomes of it: sorted, each once.
	Notify []string
	// BreakGlass is there when the request is granted at once though it would have
	// to be approved: Require says by whom.
	BreakGlass *BrokenGlass
	// StepUp is how long ago at most whoever approves in a browser must have signed
	// in; 0: it does not matter.
	StepUp time.Duration
	// Channels are those by which it may be decided besides certificates.
	Channels []string
	// Delegation is there for an allowed request that asked for it.
	Delegation *Delegation
	// Reason says why the request is denied, and what would be right.
	Reason string
}

// rule is one checked rule. Exactly one of auto, deny and require is set.
type rule struct {
	name           string
	line           int
	service        string // "*": every one of the policy's services
	requesters     []pattern
	subjects       []pattern
	permissions    []grant.Permission
	match          expression
	reason         *reasonRule
	auto           bool
	deny           string
	require        []Requirement
	maxDuration    time.Duration
	certificateTTL time.Duration
	breakGlass     *breakGlass   // nil: nobody may
	delegate       *delegate     // nil: nothing may be delegated
	notify         []string      // names of targets
	escalate       *escalate     // nil: nobody else is ever asked
	maxExtended    time.Duration // of a grant with its extensions; 0: it has none
	stepUp         time.Duration // 0: a browser may have signed in whenever it was
	channels       []string      // nil: certificates alone
}

// Version is that of the policy's form: what its text says under version.
func (p *Policy) Version() int {
	if p == nil {
		return 0
	}
	return p.version
}

// Groups returns every group that the policy names, as requesters, as approvers,
// as those whom a rule escalates to, as those who may break the glass, as reviewers or
// as owners, sorted, each once.
func (p *Policy) Groups() []string {
	if p == nil {
		return nil
	}
	groups := p.owners(groupPrefix)
	for _, r := range p.rules {
		for _, q := range r.requesters {
			if q.group != "" {
				groups = append(groups, q.group)
			}
		}
		for _, q := range r.require {
			groups = append(groups, q.Group)
		}
		if r.escalate != nil {
			for _, q := range r.escalate.to {
				groups = append(groups, q.Group)
			}
		}
		if b := r.breakGlass; b != nil {
			groups = append(append(groups, b.groups...), b.reviewers...)
		}
	}
	slices.Sort(groups)
	return slices.Compact(groups)
}

// Names returns the names of the rules in the policy's order.
func (p *Policy) Names() []string {
	if p == nil {
		return nil
	}
	names := make([]string, len(p.rules))
	for i, r := range p.rules {
		names[i] = r.name
	}
	return names
}

// ErrName is returned when a group's or rule's name is malformed.
var ErrName = errors.New("bad name")

// ValidName checks that a name can be a group's or a rule's: 1 to 63 of a-z,
// 0-9, ".", "_" and "-", the first a letter or digit. Errors wrap [ErrName].
func ValidName(name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("%w %q: write 1 to %d characters", ErrName, name, maxName)
	}
	for i, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case i > 0 && (c == '.' || c == '_' || c == '-'):
		default:
			return fmt.Errorf("%w %q: write lower-case letters, digits, \".\", \"_\" and \"-\", first a letter or digit", ErrName, name)
		}
	}
	return nil
}
