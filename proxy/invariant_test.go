package proxy

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// ending is how something live ended.
type ending struct {
	name string
	e    *env
	cert tls.Certificate
	at   time.Time
	err  error
}

// openAll opens one of everything, each behind a proxy of its own, and returns
// how each ended. What is still live long after all should have ended is an error.
func openAll(t *testing.T, ttl time.Duration, opened func(*env)) []ending {
	t.Helper()
	rows := everyProtocol(t)
	ended := make(chan ending, len(rows))
	for name, row := range rows {
		e := start(t, options{upstream: row.upstream, edit: row.edit})
		cert := e.pki.grant(ttl, row.perm)
		broken := row.open(e, cert)
		opened(e)
		go func() { // ends with the proxy at the latest
			err := broken()
			ended <- ending{name, e, cert, time.Now(), err}
		}()
	}
	var all []ending
	late := time.After(patience)
	for range rows {
		select {
		case end := <-ended:
			all = append(all, end)
		case <-late:
			t.Fatalf("only %d of %d have ended", len(all), len(rows))
		}
	}
	return all
}

// TestInvariant02_AccessEndsWithTheCertificate: whatever is under way is broken
// off at NotAfter, no more than a second late and not before; and so it is when
// the wall clock alone says so, as after a suspend, during which timers stood still.
func TestInvariant02_AccessEndsWithTheCertificate(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var lag stalls
	go lag.watch(ctx)
	for _, end := range openAll(t, 4*time.Second, func(*env) {}) {
		over := end.at.Sub(end.cert.Leaf.NotAfter)
		switch {
		case end.err == nil || end.err == errWhole: //nolint:errorlint // a marker, never wrapped
			t.Errorf("%s: ended with %v", end.name, end.err)
		case over > time.Second+lag.most():
			t.Errorf("%s: outlived its certificate by %s (machine stalls up to %s)", end.name, over, lag.most())
		case over < 0:
			t.Errorf("%s: broken off %s early: %v", end.name, -over, end.err)
		}
		r := end.e.record("the cut of "+end.name, func(r logLine) bool { return r.Event == "end" && r.Reason == reasonExpired })
		if r.Grant == "" || r.Serial == "" {
			t.Errorf("%s: record %+v", end.name, r)
		}
	}
	t.Run("suspend", func(t *testing.T) {
		var moved time.Time
		var clocks []*clock
		all := openAll(t, time.Hour, func(e *env) {
			if clocks = append(clocks, e.clock); len(clocks) < 9 {
				return
			}
			time.Sleep(300 * time.Millisecond) // well into it
			moved = time.Now()
			for _, c := range clocks {
				c.moveOn(2 * time.Hour)
			}
		})
		if len(all) != 9 {
			t.Fatalf("%d protocols", len(all))
		}
		for _, end := range all {
			if took := end.at.Sub(moved); end.err == nil || took < 0 || took > time.Second+lag.most() {
				t.Errorf("%s: ended with %v, %s after the clock moved (machine stalls up to %s)", end.name, end.err, took, lag.most())
			}
		}
	})
}

// TestRequestAfterExpiry: the clock is read for each request, so that not even
// the moment until the cut opens anything.
func TestRequestAfterExpiry(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler)})
	c := e.client(e.pki.grant(time.Hour, "GET /**"), false)
	if a := e.must(c, "GET", "/a"); a.status != 200 {
		t.Fatalf("status %d", a.status)
	}
	e.clock.moveOn(2 * time.Hour)
	if a, err := e.do(c, "GET", "/b"); err == nil && a.status == 200 {
		t.Error("a request after NotAfter was let through")
	}
	for _, r := range e.records() {
		if r.Path == "/b" && r.Decision == decisionAllow {
			t.Errorf("record %+v", r)
		}
	}
}

