package policy

import (
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.yaml.in/yaml/v3"
)

// ChannelSlack is the one channel there is besides a person's own certificate.
const ChannelSlack = "slack"

// Slack says from where decisions of a Slack workspace come in, and who brings them.
// The zero Slack lets none in.
type Slack struct {
	Team   string      // the workspace's id
	Bridge spiffeid.ID // of the process that has verified that Slack sent them
}

// Slack is what the policy says under channels.
func (p *Policy) Slack() Slack {
	if p == nil {
		return Slack{}
	}
	return p.slack
}

// Channels are those by which, besides certificates, a request may be decided to which
// the rules of these names apply: those that each of them lists. A name that the
// policy does not have any more lists none.
func (p *Policy) Channels(names []string) []string {
	if p == nil {
		return nil
	}
	var rules []rule
	for _, name := range names {
		i := slices.IndexFunc(p.rules, func(q rule) bool { return q.name == name })
		if i < 0 {
			return nil
		}
		rules = append(rules, p.rules[i])
	}
	return channels(rules)
}

// channels are those that each of the rules lists.
func channels(rules []rule) []string {
	if len(rules) == 0 {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(rules[0].channels), func(name string) bool {
		return slices.ContainsFunc(rules, func(q rule) bool { return !slices.Contains(q.channels, name) })
	})
}

// ValidSlackID says whether a text may be an id of Slack's that begins with one of the
// letters in first: T or E for workspaces, U or W for users.
func ValidSlackID(id, first string) bool {
	return len(id) >= 2 && len(id) <= 32 && strings.ContainsRune(first, rune(id[0])) &&
		strings.Trim(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") == ""
}

// channels reads what a policy says of where else is decided.
func (r *reader) channels(n *yaml.Node) (s Slack) {
	f := r.fields(n, "channels", ChannelSlack)
	if f == nil {
		return s
	}
	of := r.must(n, f, ChannelSlack)
	if of == nil {
		return s
	}
	if f = r.fields(of, ChannelSlack, "team", "bridge"); f == nil {
		return s
	}
	if v := r.must(of, f, "team"); v != nil {
		if s.Team = r.text(v, "team"); s.Team != "" && !ValidSlackID(s.Team, "TE") {
			r.fail(v, "team: %q: write the id of a workspace, such as T024BE7LH: a name may become another's", s.Team)
		}
	}
	if v := r.must(of, f, "bridge"); v != nil {
		if text := r.text(v, "bridge"); text != "" {
			var err error
			if s.Bridge, err = spiffeid.FromString(text); err != nil || s.Bridge.Path() == "" {
				r.fail(v, "bridge: %q: write a SPIFFE ID, such as spiffe://acme.test/bridge/slack", text)
			}
		}
	}
	return s
}

// ruleChannels reads the channels of a rule.
func (r *reader) ruleChannels(n *yaml.Node, f map[string]*yaml.Node) []string {
	switch {
	case f["deny"] != nil:
		r.fail(n, "channels in a rule with deny, where nobody decides: leave it out")
		return nil
	case f["step_up"] != nil:
		r.fail(n, "channels in a rule with step_up: no button in a chat says when somebody signed in; keep one of them")
		return nil
	}
	return r.channelNames(r.items(n, "channels", "[slack]"))
}

func (r *reader) channelNames(items []*yaml.Node) (names []string) {
	for _, item := range items {
		name := r.text(item, "channels")
		switch {
		case name == "":
		case name != ChannelSlack:
			r.fail(item, "channels: there is no channel %q: slack is the one there is", name)
		case r.slack.Team == "":
			r.fail(item, "channels: slack, and the policy does not say which: write channels: {slack: {team: T…, bridge: spiffe://…}} above the rules")
		case slices.Contains(names, name):
			r.fail(item, "channels: %s twice: keep one", name)
		default:
			names = append(names, name)
		}
	}
	return names
}
