package notify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hallpass/hallpass/approval"
)

func (l *fakeLog) target() approval.Target {
	t, _ := l.Target("chat")
	return t
}

// settle waits, in simulated time, until all that was sent is settled.
func later(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// TestEachEventOnce: a new target is told of what happens from then on, of each thing
// once, and of nothing that the outbox writes down of itself, or it would never end.
func TestEachEventOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, c := newFakeLog(), &fakeChannel{}
		log.add(approval.KindCreateRequest, "before")
		stop, _ := lead(t, log, c, time.Hour)
		later(time.Second)
		a := log.add(approval.KindCreateRequest, "r1")
		b := log.add(approval.KindDecideRequest, "r1")
		log.add(approval.KindAnchorAccess, "")
		later(time.Minute)
		size, _, _ := log.Size()
		later(time.Hour)
		if got := c.sent(); !slices.Equal(got, []uint64{a, b}) {
			t.Errorf("sent %d, want %d", got, []uint64{a, b})
		}
		if after, _, _ := log.Size(); after != size {
			t.Errorf("%d entries more though nothing happens", after-size)
		}
		if k := log.target(); k.Sent != 2 || len(k.Open) != 0 || k.Position < b+1 {
			t.Errorf("%+v", k)
		}
		stop()
		// The next leader goes on where this one stood.
		stop, _ = lead(t, log, c, time.Hour)
		d := log.add(approval.KindCancelRequest, "r2")
		later(time.Minute)
		if got := c.sent(); !slices.Equal(got, []uint64{a, b, d}) {
			t.Errorf("after another leader: sent %d", got)
		}
		stop()
	})
}

// TestOnlyNamed: a target that is told of what names it alone hears of nothing else, not even
// of what its events choose; and of what names it, only what they choose.
func TestOnlyNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, c := newFakeLog(), &fakeChannel{}
		stop, _ := leadTo(t, log, &Target{name: "chat", kind: "fake", events: []string{"request.*", "tick"}, named: true, timeout: time.Minute, giveUp: time.Hour, channel: c})
		later(time.Second)
		log.add(approval.KindCreateRequest, "r1")
		first := log.add(approval.KindCreateRequest, "chat-1")
		log.add(approval.KindRevokeGrant, "chat-1")
		log.mu.Lock()
		log.append(approval.KindTick, "", `{"requests":["r1"]}`)
		second := log.append(approval.KindTick, "", `{"requests":["r1"],"grants":["chat-1"]}`)
		log.mu.Unlock()
		later(time.Minute)
		stop()
		if got := c.sent(); !slices.Equal(got, []uint64{first, second}) {
			t.Errorf("sent %d, want %d", got, []uint64{first, second})
		}
	})
}

// TestOrderOfARequest: what is about one request leaves in order, however often the first
// of it fails; what is about others does not wait for it.
func TestOrderOfARequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, c := newFakeLog(), &fakeChannel{}
		c.answer = func(_ context.Context, d Delivery, try int) error {
			if d.Object == "r1" && d.Kind == approval.KindCreateRequest && try < 5 {
				return errors.New("no route")
			}
			return nil
		}
		stop, _ := lead(t, log, c, time.Hour)
		defer stop()
		later(time.Second)
		first := log.add(approval.KindCreateRequest, "r1")
		second := log.add(approval.KindDecideRequest, "r1")
		others := []uint64{log.add(approval.KindCreateRequest, "r2"), log.add(approval.KindCreateRequest, "r3"), log.add(approval.KindDecideRequest, "r2")}
		later(700 * time.Millisecond) // less than any retry waits twice
		got := c.sent()
		for _, o := range others {
			if !slices.Contains(got, o) {
				t.Errorf("entry %d, of another request, waits: %d", o, got)
			}
		}
		if slices.Contains(got, second) {
			t.Errorf("entry %d overtook entry %d: %d", second, first, got)
		}
		later(10 * time.Minute)
		got = c.sent()
		if n := len(got) - 1; got[n] != second || got[n-1] != first || slices.Index(got, others[2]) < slices.Index(got, others[0]) {
			t.Errorf("sent %d", got)
		}
		if k := log.target(); k.Sent != 5 || len(k.Open) != 0 {
			t.Errorf("%+v", k)
		}
	})
}

