package approval

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/hallpass/hallpass/grant"
)

// AccessLog is what the cluster anchored last of one access log.
type AccessLog struct {
	Log   string `json:"log" cbor:"1,keyasint"` // its name: 32 hex digits
	By    string `json:"by" cbor:"2,keyasint"`  // SPIFFE ID of the service that anchored it first
	Size  int64  `json:"size" cbor:"3,keyasint"`
	Root  string `json:"root" cbor:"4,keyasint"`
	Entry uint64 `json:"entry" cbor:"5,keyasint"` // of the audit log
	At    Millis `json:"at" cbor:"6,keyasint"`
	Sent  Millis `json:"sent" cbor:"7,keyasint"` // see AnchoredHead
}

// LogAlarm says that somebody anchored what an access log cannot have become.
type LogAlarm struct {
	Log   string     `json:"log" cbor:"1,keyasint"`
	By    string     `json:"by" cbor:"2,keyasint"`
	Why   AlarmCause `json:"why" cbor:"3,keyasint"`
	Size  int64      `json:"size" cbor:"4,keyasint"`
	Root  string     `json:"root" cbor:"5,keyasint"`
	Kept  AccessLog  `json:"kept" cbor:"6,keyasint"` // what stands
	Entry uint64     `json:"entry" cbor:"7,keyasint"`
	At    Millis     `json:"at" cbor:"8,keyasint"`
	Sent  Millis     `json:"sent" cbor:"9,keyasint"`
}

// AlarmCause is why a head of an access log was not taken.
type AlarmCause string

// The causes.
const (
	LogShrank    AlarmCause = "shrank"             // it has fewer lines than it had
	LogForked    AlarmCause = "forked"             // as many lines, and others
	LogOfAnother AlarmCause = "of_another_service" // it is another service's
)

// Anchored is what became of heads: the logs as they stand, and alarms that are new.
type Anchored struct {
	Logs   []AccessLog `cbor:"1,keyasint"`
	Alarms []LogAlarm  `cbor:"2,keyasint"`
	Entry  uint64      `cbor:"3,keyasint"` // of the command, if it changed anything
}

// anchorDetails is the audit leaf of anchors.
type anchorDetails struct {
	Heads    []AnchoredHead  `json:"heads"`
	Settings []ProxySettings `json:"settings,omitempty"`
	Alarms   []LogAlarm      `json:"alarms,omitempty"`
}

// anchorAccess writes down how long proxies' access logs are and what their roots
// are, so that nobody can change what is in them afterwards: neither who has the
// proxy's machine, nor who is given a copy.
func (t *turn) anchorAccess(b AnchorAccess) (Object, error) {
	if n := len(b.Heads); n > MaxAnchors || len(b.Settings) > MaxAnchoredSettings {
		return nil, invalid("%d heads and %d settings, at most %d and %d", n, len(b.Settings), MaxAnchors, MaxAnchoredSettings)
	}
	d, out := anchorDetails{Heads: []AnchoredHead{}, Settings: b.Settings}, Anchored{Logs: []AccessLog{}, Alarms: []LogAlarm{}, Entry: t.m.AuditSize}
	for _, s := range b.Settings {
		if err := s.Check(t.m.TrustDomain); err != nil {
			return nil, err
		}
	}
	for _, h := range b.Heads {
		if err := h.Check(t.m.TrustDomain); err != nil {
			return nil, err
		}
		old, known, err := load[AccessLog](t, key(prefixAccessLog, h.Log))
		if err != nil {
			return nil, err
		}
		if cause := old.contradicts(h); known && cause != "" {
			if alarm, fresh := t.alarm(h, cause, old); fresh {
				out.Alarms = append(out.Alarms, alarm)
			}
			out.Logs = append(out.Logs, old)
			continue
		}
		if !known || h.Size > old.Size {
			old = t.anchor(h, old)
			d.Heads = append(d.Heads, h)
		}
		out.Logs = append(out.Logs, old)
	}
	d.Alarms = out.Alarms
	t.details = d
	t.unchanged = len(d.Heads)+len(d.Settings)+len(d.Alarms) == 0
	return out, t.pruneAnchors(maxAnchorPrune)
}

