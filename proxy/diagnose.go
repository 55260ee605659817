package proxy

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hallpass/hallpass/grant"
)

// ErrQuestion is returned when what Diagnose is asked cannot be understood.
var ErrQuestion = errors.New("not a question for the doctor")

// Question is whether a certificate would be admitted, and for what.
type Question struct {
	Chain   []*x509.Certificate // leaf first, as a client presents it
	Service string              // "": the only one there is
	Request string              // "GET /x", "grpc pkg.Service/Method" or "tcp"; "": the handshake alone
	Source  string              // address that the client comes from; "": any, conditions on it are not looked at
}

// The outcomes of a step.
const (
	StepPassed     = "passed"
	StepRefused    = "refused"
	StepNotReached = "not reached"
	StepNoted      = "noted" // it decides nothing here, and may do so in a running proxy
)

// Step is one thing that was looked at.
type Step struct {
	Name    string `json:"step"`
	Outcome string `json:"outcome"`
	Detail  string `json:"detail,omitempty"`
}

// Diagnosis is what a proxy with this configuration would say, and why.
type Diagnosis struct {
	Service  string `json:"service"`
	Admitted bool   `json:"admitted"`
	Reason   string `json:"reason,omitempty"` // as its access record would have it
	Subject  string `json:"subject,omitempty"`
	Grant    string `json:"grant,omitempty"`
	Steps    []Step `json:"steps"`
}

// handshakeSteps are those of examine in its order, and what each refuses with.
func handshakeSteps() []struct {
	name    string
	reasons []string
} {
	return []struct {
		name    string
		reasons []string
	}{
		{"name", []string{reasonNoCertificate, reasonNames, reasonTooLong}},
		{"trust domain", []string{reasonTrustDomain}},
		{"time", []string{reasonNotYetValid, reasonExpired}},
		{"chain", []string{reasonUntrusted}},
		{"issuer in use", []string{reasonIssuerDenied}},
		{"key usage", []string{reasonKeyUsage}},
		{"scope", []string{reasonScope}},
		{"service", []string{reasonWrongService}},
		{"emergency", []string{reasonEmergency, reasonEmergencyLimits}},
	}
}

// Diagnose answers with the code that decides in a running proxy, and asks
// nobody. It reads what the proxy reads, and changes none of it. What only a
// running proxy knows, as how much of a rate is used up, is noted.
func Diagnose(c Config, q Question) (Diagnosis, error) {
	c.Logger = nil
	cfgs, err := newConfigs(c)
	if err != nil {
		return Diagnosis{}, err
	}
	i := slices.IndexFunc(cfgs, func(cfg *config) bool { return cfg.service == q.Service })
	if q.Service == "" && len(cfgs) == 1 {
		i = 0
	}
	if i < 0 {
		names := make([]string, len(cfgs))
		for j, cfg := range cfgs {
			names[j] = cfg.service
		}
		return Diagnosis{}, fmt.Errorf("%w: this configuration has the services %s: say which", ErrQuestion, strings.Join(names, ", "))
	}
	cfg := cfgs[i]
	keeper, err := newKeeper(cfg)
	if err != nil {
		return Diagnosis{}, fmt.Errorf("the proxy would not start: %w", err)
	}
	rev, err := openRevocations(cfg)
	if err != nil {
		return Diagnosis{}, fmt.Errorf("the proxy would not start: %w", err)
	}
	d := &doctor{
		p:   &Proxy{cfg: cfg, core: &core{keeper: keeper, rev: rev, log: cfg.log}},
		q:   q,
		out: Diagnosis{Service: cfg.service, Admitted: true, Steps: []Step{}},
	}
	err = d.examine()
	return d.out, err
}

// doctor is one diagnosis under way.
type doctor struct {
	p   *Proxy
	q   Question
	out Diagnosis
	adm *admission
}

func (d *doctor) step(name, outcome, format string, args ...any) {
	if !d.out.Admitted && outcome != StepRefused {
		outcome, format, args = StepNotReached, "", nil
	}
	d.out.Steps = append(d.out.Steps, Step{name, outcome, fmt.Sprintf(format, args...)})
}

func (d *doctor) refused(name, reason, format string, args ...any) {
	if !d.out.Admitted {
		d.step(name, StepNotReached, "")
		return
	}
	d.out.Admitted, d.out.Reason = false, reason
	d.step(name, StepRefused, format, args...)
}

func (d *doctor) examine() error {
	cfg, m, now := d.p.cfg, d.p.keeper.cur.Load(), wall(d.p.cfg.now)
	adm, err := examine(d.q.Chain, m, cfg, now)
	d.adm = adm
	var why *refusal
	if err != nil && !errors.As(err, &why) {
		return err
	}
	if adm != nil {
		d.out.Subject, d.out.Grant = adm.subject, adm.grantID
	}
	for _, s := range handshakeSteps() {
		if why != nil && slices.Contains(s.reasons, why.reason) {
			d.refused(s.name, why.reason, "%s", why.err)
			continue
		}
		d.step(s.name, StepPassed, "%s", d.passed(s.name))
	}
	if why != nil && d.out.Admitted { // a reason that no step knows must not look like an admission
		d.refused("certificate", why.reason, "%s", why.err)
	}
	d.revocations(now)
	return d.request(now)
}

// passed says what was found at a step that was passed.
func (d *doctor) passed(step string) string {
	if !d.out.Admitted || d.adm == nil || len(d.q.Chain) == 0 {
		return ""
	}
	leaf := d.q.Chain[0]
	switch step {
	case "name":
		return d.adm.id.String()
	case "trust domain":
		return d.adm.id.TrustDomain().Name()
	case "time":
		return fmt.Sprintf("from %s until %s", leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339))
	case "chain":
		return "signed by issuer " + d.adm.issuer
	case "scope":
		if !d.adm.isGrant() {
			return "an identity, which has none"
		}
		return strings.Join(d.adm.grant.Scope().Texts(), "; ")
	case "emergency":
		if d.adm.emergency {
			return "made by custodians, whom this service admits"
		}
	}
	return ""
}