// TestDrainBeforeExpiry: clients with a pool are told in time and go on without
// a failure.
func TestDrainBeforeExpiry(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		e := start(t, options{upstream: upstreamServer(t, echoHandler), edit: func(s *Settings) { s.Drain.BeforeExpiry = 30 * time.Minute }})
		c := e.client(e.pki.grant(time.Hour, "GET /**"), h2)
		first := e.must(c, "GET", "/a")
		again := e.must(c, "GET", "/a")
		if first.status != 200 || again.status != 200 {
			t.Fatalf("status %d, %d", first.status, again.status)
		}
		e.clock.moveOn(50 * time.Minute) // within the last quarter: the drain has begun
		e.eventually("drain", func() bool {
			drained := false
			e.px.live.mu.Lock()
			for _, c := range e.px.live.due {
				drained = drained || c.draining.Load()
			}
			e.px.live.mu.Unlock()
			return drained
		})
		if a := e.must(c, "GET", "/a"); a.status != 200 {
			t.Errorf("status %d", a.status)
		}
		carried := func(n int64) bool {
			// The last answer said Connection: close. Of HTTP/2, GOAWAY came before that request, or crossed it.
			return n == 3 || h2 && n == 2
		}
		e.eventually("the connection's end", func() bool {
			n := 0
			for _, r := range e.records() {
				if r.Kind == kindConnection && r.Reason == "" && carried(r.Requests) {
					n++
				}
			}
			return n == 1
		})
		if a := e.must(c, "GET", "/a"); a.status != 200 { // on a new connection
			t.Errorf("status %d", a.status)
		}
	})
}

// TestInvariant04_TheCertificateAlone: with no control node to be reached, and
// none ever reached, a live grant works, and dies on time; what was revoked
// before stays so. No request path calls anyone but the upstream.
func TestInvariant04_TheCertificateAlone(t *testing.T) {
	// A control node that takes connections and never says a word: whoever waits
	// for it waits for ever.
	var lc net.ListenConfig
	silent, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	go func() {
		for {
			if _, err := silent.Accept(); err != nil {
				return
			}
		}
	}()
	revoked := newGrantID(t)
	e := start(t, options{upstream: upstreamServer(t, echoHandler), edit: func(s *Settings) {
		s.Revocation.Servers = []string{"https://127.0.0.1:1", "https://" + silent.Addr().String()}
		s.Revocation.StateFile = filepath.Join(filepath.Dir(s.Certificate), "revocations.json")
		writeFile(t, s.Revocation.StateFile, []byte(`{"epoch":3,"revision":7,"grants":[{"id":"`+revoked+`","until":"2999-01-01T00:00:00Z"}],"issuers":[],"verified_at":"2020-01-01T00:00:00Z"}`))
	}})
	both(t, func(t *testing.T, h2 bool) {
		e := e.with(t)
		cert := e.pki.grant(6*time.Second, "GET /**")
		began := time.Now()
		if a := e.must(e.client(cert, h2), "GET", "/a"); a.status != 200 {
			t.Errorf("status %d without control nodes", a.status)
		}
		if took := time.Since(began); took > 5*time.Second { // for ever, and a busy machine
			t.Errorf("a request took %s: it waited for someone", took)
		}
		if _, err := e.do(e.client(e.pki.grantWithID(revoked, time.Hour, "GET /**"), h2), "GET", "/a"); err == nil {
			t.Error("a grant known to be revoked was admitted")
		}
		e.eventually("the grant's end", func() bool {
			_, err := e.do(e.client(cert, h2), "GET", "/a")
			return err != nil
		})
		if now := time.Now(); now.Before(cert.Leaf.NotAfter) {
			t.Errorf("it ended %s early", cert.Leaf.NotAfter.Sub(now))
		}
	})
}

