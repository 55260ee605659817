//nolint:staticcheck // as connectorlink.go
package proxy

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// mux is a carrier at its client's end, with nobody to renew it but the test.
type mux struct {
	t  testing.TB
	tc *tls.Conn
	cc *http2.ClientConn
}

func (e *env) mux(cert tls.Certificate) *mux {
	e.t.Helper()
	tc := e.dial(cert, carrierALPN)
	if got := tc.ConnectionState().NegotiatedProtocol; got != carrierALPN {
		e.t.Fatalf("negotiated %q", got)
	}
	if err := tc.SetDeadline(time.Time{}); err != nil {
		e.t.Fatal(err)
	}
	cc, err := new(http2.Transport).NewClientConn(tc)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { _ = cc.Close() })
	return &mux{e.t, tc, cc}
}

// send sends what target names a message, and returns the status and the problem's code.
func (m *mux) send(target string, msg []byte) (int, string) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	r := connectTo(ctx, target, http.NoBody)
	if msg != nil {
		r.Header.Set(renewalHeader, renewalText().EncodeToString(msg))
	}
	res, err := m.cc.RoundTrip(r)
	if err != nil {
		m.t.Fatalf("%s: %v", target, err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		m.t.Fatalf("%s: %v", target, err)
	}
	if res.StatusCode == http.StatusOK {
		return res.StatusCode, ""
	}
	return res.StatusCode, answer{status: res.StatusCode, body: string(body)}.problem(m.t).Code
}

// proof is the message that renews m with cert.
func (m *mux) proof(cert tls.Certificate) []byte {
	m.t.Helper()
	state := m.tc.ConnectionState()
	msg, err := makeRenewal(state.ExportKeyingMaterial, &cert)
	if err != nil {
		m.t.Fatal(err)
	}
	return msg
}

func (m *mux) get(path string) (int, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://localhost"+path, http.NoBody)
	if err != nil {
		m.t.Fatal(err)
	}
	res, err := m.cc.RoundTrip(r)
	if err != nil {
		return 0, err
	}
	defer func() { _ = res.Body.Close() }()
	_, err = io.Copy(io.Discard, res.Body)
	return res.StatusCode, err
}

// grantUntil mints a certificate of a grant that ends at a moment.
func (p *pki) grantUntil(id string, until time.Time, perms ...string) tls.Certificate {
	p.t.Helper()
	return p.mint(leafSpec{
		uris: []string{grantURI(p.t, "payments", id, perms...)}, issuer: p.grantIssuer,
		eku: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, notAfter: until,
	})
}

// often has a proxy take renewals as fast as they come.
func often(e *env) *env {
	e.px.renewEvery = 0
	return e
}

