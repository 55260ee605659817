package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// controlNode is a control node's revocation feed and nothing else.
type controlNode struct {
	t        testing.TB
	url      string
	srv      *http.Server
	requests atomic.Int64
	peers    sync.Map                         // SPIFFE IDs of those who asked
	denied   atomic.Pointer[x509.Certificate] // whose certificates it refuses

	mu      sync.Mutex // owns what follows
	doc     feedDoc
	mute    bool     // sends no heartbeats
	roots   []string // documents that it serves
	told    []report // of certificates that were shown
	deaf    bool     // to those
	changed chan struct{}
	anchors
}

func startControl(t testing.TB, p *pki, id string, doc feedDoc) *controlNode {
	t.Helper()
	return startControlWith(t, p, doc, p.mint(leafSpec{
		uris: []string{id}, dns: []string{"localhost"}, issuer: p.idIssuer,
		eku: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}))
}

func startControlWith(t testing.TB, p *pki, doc feedDoc, cert tls.Certificate) *controlNode {
	t.Helper()
	n := &controlNode{t: t, doc: doc, changed: make(chan struct{})}
	roots := x509.NewCertPool()
	roots.AddCert(p.idRoot.cert)
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.url = "https://" + ln.Addr().String()
	n.srv = &http.Server{
		Handler: n, ReadHeaderTimeout: patience,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots, MinVersion: tls.VersionTLS13},
		ErrorLog:  slog.NewLogLogger(slog.DiscardHandler, 0),
	}
	n.srv.TLSConfig.VerifyConnection = func(cs tls.ConnectionState) error {
		if denied := n.denied.Load(); denied != nil && slices.ContainsFunc(cs.PeerCertificates, denied.Equal) {
			return errors.New("signed by an issuer that was denied")
		}
		return nil
	}
	go func() { _ = n.srv.ServeTLS(ln, "", "") }() // ends with Close
	t.Cleanup(n.stop)
	return n
}

func (n *controlNode) stop() { _ = n.srv.Close() }

func (n *controlNode) set(edit func(*feedDoc)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	edit(&n.doc)
	close(n.changed)
	n.changed = make(chan struct{})
}

func (n *controlNode) revoke(ids ...string) {
	n.set(func(d *feedDoc) {
		d.Revision++
		d.VerifiedAt = time.Now()
		for _, id := range ids {
			d.Grants = append(d.Grants, feedEntry{id, time.Now().Add(time.Hour)})
		}
	})
}

func (n *controlNode) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n.requests.Add(1)
	n.peers.Store(r.TLS.PeerCertificates[0].URIs[0].String(), true)
	if r.URL.Path == "/v1/roots" {
		n.serveRoots(w)
		return
	}
	if r.URL.Path == "/v1/certificates/seen" {
		n.serveSeen(w, r)
		return
	}
	if r.URL.Path == "/v1/access/anchors" {
		n.serveAnchors(w, r)
		return
	}
	if r.URL.Path != "/v1/revocations" || r.Header.Get("Accept") != "text/event-stream" {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	send := func(name string, v any) bool {
		data, err := json.Marshal(v)
		if err != nil {
			return false
		}
		_, err = fmt.Fprintf(w, ":comment\nid: 1\nevent: %s\ndata: %s\n\n", name, data)
		return err == nil && http.NewResponseController(w).Flush() == nil
	}
	for {
		n.mu.Lock()
		doc, mute, changed := n.doc, n.mute, n.changed
		doc.Roots = uint64(len(n.roots))
		n.mu.Unlock()
		if !send("feed", doc) {
			return
		}
		beat := time.NewTicker(20 * time.Millisecond)
		for wait := true; wait; {
			select {
			case <-r.Context().Done():
				beat.Stop()
				return
			case <-changed:
				wait = false
			case <-beat.C:
				if !mute && !send("heartbeat", heartbeat{Revision: doc.Revision, VerifiedAt: time.Now(), Roots: doc.Roots}) {
					beat.Stop()
					return
				}
			}
		}
		beat.Stop()
	}
}

func withFeed(servers ...string) func(*Settings) {
	return func(s *Settings) {
		s.Revocation.Servers = servers
		s.Revocation.StateFile = filepath.Join(filepath.Dir(s.Certificate), "revocations.json")
	}
}

