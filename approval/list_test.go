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

// TestListsAmongNames: a list among the names of somebody has every request and grant in which one of them stands, whatever
// else it has, and of a stranger's it has none.
func TestListsAmongNames(t *testing.T) {
	w := busyWorld(t)
	s := Read(w.a)
	all, _, err := s.Requests(Filter{})
	if err != nil || len(all) == 0 {
		t.Fatal(len(all), err)
	}
	named := func(r Request) (names []string) {
		names = append(names, r.Requester, r.RequesterPerson, r.Subject)
		for _, v := range r.Revisions {
			for _, q := range v.Requirements {
				names = append(names, q.Group)
			}
		}
		return slices.DeleteFunc(names, func(n string) bool { return n == "" })
	}
	names := make(map[string]int)
	for _, r := range all {
		for _, name := range slices.Compact(slices.Sorted(slices.Values(named(r)))) {
			names[name]++
		}
	}
	for name, most := range names {
		for _, f := range []Filter{{}, {Subject: all[0].Subject}, {Service: "payments"}, {State: "pending"}} {
			want, _, err := s.Requests(f)
			if err != nil {
				t.Fatal(err)
			}
			want = slices.DeleteFunc(want, func(r Request) bool { return !slices.Contains(named(r), name) })
			f.Among = []string{"nobody", name}
			got, _, err := s.Requests(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range want {
				if !slices.ContainsFunc(got, func(g Request) bool { return g.ID == r.ID }) {
					t.Errorf("%+v: request %s is not there", f, r.ID)
				}
			}
		}
		if most == 0 {
			t.Errorf("%s stands nowhere", name)
		}
	}
	for _, stranger := range [][]string{{}, {"nobody"}, {"alic", "lice", "spiffe://acme.test/user/alicea"}} {
		got, next, err := s.Requests(Filter{Among: stranger})
		grants, _, bad := s.Grants(Filter{Among: stranger})
		if err != nil || bad != nil || len(got)+len(grants) != 0 || next != "" {
			t.Errorf("among %q: %d requests, %d grants, cursor %q, %v, %v", stranger, len(got), len(grants), next, err, bad)
		}
	}
	if got, _, err := s.Grants(Filter{Among: []string{spiffe("alice")}}); err != nil || len(got) == 0 {
		t.Errorf("%d grants of alice, %v", len(got), err)
	}
}

// TestListsOf: a list of identities has what any of them asked for or is the subject of, each once, the newest first, by pages of
// any size, and nothing else.
func TestListsOf(t *testing.T) {
	w := busyWorld(t)
	s := Read(w.a)
	all, _, err := s.Requests(Filter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, ids := range [][]string{
		{},
		{spiffe("nobody")},
		{spiffe("alice")},
		{spiffe("alice"), spiffe("alice")},
		{spiffe("alic"), spiffe("agent/bob-bot")},
		{spiffe("erin"), spiffe("alice"), spiffe("agent/bob-bot"), spiffe("nobody")},
	} {
		for _, f := range []Filter{{}, {State: "pending"}, {State: "approved"}, {Service: "payments"}, {Requester: spiffe("alice")}} {
			var want, got []string
			for _, r := range all {
				if (f.State == "" || f.State == string(r.State)) && (f.Service == "" || f.Service == r.Service) &&
					(f.Requester == "" || f.Requester == r.Requester) && (slices.Contains(ids, r.Requester) || slices.Contains(ids, r.Subject)) {
					want = append(want, r.ID)
				}
			}
			for f.Of, f.Limit = ids, 1+len(want)%3; ; {
				page, next, err := s.Requests(f)
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range page {
					got = append(got, r.ID)
				}
				if f.Cursor = next; next == "" {
					break
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%+v: %q, want %q", f, got, want)
			}
		}
	}
	if _, _, err := s.Requests(Filter{Of: make([]string, MaxOf+1)}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a list of too many: %v", err)
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
