package approval

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A member of a group who is away has somebody stand in for them: one of those whom the group lists for that, which two admins
// agreed to. Who stands in counts in the group in the member's place, and the member does not: it is one voice, not two. A
// stolen certificate of a member's lets nobody in whom no two admins have let in.

// NameStandIn has somebody stand in for the actor, who is a member, from now on.
type NameStandIn struct {
	Group  string `cbor:"1,keyasint"`
	By     string `cbor:"2,keyasint"` // one of the group's substitutes
	Until  int64  `cbor:"3,keyasint"` // unix ms, at most MaxStandIn ahead
	Reason string `cbor:"4,keyasint"`
}

// EndStandIn has a member back. The actor is that member, who stands in for them, or an admin.
type EndStandIn struct {
	Group string `cbor:"1,keyasint"`
	For   string `cbor:"2,keyasint"`
}

func (NameStandIn) kind() Kind { return KindNameStandIn }
func (EndStandIn) kind() Kind  { return KindEndStandIn }

func (b NameStandIn) target() string { return b.Group }
func (b EndStandIn) target() string  { return b.Group }

// StandIn says who counts in a group in the place of a member, and until when.
type StandIn struct {
	Group  string `json:"group" cbor:"1,keyasint"`
	For    string `json:"for" cbor:"2,keyasint"`
	By     string `json:"by" cbor:"3,keyasint"`
	Reason string `json:"reason" cbor:"4,keyasint"`
	Since  Millis `json:"since" cbor:"5,keyasint"`
	Until  Millis `json:"until" cbor:"6,keyasint"`
	Index  uint64 `json:"index" cbor:"7,keyasint"`
}

func (StandIn) objectKind() string { return "stand-in" }

// standInDetails is the audit leaf of one that begins or ends.
type standInDetails struct {
	By     string `json:"by"`
	Ended  string `json:"ended,omitempty"` // the person who ended it before its time
	For    string `json:"for"`
	Reason string `json:"reason"`
	Since  Millis `json:"since"`
	Until  Millis `json:"until"`
}

func standInKey(group, member string) []byte { return pairKey(prefixStandIn, group, member) }

// due is the key by which a tick finds that it has run out.
func (s StandIn) due() []byte { return dueAt(prefixDue, s.Until, dueStandIn, s.Group+"\x00"+s.For) }

// StandIns returns who stands in for whom in a group, by who is away.
func (s State) StandIns(group string) ([]StandIn, error) {
	return every[StandIn](s.r, string(pairPrefix(prefixStandIn, group)))
}

// Away returns who stands in for whom, by the member who is away.
func (s State) Away() (map[string][]StandIn, error) {
	all, err := every[StandIn](s.r, prefixStandIn)
	away := map[string][]StandIn{}
	for _, in := range all {
		away[in.For] = append(away[in.For], in)
	}
	return away, err
}

// AwayFrom returns the groups in which somebody stands in for a person, sorted.
func (s State) AwayFrom(person string) []string {
	return suffixes(s.r, pairPrefix(prefixStandInFor, person))
}

// StandInFor returns who stands in for a member of a group; false when nobody does.
func (s State) StandInFor(member, group string) (StandIn, bool, error) {
	return load[StandIn](s.r, standInKey(group, member))
}

// inPlace returns who counts of those whose turn it is: in the place of each who is away, once, who stands in for them.
func (s State) inPlace(g Group, here []string) ([]string, error) {
	if len(g.Substitutes) == 0 {
		return here, nil
	}
	all, err := s.StandIns(g.Name)
	if err != nil || len(all) == 0 {
		return here, err
	}
	by := map[string]string{}
	for _, in := range all {
		by[in.For] = in.By
	}
	var now []string
	sits := map[string]bool{}
	for _, name := range here {
		if by[name] != "" {
			name = by[name]
		}
		if !sits[name] { // who stands in for two is one
			now, sits[name] = append(now, name), true
		}
	}
	return now, nil
}

