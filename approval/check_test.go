package approval

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// TestCheckFindsWhatIsMissing takes every key away, one at a time, and adds
// some that belong to nothing.
func TestCheckFindsWhatIsMissing(t *testing.T) {
	t.Parallel()
	w := busyWorld(t)
	c := w.command("ada", BlockSubject{Subject: spiffe("agent/x"), Reason: "x"})
	c.Idem = &Idem{Key: "k", BodyHash: sha256Hex(nil)}
	w.must(w.applyCommand(c))
	for _, k := range slices.Clone(w.a.sorted) {
		on := w.a.clone()
		on.Delete([]byte(k))
		// Nothing else in the state says that a subject was blocked.
		if err := on.check(); !errors.Is(err, ErrInvariant) && !strings.HasPrefix(k, prefixBlock) {
			t.Errorf("without key %q: %v", k, err)
		}
		on = w.a.clone()
		on.Put([]byte(k), nil)
		if err := on.check(); !errors.Is(err, ErrInvariant) {
			t.Errorf("with nothing at key %q: %v", k, err)
		}
		on = w.a.clone()
		on.Put([]byte(k+"\x01"), on.Get([]byte(k)))
		if err := on.check(); !errors.Is(err, ErrInvariant) {
			t.Errorf("with another key after %q: %v", k, err)
		}
	}
}

// tamper changes the first record under prefix that fits.
func tamper[T any](t *testing.T, m *memory, prefix string, fits func(T) bool, change func(*T)) {
	t.Helper()
	done := false
	m.clone().Scan([]byte(prefix), nil, func(k, data []byte) bool {
		var v T
		if err := decoder.Unmarshal(data, &v); err != nil {
			t.Fatal(err)
		}
		if !fits(v) {
			return true
		}
		change(&v)
		again, err := encoder.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		m.Put(k, again)
		done = true
		return false
	})
	if !done {
		t.Fatalf("nothing under %q fits", prefix)
	}
}

