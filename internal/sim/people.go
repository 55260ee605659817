package sim

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
)

// person is someone at a machine of their own, who does one thing after another with the real client: whoever asked goes
// on asking under the same Idempotency-Key while there is no answer, and gives up in the end.
type person struct {
	run    *run
	name   string
	number int
	rng    *rand.Rand
	client *api.Client
	csr    string
	calls  int
	turns  atomic.Int64 // to another server
}

func (r *run) newPerson(number int, name string, key *ecdsa.PrivateKey) (*person, error) {
	p := &person{run: r, name: name, number: number, rng: newRand(r.seed, "person "+name)}
	csr, err := ca.MakeCSR(key, "")
	if err != nil {
		return nil, err
	}
	p.csr = string(csr)
	var servers []string
	for i := range nodeIDs() {
		servers = append(servers, "https://"+string(apiAddress(nodeIDs()[(i+number)%len(nodeIDs())])))
	}
	p.client, err = api.NewClient(api.ClientConfig{
		Servers: servers, Certificate: r.world.people[name], Roots: r.world.roots, DialContext: r.net.dialer(name),
		Timeout: 4 * time.Second, RetryFor: 6 * time.Second, Logger: slog.New(turnLog{p}),
	})
	return p, err
}

// turnLog counts the lines that the client logs: one each time it turns to another server.
type turnLog struct{ p *person }

func (l turnLog) Enabled(context.Context, slog.Level) bool { return true }
func (l turnLog) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l turnLog) WithGroup(string) slog.Handler            { return l }

func (l turnLog) Handle(context.Context, slog.Record) error {
	l.p.turns.Add(1)
	return nil
}

// choice is all that chance has to say about one step, drawn before anything is looked at: so that the seed fixes it
// whatever happened meanwhile.
type choice struct {
	think       time.Duration
	what, which float64
	variety     float64
	key         string
	patience    []time.Duration // between repeated calls
}

func (p *person) choose() choice {
	p.calls++
	c := choice{
		think: time.Duration(float64(thinkTime) * p.rng.ExpFloat64()), what: p.rng.Float64(), which: p.rng.Float64(),
		variety: p.rng.Float64(), key: fmt.Sprintf("%s-%d", p.name, p.calls),
	}
	c.think = min(c.think, 5*thinkTime)
	for range p.rng.IntN(4) {
		c.patience = append(c.patience, between(p.rng, 100*time.Millisecond, 5*time.Second))
	}
	return c
}

// work does one thing after another until ctx ends.
func (p *person) work(ctx context.Context) {
	for ctx.Err() == nil {
		c := p.choose()
		select {
		case <-time.After(c.think):
		case <-ctx.Done():
			return
		}
		switch {
		case slices.Contains(engineers(), p.name):
			p.engineer(ctx, c)
		case slices.Contains(admins(), p.name):
			p.admin(ctx, c)
		default:
			p.approver(ctx, c)
		}
	}
}

// outcome is what is known of a call after all its attempts.
type outcome struct {
	began time.Time
	call  int64
	code  api.Code // of the refusal; "" when it succeeded
	doubt bool     // it may have had an effect all the same
	none  bool     // there was no answer
}

// do makes a call, again under the same key while nobody gives an answer.
func (p *person) do(ctx context.Context, c choice, fn func(context.Context, ...api.CallOption) error) outcome {
	p.run.counts.calls.Add(1)
	o := outcome{began: time.Now(), call: p.run.book.tick()}
	trouble, turns := p.run.net.disturbance(), p.turns.Load()
	for try := 0; ; try++ {
		attempt, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
		err := fn(attempt, api.WithKey(c.key))
		cancel()
		if o.code, o.none = p.answer(err); !o.none {
			// An earlier attempt, or a copy of this one, may be under way still and come to something else.
			o.doubt = try > 0 || p.turns.Load() != turns || p.run.net.disturbance() != trouble
			return o
		}
		if try == len(c.patience) {
			o.doubt = true
			return o
		}
		time.Sleep(c.patience[try])
	}
}

