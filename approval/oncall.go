package approval

import (
	"slices"
	"time"
)

// A group may have its members in it by turns: whoever is on call. Two admins say who the members are and how they take turns, by
// the group itself; who is on call now is a Duty, an entry of the log that nothing else may write. Nobody who is no member is ever put on call.

// What a rota may be.
const (
	MinShift = time.Hour
	MaxShift = 35 * 24 * time.Hour

	// MaxDuty is how long what a resolver says holds at the most.
	MaxDuty = 24 * time.Hour
)

// Otherwise says who of a group is in it while its resolver has said nothing that still holds.
type Otherwise string

// The answers.
const (
	OtherwiseMembers Otherwise = "members"
	OtherwiseNobody  Otherwise = "nobody"
)

// OnCall says how members take turns: by a rota, or as a resolver says, in which case Otherwise alone is set besides.
type OnCall struct {
	Order   []string `json:"order,omitempty" cbor:"1,keyasint,omitempty"`    // members, one after the other
	From    Millis   `json:"from,omitempty" cbor:"2,keyasint,omitempty"`     // when the first one's turn begins
	EveryMS int64    `json:"every_ms,omitempty" cbor:"3,keyasint,omitempty"` // from one hand-over to the next
	AtOnce  int      `json:"at_once,omitempty" cbor:"4,keyasint,omitempty"`  // how many are on call together

	Resolver  bool      `json:"resolver,omitempty" cbor:"5,keyasint,omitempty"`
	Otherwise Otherwise `json:"otherwise,omitempty" cbor:"6,keyasint,omitempty"`
}

// Duty is who of a group is on call.
type Duty struct {
	Group   string   `json:"group" cbor:"1,keyasint"`
	Persons []string `json:"persons" cbor:"2,keyasint"`
	Since   Millis   `json:"since" cbor:"3,keyasint"`
	Until   Millis   `json:"until" cbor:"4,keyasint"` // when it is looked at again, and what a resolver said holds no more
	Index   uint64   `json:"index" cbor:"5,keyasint"`
}

func (Duty) objectKind() string { return "duty" }

// SetDuty has a group's hand-over made, or what its resolver said taken in. The actor is the cluster. Of a rota it names the group
// alone: Apply works out whose turn it is. Of a resolver it has who is on call and until when, or nothing where what it said holds no more.
type SetDuty struct {
	Group   string   `cbor:"1,keyasint"`
	Persons []string `cbor:"2,keyasint,omitempty"`
	Until   Millis   `cbor:"3,keyasint,omitempty"`
}

func (SetDuty) kind() Kind       { return KindSetDuty }
func (b SetDuty) target() string { return b.Group }

// dutyDetails is the audit leaf of it.
type dutyDetails struct {
	Persons []string  `json:"persons"`
	Until   Millis    `json:"until,omitempty"`
	Lapsed  Otherwise `json:"lapsed,omitempty"` // nothing that the resolver said holds: who is in the group instead
}

// rota reports whether members take turns in a fixed order.
func (o *OnCall) rota() bool { return o != nil && !o.Resolver }

// turnAt says who is on call at a moment, and when the next hand-over is. The order goes on for ever, before From as well.
func (o *OnCall) turnAt(now Millis) (persons []string, next Millis) {
	shift := int64(now-o.From) / o.EveryMS
	if int64(now-o.From)%o.EveryMS < 0 {
		shift--
	}
	n := int64(len(o.Order))
	first := (shift%n + n) % n
	for i := range int64(o.AtOnce) {
		persons = append(persons, o.Order[(first+i)%n])
	}
	return persons, o.From + Millis((shift+1)*o.EveryMS)
}

