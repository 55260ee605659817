package notify

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/grant"
)

// Channel sends deliveries to one receiver.
type Channel interface {
	// Send MUST return once the receiver has the delivery, or does not; it MUST send the
	// same id for the same delivery. An error that is no *Failure is tried again.
	Send(ctx context.Context, d Delivery) error
}

// Kind says what a target is.
type Kind string

// The kinds.
const (
	KindWebhook   Kind = "webhook"
	KindMail      Kind = "mail"
	KindSlack     Kind = "slack"
	KindTeams     Kind = "teams"
	KindPagerDuty Kind = "pagerduty"
)

// Kinds are all of them.
func Kinds() []Kind { return []Kind{KindWebhook, KindMail, KindSlack, KindTeams, KindPagerDuty} }

// TargetConfig names a receiver. Which fields a kind takes is said at each.
type TargetConfig struct {
	Name    string         // a DNS label; deliveries are known by it, so it stays
	Kind    Kind           // what it is
	Events  []string       // kinds of audit entries, "request.*" or "*"; nil: DefaultEvents
	URL     string         // webhook; slack and pagerduty, if it is another than theirs
	Keys    []SigningKey   // webhook: each signs
	Mail    Mail           // mail
	Secret  string         // slack: a bot's token; teams: the URL; pagerduty: the integration key
	Channel string         // slack: its id
	Roots   *x509.CertPool // that the receiver's certificate is verified by; nil: the system's

	// OnlyNamed has the target told of requests alone whose rules in the policy name it.
	OnlyNamed bool

	Timeout time.Duration // of one try; zero: 10 s
	GiveUp  time.Duration // how long a delivery is tried; zero: 24 h, at most MaxGiveUp
}

// What a target may be given.
const (
	DefaultTimeout = 10 * time.Second
	MaxTimeout     = time.Minute
	DefaultGiveUp  = 24 * time.Hour
	MinGiveUp      = time.Second
	MaxGiveUp      = 7 * 24 * time.Hour
	maxKeys        = 4
)

// DefaultEvents are what a target is told if its configuration does not say: what
// people wait for, and what takes access away.
func DefaultEvents() []string {
	return []string{"request.*", "review.*", "grant.revoke", "grant.return", "subject.block", "change.*", "group.stand_in", "group.stand_in.end", "tick"}
}

// FieldError says which field of a target is wrong: as the configuration file spells it.
type FieldError struct {
	Field string
	Text  string
}

// Error implements error.
func (e *FieldError) Error() string { return e.Field + ": " + e.Text }

// Target is a TargetConfig that was checked, with its channel.
type Target struct {
	name    string
	kind    Kind
	host    string // what is said of where it is
	events  []string
	named   bool // it is told of requests alone whose rules name it
	timeout time.Duration
	giveUp  time.Duration
	channel Channel
}

// Name is the target's.
func (t *Target) Name() string { return t.name }

// Kind is what the target is.
func (t *Target) Kind() Kind { return t.kind }

// Host is where the target is, as far as may be said.
func (t *Target) Host() string { return t.host }

// Events are the patterns of what the target is told.
func (t *Target) Events() []string { return slices.Clone(t.events) }

// OnlyNamed reports whether the target is told of requests alone whose rules name it.
func (t *Target) OnlyNamed() bool { return t.named }

// wants reports whether the target is told of entries of this kind.
func (t *Target) wants(e Entry) bool {
	return e.Kind.Notifies() && !e.empty() && slices.ContainsFunc(t.events, func(p string) bool { return matches(p, e.Kind) })
}

// NewTarget checks a configuration. Errors are *FieldError.
func NewTarget(c TargetConfig, now func() time.Time) (*Target, error) {
	t := &Target{name: c.Name, kind: c.Kind, events: c.Events, named: c.OnlyNamed, timeout: c.Timeout, giveUp: c.GiveUp}
	if t.timeout == 0 {
		t.timeout = DefaultTimeout
	}
	if t.giveUp == 0 {
		t.giveUp = DefaultGiveUp
	}
	if len(t.events) == 0 {
		t.events = DefaultEvents()
	}
	if err := t.check(); err != nil {
		return nil, err
	}
	var err error
	switch c.Kind {
	case KindWebhook:
		err = t.webhook(c, now)
	case KindMail:
		err = t.mail(c)
	case KindSlack:
		err = t.slack(c, now)
	case KindTeams:
		err = t.teams(c, now)
	case KindPagerDuty:
		err = t.pager(c, now)
	default:
		err = &FieldError{"kind", fmt.Sprintf("%q: want one of %s", c.Kind, kindList())}
	}
	if err != nil {
		return nil, err
	}
	return t, nil
}

func kindList() string {
	words := make([]string, 0, len(Kinds()))
	for _, k := range Kinds() {
		words = append(words, string(k))
	}
	return strings.Join(words, ", ")
}

func (t *Target) check() error {
	if grant.ValidService(t.name) != nil {
		return &FieldError{"name", fmt.Sprintf("%q: want lower-case letters, digits and hyphens, at most 63", t.name)}
	}
	if t.timeout < time.Millisecond || t.timeout > MaxTimeout {
		return &FieldError{"timeout", fmt.Sprintf("%s: want up to %s", t.timeout, MaxTimeout)}
	}
	if t.giveUp < MinGiveUp || t.giveUp > MaxGiveUp {
		return &FieldError{"give_up_after", fmt.Sprintf("%s: want %s to %s", t.giveUp, MinGiveUp, MaxGiveUp)}
	}
	for _, p := range t.events {
		if err := checkPattern(p); err != nil {
			return &FieldError{"events", err.Error()}
		}
	}
	return nil
}

// checkPattern refuses a pattern that no entry would ever match: whoever wrote it would
// wait for messages that do not come.
func checkPattern(p string) error {
	for _, k := range approval.Kinds() {
		if k.Notifies() && matches(p, k) {
			return nil
		}
	}
	var near []string
	for _, k := range approval.Kinds() {
		if k.Notifies() && strings.HasPrefix(string(k), strings.SplitN(p, ".", 2)[0]+".") {
			near = append(near, string(k))
		}
	}
	if len(near) > 0 {
		return fmt.Errorf("%q is no kind of audit entry that is told; there are %s", p, strings.Join(near, ", "))
	}
	return fmt.Errorf(`%q is no kind of audit entry that is told: want a kind such as request.create, "request.*" or "*"`, p)
}

func (t *Target) webhook(c TargetConfig, now func() time.Time) error {
	u, err := checkURL(c.URL)
	if err != nil {
		return &FieldError{"url", err.Error()}
	}
	if len(c.Keys) == 0 || len(c.Keys) > maxKeys {
		return &FieldError{"secret_files", fmt.Sprintf("%d keys: want 1 to %d: by them the receiver knows who sends", len(c.Keys), maxKeys)}
	}
	t.host = u.Scheme + "://" + u.Host
	t.channel = &webhook{poster: newPoster(c.Roots, now), url: c.URL, keys: c.Keys, now: now}
	return nil
}

// errTwice is returned for two targets of one name.
var errTwice = errors.New("two targets of one name")

// checkAll refuses targets that cannot be together.
func checkAll(targets []*Target) error {
	if n := len(targets); n > approval.MaxTargets {
		return fmt.Errorf("notify: %d targets, at most %d", n, approval.MaxTargets)
	}
	seen := map[string]bool{}
	for _, t := range targets {
		if seen[t.name] {
			return fmt.Errorf("notify: %w: %s", errTwice, t.name)
		}
		seen[t.name] = true
	}
	return nil
}
