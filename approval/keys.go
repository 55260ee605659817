package approval

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
)

// The keys. Every list that anyone asks for is a range of keys, so that work is
// bounded by what is answered and not by what there is. <id> is the 16 bytes of
// a UUIDv7, <di> the same with all bits turned, so that ascending keys are
// newest first; <ms> is a moment in 8 big-endian bytes; 0 is a NUL byte, which
// no name or SPIFFE ID holds.
//
//	m                        counters and names            (meta)
//	y                        the policy                    (PolicyDoc)
//	mf                       the newest manifest taken     (manifestTaken)
//	n/NAME                   members                       (Node)
//	s/ISSUER                 issuers                       (Issuer)
//	o/ROLE                   roots                         (Roots)
//	p/PERSON                 persons                       (Person)
//	pi/SPIFFE-ID             → PERSON
//	po/SUBJECT 0 PERSON      who owns a subject
//	ps/ACCOUNT               of Slack → PERSON
//	g/GROUP                  groups                        (Group)
//	gm/PERSON 0 GROUP        which groups a person is in now
//	gd/GROUP                 who of a group is on call (Duty)
//	gq/<ms> KIND GROUP       …and until when
//	si/GROUP 0 PERSON        who stands in for a member who is away (StandIn)
//	sf/PERSON 0 GROUP        …by who is away → who stands in
//	b/SUBJECT                blocks                        (Block)
//	r/<di>                   requests, each with its grant (storedRequest)
//	rv/SERVICE 0 <di>        …by service
//	rw/SPIFFE-ID 0 <di>      …by requester, and by subject
//	rs/STATE 0 <di>          …by the state of the request, but for approved
//	ts/STATE 0 <di>          …by the state of the grant, but for expired
//	tl/SUBJECT 0 <id>        grants that have not ended, by subject → their expiry
//	tc/<id> 0 <id>           …that were made of another, by that one → their expiry
//	vo/<di>                  requests whose review is open
//	vp/PERSON 0 <id>         …by who broke the glass → when the review is due
//	c/<id>                   changes                       (Change)
//	ca/<di> cs/STATE 0 <di> cq/AUTHOR 0 <di>
//	x/SERIAL                 certificates recorded         (Issue)
//	xg/<id> SERIAL           …of a grant
//	fg/<id> fi/ISSUER        the revocation feed           (FeedEntry)
//	j/ISSUER                 what was imported of emergency issuers (EmergencyJournal)
//	jn/ISSUER 0 <n>          hashes of their records, n in 8 big-endian bytes
//	jr/<id>                  emergency grants revoked before they were imported (EmergencyRevocation)
//	al/LOG                   access logs that proxies anchored (AccessLog)
//	aw/SERVICE-ID 0 LOG      …by service
//	ab/SERVICE-ID 0 LOG      what is wrong with them       (LogAlarm)
//	ad/<ms> KIND ID          when each was anchored or raised last
//	ot/TARGET                how far notifications have gone (Target)
//	ox/TARGET 0 <n>          dead letters (DeadLetter), n is the audit entry in 8 big-endian bytes
//	rp/REQUESTER 0 <id>      pending requests, by requester → when they expire
//	rq/<ms> KIND <id>        …that are to be escalated, and when
//	cp/AUTHOR 0 <id>         pending changes, by author → when they expire
//	k/HASH                   results kept for idempotency  (kept)
//	kd/<ms> KIND HASH        when they are dropped
//	d/<ms> KIND ID           what is due, and when
//	e/<ms> KIND ID           what has ended, and when
//	xd/<ms> KIND SERIAL      when certificates end
//	ah/<n>                   tree hashes of the audit log from the roots of chunks up, n in 8 big-endian bytes
//	ae/<level>               the last tree hash of a level below them, after its place in 8 bytes
//
// The bodies of the audit log are records beside the state: see Tx.Append.
const (
	keyMeta            = "m"
	keyPolicy          = "y"
	keyManifest        = "mf"
	prefixNode         = "n/"
	prefixIssuer       = "s/"
	prefixRoots        = "o/"
	prefixPerson       = "p/"
	prefixPersonID     = "pi/"
	prefixOwner        = "po/"
	prefixSlack        = "ps/"
	prefixGroup        = "g/"
	prefixMember       = "gm/"
	prefixDuty         = "gd/"
	prefixDutyDue      = "gq/"
	prefixStandIn      = "si/"
	prefixStandInFor   = "sf/"
	prefixBlock        = "b/"
	prefixRecord       = "r/"
	prefixByService    = "rv/"
	prefixByWho        = "rw/"
	prefixRequestState = "rs/"
	prefixGrantState   = "ts/"
	prefixLiveGrant    = "tl/"
	prefixChange       = "c/"
	prefixIssue        = "x/"
	prefixGrantIssue   = "xg/"
	prefixIssueDue     = "xd/"
	prefixFeedGrant    = "fg/"
	prefixFeedIssuer   = "fi/"
	prefixIdem         = "k/"
	prefixIdemDue      = "kd/"
	prefixDue          = "d/"
	prefixPendingReq   = "rp/"
	prefixEscalate     = "rq/"
	prefixPendingChg   = "cp/"
	prefixAuditHash    = "ah/"
	prefixAuditEdge    = "ae/"
	prefixEnded        = "e/"
	prefixChangeAll    = "ca/"
	prefixChangeState  = "cs/"
	prefixChangeAuthor = "cq/"
	prefixJournal      = "j/"
	prefixJournalPlace = "jn/"
	prefixEarlyRevoked = "jr/"
	prefixAccessLog    = "al/"
	prefixLogOf        = "aw/"
	prefixLogAlarm     = "ab/"
	prefixAnchorEnds   = "ad/"
	prefixChildOf      = "tc/"
	prefixOpenReview   = "vo/"
	prefixReviewOf     = "vp/"
	prefixTarget       = "ot/"
	prefixDeadLetter   = "ox/"
)