// oneVoice takes out of in the groups in which a person would say what was heard already. The attack: a member of two groups that
// must both approve votes in one, chooses who stands in for them in the other, and is two of the two. The first is heard, and the
// person's voices are heard from then on: their own, or in a group in which they stand in for somebody, that of each for whom they do.
func (s State) oneVoice(heard, in map[string]bool, person string) {
	var voices []string
	for group := range in {
		away, err := s.StandIns(group)
		mine := []string{}
		for _, w := range away {
			if w.By == person {
				mine = append(mine, w.For)
			}
		}
		if len(mine) == 0 {
			mine = append(mine, person)
		}
		if err != nil || !slices.ContainsFunc(mine, func(voice string) bool { return !heard[voice] }) {
			delete(in, group)
		}
		voices = append(voices, mine...)
	}
	for _, voice := range voices {
		heard[voice] = true
	}
}

// andWhoStandsIn gives those who stand in for somebody with a stake that stake, whatever group they do so in: whoever asks would
// otherwise have it approved by whom they have chosen to speak for them.
func (s State) andWhoStandsIn(stakes map[string]string) {
	for open := slices.Sorted(maps.Keys(stakes)); len(open) > 0; open = open[1:] {
		away := open[0]
		s.r.Scan(pairPrefix(prefixStandInFor, away), nil, func(_, by []byte) bool {
			if name := string(by); stakes[name] == "" {
				stakes[name] = "stands in for " + away + ", " + whose(stakes[away])
				open = append(open, name)
			}
			return true
		})
	}
}

// orStandIn returns persons, and those who stand in for any of them.
func (s State) orStandIn(persons []string) []string {
	all := map[string]string{}
	for _, name := range persons {
		all[name] = "is who has it"
	}
	s.andWhoStandsIn(all)
	return slices.Sorted(maps.Keys(all))
}

// whose says a stake of another's: "is who asked" becomes "who asked".
func whose(stake string) string {
	if rest, ok := strings.CutPrefix(stake, "is "); ok && strings.HasPrefix(rest, "who") {
		return rest
	}
	return "who " + stake
}

// nameStandIn has somebody stand in for the actor. Nobody else does that for them: an admin would otherwise choose alone who decides, and
// an owner's workload would hand on what its owner has.
func (t *turn) nameStandIn(b NameStandIn) (Object, error) {
	if t.person == "" {
		return nil, denied("%s is nobody's: a member names who stands in for them with their own identity", t.actor)
	}
	if err := t.checkPersonBlocked(); err != nil {
		return nil, err
	}
	g, err := find[Group](t, key(prefixGroup, b.Group), "group", b.Group)
	if err != nil {
		return nil, err
	}
	if err := t.checkStandIn(g, b); err != nil {
		return nil, err
	}
	in := StandIn{Group: g.Name, For: t.person, By: b.By, Reason: b.Reason, Since: t.now, Until: Millis(b.Until), Index: t.index}
	old, replaced, err := t.state().StandInFor(in.For, in.Group)
	if err != nil {
		return nil, err
	}
	err = t.whileAway(g, func() {
		if replaced {
			t.unmark(old.due())
		}
		t.save(standInKey(in.Group, in.For), in)
		t.Put(pairKey(prefixStandInFor, in.For, in.Group), []byte(in.By))
		t.mark(in.due())
	})
	t.details = standInDetails{By: in.By, For: in.For, Reason: in.Reason, Since: in.Since, Until: in.Until}
	return in, err
}

