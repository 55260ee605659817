package control

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
)

const (
	// anchorEvery is how often the cluster writes heads of access logs down, at most:
	// what comes between is one entry, however many proxies there are.
	anchorEvery = time.Second
	// maxAnchoring is how many heads wait for that at a node.
	maxAnchoring = 4 * approval.MaxAnchors
	// anchorsSince is the version of commands that knows them.
	anchorsSince = 3
)

// anchors puts together what proxies have anchored until it is committed.
//
//	proxies ─► waiting ─[once a second]─► one command, one audit entry ─► each is answered
type anchors struct {
	news chan struct{} // holds a token when something waits

	mu      sync.Mutex
	waiting []*anchoring // guarded by mu
}

// anchoring is one call that waits for its head to be committed.
type anchoring struct {
	ctx      context.Context
	head     *approval.AnchoredHead // nil: settings alone
	settings *approval.ProxySettings
	done     chan anchorOutcome // has room for one
}

type anchorOutcome struct {
	log   approval.AccessLog // as it stands; none for settings alone
	entry uint64
	err   error
}

func newAnchors() *anchors { return &anchors{news: make(chan struct{}, 1)} }

// AnchorAccess implements api.GrantBackend. The identity that is anchored for is the
// caller's own, whatever it sends.
func (b backend) AnchorAccess(ctx context.Context, call api.Call, in api.AnchorInput) (out api.Anchored, err error) {
	if b.version.Load() < anchorsSince {
		return out, api.NewProblem(api.CodeUnavailable, "the cluster anchors no access logs while one of its nodes runs an older release", "upgrade the others")
	}
	a, err := b.anchoringOf(ctx, call.Caller.ID.String(), in)
	if err != nil {
		return out, b.counted(ctx, err)
	}
	if !b.anchors.add(a) {
		return out, b.counted(ctx, overloaded())
	}
	select {
	case o := <-a.done:
		switch {
		case o.err != nil:
			return out, b.counted(ctx, o.err)
		case a.head == nil:
			return api.Anchored{Log: in.Log, Entry: o.entry}, nil
		case !o.took(*a.head):
			return out, b.counted(ctx, notTheSame(*a.head, o.log))
		}
		return api.Anchored{Log: o.log.Log, Size: o.log.Size, Root: o.log.Root, Entry: o.log.Entry}, nil
	case <-ctx.Done():
		return out, ambiguous()
	case <-b.stopping.Done():
		return out, stopped()
	}
}

// took reports whether the log stands as a head says, whoever sent that first.
func (o anchorOutcome) took(h approval.AnchoredHead) bool {
	return o.log.By == h.By && o.log.Size == h.Size && o.log.Root == h.Root
}

// notTheSame says why a head was not taken; what of another's log is anchored is not
// the caller's to know.
func notTheSame(h approval.AnchoredHead, l approval.AccessLog) error {
	detail := fmt.Sprintf("access log %s is another service's", h.Log)
	if l.By == h.By {
		detail = fmt.Sprintf("access log %s has %d lines with root %s, and at audit entry %d it had %d with root %s", h.Log, h.Size, h.Root, l.Entry, l.Size, l.Root)
	}
	return api.NewProblem(api.CodeConflict, detail, "begin a new log; somebody should look into what became of this one")
}

func (b backend) anchoringOf(ctx context.Context, by string, in api.AnchorInput) (*anchoring, error) {
	a := &anchoring{ctx: ctx, done: make(chan anchorOutcome, 1)}
	domain, sent := b.trustDomain.Name(), approval.Millis(in.SentMS)
	if in.Size > 0 || in.Settings == nil {
		a.head = &approval.AnchoredHead{By: by, Log: in.Log, Size: in.Size, Root: in.Root, Sent: sent}
		if err := a.head.Check(domain); err != nil {
			return nil, err
		}
	}
	if s := in.Settings; s != nil {
		a.settings = &approval.ProxySettings{
			By: by, Log: in.Log, SHA256: s.SHA256, Mode: s.Mode, Until: approval.Millis(s.UntilMS), Open: list(s.Open), Sent: sent,
		}
		if err := a.settings.Check(domain); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// add has a head wait; false when too many do.
func (a *anchors) add(one *anchoring) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.waiting) >= maxAnchoring {
		return false
	}
	a.waiting = append(a.waiting, one)
	a.tell()
	return true
}