// TestRenewalAttacks: what a thief of a certificate, of a key or of a whole message
// can present on a connection, and what a holder can of another grant. Each is
// refused, and the connection ends when it would have.
func TestRenewalAttacks(t *testing.T) {
	e := often(start(t, options{upstream: upstreamServer(t, echoHandler)}))
	p, id := e.pki, newGrantID(t)
	end := time.Now().Add(30 * time.Minute)
	cert := p.grantUntil(id, end, "GET /**")
	renewed := p.grantUntil(id, end.Add(time.Hour), "GET /**")
	m, other := e.mux(cert), e.mux(cert)
	stranger := newPKI(t)
	signedBy := func(chain tls.Certificate, key any) tls.Certificate {
		chain.PrivateKey = key
		return chain
	}
	sign := func(edit func(label string, context []byte) (string, []byte), purpose string) []byte {
		t.Helper()
		state := m.tc.ConnectionState()
		msg, err := makeRenewal(func(label string, context []byte, n int) ([]byte, error) {
			label, context = edit(label, context)
			return state.ExportKeyingMaterial(label, context, n)
		}, &renewed)
		if err != nil || purpose == "" {
			return msg
		}
		// The same secret, signed for another purpose, as in TLS itself.
		context := sha256.Sum256(nil)
		secret, err := state.ExportKeyingMaterial(renewalLabel, context[:], 32)
		if err != nil {
			t.Fatal(err)
		}
		digest := sha256.Sum256(append([]byte(strings.Repeat(" ", 64)+purpose+"\x00"), secret...))
		key, ok := renewed.PrivateKey.(*ecdsa.PrivateKey)
		if !ok {
			t.Fatal("no ECDSA key")
		}
		sig, err := ecdsa.SignASN1(testRand{}, key, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		_, _, last, err := parseRenewal(msg)
		if err != nil {
			t.Fatal(err)
		}
		return append(msg[:len(msg)-len(last)-2], append([]byte{byte(len(sig) >> 8), byte(len(sig))}, sig...)...)
	}
	same := func(l string, c []byte) (string, []byte) { return l, c }
	flip := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[at] ^= 1
		return b
	}
	good := m.proof(renewed)
	server := p.mint(leafSpec{uris: []string{grantURI(t, "payments", id, "GET /**")}, issuer: p.grantIssuer, eku: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	elsewhere := p.mint(leafSpec{uris: []string{grantURI(t, "orders", id, "GET /**")}, issuer: p.grantIssuer, eku: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	tests := []struct {
		name   string
		msg    []byte
		status int
		code   string
	}{
		{"a message of another connection, replayed", other.proof(renewed), 403, reasonProof},
		{"a stolen chain, signed by the old key", m.proof(signedBy(renewed, cert.PrivateKey)), 403, reasonProof},
		{"a stolen chain, signed by any key", m.proof(signedBy(renewed, newKey(t))), 403, reasonProof},
		{"the secret of another label", sign(func(_ string, c []byte) (string, []byte) { return "EXPERIMENTAL other", c }, ""), 403, reasonProof},
		{"the secret of another chain", sign(func(l string, _ []byte) (string, []byte) { return l, make([]byte, 32) }, ""), 403, reasonProof},
		{"signed for TLS", sign(same, "TLS 1.3, client CertificateVerify"), 403, reasonProof},
		{"a flipped bit of the signature", flip(good, len(good)-1), 403, reasonProof},
		{"another grant of the same subject", m.proof(p.grantUntil(newGrantID(t), end.Add(time.Hour), "GET /**")), 403, reasonOtherGrant},
		{"the same grant with a wider scope", m.proof(p.grantUntil(id, end.Add(time.Hour), "* /**")), 403, reasonOtherGrant},
		{"an identity", m.proof(p.identity(alice)), 403, reasonOtherGrant},
		{"another service's", m.proof(elsewhere), 403, reasonWrongService},
		{"one that ends sooner", m.proof(p.grantUntil(id, end.Add(-time.Minute), "GET /**")), 403, reasonNotLater},
		{"one that has expired", m.proof(p.grantUntil(id, time.Now().Add(-time.Minute), "GET /**")), 403, reasonExpired},
		{"a stranger's root", m.proof(stranger.grantUntil(id, end.Add(time.Hour), "GET /**")), 403, reasonUntrusted},
		{"a server's certificate", m.proof(server), 403, reasonKeyUsage},
		{"nothing", nil, 400, reasonMalformed},
		{"no certificates", []byte{0, 0, 1, 1}, 400, reasonMalformed},
		{"too many certificates", []byte{255}, 400, reasonMalformed},
		{"cut off", good[:len(good)-1], 400, reasonMalformed},
		{"with a byte behind", append(bytes.Clone(good), 0), 400, reasonMalformed},
		{"huge", make([]byte, maxRenewal+1), 400, reasonMalformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if status, code := m.with(t).send(renewTarget, tt.msg); status != tt.status || code != tt.code {
				t.Fatalf("%d %s, want %d %s", status, code, tt.status, tt.code)
			}
			e.with(t).record("the refusal", func(r logLine) bool {
				return r.Kind == kindRenewal && r.Decision == decisionRefuse && r.Reason == tt.code
			})
		})
	}
	if t.Failed() {
		return
	}
	if status, err := m.get("/a"); err != nil || status != 200 {
		t.Errorf("the connection itself: %d, %v", status, err)
	}
	e.clock.moveOn(31 * time.Minute)
	e.eventually("the end of the connection", func() bool { _, err := m.get("/a"); return err != nil })
	e.record("it", func(r logLine) bool { return r.Kind == kindConnection && r.Reason == reasonExpired })
}

// TestRenewalSpelling: the message comes in one way.
func TestRenewalSpelling(t *testing.T) {
	e := often(start(t, options{upstream: upstreamServer(t, echoHandler)}))
	id := newGrantID(t)
	m := e.mux(e.pki.grantWithID(id, time.Hour, "GET /**"))
	text := renewalText().EncodeToString(m.proof(e.pki.grantWithID(id, 2*time.Hour, "GET /**")))
	ask := func(body io.ReadCloser, headers ...string) int {
		t.Helper()
		r := connectTo(t.Context(), renewTarget, body)
		r.Header[renewalHeader] = headers
		res, err := m.cc.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		return res.StatusCode
	}
	for name, headers := range map[string][]string{
		"twice": {text, text}, "padded": {text + "="}, "a line": {text[:8] + " " + text[8:]}, "for URLs": {text + "-"}, "empty": {""},
	} {
		if status := ask(http.NoBody, headers...); status != 400 {
			t.Errorf("%s: %d", name, status)
		}
	}
	if status := ask(io.NopCloser(strings.NewReader("x")), text); status != 400 {
		t.Errorf("with a body: %d", status)
	}
	if status := ask(http.NoBody, text); status != 200 {
		t.Errorf("as it is: %d", status)
	}
}

type testRand struct{}

func (testRand) Read(p []byte) (int, error) { return copy(p, bytes.Repeat([]byte{7}, len(p))), nil }

func (m *mux) with(t testing.TB) *mux { return &mux{t, m.tc, m.cc} }

// TestRenewal: a connection lives on with what was proven on it, its records tell of
// the new certificate, and the thief of the old one is not kept alive by that.
func TestRenewal(t *testing.T) {
	e := often(start(t, options{upstream: upstreamServer(t, echoHandler)}))
	p, id := e.pki, newGrantID(t)
	end := time.Now().Add(30 * time.Minute)
	cert := p.grantUntil(id, end, "GET /**")
	owner, thief := e.mux(cert), e.mux(cert)
	renewed := p.grantUntil(id, end.Add(time.Hour), "GET /**")
	msg := owner.proof(renewed)
	if status, code := owner.send(renewTarget, msg); status != 200 {
		t.Fatalf("%d %s", status, code)
	}
	if status, code := owner.send(renewTarget, msg); status != 200 {
		t.Errorf("the same once more, which changes nothing: %d %s", status, code)
	}
	if status, code := thief.send(renewTarget, msg); status != 403 || code != reasonProof {
		t.Errorf("replayed by the thief: %d %s", status, code)
	}
	if status, code := owner.send(renewTarget, owner.proof(cert)); status != 403 || code != reasonNotLater {
		t.Errorf("back to the old one: %d %s", status, code)
	}
	if n := e.renewed(); n != 1 {
		t.Fatalf("%d connections go on with the new certificate", n)
	}
	e.clock.moveOn(31 * time.Minute)
	e.eventually("the end of the thief's connection", func() bool { _, err := thief.get("/a"); return err != nil })
	if status, err := owner.get("/a"); err != nil || status != 200 {
		t.Fatalf("the owner's: %d, %v", status, err)
	}
	serial := fmt.Sprintf("%x", renewed.Leaf.SerialNumber.Bytes())
	e.record("a request under the new certificate", func(r logLine) bool { return r.Kind == kindRequest && r.Serial == serial })
	e.record("the renewal", func(r logLine) bool {
		return r.Kind == kindRenewal && r.Decision == decisionAllow && r.Serial == serial && r.Grant == id
	})
	e.clock.moveOn(time.Hour)
	e.eventually("the end of the owner's", func() bool { _, err := owner.get("/a"); return err != nil })
}

// renewed is how many connections have been renewed.
func (e *env) renewed() (n int) {
	e.px.live.mu.Lock()
	defer e.px.live.mu.Unlock()
	for _, c := range e.px.live.due {
		if c.renewed.Load() != nil {
			n++
		}
	}
	return n
}

// TestRenewalRevoked: news of the new certificate's issuer or of its grant counts at
// once, and that of an issuer that no longer matters does not.
func TestRenewalRevoked(t *testing.T) {
	e := often(start(t, options{upstream: upstreamServer(t, echoHandler)}))
	p := e.pki
	second := p.authority("second grants issuer", p.grantRoot)
	mint := func(id string, by *authority) tls.Certificate {
		return p.mint(leafSpec{uris: []string{grantURI(t, "payments", id, "GET /**")}, issuer: by, eku: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, notAfter: time.Now().Add(2 * time.Hour)})
	}
	deny := func(grants, issuers []string) {
		d := &denials{grants: map[string]time.Time{}, issuers: map[string]time.Time{}}
		for _, g := range grants {
			d.grants[g] = time.Now().Add(time.Hour)
		}
		for _, i := range issuers {
			d.issuers[i] = time.Now().Add(time.Hour)
		}
		e.px.rev.cur.Store(d)
		e.px.cutDenied(d)
	}
	stays, goes := newGrantID(t), newGrantID(t)
	a, b := e.mux(p.grantWithID(stays, time.Hour, "GET /**")), e.mux(p.grantWithID(goes, time.Hour, "GET /**"))
	for _, x := range []struct {
		m  *mux
		id string
	}{{a, stays}, {b, goes}} {
		if status, code := x.m.send(renewTarget, x.m.proof(mint(x.id, second))); status != 200 {
			t.Fatalf("%d %s", status, code)
		}
	}
	deny([]string{goes}, []string{hexSum(p.grantIssuer.cert)})
	if status, err := a.get("/a"); err != nil || status != 200 {
		t.Errorf("one that was renewed by another issuer than the denied: %d, %v", status, err)
	}
	if _, err := b.get("/a"); err == nil {
		t.Error("a revoked grant's connection lives on")
	}
	e.record("the cut", func(r logLine) bool { return r.Kind == kindConnection && r.Reason == reasonRevoked && r.Grant == goes })
	if status, code := a.send(renewTarget, a.proof(p.grantWithID(stays, 3*time.Hour, "GET /**"))); status != 403 || code != reasonIssuerDenied {
		t.Errorf("renewed by the denied issuer: %d %s", status, code)
	}
	deny(nil, []string{hexSum(second.cert)})
	if _, err := a.get("/a"); err == nil {
		t.Error("a connection lives on with a denied issuer's certificate")
	}
}

// TestRenewalRate: one a second, whatever comes, and the rest costs nothing.
func TestRenewalRate(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler)})
	e.px.renewEvery = time.Hour
	id := newGrantID(t)
	m := e.mux(e.pki.grantWithID(id, time.Hour, "GET /**"))
	msg := m.proof(e.pki.grantWithID(id, 2*time.Hour, "GET /**"))
	if status, _ := m.send(renewTarget, []byte{0}); status != 400 {
		t.Errorf("status %d", status)
	}
	for range 5 {
		if status, code := m.send(renewTarget, msg); status != 429 || code != reasonTooOften {
			t.Errorf("%d %s", status, code)
		}
	}
	n := 0
	for _, r := range e.records() {
		if r.Kind == kindRenewal {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d records, want 1", n)
	}
}

// TestReservedTargets cannot be reached by who did not ask for a carrier, nor by
// any request that is not CONNECT.
func TestReservedTargets(t *testing.T) {
	e := often(start(t, options{upstream: upstreamServer(t, func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("the upstream was asked for %s %s", r.Method, r.RequestURI)
	})}))
	id := newGrantID(t)
	cert := e.pki.grantWithID(id, time.Hour, "* /**")
	plain := e.h2session(cert)
	for i, target := range []string{renewTarget, streamTarget} {
		plain.send(uint32(2*i+1), [][2]string{{":method", "CONNECT"}, {":authority", target}}, true)
		plain.next("answer", func(f http2.Frame) bool { return f.Header().Type == http2.FrameHeaders })
	}
	e.eventually("two refusals", func() bool {
		n := 0
		for _, r := range e.records() {
			if r.Method == "CONNECT" && r.Status == 400 {
				n++
			}
		}
		return n == 2
	})
	m := e.mux(cert)
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		r, err := http.NewRequestWithContext(t.Context(), method, "https://localhost/a", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = renewTarget
		res, err := m.cc.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusMisdirectedRequest {
			t.Errorf("%s: %s", method, res.Status)
		}
	}
	for _, target := range []string{"localhost:443", "hallpass!other", "hallpass!renew:443", "hallpass!renew.", "HALLPASS!RENEW"} {
		if status, _ := m.send(target, nil); status != 400 {
			t.Errorf("CONNECT %s: %d", target, status)
		}
	}
	if _, err := New(Config{Settings: func() Settings {
		s := settings(t, e.pki, t.TempDir())
		s.Hosts = []string{renewTarget}
		return s
	}()}); !errors.Is(err, ErrSettings) {
		t.Errorf("hosts may be %q: %v", renewTarget, err)
	}
}

