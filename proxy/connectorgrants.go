package proxy

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hallpass/hallpass/grant"
)

// Held is one live grant for a connector's service. Source is where its
// certificates come from.
type Held struct {
	Scope  grant.Scope
	Source *RenewingSource
}

// Wallet knows its owner's live grants for one service. Held MUST be safe for
// concurrent use, MUST give the same Source for the same grant each time, and MUST
// look anew if fresh says so; otherwise it MUST NOT wait.
type Wallet interface {
	Held(ctx context.Context, fresh bool) ([]Held, error)
}

// ErrNotGranted is returned by an Asker when the answer is no.
var ErrNotGranted = errors.New("not granted")

// Asker asks for access. Ask MUST open a request for exactly one permission, or
// find the caller's own that is pending for it, and give its id; Wait MUST return
// when that is decided: nil once the Wallet has the grant. Both MUST end with ctx,
// and say ErrNotGranted when the rules, or whoever decided, said no.
type Asker interface {
	Ask(ctx context.Context, need grant.Permission) (id string, err error)
	Wait(ctx context.Context, id string) error
}

// OnDemand has a connector ask by itself for what no grant allows, and hold the
// call meanwhile.
type OnDemand struct {
	Asker Asker
	// Hold is how long a call is held at most; 0 is two minutes.
	Hold time.Duration
	// MaxPending is how many requests may be undecided at a time; 0 is 4.
	MaxPending int
}

// Standing is what an identity may do without a grant, by the service's own rules.
type Standing struct {
	Identity    CertSource
	Permissions grant.Scope
}

const (
	maxHeldCalls  = 256
	denialLasts   = time.Minute     // before the same is asked again
	troubleLasts  = 5 * time.Second // before a cluster that could not be asked is tried again
	holdByDefault = 2 * time.Minute
)

// hold takes over what a configuration says of grants.
func (c *Connector) hold(cfg ConnectorConfig) {
	c.wallet, c.lanes, c.permission = cfg.Wallet, make(map[*RenewingSource]*lane), cfg.Permission
	if c.permission.IsZero() {
		c.permission = grant.TCPPermission()
	}
	if s := cfg.Standing; s != nil {
		c.idLane = &lane{c: c, source: s.Identity, scope: s.Permissions, matcher: s.Permissions.Matcher(), identity: true}
	}
	if o := cfg.OnDemand; o != nil {
		c.demands = &demands{c: c, asker: o.Asker, hold: orDefault(o.Hold, holdByDefault), most: o.MaxPending, asked: make(map[grant.Permission]*asking)}
		if c.demands.most == 0 {
			c.demands.most = 4
		}
	}
}

// want is what a call needs.
type want struct {
	need grant.Permission
	fits func(m *grant.Matcher) bool
}

// notGranted is the error of a call that nothing allows, as it is answered.
type notGranted struct{ problem problem }

func (e *notGranted) Error() string { return e.problem.Code + ": " + e.problem.Detail }

// wantOf reads what a request needs off the request itself. What a proxy answered
// to it is never looked at: it could name a permission that opens more.
func (c *Connector) wantOf(r *http.Request) (want, error) {
	path, err := grant.ParsePath(targetOf(r), grant.PathOptions{})
	if err != nil {
		return want{}, &notGranted{newProblem(http.StatusBadRequest, "ambiguous_path", pathDetail(err), c.service)}
	}
	w := want{fits: func(m *grant.Matcher) bool { _, ok := m.HTTP(r.Method, &path); return ok }}
	if isGRPC(r.Header) {
		w.fits = func(m *grant.Matcher) bool { _, ok := m.GRPC(r.Method, &path); return ok }
		w.need, err = grant.GRPCPermission(path)
	} else {
		w.need, err = grant.HTTPPermission(r.Method, path)
	}
	if err != nil {
		return want{}, &notGranted{newProblem(http.StatusBadRequest, "no_permission", "no permission allows such a call", c.service)}
	}
	return w, nil
}

func isGRPC(h http.Header) bool {
	return strings.HasPrefix(strings.ToLower(h.Get("Content-Type")), "application/grpc")
}

// laneFor is what a call goes out with: a live grant that allows it, else the
// identity if that may do it anyway, else a grant that is asked for.
func (c *Connector) laneFor(ctx context.Context, w want) (*lane, error) {
	if c.wallet == nil {
		return c.lane, nil
	}
	if ln, err := c.heldLane(ctx, w, false); ln != nil || err != nil {
		return ln, err
	}
	if c.idLane != nil && c.idLane.allows(w) {
		return c.idLane, nil
	}
	ln, err := c.heldLane(ctx, w, true)
	switch {
	case ln != nil:
		return ln, nil
	case err != nil:
		c.log.Warn("the live grants are not known", slog.Any("error", err))
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if c.demands != nil {
			return nil, c.refusal(http.StatusServiceUnavailable, "cannot_ask", "the cluster cannot be asked for access now", w.need, "")
		}
		// Not "no grant": whoever is told so asks for what it may well have, and people decide twice.
		return nil, c.refusal(http.StatusServiceUnavailable, "grants_unknown", "the cluster cannot be asked for your live grants now", w.need, "")
	}
	if c.demands == nil {
		return nil, c.refusal(http.StatusForbidden, reasonNoGrant, "no live grant of yours allows this", w.need, "")
	}
	if err := c.demands.wait(ctx, w.need); err != nil {
		return nil, err
	}
	if ln, err = c.heldLane(ctx, w, true); ln == nil && err == nil {
		err = c.refusal(http.StatusForbidden, reasonNoGrant, "what was granted does not allow this", w.need, "")
	}
	return ln, err
}

