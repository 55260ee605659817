package sim

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/audit"
	"github.com/hallpass/hallpass/control"
	"github.com/hallpass/hallpass/raftstore"
)

// sample looks at all running nodes: those that stand, or once stood, at one index must have one state, and no state may
// be of the future.
func (r *run) sample() {
	for _, n := range r.nodes {
		s := n.store()
		if s == nil {
			continue
		}
		index, sum, err := s.StateHash()
		if err != nil {
			continue // it is being stopped
		}
		r.compare(n, index, sum)
		var last time.Time
		if err := s.View(func(v raftstore.Reader, _ uint64) error {
			c, err := approval.Read(v).Cluster()
			last = c.LastNow.Time()
			return err
		}); err == nil && last.After(time.Now().Add(slack)) {
			r.history.violation(n.id, "its state is of %v from now: whatever ends until then has ended", time.Until(last))
		}
	}
}

func (r *run) compare(n *node, index uint64, sum [sha256.Size]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, ok := r.states[index]; ok && old != sum {
		r.history.violation(n.id, "at index %d its state is %x, and a node's was %x", index, sum[:8], old[:8])
	}
	r.states[index] = sum
}

// converge waits until all nodes have come to one index, and returns it.
func (r *run) converge() bool {
	const limit = 2 * time.Minute
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		at := map[uint64]bool{}
		led := false
		for _, n := range r.nodes {
			s := n.store()
			if s == nil {
				at[0] = true
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			led = led || s.IsLeader() && s.Linearize(ctx) == nil
			cancel()
			at[s.Index()] = true
		}
		if led && len(at) == 1 && !at[0] {
			return true
		}
	}
	for _, n := range r.nodes {
		if s := n.store(); s != nil {
			r.history.note(n.id, "stands at %+v", s.Status())
		} else {
			r.history.note(n.id, "is down")
		}
	}
	r.history.violation("all", "%v after the last fault the nodes have not come to one state", limit)
	return false
}

// verify checks everything that can be checked on the nodes' states, in the end.
func (r *run) verify() {
	r.sample()
	seen := map[[sha256.Size]byte]bool{}
	for _, n := range r.nodes {
		s := n.store()
		_, sum, err := s.StateHash()
		if err == nil {
			err = r.checkNode(n, s)
		}
		if err != nil {
			r.history.violation(n.id, "%v", err)
			continue
		}
		if seen[sum] {
			continue // a state that was looked at, byte for byte
		}
		seen[sum] = true
		if err := s.View(func(v raftstore.Reader, _ uint64) error { return r.checkState(v) }); err != nil {
			r.history.violation(n.id, "%v", err)
		}
	}
	if len(seen) != 1 {
		r.history.violation("all", "the nodes have %d different states in the end", len(seen))
	}
	if err := r.nodes[0].store().View(r.lastLook); err != nil {
		r.history.violation("all", "%v", err)
	}
}

// checkNode checks a node's state and audit log, and that whatever somebody was told of the log is still in it. A node
// that was sent a snapshot gets the entries before it later.
func (r *run) checkNode(n *node, s *raftstore.Store) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for s.Status().RecordsMissing > 0 {
		if ctx.Err() != nil {
			return fmt.Errorf("it still lacks %d entries of the audit log", s.Status().RecordsMissing)
		}
		time.Sleep(time.Second)
	}
	if err := control.CheckStore(ctx, s); err != nil {
		return err
	}
	b := r.book
	b.mu.Lock()
	defer b.mu.Unlock()
	var log audit.Memory
	var size int64
	var wrong error
	err := s.ReadRecords(ctx, 0, func(index uint64, body []byte) bool {
		if told, ok := b.leaves[index]; ok && told != string(body) {
			r.history.violation(n.id, "audit entry %d is %s, and somebody was told %s", index, body, told)
		}
		size, wrong = audit.Append(&log, size, body)
		return wrong == nil
	})
	if err := errors.Join(err, wrong); err != nil {
		return err
	}
	r.counts.commands.Store(size)
	for at, told := range b.heads {
		if at > size {
			return fmt.Errorf("its audit log has %d entries, and somebody was told of %d", size, at)
		}
		root, err := audit.Root(&log, at)
		if err != nil {
			return err
		}
		if base64.StdEncoding.EncodeToString(root[:]) != told {
			r.history.violation(n.id, "the root of its first %d audit entries is %s, and somebody was told %s", at, root, told)
		}
	}
	return nil
}

// checkState checks what people hold against a state.
func (r *run) checkState(v raftstore.Reader) error {
	s := approval.Read(v)
	b := r.book
	b.mu.Lock()
	defer b.mu.Unlock()
	tbs := map[string][sha256.Size]byte{}
	for _, c := range b.certs {
		serial, sum := c.leaf.SerialNumber.Text(16), sha256.Sum256(c.leaf.RawTBSCertificate)
		if other, ok := tbs[serial]; ok && other != sum {
			r.history.violation(c.who, "two certificates have the serial %s", serial)
		}
		tbs[serial] = sum
		if err := c.check(s, serial, hex.EncodeToString(sum[:])); err != nil {
			r.history.violation(c.who, "certificate %s of grant %q: %v", serial, c.grant, err)
		}
	}
	return r.checkFeeds(s)
}

