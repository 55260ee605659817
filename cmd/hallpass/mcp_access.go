package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/policy"
)

func (m *mcpServer) list(ctx context.Context, _ *mcp.CallToolRequest, in mcpListInput) (mcpListOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, mcpAskLimit)
	defer cancel()
	out := mcpListOutput{Identity: m.me, Services: []mcpServiceView{}}
	for _, s := range m.services {
		if !strings.Contains(s.name, strings.ToLower(in.Query)) {
			continue
		}
		view := mcpServiceView{Name: s.name, Bundles: []mcpBundle{}, MayAskFor: []string{}, AtMostFor: api.Duration(m.longest).String(), Requests: []mcpRequest{}}
		view.MayAskFor = append(view.MayAskFor, s.atMost.Texts()...)
		offered, err := m.offered(ctx, s)
		if err != nil {
			return out, err
		}
		view.Description = safeText(offered.Description)
		for _, b := range offered.Bundles {
			if scope, err := grant.ParseScope(s.name, b.Permissions); err == nil && s.refuses(scope) == nil {
				view.Bundles = append(view.Bundles, mcpBundle{Name: b.Name, Description: safeText(b.Description), Permissions: scope.Texts()})
			}
		}
		for _, r := range m.open(s) {
			now, _, err := m.api.PollRequest(ctx, r.id, 0, 0)
			if err != nil {
				return out, err
			}
			now = m.saw(r, now)
			if !mcpOver(now) {
				view.Requests = append(view.Requests, newMCPRequest(now))
			}
		}
		out.Services = append(out.Services, view)
	}
	return out, nil
}

// open are the requests of this session that may still be or become grants; of one service, or
// of all.
func (m *mcpServer) open(s *mcpService) []*mcpAsked {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*mcpAsked
	for _, id := range slices.Sorted(maps.Keys(m.asked)) {
		if r := m.asked[id]; !mcpOver(r.last) && (s == nil || r.service == s) {
			out = append(out, r)
		}
	}
	return out
}

// saw notes what became of a request, and returns what is known of it. What is over stays over:
// a poll that was answered before the grant was returned, and is read after, must not have it
// used again.
func (m *mcpServer) saw(r *mcpAsked, now api.Request) api.Request {
	m.mu.Lock()
	if last := r.last; mcpOver(last) && !mcpOver(now) {
		m.mu.Unlock()
		return last
	}
	r.last = now
	if now.State == api.RequestDenied {
		if _, known := m.denied[r.scope]; !known {
			m.denied[r.scope] = m.now().Add(mcpDenialLasts)
		}
	}
	m.mu.Unlock()
	if now.State == api.RequestApproved {
		r.service.wallet.expect()
	}
	return now
}

// input is what would be asked of the cluster: never for anybody else than the identity itself,
// and nothing that the tools cannot use or whoever started this process has ruled out.
func (m *mcpServer) input(ctx context.Context, in mcpAccessInput) (*mcpService, grant.Scope, api.RequestInput, error) {
	var none grant.Scope
	s, err := m.service(in.Service)
	if err != nil {
		return nil, none, api.RequestInput{}, err
	}
	scope, err := m.scope(ctx, s, in)
	if err != nil {
		return nil, none, api.RequestInput{}, err
	}
	if err := s.refuses(scope); err != nil {
		return nil, none, api.RequestInput{}, err
	}
	d, err := time.ParseDuration(in.Duration)
	if err != nil || d <= 0 {
		return nil, none, api.RequestInput{}, fmt.Errorf("duration %.20q: want a form such as 15m", in.Duration)
	}
	if d > m.longest {
		return nil, none, api.RequestInput{}, fmt.Errorf("duration: %s is longer than the %s that an agent may ask for here", d, api.Duration(m.longest))
	}
	return s, scope, api.RequestInput{Service: s.name, Permissions: scope.Texts(), Duration: api.Duration(d)}, nil
}

// refuses says why an agent may not ask for a scope here, whatever the rules say.
func (s *mcpService) refuses(scope grant.Scope) error {
	for _, p := range scope.Permissions() {
		if p.Kind() != grant.KindHTTP {
			return fmt.Errorf("permissions: call_service speaks HTTP, and has no use for %s", p)
		}
	}
	if !s.atMost.IsZero() && !s.atMost.Covers(scope) {
		return fmt.Errorf("permissions: whoever set this up lets an agent ask for no more than %s", strings.Join(s.atMost.Texts(), "; "))
	}
	return nil
}

