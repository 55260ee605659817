package proxy

import (
	"bufio"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// inDays is a date some days from now.
func inDays(n int) string { return time.Now().UTC().AddDate(0, 0, n).Format(time.DateOnly) }

// TestObserveWaivesThePermissionAlone: in observe mode what no grant allows goes
// through, and the record says what would have refused it. Who could not connect
// still cannot; malformed requests, an ended certificate and conditions refuse as
// ever; and when the date has come, everything is enforced again.
func TestObserveWaivesThePermissionAlone(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		e := start(t, options{upstream: upstreamServer(t, echoHandler), edit: func(s *Settings) {
			s.Mode, s.Until = "observe", time.Now().Add(20*time.Minute).UTC().Format(time.RFC3339)
		}})
		if !strings.Contains(e.logs.String(), "OBSERVE MODE") {
			e.eventually("a loud line", func() bool { return strings.Contains(e.logs.String(), "OBSERVE MODE") })
		}
		holder, person := e.client(e.pki.grant(time.Hour, "GET /mine"), h2), e.client(e.pki.identity(alice), h2)
		for _, tt := range []struct {
			c                           *http.Client
			path, wouldDeny, permission string
		}{
			{holder, "/mine", "", "GET /mine"},
			{holder, "/yours", reasonOutsideScope, ""},
			{person, "/any", reasonNoGrant, ""},
		} {
			if a := e.must(tt.c, "GET", tt.path); a.status != 200 {
				t.Errorf("%s: status %d", tt.path, a.status)
			}
			r := e.record(tt.path, func(r logLine) bool { return r.Path == tt.path })
			if r.Decision != decisionAllow || r.WouldDeny != tt.wouldDeny || r.Permission != tt.permission || r.Reason != "" {
				t.Errorf("%s: %+v", tt.path, r)
			}
		}
		if a, err := e.do(holder, "GET", "/x", "X-Http-Method-Override", "DELETE"); err == nil && a.status != http.StatusBadRequest {
			t.Errorf("a malformed request: %d", a.status)
		}
		for name, cert := range map[string]func() error{
			"an ended grant": func() error { return readError(e.dialOnly(t, e.pki.grant(-time.Minute, "GET /**"))) },
			"a stranger":     func() error { return readError(e.dialOnly(t, newPKI(t).grant(time.Hour, "GET /**"))) },
			"another's service": func() error {
				return readError(e.dialOnly(t, e.pki.mint(leafSpec{uris: []string{grantURI(t, "ledger", newGrantID(t), "GET /**")}, issuer: e.pki.grantIssuer})))
			},
		} {
			if err := cert(); err == nil || err == io.EOF { //nolint:errorlint // a clean end is no refusal
				t.Errorf("%s: %v", name, err)
			}
		}
		e.clock.moveOn(30 * time.Minute)
		if a := e.must(holder, "GET", "/yours"); a.status != http.StatusForbidden {
			t.Errorf("after the date: %d", a.status)
		}
		if a := e.must(holder, "GET", "/mine"); a.status != 200 {
			t.Errorf("after the date, within the grant: %d", a.status)
		}
	})
}

// TestObserveSomePermissions and nothing beyond them.
func TestObserveSomePermissions(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler), edit: func(s *Settings) {
		s.Observe = []ObserveSettings{{Permissions: []string{"GET /reports/**", "POST /pings"}, Until: inDays(1)}}
	}})
	c := e.client(e.pki.grant(time.Hour, "GET /mine"), true)
	for path, want := range map[string]int{"GET /reports/7": 200, "POST /pings": 200, "POST /reports/7": 403, "GET /other": 403, "GET /mine": 200} {
		method, target, _ := strings.Cut(path, " ")
		if a := e.must(c, method, target); a.status != want {
			t.Errorf("%s: %d", path, a.status)
		}
	}
}

