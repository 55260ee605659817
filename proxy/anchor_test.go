package proxy

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hallpass/hallpass/proxy/records"
)

// anchors are what a control node was told of access logs.
type anchors struct {
	amu    sync.Mutex // owns what follows
	heads  []anchorInput
	by     []string
	answer int // another than 200
}

func (n *controlNode) serveAnchors(w http.ResponseWriter, r *http.Request) {
	n.amu.Lock()
	defer n.amu.Unlock()
	var in anchorInput
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.Method != http.MethodPost {
		http.Error(w, "no", http.StatusBadRequest)
		return
	}
	if n.answer != 0 {
		w.WriteHeader(n.answer)
		_, _ = w.Write([]byte(`{"detail":"it had more lines\u001b"}`))
		return
	}
	n.heads, n.by = append(n.heads, in), append(n.by, r.TLS.PeerCertificates[0].URIs[0].String())
	_, _ = w.Write([]byte(`{}`))
}

func (a *anchors) setAnswer(status int) {
	a.amu.Lock()
	defer a.amu.Unlock()
	a.answer = status
}

// anchored is the newest head that was told, with all that were.
func (a *anchors) anchored() (records.Head, []anchorInput) {
	a.amu.Lock()
	defer a.amu.Unlock()
	all := slices.Clone(a.heads)
	for _, in := range slices.Backward(all) {
		if in.Size > 0 {
			return records.Head{Log: in.Log, Size: in.Size, Root: in.Root}, all
		}
	}
	return records.Head{}, all
}

