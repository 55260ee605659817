package audit_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/hallpass/hallpass/audit"
	"github.com/hallpass/hallpass/internal/near"
)

const (
	oneGrant     = "01939d2e-0000-7000-8000-000000000001"
	anotherGrant = "01939d2e-0000-7000-8000-000000000002"
)

// life is a log in which oneGrant was asked for, approved, used and ended,
// among others.
func life(t *testing.T) *history {
	t.Helper()
	h := &history{}
	for _, e := range []audit.Entry{
		{Kind: "bootstrap", Object: "cluster"},
		{Kind: "request.create", Object: oneGrant},
		{Kind: "request.create", Object: anotherGrant},
		{Kind: "request.decide", Object: oneGrant, Details: json.RawMessage(`{"decision":"approve"}`)},
		{Kind: "grant.issue", Object: oneGrant, Details: json.RawMessage(`{"serial":"0a"}`)},
		{Kind: "grant.issue", Object: anotherGrant, Details: json.RawMessage(`{"serial":"0b"}`)},
		{Kind: "subject.block", Object: "spiffe://acme.test/user/eve", Details: json.RawMessage(`{"grants":["` + anotherGrant + `"]}`)},
		{Kind: "tick", Details: json.RawMessage(`{"grants":["` + oneGrant + `"]}`)},
		{Kind: "tick", Details: json.RawMessage(`{"forgotten":["` + oneGrant + `"]}`)},
	} {
		e.Time = sample().Time
		body, _, err := audit.AppendEntry(&h.store, h.size(), e)
		if err != nil {
			t.Fatal(err)
		}
		h.bodies = append(h.bodies, body)
	}
	return h
}

// bundle shows these entries of a log.
func (h *history) bundle(t *testing.T, grant string, entries []int64, keys ...*audit.Signer) audit.Bundle {
	t.Helper()
	b := audit.Bundle{Grant: grant, Checkpoint: sign(t, h.checkpoint(t, h.size()), keys...)}
	for _, i := range entries {
		proof, err := audit.InclusionProof(&h.store, h.size(), i)
		if err != nil {
			t.Fatal(err)
		}
		b.Entries = append(b.Entries, audit.Proven{Body: h.bodies[i], Proof: proof})
	}
	return b
}

func TestBundle(t *testing.T) {
	n1, n2 := newKey(t, "acme.test", "n1"), newKey(t, "acme.test", "n2")
	h := life(t)
	var about, ends []int64
	for i, body := range h.bodies {
		e, err := audit.ParseEntry(body)
		if err != nil {
			t.Fatal(err)
		}
		if e.Concerns(oneGrant) {
			about = append(about, int64(i))
		}
		if e.Ends(oneGrant) {
			ends = append(ends, int64(i))
		}
		if e.Concerns("") || e.Ends("") {
			t.Errorf("entry %d is about nothing", i)
		}
	}
	if want := []int64{7}; !slices.Equal(ends, want) {
		t.Errorf("it ends with %v, want %v", ends, want)
	}
	if want := []int64{1, 3, 4, 7}; !slices.Equal(about, want) {
		t.Fatalf("about the grant are %v, want %v", about, want)
	}
	text := h.bundle(t, oneGrant, about, n1, n2).Encode()
	if !audit.IsBundle(text) {
		t.Error("it does not begin as a bundle")
	}
	read, err := audit.ParseBundle(text)
	if err != nil {
		t.Fatal(err)
	}
	report, entries, err := read.Verify(verifiers(t, n1, n2))
	if err != nil || len(entries) != 4 || report.Checkpoint.Size != h.size() || len(report.Signers) != 2 {
		t.Errorf("Verify = %+v, %d entries, %v", report, len(entries), err)
	}
	for _, c := range []struct {
		what   string
		bundle audit.Bundle
		want   error
	}{
		{"a key that is not known signed, too", h.bundle(t, oneGrant, about, n1, newKey(t, "acme.test", "n3")), audit.ErrBundle},
		{"signed by another cluster", h.bundle(t, oneGrant, about, newKey(t, "acme.test", "n1")), audit.ErrCheckpoint},
		{"another grant's name", h.bundle(t, anotherGrant, about, n1), audit.ErrBundle},
		{"another grant's entry", h.bundle(t, oneGrant, []int64{1, 2, 3}, n1), audit.ErrBundle},
		{"not from the request on", h.bundle(t, oneGrant, []int64{3, 4}, n1), audit.ErrBundle},
		{"out of order", h.bundle(t, oneGrant, []int64{1, 4, 3}, n1), audit.ErrBundle},
		{"twice", h.bundle(t, oneGrant, []int64{1, 3, 3}, n1), audit.ErrBundle},
		{"no entry", h.bundle(t, oneGrant, nil, n1), audit.ErrBundle},
		{"no grant", h.bundle(t, "", []int64{7}, n1), audit.ErrBundle},
	} {
		if _, _, err := c.bundle.Verify(verifiers(t, n1, n2)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.what, err, c.want)
		}
	}
}

