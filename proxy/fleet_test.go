package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fleet is a running Fleet, and the file that it is configured by.
type fleet struct {
	t    *testing.T
	f    *Fleet
	pki  *pki
	dir  string
	logs *logBuffer
}

const shared = "127.0.0.1:0"

// yaml is a configuration of these services, each under its own name.
func (f *fleet) yaml(services ...string) string {
	return fmt.Sprintf(`
trust_domain: acme.test
identity_bundle: identity-bundle.pem
grants_bundle: grants-bundle.pem
listen: %s
access_log: {path: access.jsonl}
drain: {shutdown: 500ms}
services:
%s`, shared, strings.Join(services, ""))
}

func service(name, upstream, more string) string {
	return fmt.Sprintf("  - {service: %s, hosts: [%[1]s.acme.test], upstream: %[2]q, certificate: %[1]s/cert.pem, key: %[1]s/key.pem%[3]s}\n", name, upstream, more)
}

func (f *fleet) write(text string) {
	f.t.Helper()
	part := filepath.Join(f.dir, "part")
	writeFile(f.t, part, []byte(text))
	if err := os.Rename(part, filepath.Join(f.dir, "proxy.yaml")); err != nil {
		f.t.Fatal(err)
	}
}

func startFleet(t *testing.T, p *pki, services ...string) *fleet {
	t.Helper()
	f := newFleet(t, p, t.TempDir(), services...)
	f.run()
	return f
}

func newFleet(t *testing.T, p *pki, dir string, services ...string) *fleet {
	t.Helper()
	f := &fleet{t: t, pki: p, dir: dir, logs: &logBuffer{}}
	writeFile(t, filepath.Join(f.dir, "identity-bundle.pem"), pemCerts(p.idRoot.cert))
	writeFile(t, filepath.Join(f.dir, "grants-bundle.pem"), pemCerts(p.grantRoot.cert))
	for _, name := range []string{"payments", "ledger", "raw"} {
		dir := filepath.Join(f.dir, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		writePair(t, dir, p.mint(leafSpec{
			uris: []string{"spiffe://acme.test/service/" + name}, dns: []string{name + ".acme.test"}, issuer: p.idIssuer,
			eku: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}))
	}
	f.write(f.yaml(services...))
	load := func() (Settings, error) { return LoadSettings(filepath.Join(f.dir, "proxy.yaml")) }
	s, err := load()
	if err != nil {
		t.Fatal(err)
	}
	f.f, err = NewFleet(FleetConfig{Load: load, Config: Config{Settings: s, Logger: slog.New(slog.NewTextHandler(f.logs, nil))}})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fleet) run() {
	t := f.t
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.f.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(2 * patience):
			t.Error("the fleet did not stop")
		}
		if t.Failed() {
			t.Logf("log:\n%s", f.logs)
		}
	})
	eventually(t, "listening", func() bool { return f.address(shared) != "" })
}

func (f *fleet) address(listen string) string {
	f.f.mu.Lock()
	defer f.f.mu.Unlock()
	if p := f.f.ports[listen]; p != nil && p.serving {
		return p.ln.Addr().String()
	}
	return ""
}

// grant is a certificate for a service.
func (f *fleet) grant(service string, perms ...string) tls.Certificate {
	return f.pki.mint(leafSpec{
		uris: []string{grantURI(f.t, service, newGrantID(f.t), perms...)}, issuer: f.pki.grantIssuer,
		eku: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, notAfter: time.Now().Add(time.Hour),
	})
}

func (f *fleet) tls(cert tls.Certificate, name string) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(f.pki.idRoot.cert)
	return &tls.Config{RootCAs: roots, ServerName: name, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}
}

// client goes to a service by its name, wherever that is.
func (f *fleet) client(cert tls.Certificate, name, listen string, h2 bool) *http.Client {
	address := f.address(listen)
	tr := &http.Transport{TLSClientConfig: f.tls(cert, name), Protocols: new(http.Protocols), DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", address)
	}}
	tr.Protocols.SetHTTP1(!h2)
	tr.Protocols.SetHTTP2(h2)
	f.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 2 * patience}
}