// checkOnCall refuses turns that are none, or of others than the members.
func checkOnCall(g Group) error {
	o := g.OnCall
	if o == nil {
		return nil
	}
	if g.Name == AdminGroup {
		// Who answers for the rota's hand-over would decide which admins there are.
		return invalid("group %q is never on call by turns: changes need two admins besides their author, whoever they are", g.Name)
	}
	if o.Resolver {
		if len(o.Order)+o.AtOnce > 0 || o.From != 0 || o.EveryMS != 0 {
			return invalid("group %q: its resolver says who is on call, or a rota does, not both", g.Name)
		}
		if o.Otherwise != OtherwiseMembers && o.Otherwise != OtherwiseNobody {
			return invalid("group %q: who is in it while the resolver says nothing: want %q or %q, not %q", g.Name, OtherwiseMembers, OtherwiseNobody, o.Otherwise)
		}
		return nil
	}
	every := time.Duration(o.EveryMS) * time.Millisecond
	switch {
	case o.Otherwise != "":
		return invalid("group %q: %q is for who has a resolver: a rota always says who is on call", g.Name, o.Otherwise)
	case len(o.Order) < 2:
		return invalid("group %q: a rota of %d: want two or more who take turns", g.Name, len(o.Order))
	case o.AtOnce < 1 || o.AtOnce >= len(o.Order):
		return invalid("group %q: %d of %d on call at once: want 1 to %d", g.Name, o.AtOnce, len(o.Order), len(o.Order)-1)
	case o.EveryMS < MinShift.Milliseconds() || o.EveryMS > MaxShift.Milliseconds():
		return invalid("group %q: a hand-over every %s: want %s to %s", g.Name, every, MinShift, MaxShift)
	case o.From <= 0 || int64(o.From) > maxMoment:
		return invalid("group %q: a rota needs the moment at which its first turn begins", g.Name)
	}
	for _, name := range o.Order {
		if !slices.Contains(g.Members, name) {
			// The rota would let somebody in whom nobody reads among the members.
			return invalid("group %q: the rota has %q, who is no member", g.Name, name).then("add the person to the members, or take them off the rota")
		}
	}
	return checkDistinct("the rota of group "+g.Name, o.Order)
}

// maxMoment is a moment so late that nothing is reckoned from a later one: the year 9999.
const maxMoment int64 = 253402300799000

// Duty returns who of a group is on call; false where nothing says so.
func (s State) Duty(group string) (Duty, bool, error) {
	return load[Duty](s.r, key(prefixDuty, group))
}

// onCall returns who of g's members are on call.
func (s State) onCall(g Group) ([]string, error) {
	d, ok, err := s.Duty(g.Name)
	switch {
	case err != nil:
		return nil, err
	case ok:
		return d.Persons, nil
	case g.OnCall.Otherwise == OtherwiseMembers:
		return g.Members, nil
	default:
		return nil, nil
	}
}

// DutiesDue returns up to n groups of whose turns the next is due, or whose resolver's last word holds no more.
func (s State) DutiesDue(now Millis, n int) (groups []string) {
	s.r.Scan([]byte(prefixDutyDue), nil, func(k, _ []byte) bool {
		item, ok := parseDue(prefixDutyDue, k)
		if !ok || item.at > now || len(groups) == n {
			return false
		}
		groups = append(groups, item.id)
		return true
	})
	return groups
}

// saveDuty writes who is on call, without the index of who counts.
func (t *turn) saveDuty(d Duty) error {
	if err := t.dropDuty(d.Group); err != nil {
		return err
	}
	d.Index = t.index
	t.save(key(prefixDuty, d.Group), d)
	t.mark(dueAt(prefixDutyDue, d.Until, dueDuty, d.Group))
	return nil
}

func (t *turn) dropDuty(group string) error {
	d, ok, err := t.state().Duty(group)
	if err != nil || !ok {
		return err
	}
	t.Delete(key(prefixDuty, group))
	t.unmark(dueAt(prefixDutyDue, d.Until, dueDuty, group))
	return nil
}

// renewDuty makes who is on call fit a group that was just changed: a rota begins at once, and what a resolver said of those who
// are no members any more is forgotten.
func (t *turn) renewDuty(old *OnCall, g Group) error {
	if g.OnCall.rota() {
		persons, next := g.OnCall.turnAt(t.now)
		return t.saveDuty(Duty{Group: g.Name, Persons: persons, Since: t.now, Until: next})
	}
	d, ok, err := t.state().Duty(g.Name)
	if err != nil || !ok {
		return err
	}
	if g.OnCall == nil || old == nil || !old.Resolver {
		return t.dropDuty(g.Name)
	}
	here := slices.DeleteFunc(slices.Clone(d.Persons), func(name string) bool { return !slices.Contains(g.Members, name) })
	if len(d.Persons) > 0 && len(here) == 0 {
		return t.dropDuty(g.Name) // nobody has said that nobody is on call
	}
	d.Persons = here
	return t.saveDuty(d)
}