// contradicts says why a log that stands as it does cannot have that head.
func (l AccessLog) contradicts(h AnchoredHead) AlarmCause {
	switch {
	case l.By != h.By:
		// Who could anchor another's log could have its true copy taken for a false one.
		return LogOfAnother
	case h.Size < l.Size && h.Sent > l.Sent: // else it was long on its way, and is history
		return LogShrank
	case h.Size == l.Size && h.Root != l.Root:
		return LogForked
	}
	return ""
}

// Check refuses a head that is none, or is in the name of what is no service: a
// person's certificate vouches for no proxy.
func (h AnchoredHead) Check(trustDomain string) error {
	if err := checkAnchoring(h.By, h.Log, trustDomain); err != nil {
		return err
	}
	if h.Size < 1 || h.Size > maxLogLines {
		return invalid("an access log of %d lines", h.Size)
	}
	if h.Sent < 1 || h.Sent > maxNow {
		return invalid("a head of %d ms", h.Sent)
	}
	return checkHash("the root", h.Root)
}

// Check refuses settings that no proxy has.
func (s ProxySettings) Check(trustDomain string) error {
	if err := checkAnchoring(s.By, s.Log, trustDomain); err != nil {
		return err
	}
	if s.Mode != "enforce" && s.Mode != "observe" {
		return invalid("mode %q is neither enforce nor observe", s.Mode)
	}
	if s.Until < 0 || s.Until > maxNow || s.Sent < 1 || s.Sent > maxNow || len(s.Open) > MaxAnchoredRules {
		return invalid("settings until %d with %d rules, at most %d", s.Until, len(s.Open), MaxAnchoredRules)
	}
	for _, line := range s.Open {
		if len(line) > MaxAnchoredRule {
			return invalid("a rule of %d bytes, at most %d", len(line), MaxAnchoredRule)
		}
		if err := checkText("a rule", line, 1); err != nil {
			return err
		}
	}
	return checkHash("the configuration's hash", s.SHA256)
}

// checkAnchoring refuses all but a service of this cluster's trust domain, and a
// log's name that is none.
func checkAnchoring(by, log, trustDomain string) error {
	id, err := parseID("who anchors", by)
	if err != nil {
		return err
	}
	if name, ok := strings.CutPrefix(id.Path(), "/service/"); !ok || id.TrustDomain().Name() != trustDomain || grant.ValidService(name) != nil {
		return denied("%s is no service of %s, and only a service's proxy has an access log", id, trustDomain)
	}
	if len(log) != 32 || !isHex(log) {
		return invalid("%q is not the name of an access log: 32 hex digits in lower case", log)
	}
	return nil
}

// anchor keeps a log's new head in the place of the old one.
func (t *turn) anchor(h AnchoredHead, old AccessLog) AccessLog {
	if old.Log == "" {
		t.makeRoom(h.By)
		t.mark(pairKey(prefixLogOf, h.By, h.Log))
	} else {
		t.unmark(dueAt(prefixAnchorEnds, old.At, endedLog, old.Log))
	}
	l := AccessLog{Log: h.Log, By: h.By, Size: h.Size, Root: h.Root, Entry: t.m.AuditSize, At: t.now, Sent: max(h.Sent, old.Sent)}
	t.save(key(prefixAccessLog, l.Log), l)
	t.mark(dueAt(prefixAnchorEnds, l.At, endedLog, l.Log))
	return l
}

// makeRoom forgets the logs of a service that were anchored longest ago when it has
// too many: a service whose key is stolen fills its own place and no other's. What
// was anchored stays in the audit log.
func (t *turn) makeRoom(by string) {
	names := suffixes(t, pairPrefix(prefixLogOf, by))
	if len(names) < MaxLogsOfService {
		return
	}
	logs := make([]AccessLog, 0, len(names))
	for _, name := range names {
		l, _, err := load[AccessLog](t, key(prefixAccessLog, name))
		if err != nil {
			t.fail(err)
			return
		}
		logs = append(logs, l)
	}
	slices.SortFunc(logs, func(a, b AccessLog) int { return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.Log, b.Log)) })
	for _, l := range logs[:len(logs)-MaxLogsOfService+1] {
		t.forgetLog(l)
	}
}