// revocations looks at what is on the disk, as the proxy does when it starts.
func (d *doctor) revocations(now time.Time) {
	cfg, rev := d.p.cfg, d.p.rev
	const name = "revocation"
	switch {
	case !d.out.Admitted:
		d.step(name, StepNotReached, "")
	case rev.cur.Load().denies(d.adm) != "":
		d.refused(name, rev.cur.Load().denies(d.adm), "denied by the list in %s", cfg.stateFile)
	case cfg.stateFile == "":
		d.step(name, StepPassed, "no control node is followed: the certificate alone decides")
	case rev.fresh.Load().verified.IsZero():
		d.step(name, StepPassed, "no list has come yet")
	default:
		d.step(name, StepPassed, "not on the list of %s, which the running proxy may know to be older than it is", rev.fresh.Load().verified.UTC().Format(time.RFC3339))
	}
	if cfg.staleness > 0 {
		d.step("staleness", StepNoted, "with news older than %s everybody is refused; the file's is %s old", cfg.staleness, now.Sub(rev.fresh.Load().verified).Round(time.Second))
	}
}

// request judges what is asked for, as the exchange and the tunnel do.
func (d *doctor) request(now time.Time) error {
	if d.q.Request == "" {
		d.step("request", StepNoted, "none was asked about; --request 'GET /path' does")
		return nil
	}
	ask, bad, err := d.asked()
	if err != nil {
		return err
	}
	if bad != nil {
		d.refused("request", bad.reason, "%s", bad.detail)
	} else {
		d.step("request", StepPassed, "it can be read in one way")
	}
	if !d.out.Admitted {
		for _, name := range []string{"conditions", "permission"} {
			d.step(name, StepNotReached, "")
		}
		return nil
	}
	return d.permission(ask, now)
}

func (d *doctor) permission(ask asked, now time.Time) error {
	cfg := d.p.cfg
	c := &conn{adm: d.adm, peer: "0.0.0.0:0"}
	if d.adm.isGrant() {
		c.matcher = d.adm.grant.Scope().Matcher()
	}
	if d.q.Source == "" {
		if len(cfg.rules.sources) > 0 {
			d.step("source", StepNoted, "limits.sources is set, and no --source was given")
		}
		cfg.rules.sources = nil
	} else {
		ip := net.ParseIP(d.q.Source)
		if ip == nil {
			return fmt.Errorf("%w: %q is no address", ErrQuestion, d.q.Source)
		}
		c.peer = net.JoinHostPort(ip.String(), "0")
	}
	if cfg.rules.perGrant.many > 0 || cfg.rules.perSubject.many > 0 {
		d.step("rate", StepNoted, "how much of it is used up only the running proxy knows")
	}
	out := d.p.permits(c, ask)
	switch out.reason {
	case reasonSource, reasonHours, reasonRate:
		d.refused("conditions", out.reason, "limits")
		d.step("permission", StepNotReached, "")
		return nil
	}
	d.step("conditions", StepPassed, "")
	switch {
	case out.reason == reasonNoGrant:
		d.refused("permission", out.reason, "an identity opens nothing, and no standing rule names it for this")
	case out.reason != "":
		d.refused("permission", out.reason, "the grant does not allow it")
	case out.wouldDeny != "":
		_, until := cfg.rules.observingNow(now)
		d.step("permission", StepPassed, "OBSERVE MODE: enforcing would refuse it (%s), until %s at the latest", out.wouldDeny, slices.MaxFunc(until, time.Time.Compare).UTC().Format(time.RFC3339))
	case out.rule != "":
		d.step("permission", StepPassed, "%s, by the standing rule %s", out.perm, out.rule)
	default:
		d.step("permission", StepPassed, "%s", out.perm)
	}
	return nil
}

// asked reads the request that is asked about.
func (d *doctor) asked() (asked, *violation, error) {
	cfg := d.p.cfg
	if cfg.tcp != (d.q.Request == "tcp") {
		return nil, nil, fmt.Errorf("%w: %s is a service of protocol %s; ask about %s", ErrQuestion, cfg.service, map[bool]string{true: "tcp", false: "http"}[cfg.tcp],
			map[bool]string{true: "tcp", false: "'GET /path' or 'grpc pkg.Service/Method'"}[cfg.tcp])
	}
	if cfg.tcp {
		return func(m *grant.Matcher) (grant.Permission, bool) { return grant.TCPPermission(), m.TCP() }, nil, nil
	}
	method, target, ok := strings.Cut(d.q.Request, " ")
	if !ok {
		return nil, nil, fmt.Errorf("%w: %q is none of 'GET /path', 'grpc pkg.Service/Method' and tcp", ErrQuestion, d.q.Request)
	}
	r := &http.Request{Method: method, RequestURI: target, Header: http.Header{}, ProtoMajor: 2, Host: firstHost(cfg)}
	if method == "grpc" {
		r.Method, r.RequestURI = http.MethodPost, "/"+target
		r.Header.Set("Content-Type", "application/grpc")
	}
	s, bad := cfg.screen(r)
	return func(m *grant.Matcher) (grant.Permission, bool) {
		if s.grpc {
			return m.GRPC(r.Method, &s.path)
		}
		return m.HTTP(r.Method, &s.path)
	}, bad, nil
}

// firstHost is a name that the service goes by.
func firstHost(cfg *config) string {
	first := ""
	for h := range cfg.hosts {
		if first == "" || h < first {
			first = h
		}
	}
	return first
}
