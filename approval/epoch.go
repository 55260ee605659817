package approval

import "fmt"

// epochDetails is the audit leaf of an epoch.
type epochDetails struct {
	Epoch    uint64 `json:"epoch"`
	Began    Millis `json:"began"`
	Lineage  string `json:"lineage"`
	Reason   string `json:"reason"`
	Requests int    `json:"requests"`            // that were pending
	Grants   int    `json:"grants"`              // that were live
	Changes  int    `json:"changes"`             // that were pending
	Results  int    `json:"results"`             // kept for idempotency
	StandIns int    `json:"stand_ins,omitempty"` // that had not ended
}

// beginEpoch ends what the history before this log granted. Of that history, what
// came after the snapshot is forgotten: grants, revocations, votes, keys that were
// spent. What is known of it must not be believed to be all there was, so nothing
// that was open stays open. Grants end by the time in their ids, of which those
// here are some: see docs/decisions/0010.
func (t *turn) beginEpoch(b BeginEpoch) (Object, error) {
	if err := t.clusterOnly(); err != nil {
		return nil, err
	}
	if err := checkLineage(b.Lineage); err != nil {
		return nil, err
	}
	if err := checkText("the reason", b.Reason, 1); err != nil {
		return nil, err
	}
	if t.m.Lineage == b.Lineage {
		t.unchanged = true // a leader that did not hear that it had been done
		return t.state().Cluster()
	}
	// An id that the cluster has made must be older than the epoch: with a clock that
	// was set back, a revoked grant would pass for a new one.
	if b.Began <= int64(t.m.LastNow) || b.Began > maxNow {
		return nil, invalid("an epoch begins after the newest command, which is of %s, not at %d ms", t.m.LastNow, b.Began)
	}
	t.m.Epoch++
	t.m.EpochBegan, t.m.Lineage = Millis(b.Began), b.Lineage
	t.feedChanged = true
	d := epochDetails{Epoch: t.m.Epoch, Began: t.m.EpochBegan, Lineage: b.Lineage, Reason: b.Reason}
	if err := t.endAll(&d, fmt.Sprintf("epoch %d began: %s", t.m.Epoch, b.Reason)); err != nil {
		return nil, err
	}
	d.Results = t.burnKept()
	t.object, t.details = t.m.Cluster, d
	t.saveMeta()
	return t.state().Cluster()
}

// endAll ends all requests, grants and changes that have not ended.
func (t *turn) endAll(d *epochDetails, reason string) error {
	for _, u := range t.inState(prefixRequestState, string(RequestPending)) {
		r, err := t.state().Request(u.String())
		if err != nil {
			return err
		}
		t.endRequest(&r, RequestExpired)
		d.Requests++
	}
	for _, u := range t.inState(prefixGrantState, string(GrantActive)) {
		g, err := t.state().Grant(u.String())
		if err != nil {
			return err
		}
		d.Grants++
		if g.State != GrantActive {
			continue // it has ended with the one that it was made of
		}
		state, why := GrantRevoked, reason
		if g.StateAt(t.now) == GrantExpired {
			state, why = GrantExpired, ""
		}
		t.endGrant(&g, state, why)
	}
	for _, u := range t.inState(prefixChangeState, string(ChangePending)) {
		c, err := t.state().Change(u.String())
		if err != nil {
			return err
		}
		t.endChange(&c, ChangeExpired)
		d.Changes++
	}
	var err error
	d.StandIns, err = t.endStandIns()
	return err
}

// inState lists what is in a state, the newest first.
func (t *turn) inState(prefix, state string) (ids []uid) {
	under := pairPrefix(prefix, state)
	t.Scan(under, nil, func(k, _ []byte) bool {
		ids = append(ids, uid(k[len(under):]).turned())
		return true
	})
	return ids
}

// burnKept drops all results that were kept for idempotency, and says how many: the
// key of a call that was lost with the end of the log must not be told that of
// another.
func (t *turn) burnKept() (n int) {
	var spent [][]byte
	for _, prefix := range []string{prefixIdem, prefixIdemDue} {
		t.Scan([]byte(prefix), nil, func(k, _ []byte) bool {
			spent = append(spent, append([]byte(nil), k...))
			return true
		})
		if prefix == prefixIdem {
			n = len(spent)
		}
	}
	for _, k := range spent {
		t.Delete(k)
	}
	return n
}

// checkLineage refuses what is not the hex of 8 to 32 bytes.
func checkLineage(s string) error {
	ok := len(s) >= 16 && len(s) <= 64 && len(s)%2 == 0
	for i := range len(s) {
		ok = ok && ('0' <= s[i] && s[i] <= '9' || 'a' <= s[i] && s[i] <= 'f')
	}
	if !ok {
		return invalid("%q is not the lineage of a log: 16 to 64 hex digits in lower case", s)
	}
	return nil
}