// setDuty makes a hand-over, or takes in what a resolver said. A second leader that does so, too, finds that it was done.
func (t *turn) setDuty(b SetDuty) (Object, error) {
	g, err := find[Group](t, key(prefixGroup, b.Group), "group", b.Group)
	if err != nil {
		return nil, err
	}
	if g.OnCall == nil {
		return nil, conflict("in group %q nobody takes turns", g.Name)
	}
	old, _, err := t.state().Duty(g.Name)
	if err != nil {
		return nil, err
	}
	d, err := t.nextDuty(g, old, b)
	if err != nil || t.unchanged {
		return old, err
	}
	was, err := t.state().Counting(g)
	if err != nil {
		return nil, err
	}
	t.details = dutyDetails{Persons: d.Persons, Until: d.Until}
	if d.Until == 0 {
		t.details = dutyDetails{Persons: []string{}, Lapsed: g.OnCall.Otherwise}
		err = t.dropDuty(g.Name)
	} else {
		err = t.saveDuty(d)
	}
	if err != nil {
		return nil, err
	}
	return d, t.recount(was, g)
}

// nextDuty is who is on call from now on; one without an end says that nothing holds.
func (t *turn) nextDuty(g Group, old Duty, b SetDuty) (Duty, error) {
	d := Duty{Group: g.Name, Persons: []string{}, Since: t.now, Index: t.index}
	if g.OnCall.rota() {
		if len(b.Persons) > 0 || b.Until != 0 {
			// A stolen node would put on call whom it likes of the members.
			return d, invalid("the rota of group %q says who is on call, nobody else does", g.Name)
		}
		d.Persons, d.Until = g.OnCall.turnAt(t.now)
		t.unchanged = d.Until == old.Until
		return d, nil
	}
	if b.Until == 0 {
		if len(b.Persons) > 0 {
			return d, invalid("who is on call in group %q, and not until when", g.Name)
		}
		if t.unchanged = old.Until == 0; !t.unchanged && t.now < old.Until {
			// A stolen node would have all members in the group, before its time.
			return d, conflict("what the resolver of group %q said holds until %s", g.Name, old.Until)
		}
		return d, nil
	}
	if b.Until <= t.now || b.Until > t.now.Add(MaxDuty) {
		return d, invalid("who is on call in group %q holds until %s: want a moment within %s from now", g.Name, b.Until, MaxDuty)
	}
	for _, name := range b.Persons {
		if !slices.Contains(g.Members, name) {
			// Whoever runs the resolver would let in whom no two admins let in.
			return d, invalid("%q is no member of group %q and cannot be on call in it", name, g.Name).
				then("have an admin propose the member, or mend what the resolver says")
		}
	}
	if err := checkDistinct("who is on call in group "+g.Name, b.Persons); err != nil {
		return d, err
	}
	d.Persons, d.Until = append(d.Persons, b.Persons...), b.Until
	t.unchanged = d.Until == old.Until && slices.Equal(d.Persons, old.Persons)
	return d, nil
}

// onCall checks who of a group is on call.
func (c *checker) onCall(g Group) {
	d, ok, err := c.s.Duty(g.Name)
	c.need(err == nil && checkOnCall(g) == nil, "group %q: %v, %v", g.Name, err, checkOnCall(g))
	c.need(ok || !g.OnCall.rota(), "nobody is on call by the rota of group %q", g.Name)
	if !ok {
		return
	}
	c.want[string(key(prefixDuty, g.Name))] = nil
	c.mark(dueAt(prefixDutyDue, d.Until, dueDuty, g.Name))
	c.need(g.OnCall != nil && d.Group == g.Name && d.Since <= c.m.LastNow && d.Since < d.Until, "who is on call in group %q, which calls itself %q, from %s to %s", g.Name, d.Group, d.Since, d.Until)
	c.need(checkDistinct(g.Name, d.Persons) == nil, "group %q has somebody on call twice", g.Name)
	for _, name := range d.Persons {
		c.need(slices.Contains(g.Members, name), "%q is on call in group %q and no member", name, g.Name)
	}
	if g.OnCall.rota() {
		persons, next := g.OnCall.turnAt(d.Since)
		c.need(slices.Equal(persons, d.Persons) && next == d.Until, "%q are on call in group %q until %s, by its rota %q until %s", d.Persons, g.Name, d.Until, persons, next)
	} else if g.OnCall != nil {
		c.need(d.Until <= d.Since.Add(MaxDuty), "what the resolver of group %q said holds from %s to %s", g.Name, d.Since, d.Until)
	}
}