// check says what is wrong with a certificate that somebody holds.
func (c held) check(s approval.State, serial, tbs string) error {
	i, err := s.Issue(serial)
	if err != nil {
		return fmt.Errorf("it was handed out and is not in the log: %w", err)
	}
	if i.TBSHash != tbs || i.Grant != c.grant {
		return fmt.Errorf("it says something else than was committed: %+v", i)
	}
	issuer, err := s.Issuer(i.Issuer)
	if err != nil {
		return err
	}
	ttl, end := identityTTL, issuer.NotAfter.Time()
	if c.grant != "" {
		g, err := s.Grant(c.grant)
		if err != nil {
			return err
		}
		ttl = g.TTL()
		if g.Expiry.Time().Before(end) {
			end = g.Expiry.Time()
		}
	}
	// It was made at some time between the call and its answer, by a clock that was right but for slack.
	soonest, latest := c.began.Add(ttl-slack), c.ended.Add(ttl+slack)
	if end.Before(soonest) {
		soonest = end
	}
	soonest = soonest.Add(-time.Second) // a certificate's times are whole seconds
	switch {
	case c.leaf.NotAfter.After(end):
		return fmt.Errorf("it ends at %s, after its grant or issuer at %s", c.leaf.NotAfter, end)
	case c.leaf.NotAfter.After(latest), c.leaf.NotAfter.Before(soonest):
		return fmt.Errorf("it was asked for at %s and ends at %s: its life is not %s", c.began, c.leaf.NotAfter, ttl)
	case c.leaf.NotBefore.After(c.ended.Add(slack)), c.leaf.NotBefore.Before(c.began.Add(-approval.MaxBackdate - slack)):
		return fmt.Errorf("it was asked for at %s and begins at %s", c.began, c.leaf.NotBefore)
	}
	return nil
}

// checkFeeds checks that no list of revoked grants claimed to be newer than it was. A node that has not heard of a quorum
// for long tells a list that is newer than it claims, without what has run out since. It needs book.mu.
func (r *run) checkFeeds(s approval.State) error {
	for id, cut := range r.book.cuts {
		g, err := s.Grant(id)
		if err != nil {
			return err
		}
		if g.LatestNotAfter == 0 {
			continue // there is no certificate to call back
		}
		for _, f := range r.book.feeds {
			claims := f.verified.After(cut.Add(slack)) && g.LatestNotAfter.Time().After(f.told.Add(-slack))
			if claims && !f.grants[id] {
				r.history.violation(f.who, "the feed of %s lacks grant %s, whose end was acknowledged at %s", f.verified, id, cut)
			}
		}
	}
	return nil
}

// lastLook notes how every request stands in the end, as what a last reader was told.
func (r *run) lastLook(v raftstore.Reader, _ uint64) error {
	s := approval.Read(v)
	b := r.book
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clock++
	call, now := b.clock, time.Now()
	for _, it := range b.requests {
		req, err := s.Request(it.id)
		if err != nil {
			r.history.violation("all", "request %s was acknowledged, and in the end: %v", it.id, err)
			continue
		}
		out := output{request: string(req.StateAt(approval.MillisOf(now)))}
		if near(now, req.Expires.Time()) && (out.request == api.RequestPending || out.request == api.RequestExpired) {
			out.request = lapsing
		}
		for _, d := range req.Decisions {
			if d.Verdict == approval.Approve {
				out.voters |= seat(d.Person)
			}
		}
		if g, err := s.Grant(it.id); err == nil {
			out.grant = string(g.StateAt(approval.MillisOf(now)))
			if near(now, g.Expiry.Time()) && (out.grant == api.GrantActive || out.grant == api.GrantExpired) {
				out.grant = lapsing
			}
			issues, err := s.Issuances(it.id)
			if err != nil {
				return err
			}
			for _, i := range issues {
				out.issued = append(out.issued, i.Serial)
			}
			it.ops = append(it.ops, b.operation(lastReader, input{act: lookAt, service: it.service}, out, call))
			out.issued = nil
		}
		it.ops = append(it.ops, b.operation(lastReader, input{act: look, service: it.service}, out, call))
		b.clock++
		call = b.clock
	}
	return nil
}

const lastReader = 999

func near(now, end time.Time) bool { return now.After(end.Add(-slack)) && now.Before(end.Add(slack)) }

// linearizable checks the history of every request. It MUST be called outside of a bubble, whose clock would stand still
// while it searches.
func (b *book) linearizable() (wrong []string) {
	for _, it := range b.requests {
		ops := it.history(b.blocks[it.subject])
		switch got := porcupine.CheckOperationsTimeout(model(), ops, time.Minute); got {
		case porcupine.Ok:
		default:
			wrong = append(wrong, fmt.Sprintf("the history of request %s is %s:\n%s", it.id, got, describe(ops)))
		}
	}
	return wrong
}

func describe(ops []porcupine.Operation) string {
	var b bytes.Buffer
	m := model()
	for _, op := range ops {
		ret := fmt.Sprint(op.Return)
		if op.Return == never {
			ret = "never"
		}
		fmt.Fprintf(&b, "  %6d to %6s  %s\n", op.Call, ret, m.DescribeOperation(op.Input, op.Output))
	}
	return b.String()
}
