package console_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

// TestStandingIn: the page says to who is away who decides in their place, and to who stands in for somebody with a part in it that they have that
// part; and it names neither of them among those who could approve.
func TestStandingIn(t *testing.T) {
	b := newBed(t)
	until := time.Date(2026, 12, 4, 9, 30, 0, 0, time.UTC)
	in := func(member, by string) []api.StandIn {
		return []api.StandIn{{Group: "owners", For: member, By: by, Until: until}}
	}
	person := func(name string, groups ...string) api.Person {
		return api.Person{Name: name, IDs: []string{id(name)}, Groups: groups}
	}
	alice, bob := person("alice", "engineers"), person("bob")
	alice.Away, bob.Away = in("alice", "dave"), in("bob", "erin")
	b.requests = []api.Request{pending(nil)} // alice asks
	b.persons = []api.Person{alice, bob, person("carol", "owners"), person("dave", "owners"), person("erin", "owners")}
	who := b.signIn(t)
	page := "/requests/" + b.requests[0].ID
	for name, tt := range map[string]struct {
		groups []string
		wants  string
	}{
		"bob":  {nil, "erin stands in for you in owners until 2026-12-04 09:30 UTC. To decide yourself, end that first: hallpass group stand-in end owners"},
		"dave": {[]string{"owners"}, "You stand in for alice, who has a part in it. Who has a part in a request never decides on it."},
		"erin": {[]string{"owners"}, ">Approve<"},
	} {
		b.change(func() { b.me.ID, b.me.Person, b.me.Groups = id(name), name, tt.groups })
		got := who.get(page)
		wants(t, got, http.StatusOK, tt.wants, "carol, erin")
		if name != "erin" && strings.Contains(got.body, ">Approve<") {
			t.Errorf("%s is offered to approve", name)
		}
	}
}
