package approval

import (
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/policy"
)

// A decision in Slack is one that the bridge proposes: a process with an identity of
// its own, which has verified that Slack sent it, and has seen no certificate of the
// person whose account it was. So much less is believed of it: it decides on what was
// shown as it was shown, where every rule allows it, and of the approvals that a
// request needs it is one at the most.

// slackTeam is the workspace of an account, TEAM/USER; false for what is none.
func slackTeam(account string) (team string, ok bool) {
	team, user, ok := strings.Cut(account, "/")
	return team, ok && policy.ValidSlackID(team, "TE") && policy.ValidSlackID(user, "UW")
}

// checkSlack refuses an account that is none, or another's: two persons would have one
// voice, and each could cast the other's vote.
func (t *turn) checkSlack(p Person) error {
	if p.Slack != "" {
		if _, ok := slackTeam(p.Slack); !ok {
			return invalid("person %q: Slack account %q: want TEAM/USER by their ids, such as T024BE7LH/U024BE7LH", p.Name, p.Slack)
		}
		if holder := t.Get(key(prefixSlack, p.Slack)); holder != nil && string(holder) != p.Name {
			return conflict("%s is the Slack account of person %q already", p.Slack, holder).
				then("take it from the one person before giving it to the other")
		}
	}
	if t.Get([]byte(keyPolicy)) == nil {
		return nil // the bootstrap's, which is checked with its policy
	}
	rules, err := t.state().Rules()
	if err != nil {
		return err
	}
	if bridge := rules.Slack().Bridge; !bridge.IsZero() && slices.Contains(p.IDs, bridge.String()) {
		// This person would vote as all who have an account.
		return invalid("%s cannot be a person's: the policy has it bring in what is decided in Slack", bridge)
	}
	return nil
}

// checkBridge refuses a bridge that one alone can be, who would vote as everyone that
// has an account.
func (t *turn) checkBridge(s policy.Slack) error {
	if s.Bridge.IsZero() {
		return nil
	}
	bridge := s.Bridge.String()
	if err := t.checkSubject("the bridge", bridge); err != nil {
		return err
	}
	if t.issuable(bridge) {
		return invalid("the bridge %s is a service or a node: one admin alone has such an identity issued, and would vote as everyone in Slack", bridge).
			then("name another, such as spiffe://" + t.m.TrustDomain + "/bridge/slack, and have it signed offline: hallpass identity issue --root")
	}
	if person := t.state().personOf(s.Bridge); person != "" {
		return invalid("the bridge %s is person %q, who would vote as everyone in Slack", bridge, person)
	}
	return nil
}

// SlackVoter returns whose account a decision in Slack came from, once it is sure that
// the bridge of the policy in force says so, and of that policy's workspace.
func (s State) SlackVoter(actor spiffeid.ID, account string) (Person, error) {
	rules, err := s.Rules()
	if err != nil {
		return Person{}, err
	}
	c := rules.Slack()
	if c.Bridge.IsZero() || actor != c.Bridge {
		// Whoever can call the API would otherwise vote in anyone's name.
		return Person{}, denied("%s is not who brings in what is decided in Slack", actor).then("decide with the person's own identity")
	}
	team, ok := slackTeam(account)
	if !ok {
		return Person{}, invalid("%q is no Slack account: want TEAM/USER", account)
	}
	if team != c.Team {
		// An admin of another workspace chooses who its users are.
		return Person{}, denied("workspace %s is not that of the policy, %s", team, c.Team)
	}
	name := string(s.r.Get(key(prefixSlack, account)))
	if name == "" {
		return Person{}, denied("Slack account %s is nobody's", account).
			then("have an admin propose it: hallpass person set NAME --id … --slack " + account)
	}
	return find[Person](s.r, key(prefixPerson, name), "person", name)
}

// inSlack refuses a decision that a button may not make, and says whose it is.
func (t *turn) inSlack(r Request, b DecideRequest) error {
	if len(b.Permissions)+len(b.Narrowed) > 0 || b.Duration != 0 || b.Comment != "" {
		return invalid("a button in Slack decides on what was shown: it narrows nothing and says nothing else")
	}
	voter, err := t.state().SlackVoter(t.actor, b.Slack)
	if err != nil {
		return err
	}
	if t.hasPart(r) {
		// A stolen bridge would ask for itself, and approve as somebody.
		return denied("%s has a part in request %s, and brings in no decision on it", t.actor, r.ID)
	}
	for _, id := range voter.IDs {
		if err := t.checkBlocked(id); err != nil {
			return err
		}
	}
	rules, err := t.state().Rules()
	if err != nil {
		return err
	}
	if err := checkChannel(b, rules.Channels(r.Rules)); err != nil {
		return err
	}
	for _, d := range r.Decisions {
		if b.Verdict == Approve && d.Verdict == Approve && d.Slack != "" && d.Person != voter.Name {
			// Whoever has the signing secret is everyone in Slack: as many approvals
			// as a request may need would be as good as one.
			return denied("%s has approved request %s in Slack, and that is one approval at the most", d.Person, r.ID).
				then("approve it with your own identity: hallpass review approve " + r.ID)
		}
	}
	t.person = voter.Name
	return nil
}

// hasPart says whether the actor asked for it, or gets it, or does of the grant that it
// extends or of one that was made of that.
func (t *turn) hasPart(r Request) bool {
	ids := []string{r.Requester, r.Subject, r.CSRBy}
	if r.Extends != nil {
		of, err := t.state().Request(r.Extends.Grant)
		if err != nil {
			return true // who cannot be told from who has a part is refused
		}
		ids = append(ids, of.Requester, of.Subject, of.CSRBy)
		children, err := t.state().children(r.Extends.Grant)
		if err != nil {
			return true
		}
		for _, child := range children {
			ids = append(ids, child.Subject)
		}
	}
	return slices.Contains(ids, t.actor.String())
}

// checkChannel refuses a decision in Slack where the rules do not let it.
func checkChannel(b DecideRequest, channels []string) error {
	if b.Slack != "" && !slices.Contains(channels, policy.ChannelSlack) {
		return denied("the policy has request %s decided with certificates alone", b.Request).
			then("decide with your own identity: hallpass review show " + b.Request)
	}
	return nil
}

// stillInSlack says whether a decision may still have been made where it was.
func (s State) stillInSlack(r Request, d Decision) bool {
	if d.Slack == "" {
		return true
	}
	rules, err := s.Rules()
	return err == nil && slices.Contains(rules.Channels(r.Rules), policy.ChannelSlack)
}
