package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/grant"
)

// ObserveSettings waives the permission check of some permissions for a while.
type ObserveSettings struct {
	Permissions []string `yaml:"permissions" doc:"what is let through, as grants say it"`
	Until       string   `yaml:"until" doc:"the last day of it, or a time"`
}

// AllowSettings is a standing rule: what an identity may do without a grant.
type AllowSettings struct {
	ID          string   `yaml:"id" doc:"the identity, exactly"`
	Under       string   `yaml:"under" doc:"or a path that it lies below"`
	Permissions []string `yaml:"permissions" doc:"what it may do, as grants say it"`
}

// maxObserve is how far ahead observe mode may end: what is open for longer is
// not being tried out.
const maxObserve = 90 * 24 * time.Hour

// rules are what a service makes of a client beyond its certificate. Observing and
// standing rules waive the permission check and nothing else; conditions only refuse.
type rules struct {
	observing []observing
	standing  []standing

	sources              []netip.Prefix
	hours                *hours
	perGrant, perSubject rate
}

// observing is what is let through until a time, and recorded as what it would have been.
type observing struct {
	whole   bool
	matcher *grant.Matcher
	until   time.Time
}

// standing is what a plain identity may do.
type standing struct {
	id      spiffeid.ID
	under   bool // id and everything below its path, without it
	matcher *grant.Matcher
	name    string // in records
}

// matches never finds a grant: those are not in the identities' trust domain.
func (s *standing) matches(id spiffeid.ID) bool {
	if !s.under {
		return id == s.id
	}
	return id.TrustDomain() == s.id.TrustDomain() && strings.HasPrefix(id.Path(), s.id.Path()+"/")
}

func (c *config) readRules(s *Settings) error {
	return errors.Join(c.readObserve(s), c.readStanding(s), c.readConditions(s))
}

func (c *config) readObserve(s *Settings) error {
	var errs []error
	switch {
	case s.Mode == "observe":
		until, err := c.readUntil(s, "until", s.Until)
		errs = append(errs, err)
		c.rules.observing = append(c.rules.observing, observing{whole: true, until: until})
	case s.Mode != "" && s.Mode != "enforce":
		errs = append(errs, s.mistake("mode", "%q is neither enforce nor observe", s.Mode))
	case s.Until != "":
		errs = append(errs, s.mistake("until", "is for mode: observe"))
	}
	for i, o := range s.Observe {
		key := "observe[" + strconv.Itoa(i) + "]"
		until, err := c.readUntil(s, key+".until", o.Until)
		m, perr := c.readPermissions(s, key+".permissions", o.Permissions)
		errs = append(errs, err, perr)
		c.rules.observing = append(c.rules.observing, observing{matcher: m, until: until})
	}
	return errors.Join(errs...)
}

func (c *config) readUntil(s *Settings, key, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, s.mistake(key, "is missing: say when observing ends, such as until: %s", c.now().UTC().AddDate(0, 0, 14).Format(time.DateOnly))
	}
	until, err := time.Parse(time.DateOnly, text)
	if err == nil {
		until = until.AddDate(0, 0, 1) // the day itself is one of them
	} else if until, err = time.Parse(time.RFC3339, text); err != nil {
		return time.Time{}, s.mistake(key, "%q is no date such as 2026-12-31 and no time such as 2026-12-31T18:00:00Z", text)
	}
	switch now := wall(c.now); {
	case !now.Before(until):
		return time.Time{}, s.mistake(key, "%s is past: take observing out, or give it another date", text)
	case until.Sub(now) > maxObserve:
		return time.Time{}, s.mistake(key, "%s is more than 90 days ahead", text)
	}
	return until, nil
}

// readPermissions makes a matcher of permissions in the words of grants. An empty
// list is a mistake: it would match nothing, and was meant for something.
func (c *config) readPermissions(s *Settings, key string, texts []string) (*grant.Matcher, error) {
	if len(texts) == 0 {
		return nil, s.mistake(key, "is empty, and so matches nothing")
	}
	scope, err := grant.ParseScope(s.Service, texts)
	if err != nil {
		return nil, s.mistake(key, "%s", err.Error())
	}
	return scope.Matcher(), nil
}

func (c *config) readStanding(s *Settings) error {
	var errs []error
	for i, a := range s.Allow {
		key := "allow[" + strconv.Itoa(i) + "]"
		text, under := a.ID, false
		if a.Under != "" {
			text, under = strings.TrimSuffix(a.Under, "/"), true
		}
		if (a.ID == "") == (a.Under == "") {
			errs = append(errs, s.mistake(key, "needs id or under, and not both"))
			continue
		}
		id, err := spiffeid.FromString(text)
		switch {
		case err != nil:
			errs = append(errs, s.mistake(key, "%q is no SPIFFE ID", text))
			continue
		case id.TrustDomain() == c.grantTD:
			// Else a revoked grant would go on by the rule that its name matches.
			errs = append(errs, s.mistake(key, "%q is of the grants' trust domain: a grant opens what it says, and nothing by a standing rule", text))
		case id.TrustDomain() != c.identityTD:
			errs = append(errs, s.mistake(key, "%q is not of %s", text, c.identityTD))
		case id.Path() == "":
			errs = append(errs, s.mistake(key, "%q is everybody: name a path", text))
		}
		m, err := c.readPermissions(s, key+".permissions", a.Permissions)
		errs = append(errs, err)
		c.rules.standing = append(c.rules.standing, standing{id: id, under: under, matcher: m, name: key})
	}
	return errors.Join(errs...)
}

