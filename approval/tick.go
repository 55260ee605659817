package approval

import "time"

// keptSlack is how long kept results may outlive their time before a tick is
// due for them alone. They count for nothing meanwhile.
const keptSlack = time.Hour

// Due is what a tick would find.
type Due struct {
	Now  bool   // something is due
	Next Millis // when the first thing is due; 0: nothing ever is
}

// Due says whether a tick at now would have something to do.
func (s State) Due(now Millis) Due {
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
// makes lists say so and takes entries off the feed.
func (t *turn) tick() (Object, error) {
	var done Ticked
	items, more := t.due(prefixDue, t.now, maxDue)
	done.More = more
	for _, item := range items {
		t.unmark(item.key)
		if err := t.end(item, &done); err != nil {
			return nil, err
		}
	}
	done.Pruned = t.pruneKept(maxDue)
	t.unchanged = len(items) == 0 && done.Pruned == 0
	t.details = done
	return done, nil
}

func (t *turn) end(item dueItem, done *Ticked) error {
	switch item.kind {
	case dueRequest:
		r, err := find[Request](t, key(prefixRequest, item.id), "request", item.id)
		if err != nil {
			return err
		}
		done.Requests = append(done.Requests, r.ID)
		t.endRequest(&r, RequestExpired)
	case dueGrant:
		g, err := find[Grant](t, key(prefixGrant, item.id), "grant", item.id)
		if err != nil {
			return err
		}
		done.Grants = append(done.Grants, g.ID)
		t.endGrant(&g, GrantExpired, "")
	case dueChange:
		c, err := find[Change](t, key(prefixChange, item.id), "change", item.id)
		if err != nil {
			return err
		}
		done.Changes = append(done.Changes, c.ID)
		t.endChange(&c, ChangeExpired)
	case dueFeedGrant, dueFeedIssuer:
		done.Feed = append(done.Feed, t.leaveFeed(item))
	}
	return nil
}
