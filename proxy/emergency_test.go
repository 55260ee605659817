package proxy

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/hallpass/hallpass/emergency"
)

// emergencyIssuer is an issuer under a root with extensions, the mark unless others
// are given.
func (p *pki) emergencyIssuer(parent *authority, extensions ...pkix.Extension) *authority {
	p.t.Helper()
	if len(extensions) == 0 {
		extensions = []pkix.Extension{emergency.Mark()}
	}
	a := &authority{key: newKey(p.t)}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial(p.t), Subject: pkix.Name{CommonName: emergency.NamePrefix(testGrantTD) + "hq"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
		ExtraExtensions: extensions,
	}, parent.cert, a.key.Public(), parent.key)
	if err != nil {
		p.t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		p.t.Fatal(err)
	}
	return a
}

// emergencyGrant is what custodians make.
func (p *pki) emergencyGrant(issuer *authority, id string, edit func(*leafSpec)) tls.Certificate {
	s := leafSpec{
		uris: []string{grantURI(p.t, "payments", id, "GET /accounts/**")}, issuer: issuer,
		eku:       []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		notBefore: time.Now().Truncate(time.Second).Add(-time.Minute), notAfter: time.Now().Truncate(time.Second).Add(30 * time.Minute),
	}
	if edit != nil {
		edit(&s)
	}
	return p.mint(s)
}

func allowEmergency(s *Settings) { s.Emergency = "allow" }

// TestEmergencyAllowed: a service that says so admits what custodians made, and every
// word that leaves the proxy says what it was.
func TestEmergencyAllowed(t *testing.T) {
	reader := sdkmetric.NewManualReader()
	heard := make(chan http.Header, 4)
	e := start(t, options{
		edit: allowEmergency, config: func(c *Config) { c.MeterProvider = sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)) },
		upstream: upstreamServer(t, func(_ http.ResponseWriter, r *http.Request) { heard <- r.Header.Clone() }),
	})
	issuer := e.pki.emergencyIssuer(e.pki.grantRoot)
	id := newGrantID(t)
	cert := e.pki.emergencyGrant(issuer, id, nil)
	if a := e.must(e.client(cert, true), "GET", "/accounts/7"); a.status != http.StatusOK {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	if h := <-heard; h.Get("X-Hallpass-Emergency") != "true" || h.Get("X-Hallpass-Grant") != id {
		t.Errorf("the upstream heard %v", h)
	}
	r := e.record("the request", func(r logLine) bool { return r.Kind == kindRequest && r.Event == "end" })
	if !r.Emergency || r.Issuer != hexSum(issuer.cert) || r.Grant != id || r.Decision != decisionAllow {
		t.Errorf("the record is %+v", r)
	}
	if log := e.logs.String(); !strings.Contains(log, "level=WARN msg=\"a connection was admitted by an emergency certificate\" grant="+id) {
		t.Errorf("the log does not say so:\n%s", log)
	}
	if n := emergencyRequests(t, reader); n != 1 {
		t.Errorf("%d emergency requests are counted", n)
	}
	// Its scope holds, and a grant as usual says nothing of an emergency; nor does a
	// client that says it was one.
	if a := e.must(e.client(cert, true), "GET", "/admin"); a.status != http.StatusForbidden {
		t.Errorf("outside of its scope: %d", a.status)
	}
	if a := e.must(e.client(e.pki.grant(time.Hour, "GET /accounts/**"), true), "GET", "/accounts/7", "X-Hallpass-Emergency", "true"); a.status != http.StatusOK {
		t.Errorf("a grant as usual: %d", a.status)
	}
	if h := <-heard; h.Get("X-Hallpass-Emergency") != "" {
		t.Errorf("of a grant as usual the upstream heard %v", h)
	}
}

func emergencyRequests(t *testing.T, reader *sdkmetric.ManualReader) (n int64) {
	t.Helper()
	var got metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &got); err != nil {
		t.Fatal(err)
	}
	for _, scope := range got.ScopeMetrics {
		for _, m := range scope.Metrics {
			if sum, ok := m.Data.(metricdata.Sum[int64]); ok && m.Name == "hallpass.proxy.emergency.requests" {
				for _, p := range sum.DataPoints {
					n += p.Value
				}
			}
		}
	}
	return n
}