func (a *anchors) tell() {
	select {
	case a.news <- struct{}{}:
	default: // one is there
	}
}

// take gives as much of what waits as goes into one command. Who has left meanwhile
// comes again, perhaps with a longer log, and is passed over.
func (a *anchors) take() (batch []*anchoring, body approval.AnchorAccess) {
	a.mu.Lock()
	defer a.mu.Unlock()
	body = approval.AnchorAccess{Heads: []approval.AnchoredHead{}, Settings: []approval.ProxySettings{}}
	for len(a.waiting) > 0 {
		next := a.waiting[0]
		if len(batch) == approval.MaxAnchors || next.settings != nil && len(body.Settings) == approval.MaxAnchoredSettings {
			a.tell()
			break
		}
		a.waiting[0] = nil
		a.waiting = a.waiting[1:]
		if next.ctx.Err() != nil {
			continue
		}
		batch = append(batch, next)
		if next.head != nil {
			body.Heads = append(body.Heads, *next.head)
		}
		if next.settings != nil {
			body.Settings = append(body.Settings, *next.settings)
		}
	}
	return batch, body
}

// commitAnchors commits what waits, once a second, until ctx ends.
func (n *node) commitAnchors(ctx context.Context) {
	for {
		select {
		case <-n.anchors.news:
		case <-ctx.Done():
			return
		}
		batch, body := n.anchors.take()
		if len(batch) == 0 {
			continue
		}
		n.answerAnchors(batch, n.anchored(ctx, body))
		if pause(ctx, anchorEvery) != nil {
			return
		}
	}
}

// anchoredResult is what a command of anchors came to.
type anchoredResult struct {
	approval.Anchored

	err error
}

func (n *node) anchored(ctx context.Context, body approval.AnchorAccess) anchoredResult {
	if err := n.checkEpoch(); err != nil {
		return anchoredResult{err: err}
	}
	cmd, err := n.command(ctx, body)
	if err != nil {
		return anchoredResult{err: err}
	}
	res, err := n.commit(ctx, cmd)
	if err != nil {
		return anchoredResult{err: err}
	}
	done, ok := res.Object.(approval.Anchored)
	if !ok || len(done.Logs) != len(body.Heads) {
		return anchoredResult{err: fmt.Errorf("result is a %T, not %d anchors", res.Object, len(body.Heads))}
	}
	for _, a := range done.Alarms {
		n.log.LogAttrs(ctx, slog.LevelError, "an access log is not what was anchored of it", slog.String("log", alarmWords(a)))
	}
	return anchoredResult{Anchored: done}
}

func (n *node) answerAnchors(batch []*anchoring, r anchoredResult) {
	at := 0
	for _, one := range batch {
		o := anchorOutcome{entry: r.Entry, err: r.err}
		if one.head != nil && r.err == nil {
			o.log = r.Logs[at]
			at++
		}
		one.done <- o
	}
}

// maxAlarmsTold is how many of them one finding tells.
const maxAlarmsTold = 4

// checkAccessLogs warns of access logs that cannot be what they were.
func (n *node) checkAccessLogs() Finding {
	const what = "access logs"
	var all []approval.LogAlarm
	err := n.local(func(s approval.State) (err error) {
		all, err = s.LogAlarms()
		return err
	})
	if err != nil || len(all) == 0 {
		return Finding{what, statusOK, ""} // there is no state yet: other findings say so
	}
	words := make([]string, 0, maxAlarmsTold)
	for _, a := range all[:min(len(all), maxAlarmsTold)] {
		words = append(words, alarmWords(a))
	}
	return Finding{what, statusWarn, clip(fmt.Sprintf("%d are not what was anchored of them; compare copies with hallpass audit access: %s", len(all), strings.Join(words, "; ")), 2048)}
}

func alarmWords(a approval.LogAlarm) string {
	if a.Why == approval.LogOfAnother {
		return fmt.Sprintf("%s anchored log %s, which is that of %s (audit entry %d)", a.By, a.Log, a.Kept.By, a.Entry)
	}
	return fmt.Sprintf("log %s of %s %s from %d lines at audit entry %d to %d (audit entry %d)", a.Log, a.By, a.Why, a.Kept.Size, a.Kept.Entry, a.Size, a.Entry)
}