func (f *fleet) get(c *http.Client, host, path string) (int, string, error) {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), http.MethodGet, "https://"+host+path, http.NoBody)
	if err != nil {
		f.t.Fatal(err)
	}
	res, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, string(body), err
}

func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }
}

// TestServicesByName: two services on one address, told apart by the name in the
// handshake. A grant for one opens nothing under the other's name, in the
// handshake or in Host, and a name that nobody has is an alert and a record.
func TestServicesByName(t *testing.T) {
	p := newPKI(t)
	echo := tcpEcho(t)
	f := startFleet(t, p,
		service("payments", upstreamServer(t, says("payments")), ""), service("ledger", upstreamServer(t, says("ledger")), ""),
		service("raw", "tcp://"+echo, ", protocol: tcp"))
	for _, h2 := range []bool{false, true} {
		for _, name := range []string{"payments", "ledger"} {
			c := f.client(f.grant(name, "GET /**"), name+".acme.test", shared, h2)
			if status, body, err := f.get(c, name+".acme.test", "/a"); status != 200 || body != name || err != nil {
				t.Errorf("%s: %d %q, %v", name, status, body, err)
			}
		}
		c := f.client(f.grant("payments", "GET /**"), "payments.acme.test", shared, h2)
		if status, _, err := f.get(c, "ledger.acme.test", "/a"); status != http.StatusMisdirectedRequest || err != nil {
			t.Errorf("another's Host: %d, %v", status, err)
		}
		c = f.client(f.grant("payments", "GET /**"), "ledger.acme.test", shared, h2)
		if status, _, err := f.get(c, "ledger.acme.test", "/a"); err == nil {
			t.Errorf("a grant for payments at ledger: %d", status)
		}
		c = f.client(f.grant("payments", "GET /**"), "nobody.acme.test", shared, h2)
		if _, _, err := f.get(c, "payments.acme.test", "/a"); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
			t.Fatalf("a name that nobody has: %v", err)
		}
	}
	conn, err := (&tls.Dialer{Config: f.tls(f.grant("raw", "tcp"), "raw.acme.test")}).DialContext(t.Context(), "tcp", f.address(shared))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(conn).ReadString('\n'); line != "hello\n" || err != nil {
		t.Errorf("tcp by name: %q, %v", line, err)
	}
	want := map[string]int{reasonUnknownName: 2, reasonWrongService: 2}
	eventually(t, "records", func() bool {
		got := map[string]int{}
		for _, r := range readRecords(t, filepath.Join(f.dir, "access.jsonl")) {
			if r.Kind == kindHandshake && (r.Reason != reasonWrongService || r.Service == "ledger" && r.Grant != "") {
				got[r.Reason]++
			}
		}
		return got[reasonUnknownName] == want[reasonUnknownName] && got[reasonWrongService] == want[reasonWrongService]
	})
	// What is no handshake at all, and who says nothing, cost nobody else anything.
	junk, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", f.address(shared))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = junk.Close() }()
	if _, err := io.WriteString(junk, "GET / HTTP/1.1\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, junk); err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "reset") {
		t.Error(err)
	}
	eventually(t, "a record of what is no TLS", func() bool {
		for _, r := range readRecords(t, filepath.Join(f.dir, "access.jsonl")) {
			if r.Reason == reasonNotTLS {
				return true
			}
		}
		return false
	})
}

// open begins an endless answer and returns a function that says whether it still comes.
func (f *fleet) open(c *http.Client, host string) (goesOn func() error) {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), http.MethodGet, "https://"+host+"/drip", http.NoBody)
	if err != nil {
		f.t.Fatal(err)
	}
	res, err := c.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = res.Body.Close() })
	return func() error {
		_, err := res.Body.Read(make([]byte, 64))
		return err
	}
}