// TestEmergencyRefused: a service that says nothing, or deny, admits none; and one that
// admits them takes none beyond the limits, and no mark in another form.
func TestEmergencyRefused(t *testing.T) {
	p := newPKI(t)
	upstream := upstreamServer(t, func(http.ResponseWriter, *http.Request) { t.Error("the upstream was reached") })
	marked := p.emergencyIssuer(p.grantRoot)
	uncritical, other := emergency.Mark(), emergency.Mark()
	uncritical.Critical = false
	other.Value = []byte{5, 0}
	unknown := emergency.Mark()
	unknown.Id = append(unknown.Id[:len(unknown.Id)-1:len(unknown.Id)-1], 77)
	good := func() tls.Certificate { return p.emergencyGrant(marked, newGrantID(t), nil) }

	for _, c := range []struct {
		name, setting, reason string
		cert                  tls.Certificate
		flagged               bool
	}{
		{"nothing said", "", reasonEmergency, good(), true},
		{"deny", "deny", reasonEmergency, good(), true},
		{"longer than the cap", "allow", reasonEmergencyLimits, p.emergencyGrant(marked, newGrantID(t), func(s *leafSpec) {
			s.notAfter = s.notBefore.Add(emergency.MaxLife + emergency.Backdate + time.Second)
		}), true},
		{"an id of another time", "allow", reasonEmergencyLimits, p.emergencyGrant(marked, idOf(time.Now().Add(time.Hour)), nil), true},
		{"a mark that is not critical", "allow", reasonUntrusted, p.emergencyGrant(p.emergencyIssuer(p.grantRoot, uncritical), newGrantID(t), nil), true},
		{"another value", "allow", reasonUntrusted, p.emergencyGrant(p.emergencyIssuer(p.grantRoot, other), newGrantID(t), nil), false},
		{
			"the mark and what we do not know", "allow", reasonUntrusted,
			p.emergencyGrant(p.emergencyIssuer(p.grantRoot, emergency.Mark(), unknown), newGrantID(t), nil), false,
		},
		{"an identity of an emergency issuer", "allow", reasonUntrusted, p.mint(leafSpec{
			uris: []string{alice}, issuer: p.emergencyIssuer(p.idRoot), eku: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}), false},
		{"an identity under the grants' root", "allow", reasonUntrusted, p.mint(leafSpec{
			uris: []string{alice}, issuer: marked, eku: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}), false},
		{"another service", "allow", reasonWrongService, p.emergencyGrant(marked, newGrantID(t), func(s *leafSpec) {
			s.uris = []string{grantURI(t, "ledger", newGrantID(t), "GET /accounts/**")}
		}), true},
		{"of a stranger's root", "allow", reasonUntrusted, p.emergencyGrant(p.emergencyIssuer(newPKI(t).grantRoot), newGrantID(t), nil), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := start(t, options{pki: p, upstream: upstream, edit: func(s *Settings) { s.Emergency = c.setting }})
			if a, err := e.do(e.client(c.cert, false), "GET", "/accounts/7"); err == nil {
				t.Fatalf("admitted: %d", a.status)
			}
			r := e.record("the refusal", func(r logLine) bool { return r.Kind == kindHandshake })
			if r.Reason != c.reason || r.Emergency != c.flagged {
				t.Errorf("the record is %+v", r)
			}
		})
	}
}

// idOf is a UUIDv7 of another time.
func idOf(at time.Time) string {
	ms := at.UnixMilli()
	const digits = "0123456789abcdef"
	b := []byte("00000000-0000-7000-8000-00000000000a")
	for i, at := range []int{0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12} {
		b[at] = digits[ms>>(44-4*i)&15]
	}
	return string(b)
}

