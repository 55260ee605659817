package sim

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

// thinkTime is how long a person does nothing between two calls, on average.
const thinkTime = 6 * time.Second

func (p *person) engineer(ctx context.Context, c choice) {
	mine := func(state, grant string) func(*item) bool {
		return func(it *item) bool {
			return it.requester == personID(p.name) && (state == "" || it.state == state) && (grant == "" || it.grant == grant)
		}
	}
	pick := p.run.book.pick
	switch {
	case c.what < 0.30:
		p.create(ctx, c)
	case c.what < 0.60:
		p.mint(ctx, c, pick(c.which, mine("", api.GrantActive)))
	case c.what < 0.72:
		p.look(ctx, c, pick(c.which, mine("", "")), 0)
	case c.what < 0.82:
		p.lookAt(ctx, c, pick(c.which, mine("", "")))
	case c.what < 0.87:
		p.revoke(ctx, c, pick(c.which, mine("", api.GrantActive)), giveUp)
	case c.what < 0.92:
		p.cancel(ctx, c, pick(c.which, mine(api.RequestPending, "")))
	default:
		p.look(ctx, c, pick(c.which, mine(api.RequestPending, "")), 8*time.Second)
	}
}

func (p *person) approver(ctx context.Context, c choice) {
	concerned := func(state, grant string) func(*item) bool {
		return func(it *item) bool {
			if it.service == "wiki" || it.service != "ledger" && seat(p.name) > seat("bea") {
				return false
			}
			return (state == "" || it.state == state) && (grant == "" || it.grant == grant)
		}
	}
	pick := p.run.book.pick
	switch {
	case c.what < 0.55:
		p.decide(ctx, c, pick(c.which, concerned(api.RequestPending, "")))
	case c.what < 0.80:
		p.look(ctx, c, pick(c.which, concerned("", "")), 0)
	case c.what < 0.90:
		p.revoke(ctx, c, pick(c.which, concerned("", api.GrantActive)), revoke)
	case c.what < 0.96:
		p.review(ctx, c)
	default:
		p.lookAt(ctx, c, pick(c.which, concerned("", "")))
	}
}

func (p *person) admin(ctx context.Context, c choice) {
	anyone := func(*item) bool { return true }
	live := func(it *item) bool { return it.grant == api.GrantActive }
	pick := p.run.book.pick
	switch {
	case c.what < 0.15:
		p.look(ctx, c, pick(c.which, anyone), 0)
	case c.what < 0.30:
		p.lookAt(ctx, c, pick(c.which, anyone))
	case c.what < 0.36:
		p.revoke(ctx, c, pick(c.which, live), revoke)
	case c.what < 0.44:
		p.block(ctx, c)
	case c.what < 0.62:
		p.unblock(ctx, c)
	case c.what < 0.70:
		p.identity(ctx, c)
	case c.what < 0.85:
		p.audit(ctx, c)
	default:
		p.feed(ctx, c)
	}
}

func (p *person) create(ctx context.Context, c choice) {
	in := api.RequestInput{Service: "payments", Permissions: []string{"GET /accounts/**"}, Reason: "ticket " + c.key}
	switch {
	case c.variety > 0.70:
		in.Service = "wiki"
	case c.variety > 0.45:
		in.Service, in.Permissions = "ledger", []string{"grpc bank.Ledger/Transfer"}
	}
	auto := in.Service == "wiki"
	if in.Service == "ledger" && int(c.which*100)%3 == 0 {
		in.BreakGlass, auto = true, true
	}
	lives := []time.Duration{45 * time.Second, 90 * time.Second, 3 * time.Minute, 6 * time.Minute, 10 * time.Minute}
	in.Duration = api.Duration(lives[int(c.which*float64(len(lives)))])
	if in.BreakGlass {
		in.Duration = min(in.Duration, api.Duration(5*time.Minute))
	} else if int(c.which*1000)%8 == 0 {
		start := time.Now().Add(20 * time.Second)
		in.Start = &start
	}
	var r api.Request
	o := p.do(ctx, c, func(ctx context.Context, opts ...api.CallOption) (err error) {
		r, err = p.client.CreateRequest(ctx, in, opts...)
		return err
	})
	if o.none || o.code != "" {
		p.run.history.note(p.name, "create at %s: %s", in.Service, told(o, output{}))
		return
	}
	it := p.run.book.add(r)
	out := p.learn(it, r)
	p.run.history.note(p.name, "create %s at %s: %s", short(it.id), in.Service, told(o, out))
	p.told(o, it, &out)
	p.run.book.op(it, p.number, input{act: create, service: it.service, person: p.name, auto: auto}, out, o.call)
}

// review closes an open review of a glass that was broken, if it may be closed by now.
func (p *person) review(ctx context.Context, c choice) {
	var id string
	o := p.do(ctx, c, func(ctx context.Context, opts ...api.CallOption) error {
		list, err := p.client.OpenReviews(ctx, api.Filter{})
		if err != nil || len(list.Requests) == 0 {
			return err
		}
		id = list.Requests[int(c.which*float64(len(list.Requests)))].ID
		_, err = p.client.CloseReview(ctx, id, "looked at", opts...)
		return err
	})
	if id != "" {
		p.run.history.note(p.name, "review of %s: %s", short(id), told(o, output{}))
	}
}

