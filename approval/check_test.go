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
	active := func(g Grant) bool { return g.State == GrantActive }
	revoked := func(g Grant) bool { return g.State == GrantRevoked }
	anyIssue := func(Issue) bool { return true }
	approved := func(r Request) bool { return r.State == RequestApproved }
	grantOf := func(name string, fits func(Grant) bool, change func(*Grant)) (string, func(*testing.T, *memory)) {
		return "grant: " + name, func(t *testing.T, m *memory) { tamper(t, m, prefixGrant, fits, change) }
	}
	cases := map[string]func(*testing.T, *memory){}
	add := func(name string, fn func(*testing.T, *memory)) { cases[name] = fn }
	add(grantOf("no votes", active, func(g *Grant) { g.Votes = nil }))
	add(grantOf("the requester's vote", active, func(g *Grant) { g.Votes[0].Person = "alice" }))
	add(grantOf("a vote never given", active, func(g *Grant) { g.Votes[0].Person = "carol" }))
	add(grantOf("a vote for another group", active, func(g *Grant) { g.Votes[0].Group = "security" }))
	add(grantOf("a vote twice", active, func(g *Grant) { g.Votes = append(g.Votes, g.Votes[0]) }))
	add(grantOf("needs nobody", active, func(g *Grant) { g.Requirements, g.Votes = nil, nil }))
	add(grantOf("lives longer", active, func(g *Grant) { g.Expiry++ }))
	add(grantOf("more permissions", active, func(g *Grant) { g.Permissions = []string{"* /**"} }))
	add(grantOf("another name", active, func(g *Grant) { g.SPIFFEID += "x" }))
	add(grantOf("another subject", active, func(g *Grant) { g.Subject = spiffe("bob") }))
	add(grantOf("fewer certificates", active, func(g *Grant) { g.Issued = 0 }))
	add(grantOf("certificates end earlier", revoked, func(g *Grant) { g.LatestNotAfter-- }))
	add(grantOf("alive again", revoked, func(g *Grant) { g.State = GrantActive }))
	add(grantOf("revoked before its certificate", revoked, func(g *Grant) { g.Index = 1 }))
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
	for name, change := range map[string]func(*Request){
		"another reason":        func(r *Request) { r.Reason = "another" },
		"decided by requester":  func(r *Request) { r.Decisions[0].Person = "alice" },
		"decided twice":         func(r *Request) { r.Decisions = append(r.Decisions, r.Decisions[0]) },
		"pending again":         func(r *Request) { r.State = RequestPending },
		"longer certificates":   func(r *Request) { r.CertificateTTL++ },
		"decided on other text": func(r *Request) { r.Decisions[0].Hash = sha256Hex(nil) },
	} {
		add("request: "+name, func(t *testing.T, m *memory) { tamper(t, m, prefixRequest, approved, change) })
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
