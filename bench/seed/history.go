package seed

import (
	"container/heap"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/hallpass/hallpass/approval"
)

// Plan is how much a cluster has lived through.
type Plan struct {
	Grants  int       // about as many are made
	Entries int       // about as many audit entries there are in all
	Days    int       // over which they are spread evenly
	End     time.Time // the moment after the last
	Seed    uint64
}

// What becomes of requests and grants, in parts of a hundred.
const (
	refused  = 8  // requests that come to no grant: denied, withdrawn or left to expire
	returned = 15 // of grants
	revoked  = 4
	careful  = 20 // of requests, what two groups must approve
	byAgent  = 15 // for a subject that the requester owns
	withKey  = 5  // that came with a CSR
	narrow   = 40 // of requests, what asks for one thing rather than for all of a kind
)

const (
	certificateTTL = 5 * time.Minute
	renewEvery     = 4 * time.Minute
	tickAfter      = 700 * time.Millisecond // that something is due, a leader ticks
)

// session is one access request with all that comes of it.
type session struct {
	id, requester, subject, service, hash string
	service0                              int
	perms                                 []string
	duration                              time.Duration
	keys                                  string // of the subject, hex SHA-256
	left                                  int    // certificates to come
	expiry                                time.Time
	ends                                  string // how: "", "return" or "revoke"
	over                                  bool
	votes                                 int    // still needed
	voted                                 string // who decided last
	made                                  int    // batch that its request was made in
}

// event is one command to come.
type event struct {
	at    time.Time
	order uint64 // among those of one moment
	what  step
	of    *session
}

type step int

const (
	ask step = iota
	decide
	withdraw
	fetch
	finish
	tick
)

type calendar []event

func (c calendar) Len() int { return len(c) }
func (c calendar) Less(i, j int) bool {
	if !c[i].at.Equal(c[j].at) {
		return c[i].at.Before(c[j].at)
	}
	return c[i].order < c[j].order
}
func (c calendar) Swap(i, j int) { c[i], c[j] = c[j], c[i] }
func (c *calendar) Push(x any)   { *c = append(*c, x.(event)) } //nolint:forcetypeassert // heap's
func (c *calendar) Pop() any {
	old := *c
	last := old[len(old)-1]
	*c = old[:len(old)-1]
	return last
}

// history makes commands in the order of their times.
type history struct {
	plan    Plan
	rng     *rand.Rand
	words   []string // of reasons
	nodes   []string
	issuers map[string]string // node → id of its grant issuer
	coming  calendar
	order   uint64
	begin   time.Time
	asked   int           // requests so far
	grants  int           // of them, those that are to become grants
	entries int           // audit entries so far
	batch   int           // being filled
	soonest time.Duration // that somebody decides: until then, commands can be in one batch with what they are about
}

func newHistory(p Plan, nodes []string, issuers map[string]string) *history {
	h := &history{
		plan: p, rng: rand.New(rand.NewPCG(p.Seed, 0x5eed)), words: words(), nodes: nodes, issuers: issuers,
		begin: p.End.Add(-time.Duration(p.Days) * 24 * time.Hour),
	}
	each := p.End.Sub(h.begin) / time.Duration(max(p.Entries, 1))
	h.soonest = min(max(batchMost*each*3/4, time.Minute), approval.RequestLife/2)
	h.nextRequest(h.begin)
	return h
}

func (h *history) add(at time.Time, what step, of *session) {
	if !at.Before(h.plan.End) {
		return // it is still to come: alive, or pending
	}
	h.order++
	heap.Push(&h.coming, event{at, h.order, what, of})
}

// nextRequest plans the next request after a moment.
func (h *history) nextRequest(after time.Time) {
	span := h.plan.End.Sub(h.begin)
	requests := float64(h.plan.Grants) * (100.0 / (100 - refused))
	gap := time.Duration(h.rng.ExpFloat64() * float64(span) / requests)
	h.add(after.Add(gap), ask, nil)
}

// next returns the next event, unless it has to wait for what is in the batch.
func (h *history) next() (e event, ok, waits bool) {
	if len(h.coming) == 0 {
		return e, false, false
	}
	if first := h.coming[0]; first.of != nil && first.what == decide && first.of.made == h.batch {
		return e, false, true
	}
	return heap.Pop(&h.coming).(event), true, false //nolint:forcetypeassert // it holds nothing else
}

