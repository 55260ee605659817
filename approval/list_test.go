package approval

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func TestLists(t *testing.T) {
	w := newWorld(t)
	var newestFirst []string
	for i := range 7 {
		actor := []string{"alice", "erin"}[i%2]
		service, perm := "payments", "GET /accounts/**"
		if i%3 == 0 {
			service, perm = "ledger", "grpc bank.Ledger/*"
		}
		w.now = w.now.Add(time.Second)
		newestFirst = append([]string{w.asks(actor, actor, service, perm, time.Minute)}, newestFirst...)
	}
	denied := newestFirst[2]
	w.must(w.apply("carol", w.decide(denied, Deny)))

	s := Read(w.a)
	var paged []string
	for cursor := ""; ; {
		page, next, err := s.Requests(Filter{Limit: 3, Cursor: cursor})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range page {
			paged = append(paged, r.ID)
		}
		if cursor = next; cursor == "" {
			break
		}
	}
	if !slices.Equal(paged, newestFirst) {
		t.Errorf("pages %q, want %q", paged, newestFirst)
	}
	for _, test := range []struct {
		f    Filter
		want int
	}{
		{Filter{State: "pending"}, 6},
		{Filter{State: "denied"}, 1},
		{Filter{State: "approved"}, 0},
		{Filter{Service: "ledger"}, 3},
		{Filter{Subject: spiffe("alice")}, 4},
		{Filter{Requester: spiffe("erin")}, 3},
		{Filter{Requester: spiffe("erin"), Subject: spiffe("alice")}, 0},
		{Filter{Requester: spiffe("alice"), Service: "ledger", State: "pending"}, 2},
		{Filter{Service: "led"}, 0},
		{Filter{Limit: -1}, 7},
		{Filter{Limit: 1 << 40}, 7},
		{Filter{Cursor: newestFirst[6]}, 0},
	} {
		page, next, err := s.Requests(test.f)
		if err != nil || len(page) != test.want || next != "" {
			t.Errorf("%+v: %d requests, cursor %q, %v; want %d", test.f, len(page), next, err, test.want)
		}
	}
	for _, f := range []Filter{{Cursor: "x"}, {State: "a\x00b"}, {Service: "\x00"}, {Subject: "\x00"}, {Requester: "\x00"}} {
		if _, _, err := s.Grants(f); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", f, err)
		}
	}
}

func TestQueries(t *testing.T) {
	w := busyWorld(t)
	s := Read(w.a)
	alice, phone, bot := spiffeid.RequireFromString(spiffe("alice")), spiffeid.RequireFromString(spiffe("device/alice-phone")), spiffeid.RequireFromString(spiffe("agent/bob-bot"))
	if p, ok, err := s.PersonOf(phone); err != nil || !ok || p.Name != "alice" {
		t.Errorf("person of %s: %+v, %v, %v", phone, p, ok, err)
	}
	if p, ok, err := s.PersonOf(bot); err != nil || ok {
		t.Errorf("person of %s: %+v, %v", bot, p, err)
	}
	if got := s.Owners(bot); !slices.Equal(got, []string{"bob"}) {
		t.Errorf("owners %q", got)
	}
	if got := s.GroupsOf("alice"); !slices.Equal(got, []string{"engineers", "payments-owners"}) {
		t.Errorf("groups %q", got)
	}
	if s.IsAdmin(alice) || s.IsAdmin(bot) || !s.IsAdmin(spiffeid.RequireFromString(spiffe("ada"))) {
		t.Error("who is an admin?")
	}
	if b, ok, err := s.Block(bot); err != nil || !ok || b.Reason != "stolen" {
		t.Errorf("block %+v, %v", b, err)
	}
	c, err := s.Cluster()
	if err != nil || c.ID != "acme" || len(c.Nodes) != 3 || len(c.Issuers) != 6 || c.Epoch != 1 || c.LastNow != MillisOf(w.now) {
		t.Errorf("cluster %+v, %v", c, err)
	}
	grants, _, err := s.Grants(Filter{State: "revoked"})
	if err != nil || len(grants) != 1 {
		t.Fatalf("%d grants, %v", len(grants), err)
	}
	if issues, err := s.Issuances(grants[0].ID); err != nil || len(issues) != 1 || issues[0].Grant != grants[0].ID {
		t.Errorf("certificates %+v, %v", issues, err)
	}
	for what, err := range map[string]error{
		"request": second(s.Request("x")), "grant": second(s.Grant("")), "change": second(s.Change(grants[0].ID)),
		"issuer": second(s.Issuer("x")), "node": second(s.Node("n9")), "certificate": second(s.Issue("0")),
		"no cluster": second(Read(newMemory()).Cluster()), "no feed": second(Read(newMemory()).Feed()), "no policy": second(Read(newMemory()).Policy()),
	} {
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// TestStanding says of each approval whether it still counts.
func TestStanding(t *testing.T) {
	w := newWorld(t)
	id := w.asks("erin", "erin", "payments", "POST /refunds/*", time.Minute)
	w.must(w.apply("carol", w.decide(id, Approve)))
	votes, counts := Read(w.a).Standing(w.request(id))
	if len(votes) != 1 || votes[0].Person != "carol" || !slices.Equal(counts, []bool{true}) {
		t.Errorf("votes %+v, counts %v", votes, counts)
	}
	w.change(Edit{Kind: EditGroupSet, Group: &Group{Name: "payments-owners", Members: []string{"bob", "alice"}}}, "abe", "amy")
	votes, _ = Read(w.a).Standing(w.request(id))
	if len(votes) != 1 || votes[0].Group != "security" {
		t.Errorf("votes %+v", votes)
	}
	w.change(Edit{Kind: EditGroupSet, Group: &Group{Name: "security", Members: []string{"dave"}}}, "abe", "amy")
	votes, counts = Read(w.a).Standing(w.request(id))
	if len(votes) != 0 || !slices.Equal(counts, []bool{false}) {
		t.Errorf("votes %+v, counts %v", votes, counts)
	}
}

func TestMillis(t *testing.T) {
	m := MillisOf(time.Date(2026, 3, 1, 9, 0, 0, 7_999_999, time.UTC))
	text, err := m.MarshalText()
	if err != nil || string(text) != "2026-03-01T09:00:00.007Z" {
		t.Errorf("%s, %v", text, err)
	}
	var back Millis
	if err := back.UnmarshalText(text); err != nil || back != m {
		t.Errorf("%d, %v", back, err)
	}
	if err := back.UnmarshalText(nil); err != nil || back != 0 || back.String() != "" || !back.Time().IsZero() {
		t.Errorf("%d, %v", back, err)
	}
	if err := back.UnmarshalText([]byte("yesterday")); err == nil {
		t.Error("yesterday is no time")
	}
}
