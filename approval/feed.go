package approval

// joinFeed puts an entry on the revocation feed until its time is over.
func (t *turn) joinFeed(at []byte, kind byte, id string, e FeedEntry) {
	t.save(at, e)
	t.mark(dueAt(prefixDue, e.Until, kind, id))
	t.feedChanged = true
}

// leaveFeed takes the entry that is due off the feed and returns its id.
func (t *turn) leaveFeed(item dueItem) string {
	t.feedChanged = true
	if item.kind == dueFeedIssuer {
		t.Delete(key(prefixFeedIssuer, item.id))
		return item.id
	}
	t.Delete(key(prefixFeedGrant, item.id))
	if early := key(prefixEarlyRevoked, item.id); t.has(early) {
		t.Delete(early)
	}
	return item.uid().String()
}
