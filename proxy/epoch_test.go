package proxy

import (
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
)

// TestARestoreRevivesNothing: once a list says that the cluster was restored, no
// grant of before is admitted, listed or not, whatever is said later and after a
// restart; grants of after it are.
func TestARestoreRevivesNothing(t *testing.T) {
	const before, after = "0199e9c0-0000-7000-8000-000000000000", "0199e9c1-0000-7000-8000-000000000000"
	began := time.UnixMilli(0x0199e9c10000)
	path := filepath.Join(t.TempDir(), "state.json")
	open := func() *revocations {
		r, err := openRevocations(&config{stateFile: path, skew: time.Minute, now: time.Now, log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := open()
	want := func(what, id, reason string) {
		t.Helper()
		if got := r.cur.Load().denies(&admission{grantID: id}); got != reason {
			t.Errorf("%s: %s is denied as %q, want %q", what, id, got, reason)
		}
	}
	apply := func(doc feedDoc) {
		t.Helper()
		if err := r.apply(doc); err != nil {
			t.Fatal(err)
		}
	}
	apply(feedDoc{Epoch: 1, Revision: 900, VerifiedAt: began.Add(-time.Hour)})
	want("never restored", before, "")
	if err := r.beat(heartbeat{Epoch: 2, Revision: 7, VerifiedAt: began.Add(time.Second)}); !errors.Is(err, errBehind) {
		t.Errorf("a heartbeat of an epoch whose list was not read: %v", err)
	}
	apply(feedDoc{Epoch: 2, Revision: 7, EpochBegan: began, VerifiedAt: began.Add(time.Second)})
	want("restored", before, reasonEpochEnded)
	want("restored", after, "")
	want("restored", "not a grant's id", reasonEpochEnded)
	want("an identity", "", "")
	if err := r.apply(feedDoc{Epoch: 1, Revision: 901}); !errors.Is(err, errBehind) {
		t.Errorf("a node of the old epoch: %v", err)
	}
	apply(feedDoc{Epoch: 3, Revision: 1})
	want("a list that does not say when", before, reasonEpochEnded)
	r = open()
	want("from disk", before, reasonEpochEnded)
	want("from disk", after, "")
}

// TestInvariant12_ARestoreRevivesNothing: a grant that the restored cluster never
// heard of, made between its snapshot and its end, is on no list of it. Its live
// connection is cut once the new epoch is known, it is not admitted again, nor
// after a restart without any control node; a grant of the new epoch is.
func TestInvariant12_ARestoreRevivesNothing(t *testing.T) {
	p := newPKI(t)
	node := startControl(t, p, nodeOne, feedDoc{Epoch: 1, Revision: 900, VerifiedAt: time.Now()})
	web := upstreamServer(t, drip)
	e := start(t, options{pki: p, upstream: web, edit: withFeed(node.url)})
	e.eventually("feed", func() bool { return e.px.rev.cur.Load().epoch == 1 })
	lost := newGrantID(t)
	stream := idle("h2")(e, p.grantWithID(lost, time.Hour, "GET /**"))
	u, err := uuid.Parse(lost)
	if err != nil {
		t.Fatal(err)
	}
	sec, nsec := u.Time().UnixTime()
	began := time.Unix(sec, nsec).Add(time.Millisecond)
	node.set(func(d *feedDoc) { *d = feedDoc{Epoch: 2, Revision: 1, EpochBegan: began, VerifiedAt: time.Now()} })
	if err := stream(); err == nil {
		t.Error("the stream ended well")
	}
	if r := e.record("the cut", func(r logLine) bool { return r.Reason == reasonEpochEnded && r.Event == "end" }); r.Grant != lost {
		t.Errorf("record %+v", r)
	}
	if err := readError(e.dial(p.grantWithID(lost, time.Hour, "GET /**"))); err == nil {
		t.Error("a grant of the old epoch was admitted")
	}
	e.eventually("a grant of the new epoch", func() bool { return newGrantID(t) > lost && time.Now().After(began) })
	after := idle("h2")(e, p.grantWithID(newGrantID(t), time.Hour, "GET /**"))
	ended := make(chan error, 1)
	go func() { ended <- after() }()
	select {
	case err := <-ended:
		t.Errorf("a connection of the new epoch ended: %v", err)
	default:
	}
	e.shutdown()
	if err := <-ended; err == nil {
		t.Error("the stream of the new epoch ended well")
	}
	again := start(t, options{pki: p, upstream: web, edit: func(s *Settings) {
		withFeed("https://127.0.0.1:1")(s)
		s.Revocation.StateFile = filepath.Join(e.dir, "revocations.json")
	}})
	if err := readError(again.dial(p.grantWithID(lost, time.Hour, "GET /**"))); err == nil {
		t.Error("restarted while cut off, the proxy has forgotten the epoch")
	}
	again.record("the refusal", func(r logLine) bool {
		return r.Kind == kindHandshake && r.Reason == reasonEpochEnded && r.Grant == lost
	})
}
