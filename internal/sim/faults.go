package sim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hallpass/hallpass/raftstore"
)

// faults runs the schedule and returns when the last fault is over.
func (r *run) faults(schedule []fault) {
	var group sync.WaitGroup
	for _, f := range schedule {
		group.Go(func() {
			time.Sleep(f.at)
			r.suffer(f)
		})
	}
	group.Wait()
}

// suffer has one fault happen, from its beginning to its end.
func (r *run) suffer(f fault) {
	n := r.resolve(f)
	switch f.kind {
	case crash:
		r.crash(f, n)
	case blackout:
		r.blackout(f)
	case restart:
		r.restart(f, n)
	case isolation, brokenLink:
		r.partition(f, n)
	case latency:
		links := r.around(n.id, false)
		lag := time.Duration(float64(10*time.Millisecond) + f.amount*f.amount*float64(500*time.Millisecond))
		r.note(f, n, "each message takes up to %v more", lag)
		r.net.slow(links, lag)
		time.Sleep(f.lasts)
		r.net.slow(links, 0)
		r.note(f, n, "over")
	case storm:
		w := weather{lost: f.amount * 0.3, twice: f.amount * 0.3, late: f.amount * 0.3}
		r.note(f, n, "%.0f %% lost, doubled, late", 100*w.lost)
		r.net.setWeather(w)
		time.Sleep(f.lasts)
		r.net.setWeather(weather{})
		r.note(f, n, "over")
	case slowDisk, fullDisk:
		r.ail(f, n)
	case wrongClock:
		r.jump(f, n)
	case removal:
		r.remove(f, n)
	case snapshots:
		r.snapshot(f, n)
	case handOver:
		if s := n.store(); s != nil {
			r.note(f, n, "hands over: %v", s.TransferLeadership())
		}
	}
}

func (r *run) note(f fault, n *node, format string, args ...any) {
	r.history.note(n.id, "%s: %s", f.kind, fmt.Sprintf(format, args...))
}

// resolve says which node is meant now.
func (r *run) resolve(f fault) *node {
	at := f.choice % len(r.nodes)
	for i := range r.nodes {
		n := r.nodes[(at+i)%len(r.nodes)]
		s := n.store()
		switch {
		case string(f.target) == n.id:
			return n
		case f.target == theLeader && s != nil && s.IsLeader():
			return n
		case f.target == aFollower && s != nil && !s.IsLeader():
			return n
		}
	}
	return r.nodes[at]
}

// claim takes the chair of a node, if nobody starts or stops it just now and it runs.
func (n *node) claim() (release func(), ok bool) {
	select {
	case <-n.chair:
	default:
		return nil, false
	}
	if n.server() == nil {
		n.chair <- struct{}{}
		return nil, false
	}
	return func() { n.chair <- struct{}{} }, true
}

func (r *run) crash(f fault, n *node) {
	release, ok := n.claim()
	if !ok {
		return
	}
	defer release()
	if f.choice%3 != 0 {
		n.awaitWrite(f)
	}
	r.note(f, n, "killed")
	r.counts.crashes.Add(1)
	n.kill()
	if f.choice%2 == 0 {
		n.tear(f)
	}
	time.Sleep(f.lasts)
	r.begin(f, n)
}

// begin starts a node that is down, again and again while its disk is full. Its caller has the chair.
func (r *run) begin(f fault, n *node) {
	for {
		err := n.start()
		if err == nil {
			r.note(f, n, "started")
			return
		}
		n.disk.crash()
		r.net.vanish(n.id)
		if !errors.Is(err, errFull) {
			r.history.violation(n.id, "it does not start after %s: %v", f.kind, err)
			return
		}
		time.Sleep(time.Second)
	}
}

// awaitWrite waits until the node writes to its disk, and some way into that.
func (n *node) awaitWrite(f fault) {
	select {
	case <-n.disk.nextWrite():
		time.Sleep(time.Duration(f.amount * float64(usualWrite)))
	case <-time.After(5 * time.Second):
	}
}

// tear spoils what was not synced when the process died: of the state file any part may be on the disk and any not.
func (n *node) tear(f fault) {
	path := filepath.Join(n.dir, "state.db")
	info, err := os.Stat(path)
	if err != nil {
		return
	}
	if f.choice%4 == 0 {
		err = os.Truncate(path, int64(f.amount*float64(info.Size())))
	} else {
		var file *os.File
		if file, err = os.OpenFile(path, os.O_WRONLY, 0); err == nil {
			_, err = file.WriteAt(make([]byte, 4096), int64(f.amount*float64(info.Size()))&^4095)
			err = errors.Join(err, file.Close())
		}
	}
	if err != nil {
		n.run.history.violation(n.id, "the simulation cannot tear its state file: %v", err)
	}
}