func (t *turn) checkStandIn(g Group, b NameStandIn) error {
	if g.Name == AdminGroup {
		return denied("nobody stands in for an admin: %s", whyNoAdmin)
	}
	if !slices.Contains(g.Members, t.person) {
		// Who stands in for a member would otherwise hand that on, to whom the member does not know.
		return denied("%s is no member of group %q, and has no place in it to be taken", t.person, g.Name)
	}
	if !slices.Contains(g.Substitutes, b.By) {
		// A stolen certificate of one member would let anyone in, who then approves.
		next := "have an admin propose it: hallpass group set " + g.Name + " --member … --substitute " + b.By
		if len(g.Substitutes) > 0 {
			next = "name one of " + strings.Join(g.Substitutes[:min(10, len(g.Substitutes))], ", ") + ", or " + next
		}
		return denied("%q is not one of those who may stand in for members of group %q", b.By, g.Name).then(next)
	}
	if err := checkText("the reason", b.Reason, 1); err != nil {
		return err
	}
	if b.Until <= int64(t.now) || b.Until > int64(t.now.Add(MaxStandIn)) {
		return invalid("it ends at %s, which is not from now to %d days ahead", Millis(min(max(b.Until, 0), maxNow)), int(MaxStandIn.Hours()/24))
	}
	return nil
}

// endStandIn has a member back before the time.
func (t *turn) endStandIn(b EndStandIn) (Object, error) {
	in, err := find[StandIn](t, standInKey(b.Group, b.For), "one who stands in in group "+b.Group+" for", b.For)
	if err != nil {
		return nil, err
	}
	if !t.admin {
		if t.person != in.For && t.person != in.By {
			// Whoever liked the member's judgement better would choose who decides.
			return nil, denied("%s stands in for %s, and one of the two or an admin ends it", in.By, in.For)
		}
		if err := t.checkBlocked(t.actor.String()); err != nil {
			return nil, err
		}
	}
	t.details = standInDetails{By: in.By, Ended: t.person, For: in.For, Reason: in.Reason, Since: in.Since, Until: in.Until}
	return in, t.dropStandIn(in)
}

// dropStandIn has a member back.
func (t *turn) dropStandIn(in StandIn) error {
	g, err := find[Group](t, key(prefixGroup, in.Group), "group", in.Group)
	if err != nil {
		return err
	}
	return t.whileAway(g, func() { t.forgetStandIn(in) })
}

func (t *turn) forgetStandIn(in StandIn) {
	t.Delete(standInKey(in.Group, in.For))
	t.unmark(pairKey(prefixStandInFor, in.For, in.Group))
	t.unmark(in.due())
}

// whileAway changes who is away from a group, and says who counts in it then.
func (t *turn) whileAway(g Group, change func()) error {
	was, err := t.state().Counting(g)
	if err != nil {
		return err
	}
	change()
	return t.recount(was, g)
}

// ranOut ends the one that is due.
func (t *turn) ranOut(item dueItem) (StandIn, error) {
	group, member, _ := strings.Cut(item.id, "\x00")
	in, err := find[StandIn](t, standInKey(group, member), "one who stands in in group "+group+" for", member)
	if err != nil {
		return StandIn{}, err
	}
	return in, t.dropStandIn(in)
}

// staleStandIns ends what a group that was written anew no longer allows: one in the place of who has left would be a member whom nobody
// made one, and so would one who may no longer stand in.
func (t *turn) staleStandIns(g Group) error {
	all, err := t.state().StandIns(g.Name)
	if err != nil {
		return err
	}
	for _, in := range all {
		if !slices.Contains(g.Members, in.For) || !slices.Contains(g.Substitutes, in.By) {
			t.forgetStandIn(in)
		}
	}
	return nil
}

// endStandIns ends them all: of a state that was restored, some may have been ended since.
func (t *turn) endStandIns() (n int, err error) {
	all, err := every[StandIn](t, prefixStandIn)
	if err != nil {
		return 0, err
	}
	for _, in := range all {
		if err := t.dropStandIn(in); err != nil {
			return 0, err
		}
	}
	return len(all), nil
}

// whyNoAdmin is why the group of admins has no substitutes.
const whyNoAdmin = "admins choose who decides, and one of them alone would choose another admin"

