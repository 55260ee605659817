package testenv_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

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
	acted map[string]uint64   // entry by delivery id
	times map[string]int      // how often each id came
	order map[string][]uint64 // entries by what they are about, as they were acted on
	bad   []string
	hold  chan struct{} // the next delivery is not answered until this is closed; nil: it is
	held  chan struct{} // closed when one is held
}

func newInbox(name string) *inbox {
	return &inbox{name: name, acted: map[string]uint64{}, times: map[string]int{}, order: map[string][]uint64{}}
}

// take acts on a delivery, and returns what to wait for before it is acknowledged.
func (b *inbox) take(id, object string, entry uint64) (hold <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.times[id]++; b.times[id] == 1 {
		b.acted[id] = entry
		b.order[object] = append(b.order[object], entry)
	} else if b.acted[id] != entry {
		b.bad = append(b.bad, fmt.Sprintf("%s is of entry %d and of entry %d", id, b.acted[id], entry))
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

// holdNext has the next delivery wait for its answer: held is closed when it has come,
// release has it answered.
func (b *inbox) holdNext() (held <-chan struct{}, release func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hold, b.held = make(chan struct{}), make(chan struct{})
	hold := b.hold
	return b.held, sync.OnceFunc(func() { close(hold) })
}

func (b *inbox) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.acted)
}

// told are the kinds of entries that the tests' targets are told of.
var told = []string{"request.*", "grant.revoke"}

// check compares what came with what the audit log says: everything, each once, in the
// order of what it is about.
func (b *inbox) check(t *testing.T, cluster string, entries []notify.Entry) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, text := range b.bad {
		t.Errorf("%s: %s", b.name, text)
	}
	for _, e := range entries {
		id := notify.DeliveryID(cluster, e, b.name)
		if _, ok := b.acted[id]; !ok {
			t.Errorf("%s was never told of entry %d, %s", b.name, e.Index, e.Kind)
		}
	}
	if len(b.acted) != len(entries) {
		t.Errorf("%s acted on %d deliveries, of %d entries", b.name, len(b.acted), len(entries))
	}
	for object, order := range b.order {
		if !slices.IsSorted(order) {
			t.Errorf("%s was told of %s in the order %d", b.name, object, order)
		}
	}
	again := 0
	for _, n := range b.times {
		again += n - 1
	}
	t.Logf("%s: %d deliveries acted on, %d came again and were known by their ids", b.name, len(b.acted), again)
}

// webhookReceiver is a receiver of Standard Webhooks over TLS.
func webhookReceiver(t *testing.T, b *inbox, secret []byte) (url string, roots *x509.CertPool) {
	t.Helper()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
		var event struct {
			ID, Subject string
			Data        struct{ Entry struct{ Index uint64 } }
		}
		if err := json.Unmarshal(body, &event); err != nil || event.ID != r.Header.Get("webhook-id") {
			b.wrong("%v: %s", err, body)
		}
		if hold := b.take(event.ID, event.Subject, event.Data.Entry.Index); hold != nil {
			<-hold
		}
	}))
	t.Cleanup(server.Close)
	roots = x509.NewCertPool()
	roots.AddCert(server.Certificate())
	return server.URL, roots
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
func TestNotificationsSurviveTheLeader(t *testing.T) {
	t.Parallel()
	secret := bytes.Repeat([]byte{7}, 32)
	key, err := notify.ParseSigningKey("whsec_" + base64.StdEncoding.EncodeToString(secret))
	if err != nil {
		t.Fatal(err)
	}
	siem := newInbox("siem")
	url, roots := webhookReceiver(t, siem, secret)
	e := testenv.Start(t, testenv.Options{Notify: func() control.Notify {
		target, err := notify.NewTarget(notify.TargetConfig{
			Name: "siem", Kind: notify.KindWebhook, Events: told, URL: url, Roots: roots, Keys: []notify.SigningKey{key},
		}, time.Now)
		if err != nil {
			t.Error(err)
			return control.Notify{}
		}
		return control.Notify{Targets: []*notify.Target{target}, Pace: notify.Pace{Retry: 50 * time.Millisecond, Most: time.Second}}
	}})
	admin := e.Client("carol")
	var from uint64
	e.Eventually("the target is known", func() bool {
		all, err := admin.NotifyTargets(t.Context())
		if err != nil || len(all.Targets) != 1 {
			return false
		}
		from = all.Targets[0].Position
		return all.Targets[0].Configured && all.Targets[0].Behind <= 1
	})

	ctx, stop := context.WithCancel(t.Context())
	var busy sync.WaitGroup
	for range 3 {
		busy.Go(func() { traffic(ctx, t, e) })
	}
	boxes := []*inbox{siem}
	for round := range 2 {
		for _, b := range boxes {
			e.Eventually(b.name+" is told of more", func() bool { return b.count() > 20*(round+1) })
			held, release := b.holdNext()
			<-held
			leader := e.Leader()
			leader.Kill()
			release()
			leader.Start()
		}
	}
	stop()
	busy.Wait()
	want := entriesOf(t, admin, from)
	if len(want) < 60 {
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
}

// traffic asks, and withdraws or has approved and revokes, until ctx ends. What a dying
// leader leaves undecided is asked for again by the client, under the same key.
func traffic(ctx context.Context, t *testing.T, e *testenv.Env) {
	alice, bob := e.Client("alice"), e.Client("bob")
	whole := context.WithoutCancel(ctx) // what was begun is finished
	for i := 0; ctx.Err() == nil; i++ {
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
