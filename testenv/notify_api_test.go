package testenv_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/approval/notify"
	"github.com/hallpass/hallpass/control"
	"github.com/hallpass/hallpass/testenv"
)

// moody is a receiver that answers as it is told to.
type moody struct {
	mu     sync.Mutex
	status int
	ids    []string // of what it was sent
	types  []string
}

func (m *moody) serve(w http.ResponseWriter, r *http.Request) {
	var event struct{ ID, Type string }
	body, _ := io.ReadAll(r.Body)
	_ = json.Unmarshal(body, &event)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ids, m.types = append(m.ids, event.ID), append(m.types, event.Type)
	w.WriteHeader(m.status)
}

func (m *moody) answers(status int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status = status
}

func (m *moody) got(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Contains(m.ids, id)
}

// notifying is a cluster of one node that tells a moody receiver of requests.
func notifying(t *testing.T, m *moody) (e *testenv.Env, admin *api.Client) {
	t.Helper()
	return notifyingBy(t, m, "")
}

// notifyingBy is notifying under a policy, which chooses what the receiver is told of; ""
// for the default one, which does not.
func notifyingBy(t *testing.T, m *moody, policy string) (e *testenv.Env, admin *api.Client) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(m.serve)) // on loopback, without TLS
	t.Cleanup(server.Close)
	key, err := notify.ParseSigningKey("whsec_" + strings.Repeat("A", 32))
	if err != nil {
		t.Fatal(err)
	}
	e = testenv.Start(t, testenv.Options{Nodes: 1, Policy: policy, Notify: func(string) control.Notify {
		target, err := notify.NewTarget(notify.TargetConfig{
			Name: "siem", Kind: notify.KindWebhook, URL: server.URL + "/hooks/hush", Keys: []notify.SigningKey{key}, Events: []string{"request.create"}, GiveUp: time.Second, OnlyNamed: policy != "",
		}, time.Now)
		if err != nil {
			t.Error(err)
			return control.Notify{}
		}
		return control.Notify{
			Targets: []*notify.Target{target}, Console: "http://127.0.0.1:8700/",
			Pace: notify.Pace{Settle: 10 * time.Millisecond, Retry: 50 * time.Millisecond, Most: 200 * time.Millisecond},
		}
	}})
	return e, e.Client("carol")
}

func theTarget(t *testing.T, admin *api.Client) api.NotifyTarget {
	t.Helper()
	all, err := admin.NotifyTargets(t.Context())
	if err != nil || len(all.Targets) != 1 {
		t.Fatalf("%+v, %v", all, err)
	}
	return all.Targets[0]
}

// made waits for the target to be known: what comes from then on is told.
func made(t *testing.T, e *testenv.Env, admin *api.Client, want string) {
	t.Helper()
	e.Eventually("the target is known", func() bool {
		page, err := admin.AuditEntries(t.Context(), 0, 1000)
		if err != nil || len(page.Entries) == 0 {
			return false
		}
		return slices.ContainsFunc(page.Entries, func(body json.RawMessage) bool { return strings.Contains(string(body), want) })
	})
}

// TestNotificationsOfAnAdmin: what is not delivered is seen with its cause, sent again
// under its id, and goes on where the receiver wanted no more; and all of it is for admins.
func TestNotificationsOfAnAdmin(t *testing.T) {
	t.Parallel()
	m := &moody{status: http.StatusInternalServerError}
	e, admin := notifying(t, m)
	made(t, e, admin, `"kind":"outbox.settle"`)
	r := e.Request("alice", "payments", time.Minute, "GET /accounts/**")
	var dead []api.DeadLetter
	e.Eventually("it is given up", func() bool {
		all, err := admin.DeadLetters(t.Context(), "siem")
		dead = all.Letters
		return err == nil && len(dead) == 1
	})
	if l := dead[0]; l.Kind != "request.create" || l.Object != r.ID || l.Cause != "answered 500 Internal Server Error" || l.Tries < 1 || !m.got(l.Delivery) {
		t.Errorf("%+v", l)
	}
	if k := theTarget(t, admin); !k.Configured || k.Dead != 1 || k.Sent != 0 || !strings.HasPrefix(k.Host, "http://127.0.0.1:") || strings.Contains(k.Host, "hush") {
		t.Errorf("%+v", k)
	}
	finding := e.Leader().Server().Health().Findings
	if i := slices.IndexFunc(finding, func(f control.Finding) bool { return f.Check == "notifications" }); i < 0 || finding[i].Status != "warn" || !strings.Contains(finding[i].Detail, "dead letters") {
		t.Errorf("%+v", finding)
	}

	m.answers(http.StatusOK)
	tested, err := admin.TestTarget(t.Context(), "siem")
	if err != nil || !tested.Delivered || !m.got(tested.Delivery) || !slices.Contains(m.types, "hallpass.test") {
		t.Errorf("%+v, %v", tested, err)
	}
	if _, err := admin.ReplayNotifications(t.Context(), "siem", api.ReplayInput{All: true}); err != nil {
		t.Fatal(err)
	}
	e.Eventually("it is delivered", func() bool { k := theTarget(t, admin); return k.Sent == 1 && k.Dead == 0 && len(k.Open) == 0 })
	m.mu.Lock()
	if last := m.ids[len(m.ids)-1]; last != dead[0].Delivery {
		t.Errorf("sent again as %s, before as %s", last, dead[0].Delivery)
	}
	m.mu.Unlock()

	m.answers(http.StatusGone)
	e.Request("alice", "payments", time.Minute, "GET /accounts/**")
	e.Eventually("it is paused", func() bool { return theTarget(t, admin).PausedAt != nil })
	m.answers(http.StatusOK)
	e.Request("alice", "payments", time.Minute, "GET /accounts/**")
	if _, err := admin.ReplayNotifications(t.Context(), "siem", api.ReplayInput{}); err != nil {
		t.Fatal(err)
	}
	e.Eventually("it goes on", func() bool { k := theTarget(t, admin); return k.Sent == 2 && k.PausedAt == nil && k.Dead == 1 })
	if _, err := admin.ForgetTarget(t.Context(), "siem"); err != nil {
		t.Fatal(err)
	}
	e.Eventually("it begins anew", func() bool { k := theTarget(t, admin); return k.Sent == 0 && k.Dead == 0 && k.Behind <= 1 })
	asked := 0 // what was before it has begun anew is told to nobody
	e.Eventually("the leader has begun anew", func() bool {
		if asked++; asked%50 == 1 && asked < 2000 {
			e.Request("alice", "payments", time.Minute, "GET /accounts/**")
		}
		return theTarget(t, admin).Sent > 0
	})
}