// TestAnchored: within seconds the control nodes have the head of what is in the
// file, in the service's name, and what the service lets through without a grant.
func TestAnchored(t *testing.T) {
	p := newPKI(t)
	node := startControl(t, p, nodeOne, feedDoc{Epoch: 1, Revision: 1, VerifiedAt: time.Now()})
	e := start(t, options{pki: p, upstream: upstreamServer(t, echoHandler), edit: func(s *Settings) {
		withFeed(node.url)(s)
		s.Allow = []AllowSettings{{Under: "spiffe://acme.test/monitor", Permissions: []string{"GET /healthz"}}}
		s.Observe = []ObserveSettings{{Permissions: []string{"POST /pay"}, Until: time.Now().UTC().AddDate(0, 0, 3).Format(time.DateOnly)}}
	}})
	shake(t, e, p.mint(leafSpec{uris: []string{grantURI(t, "ledger", newGrantID(t), "GET /**")}, issuer: p.grantIssuer, notAfter: time.Now().Add(time.Hour)}))
	soon(t, "the log is anchored as it is", func() bool {
		head, _ := node.anchored()
		return head.Size > 1 && head == e.px.access.head()
	})
	_, all := node.anchored()
	var open []string
	for i, in := range all {
		if in.Settings != nil {
			open = append(open, in.Settings.Open...)
			if in.Settings.Mode != "enforce" || len(in.Settings.SHA256) != 64 {
				t.Errorf("%+v", in.Settings)
			}
		}
		if i > 0 && in.SentMS <= all[i-1].SentMS {
			t.Errorf("sent at %d, and before at %d", in.SentMS, all[i-1].SentMS)
		}
	}
	if len(open) != 2 || !strings.HasSuffix(open[0], ": POST /pay") || open[1] != "allow all under spiffe://acme.test/monitor: GET /healthz" {
		t.Errorf("what is open is told as %q", open)
	}
	if node.by[0] != "spiffe://acme.test/service/payments" {
		t.Errorf("by %s", node.by[0])
	}
	shake(t, e, p.identity(alice))
	e.shutdown()
	head, _ := node.anchored()
	f, err := os.Open(e.settings.AccessLog.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var end records.Head
	err = records.Scan(f, func(l records.Line) error {
		end = l.Tree.Head(l.Log)
		return nil
	})
	if err != nil || end != head {
		t.Errorf("the file ends with %+v, anchored is %+v; %v", end, head, err)
	}
}

// anAnchorer anchors a log of its own at nodes, as a service.
func anAnchorer(t *testing.T, p *pki, l *accessLog, service string, nodes ...*controlNode) *anchorer {
	t.Helper()
	id := "spiffe://acme.test/service/" + service
	cert := p.identity(id)
	a := &anchorer{
		self: id, access: l, log: slog.New(slog.DiscardHandler), now: time.Now, every: 10 * time.Millisecond, trouble: new(trouble),
		tls: func() *tls.Config {
			return &tls.Config{Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}
		},
		inForce: func() openness { return openness{SHA256: strings.Repeat("0", 64), Mode: "enforce", Open: []string{}} },
	}
	for _, n := range nodes {
		u, err := url.Parse(n.url)
		if err != nil {
			t.Fatal(err)
		}
		a.servers = append(a.servers, u)
	}
	return a
}

func (a *anchorer) start(t *testing.T) {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
}

func aRecord(t *testing.T, l *accessLog) {
	t.Helper()
	if err := l.write(&record{time: time.Now(), kind: kindRequest, event: "end", path: "/x"}); err != nil {
		t.Fatal(err)
	}
}

// TestAnchorsLater: while no node answers the log goes on, and is anchored as soon as
// one does, whichever.
func TestAnchorsLater(t *testing.T) {
	p := newPKI(t)
	doc := feedDoc{Epoch: 1, Revision: 1, VerifiedAt: time.Now()}
	first, second := startControl(t, p, nodeOne, doc), startControl(t, p, "spiffe://acme.test/node/n2", doc)
	first.stop()
	second.setAnswer(http.StatusServiceUnavailable)
	l := openRotating(t, filepath.Join(t.TempDir(), "access.jsonl"), logRotation{}, &clock{})
	a := anAnchorer(t, p, l, "payments", first, second)
	aRecord(t, l)
	a.start(t)
	soon(t, "the trouble is told", func() bool { return strings.Contains(a.trouble.get(), "503") })
	aRecord(t, l)
	second.setAnswer(0)
	soon(t, "the log is anchored", func() bool { h, _ := second.anchored(); return h == l.head() })
	soon(t, "the trouble is over", func() bool { return a.trouble.get() == "" })
	_, all := second.anchored()
	time.Sleep(100 * time.Millisecond)
	if _, again := second.anchored(); len(again) != len(all) {
		t.Errorf("told %d times, and then %d times, of a log that is the same", len(all), len(again))
	}
}

// TestAnchorsUnderANewName: a log of which the cluster knows something else goes on
// under a new name, each after the root of the one before.
func TestAnchorsUnderANewName(t *testing.T) {
	p := newPKI(t)
	node := startControl(t, p, nodeOne, feedDoc{Epoch: 1, Revision: 1, VerifiedAt: time.Now()})
	path := filepath.Join(t.TempDir(), "access.jsonl")
	l := openRotating(t, path, logRotation{}, &clock{})
	was := l.head().Log
	aRecord(t, l)
	node.setAnswer(http.StatusConflict)
	a := anAnchorer(t, p, l, "payments", node)
	a.start(t)
	soon(t, "the log has another name", func() bool { return l.head().Log != was })
	if text := a.trouble.get(); !strings.Contains(text, "it had more lines") || strings.Contains(text, "\x1b") {
		t.Errorf("told is %q", text)
	}
	node.setAnswer(0)
	soon(t, "it is anchored", func() bool { h, _ := node.anchored(); return h == l.head() })
	readChain(t, []string{path})
}

// TestOneServiceAnchors: of two that write one log one anchors it; when that one has
// left, the other does, under a new name, and both told what they let through.
func TestOneServiceAnchors(t *testing.T) {
	p := newPKI(t)
	node := startControl(t, p, nodeOne, feedDoc{Epoch: 1, Revision: 1, VerifiedAt: time.Now()})
	path := filepath.Join(t.TempDir(), "access.jsonl")
	l := openRotating(t, path, logRotation{}, &clock{})
	one, two := anAnchorer(t, p, l, "payments", node), anAnchorer(t, p, l, "ledger", node)
	for range 2 {
		for _, a := range []*anchorer{one, two} {
			if err := a.anchor(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, all := node.anchored()
	if len(all) != 2 || all[0].Size != 1 || all[1].Size != 0 || all[0].Settings == nil || all[1].Settings == nil || node.by[1] != two.self {
		t.Fatalf("%+v by %v", all, node.by)
	}
	l.leave(two.self) // it anchors nothing
	aRecord(t, l)
	l.leave(one.self)
	two.last(t.Context())
	head, all := node.anchored()
	if len(all) != 3 || head.Log == all[0].Log || head != l.head() || node.by[2] != two.self {
		t.Errorf("%+v by %v", all, node.by)
	}
	readChain(t, []string{path})
	if text, err := os.ReadFile(path); err != nil || strings.Count(string(text), `"kind":"log"`) != 2 {
		t.Errorf("%s, %v", text, err)
	}
}

// TestOpennessIsBounded: however many rules there are and however long, as much is
// told as nodes take, in plain ASCII.
func TestOpennessIsBounded(t *testing.T) {
	p := newPKI(t)
	s := settings(t, p, t.TempDir())
	for range 2 * maxOpenLines {
		s.Allow = append(s.Allow, AllowSettings{ID: "spiffe://acme.test/monitor", Permissions: []string{"GET /a", "GET /%E2%80%AE"}})
	}
	for i := range 30 {
		s.Allow[0].Permissions = append(s.Allow[0].Permissions, "GET /"+strings.Repeat("x", i+1))
	}
	cfg, err := newConfig(Config{Settings: s})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(cfg.open.Open); n != maxOpenLines || cfg.open.Open[n-1] != "and 33 more" || len(cfg.open.Open[0]) != maxOpenLine {
		t.Errorf("%d lines, the first of %d bytes, the last %q", n, len(cfg.open.Open[0]), cfg.open.Open[n-1])
	}
	again, err := newConfig(Config{Settings: s})
	if err != nil || again.open.SHA256 != cfg.open.SHA256 {
		t.Errorf("the same settings have the hashes %s and %s, %v", cfg.open.SHA256, again.open.SHA256, err)
	}
	s.Mode, s.Until = "observe", time.Now().UTC().AddDate(0, 0, 1).Format(time.DateOnly)
	other, err := newConfig(Config{Settings: s})
	if err != nil || other.open.SHA256 == cfg.open.SHA256 || other.open.Mode != "observe" || other.open.UntilMS <= time.Now().UnixMilli() {
		t.Errorf("%+v, %v", other, err)
	}
}