// TestStandingRules: an identity that a rule names does what it says, and nothing
// else; nobody beside it does; and a grant gets nothing by a rule.
func TestStandingRules(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler), edit: func(s *Settings) {
		s.Allow = []AllowSettings{
			{ID: "spiffe://acme.test/service/prometheus", Permissions: []string{"GET /metrics"}},
			{Under: "spiffe://acme.test/batch", Permissions: []string{"POST /jobs/*"}},
			{ID: "spiffe://acme.test/user/alice", Permissions: []string{"GET /metrics"}},
		}
	}})
	for _, tt := range []struct {
		id, method, path string
		status           int
		rule             string
	}{
		{"service/prometheus", "GET", "/metrics", 200, "allow[0]"},
		{"service/prometheus", "GET", "/other", 403, ""},
		{"service/prometheus", "POST", "/metrics", 403, ""},
		{"service/prometheus/x", "GET", "/metrics", 403, ""},
		{"service/prometheu", "GET", "/metrics", 403, ""},
		{"batch/nightly", "POST", "/jobs/1", 200, "allow[1]"},
		{"batch/a/b", "POST", "/jobs/2", 200, "allow[1]"},
		{"batch", "POST", "/jobs/3", 403, ""},
		{"batches/nightly", "POST", "/jobs/4", 403, ""},
	} {
		if a := e.must(e.client(e.pki.identity("spiffe://acme.test/"+tt.id), true), tt.method, tt.path); a.status != tt.status {
			t.Errorf("%+v: %d", tt, a.status)
		}
		r := e.record(tt.id, func(r logLine) bool {
			return strings.HasSuffix(r.Subject, "/"+tt.id) && r.Path == tt.path && r.Method == tt.method
		})
		if r.Rule != tt.rule || r.WouldDeny != "" || (r.Permission != "") != (tt.rule != "") {
			t.Errorf("%+v: %+v", tt, r)
		}
	}
	// Alice's rule is hers as herself: with a grant she does what the grant says.
	if a := e.must(e.client(e.pki.grant(time.Hour, "GET /mine"), true), "GET", "/metrics"); a.status != http.StatusForbidden {
		t.Errorf("a grant by a standing rule: %d", a.status)
	}
}

// TestConditionsOnlyNarrow: where, when and how often. They bind who has a grant,
// who has a rule, and who is only observed.
func TestConditionsOnlyNarrow(t *testing.T) {
	ok := func(s *Settings) {
		s.Mode, s.Until = "observe", inDays(3)
		s.Allow = []AllowSettings{{Under: "spiffe://acme.test/user", Permissions: []string{"GET /**"}}}
	}
	for name, tt := range map[string]struct {
		edit   func(*Settings)
		reason string
	}{
		"from elsewhere":    {func(s *Settings) { s.Limits.Sources = []string{"10.0.0.0/8", "::1/128"} }, reasonSource},
		"from here":         {func(s *Settings) { s.Limits.Sources = []string{"10.0.0.0/8", "127.0.0.0/8"} }, ""},
		"at another time":   {func(s *Settings) { s.Limits.Hours, s.Limits.TimeZone = []string{notToday()}, "UTC" }, reasonHours},
		"at any other time": {func(s *Settings) { s.Limits.Hours, s.Limits.TimeZone = []string{"Mon-Sun 00:00-24:00"}, "UTC" }, ""},
	} {
		e := start(t, options{upstream: upstreamServer(t, echoHandler), edit: func(s *Settings) { ok(s); tt.edit(s) }})
		for _, c := range []*http.Client{e.client(e.pki.grant(time.Hour, "GET /**"), true), e.client(e.pki.identity(alice), false)} {
			want := 200
			if tt.reason != "" {
				want = http.StatusForbidden
			}
			if a := e.must(c, "GET", "/a"); a.status != want || want != 200 && !strings.Contains(a.body, tt.reason) {
				t.Errorf("%s: %d %s", name, a.status, a.body)
			}
		}
		r := e.record(name, func(r logLine) bool { return r.Path == "/a" })
		if r.Reason != tt.reason {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// notToday is a span that neither today nor tomorrow has.
func notToday() string {
	return time.Now().UTC().AddDate(0, 0, 3).Weekday().String()[:3] + " 00:00-24:00"
}

// TestRates: so many requests and no more, each grant and each subject by itself,
// and again after a while; who was refused for its scope pays nothing.
func TestRates(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler), edit: func(s *Settings) {
		s.Limits.RatePerGrant, s.Limits.RatePerSubject = "2/h", "3/h"
	}})
	first, second := e.client(e.pki.grant(9*time.Hour, "GET /**"), true), e.client(e.pki.grant(9*time.Hour, "GET /**"), true)
	for i, tt := range []struct {
		c      *http.Client
		method string
		status int
	}{
		{first, "POST", 403},
		{first, "POST", 403},
		{first, "GET", 200},
		{first, "GET", 200},
		{first, "GET", 429},  // its third, and the subject's
		{second, "GET", 429}, // the subject's fourth
	} {
		a := e.must(tt.c, tt.method, "/a")
		if a.status != tt.status || tt.status == 429 && (a.header.Get("Retry-After") == "" || !strings.Contains(a.body, reasonRate)) {
			t.Errorf("%d: status %d, %v %s", i, a.status, a.header, a.body)
		}
	}
	e.clock.moveOn(time.Hour)
	if a := e.must(second, "GET", "/a"); a.status != 200 {
		t.Errorf("an hour later: %d", a.status)
	}
}