// Whatever byte of a bundle is another one, it is refused; so is one cut short
// anywhere, or with something after it.
func TestBundleByteForByte(t *testing.T) {
	n1, n2 := newKey(t, "acme.test", "n1"), newKey(t, "acme.test", "n2")
	known := verifiers(t, n1, n2)
	text := life(t).bundle(t, oneGrant, []int64{1, 3, 4, 7}, n1, n2).Encode()
	passes := func(changed []byte) bool {
		b, err := audit.ParseBundle(changed)
		if err != nil {
			return false
		}
		_, _, err = b.Verify(known)
		return err == nil
	}
	if !passes(text) {
		t.Fatal("the bundle itself is refused")
	}
	for i := range text {
		for _, flip := range []byte{0x01, 0x20, 0x80, 0xff} {
			changed := bytes.Clone(text)
			changed[i] ^= flip
			if passes(changed) {
				t.Errorf("byte %d (%q) changed to %q passes", i, text[i], changed[i])
			}
		}
		if dropped := slices.Delete(bytes.Clone(text), i, i+1); passes(dropped) {
			t.Errorf("without byte %d (%q) it passes", i, text[i])
		}
		if bytes.Count(text[i:], []byte("\n")) > 1 && passes(text[:i]) { // without the last signature it is as good
			t.Errorf("cut before byte %d it passes", i)
		}
	}
	// A second signature by a key that has signed: "— NAME BASE64", the key's id first.
	again := string(text[bytes.LastIndex(text, []byte("— ")):])
	forged := strings.Replace(again, again[len(again)-20:len(again)-10], "AAAAAAAAAA", 1)
	for _, more := range []string{"\n", " ", "x", "\n\n", "hash ", again, forged} {
		if passes(append(bytes.Clone(text), more...)) {
			t.Errorf("with %q after it, it passes", more)
		}
	}
	for _, none := range []string{"", "\n", "hallpass-audit-bundle/v1\n", strings.Replace(string(text), "\nentry ", "\nhash ", 1)} {
		if _, err := audit.ParseBundle([]byte(none)); !errors.Is(err, audit.ErrBundle) {
			t.Errorf("ParseBundle(%.40q) = %v", none, err)
		}
	}
}

func TestEntryEnds(t *testing.T) {
	for _, c := range []struct {
		kind, details string
		want          bool
	}{
		{"request.create", `{}`, false},
		{"request.decide", `{"state":"pending"}`, false},
		{"request.decide", `{"state":"approved"}`, false},
		{"request.decide", `{"state":"denied"}`, true},
		{"request.cancel", `{"state":"cancelled"}`, true},
		{"grant.issue", `{}`, false},
		{"grant.revoke", `{}`, true},
		{"grant.return", `{}`, true},
		{"tick", `{"began":"2030-01-01T00:00:00.000Z"}`, false},
	} {
		if got := (audit.Entry{Kind: c.kind, Object: oneGrant, Details: json.RawMessage(c.details)}).Ends(oneGrant); got != c.want {
			t.Errorf("%s %s ends it: %t", c.kind, c.details, got)
		}
	}
}