func (r *run) blackout(f fault) {
	var group sync.WaitGroup
	for i, n := range r.nodes {
		release, ok := n.claim()
		if !ok {
			continue
		}
		group.Go(func() {
			defer release()
			r.note(f, n, "killed with all others")
			r.counts.crashes.Add(1)
			n.kill()
			time.Sleep(f.lasts * time.Duration(1+(i+f.choice)%3) / 3)
			r.begin(f, n)
		})
	}
	group.Wait()
}

func (r *run) restart(f fault, n *node) {
	release, ok := n.claim()
	if !ok {
		return
	}
	defer release()
	r.note(f, n, "told to stop")
	r.counts.restarts.Add(1)
	if err := n.stop(); err != nil {
		r.note(f, n, "stopped with %v", err)
	}
	time.Sleep(f.lasts / 4)
	r.begin(f, n)
}

// around are the links of a node: with the other nodes, or with everyone.
func (r *run) around(id string, everyone bool) (links []link) {
	for _, other := range nodeIDs() {
		if other != id {
			links = append(links, link{id, other}, link{other, id})
		}
	}
	if everyone {
		for name := range r.world.people {
			links = append(links, link{name, id}, link{id, name})
		}
	}
	return links
}

func (r *run) partition(f fault, n *node) {
	var cut []link
	var what string
	if f.kind == brokenLink {
		other := r.nodes[(f.choice+1)%len(r.nodes)]
		if other == n {
			other = r.nodes[(f.choice+2)%len(r.nodes)]
		}
		cut, what = []link{{n.id, other.id}}, "is not heard by "+other.id
		if f.choice%2 == 0 {
			cut, what = append(cut, link{other.id, n.id}), "and "+other.id+" do not hear each other"
		}
	} else {
		switch f.choice % 4 {
		case 0:
			cut, what = r.around(n.id, true), "cut off from everyone"
		case 1:
			cut, what = r.around(n.id, false), "cut off from the other nodes"
		case 2:
			cut, what = outOf(n.id, r.around(n.id, f.choice > 5)), "heard by nobody"
		case 3:
			cut, what = into(n.id, r.around(n.id, f.choice > 5)), "hears nobody"
		}
	}
	r.note(f, n, "%s", what)
	r.counts.partitions.Add(1)
	if len(cut) == 1 || f.kind == isolation && f.choice%4 > 1 {
		r.counts.oneWay.Add(1)
	}
	heal := r.net.sever(cut)
	time.Sleep(f.lasts)
	heal()
	r.note(f, n, "healed")
}

func outOf(id string, links []link) (out []link) {
	for _, l := range links {
		if l.from == id {
			out = append(out, l)
		}
	}
	return out
}

func into(id string, links []link) (in []link) {
	for _, l := range links {
		if l.to == id {
			in = append(in, l)
		}
	}
	return in
}

// ail makes a disk slow or full. A node whose disk is full halts at its next write; it is started again once there is
// room.
func (r *run) ail(f fault, n *node) {
	r.counts.diskFaults.Add(1)
	if f.kind == slowDisk {
		lag := time.Duration(float64(5*time.Millisecond) + f.amount*f.amount*float64(5*time.Second))
		r.note(f, n, "each write takes up to %v", lag)
		n.disk.ail(lag, false)
		time.Sleep(f.lasts)
		n.disk.ail(0, false)
		r.note(f, n, "over")
		return
	}
	r.note(f, n, "full")
	n.disk.ail(0, true)
	time.Sleep(f.lasts)
	n.disk.ail(0, false)
	r.note(f, n, "there is room again")
	r.revive(f, n)
}

// revive starts a node that has halted.
func (r *run) revive(f fault, n *node) {
	release, ok := n.claim()
	if !ok {
		return // down for another reason, whose end starts it
	}
	defer release()
	if n.store().Err() == nil {
		return
	}
	l := n.take()
	<-l.ended
	n.judge(l)
	n.disk.crash()
	r.net.vanish(n.id)
	r.note(f, n, "halted: %v", l.err)
	r.begin(f, n)
}

