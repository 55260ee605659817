package sim

import (
	"sync"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/hallpass/hallpass/approval/api"
)

// book is what the people of a run know and have seen, for them to go on with and for the checks afterwards.
type book struct {
	mu        sync.Mutex
	clock     int64                            // guarded by mu; orders calls and returns more finely than the bubble's clock
	strangers int                              // guarded by mu
	blocked   string                           // guarded by mu; who is blocked, as far as the admins know
	requests  []*item                          // guarded by mu; oldest first
	byID      map[string]*item                 // guarded by mu
	blocks    map[string][]porcupine.Operation // guarded by mu; by subject
	changes   []*changeItem                    // guarded by mu
	certs     []held                           // guarded by mu
	feeds     []feedSeen                       // guarded by mu
	heads     map[int64]string                 // guarded by mu; audit size → root that was told
	leaves    map[uint64]string                // guarded by mu; audit index → entry that was told
	cuts      map[string]time.Time             // guarded by mu; when the end of a grant was acknowledged, by id
}

// item is a request that somebody knows of. Its first fields never change.
type item struct {
	id, hash, service, subject, requester string
	start                                 bool // it is scheduled

	ops    []porcupine.Operation // guarded by book.mu
	state  string                // guarded by book.mu; as last seen
	grant  string                // guarded by book.mu; as last seen, "" for none
	expiry time.Time             // guarded by book.mu; of the grant, once there is one
	lapses time.Time             // guarded by book.mu; when the request does, undecided
}

// changeItem is a proposal to unblock somebody.
type changeItem struct {
	id, hash, subject, author string

	over    bool            // guarded by book.mu
	decided map[string]bool // guarded by book.mu; by the admin's name
}

func newBook() *book {
	return &book{
		byID: map[string]*item{}, blocks: map[string][]porcupine.Operation{}, heads: map[int64]string{},
		leaves: map[uint64]string{}, cuts: map[string]time.Time{},
	}
}

func (b *book) tick() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clock++
	return b.clock
}

// add notes a new request, or returns the one that is known.
func (b *book) add(r api.Request) *item {
	b.mu.Lock()
	defer b.mu.Unlock()
	if it := b.byID[r.ID]; it != nil {
		return it
	}
	it := &item{
		id: r.ID, hash: r.Hash, service: r.Service, subject: r.Subject, requester: r.Requester, start: r.Start != nil,
		state: r.State, lapses: r.ExpiresAt,
	}
	b.requests = append(b.requests, it)
	b.byID[r.ID] = it
	return it
}

// pick chooses among the newest of those that fit; share, from 0 to 1, says which.
func (b *book) pick(share float64, fits func(*item) bool) *item {
	const newest = 12
	b.mu.Lock()
	defer b.mu.Unlock()
	var some []*item
	for i := len(b.requests) - 1; i >= 0 && len(some) < newest; i-- {
		if fits(b.requests[i]) {
			some = append(some, b.requests[i])
		}
	}
	if len(some) == 0 {
		return nil
	}
	return some[int(share*float64(len(some)))]
}

// op notes one call about a request.
func (b *book) op(it *item, client int, in input, out output, call int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	it.ops = append(it.ops, b.operation(client, in, out, call))
}

func (b *book) blockOp(subject string, client int, in input, out output, call int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.blocks[subject] = append(b.blocks[subject], b.operation(client, in, out, call))
}

func (b *book) operation(client int, in input, out output, call int64) porcupine.Operation {
	b.clock++
	op := porcupine.Operation{ClientId: client, Input: in, Output: out, Call: call, Return: b.clock}
	if out.perhaps {
		op.Return = never
	}
	return op
}

// history is what happened to the request, with certificates as bits: one that was committed and that nobody was handed,
// which no mint tells of, does not count.
func (it *item) history(blocks []porcupine.Operation) []porcupine.Operation {
	const most = 63
	bits := map[string]uint64{}
	for _, op := range it.ops {
		if in := op.Input.(input); in.act == mint && len(bits) < most {
			for _, serial := range op.Output.(output).issued {
				bits[serial] = 1 << len(bits)
			}
		}
	}
	var ops []porcupine.Operation
	for _, op := range it.ops {
		out := op.Output.(output)
		for _, serial := range out.issued {
			out.serials |= bits[serial]
		}
		op.Output = out
		ops = append(ops, op)
	}
	for _, op := range blocks {
		in := op.Input.(input)
		switch {
		case it.expiry.IsZero() || !op.Output.(output).perhaps && in.ended.Before(it.expiry.Add(-slack)):
			in.against = before
		case in.began.After(it.expiry.Add(slack)):
			in.against = after
		default:
			in.against = around
		}
		op.Input = in
		ops = append(ops, op)
	}
	return ops
}
