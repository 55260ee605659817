package approval

// checkBase refuses a change to a policy or directory that is another one by
// now: applied to it, the change would undo what others changed meanwhile.
func (t *turn) checkBase(c Change) error {
	now := t.m.DirectoryRevision
	switch c.Edit.Kind {
	case EditPolicySet:
		now = t.m.PolicyRevision
	case EditSubjectUnblock:
		return nil // names the block itself
	case EditGroupSet, EditGroupDelete, EditPersonSet, EditPersonDelete:
	default:
		return invalid("unknown kind of change %q", c.Edit.Kind)
	}
	if c.BaseRevision != now {
		return stale("the change is to revision %d, and %d is in force", c.BaseRevision, now).
			then("look at what is in force now and propose the change again")
	}
	return nil
}

// edit writes what a change does, after checking it against the state as it is
// now: a person or group that it names may have gone since it was proposed.
func (t *turn) edit(c Change) error {
	if err := checkFields(c.Edit); err != nil {
		return err
	}
	if c.Edit.Kind == EditPolicySet {
		return t.setPolicy(c.Edit.YAML)
	}
	if c.Edit.Kind == EditSubjectUnblock {
		return t.unblock(c.Edit.Subject, c.BlockIndex)
	}
	if err := t.editDirectory(c.Edit); err != nil {
		return err
	}
	t.m.DirectoryRevision++
	return t.checkAdmins()
}

func (t *turn) editDirectory(e Edit) error {
	switch e.Kind {
	case EditGroupSet:
		if err := t.checkRoom(prefixGroup, e.Group.Name, MaxGroups); err != nil {
			return err
		}
		return t.setGroup(*e.Group)
	case EditGroupDelete:
		return t.deleteGroup(e.Name)
	case EditPersonSet:
		if err := t.checkRoom(prefixPerson, e.Person.Name, MaxPersons); err != nil {
			return err
		}
		return t.setPerson(*e.Person)
	case EditPersonDelete:
		return t.deletePerson(e.Name)
	case EditPolicySet, EditSubjectUnblock:
	}
	return invalid("unknown kind of change %q", e.Kind)
}

// checkRoom refuses one more record under prefix than most.
func (t *turn) checkRoom(prefix, name string, most int) error {
	if t.has(key(prefix, name)) {
		return nil
	}
	n := 0
	t.Scan([]byte(prefix), nil, func(_, _ []byte) bool {
		n++
		return n < most
	})
	if n >= most {
		return limited("there are %d already", n)
	}
	return nil
}

func (t *turn) setPolicy(yaml string) error {
	if err := t.checkPolicy(yaml); err != nil {
		return err
	}
	if err := t.checkLockout(yaml); err != nil {
		return err
	}
	if err := t.checkOwners(yaml); err != nil {
		return err
	}
	t.m.PolicyRevision++
	t.save([]byte(keyPolicy), PolicyDoc{Revision: t.m.PolicyRevision, YAML: yaml})
	return nil
}

// checkFields refuses an edit with a field that its kind does not have, or
// without the one that it does: an approver would read one thing and another
// would be done.
func checkFields(e Edit) error {
	want := Edit{Kind: e.Kind}
	missing := false
	switch e.Kind {
	case EditPolicySet:
		want.YAML, missing = e.YAML, e.YAML == ""
	case EditGroupSet:
		want.Group, missing = e.Group, e.Group == nil
	case EditPersonSet:
		want.Person, missing = e.Person, e.Person == nil
	case EditGroupDelete, EditPersonDelete:
		want.Name, missing = e.Name, e.Name == ""
	case EditSubjectUnblock:
		want.Subject, missing = e.Subject, e.Subject == ""
	default:
		return invalid("unknown kind of change %q", e.Kind)
	}
	if missing || e != want {
		return invalid("a change of kind %q has exactly the field of its kind", e.Kind)
	}
	return nil
}