// offered is what the catalogue says of a service; nothing where the cluster has none, or offers
// nothing there.
func (m *mcpServer) offered(ctx context.Context, s *mcpService) (api.Service, error) {
	list, err := m.api.Services(ctx, api.ServiceFilter{Name: s.name})
	if errors.Is(err, api.ErrNotFound) {
		return api.Service{}, nil // a node of an earlier release
	}
	if err != nil || len(list.Services) != 1 || list.Services[0].Name != s.name {
		return api.Service{}, err
	}
	return list.Services[0], nil
}

// scope is what is asked for. Bundles are replaced by their permissions here, and it is these that
// the cluster is asked for: were it given the names, a bundle that was redefined a moment ago
// could hold more than whoever set this up lets an agent ask for.
func (m *mcpServer) scope(ctx context.Context, s *mcpService, in mcpAccessInput) (grant.Scope, error) {
	var all []grant.Scope
	if len(in.Permissions) > 0 || len(in.Bundles) == 0 {
		words, err := grant.ParseScope(s.name, in.Permissions)
		if err != nil {
			return grant.Scope{}, fmt.Errorf("permissions: %w", err)
		}
		all = append(all, words)
	}
	if len(in.Bundles) > api.MaxBundles {
		return grant.Scope{}, fmt.Errorf("bundles: %d, at most %d", len(in.Bundles), api.MaxBundles)
	}
	if len(in.Bundles) > 0 {
		offered, err := m.offered(ctx, s)
		if err != nil {
			return grant.Scope{}, err
		}
		for _, name := range in.Bundles {
			at := slices.IndexFunc(offered.Bundles, func(b api.ServiceBundle) bool { return b.Name == name })
			if at < 0 {
				return grant.Scope{}, fmt.Errorf("bundles: there is no %.64q of %s that may be asked for: list_services names them", name, s.name)
			}
			bundle, err := grant.ParseScope(s.name, offered.Bundles[at].Permissions)
			if err != nil {
				return grant.Scope{}, fmt.Errorf("bundles: %w", err)
			}
			all = append(all, bundle)
		}
	}
	scope, err := policy.Union(s.name, all...)
	if err != nil {
		return grant.Scope{}, fmt.Errorf("permissions: %w", err)
	}
	return scope, nil
}

func (m *mcpServer) check(ctx context.Context, _ *mcp.CallToolRequest, in mcpAccessInput) (mcpCheckOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, mcpAskLimit)
	defer cancel()
	_, _, ask, err := m.input(ctx, in)
	if err != nil {
		return mcpCheckOutput{}, err
	}
	d, err := m.api.DryRun(ctx, ask)
	if err != nil {
		return mcpCheckOutput{}, err
	}
	out := mcpCheckOutput{Allowed: d.Allowed, Automatic: d.Auto, Needs: needs(d.Require), MaxDuration: d.MaxDuration.String(), Because: d.Reason}
	return out, nil
}

func (m *mcpServer) request(ctx context.Context, _ *mcp.CallToolRequest, in mcpRequestInput) (mcpRequest, error) {
	ctx, cancel := context.WithTimeout(ctx, mcpAskLimit)
	defer cancel()
	s, scope, ask, err := m.input(ctx, in.mcpAccessInput)
	if err != nil {
		return mcpRequest{}, err
	}
	if strings.TrimSpace(in.Reason) == "" {
		return mcpRequest{}, errors.New("reason: is missing: people decide by it")
	}
	ask.Reason = in.Reason + mcpReason
	for _, r := range m.open(s) { // a model that repeats itself must not make people decide twice
		if r.scope != scope {
			continue
		}
		now, _, err := m.api.PollRequest(ctx, r.id, 0, 0)
		if err != nil {
			return mcpRequest{}, err
		}
		now = m.saw(r, now)
		if now.Grant == nil && !mcpOver(now) || now.Grant != nil && !mcpOver(now) && now.Grant.ExpiresAt.Sub(m.now()) > time.Minute {
			return newMCPRequest(now), nil
		}
	}
	if err := m.begin(scope); err != nil {
		return mcpRequest{}, err
	}
	defer m.making.Done()
	// A client that calls its own call off must not leave a request behind that nobody knows of.
	making, stop := context.WithTimeout(context.WithoutCancel(ctx), mcpAskLimit)
	defer stop()
	made, err := m.api.CreateRequest(making, ask)
	m.mu.Lock()
	delete(m.asking, scope)
	if err != nil {
		m.mu.Unlock()
		return mcpRequest{}, err
	}
	r := &mcpAsked{id: made.ID, service: s, scope: scope, last: made}
	m.asked[made.ID] = r
	ended := m.ended
	m.mu.Unlock()
	if ended { // giveBack has not seen it, and nobody else is left to end it
		ending, stop := context.WithTimeout(context.WithoutCancel(ctx), mcpAskLimit)
		defer stop()
		if made, err = m.end(ending, r); err != nil {
			return mcpRequest{}, err
		}
		return newMCPRequest(made), nil
	}
	return newMCPRequest(m.saw(r, made)), nil
}

