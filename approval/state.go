package approval

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/hallpass/hallpass/audit"
	"github.com/hallpass/hallpass/policy"
)

// State answers questions about the state as a Reader shows it. It is as short
// lived as the Reader's transaction.
type State struct {
	r      Reader
	memory *Memory // nil: none
}

// Read returns the state in r.
func Read(r Reader) State { return State{r: r} }

// found is meta, or false before the bootstrap.
func (s State) found() (meta, bool, error) {
	if s.memory == nil {
		return load[meta](s.r, []byte(keyMeta))
	}
	return recall(&s.memory.meta, s.r, []byte(keyMeta), decodeMeta)
}

func (s State) meta() (meta, error) {
	m, ok, err := s.found()
	if err == nil && !ok {
		err = &Error{Code: CodeNotFound, Detail: "the cluster has not been bootstrapped"}
	}
	return m, err
}

// Cluster returns what the cluster is. The error is ErrNotFound before the
// bootstrap.
func (s State) Cluster() (Cluster, error) {
	m, err := s.meta()
	if err != nil {
		return Cluster{}, err
	}
	nodes, err := every[Node](s.r, prefixNode)
	if err != nil {
		return Cluster{}, err
	}
	issuers, err := every[Issuer](s.r, prefixIssuer)
	if err != nil {
		return Cluster{}, err
	}
	return Cluster{
		ID: m.Cluster, TrustDomain: m.TrustDomain, GrantTrustDomain: m.GrantTrustDomain,
		Epoch: m.Epoch, EpochBegan: m.EpochBegan, Lineage: m.Lineage, LastNow: m.LastNow,
		PolicyRevision: m.PolicyRevision, DirectoryRevision: m.DirectoryRevision,
		FeedRevision: m.FeedRevision, AuditSize: m.AuditSize,
		Manifest: m.Manifest, Removed: m.Removed, Version: m.version(),
		Nodes: nodes, Issuers: issuers,
	}, nil
}

// Request returns a request, or ErrNotFound.
func (s State) Request(id string) (Request, error) { return named(s.requestAt, "request", id) }

// Grant returns a grant, or ErrNotFound.
func (s State) Grant(id string) (Grant, error) { return named(s.grantAt, "grant", id) }

// Change returns a change, or ErrNotFound.
func (s State) Change(id string) (Change, error) { return named(s.changeAt, "change", id) }

// named reads what an id names, and says so when there is no such thing.
func named[T any](read func(uid) (T, bool, error), what, id string) (T, error) {
	u, ok := parseUID(id)
	if !ok {
		var none T
		return none, &Error{Code: CodeNotFound, Detail: fmt.Sprintf("there is no %s %q", what, id), Next: "ids are UUIDs in lower case, as the list prints them"}
	}
	v, ok, err := read(u)
	if err == nil && !ok {
		err = &Error{Code: CodeNotFound, Detail: fmt.Sprintf("there is no %s %q", what, id)}
	}
	return v, err
}

func (s State) requestAt(u uid) (Request, bool, error) {
	record, ok, err := load[storedRequest](s.r, recordKey(u))
	if err != nil || !ok {
		return Request{}, false, err
	}
	r, err := record.unpack(u)
	return r, err == nil, err
}

func (s State) grantAt(u uid) (Grant, bool, error) {
	_, g, ok, err := s.grantRecord(u)
	return g, ok, err
}

// grantRecord is grantAt with the record that the grant is in.
func (s State) grantRecord(u uid) (storedRequest, Grant, bool, error) {
	record, ok, err := load[storedRequest](s.r, recordKey(u))
	if err != nil || !ok || record.Grant == nil {
		return record, Grant{}, false, err
	}
	m, err := s.meta()
	if err != nil {
		return record, Grant{}, false, err
	}
	g, ok, err := record.unpackGrant(u, m.GrantTrustDomain)
	return record, g, ok, err
}

func (s State) changeAt(u uid) (Change, bool, error) {
	return load[Change](s.r, keyUID(prefixChange, u))
}

// Policy returns the policy in force.
func (s State) Policy() (PolicyDoc, error) {
	return find[PolicyDoc](s.r, []byte(keyPolicy), "policy", "")
}