// TestABusyReceiverIsLeftAlone: what a receiver answers with Retry-After is of it, and not of the
// delivery that it turned away: no other is tried meanwhile, and nothing is lost.
func TestABusyReceiverIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, c := newFakeLog(), &fakeChannel{}
		c.answer = func(_ context.Context, d Delivery, try int) error {
			if d.Object == "r1" && try == 1 {
				return &Failure{Cause: "answered 429 Too Many Requests", After: 30 * time.Second}
			}
			return nil
		}
		stop, _ := lead(t, log, c, time.Hour)
		defer stop()
		later(time.Second)
		first := log.add(approval.KindCreateRequest, "r1")
		later(time.Second)
		second := log.add(approval.KindCreateRequest, "r2")
		later(25 * time.Second)
		if got := c.sent(); !slices.Equal(got, []uint64{first}) {
			t.Errorf("tried %d of a receiver that asked for quiet", got)
		}
		later(20 * time.Second)
		if got := c.sent(); !slices.Equal(slices.Sorted(slices.Values(got)), []uint64{first, first, second}) {
			t.Errorf("sent %d afterwards", got)
		}
	})
}

// TestATickIsInOrderWithAllThatItEnds: one entry that ends many requests waits for each.
func TestATickIsInOrderWithAllThatItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, c := newFakeLog(), &fakeChannel{}
		c.answer = func(_ context.Context, d Delivery, try int) error {
			if d.Object == "r2" && try == 1 {
				return errors.New("no route")
			}
			return nil
		}
		stop, _ := lead(t, log, c, time.Hour)
		defer stop()
		later(time.Second)
		log.add(approval.KindCreateRequest, "r1")
		slow := log.add(approval.KindCreateRequest, "r2")
		log.mu.Lock()
		tick := log.append(approval.KindTick, "", `{"requests":["r1","r2"]}`)
		room := log.append(approval.KindTick, "", `{"pruned":4}`)
		log.mu.Unlock()
		later(time.Minute)
		got := c.sent()
		if got[len(got)-1] != tick || got[len(got)-2] != slow || slices.Contains(got, room) {
			t.Errorf("sent %d, the tick is %d", got, tick)
		}
	})
}

// TestRetriesSlowDownAndEnd: a receiver that is down is tried ever more rarely, then given
// up with the cause; an admin has it sent again, under the same id.
func TestRetriesSlowDownAndEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, c := newFakeLog(), &fakeChannel{}
		down := true
		c.answer = func(context.Context, Delivery, int) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			if down {
				return &Failure{Cause: "answered 500 Internal Server Error"}
			}
			return nil
		}
		stop, said := lead(t, log, c, time.Hour)
		later(time.Second)
		at := log.add(approval.KindCreateRequest, "r1")
		later(2 * time.Minute)
		if k := log.target(); len(k.Open) != 1 || k.Open[0].Tries < 3 || k.Open[0].Cause != "answered 500 Internal Server Error" {
			t.Errorf("what fails is not shown: %+v", k)
		}
		later(2 * time.Hour)
		tries := len(c.sent())
		if tries < 8 || tries > 24 {
			t.Errorf("%d tries in an hour", tries)
		}
		log.mu.Lock()
		if len(log.dead) != 1 || log.dead[0].Entry != at || log.dead[0].Tries != uint64(tries) || log.dead[0].Cause != "answered 500 Internal Server Error" {
			t.Errorf("%+v", log.dead)
		}
		log.mu.Unlock()
		c.mu.Lock()
		down = false
		c.mu.Unlock()
		log.replay("chat")
		later(time.Minute)
		stop()
		if got := c.got; len(got) != tries+1 || got[tries].ID != got[0].ID {
			t.Errorf("%d tries, the last as %s, before as %s", len(got), got[len(got)-1].ID, got[0].ID)
		}
		if k := log.target(); k.Sent != 1 || k.Dead != 0 || len(k.Open) != 0 {
			t.Errorf("%+v", k)
		}
		if !strings.Contains(said.String(), "given up") {
			t.Errorf("log: %s", said)
		}
	})
}

// TestGone: a receiver that wants no more is not sent a thing, and everything waits in
// the log until an admin goes on.
func TestGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, c := newFakeLog(), &fakeChannel{}
		gone := true
		c.answer = func(context.Context, Delivery, int) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			if gone {
				return &Failure{Cause: "answered 410 Gone", Gone: true}
			}
			return nil
		}
		stop, _ := lead(t, log, c, time.Hour)
		defer stop()
		later(time.Second)
		a := log.add(approval.KindCreateRequest, "r1")
		later(time.Second)
		b := log.add(approval.KindCreateRequest, "r2")
		later(time.Hour)
		if got := c.sent(); !slices.Equal(got, []uint64{a}) {
			t.Errorf("sent %d", got)
		}
		if k := log.target(); k.Paused == 0 || k.Cause != "answered 410 Gone" || k.Dead != 1 {
			t.Errorf("%+v", k)
		}
		c.mu.Lock()
		gone = false
		c.mu.Unlock()
		log.replay("chat")
		later(time.Minute)
		if got := c.sent(); !slices.Equal(got, []uint64{a, a, b}) && !slices.Equal(got, []uint64{a, b, a}) {
			t.Errorf("sent %d", got)
		}
	})
}

