package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hallpass/hallpass/proxy/records"
)

const (
	testTD      = "acme.test"
	testGrantTD = "grants.acme.test"
	alice       = "spiffe://acme.test/user/alice"
	patience    = 30 * time.Second // for what should come at once, on a busy machine
)

// clock is a wall clock that can be moved, as a suspended laptop's is.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) moveOn(by time.Duration) { c.ahead.Add(int64(by)) }

// env is a running proxy.
type env struct {
	t     testing.TB
	pki   *pki
	dir   string
	addr  string
	px    *Proxy
	clock *clock
	logs  *logBuffer
	stop  context.CancelFunc
	done  chan struct{}

	settings Settings
}

type options struct {
	pki      *pki
	upstream string
	edit     func(*Settings)
	config   func(*Config)
	listen   func(net.Listener) net.Listener // what is served in place of it; nil: itself
}

// settings writes certificate files into dir and gives the settings over them.
func settings(t testing.TB, p *pki, dir string) Settings {
	t.Helper()
	writePair(t, dir, p.serviceSVID("payments"))
	writeFile(t, filepath.Join(dir, "identity-bundle.pem"), pemCerts(p.idRoot.cert))
	writeFile(t, filepath.Join(dir, "grants-bundle.pem"), pemCerts(p.grantRoot.cert))
	return Settings{
		Service: "payments", Listen: "127.0.0.1:0", Hosts: []string{"localhost", "127.0.0.1", "payments.acme.test"},
		Upstream: "http://127.0.0.1:1", TrustDomain: testTD, GrantTrustDomain: testGrantTD,
		Certificate: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"),
		IdentityBundle: filepath.Join(dir, "identity-bundle.pem"), GrantsBundle: filepath.Join(dir, "grants-bundle.pem"),
		AccessLog: AccessLogSettings{Path: filepath.Join(dir, "access.jsonl")},
		Drain:     DrainSettings{Shutdown: 500 * time.Millisecond},
	}
}

func start(t testing.TB, o options) *env {
	t.Helper()
	e := &env{t: t, pki: o.pki, dir: t.TempDir(), clock: &clock{}, logs: &logBuffer{}, done: make(chan struct{})}
	if e.pki == nil {
		e.pki = newPKI(t)
	}
	s := settings(t, e.pki, e.dir)
	if o.upstream != "" {
		s.Upstream = o.upstream
	}
	if o.edit != nil {
		o.edit(&s)
	}
	cfg := Config{Settings: s, Now: e.clock.now, Logger: slog.New(slog.NewTextHandler(e.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	if o.config != nil {
		o.config(&cfg)
	}
	px, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	e.px, e.settings = px, s
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e.addr = ln.Addr().String()
	if o.listen != nil {
		ln = o.listen(ln)
	}
	ctx, stop := context.WithCancel(context.Background())
	e.stop = stop
	go func() {
		defer close(e.done)
		if err := px.Serve(ctx, ln); err != nil {
			t.Errorf("Serve: %v", err)
		}
	}()
	t.Cleanup(func() {
		e.shutdown()
		if t.Failed() {
			t.Logf("proxy log:\n%s", e.logs)
		}
	})
	return e
}

// with is e, failing the subtest t.
func (e *env) with(t testing.TB) *env {
	sub := *e
	sub.t = t
	return &sub
}

func (e *env) shutdown() {
	e.stop()
	select {
	case <-e.done:
	case <-time.After(2 * patience):
		e.t.Error("the proxy did not stop")
	}
}

// tlsConfig is a client's: it shows cert and trusts the identity root.
func (e *env) tlsConfig(cert tls.Certificate, protocols ...string) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(e.pki.idRoot.cert)
	cfg := &tls.Config{RootCAs: roots, ServerName: "localhost", NextProtos: protocols, MinVersion: tls.VersionTLS12}
	if cert.Certificate != nil {
		cfg.Certificates = []tls.Certificate{cert}
	}
	return cfg
}

// dial opens a TLS connection; what the proxy refuses shows at the first read.
func (e *env) dial(cert tls.Certificate, protocols ...string) *tls.Conn {
	e.t.Helper()
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: patience}, Config: e.tlsConfig(cert, protocols...)}
	c, err := d.DialContext(e.t.Context(), "tcp", e.addr)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { _ = c.Close() })
	t, ok := c.(*tls.Conn)
	if !ok {
		e.t.Fatal("no TLS connection")
	}
	if err := t.SetDeadline(time.Now().Add(2 * patience)); err != nil {
		e.t.Fatal(err)
	}
	return t
}

// client is an HTTP client of one version that shows cert.
func (e *env) client(cert tls.Certificate, h2 bool) *http.Client {
	e.t.Helper()
	tr := &http.Transport{TLSClientConfig: e.tlsConfig(cert), DisableCompression: true, Protocols: new(http.Protocols)}
	if h2 {
		tr.Protocols.SetHTTP2(true)
	} else {
		tr.Protocols.SetHTTP1(true)
	}
	e.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 4 * patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// answer is a response, read.
type answer struct {
	status int
	header http.Header
	body   string
}

func (e *env) do(c *http.Client, method, path string, headers ...string) (answer, error) {
	e.t.Helper()
	req, err := http.NewRequestWithContext(e.t.Context(), method, "https://"+e.addr+path, http.NoBody)
	if err != nil {
		return answer{}, err
	}
	for i := 0; i+1 < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
			continue
		}
		req.Header.Add(headers[i], headers[i+1])
	}
	res, err := c.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, string(body)}, err
}

