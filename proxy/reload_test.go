package proxy

import (
	"crypto/tls"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// serverSerial is the serial of the certificate that the proxy shows.
func (e *env) serverSerial() string {
	e.t.Helper()
	c := e.dial(e.pki.identity(alice))
	defer func() { _ = c.Close() }()
	return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// TestHotReload: a new certificate is shown to new connections without a
// restart, noticed from the files alone; old connections live on.
func TestHotReload(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler)})
	c := e.client(e.pki.grant(time.Hour, "GET /**"), true)
	if a := e.must(c, "GET", "/a"); a.status != 200 {
		t.Fatalf("status %d", a.status)
	}
	before := e.serverSerial()
	next := e.pki.serviceSVID("payments")
	writePair(t, e.dir, next)
	e.eventually("the new certificate", func() bool { return e.serverSerial() == next.Leaf.SerialNumber.String() })
	if before == next.Leaf.SerialNumber.String() {
		t.Error("the same certificate")
	}
	if a := e.must(c, "GET", "/a"); a.status != 200 {
		t.Errorf("status %d", a.status)
	}
	if n := e.px.live.len(); n == 0 {
		t.Error("the old connection is gone")
	}
}

// TestReloadKeepsWhatIsGood: each broken file leaves what was there, is in the
// error and is logged once, not every second; the others are taken all the same.
func TestReloadKeepsWhatIsGood(t *testing.T) {
	p := newPKI(t)
	good := p.serviceSVID("payments")
	for name, write := range map[string]func(t *testing.T, dir string){
		"no certificate":         func(t *testing.T, dir string) { writeFile(t, filepath.Join(dir, "cert.pem"), nil) },
		"a key of another":       func(t *testing.T, dir string) { writeFile(t, filepath.Join(dir, "key.pem"), pemKey(t, newKey(t))) },
		"another service's":      func(t *testing.T, dir string) { writePair(t, dir, p.serviceSVID("orders")) },
		"another trust domain's": func(t *testing.T, dir string) { writePair(t, dir, newPKI(t).serviceSVID("payments")) },
		"expired": func(t *testing.T, dir string) {
			writePair(t, dir, p.mint(leafSpec{uris: []string{"spiffe://acme.test/service/payments"}, issuer: p.idIssuer, eku: good.Leaf.ExtKeyUsage, notBefore: time.Now().Add(-time.Hour), notAfter: time.Now().Add(-time.Minute)}))
		},
		"a client's": func(t *testing.T, dir string) {
			writePair(t, dir, p.mint(leafSpec{uris: []string{"spiffe://acme.test/service/payments"}, issuer: p.idIssuer, eku: p.grant(time.Hour, "tcp").Leaf.ExtKeyUsage}))
		},
		"half a bundle": func(t *testing.T, dir string) {
			writeFile(t, filepath.Join(dir, "grants-bundle.pem"), pemCerts(p.grantRoot.cert)[:100])
		},
		"one root for both": func(t *testing.T, dir string) {
			writeFile(t, filepath.Join(dir, "grants-bundle.pem"), pemCerts(p.grantRoot.cert, p.idRoot.cert))
		},
		"a file gone": func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "identity-bundle.pem")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t, options{pki: p, upstream: upstreamServer(t, echoHandler)})
			before := e.serverSerial()
			write(t, e.dir)
			for range 3 {
				if err := e.px.Reload(); err == nil {
					t.Error("no error")
				}
			}
			if e.serverSerial() != before {
				t.Error("the certificate changed")
			}
			if a := e.must(e.client(p.grant(time.Hour, "GET /**"), true), "GET", "/a"); a.status != 200 {
				t.Errorf("status %d", a.status)
			}
			if n := strings.Count(e.logs.String(), "new certificate material refused"); n != 1 {
				t.Errorf("logged %d times:\n%s", n, e.logs)
			}
		})
	}
}