const tellingPolicy = `version: 3
rules:
  - name: accounts
    service: payments
    requesters: [group:engineers]
    permissions: ["GET /accounts/**"]
    require: [{group: owners, approvals: 1}]
    max_duration: 1h
    notify: [siem, pager]
  - name: refunds
    service: payments
    requesters: [group:engineers]
    permissions: ["POST /refunds/*"]
    require: [{group: owners, approvals: 1}]
    max_duration: 1h
`

// TestNotificationsByRule: a target that is told of what names it alone hears of no other
// request, and what the policy tells to nobody that there is, an admin is shown.
func TestNotificationsByRule(t *testing.T) {
	t.Parallel()
	m := &moody{status: http.StatusOK}
	e, admin := notifyingBy(t, m, tellingPolicy)
	made(t, e, admin, `"kind":"outbox.settle"`)
	alice := e.Client("alice")
	for _, permission := range []string{"POST /refunds/7", "GET /accounts/7"} { // in this order they would be told
		if _, err := alice.CreateRequest(t.Context(), api.RequestInput{
			Service: "payments", Permissions: []string{permission}, Reason: "ticket 7", Duration: api.Duration(time.Minute),
		}); err != nil {
			t.Fatal(err)
		}
	}
	e.Eventually("it is told of the one", func() bool { k := theTarget(t, admin); return k.Sent == 1 && k.OnlyNamed })
	m.mu.Lock()
	if len(m.ids) != 1 {
		t.Errorf("it was told of %d requests", len(m.ids))
	}
	m.mu.Unlock()
	all, err := admin.NotifyTargets(t.Context())
	if err != nil || !slices.Equal(all.Missing, []string{"pager"}) {
		t.Errorf("%+v, %v", all, err)
	}
	findings := e.Leader().Server().Health().Findings
	if i := slices.IndexFunc(findings, func(f control.Finding) bool { return f.Check == "notifications" }); i < 0 || findings[i].Status != "warn" || !strings.Contains(findings[i].Detail, "the policy names pager") {
		t.Errorf("%+v", findings)
	}
}

// TestNotificationsAreForAdmins: who is no admin learns nothing of the targets, has
// nothing sent, and changes nothing.
func TestNotificationsAreForAdmins(t *testing.T) {
	t.Parallel()
	m := &moody{status: http.StatusOK}
	e, admin := notifying(t, m)
	made(t, e, admin, `"kind":"outbox.settle"`)
	for _, who := range []string{"alice", "bob"} {
		c := e.Client(who)
		for what, call := range map[string]func() error{
			"list":   func() error { _, err := c.NotifyTargets(t.Context()); return err },
			"dead":   func() error { _, err := c.DeadLetters(t.Context(), ""); return err },
			"replay": func() error { _, err := c.ReplayNotifications(t.Context(), "siem", api.ReplayInput{}); return err },
			"all": func() error {
				_, err := c.ReplayNotifications(t.Context(), "siem", api.ReplayInput{All: true})
				return err
			},
			"forget": func() error { _, err := c.ForgetTarget(t.Context(), "siem"); return err },
			"test":   func() error { _, err := c.TestTarget(t.Context(), "siem"); return err },
		} {
			var p *api.Problem
			if err := call(); !errors.As(err, &p) || p.Code != api.CodeDenied {
				t.Errorf("%s as %s: %v", what, who, err)
			}
		}
	}
	if len(m.ids) > 0 {
		t.Errorf("the receiver was sent %q", m.types)
	}
	for what, call := range map[string]func() error{
		"replay": func() error { _, err := admin.ReplayNotifications(t.Context(), "none", api.ReplayInput{}); return err },
		"test":   func() error { _, err := admin.TestTarget(t.Context(), "none"); return err },
		"entry": func() error {
			_, err := admin.ReplayNotifications(t.Context(), "siem", api.ReplayInput{Entries: []uint64{1}})
			return err
		},
	} {
		var p *api.Problem
		if err := call(); !errors.As(err, &p) || p.Code != api.CodeNotFound {
			t.Errorf("%s of what is not there: %v", what, err)
		}
	}
}