func (t *turn) forgetLog(l AccessLog) {
	t.Delete(key(prefixAccessLog, l.Log))
	t.unmark(pairKey(prefixLogOf, l.By, l.Log))
	t.unmark(dueAt(prefixAnchorEnds, l.At, endedLog, l.Log))
}

// alarm keeps what is wrong with a log, once; false when that is known, or when
// whoever says so has said it of too many others.
func (t *turn) alarm(h AnchoredHead, why AlarmCause, kept AccessLog) (LogAlarm, bool) {
	k := pairKey(prefixLogAlarm, h.By, h.Log)
	if t.has(k) || len(suffixes(t, pairPrefix(prefixLogAlarm, h.By))) >= MaxAlarmsOfService {
		return LogAlarm{}, false
	}
	a := LogAlarm{Log: h.Log, By: h.By, Why: why, Size: h.Size, Root: h.Root, Kept: kept, Entry: t.m.AuditSize, At: t.now, Sent: h.Sent}
	t.save(k, a)
	t.mark(dueAt(prefixAnchorEnds, a.At, endedAlarm, string(k[len(prefixLogAlarm):])))
	return a, true
}

// pruneAnchors drops up to n logs and alarms of long ago.
func (t *turn) pruneAnchors(n int) error {
	if t.unchanged {
		return nil
	}
	due, _ := t.due(prefixAnchorEnds, t.now.Add(-AnchorLife), n)
	for _, item := range due {
		if item.kind == endedAlarm {
			t.Delete(key(prefixLogAlarm, item.id))
			t.unmark(item.key)
			continue
		}
		l, err := find[AccessLog](t, key(prefixAccessLog, item.id), "access log", item.id)
		if err != nil {
			return err
		}
		t.forgetLog(l)
	}
	return nil
}

// AccessLog returns what was anchored of an access log, or ErrNotFound.
func (s State) AccessLog(log string) (AccessLog, error) {
	return find[AccessLog](s.r, key(prefixAccessLog, log), "anchored access log", log)
}

// LogAlarms returns what is wrong with access logs.
func (s State) LogAlarms() ([]LogAlarm, error) { return every[LogAlarm](s.r, prefixLogAlarm) }

// anchors checks that what was anchored is where its names say.
func (c *checker) anchors() {
	of := map[string]int{}
	inOrder(objects[AccessLog](c, prefixAccessLog), func(name string, l AccessLog) {
		c.need(l.Log == name && l.Size > 0 && l.Entry < c.m.AuditSize, "access log %q is kept as %q, with %d lines at entry %d", l.Log, name, l.Size, l.Entry)
		c.mark(pairKey(prefixLogOf, l.By, name))
		c.mark(dueAt(prefixAnchorEnds, l.At, endedLog, name))
		of[l.By]++
	})
	inOrder(of, func(by string, n int) { c.need(n <= MaxLogsOfService, "%d access logs of %s", n, by) })
	inOrder(objects[LogAlarm](c, prefixLogAlarm), func(at string, a LogAlarm) {
		c.need(string(pairKey("", a.By, a.Log)) == at && a.Kept.contradicts(AnchoredHead{a.By, a.Log, a.Size, a.Root, a.Sent}) == a.Why,
			"alarm %q of %s for %s", at, a.Log, a.By)
		c.mark(dueAt(prefixAnchorEnds, a.At, endedAlarm, at))
	})
}

// How long and how many.
const (
	// AnchorLife is how long an access log is remembered after it was anchored last,
	// and an alarm after it was raised. The audit log keeps both for ever.
	AnchorLife = 7 * 24 * time.Hour
	// MaxAnchors is how many heads one command anchors.
	MaxAnchors = 256
	// MaxAnchoredSettings is how many settings one command anchors.
	MaxAnchoredSettings = 16
	// MaxAnchoredRules is how many lines say what a proxy lets through without a
	// grant, and MaxAnchoredRule how long each is, in bytes.
	MaxAnchoredRules = 32
	MaxAnchoredRule  = 512
	// MaxLogsOfService is how many access logs are remembered of one service.
	MaxLogsOfService = 1024
	// MaxAlarmsOfService is how many alarms are kept of what one service anchored.
	MaxAlarmsOfService = 16

	maxAnchorPrune = 16      // logs and alarms that one command forgets
	maxLogLines    = 1 << 40 // of one access log
)