// answer tells a refusal from no answer.
func (p *person) answer(err error) (code api.Code, none bool) {
	var problem *api.Problem
	switch {
	case err == nil:
		return "", false
	case !errors.As(err, &problem):
		return "", true
	}
	switch problem.Code {
	case api.CodeNoLeader, api.CodeUnavailable, api.CodeAmbiguous, api.CodeTimeout, api.CodeUnauthorized:
		return problem.Code, true
	case api.CodeInternal:
		p.run.history.violation(p.name, "the server failed: %v", problem)
		return problem.Code, true
	default:
		return problem.Code, false
	}
}

// about makes a call about a request and notes what came of it. fn says what was told.
func (p *person) about(ctx context.Context, c choice, it *item, in input, fn func(context.Context, ...api.CallOption) (output, error)) {
	in.service, in.person = it.service, p.name
	var out output
	o := p.do(ctx, c, func(ctx context.Context, opts ...api.CallOption) (err error) {
		out, err = fn(ctx, opts...)
		return err
	})
	p.run.history.note(p.name, "%s %s: %s", in.act, short(it.id), told(o, out))
	reads := in.act == look || in.act == lookAt
	switch {
	case o.none:
		out = output{perhaps: true}
	case o.code != "":
		out = output{code: p.refusal(o, it, in)}
	default:
		p.told(o, it, &out)
	}
	b := p.run.book
	if !o.none {
		b.op(it, p.number, in, out, o.call)
	}
	if !reads && (o.none || o.doubt && o.code != "") {
		b.op(it, b.stranger(), in, output{perhaps: true}, o.call)
	}
}

func told(o outcome, out output) string {
	switch {
	case o.none:
		return "no answer"
	case o.code != "":
		return "refused: " + string(o.code)
	}
	return fmt.Sprintf("%s %s %s", out.request, out.grant, out.issued)
}

func short(id string) string { return id[max(0, len(id)-8):] }

// refusal is what a refusal says about the request; "" in its place when it says nothing.
func (p *person) refusal(o outcome, it *item, in input) api.Code {
	b := p.run.book
	b.mu.Lock()
	ends := it.expiry
	if ends.IsZero() {
		ends = it.lapses
	}
	b.mu.Unlock()
	switch {
	case o.code == api.CodeExpired && time.Now().Before(ends.Add(-slack)):
		p.run.history.violation(p.name, "%s of %s is refused as expired, at least %v early", in.act, it.id, time.Until(ends))
	case o.code == api.CodeExpired && o.began.Before(ends.Add(slack)):
		return saysNothing // of two nodes whose clocks are right, one may say so before the other
	case o.code == api.CodeConflict && in.act == mint && it.start:
		return saysNothing // it has not begun
	}
	return o.code
}

// saysNothing is a refusal that no state forbids.
const saysNothing = api.CodeDenied

// told checks the times in what was told, and keeps it for others to go on with.
func (p *person) told(o outcome, it *item, out *output) {
	b := p.run.book
	b.mu.Lock()
	if out.request != "" {
		it.state = out.request
	}
	if out.grant != "" {
		it.grant = out.grant
	}
	expiry, lapses := it.expiry, it.lapses
	b.mu.Unlock()
	out.request = p.lapsed(o, it, out.request, api.RequestPending, api.RequestExpired, lapses)
	out.grant = p.lapsed(o, it, out.grant, api.GrantActive, api.GrantExpired, expiry)
}

// lapsed looks at a state whose time ends. Clocks that are right differ by less than slack.
func (p *person) lapsed(o outcome, it *item, state, alive, over string, ends time.Time) string {
	now := time.Now()
	switch {
	case state != alive && state != over || ends.IsZero():
		return state
	case now.Before(ends.Add(-slack)):
		if state == over {
			p.run.history.violation(p.name, "%s is %s, at least %v early", it.id, state, ends.Sub(now))
		}
		return state
	case o.began.After(ends.Add(slack)):
		if state == alive {
			p.run.history.violation(p.name, "%s is %s, at least %v after its end", it.id, state, o.began.Sub(ends))
		}
		return state
	}
	return lapsing
}

// stranger is a client number for a call that never returned: whose number is busy from then on.
func (b *book) stranger() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.strangers++
	return 1000 + b.strangers
}
