package main

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/hallpass/hallpass/approval/api"
)

func offered() api.ServiceList {
	return api.ServiceList{Services: []api.Service{
		{
			Name: "payments", Description: "Accounts \u202eand refunds", Tier: "critical", Labels: map[string]string{"team": "money"},
			Owners: []string{"group:payments-owners"}, Permissions: []string{"GET,HEAD /accounts/**", "POST /refunds/*"},
			Bundles: []api.ServiceBundle{{Name: "read", Description: "Look\tat accounts\x1b[2J", Permissions: []string{"GET,HEAD /accounts/**"}}, {Name: "refund", Permissions: []string{"POST /refunds/*"}}},
		},
		{Name: "pay$(id)", Permissions: []string{"tcp"}}, // as no cluster that is honest answers
		{Name: "status", Permissions: []string{"GET /**"}, Bundles: []api.ServiceBundle{}},
	}}
}

func TestRequestSearch(t *testing.T) {
	f := newFake(t)
	var asked []string
	f.mux.HandleFunc("GET /v1/services", func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.RawQuery)
		list := offered()
		if r.URL.Query().Get("query") == "money accounts" {
			list.Services = list.Services[:1]
		} else if r.URL.Query().Get("query") != "" {
			list.Services = []api.Service{}
		}
		reply(w, http.StatusOK, list)
	})
	got := f.as(t, f.identity, "request", "search")
	if got.status != exitOK || !strings.Contains(got.stdout, "payments          GET,HEAD /accounts/** +1  Accounts \\u202eand refunds\n") ||
		!strings.Contains(got.stdout, "payments  read    GET,HEAD /accounts/**     Look\\tat accounts\\x1b[2J\n") || asked[0] != "limit=50" {
		t.Errorf("%+v %q", got, asked)
	}
	got = f.as(t, f.identity, "request", "search", "money", "accounts")
	if got.status != exitOK || !strings.Contains(got.stdout, "label        team=money\n") || !strings.Contains(got.stdout, "bundle       refund\n") ||
		!strings.Contains(got.stderr, "next: hallpass request create payments --bundle read") || asked[1] != "limit=50&query=money+accounts" {
		t.Errorf("%+v %q", got, asked)
	}
	if got := f.as(t, f.identity, "request", "search", "unheard-of"); got.status != exitOK || !strings.Contains(got.stderr, "nothing that you may ask for") {
		t.Errorf("%+v", got)
	}
	var list api.ServiceList
	got = f.as(t, f.identity, "request", "search", "-o", "json")
	if err := json.Unmarshal([]byte(got.stdout), &list); err != nil || len(list.Services) != 3 || strings.ContainsRune(got.stdout, '\u202e') {
		t.Errorf("%v: %+v", err, got)
	}
	if got := f.as(t, f.identity, "request", "search", "-o", "yaml"); got.status != exitOK || !strings.Contains(got.stdout, "services:") && !strings.Contains(got.stdout, `"services"`) {
		t.Errorf("%+v", got)
	}
}

func TestRequestByBundle(t *testing.T) {
	f := newFake(t)
	var in api.RequestInput
	f.mux.HandleFunc("POST /v1/requests", func(w http.ResponseWriter, r *http.Request) {
		in = api.RequestInput{}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			t.Error(err)
		}
		if in.DryRun {
			reply(w, http.StatusOK, api.DryRun{Allowed: true, Permissions: []string{"GET,HEAD /accounts/**"}})
			return
		}
		reply(w, http.StatusCreated, request(func(r *api.Request) { r.Bundles = []string{"read"} }))
	})
	ask := []string{"request", "create", "payments", "--bundle", "read", "--for", "30m", "--reason", "ticket 4711"}
	got := f.as(t, f.identity, ask...)
	if got.status != exitOK || !slices.Equal(in.Bundles, []string{"read"}) || len(in.Permissions) != 0 || !strings.Contains(got.stdout, "bundles       read\n") {
		t.Errorf("%+v %+v", got, in)
	}
	got = f.as(t, f.identity, append(ask, "--dry-run")...)
	if got.status != exitOK || !strings.Contains(got.stdout, "asks for      GET,HEAD /accounts/**\n") {
		t.Errorf("%+v", got)
	}
	for _, bad := range [][]string{{"--bundle", "GET /**"}, {"--bundle", ""}, {}} {
		args := append([]string{"request", "create", "payments", "--for", "30m", "--reason", "x"}, bad...)
		if got := f.as(t, f.identity, args...); got.status != exitUsage || !strings.Contains(got.stderr, "--bundle") {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

// A shell is given names that are names, and no texts of anybody's.
func TestCompletionOfNames(t *testing.T) {
	f := newFake(t)
	f.mux.HandleFunc("GET /v1/services", func(w http.ResponseWriter, r *http.Request) {
		list := offered()
		if name := r.URL.Query().Get("name"); name != "" {
			list.Services = slices.DeleteFunc(list.Services, func(s api.Service) bool { return s.Name != name })
		}
		reply(w, http.StatusOK, list)
	})
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"request", "create", ""}, "payments\nstatus\n:4\n"},
		{[]string{"request", "create", "pay"}, "payments\n:4\n"},
		{[]string{"breakglass", "s"}, "status\n:4\n"},
		{[]string{"request", "create", "payments", "--bundle", ""}, "read\nrefund\n:4\n"},
		{[]string{"request", "create", "payments", "--bundle", "ref"}, "refund\n:4\n"},
		{[]string{"request", "create", "status", "--bundle", ""}, ":4\n"},
		{[]string{"request", "create", "payments", ""}, ":4\n"},
	} {
		env := []string{"HALLPASS_SERVER=" + f.URL, "HALLPASS_IDENTITY=" + f.identity}
		got := run(t, env, append([]string{"__complete"}, c.args...)...)
		if got.status != exitOK || got.stdout != c.want {
			t.Errorf("%q: %+v, want %q", c.args, got, c.want)
		}
	}
	if got := run(t, []string{"HALLPASS_SERVER=https://" + closedAddress(t), "HALLPASS_IDENTITY=" + f.identity}, "__complete", "request", "create", "--timeout", "1ms", ""); got.stdout != ":4\n" {
		t.Errorf("nobody there: %+v", got)
	}
}