// command is what an event has somebody propose; an empty Kind and no Body is nothing.
func (h *history) command(e event, revisions func() (policy, directory uint64)) (c approval.Command, about *session) {
	c = approval.Command{
		V: approval.Version, ID: h.id(e.at), Now: e.at.UnixMilli(), Node: h.nodes[h.rng.IntN(len(h.nodes))],
	}
	policy, directory := revisions()
	switch e.what {
	case ask:
		return h.ask(c, e.at, policy, directory)
	case decide:
		return h.decide(c, e, policy, directory)
	case withdraw:
		c.Actor, c.Body, c.Idem = e.of.requester, approval.CancelRequest{Request: e.of.id}, h.key()
		e.of.over = true
	case fetch:
		return h.fetch(c, e)
	case finish:
		return h.finish(c, e)
	case tick:
		c.Body = approval.Tick{RetainMS: approval.Retention.Milliseconds()}
	}
	return c, e.of
}

func (h *history) ask(c approval.Command, at time.Time, policy, directory uint64) (approval.Command, *session) {
	h.nextRequest(at)
	h.asked++
	rng := h.rng
	s := &session{id: h.id(at), service0: rng.IntN(len(serviceNames())), votes: 1, made: h.batch}
	s.service, s.perms = serviceNames()[s.service0], reads(serviceNames()[s.service0])
	// Not of those who decide on it, nor of security: they would have a stake and no vote.
	name := owner(s.service0+2+rng.IntN(len(serviceNames())-2), rng.IntN(teamSize))
	for isSecurity(name) {
		name = personName(security + rng.IntN(persons-security))
	}
	if rng.IntN(100) < narrow {
		s.perms = one(rng, s.service)
	}
	s.requester = personID(name)
	s.subject = s.requester
	if rng.IntN(100) < byAgent {
		s.subject = agentID(name)
	}
	s.duration = []time.Duration{30 * time.Minute, time.Hour, time.Hour, 2 * time.Hour, 4 * time.Hour, 8 * time.Hour}[rng.IntN(6)]
	if rng.IntN(100) < careful {
		s.perms, s.votes, s.duration = writes(s.service), 2, min(s.duration, 2*time.Hour)
	}
	body := approval.CreateRequest{
		ID: s.id, Subject: s.subject, Service: s.service, Permissions: s.perms, Reason: reason(rng, h.words, s.service),
		Duration: s.duration.Milliseconds(), PolicyRevision: policy, DirectoryRevision: directory,
	}
	s.keys = h.hex(32)
	if rng.IntN(100) < withKey {
		body.CSRKey = s.keys
	}
	c.Actor, c.Body, c.Idem = s.requester, body, h.key()
	decided := at.Add(h.soonest + time.Duration(rng.ExpFloat64()*float64(15*time.Minute)))
	switch {
	case rng.IntN(100) >= refused:
		h.grants++
		h.fate(s)
		h.add(decided, decide, s)
	case rng.IntN(3) == 0:
		h.add(decided, withdraw, s)
	case rng.IntN(2) == 0:
		s.ends = "deny"
		h.add(decided, decide, s)
	default:
		h.due(at.Add(approval.RequestLife))
	}
	return c, s
}

// fate decides on how a grant is used and ends. How many certificates it has
// follows from how many entries a grant is to have, and how many there were so far.
func (h *history) fate(s *session) {
	switch n := h.rng.IntN(100); {
	case n < returned:
		s.ends = "return"
	case n < returned+revoked:
		s.ends = "revoke"
	}
	const others = 3.4 // entries of a request besides its certificates, about
	wanted := max(float64(h.plan.Entries)/float64(max(h.plan.Grants, 1))-others, 1)
	mean := wanted
	if h.grants > 100 { // those that end early have fewer, and so the others are given more
		had := max(float64(h.entries)/float64(h.grants)-others, 0.5)
		off := wanted / had
		mean *= min(max(off*off*off, 0.4), 2.5)
	}
	s.left = min(1+int(h.rng.ExpFloat64()*(mean-0.5)*1.5), int(s.duration/renewEvery))
}