// TestEntryOfAnExtension: what makes a grant live longer is about that grant, and does
// not end it; the review of a broken glass is about it after its end.
func TestEntryOfAnExtension(t *testing.T) {
	extends := json.RawMessage(`{"extends":"` + oneGrant + `","state":"denied"}`)
	for _, kind := range []string{"request.create", "request.decide", "request.cancel"} {
		e := audit.Entry{Kind: kind, Object: "another", Details: extends}
		if !e.Concerns(oneGrant) || e.Ends(oneGrant) || e.Concerns("x") || !e.Concerns("another") {
			t.Errorf("%s: concerns %t, ends %t", kind, e.Concerns(oneGrant), e.Ends(oneGrant))
		}
	}
	for _, c := range []struct {
		kind, details  string
		opened, closed bool
	}{
		{"request.create", `{"break_glass":{"review":["security"]}}`, true, false},
		{"request.create", `{}`, false, false},
		{"request.decide", `{"break_glass":{}}`, false, false},
		{"review.close", `{"open":["security"]}`, false, false},
		{"review.close", `{"closed":true}`, false, true},
	} {
		e := audit.Entry{Kind: c.kind, Object: oneGrant, Details: json.RawMessage(c.details)}
		if opened, closed := e.Review(oneGrant); opened != c.opened || closed != c.closed {
			t.Errorf("%s %s: opened %t, closed %t", c.kind, c.details, opened, closed)
		}
		if opened, closed := e.Review("x"); opened || closed || e.Ends(oneGrant) {
			t.Errorf("%s %s is about another", c.kind, c.details)
		}
	}
}

// An epoch ends all that is older, and lists none of it: a bundle without its entry
// would show a grant that lasted to its end.
func TestEpochEndsWhatIsOlder(t *testing.T) {
	at := func(began string) audit.Entry {
		return audit.Entry{Kind: "epoch.begin", Object: "acme", Details: json.RawMessage(`{"began":"` + began + `","epoch":2,"grants":1,"requests":0}`)}
	}
	// oneGrant's id is of 0x01939d2e0000 ms.
	for began, want := range map[string]bool{"2024-12-06T18:14:17.856Z": false, "2024-12-06T18:14:17.857Z": true, "2023-01-01T00:00:00.000Z": false, "no time": false} {
		if e := at(began); e.Ends(oneGrant) != want || e.Concerns(oneGrant) != want || e.Concerns("") || e.Concerns("x") {
			t.Errorf("begun at %s: ends %t, concerns %t; want %t", began, e.Ends(oneGrant), e.Concerns(oneGrant), want)
		}
	}
}

// FuzzParseBundle: what is read is written the same.
func FuzzParseBundle(f *testing.F) {
	f.Add([]byte("hallpass-audit-bundle/v1\ngrant x\nentry {}\nhash AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\nx\n"), uint16(88), byte('E'))
	f.Fuzz(func(t *testing.T, data []byte, at uint16, by byte) {
		for _, data := range near.Of(data, at, by) {
			if b, err := audit.ParseBundle(data); err == nil && !bytes.Equal(b.Encode(), data) {
				t.Errorf("%q is read, and written as %q", data, b.Encode())
			}
		}
	})
}