// TestReplayIntoABacklog: dead letters that are sent again while as much waits as may be open leave a
// target that goes on: all of it is delivered once the receiver is back.
func TestReplayIntoABacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, c := newFakeLog(), &fakeChannel{}
		state := "broken"
		c.answer = func(ctx context.Context, _ Delivery, _ int) error {
			c.mu.Lock()
			now := state
			c.mu.Unlock()
			switch now {
			case "broken":
				return &Failure{Cause: "answered 400 Bad Request", Permanent: true}
			case "silent":
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}
		is := func(s string) {
			c.mu.Lock()
			defer c.mu.Unlock()
			state = s
		}
		stop, said := lead(t, log, c, 24*time.Hour)
		later(time.Second)
		var all []uint64
		for i := range 100 {
			all = append(all, log.add(approval.KindCreateRequest, fmt.Sprintf("a%d", i)))
		}
		later(time.Minute)
		is("silent")
		for i := range 400 {
			all = append(all, log.add(approval.KindCreateRequest, fmt.Sprintf("b%d", i)))
		}
		later(time.Second) // nothing of these is written down
		log.replay("chat")
		later(10 * time.Minute)
		if k := log.target(); len(k.Open) < 100 || len(k.Open) > approval.MaxOpenDeliveries {
			t.Errorf("%d are open", len(k.Open))
		}
		is("well")
		later(time.Hour)
		stop()
		if strings.Contains(said.String(), "would be open") {
			t.Errorf("more is told than is taken: %s", said)
		}
		if k := log.target(); k.Sent != uint64(len(all)) || len(k.Open) != 0 || k.Dead != 0 {
			t.Errorf("of %d sent %d, open %d, dead %d, at %d", len(all), k.Sent, len(k.Open), k.Dead, k.Position)
		}
		log.mu.Lock()
		settled := 0
		for _, e := range log.entries {
			if e.Kind == approval.KindSettleOutbox {
				settled++
			}
		}
		log.mu.Unlock()
		if settled > 500 {
			t.Errorf("%d settlements of %d deliveries", settled, len(all))
		}
	})
}

// TestWhatWasSentIsSettledOnce: while nothing can be committed, what was sent is not sent
// again.
func TestWhatWasSentIsSettledOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, c := newFakeLog(), &fakeChannel{}
		stop, _ := lead(t, log, c, time.Hour)
		defer stop()
		later(time.Second)
		log.mu.Lock()
		log.fail = errors.New("no quorum")
		log.mu.Unlock()
		a := log.add(approval.KindCreateRequest, "r1")
		later(time.Minute)
		log.mu.Lock()
		log.fail = nil
		log.mu.Unlock()
		later(time.Minute)
		if got := c.sent(); !slices.Equal(got, []uint64{a}) {
			t.Errorf("sent %d", got)
		}
		if k := log.target(); k.Sent != 1 {
			t.Errorf("%+v", k)
		}
	})
}

// TestBacklogIsBounded: a receiver that hangs holds what a target may hold, and no more;
// the rest waits in the log and leaves afterwards.
func TestBacklogIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, c := newFakeLog(), &fakeChannel{}
		release := make(chan struct{})
		c.answer = func(ctx context.Context, _ Delivery, _ int) error {
			select {
			case <-release:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		stop, _ := lead(t, log, c, 24*time.Hour)
		defer stop()
		later(time.Second)
		const many = 3 * approval.MaxOpenDeliveries
		for range many {
			log.add(approval.KindBlockSubject, "s")
		}
		later(30 * time.Second)
		if got := len(c.sent()); got != 1 {
			t.Errorf("%d under way at once of one subject", got)
		}
		for i := range many {
			log.add(approval.KindBlockSubject, "s"+string(rune('a'+i%26))+string(rune('a'+i/26)))
		}
		later(30 * time.Second)
		if k := log.target(); len(k.Open) > approval.MaxOpenDeliveries {
			t.Errorf("%d open", len(k.Open))
		}
		close(release)
		later(time.Hour)
		if k := log.target(); k.Sent != 2*many || len(k.Open) != 0 {
			t.Errorf("sent %d, open %d", k.Sent, len(k.Open))
		}
	})
}

func againIsSaid(t *testing.T, c *fakeChannel, seen map[uint64][]bool) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		log := newFakeLog()
		stop, _ := lead(t, log, c, time.Hour)
		later(time.Second)
		stop()
		before := log.add(approval.KindCreateRequest, "r1") // while nobody leads, or an earlier leader does
		stop, _ = lead(t, log, c, time.Hour)
		defer stop()
		later(time.Second)
		after := log.add(approval.KindCreateRequest, "r2")
		later(time.Minute)
		if !slices.Equal(seen[before], []bool{true, true}) || !slices.Equal(seen[after], []bool{false, true}) {
			t.Errorf("%v, entries %d and %d", seen, before, after)
		}
	})
}