// heldLane is the lane of a live grant that allows a call, or nil.
func (c *Connector) heldLane(ctx context.Context, w want, fresh bool) (*lane, error) {
	all, err := c.wallet.Held(ctx, fresh)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for source, ln := range c.lanes {
		if !slices.ContainsFunc(all, func(h Held) bool { return h.Source == source }) {
			ln.rest()
			delete(c.lanes, source) // its grant has ended
		}
	}
	for _, h := range all {
		ln := c.lanes[h.Source]
		if ln == nil {
			ln = &lane{c: c, source: h.Source, scope: h.Scope, matcher: h.Scope.Matcher()}
			c.lanes[h.Source] = ln
		}
		if ln.allows(w) {
			return ln, nil
		}
	}
	return nil, nil //nolint:nilnil // there is none
}

// allows says whether the lane's scope covers a call.
func (ln *lane) allows(w want) bool {
	if w.fits != nil {
		return w.fits(ln.matcher)
	}
	return slices.Contains(ln.scope.Permissions(), w.need)
}

// refusal is the answer to a call that is not carried. id is the request that was
// made for it, if any.
func (c *Connector) refusal(status int, code, detail string, need grant.Permission, id string) error {
	pr := newProblem(status, code, detail, c.service)
	pr.Permission = need.String()
	switch {
	case id != "":
		pr.Command = "hallpass request get " + shellQuote(id) + " --wait"
		pr.Next = "follow request " + id + " with the command, then call again"
	case status == http.StatusForbidden:
		pr.Command = requestCommand(c.service, need)
		pr.Next = "ask for the permission with the command, then call again"
	default:
		pr.Next = "call again later"
	}
	return &notGranted{pr}
}

// demands are the permissions that a connector is asking for, each once, however
// many calls wait for it.
type demands struct {
	c     *Connector
	asker Asker
	hold  time.Duration
	most  int

	mu    sync.Mutex // owns what follows
	asked map[grant.Permission]*asking
	held  int // calls
}

// asking is one access request and what became of it.
type asking struct {
	done chan struct{} // closed when err is written, under demands.mu
	err  error
	id   string    // "" until it is known; under demands.mu
	stay time.Time // until when an answer that is no stands; zero while undecided
}

// wait has need asked for, unless it is already, and holds the call until that is
// decided. Nothing of the call's body is read meanwhile.
func (d *demands) wait(ctx context.Context, need grant.Permission) error {
	a, err := d.join(need) //nolint:contextcheck // it is for all who wait, and ends with the links
	if err != nil {
		return err
	}
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.held--
	}()
	limit := time.NewTimer(d.hold)
	defer limit.Stop()
	select {
	case <-a.done:
	case <-limit.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	select {
	case <-a.done:
	default:
		return d.c.refusal(http.StatusGatewayTimeout, "approval_pending", "nobody has decided on the access request yet", need, a.id)
	}
	switch {
	case a.err == nil:
		return nil
	case errors.Is(a.err, ErrNotGranted) && a.id != "":
		return d.c.refusal(http.StatusForbidden, "request_denied", "the access request was not granted", need, a.id)
	case errors.Is(a.err, ErrNotGranted):
		return d.c.refusal(http.StatusForbidden, "request_refused", "the rules do not let you ask for this", need, "")
	default:
		return d.c.refusal(http.StatusServiceUnavailable, "cannot_ask", "the cluster could not be asked for access", need, a.id)
	}
}

// join is the asking for need, begun if there is none, with one more call held.
func (d *demands) join(need grant.Permission) (*asking, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	pending := 0
	for p, a := range d.asked {
		switch {
		case a.stay.IsZero():
			pending++
		case !time.Now().Before(a.stay):
			delete(d.asked, p)
		}
	}
	a := d.asked[need]
	if d.held >= maxHeldCalls || a == nil && pending >= d.most {
		return nil, d.c.refusal(http.StatusServiceUnavailable, "too_many_pending", "too many access requests of yours are undecided", need, "")
	}
	if a == nil {
		a = &asking{done: make(chan struct{})}
		if !d.c.links.run(func(ctx context.Context) { d.ask(ctx, need, a) }) {
			return nil, errNotServed
		}
		d.asked[need] = a
	}
	d.held++
	return a, nil
}

// ask asks and waits for the decision, for whoever waits for a. A no stands for a
// while, so that a program that tries again does not pester the approvers.
func (d *demands) ask(ctx context.Context, need grant.Permission, a *asking) {
	id, err := d.asker.Ask(ctx, need)
	if err == nil {
		d.mu.Lock()
		a.id = id
		d.mu.Unlock()
		d.c.log.Info("asked for access", slog.String("permission", need.String()), slog.String("request", id))
		err = d.asker.Wait(ctx, id)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	a.err = err
	switch {
	case err == nil:
		delete(d.asked, need)
	case errors.Is(err, ErrNotGranted):
		a.stay = time.Now().Add(denialLasts)
		d.c.log.Warn("access was not granted", slog.String("permission", need.String()), slog.Any("error", err))
	default:
		a.stay = time.Now().Add(troubleLasts)
		d.c.log.Error("no access could be asked for", slog.Any("error", err))
	}
	close(a.done)
}