// TestMetersAreBounded however many holders come.
func TestMetersAreBounded(t *testing.T) {
	var m meters
	now := time.Now()
	r := rate{many: 1, in: time.Hour}
	if _, ok := m.take("busy", r, now); !ok {
		t.Fatal("refused at once")
	}
	for i := range maxMeters + 10 {
		if i%1000 == 0 {
			if wait, ok := m.take("busy", r, now); ok || wait <= 0 || wait > time.Hour {
				t.Fatalf("after %d: %v, %v", i, wait, ok)
			}
		}
		m.take(strings.Repeat("x", 1+i%7)+inDays(i%30)+time.Duration(i).String(), r, now)
	}
	if len(m.by) > maxMeters || m.used.Len() != len(m.by) {
		t.Errorf("%d and %d", len(m.by), m.used.Len())
	}
	if _, ok := m.take("busy", r, now.Add(-time.Hour)); ok {
		t.Error("a clock that goes back fills")
	}
}

// TestObserveTCP and standing rules, on a service of bytes.
func TestObserveTCP(t *testing.T) {
	for name, edit := range map[string]func(*Settings){
		"observed": func(s *Settings) { s.Mode, s.Until = "observe", inDays(1) },
		"allowed":  func(s *Settings) { s.Allow = []AllowSettings{{ID: alice, Permissions: []string{"tcp"}}} },
		"neither":  func(s *Settings) { s.Allow = []AllowSettings{{ID: alice + "/x", Permissions: []string{"tcp"}}} },
	} {
		e := start(t, options{upstream: "tcp://" + tcpEcho(t), edit: func(s *Settings) { s.Protocol, s.Hosts = "tcp", nil; edit(s) }})
		for what, cert := range map[string]func() string{
			"identity":      func() string { return echoed(e, e.dial(e.pki.identity(alice))) },
			"outside scope": func() string { return echoed(e, e.dial(e.pki.grant(time.Hour, "GET /**"))) },
			"grant":         func() string { return echoed(e, e.dial(e.pki.grant(time.Hour, "tcp"))) },
		} {
			want := name == "observed" || what == "grant" || name == "allowed" && what == "identity"
			if got := cert(); (got == "x\n") != want {
				t.Errorf("%s, %s: %q", name, what, got)
			}
		}
	}
}

func echoed(e *env, c io.ReadWriter) string {
	_, _ = io.WriteString(c, "x\n") // a refusal shows at the reading
	line, _ := bufio.NewReader(c).ReadString('\n')
	return line
}

// TestHours, over midnight, and over the change of summer time.
func TestHours(t *testing.T) {
	h, err := readHours([]string{"Mon-Fri 08:00-18:00", "Fri,Sat 22:00-02:00"}, "Europe/Zurich")
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{
		"2026-11-30T07:00:00Z": true, "2026-11-30T06:59:59Z": false, "2026-11-30T16:59:59Z": true, "2026-11-30T17:00:00Z": false, // a Monday
		"2026-07-06T06:00:00Z": true, "2026-07-06T05:59:59Z": false, // a Monday in summer
		"2026-12-04T21:30:00Z": true, "2026-12-05T00:59:59Z": true, "2026-12-05T01:00:00Z": false, // Friday night
		"2026-12-06T00:30:00Z": true, "2026-12-06T21:30:00Z": false, "2026-12-07T00:30:00Z": false, // Saturday night, and Sunday's
	} {
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			t.Fatal(err)
		}
		if h.open(at) != want {
			t.Errorf("%s: %v", text, !want)
		}
	}
	for _, text := range []string{"", "Mon", "Mon 08:00", "Mon 8:00-9:00", "mon 08:00-09:00", "Mon-Fri 08:00-08:00", "Mon 24:00-08:00", "Mon 08:00-25:00", "Mon,, 08:00-09:00", "Mon  08:00-09:00", "Monday 08:00-09:00"} {
		if _, err := readHours([]string{text}, "UTC"); err == nil {
			t.Errorf("%q was read", text)
		}
	}
	for _, zone := range []string{"", "Local", "Nowhere/At_All", "../etc/passwd"} {
		if _, err := readHours([]string{"Mon 08:00-09:00"}, zone); err == nil {
			t.Errorf("zone %q", zone)
		}
	}
}

