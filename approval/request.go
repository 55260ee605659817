package approval

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/policy"
)

// requestDetails is the audit leaf of what happens to a request. Members are in
// the order in which the leaf has them, so that it need not be sorted again.
type requestDetails struct {
	Answers        []string            `json:"answers,omitempty"` // that conditions of the policy came to
	BreakGlass     *glassDetails       `json:"break_glass,omitempty"`
	Bundles        []string            `json:"bundles,omitempty"` // that its permissions were asked for by
	Comment        string              `json:"comment,omitempty"`
	CSRKey         string              `json:"csr_key,omitempty"`
	Decision       Verdict             `json:"decision,omitempty"`
	Delegation     *delegationDetails  `json:"delegation,omitempty"`
	DurationMS     int64               `json:"duration_ms,omitempty"`
	Escalation     *escalationDetails  `json:"escalation,omitempty"` // who may approve instead, and after how long
	Extends        string              `json:"extends,omitempty"`    // a grant
	Grant          *grantDetails       `json:"grant,omitempty"`
	Hash           string              `json:"hash"`
	Notify         []string            `json:"notify,omitempty"` // targets that are told of it by its rules
	Parent         string              `json:"parent,omitempty"` // the grant that it is made of
	Permissions    []string            `json:"permissions,omitempty"`
	Person         string              `json:"person,omitempty"`
	PolicyRevision uint64              `json:"policy_revision,omitempty"`
	Reason         string              `json:"reason,omitempty"`
	Requirements   []requirementDetail `json:"requirements,omitempty"`
	Rules          []string            `json:"rules,omitempty"`
	NoCertificate  bool                `json:"no_certificate,omitempty"` // of the person who decided was seen: it came in from Slack
	Slack          string              `json:"slack,omitempty"`          // account whose button it was
	Service        string              `json:"service,omitempty"`
	Start          Millis              `json:"start,omitempty"`
	State          RequestState        `json:"state"`
	Subject        string              `json:"subject,omitempty"`
}

// requirementDetail is a Requirement in that order.
type requirementDetail struct {
	Approvals int    `json:"approvals"`
	Group     string `json:"group"`
}

func requirementDetails(all []Requirement) (out []requirementDetail) {
	for _, q := range all {
		out = append(out, requirementDetail{Approvals: q.Approvals, Group: q.Group})
	}
	return out
}

// createRequest opens an access request, or grants it when policy needs nobody.
func (t *turn) createRequest(b CreateRequest) (Object, error) {
	t.object = b.ID
	r, err := t.draftRequest(b)
	if err != nil {
		return nil, err
	}
	if err := t.checkRevisions(b.PolicyRevision, b.DirectoryRevision); err != nil {
		return nil, err
	}
	if err := t.checkBundles(r, b.Permissions); err != nil {
		return nil, err
	}
	if err := t.checkRequestLimits(r); err != nil {
		return nil, err
	}
	v := Revision{Permissions: b.Permissions, DurationMS: b.Duration, By: r.Requester, At: t.now}
	out, err := t.decided(&r, v, b)
	if err != nil {
		return nil, err
	}
	if !out.Allowed {
		return nil, denied("%s", out.Reason)
	}
	r.Notify = out.Notify // as it was asked for: what is narrowed is told to the same
	var glass *glassDetails
	if r.Review != nil {
		if glass, err = t.breakGlass(&r, out); err != nil {
			return nil, err
		}
	}
	if v, err = pin(&r, v, out); err != nil {
		return nil, err
	}
	d := requestDetails{
		Answers: answerTexts(b.Answers), BreakGlass: glass, Extends: r.extends(), Parent: r.Parent, Delegation: r.Delegation.details(), Bundles: r.Bundles,
		Subject: r.Subject, Service: r.Service, Permissions: v.Permissions, DurationMS: v.DurationMS,
		Start: r.Start, Reason: r.Reason, CSRKey: r.CSRKey, PolicyRevision: r.PolicyRevision,
		Rules: r.Rules, Requirements: requirementDetails(v.Requirements), Person: t.person, Hash: v.Hash, Escalation: v.Escalation.details(), Notify: r.Notify,
	}
	t.openRequest(&r)
	if r.Review != nil {
		t.openReview(r)
	}
	if r.Auto || r.Review != nil || r.Parent != "" {
		if d.Grant, err = t.approve(&r, nil, v.Requirements); err != nil {
			return nil, err
		}
	}
	d.State = r.State
	t.details = d
	return r, nil
}

