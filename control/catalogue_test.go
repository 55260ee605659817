package control

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

const cataloguePolicy = `version: 3
services:
  - name: ledger
    description: Batches of the night
    bundles: [{name: settle, permissions: ["POST /batches/*"]}]
  - name: payments
    description: Accounts and refunds
    owners: [group:payments-owners, person:bob]
    tier: critical
    labels: {team: money}
    bundles:
      - {name: read, description: Look at accounts, permissions: ["GET,HEAD /accounts/**"]}
      - {name: restart, permissions: ["POST /queue/restart"]}
      - {name: secret, description: hush, permissions: ["DELETE /vault"]}
  - name: status
    bundles: [{name: look, permissions: ["GET /**"]}]
rules:
  - name: accounts
    service: payments
    requesters: [group:engineers]
    permissions: ["GET,HEAD /accounts/**", "POST /queue/**"]
    require: [{group: payments-owners, approvals: 1}]
    max_duration: 1h
  - name: status
    service: status
    requesters: [group:engineers]
    permissions: ["GET /**"]
    auto: true
    max_duration: 1h
  - name: vault
    service: payments
    requesters: [group:admins]
    permissions: ["DELETE /vault"]
    require: [{group: payments-owners, approvals: 1}]
    max_duration: 1h
`

func bundled(service string, names ...string) api.RequestInput {
	return api.RequestInput{Service: service, Bundles: names, Reason: "ticket 7", Duration: api.Duration(10 * time.Minute)}
}

func servicesOf(t *testing.T, c *api.Client, f api.ServiceFilter) (names []string, list api.ServiceList) {
	t.Helper()
	list, err := c.Services(t.Context(), f)
	must(t, err)
	for _, s := range list.Services {
		names = append(names, s.Name)
	}
	return names, list
}

// TestCatalogue: each finds what rules let them ask for, by words and by pages.
func TestCatalogue(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.setPolicy(t, cataloguePolicy)
	alice := c.at(c.follower(), "user/alice")
	names, list := servicesOf(t, alice, api.ServiceFilter{})
	if !slices.Equal(names, []string{"payments", "status"}) || list.Next != "" {
		t.Fatalf("%+v", list)
	}
	s := list.Services[0]
	if s.Description != "Accounts and refunds" || s.Tier != "critical" || s.Labels["team"] != "money" || !slices.Equal(s.Owners, []string{"group:payments-owners", "person:bob"}) ||
		!slices.Equal(s.Permissions, []string{"GET,HEAD /accounts/**", "POST /queue/**"}) {
		t.Errorf("%+v", s)
	}
	if len(s.Bundles) != 2 || s.Bundles[0].Name != "read" || s.Bundles[0].Description != "Look at accounts" ||
		!slices.Equal(s.Bundles[0].Permissions, []string{"GET,HEAD /accounts/**"}) || s.Bundles[1].Name != "restart" {
		t.Errorf("%+v", s.Bundles)
	}
	for query, want := range map[string]string{
		"": "payments status", "  LOOK ": "payments status", "look accounts": "payments", "team=money": "payments", "/queue": "payments",
		"bob": "payments", "nothing": "", "look nothing": "",
		// What another may ask for is not found by its words.
		"hush": "", "vault": "", "settle": "", "batches": "",
	} {
		if names, _ := servicesOf(t, alice, api.ServiceFilter{Query: query}); strings.Join(names, " ") != want {
			t.Errorf("%q finds %q, want %s", query, names, want)
		}
	}
	names, list = servicesOf(t, alice, api.ServiceFilter{Page: api.Page{Limit: 1}})
	if !slices.Equal(names, []string{"payments"}) || list.Next != "payments" {
		t.Errorf("%+v", list)
	}
	names, list = servicesOf(t, alice, api.ServiceFilter{Page: api.Page{Limit: 1, Cursor: list.Next}})
	if !slices.Equal(names, []string{"status"}) || list.Next != "" {
		t.Errorf("%+v", list)
	}
	for name, want := range map[string]int{"payments": 1, "pay": 0, "ledger": 0} {
		if names, _ := servicesOf(t, alice, api.ServiceFilter{Name: name}); len(names) != want {
			t.Errorf("by the name %s: %q", name, names)
		}
	}
	_, err := alice.Services(t.Context(), api.ServiceFilter{Page: api.Page{Cursor: "Payments\x00"}})
	wantProblem(t, err, api.CodeInvalid)
	if names, list := servicesOf(t, c.as("user/ann"), api.ServiceFilter{}); !slices.Equal(names, []string{"payments"}) || list.Services[0].Bundles[0].Name != "secret" {
		t.Errorf("an admin is offered %+v", list)
	}
	c.check()
}