func (c *config) readConditions(s *Settings) error {
	var errs []error
	l := &s.Limits
	for i, text := range l.Sources {
		p, err := netip.ParsePrefix(text)
		if err != nil || p != p.Masked() || p.Addr().Is4In6() {
			errs = append(errs, s.mistake("limits.sources["+strconv.Itoa(i)+"]", "%q is no network such as 10.0.0.0/8 or fd00::/8", text))
		}
		c.rules.sources = append(c.rules.sources, p)
	}
	var err error
	switch {
	case len(l.Hours) == 0 && l.TimeZone != "":
		errs = append(errs, s.mistake("limits.time_zone", "is for limits.hours"))
	case len(l.Hours) > 0:
		if c.rules.hours, err = readHours(l.Hours, l.TimeZone); err != nil {
			errs = append(errs, s.mistake("limits.hours", "%s", err.Error()))
		}
	}
	for _, r := range []struct {
		key, text string
		to        *rate
	}{
		{"limits.rate_per_grant", l.RatePerGrant, &c.rules.perGrant},
		{"limits.rate_per_subject", l.RatePerSubject, &c.rules.perSubject},
	} {
		if *r.to, err = readRate(r.text); err != nil {
			errs = append(errs, s.mistake(r.key, "%q is no rate such as 20/s, 600/m or 5000/h", r.text))
		}
	}
	return errors.Join(errs...)
}

// observingNow are the ends of what is observed at a time.
func (r *rules) observingNow(now time.Time) (whole bool, until []time.Time) {
	for i := range r.observing {
		if o := &r.observing[i]; now.Before(o.until) {
			whole = whole || o.whole
			until = append(until, o.until)
		}
	}
	return whole, until
}

// hours are the times of the week at which a service may be used.
type hours struct {
	zone  *time.Location
	spans []span
}

// span is from a minute to another of each of some days; one that ends before it
// begins goes on into the day after.
type span struct {
	days     [7]bool // from Sunday, as time.Weekday counts
	from, to int     // minutes of the day; to is not in it, and may be 1440
}

var errHours = errors.New("want days and times such as Mon-Fri 08:00-18:00 or Sat,Sun 10:00-24:00")

func readHours(texts []string, zone string) (*hours, error) {
	if zone == "" || zone == "Local" {
		return nil, errors.New("need limits.time_zone, such as Europe/Zurich or UTC")
	}
	loc, err := time.LoadLocation(zone)
	if err != nil {
		return nil, fmt.Errorf("no time zone %q is known on this machine", zone)
	}
	h := &hours{zone: loc}
	for _, text := range texts {
		days, times, ok := strings.Cut(text, " ")
		var s span
		if !ok || !s.readDays(days) || !s.readTimes(times) {
			return nil, fmt.Errorf("%q: %w", text, errHours)
		}
		h.spans = append(h.spans, s)
	}
	return h, nil
}

func weekday(text string) int {
	for d := range 7 {
		if time.Weekday(d).String()[:3] == text {
			return d
		}
	}
	return -1
}

func (s *span) readDays(text string) bool {
	for part := range strings.SplitSeq(text, ",") {
		first, last, ranged := strings.Cut(part, "-")
		from, to := weekday(first), weekday(first)
		if ranged {
			to = weekday(last)
		}
		if from < 0 || to < 0 {
			return false
		}
		for d := from; ; d = (d + 1) % 7 {
			s.days[d] = true
			if d == to {
				break
			}
		}
	}
	return true
}

func (s *span) readTimes(text string) bool {
	from, to, ok := strings.Cut(text, "-")
	if !ok {
		return false
	}
	s.from, s.to = minuteOf(from), minuteOf(to)
	return s.from >= 0 && s.from < 24*60 && s.to > 0 && s.from != s.to
}

// minuteOf reads HH:MM; 24:00 is the day's end.
func minuteOf(text string) int {
	if text == "24:00" {
		return 24 * 60
	}
	at, err := time.Parse("15:04", text)
	if err != nil || len(text) != 5 {
		return -1
	}
	return at.Hour()*60 + at.Minute()
}

// open says whether a time lies in one of the spans.
func (h *hours) open(at time.Time) bool {
	at = at.In(h.zone)
	minute, day := at.Hour()*60+at.Minute(), int(at.Weekday())
	for i := range h.spans {
		s := &h.spans[i]
		switch {
		case s.from < s.to:
			if s.days[day] && minute >= s.from && minute < s.to {
				return true
			}
		case s.days[day] && minute >= s.from, s.days[(day+6)%7] && minute < s.to:
			return true
		}
	}
	return false
}
