package approval

// seat is one approval that a requirement needs.
type seat struct {
	group  string
	person int // who fills it, -1 for nobody yet
}

// seats lays out requirements, one seat an approval.
func seats(requirements []Requirement) []seat {
	var all []seat
	for _, q := range requirements {
		for range q.Approvals {
			all = append(all, seat{group: q.Group, person: -1})
		}
	}
	return all
}

// match seats persons, each at most once, on seats of groups they are in, so
// that as many seats as possible are filled; groups[i] are those of person i. It
// is bipartite matching by augmenting paths, and the same input gives the same
// seating. Greedy seating is not enough: of two persons, the one in both groups
// must leave the seat that the other can fill.
func match(all []seat, groups []map[string]bool) (filled int) {
	for s := range all {
		if augment(all, groups, s, make([]bool, len(groups))) {
			filled++
		}
	}
	return filled
}

// augment finds a person for seat s, moving others to other seats if need be.
func augment(all []seat, groups []map[string]bool, s int, asked []bool) bool {
	for p := range groups {
		if asked[p] || !groups[p][all[s].group] {
			continue
		}
		asked[p] = true
		at := seatOf(all, p)
		if at < 0 || augment(all, groups, at, asked) {
			all[s].person = p
			return true
		}
	}
	return false
}

func seatOf(all []seat, person int) int {
	for i := range all {
		if all[i].person == person {
			return i
		}
	}
	return -1
}
