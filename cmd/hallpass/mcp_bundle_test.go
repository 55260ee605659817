package main

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/testenv"
)

// offering is a cluster with a catalogue, which remembers what it was asked for.
type offering struct {
	mcpAPI

	service api.Service
	err     error
	asked   atomic.Pointer[api.RequestInput]
}

func (o *offering) Services(_ context.Context, f api.ServiceFilter, _ ...api.CallOption) (api.ServiceList, error) {
	if f.Name != o.service.Name {
		return api.ServiceList{}, o.err
	}
	return api.ServiceList{Services: []api.Service{o.service}}, o.err
}

func (o *offering) CreateRequest(_ context.Context, in api.RequestInput, _ ...api.CallOption) (api.Request, error) {
	o.asked.Store(&in)
	return request(nil), nil
}

func (o *offering) DryRun(_ context.Context, in api.RequestInput, _ ...api.CallOption) (api.DryRun, error) {
	o.asked.Store(&in)
	return api.DryRun{Allowed: true}, nil
}

func (o *offering) PollRequest(_ context.Context, id string, _ uint64, _ time.Duration) (api.Request, uint64, error) {
	return request(func(r *api.Request) { r.ID = id }), 1, nil
}

// TestMCPBundles: an agent is shown the bundles that it may ask for here, and gets by the name of
// one nothing that it would not get by its words, however the bundle is redefined meanwhile.
func TestMCPBundles(t *testing.T) {
	cluster := &offering{service: api.Service{
		Name: "payments", Description: "Accounts \u202eand refunds",
		Bundles: []api.ServiceBundle{
			{Name: "read", Description: "Look\x1b[2J", Permissions: []string{"GET,HEAD /accounts/**"}},
			{Name: "wide", Permissions: []string{"* /**"}},
			{Name: "rows", Permissions: []string{"postgres orders as reader"}},
		},
	}}
	m := sessionOf(t, cluster, 0)
	atMost, err := grant.ParseScope("payments", []string{"GET,HEAD,POST /accounts/**"})
	if err != nil {
		t.Fatal(err)
	}
	m.services[0].atMost = atMost
	listed, err := m.list(t.Context(), nil, mcpListInput{})
	if err != nil || len(listed.Services) != 1 {
		t.Fatalf("%+v, %v", listed, err)
	}
	if s := listed.Services[0]; len(s.Bundles) != 1 || s.Bundles[0].Name != "read" || !slices.Equal(s.Bundles[0].Permissions, []string{"GET,HEAD /accounts/**"}) ||
		strings.ContainsAny(s.Description+s.Bundles[0].Description, "\u202e\x1b") || s.Description == "" {
		t.Errorf("%+v", s)
	}
	in := mcpAccessInput{Service: "payments", Bundles: []string{"read"}, Permissions: []string{"POST /accounts/**"}, Duration: "5m"}
	if _, err := m.request(t.Context(), nil, mcpRequestInput{in, "ticket 4711"}); err != nil {
		t.Fatal(err)
	}
	if asked := cluster.asked.Load(); len(asked.Bundles) != 0 || !slices.Equal(asked.Permissions, []string{"GET,HEAD,POST /accounts/**"}) {
		t.Errorf("the cluster was asked for %+v", asked)
	}
	cluster.asked.Store(nil)
	for what, c := range map[string]struct {
		names []string
		want  string
	}{
		"more than --at-most": {[]string{"wide"}, "no more than"},
		"no HTTP":             {[]string{"read", "rows"}, "speaks HTTP"},
		"none such":           {[]string{"nothing"}, "list_services names them"},
		"many":                {slices.Repeat([]string{"read"}, 9), "at most 8"},
	} {
		_, err := m.check(t.Context(), nil, mcpAccessInput{Service: "payments", Bundles: c.names, Duration: "5m"})
		wantError(t, what, err, c.want)
	}
	cluster.service.Bundles[0].Permissions = []string{"* /**"}
	_, err = m.request(t.Context(), nil, mcpRequestInput{mcpAccessInput{Service: "payments", Bundles: []string{"read"}, Duration: "5m"}, "r"})
	wantError(t, "a bundle that was redefined", err, "no more than GET,HEAD,POST /accounts/**")
	if asked := cluster.asked.Load(); asked != nil {
		t.Errorf("the cluster was asked for %+v", asked)
	}
	cluster.err = api.NewProblem(api.CodeNotFound, "no such route", "")
	if listed, err := m.list(t.Context(), nil, mcpListInput{}); err != nil || len(listed.Services[0].Bundles) != 0 {
		t.Errorf("a cluster without a catalogue: %+v, %v", listed, err)
	}
}

// TestMCPBundlesOnACluster: what list_services names, request_access takes.
func TestMCPBundlesOnACluster(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t, testenv.Options{Nodes: 1, Policy: `version: 3
services:
  - name: payments
    description: Accounts and refunds
    bundles: [{name: read, description: Look at accounts, permissions: ["GET /accounts/**"]}]
rules:
  - {name: all, service: payments, requesters: [group:engineers], permissions: ["* /**"], require: [{group: owners, approvals: 1}], max_duration: 1h}
`})
	p, _ := paymentsOf(t, env, nil)
	s := startMCP(t, env, "alice", "--service", "payments="+p.Address())
	var listed mcpListOutput
	if err := s.try("list_services", mcpListInput{}, &listed); err != nil || len(listed.Services) != 1 || listed.Services[0].Description != "Accounts and refunds" || len(listed.Services[0].Bundles) != 1 {
		t.Fatalf("%+v, %v", listed, err)
	}
	var r mcpRequest
	in := map[string]any{"service": "payments", "bundles": []string{"read"}, "duration": "5m", "reason": "ticket 4711"}
	if err := s.try("request_access", in, &r); err != nil || r.State != api.RequestPending || !slices.Equal(r.Permissions, []string{"GET /accounts/**"}) {
		t.Errorf("%+v, %v", r, err)
	}
	if status := s.end(); status != exitOK {
		t.Errorf("status %d", status)
	}
}