// TestReconfigure: a changed file is taken over without a restart. A service that
// stays keeps its connections, and the next request on them is judged and sent by
// the new rules; one that is new is there; one that is gone drains.
func TestReconfigure(t *testing.T) {
	p := newPKI(t)
	drips := upstreamServer(t, drip)
	f := startFleet(t, p, service("payments", drips, ""), service("ledger", drips, ""))
	pay := f.client(f.grant("payments", "GET /**"), "payments.acme.test", shared, true)
	goesOn := f.open(pay, "payments.acme.test")
	ledger := f.open(f.client(f.grant("ledger", "GET /**"), "ledger.acme.test", shared, false), "ledger.acme.test")
	f.f.mu.Lock()
	px := f.f.members["payments"].px
	f.f.mu.Unlock()
	conns := px.conns.Load()

	// payments gets another upstream and another name, ledger goes, raw comes on another address.
	changed := strings.Replace(service("payments", upstreamServer(t, says("new")), ""), "hosts: [", "hosts: [pay.acme.test, ", 1)
	f.write(f.yaml(changed, service("raw", "tcp://"+tcpEcho(t), ", protocol: tcp, listen: '127.0.0.2:0'")))
	eventually(t, "the change", func() bool { return f.address("127.0.0.2:0") != "" })
	for _, host := range []string{"payments.acme.test", "pay.acme.test"} {
		if status, body, err := f.get(pay, host, "/a"); status != 200 || body != "new" || err != nil {
			t.Errorf("%s: %d %q, %v", host, status, body, err)
		}
	}
	if n := px.conns.Load(); n > conns+1 { // net/http may dial for another authority, and never for the same
		t.Errorf("%d connections, and %d before", n, conns)
	}
	if err := goesOn(); err != nil {
		t.Errorf("the stream of a service that stays: %v", err)
	}
	eventually(t, "the end of a stream of a service that is gone", func() bool { return ledger() != nil })
	if _, _, err := f.get(f.client(f.grant("ledger", "GET /**"), "ledger.acme.test", shared, false), "ledger.acme.test", "/a"); err == nil {
		t.Error("a service that is gone answers")
	}
	conn, err := (&tls.Dialer{Config: f.tls(f.grant("raw", "tcp"), "raw.acme.test")}).DialContext(t.Context(), "tcp", f.address("127.0.0.2:0"))
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()

	// The listener that nobody has any more closes, and its connections stay.
	f.write(f.yaml(strings.Replace(changed, "}", ", listen: '127.0.0.3:0'}", 1)))
	old := f.address(shared)
	eventually(t, "the move", func() bool { return f.address("127.0.0.3:0") != "" && f.address("127.0.0.2:0") == "" })
	if err := goesOn(); err != nil {
		t.Errorf("the stream of a listener that is gone: %v", err)
	}
	if c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", old); err == nil {
		_ = c.Close()
		t.Error("the old listener takes connections")
	}
	if status, body, err := f.get(f.client(f.grant("payments", "GET /**"), "payments.acme.test", "127.0.0.3:0", true), "payments.acme.test", "/a"); status != 200 || err != nil {
		t.Errorf("on the new listener: %d %q, %v", status, body, err)
	}
}