// Rules returns the policy in force as it reads. One that cannot be read denies
// everything.
func (s State) Rules() (*policy.Policy, error) {
	memory := s.memory
	if memory == nil {
		memory = new(Memory)
	}
	p, ok, err := recall(&memory.policy, s.r, []byte(keyPolicy), decodePolicy)
	if err == nil && !ok {
		_, err = s.Policy()
	}
	return p, err
}

// Revisions are what a command says it was decided on from.
type Revisions struct {
	Policy, Directory uint64
	Epoch             uint64
	EpochBegan        Millis
}

// Revisions returns those in force, or ErrNotFound before the bootstrap.
func (s State) Revisions() (Revisions, error) {
	m, err := s.meta()
	return Revisions{Policy: m.PolicyRevision, Directory: m.DirectoryRevision, Epoch: m.Epoch, EpochBegan: m.EpochBegan}, err
}

// Persons returns all persons by name.
func (s State) Persons() ([]Person, error) { return every[Person](s.r, prefixPerson) }

// Groups returns all groups by name.
func (s State) Groups() ([]Group, error) { return every[Group](s.r, prefixGroup) }

// PersonOf returns the person behind a SPIFFE ID; false when it maps to none.
func (s State) PersonOf(id spiffeid.ID) (Person, bool, error) {
	name := s.personOf(id)
	if name == "" {
		return Person{}, false, nil
	}
	if s.memory == nil {
		return load[Person](s.r, key(prefixPerson, name))
	}
	return recall(&s.memory.person, s.r, key(prefixPerson, name), decodePerson)
}

// PersonName returns the name of the person behind a SPIFFE ID, "" for none.
func (s State) PersonName(id spiffeid.ID) string { return s.personOf(id) }

// GroupsOf returns the names of the groups a person is in, sorted.
func (s State) GroupsOf(person string) []string {
	return suffixes(s.r, pairPrefix(prefixMember, person))
}

// Owners returns the names of the persons who own a subject, sorted.
func (s State) Owners(subject spiffeid.ID) []string {
	return suffixes(s.r, pairPrefix(prefixOwner, subject.String()))
}

// suffixes returns what follows prefix in each key under it.
func suffixes(r Reader, prefix []byte) []string {
	var all []string
	r.Scan(prefix, nil, func(k, _ []byte) bool {
		all = append(all, string(k[len(prefix):]))
		return true
	})
	return all
}

// Block returns the block on a subject; false when there is none.
func (s State) Block(subject spiffeid.ID) (Block, bool, error) {
	return load[Block](s.r, key(prefixBlock, subject.String()))
}

// Blocks returns all blocks.
func (s State) Blocks() ([]Block, error) { return every[Block](s.r, prefixBlock) }

// Issuer returns an issuer, or ErrNotFound.
func (s State) Issuer(id string) (Issuer, error) {
	return find[Issuer](s.r, key(prefixIssuer, id), "issuer", id)
}

// Roots returns the roots that sign the issuers of a role, or ErrNotFound before
// the bootstrap.
func (s State) Roots(role Role) (Roots, error) {
	return find[Roots](s.r, key(prefixRoots, string(role)), "roots for", string(role))
}

// EmergencyJournals returns what was imported of emergency issuers, by issuer.
func (s State) EmergencyJournals() ([]EmergencyJournal, error) {
	return every[EmergencyJournal](s.r, prefixJournal)
}

// TrustRevision counts changes of roots, issuers and API certificates; 0 before
// the bootstrap.
func (s State) TrustRevision() (uint64, error) {
	m, err := s.meta()
	if errors.Is(err, ErrNotFound) {
		return 0, nil
	}
	return m.TrustRevision, err
}

// IssuersOf returns a node's issuers, by id.
func (s State) IssuersOf(node string) ([]Issuer, error) {
	all, err := every[Issuer](s.r, prefixIssuer)
	return slices.DeleteFunc(all, func(i Issuer) bool { return i.Node != node }), err
}

// Version is that of the commands which are accepted.
func (s State) Version() (int, error) {
	m, err := s.meta()
	if errors.Is(err, ErrNotFound) {
		return 1, nil
	}
	return m.version(), err
}

// RosterRevision is that of Roster.
func (s State) RosterRevision() (uint64, error) {
	m, err := s.meta()
	return RosterRevision(m.Manifest) + m.Removed, err
}