// TestCatalogueTellsAStrangerNothing: who is named by no rule enumerates no services, and learns
// of no bundle by asking for it: what is not theirs and what is not there is one answer.
func TestCatalogueTellsAStrangerNothing(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.setPolicy(t, cataloguePolicy)
	for _, who := range []string{"agent/x", "service/unheard-of"} {
		stranger := c.as(who)
		for _, f := range []api.ServiceFilter{{}, {Query: "payments"}, {Page: api.Page{Cursor: "a"}}, {Name: "payments"}, {Page: api.Page{Limit: 1}}} {
			if names, list := servicesOf(t, stranger, f); len(names) > 0 || list.Next != "" {
				t.Errorf("%s sees %+v by %+v", who, list, f)
			}
		}
		said := map[string]bool{}
		for _, service := range []string{"payments", "nowhere"} {
			for _, name := range []string{"read", "secret", "nothing"} {
				_, err := stranger.CreateRequest(t.Context(), bundled(service, name))
				p := theProblem(t, err, api.CodeInvalid)
				said[strings.NewReplacer(service, "SERVICE", `"`+name+`"`, "NAME").Replace(p.Detail+p.Next)] = true
				_, err = stranger.DryRun(t.Context(), bundled(service, name))
				wantProblem(t, err, api.CodeInvalid)
			}
		}
		if len(said) != 1 {
			t.Errorf("%s is told apart: %v", who, said)
		}
		why := map[string]bool{}
		for _, service := range []string{"payments", "nowhere"} {
			d, err := stranger.DryRun(t.Context(), api.RequestInput{Service: service, Permissions: []string{"GET /a"}, Reason: "why", Duration: api.Duration(time.Minute)})
			must(t, err)
			why[d.Reason] = true
		}
		if len(why) != 1 {
			t.Errorf("%s is told apart by the rules: %v", who, why)
		}
	}
	_, err := c.as("user/alice").CreateRequest(t.Context(), bundled("payments", "secret"))
	wantProblem(t, err, api.CodeInvalid)
	c.check()
}

// TestBundleIsRedefined: what was asked for by a name stands, whatever the name stands for by the
// time that somebody approves it.
func TestBundleIsRedefined(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	ctx := t.Context()
	c.setPolicy(t, cataloguePolicy)
	alice, bob := c.as("user/alice"), c.as("user/bob")
	in := bundled("payments", "restart", "read", "read")
	in.Permissions = []string{"POST /accounts/**"}
	_, err := alice.CreateRequest(ctx, in)
	wantProblem(t, err, api.CodeDenied)
	in.Permissions = []string{"GET /accounts/**", "POST /queue/*"}
	asked := []string{"GET,HEAD /accounts/**", "POST /queue/*", "POST /queue/restart"}
	dry, err := alice.DryRun(ctx, in)
	must(t, err)
	if !dry.Allowed || !slices.Equal(dry.Permissions, asked) || !strings.Contains(dry.SPIFFEID, "/_can/http/GET.HEAD/accounts/_rest/") {
		t.Errorf("%+v", dry)
	}
	key := api.WithKey("restart-and-read")
	r, err := alice.CreateRequest(ctx, in, key)
	must(t, err)
	if !slices.Equal(r.Permissions, asked) || !slices.Equal(r.Bundles, []string{"read", "restart"}) {
		t.Fatalf("%+v", r)
	}
	shown, err := bob.Request(ctx, r.ID)
	must(t, err)
	if !slices.Equal(shown.Bundles, r.Bundles) || !slices.Equal(shown.Permissions, asked) {
		t.Errorf("who approves is shown %+v", shown)
	}
	c.setPolicy(t, strings.Replace(cataloguePolicy, `"POST /queue/restart"`, `"POST /queue/**"`, 1))
	again, err := alice.CreateRequest(ctx, in, key)
	must(t, err)
	if again.ID != r.ID || !slices.Equal(again.Permissions, asked) {
		t.Errorf("sent again it is %+v", again)
	}
	done, err := bob.DecideRequest(ctx, r.ID, api.DecisionInput{Decision: "approve", Hash: shown.Hash})
	must(t, err)
	if done.State != api.RequestApproved || !slices.Equal(done.Grant.Permissions, asked) {
		t.Errorf("%+v", done)
	}
	later, err := alice.CreateRequest(ctx, bundled("payments", "restart"))
	must(t, err)
	if !slices.Equal(later.Permissions, []string{"POST /queue/**"}) {
		t.Errorf("asked for anew it is %q", later.Permissions)
	}
	c.check()
}