// decided is what the policy says, or has said to the grant that r is made of.
func (t *turn) decided(r *Request, v Revision, b CreateRequest) (policy.Outcome, error) {
	if b.Parent != "" {
		return t.childOf(r, b)
	}
	out, err := t.outcome(*r, v, b.Answers)
	r.Delegation = delegationOf(out.Delegation)
	return out, err
}

// draftRequest checks what the caller said, apart from policy.
func (t *turn) draftRequest(b CreateRequest) (Request, error) {
	u, ok := parseUID(b.ID)
	if !ok {
		return Request{}, invalid("request id %q is not a UUIDv7", b.ID)
	}
	if u.made() < t.m.EpochBegan {
		// The proxies refuse grants whose id is older than the epoch; one that was made all the
		// same would be a grant on paper.
		return Request{}, stale("request %s is older than epoch %d, which began at %s", b.ID, t.m.Epoch, t.m.EpochBegan).then("ask again")
	}
	if t.has(recordKey(u)) {
		return Request{}, conflict("there is a request %s already", b.ID)
	}
	if t.has(keyUID(prefixEarlyRevoked, u)) {
		return Request{}, conflict("grant %s was revoked as an emergency grant", b.ID)
	}
	if err := t.checkSubject("the subject", b.Subject); err != nil {
		return Request{}, err
	}
	if err := checkText("the reason", b.Reason, 1); err != nil {
		return Request{}, err
	}
	if b.CSRKey != "" {
		if err := checkHash("the key of the CSR", b.CSRKey); err != nil {
			return Request{}, err
		}
	}
	r := Request{
		ID: b.ID, State: RequestPending, Requester: t.actor.String(), RequesterPerson: t.person,
		Subject: b.Subject, Service: b.Service, Reason: b.Reason, CSRKey: b.CSRKey,
		PolicyRevision: b.PolicyRevision, Decisions: []Decision{}, Created: t.now, Trace: t.cmd.Trace, Bundles: b.Bundles,
	}
	if b.CSRKey != "" {
		r.CSRBy = r.Requester
	}
	if b.Delegable {
		r.Delegation = &Delegation{} // what it says is up to the policy
	}
	if b.BreakGlass {
		r.Review = &Review{} // what it says is up to the policy
	}
	if err := t.checkScope(r, b.Permissions); err != nil {
		return Request{}, err
	}
	if err := t.checkTimes(&r, b.Start, b.Duration); err != nil || b.Extends == "" {
		return r, err
	}
	return r, t.draftExtension(&r, b)
}

// extends is the grant that a request extends, "" for none.
func (r Request) extends() string {
	if r.Extends == nil {
		return ""
	}
	return r.Extends.Grant
}

// checkScope refuses a scope that is not canonical or too long for a SPIFFE ID.
func (t *turn) checkScope(r Request, permissions []string) error {
	if len(permissions) == 0 || len(permissions) > MaxPermissions {
		return invalid("a request has 1 to %d permissions, not %d", MaxPermissions, len(permissions))
	}
	scope, err := t.scopeOf(r.Service, permissions)
	if err != nil {
		return invalid("%v", err)
	}
	if texts := scope.Texts(); !slices.Equal(texts, permissions) {
		return invalid("the permissions are not in canonical form, which is %q", texts)
	}
	_, err = grantIDOf(t.m.GrantTrustDomain, r, scope)
	return err
}

