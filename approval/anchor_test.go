package approval

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// anchorHead is a head of a service's log, whose root says how long it is.
func anchorHead(service string, size int64) AnchoredHead {
	return AnchoredHead{
		By: spiffe("service/" + service), Log: sha256Hex([]byte(service))[:32], Size: size, Root: sha256Hex(fmt.Append(nil, size)),
		Sent: MillisOf(epochStart).Add(time.Duration(size) * time.Second),
	}
}

func (w *world) anchors(heads ...AnchoredHead) Anchored {
	w.tb.Helper()
	out, ok := w.must(w.apply("", AnchorAccess{Heads: heads})).Object.(Anchored)
	if !ok {
		w.tb.Fatal("no Anchored")
	}
	return out
}

// TestAnchors: heads of several proxies are one leaf, which says all of them; the same
// heads again are none.
func TestAnchors(t *testing.T) {
	w := newWorld(t)
	entry := uint64(w.leaves())
	a, b := anchorHead("payments", 3), anchorHead("ledger", 9)
	out := w.anchors(a, b)
	want := []AccessLog{{a.Log, a.By, 3, a.Root, entry, MillisOf(w.now), a.Sent}, {b.Log, b.By, 9, b.Root, entry, MillisOf(w.now), b.Sent}}
	if diff := cmp.Diff(want, out.Logs); diff != "" || len(out.Alarms) > 0 {
		t.Errorf("alarms %v, logs (-want +got):\n%s", out.Alarms, diff)
	}
	if d := w.lastDetails(); !strings.HasPrefix(d, "access.anchor  {") || !strings.Contains(d, a.Root) || !strings.Contains(d, b.Root) {
		t.Error(d)
	}
	w.now = w.now.Add(time.Second)
	if r := w.must(w.apply("", AnchorAccess{Heads: []AnchoredHead{a, b}})); r.Changed {
		t.Error("the same again is another leaf")
	}
	out = w.anchors(a, anchorHead("ledger", 10))
	if out.Logs[0].Entry != entry || out.Logs[1].Entry != entry+1 {
		t.Errorf("%+v", out.Logs)
	}
	if d := w.lastDetails(); strings.Contains(d, a.Root) {
		t.Errorf("a head that did not change is written down again: %s", d)
	}
}

// TestAnchorOfAnotherService: a service's identity anchors its own proxies' logs and
// no other's, or a thief of one could have every true log taken for a false one.
func TestAnchorOfAnotherService(t *testing.T) {
	w := newWorld(t)
	mine := anchorHead("payments", 3)
	w.anchors(mine)
	theirs := anchorHead("payments", 4)
	theirs.By = spiffe("service/ledger")
	out := w.anchors(theirs)
	if len(out.Alarms) != 1 || out.Alarms[0].Why != LogOfAnother || out.Alarms[0].By != theirs.By || out.Alarms[0].Kept.By != mine.By {
		t.Fatalf("%+v", out.Alarms)
	}
	if l, err := Read(w.a).AccessLog(mine.Log); err != nil || l.Size != 3 || l.By != mine.By {
		t.Errorf("%+v, %v", l, err)
	}
	if d := w.lastDetails(); !strings.Contains(d, `"alarms":[{`) || !strings.Contains(d, string(LogOfAnother)) || !strings.Contains(d, `"heads":[]`) {
		t.Error(d)
	}
	w.anchors(anchorHead("payments", 5)) // its own goes on
}

// TestAnchorShrunkOrForked: a log neither loses lines nor has others than it had; who
// says so is written down once, and believed never.
func TestAnchorShrunkOrForked(t *testing.T) {
	w := newWorld(t)
	was := anchorHead("payments", 5)
	w.anchors(was)
	forked := was
	forked.Root = sha256Hex([]byte("other lines"))
	late := anchorHead("payments", 4) // overtaken on its way by the one after it
	if r := w.must(w.apply("", AnchorAccess{Heads: []AnchoredHead{late}})); r.Changed {
		t.Errorf("an older head that comes late: %+v", r.Object)
	}
	shrunk := late
	shrunk.Sent = was.Sent + 1
	for why, h := range map[AlarmCause]AnchoredHead{LogForked: forked, LogShrank: shrunk} {
		w := newWorld(t)
		w.anchors(was)
		out := w.anchors(h)
		if len(out.Alarms) != 1 || out.Alarms[0].Why != why || out.Logs[0].Root != was.Root {
			t.Errorf("%s: %+v", why, out)
		}
		if r := w.must(w.apply("", AnchorAccess{Heads: []AnchoredHead{h}})); r.Changed {
			t.Errorf("%s: told again, and written down again", why)
		}
		all, err := Read(w.a).LogAlarms()
		if err != nil || len(all) != 1 || all[0].Why != why {
			t.Errorf("%+v, %v", all, err)
		}
		w.now = w.now.Add(AnchorLife)
		w.anchors(anchorHead("ledger", 1))
		if all, err := Read(w.a).LogAlarms(); err != nil || len(all) != 0 {
			t.Errorf("for ever: %+v, %v", all, err)
		}
		if _, err := Read(w.a).AccessLog(was.Log); !errors.Is(err, ErrNotFound) {
			t.Errorf("a log of long ago: %v", err)
		}
	}
}

