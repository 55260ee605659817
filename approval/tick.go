package approval

import "time"

// keptSlack is how long what only takes up room may outlive its time before a
// tick is due for it alone: kept results, records of certificates, and what is
// to be forgotten. It counts for nothing meanwhile.
const keptSlack = time.Hour

// Due is what a tick would find.
type Due struct {
	Now  bool   // something is due
	Next Millis // when the first thing is due; 0: nothing ever is
}

// Due says whether a tick at now would have something to do, with what is kept
// for so long after it ended.
func (s State) Due(now Millis, retain time.Duration) Due {
	var d Due
	first := func(prefix string, slack time.Duration) {
		s.r.Scan([]byte(prefix), nil, func(k, _ []byte) bool {
			if item, ok := parseDue(prefix, k); ok && (d.Next == 0 || item.at.Add(slack) < d.Next) {
				d.Next = item.at.Add(slack)
			}
			return false
		})
	}
	first(prefixDue, 0)
	first(prefixIdemDue, keptSlack)
	first(prefixIssueDue, IssueLife+keptSlack)
	first(prefixEnded, retain+keptSlack)
	d.Now = d.Next != 0 && d.Next <= now
	return d
}

// due returns up to n of what is due at now, the oldest first, and whether there
// is more.
func (t *turn) due(prefix string, now Millis, n int) (items []dueItem, more bool) {
	t.Scan([]byte(prefix), nil, func(k, _ []byte) bool {
		item, ok := parseDue(prefix, k)
		if !ok || item.at > now {
			return false
		}
		if len(items) == n {
			more = true
			return false
		}
		items = append(items, item)
		return true
	})
	return items, more
}

// tick ends what has run out. All checks count it as ended already; the tick
// makes lists say so, takes entries off the feed, and forgets what ended long
// ago.
func (t *turn) tick(b Tick) (Object, error) {
	retain := time.Duration(b.RetainMS) * time.Millisecond
	if retain < MinRetention || retain > MaxRetention {
		return nil, invalid("what has ended is kept for %s to %s, not for %d ms", MinRetention, MaxRetention, b.RetainMS)
	}
	var done Ticked
	items, more := t.due(prefixDue, t.now, maxDue)
	for _, item := range items {
		t.unmark(item.key)
		if err := t.end(item, &done); err != nil {
			return nil, err
		}
	}
	done.Pruned = t.pruneKept(maxDue)
	issues, err := t.pruneIssues(maxDue)
	if err != nil {
		return nil, err
	}
	done.Pruned += issues
	if done.Pruned > 0 && issues < maxDue && t.m.version() >= 2 {
		if done.Issuers, err = t.forgetIssuers(); err != nil {
			return nil, err
		}
	}
	if !more { // nothing of what is forgotten may be on the feed
		if done.Forgotten, more, err = t.forgetEnded(retain, maxDue); err != nil {
			return nil, err
		}
	}
	done.More = more
	t.unchanged = len(items) == 0 && done.Pruned == 0 && len(done.Forgotten) == 0
	t.details = done
	return done, nil
}

func (t *turn) end(item dueItem, done *Ticked) error {
	switch item.kind {
	case dueRequest:
		r, err := dueObject(t.state().Request, item)
		if err != nil {
			return err
		}
		done.Requests = append(done.Requests, r.ID)
		t.endRequest(&r, RequestExpired)
	case dueGrant:
		g, err := dueObject(t.state().Grant, item)
		if err != nil {
			return err
		}
		done.Grants = append(done.Grants, g.ID)
		t.endGrant(&g, GrantExpired, "")
	case dueChange:
		c, err := dueObject(t.state().Change, item)
		if err != nil {
			return err
		}
		done.Changes = append(done.Changes, c.ID)
		t.endChange(&c, ChangeExpired)
	case dueStandIn:
		in, err := t.ranOut(item)
		if err != nil {
			return err
		}
		done.StandIns = append(done.StandIns, in)
	case dueFeedGrant, dueFeedIssuer:
		done.Feed = append(done.Feed, t.leaveFeed(item))
	}
	return nil
}

// dueObject reads what a key with the 16 bytes of an id is about.
func dueObject[T any](read func(id string) (T, error), item dueItem) (T, error) {
	return read(item.uid().String())
}