// begin notes that a scope is being asked for, until making.Done, unless approvers would be pestered: people who
// are asked often enough approve what they have not read.
func (m *mcpServer) begin(scope grant.Scope) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	pending := len(m.asking)
	for _, r := range m.asked {
		if r.last.State == api.RequestPending {
			pending++
		}
	}
	until, denied := m.denied[scope]
	switch {
	case m.ended:
		return errors.New("the session has ended")
	case m.asking[scope]:
		return errors.New("this is being asked for already")
	case denied && m.now().Before(until):
		return errors.New("this was denied a moment ago: tell whoever gave you the task, and do not ask again")
	case pending >= mcpPendingMost:
		return fmt.Errorf("%d requests are undecided: wait for them with get_request, or withdraw one with return_access", pending)
	case len(m.asked)+len(m.asking) >= mcpAskedMost:
		return fmt.Errorf("%d requests in one session are enough: whoever started it must start it anew", mcpAskedMost)
	}
	delete(m.denied, scope)
	m.asking[scope] = true
	m.making.Add(1)
	return nil
}

// get waits at most mcpWaitMost: an agent must not hang on people who have gone home.
func (m *mcpServer) get(ctx context.Context, call *mcp.CallToolRequest, in mcpGetInput) (mcpRequest, error) {
	r, err := m.find(in.ID)
	if err != nil {
		return mcpRequest{}, err
	}
	wait := time.Duration(in.Wait) * time.Second
	if wait < 0 || wait > mcpWaitMost {
		return mcpRequest{}, fmt.Errorf("wait_seconds: want 0 to %d", int(mcpWaitMost.Seconds()))
	}
	ctx, cancel := context.WithTimeout(ctx, wait+mcpAskLimit)
	defer cancel()
	began := time.Now()
	var since uint64
	for {
		now, index, err := m.api.PollRequest(ctx, r.id, since, min(mcpWaitStep, wait-time.Since(began)))
		if err != nil {
			return mcpRequest{}, err
		}
		now = m.saw(r, now)
		waited := time.Since(began)
		if now.State != api.RequestPending || waited >= wait {
			return newMCPRequest(now), nil
		}
		since = index
		if token := call.Params.GetProgressToken(); token != nil {
			err := call.Session.NotifyProgress(ctx, &mcp.ProgressNotificationParams{
				ProgressToken: token, Progress: waited.Seconds(), Total: wait.Seconds(),
				Message: "waits for " + waitsFor(now, " and "),
			})
			if err != nil {
				return mcpRequest{}, err
			}
		}
	}
}

func (m *mcpServer) giveOneBack(ctx context.Context, _ *mcp.CallToolRequest, in mcpReturnInput) (mcpRequest, error) {
	ctx, cancel := context.WithTimeout(ctx, mcpAskLimit)
	defer cancel()
	r, err := m.find(in.ID)
	if err != nil {
		return mcpRequest{}, err
	}
	now, err := m.end(ctx, r)
	if err != nil {
		return mcpRequest{}, err
	}
	return newMCPRequest(now), nil
}

// end withdraws a request, or returns its grant. One that is over stays as it is.
func (m *mcpServer) end(ctx context.Context, r *mcpAsked) (api.Request, error) {
	_, err := m.api.CancelRequest(ctx, r.id)
	if errors.Is(err, api.ErrConflict) || errors.Is(err, api.ErrExpired) { // it has been decided
		_, err = m.api.RevokeGrant(ctx, r.id, "")
	}
	if err != nil && !errors.Is(err, api.ErrConflict) && !errors.Is(err, api.ErrExpired) && !errors.Is(err, api.ErrNotFound) {
		return api.Request{}, err
	}
	now, _, err := m.api.PollRequest(ctx, r.id, 0, 0)
	if err == nil {
		now = m.saw(r, now) // from here on no call goes out with it
	}
	return now, err
}
