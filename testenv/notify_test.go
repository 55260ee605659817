//go:build integration

package testenv_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-smtp"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/approval/notify"
	"github.com/hallpass/hallpass/control"
	"github.com/hallpass/hallpass/testenv"
)

// inbox is what a receiver does with deliveries: it acts on each id once.
type inbox struct {
	name string

	mu    sync.Mutex
	times map[string]int // how often each id came
	order []string       // ids, as they were acted on
	bad   []string
	hold  chan struct{} // the next delivery is not answered until this is closed; nil: it is
	held  chan struct{} // closed when one is held
}

func newInbox(name string) *inbox { return &inbox{name: name, times: map[string]int{}} }

// take acts on a delivery, and returns what to wait for before it is acknowledged.
func (b *inbox) take(id string) (hold <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.times[id]++; b.times[id] == 1 {
		b.order = append(b.order, id)
	}
	if b.hold == nil || b.held == nil {
		return nil
	}
	close(b.held)
	b.held = nil
	return b.hold
}

func (b *inbox) wrong(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bad = append(b.bad, fmt.Sprintf(format, args...))
}

// holdNext returns once a delivery waits for its answer; release has it answered.
func (b *inbox) holdNext(t *testing.T) (release func()) {
	t.Helper()
	b.mu.Lock()
	hold, held := make(chan struct{}), make(chan struct{})
	b.hold, b.held = hold, held
	b.mu.Unlock()
	release = sync.OnceFunc(func() { close(hold) })
	t.Cleanup(release) // before the receiver is closed, which waits for whoever is held
	select {
	case <-held:
	case <-time.After(2 * time.Minute):
		t.Fatalf("nothing more comes to %s", b.name)
	}
	return release
}

func (b *inbox) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.order)
}

// told are the kinds of entries that the tests' targets are told of.
var told = []string{"request.*", "grant.revoke"}

// check compares what came with what the audit log says: everything, nothing else, and
// what is about one request in order.
func (b *inbox) check(t *testing.T, cluster string, entries []notify.Entry) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, text := range b.bad {
		t.Errorf("%s: %s", b.name, text)
	}
	of := map[string]notify.Entry{}
	for _, e := range entries {
		id := notify.DeliveryID(cluster, e, b.name)
		if of[id] = e; b.times[id] == 0 {
			t.Errorf("%s was never told of entry %d, %s", b.name, e.Index, e.Kind)
		}
	}
	last, again := map[string]uint64{}, 0
	for _, id := range b.order {
		e, ok := of[id]
		if !ok {
			t.Errorf("%s was told of %s, which is of no entry", b.name, id)
		}
		if e.Index < last[e.Object] {
			t.Errorf("%s was told of entry %d after entry %d, both about %s", b.name, e.Index, last[e.Object], e.Object)
		}
		last[e.Object] = e.Index
		again += b.times[id] - 1
	}
	t.Logf("%s: %d deliveries acted on, %d came again and were known by their ids", b.name, len(b.order), again)
}

// webhookReceiver is a receiver of Standard Webhooks over TLS.
func webhookReceiver(t *testing.T, b *inbox, secret []byte) (url string, cert tls.Certificate, roots *x509.CertPool) {
	t.Helper()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the leader is gone, before it sent all
		}
		mac := hmac.New(sha256.New, secret)
		mac.Write(fmt.Appendf(nil, "%s.%s.%s", r.Header.Get("webhook-id"), r.Header.Get("webhook-timestamp"), body))
		if r.Header.Get("webhook-signature") != "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)) {
			b.wrong("a delivery with a wrong signature: %v", r.Header)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		var event struct{ ID string }
		if err := json.Unmarshal(body, &event); err != nil || event.ID != r.Header.Get("webhook-id") {
			b.wrong("%v: %s", err, body)
		}
		if hold := b.take(event.ID); hold != nil {
			<-hold
		}
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // of leaders that are killed
	server.StartTLS()
	t.Cleanup(server.Close)
	roots = x509.NewCertPool()
	roots.AddCert(server.Certificate())
	return server.URL, server.TLS.Certificates[0], roots
}

// mailServer is a server of SMTP with STARTTLS. A mail store shows one of two messages with
// one Message-ID.
type mailServer struct{ b *inbox }

func (s mailServer) NewSession(*smtp.Conn) (smtp.Session, error) { return s, nil }

func (mailServer) Reset()                               {}
func (mailServer) Logout() error                        { return nil }
func (mailServer) Mail(string, *smtp.MailOptions) error { return nil }
func (mailServer) Rcpt(string, *smtp.RcptOptions) error { return nil }

func (s mailServer) Data(r io.Reader) error {
	m, err := mail.ReadMessage(r)
	if err != nil {
		return err // the leader is gone, before it sent all
	}
	if _, err := io.Copy(io.Discard, m.Body); err != nil {
		return err
	}
	id, domain, ok := strings.Cut(strings.Trim(m.Header.Get("Message-Id"), "<>"), "@")
	if !ok || domain != "acme.test" {
		s.b.wrong("message %q", m.Header.Get("Message-Id"))
	}
	if hold := s.b.take(id); hold != nil {
		<-hold
	}
	return nil
}