// checkSubstitutes refuses those who cannot stand in for members of a group.
func (t *turn) checkSubstitutes(g Group) error {
	if len(g.Substitutes) == 0 {
		return nil
	}
	if g.Name == AdminGroup {
		return invalid("group %q has no substitutes: %s", g.Name, whyNoAdmin)
	}
	if len(g.Substitutes) > MaxSubstitutes {
		return invalid("group %q has %d substitutes, at most %d", g.Name, len(g.Substitutes), MaxSubstitutes)
	}
	for _, name := range g.Substitutes {
		if !t.has(key(prefixPerson, name)) {
			return invalid("group %q: there is no person %q to stand in", g.Name, name).then("propose the person first")
		}
		if slices.Contains(g.Members, name) {
			// One who sits for themselves and for another would fill two seats; and a member may be away.
			return invalid("group %q: %q is a member, and cannot stand in for another", g.Name, name)
		}
	}
	return checkDistinct("group "+g.Name, g.Substitutes)
}

// away refuses one who could decide on r if nobody stood in for them; nil for anyone else.
func (t *turn) away(r Request) error {
	for _, q := range r.deciders() {
		in, ok, err := t.state().StandInFor(t.person, q.Group)
		if err != nil {
			return err
		}
		if ok {
			return denied("%s stands in for %s in group %q until %s", in.By, in.For, in.Group, in.Until).
				then(fmt.Sprintf("end that first: hallpass group stand-in end %s", in.Group))
		}
	}
	return nil
}

// heard refuses the actor's approval, which was just recorded, where it says what one voice has said already: see oneVoice.
func (t *turn) heard(r Request) error {
	_, counts := t.state().Standing(r)
	if counts[len(counts)-1] || len(t.state().groupsFor(r.deciders(), t.person)) == 0 {
		return nil
	}
	return conflict("a member and whoever stands in for them are one voice in all groups together, and what %s says has been said", t.person).
		then("have somebody else of " + describe(r.deciders()) + " approve")
}

// standIns checks those of a group that there are: no more than two admins have let in, each with the keys by which it is found.
func (c *checker) standIns() {
	inOrder(objects[StandIn](c, prefixStandIn), func(at string, in StandIn) {
		g, known := c.groups[in.Group]
		c.need(known && at == in.Group+"\x00"+in.For, "who stands in for %q in group %q is kept at %q", in.For, in.Group, at)
		c.need(slices.Contains(g.Members, in.For), "group %q: %q, for whom %q stands in, is no member", in.Group, in.For, in.By)
		c.need(slices.Contains(g.Substitutes, in.By), "group %q: %q stands in for %q and is no substitute", in.Group, in.By, in.For)
		c.need(checkText("the reason", in.Reason, 1) == nil, "group %q: for %q, %q stands in for no reason", in.Group, in.For, in.By)
		c.need(in.Since > 0 && in.Since <= c.m.LastNow && in.Since < in.Until && in.Until <= in.Since.Add(MaxStandIn),
			"group %q: %q stands in for %q from %q to %q", in.Group, in.By, in.For, in.Since, in.Until)
		c.need(in.Index > 0, "group %q: %q stands in for %q by no command", in.Group, in.By, in.For)
		c.want[string(pairKey(prefixStandInFor, in.For, in.Group))] = []byte(in.By)
		c.mark(in.due())
	})
	inOrder(c.groups, func(name string, g Group) {
		c.need(len(g.Substitutes) == 0 || name != AdminGroup && len(g.Substitutes) <= MaxSubstitutes, "group %q has %d substitutes", name, len(g.Substitutes))
		c.need(checkDistinct(name, g.Substitutes) == nil, "group %q has a substitute twice", name)
		for _, who := range g.Substitutes {
			_, known := c.persons[who]
			c.need(known && !slices.Contains(g.Members, who), "group %q: substitute %q is a member, or no person", name, who)
		}
	})
}