const nodeOne = "spiffe://acme.test/node/n1"

// TestRevocationCuts: a revoked grant's live connections end at once, on every
// protocol; other grants' do not; nothing revoked is admitted again, nor after a
// restart without any control node.
func TestRevocationCuts(t *testing.T) {
	p := newPKI(t)
	node := startControl(t, p, nodeOne, feedDoc{Epoch: 1, Revision: 1, VerifiedAt: time.Now()})
	web, ws, rpc := upstreamServer(t, drip), wsUpstream(t), echoGRPC(t)
	tcp, _ := tcpUpstream(t)
	for _, row := range []struct {
		name, upstream, perm string
		open                 aLiveOne
		edit                 func(*Settings)
	}{
		{"http1", web, "GET /**", download(false), nil},
		{"http2", web, "GET /**", download(true), nil},
		{"idle", web, "GET /**", idle("h2"), nil},
		{"websocket", ws, "GET /ws", liveWebSocket, nil},
		{"grpc", rpc, "grpc a.B/*", liveGRPC, nil},
		{"tcp", tcp, "tcp", liveTCP, tcpService},
	} {
		t.Run(row.name, func(t *testing.T) {
			e := start(t, options{pki: p, upstream: row.upstream, edit: func(s *Settings) {
				withFeed(node.url)(s)
				if row.edit != nil {
					row.edit(s)
				}
			}})
			e.eventually("feed", func() bool { return e.px.rev.cur.Load().epoch == 1 })
			id := newGrantID(t)
			broken := row.open(e, p.grantWithID(id, time.Hour, row.perm))
			other := row.open(e, p.grant(time.Hour, row.perm))
			otherEnded := make(chan error, 1)
			go func() { otherEnded <- other() }()
			began := time.Now()
			node.revoke(id)
			if err := broken(); err == nil {
				t.Error("the stream ended well")
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("cut after %s", took)
			} else {
				t.Logf("cut after %s", took)
			}
			r := e.record("the cut", func(r logLine) bool { return r.Reason == reasonRevoked && r.Event == "end" })
			if r.Grant != id {
				t.Errorf("record %+v", r)
			}
			select {
			case err := <-otherEnded:
				t.Errorf("another grant's connection ended: %v", err)
			default:
			}
			if err := readError(e.dial(p.grantWithID(id, time.Hour, row.perm))); err == nil {
				t.Error("a revoked grant was admitted")
			}
			e.shutdown()
			if err := <-otherEnded; err == nil {
				t.Error("the other stream ended well")
			}

			info, err := os.Stat(filepath.Join(e.dir, "revocations.json"))
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("state file %v, %v", info, err)
			}
			again := start(t, options{pki: p, upstream: row.upstream, edit: func(s *Settings) {
				withFeed("https://127.0.0.1:1")(s)
				s.Revocation.StateFile = filepath.Join(e.dir, "revocations.json")
				if row.edit != nil {
					row.edit(s)
				}
			}})
			if err := readError(again.dial(p.grantWithID(id, time.Hour, row.perm))); err == nil {
				t.Error("restarted while cut off, the proxy admits what it knew to be revoked")
			}
			again.record("the refusal", func(r logLine) bool { return r.Kind == kindHandshake && r.Reason == reasonRevoked && r.Grant == id })
		})
	}
	if _, ok := node.peers.Load("spiffe://acme.test/service/payments"); !ok {
		t.Error("the node did not see the service's own SVID")
	}
}