// TestInvariant09_EmptyMeansDenied: nothing, where something should be, admits
// nobody: not at start, not at a reload, not in a certificate.
func TestInvariant09_EmptyMeansDenied(t *testing.T) {
	p := newPKI(t)
	for name, spoil := range map[string]func(t *testing.T, dir string, s *Settings){
		"no hosts":         func(_ *testing.T, _ string, s *Settings) { s.Hosts = nil },
		"an empty host":    func(_ *testing.T, _ string, s *Settings) { s.Hosts = []string{""} },
		"no service":       func(_ *testing.T, _ string, s *Settings) { s.Service = "" },
		"no upstream":      func(_ *testing.T, _ string, s *Settings) { s.Upstream = "" },
		"no trust domain":  func(_ *testing.T, _ string, s *Settings) { s.TrustDomain = "" },
		"no access log":    func(_ *testing.T, _ string, s *Settings) { s.AccessLog.Path = "" },
		"no grants bundle": func(_ *testing.T, _ string, s *Settings) { s.GrantsBundle = "" },
		"an empty grants bundle": func(t *testing.T, dir string, _ *Settings) {
			writeFile(t, filepath.Join(dir, "grants-bundle.pem"), nil)
		},
		"an empty identity bundle": func(t *testing.T, dir string, _ *Settings) {
			writeFile(t, filepath.Join(dir, "identity-bundle.pem"), nil)
		},
		"a bundle of other blocks": func(t *testing.T, dir string, _ *Settings) {
			writeFile(t, filepath.Join(dir, "grants-bundle.pem"), pemKey(t, newKey(t)))
		},
		"a bundle cut off": func(t *testing.T, dir string, _ *Settings) {
			whole := pemCerts(p.grantRoot.cert, newPKI(t).grantRoot.cert)
			writeFile(t, filepath.Join(dir, "grants-bundle.pem"), whole[:len(whole)-40])
		},
		"a bundle of a leaf": func(t *testing.T, dir string, _ *Settings) {
			writeFile(t, filepath.Join(dir, "grants-bundle.pem"), pemCerts(p.grant(time.Hour, "GET /").Leaf))
		},
		"one root for both domains": func(t *testing.T, dir string, _ *Settings) {
			writeFile(t, filepath.Join(dir, "grants-bundle.pem"), pemCerts(p.idRoot.cert))
		},
		"one domain for both":  func(_ *testing.T, _ string, s *Settings) { s.GrantTrustDomain = s.TrustDomain },
		"an empty certificate": func(t *testing.T, dir string, _ *Settings) { writeFile(t, filepath.Join(dir, "cert.pem"), nil) },
		"another service's certificate": func(t *testing.T, dir string, _ *Settings) {
			writePair(t, dir, p.serviceSVID("orders"))
		},
		"a damaged revocation state": func(t *testing.T, dir string, s *Settings) {
			s.Revocation.StateFile = filepath.Join(dir, "state.json")
			writeFile(t, s.Revocation.StateFile, nil)
		},
	} {
		t.Run("start/"+name, func(t *testing.T) {
			dir := t.TempDir()
			s := settings(t, p, dir)
			spoil(t, dir, &s)
			if px, err := New(Config{Settings: s}); err == nil {
				_ = px.Close()
				t.Error("the proxy was made")
			}
		})
	}
	t.Run("reload", func(t *testing.T) {
		e := start(t, options{pki: p, upstream: upstreamServer(t, echoHandler)})
		for _, file := range []string{"grants-bundle.pem", "identity-bundle.pem"} {
			writeFile(t, filepath.Join(e.dir, file), nil)
		}
		if err := e.px.Reload(); err == nil {
			t.Error("an empty bundle was taken")
		}
		stranger := newPKI(t)
		if _, err := e.do(e.client(stranger.grant(time.Hour, "GET /**"), true), "GET", "/a"); err == nil {
			t.Error("an empty bundle admits a stranger")
		}
		if a := e.must(e.client(p.grant(time.Hour, "GET /**"), true), "GET", "/a"); a.status != 200 {
			t.Errorf("status %d: the old bundle is gone", a.status)
		}
	})
	t.Run("identity", func(t *testing.T) {
		e := start(t, options{pki: p, upstream: upstreamServer(t, func(http.ResponseWriter, *http.Request) { t.Error("the upstream was reached") })})
		if a := e.must(e.client(p.identity(alice), true), "GET", "/a"); a.status != 403 {
			t.Errorf("status %d without a grant", a.status)
		}
		// A scope of no permission cannot be spelled; one that is tried gets nowhere.
		for _, uri := range []string{
			"spiffe://grants.acme.test/v1/payments/_can/_for/acme.test/user/alice/_id/" + newGrantID(t),
			"spiffe://grants.acme.test/v1/payments/_for/acme.test/user/alice/_id/" + newGrantID(t),
		} {
			cert := p.mint(leafSpec{rawSAN: sanOf(t, uri), issuer: p.grantIssuer, eku: p.grant(time.Hour, "tcp").Leaf.ExtKeyUsage})
			if err := readError(e.dial(cert)); err == nil || !strings.Contains(err.Error(), "tls") {
				t.Errorf("%s: %v", uri, err)
			}
		}
	})
}
