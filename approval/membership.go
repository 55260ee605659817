package approval

// Whether somebody is in a group is read off one index, person by person, that holds who counts in it now: it is written anew with
// whatever that depends on, by a command. No clock is asked while votes are counted, and the audit log says who counted, and since when.

// Counting returns who of a group is in it now: of its members those who are on call, where they take turns, and in the place of each
// who is away who stands in for them.
func (s State) Counting(g Group) ([]string, error) {
	here := g.Members
	if g.OnCall != nil {
		var err error
		if here, err = s.onCall(g); err != nil {
			return nil, err
		}
	}
	return s.inPlace(g, here)
}

// counted returns the group of a name, and who is in it now: nobody, where there is none yet.
func (t *turn) counted(group string) (g Group, now []string, err error) {
	g, ok, err := load[Group](t, key(prefixGroup, group))
	if err != nil || !ok {
		return g, nil, err
	}
	now, err = t.state().Counting(g)
	return g, now, err
}

// recount has those in the index who are in a group now, in place of those who were.
func (t *turn) recount(was []string, g Group) error {
	now, err := t.state().Counting(g)
	if err != nil {
		return err
	}
	for _, name := range was {
		t.unmark(pairKey(prefixMember, name, g.Name))
	}
	for _, name := range now {
		t.mark(pairKey(prefixMember, name, g.Name))
	}
	return nil
}