// TestBrokenConfiguration: all or nothing. What cannot be meant, or not be changed
// under way, leaves everything as it was, is logged once and shown by /readyz.
func TestBrokenConfiguration(t *testing.T) {
	p := newPKI(t)
	up := upstreamServer(t, says("as it was"))
	good := service("payments", up, "")
	f := startFleet(t, p, good)
	c := f.client(f.grant("payments", "GET /**"), "payments.acme.test", shared, true)
	other := service("payments", upstreamServer(t, says("half of the new")), "")
	for name, text := range map[string]string{
		"no YAML":              "{",
		"nothing":              "",
		"an unknown key":       f.yaml(other, service("ledger", up, ", colour: blue")),
		"one service twice":    f.yaml(other, service("payments", up, ", listen: '127.0.0.2:0'")),
		"one name twice":       f.yaml(other, strings.Replace(service("ledger", up, ""), "ledger.acme.test", "payments.acme.test", 1)),
		"no name":              f.yaml(other, strings.Replace(service("ledger", up, ""), "ledger.acme.test", "127.0.0.1", 1)),
		"a file that is gone":  f.yaml(other, strings.Replace(service("ledger", up, ""), "ledger/key.pem", "nothing.pem", 1)),
		"another's key":        f.yaml(strings.Replace(other, "payments/key.pem", "ledger/key.pem", 1)),
		"another protocol":     f.yaml(service("payments", "tcp://127.0.0.1:1", ", protocol: tcp")),
		"another trust domain": strings.Replace(f.yaml(other), "acme.test\n", "beta.test\n", 1),
		"another log":          strings.Replace(f.yaml(other), "access.jsonl", "other.jsonl", 1),
		"another limit":        f.yaml(other) + "limits: {max_streams: 3}\n",
		"an address in use":    f.yaml(other, service("ledger", up, ", listen: '"+f.address(shared)+"'")),
		"hosts at the top":     f.yaml(other) + "hosts: [x.acme.test]\n",
	} {
		f.write(text)
		if err := f.f.Reload(); err == nil {
			t.Errorf("%s: no error", name)
		} else if name == "one name twice" && !strings.Contains(err.Error(), "proxy.yaml:10: services[1].hosts[0]") {
			t.Errorf("%s: %v", name, err)
		}
		if ready, why := f.ready(); !ready || !strings.Contains(why, "configuration_refused") {
			t.Errorf("%s: ready %v, %s", name, ready, why)
		}
		if status, body, err := f.get(c, "payments.acme.test", "/a"); body != "as it was" || err != nil {
			t.Errorf("%s: %d %q, %v", name, status, body, err)
		}
	}
	f.write(f.yaml(service("payments", up, ", colour: blue")))
	before := strings.Count(f.logs.String(), "the configuration is refused")
	for range 3 {
		if err := f.f.Reload(); err == nil {
			t.Error("no error")
		}
	}
	if n := strings.Count(f.logs.String(), "the configuration is refused") - before; n > 1 {
		t.Errorf("logged %d times", n)
	}
	f.write(f.yaml(other, service("ledger", up, "")))
	if err := f.f.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, body, err := f.get(c, "payments.acme.test", "/a"); body != "half of the new" || err != nil {
		t.Errorf("once it is good: %q, %v", body, err)
	}
	if ready, why := f.ready(); !ready || strings.Contains(why, "configuration_refused") || !strings.Contains(why, `"ledger"`) {
		t.Errorf("ready %v, %s", ready, why)
	}
}

func (f *fleet) ready() (bool, string) {
	w := httptest.NewRecorder()
	req, err := http.NewRequestWithContext(f.t.Context(), http.MethodGet, "/readyz", http.NoBody)
	if err != nil {
		f.t.Fatal(err)
	}
	f.f.Admin().ServeHTTP(w, req)
	return w.Code == http.StatusOK, w.Body.String()
}

// TestUpstreamChangesItsProtocol: a service whose upstream goes from HTTP/1 to HTTP/2
// without TLS, and back, answers on connections that are older.
func TestUpstreamChangesItsProtocol(t *testing.T) {
	p := newPKI(t)
	plain, h2c := upstreamServer(t, says("HTTP/1")), h2cServer(t, says("h2c"))
	f := startFleet(t, p, service("payments", plain, ""))
	grant := f.grant("payments", "GET /**")
	clients := map[string]*http.Client{"HTTP/1": f.client(grant, "payments.acme.test", shared, false), "HTTP/2": f.client(grant, "payments.acme.test", shared, true)}
	for _, now := range []struct{ upstream, says string }{{plain, "HTTP/1"}, {h2c, "h2c"}, {plain, "HTTP/1"}} {
		f.write(f.yaml(service("payments", now.upstream, "")))
		if err := f.f.Reload(); err != nil {
			t.Fatal(err)
		}
		for name, c := range clients {
			for range 3 {
				if status, body, err := f.get(c, "payments.acme.test", "/a"); status != http.StatusOK || body != now.says || err != nil {
					t.Errorf("%s client, %s upstream: %d %q, %v", name, now.says, status, body, err)
				}
			}
		}
	}
}