// TestIssuerDenied: everything an issuer signed is refused and cut.
func TestIssuerDenied(t *testing.T) {
	p := newPKI(t)
	node := startControl(t, p, nodeOne, feedDoc{Epoch: 1, Revision: 1, VerifiedAt: time.Now()})
	e := start(t, options{pki: p, upstream: upstreamServer(t, drip), edit: withFeed(node.url)})
	broken := download(true)(e, p.grant(time.Hour, "GET /**"))
	node.set(func(d *feedDoc) {
		d.Revision++
		d.Issuers = []feedEntry{{hexSum(p.grantIssuer.cert), time.Now().Add(time.Hour)}}
	})
	if err := broken(); err == nil || err == errWhole { //nolint:errorlint // a marker, never wrapped
		t.Error("the stream ended well")
	}
	if err := readError(e.dial(p.grant(time.Hour, "GET /**"))); err == nil {
		t.Error("admitted")
	}
	e.record("the cut", func(r logLine) bool { return r.Kind == kindConnection && r.Reason == reasonIssuerDenied })
	e.record("the refusal", func(r logLine) bool { return r.Kind == kindHandshake && r.Reason == reasonIssuerDenied })
	other := *p
	other.grantIssuer = p.authority("another issuer", p.grantRoot)
	if a := e.must(e.client(other.grant(time.Hour, "HEAD /x"), true), "GET", "/"); a.status != 403 {
		t.Errorf("another issuer's grant: %d", a.status)
	}
}

// TestFeedImpostors: who is not a control node of our domain is not listened to.
func TestFeedImpostors(t *testing.T) {
	p := newPKI(t)
	stranger := newPKI(t)
	server := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	lie := feedDoc{Epoch: 99, Revision: 99, VerifiedAt: time.Now()}
	var urls []string
	for _, cert := range []tls.Certificate{
		p.mint(leafSpec{uris: []string{"spiffe://acme.test/service/payments"}, dns: []string{"localhost"}, issuer: p.idIssuer, eku: server}),
		p.mint(leafSpec{uris: []string{"spiffe://acme.test/nodes/n1"}, dns: []string{"localhost"}, issuer: p.idIssuer, eku: server}),
		p.mint(leafSpec{uris: []string{"spiffe://grants.acme.test/node/n1"}, issuer: p.grantIssuer, eku: server}),
		p.mint(leafSpec{uris: []string{nodeOne}, issuer: p.grantIssuer, eku: server}),
		p.mint(leafSpec{uris: []string{nodeOne}, issuer: stranger.idIssuer, eku: server}),
		p.mint(leafSpec{uris: []string{nodeOne}, issuer: p.idIssuer, eku: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}),
	} {
		urls = append(urls, startControlWith(t, p, lie, cert).url)
	}
	honest := startControl(t, p, nodeOne, feedDoc{Epoch: 1, Revision: 5, VerifiedAt: time.Now()})
	e := start(t, options{pki: p, edit: withFeed(append(urls, honest.url)...)})
	e.eventually("the honest node's word", func() bool { return e.px.rev.cur.Load().epoch != 0 })
	if d := e.px.rev.cur.Load(); d.epoch != 1 || d.revision != 5 {
		t.Errorf("epoch %d revision %d", d.epoch, d.revision)
	}
}

// TestFeedFailover: when a node dies, the next one is asked.
func TestFeedFailover(t *testing.T) {
	p := newPKI(t)
	one := startControl(t, p, nodeOne, feedDoc{Epoch: 1, Revision: 1, VerifiedAt: time.Now()})
	two := startControl(t, p, "spiffe://acme.test/node/n2", feedDoc{Epoch: 1, Revision: 1, VerifiedAt: time.Now()})
	e := start(t, options{pki: p, edit: withFeed(one.url, two.url)})
	e.eventually("feed", func() bool { return e.px.rev.cur.Load().revision == 1 })
	one.stop()
	two.revoke(newGrantID(t))
	e.eventually("news from the other node", func() bool { return e.px.rev.cur.Load().revision == 2 })
}