func TestGrowth(t *testing.T) {
	n1, n2 := newKey(t, "acme.test", "n1"), newKey(t, "acme.test", "n2")
	h, other := newHistory(t, 9), life(t)
	epoch2 := h.checkpoint(t, 9)
	epoch2.Origin = audit.Origin("acme.test", 2)
	foreign := h.checkpoint(t, 5)
	foreign.Origin = audit.Origin("evil.test", 1)
	good := func(older, newer int64) ([]tlog.Hash, error) { return audit.ConsistencyProof(&h.store, older, newer) }
	for _, c := range []struct {
		what         string
		older, newer audit.Checkpoint
		want         error
		words        string
	}{
		{"grown", h.checkpoint(t, 5), h.checkpoint(t, 9), nil, ""},
		{"from the beginning", h.checkpoint(t, 0), h.checkpoint(t, 9), nil, ""},
		{"the same", h.checkpoint(t, 9), h.checkpoint(t, 9), nil, ""},
		{"after a restore", h.checkpoint(t, 7), epoch2, nil, ""},
		{"cut back", h.checkpoint(t, 9), h.checkpoint(t, 5), audit.ErrFork, "covers 9 entries, the newer one only 5"},
		{"another history of the same size", other.checkpoint(t, 9), h.checkpoint(t, 9), audit.ErrFork, "another root"},
		{"another history that grew", other.checkpoint(t, 5), h.checkpoint(t, 9), audit.ErrProof, "rewritten"},
		{"an older epoch", epoch2, h.checkpoint(t, 9), audit.ErrFork, "epoch 2"},
		{"another cluster's", foreign, h.checkpoint(t, 9), audit.ErrCheckpoint, ""},
	} {
		older, err := c.older.Sign(keyFor(t, c.older, n1))
		if err != nil {
			t.Fatal(err)
		}
		g := audit.Growth{Older: older, Newer: sign(t, c.newer, n2), Proof: good, Verifiers: verifiers(t, n1, n2)}
		report, from, err := g.Verify()
		if !errors.Is(err, c.want) || c.want != nil && !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v, want %v with %q", c.what, err, c.want, c.words)
		}
		if err == nil && (from != c.older || report.Checkpoint != c.newer || report.Signers[0] != n2.Name()) {
			t.Errorf("%s: %+v from %+v", c.what, report, from)
		}
	}
	cut := func(older, newer int64) ([]tlog.Hash, error) {
		proof, err := good(older, newer)
		return proof[1:], err
	}
	down := errors.New("down")
	for want, proof := range map[error]func(int64, int64) ([]tlog.Hash, error){
		audit.ErrProof: cut, down: func(int64, int64) ([]tlog.Hash, error) { return nil, down },
	} {
		g := audit.Growth{Older: sign(t, h.checkpoint(t, 5), n1), Newer: sign(t, h.checkpoint(t, 9), n1), Proof: proof, Verifiers: verifiers(t, n1)}
		if _, _, err := g.Verify(); !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
}

// keyFor is the key if it may sign the checkpoint, else one of its own domain.
func keyFor(t *testing.T, c audit.Checkpoint, key *audit.Signer) *audit.Signer {
	t.Helper()
	td, _, err := audit.ParseOrigin(c.Origin)
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasPrefix(key.Name(), td+"/") {
		return key
	}
	return newKey(t, td, "n1")
}

// TestBundleOfAnEmergency: a grant that nobody asked for here begins with its import,
// or with its revocation before that; and ends with the import if it was over by then.
func TestBundleOfAnEmergency(t *testing.T) {
	h := &history{}
	for _, e := range []audit.Entry{
		{Kind: "emergency.import", Object: oneGrant, Details: json.RawMessage(`{"state":"active"}`)},
		{Kind: "emergency.revoke", Object: anotherGrant},
		{Kind: "emergency.import", Object: anotherGrant, Details: json.RawMessage(`{"state":"revoked"}`)},
		{Kind: "grant.revoke", Object: oneGrant},
	} {
		e.Time = sample().Time
		body, _, err := audit.AppendEntry(&h.store, h.size(), e)
		if err != nil {
			t.Fatal(err)
		}
		h.bodies = append(h.bodies, body)
	}
	n1 := newKey(t, "acme.test", "n1")
	for grant, of := range map[string]struct{ about, ends []int64 }{oneGrant: {[]int64{0, 3}, []int64{3}}, anotherGrant: {[]int64{1, 2}, []int64{2}}} {
		if _, _, err := h.bundle(t, grant, of.about, n1).Verify(verifiers(t, n1)); err != nil {
			t.Errorf("%s: %v", grant, err)
		}
		for i, body := range h.bodies {
			e, err := audit.ParseEntry(body)
			if err != nil {
				t.Fatal(err)
			}
			if e.Ends(grant) != slices.Contains(of.ends, int64(i)) {
				t.Errorf("entry %d ends %s: %v", i, grant, e.Ends(grant))
			}
		}
	}
	if _, _, err := h.bundle(t, oneGrant, []int64{3}, n1).Verify(verifiers(t, n1)); !errors.Is(err, audit.ErrBundle) {
		t.Errorf("a revocation alone: %v", err)
	}
}