// learn reads what a request says.
func (p *person) learn(it *item, r api.Request) output {
	out := output{request: r.State}
	for _, d := range r.Decisions {
		if d.Decision == string(approve) {
			out.voters |= seat(d.Person)
		}
	}
	if r.Grant != nil {
		out.grant = p.learnGrant(it, *r.Grant)
	}
	return out
}

func (p *person) learnGrant(it *item, g api.Grant) string {
	b := p.run.book
	b.mu.Lock()
	defer b.mu.Unlock()
	if it.expiry.IsZero() {
		it.expiry = g.ExpiresAt
	} else if !it.expiry.Equal(g.ExpiresAt) {
		defer p.run.history.violation(p.name, "grant %s ended at %s before, and now at %s", it.id, it.expiry, g.ExpiresAt)
	}
	if g.State == api.GrantScheduled {
		return api.GrantActive // the state machine's word for both
	}
	return g.State
}

func (p *person) look(ctx context.Context, c choice, it *item, wait time.Duration) {
	if it == nil {
		return
	}
	p.about(ctx, c, it, input{act: look}, func(ctx context.Context, opts ...api.CallOption) (output, error) {
		var r api.Request
		var err error
		if wait == 0 {
			r, err = p.client.Request(ctx, it.id, opts...)
		} else {
			_, index, ferr := p.client.PollRequest(ctx, it.id, 0, 0)
			if ferr != nil {
				return output{}, ferr
			}
			r, _, err = p.client.PollRequest(ctx, it.id, index, wait)
		}
		if err != nil {
			return output{}, err
		}
		return p.learn(it, r), nil
	})
}

func (p *person) lookAt(ctx context.Context, c choice, it *item) {
	if it == nil {
		return
	}
	p.about(ctx, c, it, input{act: lookAt}, func(ctx context.Context, opts ...api.CallOption) (output, error) {
		g, err := p.client.Grant(ctx, it.id, opts...)
		if err != nil {
			return output{}, err
		}
		out := output{grant: p.learnGrant(it, g)}
		for _, i := range g.Issuances {
			out.issued = append(out.issued, i.Serial)
		}
		return out, nil
	})
}

func (p *person) decide(ctx context.Context, c choice, it *item) {
	if it == nil {
		return
	}
	verdict := approve
	if c.variety < 0.12 {
		verdict = deny
	}
	p.about(ctx, c, it, input{act: verdict}, func(ctx context.Context, opts ...api.CallOption) (output, error) {
		r, err := p.client.DecideRequest(ctx, it.id, api.DecisionInput{Decision: string(verdict), Hash: it.hash}, opts...)
		if err != nil {
			return output{}, err
		}
		return p.learn(it, r), nil
	})
}

func (p *person) cancel(ctx context.Context, c choice, it *item) {
	if it == nil {
		return
	}
	p.about(ctx, c, it, input{act: cancel}, func(ctx context.Context, opts ...api.CallOption) (output, error) {
		r, err := p.client.CancelRequest(ctx, it.id, opts...)
		if err != nil {
			return output{}, err
		}
		return p.learn(it, r), nil
	})
}

func (p *person) revoke(ctx context.Context, c choice, it *item, how act) {
	if it == nil {
		return
	}
	reason := ""
	if how == revoke {
		reason = "no longer needed"
	}
	p.about(ctx, c, it, input{act: how}, func(ctx context.Context, opts ...api.CallOption) (output, error) {
		g, err := p.client.RevokeGrant(ctx, it.id, reason, opts...)
		if err != nil {
			return output{}, err
		}
		p.run.book.cut(it.id)
		return output{grant: p.learnGrant(it, g)}, nil
	})
}

// cut notes that the end of a grant was acknowledged by now.
func (b *book) cut(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cuts[id].IsZero() {
		b.cuts[id] = time.Now()
	}
}

func (p *person) mint(ctx context.Context, c choice, it *item) {
	if it == nil {
		return
	}
	began := time.Now()
	p.about(ctx, c, it, input{act: mint}, func(ctx context.Context, opts ...api.CallOption) (output, error) {
		cert, err := p.client.GrantCertificate(ctx, it.id, p.csr, opts...)
		if err != nil {
			return output{}, err
		}
		p.hold(it.id, began, cert)
		return output{issued: []string{cert.Serial}}, nil
	})
}

// held is a certificate in somebody's hands.
type held struct {
	who, grant   string // grant is "" for an identity
	leaf         *x509.Certificate
	began, ended time.Time // of the call that brought it
}

func (p *person) hold(grant string, began time.Time, c api.Certificate) {
	block, _ := pem.Decode([]byte(c.Certificate))
	if block == nil {
		p.run.history.violation(p.name, "no certificate in the answer: %q", c.Certificate)
		return
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		p.run.history.violation(p.name, "a certificate that cannot be read: %v", err)
		return
	}
	b := p.run.book
	b.mu.Lock()
	defer b.mu.Unlock()
	b.certs = append(b.certs, held{p.name, grant, leaf, began, time.Now()})
}