// renewing is a grant of which certificates of an hour come from a clock that the
// proxy, the connector and its source share.
type renewing struct {
	*env
	id     string
	end    time.Time
	source *RenewingSource
	mu     sync.Mutex // owns given
	given  int
}

func (e *env) renewing(end time.Duration, perms ...string) *renewing {
	r := &renewing{env: often(e), id: newGrantID(e.t), end: e.clock.now().Add(end).Truncate(time.Second)} // as in a certificate
	r.source = NewRenewingSource(func(context.Context) (*tls.Certificate, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.given++
		until := e.clock.now().Add(time.Hour)
		if until.After(r.end) {
			until = r.end
		}
		c := e.pki.grantUntil(r.id, until, perms...)
		return &c, nil
	}, e.clock.now)
	return r
}

// listen runs a connector over the grant.
func (r *renewing) listen(edit func(*ConnectorConfig)) string {
	r.t.Helper()
	cfg := r.connectorConfig(r.source)
	cfg.Now = r.clock.now
	if edit != nil {
		edit(&cfg)
	}
	c, err := NewConnector(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	c.look = 5 * time.Millisecond
	return r.serveConnector(c, "127.0.0.1:0")
}

// renewals counts those that the proxy took.
func (r *renewing) renewals() int {
	n := 0
	for _, rec := range r.records() {
		if rec.Kind == kindRenewal && rec.Decision == decisionAllow && rec.Grant == r.id {
			n++
		}
	}
	return n
}

// provenUntil is how long the connection lives with what has been proven on it by now.
func (r *renewing) provenUntil() (until time.Time) {
	r.px.live.mu.Lock()
	defer r.px.live.mu.Unlock()
	for _, c := range r.px.live.due {
		if c.adm.holder() == r.id && c.proven().notAfter.After(until) {
			until = c.proven().notAfter
		}
	}
	return until
}

// live3 has three certificates expire, one after the other, each renewed in time
// and each followed by a talk.
func (r *renewing) live3(talk func() error) {
	r.t.Helper()
	// What has not been answered may not even have been dialled. With the clock moved
	// on before that, it would begin with a certificate of then, and none be due.
	r.talk(talk, "at the beginning")
	for i := range 3 {
		was := r.provenUntil()
		r.clock.moveOn(40 * time.Minute)
		// It is written down before it counts; with the clock moved on between the two it comes too late.
		r.eventually("a renewal", func() bool { return r.renewals() > i && r.provenUntil().After(was) })
		r.talk(talk, fmt.Sprintf("after renewal %d", i+1))
	}
}

func (r *renewing) talk(talk func() error, when string) {
	r.t.Helper()
	if err := talk(); err != nil {
		r.t.Fatalf("%s: %v", when, err)
	}
}

func tcpConnector(c *ConnectorConfig) { c.TCP = true }

// TestStreamRevoked: a revocation cuts what is carried, within the one connection.
func TestStreamRevoked(t *testing.T) {
	r := start(t, options{upstream: "tcp://" + tcpEcho(t), edit: tcpService}).renewing(time.Hour, "tcp")
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", r.listen(tcpConnector))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	r.px.live.cutRevoked([]string{r.id})
	if _, err := io.Copy(io.Discard, c); err == nil {
		t.Error("it looks finished")
	}
	r.record("the end of the stream", func(rec logLine) bool {
		return rec.Protocol == "tcp" && rec.Event == "end" && rec.Reason == reasonRevoked && rec.BytesIn == 5
	})
}