// TestRulesThatCannotBeMeant are told with file, line and key.
func TestRulesThatCannotBeMeant(t *testing.T) {
	base := settingsText(t)
	for text, want := range map[string]string{
		"mode: observe\n":                                             "until: is missing",
		"mode: monitor\n":                                             "neither enforce nor observe",
		"until: 2030-01-01\n":                                         "is for mode: observe",
		"mode: observe\nuntil: 2020-01-01\n":                          "is past",
		"mode: observe\nuntil: " + inDays(91) + "\n":                  "more than 90 days",
		"mode: observe\nuntil: soon\n":                                "is no date",
		"observe: [{until: " + inDays(1) + "}]\n":                     "observe[0].permissions: is empty",
		"observe: [{permissions: ['GET /a']}]\n":                      "observe[0].until: is missing",
		"observe: [{permissions: [GET], until: " + inDays(1) + "}]\n": "observe[0].permissions",
		"allow: [{permissions: ['GET /a']}]\n":                        "needs id or under",
		"allow: [{id: 'spiffe://acme.test/a', under: 'spiffe://acme.test/b', permissions: ['tcp']}]\n": "and not both",
		"allow: [{id: 'spiffe://grants.acme.test/v1/x', permissions: ['tcp']}]\n":                      "grants' trust domain",
		"allow: [{under: 'spiffe://grants.acme.test/v1', permissions: ['tcp']}]\n":                     "grants' trust domain",
		"allow: [{id: 'spiffe://beta.test/a', permissions: ['tcp']}]\n":                                "is not of acme.test",
		"allow: [{under: 'spiffe://acme.test/', permissions: ['tcp']}]\n":                              "is everybody",
		"allow: [{id: 'spiffe://acme.test/a'}]\n":                                                      "is empty",
		"limits: {sources: [10.0.0.1/8]}\n":                                                            "limits.sources[0]",
		"limits: {sources: ['10.0.0.0']}\n":                                                            "limits.sources[0]",
		"limits: {hours: ['Mon 08:00-09:00']}\n":                                                       "time_zone",
		"limits: {time_zone: UTC}\n":                                                                   "is for limits.hours",
		"limits: {rate_per_grant: 0/s}\n":                                                              "limits.rate_per_grant",
		"limits: {rate_per_subject: 10}\n":                                                             "limits.rate_per_subject",
	} {
		path := filepath.Join(t.TempDir(), "proxy.yaml")
		writeFile(t, path, []byte(base+text))
		s, err := LoadSettings(path)
		if err == nil {
			err = s.Check()
		}
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "proxy.yaml:") {
			t.Errorf("%q: %v", text, err)
		}
	}
	for _, text := range []string{
		"mode: observe\nuntil: " + inDays(89) + "\n", "mode: observe\nuntil: " + time.Now().Add(time.Hour).Format(time.RFC3339) + "\n",
		"mode: enforce\n", "limits: {sources: [10.0.0.0/8, '::1/128'], hours: ['Mon-Fri 08:00-18:00'], time_zone: Europe/Zurich, rate_per_grant: 20/s}\n",
	} {
		path := filepath.Join(t.TempDir(), "proxy.yaml")
		writeFile(t, path, []byte(base+text))
		s, err := LoadSettings(path)
		if err == nil {
			err = s.Check()
		}
		if err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func settingsText(t *testing.T) string {
	t.Helper()
	return `service: payments
listen: 127.0.0.1:0
hosts: [localhost]
upstream: http://127.0.0.1:1
trust_domain: acme.test
certificate: cert.pem
key: key.pem
identity_bundle: identity-bundle.pem
grants_bundle: grants-bundle.pem
access_log: {path: access.jsonl}
`
}