// scopeOf is grant.ParseScope, once for the same words.
func (t *turn) scopeOf(service string, permissions []string) (grant.Scope, error) {
	if last := t.parsed; last != nil && last.service == service && slices.Equal(last.permissions, permissions) {
		return last.scope, nil
	}
	scope, err := grant.ParseScope(service, permissions)
	if err == nil {
		t.parsed = &parsedScope{service, permissions, scope}
	}
	return scope, err
}

type parsedScope struct {
	service     string
	permissions []string
	scope       grant.Scope
}

// grantID is the SPIFFE ID of the certificates of r's grant, in the trust domain
// of grants.
func grantID(domain string, r Request, permissions []string) (string, error) {
	scope, err := grant.ParseScope(r.Service, permissions)
	if err != nil {
		return "", invalid("%v", err)
	}
	return grantIDOf(domain, r, scope)
}

func grantIDOf(domain string, r Request, scope grant.Scope) (string, error) {
	td, err := spiffeid.TrustDomainFromString(domain)
	if err != nil {
		return "", err
	}
	subject, err := spiffeid.FromString(r.Subject)
	if err != nil {
		return "", err
	}
	id, err := grant.NewID(td, scope, subject, r.ID)
	if err != nil {
		return "", invalid("%v", err).then("ask for less, or in more than one request")
	}
	return id.String(), nil
}

func (t *turn) checkTimes(r *Request, start, duration int64) error {
	if duration < 1000 || duration > MaxGrantLife.Milliseconds() {
		return invalid("a duration is from 1s to %s, not %d ms", MaxGrantLife, duration)
	}
	r.Expires = t.now.Add(RequestLife)
	if start == 0 {
		return nil
	}
	if start < int64(t.now)-lateStart.Milliseconds() || start > int64(t.now.Add(MaxAhead)) {
		return invalid("the start %s is not from now to %s ahead", Millis(min(max(start, 0), maxNow)), MaxAhead)
	}
	r.Start = Millis(start)
	r.Expires = r.Start + Millis(duration)
	return nil
}

// checkRequestLimits refuses one who is blocked or has too many requests open.
func (t *turn) checkRequestLimits(r Request) error {
	for _, id := range []string{r.Subject, r.Requester} {
		if err := t.checkBlocked(id); err != nil {
			return err
		}
	}
	if n := t.countOpen(pairPrefix(prefixPendingReq, r.Requester), MaxPendingRequests); n >= MaxPendingRequests {
		return limited("%s has %d pending requests", r.Requester, n).then("cancel some, or wait until they are decided")
	}
	return nil
}

// countOpen counts, up to n, what stands under prefix and has not run out.
func (t *turn) countOpen(prefix []byte, n int) int {
	open, seen := 0, 0
	t.Scan(prefix, nil, func(_, v []byte) bool {
		if seen++; len(v) == 8 && Millis(binary.BigEndian.Uint64(v)) > t.now {
			open++
		}
		if seen >= 8*n {
			// So many that a tick has yet to clear away: count them as open.
			open = n
		}
		return open < n
	})
	return open
}

// until is the value of the keys that countOpen counts.
func until(m Millis) []byte { return binary.BigEndian.AppendUint64(nil, uint64(max(m, 0))) }

// openRequest writes a new request with its indexes.
func (t *turn) openRequest(r *Request) {
	u, _ := parseUID(r.ID)
	for _, k := range recordIndex(*r) {
		t.mark(k)
	}
	t.enterState(prefixRequestState, u, string(r.State))
	t.Put(pairKey(prefixPendingReq, r.Requester, string(u[:])), until(r.Expires))
	t.mark(dueAt(prefixDue, r.Expires, dueRequest, string(u[:])))
	t.awaitEscalation(*r)
	t.saveRequest(r)
}

// recordIndex is the keys that list a request, with its grant, by service and by
// who has a part in it. It never changes.
func recordIndex(r Request) [][]byte {
	u, _ := parseUID(r.ID)
	d := u.turned()
	keys := [][]byte{pairKey(prefixByService, r.Service, string(d[:])), pairKey(prefixByWho, r.Requester, string(d[:]))}
	if r.Subject != r.Requester {
		keys = append(keys, pairKey(prefixByWho, r.Subject, string(d[:])))
	}
	return keys
}