func (h *history) decide(c approval.Command, e event, policy, directory uint64) (approval.Command, *session) {
	s := e.of
	body := approval.DecideRequest{
		Request: s.id, Hash: s.hash, Verdict: approval.Approve, Comment: comment(h.rng),
		PolicyRevision: policy, DirectoryRevision: directory,
	}
	by := ""
	for by == "" || personID(by) == s.requester || by == s.voted {
		if by = owner(s.service0, h.rng.IntN(teamSize)); s.votes == 2 { // security first, then one of the team
			by = personName(h.rng.IntN(security))
		}
	}
	s.voted = by
	if s.ends == "deny" {
		body.Verdict, s.over = approval.Deny, true
	}
	c.Actor, c.Body, c.Idem = personID(by), body, h.key()
	if s.over {
		return c, s
	}
	if s.votes--; s.votes > 0 {
		h.add(e.at.Add(time.Duration(h.rng.ExpFloat64()*float64(10*time.Minute))), decide, s)
		return c, s
	}
	s.expiry = e.at.Add(s.duration)
	first := e.at.Add(time.Duration(h.rng.ExpFloat64() * float64(30*time.Second)))
	h.add(first, fetch, s)
	switch end := e.at.Add(time.Duration(h.rng.Float64() * 0.9 * float64(s.duration))); s.ends {
	case "":
		h.due(s.expiry)
	default:
		h.add(end, finish, s)
		h.due(end.Add(certificateTTL + approval.FeedSkew)) // off the feed
	}
	return c, s
}

func (h *history) fetch(c approval.Command, e event) (approval.Command, *session) {
	s := e.of
	c.Body = nil
	if s.over || s.left == 0 || !e.at.Add(time.Second).Before(s.expiry) {
		return c, s
	}
	s.left--
	issuer := h.issuers[c.Node]
	end := e.at.Add(certificateTTL)
	if end.After(s.expiry) {
		end = s.expiry
	}
	c.Actor, c.Idem = s.subject, h.key()
	c.Body = approval.IssueGrant{
		Grant: s.id, Serial: h.serial(), TBSHash: h.hex(32), Issuer: issuer,
		NotBefore: e.at.Add(-10 * time.Second).UnixMilli(), NotAfter: end.UnixMilli(), Key: s.keys, CSRBy: s.subject,
	}
	h.add(e.at.Add(renewEvery+time.Duration(h.rng.Int64N(int64(20*time.Second)))), fetch, s)
	return c, s
}

func (h *history) finish(c approval.Command, e event) (approval.Command, *session) {
	s := e.of
	s.over = true
	c.Idem = h.key()
	if s.ends == "return" {
		c.Actor, c.Body = s.subject, approval.ReturnGrant{Grant: s.id}
		return c, s
	}
	c.Actor, c.Body = personID(owner(s.service0, h.rng.IntN(teamSize))), approval.RevokeGrant{Grant: s.id, Reason: "no longer needed, ticket closed"}
	return c, s
}

// due has the leader tick after a moment at which something is due.
func (h *history) due(due time.Time) { h.add(due.Add(tickAfter), tick, nil) }

func isSecurity(name string) bool {
	return slices.Contains(names(security, personName), name)
}

// id makes a UUIDv7 of a moment.
func (h *history) id(at time.Time) string {
	var u [16]byte
	binary.BigEndian.PutUint64(u[:8], uint64(at.UnixMilli())<<16|h.rng.Uint64()&0xfff)
	binary.BigEndian.PutUint64(u[8:], h.rng.Uint64())
	u[6], u[8] = u[6]&0xf|0x70, u[8]&0x3f|0x80
	return uuid(u)
}

func uuid(u [16]byte) string {
	var b [36]byte
	hex.Encode(b[:8], u[:4])
	hex.Encode(b[9:13], u[4:6])
	hex.Encode(b[14:18], u[6:8])
	hex.Encode(b[19:23], u[8:10])
	hex.Encode(b[24:], u[10:])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}

// hex makes n random bytes.
func (h *history) hex(n int) string {
	b := make([]byte, 0, n+8)
	for len(b) < n {
		b = binary.BigEndian.AppendUint64(b, h.rng.Uint64())
	}
	return hex.EncodeToString(b[:n])
}

// serial has 134 random bits, as those of the issuers.
func (h *history) serial() string { return "3" + h.hex(17)[1:] }

// key is a client's Idempotency-Key: a random UUID, as the client makes it.
func (h *history) key() *approval.Idem {
	var u [16]byte
	binary.BigEndian.PutUint64(u[:8], h.rng.Uint64())
	binary.BigEndian.PutUint64(u[8:], h.rng.Uint64())
	u[6], u[8] = u[6]&0xf|0x40, u[8]&0x3f|0x80
	return &approval.Idem{Key: uuid(u), BodyHash: h.hex(32)}
}