// Roster returns the nodes that talk to each other. It changed if and only if the
// revision is higher; a manifest's own, before it is taken, is RosterRevision of
// its sequence number.
func (s State) Roster() (revision uint64, nodes []Node, err error) {
	m, err := s.meta()
	if err != nil {
		return 0, nil, err
	}
	nodes, err = every[Node](s.r, prefixNode)
	return RosterRevision(m.Manifest) + m.Removed, nodes, err
}

// RosterRevision is the revision of the nodes as a manifest lists them.
func RosterRevision(sequence uint64) uint64 { return sequence << 32 }

// Node returns a member of the cluster, or ErrNotFound.
func (s State) Node(id string) (Node, error) {
	return find[Node](s.r, key(prefixNode, id), "node", id)
}

// Feed returns the revocation feed.
func (s State) Feed() (Feed, error) {
	m, err := s.meta()
	if err != nil {
		return Feed{}, err
	}
	grants, err := every[FeedEntry](s.r, prefixFeedGrant)
	if err != nil {
		return Feed{}, err
	}
	issuers, err := every[FeedEntry](s.r, prefixFeedIssuer)
	if err != nil {
		return Feed{}, err
	}
	return Feed{Epoch: m.Epoch, Began: m.EpochBegan, Revision: m.FeedRevision, Grants: grants, Issuers: issuers}, nil
}

// Issue returns the record of a certificate by its serial (lower-case hex), or
// ErrNotFound.
func (s State) Issue(serial string) (Issue, error) {
	return find[Issue](s.r, key(prefixIssue, serial), "certificate", serial)
}

// Issuances returns the records of a grant's certificates, by serial.
func (s State) Issuances(grantID string) ([]Issue, error) {
	u, ok := parseUID(grantID)
	if !ok {
		return nil, nil
	}
	var all []Issue
	for _, serial := range suffixes(s.r, keyUID(prefixGrantIssue, u)) {
		issue, err := s.Issue(serial)
		if err != nil {
			return nil, err
		}
		all = append(all, issue)
	}
	return all, nil
}

// AuditSize returns the number of leaves of the audit log, whose bodies are as
// many records; 0 before the bootstrap.
func (s State) AuditSize() (int64, error) {
	m, err := s.meta()
	if errors.Is(err, ErrNotFound) {
		return 0, nil
	}
	return int64(m.AuditSize), err
}

// Outlines reports whether a pair is one that Cluster, AuditSize, GetHash and
// CheckRecords read: few, whatever the state holds.
func Outlines(key []byte) bool {
	if string(key) == keyMeta {
		return true
	}
	for _, prefix := range []string{prefixNode, prefixIssuer, prefixAuditHash, prefixAuditEdge} {
		if bytes.HasPrefix(key, []byte(prefix)) {
			return true
		}
	}
	return false
}

// GetHash implements audit.HashReader, for the roots of chunks, for what is above
// them, and for the last hash of each level below.
func (s State) GetHash(index int64) (tlog.Hash, bool) {
	if index < 0 {
		return tlog.Hash{}, false
	}
	data := s.r.Get(hashKey(uint64(index)))
	if level, n := tlog.SplitStoredHashIndex(index); level < audit.ChunkLevel {
		data = s.r.Get(edgeKey(level))
		if len(data) < 8 || binary.BigEndian.Uint64(data) != uint64(n) {
			return tlog.Hash{}, false
		}
		data = data[8:]
	}
	if len(data) != tlog.HashSize {
		return tlog.Hash{}, false
	}
	return tlog.Hash(data), true
}

// personOf returns the name of the person behind a SPIFFE ID, "" for none.
func (s State) personOf(id spiffeid.ID) string {
	return string(s.r.Get(key(prefixPersonID, id.String())))
}

// IsAdmin says whether the person behind a SPIFFE ID is an admin.
func (s State) IsAdmin(id spiffeid.ID) bool {
	name := s.personOf(id)
	return name != "" && s.isMember(name, AdminGroup)
}

func (s State) isMember(person, group string) bool {
	return s.r.Get(pairKey(prefixMember, person, group)) != nil
}

// hasNUL refuses what would reach out of its place in a key.
func hasNUL(s string) bool { return strings.IndexByte(s, 0) >= 0 }