// saveRequest writes a request, beside its grant if it has one: only what was
// approved has.
func (t *turn) saveRequest(r *Request) {
	u, _ := parseUID(r.ID)
	r.Index = t.index
	if r.State != RequestApproved {
		t.keep(*r, nil)
		return
	}
	g, ok, err := t.state().grantAt(u)
	switch {
	case err != nil:
		t.fail(err)
	case ok:
		t.keep(*r, &g)
	default:
		t.keep(*r, nil)
	}
}

// saveGrant writes a grant, beside its request.
func (t *turn) saveGrant(g *Grant) {
	u, _ := parseUID(g.ID)
	g.Index = t.index
	r, ok, err := t.state().requestAt(u)
	if err == nil && !ok {
		err = fmt.Errorf("%w: grant %s has no request", errStored, g.ID)
	}
	if err != nil {
		t.fail(err)
		return
	}
	t.keep(r, g)
}

func (t *turn) keep(r Request, g *Grant) {
	u, _ := parseUID(r.ID)
	record, err := pack(r, g)
	if err != nil {
		t.fail(err)
		return
	}
	t.save(recordKey(u), record)
}

// endRequest takes a request out of the pending ones, for good.
func (t *turn) endRequest(r *Request, state RequestState) {
	u, _ := parseUID(r.ID)
	t.leaveState(prefixRequestState, u, string(r.State))
	t.enterState(prefixRequestState, u, string(state))
	t.unmark(pairKey(prefixPendingReq, r.Requester, string(u[:])))
	t.unmark(dueAt(prefixDue, r.Expires, dueRequest, string(u[:])))
	t.noEscalation(*r)
	r.State, r.Ended, r.EndedBy = state, t.now, t.cmd.Actor
	if state != RequestApproved || r.Extends != nil { // what has a grant ends with it
		t.mark(dueAt(prefixEnded, r.Ended, endedRecord, string(u[:])))
	}
	t.saveRequest(r)
}

// usual says whether a state is where most come to in the end. There is no list
// of those: it would be nearly the list of all.
func usual(prefix, state string) bool {
	return prefix == prefixRequestState && state == string(RequestApproved) ||
		prefix == prefixGrantState && state == string(GrantExpired)
}

// enterState and leaveState keep the lists by state.
func (t *turn) enterState(prefix string, u uid, state string) {
	if d := u.turned(); !usual(prefix, state) {
		t.mark(pairKey(prefix, state, string(d[:])))
	}
}

func (t *turn) leaveState(prefix string, u uid, state string) {
	if d := u.turned(); !usual(prefix, state) {
		t.unmark(pairKey(prefix, state, string(d[:])))
	}
}

// pendingRequest returns a request that can still be decided on.
func (t *turn) pendingRequest(id string) (Request, error) {
	r, err := t.state().Request(id)
	if err != nil {
		return Request{}, err
	}
	switch state := r.StateAt(t.now); state {
	case RequestPending:
		return r, nil
	case RequestExpired:
		return Request{}, expired("request %s expired at %s", id, r.Expires).then("ask again")
	default:
		return Request{}, conflict("request %s is %s already", id, state)
	}
}

// cancelRequest withdraws a request: by who asked, as any of their IDs, or by
// its subject.
func (t *turn) cancelRequest(b CancelRequest) (Object, error) {
	r, err := t.pendingRequest(b.Request)
	if err != nil {
		return nil, err
	}
	actor := t.actor.String()
	if actor != r.Requester && actor != r.Subject && (t.person == "" || t.person != r.RequesterPerson) {
		return nil, denied("only its requester or its subject cancels a request").then("deny it instead, if you may decide on it")
	}
	t.endRequest(&r, RequestCancelled)
	t.details = requestDetails{Extends: r.extends(), Hash: r.Hash(), State: r.State}
	return r, nil
}