// TestStolenNodeDeafensNobody: a thief with a node's key tells a revision, and then
// an epoch, that no honest node ever reaches. Once the node is gone, what the others
// revoke is cut and refused all the same, and known after a restart.
func TestStolenNodeDeafensNobody(t *testing.T) {
	for what, lie := range map[string]feedDoc{
		"revision": {Epoch: 1, Revision: math.MaxUint64},
		"epoch":    {Epoch: math.MaxUint64, Revision: 1},
	} {
		t.Run(what, func(t *testing.T) {
			p := newPKI(t)
			lie.VerifiedAt = time.Now()
			thief := startControl(t, p, nodeOne, lie)
			honest := startControl(t, p, "spiffe://acme.test/node/n2", feedDoc{Epoch: 1, Revision: 7, VerifiedAt: time.Now()})
			e := start(t, options{pki: p, upstream: upstreamServer(t, drip), edit: withFeed(thief.url, honest.url)})
			e.eventually("the lie", func() bool { return e.px.rev.cur.Load().epoch == lie.Epoch })
			id := newGrantID(t)
			stream := idle("h2")(e, p.grantWithID(id, time.Hour, "GET /**"))
			thief.stop()
			honest.revoke(id)
			if err := stream(); err == nil {
				t.Error("the stream ended well")
			}
			e.record("the cut", func(r logLine) bool { return r.Event == "end" && r.Reason == reasonRevoked && r.Grant == id })
			if err := readError(e.dial(p.grantWithID(id, time.Hour, "GET /**"))); err == nil {
				t.Error("a revoked grant was admitted")
			}
			e.eventually("it is on disk", func() bool {
				again, err := openRevocations(e.px.cfg)
				return err == nil && again.cur.Load().denies(&admission{grantID: id}) == reasonRevoked
			})
		})
	}
}

// TestStaleness: with max_staleness, silence closes the service: what is under
// way is cut, what comes is answered 503, and news opens it again.
func TestStaleness(t *testing.T) {
	p := newPKI(t)
	node := startControl(t, p, nodeOne, feedDoc{Epoch: 1, Revision: 1, VerifiedAt: time.Now()})
	e := start(t, options{pki: p, upstream: upstreamServer(t, drip), edit: func(s *Settings) {
		withFeed(node.url)(s)
		s.Revocation.MaxStaleness = time.Second
	}})
	e.eventually("feed", func() bool { return !e.px.rev.stale() })
	cert := p.grant(time.Hour, "GET /**")
	broken := download(true)(e, cert)
	node.set(func(d *feedDoc) { node.mute = true; d.VerifiedAt = time.Now() })
	if err := broken(); err == nil || err == errWhole { //nolint:errorlint // a marker, never wrapped
		t.Error("the stream ended well")
	}
	e.record("the cut", func(r logLine) bool { return r.Reason == reasonStale })
	if a := e.must(e.client(cert, true), "GET", "/"); a.status != http.StatusServiceUnavailable || a.problem(t).Code != reasonStale {
		t.Errorf("%d %s", a.status, a.body)
	}
	if ready, _ := e.ready(); ready {
		t.Error("ready while closed")
	}
	node.set(func(d *feedDoc) { node.mute = false; d.VerifiedAt = time.Now() })
	e.eventually("fresh news", func() bool { return !e.px.rev.stale() })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+e.addr+"/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	res, err := e.client(cert, true).Do(req)
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("%v, %v", res, err)
	}
	_ = res.Body.Close()
}

func (e *env) ready() (bool, string) {
	w := &memoryResponse{header: http.Header{}}
	req, err := http.NewRequestWithContext(e.t.Context(), http.MethodGet, "/readyz", http.NoBody)
	if err != nil {
		e.t.Fatal(err)
	}
	e.px.Admin().ServeHTTP(w, req)
	return w.status == 0 || w.status == 200, w.body.String()
}

type memoryResponse struct {
	header http.Header
	status int
	body   strings.Builder
}

func (m *memoryResponse) Header() http.Header         { return m.header }
func (m *memoryResponse) WriteHeader(status int)      { m.status = status }
func (m *memoryResponse) Write(b []byte) (int, error) { return m.body.Write(b) }

// TestReadEvents is over the format's corners.
func TestReadEvents(t *testing.T) {
	var got []string
	err := readEvents(strings.NewReader(":\n\nevent: a\ndata: 1\ndata:2\n\ndata: x\n\nevent: b\n\n:c\nevent:c\nid: 7\nretry: 5\ndata\ndata: y\n\ndata: cut off"), func(name string, data []byte) error {
		got = append(got, name+"="+strings.ReplaceAll(string(data), "\n", "|"))
		return nil
	})
	if want := "a=1|2| =x| c=|y|"; strings.Join(got, " ") != want || err != io.ErrUnexpectedEOF { //nolint:errorlint // returned as is
		t.Errorf("%q, %v; want %q", got, err, want)
	}
}