// TestCheckFindsWhatIsWrong changes records to what they must never be, indexes
// untouched.
func TestCheckFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	w := busyWorld(t)
	active := func(s storedRequest) bool { return s.Grant != nil && grantStates()[s.Grant.State] == GrantActive }
	revoked := func(s storedRequest) bool { return s.Grant != nil && grantStates()[s.Grant.State] == GrantRevoked }
	pending := func(s storedRequest) bool { return requestStates()[s.State] == RequestPending }
	anyIssue := func(Issue) bool { return true }
	cases := map[string]func(*testing.T, *memory){}
	add := func(name string, fn func(*testing.T, *memory)) { cases[name] = fn }
	record := func(name string, fits func(storedRequest) bool, change func(*storedRequest)) {
		add(name, func(t *testing.T, m *memory) { tamper(t, m, prefixRecord, fits, change) })
	}
	last := func(s *storedRequest) *storedRevision { return &s.Revisions[len(s.Revisions)-1] }
	record("grant: no votes", active, func(s *storedRequest) { s.Grant.Votes = nil })
	record("grant: a vote never given", active, func(s *storedRequest) { s.Grant.Votes[0].Decision = 7 })
	record("grant: a vote for no group", active, func(s *storedRequest) { s.Grant.Votes[0].Group = 99 })
	record("grant: a vote for another group", active, func(s *storedRequest) {
		s.Names = append(s.Names, "security")
		s.Grant.Votes[0].Group = len(s.Names)
	})
	record("grant: a vote twice", active, func(s *storedRequest) { s.Grant.Votes = append(s.Grant.Votes, s.Grant.Votes[0]) })
	record("grant: a vote that was a deny", active, func(s *storedRequest) { s.Decisions[0].Deny = true })
	record("grant: needs nobody", active, func(s *storedRequest) { last(s).Requirements, s.Grant.Votes = nil, nil })
	record("grant: lives longer", active, func(s *storedRequest) { s.Grant.Expiry++ })
	record("grant: begins before it was made", active, func(s *storedRequest) { s.Grant.NotBefore-- })
	record("grant: more permissions", active, func(s *storedRequest) { last(s).Permissions = []string{"* /**"} })
	record("grant: no permission that there is", active, func(s *storedRequest) { last(s).Permissions = []string{"x"} })
	record("grant: another subject", active, func(s *storedRequest) { s.Subject = s.Decisions[0].Actor })
	record("grant: fewer certificates", active, func(s *storedRequest) { s.Grant.Issued = 0 })
	record("grant: certificates end earlier", revoked, func(s *storedRequest) { s.Grant.LatestNotAfter-- })
	record("grant: alive again", revoked, func(s *storedRequest) { s.Grant.State = 1 })
	record("grant: of no state", revoked, func(s *storedRequest) { s.Grant.State = 9 })
	record("grant: revoked before its certificate", revoked, func(s *storedRequest) { s.Grant.Index = 1 - int64(s.Index) })
	record("grant: none", active, func(s *storedRequest) { s.Grant = nil })
	record("request: another reason", active, func(s *storedRequest) { s.Reason = "another" })
	record("request: decided by requester", active, func(s *storedRequest) { s.Decisions[0].Person = s.RequesterPerson })
	record("request: decided twice", active, func(s *storedRequest) { s.Decisions = append(s.Decisions, s.Decisions[0]) })
	record("request: decided by someone with no name", active, func(s *storedRequest) { s.Decisions[0].Person = 0 })
	record("request: pending again", active, func(s *storedRequest) { s.State = 1 })
	record("request: approved without a grant", pending, func(s *storedRequest) { s.State, s.Ended = 0, 1 })
	record("request: decided on other text", active, func(s *storedRequest) { s.Decisions[0].Revision = 5 })
	record("request: says nothing", pending, func(s *storedRequest) { s.Revisions = nil })
	record("request: a name nobody uses", pending, func(s *storedRequest) { s.Names = append(s.Names, "eve") })
	record("request: ended before it began", active, func(s *storedRequest) { s.Ended = -5 })
	for name, change := range map[string]func(*Issue){
		"outlives its grant":  func(i *Issue) { i.NotAfter += 3_600_000 },
		"of another grant":    func(i *Issue) { i.Grant = "019ca8a0-3e80-7000-8000-000000000001" },
		"of an unknown":       func(i *Issue) { i.Issuer = sha256Hex(nil) },
		"of another role":     func(i *Issue) { i.Role = RoleIdentity },
		"recorded later":      func(i *Issue) { i.Index += 1000 },
		"another serial":      func(i *Issue) { i.Serial = "ab" },
		"by a denied issuer":  func(i *Issue) { i.Issuer = issuerID("n3", RoleGrant); i.Index += 1000 },
		"recorded out of its": func(i *Issue) { i.At = i.NotAfter },
	} {
		add("certificate: "+name, func(t *testing.T, m *memory) { tamper(t, m, prefixIssue, anyIssue, change) })
	}
	for name, change := range map[string]func(*Change){
		"applied on one approval": func(c *Change) { c.State = ChangeApplied },
		"another edit":            func(c *Change) { c.Edit.Group.Members = []string{"bob"} },
		"decided by its author":   func(c *Change) { c.Decisions[0].Person = "ada" },
	} {
		add("change: "+name, func(t *testing.T, m *memory) { tamper(t, m, prefixChange, func(Change) bool { return true }, change) })
	}
	add("two admins", func(t *testing.T, m *memory) {
		tamper(t, m, prefixGroup, func(g Group) bool { return g.Name == AdminGroup }, func(g *Group) { g.Members = g.Members[:2] })
	})
	add("an ID of two", func(t *testing.T, m *memory) {
		tamper(t, m, prefixPerson, func(p Person) bool { return p.Name == "bob" }, func(p *Person) { p.IDs = []string{spiffe("alice")} })
	})
	add("an issuer in use again", func(t *testing.T, m *memory) {
		tamper(t, m, prefixIssuer, func(i Issuer) bool { return i.Denied != 0 }, func(i *Issuer) { i.Denied = 0 })
	})
	add("a feed entry that ends early", func(t *testing.T, m *memory) {
		tamper(t, m, prefixFeedGrant, func(FeedEntry) bool { return true }, func(e *FeedEntry) { e.Until-- })
	})
	add("an audit body of another time", func(_ *testing.T, m *memory) {
		m.records[2] = m.records[3]
	})
	add("an audit body too few", func(_ *testing.T, m *memory) {
		m.records = m.records[:len(m.records)-1]
	})
	add("an audit hash", func(_ *testing.T, m *memory) {
		edge := slices.Clone(m.Get(edgeKey(1)))
		edge[len(edge)-1] ^= 1
		m.Put(edgeKey(1), edge)
	})
	add("a change more than leaves", func(t *testing.T, m *memory) {
		tamper(t, m, keyMeta, func(meta) bool { return true }, func(v *meta) { v.Changes++ })
	})
	add("a clock behind the leaves", func(t *testing.T, m *memory) {
		tamper(t, m, keyMeta, func(meta) bool { return true }, func(v *meta) { v.LastNow-- })
	})
	for name, spoil := range cases {
		t.Run(name, func(t *testing.T) {
			on := w.a.clone()
			spoil(t, on)
			if err := on.check(); !errors.Is(err, ErrInvariant) {
				t.Errorf("not found: %v", err)
			}
		})
	}
}
