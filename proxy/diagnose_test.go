package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestDiagnose: what the doctor says is what the proxy does with the same
// certificate and request, and it names the step.
func TestDiagnose(t *testing.T) {
	p := newPKI(t)
	edit := func(s *Settings) {
		s.Allow = []AllowSettings{{ID: alice, Permissions: []string{"GET /metrics"}}}
		s.Observe = []ObserveSettings{{Permissions: []string{"GET /reports"}, Until: inDays(1)}}
	}
	e := start(t, options{pki: p, upstream: upstreamServer(t, echoHandler), edit: edit})
	s := settings(t, p, t.TempDir())
	edit(&s)
	client := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	mint := func(edit func(*leafSpec)) tls.Certificate {
		l := leafSpec{uris: []string{grantURI(t, "payments", newGrantID(t), "GET /a")}, issuer: p.grantIssuer, eku: client, notAfter: time.Now().Add(time.Hour)}
		edit(&l)
		return p.mint(l)
	}
	for name, tt := range map[string]struct {
		cert          tls.Certificate
		request       string
		step, reason  string
		detail        string
		refusedBefore bool // in the handshake
	}{
		"a grant":            {p.grant(time.Hour, "GET /a"), "GET /a", "permission", "", "GET /a", false},
		"outside":            {p.grant(time.Hour, "GET /a"), "GET /b", "permission", reasonOutsideScope, "", false},
		"two readings":       {p.grant(time.Hour, "GET /**"), "GET /a/../b", "request", "ambiguous_path", "", false},
		"observed":           {p.grant(time.Hour, "GET /a"), "GET /reports", "permission", "", "OBSERVE MODE", false},
		"by a standing rule": {p.identity(alice), "GET /metrics", "permission", "", "allow[0]", false},
		"an identity":        {p.identity(alice), "GET /a", "permission", reasonNoGrant, "", false},
		"another's rule":     {p.identity(alice + "x"), "GET /metrics", "permission", reasonNoGrant, "", false},
		"ended": {mint(func(l *leafSpec) {
			l.notBefore, l.notAfter = time.Now().Add(-time.Hour), time.Now().Add(-time.Minute)
		}), "GET /a", "time", reasonExpired, "", true},
		"not yet": {mint(func(l *leafSpec) { l.notBefore = time.Now().Add(time.Minute) }), "GET /a", "time", reasonNotYetValid, "", true},
		"another's": {mint(func(l *leafSpec) {
			l.uris = []string{grantURI(t, "ledger", newGrantID(t), "GET /a")}
		}), "GET /a", "service", reasonWrongService, "", true},
		"a server's":     {mint(func(l *leafSpec) { l.eku = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "GET /a", "key usage", reasonKeyUsage, "", true},
		"a stranger's":   {newPKI(t).grant(time.Hour, "GET /a"), "GET /a", "chain", reasonUntrusted, "", true},
		"another domain": {mint(func(l *leafSpec) { l.uris = []string{"spiffe://beta.test/x"} }), "GET /a", "trust domain", reasonTrustDomain, "", true},
		"no scope":       {mint(func(l *leafSpec) { l.uris = []string{"spiffe://grants.acme.test/v1/payments/_can"} }), "GET /a", "scope", reasonScope, "", true},
		"two names":      {mint(func(l *leafSpec) { l.uris = append(l.uris, "spiffe://acme.test/x") }), "GET /a", "name", reasonNames, "", true},
	} {
		d, err := Diagnose(Config{Settings: s}, Question{Chain: chainOf(t, tt.cert), Request: tt.request})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		i := len(d.Steps) - 1
		for j, step := range d.Steps {
			if step.Name == tt.step {
				i = j
			}
		}
		step := d.Steps[i]
		if d.Reason != tt.reason || d.Admitted != (tt.reason == "") || (step.Outcome == StepRefused) != (tt.reason != "") || !strings.Contains(step.Detail, tt.detail) {
			t.Errorf("%s: %+v, at %+v", name, d, step)
		}
		for j, other := range d.Steps {
			if j != i && other.Outcome == StepRefused || j > i && tt.reason != "" && other.Outcome == StepPassed {
				t.Errorf("%s: %+v as well", name, other)
			}
		}
		// The proxy itself.
		method, path, _ := strings.Cut(tt.request, " ")
		c := e.client(tt.cert, false)
		a, err := e.opaque(c, method, path)
		switch {
		case tt.refusedBefore && err == nil:
			t.Errorf("%s: the proxy answers %d", name, a.status)
		case !tt.refusedBefore && (err != nil || (a.status == 200) != d.Admitted):
			t.Errorf("%s: the proxy says %d, %v", name, a.status, err)
		}
	}
}

// TestDiagnoseRevoked: the list on the disk counts, and is not touched.
func TestDiagnoseRevoked(t *testing.T) {
	p := newPKI(t)
	dir := t.TempDir()
	s := settings(t, p, dir)
	s.Revocation = RevocationSettings{Servers: []string{"https://127.0.0.1:1"}, StateFile: filepath.Join(dir, "revocations.json"), MaxStaleness: time.Minute}
	id := newGrantID(t)
	cfg, err := newConfig(Config{Settings: s})
	if err != nil {
		t.Fatal(err)
	}
	rev, err := openRevocations(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var doc feedDoc
	if err := json.Unmarshal([]byte(`{"epoch":1,"revision":2,"verified_at":"`+time.Now().UTC().Format(time.RFC3339)+`","grants":[{"id":"`+id+`","until":"`+time.Now().Add(time.Hour).UTC().Format(time.RFC3339)+`"}]}`), &doc); err != nil {
		t.Fatal(err)
	}
	if err := rev.apply(doc); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(cfg.stateFile)
	if err != nil {
		t.Fatal(err)
	}
	d, err := Diagnose(Config{Settings: s}, Question{Chain: chainOf(t, p.grantWithID(id, time.Hour, "GET /a"))})
	if err != nil || d.Admitted || d.Reason != reasonRevoked || d.Grant != id {
		t.Errorf("%+v, %v", d, err)
	}
	if d, err := Diagnose(Config{Settings: s}, Question{Chain: chainOf(t, p.grant(time.Hour, "GET /a"))}); err != nil || !d.Admitted {
		t.Errorf("%+v, %v", d, err)
	}
	after, err := os.ReadFile(cfg.stateFile)
	if err != nil || string(after) != string(before) {
		t.Errorf("the list changed: %v", err)
	}
	if err := os.WriteFile(cfg.stateFile, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Diagnose(Config{Settings: s}, Question{Chain: chainOf(t, p.grant(time.Hour, "GET /a"))}); !errors.Is(err, ErrState) {
		t.Errorf("a damaged list: %v", err)
	}
	for _, q := range []Question{{Request: "GET"}, {Request: "tcp"}, {Service: "ledger"}, {Request: "GET /a", Source: "here"}} {
		s.Revocation = RevocationSettings{}
		q.Chain = chainOf(t, p.grant(time.Hour, "GET /a"))
		if _, err := Diagnose(Config{Settings: s}, q); !errors.Is(err, ErrQuestion) {
			t.Errorf("%+v: %v", q, err)
		}
	}
}