// TestEmergencyDeniedByFeed: an emergency issuer is cut off like any other, and so is a
// grant of it, whose record nobody has imported.
func TestEmergencyDeniedByFeed(t *testing.T) {
	p := newPKI(t)
	node := startControl(t, p, "spiffe://acme.test/node/n1", feedDoc{Epoch: 1, Revision: 1, VerifiedAt: time.Now()})
	e := start(t, options{pki: p, upstream: upstreamServer(t, func(http.ResponseWriter, *http.Request) {}), edit: func(s *Settings) {
		s.Emergency, s.Revocation = "allow", RevocationSettings{Servers: []string{node.url}, StateFile: t.TempDir() + "/state"}
	}})
	issuer := p.emergencyIssuer(p.grantRoot)
	id := newGrantID(t)
	cert := e.pki.emergencyGrant(issuer, id, nil)
	if a := e.must(e.client(cert, false), "GET", "/accounts/7"); a.status != http.StatusOK {
		t.Fatalf("before: %d", a.status)
	}
	node.revoke(id)
	e.eventually("the revocation", func() bool {
		_, err := e.do(e.client(cert, false), "GET", "/accounts/7")
		return err != nil
	})
	e.record("the revoked grant", func(r logLine) bool { return r.Reason == reasonRevoked && r.Emergency })
	second := e.pki.emergencyGrant(issuer, newGrantID(t), nil)
	node.set(func(d *feedDoc) {
		d.Revision++
		d.Issuers = append(d.Issuers, feedEntry{hexSum(issuer.cert), time.Now().Add(time.Hour)})
	})
	e.eventually("the denial", func() bool {
		_, err := e.do(e.client(second, false), "GET", "/accounts/7")
		return err != nil
	})
	e.record("the denied issuer", func(r logLine) bool { return r.Reason == reasonIssuerDenied && r.Emergency })
}

// TestEmergencySettings: three words, and nothing else.
func TestEmergencySettings(t *testing.T) {
	p := newPKI(t)
	for value, want := range map[string]bool{"": true, "deny": true, "allow": true, "allow_stale": false, "yes": false, "Allow": false, "true": false} {
		s := settings(t, p, t.TempDir())
		s.Emergency = value
		if err := s.Check(); (err == nil) != want || err != nil && !errors.Is(err, ErrSettings) {
			t.Errorf("%q: %v", value, err)
		}
	}
	s := settings(t, p, t.TempDir())
	s.Emergency, s.Revocation = "allow_stale", RevocationSettings{
		Servers: []string{"https://n1:1"}, StateFile: "x", MaxStaleness: 10 * time.Second,
	}
	if err := s.Check(); err != nil {
		t.Errorf("allow_stale with a limit: %v", err)
	}
}

// TestEmergencyWhenNewsIsStale: a service that closes without news closes for
// emergencies as well, unless it says that they are let in even then.
func TestEmergencyWhenNewsIsStale(t *testing.T) {
	for setting, want := range map[string]int{"allow": http.StatusServiceUnavailable, "allow_stale": http.StatusOK} {
		t.Run(setting, func(t *testing.T) {
			p := newPKI(t)
			e := start(t, options{
				pki: p, upstream: upstreamServer(t, func(http.ResponseWriter, *http.Request) {}),
				edit: func(s *Settings) {
					s.Emergency = setting
					// Nobody is there: the news was never fresh.
					s.Revocation = RevocationSettings{Servers: []string{"https://127.0.0.1:1"}, StateFile: t.TempDir() + "/state", MaxStaleness: time.Second}
				},
			})
			cert := p.emergencyGrant(p.emergencyIssuer(p.grantRoot), newGrantID(t), nil)
			if a := e.must(e.client(cert, false), "GET", "/accounts/7"); a.status != want {
				t.Errorf("%s: status %d, want %d", setting, a.status, want)
			}
			if a := e.must(e.client(p.grant(time.Hour, "GET /accounts/**"), false), "GET", "/accounts/7"); a.status != http.StatusServiceUnavailable {
				t.Errorf("%s: a grant as usual: status %d", setting, a.status)
			}
		})
	}
}