// jump sets a node's clock wrong. At most one is wrong at a time: no cluster can tell that two of three are.
func (r *run) jump(f fault, n *node) {
	select {
	case <-r.clockmaker:
	default:
		return
	}
	defer func() { r.clockmaker <- struct{}{} }()
	by := []time.Duration{
		time.Hour, -time.Hour, time.Hour, -time.Hour, time.Hour, -time.Hour, 5 * time.Minute, -5 * time.Minute,
		30 * time.Second, -30 * time.Second, 61 * time.Second, -61 * time.Second,
	}[f.choice]
	r.note(f, n, "jumps by %v", by)
	r.counts.clockJumps.Add(1)
	n.setClock(n.usual + by)
	time.Sleep(f.lasts)
	n.setClock(n.usual)
	r.note(f, n, "right again")
}

func (r *run) remove(f fault, n *node) {
	select {
	case <-r.registrar:
	default:
		return
	}
	defer func() { r.registrar <- struct{}{} }()
	if !r.changeMembers(f, n, "removed", 20*time.Second, r.members.Remove) {
		// It may be, later: a leader that steps down does not know what becomes of its last change. Were it
		// left so, the next removal would leave a cluster of one, which has nobody to compare its clock with.
		r.changeMembers(f, n, "added again", 5*time.Minute, r.members.Add)
		return
	}
	release, ok := n.claim()
	if ok {
		if f.choice%3 == 0 { // another machine in its place
			n.kill()
			n.wipe()
			r.note(f, n, "its disk was wiped")
			time.Sleep(f.lasts / 2)
			r.begin(f, n)
		}
		release()
	}
	time.Sleep(f.lasts)
	r.changeMembers(f, n, "added again", 5*time.Minute, r.members.Add)
}

// changeMembers has a change made, and tries again while the cluster has other troubles.
func (r *run) changeMembers(f fault, n *node, what string, limit time.Duration, change func(context.Context, string) error) bool {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for {
		err := change(ctx, n.id)
		if err == nil {
			r.note(f, n, "%s", what)
			r.counts.memberships.Add(1)
			return true
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			r.note(f, n, "not %s: %v", what, err)
			return false
		}
	}
}

// wipe replaces the disk of a node that is down.
func (n *node) wipe() {
	n.disk.wipe()
	if err := os.RemoveAll(n.dir); err != nil {
		n.run.history.violation(n.id, "the simulation cannot wipe it: %v", err)
	}
	n.joins = true
}

// snapshot has nodes take snapshots, at times of all nodes at once, at times just before a crash or in the middle of one.
func (r *run) snapshot(f fault, n *node) {
	var group sync.WaitGroup
	for _, other := range r.nodes {
		s := other.store()
		if s == nil || other != n && f.choice%3 != 0 {
			continue
		}
		group.Go(func() {
			if err := s.Snapshot(); err != nil {
				r.note(f, other, "%v", err)
				return
			}
			r.counts.snapshots.Add(1)
			r.note(f, other, "taken")
		})
	}
	if f.choice%2 == 0 {
		time.Sleep(time.Duration(f.amount * float64(3*time.Millisecond)))
		after := f
		after.lasts = min(f.lasts, 5*time.Second)
		r.crash(after, n)
	}
	group.Wait()
}

// Membership changes who votes.
type Membership interface {
	// Remove takes a voter out of the cluster. Removing one that is no member does nothing.
	Remove(ctx context.Context, id string) error
	// Add lets it in and gives it a vote once it has caught up. Adding a voter does nothing.
	Add(ctx context.Context, id string) error
}

var errNoLeader = errors.New("sim: nobody leads")

// storeMembership changes the membership where the leader keeps it. As in a control node
// a leader writes down first what it changes, which it refuses with a clock that is off.
type storeMembership struct{ run *run }

func (m storeMembership) leader(id string) (*raftstore.Store, func() error, error) {
	for _, n := range m.run.nodes {
		if s := n.store(); s != nil && s.IsLeader() {
			if n.id == id {
				return nil, nil, errors.Join(fmt.Errorf("sim: %s leads", id), s.TransferLeadership())
			}
			return s, n.checkClock, nil
		}
	}
	return nil, nil, errNoLeader
}

// Remove implements Membership.
func (m storeMembership) Remove(ctx context.Context, id string) error {
	s, leaf, err := m.leader(id)
	if err != nil || s.Membership()[id] == raftstore.RoleNone {
		return err
	}
	return s.Remove(ctx, id, leaf)
}

// Add implements Membership.
func (m storeMembership) Add(ctx context.Context, id string) error {
	s, leaf, err := m.leader(id)
	if err != nil {
		return err
	}
	if s.Membership()[id] == raftstore.RoleNone {
		if err := s.AddNonvoter(ctx, id, leaf); err != nil {
			return err
		}
	}
	if s.Membership()[id] == raftstore.RoleVoter {
		return nil
	}
	soon, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return s.Promote(soon, id, leaf)
}