func mailReceiver(t *testing.T, b *inbox, cert tls.Certificate) (address string) {
	t.Helper()
	s := smtp.NewServer(mailServer{b})
	s.ErrorLog = log.New(io.Discard, "", 0) // of leaders that are killed
	s.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	group.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() { _ = s.Close(); group.Wait() })
	return l.Addr().String()
}

// workspace is a stand-in for Slack, of one channel. It posts what it is sent, and knows
// no id of a sender: one message twice is two messages.
type workspace struct {
	b *inbox

	mu      sync.Mutex
	posts   []map[string]any
	servers map[string]*httptest.Server // by node, so that it can be waited for what a killed one has sent
	shut    chan struct{}               // nobody is told what is in the channel before this is closed; nil: all are
}

func (w *workspace) serve(rw http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		return // the leader is gone, before it sent all
	}
	if strings.HasSuffix(r.URL.Path, "/conversations.history") {
		w.history(rw, r)
		return
	}
	var metadata struct {
		Payload struct{ ID string } `json:"event_payload"`
	}
	if err := json.Unmarshal([]byte(r.Form.Get("metadata")), &metadata); err != nil {
		w.b.wrong("metadata %q: %v", r.Form.Get("metadata"), err)
	}
	w.mu.Lock()
	w.posts = append(w.posts, map[string]any{"type": "message", "metadata": json.RawMessage(r.Form.Get("metadata"))})
	w.mu.Unlock()
	if hold := w.b.take(metadata.Payload.ID); hold != nil {
		<-hold
	}
	_, _ = io.WriteString(rw, `{"ok":true,"channel":"C1","ts":"1.2"}`)
}

// history gives the newest messages first, a page at a time.
func (w *workspace) history(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	shut := w.shut
	w.mu.Unlock()
	if shut != nil {
		select {
		case <-shut:
		case <-r.Context().Done():
			return
		}
	}
	from, _ := strconv.Atoi(r.Form.Get("cursor"))
	limit, _ := strconv.Atoi(r.Form.Get("limit"))
	w.mu.Lock()
	defer w.mu.Unlock()
	all := slices.Clone(w.posts)
	slices.Reverse(all)
	page := all[min(from, len(all)):min(from+limit, len(all))]
	more := from+limit < len(all)
	_ = json.NewEncoder(rw).Encode(map[string]any{
		"ok": true, "messages": page, "has_more": more, "response_metadata": map[string]string{"next_cursor": strconv.Itoa(from + limit)},
	})
}

// at is where a node reaches it.
func (w *workspace) at(t *testing.T, node string, cert tls.Certificate) string {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(w.serve))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // of leaders that are killed
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	s.StartTLS()
	t.Cleanup(s.Close)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.servers[node] = s
	return s.URL + "/api/"
}

// kill kills a leader, and has its successor look at the channel only when all that the
// leader had sent is there. Slack itself is as fast as an election as a rule; a machine
// with other tests on it is not.
func (w *workspace) kill(leader *testenv.Node, release func()) {
	w.mu.Lock()
	w.shut = make(chan struct{})
	shut, server := w.shut, w.servers[leader.ID]
	w.mu.Unlock()
	leader.Kill()
	release()
	server.Close()
	w.mu.Lock()
	w.shut = nil
	w.mu.Unlock()
	close(shut)
	leader.Start()
}

// pagerReceiver is a stand-in for PagerDuty: an alert for each dedup_key.
func pagerReceiver(t *testing.T, b *inbox, cert tls.Certificate) (url string) {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var e struct {
			Key string `json:"dedup_key"`
		}
		if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
			return // the leader is gone, before it sent all
		}
		if hold := b.take(e.Key); hold != nil {
			<-hold
		}
		w.WriteHeader(http.StatusAccepted)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // of leaders that are killed
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL
}