// TestConnectionOutlivesItsUpstream: a connection whose upstream goes over to HTTP/2
// between two of its requests takes those that come, with bodies in pieces and
// pipelined, and is read as strictly as before.
func TestConnectionOutlivesItsUpstream(t *testing.T) {
	p := newPKI(t)
	echo := func(who string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			_, _ = fmt.Fprintf(w, "%s %s %s", who, r.URL.Path, body)
		}
	}
	plain, h2c := upstreamServer(t, echo("HTTP/1")), h2cServer(t, echo("h2c"))
	f := startFleet(t, p, service("payments", plain, ""))
	raw, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", f.address(shared))
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, f.tls(f.grant("payments", "GET /**", "POST /**"), "payments.acme.test"))
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(c)
	send := func(text string) {
		t.Helper()
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
	}
	answers := func(status int, want string) {
		t.Helper()
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatalf("%s: %v", want, err)
		}
		defer func() { _ = res.Body.Close() }()
		body, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != status || !strings.Contains(string(body), want) {
			t.Fatalf("%d %q, %v, want %d %s", res.StatusCode, body, err, status, want)
		}
	}
	const host = " HTTP/1.1\r\nHost: payments.acme.test\r\n"
	send("GET /a" + host + "\r\n")
	answers(http.StatusOK, "HTTP/1 /a")
	f.write(f.yaml(service("payments", h2c, "")))
	if err := f.f.Reload(); err != nil {
		t.Fatal(err)
	}
	send("POST /b" + host + "Content-Length: 6\r\n\r\nab")
	send("cdef" + "GET /c" + host + "\r\n" + "GET /d" + host + "\r\n")
	answers(http.StatusOK, "h2c /b abcdef")
	answers(http.StatusOK, "h2c /c")
	answers(http.StatusOK, "h2c /d")
	send("GET /e" + host + "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n")
	answers(http.StatusBadRequest, "Content-Length")
}

// TestConnectionOutlivesItsUpstreamSlowly: while an exchange takes long, a byte of the next request is read ahead, to
// hear whether the client left. It goes along: without it a body would begin with its second byte, and a request with
// the last of the body before.
func TestConnectionOutlivesItsUpstreamSlowly(t *testing.T) {
	p := newPKI(t)
	began, goOn := make(chan struct{}, 1), make(chan struct{})
	slow := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		began <- struct{}{}
		<-goOn
		_, _ = io.WriteString(w, "slow")
	})
	h2c := h2cServer(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, "%s %s %s", r.Method, r.URL.Path, body)
	})
	f := startFleet(t, p, service("payments", slow, ""))
	raw, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", f.address(shared))
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, f.tls(f.grant("payments", "GET /**", "POST /**"), "payments.acme.test"))
	t.Cleanup(func() { _ = c.Close() })
	send := func(text string) {
		t.Helper()
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
	}
	const host = " HTTP/1.1\r\nHost: payments.acme.test\r\n"
	send("GET /a" + host + "\r\n" + "POST /b" + host + "Content-Length: 6\r\n\r\n")
	<-began
	time.Sleep(2 * noticeAfter) // should it not have begun to read ahead yet, there is less to go wrong
	send("abcdef")
	time.Sleep(noticeAfter)
	f.write(f.yaml(service("payments", h2c, "")))
	if err := f.f.Reload(); err != nil {
		t.Fatal(err)
	}
	send("GET /c" + host + "\r\n")
	close(goOn)
	in := bufio.NewReader(c)
	for _, want := range []string{"slow", "POST /b abcdef", "GET /c "} {
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if string(body) != want || err != nil {
			t.Errorf("%q, %v, want %q", body, err, want)
		}
	}
}

// TestRefusedForAWhile: what a configuration was refused for may pass, as a certificate that is
// written a moment after it. The file is then taken over as it is.
func TestRefusedForAWhile(t *testing.T) {
	p := newPKI(t)
	f := startFleet(t, p, service("payments", upstreamServer(t, says("old")), ""))
	key := filepath.Join(f.dir, "payments", "key.pem")
	later, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	f.write(f.yaml(strings.Replace(service("payments", upstreamServer(t, says("new")), ""), "payments/key.pem", "payments/later.pem", 1)))
	eventually(t, "the refusal", func() bool { return strings.Contains(f.logs.String(), "the configuration is refused") })
	writeFile(t, filepath.Join(f.dir, "payments", "later.pem"), later)
	c := f.client(f.grant("payments", "GET /a"), "payments.acme.test", shared, false)
	eventually(t, "the new upstream", func() bool {
		_, body, err := f.get(c, "payments.acme.test", "/a")
		return err == nil && body == "new"
	})
}