// TestRootAdded and removed: a new root's grants are admitted, and when a root
// is taken out, who stands on it goes at once.
func TestRootAddedAndRemoved(t *testing.T) {
	p := newPKI(t)
	e := start(t, options{pki: p, upstream: upstreamServer(t, drip)})
	next := *p
	next.grantRoot = p.authority("the next grants root", nil)
	next.grantIssuer = p.authority("the next grants issuer", next.grantRoot)
	cert := next.grant(time.Hour, "GET /**")
	if err := readError(e.dial(cert)); err == nil {
		t.Fatal("admitted before its root was")
	}
	bundle := filepath.Join(e.dir, "grants-bundle.pem")
	writeFile(t, bundle, pemCerts(p.grantRoot.cert, next.grantRoot.cert))
	if err := e.px.Reload(); err != nil {
		t.Fatal(err)
	}
	old, young := download(true)(e, p.grant(time.Hour, "GET /**")), download(false)(e, cert)
	ended := make(chan error, 1)
	go func() { ended <- young() }()
	writeFile(t, bundle, pemCerts(next.grantRoot.cert))
	if err := e.px.Reload(); err != nil {
		t.Fatal(err)
	}
	if err := old(); err == nil || err == errWhole { //nolint:errorlint // a marker, never wrapped
		t.Error("the old root's stream ended well")
	}
	e.record("the cut", func(r logLine) bool { return r.Reason == reasonRootRemoved })
	select {
	case err := <-ended:
		t.Errorf("the new root's stream ended: %v", err)
	default:
	}
	if err := readError(e.dial(p.grant(time.Hour, "GET /**"))); err == nil {
		t.Error("the old root's grant is admitted")
	}
}

// TestShutdown: what is under way may finish, what takes too long is cut, new
// connections find nobody, and every record is written.
func TestShutdown(t *testing.T) {
	release := make(chan struct{})
	begun := make(chan struct{}, 2)
	e := start(t, options{upstream: upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		if r.URL.Path == "/forever" {
			drip(w, r)
			return
		}
		<-release
		_, _ = w.Write([]byte("done"))
	}), edit: func(s *Settings) { s.Drain.Shutdown = 2 * time.Second }})
	cert := e.pki.grant(time.Hour, "GET /**")
	finished := make(chan answer, 1)
	go func() {
		a, err := e.do(e.client(cert, true), "GET", "/slow")
		if err != nil {
			t.Errorf("the slow request: %v", err)
		}
		finished <- a
	}()
	cut := make(chan error, 1)
	go func() {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+e.addr+"/forever", http.NoBody)
		if err != nil {
			cut <- err
			return
		}
		res, err := e.client(cert, false).Do(req)
		if err == nil {
			_, err = res.Body.Read(make([]byte, 1))
			for err == nil {
				_, err = res.Body.Read(make([]byte, 64))
			}
			_ = res.Body.Close()
		}
		cut <- err
	}()
	<-begun
	<-begun
	e.stop()
	e.eventually("drain", func() bool { return e.px.stopping.Load() })
	if ready, why := e.ready(); ready || !strings.Contains(why, "draining") {
		t.Errorf("ready while draining: %s", why)
	}
	d := tls.Dialer{Config: e.tlsConfig(cert)}
	if c, err := d.DialContext(t.Context(), "tcp", e.addr); err == nil {
		_ = c.Close()
		t.Error("a new connection was taken")
	}
	close(release)
	if a := <-finished; a.body != "done" {
		t.Errorf("%+v", a)
	}
	if err := <-cut; err == nil {
		t.Error("the endless one ended well")
	}
	e.shutdown()
	var slow, endless int
	for _, r := range e.records() {
		switch {
		case r.Path == "/slow" && r.Event == "end" && r.Reason == "":
			slow++
		case r.Path == "/forever" && r.Event == "end" && r.Reason == reasonShutdown:
			endless++
		}
	}
	if slow != 1 || endless != 1 {
		t.Errorf("%d and %d records: %+v", slow, endless, e.records())
	}
}