// What is due, in the order in which it is done at one moment.
const (
	dueRequest    = 'r'
	dueGrant      = 't'
	dueChange     = 'c'
	dueFeedGrant  = 'u'
	dueFeedIssuer = 'v'
	dueIdem       = 'k'
	dueEscalation = 'q'
	dueDuty       = 'd'
	dueStandIn    = 's'
)

// What has ended, or runs out without a leaf of its own.
const (
	endedRecord = 'r' // a request, with its grant if it came to one
	endedChange = 'c'
	endedIssue  = 'x'
	endedLog    = 'l'
	endedAlarm  = 'b'
)

// uid is a UUIDv7 as it stands in keys.
type uid [16]byte

// parseUID reads a UUIDv7 in its one text form: lower case, with hyphens.
func parseUID(s string) (uid, bool) {
	var u uid
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return u, false
	}
	digits := make([]byte, 0, 32)
	for i := range len(s) {
		c := s[i]
		switch {
		case i == 8 || i == 13 || i == 18 || i == 23:
		case '0' <= c && c <= '9', 'a' <= c && c <= 'f':
			digits = append(digits, c)
		default:
			return u, false
		}
	}
	if _, err := hex.Decode(u[:], digits); err != nil {
		return u, false
	}
	return u, u[6]>>4 == 7 && u[8]>>6 == 2
}

func (u uid) String() string {
	var b [36]byte
	hex.Encode(b[:8], u[:4])
	b[8] = '-'
	hex.Encode(b[9:13], u[4:6])
	b[13] = '-'
	hex.Encode(b[14:18], u[6:8])
	b[18] = '-'
	hex.Encode(b[19:23], u[8:10])
	b[23] = '-'
	hex.Encode(b[24:], u[10:])
	return string(b[:])
}

// made is the time in u, in milliseconds: its first 48 bits.
func (u uid) made() Millis {
	return Millis(binary.BigEndian.Uint64(u[:8]) >> 16)
}

// turned returns u with all bits turned, which sorts the other way round.
func (u uid) turned() uid {
	for i := range u {
		u[i] = ^u[i]
	}
	return u
}

func key(prefix, name string) []byte { return append([]byte(prefix), name...) }

// recordKey is where a request and its grant are kept, newest first.
func recordKey(u uid) []byte { return keyUID(prefixRecord, u.turned()) }

func keyUID(prefix string, u uid) []byte { return append([]byte(prefix), u[:]...) }

// pairKey is prefix, first, NUL, second.
func pairKey(prefix, first, second string) []byte {
	return append(pairPrefix(prefix, first), second...)
}

func pairPrefix(prefix, first string) []byte {
	k := make([]byte, 0, len(prefix)+len(first)+1+36)
	k = append(append(k, prefix...), first...)
	return append(k, 0)
}

func hashKey(n uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte(prefixAuditHash), n)
}

func edgeKey(level int) []byte { return append([]byte(prefixAuditEdge), byte(level)) }

// dueAt is the key that says what is due at a moment.
func dueAt(prefix string, at Millis, kind byte, id string) []byte {
	k := binary.BigEndian.AppendUint64([]byte(prefix), uint64(max(at, 0)))
	return append(append(k, kind), id...)
}

// dueItem is a due key taken apart.
type dueItem struct {
	key  []byte
	at   Millis
	kind byte
	id   string
}

// uid is an id that is a UUID.
func (i dueItem) uid() (u uid) {
	copy(u[:], i.id)
	return u
}

// parseDue takes a key that dueAt made apart.
func parseDue(prefix string, k []byte) (dueItem, bool) {
	if len(k) < len(prefix)+9 {
		return dueItem{}, false
	}
	rest := k[len(prefix):]
	return dueItem{key: bytes.Clone(k), at: Millis(binary.BigEndian.Uint64(rest)), kind: rest[8], id: string(rest[9:])}, true
}