// TestAnchorRefuses: whatever is no proxy's head is refused, and with it all that came along.
func TestAnchorRefuses(t *testing.T) {
	w := newWorld(t)
	settings := func(change func(s *ProxySettings)) AnchorAccess {
		s := ProxySettings{By: spiffe("service/payments"), Log: strings.Repeat("0", 32), SHA256: sha256Hex(nil), Mode: "enforce", Open: []string{"x"}, Sent: 1}
		change(&s)
		return AnchorAccess{Settings: []ProxySettings{s}}
	}
	w.must(w.apply("", settings(func(*ProxySettings) {})))
	if d := w.lastDetails(); !strings.Contains(d, `"mode":"enforce"`) {
		t.Error(d)
	}
	head := func(change func(h *AnchoredHead)) AnchorAccess {
		h := anchorHead("payments", 5)
		change(&h)
		return AnchorAccess{Heads: []AnchoredHead{anchorHead("ledger", 1), h}}
	}
	for name, c := range map[string]struct {
		body  AnchorAccess
		actor string
		want  error
	}{
		"by a person":           {head(func(*AnchoredHead) {}), "ada", ErrDenied},
		"by a service":          {head(func(*AnchoredHead) {}), "service/payments", ErrDenied},
		"for a person":          {head(func(h *AnchoredHead) { h.By = spiffe("user/ada") }), "", ErrDenied},
		"for a node":            {head(func(h *AnchoredHead) { h.By = spiffe("node/n1") }), "", ErrDenied},
		"for what is below":     {head(func(h *AnchoredHead) { h.By = spiffe("service/payments/x") }), "", ErrDenied},
		"another trust domain":  {head(func(h *AnchoredHead) { h.By = "spiffe://other.test/service/payments" }), "", ErrDenied},
		"the grants' domain":    {head(func(h *AnchoredHead) { h.By = "spiffe://grants.acme.test/service/payments" }), "", ErrDenied},
		"for nobody":            {head(func(h *AnchoredHead) { h.By = "" }), "", ErrInvalid},
		"no line":               {head(func(h *AnchoredHead) { h.Size = 0 }), "", ErrInvalid},
		"fewer than none":       {head(func(h *AnchoredHead) { h.Size = -1 }), "", ErrInvalid},
		"too many":              {head(func(h *AnchoredHead) { h.Size = maxLogLines + 1 }), "", ErrInvalid},
		"no time":               {head(func(h *AnchoredHead) { h.Sent = 0 }), "", ErrInvalid},
		"settings of no time":   {settings(func(s *ProxySettings) { s.Sent = 0 }), "", ErrInvalid},
		"no name":               {head(func(h *AnchoredHead) { h.Log = "" }), "", ErrInvalid},
		"a name that goes on":   {head(func(h *AnchoredHead) { h.Log += "\x00" }), "", ErrInvalid},
		"no root":               {head(func(h *AnchoredHead) { h.Root = "x" }), "", ErrInvalid},
		"too many heads":        {AnchorAccess{Heads: make([]AnchoredHead, MaxAnchors+1)}, "", ErrInvalid},
		"a mode of its own":     {settings(func(s *ProxySettings) { s.Mode = "off" }), "", ErrInvalid},
		"another's settings":    {settings(func(s *ProxySettings) { s.By = spiffe("user/ada") }), "", ErrDenied},
		"a rule that is hidden": {settings(func(s *ProxySettings) { s.Open = []string{"a\u202eb"} }), "", ErrInvalid},
		"a long rule":           {settings(func(s *ProxySettings) { s.Open = []string{strings.Repeat("x", MaxAnchoredRule+1)} }), "", ErrInvalid},
		"many rules":            {settings(func(s *ProxySettings) { s.Open = make([]string, MaxAnchoredRules+1) }), "", ErrInvalid},
		"many settings":         {AnchorAccess{Settings: make([]ProxySettings, MaxAnchoredSettings+1)}, "", ErrInvalid},
	} {
		if r := w.apply(c.actor, c.body); !errors.Is(r.Failure(), c.want) {
			t.Errorf("%s: %+v, want %v", name, r, c.want)
		}
	}
}

// TestAnchorsAreBounded: a service whose key is stolen fills its own place alone.
func TestAnchorsAreBounded(t *testing.T) {
	w := newWorld(t)
	own := anchorHead("payments", 7)
	w.anchors(own)
	flood := func(from, to int) {
		var heads []AnchoredHead
		for i := from; i < to; i++ {
			h := anchorHead("ledger", 1)
			h.Log = sha256Hex(fmt.Append(nil, "log", i))[:32]
			heads = append(heads, h)
		}
		w.now = w.now.Add(time.Second)
		w.anchors(heads...)
	}
	for i := 0; i < MaxLogsOfService; i += MaxAnchors {
		flood(i, i+MaxAnchors)
	}
	first := sha256Hex([]byte("log0"))[:32]
	if _, err := Read(w.a).AccessLog(first); err != nil {
		t.Fatal(err)
	}
	flood(MaxLogsOfService, MaxLogsOfService+MaxAnchors)
	if _, err := Read(w.a).AccessLog(first); !errors.Is(err, ErrNotFound) {
		t.Errorf("the oldest: %v", err)
	}
	if l, err := Read(w.a).AccessLog(own.Log); err != nil || l.Size != 7 {
		t.Errorf("another's: %+v, %v", l, err)
	}
	for i := range MaxAlarmsOfService + 4 {
		victim := anchorHead(fmt.Sprintf("victim%d", i), 3)
		w.anchors(victim)
		victim.By = spiffe("service/ledger")
		w.anchors(victim)
	}
	if all, err := Read(w.a).LogAlarms(); err != nil || len(all) != MaxAlarmsOfService {
		t.Errorf("%d alarms, %v", len(all), err)
	}
}