func (e *env) must(c *http.Client, method, path string, headers ...string) answer {
	e.t.Helper()
	a, err := e.do(c, method, path, headers...)
	if err != nil {
		e.t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

// raw writes bytes on an HTTP/1 connection and returns all that comes back until
// the proxy closes it.
func (e *env) raw(cert tls.Certificate, text string) string {
	e.t.Helper()
	c := e.dial(cert, "http/1.1")
	_, _ = io.WriteString(c, text) // an early refusal may cut it short
	got, _ := io.ReadAll(c)
	_ = c.Close()
	return string(got)
}

// logLine is an access record as others read it.
type logLine struct {
	Time       time.Time `json:"time"`
	Kind       string    `json:"kind"`
	Event      string    `json:"event"`
	Conn       uint64    `json:"conn"`
	Service    string    `json:"service"`
	Subject    string    `json:"subject"`
	Grant      string    `json:"grant"`
	Issuer     string    `json:"issuer"`
	Serial     string    `json:"serial"`
	Permission string    `json:"permission"`
	Decision   string    `json:"decision"`
	Reason     string    `json:"reason"`
	Protocol   string    `json:"protocol"`
	Method     string    `json:"method"`
	Path       string    `json:"path"`
	Status     int       `json:"status"`
	Requests   int64     `json:"requests"`
	Missed     int64     `json:"missed"`
	BytesIn    int64     `json:"bytes_in"`
	BytesOut   int64     `json:"bytes_out"`
	DurationMS float64   `json:"duration_ms"`
	Peer       string    `json:"peer"`
	TraceID    string    `json:"trace_id"`
	Emergency  bool      `json:"emergency"`
	Rule       string    `json:"rule"`
	WouldDeny  string    `json:"would_deny"`

	Database    string `json:"database"`
	Role        string `json:"role"`
	Query       string `json:"query"`
	Fingerprint string `json:"fingerprint"`
	QueryBytes  int    `json:"query_bytes"`
}

// records reads the access log as it stands.
func (e *env) records() []logLine { return readRecords(e.t, filepath.Join(e.dir, "access.jsonl")) }

func readRecords(t testing.TB, path string) []logLine {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []logLine
	for line := range strings.Lines(string(data)) {
		if !strings.HasSuffix(line, "\n") {
			break // being written
		}
		if _, ok := records.ParseFirst([]byte(strings.TrimSuffix(line, "\n"))); ok {
			continue
		}
		var r logLine
		dec := json.NewDecoder(strings.NewReader(line))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&r); err != nil {
			t.Fatalf("access log line %q: %v", line, err)
		}
		out = append(out, r)
	}
	return out
}

// record waits for a record that matches.
func (e *env) record(what string, match func(logLine) bool) logLine {
	e.t.Helper()
	// A request that takes over a second, as any may on a busy machine, has a record at its beginning, too.
	return e.anyRecord(what, func(r logLine) bool { return (r.Kind != kindRequest || r.Event == "end") && match(r) })
}

// anyRecord is record, with those of requests' beginnings.
func (e *env) anyRecord(what string, match func(logLine) bool) logLine {
	e.t.Helper()
	var found logLine
	e.eventually("a record of "+what, func() bool {
		for _, r := range e.records() {
			if match(r) {
				found = r
				return true
			}
		}
		return false
	})
	return found
}

func (e *env) eventually(what string, ok func() bool) {
	e.t.Helper()
	eventually(e.t, what, ok)
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("no %s within %s", what, patience)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// echoUpstream tells in JSON what it was asked.
type seen struct {
	Method, Target, Host, Proto string
	Header                      http.Header
	Body                        string
	Trailer                     http.Header
}

func echoHandler(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(seen{r.Method, r.RequestURI, r.Host, r.Proto, r.Header, string(body), r.Trailer})
}

func upstreamServer(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	return srv.URL
}

func (a answer) seen(t testing.TB) seen {
	t.Helper()
	var s seen
	if err := json.Unmarshal([]byte(a.body), &s); err != nil {
		t.Fatalf("status %d, body %q: %v", a.status, a.body, err)
	}
	return s
}

func (a answer) problem(t testing.TB) problem {
	t.Helper()
	var p problem
	if err := json.Unmarshal([]byte(a.body), &p); err != nil {
		t.Fatalf("status %d, body %q: %v", a.status, a.body, err)
	}
	return p
}

// logBuffer keeps what the proxy logs.
type logBuffer struct {
	mu  sync.Mutex // owns buf
	buf strings.Builder
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func contextWithCancel(t testing.TB) (context.Context, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	return ctx, cancel
}

func unixTransport(path string) *http.Transport {
	return &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}
}

// tcpEcho gives back what it is sent.
func tcpEcho(t testing.TB) string {
	t.Helper()
	return hostOf(rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) { _, _ = io.Copy(c, r) }))
}

// hostOf is the address in an upstream's URL.
func hostOf(upstream string) string {
	_, host, _ := strings.Cut(upstream, "://")
	return host
}