// entriesOf are the entries of the audit log, from one on, that targets are told of.
func entriesOf(t *testing.T, c *api.Client, from uint64) (all []notify.Entry) {
	t.Helper()
	for {
		page, err := c.AuditEntries(t.Context(), from, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, body := range page.Entries {
			e, err := notify.ParseEntry(bytes.Clone(body))
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(string(e.Kind), "request.") || e.Kind == approval.KindRevokeGrant {
				all = append(all, e)
			}
		}
		if page.Next == 0 {
			return all
		}
		from = page.Next
	}
}

// TestNotificationsSurviveTheLeader: the leader is killed after it has sent and before
// it has heard or written down that it was received, again and again while much
// happens. The receivers' own counts show that no event is missing, none acted on
// twice, and each request's in order.
//
// It runs where little else does: a machine that is too busy has one leader after the
// other by itself, and this one says nothing about those.
func TestNotificationsSurviveTheLeader(t *testing.T) {
	secret := bytes.Repeat([]byte{7}, 32)
	key, err := notify.ParseSigningKey("whsec_" + base64.StdEncoding.EncodeToString(secret))
	if err != nil {
		t.Fatal(err)
	}
	siem, post, chat, page := newInbox("siem"), newInbox("post"), newInbox("chat"), newInbox("page")
	url, cert, roots := webhookReceiver(t, siem, secret)
	mails := mailReceiver(t, post, cert)
	slack := &workspace{b: chat, servers: map[string]*httptest.Server{}}
	configs := []notify.TargetConfig{
		{Name: "siem", Kind: notify.KindWebhook, URL: url, Keys: []notify.SigningKey{key}},
		{Name: "post", Kind: notify.KindMail, Mail: notify.Mail{Server: mails, From: "hallpass@acme.test", To: []string{"owners@acme.test"}}},
		{Name: "chat", Kind: notify.KindSlack, Secret: "xoxb-test", Channel: "C1"},
		{Name: "page", Kind: notify.KindPagerDuty, Secret: strings.Repeat("a", 32), URL: pagerReceiver(t, page, cert)},
	}
	e := testenv.Start(t, testenv.Options{Notify: func(node string) control.Notify {
		all := control.Notify{Pace: notify.Pace{Retry: 50 * time.Millisecond, Most: time.Second}}
		for _, c := range configs {
			if c.Events, c.Roots = told, roots; c.Kind == notify.KindSlack {
				c.URL = slack.at(t, node, cert)
			}
			target, err := notify.NewTarget(c, time.Now)
			if err != nil {
				t.Error(err)
				continue
			}
			all.Targets = append(all.Targets, target)
		}
		return all
	}})
	admin := e.Client("carol")
	var from uint64
	e.Eventually("the targets are known", func() bool {
		all, err := admin.AuditEntries(t.Context(), 0, 1000)
		if err != nil {
			return false
		}
		made := 0
		for _, body := range all.Entries {
			if bytes.Contains(body, []byte(`"kind":"outbox.settle"`)) {
				made++
			}
		}
		from = uint64(len(all.Entries))
		return made >= len(configs)
	})

	term := func() uint64 {
		c, err := admin.Cluster(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return c.Term
	}
	first := term()
	ctx, stop := context.WithCancel(t.Context())
	var busy sync.WaitGroup
	for range 3 {
		busy.Go(func() { traffic(ctx, t, e) })
	}
	boxes := []*inbox{siem, post, chat, page}
	for round := range 2 {
		var releases []func()
		for _, b := range boxes {
			e.Eventually(b.name+" is told of more", func() bool { return b.count() > 10*(round+1) })
			releases = append(releases, b.holdNext(t))
		}
		slack.kill(e.Leader(), func() {
			for _, release := range releases {
				release()
			}
		})
	}
	stop()
	busy.Wait()
	want := entriesOf(t, admin, from)
	if len(want) < 20 { // of which each box has had as many before the second death
		t.Errorf("%d events are not many", len(want))
	}
	for _, b := range boxes {
		e.Eventually(b.name+" is told of everything", func() bool { return b.count() >= len(want) })
	}
	e.Eventually("everything is settled", func() bool {
		all, err := admin.NotifyTargets(t.Context())
		return err == nil && !slices.ContainsFunc(all.Targets, func(t api.NotifyTarget) bool { return len(t.Open) > 0 || t.Sent < uint64(len(want)) })
	})
	for _, b := range boxes {
		b.check(t, e.Manifest().Cluster, want)
	}
	// A leader that is deposed and lives on may post what its successor posts at that moment, once a
	// worker: decision 26. Of those that were killed nothing is there twice.
	deposed := int(term() - first - 2)
	if twice := len(slack.posts) - len(chat.times); twice < 0 || twice > 8*deposed {
		t.Errorf("%d messages in the channel, of %d deliveries, with %d leaders deposed: people see some twice", len(slack.posts), len(chat.times), deposed)
	}
}

// traffic asks, and withdraws or has approved and revokes, until ctx ends. What a dying
// leader leaves undecided is asked for again by the client, under the same key.
func traffic(ctx context.Context, t *testing.T, e *testenv.Env) {
	alice, bob := e.Client("alice"), e.Client("bob")
	whole := context.WithoutCancel(ctx)           // what was begun is finished
	pace := time.NewTicker(40 * time.Millisecond) // more would be receivers' work, and show nothing else
	defer pace.Stop()
	for i := 0; ctx.Err() == nil; i++ {
		<-pace.C
		r, err := alice.CreateRequest(whole, api.RequestInput{
			Service: "payments", Permissions: []string{"GET /accounts/**"}, Duration: api.Duration(time.Minute), Reason: "a test",
		})
		if err != nil {
			t.Error(err)
			return
		}
		if i%2 == 0 {
			if _, err := alice.CancelRequest(whole, r.ID); err != nil {
				t.Error(err)
			}
			continue
		}
		if _, err := bob.DecideRequest(whole, r.ID, api.DecisionInput{Decision: "approve", Hash: r.Hash}); err != nil {
			t.Error(err)
		}
	}
}
