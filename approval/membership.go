package approval

// Whether somebody is in a group is read off one index, person by person, that holds who counts in it now: it is written anew with
// whatever that depends on, by a command. No clock is asked while votes are counted, and the audit log says who counted, and since when.

// counting returns who of a group is in it now.
func (s State) counting(g Group) ([]string, error) { return s.inPlace(g, g.Members) }

// counted returns who is in the group of a name now: nobody, where there is none yet.
func (t *turn) counted(group string) ([]string, error) {
	g, ok, err := load[Group](t, key(prefixGroup, group))
	if err != nil || !ok {
		return nil, err
	}
	return t.state().counting(g)
}

// recount has those in the index who are in a group now, in place of those who were.
func (t *turn) recount(was []string, g Group) error {
	now, err := t.state().counting(g)
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
